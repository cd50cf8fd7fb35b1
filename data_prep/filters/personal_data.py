"""Find e-mail addresses and telephone numbers in a text, and replace them by <EMAIL> and <PHONE>.

A run of digits is a telephone number only if it has a country code after "+" or "00", a word like "Tel."
before it, or a form in which the countries of our languages write their numbers and nobody writes a dose, a
date or a code (`FORMS`). Missed are numbers with none of the three ("912345678") and addresses that are spelt
out. Names and postal addresses are not looked for: many names must stay (Parkinson, Crohn).

Every pattern is bounded, so time is linear in the text. docs/corpus.md compares the package phonenumbers.
"""
from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator

from mmed.languages import all_languages

MASKS = {"email": "<EMAIL>", "phone": "<PHONE>"}

_LOCAL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,63})\Z")
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"  # letters of any script, as in president@кремль.рф
_TOP_LEVEL = r"(?:[A-Za-z]{2,24}|рф|онлайн|中国|中國|公司|网络|日本|السعودية|مصر|امارات)"
_ASCII_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}"
_HOST = re.compile(rf"(?:{_ASCII_HOST}|(?:{_LABEL}\.){{1,8}}{_TOP_LEVEL})(?![A-Za-z0-9])")

# Digits and the separators of telephone numbers, once full-width and Arabic forms are narrow.
_RUN = re.compile(r"(?<![0-9A-Za-z])[+(]{0,2}[0-9][0-9 ().\u00a0\u202f/-]{4,40}[0-9](?![0-9A-Za-z])")
_NARROW = str.maketrans("０１２３４５６７８９＋（）－‐‑‒–−．＠／" "٠١٢٣٤٥٦٧٨٩" "۰۱۲۳۴۵۶۷۸۹",
                        "0123456789+()------.@/" "0123456789" "0123456789")
_SEPARATOR = r"[ .\u00a0\u202f-]"
# Words that announce a number; those of further languages come from their files. Short ones need a full stop.
_SHORT_WORDS = "tel|tél|telf|tlf|tfno|тел|моб|ph|tph"
_WORDS = ("tel|tél|phone|telephone|téléphone|teléfono|telefono|telefon|fax|télécopie|whatsapp|телефоны?|факс|"
          r"hotline|helpline|tel(?=\W{1,3}[+(0])")
_AFTER_WORDS = "number|no|numbers|n°|nº|es|is|is:|at|au|al"
_CHINESE_WORDS = "电话|電話|手机|手機|传真|傳真|热线|熱線|携帯|ファックス"
# What a number belongs to if one of these comes before it.
_OTHER_NUMBER = re.compile(
    r"(?:(?<![^\W_])(?:isbn(?:-1[03])?|issn|doi|pmid|pmc|nct|isrctn|orcid|ein|umin|eudract|ndc|gtin|upc|"
    r"sctid|lot|id)|№|n°)[\s.:：#-]{0,3}\Z", re.IGNORECASE)
_COUNTRY = (r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2[1-6]\d|29\d|3[578]\d|42\d|50\d|"
            r"59\d|6[789]\d|80\d|85\d|87\d|88\d|96\d|97\d|99\d")
FORMS = {
    "international": rf"\+(?:{_COUNTRY})(?:{_SEPARATOR}?\(0?\d{{1,5}}\))?(?:{_SEPARATOR}?\d){{5,13}}|"
                     rf"00(?:{_COUNTRY}){_SEPARATOR}(?:\(0\){_SEPARATOR}?)?[1-9](?:{_SEPARATOR}?\d){{6,11}}",
    "France": rf"0[1-9](?P<fr>{_SEPARATOR})\d\d(?:(?P=fr)\d\d){{3}}",  # 01 42 34 56 78
    "United States": r"(?:1[-. ])?\([2-9]\d\d\)[ -]?[2-9]\d\d[-. ]\d{4}|"  # (555) 234-5678
                     r"(?:1(?P<us>[-.]))?[2-9]\d\d(?P<us2>[-.])[2-9]\d\d(?P=us2)\d{4}",
    "Russia": r"[78][ -]?\(\d{3,5}\)[ -]?\d{1,3}[ -]\d\d[ -]?\d\d|\(\d{3,5}\)[ -]?\d{1,3}-\d\d-\d\d|"
              r"8[ -]\d{3}[ -]\d{3}(?P<ru>[ -])\d\d(?P=ru)\d\d",  # 8 (800) 555-35-35, 8 800 555-35-35
    "Japan": r"0\d{1,4}-\d{1,4}-\d{4}|\(0\d{1,4}\)[ -]?\d{1,4}-\d{4}|0\d{1,4}\(\d{1,4}\)\d{4}|"
             r"0(?:120|800)-\d{3}-\d{3}",  # 03-1234-5678
    "China": r"(?:\(0(?:10|2\d|[3-9]\d\d)\)|0(?:10|2\d|[3-9]\d\d)-)\d{7,8}|"  # 010-12345678
             r"[48]00-\d{3}-\d{4}|"
             r"1[3-9]\d(?:\d{8}|(?P<cn>[ -])\d{4}(?P=cn)\d{4})",  # 139 1234 5678
    "Spain": r"[6-9]\d\d(?P<es>[ .])\d\d(?P=es)\d\d(?P=es)\d\d",  # 912 34 56 78; not 912 345 678, a quantity
    "switchboard": r"(?:0[1-9]\d{1,4} ?[ /-] ?|\(0[1-9]\d{1,4}\) ?[/-]? ?)\d{2,7}-0(?!\d)",  # 040 7410-0
    # Germany, the Arab countries, Britain: area code with its zero, then 5-8 digits, in up to three groups:
    # 030 12345678, 089/123 45 67, (0171) 2345678, 050 123 4567, 0100 123 4567, 020 7946 0018
    "area code": r"(?:0[1-9]\d{1,4} ?[ /-] ?|\(0[1-9]\d{1,4}\) ?[/-]? ?)"
                 r"(?:\d{3,6}[ -]\d{2,4}(?:[ -]\d{2,4})?|\d{2}(?:[ -]\d{2,3}){2,3}|\d{5,8})(?!\d)",
    "short area code": r"(?:0[1-9][ -]|\(0[1-9]\) ?)(?:\d{8}|\d{3,4}[ -]?\d{4})(?!\d)",  # 04 123 4567
}
_FORM = re.compile("|".join(FORMS.values()))
_TIME = re.compile(r"[01]\d[0-5]\d|2[0-4][0-5]\d")  # of day
_UNIT = re.compile(r" ?(?:(?:[kmµμ]g|mcg|[mµμd]l|[nmµμck]m|IU|UI|IE|Hz|rpm|мк?г|мл|МЕ|ЕД)\b|[%℃°])", re.I)
_YEARS = re.compile(r"\+(?:19|20)\d\d\D(?:19|20)\d\d")
_LINK = re.compile(r"(?:://|www\.|10\.\d{4,9}/)\S*\Z")  # the number continues a web address or DOI


@functools.cache
def _announced() -> re.Pattern[str]:
    """Positions of text that announces a telephone number right before it."""
    more = "".join(f"|{language.phone_words}" for language in all_languages() if language.phone_words)
    return re.compile(
        rf"(?:(?<![^\W_])(?:{_SHORT_WORDS})[.:：]|(?<![^\W_])(?:{_WORDS}{more})(?:\s(?:{_AFTER_WORDS}))?|"
        rf"(?:{_CHINESE_WORDS})(?:番号|号码|號碼)?)[\s.:=：()（「」『』\"”]{{0,4}}\Z", re.IGNORECASE)


def find_personal(text: str) -> list[tuple[int, int, str]]:
    """Find (begin, end, "email" or "phone") of each match, from left to right.

    >>> text = "Tel. 01 42 34 56 78, a.b@clinic.example; 2 500 000 IU on 12-05-2021, doi:10.1000/182-555-1234"
    >>> [(text[begin:end], kind) for begin, end, kind in find_personal(text)]
    [('01 42 34 56 78', 'phone'), ('a.b@clinic.example', 'email')]
    """
    narrow = text if text.isascii() else text.translate(_NARROW)
    return sorted([*_emails(narrow), *_phones(narrow)])


def mask_personal(text: str) -> tuple[str, dict[str, int]]:
    """Replace each match by its mask; return the text and the counts by kind."""
    found = find_personal(text)
    parts, done = [], 0
    for begin, end, kind in found:
        parts += [text[done:begin], MASKS[kind]]
        done = end
    return "".join([*parts, text[done:]]), Counter(kind for _, _, kind in found)


def _emails(text: str) -> Iterator[tuple[int, int, str]]:
    free = 0
    for at in re.finditer(r"@(?=\w)", text):  # checked first, because it is cheap: most texts contain none
        begin = max(free, at.start() - 64)
        local, host = _LOCAL.search(text[begin:at.start()]), _HOST.match(text, at.end())
        if local and host:
            free = host.end()
            yield begin + local.start(), host.end(), "email"


def _phones(text: str) -> Iterator[tuple[int, int, str]]:
    for run in _RUN.finditer(text):
        before = text[max(0, run.start() - 24):run.start()]
        digits = sum(map(str.isdigit, run[0]))
        in_link = _LINK.search(text, max(0, run.start() - 200), run.start())
        if digits < 6 or _OTHER_NUMBER.search(before) or in_link:
            continue
        if digits <= 15 and "  " not in run[0] and _announced().search(before):
            open_bracket = run[0].startswith("(") and ")" not in run[0]
            yield run.start() + open_bracket, run.end(), "phone"
            continue
        for form in _FORM.finditer(run[0]):
            alone = not (re.search(r"[0-9][ ./()-]?\Z", run[0][:form.start()])
                         or re.match(r"[ ./()-]?[0-9]", run[0][form.end():]))
            if alone and _plausible(form[0]) and not _UNIT.match(text, run.start() + form.end()):
                yield run.start() + form.start(), run.start() + form.end(), "phone"


def _plausible(form: str) -> bool:
    digits = sum(map(str.isdigit, form))
    if form.startswith("+"):
        return 8 <= digits <= 15 and not _YEARS.fullmatch(form)
    least, most = 7 if form.endswith("-0") else 9, 17 if form.startswith("00") else 12
    if form.startswith(("0", "(0")) and not least <= digits <= most:
        return False
    groups = re.findall(r"\d+", form)
    if len(groups) > 2 and all(map(_TIME.fullmatch, groups)):
        return False  # 0800 1200 1600
    if "(" not in form and not any(int(number) % 50 for number in groups):
        return False  # 400-800-1200
    steps = {int(after) - int(before) for before, after in itertools.pairwise(groups)}
    return not (len(form) == 14 and len(groups) == 5 and len(steps) == 1)  # 05 10 15 20 25 is a scale
