"""Text <-> token ids behind one small interface, whatever file the tokenizer came in.

    tokenizer = load_tokenizer("models/some-model")
    tokenizer.encode("Fièvre et toux", bos=True)   ->  [1, 383, 29948, ...]
    tokenizer.decode(ids)                          ->  "Fièvre et toux"

In: a model folder or one file of it. Out: a `Tokenizer`. Order: the interface, loading, training, command line; files are read in
`mmed/tokenization/files.py`, the encoding itself is in `mmed/tokenization/bpe.py`. Nothing in a folder is run: JSON, protobuf and base64 are parsed, no more.

Rules that hold for every kind
- Text that looks like a special token ("</s>", "<|eot_id|>") is ordinary text to `encode`; ids of special tokens come from
  `tokenizer.special["<|eot_id|>"]`, or from `bos=True` and `eos=True`, which add exactly one each.
- Lone surrogates, which UTF-8 cannot carry, become U+FFFD; a surrogate pair becomes its character.
- `fingerprint` is the same for two files exactly when they give the same ids by the same rules.

    python -m mmed.tokenizer train corpus/*.jsonl.gz --out tokenizer --vocab_size 16000
    python -m mmed.tokenizer show tokenizer --text "Fièvre et toux"
    python -m mmed.tokenizer show tokenizer --documents corpus/*.jsonl.gz      tokens per character by language

References: sentencepiece's sentencepiece_model.proto; Kudo and Richardson 2018 (sentencepiece).
"""
from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from mmed.tokenization.bpe import CHUNK, SPACE, reason
from mmed.tokenization.files import Settings, open_json, open_sentencepiece, open_tiktoken, read_bytes
from mmed.tokenization.sentencepiece_model import MAX_PIECES
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write, read_json, read_jsonl

# Ends of a turn in the formats of mmed/generate.py; a model that knows one of these stops there.
END_NAMES = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<end_of_turn>", "<eoa>")


def clean_text(text: str) -> str:
    r"""Replace what UTF-8 cannot carry: a lone surrogate by U+FFFD, a surrogate pair by its character.

    >>> clean_text("a\ud800b"), clean_text("\ud83d\ude00")
    ('a\ufffdb', '😀')
    """
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


# --------------------------------------------------------------------------------------------------------------------
# The interface


class Tokenizer:
    """Text <-> ids; made by `load_tokenizer`.

    `special` maps the text of each special token to its id. `end_ids` are the ids that end a generated text. `files` are
    the files a saved model needs beside its weights. `bos_id`, `eos_id`, `pad_id` and `unk_id` are None where there is none.

    `bos_id` is the token that every document and prompt begins with, None where the tokenizer's files add none (or `--bos=no`);
    `named_bos_id` is the token that they name as BOS, which chat templates may use all the same.
    """

    def __init__(self, core, *, special: dict[str, int], added: dict[str, int], bos_id: int | None, eos_id: int | None,
                 pad_id: int | None, unk_id: int | None, end_ids: Iterable[int], files: list[Path], adds_bos: bool = True):
        self.core, self.kind, self.special, self.added, self.files = core, core.kind, special, added, files
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = bos_id if adds_bos else None, eos_id, pad_id, unk_id
        self.named_bos_id = bos_id
        self.end_ids = tuple(sorted({index for index in end_ids if index is not None}))
        self.vocab_size = max([core.size - 1, *special.values(), *added.values()]) + 1
        self._text_of = {index: text for text, index in (*added.items(), *special.items())}
        self._special_ids = frozenset(special.values())
        # Added tokens are found first, the longest first; those in `core.late` only after the text is normalised. Special ones
        # take their place in that search, so that the others are found where the reference finds them, but stay text.
        late = core.late & added.keys()
        early = sorted((added.keys() | special.keys()) - late, key=lambda text: (-len(text), text))
        self._early = re.compile("|".join(map(re.escape, early))) if added.keys() - late else None
        self._late = re.compile("|".join(map(re.escape, sorted(late, key=lambda text: (-len(text), text))))) if late else None
        facts = [self.kind, core.facts(), sorted(special.items()), sorted(added.items()), sorted(late), self.bos_id, eos_id]
        self.fingerprint = hashlib.sha256(json.dumps(facts, ensure_ascii=True).encode()).hexdigest()

    def encode(self, text: str, bos: bool = False, eos: bool = False, *, continued: bool = False) -> list[int]:
        """Ids of ordinary text. `continued`: the text goes on after other tokens, so no space is put before its first word."""
        if self._early is None and self._late is None and len(text) <= CHUNK:
            ids = self.core.encode(self.core.normalize(clean_text(text)), continued)
        else:
            return list(itertools.chain.from_iterable(self.encode_chunks(text, bos, eos, continued=continued)))
        if bos:
            ids.insert(0, self._required("bos"))
        if eos:
            ids.append(self._required("eos"))
        return ids

    def encode_chunks(self, text: str, bos: bool = False, eos: bool = False, *, continued: bool = False) -> Iterator[list[int]]:
        """The ids of `encode` in parts: for texts whose ids should not all be in memory. Cuts are where no piece can be."""
        if bos:
            yield [self._required("bos")]
        for part, index in self._parts(clean_text(text)):
            start = 0
            while start < len(part):
                stop = len(part) if len(part) - start <= CHUNK else self.core.cut(part, start + CHUNK)
                yield self.core.encode(part[start:stop], continued or start > 0)
                start = stop
            if index is not None:
                yield [index]
                continued = continued or self.core.prefix_once
        if eos:
            yield [self._required("eos")]

    def _parts(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The text, normalised and cut at its added tokens: (text before one, its id) ... (text after the last, None)."""
        for raw, index in self._split(self._early, text):
            parts = list(self._split(self._late, self.core.normalize(raw)))
            yield from parts[:-1]
            yield parts[-1][0], index

    def _split(self, pattern: re.Pattern | None, text: str) -> Iterator[tuple[str, int | None]]:
        done = 0
        for match in pattern.finditer(text) if pattern else ():
            if (index := self.added.get(match[0])) is not None:
                yield text[done : match.start()], index
                done = match.end()
        yield text[done:], None

    def encode_batch(self, texts: Iterable[str], bos: bool = False, eos: bool = False) -> list[list[int]]:
        return [self.encode(text, bos, eos) for text in texts]

    def decode(self, ids: Iterable[int], *, special: bool = False, continued: bool = False) -> str:
        """Text of ids, special tokens left out (or written as their text); bytes that are not UTF-8 become U+FFFD."""
        parts: list[str] = []
        run: list[int] = []
        for index in map(int, ids):
            if not 0 <= index < self.vocab_size:
                raise ValueError(f"token id {index} is outside the vocabulary of {self.vocab_size} ids")
            text = self._text_of.get(index)
            if text is None:
                run.append(index)
            elif special or index not in self._special_ids:
                parts += [self.core.decode(run, continued or bool(parts)), text]
                run = []
        parts.append(self.core.decode(run, continued or bool(parts)))
        return "".join(parts)

    def piece(self, index: int) -> str:
        """One id as people see it in a table of pieces."""
        return self._text_of.get(index) or self.core.piece(index)

    def _required(self, name: str) -> int:
        index = self.named_bos_id if name == "bos" else getattr(self, f"{name}_id")
        if index is None:
            raise UserError(f"this tokenizer has no {name} token; call encode without {name}=True")
        return index


# --------------------------------------------------------------------------------------------------------------------
# Loading


CARRIED = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
           "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json")


def load_tokenizer(path: str | Path, bos: str = "auto") -> Tokenizer:
    """Open the tokenizer of a model folder, or one tokenizer file of it; what cannot give exactly the right ids is refused.

    `tokenizer.model` goes before `tokenizer.json`: where both are there, it is what the other was made from.
    `bos`: whether documents and prompts begin with BOS; "auto" does what the tokenizer's files say, which is wrong for models
    that are published without the BOS that they were trained with.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.model", "tokenizer.json") if (path / name).is_file()]
        if not found:
            raise UserError(f"{path}: no tokenizer.model or tokenizer.json in this folder")
        path = found[0]
    elif not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    settings = Settings(path.parent)
    data = read_bytes(path)
    if path.suffix == ".json":
        core, special, added, ids = open_json(read_json(path), settings, str(path))
    elif re.match(rb"\s*[A-Za-z0-9+/]+=* +[0-9]+\s", data[:4096]):
        core, special, added, ids = open_tiktoken(data, settings, str(path))
    else:
        core, special, added, ids = open_sentencepiece(data, settings, str(path))
    known = {**added, **special}
    for name in ("bos", "eos", "pad", "unk"):
        ids[name] = settings.token_id(name, known, ids.get(name), core.size)
    # an unknown piece stands for text that could not be spelt: it is no mark
    special = {text: index for text, index in special.items() if index != ids["unk"] or index in (ids["bos"], ids["eos"], ids["pad"])}
    files = [path] + [file for name in CARRIED if (file := path.parent / name).is_file() and file != path]
    if bos == "yes" and ids["bos"] is None:
        raise UserError(f"{path}: --bos=yes, but this tokenizer names no BOS token")
    adds_bos = settings.adds_bos(ids["bos"], known) if bos == "auto" else bos == "yes"
    return Tokenizer(core, special=special, added=added, files=files, adds_bos=adds_bos, **{f"{name}_id": index for name, index in ids.items()},
                     end_ids=[ids["eos"], *settings.end_ids, *(known.get(name) for name in END_NAMES)])


# --------------------------------------------------------------------------------------------------------------------
# Training


def read_texts(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield (text, language) of a document file: .jsonl or .jsonl.gz with a `text` field, or .txt, one document.

    The language is the field `language` (or `lang`), "?" without one.
    """
    path = Path(path)
    if path.suffix == ".txt":
        try:
            yield path.read_text(encoding="utf-8-sig"), "?"
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
        return
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise UserError(f"{path}: expected a .jsonl, .jsonl.gz or .txt file")
    for number, value in read_jsonl(path):
        if not isinstance(value.get("text"), str):
            raise UserError(f"{path}:{number}: a document needs a field 'text' that is a string")
        yield value["text"], str(value.get("language") or value.get("lang") or "?")


SENTENCE_BYTES = 4096  # the trainer leaves out longer sentences without a word, so none is longer


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Cut documents into the lines the trainer counts; U+2585, which it reserves, becomes a space."""
    for text in texts:
        for line in clean_text(text).replace("\u2585", " ").split("\n"):
            for start in range(0, len(line), SENTENCE_BYTES // 4):  # a character has at most 4 bytes
                if part := line[start : start + SENTENCE_BYTES // 4].strip("\r"):
                    yield part


def train_sentencepiece(
    texts: Iterable[str] | str | Path,
    folder: str | Path,
    vocab_size: int,
    *,
    model_type: str = "bpe",  # or "unigram"
    normalizer: str = "identity",  # or "nmt_nfkc"
    character_coverage: float = 0.9995,  # rarer characters are spelt in bytes
    split_digits: bool = True,  # a piece a digit, as in Llama: doses and laboratory values keep their place values
    user_defined_symbols: Iterable[str] = (),
) -> Tokenizer:
    """Train a tokenizer on texts (or the files named) and write `folder/tokenizer.model`; the same text gives the same file.

    Ids: 0 <unk>, 1 <s>, 2 </s>, 3 <pad>, then the user-defined symbols, the 256 bytes and the learnt pieces.
    The normaliser is the identity, as in the bases of MMedLM: NFKC turns 10⁵ into 105 and ㎍ into μg, which in a medical
    text is another number or another word, and decode(encode(text)) would no longer be the text.
    """
    if isinstance(texts, str | Path):
        texts = (text for text, _ in read_texts(texts))
    elif isinstance(texts, list | tuple) and texts and all(isinstance(item, Path) for item in texts):
        texts = (text for path in texts for text, _ in read_texts(path))
    symbols = list(user_defined_symbols)
    for symbol in symbols:
        if not symbol or any(map(str.isspace, symbol)):
            raise UserError(f"user-defined symbol {symbol!r}: it is empty or holds a space; write spaces as {SPACE!r}")
    sentences = _sentences(texts)
    first = next(sentences, None)
    if first is None:
        raise UserError("no text to train a tokenizer on: the files hold no non-empty document")

    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], sentences), model_writer=out, vocab_size=vocab_size, model_type=model_type,
            byte_fallback=True, normalization_rule_name=normalizer, remove_extra_whitespaces=normalizer != "identity",
            character_coverage=character_coverage, split_digits=split_digits, allow_whitespace_only_pieces=True,
            user_defined_symbols=symbols, max_sentence_length=SENTENCE_BYTES, minloglevel=2,
            unk_id=0, bos_id=1, eos_id=2, pad_id=3, num_threads=1,  # threads change the order in which sums are rounded
        )
    except UserError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"vocab_size={vocab_size}: sentencepiece refuses it: {reason(error)}") from None
    path = Path(folder) / "tokenizer.model"
    with atomic_write(path, "wb") as file:
        file.write(out.getvalue())
    return load_tokenizer(path)


# --------------------------------------------------------------------------------------------------------------------
# Command line


def _train_command(options: argparse.Namespace) -> None:
    tokenizer = train_sentencepiece(
        _text_files(options.files), options.out, options.vocab_size, model_type=options.model_type,
        normalizer=options.normalizer, character_coverage=options.character_coverage,
        user_defined_symbols=_symbols(options))
    print(f"{tokenizer.files[0]}: {tokenizer.vocab_size} pieces, fingerprint {tokenizer.fingerprint[:16]}")


def _text_files(names: list[str]) -> list[Path]:
    """The files named, and those in the folders named, in order."""
    paths: list[Path] = []
    for path in map(Path, names):
        inside = sorted(p for p in path.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz", ".txt"))) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: a folder without .jsonl, .jsonl.gz or .txt files")
        paths += inside
    return paths


def _symbols(options: argparse.Namespace) -> list[str]:
    symbols = list(options.symbol)
    if options.symbols:
        listed = read_json(options.symbols)
        if not isinstance(listed, list) or not all(isinstance(symbol, str) for symbol in listed):
            raise UserError(f"{options.symbols}: expected a JSON list of texts")
        symbols += listed
    return symbols


def _show_command(options: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(options.tokenizer)
    print(f"{tokenizer.kind}, {tokenizer.vocab_size} ids, bos {tokenizer.bos_id}, eos {tokenizer.eos_id}, "
          f"pad {tokenizer.pad_id}, end {list(tokenizer.end_ids)}, fingerprint {tokenizer.fingerprint[:16]}")
    for text in options.text:
        ids = tokenizer.encode(text)
        print(" | ".join(tokenizer.piece(index) for index in ids))
        print(*ids)
    counts: dict[str, list[int]] = {}
    for path in options.documents:
        for text, language in read_texts(path):
            count = counts.setdefault(language, [0, 0, 0, 0])
            for place, value in enumerate((1, len(text), len(clean_text(text).encode()), len(tokenizer.encode(text)))):
                count[place] += value
    if counts:
        print(f"{'language':10}{'documents':>12}{'characters':>14}{'tokens':>14}{'tokens/char':>13}{'bytes/token':>13}")
    for language, (documents, characters, size, tokens) in sorted(counts.items()):
        print(f"{language:10}{documents:12,}{characters:14,}{tokens:14,}{tokens / max(characters, 1):13.3f}{size / max(tokens, 1):13.2f}")


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m mmed.tokenizer", description="Train a tokenizer, or look into one.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a sentencepiece tokenizer on documents")
    train.add_argument("files", nargs="+", help="documents: .jsonl, .jsonl.gz (field `text`) or .txt, or folders of them")
    train.add_argument("--out", required=True, help="folder for tokenizer.model")
    train.add_argument("--vocab_size", type=int, required=True, help="number of ids, the 260 special and byte ones included")
    train.add_argument("--model_type", choices=("bpe", "unigram"), default="bpe")
    train.add_argument("--normalizer", choices=("identity", "nmt_nfkc"), default="identity")
    train.add_argument("--character_coverage", type=float, default=0.9995)
    train.add_argument("--symbol", action="append", default=[], help="a text that is always one piece; may be repeated")
    train.add_argument("--symbols", metavar="FILE.json", help="a JSON list of such texts; spaces are written \u2581")
    show = commands.add_parser("show", help="pieces and ids of a text; tokens per character by language")
    show.add_argument("tokenizer", help="model folder or tokenizer file")
    show.add_argument("--text", action="append", default=[])
    show.add_argument("--documents", nargs="+", default=[], help="documents to count tokens of, by language")
    options = parser.parse_args(arguments)
    if options.command == "train" and not 261 <= options.vocab_size <= MAX_PIECES:
        raise UsageError(f"--vocab_size={options.vocab_size}: expected 261 to {MAX_PIECES}")
    (_train_command if options.command == "train" else _show_command)(options)


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    main_guard(main)
