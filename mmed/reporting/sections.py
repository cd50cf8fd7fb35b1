"""The sections of a report, in the order in which they stand on the page: one function each, from numbers to markup.

In: what mmed/reporting/read_results.py read, the tables of mmed/reporting/tables.py. Out: <section> elements as text. Everything that came from a file
is escaped on its way in. Plots are drawn by mmed/reporting/plots.py; the page around the sections is made by mmed/reporting/report.py.
"""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from mmed.evaluation.published import NOTES
from mmed.metrics import wilson_interval
from mmed.reporting import plots
from mmed.reporting.plots import escape
from mmed.reporting.read_results import SETTINGS, Corpus, Questions, Result, Run, differences
from mmed.reporting.tables import ACCURACY_TITLES, Cell, Row, Table, tables
from mmed.utils.untrusted import as_name

PARTS = {"strict": "c0", "lenient": "c2", "unparsed": "grey"}  # how an answer was read -> colour of its share
REASONS = 8  # reasons listed under a step of the corpus
LETTERS = 8  # rows of a confusion of letters
SIDE_BY_SIDE = 2  # models whose answers are shown under a question until others are chosen


# --------------------------------------------------------------------------------------------------------------- pieces

def section(name: str, title: str, *parts: str) -> str:
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n' + "\n".join(part for part in parts if part) + "\n</section>\n"


def note(words: str) -> str:
    return f'<p class="note">{escape(words)}</p>'


def figure(title: str, drawing: str, caption: str = "") -> str:
    return f"<figure><h3>{escape(title)}</h3>{drawing}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def folded(title: str, *parts: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>" if any(parts) else ""


def legend(entries: Sequence[tuple[str, str]]) -> str:
    return '<ul class="legend">' + "".join(f'<li><span class="swatch {css}"></span>{escape(name)}</li>' for css, name in entries) + "</ul>"


def grid(label: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table of markup: heads, and rows of a name and whole <td>."""
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    lines = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(row[1:])}</tr>' for row in rows)
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table class="plain"><thead><tr>{columns}</tr></thead>'
            f"<tbody>{lines}</tbody></table></div>")


def names_of(results: Sequence[Result]) -> dict[str, int]:
    """Name -> colour: a model keeps its colour through all settings."""
    return {name: index for index, name in enumerate(dict.fromkeys(result.name for result in results))}


def full_name(result: Result) -> str:
    return f"{result.name} · {SETTINGS[result.setting]}"


# --------------------------------------------------------------------------------------------------------------- tables

def table_html(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}' + (f"<small>n = {n:,}</small>" if n is not None else "") + "</th>"
                   for name, n in zip(table.columns, table.sizes, strict=True))
    lines = []
    for heading, rows in table.groups:
        if heading:
            lines.append(f'<tr class="heading"><th colspan="{len(table.columns) + 1}" scope="colgroup">{escape(heading)}</th></tr>')
        lines += [_row_html(row, table.decimals) for row in rows]
    return (f'<h3>{escape(table.title)}, %</h3>{note(table.note)}<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
            f'<table><thead><tr><th scope="col">Model</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>')


def _row_html(row: Row, decimals: int) -> str:
    name = {"chance": "Chance level", "published": f'{escape(row.name)} <span class="tag">published</span>'}.get(row.kind, f"<bdi>{escape(row.name)}</bdi>")
    places = 2 if row.kind == "published" else decimals  # as printed in the paper
    return f'<tr class="{row.kind}"><th scope="row">{name}</th>{"".join(_cell_html(cell, places) for cell in row.cells)}</tr>'


def _cell_html(cell: Cell | None, decimals: int) -> str:
    if cell is None:
        return "<td>–</td>"
    value = f"{cell.value:.{decimals}f}"
    value = f"<strong>{value}</strong>" if cell.best else value
    if cell.at_chance:
        value = f'<span title="the interval holds the chance level">~&#8202;{value}</span>'
    return f"<td>{value}" + (f"<small>{cell.low:.1f}–{cell.high:.1f}</small>" if cell.low is not None and cell.high is not None else "") + "</td>"


def results_section(results: Sequence[Result], with_published: bool) -> str:
    made = tables(results, with_published)
    words = ("Below each number its 95 % interval. Bold: the best of its column. ~ : the interval holds the chance level, so the number does not tell "
             "the model from guessing. The macro average is the plain mean of the languages.")
    rest = [table for table in made if not table.main]
    shown, extra = [], ""
    if with_published:
        words += " Rows marked as published are the paper's, under the setting that the paper gives; they take no part in the comparison."
        extra = folded("About the published rows", "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in NOTES) + "</ul>")
    for table in (table for table in made if table.main):
        if shown and any(row.kind == "published" for _, rows in table.groups for row in rows):  # one table of that length is enough at once
            shown += [table_html(table.ours()), folded(f"{table.title}, with the published rows", table_html(table))]
        else:
            shown.append(table_html(table))
    return section("results", "Results", note(words), *shown, extra, folded("All other metrics", *(table_html(table) for table in rest)))


# --------------------------------------------------------------------------------------------------------------- plots

def bars_section(results: Sequence[Result]) -> str:
    colours, drawn, profiles = names_of(results), [], []
    for setting, heading in SETTINGS.items():
        for headline in dict.fromkeys(result.headline for result in results):
            rows = [result for result in results if result.setting == setting and result.headline == headline]
            if not rows:
                continue
            groups = []
            for name in (*rows[0].summary["languages"], ""):
                parts = [result.summary["languages"][name] if name else result.summary["macro"] for result in rows]
                scores = [part["accuracy"][headline] for part in parts]
                groups.append((name or "Macro average", f"n = {parts[0]['n']:,}", 100 * parts[0]["chance"], [
                    (colours[result.name], result.name, 100 * score["value"], *(None if score[end] is None else 100 * score[end] for end in ("low", "high")))
                    for result, score in zip(rows, scores)]))
            drawing = plots.bars(groups, f"{heading}: accuracy by language")
            drawn.append(figure(heading, drawing, escape(ACCURACY_TITLES[headline])))
            *axes, _ = groups  # the last is the macro average
            if len(axes) > 2:
                series = [(colours[result.name], result.name, [part["accuracy"][headline]["value"] * 100 for part in result.summary["languages"].values()])
                          for result in rows]
                drawing = plots.radar([name for name, *_ in axes], series, [chance for _, _, chance, _ in axes], f"{heading}: profile over the languages")
                profiles.append(figure(heading, drawing, escape(ACCURACY_TITLES[headline])))
    key = legend([*((plots.colour(index), name) for name, index in colours.items()), ("dash", "chance level")])
    both = f'<div class="plots">{"".join(drawn)}</div>'
    if profiles:
        both += f'<h3>Profiles over the languages</h3>{note("0 to 100 % from the middle outwards.")}<div class="plots">{"".join(profiles)}</div>'
    return section("languages", "Accuracy by language", note("Thin lines are 95 % intervals."), key, both)


def difference_section(results: Sequence[Result]) -> str:
    found = differences(results)
    if not found:
        return ""
    rows = []
    for first, other, gap, p in found:
        cells = [f"<td>{100 * gap.difference:+.1f}<small>{100 * gap.low:+.1f} to {100 * gap.high:+.1f}</small></td>", f"<td>{_p(gap.p)}</td>",
                 f"<td>{_p(p)}</td>"]
        rows.append([f"<bdi>{escape(other.name)}</bdi> against <bdi>{escape(first.name)}</bdi><br>"
                     f'<small class="muted">{escape(SETTINGS[first.setting])}</small>', *cells])
    words = ("In each setting, every model against the first one, on the same questions: difference of the macro averages in points with its paired "
             "bootstrap interval, its p, and the p of McNemar's exact test over all questions.")
    return section("differences", "Are the differences real?", note(words), grid("Differences", ["", "points", "p, bootstrap", "p, McNemar"], rows))


def _p(value: float) -> str:
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"


def answers_section(results: Sequence[Result]) -> str:
    modes = {"answer": "Answer only", "rationale": "Rationale before the answer"}
    rows = {words: [(full_name(result), result.summary["micro"]["parse"][mode]) for result in results if mode in result.summary["micro"]["parse"]]
            for mode, words in modes.items()}
    parse = ""
    if any(rows.values()):
        text = ("Strict: the answer stands in the form the prompt asks for. Lenient: it was read from free text. Unparsed: no answer was found, "
                "which counts as wrong.")
        parse = (f"<h3>How the answers were read</h3>{note(text)}" + legend([(css, part) for part, css in PARTS.items()]) + '<div class="plots">'
                 + "".join(figure(words, plots.shares(part, PARTS, f"shares of answers by how they were read, {words}")) for words, part in rows.items()
                           if part) + "</div>")
    drawn = []
    for result in results:
        rights = sorted({right for right, _ in result.tally.letters})[:LETTERS]
        answered = Counter()
        for (_, answer), n in result.tally.letters.items():
            answered[answer] += n
        letters = sorted({*rights, *(answer for answer, _ in answered.most_common(LETTERS))} - {"several", "none"})[:LETTERS]
        if rights:
            columns = [*letters, *(kind for kind in ("several", "none") if answered[kind])]
            drawn.append(figure(full_name(result), plots.matrix(rights, columns, result.tally.letters, f"letters of {result.name}", "right ↓   answered →")))
    confusion = ""
    if drawn:
        text = ("Questions with one right answer. Rows are the right letter, columns the answered one, framed where they agree; a dark column is a letter "
                f"the model prefers whatever is asked. At most {LETTERS} letters are drawn.")
        confusion = f'<h3>Which letters are confused</h3>{note(text)}<div class="plots">{"".join(drawn)}</div>'
    return section("answers", "What the answers look like", parse, confusion)


def kinds_section(results: Sequence[Result]) -> str:
    """Accuracy by kind of question: one or several right answers, images, number of options, topic."""
    head = ["", "n", *(f"<bdi>{escape(result.name)}</bdi><small>{escape(SETTINGS[result.setting])}</small>" for result in results)]
    labels = {"single": "one right answer", "multiple": "several right answers", "text_only": "no image needed", "image_dependent": "needs an image"}
    kinds = []
    for kind, label in labels.items():
        scores = [result.summary["micro"].get(kind, {}).get(result.headline) for result in results]
        if all(score and "n" in score and "right" in score for score in scores):
            kinds.append((label, [(score["right"], score["n"]) for score in scores]))
    by_options = _by_key([result.tally.options for result in results])
    topics = sorted(_by_key([result.tally.topics for result in results]), key=lambda row: -row[1][0][1])
    parts = [_counts_grid("Answers and images", head, kinds), _counts_grid("Number of options", head, [(f"{key} options", c) for key, c in by_options]),
             _counts_grid("Topics", head, [(str(key), c) for key, c in topics])]
    if not any(parts):
        return ""
    return section("kinds", "Kinds of questions", note("Headline accuracy in % over all languages, with Wilson's 95 % interval; the darker, the higher."), *parts)


def _by_key(counters: Sequence[Counter]) -> list[tuple[object, list[tuple[int, int]]]]:
    """(key, [(right, n) of each result]) for counters of (key, right)."""
    keys = sorted({key for counter in counters for key, _ in counter})
    return [(key, [(counter[key, True], counter[key, True] + counter[key, False]) for counter in counters]) for key in keys] if len(keys) > 1 else []


def _counts_grid(title: str, head: Sequence[str], rows: Sequence[tuple[str, list[tuple[int, int]]]]) -> str:
    lines = []
    for label, counts in rows:
        cells = [f"<td>{counts[0][1]:,}</td>"]
        for right, n in counts:
            low, high = wilson_interval(right, n) if n else (0, 0)
            share = right / n if n else 0
            cells.append(f'<td class="heat{min(5, int(share * 6))}">{100 * share:.1f}<small>{100 * low:.1f}–{100 * high:.1f}</small></td>' if n else "<td>–</td>")
        lines.append([escape(label), *cells])
    return f"<h3>{escape(title)}</h3>" + grid(title, head, lines) if lines else ""


def runs_section(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    colours = {name: plots.colour(index) for index, name in enumerate(dict.fromkeys(name for run in runs for name in run.validation))}
    drawn = []
    for run in runs:
        config, log = run.facts["config"], run.loss
        series = [("train", "training", plots.thin(log))] if log else []
        series += [(f"{colours[name]} dots", name, points) for name, points in run.validation.items()]
        facts = [as_name(run.facts.get("recipe") or config.get("task") or ""), f"{as_name(run.facts.get('steps'))} steps planned",
                 f"{log[-1][0]:,.0f} target tokens" if log else "", f"last loss {log[-1][1]:.3f}" if log else "",
                 f"{run.tokens_per_second:,.0f} tokens/s" if run.tokens_per_second else "",
                 f"{as_name(run.facts.get('world_size'))} × {as_name(run.facts.get('device'))}", "" if run.finished else "not finished", *run.remarks]
        for name, points in run.validation.items():
            if len(points) > 1 and points[0][0] == 0:
                before, after = points[0][1], points[-1][1]
                facts.append(f"validation loss {name} {before:.3f} → {after:.3f}" + (" (rose)" if after > before else ""))
        drawing = plots.curves(series, "target tokens", "loss, nats per token", f"loss of {run.name}") if series else ""
        drawn.append(figure(run.name, drawing, escape(" · ".join(fact for fact in facts if fact))))
    words = "Training loss (thin grey; each point is the mean of neighbouring steps where there are many) and validation loss by language, from before the first step."
    return section("training", "Training", note(words), f'<div class="plots">{"".join(drawn)}</div>')


def corpus_section(corpus: Corpus) -> str:
    drawn = []
    for step, places in corpus.steps.items():
        came, kept = (sum(funnel[side] for _, funnel in places) for side in ("in", "out"))
        reasons: Counter = Counter()
        for _, funnel in places:
            reasons += funnel["dropped"]
        listed = [f"<li>{escape(reason)}: {n:,}</li>" for reason, n in reasons.most_common(REASONS)]
        if len(reasons) > REASONS:
            listed.append(f"<li>{len(reasons) - REASONS} other reasons: {sum(reasons.values()) - sum(n for _, n in reasons.most_common(REASONS)):,}</li>")
        caption = f"{came:,} documents in, {kept:,} kept" + (f" ({100 * kept / came:.1f} %)" if came else "")
        drawing = plots.funnel([(place, funnel["in"], funnel["out"]) for place, funnel in places], f"{step}: documents in and kept")
        drawn.append(figure(step, drawing, escape(caption) + (f'<ul class="reasons">{"".join(listed)}</ul>' if listed else "")))
    if corpus.streams:
        sources = list(dict.fromkeys(source for _, stream in corpus.streams for by_source in stream["counts"].values() for source in by_source))
        classes = {source: plots.colour(index) for index, source in enumerate(sources)}
        for place, stream in corpus.streams:
            rows = list(stream["counts"].items())
            drawing = plots.amounts([(name or "no language", by_source) for name, by_source in rows], classes, f"tokens of {place}") if rows else ""
            caption = f"{stream['tokens']:,} tokens in {stream['documents']:,} documents, tokenizer {stream['tokenizer'][:12]}"
            drawn.append(figure(f"Tokens of {place}", drawing, escape(caption) + legend([(classes[source], source or "no source") for source in sources])))
    if not drawn:
        return ""
    return section("corpus", "Corpus", note("Documents of each step: pale what came in, full what was kept, and why the rest was dropped."),
                   f'<div class="plots">{"".join(drawn)}</div>')


# ------------------------------------------------------------------------------------------------------------ questions

def questions_section(results: Sequence[Result], questions: Questions) -> str:
    items = questions.items.values()
    if not items:
        return ""
    shown: Counter = Counter(item["language"] for item in items)
    total = sum(questions.total.values())
    words = f"All {total:,} questions." if len(items) == total else (
        f"The first {max(shown.values()):,} questions of each language, {len(items):,} of {total:,} in all; the tables count all of them.")

    def select(name: str, label: str, choices: Sequence[tuple[str, str]]) -> str:
        return f'<label>{label}<select id="{name}">' + "".join(f'<option value="{escape(value)}">{escape(words)}</option>' for value, words in choices) + "</select></label>"

    outcomes = [("", "any answer")]
    if len(results) > 1:
        outcomes += [("differ", "the models disagree"), ("all", "all right"), ("none", "all wrong")]
    for index, result in enumerate(results):
        outcomes += [(f"right:{index}", f"{full_name(result)}: right"), (f"wrong:{index}", f"{full_name(result)}: wrong")]
    topics = sorted({item["topic"] for item in items} - {""})
    controls = [select("language", "Language", [("", "all"), *((name, f"{name} ({n})") for name, n in shown.items())]),
                select("topic", "Topic", [("", "all"), *((topic, topic) for topic in topics)]) if topics else "", select("outcome", "Answers", outcomes),
                '<label class="wide">Search in questions, options and answers<input type="search" id="search" autocomplete="off"></label>']
    boxes = ""
    if len(results) > 1:
        boxes = "<fieldset><legend>Models shown</legend>" + "".join(
            f'<label><input type="checkbox" id="model-{index}"{" checked" if index < SIDE_BY_SIDE else ""}><bdi>{escape(full_name(result))}</bdi></label>'
            for index, result in enumerate(results)) + "</fieldset>"

    def pages(end: str, count: str) -> str:
        return (f'<div class="pages" id="pages-{end}"><button type="button" id="before-{end}">Previous</button>'
                f'<button type="button" id="after-{end}">Next</button>{count}</div>')

    return section("questions", "Questions and answers", note(words), '<noscript><p class="notice">This part needs JavaScript.</p></noscript>',
                   f'<div class="controls">{"".join(controls)}</div>', boxes, pages("top", '<span id="question-count" role="status" aria-live="polite"></span>'),
                   '<div id="question-list"></div>', pages("end", ""))


def questions_data(results: Sequence[Result], questions: Questions) -> dict:
    """The data of the browser."""
    models = [{"name": result.name, "setting": SETTINGS[result.setting], "mode": result.headline} for result in results]
    return {"models": models, "items": list(questions.items.values())}


# ------------------------------------------------------------------------------------------------------------ provenance

def sources_section(results: Sequence[Result], runs: Sequence[Run]) -> str:
    parts = []
    for result in results:
        entries = [("folder", result.folder), *((f"sha256 of {name}", value) for name, value in result.hashes.items())]
        entries += [(f"setting: {key}", value) for key, value in result.settings.items()] + [(f"fact: {key}", value) for key, value in result.facts.items()]
        for metric, signature in result.summary["signatures"].items():
            entries += [(metric, signature)] if isinstance(signature, str) else [(f"{metric}, {name}", one) for name, one in signature.items()]
        parts.append(folded(full_name(result), _list(entries)))
    for run in runs:
        config = run.facts["config"]
        entries = [(key, value) for key, value in run.facts.items() if key != "config"] + [(f"config: {key}", value) for key, value in config.items()]
        parts.append(folded(f"Run {run.name}", _list(entries)))
    words = ("Settings, fingerprints of model and data (sha256), versions and the signature of every metric. Accuracy intervals: Wilson; macro averages of "
             "accuracy: from the Wilson intervals of the languages; BLEU and ROUGE: percentile bootstrap.")
    return section("sources", "Where each number comes from", note(words), *parts)


def _list(entries: Sequence[tuple[object, object]]) -> str:
    def shown(value: object) -> str:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) or value is None else str(value)

    return "<dl>" + "".join(f"<dt>{escape(as_name(key, 120))}</dt><dd>{escape(as_name(shown(value), 600))}</dd>" for key, value in entries) + "</dl>"
