"""MMedBench inside lm-evaluation-harness: the prompts, choices and parser of `python -m mmed.eval`.

Input:  --metadata: data (a folder such as MMedBench/Test), and optionally style, shots, train, seed.
Output: for each language a split "test" of documents; for generation, the scores of a text. See README.md.
"""
from __future__ import annotations

import json
from pathlib import Path

from mmed.evaluation.questions import candidates, cut_at_answer
from mmed.evaluation.results import text_row
from mmed.metrics import exact_match
from mmed.prompts import AFTER_LETTERS, ExamItem, build_few_shot, pick_examples, read_items
from mmed.utils.errors import UserError


def load(
    language: str, data: str = "", style: str = "clean", shots: int = 0, train: str = "", seed: int = 0,
    **_: object,
) -> dict:
    """The questions of one language as documents: prompt, choices, places of the right ones, and the item."""
    from datasets import Dataset

    if not data:
        raise UserError("""no exam given: lm_eval ... --metadata '{"data": "MMedBench/Test"}'""")
    if bool(shots) != bool(train):
        raise UserError("few-shot needs both shots and train in --metadata, zero-shot neither")
    examples = read_items(Path(train) / f"{language}.jsonl") if shots else []
    equal, documents = "keyed" if style == "official" else "either", []  # the defaults of mmed.eval
    for item in read_items(Path(data) / f"{language}.jsonl"):
        choices = candidates(item)
        chosen = pick_examples(examples, item, shots, seed) if shots else []
        documents.append({
            "id": item.key, "prompt": build_few_shot(item, chosen, False, style),
            # of several letters to the end, because A,B begins A,B,C
            "choices": [f" {letters}{AFTER_LETTERS if ',' in letters else ''}" for letters in choices],
            "gold": [place for place, letters in enumerate(choices)
                     if exact_match(letters, item.answer, item.options if equal == "either" else None)],
            "equal_options": equal, "answer": ",".join(item.answer), "language": item.language,
            "question": item.question, "options": json.dumps(item.options, ensure_ascii=False)})
    return {"test": Dataset.from_list(documents)}


def score(document: dict, results: list[str]) -> dict[str, float]:
    """Exact match by our parser and by the published scorer, and whether no answer could be read."""
    options, answer = json.loads(document["options"]), tuple(document["answer"].split(","))
    item = ExamItem(document["question"], options, answer, "", document["language"], document["id"])
    row = text_row(item, "answer", "", cut_at_answer(results[0]), "default", document["equal_options"])
    return {"acc": float(row["correct"]), "acc_official": float(row["official_match"]),
            "unparsed": float(row["status"] == "unparsed")}
