"""Maps every spelling of a language to one code: `fra`, `fre`, `fr-FR`, `fra_Latn` and `French` are all `fr`.

A language's file gives its ISO 639-1 code, both names and, as Tesseract's name, the ISO 639-3 code.
"""
from __future__ import annotations

import functools
import re

from mmed.languages import Language, all_languages, get_language

# Further codes: the other one of ISO 639-2 (ger for deu), the individual language that data sets such as
# FineWeb-2 name in place of a macrolanguage (cmn for Chinese, arb for Arabic), a country's in place of its
# language's (jp in the official code).
_FURTHER = """
ar arb, az azj, bo tib, cs cze, cy wel, de ger, el gre, et ekk, eu baq, fa per pes, fr fre, gn gug, he iw,
hy arm, id in, is ice, ja jp, jv jav, ka geo, ku kmr, lv lvs, mg plt, mi mao, mk mac, mn khk, ms may zsm,
my bur, ne npi, nl dut, no nob, or ory, ps pbt, qu quy, ro rum, sk slo, sq alb als, sw swh, tl fil, uz uzn,
yi ydd, zh zho chi cmn cn
"""
_UNDETERMINED = ("", "und", "un", "unk", "unknown", "xx", "n/a", "none", "null", "mul", "zxx", "mis")


@functools.cache
def _known() -> dict[str, str]:
    """Lower-case code or name -> ISO 639-1 code."""
    further = {group.split()[0]: group.split()[1:] for group in _FURTHER.split(",")}
    known = dict.fromkeys(_UNDETERMINED, "")
    for language in all_languages():
        names = (language.code, language.name.lower(), language.native_name.lower(), language.ocr_code[:3])
        known |= dict.fromkeys([*names, *further.get(language.code, ())], language.code)
    return known


@functools.lru_cache(maxsize=4096)
def language_code(name: str) -> str:
    """The ISO 639-1 code of a language that has a file; "" if the name says "undetermined"; else the name.

    >>> {language_code(name) for name in ("fr", "fra", "fra_Latn", "fr-FR", "FR", "French", "__label__fr")}
    {'fr'}
    >>> [language_code(name) for name in ("cmn_Hani", "Chinese (Simplified)", "und_Latn", "oci_Latn")]
    ['zh', 'zh', '', 'oci_Latn']
    """
    tag = name.strip().lower().removeprefix("__label__")
    return _known().get(tag, _known().get(re.split(r"\s*[-_.;(]", tag)[0], name.strip()))


def find_language(name: str) -> Language:
    """`get_language` for a code of any standard."""
    return get_language(language_code(name))
