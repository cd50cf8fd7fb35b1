"""Statements of an answer in folded text: "the answer is B", "not A", "B is correct", "actually, D".

In: a `FoldedText`. Out: the letters that its last statement leaves standing. Each statement is an event
(place, kind, letters) found beside a cue of `mmed/evaluation/answer_words.py`; later events win, and "not B"
takes B back.
"""
from __future__ import annotations

import re
from collections.abc import Iterator

from mmed.evaluation.answer_letters import FoldedText, is_capital, letters_at, option_text_at
from mmed.evaluation.answer_words import CJK_BEFORE, CJK_NAME, OPTION_BEFORE, PUBLISHED

Event = tuple[int, str, str]  # (place, "is" | "not" | "asks" | "no option", letters)


def option_spans(t: FoldedText) -> list[tuple[int, int]]:
    """Where options' texts stand: words in them ("does not respond to the solution") are neither cues nor
    negations.
    """
    texts = [text for text, _ in t.texts if len(text) >= 4]
    return [match.span() for match in re.finditer("|".join(map(re.escape, texts)), t.low)] if texts else []


def matches_outside(spans: list[tuple[int, int]], pattern: re.Pattern[str],
                    text: str) -> Iterator[re.Match[str]]:
    """The matches that are not part of one of the spans, both in order; an option may itself be "Answer"."""
    which = 0
    for match in pattern.finditer(text):
        while which < len(spans) and spans[which][1] <= match.start():
            which += 1
        if which == len(spans) or match.start() < spans[which][0] or spans[which][1] - spans[which][0] <= len(
                match[0]):
            yield match


def stated_answer(t: FoldedText) -> tuple[str, ...] | None:
    """The last statement beside a cue; () if it was taken back, is open, or names no option; None if there is
    none.
    """
    quoted = option_spans(t)
    events, weak = _cued(t, quoted)
    events += _negated(t, quoted)
    events += _standing(t, quoted)
    if not any(kind in ("is", "no option") for _, kind, _ in events):
        events += weak
    if not any(kind != "not" for _, kind, _ in events):
        return None
    events.sort(key=lambda event: event[0])
    if all(kind in ("not", "asks") for _, kind, _ in events):
        return ()
    current: set[str] = set()
    for _, kind, letters in events:
        if kind == "not":
            current -= set(letters)
        elif kind != "asks":
            current = set(letters) if kind == "is" else set("?")
    return tuple(sorted(current))


def _cued(t: FoldedText, quoted: list[tuple[int, int]]) -> tuple[list[Event], list[Event]]:
    """What follows a cue, "answer" or "I choose", and apart from it what follows a weak one, "I think"."""
    events: list[Event] = []
    weak: list[Event] = []
    for match in matches_outside(quoted, t.w.cue, t.low):
        _after_cue(t, match.end(), events, linked=False)
    for cue, where in ((t.w.decide, events), (t.w.weak, weak)):
        for match in matches_outside(quoted, cue, t.low):
            found: list[Event] = []
            _after_cue(t, match.end(), found, linked=True, gap=False, hard=cue is t.w.weak)
            # "not choose B", "no es la B"
            if t.w.negation_before.search(t.low, max(0, match.start() - 8), match.start()):
                found = [(at, "not", letters) for at, _, letters in found]
            where += found
    return events, weak


def _negated(t: FoldedText, quoted: list[tuple[int, int]]) -> list[Event]:
    """What follows a negation: "not B", "not B but C"."""
    events: list[Event] = []
    for match in matches_outside(quoted, t.w.negation, t.low):
        at = _skip(t, match.end(), 4)[0]
        letters, end, stands = letters_at(t, at)
        if letters and not (stands == "soft" and t.text[at] in "AАВС"):
            events.append((at, "not", letters))
            _after_but(t, end, events)
    return events


def _standing(t: FoldedText, quoted: list[tuple[int, int]]) -> list[Event]:
    """Letters with the statement behind them: "B is correct", "B is wrong"."""
    events: list[Event] = []
    done = -1
    for match in matches_outside(quoted, t.w.standing, t.text):
        at = match.start()
        if at < done or t.w.name_before.search(t.low, max(0, at - 14), at):
            continue
        if at and CJK_NAME.match(t.text[at - 1]) and t.text[at - 1] not in CJK_BEFORE:
            continue
        letters, end, stands = letters_at(t, at)
        if not letters:
            continue
        done = end
        if t.w.negation_after.match(t.text[end:end + 6]):
            events.append((at, "not", letters))
            _after_but(t, end, events)
        elif stands != "or" and (
            t.w.is_answer.match(t.low, end)
            or (PUBLISHED.match(t.low, end) and OPTION_BEFORE.search(t.low, max(0, at - 9), at))
        ):
            events.append((at, "is", letters))
    return events


def _after_but(t: FoldedText, end: int, events: list[Event]) -> None:
    """Add what "but" sets against a denied letter that ends here."""
    but = t.w.but.match(t.text, end)
    if but:
        _after_cue(t, but.end(), events, linked=True, gap=False)


def _skip(t: FoldedText, at: int, limit: int, stop_at_text: bool = True) -> tuple[int, bool]:
    """Past filler words: (place of what follows, whether one of them linked it to the cue)."""
    linked = False
    for _ in range(limit):
        if stop_at_text and (option_text_at(t, at)[0] or _is_list(t, at)):
            break
        filler = t.w.filler.match(t.text, at)
        if not filler:
            break
        linked = linked or filler[1] is not None
        at = filler.end()
    return at, linked


def _is_list(t: FoldedText, at: int) -> bool:
    """Whether a capital letter stands here: "E" and "La" must not be taken for fillers."""
    return is_capital(t, at) and bool(letters_at(t, at)[0])


def _after_cue(t: FoldedText, at: int, events: list[Event], linked: bool, gap: bool = True,
               hard: bool = False) -> None:
    """Add the statement that follows a cue ending at `at`, if there is one."""
    if linked:  # verbs and revisions: "wait, ... C", "actually: it is C"
        at += len(re.match(r"[ ,.:;!…、,-]{0,5}", t.text[at:at + 5])[0])
    tries = [at]
    # "the answer to the question about anticoagulants is C": go on from the next links of the same sentence
    if gap:
        sentence = re.match(r"[^.\n;!?。!?]{0,80}", t.text[at:at + 80])[0]
        tries += [at + match.end() for match in t.w.copula.finditer(sentence)][:4]
    for place, start in enumerate(tries):
        begin, link = _skip(t, start, 14)
        colon = ":" in t.text[start:begin]
        if begin < len(t.text) and t.w.negation.match(t.low, begin) and not option_text_at(t, begin)[0]:
            return  # the negation is an event of its own
        letters, end, stands = letters_at(t, begin)
        if not letters:
            continue
        if stands == "or":
            at_colon = re.match(r"[^\n.。]{0,12}[)\]] ?:", t.text[end:end + 15])  # "Answer (A, B, C or D): B"
            if at_colon:
                return _after_cue(t, end + at_colon.end(), events, linked=False, gap=False)
            events.append((begin, "no option", letters))
            return
        if stands != "hard" and (hard or not (linked or link or place)):
            continue
        if stands == "soft" and any(letter not in t.letters for letter in letters):
            continue
        if not colon and t.w.wrong.match(t.low, end) and not _HARD_STOP.match(t.text, end):
            events.append((begin, "not", letters))
            return
        tail = t.text[end:end + 8]
        if re.match(r"[)\]*_`\"'»”. ]{0,4}\?|[吗么嗎]|(?:でしょう)?か[??。]", tail):
            events.append((begin, "asks", letters))
            return
        known = all(letter in t.letters for letter in letters)
        events.append((begin, "is" if known else "no option", letters))
        return


_HARD_STOP = re.compile(r"[.,;\n]")
