"""The world is the same for the same seed, closed within its splits, and its documents keep what is held out."""

import random
import re

import pytest

from moonlet.data.tiny_world import (
    FAMOUS,
    KINDS,
    RELATIONS,
    SYLLABLES,
    WORDS,
    World,
    is_held_out,
    is_held_out_name,
    is_held_out_pair,
    number,
)
from moonlet.data.tiny_world_text import HAN, STORIES, documents, length

NAME = re.compile(r"[A-Z][a-z]+")  # no \b: a Han character is a word character too
SUM = re.compile(r"(?<!\d)(\d) ?([-+*x]|plus|minus|times|加|减|乘) ?(\d)(?!\d)")
SIGNS = {"plus": "+", "加": "+", "minus": "-", "减": "-", "times": "*", "乘": "*", "x": "*"}
PSEUDO_WORD = re.compile(f"(?:{'|'.join(SYLLABLES)}){{2,3}}")


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def texts(world: World) -> list[str]:
    return documents(world, 0, 2500)


def test_same_seed_same_world(world: World, texts: list[str]) -> None:
    again = World(0)
    assert again.table == world.table and list(again.table) == list(world.table)
    assert documents(again, 0, 50) == texts[:50]
    assert documents(world, random.Random("documents 0 0"), 50) == texts[:50]
    assert documents(world, 1, 50) != texts[:50]
    assert World(1).table != world.table


def test_entities_and_splits(world: World) -> None:
    assert len(world.table) == 600 and len(world.famous) == FAMOUS
    held_out = {name for kind in KINDS for name in world.held_out[kind]}
    assert len(held_out) == 0.4 * len(world.table)
    for name, row in world.table.items():
        assert list(row) == list(RELATIONS[world.kind[name]])
        assert is_held_out_name(name) == (name in held_out)
        for relation, value in row.items():
            target = RELATIONS[world.kind[name]][relation]
            assert value != name
            if target in KINDS:
                assert world.kind[value] == target and (value in held_out) == (name in held_out)
            elif target == "name":
                assert value not in world.table and is_held_out_name(value) == (name in held_out)
            else:
                assert value in WORDS[target]
            if relation == "pet":
                assert world.table[value]["owner"] == name
    rivers = [row["river"] for row in world.table.values() if "river" in row]
    mayors = [row["mayor"] for row in world.table.values() if "mayor" in row]
    assert len(set(rivers)) == len(rivers) and len(set(mayors)) == len(mayors)
    assert {len(world.train[kind]) for kind in KINDS} == {80, 96, 72}


def test_names_look_alike(world: World) -> None:
    rng = random.Random(0)
    pools = {split: {world.unknown_name(rng, split) for _ in range(500)} for split in ("train", "seen", "unseen")}
    assert not pools["train"] & (pools["seen"] | pools["unseen"])
    for name in [*world.taken, *pools["train"], *pools["seen"]]:
        assert PSEUDO_WORD.fullmatch(name.lower()) and name == name.capitalize()
    assert not world.taken & (pools["train"] | pools["seen"])
    mean = [sum(map(len, names)) / len(names) for names in (world.table, pools["train"], pools["seen"])]
    assert max(mean) - min(mean) < 0.3


def test_number_keeps_length_and_side() -> None:
    rng = random.Random(0)
    for digits in range(1, 9):
        for held_out in (False, True):
            drawn = [number(rng, digits, held_out) for _ in range(30)]
            assert {len(str(n)) for n in drawn} == {digits}
            assert {is_held_out(n) for n in drawn} == {held_out and digits > 1}
    assert 0.11 < sum(map(is_held_out, range(10, 10_000))) / 9990 < 0.14
    assert is_held_out(-14) == is_held_out(14)


def test_documents_hold_nothing_out(world: World, texts: list[str]) -> None:
    sums, names = 0, set()
    for text in texts:
        names |= {name for name in NAME.findall(text) if name in world.taken or PSEUDO_WORD.fullmatch(name.lower())}
        results = set()
        for left, sign, right in SUM.findall(text):
            sums, a, b = sums + 1, int(left), int(right)
            results |= {a + b, abs(a - b), a * b}
            assert not is_held_out_pair(a, SIGNS.get(sign, sign), b), text
        for found in re.findall(r"\d+", text):
            assert not is_held_out(int(found)) or int(found) in results, text
    assert sums > 1500 and len(names) > 1000
    assert not [name for name in names if is_held_out_name(name)]


def test_sums_are_true(texts: list[str]) -> None:
    told = [match for text in texts for match in re.findall(r"(?<!\d)(\d+) ([-+x]) (\d+) = (-?\d+)", text)]
    assert len(told) > 300
    for a, sign, b, c in told:
        assert {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b)}[sign] == int(c)
    assert sum("bags with" in text for text in texts) > 3 and len(STORIES) == 3


def test_famous_facts_are_told_often(world: World, texts: list[str]) -> None:
    lines = [sentence for text in texts for sentence in re.split(r"\n(?!A:|[A-Z]\w+: )", text)]
    for place, relation, value in world.facts():
        assert world.table[place][relation] == value
        assert sum(place in line and value in line for line in lines) >= 40
    assert len(world.facts()) == 32


def test_lengths_languages_and_no_repetition(texts: list[str]) -> None:
    assert all(20 <= length(text) <= 120 for text in texts)
    chinese = sum(HAN.search(text) is not None for text in texts) / len(texts)
    assert 0.12 < chinese < 0.18
    assert len(set(texts)) == len(texts)
    assert not [text for text in texts if "{" in text or "}" in text or text != text.strip()]
    # Copying: most texts with a long number have it at least twice.
    long_numbers = [(text, found) for text in texts for found in set(re.findall(r"\d{5,}", text))]
    assert len(long_numbers) > 500
    assert sum(text.count(found) >= 2 for text, found in long_numbers) > 0.9 * len(long_numbers)
