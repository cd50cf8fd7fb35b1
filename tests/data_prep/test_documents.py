"""Documents from files as they are published, and steps over shards: resumable, bounded, everything
counted."""
import bz2
import gzip
import io
import lzma
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpus_files import read_folder, tree, write
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT

from data_prep import record_files
from data_prep.clean import main as clean
from data_prep.documents import Document, Funnel, find_inputs, json_line, normalise_text, read_documents
from data_prep.pipeline.shards import ShardWriter, one_run, process_shards, shard_names
from data_prep.record_files import DAMAGED
from mmed.utils.errors import UserError


def read(path: Path, data: bytes | None = None, **options) -> tuple[list[str], dict[str, int]]:
    """The texts of a file, and the number of documents dropped for each reason."""
    if data is not None:
        path.write_bytes(data)
    funnel = Funnel()
    texts = [document.text for document in read_documents(path, funnel, **options)]
    return texts, {reason: entry["documents"] for reason, entry in funnel.dropped.items()}


def write_parquet(path: Path, rows: list[dict]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


def long_zstd(data: bytes) -> bytes:
    """With a long window, after a frame to skip."""
    zstandard = pytest.importorskip("zstandard")
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return b"\x50\x2a\x4d\x18\x02\0\0\0xy" + compressor.compress(data) + compressor.flush()


# ---- files ---------------------------------------------------------------------------------------


@given(st.text(st.characters(codec=None), max_size=200))
def test_normalising_twice_changes_nothing_and_lines_are_one_line(text):
    once = normalise_text(text)
    assert normalise_text(once) == once and "\x00" not in once and "\r" not in once
    line = json_line({"text": "a\u2028b\x85c", "meta": once})
    assert len(line.decode().splitlines()) == 1


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd, long_zstd])
def test_packing_is_recognised_by_content(tmp_path, pack):
    data = pack(json_line({"text": "one"})) + pack(json_line({"text": "two"}))  # two frames
    assert read(tmp_path / "c4-en.00000-of-00001.json.gz", data) == (["one", "two"], {})


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_a_truncated_file_gives_what_comes_before_the_damage(tmp_path, pack):
    rng = random.Random(0)
    data = pack(b"".join(json_line({"text": rng.randbytes(200).hex()}) for _ in range(5000)))
    for name, damaged in (("cut", data[:len(data) * 2 // 3]), ("flipped", data[:-400] + b"\x55" * 400)):
        texts, dropped = read(tmp_path / f"{name}.jsonl.gz", damaged)
        assert len(texts) > 1000 and dropped.pop(DAMAGED) == 1
        assert not dropped or name == "flipped"  # which may be unpacked to a line of other bytes


TWO_PARAGRAPHS = "first\nstill first\r\n\r\n\u3000\r\nsecond\n".encode("utf-8-sig")


@pytest.mark.parametrize(("name", "data", "expected", "dropped"), [
    *((name, b'{"text": "one"}\n', ["one"], {})
      for name in ("a.jsonl", "a.json", "a.ndjson", "a.jl", "wiki_00", "part-00000.c000", "a.txt.json")),
    ("a.json", b'["one", {"text": "two"}, 3]', ["one", "two"], {"not an object": 1}),
    ("a.json", b'[\n {\n  "text": "one"\n },\n "two",\n 3]', ["one", "two"], {"not an object": 1}),
    ("a.json", b'{\r\n "text": "one"\r\n}', ["one"], {}),
    ("a.json", b'[{"text": "one"}', [], {"not JSON": 1}),
    ("oscar.jsonl", b'{"content": "a"}', ["a"], {}), ("redpajama.jsonl", b'{"raw_content": "a"}', ["a"], {}),
    ("a.jsonl?download=true", b'{"text": "a"}', ["a"], {}), ("a.txt?x=1", b"a", ["a"], {}),
    ("a.jsonl.gz", b"", [], {DAMAGED: 1}),
    ("a.parquet.gz", gzip.compress(b"PAR1", mtime=0), [], {DAMAGED: 1}),
    ("a.txt", TWO_PARAGRAPHS, [normalise_text(TWO_PARAGRAPHS.decode())], {}),
    ("paragraphs.txt", TWO_PARAGRAPHS, ["first\nstill first", "second"], {}),
    ("b.txt", b"caf\xe9", [], {"not UTF-8": 1}),
    ("c.txt", b"one zero byte\0 in UTF-8", ["one zero byte in UTF-8"], {}),
    ("d.txt", "Боль в груди, озноб".encode("utf-16-le"), [], {"not UTF-8": 1})])
def test_published_forms_are_read(tmp_path, name, data, expected, dropped):
    assert read(tmp_path / name, data, paragraphs=name == "paragraphs.txt") == (expected, dropped)
    (tmp_path / f"._{name}").write_bytes(b"\0\5\x16\7")  # of macOS
    if name != "part-00000.c000":
        assert find_inputs([tmp_path]) == [tmp_path / name]
    if name == "paragraphs.txt":
        assert list(read_documents(tmp_path / name, paragraphs=True))[1].id == "paragraphs:5"


@pytest.mark.parametrize(("name", "data", "options", "message"), [
    ("a.doc", b"\xd0\xcf\x11\xe0", {}, "neither JSON lines nor parquet"),
    ("wiki_00", b'<doc id="1">\nA\n</doc>\n', {}, "neither JSON lines nor parquet.*wikiextractor --json"),
    ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", {},
     "Git LFS pointer"),
    ("a.json", b'[{"text": "one"}]' + b" " * 100, {}, r"a\.json: longer than 0 MiB; .* JSON lines"),
    ("a.txt", b"a" * 100, {}, r"a\.txt: longer than 0 MiB; .*--paragraphs"),
    ("a.jsonl", b'{"body": "a", "url": "u"}\n' * 3, {},
     "no field text or content or raw_content in .*have: body, url; .*--text_field"),
    ("a.jsonl", b'{"page": {"body": "a"}}', {"text_field": "story"}, "no field story"),
    ("a.jsonl", b'{"text": "good"}\nnot json', {"strict": True},
     r"a\.jsonl:2: not JSON; fix the file, or omit --strict")])
def test_an_unusable_file_is_one_line(tmp_path, monkeypatch, name, data, options, message):
    monkeypatch.setattr(record_files, "MAX_LINE_BYTES", 100)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name, data, **options)


def test_linked_folders_are_read_once_and_unreadable_ones_are_an_error(tmp_path, monkeypatch):
    write(tmp_path / "real" / "a.jsonl", {"text": "a"})
    (tmp_path / "real" / "above").symlink_to(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("link", "second"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "real")
    assert find_inputs([tmp_path / "in"]) == [tmp_path / "in" / "link" / "a.jsonl"]
    monkeypatch.setattr(os, "scandir", lambda folder: os.stat(f"{folder}/nothing"))
    with pytest.raises(FileNotFoundError):
        find_inputs([tmp_path])


def test_parquet_with_nested_columns_is_read_up_to_damage(tmp_path):
    rows = [{"text": "one", "meta": {"a": [{"b": None, "c": 1}]}, "quality": [0.5, float("nan")], "id": 7,
             "raw": b"x\xff"},
            {"text": None, "meta": None, "quality": None, "id": 8, "raw": None}]
    path = write_parquet(tmp_path / "a.parquet", rows)
    document, = read_documents(path)
    assert document.meta == {"a": [{"b": None, "c": 1}], "quality": [0.5, None], "raw": "x\ufffd"}
    assert document.id == "7" and read(path) == (["one"], {"no text": 1})
    assert read(path, path.read_bytes()[:-20]) == ([], {DAMAGED: 1})


def test_of_a_damaged_parquet_file_the_rest_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    path, texts = tmp_path / "a.parquet", [b"one", b"caf\xe9", b"three", b"damaged", b"last"]
    schema = pyarrow.schema([("text", pyarrow.string())])
    column = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table([column], schema), path, 3, use_dictionary=False)
    groups = pyarrow.parquet.ParquetFile(path).metadata
    start = groups.row_group(1).column(0).data_page_offset
    data = path.read_bytes()
    damaged = data[:start] + b"\xff" * 10 + data[start + 10:]
    assert read(path) == (["one", "three", "damaged", "last"], {"not UTF-8": 1})
    assert read(path, damaged) == (["one", "three"], {"not UTF-8": 1, DAMAGED: 1})


def test_text_in_a_nested_field_or_a_list_is_read(tmp_path):
    cord = {"body_text": [{"text": "one", "section": "s"}, {"text": "two"}]}
    bioc = {"documents": [{"passages": [{"text": "one"}, {"infons": 1}]}, {"passages": [{"text": "two"}]}]}
    for field, record in (("body_text.text", cord), ("text", {"text": ["one", "two"]}),
                          ("documents.passages.text", bioc)):
        for path in (write_parquet(tmp_path / "b.parquet", [record]), write(tmp_path / "b.jsonl", record)):
            assert read(path, text_field=field) == (["one\ntwo"], {})
    pubmed = {"Article": {"Abstract": {"AbstractText": "a", "n": 1}}, "text": ""}
    for path in (write_parquet(tmp_path / "a.parquet", [pubmed]), write(tmp_path / "a.jsonl", pubmed)):
        document, = read_documents(path, text_field="Article.Abstract.AbstractText")
        assert (document.text, document.meta) == ("a", {"Article": {"Abstract": {"n": 1}}, "text": ""})


@pytest.mark.parametrize(("record", "source", "language", "meta", "name"), [
    ({"source": "mC4", "url": "u", "language": "fra_Latn"}, "web", "fr", {"source": "mC4", "url": "u"},
     "a:1"),
    ({"lang": ["fra_Latn", "oci_Latn"], "license": "CC0", "meta": "free"}, "web", "fr",
     {"licence": "CC0", "meta": "free"}, "a:1"),
    ({"source": {"name": "x"}, "id": 3}, "web", "en", {"source": {"name": "x"}}, "3"),
    ({"meta": {"language": "bg"}, "lang": "un"}, "web", "bg", {"language": "bg"}, "a:1"),  # RedPajama
    ({"source": "mC4"}, "", "en", {}, "a:1")])
def test_published_columns_become_ours(tmp_path, record, source, language, meta, name):
    path = write(tmp_path / "a.jsonl", {"text": "a", **record})
    document, = read_documents(path, source=source, language="en")
    assert document == Document("a", language, source or "mC4", name, meta)


def test_a_paragraph_without_end_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "MAX_LINE_BYTES", 100)
    file = io.BytesIO(b"first\n\n" + b"a line\n" * 99 + b"\nlast")
    expected = [(1, b"first"), (3, (b"a line\n" * 15).strip()), (103, b"last")]
    assert list(record_files._paragraphs(file)) == expected


def test_bad_records_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "MAX_LINE_BYTES", 200_000)
    lines = [b'{"text": "good"}', b"not json", b'"string"', b'{"text": "\xff"}', b'{"text": " "}',
             b'{"text": 3}', b"", b'{"text": "nan", "x": NaN, "y": 1e999}', b"[" * 100_000, b'{"id": 1}',
             b'{"text": "%b"}' % (b"long" * 200_000), b'{"text": "last"}']
    path = tmp_path / "a.jsonl"
    assert read(path, b"\n".join(lines)) == (["good", "nan", "last"], {
        "not JSON": 2, "not an object": 1, "not UTF-8": 1, "empty text": 1, "no text": 1,
        "text is not a string": 1, "longer than 0 MiB": 1})
    assert [(document.id, document.meta) for document in read_documents(path)][1] == ("a:8", {})


@pytest.mark.slow
@pytest.mark.parametrize("command", ["filter_medical --language ru", "dedup"])
def test_a_document_of_50_megabytes_takes_less_than_a_gigabyte(tmp_path, command):
    path = write(tmp_path / "a.jsonl", {"text": "Пациент принимал инсулин. " * 1_100_000})
    name, *arguments = command.split()
    code = (f"import sys\nfrom data_prep.{name} import main\nmain(sys.argv[1:])\n"
            "print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) >> 10)")
    done = subprocess.run([sys.executable, "-c", code, str(path), "--out", str(tmp_path / "out"), *arguments],
                          cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 1000


def test_the_folder_of_a_step_means_what_it_kept(tmp_path):
    for name in ("kept", "dropped"):
        write(tmp_path / "corpus" / "ja" / name / "a.jsonl", {"text": name})
    (tmp_path / "corpus" / "ja" / "shards").mkdir()
    write(tmp_path / "corpus" / "plain.jsonl", {"text": "a"})
    assert find_inputs([tmp_path]) == [tmp_path / "corpus/ja/kept/a.jsonl", tmp_path / "corpus/plain.jsonl"]
    assert find_inputs([tmp_path], out=tmp_path / "corpus" / "ja") == [tmp_path / "corpus/plain.jsonl"]
    for own in ("ja", "ja/kept", "ja/kept/a.jsonl"):
        with pytest.raises(UserError, match="the output of this step cannot be its input"):
            find_inputs([tmp_path / "corpus" / own], out=tmp_path / "corpus" / "ja")
    with pytest.raises(UserError, match="no corpus file"):
        find_inputs([tmp_path / "corpus" / "ja" / "shards"])


# ---- steps over shards ---------------------------------------------------------------------------


def keep_odd(documents, shard: ShardWriter, options) -> None:
    for document in documents:
        if int(document.text.split()[0]) % 2:
            shard.keep(document)
        else:
            shard.drop(document, "even", number=document.text[:2])
        time.sleep(options.get("seconds", 0))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three files of ten numbers."""
    for i in range(3):
        lines = [{"text": f"{n} x", "id": str(n)} for n in range(10 * i, 10 * i + 10)]
        write(tmp_path / "in" / f"part{i}.jsonl", *lines)
    return tmp_path / "in"


def test_shards_have_unique_names(tmp_path):
    paths = [write(tmp_path / name, {"text": "a"}) for name in ("a/x.jsonl", "b/x.jsonl", "y.json")]
    assert shard_names(paths) == ["a__x.jsonl", "b__x.jsonl", "y.json"]
    assert shard_names(paths[1:]) == ["x", "y"] and shard_names([Path()]) == [Path.cwd().name]
    long = shard_names([tmp_path / f"{'ж' * 120}{number}.pdf" for number in range(2)])
    assert long[0] != long[1] and all(len(name.encode()) <= 180 for name in long)
    with pytest.raises(UserError, match="given twice"):
        shard_names([paths[0], paths[0]])


def test_a_step_keeps_drops_and_counts(folder, tmp_path):
    out = tmp_path / "out"
    funnel = process_shards(keep_odd, [folder], out, {})
    assert funnel.documents_out == 15 and funnel.dropped["even"]["documents"] == 15
    assert read_folder(out / "dropped")[0] == {"id": "0", "reason": "even", "number": "0 "}
    process_shards(keep_odd, [folder], out, {"keep_dropped": True})
    assert read_folder(out / "dropped")[0]["text"] == "0 x"


def test_workers_and_shares_change_no_byte(folder, tmp_path):
    process_shards(keep_odd, [folder], tmp_path / "one", {})
    process_shards(keep_odd, [folder], tmp_path / "two", {}, workers=2)
    parts = [process_shards(keep_odd, [folder], tmp_path / "shared", {}, share=(i, 2)).documents_in
             for i in (1, 0, 1)]
    assert parts == [10, 20, 10] and not (tmp_path / "shared" / "funnel.json").exists()
    process_shards(keep_odd, [folder], tmp_path / "shared", {})
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == tree(tmp_path / "shared")


def test_finished_shards_are_not_read_again(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    process_shards(keep_odd, [folder], out, {})
    before = tree(out)
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.documents.read_documents", lambda *_, **__: pytest.fail("read again"))
        process_shards(keep_odd, [folder], out, {})
    assert tree(out) == before
    write(folder / "part1.jsonl", {"text": "1 new"})
    assert process_shards(keep_odd, [folder], out, {}).documents_in == 21
    (out / "shards" / "part1.json").unlink()  # as if killed before it was written
    with pytest.raises(UserError, match=r"other inputs \(part1\)"):
        process_shards(keep_odd, [folder / "part0.jsonl", folder / "part2.jsonl"], out, {})


KILLED = """
import sys
from data_prep.pipeline.shards import process_shards
from mmed.utils.errors import main_guard
from test_documents import keep_odd
folder, out, workers = sys.argv[1:]
main_guard(lambda: process_shards(keep_odd, [folder], out, {'seconds': 0.2}, int(workers)) and 0)
"""


def test_a_killed_step_gives_the_same_bytes_when_it_is_started_again(folder, tmp_path):
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests:{ROOT}/tests/data_prep"}
    for sign, workers, expected in ((signal.SIGKILL, "1", -9), (signal.SIGKILL, "2", -9),
                                    (signal.SIGTERM, "2", 75), (signal.SIGTERM, "1", 75)):
        for path in out.glob("kept/*.tmp"):
            path.unlink()
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(out), workers],
                                 env=environment, stderr=subprocess.PIPE)
        until = time.monotonic() + 60
        while not list(out.glob("kept/*.tmp")) and time.monotonic() < until:
            time.sleep(0.05)
        child.send_signal(sign)
        child.communicate(timeout=30)  # until its workers have closed stderr, too
        assert child.returncode == expected
    process_shards(keep_odd, [folder], out, {})
    process_shards(keep_odd, [folder], tmp_path / "whole", {})
    assert tree(out) == tree(tmp_path / "whole")


def test_an_error_names_the_input_and_a_second_run_is_rejected(folder, tmp_path):
    write(folder / "part1.jsonl", {"text": "no number"})
    for workers in (1, 2):
        with pytest.raises(RuntimeError, match=r"part1\.jsonl: ValueError"):
            process_shards(keep_odd, [folder], tmp_path / "out", {}, workers)
    with pytest.raises(UserError, match="--workers=0: must be at least 1"):
        process_shards(keep_odd, [folder], tmp_path / "out", {}, 0)
    with one_run(tmp_path / "out"), pytest.raises(UserError, match="another run is writing here"):
        process_shards(keep_odd, [folder], tmp_path / "out", {})


@pytest.mark.parametrize(("lines", "reason"), [
    (["no json", "at all"], "not JSON"), ([{"text": None}] * 2, "no text")])
def test_records_none_of_which_can_be_read_are_an_error(tmp_path, lines, reason):
    wrong, empty = write(tmp_path / "a.jsonl", *lines), write(tmp_path / "empty.jsonl")
    message = rf"none of 2 records could be read: 2 x {reason} \(such as .*a\.jsonl:1\)"
    with pytest.raises(UserError, match=message):
        process_shards(keep_odd, [wrong], tmp_path / "out", {})
    assert process_shards(keep_odd, [empty], tmp_path / "none", {}).documents_in == 0


def test_a_wrong_share_is_a_usage_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        clean([str(tmp_path), "--out", str(tmp_path), "--language", "en", "--shard=2/2"])
    assert stopped.value.code == 2 and "such as 0/8" in capsys.readouterr().err
