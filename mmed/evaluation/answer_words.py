"""The words and signs by which a model's text states an answer, compiled: the data of the answer parser.

In: the `AnswerWords` of `mmed/languages/<code>.py`. Out: `Patterns`, compiled once a language. In order:
signs of no single language (look-alike letters, what may stand beside a letter, names of species); the joined
expressions. `mmed/evaluation/answer_letters.py`, `mmed/evaluation/answer_statements.py` and
`mmed/evaluation/answer_parser.py` read with them; `tests/data/hostile_answers.jsonl` says what they must
find.

Which words count. An item in one of the paper's six languages is read with the words of all six, joined:
models answer in another language than they were asked in. An item in a further language is read with those
six and its own. So a new language file can never change how an answer in another language is read, and
results keep their parser version.

All expressions take folded text; those with lower-case words take it in lower case. Every repeat in them is
bounded.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from mmed.languages import PAPER_ORDER, SAME_LETTER, Language, get_language

# Letters of other scripts that look like Latin ones; the Cyrillic ones that look like none.
LOOKALIKES = dict(zip("АВСЕНІЈКМОРЅТХ" "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧϹ" "ᎪᏴᏟᎠᎬ" "ꓮꓐꓚꓓꓰ" "асе",
                       "ABCEHIJKMOPSTX" "ABEZHIKMNOPTYXC" "ABCDE" "ABCDE" "ace"))
CYRILLIC_UNLIKE = set("БГДЖЗ")

# A letter of an alphabet with word boundaries. Chinese and Japanese have none, so \b and \w do not serve.
ALPHA = "A-Za-zÀ-ÖØ-öø-ʯͰ-ϿЀ-ԯ"
# Hebrew, Arabic, scripts of India, Hangul ...
FURTHER_ALPHA = "\u0531-\u1fff\ua4d0-\ua7ff\uac00-\ud7af\ufb13-\ufdff\ufe70-\ufefc"

# After a letter: what makes it the name of a germ.
SPECIES = re.compile(
    r"(?:\. ?| )(?:coli|diff|freundii|koseri|tropicalis|glabrata|krusei|striatum|jeikeium|gattii|welchii|"
    r"novyi|ovis|canis|abortus|"
    r"melitensis|suis|quintana|bacilliformis|recurrentis|afarensis|hominis|israelii|flavus|niger|lwoffii|"
    r"hydrophila|dermatitidis|"
    r"difficile|perfringens|botulinum|tetani|albicans|aureus|epidermidis|pylori|cereus|"
    r"anthracis|fragilis|burgdorferi|"
    r"pertussis|trachomatis|pneumoniae|psittaci|diphtheriae|jejuni|neoformans|immitis|fumigatus|"
    r"faecalis|faecium|histolytica|henselae|"
    r"burnetii|lumbricoides|duodenale|baumannii|cloacae|granulosus|vermicularis)\b")
CJK_AFTER = set("。、，；：）」』】》・的项項选選是为為和与與及以或と"
                "、でだがはをのもかに因由更最吧啊呢了其正错錯不误誤対对也都应則则而じ")
CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff々]")
AFTER_OK = set(".,;:!?)]}*_`\"'»”…|$\\/&+=~→<>#%-–—({[«“（")
ECHO_END = "### Response:"
CAPITALS = "A-Z" + "".join(filter(str.isupper, LOOKALIKES))
# Before a letter these make a name, as in 维生素C; hiragana does not.
CJK_NAME = re.compile("[\u30a0-\u30ff\u3400-\u9fff]")
CJK_BEFORE = set("选選項项肢案是为為故即则則和与與及以由此上")
# The published form, written with a slip.
PUBLISHED = re.compile(
    r" (?:is|are|es|est|son|sont) (?:correct|correcta|correcte|correctas|correctes)(?![a-z])")
OPTION_BEFORE = re.compile(r"###|answer: (?:option|opción|la)s? $|options? $|opci[oó]n(?:es)? $")
_CLOSERS = r"[)\]*_\"'»”」』】`]{0,4} ?"


class Patterns:
    """Compiled expressions over the words of some languages; each says what it is for where it is made."""

    def __init__(self, languages: Sequence[Language], own: Language | None):
        """`own`: the further language of the item; its script counts as an alphabet, its option letters as
        letters.
        """
        self.own = own
        self.languages = languages
        self.alpha = alpha = ALPHA + (FURTHER_ALPHA if own and own.spaced else "")
        word, joined = self._words, self._joined
        # The option letters of the script, where they stand by themselves: أ is A
        self.letters = dict(zip(own.answers.letters.translate(SAME_LETTER),
                                "ABCDEFGHIJKLMNOPQRSTUVWXYZ")) if own else {}
        letters = "".join(map(re.escape, self.letters))
        self.alphabetic = re.compile(f"[{alpha}0-9]")
        self.in_word = re.compile(f"[{alpha}0-9°]")
        self.capital_after = re.compile(f" [A-Z](?![{alpha}])")
        self.hyphenated = re.compile(f"['-][{alpha}]")
        # What announces an answer; verbs and revisions, which need no "is" after them; and weak ones, heeded
        # only before a
        # letter that ends a clause, where none of the others speaks
        self.cue = re.compile(rf"{self._whole('cue')}|boxed(?=\{{)")
        self.decide = re.compile(self._whole("decide"))
        self.weak = re.compile(self._whole("weak"))
        self.negation = re.compile(self._whole("negation"))
        self.negation_before = re.compile(f"(?:{joined('negation_before')}) (?:de |be )?$")
        self.negation_after = re.compile(rf"[)\]」』】*]{{0,3}}(?:{joined('negation_after')})")
        self.or_ = re.compile(rf" ?,? ?(?:{word('or_')}) ?|, ?(?:{joined('either')}) ", re.I)
        attached = f"(?:{joined('and_attached')})(?=[{letters}](?![{alpha}]))" if letters else "(?!)"
        self.and_ = re.compile(
            rf" ?(?:[,;、·・&+/]|{word('and_')}|{attached})(?: "
            rf"(?:{word('and_', unspaced=False, blank=False)}))? ?(?:{attached})?"
            rf"| |\n{{1,2}}(?=(?:[-*•]|\d{{1,2}}[.)]) )")
        self.but = re.compile(rf"[ ,;]{{0,2}}(?:{word('but')})", re.I)
        self._compile_links()
        self._compile_verdicts()
        # Where an answer has run on into a new item, or a prompt is repeated
        self.run_on = re.compile(
            r"###? ?(?:Instruction|Input|Question|Response):|Below is an instruction|"
            rf"(?<=\n)(?:{joined('question', unspaced=False)}) ?:|"
            rf"(?<=\n)(?:{joined('question', spaced=False)})[:：]|<\|im_start\|>|\[INST\]"
        )
        own_letter = rf"|(?<![{alpha}0-9])[{letters}](?![{alpha}])" if letters else ""
        self.standing = re.compile(
            rf"(?<![{alpha}0-9°])(?<![{alpha}]['-])[{CAPITALS}](?![a-zà-öø-ÿа-я]){own_letter}")

    def _compile_links(self) -> None:
        """What stands between a cue and its letter, and what may follow a letter."""
        word, joined, alpha = self._words, self._joined, self.alpha
        # Between a cue and its letter: words that carry nothing, and (group 1) those that link the two
        self.filler = re.compile(
            rf"(\n\d{{1,2}}[.)] |\n|[:=→➜>\[\](){{}}\"'«»“”「」『』【】《》*_`$#|~]|-(?![{alpha}])|[–—]|"
            rf"\\(?:text|textbf|mathbf|mathrm|bf|rm|boxed)(?![a-z])|{word('copula')}|{word('link')})|"
            rf"[ ,、¡¿…]|\.{{2,3}}|{word('filler')}|l'", re.I)
        self.copula = re.compile(rf"{self._whole('copula')}|[:：—]|と(?=[A-Z])")
        # After a letter: what makes it a word of a sentence, or the letter of a name, and not an answer
        self.named = re.compile(f" (?:{joined('named')})(?![{alpha}])")
        self.goes_on = re.compile(f" (?:{joined('goes_on')})(?![{alpha}])")
        self.because = re.compile(f" (?:{joined('because')})(?![{alpha}])")

    def _compile_verdicts(self) -> None:
        """What is said of a letter that comes first, and what may surround letters."""
        word, joined = self._words, self._joined
        self.is_answer = re.compile(rf"{_CLOSERS}(?:{joined('is_answer')})")
        self.right = re.compile(
            rf"[)\]*_\"'»”」』】`.:]{{0,4}} ?(?:[-–—:=,→])? ?(?:{joined('right_link')})?(?:{word('right')}|"
            rf"[○〇◯✓✔✅])"
        )
        self.wrong = re.compile(
            rf"{_CLOSERS}(?:[-–—])? ?(?:(?:{joined('wrong_link')})? ?(?:{word('wrong')}))")
        self.name_before = re.compile(f"(?:{joined('name_before')}) $")
        self.item_prefix = re.compile(
            rf"(?:\d{{1,2}}[.)] )?(?:[*_`\"'«“「『(\[]|(?:{joined('item_prefix')}|[-•]) ?){{0,4}}", re.I)
        self.line_prefix = re.compile(
            r"[ *_#]{0,4}(?:(?:q(?:uestion)?\.? ?)?\d{1,3} ?[.):] ?)?(?:[ *_`\"'«“「『(\[>#\-•$]|"
            rf"(?:{joined('line_prefix')}) ?){{0,8}}", re.I)
        self.bare_tail = re.compile(rf"{joined('bare_tail')}|\d{{1,3}} ?%")
        self.avoid = re.compile(f"{self.negation.pattern}|{joined('avoid')}")

    def _listed(self, field: str, spaced: bool = True, unspaced: bool = True) -> list[tuple[Language, str]]:
        """What each of the languages has under this name, in folded letters."""
        return [(language, listed.translate(SAME_LETTER)) for language in self.languages
                if (listed := getattr(language.answers, field)) and (spaced if language.spaced else unspaced)]

    def _joined(self, field: str, spaced: bool = True, unspaced: bool = True) -> str:
        """The alternatives as they stand."""
        return "|".join(listed for _, listed in self._listed(field, spaced, unspaced)) or "(?!)"

    def _words(self, field: str, spaced: bool = True, unspaced: bool = True, blank: bool = True) -> str:
        """The alternatives; where words stand between spaces they must end there. Without `blank` those of
        one word.
        """
        found = []
        for language, listed in self._listed(field, spaced, unspaced):
            if not blank:
                listed = "|".join(one for one in listed.split("|") if " " not in one)
            found.append(f"(?:{listed})(?![{self.alpha}])" if language.spaced else listed)
        return "|".join(found) or "(?!)"

    def _whole(self, field: str) -> str:
        """The alternatives as words of their own; those of languages without spaces stand anywhere."""
        spaced, unspaced = self._words(field, unspaced=False), self._words(field, spaced=False)
        return f"(?<![{self.alpha}])(?:{spaced})|{unspaced}"


def patterns_of(language: str | None) -> Patterns:
    """Those of an item's language, by code or name; None: the paper's six."""
    code = get_language(language).code if language else PAPER_ORDER[0]
    return _patterns("" if code in PAPER_ORDER else code)


@functools.cache
def _patterns(further: str) -> Patterns:
    languages = [get_language(code) for code in PAPER_ORDER]
    own = get_language(further) if further else None
    return Patterns(languages + ([own] if own else []), own)
