"""The K2 parser: where a thought ends, what becomes a call, soups of markers, truncation anywhere."""

import json

import pytest
from chat_strategies import assistant, relaxed
from hypothesis import given
from hypothesis import strategies as st

from moonlet.chat import K2
from moonlet.chat.k2 import MARKERS, render
from moonlet.chat.parse_k2 import StreamParser, parse
from moonlet.chat.stream import split_markers

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("add", "fs.read")]
SHORT = dict(zip("⟨⟩«@»¶ABTE", (
    "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|im_end|>", "<|im_assistant|>", "<|im_middle|>",
    "<think>", "</think>",
)))  # fmt: skip


def k(marked):
    """Pieces of a completion; ⟨ ⟩ begin and end a section, « » a call, @ its arguments, ¶ the turn, T E a thought."""
    return [(SHORT[c], True) if c in SHORT else (c, False) for c in marked]


def sampled(message, thinking=True):
    segments = render([message], thinking=thinking)
    return [(s.text, s.special) for s in segments][len(K2.generation_prefix(thinking)) :]


@relaxed
@given(assistant(), st.booleans())
def test_round_trip(message, thinking):
    result = parse(sampled(message, thinking), thinking)
    calls = [
        call | {"id": f"functions.{call['function']['name']}:{i}"}
        for i, call in enumerate(message.get("tool_calls", []))
    ]
    thought = message["reasoning_content"] if thinking else ""
    assert result == message | {"reasoning_content": thought} | ({"tool_calls": calls} if calls else {})
    assert render([result], thinking=thinking) == render([message], thinking=thinking)


@relaxed
@given(assistant(), st.data())
def test_any_truncation_is_a_prefix(message, data):
    pieces = sampled(message)
    whole, part = parse(pieces), parse(pieces[: data.draw(st.integers(0, len(pieces)))])
    assert whole["reasoning_content"].startswith(part["reasoning_content"])
    assert whole["content"].startswith(part["content"])
    calls = part.get("tool_calls", [])
    assert calls == whole.get("tool_calls", [])[: len(calls)]


def test_text_is_emitted_at_once():
    parser = StreamParser()
    assert parser.feed("a<th") == [("reasoning_content", "a<th")]
    assert parser.feed("</think>", True) == []
    assert parser.feed("</think>") == [("content", "</think>")]
    events = [(i, e) for i, piece in enumerate(k("⟨«functions.add:7@{}»⟩¶")) for e in parser.feed(*piece)]
    assert events == [(20, ("tool_call", {"index": 0, "id": "functions.add:7", "name": "add", "arguments": "{}"}))]
    assert parser.finish() == []
    assert parser.malformed == ""


@pytest.mark.parametrize(
    ("completion", "reasoning", "content"),
    [
        ("aEb¶c", "a", "b"),
        ("TaEb¶", "a", "b"),  # the prefix's tag said again
        ("aEbTcEd", "ac", "bd"),  # a second thought
        ("aEbEc", "a", "bc"),  # a close that is not open
        ("a⟨⟩b¶", "a", "b"),  # text after the section
        ("a⟨ x E y ", "a", ""),  # text inside it
        ("aEb⟩c»d@e", "a", "bcde"),  # strays
        ("aEbAassistantBc", "a", "b"),  # runs on into the next message
        ("a", "a", ""),
        ("", "", ""),
    ],
)
def test_channels(completion, reasoning, content):
    result = parse(k(completion))
    assert result == {"role": "assistant", "reasoning_content": reasoning, "content": content}


def test_without_thinking_starts_in_the_answer():
    assert parse(k("aEb¶"), thinking=False)["content"] == "ab"


@pytest.mark.parametrize(
    ("call", "id", "name"),
    [
        ("functions.add:0", "functions.add:0", "add"),
        ("\nfunctions.add:12 ", "functions.add:12", "add"),
        ("add:3", "add:3", "add"),
        (" add ", "add", "add"),
        ("functions.fs.read:1", "functions.fs.read:1", "fs.read"),
        ("fs.read:1", "fs.read:1", "fs.read"),
        ("functions.add", "functions.add", "add"),
    ],
)
def test_ids(call, id, name):
    (got,) = parse(k(f"E⟨«{call}@" + '{"x": 1}»⟩¶'), tools=TOOLS)["tool_calls"]
    assert got == {"id": id, "type": "function", "function": {"name": name, "arguments": '{"x": 1}'}}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(' {"x" :1.50}\n', ' {"x" :1.50}\n'), ("", "{}"), (" \n", "{}")],
)
def test_arguments_keep_their_spelling(arguments, expected):
    (got,) = parse(k(f"E⟨«add:0@{arguments}»⟩¶"), tools=TOOLS)["tool_calls"]
    assert got["function"]["arguments"] == expected


def test_calls_that_end_a_thought():
    result = parse(k("so⟨«add:0@{}»«fs.read:1@{}»⟩¶"), tools=TOOLS)
    assert (result["reasoning_content"], len(result["tool_calls"])) == ("so", 2)


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("E⟨«functions.sub:0@{}»⟩", "call sub: not an offered tool"),
        ("E⟨«:0@{}»⟩", "call : not an offered tool"),
        ("E⟨«add:0@[1]»⟩", "call add: arguments are not a JSON object"),
        ('E⟨«add:0@{"x":1e999}»⟩', "call add: arguments are not a JSON object"),
        ('E⟨«add:0@{"x":NaN}»⟩', "call add: arguments are not a JSON object"),
        ('E⟨«add:0@{"x":1}{}»⟩', "call add: arguments are not a JSON object"),
        pytest.param("E⟨«add:0@" + "[" * 30_000 + "»⟩", "call add: arguments are not a JSON object", id="deep"),
        ("E⟨«add:0»⟩", "call add: no arguments"),
        ("E⟨«add:0@{}", "call add: not closed"),
        ("E⟨«add:0@{}⟩", "call add: not closed"),
        ("E⟨«add:0", "call add: not closed"),
        ("E⟨«add:0@{}«add:1", "call add: not closed; call add: not closed"),
        ("E⟨«add:0@{}@{}»⟩", "call add: a stray control token"),
        ("E⟨«aTdd:0@{}»⟩", "call add: a stray control token"),
        ("E«add:0@{}»", "call add: outside a section of calls"),
    ],
)
def test_malformed_calls(completion, reason):
    result = parse(k(completion), tools=TOOLS)
    assert result["malformed"] == reason
    assert "tool_calls" not in result
    assert result["content"] == ""


def test_a_bad_call_does_not_take_a_good_one_with_it():
    result = parse(k("E⟨«add:0@{}»«add:1@?»«add:2@{}»⟩¶"), tools=TOOLS)
    assert [c["id"] for c in result["tool_calls"]] == ["add:0", "add:2"]
    assert result["malformed"] == "call add: arguments are not a JSON object"


def test_offered_tools():
    assert "tool_calls" in parse(k("E⟨«anything:0@{}»⟩"))
    assert "tool_calls" not in parse(k("E⟨«add:0@{}»⟩"), tools=[])


soup = st.lists(
    st.sampled_from([(m, True) for m in (*MARKERS, "[PAD]")])
    | st.sampled_from(["functions.add:0", "{}", '{"x":1}', "?"]).map(lambda t: (t, False))
    | st.text("0123456789 ").map(lambda t: (t, False)),
    max_size=25,
)


@relaxed
@given(soup, st.booleans(), st.sampled_from([None, TOOLS, []]))
def test_any_soup_of_markers_leaks_nothing_and_never_raises(pieces, thinking, tools):
    result = parse(pieces, thinking, tools)
    text = result["reasoning_content"] + result["content"]
    assert not any(marker in text for marker in MARKERS)
    for got in result.get("tool_calls", []):
        assert tools is None or got["function"]["name"] in [tool["function"]["name"] for tool in tools]
        assert isinstance(json.loads(got["function"]["arguments"]), dict)
    render([result])


def test_absurd_ids_take_linear_time():
    for name in ("x:" * 500_000, " " * 1_000_000 + "x"):
        assert "malformed" in parse([*k("E⟨«"), (name, False), *k("@{}»⟩")], tools=TOOLS)


def test_short_hand_is_what_split_markers_gives():
    text = "aE" + "b⟨«add:0@{}»⟩¶"
    spelled = "".join(piece for piece, _ in k(text))
    assert parse(split_markers(spelled, MARKERS)) == parse(k(text))
