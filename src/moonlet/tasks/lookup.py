"""Facts of the tiny world in one to three steps, and a lookup tool.

"What is the color of the pet of the mayor of Lomi?" takes three calls, each on the result of the one before. Evaluation
asks about held-out entities, whose facts stand in the tool's table and in no training text. The thoughts name the next
relation, which is all the planning there is. Leaves out branching questions.
"""

import random

from moonlet.chat.types import Message
from moonlet.data.tiny_world import RELATIONS, WORDS, World, invent_name
from moonlet.data.tiny_world_text import CHINESE_RELATIONS
from moonlet.tasks import wordings
from moonlet.tasks.base import (
    LOOKUP,
    Item,
    blurt,
    call,
    check_range,
    check_split,
    environment,
    say,
    score,
    unknown_style,
)

__all__ = ["NAME", "STYLES", "TOOLS", "ask", "demonstrate", "invent", "sample", "score"]

NAME = "lookup"
TOOLS = [LOOKUP]
STYLES = ("tool", "guess")
TARGETS = {relation: target for row in RELATIONS.values() for relation, target in row.items()}


THOUGHT = "Look it up."  # one wording: a choice would be noise to learn from


def sample(rng: random.Random, split: str, *, world: World, hops: tuple[int, int] = (1, 3)) -> Item:
    """A question of `hops` steps, uniform. meta: chain [[name, relation, value], ...], zh, wording."""
    check_split(split)
    check_range("hops", hops, 1, 3)
    chain = _chain(rng, world, split, rng.randint(*hops))
    question, template = ask(rng, split, chain[0][0], [relation for _, relation, _ in chain])
    meta = {"chain": chain, "zh": wordings.is_chinese(template), "wording": template}
    return Item(NAME, split, [{"role": "user", "content": question}], list(TOOLS), chain[-1][2], meta, world.table)


def demonstrate(item: Item, rng: random.Random, style: str) -> list[Message]:
    """tool: a call for each step; guess: no call, a wrong value that sounds right."""
    chain = item.meta["chain"]
    if style == "guess":
        return [*item.messages, blurt(invent(rng, item.split, chain[-1][1], item.answer))]
    if style != "tool":
        raise unknown_style(style, STYLES)
    env, name, turns = environment(item), chain[0][0], list(item.messages)
    for step, (_, relation, _) in enumerate(chain):
        if step == 0 and len(chain) == 1:
            thought = THOUGHT
        else:
            thought = f"{'Then' if step else 'First'} {relation}."
        turns += call(env, "lookup", {"query": f"{name} {relation}"}, thought)
        name = turns[-1]["content"]
    return [*turns, say(name)]


def ask(rng: random.Random, split: str, name: str, relations: list[str]) -> tuple[str, str]:
    """The question for the last of `relations`, each of the one before, the first of `name`; and its template."""
    *inner, last = relations
    own = wordings.LOOKUP_OWN[last]
    templates = wordings.LOOKUP[wordings.side(split)]
    if split != "unseen" and rng.random() < 0.2:
        question = own.format(x=_phrase(rng, name, inner, zh=False))
        return wordings.around(rng, split, question), own
    template = rng.choice(templates)
    zh, person = wordings.is_chinese(template), TARGETS[last] == "person"
    who = ("谁" if person else "什么") if zh else ("who" if person else "what")
    question = template.format(w=who, q=_phrase(rng, name, relations, zh))
    # A name keeps its capital; a sentence that starts with another word gets one.
    return wordings.around(rng, split, question[0].upper() + question[1:]), template


def invent(rng: random.Random, split: str, relation: str, answer: str) -> str:
    """A value of the right kind that is not `answer`; in training never a held-out name."""
    target = TARGETS[relation]
    while True:
        value = rng.choice(WORDS[target]) if target in WORDS else invent_name(rng, held_out=split != "train")
        if value != answer:
            return value


def _chain(rng: random.Random, world: World, split: str, hops: int) -> list[list[str]]:
    """Steps [name, relation, value], each from the value of the one before, that never come back to an entity."""
    names = world.entities(split)
    while True:
        name = rng.choice(names[rng.choice(list(names))])
        chain: list[list[str]] = []
        for left in range(hops, 0, -1):
            row = world.table[name]
            relation = rng.choice([relation for relation in row if left == 1 or row[relation] in world.table])
            chain.append([name, relation, row[relation]])
            name = row[relation]
        if len({chain[0][0], *(value for _, _, value in chain)}) == hops + 1:
            return chain


def _phrase(rng: random.Random, name: str, relations: list[str], zh: bool) -> str:
    """ "the color of the pet of Lomi", "Lomi's pet's color", "the color of Lomi's pet" or the Chinese form."""
    if zh:
        return "的".join([name, *(CHINESE_RELATIONS[relation] for relation in relations)])
    owned = rng.choice((0, 0, 1, len(relations)))  # how many of the relations stand behind the name
    phrase = "'s ".join([name, *relations[:owned]])
    for relation in relations[owned:]:
        phrase = f"the {relation} of {phrase}"
    return phrase
