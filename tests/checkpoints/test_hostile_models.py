"""Model folders made to harm: pickles on every path that loads, configs that ask for the impossible, devices that are not there."""
from __future__ import annotations

import json
import pickle
import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mmed.checkpoints.adapters import load_adapter, save_adapter
from mmed.checkpoints.pretrained import load_config, load_pretrained, save_pretrained
from mmed.checkpoints.training_state import load_state, save_state
from mmed.data import StreamWriter, TokenStream
from mmed.evaluation.bertscore import Scorer
from mmed.generate import load_model
from mmed.lora import apply_lora
from mmed.model import ModelConfig, Transformer
from mmed.tokenizer import load_tokenizer
from mmed.utils.errors import UsageError, UserError

ROOT = Path(__file__).resolve().parents[2]
SMALL = dict(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8)


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def small() -> Transformer:
    return Transformer(ModelConfig(**SMALL)).init_weights(1)


def model_folder(folder: Path) -> Path:
    save_pretrained(small(), None, folder)
    return folder


# ------------------------------------------------------------------------------------------------------------ M7: pickles

def open_weights(folder: Path, poison) -> None:
    path = model_folder(folder / "model")
    (path / "model.safetensors").unlink()
    poison(path / "pytorch_model.bin")
    load_pretrained(path)


def open_weights_called_safe(folder: Path, poison) -> None:
    path = model_folder(folder / "model")
    poison(path / "model.safetensors")
    load_pretrained(path)


def open_shard_of_an_index(folder: Path, poison) -> None:
    path = model_folder(folder / "model")
    (path / "model.safetensors").unlink()
    poison(path / "a.bin")
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": "a.bin"}}))
    load_pretrained(path)


def open_adapter(folder: Path, poison) -> None:
    model = small()
    apply_lora(model, 2, 4, 0.0, "q_proj")
    save_adapter(model, folder)
    (folder / "adapter_model.safetensors").unlink()
    poison(folder / "adapter_model.bin")
    load_adapter(small(), folder)


def open_adapter_called_safe(folder: Path, poison) -> None:
    model = small()
    apply_lora(model, 2, 4, 0.0, "q_proj")
    save_adapter(model, folder)
    poison(folder / "adapter_model.safetensors")
    load_adapter(small(), folder)


def open_training_state(folder: Path, poison) -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    state = save_state(folder, model, optimizer, 1, {})
    poison(next(state.glob("*.safetensors")))
    load_state(state, model, optimizer)


def open_tokenizer(folder: Path, poison) -> None:
    poison(folder / "tokenizer.model")
    load_tokenizer(folder)


def open_encoder(folder: Path, poison) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                                                    "intermediate_size": 24, "max_position_embeddings": 32, "type_vocab_size": 2, "hidden_act": "gelu"}))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnop"]))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    poison(folder / "pytorch_model.bin")
    Scorer(folder, 1)


def open_stream(folder: Path, poison) -> None:
    writer = StreamWriter(folder / "s", 64, "print")
    writer.add([1, 2, 3])
    writer.close()
    poison(folder / "s.bin")
    TokenStream(folder / "s", verify=True)


OPENERS = [value for name, value in sorted(globals().items()) if name.startswith("open_")]


@pytest.mark.parametrize("form", ["torch.save", "torch.save, in a dict", "pickle", ".npy of objects"])
@pytest.mark.parametrize("opener", OPENERS, ids=lambda opener: opener.__name__.removeprefix("open_"))
def test_a_pickle_is_run_on_no_path_that_loads(tmp_path, opener, form):
    canary = tmp_path / "canary"

    def poison(path: Path) -> None:
        bad = Canary(canary)
        if form == ".npy of objects":
            with open(path, "wb") as file:  # np.save would put .npy behind the name
                np.save(file, np.array([bad, None], dtype=object), allow_pickle=True)
        elif form == "pickle":
            path.write_bytes(pickle.dumps(bad))
        else:
            torch.save({"a": torch.ones(1), "model.norm.weight": bad} if "dict" in form else bad, path)

    with pytest.raises(UserError) as error:
        opener(tmp_path, poison)
    assert not canary.exists() and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_the_canary_is_one_that_a_pickle_would_make(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


# ------------------------------------------------------------------------------------------------------- M8: hostile configs

GOOD = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 64}


@pytest.mark.parametrize("text", [
    json.dumps(GOOD)[:-1], "[" * 100_000, "{}", "[]", "null", '"x"', "9" * 5000, json.dumps(GOOD | {"num_hidden_layers": 10 ** 9}), json.dumps(GOOD | {"hidden_size": 0}),
    json.dumps(GOOD | {"hidden_size": -16}), json.dumps(GOOD | {"hidden_size": 1e3}), json.dumps(GOOD | {"hidden_size": "16"}), json.dumps(GOOD | {"num_attention_heads": 3}),
    json.dumps(GOOD | {"rope_theta": float("nan")}), json.dumps(GOOD | {"rope_theta": float("inf")}), json.dumps(GOOD | {"rms_norm_eps": -1.0}), json.dumps(GOOD | {"vocab_size": 10 ** 400}),
    json.dumps(GOOD | {"bos_token_id": 64}), json.dumps(GOOD | {"eos_token_id": [1, 64]}), json.dumps(GOOD | {"eos_token_id": -2}), json.dumps(GOOD | {"bos_token_id": -3}),
    json.dumps(GOOD | {"quantization_config": {"quant_method": "x"}}), json.dumps(GOOD | {"model_type": "../../evil"}), json.dumps(GOOD | {"x": "y" * 5_000_000}), " " * 100_000_000 + "{}",
], ids=lambda text: text[:60] + str(len(text)))
def test_a_hostile_config_is_refused_in_one_line_at_once(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    clock = time.process_time()
    with pytest.raises(UserError, match=r"config\.json") as error:
        load_config(tmp_path)
    assert time.process_time() - clock < 1 and "\n" not in str(error.value)


def test_a_config_of_the_largest_sizes_takes_no_memory_before_its_weights_are_looked_at(tmp_path):
    path = model_folder(tmp_path / "model")
    largest = GOOD | {"vocab_size": 2 ** 24, "hidden_size": 2 ** 18, "intermediate_size": 2 ** 20, "num_hidden_layers": 1000, "num_attention_heads": 2 ** 10,
                      "num_key_value_heads": 2 ** 10}
    (path / "config.json").write_text(json.dumps(largest))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="1000 layers, but"):
        load_pretrained(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


# -------------------------------------------------------------------------------------------------------------- M11: devices

@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu", "tpu:0", "cpu:x"])
def test_a_device_that_is_not_there_is_one_line(tmp_path, device):
    with pytest.raises(UsageError, match=f"^--device {device}: no such device here .there is cpu; "):
        load_model(str(model_folder(tmp_path / "model")), device=device)
