"""Thoughts of reasoning models: found and removed, or closed when their budget is used up."""
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

_TAG = (r"(?:[a-z]{1,8}[:_])?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|scratchpad|推理|"
        r"思考(?:过程|過程)?|réflexion|raisonnement|razonamiento|pensamiento|gedanken|überlegung|"
        r"рассуждени[ея]|мысли|تفكير)\s*(?:>|&gt;)")
THOUGHTS = {  # opening -> (closing, the text that closes a thought)
    rf"(?:<|&lt;)\s*{_TAG}": (rf"(?:<|&lt;)\s*/\s*{_TAG}", "</think>"),
    r"<\|think\|>": (r"<\|/think\|>|<\|content\|>", "<|/think|>"),  # the second is Solar's
    r"\[THINK\]": (r"\[/THINK\]", "[/THINK]"),  # Magistral
    r"◁think▷": (r"◁/think▷", "◁/think▷"),  # Kimi
    r"<\|begin_of_thought\|>": (r"<\|end_of_thought\|>", "<|end_of_thought|>"),  # OpenThinker, Sky-T1
    r"<\|START_THINKING\|>": (r"<\|END_THINKING\|>", "<|END_THINKING|>"),  # Command A
    r"<\|inner_prefix\|>": (r"<\|inner_suffix\|>", "<|inner_suffix|>"),  # Apertus
    r"\[unused16\]": (r"\[unused17\]", "[unused17]"),  # openPangu
    r"<unused94>": (r"<unused95>", "<unused95>"),  # MedGemma
    r"<\|channel>thought\b": (r"<channel\|>", "<channel|>"),  # Gemma
    r"<\|im_start\|>think\b": (r"<\|im_start\|>answer\b", "<|im_start|>answer"),  # s1, m1
    r"^Here is my thought process:": (r"^Here is my response:", "Here is my response:"),  # Granite
    r"^## Thinking *\n": (r"^## Final Response *\n", "## Final Response"),  # HuatuoGPT-o1
}
_OPEN, _CLOSE = "|".join(THOUGHTS), "|".join(closing for closing, _ in THOUGHTS.values())
_THOUGHT = re.compile(f"(?P<open>{_OPEN})|(?P<close>{_CLOSE})", re.I | re.M)
_BEGUN = re.compile(rf"(?:{_OPEN})\s*\Z", re.I | re.M)
# Harmony (gpt-oss): only the final channel answers. Without special tokens: "analysisWe ...assistantfinalB".
_HARMONY = re.compile(r"<\|channel\|>|<\|message\|>|assistantfinal|"
                      r"\A\s*(?:assistant)?analysis(?=[A-Z\d\"'(]|[^\x00-\x7f])")
_FINAL = re.compile(r"(?:(?:<\|channel\|>|\A)\s*final\b[^<]{0,40}(?:<\|constrain\|>[^<]{0,40})?|"
                    r"\A\s*(?:<\|start\|>assistant)?)<\|message\|>|assistantfinal")


def remove_thoughts(text: str) -> str:
    """The text without the model's thoughts before its answer; "" if it never answered.

    >>> remove_thoughts("<think>A? No.</think>The answer is B."), remove_thoughts("<think>A?")
    ('The answer is B.', '')
    """
    if _HARMONY.search(text):
        finals = list(_FINAL.finditer(text))
        text = text[finals[-1].end():] if finals else ""
    kept: list[str] = []
    at, inside = 0, False
    for mark in _THOUGHT.finditer(text):
        if mark["close"]:
            if not inside:
                kept.clear()  # the opening is in the prompt, or was quoted in the thought
            at, inside = mark.end(), False
        elif not inside:
            kept.append(text[at:mark.start()])
            inside = True
    return "".join(kept) + ("" if inside else text[at:])


def begun_thought(prompt: str) -> str:
    """The opening of a thought at the end of a prompt, where some chat templates put it; else ""."""
    found = _BEGUN.search(prompt)
    return found[0] if found else ""


def missing_end(text: str) -> str:
    """The closing tag of a thought that is still open at the end of a text; "" if there is none."""
    found = list(_THOUGHT.finditer(text))
    if not found or found[-1]["close"]:
        return ""
    return next(end for opening, (_, end) in THOUGHTS.items() if re.match(opening, found[-1][0], re.I))


def think_and_answer(
    decode: Callable, tokenizer, prompts: Sequence[list[int]], limit: int, budget: int, begun: str,
    context_length: int, **answering: Any,
) -> list[list[int]]:
    """New ids of each prompt; with a budget, a longer thought is closed, and then the model answers.

    decode     (prompts, limits, stop=, ...) -> new ids of each prompt; `answering` goes with the answers
    limit      of thought and answer together; a thought takes at most half of what a prompt leaves
    begun      the opening of a thought that the prompts end with, or ""
    """
    if not budget:
        return decode(prompts, limit, **answering)

    def end_of(ids: Sequence[int]) -> str:
        return missing_end(begun + tokenizer.decode(ids, continued=True))

    longest = [min(budget, (context_length - len(ids)) // 2) for ids in prompts]
    thoughts = decode(prompts, longest, stop=lambda ids: not end_of(ids))
    for ids in thoughts:
        ids += tokenizer.encode(f"\n{end_of(ids)}\n\n", continued=True) if end_of(ids) else []
    answers = decode([prompt + ids for prompt, ids in zip(prompts, thoughts)], limit - budget, **answering)
    return [thought + ids for thought, ids in zip(thoughts, answers)]
