"""Chat templates of instruct models: messages in, token ids out, up to where the assistant's answer begins.

    encode_chat(tokenizer, [{"role": "user", "content": "Fever and cough?"}], family="llama")

Messages have a role (an optional first "system", then "user" and "assistant" in turn, a "user" last) and a
content. Each format is a small callable that returns parts: ordinary text, and `SpecialToken`s by their text.
What a user writes is always ordinary text: "<|eot_id|>" in a question is spelt out, not obeyed. The template
in a model folder is a program and is never run; its text tells which format it is, and its default system
message.

References: the published chat templates of Llama 2, 3 and 3.1, Mistral 7B Instruct 0.2 and 0.3, InternLM 2
chat, SmolLM 2, Qwen 2, 2.5 and 3, Gemma 2 and 3.
# MMedLM: MMed-Llama 3-EnIns uses Llama 3's, instruction as system and
input as user.
"""
from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

from mmed.utils.errors import UserError

Message = dict[str, str]


class SpecialToken(str):
    """A special token, by its text."""


BOS, EOS = SpecialToken("<BOS>"), SpecialToken("<EOS>")  # whichever the tokenizer has


def _folded(messages: Sequence[Message], into: int = 0) -> list[Message]:
    """For a format without a system role: the system's text goes before the question with index `into`."""
    if messages[0]["role"] != "system":
        return list(messages)
    system, *rest = messages
    rest[into] = {"role": "user", "content": f"{system['content']}\n\n{rest[into]['content']}"}
    return rest


@dataclasses.dataclass(frozen=True)
class Headers:
    """A format with a header before each message: `start` role `middle` text `end`."""

    start: str
    middle: tuple[str, ...]
    end: tuple[str, ...]
    begin: tuple[str, ...] = ()
    last: tuple[str, ...] = ()  # after the header of the answer
    answer: str = "assistant"   # its role
    strips: bool = False        # spaces around texts
    has_system: bool = True

    def __call__(self, messages: Sequence[Message]) -> list[str]:
        parts = list(self.begin)
        for message in messages if self.has_system else _folded(messages):
            role = self.answer if message["role"] == "assistant" else message["role"]
            text = message["content"].strip() if self.strips else message["content"]
            parts += [self.start, role, *self.middle, text, *self.end]
        return [*parts, self.start, self.answer, *self.middle, *self.last]


chatml = Headers(SpecialToken("<|im_start|>"), ("\n",), (SpecialToken("<|im_end|>"), "\n"))
internlm2 = dataclasses.replace(chatml, begin=(BOS,))
# An empty thought makes the model answer at once; <think> is an added token that is found in ordinary text.
qwen3 = dataclasses.replace(chatml, last=("<think>\n\n</think>\n\n",))
llama3 = Headers(SpecialToken("<|start_header_id|>"), (SpecialToken("<|end_header_id|>"), "\n\n"),
                 (SpecialToken("<|eot_id|>"),), begin=(BOS,), strips=True)
gemma = Headers(SpecialToken("<start_of_turn>"), ("\n",), (SpecialToken("<end_of_turn>"), "\n"), begin=(BOS,),
                answer="model", strips=True, has_system=False)


def llama31(messages: Sequence[Message]) -> list[str]:
    """As Llama 3; every conversation begins with a system message that names two dates (3.1, 3.2 and 3.3)."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    # the templates' own date, used where the caller gives none, so that prompts do not depend on the day
    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    bos, start, role, middle, gap, *parts = llama3(messages)
    return [bos, start, role, middle, gap + dates, *parts]


def llama2(messages: Sequence[Message]) -> list[str]:
    """<s>[INST] <<SYS>> system <</SYS>> question [/INST] answer </s><s>[INST] question [/INST]"""
    system, *rest = messages
    if system["role"] == "system":
        system = system | {"content": f"<<SYS>>\n{system['content']}\n<</SYS>>"}
    parts: list[str] = []
    for message in _folded([system, *rest]):
        text = message["content"].strip()
        parts += [BOS, f"[INST] {text} [/INST]"] if message["role"] == "user" else [f" {text} ", EOS]
    return parts


def mistral(messages: Sequence[Message]) -> list[str]:
    """<s>[INST] question [/INST]answer</s>[INST] question [/INST]: 0.1 and 0.2, where [INST] is plain text"""
    parts: list[str] = [BOS]
    for message in _folded(messages):
        text = message["content"]
        parts += [f"[INST] {text} [/INST]"] if message["role"] == "user" else [text, EOS]
    return parts


def mistral3(messages: Sequence[Message]) -> list[str]:
    """From 0.3 on [INST] and [/INST] are tokens, and the system's text goes before the last question."""
    parts: list[str] = [BOS]
    for message in _folded(messages, into=-1):
        text = f" {message['content']}"
        question = [SpecialToken("[INST]"), text, SpecialToken("[/INST]")]
        parts += question if message["role"] == "user" else [text, EOS]
    return parts


CHAT_TEMPLATES = {
    "llama2": llama2, "llama3": llama3, "llama3.1": llama31, "mistral": mistral, "mistral3": mistral3,
    "chatml": chatml, "internlm2": internlm2, "qwen2": chatml, "qwen2.5": chatml, "qwen3": qwen3,
    "gemma": gemma,
}
DEFAULT_SYSTEM = {"qwen2": "You are a helpful assistant.",
                  "qwen2.5": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."}


def template_name(tokenizer, family: str) -> str | None:
    """The key of CHAT_TEMPLATES that fits a model: by the text of its own template, else by special tokens
    and family. None for a base model; a template of a format that is not in the table is an error.
    """
    special, text = tokenizer.special, tokenizer.chat_template
    if not text:
        return _name_by_tokens(special, family, tokenizer.kind)
    has_bos = "bos_token" in text
    if "<|im_start|>" in text and "<|im_sep|>" not in text:
        return "qwen3" if "enable_thinking" in text else "internlm2" if has_bos else "chatml"
    if "<|start_header_id|>" in text:
        return "llama3.1" if "Cutting Knowledge Date" in text else "llama3"
    if "<start_of_turn>" in text:
        return "gemma"
    if "[INST]" in text and has_bos:
        return "llama2" if "<<SYS>>" in text else "mistral3" if "[INST]" in special else "mistral"
    raise UserError("the chat template of this model is of an unknown format (known: "
                    f"{', '.join(CHAT_TEMPLATES)}); name the one that fits, or give plain prompts")


def _name_by_tokens(special: dict[str, int], family: str, kind: str) -> str | None:
    by_token = {"<|start_header_id|>": "llama3", "<start_of_turn>": "gemma", "[INST]": "mistral3",
                "<|im_start|>": family if family in ("internlm2", "qwen2", "qwen3") else "chatml"}
    by_family = {"mistral": "mistral", "llama": "llama2"} if kind != "byte-level BPE" else {}
    return next((name for token, name in by_token.items() if token in special), by_family.get(family))


def _default_system(name: str, template: str) -> str | None:
    """The system message of a conversation without one: that of the folder's template, else the known one."""
    found = re.search(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<>]+)<\|im_end\|>", template)
    if found and CHAT_TEMPLATES[name] in (chatml, internlm2):
        return found[1].replace("\\n", "\n")
    return DEFAULT_SYSTEM.get(name)


def chat_parts(tokenizer, messages: Sequence[Message], family: str, name: str | None) -> list[str]:
    """The parts of a conversation by template `name`, None for the model's own; UserError if it is none."""
    name = name or template_name(tokenizer, family)
    if name is None:
        raise UserError("this model's tokenizer has no chat template (a base model); give it a plain prompt")
    if name not in CHAT_TEMPLATES:
        raise UserError(f"chat template {name!r} is not known (known: {', '.join(CHAT_TEMPLATES)})")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise UserError(f"message {place + 1}: expected an object with a role and a text 'content'")
    roles = [message.get("role") for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if len(turns) % 2 == 0 or turns != (["user", "assistant"] * len(turns))[:len(turns)]:
        raise UserError("messages must be an optional system, then user and assistant in turn, a user last; "
                        f"got {', '.join(map(str, roles)) or 'none'}")
    default = _default_system(name, tokenizer.chat_template)
    if default and roles[0] != "system":
        messages = [{"role": "system", "content": default}, *messages]
    return [part for part in CHAT_TEMPLATES[name](messages) if part]


def encode_chat(tokenizer, messages: Sequence[Message], family: str = "",
                name: str | None = None) -> list[int]:
    """Ids of a conversation up to where the answer begins. `name`: a key of CHAT_TEMPLATES, else the model's
    own.
    """
    ids: list[int] = []
    continued = False
    for is_special, parts in itertools.groupby(chat_parts(tokenizer, messages, family, name),
                                               lambda part: isinstance(part, SpecialToken)):
        if not is_special:
            ids += tokenizer.encode("".join(parts), continued=continued)
            continue
        for part in parts:
            ids += _special_id(tokenizer, part)
            continued = part not in (BOS, EOS)  # after <s> or </s> text begins anew, with its space
    return ids


def _special_id(tokenizer, part: str) -> list[int]:
    """The id of a special token; nothing for BOS where the tokenizer has none."""
    if part == BOS:
        return [] if tokenizer.named_bos_id is None else [tokenizer.named_bos_id]
    index = tokenizer.eos_id if part == EOS else tokenizer.special.get(part)
    if index is None:
        raise UserError(f"this tokenizer has no {part}, which the chat template needs")
    return [index]


def render_chat(tokenizer, messages: Sequence[Message], family: str = "", name: str | None = None) -> str:
    """The same for people to read, with the text of special tokens."""
    text = ""
    for part in chat_parts(tokenizer, messages, family, name):
        is_role = isinstance(part, SpecialToken) and part in (BOS, EOS)
        text += "".join(map(tokenizer.piece, _special_id(tokenizer, part))) if is_role else part
    return text
