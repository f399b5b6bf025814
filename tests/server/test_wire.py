"""Request parsing: what is refused and how it is named, what clients send that must pass, and any bytes at all."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonlet.server.wire import ApiError, ChatRequest, parse_request

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": "{}"}}


def parse(**fields: object) -> ChatRequest:
    return parse_request(json.dumps({"model": "m", "messages": [USER]} | fields).encode())


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role", "'assistant'"),
        ({"messages": [USER, {"role": "user"}]}, "messages.1", "needs content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0", "tool_call_id"),
        ({"messages": [USER | {"tool_calls": [CALL]}]}, "messages.0", "assistant"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "'image_url'"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content", "type 'text'"),
        ({"model": None}, "model", "string"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "greater than or equal to 1"),
        ({"temperature": float("nan")}, "temperature", "number"),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"n": 2}, "n", "send 1"),
        ({"stop": ["\n"]}, "stop", "not supported"),
        ({"tool_choice": "required"}, "tool_choice", '"none", "auto"'),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools.0", "'function'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"default": float("inf")}}}]},
            "tools.0",
            "JSON",
        ),
    ],
)
def test_refused(fields: dict, param: str, words: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse(**fields)
    error = refused.value.body["error"]
    assert refused.value.status == 400
    assert error["param"] == param
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"{",
        b"null",
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"a":' + b"[" * 100_000,
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_bodies_that_are_not_requests(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        parse_request(body)
    assert refused.value.status == 400


def test_what_clients_send_passes() -> None:
    request = parse(
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "r", "refusal": None},
            {"role": "tool", "content": [], "tool_call_id": "c1"},
            {"role": "assistant", "content": [], "tool_calls": []},
        ],
        n=1, stop=None, logprobs=False, tool_choice="auto", response_format={"type": "text"}, stream=None,
        prompt_cache_key="k", reasoning_effort=None, parallel_tool_calls=True, client_metadata={"a": 1},
        tools=[{"type": "web_search"}, {"type": "function", "function": {"name": "f", "strict": True}}],
    )  # fmt: skip
    arguments = request.engine_arguments(100)
    assert arguments["messages"] == [
        {"role": "system", "content": "ab"},
        {"role": "assistant", "content": "", "reasoning_content": "r", "tool_calls": [CALL]},
        {"role": "tool", "content": "", "tool_call_id": "c1"},
        {"role": "assistant", "content": ""},
    ]
    assert arguments["tools"] == [{"type": "function", "function": {"name": "f"}}]


def test_sampling() -> None:
    default = {
        "messages": [USER],
        "tools": None,
        "max_tokens": 100,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": None,
        "thinking": True,
    }
    assert parse().engine_arguments(100) == default
    assert parse(max_tokens=2**70, thinking={"type": "disabled"}).engine_arguments(100) == default | {"thinking": False}
    asked = parse(max_tokens=9, max_completion_tokens=5, temperature=0, top_p=0.5, seed=3, thinking={"type": "enabled"})
    assert asked.engine_arguments(100) == default | {"max_tokens": 5, "temperature": 0.0, "top_p": 0.5, "seed": 3}
    assert (
        parse(tool_choice="none", tools=[{"type": "function", "function": {"name": "f"}}]).engine_arguments(100)
        == default
    )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "name"]), inner),
    max_leaves=6,
)
FIELDS = list(ChatRequest.model_fields) + ["n", "stop", "functions", "logit_bias"]
MESSAGE_KEYS = ["role", "content", "tool_calls", "tool_call_id"]
MESSAGES = st.lists(st.dictionaries(st.sampled_from(MESSAGE_KEYS), VALUES), max_size=2)


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES), MESSAGES | st.just([USER]))
def test_any_fields_parse_or_are_refused(fields: dict, messages: list) -> None:
    try:
        request = parse(**({"messages": messages} | fields))
    except ApiError as error:
        assert error.status == 400
    else:
        json.dumps(request.engine_arguments(9), allow_nan=False).encode()
