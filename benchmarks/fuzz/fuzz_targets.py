"""What fuzz.py fuzzes: for each parser of strangers' files some good files to start from, and how the product reads one.

A target's `run(folder, data)` puts the bytes where such a file lies and reads it as the commands do, to the last row. It must end
without an exception or with a `UserError` of one line (`allowed` names others that its callers handle); what else must hold
(good lines stay, nothing is written elsewhere) it asserts.
"""
from __future__ import annotations

import base64
import csv
import functools
import gzip
import io
import itertools
import json
import random
import re
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT = "Pneumonia is treated with antibiotics; fièvre et toux, 肺炎 患者 発熱, лихорадка и кашель. "


@dataclass(frozen=True)
class Target:
    seeds: Callable[[], list[bytes]]
    run: Callable[[Path, bytes], Any]
    json: bool = False                          # JSON or lines of it: trees are changed, too
    allowed: tuple[type[BaseException], ...] = ()


def dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# ------------------------------------------------------------------------------------------------------------------ corpus

def run_jsonl(folder: Path, data: bytes) -> None:
    """Lines around the strange ones are kept whatever stands between."""
    from data_prep.documents import Funnel, LineWriter, read_documents

    funnel = Funnel()
    path = put(folder, "a.jsonl", b'{"text": "first"}\n' + data + b'\n{"text": "last"}\n')
    documents = list(read_documents(path, funnel))
    texts = [document.text for document in documents]
    assert texts[0] == "first" and texts[-1] == "last", texts[:1] + texts[-1:]
    assert not [text for text in texts if "\ud800" <= max(text) <= "\udfff" or "\0" in text]
    with LineWriter(folder / "b.jsonl") as out:
        for document in documents:
            out.write(document.to_dict())
    again = Funnel()
    assert [document.text for document in read_documents(folder / "b.jsonl", again)] == texts and not again.dropped


def run_packed(suffix: str, folder: Path, data: bytes) -> None:
    from data_prep.documents import Funnel, read_documents

    for document in read_documents(put(folder, f"a{suffix}", data), Funnel()):
        assert document.text


def seeds_parquet() -> list[bytes]:
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": TEXT * n, "id": str(n), "url": None if n % 3 else "u", "n": float(n)} for n in range(1, 40)]
    out = []
    for compression in ("snappy", "gzip", "zstd", "none"):
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, compression=compression, row_group_size=15)
        out.append(sink.getvalue())
    return out


WIKI = ('<mediawiki xml:lang="fr"><siteinfo><base>https://fr.example/wiki/A</base><namespaces><namespace key="6">Fichier</namespace></namespaces></siteinfo>\n'
        "<page><title>Asthme</title><ns>0</ns><id>3</id><revision><text>L'''asthme''' est une [[maladie|maladie]] {{unité|3|kg}} &lt;ref&gt;x&lt;/ref&gt; "
        "{| class=a\n|-\n| b\n|}\n== Titre ==\n* [[Fichier:a.png|thumb|b]]\n&lt;!-- c --&gt; -{zh-hans:a;zh-hant:b}- [http://x.org y]</text></revision></page>\n"
        '<page><title>B</title><ns>0</ns><id>4</id><redirect title="Asthme" /><revision><text>#REDIRECT</text></revision></page></mediawiki>\n').encode()


def run_robots(folder: Path, data: bytes) -> None:
    from data_prep.sources.robots import allowed, parse_robots

    rules = parse_robots(data.decode("utf-8", "replace"), "mmed")
    for path in ("/", "/a/b?c=d", "/" + "a" * 500):
        allowed(rules, path)


PAGE = (b'<!DOCTYPE html><html lang="fr"><head><meta charset="utf-8"><title>Asthme</title><script>alert(1)</script><meta name="date" content="2020-01-01">'
        b'<link rel="license" href="https://creativecommons.org/licenses/by/4.0/"></head><body><nav><a href="/x">x</a></nav><article><h1>Asthme</h1>'
        + f"<p>{TEXT * 3}</p><table><tr><td>a</td></tr></table><ul><li>b &amp; c</li></ul>".encode() + b"</article><footer>f</footer></body></html>")


def run_html(folder: Path, data: bytes) -> None:
    """Both parsers of pages: for links (the crawler) and for text (its own process in the product: what ends this one does not end that)."""
    from data_prep.fetch_site import page_links
    from data_prep.sources.http_get import clean_url
    from data_prep.sources.page_text import read_page

    page = read_page(data, "", "https://example.org/a")
    assert "reason" in page or page["text"]
    links, _ = page_links(data.decode("utf-8", "replace"), "https://example.org/a")
    assert all(clean_url("", link) == link for link in links)


def seeds_archives() -> list[bytes]:
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"a/{number}.html", PAGE)
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"a/{number}.html")
            info.size = len(PAGE)
            archive.addfile(info, io.BytesIO(PAGE))
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + PAGE
    warc = b"".join(b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://example.org/%d\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n" % (n, len(answer), answer)
                    for n in range(2))
    return [b"Z" + zipped.getvalue(), b"T" + tarred.getvalue(), b"T" + gzip.compress(tarred.getvalue(), mtime=0), b"W" + warc, b"W" + gzip.compress(warc, mtime=0)]


def run_archives(folder: Path, data: bytes) -> None:
    """The first byte says what the file is called."""
    from data_prep.sources.page_files import Limits, read_pages

    (folder / "in").mkdir(exist_ok=True)
    before = sorted(folder.rglob("*"))
    name = {b"T": "a.tar", b"W": "a.warc"}.get(data[:1], "a.zip")
    path = put(folder / "in", name, data[1:])
    for page in read_pages(path, Limits(page_bytes=1 << 20, entries=1000), Counter()):
        assert page.reason or len(page.body) <= 1 << 20
    path.unlink()
    assert sorted(folder.rglob("*")) == before, "something was written"


def seeds_recipe() -> list[bytes]:
    text = (Path(__file__).parents[2] / "examples" / "corpus.toml").read_text(encoding="utf-8")
    text = re.sub(r'"[^"\n]*/[^"\n]*"', '"."', text)  # its files are not there
    short = 'tokenizer = "."\ntitle = "x"\nheld_out = 0.01\nlanguages = ["en"]\n[[source]]\nlanguage = "en"\nkind = "web"\ninputs = ["."]\nlicence = "CC0"\n'
    return [text.encode(), short.encode(), short.replace("[[source]]", "near_duplicates = 1\nbenchmark = '.'\n[[source]]").encode()]


def run_recipe(folder: Path, data: bytes) -> None:
    from data_prep.pipeline.recipe import read_recipe, steps

    for step in steps(read_recipe(put(folder, "corpus.toml", data)), "out", 2):
        assert all(isinstance(word, str) for command in step.commands for word in command)


def run_card(folder: Path, data: bytes) -> None:
    """funnel.json of a step, read by the corpus card and the report."""
    from data_prep.pipeline.corpus_card import card, collect
    from data_prep.pipeline.recipe import Recipe, Source
    from mmed.reporting.read_results import read_corpus

    place = folder / "corpus" / "sources" / "en-1"
    place.mkdir(parents=True, exist_ok=True)
    put(place, "funnel.json", data)
    recipe = Recipe(".", [Source("en", "web", ["."])])
    try:
        card(recipe, collect(recipe, folder / "corpus"))
    finally:
        read_corpus([str(folder / "corpus")])


def seeds_pdf() -> list[bytes]:
    def pdf(*objects: bytes) -> bytes:
        out, places = b"%PDF-1.7\n", []
        for number, content in enumerate(objects, 1):
            places.append(len(out))
            out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
        table = b"".join(b"%010d 00000 n \n" % place for place in places)
        return out + b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (
            len(places) + 1, table, len(places) + 1, len(out))

    content = b"BT /F 12 Tf 40 500 Td (" + b"Heart failure is treated. " * 5 + b") Tj ET"
    return [pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
                b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 400 600]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>",
                b"<</Length %d>>\nstream\n%s\nendstream" % (len(content), content), b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>")]


def run_pdf(folder: Path, data: bytes) -> None:
    from data_prep.sources.pdf_pages import Limits, Pages

    with Pages(put(folder, "a.pdf", data), Limits(pages=100, page_seconds=5, memory_mib=1024)) as pages:
        for page in range(min(pages.count, 3)):
            pages.read(page)


# ------------------------------------------------------------------------------------------------------------------ models

def seeds_safetensors() -> list[bytes]:
    header = {"__metadata__": {"format": "pt"}, "a.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
              "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}, "c": {"dtype": "I64", "shape": [], "data_offsets": [22, 30]}}
    return [dumps(header), dumps({"a": {"dtype": "U8", "shape": [30], "data_offsets": [0, 30]}})]


def run_safetensors(folder: Path, data: bytes) -> None:
    """The header is fuzzed; its length is right nine times in ten."""
    from mmed.checkpoints.safe import read_tensors

    length = len(data) if sum(data[-40:]) % 10 else sum(data) * 2654435761 % 2 ** 64
    tensors = read_tensors(put(folder, "model.safetensors", length.to_bytes(8, "little") + data + bytes(range(30))))
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) == 30


def run_index(folder: Path, data: bytes) -> None:
    from mmed.checkpoints.safe import stored_tensors

    for name in ("one", "two"):
        if not (folder / f"{name}.safetensors").is_file():
            header = dumps({name: {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}})
            put(folder, f"{name}.safetensors", len(header).to_bytes(8, "little") + header + b"abc")
    put(folder, "model.safetensors.index.json", data)
    assert all(stored.path.parent == folder for stored in stored_tensors(folder).values())


CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu",
          "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
          "bos_token_id": 1, "eos_token_id": [2, 3], "torch_dtype": "bfloat16", "tie_word_embeddings": False}
CONFIGS = [CONFIG, {**{k: v for k, v in CONFIG.items() if k != "rope_scaling"}, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8,
                    "max_window_layers": 1, "layer_types": ["full_attention", "sliding_attention"]},
           {**{k: v for k, v in CONFIG.items() if k not in ("rope_scaling", "hidden_act")}, "model_type": "gemma3_text", "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 8,
            "query_pre_attn_scalar": 16, "rope_local_base_freq": 1e4},
           {"model_type": "bloom", "vocab_size": 64, "hidden_size": 16, "n_layer": 2, "n_head": 4, "layer_norm_epsilon": 1e-5},
           {**{k: v for k, v in CONFIG.items() if not k.startswith("rope")}, "model_type": "internlm", "bias": True, "rotary": {"base": 10000, "type": "dynamic"}}]


def run_config(folder: Path, data: bytes) -> None:
    """Read, and given to a model without memory; more than 10 layers are not built here, or the fuzzer would do nothing else."""
    import torch

    from mmed.checkpoints.pretrained import load_config
    from mmed.model import Transformer

    put(folder, "config.json", data)
    config = load_config(folder)
    if config.num_hidden_layers <= 10:
        with torch.device("meta"):
            Transformer(config)


ADAPTER = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "x", "r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "bias": "none",
           "use_rslora": False, "target_modules": ["q_proj", "v_proj"], "modules_to_save": None, "rank_pattern": {}, "fan_in_fan_out": False}


@functools.cache
def small_model() -> Any:
    from mmed.checkpoints.families import read_config
    from mmed.model import Transformer

    return read_config(CONFIG), Transformer


def run_adapter(folder: Path, data: bytes) -> None:
    from mmed.checkpoints.adapters import load_adapter, save_adapter
    from mmed.lora import apply_lora

    config, build = small_model()
    if not (folder / "adapter_model.safetensors").is_file():
        model = build(config).init_weights(1)
        apply_lora(model, 4, 8, 0.05, "q_proj,v_proj")
        save_adapter(model, folder)
    put(folder, "adapter_config.json", data)
    load_adapter(build(config).init_weights(1), folder)


def run_stream(folder: Path, data: bytes) -> None:
    """The side file is fuzzed; then rows are read as training reads them."""
    import numpy as np

    from mmed.data import PretrainRows, TokenStream

    put(folder, "s.bin", np.arange(100, dtype="<u2").tobytes())
    put(folder, "s.idx", np.array([40, 100], dtype="<u8").tobytes())
    put(folder, "s.json", data)
    rows = PretrainRows([TokenStream(folder / "s", verify=True)], 16, seed=1)
    for number in range(3):
        rows.row(number)


def seeds_stream() -> list[bytes]:
    import hashlib

    import numpy as np

    hashes = {"bin": hashlib.sha256(np.arange(100, dtype="<u2").tobytes()).hexdigest(), "idx": hashlib.sha256(np.array([40, 100], dtype="<u8").tobytes()).hexdigest()}
    return [dumps({"format": 1, "dtype": "uint16", "vocab_size": 128, "tokens": 100, "documents": 2, "counts": {"en": {"web": {"tokens": 100, "documents": 2}}},
                   "tokenizer": "f" * 64, "sha256": hashes})]


def run_index_file(folder: Path, data: bytes) -> None:
    """The document ends of a stream, and its tokens, under hashes that fit: what a stranger's tool wrote."""
    import hashlib

    from mmed.data import PretrainRows, TokenStream

    ends, ids = data[:24], data[24:]
    put(folder, "s.bin", ids)
    put(folder, "s.idx", ends)
    side = json.loads(seeds_stream()[0]) | {"tokens": len(ids) // 2, "documents": len(ends) // 8,
                                            "sha256": {"bin": hashlib.sha256(ids).hexdigest(), "idx": hashlib.sha256(ends).hexdigest()}}
    put(folder, "s.json", dumps(side))
    stream = TokenStream(folder / "s", verify=True)
    for windows in ("packed", "official"):
        rows = PretrainRows([stream], 16, seed=1, windows=windows, eos_id=2)
        for number in range(3):
            row = rows.row(number)
            assert row.input_ids.max() < 128 and len(row.input_ids) == 16


def seeds_index_file() -> list[bytes]:
    import numpy as np

    return [np.array([8, 16, 24], dtype="<u8").tobytes() + (np.arange(24, dtype="<u2") % 100).tobytes()]


# -------------------------------------------------------------------------------------------------------------- tokenizers

@functools.cache
def trained() -> dict[str, bytes]:
    """Small sentencepiece models of both kinds, with and without a character map."""
    import logging

    from mmed.tokenizer import train_sentencepiece

    logging.disable()
    rng = random.Random(3)
    words = TEXT.split()
    texts = [TEXT] * 10 + [" ".join(rng.choices(words, k=12)) for _ in range(200)]
    models = {}
    for name, options in {"bpe": {}, "unigram": dict(model_type="unigram", normalizer="nmt_nfkc"), "symbols": dict(user_defined_symbols=["<mask>", "mg"])}.items():
        with tempfile.TemporaryDirectory() as folder:
            train_sentencepiece(texts, folder, 312, **options)
            models[name] = (Path(folder) / "tokenizer.model").read_bytes()
    return models


def use_tokenizer(path: Path) -> None:
    from mmed.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(path)
    for text in (TEXT, "", " a  b ", "ﬁ ① ｶﾞ e\u0301 \u200b\ud800\0", "x" * 300, "<s></s><|eot_id|>"):
        ids = tokenizer.encode(text)
        assert all(0 <= index < tokenizer.vocab_size for index in ids)
        tokenizer.decode(ids)
    for index in range(0, tokenizer.vocab_size, max(1, tokenizer.vocab_size // 50)):
        tokenizer.piece(index)
        tokenizer.decode([index])


def run_sentencepiece(folder: Path, data: bytes) -> None:
    use_tokenizer(put(folder, "tokenizer.model", data))


def seeds_charsmap() -> list[bytes]:
    """The character map of a unigram model by itself: the part that C++ walks through without looking."""
    from mmed.tokenization.sentencepiece_model import SentencePieceModel

    return [SentencePieceModel(trained()["unigram"], "x").rules[2]]


def run_charsmap(folder: Path, data: bytes) -> None:
    from mmed.tokenization.sentencepiece_model import build_message, parse_message

    body = b""
    for number, value in parse_message(trained()["unigram"]):
        body += build_message((number, value if number != 3 else build_message((2, data), (3, 1), (4, 1), (5, 1))))
    use_tokenizer(put(folder, "tokenizer.model", body))


def seeds_tiktoken() -> list[bytes]:
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"he", b"the", "肺".encode()[:2], "肺".encode()]
    return [b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))]


def seeds_tokenizer_json() -> list[bytes]:
    from mmed.tokenization.bpe import LLAMA3, SPACE, byte_alphabet

    letters = list(byte_alphabet())
    merges = [["t", "h"], ["th", "e"], ["Ġ", "the"]]
    vocabulary = {piece: index for index, piece in enumerate([*letters, *("".join(merge) for merge in merges)])}
    added = [{"id": 300, "content": "<|endoftext|>", "special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False},
             {"id": 301, "content": "drug", "special": False, "normalized": False}]
    split = {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False},
                                                   {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}
    byte_level = {"version": "1.0", "added_tokens": added, "normalizer": {"type": "NFC"}, "pre_tokenizer": split, "decoder": {"type": "ByteLevel"},
                  "model": {"type": "BPE", "vocab": vocabulary, "merges": merges, "dropout": None, "unk_token": None, "byte_fallback": False}}
    gpt2 = byte_level | {"normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
                         "model": byte_level["model"] | {"merges": [" ".join(merge) for merge in merges]}}
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, "t", "h", "e", "th", "the", SPACE + "the"]
    llama = {"added_tokens": [{"id": 1, "content": "<s>", "special": True}], "pre_tokenizer": None, "decoder": None,
             "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]},
             "model": {"type": "BPE", "vocab": {piece: index for index, piece in enumerate(pieces)}, "merges": [["t", "h"], ["th", "e"], [SPACE, "the"]],
                       "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}}
    return [dumps(byte_level), dumps(gpt2), dumps(llama)]


def run_tokenizer_json(folder: Path, data: bytes) -> None:
    use_tokenizer(put(folder, "tokenizer.json", data))


SETTINGS = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None, "additional_special_tokens": ["<|im_end|>"],
            "added_tokens_decoder": {"312": {"content": "<|im_end|>", "special": True}, "313": {"content": "drug", "special": False}}, "tokenizer_class": "x",
            "chat_template": "{{ x }}", "model_max_length": 1e30}


def run_settings(folder: Path, data: bytes) -> None:
    """One of the JSON files beside a tokenizer."""
    if not (folder / "tokenizer.model").is_file():
        put(folder, "tokenizer.model", trained()["bpe"])
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json", "config.json"):
        put(folder, name, b"{}")
    if b"_token_id" in data:
        name = "generation_config.json"
    elif b"_token" in data:
        name = ("tokenizer_config.json", "special_tokens_map.json")[sum(data) % 2]
    else:
        name = "added_tokens.json"
    put(folder, name, data)
    use_tokenizer(folder)


def seeds_encoder() -> list[bytes]:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh肺炎", "##a", "##b", "##c"]
    wordpiece = {"added_tokens": [{"id": 2, "content": "[CLS]", "special": True}], "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                 "strip_accents": None, "lowercase": True}, "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": {"type": "WordPiece"},
                 "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                           "vocab": {piece: index for index, piece in enumerate(pieces)}}}
    unigram = {"added_tokens": [{"id": index, "content": text, "special": True} for index, text in enumerate(["<s>", "<pad>", "</s>", "<unk>"])],
               "normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}, "decoder": None,
               "model": {"type": "Unigram", "unk_id": 3, "vocab": [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁", -2.0], ["a", -3.0], ["▁a", -1.0]]}}
    return [dumps(wordpiece), dumps(unigram)]


def run_encoder(folder: Path, data: bytes) -> None:
    from mmed.evaluation.wordpiece import load_encoder_tokenizer

    put(folder, "tokenizer.json", data)
    load_encoder_tokenizer(folder).encode(TEXT + "ﬁ ① e\u0301 \ud800\0" + "x" * 300)


# -------------------------------------------------------------------------------------------------- questions and results

ITEMS = [{"question": "What is asthma?", "options": {"A": "a disease", "B": "a drug", "C": "肺"}, "answer_idx": "A,C", "rationale": "because", "human_checked": True,
          "human_check_passed": True, "id": "x1", "meta_info": {"topic": "y"}},
         {"question": "Which?", "options": {"A": "this", "B": "that"}, "answer_idx": ["B"], "rationale": None}]


def run_exam(folder: Path, data: bytes) -> None:
    from mmed.prompts import build_few_shot, build_messages, build_target, pick_examples, read_benchmark

    items = read_benchmark(put(folder, "English.jsonl", data))
    for item in items:
        for style in ("clean", "official"):
            build_few_shot(item, pick_examples(items, item, 0), False, style)
            build_messages(item, False, style)
            build_target(item, False, style)


ANSWERS = ["###Rationale: It is safe.\n###Answer: OPTION A,C IS CORRECT.", "Not A. The answer is (Ｂ)", "**Answer:** \\boxed{B}", "A. a disease\nB. a drug\nThe answer is A and C, not B.",
           "答案：Ｂ。因为", "Ответ: А", "La réponse est A", "回答はCです", "<think>A or B?</think> C", "Answer: A Answer: B", "I can't say", "Option A is wrong, option B is right"]


def run_answers(folder: Path, data: bytes) -> None:
    from mmed.evaluation.answer_parser import parse_answer

    text = data.decode("utf-8", "surrogateescape")
    for options in (ITEMS[0]["options"], {letter: f"({letter}) [x]+ {letter}" for letter in "ABCDEFGHIJ"}, "ABCDE"):
        for expected in (True, False):
            found = parse_answer(text, options, expected)
            assert set(found.letters) <= set(options) and found.status in ("strict", "lenient", "unparsed")


def run_csv(folder: Path, data: bytes) -> None:
    from data_prep.benchmark.other_exams import read_custom

    path = put(folder, "x.csv", data)
    mapping = {"question": "question", "options": "a+b+c", "answer": "answer", "kind": "letter", "id": "id"}
    for raw in read_custom(path, [], source=None, language="en", mapping=mapping):
        assert raw.options is not None


def seeds_csv() -> list[bytes]:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows([["question", "a", "b", "c", "answer", "id"], ["What?", 'th"is', "that,\nyes", "", "A", "1"], ["=HYPERLINK(1)", "x", "y", "z", "B,C", "2"]])
    return [out.getvalue().encode(), b"\xef\xbb\xbf" + out.getvalue().replace("\r\n", "\n").encode()]


@functools.cache
def rating_files() -> dict[str, bytes]:
    from mmed.human_eval.rating import read_key, write_sheets
    from mmed.human_eval.rating_data import Case

    cases = [Case(f"k{n}", "English", "What?", {"A": "x", "B": "y"}, "A", "because", {"one": f"a{n}", "two": f"b{n}"}) for n in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        write_sheets(Path(folder), ["one", "two"], cases, 1)
        key = next(Path(folder).glob("key*.json"))
        sheet = read_key(key)["sheets"]["English"]
        ratings = {"format": "mmed sheet ratings", "version": 1, "sheet": sheet["sheet"], "rater": "R", "scores": {
            item: {letter: rank for rank, letter in enumerate(entry["letters"], 1)} for item, entry in sheet["items"].items()}}
        return {"key": key.read_bytes(), "sheet": dumps(ratings)}


def run_sheet(folder: Path, data: bytes) -> None:
    """A rater's file against a good key, and the same bytes as a key."""
    from mmed.human_eval.rating import merge, read_key

    key = read_key(put(folder, "key.json", rating_files()["key"]))
    path = put(folder, "sheet.json", data)
    if b'"sheets"' in data:
        merge(read_key(path), [put(folder, "good.json", rating_files()["sheet"])])
    else:
        merge(key, [path])


def seeds_sheet() -> list[bytes]:
    return [rating_files()["sheet"], rating_files()["key"]]


REPLIES = [{"model": "m-1", "choices": [{"message": {"content": "B", "role": "assistant"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
           {"error": {"message": "rate limit", "code": 429}}, {"choices": [{"text": "A"}]}]


def run_reply(folder: Path, data: bytes) -> None:
    """A server's reply, and the same bytes as the store of calls."""
    from mmed.evaluation.api_calls import BadReply, CallStore, read_reply

    try:
        read_reply(data, "sk-canary-0123456789")
    except BadReply as error:
        assert len(str(error)) < 1000
    path = put(folder, "calls.jsonl", data)
    CallStore(path).close()


def seeds_reply() -> list[bytes]:
    return [*map(dumps, REPLIES), b"".join(dumps({"key": f"k{n}", "reply": {"text": "B", "finish_reason": "stop"}}) + b"\n" for n in range(3))]


@functools.cache
def result_files() -> dict[str, bytes]:
    from mmed.evaluation.results import text_row, write_results
    from mmed.prompts import ExamItem

    rows, prompts = [], {}
    for number, language in itertools.product(range(3), ("English", "Japanese")):
        item = ExamItem(f"Question {number}?", {"A": "yes", "B": "no"}, ("A",), "because it is so", language, f"{language}{number}", True, True)
        for mode in ("answer", "rationale"):
            rows.append(text_row(item, mode, "0" * 16, "###Rationale: because\n###Answer: OPTION A IS CORRECT.", "default"))
            prompts[item.key, mode] = "prompt"
    own = {"setting": "zero-shot", "adapter": None, "shots": 0, "words": "default", "model": "models/x", "limit": 0, "style": "clean", "scoring": "generate"}
    with tempfile.TemporaryDirectory() as folder:
        write_results(Path(folder), rows, prompts, {"model": "m" * 64, "data": "d" * 64, "versions": "1"}, own)
        return {name: (Path(folder) / name).read_bytes() for name in ("results.json", "predictions.jsonl")}


def run_results(folder: Path, data: bytes) -> None:
    """results.json or predictions.jsonl, read for a report and for rating sheets."""
    from mmed.human_eval.rating_data import read_cases
    from mmed.reporting.read_results import read_predictions, read_result

    for copy in ("a", "b"):
        (folder / copy).mkdir(exist_ok=True)
        for name, content in result_files().items():
            put(folder / copy, name, content)
    put(folder / "a", "results.json" if data.lstrip().startswith(b'{\n "') or b'"summary"' in data[:100_000] else "predictions.jsonl", data)
    try:
        results = [read_result(str(folder / copy)) for copy in ("a", "b")]
        read_predictions(results, 3)
    finally:
        read_cases([str(folder / "a"), str(folder / "b")], items=2)


def run_log(folder: Path, data: bytes) -> None:
    """run.json or metrics.jsonl of a run folder."""
    from mmed.reporting.read_results import read_run

    good = {"run.json": dumps({"recipe": "tiny", "config": {"task": "pretrain"}, "steps": 3, "world_size": 1}), "metrics.jsonl": LOG}
    for name, content in good.items():
        put(folder, name, content)
    put(folder, "run.json" if b'"config"' in data else "metrics.jsonl", data)
    read_run(str(folder))


LOG = b"".join(dumps({"step": n, "tokens": 100 * n, "loss": 5.0 - n, "tokens_per_second": 10.0, "validation_loss": {"en": 2.5}}) + b"\n" for n in range(3))


def book_error() -> tuple[type[BaseException], ...]:
    from data_prep.sources.pdf_pages import BookError

    return (BookError,)


TARGETS: dict[str, Target] = {
    "jsonl": Target(lambda: [dumps({"text": TEXT, "language": "fr", "source": "web", "id": "a", "meta": {"n": 1}}), dumps({"text": "a\u2028b", "lang": "en", "url": "u"})], run_jsonl, True),
    "gzip": Target(lambda: [gzip.compress((dumps({"text": TEXT}) + b"\n") * 5, mtime=0)], functools.partial(run_packed, ".jsonl.gz")),
    "parquet": Target(seeds_parquet, functools.partial(run_packed, ".parquet")),
    "wiki": Target(lambda: [WIKI], functools.partial(run_packed, ".xml")),
    "html": Target(lambda: [PAGE, PAGE.replace(b"utf-8", b"shift_jis")], run_html),
    "archives": Target(seeds_archives, run_archives),
    "robots": Target(lambda: [b"User-agent: *\nDisallow: /a*b$\nAllow: /a/%E4\nCrawl-delay: 2\nRequest-rate: 1/5\nUser-agent: mmed # x\nDisallow:\n"], run_robots),
    "pdf": Target(seeds_pdf, run_pdf, allowed=book_error()),
    "recipe": Target(seeds_recipe, run_recipe),
    "funnel": Target(lambda: [dumps({"step": "filter", "shards": 1, "documents": {"in": 9, "out": 4}, "characters": {"in": 90, "out": 40},
                                     "dropped": {"too short": {"documents": 5, "characters": 50, "examples": ["a"]}}, "details": {"x": 1}})], run_card, True),
    "safetensors": Target(seeds_safetensors, run_safetensors, True),
    "index": Target(lambda: [dumps({"metadata": {"total_size": 6}, "weight_map": {"one": "one.safetensors", "two": "two.safetensors"}})], run_index, True),
    "config": Target(lambda: list(map(dumps, CONFIGS)), run_config, True),
    "adapter": Target(lambda: [dumps(ADAPTER)], run_adapter, True),
    "stream": Target(seeds_stream, run_stream, True),
    "stream-bytes": Target(seeds_index_file, run_index_file),
    "sentencepiece": Target(lambda: list(trained().values()), run_sentencepiece),
    "charsmap": Target(seeds_charsmap, run_charsmap),
    "tiktoken": Target(seeds_tiktoken, run_sentencepiece),
    "tokenizer-json": Target(seeds_tokenizer_json, run_tokenizer_json, True),
    "tokenizer-settings": Target(lambda: [dumps(SETTINGS), dumps({"<x>": 312}), dumps({"eos_token_id": [2, 3]})], run_settings, True),
    "encoder-tokenizer": Target(seeds_encoder, run_encoder, True),
    "exam": Target(lambda: [b"\n".join(map(dumps, ITEMS)) + b"\n"], run_exam, True),
    "csv": Target(seeds_csv, run_csv),
    "answers": Target(lambda: [text.encode() for text in ANSWERS], run_answers),
    "sheet": Target(seeds_sheet, run_sheet, True),
    "reply": Target(seeds_reply, run_reply, True),
    "results": Target(lambda: list(result_files().values()), run_results, True),
    "log": Target(lambda: [LOG, dumps({"recipe": "tiny", "config": {"task": "pretrain"}, "steps": 3})], run_log, True),
}
