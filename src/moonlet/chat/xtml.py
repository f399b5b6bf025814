"""Render messages to Kimi K3's XTML as segments (Kimi K3 report, appendix F).

An element is <|open|>tag key="value"<|sep|> ... <|close|>tag<|sep|>, and each message ends with <|end_of_msg|>. The
four markers are control tokens; tag names, attributes and all content are ordinary text. An assistant body has the
channels think, response and tools; tools holds call(tool, index from 1) elements, which hold argument(key, type)
elements. Order: tool-declare, thinking-effort, the messages, tool-choice, response-format, generation prefix. Two
departures from upstream, as a small model pays for every token: option messages are worded shorter, and a thinking turn
that has only calls has no empty response channel. Past think channels always stay in the history in thinking mode;
without thinking none is shown.
Left out: images, and tools declared in the middle of a conversation.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moonlet.chat.types import Segment
from moonlet.errors import InputError

END, OPEN, CLOSE, SEP = MARKERS = ("<|end_of_msg|>", "<|open|>", "<|close|>", "<|sep|>")
EFFORTS = ("low", "high", "max")
TOOL_CHOICES = {
    "required": "tool_choice=required: call a tool in the next message.",
    "none": "tool_choice=none: call no tool in the next message.",
}
AnyMessage = Mapping[str, Any]  # a types.Message or a plain dict


def valid_unicode(text: str) -> str:
    """`text` with lone surrogates (JSON can spell them, UTF-8 cannot) replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def compact_json(value: Any, sort_keys: bool = False) -> str:
    """Compact JSON, unescaped. Raises ValueError for NaN and infinities, RecursionError for absurd nesting."""
    dumped = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, sort_keys=sort_keys)
    return valid_unicode(dumped)


def _text(text: str, loss: bool = False) -> list[Segment]:
    return [Segment(valid_unicode(text), False, loss)] if text else []


def _open(tag: str, loss: bool = False, /, **attributes: object) -> list[Segment]:
    out = [Segment(OPEN, True, loss), Segment(tag, False, loss)]
    for key, value in attributes.items():
        # Upstream encodes an attribute in these pieces, and BPE merges depend on where a piece ends.
        escaped = str(value).replace("&", "&amp;").replace('"', "&quot;")
        for piece in (f" {key}", '="', escaped, '"'):
            out += _text(piece, loss)
    return out + [Segment(SEP, True, loss)]


def _close(tag: str, loss: bool = False) -> list[Segment]:
    return [Segment(CLOSE, True, loss), Segment(tag, False, loss), Segment(SEP, True, loss)]


def _element(tag: str, body: list[Segment], loss: bool = False, /, **attributes: object) -> list[Segment]:
    return _open(tag, loss, **attributes) + body + _close(tag, loss)


def _message(body: str, **attributes: object) -> list[Segment]:
    return _element("message", _text(body), **attributes) + [Segment(END, True)]


def _content(message: AnyMessage, key: str = "content") -> str:
    value = message.get(key)
    if isinstance(value, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        value = "".join(str(part.get("text", "")) for part in value)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{message.get('role')} message: {key} must be text or a list of text parts")
    return value or ""


def _functions(message: AnyMessage) -> list[Mapping[str, Any]]:
    functions = [call.get("function") or {} for call in message.get("tool_calls") or []]
    if not all(isinstance(function.get("name"), str) for function in functions):
        raise InputError("tool_calls: each needs function.name, a string")
    return functions


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return {str: "string", type(None): "null", dict: "object"}.get(type(value), "array")


def _call(function: Mapping[str, Any], index: int, loss: bool, words: bool) -> list[Segment]:
    raw = function.get("arguments") or "{}"
    arguments: list[Segment] = []
    try:
        parsed = json.loads(raw) if isinstance(raw, str) else raw
        if not isinstance(parsed, dict):
            raise TypeError("not an object")
        for key, value in parsed.items():
            text = value if isinstance(value, str) else compact_json(value)
            arguments += _element("argument", _text(text, words), loss, key=key, type=_type(value))
    except (TypeError, ValueError, RecursionError):
        # Not a JSON object: shown to the model as it was, but never trained on.
        loss, arguments = False, _element("json", _text(str(raw)), type="object")
    return _element("call", arguments, loss, tool=function["name"], index=index)


def _assistant(message: AnyMessage, thinking: bool) -> list[Segment]:
    loss = message.get("loss") is not False
    words = loss and message.get("loss") != "markup"
    functions, content = _functions(message), _content(message)
    body: list[Segment] = []
    if thinking:
        body += _element("think", _text(_content(message, "reasoning_content"), words), loss)
    if content or not functions or not thinking:  # without thinking the generation prefix has opened response already
        body += _element("response", _text(content, words), loss)
    if functions:
        calls = [segment for i, function in enumerate(functions, 1) for segment in _call(function, i, loss, words)]
        body += _element("tools", calls, loss)
    name = {"name": message["name"]} if message.get("name") else {}
    return _open("message", role="assistant", **name) + body + _close("message", loss) + [Segment(END, True, loss)]


def _tool_results(previous: AnyMessage, results: Sequence[AnyMessage]) -> list[Segment]:
    """One run of tool messages. In call order if every tool_call_id names another call of `previous`, else as given."""
    functions = _functions(previous)
    order = {call.get("id"): index for index, call in enumerate(previous.get("tool_calls") or [], 1)}
    ids = [result.get("tool_call_id") for result in results]
    if len(order) == len(functions) and len(set(ids)) == len(ids) and all(i and i in order for i in ids):
        placed = sorted(((order[i], result) for i, result in zip(ids, results)), key=lambda pair: pair[0])
        named = [(functions[index - 1]["name"], index, result) for index, result in placed]
    else:
        names = [function["name"] for function in functions] + [None] * len(results)
        named = [(result.get("name") or names[i], i + 1, result) for i, result in enumerate(results)]
    out: list[Segment] = []
    for name, index, result in named:
        if name is None:
            raise InputError(f"tool message {index}: give name, or a tool_call_id of the assistant message before it")
        out += _message(_content(result), role="tool", tool=name, index=index)
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
    return _tool_results(assistant_message, tool_messages) + generation_prefix(thinking)


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
    start = 0
    while start < len(messages):
        message, role = messages[start], messages[start].get("role")
        end = start + 1
        if role == "assistant":
            out += _assistant(message, thinking)
        elif role == "tool":
            while end < len(messages) and messages[end].get("role") == "tool":
                end += 1
            out += _tool_results(messages[start - 1] if start else {}, messages[start:end])
        elif role in ("system", "user"):
            name = {"name": message["name"]} if message.get("name") else {}
            out += _message(_content(message), role=role, **name)
        else:
            raise InputError(f"message role {role!r}: use system, user, assistant or tool")
        start = end
    out += _one_shot_options(tool_choice, response_format)
    return out + generation_prefix(thinking) if add_generation_prompt else out
