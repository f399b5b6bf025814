"""The chat formats as values, so that an engine or a server can speak whichever one a tokenizer was made for.

Each function of a format takes the same arguments: `render(messages, tools, thinking=, effort=, tool_choice=,
response_format=, add_generation_prompt=)`, `continuation(assistant_message, tool_messages, thinking)`,
`generation_prefix(thinking)` and `StreamParser(thinking, tools)`. What a format cannot say it refuses with InputError.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moonlet.chat import k2, xtml
from moonlet.chat.parse import StreamParser as XtmlParser
from moonlet.chat.parse_k2 import StreamParser as K2Parser
from moonlet.chat.stream import Parser, Piece, Tools, message_of
from moonlet.chat.types import Message, Segment
from moonlet.errors import InputError


@dataclass(frozen=True)
class Format:
    """One chat format. `markers` are the control tokens that its tokenizer has; `end` is the one that ends a turn."""

    name: str
    markers: tuple[str, ...]
    end: str
    render: Callable[..., list[Segment]]
    continuation: Callable[..., list[Segment]]
    generation_prefix: Callable[..., list[Segment]]
    StreamParser: Callable[..., Parser]
    jinja: str  # file beside this one
    jinja_head: str = ""

    def parse(self, pieces: Iterable[Piece], thinking: bool = True, tools: Tools | None = None) -> Message:
        """The assistant message of a completion (what was sampled after the generation prefix). Never raises on it."""
        return message_of(self.StreamParser(thinking, tools), pieces)

    @property
    def template(self) -> str:
        """The jinja template that renders the same text, for other programs. As one string it cannot keep markers in
        user text apart from real ones: our own code encodes the segments of `render` instead."""
        return self.jinja_head + Path(__file__).with_name(self.jinja).read_text(encoding="utf-8")


XTML = Format(
    "xtml", xtml.MARKERS, xtml.END, xtml.render, xtml.continuation, xtml.generation_prefix, XtmlParser, "xtml.jinja"
)
K2 = Format("k2", k2.MARKERS, k2.END, k2.render, k2.continuation, k2.generation_prefix, K2Parser, "k2.jinja")
K2_INSTRUCT = Format(
    "k2-instruct",
    (*k2.ROLE_MARKERS, *k2.CALL_MARKERS),
    k2.END,
    partial(k2.render, instruct=True),
    partial(k2.continuation, instruct=True),
    partial(k2.generation_prefix, instruct=True),
    lambda thinking=False, tools=None: K2Parser(False, tools),
    "k2.jinja",
    "{%- set instruct = true -%}\n",
)
FORMATS = (XTML, K2, K2_INSTRUCT)  # K2's markers are K2 Instruct's and two more, so it is asked first


def format_of(special: Iterable[str]) -> Format:
    """The format whose markers are all among the names of a tokenizer's special tokens. Raises InputError."""
    names = set(special)
    for found in FORMATS:
        if names.issuperset(found.markers):
            return found
    wanted = "; ".join(f"{known.name}: {' '.join(known.markers)}" for known in FORMATS)
    raise InputError(f"the tokenizer has no chat format's markers (special tokens {' '.join(sorted(names))}): {wanted}")
