"""Rollouts: the model answers task items, tools answer the model, and every token is kept as it was sampled.

The prompt is rendered once; after that only tool results and the next turn's opening are encoded. A turn that ends in
calls is answered by the item's environment; a malformed call gets its error as text and the episode goes on. The
messages for scoring are parsed from the sampled ids, never the other way round.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from moonlet.chat.parse import parse
from moonlet.chat.types import Message, ToolCall
from moonlet.chat.xtml import END, continuation, render
from moonlet.data.tokenizer import Tokenizer
from moonlet.engine.generate import Rollout, Sampling, generate_parallel
from moonlet.model.model import Model
from moonlet.quant.grids import rounded_experts
from moonlet.tasks.base import Environment, Item, Score, environment, score

GiveUp = Callable[[Item, list[Message]], bool]  # (item, transcript): is it lost, so that going on is a waste?


@dataclass
class Episode:
    """One item answered: its rollout, the transcript that was scored, the score, tokens the model chose."""

    item: Item
    rollout: Rollout
    messages: list[Message]
    score: Score
    tokens: int


@dataclass
class Conversation:
    """The live side of one row: where its current turn began, its messages, its tools."""

    item: Item
    env: Environment
    start: int = 0
    messages: list[Message] = field(default_factory=list)


def turn(tokenizer: Tokenizer, conversation: Conversation, ids: list[int]) -> Message:
    """The assistant message of the turn that starts at `conversation.start`."""
    pieces = tokenizer.pieces(ids[conversation.start :])
    return parse(pieces, tools=conversation.item.tools)


def answer(conversation: Conversation, message: Message) -> list[Message]:
    """Tool messages for the calls of a turn (an error for a malformed one); empty when the turn is final."""
    if message.get("tool_calls"):
        results: list[Message] = []
        for call in message["tool_calls"]:
            name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
            result = conversation.env.call(name, arguments)
            results.append({"role": "tool", "tool_call_id": call["id"], "name": name, "content": result})
        return results
    if message.get("malformed"):
        failed: ToolCall = {"id": "error:1", "type": "function", "function": {"name": "error", "arguments": "{}"}}
        message["tool_calls"] = [failed]
        content = f"error: {message['malformed'][:40]}"
        return [{"role": "tool", "tool_call_id": "error:1", "name": "error", "content": content}]
    return []


def run(
    model: Model,
    tokenizer: Tokenizer,
    items: list[Item],
    seeds: list[int],
    sampling: Sampling,
    pool: ThreadPoolExecutor,
    workers: int,
    give_up: GiveUp | None = None,
) -> list[Episode]:
    """One episode an item. A final answer, the token limit or `give_up` closes it."""
    live = [Conversation(item, environment(item), messages=[*item.messages]) for item in items]
    prompts = [
        tokenizer.encode_segments(render(item.messages, item.tools, add_generation_prompt=True)) for item in items
    ]

    def hook(row: int, ids: list[int]) -> list[int] | None:
        conversation = live[row]
        message = turn(tokenizer, conversation, ids)
        results = answer(conversation, message)
        conversation.messages += [message, *results]
        if not results or (give_up is not None and give_up(conversation.item, conversation.messages)):
            return None
        more = tokenizer.encode_segments(continuation(message, results))
        conversation.start = len(ids) + len(more)
        return more

    with rounded_experts(model):
        rollouts = generate_parallel(pool, workers, model, prompts, seeds, tokenizer.special[END], sampling, hook)
    episodes = []
    for conversation, rollout in zip(live, rollouts):
        if rollout.finish != "stop" and conversation.start < len(rollout.ids):  # cut by the limit inside a turn
            conversation.messages.append(turn(tokenizer, conversation, rollout.ids))
        judged = score(conversation.item, conversation.messages)
        episodes.append(Episode(conversation.item, rollout, conversation.messages, judged, sum(rollout.sampled)))
    return episodes
