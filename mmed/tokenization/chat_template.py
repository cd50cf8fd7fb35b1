"""Chat templates of instruct models: messages in, token ids out.

    encode_chat(tokenizer, [{"role": "user", "content": "Fever and cough?"}], family="llama")

Messages have a role (an optional first "system", then "user" and "assistant" in turn) and a content. The
template in a model folder renders them in Jinja's sandbox (extra `report`), as apply_chat_template of
transformers does; without a template or Jinja a format below, chosen by its text or the special tokens. What
a user writes is always ordinary text: "<|eot_id|>" in a question is spelt out, not obeyed.

References: the published chat templates of Llama 2, 3 and 3.1, Mistral 7B Instruct 0.2 and 0.3, InternLM 2
chat, SmolLM 2, Qwen 2, 2.5 and 3, Gemma 2 and 3.
"""
from __future__ import annotations

import dataclasses
import datetime
import functools
import itertools
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from mmed.utils.errors import UsageError, UserError, require_extra

Message = dict[str, str]

# Stands inside what looks like a special token in a message while the message is rendered: <MARK|eot_id|>.
# A Unicode noncharacter, which no text contains.
MARK = "\ufdd0"
THOUGHT = re.compile(r"<think>\s*(?:</think>\s*)?\Z")  # a prompt that begins the answer's thought


def _folded(messages: Sequence[Message], into: int = 0) -> list[Message]:
    """For a format without a system role: the system's text goes before the question with index `into`."""
    if messages[0]["role"] != "system":
        return list(messages)
    system, *rest = messages
    rest[into] = {"role": "user", "content": f"{system['content']}\n\n{rest[into]['content']}"}
    return rest


# ------------------------------------------------------------------------------------------- built-in formats
# Each takes (messages, text of BOS, text of EOS, whether the header of an answer follows) and returns a text.

@dataclasses.dataclass(frozen=True)
class Headers:
    """A format with a header before each message: `start` role `middle` text `end`."""

    start: str
    middle: str
    end: str
    has_bos: bool = False
    thought: str = ""           # before the last answer
    answer: str = "assistant"   # its role
    strips: bool = False        # spaces around texts
    has_system: bool = True

    def __call__(self, messages: Sequence[Message], bos: str, eos: str, prompt: bool) -> str:
        parts = [bos] if self.has_bos else []
        for message in messages if self.has_system else _folded(messages):
            is_answer = message["role"] == "assistant"
            role = self.answer if is_answer else message["role"]
            thought = self.thought if is_answer and message is messages[-1] else ""
            text = message["content"].strip() if self.strips else message["content"]
            parts += [self.start, role, self.middle, thought, text, self.end]
        return "".join(parts + [self.start, self.answer, self.middle, self.thought] * prompt)


chatml = Headers("<|im_start|>", "\n", "<|im_end|>\n")
internlm2 = dataclasses.replace(chatml, has_bos=True)
# An empty thought makes the model answer at once; <think> is an added token that is found in ordinary text.
qwen3 = dataclasses.replace(chatml, thought="<think>\n\n</think>\n\n")
llama3 = Headers("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", has_bos=True, strips=True)
gemma = Headers("<start_of_turn>", "\n", "<end_of_turn>\n", has_bos=True, answer="model", strips=True,
                has_system=False)


def llama2(messages: Sequence[Message], bos: str, eos: str, prompt: bool) -> str:
    """<s>[INST] <<SYS>> system <</SYS>> question [/INST] answer </s><s>[INST] question [/INST]"""
    system, *rest = messages
    if system["role"] == "system":
        system = system | {"content": f"<<SYS>>\n{system['content']}\n<</SYS>>"}
    text = ""
    for message in _folded([system, *rest]):
        content = message["content"].strip()
        text += f"{bos}[INST] {content} [/INST]" if message["role"] == "user" else f" {content} {eos}"
    return text


def mistral(messages: Sequence[Message], bos: str, eos: str, prompt: bool) -> str:
    """<s>[INST] question [/INST]answer</s>[INST] question [/INST]: 0.1 and 0.2, where [INST] is plain text"""
    text = bos
    for message in _folded(messages):
        content = message["content"]
        text += f"[INST] {content} [/INST]" if message["role"] == "user" else f"{content}{eos}"
    return text


def mistral3(messages: Sequence[Message], bos: str, eos: str, prompt: bool) -> str:
    """From 0.3 on [INST] and [/INST] are tokens, and the system's text goes before the last question."""
    text = bos
    for message in _folded(messages, into=-1 if messages[-1]["role"] == "user" else -2):
        content = message["content"]
        text += f"[INST] {content}[/INST]" if message["role"] == "user" else f" {content}{eos}"
    return text


CHAT_TEMPLATES = {"llama2": llama2, "llama3": llama3, "mistral": mistral, "mistral3": mistral3,
                  "chatml": chatml, "internlm2": internlm2, "qwen3": qwen3, "gemma": gemma}


def template_name(tokenizer, family: str) -> str | None:
    """The key of CHAT_TEMPLATES that fits a model where its own template cannot render: by the text of that
    template, else by special tokens and family. None for a base model; any other template is an error.
    """
    special, text = tokenizer.special, tokenizer.chat_template
    if not text:
        return _name_by_tokens(special, family, tokenizer.kind)
    has_bos = "bos_token" in text
    if "<|im_start|>" in text and "enable_thinking" in text:
        return "qwen3"
    # others have a system message of their own
    if "<|im_start|>" in text and "<|im_start|>system" not in text:
        return "internlm2" if has_bos else "chatml"
    if "<|start_header_id|>" in text and "Cutting Knowledge Date" not in text:
        return "llama3"
    if "<start_of_turn>" in text:
        return "gemma"
    if "[INST]" in text and has_bos:
        return "llama2" if "<<SYS>>" in text else "mistral3" if "[INST]" in special else "mistral"
    raise UserError("this model's chat template needs Jinja: pip install 'mmed[report]'; or name a format "
                    f"that fits ({', '.join(CHAT_TEMPLATES)}), or give plain prompts")


def _name_by_tokens(special: dict[str, int], family: str, kind: str) -> str | None:
    by_token = {"<|start_header_id|>": "llama3", "<start_of_turn>": "gemma", "[INST]": "mistral3",
                "<|im_start|>": family if family in ("internlm2", "qwen3") else "chatml"}
    by_family = {"mistral": "mistral", "llama": "llama2"} if kind != "byte-level BPE" else {}
    return next((name for token, name in by_token.items() if token in special), by_family.get(family))


def _render_format(name: str, messages: list[Message], tokenizer, roles: dict[str, str],
                   prompt: bool) -> str:
    """The text of a conversation in a built-in format."""
    render, known = CHAT_TEMPLATES[name], special_tokens(tokenizer)
    own = render([{"role": "user", "content": ""}], "", "", True)
    for token in re.findall(r"<\|\w+\|>|<\w+_of_turn>" + r"|\[/?INST\]" * (name == "mistral3"), own):
        if token not in known:
            raise UserError(f"this tokenizer has no {token}, which the chat template needs")
    return render(messages, roles.get("bos_token", ""), roles.get("eos_token", ""), prompt)


# -------------------------------------------------------------------------------------- the folder's template

def _raise_exception(message: str) -> None:
    raise ValueError(message)


def _strftime_now(form: str) -> str:
    # DIFFERS: transformers gives today's date; a prompt must not depend on the day. The date is Llama 3.1's.
    return datetime.date(2024, 7, 26).strftime(form)


@functools.lru_cache(maxsize=1)
def _sandbox() -> ModuleType | None:
    """jinja2.sandbox, None where Jinja is not installed."""
    try:
        return require_extra("jinja2.sandbox", "report")
    except UsageError:
        return None


@functools.lru_cache(maxsize=8)
def _jinja_template(text: str) -> Any:
    """A folder's template, ready to render."""
    environment = _sandbox().ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    # transformers' own tag around the assistant's text, which encode_conversation finds in every template
    text = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", text)
    text = re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", text)
    return environment.from_string(text)


def _render_jinja(text: str, messages: list[Message], roles: dict[str, str], prompt: bool) -> str:
    """The text of a conversation by a folder's template. A template without a system role, which raises an
    error or leaves the system's text out, gets it before the first question.
    """
    has_system = messages[0]["role"] == "system"
    try:
        # An answer without a thought, where the model can do both, as the exams need it.
        rendered = _jinja_template(text).render(messages=messages, tools=None, documents=None, **roles,
                                                add_generation_prompt=prompt, enable_thinking=False)
    except Exception as error:  # a template is a program: it may raise anything
        if not has_system:
            raise UserError(f"the model's chat template fails ({type(error).__name__}: {error}); name the "
                            "format that fits with --chat_template, or give plain prompts") from None
        rendered = ""
    if has_system and messages[0]["content"].strip() not in rendered:
        return _render_jinja(text, _folded(messages), roles, prompt)
    return rendered


# ---------------------------------------------------------------------------------------------- text and ids

def check_messages(messages: Sequence[Message], last: str) -> None:
    """Messages must be an optional system, then user and assistant in turn, the last one by `last`."""
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != (["user", "assistant"] * len(turns))[:len(turns)] or turns[-1] != last:
        raise UserError("messages must be an optional system, then user and assistant in turn, a "
                        f"{last} last; got {', '.join(map(str, roles)) or 'none'}")


def special_tokens(tokenizer) -> dict[str, int]:
    """Text -> id of what is a token of its own in a rendered text."""
    roles = [index for index in (tokenizer.named_bos_id, tokenizer.eos_id) if index is not None]
    return tokenizer.special | {tokenizer.piece(index): index for index in roles}


@functools.lru_cache(maxsize=4)
def _pattern(tokens: tuple[str, ...]) -> str:
    """A regular expression for any of the tokens, the longest first."""
    return "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or "(?!)"


def _render(tokenizer, messages: Sequence[Message], family: str, name: str | None, prompt: bool) -> str:
    """The text of a conversation with the text of special tokens; MARK hides what only looks like one.

    `name`: a key of CHAT_TEMPLATES, None for the model's own. `prompt`: up to where an answer begins.
    """
    check_messages(messages, "user" if prompt else "assistant")
    text = tokenizer.chat_template if name is None and _sandbox() else ""
    if not text:
        name = name or template_name(tokenizer, family)
        if name is None:
            raise UserError("this model has no chat template (a base model); give it a plain prompt")
    hidden = re.compile(rf"(?s)(?=(?:{_pattern(tuple(special_tokens(tokenizer)))}))(.)")
    messages = [message | {"content": hidden.sub(rf"\1{MARK}", message["content"].replace(MARK, ""))}
                for message in messages]
    ids = {"bos_token": tokenizer.named_bos_id, "eos_token": tokenizer.eos_id}
    roles = {role: tokenizer.piece(index) for role, index in ids.items() if index is not None}
    if text:
        return _render_jinja(text, messages, roles, prompt)
    return _render_format(name, messages, tokenizer, roles, prompt)


def _encode(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each of several rendered texts that follow one another."""
    known, result, continued = special_tokens(tokenizer), [], False
    for text in texts:
        ids: list[int] = []
        for part in filter(None, re.split(f"({_pattern(tuple(known))})", text)):
            ids += ([known[part]] if part in known else
                    tokenizer.encode(part.replace(MARK, ""), continued=continued))
            continued = part not in ("<s>", "</s>")  # after them text begins anew, with its space
        result.append(ids)
    return result


def encode_chat(tokenizer, messages: Sequence[Message], family: str = "",
                name: str | None = None) -> list[int]:
    """Ids of a conversation up to where the answer begins, in the format `name` or the model's own."""
    return _encode(tokenizer, [_render(tokenizer, messages, family, name, prompt=True)])[0]


def render_chat(tokenizer, messages: Sequence[Message], family: str = "", name: str | None = None) -> str:
    """The same for people to read, with the text of special tokens."""
    return _render(tokenizer, messages, family, name, prompt=True).replace(MARK, "")


def encode_conversation(tokenizer, messages: Sequence[Message],
                        family: str = "") -> tuple[list[int], list[tuple[int, int]]]:
    """(ids up to the end of the last answer, [first, end) of each answer's ids with its end-of-turn token).

    An answer begins where the prompt of the conversation before it ends, and no token crosses that border, as
    in generation. UserError if the template changes what it has rendered.
    """
    whole = _render(tokenizer, messages, family, None, prompt=False)
    end_of_turn, texts, done = re.compile(_pattern(tuple(special_tokens(tokenizer)))), [], 0
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(tokenizer, messages[:place], family, None, prompt=True)
        # Qwen 3's prompt may begin a thought, and its template drops the thoughts of earlier turns
        shared = next(filter(whole.startswith, (prompt, THOUGHT.sub("", prompt))), None)
        end = end_of_turn.search(whole, len(shared or ""))
        answer = message["content"].split("</think>")[-1].strip()
        if shared is None or end is None or answer not in whole[len(shared):end.end()].replace(MARK, ""):
            raise UserError(
                f"the chat template changes message {place + 1} or what is before it when the conversation "
                "goes on, or ends it with no special token: a model would learn from text that it never sees "
                "in use; split conversations into single questions")
        texts += [whole[done:len(shared)], whole[len(shared):end.end()]]
        done = end.end()
    parts = _encode(tokenizer, texts)
    ends = list(itertools.accumulate(map(len, parts)))
    return list(itertools.chain(*parts)), list(zip(ends[::2], ends[1::2]))
