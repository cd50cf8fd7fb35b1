"""Results of several seeds: mean and spread by hand; other differences than the seed are rejected by name."""
import json
import random

import numpy as np
import pytest
from result_folders import make_items, make_result

from mmed.evaluation import seeds
from mmed.evaluation.results import load_results
from mmed.utils.errors import UserError
from mmed.utils.files import read_json, write_json


def make(tmp_path, name: str, seed: int, config=None, **facts) -> str:
    items = make_items(random.Random(0), 8, ("English", "French"))
    folder = make_result(tmp_path / name / "result", items, random.Random(seed),
                         model=str(tmp_path / name / "model"))
    value = read_json(folder / "results.json")
    value["mmed"]["facts"] |= {"seed": seed, "shots": 2} | facts
    write_json(folder / "results.json", value)
    if config:
        write_json(tmp_path / name / "run.json", {"config": config})
    return str(folder)


def test_mean_deviation_and_range_are_those_of_the_summaries(tmp_path, capsys):
    folders = [make(tmp_path, str(seed), seed, {"seed": seed}) for seed in range(3)]
    assert seeds.main([*folders, "--out", str(tmp_path / "out.json")]) == 0
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())["columns"]
    summaries = [load_results(folder)[0]["summary"] for folder in folders]
    for column, kind in {"answer": "accuracy", "BLEU-1|nltk-method1": "text"}.items():
        values = [summary["languages"]["English"][kind][column]["value"] for summary in summaries]
        assert found[column]["English"] == pytest.approx(
            {"mean": np.mean(values), "sd": np.std(values, ddof=1), "low": min(values), "high": max(values)})
        assert f"{100 * np.mean(values):.2f}" in printed


@pytest.mark.parametrize("seed, config, facts, message", [
    (1, {"learning_rate": 1e-5}, {"shots": 3}, r"other/result: differs .* in shots = 2 \(now 3\)"),
    (1, {"learning_rate": 2e-5}, {"model": "2"}, "in training: learning_rate = 1e-05"),
    (1, None, {"model": "2"}, r"model \(no run.json beside it\)"),
    (0, {"learning_rate": 1e-5}, {}, "not even the seed"),
])
def test_what_differs_in_more_than_the_seed_is_rejected_by_name(tmp_path, seed, config, facts, message):
    first = make(tmp_path, "first", 0, {"seed": 0, "learning_rate": 1e-5})
    other = make(tmp_path, "other", seed, config, **facts)
    with pytest.raises(UserError, match=message):
        seeds.main([first, other])
    with pytest.raises(UserError, match="two or more"):
        seeds.main([first])


def test_training_runs_that_differ_in_the_seed_are_accepted(tmp_path):
    folders = [make(tmp_path, str(seed), 0, {"seed": seed, "out": f"runs/{seed}"}, model=str(seed))
               for seed in range(2)]
    assert seeds.main(folders) == 0
