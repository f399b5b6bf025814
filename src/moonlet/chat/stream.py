"""What the stream parsers of both formats share: pieces in, events out, and the message that events make.

A piece is (text, special), as the tokenizer's stream gives it; `split_markers` and `TextStream` make pieces of text for
sources that have no token ids. The parsers are `parse.StreamParser` (XTML) and `parse_k2.StreamParser`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moonlet.chat.types import Function, Message, ToolCall
from moonlet.chat.xtml import MARKERS
from moonlet.errors import InputError

Piece = tuple[str, bool]
Tools = Sequence[Mapping[str, Any]]
# ("reasoning_content" | "content", str) or ("tool_call", {"index", "id", "name", "arguments"})
Event = tuple[str, Any]


def split_markers(text: str, markers: Sequence[str] = MARKERS) -> list[Piece]:
    """Pieces of text in which every spelled marker is a marker, for sources that have no token ids."""
    pieces = re.split("(" + "|".join(map(re.escape, markers)) + ")", text)
    return [(piece, i % 2 == 1) for i, piece in enumerate(pieces) if piece]


class TextStream:
    """`split_markers` over chunks: holds back an end that may grow into a marker, so any split gives the same parse."""

    def __init__(self, markers: Sequence[str] = MARKERS) -> None:
        self._markers = markers
        self._held = ""

    def feed(self, text: str) -> list[Piece]:
        text = self._held + text
        # A marker holds "<" only as its first character, so the last "<" is where a partial marker can start.
        last = text.rfind("<")
        partial = last >= 0 and any(m.startswith(text[last:]) and m != text[last:] for m in self._markers)
        start = last if partial else len(text)
        self._held = text[start:]
        return split_markers(text[:start], self._markers)

    def flush(self) -> list[Piece]:
        held, self._held = self._held, ""
        return split_markers(held, self._markers)


def _argument_schemas(tool: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """A tool's name, and the schema of each of its arguments."""
    function = tool.get("function") or {}
    properties = (function.get("parameters") or {}).get("properties") or {}
    if not isinstance(function.get("name"), str) or not isinstance(properties, Mapping):
        raise InputError("tools: each needs function.name, a string, and properties that are an object")
    return function["name"], properties


class Parser:
    """Feed pieces, get events as early as they are certain; `malformed` says why calls were dropped ("" if none were).

    With `tools` (an empty list too) only their names become calls. Never raises on what a model samples."""

    def __init__(self, tools: Tools | None) -> None:
        self.malformed = ""
        self._schemas = None if tools is None else dict(map(_argument_schemas, tools))
        self._calls, self._done = 0, False

    def feed(self, text: str, special: bool = False) -> list[Event]:
        raise NotImplementedError

    def finish(self) -> list[Event]:
        """End of the completion, wherever it stopped. Nothing is fed after it."""
        raise NotImplementedError

    def _offered(self, name: str) -> bool:
        return self._schemas is None or name in self._schemas

    def _accept(self, name: str, arguments: str, id: str = "") -> list[Event]:
        call = {"index": self._calls, "id": id or f"{name}:{self._calls}", "name": name, "arguments": arguments}
        self._calls += 1
        return [("tool_call", call)]

    def _reject(self, name: str, reason: str) -> None:
        self.malformed += f"{'; ' if self.malformed else ''}call {name}: {reason}"


def message_of(parser: Parser, pieces: Iterable[Piece]) -> Message:
    """The assistant message of a whole completion (what was sampled after the generation prefix)."""
    text = {"reasoning_content": "", "content": ""}
    calls: list[ToolCall] = []
    for piece, special in pieces:
        for kind, value in parser.feed(piece, special):
            if kind == "tool_call":
                function: Function = {"name": value["name"], "arguments": value["arguments"]}
                calls.append({"id": value["id"], "type": "function", "function": function})
            else:
                text[kind] += value
    parser.finish()
    message: Message = {"role": "assistant", "reasoning_content": text["reasoning_content"], "content": text["content"]}
    if calls:
        message["tool_calls"] = calls
    if parser.malformed:
        message["malformed"] = parser.malformed
    return message
