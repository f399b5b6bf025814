"""The parser: round trips, any split of the text, truncation anywhere, wrong nesting, what becomes a call."""

import json

import pytest
from chat_strategies import assistant, conversation, relaxed, text
from hypothesis import example, given
from hypothesis import strategies as st

from moonlet.chat import MARKERS, StreamParser, TextStream, parse, render, split_markers

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "properties": {"x": {"type": "integer"}, "s": {"type": "string"}, "u": {"type": ["string", "null"]}}
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]


def sampled(message, thinking=True):
    """What a model samples to say `message`: the body after the channel that the generation prefix opens."""
    return [(s.text, s.special) for s in render([message], thinking=thinking) if s.loss][3:]


def x(marked):
    """Pieces of a completion written with « for open, ¬ for close, » for sep and ¶ for end_of_msg."""
    for short, marker in zip("«¬»¶", ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>")):
        marked = marked.replace(short, marker)
    return split_markers(marked)


def call(arguments, name="add"):
    return x(f'ok¬think»«tools»«call tool="{name}" index="1"»{arguments}¬call»¬tools»¬message»¶')


def argument(value, kind="number", key="x"):
    return f'«argument key="{key}" type="{kind}"»{value}¬argument»'


@relaxed
@given(assistant(), st.booleans())
def test_round_trip(message, thinking):
    result = parse(sampled(message, thinking), thinking)
    assert "malformed" not in result
    assert result["reasoning_content"] == (message["reasoning_content"] if thinking else "")
    assert result["content"] == message["content"]
    assert len(result.get("tool_calls", [])) == len(message.get("tool_calls", []))
    for got, want in zip(result.get("tool_calls", []), message.get("tool_calls", [])):
        assert got["id"] == want["id"]
        assert got["function"]["name"] == want["function"]["name"]
        got, want = json.loads(got["function"]["arguments"]), json.loads(want["function"]["arguments"])
        assert list(got.items()) == list(want.items())
    assert render([result], thinking=thinking) == render([message], thinking=thinking)


@relaxed
@given(assistant(), st.data())
def test_any_split_of_text_pieces_and_any_truncation(message, data):
    """Deltas of a prefix are a prefix of the deltas: nothing that was emitted is ever taken back or changed."""
    pieces = sampled(message)
    stop = data.draw(st.integers(0, len(pieces)))
    whole = parse(pieces)
    chopped = []
    for piece, special in pieces[:stop]:
        cut = data.draw(st.integers(0, len(piece)))
        chopped += [(piece, True)] if special else [(piece[:cut], False), (piece[cut:], False)]
    part = parse(chopped)
    assert whole["reasoning_content"].startswith(part["reasoning_content"])
    assert whole["content"].startswith(part["content"])
    calls = part.get("tool_calls", [])
    assert calls == whole.get("tool_calls", [])[: len(calls)]
    if stop == len(pieces):
        assert part == whole


def test_text_is_emitted_at_once():
    parser = StreamParser()
    assert parser.feed("a<|cl") == [("reasoning_content", "a<|cl")]
    events = [event for piece in x("b¬think»«response»c") for event in parser.feed(*piece)]
    assert events == [("reasoning_content", "b"), ("content", "c")]
    pieces = call(argument(1))
    parser = StreamParser(tools=TOOLS)
    events = [(i, event) for i, piece in enumerate(pieces) for event in parser.feed(*piece)]
    called = {"index": 0, "id": "add:0", "name": "add", "arguments": '{"x":1}'}
    assert events[1] == (len(pieces) - 8, ("tool_call", called))
    assert parser.finish() == []
    assert parser.malformed == ""


tag = st.sampled_from(["think", "response", "tools", 'call tool="add"', "call", 'argument key="x" type="number"',
                       "argument", "json", "message", 'message role="user"', "zzz", "", "  ", '"'])  # fmt: skip
element = st.tuples(st.sampled_from(MARKERS[1:3]), tag, st.booleans()).map(
    lambda t: [(t[0], True), (t[1], False), *([("<|sep|>", True)] if t[2] else [])]
)
soup = st.lists(
    element
    | st.sampled_from([[(m, True)] for m in (*MARKERS, "[PAD]")])
    | st.text("0123456789 ").map(lambda t: [(t, False)]),
    max_size=25,
).map(lambda groups: [piece for group in groups for piece in group])


@relaxed
@given(soup, st.booleans(), st.sampled_from([None, TOOLS, []]))
@example([("<|open|>", True), ("tools", False)], True, None)
def test_any_soup_of_tags_leaks_nothing_and_never_raises(pieces, thinking, tools):
    result = parse(pieces, thinking, tools)
    assert set(result["reasoning_content"] + result["content"]) <= set("0123456789 ")
    for got in result.get("tool_calls", []):
        assert got["function"]["name"] == "add"
        assert tools != []
        assert isinstance(json.loads(got["function"]["arguments"]), dict)
    render([result])


@relaxed
@given(
    st.lists(st.sampled_from([*MARKERS, "<|open", "<", "|", ">", "<|", "<<|sep|>", "think", "a\n"]) | text).map(
        "".join
    ),
    st.data(),
)
def test_text_stream_is_the_same_at_any_split(whole, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    stream, pieces = TextStream(), []
    for start, end in zip([0, *cuts], [*cuts, len(whole)]):
        pieces += stream.feed(whole[start:end])
        seen = "".join(piece for piece, _ in pieces)
        assert whole.startswith(seen)
        assert end - len(seen) < max(map(len, MARKERS))
    pieces += stream.flush()
    merged = []
    for piece, special in pieces:
        if merged and not special and not merged[-1][1]:
            merged[-1] = (merged[-1][0] + piece, False)
        else:
            merged.append((piece, special))
    assert merged == split_markers(whole)
    assert parse(pieces) == parse(split_markers(whole))
    assert stream.flush() == []


@relaxed
@given(conversation())
def test_split_markers_keeps_every_character(messages):
    whole = "".join(s.text for s in render(messages))
    assert "".join(piece for piece, _ in split_markers(whole)) == whole
    assert all((piece in MARKERS) == special for piece, special in split_markers(whole))


@pytest.mark.parametrize(
    ("completion", "reasoning", "content"),
    [
        ("a¬think»«response»b¬response»¬message»¶c", "a", "b"),
        ("a«response»b¬response»¬message»¶", "a", "b"),  # close of think is missing
        ("«think»a¬think»«response»b", "a", "b"),  # the prefix's tag said again; cut off
        ("a¬response»a¬think»«response»b¶", "aa", "b"),  # a close that is not open
        ("a¬think»x«response»b¬response»y", "a", "b"),  # text outside a channel
        ('a¬think»«response»b«message role="user"»x', "a", "b"),  # runs on into the next message
        ("a«zzz»b¬zzz»¬think»«response»c»d", "ab", "cd"),  # unknown tags and a stray sep
        ("a¬thi", "a", ""),
        ("a¬think»«resp", "a", ""),
        ("", "", ""),
    ],
)
def test_channels(completion, reasoning, content):
    result = parse(x(completion))
    assert result == {"role": "assistant", "reasoning_content": reasoning, "content": content}


def test_without_thinking_starts_in_response():
    assert parse(x("a¬response»¬message»¶"), thinking=False)["content"] == "a"


@pytest.mark.parametrize(
    ("value", "kind", "key", "expected"),
    [
        ("12", "number", "x", 12),
        ("12", "string", "x", 12),  # the schema says integer
        ("12", "number", "s", "12"),  # the schema says string
        (" {} ", "object", "s", " {} "),
        ("null", "null", "u", None),  # string or null: the attribute decides
        ("null", "string", "u", "null"),
        ("[1]", "array", "free", [1]),  # not in the schema: the attribute decides
        ("[1]", "string", "free", "[1]"),
        ("true", "boolean", "free", True),
        ("", "string", "&quot;&amp;lt;", ""),
    ],
)
def test_argument_types(value, kind, key, expected):
    (got,) = parse(call(argument(value, kind, key)), tools=TOOLS)["tool_calls"]
    assert json.loads(got["function"]["arguments"]) == {key.replace("&quot;", '"').replace("&amp;", "&"): expected}
    assert got["id"] == "add:0"
    assert got["type"] == "function"


def test_call_without_arguments():
    (got,) = parse(call("", "now"), tools=TOOLS)["tool_calls"]
    assert got["function"] == {"name": "now", "arguments": "{}"}


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        (call(argument(1), "sub"), "call sub: not an offered tool"),
        (call("", ""), "call : not an offered tool"),
        (call(argument("1+1")), "call add: argument x is not JSON"),
        (call(argument("1e999")), "call add: argument x is not JSON"),
        (call(argument("[" * 100_000, "array", "free")), "call add: argument free is not JSON"),
        (call(argument(1) + argument(2)), "call add: an argument that is nested"),
        (call("«argument»1¬argument»"), "call add: an argument that is nested, repeated or without a key"),
        (call('«argument key="x" type="number"»1'), "call add: argument x is not closed"),
        (call("«json»1¬json»"), "call add: unexpected element json"),
        (call("words"), "call add: text outside an argument"),
        (call("¬argument»"), "call add: close of an argument that is not open"),
        (call(argument("1»2")), "call add: a stray control token"),
        (call("«argument¬call»"), "call add: a tag without its end"),
        (x('¬think»«call tool="add"»¬call»'), "call add: outside the tools channel"),
        (x('¬think»«tools»«call index="1"»¬call»'), "call ?: not an offered tool"),
        (x('¬think»«tools»«call tool="add"»¬tools»'), "call add: not closed"),
        (x('¬think»«tools»«call tool="add"»«call tool="add"»'), "call add: not closed; call add: not closed"),
        (x('¬think»«tools»«call tool="add"'), "call ?: a tag without its end"),
        (x('¬think»«tools»«call tool="add"¶'), "call ?: a tag without its end"),
        (call(argument(1))[:-12], "call add: a tag without its end"),
    ],
)
def test_malformed_calls(pieces, reason):
    result = parse(pieces, tools=TOOLS)
    assert result["malformed"].startswith(reason)
    assert "tool_calls" not in result
    assert result["content"] == ""


def test_a_bad_call_does_not_take_a_good_one_with_it():
    good, bad = (f'«call tool="add"»{argument(value)}¬call»' for value in (1, "?"))
    result = parse(x(f"¬think»«tools»{good}{bad}{good}¬tools»¬message»¶"), tools=TOOLS)
    assert [c["id"] for c in result["tool_calls"]] == ["add:0", "add:1"]
    assert result["malformed"].startswith("call add: argument x is not JSON")


def test_absurd_tag_takes_linear_time():
    assert "malformed" in parse(call("«argument " + "k" * 1_000_000 + "»"))


def test_offered_tools():
    assert "tool_calls" in parse(call(argument(1), "anything"))
    assert "tool_calls" not in parse(call(argument(1)), tools=[])
