"""Lists the languages, or starts a new one.

    python -m mmed.languages            the list
    python -m mmed.languages new de     writes mmed/languages/de.py: the English file, to be translated

`python -m data_prep.filters.language_check de` reports what is missing or suspicious in a file.
"""
from __future__ import annotations

import re
from pathlib import Path

from mmed.languages import all_languages
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write


def new(code: str, folder: Path) -> Path:
    """Write the file of a new language; an existing file is never overwritten."""
    if not re.fullmatch("[a-z]{2,3}", code):
        raise UsageError(f"new {code}: expected a code of ISO 639-1 (or 639-3 if there is none), such as de")
    path = folder / f"{code}.py"
    if path.exists():
        raise UserError(f"{path}: already exists; `python -m data_prep.filters.language_check {code}` lists "
                        "what is missing")
    text = Path(__file__).with_name("en.py").read_text(encoding="utf-8")
    text = text.replace('code="en"', f'code="{code}"').replace("English", "TODO")
    text = text.replace('ocr_code="eng"', 'ocr_code="TODO"')
    text = text.replace("    ),\n)\n", '    ),\n    phone_words="TODO", disclaimer="TODO",\n)\n')
    text = re.sub("(?m)^    (?=medical_|ordinary_|answers)", "    # TODO translate\n    ", text)
    text = re.sub("(?m)^    (?=min_hits)", "    # TODO choose on texts\n    ", text)
    with atomic_write(path) as file:
        file.write(text)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.languages", description="List the languages, or start a new one.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    made = commands.add_parser("new", help="write the file of a new language, to be translated")
    made.add_argument("code", help="ISO 639-1 code, such as de")
    made.add_argument("--folder", type=Path, default=Path(__file__).parent,
                      help="output folder (default: mmed/languages)")
    given = parser.parse_args(arguments)
    if not given.command:
        for language in all_languages():
            print(f"{language.code:4}{language.name:12}{len(language.medical_words):4} medical words  "
                  f"{language.native_name}")
        return 0
    print(f"wrote {new(given.code, given.folder)}: fill in what says TODO, then run `python -m "
          f"data_prep.filters.language_check {given.code}`")
    return 0


if __name__ == "__main__":
    main_guard(main)
