"""Selects a corpus's medical documents by keyword: the filter behind 19 of MMedC's 25.5 billion tokens.

    python -m data_prep.filter_medical shard*.parquet --language en --source web --out medical_en --workers 8
    python -m data_prep.filter_medical page.txt --language en --explain     # the words found, both numbers

In:  documents (data_prep/documents.py), words and thresholds of one language (`mmed/languages/<code>.py`).
Out: kept/ with `meta.medical` = {hits, density}, dropped/ with the reason, funnel.json.

The rule is in data_prep/filters/keyword_rule.py. `--mode official` is the published one.
DIFFERS: the official script takes only parquet files over 1 GiB, holds all kept texts of one in memory, and
has its language in three places of the source; here any file is streamed, and the language is an option.
"""
from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from data_prep.documents import Document, find_inputs
from data_prep.filters.keyword_matcher import BLOCK, Matcher
from data_prep.filters.language_codes import find_language
from data_prep.pipeline.shards import ShardWriter, add_shard_arguments, read_shard, run_step, shard_options
from mmed.languages import get_language
from mmed.utils.errors import Parser, UsageError, main_guard, printable

VERSION = 3  # raise it when the same document gives another decision

_matcher = functools.lru_cache(maxsize=8)(Matcher)


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in groups of about BLOCK characters."""
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += len(document.text)
        if size >= BLOCK:
            yield group
            group, size = [], 0
    yield group


def filter_shard(documents: Iterator[Document], shard: ShardWriter, options: dict[str, Any]) -> None:
    language = get_language(options["language"])
    matcher = _matcher(language, options["mode"])
    for group in batches(documents):
        for document, decision in zip(group, matcher.judge([document.text for document in group])):
            numbers = {"hits": decision.hits, "density": round(decision.density, 5)}
            if document.language not in ("", language.code):
                shard.drop(document, f"language is not {language.code}")
            elif decision.medical:
                document.meta["medical"] = numbers
                shard.keep(document)
            else:
                few = decision.hits < matcher.min_hits
                shard.drop(document, "too few different medical words" if few else "medical words too thin",
                           **numbers)


def print_explanations(inputs: list[str], matcher: Matcher, options: dict[str, Any]) -> None:
    """Print both scores of each document and the words behind them."""
    # Unicode isolates keep each number after its word.
    isolated = "\u2068{}\u2069" if matcher.language.right_to_left else "{}"
    for path in find_inputs(inputs):
        for document in read_shard(path, None, options):
            decision, found = matcher.explain(document.text)
            print(f"{printable(document.id)}: {'kept' if decision.medical else 'dropped'}  "
                  f"MKC {decision.hits} (needs {matcher.min_hits})  "
                  f"DENS {decision.density:.4f} (needs {matcher.min_density})")
            words = (f"{isolated.format(word)} {count}" for word, count in found.most_common())
            print("  " + (", ".join(words) or "no medical word"))


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.filter_medical",
                    description="Keep the medical documents of a corpus.")
    add_shard_arguments(parser, out_required=False)
    add = parser.add_argument
    add("--language", required=True, help="language code or name; drop documents labelled otherwise")
    add("--mode", choices=("default", "official"), default="default",
        help="default: our keyword rule; official: the published code's rule")
    add("--explain", action="store_true", help="print each document's keywords and scores; write nothing")
    given = parser.parse_args(arguments)
    language = find_language(given.language)
    matcher = _matcher(language, given.mode)
    if given.explain:
        print_explanations(given.inputs, matcher, shard_options(given))
        return 0
    if not given.out:
        raise UsageError("--out FOLDER is needed (or --explain to write nothing)")
    # All that the decisions depend on: a change redoes finished shards.
    options = {"language": language.code, "mode": given.mode, "words": language.medical_words,
               "prefixes": language.prefixes, "min_hits": matcher.min_hits,
               "min_density": matcher.min_density, "version": VERSION}
    return run_step(filter_shard, "filter_medical", options, given,
                    f"filter_medical {language.code} ({given.mode})")


if __name__ == "__main__":
    main_guard(main)
