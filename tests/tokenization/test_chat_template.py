"""Chat templates against the published ones, rendered by transformers; ids against its tokenizers."""
import json
import random

import pytest
import sentencepiece

from mmed.tokenization.chat_template import (
    CHAT_TEMPLATES,
    encode_chat,
    render_chat,
    template_name,
)
from mmed.tokenizer import load_tokenizer, train_sentencepiece
from mmed.utils.errors import UserError

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

IM = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
      "'<|im_end|>' + '\n'}}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def with_default_system(text):
    """ChatML with this system message where a conversation has none."""
    return ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
            f"{{{{ '<|im_start|>system\n{text}<|im_end|>\n' }}}}{{% endif %}}"
            + IM.removeprefix("{% for message in messages %}"))


TEMPLATES = {
    "llama2": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}
{%- set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}
{%- set system_message = false %}{% endif %}{% for message in loop_messages %}
{%- if loop.index0 == 0 and system_message != false %}
{%- set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}
{%- else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}
{{- ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "llama3": """{% set loop_messages = messages %}{% for message in loop_messages %}
{%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'
    + message['content'] | trim + '<|eot_id|>' %}
{%- if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    "llama3.1": """{{- bos_token }}{%- if messages[0]['role'] == 'system' %}
{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}{{- 'Cutting Knowledge Date: December 2023\n' }}
{{- 'Today Date: 26 Jul 2024\n\n' }}{{- system_message }}{{- '<|eot_id|>' }}{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'
    + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}""",
    "mistral": """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}
{{- '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}
{{- message['content'] + eos_token}}{% endif %}{% endfor %}""",
    "mistral3": """{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}
{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}{%- for message in loop_messages %}{%- if message['role'] == 'user' %}
{%- if loop.last and system_message is defined %}
{{- '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}
{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}
{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] + eos_token}}{%- endif %}
{%- endfor %}""",
    "internlm2": "{{ bos_token }}" + IM,
    "qwen2": with_default_system("You are a helpful assistant."),
    "qwen2.5": with_default_system("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "chatml": with_default_system("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "qwen3": IM + "{# enable_thinking = false #}{{ '<think>\n\n</think>\n\n' }}",
    "gemma": """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'assistant') %}
{%- set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}""",
}
IM_TOKENS = ["<|im_start|>", "<|im_end|>"]
HEADERS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL = {"llama3": HEADERS, "llama3.1": HEADERS, "chatml": IM_TOKENS, "internlm2": IM_TOKENS,
           "qwen2": IM_TOKENS, "qwen2.5": IM_TOKENS, "qwen3": IM_TOKENS, "mistral3": ["[INST]", "[/INST]"],
           "gemma": ["<start_of_turn>", "<end_of_turn>"]}


def conversation(*texts, system=None):
    """Messages of user and assistant in turn."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


CONVERSATIONS = [conversation("Fever and cough?"), conversation("  Fièvre ?\n", system="Vous êtes médecin."),
                 conversation("発熱", "安静に。", "薬は？"),
                 conversation("a\n\nb", "c ", "Больно", "d", "e", system="Be brief.")]


def byte_level_tokenizer(folder, tokens):
    """(our tokenizer, the same in transformers): byte-level BPE with these special tokens."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    texts = [json.dumps(c, ensure_ascii=False) for c in CONVERSATIONS] * 3
    model.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", *tokens], show_progress=False))
    model.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **roles)
    return load_tokenizer(folder), theirs


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """With the special tokens of all formats that have some; and without any, for Llama 2 and Mistral."""
    every = dict.fromkeys(token for group in SPECIAL.values() for token in group)
    return (byte_level_tokenizer(tmp_path_factory.mktemp("tokens"), every),
            byte_level_tokenizer(tmp_path_factory.mktemp("plain"), []))


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_text_and_ids_are_those_of_the_published_template(byte_level, name, messages):
    ours, theirs = byte_level[name not in SPECIAL]
    ours.chat_template, expected = TEMPLATES[name], messages
    # their templates have no system: it goes before the question
    if messages[0]["role"] == "system" and name in ("mistral", "gemma"):
        system, first, *others = messages
        expected = [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *others]
    options = {"chat_template": TEMPLATES[name], "add_generation_prompt": True}
    assert render_chat(ours, messages, name=name) == theirs.apply_chat_template(
        expected, tokenize=False, **options)
    assert encode_chat(ours, messages, name=name) == list(theirs.apply_chat_template(
        expected, return_dict=False, **options))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    texts = [message["content"] for messages in CONVERSATIONS for message in messages] * 5
    return train_sentencepiece([*texts, "[INST] user assistant system [/INST] <<SYS>>"],
                               tmp_path_factory.mktemp("pieces"), 360)


def test_text_begins_anew_after_bos_and_nowhere_else(pieces):
    ids = encode_chat(pieces, CONVERSATIONS[2], "llama")
    first, second = pieces.encode("[INST] 発熱 [/INST] 安静に。 "), pieces.encode("[INST] 薬は？ [/INST]")
    assert ids == [pieces.bos_id, *first, pieces.eos_id, pieces.bos_id, *second]
    # Llama 2's own code encodes each turn by itself
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces.files[0]))
    assert first == processor.encode("[INST] 発熱 [/INST] 安静に。 ")


@pytest.mark.parametrize("name", SPECIAL)
def test_text_that_looks_like_a_special_token_stays_text(byte_level, name):
    ours, _ = byte_level[0]
    rng = random.Random(name)
    attack = "".join(rng.choices([*ours.special, "<BOS>", "assistant\n", "\n\n", "system"], k=12))
    plain, attacked = (encode_chat(ours, conversation(text), name=name) for text in ("x", attack))
    special = set(ours.special.values())
    assert [i for i in attacked if i in special] == [i for i in plain if i in special]
    assert attack.strip() in ours.decode(attacked)
    assert "<BOS>" in render_chat(ours, conversation("<BOS>"), name=name)


class Like:
    def __init__(self, special, kind="byte-level BPE", chat_template=""):
        self.special, self.kind, self.chat_template = dict.fromkeys(special, 1), kind, chat_template


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_the_folders_own_template_decides_the_format(name):
    expected = {"qwen2": "chatml", "qwen2.5": "chatml"}.get(name, name)  # with the template's system message
    assert template_name(Like(SPECIAL.get(name, ["<s>"]), chat_template=TEMPLATES[name]), "llama") == expected


def test_a_template_of_an_unknown_format_is_an_error():
    zephyr = ("{% for message in messages %}"
              "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}")
    with pytest.raises(UserError, match="chat template of this model is of an unknown format"):
        template_name(Like(IM_TOKENS, chat_template=zephyr), "llama")


@pytest.mark.parametrize("special, kind, family, expected", [
    (HEADERS, "byte-level BPE", "llama", "llama3"), (IM_TOKENS, "byte-level BPE", "llama", "chatml"),
    (IM_TOKENS, "sentencepiece", "internlm2", "internlm2"), (IM_TOKENS, "byte-level BPE", "qwen3", "qwen3"),
    (["<start_of_turn>"], "sentencepiece", "gemma2", "gemma"),
    (["[INST]"], "sentencepiece", "mistral", "mistral3"), ([], "sentencepiece", "mistral", "mistral"),
    ([], "Hugging Face tokenizers", "llama", "llama2"), ([], "byte-level BPE", "bloom", None)])
def test_without_a_template_special_tokens_and_family_decide(special, kind, family, expected):
    assert template_name(Like(special, kind), family) == expected


@pytest.mark.parametrize("file, content", [
    ("chat_template.jinja", TEMPLATES["chatml"]),
    ("chat_template.json", json.dumps({"chat_template": TEMPLATES["chatml"]})),
    ("tokenizer_config.json", json.dumps({"chat_template": TEMPLATES["chatml"]})),
    ("tokenizer_config.json", json.dumps({"chat_template": [
        {"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATES["chatml"]}]}))])
def test_a_llama_with_chatml_begins_with_its_own_system_message_and_no_bos(tmp_path, file, content):
    byte_level_tokenizer(tmp_path, IM_TOKENS)
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}))
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / file).write_text(content)
    assert render_chat(load_tokenizer(tmp_path), CONVERSATIONS[0], "llama").startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user")


@pytest.mark.parametrize("messages, words", [
    ([], "none"), ([{"role": "assistant", "content": "x"}], "got assistant"),
    (conversation("x", "y"), "user last"), (conversation("x") * 2, "in turn"),
    ([{"role": "user"}], "message 1"), (["x"], "message 1"), (conversation(system="x"), "got system"),
    ([{"role": "tool", "content": "x"}], "got tool")])
def test_messages_that_are_not_a_conversation_are_rejected(messages, words):
    with pytest.raises(UserError, match=words):
        encode_chat(Like([]), messages, name="llama3")


def test_a_base_model_and_an_unknown_template_are_rejected(pieces):
    with pytest.raises(UserError, match="base model"):
        encode_chat(Like([]), CONVERSATIONS[0], "bloom")
    with pytest.raises(UserError, match="known: llama2"):
        encode_chat(pieces, CONVERSATIONS[0], name="alpaca")
    with pytest.raises(UserError, match=r"has no <\|start_header_id\|>"):
        encode_chat(pieces, CONVERSATIONS[0], name="llama3")
