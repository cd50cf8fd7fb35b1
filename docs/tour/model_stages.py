"""The tour's middle: one sentence through a small model line by line, its loss, one optimizer step, and what
LoRA changes.

In: the folder that corpus_stages.py filled. Out: what the page shows, drawings, and the trained models in the
folder. The arithmetic is written out here once more, and every line of it is held to the package's own
(`assert`): what the page shows is what the model computes.

Legend: T tokens, D hidden size, H query heads, K key/value heads, E head size, F MLP width, V vocabulary, R
LoRA rank.
"""
from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from corpus_stages import DATA, LANGUAGES, SEQUENCE, documents, shown, table, typed
from drawings import attention_map, curve, lora_boxes, loss_bars
from torch import Tensor

from mmed.checkpoints.adapters import load_adapter
from mmed.checkpoints.pretrained import load_pretrained, save_pretrained
from mmed.config import TrainConfig, parse_command_line
from mmed.data import ExamRows
from mmed.lora import adapted_layers, apply_lora
from mmed.model import ModelConfig, Transformer, rope_frequencies, rotate
from mmed.prompts import read_benchmark
from mmed.tokenizer import Tokenizer, load_tokenizer
from mmed.train import forward_backward, learning_rate, train
from mmed.training.loader import Batches, make_rows
from mmed.training.optimizer import BETA1, EPSILON, make_optimizer, update

SEED = 0
EXAM_SEQUENCE = 512  # tokens of a row of exam items
STEPS = {"corpus": 100, "exam": 60}
SENTENCES = 2  # of the page go through the model: the second begins with a word of the first


def commands(work: Path) -> dict[str, list[str]]:
    """run -> the arguments of mmed/train.py."""
    streams = ",".join(f"{work}/streams/{code}" for code in LANGUAGES)
    exam = [
        f"--model={work}/runs/corpus/model", f"--data={DATA}/exam/Train",
        f"--sequence_length={EXAM_SEQUENCE}", "--global_batch_size=8", f"--max_steps={STEPS['exam']}",
        "--warmup_ratio=0.1", f"--seed={SEED}"
    ]
    return {
        "corpus": [
            "demo_base", f"--model={work}/blank", f"--data={streams}", f"--sequence_length={SEQUENCE}",
            f"--max_steps={STEPS['corpus']}", "--learning_rate=5e-3", "--warmup_ratio=0.1", f"--seed={SEED}",
            f"--out={work}/runs/corpus"
        ], "full": ["demo_full", *exam, "--learning_rate=3e-3", f"--out={work}/runs/full"], "lora": [
            "demo_lora", *exam, "--lora_rank=8", "--lora_alpha=16", "--lora_dropout=0",
            f"--out={work}/runs/lora"
        ], "lora_all": [
            "demo_lora", *exam, "--lora_rank=8", "--lora_alpha=16", "--lora_dropout=0",
            "--lora_targets=all-linear", f"--out={work}/runs/lora_all"
        ]
    }


def run(work: Path) -> tuple[dict[str, str], dict[str, str]]:
    tokenizer = load_tokenizer(work / "tokenizer")
    shape = ModelConfig(vocab_size=tokenizer.vocab_size,
                        hidden_size=64,
                        intermediate_size=128,
                        num_hidden_layers=2,
                        num_attention_heads=4,
                        num_key_value_heads=2,
                        head_dim=16,
                        rope_theta=1000.0,
                        rms_norm_eps=1e-5,
                        initializer_range=0.125,
                        extra={
                            "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id,
                            "pad_token_id": tokenizer.pad_id
                        })
    save_pretrained(Transformer(shape).init_weights(SEED), tokenizer, work / "blank")
    logs = {}
    for name, arguments in commands(work).items():
        recipe, config = parse_command_line([*arguments, "--log_every=1", "--save_every=1000"])
        assert train(recipe, config) == 0
        logs[name] = [
            json.loads(line)
            for line in (work / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    values, drawings = forward(work, tokenizer)
    values |= step(work, tokenizer, logs["corpus"])
    found, drawn = schedule(work, logs)
    values |= found
    drawings |= drawn
    found, drawn = lora(work, tokenizer)
    return values | found, drawings | drawn


def shape_of(x: Tensor) -> str:
    return "(" + ", ".join(map(str, x.shape)) + ")"


def columns(rows: list[list[str]]) -> str:
    """Rows of text under each other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("   ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
                     for row in rows)


def few(x: Tensor, count: int = 4, digits: int = 3) -> str:
    return " ".join(f"{float(v):.{digits}f}" for v in x.flatten()[:count])


# -------------------------------------------------------------------------------------------------------- for


def attention_by_hand(model: Transformer, block, x: Tensor, rope: tuple[Tensor, Tensor],
                      lines: list) -> tuple[Tensor, Tensor]:
    """(what attention adds, its probabilities (H, T, T)) of one block; `lines` gets every line with its
    shape.
    """
    config, T = model.config, x.shape[1]
    H, K, E = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    attention = block.self_attn

    def note(code: str, value: Tensor, what: str) -> Tensor:
        lines.append([f"`{code}`", shape_of(value), what])
        return value

    n = note("n = input_layernorm(x)", block.input_layernorm(x),
             "each token's numbers divided by their root mean square")
    q = note("q = q_proj(n)",
             attention.q_proj(n).view(1, T, H, E).transpose(1, 2),
             "what each token looks for, in every query head")
    k = note("k = k_proj(n)",
             attention.k_proj(n).view(1, T, K, E).transpose(1, 2),
             "what each token offers; two query heads share one")
    v = note("v = v_proj(n)",
             attention.v_proj(n).view(1, T, K, E).transpose(1, 2),
             "what each token hands over when it is looked at")
    q = note("q, k = rotate(q), rotate(k)", rotate(q, *rope),
             "turned by an angle that grows with the position")
    k = rotate(k, *rope).repeat_interleave(H // K, 1)
    v = v.repeat_interleave(H // K, 1)
    scores = note("scores = q @ k.T / sqrt(E)", q @ k.transpose(2, 3) * E**-0.5,
                  "how well each query fits each key")
    seen = torch.ones(T, T, dtype=torch.bool).tril()
    p = note("p = softmax(scores + mask)",
             scores.masked_fill(~seen, -torch.inf).softmax(-1),
             "the attention pattern; nobody sees the future")
    out = note("out = p @ v", (p @ v).transpose(1, 2).reshape(1, T, H * E), "the heads side by side")
    return note("x = x + o_proj(out)", attention.o_proj(out), "added to the token's own numbers"), p[0]


def forward(work: Path, tokenizer: Tokenizer) -> tuple[dict[str, str], dict[str, str]]:
    model, _ = load_pretrained(work / "runs" / "corpus" / "model")
    config = model.eval().config
    text = ". ".join(documents(work / "unique" / "en" / "kept")["insulin"].text.split(". ")[:SENTENCES]) + "."
    ids = tokenizer.encode(text, bos=True)
    pieces, T = [tokenizer.piece(i) for i in ids], len(ids)
    lines: list = []
    probabilities = []
    with torch.no_grad():
        embedded = x = model.embed_tokens(torch.tensor([ids]))
        lines.append(["`x = embed_tokens(ids)`", shape_of(x), "a row of the embedding matrix for each id"])
        speeds = rope_frequencies(config, config.rope_theta, True, torch.device("cpu"))
        angles = torch.arange(T)[:, None] * torch.cat((speeds, speeds))
        rope = angles.cos()[None, None], angles.sin()[None, None]
        for number, block in enumerate(model.layers):
            kept = lines if number == 0 else []  # the second block is the same again
            added, p = attention_by_hand(model, block, x, rope, kept)
            probabilities.append(p)
            x = x + added
            n = block.post_attention_layernorm(x)
            inner = F.silu(block.mlp.gate_proj(n)) * block.mlp.up_proj(n)
            kept.append([
                "`inner = silu(gate_proj(n)) * up_proj(n)`",
                shape_of(inner), "each token by itself; n is x, normalised again"
            ])
            x = x + block.mlp.down_proj(inner)
            kept.append([
                "`x = x + down_proj(inner)`",
                shape_of(x), "end of block 0; block 1 does the same with weights of its own"
            ])
        final = model.norm(x)
        logits = final @ model.head_weight.T
        lines.append([
            "`logits = lm_head(norm(x))`",
            shape_of(logits), "a score for every piece of the vocabulary, at every place"
        ])
        assert torch.allclose(logits, model(torch.tensor([ids])), atol=1e-4)
        logs = logits[0].log_softmax(-1)
        losses = -logs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        summed = model(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]))
        assert torch.allclose(losses.sum(), summed, atol=1e-3)
        blank, _ = load_pretrained(work / "blank")
        untrained = blank(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]])) / (T - 1)
    place = max(i for i, piece in enumerate(pieces) if piece == "▁Insulin")
    # the head that is drawn: of all, it looks most at the same word, earlier
    earlier = pieces.index("▁Insulin")
    heads = [(float(p[place, earlier]), layer, head) for layer, all_heads in enumerate(probabilities)
             for head, p in enumerate(all_heads)]
    _, layer, head = max(heads)
    p = probabilities[layer][head]
    looked = p[place].topk(3)
    top = logs[T - 3].exp().topk(5)  # what should come last but one: the text ends with a full stop
    # the first pair of the first query head, before and after the turn
    block = model.layers[0]
    with torch.no_grad():
        q = block.self_attn.q_proj(block.input_layernorm(embedded)).view(T, config.num_attention_heads,
                                                                         config.head_dim)[place, 0]
    half = config.head_dim // 2
    a, b, angle = float(q[0]), float(q[half]), place * float(speeds[0])
    turned = (a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle))
    rotated = rotate(q[None, None, None], rope[0][:, :, place:place + 1], rope[1][:, :,
                                                                                  place:place + 1])[0, 0, 0]
    assert abs(float(rotated[0]) - turned[0]) < 1e-4 and abs(float(rotated[half]) - turned[1]) < 1e-4
    worst = int(losses.argmax())
    pages = sum(len(documents(work / "unique" / code / "kept")) for code in LANGUAGES)
    values = {
        "corpus_command": typed(["python mmed/train.py", *commands(Path("build/tour"))["corpus"]]),
        "forward_text": text, "T": str(T), "forward_ids": " ".join(map(str, ids)), "forward_pieces": " ".join(
            map(shown, pieces)), "shapes": table(["line", "shape", "what it is"],
                                                 lines), "D": str(config.hidden_size),
        "H": str(config.num_attention_heads), "K": str(config.num_key_value_heads), "E": str(
            config.head_dim), "F": str(config.intermediate_size), "V": str(config.vocab_size),
        "parameters": f"{sum(w.numel() for w in model.parameters()):,}", "place": str(place),
        "embedding": few(embedded[0, place]), "rms": f"{float(embedded[0, place].pow(2).mean().sqrt()):.4f}",
        "normed": few(model.layers[0].input_layernorm(embedded)[0, place].detach()), "norm_weight": few(
            model.layers[0].input_layernorm.weight.detach()), "q_pair": f"({a:.3f}, {b:.3f})",
        "q_angle": f"{angle:.0f}", "q_turned": f"({turned[0]:.3f}, {turned[1]:.3f})", "speeds": " ".join(
            f"{float(s):.4f}" for s in speeds), "half": str(half), "layer": str(layer), "head": str(head),
        "attention_row": ", ".join(f"{shown(pieces[int(j)])} at {int(j)} with {float(w):.3f}"
                                   for w, j in zip(*looked)), "after": " ".join(
                                       shown(piece) for piece in pieces[place:T - 2]), "after_next": shown(
                                           pieces[T - 2]), "top": table(
                                               ["next piece", "probability"],
                                               [[shown(tokenizer.piece(int(i))), f"{float(w):.4f}"]
                                                for w, i in zip(*top)]), "loss_sum": f"{float(summed):.3f}",
        "loss_mean": f"{float(losses.mean()):.4f}", "loss_count": str(T - 1),
        "loss_blank": f"{float(untrained):.3f}", "loss_uniform": f"{math.log(config.vocab_size):.3f}",
        "pages": str(pages), "loss_pages": f"{math.log(pages):.3f}",
        "loss_worst": f"{float(losses[worst]):.3f}", "loss_worst_piece": shown(
            pieces[worst + 1]), "loss_worst_p": f"{math.exp(-float(losses[worst])):.3f}",
        "perplexity": f"{math.exp(float(losses.mean())):.3f}"
    }
    return values, {
        "attention.svg": attention_map(p.tolist(), pieces, f"Attention of layer {layer}, head {head}"),
        "loss_per_token.svg": loss_bars(losses.tolist(), pieces[1:])
    }


# ------------------------------------------------------------------------------------------------------ optim

def first_batch(work: Path, tokenizer: Tokenizer) -> tuple[TrainConfig, object]:
    _, config = parse_command_line(commands(work)["corpus"])
    return config, Batches(config, make_rows(config, tokenizer), torch.device("cpu"))(0)


def step(work: Path, tokenizer: Tokenizer, log: list[dict]) -> dict[str, str]:
    """Step 1 of the run once more, by the functions that training calls, with one weight followed through."""
    model, _ = load_pretrained(work / "blank")
    config, batch = first_batch(work, tokenizer)
    optimizer = make_optimizer(model.train(), config)
    lr = learning_rate(config, 0, config.max_steps)
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss = forward_backward(model, batch, 1 / batch.targets, contextlib.nullcontext)
    weight = model.layers[0].self_attn.q_proj.weight
    before, gradient = float(weight.detach()[0, 0]), float(weight.grad[0, 0])
    norm = float(update(model, optimizer, config.max_grad_norm, loss))
    after = float(weight.detach()[0, 0])
    g = gradient / max(1.0, norm / config.max_grad_norm)
    m, v = (1 - BETA1) * g, (1 - config.beta2) * g * g
    m_hat, v_hat = m / (1 - BETA1), v / (1 - config.beta2)
    by_hand = before * (1 - lr * config.weight_decay) - lr * m_hat / (math.sqrt(v_hat) + EPSILON)
    assert abs(by_hand - after) < 1e-6 and abs(norm / log[0]["grad_norm"] - 1) < 1e-3 and abs(
        float(loss) / batch.targets / log[0]["loss"] - 1) < 1e-4
    return {
        "batch_shape": shape_of(batch.micro[0]["input_ids"]), "batch_targets": str(batch.targets),
        "batch_positions": str(batch.positions), "batch_loss": f"{float(loss):.1f}",
        "batch_mean": f"{float(loss) / batch.targets:.4f}", "grad_norm": f"{norm:.3f}",
        "clip": f"{config.max_grad_norm:g}", "weight_step": columns(
            [["weight before", f"{before:.6f}", ""], ["gradient", f"{gradient:.6f}", ""],
             [f"g = gradient / {norm / config.max_grad_norm:.3f}", f"{g:.6f}", "clipped"],
             [f"m = {1 - BETA1:.1g} g", f"{m:.3e}", "running mean of the gradients, so far of one"],
             [f"v = {1 - config.beta2:.1g} g^2", f"{v:.3e}", "running mean of their squares"],
             [
                 f"decay: times 1 - {lr:g} x {config.weight_decay:g}",
                 f"{before * (1 - lr * config.weight_decay):.6f}", ""
             ],
             [
                 f"minus {lr:g} x (m / {1 - BETA1:.1g}) / sqrt(v / {1 - config.beta2:.1g})", f"{by_hand:.6f}",
                 ""
             ], ["weight after, in the run", f"{after:.6f}", ""]])
    }



def schedule(work: Path, logs: dict[str, list[dict]]) -> tuple[dict[str, str], dict[str, str]]:
    _, config = parse_command_line(commands(work)["corpus"])
    steps = config.max_steps
    rates = [learning_rate(config, s, steps) for s in range(steps)]
    assert all(abs(rate - line["lr"]) < 1e-9 for rate, line in zip(rates, logs["corpus"], strict=True))
    losses = [line["loss"] for line in logs["corpus"]]
    chosen = sorted({1, min(10, steps), steps // 4, steps // 2, steps})
    values = {
        "run_steps": str(steps), "warmup_steps": str(math.ceil(config.warmup_ratio * steps)),
        "lr_peak": f"{config.learning_rate:g}", "loss_table": table(
            ["step", *map(str, chosen)],
            [["learning rate", *(f"{rates[s - 1]:.5f}"
                                 for s in chosen)], ["loss", *(f"{losses[s - 1]:.3f}" for s in chosen)]])
    }
    return values, {
        "learning_rate.svg": curve([(s + 1, rate) for s, rate in enumerate(rates)], "step", "learning rate"),
        "loss.svg": curve([(s + 1, loss) for s, loss in enumerate(losses)], "step", "loss, nats a token")
    }


# ------------------------------------------------------------------------------------------------------------

def target_loss(model: Transformer, tokenizer: Tokenizer) -> float:
    """Mean loss per target token of the training questions."""
    exam = ExamRows(read_benchmark(DATA / "exam" / "Train"), tokenizer, EXAM_SEQUENCE, SEED, modes=(True,))
    total = count = 0.0
    with torch.no_grad():
        for row in exam.rows(exam.examples):
            labels = torch.from_numpy(row.labels)[None]
            total += float(
                model(torch.from_numpy(row.input_ids)[None],
                      labels,
                      positions=torch.from_numpy(row.positions)[None],
                      document_ids=torch.from_numpy(row.document_ids)[None]))
            count += int((labels >= 0).sum())
    return total / count


def lora(work: Path, tokenizer: Tokenizer) -> tuple[dict[str, str], dict[str, str]]:
    base = work / "runs" / "corpus" / "model"
    rows = []
    before, _ = load_pretrained(base)
    everything = sum(w.numel() for w in before.parameters())
    rows.append(["before", "0", "", f"{target_loss(before.eval(), tokenizer):.4f}"])
    for name, title in (("lora", "LoRA on q_proj and v_proj, as in the paper"),
                        ("lora_all", "LoRA on all linear layers")):
        model, _ = load_pretrained(base)
        load_adapter(model, work / "runs" / name / "adapter")
        trained = sum(w.numel() for w in model.parameters() if w.requires_grad)
        rows.append([
            title, f"{trained:,}", f"{100 * trained / everything:.1f} %",
            f"{target_loss(model.eval(), tokenizer):.4f}"
        ])
        if name == "lora":
            adapted = model
    full, _ = load_pretrained(work / "runs" / "full" / "model")
    rows.append(
        ["full fine-tuning", f"{everything:,}", "100.0 %", f"{target_loss(full.eval(), tokenizer):.4f}"])
    name, layer = next(iter(adapted_layers(adapted).items()))
    delta = (layer.scale * layer.lora_B @ layer.lora_A).detach()
    values = torch.linalg.svdvals(delta)
    x = before.embed_tokens(torch.tensor([tokenizer.encode("Insulin", bos=True)]))
    with torch.no_grad():
        n = before.layers[0].input_layernorm(x)
        old = F.linear(n, layer.weight)
        assert torch.allclose(layer(n), old + n @ delta.T, atol=1e-4)  # one layer, two ways
        moved = float((n @ delta.T).norm() / old.norm())
    fresh, _ = load_pretrained(base)
    apply_lora(fresh, layer.rank, layer.alpha, 0.0, "q_proj,v_proj", seed=SEED)
    first = ExamRows(read_benchmark(DATA / "exam" / "Train"), tokenizer, EXAM_SEQUENCE, SEED, modes=(True,))
    row = first.rows(first.examples[:1])[0]
    fresh(torch.from_numpy(row.input_ids)[None], torch.from_numpy(row.labels)[None]).backward()
    start = adapted_layers(fresh)[name]
    result = {
        "lora_name": name, "lora_layers": str(len(adapted_layers(adapted))), "lora_rank": str(layer.rank),
        "lora_alpha": f"{layer.alpha:g}", "lora_scale": f"{layer.scale:g}", "lora_norms": columns(
            [[name, shape_of(w), f"norm {float(w.detach().norm()):.3f}"]
             for name, w in (("W", layer.weight), ("A", layer.lora_A), ("B", layer.lora_B))] +
            [[f"update = {layer.scale:g} B A",
              shape_of(delta), f"norm {float(delta.norm()):.3f}"]]),
        "lora_share": f"{100 * float(delta.norm() / layer.weight.detach().norm()):.1f}",
        "lora_moved": f"{100 * moved:.1f}", "lora_singular": " ".join(f"{float(s):.3f}"
                                                                      for s in values[:layer.rank]),
        "lora_next": f"{float(values[layer.rank]):.4f}", "grad_A": f"{float(start.lora_A.grad.norm()):.4f}",
        "grad_B": f"{float(start.lora_B.grad.norm()):.3f}", "lora_table": table(
            ["trained for " + str(STEPS["exam"]) + " steps", "parameters", "share", "loss per target token"],
            rows), "lora_command": typed(["python mmed/train.py",
                                          *commands(Path("build/tour"))["lora"]]), "full_command": typed(
                                              ["python mmed/train.py", *commands(Path("build/tour"))["full"]])
    }
    return result, {"lora.svg": lora_boxes(*layer.weight.shape, layer.rank)}
