"""Documents: every good line is read, every bad one counted, and a step over shards survives a kill."""
import bz2
import datetime
import gzip
import json
import os
import random
import signal
import string
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest

from data_prep import documents as documents_module
from data_prep import record_files
from data_prep.documents import Document, Funnel, LineWriter, find_inputs, json_line, normalise_text, read_documents
from data_prep.pipeline.shards import ShardWriter, gather_funnel, keep_all, process_shard, process_shards, shard_names
from data_prep.record_files import DAMAGED
from mmed.utils.errors import UserError
from mmed.utils.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, *lines: bytes, end: bytes = b"\n") -> Path:
    path.write_bytes(end.join(lines))
    return path


def read(path: Path) -> tuple[list[Document], dict[str, int], Funnel]:
    return read_with(path)


def read_with(path: Path, **more) -> tuple[list[Document], dict[str, int], Funnel]:
    funnel = Funnel()
    documents = list(read_documents(path, funnel, **more))
    return documents, {reason: entry["documents"] for reason, entry in funnel.dropped.items()}, funnel


GOOD = b'{"text": "good", "id": "g"}'


@pytest.mark.parametrize(("line", "reason"), [
    (b'{"text": "cut', "not JSON"), (b'{"text": "a"} {"text": "b"}', "not JSON"), (b"\xff\xfe", "not UTF-8"),
    (b'{"text": "\xc3("}', "not UTF-8"), (b'["a"]', "not an object"), (b"3", "not an object"), (b"null", "not an object"),
    (b'{"id": "x"}', "no text"), (b'{"text": null}', "no text"), (b'{"text": 5}', "text is not a string"),
    (b'{"text": ["a"]}', "text is not a string"), (b'{"text": ""}', "empty text"), (b'{"text": " \\u0000\\n"}', "empty text"),
    (b'{"text": "a", "x": NaN}', "NaN or infinity"), (b'{"text": "a", "x": -Infinity}', "NaN or infinity"),
    (b'{"text": "a", "x": 1e999}', "NaN or infinity"), (b'{"text": "a", "text": "b"}', "duplicate key"),
    (b'{"text": "a", "meta": {"k": 1, "k": 2}}', "duplicate key"), (b'{"text": "a", "meta": 5}', "meta is not an object"),
    (b'{"text": "a", "language": 5}', "language is not a string"), (b'{"text": "a", "id": 1.5}', "id is not a string"),
    (b'{"text": "a", "m": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    (b'{"text": "a", "m": ' + b"9" * 5000 + b"}", "not JSON"),
])
def test_a_bad_line_is_counted_by_reason_and_place_and_its_neighbours_are_kept(tmp_path, line, reason):
    path = write(tmp_path / "a.jsonl", GOOD, line, GOOD)
    documents, reasons, funnel = read(path)
    assert len(documents) == 2 and reasons == {reason: 1}
    assert funnel.dropped[reason]["examples"] == [f"{path}:2"]
    with pytest.raises(UserError, match=rf"a\.jsonl:2: {reason}"):
        list(read_documents(path, strict=True))


@pytest.mark.parametrize(("content", "texts"), [
    (b"", []), (b"\n\n \n", []), (b"\xef\xbb\xbf" + GOOD, ["good"]), (GOOD + b"\r\n\r\n" + GOOD + b"\r\n", ["good", "good"]),
    (GOOD, ["good"]), ('{"text": "a\u2028b\u0085c"}\n'.encode(), ["a\u2028b\x85c"]), (b'{"text": "a\\ud800b\\u0000c"}', ["a\ufffdbc"]),
    (b'{"text": "\\ud83d\\ude00"}', ["😀"]), (b'{"text": "n", "n": 18446744073709551617}', ["n"]),
])
def test_awkward_but_good_content_is_read_whole(tmp_path, content, texts):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    documents, reasons, _ = read(path)
    assert [document.text for document in documents] == texts and reasons == {}


def test_without_a_funnel_what_was_dropped_is_told(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", GOOD, b"{", b"{")
    assert len(list(read_documents(path))) == 1
    assert capsys.readouterr().err == f"{path}: 2 dropped: not JSON (first: {path}:2)\n"


def test_fields_defaults_and_unknown_keys(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text": "a", "lang": "fr", "id": 7, "licence": "CC0", "meta": {"k": 1}}', b'{"text": "b"}')
    first, second = read_documents(path, language="en", source="web")
    assert first == Document("a", "fr", "web", "7", {"k": 1, "licence": "CC0"})
    assert second == Document("b", "en", "web", "a:2", {})


def test_5000_broken_lines_never_raise_and_good_ones_survive(tmp_path):
    """Random damage to good lines: cut, flipped, doubled, sprinkled with odd bytes."""
    seed = random.randrange(10**9)
    rng = random.Random(seed)
    lines, blank = [], 0
    for number in range(5000):
        line = bytearray(json.dumps({"text": "".join(rng.choices(string.printable + "é中😀", k=30)), "id": str(number), "v": [1.5, {"a": None}]},
                                    ensure_ascii=rng.random() < 0.5).encode())
        for _ in range(rng.randrange(1, 4)):
            kind, place = rng.randrange(4), rng.randrange(len(line))
            if kind == 0:
                del line[place:]
                line += b"?"
            elif kind == 1:
                line[place] = rng.randrange(256)
            elif kind == 2:
                line[place:place] = line[:place]
            else:
                line[place:place] = rng.choice([b"\x00", b"\xff", b"NaN", b"{", b"]", b"\\ud800", b"1e999"])
        line = line.replace(b"\n", b" ")
        blank += not line.strip()  # what damage can leave of a line, too: skipped without a count
        lines += [bytes(line), b'{"text": "kept", "id": "k%d"}' % number]
    documents, reasons, funnel = read(write(tmp_path / "a.jsonl", *lines))
    kept = [document.id for document in documents if document.text == "kept" and document.id.startswith("k")]
    assert kept == [f"k{number}" for number in range(5000)], f"seed {seed}"
    assert len(documents) + sum(reasons.values()) + blank == 10_000, f"seed {seed}"
    assert funnel.documents_in == sum(reasons.values())


def random_text(rng: random.Random) -> str:
    odd = "\x00\r\n\t\u0085\u2028\u2029\ufeff\ufffe\ud800\udfff\u200b\u202e\u0301\u3099ﾊﾞé中가ᄒ𠀀😀Ａ"
    return "".join(rng.choice(odd) if rng.random() < 0.6 else chr(rng.randrange(0x20, 0x2FFFF)) for _ in range(rng.randrange(12)))


def test_normalisation_is_idempotent_and_what_it_gives_is_clean():
    seed = random.randrange(10**9)
    rng = random.Random(seed)
    for _ in range(100_000):
        once = normalise_text(random_text(rng))
        assert normalise_text(once) == once, f"seed {seed}: {once!r}"
        assert "\x00" not in once and "\r" not in once and unicodedata.is_normalized("NFC", once)
        once.encode("utf-8")


def test_written_lines_are_one_line_to_every_reader(tmp_path):
    record = {"text": "a\u2028b\u2029c\x85d\ne", "meta": {"bad": "\ud800", "😀": [1]}}
    line = json_line(record)
    assert len(line.decode("utf-8").splitlines()) == 1
    assert json.loads(line) == {"text": record["text"], "meta": {"bad": "\ufffd", "😀": [1]}}


def test_gzip_zstd_and_parquet_read_as_plain_lines_do(tmp_path):
    lines = [{"text": f"text {number} é", "language": "fr", "source": "web", "id": str(number)} for number in range(1000)]
    plain = write(tmp_path / "a.jsonl", *[json.dumps(line).encode() for line in lines])
    expected = list(read_documents(plain))
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write(plain.read_bytes())
    assert list(read_documents(tmp_path / "b.jsonl.gz")) == expected
    with_zstd = pytest.importorskip("zstandard")
    (tmp_path / "c.jsonl.zst").write_bytes(with_zstd.ZstdCompressor().compress(plain.read_bytes()))
    assert list(read_documents(tmp_path / "c.jsonl.zst")) == expected


def test_parquet_is_read_with_nulls_dates_and_nan_in_free_columns(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")

    import pyarrow.parquet as parquet

    table = pyarrow.table({"text": ["a", None, "c"], "source": ["mC4", "mC4", None], "score": [1.0, 2.0, float("nan")],
                           "timestamp": [datetime.datetime(2020, 1, 1)] * 3})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    documents, reasons, _ = read(tmp_path / "a.parquet")
    assert [(document.text, document.source, document.meta.get("score")) for document in documents] == [("a", "mC4", 1.0), ("c", "", None)]
    assert reasons == {"no text": 1}
    for document in documents:
        json_line(document.to_dict())
    parquet.write_table(table.rename_columns(["body", "source", "score", "timestamp"]), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="no column 'text'"):
        list(read_documents(tmp_path / "b.parquet"))
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-40])
    assert read(tmp_path / "c.parquet")[1] == {DAMAGED: 1}
    (tmp_path / "d.parquet").write_bytes(b"")
    assert read(tmp_path / "d.parquet")[1] == {DAMAGED: 1}


def test_a_damaged_part_of_a_parquet_file_leaves_the_other_rows(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rng = random.Random(5)
    texts = ["".join(rng.choices(string.ascii_letters, k=2000)) for _ in range(400)]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": texts, "id": [str(number) for number in range(400)]}), path, row_group_size=100, compression="gzip",
                        use_dictionary=False)
    monkeypatch.setattr(record_files, "BATCH_BYTES", 5000)  # two rows at a time
    assert [document.text for document in read_documents(path)] == texts
    content = bytearray(path.read_bytes())
    facts = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    middle = facts.data_page_offset + facts.total_compressed_size // 2
    content[middle:middle + 2000] = bytes(2000)
    path.write_bytes(content)
    documents, reasons, funnel = read(path)
    assert {document.text for document in documents} >= {*texts[:100], *texts[200:]} and reasons == {DAMAGED: 1}
    assert 101 <= int(funnel.dropped[DAMAGED]["examples"][0].rpartition(":")[2]) <= 200
    bad_utf8 = pyarrow.Array.from_buffers(pyarrow.utf8(), 3, [None, pyarrow.array([0, 1, 3, 4], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"a\xff\xfeb")])
    parquet.write_table(pyarrow.table({"text": bad_utf8}), path)
    monkeypatch.setattr(record_files, "BATCH_BYTES", 1 << 26)
    documents, reasons, _ = read(path)
    assert [document.text for document in documents] == ["a", "b"] and reasons == {"not UTF-8": 1}


def test_a_compressed_bomb_is_one_dropped_line(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "MAX_LINE_BYTES", 1 << 20)
    bomb = GOOD + b'\n{"text": "' + b"0" * (5 << 20) + b'"}\n' + GOOD
    for name, data in (("a.jsonl.gz", gzip.compress(bomb)), ("b.jsonl.bz2", bz2.compress(bomb))):
        (tmp_path / name).write_bytes(data)
        documents, reasons, funnel = read(tmp_path / name)
        assert len(documents) == 2 and reasons == {"line longer than 1 MiB": 1}
        assert funnel.dropped["line longer than 1 MiB"]["examples"] == [f"{tmp_path / name}:2"]
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"0" * (5 << 20)))
    assert read(tmp_path / "c.txt.gz")[1] == {"text longer than 1 MiB": 1}


def test_text_between_blank_lines_is_a_document_where_asked(tmp_path):
    path = tmp_path / "ufal.txt"
    path.write_bytes("\ufeffOne\nline two\n\n \t\nTwo é\r\n\r\nThree".encode())
    documents = list(read_documents(path, paragraphs=True, licence="CC0"))
    assert [(document.id, document.text.strip()) for document in documents] == [("ufal:1", "One\nline two"), ("ufal:5", "Two é"), ("ufal:7", "Three")]
    assert all(document.meta == {"licence": "CC0"} for document in documents)
    assert len(list(read_documents(path))) == 1
    path.write_bytes(b"good\n\nbad \xff\nmore\n\ngood")
    documents, reasons, funnel = read_with(path, paragraphs=True)
    assert [document.text.strip() for document in documents] == ["good", "good"] and reasons == {"not UTF-8": 1}
    assert funnel.dropped["not UTF-8"]["examples"] == [f"{path}:3"]
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"".join(b"%d\n\n" % number for number in range(9999)))[:-2000])
    documents, reasons, _ = read_with(tmp_path / "cut.txt.gz", paragraphs=True)
    assert len(documents) > 1000 and reasons == {DAMAGED: 1}


def test_a_licence_is_kept_under_one_name_and_the_documents_own_is_not_overwritten(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text": "a", "license": "CC0"}', b'{"text": "b", "meta": {"licence": "MIT"}}', b'{"text": "c"}')
    assert [document.meta["licence"] for document in read_documents(path, licence="CC BY 4.0")] == ["CC0", "MIT", "CC BY 4.0"]
    assert [document.meta.get("licence") for document in read_documents(path)] == ["CC0", "MIT", None]


def test_a_long_text_is_normalised_and_written_in_pieces_as_in_one(tmp_path, monkeypatch):
    seed = random.randrange(10**9)
    rng, lines = random.Random(seed), []
    for _ in range(300):
        text = "".join(random_text(rng) + rng.choice([" ", "e\u0301", "か\u3099", "ᄒ\u1161\u11ab", "A\u030a", "\n", "Σ"]) for _ in range(20))
        record = {"text": text, "language": "é", "id": "1", "meta": {"k": "\u2028"}}
        monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", 1 << 20)
        whole = normalise_text(text)
        lines += [(one, json_line(one)) for one in (record, {"text": text}, {"id": "1", "text": text})]
        monkeypatch.setattr(documents_module, "PIECE_CHARACTERS", rng.choice([1, 2, 5, 30]))
        assert normalise_text(text) == whole, f"seed {seed}"
    with LineWriter(tmp_path / "a.jsonl") as file:
        for one, _ in lines:
            file.write(one)
    assert (tmp_path / "a.jsonl").read_bytes() == b"".join(line for _, line in lines), f"seed {seed}"


def test_a_cut_gzip_gives_what_it_holds_and_is_counted(tmp_path):
    rng = random.Random(1)
    body = b"".join(json_line({"text": "".join(rng.choices(string.ascii_letters, k=50))}) for _ in range(2000))
    whole = gzip.compress(body)
    for cut, least in ((len(whole) // 2, 900), (len(whole) - 3, 2000)):
        (tmp_path / "a.jsonl.gz").write_bytes(whole[:cut])
        documents, reasons, _ = read(tmp_path / "a.jsonl.gz")
        assert reasons == {DAMAGED: 1} and len(documents) >= least
    (tmp_path / "a.jsonl.gz").write_bytes(b"not gzip at all")
    assert read(tmp_path / "a.jsonl.gz")[1] == {DAMAGED: 1}


def test_plain_text_is_one_document(tmp_path):
    (tmp_path / "book.txt").write_bytes("\ufeffPage one.\r\nPage two.\r\n".encode())
    assert [document.text for document in read_documents(tmp_path / "book.txt")] == ["Page one.\nPage two.\n"]


def test_wikipedia_as_published_on_the_hub_and_as_wikiextractor_writes_it(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    article = {"id": "3", "url": "https://fr.wikipedia.org/wiki/Asthme", "title": "Asthme", "text": "L'asthme est une maladie."}
    parquet.write_table(pyarrow.Table.from_pylist([article]), tmp_path / "train-00000-of-00001.parquet")
    (tmp_path / "frwiki.jsonl").write_text(json.dumps({"revid": "7", **article}) + "\n", encoding="utf-8")
    for name in ("train-00000-of-00001.parquet", "frwiki.jsonl"):
        document, = read_documents(tmp_path / name, language="fr", source="corpus")
        assert (document.text, document.id, document.source) == (article["text"], "3", "corpus")
        assert document.meta["url"] == article["url"] and document.meta["title"] == "Asthme"


def test_an_unknown_file_and_an_empty_folder_are_errors(tmp_path):
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    with pytest.raises(UserError, match="unknown kind of file"):
        list(read_documents(tmp_path / "x.pdf"))
    with pytest.raises(UserError, match="no corpus file"):
        find_inputs([tmp_path])
    with pytest.raises(UserError, match="no such file"):
        find_inputs([tmp_path / "none"])


def test_shards_of_one_name_in_two_folders_do_not_overwrite_each_other(tmp_path):
    paths = [tmp_path / "fr" / "part.jsonl", tmp_path / "en" / "part.jsonl"]
    names = shard_names(paths)
    assert len(set(names)) == 2 and names == ["fr__part.jsonl", "en__part.jsonl"]
    with pytest.raises(UserError, match="given twice"):
        shard_names([paths[0], paths[0]])


# ---- a step over shards -----------------------------------------------------------------------------------------------


def keep_odd(documents, shard: ShardWriter, options: dict) -> None:
    """A step for these tests: odd ids are kept; `wait` makes it slow enough to be killed, `fail` makes it fail."""
    for document in documents:
        if document.id == options.get("fail"):
            raise ValueError("made to fail")
        if document.id == options.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(options.get("wait", 0))
        if int(document.id) % 2:
            shard.keep(document)
        else:
            shard.drop(document, "even")


def corpus(folder: Path, shards: int = 4, documents: int = 50) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for shard in range(shards):
        lines = [json_line({"text": f"document {number} of {shard}", "id": str(number)}) for number in range(documents)]
        (folder / f"s{shard}.jsonl").write_bytes(b"".join(lines))
        paths.append(folder / f"s{shard}.jsonl")
    return paths


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file() and path.name != ".lock"}


def run_in_a_process(inputs: Path, out: Path, **options) -> subprocess.Popen:
    """The step in a process of its own, found there as a module named like this file."""
    code = (f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests/data_prep')!r}]\n"
            f"from test_documents import keep_odd\nfrom data_prep.pipeline.shards import process_shards\n"
            f"if __name__ == '__main__': process_shards(keep_odd, [{str(inputs)!r}], {str(out)!r}, {{}}, {options.pop('workers', 1)})\n")
    script = inputs.parent / "run.py"
    script.write_text(code.replace("{}, ", f"{options!r}, "))
    return subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)


def test_the_bytes_written_do_not_depend_on_the_number_of_workers(tmp_path):
    inputs = tmp_path / "in"
    corpus(inputs)
    for workers in (1, 2, 4):
        process = run_in_a_process(inputs, tmp_path / f"out{workers}", workers=workers)
        assert process.wait(60) == 0, process.stderr.read()
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2") == contents(tmp_path / "out4")
    funnel = json.loads((tmp_path / "out1" / "funnel.json").read_text())
    assert funnel["documents"] == {"in": 200, "out": 100} and funnel["dropped"]["even"]["documents"] == 100


def test_a_run_killed_at_any_moment_ends_like_an_uninterrupted_one(tmp_path):
    inputs, out = tmp_path / "in", tmp_path / "out"
    corpus(inputs)
    clean = tmp_path / "clean"
    process_shards(keep_odd, [inputs], clean, {"wait": 0.002})
    seed = random.randrange(10**9)
    rng = random.Random(seed)
    finished: dict[str, int] = {}
    for _ in range(5):
        process = run_in_a_process(inputs, out, wait=0.002)
        time.sleep(rng.uniform(0.1, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in out.glob("kept/*.gz"):
            gzip.decompress(path.read_bytes())  # never half a file under its final name
        for path in out.glob("shards/*.json"):
            inode = (out / "kept" / f"{path.stem}.jsonl.gz").stat().st_ino
            assert finished.setdefault(path.stem, inode) == inode, f"seed {seed}: a finished shard was redone"
    process_shards(keep_odd, [inputs], out, {"wait": 0.002})
    assert contents(out) == contents(clean), f"seed {seed}"  # no leftover either


def test_a_changed_input_or_option_redoes_its_shards_and_no_others(tmp_path):
    paths = corpus(tmp_path / "in")
    out = tmp_path / "out"

    def written() -> list[tuple]:  # an inode's number alone comes again once its file is gone
        states = [(out / "kept" / f"s{number}.jsonl.gz").stat() for number in range(4)]
        return [(state.st_ino, state.st_mtime_ns) for state in states]

    process_shards(keep_odd, paths, out, {"a": 1})
    first = written()
    os.utime(paths[0])  # only the time: nothing to do
    process_shards(keep_odd, paths, out, {"a": 1})
    assert written() == first
    paths[2].write_bytes(json_line({"text": "new", "id": "1"}))
    process_shards(keep_odd, paths, out, {"a": 1})
    assert [old == new for old, new in zip(first, written())] == [True, True, False, True]
    process_shards(keep_odd, paths, out, {"a": 2})
    assert not set(first) & set(written())


def test_a_step_that_fails_names_its_input_and_leaves_no_half_shard(tmp_path):
    paths = corpus(tmp_path / "in")
    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match=r"s0\.jsonl: ValueError: made to fail"):
        process_shards(keep_odd, paths, out, {"fail": "30"})
    assert not list(out.glob("kept/*")) and not list(out.glob("shards/*"))
    process = run_in_a_process(tmp_path / "in", out, workers=2, fail="30")
    assert process.wait(60) == 1 and ".jsonl: ValueError: made to fail" in process.stderr.read()


def test_a_folder_with_shards_of_other_inputs_is_refused(tmp_path):
    paths = corpus(tmp_path / "in")
    process_shards(keep_odd, paths, tmp_path / "out", {})
    with pytest.raises(UserError, match="holds shards of other inputs"):
        process_shards(keep_odd, paths[:2], tmp_path / "out", {})


def test_two_runs_on_one_folder_the_second_refuses(tmp_path):
    inputs, out = tmp_path / "in", tmp_path / "out"
    paths = corpus(inputs)
    process = run_in_a_process(inputs, out, wait=0.05)
    try:
        deadline = time.time() + 20
        while not list(out.glob("kept/*")) and time.time() < deadline:
            time.sleep(0.02)
        with pytest.raises(UserError, match="another run is writing here"):
            process_shards(keep_odd, paths, out, {})
    finally:
        process.kill()
        process.wait()


def read_bytes_as_text(path: Path, funnel: Funnel, options: dict):
    """A reader for the test below: a file of another kind is one document, an empty one is counted."""
    if path.stat().st_size:
        yield Document(path.read_text()[:options["longest"]], id=path.stem)
    else:
        funnel.drop("empty file", 0, str(path))


def test_a_step_with_a_reader_of_its_own_makes_documents_of_other_files(tmp_path):
    for name, text in (("a.page", "first page"), ("b.page", ""), ("c.page", "third"), ("d.jsonl", "no page")):
        (tmp_path / name).write_text(text)
    funnel = process_shards(keep_all, [tmp_path], tmp_path / "out", {"longest": 5}, step="pages", read=read_bytes_as_text, suffixes=(".page",))
    assert (funnel.documents_in, funnel.documents_out) == (3, 2) and funnel.dropped["empty file"]["documents"] == 1
    kept = [json.loads(line)["text"] for path in sorted((tmp_path / "out" / "kept").glob("*.gz")) for line in gzip.open(path)]
    assert kept == ["first", "third"] and json.loads((tmp_path / "out" / "funnel.json").read_text())["step"] == "pages"
    names = ["a.page", "b.page", "c.page"]  # a cluster's tasks: each shard by itself, then the sum
    for name in names:
        process_shard(keep_all, tmp_path / name, name, tmp_path / "tasks", {"longest": 5}, "pages", read_bytes_as_text)
    gather_funnel(tmp_path / "tasks", names, "pages")
    assert contents(tmp_path / "tasks") == contents(tmp_path / "out")


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path):
    """The limit of a file's size stands for the disk: writing fails in the middle of a shard."""
    rng = random.Random(3)
    paths = [tmp_path / "in" / f"s{number}.jsonl" for number in range(3)]
    paths[0].parent.mkdir()
    for path, size in zip(paths, (10, 4000, 10)):
        path.write_bytes(b"".join(json_line({"text": "".join(rng.choices(string.ascii_letters, k=300))}) for _ in range(size)))
    code = ("import resource, sys\nfrom data_prep.clean import main\nfrom mmed.utils.errors import main_guard\n"
            "if __name__ == '__main__':\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
            "    main_guard(lambda: main([sys.argv[1], '--language', 'en', '--out', sys.argv[2]]))\n")
    told = subprocess.run([sys.executable, "-c", code, str(paths[0].parent), str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 1 and "Traceback" not in told.stderr and "s1.jsonl.gz: could not be written" in told.stderr, told.stderr
    assert sorted(contents(tmp_path / "out")) == ["dropped/s0.jsonl.gz", "kept/s0.jsonl.gz", "shards/s0.json"]


def test_a_killed_worker_is_told_with_what_it_was_on(tmp_path):
    inputs = tmp_path / "in"
    corpus(inputs)
    process = run_in_a_process(inputs, tmp_path / "out", workers=2, kill="30")
    assert process.wait(60) == 1
    told = process.stderr.read()
    assert "a worker was killed (out of memory?) while on one of:" in told and ".jsonl" in told and "fewer --workers" in told


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Peak resident memory of reading, filtering and writing at ten times the text: at most 1.1 times."""
    code = ("import sys\nfrom data_prep.filter_medical import main\n"
            "main([sys.argv[1], '--out', sys.argv[2], '--language', 'en'])\nprint(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]))")
    peaks = []
    for times in (1, 10):
        path = tmp_path / f"x{times}.jsonl"
        with open(path, "wb") as file:
            for number in range(1500 * times):
                file.write(json_line({"text": f"The patient {number} had a fever and a cough. " * 40, "id": str(number)}))
        told = subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / f"out{times}")], cwd=ROOT, capture_output=True,
                              text=True, check=True)
        peaks.append(int(told.stdout.split()[-1]))
    assert peaks[1] <= 1.1 * peaks[0], peaks


def test_a_file_name_that_is_not_utf_8_is_a_name_like_any_other(tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    write(odd, GOOD, b"bad line")
    command = [sys.executable, "-c", "import sys; from data_prep import clean; from mmed.utils.errors import main_guard; main_guard(lambda: clean.main(sys.argv[1:]))"]
    done = subprocess.run([*command, odd, "--language", "en", "--out", tmp_path / "out"], capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONUTF8": "1"})
    assert done.returncode == 0 and b"caf\\udce9" in done.stdout, done.stderr
    funnel = read_json(tmp_path / "out" / "funnel.json")
    assert funnel["documents"]["out"] == 1 and funnel["dropped"]["not JSON"]["examples"] == [f"{odd}:2"]
    write_json(tmp_path / "x.json", {"name": odd.name})
    assert read_json(tmp_path / "x.json") == {"name": odd.name}
