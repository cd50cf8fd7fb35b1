"""The answer parser and the published scorer: a table of hostile outputs in eight languages, round trips,
time, real options.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
import unicodedata
from pathlib import Path

import pytest
from growth import grows_at_most

from mmed.evaluation import answer_letters, answer_parser, answer_words
from mmed.evaluation.answer_parser import official_match, parse_answer
from mmed.languages import PAPER_ORDER, all_languages
from mmed.prompts import ExamItem, build_target

HOSTILE = Path(__file__).parents[1] / "data" / "hostile_answers.jsonl"
ROWS = [json.loads(line) for line in HOSTILE.read_text(encoding="utf-8").split("\n") if line]
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"

# --- scoring as published


def published_accuracy(response: str, gt_answer: str) -> bool:
    """metrics/accuracy.py of the paper's repository, its loop body, on the output of inference.py."""
    response = response.strip().replace("\n", "")
    response = response.replace("###Answer: OPTION ", "").replace("IS CORRECT.</s>", "").strip()
    if len(gt_answer) == 1:
        return response == gt_answer
    return set(response.split(",")) == set(gt_answer.split(","))


def test_official_match_is_the_published_scorer():
    rng = random.Random()
    letters = "ABCDE"
    for _ in range(2000):
        answer = tuple(sorted(rng.sample(letters, rng.randint(1, 3))))
        item = ExamItem("q", {letter: letter for letter in letters}, answer, "", "French", "k")
        said = rng.sample(letters, rng.randint(1, 3))
        said = rng.choice([",", ", ", " "]).join(said)
        text = rng.choice(["", " ", "\n", "x"]) + f"###Answer: OPTION {said} IS CORRECT."
        text = rng.choice([text, said + " IS CORRECT.", f"###Rationale: r\n{text}"])
        expected = published_accuracy(text + "</s>", ",".join(answer))
        assert official_match(text + "</s>", item) == expected, text
        assert official_match(text, item) == official_match(text + "<|eot_id|>", item) == expected, text


def test_with_rationale_the_published_scorer_gives_nothing():
    item = ExamItem("q", {"A": "a", "B": "b"}, ("B",), "So.", "French", "k")
    assert official_match(build_target(item, False),
                          item) and not official_match(build_target(item, True), item)


# --- the answer parser


@pytest.mark.parametrize("case", ROWS, ids=lambda case: f"{case['language']}-{case['note']}")
def test_a_hostile_output_is_read_as_a_careful_person_reads_it(case):
    parsed = parse_answer(case["text"], case["options"], language=case["language"])
    assert (list(parsed.letters), parsed.status) == (case["expected"], case["status"]), case["text"]


@pytest.mark.parametrize("language",
                         [language.code for language in all_languages() if language.code not in PAPER_ORDER])
def test_the_words_of_a_further_language_hardly_touch_other_texts(language):
    """Its items are read with the paper's six languages, too: nearly every row of these must come out the
    same.
    """
    rows = [case for case in ROWS if case["language"] in PAPER_ORDER]
    other = [
        case["text"] for case in rows
        if list(parse_answer(case["text"], case["options"], language=language).letters) != case["expected"]
    ]
    assert len(other) <= 2, other


def test_the_hostile_table_is_large_and_covers_all_languages():
    assert len(ROWS) >= 400
    for language in ("en", "zh", "ja", "fr", "ru", "es"):
        rows = [case for case in ROWS if case["language"] == language]
        assert len(rows) >= 60
        assert {case["status"] for case in rows} == {"strict", "lenient", "unparsed"}
        notes = " | ".join(case["note"] for case in rows)
        for category in (
            "full-width",
            "Cyrillic",
            "Greek",
            "and",
            "not B",
            "change of mind",
            "question repeated",
            "boxed",
            "bold",
            "brackets",
            "option text",
            "bidi",
            "refusal",
            "empty",
            "rationale only",
            "not among",
            "undecided",
            "runs on",
            "JSON",
            "look-alike",
        ):
            assert category in notes, (language, category)
    assert len({(case["text"], json.dumps(case["options"])) for case in ROWS}) > 0.9 * len(ROWS)


def test_letters_alone_do_for_options():
    assert parse_answer("The answer is B", "ABCD").letters == ("B",)
    assert parse_answer("The answer is B", ["A", "B"]).letters == ("B",)
    assert parse_answer("The answer is E", "ABCD").letters == ()


AWKWARD = [
    "###Answer: OPTION B IS CORRECT.",
    "###Answer:",
    "###Rationale:",
    "\n",
    "\n\n",
    " ",
    "</think",
    "OPTION",
    "答案：B",
    "правильный ответ: С",
    "The answer is A.",
    "\u202e",
    "\u2028",
    "A,B,C",
    "{x}",
    "Ｂ",
    "à jeun",
    "。",
    "x",
    "\\boxed{A}",
    "not B",
]


def random_rationale(rng: random.Random) -> str:
    words = [rng.choice(AWKWARD) for _ in range(rng.randint(1, 12))]
    return rng.choice(["", "Because "]) + rng.choice([" ", "", "\n"]).join(words) + rng.choice(
        ["", ".", "\n", " "])


def test_parsing_a_target_gives_the_item_back():
    rng = random.Random()
    done = 0
    while done < 3000:
        letters = [chr(65 + i) for i in range(rng.randint(2, 8))]
        answer = tuple(sorted(rng.sample(letters, rng.randint(1, len(letters)))))
        rationale = random_rationale(rng)
        if not rationale.strip():
            continue
        done += 1
        item = ExamItem("q", {letter: f"option {letter}"
                              for letter in letters}, answer, rationale, "English", "k")
        target = build_target(item, True)
        for text in (target, target + rng.choice(answer_parser.END_MARKERS),
                     rng.choice(["\n", " "]) + target + "\n"):
            parsed = parse_answer(text, item.options)
            assert (parsed.letters, parsed.status, parsed.rationale) == (answer, "strict", rationale), text
        parsed = parse_answer(build_target(item, False), item.options)
        assert (parsed.letters, parsed.status, parsed.rationale) == (answer, "strict", "")


def test_the_rationale_of_a_free_answer():
    options = {"A": "Heparin", "B": "Aspirin"}
    text = "She bleeds.\nHeparin would harm her.\n\nThe answer is B."
    assert parse_answer(text, options,
                        rationale_expected=True).rationale == "She bleeds.\nHeparin would harm her."
    assert parse_answer(text, options).rationale == ""
    text = "Only reasons, no choice. None at all."
    assert parse_answer(text, options, True) == answer_parser.ParsedAnswer((), "unparsed", text)
    assert parse_answer("###Rationale: Only reasons", options).rationale == "Only reasons"
    assert parse_answer("###Rationale: Reason.\n###Answer: B", options) == answer_parser.ParsedAnswer(
        ("B",), "lenient", "Reason."
    )
    assert parse_answer("B", options, True).rationale == ""


def test_a_letter_beside_another_options_text_counts_as_the_letter():
    assert parse_answer("The answer is B. Heparin", {"A": "Heparin", "B": "Aspirin"}).letters == ("B",)


def test_any_text_gives_letters_that_are_options_and_the_same_ones_again():
    rng = random.Random()
    pieces = [piece for case in ROWS for piece in case["text"].split(" ")] + AWKWARD
    options = ROWS[0]["options"]
    for _ in range(1500):
        if rng.random() < 0.5:
            tops = [rng.choice([0x110000, 0x3000, 128]) for _ in range(rng.randint(0, 60))]
            text = "".join(chr(rng.randrange(top)) for top in tops)
        else:
            text = rng.choice([" ", "", "\n"]).join(rng.choice(pieces) for _ in range(rng.randint(1, 25)))
        parsed = parse_answer(text, options, rationale_expected=rng.random() < 0.5)
        assert set(parsed.letters) <= set(options) and list(parsed.letters) == sorted(set(
            parsed.letters)), text
        assert (parsed.status == "unparsed") == (parsed.letters == ()) and parsed.status in (
            "strict",
            "lenient",
            "unparsed",
        ), text
        if parsed.letters:  # what was read, written in the published form, is read as the same
            item = ExamItem("q", options, parsed.letters, "", "English", "k")
            assert parse_answer(build_target(item, False), options).letters == parsed.letters
        blanks = rng.choice([" ", "\n", "\u200f", "\ufeff", "  \n"])
        assert parse_answer(blanks + text + blanks,
                            options).letters == parse_answer(text, options).letters, repr(text)


PHRASES = [
    "The answer is", "answer:", "Answer (A or B):", "I would choose", "not", "Actually,", "wait", "because",
    "and", "or", "is correct", "is wrong", "option", "None of them",
    "答案是", "正确答案：", "选", "不选", "应选", "错误", "和",
    "正解は", "が正しい", "ではなく", "です", "選択肢",
    "la réponse est", "Réponses :", "et", "ou", "pas", "est fausse",
    "правильный ответ", "Ответ:", "не", "и", "или", "верно", "la respuesta es", "correcta", "no", "y",
    "la opción", "###Answer: OPTION", "IS CORRECT.", "###Rationale:", "\\boxed{", "}", "**", "(", ")", ".",
    ",", ":", "\n", "- ", "A", "B", "C", "D", "E", "А", "В", "С", "Б", "Ａ", "ｂ", "Β", "A.", "B)", "(C)",
    "ABD", "A,C", "Heparin", "aspirin", "Aspirin and heparin", "\u200f", "\u202e", "</s>", "<think>",
    "</think>", "### Instruction:", "Question:", "1.", "true", "false", "yes",
]
READ = {"2": "0aded5dbc0d412c0"}  # version of the parser -> hash of what it reads from 3,000 texts


def test_a_parser_that_reads_anything_differently_has_a_new_version():
    """Numbers of two versions are kept apart by it. Where this fails: raise PARSER_VERSION, and put the new
    version with its hash in READ.
    """
    rng, options = random.Random(1), {
        "A": "Heparin", "B": "Aspirin", "C": "Aspirin and heparin", "D": "None of them", "E": "Iron"
    }
    read = hashlib.sha256()
    letters = 0
    for _ in range(3000):
        text = rng.choice([" ", " ", ""]).join(PHRASES[int(rng.random() * len(PHRASES))]
                                               for _ in range(int(rng.random() * 9) + 1))
        parsed = parse_answer(text,
                              options if rng.random() < 0.5 else "ABCDE",
                              rationale_expected=rng.random() < 0.5)
        letters += bool(parsed.letters)
        read.update(repr((parsed.letters, parsed.status, parsed.rationale)).encode())
    assert 750 < letters < 2250
    assert READ.get(answer_parser.PARSER_VERSION) == read.hexdigest(
    )[:16], f"version {answer_parser.PARSER_VERSION} reads {read.hexdigest()[:16]}"


def test_lower_case_keeps_the_length_of_folded_text():
    # positions in the folded text and in its lower-case form are used as one
    for table, end in ((answer_letters._FOLD, 0x110000), (answer_letters._FURTHER_FOLD, 0x20000)):
        for code in range(end):
            folded = table[code]
            assert len(folded.lower()) == len(folded), hex(code)


def test_every_look_alike_is_another_character_than_its_letter():
    for char, letter in answer_words.LOOKALIKES.items():
        assert char != letter and not char.isascii() and letter.isascii(), unicodedata.name(char)
        if letter.isupper() and letter in "ABCDE":
            assert parse_answer(f"The answer is {char}.",
                                "ABCDE").letters == (letter, ), unicodedata.name(char)


@pytest.mark.parametrize(
    "unit",
    [
        "A ",
        "answer: ",
        "###Answer:",
        "选",
        "のは",
        "((((",
        "A, ",
        "not A ",
        "\n",
        " ",
        "\u0301",
        "\\boxed{",
        "<think>",
        "### Instruction:",
        "\nQuestion:",
        "A. Ampicillin ",
        "A. Ampicillin B. Ceftriaxone ",
        "Ampicillin ",
        "\u202e",
        "A is correct. ",
        "-",
        "Б) ",
        "###Rationale: ",
        "\n- A",
        "</s>",
        "No, ",
    ],
)
def test_a_megabyte_of_anything_is_read_in_seconds(unit):
    text = (unit * (1_000_000 // len(unit) + 1))[:1_000_000]
    start = time.process_time()
    parse_answer(text, ROWS[0]["options"], rationale_expected=True)
    assert time.process_time() - start < 6  # about 0.1 to 1 s each; a quadratic expression takes minutes


def test_time_grows_with_the_text_and_not_with_its_square():
    def seconds(size: int) -> float:
        text = ("the answer is not A, B or " * size)[:size]
        start = time.process_time()
        parse_answer(text, "ABCDE")
        return time.process_time() - start

    seconds(4000)
    assert grows_at_most(lambda size: max(seconds(size), 1e-3), 2000, 16_000, 8 * 4)


# --- real questions


@pytest.mark.skipif(not REAL.is_dir(), reason="real exam files are not here")
def test_real_options_are_read_back_from_letter_and_text():
    """On real FrenchMedMCQA items the target, "letter. text" of an option and a list of letters are read as
    written.
    """
    rows = json.loads((REAL / "frenchmedmcqa" / "corpus" / "train.json").read_text(encoding="utf-8"))
    rng = random.Random()
    for source in rng.sample(rows, 300):
        options = {letter.upper(): text for letter, text in sorted(source["answers"].items())}
        answer = tuple(sorted(letter.upper() for letter in source["correct_answers"]))
        item = ExamItem(source["question"], options, answer, "Parce que.", "French", source["id"])
        assert parse_answer(build_target(item, True), options).letters == answer
        assert parse_answer("Les réponses correctes sont : " + " et ".join(answer),
                            options).letters == answer, (answer, options,
                                                         )
        letter = rng.choice(list(options))
        assert parse_answer(f"La réponse est {letter}. {options[letter]}", options).letters == (letter,), (
            letter,
            options,
        )
        assert parse_answer(f"{letter}) {options[letter]}", options).letters == (letter,), (letter, options)
