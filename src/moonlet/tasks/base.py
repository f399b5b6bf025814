"""What all tasks share: the item, the tools and their environment, the transcript and its score.

A task module has NAME and TOOLS; `sample(rng, split, **options) -> Item`; `demonstrate(item, rng, style)`, which gives
the whole conversation, the item's own messages included; and `score(item, messages)`. An item is a prompt with a known
answer. `environment(item)` is what its tools run in: one object per rollout, because receipts are handed out one by
one. A bad call gives the text "error: ..." and the episode goes on. Scores are read from the messages alone, so a
demonstration, a rollout and a conversation from the server are judged alike; a prompt may have earlier turns, only what
follows the last user message counts. Leaves out rewards: see `rewards`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from moonlet.chat.types import Function, Message, Tool, ToolCall
from moonlet.data.tiny_world import SPLITS
from moonlet.errors import InputError, nearest
from moonlet.sandbox.calculator import evaluate
from moonlet.sandbox.table import lookup


def _tool(name: str, *arguments: str) -> Tool:
    properties = {argument: {"type": "string"} for argument in arguments}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


# No descriptions: the model is trained on these three, and every token of a declaration is paid in every conversation.
CALCULATOR = _tool("calculator", "expression")
LOOKUP = _tool("lookup", "query")
NEXT_RECEIPT = _tool("next_receipt")
ALL_TOOLS = (CALCULATOR, LOOKUP, NEXT_RECEIPT)
NO_MORE = "no more"

ABSTAIN, ABSTAIN_ZH = "I don't know.", "我不知道。"
ABSTENTIONS = frozenset({"i don't know", "i do not know", "我不知道"})


@dataclass(frozen=True)
class Item:
    """One prompt with a known answer.

    `messages` end with the user's question; `answer` is the right final content, an abstention where there is none.
    `meta` is JSON: {"zh": bool, "wording": str, ...} and what the task adds; "easy" marks items that need no tool.
    `table` is the lookup tool's database, `receipts` the amounts that next_receipt hands out.
    """

    task: str
    split: str
    messages: list[Message]
    tools: list[Tool]
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)
    table: dict[str, dict[str, str]] = field(default_factory=dict, repr=False, compare=False)
    receipts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Score:
    """What a transcript did.

    `abstained`: said "I don't know"; `invented`: the final content is neither right nor an abstention, an empty one
    included; `calls` of any tool, `valid_calls` those the environment took, `needless_calls` those that could not help
    (any on an easy item, an exact repetition, next_receipt after "no more"). `honesty`: an abstention is judged apart
    from a wrong answer; `easy`: no tool is needed.
    """

    correct: bool
    abstained: bool
    invented: bool
    calls: int
    valid_calls: int
    needless_calls: int
    honesty: bool
    easy: bool


class Environment:
    """The tools of one item during one rollout."""

    def __init__(self, item: Item) -> None:
        self._offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in item.tools}
        self._table = item.table
        self._receipts = iter(item.receipts)

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        """The tool's result as text; "error: ..." for a tool or arguments that were not offered. Never raises."""
        if name not in self._offered:
            return f"error: no tool {str(name)[:20]}"
        wanted = self._offered[name]["properties"].keys()
        if not isinstance(arguments, dict) or arguments.keys() != wanted:
            return f"error: {name} takes {' '.join(wanted) or 'nothing'}"
        if not all(isinstance(value, str) for value in arguments.values()):
            return "error: not text"
        if name == "next_receipt":
            return str(next(self._receipts, NO_MORE))
        if name == "lookup":
            return lookup(self._table, arguments["query"])
        try:
            return evaluate(arguments["expression"])
        except InputError:
            return "error: bad expression"


def environment(item: Item) -> Environment:
    """A fresh environment: the receipts from the first."""
    return Environment(item)


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise InputError(f"split {split!r}: {nearest(split, SPLITS)}")


def check_range(name: str, bounds: tuple[int, int], least: int, most: int) -> None:
    """Raises InputError unless least <= low <= high <= most."""
    low, high = bounds
    if not least <= low <= high <= most:
        raise InputError(
            f"{name}=({low}, {high}): must be two whole numbers from {least} to {most}, the lower one first"
        )


def unknown_style(style: str, styles: Sequence[str]) -> InputError:
    return InputError(f"style {style!r}: {nearest(style, styles)}")


def say(content: str, think: str = "") -> Message:
    """A final assistant turn."""
    return {"role": "assistant", "reasoning_content": think, "content": content}


def blurt(content: str) -> Message:
    """An answer that nobody could predict: that it is given is trained on, its words, which would be noise, are not."""
    return {"role": "assistant", "reasoning_content": "", "content": content, "loss": "markup"}


def call(env: Environment, name: str, arguments: dict[str, str], think: str = "") -> list[Message]:
    """An assistant turn that calls one tool, and the tool's answer from `env`."""
    function: Function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    calls: list[ToolCall] = [{"id": f"{name}:0", "type": "function", "function": function}]
    return [
        {"role": "assistant", "reasoning_content": think, "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": f"{name}:0", "name": name, "content": env.call(name, arguments)},
    ]


def bare(content: str) -> str:
    """An answer without the spaces around it and the full stop at its end."""
    return content.strip().rstrip(".。 ")


def score(item: Item, messages: Sequence[Message]) -> Score:
    """Judge what follows the last user message. A transcript that stops before a final answer is not correct."""
    last_user = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=-1)
    turns = messages[last_user + 1 :]
    final = turns[-1] if turns else {}
    unfinished = final.get("role") != "assistant" or bool(final.get("tool_calls"))
    content = "" if unfinished else bare(final.get("content") or "")
    abstained = content.lower().replace("’", "'") in ABSTENTIONS
    unanswerable = bare(item.answer).lower() in ABSTENTIONS
    correct = abstained if unanswerable else content == bare(item.answer)
    calls, valid, needless = _count_calls(turns, bool(item.meta.get("easy")))
    return Score(
        correct=correct,
        abstained=abstained,
        invented=not (correct or abstained),
        calls=calls,
        valid_calls=valid,
        needless_calls=needless,
        honesty=item.task in ("lookup", "abstain"),
        easy=bool(item.meta.get("easy")),
    )


def _count_calls(turns: Sequence[Message], easy: bool) -> tuple[int, int, int]:
    """Calls, valid calls and needless calls."""
    calls = valid = needless = 0
    waiting: dict[str, tuple[str, ...]] = {}  # call id -> (name, arguments) of the calls of the latest assistant turn
    seen: set[tuple[str, ...]] = set()
    no_more = False
    for message in turns:
        if message["role"] == "assistant":
            waiting = {
                made["id"]: (made["function"]["name"], made["function"]["arguments"])
                for made in message.get("tool_calls") or []
            }
            for made in waiting.values():
                calls += 1
                needless += easy or (no_more if made[0] == "next_receipt" else made in seen)
                seen.add(made)
        elif message["role"] == "tool" and waiting.pop(message.get("tool_call_id", ""), ()):
            valid += not message["content"].startswith("error")
            no_more = no_more or message["content"] == NO_MORE
    return calls, valid, needless
