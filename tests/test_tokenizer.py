"""Tokenizers against the libraries they stand for: sentencepiece, Hugging Face tokenizers, tiktoken."""
from __future__ import annotations

import base64
import json
import os
import random
import time
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
from growth import grows_at_most
from tiny_models import byte_level_bpe

from mmed.tokenization import byte_level
from mmed.tokenization.byte_level import GPT2, LLAMA3, QWEN2, byte_alphabet
from mmed.tokenization.hub import added_token
from mmed.tokenization.sentencepiece_model import build_message
from mmed.tokenizer import bos_rule, load_tokenizer, save_tokenizer, train_sentencepiece
from mmed.utils.errors import UserError
from mmed.utils.files import read_json, write_json

tokenizers = pytest.importorskip("tokenizers")
pre_tokenizers = tokenizers.pre_tokenizers
os.environ["TOKENIZERS_PARALLELISM"] = "false"

SENTENCES = """\
The patient was given 0.5 mg of the drug, and the fever didn't return; we'll see her again on the 12th.
Le patient a reçu 0,5 mg du médicament, et la fièvre n'est pas revenue ; l'œdème s'est résorbé dès le 12.
El paciente recibió 0,5 mg del fármaco y la fiebre no volvió. ¿Cuándo empezó el dolor? Él no lo recuerda.
Больному назначили 0,5 мг препарата, и температура не повышалась; приём повторят 12-го числа.
患者に0.5mgの薬を投与したところ、発熱は再び見られなかった。高血圧と糖尿病の既往がある。カルテを確認する。
患者服用了0.5毫克的药物，发热没有再出现。高血压和糖尿病是常见的慢性病，需要长期治疗。""".split("\n")
HOSTILE = [
    "", " ", "  ", "a", "\n", "\r\n", "\t x", " leading", "trailing ", "two  spaces", " " * 50,
    "x" + " " * 33 + "y", "\n\n \n  x", "\0", "a\0b", "👨‍👩‍👧‍👦 family", "e\u0301 é", "a\u0300\u0301\u0302",
    "שלום עולם", "مرحبا بالعالم", "\u202eabc\u202c", "\u200b\u200d", "Straße ŉ ǆ İ ı ſ 'ſ", "ﬁ ㎎ ½ 10⁵ cm²",
    "ｆｕｌｌ　ｗｉｄｔｈ", "ｶﾅ", "가각힣", "ก็ไม่", "हिन्दी", "🇯🇵🏳️‍🌈", "\u2028\u2029\x85",
    "\ufffe\uffff\U0010ffff", "</s>", "<s>x</s>", "<unk>", "<0x41>", "<|endoftext|>", "<|eot_id|>", "▁",
    "▁▁a ▁", "we'll WE'LL 'S", "1234567", "a1b2 c3", "!?…/\n\n", "..   x", "中文English日本語кириллица",
    "𠀋𡈽", "=" * 40, "ab" * 30, "a b c d e f g", "don't", "\u00a0x\u2003y",
]


PIECES = [*HOSTILE, *" \n\t\r\u00a0\u3000abxyzéд中.,;!01", *" ".join(SENTENCES).split()]


def random_text(rng: random.Random) -> str:
    """Words, scripts, spaces and odd characters in a heap; no surrogates."""
    ranges = [(0, 0x24F), (0x300, 0x52F), (0x5D0, 0x6FF), (0x3040, 0x9FFF), (0, 0xD7FF), (0xE000, 0x10FFFF)]
    odd = [chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(0, 6))]
    parts = odd + [piece * rng.randint(1, 5) for piece in rng.choices(PIECES, k=rng.randint(0, 12))]
    return "".join(rng.sample(parts, len(parts)))


def compare(ours, reference, rng: random.Random, count: int = 1000, more: tuple[str, ...] = ()) -> None:
    """The ids of hostile and random texts are those of `reference`, a library's function."""
    for text in [*HOSTILE, *SENTENCES, *more, *(random_text(rng) for _ in range(count))]:
        assert ours.encode(text) == reference(text), ascii(text)


def corpus() -> list[str]:
    """Enough text to learn a few hundred joins from: the sentences in many orders."""
    rng = random.Random(3)
    words = [word for sentence in SENTENCES[:4] for word in sentence.split()]
    spaced = [" ".join(rng.choices(words, k=12)) for _ in range(400)]
    unspaced = ["".join(rng.choices(SENTENCES[4] + SENTENCES[5], k=20)) for _ in range(200)]
    return SENTENCES * 20 + spaced + unspaced + ["x  y   z    end\n\n" * 3] * 20


@pytest.fixture(scope="session")
def spm(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spm")
    train_sentencepiece(corpus(), folder, 900)
    return folder


def sentencepiece_library(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def hf_byte_level(pattern: str, *, size: int = 700, form: str | None = None, added=()):
    words = pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    hf = byte_level_bpe(corpus(), size, ["<|endoftext|>", "<|eot_id|>"], words)
    if form:
        hf.normalizer = getattr(tokenizers.normalizers, form)()
    hf.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in added])
    return hf


def saved(hf, folder: Path, **changes):
    """(our tokenizer, the library's function from text to ids) of a tokenizer.json with changes."""
    content = json.loads(hf.to_str()) | changes
    write_json(folder / "tokenizer.json", content)
    reference = tokenizers.Tokenizer.from_str(json.dumps(content))
    reference.encode_special_tokens = True  # text of special tokens is ordinary text, as in ours
    return load_tokenizer(folder), lambda text: reference.encode(text, add_special_tokens=False).ids


def test_sentencepiece_ids_and_text_equal_the_library(spm, rng):
    ours, library = load_tokenizer(spm), sentencepiece_library(spm)
    compare(ours, library.encode, rng)
    for text in HOSTILE + SENTENCES:
        assert ours.decode(ours.encode(text)) == library.decode(library.encode(text)), ascii(text)
        assert "▁" in text or ours.decode(ours.encode(text, bos=True, eos=True)) == text, ascii(text)
    assert ours.encode("the patient") == ours.encode("the") + ours.encode(" patient", continued=True)
    assert ours.decode(ours.encode(" patient", continued=True), continued=True) == " patient"
    assert ours.encode("patient", continued=True) != ours.encode("patient")


def test_a_renamed_user_defined_piece_is_a_special_token_and_never_found_in_text(tmp_path):
    """InternLM 2: [UNUSED_TOKEN_145] is a user-defined symbol; tokenizer_config.json calls it <|im_end|>."""
    symbols = ["[UNUSED_TOKEN_145]", "<keep>"]
    before = train_sentencepiece(corpus(), tmp_path, 700, user_defined_symbols=symbols)
    index, keep = map(sentencepiece_library(tmp_path).piece_to_id, symbols)
    assert index in before.encode("[UNUSED_TOKEN_145]")
    decoder = {str(index): {"content": "<|im_end|>", "special": True},
               "701": {"content": "[PAD]", "special": True}}
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder, "pad_token": "[PAD]"})
    ours = load_tokenizer(tmp_path)
    assert ours.special["<|im_end|>"] == index and index in ours.end_ids
    assert ours.pad_id == 701 and ours.vocab_size == 702
    for text in ("[UNUSED_TOKEN_145]", "<|im_end|>", "[PAD]"):
        assert not set(ours.encode(text)) & set(ours.special.values())
        assert ours.decode(ours.encode(text)) == text
    assert keep in ours.encode("a<keep>b") and ours.fingerprint != before.fingerprint


@pytest.mark.parametrize("named_in", ["tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("settings", [{"add_prefix_space": False}, {"lstrip": True, "rstrip": True},
                                      {"single_word": True}, {"normalized": True}], ids=str)
def test_tokens_and_settings_beside_sentencepiece_count_as_in_transformers(tmp_path, settings, named_in):
    """transformers 5 names tokens in tokenizer.json only."""
    transformers = pytest.importorskip("transformers")
    train_sentencepiece(corpus(), tmp_path, 700)
    flags = {key: value for key, value in settings.items() if key != "add_prefix_space"}
    tokens = [added_token(700, "<think>", False) | flags,
              added_token(701, "<|im_end|>", True) | {"lstrip": True, "rstrip": True}]  # of no effect in text
    config = {"bos_token": "<s>", "eos_token": "</s>", "legacy": False, "tokenizer_class": "LlamaTokenizer",
              "add_prefix_space": settings.get("add_prefix_space")}
    file = read_json(tmp_path / "tokenizer.json")
    if named_in == "tokenizer.json":
        write_json(tmp_path / named_in, file | {"added_tokens": file["added_tokens"] + tokens})
    else:
        (tmp_path / "tokenizer.json").unlink()
        config["added_tokens_decoder"] = {str(token["id"]): token for token in tokens}
    write_json(tmp_path / "tokenizer_config.json", config)
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.kind == "sentencepiece" and ours.vocab_size == 702
    assert ours.special["<|im_end|>"] == 701 and 701 in ours.end_ids
    for text in ("fever", "a<think>b", "a  <think> \n b", "<think>x y", "<think> <think>", "a <think>",
                 "a <|im_end|> <think> b"):
        ids = theirs(text, split_special_tokens=True, add_special_tokens=False).input_ids
        assert ours.encode(text) == ids, text


def test_a_tokenizer_file_is_saved_under_the_name_that_folders_have(tmp_path, spm):
    """A tokenizer.json given by name does not take the tokenizer.model beside it along."""
    (tmp_path / "out").mkdir()
    for name in ("tokenizer.model", "tokenizer.json"):
        (tmp_path / f"my-{name}").write_bytes((spm / name).read_bytes())
        (tmp_path / "tokenizer.model").write_bytes(b"another model")
        ours = load_tokenizer(tmp_path / f"my-{name}")
        save_tokenizer(ours, tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
        assert load_tokenizer(tmp_path / "out").fingerprint == ours.fingerprint  # names do not count
        (tmp_path / "out" / name).unlink()


def test_a_tokenizer_json_of_another_vocabulary_goes_before_tokenizer_model(tmp_path, spm):
    """As in transformers: fine-tuned models that extended only the one leave the base's other file there."""
    train_sentencepiece(corpus(), tmp_path, 700)
    (tmp_path / "tokenizer.model").write_bytes((spm / "tokenizer.model").read_bytes())
    ours = load_tokenizer(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ours.vocab_size == 700 and ours.kind == "Hugging Face tokenizers"
    assert ours.encode(SENTENCES[0], bos=True) == theirs.encode(SENTENCES[0]).ids
    named = load_tokenizer(tmp_path / "tokenizer.model")
    (tmp_path / "saved").mkdir()
    save_tokenizer(named, tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == named.fingerprint != ours.fingerprint
    (tmp_path / "tokenizer.model").write_bytes(
        (spm / "tokenizer.model").read_bytes().replace(b"patient", b"patien\x80"))
    with pytest.raises(UserError, match=r"tokenizer\.model: not a usable tokenizer file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("symbols", [[], ["m'g", "▁pat", "ev"]])
def test_a_tokenizer_trained_here_gives_the_same_ids_in_transformers(tmp_path, rng, symbols):
    transformers = pytest.importorskip("transformers")
    ours = train_sentencepiece(corpus(), tmp_path, 700, user_defined_symbols=symbols)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    options = {"split_special_tokens": True, "add_special_tokens": False}
    compare(ours, lambda text: theirs(text, **options).input_ids, rng, 400)
    ids = ours.encode("The patient was given 0.5 mg", bos=True)
    assert ids == theirs("The patient was given 0.5 mg").input_ids
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids) == "The patient was given 0.5 mg"


@pytest.mark.parametrize("long_run", [byte_level.LONG_RUN, 4])  # of spaces, too long for tiktoken
@pytest.mark.parametrize("pattern", [GPT2, LLAMA3, QWEN2], ids=["gpt2", "llama3", "qwen2"])
def test_byte_level_ids_equal_the_reference_and_text_comes_back(tmp_path, monkeypatch, rng, pattern,
                                                                long_run):
    monkeypatch.setattr(byte_level, "LONG_RUN", long_run)
    ours, reference = saved(hf_byte_level(pattern), tmp_path)
    assert ours.kind == "byte-level BPE"
    parts = ["x", "!", ".", "1", "é", "中", "'s", "\t", "\u3000", "\r\n", "  \n", "\x85" * 5, "......",
             "!\n\n\n\n\n", "... ...", "(  )", "\n" * 4, "\n" * 7, " " * 5, " " * 6]
    compare(ours, reference, rng, more=tuple("".join(rng.choices(parts, k=rng.randint(1, 8)))
                                             for _ in range(2000)))
    for text in HOSTILE + SENTENCES:
        assert ours.decode(ours.encode(text)) == text, ascii(text)


def without_some_bytes(content: dict) -> dict:
    """SmolLM2 has no piece for eight control characters."""
    spelling = {byte: character for character, byte in byte_alphabet().items()}
    gone = {spelling[byte] for byte in (4, 6, 15, 20, 24, 28, 30, 31, 0xE7)}
    model = content["model"]
    vocabulary = {piece: index for piece, index in model["vocab"].items() if not gone & set(piece)}
    merges = [merge for merge in model["merges"] if not gone & set("".join(merge))]
    return {"model": model | {"vocab": vocabulary, "merges": merges}}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
HF_SETTINGS = {"bos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
BOS_FIRST = bos_rule("<|endoftext|>", 0)
LATE = added_token(700, "<late>", False, normalized=True) | {"lstrip": True}


@pytest.mark.parametrize("change", [
    {"normalizer": {"type": "Lowercase"}}, {"normalizer": {"type": "NFC"}, "added_tokens": [LATE]},
    {"normalizer": {"type": "NFKC"}}, {"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": BLOOM}, "behavior": "Isolated", "invert": False},
        BYTE_LEVEL | {"use_regex": False}]}}, without_some_bytes,
], ids=["lowercase", "token that strips", "NFKC", "prefix space", "digits", "bloom", "without some bytes"])
def test_other_byte_level_files_open_through_the_reference(tmp_path, rng, change):
    hf = hf_byte_level(LLAMA3)
    changes = change(json.loads(hf.to_str())) if callable(change) else change
    ours, reference = saved(hf, tmp_path, **changes)
    assert ours.kind == "Hugging Face tokenizers"
    compare(ours, reference, rng, 200, (
        "a  <late> e\u0301!", "!\x04!", "\x04", "fever\x1eish", "aaaaa\x04\x06 !"))
    assert ours.encode(" x", continued=True) == ours.encode(" x")


def test_an_added_token_that_spells_spaces_is_decoded_as_spaces(tmp_path, spm):
    """Gemma's tokenizer.json: "▁▁" is a piece and an added token."""
    file = read_json(spm / "tokenizer.json")
    index = file["model"]["vocab"]["▁▁"]
    write_json(tmp_path / "tokenizer.json",
               file | {"added_tokens": [*file["added_tokens"], added_token(index, "▁▁", False)]})
    ours = load_tokenizer(tmp_path)
    ids = ours.encode("x  y  z")
    assert ours.kind == "Hugging Face tokenizers" and index in ids and ours.decode(ids) == "x  y  z"


def test_added_tokens_json_adds_to_tokenizer_json_without_gaps(tmp_path):
    hf = hf_byte_level(LLAMA3, size=700)
    hf.pre_tokenizer = pre_tokenizers.ByteLevel()
    (tmp_path / "added_tokens.json").write_text('{"glucagon": 701, "insulin": 700}')
    ours, _ = saved(hf, tmp_path)
    assert ours.kind == "Hugging Face tokenizers" and ours.encode("insulinglucagon") == [700, 701]
    (tmp_path / "added_tokens.json").write_text('{"glucagon": 705}')
    with pytest.raises(UserError, match=r"'glucagon' has id 705.* gives it 700"):
        load_tokenizer(tmp_path)


def test_a_unigram_file_opens_through_the_reference(tmp_path):
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("a", -3.0), ("▁a", -3.5), ("b", -4.0)]
    hf = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0, False))
    hf.pre_tokenizer = pre_tokenizers.Metaspace()
    hf.decoder = tokenizers.decoders.Metaspace()
    ours, reference = saved(hf, tmp_path)
    assert ours.encode("a b ab") == reference("a b ab")
    assert ours.encode("a", continued=True) == [2] and ours.decode([2, 3], continued=True) == "a a"


def test_normalised_text_and_added_tokens_equal_the_reference(tmp_path, rng):
    hf = hf_byte_level(QWEN2, form="NFC", added=["<think>", "</think>", "<think>>", "mg of"])
    ours, reference = saved(hf, tmp_path)
    assert ours.kind == "byte-level BPE" and ours.added["<think>"] not in ours.special.values()
    more = ["<think>e\u0301</think>", "<think>>", "5 mg of x", "<|endoftext|><think>", "<think\u0338",
            "<think>\u0338", *(text.replace("a", "<think>") for text in SENTENCES)]
    compare(ours, reference, rng, 300, tuple(more))
    assert ours.decode(ours.encode("a <think> b")) == "a <think> b"


def test_llama3_files_of_both_kinds_equal_tiktoken_and_the_reference(tmp_path, rng):
    """Two vocabularies one after the other, the second backwards: many tokens that no joins reach."""
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    alphabet, ranks = byte_alphabet(), {}
    for hf in (hf_byte_level(LLAMA3, size=600), hf_byte_level(GPT2, size=500)):
        words = sorted(hf.get_vocab(), key=hf.get_vocab().get, reverse=bool(ranks))
        for word in (word for word in words if "<|" not in word):
            ranks.setdefault(bytes(alphabet[character] for character in word), len(ranks))
    for word in ("zqzqzqzq", "高血圧症患者", " unreachable", "aaa", "aaaa"):
        ranks.setdefault(word.encode(), len(ranks))
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    model, count = load_tokenizer(path), len(ranks)
    plain = tiktoken.Encoding("plain", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})
    compare(model, plain.encode_ordinary, rng)
    assert (model.bos_id, model.eos_id, model.vocab_size) == (count, count + 1, count + 256)
    assert model.special["<|eot_id|>"] == count + 9 and set(model.end_ids) == {count + 1, count + 9}
    assert model.special["<|start_header_id|>"] == count + 6
    assert model.special["<|reserved_special_token_250|>"] == count + 255
    converted = convert.TikTokenConverter(vocab_file=str(path), pattern=LLAMA3,
                                          extra_special_tokens=["<|begin_of_text|>"]).converted()
    for name, whole in (("json", True), ("joins_only", False)):
        (tmp_path / name).mkdir()
        settings = json.loads(converted.to_str())["model"] | {"ignore_merges": whole}
        compare(*saved(converted, tmp_path / name, model=settings), rng, 500,
                ("zqzqzqzq", "azqzqzqzq 高血圧症患者 unreachable", "aaaaaaa aaa aaaa"))


def test_special_token_text_in_user_input_stays_text_and_bos_is_there_once(tmp_path, spm):
    write_json(tmp_path / "tokenizer_config.json",
               {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|eot_id|>"}})
    for ours in (saved(hf_byte_level(LLAMA3), tmp_path, post_processor=BOS_FIRST)[0], load_tokenizer(spm)):
        for text in ["".join(ours.special), *ours.special, "x"]:
            ids = ours.encode(text, bos=True, eos=True)
            assert ids[0] == ours.bos_id and ids[-1] == ours.eos_id
            assert ids[1:-1] == ours.encode(text) and not set(ours.special.values()) & set(ids[1:-1])
            assert ours.decode(ids) == text
            # the one before the first word, as the reference shows it
            shown = (" " if ours.kind == "sentencepiece" else "") + text
            assert ours.decode(ids, special=True) == ours.piece(ids[0]) + shown + ours.piece(ours.eos_id)


def test_settings_beside_the_tokenizer_name_its_tokens(tmp_path):
    ours, _ = saved(hf_byte_level(QWEN2), tmp_path)
    assert ours.eos_id is None
    with pytest.raises(UserError, match="no bos token"):
        ours.encode("x", bos=True)
    qwen2 = {"bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    for name, content, named_bos, eos, pad, ends in [  # each added to those before
            ("config", {"eos_token_id": [0, 1]}, None, 0, None, (0, 1)),
            ("generation_config", {"eos_token_id": [1, 0], "bos_token_id": 0}, 0, 1, None, (0, 1)),
            ("tokenizer_config", qwen2, None, 0, 0, (0, 1))]:  # no bos, though another file names one
        write_json(tmp_path / f"{name}.json", content)
        ours = load_tokenizer(tmp_path)
        assert (ours.bos_id, ours.named_bos_id, ours.eos_id, ours.pad_id) == (None, named_bos, eos, pad)
        assert ours.end_ids == ends
    assert [path.name for path in ours.files] == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("named", [
    {"extra_special_tokens": ["<|tool|>"]}, {"extra_special_tokens": {"tool_token": "<|tool|>"}},
    {"additional_special_tokens": [{"content": "<|tool|>"}]}, {"image_token": "<|tool|>"}])
@pytest.mark.parametrize("change", [{}, {"normalizer": {"type": "Lowercase"}}], ids=["own", "reference"])
def test_a_token_that_the_settings_name_is_special(tmp_path, named, change):
    write_json(tmp_path / "tokenizer_config.json", named)
    ours, _ = saved(hf_byte_level(LLAMA3, added=["<|tool|>"]), tmp_path, **change)
    assert ours.special["<|tool|>"] not in ours.encode("see <|tool|> here")


@pytest.mark.parametrize("processor", [
    None, BOS_FIRST, {"type": "Sequence", "processors": [BYTE_LEVEL, BOS_FIRST]}, {
        "type": "RobertaProcessing", "sep": ["<|eot_id|>", 1], "cls": ["<|endoftext|>", 0],
        "trim_offsets": True, "add_prefix_space": False}], ids=str)
@pytest.mark.parametrize("choice", [{}, {"add_bos_token": True}, {"add_bos_token": False}], ids=str)
@pytest.mark.parametrize("flags", [{}, {"special": True}], ids=str)
def test_bos_and_the_flags_of_tokens_are_as_transformers_reads_them(tmp_path, processor, choice, flags):
    transformers = pytest.importorskip("transformers")
    decoder = {"700": {"content": "<think>", "special": False, "normalized": False} | flags}
    write_json(tmp_path / "tokenizer_config.json", HF_SETTINGS | choice | {"added_tokens_decoder": decoder})
    ours, _ = saved(hf_byte_level(LLAMA3, added=["<think>"]), tmp_path, post_processor=processor)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (ours.bos_id == 0) == (theirs.encode("Fever")[0] == 0)
    ids = theirs("a<think>b", split_special_tokens=True, add_special_tokens=False).input_ids
    assert ours.encode("a<think>b") == ids


@pytest.mark.parametrize("choice", ["yes", "no"])
def test_a_choice_of_bos_is_saved_with_the_tokenizer(tmp_path, choice):
    transformers = pytest.importorskip("transformers")
    write_json(tmp_path / "tokenizer_config.json", HF_SETTINGS)
    saved(hf_byte_level(LLAMA3), tmp_path)
    ours = load_tokenizer(tmp_path, bos=choice)
    (tmp_path / "saved").mkdir()
    save_tokenizer(ours, tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.bos_id == ours.bos_id == (0 if choice == "yes" else None)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.encode("Fever") == ours.encode("Fever", bos=choice == "yes")


def test_surrogates_are_replaced_broken_bytes_decoded_and_ids_outside_rejected(tmp_path, spm):
    for ours in (saved(hf_byte_level(LLAMA3), tmp_path)[0], load_tokenizer(spm)):
        assert ours.encode("a\ud800b\udfff") == ours.encode("a\ufffdb\ufffd")
        assert ours.encode("\ud83d\ude00") == ours.encode("😀")
        assert "\ufffd" in ours.decode(ours.encode("𠀋")[:-1])
        with pytest.raises(ValueError, match="outside the vocabulary"):
            ours.decode([ours.vocab_size])
        for index in range(ours.vocab_size):
            assert isinstance(ours.decode([index]), str) and isinstance(ours.piece(index), str)


def test_fingerprint_follows_what_makes_the_ids(tmp_path, spm):
    prints = {load_tokenizer(spm).fingerprint}
    prints.add(train_sentencepiece(corpus(), tmp_path / "sp", 700).fingerprint)
    for pattern, size in ((LLAMA3, 500), (GPT2, 500), (LLAMA3, 501)):
        hf = hf_byte_level(pattern, size=size, added=["<think>"])
        prints.add(saved(hf, tmp_path)[0].fingerprint)
    without_effect = {"0": added_token(0, "<|endoftext|>", True) | {"lstrip": True}}
    write_json(tmp_path / "tokenizer_config.json", {"legacy": False, "added_tokens_decoder": without_effect})
    prints.add(load_tokenizer(tmp_path).fingerprint)
    model = json.loads(hf.to_str())["model"]  # same size, other merges
    prints.add(saved(hf, tmp_path, model=model | {
        "merges": [*model["merges"][:-2], model["merges"][-1], model["merges"][-2]]})[0].fingerprint)
    assert len(prints) == 6


@pytest.mark.parametrize("unit", ["a", " ", "中", "! ", "aé中"])
def test_time_grows_with_the_length_of_a_repeated_text(tmp_path, spm, unit):
    for ours in (saved(hf_byte_level(LLAMA3), tmp_path)[0], load_tokenizer(spm)):
        ours.encode(unit * 1000)

        def seconds(count, ours=ours):
            start = time.process_time()
            ours.encode(unit * count)
            return time.process_time() - start

        assert grows_at_most(seconds, 100_000, 400_000, 8, slack=0.1)  # quadratic: 16


def test_damaged_files_are_rejected_in_one_line(spm, tmp_path):
    good, content = (spm / "tokenizer.model").read_bytes(), hf_byte_level(LLAMA3).to_str()
    ranks = [base64.b64encode(bytes([byte])).decode() + f" {byte}" for byte in range(256)]
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 1000\n"
    models = [b"", b"hello world\n" * 10, bytes(5000), good[:10], good[:len(good) // 2], good + b"\x0f",
              good + build_message((1, 7)), pointer]
    models += ["\n".join(lines).encode()
               for lines in (ranks[:200], [*ranks[:99], "a*b= 99"], [*ranks, ranks[0]])]
    files = [b"", b"[]", b'{"model": 3}', content[:900].encode(), pointer,
             content.replace('"a":', '"b":', 1).replace('"type":"BPE"', '"type":"XYZ"').encode()]
    cases = [("tokenizer.model", data) for data in models] + [("tokenizer.json", data) for data in files]
    for name, data in cases:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            load_tokenizer(path)
            pytest.fail(f"{name}: {data[:60]} accepted")
        assert str(path) in str(caught.value) and ("Git LFS" in str(caught.value)) == (data == pointer)
    (tmp_path / "tokenizer.model").write_bytes(good)
    (tmp_path / "tokenizer_config.json").write_bytes(pointer)
    with pytest.raises(UserError, match=r"tokenizer_config.json: a Git LFS pointer"):
        load_tokenizer(tmp_path)
