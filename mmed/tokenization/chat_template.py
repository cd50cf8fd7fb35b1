"""Chat templates of instruct models: messages in, token ids out, up to where the assistant's answer begins.

    encode_chat(tokenizer, [{"role": "user", "content": "Fever and cough?"}], family="llama")

In: messages with a role (an optional first "system", then "user" and "assistant" in turn, a "user" last) and
a content. Out: ids. Each format is a small function that returns parts: ordinary text, and `SpecialToken`s by
their text. What a user writes is always ordinary text: "<|eot_id|>" in a question is spelt out, not obeyed.
The template in a model folder is a program and is never run; its text tells which format it is, and its
default system message.

References: the published chat templates of Llama 2, 3 and 3.1, Mistral 7B Instruct 0.2 and 0.3, InternLM 2
chat, SmolLM 2,
Qwen 2, 2.5 and 3, Gemma 2 and 3.  # MMedLM: MMed-Llama 3-EnIns uses Llama 3's, instruction as system and
                                   input as user.
"""
from __future__ import annotations

import re
from collections.abc import Sequence

from mmed.utils.errors import UserError

Message = dict[str, str]


class SpecialToken(str):
    """A special token, by its text."""


BOS, EOS = SpecialToken("<BOS>"), SpecialToken("<EOS>")  # whichever the tokenizer has


def _folded(messages: Sequence[Message], into: int = 0) -> list[Message]:
    """The messages for a format without a system role: its text goes before the question with index `into`.

    >>> _folded([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    [{'role': 'user', 'content': 'Be brief.\\n\\nWhy?'}]
    """
    if messages[0]["role"] != "system":
        return list(messages)
    system, *rest = messages
    rest[into] = {"role": "user", "content": f"{system['content']}\n\n{rest[into]['content']}"}
    return rest


def llama2(messages: Sequence[Message]) -> list[str]:
    """<s>[INST] <<SYS>> system <</SYS>> question [/INST] answer </s><s>[INST] question [/INST]"""
    if messages[0]["role"] == "system":
        messages = [{"role": "system", "content": f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>"},
                    *messages[1:]]
    parts: list[str] = []
    for message in _folded(messages):
        text = message["content"].strip()
        parts += [BOS, f"[INST] {text} [/INST]"] if message["role"] == "user" else [f" {text} ", EOS]
    return parts


def llama3(messages: Sequence[Message]) -> list[str]:
    """<|begin_of_text|>, then <|start_header_id|>role<|end_header_id|> text <|eot_id|> for each message"""
    parts: list[str] = [BOS]
    for message in (*messages, {"role": "assistant", "content": None}):
        parts += [
            SpecialToken("<|start_header_id|>"), message["role"],
            SpecialToken("<|end_header_id|>"), "\n\n"
        ]
        if message["content"] is not None:
            parts += [message["content"].strip(), SpecialToken("<|eot_id|>")]
    return parts


def llama31(messages: Sequence[Message]) -> list[str]:
    """As Llama 3; every conversation begins with a system message that names two dates (3.1, 3.2 and 3.3)."""
    system, rest = ("", messages) if messages[0]["role"] != "system" else (messages[0]["content"].strip(),
                                                                           messages[1:])
    # the templates' own date, which they use where the caller gives none, so that prompts do not depend on
    # the day
    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    bos, begin, role, end, gap, *parts = llama3([{"role": "system", "content": system}, *rest])
    return [bos, begin, role, end, gap + dates, *parts]


def mistral(messages: Sequence[Message]) -> list[str]:
    """<s>[INST] question [/INST]answer</s>[INST] question [/INST]   (0.1 and 0.2, BioMistral: [INST] is
    ordinary text)
    """
    parts: list[str] = [BOS]
    for message in _folded(messages):
        parts += [f"[INST] {message['content']} [/INST]"
                  ] if message["role"] == "user" else [message["content"], EOS]
    return parts


def mistral3(messages: Sequence[Message]) -> list[str]:
    """The same from 0.3 on: [INST] and [/INST] are tokens, and the system's text goes before the last
    question.
    """
    parts: list[str] = [BOS]
    for message in _folded(messages, into=-1):
        text = f" {message['content']}"
        parts += [SpecialToken("[INST]"), text, SpecialToken("[/INST]")
                  ] if message["role"] == "user" else [text, EOS]
    return parts


def chatml(messages: Sequence[Message]) -> list[str]:
    """<|im_start|>role text <|im_end|> for each message"""
    parts: list[str] = []
    for message in messages:
        parts += [
            SpecialToken("<|im_start|>"), f"{message['role']}\n{message['content']}",
            SpecialToken("<|im_end|>"), "\n"
        ]
    return [*parts, SpecialToken("<|im_start|>"), "assistant\n"]


def internlm2(messages: Sequence[Message]) -> list[str]:
    """<s>, then ChatML"""
    return [BOS, *chatml(messages)]


def qwen3(messages: Sequence[Message]) -> list[str]:
    """ChatML; an empty thought makes the model answer at once"""
    # <think> is an added token that is found in ordinary text
    return [*chatml(messages), "<think>\n\n</think>\n\n"]


def gemma(messages: Sequence[Message]) -> list[str]:
    """<bos>, then <start_of_turn>user or model, text, <end_of_turn>"""
    parts: list[str] = [BOS]
    for message in _folded(messages):
        role = "model" if message["role"] == "assistant" else "user"
        text = f"{role}\n{message['content'].strip()}"
        parts += [SpecialToken("<start_of_turn>"), text, SpecialToken("<end_of_turn>"), "\n"]
    return [*parts, SpecialToken("<start_of_turn>"), "model\n"]


CHAT_TEMPLATES = {
    "llama2": llama2, "llama3": llama3, "llama3.1": llama31, "mistral": mistral, "mistral3": mistral3,
    "chatml": chatml, "internlm2": internlm2, "qwen2": chatml, "qwen2.5": chatml, "qwen3": qwen3,
    "gemma": gemma
}
DEFAULT_SYSTEM = {"qwen2": "You are a helpful assistant.",
                  "qwen2.5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."}


# ------------------------------------------------------------------------------------------------------------
# Which template a model has


def template_name(tokenizer, family: str) -> str | None:
    """The key of CHAT_TEMPLATES that fits a model: by the text of its own template, else by special tokens
    and family.

    None for a base model; a template of a format that is not in the table is an error.
    """
    if not tokenizer.chat_template:
        return _name_by_tokens(tokenizer, family)
    name = _name_by_text(tokenizer.chat_template, "[INST]" in tokenizer.special)
    if name is None:
        raise UserError(
            f"the chat template of this model is of an unknown format (known: {', '.join(CHAT_TEMPLATES)}); "
            "name the one that fits, or give plain prompts")
    return name


def _name_by_text(text: str, inst_is_special: bool) -> str | None:
    has_bos = "bos_token" in text
    if "<|im_start|>" in text and "<|im_sep|>" not in text:
        return "qwen3" if "enable_thinking" in text else "internlm2" if has_bos else "chatml"
    if "<|start_header_id|>" in text:
        return "llama3.1" if "Cutting Knowledge Date" in text else "llama3"
    if "<start_of_turn>" in text:
        return "gemma"
    if "[INST]" in text and has_bos:
        return "llama2" if "<<SYS>>" in text else "mistral3" if inst_is_special else "mistral"
    return None


def _name_by_tokens(tokenizer, family: str) -> str | None:
    special = tokenizer.special
    if "<|start_header_id|>" in special:
        return "llama3"
    if "<|im_start|>" in special:
        return family if family in ("internlm2", "qwen2", "qwen3") else "chatml"
    if "<start_of_turn>" in special:
        return "gemma"
    if "[INST]" in special:
        return "mistral3"
    has_pieces = tokenizer.kind != "byte-level BPE"
    return {"mistral": "mistral", "llama": "llama2"}.get(family) if has_pieces else None


def _default_system(tokenizer, name: str) -> str | None:
    """The system message of a conversation that has none: the one written out in the folder's template, else
    the known one.
    """
    if name in ("chatml", "internlm2", "qwen2", "qwen2.5") and tokenizer.chat_template:
        found = re.search(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<>]+)<\|im_end\|>", tokenizer.chat_template)
        if found:
            return found[1].replace("\\n", "\n")
    return DEFAULT_SYSTEM.get(name)


# ------------------------------------------------------------------------------------------------------------
# Encoding


def chat_parts(tokenizer, messages: Sequence[Message], name: str) -> list[str]:
    """The parts of a conversation in one format; messages that are not a conversation are an error."""
    if name not in CHAT_TEMPLATES:
        raise UserError(f"chat template {name!r} is not known (known: {', '.join(CHAT_TEMPLATES)})")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise UserError(f"message {place + 1}: expected an object with a role and a text 'content'")
    roles = [message.get("role") for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if len(turns) % 2 == 0 or turns != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        found = ", ".join(map(str, roles)) or "none"
        raise UserError(
            f"messages must be an optional system, then user and assistant in turn, a user last; got {found}")
    default = _default_system(tokenizer, name)
    if default and roles[0] != "system":
        messages = [{"role": "system", "content": default}, *messages]
    return CHAT_TEMPLATES[name](messages)


def _template_for(tokenizer, family: str, name: str | None) -> str:
    name = name or template_name(tokenizer, family)
    if name is None:
        raise UserError("this model's tokenizer has no chat template (a base model); give it a plain prompt")
    return name


def encode_chat(tokenizer,
                messages: Sequence[Message],
                family: str = "",
                name: str | None = None) -> list[int]:
    """Ids of a conversation up to where the answer begins. `name`: a key of CHAT_TEMPLATES, else the model's
    own.
    """
    name = _template_for(tokenizer, family, name)
    ids: list[int] = []
    text, continued = "", False
    for part in [*chat_parts(tokenizer, messages, name), None]:
        if part is not None and not isinstance(part, SpecialToken):
            text += part
            continue
        if text:
            ids += tokenizer.encode(text, continued=continued)
            text = ""
        if part is not None:
            ids += _special_id(tokenizer, part, name)
        # text after <s> or </s> begins anew, with the space that its tokenizer adds
        continued = part not in (BOS, EOS)
    return ids


def _special_id(tokenizer, part: SpecialToken, name: str) -> list[int]:
    """The id of a special token; nothing for BOS where the tokenizer has none."""
    if part == BOS:
        return [] if tokenizer.named_bos_id is None else [tokenizer.named_bos_id]
    index = tokenizer.eos_id if part == EOS else tokenizer.special.get(part)
    if index is None:
        raise UserError(f"chat template {name}: this tokenizer has no {part}")
    return [index]


def render_chat(tokenizer, messages: Sequence[Message], family: str = "", name: str | None = None) -> str:
    """The same for people to read, with the text of special tokens."""
    text = ""
    for part in chat_parts(tokenizer, messages, _template_for(tokenizer, family, name)):
        if isinstance(part, SpecialToken) and part in (BOS, EOS):
            index = tokenizer.named_bos_id if part == BOS else tokenizer.eos_id
            text += "" if index is None else tokenizer.piece(index)
        else:
            text += part
    return text
