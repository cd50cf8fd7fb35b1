"""Token streams, the order of data, windows, and the label mask of exam rows."""
import hashlib
import json
import os
import random

import numpy as np
import pytest

from mmed.data import (
    IGNORE,
    Example,
    ExamRows,
    Mixture,
    PretrainRows,
    StreamWriter,
    TokenStream,
    encode_example,
    pack,
    rank_share,
    token_dtype,
)
from mmed.prompts import ExamItem, build_prompt, build_target
from mmed.utils.errors import UserError


@pytest.fixture
def random_seed(request):
    seed = int(os.environ.get("TEST_SEED", 0)) or random.randrange(2 ** 31)
    print(f"TEST_SEED={seed}")
    return seed


def write(prefix, documents, vocab_size=1000, language="en", bos_id=None):
    writer = StreamWriter(prefix, vocab_size, "print", bos_id)
    for ids in documents:
        writer.add(ids, language, "web")
    writer.close()
    return TokenStream(prefix, "print", verify=True)


def random_documents(seed, count=40, longest=60, vocab_size=1000):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, vocab_size, rng.integers(1, longest)).tolist() for _ in range(count)]


@pytest.mark.parametrize("vocab_size, name", [(65535, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_the_dtype_is_the_smallest_that_holds_the_vocabulary_and_ids_come_back(tmp_path, vocab_size, name):
    assert token_dtype(vocab_size).name == name
    ids = [0, 1, vocab_size - 1]
    stream = write(tmp_path / "s", [ids, ids], vocab_size)
    assert np.memmap(tmp_path / "s.bin", dtype=name, mode="r").tolist() == ids * 2 == stream.ids.tolist()
    assert stream.ends.tolist() == [3, 6]


def test_counts_by_language_and_source_are_kept(tmp_path):
    writer = StreamWriter(tmp_path / "s", 10, "print")
    writer.add([1, 2], "en", "web")
    writer.add([1, 2, 3], "ja", "book")
    meta = writer.close()
    assert meta["counts"] == {"en": {"web": {"tokens": 2, "documents": 1}}, "ja": {"book": {"tokens": 3, "documents": 1}}}


def damage(tmp_path, what):
    stream = tmp_path / "s"
    if what == "cut by one byte":
        (tmp_path / "s.bin").write_bytes((tmp_path / "s.bin").read_bytes()[:-1])
    elif what == "empty":
        (tmp_path / "s.bin").write_bytes(b"")
    elif what == "missing idx":
        (tmp_path / "s.idx").unlink()
    elif what == "missing side file":
        (tmp_path / "s.json").unlink()
    elif what == "other dtype":
        meta = json.loads((tmp_path / "s.json").read_text())
        (tmp_path / "s.json").write_text(json.dumps(meta | {"dtype": "uint32"}))
    elif what == "not a side file":
        (tmp_path / "s.json").write_text("{}")
    elif what == "flipped bit":
        data = bytearray((tmp_path / "s.bin").read_bytes())
        data[3] ^= 4
        (tmp_path / "s.bin").write_bytes(bytes(data))
    elif what in ("id outside the vocabulary", "document of no tokens", "documents in another order", "an end before all beginnings"):  # under hashes that fit
        name = "bin" if what.startswith("id") else "idx"
        values = np.fromfile(tmp_path / f"s.{name}", "<u2" if name == "bin" else "<u8")
        if what.startswith("id"):
            values[7] = json.loads((tmp_path / "s.json").read_text())["vocab_size"]
        elif "beginnings" in what:
            values[0] = 2 ** 64 - 8  # negative where it is taken for a signed number
        else:
            values[:2] = values[0] if "no tokens" in what else values[1::-1]
        values.tofile(tmp_path / f"s.{name}")
        meta = json.loads((tmp_path / "s.json").read_text())
        meta["sha256"][name] = hashlib.sha256(values.tobytes()).hexdigest()
        (tmp_path / "s.json").write_text(json.dumps(meta))
    elif what.startswith("side file:"):
        meta = json.loads((tmp_path / "s.json").read_text())
        meta |= {"no hash": {"sha256": {"bin": "0"}}, "hash is a list": {"sha256": ["bin", "idx"]}, "count is a text": {"tokens": str(meta["tokens"])},
                 "endless count": {"tokens": 10 ** 400}, "NaN": {"documents": float("nan")}, "true": {"documents": True}}[what.partition(": ")[2]]
        (tmp_path / "s.json").write_text(json.dumps(meta))
    elif what == "another id of the vocabulary":
        data = bytearray((tmp_path / "s.bin").read_bytes())
        data[2] ^= 1
        (tmp_path / "s.bin").write_bytes(bytes(data))
    elif what == "a document that ends elsewhere":
        ends = np.fromfile(tmp_path / "s.idx", "<u8")
        place = int(np.flatnonzero(np.diff(ends) > 1)[0])
        ends[place] += 1
        ends.tofile(tmp_path / "s.idx")
    elif what == "another stream's side file":
        write(tmp_path / "t", random_documents(9))
        (tmp_path / "s.json").write_text((tmp_path / "t.json").read_text())
    return stream


@pytest.mark.parametrize("what", ["cut by one byte", "empty", "missing idx", "missing side file", "other dtype", "not a side file", "flipped bit",
                                  "another id of the vocabulary", "a document that ends elsewhere",
                                  "another stream's side file", "id outside the vocabulary", "document of no tokens", "documents in another order", "an end before all beginnings",
                                  *(f"side file: {fault}" for fault in ("no hash", "hash is a list", "count is a text", "endless count", "NaN", "true"))])
def test_a_damaged_stream_is_refused_by_name(tmp_path, what):
    write(tmp_path / "s", random_documents(1))
    with pytest.raises(UserError, match=str(tmp_path / "s")):
        TokenStream(damage(tmp_path, what), "print", verify=True)


def test_a_stream_of_another_tokenizer_is_refused(tmp_path):
    write(tmp_path / "s", random_documents(1))
    with pytest.raises(UserError, match="made with tokenizer"):
        TokenStream(tmp_path / "s", "other")


def test_an_id_outside_the_vocabulary_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="expected ids"):
        write(tmp_path / "s", [[1, 2, 1000]])


def layout(tmp_path, documents, T, bos_id=None):
    """(stream, rows) of documents in one stream."""
    stream = write(tmp_path / "s", documents, bos_id=bos_id)
    return stream, PretrainRows([stream], T, seed=5)


def decoded(row, bos_id):
    """The pieces of a row as (number, inputs, labels), padding left out."""
    return [(number, row.input_ids[row.documents == number].tolist(), row.labels[row.documents == number].tolist())
            for number in range(row.documents.max() + 1)]


@pytest.mark.parametrize("bos_id, T", [(None, 1), (None, 16), (None, 64), (1, 2), (1, 16), (1, 64)])
@pytest.mark.parametrize("longest", [4, 60, 600])
def test_every_token_of_a_document_is_a_target_once_an_epoch(tmp_path, bos_id, T, longest, random_seed):
    documents = [[1] * (bos_id is not None) + ids for ids in random_documents(random_seed, 150, longest)]
    stream, rows = layout(tmp_path, documents, T, bos_id)
    first = {0, *stream.ends[:-1].tolist()}
    seen = np.zeros(stream.tokens, dtype=int)
    for i in range(rows.rows_per_epoch):
        row, (_, block, number) = rows.row(i), rows.locate(i)
        pieces = rows.layouts[0].rows(block)[number]
        found = decoded(row, bos_id) if pieces else []
        assert len(found) == len(pieces) and (row.documents >= 0).sum() == sum(len(inputs) for _, inputs, _ in found)
        for piece, (place, inputs, labels) in zip(pieces, found, strict=True):
            tokens = stream.ids[piece.start:piece.end + 1].tolist()
            extra = bos_id is not None and piece.start not in first
            assert inputs == [1] * extra + tokens[:-1] and labels == [IGNORE] * extra + tokens[1:]
            assert row.positions[row.documents == place].tolist() == list(range(len(inputs)))
            seen[piece.start + 1:piece.end + 1] += 1
    assert all(seen[place] == (0 if place in first else 1) for place in range(stream.tokens))


def test_a_continuation_begins_with_a_bos_that_predicts_nothing(tmp_path):
    _, rows = layout(tmp_path, [[1, 10, 11, 12, 13, 14, 2]], 4, bos_id=1)
    found = sorted((rows.row(i).input_ids.tolist(), rows.row(i).labels.tolist()) for i in range(rows.rows_per_epoch))
    assert found == [([1, 10, 11, 12], [10, 11, 12, 13]), ([1, 13, 14, 0], [IGNORE, 14, 2, IGNORE])]


@pytest.mark.parametrize("bos_id, T", [(None, 128), (1, 128), (1, 512)])
def test_at_most_two_percent_of_positions_are_padding_and_few_documents_are_split(tmp_path, bos_id, T, random_seed):
    rng = np.random.default_rng(random_seed)
    lengths = np.clip(rng.lognormal(4.5, 1.0, 3000), 3, 5000).astype(int)
    _, rows = layout(tmp_path, [[5] * length for length in lengths], T, bos_id)
    positions, continued = 0, 0
    for block in range(rows.layouts[0].blocks):
        for pieces in rows.layouts[0].rows(block):
            positions += sum(piece.end - piece.start + (piece.continues and bos_id is not None) for piece in pieces)
            continued += sum(piece.continues for piece in pieces)
    assert positions > 0.98 * rows.rows_per_epoch * T, random_seed
    needed = int((-(-(lengths - 1) // T) - 1).sum()) + rows.layouts[0].blocks  # longer than a row, or across the edge of a block
    assert continued < 1.5 * needed + 0.05 * len(lengths), random_seed


def test_row_k_is_found_without_packing_other_blocks(tmp_path):
    _, rows = layout(tmp_path, random_documents(1, 3000, 60), 16)
    assert rows.layouts[0].blocks > 50
    rows.row(12345)
    assert len(rows.layouts[0].packed) == 1


def test_an_epoch_holds_every_row_once_in_an_order_of_its_own_that_mixes_blocks(tmp_path):
    rows = PretrainRows([write(tmp_path / name, random_documents(seed, 1500)) for seed, name in enumerate("st")], 16, seed=5)
    n = rows.rows_per_epoch
    epochs = [[rows.locate(i) for i in range(epoch * n, epoch * n + n)] for epoch in range(3)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == n for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert len({place[:2] for place in epochs[0][:64]}) > 20  # neighbours in training come from many blocks
    assert [rows.locate(i) for i in (n + 3, 2, n - 1)] == [epochs[1][3], epochs[0][2], epochs[0][n - 1]]  # no state


def test_rows_of_a_mixture_follow_from_seed_and_number(tmp_path):
    streams = [write(tmp_path / name, random_documents(seed, 200)) for seed, name in enumerate("stu")]
    one, two = (PretrainRows(streams, 16, seed=3, weights=[1, 2, 5]) for _ in range(2))
    forward = [one.row(i).input_ids.tolist() for i in range(400)]
    assert [two.row(i).input_ids.tolist() for i in reversed(range(400))] == forward[::-1]
    assert one.rows(range(7)).input_ids.tolist() == forward[:7]


def test_documents_keep_their_own_numbers_and_positions(tmp_path):
    _, rows = layout(tmp_path, [[5, 6, 7, 2], [8, 2], [9, 10, 11, 12, 2]], 8)
    assert rows.rows_per_epoch == 1
    row = rows.row(0)
    assert row.input_ids.tolist() == [5, 6, 7, 8, 9, 10, 11, 12]
    assert row.labels.tolist() == [6, 7, 2, 2, 10, 11, 12, 2]
    assert row.documents.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert row.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]


def test_a_stream_shorter_than_a_row_is_padded_without_loss(tmp_path):
    row = PretrainRows([write(tmp_path / "s", [[5, 6, 7]])], 8, seed=0).row(0)
    assert row.labels.tolist() == [6, 7] + [IGNORE] * 6 and row.documents.tolist() == [0, 0] + [-1] * 6


def test_a_stream_without_anything_to_predict_is_rejected(tmp_path):
    with pytest.raises(UserError, match="nothing to predict"):
        PretrainRows([write(tmp_path / "s", [[5], [6]])], 8, seed=0)


def test_official_windows_are_those_of_the_published_script(tmp_path):
    """METHOD 3.1: windows of 2048 with stride 1536, the last aligned right, short documents padded; here 8 and 6."""
    documents = [list(range(10, 10 + n)) for n in (3, 8, 9, 14, 15, 30)]
    stream = write(tmp_path / "s", documents)
    rows = PretrainRows([stream], 8, seed=0, windows="official", eos_id=2)
    expected = []
    for ids in documents:
        if len(ids) <= 8:
            expected.append(ids + [2] * (8 - len(ids)))
            continue
        starts = [0]
        while starts[-1] + 8 < len(ids):
            starts.append(starts[-1] + 6)
        starts[-1] = len(ids) - 8
        expected += [ids[a:a + 8] for a in starts]
    got = sorted(rows.row(i).input_ids.tolist() for i in range(rows.rows_per_epoch))
    assert got == sorted(expected)
    assert all(rows.row(i).labels.tolist() == rows.row(i).input_ids.tolist()[1:] + [IGNORE] for i in range(rows.rows_per_epoch))


@pytest.mark.parametrize("weights", [[0.5, 0.5], [1, 2, 7], [0.001, 0.999], [1 / 3] * 3])
def test_a_mixture_keeps_its_shares_exactly_and_counts_each_streams_rows(weights):
    mixture = Mixture(weights, seed=3)
    n = mixture.length * 3
    drawn = [mixture(i) for i in range(n)]
    for s, weight in enumerate(weights):
        ranks = [rank for stream, rank in drawn if stream == s]
        assert ranks == list(range(len(ranks)))  # each stream's rows come one after the other, none lost
        assert abs(len(ranks) - n * weight / sum(weights)) <= 1
    assert [mixture(i) for i in (n - 1, 5, mixture.length + 1)] == [drawn[n - 1], drawn[5], drawn[mixture.length + 1]]  # no state


@pytest.mark.parametrize("count, world, micro", [(8, 1, 8), (8, 2, 2), (8, 4, 1), (7, 2, 2), (1, 3, 2)])
def test_ranks_share_the_rows_of_a_batch_without_loss_or_double(count, world, micro):
    shares = [rank_share(count, r, world, micro) for r in range(world)]
    assert len({len(s) for s in shares}) == 1 and all(len(group) <= micro for s in shares for group in s)
    assert sorted(i for s in shares for group in s for i in group if i is not None) == list(range(count))


# ---------------------------------------------------------------------------------------------------------- exam items

class Bytes:
    """A toy tokenizer: one id a byte, 1 and 2 begin and end."""

    bos_id, eos_id = 1, 2

    def encode(self, text, bos=False, eos=False, continued=False):
        return [1] * bos + [b + 3 for b in text.encode()] + [2] * eos

    def decode(self, ids):
        return bytes(i - 3 for i in ids if i > 2).decode()


def item(n=0, rationale="Because."):
    return ExamItem(question=f"Which? {n}", options={"A": "x", "B": "y"}, answer=("B",), rationale=rationale, language="English", key=f"k{n}")


@pytest.mark.parametrize("rationale", [True, False])
def test_prompt_tokens_carry_no_loss_and_the_target_and_its_eos_do(rationale):
    example, cut = encode_example(item(), Bytes(), 2000, rationale=rationale, style="clean")
    row = pack([example])
    supervised = row.labels[row.labels != IGNORE].tolist()
    assert not cut and supervised == Bytes().encode(build_target(item(), rationale), eos=True)
    assert Bytes().decode(row.input_ids[:example.prompt_length].tolist()) == build_prompt(item(), rationale)
    assert (row.input_ids == 1).sum() == 1 and row.input_ids[0] == 1  # exactly one BOS


def test_truncation_never_removes_the_answer():
    for length in (40, 80, 120):
        example, cut = encode_example(item(rationale="long " * 100), Bytes(), length, rationale=True, style="clean")
        assert cut and len(example.ids) <= length + 1 and example.ids[0] == 1
        assert Bytes().decode(example.ids).endswith("OPTION B IS CORRECT.") and example.ids[-1] == 2
        assert 1 < example.prompt_length < len(example.ids)
        assert build_prompt(item(), True).endswith(Bytes().decode(example.ids[:example.prompt_length]))  # the question is read to its end


def test_packing_keeps_every_example_whole_and_apart():
    examples = [Example(str(n), list(range(10, 10 + n)), n // 2) for n in (5, 9, 3, 12, 7, 2)]
    exam = ExamRows([item(n) for n in range(3)], Bytes(), 400, seed=0)
    exam.T = 13
    rows = exam.rows(examples)
    found = []
    for row in rows:
        for number in range(row.documents.max() + 1):
            here = row.documents == number
            assert row.positions[here].tolist() == list(range(here.sum()))
            found.append(row.input_ids[here].tolist() + [row.labels[here][-1]])
    assert sorted(found) == sorted(e.ids for e in examples) and len(rows) == 3
    assert sum((r.labels != IGNORE).sum() for r in rows) == sum(len(e.ids) - max(1, e.prompt_length) for e in examples)


def test_an_epoch_holds_every_item_with_and_without_its_rationale_once():
    exam = ExamRows([item(n) for n in range(10)], Bytes(), 2000, seed=4)
    epoch = [e for k in range(4) for e in exam.batch(k, 5)]
    assert len(epoch) == 20 and len({tuple(e.ids) for e in epoch}) == 20
    assert [e.key for e in epoch] != [e.key for k in range(4, 8) for e in exam.batch(k, 5)]  # the next epoch in another order
    assert exam.batch(2, 5) == ExamRows([item(n) for n in range(10)], Bytes(), 2000, seed=4).batch(2, 5)


def test_items_without_a_rationale_are_only_trained_on_their_answer():
    exam = ExamRows([item(0, ""), item(1)], Bytes(), 2000, seed=0)
    assert len(exam.examples) == 3
