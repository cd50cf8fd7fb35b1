"""The turns of instruct models: messages in, token ids out, up to where the assistant's answer begins.

    encode_chat(tokenizer, [{"role": "user", "content": "Fever and cough?"}], family="llama")

In: messages with a role (an optional first "system", then "user" and "assistant" in turn, a "user" last) and a content. Out:
ids. Each format is one small function that returns parts: ordinary text, and `Mark`s, which are special tokens by their text.
What a user writes is ordinary text always: "<|eot_id|>" in a question is spelt, not obeyed. Templates that come with a model
are programs and are never run (DESIGN invariant 6).

References: the published chat templates of Llama 2, Llama 3, Mistral 7B Instruct 0.2 and 0.3, InternLM 2 chat, Qwen 2, 2.5 and
3, Gemma 2.  # MMedLM: MMed-Llama 3-EnIns uses Llama 3's turns, instruction as system and input as user (METHOD 3.2).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from mmed.utils.errors import UserError

Message = dict[str, str]


class Mark(str):
    """A special token, by its text."""


BOS, EOS = Mark("bos"), Mark("eos")  # whatever the tokenizer has for them


def _folded(messages: Sequence[Message]) -> list[Message]:
    """The messages of a format without a system role: its text stands before the first question.

    >>> _folded([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    [{'role': 'user', 'content': 'Be brief.\\n\\nWhy?'}]
    """
    if messages[0]["role"] != "system":
        return list(messages)
    first = messages[1]
    return [{"role": "user", "content": f"{messages[0]['content']}\n\n{first['content']}"}, *messages[2:]]


def llama2(messages: Sequence[Message]) -> list[str]:
    """<s>[INST] <<SYS>> system <</SYS>> question [/INST] answer </s><s>[INST] question [/INST]"""
    parts: list[str] = []
    if messages[0]["role"] == "system":
        system, first, *rest = messages
        messages = [{"role": "user", "content": f"<<SYS>>\n{system['content']}\n<</SYS>>\n\n{first['content']}"}, *rest]
    for message in messages:
        text = message["content"].strip()
        parts += [BOS, f"[INST] {text} [/INST]"] if message["role"] == "user" else [f" {text} ", EOS]
    return parts


def llama3(messages: Sequence[Message]) -> list[str]:
    """<|begin_of_text|>, then <|start_header_id|>role<|end_header_id|> text <|eot_id|> for each message"""
    parts: list[str] = [BOS]
    for message in (*messages, {"role": "assistant", "content": None}):
        parts += [Mark("<|start_header_id|>"), message["role"], Mark("<|end_header_id|>"), "\n\n"]
        if message["content"] is not None:
            parts += [message["content"].strip(), Mark("<|eot_id|>")]
    return parts


def mistral(messages: Sequence[Message]) -> list[str]:
    """<s>[INST] question [/INST]answer</s>[INST] question [/INST]   (0.1 and 0.2, BioMistral: [INST] is ordinary text)"""
    parts: list[str] = [BOS]
    for message in _folded(messages):
        parts += [f"[INST] {message['content']} [/INST]"] if message["role"] == "user" else [message["content"], EOS]
    return parts


def mistral3(messages: Sequence[Message]) -> list[str]:
    """The same from 0.3 on: [INST] and [/INST] are tokens, and the system's text stands before the last question."""
    messages = list(messages)
    if messages[0]["role"] == "system":
        system, last = messages.pop(0), messages.pop()
        messages.append({"role": "user", "content": f"{system['content']}\n\n{last['content']}"})
    parts: list[str] = [BOS]
    for message in messages:
        parts += [Mark("[INST]"), f" {message['content']}", Mark("[/INST]")] if message["role"] == "user" else [f" {message['content']}", EOS]
    return parts


def internlm2(messages: Sequence[Message]) -> list[str]:
    """<s>, then <|im_start|>role text <|im_end|> for each message"""
    return [BOS, *_im(messages)]


def qwen2(messages: Sequence[Message]) -> list[str]:
    """As InternLM 2 without <s>; there is always a system message."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": "You are a helpful assistant."}, *messages]
    return _im(messages)


def qwen3(messages: Sequence[Message]) -> list[str]:
    """As Qwen 2 without a system message of its own; an empty thought makes the model answer at once."""
    return [*_im(messages), "<think>\n\n</think>\n\n"]


def _im(messages: Sequence[Message]) -> list[str]:
    parts: list[str] = []
    for message in messages:
        parts += [Mark("<|im_start|>"), f"{message['role']}\n{message['content']}", Mark("<|im_end|>"), "\n"]
    return [*parts, Mark("<|im_start|>"), "assistant\n"]


def gemma(messages: Sequence[Message]) -> list[str]:
    """<bos>, then <start_of_turn>user or model, text, <end_of_turn>"""
    parts: list[str] = [BOS]
    for message in _folded(messages):
        role = "model" if message["role"] == "assistant" else "user"
        parts += [Mark("<start_of_turn>"), f"{role}\n{message['content'].strip()}", Mark("<end_of_turn>"), "\n"]
    return [*parts, Mark("<start_of_turn>"), "model\n"]


FORMATS: dict[str, Callable[[Sequence[Message]], list[str]]] = {
    function.__name__: function for function in (llama2, llama3, mistral, mistral3, internlm2, qwen2, qwen3, gemma)}


def turn_format(tokenizer, family: str) -> str | None:
    """The key of FORMATS that fits a model, by its special tokens and its family; None for one that has no turns."""
    special = tokenizer.special
    if "<|start_header_id|>" in special:
        return "llama3"
    if "<|im_start|>" in special:
        return family if family in ("qwen2", "qwen3") else "internlm2"
    if "<start_of_turn>" in special:
        return "gemma"
    if "[INST]" in special:
        return "mistral3"
    if family == "mistral" and tokenizer.kind.startswith("sentencepiece"):
        return "mistral"
    return "llama2" if family == "llama" and tokenizer.kind.startswith("sentencepiece") else None


def chat_parts(messages: Sequence[Message], name: str) -> list[str]:
    """The parts of a conversation in one format; what is no conversation is refused."""
    if name not in FORMATS:
        raise UserError(f"turn format {name!r} is not known (known: {', '.join(FORMATS)})")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise UserError(f"message {place + 1}: expected an object with a role and a text 'content'")
    roles = [message.get("role") for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if len(turns) % 2 == 0 or turns != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        raise UserError(f"messages must be an optional system, then user and assistant in turn, a user last; got {', '.join(map(str, roles)) or 'none'}")
    return FORMATS[name](messages)


def encode_chat(tokenizer, messages: Sequence[Message], family: str = "", name: str | None = None) -> list[int]:
    """Ids of a conversation up to where the answer begins. `name`: a key of FORMATS, when it is not to be guessed."""
    name = name or turn_format(tokenizer, family)
    if name is None:
        raise UserError("this model's tokenizer has no turns (a base model); give it a plain prompt")
    ids: list[int] = []
    text, continued = "", False

    def flush() -> None:
        nonlocal text
        if text:
            ids.extend(tokenizer.encode(text, continued=continued))
        text = ""

    for part in chat_parts(messages, name):
        if not isinstance(part, Mark):
            text += part
            continue
        flush()
        index = {BOS: tokenizer.named_bos_id, EOS: tokenizer.eos_id}.get(part, tokenizer.special.get(part))
        if index is None and part is not BOS:
            raise UserError(f"turn format {name}: this tokenizer has no {part}")
        ids += [index] if index is not None else []
        continued = part not in (BOS, EOS)  # a text after <s> or </s> begins anew, with the space that its tokenizer puts first
    flush()
    return ids


def render_chat(tokenizer, messages: Sequence[Message], family: str = "", name: str | None = None) -> str:
    """The same as people see it, with the text of special tokens."""
    ends = {BOS: tokenizer.named_bos_id, EOS: tokenizer.eos_id}
    return "".join((tokenizer.piece(ends[part]) if part in ends else str(part)) if isinstance(part, Mark) else part
                   for part in chat_parts(messages, name or turn_format(tokenizer, family)))
