"""lm-evaluation-harness and `mmed.eval` on the same model: the same accuracy item by item; our files are in
the harness's shape."""
import json
import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from json_lines import write_lines
from stub_server import Stub, reply
from tiny_models import byte_level_bpe, transformers

from mmed import eval as evaluation
from mmed.evaluation.published import LANGUAGES
from mmed.evaluation.questions import ANSWER_TOKENS, cut_at_answer
from mmed.evaluation.results import load_prompts, load_results
from mmed.utils.errors import UserError

TASKS = Path(__file__).resolve().parents[2] / "tasks" / "lm_eval"
SEED = int(os.environ.get("MMED_TEST_SEED", "0"))
WORDS = {
    "English": "fever cough pain liver lung", "Chinese": "发热 咳嗽 疼痛 肝脏 肺",
    "Japanese": "発熱 咳 痛み 肝臓 肺", "French": "fièvre toux douleur foie poumon",
    "Russian": "жар кашель боль печень лёгкое", "Spanish": "fiebre tos dolor hígado pulmón",
}
pytest.importorskip("openai")
lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness (extra peers) is not installed")


def made_item(rng: random.Random, language: str, number: int) -> dict:
    words, letters = WORDS[language].split(), "ABCDE"[:2 if language == "Russian" else rng.randint(3, 5)]
    right = rng.sample(letters, rng.randint(1, 3) if language == "French" else 1)
    texts = rng.sample(words, 5)
    texts[1] = texts[0] if number == 1 else texts[1]  # of two equal options, either is right
    return {"question": " ".join(rng.choices(words, k=6)) + f" {number}?",
            "options": dict(zip(letters, texts)), "answer_idx": ",".join(sorted(right)),
            "rationale": " ".join(rng.choices(words, k=4)), "topic": rng.choice(["Surgery", "Anatomy"])}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A random Llama saved by transformers with a byte-level tokenizer, and random items in six languages."""
    from tokenizers import processors

    root, rng = tmp_path_factory.mktemp("harness"), random.Random(SEED)
    for language in LANGUAGES:
        items = [made_item(rng, language, number) for number in range(7)]
        write_lines(root / "Test" / f"{language}.jsonl", *items[:3])
        write_lines(root / "Train" / f"{language}.jsonl", *items[3:])
    texts = ["###Answer: OPTION A IS CORRECT. B C D E,"] * 9
    texts += [path.read_text(encoding="utf-8") for path in sorted(root.glob("*/*.jsonl"))]
    trained = byte_level_bpe(texts, 420, ["<s>", "</s>"])
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", trained.token_to_id("<s>"))])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    torch.manual_seed(SEED)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    transformers.LlamaForCausalLM(config).eval().save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return root


def harness(world: Path, task: str, **metadata) -> dict:
    """A task of ours, run by the harness on the same folder."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS), include_defaults=False,
                          metadata={"data": str(world / "Test")} | metadata)
    model = {"pretrained": str(world / "model"), "dtype": "float32"}
    return simple_evaluate(model="hf", model_args=model, tasks=[task], task_manager=manager, batch_size=1,
                           device="cpu", bootstrap_iters=0, verbosity="ERROR")


def ours(world: Path, out: Path, *more: str) -> tuple[dict, dict]:
    """(the summaries of the languages, (question, mode) -> row)."""
    evaluation.main(["--model", str(world / "model"), "--data", str(world / "Test"), "--out", str(out),
                     "--batch_size", "4", *more])
    own, rows = load_results(out)
    return own["summary"]["languages"], {(row["doc"]["question"], row["mode"]): row for row in rows}


@pytest.mark.parametrize("shots", [False, True], ids=["zero-shot", "two shots, official style"])
def test_log_likelihood_gives_the_same_accuracy_in_the_harness_and_here(world, tmp_path, shots):
    train, options, metadata = str(world / "Train"), [], {}
    if shots:
        options = ["--style", "official", "--shots", "2", "--train", train]
        metadata = {"style": "official", "shots": 2, "train": train}
    languages, rows = ours(world, tmp_path / "out", "--scoring", "loglikelihood", *options)
    theirs, prompts = harness(world, "mmedbench", **metadata), load_prompts(tmp_path / "out")
    for language, part in languages.items():
        task = f"mmedbench::{language.lower()}"
        assert theirs["results"][task]["acc,none"] == part["accuracy"]["loglikelihood"]["value"]
        assert len(theirs["samples"][task]) == part["n"]
        for sample in theirs["samples"][task]:
            row = rows[sample["doc"]["question"], "loglikelihood"]
            assert sample["acc"] == row["correct"]
            prompt = prompts[row["key"], "loglikelihood"]
            assert sample["arguments"][0][0] == f"{prompt}###Answer: OPTION"
            found = np.array([float(response[0][0]) for response in sample["resps"]])
            own = np.array(list(row["logprobs"].values()))
            # the harness also counts the space before the letter, which is a token of its own here
            assert found - found[0] == pytest.approx(own - own[0], rel=1e-4, abs=1e-4)


def test_option_texts_have_the_log_probabilities_of_the_harness(world, tmp_path):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    out = tmp_path / "out"
    _, rows = ours(world, out, "--scoring", "option_text")
    prompts, found, asked = load_prompts(out), [], []
    for row in rows.values():
        for letters, total in row["logprobs"].items():
            text = " " + ", ".join(row["doc"]["options"][letter] for letter in letters.split(","))
            found += [total, row["unconditional"][letters]]
            asked += [(prompts[row["key"], "option_text"], text), ("Answer:", text)]
    assert asked[0][0] == f"Question: {next(iter(rows.values()))['doc']['question']}\nAnswer:"
    model = HFLM(pretrained=str(world / "model"), dtype="float32", device="cpu", batch_size=1)
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in asked]
    expected = [score for score, _ in model.loglikelihood(requests, disable_tqdm=True)]
    assert found == pytest.approx(expected, rel=1e-4)


def test_option_likelihoods_behind_a_server_are_those_of_the_model_itself(world, tmp_path):
    plain = transformers.AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(world / "model")

    @torch.no_grad()
    def score(body, tries):
        ids = tokenizer(body["prompt"], return_tensors="pt")["input_ids"]
        log_p = plain(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        value = reply(body["prompt"], True)
        value["choices"][0]["logprobs"] = {"tokens": [tokenizer.decode([one]) for one in ids[0].tolist()],
                                           "token_logprobs": [None, *log_p.tolist()]}
        return 200, value, {}

    server = Stub(score)
    _, local = ours(world, tmp_path / "local", "--scoring", "loglikelihood")
    evaluation.main(["--api", "m", "--base_url", server.url, "--completions", "--concurrency", "1",
                     "--scoring", "loglikelihood", "--data", str(world / "Test"),
                     "--out", str(tmp_path / "served")])
    body = server.seen[0][2]
    assert (body["echo"], body["logprobs"], body["max_tokens"]) == (True, 1, 1)
    served = list(load_results(tmp_path / "served")[1])
    assert len(served) == len(local) == 18
    for row in served:
        expected = local[row["doc"]["question"], "loglikelihood"]
        assert row["logprobs"] == pytest.approx(expected["logprobs"], rel=1e-4)
        assert row["tokens"] == expected["tokens"] and row["parsed"] == expected["parsed"]


def test_generation_gives_the_same_texts_and_accuracy_in_the_harness_and_here(world, tmp_path):
    languages, rows = ours(world, tmp_path / "out", "--mode", "answer", "--scoring", "generate")
    theirs = harness(world, "mmedbench_generate")
    settings = theirs["configs"]["mmedbench_generate::french"]["generation_kwargs"]
    assert settings["max_gen_toks"] == ANSWER_TOKENS
    for language, part in languages.items():
        task = f"mmedbench_generate::{language.lower()}"
        found = theirs["results"][task]
        assert found["acc,none"] == part["accuracy"]["answer"]["value"]
        assert found["acc_official,none"] == part["accuracy"]["official"]["value"]
        assert found["unparsed,none"] == part["parse"]["answer"]["unparsed"]
        for sample in theirs["samples"][task]:
            row = rows[sample["doc"]["question"], "answer"]
            assert cut_at_answer(sample["resps"][0][0]).strip() == row["text"].strip()
            assert sample["acc"] == row["correct"]


def test_results_json_is_read_by_the_harness_and_samples_have_its_keys(world, tmp_path):
    from lm_eval.result_schema import SampleResult
    from lm_eval.utils import make_table

    out = tmp_path / "out"
    languages, _ = ours(world, out, "--scoring", "both,option_text", "--max_new_tokens", "9")
    value = json.loads((out / "results.json").read_text(encoding="utf-8"))
    accuracies = value["results"]["mmedbench_french"]
    line = next(line for line in make_table(value).splitlines() if "mmedbench_french" in line)
    assert "|answer" in line.replace(" ", "") and f"{accuracies['acc,answer']:.4f}" in line
    assert f"{value['groups']['mmedbench']['acc,loglikelihood']:.4f}" in make_table(value, "groups")
    for language, part in languages.items():
        text = (out / f"samples_mmedbench_{language.lower()}.jsonl").read_text(encoding="utf-8")
        samples = list(map(json.loads, text.splitlines()))
        assert len(samples) == 4 * part["n"]
        modes = {"answer", "rationale", "loglikelihood", "option_text"}
        assert {sample["filter"] for sample in samples} == modes
        assert all(set(SampleResult.__annotations__) <= set(sample) for sample in samples)
        for metric, name in (("acc", "answer"), ("acc", "loglikelihood"), ("acc_per_token", "loglikelihood"),
                             ("acc_per_token", "option_text"), ("acc_pmi", "option_text"),
                             ("acc_official", "answer")):
            mean = sum(sample[metric] for sample in samples if sample["filter"] == name) / part["n"]
            found = value["results"][f"mmedbench_{language.lower()}"][f"{metric},{name}"]
            assert found == pytest.approx(mean, abs=1e-12)


def test_the_task_says_what_it_needs(world):
    with pytest.raises(UserError, match="no exam given"):
        harness(world, "mmedbench", data="")
    with pytest.raises(UserError, match="shots and train"):
        harness(world, "mmedbench", shots=2)
