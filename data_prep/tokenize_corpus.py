"""Documents -> one token stream (mmed/data.py), and optionally a second one of held-out documents.

    python -m data_prep.tokenize_corpus corpus/en corpus/ja --tokenizer tokenizer --out streams/mmedc \
        --held_out 0.002 --workers 8

In:  documents (data_prep/documents.py): files or folders. Out: NAME.bin, NAME.idx, NAME.json (and
NAME-held-out.*). Each document is BOS (where the tokenizer adds one, --bos),
     its ids, EOS.

One process per input file writes that file's part to NAME.parts/; a finished part is not done again. Then the
parts are joined in the order of the inputs, so the bytes do not depend on the number of workers or on kills.
Memory: one document per worker, and the offsets of one part while joining.
# MMedLM: a document is encoded whole and ends with EOS (prepare_tokenized_dataset.py). DIFFERS: one
# memory-mapped array, where the official code writes a 2048-token .npy per window: 1.35 to 4.2 trained
# positions per token there, 1.01 here.
"""
from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from data_prep.documents import Document, Funnel, find_inputs
from data_prep.pipeline.corpus_card import count_table
from data_prep.pipeline.shards import add_shard_arguments, fingerprint, read_shard, run_jobs, shard_names
from mmed.data import StreamWriter
from mmed.tokenizer import load_tokenizer
from mmed.utils.errors import Parser, UserError, main_guard
from mmed.utils.files import read_json, write_json

HELD_OUT = "-held-out"


def is_held_out(document: Document, share: float) -> bool:
    """Whether a document is held out: by a hash of its text, so copies stay on one side and order does not
    matter."""
    return int.from_bytes(hashlib.sha256(document.text.encode()).digest()[:8], "big") < share * 2 ** 64


def tokenize_part(path: Path, name: str, folder: Path, options: dict) -> dict:
    """Write one input file's documents as the streams FOLDER/NAME and FOLDER/NAME-held-out, unless they are
    there."""
    tokenizer = load_tokenizer(options["tokenizer"], options.get("bos", "auto"))
    input_print = fingerprint(path, {**options, "tokenizer": tokenizer.fingerprint})
    done = folder / f"{name}.done.json"
    if done.is_file() and (record := read_json(done)).get("fingerprint") == input_print:
        return record
    done.unlink(missing_ok=True)
    funnel = Funnel()
    facts = tokenizer.vocab_size, tokenizer.fingerprint, tokenizer.bos_id
    writers = [StreamWriter(folder / (name + suffix), *facts) for suffix in ("", HELD_OUT)]
    for document in read_shard(path, funnel, options):
        if not document.text.strip():
            funnel.drop("no text", len(document.text), document.id)
            continue
        ids = tokenizer.encode(document.text, bos=tokenizer.bos_id is not None, eos=True)
        writer = writers[is_held_out(document, options["held_out"])]
        writer.add(ids, document.language, document.source)
        funnel.keep(len(document.text))
    for writer in writers:
        writer.close()
    record = {"fingerprint": input_print, "input": path.name, **funnel.to_dict()}
    write_json(done, record)
    return record


def join(parts: list[Path], prefix: Path, extra: dict) -> dict | None:
    """Write streams one after the other into `prefix`; None if they hold no document."""
    metas = [read_json(f"{part}.json") for part in parts]
    if not sum(meta["documents"] for meta in metas):
        return None
    writer = StreamWriter(prefix, metas[0]["vocab_size"], metas[0]["tokenizer"], metas[0]["bos_id"])
    for part in parts:
        writer.add_stream(part)
    return writer.close(**extra)


def tokenize_corpus(inputs: Iterable[str | Path], tokenizer: str | Path, out: str | Path, *,
                    held_out: float = 0.0, workers: int = 1, language: str = "", source: str = "",
                    paragraphs: bool = False, strict: bool = False, bos: str = "auto") -> dict:
    """Make the stream `out`; returns the content of its .json."""
    paths = find_inputs(inputs)
    out, folder = Path(out), Path(f"{out}.parts")
    loaded = load_tokenizer(tokenizer, bos)  # a wrong folder is found before processes are started
    if loaded.eos_id is None:
        raise UserError(f"{tokenizer}: no end-of-sequence token, with which every document ends")
    options = {"tokenizer": str(tokenizer), "held_out": held_out, "language": language, "source": source,
               "paragraphs": paragraphs, "strict": strict, "bos": bos}
    names = shard_names(paths)
    prints = [fingerprint(path, {**options, "tokenizer": loaded.fingerprint}) for path in paths]
    whole = hashlib.sha256("".join(prints).encode()).hexdigest()
    if Path(f"{out}.json").is_file() and (meta := read_json(f"{out}.json")).get("inputs") == whole:
        return meta
    folder.mkdir(parents=True, exist_ok=True)
    funnel = Funnel()
    jobs = [(path, name, folder, options) for path, name in zip(paths, names)]
    for record in run_jobs(tokenize_part, jobs, workers, "tokenize", [str(path) for path in paths]):
        funnel.merge(record)
    extra = {"inputs": whole, "funnel": funnel.to_dict()}
    meta, _ = (join([folder / (name + suffix) for name in names], Path(f"{out}{suffix}"), extra)
               for suffix in ("", HELD_OUT))
    if meta is None:
        raise UserError(f"{', '.join(map(str, paths[:3]))}: no document to tokenize; {funnel.to_dict()}")
    shutil.rmtree(folder)
    return meta


def main(arguments: list[str] | None = None) -> int:
    command = "python -m data_prep.tokenize_corpus"
    parser = Parser(prog=command, description="Write documents as one token stream.",
                    epilog=f"example: {command} corpus/en --tokenizer tokenizer --out streams/en")
    add_shard_arguments(parser)
    parser.add_argument("--tokenizer", required=True, help="tokenizer folder or file")
    parser.add_argument("--language", default="", help="language of documents that name none")
    parser.add_argument("--held_out", "--held-out", type=float, default=0.0, metavar="SHARE",
                        help="share of the documents that goes to NAME-held-out instead")
    parser.add_argument("--bos", choices=("auto", "yes", "no"), default="auto",
                        help="begin documents with BOS; auto: as the tokenizer's files say")
    options = parser.parse_args(arguments)
    meta = tokenize_corpus(
        options.inputs, options.tokenizer, options.out, held_out=options.held_out, workers=options.workers,
        language=options.language, source=options.source, paragraphs=options.paragraphs,
        strict=options.strict, bos=options.bos)
    print(count_table(meta["counts"]))
    return 0


if __name__ == "__main__":
    main_guard(main)
