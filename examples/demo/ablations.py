"""The paper's ablations in miniature: which part of the corpus, and of the fine-tuning data, is worth how
much.

    python -m examples.demo.ablations [--seed 0] [--out demo]

The world, the tokenizer, the base model and the model that read the whole corpus are the demo's
(examples/demo/demo_steps.py): in a folder where `make demo` was run they are there already, else they are
made. Each row differs from another in one thing, as in the paper's table 4:

    corpus        none -> the English part -> books, all languages -> books and filtered web, all languages
    fine-tuning   answers alone -> answers and answers with rationales

Out: the tables in the terminal, OUT/ablations.html and OUT/ablations.json; each model's exam is in
OUT/results. Killed and started again, it goes on where it was. Order: `steps`, the commands -> `measure`,
accuracies and gains with intervals -> `tables` and `page`.
"""
from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from data_prep.pipeline.plan import Step, print_commands
from examples.demo.demo_steps import (
    LANGUAGES,
    NOTICE,
    corpus_training,
    exam,
    parse_options,
    run_demo,
    training,
)
from examples.demo.demo_steps import steps as demo_steps
from mmed.evaluation.published import ABLATION_MODELS, published_ablation
from mmed.evaluation.results import load_results
from mmed.evaluation.significance import paired_bootstrap
from mmed.evaluation.summary import aligned
from mmed.reporting import plots
from mmed.reporting.page import fill_page
from mmed.utils.errors import main_guard
from mmed.utils.files import atomic_write, write_json

# the demo's own steps
SHARED = ("world", "filter", "dedup", "tokenizer", "streams", "school", "exercises", "base", "corpus")
# MMedLM: the same epochs for both kinds of fine-tuning data; answers and answers with rationales are twice as
# many examples as answers
# alone, and so twice as many steps.
TUNING_STEPS = {"answers": 300, "both": 600}
CORPUS_STEPS = 1500  # of the recipe demo_corpus
# Share of the corpus's tokens that a part has: with so many of the steps a part is read as often as it is
# within the whole corpus.
SHARES = {"english": 1 / 6, "quality": 0.37}


@dataclass(frozen=True)
class Ablation:
    """One row: what was read, and what fine-tuning showed."""

    corpus: str   # as in mmed/evaluation/published.py: none, english, quality, all
    data: str     # answers, both
    model: str    # the run that fine-tuning starts from
    steps: int    # of continued pre-training
    printed: bool = True  # the paper has this row

    @property
    def name(self) -> str:
        return f"ablation_{self.data}_{self.model}"


CORPORA = {
    "none": "no corpus", "english": "English part", "quality": "books", "all": "books and filtered web"
}
DATA = {"answers": "answers", "both": "answers and rationales"}
ROWS = (
    Ablation("none", "answers", "base", 0),
    Ablation("none", "both", "base", 0),
    Ablation("english", "both", "english", CORPUS_STEPS),
    Ablation("quality", "both", "quality", CORPUS_STEPS),
    Ablation("all", "both", "corpus", CORPUS_STEPS),
    # Not in the paper: the parts read as often as within the whole, and so for fewer steps; answers alone on
    # top of the corpus.
    Ablation("english", "both", "english_once", round(CORPUS_STEPS * SHARES["english"]), False),
    Ablation("quality", "both", "quality_once", round(CORPUS_STEPS * SHARES["quality"]), False),
    Ablation("all", "answers", "corpus", CORPUS_STEPS, False),
)
# What a change is worth: (in words, the row with it, the row without it), by their places in ROWS.
GAINS = (
    ("rationales in fine-tuning, no corpus", 1, 0),
    ("English part of the corpus", 2, 1),
    ("books in all languages", 3, 1),
    ("filtered web on top of books", 4, 3),
    ("whole corpus", 4, 1),
    ("English part, read as often as within the whole", 5, 1),
    ("filtered web on top of books, these read as often", 4, 6),
    ("rationales in fine-tuning, whole corpus", 4, 7),
)
ONCE = (1, 5, 6, 4)  # rows that read each page of their part as often as the whole corpus's row does


def steps(out: str, seed: int) -> list[Step]:
    """The demo up to the model that read the corpus, then what the ablations need."""
    plan = [step for step in demo_steps(out, seed) if step.name in SHARED]
    books = [f"{out}/streams/books-{code}" for code in LANGUAGES]
    plan.append(
        Step("books", "token streams of the books alone", [
            command for code, stream in zip(LANGUAGES, books) for command in ([
                "data_prep.dedup", f"{out}/world/raw/books/{code}.jsonl", "--out",
                f"{out}/corpus/books/{code}"
            ], [
                "data_prep.tokenize_corpus", f"{out}/corpus/books/{code}/kept", "--tokenizer",
                f"{out}/tokenizer", "--held_out", "0.02", "--out", stream
            ])
        ], ("tokenizer", )))
    read = {"english": [f"{out}/streams/medical-en"], "quality": books}
    for row in ROWS:
        if row.model not in ("base", "corpus"):
            plan.append(
                Step(row.model,
                     f"continued pre-training on the corpus's {CORPORA[row.corpus]}, {row.steps} steps",
                     [corpus_training(out, seed, row.model, read[row.corpus], f"--max_steps={row.steps}")],
                     ("base", "books")))
        plan.append(
            Step(row.name, f"fine-tuning of {row.model} on {DATA[row.data]}", [
                training(out, seed, "demo_full", row.name, f"--model={out}/runs/{row.model}/model",
                         f"--data={out}/world/MMedBench/Train",
                         f"--rationales={'without' if row.data == 'answers' else 'both'}",
                         f"--max_steps={TUNING_STEPS[row.data]}")
            ], (row.model, )))
        plan.append(
            Step(f"exam_{row.name}", f"{row.model}, fine-tuned on {DATA[row.data]}, sits the exam", [
                exam(out, row.name, row.name, "finetuned", "--mode",
                     "answer" if row.data == "answers" else "both")
            ], (row.name, )))
    return plan


# ------------------------------------------------------------------------------------------------------------

def measure(out: Path) -> dict:
    """All numbers, in %: rows (accuracy of both forms of answer, BLEU-1, ROUGE-1, the paper's) and gains with
    their intervals.

    A row's `accuracy` is that of the form it was taught last: with rationale, or the answer alone where
    fine-tuning showed no rationale.
    """
    paper = published_ablation()
    rows, hits = [], []
    for row in ROWS:
        own, predictions = load_results(out / "results" / row.name)
        mode = "answer" if row.data == "answers" else "rationale"
        hits.append({(line["language"], line["key"]): float(line["correct"])
                     for line in predictions if line["mode"] == mode})
        macro, languages = own["summary"]["macro"], own["summary"]["languages"]
        scores = {kind: {end: 100 * macro["accuracy"][kind][end] for end in ("value", "low", "high")}
                  for kind in ("answer", "rationale") if kind in macro["accuracy"]}
        text = {metric.split("|")[0]: 100 * score["value"] for metric, score in macro["text"].items()}
        rows.append({
            "corpus": CORPORA[row.corpus], "fine_tuning": DATA[row.data], "corpus_steps": row.steps,
            "result": row.name, "accuracy": scores[mode], "answer_only": scores["answer"],
            "chance": 100 * macro["chance"], "languages": {
                name: {end: 100 * part["accuracy"][mode][end]
                       for end in ("value", "low", "high")}
                for name, part in languages.items()
            }, "rationale": {name: text[name]
                             for name in ("BLEU-1", "ROUGE-1") if mode == "rationale"},
            "paper": {model: list(cells)
                      for model, cells in paper[row.corpus, row.data].items()} if row.printed else {}
        })
    gains = []
    for title, with_it, without in GAINS:
        keys = list(hits[without])
        gap = paired_bootstrap([hits[with_it][key] for key in keys], [hits[without][key] for key in keys],
                               seed=0,
                               groups=[language for language, _ in keys])
        there = [rows[place]["paper"] for place in (with_it, without)]
        gains.append({
            "what": title, "points": 100 * gap.difference, "low": 100 * gap.low, "high": 100 * gap.high,
            "p": gap.p,
            "paper": {model: cells[0] - there[1][model][0]
                      for model, cells in there[0].items() if there[1]}
        })
    return {"questions": len(hits[0]), "rows": rows, "gains": gains}


# ------------------------------------------------------------------------------------------------------------

ROW_HEAD = ("Corpus", "fine-tuning", "corpus steps", "accuracy", "answer only", "BLEU-1", "ROUGE-1")
GAIN_HEAD = ("What is added", "gain")


def row_cells(row: dict) -> list[str]:
    """A row of the first table as texts, the paper's three families at its end: accuracy / BLEU-1 / ROUGE-1
    as printed there.
    """
    score = row["accuracy"]
    return [
        row["corpus"], row["fine_tuning"], f"{row['corpus_steps']:,}",
        f"{score['value']:.1f} [{score['low']:.0f}-{score['high']:.0f}]",
        f"{row['answer_only']['value']:.1f}",
        *(f"{row['rationale'][name]:.1f}" if name in row["rationale"] else "-"
          for name in ("BLEU-1", "ROUGE-1")),
        *(" / ".join(f"{value:.2f}" for value in row["paper"][model]) if row["paper"] else "-"
          for model in ABLATION_MODELS)
    ]


def gain_cells(gain: dict) -> list[str]:
    return [gain["what"], f"{gain['points']:+.1f} [{gain['low']:+.1f} to {gain['high']:+.1f}]",
            *(f"{gain['paper'][model]:+.2f}" if gain["paper"] else "-" for model in ABLATION_MODELS)]


def tables(found: dict) -> str:
    """Both tables for the terminal."""
    paper = [f"paper: {model}" for model in ABLATION_MODELS]
    return (
        aligned([[*ROW_HEAD, *paper], *map(row_cells, found["rows"])]) + "\n\n" +
        aligned([[*GAIN_HEAD, *paper], *map(gain_cells, found["gains"])]) +
        f"\n\n{found['questions']} questions; accuracy in %, macro average [95 % interval], after a "
        f"rationale where fine-tuning showed any, else of the "
        f"answer alone; chance {found['rows'][0]['chance']:.0f}. Gains in points of it [95 % interval, "
        f"paired bootstrap]; the paper's are of its answers alone."
    )


def page(found: dict) -> str:
    """Tables and plots in one self-contained file."""
    def bar(place: int, score: dict) -> tuple:
        return plots.colour(place), score["value"], score["low"], score["high"]

    rows, families = found["rows"], [f"{model}, paper" for model in ABLATION_MODELS]
    chance = rows[0]["chance"]
    beside = [(f"{row['corpus']},\n{row['fine_tuning']}", chance,
               [bar(0, row["accuracy"]), *((plots.colour(place), row["paper"][model][0], None, None)
                                           for place, model in enumerate(ABLATION_MODELS, 1))])
              for row in rows if row["paper"]]
    once = [(f"{row['corpus']},\n{row['corpus_steps']:,} steps", chance, [bar(0, row["accuracy"])])
            for row in (rows[place] for place in ONCE)]
    drawn = [row for row in rows if row["paper"] and row["rationale"]]
    by_language = [(name, chance, [bar(place, row["languages"][name]) for place, row in enumerate(drawn)])
                   for name in drawn[0]["languages"]]
    figures = [("Beside the paper", plots.bars(beside, "accuracy by corpus and fine-tuning data"),
                _legend(["this world", *families])),
               ("By language", plots.bars(by_language, "accuracy by language and corpus"),
                _legend([row["corpus"] for row in drawn])),
               ("Each part read as often as within the whole", plots.bars(once,
                                                                          "accuracy at equal passes"), [])]
    tables = [("Ablations", [*ROW_HEAD, *families], [row_cells(row) for row in rows]),
              ("Gains in points of accuracy", [*GAIN_HEAD,
                                               *families], [gain_cells(gain) for gain in found["gains"]])]
    return fill_page(Path(__file__).with_name("ablations.html"),
                     title="Ablations in miniature",
                     notice=NOTICE,
                     figures=figures,
                     tables=tables)


def _legend(names: list[str]) -> list[tuple[str, str]]:
    return [(plots.colour(place), name) for place, name in enumerate(names)]


def main(arguments: list[str] | None = None) -> int:
    options = parse_options("examples.demo.ablations", "The paper's ablations over the demo's world.",
                            arguments)
    plan = steps(str(options.out), options.seed)
    if options.list:
        print_commands(plan)
        return 0
    begun = time.time()
    seconds = run_demo(options.out, plan)

    found = measure(options.out)
    write_json(options.out / "ablations.json", found)
    with atomic_write(options.out / "ablations.html") as file:
        file.write(page(found))
    print(tables(found))
    print(
        f"\n{NOTICE}\nfinished in {time.time() - begun:.0f} s ({seconds:.0f} s of steps); the page is "
        f"{options.out}/ablations.html"
    )
    return 0


if __name__ == "__main__":
    main_guard(main)
