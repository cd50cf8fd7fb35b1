"""Reads the answer letters and the rationale from a model's output.

The parser drops the thoughts of reasoning models and, after step 1, copies of the prompt. It tries in turn
1. the published form, exactly ("strict"; everything below is "lenient");
2. a statement: "the answer is B", "I choose B", "B is the best option"; the last counts, "not B" excludes;
3. a line of letters, or a label that begins the text: "B", "A and C", "C) Doxycycline";
4. verdicts: "A: true, B: false, C: true" gives A and C;
5. the text of exactly one option, in one short sentence.

A statement is a regular expression over one-character kinds of tokens: "AIL" is an answer noun, a form of
"is" and a letter. The words are those of the paper's six languages and of the item's: models mix them.

DIFFERS: the published scorer knows the strict form only and does not count what it cannot read (D24); we
report strict, lenient and unparsed answers, and `official_match` beside them.
"""
from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmed.evaluation.prompt_copies import remove_copies
from mmed.evaluation.thoughts import remove_thoughts
from mmed.languages import PAPER_ORDER, SAME_LETTER, Language, get_language, words
from mmed.prompts import ExamItem

PARSER_VERSION = "7"  # part of every result; raise it with any change that can alter a parse

END_MARKERS = tuple("""
    </s> <|end_of_text|> <|eot_id|> <|eom_id|> <|eot|> <|endoftext|> <eos> <|im_end|> <|end|> <|return|> <eoa>
    <end_of_turn> <turn|> <|END_RESPONSE|> <|END_OF_TURN_TOKEN|> <｜end▁of▁sentence｜> <|assistant_end|>
    [|endofturn|] <|user|>""".split())


def official_match(text: str, item: ExamItem) -> bool:
    """Whether the published scorer counts an answer-only output as right; for A and B "B,A", not "A, B"."""
    # MMedLM: inference.py takes what follows "### Response:", strips it and deletes newlines; accuracy.py
    # deletes the two marker strings, then compares the string (one letter) or the set of its parts (several).
    # DIFFERS: accuracy.py deletes only `IS CORRECT.</s>` (D24); here any family's end token, or none, does.
    response = remove_thoughts(text).strip().replace("\n", "")
    for marker in (*END_MARKERS, "###Answer: OPTION ", "IS CORRECT."):
        response = response.replace(marker, "")
    said = [response.strip()] if len(item.answer) == 1 else response.strip().split(",")
    return set(said) == set(item.answer)


@dataclass(frozen=True)
class ParsedAnswer:
    letters: tuple[str, ...]  # sorted; () if unparsed
    status: str  # "strict", "lenient" or "unparsed"
    rationale: str = ""


_STRICT = re.compile(
    r"(?:\A###Rationale: ?(.*)\n|\A)###Answer: OPTION ([A-Z](?:,[A-Z]){0,25}) IS CORRECT\.\Z", re.S)
_END_MARKER = re.compile("|".join(map(re.escape, END_MARKERS)))


def parse_answer(text: str, options: Mapping[str, str] | Iterable[str],
                 rationale_expected: bool = False, language: str | None = None) -> ParsedAnswer:
    """Read answer letters and rationale; `options` maps letters to texts, or is the letters alone.

    `language` is the item's, by code or name. With `rationale_expected`, a text without `###Rationale:` gives
    as rationale all of it except a last line that only states the answer.

    >>> parse_answer("Not A. The answer is (Ｂ)", "ABCD")
    ParsedAnswer(letters=('B',), status='lenient', rationale='')
    """
    if not isinstance(options, Mapping):
        options = dict.fromkeys(options, "")
    lexicon = _lexicon(get_language(language or PAPER_ORDER[0]).code)
    body = _END_MARKER.split(remove_thoughts(text), maxsplit=1)[0].strip()
    strict = _STRICT.match(body)
    text = fold(body)
    if strict and not lexicon.next_item.search(text):
        letters = strict[2].split(",")
        if len(set(letters)) == len(letters) and set(letters) <= set(options):
            return ParsedAnswer(tuple(sorted(letters)), "strict", strict[1] or "")
    options = {letter: fold(option) for letter, option in options.items()}
    relabelled = bool(re.search(r"(?:^|[\s(*])[БГД][).]", text, re.M))
    text = remove_copies(text, list(options.values()), lexicon.letters)
    letters = _lenient(text, options, lexicon, relabelled)
    _, mark, rationale = body.partition("###Rationale:")
    if mark:
        end = "\n###Answer:" if "\n###Answer:" in rationale else "###Answer:"
        rationale = rationale.rsplit(end, 1)[0].removeprefix(" ")
    elif rationale_expected:
        before, _, last = body.rpartition("\n")
        states = len(last) <= 120 and _lenient(fold(last), options, lexicon, relabelled)
        rationale = before.strip() if states else body
    return ParsedAnswer(letters, "lenient" if letters else "unparsed", rationale)


def _lenient(text: str, options: Mapping[str, str], lexicon: Lexicon, relabelled: bool) -> tuple[str, ...]:
    """The answer in folded text, of the first section that contains one; later ones may be another item."""
    for stretch in lexicon.next_item.split(text):
        tokens = _Reader(stretch, options, lexicon, relabelled).read()
        kinds = re.sub("N(s{0,2})R", r"s\1W", "".join(token.kind for token in tokens))  # "not right": wrong
        steps = (_stated, _bare_lines, functools.partial(_stated, wanted="T"), _verdicts, _only_text)
        found = (step(tokens, kinds) for step in steps)
        letters = next((letters for letters in found if letters is not None), set())
        if letters and letters <= set(options) and not len(letters) == len(options) == 2:  # not "yes/no"
            return tuple(sorted(letters))
    return ()


# ---- normalised text and the kinds of its words ------------------------------------------------------------

_INVISIBLE = re.compile("[\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u20d0-\u20ff"
                        "\ufe00-\ufe0f\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
                        "\x00-\x08\x7f]")
_ONE_SPELLING = SAME_LETTER | str.maketrans("’‘‐‑،、؛؟。।॥۔】", "''--,,;?....:")
_ONE_SPELLING |= {first + at: 65 + at for first in (0x1F150, 0x1F170) for at in range(26)}  # 🅐, 🅰
_CJK = "\u3040-\u30ff\u3400-\u9fff々"
_LETTER = rf"(?:[^\W\d_{_CJK}]|[\u0900-\u0dff])"  # of a script with spaces
_TOKEN = re.compile(rf"(?P<word>{_LETTER}+)|(?P<number>\d+)|(?P<unspaced>[{_CJK}])|[^\w ]")
KINDS = {"answer": "A", "is_": "I", "choose": "C", "correct": "R", "wrong": "W", "not_": "N",
         "because_if": "BH", "and_or": "&|"}  # of the words before and after a slash
# Further kinds. L: a letter or a list of letters; M: a letter with its option's text; T: an option's text;
# O: letters joined by "or"; & and |: "and" and "or"; s: a word of up to three letters; x: another word;
# B: "because"; H: "if"; 0: a number; ): a bracket after a letter; n: the end of a line; and of punctuation
_MARKS = dict(zip(".!?;\n,/+&:=>→–—-○〇◯⭕✓✔☑✅√×✕✖✗✘❌", "..?.n,,,&::::---RRRRRRRRRWWWWWW"))


def fold(text: str) -> str:
    """Compatibility forms, no accents, no invisible characters, one spelling of punctuation and of blanks."""
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", unicodedata.normalize("NFKD", text)))
    return re.sub(r"[^\S\n]+", " ", text.translate(_ONE_SPELLING))


def _plain(text: str) -> str:
    r"""Folded text without markup: \boxed{B} is "answer: B"; no bullets and numbers at line starts."""
    text = re.sub(r"~~[^~\n]{1,200}~~", "", text)
    text = re.sub(r"\\+boxed|\\*f?b?ox(?:ed)?(?=\{)|<\|begin_of_box\|>", " answer: ", text)
    text = re.sub(r"\\+[a-z]{1,12}|<\|\w{1,30}\|>", " ", text)
    text = re.sub(r"\.{2,}| ?;(?= ?[A-Z] ?(?:;|$))", ", ", text)  # "A; C; E" is a list
    return re.sub(r"(?mi)^[ >*#•-]*(?:(?:q(?:uestion)? ?)?\d{1,3} ?[.):] )?[*_]*", "", text).strip()


class Lexicon:
    """The kinds of words of some languages; the last one may have its own option letters."""

    def __init__(self, languages: Sequence[Language]):
        self.phrases: dict[str, list[tuple[str, str]]] = {}  # first word -> (phrase, kind), longest first
        self.stems: dict[str, str] = {}
        for language in languages:
            lists = [(kind, listed) for name, kinds in KINDS.items()
                     for kind, listed in zip(kinds, getattr(language.answers, name).split("/"))]
            terms = [(kind, fold(word).lower()) for kind, listed in lists for word in words(listed)]
            for prefix in ("", *map(fold, language.prefixes)):
                for kind, term in terms:
                    stem, bar, _ = (prefix + term).partition("|")
                    if bar:
                        self.stems.setdefault(stem, kind)
                    else:
                        self.phrases.setdefault(next(_TOKEN.finditer(stem))[0], []).append((stem, kind))
        for found in self.phrases.values():
            found.sort(key=lambda phrase: -len(phrase[0]))
        self.prefixes = f"(?:{'|'.join(map(fold, languages[-1].prefixes))})?"
        own = fold(languages[-1].answers.letters)
        self.letters = dict(zip(own, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
        ands = "|".join(phrase for found in self.phrases.values() for phrase, kind in found if kind == "&")
        self.attached = re.compile(rf"\b(?:{ands})(?=[{own}]\b)" if own else "(?!)")  # "and B" in one word
        headings = "|".join(fold(heading) for language in languages
                            for heading in words(language.answers.question))
        self.next_item = re.compile(  # where a text continues with another item, or repeats its prompt
            r"(?:###? ?(?:Instruction|Input|Question|Response):|<\|im_start\|>|\[INST\]|"
            rf"(?<![^\n])(?:{headings}|Q|User|Human) ?\d{{0,3}} ?[:.])(?:.{{0,8000}}?### ?Response:)?",
            re.S)

    def at(self, low: str, word: re.Match[str]) -> tuple[str, int]:
        """(kind, end) of a number, a mark or the longest phrase that begins with this word of `low`."""
        if word.lastgroup in ("number", None):
            return _MARKS.get(word[0], "0"), word.end()
        first, start = word[0].lower(), word.start()
        for phrase, kind in self.phrases.get(first, ()):
            end = start + len(phrase)
            whole = word["unspaced"] or not re.match(rf"{_LETTER}|\d", low[end:end + 1])
            if whole and low.startswith(phrase, start):
                return kind, end
        for length in range(len(first), 2, -1):
            if first[:length] in self.stems:
                return self.stems[first[:length]], word.end()
        grammar = first < "\u30a0" if word["unspaced"] else len(first) <= 3  # hiragana; "the", "la"
        return ("s" if grammar else "x"), word.end()


@functools.cache
def _lexicon(code: str) -> Lexicon:
    return Lexicon([get_language(known) for known in dict.fromkeys((*PAPER_ORDER, code))])


# ---- tokens ------------------------------------------------------------------------------------------------

@dataclass
class Token:
    kind: str
    letters: str = ""  # of L, M, T and O


_LOOKALIKES = dict(zip("АВСЕНІЈКМОРЅТХΑΒΕΖΗΙΚΜΝΟΡΤΥΧасе", "ABCEHIJKMOPSTXABEZHIKMNOPTYXace"))
_UNLIKE = "БГДЖЗ"  # Cyrillic labels that are not Latin letters; beside them В may be the second or the third
_ALSO_A_WORD = "AIАΑВСОУИ"  # articles, pronouns and prepositions, at the start of a sentence
# A letter after or before these is part of a name: hepatitis B, B cells, C. difficile (by its Latin ending)
_NAME_BEFORE = re.compile(
    r"\b(?:vitamin|hepatit|group|grup|t[iy]p|fa[ck]t|clas|klass|stage|stadi|grad|protein|virus|influenza|rh|"
    r"hgb|витамин|гепатит|групп|тип|фактор|فيتامين|الكبد|نمط|زمر|نوع|عامل)\w* $")
_NAME_AFTER = re.compile(
    "cel|zell|lymph|linf|reacti|reakti|dimer|peptid|virus|strep|staph|antigen|fib(?:er|re)|wave|line|section|"
    "scan|symptom|penicillamin|клет|реакт|خلايا|تفاعل|"
    r"(?!rationale)[a-z]+(?:[lrnti]i|ei|[a-z]{2}us|[a-z]{3}is|[a-z]{3}um|[a-z]{3}[ae]ns|ae|ile|ale|"
    r"[tr]ica|[a-z]{3}rata)\b")
_BINOMIAL = re.compile(r"^([A-Z])[a-z]+ ([a-z]+)$")
# \0 is the letter: D-dimer, C4; between letter and text is nothing like "l'amlodipine"
_JOINED = re.compile(rf"(?:{_LETTER}['-]|[\d°])\0|\0(?:[\d°]|['-](?:{_LETTER}|[{_CJK}]))")
_TO_TEXT = re.compile(r"(?!'\w)[)\]*_`\"'»”]{0,4} ?[.):,(\[–—の-]{0,2} ?[*_(\[\"'«「]{0,3} ?")


class _Reader:
    """Splits one folded text into tokens. `relabelled`: options have Cyrillic labels; В may be the third."""

    def __init__(self, text: str, options: Mapping[str, str], lexicon: Lexicon, relabelled: bool):
        self.text = lexicon.attached.sub(r"\g<0> ", _plain(text))
        self.low = self.text.lower()
        self.options, self.lexicon = options, lexicon
        self.unlike = _UNLIKE + "ВСЕ" if relabelled else _UNLIKE
        self.tokens: list[Token] = []
        self.texts: dict[int, tuple[int, str]] = {}  # where an option's text begins -> (its end, its letter)
        for letter, option in sorted(options.items(), key=lambda pair: -len(pair[1])):
            option = option.strip(' \n".')
            if len(option) > 1 or (option and not re.match(_LETTER, option)):  # "3", "肝"
                forms = {_BINOMIAL.sub(form, option).lower() for form in (r"\g<0>", r"\1. \2", r"\1 \2")}
                texts = "|".join(map(re.escape, forms))  # E. coli, E coli
                pattern = rf"(?<!{_LETTER}){lexicon.prefixes}(?:{texts})(?!{_LETTER})"
                for match in re.finditer(pattern, self.low):
                    self.texts.setdefault(match.start(), (match.end(), letter))

    def read(self) -> list[Token]:
        at = 0
        while match := _TOKEN.search(self.text, at):
            at = self._read_token(match)
        kinds = "".join(token.kind for token in self.tokens)
        return [_joined(self.tokens[found.start():found.end()]) for found in _LIST.finditer(kinds)]

    def _read_token(self, match: re.Match[str]) -> int:
        """Append the token, if any, that begins here; its end."""
        start, end = match.span()
        if start in self.texts:
            end, letter = self.texts[start]
            self.tokens.append(Token("T", letter))
        elif match["word"] and (label_end := self._label(match)):
            return label_end
        elif match.lastgroup or match[0] in _MARKS:
            kind, end = self.lexicon.at(self.low, match)
            self.tokens.append(Token(kind))
        return end

    def _label(self, match: re.Match[str]) -> int:
        """Append the option letters found here, with their text; returns their end, or 0 without any."""
        word, (start, end) = match[0], match.span()
        letters = self.lexicon.letters.get(word) or _LOOKALIKES.get(word, word)
        if word in self.unlike:
            letters = "?"  # a label, but none of ours
        elif len(word) > 1 and list(word) != sorted(set(word) & set(self.options)):
            return 0  # not "ABD"
        elif not "A" <= letters <= "Z" and letters.upper() not in self.options:
            return 0
        letters = letters.upper()
        between = _TO_TEXT.match(self.text, end)
        stop, owner = self.texts.get(between.end() if between else end, (end, ""))
        if owner and word in _UNLIKE + "ВСЕ":
            letters = owner  # a Cyrillic label beside an option's text: the text decides
        if not owner and not self._stands_alone(match, letters):
            return 0
        if self.text[start - 1:start] + self.text[end:end + 1] == "()" and self.tokens[-1:] == [Token("x")]:
            self.tokens.append(Token("A"))  # "a beta blocker (B)" is "a beta blocker (option B)"
        self.tokens.append(Token("M" if owner == letters else "L", letters))
        if not owner and self.text.startswith((")", "]"), end):
            self.tokens.append(Token(")"))
        return stop

    def _stands_alone(self, match: re.Match[str], letters: str) -> bool:
        """Whether letters are an answer, and not part of a word, a name or a sentence."""
        start, end = match.span()
        before, previous = self.low[max(0, start - 20):start], self.tokens[-1].kind if self.tokens else "."
        part = _JOINED.search(before[-2:] + "\0" + self.low[end:end + 2]) or _NAME_BEFORE.search(before)
        if part or (previous == "x" and re.search(f"[{_CJK}]$", before)):  # 维生素C
            return False
        stop, blank = next(re.compile(r"(\.?)( ?)").finditer(self.text, end)).groups()
        following = _TOKEN.match(self.text, end + len(stop + blank))
        own, capital = match[0] in self.lexicon.letters, match[0].isupper()
        if not following or not following.lastgroup:  # an end or a mark
            return capital or own or previous not in "LMT"
        kind = self.lexicon.at(self.low, following)[0]
        if following["unspaced"]:
            return bool(stop or blank) or kind != "x" or following[0] in "的而更最都也均等因由吧啊呢了"
        if stop:  # not "A.S.", "C. difficile"
            return bool(blank) and (kind != "x" or not following[0][0].islower())
        if following[0] in self.options and capital:
            return True  # "A C E"
        if kind == "x" and _NAME_AFTER.match(self.low, following.start()):
            return False
        if capital and letters in self.options and not (match[0] in _ALSO_A_WORD and previous in ".:n?-"):
            return True
        return kind in "I&|" or (kind in "NB" and capital) or (kind in "RWCNB" and own)


_LIST = re.compile(
    r"(?:^|(?<=n))[LM]\)?(?:n+[LM]\)?(?=[n.]|$))+"  # labels on lines of their own
    r"|[LMT](?:\)?,?[&|],?[sA]*[LMT]"  # "A, B and C", "la A y la C"
    r"|\)?[,-]A?[LMT](?![xs])"  # "A, option C"
    r"|(?<=[LM])[LM](?![xsI]))*|.", re.S)  # "A C E"


def _joined(tokens: Sequence[Token]) -> Token:
    if len(tokens) == 1:
        return tokens[0]
    kinds = {token.kind for token in tokens}
    *before, last = (token.letters for token in tokens if token.letters)
    letters = last if last in before else "".join(sorted({*last, *"".join(before)}))  # "between A and B, B"
    return Token("O" if "|" in kinds and letters != last else "L" if kinds & set("LM") else "T", letters)


# ---- steps 2 to 5: None where the text has nothing of the kind ---------------------------------------------

# Between "is" and the letter. Repeats are bounded where another can begin inside, so that time stays linear.
_FILL = r",?(?:,?C,?|[sAR:-]|x(?=[AR])){0,12}"
# The letter; not in "B is wrong", "B is not right", "B?"
_AT = r"(?P<at>[LMO]|T(?![xs]))\)?+(?!:?A?[IC]?[sxC]{0,2}W|[IsxC]{0,4}W|I[sC]?N|[^.,n?:]{0,2}\?)"
_STATEMENTS = [re.compile(pattern) for pattern in (
    rf"(?<!W)A[^.?n]{{0,25}}?[I:-]{_FILL}{_AT}",  # "the answer to the question is B"
    rf"R[sxA]{{0,6}}[I:-]{_FILL}{_AT}",  # "correct is B"
    rf"[AR][^.?n]{{0,25}}?I[^.,?nNHW]{{0,12}}A{_AT}(?=[.n]|$)",  # "correct is a beta blocker (option B)"
    rf"(?:^|[.n:?])[sR]{{0,6}}A[sAR]{{0,6}}n{{0,4}}{_AT}(?=[.n]|,s?N|$)",  # "Answer B."
    rf"(?<![LM]\.)R[sAR]{{0,6}}{_AT}(?=s?[.,n]|$)",  # "the correct option B."
    rf"C(?:[sIRAC,:-]|x(?=[AR])){{0,12}}{_AT}",  # "I choose B", "actually, it is B"
    r"(?P<at>[LMO]|(?<![^n.])T)\)?[I-][sxC]{0,3}(?:R[sx]?A|(?<![sxC]{3})AR?I?(?=[.,nB]|$))",  # "B is best"
    rf"I{_AT}s{{0,2}}RA",  # "then B is the best answer" in German
    rf"(?:N[sIAC]{{0,4}}[LMTO]\)?|[LM]I?s{{1,3}}W)(?:,[sx]?|[sx])I?[sA]{{0,4}}{_AT}",  # "not A but B"
    r"[LMTO]W[sI]?(?P<at>[LMT])(?!:?[RW])",  # the same in Japanese
    rf"(?:[C,]N:|(?<![^C.,n?-])N[.,-]{{1,3}})[sIAC]{{0,6}}{_AT}(?=,?B|[.n]|$|[IsC]{{0,2}}R)",  # "No, B"
)]
_WRONG_ONE = [re.compile(rf"W[sxA]{{0,6}}[I:-]{_FILL}{_AT}")]  # "the wrong one is B", and no right one
_EXCLUSIONS = [re.compile(r"N[sIACR]{0,4}(?P<at>[LMTO])")]
_WEAK = [re.compile(r"(?:^|[.,n:])[sC]{0,3}I{1,2}[sA]{0,6}(?P<at>[LMTO])I?(?=B|&?N|[.,n]|$)")]  # "It's B."
_HEADINGS = [re.compile(r"(?:^|(?<=n))A(?P<at>[LM])\)?[.:]?(?=n)")]  # "Option A", on a line of its own
_ELSEWHERE = re.compile(r"H[^.n?]*")  # "if it were severe, the answer would be C"
_VERDICTS = [re.compile(r"(?P<at>[LM])\)?A?(?:[I:-][sCI]{0,4}x?[sC]{0,4})?R(?!\?)"),
             re.compile(r"(?<![^.nWRA])(?P<at>[LM])[.n]R(?=[.,:nL-]|$)")]  # "B. Correct. It is safe."
_BARE = re.compile(r"[As:,]*(?P<at>[LMO])(?:,?&?N[sAI]*[LM])?[.,:AI0)]*(?=n|$)")
_LABEL = re.compile(r"[As]*(?P<at>M|L(?=[.,:B)]|x:))(?!\)?(?::?I?[RWN]|\.W))")


def _places(patterns: Iterable[re.Pattern[str]], kinds: str) -> set[int]:
    return {match.start("at") for pattern in patterns for match in pattern.finditer(kinds)}


def _stated(tokens: Sequence[Token], kinds: str, wanted: str = "LMO") -> set[str] | None:
    """The letters of the last statement; empty if it names none or is retracted."""
    excluded = _places(_EXCLUSIONS, kinds)
    found = ({at for at in _places(patterns, kinds) - excluded if kinds[at] in wanted}
             for patterns in (_STATEMENTS, _WRONG_ONE, _WEAK))
    stated = next(filter(None, found), set())
    headings = _places(_HEADINGS, kinds)
    stated -= headings if len({tokens[at].letters for at in headings}) > 1 else set()
    elsewhere = {at for part in _ELSEWHERE.finditer(kinds) for at in range(*part.span())}
    stated = stated - elsewhere or stated
    current: set[str] = set()
    for at in sorted(stated | excluded):
        letters = set(tokens[at].letters)
        if at in excluded:
            current -= letters
        else:
            current = letters if kinds[at] != "O" else set()
    return current if stated else None


def _bare_lines(tokens: Sequence[Token], kinds: str) -> set[str] | None:
    """Letters of lines that hold nothing else, or that label the beginning of the text."""
    starts = [match.start() for match in re.finditer("(?:^|(?<=n))[^n]", kinds)]
    bare = {start: match.start("at") for start in starts if (match := _BARE.match(kinds, start))}
    order = [tokens[at].letters for at in bare.values()]
    listed = len(order) > 1 and order[0] == "A" and order == sorted(set(order))  # headings of all options
    for start in [*starts[-1:], *bare]:
        if start in bare and (not listed or (start == starts[-1] and kinds[start] in "LO")):
            return set(tokens[bare[start]].letters) if kinds[bare[start]] != "O" else set()
    labels = [(start, match.start("at")) for start in starts if (match := _LABEL.match(kinds, start))]
    first = tokens[labels[0][1]].letters if labels and labels[0][0] == starts[0] else ""
    return set(first) if first and (len(labels) == 1 or first > "A") else None  # "A: ..., B: ..." is a list


def _verdicts(tokens: Sequence[Token], kinds: str) -> set[str] | None:
    """All letters with the verdict "right"."""
    right = _places(_VERDICTS, kinds) - _places(_EXCLUSIONS, kinds)
    return {letter for at in right for letter in tokens[at].letters} or None


def _only_text(tokens: Sequence[Token], kinds: str) -> set[str]:
    """The option whose text begins the answer, or is the only one in a short sentence without negation."""
    found = {token.letters for token in tokens if token.kind in "TM"}
    if re.match("T[.n]", kinds) or (len(found) == 1 and re.match("T[,:]", kinds)):
        return set(tokens[0].letters)
    short = len(tokens) <= 30 and not re.search(r"[NW?0]|[.n].", kinds)
    return set(found.pop()) if len(found) == 1 and short else set()
