"""Decoding against a naive loop of full forward passes and against transformers' generate; log-likelihoods against full forwards."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from warm_start import run as warm_run

import mmed.utils.journal
from data_prep.mmedbench import main as make_benchmark
from mmed.checkpoints.pretrained import save_pretrained
from mmed.generate import generate, load_model, main, printable, score_many, score_options
from mmed.inference.cuda_graphs import StepGraphs
from mmed.inference.decoder import Decoder, Segment, decoder_for, passes
from mmed.inference.engine import common_length, sample, shared_beginnings
from mmed.inference.option_scores import int8_difference
from mmed.inference.quantize import Int8Linear
from mmed.inference.work_sharing import run_rounds
from mmed.lora import adapted_layers, apply_lora
from mmed.model import ModelConfig, Transformer
from mmed.tokenization.chat_template import encode_chat
from mmed.tokenizer import train_sentencepiece
from mmed.utils.errors import UsageError, UserError
from mmed.utils.journal import Journal

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
DEMO = Path(os.environ.get("MMED_DEMO", Path(__file__).resolve().parents[1] / "demo"))

# One line a family's worth of mathematics: what decoding must not depend on.
FAMILIES = {
    "llama": dict(),
    "grouped heads, tied": dict(num_key_value_heads=2, tie_word_embeddings=True),
    "packed qkv with biases": dict(packed_qkv=True, attention_bias=True, attention_out_bias=True, num_key_value_heads=2),
    "bloom": dict(position_embedding="alibi", norm="layer", gated_mlp=False, activation="gelu_tanh", mlp_bias=True, attention_bias=True,
                  packed_qkv=True, embedding_norm=True),
    "mistral": dict(sliding_window=7, num_key_value_heads=1),
    "qwen": dict(qk_norm=True, attention_bias=True, num_key_value_heads=2),
    "gemma": dict(norm="rms_plus_one", post_norms=True, scale_embedding=True, attention_softcap=5.0, final_softcap=3.0, qk_norm=True,
                  sliding_window=9, sliding_layers=(True, False), rope_local_theta=100.0, activation="gelu_tanh", tie_word_embeddings=True),
}


def tiny(seed: int, **fixed) -> Transformer:
    shape = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                 head_dim=8, max_position_embeddings=128, initializer_range=0.3)
    model = Transformer(ModelConfig(**shape | fixed)).init_weights(seed).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too, or a lost one would not show
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def random_prompts(rng: random.Random, count: int, longest: int = 40, vocab: int = 97) -> list[list[int]]:
    return [[rng.randrange(vocab) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@torch.no_grad()
def naive(model, prompt: list[int], limit: int, ends=()) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + limit:
        token = int(model(torch.tensor([ids]))[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt):]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_a_naive_loop_for_any_number_of_slots(family):
    rng = random.Random(family)
    model = tiny(rng.randrange(1000), **FAMILIES[family])
    prompts = random_prompts(rng, 11)
    limits = [rng.randint(0, 20) for _ in prompts]
    ends = [rng.randrange(97) for _ in range(4)]
    expected = [naive(model, prompt, limit, ends) for prompt, limit in zip(prompts, limits)]
    assert len({len(ids) for ids in expected}) > 2  # sequences end at different times, so slots are refilled
    for slots in (1, 3, 8, 32):
        assert generate(model, prompts, limits, end_ids=ends, slots=slots) == expected, slots
    order = rng.sample(range(11), 11)
    assert generate(model, [prompts[i] for i in order], [limits[i] for i in order], end_ids=ends, slots=4) == [expected[i] for i in order]


@pytest.mark.parametrize("seed", range(3))
def test_greedy_tokens_equal_transformers_generate(seed):
    transformers = pytest.importorskip("transformers")
    shape = dict(vocab_size=150, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=3,
                 head_dim=8, max_position_embeddings=128)
    torch.manual_seed(seed)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(initializer_range=0.2, **shape)).eval()
    ours = Transformer(ModelConfig(**shape)).eval()
    ours.load_state_dict({name.removeprefix("model."): value for name, value in theirs.state_dict().items()})
    rng = random.Random(seed)
    prompts, end = random_prompts(rng, 7, vocab=150), rng.randrange(150)
    theirs.generation_config.eos_token_id, theirs.generation_config.pad_token_id = end, 0
    for prompt, ids in zip(prompts, generate(ours, prompts, 24, end_ids=[end], slots=3)):
        tokens = torch.tensor([prompt])
        new = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=24, do_sample=False)[0, len(prompt):].tolist()
        assert ids == new[:new.index(end)] if end in new else ids == new


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_has_the_logits_of_a_full_forward(family, monkeypatch):
    """All layouts, attention over all slots and slot by slot, and the step as a GPU takes it (traced whole, without a graph)."""
    number = list(FAMILIES).index(family)
    model, rng = tiny(number, **FAMILIES[family]), random.Random(number)
    names = [name for name, _ in model.named_modules()]
    lengths = [3, 21, 12]
    rows = [[rng.randrange(97) for _ in range(n + 1)] for n in lengths]
    with torch.no_grad():
        full = [model(torch.tensor([row]))[0] for row in rows]
    with torch.inference_mode():
        for kind in ("plain", "packed", "one row", "in place"):
            decoder = Decoder(model, kind)
            cache = decoder.make_cache(3, 32)
            before = decoder.extend(cache, [Segment(slot, 0, row[:-1]) for slot, row in enumerate(rows)], [range(n) for n in lengths])
            for got, expected in zip(before, full):
                assert torch.allclose(got, expected[:-1], atol=2e-4), kind
            graphs = StepGraphs(decoder, cache, compiled=False, captured=False)
            graphs.compute = torch.compile(graphs.compute, fullgraph=True, backend="eager")
            steps = [decoder.step, lambda cache, *rest, graphs=graphs: graphs.step(*rest)] if kind == "plain" else [decoder.step]
            for call_tokens in (0, 10 ** 6):
                monkeypatch.setattr("mmed.inference.decoder.CALL_TOKENS", call_tokens)
                for step in steps:
                    got = step(cache, [row[-1] for row in rows], lengths)
                    assert torch.allclose(got, torch.stack([expected[-1] for expected in full]), atol=2e-4), (kind, call_tokens)
        torch._dynamo.reset()
    with torch.no_grad():
        assert [name for name, _ in model.named_modules()] == names
        assert torch.allclose(model(torch.tensor([rows[0]]))[0], full[0], atol=1e-5)


def test_a_layout_is_kept_until_a_weight_changes():
    model = tiny(1)
    with torch.no_grad():
        first = decoder_for(model, 8)
        assert decoder_for(model, 8) is first and decoder_for(model, 1) is not first
        model.layers[1].mlp.up_proj.weight.mul_(1.5)
        prompt = [5, 6, 7]
        assert generate(model, [prompt], 12) == [naive(model, prompt, 12)]


def test_in_bf16_every_token_is_within_rounding_of_the_likeliest():
    """The rule where sums are rounded to 8 bits: the tokens need not be the same for every batch, but each is a best one up to rounding."""
    model, rng = tiny(14).bfloat16(), random.Random(14)
    prompts = random_prompts(rng, 9)
    for slots in (1, 8):
        for prompt, new in zip(prompts, generate(model, prompts, 12, slots=slots)):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + new]))[0, len(prompt) - 1:-1].float()
            chosen = logits.gather(1, torch.tensor(new)[:, None])[:, 0]
            assert (logits.max(-1).values - chosen <= 2 ** -4 * logits.abs().max(-1).values).all()


def test_int8_weights_change_little_and_say_how_much():
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(40, 64, generator=generator), torch.randn(40, generator=generator)
    for rows in (1, 3, 30):
        x = torch.randn(rows, 64, generator=generator)
        bound = x.abs().sum(1, keepdim=True) * weight.abs().amax(1) / 127 / 2  # no weight is off by more than half a scale
        bound = bound + 2 ** -8 * (x.abs() @ weight.abs().t() + 1) * 2         # few rows: inputs and sums in bf16
        assert ((Int8Linear(weight, bias)(x) - torch.nn.functional.linear(x, weight, bias)).abs() <= bound + 1e-4).all()
    model, prompts = tiny(15), random_prompts(random.Random(15), 40)
    words = int8_difference(model, prompts)
    assert "14 prompts" in words and float(words.split("same in ")[1].split("%")[0]) > 80 and model.int8
    generate(model, prompts, 5)
    assert decoder_for(model, 8).kind == "int8"


# -------------------------------------------------------------------------------------------------------- shared beginnings

@pytest.mark.parametrize("seed", range(30))
def test_shared_beginnings_are_shared_and_no_grouping_saves_more(seed):
    rng = random.Random(seed)
    stems = [[rng.randrange(3) for _ in range(rng.choice((8, 16, 40)))] for _ in range(3)]
    prompts = [rng.choice(stems) + [rng.randrange(3) for _ in range(rng.randint(1, 30))] for _ in range(rng.randint(0, 7))]
    groups = shared_beginnings(prompts)
    members = [i for _, group in groups for i in group]
    assert len(set(members)) == len(members)
    for length, group in groups:
        assert len(group) > 1 and all(prompts[i][:length] == prompts[group[0]][:length] and length < len(prompts[i]) for i in group)

    def best(rest):  # every partition
        if not rest:
            return 0
        first, *others = rest
        top = best(others)
        for mask in range(1, 2 ** len(others)):
            group = [first] + [i for bit, i in enumerate(others) if mask >> bit & 1]
            length = min(common_length(prompts[first], prompts[i]) for i in group[1:])
            top = max(top, length * (len(group) - 1) + best([i for i in others if i not in group]))
        return top

    assert sum(length * (len(group) - 1) for length, group in groups) == best(list(range(len(prompts))))


def test_what_prompts_share_is_computed_once(monkeypatch):
    rng, model = random.Random(4), tiny(4)
    stem = [rng.randrange(97) for _ in range(48)]
    prompts = [stem + [rng.randrange(97) for _ in range(rng.randint(1, 6))] for _ in range(10)] + random_prompts(rng, 3)
    computed = []
    flat_pass = Decoder.flat_pass
    monkeypatch.setattr(Decoder, "flat_pass", lambda self, cache, segments, rows: (
        computed.append(sum(len(segment.ids) for segment in segments)), flat_pass(self, cache, segments, rows))[1])
    new = generate(model, prompts, 6, slots=4)
    assert sum(computed) == sum(map(len, prompts)) - 9 * 48
    computed.clear()
    scores = score_many(model, prompts, [[[1, 2, 3], [1, 2, 4], [5]]] * len(prompts))
    assert sum(computed) == sum(map(len, prompts)) - 9 * 48 + 2 * len(prompts)  # of each tree the two inner nodes
    monkeypatch.undo()
    assert new == [naive(model, prompt, 6) for prompt in prompts]
    assert scores[3] == pytest.approx(score_options(model, prompts[3], [[1, 2, 3], [1, 2, 4], [5]]), abs=1e-4)


def test_an_adapter_that_is_not_merged_is_used():
    model = tiny(3)
    apply_lora(model, rank=2, alpha=4, dropout=0.5, targets="q_proj,down_proj")
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_B.normal_(0, 0.3, generator=torch.Generator().manual_seed(4))
    prompts = random_prompts(random.Random(5), 4)
    assert generate(model.eval(), prompts, 10, slots=2) == [naive(model, prompt, 10) for prompt in prompts]


def test_prompts_longer_than_a_pass_come_in_pieces(monkeypatch):
    monkeypatch.setattr("mmed.inference.decoder.PASS_TOKENS", 16)
    model, rng = tiny(6), random.Random(6)
    prompts = [[rng.randrange(97) for _ in range(n)] for n in (50, 49, 16, 17, 3, 33)]
    assert generate(model, prompts, 6, slots=3) == [naive(model, prompt, 6) for prompt in prompts]
    options = [[[1, 2, 3], [1, 4, 5], [6]]] * 6
    expected = score_many(tiny(6), prompts, options)
    monkeypatch.setattr("mmed.inference.decoder.PASS_TOKENS", 1024)
    for one, other in zip(expected, score_many(tiny(6), prompts, options)):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_passes_hold_every_token_once_and_no_more_than_allowed(seed):
    rng = random.Random(seed)
    segments = [Segment(i, rng.randint(0, 9), list(range(rng.randint(0, 40))), own=torch.ones(1, 1) if rng.random() < 0.2 else None) for i in range(20)]
    parts = passes(segments, 32)
    ids = [[] for _ in segments]
    for part in parts:
        assert sum(len(piece.ids) for _, _, piece in part) <= 32 or len(part) == 1
        for i, offset, piece in part:
            assert offset == len(ids[i]) and piece.start == segments[i].start + offset and piece.slot == i
            ids[i] += piece.ids
    assert ids == [segment.ids for segment in segments]
    assert len(parts) <= sum(len(segment.ids) for segment in segments) // 32 + 1 + sum(2 for segment in segments if segment.own is not None)


def test_sampling_depends_on_seed_and_number_only():
    model, rng = tiny(7), random.Random(7)
    prompts = [*random_prompts(rng, 6), [1, 2, 3], [1, 2, 3]]
    how = dict(temperature=1.3, top_k=30, top_p=0.95)
    first = generate(model, prompts, 12, seed=5, slots=8, **how)
    assert first == generate(model, prompts, 12, seed=5, slots=3, **how)
    assert first[3:5] == generate(model, prompts[3:5], 12, seed=5, numbers=[3, 4], slots=1, **how)
    assert first != generate(model, prompts, 12, seed=6, slots=8, **how)
    assert first[-1] != first[-2]  # the same prompt twice is two draws


def test_sampling_follows_the_distribution_and_its_limits():
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0]])
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    rows = logits.expand(4000, 4)
    share = torch.bincount(sample(rows, 0.7, 0, 1.0, uniform), minlength=4) / 4000
    assert torch.allclose(share, (logits[0] / 0.7).softmax(-1), atol=1e-3)
    assert set(sample(rows, 1.0, 2, 1.0, uniform).tolist()) == {0, 2}
    assert set(sample(rows, 1.0, 0, 0.5, uniform).tolist()) == {0}     # p(0) = 0.64 holds half by itself
    assert set(sample(rows, 1.0, 0, 0.8, uniform).tolist()) == {0, 2}  # 0.64 + 0.24


def test_stop_is_asked_by_each_sequences_own_length():
    model, rng = tiny(8), random.Random(8)
    prompts = random_prompts(rng, 9)
    full = [naive(model, prompt, 40) for prompt in prompts]
    wanted = rng.randrange(97)
    expected = []
    for ids in full:
        length = next((n for n in range(8, 40, 8) if ids[n - 1] % 3 == wanted % 3), 40)
        expected.append(ids[:length])
    assert len({len(ids) for ids in expected}) > 1
    for slots in (1, 4):
        assert generate(model, prompts, 40, slots=slots, stop=lambda ids: ids[-1] % 3 == wanted % 3) == expected


def test_calls_report_each_sequence_once_and_each_token_in_order():
    model = tiny(9)
    prompts = random_prompts(random.Random(9), 5)
    done, tokens = {}, {i: [] for i in range(5)}
    result = generate(model, prompts, 7, slots=2, on_done=lambda i, ids: done.setdefault(i, list(ids)), on_token=lambda i, token: tokens[i].append(token))
    assert [done[i] for i in range(5)] == result == [tokens[i] for i in range(5)]


def test_a_sequence_ends_where_the_positions_end_and_a_longer_prompt_is_refused():
    model = tiny(10, max_position_embeddings=20)
    assert len(generate(model, [[1] * 17], 50)[0]) == 3
    with pytest.raises(UserError, match=r"prompt 1 has 20 tokens.*20 positions"):
        generate(model, [[1], [1] * 20], 5)
    with pytest.raises(UserError, match="prompt 0 is empty"):
        generate(model, [[]], 5)


def test_logits_that_are_not_finite_are_an_error():
    model = tiny(11)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        generate(model, [[1, 2]], 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_option_scores_equal_full_forwards(family):
    rng = random.Random(family + "!")
    model = tiny(rng.randrange(1000), **FAMILIES[family])
    prompts = random_prompts(rng, 9)
    options = [[[rng.randrange(97) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(0, 5))] for _ in prompts]
    options[2] = [[4, 5, 6], [4, 5], [4, 5, 6]]  # one the beginning of another, one twice
    scores = score_many(model, prompts, options)
    with torch.no_grad():
        for prompt, choices, row in zip(prompts, options, scores):
            for choice, score in zip(choices, row, strict=True):
                logs = model(torch.tensor([prompt + choice]))[0].double().log_softmax(-1)
                assert abs(score - sum(float(logs[len(prompt) - 1 + n, token]) for n, token in enumerate(choice))) < 1e-3
    assert scores[2][0] == pytest.approx(scores[2][2], abs=1e-5) and scores[2][1] > scores[2][0]
    assert score_options(model, prompts[0], options[0]) == pytest.approx(scores[0], abs=1e-4)


def test_prefill_leaves_other_slots_alone():
    decoder = decoder_for(tiny(12), 4)
    cache = decoder.make_cache(3, 30)
    with torch.inference_mode():
        decoder.extend(cache, [Segment(1, 0, [3, 4, 5])], [(2,)])
    assert cache.keys[:, [0, 2]].abs().sum() == 0 and cache.keys[:, 1].abs().sum() > 0


# --------------------------------------------------------------------------------------------------------- command line

@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("generate")
    tokenizer = train_sentencepiece(["fever and cough in the lung, pain in the heart"] * 20, root / "tokenizer", 310)
    model = tiny(13, vocab_size=tokenizer.vocab_size, max_position_embeddings=1000)
    save_pretrained(model, tokenizer, root / "model")
    return root / "model"


def test_a_file_of_prompts_is_completed_and_a_killed_run_goes_on(model_folder, tmp_path, capsys):
    rows = [{"id": i, "prompt": "fever and cough"[:3 + i % 9]} for i in range(40)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model", str(model_folder), "--input", str(source), "--max_new_tokens", "6", "--slots", "2", "--temperature", "1"]
    main([*arguments, "--out", str(tmp_path / "whole.jsonl")])
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert [json.loads(line)["id"] for line in whole.splitlines()] == list(range(40))

    calls = []
    keep = mmed.utils.journal.Journal.add

    def add_then_die(self, number, rows):
        keep(self, number, rows)
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt

    mmed.utils.journal.Journal.add = add_then_die
    try:
        with pytest.raises(KeyboardInterrupt):
            main([*arguments, "--out", str(tmp_path / "cut.jsonl")])
    finally:
        mmed.utils.journal.Journal.add = keep
    with open(tmp_path / "cut.jsonl.partial", "ab") as file:
        file.write(b'{"round": 32, "ro')
    main([*arguments, "--out", str(tmp_path / "cut.jsonl")])
    assert (tmp_path / "cut.jsonl").read_bytes() == whole
    with pytest.raises(UserError, match="already there"):
        main([*arguments, "--out", str(tmp_path / "cut.jsonl")])


@pytest.mark.parametrize("kind", ["generate", "eval"])
def test_two_processes_write_the_file_that_one_writes(model_folder, tmp_path, kind):
    """Also with the weights cut over both."""
    if kind == "generate":
        (tmp_path / "in.jsonl").write_text("".join(json.dumps({"id": i, "prompt": "fever and cough"[:3 + i % 9]}) + "\n" for i in range(20)))
        base = ["--model", str(model_folder), "--input", str(tmp_path / "in.jsonl"), "--max_new_tokens", "3", "--slots", "1"]
        out, result = "{}.jsonl", [""]
    else:
        item = {"options": {"A": "fever", "B": "cough"}, "answer_idx": "A", "rationale": "pain"}
        (tmp_path / "English.jsonl").write_text("".join(json.dumps(item | {"question": "lung " * (i + 1)}) + "\n" for i in range(20)))
        base = ["--model", str(model_folder), "--data", str(tmp_path / "English.jsonl"), "--max_new_tokens", "5", "--slots", "1",
                "--scoring", "both"]
        out, result = "{}", ["predictions.jsonl", "results.json"]

    def arguments(name: str, *more: str) -> list[str]:
        return [*base, "--out", str(tmp_path / out.format(name)), *more]

    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", f"mmed.{kind}", *arguments("two")],
                          capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=Path(__file__).resolve().parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    warm_run(arguments("one"), module=f"mmed.{kind}")
    warm_run(arguments("cut", "--shard"), ranks=2, module=f"mmed.{kind}")
    for name in ("two", "cut"):
        for file in result:
            assert (tmp_path / out.format(name) / file).read_bytes() == (tmp_path / out.format("one") / file).read_bytes()
        assert not list(tmp_path.rglob("*.partial"))


def gone_within(seconds: float, group: int) -> bool:
    """Whether no process of the group is left after so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("grace", [30, 0.2])
def test_a_rank_whose_launcher_was_killed_ends_and_gives_its_journal_free(tmp_path, grace):
    """By SIGTERM; one that is deaf to it (grace 0.2) by SIGKILL."""
    source = f"""
import os, signal, time
from pathlib import Path
from mmed.training import distributed
from mmed.utils.journal import Journal
distributed.GRACE_SECONDS = {grace}
if os.fork() == 0:
    if {grace} < 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    journal = Journal(Path({str(tmp_path / "x.jsonl")!r}), {{}})
    distributed.end_with_launcher()
    print("working", flush=True)
time.sleep(600)
"""
    launcher = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, start_new_session=True, cwd=Path(__file__).resolve().parents[1])
    assert launcher.stdout.readline() == b"working\n"
    with pytest.raises(UserError):
        Journal(tmp_path / "x.jsonl", {})
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    assert gone_within(20, launcher.pid)
    Journal(tmp_path / "x.jsonl", {}).file.close()


class KilledEvaluation:
    """An evaluation started as its own processes, killed with SIGKILL; of torchrun alone, whose processes notice."""

    def __init__(self, folder: Path, *options: object):
        self.folder, self.options = folder, [str(option) for option in options]

    def start(self, name: str, ranks: int = 1) -> subprocess.Popen:
        launch = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"] if ranks > 1 else []
        return subprocess.Popen([sys.executable, "-m", *launch, "mmed.eval", *self.options, "--out", str(self.folder / name)], start_new_session=True,
                                env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=Path(__file__).resolve().parents[1], stdout=subprocess.DEVNULL,
                                stderr=open(self.folder / "errors", "w"))

    def whole(self, name: str) -> None:
        assert self.start(name).wait() == 0, (self.folder / "errors").read_text()[-1000:]

    def journals(self, name: str) -> list[Path]:
        return list((self.folder / name).glob("*.partial"))

    def rounds_done(self, name: str) -> int:
        return sum(max(0, path.read_bytes().count(b"\n") - 1) for path in self.journals(name))

    def kill_when(self, name: str, ranks: int, ready, seconds_later: float = 0) -> None:
        process = self.start(name, ranks)
        while not ready():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        time.sleep(seconds_later)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert gone_within(20, process.pid)

    def same(self, one: str, other: str) -> list[str]:
        files = sorted(path.name for path in (self.folder / one).iterdir())
        assert files == sorted(path.name for path in (self.folder / other).iterdir()) and "predictions.jsonl" in files
        for name in files:
            assert (self.folder / one / name).read_bytes() == (self.folder / other / name).read_bytes(), name
        return files


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "headqa").is_dir(), reason="the real exam files are not here")
def test_an_exam_of_a_thousand_real_items_killed_twice_gives_the_same_files(tmp_path):
    """The second time on another number of processes."""
    make_benchmark(["--source", f"headqa={REAL / 'headqa'}", "--out", str(tmp_path / "exam")])
    lines = (tmp_path / "exam" / "Val" / "Spanish.jsonl").read_text(encoding="utf-8").splitlines()[:1000]
    tokenizer = train_sentencepiece(lines[:300], tmp_path / "tokenizer", 2000)
    save_pretrained(tiny(16, vocab_size=tokenizer.vocab_size, max_position_embeddings=2048), tokenizer, tmp_path / "model")
    run = KilledEvaluation(tmp_path, "--model", tmp_path / "model", "--data", tmp_path / "exam" / "Val", "--limit", 1000, "--scoring", "both",
                           "--max_new_tokens", 6, "--slots", 8)
    run.kill_when("killed", 1, lambda: run.rounds_done("killed") >= 3)
    run.kill_when("killed", 2, lambda: run.rounds_done("killed") >= 8)
    run.whole("killed")
    run.whole("whole")
    run.same("killed", "whole")
    assert (tmp_path / "whole" / "predictions.jsonl").read_bytes().count(b"\n") == 3000


@pytest.mark.slow
@pytest.mark.skipif(not (DEMO / "runs" / "full_corpus" / "model").is_dir(), reason="no demo here: make demo, or MMED_DEMO=FOLDER")
def test_the_demos_exam_killed_twice_at_random_gives_the_same_files(tmp_path):
    """With 4 slots, so that its 192 questions are six rounds; the second time on another number of processes."""
    run = KilledEvaluation(tmp_path, "--model", DEMO / "runs" / "full_corpus" / "model", "--data", DEMO / "world" / "MMedBench" / "Test", "--setting",
                           "finetuned", "--mode", "rationale", "--scoring", "both", "--max_new_tokens", 64, "--slots", 4)
    for ranks, rounds in ((1, random.randint(0, 2)), (2, random.randint(3, 4))):
        run.kill_when("killed", ranks, lambda rounds=rounds: run.journals("killed") and run.rounds_done("killed") >= rounds, random.uniform(0, 0.3))
        print(f"killed with {run.rounds_done('killed')} rounds done, {ranks} process{'es' if ranks > 1 else ''}")
    run.whole("killed")
    run.whole("whole")
    print(len(run.same("killed", "whole")), "files are the same to the byte")


def test_rounds_that_other_ranks_left_are_taken_over(tmp_path):
    part = Journal(tmp_path / "x.jsonl.rank-3", {"a": 1})
    part.add(16, [{"n": 16}])
    part.file.close()
    calls = []
    journal = run_rounds(tmp_path / "x.jsonl", {"a": 1}, {0: 1, 8: 5, 16: 2}, lambda number: calls.append(number) or [{"n": number}])
    assert calls == [0, 8] and [row["n"] for row in journal.rows()] == [0, 8, 16]
    journal.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_chat_says_in_the_chosen_language_that_it_is_no_advice(model_folder, capsys, monkeypatch):
    answers = iter(["J'ai de la fièvre.", ""])

    def typed(_):
        try:
            return next(answers)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    main(["--model", str(model_folder), "--chat", "--language", "fr", "--max_new_tokens", "5"])
    first = capsys.readouterr().out.splitlines()[0]
    assert "avis médical" in first


def test_streamed_text_is_the_decoded_text(model_folder, capsys):
    model, tokenizer = load_model(str(model_folder))
    main(["--model", str(model_folder), "--prompt", "fever", "--max_new_tokens", "20"])
    new = generate(model, [tokenizer.encode("fever", bos=True)], 20, end_ids=tokenizer.end_ids)[0]
    assert capsys.readouterr().out == "fever" + printable(tokenizer.decode(new, continued=True)) + "\n"


@pytest.mark.parametrize("arguments, message", [
    (["--input", "x.jsonl"], "--input and --out go together"),
    (["--prompt", "x", "--max_new_tokens", "0"], "--max_new_tokens"),
    (["--prompt", "x", "--adapter", "nowhere"], "nowhere"),
])
def test_wrong_use_is_said_in_one_line(model_folder, arguments, message):
    with pytest.raises(UserError, match=message):
        main(["--model", str(model_folder), *arguments])


def test_a_line_without_a_prompt_is_named(model_folder, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(UserError, match=r"in\.jsonl:2: expected an object with a text 'prompt'"):
        main(["--model", str(model_folder), "--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")])


@pytest.mark.parametrize("name", ["llama2", "mistral"])
def test_turns_reach_the_model_as_its_format_spells_them(model_folder, capsys, name):
    model, tokenizer = load_model(str(model_folder))
    main(["--model", str(model_folder), "--prompt", "fever", "--max_new_tokens", "8", "--turns", name])
    ids = encode_chat(tokenizer, [{"role": "user", "content": "fever"}], name=name)
    assert ids != encode_chat(tokenizer, [{"role": "user", "content": "cough"}], name=name)
    new = generate(model, [ids], 8, end_ids=tokenizer.end_ids)[0]
    assert capsys.readouterr().out == "fever" + printable(tokenizer.decode(new, continued=True)) + "\n"


def test_an_unknown_turn_format_is_one_line_that_names_those_there_are(tmp_path):
    with pytest.raises(UsageError, match="llama3"):
        main(["--model", str(tmp_path), "--prompt", "x", "--turns", "lama"])
