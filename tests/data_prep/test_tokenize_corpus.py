"""Documents to one stream: the ids are the tokenizer's, on any number of workers and after a kill."""

import gzip
import itertools
import json
import random

import pytest

from data_prep.tokenize_corpus import HELD_OUT, count_table, tokenize_corpus, tokenize_part
from mmed.data import TokenStream
from mmed.tokenizer import train_sentencepiece
from mmed.utils.errors import UserError

WORDS = ["heart", "lung", "Herz", "心臓", "сердце", "corazón", "rain", "stone"]


@pytest.fixture
def corpus(tmp_path):
    rng = random.Random(5)
    texts = []
    for shard in range(3):
        lines = []
        for n in range(40):
            text = " ".join(rng.choices(WORDS, k=rng.randint(1, 30)))
            texts.append(text)
            lines.append(
                json.dumps(
                    {
                        "text": text,
                        "language": ["en", "ja"][n % 2],
                        "source": ["web", "book"][shard % 2],
                        "id": f"{shard}-{n}",
                    }
                )
            )
        lines.append(json.dumps({"text": "  ", "language": "en"}))
        (tmp_path / "raw").mkdir(exist_ok=True)
        with gzip.open(tmp_path / "raw" / f"part{shard}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n{broken\n")
    tokenizer = train_sentencepiece(texts, tmp_path / "tokenizer", 320)
    return tmp_path, tokenizer, texts


def documents_of(stream):
    ends = [0, *stream.ends.tolist()]
    return [stream.ids[a:b].tolist() for a, b in itertools.pairwise(ends)]


def test_every_document_is_in_the_stream_once_with_bos_and_eos(corpus):
    folder, tokenizer, texts = corpus
    meta = tokenize_corpus([folder / "raw"], folder / "tokenizer", folder / "out" / "s")
    stream = TokenStream(folder / "out" / "s", tokenizer.fingerprint, verify=True)
    assert documents_of(stream) == [tokenizer.encode(text, bos=True, eos=True) for text in texts]
    assert (
        sum(c["documents"] for by in meta["counts"].values() for c in by.values())
        == len(texts)
        == meta["documents"]
    )
    assert meta["funnel"]["dropped"] and "120" in count_table(meta["counts"])


def test_the_bytes_do_not_depend_on_workers_or_on_a_kill(corpus):
    folder, _, _ = corpus
    tokenize_corpus([folder / "raw"], folder / "tokenizer", folder / "one", held_out=0.2)
    options = {
        "tokenizer": str(folder / "tokenizer"),
        "held_out": 0.2,
        "language": "",
        "source": "",
        "strict": False,
        "bos": "auto",
    }
    (folder / "two.parts").mkdir()
    tokenize_part(
        folder / "raw" / "part1.jsonl.gz", "part1", folder / "two.parts", options
    )  # a first run got this far …
    (folder / "two.parts" / "part0.bin.tmp").write_bytes(b"half")  # … and died here
    done = (folder / "two.parts" / "part1.done.json").stat().st_mtime_ns
    tokenize_corpus([folder / "raw"], folder / "tokenizer", folder / "two", held_out=0.2, workers=2)
    for suffix in (".bin", ".idx", HELD_OUT + ".bin", HELD_OUT + ".idx"):
        assert (folder / f"one{suffix}").read_bytes() == (folder / f"two{suffix}").read_bytes()
    assert done and not (folder / "two.parts").exists()


def test_held_out_documents_are_in_the_other_stream_and_copies_stay_on_one_side(corpus):
    folder, _, texts = corpus
    tokenize_corpus([folder / "raw"], folder / "tokenizer", folder / "s", held_out=0.3)
    kept = {tuple(d) for d in documents_of(TokenStream(folder / "s"))}
    held = {tuple(d) for d in documents_of(TokenStream(folder / f"s{HELD_OUT}"))}
    assert not kept & held and len(kept | held) == len(set(texts)) and 0.1 < len(held) / len(set(texts)) < 0.5


def test_a_finished_stream_is_not_made_again_and_a_changed_input_is(corpus):
    folder, _, _ = corpus
    tokenize_corpus([folder / "raw"], folder / "tokenizer", folder / "s")
    before = (folder / "s.bin").stat().st_mtime_ns
    tokenize_corpus([folder / "raw"], folder / "tokenizer", folder / "s")
    assert (folder / "s.bin").stat().st_mtime_ns == before
    with gzip.open(folder / "raw" / "part0.jsonl.gz", "at", encoding="utf-8") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    assert tokenize_corpus([folder / "raw"], folder / "tokenizer", folder / "s")["documents"] == 121


def test_nothing_to_tokenize_and_a_missing_tokenizer_are_one_line(corpus):
    folder, _, _ = corpus
    (folder / "empty.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(UserError, match="no document to tokenize"):
        tokenize_corpus([folder / "empty.jsonl"], folder / "tokenizer", folder / "s")
    with pytest.raises(UserError, match="nowhere: no such file"):
        tokenize_corpus([folder / "raw"], folder / "nowhere", folder / "s")
