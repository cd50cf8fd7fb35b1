"""Deduplication: signatures that estimate the exact Jaccard similarity, and documents kept and dropped as
promised."""
import itertools
import os
import random
import subprocess
import sys
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from corpus_files import join, make_words, read_folder, tree, write
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ROOT

from data_prep import dedup
from data_prep.dedup import SHARED, STAGES, band_shape, deduplicate, main
from data_prep.filters import minhash
from mmed.utils.errors import UserError

SEED = int(os.environ.get("MMED_TEST_SEED", "0"))


def edit(rng: random.Random, words: list[str], share: float, language: str) -> list[str]:
    return [make_words(rng, language, 1)[0] if rng.random() < share else word for word in words]


def true_jaccard(one: str, other: str) -> float:
    a, b = minhash.shingles(one), minhash.shingles(other)
    return len(a & b) / max(1, len(a | b))


def estimate(one: str, other: str) -> float:
    return float(np.equal(*minhash.signatures([one, other]).minima).mean())


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["the", "Heart", "治", "療", "カ", "é", "ไทย", "12", "!", " ", "\n", "\xad",
                                 "Ａ"]), max_size=40))
def test_hashes_are_those_of_the_plain_shingles(parts):
    text = " ".join(parts)
    assert len(minhash.shingle_hashes(text)) == len(minhash.shingles(text))
    assert (not minhash.token_hashes(text).exact) == (not text.replace("\xad", "").strip())


@pytest.mark.parametrize("text", [
    "Café au lait, déjà vu!", "Ёлка и ещё одна", "ガス交換の治療", "Η ΟΔΟΣ και Αθήνα", "각하"])
def test_copies_in_another_form_case_or_spacing_are_signed_alike(text):
    copies = [text, unicodedata.normalize("NFD", text), text.upper(), f"\ufeff  {text}\r\n\u3000",
              text.replace(" ", "\u00a0 \t"), "e\u200b\u0301".join(text.split("é")),
              text.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)})]
    signed = minhash.signatures(copies)
    assert len(set(signed.exact.tolist())) == 1 and (signed.minima == signed.minima[0]).all()
    assert minhash.signatures([text + "?"]).exact[0] != signed.exact[0]


def test_estimates_are_unbiased_with_the_stated_error():
    rng = random.Random(SEED)
    scores = []
    for i in range(200):
        language = ("en", "ru", "zh", "fr")[i % 4]
        words = make_words(rng, language, 108)
        one, other = join(words, language), join(edit(rng, words, rng.uniform(0, 0.1), language), language)
        truth = true_jaccard(one, other)
        assert minhash.jaccard(minhash.shingle_hashes(one),
                               minhash.shingle_hashes(other)) == pytest.approx(truth, abs=4e-3)
        if 0 < truth < 1:
            error = estimate(one, other) - truth
            scores.append(error / (truth * (1 - truth) / minhash.PERMUTATIONS) ** 0.5)
    # the mean of n standardised errors has a standard deviation of 1 / sqrt(n)
    assert abs(np.mean(scores)) < 5 / len(scores) ** 0.5 and np.std(scores) < 1.3


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.99])
def test_bands_find_the_stated_share_of_pairs_at_the_threshold(threshold):
    bands, rows = band_shape(threshold)
    assert bands * rows <= minhash.PERMUTATIONS and 1 - (1 - threshold**rows) ** bands >= 0.99
    more = minhash.PERMUTATIONS // (rows + 1)
    assert 1 - (1 - threshold ** (rows + 1)) ** more < 0.99, "more rows would do"


def test_a_long_text_equals_itself_in_other_spacing():
    text = " ".join(make_words(random.Random(SEED), "en", 20_000))
    assert len(text) > 4 * minhash.PIECE_CHARACTERS
    one, other = minhash.signatures([text, text.upper().replace(" ", "\n\n ")]), minhash.shingles(text)
    assert one.exact[0] == one.exact[1] and (one.minima[0] == one.minima[1]).all()
    assert len(minhash.shingle_hashes(text)) == pytest.approx(len(other), abs=2)  # hashes of 32 bits collide
    grown = minhash.token_hashes("\ufdfa" * 2 * minhash.PIECE_CHARACTERS)  # each becomes 18 characters
    assert len(grown.hashes) > minhash.PIECE_CHARACTERS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Originals in five languages; copies exact, in other case and spacing, 1, 5 and 20 % edited; over six
    shards."""
    rng = random.Random(SEED)
    records, pairs = [], []
    for number in range(200):
        language = ("en", "ru", "fr", "zh", "ja")[number % 5]
        words = make_words(rng, language, rng.randint(120, 500))
        text = join(words, language)
        records.append({"id": f"o{number}", "text": text, "language": language})
        copies = {"exact": text, "case": "  " + text.upper().replace(" ", " \n")}
        copies |= {str(share): join(edit(rng, words, share / 100, language), language)
                   for share in (1, 5, 20)}
        for kind, copy in copies.items() if number % 2 else ():
            label = rng.choice(["en", "zh", language])  # a wrong label must not hide a copy
            records.append({"id": f"{kind}-{number}", "text": copy, "language": label})
            pairs.append((kind, f"o{number}", f"{kind}-{number}", true_jaccard(text, copy)))
    odd = ["!!!", "???", "!!!", "\u200b", "\u200b\u200b", "one", "two", "One!"]
    records += [{"id": f"odd{i}", "text": text} for i, text in enumerate(odd)]
    rng.shuffle(records)
    folder, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("out")
    for shard in range(6):
        write(folder / f"part{shard}.jsonl", *records[shard::6])
    deduplicate([folder], out, options={"keep_dropped": True})
    return folder, out, {record["id"]: record for record in records}, pairs


def outputs(out: Path) -> dict[str, bytes]:
    return tree(out / "kept") | {f"dropped/{name}": data for name, data in tree(out / "dropped").items()}


def test_copies_are_dropped_and_other_documents_kept(corpus):
    _, out, records, pairs = corpus
    dropped = {record["id"]: record for record in read_folder(out / "dropped")}
    kept = {record["id"] for record in read_folder(out / "kept")}
    assert kept | dropped.keys() == records.keys() and not kept & dropped.keys()
    assert not any({one, other} <= kept for kind, one, other, _ in pairs if kind in ("exact", "case"))
    near = [{one, other} <= kept for _, one, other, truth in pairs if truth >= 0.8]
    assert len(near) > 200 and np.mean(near) <= 0.02
    for record in dropped.values():
        if not minhash.shingles(record["text"]):
            continue
        original = records[record["duplicate_of"]]
        truth = true_jaccard(record["text"], original["text"])
        assert record["duplicate_of"] in kept and truth >= 0.8, record["id"]
        assert record.get("jaccard", truth) == pytest.approx(truth, abs=2e-3)
        assert record.get("estimated_jaccard", truth) == pytest.approx(truth, abs=0.15)
    assert all(f"20-{number}" in kept for number in range(1, 200, 2))
    # Texts without words, and of one word, are not everyone's duplicate.
    assert {records[name]["text"] for name in kept if name.startswith("odd")} == {
        "!!!", "???", "\u200b", "\u200b\u200b", "two", "One!"}


def test_pairs_near_the_threshold_are_decided_by_their_texts(tmp_path):
    rng = random.Random(SEED)
    records, truth = [], {}
    for number in range(300):
        words = make_words(rng, "ru", 200)
        one, other = " ".join(words), " ".join(edit(rng, words, rng.uniform(0.015, 0.035), "ru"))
        records += [{"id": f"a{number}", "text": one}, {"id": f"b{number}", "text": other}]
        truth[number] = true_jaccard(one, other)
    deduplicate([write(tmp_path / "a.jsonl", *records)], tmp_path / "out")
    kept = {record["id"] for record in read_folder(tmp_path / "out" / "kept")}
    merged = {number for number in truth if not {f"a{number}", f"b{number}"} <= kept}
    above = [number in merged for number, value in truth.items() if 0.8 <= value < 0.86]
    below = [number in merged for number, value in truth.items() if 0.65 < value < 0.8]
    assert min(len(above), len(below)) > 30 and np.mean(above) >= 0.93 and sum(below) <= 2


def test_result_does_not_depend_on_order_shards_or_workers(corpus, tmp_path):
    folder, out, records, _ = corpus
    deduplicate(sorted(folder.glob("*.jsonl"))[::-1], tmp_path / "reversed", workers=2,
                options={"keep_dropped": True})
    assert outputs(tmp_path / "reversed") == outputs(out)
    shuffled = list(records.values())
    random.Random(SEED + 1).shuffle(shuffled)
    files = [write(tmp_path / "a.jsonl", *shuffled[:300]), write(tmp_path / "b.jsonl", *shuffled[300:])]
    deduplicate(files, tmp_path / "other")
    ids = [{record["id"] for record in read_folder(where / "kept")} for where in (tmp_path / "other", out)]
    assert ids[0] == ids[1]


def test_result_does_not_depend_on_how_much_is_in_memory_at_once(corpus, tmp_path, monkeypatch):
    folder, out, _, _ = corpus
    monkeypatch.setattr(dedup, "CHUNK", 7)  # fewer than the bands
    monkeypatch.setattr(dedup, "COLUMNS", 5)  # the last group is smaller
    deduplicate([folder], tmp_path / "out", options={"keep_dropped": True})
    assert outputs(tmp_path / "out") == outputs(out)


def test_stages_and_shares_give_what_one_run_gives(corpus, tmp_path, monkeypatch):
    folder, out, _, _ = corpus
    command = [str(folder), "--out", str(tmp_path / "out"), "--keep_dropped"]
    for before, stage in itertools.pairwise(STAGES):
        with pytest.raises(UserError, match=f"--stage {before} is not done"):
            main([*command, "--stage", stage])
    for stage in STAGES:
        for share in ("0/3", "2/3", "1/3", "2/3") if stage in SHARED else ():
            main([*command, "--stage", stage, "--shard", share])
        if stage not in SHARED:
            main([*command, "--stage", stage])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("[!.]*.*")}
    monkeypatch.setattr("data_prep.documents.read_documents", lambda *_, **__: pytest.fail("read"))
    command[2] = os.path.relpath(command[2])
    main(command)  # nothing is signed, decided, read or written again
    assert outputs(tmp_path / "out") == outputs(out) and (tmp_path / "out" / "funnel.json").is_file()
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(UserError, match="--shard: needs --stage"):
        main([*command, "--shard", "0/2"])


def test_an_input_that_changed_after_signing_is_not_written(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "one"}, {"text": "two"}, {"text": "two"})
    for stage in STAGES[:-1]:
        deduplicate([path], tmp_path / "out", stage=stage)
    write(path, {"text": "three"}, {"text": "one"}, {"text": "two"})
    with pytest.raises(UserError, match="--stage decide is not done for these inputs"):
        deduplicate([path], tmp_path / "out", stage="write")
    assert deduplicate([path], tmp_path / "out").documents_out == 3


def test_pairs_that_were_cut_short_are_not_decided(corpus, tmp_path):
    for stage in STAGES[:3]:
        deduplicate([corpus[0]], tmp_path / "out", stage=stage)
    pairs, = (tmp_path / "out").rglob("pairs.bin")
    pairs.write_bytes(pairs.read_bytes()[:-25])
    with pytest.raises(UserError, match=r"pairs\.bin: not the whole file; delete"):
        deduplicate([corpus[0]], tmp_path / "out", stage="decide")


def test_more_shards_than_open_files_are_allowed(tmp_path):
    for number in range(60):
        write(tmp_path / f"s{number}.jsonl", {"text": f"heart {number * 7} lung {number * 13} bone"})
    limited = (f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); "
               f"from data_prep.dedup import main; main([{str(tmp_path)!r}, '--out', "
               f"{str(tmp_path / 'out')!r}])")
    subprocess.run([sys.executable, "-c", limited], cwd=ROOT, check=True, capture_output=True)


def test_documents_of_files_with_one_name_are_told_apart(tmp_path):
    files = [write(tmp_path / folder / "part.jsonl", {"text": f"{folder} one"}, {"text": "the same"})
             for folder in ("a", "b")]
    deduplicate(files, tmp_path / "out")
    kept, dropped = (read_folder(tmp_path / "out" / folder) for folder in ("kept", "dropped"))
    assert len({record["id"] for record in kept + dropped}) == 4
    assert dropped[0]["duplicate_of"] in {record["id"] for record in kept if record["text"] == "the same"}


def test_a_chain_of_edits_drops_only_what_is_like_a_kept_document(tmp_path):
    rng = random.Random(SEED)
    words = make_words(rng, "en", 400)
    text = {}
    for number in range(40):  # each step changes little; the last has little in common with the first
        text[str(number)] = " ".join(words)
        words = edit(rng, words, 0.015, "en")
    deduplicate([write(tmp_path / "a.jsonl", *[{"id": i, "text": t} for i, t in text.items()])],
                tmp_path / "out")
    dropped = read_folder(tmp_path / "out" / "dropped")
    assert 20 < len(dropped) < 39
    assert all(true_jaccard(text[record["id"]], text[record["duplicate_of"]]) >= 0.8 for record in dropped)


def test_a_wrong_threshold_is_an_error_and_an_empty_file_is_none(tmp_path):
    with pytest.raises(UserError, match="threshold"):
        deduplicate([write(tmp_path / "a.jsonl", {"text": "a"})], tmp_path / "x", threshold=0)
    (tmp_path / "empty.jsonl").write_text("")
    assert deduplicate([tmp_path / "empty.jsonl"], tmp_path / "none").documents_in == 0


def test_memory_does_not_grow_with_the_number_of_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(dedup, "CHUNK", 1 << 10)
    rng, counts, peaks = np.random.default_rng(SEED), [], []
    documents = np.zeros(8000, dedup.DOCUMENT)
    documents["exact"] = np.arange(1, 8001)
    for alike in (2, 100):  # documents with nine tenths of one signature
        minima = rng.integers(0, 1 << 16, (8000 // alike, minhash.PERMUTATIONS), np.uint16).repeat(alike, 0)
        minima[rng.random(minima.shape) < 0.1] = 0
        columns, file = (open(tmp_path / f"{name}-{alike}", "w+b") for name in ("columns", "shingles"))
        with columns, file:
            columns.write(minima.T.tobytes())
            shingles = dedup.Rows(file, (np.unique(row).astype(np.uint32).tobytes() for row in minima))
            counts.append(sum(map(len, dedup.find_pairs(columns, np.arange(8000), 8000, 0.8, tmp_path))))
            tracemalloc.start()
            parts = dedup.find_pairs(columns, np.arange(8000), 8000, 0.8, tmp_path)
            dedup.find_originals(documents, parts, shingles, 0.8)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert counts[1] > 20 * counts[0] and peaks[1] < 1.2 * peaks[0]
