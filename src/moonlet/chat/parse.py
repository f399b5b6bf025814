"""Parse a sampled assistant turn in XTML (xtml.py), whole or while it streams.

Input is (text, special) pieces, as the tokenizer's stream gives them: only a special piece is a marker, so text that
spells one stays text. A completion starts inside think, or inside response without thinking. A channel ends at its
close tag or where another channel opens, so reasoning whose close tag is missing still ends. Text outside a channel and
tags that are out of place are dropped: neither a marker nor a tag is ever emitted. Calls are stricter, since they are
acted on: one that is cut off, badly nested, not offered or not JSON becomes a reason in `malformed` instead of a call.
Arguments are not validated against the schema; it only decides whether a value is raw text or JSON.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from moonlet.chat.messages import compact_json
from moonlet.chat.stream import Event, Parser, Piece, Tools, message_of
from moonlet.chat.types import Message
from moonlet.chat.xtml import CLOSE, END, OPEN, SEP

CHANNELS = {"think": "reasoning_content", "response": "content", "tools": ""}
_ATTRIBUTE = re.compile(r'\s([^\s="]+)="([^"]*)"')  # starts at a space: linear time on any text


def _header(header: str) -> tuple[str, dict[str, str]]:
    attributes = {k: v.replace("&quot;", '"').replace("&amp;", "&") for k, v in _ATTRIBUTE.findall(header)}
    return (header.split(None, 1) or [""])[0], attributes


def _json_value(text: str, declared: str, schema: object) -> str:
    """The argument as JSON text. The schema's type wins over the declared one. ValueError if it is not JSON."""
    kinds = schema.get("type") if isinstance(schema, Mapping) else None
    kinds = kinds if isinstance(kinds, list) and kinds else [kinds if isinstance(kinds, str) else declared]
    raw = "string" in kinds and (len(kinds) == 1 or declared == "string")
    return compact_json(text if raw else json.loads(text))


class _Call:
    """A call that is being read: its finished arguments as JSON text, the open argument, the first error."""

    def __init__(self, name: str, error: str) -> None:
        self.name, self.error = name, error
        self.arguments: dict[str, str] = {}
        self.key: str | None = None
        self.type = self.text = ""

    def fail(self, error: str) -> None:
        self.error = self.error or error

    def add_text(self, text: str) -> None:
        if self.key is not None:
            self.text += text
        elif text.strip():
            self.fail("text outside an argument")

    def open_argument(self, attributes: dict[str, str]) -> None:
        if self.key is not None or "key" not in attributes or attributes["key"] in self.arguments:
            return self.fail("an argument that is nested, repeated or without a key")
        self.key, self.type, self.text = attributes["key"], attributes.get("type", "string"), ""

    def close_argument(self, schemas: Mapping[str, Any]) -> None:
        if self.key is None:
            return self.fail("close of an argument that is not open")
        try:
            self.arguments[self.key] = _json_value(self.text, self.type, schemas.get(self.key))
        except (ValueError, RecursionError) as error:
            self.fail(f"argument {self.key} is not JSON ({error})")
        self.key = None

    def as_json(self) -> str:
        return "{" + ",".join(f"{compact_json(key)}:{value}" for key, value in self.arguments.items()) + "}"


class StreamParser(Parser):
    """XTML's `stream.Parser`."""

    def __init__(self, thinking: bool = True, tools: Tools | None = None) -> None:
        super().__init__(tools)
        self._channel: str | None = "think" if thinking else "response"
        self._tag: tuple[str, str] | None = None  # a marker, and the tag text that has come after it
        self._call: _Call | None = None

    def feed(self, text: str, special: bool = False) -> list[Event]:
        if self._done or not text:
            return []
        if not special:
            return self._add_text(text)
        tag, self._tag = self._tag, None
        if text == SEP and tag is not None:
            name, attributes = _header(tag[1])
            return self._open(name, attributes) if tag[0] == OPEN else self._close(name)
        self._broken(tag)
        if self._call and text not in (OPEN, CLOSE, END):
            self._call.fail("a stray control token")
        if text in (OPEN, CLOSE):
            self._tag = (text, "")
        return self.finish() if text == END else []

    def finish(self) -> list[Event]:
        self._broken(self._tag)
        self._drop_call()
        self._tag, self._done = None, True
        return []

    def _add_text(self, text: str) -> list[Event]:
        if self._tag is not None:
            self._tag = (self._tag[0], self._tag[1] + text)
        elif self._call is not None:
            self._call.add_text(text)
        elif self._channel in ("think", "response"):
            return [(CHANNELS[self._channel], text)]
        return []

    def _open(self, tag: str, attributes: dict[str, str]) -> list[Event]:
        if tag in CHANNELS:
            self._drop_call()
            self._channel = tag
        elif tag == "message":  # the next message begins: a missing <|end_of_msg|>
            return self.finish()
        elif tag == "call":
            self._drop_call()
            name = attributes.get("tool", "?")
            error = "" if self._channel == "tools" else "outside the tools channel"
            if "tool" not in attributes or not self._offered(name):
                error = "not an offered tool"
            self._channel, self._call = "tools", _Call(name, error)
        elif self._call and tag == "argument":
            self._call.open_argument(attributes)
        elif self._call:
            self._call.fail(f"unexpected element {tag}")
        return []

    def _close(self, tag: str) -> list[Event]:
        if tag == "message":
            return self.finish()
        if tag == self._channel:
            self._drop_call()
            self._channel = None
        elif self._call and tag == "argument":
            self._call.close_argument((self._schemas or {}).get(self._call.name, {}))
        elif self._call and tag == "call":
            return self._end_call(self._call)
        elif self._call:
            self._call.fail(f"unexpected close of {tag}")
        return []

    def _end_call(self, call: _Call) -> list[Event]:
        if call.key is not None:
            call.fail(f"argument {call.key} is not closed")
        self._call = None
        if call.error:
            self._reject(call.name, call.error)
            return []
        return self._accept(call.name, call.as_json())

    def _broken(self, tag: tuple[str, str] | None) -> None:
        """A tag (or none) that did not reach its <|sep|>."""
        if tag and self._call:
            self._call.fail("a tag without its end")
        elif tag and self._channel == "tools" and tag[0] == OPEN:
            self._reject("?", "a tag without its end")

    def _drop_call(self) -> None:
        if self._call:
            self._reject(self._call.name, self._call.error or "not closed")
        self._call = None


def parse(pieces: Iterable[Piece], thinking: bool = True, tools: Tools | None = None) -> Message:
    """The assistant message of a completion (what was sampled after the generation prefix). Never raises on it."""
    return message_of(StreamParser(thinking, tools), pieces)
