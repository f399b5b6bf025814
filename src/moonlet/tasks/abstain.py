"""Questions that must not always be answered: is "I don't know." said where it is true, and only there?

unknown_tool     a name that is in no table, with the lookup tool: look, find nothing, say so;
unknown_closed   the mayor or river of a name that does not exist, without tools: say so;
known_closed     the mayor or river of a famous place, without tools: the answer was in the pretraining text.
Without the third kind a model that never answers would be perfect. Evaluation uses unknown names of a pool of its own;
the famous places are the same, asked in held-out words on the unseen split. Leaves out confidence in numbers.
"""

import random

from moonlet.chat.types import Message
from moonlet.data.tiny_world import FAMOUS_RELATIONS, KINDS, RELATIONS, World
from moonlet.errors import InputError, nearest
from moonlet.tasks import wordings
from moonlet.tasks.base import (
    ABSTAIN,
    ABSTAIN_ZH,
    LOOKUP,
    Item,
    blurt,
    call,
    check_split,
    environment,
    say,
    score,
    unknown_style,
)
from moonlet.tasks.lookup import THOUGHT, ask, invent

__all__ = ["ABSTAIN_KINDS", "NAME", "STYLES", "TOOLS", "demonstrate", "sample", "score"]

NAME = "abstain"
TOOLS = [LOOKUP]  # of unknown_tool; the other kinds have none
STYLES = ("honest", "guess")
ABSTAIN_KINDS = ("unknown_tool", "unknown_closed", "known_closed")


def sample(rng: random.Random, split: str, *, world: World, kind: str | None = None) -> Item:
    """A question of `kind`, or of any of them with equal chance. meta: kind, name, relation, zh, wording."""
    check_split(split)
    kind = kind or rng.choice(ABSTAIN_KINDS)
    if kind not in ABSTAIN_KINDS:
        raise InputError(f"kind {kind!r}: {nearest(kind, ABSTAIN_KINDS)}")
    if kind == "unknown_tool":
        relation = rng.choice(list(RELATIONS[rng.choice(KINDS)]))
    else:
        relation = rng.choice(FAMOUS_RELATIONS)
    name = rng.choice(world.famous) if kind == "known_closed" else world.unknown_name(rng, split)
    question, template = ask(rng, split, name, [relation])
    zh = wordings.is_chinese(template)
    answer = world.table[name][relation] if kind == "known_closed" else ABSTAIN_ZH if zh else ABSTAIN
    meta = {"kind": kind, "name": name, "relation": relation, "zh": zh, "wording": template}
    tools = list(TOOLS) if kind == "unknown_tool" else []
    return Item(NAME, split, [{"role": "user", "content": question}], tools, answer, meta, world.table)


def demonstrate(item: Item, rng: random.Random, style: str) -> list[Message]:
    """honest: the answer, after a lookup where there is one; guess: a wrong value that sounds right."""
    if style not in STYLES:
        raise unknown_style(style, STYLES)
    name, relation, kind = item.meta["name"], item.meta["relation"], item.meta["kind"]
    turns = list(item.messages)
    if kind == "unknown_tool" and (style == "honest" or rng.random() < 0.5):
        turns += call(environment(item), "lookup", {"query": f"{name} {relation}"}, THOUGHT)
    if style == "guess":
        return [*turns, blurt(invent(rng, item.split, relation, item.answer))]
    thought = ""
    if not item.tools:
        thought = "I know this place." if kind == "known_closed" else "I do not know this name."
    return [*turns, say(item.answer, thought)]
