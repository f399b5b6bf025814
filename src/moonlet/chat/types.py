"""The shapes that pass between chat, data, engine and server: OpenAI message dicts, and the segments they render to.

A segment is a run of text that the tokenizer encodes on its own, so a prompt is a list of segments and never one
string: only a segment with `special` may become a control token, which makes markup in user text harmless.
Messages stay plain dicts at run time; the TypedDicts only name their keys. Images and audio are left out.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypedDict


@dataclass(frozen=True)
class Segment:
    """Text that is encoded on its own. `special`: one control token; `loss`: trained on in supervised fine-tuning."""

    text: str
    special: bool = False
    loss: bool = False


class Function(TypedDict):
    name: str
    arguments: str  # a JSON object as text


class ToolCall(TypedDict):
    id: str
    type: str  # "function"
    function: Function


class Message(TypedDict, total=False):
    role: str  # system | user | assistant | tool
    content: str
    reasoning_content: str
    tool_calls: list[ToolCall]
    tool_call_id: str
    name: str
    # Ours: False keeps an assistant turn out of the loss, "markup" only its words, so that what it does is trained.
    loss: bool | Literal["markup"]
    malformed: str  # ours: why a sampled call was not taken


class Tool(TypedDict):
    type: str  # "function"
    function: dict[str, Any]  # name, description, parameters (a JSON schema)
