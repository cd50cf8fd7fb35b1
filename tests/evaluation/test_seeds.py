"""Results of several seeds: mean and spread by hand; other differences than the seed are rejected by name."""
import random
from pathlib import Path

import numpy as np
import pytest
from result_folders import make_items, make_result

from mmed.evaluation import seeds
from mmed.evaluation.results import load_prompts, load_results, write_results
from mmed.evaluation.summary import COLUMN_TITLES
from mmed.utils.errors import UserError
from mmed.utils.files import write_json


def make(tmp_path, name: str, seed: int, config=None, **facts) -> str:
    items = make_items(random.Random(0), 8, ("English", "French"))
    folder = make_result(tmp_path / name / "result", items, random.Random(seed),
                         model=str(tmp_path / name / "model"), facts={"seed": seed, "shots": 2} | facts)
    if config:
        write_json(tmp_path / name / "run.json", {"config": config})
    return str(folder)


def test_mean_deviation_and_range_are_those_of_the_summaries(tmp_path, capsys):
    folders = [make(tmp_path, str(seed), seed, {"seed": seed, "out": f"runs/{seed}"}, model=str(seed))
               for seed in range(3)]
    assert seeds.main(folders) == 0
    printed, summaries = capsys.readouterr().out, [load_results(folder)[0]["summary"] for folder in folders]
    found = seeds.spread(summaries)
    for column, kind in {"answer": "accuracy", "BLEU-1|nltk-method1": "text"}.items():
        values = [summary["languages"]["English"][kind][column]["value"] for summary in summaries]
        expected = [np.mean(values), np.std(values, ddof=1), min(values), max(values)]
        assert found[COLUMN_TITLES.get(column, column)]["English"] == pytest.approx(expected)
        assert f"{100 * np.mean(values):.2f}" in printed


def test_a_metric_that_only_some_results_have_is_named_and_orders_have_rows_of_their_own(tmp_path, capsys):
    folders = [make(tmp_path, str(seed), seed) for seed in range(2)]
    for folder, metric in zip(folders, ("BERTScore|f1-x", "BERTScore|f1-y")):
        own, rows = load_results(folder)
        rows = list(rows)
        for row in rows:
            row.get("scores", {})[f"{metric}|tok:x|avg:mean-of-items|v1"] = 0.5
        copies = [row | {"doc": row["doc"] | {"extra": {"option_order": 1}}} for row in rows]
        write_results(Path(folder), [*rows, *copies], load_prompts(folder), own["facts"], own["settings"])
    seeds.main(folders)
    printed = capsys.readouterr().out
    assert "left out: BERTScore|f1-x: only some of the results have it" in printed
    assert "left out: BERTScore|f1-y" in printed and "answer only, options in all orders, x 100" in printed


@pytest.mark.parametrize("seed, config, facts, message", [
    (1, {"learning_rate": 1e-5}, {"shots": 3}, r"other/result: differs .* in shots = 2 \(now 3\)"),
    (1, {"learning_rate": 2e-5}, {"model": "2"}, "in training: learning_rate = 1e-05"),
    (1, None, {"model": "2"}, r"model \(no run.json beside it\)"),
    (0, {"learning_rate": 1e-5, "seed": 0}, {}, "not even the seed"),
    (0, {"learning_rate": 1e-5, "seed": 0}, {"model": "2"}, "not even the seed"),
])
def test_what_differs_in_more_than_the_seed_is_rejected_by_name(tmp_path, seed, config, facts, message):
    first = make(tmp_path, "first", 0, {"seed": 0, "learning_rate": 1e-5})
    other = make(tmp_path, "other", seed, config, **facts)
    with pytest.raises(UserError, match=message):
        seeds.main([first, other])
    with pytest.raises(UserError, match="two or more"):
        seeds.main([first])
