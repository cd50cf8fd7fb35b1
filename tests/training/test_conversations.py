"""Instruction tuning: records of every published form, and the label mask of conversations."""
import gzip
import json

import pytest
from json_lines import write_lines
from tiny_world import Bytes

from mmed.data import IGNORE, TRUNCATED, pack
from mmed.tokenization.chat_template import encode_conversation
from mmed.training.conversations import InstructRows, encode_dialogue, read_conversations
from mmed.utils.errors import UserError

ALPACA_ROW = {"instruction": "You're a doctor.", "input": "Fièvre ?", "output": "Repos.",
              "source": "medqa_train", "sample_id": 0}  # PMC-LLaMA's columns
SHAREGPT_ROW = {"id": "x", "conversations": [
    {"from": "system", "value": "You're a doctor."}, {"from": "human", "value": "Fièvre ?"},
    {"from": "gpt", "value": "Repos."}]}
MESSAGES = [{"role": "system", "content": "You're a doctor."}, {"role": "user", "content": "Fièvre ?"},
            {"role": "assistant", "content": "Repos."}]


@pytest.mark.parametrize("row", [ALPACA_ROW, SHAREGPT_ROW, {"messages": MESSAGES},
                                 {"conversations": MESSAGES}])
def test_every_form_of_conversation_gives_the_same_messages(tmp_path, row):
    plain = write_lines(tmp_path / "a.jsonl", *[row] * 3)
    packed, array = tmp_path / "a.jsonl.gz", tmp_path / "release.json"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    array.write_text(json.dumps([row] * 3, indent=1))
    for path in (plain, packed, array):
        found = list(read_conversations(path))
        assert found == [(f"{path.name}:{number}", MESSAGES) for number in (1, 2, 3)]


def test_an_instruction_alone_is_the_question_and_an_unanswered_question_is_left_out(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"instruction": "Why?", "output": "So."},
                {"messages": [*MESSAGES, {"role": "user", "content": "And?"}]},
                {"messages": MESSAGES[:2]}, {"messages": []},
                {"messages": [{"role": "system", "content": ""}, *MESSAGES[1:]]})
    question = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    assert [messages for _, messages in read_conversations(tmp_path)] == [
        question, MESSAGES, [], [], MESSAGES[1:]]


def turns(*roles: str, **last: object) -> dict:
    found = [{"role": role, "content": "x"} for role in roles]
    return {"messages": [*found[:-1], found[-1] | last]}


@pytest.mark.parametrize("line, words", [
    ({"messages": [{"content": "x"}]}, "turn 1: 'role' must be one of system, user, human, assistant, gpt"),
    ({"conversations": [{"from": "human", "value": "x"}, {"from": "bot", "value": "x"}]}, "turn 2.*'bot'"),
    (turns("user", "assistant", content=" "), r"turn 2 \(assistant\): 'content' must be a text that is not"),
    (turns("user", "assistant", content=[{"type": "image"}]), "must be a text"),
    (turns("assistant"), "user and assistant in turn.*got assistant"),
    (turns("user", "user", "assistant"), "in turn"),
    ({"messages": ["x"]}, "turn 1"), ({"messages": "x"}, "expected a list of turns"),
    ({"question": "x"}, r"'instruction' must be a text, got None; a record needs .*it has question"),
    ({"instruction": "x", "output": ""}, r"turn 3 \(assistant\): 'content' must be a text"),
    ({"instruction": "x", "output": 1}, "'output'"),
    ({"instruction": "", "output": "x"}, r"turn 2 \(user\)"),
    ({"instruction": "x", "output": "y", "history": [["a", "b"]]}, "'history' is not read"),
    (SHAREGPT_ROW | {"system": "x"}, "'system' is not read"),
    (turns("user", "assistant", reasoning_content="x"), "'reasoning_content' is not read"),
    (turns("user", "assistant", weight=0), "turn 2: its 'weight' is 0"),
    ({"conversations": [{"from": "human", "loss": None, "value": "x"},  # AgentInstruct
                        {"from": "gpt", "loss": False, "value": "x"}]}, "turn 2: its 'loss' is False")])
def test_a_bad_conversation_is_named_in_one_line(tmp_path, line, words):
    path = write_lines(tmp_path / "a.jsonl", {"messages": MESSAGES}, line)
    with pytest.raises(UserError, match=rf"a\.jsonl:2: .*{words}"):
        list(read_conversations(path))


@pytest.mark.parametrize("name, content", [
    ("a.json", b'[{"messages": []},'), ("a.jsonl", b"\xff\xfe"), ("a.json", b"[" * 100_000)])
def test_a_damaged_file_and_an_empty_folder_are_named_in_one_line(tmp_path, name, content):
    with pytest.raises(UserError, match=rf"{tmp_path.name}: no \*\.jsonl file"):
        list(read_conversations(tmp_path))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*: not "):
        list(read_conversations(tmp_path / name))


# ------------------------------------------------------------------------------------------------------- rows

class Chat(Bytes):
    """With ChatML's special tokens, 300 and 301; no template."""

    named_bos_id, kind, chat_template = None, "byte-level BPE", ""
    special = {"<|im_start|>": 300, "<|im_end|>": 301}

    def piece(self, index):
        return {2: "</s>"}[index]


def dialogue(*texts, system=None):
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def trained(*answers):
    """The labels of some answers and their ends."""
    return [i for answer in answers for i in (*Chat().encode(answer), 301)]


def test_the_labels_of_two_turns_are_both_answers_and_their_ends():
    messages = dialogue("Q", "Aa", "R", "B", system="S")
    example, outcome = encode_dialogue("k", messages, Chat(), 200)
    row, ids, labels = pack([example]), [], []
    for message in messages:
        header, body = [300, *Chat().encode(f"{message['role']}\n")], trained(message["content"])
        ids += [*header, *body, *Chat().encode("\n")]
        labels += [IGNORE] * len(header)
        labels += [*(body if message["role"] == "assistant" else [IGNORE] * len(body)), IGNORE]
    assert outcome == "" and row.input_ids.tolist() == ids[:-2] and row.labels.tolist() == labels[1:-1]


def test_a_long_conversation_loses_its_fewest_oldest_turns_then_its_prompt_is_truncated(monkeypatch):
    messages, calls = dialogue(*"QA" * 49, "Q" * 30, "B" * 20, system="S"), []
    shorter = [encode_dialogue("k", [messages[0], *messages[1 + 2 * n:]], Chat(), 9999)[0].ids
               for n in range(50)]
    monkeypatch.setattr("mmed.training.conversations.encode_conversation",
                        lambda *given: calls.append(1) or encode_conversation(*given))
    lengths = [len(shorter[n]) + more for n in (0, 7, 48, 49) for more in (-1, 0, 1)]
    for length in (*lengths, 30):
        example, outcome = encode_dialogue("k", messages, Chat(), length - 1)
        turns = next((n for n, ids in enumerate(shorter) if len(ids) <= length), 49)
        row, cut = pack([example]), length < len(shorter[0])
        assert example.ids == shorter[turns][-length:] and outcome == (TRUNCATED if cut else "")
        assert row.labels[row.labels != IGNORE].tolist() == trained(*"A" * (49 - turns), "B" * 20)
    assert len(calls) < 8 * 13  # a search by halves
    none, outcome = encode_dialogue("k", messages[-2:], Chat(), 26)
    assert none is None and "last answer longer than 3/4 of a row" in outcome
    kept, outcome = encode_dialogue("k", [*messages, *dialogue("Q", "A" * 9999)], Chat(), 9999)
    assert kept.ids == shorter[0] and "last answers longer than 3/4" in outcome


def test_conversations_are_counted_packed_and_ordered_like_exam_items(tmp_path):
    rows = [dialogue(f"Q{n}", "A" * (10 * n)) for n in range(1, 9)]
    rows += [dialogue("Q"), dialogue("Q", "A" * 400), dialogue("Q" * 400, "A")]
    path = write_lines(tmp_path / "a.jsonl", *({"messages": messages} for messages in rows))
    one, again = (InstructRows(str(path), Chat(), 200, seed=3) for _ in range(2))
    assert len(one.examples) == 9 and one.warnings == [
        "1 conversations without an answer are left out",
        "1 conversations with a last answer longer than 3/4 of a row are left out", f"1 {TRUNCATED}"]
    batch = one.batch(0, 9)
    assert sorted(one.names(batch)) == [f"a.jsonl:{n}" for n in [1, 11, *range(2, 9)]]
    packed = one.rows(batch)
    assert len(packed) < 9 and all(len(row) <= 200 for row in packed)
    assert again.names(again.batch(1, 4)) == one.names(one.batch(1, 4))
    assert sum((row.labels != IGNORE).sum() for row in packed) == sum(10 * n + 1 for n in range(1, 9)) + 2
    write_lines(path, {"messages": dialogue("Q")})
    with pytest.raises(UserError, match=r"no conversation to train on.*without an answer"):
        InstructRows(str(path), Chat(), 200, seed=3)
