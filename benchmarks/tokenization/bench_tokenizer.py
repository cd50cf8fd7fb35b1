"""Speed of text -> ids against bare sentencepiece and Hugging Face tokenizers: MB/s on one core by CPU time,
in turn.

    python benchmarks/tokenization/bench_tokenizer.py [--documents FILES] [--vocab_size 16000] [--megabytes 3]
    [--rounds 3]

Two tokenizers are trained on the documents (.jsonl, .jsonl.gz or .txt, grouped by their field `language`):
sentencepiece BPE, which Hugging Face's library reads as Llama's tokenizer.json with the same merges, and
byte-level BPE with Llama 3's pattern. Ids are compared first, document by document: any difference ends the
run. Without --documents the texts are made (words of random letters of each script, used as often as words
are), and say so. The best of the rounds counts; each round times every peer once, so a load on the machine
meets all of them.
"""
from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import sentencepiece

from mmed.tokenization.byte_level import LLAMA3
from mmed.tokenization.sentencepiece_model import SentencePieceModel
from mmed.tokenization.texts import read_texts
from mmed.tokenizer import load_tokenizer, train_sentencepiece
from mmed.utils.errors import main_guard, require_extra

LETTERS = {
    "en": "etaoinshrdlu", "fr": "esaitnrulodéè", "es": "eaosrnidlctuóí", "ru": "оеаинтсрвлкмд", "zh": None,
    "ja": None
}


def made_texts(language: str, size: int) -> list[str]:
    """Documents of about 2,000 characters from 20,000 made words, the k-th most frequent used 1/k as often.
    """
    rng = random.Random(language)
    letters = LETTERS[language]
    alphabet = letters or [chr(code) for code in range(0x4E00, 0x4E00 + 1500)]
    words = [
        "".join(rng.choices(alphabet, k=rng.randint(2, 10) if letters else rng.randint(1, 3)))
        for _ in range(20_000)
    ]
    weights = [1 / (place + 1) for place in range(len(words))]
    documents, done = [], 0
    while done < size:
        words_here = rng.choices(words, weights, k=300)
        documents.append((" " if letters else "").join(word + (rng.choice(",.") if rng.random() < 0.1 else "")
                                                       for word in words_here))
        done += len(documents[-1].encode())
    return documents


def llama_json(path: Path):
    """The sentencepiece model as Hugging Face's library runs it: every split of a piece into two pieces is a
    merge.
    """
    hf = require_extra("tokenizers", "test")
    from tokenizers import models, normalizers

    pieces = SentencePieceModel(path.read_bytes(), str(path)).pieces
    place = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    normal = {piece for piece, _, kind in pieces if kind == 1}
    merges = [(score, place[piece[:i]], piece[:i], piece[i:]) for piece, score, kind in pieces if kind == 1
              for i in range(1, len(piece)) if piece[:i] in normal and piece[i:] in normal]
    merges.sort(key=lambda merge: (-merge[0], merge[1]))
    tokenizer = hf.Tokenizer(
        models.BPE(place, [merge[2:] for merge in merges],
                   unk_token="<unk>",
                   fuse_unk=True,
                   byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def byte_level_json(texts: list[str], vocab_size: int):
    hf = require_extra("tokenizers", "test")
    from tokenizers import Regex, models, pre_tokenizers, trainers

    tokenizer = hf.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def rates(peers: dict[str, Callable[[str], list[int]]], documents: list[str],
          rounds: int) -> dict[str, float]:
    """MB/s of each peer, once all of them have given the same ids."""
    reference = None
    for name, encode in peers.items():
        ids = [encode(text) for text in documents]
        if reference is not None and ids != reference:
            raise SystemExit(f"{name}: other ids than {next(iter(peers))}")
        reference = ids
    best = dict.fromkeys(peers, float("inf"))
    for _ in range(rounds):
        for name, encode in peers.items():
            start = time.process_time()
            for text in documents:
                encode(text)
            best[name] = min(best[name], time.process_time() - start)
    size = sum(len(text.encode()) for text in documents) / 1e6
    return {name: size / seconds for name, seconds in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", nargs="+", default=[], help="documents; made texts without it")
    parser.add_argument("--vocab_size", type=int, default=16_000)
    parser.add_argument("--megabytes", type=float, default=3, help="text of each language")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts: dict[str, list[str]] = {}
    if options.documents:
        for path in options.documents:
            for text, language in read_texts(path):
                texts.setdefault(language, []).append(text)
    else:
        texts = {language: made_texts(language, int(options.megabytes * 1e6)) for language in LETTERS}
    for language, documents in texts.items():
        random.Random(0).shuffle(documents)
        left = options.megabytes * 1e6
        texts[language] = [text
                           for text in documents if (left := left - len(text.encode())) > 0] or documents[:1]
    everything = [text for documents in texts.values() for text in documents]
    print(
        f"{'made' if not options.documents else 'given'} texts, {len(everything)} documents, vocabulary "
        f"{options.vocab_size}, "
        "MB/s by CPU time, one core, ids equal on every document")
    print(f"{'':10}{'sentencepiece BPE':>42}{'byte-level BPE':>34}")
    print(
        f"{'language':10}"
        f"{'bare':>9}{'HF':>9}{'ours':>9}{'x bare':>8}{'x HF':>7}{'HF':>12}{'ours':>12}{'x HF':>10}"
    )
    with tempfile.TemporaryDirectory() as folder:
        ours = train_sentencepiece(everything, folder, options.vocab_size)
        bare = sentencepiece.SentencePieceProcessor(model_file=str(ours.files[0]))
        hf = llama_json(ours.files[0])
        byte_level = byte_level_json(everything, options.vocab_size)
        byte_level.save(f"{folder}/tokenizer.json")
        ours_bytes = load_tokenizer(f"{folder}/tokenizer.json")
    for language, documents in sorted(texts.items()):
        a = rates({"bare": bare.encode, "hf": lambda text: hf.encode(text).ids, "ours": ours.encode},
                  documents, options.rounds)
        b = rates({"hf": lambda text: byte_level.encode(text).ids, "ours": ours_bytes.encode}, documents,
                  options.rounds)
        print(
            f"{language:10}"
            f"{a['bare']:9.1f}"
            f"{a['hf']:9.1f}{a['ours']:9.1f}{a['ours'] / a['bare']:8.2f}{a['ours'] / a['hf']:7.2f}"
            f"{b['hf']:12.1f}{b['ours']:12.1f}{b['ours'] / b['hf']:10.2f}")


if __name__ == "__main__":
    main_guard(main)
