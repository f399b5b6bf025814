"""The agent loop: ask, run the tool calls, ask again with their results, until an answer without calls.

The history keeps `reasoning_content` of every assistant turn: the model was trained on interleaved thought, and the
template renders it. Leaves out compaction, approval (the tools here compute and look up, nothing else) and steering.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from moonlet.agent.client import Client
from moonlet.agent.tools import Tools

MAX_STEPS = 200
Show = Callable[[str, str], None]


@dataclass
class Answer:
    """One user turn. `messages` is the whole conversation after it. `usage` sums the requests; None if none had it.

    `seconds` is the whole turn; `tokens_per_second` counts the time in which the endpoint was answering.
    """

    content: str
    reasoning: str
    messages: list[dict]
    usage: dict | None
    seconds: float
    tokens_per_second: float | None
    finish_reason: str


def answer(client: Client, options: dict, messages: list[dict], tools: Tools, show: Show) -> Answer:
    """Answer the last of `messages` (which stays as it is). Raises EndpointError.

    `options`: the model and sampling fields of the request. `show(kind, text)` is called as things happen, with kind
    "reasoning_content" or "content" (pieces of text), "call" or "result" (whole).
    """
    messages, thoughts = list(messages), []
    started, waiting = time.monotonic(), 0.0
    usage: dict[str, int] | None = None
    for _ in range(MAX_STEPS):
        body = options | {"messages": messages} | ({"tools": tools.schemas} if tools.schemas else {})
        asked = time.monotonic()
        with closing(client.stream(body)) as events:
            message, finish_reason, spent = _collect(events, show)
        waiting += time.monotonic() - asked
        messages.append(message)
        thoughts.append(message.get("reasoning_content", ""))
        if spent:
            keys = ("prompt_tokens", "completion_tokens", "total_tokens")
            usage = {key: (usage or {}).get(key, 0) + spent.get(key, 0) for key in keys}
        if "tool_calls" not in message:
            break
        for call in message["tool_calls"]:
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            show("call", f"{name} {arguments}")
            result = tools.call(name, arguments)
            show("result", result)
            messages.append({"role": "tool", "tool_call_id": call["id"], "name": name, "content": result})
    else:
        finish_reason = "max_steps"
    rate = usage["completion_tokens"] / waiting if usage else None
    reasoning = "\n".join(thought for thought in thoughts if thought)
    return Answer(message["content"], reasoning, messages, usage, time.monotonic() - started, rate, finish_reason)


def _collect(events: Iterator[dict], show: Show) -> tuple[dict, str, dict | None]:
    """One assistant message from its deltas, its finish_reason and usage. Pieces of a call share an index."""
    text = {"content": "", "reasoning_content": ""}
    calls: dict[int, dict] = {}
    finish_reason, usage = "", None
    for event in events:
        for key, value in event.items():
            if key in text:
                text[key] += value
                show(key, value)
            elif key == "usage":
                usage = value
            elif key == "finish_reason":
                finish_reason = value
            else:
                for piece in value:
                    index, function = piece.get("index", 0), piece.get("function") or {}
                    empty = {"id": f"call_{index}", "type": "function", "function": {"name": "", "arguments": ""}}
                    call = calls.setdefault(index, empty)
                    call["id"] = piece.get("id") or call["id"]
                    for part in ("name", "arguments"):
                        call["function"][part] += function.get(part) or ""
    message = {"role": "assistant"} | {key: said for key, said in text.items() if said or key == "content"}
    return message | ({"tool_calls": [calls[index] for index in sorted(calls)]} if calls else {}), finish_reason, usage
