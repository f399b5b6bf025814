"""Drills: the skills under every tool call and every direct answer, practised densely before they are needed.

A drill is a list of (text, target) pieces; only what can be predicted is a target. Two kinds of documents: echoes (a
list of random numbers, names and words, then the list again: half of the tokens teach to find and copy), and lines in
which a question is put into the short form that tools take, a sum of one-digit numbers is told, or a famous fact. The
numbers and names of a prompt are random, so no model can predict them, and their loss is noise: measured on the nano
model (docs/log.md), 350 K tokens with every token a target taught 1% of pairs to be copied whole, with the copies alone
as targets 98%. `predictable_targets` applies the same rule to plain text. Only numbers, names and pairs that training
may use (see tiny_world) appear. No torch.
"""

import math
import random
import re
from collections.abc import Sequence

from moonlet.data.tiny_world import WORDS, World, invent_name, is_held_out_pair, number

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


ECHO_SHARE = 0.5
ECHO_ITEMS = 2, 24  # in a list, log-uniform
ECHO_GAPS = (" ", "+", "-", "*", ", ", " and ", ": ", "\n", "加", " plus ", " of ")
FACTS = ("{p} {r}:", "the {r} of {p} is", "{p}'s {r}:", "{r} of {p}?")


def drills(world: World, seed: int, n: int) -> list[list[Piece]]:
    """`n` drills: half of them echoes, the others of 3 to 8 lines."""
    rng = random.Random(f"drills {seed}")
    names = [name for kind in world.entities("train").values() for name in kind]
    made: list[list[Piece]] = []
    for _ in range(n):
        if rng.random() < ECHO_SHARE:
            made.append(_echo(rng))
        else:
            made.append([piece for _ in range(rng.randint(3, 8)) for piece in _line(rng, world, names)])
    return made


def _echo(rng: random.Random) -> list[Piece]:
    """A list and the list again."""
    low, high = map(math.log, ECHO_ITEMS)
    words = [word for kind in WORDS.values() for word in kind]
    text = ""
    for _ in range(int(math.exp(rng.uniform(low, high)))):
        kind = rng.random()
        if kind < 0.5:
            text += str(number(rng, rng.choices(DIGITS, SHARES)[0]))
        else:
            text += invent_name(rng, held_out=False) if kind < 0.85 else rng.choice(words)
        text += rng.choice(ECHO_GAPS)
    return [(f"{text}|", False), (f"{text}\n", True)]


def _line(rng: random.Random, world: World, names: Sequence[str]) -> list[Piece]:
    """Half of the lines copy numbers, the rest names, or tell a sum of one-digit numbers or a famous fact."""
    kind = rng.random()
    if kind < 0.2:
        prompt, copy = _one_digit_sum(rng)
    elif kind < 0.3:
        place, relation, value = rng.choice(world.facts())
        prompt, copy = rng.choice(FACTS).format(p=place, r=relation), f" {value}"
    elif kind < 0.8:
        a, b = (number(rng, rng.choices(DIGITS, SHARES)[0]) for _ in range(2))
        op, words = rng.choice(OPERATORS)
        prompt, copy = (t.format(a=a, b=b, op=op, word=rng.choice(words)) for t in rng.choice(SUMS))
    else:
        unknown = world.unknown_name(rng, "train")
        values = {"n": rng.choice((unknown, rng.choice(names))), "m": rng.choice(names), "r": rng.choice(RELATIONS)}
        prompt, copy = (t.format(**values) for t in rng.choice(NAMES))
    return [(prompt, False), (f"{copy}\n", True)]


def _one_digit_sum(rng: random.Random) -> tuple[str, str]:
    """A pair that training may use, and its result."""
    while True:
        a, b, (op, words) = rng.randrange(10), rng.randrange(10), rng.choice(OPERATORS)
        if not is_held_out_pair(a, op, b):
            result = {"+": a + b, "-": a - b, "*": a * b}[op]
            return f"{a} {rng.choice((*words, op))} {b} =", f" {result}"


def predictable_targets(text: str) -> list[Piece]:
    """Plain text as pieces: a number of two or more digits is a target only from its second appearance on."""
    pieces: list[Piece] = []
    seen: set[str] = set()
    for part in re.split(r"(\d{2,})", text):
        pieces.append((part, not part.isdigit() or part in seen or len(part) < 2))
        seen.add(part)
    return [piece for piece in pieces if piece[0]]
