"""Chat templates of instruct models: messages in, token ids out.

    text, ids = encode_chat(tokenizer, [{"role": "user", "content": "Fever and cough?"}], family="llama")

The template in a model folder renders messages in Jinja's sandbox, as apply_chat_template of transformers
does; a folder without one gets a template from CHAT_TEMPLATES. What a user writes is always ordinary text:
"<|eot_id|>" in a question is encoded as text, not obeyed.

References: the published chat templates of Llama 2 and 3, Mistral 7B Instruct 0.2 and 0.3, InternLM 2 chat,
Qwen 2 and 3, Gemma 2.
"""
from __future__ import annotations

import datetime
import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

from mmed.utils.errors import UserError, require_extra

Message = dict[str, str]  # "role" and "content"

# Inserted into text that looks like a special token while a message is rendered: <MARK|eot_id|>.
MARK = "\ufdd0"  # a Unicode noncharacter, which no text contains
THOUGHT = re.compile(r"<think>\s*(?:</think>\s*)?\Z")  # a prompt that begins the answer's thought

# ----------------------------------------------------------------------------------------- built-in templates

NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
SYSTEM = "{% if messages[0].role == 'system' %}{% set system, messages = messages[0].content, messages[1:] %}"
CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CHAT_TEMPLATES = {
    # <s>[INST] <<SYS>> system <</SYS>> question [/INST] answer </s><s>[INST] question [/INST]
    "llama2": SYSTEM + """{% set start = '<<SYS>>\n' ~ system ~ '\n<</SYS>>\n\n' %}{% endif %}
{% for message in messages %}{% if message.role == 'user' %}
{% set content = (start ~ message.content if loop.first else message.content) | trim %}
{{ bos_token }}[INST] {{ content }} [/INST]{% else %} {{ message.content | trim }} {{ eos_token }}{% endif %}
{% endfor %}""",
    "llama3": """{{ bos_token }}{% for message in messages %}
<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>{% endfor %}
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}""",
    # 0.1 and 0.2, where [INST] is plain text
    "mistral": NO_SYSTEM + """{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}
[INST] {{ message.content }} [/INST]{% else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}""",
    # From 0.3 on [INST] and [/INST] are tokens, and the system's text goes before the last question
    "mistral3": SYSTEM + """{% set start = system ~ '\n\n' %}{% endif %}{{ bos_token -}}
{% set last = messages | length - (1 if messages[-1].role == 'user' else 2) %}
{% for message in messages %}{% if message.role == 'user' %}
[INST] {{ start if loop.index0 == last }}{{ message.content }}[/INST]{% else %} {{ message.content }}
{{- eos_token }}{% endif %}{% endfor %}""",
    "chatml": CHATML,
    "internlm2": "{{ bos_token }}" + CHATML,
    # An empty thought makes the model answer at once; <think> is an added token found in ordinary text
    "qwen3": """{% set thought = '<think>\n\n</think>\n\n' %}{% for message in messages %}
<|im_start|>{{ message.role }}
{{ thought if loop.last and message.role == 'assistant' }}{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{{ thought if not enable_thinking }}{% endif %}""",
    "gemma": NO_SYSTEM + """{{ bos_token }}{% for message in messages %}
<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}
{{ message.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}""",
}


def template_name(tokenizer, family: str) -> str | None:
    """The key of CHAT_TEMPLATES for a model without a template of its own, by its special tokens and family;
    None for a base model."""
    by_token = {"<|start_header_id|>": "llama3", "<start_of_turn>": "gemma", "[INST]": "mistral3",
                "<|im_start|>": family if family in ("internlm2", "qwen3") else "chatml"}
    by_family = {"mistral": "mistral", "llama": "llama2"} if tokenizer.kind != "byte-level BPE" else {}
    return next((name for token, name in by_token.items() if token in tokenizer.special),
                by_family.get(family))


# -------------------------------------------------------------------------------------------------- rendering

def _raise_exception(message: str) -> None:
    raise ValueError(message)


def _strftime_now(form: str) -> str:
    # DIFFERS: transformers gives today's date; a prompt must not depend on the day. The date is Llama 3.1's.
    return datetime.date(2024, 7, 26).strftime(form)


@functools.lru_cache(maxsize=8)
def _jinja_template(text: str) -> Any:
    sandbox = require_extra("jinja2.sandbox", "report")
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    # transformers' own tag around the assistant's text, which encode_conversation finds in every template
    text = re.sub(r"(\{%[-+]?\s*(?:end)?)generation(\s*[-+]?%\})", r"\1with\2", text)
    return environment.from_string(text)


def _render_jinja(text: str, messages: list[Message], variables: dict[str, Any]) -> str:
    """The text of a conversation. If the template has no system role (it raises an error or omits
    the system text), that text goes before the first question."""
    def render(first: Message) -> str:
        return _jinja_template(text).render(messages=[first, *messages[1:]], tools=None, documents=None,
                                            **variables)

    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    try:
        rendered = render(messages[0])
        if not system or rendered != render(messages[0] | {"content": system + MARK}):  # it uses the text
            return rendered
    except Exception as error:  # a template is a program: it may raise anything
        if messages[0]["role"] != "system":
            raise UserError(f"the model's chat template fails ({type(error).__name__}: {error}); correct "
                            "it, or name another with --chat_template (generate, eval)") from None
    folded = {"role": "user", "content": f"{system}\n\n{messages[1]['content']}"}
    return _render_jinja(text, [folded, *messages[2:]], variables)


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


def _template(tokenizer, family: str, name: str | None) -> str:
    """The template called `name` in CHAT_TEMPLATES, or the model's own."""
    if tokenizer.chat_template and not name:
        return tokenizer.chat_template
    name = name or template_name(tokenizer, family)
    if name is None:
        raise UserError("this model has no chat template (a base model); give it plain prompts, or add "
                        "chat_template to its tokenizer_config.json")
    template, known = CHAT_TEMPLATES[name], special_tokens(tokenizer)
    for token in re.findall(r"<\|\w+\|>|<\w+_of_turn>" + r"|\[/?INST\]" * (name == "mistral3"), template):
        if token not in known:
            raise UserError(f"this tokenizer has no {token}, which the chat template needs")
    return template


def _render(tokenizer, messages: Sequence[Message], family: str, name: str | None, prompt: bool,
            thinking: bool = False) -> str:
    """The text of a conversation with the text of special tokens; MARK hides what only looks like one.
    `prompt`: up to where an answer begins; `thinking`: with a thought, where the model can do both."""
    check_messages(messages, "user" if prompt else "assistant")
    template = _template(tokenizer, family, name)
    hidden = re.compile(rf"(?s)(?=(?:{_pattern(tuple(special_tokens(tokenizer)))}))(.)")
    messages = [message | {"content": hidden.sub(rf"\1{MARK}", message["content"].replace(MARK, ""))}
                for message in messages]
    ids = {"bos_token": tokenizer.named_bos_id, "eos_token": tokenizer.eos_id}
    roles = {role: tokenizer.piece(index) for role, index in ids.items() if index is not None}
    variables = roles | {"add_generation_prompt": prompt, "enable_thinking": thinking}
    return _render_jinja(template, messages, variables)


# --------------------------------------------------------------------------------------------------- encoding

def _encode(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each of several rendered texts that follow one another."""
    known, result, continued = special_tokens(tokenizer), [], False
    for text in texts:
        ids: list[int] = []
        for part in filter(None, re.split(f"({_pattern(tuple(known))})", text)):
            ids += ([known[part]] if part in known else
                    tokenizer.encode(part.replace(MARK, ""), continued=continued))
            continued = part not in ("<s>", "</s>")  # after them text starts again, with its space
        result.append(ids)
    return result


def encode_chat(tokenizer, messages: Sequence[Message], family: str = "", name: str | None = None,
                thinking: bool = False) -> tuple[str, list[int]]:
    """(text, ids) of a conversation up to where the answer begins; `name` is that of a built-in template."""
    text = _render(tokenizer, messages, family, name, True, thinking)
    return text.replace(MARK, ""), _encode(tokenizer, [text])[0]


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
                f"the chat template changes message {place + 1} or earlier ones when the conversation "
                "continues, or ends it without a special token; split conversations into single questions")
        texts += [whole[done:len(shared)], whole[len(shared):end.end()]]
        done = end.end()
    parts = _encode(tokenizer, texts)
    ends = list(itertools.accumulate(map(len, parts)))
    return list(itertools.chain(*parts)), list(zip(ends[::2], ends[1::2]))
