"""mmed/utils/files.py: complete files or none, bounded JSON, and one line for what is wrong."""
import errno
import gzip
import json
import os
import re
from pathlib import Path

import pytest

from mmed.utils import files
from mmed.utils.errors import UserError
from mmed.utils.files import atomic_write, read_json, read_jsonl, try_lock, write_json

GOOD = gzip.compress(b'{"a": 1}\n' * 10_000, mtime=0)
BAD_LINES = [
    (b'{"a": 1}\n{"a": 2', ":2: not valid JSON"),
    (b'{"a": 1}\n[]\n', ":2: expected one JSON object"),
    (b'{"a": "\xff"}\n', ":1: not UTF-8"),
    (b"[" * 100_000, ":1: not valid JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", ":1: not valid JSON"),
    (b'{"a": 1}\n\n{"a": "' + b"x" * 200_000 + b'"}\n', ":3: a line of more than 150,000 characters")]


@pytest.mark.parametrize(("name", "content", "message"), [
    *(("a.jsonl", content, message) for content, message in BAD_LINES),
    *(("a.jsonl.gz", gzip.compress(content, mtime=0), message) for content, message in BAD_LINES),
    *(("a.jsonl.gz", content, r":\d+: cannot be decompressed")
      for content in (GOOD[:-20], b"no gzip", GOOD[:12]))], ids=range(15))
def test_a_bad_line_is_named(tmp_path, monkeypatch, name, content, message):
    monkeypatch.setattr(files, "MAX_LINE_CHARACTERS", 150_000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path / name))}{message}"):
        list(read_jsonl(tmp_path / name))


def test_good_lines_are_read_with_their_numbers(tmp_path):
    text = '\ufeff{"a": "x\u2028y"}\r\n\n{"b": 1}'
    (tmp_path / "a.jsonl").write_bytes(text.encode())
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("a.jsonl", "b.jsonl.gz"):
        assert list(read_jsonl(tmp_path / name)) == [(1, {"a": "x\u2028y"}), (3, {"b": 1})]


def test_a_json_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf{}" + b" " * 2000)
    assert read_json(tmp_path / "a.json") == {}
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 1000)
    with pytest.raises(UserError, match="2,005 bytes exceed the limit"):
        read_json(tmp_path / "a.json")


def test_lone_surrogates_are_read_back(tmp_path):
    for value in ({"name": os.fsdecode(b"caf\xe9.pdf")}, ["\ud800", "\U0001f600"]):
        write_json(tmp_path / "a.json", value)
        assert read_json(tmp_path / "a.json") == value


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", [1, float("nan")])
    with pytest.raises(KeyError), atomic_write(tmp_path / "a.json") as file:
        file.write("half")
        raise KeyError
    assert json.loads((tmp_path / "a.json").read_text()) == [1, None]
    assert [path.name for path in Path(tmp_path).iterdir()] == ["a.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_with_the_path_and_the_bytes():
    with pytest.raises(UserError, match=r"out/x: could not be written \(1,000 bytes needed\): no space left"):
        with files.writing("out/x", need=1000), open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")


def test_two_writers_of_one_file_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 1)
    with atomic_write(tmp_path / "f") as one:
        one.write("one")
        with atomic_write(tmp_path / "f") as two:
            two.write("two")
        assert (tmp_path / "f").read_text() == "two"
    assert (tmp_path / "f").read_text() == "one" and [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_lock_is_held_once_and_its_absence_is_a_warning(tmp_path, monkeypatch, capsys):
    with open(tmp_path / "lock", "w") as one, open(tmp_path / "lock", "w") as two:
        assert try_lock(one) and not try_lock(two)

        def no_locks(file, operation):
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr("fcntl.flock", no_locks)
        assert try_lock(two)
    assert "no locks" in capsys.readouterr().err
