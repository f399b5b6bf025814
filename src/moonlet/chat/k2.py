"""Render messages to the Kimi K2 family's format as segments (the templates published with K2, K2 Thinking, K2.6).

A turn is <|im_user|>NAME<|im_middle|> ... <|im_end|>; assistants open with <|im_assistant|> and everyone else with
<|im_system|>; NAME is the message's name, else its role. The tools come first, as compact JSON in a turn of
`tool_declare`. An assistant body is <think> thought </think>, the answer, and one section of calls, each
functions.NAME:IDX and its JSON arguments. A result is a turn of the tool: "## Return of functions.NAME:IDX", newline,
text. IDX counts all calls of the conversation from 0, and ids of any other form are renamed to it, as Moonshot's API
does before its model sees them: others mislead it.

The mode is chosen by the prefix alone, as in K2.5: <think> opens a thought, <think></think> (instant) closes it at
once; K2 Instruct has neither. A thought lives as long as its tool loop: once the assistant has answered without a call,
that turn and those before it show <think></think>, unless `preserve_thinking` (K2.6) keeps them all. One departure: a
last message that no prompt follows is not history yet and keeps its thought, so that a final turn can be trained on.
Left out: images, K2.5's TypeScript spelling of tools, the system message that K2 and K2 Thinking put in where none is.
"""

import re
from collections.abc import Mapping, Sequence
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

END, USER, ASSISTANT, SYSTEM, MIDDLE = ROLE_MARKERS = (
    "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>",
)  # fmt: skip
SECTION, SECTION_END, CALL, ARGUMENT, CALL_END = CALL_MARKERS = (
    "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>",
    "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
)  # fmt: skip
THINK, THINK_END = THINK_MARKERS = ("<think>", "</think>")
MARKERS = (*ROLE_MARKERS, *CALL_MARKERS, *THINK_MARKERS)
_ID = re.compile(r"functions\..*:([0-9]{1,9})", re.DOTALL)


def _special(*markers: str, loss: bool = False) -> list[Segment]:
    return [Segment(marker, True, loss) for marker in markers]


def _open(marker: str, name: str) -> list[Segment]:
    return _special(marker) + plain(name) + _special(MIDDLE)


def _turn(marker: str, name: str, body: str) -> list[Segment]:
    return _open(marker, name) + plain(body) + _special(END)


def _call(function: Mapping[str, Any], index: int, loss: bool, words: bool) -> list[Segment]:
    raw = function.get("arguments") or "{}"
    if arguments(function) is None:  # shown to the model as it was, but never trained on
        loss = words = False
        raw = str(raw)
    text = raw if isinstance(raw, str) else argument_json(raw)
    head = _special(CALL, loss=loss) + plain(f"functions.{function['name']}:{index}", loss)
    return head + _special(ARGUMENT, loss=loss) + plain(text, words) + _special(CALL_END, loss=loss)


def _assistant(message: AnyMessage, first: int, mode: str, kept: bool) -> list[Segment]:
    """`first`: IDX of the turn's first call; `kept`: its thought is shown. A turn without its thought is no example."""
    loss = message.get("loss") is not False and kept
    words = loss and message.get("loss") != "markup"
    thought = plain(content(message, "reasoning_content") if kept and mode == "thinking" else "", words)
    # Instant: the prefix has closed the thought already, and learning to close it would spoil the thinking mode.
    learnt = loss and mode == "thinking"
    body = [] if mode == "instruct" else _special(THINK, loss=learnt) + thought + _special(THINK_END, loss=learnt)
    body += plain(content(message), words)
    if called := functions(message):
        calls = [segment for i, function in enumerate(called, first) for segment in _call(function, i, loss, words)]
        body += _special(SECTION, loss=loss) + calls + _special(SECTION_END, loss=loss)
    return _open(ASSISTANT, message.get("name") or "assistant") + body + _special(END, loss=loss)


def _results(previous: AnyMessage, results: Sequence[AnyMessage], first: int) -> list[Segment]:
    out: list[Segment] = []
    for name, position, result in tool_results(previous, results):
        out += _turn(SYSTEM, name, f"## Return of functions.{name}:{first + position}\n{content(result)}")
    return out


def generation_prefix(thinking: bool = True, *, instruct: bool = False) -> list[Segment]:
    """What a prompt ends with."""
    opened = [] if instruct else _special(THINK) if thinking else _special(THINK, THINK_END)
    return _open(ASSISTANT, "assistant") + opened


def continuation(
    assistant_message: AnyMessage,
    tool_messages: Sequence[AnyMessage],
    thinking: bool = True,
    *,
    instruct: bool = False,
) -> list[Segment]:
    """What to append after a sampled turn that ended in tool calls: the results as given, then the prefix.

    IDX goes on from the id of the turn's first call, where that has the family's form."""
    calls = assistant_message.get("tool_calls") or [{}]
    found = _ID.fullmatch(str(calls[0].get("id")))
    first = int(found[1]) if found else 0
    return _results(assistant_message, tool_messages, first) + generation_prefix(thinking, instruct=instruct)


def render(
    messages: Sequence[AnyMessage],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    thinking: bool = True,
    preserve_thinking: bool = False,
    instruct: bool = False,
    effort: str | None = None,
    tool_choice: str | None = None,
    response_format: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = False,
) -> list[Segment]:
    """Segments of a conversation. Loss segments: the assistant bodies that show their thought, <think> (instant: what
    follows </think>) through <|im_end|>.

    `instruct` knows no thoughts, so `thinking` says nothing there. The format has no words for `effort`, `tool_choice`
    and `response_format`: InputError for any that asks for something, as for bad messages."""
    asked: dict[str, Any] = {"effort": effort, "tool_choice": tool_choice, "response_format": response_format}
    neutral: dict[str, Any] = {"tool_choice": "auto", "response_format": {"type": "text"}}
    for option, value in asked.items():
        if value is not None and value != neutral.get(option):
            raise InputError(f"{option} {value!r}: the K2 format has no words for it; leave it out")
    out = _turn(SYSTEM, "tool_declare", compact_json(list(tools), sort_keys=True)) if tools else []
    mode = "instruct" if instruct else "thinking" if thinking else "instant"
    history = messages if add_generation_prompt else messages[:-1]
    answered = [i for i, m in enumerate(history) if m.get("role") == "assistant" and not m.get("tool_calls")]
    kept_from = answered[-1] + 1 if answered and mode == "thinking" and not preserve_thinking else 0
    done = first = count = 0  # messages rendered, IDX of the last turn's first call, calls so far
    previous: AnyMessage = {}
    for run in runs(messages):
        message, role = run[0], run[0]["role"]
        if role == "tool":
            out += _results(previous, run, first)
        else:
            first, count = count, count + len(functions(message))
            if role == "assistant":
                out += _assistant(message, first, mode, done >= kept_from)
            else:
                out += _turn(USER if role == "user" else SYSTEM, message.get("name") or role, content(message))
        done, previous = done + len(run), message
    return out + generation_prefix(thinking, instruct=instruct) if add_generation_prompt else out
