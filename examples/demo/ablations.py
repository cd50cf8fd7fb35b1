"""The paper's ablations in miniature: how much does each part of the corpus and of the fine-tuning data
contribute?

    python -m examples.demo.ablations [--seed 0] [--out demo]

The world, the tokenizer, the base model and the model that read the whole corpus are the demo's
(examples/demo/demo_steps.py): in a folder where `make demo` was run they are there already, else they are
made. Each row differs from another in one thing, as in the paper's table 4:

    corpus        none -> the English part -> books, all languages -> books and filtered web, all languages
    fine-tuning   answers alone -> answers and answers with rationales

Out: the tables in the terminal, OUT/ablations.html and OUT/ablations.json; each model's exam is in
OUT/results. If killed, the same command resumes where it stopped. Order: `steps`, the commands -> `measure`,
accuracies and gains with intervals -> `tables` and `page`.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.pipeline.plan import Step
from examples.demo.demo_steps import (
    LANGUAGES,
    NOTICE,
    command,
    corpus_steps,
    corpus_training,
    exam,
    streams,
    tokenizing,
    training,
)
from mmed.evaluation.compare import paired_bootstrap
from mmed.evaluation.published import ABLATION_MODELS, published_ablation
from mmed.evaluation.results import load_results
from mmed.evaluation.summary import aligned
from mmed.reporting import plots
from mmed.reporting.page import fill_page
from mmed.utils.errors import main_guard
from mmed.utils.files import atomic_write, write_json

# MMedLM: the same epochs for both kinds of fine-tuning data; answers and answers with rationales are twice as
# many examples as answers alone, and so twice as many steps.
TUNING_STEPS = {"answers": 300, "both": 600}
CORPUS_STEPS = 1500  # of the recipe demo_corpus
# A part's share of the corpus's tokens: with this share of the steps, a part is read as often as it is
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
    plan = corpus_steps(out, seed)
    dedup = [["data_prep.dedup", f"{out}/world/raw/books/{code}.jsonl", "--out", f"{out}/corpus/books/{code}"]
             for code in LANGUAGES]
    tokenize = [tokenizing(out, f"corpus/books/{code}/kept", f"books-{code}") for code in LANGUAGES]
    plan.append(Step("books", "token streams of the books alone",
                     [one for both in zip(dedup, tokenize) for one in both], ("tokenizer",)))
    read = {"english": [f"{out}/streams/medical-en"], "quality": streams(out, "books")}
    for row in ROWS:
        if row.model not in ("base", "corpus"):
            trained = corpus_training(out, seed, row.model, read[row.corpus], f"--max_steps={row.steps}")
            plan.append(Step(row.model, f"continued pre-training on the corpus's {CORPORA[row.corpus]}, "
                                        f"{row.steps} steps", [trained], ("base", "books")))
        rationales, mode = ("without", "answer") if row.data == "answers" else ("both", "both")
        tuned = training(out, seed, "demo_full", row.name, f"--model={out}/runs/{row.model}/model",
                         f"--data={out}/world/MMedBench/Train", f"--rationales={rationales}",
                         f"--max_steps={TUNING_STEPS[row.data]}")
        plan.append(Step(row.name, f"fine-tuning of {row.model} on {DATA[row.data]}", [tuned], (row.model,)))
        plan.append(Step(f"exam_{row.name}", f"{row.model}, fine-tuned on {DATA[row.data]}, sits the exam",
                         [exam(out, row.name, row.name, "finetuned", "--mode", mode)], (row.name,)))
    return plan


# ------------------------------------------------------------------------------------------------------------

def percent(score: dict) -> dict[str, float]:
    return {end: 100 * score[end] for end in ("value", "low", "high")}


def measure_row(row: Ablation, own: dict, mode: str) -> dict:
    """Numbers of one result in %, beside the paper's."""
    macro = own["summary"]["macro"]
    text = {metric.split("|")[0]: 100 * score["value"] for metric, score in macro["text"].items()}
    paper = published_ablation()[row.corpus, row.data] if row.printed else {}
    return {
        "corpus": CORPORA[row.corpus], "fine_tuning": DATA[row.data], "corpus_steps": row.steps,
        "result": row.name, "accuracy": percent(macro["accuracy"][mode]),
        "answer_only": percent(macro["accuracy"]["answer"]), "chance": 100 * macro["chance"],
        "languages": {name: percent(part["accuracy"][mode])
                      for name, part in own["summary"]["languages"].items()},
        "rationale": {name: text[name] for name in ("BLEU-1", "ROUGE-1") if mode == "rationale"},
        "paper": {model: list(cells) for model, cells in paper.items()}}


def measure(out: Path) -> dict:
    """Rows (accuracy of both forms of answer, BLEU-1, ROUGE-1, the paper's) and gains with their intervals.

    A row's `accuracy` is that of the form it was taught last: with rationale, or the answer alone where
    fine-tuning showed no rationale.
    """
    rows, hits = [], []
    for row in ROWS:
        own, predictions = load_results(out / "results" / row.name)
        mode = "answer" if row.data == "answers" else "rationale"
        hits.append({(line["language"], line["key"]): float(line["correct"])
                     for line in predictions if line["mode"] == mode})
        rows.append(measure_row(row, own, mode))
    gains = []
    for title, with_it, without in GAINS:
        keys = list(hits[without])
        gap = paired_bootstrap([hits[with_it][key] for key in keys], [hits[without][key] for key in keys],
                               seed=0, groups=[language for language, _ in keys])
        more, less = rows[with_it]["paper"], rows[without]["paper"]
        gains.append({"what": title, "points": 100 * gap.difference, "low": 100 * gap.low,
                      "high": 100 * gap.high, "p": gap.p,
                      "paper": {model: more[model][0] - less[model][0] for model in more if less}})
    return {"questions": len(hits[0]), "rows": rows, "gains": gains}


# ------------------------------------------------------------------------------------------------------------

ROW_HEAD = ("Corpus", "fine-tuning", "corpus steps", "accuracy", "answer only", "BLEU-1", "ROUGE-1")
GAIN_HEAD = ("What is added", "gain")


def row_cells(row: dict) -> list[str]:
    """A row of the first table as texts, the paper's three families at its end: accuracy / BLEU-1 / ROUGE-1
    as printed there.
    """
    score, rationale = row["accuracy"], row["rationale"]
    return [row["corpus"], row["fine_tuning"], f"{row['corpus_steps']:,}",
            f"{score['value']:.1f} [{score['low']:.0f}-{score['high']:.0f}]",
            f"{row['answer_only']['value']:.1f}",
            *(f"{rationale[name]:.1f}" if rationale else "-" for name in ("BLEU-1", "ROUGE-1")),
            *(" / ".join(f"{value:.2f}" for value in row["paper"][model]) if row["paper"] else "-"
              for model in ABLATION_MODELS)]


def gain_cells(gain: dict) -> list[str]:
    return [gain["what"], f"{gain['points']:+.1f} [{gain['low']:+.1f} to {gain['high']:+.1f}]",
            *(f"{gain['paper'][model]:+.2f}" if gain["paper"] else "-" for model in ABLATION_MODELS)]


def tables(found: dict) -> str:
    """Both tables for the terminal."""
    paper = [f"paper: {model}" for model in ABLATION_MODELS]
    rows = aligned([[*ROW_HEAD, *paper], *map(row_cells, found["rows"])])
    gains = aligned([[*GAIN_HEAD, *paper], *map(gain_cells, found["gains"])])
    return (f"{rows}\n\n{gains}\n\n{found['questions']} questions; accuracy in %, macro average [95 % "
            "interval], after a rationale where fine-tuning showed any, else of the answer alone; chance "
            f"{found['rows'][0]['chance']:.0f}. Gains in points of it [95 % interval, paired bootstrap]; the "
            "paper's are of its answers alone.")


def page(found: dict) -> str:
    """Tables and plots in one self-contained file."""
    def bar(place: int, score: dict) -> tuple:
        return plots.colour(place), score["value"], score["low"], score["high"]

    def legend(names: list[str]) -> list[tuple[str, str]]:
        return [(plots.colour(place), name) for place, name in enumerate(names)]

    rows, families = found["rows"], [f"{model}, paper" for model in ABLATION_MODELS]
    chance = rows[0]["chance"]
    beside = []
    for row in rows:
        if row["paper"]:
            theirs = [(plots.colour(place), row["paper"][model][0], None, None)
                      for place, model in enumerate(ABLATION_MODELS, 1)]
            beside.append((f"{row['corpus']},\n{row['fine_tuning']}", chance,
                           [bar(0, row["accuracy"]), *theirs]))
    once = [(f"{row['corpus']},\n{row['corpus_steps']:,} steps", chance, [bar(0, row["accuracy"])])
            for row in (rows[place] for place in ONCE)]
    drawn = [row for row in rows if row["paper"] and row["rationale"]]
    by_language = [(name, chance, [bar(place, row["languages"][name]) for place, row in enumerate(drawn)])
                   for name in drawn[0]["languages"]]
    figures = [("Beside the paper", plots.bars(beside, "accuracy by corpus and fine-tuning data"),
                legend(["this world", *families])),
               ("By language", plots.bars(by_language, "accuracy by language and corpus"),
                legend([row["corpus"] for row in drawn])),
               ("Each part read as often as within the whole",
                plots.bars(once, "accuracy at equal passes"), [])]
    shown = [("Ablations", [*ROW_HEAD, *families], map(row_cells, rows)),
             ("Gains in points of accuracy", [*GAIN_HEAD, *families], map(gain_cells, found["gains"]))]
    return fill_page(Path(__file__).with_name("ablations.html"), title="Ablations in miniature",
                     notice=NOTICE, figures=figures, tables=shown)


def report(out: Path) -> str:
    """Write page and numbers; returns the tables."""
    found = measure(out)
    write_json(out / "ablations.json", found)
    with atomic_write(out / "ablations.html") as file:
        file.write(page(found))
    return tables(found)


def main(arguments: list[str] | None = None) -> int:
    return command("examples.demo.ablations", "The paper's ablations over the demo's world.", steps, report,
                   arguments)


if __name__ == "__main__":
    main_guard(main)
