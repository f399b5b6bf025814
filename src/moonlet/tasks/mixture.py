"""Training conversations: one to four demonstrated items in a row, with one declaration of tools.

Phase "tool" shows only what is good: a call for large sums, none for small ones, "I don't know." where it is true.
Phase "mixed" shows, on purpose, habits that do not pay, so that reinforcement learning has something to find out:
half of the large sums answered from the head, calls for sums of one digit, invented answers, long thoughts.
A conversation is receipts alone, or questions without tools, or questions with the union of their tools; sometimes all
tools are declared, as a chat program would. Leaves out rendering and packing.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from moonlet.chat.types import Message, Tool
from moonlet.data.tiny_world import World
from moonlet.errors import InputError, nearest
from moonlet.tasks import abstain, arithmetic, lookup, receipts
from moonlet.tasks.base import ALL_TOOLS, Item, say

# What share of the text each task gets, roughly, and how long an item is, in arithmetic items (of 105 tokens).
WEIGHTS = {"arithmetic": 0.34, "lookup": 0.27, "abstain": 0.16, "receipts": 0.23}
LENGTHS = {"arithmetic": 1.0, "lookup": 1.73, "abstain": 0.75, "receipts": 5.4}
MAX_CALLS = 5  # in a conversation of several items: keeps it in a short context
DECLARE_ALL, CHAT = 0.25, 0.15
GREETINGS = (
    ("Hello.", "Hello! How can I help?"),
    ("Hi!", "Hi! How can I help?"),
    ("Good morning.", "Good morning! How can I help?"),
    ("Are you there?", "Yes. How can I help?"),
    ("Can I ask you something?", "Yes, go on."),
    ("你好。", "你好！有什么事？"),
)


@dataclass(frozen=True)
class Habits:
    """Shares of bad habits: `direct` of large sums, `needless` calls on small ones, `guess` on abstain items; of the
    sums done with a call `long` have a long thought."""

    direct: float
    needless: float
    guess: float
    long: float


PHASES = {
    "tool": Habits(direct=0.0, needless=0.0, guess=0.0, long=0.0),
    "mixed": Habits(direct=0.5, needless=0.5, guess=0.3, long=0.2),
}


def conversation(
    rng: random.Random, world: World, phase: str, max_items: int = 4, weights: Mapping[str, float] = WEIGHTS
) -> tuple[list[Message], list[Tool]]:
    """Messages and declared tools of one training conversation of 1 to `max_items` items.

    `weights` {task: share of the text, roughly}; a task that is not named gets none.
    """
    if phase not in PHASES:
        raise InputError(f"phase {phase!r}: {nearest(phase, PHASES)}")
    if max_items < 1:
        raise InputError(f"max_items={max_items}: must be at least 1")
    for task in weights:
        if task not in WEIGHTS:
            raise InputError(f"task {task!r} in weights: {nearest(task, WEIGHTS)}")
    # Receipts stand alone, so per conversation they are drawn less often than the items of the others.
    items = (1 + max_items) / 2
    chances = {task: share / LENGTHS[task] for task, share in weights.items()}
    group = {task: chance * (items if task == "receipts" else 1) for task, chance in chances.items()}
    first = sample_item(rng, world, _draw(rng, group))
    chosen = [first]
    if first.task != "receipts":
        same = rng.random() < 0.5
        for _ in range(rng.randint(1, max_items) - 1):
            chosen.append(_another(rng, world, first, chances, same))
            if sum(_call_count(item) for item in chosen) >= MAX_CALLS:
                break
    messages: list[Message] = []
    if rng.random() < CHAT:
        hello, reply = rng.choice(GREETINGS)
        messages += [{"role": "user", "content": hello}, say(reply)]
    for item in chosen:
        messages += demonstrate(rng, item, PHASES[phase])
    needed = [tool for item in chosen for tool in item.tools]
    everything = bool(needed) and rng.random() < DECLARE_ALL
    return messages, [tool for tool in ALL_TOOLS if everything or tool in needed]


def sample_item(rng: random.Random, world: World, task: str) -> Item:
    """A training item: three in eight sums have operands of one digit (short to write, long to learn by heart), one in
    eight has operands of 5 to 8; short chains of lookups are more frequent than long ones."""
    if task == "arithmetic":
        return arithmetic.sample(rng, "train", digits=rng.choices(((1, 4), (5, 8), (1, 1)), (4, 1, 3))[0])
    if task == "lookup":
        hops = rng.choices((1, 2, 3), (5, 3, 2))[0]
        return lookup.sample(rng, "train", world=world, hops=(hops, hops))
    if task == "abstain":
        return abstain.sample(rng, "train", world=world)
    return receipts.sample(rng, "train", n=rng.choices(((1, 3), (4, 8)), (3, 2))[0])


def demonstrate(rng: random.Random, item: Item, habits: Habits) -> list[Message]:
    """The item with an answer in the style that `habits` draw."""
    if item.task == "arithmetic":
        return arithmetic.demonstrate(item, rng, _arithmetic_style(rng, item, habits))
    if item.task == "lookup":
        return lookup.demonstrate(item, rng, "tool")
    if item.task == "abstain":
        return abstain.demonstrate(item, rng, "guess" if rng.random() < habits.guess else "honest")
    return receipts.demonstrate(item, rng, "tool")


def _arithmetic_style(rng: random.Random, item: Item, habits: Habits) -> str:
    easy = item.meta["easy"]
    if rng.random() >= habits.needless if easy else rng.random() < habits.direct:
        return "direct"
    if rng.random() < habits.long:
        return "long"
    return "needless" if easy else "tool"


def _another(rng: random.Random, world: World, first: Item, chances: Mapping[str, float], same: bool) -> Item:
    """An item that can follow `first`: what has no tools stays among itself, for with lookup offered one looks up."""
    if not first.tools:
        return abstain.sample(rng, "train", world=world, kind=rng.choice(("unknown_closed", "known_closed")))
    task = first.task if same else _draw(rng, {**chances, "receipts": 0.0})
    if task == "abstain":
        return abstain.sample(rng, "train", world=world, kind="unknown_tool")
    return sample_item(rng, world, task)


def _call_count(item: Item) -> int:
    return len(item.meta["chain"]) if item.task == "lookup" else len(item.tools)


def _draw(rng: random.Random, chances: Mapping[str, float]) -> str:
    return rng.choices(list(chances), list(chances.values()))[0]
