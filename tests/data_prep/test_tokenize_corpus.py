"""Documents to one stream: the ids are the tokenizer's, on any number of workers and tasks, after a kill."""
import itertools
import math
import os
import random
import re
import shutil
from pathlib import Path

import pytest
from corpus_files import tree, write

from data_prep.tokenize_corpus import HELD_OUT, count_table, main, tokenize_corpus
from mmed.tokenization.token_streams import TokenStream
from mmed.tokenizer import train_sentencepiece
from mmed.utils.errors import UserError

WORDS = ["heart", "lung", "Herz", "心臓", "сердце", "corazón", "rain", "stone"]


@pytest.fixture
def corpus(tmp_path):
    """Three shards of 40 documents, an empty text in each; (folder, tokenizer, texts)."""
    rng, texts = random.Random(5), []
    for shard in range(3):
        mine = [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(40)]
        write(tmp_path / "raw" / f"part{shard}.jsonl", {"text": "  "},
              *[{"text": text, "language": ["en", "ja"][n % 2], "source": ["web", "book"][shard % 2]}
                for n, text in enumerate(mine)])
        texts += mine
    return tmp_path, train_sentencepiece(texts, tmp_path / "tokenizer", 320), texts


def documents_of(stream: TokenStream) -> list[list[int]]:
    ends = [0, *stream.ends.tolist()]
    return [stream.ids[a:b].tolist() for a, b in itertools.pairwise(ends)]


def test_every_document_is_in_the_stream_once_with_bos_and_eos(corpus):
    folder, tokenizer, texts = corpus
    meta = tokenize_corpus([folder / "raw"], folder / "tokenizer", folder / "out" / "s")
    stream = TokenStream(folder / "out" / "s", tokenizer.fingerprint, verify=True)
    assert documents_of(stream) == [tokenizer.encode(text, bos=True, eos=True) for text in texts]
    counted = sum(count["documents"] for by in meta["counts"].values() for count in by.values())
    assert counted == len(texts) == meta["documents"] and "120" in count_table(meta["counts"])
    assert meta["funnel"]["dropped"]["empty text"]["documents"] == 3


def test_the_bytes_do_not_depend_on_workers_tasks_or_a_kill(corpus, monkeypatch, capsys):
    folder, _, _ = corpus
    command = [str(folder / "raw"), "--tokenizer", str(folder / "tokenizer"), "--held_out", "0.2"]
    main([*command, "--out", str(folder / "one")])
    held_out = TokenStream(folder / f"one{HELD_OUT}").meta["documents"]
    assert f"one{HELD_OUT}: {held_out} of " in capsys.readouterr().err
    (folder / "two.parts").mkdir()
    (folder / "two.parts" / "part0.7.bin.tmp").write_bytes(b"half")  # a task that died here
    main([*command, "--out", str(folder / "two"), "--workers", "2"])
    for share in ("0/2", "1/2", "1/2"):
        main([*command, "--out", str(folder / "tasks"), "--shard", share])
        assert not (folder / "tasks.json").exists()
    monkeypatch.setattr("data_prep.documents.read_documents", lambda *_, **__: pytest.fail("read again"))
    command[2] = os.path.relpath(command[2])
    main([*command, "--out", str(folder / "tasks")])
    kept, held = (set(map(tuple, documents_of(TokenStream(folder / f"one{suffix}"))))
                  for suffix in ("", HELD_OUT))
    assert not kept & held and 0.1 < len(held) / len(kept | held) < 0.3  # copies stay on one side
    for suffix in ("", HELD_OUT):
        one, two, tasks = (TokenStream(folder / f"{name}{suffix}", verify=True)
                           for name in ("one", "two", "tasks"))
        assert documents_of(one) == documents_of(two) == documents_of(tasks)
        assert list(one.hashes.values()) == list(two.hashes.values()) == list(tasks.hashes.values())
    for name in ("one", "two", "tasks"):  # nothing else stays: no locks, no half files
        assert [path.suffix for path in (folder / f"{name}.parts").iterdir()] == [".bin"] * 6


def test_a_part_that_is_missing_or_changed_is_named(corpus):
    folder, _, _ = corpus
    tokenize_corpus([folder / "raw"], folder / "tokenizer", folder / "s")
    stream = TokenStream(folder / "s", verify=True)
    assert len(list(folder.glob("s.verified-0-of-1.json"))) == 1
    part = sorted((folder / "s.parts").iterdir())[1]
    data = part.read_bytes()
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r"part1.*damaged"):
        stream.verify()
    part.write_bytes(data[:-2])
    with pytest.raises(UserError, match=r"part1.*does not contain"):
        documents_of(TokenStream(folder / "s"))
    part.unlink()
    with pytest.raises(UserError, match=r"part1.*No such file"):
        stream.verify()


def test_a_stream_is_made_again_if_it_lost_a_file_or_its_input_or_split_changed(corpus):
    root, _, _ = corpus
    folder = root / "raw"  # the stream itself, beside its inputs, is none of them
    arguments = [folder], root / "tokenizer", folder / "s"

    def streams() -> list[list[list[int]]]:
        tokenize_corpus(*arguments, held_out=0.3)
        return [documents_of(TokenStream(folder / name)) for name in ("s", f"s{HELD_OUT}")]

    first, before = streams(), (folder / "s.idx").stat().st_mtime_ns
    assert streams() == first and (folder / "s.idx").stat().st_mtime_ns == before  # not made again
    shutil.rmtree(folder / "s.parts")
    assert streams() == first
    (folder / f"s{HELD_OUT}.idx").unlink()
    assert streams() == first
    write(folder / "part0.jsonl", {"text": "one more"})
    assert tokenize_corpus(*arguments)["documents"] == 81
    assert not list(folder.glob(f"s{HELD_OUT}*"))  # of the earlier split


def test_a_finished_stream_leaves_files_of_others_alone(corpus):
    root, _, _ = corpus
    tokenize_corpus([root / "raw"], root / "tokenizer", root / "out" / "s")
    tokenize_corpus([root / "raw" / "part0.jsonl"], root / "tokenizer", root / "out" / f"s{HELD_OUT}")
    (root / "out" / "s.parts" / "mine").mkdir()
    for name in ("s.parts/notes.txt", "s.bin.2024.x.tmp", "s.idx.bak.7.tmp", "S.bin.7.tmp"):
        (root / "out" / name).touch()
    before = tree(root / "out")
    for name in ("s.bin.2024.tmp", "s.parts/part0.json"):  # of runs that were killed
        (root / "out" / name).touch()
    tokenize_corpus([root / "raw"], root / "tokenizer", root / "out" / "s")
    assert tree(root / "out") == before and (root / "out" / "s.parts" / "mine").is_dir()


@pytest.mark.parametrize(("held_out", "count"), [(0.04, 7), (0.03, 4)])  # one document is held out, or none
def test_a_kill_at_any_write_leaves_what_an_uninterrupted_run_does(corpus, monkeypatch, held_out, count):
    """A dead process renames and deletes nothing more, not even its own temporary files."""
    root, _, _ = corpus
    (root / "raw" / "part2.jsonl").unlink()

    class Killed(BaseException):
        pass

    def run(name: str, kill_at: float = math.inf) -> int:
        calls = itertools.count(1)

        def counted(function):
            def call(*arguments, **keywords):
                if next(calls) >= kill_at:
                    raise Killed
                return function(*arguments, **keywords)
            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted(os.replace))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            tokenize_corpus([root / "raw"], root / "tokenizer", root / name / "s", held_out=held_out)
        return next(calls) - 1

    def files(name: str) -> list[tuple[str, bytes]]:
        return sorted((re.sub(r"\.\d+", "", path), b"" if path.endswith(".json") else data)
                      for path, data in tree(root / name).items())

    calls, expected = run("whole"), files("whole")
    assert calls > 20 and len(expected) == count
    for kill_at in range(1, calls + 1):
        with pytest.raises(Killed):
            run(f"killed{kill_at}", kill_at)
        run(f"killed{kill_at}")
        assert files(f"killed{kill_at}") == expected, kill_at


def test_nothing_to_tokenize_and_a_missing_tokenizer_are_one_line(corpus):
    folder, _, _ = corpus
    with pytest.raises(UserError, match="no document to tokenize"):
        tokenize_corpus([write(folder / "empty.jsonl", {"text": " "})], folder / "tokenizer", folder / "s")
    with pytest.raises(UserError, match=r"s\.json: an input that the stream would overwrite"):
        tokenize_corpus([write(folder / "s.json", {"text": "a"})], folder / "tokenizer", folder / "s")
    with pytest.raises(UserError, match=r"--held_out=5: must be at least 0"):
        tokenize_corpus([folder / "raw"], folder / "tokenizer", folder / "s", held_out=5)
    with pytest.raises(UserError, match="nowhere: no such file"):
        tokenize_corpus([folder / "raw"], folder / "nowhere", folder / "s")
