"""The answer parser and the published scorer: outputs in eight languages, round trips, thoughts, time."""
from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path

import pytest
from growth import grows_at_most
from json_lines import read_lines

from mmed.evaluation import answer_parser
from mmed.evaluation.answer_parser import END_MARKERS, ParsedAnswer, official_match, parse_answer
from mmed.languages import PAPER_ORDER, all_languages
from mmed.prompts import ExamItem, build_target

ROWS = read_lines(Path(__file__).parents[1] / "data" / "hostile_answers.jsonl")
FURTHER = [language.code for language in all_languages() if language.code not in PAPER_ORDER]


def item_of(letters: str, answer: tuple[str, ...], rationale: str = "") -> ExamItem:
    options = {letter: f"option {letter}" for letter in letters}
    return ExamItem("q", options, answer, rationale, "English", "k")


def published_accuracy(response: str, gt_answer: str) -> bool:
    """metrics/accuracy.py of the paper's repository, its loop body, on the output of inference.py."""
    response = response.strip().replace("\n", "")
    response = response.replace("###Answer: OPTION ", "").replace("IS CORRECT.</s>", "").strip()
    if len(gt_answer) == 1:
        return response == gt_answer
    return set(response.split(",")) == set(gt_answer.split(","))


def test_official_match_is_the_published_scorer():
    rng = random.Random()
    for _ in range(2000):
        answer = tuple(sorted(rng.sample("ABCDE", rng.randint(1, 3))))
        item = item_of("ABCDE", answer)
        said = rng.choice([",", ", ", " "]).join(rng.sample("ABCDE", rng.randint(1, 3)))
        text = rng.choice(["", " ", "\n", "x"]) + f"###Answer: OPTION {said} IS CORRECT."
        text = rng.choice([text, said + " IS CORRECT.", f"###Rationale: r\n{text}"])
        expected = published_accuracy(text + "</s>", ",".join(answer))
        assert official_match(text + "</s>", item) == expected, text
        assert official_match(text, item) == official_match(text + "<|eot_id|>", item) == expected, text


@pytest.mark.parametrize("case", ROWS, ids=lambda case: f"{case['language']}-{case['note']}")
def test_an_output_is_read_as_a_careful_person_reads_it(case):
    parsed = parse_answer(case["text"], case["options"], language=case["language"])
    assert (list(parsed.letters), parsed.status) == (case["expected"], case["status"]), case["text"]


@pytest.mark.parametrize("language", FURTHER)
def test_the_words_of_a_further_language_hardly_touch_other_texts(language):
    rows = [case for case in ROWS if case["language"] in PAPER_ORDER]
    other = [case["text"] for case in rows if list(
        parse_answer(case["text"], case["options"], language=language).letters) != case["expected"]]
    assert len(other) <= 3, other


METALS = {"A": "Salt", "B": "Iron.", "C": "Zinc and vitamin C.", "D": "Lead"}


@pytest.mark.parametrize("text, options, letters", [
    ("The answer is H", "ABCDEFGH", "H"), ("The answer is E", ["A", "B"], ""),
    ("A: true, B: false, C: true", "ABCD", "AC"),
    ("Heparin", {"A": "Aspirin", "B": "Heparin", "C": "heparin"}, "B"),  # of equal options, the first
    *((text, METALS, letters) for text, letters in (  # a copied list of options is not an answer
        ("A. Salt\nB. Iron.\nC. Zinc and vitamin C.\nD. Lead\n\n---\n\n---", ""),  # Gemma 3 270M
        ("A. Salt. B. Iron. C. Zinc and vitamin C. D. Lead.\n\n### Response: D. Lead", "D"),
        ("A. Salt B. Iron. C. Zinc and vitamin C. D. Lead The answer is B.", "B"),
        ("###Option A: Salt\n###Option B: Iron.\n###Option C: Zinc and vitamin C.\n###Option D: Lead\n\n###",
         ""),
        ("###Question: Which metal? ###Options: A. Salt B. Ir", ""),
        ("###Question: Which metal? A. Salt\n### Answer:\nB", "B"),
        ("A. Salt\nB. Iron.\nC. Zinc and vi", ""),  # cut off by the limit on tokens
        ("A. Salt\nB. Iron.\nC. Zinc and vitamin C.", ""),
        ("1. Salt\n2. Iron.\n3. Zinc and vitamin C.", ""),
        ("A. Salt\nB. Iron.\nC. Zinc or another metal\n", ""),
        ("A. Sugar\nB. Iron.\nC. Zinc and vitamin C.\nD", ""),
        ("A. Sugar\nB. Salt\nC. Iron.\nD. Zinc and vitamin C.", ""),  # moved by one, with one more
        ("A. Salt\nC. Zinc and vitamin C.", "AC"), ("A. Salt\nB. Iron.", "AB"),  # answers of several letters
        ("A. Salt: wrong.\nB. Iron: correct.\nC. Zinc: wrong.\nD. Lead: wrong.", "B"), ("A. Salt", "A"))),
])
def test_letters_that_are_read(text, options, letters):
    assert "".join(parse_answer(text, options).letters) == letters


@pytest.mark.parametrize("text,expected,rationale", [
    ("She bleeds.\nHeparin would harm her.\n\nThe answer is B.", "B", "She bleeds.\nHeparin would harm her."),
    ("Only reasons, no choice. None at all.", "", "Only reasons, no choice. None at all."),
    ("###Rationale: Only reasons", "", "Only reasons"),
    ("###Rationale: Reason.\n###Answer: B", "B", "Reason."),
    ("###Rationale: Reason. ###Answer: B", "B", "Reason. "),
    ("B", "B", ""),
])
def test_the_rationale_of_a_free_answer(text, expected, rationale):
    parsed = parse_answer(text, {"A": "Heparin", "B": "Aspirin"}, rationale_expected=True)
    assert parsed == ParsedAnswer(tuple(expected), "lenient" if expected else "unparsed", rationale)
    if "###" not in text:  # without a heading, only where one is expected
        assert parse_answer(text, "AB").rationale == ""


AWKWARD = ["###Answer: OPTION B IS CORRECT.", "###Answer:", "###Rationale:", "\n", "\n\n", " ", "</think",
           "OPTION", "答案：B", "правильный ответ: С", "The answer is A.", "\u202e", "\u2028", "A,B,C", "{x}",
           "Ｂ", "à jeun", "。", "x", "\\boxed{A}", "not B"]


def test_parsing_a_target_gives_the_item_back():
    rng = random.Random()
    for _ in range(500):
        letters = "ABCDEFGH"[:rng.randint(2, 8)]
        answer = tuple(sorted(rng.sample(letters, rng.randint(1, len(letters)))))
        words = rng.choice([" ", "", "\n"]).join(rng.choices(AWKWARD, k=rng.randint(1, 12)))
        item = item_of(letters, answer, f"Because {words}" + rng.choice(["", ".", "\n", " "]))
        target = build_target(item, True)
        for text in (target, target + rng.choice(END_MARKERS), f"\n{target}\n"):
            assert parse_answer(text, item.options) == ParsedAnswer(answer, "strict", item.rationale), text
        assert parse_answer(build_target(item, False), item.options) == ParsedAnswer(answer, "strict", "")


def test_any_text_gives_letters_that_are_options_and_the_same_ones_again():
    rng = random.Random()
    pieces = [piece for case in ROWS for piece in case["text"].split(" ")] + AWKWARD
    options = ROWS[0]["options"]
    for _ in range(500):
        text = rng.choice([" ", "", "\n"]).join(rng.choices(pieces, k=rng.randint(1, 25)))
        if rng.random() < 0.5:
            tops = rng.choices([0x110000, 0x3000, 128], k=rng.randint(0, 60))
            text = "".join(chr(rng.randrange(top)) for top in tops)
        parsed = parse_answer(text, options, rationale_expected=rng.random() < 0.5)
        assert set(parsed.letters) <= set(options), text
        assert list(parsed.letters) == sorted(set(parsed.letters)), text
        assert parsed.status in (("lenient", "strict") if parsed.letters else ("unparsed",)), text
        blanks = rng.choice([" ", "\n", "\u200f", "\ufeff", "  \n"])
        assert parse_answer(blanks + text + blanks, options).letters == parsed.letters, repr(text)


PHRASES = [
    "The answer is", "answer:", "Answer (A or B):", "I would choose", "not", "Actually,", "wait", "because",
    "and", "or", "is correct", "is wrong", "option", "None of them",
    "答案是", "正确答案：", "选", "不选", "应选", "错误", "和", "正解は", "が正しい", "ではなく", "です",
    "選択肢", "la réponse est", "Réponses :", "et", "ou", "pas", "est fausse", "правильный ответ", "Ответ:",
    "не", "и", "или", "верно", "la respuesta es", "correcta", "no", "y", "la opción", "###Answer: OPTION",
    "IS CORRECT.", "###Rationale:", "\\boxed{", "}", "**", "(", ")", ".", ",", ":", "\n", "- ", "A", "B", "C",
    "D", "E", "А", "В", "С", "Б", "Ａ", "ｂ", "Β", "A.", "B)", "(C)", "ABD", "A,C", "Heparin", "aspirin",
    "Aspirin and heparin", "\u200f", "\u202e", "</s>", "<think>", "</think>", "### Instruction:",
    "Question:", "1.", "true", "false",
]
READ = {"7": "d604a6705cfafda7"}  # version of the parser -> hash of what it reads from 3,000 texts


def test_a_parser_that_reads_anything_differently_has_a_new_version():
    """Where this fails: raise PARSER_VERSION and put the new version with its hash into READ."""
    rng, read = random.Random(1), hashlib.sha256()
    options = {"A": "Heparin", "B": "Aspirin", "C": "Aspirin and heparin", "D": "None of them", "E": "Iron"}
    for _ in range(3000):
        text = rng.choice([" ", " ", ""]).join(
            PHRASES[int(rng.random() * len(PHRASES))] for _ in range(int(rng.random() * 9) + 1))
        parsed = parse_answer(text, options if rng.random() < 0.5 else "ABCDE", rng.random() < 0.5)
        read.update(repr((parsed.letters, parsed.status, parsed.rationale)).encode())
    assert READ.get(answer_parser.PARSER_VERSION) == read.hexdigest()[:16], read.hexdigest()[:16]


def test_lower_case_keeps_the_length_of_folded_text():
    for code in range(0x20000):  # places in the folded text and in its lower-case form are used as one
        folded = answer_parser.fold(chr(code))
        assert len(folded.lower()) == len(folded), hex(code)


@pytest.mark.parametrize("unit", [
    "answer: ", "###Answer:", "选", "A. ", "A. Ampicillin\n", "((((", "A, ", "\n", "\u0301", "\\boxed{",
    "<think>", "### Instruction:", "\nQuestion:", "A. Ampicillin B. Ceftriaxone ",
    "the answer is not A, B or ", "A is correct. ", "-",
])
def test_time_grows_with_the_text_and_not_with_its_square(unit):
    def seconds(size: int) -> float:
        text, start = (unit * size)[:size], time.process_time()
        parse_answer(text, ROWS[0]["options"], rationale_expected=True)
        return max(time.process_time() - start, 1e-3)

    assert grows_at_most(seconds, 2_000, 16_000, 8 * 4)
