"""Structured turns: what a random model samples under a grammar parses, fits, and stands where it should."""

import json
import re
import time

import fastjsonschema
import numpy as np
import pytest

pytest.importorskip("llguidance")

from helpers import tiny_tokenizer

from moonlet.chat import K2, K2_INSTRUCT, XTML, Format
from moonlet.chat.types import Message
from moonlet.data.tokenizer import Tokenizer
from moonlet.engine.grammar import Grammars
from moonlet.errors import InputError

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", 'q"<|sep|>']}, "c": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
PLACES = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Belin", "Tarvo"]},
        "days": {"type": ["integer", "null"], "minimum": 1, "maximum": 9},
        "where": {"$ref": "#/$defs/point"},
    },
    "required": ["city", "where"],
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "number", "minimum": -9, "maximum": 9}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": PLACES}},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}}}},
]


def tokenizer(format: Format) -> Tokenizer:
    return Tokenizer(tiny_tokenizer().ranks, specials=[*format.markers, "[BOS]", "[PAD]"])


@pytest.fixture(scope="module", params=[XTML, K2, K2_INSTRUCT], ids=lambda format: format.name)
def grammars(request: pytest.FixtureRequest) -> Grammars:
    return Grammars(tokenizer(request.param), request.param)


def sample(grammars: Grammars, seed: int, thinking: bool, structure, tools, required: bool) -> tuple[Message, str]:
    """A turn of a model that knows nothing; it tires, so that markup becomes likelier than text."""
    known, random = grammars.tokenizer, np.random.default_rng(seed)
    matcher, ids = grammars.turn(thinking, structure, tools, required), []
    end = known.special[grammars.format.end]
    special = np.isin(np.arange(known.vocab_size), list(known.special.values()))
    for _ in range(2000):
        logits = random.gumbel(size=known.vocab_size).astype(np.float32) + special * (0.1 * len(ids) - 3)
        matcher.mask(logits)
        ids.append(int(logits.argmax()))
        if ids[-1] == end:
            break
        matcher.take(ids[-1])
    assert ids[-1] == end
    return grammars.format.parse(known.pieces(ids), thinking, tools), known.decode(ids)


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_content(grammars: Grammars, thinking: bool, seed: int) -> None:
    message, _ = sample(grammars, seed, thinking, {"json_schema": SCHEMA}, [], False)
    fastjsonschema.validate(SCHEMA, json.loads(message["content"]))
    message, _ = sample(grammars, seed, thinking, {"regex": r"[0-9]{2}/(a|b)+\n\."}, [], False)
    assert re.fullmatch(r"[0-9]{2}/(a|b)+\n\.", message["content"])
    message, _ = sample(grammars, seed, thinking, {"choice": ["yes", 'no "x"\n/']}, [], False)
    assert message["content"] in ("yes", 'no "x"\n/')


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_calls(grammars: Grammars, thinking: bool, seed: int) -> None:
    message, text = sample(grammars, seed, thinking, None, TOOLS, True)
    assert "malformed" not in message, text
    assert message["tool_calls"]
    for call in message["tool_calls"]:
        arguments = json.loads(call["function"]["arguments"])
        schema = {"weather": PLACES, "stop": {"type": "object", "maxProperties": 0}}[call["function"]["name"]]
        fastjsonschema.validate(schema, arguments)


def test_calls_are_free_to_come(grammars: Grammars) -> None:
    turns = [sample(grammars, seed, True, None, TOOLS, False)[0] for seed in range(12)]
    assert {bool(turn.get("tool_calls")) for turn in turns} == {True, False}
    assert not any("malformed" in turn for turn in turns)


HOSTILE = {
    "choices": {"choice": ["x"] * 10_000},
    "no choice": {"choice": [""]},
    "ten megabytes": {"json_schema": {"enum": ["x" * 10_000_000]}},
    "wide enum": {"json_schema": {"enum": [f"choice number {n}" for n in range(10_000)]}},
    "deep": {"json_schema": None},
    "no schema": {"json_schema": {"type": "wizard"}},
    "no pattern": {"regex": "(a"},
    "look around": {"regex": "a(?=b)"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bad_and_too_large_ones_are_refused_soon(name: str) -> None:
    structure, began = HOSTILE[name], time.monotonic()
    if name == "deep":
        schema: dict = {}
        for _ in range(5000):
            schema = {"type": "array", "items": schema}
        structure = {"json_schema": schema}
    with pytest.raises(InputError):
        Grammars(tokenizer(XTML), XTML).turn(True, structure, [], False)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("regex", ["(a+)+b", "(a|a)*c", "(.{1,1000}){1,100}", "((a{1,500}){1,500}){1,500}"])
def test_patterns_that_explode_elsewhere_cost_little(regex: str) -> None:
    """They run, or give up within their fuel; no step holds up the others for long."""
    grammars = Grammars(tokenizer(XTML), XTML)
    matcher, longest = grammars.turn(False, {"regex": regex}, [], False), 0.0
    try:
        for _ in range(200):
            began = time.monotonic()
            matcher.mask(np.zeros(grammars.tokenizer.vocab_size, dtype=np.float32))
            matcher.take(grammars.tokenizer.encode("a")[0])
            longest = max(longest, time.monotonic() - began)
    except RuntimeError as error:
        assert "too many" in str(error)
    assert longest < 0.5
