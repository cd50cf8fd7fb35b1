"""Answer letters and rationale, read back out of what a model wrote.

In: raw model text and the options of its question. Out: whether the published scorer takes it for right
(`official_match`), and a `ParsedAnswer` (`parse_answer`). In order: the published scorer; the parser: strict
form, rationale, then the lenient reading of a stretch of text by statements
(`mmed/evaluation/answer_statements.py`), bare lines, verdicts, option texts. Letters are read by
`mmed/evaluation/answer_letters.py`, words stand in `mmed/evaluation/answer_words.py`. Reference:
metrics/accuracy.py of the MMedLM repository.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mmed.evaluation.answer_letters import (
    FoldedText,
    fold,
    fold_option,
    how_it_stands,
    is_capital,
    letter_at,
    letters_at,
    own_text_end,
)
from mmed.evaluation.answer_statements import matches_outside, option_spans, stated_answer
from mmed.evaluation.answer_words import CJK_BEFORE, CJK_NAME, ECHO_END, Patterns, patterns_of
from mmed.prompts import ExamItem

# ------------------------------------------------------------------------------------------------------------
# Thoughts of reasoning models

# (opening, closing) of a thought, as regular expressions; some chat templates put the opening into the
# prompt.
THOUGHTS = [
    (r"<\s*(?:[a-z]{1,8}[:_])?(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad)\s*>",
     r"<\s*/\s*(?:[a-z]{1,8}[:_])?(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad)\s*>"),
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    (r"◁think▷", r"◁/think▷"),  # Kimi
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # OpenThinker, Sky-T1
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    (r"<unused94>", r"<unused95>"),  # MedGemma
    (r"<\|channel>thought\b", r"<channel\|>"),  # Gemma
    (r"^## Thinking *\n", r"^## Final Response *\n"),  # HuatuoGPT-o1
]
_OPEN, _CLOSE = ("|".join(pair[side] for pair in THOUGHTS) for side in (0, 1))
_THOUGHT = re.compile(f"(?P<open>{_OPEN})|(?P<close>{_CLOSE})", re.I | re.M)
_ANY_THOUGHT = re.compile(
    r"think|thought|reason|reflect|scratch|unused9|inner_|channel|analysis|<\|message\|>", re.I)
# Harmony (gpt-oss): only the final channel is the answer. Without special tokens: "analysisWe
# ...assistantfinalB".
_HARMONY = re.compile(r"<\|channel\|>|<\|message\|>")
_FINAL = re.compile(r"(?:<\|channel\|>|\A)\s*final\b[^<]{0,40}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>")
_BARE_HARMONY = re.compile(r"\A\s*(?:assistant)?analysis(?=[A-Z\d\"'(]|[^\x00-\x7f])")


def remove_thoughts(text: str) -> str:
    """The text without what a reasoning model thought before it answered; "" if it never came to an answer.

    >>> remove_thoughts("<think>A? No.</think>The answer is B."), remove_thoughts("<think>A?")
    ('The answer is B.', '')
    >>> remove_thoughts("<|channel|>analysis<|message|>A?<|end|><|channel|>final<|message|>B<|return|>")
    'B<|return|>'
    """
    if not _ANY_THOUGHT.search(text):
        return text
    if _HARMONY.search(text):
        finals = list(_FINAL.finditer(text))
        text = text[finals[-1].end():] if finals else ""
    elif _BARE_HARMONY.match(text):
        text = text.rpartition("assistantfinal")[2] if "assistantfinal" in text else ""
    kept, at, inside = [], 0, False
    for mark in _THOUGHT.finditer(text):
        if mark["close"]:
            if not inside:
                kept.clear()  # the opening stands in the prompt, or was quoted in the thought
            at, inside = mark.end(), False
        elif not inside:
            kept.append(text[at:mark.start()])
            inside = True
    if not inside:
        kept.append(text[at:])
    return "".join(kept) if at or inside else text


# ------------------------------------------------------------------------------------------------------------
# The published scorer

END_MARKERS = ("</s>", "<|end_of_text|>", "<|eot_id|>", "<|endoftext|>", "<|im_end|>", "<eos>", "<|end|>",
               "<|return|>", "<end_of_turn>", "<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>",
               "<｜end▁of▁sentence｜>")


def official_match(text: str, item: ExamItem) -> bool:
    """Whether the published scorer counts this output of an answer-only run as right.

    >>> item = ExamItem("Why?", {"A": "this", "B": "that"}, ("A", "B"), "", "English", "1")
    >>> official_match("###Answer: OPTION B,A IS CORRECT.", item)
    True
    >>> official_match("###Answer: OPTION A, B IS CORRECT.", item)
    False
    """
    # MMedLM: inference.py takes what follows "### Response:", strips it and deletes newlines; accuracy.py
    # deletes the
    # two marker strings, then compares the string (one letter) or the set of its parts (several); "A, B" is
    # not "A,B"
    # there.
    # DIFFERS: accuracy.py deletes only `IS CORRECT.</s>`, so every answer of a model with another end token
    # is wrong
    # (D24); here the end token of any family, or none (decoding drops it), is the same.
    response = remove_thoughts(text).strip().replace("\n", "")
    for marker in END_MARKERS:
        response = response.replace(marker, "")
    response = response.replace("###Answer: OPTION ", "").replace("IS CORRECT.", "").strip()
    if len(item.answer) == 1:
        return response == item.answer[0]
    return set(response.split(",")) == set(item.answer)


# ------------------------------------------------------------------------------------------------------------
# The answer parser
#
# strict     the text ends in the published pattern, exactly, with letters that are options;
# lenient    the text states an answer in some other way a careful reader would accept;
# unparsed   it states none, several with "or" between them, or a letter that is no option. It is counted, as
# wrong.
#
# DIFFERS: the published scorer knows the strict form only and does not say how many outputs it could not read
# (D24); here
# the three shares are counted apart, and `official_match` stays beside them.
#
# How the lenient reading works. The text is folded (width, look-alikes, invisible marks), repeated prompts,
# option
# lists and thinking are cut off, then statements are collected by strength; in the strongest kind present the
# last one
# wins:
# 1 a cue beside a letter or an option's text     "the answer is B", "正解はＣ", "B is the best choice",
# "actually, D";
#     weak cues ("it's C", "creo que es la C") only where no other cue speaks
# 2 a line that is nothing but letters, or begins as a label     "B", "(A) and (C)", "D. Nitrofurantoin", "C,
# because"
#   3 verdicts, taken together      "A: true  B: false  C: true"
#   4 the text of exactly one option, in an answer of one sentence
# "not B" takes B back and states nothing. Nothing is inferred from what was ruled out: "A, B and C are wrong"
# is no
# answer.
# A letter with the text of another option counts as the letter.
# Cyrillic and Greek capitals count only where they look like a Latin letter (А В С Е, Α Β Ε): the options
# were shown
# with Latin letters. Б, Г, Д look like none and are no answer, and where the text labels options with them,
# В, С, Е are
# not read either, since В may then be the second letter or the third; an option's text beside such a label
# decides.
# Every expression has bounded repeats and every step looks a bounded way ahead, so time is linear in the
# text.

PARSER_VERSION = "2"  # goes into every result; raise it with any change that can alter a parse


@dataclass(frozen=True)
class ParsedAnswer:
    letters: tuple[str, ...]  # sorted; () if unparsed
    status: str  # "strict", "lenient" or "unparsed"
    rationale: str = ""


_STRICT = re.compile(r"###Answer: OPTION ([A-Z](?:,[A-Z]){0,25}) IS CORRECT\.\Z")
_RATIONALE_MARK, _ANSWER_MARK = "###Rationale:", "###Answer:"


def parse_answer(text: str, options: Mapping[str, str] | Iterable[str],
                 rationale_expected: bool = False, language: str | None = None) -> ParsedAnswer:
    """Read answer letters and rationale out of a model's text; `options` is letter -> text, or the letters
    alone.

    `language` is the item's: beside the words of the paper's six languages those of a further one count
    (`answer_words`).

    With `rationale_expected`, a text without the published marker gives as rationale all of it but a last
    line that only states the answer; without, only what stands after `###Rationale:`.

    >>> parse_answer("###Rationale: It is safe.\\n###Answer: OPTION A,C IS CORRECT.", "ABCD")
    ParsedAnswer(letters=('A', 'C'), status='strict', rationale='It is safe.')
    >>> parse_answer("Not A. The answer is (Ｂ)", "ABCD")
    ParsedAnswer(letters=('B',), status='lenient', rationale='')
    >>> parse_answer("Aspirin, I think.", {"A": "Heparin", "B": "Aspirin"}).letters
    ('B',)
    """
    if not isinstance(options, Mapping):
        options = dict.fromkeys(options, "")
    w = patterns_of(language)
    text = remove_thoughts(text)
    body = _cut_end(text)
    strict = _STRICT.search(body, max(body.rfind(_ANSWER_MARK), 0))
    if strict:
        letters = strict[1].split(",")
        before = body[:strict.start()]  # stripped in front by _cut_end
        alone = not before or (before.startswith(_RATIONALE_MARK) and before.endswith("\n"))
        known = len(set(letters)) == len(letters) and all(letter in options for letter in letters)
        if alone and known and not w.run_on.search(body):
            rationale = before.removeprefix(_RATIONALE_MARK).removeprefix(" ").removesuffix("\n")
            return ParsedAnswer(tuple(sorted(letters)), "strict", rationale)
    letters = _lenient(text, options, w)
    rationale = _marked_rationale(body)
    if rationale is None:
        rationale = _unmarked_rationale(body, options, w) if rationale_expected else ""
    return ParsedAnswer(letters, "lenient" if letters else "unparsed", rationale)


def _cut_end(text: str) -> str:
    """The text up to its first end token, without blanks around it."""
    ends = [at for at in (text.find(marker) for marker in END_MARKERS) if at >= 0]
    return (text[:min(ends)] if ends else text).strip()


def _marked_rationale(body: str) -> str | None:
    """What stands between the first `###Rationale:` and the last `###Answer:` of a line; None without the
    former.
    """
    start = body.find(_RATIONALE_MARK)
    if start < 0:
        return None
    start += len(_RATIONALE_MARK)
    end = body.rfind("\n" + _ANSWER_MARK, start)
    if end < 0:
        end = body.rfind(_ANSWER_MARK, start)
    rationale = body[start:end] if end >= 0 else body[start:]
    return rationale.removeprefix(" ")


def _unmarked_rationale(body: str, options: Mapping[str, str], w: Patterns) -> str:
    head, newline, last = body.rpartition("\n")
    if len(last) <= 120 and _lenient(last, options, w):  # only a line that states the answer is left out
        return head.strip() if newline else ""
    return body


_CYRILLIC_LABEL = re.compile(r"(?:^|[\s(])[БГД][).]", re.M)


# characters read of a text that is longer; no answer of a thousand tokens comes near
_HEAD, _TAIL = 4_000, 16_000


def _lenient(raw: str, options: Mapping[str, str], w: Patterns) -> tuple[str, ...]:
    texts = []
    for letter, option in options.items():
        folded = fold_option(option, w)
        if len(folded) >= 2 or (folded and not re.match(f"[{w.alpha}]", folded)):
            texts.append((folded, letter))
    texts.sort(key=lambda pair: -len(pair[0]))
    raw = _cut_end(raw)
    # A prompt before the answer is passed over; the first stretch that states an answer counts, not what
    # follows it.
    rest = fold(raw, w)
    if len(rest) > _HEAD + _TAIL:  # an answer stands at one of the ends
        rest = rest[:_HEAD] + "\n" + rest[-_TAIL:]
    cut = w.run_on.search(rest)
    for _ in range(8):
        head = rest[:cut.start()] if cut else rest
        letters = _stretch(head, options, texts, w)
        if letters or cut is None:
            return letters
        end = rest.find(ECHO_END, cut.start())
        if end < 0:  # question repeated, answer after it without the published heading
            rest = rest[cut.end():]
            cut = w.run_on.search(rest)
        else:
            rest = rest[end + len(ECHO_END):]
            cut = w.run_on.search(rest)
    return ()


def _stretch(folded: str, options: Mapping[str, str], texts: list[tuple[str, str]],
             w: Patterns) -> tuple[str, ...]:
    """The answer in one stretch of folded text; () if there is none."""
    cyrillic = bool(_CYRILLIC_LABEL.search(folded))
    folded = _without_option_list(folded, options, w)
    own = {letter: fold_option(text, w) for letter, text in options.items()}
    t = FoldedText(folded, folded.lower(), "".join(options), texts, own, cyrillic, w)
    stated = stated_answer(t)
    letters = stated if stated is not None else _bare_lines(t)
    if letters is None:
        letters = _verdicts(t) or _only_option_text(t)
    both = len(letters) == len(t.letters) == 2  # "yes/no"
    return letters if not both and all(letter in t.letters for letter in letters) else ()


def _without_option_list(text: str, options: Mapping[str, str], w: Patterns) -> str:
    """Cut out a complete list of all options, label and text, as a model that repeats the question writes it.
    """
    low, at, start = text.lower(), 0, None
    pieces: list[tuple[int, int]] = []
    labelled = [(letter, fold_option(option, w)) for letter, option in options.items()]
    if not labelled[0][1]:  # letters alone
        return text
    own = "".join(char for char, letter in w.letters.items() if letter == labelled[0][0])
    label = rf"(?<![{w.alpha}0-9])[{labelled[0][0].lower()}а{own}][).:、．,\]]{{0,2}} ?\"{{0,3}}"
    first = re.compile(label + re.escape(labelled[0][1]))
    while (match := first.search(low, at)) and len(pieces) < 100:
        start, at = match.start(), match.end()
        end = at
        for _letter, option in labelled[1:]:
            follows = re.compile(r"[\s.。;;,、|*\-(\[/\"]{0,8}.[).:、．,\]]{0,2} "
                                 r"?\"{0,3}" + re.escape(option),
                                 re.S)
            if not (found := follows.match(low, end)):
                break
            end = found.end()
        else:
            pieces.append((start, end))
            at = end
    for begin, end in reversed(pieces):
        text = text[:begin] + "\n" + text[end:]
    return text


def _bare_lines(t: FoldedText) -> tuple[str, ...] | None:
    """Letters of lines that are nothing but letters, or of a first line that begins as a label; None without
    any.
    """
    lines = [(match.start(), match.end()) for match in re.finditer(r"[^\n]+", t.text)
             if match[0].strip(" *_`#>-.")]
    if not lines:
        return None
    read: dict[int, str] = {}
    for start, end in dict.fromkeys([*lines[:100], lines[-1]]):
        letters = _bare(t, start, end)
        if letters:
            read[start] = letters
    if len(read) == len(lines) > 1 and len(set("".join(read.values()))) == sum(map(len, read.values())):
        return tuple(sorted("".join(read.values())))  # every line is a label: all of them are meant
    plain = [
        start for start in read if start == lines[-1][0] or len(read) == 1 or not _own_text_follows(t, start)
    ]
    # headings "A. text", each with its discussion, state nothing
    for start in (lines[-1][0], lines[0][0], *read):
        if start in plain:
            letters = read[start]
            return () if letters == "or" else tuple(sorted(set(letters)))
    labels = [start for start, end in lines if _label(t, start)]
    if labels == [lines[0][0]]:
        return (_label(t, labels[0]),)
    return None


def _bare(t: FoldedText, start: int, end: int) -> str:
    """The letters of a line that holds nothing else, "or" if it leaves them open."""
    begin = min(t.w.line_prefix.match(t.text, start).end(), end)
    letters, stop, stands = letters_at(t, begin)
    if not letters or stop > end:
        return ""
    if t.text[begin].islower() and len(letters) == 1 and start and begin == start:
        return ""  # "d" on a later line is a word cut off
    left = t.text[stop:end].strip(" *_`\"'»”」』)].。,$:;!|")
    if not left or t.w.bare_tail.fullmatch(left):
        return "or" if stands == "or" else letters
    # the same letter again and again
    return letters if not left.replace(letters, "").strip(" ,.") and len(letters) == 1 else ""


_INITIALS = re.compile(r"\. ?[A-Z][.,]|\.[A-Z] | ?[-–—] ?\d")  # "A.S. is a 34-year-old", "A - 62-year-old"


def _own_text_follows(t: FoldedText, start: int) -> bool:
    begin = t.w.line_prefix.match(t.text, start).end()
    return own_text_end(t, begin + 1, letter_at(t, begin)) > begin + 1


_LABEL_STOP = re.compile(r"[)\]*_`\"'»”]{0,4} ?(?:[.):,;、。]|[-–—] )|です|である|项|,")


def _label(t: FoldedText, start: int) -> str:
    """The letter a line begins with as a label ("C) ...", "B: ...", "D because ..."); "" if it does not."""
    begin = t.w.line_prefix.match(t.text, start).end()
    letter = letter_at(t, begin)
    if not letter or letter not in t.letters or (not is_capital(t, begin) and t.text[begin - 1:begin] != "("):
        return ""
    stands = how_it_stands(t, begin, begin + 1, letter)
    if not stands:
        return ""
    if _INITIALS.match(t.text, begin + 1):
        return ""
    if _LABEL_STOP.match(t.text, begin + 1) or own_text_end(t, begin + 1, letter) > begin + 1:
        return "" if t.w.wrong.match(t.low, begin + 1) else letter
    because = t.w.because.match(t.low[begin + 1:begin + 13])
    return letter if because else ""


def _verdicts(t: FoldedText) -> tuple[str, ...]:
    """All letters that are called right: "A: true. B: false. C: true." gives A and C."""
    right: set[str] = set()
    done = -1
    quoted = option_spans(t)
    for match in matches_outside(quoted, t.w.standing, t.text):
        at = match.start()
        if at < done or t.w.name_before.search(t.low, max(0, at - 14), at):
            continue
        if at and CJK_NAME.match(t.text[at - 1]) and t.text[at - 1] not in CJK_BEFORE:
            continue
        letters, end, stands = letters_at(t, at)
        done = max(done, end)
        if letters and stands != "or" and not t.w.wrong.match(t.low, end) and t.w.right.match(t.low, end):
            if not t.w.negation.search(t.low, max(0, at - 6), at):
                right |= set(letters)
    return tuple(sorted(right)) if right <= set(t.letters) else ()


_AROUND = " \n*_`\"'«»“”「」『』()[].,:;!。"


def _only_option_text(t: FoldedText) -> tuple[str, ...]:
    """The option whose text alone occurs, in an answer of one short sentence."""
    whole = t.low.strip(_AROUND)
    for text, letter in t.texts:
        if whole == text.strip(_AROUND):
            return (letter,)
    if len(whole) > 160:
        return ()
    for text, letter in t.texts:  # a short text ("yes") only where the answer begins with it
        if whole.startswith(text) and whole[len(text):len(text) + 1] in (",", ".", ":", ";"):
            others = [owner for other, owner in t.texts
                      if owner != letter and other not in text and _text_pattern(other, t.w).search(whole)]
            return () if others else (letter,)
    if len(re.findall(r"[.!?。!?\n]", whole)) > 0:
        return ()
    found, rest = [], whole
    for text, letter in t.texts:
        if (len(text) < 3 and text.isascii()) or len(text) < 2:
            continue
        pattern = _text_pattern(text, t.w)
        hits = list(pattern.finditer(rest))
        if hits:
            if len(hits) > 1 or t.w.avoid.search(rest[max(0, hits[0].start() - 30):hits[0].end() + 30]):
                return ()
            found.append(letter)
            rest = pattern.sub(" ", rest)
    return (found[0],) if len(found) == 1 else ()


def _text_pattern(text: str, w: Patterns) -> re.Pattern[str]:
    """An option's text as a word of its own, where its script has words."""
    if not w.alphabetic.match(text):
        return re.compile(re.escape(text))
    return re.compile(rf"(?<![{w.alpha}0-9])" + re.escape(text) + rf"(?![{w.alpha}0-9])")
