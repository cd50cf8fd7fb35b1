"""Documents -> one token stream (mmed/data.py), and optionally a second one of held-out documents.

    python -m data_prep.tokenize_corpus corpus/en corpus/ja --tokenizer tokenizer --out streams/mmedc \
        --held_out 0.002 --workers 8

In:  documents (data_prep/documents.py): files or folders.
Out: NAME.json, NAME.idx and NAME.parts/*.bin (and NAME-held-out.*). Each document is BOS (where the tokenizer
     adds one, --bos), its ids, EOS.

Each input file becomes a part; finished parts are skipped. NAME.json lists the parts in the order of the
inputs. On a cluster, tasks with `--shard i/n` make the parts; the command without --shard lists them.
# MMedLM: a document is encoded whole and ends with EOS (prepare_tokenized_dataset.py). DIFFERS: one
# memory-mapped array, where the official code writes a 2048-token .npy per window: 1.35 to 4.2 trained
# positions per token there, 1.01 here.
"""
from __future__ import annotations

import functools
import hashlib
import os
import re
import secrets
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.documents import Document, Funnel, find_inputs
from data_prep.pipeline import shards
from mmed.evaluation.summary import aligned
from mmed.tokenization.token_streams import StreamWriter, TokenStream, write_manifest
from mmed.tokenizer import load_tokenizer
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import leftovers, read_json, write_json

HELD_OUT = "-held-out"
ENDINGS = (".json", ".idx", ".bin")
MOST_SOURCES = 6  # columns of a table; a corpus of articles may have a source for each journal


def is_held_out(document: Document, share: float) -> bool:
    """Decide by a hash of the text, so that copies stay together and order does not matter."""
    return int.from_bytes(hashlib.sha256(document.text.encode()).digest()[:8], "big") < share * 2 ** 64


_load_once = functools.cache(load_tokenizer)


def tokenize_part(path: Path, name: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Write one input file's documents as two streams, unless they are there; returns FOLDER/NAME.json with
    their names in `streams`, which no other task uses, so that it may be started twice."""
    mark = shards.fingerprint(path, options)
    if record := shards.read_finished(folder / f"{name}.json", mark):
        return record
    tokenizer = _load_once(options["tokenizer"], options["bos"])
    streams = [f"{name}.{secrets.randbelow(10**18)}{suffix}" for suffix in ("", HELD_OUT)]
    facts = tokenizer.vocab_size, tokenizer.fingerprint, tokenizer.bos_id
    writers = [StreamWriter(folder / stream, *facts) for stream in streams]
    funnel = Funnel()
    for document in shards.read_shard(path, funnel, options):
        ids = tokenizer.encode(document.text, bos=tokenizer.bos_id is not None, eos=True)
        writers[is_held_out(document, options["held_out"])].add(ids, document.language, document.source)
        funnel.keep(len(document.text))
    for writer in writers:
        writer.close()
    record = {"fingerprint": mark, "streams": streams, **funnel.to_dict()}
    write_json(folder / f"{name}.json", record)
    return record


def list_parts(records: list[dict[str, Any]], out: str, folder: Path, **extra: Any) -> None:
    """Make the streams `out` and `out`-held-out of the parts."""
    parts, held_out = zip(*((folder / own, folder / other) for own, other in (r["streams"] for r in records)))
    write_manifest(f"{out}{HELD_OUT}", held_out, **extra)
    write_manifest(out, parts, **extra)  # the last: it says that both are complete


def finished_streams(out: str, inputs: str) -> list[TokenStream]:
    """`out` and, if it holds a document, `out`-held-out; [] unless both were made of these inputs and all
    their files are there."""
    try:
        streams = [TokenStream(out)]
        meta = streams[0].meta
        if meta.get("inputs") == inputs and meta["documents"] < meta["funnel"]["documents"]["out"]:
            streams.append(TokenStream(f"{out}{HELD_OUT}"))
    except UserError:
        return []
    complete = all(file.is_file() for stream in streams for file in stream.hashes)
    return streams if complete and all(stream.meta.get("inputs") == inputs for stream in streams) else []


def find_others(streams: list[TokenStream], out: str, folder: Path) -> list[Path]:
    """What the finished streams do not use: files of an empty or earlier one, records of the parts, and what
    a killed run left."""
    used = {Path(f"{stream.prefix}.json") for stream in streams}.union(*(stream.hashes for stream in streams))
    found = []
    for prefix in (out, f"{out}{HELD_OUT}"):
        if is_of(f"{prefix}.json", streams[0].meta["inputs"]):
            for file in (Path(f"{prefix}{ending}") for ending in ENDINGS):
                found += [file, *leftovers(file)]
    if folder.is_dir():
        found += [path for path in folder.iterdir() if path.name.endswith((*ENDINGS, ".tmp", ".lock"))]
    return [path for path in found if path.exists() and path not in used]


def is_of(path: str, inputs: str) -> bool:
    """Whether this .json is none or of a stream of these inputs: NAME-held-out may be a stream of its own."""
    meta = read_json(path) if os.path.exists(path) else {"inputs": inputs}
    return isinstance(meta, dict) and meta.get("inputs") == inputs


def tokenize_corpus(inputs: Iterable[str | Path], tokenizer: str | Path, out: str | Path, *,
                    held_out: float = 0.0, workers: int = 1, bos: str = "auto",
                    share: shards.Share | None = None, **reading: Any) -> dict[str, Any]:
    """Make the stream `out`; returns the content of its .json. `reading`: options of `read_documents`.

    With a share, make only the parts of that share, and return their counts.
    """
    out = str(out).removesuffix(".json").removesuffix(".bin")
    folder = Path(f"{out}.parts")
    found = find_inputs(inputs, out=folder)
    own = re.compile(rf"{re.escape(os.path.abspath(out))}(?:{HELD_OUT})?(?:\.verified-[^/]*)?\.json")
    paths = [path for path in found if not own.fullmatch(os.path.abspath(path))]  # of an earlier start
    if len(paths) < len(found) and not os.path.exists(f"{out}.idx"):
        raise UserError(f"{out}.json: an input that the stream would overwrite; give another --out")
    _load_once.cache_clear()
    loaded = _load_once(Path(tokenizer), bos)  # detect a wrong folder before starting any process
    if not 0 <= held_out < 1:
        raise UsageError(f"--held_out={held_out}: must be at least 0 and below 1")
    if loaded.eos_id is None:
        raise UserError(f"{tokenizer}: no end-of-sequence token, which must end every document")
    options = {**reading, "tokenizer": Path(tokenizer), "held_out": held_out, "bos": bos,
               "fingerprint": loaded.fingerprint}
    whole = hashlib.sha256("".join(shards.fingerprint(path, options) for path in paths).encode()).hexdigest()
    streams = finished_streams(out, whole)
    if streams and (share or not find_others(streams, out, folder)):
        return streams[0].meta
    with shards.one_run(folder, share):
        if not streams:
            jobs = [(path, name, folder, options) for path, name in zip(paths, shards.shard_names(paths))]
            records = shards.run_jobs(tokenize_part, jobs, workers, "tokenize", paths, share)
            counts = shards.add_up(records).to_dict()
            if share:
                return counts
            if not counts["documents"]["out"]:
                raise UserError(f"{', '.join(map(str, paths[:3]))}: no document to tokenize; {counts}")
            list_parts(records, out, folder, inputs=whole, funnel=counts)
            if not (streams := finished_streams(out, whole)):
                raise UserError(f"{out}: every document was held out; lower --held_out={held_out}")
            if held_out:
                held = sum(stream.documents for stream in streams[1:])
                print(f"{out}{HELD_OUT}: {held:,} of {counts['documents']['out']:,} documents (none: no such "
                      "stream)", file=sys.stderr)
        for path in find_others(streams, out, folder):
            path.unlink(missing_ok=True)
        return streams[0].meta


def count_table(counts: dict[str, dict[str, dict[str, int]]]) -> str:
    """Tokens by language and source, as the paper's table of MMedC (there in billions).

    Of more than MOST_SOURCES sources, the largest have a column; the others share one.
    """
    tokens = {language: Counter({source: count["tokens"] for source, count in by_source.items()})
              for language, by_source in counts.items()}
    documents = {language: sum(count["documents"] for count in by_source.values())
                 for language, by_source in counts.items()}
    tokens["sum"], documents["sum"] = sum(tokens.values(), Counter()), sum(documents.values())
    columns, other = sorted(tokens["sum"]), []
    if len(columns) > MOST_SOURCES:
        other = [f"other ({len(columns) - MOST_SOURCES + 1})"]
        columns = [source for source, _ in tokens["sum"].most_common(MOST_SOURCES - 1)]
    rows = [["language", *(column or "-" for column in columns), *other, "tokens", "documents"]]
    for language, cells in tokens.items():
        shown = [cells[column] for column in columns]
        shown += [cells.total() - sum(shown) for _ in other]
        rows.append([language or "-", *(f"{number:,}" for number in (*shown, cells.total(),
                                                                     documents[language]))])
    return aligned(rows)


def main(arguments: list[str] | None = None) -> int:
    command = "python -m data_prep.tokenize_corpus"
    parser = Parser(prog=command, description="Write documents as one token stream.",
                    epilog=f"example: {command} corpus/en --tokenizer tokenizer --out streams/en")
    shards.add_shard_arguments(parser, out="name of the stream: NAME.json, NAME.idx and NAME.parts/")
    parser.add_argument("--tokenizer", required=True, help="tokenizer folder or file")
    parser.add_argument("--language", default="", help="language for documents without one")
    parser.add_argument("--held_out", type=float, default=0.0, metavar="SHARE",
                        help="fraction of the documents to hold out, in NAME-held-out")
    parser.add_argument("--bos", choices=("auto", "yes", "no"), default="auto",
                        help="begin documents with BOS; auto: as set in the tokenizer's files")
    given = parser.parse_args(arguments)
    found = tokenize_corpus(given.inputs, given.tokenizer, given.out, held_out=given.held_out,
                            workers=given.workers, bos=given.bos, share=given.shard,
                            **shards.shard_options(given))
    print(count_table(found["counts"]) if "counts" in found else f"{found['documents']['out']:,} documents")
    return 0


if __name__ == "__main__":
    main_guard(main)
