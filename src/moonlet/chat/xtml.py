"""Render messages to Kimi K3's XTML as segments (Kimi K3 report, appendix F).

An element is <|open|>tag key="value"<|sep|> ... <|close|>tag<|sep|>, and each message ends with <|end_of_msg|>. The
four markers are control tokens; tag names, attributes and all content are ordinary text. An assistant body has the
channels think, response and tools; tools holds call(tool, index from 1) elements, which hold argument(key, type)
elements. Order: tool-declare, thinking-effort, the messages, tool-choice, response-format, generation prefix. Past
think channels always stay in the history in thinking mode; without thinking none is shown.

Departures from the published template, the first two because a small model pays for every token: option messages are
worded shorter, with the same data; a thinking turn that has only calls has no empty response channel (the tests compare
all else); a thought of nothing but whitespace is kept. Arguments given as JSON text are written anew.
Left out: images, and tools declared in the middle of a conversation.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from moonlet.chat.messages import (
    AnyMessage,
    argument_json,
    arguments,
    compact_json,
    content,
    functions,
    plain,
    runs,
    tool_results,
)
from moonlet.chat.types import Segment
from moonlet.errors import InputError

END, OPEN, CLOSE, SEP = MARKERS = ("<|end_of_msg|>", "<|open|>", "<|close|>", "<|sep|>")
EFFORTS = ("low", "high", "max")
TOOL_CHOICES = {
    "required": "tool_choice=required: call a tool in the next message.",
    "none": "tool_choice=none: call no tool in the next message.",
}


@lru_cache(4096)  # an agent's history is rendered again at every turn, and most of it is the same markup
def _tag(tag: str, loss: bool, attributes: tuple[tuple[str, str], ...]) -> list[Segment]:
    out = [Segment(OPEN, True, loss), Segment(tag, False, loss)]
    for key, value in attributes:
        # Upstream encodes an attribute in these pieces, and BPE merges depend on where a piece ends.
        escaped = value.replace("&", "&amp;").replace('"', "&quot;")
        for piece in (f" {key}", '="', escaped, '"'):
            out += plain(piece, loss)
    return out + [Segment(SEP, True, loss)]


def _open(tag: str, loss: bool = False, /, **attributes: object) -> list[Segment]:
    """Shared by all who ask for it: not to be changed in place."""
    return _tag(tag, loss, tuple([(key, str(value)) for key, value in attributes.items()]))


@lru_cache
def _close(tag: str, loss: bool = False) -> list[Segment]:
    return [Segment(CLOSE, True, loss), Segment(tag, False, loss), Segment(SEP, True, loss)]


def _element(tag: str, body: list[Segment], loss: bool = False, /, **attributes: object) -> list[Segment]:
    return [*_open(tag, loss, **attributes), *body, *_close(tag, loss)]


def _message(body: str, **attributes: object) -> list[Segment]:
    return _element("message", plain(body), **attributes) + [Segment(END, True)]


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return {str: "string", type(None): "null", dict: "object"}.get(type(value), "array")


def _call(function: Mapping[str, Any], index: int, loss: bool, words: bool) -> list[Segment]:
    parsed = arguments(function)
    body: list[Segment] = []
    if parsed is None:
        # Not a JSON object: shown to the model as it was, but never trained on.
        loss, body = False, _element("json", plain(str(function["arguments"])), type="object")
    for key, value in (parsed or {}).items():
        text = value if isinstance(value, str) else argument_json(value)
        body += _element("argument", plain(text, words), loss, key=key, type=_type(value))
    return _element("call", body, loss, tool=function["name"], index=index)


def _assistant(message: AnyMessage, thinking: bool) -> list[Segment]:
    loss = message.get("loss") is not False
    words = loss and message.get("loss") != "markup"
    called, text = functions(message), content(message)
    body: list[Segment] = []
    if thinking:
        body += _element("think", plain(content(message, "reasoning_content"), words), loss)
    if text or not called or not thinking:  # without thinking the generation prefix has opened response already
        body += _element("response", plain(text, words), loss)
    if called:
        calls = [segment for i, function in enumerate(called, 1) for segment in _call(function, i, loss, words)]
        body += _element("tools", calls, loss)
    name = {"name": message["name"]} if message.get("name") else {}
    return _open("message", role="assistant", **name) + body + _close("message", loss) + [Segment(END, True, loss)]


def _results(previous: AnyMessage, results: Sequence[AnyMessage]) -> list[Segment]:
    """One run of tool messages, in call order."""
    out: list[Segment] = []
    for name, position, result in sorted(tool_results(previous, results), key=lambda found: found[1]):
        out += _message(content(result), role="tool", tool=name, index=position + 1)
    return out


def _one_shot_options(tool_choice: str | None, response_format: Mapping[str, Any] | None) -> list[Segment]:
    out: list[Segment] = []
    if tool_choice in TOOL_CHOICES:
        out += _message(TOOL_CHOICES[tool_choice], role="system", type="tool-choice")
    elif tool_choice not in (None, "auto"):
        raise InputError(f"tool_choice {tool_choice!r}: use auto, none or required")
    kind = (response_format or {"type": "text"}).get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise InputError(f"response_format type {kind!r}: use text, json_object or json_schema")
    if response_format and kind != "text":
        body = f"response_format={kind}: answer with raw JSON only."
        if kind == "json_schema":
            schema = (response_format.get("json_schema") or {}).get("schema")
            if not isinstance(schema, dict):
                raise InputError("response_format json_schema: needs json_schema.schema, an object")
            body += f" Schema:\n```json\n{compact_json(schema, sort_keys=True)}\n```"
        out += _message(body, role="system", type="response-format")
    return out


def generation_prefix(thinking: bool = True) -> list[Segment]:
    """What a prompt ends with. The channel it opens, think or response, alone chooses the mode."""
    return _open("message", role="assistant") + _open("think" if thinking else "response")


def continuation(
    assistant_message: AnyMessage, tool_messages: Sequence[AnyMessage], thinking: bool = True
) -> list[Segment]:
    """What to append after a sampled turn that ended in tool calls: the results in call order, then the prefix."""
    return _results(assistant_message, tool_messages) + generation_prefix(thinking)


def render(
    messages: Sequence[AnyMessage],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    thinking: bool = True,
    effort: str | None = None,
    tool_choice: str | None = None,
    response_format: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = False,
) -> list[Segment]:
    """Segments of a conversation. Loss segments: each assistant body, first channel tag through <|end_of_msg|>.

    `effort` (low, high, max) speaks of the think channel, so it renders only with `thinking`. Raises InputError."""
    out: list[Segment] = []
    if tools:
        declared = f"# Tools\n```json\n{compact_json(list(tools), sort_keys=True)}\n```"
        out += _message(declared, role="system", type="tool-declare")
    if effort is not None and effort not in EFFORTS:
        raise InputError(f"effort {effort!r}: use one of {', '.join(EFFORTS)}")
    if effort is not None and thinking:
        out += _message(f"thinking_effort={effort}", role="system", type="thinking-effort")
    previous: AnyMessage = {}
    for run in runs(messages):
        message, role = run[0], run[0]["role"]
        if role == "assistant":
            out += _assistant(message, thinking)
        elif role == "tool":
            out += _results(previous, run)
        else:
            name = {"name": message["name"]} if message.get("name") else {}
            out += _message(content(message), role=role, **name)
        previous = message
    out += _one_shot_options(tool_choice, response_format)
    return out + generation_prefix(thinking) if add_generation_prompt else out
