"""Token streams, packing, windows, the order of rows, and the label mask of exam rows."""
import itertools
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmed import data
from mmed.data import (
    IGNORE,
    Example,
    ExamRows,
    InstructRows,
    Mixture,
    Piece,
    PretrainRows,
    Row,
    StreamWriter,
    TokenStream,
    encode_dialogue,
    encode_example,
    end_to_end,
    pack,
    rank_share,
    stack,
    token_dtype,
    truncate_prompt,
    write_manifest,
)
from mmed.prompts import ExamItem, build_prompt, build_target
from mmed.utils.errors import UserError
from mmed.utils.fingerprints import file_hash


@pytest.fixture
def random_seed():
    seed = int(os.environ.get("MMED_TEST_SEED", random.randrange(2**31)))
    print("MMED_TEST_SEED", seed)
    return seed


def write(prefix, documents, vocab_size=1000, bos_id=None):
    writer = StreamWriter(prefix, vocab_size, "print", bos_id)
    for ids in documents:
        writer.add(ids, "en", "web")
    writer.close()
    return TokenStream(prefix, "print", verify=True)


def random_documents(seed, count=40, longest=60):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 1000, rng.integers(1, longest)).tolist() for _ in range(count)]


# ---------------------------------------------------------------------------------------------------- streams

@pytest.mark.parametrize("vocab_size, name", [(65536, "uint16"), (65537, "uint32")])
def test_the_dtype_is_the_smallest_that_holds_the_vocabulary(tmp_path, vocab_size, name):
    assert token_dtype(vocab_size).name == name
    ids = [0, 1, vocab_size - 1]
    stream = write(tmp_path / "s", [ids, ids], vocab_size)
    assert np.memmap(tmp_path / "s.bin", dtype=name, mode="r").tolist() == ids * 2 == stream.ids.tolist()
    assert stream.ends.tolist() == [3, 6]


def test_a_stream_of_parts_gives_the_rows_of_one_file_and_keeps_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAPPED_PARTS", 3)
    parts = [random_documents(seed, 5) for seed in range(20)]
    for number, documents in enumerate(parts):
        write(tmp_path / "p" / str(number), documents)
    StreamWriter(tmp_path / "p" / "empty", 1000, "print").close()
    names = ["empty", *map(str, range(10)), "empty", *map(str, range(10, 20)), "empty"]
    meta = write_manifest(tmp_path / "s", [tmp_path / "p" / name for name in names])
    expected = write(tmp_path / "all", list(itertools.chain(*parts)))
    stream = TokenStream(tmp_path / "s", verify=True)
    assert meta["counts"] == {"en": {"web": {"tokens": len(expected.ids), "documents": 100}}}
    assert (stream.ids[:] == expected.ids).all() and (stream.ends == expected.ends).all()
    for begin, end in ((0, 0), (3, 400), (len(expected.ids) - 1, None), (7, 8)):
        assert (stream.ids[begin:end] == expected.ids[begin:end]).all()
    one, other = PretrainRows([stream], 32, seed=1), PretrainRows([expected], 32, seed=1)
    for i in range(one.rows_per_epoch):
        assert (one.row(i).input_ids == other.row(i).input_ids).all()
    opened = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert len([name for name in opened if name.startswith(f"{tmp_path}/p/")]) <= 3


def test_ranks_share_the_files_to_verify_and_remember_them(tmp_path, monkeypatch):
    for number in range(5):
        write(tmp_path / "p" / str(number), random_documents(number, 5))
    write_manifest(tmp_path / "s", [tmp_path / "p" / str(number) for number in range(5)])
    stream, hashed = TokenStream(tmp_path / "s"), []
    monkeypatch.setattr(data, "file_hash", lambda path: hashed.append(path) or file_hash(path))
    for rank in range(3):
        stream.verify(rank, 3)
        assert len(hashed) == 2 * rank + 2
    assert sorted(hashed) == sorted(stream.hashes)
    stream.verify()
    assert len(hashed) == 6, "remembered"
    os.utime(tmp_path / "p" / "3.bin")
    stream.verify()
    assert hashed[6:] == [tmp_path / "p" / "3.bin"], "of another time"


def change_side_file(**changes):
    def change(folder):
        meta = json.loads((folder / "s.json").read_text())
        (folder / "s.json").write_text(json.dumps(meta | changes))
    return change


def flip_bit(folder):
    data = bytearray((folder / "s.bin").read_bytes())
    data[3] ^= 4
    (folder / "s.bin").write_bytes(bytes(data))


def exchange_side_file(folder):
    write(folder / "t", random_documents(9))
    (folder / "t.json").rename(folder / "s.json")


@pytest.mark.parametrize("damage", [
    flip_bit, exchange_side_file, change_side_file(dtype="uint32"), change_side_file(sha256=[]),
    change_side_file(tokens="9"), change_side_file(documents=39),
    lambda folder: (folder / "s.bin").write_bytes((folder / "s.bin").read_bytes()[:-1]),
    lambda folder: (folder / "s.idx").unlink(), lambda folder: (folder / "s.json").unlink(),
    lambda folder: (folder / "s.idx").write_bytes(b""), lambda folder: (folder / "s.json").write_text("{}")])
def test_a_damaged_stream_is_rejected_by_name(tmp_path, damage):
    write(tmp_path / "s", random_documents(1))
    damage(tmp_path)
    with pytest.raises(UserError, match=str(tmp_path / "s")):
        TokenStream(tmp_path / "s", "print", verify=True)


def test_another_tokenizer_or_vocabulary_is_rejected(tmp_path):
    write(tmp_path / "s", random_documents(1))
    with pytest.raises(UserError, match="made with tokenizer"):
        TokenStream(tmp_path / "s", "other")
    for ids in ([1, 2, 1000], []):
        with pytest.raises(ValueError, match="expected ids"):
            write(tmp_path / "t", [ids])


# ---------------------------------------------------------------------------------------------------- packing

def layout(tmp_path, documents, T, bos_id=None):
    """(stream, rows) of documents in one stream."""
    stream = write(tmp_path / "s", documents, bos_id=bos_id)
    return stream, PretrainRows([stream], T, seed=5)


@pytest.mark.parametrize("bos_id, T", [(None, 1), (None, 16), (1, 2), (1, 64)])
@pytest.mark.parametrize("longest", [4, 60, 600])
def test_every_token_of_a_document_is_a_target_once_an_epoch(tmp_path, bos_id, T, longest, random_seed):
    documents = [[1] * (bos_id is not None) + ids for ids in random_documents(random_seed, 60, longest)]
    stream, rows = layout(tmp_path, documents, T, bos_id)
    first = {0, *stream.ends[:-1].tolist()}
    seen = np.zeros(stream.tokens, dtype=int)
    for i in range(rows.rows_per_epoch):
        row, (_, block, number) = rows.row(i), rows.locate(i)
        pieces = rows.layouts[0].rows(block)[number]
        for place, piece in enumerate(pieces):
            here = row.document_ids == place
            tokens = stream.ids[piece.start : piece.end + 1].tolist()
            bos = [1] if bos_id is not None and piece.start not in first else []
            assert row.input_ids[here].tolist() == bos + tokens[:-1]
            assert row.labels[here].tolist() == [IGNORE] * len(bos) + tokens[1:]
            assert row.positions[here].tolist() == list(range(here.sum()))
            seen[piece.start + 1 : piece.end + 1] += 1
        padding = row.document_ids < 0
        assert T - padding.sum() == sum(map(Piece.size, pieces)) and (row.labels[padding] == IGNORE).all()
    assert all(seen[place] == (place not in first) for place in range(stream.tokens))


def test_a_continuation_begins_with_a_bos_that_predicts_nothing(tmp_path):
    _, rows = layout(tmp_path, [[1, 10, 11, 12, 13, 14, 2]], 4, bos_id=1)
    both = [rows.row(i) for i in range(rows.rows_per_epoch)]
    found = sorted((row.input_ids.tolist(), row.labels.tolist()) for row in both)
    assert found == [([1, 10, 11, 12], [10, 11, 12, 13]), ([1, 13, 14, 0], [IGNORE, 14, 2, IGNORE])]


@pytest.mark.parametrize("bos_id, T", [(None, 128), (1, 512)])
def test_two_percent_padding_at_most_and_few_documents_split(tmp_path, bos_id, T, random_seed):
    lengths = np.clip(np.random.default_rng(random_seed).lognormal(4.5, 1.0, 3000), 3, 5000).astype(int)
    _, rows = layout(tmp_path, [[5] * length for length in lengths], T, bos_id)
    packed = rows.layouts[0]
    pieces = [piece for block in range(packed.blocks) for row in packed.rows(block) for piece in row]
    assert sum(piece.size() for piece in pieces) > 0.98 * rows.rows_per_epoch * T
    # longer than a row, or at a block's edge
    needed = int((-(-(lengths - 1) // T) - 1).sum()) + packed.blocks
    assert len(pieces) - len(lengths) < 1.5 * needed + 0.05 * len(lengths)


def test_a_row_is_found_without_packing_other_blocks(tmp_path):
    _, rows = layout(tmp_path, random_documents(1, 3000, 60), 16)
    assert rows.layouts[0].blocks > 50
    rows.row(12345)
    assert len(rows.layouts[0].packed) == 1


def test_documents_keep_their_own_numbers_and_positions(tmp_path):
    _, rows = layout(tmp_path, [[5, 6, 7, 2], [8, 2], [9, 10, 11, 12, 2]], 9)
    both = rows.rows([0, None])
    assert rows.rows_per_epoch == 1
    assert (both.labels[1] == IGNORE).all() and (both.document_ids[1] == -1).all()
    row = rows.row(0)
    assert row.input_ids.tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 0]
    assert row.labels.tolist() == [6, 7, 2, 2, 10, 11, 12, 2, IGNORE]
    assert row.document_ids.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, -1]
    assert row.positions[:8].tolist() == [0, 1, 2, 0, 0, 1, 2, 3]


def test_a_stream_without_anything_to_predict_is_rejected(tmp_path):
    with pytest.raises(UserError, match="nothing to predict"):
        layout(tmp_path, [[5], [6]], 8)


def test_official_windows_are_those_of_the_published_script(tmp_path):
    """Windows of 2048 with stride 1536, the last aligned right, short documents padded; here 8 and 6."""
    documents = [list(range(10, 10 + n)) for n in (3, 8, 9, 14, 15, 30)]
    rows = PretrainRows([write(tmp_path / "s", documents)], 8, seed=0, windows="official", eos_id=2)
    expected = []
    for ids in documents:
        starts = [0]
        while starts[-1] + 8 < len(ids):
            starts.append(starts[-1] + 6)
        starts[-1] = max(0, len(ids) - 8)
        expected += [(ids + [2] * 8)[a : a + 8] for a in starts]
    found = [rows.row(i) for i in range(rows.rows_per_epoch)]
    assert sorted(row.input_ids.tolist() for row in found) == sorted(expected)
    assert all(row.labels.tolist() == row.input_ids.tolist()[1:] + [IGNORE] for row in found)


# ------------------------------------------------------------------------------------------------------ order

def test_an_epoch_holds_every_row_once_in_its_own_order_that_mixes_blocks(tmp_path):
    streams = [write(tmp_path / name, random_documents(seed, 1500)) for seed, name in enumerate("st")]
    rows = PretrainRows(streams, 16, seed=5)
    n = rows.rows_per_epoch
    epochs = [[rows.locate(i) for i in range(epoch * n, epoch * n + n)] for epoch in range(3)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == n for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert len({place[:2] for place in epochs[0][:64]}) > 20  # neighbours in training come from many blocks
    again = [rows.locate(i) for i in (n + 3, 2, n - 1)]  # no state
    assert again == [epochs[1][3], epochs[0][2], epochs[0][n - 1]]


def test_rows_of_a_mixture_follow_from_seed_and_number(tmp_path):
    streams = [write(tmp_path / name, random_documents(seed, 200)) for seed, name in enumerate("stu")]
    one, two = (PretrainRows(streams, 16, seed=3, weights=[1, 2, 5]) for _ in range(2))
    forward = [one.row(i).input_ids.tolist() for i in range(400)]
    assert [two.row(i).input_ids.tolist() for i in reversed(range(400))] == forward[::-1]
    assert one.rows(range(7)).input_ids.tolist() == forward[:7]


@pytest.mark.parametrize("weights", [[0.5, 0.5], [1, 2, 7], [0.001, 0.999], [1 / 3] * 3])
def test_a_mixture_keeps_its_shares_and_counts_each_streams_rows(weights):
    mixture = Mixture(weights, seed=3)
    n = mixture.length * 3
    drawn = [mixture(i) for i in range(n)]
    for s, weight in enumerate(weights):
        numbers = [number for stream, number in drawn if stream == s]
        assert numbers == list(range(len(numbers)))  # each stream's rows one after the other, none lost
        assert abs(len(numbers) - n * weight / sum(weights)) <= 1
    assert [mixture(i) for i in (n - 1, 5)] == [drawn[n - 1], drawn[5]]  # no state


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 8))
def test_ranks_share_the_rows_of_a_batch_without_loss_or_duplicate(count, world, micro):
    shares = [rank_share(count, rank, world, micro) for rank in range(world)]
    groups = [group for share in shares for group in share]
    assert len({len(share) for share in shares}) == 1 and all(len(group) <= micro for group in groups)
    assert sorted(i for group in groups for i in group if i is not None) == list(range(count))


# ------------------------------------------------------------------------------------------------- exam items

class Bytes:
    """A toy tokenizer: one id per byte, 1 and 2 begin and end."""

    bos_id, eos_id = 1, 2

    def encode(self, text, bos=False, eos=False, continued=False):
        return [1] * bos + [b + 3 for b in text.encode()] + [2] * eos


class Lengths:
    """Prompts and targets of given numbers of tokens, all different."""

    def __init__(self, prompt, target, bos_id):
        self.bos_id = bos_id
        self.prompt = [1] * (bos_id is not None) + list(range(100, 100 + prompt - (bos_id is not None)))
        self.target = [*range(5000, 4999 + target), 2]

    def encode(self, text, bos=False, eos=False, continued=False):
        return list(self.target if eos else self.prompt)


def item(n=0, rationale="Because."):
    return ExamItem(f"Which? {n}", {"A": "x", "B": "y"}, ("B",), rationale, "English", f"k{n}")


@pytest.mark.parametrize("rationale", [True, False])
def test_the_target_and_its_eos_carry_loss_and_the_prompt_does_not(rationale):
    example, truncated = encode_example(item(), Bytes(), 2000, rationale=rationale, style="clean")
    row = pack([example])
    prompt = Bytes().encode(build_prompt(item(), rationale), bos=True)
    target = Bytes().encode(build_target(item(), rationale), eos=True)
    assert not truncated and row.labels[row.labels != IGNORE].tolist() == target
    assert row.input_ids.tolist() == (prompt + target)[:-1]


@settings(max_examples=300)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(4, 60), st.sampled_from([None, 1]))
def test_truncation_keeps_the_ends_and_a_prompt_that_fits(prompt, target, T, bos_id):
    tokenizer = Lengths(prompt, target, bos_id)
    example, truncated = encode_example(item(), tokenizer, T, rationale=True, style="clean")
    kept, answer = example.ids[: example.prompt_length], example.ids[example.prompt_length :]
    assert truncated == (prompt + target > T + 1) and len(example.ids) == min(prompt + target, T + 1)
    assert answer and answer == tokenizer.target[-len(answer) :]
    body = kept[1:] if bos_id else kept
    assert body == tokenizer.prompt[len(tokenizer.prompt) - len(body) :]
    assert bos_id is None or (kept[0] == 1 and kept.count(1) == 1)
    if prompt <= T + 1 - T * 3 // 4:
        assert kept == tokenizer.prompt


def test_a_first_token_that_is_no_bos_is_dropped_like_any_other():
    assert truncate_prompt([7, 8, 9], 2, bos_id=1) == [8, 9] == truncate_prompt([7, 8, 9], 2, bos_id=None)
    assert truncate_prompt([1, 8, 9], 2, bos_id=1) == [1, 9]


@given(st.lists(st.integers(2, 14), min_size=1, max_size=30))
def test_packed_examples_stay_whole_and_apart(lengths):
    examples = [Example(str(n), list(range(10, 10 + n)), n // 2) for n in lengths]
    exam = ExamRows([item()], Bytes(), 400, seed=0)
    exam.T = 13
    rows = exam.rows(examples)
    pieces = []
    for row in rows:
        for number in range(row.document_ids.max() + 1):
            here = row.document_ids == number
            assert row.positions[here].tolist() == list(range(here.sum()))
            pieces.append(row.input_ids[here].tolist() + [row.labels[here][-1]])
    assert sorted(pieces) == sorted(example.ids for example in examples)
    targets = sum(len(example.ids) - max(1, example.prompt_length) for example in examples)
    free = sorted(13 - len(row) for row in rows)  # first fit: two half-empty rows would have become one
    assert free[0] >= 0 and (len(rows) < 2 or free[-1] + free[-2] <= 13)
    for laid in (stack(rows, len(rows) + 1, 16), end_to_end(rows)):
        whole = Row(*(array.reshape(-1) for array in vars(laid).values()))
        assert (whole.labels != IGNORE).sum() == targets
        ids = [i for row in rows for i in row.input_ids]
        assert laid.input_ids[laid.document_ids >= 0].tolist() == ids
    assert len(set(end_to_end(rows).document_ids.ravel()) - {-1}) == len(examples)


def test_an_epoch_holds_every_item_with_and_without_its_rationale_once():
    exam, again = (ExamRows([item(n) for n in range(10)], Bytes(), 2000, seed=4) for _ in range(2))
    epoch = [example for k in range(4) for example in exam.batch(k, 5)]
    assert len(epoch) == 20 and len({tuple(example.ids) for example in epoch}) == 20
    following = [example for k in range(4, 8) for example in exam.batch(k, 5)]
    assert [e.key for e in epoch] != [e.key for e in following] and exam.batch(2, 5) == again.batch(2, 5)
    across = exam.batch(1, 15)  # runs over into the second epoch
    assert across == list(itertools.chain(epoch[15:], following[:10]))
    assert len(ExamRows([item(0, ""), item(1)], Bytes(), 2000, seed=0).examples) == 3  # one less


# ---------------------------------------------------------------------------------------------- conversations

class Chat(Bytes):
    """`Bytes` with the special tokens of ChatML as ids 300 and 301, and no template in its folder."""

    kind, chat_template, named_bos_id = "byte-level BPE", "", None
    special = {"<|im_start|>": 300, "<|im_end|>": 301}

    def piece(self, index):
        return {2: "</s>"}[index]


def dialogue(*texts, system=None):
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def turn(role, text=None):
    """A turn of ChatML as ids, without its newline; without a text its header."""
    ids = [300, *Bytes().encode(f"{role}\n")]
    return ids if text is None else [*ids, *Bytes().encode(text), 301]


def test_the_labels_of_two_turns_are_both_answers_and_their_ends():
    example, outcome = encode_dialogue("k", dialogue("Q", "Aa", "R", "B", system="S"), Chat(), 200)
    n = Bytes().encode("\n")
    ids = [*turn("system", "S"), *n, *turn("user", "Q"), *n, *turn("assistant", "Aa"), *n]
    ids += [*turn("user", "R"), *n, *turn("assistant", "B")]
    row = pack([example])
    assert outcome == "" and row.input_ids.tolist() == ids[:-1]
    # each byte is one token, and the newline after "assistant" predicts the first of the answer
    expected = [IGNORE] * (1 + 7 + 1 + 1 + 1 + 1 + 5 + 1 + 1 + 1 + 1 + 9) + [*Bytes().encode("Aa"), 301]
    expected += [IGNORE] * (1 + 1 + 5 + 1 + 1 + 1 + 1 + 10) + [*Bytes().encode("B"), 301]
    assert row.labels.tolist() == expected


def test_a_long_conversation_loses_its_oldest_turns_before_its_last_prompt_is_truncated():
    messages = dialogue("Q" * 30, "A" * 20, "R" * 30, "B" * 20, system="S")
    whole, _ = encode_dialogue("k", messages, Chat(), 1000)
    short, _ = encode_dialogue("k", [messages[0], *messages[3:]], Chat(), 1000)
    for length in (len(whole.ids), len(whole.ids) - 1, len(short.ids), len(short.ids) - 1, 30):
        example, outcome = encode_dialogue("k", messages, Chat(), length - 1)
        kept = whole if length >= len(whole.ids) else short
        assert example.ids.tolist() == kept.ids.tolist()[-length:] and len(example.ids) <= length
        assert outcome == ("" if kept is whole else "truncated")
        assert bool(len(example.later_prompts)) == (kept is whole)
        row = pack([example])
        answers = [*Bytes().encode("A" * 20), 301] * (kept is whole) + [*Bytes().encode("B" * 20), 301]
        assert row.labels[row.labels != IGNORE].tolist() == answers
    assert encode_dialogue("k", messages, Chat(), 26) == (None, "with a last answer longer than 3/4 of a row")


def test_conversations_are_counted_packed_and_ordered_like_exam_items(tmp_path):
    rows = [dialogue(f"Q{n}", "A" * (10 * n)) for n in range(1, 9)]
    rows += [dialogue("Q"), dialogue("Q", "A" * 400), dialogue("Q" * 400, "A")]
    text = "".join(json.dumps({"messages": messages}) + "\n" for messages in rows)
    (tmp_path / "a.jsonl").write_text(text)
    one, again = (InstructRows(str(tmp_path / "a.jsonl"), Chat(), 200, seed=3) for _ in range(2))
    assert len(one.examples) == 9 and one.warnings() == [
        "1 examples were too long and were truncated on the left",
        "1 conversations without an answer are left out",
        "1 conversations with a last answer longer than 3/4 of a row are left out"]
    batch = one.batch(0, 9)
    assert sorted(example.key for example in batch) == [f"a.jsonl:{n}" for n in [1, 11, *range(2, 9)]]
    packed = one.rows(batch)
    assert len(packed) < 9 and all(len(row) <= 200 for row in packed)
    assert [example.key for example in again.batch(1, 4)] == [example.key for example in one.batch(1, 4)]
    targets = sum((row.labels != IGNORE).sum() for row in packed)
    assert targets == sum(10 * n + 1 for n in range(1, 9)) + 2
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": dialogue("Q")}))
    with pytest.raises(UserError, match=r"no conversation to train on.*without an answer"):
        InstructRows(str(tmp_path / "a.jsonl"), Chat(), 200, seed=3)
