"""Drills: the skills under every tool call and every direct answer, practised densely before they are needed.

A drill is a list of (text, target) pieces; only what can be predicted is a target. Three kinds of documents: echoes (a
list of random numbers, names and words, then the list again: half of the tokens teach to find and copy), forms (a
question, then the short form of it that tools take) and tables (sums of one-digit numbers and famous facts, to know by
heart). The numbers and names of a prompt are random, so no model can predict them, and their loss is noise: measured on
the nano model (docs/log.md), 350 K tokens with every token a target taught 1% of pairs to be copied whole, with the
copies alone as targets 98%. `predictable_targets` applies the same rule to plain text. Only numbers, names and pairs
that training may use (see tiny_world) appear. No torch.
"""

import math
import random
import re
from collections.abc import Iterable, Sequence

from moonlet.data.tiny_world import WORDS, World, invent_name, is_held_out_pair, number, result

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
KINDS, KIND_SHARES = ("echo", "forms", "table"), (3, 1, 6)
FACT_SHARE = 0.2  # of the lines of a table; the others are sums
ECHO_ITEMS = 2, 24  # in a list, log-uniform
ANSWERS = tuple(word for kind in WORDS.values() for word in kind)  # what look-ups end in
ECHO_GAPS = (" ", "+", "-", "*", ", ", " and ", ": ", "\n", "加", " plus ", " of ")
FACTS = ("{p} {r}:", "the {r} of {p} is", "{p}'s {r}:", "{r} of {p}?")


def drills(world: World, seed: int, n: int) -> list[list[Piece]]:
    """`n` drills: echoes, 3 to 8 lines of forms, or 8 to 24 lines of a table."""
    rng = random.Random(f"drills {seed}")
    names = [name for kind in world.entities("train").values() for name in kind]
    facts = world.facts()
    made: list[list[Piece]] = []
    for kind in rng.choices(KINDS, KIND_SHARES, k=n):
        if kind == "echo":
            made.append(_echo(rng))
        elif kind == "forms":
            made.append([piece for _ in range(rng.randint(3, 8)) for piece in _form(rng, world, names)])
        else:
            made.append([piece for _ in range(rng.randint(8, 24)) for piece in _table_line(rng, facts)])
    return made


def _echo(rng: random.Random) -> list[Piece]:
    """A list and the list again."""
    low, high = map(math.log, ECHO_ITEMS)
    text = ""
    for _ in range(int(math.exp(rng.uniform(low, high)))):
        kind = rng.random()
        if kind < 0.5:
            text += str(number(rng, rng.choices(DIGITS, SHARES)[0]))
        else:
            text += invent_name(rng, held_out=False) if kind < 0.85 else rng.choice(ANSWERS)
        text += rng.choice(ECHO_GAPS)
    return [(f"{text}|", False), (f"{text}\n", True)]


def _form(rng: random.Random, world: World, names: Sequence[str]) -> list[Piece]:
    """Seven in ten about numbers, the rest about names."""
    if rng.random() < 0.7:
        a, b = (number(rng, rng.choices(DIGITS, SHARES)[0]) for _ in range(2))
        op, words = rng.choice(OPERATORS)
        values: dict[str, object] = {"a": a, "b": b, "op": op, "word": rng.choice(words)}
        prompt, copy = rng.choice(SUMS)
    else:
        unknown = world.unknown_name(rng, "train")
        values = {"n": rng.choice((unknown, rng.choice(names))), "m": rng.choice(names), "r": rng.choice(RELATIONS)}
        prompt, copy = rng.choice(NAMES)
    return [(prompt.format(**values), False), (copy.format(**values) + "\n", True)]


def _table_line(rng: random.Random, facts: Sequence[tuple[str, str, str]]) -> list[Piece]:
    """A famous fact, or a pair of one-digit numbers that training may use and its result."""
    if rng.random() < FACT_SHARE:
        place, relation, value = rng.choice(facts)
        return [(rng.choice(FACTS).format(p=place, r=relation), False), (f" {value}\n", True)]
    while True:
        a, b, (op, words) = rng.randrange(10), rng.randrange(10), rng.choice(OPERATORS)
        if not is_held_out_pair(a, op, b):
            return [(f"{a} {rng.choice((*words, op))} {b} =", False), (f" {result(a, op, b)}\n", True)]


def predictable_targets(text: str) -> list[Piece]:
    """Plain text as pieces: a number of two or more digits is a target only from its second appearance on."""
    pieces: list[Piece] = []
    seen: set[str] = set()
    for part in re.split(r"(\d{2,})", text):
        pieces.append((part, not part.isdigit() or part in seen or len(part) < 2))
        seen.add(part)
    return [piece for piece in pieces if piece[0]]


def lower_case_words(texts: Iterable[str]) -> list[str]:
    """The lower-case words of plain text, each once, in alphabetical order."""
    return sorted({word for text in texts for word in re.findall(r"\b[a-z]{2,10}\b", text)})
