"""Chat formats: message types, rendering to segments, parsing of sampled turns, and the jinja twins of the renderers.

`XTML` (Kimi K3's, ours by default), `K2` and `K2_INSTRUCT` are the formats; `format_of` picks one by a tokenizer's
special tokens. The bare names (`render`, `parse`, `MARKERS` ...) are XTML's. No torch.
"""

from moonlet.chat.formats import K2, K2_INSTRUCT, XTML, Format, format_of
from moonlet.chat.parse import StreamParser, parse
from moonlet.chat.stream import TextStream, split_markers
from moonlet.chat.types import Message, Segment, Tool, ToolCall
from moonlet.chat.xtml import MARKERS, continuation, generation_prefix, render

__all__ = [
    "K2", "K2_INSTRUCT", "MARKERS", "XTML", "Format", "Message", "Segment", "StreamParser", "TextStream", "Tool",
    "ToolCall", "chat_template", "continuation", "format_of", "generation_prefix", "parse", "render", "split_markers",
]  # fmt: skip


def chat_template() -> str:
    """XTML's jinja template: messages, tools, add_generation_prompt, thinking (default true), thinking_effort."""
    return XTML.template
