"""The tour's end: one exam question as prompt and target, the answer token by token, its parse, and the
scores worked out by hand.

In: the folder with the models that model_stages.py trained. Out: what the page shows, drawings, and a result
folder.
"""
from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import torch
from corpus_stages import DATA, boundary, shown, table, typed, wrapped
from drawings import label_mask
from model_stages import EXAM_SEQUENCE

from mmed import eval as exam
from mmed.checkpoints.pretrained import load_pretrained
from mmed.data import ExamRows, encode_example
from mmed.evaluation.answer_parser import parse_answer
from mmed.evaluation.results import load_results
from mmed.evaluation.summary import table as result_table
from mmed.generate import encode_prompt, generate
from mmed.languages import get_language
from mmed.metrics import Z_95, bleu_orders, lcs_length, rouge_l, rouge_n, wilson_interval
from mmed.model import KVCache
from mmed.prompts import build_prompt, build_target, read_benchmark

KEY = "insulin"


def run(work: Path) -> tuple[dict[str, str], dict[str, str]]:
    model, tokenizer = load_pretrained(work / "runs" / "full" / "model")
    model.eval()
    values, drawings = prompt_and_mask(tokenizer)
    text, found = written(model, tokenizer)
    values |= found
    exam.main(exam_arguments(work))
    return values | scores(text, work), drawings


def exam_arguments(work: Path) -> list[str]:
    return [
        "--model", f"{work}/runs/full/model", "--data", f"{DATA}/exam/Test", "--out", f"{work}/results/full",
        "--setting", "finetuned", "--mode", "rationale", "--max_new_tokens", "80"
    ]


def item_of(part: str):
    return next(item for item in read_benchmark(DATA / "exam" / part) if item.key == KEY)


def prompt_and_mask(tokenizer) -> tuple[dict[str, str], dict[str, str]]:
    items = read_benchmark(DATA / "exam" / "Train")
    item = item_of("Train")
    prompt, target = build_prompt(item, True), build_target(item, True)
    example, cut = encode_example(item, tokenizer, EXAM_SEQUENCE, rationale=True, style="clean")
    assert not cut
    exam_rows = ExamRows(items, tokenizer, EXAM_SEQUENCE, 0, modes=(True,))
    rows = exam_rows.rows(exam_rows.examples)
    row = rows[0]
    border = example.prompt_length - 1
    own = exam_rows.rows([example])[0]
    assert own.labels[border] == example.ids[example.prompt_length] and (own.labels[:border] < 0).all()
    line = next(
        line for line in (DATA / "exam" / "Train" / "English.jsonl").read_text(encoding="utf-8").splitlines()
        if json.loads(line)["id"] == KEY)
    values = {
        "item_line": wrapped(line), "prompt": wrapped(prompt), "target": target, "prompt_tokens": str(
            example.prompt_length), "target_tokens": str(len(example.ids) - example.prompt_length),
        "example_tokens": str(len(example.ids)), "mask_table": boundary(
            own, tokenizer, border - 4, border + 5), "mask_border": str(border), "mask_end": boundary(
                own, tokenizer,
                len(example.ids) - 6,
                len(example.ids) - 1), "exam_rows": str(len(rows)), "exam_width": str(
                    max(len(r.input_ids) for r in rows)), "exam_examples": str(len(exam_rows.examples)),
        "exam_supervised": str(sum(int((r.labels >= 0).sum()) for r in rows)),
        "row_examples": str(int(row.document_ids.max()) + 1), "exam_filled": str(
            sum(int((r.document_ids >= 0).sum()) for r in rows))
    }
    return values, {"label_mask.svg": label_mask(row, (row.labels >= 0).tolist())}


def written(model, tokenizer) -> tuple[str, dict[str, str]]:
    """The answer one token at a time: each time the whole text goes in again, and a cache gives the same."""
    ids = encode_prompt(tokenizer, build_prompt(item_of("Test"), True))
    prompt_length = len(ids)
    rows, total = [], 0.0
    with torch.no_grad():
        while ids[-1] != tokenizer.eos_id and len(ids) < prompt_length + 80:
            p = model(torch.tensor([ids]))[0, -1].softmax(-1)
            best = p.topk(2)
            token = int(best.indices[0])
            second = f"{shown(tokenizer.piece(int(best.indices[1])))} {float(best.values[1]):.4f}"
            rows.append([len(rows), shown(tokenizer.piece(token)), f"{float(best.values[0]):.4f}", second])
            total += math.log(float(best.values[0]))
            ids.append(token)
    new = ids[prompt_length:-1]
    assert generate(model, [ids[:prompt_length]], 80, end_ids=tokenizer.end_ids) == [new]
    text = tokenizer.decode(new, continued=True)
    parsed = parse_answer(text, item_of("Test").options, rationale_expected=True)
    cache = KVCache(model.config, 1, len(ids), torch.float32, "cpu")
    low = min(rows, key=lambda row: float(row[2]))
    return text, {
        "written_tokens": table(["step", "piece", "probability", "second choice"], rows), "written": text,
        "written_count": str(len(rows)), "written_log": f"{total:.3f}", "written_p": f"{math.exp(total):.3f}",
        "written_least": f"{low[1]} at step {low[0]}", "written_least_p": low[2],
        "cache_shape": "(" + ", ".join(map(str, cache.keys.shape)) + ")",
        "cache_bytes": f"{2 * cache.keys.nbytes:,}", "parsed": wrapped(repr(parsed))
    }


def ngrams(tokens: list[str], n: int) -> Counter:
    return Counter(tuple(tokens[i:i + n]) for i in range(len(tokens) - n + 1))


def scores(text: str, work: Path) -> dict[str, str]:
    item = item_of("Test")
    split = get_language("en").split_words
    candidate = split(parse_answer(text, item.options, rationale_expected=True).rationale)
    reference = split(item.rationale)
    rows, logs = [], 0.0
    penalty = 1.0 if len(candidate) > len(reference) else math.exp(1 - len(reference) / len(candidate))
    orders = []
    for n in range(1, 5):
        shared, all_of_them = (ngrams(candidate, n) & ngrams(reference, n)).total(), len(candidate) - n + 1
        logs += math.log((shared or 0.1) / all_of_them)
        orders.append(penalty * math.exp(logs / n))
        rows.append([n, shared, all_of_them, f"{(shared or 0.1) / all_of_them:.4f}", f"{orders[-1]:.4f}"])
    assert all(abs(a - b) < 1e-12 for a, b in zip(orders, bleu_orders(candidate, reference)))
    common = lcs_length(candidate, reference)
    one, longest = rouge_n(candidate, reference, 1), rouge_l(candidate, reference)
    precision, recall = common / len(candidate), common / len(reference)
    assert abs(longest.f1 - 2 * precision * recall / (precision + recall)) < 1e-12
    own, predictions = load_results(work / "results" / "full")
    predictions = list(predictions)
    right, n = sum(row["correct"] for row in predictions), len(predictions)
    gold = {item.key: ",".join(item.answer) for item in read_benchmark(DATA / "exam" / "Train")}
    assert all(row["parsed"] == gold[row["key"].removesuffix("-moved")]
               for row in predictions), "the page says that letters were learnt by heart"
    low, high = wilson_interval(right, n)
    share, square = right / n, Z_95 ** 2 / n
    centre, half = (share + square / 2) / (1 + square), math.sqrt(share * (1 - share) / n + square /
                                                                  (4 * n)) * Z_95 / (1 + square)
    assert abs(low - (centre - half)) < 1e-12 and abs(high - (centre + half)) < 1e-12
    row = next(row for row in predictions if row["key"] == KEY)
    assert row["scores"][next(name for name in row["scores"] if name.startswith("BLEU-4"))] == orders[3]
    csv = (work / "results" / "full" / "rationale_results.csv").read_text(encoding="utf-8").splitlines()
    return {
        "candidate": " ".join(candidate), "reference": " ".join(reference), "candidate_length": str(
            len(candidate)), "reference_length": str(len(reference)), "penalty": f"{penalty:.4f}",
        "bleu_table": table(["n", "n-grams shared", "n-grams written", "share", "BLEU-n"],
                            rows), "bleu_4": f"{orders[3]:.4f}", "lcs": str(common),
        "rouge_p": f"{precision:.4f}", "rouge_r": f"{recall:.4f}", "rouge_f": f"{longest.f1:.4f}",
        "rouge_1": f"{one.f1:.4f}", "signature_bleu": next(
            name for name in row["scores"] if name.startswith("BLEU-4")), "signature_rouge": next(
                name for name in row["scores"] if name.startswith("ROUGE-L|rouge-score")), "answers": table(
                    ["question", "right", "answered", ""],
                    [[r["key"], r["gold"], r["parsed"], "yes" if r["correct"] else "no"]
                     for r in predictions]), "right": str(right), "items": str(n),
        "share": f"{100 * share:.1f}", "low": f"{100 * low:.1f}", "high": f"{100 * high:.1f}",
        "centre": f"{centre:.4f}", "half_width": f"{half:.4f}", "result_table": result_table(
            own["summary"], "default"), "csv_head": csv[0], "exam_command": typed(
                ["python -m mmed.eval", *exam_arguments(Path("build/tour"))])
    }
