"""A tokenizer, two streams, exam items and a model folder, all tiny, for tests and the fault bench."""
import random
from pathlib import Path

from json_lines import read_lines, write_lines

WORDS = ["heart", "lung", "bone", "cell", "fever", "dose", "plum", "rain", "stone", "river"]


def make_world(folder: Path, width: int = 32) -> Path:
    """FOLDER/tokenizer, FOLDER/en and FOLDER/ja (streams), FOLDER/Train/English.jsonl, FOLDER/model."""
    from mmed.checkpoints.pretrained import save_pretrained
    from mmed.model import ModelConfig, Transformer
    from mmed.tokenizer import train_sentencepiece

    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(5, 40))) for _ in range(120)]
    tokenizer = train_sentencepiece(texts, folder / "tokenizer", 340)
    for name, part in (("en", texts[:60]), ("ja", texts[60:])):
        documents = [tokenizer.encode(text, bos=True, eos=True) for text in part]
        write_stream(folder / name, documents, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.fingerprint,
                     language=name)
    items = [{"options": dict(zip("ABCD", rng.sample(WORDS, 4), strict=True)), "question": rng.choice(WORDS),
              "answer_idx": rng.choice("ABCD"),
              "rationale": " ".join(rng.choices(WORDS, k=rng.randint(1, 30)))} for _ in range(30)]
    write_lines(folder / "Train" / "English.jsonl", *items)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=width, intermediate_size=width * 3 // 2,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=width // 4,
        initializer_range=0.1)
    save_pretrained(Transformer(config).init_weights(3), tokenizer, folder / "model")
    return folder


TINY = ["--sequence_length=32", "--global_batch_size=8", "--micro_batch_size=2", "--learning_rate=1e-3",
        "--precision=fp32", "--save_every=4", "--compile=no", "--activation_checkpointing=no", "--seed=1",
        "--max_steps=10"]


def pretrain(world, out, *extra):
    return ["pretrain_mmedlm2", f"--model={world}/model", f"--data={world}/en=0.7,{world}/ja=0.3",
            f"--out={out}", *TINY, *extra]


def finetune(world, out, *extra):
    return ["finetune_lora", f"--model={world}/model", f"--data={world}/Train", f"--out={out}", *TINY,
            "--lora_rank=4", "--sequence_length=256", *extra]


def lines(out):
    """metrics.jsonl of a run."""
    return read_lines(out / "metrics.jsonl")


def write_stream(prefix: Path, documents: list[list[int]], vocab_size: int = 1000, bos_id: int | None = None,
                 fingerprint: str = "print", language: str = "en"):
    """A token stream of these documents, opened."""
    from mmed.tokenization.token_streams import StreamWriter, TokenStream

    writer = StreamWriter(prefix, vocab_size, fingerprint, bos_id)
    for ids in documents:
        writer.add(ids, language, "web")
    writer.close()
    return TokenStream(prefix, fingerprint, verify=True)


class Bytes:
    """A toy tokenizer: one id per byte, 1 and 2 begin and end."""

    bos_id, eos_id = 1, 2

    def encode(self, text, bos=False, eos=False, continued=False):
        return [1] * bos + [b + 3 for b in text.encode()] + [2] * eos


def random_documents(seed: int, count: int = 40, longest: int = 60) -> list[list[int]]:
    """Documents of 1 to `longest` - 1 ids from 4 to 999."""
    rng = random.Random(seed)
    return [rng.choices(range(4, 1000), k=rng.randrange(1, longest)) for _ in range(count)]
