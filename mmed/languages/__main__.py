"""The languages that have a file here, and a new one to fill in.

    python -m mmed.languages                                 the list
    python -m mmed.languages new de                          writes mmed/languages/de.py, annotated, to fill
    in

What is missing or suspicious in a file: `python -m data_prep.filters.language_check de`; the template of a
new file: mmed/languages/_template.py.
"""
from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from mmed.languages import all_languages
from mmed.languages._template import TEMPLATE
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write

# Of languages that people are likely to add: name, own name, script letters for options, Tesseract's name.
# The rest is filled in by hand.
KNOWN = {row[0]: row[1:] for row in (line.split("|") for line in """
ar|Arabic|العربية|أبجدهوزح|ara
bn|Bengali|বাংলা|কখগঘঙ|ben
cs|Czech|Čeština||ces
de|German|Deutsch||deu
el|Greek|Ελληνικά|ΑΒΓΔΕ|ell
fa|Persian|فارسی||fas
fi|Finnish|Suomi||fin
he|Hebrew|עברית|אבגדהוזח|heb
hi|Hindi|हिन्दी|कखगघङ|hin
hu|Hungarian|Magyar||hun
id|Indonesian|Bahasa Indonesia||ind
it|Italian|Italiano||ita
ko|Korean|한국어||kor
nl|Dutch|Nederlands||nld
pl|Polish|Polski||pol
pt|Portuguese|Português||por
ro|Romanian|Română||ron
sv|Swedish|Svenska||swe
sw|Swahili|Kiswahili||swa
ta|Tamil|தமிழ்||tam
th|Thai|ไทย||tha
tr|Turkish|Türkçe||tur
uk|Ukrainian|Українська||ukr
ur|Urdu|اردو||urd
vi|Vietnamese|Tiếng Việt||vie
""".strip().splitlines())}
UNSPACED = {"th", "lo", "km", "my"}  # beyond Chinese and Japanese


def template(code: str) -> str:
    """The file of a new language, filled in as far as its code tells."""
    name, own, letters, ocr = KNOWN.get(code, ("TODO", "TODO", "", code))
    spaced, right = code not in UNSPACED, unicodedata.bidirectional(own[0]) in ("R", "AL")
    script = unicodedata.name(own[0]).split()[0]
    split = "split_spaced" if spaced else "split_characters"
    values = {
        "code": code, "name": name, "own": own, "ocr": ocr, "spaced": str(spaced), "split": split,
        "imports": f"nltk_words, {split}" if spaced else split, "official": "nltk_words" if spaced else split,
        "package": "" if spaced else ' official_package="mmed",',
        "end": "।" if script in ("DEVANAGARI",
                                 "BENGALI") else "۔" if code == "ur" else "" if not spaced else ".",
        "right": " right_to_left=True," if right else "",
        "prefixes": '\n    # TODO what is written to the next word without a space, such as the article; '
                    'or leave it out\n    prefixes=(),'
        if right else "",
        "letters": f'\n        letters="{letters}",  # of the script, for A, B, C, ...' if letters else "",
        "bars": (
            '"infectio|n": every word that begins with "infectio"; "|entzündung|": also inside a compound.'
            if spaced else "At least two characters each, no bars.")
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda gap: values[gap[1]], TEMPLATE)


def new(code: str, folder: Path) -> Path:
    if not re.fullmatch("[a-z]{2,3}", code):
        raise UsageError(
            f"new {code}: expected a code of ISO 639-1 (or 639-3 where there is none), two or three small "
            f"letters, such as de"
        )
    path = folder / f"{code}.py"
    if path.exists():
        raise UserError(
            f"{path}: is there already; `python -m data_prep.filters.language_check {code}` says what "
            f"it lacks"
        )
    with atomic_write(path) as file:
        file.write(template(code))
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m mmed.languages", description="Languages: the list, and a new one.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    made = commands.add_parser("new", help="write the file of a new language, annotated, to fill in")
    made.add_argument("code", help="ISO 639-1: de")
    made.add_argument("--folder",
                      type=Path,
                      default=Path(__file__).parent,
                      help="where to (default: here, where it is found)")
    given = parser.parse_args(arguments)
    if given.command == "new":
        path = new(given.code, given.folder)
        print(
            f"wrote {path}: fill in what says TODO, then `python -m data_prep.filters.language_check "
            f"{given.code}`"
        )
    else:
        for language in all_languages():
            print(
                f"{language.code:4}{language.name:12}{len(language.medical_words):4} medical words  "
                f"{language.native_name}"
            )
    return 0


if __name__ == "__main__":
    main_guard(main)
