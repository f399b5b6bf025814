"""The renderer: one golden conversation, the loss mask, injection, tool order, the continuation property, jinja."""

import json

import pytest
from chat_strategies import assistant, conversation, relaxed, text, tool
from hypothesis import given
from hypothesis import strategies as st

from moonlet.chat import MARKERS, Segment, chat_template, continuation, generation_prefix, render
from moonlet.errors import InputError

ADD = {"type": "function", "function": {"parameters": {"type": "object"}, "name": "add", "description": "Adds é."}}
GOLDEN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+3, 4+5?"},
    {
        "role": "assistant",
        "reasoning_content": "Use add.",
        "content": "",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"x": 2, "note": "a \\"b\\""}'}},
            {"id": "b", "type": "function", "function": {"name": "add", "arguments": '{"k&\\"": [4, {"z": null}]}'}},
        ],
    },
    {"role": "tool", "tool_call_id": "b", "content": "9"},
    {"role": "tool", "tool_call_id": "a", "content": "5"},
    {"role": "assistant", "content": "5 and 9."},
]
DECLARED = (
    '<|open|>message role="system" type="tool-declare"<|sep|># Tools\n```json\n[{"function":{"description":"Adds é.",'
    '"name":"add","parameters":{"type":"object"}},"type":"function"}]\n```<|close|>message<|sep|><|end_of_msg|>'
)
EXPECTED = (
    DECLARED + '<|open|>message role="system" type="thinking-effort"<|sep|>thinking_effort=low<|close|>message<|sep|>'
    '<|end_of_msg|><|open|>message role="system"<|sep|>Be brief.<|close|>message<|sep|><|end_of_msg|>'
    '<|open|>message role="user"<|sep|>2+3, 4+5?<|close|>message<|sep|><|end_of_msg|>'
    '<|open|>message role="assistant"<|sep|><|open|>think<|sep|>Use add.<|close|>think<|sep|><|open|>tools<|sep|>'
    '<|open|>call tool="add" index="1"<|sep|><|open|>argument key="x" type="number"<|sep|>2<|close|>argument<|sep|>'
    '<|open|>argument key="note" type="string"<|sep|>a "b"<|close|>argument<|sep|><|close|>call<|sep|>'
    '<|open|>call tool="add" index="2"<|sep|><|open|>argument key="k&amp;&quot;" type="array"<|sep|>[4, {"z": null}]'
    "<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|><|end_of_msg|>"
    '<|open|>message role="tool" tool="add" index="1"<|sep|>5<|close|>message<|sep|><|end_of_msg|>'
    '<|open|>message role="tool" tool="add" index="2"<|sep|>9<|close|>message<|sep|><|end_of_msg|>'
    '<|open|>message role="assistant"<|sep|><|open|>think<|sep|><|close|>think<|sep|><|open|>response<|sep|>5 and 9.'
    "<|close|>response<|sep|><|close|>message<|sep|><|end_of_msg|>"
    '<|open|>message role="assistant"<|sep|><|open|>think<|sep|>'
)


def joined(segments):
    return "".join(segment.text for segment in segments)


def no_loss(segments):
    return [(segment.text, segment.special) for segment in segments]


def test_golden():
    assert joined(render(GOLDEN, [ADD], effort="low", add_generation_prompt=True)) == EXPECTED
    instruct = joined(render(GOLDEN, thinking=False, effort="low", add_generation_prompt=True))
    assert "think" not in instruct
    assert (
        '<|open|>message role="assistant"<|sep|><|open|>response<|sep|><|close|>response<|sep|><|open|>tools'
        in instruct
    )
    assert instruct.endswith('<|open|>message role="assistant"<|sep|><|open|>response<|sep|>')


def test_attribute_segmentation():
    opened = ["<|open|>", "message", " role", '="', "assistant", '"', "<|sep|>"]
    assert [s.text for s in generation_prefix()] == [*opened, "<|open|>", "think", "<|sep|>"]
    assert [s.special for s in generation_prefix(False)] == [True, *[False] * 5, True, True, False, True]


@relaxed
@given(conversation(), st.booleans())
def test_loss_covers_assistant_bodies_only(messages, thinking):
    for message in messages:
        if message["role"] == "tool":
            continue
        segments = render([message], thinking=thinking)
        prefix = len(render([{"role": "user", "content": ""}])) - 4  # open(message role=...)
        expected = message["role"] == "assistant"
        assert not any(s.loss for s in segments[:prefix])
        assert all(s.loss == expected for s in segments[prefix:])
        assert not any(s.loss for s in render([message | {"loss": False}], thinking=thinking))
        words = {message.get("content"), message.get("reasoning_content")} - {None, ""}
        markup = render([message | {"loss": "markup"}], thinking=thinking)
        assert [s.text for s in markup] == [s.text for s in segments]
        if not message.get("tool_calls") and words.isdisjoint([*MARKERS, "think", "response", "message"]):
            assert [s.loss for s in markup] == [s.loss and s.text not in words for s in segments]
    assistants = [m for m in messages if m["role"] == "assistant"]
    alone = [s for m in assistants for s in render([m], thinking=thinking) if s.loss]
    assert [s for s in render(messages, thinking=thinking, add_generation_prompt=True) if s.loss] == alone


@relaxed
@given(text, text, text)
def test_text_cannot_forge_markup(content, reasoning, attribute):
    arguments = json.dumps({attribute: content})
    call = {"id": "1", "type": "function", "function": {"name": attribute or "f", "arguments": arguments}}
    hostile = [
        {"role": "user", "content": content, "name": attribute},
        {"role": "assistant", "reasoning_content": reasoning, "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": content},
    ]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}
    tame = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "x" if content else "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ]
    specials = [s.text for s in render(hostile) if s.special]
    assert specials == [s.text for s in render(tame) if s.special]
    assert set(specials) <= set(MARKERS)


@relaxed
@given(conversation(), assistant(least_calls=1), st.data(), st.booleans())
def test_continuation(history, answer, data, thinking):
    results = [{"role": "tool", "tool_call_id": c["id"], "content": data.draw(text)} for c in answer["tool_calls"]]
    results = data.draw(st.permutations(results))
    prompt = render(history, add_generation_prompt=True, thinking=thinking)
    # What is sampled is the body after the channel tag that the generation prefix already holds.
    sampled = [s for s in render([answer], thinking=thinking) if s.loss][3:]
    whole = render([*history, answer, *results], add_generation_prompt=True, thinking=thinking)
    assert no_loss(whole) == no_loss(prompt + sampled + continuation(answer, results, thinking))


def test_tool_results_are_placed_all_or_nothing():
    placed = joined(continuation(GOLDEN[2], GOLDEN[3:5]))
    assert placed.index(">5<") < placed.index(">9<")
    one = joined(continuation(GOLDEN[2], GOLDEN[3:4]))
    assert 'index="2"<|sep|>9<' in one
    unknown = [GOLDEN[3], GOLDEN[4] | {"tool_call_id": "c", "name": "other"}]
    kept = joined(continuation(GOLDEN[2], unknown))
    assert 'tool="add" index="1"<|sep|>9<' in kept
    assert 'tool="other" index="2"<|sep|>5<' in kept


@pytest.mark.parametrize(
    ("call_ids", "result_ids", "placed"),
    [
        (["a", "A"], ["A", "a"], True),
        (["a", "b"], ["b", "b"], False),
        (["a", "a"], ["a", "x"], False),
        (["a", "a"], ["a"], False),
        (["", "b"], ["b", ""], False),
        ([None, "b"], ["b", None], False),
        (["a", "b", "c"], ["c", "a"], True),
        (["a", "a", "c", "d"], ["d", "c"], True),
        (["a", "b", "b"], ["b"], False),
    ],
)
def test_ids_that_place_results(call_ids, result_ids, placed):
    calls = [{"id": i, "function": {"name": f"f{n}", "arguments": {}}} for n, i in enumerate(call_ids)]
    results = [{"role": "tool", "tool_call_id": i, "content": f"r{n}"} for n, i in enumerate(result_ids)]
    messages = [{"role": "assistant", "tool_calls": calls}, *results]
    out = joined(render(messages))
    order = [call_ids.index(i) for i in result_ids] if placed else range(len(results))
    for n, position in enumerate(order):
        assert f'tool="f{position}" index="{position + 1}"<|sep|>r{n}<' in out
    if placed:
        assert out.index(f">r{len(results) - 1}<") < out.index(">r0<")
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    assert transformers.render_jinja_template([messages], chat_template=chat_template())[0] == [out]


@pytest.mark.parametrize("raw", ["{", "[1]", "5", '{"x": NaN}', '{"x": 1e999}', pytest.param("[" * 100_000, id="deep")])
def test_unparsable_arguments_fall_back_without_loss(raw):
    good = GOLDEN[2]["tool_calls"][0]
    bad = {"id": "z", "type": "function", "function": {"name": "add", "arguments": raw}}
    segments = render([{"role": "assistant", "content": "c", "tool_calls": [bad, good]}])
    expected = f'<|open|>call tool="add" index="1"<|sep|><|open|>json type="object"<|sep|>{raw}<|close|>json<|sep|>'
    assert expected + "<|close|>call<|sep|>" in joined(segments)
    trained = joined(s for s in segments if s.loss)
    assert 'index="1"' not in trained
    assert 'index="2"' in trained
    assert trained.endswith("<|close|>tools<|sep|><|close|>message<|sep|><|end_of_msg|>")


def test_option_messages():
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object", "additionalProperties": True}},
    }
    out = joined(render(GOLDEN[:2], tool_choice="required", response_format=schema, add_generation_prompt=True))
    assert out.endswith(
        "2+3, 4+5?<|close|>message<|sep|><|end_of_msg|>"
        '<|open|>message role="system" type="tool-choice"<|sep|>tool_choice=required: call a tool in the next message.'
        '<|close|>message<|sep|><|end_of_msg|><|open|>message role="system" type="response-format"<|sep|>'
        "response_format=json_schema: answer with raw JSON only. Schema:\n```json\n"
        '{"additionalProperties":true,"type":"object"}\n```<|close|>message<|sep|><|end_of_msg|>'
        '<|open|>message role="assistant"<|sep|><|open|>think<|sep|>'
    )
    plain = render(GOLDEN[:2])
    assert render(GOLDEN[:2], tool_choice="auto", response_format={"type": "text"}) == plain
    assert render(GOLDEN[:2], thinking=False, effort="low") == plain


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([], {"effort": "medium"}),
        ([], {"effort": "medium", "thinking": False}),
        ([], {"tool_choice": "add"}),
        ([], {"response_format": {"type": "xml"}}),
        ([], {"response_format": {"type": "json_schema"}}),
        ([{"role": "developer", "content": "x"}], {}),
        ([{"content": "x"}], {}),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}),
        ([{"role": "tool", "tool_call_id": "a", "content": "x"}], {}),
        ([{"role": "assistant", "tool_calls": [{"id": "a"}]}], {}),
    ],
)
def test_bad_input(messages, options):
    with pytest.raises(InputError):
        render(messages, **options)


def test_content_shapes():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert render([{"role": "user", "content": parts}]) == render([{"role": "user", "content": "ab"}])
    assert render([{"role": "user", "content": None}]) == render([{"role": "user", "content": ""}])
    assert Segment("x\ufffdy") in render([{"role": "user", "content": "x\ud800y"}])


@relaxed
@given(conversation(), st.lists(tool, max_size=2), st.booleans(), st.booleans(), st.sampled_from([None, "low"]))
def test_jinja_template_renders_the_same_text(messages, tools, thinking, prompt, effort):
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    expected = joined(render(messages, tools, thinking=thinking, effort=effort, add_generation_prompt=prompt))
    parsed = json.loads(json.dumps(messages))
    for message in parsed:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    options = {"thinking": thinking, "thinking_effort": effort, "add_generation_prompt": prompt}
    rendered, _ = transformers.render_jinja_template([parsed], tools, chat_template=chat_template(), **options)
    assert rendered == [expected]


def test_jinja_defaults_and_fallback():
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    bad = {"id": "z", "type": "function", "function": {"name": "add", "arguments": "{"}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [bad]}]
    rendered, _ = transformers.render_jinja_template([messages], chat_template=chat_template())
    assert rendered == [joined(render(messages))]
