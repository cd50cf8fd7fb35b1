"""Ordinary statements of an answer, letters that belong to names, and thoughts of reasoning models."""

import pytest

from mmed.evaluation.answer_parser import official_match, parse_answer, remove_thoughts
from mmed.prompts import ExamItem

STATEMENTS = {
    "en": [
        "The most likely diagnosis is C.",
        "Option C best explains the findings.",
        "The best initial test is C.",
        "The best next step is C.",
        "Thus, the most likely diagnosis in this patient is (C).",
        "The most appropriate management is option C.",
        "The causative organism is C.",
        "The drug of choice is C.",
        "The most probable etiology is C.",
        "The mechanism is C.",
        "The finding most consistent with this is C.",
        "The most likely cause is option C.",
        "The treatment of choice is C.",
        "Thus, the diagnosis is (C).",
        "The most appropriate management of this patient is C.",
    ],
    "fr": [
        "Le diagnostic le plus probable est C.",
        "Le traitement de choix est la C.",
        "La cause la plus probable est C.",
        "Le traitement de choix est C.",
        "La cause la plus fréquente est C.",
        "L'examen à réaliser en première intention est C.",
    ],
    "es": [
        "El diagnóstico más probable es C.",
        "El tratamiento de elección es la C.",
        "La causa más probable es C.",
        "El tratamiento de elección es C.",
        "La causa más frecuente es C.",
        "El agente causal es C.",
    ],
    "ru": [
        "Наиболее вероятный диагноз — C.",
        "Наиболее вероятным диагнозом является C.",
        "Причиной является C.",
        "Препаратом выбора является C.",
        "Наиболее вероятная причина: C.",
        "Методом выбора является C.",
    ],
    "de": [
        "Die wahrscheinlichste Diagnose ist C.",
        "Die Therapie der Wahl ist C.",
        "Der nächste Schritt ist C.",
        "Die Ursache ist C.",
    ],
    "zh": [
        "最可能的诊断是C。",
        "首选治疗为C。",
        "最可能的原因是C。",
        "首选治疗是C。",
        "最合适的处理是C。",
        "病因应为C。",
    ],
    "ja": [
        "最も可能性の高い診断はCである。",
        "第一選択の治療はCである。",
        "原因はCです。",
        "最も可能性の高い診断はCです。",
        "第一選択はCである。",
        "適切な治療はCです。",
    ],
    "ar": [
        "التشخيص الأرجح هو C.",
        "العلاج الأنسب هو ج.",
        "السبب الأكثر احتمالا هو C.",
        "التشخيص الأكثر احتمالا هو C.",
        "العلاج الأنسب هو C.",
        "السبب الأرجح هو C.",
    ],
}
NAMES = {
    "en": [
        "The diagnosis is hepatitis B.",
        "The treatment is vitamin C.",
        "The organism is E. coli.",
        "The pathogen is group A streptococcus.",
        "The diagnosis is influenza type A.",
        "Therefore C difficile colitis is the cause.",
        "So I choose C difficile as the cause.",
        "The best treatment is amphotericin B.",
        "The causative organism is E coli.",
        "The treatment is vitamin D.",
        "The cause is group A streptococcus.",
        "The cause is C. difficile.",
        "B cells are the cause of this disease.",
    ],
    "fr": [
        "Le diagnostic est une hépatite B.",
        "Le germe est E. coli.",
        "Le traitement est la vitamine D.",
    ],
    "es": [
        "El tratamiento es vitamina C.",
        "La causa es E. coli.",
        "El diagnóstico es hepatitis B.",
        "El tratamiento es vitamina D.",
    ],
    "ru": [
        "Диагноз — гепатит B.",
        "Лечение: витамин D.",
    ],
    "de": [
        "Die Diagnose ist Hepatitis B.",
        "Der Erreger ist E. coli.",
        "Die Therapie ist Vitamin D.",
    ],
    "zh": [
        "诊断为B型肝炎。",
        "诊断是B型肝炎。",
        "治疗是维生素D。",
    ],
    "ja": [
        "診断はB型肝炎である。",
        "診断はB型肝炎です。",
        "治療はビタミンDです。",
    ],
    "ar": [
        "التشخيص هو التهاب الكبد ب.",
    ],
}
PUBLISHED = "###Answer: OPTION A IS CORRECT."
CHANNEL = "<|channel|>{}<|message|>{}<|end|><|start|>assistant"
THOUGHTS = [
    f"<think>It is B.</think>\n\n{PUBLISHED}",
    f'<think>I should end with "###Answer: OPTION B IS CORRECT."</think>{PUBLISHED}',
    f"It is B.</think>\n{PUBLISHED}",
    f"<thinking>The answer is B.</thinking>{PUBLISHED}",
    f"[THINK]The answer is B.[/THINK]{PUBLISHED}",
    f"<unused94>thought\nThe answer is B.<unused95>{PUBLISHED}",
    f"## Thinking\n\nThe answer is B.\n\n## Final Response\n\n{PUBLISHED}",
    CHANNEL.format("analysis", "The answer is B.") + f"<|channel|>final<|message|>{PUBLISHED}<|return|>",
    CHANNEL.format("analysis", "B?")
    + CHANNEL.format("commentary", "It is B.")
    + f"<|channel|>final<|message|>{PUBLISHED}",
    f"analysisThe answer is B.assistantfinal{PUBLISHED}",
]
UNFINISHED = [
    "<think>The answer is B.",
    "<|channel|>analysis<|message|>The answer is B.",
    "analysisThe answer is B.",
    "<unused94>thought\nThe answer is B.",
    "<think>B</think><think>The answer is B.",
]


def pairs(texts_by_language: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(language, text) for language, texts in texts_by_language.items() for text in texts]


@pytest.mark.parametrize("language,text", pairs(STATEMENTS))
def test_ordinary_statements_are_parsed(language, text):
    assert parse_answer(text, "ABCDE", language=language).letters == ("C",)


@pytest.mark.parametrize("language,text", pairs(NAMES))
def test_letters_of_names_are_no_answers(language, text):
    assert parse_answer(text, "ABCDE", language=language).letters == ()


@pytest.mark.parametrize("text", THOUGHTS)
def test_the_answer_after_a_thought_is_parsed(text):
    item = ExamItem("q", {"A": "this", "B": "that"}, ("A",), "", "English", "1")
    assert parse_answer(text, "ABCDE") == parse_answer(PUBLISHED, "ABCDE")
    assert official_match(text, item)


@pytest.mark.parametrize("text", UNFINISHED)
def test_an_unfinished_thought_is_no_answer(text):
    assert remove_thoughts(text) == "" and parse_answer(text, "ABCDE").letters == ()


def test_text_without_thoughts_is_kept():
    for text in ("I think that the answer is B.", "Analysis of the urine: B", "The final answer is B.\n", ""):
        assert remove_thoughts(text) == text
