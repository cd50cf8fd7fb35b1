"""The tour's end: one exam question as prompt and target, the answer token by token, its parse, and the
scores worked out by hand.

In: the folder with the models that model_stages.py trained. Out: what the page shows, drawings, and a result
folder.
"""
from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from corpus_stages import DATA, boundary, shown, table, typed, wrapped
from drawings import label_mask
from model_stages import EXAM_SEQUENCE, SHOWN_AT, shape_of

from mmed import eval as exam
from mmed.checkpoints.pretrained import load_pretrained
from mmed.data import ExamRows, encode_example
from mmed.evaluation.answer_parser import parse_answer
from mmed.evaluation.results import load_results
from mmed.evaluation.summary import table as result_table
from mmed.generate import encode_prompt, generate
from mmed.languages import get_language
from mmed.metrics import Z_95, bleu_orders, lcs_length, ngram_matches, rouge_l, rouge_n, wilson_interval
from mmed.model import KVCache
from mmed.prompts import ExamItem, build_prompt, build_target, read_benchmark

KEY = "insulin"


def run(work: Path) -> dict[str, object]:
    model, tokenizer = load_pretrained(work / "runs" / "full" / "model")
    text, values = written(model.eval(), tokenizer)
    exam.main(exam_arguments(work))
    scores, found = rationale_scores(text), result(work)
    assert f"{found['bleu_4']:.4f}" in scores["bleu_table"]  # the exam's is the one by hand
    return (prompt_and_mask(tokenizer) | values | scores | found
            | {"exam_command": typed(["python -m mmed.eval", *exam_arguments(SHOWN_AT)])})


def exam_arguments(work: Path) -> list[str]:
    return ["--model", f"{work}/runs/full/model", "--data", f"{DATA}/exam/Test",
            "--out", f"{work}/results/full", "--setting", "finetuned", "--mode", "rationale",
            "--max_new_tokens", "80"]


def item_of(part: str) -> ExamItem:
    return next(item for item in read_benchmark(DATA / "exam" / part) if item.key == KEY)


def prompt_and_mask(tokenizer) -> dict[str, object]:
    item = item_of("Train")
    example, cut = encode_example(item, tokenizer, EXAM_SEQUENCE, rationale=True, style="clean")
    assert not cut
    exam_rows = ExamRows(read_benchmark(DATA / "exam" / "Train"), tokenizer, EXAM_SEQUENCE, 0, modes=(True,))
    rows = exam_rows.rows(exam_rows.examples)
    own = exam_rows.rows([example])[0]
    length, border = len(example.ids), example.prompt_length - 1
    assert own.labels[border] == example.ids[example.prompt_length] and (own.labels[:border] < 0).all()
    lines = (DATA / "exam" / "Train" / "English.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "item_line": wrapped(next(line for line in lines if json.loads(line)["id"] == KEY)),
        "prompt": wrapped(build_prompt(item, True)), "target": build_target(item, True),
        "prompt_tokens": example.prompt_length, "target_tokens": length - example.prompt_length,
        "example_tokens": length, "mask_border": border,
        "mask_table": boundary(own, tokenizer, border - 4, border + 5),
        "mask_end": boundary(own, tokenizer, length - 6, length - 1),
        "exam_rows": len(rows), "exam_examples": len(exam_rows.examples),
        "exam_width": max(len(row) for row in rows),
        "exam_supervised": sum((row.labels >= 0).sum() for row in rows),
        "exam_filled": sum((row.document_ids >= 0).sum() for row in rows),
        "row_examples": rows[0].document_ids.max() + 1,
        "label_mask.svg": label_mask(rows[0])}


@torch.no_grad()
def written(model, tokenizer) -> tuple[str, dict[str, object]]:
    """The answer one token at a time: each time the whole text goes in again, and a cache gives the same."""
    item = item_of("Test")
    prompt = encode_prompt(tokenizer, build_prompt(item, True))
    ids, rows, total = list(prompt), [], 0.0
    while ids[-1] != tokenizer.eos_id and len(ids) < len(prompt) + 80:
        best = model(torch.tensor([ids]))[0, -1].softmax(-1).topk(2)
        (token, second), (p, second_p) = best.indices.tolist(), best.values.tolist()
        rows.append([len(rows), shown(tokenizer.piece(token)), f"{p:.4f}",
                     f"{shown(tokenizer.piece(second))} {second_p:.4f}"])
        total += math.log(p)
        ids.append(token)
    new = ids[len(prompt):-1]
    assert generate(model, [prompt], 80, end_ids=tokenizer.end_ids) == [new]
    text = tokenizer.decode(new, continued=True)
    cache = KVCache(model.config, 1, len(ids), torch.float32, "cpu")
    least = min(rows, key=lambda row: float(row[2]))
    return text, {
        "written_tokens": table(["step", "piece", "probability", "second choice"], rows), "written": text,
        "written_count": len(rows), "written_log": total, "written_p": math.exp(total),
        "written_least": f"{least[1]} at step {least[0]}", "written_least_p": least[2],
        "cache_shape": shape_of(cache.keys), "cache_bytes": 2 * cache.keys.nbytes,
        "parsed": wrapped(repr(parse_answer(text, item.options, rationale_expected=True)))}


def rationale_scores(text: str) -> dict[str, object]:
    """BLEU and ROUGE of the rationale in `text`, by hand."""
    item, split = item_of("Test"), get_language("en").split_words
    candidate = split(parse_answer(text, item.options, rationale_expected=True).rationale)
    reference = split(item.rationale)
    rows, logs = [], 0.0
    penalty = 1.0 if len(candidate) > len(reference) else math.exp(1 - len(reference) / len(candidate))
    for n, bleu in enumerate(bleu_orders(candidate, reference), 1):
        shared, total = ngram_matches(candidate, reference, n), len(candidate) - n + 1
        logs += math.log((shared or 0.1) / total)
        assert abs(penalty * math.exp(logs / n) - bleu) < 1e-12
        rows.append([n, shared, total, f"{(shared or 0.1) / total:.4f}", f"{bleu:.4f}"])
    common, longest = lcs_length(candidate, reference), rouge_l(candidate, reference)
    precision, recall = common / len(candidate), common / len(reference)
    assert abs(longest.f1 - 2 * precision * recall / (precision + recall)) < 1e-12
    return {
        "candidate": " ".join(candidate), "reference": " ".join(reference),
        "candidate_length": len(candidate), "reference_length": len(reference), "penalty": penalty,
        "bleu_table": table(["n", "n-grams shared", "n-grams written", "share", "BLEU-n"], rows),
        "lcs": common, "rouge_p": precision, "rouge_r": recall, "rouge_f": longest.f1,
        "rouge_1": rouge_n(candidate, reference, 1).f1}


def result(work: Path) -> dict[str, object]:
    """The exam's result folder, and its interval by hand."""
    folder = work / "results" / "full"
    own, rows = load_results(folder)
    rows = list(rows)
    gold = {item.key: ",".join(item.answer) for item in read_benchmark(DATA / "exam" / "Train")}
    assert all(row["parsed"] == gold[row["key"].removesuffix("-moved")]
               for row in rows), "the page says that letters were learnt by heart"
    right, n = sum(row["correct"] for row in rows), len(rows)
    share, square = right / n, Z_95 ** 2 / n
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) / n + square / (4 * n)) * Z_95 / (1 + square)
    low, high = wilson_interval(right, n)
    assert abs(low - (centre - half)) < 1e-12 and abs(high - (centre + half)) < 1e-12
    scores = next(row["scores"] for row in rows if row["key"] == KEY)
    bleu, rouge = (next(name for name in scores if name.startswith(start))
                   for start in ("BLEU-4", "ROUGE-L|rouge-score"))
    csv = (folder / "rationale_results.csv").read_text(encoding="utf-8")
    return {
        "answers": table(["question", "right", "answered", ""],
                         [[row["key"], row["gold"], row["parsed"], "yes" if row["correct"] else "no"]
                          for row in rows]),
        "right": right, "items": n, "share": 100 * share, "low": 100 * low, "high": 100 * high,
        "centre": centre, "half_width": half, "signature_bleu": bleu, "bleu_4": scores[bleu],
        "signature_rouge": rouge, "result_table": result_table(own["summary"], "default"),
        "csv_head": csv.splitlines()[0]}
