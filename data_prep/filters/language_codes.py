"""One code for a language, however a data set writes it: `fra`, `fre`, `fr-FR`, `fra_Latn` and `French` are
all `fr`."""
from __future__ import annotations

import functools
import re

from mmed.languages import all_languages

# ISO 639-1, ISO 639-3, the other ISO 639-2 code (ger for deu), and the individual language that data sets
# such as FineWeb-2 use for a macrolanguage (cmn for Chinese, arb for Arabic).
_CODES = """
aa aar, ab abk, ae ave, af afr, ak aka, am amh, an arg, ar ara arb, as asm, av ava, ay aym ayr,
az aze azj, ba bak, be bel, bg bul, bi bis, bm bam, bn ben, bo bod tib, br bre, bs bos, ca cat, ce che,
ch cha, co cos, cr cre, cs ces cze, cu chu, cv chv, cy cym wel, da dan, de deu ger, dv div, dz dzo,
ee ewe, el ell gre, en eng, eo epo, es spa, et est ekk, eu eus baq, fa fas per pes, ff ful, fi fin,
fj fij, fo fao, fr fra fre, fy fry, ga gle, gd gla, gl glg, gn grn gug, gu guj, gv glv, ha hau,
he heb iw, hi hin, ho hmo, hr hrv, ht hat, hu hun, hy hye arm, hz her, ia ina, id ind in, ie ile, ig ibo,
ii iii, ik ipk, io ido, is isl ice, it ita, iu iku, ja jpn jp, jv jav, ka kat geo, kg kon, ki kik,
kj kua, kk kaz, kl kal, km khm, kn kan, ko kor, kr kau, ks kas, ku kur kmr, kv kom, kw cor, ky kir,
la lat, lb ltz, lg lug, li lim, ln lin, lo lao, lt lit, lu lub, lv lav lvs, mg mlg plt, mh mah,
mi mri mao, mk mkd mac, ml mal, mn mon khk, mr mar, ms msa may zsm, mt mlt, my mya bur, na nau, nb nob,
nd nde, ne nep npi, ng ndo, nl nld dut, nn nno, no nor, nr nbl, nv nav, ny nya, oc oci, oj oji, om orm,
or ori ory, os oss, pa pan, pi pli, pl pol, ps pus pbt, pt por, qu que quy, rm roh, rn run, ro ron rum,
ru rus, rw kin, sa san, sc srd, sd snd, se sme, sg sag, si sin, sk slk slo, sl slv, sm smo, sn sna,
so som, sq sqi alb als, sr srp, ss ssw, st sot, su sun, sv swe, sw swa swh, ta tam, te tel, tg tgk,
th tha, ti tir, tk tuk, tl tgl fil, tn tsn, to ton, tr tur, ts tso, tt tat, tw twi, ty tah, ug uig,
uk ukr, ur urd, uz uzb uzn, ve ven, vi vie, vo vol, wa wln, wo wol, xh xho, yi yid ydd ji, yo yor,
za zha, zh zho chi cmn, zu zul
"""
_UNDETERMINED = ("", "und", "unk", "unknown", "none", "null", "mul", "zxx", "mis")


@functools.cache
def _known() -> dict[str, str]:
    """Lower-case code or name -> ISO 639-1 code."""
    known = {code: group.split()[0] for group in _CODES.split(",") for code in group.split()}
    for language in all_languages():
        names = (language.code, language.name.lower(), language.native_name.lower())
        known |= dict.fromkeys(names, language.code)
    return known | dict.fromkeys(_UNDETERMINED, "")


@functools.lru_cache(maxsize=4096)
def language_code(name: str) -> str:
    """The ISO 639-1 code of a language tag or name; "" if it says "undetermined"; an unknown one as it is.

    >>> {language_code(name) for name in ("fr", "fra", "fra_Latn", "fr-FR", "FR", "French", "__label__fr")}
    {'fr'}
    >>> language_code("cmn_Hani"), language_code("oci_Latn"), language_code("und"), language_code("Klingon")
    ('zh', 'oc', '', 'Klingon')
    """
    tag = name.strip().lower().removeprefix("__label__")
    return _known().get(tag, _known().get(re.split(r"[-_]", tag)[0], name.strip()))
