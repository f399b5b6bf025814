"""The K2 renderer: golden conversations in each mode, ids, thoughts kept and dropped, the loss mask, continuation."""

from itertools import pairwise

import pytest
from chat_strategies import assistant, conversation, relaxed, text
from hypothesis import given
from hypothesis import strategies as st

from moonlet.chat import K2, K2_INSTRUCT, Segment
from moonlet.chat.k2 import continuation, generation_prefix, render
from moonlet.errors import InputError

ADD = {"type": "function", "function": {"parameters": {"type": "object"}, "name": "add", "description": "Adds é."}}
CALLS = [
    {"id": "call_9", "type": "function", "function": {"name": "add", "arguments": '{"x":2,  "y": 3}'}},
    {"id": "search:0", "type": "function", "function": {"name": "add", "arguments": {"x": 4, "k": [5]}}},
]
LOOP = [
    {"role": "assistant", "reasoning_content": "Use add.", "content": "Wait.", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "search:0", "content": "9"},
    {"role": "tool", "tool_call_id": "call_9", "name": "ignored", "content": "5"},
]
GOLDEN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+3, 4+5?", "name": "Ann"},
    *LOOP,
    {"role": "assistant", "reasoning_content": "Done.", "content": "5 and 9."},
    {"role": "user", "content": "Again."},
    *LOOP,
]
TOOLS = (
    "<|im_system|>tool_declare<|im_middle|>"
    '[{"function":{"description":"Adds é.","name":"add","parameters":{"type":"object"}},"type":"function"}]<|im_end|>'
)


def loop(thought, first):
    return (
        f"<|im_assistant|>assistant<|im_middle|>{thought}Wait.<|tool_calls_section_begin|>"
        f'<|tool_call_begin|>functions.add:{first}<|tool_call_argument_begin|>{{"x":2,  "y": 3}}<|tool_call_end|>'
        f'<|tool_call_begin|>functions.add:{first + 1}<|tool_call_argument_begin|>{{"x": 4, "k": [5]}}<|tool_call_end|>'
        "<|tool_calls_section_end|><|im_end|>"
        f"<|im_system|>add<|im_middle|>## Return of functions.add:{first + 1}\n9<|im_end|>"
        f"<|im_system|>add<|im_middle|>## Return of functions.add:{first}\n5<|im_end|>"
    )


def golden(old, thought, new, prefix):
    return (
        f"{TOOLS}<|im_system|>system<|im_middle|>Be brief.<|im_end|><|im_user|>Ann<|im_middle|>2+3, 4+5?<|im_end|>"
        f"{loop(old, 0)}<|im_assistant|>assistant<|im_middle|>{thought}5 and 9.<|im_end|>"
        f"<|im_user|>user<|im_middle|>Again.<|im_end|>{loop(new, 2)}<|im_assistant|>assistant<|im_middle|>{prefix}"
    )


def joined(segments):
    return "".join(segment.text for segment in segments)


def no_loss(segments):
    return [(segment.text, segment.special) for segment in segments]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, golden("<think></think>", "<think></think>", "<think>Use add.</think>", "<think>")),
        (
            {"preserve_thinking": True},
            golden("<think>Use add.</think>", "<think>Done.</think>", "<think>Use add.</think>", "<think>"),
        ),
        ({"thinking": False}, golden(*["<think></think>"] * 4)),
        ({"instruct": True}, golden("", "", "", "")),
        ({"instruct": True, "thinking": False}, golden("", "", "", "")),
    ],
)
def test_golden(options, expected):
    assert joined(render(GOLDEN, [ADD], add_generation_prompt=True, **options)) == expected


def test_a_thought_lives_until_the_next_answer():
    def thoughts(messages, **options):
        segments = render(messages, **options)
        return [t.text for s, t in pairwise(segments) if s == Segment("<think>", True, s.loss)]

    first, last = GOLDEN[:5], GOLDEN[5]
    assert thoughts(first, add_generation_prompt=True) == ["Use add."]
    # The answer itself still shows its thought, and the loop's, until something follows it.
    assert thoughts([*first, last]) == ["Use add.", "Done."]
    assert thoughts([*first, last, {"role": "user", "content": "q"}]) == ["</think>", "</think>"]
    assert thoughts([*first, last], add_generation_prompt=True) == ["</think>", "</think>"]


def test_text_is_cut_at_markers_alone():
    """The published templates are encoded as one string, so between two markers BPE may merge anything."""
    segments = render(GOLDEN, [ADD], add_generation_prompt=True)
    assert all(a.special or b.special for a, b in pairwise(segments))
    assert "## Return of functions.add:1\n9" in [s.text for s in segments]


def test_prefixes():
    opened = [("<|im_assistant|>", True), ("assistant", False), ("<|im_middle|>", True)]
    assert no_loss(generation_prefix()) == [*opened, ("<think>", True)]
    assert no_loss(generation_prefix(False)) == [*opened, ("<think>", True), ("</think>", True)]
    assert no_loss(K2_INSTRUCT.generation_prefix(True)) == opened


def test_ids_count_on_and_orphans_do_not():
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": "a", "content": "r"}
    turn = [{"role": "assistant", "tool_calls": [call, call | {"id": "b"}]}, result, result | {"tool_call_id": "b"}]
    orphan = {"role": "tool", "tool_call_id": "zzz", "name": "g", "content": "r"}
    out = joined(render([*turn, {"role": "user", "content": "q"}, orphan, *turn, result | {"name": "late"}]))
    headers = [part.split("\n")[0] for part in out.split("## Return of ")[1:]]
    assert headers == [f"functions.{i}" for i in ("f:0", "f:1", "g:2", "f:2", "f:3", "late:4")]


def test_loss_is_on_what_is_sampled():
    message = LOOP[0] | {"name": "Bo"}
    for options, opened in (({}, 3), ({"thinking": False}, 5), ({"instruct": True}, 3)):
        segments = render([message], **options)
        assert [s.loss for s in segments] == [i >= opened for i in range(len(segments))]
        assert not any(s.loss for s in render([message | {"loss": False}], **options))
        words = {"Use add.", "Wait.", '{"x":2,  "y": 3}', '{"x": 4, "k": [5]}'}
        markup = render([message | {"loss": "markup"}], **options)
        assert [s.loss for s in markup] == [s.loss and s.text not in words for s in segments]
    assert [s.text for s in render([message])][3:6] == ["<think>", "Use add.", "</think>"]
    # A turn whose thought is gone would teach not to think.
    segments = render(GOLDEN)
    trained = joined(s for s in segments if s.loss)
    assert trained.startswith("<think>Use add.</think>Wait.")
    assert trained.count("<|im_end|>") == 1
    assert joined(s for s in render(GOLDEN, preserve_thinking=True) if s.loss).count("<|im_end|>") == 3


@pytest.mark.parametrize("raw", ["{", "[1]", "5", '{"x": NaN}', '{"x": 1e999}', pytest.param("[" * 100_000, id="deep")])
def test_unparsable_arguments_are_shown_without_loss(raw):
    bad = {"id": "z", "type": "function", "function": {"name": "add", "arguments": raw}}
    segments = render([{"role": "assistant", "content": "c", "tool_calls": [bad, CALLS[0]]}])
    shown = f"<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{raw}<|tool_call_end|>"
    assert shown in joined(segments)
    trained = joined(s for s in segments if s.loss)
    assert "add:0" not in trained
    assert "functions.add:1" in trained
    assert trained.endswith("<|tool_calls_section_end|><|im_end|>")


@relaxed
@given(conversation(), assistant(least_calls=1), st.data(), st.sampled_from([True, False, None]))
def test_continuation(history, answer, data, thinking):
    form, options = (K2_INSTRUCT, {}) if thinking is None else (K2, {"thinking": thinking})
    results = [{"role": "tool", "tool_call_id": c["id"], "content": data.draw(text)} for c in answer["tool_calls"]]
    results = data.draw(st.permutations(results))
    prompt = form.render(history, add_generation_prompt=True, **options)
    whole = form.render([*history, answer, *results], add_generation_prompt=True, **options)
    # What is sampled: the turn after what the prefix holds already.
    sampled = form.render([*history, answer], **options)[len(prompt) :]
    message = form.parse([(s.text, s.special) for s in sampled], bool(thinking))
    ids = {old["id"]: new["id"] for old, new in zip(answer["tool_calls"], message["tool_calls"])}
    renamed = [result | {"tool_call_id": ids[result["tool_call_id"]]} for result in results]
    assert no_loss(whole) == no_loss(prompt + sampled + form.continuation(message, renamed, **options))


def test_continuation_after_ids_of_another_form():
    failed = {"id": "error:1", "type": "function", "function": {"name": "error", "arguments": "{}"}}
    out = joined(continuation({"tool_calls": [failed]}, [{"role": "tool", "tool_call_id": "error:1", "content": "no"}]))
    assert out.startswith("<|im_system|>error<|im_middle|>## Return of functions.error:0\nno<|im_end|>")


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([], {"effort": "low"}),
        ([], {"tool_choice": "required"}),
        ([], {"tool_choice": "none"}),
        ([], {"response_format": {"type": "json_object"}}),
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


def test_options_that_ask_for_nothing():
    plain = render(GOLDEN)
    assert render(GOLDEN, effort=None, tool_choice="auto", response_format={"type": "text"}) == plain
    assert joined(render([{"role": "user", "content": "x\ud800y"}])) == "<|im_user|>user<|im_middle|>x\ufffdy<|im_end|>"
