"""Faults of files: corpus stages killed, lines, streams, models, tokenizers, pages, books, archives and servers made to harm.

Rows D1, D3, D4, D5, D7 inject here, M6, M8 and M9 by the fuzzers too. The others, and these once more, run what the test suite holds (SUITE): a
trial is a test case there, and its hostile input stands beside it. --soak: ten times the kills and lines, and D7 at its full size.
"""
from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fault_table import Row, median, trials

ROOT = Path(__file__).resolve().parents[2]
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_module(name: str) -> Any:
    """A file of tests, for its makers of hostile inputs."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, next((ROOT / "tests").rglob(f"{name}.py")))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


# ------------------------------------------------------------------------------------------------------ D1: killed stages

def make_documents(folder: Path, rng: random.Random, shards: int = 4, documents: int = 300) -> Path:
    from mmed.languages import get_language

    folder.mkdir(parents=True)
    language = get_language("en")
    words = (language.medical_sentence + " " + language.ordinary_sentence).split()
    for shard in range(shards):
        with gzip.open(folder / f"s{shard}.jsonl.gz", "wt", encoding="utf-8") as file:
            texts = [" ".join(rng.choices(words, k=rng.randrange(20, 200))) for _ in range(documents)]
            texts[::7] = texts[3::7][:len(texts[::7])] + texts[::7][len(texts[3::7]):]  # some stand twice
            file.writelines(json.dumps({"text": text, "id": f"{shard}-{number}", "language": "en", "source": "web"}) + "\n" for number, text in enumerate(texts))
    return folder


def make_pages(folder: Path, rng: random.Random) -> Path:
    folder.mkdir(parents=True)
    for number in range(80):
        words = " ".join(rng.choices("the patient had fever and cough for several days before he was admitted".split(), k=60))
        (folder / f"{number:03}.html").write_text(f"<html><head><title>{number}</title></head><body><article><p>{words}.</p></article></body></html>")
    return folder


def make_books(folder: Path, rng: random.Random) -> Path:
    makers = test_module("test_books")
    folder.mkdir(parents=True)
    for number in range(6):
        (folder / f"{number}.pdf").write_bytes(makers.one_page(makers.stream(b"BT /F 12 Tf 40 500 Td (" + b"Heart failure %d is treated. " % number * 20 + b") Tj ET")))
    return folder


def contents(out: Path) -> dict[str, str]:
    """sha256 of every file but locks and journals; of a shard's record without its fingerprint, which may know the folder's name."""
    return {str(path.relative_to(out)): contents_of(path) for path in sorted(out.rglob("*"))
            if path.is_file() and path.name != ".lock" and "work" not in path.relative_to(out).parts}


def contents_of(path: Path) -> str:
    data = path.read_bytes()
    if path.parent.name == "shards":
        data = json.dumps(json.loads(data) | {"fingerprint": ""}).encode()
    return hashlib.sha256(data).hexdigest()


def stages(work: Path, rng: random.Random) -> dict[str, Callable[[Path], list[str]]]:
    """Name of a stage -> its command for an output folder."""
    from mmed.tokenizer import train_sentencepiece

    documents, pages, books = make_documents(work / "documents", rng), make_pages(work / "pages", rng), make_books(work / "books", rng)
    train_sentencepiece(sorted(documents.glob("*.gz")), work / "tokenizer", 400)
    (work / "exam").mkdir()
    (work / "exam" / "English.jsonl").write_text(json.dumps({"question": "a b c d e f g h i j k l m n o p?", "options": {"A": "x", "B": "y"}, "answer_idx": "A"}) + "\n")
    return {
        "pages": lambda out: ["data_prep.web_pages", str(pages), "--language", "en", "--out", str(out)],
        "books": lambda out: ["data_prep.books", str(books), "--language", "en", "--no-ocr", "--out", str(out)],
        "filter": lambda out: ["data_prep.filter_medical", str(documents), "--language", "en", "--out", str(out)],
        "clean": lambda out: ["data_prep.clean", str(documents), "--language", "en", "--mask-personal", "--out", str(out)],
        "duplicates": lambda out: ["data_prep.dedup", str(documents), "--out", str(out)],
        "exam questions": lambda out: ["data_prep.decontaminate", str(documents), "--benchmark", str(work / "exam"), "--out", str(out)],
        "tokenize": lambda out: ["data_prep.tokenize_corpus", str(documents), "--tokenizer", str(work / "tokenizer"), "--out", str(out / "s")],
    }


def start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=ENV, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def killed_stages(soak: bool, rng: random.Random) -> Iterator[Row]:
    count = 15 if soak else 2
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, command in stages(work, rng).items():
            clean = work / f"{name}-clean"
            begun = time.monotonic()
            run = start(command(clean))
            assert not run.wait(), run.stderr.read().decode()
            whole, expected = time.monotonic() - begun, contents(clean)
            survived, seconds, redone = 0, [], 0
            for trial in trials(count, f"D1 {name}"):
                out = work / f"{name}-{trial}"
                run = start(command(out))
                time.sleep(rng.uniform(0.3, 1.0) * whole)
                os.killpg(run.pid, signal.SIGKILL)
                run.communicate()
                half = [path for path in out.rglob("*") if path.is_file() and not path.name.endswith(".tmp") and path.suffix in (".gz", ".bin")
                        and str(path.relative_to(out)) in expected and contents_of(path) != expected[str(path.relative_to(out))]]
                finished = {path: path.stat().st_mtime_ns for path in out.glob("shards/*.json")}
                begun = time.monotonic()
                run = start(command(out))
                code = run.wait()
                seconds.append(time.monotonic() - begun)
                again = sum(path.stat().st_mtime_ns != when for path, when in finished.items())
                redone += again
                survived += not code and contents(out) == expected and not half and not again
                run.stderr.close()
            yield Row("D1", f"kill -9 at a random moment of the stage: {name}", count, survived, median(seconds),
                      f"byte-identical after the next start; a clean run takes {whole:.1f} s; finished shards done again: {redone}")


# ---------------------------------------------------------------------------------------- D3, M6, M9: inputs of the fuzzers

def fuzzed(row: str, fault: str, names: list[str], count: int, seed: int) -> Row:
    """Inputs of fuzz.py in a process of its own each parser; what is not read or refused in one line did not survive."""
    code = ("import sys, json, tempfile, time; from pathlib import Path; sys.path[:0] = sys.argv[1:3]\n"
            "import os; os.fsync = lambda descriptor: None\n"
            "from fuzz import fault_of, make_input; from fuzz_targets import TARGETS\n"
            "name, seed, count = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])\n"
            "target, good, longest = TARGETS[name], 0, 0.0\n"
            "with tempfile.TemporaryDirectory() as folder:\n"
            "    seeds = target.seeds()\n"
            "    for number in range(count):\n"
            "        clock = time.process_time()\n"
            "        fault = fault_of(target, Path(folder), make_input(name, seed, number, seeds, target.json))\n"
            "        longest = max(longest, time.process_time() - clock) if number > len(seeds) else 0.0\n"
            "        good += not fault\n"
            "        if fault: print(name, number, *fault, file=sys.stderr)\n"
            "print(json.dumps([good, longest]))")
    good, longest = 0, 0.0
    for name in trials(names, row):
        done = subprocess.run([sys.executable, "-c", code, str(ROOT), str(ROOT / "benchmarks" / "fuzz"), name, str(seed), str(count)], capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            print(f"{row} {name}: ended with {done.returncode}\n{done.stderr[-2000:]}", file=sys.stderr)
            continue
        print(done.stderr[-4000:], end="", file=sys.stderr)
        result = json.loads(done.stdout)
        good, longest = good + result[0], max(longest, result[1])
    return Row(row, fault, count * len(names), good, None, f"{', '.join(names)}; the slowest input took {longest:.2f} s")


# --------------------------------------------------------------------------------------------------------- D4, D5: streams

def damaged_streams(soak: bool, rng: random.Random) -> Iterator[Row]:
    import numpy as np

    from mmed.data import StreamWriter, TokenStream
    from mmed.utils.errors import UserError

    def refused(prefix: Path, fingerprint: str = "print") -> bool:
        try:
            TokenStream(prefix, fingerprint, verify=True)
        except UserError as error:
            return str(prefix) in str(error)
        return False

    tests = test_module("test_data")
    named = ["cut by one byte", "empty", "missing idx", "missing side file", "other dtype", "not a side file", "flipped bit", "another stream's side file",
             "id outside the vocabulary", "document of no tokens", "documents in another order"]
    count, survived, clocks = 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for what in [*named, *["random cut"] * (200 if soak else 20), *["random bit"] * (500 if soak else 50)]:
            place = work / str(count)
            place.mkdir()
            tests.write(place / "s", tests.random_documents(count))
            count += 1
            if what.startswith("random"):
                path = place / rng.choice(["s.bin", "s.idx"])
                data = bytearray(path.read_bytes())
                at = rng.randrange(len(data))
                if what == "random cut":
                    del data[at:]
                else:
                    data[at] ^= 1 << rng.randrange(8)
                path.write_bytes(data)
            else:
                tests.damage(place, what)
            begun = time.monotonic()
            survived += refused(place / "s")
            clocks.append(time.monotonic() - begun)
        writer = StreamWriter(work / "large", 60_000, "print")
        for _ in range(100):
            writer.add(np.random.default_rng(1).integers(0, 60_000, 500_000))
        writer.close()
        clock = time.process_time()
        TokenStream(work / "large", "print", verify=True)
        speed = 100 / (time.process_time() - clock)
        yield Row("D4", "token stream cut, flipped, mixed up, or of ids outside the vocabulary", count, survived, median(clocks),
                  f"all bytes read before step 1, {speed:.0f} MB/s of CPU time")

        from mmed.tokenizer import load_tokenizer, train_sentencepiece

        prints = []
        for number in range(5):
            words = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(200)]
            prints.append(train_sentencepiece([" ".join(rng.choices(words, k=50)) for _ in range(100)], work / f"t{number}", 330).fingerprint)
        assert {load_tokenizer(work / f"t{number}").vocab_size for number in range(5)} == {330}
        pairs = [(a, b) for a in range(5) for b in range(5) if a != b]
        survived = 0
        for a, b in pairs:
            writer = StreamWriter(work / "of", 330, prints[a])
            writer.add([1, 2, 3])
            writer.close()
            survived += refused(work / "of", prints[b])
        yield Row("D5", "stream of another tokenizer of the same size", len(pairs), survived)


# ----------------------------------------------------------------------------------------------------- D7: huge documents

HUGE = """
import json, runpy, sys, time
clock = time.process_time()
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code or 0
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss would count who started it
print("USED" + json.dumps([code, time.process_time() - clock, peak / 1024]))
"""


def huge_documents(soak: bool, rng: random.Random) -> Iterator[Row]:
    """One line of `size` MB, and of twice as much: prose, one word, one letter over and over."""
    from mmed.tokenizer import train_sentencepiece

    size, limit = (100, 2048) if soak else (10, 512)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prose = " ".join(rng.choices("Pneumonia is treated with antibiotics and rest, the patient's fever and cough went away; 肺炎患者 é".split(), k=20_000)) + " "
        train_sentencepiece([prose], work / "tokenizer", 320)
        kinds = {"prose": prose, "one word": "".join(rng.choices("abcdefghij", k=100_000)), "one letter": "a" * 100_000}
        commands = {"clean": ["--language", "en"], "filter_medical": ["--language", "en"], "dedup": [], "tokenize_corpus": ["--tokenizer", str(work / "tokenizer")]}
        count, survived, notes = 0, 0, []
        for kind, unit in trials(list(kinds.items()), "D7"):
            paths = []
            for factor in (1, 2):
                place = work / f"{kind}{factor}"
                place.mkdir()
                text = unit * (size * factor * 1_000_000 // len(unit.encode()))
                (place / "a.jsonl").write_text(json.dumps({"text": text, "id": "a"}, ensure_ascii=False) + "\n", encoding="utf-8")
                paths.append(place / "a.jsonl")
            for name, options in commands.items():
                used = []
                for path in paths:
                    out = str(path.parent / name / "s")
                    done = subprocess.run([sys.executable, "-c", HUGE, f"data_prep.{name}", str(path), "--out", out, *options], cwd=ROOT, env=ENV, capture_output=True, text=True)
                    used.append(json.loads(done.stdout.partition("USED")[2] or "[1, 0, 0]"))
                count += 1
                (_, first, _), (_, second, memory) = used
                good = not used[0][0] and not used[1][0] and second < 2.5 * first + 1 and memory < limit
                survived += good
                if not good or (soak and kind == "prose"):
                    notes.append(f"{name} of {kind}: {first:.0f} s and {second:.0f} s, {memory:,.0f} MB")
        yield Row("D7", f"one document of {size} and of {2 * size} MB on a line, of three kinds, through four steps", count, survived, None,
                  f"time at most 2.5 times and memory below {limit} MB" + "".join(f"; {note}" for note in notes))


# -------------------------------------------------------------------------------------------- what the test suite injects

SUITE = {
    "D2": ("an option or an input changed between two starts", ["data_prep/test_documents.py::test_a_changed_input_or_option_redoes_its_shards_and_no_others",
           "data_prep/test_web_pages.py::test_a_finished_shard_is_not_extracted_again_and_a_changed_page_is", "data_prep/test_tokenize_corpus.py::test_a_finished_stream_is_not_made_again_and_a_changed_input_is",
           "data_prep/test_dedup.py::test_a_second_start_does_nothing_again_and_a_new_shard_is_signed_alone", "data_prep/test_filter_medical.py::test_other_thresholds_redo_the_shards_and_the_same_ones_do_not"]),
    "D6": ("vocabularies at the border of uint16", ["test_data.py -k dtype_is_the_smallest"]),
    "D8": ("100,000 random strings of awkward characters normalised twice; other normal forms; U+2028", [
        "data_prep/test_documents.py::test_normalisation_is_idempotent_and_what_it_gives_is_clean", "data_prep/test_documents.py::test_written_lines_are_one_line_to_every_reader",
        "data_prep/test_filter_medical.py::test_composed_and_decomposed_accents_and_invisible_characters_give_equal_hits",
        "data_prep/test_filter_medical.py::test_full_width_and_half_width_forms_are_folded_in_japanese"]),
    "D9": ("planted copies: exact, in other case, spacing or normal form, edited", ["data_prep/test_dedup.py"]),
    "D10": ("exam questions planted in documents", ["data_prep/test_decontaminate.py"]),
    "D11": ("hostile pages, each in a process with limits", ["data_prep/test_web_pages.py::test_a_hostile_page_ends_in_a_text_or_a_reason_and_shows_no_script",
            "data_prep/test_web_pages.py::test_random_damage_to_a_page_never_ends_the_run", "data_prep/test_web_pages.py::test_a_page_that_hangs_or_eats_memory_or_crashes_falls_alone"]),
    "D12": ("hostile servers and robots.txt, on loopback", ["data_prep/test_fetch_site.py"]),
    "D13": ("hostile PDF files, each in a process with limits", ["data_prep/test_books.py::test_a_hostile_file_costs_itself_within_its_limits",
            "data_prep/test_books.py::test_truncated_and_flipped_files_never_stop_the_run", "data_prep/test_books.py::test_too_many_pages_and_time_for_the_whole_book_are_limits_too",
            "data_prep/test_books.py::test_a_reader_that_hangs_is_ended_by_its_own_clock", "data_prep/test_books.py::test_a_reader_goes_when_the_one_that_asks_is_killed"]),
    "D14": ("hostile archives", ["data_prep/test_web_pages.py::test_a_tar_gives_its_pages_and_refuses_links_and_names_that_climb", "data_prep/test_web_pages.py::test_a_zip_gives_its_pages_and_refuses_links_and_names_that_climb",
            "data_prep/test_web_pages.py::test_bombs_stop_at_the_limits", "data_prep/test_web_pages.py::test_random_damage_to_archives_is_never_fatal", "data_prep/test_web_pages.py::test_a_damaged_warc_gives_the_pages_around_the_damage",
            "data_prep/test_documents.py::test_a_compressed_bomb_is_one_dropped_line", "data_prep/test_mmedbench.py -k zip or archive"]),
    "D15": ("workers killed, workers that raise, other numbers of workers", ["data_prep/test_documents.py::test_a_killed_worker_is_told_with_what_it_was_on",
            "data_prep/test_documents.py::test_a_step_that_fails_names_its_input_and_leaves_no_half_shard", "data_prep/test_documents.py::test_the_bytes_written_do_not_depend_on_the_number_of_workers"]),
    "M6": ("hostile safetensors files and indexes", ["checkpoints/test_checkpoint.py -k hostile_safetensors or an_index or random_damage"]),
    "M7": ("pickles that would run code; code beside a model", ["checkpoints/test_checkpoint.py -k pickle or runs_nothing", "test_tokenizer.py::test_code_beside_a_tokenizer_is_not_run",
           "test_layout.py -k runs_code or words_themselves", "checkpoints/test_hostile_models.py -k pickle"]),
    "M8": ("hostile config.json", ["checkpoints/test_families.py::test_a_config_that_means_other_mathematics_or_nonsense_is_refused_by_name",
           "checkpoints/test_checkpoint.py -k config_larger or config_without", "checkpoints/test_hostile_models.py -k config"]),
    "M10": ("another document before one in a packed row", ["test_model.py::test_packed_documents_do_not_see_each_other"]),
    "M11": ("devices that are not there", ["checkpoints/test_hostile_models.py -k device"]),
    "M9": ("crafted tokenizer files", ["test_tokenizer.py -k damaged_model or flipped_bits or cannot_be_exact or settings_that_make"]),
}


def suite(row: str) -> Row:
    """The row's cases of the test suite, run by pytest."""
    fault, nodes = SUITE[row]
    count = survived = 0
    begun = time.monotonic()
    for node in trials(nodes, row):
        name, _, chosen = node.partition(" -k ")
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={folder}/x.xml", f"tests/{name}", *(["-k", chosen] if chosen else [])],
                                  cwd=ROOT, env=ENV, capture_output=True, text=True)
            result = ElementTree.parse(f"{folder}/x.xml").getroot()[0] if Path(f"{folder}/x.xml").is_file() else None
        if result is None or not int(result.get("tests")):
            print(f"{row} {node}: no test was run\n{done.stdout[-2000:]}", file=sys.stderr)
            count += 1
            continue
        bad = int(result.get("failures")) + int(result.get("errors"))
        ran = int(result.get("tests")) - int(result.get("skipped"))
        count, survived = count + ran, survived + ran - bad
        if bad:
            print(f"{row} {node}\n{done.stdout[-2000:]}", file=sys.stderr)
    return Row(row, fault, count, survived, None, f"cases of the test suite, {time.monotonic() - begun:.0f} s")


def rows(soak: bool, seed: int, only: set[str]) -> Iterator[Row]:
    def wanted(*names: str) -> bool:
        return not only or bool(only & set(names))

    rng = random.Random(seed)
    if wanted("D1"):
        yield from killed_stages(soak, rng)
    if wanted("D3"):
        yield fuzzed("D3", "malformed lines between good ones", ["jsonl"], 50_000 if soak else 5000, seed)
    if wanted("D4", "D5"):
        yield from (row for row in damaged_streams(soak, rng) if wanted(row.id))
    if wanted("D7"):
        yield from huge_documents(soak, rng)
    if wanted("M6"):
        yield fuzzed("M6", "damaged safetensors headers, indexes, adapters", ["safetensors", "index", "adapter"], 5000 if soak else 500, seed)
    if wanted("M8"):
        yield fuzzed("M8", "changed config.json of five families", ["config"], 20_000 if soak else 1000, seed)
    if wanted("M9"):
        yield fuzzed("M9", "damaged tokenizer files", ["sentencepiece", "charsmap", "tiktoken", "tokenizer-json", "tokenizer-settings", "encoder-tokenizer"],
                     5000 if soak else 500, seed)
    for name in SUITE:
        if wanted(name):
            yield suite(name)
