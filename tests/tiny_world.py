"""A tokenizer, two streams, exam items and a model folder, all tiny: what tests and the fault bench train on.
"""
import json
import random
from pathlib import Path

WORDS = ["heart", "lung", "bone", "cell", "fever", "dose", "plum", "rain", "stone", "river"]


def make_world(folder: Path, width: int = 32) -> Path:
    """FOLDER/tokenizer, FOLDER/en and FOLDER/ja (streams), FOLDER/Train/English.jsonl, FOLDER/model (2
    layers).
    """
    from mmed.checkpoints.pretrained import save_pretrained
    from mmed.model import ModelConfig, Transformer
    from mmed.tokenization.token_streams import StreamWriter
    from mmed.tokenizer import train_sentencepiece

    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(5, 40))) for _ in range(120)]
    tokenizer = train_sentencepiece(texts, folder / "tokenizer", 340)
    for name, part in (("en", texts[:60]), ("ja", texts[60:])):
        writer = StreamWriter(folder / name, tokenizer.vocab_size, tokenizer.fingerprint, tokenizer.bos_id)
        for text in part:
            writer.add(tokenizer.encode(text, bos=True, eos=True), name, "web")
        writer.close()
    (folder / "Train").mkdir()
    items = [{"options": dict(zip("ABCD", rng.sample(WORDS, 4), strict=True)), "question": rng.choice(WORDS),
              "answer_idx": rng.choice("ABCD"),
              "rationale": " ".join(rng.choices(WORDS, k=rng.randint(1, 30)))} for _ in range(30)]
    (folder / "Train" / "English.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=width, intermediate_size=width * 3 // 2,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=width // 4,
        initializer_range=0.1)
    save_pretrained(Transformer(config).init_weights(3), tokenizer, folder / "model")
    return folder


TINY = [
    "--sequence_length=32", "--global_batch_size=8", "--micro_batch_size=2", "--learning_rate=1e-3",
    "--precision=fp32", "--save_every=4", "--compile=no", "--activation_checkpointing=no", "--seed=1"
]


def pretrain(world, out, *extra):
    return [
        "pretrain_mmedlm2", f"--model={world}/model", f"--data={world}/en,{world}/ja", f"--out={out}",
        "--max_steps=10", *TINY, *extra
    ]


def finetune(world, out, *extra):
    return [
        "finetune_lora", f"--model={world}/model", f"--data={world}/Train", f"--out={out}", "--max_steps=10",
        *TINY, "--lora_rank=4", "--sequence_length=256", *extra
    ]


def lines(out):
    """metrics.jsonl of a run."""
    return [json.loads(line) for line in open(out / "metrics.jsonl")]
