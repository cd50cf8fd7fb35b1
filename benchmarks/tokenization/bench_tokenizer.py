"""Text to ids against bare sentencepiece and Hugging Face tokenizers: MB/s of one core by CPU time, in turn.

    python benchmarks/tokenization/bench_tokenizer.py [--documents FILES] [--vocab_size 16000] [--megabytes 3]

Two tokenizers are trained on the documents (.jsonl, .jsonl.gz or .txt, grouped by their field `language`):
sentencepiece BPE, which Hugging Face's library reads as Llama's tokenizer.json with the same merges, and
byte-level BPE with Llama 3's pattern. A peer whose ids differ on any document ends the run. Without
--documents the texts are made (words of random letters of each script, used as often as words are).
"""
from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import sentencepiece
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from benchmarks.timing import in_turn, machine, print_rates
from mmed.tokenization.byte_level import LLAMA3
from mmed.tokenization.sentencepiece_model import SentencePieceModel
from mmed.tokenization.texts import read_texts
from mmed.tokenizer import load_tokenizer, train_sentencepiece
from mmed.utils.errors import Parser

LETTERS = {"en": "etaoinshrdlu", "fr": "esaitnrulodéè", "es": "eaosrnidlctuóí", "ru": "оеаинтсрвлкмд",
           "zh": None, "ja": None}


def made_texts(language: str, size: int) -> list[str]:
    """Documents of about 2,000 characters, of 20,000 made words; the k-th word is used 1/k as often."""
    rng = random.Random(language)
    letters = LETTERS[language]
    alphabet = letters or [chr(code) for code in range(0x4E00, 0x4E00 + 1500)]
    shortest, longest = (2, 10) if letters else (1, 3)
    words = ["".join(rng.choices(alphabet, k=rng.randint(shortest, longest))) for _ in range(20_000)]
    weights = [1 / (place + 1) for place in range(len(words))]
    documents, done = [], 0
    while done < size:
        stopped = [word + (rng.choice(",.") if rng.random() < 0.1 else "")
                   for word in rng.choices(words, weights, k=300)]
        documents.append((" " if letters else "").join(stopped))
        done += len(documents[-1].encode())
    return documents


def llama_json(path: Path) -> tokenizers.Tokenizer:
    """The sentencepiece model for Hugging Face's library: every split of a piece in two is a merge."""
    pieces = SentencePieceModel(path.read_bytes()).pieces
    place = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    normal = {piece for piece, _, kind in pieces if kind == 1}
    merges = [(score, place[piece[:i]], piece[:i], piece[i:]) for piece, score, kind in pieces if kind == 1
              for i in range(1, len(piece)) if piece[:i] in normal and piece[i:] in normal]
    merges.sort(key=lambda merge: (-merge[0], merge[1]))
    tokenizer = tokenizers.Tokenizer(models.BPE(place, [merge[2:] for merge in merges], unk_token="<unk>",
                                                fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def byte_level_json(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def compare(title: str, encoders: dict[str, Callable[[str], list[int]]], documents: list[str],
            rounds: int) -> None:
    """MB/s of each, once all have given the same ids."""
    reference = [encoders["ours"](text) for text in documents]
    for name, encode in encoders.items():
        if [encode(text) for text in documents] != reference:
            raise SystemExit(f"{title}: {name} gives other ids")
    forms = {name: lambda encode=encode: [encode(text) for text in documents]
             for name, encode in encoders.items()}
    size = sum(len(text.encode()) for text in documents) / 1e6
    print_rates(title, size, "MB/s", in_turn(forms, rounds))


def read_documents(options: argparse.Namespace) -> dict[str, list[str]]:
    """At most --megabytes of text of each language."""
    texts: dict[str, list[str]] = {}
    for path in options.documents:
        for text, language in read_texts(path):
            texts.setdefault(language, []).append(text)
    if not options.documents:
        texts = {language: made_texts(language, int(options.megabytes * 1e6)) for language in LETTERS}
    for language, documents in texts.items():
        random.Random(0).shuffle(documents)
        left = options.megabytes * 1e6
        texts[language] = [text for text in documents if (left := left - len(text.encode())) > 0]
    return texts


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", nargs="+", default=[], help="documents; made texts without it")
    parser.add_argument("--vocab_size", type=int, default=16_000)
    parser.add_argument("--megabytes", type=float, default=3, help="text of each language")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = read_documents(options)
    everything = [text for documents in texts.values() for text in documents]
    print(f"{'given' if options.documents else 'made'} texts, {len(everything)} documents; {machine()}")
    with tempfile.TemporaryDirectory() as folder:
        ours = train_sentencepiece(everything, folder, options.vocab_size)
        bare = sentencepiece.SentencePieceProcessor(model_file=str(ours.files[0]))
        llama = llama_json(ours.files[0])
        byte_level = byte_level_json(everything, options.vocab_size)
        byte_level.save(f"{folder}/tokenizer.json")
        our_bytes = load_tokenizer(f"{folder}/tokenizer.json")
    for language, documents in sorted(texts.items()):
        compare(f"{language}, sentencepiece BPE",
                {"ours": ours.encode, "bare sentencepiece": bare.encode,
                 "tokenizers": lambda text: llama.encode(text).ids}, documents, options.rounds)
        compare(f"{language}, byte-level BPE",
                {"ours": our_bytes.encode, "tokenizers": lambda text: byte_level.encode(text).ids},
                documents, options.rounds)


if __name__ == "__main__":
    main()
