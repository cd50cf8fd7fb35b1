"""Lists the languages, or writes a template for a new one.

    python -m mmed.languages            the list
    python -m mmed.languages new de     writes mmed/languages/de.py, annotated, to fill in

`python -m data_prep.filters.language_check de` reports what is missing or suspicious in a file.
"""
from __future__ import annotations

import re
from pathlib import Path

from mmed.languages import all_languages
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write

TEMPLATE = '''"""TODO the language's name."""
from mmed.languages import AnswerWords, Language, words

LANGUAGE = Language(
    code="{code}", name="TODO in English", native_name="TODO", spaced=True, ocr_code="TODO Tesseract's name",
    # TODO 200 terms in dictionary form, lower case, commas between: signs and people, diseases, organs,
    # examination and treatment, pharmacy, medical biology. "infectio|n": every word that begins so;
    # "|entzündung|": also inside a compound; "a/b": two spellings of one term.
    medical_words=words("""
        TODO
    """),
    # TODO choose on texts: python -m data_prep.filters.language_check {code} --text labelled.jsonl
    min_hits=4, min_density=0.04, official_min_hits=4, official_min_density=0.04,
    medical_sentence="TODO a patient, a complaint, an examination, a treatment.",
    ordinary_sentence="TODO a sentence without any medical word, such as on a train to the sea.",
    disclaimer="TODO This is a research model. What it says is not medical advice; ask a doctor.",
    answers=AnswerWords(  # words by which models state an answer: mmed/languages/en.py shows them filled in
        answer="TODO answer, option, diagnosis, treatment|, cause",
        is_="TODO is, are, would be, seems",
        choose="TODO choose, think, therefore, actually, wait",
        correct="TODO correct, right, best, most likely",
        wrong="TODO wrong, false, ruled out",
        not_="TODO not, neither, rather than",
        because="TODO because, since",
        and_or="TODO and, as well as / or",
        question="TODO Question",
        letters="",  # TODO of the script, for A, B, C, ...
        stated=("TODO The correct answer is {{}}.", "TODO I choose {{}}.", "TODO {{}} is the best option."),
        denied=("TODO {{}} is wrong.", "TODO It is not {{}}."),
    ),
    phone_words="TODO telephone|phone",
)
'''


def new(code: str, folder: Path) -> Path:
    """Write the file of a new language; an existing file is never overwritten."""
    if not re.fullmatch("[a-z]{2,3}", code):
        raise UsageError(f"new {code}: expected a code of ISO 639-1 (or 639-3 where there is none): "
                         "two or three small letters, such as de")
    path = folder / f"{code}.py"
    if path.exists():
        raise UserError(f"{path}: already exists; `python -m data_prep.filters.language_check {code}` lists "
                        "what is missing")
    with atomic_write(path) as file:
        file.write(TEMPLATE.format(code=code))
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.languages", description="List the languages, or start a new one.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    made = commands.add_parser("new", help="write an annotated template for a new language")
    made.add_argument("code", help="ISO 639-1 code, such as de")
    made.add_argument("--folder", type=Path, default=Path(__file__).parent,
                      help="output folder (default: mmed/languages)")
    given = parser.parse_args(arguments)
    if given.command == "new":
        print(f"wrote {new(given.code, given.folder)}: fill in what says TODO, then run `python -m "
              f"data_prep.filters.language_check {given.code}`")
        return 0
    for language in all_languages():
        print(f"{language.code:4}{language.name:12}{len(language.medical_words):4} medical words  "
              f"{language.native_name}")
    return 0


if __name__ == "__main__":
    main_guard(main)
