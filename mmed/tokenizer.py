"""Text <-> token ids behind one small interface, whatever file the tokenizer came in.

    tokenizer = load_tokenizer("models/some-model")
    tokenizer.encode("Fièvre et toux", bos=True)   ->  [1, 383, 29948, ...]
    tokenizer.decode(ids)                          ->  "Fièvre et toux"

In: a model folder or one file of it. Out: a `Tokenizer`. The encoding itself is a backend in
`mmed/tokenization/`: sentencepiece, tiktoken (byte-level BPE), or Hugging Face tokenizers. Of a folder only
the chat template is executed, when a conversation is encoded, in Jinja's sandbox.

Text that looks like a special token ("</s>", "<|eot_id|>") is ordinary text to `encode`; ids of special
tokens come from `tokenizer.special["<|eot_id|>"]`, or from `bos=True` and `eos=True`, which add one each.

    python -m mmed.tokenizer train corpus/*.jsonl.gz --out tokenizer --vocab_size 16000
    python -m mmed.tokenizer show tokenizer --text "Fièvre et toux"
"""
from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece

from mmed.tokenization import sentencepiece_model as sp
from mmed.tokenization.byte_level import llama3_special_tokens, open_byte_level, open_tiktoken
from mmed.tokenization.hub import HubBackend
from mmed.tokenization.special_tokens import TokenizerSettings
from mmed.tokenization.texts import SENTENCE_CHARACTERS, clean_text, read_texts, sentences_of
from mmed.utils.errors import Parser, UsageError, UserError, main_guard
from mmed.utils.files import atomic_write, check_file, read_json, write_json

# Tokens that end an answer in the chat templates of mmed/tokenization/chat_template.py
END_TOKENS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<end_of_turn>",
              "<eoa>")
ROLES = ("bos", "eos", "pad", "unk")
CARRIED = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
           "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json")

Ids = dict[str, int]  # text -> id


class Tokenizer:
    """Text <-> ids; made by `load_tokenizer`.

    special       text -> id of special tokens; `added`: of those that are also recognised in ordinary text
    bos_id        the token that every document and prompt begins with; None if the tokenizer's files add none
                  (or with `--bos=no`); `bos_choice` is "yes" or "no" if the user overruled the files
    named_bos_id  the BOS that the files name; chat templates may use it even if `bos_id` is None
    end_ids       tokens that end a generated text
    rows          that an embedding must have for it; at most `vocab_size`, which counts every id
    files         to save beside the weights; `chat_template` is the folder's own, as text
    fingerprint   the same for two files that give the same ids by the same rules
    """

    def __init__(self, path: Path, bos: str):
        settings = TokenizerSettings(path)
        self.core, self.special, self.added, roles = open_file(path, settings)
        self.kind, self.bos_choice, self.chat_template = self.core.kind, bos, settings.chat_template()
        beside = CARRIED[2:] if path.suffix == ".json" else CARRIED[1:]
        self.files = [path, *filter(Path.is_file, map(path.parent.joinpath, beside))]
        known = self.added | self.special
        self.named_bos_id, self.eos_id, self.pad_id, self.unk_id = (
            settings.token_id(role, known, roles.get(role), self.core.size) for role in ROLES)
        if bos == "yes" and self.named_bos_id is None:
            raise UserError(f"{path}: --bos=yes, but this tokenizer names no BOS token")
        adds_bos = settings.adds_bos(self.named_bos_id, known) if bos == "auto" else bos == "yes"
        self.bos_id = self.named_bos_id if adds_bos else None
        ends = [self.eos_id, *settings.end_ids(), *map(known.get, END_TOKENS)]
        self.end_ids = tuple(sorted({index for index in ends if index is not None}))
        self.rows = self.vocab_size = max([self.core.size - 1, *known.values()]) + 1
        # Gemma 3's text models have no row for their last token, <image_soft_token>
        unused = {index for text, index in self.special.items() if text not in self.chat_template}
        while self.rows - 1 in unused - {self.named_bos_id, *self.end_ids}:
            self.rows -= 1
        if self.kind == "sentencepiece" and self.unk_id not in (self.named_bos_id, self.eos_id, self.pad_id):
            # sentencepiece's <unk> stands for text that could not be encoded
            self.special = {text: index for text, index in self.special.items() if index != self.unk_id}
            known = self.added | self.special
        # The reference library finds and spells ordinary added tokens itself (Gemma: "▁▁" are two spaces).
        finds_added = isinstance(self.core, HubBackend)
        self._text_of = {index: text for text, index in (self.special if finds_added else known).items()}
        # Longest first. Special tokens are in the pattern, so that added ones match where the reference's do;
        # but special tokens stay text.
        texts = "|".join(map(settings.pattern, sorted(known, key=lambda text: (-len(text), text))))
        self._added_pattern = re.compile(texts if self.added and not finds_added else "(?!)")
        # no space before text that follows such a token
        self._joins_added = (self.kind == "sentencepiece" and bool(self.added)
                             and settings.config.get("legacy") is False)
        facts = [self.kind, self.core.facts(), sorted(self.special.items()), sorted(self.added.items()),
                 self.bos_id, self.eos_id, self._added_pattern.pattern, self._joins_added]
        self.fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def encode(self, text: str, bos: bool = False, eos: bool = False, continued: bool = False) -> list[int]:
        """Ids of ordinary text. `continued`: it follows other tokens, so no space goes before it."""
        ids = [self._required("bos", self.named_bos_id)] if bos else []
        text, done = clean_text(text), 0
        for match in self._added_pattern.finditer(text):
            token = match[0] if match[0] in self.added else match[0].strip()
            if token in self.added:
                ids += [*self.core.encode(text[done:match.start()], continued), self.added[token]]
                done, continued = match.end(), continued or self._joins_added
        ids += self.core.encode(text[done:], continued)
        return [*ids, self._required("eos", self.eos_id)] if eos else ids

    def decode(self, ids: Iterable[int], *, special: bool = False, continued: bool = False) -> str:
        """Text of ids, without special tokens or with their text; bytes that are not UTF-8 become U+FFFD."""
        parts: list[str] = []
        run: list[int] = []
        for index in map(int, ids):
            if not 0 <= index < self.vocab_size:
                raise ValueError(f"token id {index} is outside the vocabulary of {self.vocab_size} ids")
            text = self._text_of.get(index)
            if text is None:
                run.append(index)
            elif special or text not in self.special:
                parts += [self.core.decode(run, continued or bool(parts)), text]
                run = []
        return "".join([*parts, self.core.decode(run, continued or bool(parts))])

    def piece(self, index: int) -> str:
        """The text of one id, as shown in a table of pieces."""
        return self._text_of.get(index) or self.core.piece(index)

    @staticmethod
    def _required(role: str, index: int | None) -> int:
        if index is None:
            raise UserError(f"this tokenizer has no {role} token; call encode without {role}=True")
        return index


# ------------------------------------------------------------------------------------------------------ files

def load_tokenizer(path: str | Path, bos: str = "auto") -> Tokenizer:
    """Open a tokenizer file, or that of a model folder: `tokenizer.model`, unless `tokenizer.json` has other
    pieces.

    `bos`: whether documents and prompts begin with BOS, "yes" or "no"; "auto" follows the tokenizer's files,
    which is wrong for models that are published without the BOS that they were trained with.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in CARRIED[:2] if (path / name).is_file()]
        if not found:
            raise UserError(f"{path}: no tokenizer.model or tokenizer.json in this folder")
        path = found[0]
        if len(found) == 2 and sp.other_pieces(*found):
            path = found[1]
    check_file(path, max_bytes=256 << 20)  # the largest published tokenizer file has about 35 MB
    try:
        return Tokenizer(path, bos)
    except UserError:
        raise
    except Exception as error:  # the libraries raise nothing more specific for a damaged file
        raise UserError(f"{path}: not a usable tokenizer file ({type(error).__name__}: {error}); download it "
                        "again") from None


def open_file(path: Path, settings: TokenizerSettings) -> tuple[Any, Ids, Ids, dict[str, int | None]]:
    """(backend, special tokens, tokens found in text, role -> id) of a tokenizer.json, a sentencepiece model
    or a tiktoken file."""
    special, added = settings.special, settings.ordinary
    if path.suffix == ".json":  # plain byte-level BPE through tiktoken, everything else by the reference
        entries = sorted(settings.added.values(), key=lambda entry: entry["id"])
        file = settings.json | {"added_tokens": entries}
        return open_byte_level(file) or HubBackend(file), special, added, {}
    data = path.read_bytes()
    if not re.match(rb"\s*[A-Za-z0-9+/]+=* +[0-9]+\s", data[:4096]):
        prefix = settings.config.get("add_prefix_space") is not False
        return open_sentencepiece(sp.SentencePieceModel(data, prefix), special, added)
    core = open_tiktoken(data)
    special = special or llama3_special_tokens(core.size)
    roles = {"bos": special.get("<|begin_of_text|>"), "eos": special.get("<|end_of_text|>")}
    return core, special, added, roles


def open_sentencepiece(model: sp.SentencePieceModel, special: Ids, added: Ids) -> tuple:
    pieces = {piece: index for index, (piece, _, _) in enumerate(model.pieces)}
    for text, index in (special | added).items():
        if pieces.get(text, index) != index:
            raise ValueError(f"the added token {text!r} has id {index}, its piece {pieces[text]}")
    # a piece renamed by an added token has its new name here (InternLM 2: [UNUSED_TOKEN_145], <|im_end|>)
    renamed = {*special.values(), *added.values()}
    special = {piece: index for index, (piece, _, kind) in enumerate(model.pieces)
               if kind in (sp.CONTROL, sp.UNKNOWN) and index not in renamed} | special
    added = {text: index for text, index in added.items() if text not in pieces}  # the library finds others
    core = sp.SentencePieceBackend(model, special.values())
    return core, special, added, core.roles


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Copy the tokenizer's files; the user's choice of BOS (--bos) is written into them."""
    first, *beside = tokenizer.files
    name = "tokenizer.json" if first.suffix == ".json" else "tokenizer.model"
    (folder / name).write_bytes(first.read_bytes())
    for path in beside:
        if path.name != "tokenizer.json" or not sp.other_pieces(first, path):  # not another tokenizer's
            (folder / path.name).write_bytes(path.read_bytes())
    if tokenizer.bos_choice == "auto":
        return
    config, file = folder / "tokenizer_config.json", folder / "tokenizer.json"
    settings = read_json(config) if config.is_file() else {}
    write_json(config, settings | {"add_bos_token": tokenizer.bos_id is not None})
    if file.is_file():  # where transformers reads it
        index = tokenizer.bos_id
        rule = None if index is None else bos_rule(tokenizer.piece(index), index)
        write_json(file, read_json(file) | {"post_processor": rule})


def bos_rule(text: str, index: int) -> dict:
    """tokenizer.json's rule that puts BOS before a text."""
    single = [{"SpecialToken": {"id": text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair,
            "special_tokens": {text: {"id": text, "ids": [index], "tokens": [text]}}}


# --------------------------------------------------------------------------------------------------- training

def train_sentencepiece(texts: Iterable[str], folder: str | Path, vocab_size: int, *,
                        character_coverage: float = 0.9995,
                        user_defined_symbols: Iterable[str] = ()) -> Tokenizer:
    """Train a BPE tokenizer on texts and write it to `folder`; the same texts give the same tokenizer.

    Ids: 0 <unk>, 1 <s>, 2 </s>, 3 <pad>, then the user-defined symbols, the 256 bytes and the learnt pieces.
    Characters rarer than `character_coverage` are spelt in bytes; each digit is a piece, as in Llama. Text is
    not normalised, as in the bases of MMedLM: NFKC turns 10⁵ into 105 and ㎍ into μg.
    """
    symbols = list(user_defined_symbols)
    if odd := [symbol for symbol in symbols if not symbol or re.search(r"\s", symbol)]:
        raise UserError(f"user-defined symbol {odd[0]!r}: empty, or with a space; write it as '▁'")
    sentences = sentences_of(texts)
    first = next(sentences, None)
    if first is None:
        raise UserError("no text to train a tokenizer on: the files hold no non-empty document")
    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], sentences), model_writer=out, vocab_size=vocab_size,
            model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
            remove_extra_whitespaces=False, character_coverage=character_coverage, split_digits=True,
            allow_whitespace_only_pieces=True, user_defined_symbols=symbols,
            max_sentence_length=4 * SENTENCE_CHARACTERS, unk_id=0, bos_id=1, eos_id=2, pad_id=3,
            minloglevel=2, num_threads=1)  # threads change the order in which sums are rounded
    except UserError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[-300:]
        raise UserError(f"vocab_size={vocab_size}: sentencepiece rejects it: {reason}") from None
    write_sentencepiece(out.getvalue(), Path(folder))
    return load_tokenizer(folder)


def write_sentencepiece(data: bytes, folder: Path) -> None:
    """Write a plain BPE model as tokenizer.model, and the files that transformers and vLLM read."""
    with atomic_write(folder / "tokenizer.model", "wb") as file:
        file.write(data)
    model = sp.SentencePieceModel(data)
    roles = sp.SentencePieceBackend(model).roles
    tokens = {f"{role}_token": model.pieces[index][0] for role, index in roles.items() if index is not None}
    rule = None if roles["bos"] is None else bos_rule(tokens["bos_token"], roles["bos"])
    write_json(folder / "tokenizer.json", sp.hub_tokenizer(model) | {"post_processor": rule})
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **tokens,
                                                  "clean_up_tokenization_spaces": False})


# ----------------------------------------------------------------------------------------------- command line

def train_command(options: argparse.Namespace) -> None:
    if not 261 <= options.vocab_size <= sp.MAX_PIECES:  # before hours of reading
        raise UsageError(f"--vocab_size={options.vocab_size}: expected 261 to {sp.MAX_PIECES}")
    texts = (text for path in options.files for text, _ in read_texts(path))
    symbols = read_json(options.symbols) if options.symbols else []
    tokenizer = train_sentencepiece(texts, options.out, options.vocab_size, user_defined_symbols=symbols)
    print(f"{tokenizer.files[0]}: {tokenizer.vocab_size} pieces, fingerprint {tokenizer.fingerprint[:16]}")


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m mmed.tokenizer", description="Train a tokenizer, or look at one.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a sentencepiece tokenizer on documents")
    train.add_argument("files", nargs="+",
                       help="documents: .jsonl, .jsonl.gz (field `text`) or .txt, or folders of them")
    train.add_argument("--out", required=True, help="folder for tokenizer.model")
    train.add_argument("--vocab_size", type=int, required=True,
                       help="number of ids, including 260 special and byte tokens")
    train.add_argument("--symbols", metavar="FILE.json",
                       help="JSON list of texts to keep as one piece each; write spaces as \u2581")
    show = commands.add_parser("show", help="print the pieces and ids of a text")
    show.add_argument("tokenizer", help="model folder or tokenizer file")
    show.add_argument("--text", required=True)
    options = parser.parse_args(arguments)
    if options.command == "train":
        train_command(options)
    else:
        tokenizer = load_tokenizer(options.tokenizer)
        ids = tokenizer.encode(options.text)
        print(" | ".join(map(tokenizer.piece, ids)))
        print(*ids)


if __name__ == "__main__":
    main_guard(main)
