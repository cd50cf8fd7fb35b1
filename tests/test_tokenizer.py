"""Tokenizers against the libraries they stand for: sentencepiece, Hugging Face tokenizers, tiktoken."""
from __future__ import annotations

import base64
import gzip
import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sentencepiece
from growth import grows_at_most

import mmed.tokenization.bpe
import mmed.tokenization.sentencepiece_model
import mmed.tokenizer
from mmed.tokenization.bpe import BLOOM, GPT2, LLAMA3, QWEN2, WordTwin, byte_alphabet, merge_ranks
from mmed.tokenization.sentencepiece_model import SentencePieceModel
from mmed.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece
from mmed.utils.errors import UserError

tokenizers = pytest.importorskip("tokenizers")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
ROOT = Path(__file__).resolve().parents[1]

SENTENCES = """The patient was given 0.5 mg of the drug, and the fever didn't return; we'll see her again on the 12th.
Le patient a reçu 0,5 mg du médicament, et la fièvre n'est pas revenue ; l'œdème s'est résorbé dès le 12.
El paciente recibió 0,5 mg del fármaco y la fiebre no volvió. ¿Cuándo empezó el dolor? Él no lo recuerda.
Больному назначили 0,5 мг препарата, и температура не повышалась; приём повторят 12-го числа.
患者に0.5mgの薬を投与したところ、発熱は再び見られなかった。高血圧と糖尿病の既往がある。カルテを確認する。
患者服用了0.5毫克的药物，发热没有再出现。高血压和糖尿病是常见的慢性病，需要长期治疗。""".split("\n")
HOSTILE = [
    "", " ", "  ", "a", "\n", "\r\n", "\t x", " leading", "trailing ", "two  spaces", " " * 50, "x" + " " * 33 + "y", "\n\n \n  x",
    "\0", "a\0b", "👨‍👩‍👧‍👦 family", "e\u0301 é", "a\u0300\u0301\u0302", "שלום עולם", "مرحبا بالعالم", "\u202eabc\u202c", "\u200b\u200d",
    "Straße ŉ ǆ İ ı ſ 'ſ", "ﬁ ㎎ ½ 10⁵ cm²", "ｆｕｌｌ　ｗｉｄｔｈ", "ｶﾅ", "가각힣", "ก็ไม่", "हिन्दी", "🇯🇵🏳️‍🌈", "\u2028\u2029\x85", "\ufffe\uffff\U0010ffff",
    "</s>", "<s>x</s>", "<unk>", "<0x41>", "<|endoftext|>", "<|eot_id|>", "▁", "▁▁a ▁", "we'll WE'LL 'S", "1234567", "a1b2 c3", "!?…/\n\n",
    "..   x", "中文English日本語кириллица", "𠀋𡈽", "=" * 40, "ab" * 30, "a b c d e f g", "don't", "\u00a0x\u2003y",
]


def random_text(rng: random.Random) -> str:
    """Words, scripts, spaces and odd characters in a heap; no surrogates."""
    parts = []
    for _ in range(rng.randint(0, 12)):
        kind = rng.random()
        if kind < 0.3:
            parts.append(rng.choice(rng.choice(SENTENCES).split() + HOSTILE))
        elif kind < 0.5:
            low, high = rng.choice([(0, 0x7F), (0, 0x24F), (0x300, 0x52F), (0x5D0, 0x6FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF)])
            parts.append(chr(rng.randint(low, high)))
        elif kind < 0.6:
            parts.append(chr(rng.choice([rng.randint(0, 0xD7FF), rng.randint(0xE000, 0x10FFFF)])))
        elif kind < 0.75:
            parts.append(rng.choice(" \n\t\r\u00a0\u3000") * rng.randint(1, 9))
        else:
            parts.append(rng.choice("abxyzéд中.,;!01") * rng.randint(1, 5))
    return "".join(parts)


def texts(count: int = 1500) -> list[str]:
    seed = random.randrange(1 << 30)
    print("seed", seed)  # shown on failure
    rng = random.Random(seed)
    return HOSTILE + SENTENCES + [random_text(rng) for _ in range(count)]


def corpus() -> list[str]:
    """Enough text to learn a few hundred joins from: the sentences in many orders."""
    rng = random.Random(3)
    words = [word for sentence in SENTENCES[:4] for word in sentence.split()]
    return SENTENCES * 20 + [" ".join(rng.choices(words, k=12)) for _ in range(400)] + \
           ["".join(rng.choices(SENTENCES[4] + SENTENCES[5], k=20)) for _ in range(200)] + ["x  y   z    end\n\n" * 3] * 20


@pytest.fixture(scope="session")
def spm(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spm")
    train_sentencepiece(corpus(), folder, 900)
    return folder


def hf_byte_level(pattern: str, *, size: int = 700, form: str | None = None, plain: bool = False, added=()) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

    hf = tokenizers.Tokenizer(models.BPE())
    if form:
        hf.normalizer = getattr(normalizers, form)()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=plain, use_regex=plain)
    hf.pre_tokenizer = byte_level if plain else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])
    hf.decoder = decoders.ByteLevel()
    hf.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>", "<|eot_id|>"],
        show_progress=False))
    hf.add_tokens([AddedToken(text, normalized=False) for text in added])
    hf.encode_special_tokens = True  # text of special tokens is ordinary text, as in ours
    return hf


def hf_sentencepiece(folder: Path, style: str) -> tokenizers.Tokenizer:
    """The sentencepiece model as transformers converts it: all splits of a piece into two pieces are merges."""
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

    pieces = SentencePieceModel((folder / "tokenizer.model").read_bytes(), "model").pieces
    vocabulary = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    scores = {piece: score for piece, score, kind in pieces if kind == 1}
    merges = []
    for piece, score in scores.items():
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in scores and piece[i:] in scores]
        merges += [(score, *split) for split in sorted(splits, key=lambda split: [vocabulary[part] for part in split])]
    merges.sort(key=lambda merge: -merge[0])
    hf = tokenizers.Tokenizer(models.BPE(vocabulary, [merge[1:] for merge in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    strip = [decoders.Strip(" ", 1, 0)]
    if style == "llama":
        hf.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif style == "gemma":
        hf.normalizer, strip = normalizers.Replace(" ", "▁"), []
        hf.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        _, scheme, split = style.split()
        hf.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=split == "split")
    hf.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    hf.add_special_tokens(["<unk>", "<s>", "</s>", "<pad>"])
    hf.add_tokens([AddedToken(text, normalized=False) for text in ("drug, x", "<think>")])
    hf.encode_special_tokens = True
    return hf


def compare(ours: Tokenizer, reference, count: int = 1500) -> None:
    for text in texts(count):
        assert ours.encode(text) == reference(text), ascii(text)


# --- sentencepiece


def test_sentencepiece_ids_and_text_equal_the_library(spm):
    ours, library = load_tokenizer(spm), sentencepiece.SentencePieceProcessor(model_file=str(spm / "tokenizer.model"))
    compare(ours, library.encode)
    for text in texts(300):
        assert ours.decode(ours.encode(text)) == library.decode(library.encode(text)), ascii(text)
        if "▁" not in text:
            assert ours.decode(ours.encode(text, bos=True, eos=True)) == text, ascii(text)


def test_the_fast_twin_gives_the_ids_of_sentencepiece(spm):
    ours, library = load_tokenizer(spm), sentencepiece.SentencePieceProcessor(model_file=str(spm / "tokenizer.model"))
    twin = WordTwin.of(ours.core.model)
    for text in texts(4000):
        if text:
            assert twin.encode(" " + text) == library.encode(text), ascii(text)
    ours.core.twin_after = 1
    compare(ours, library.encode)
    assert ours.core.twin is not None


def test_a_random_bpe_vocabulary_has_a_twin_with_equal_ids_or_none():
    """Vocabularies that no training would make: pieces that cannot be reached, that hold spaces anywhere, with equal scores."""
    rng = random.Random(random.randrange(1 << 30))
    message, made = mmed.tokenization.sentencepiece_model.build_message, 0
    for _ in range(150):
        inner = rng.choice(["abé", "abé▁"])
        words = {"".join(rng.choices(inner, k=rng.randint(1, 4))) for _ in range(14)} | {"▁a", "é", "▁"}
        words = {word for word in words if "▁" not in word.lstrip("▁") or rng.random() < 0.02}
        pieces = [("<unk>", 0.0, 2)] + [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
        pieces += [(word, -float(score), 1) for word, score in zip(sorted(words), rng.sample(range(40), len(words)))]
        data = message(*((1, message((1, piece.encode()), (2, score), (3, kind))) for piece, score, kind in pieces),
                       (2, message((3, 2), (35, 1))), (3, message((1, b"identity"), (3, 1), (4, 0))))
        library = sentencepiece.SentencePieceProcessor(model_proto=data)
        twin = WordTwin.of(SentencePieceModel(data, "random"))
        made += twin is not None
        for _ in range(150 if twin else 0):
            text = "".join(rng.choices("abéè  中", k=rng.randint(1, 12)))
            assert twin.encode(" " + text) == library.encode(text), (ascii(text), sorted(words))
    assert made > 30


@pytest.mark.parametrize("options", [dict(model_type="unigram"), dict(normalizer="nmt_nfkc"), dict(user_defined_symbols=["m'g", "<sep>"]),
                                     dict(split_digits=False, character_coverage=0.98)])
def test_every_kind_of_trained_model_equals_the_library(tmp_path, options):
    ours = train_sentencepiece(corpus(), tmp_path, 700, **options)
    ours.core.twin_after = 1
    compare(ours, sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model")).encode, 400)
    for symbol in options.get("user_defined_symbols", ()):
        assert ours.encode(f"x{symbol}y").count(ours.core.processor.piece_to_id(symbol)) == 1


def test_continued_text_gets_no_space_and_joins_what_was_cut(spm):
    ours = load_tokenizer(spm)
    assert ours.encode("the patient") == ours.encode("the") + ours.encode(" patient", continued=True)
    assert ours.decode(ours.encode(" patient", continued=True), continued=True) == " patient"
    assert ours.encode("patient", continued=True) != ours.encode("patient")


# --- tokenizer.json


@pytest.mark.parametrize("pattern", [GPT2, LLAMA3, QWEN2, BLOOM], ids=["gpt2", "llama3", "qwen2", "bloom"])
def test_byte_level_ids_equal_the_reference_and_text_comes_back(tmp_path, pattern):
    hf = hf_byte_level(pattern)
    hf.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    compare(ours, lambda text: hf.encode(text).ids)
    for text in texts(500):
        assert ours.decode(ours.encode(text)) == text, ascii(text)


@pytest.mark.parametrize("pattern", [GPT2, LLAMA3, BLOOM], ids=["gpt2", "llama3", "bloom"])
def test_runs_of_spaces_too_long_for_tiktoken_are_cut_as_the_pattern_cuts_them(tmp_path, monkeypatch, pattern):
    hf = hf_byte_level(pattern)
    hf.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    monkeypatch.setattr(mmed.tokenization.bpe, "LONG_RUN", 4)
    rng = random.Random(random.randrange(1 << 30))
    parts = ["x", "!", ".", "1", "é", "中", "'s", "\t", "\u3000", "\r\n", "  \n", "\x85" * 5, "......", "!\n\n\n\n\n", "... ...", "(  )"]
    for _ in range(4000):
        text = "".join(rng.choice([*parts, "\n" * rng.randint(1, 7), " " * rng.randint(1, 7)]) for _ in range(rng.randint(1, 8)))
        assert ours.encode(text) == hf.encode(text).ids, ascii(text)


def test_byte_level_with_prefix_space_equals_the_reference(tmp_path):
    hf = hf_byte_level(GPT2, plain=True)
    hf.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    compare(ours, lambda text: hf.encode(text).ids)
    assert ours.encode("x", continued=True) != ours.encode("x")


def test_bytes_without_a_piece_are_dropped_as_in_the_reference(tmp_path):
    """SmolLM2 has no piece for eight control characters."""
    content = json.loads(hf_byte_level(GPT2, plain=True).to_str())
    spelling = {byte: character for character, byte in byte_alphabet().items()}
    gone = {spelling[byte] for byte in (4, 6, 15, 20, 24, 28, 30, 31, 0xE7)}
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {piece: index for piece, index in vocabulary.items() if not gone & set(piece)}
    content["model"]["merges"] = [merge for merge in content["model"]["merges"] if not gone & set("".join(merge))]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    hf = tokenizers.Tokenizer.from_str(json.dumps(content))
    hf.encode_special_tokens = True
    ours = load_tokenizer(tmp_path)
    compare(ours, lambda text: hf.encode(text).ids)
    for text in ("!\x04!", "\x04", "fever\x1eish 12 mg", "糖尿病", "a" * 5 + "\x04\x06 !"):
        assert ours.encode(text) == hf.encode(text).ids


def test_normalised_text_and_added_tokens_equal_the_reference(tmp_path):
    hf = hf_byte_level(QWEN2, form="NFC", added=["<think>", "</think>", "<think>>", "mg of"])
    hf.add_tokens(["<late>", "é!"])  # a plain string is looked for after normalisation
    hf.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    assert ours.added["<think>"] not in ours.special.values()
    for text in texts(500) + ["<think>e\u0301</think>", "<think>>", "5 mg of x", "<|endoftext|><think>", "<think", "mg ofmg of", "<late>\u0338 <late>", "<think>\u0338", "e\u0301! é!",
                              "<late><think>e\u0301!mg of<late>x"]:
        for version in (text, text.replace("a", "<think>"), "<think>" + text):
            assert ours.encode(version) == hf.encode(version).ids, ascii(version)
    assert ours.decode(ours.encode("a <think> b")) == "a <think> b"


@pytest.mark.parametrize("style", ["llama", "gemma", "metaspace first whole", "metaspace first split", "metaspace always whole",
                                   "metaspace always split"])
def test_sentencepiece_style_json_equals_the_reference(tmp_path, spm, style):
    hf = hf_sentencepiece(spm, style)
    hf.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    model = load_tokenizer(spm)
    for text in texts(1200) + ["a drug, x b", "drug, x", " drug, xdrug, x", "<think></s>"]:
        reference = hf.encode(text).ids
        assert ours.encode(text) == reference, ascii(text)
        assert ours.decode(reference) == hf.decode(reference), ascii(text)
        if style == "llama" and "drug, x" not in text and "<think>" not in text:
            assert model.encode(text) == reference, ascii(text)


def llama3_ranks() -> dict[bytes, int]:
    """Two vocabularies one after the other, the second backwards: many tokens that no joins reach, as Llama 3 has."""
    alphabet, ranks = byte_alphabet(), {}
    for hf in (hf_byte_level(LLAMA3, size=600), hf_byte_level(BLOOM, size=500)):
        words = sorted(hf.get_vocab().items(), key=lambda item: item[1])
        for word, _ in words if not ranks else reversed(words):
            if "<|" not in word:
                ranks.setdefault(bytes(alphabet[character] for character in word), len(ranks))
    for word in ("zqzqzqzq", "高血圧症患者", " unreachable", "aaa", "aaaa"):
        ranks.setdefault(word.encode(), len(ranks))
    return ranks


def write_ranks(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return path


def test_llama3_files_of_both_kinds_equal_tiktoken_and_the_reference(tmp_path):
    import tiktoken

    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    ranks = llama3_ranks()
    for name in ("tiktoken", "json", "joins_only"):
        (tmp_path / name).mkdir()
    path = write_ranks(tmp_path / "tiktoken" / "tokenizer.model", ranks)
    hf = convert.TikTokenConverter(vocab_file=str(path), pattern=LLAMA3, extra_special_tokens=["<|begin_of_text|>"]).converted()
    content = json.loads(hf.to_str())
    plain = tiktoken.Encoding("plain", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})
    for name, whole in (("json", True), ("joins_only", False)):
        content["model"]["ignore_merges"] = whole
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
        hf = tokenizers.Tokenizer.from_str(json.dumps(content))
        hf.encode_special_tokens = True
        ours = load_tokenizer(tmp_path / name)
        for text in texts(800) + ["zqzqzqzq", "azqzqzqzq 高血圧症患者 unreachable", "aaaaaaa aaa aaaa"]:
            assert ours.encode(text) == hf.encode(text, add_special_tokens=False).ids, (name, ascii(text))
    model = load_tokenizer(path)
    compare(model, lambda text: plain.encode(text, disallowed_special=()))
    count = len(ranks)
    assert (model.bos_id, model.eos_id, model.vocab_size) == (count, count + 1, count + 256)
    assert model.special["<|eot_id|>"] == count + 9 and set(model.end_ids) == {count + 1, count + 9}
    assert model.special["<|start_header_id|>"] == count + 6 and model.special["<|reserved_special_token_250|>"] == count + 255


def test_random_merges_give_the_ids_of_the_reference_or_are_refused():
    """The claim of mmed/tokenization/bpe.py, on lists of merges in any order: never a wrong id on any string over three letters."""
    rng = random.Random(random.randrange(1 << 30))
    strings = ["".join(letters) for length in range(1, 7) for letters in itertools.product("abc", repeat=length)]
    accepted = refused = 0
    for _ in range(150):
        vocabulary, merges = {"a": 0, "b": 1, "c": 2}, []
        for _ in range(rng.randint(1, 9)):
            pair = (rng.choice(list(vocabulary)), rng.choice(list(vocabulary)))
            if pair not in merges:
                vocabulary.setdefault("".join(pair), len(vocabulary))
                merges.insert(rng.randint(0, len(merges)) if rng.random() < 0.3 else len(merges), pair)
        try:
            ranks = merge_ranks(vocabulary, merges, "random")
        except UserError:
            refused += 1
            continue
        accepted += 1
        hf = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
        for text in strings:
            parts = list(text)
            while len(parts) > 1:  # the plainest BPE by rank: best rank, leftmost
                rank, place = min((ranks.get(parts[i] + parts[i + 1], 1 << 30), i) for i in range(len(parts) - 1))
                if rank == 1 << 30:
                    break
                parts[place : place + 2] = ["".join(parts[place : place + 2])]
            assert parts == hf.encode(text).tokens, (text, merges)
    assert accepted > 40 and refused > 5


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [LLAMA3, BLOOM], ids=["llama3", "bloom"])
def test_every_code_point_is_cut_as_in_the_reference(tmp_path, pattern):
    hf = hf_byte_level(pattern)
    hf.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    for code in itertools.chain(range(0xD800), range(0xE000, 0x110000)):
        text = "a{0}b {0}{0} 1{0}\n{0}!'{0}".format(chr(code))
        assert ours.encode(text) == hf.encode(text).ids, hex(code)


@pytest.mark.slow
def test_twenty_thousand_random_texts(tmp_path, spm):
    hf = hf_byte_level(LLAMA3)
    hf.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    compare(ours, lambda text: hf.encode(text).ids, 20_000)
    compare(load_tokenizer(spm), sentencepiece.SentencePieceProcessor(model_file=str(spm / "tokenizer.model")).encode, 20_000)


# --- special tokens, settings, text that is not text


def test_special_token_text_in_user_input_stays_text_and_bos_is_there_once(tmp_path, spm):
    from tokenizers.processors import TemplateProcessing

    hf = hf_byte_level(LLAMA3)
    hf.post_processor = TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    hf.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|endoftext|>", "eos_token": {"content": "<|eot_id|>"}}))
    for ours in (load_tokenizer(tmp_path), load_tokenizer(spm)):
        for text in ["".join(ours.special), *ours.special, "x"]:
            ids = ours.encode(text, bos=True, eos=True)
            assert ids[0] == ours.bos_id and ids[-1] == ours.eos_id
            assert not set(ours.special.values()) & set(ids[1:-1])
            assert ours.decode(ids) == text
            space = " " if ours.kind == "sentencepiece" else ""  # the one before the first word, as the reference shows it
            assert ours.decode(ids, special=True) == ours.piece(ours.bos_id) + space + text + ours.piece(ours.eos_id)
    assert load_tokenizer(tmp_path).eos_id == 1
    assert load_tokenizer(tmp_path).encode("a") == load_tokenizer(tmp_path).encode("a", bos=True)[1:]


def test_lone_surrogates_become_one_replacement_character(tmp_path, spm):
    hf_byte_level(LLAMA3).save(str(tmp_path / "tokenizer.json"))
    for ours in (load_tokenizer(tmp_path), load_tokenizer(spm)):
        assert ours.encode("a\ud800b\udfff") == ours.encode("a\ufffdb\ufffd")
        assert ours.encode("\ud83d\ude00") == ours.encode("😀")


def test_settings_beside_the_tokenizer_name_its_tokens(tmp_path):
    hf = hf_byte_level(QWEN2)
    hf.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).eos_id is None
    with pytest.raises(UserError, match="no bos token"):
        load_tokenizer(tmp_path).encode("x", bos=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 0], "bos_token_id": 0}))
    ours = load_tokenizer(tmp_path)
    assert (ours.bos_id, ours.named_bos_id, ours.eos_id, ours.end_ids) == (None, 0, 1, (0, 1))
    settings = {"bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = load_tokenizer(tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (None, 0, 0)  # Qwen 2: no bos, though config.json names one
    assert [path.name for path in ours.files] == ["tokenizer.json", "tokenizer_config.json"]


def test_a_folder_written_by_transformers_opens(tmp_path):
    transformers = pytest.importorskip("transformers")
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=hf_byte_level(QWEN2), eos_token="<|eot_id|>", pad_token="<|endoftext|>")
    wrapped.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert (ours.eos_id, ours.pad_id, ours.bos_id) == (wrapped.eos_token_id, wrapped.pad_token_id, None)
    assert ours.vocab_size == len(wrapped) and 1 in ours.end_ids
    assert all(ours.encode(text) == wrapped(text)["input_ids"] for text in SENTENCES)


def test_a_renamed_user_defined_piece_is_a_special_token_and_never_found_in_text(tmp_path):
    """InternLM 2: the piece [UNUSED_TOKEN_145] is a user-defined symbol; tokenizer_config.json calls its id <|im_end|>."""
    before = train_sentencepiece(corpus(), tmp_path, 700, user_defined_symbols=["[UNUSED_TOKEN_145]", "<keep>"])
    index = before.core.processor.piece_to_id("[UNUSED_TOKEN_145]")
    assert index in before.encode("[UNUSED_TOKEN_145]")
    decoder = {str(index): {"content": "<|im_end|>", "special": True}, "701": {"content": "[PAD]", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder, "pad_token": "[PAD]"}))
    ours = load_tokenizer(tmp_path)
    assert ours.special["<|im_end|>"] == index and index in ours.end_ids
    assert ours.pad_id == 701 and ours.vocab_size == 702
    for text in ("[UNUSED_TOKEN_145]", "<|im_end|>", "[PAD]"):
        assert not set(ours.encode(text)) & set(ours.special.values())
        assert ours.decode(ours.encode(text)) == text
    assert ours.core.processor.piece_to_id("<keep>") in ours.encode("a<keep>b")
    assert ours.fingerprint != before.fingerprint


def test_decoding_takes_broken_bytes_and_refuses_ids_outside(tmp_path, spm):
    hf_byte_level(LLAMA3).save(str(tmp_path / "tokenizer.json"))
    for ours in (load_tokenizer(tmp_path), load_tokenizer(spm)):
        half = ours.encode("𠀋")[:-1]
        assert "\ufffd" in ours.decode(half)
        with pytest.raises(ValueError, match="outside the vocabulary"):
            ours.decode([ours.vocab_size])
        for index in range(ours.vocab_size):
            assert isinstance(ours.decode([index]), str) and isinstance(ours.piece(index), str)


def test_fingerprint_follows_what_makes_the_ids_and_not_file_names(tmp_path, spm):
    one = load_tokenizer(spm)
    (tmp_path / "other.model").write_bytes((spm / "tokenizer.model").read_bytes())
    assert load_tokenizer(tmp_path / "other.model").fingerprint == one.fingerprint
    prints = {one.fingerprint}
    for place, options in enumerate([{}, {"normalizer": "nmt_nfkc"}, {"split_digits": False}, {"user_defined_symbols": ["mg"]}]):
        prints.add(train_sentencepiece(corpus()[: 400 + 50 * place], tmp_path / str(place), 900, **options).fingerprint)
    for place, size in enumerate((500, 500, 501)):  # same size, other merges
        hf = hf_byte_level((LLAMA3, GPT2, LLAMA3)[place], size=size)
        hf.save(str(tmp_path / "tokenizer.json"))
        prints.add(load_tokenizer(tmp_path / "tokenizer.json").fingerprint)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    a, b = content["model"]["merges"][-2:]
    content["model"]["merges"][-2:] = [b, a]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    prints.add(load_tokenizer(tmp_path / "tokenizer.json").fingerprint)
    assert len(prints) == 9


# --- huge texts


@pytest.mark.parametrize("kind", ["spm", "twin", "json", "spm json"])
def test_parts_of_a_huge_text_give_the_ids_of_the_whole(tmp_path, spm, monkeypatch, kind):
    if kind == "json":
        hf_byte_level(LLAMA3, added=["<think>", "x  y"]).save(str(tmp_path / "tokenizer.json"))
    elif kind == "spm json":
        hf_sentencepiece(spm, "llama").save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path if "json" in kind else spm)
    if kind == "twin":
        ours.core.twin_after = 1
        ours.encode("ab")
    rng = random.Random(random.randrange(1 << 30))
    for _ in range(30):
        text = "".join(rng.choice(texts(30)) for _ in range(40)) + " ".join(SENTENCES)
        whole = ours.encode(text)
        monkeypatch.setattr(mmed.tokenizer, "CHUNK", 20)
        parts = list(ours.encode_chunks(text))
        monkeypatch.undo()
        assert [index for part in parts for index in part] == whole
        assert len(parts) > 5


@pytest.mark.parametrize("unit", ["a", " ", "\n", "中", "! ", "aé中"])
def test_time_grows_with_the_length_of_a_repeated_text(tmp_path, spm, unit):
    hf_byte_level(LLAMA3).save(str(tmp_path / "tokenizer.json"))
    for ours in (load_tokenizer(tmp_path), load_tokenizer(spm)):
        ours.encode(unit * 1000)

        def seconds(count, ours=ours):
            start = time.process_time()
            ours.encode(unit * count)
            return time.process_time() - start

        assert grows_at_most(seconds, 200_000, 800_000, 8, slack=0.1)  # quadratic: 16


@pytest.mark.slow
def test_ten_million_characters_without_a_space_take_seconds_and_under_two_gigabytes(tmp_path, spm):
    hf_byte_level(LLAMA3).save(str(tmp_path / "tokenizer.json"))
    code = """if 1:
        import random, sys, time
        from mmed.tokenizer import load_tokenizer
        ours = load_tokenizer(sys.argv[1])
        for text in ("a" * 10**7, " " * 10**7 + "x", "".join(random.choices("abcdefghij中é", k=10**7)), "word " * (2 * 10**6)):
            start = time.process_time()
            assert ours.decode(ours.encode(text)) == text
            assert time.process_time() - start < 60
        assert int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) < 2 << 20  # ru_maxrss may be the peak of the process that started this one
    """
    for folder in (tmp_path, spm):
        subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=ROOT)


# --- bad files


def damaged(spm: Path, tmp_path: Path):
    message = mmed.tokenization.sentencepiece_model.build_message
    good = (spm / "tokenizer.model").read_bytes()
    model = SentencePieceModel(good, "good")

    def sp(change) -> bytes:
        other = SentencePieceModel(good, "good")
        change(other.pieces)
        return other.proto()

    yield "no bytes", b""
    yield "text", b"hello world\n" * 10
    yield "zeros", bytes(5000)
    for place in (1, 10, 1000, len(good) // 2, len(good) - 1):
        yield f"cut at {place}", good[:place]
    yield "duplicate piece", sp(lambda pieces: pieces.append(pieces[-1]))
    yield "empty piece", sp(lambda pieces: pieces.append(("", 0.0, 1)))
    yield "infinite score", sp(lambda pieces: pieces.append(("zz", float("inf"), 1)))
    yield "score not a number", sp(lambda pieces: pieces.append(("zz", float("nan"), 1)))
    yield "no unknown piece", sp(lambda pieces: pieces.pop(0))
    yield "two unknown pieces", sp(lambda pieces: pieces.append(("<u>", 0.0, 2)))
    yield "a byte piece less", sp(lambda pieces: pieces.pop(20))
    yield "a bad byte piece", sp(lambda pieces: pieces.__setitem__(20, ("<0xZZ>", 0.0, 6)))
    yield "piece not UTF-8", good + message((1, message((1, b"\xff\xfe"))))
    yield "piece a number", good + message((1, 7))
    yield "piece without text", good + message((1, message((2, 1.0))))
    yield "score of two bytes", good + message((1, message((1, b"zz"), (2, b"ab"))))
    yield "length past the end", good + b"\x0a\xff\xff\xff\xff\x07"
    yield "endless number", good + b"\x0a" + b"\xff" * 20
    yield "wire type 7", good + b"\x0f"
    yield "no normaliser", message(*((1, message((1, p.encode()), (2, s), (3, k))) for p, s, k in model.pieces[1:]))
    ranks = [base64.b64encode(bytes([byte])).decode() for byte in range(256)]
    lines = [f"{token} {rank}" for rank, token in enumerate(ranks)]
    for name, change in {
        "wrong base64": (99, "a*b= 99"), "no padding": (99, "YQa 99"), "no rank": (99, ranks[99]), "rank not a number": (99, ranks[99] + " x"),
        "gap": (99, ranks[99] + " 100"), "negative": (99, ranks[99] + " -1"), "twice": (99, ranks[98] + " 99"), "three fields": (99, ranks[99] + " 9 9"),
        "empty token": (99, "= 99"), "not ASCII": (99, "é 99"), "missing byte": (97, base64.b64encode(b"ab").decode() + " 97"),
    }.items():
        place, line = change
        yield f"tiktoken: {name}", "\n".join([*lines[:place], line, *lines[place + 1 :]]).encode()
    yield "tiktoken: cut", "\n".join(lines[:200]).encode()


def test_damaged_model_files_are_refused_in_one_line(spm, tmp_path, capfd):
    count = 0
    for name, data in damaged(spm, tmp_path):
        path = tmp_path / "tokenizer.model"
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            load_tokenizer(path)
            pytest.fail(f"{name}: accepted")
        assert "\n" not in str(caught.value) and str(path) in str(caught.value), name
        count += 1
    assert count > 30


def test_flipped_bits_never_crash(spm, tmp_path):
    good = (spm / "tokenizer.model").read_bytes()
    rng = random.Random(random.randrange(1 << 30))
    for _ in range(200):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / "tokenizer.model").write_bytes(data)
        try:
            ours = load_tokenizer(tmp_path)
        except UserError:
            continue
        ours.decode(ours.encode("The patient é 中 \0"))


def test_a_normaliser_that_writes_much_for_one_character_is_refused(tmp_path):
    """A hundred megabytes for every space: the library would write them."""
    train_sentencepiece(corpus(), tmp_path, 700, normalizer="nmt_nfkc")
    model = SentencePieceModel((tmp_path / "tokenizer.model").read_bytes(), "model")
    model.rules[2] = model.rules[2][:-1] + b"x" * 300 + b"\0"
    (tmp_path / "tokenizer.model").write_bytes(model.proto())
    with pytest.raises(UserError, match=r"writes 30\d bytes for one character \(limit 256\)"):
        load_tokenizer(tmp_path)


def test_tokenizer_json_that_cannot_be_exact_is_refused_with_the_reason(tmp_path, spm):
    byte_level, pieces = json.loads(hf_byte_level(LLAMA3).to_str()), json.loads(hf_sentencepiece(spm, "llama").to_str())
    regex = ["pre_tokenizer", "pretokenizers", 0]
    cases = [
        (byte_level, ["model", "type"], "Unigram", "Unigram"), (byte_level, ["model", "dropout"], 0.1, "dropout"),
        (byte_level, ["model", "end_of_word_suffix"], "</w>", "end_of_word_suffix"), (byte_level, ["model", "merges", 3], ["a", "zzz"], "not in the vocabulary"),
        (byte_level, ["model", "merges", 3], "a b c", "not a pair"), (byte_level, ["model", "merges", 3], byte_level["model"]["merges"][2], "twice"),
        (byte_level, ["model", "vocab", "a"], 1, "same id"), (byte_level, ["model", "vocab", "a"], -1, "ids"), (byte_level, ["model", "vocab", "a"], 2**40, "ids"),
        (byte_level, ["model", "vocab", "a"], "7", "ids"), (byte_level, ["model"], None, "missing"), (byte_level, ["model", "vocab"], [], "BPE"),
        (byte_level, [*regex, "pattern"], {"Regex": r"\w+|\s+"}, "none of those known"), (byte_level, [*regex, "behavior"], "MergedWithNext", "behavior"),
        (byte_level, ["normalizer"], {"type": "Lowercase"}, "Lowercase"), (byte_level, [*regex], {"type": "Digits", "individual_digits": True}, "Digits"),
        (byte_level, ["added_tokens", 0], {"content": "x"}, "no text or no id"),
        (byte_level, ["added_tokens", 0], {"content": "new", "id": 900, "special": False, "single_word": True}, "single_word"),
        (pieces, ["normalizer"], {"type": "NFKC"}, "NFKC"), (pieces, ["pre_tokenizer"], {"type": "Whitespace"}, "Whitespace"),
        (pieces, ["model", "byte_fallback"], True, None), (pieces, ["model", "ignore_merges"], True, "ignore_merges"),
        (pieces, ["model", "vocab", "zz"], 3_000_000, "gaps"), (pieces, ["added_tokens", 4, "normalized"], True, "normalized"),
    ]
    for content, keys, value, reason in cases:
        content = json.loads(json.dumps(content))
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(content))
        if reason is None:
            load_tokenizer(path)
            continue
        with pytest.raises(UserError, match=reason) as caught:
            load_tokenizer(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    for data in (b"", b"[", b"[]", b"{}", b'{"model": 3}', b"[" * 100_000, b"\xff"):
        path.write_bytes(data)
        with pytest.raises(UserError):
            load_tokenizer(path)


def test_merges_whose_order_ranks_cannot_keep_are_refused():
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}
    with pytest.raises(UserError, match="'abc' is joined from"):
        merge_ranks(vocabulary, [("a", "b"), ("b", "c"), ("a", "bc")], "example")  # "abc" comes down to ab + c


def test_code_beside_a_tokenizer_is_not_run(tmp_path, spm):
    (tmp_path / "tokenizer.model").write_bytes((spm / "tokenizer.model").read_bytes())
    (tmp_path / "tokenization_evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}, "chat_template": "{{ 1/0 }}", "tokenizer_class": "Evil"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    before = set(sys.modules)
    load_tokenizer(tmp_path).encode("x")
    assert not (tmp_path / "canary").exists() and not any("evil" in name for name in set(sys.modules) - before)


def test_settings_that_make_no_sense_are_refused(tmp_path, spm):
    (tmp_path / "tokenizer.model").write_bytes((spm / "tokenizer.model").read_bytes())
    for name, content in [("tokenizer_config.json", []), ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}),
                          ("tokenizer_config.json", {"added_tokens_decoder": {"5000000": {"content": "<x>"}}}),
                          ("tokenizer_config.json", {"added_tokens_decoder": {"950": {"content": "a"}, "951": {"content": 3}}}),
                          ("added_tokens.json", {"<x>": "3"}), ("added_tokens.json", {"<x>": True}), ("added_tokens.json", {"<x>": -1}),
                          ("added_tokens.json", {"<x>": 950, "<y>": 950}), ("added_tokens.json", {"</s>": 950}),
                          ("generation_config.json", {"eos_token_id": "2"})]:
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(UserError):
            load_tokenizer(tmp_path)
            pytest.fail(f"{name}: {content} accepted")
        (tmp_path / name).unlink()
    load_tokenizer(tmp_path)


# --- training and the command line


def command(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "mmed.tokenizer", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
                          encoding="utf-8", env=os.environ | {"PYTHONIOENCODING": ""}, **options)


def test_training_twice_in_fresh_processes_gives_the_same_file(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text, "language": "xx"}, ensure_ascii=False) + "\n" for text in corpus())
    (tmp_path / "b.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    for name in ("one", "two"):
        done = command("train", tmp_path / "a.jsonl.gz", tmp_path / "b.txt", "--out", tmp_path / name, "--vocab_size", 700)
        assert done.returncode == 0 and "700 pieces" in done.stdout, done.stderr
    assert (tmp_path / "one" / "tokenizer.model").read_bytes() == (tmp_path / "two" / "tokenizer.model").read_bytes()
    shown = command("show", tmp_path / "one", "--text", "fièvre", "--documents", tmp_path / "a.jsonl.gz")
    assert shown.returncode == 0 and "è" in shown.stdout
    ours = load_tokenizer(tmp_path / "one")
    row = shown.stdout.splitlines()[-1].replace(",", "").split()
    count, characters, tokens = len(corpus()), sum(map(len, corpus())), sum(len(ours.encode(text)) for text in corpus())
    assert row[:4] == ["xx", str(count), str(characters), str(tokens)]


def test_training_leaves_out_nothing_of_long_or_odd_lines(tmp_path):
    """The trainer drops lines over its limit, and lines with U+2585, without a word; ours are cut, or the sign replaced."""
    ours = train_sentencepiece(["lorem ipsum " * 500 + "ж" * 200 + " \ud800", "dolor\u2585 ы ы ы ы"], tmp_path, 300, character_coverage=1.0)
    pieces = {ours.piece(index) for index in range(ours.vocab_size)}
    assert {"ж", "ы"} <= pieces
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id) == (1, 2, 3, 0)


def test_a_symbol_with_a_space_is_refused(tmp_path):
    with pytest.raises(UserError, match="'mg of'"):
        train_sentencepiece(corpus(), tmp_path, 700, user_defined_symbols=["mg of"])


def test_bad_training_input_is_one_line_and_leaves_nothing(tmp_path):
    good, bad, odd, empty = (tmp_path / name for name in ("good.jsonl", "bad.jsonl", "odd.jsonl", "empty.jsonl"))
    good.write_text("".join(json.dumps({"text": text}) + "\n" for text in corpus()))
    bad.write_text('{"text": "x"}\n{"text": \n')
    odd.write_text('{"text": "x"}\n{"text": 3}\n')
    empty.write_text('{"text": ""}\n')
    packed = tmp_path / "cut.jsonl.gz"
    packed.write_bytes(gzip.compress(good.read_bytes())[:-20])
    for files, size, said in [([bad], 700, "bad.jsonl:2"), ([odd], 700, "odd.jsonl:2"), ([empty], 700, "no text"), ([good], 90_000, "vocab_size=90000"),
                              ([good], 12, "--vocab_size=12"), ([packed], 700, "cut.jsonl.gz:"), ([tmp_path / "none.jsonl"], 700, "no such file"),
                              ([tmp_path / "x.pdf"], 700, "expected a .jsonl")]:
        done = command("train", *files, "--out", tmp_path / "out", "--vocab_size", size)
        assert done.returncode in (1, 2) and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_help_needs_no_torch():
    code = "import sys, mmed.tokenizer as t\ntry: t.main(['--help'])\nexcept SystemExit: pass\n" \
           "print([m for m in ('torch',) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "train" in done.stdout


def test_ids_on_real_text_equal_the_references(tmp_path):
    data = ROOT.parent / "shared" / "data" / "text"
    if not data.is_dir():
        pytest.skip("no shared data")
    documents = [text for path in sorted(data.glob("*/medical.jsonl.gz")) for text, _ in itertools.islice(mmed.tokenizer.read_texts(path), 60)]
    ours = train_sentencepiece(documents, tmp_path, 6000)
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours.core.twin_after = 1
    assert len(documents) > 300 and all(ours.encode(text) == library.encode(text) for text in documents)
    assert all(ours.decode(ours.encode(text)) == text for text in documents if "▁" not in text)
