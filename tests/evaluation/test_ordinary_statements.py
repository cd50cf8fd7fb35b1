"""Ordinary statements of an answer are read in every language, and letters that belong to a name are not."""
import pytest

from mmed.evaluation.answer_parser import parse_answer, remove_thoughts

STATED = {
    "en": [
        "The most likely diagnosis is {}.",
        "The best next step is {}.",
        "The most likely cause is option {}.",
        "The treatment of choice is {}.",
        "Option {} best explains the findings.",
        "Thus, the diagnosis is ({}).",
        "The most appropriate management of this patient is {}.",
        "The causative organism is {}.",
    ],
    "zh": [
        "最可能的诊断是{}。",
        "首选治疗是{}。",
        "最合适的处理是{}。",
        "病因应为{}。",
    ],
    "ja": [
        "最も可能性の高い診断は{}です。",
        "第一選択は{}である。",
        "適切な治療は{}です。",
        "原因は{}です。",
    ],
    "fr": [
        "Le diagnostic le plus probable est {}.",
        "Le traitement de choix est {}.",
        "La cause la plus fréquente est {}.",
        "L'examen à réaliser en première intention est {}.",
    ],
    "ru": [
        "Наиболее вероятный диагноз — {}.",
        "Препаратом выбора является {}.",
        "Наиболее вероятная причина: {}.",
        "Методом выбора является {}.",
    ],
    "es": [
        "El diagnóstico más probable es {}.",
        "El tratamiento de elección es {}.",
        "La causa más frecuente es {}.",
        "El agente causal es {}.",
    ],
    "de": [
        "Die wahrscheinlichste Diagnose ist {}.",
        "Die Therapie der Wahl ist {}.",
        "Die Ursache ist {}.",
        "Der nächste Schritt ist {}.",
    ],
    "ar": [
        "التشخيص الأكثر احتمالا هو {}.",
        "العلاج الأنسب هو {}.",
        "السبب الأرجح هو {}.",
    ],
}
NAMES = {
    "en": [
        "Therefore C difficile colitis is the cause.",
        "So I choose C difficile as the cause.",
        "The diagnosis is hepatitis B.",
        "The causative organism is E coli.",
        "The treatment is vitamin D.",
        "The cause is group A streptococcus.",
        "The cause is C. difficile.",
        "B cells are the cause of this disease.",
    ],
    "fr": [
        "Le diagnostic est une hépatite B.",
        "Le traitement est la vitamine D.",
    ],
    "es": [
        "El diagnóstico es hepatitis B.",
        "El tratamiento es vitamina D.",
    ],
    "ru": [
        "Диагноз — гепатит B.",
        "Лечение: витамин D.",
    ],
    "de": [
        "Die Diagnose ist Hepatitis B.",
        "Die Therapie ist Vitamin D.",
    ],
    "zh": [
        "诊断是B型肝炎。",
        "治疗是维生素D。",
    ],
    "ja": [
        "診断はB型肝炎です。",
        "治療はビタミンDです。",
    ],
}
OPTIONS = {"A": "gout", "B": "asthma", "C": "anaemia", "D": "influenza", "E": "sepsis"}


def pairs(sentences: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(code, text) for code, texts in sentences.items() for text in texts]


@pytest.mark.parametrize("language, sentence", pairs(STATED))
def test_an_ordinary_statement_is_read(language, sentence):
    for letter in "BCD":
        assert parse_answer(sentence.format(letter), OPTIONS, language=language).letters == (letter,)


@pytest.mark.parametrize("language, sentence", pairs(NAMES))
def test_a_letter_of_a_name_is_no_answer(language, sentence):
    assert parse_answer(sentence, OPTIONS, language=language).letters == ()


@pytest.mark.parametrize("text, expected", [
    ("<think>The answer is B.</think>The answer is A.", "A"), ("<think>The answer is B.", ""),
    ("The answer is B.</think>\n\nA", "A"),
    ("<|channel|>analysis<|message|>B?<|end|><|start|>assistant<|channel|>final<|message|>Answer: "
     "C<|return|>",
     "C"), ("<|channel|>analysis<|message|>The answer is B", "")
])
def test_only_the_text_after_the_reasoning_counts(text, expected):
    assert "".join(parse_answer(text, OPTIONS).letters) == expected
    assert "B" not in remove_thoughts(text)
