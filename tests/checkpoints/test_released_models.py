"""The files of the released models, shrunk and with random weights, go through the commands of
docs/reproduce.md: model inspected, exam scored.
"""
import json

import pytest
import torch
from checkpoints.test_families import LLAMA1, LLAMA31
from json_lines import write_lines
from safetensors.torch import load_file
from tiny_models import make_tokenizer

from mmed.checkpoints.__main__ import main as checkpoints
from mmed.checkpoints.families import read_config
from mmed.checkpoints.pretrained import load_config, load_pretrained, save_pretrained
from mmed.eval import main as evaluate
from mmed.evaluation.published import LANGUAGES
from mmed.model import Transformer

# config.json as published; SMALL is what differs here
INTERNLM1 = LLAMA1 | {
    "auto_map": {"AutoConfig": "configuration_internlm.InternLMConfig"}, "bias": True,
    "model_type": "internlm", "pad_token_id": 2, "vocab_size": 103168}
WIDE = {"intermediate_size": 14336, "num_key_value_heads": 8, "rms_norm_eps": 1e-05}
INTERNLM2_7B = LLAMA1 | WIDE | {
    "architectures": ["InternLM2ForCausalLM"], "attn_implementation": "eager", "bias": False,
    "auto_map": {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
    "max_position_embeddings": 32768, "model_type": "internlm2", "pad_token_id": 2,
    "rope_scaling": {"factor": 2.0, "type": "dynamic"}, "rope_theta": 1000000, "vocab_size": 92544}
INTERNLM2_1_8B = INTERNLM2_7B | {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16,
                                 "num_hidden_layers": 24}
LLAMA3 = LLAMA31 | WIDE | {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001,
    "max_position_embeddings": 8192, "mlp_bias": False, "rope_scaling": None}
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 384}
# config, tokenizer, billions of parameters
RELEASED = {"MMedLM": (INTERNLM1, "sentencepiece", 7.3), "MMedLM2": (INTERNLM2_7B, "sentencepiece", 7.7),
            "MMedLM2-1_8B": (INTERNLM2_1_8B, "sentencepiece", 1.9),
            "MMed-Llama-3-8B": (LLAMA3, "byte-level BPE", 8.0)}


def released_folder(folder, config: dict, kind: str) -> None:
    """The files of a released model; its Python files would fail if anything ran them."""
    small = config | SMALL | {"num_attention_heads": 8, "torch_dtype": "bfloat16"}
    if config is LLAMA3:
        small |= {"bos_token_id": 300, "eos_token_id": 302}
    save_pretrained(Transformer(read_config(small)).init_weights(1), None, folder, dtype=torch.bfloat16)
    make_tokenizer(folder, kind)
    if config is not LLAMA3:  # InternLM: a legacy file
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        for name in ("configuration", "modeling", "tokenization"):
            (folder / f"{name}_{config['model_type']}.py").write_text("raise SystemExit('this file was run')")
    (folder / "config.json").write_text(json.dumps(small))
    (folder / "generation_config.json").write_text('{"_from_model_config": true, "do_sample": true}')


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_folder_opens_is_inspected_and_sits_the_exam(tmp_path, capsys, name):
    config, kind, billions = RELEASED[name]
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in Transformer(read_config(config)).parameters())
    assert round(size / 1e9, 1) == billions
    folder = tmp_path / name
    released_folder(folder, config, kind)
    assert checkpoints(["inspect", str(folder)]) == 0
    assert config["model_type"] in capsys.readouterr().out
    model, tokenizer = load_pretrained(folder)
    assert tokenizer is not None and model.config == load_config(folder)
    out, options = tmp_path / "results", {letter: f"bone {letter}" for letter in "ABCDE"}
    for language in LANGUAGES:
        write_lines(tmp_path / "Test" / f"{language}.jsonl", *(
            {"question": f"heart {key} lung?", "answer_idx": key, "options": options, "rationale": "fever"}
            for key in ("B", "A,C" if language == "French" else "D")))
    assert evaluate(["--model", str(folder), "--data", str(tmp_path / "Test"), "--out", str(out),
                     "--style", "official", "--mode", "answer", "--max_new_tokens", "3",
                     "--scoring", "both"]) == 0
    summary = json.loads((out / "results.json").read_text())["mmed"]["summary"]
    assert summary["languages"].keys() == set(LANGUAGES)
    assert all(part["n"] == 2 for part in summary["languages"].values())
