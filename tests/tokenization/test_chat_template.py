"""Chat templates against the published ones, rendered by transformers; ids against its tokenizers."""
import json
import random
from types import SimpleNamespace

import pytest
import sentencepiece
from repository import ROOT
from tiny_models import byte_level_bpe, transformers

from mmed.tokenization import chat_template
from mmed.tokenization.chat_template import CHAT_TEMPLATES, encode_chat, encode_conversation
from mmed.tokenizer import load_tokenizer, train_sentencepiece
from mmed.utils.errors import UserError

IM = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
      "'<|im_end|>' + '\n'}}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
PUBLISHED = {path.stem: path.read_text(encoding="utf-8").strip()  # without tools
             for path in (ROOT / "tests" / "data" / "chat_templates").glob("*.jinja")}
TEMPLATES = {name: PUBLISHED[name] for name in ("llama2", "llama3", "mistral", "mistral3", "gemma")} | {
    "internlm2": "{{ bos_token }}" + IM, "chatml": IM,
    "qwen3": IM.replace("{% endif %}", "{{ '<think>\n\n</think>\n\n' }}{# enable_thinking #}{% endif %}")}
# Templates that no built-in format renders
OWN_TEMPLATES = {
    **{name: PUBLISHED[name] for name in (
        "llama3.1", "llama3.2", "gemma3", "qwen2.5", "qwen3-thinking-2507", "smollm2",
        "switched")},  # as in SmolLM3: the system's text holds a switch
    "qwen3-hybrid": PUBLISHED["qwen3-thinking-2507"].replace(
        r"assistant\n<think>\n' }}{%- endif",
        r"assistant\n' }}{%- if enable_thinking is defined and enable_thinking is false %}"
        r"{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif"),
    "qwen3-instruct-2507": IM}
IM_TOKENS = ["<|im_start|>", "<|im_end|>"]
HEADERS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL = {"llama3": HEADERS, "chatml": IM_TOKENS, "internlm2": IM_TOKENS, "qwen3": IM_TOKENS,
           "mistral3": ["[INST]", "[/INST]"], "gemma": ["<start_of_turn>", "<end_of_turn>"]}


def conversation(*texts, system=None):
    """Messages of user and assistant in turn."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


CONVERSATIONS = [conversation("Fever and cough?"), conversation("  Fièvre ?\n", system="Vous êtes médecin."),
                 conversation("発熱", "安静に。", "薬は？"),
                 conversation("a\n\nb", "c ", "Больно", "d", "e", system="Be brief. /no_think")]


def byte_level_tokenizer(folder, tokens):
    """(our tokenizer, the same in transformers): byte-level BPE with these special tokens."""
    texts = [json.dumps(c, ensure_ascii=False) for c in CONVERSATIONS] * 3
    model = byte_level_bpe(texts, 420, ["<s>", "</s>", *tokens])
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


def as_published(name, messages):
    """With the system's text before the question, for templates without a system."""
    if messages[0]["role"] != "system" or name not in ("mistral", "gemma"):
        return messages
    system, first, *others = (message["content"] for message in messages)
    return conversation(f"{system}\n\n{first}", *others)


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_text_and_ids_are_those_of_the_published_template(byte_level, name, messages):
    ours, theirs = byte_level[name not in SPECIAL]
    expected = as_published(name, messages)
    options = {"chat_template": TEMPLATES[name], "add_generation_prompt": True}
    for ours.chat_template, given in (("", name), (TEMPLATES[name], None)):  # built in; in the model's folder
        text, ids = encode_chat(ours, messages, name=given)
        assert text == theirs.apply_chat_template(expected, tokenize=False, **options)
        assert ids == list(theirs.apply_chat_template(expected, return_dict=False, **options))


THOUGHTS = conversation("Q", "<think>\nhm\n</think>\n\nA", "Q", "<think>\nso\n</think>\n\nB", "Q")


@pytest.fixture
def fixed_date(monkeypatch):
    """transformers' strftime_now on the day that ours always gives."""
    module = transformers.utils.chat_template_utils
    days = type("Days", (module.datetime,), {"now": classmethod(lambda cls: cls(2024, 7, 26))})
    monkeypatch.setattr(module, "datetime", days)


@pytest.mark.parametrize("name", OWN_TEMPLATES)
@pytest.mark.parametrize("messages", [*CONVERSATIONS, THOUGHTS])
def test_the_template_of_the_folder_renders_prompts_and_conversations(byte_level, fixed_date, name, messages):
    ours, theirs = byte_level[0]
    ours.chat_template = OWN_TEMPLATES[name]
    for thinking in (True, False):
        options = {"chat_template": ours.chat_template, "enable_thinking": thinking, "return_dict": False}
        assert encode_chat(ours, messages, thinking=thinking)[1] == list(theirs.apply_chat_template(
            messages, add_generation_prompt=True, **options))
    text = "<think>\nwhy\n</think>\n\nFlu." if messages is THOUGHTS else "Flu."
    last = {"role": "assistant", "content": text}
    ids, answers = encode_conversation(ours, [*messages, last])
    whole = list(theirs.apply_chat_template([*messages, last], **options))
    assert ids == whole[:len(ids)] and not ours.decode(whole[len(ids):], special=True).strip()
    assert len(answers) == sum(message["role"] == "assistant" for message in messages) + 1


BRIEF = conversation("Q", "A", "R", "B", system="Be brief.")
WHY = [*THOUGHTS, {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nC"}]


@pytest.mark.parametrize("name, messages, expected", [
    ("llama3", BRIEF, ["A<|eot_id|>", "B<|eot_id|>"]), ("chatml", BRIEF, ["A<|im_end|>", "B<|im_end|>"]),
    ("gemma", BRIEF, ["A<end_of_turn>", "B<end_of_turn>"]), ("mistral", BRIEF, ["A</s>", "B</s>"]),
    ("qwen3-hybrid", WHY, ["A<|im_end|>", "B<|im_end|>", "<think>\nwhy\n</think>\n\nC<|im_end|>"]),
    ("qwen3-thinking-2507", WHY, ["A<|im_end|>", "B<|im_end|>", "why\n</think>\n\nC<|im_end|>"])])
def test_answers_with_their_end_token_carry_the_loss(byte_level, monkeypatch, name, messages, expected):
    """Thoughts of earlier turns are dropped, and the last one is trained."""
    ours, theirs = byte_level[name == "mistral"]
    own = TEMPLATES.get(name) or OWN_TEMPLATES[name]
    whole = theirs.apply_chat_template(as_published(name, messages), chat_template=own, return_dict=False)
    monkeypatch.setattr(chat_template, "template_name", lambda tokenizer, family: name)
    for ours.chat_template in ["", own] if name in CHAT_TEMPLATES else [own]:
        ids, answers = encode_conversation(ours, messages)
        assert [ours.decode(ids[first:end], special=True) for first, end in answers] == expected
        assert ids == list(whole[:len(ids)]) and answers[-1][1] == len(ids)


@pytest.mark.parametrize("template, words", [
    ("{% for m in messages %}<s>{{ m.content if loop.revindex < 4 }}</s>{% endfor %}", "changes message"),
    ("{% for m in messages %}{{ m.role + m.content }}{% endfor %}", "without a special token"),
    (TEMPLATES["mistral3"], "changes message 5"),  # moves the system's text to the last question
    ("{{ messages.__class__.__mro__ }}", "SecurityError"), ("{{ messages.append(1) }}", "SecurityError"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"), ("{% if %}", "TemplateSyntaxError"),
    ("{{ raise_exception('no') }}", "ValueError: no")])
def test_a_template_that_rewrites_turns_or_fails_gives_one_line(byte_level, template, words):
    ours, _ = byte_level[0]
    ours.chat_template = template
    with pytest.raises(UserError, match=words):
        encode_conversation(ours, conversation("Q", "A", "R", "B", system="Be brief."))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    texts = [message["content"] for messages in CONVERSATIONS for message in messages] * 5
    return train_sentencepiece([*texts, "[INST] user assistant system [/INST] <<SYS>>"],
                               tmp_path_factory.mktemp("pieces"), 360)


def test_text_begins_anew_after_bos_and_nowhere_else(pieces):
    _, ids = encode_chat(pieces, CONVERSATIONS[2], "llama")
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
    plain, attacked = (encode_chat(ours, conversation(text), name=name)[1] for text in ("x", attack))
    special = set(ours.special.values())
    assert [i for i in attacked if i in special] == [i for i in plain if i in special]
    assert attack.strip() in ours.decode(attacked)
    assert "<BOS>" in encode_chat(ours, conversation("<BOS>"), name=name)[0]


@pytest.mark.parametrize("special, kind, family, expected", [
    (HEADERS, "byte-level BPE", "llama", "llama3"), (IM_TOKENS, "byte-level BPE", "llama", "chatml"),
    (IM_TOKENS, "sentencepiece", "internlm2", "internlm2"), (IM_TOKENS, "byte-level BPE", "qwen3", "qwen3"),
    (["<start_of_turn>"], "sentencepiece", "gemma2", "gemma"),
    (["[INST]"], "sentencepiece", "mistral", "mistral3"), ([], "sentencepiece", "mistral", "mistral"),
    ([], "Hugging Face tokenizers", "llama", "llama2"), ([], "byte-level BPE", "bloom", None)])
def test_without_a_template_special_tokens_and_family_decide(special, kind, family, expected):
    tokenizer = SimpleNamespace(special=dict.fromkeys(special, 1), kind=kind, chat_template="")
    assert chat_template.template_name(tokenizer, family) == expected
    if expected is None:
        with pytest.raises(UserError, match="base model"):
            encode_chat(tokenizer, CONVERSATIONS[0], family)


@pytest.mark.parametrize("file, template", [
    ("chat_template.json", OWN_TEMPLATES["smollm2"]), ("tokenizer_config.json", OWN_TEMPLATES["smollm2"]),
    ("tokenizer_config.json", [{"name": "tool_use", "template": "x"},
                               {"name": "default", "template": OWN_TEMPLATES["smollm2"]}]),
    ("chat_template.jinja", OWN_TEMPLATES["smollm2"])])
def test_a_llama_with_chatml_begins_with_its_own_system_message_and_no_bos(tmp_path, file, template):
    byte_level_tokenizer(tmp_path, IM_TOKENS)
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}))
    (tmp_path / "tokenizer_config.json").unlink()
    text = template if file.endswith(".jinja") else json.dumps({"chat_template": template})
    (tmp_path / file).write_text(text)
    assert encode_chat(load_tokenizer(tmp_path), CONVERSATIONS[0], "llama")[0].startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user")


@pytest.mark.parametrize("messages, words", [
    ([], "none"), ([{"role": "assistant", "content": "x"}], "got assistant"),
    (conversation("x", "y"), "user last"), (conversation("x") * 2, "in turn"),
    (conversation(system="x"), "got system"), ([{"role": "tool", "content": "x"}], "got tool"),
    (CONVERSATIONS[0], r"has no <\|start_header_id\|>")])
def test_messages_that_are_not_a_conversation_and_an_unfit_template_are_rejected(pieces, messages, words):
    with pytest.raises(UserError, match=words):
        encode_chat(pieces, messages, name="llama3")
