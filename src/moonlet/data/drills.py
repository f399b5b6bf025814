"""Copy drills: the skill under every tool call, practised densely before it is needed.

A drill is a list of (text, target) pieces; only the copies are targets. Numbers and names in a prompt are drawn at
random, so no model can predict them, and their loss is noise: measured on the nano model (docs/log.md), 350 K tokens
with every token a target taught 1% of pairs to be copied whole, with the copies alone as targets 98%.
`predictable_targets` applies the same rule to plain text. Only numbers and names that
training may use (see tiny_world) appear. No torch.
"""

import random
import re
from collections.abc import Sequence

from moonlet.data.tiny_world import World, number

Piece = tuple[str, bool]
RELATIONS = ("mayor", "river", "animal", "pet", "friend", "home", "job", "color", "food", "owner", "material", "place")
OPERATORS = (("+", ("plus", "+", "加")), ("-", ("minus", "-", "减")), ("*", ("times", "x", "*", "乘")))
DIGITS, SHARES = (1, 2, 3, 4, 5, 6, 7, 8), (4, 6, 8, 8, 3, 2, 1, 1)
SUMS = (
    ("What is {a} {word} {b}? In short:", " {a}{op}{b}"),
    ("{a} {word} {b} is written", " {a}{op}{b}"),
    ("Compute {a} {word} {b}, that is", " {a}{op}{b}"),
    ("If you have {a} and then {word} {b}, write", " {a}{op}{b}"),
    ("First {a}, then {b}, and {word} in between:", " {a}{op}{b}"),
    ("计算{a}{word}{b}，就是", "{a}{op}{b}"),
    ("{a}{op}{b} =", " {a}{op}{b}"),
    ("total {a}, next {b}:", " {a}+{b}"),
    ("copy: {a} {b} ->", " {a} {b}"),
    ("result: {a}\nanswer:", " {a}"),
    ("result: -{a}\nanswer:", " -{a}"),
)
NAMES = (
    ("What is the {r} of {n}? Search:", " {n} {r}"),
    ("{n}'s {r}? Search:", " {n} {r}"),
    ("Who knows the {r} of {n}? I look for", " {n} {r}"),
    ("{n}的{r}是什么？查：", "{n} {r}"),
    ("{n} {r} is {m}. The answer is", " {m}"),
    ("copy: {n} {m} ->", " {n} {m}"),
    ("result: {m}\nanswer:", " {m}"),
)


def drills(world: World, seed: int, n: int) -> list[list[Piece]]:
    """`n` drills of 3 to 8 lines, three in four about numbers and the rest about names."""
    rng = random.Random(f"drills {seed}")
    names = [name for kind in world.entities("train").values() for name in kind]
    return [[piece for _ in range(rng.randint(3, 8)) for piece in _line(rng, world, names)] for _ in range(n)]


def _line(rng: random.Random, world: World, names: Sequence[str]) -> list[Piece]:
    if rng.random() < 0.75:
        a, b = (number(rng, rng.choices(DIGITS, SHARES)[0]) for _ in range(2))
        op, words = rng.choice(OPERATORS)
        prompt, copy = rng.choice(SUMS)
        values: dict[str, object] = {"a": a, "b": b, "op": op, "word": rng.choice(words)}
    else:
        unknown = world.unknown_name(rng, "train")
        values = {"n": rng.choice((unknown, rng.choice(names))), "m": rng.choice(names), "r": rng.choice(RELATIONS)}
        prompt, copy = rng.choice(NAMES)
    return [(prompt.format(**values), False), (copy.format(**values) + "\n", True)]


def predictable_targets(text: str) -> list[Piece]:
    """Plain text as pieces: a number of two or more digits is a target only from its second appearance on."""
    pieces: list[Piece] = []
    seen: set[str] = set()
    for part in re.split(r"(\d{2,})", text):
        pieces.append((part, not part.isdigit() or part in seen or len(part) < 2))
        seen.add(part)
    return [piece for piece in pieces if piece[0]]
