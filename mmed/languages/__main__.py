"""List the languages, or begin the file of a new one.

    python -m mmed.languages            the list
    python -m mmed.languages new de     writes mmed/languages/de.py, annotated, to fill in

`python -m data_prep.filters.language_check de` says what is missing or suspicious in a file.
"""
from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from mmed.languages import all_languages
from mmed.languages._template import TEMPLATE
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write

# Languages that people are likely to add: names, Tesseract's name, option letters of the script
KNOWN = {row.split("|")[0].strip(): row.split("|")[1:] for row in """
    ar|Arabic|العربية|ara|أبجدهوزح; bn|Bengali|বাংলা|ben|কখগঘঙ; cs|Czech|Čeština|ces; de|German|Deutsch|deu;
    el|Greek|Ελληνικά|ell|ΑΒΓΔΕ; fa|Persian|فارسی|fas; fi|Finnish|Suomi|fin; he|Hebrew|עברית|heb|אבגדהוזח;
    hi|Hindi|हिन्दी|hin|कखगघङ; hu|Hungarian|Magyar|hun; id|Indonesian|Bahasa Indonesia|ind;
    it|Italian|Italiano|ita; ko|Korean|한국어|kor; nl|Dutch|Nederlands|nld; pl|Polish|Polski|pol;
    pt|Portuguese|Português|por; ro|Romanian|Română|ron; sv|Swedish|Svenska|swe; sw|Swahili|Kiswahili|swa;
    ta|Tamil|தமிழ்|tam; th|Thai|ไทย|tha; tr|Turkish|Türkçe|tur; uk|Ukrainian|Українська|ukr; ur|Urdu|اردو|urd;
    vi|Vietnamese|Tiếng Việt|vie""".split(";")}
UNSPACED = {"th", "lo", "km", "my"}  # beyond Chinese and Japanese
FULL_STOPS = {"hi": "।", "bn": "।", "ur": "۔"} | dict.fromkeys(UNSPACED, "")


def template(code: str) -> str:
    """The file of a new language, filled in as far as its code tells."""
    name, own, ocr, letters = [*KNOWN.get(code, ("TODO", "TODO", code)), ""][:4]
    spaced, right = code not in UNSPACED, unicodedata.bidirectional(own[0]) in ("R", "AL")
    split = "split_spaced" if spaced else "split_characters"
    bars = '"infectio|n": every word that begins with "infectio"; "|entzündung|": also inside a compound.'
    values = {
        "code": code, "name": name, "own": own, "ocr": ocr, "spaced": str(spaced), "split": split,
        "end": FULL_STOPS.get(code, "."),
        "imports": f"nltk_words, {split}" if spaced else split,
        "official": "nltk_words" if spaced else f'{split}, official_package="mmed"',
        "right": "\n    right_to_left=True, prefixes=(),  # TODO written to the next word" if right else "",
        "letters": f'\n        letters="{letters}",  # of the script, for A, B, C, ...' if letters else "",
        "bars": bars if spaced else "At least two characters each, no bars.",
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda gap: values[gap[1]], TEMPLATE)


def new(code: str, folder: Path) -> Path:
    """Write the file of a new language; an existing file is never overwritten."""
    if not re.fullmatch("[a-z]{2,3}", code):
        raise UsageError(f"new {code}: expected a code of ISO 639-1 (or 639-3 where there is none): "
                         "two or three small letters, such as de")
    path = folder / f"{code}.py"
    if path.exists():
        raise UserError(f"{path}: already exists; `python -m data_prep.filters.language_check {code}` says "
                        "what it lacks")
    with atomic_write(path) as file:
        file.write(template(code))
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.languages", description="List the languages, or begin a new one.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    made = commands.add_parser("new", help="write the file of a new language, annotated, to fill in")
    made.add_argument("code", help="ISO 639-1: de")
    made.add_argument("--folder", type=Path, default=Path(__file__).parent, help="default: mmed/languages")
    given = parser.parse_args(arguments)
    if given.command == "new":
        path = new(given.code, given.folder)
        print(f"wrote {path}: fill in what says TODO, then run `python -m data_prep.filters.language_check "
              f"{given.code}`")
        return 0
    for language in all_languages():
        print(f"{language.code:4}{language.name:12}{len(language.medical_words):4} medical words  "
              f"{language.native_name}")
    return 0


if __name__ == "__main__":
    main_guard(main)
