"""Packing, windows, the order of rows, and the label mask of exam rows."""
import functools
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import Bytes, random_documents, write_stream

from mmed.data import IGNORE, Example, ExamRows, Mixture, Piece, PretrainRows, encode_example, pack
from mmed.prompts import ExamItem, build_prompt, build_target
from mmed.training.loader import OfficialWindows, micro_batches, rank_share
from mmed.utils.errors import UserError

# ---------------------------------------------------------------------------------------------------- packing

def layout(tmp_path, documents, T, bos_id=None):
    """(stream, rows) of documents in one stream."""
    stream = write_stream(tmp_path / "s", documents, bos_id=bos_id)
    return stream, PretrainRows([stream], T, seed=5)


@pytest.mark.parametrize("bos_id, T, longest", [
    (None, 1, 60), (None, 16, 4), (None, 16, 600), (1, 2, 60), (1, 64, 60), (1, 64, 600)])
def test_every_token_of_a_document_is_a_target_once_an_epoch(tmp_path, bos_id, T, longest, seed):
    documents = [[1] * (bos_id is not None) + ids for ids in random_documents(seed, 60, longest)]
    stream, rows = layout(tmp_path, documents, T, bos_id)
    first = {0, *stream.ends[:-1].tolist()}
    seen = np.zeros(stream.tokens, dtype=int)
    for i in range(rows.size):
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


@pytest.mark.parametrize("bos_id, T", [(None, 128), (1, 512)])
def test_two_percent_padding_at_most_and_few_documents_split(tmp_path, bos_id, T, seed):
    lengths = np.clip(np.random.default_rng(seed).lognormal(4.5, 1.0, 3000), 3, 5000).astype(int)
    _, rows = layout(tmp_path, [[5] * length for length in lengths], T, bos_id)
    packed = rows.layouts[0]
    rows.row(12)
    assert packed.blocks > 5 and packed.rows.cache_info().currsize == 1  # no other block was packed
    pieces = [piece for block in range(packed.blocks) for row in packed.rows(block) for piece in row]
    assert sum(piece.size() for piece in pieces) > 0.98 * rows.size * T
    # longer than a row, or at a block's edge
    needed = int((-(-(lengths - 1) // T) - 1).sum()) + packed.blocks
    assert len(pieces) - len(lengths) < 1.5 * needed + 0.05 * len(lengths)


def test_a_stream_without_anything_to_predict_is_rejected(tmp_path):
    with pytest.raises(UserError, match="nothing to predict"):
        layout(tmp_path, [[5], [6]], 8)


def test_official_windows_are_those_of_the_published_script(tmp_path):
    """Windows of 2048 with stride 1536, the last aligned right, short documents padded; here 8 and 6."""
    documents = [list(range(10, 10 + n)) for n in (3, 8, 9, 14, 15, 30)]
    layout = functools.partial(OfficialWindows, eos_id=2)
    rows = PretrainRows([write_stream(tmp_path / "s", documents)], 8, seed=0, layout=layout)
    expected = []
    for ids in documents:
        starts = [0]
        while starts[-1] + 8 < len(ids):
            starts.append(starts[-1] + 6)
        starts[-1] = max(0, len(ids) - 8)
        expected += [(ids + [2] * 8)[a : a + 8] for a in starts]
    found = [rows.row(i) for i in range(rows.size)]
    assert sorted(row.input_ids.tolist() for row in found) == sorted(expected)
    assert all(row.labels.tolist() == row.input_ids.tolist()[1:] + [IGNORE] for row in found)


# ------------------------------------------------------------------------------------------------------ order

def test_an_epoch_holds_every_row_once_in_its_own_order_that_mixes_blocks(tmp_path):
    streams = [write_stream(tmp_path / name, random_documents(seed, 1500)) for seed, name in enumerate("st")]
    rows = PretrainRows(streams, 16, seed=5)
    n = rows.size
    epochs = [[rows.locate(i) for i in range(epoch * n, epoch * n + n)] for epoch in range(3)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == n for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert len({place[:2] for place in epochs[0][:64]}) > 20  # neighbours in training come from many blocks
    again = [rows.locate(i) for i in (n + 3, 2, n - 1)]  # no state
    assert again == [epochs[1][3], epochs[0][2], epochs[0][n - 1]]


def test_rows_of_a_mixture_follow_from_seed_and_number(tmp_path):
    streams = [write_stream(tmp_path / name, random_documents(seed, 200)) for seed, name in enumerate("stu")]
    one, two = (PretrainRows(streams, 16, seed=3, weights=[1, 2, 5]) for _ in range(2))
    forward = [one.row(i).input_ids.tolist() for i in range(400)]
    assert [two.row(i).input_ids.tolist() for i in reversed(range(400))] == forward[::-1]
    batch = one.rows([*range(7), None])
    assert batch.input_ids[:7].tolist() == forward[:7]
    assert (batch.labels[7] == IGNORE).all() and (batch.document_ids[7] == -1).all()


def test_threads_that_ask_for_distant_rows_at_the_same_time_get_their_own():
    mixture, before = Mixture([1, 2], seed=3), sys.getswitchinterval()
    numbers = [cycle * mixture.length + 9 for cycle in range(4)] * 200
    expected = [mixture(i) for i in numbers]
    sys.setswitchinterval(1e-6)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(mixture, numbers))
    sys.setswitchinterval(before)
    assert found == expected


@pytest.mark.parametrize("weights", [[0.5, 0.5], [1, 2, 7], [0.001, 0.999], [1 / 3] * 3, [3, 3000]])
def test_a_mixture_keeps_its_shares_and_counts_each_streams_rows(weights):
    mixture = Mixture(weights, seed=3)
    n = mixture.length * 3
    drawn = [mixture(i) for i in range(n)]
    for s, weight in enumerate(weights):
        numbers = [number for stream, number in drawn if stream == s]
        assert numbers == list(range(len(numbers)))  # each stream's rows one after the other, none lost
        assert abs(len(numbers) - n * weight / sum(weights)) <= 1
    assert mixture.length * min(weights) / sum(weights) >= 2  # a cycle has rows of every stream
    assert [mixture(i) for i in (n - 1, 5)] == [drawn[n - 1], drawn[5]]  # no state


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 8))
def test_ranks_share_the_rows_of_a_batch_without_loss_or_duplicate(count, world, micro):
    shares = [rank_share(count, rank, world, micro) for rank in range(world)]
    groups = [group for share in shares for group in share]
    assert len({len(share) for share in shares}) == 1 and all(len(group) <= micro for group in groups)
    assert sorted(i for group in groups for i in group if i is not None) == list(range(count))


# ------------------------------------------------------------------------------------------------- exam items

class Lengths:
    """A toy tokenizer: prompts and targets of given numbers of tokens, all different."""

    def __init__(self, prompt, target, bos_id):
        self.bos_id = bos_id
        self.prompt = [1] * (bos_id is not None) + list(range(100, 100 + prompt - (bos_id is not None)))
        self.target = [*range(5000, 4999 + target), 2]

    def encode(self, text, bos=False, eos=False, continued=False):
        return list(self.target if eos else self.prompt)


class Continued(Bytes):
    """Like sentencepiece, begins a text with a space unless it continues another."""

    def encode(self, text, bos=False, eos=False, continued=False):
        return super().encode(text if continued else f" {text}", bos=bos, eos=eos)


def item(n=0, rationale="Because."):
    return ExamItem(f"Which? {n}", {"A": "x", "B": "y"}, ("B",), rationale, "English", f"k{n}")


@pytest.mark.parametrize("rationale, style", [(True, "clean"), (False, "clean"), (True, "official")])
def test_the_target_and_its_eos_carry_loss_and_the_prompt_does_not(rationale, style):
    tokenizer = Continued()
    example, outcome = encode_example(item(), tokenizer, 2000, rationale=rationale, style=style)
    row = pack([example])
    prompt = tokenizer.encode(build_prompt(item(), rationale, style), bos=True)
    target = tokenizer.encode(build_target(item(), rationale), eos=True, continued=True)
    assert outcome == "" and row.labels[row.labels != IGNORE].tolist() == target
    assert row.input_ids.tolist() == (prompt + target)[:-1]


@settings(max_examples=300)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 60), st.sampled_from([None, 1]))
def test_truncation_keeps_the_ends_and_a_prompt_that_fits(prompt, target, T, bos_id):
    tokenizer = Lengths(prompt, target, bos_id)
    example, outcome = encode_example(item(), tokenizer, T, rationale=True, style="clean")
    kept, answer = example.ids[: example.prompt_length], example.ids[example.prompt_length :]
    assert bool(outcome) == (prompt + target > T + 1) and len(example.ids) == min(prompt + target, T + 1)
    assert answer and answer == tokenizer.target[-len(answer) :]
    assert len(answer) == min(target, max(1, T * 3 // 4, T + 1 - prompt))  # at least 3/4 of a row
    body = kept[1:] if bos_id else kept
    assert body == tokenizer.prompt[len(tokenizer.prompt) - len(body) :]
    assert bos_id is None or (kept[0] == 1 and kept.count(1) == 1)
    if prompt <= T + 1 - max(1, T * 3 // 4):
        assert kept == tokenizer.prompt


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
    free = sorted(13 - len(row) for row in rows)  # first fit: two half-empty rows would have become one
    assert free[0] >= 0 and (len(rows) < 2 or free[-1] + free[-2] <= 13)
    targets = sum(len(example.ids) - max(1, example.prompt_length) for example in examples)
    shares = [[*range(len(rows)), None]]
    for flat in (False, True):
        batch = micro_batches(rows, shares, torch.device("cpu"), flat)
        (laid,) = batch.micro
        inside = laid["document_ids"] >= 0
        assert batch.targets == len(laid["loss_positions"]) == targets
        assert laid["input_ids"][inside].tolist() == [i for row in rows for i in row.input_ids]
        assert not flat or len(laid["document_ids"][inside].unique()) == len(examples)


def test_an_epoch_holds_every_item_with_and_without_its_rationale_once():
    exam, again = (ExamRows([item(n) for n in range(10)], Bytes(), 2000, seed=4) for _ in range(2))
    epoch = [example for k in range(4) for example in exam.batch(k, 5)]
    assert len(epoch) == 20 and len({tuple(example.ids) for example in epoch}) == 20
    following = [example for k in range(4, 8) for example in exam.batch(k, 5)]
    assert [e.key for e in epoch] != [e.key for e in following] and exam.batch(2, 5) == again.batch(2, 5)
    across = exam.batch(1, 15)  # runs over into the second epoch
    assert across == list(itertools.chain(epoch[15:], following[:10]))
    some = ExamRows([item(0, ""), item(1), item(2, " ")], Bytes(), 2000, seed=0)
    assert some.warnings == ["2 items without a rationale are not trained with one"]
    assert [example.ids.itemsize for example in some.examples] == [4] * 4  # bytes in memory
