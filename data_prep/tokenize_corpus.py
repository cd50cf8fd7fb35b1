"""Documents -> one token stream (mmed/data.py), and optionally a second one of documents held out.

    python -m data_prep.tokenize_corpus corpus/en corpus/ja --tokenizer tokenizer --out streams/mmedc --held-out 0.002 --workers 8

In:  documents (data_prep/documents.py): files or folders; a step's OUT/kept folder is what comes after filter and dedup.
Out: NAME.bin, NAME.idx, NAME.json (and NAME-held-out.*). Each document is BOS (where the tokenizer adds one, --bos), its ids, EOS.

One process an input file writes that file's part to NAME.parts/; a part that has its .json is not done again. When all
are there they are joined in the order of the inputs, so the bytes do not depend on the number of workers or on kills.
Memory: one document a worker, and the offsets of one part while joining.
# MMedLM: a document is encoded whole and ends with EOS (prepare_tokenized_dataset.py).
# DIFFERS: one memory-mapped array, where the official code writes a 2048-token .npy a window: 1.35 to 4.2 trained positions
# per token there, 1.01 here.
"""
from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from data_prep.documents import Document, Funnel, find_inputs
from data_prep.pipeline.corpus_card import count_table
from data_prep.pipeline.shards import add_shard_arguments, fingerprint, read_shard, run_jobs, shard_names
from mmed.utils.errors import Parser, UserError, main_guard
from mmed.utils.files import read_json, write_json

HELD_OUT = "-held-out"


def is_held_out(document: Document, share: float) -> bool:
    """Whether a document is held out: by a hash of its text, so that copies stay on one side and nothing depends on order."""
    return int.from_bytes(hashlib.sha256(document.text.encode()).digest()[:8], "big") < share * 2 ** 64


def tokenize_part(path: Path, name: str, folder: Path, options: dict) -> dict:
    """Write one input file's documents as the two streams FOLDER/NAME and FOLDER/NAME-held-out, unless they are there."""
    from mmed.data import StreamWriter
    from mmed.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(options["tokenizer"], options.get("bos", "auto"))
    mark = fingerprint(path, {**options, "tokenizer": tokenizer.fingerprint})
    done = folder / f"{name}.done.json"
    if done.is_file() and (record := read_json(done)).get("fingerprint") == mark:
        return record
    done.unlink(missing_ok=True)
    funnel = Funnel()
    writers = [StreamWriter(folder / (name + suffix), tokenizer.vocab_size, tokenizer.fingerprint, tokenizer.bos_id) for suffix in ("", HELD_OUT)]
    for document in read_shard(path, funnel, options):
        if not document.text.strip():
            funnel.drop("no text", len(document.text), document.id)
            continue
        parts = [tokenizer.encode(document.text, bos=tokenizer.bos_id is not None, eos=True)]
        writers[is_held_out(document, options["held_out"])].add_parts(parts, document.language, document.source)
        funnel.keep(len(document.text))
    for writer in writers:
        writer.close()
    record = {"fingerprint": mark, "input": path.name, **funnel.to_dict()}
    write_json(done, record)
    return record


def join(parts: list[Path], prefix: Path, extra: dict) -> dict | None:
    """Put streams one after the other into `prefix`; None if they hold no document."""
    import numpy as np

    from mmed.data import StreamWriter

    metas = [read_json(f"{part}.json") for part in parts]
    if not sum(meta["documents"] for meta in metas):
        return None
    writer = StreamWriter(prefix, metas[0]["vocab_size"], metas[0]["tokenizer"], metas[0]["bos_id"])
    for part, meta in zip(parts, metas):
        ends = np.fromfile(f"{part}.idx", dtype="<u8") + np.uint64(writer.tokens)
        with open(f"{part}.bin", "rb") as file:
            while block := file.read(1 << 24):
                writer.write("bin", block)
        writer.write("idx", ends.astype("<u8").tobytes())
        writer.tokens += meta["tokens"]
        writer.documents += meta["documents"]
        for language, sources in meta["counts"].items():
            for source, count in sources.items():
                writer.count(language, source, **count)
    return writer.close(**extra)


def tokenize_corpus(inputs: Iterable[str | Path], tokenizer: str | Path, out: str | Path, *, held_out: float = 0.0, workers: int = 1,
                    language: str = "", source: str = "", paragraphs: bool = False, strict: bool = False, bos: str = "auto") -> dict:
    """Make the stream `out`; returns its side file's content."""
    from mmed.tokenizer import load_tokenizer

    paths = find_inputs(inputs)
    out, folder = Path(out), Path(f"{out}.parts")
    loaded = load_tokenizer(tokenizer, bos)  # a wrong folder is found here, before processes are started
    if loaded.eos_id is None:
        raise UserError(f"{tokenizer}: this tokenizer has no end-of-sequence token, which every document ends with")
    options = {"tokenizer": str(tokenizer), "held_out": held_out, "language": language, "source": source, "paragraphs": paragraphs,
               "strict": strict, "bos": bos}
    names = shard_names(paths)
    marks = [fingerprint(path, {**options, "tokenizer": loaded.fingerprint}) for path in paths]
    whole = hashlib.sha256("".join(marks).encode()).hexdigest()
    if Path(f"{out}.json").is_file() and (meta := read_json(f"{out}.json")).get("inputs") == whole:
        return meta
    folder.mkdir(parents=True, exist_ok=True)
    funnel = Funnel()
    jobs = [(path, name, folder, options) for path, name in zip(paths, names)]
    for record in run_jobs(tokenize_part, jobs, workers, "tokenize", [str(path) for path in paths]):
        funnel.merge(record)
    extra = {"inputs": whole, "funnel": funnel.to_dict()}
    metas = [join([folder / (name + suffix) for name in names], Path(f"{out}{suffix}"), extra) for suffix in ("", HELD_OUT)]
    if metas[0] is None:
        raise UserError(f"{', '.join(map(str, paths[:3]))}: no document was left to tokenize; reasons: {funnel.to_dict()}")
    shutil.rmtree(folder)
    return metas[0]


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m data_prep.tokenize_corpus", description="Write documents as one token stream.")
    add_shard_arguments(parser)
    parser.add_argument("--tokenizer", required=True, help="tokenizer folder or file")
    parser.add_argument("--language", default="", help="language to write where a document names none")
    parser.add_argument("--held-out", type=float, default=0.0, metavar="SHARE", help="share of the documents to put into NAME-held-out instead")
    parser.add_argument("--bos", choices=("auto", "yes", "no"), default="auto", help="begin documents with BOS; auto: as the tokenizer's files say")
    options = parser.parse_args(arguments)
    meta = tokenize_corpus(options.inputs, options.tokenizer, options.out, held_out=options.held_out, workers=options.workers,
                           language=options.language, source=options.source, paragraphs=options.paragraphs, strict=options.strict, bos=options.bos)
    print(count_table(meta["counts"]))
    return 0


if __name__ == "__main__":
    main_guard(main)
