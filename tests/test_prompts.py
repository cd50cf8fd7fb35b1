"""Items and prompts: bad lines named, published strings byte for byte, examples drawn by item and seed."""
from __future__ import annotations

import pytest
from json_lines import write_lines

from mmed.prompts import (
    ExamItem,
    build_few_shot,
    build_messages,
    build_prompt,
    build_target,
    item_key,
    permuted,
    pick_examples,
    read_benchmark,
    read_items,
)
from mmed.utils.errors import UserError

ITEM = ExamItem(
    question="A {21}-year-old woman has dysuria.",
    options={"A": "Ampicillin", "B": "Ceftriaxone", "C": "Doxycycline"},
    answer=("A", "C"), rationale="Because.\nTwo lines.", language="French", key="q1")
OTHER = ExamItem("Other?", {"A": "a", "B": "b"}, ("B",), "So.", "French", "q2")


def row(**changes: object) -> dict:
    return {"question": "Why?", "options": {"A": "this", "B": "that", "C": "other"}, "answer_idx": "A",
            "rationale": "So.", "human_checked": True, "human_check_passed": False, **changes}


# --- items

def test_an_item_keeps_what_the_line_says(tmp_path):
    path = write_lines(tmp_path / "Japanese.jsonl", row(id=7, meta_info="step1", answer="this"))
    assert read_items(path) == [ExamItem(
        "Why?", {"A": "this", "B": "that", "C": "other"}, ("A",), "So.", "Japanese", "7", False,
        {"meta_info": "step1", "answer": "this"})]
    assert read_items(path, language="Spanish")[0].language == "Spanish"


@pytest.mark.parametrize("answer", ["A,C", "A, C", "C,A", ["A", "C"], ["C", " A "]])
def test_every_spelling_of_an_answer_gives_the_same_letters(tmp_path, answer):
    assert read_items(write_lines(tmp_path / "x.jsonl", row(answer_idx=answer)))[0].answer == ("A", "C")


def test_keys_without_ids_are_stable_and_unique(tmp_path):
    path = write_lines(tmp_path / "English.jsonl", row(), row(question="How?"), row(), row(id=None))
    keys = [item.key for item in read_items(path)]
    assert keys[0] == item_key("English", "Why?", {"A": "this", "B": "that", "C": "other"})
    assert item_key("English", "Why?", {"A": "this", "B": "that"}) == "c9fab05566471d3d"
    assert len(set(keys)) == 4 and keys[2] == keys[0] + "-2" and keys[3] == keys[0] + "-3"
    assert keys[0] != read_items(path, language="French")[0].key  # the language is part of the key


@pytest.mark.parametrize(("bad", "says"), [
    ({"question": "x"}, "'options' must be dict, got None"),
    ({"question": "x", "options": {"A": "a", "B": "b"}}, "'answer_idx' must be"),
    *((row(answer_idx=wrong), "must be one or more of the options A, B, C, each once")
      for wrong in ("D", "a", "A,,C", "", [], [1], "A,A")),
    *((row(**wrong), f"'{name}' must be") for wrong in (
        {"answer_idx": None}, {"answer_idx": 2}, {"options": ["a", "b"]}, {"rationale": 3},
        {"human_checked": "yes"}, {"id": [1]}) for name in wrong),
    *((row(options=dict.fromkeys(letters, "a")), "option letters must be")
      for letters in ("", "A", "AC", "BA", ("", "AB"))),
    (row(question="  "), "must have a text"), (row(options={"A": "", "B": "\u3000"}), "must have a text"),
    (row(options={"A": "a", "B": 3}), "options must be texts, got ['a', 3]"),
    ("{broken", "not valid JSON"), ("[1]", "expected one JSON object")])
def test_a_bad_line_is_named_with_file_and_line(tmp_path, bad, says):
    path = write_lines(tmp_path / "English.jsonl", row(question="fine"), "", bad)
    with pytest.raises(UserError) as caught:
        read_items(path)
    message = str(caught.value)
    assert f"{path}:3" in message and says in message and "\n" not in message and len(message) < 600


def test_duplicate_ids_are_rejected_in_a_file_and_over_files(tmp_path):
    with pytest.raises(UserError, match=r"English.jsonl:2: id 'x' is already used"):
        read_items(write_lines(tmp_path / "English.jsonl", row(id="x"), row(id="x", question="Other?")))
    write_lines(tmp_path / "English.jsonl", row(id="x"))
    write_lines(tmp_path / "French.jsonl", row(id="y"), row(id="x"))
    with pytest.raises(UserError, match=r"French.jsonl: id 'x' is also used in"):
        read_benchmark(tmp_path)


def test_a_benchmark_is_all_files_in_sorted_order_and_never_nothing(tmp_path):
    with pytest.raises(UserError, match=r"no \*.jsonl"):
        read_benchmark(tmp_path)
    (tmp_path / "Test").mkdir()
    write_lines(tmp_path / "dropped.jsonl", {"reason": "no answer"})
    with pytest.raises(UserError, match=r"no \*.jsonl .*; give one of its splits, such as .*/Test$"):
        read_benchmark(tmp_path)
    for name in ("Russian", "Chinese", "Spanish"):
        write_lines(tmp_path / f"{name}.jsonl", row(), row(question=name))
    languages = [item.language for item in read_benchmark(tmp_path)]
    assert languages == ["Chinese"] * 2 + ["Russian"] * 2 + ["Spanish"] * 2
    assert [item.language for item in read_benchmark(tmp_path / "Russian.jsonl")] == ["Russian"] * 2
    with pytest.raises(UserError, match="no items"):
        read_items(write_lines(tmp_path / "Empty.jsonl"))


# --- prompts

# written out from finetune/train.py: curly apostrophe, stray sentence, options string that ends in a space
HEAD = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n"
    "You're a French doctor, kindly address the medical queries according to the patient's account")
INPUT = (
    "\n\n### Input:\n###Question: A {21}-year-old woman has dysuria. "
    "Which of the following is the best treatment for this patient? "
    "###Options: A. Ampicillin B. Ceftriaxone C. Doxycycline \n\n### Response:")
REASON = (
    " in French. Let\u2019s solve this step-by-step. "
    "You should first give the reason in French for your choice. "
    "Then you should give the right answer index of the question.")


@pytest.mark.parametrize("rationale, instruction, target", [
    (True, REASON, "###Rationale: Because.\nTwo lines.\n###Answer: OPTION A,C IS CORRECT."),
    (False, ". Answer with the best option directly.", "###Answer: OPTION A,C IS CORRECT.")])
def test_official_prompts_are_the_published_strings_and_clean_ones_nearly(rationale, instruction, target):
    official = build_prompt(ITEM, rationale, "official")
    assert official == HEAD + instruction + INPUT
    without = official.replace(" Which of the following is the best treatment for this patient?", "")
    assert build_prompt(ITEM, rationale) == without.replace("Doxycycline \n", "Doxycycline\n")
    assert build_target(ITEM, rationale) == target


def test_braces_and_long_options_pass_through_untouched():
    text = "{question} {0} %s \\n " + "x" * 50_000
    item = ExamItem("{input}", {"A": text, "B": "{instruction}"}, ("A",), " ", "English", "bare")
    for style in ("clean", "official"):
        assert f"A. {text} B. {{instruction}}" in build_prompt(item, True, style)
    assert text in build_messages(item, False)[0]["content"]
    with pytest.raises(UserError, match=r"'bare'.*no rationale"):
        build_target(item, True)


def test_few_shot_is_solved_examples_then_the_prompt():
    solved = build_prompt(OTHER, True, "official") + build_target(OTHER, True)
    expected = f"{solved}\n\n{build_prompt(ITEM, True, 'official')}"
    assert build_few_shot(ITEM, [OTHER], True, "official") == expected
    assert build_few_shot(ITEM, [], False) == build_prompt(ITEM, False)


def test_picked_examples_depend_on_seed_and_item_only():
    pool = [ExamItem(f"Q{i}", {"A": "a", "B": "b"}, ("A",), "r" if i % 3 else "",
                     ("French", "Russian")[i % 2], f"t{i}") for i in range(200)]
    first = pick_examples(pool, ITEM, 5, seed=1)
    assert first == pick_examples(pool, ITEM, 5, seed=1) and len({shot.key for shot in first}) == 5
    assert {shot.language for shot in first} == {"French"}
    assert first[:3] == pick_examples(pool, ITEM, 3, seed=1)  # fewer shots are the first ones
    assert first != pick_examples(pool, ITEM, 5, seed=2)
    assert pool[0] not in pick_examples(pool, pool[0], 99)  # never the question itself
    assert all(shot.rationale for shot in pick_examples(pool, ITEM, 20, rationale=True))
    with pytest.raises(UserError, match="only 100 usable ones in French; ask"):
        pick_examples(pool, ITEM, 101)
    with pytest.raises(UserError, match=r"French with a rationale \(--mode answer needs none\); ask"):
        pick_examples(pool, ITEM, 100, rationale=True)


def test_rotations_put_each_text_under_each_letter_once_and_the_key_follows():
    item = ExamItem("Why?", dict(zip("ABCD", ("aspirin", "heparin", "insulin", "iron"))), ("A", "C"), "",
                    "English", "1")
    copies = permuted(item, 4, seed=3)
    right = [sorted(copy.options[letter] for letter in copy.answer) for copy in copies]
    assert right == [["aspirin", "insulin"]] * 4
    assert all(len({copy.options[letter] for copy in copies}) == 4 for letter in "ABCD")
    assert copies == permuted(item, 4, seed=3) and copies[0] == item
    assert copies == permuted(item, 12, seed=3)  # there are no more rotations
    three = ExamItem("?", {"A": "x", "B": "y", "C": "z"}, ("A",), "", "English", "1")
    copy = permuted(three, 2, seed=0)[1]  # the order of the draws stays as it is
    assert (copy.options, copy.answer) == ({"A": "z", "B": "x", "C": "y"}, ("B",))


def test_chat_messages_ask_for_the_published_form():
    messages = build_messages(ITEM, True, examples=[OTHER])
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == build_target(OTHER, True)
    for rationale, form in (
            (True, 'Write the reason in French first, beginning with "###Rationale: ". End with'),
            (False, "Write nothing else. Write")):
        instruction = build_prompt(ITEM, rationale).split("### ")[1].removeprefix("Instruction:\n")
        assert build_messages(ITEM, rationale)[0]["content"] == (
            f"{instruction}###Question: A {{21}}-year-old woman has dysuria.\n###Options:\nA. Ampicillin\n"
            f"B. Ceftriaxone\nC. Doxycycline\n\n{form} exactly one line of this form, where X is the letter "
            "of the right option (several right options: their letters joined by commas, as in A,C):\n"
            "###Answer: OPTION X IS CORRECT.")
    (official,) = build_messages(ITEM, False, "official")
    assert "best treatment for this patient? ###Options: A. Ampicillin" in official["content"]
