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
from mmed.config import parse_command_line
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
SHOWN_AT = Path("build/tour")  # where the page's commands find and leave their files


def commands(work: Path) -> dict[str, list[str]]:
    """run -> the arguments of mmed/train.py."""
    streams = ",".join(f"{work}/streams/{code}" for code in LANGUAGES)
    exam = [f"--model={work}/runs/corpus/model", f"--data={DATA}/exam/Train",
            f"--sequence_length={EXAM_SEQUENCE}", "--global_batch_size=8", f"--max_steps={STEPS['exam']}",
            "--warmup_ratio=0.1", f"--seed={SEED}"]
    lora = [*exam, "--lora_rank=8", "--lora_alpha=16", "--lora_dropout=0"]
    return {
        "corpus": ["demo_base", f"--model={work}/blank", f"--data={streams}", f"--sequence_length={SEQUENCE}",
                   f"--max_steps={STEPS['corpus']}", "--learning_rate=5e-3", "--warmup_ratio=0.1",
                   f"--seed={SEED}", f"--out={work}/runs/corpus"],
        "full": ["demo_full", *exam, "--learning_rate=3e-3", f"--out={work}/runs/full"],
        "lora": ["demo_lora", *lora, f"--out={work}/runs/lora"],
        "lora_all": ["demo_lora", *lora, "--lora_targets=all-linear", f"--out={work}/runs/lora_all"]}


def run(work: Path) -> dict[str, object]:
    tokenizer = load_tokenizer(work / "tokenizer")
    shape = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, rope_theta=1000.0, rms_norm_eps=1e-5,
        initializer_range=0.125, extra={"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id,
                                        "pad_token_id": tokenizer.pad_id})
    save_pretrained(Transformer(shape).init_weights(SEED), tokenizer, work / "blank")
    values: dict[str, object] = {}
    for name, arguments in commands(work).items():
        recipe, config = parse_command_line([*arguments, "--log_every=1", "--save_every=1000"])
        assert train(recipe, config) == 0
        values[f"{name}_command"] = typed(["python mmed/train.py", *commands(SHOWN_AT)[name]])
    del values["lora_all_command"]
    lines = (work / "runs" / "corpus" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    log = list(map(json.loads, lines))
    return (values | forward(work, tokenizer) | step(work, tokenizer, log) | schedule(work, log)
            | lora(work, tokenizer))


def shape_of(x: Tensor) -> str:
    return "(" + ", ".join(map(str, x.shape)) + ")"


def columns(rows: list[list[str]]) -> str:
    """Rows of text under each other."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("   ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
                     for row in rows)


def few(x: Tensor, count: int = 4, digits: int = 3) -> str:
    return " ".join(f"{float(v):.{digits}f}" for v in x.flatten()[:count])


def attention_by_hand(model: Transformer, block, x: Tensor, rope: tuple[Tensor, Tensor],
                      lines: list[list[str]]) -> tuple[Tensor, Tensor]:
    """(what attention adds, its probabilities (H, T, T)) of one block; `lines` gets every line with its
    shape.
    """
    T = x.shape[1]
    H, K = model.config.num_attention_heads, model.config.num_key_value_heads
    E, attention = model.config.head_dim, block.self_attn

    def note(code: str, value: Tensor, what: str) -> Tensor:
        lines.append([f"`{code}`", shape_of(value), what])
        return value

    def heads(projection: torch.nn.Module, count: int) -> Tensor:
        return projection(n).view(1, T, count, E).transpose(1, 2)

    n = note("n = input_layernorm(x)", block.input_layernorm(x),
             "each token's numbers divided by their root mean square")
    q = note("q = q_proj(n)", heads(attention.q_proj, H), "what each token looks for, in every query head")
    k = note("k = k_proj(n)", heads(attention.k_proj, K),
             "what each token offers; two query heads share one")
    v = note("v = v_proj(n)", heads(attention.v_proj, K),
             "what each token hands over when it is looked at")
    q = note("q, k = rotate(q), rotate(k)", rotate(q, *rope),
             "turned by an angle that grows with the position")
    k = rotate(k, *rope).repeat_interleave(H // K, 1)
    v = v.repeat_interleave(H // K, 1)
    scores = note("scores = q @ k.T / sqrt(E)", q @ k.transpose(2, 3) * E**-0.5,
                  "how well each query fits each key")
    seen = torch.ones(T, T, dtype=torch.bool).tril()
    p = note("p = softmax(scores + mask)", scores.masked_fill(~seen, -torch.inf).softmax(-1),
             "the attention pattern; nobody sees the future")
    out = note("out = p @ v", (p @ v).transpose(1, 2).reshape(1, T, H * E), "the heads side by side")
    return note("x = x + o_proj(out)", attention.o_proj(out), "added to the token's own numbers"), p[0]


def forward_by_hand(model: Transformer, ids: list[int]) -> tuple[Tensor, list[Tensor], list[list[str]]]:
    """(logits (T, V), attention probabilities (H, T, T) of each block, every line with its shape)."""
    config = model.config
    x = model.embed_tokens(torch.tensor([ids]))
    lines = [["`x = embed_tokens(ids)`", shape_of(x), "a row of the embedding matrix for each id"]]
    speeds = rope_frequencies(config, config.rope_theta, True, torch.device("cpu"))
    angles = torch.arange(len(ids))[:, None] * torch.cat((speeds, speeds))
    rope = angles.cos()[None, None], angles.sin()[None, None]
    probabilities = []
    for number, block in enumerate(model.layers):
        kept = lines if number == 0 else []  # the second block is the same again
        added, p = attention_by_hand(model, block, x, rope, kept)
        probabilities.append(p)
        x = x + added
        n = block.post_attention_layernorm(x)
        inner = F.silu(block.mlp.gate_proj(n)) * block.mlp.up_proj(n)
        kept.append(["`inner = silu(gate_proj(n)) * up_proj(n)`", shape_of(inner),
                     "each token by itself; n is x, normalised again"])
        x = x + block.mlp.down_proj(inner)
        kept.append(["`x = x + down_proj(inner)`", shape_of(x),
                     "end of block 0; block 1 does the same with weights of its own"])
    logits = model.norm(x) @ model.head_weight.T
    lines.append(["`logits = lm_head(norm(x))`", shape_of(logits),
                  "a score for every piece of the vocabulary, at every place"])
    assert torch.allclose(logits, model(torch.tensor([ids])), atol=1e-4)
    return logits[0], probabilities, lines


@torch.no_grad()
def forward(work: Path, tokenizer: Tokenizer) -> dict[str, object]:
    model, _ = load_pretrained(work / "runs" / "corpus" / "model")
    config = model.eval().config
    text = ". ".join(documents(work / "unique" / "en" / "kept")["insulin"].text.split(". ")[:SENTENCES]) + "."
    ids = tokenizer.encode(text, bos=True)
    pieces, T = [tokenizer.piece(i) for i in ids], len(ids)
    logits, probabilities, lines = forward_by_hand(model, ids)
    logs = logits.log_softmax(-1)
    losses = -logs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    summed = model(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]))
    assert torch.allclose(losses.sum(), summed, atol=1e-3)
    blank, _ = load_pretrained(work / "blank")
    untrained = blank(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]])) / (T - 1)
    earlier, place = (i for i, piece in enumerate(pieces) if piece == "▁Insulin")
    # the head that is drawn: of all, it looks most at the same word, earlier
    _, layer, head = max((float(p[place, earlier]), layer, head)
                         for layer, heads in enumerate(probabilities) for head, p in enumerate(heads))
    p = probabilities[layer][head]
    looked = p[place].topk(3)
    top = logs[T - 3].exp().topk(5)  # what should come last but one: the text ends with a full stop
    worst = int(losses.argmax())
    pages = sum(len(documents(work / "unique" / code / "kept")) for code in LANGUAGES)
    embedded = model.embed_tokens(torch.tensor(ids))[place]
    norm = model.layers[0].input_layernorm
    return {
        "forward_text": text, "forward_ids": " ".join(map(str, ids)), "forward_pieces": shown(*pieces),
        "shapes": table(["line", "shape", "what it is"], lines), "T": T, "D": config.hidden_size,
        "H": config.num_attention_heads, "K": config.num_key_value_heads, "E": config.head_dim,
        "F": config.intermediate_size, "V": config.vocab_size,
        "parameters": sum(w.numel() for w in model.parameters()), "place": place, "embedding": few(embedded),
        "rms": float(embedded.pow(2).mean().sqrt()), "normed": few(norm(embedded)),
        "norm_weight": few(norm.weight), **rotation(model, norm(embedded), place),
        "layer": layer, "head": head,
        "attention_row": ", ".join(f"{shown(pieces[int(j)])} at {int(j)} with {float(w):.3f}"
                                   for w, j in zip(*looked)),
        "after": shown(*pieces[place:T - 2]), "after_next": shown(pieces[T - 2]),
        "top": table(["next piece", "probability"],
                     [[shown(tokenizer.piece(int(i))), f"{float(w):.4f}"] for w, i in zip(*top)]),
        "loss_sum": float(summed), "loss_mean": float(losses.mean()), "loss_count": T - 1,
        "loss_blank": float(untrained), "loss_uniform": math.log(config.vocab_size), "pages": pages,
        "loss_pages": math.log(pages), "loss_worst": float(losses[worst]),
        "loss_worst_piece": shown(pieces[worst + 1]), "loss_worst_p": math.exp(-float(losses[worst])),
        "perplexity": math.exp(float(losses.mean())),
        "attention.svg": attention_map(p.tolist(), pieces, f"Attention of layer {layer}, head {head}"),
        "loss_per_token.svg": loss_bars(losses.tolist(), pieces[1:])}


def rotation(model: Transformer, normed: Tensor, place: int) -> dict[str, object]:
    """The first pair of the first query head, before and after the turn."""
    config = model.config
    speeds = rope_frequencies(config, config.rope_theta, True, torch.device("cpu"))
    q = model.layers[0].self_attn.q_proj(normed)[:config.head_dim]
    half = config.head_dim // 2
    a, b, angle = float(q[0]), float(q[half]), place * float(speeds[0])
    turned = (a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle))
    angles = place * torch.cat((speeds, speeds))
    rotated = rotate(q, angles.cos(), angles.sin())
    assert abs(float(rotated[0]) - turned[0]) < 1e-4 and abs(float(rotated[half]) - turned[1]) < 1e-4
    return {"q_pair": f"({a:.3f}, {b:.3f})", "q_turned": f"({turned[0]:.3f}, {turned[1]:.3f})",
            "q_angle": angle, "speeds": few(speeds, half, 4), "half": half}


def step(work: Path, tokenizer: Tokenizer, log: list[dict]) -> dict[str, object]:
    """Step 1 of the run once more, by the functions that training calls, with one weight followed through."""
    model, _ = load_pretrained(work / "blank")
    _, config = parse_command_line(commands(work)["corpus"])
    batch = Batches(config, make_rows(config, tokenizer), torch.device("cpu"))(0)
    optimizer = make_optimizer(model.train(), config)
    lr, decay = learning_rate(config, 0, config.max_steps), config.weight_decay
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss = forward_backward(model, batch, 1 / batch.targets, contextlib.nullcontext)
    weight = model.layers[0].self_attn.q_proj.weight
    before, gradient = float(weight.detach()[0, 0]), float(weight.grad[0, 0])
    norm = float(update(model, optimizer, config.max_grad_norm, loss))
    after = float(weight.detach()[0, 0])
    g = gradient / max(1.0, norm / config.max_grad_norm)
    m, v = (1 - BETA1) * g, (1 - config.beta2) * g * g
    decayed = before * (1 - lr * decay)
    by_hand = decayed - lr * (m / (1 - BETA1)) / (math.sqrt(v / (1 - config.beta2)) + EPSILON)
    mean = float(loss) / batch.targets
    assert abs(by_hand - after) < 1e-6 and abs(norm / log[0]["grad_norm"] - 1) < 1e-3
    assert abs(mean / log[0]["loss"] - 1) < 1e-4
    return {
        "batch_shape": shape_of(batch.micro[0]["input_ids"]), "batch_targets": batch.targets,
        "batch_positions": batch.positions, "batch_loss": float(loss), "batch_mean": mean,
        "grad_norm": norm, "clip": config.max_grad_norm,
        "weight_step": columns([
            ["weight before", f"{before:.6f}", ""],
            ["gradient", f"{gradient:.6f}", ""],
            [f"g = gradient / {norm / config.max_grad_norm:.3f}", f"{g:.6f}", "clipped"],
            [f"m = {1 - BETA1:.1g} g", f"{m:.3e}", "running mean of the gradients, so far of one"],
            [f"v = {1 - config.beta2:.1g} g^2", f"{v:.3e}", "running mean of their squares"],
            [f"decay: times 1 - {lr:g} x {decay:g}", f"{decayed:.6f}", ""],
            [f"minus {lr:g} x (m / {1 - BETA1:.1g}) / sqrt(v / {1 - config.beta2:.1g})",
             f"{by_hand:.6f}", ""],
            ["weight after, in the run", f"{after:.6f}", ""]])}


def schedule(work: Path, log: list[dict]) -> dict[str, object]:
    _, config = parse_command_line(commands(work)["corpus"])
    steps = config.max_steps
    rates = [learning_rate(config, s, steps) for s in range(steps)]
    losses = [line["loss"] for line in log]
    assert all(abs(rate - line["lr"]) < 1e-9 for rate, line in zip(rates, log, strict=True))
    chosen = sorted({1, min(10, steps), steps // 4, steps // 2, steps})
    return {
        "run_steps": steps, "warmup_steps": math.ceil(config.warmup_ratio * steps),
        "lr_peak": config.learning_rate,
        "loss_table": table(["step", *map(str, chosen)],
                            [["learning rate", *(f"{rates[s - 1]:.5f}" for s in chosen)],
                             ["loss", *(f"{losses[s - 1]:.3f}" for s in chosen)]]),
        "learning_rate.svg": curve(list(enumerate(rates, 1)), "step", "learning rate"),
        "loss.svg": curve(list(enumerate(losses, 1)), "step", "loss, nats a token")}


def exam_losses(model: Transformer, tokenizer: Tokenizer, count: int | None = None) -> tuple[Tensor, int]:
    """(summed loss, target tokens) of the training questions, or of the first `count` in one row."""
    exam = ExamRows(read_benchmark(DATA / "exam" / "Train"), tokenizer, EXAM_SEQUENCE, SEED, modes=(True,))
    total, targets = torch.zeros(()), 0
    for row in exam.rows(exam.examples[:count]):
        ids, labels, positions, document_ids = (
            torch.from_numpy(values)[None]
            for values in (row.input_ids, row.labels, row.positions, row.document_ids))
        total = total + model(ids, labels, positions=positions, document_ids=document_ids)
        targets += int((labels >= 0).sum())
    return total, targets


@torch.no_grad()
def loss_row(title: str, model: Transformer, tokenizer: Tokenizer, trained: int, of: int) -> list[str]:
    total, targets = exam_losses(model.eval(), tokenizer)
    share = f"{100 * trained / of:.1f} %" if trained else ""
    return [title, f"{trained:,}", share, f"{float(total) / targets:.4f}"]


def lora(work: Path, tokenizer: Tokenizer) -> dict[str, object]:
    base = work / "runs" / "corpus" / "model"
    before, adapted, all_linear, fresh = (load_pretrained(base)[0] for _ in range(4))
    load_adapter(adapted, work / "runs" / "lora" / "adapter")
    load_adapter(all_linear, work / "runs" / "lora_all" / "adapter")
    full, _ = load_pretrained(work / "runs" / "full" / "model")
    everything, two, all_of_them = (sum(w.numel() for w in model.parameters() if w.requires_grad)
                                    for model in (full, adapted, all_linear))
    rows = [loss_row(title, model, tokenizer, trained, everything) for title, model, trained in (
        ("before", before, 0), ("LoRA on q_proj and v_proj, as in the paper", adapted, two),
        ("LoRA on all linear layers", all_linear, all_of_them), ("full fine-tuning", full, everything))]
    name, layer = next(iter(adapted_layers(adapted).items()))
    delta = (layer.scale * layer.lora_B @ layer.lora_A).detach()
    singular = torch.linalg.svdvals(delta)
    with torch.no_grad():
        x = before.embed_tokens(torch.tensor([tokenizer.encode("Insulin", bos=True)]))
        n = before.layers[0].input_layernorm(x)
        old = F.linear(n, layer.weight)
        assert torch.allclose(layer(n), old + n @ delta.T, atol=1e-4)  # one layer, two ways
        moved = float((n @ delta.T).norm() / old.norm())
    apply_lora(fresh, layer.rank, layer.alpha, 0.0, "q_proj,v_proj", seed=SEED)
    exam_losses(fresh, tokenizer, 1)[0].backward()
    start = adapted_layers(fresh)[name]
    norms = [[title, shape_of(w), f"norm {float(w.detach().norm()):.3f}"]
             for title, w in (("W", layer.weight), ("A", layer.lora_A), ("B", layer.lora_B),
                              (f"update = {layer.scale:g} B A", delta))]
    return {
        "lora_name": name, "lora_layers": len(adapted_layers(adapted)), "lora_rank": layer.rank,
        "lora_alpha": layer.alpha, "lora_scale": layer.scale, "lora_norms": columns(norms),
        "lora_share": 100 * float(delta.norm() / layer.weight.detach().norm()), "lora_moved": 100 * moved,
        "lora_singular": few(singular, layer.rank), "lora_next": float(singular[layer.rank]),
        "grad_A": float(start.lora_A.grad.norm()), "grad_B": float(start.lora_B.grad.norm()),
        "lora_table": table([f"trained for {STEPS['exam']} steps", "parameters", "share",
                             "loss per target token"], rows),
        "lora.svg": lora_boxes(*layer.weight.shape, layer.rank)}
