"""Scores each option by the likelihood of its own text, for base models, which rarely answer with a letter.

    Question: Which vitamin prevents scurvy?
    Answer: ascorbic acid            log P(" ascorbic acid" | prompt), summed over its tokens

The options are not listed ("cloze formulation", OLMES, arXiv 2406.08446). Two scores, each with a column of
its own: the sum divided by the number of tokens; and PMI, the sum minus that of the same text after "Answer:"
alone, which removes how frequent the text is in any case (Holtzman et al., arXiv 2104.08315).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmed.prompts import ANSWER_FORM, ExamItem

# What precedes and follows the letters in an answer
BEFORE_LETTERS, AFTER_LETTERS = ANSWER_FORM.split("{letters}")

PROMPT = "Question: {question}\nAnswer:"
UNCONDITIONAL = "Answer:"


def scored_string(mode: str, letters: str, options: Mapping[str, str]) -> str:
    """The string whose likelihood stands for a candidate; an option without a text is named by its letter.

    >>> scored_string("option_text", "A,B", {"A": "salt", "B": "iron "})
    ' salt, iron'
    >>> scored_string("loglikelihood", "A,B", {"A": "salt", "B": "iron "})
    '###Answer: OPTION A,B IS CORRECT.'
    """
    if mode == "loglikelihood":
        return ANSWER_FORM.format(letters=letters)
    return " " + ", ".join(options[letter].strip() or letter for letter in letters.split(","))


def letters_part(letters: str) -> str:
    """The part of an answer whose likelihood counts: a letter; of several, of which A,B begins A,B,C, all to
    the end.

    >>> letters_part("A"), letters_part("A,B")
    ('A', 'A,B IS CORRECT.')
    """
    return letters + AFTER_LETTERS if "," in letters else letters


def cloze_prompt(item: ExamItem, shots: Sequence[ExamItem] = ()) -> str:
    """The question after solved examples, with blank lines between; it ends before the answer's space."""
    solved = [PROMPT.format(question=shot.question)
              + scored_string("option_text", ",".join(shot.answer), shot.options) for shot in shots]
    return "\n\n".join([*solved, PROMPT.format(question=item.question)])
