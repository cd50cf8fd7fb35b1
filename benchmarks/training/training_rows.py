"""What continued pre-training does to a pretrained model: the validation loss of the run, and the true loss.

    python benchmarks/training/training_rows.py --model gemma3-270m --texts data/text

A pretrained model has seen every document begin with BOS. If rows of training begin inside a document, it
first learns to live without BOS: the reported validation loss, on rows cut in the same way, falls, while the
loss on whole documents with BOS need not move. This measures both.

--texts   a folder per language with medical*.jsonl.gz, one document a line (fields text, source, id)
chosen    in the order of the texts' hashes: 8 documents of each language are held out; of the others, always
          from the language with the fewest tokens so far, as many as make --steps steps of --tokens. None has
          more than 1,022 tokens, none is in both.
trained   mmed/train.py pretrain_mmedlm2, fp32, 2e-5 from the first step to the last; --flags come after these
reported  the run's own validation loss before the first step and after the last, from its metrics.jsonl
true      transformers, fp32, each held-out document by itself, BOS before it: nats a token of its text

A language's loss is over all tokens of its documents, the mean is over languages. A quarter of an hour on two
idle CPU cores with a model of 270 M parameters.
"""
from __future__ import annotations

import hashlib
import itertools
import json
import os
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.timing import print_head, print_row
from mmed.utils.errors import Parser
from mmed.utils.files import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "zh", "ja", "fr", "ru", "es")
HELD_OUT = 8      # documents of each language
LONGEST = 1022    # tokens of a document's text: with BOS and EOS it fits a row of 1,024
LAST = 128        # and of the last one trained on, which goes beyond the steps
COLUMNS = ("true before", "true after", "reported before", "reported after")


def documents(folder: Path, language: str, tokenizer):
    """(record, ids of its text) of each document that is not too long, in the order of the texts' hashes."""
    records = {}
    for path in sorted((folder / language).glob("medical*.jsonl.gz")):
        for _, record in read_jsonl(path):
            text = unicodedata.normalize("NFC", record["text"])  # as data_prep does
            records[text] = {"text": text, "language": language, "source": record["source"],
                             "id": record["id"]}
    for text in sorted(records, key=lambda text: hashlib.sha256(text.encode()).digest()):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if 0 < len(ids) <= LONGEST:
            yield records[text], ids


def choose(folder: Path, tokenizer, budget: int, languages: list[str]) -> tuple[list, dict[str, list]]:
    """Training documents of `budget` tokens or a few more, BOS and EOS counted; held-out ones by language."""
    sources = {language: documents(folder, language, tokenizer) for language in languages}
    held_out = {language: list(itertools.islice(source, HELD_OUT)) for language, source in sources.items()}
    train, tokens = [], dict.fromkeys(languages, 0)
    while (missing := budget - sum(tokens.values())) > 0:
        language = min(languages, key=tokens.get)
        pair = next((pair for pair in sources[language] if len(pair[1]) <= max(missing, LAST)), None)
        if pair is None:
            raise SystemExit(f"error: {folder / language}: too few documents")
        train.append(pair)
        tokens[language] += len(pair[1]) + 2  # BOS where the tokenizer adds one, and EOS
    return train, held_out


def count(pairs: list, bos: list[int]) -> int:
    """Tokens of documents, with EOS, and BOS where there is one."""
    return sum(len(bos) + len(ids) + 1 for _, ids in pairs)


def python(*arguments: str) -> None:
    """Run Python; what it prints goes to stderr."""
    print("python", *arguments, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, *arguments], check=True, stdout=sys.stderr,
                   env=os.environ | {"PYTHONPATH": str(ROOT)})


def make_stream(pairs: list, name: Path, model: str, bos: list[int]) -> str:
    """Write documents as NAME.documents.jsonl and as the token stream NAME; returns NAME."""
    path = Path(f"{name}.documents.jsonl")
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record, _ in pairs]
    path.write_text("".join(lines), encoding="utf-8")
    python("-m", "data_prep.tokenize_corpus", str(path), "--tokenizer", model, "--out", str(name))
    made, expected = json.loads(Path(f"{name}.json").read_text())["tokens"], count(pairs, bos)
    if made != expected:
        raise SystemExit(f"error: {name}: {made} tokens, but {expected} by transformers")
    return str(name)


def reported_losses(run: Path) -> dict[int, dict[str, float]]:
    """step -> validation loss by language, for each line of the run's log that has one."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["validation_loss"] for line in lines if line.get("validation_loss")}


def true_losses(model: str, bos: list[int], held_out: dict[str, list]) -> dict[str, float]:
    """Nats a token of the held-out texts by language: all tokens after BOS, or after the first one."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    losses = {}
    for language, pairs in held_out.items():
        total, targets = 0.0, 0
        for _, ids in pairs:
            document = torch.tensor([*bos, *ids])
            with torch.inference_mode():
                logits = network(document[None, :-1], use_cache=False).logits[0]
                total += torch.nn.functional.cross_entropy(logits, document[1:], reduction="sum").item()
            targets += len(document) - 1
        losses[language] = total / targets
    return losses


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder that transformers opens too")
    parser.add_argument("--texts", required=True, type=Path, help="folder of a folder per language")
    parser.add_argument("--out", type=Path, default=Path("runs/training_rows"), help="new folder")
    parser.add_argument("--languages", default=",".join(LANGUAGES), help="comma-separated codes")
    parser.add_argument("--sequence_length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=1024, help="of a step, in rows of --sequence_length")
    parser.add_argument("--flags", default="", help="further options of train.py, as one string")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"--out={options.out} is there already: remove it, or name another")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    bos = [] if tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id else [tokenizer.bos_token_id]
    languages = options.languages.split(",")
    train, held_out = choose(options.texts, tokenizer, options.steps * options.tokens, languages)
    streams, run = options.out / "streams", options.out / "run"
    streams.mkdir(parents=True)
    data = make_stream(train, streams / "train", options.model, bos)
    validation = [make_stream(pairs, streams / name, options.model, bos) for name, pairs in held_out.items()]
    rows = max(1, options.tokens // options.sequence_length)
    flags = [f"--model={options.model}", f"--data={data}", f"--validation={','.join(validation)}",
             f"--sequence_length={options.sequence_length}", f"--global_batch_size={rows}",
             f"--micro_batch_size={rows}", f"--max_steps={options.steps}", "--learning_rate=2e-5",
             "--schedule=constant", "--warmup_ratio=0", "--precision=fp32", "--compile=no",
             "--activation_checkpointing=no", *shlex.split(options.flags)]
    python(str(ROOT / "mmed" / "train.py"), "pretrain_mmedlm2", *flags, f"--out={run}")
    reported = reported_losses(run)
    models = (options.model, str(run / "model"))
    columns = [true_losses(model, bos, held_out) for model in models]
    columns += [reported[0], reported[max(reported)]]
    for losses in columns:
        losses["mean"] = sum(losses[language] for language in languages) / len(languages)
    print(f"{len(train)} documents of {count(train, bos):,} tokens; {options.steps} steps of {rows} rows of "
          f"{options.sequence_length}; nats a token\n")
    print_head("language", *COLUMNS)
    for language in (*languages, "mean"):
        print_row(language, *(f"{losses[language]:.3f}" for losses in columns))


if __name__ == "__main__":
    main()
