"""Parse a sampled assistant turn in the K2 family's format (k2.py), whole or while it streams.

Input is (text, special) pieces, as the tokenizer's stream gives them: only a special piece is a marker, so text that
spells one stays text. A completion starts inside the thought, or inside the answer without thinking. A thought ends at
</think> or where a section of calls begins: these models are known to leave the close out. No marker is ever emitted.
Calls are stricter, since they are acted on: one that is cut off, outside a section, not offered or whose arguments are
no JSON object becomes a reason in `malformed` instead of a call. Its arguments stay as they were spelled, so that
history renders to the tokens that were sampled; they are not validated against the schema.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from moonlet.chat.k2 import ARGUMENT, CALL, CALL_END, ROLE_MARKERS, SECTION, SECTION_END, THINK, THINK_END
from moonlet.chat.messages import arguments
from moonlet.chat.stream import Event, Parser, Piece, Tools, message_of
from moonlet.chat.types import Message


@dataclass
class _Call:
    """A call that is being read. `arguments` is None until they begin."""

    error: str = ""
    id: str = ""
    arguments: str | None = None

    def fail(self, error: str) -> None:
        self.error = self.error or error

    @property
    def name(self) -> str:
        """The id without `functions.` and `:IDX`, where they are."""
        head, _, index = self.id.rpartition(":")
        name = (head if index.strip().isdecimal() else self.id.rstrip()).lstrip()
        return name.removeprefix("functions.")


class StreamParser(Parser):
    """The K2 family's `stream.Parser`."""

    def __init__(self, thinking: bool = True, tools: Tools | None = None) -> None:
        super().__init__(tools)
        self._into = "reasoning_content" if thinking else "content"  # or "section": text there is dropped
        self._call: _Call | None = None

    def feed(self, text: str, special: bool = False) -> list[Event]:
        if self._done or not text:
            return []
        if not special:
            return self._add_text(text)
        if text in ROLE_MARKERS:  # the next message begins: a missing <|im_end|>
            return self.finish()
        if text == CALL_END and self._call:
            return self._end_call(self._call)
        if text == ARGUMENT and self._call and self._call.arguments is None:
            self._call.arguments = ""
        elif text in (CALL, SECTION, SECTION_END):
            self._drop_call()
            if text == CALL:
                self._call = _Call("" if self._into == "section" else "outside a section of calls")
            else:
                self._into = "section" if text == SECTION else "content"
        elif self._call:
            self._call.fail("a stray control token")
        elif text == THINK:
            self._into = "reasoning_content"
        elif text == THINK_END and self._into == "reasoning_content":
            self._into = "content"
        return []

    def finish(self) -> list[Event]:
        self._drop_call()
        self._done = True
        return []

    def _add_text(self, text: str) -> list[Event]:
        if self._call is None:
            return [(self._into, text)] if self._into != "section" else []
        if self._call.arguments is None:
            self._call.id += text
        else:
            self._call.arguments += text
        return []

    def _end_call(self, call: _Call) -> list[Event]:
        self._call = None
        text = call.arguments or ""
        if call.arguments is None:
            call.fail("no arguments")
        elif not self._offered(call.name):
            call.fail("not an offered tool")
        elif arguments({"arguments": text.strip()}) is None:
            call.fail("arguments are not a JSON object")
        if call.error:
            self._reject(call.name, call.error)
            return []
        return self._accept(call.name, text if text.strip() else "{}", call.id.strip())

    def _drop_call(self) -> None:
        if self._call:
            self._reject(self._call.name, self._call.error or "not closed")
        self._call = None


def parse(pieces: Iterable[Piece], thinking: bool = True, tools: Tools | None = None) -> Message:
    """The assistant message of a completion (what was sampled after the generation prefix). Never raises on it."""
    return message_of(StreamParser(thinking, tools), pieces)
