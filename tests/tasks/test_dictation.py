"""Dictations: the form is what the task's own demonstration writes into its calls, and nothing held out appears."""

import re

from moonlet.data.tiny_world import World, is_held_out, is_held_out_name
from moonlet.tasks.dictation import dictations

WORLD = World(0)
WORDS = ["house", "tree", "import", "value"]


def pairs(seed: int, n: int) -> list[tuple[str, str]]:
    out = []
    for (questions, asked), *forms in dictations(WORLD, WORDS, seed, n):
        lines = questions.splitlines()
        assert not asked and all(target for _, target in forms) and 1 <= len(lines) == len(forms) <= 5
        out += [(q.removeprefix("Q: "), a.removeprefix("A: ").strip()) for q, (a, _) in zip(lines, forms)]
    return out


def test_forms_answer_their_questions() -> None:
    sums = chains = 0
    for question, form in pairs(0, 400):
        if found := re.fullmatch(r"(\d+)([-+*])(\d+)", form):
            sums += 1
            assert re.findall(r"\d+", question)[:2] == [found[1], found[3]], (question, form)
        else:
            chains += 1
            name, *relations = form.split()
            assert name in question and 1 <= len(relations) <= 3
            for relation in relations:  # the table has what the form asks for, step by step
                name = WORLD.table[name][relation]
    assert sums > 400 and chains > 250


def test_nothing_held_out() -> None:
    text = "\n".join(f"{q}\n{a}" for q, a in pairs(1, 400))
    assert not [n for n in re.findall(r"\d{2,}", text) if is_held_out(int(n))]
    assert not [n for n in re.findall(r"\b[A-Z][a-z]+\b", text) if n in WORLD.table and is_held_out_name(n)]


def test_seeds() -> None:
    assert dictations(WORLD, WORDS, 0, 9) == dictations(WORLD, WORDS, 0, 9) != dictations(WORLD, WORDS, 1, 9)
