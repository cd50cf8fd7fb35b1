"""Token streams: what is written is read back, from one file or from parts; damage is rejected by name."""
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_world import random_documents, write_stream

from mmed.tokenization import token_streams
from mmed.tokenization.token_streams import StreamWriter, TokenStream, token_dtype, write_manifest
from mmed.utils.errors import UserError
from mmed.utils.fingerprints import file_hash


@pytest.mark.parametrize("vocab_size, name", [(65536, "uint16"), (65537, "uint32")])
def test_the_dtype_is_the_smallest_that_holds_the_vocabulary(tmp_path, vocab_size, name):
    assert token_dtype(vocab_size).name == name
    ids = [0, 1, vocab_size - 1]
    stream = write_stream(tmp_path / "s", [ids, ids], vocab_size)
    assert np.memmap(tmp_path / "s.bin", dtype=name, mode="r").tolist() == ids * 2 == stream.ids[:].tolist()
    assert stream.ends.tolist() == [3, 6]


def test_a_stream_of_parts_equals_one_file_and_keeps_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(token_streams, "MAPPED_PARTS", 3)
    parts = [random_documents(seed, 5) for seed in range(20)]
    for number, documents in enumerate(parts):
        write_stream(tmp_path / "p" / str(number), documents)
    StreamWriter(tmp_path / "p" / "empty", 1000, "print").close()
    names = ["empty", *map(str, range(10)), "empty", *map(str, range(10, 20)), "empty"]
    meta = write_manifest(tmp_path / "s", [tmp_path / "p" / name for name in names])
    expected = write_stream(tmp_path / "all", list(itertools.chain(*parts)))
    stream = TokenStream(tmp_path / "s", verify=True)
    assert meta["counts"] == {"en": {"web": {"tokens": len(expected.ids), "documents": 100}}}
    assert (stream.ids[:] == expected.ids[:]).all() and (stream.ends == expected.ends).all()
    last = len(expected.ids) - 1
    for begin, end in ((0, 0), (3, 400), (last, None), *((at, at + 60) for at in range(0, last, 50))):
        assert (stream.ids[begin:end] == expected.ids[begin:end]).all()
    opened = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert len([name for name in opened if name.startswith(f"{tmp_path}/p/")]) <= 3
    (tmp_path / "p" / "7.bin").unlink()  # during a run
    with pytest.raises(UserError, match=r"7\.bin: part of a stream: .* tokenize again"):
        stream.ids[:]
    with pytest.raises(UserError, match=r"none\.json: no such token stream; make one with"):
        TokenStream(tmp_path / "none")


def test_ranks_share_the_files_to_verify_and_remember_them(tmp_path, monkeypatch):
    for number in range(5):
        write_stream(tmp_path / "p" / str(number), random_documents(number, 5))
    write_manifest(tmp_path / "s", [tmp_path / "p" / str(number) for number in range(5)])
    stream, hashed = TokenStream(tmp_path / "s"), []
    monkeypatch.setattr(token_streams, "file_hash", lambda path: hashed.append(path) or file_hash(path))
    for rank in range(3):
        stream.verify(rank, 3)
        assert len(hashed) == 2 * rank + 2
    assert sorted(hashed) == sorted(stream.hashes)
    stream.verify()
    assert len(hashed) == 6, "remembered"
    os.utime(tmp_path / "p" / "3.bin", (0, 0))
    stream.verify()
    assert hashed[6:] == [tmp_path / "p" / "3.bin"], "of another time"


def change_side_file(**changes):
    def change(folder):
        meta = json.loads((folder / "s.json").read_text())
        (folder / "s.json").write_text(json.dumps(meta | changes))
    return change


def change_bytes(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def exchange_side_file(folder):
    write_stream(folder / "t", random_documents(9))
    (folder / "t.json").rename(folder / "s.json")


@pytest.mark.parametrize("damage", [
    exchange_side_file, change_side_file(dtype="uint32"), change_side_file(sha256=[]),
    change_side_file(tokens="9"), change_side_file(documents=39),
    change_bytes("s.bin", lambda data: data[:3] + bytes([data[3] ^ 4]) + data[4:]),
    change_bytes("s.bin", lambda data: data[:-1]), change_bytes("s.idx", lambda data: b""),
    change_bytes("s.json", lambda data: b"{}"), lambda folder: (folder / "s.idx").unlink(),
    lambda folder: (folder / "s.json").unlink()])
def test_a_damaged_stream_is_rejected_by_name(tmp_path, damage):
    write_stream(tmp_path / "s", random_documents(1))
    damage(tmp_path)
    with pytest.raises(UserError, match=str(tmp_path / "s")):
        TokenStream(tmp_path / "s", "print", verify=True)


def test_another_tokenizer_or_vocabulary_is_rejected(tmp_path):
    write_stream(tmp_path / "s", random_documents(1))
    with pytest.raises(UserError, match="made with tokenizer"):
        TokenStream(tmp_path / "s", "other")
    for ids in ([1, 2, 1000], []):
        with pytest.raises(ValueError, match="expected ids"):
            write_stream(tmp_path / "t", [ids])
