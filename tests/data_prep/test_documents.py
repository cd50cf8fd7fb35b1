"""Documents from files as they are published, and steps over shards: resumable, bounded, everything
counted."""
import bz2
import gzip
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
from data_prep.documents import (
    Document,
    Funnel,
    find_inputs,
    json_line,
    normalise_text,
    read_documents,
)
from data_prep.pipeline.shards import ShardWriter, one_run, process_shards, shard_names
from data_prep.record_files import DAMAGED
from mmed.utils.errors import UserError


def read(path: Path, **options) -> tuple[list[Document], dict[str, int]]:
    """The documents of a file, and the number dropped for each reason."""
    funnel = Funnel()
    documents = list(read_documents(path, funnel, **options))
    return documents, {reason: entry["documents"] for reason, entry in funnel.dropped.items()}


def texts(path: Path, **options) -> list[str]:
    return [document.text for document in read(path, **options)[0]]


def write_parquet(path: Path, rows: list[dict]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


def long_zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return b"\x50\x2a\x4d\x18\x02\0\0\0xy" + compressor.compress(data) + compressor.flush()  # a frame to skip


# ---- files ---------------------------------------------------------------------------------------


@given(st.text(st.characters(codec=None), max_size=200))
def test_normalising_twice_changes_nothing_and_lines_are_one_line(text):
    once = normalise_text(text)
    assert normalise_text(once) == once and "\x00" not in once and "\r" not in once
    line = json_line({"text": "a\u2028b\x85c", "meta": once})
    assert len(line.decode().splitlines()) == 1


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd, long_zstd])
def test_packing_is_recognised_by_content(tmp_path, pack):
    path = tmp_path / "c4-en.00000-of-00001.json.gz"  # whatever the name says; two frames
    path.write_bytes(pack(json_line({"text": "one"})) + pack(json_line({"text": "two"})))
    assert texts(path) == ["one", "two"] and read(path)[1] == {}


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_a_truncated_file_gives_what_comes_before_the_damage(tmp_path, pack):
    rng = random.Random(0)
    data = pack(b"".join(json_line({"text": rng.randbytes(200).hex()}) for _ in range(5000)))
    for path, damaged in ((tmp_path / "cut.jsonl.gz", data[:len(data) * 2 // 3]),
                          (tmp_path / "flipped.jsonl.gz", data[:-400] + b"\x55" * 400)):
        path.write_bytes(damaged)
        documents, dropped = read(path)
        assert len(documents) > 1000 and dropped.pop(DAMAGED) == 1
        assert not dropped or "flipped" in path.name  # which may be unpacked to a line of other bytes


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.jl", "wiki_00", "part-00000.c000",
                                  "a.txt.json"])
def test_json_lines_are_read_under_any_name(tmp_path, name):
    assert texts(write(tmp_path / name, {"text": "one"})) == ["one"]
    if name != "part-00000.c000":
        assert find_inputs([tmp_path]) == [tmp_path / name]


@pytest.mark.parametrize("text", ['["one", {"text": "two"}, 3]', '[\n {\n  "text": "one"\n },\n "two",\n 3]',
                                  '{\r\n "text": "one"\r\n}'])
def test_json_that_is_not_in_lines_is_read(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    documents, dropped = read(tmp_path / "a.json")
    assert [document.text for document in documents] == ["one", "two"][:text.count("o")]
    assert dropped == ({"not an object": 1} if "3" in text else {})


def test_linked_folders_are_read_once_and_unreadable_ones_are_an_error(tmp_path, monkeypatch):
    path = write(tmp_path / "real" / "a.jsonl", {"text": "a"})
    (tmp_path / "real" / "above").symlink_to(tmp_path)
    for name in ("one", "two"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).symlink_to(tmp_path / "real")
    assert [found.resolve() for found in find_inputs([tmp_path / "in"])] == [path]

    def fail(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(PermissionError):
        find_inputs([tmp_path])


def test_plain_text_is_read_whole_or_by_paragraphs(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes("first\nstill first\r\n\r\n\r\nsecond\n".encode("utf-8-sig"))
    assert texts(tmp_path / "a.txt", paragraphs=True) == ["first\nstill first", "second"]
    assert read(tmp_path / "a.txt", paragraphs=True)[0][1].id == "a:5"
    assert len(texts(tmp_path / "a.txt")) == 1
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    assert read(tmp_path / "b.txt") == ([], {"not UTF-8": 1})
    for name, data in (("a.doc", b"\xd0\xcf\x11\xe0"), ("wiki_00", b'<doc id="1">\nA\n</doc>\n')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=r"neither JSON lines nor parquet.*wikiextractor --json"):
            read(tmp_path / name)
    monkeypatch.setattr(record_files, "MAX_LINE_BYTES", 10)
    with pytest.raises(UserError, match=r"a\.txt: longer than 0 MiB; .*--paragraphs"):
        read(tmp_path / "a.txt")
    assert len(texts(tmp_path / "a.txt", paragraphs=True)) == 2


def test_parquet_with_nested_columns_is_read(tmp_path):
    rows = [{"text": "one", "meta": {"a": [{"b": None, "c": 1}]}, "quality": [0.5, float("nan")], "id": 7,
             "raw": b"x\xff"},
            {"text": None, "meta": None, "quality": None, "id": 8, "raw": None}]
    (document,), dropped = read(write_parquet(tmp_path / "a.parquet", rows))
    assert document.meta == {"a": [{"b": None, "c": 1}], "quality": [0.5, None], "raw": "x\ufffd"}
    assert document.id == "7" and dropped == {"no text": 1}


def test_text_under_another_key_is_read(tmp_path):
    assert texts(write(tmp_path / "oscar.jsonl", {"content": "a"})) == ["a"]
    assert texts(write(tmp_path / "redpajama.jsonl", {"raw_content": "a"})) == ["a"]
    nested = write_parquet(tmp_path / "nested.parquet", [{"page": {"body": "a", "title": "t"}}])
    assert read(nested, text_field="page.body")[0][0].meta == {"page": {"title": "t"}}
    pubmed = write(tmp_path / "pubmed.jsonl",
                   {"Article": {"Abstract": {"AbstractText": "a", "n": 1}}, "text": ""})
    document, = read(pubmed, text_field="Article.Abstract.AbstractText")[0]
    assert (document.text, document.meta) == ("a", {"Article": {"Abstract": {"n": 1}}, "text": ""})
    for path in (nested, write(tmp_path / "a.jsonl", *[{"body": "a", "url": "u"}] * 3)):
        with pytest.raises(UserError, match=r"no field text or content or raw_content.*(page|body, "
                                            r"url).*--text_field"):
            read(path)
    with pytest.raises(UserError, match="no field story"):
        read(nested, text_field="story")


def test_published_columns_become_ours(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "a", "source": "mC4", "url": "u", "language": "fra_Latn"},
                 {"text": "b", "lang": ["fra_Latn", "oci_Latn"], "license": "CC0", "meta": "free"},
                 {"text": "c", "source": {"name": "x"}, "id": 3})
    one, two, three = read(path, source="web", language="en")[0]
    assert (one.source, one.meta, one.language) == ("web", {"source": "mC4", "url": "u"}, "fr")
    assert (two.source, two.meta, two.language) == ("web", {"licence": "CC0", "meta": "free"}, "fr")
    assert (three.source, three.meta, three.id, three.language) == ("web", {"source": {"name": "x"}}, "3",
                                                                    "en")
    assert read(path)[0][0].source == "mC4"


def test_bad_records_are_counted_with_their_place(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "MAX_LINE_BYTES", 200_000)
    lines = [b'{"text": "good"}', b"not json", b'"string"', b'{"text": "\xff"}', b'{"text": " "}',
             b'{"text": 3}', b"", b'{"text": "nan", "x": NaN, "y": 1e999}', b"[" * 100_000, b'{"id": 1}',
             b'{"text": "%b"}' % (b"long" * 200_000), b'{"text": "last"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    documents, dropped = read(tmp_path / "a.jsonl")
    assert [document.text for document in documents] == ["good", "nan", "last"] and not documents[1].meta
    assert dropped == dict.fromkeys(["not JSON", "not an object", "not UTF-8", "empty text", "no text",
                                     "text is not a string", "nested too deeply", "line longer than 0 MiB"],
                                    1)
    with pytest.raises(UserError, match=r"a\.jsonl:2: not JSON; fix the file, or omit --strict"):
        read(tmp_path / "a.jsonl", strict=True)


def test_a_truncated_parquet_file_and_an_lfs_pointer_are_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"text": "a" * 100}] * 100)
    path.write_bytes(path.read_bytes()[:-20])
    assert read(path) == ([], {DAMAGED: 1})
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="Git LFS pointer"):
        read(path)


@pytest.mark.slow
def test_a_document_of_50_megabytes_takes_less_than_a_gigabyte(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "Пациент принимал инсулин. " * 1_100_000})
    for command in ("filter_medical", "dedup"):
        code = (f"import sys\nfrom data_prep.{command} import main\nmain(sys.argv[1:])\n"
                "print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) >> 10)")
        more = ["--language", "ru"] if command == "filter_medical" else []
        arguments = [str(path), "--out", str(tmp_path / command), *more]
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT,
                              capture_output=True, text=True, check=True)
        assert int(done.stdout.split()[-1]) < 1000, command


def test_the_folder_of_a_step_means_what_it_kept(tmp_path):
    for name in ("kept", "dropped"):
        write(tmp_path / "corpus" / "ja" / name / "a.jsonl", {"text": name})
    (tmp_path / "corpus" / "ja" / "shards").mkdir()
    write(tmp_path / "corpus" / "plain.jsonl", {"text": "a"})
    assert find_inputs([tmp_path]) == [tmp_path / "corpus/ja/kept/a.jsonl", tmp_path / "corpus/plain.jsonl"]
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


def numbers(folder: Path, files: int = 3, count: int = 10) -> Path:
    for i in range(files):
        write(folder / f"part{i}.jsonl",
              *[{"text": f"{n} x", "id": str(n)} for n in range(i * count, (i + 1) * count)])
    return folder


def test_shards_have_unique_names(tmp_path):
    paths = [write(tmp_path / name, {"text": "a"}) for name in ("a/x.jsonl", "b/x.jsonl", "y.json")]
    assert shard_names(paths) == ["a__x.jsonl", "b__x.jsonl", "y.json"]
    assert shard_names(paths[1:]) == ["x", "y"]
    with pytest.raises(UserError, match="given twice"):
        shard_names([paths[0], paths[0]])


def test_a_step_keeps_drops_and_counts(tmp_path):
    funnel = process_shards(keep_odd, [numbers(tmp_path / "in")], tmp_path / "out", {})
    assert funnel.documents_out == 15 and funnel.dropped["even"]["documents"] == 15
    assert read_folder(tmp_path / "out" / "dropped")[0] == {"id": "0", "reason": "even", "number": "0 "}
    process_shards(keep_odd, [tmp_path / "in"], tmp_path / "out", {"keep_dropped": True})
    assert read_folder(tmp_path / "out" / "dropped")[0]["text"] == "0 x"


def test_workers_and_shares_change_no_byte(tmp_path):
    folder = numbers(tmp_path / "in")
    process_shards(keep_odd, [folder], tmp_path / "one", {})
    process_shards(keep_odd, [folder], tmp_path / "two", {}, workers=2)
    parts = [process_shards(keep_odd, [folder], tmp_path / "shared", {}, share=(i, 2)).documents_in
             for i in (1, 0, 1)]
    assert parts == [10, 20, 10] and not (tmp_path / "shared" / "funnel.json").exists()
    process_shards(keep_odd, [folder], tmp_path / "shared", {})
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == tree(tmp_path / "shared")


def test_finished_shards_are_not_read_again(tmp_path, monkeypatch):
    folder, out = numbers(tmp_path / "in"), tmp_path / "out"
    process_shards(keep_odd, [folder], out, {})
    before = tree(out)
    monkeypatch.setattr("data_prep.documents.read_documents", lambda *_, **__: pytest.fail("read again"))
    process_shards(keep_odd, [folder], out, {})
    assert tree(out) == before
    monkeypatch.undo()
    write(folder / "part1.jsonl", {"text": "1 new"})
    assert process_shards(keep_odd, [folder], out, {}).documents_in == 21
    with pytest.raises(UserError, match="other inputs"):
        process_shards(keep_odd, [folder / "part0.jsonl"], out, {})


def test_a_killed_step_gives_the_same_bytes_when_it_is_started_again(tmp_path):
    folder, out = numbers(tmp_path / "in", 4, 40), tmp_path / "out"
    (tmp_path / "run.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_documents import keep_odd\n"
        "from data_prep.pipeline.shards import process_shards\n"
        "from mmed.utils.errors import main_guard\n"
        "options = {'seconds': 0.05}\n"
        "if __name__ == '__main__':\n"
        f"    main_guard(lambda: process_shards(keep_odd, [{str(folder)!r}], {str(out)!r}, options,\n"
        "                                      int(sys.argv[1])) and 0)\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    for sign, workers, expected in ((signal.SIGKILL, 1, -9), (signal.SIGTERM, 2, 75),
                                    (signal.SIGTERM, 1, 75)):
        for path in out.glob("kept/*.tmp"):
            path.unlink()
        child = subprocess.Popen([sys.executable, str(tmp_path / "run.py"), str(workers)],
                                 env=environment, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while not list(out.glob("kept/*.tmp")) and time.monotonic() < until:
            time.sleep(0.05)
        child.send_signal(sign)
        assert child.wait(30) == expected
    process_shards(keep_odd, [folder], out, {})
    process_shards(keep_odd, [folder], tmp_path / "whole", {})
    assert tree(out) == tree(tmp_path / "whole")


def test_an_error_names_the_input_and_a_second_run_is_rejected(tmp_path):
    folder = numbers(tmp_path / "in")
    write(folder / "part1.jsonl", {"text": "no number"})
    for workers in (1, 2):
        with pytest.raises(RuntimeError, match=r"part1\.jsonl: ValueError"):
            process_shards(keep_odd, [folder], tmp_path / "out", {}, workers)
    with pytest.raises(UserError, match="--workers=0: must be at least 1"):
        process_shards(keep_odd, [folder], tmp_path / "out", {}, 0)
    with one_run(tmp_path / "out"), pytest.raises(UserError, match="another run is writing here"):
        process_shards(keep_odd, [folder], tmp_path / "out", {})


def test_records_none_of_which_can_be_read_are_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("no json\nat all\n")
    with pytest.raises(UserError, match=r"none of 2 records could be read: 2 x not JSON \(such as "
                                        r".*a\.jsonl:1\)"):
        process_shards(keep_odd, [tmp_path / "a.jsonl"], tmp_path / "out", {})
    (tmp_path / "empty.jsonl").write_text("")
    assert process_shards(keep_odd, [tmp_path / "empty.jsonl"], tmp_path / "none", {}).documents_in == 0


def test_a_wrong_share_is_a_usage_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        clean([str(tmp_path), "--out", str(tmp_path), "--language", "en", "--shard=2/2"])
    assert stopped.value.code == 2 and "such as 0/8" in capsys.readouterr().err
