"""Which option's own text does a model find likeliest? For base models, which rarely follow letters.

    Question: Which vitamin prevents scurvy?
    Answer: ascorbic acid            log P(" ascorbic acid" | prompt), summed over its tokens

The options are not listed ("cloze formulation", OLMES, arXiv 2406.08446). Two scores, in columns of their own:
per token, the sum over the number of tokens; and PMI, the sum minus that of the same text after "Answer:"
alone, which takes away how frequent the text is anyway (Holtzman et al., arXiv 2104.08315). Where several
options are right, the candidates are the sets that `candidates` lists, their texts joined by commas.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from mmed.evaluation.questions import candidates
from mmed.generate import encode_prompt, score_many
from mmed.prompts import ExamItem

PROMPT = "Question: {question}\nAnswer:"
UNCONDITIONAL = "Answer:"


def option_texts(item: ExamItem) -> dict[str, str]:
    """Candidate letters -> the text whose likelihood is measured.

    >>> option_texts(ExamItem("?", {"A": "salt", "B": "iron", "C": "zinc"}, ("A", "B"), "", "English", "1"))
    {'A,B': ' salt, iron', 'A,C': ' salt, zinc', 'B,C': ' iron, zinc', 'A,B,C': ' salt, iron, zinc'}
    """
    return {letters: " " + ", ".join(item.options[letter] for letter in letters.split(","))
            for letters in candidates(item)}


def score_texts(model, tokenizer, items: Sequence[ExamItem],
                on_done: Callable[[int], None] | None = None) -> list[dict[str, dict[str, float]]]:
    """Per item: candidate letters -> {"sum", "tokens", "unconditional"}; natural logarithms."""
    texts = [option_texts(item) for item in items]
    ids = [[tokenizer.encode(text, continued=True) for text in part.values()] for part in texts]
    prompts = [encode_prompt(tokenizer, PROMPT.format(question=item.question)) for item in items]
    sums = score_many(model, prompts, ids, on_done=on_done)
    alone = score_many(model, [encode_prompt(tokenizer, UNCONDITIONAL)] * len(items), ids)
    return [{letters: {"sum": total, "tokens": len(tokens), "unconditional": prior}
             for letters, total, tokens, prior in zip(part, row, encoded, priors)}
            for part, row, encoded, priors in zip(texts, sums, ids, alone)]


def best_per_token(scores: dict[str, dict[str, float]]) -> str:
    return max(scores, key=lambda letters: scores[letters]["sum"] / scores[letters]["tokens"])


def best_pmi(scores: dict[str, dict[str, float]]) -> str:
    return max(scores, key=lambda letters: scores[letters]["sum"] - scores[letters]["unconditional"])
