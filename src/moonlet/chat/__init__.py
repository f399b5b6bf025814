"""Chat format: message types, XTML rendering to segments, parsing of sampled turns, and the jinja twin of the renderer.

No torch. `chat_template()` is what a model folder carries for other programs; it renders the same string, so it cannot
keep markup in user text apart from real markers: our own code encodes the segments of `render` instead.
"""

from pathlib import Path

from moonlet.chat.parse import StreamParser, TextStream, parse, split_markers
from moonlet.chat.types import Message, Segment, Tool, ToolCall
from moonlet.chat.xtml import MARKERS, continuation, generation_prefix, render

__all__ = [
    "MARKERS", "Message", "Segment", "StreamParser", "TextStream", "Tool", "ToolCall",
    "chat_template", "continuation", "generation_prefix", "parse", "render", "split_markers",
]  # fmt: skip


def chat_template() -> str:
    """The jinja template: messages, tools, add_generation_prompt, thinking (default true), thinking_effort."""
    return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
