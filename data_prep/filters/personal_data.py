"""Find and mask e-mail addresses and telephone numbers in a text.

In: a text. Out: where they stand (`find_personal`), or the text with <EMAIL> and <PHONE> in their place (`mask_personal`).

Medical texts are full of numbers that are none: doses, dates, ranges, ISBN, DOI, trial and CAS numbers, postal codes, tables.
So a run of digits is a telephone number only if it has a country code after a plus sign, or a word like "Tel." before it, or
the shape in which one country writes its numbers and nobody writes anything else (`SHAPES`). What is missed: numbers without
any of the three ("912345678"), addresses spelt out ("name at clinic dot org"). Names and postal addresses are not looked for:
no pattern finds them, and a medical text is full of names that must stay (Parkinson, Crohn).

Every pattern is bounded, so time is linear in the text.
"""
from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator

from mmed.languages import all_languages

MASKS = {"email": "<EMAIL>", "phone": "<PHONE>"}

# "@" first, so that a text without one costs nothing; the part before it is then read backwards. Letters of any script in the
# name of the host, as in president@кремль.рф.
_AT = re.compile(r"[@＠](?=\w)")
_LOCAL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,63})\Z")
_HOST = re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}(?:[A-Za-z]{2,24}|рф|онлайн|中国|中國|公司|网络|日本)(?![A-Za-z0-9])")
_HOST_ASCII = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])")

# A run of digits and of what stands between the digits of telephone numbers. Full-width and Arabic forms are made narrow first.
_RUN = re.compile(r"(?<![0-9A-Za-z])[+(]{0,2}[0-9][0-9 ().\u00a0\u202f-]{4,40}[0-9](?![0-9A-Za-z])")
_NARROW = str.maketrans("０１２３４５６７８９＋（）－‐‑‒–−．＠" "٠١٢٣٤٥٦٧٨٩" "۰۱۲۳۴۵۶۷۸۹", "0123456789+()------.@" "0123456789" "0123456789")
SEPARATOR = r"[ .\u00a0\u202f-]"
# Words before a number, those of further languages from their files. A full stop or colon after short ones, which are words by
# themselves ("тел", of bodies).
_LABEL = (
    r"(?:(?<![^\W_])(?:tel|tél|telf|tlf|tfno|тел|моб|ph|tph)[.:：]"
    r"|(?<![^\W_])(?:tel|tél|phone|telephone|téléphone|teléfono|telefono|telefon|fax|télécopie|whatsapp|телефоны?|факс|"
    r"hotline|helpline|tel(?=\W{1,3}[+(0])@MORE@)(?:\s(?:number|no|numbers|n°|nº|es|is|is:|at|au|al))?"
    r"|电话|電話|手机|手機|传真|傳真|热线|熱線|携帯|ファックス)(?:番号|号码|號碼)?[\s.:：=()（「」『』\"”]{0,4}\Z")
# What a number belongs to if one of these stands before it.
_OTHER = re.compile(r"(?:isbn(?:-1[03])?|issn|doi|pmid|pmc|nct|isrctn|orcid|cas|ein|umin|eudract|id|№|n°)[\s.:：#-]{0,3}\Z", re.IGNORECASE)
_CODES = (r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2[1-6]\d|29\d|3[578]\d|42\d|50\d|59\d|6[789]\d|80\d|85\d|87\d|88\d|"
          r"96\d|97\d|99\d")
SHAPES = re.compile("|".join([
    rf"\+(?:{_CODES})(?:{SEPARATOR}?\(0?\d{{1,5}}\))?(?:{SEPARATOR}?\d){{5,13}}",  # +33 (0)1 42 34 56 78
    rf"0[1-9](?P<fr>{SEPARATOR})\d\d(?:(?P=fr)\d\d){{3}}",  # France: 01 42 34 56 78
    r"(?:1[-. ])?\([2-9]\d\d\)[ -]?[2-9]\d\d[-. ]\d{4}|(?:1(?P<us>[-.]))?[2-9]\d\d(?P<us2>[-.])[2-9]\d\d(?P=us2)\d{4}",  # (555) 234-5678
    r"[78][ -]?\(\d{3,5}\)[ -]?\d{1,3}[ -]\d\d[ -]?\d\d|\(\d{3,5}\)[ -]?\d{1,3}-\d\d-\d\d|8(?P<ru>[ -])\d{3}(?P=ru)\d{3}(?P=ru)\d\d(?P=ru)\d\d",
    r"0\d{1,4}-\d{1,4}-\d{4}|\(0\d{1,4}\)[ -]?\d{1,4}-\d{4}|0\d{1,4}\(\d{1,4}\)\d{4}|0(?:120|800)-\d{3}-\d{3}",  # Japan: 03-1234-5678
    r"(?:\(0(?:10|2\d|[3-9]\d\d)\)|0(?:10|2\d|[3-9]\d\d)-)\d{7,8}|[48]00-\d{3}-\d{4}",  # China: 010-12345678
    r"1[3-9]\d(?:\d{8}|(?P<cn>[ -])\d{4}(?P=cn)\d{4})",  # China, mobile: 139 1234 5678
    r"[679]\d\d(?P<es>[ .])\d\d(?P=es)\d\d(?P=es)\d\d",  # Spain: 912 34 56 78
]))


@functools.cache
def _label() -> re.Pattern[str]:
    more = "".join(f"|{language.phone_words}" for language in all_languages() if language.phone_words)
    return re.compile(_LABEL.replace("@MORE@", more), re.IGNORECASE)


def find_personal(text: str) -> list[tuple[int, int, str]]:
    """(begin, end, "email" or "phone") of each, from left to right.

    >>> text = "Tel. 01 42 34 56 78 (Dr. A), a.b@clinic.example; 2 500 000 IU on 12-05-2021, doi:10.1000/182-555-1234"
    >>> [(text[begin:end], kind) for begin, end, kind in find_personal(text)]
    [('01 42 34 56 78', 'phone'), ('a.b@clinic.example', 'email')]
    """
    return sorted([*_emails(text), *_phones(text)])


def mask_personal(text: str) -> tuple[str, dict[str, int]]:
    """The text with each replaced by its mask, and how many there were of each kind."""
    counts: dict[str, int] = {}
    parts, done = [], 0
    for begin, end, kind in find_personal(text):
        parts += [text[done:begin], MASKS[kind]]
        counts[kind] = counts.get(kind, 0) + 1
        done = end
    return ("".join([*parts, text[done:]]) if counts else text), counts


def _emails(text: str) -> Iterator[tuple[int, int, str]]:
    free = 0
    for at in _AT.finditer(text):
        begin = max(free, at.start() - 64)
        local = _LOCAL.search(text[begin:at.start()].translate(_NARROW))
        host = _HOST_ASCII.match(text, at.end()) or _HOST.match(text, at.end())
        if local and host:
            free = host.end()
            yield begin + local.start(), host.end(), "email"


def _phones(text: str) -> Iterator[tuple[int, int, str]]:
    narrow = text if text.isascii() else text.translate(_NARROW)
    for run in _RUN.finditer(narrow):
        before = narrow[max(0, run.start() - 24):run.start()]
        digits = sum(character.isdigit() for character in run[0])
        if digits < 6 or _OTHER.search(before) or _in_a_link(narrow, run.start()):
            continue
        if digits <= 15 and _label().search(before) and "  " not in run[0]:
            open_bracket = run[0].startswith("(") and ")" not in run[0]
            yield run.start() + open_bracket, run.end(), "phone"
            continue
        for shape in SHAPES.finditer(run[0]):
            if _alone(run[0], shape) and _plausible(shape[0]):
                yield run.start() + shape.start(), run.start() + shape.end(), "phone"


def _alone(run: str, shape: re.Match[str]) -> bool:
    """Not a piece of a longer row of numbers."""
    return not re.search(r"[0-9][ .()-]?\Z", run[:shape.start()]) and not re.match(r"[ .()-]?[0-9]", run[shape.end():])


def _plausible(shape: str) -> bool:
    digits = [int(character) for character in shape if character.isdigit()]
    if shape.startswith("+"):
        return 8 <= len(digits) <= 15 and not re.fullmatch(r"\+(?:19|20)\d\d\D(?:19|20)\d\d", shape)
    if shape.startswith(("0", "(0")) and not 9 <= len(digits) <= 12:
        return False
    pairs = [int(pair) for pair in re.findall(r"\d\d", shape)] if re.fullmatch(r"\d\d(\D\d\d){4}", shape) else []
    steps = {b - a for a, b in itertools.pairwise(pairs)}
    return len(steps) != 1  # 05 10 15 20 25 is a scale


def _in_a_link(text: str, place: int) -> bool:
    """Is this part of an address of the web, or of a DOI?"""
    word = re.split(r"\s", text[max(0, place - 200):place])[-1]
    return "://" in word or "www." in word or re.search(r"10\.\d{4,9}/", word) is not None
