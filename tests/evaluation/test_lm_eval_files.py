"""lm-evaluation-harness and `mmed.eval` on the same model: the same accuracy item by item; our files are in
the harness' shape.
"""
import importlib.util
import json
import logging
import os
import random
from pathlib import Path

import pytest
import torch

from mmed import eval as evaluation
from mmed.evaluation import questions
from mmed.evaluation.published import LANGUAGES
from mmed.evaluation.results import load_prompts, load_results
from mmed.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "tasks" / "lm_eval"
WORDS = {
    "English": "fever cough pain liver", "Chinese": "发热 咳嗽 疼痛 肝脏", "Japanese": "発熱 咳 痛み 肝臓",
    "French": "fièvre toux douleur foie", "Russian": "жар кашель боль печень",
    "Spanish": "fiebre tos dolor hígado"
}
lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness (extra peers) is not installed")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A random Llama saved by transformers with a byte-level tokenizer, and random items in six languages."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    root, seed = tmp_path_factory.mktemp("harness"), random.randrange(10 ** 9)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for part, size in (("Test", 3), ("Train", 4)):
        (root / part).mkdir()
        for language in LANGUAGES:
            lines = []
            for i in range(size):
                letters = "ABCDE"[:2 if language == "Russian" else rng.randint(3, 5)]
                right = rng.sample(letters, rng.randint(1, 3) if language == "French" else 1)
                words = WORDS[language].split()
                lines.append({
                    "question": " ".join(rng.choices(words, k=6)) + f" {part} {i}?",
                    "options": {one: " ".join(rng.choices(words, k=2))
                                for one in letters}, "answer_idx": ",".join(sorted(right)),
                    "rationale": " ".join(rng.choices(words,
                                                      k=4)), "topic": rng.choice(["Surgery", "Anatomy"])
                })
            (root / part / f"{language}.jsonl").write_text("".join(
                json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
                                                           encoding="utf-8")
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.ByteLevel(
        add_prefix_space=False), decoders.ByteLevel()
    texts = ["###Answer: OPTION A IS CORRECT. B C D E,"] * 9 + [
        path.read_text(encoding="utf-8") for path in sorted(root.glob("*/*.jsonl"))
    ]
    trained.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=420,
                            special_tokens=["<s>", "</s>"],
                            show_progress=False,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", trained.token_to_id("<s>"))])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=trained,
                                                     bos_token="<s>",
                                                     eos_token="</s>",
                                                     pad_token="</s>")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(vocab_size=len(tokenizer),
                                      hidden_size=32,
                                      intermediate_size=48,
                                      num_hidden_layers=2,
                                      num_attention_heads=4,
                                      num_key_value_heads=2,
                                      max_position_embeddings=4096,
                                      initializer_range=0.3,
                                      bos_token_id=tokenizer.bos_token_id,
                                      eos_token_id=tokenizer.eos_token_id)
    transformers.LlamaForCausalLM(config).eval().save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return root


def harness(world: Path, task: str, **metadata) -> dict:
    """A task of ours, run by the harness on the same folder."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASKS),
                          include_defaults=False,
                          metadata={"data": str(world / "Test")} | metadata)
    return simple_evaluate(model="hf",
                           model_args={"pretrained": str(world / "model"), "dtype": "float32"},
                           tasks=[task],
                           task_manager=manager,
                           batch_size=1,
                           device="cpu",
                           bootstrap_iters=0,
                           verbosity="ERROR")


def ours(world: Path, out: Path, *more: str) -> tuple[dict, list[dict]]:
    evaluation.main([
        "--model",
        str(world / "model"), "--data",
        str(world / "Test"), "--out",
        str(out), "--batch_size", "4", *more
    ])
    own, rows = load_results(out)
    return own, list(rows)


@pytest.mark.parametrize("options, metadata", [([], {}),
                                               (["--style", "official", "--shots", "2", "--train", "Train"
                                                 ], {"style": "official", "shots": 2, "train": "Train"})],
                         ids=["zero-shot", "two shots, official style"])
def test_log_likelihood_gives_the_same_accuracy_in_the_harness_and_here(world, tmp_path, options, metadata):
    options = [str(world / option) if option == "Train" else option for option in options]
    metadata |= {"train": str(world / "Train")} if "train" in metadata else {}
    own, rows = ours(world, tmp_path / "out", "--scoring", "loglikelihood", *options)
    theirs = harness(world, "mmedbench", **metadata)
    prompts = load_prompts(tmp_path / "out")
    by_question = {(row["language"], row["doc"]["question"]): row for row in rows}
    for language in LANGUAGES:
        task = f"mmedbench::{language.lower()}"
        assert theirs["results"][task]["acc,none"] == own["summary"]["languages"][language]["accuracy"][
            "loglikelihood"]["value"]
        assert len(theirs["samples"][task]) == own["summary"]["languages"][language]["n"]
        for sample in theirs["samples"][task]:
            row = by_question[language, sample["doc"]["question"]]
            assert sample["acc"] == row["correct"] and sample["arguments"][0][0] == prompts[row["key"],
                                                                                            "loglikelihood"]
            assert [float(response[0][0])
                    for response in sample["resps"]] == pytest.approx(list(row["logprobs"].values()),
                                                                      rel=1e-4)
    assert theirs["groups"]["mmedbench"]["acc,none"] == pytest.approx(
        own["summary"]["macro"]["accuracy"]["loglikelihood"]["value"], abs=1e-12)


def theirs_function(name: str):
    """A function of tasks/lm_eval/exam.py, which the harness loads by its path."""
    spec = importlib.util.spec_from_file_location("exam", TASKS / "exam.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def test_generation_gives_the_same_texts_and_accuracy_in_the_harness_and_here(world, tmp_path):
    own, rows = ours(world, tmp_path / "out", "--mode", "answer", "--scoring", "generate")
    theirs = harness(world, "mmedbench_generate")
    by_question = {(row["language"], row["doc"]["question"]): row for row in rows}
    assert theirs["configs"]["mmedbench_generate::french"]["generation_kwargs"][
        "max_gen_toks"] == questions.ANSWER_TOKENS
    for language in LANGUAGES:
        task, part = f"mmedbench_generate::{language.lower()}", own["summary"]["languages"][language]
        assert theirs["results"][task]["acc,none"] == part["accuracy"]["answer"]["value"]
        assert theirs["results"][task]["acc_official,none"] == part["accuracy"]["official"]["value"]
        assert theirs["results"][task]["unparsed,none"] == part["parse"]["answer"]["unparsed"]
        for sample in theirs["samples"][task]:
            row = by_question[language, sample["doc"]["question"]]
            assert evaluation.cut_at_answer(
                sample["resps"][0][0]).strip() == row["text"].strip() and sample["acc"] == row["correct"]
            # a random model never answers; these texts do
            score, gold = theirs_function("score"), sample["doc"]["answer"]
            assert score(sample["doc"], [f"###Answer: OPTION {gold} IS CORRECT. And then"]) == {
                "acc": 1.0, "acc_official": 1.0, "unparsed": 0.0
            }
            assert score(sample["doc"],
                         ["I cannot say."]) == {"acc": 0.0, "acc_official": 0.0, "unparsed": 1.0}


def test_results_json_is_read_by_the_harness_and_samples_have_its_keys(world, tmp_path):
    from lm_eval.result_schema import SampleResult
    from lm_eval.utils import make_table

    own, rows = ours(world, tmp_path / "out", "--scoring", "both", "--max_new_tokens", "9")
    value = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert {
        "results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better",
        "n-samples", "config"
    } <= set(value)
    printed = make_table(value)
    french = own["summary"]["languages"]["French"]["accuracy"]
    line = next(line for line in printed.splitlines() if "mmedbench_french" in line)
    assert "|answer" in line.replace(" ", "") and f"{french['answer']['value']:.4f}" in line
    assert f"{own['summary']['macro']['accuracy']['loglikelihood']['value']:.4f}" in make_table(
        value, "groups")
    for language in LANGUAGES:
        samples = [
            json.loads(line)
            for line in (tmp_path / "out" / f"samples_mmedbench_{language.lower()}.jsonl").read_text(
                encoding="utf-8").splitlines()
        ]
        part = own["summary"]["languages"][language]
        assert len(samples) == 3 * part["n"] and {sample["filter"]
                                                  for sample in samples
                                                  } == {"answer", "rationale", "loglikelihood"}
        for sample in samples:
            assert set(SampleResult.__annotations__) <= set(sample) and all(
                isinstance(sample[metric], float) for metric in sample["metrics"])
        for metric, name in (("acc", "answer"), ("acc", "loglikelihood"), ("acc_per_token", "loglikelihood"),
                             ("acc_official", "answer")):
            mean = sum(sample[metric] for sample in samples if sample["filter"] == name) / part["n"]
            assert value["results"][f"mmedbench_{language.lower()}"][f"{metric},{name}"] == pytest.approx(
                mean, abs=1e-12)
    assert json.loads(
        (tmp_path / "out" /
         "results.json").read_text(encoding="utf-8"))["groups"]["mmedbench"]["sample_len"] == len(rows) // 3


def test_the_task_says_what_it_needs(world):
    with pytest.raises(UserError, match="no exam given"):
        harness(world, "mmedbench", data="")
    with pytest.raises(UserError, match="shots and train"):
        harness(world, "mmedbench", shots=2)
