"""Thoughts of reasoning models: removed before an answer is read, and closed when their budget is used up."""
from types import SimpleNamespace

import pytest

import mmed.eval
from mmed.eval import generate_answers, parse_options
from mmed.evaluation.answer_parser import official_match, parse_answer
from mmed.evaluation.questions import Question, encoder_of, token_limit
from mmed.evaluation.summary import summarise
from mmed.evaluation.thoughts import begun_thought, missing_end, remove_thoughts
from mmed.prompts import ExamItem

MODEL = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=60, family="qwen3"))
ITEM = ExamItem("Why?", {"A": "this", "B": "that"}, ("A",), "", "English", "1")

PUBLISHED = "###Answer: OPTION A IS CORRECT."
CHANNEL = "<|channel|>{}<|message|>{}<|end|><|start|>assistant"


@pytest.mark.parametrize("thought", [
    "<think>It is B.</think>\n\n",
    '<think>I should end with "###Answer: OPTION B IS CORRECT."</think>',
    "It is B.</think>\n",
    "<thinking>The answer is B.</thinking>",
    "[THINK]The answer is B.[/THINK]",
    "◁think▷The answer is B.◁/think▷",
    "<|begin_of_thought|>The answer is B.<|end_of_thought|>",
    "<|START_THINKING|>The answer is B.<|END_THINKING|>",
    "<|inner_prefix|>The answer is B.<|inner_suffix|>",
    "<unused94>thought\nThe answer is B.<unused95>",
    "<|channel>thought\nThe answer is B.<channel|>",
    "<|im_start|>think\nThe answer is B.\n<|im_start|>answer\n",
    "Here is my thought process: The answer is B.\n\nHere is my response:\n\n",
    "## Thinking\n\nThe answer is B.\n\n## Final Response\n\n",
    CHANNEL.format("analysis", "The answer is B.") + "<|channel|>final<|message|>",
    CHANNEL.format("analysis", "B?") + CHANNEL.format("commentary", "B.") + "<|channel|>final<|message|>",
    "analysisThe answer is B.assistantfinal",
    "We think that it is B.assistantfinal",  # the prompt ends in "analysis"
    "<|start|>assistant<|message|>",  # fine-tuned without channels
    "<思考>答案是B。</思考>\n",
    "&lt;think&gt;The answer is B.&lt;/think&gt;\n",
    "<|think|>The answer is B.<|end|><|begin|>assistant<|content|>",
    "[unused16]The answer is B.[unused17]",
])
def test_the_answer_after_a_thought_is_parsed(thought):
    for text in (thought + PUBLISHED, f"{thought}{PUBLISHED}<|return|>"):
        assert parse_answer(text, "ABCDE") == parse_answer(PUBLISHED, "ABCDE")
        assert official_match(text, ITEM)


@pytest.mark.parametrize("text, left", [
    *((text, "") for text in (  # an unfinished thought is no answer
        "<think>The answer is B.", "<|channel|>analysis<|message|>The answer is B.",
        "analysisThe answer is B.", "<思考>答案是B。", "<unused94>thought\nThe answer is B.",
        "<think>B</think><think>The answer is B.")),
    *((text, text) for text in ("I think that the answer is B.", "Analysis of the urine: B",
                                "The final answer is B.\n", "")),
])
def test_only_thoughts_are_removed(text, left):
    assert remove_thoughts(text) == left and (left or not parse_answer(text, "ABCDE").letters)


# ---- a budget ----

class Characters:
    """A tokenizer with an id for each character."""

    end_ids, vocab_size = (), 0x110000
    special, named_bos_id, eos_id = {}, None, None
    chat_template = "{{ enable_thinking }}: {{ messages[0].content }}"

    def encode(self, text, continued):
        return list(map(ord, text))

    def decode(self, ids, continued):
        return "".join(map(chr, ids))


@pytest.mark.parametrize("thought, end", [("It is B, no, wait", "\n</think>\n\n"), ("B?</think>", "")])
def test_a_thought_beyond_its_budget_is_closed_and_the_model_answers(monkeypatch, thought, end):
    asked, tokenizer = [], Characters()

    def generate(model, prompts, limits, stop, **decoding):
        asked.append((tokenizer.decode(prompts[0], True), limits))
        ids = list(map(ord, thought if len(asked) == 1 else f"{PUBLISHED} So"))
        assert stop(ids) == (len(asked) == 2 or not end)
        return [ids]

    monkeypatch.setattr(mmed.eval, "generate", generate)
    config = parse_options(["--model", "x", "--data", "x", "--out", "x", "--chat_template", "auto",
                            "--thinking_budget", "20", "--max_new_tokens", "9"])
    prompt = "Why?\n<think>\n"
    question = Question(ITEM, "answer", prompt, list(map(ord, prompt)))
    row, = generate_answers(MODEL, tokenizer, [question], config, None)
    assert row["text"] == f"<think>\n{thought}{end}{PUBLISHED}" and row["correct"]
    assert asked == [(prompt, [20]), (prompt + thought + end, 9)]
    assert token_limit("answer", config) == 29
    settings = {"max_new_tokens": 9, "thinking_budget": 20}
    assert summarise([row], settings)["signatures"]["answer"].endswith("max_new_tokens:9|thinking_budget:20")


@pytest.mark.parametrize("budget", [0, 20])
def test_a_budget_makes_a_model_think_that_can_do_without(budget):
    config = parse_options(["--model", "x", "--data", "x", "--out", "x", "--chat_template", "auto",
                            "--thinking_budget", str(budget)])
    prompt, ids = encoder_of(MODEL, Characters(), config)(ITEM, [], "answer")
    assert prompt.startswith(f"{budget > 0}: You're") and "".join(map(chr, ids)) == prompt


def test_an_unfinished_thought_that_the_prompt_begins_is_no_answer(monkeypatch):
    assert begun_thought("<|im_start|>assistant\n<think>\n") == "<think>\n"
    assert begun_thought("<think>\n\n</think>\n\n") == missing_end("<think>A?</think>B") == ""
    assert missing_end("[THINK]A?") == "[/THINK]"
    monkeypatch.setattr(mmed.eval, "generate", lambda *_, **__: [list(map(ord, "The answer is A."))])
    config = parse_options(["--model", "x", "--data", "x", "--out", "x"])
    question = Question(ITEM, "answer", "Why?<think>\n", [1])
    row, = generate_answers(MODEL, Characters(), [question], config, None)
    assert row["status"] == "unparsed" and row["text"] == "<think>\nThe answer is A."
