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
        ({"temperature": 2.1}, "temperature", "temperature=2.1 is outside 0 to 2: send a value inside"),
        ({"top_p": 1.5}, "top_p", "outside 0 to 1"),
        ({"top_k": -2}, "top_k", "outside -1"),
        ({"min_p": -0.1}, "min_p", "outside 0 to 1"),
        ({"presence_penalty": 3}, "presence_penalty", "outside -2 to 2"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty", "finite"),
        ({"repetition_penalty": 0}, "repetition_penalty", "outside"),
        ({"seed": 2**63}, "seed", "outside"),
        ({"n": 10**9}, "n", "n='1000000000': Input should be less than or equal to 8"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": ["x" * 257]}, "stop", "1 to 256 characters"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias", "at most 1024"),
        ({"logit_bias": {"many": 1}}, "logit_bias.many.[key]", "integer"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "outside 0 to 20"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "not among the tools"),
        ({"tools": [{"type": "web_search"}] * 129}, "tools", "at most 128"),
        ({"functions": [{"name": "f"}]}, "functions", "at most 0"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs the field 'json_schema'"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "give one of"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": -1}},
            "thinking.budget_tokens",
            "greater than or equal to 0",
        ),
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
    default = {"messages": [USER], "max_tokens": 100, "thinking": True}
    assert parse().engine_arguments(100) == default
    assert parse(max_tokens=2**70, thinking={"type": "disabled"}).engine_arguments(100) == default | {"thinking": False}
    asked = parse(max_tokens=9, max_completion_tokens=5, temperature=0, top_p=0.5, seed=3, thinking={"type": "enabled"})
    assert asked.engine_arguments(100) == default | {"max_tokens": 5, "temperature": 0.0, "top_p": 0.5, "seed": 3}
    assert (
        parse(tool_choice="none", tools=[{"type": "function", "function": {"name": "f"}}]).engine_arguments(100)
        == default
    )


def test_structure_and_tool_choice() -> None:
    def asked(**fields: object) -> dict:
        return parse(**fields).engine_arguments(9)

    tools = [{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}]
    assert asked(tools=tools, tool_choice="required")["tool_choice"] == "required"
    named = asked(tools=tools, tool_choice={"type": "function", "function": {"name": "g"}})
    assert (named["tool_choice"], named["tools"]) == ("g", tools)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    given = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    assert asked(response_format=given)["structure"] == {"json_schema": schema}
    assert asked(response_format={"type": "json_object"})["structure"] == {"json_schema": {"type": "object"}}
    assert "structure" not in asked(response_format={"type": "text"})
    for one in ({"regex": "a+"}, {"choice": ["a", "b"]}):
        assert asked(structured_outputs=one)["structure"] == one
    assert asked(stop="x", logit_bias={"3": -1}, service_tier="flex") == asked() | {
        "stop": ["x"], "logit_bias": {3: -1.0}, "priority": 1,
    }  # fmt: skip


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "name"]), inner),
    max_leaves=6,
)
FIELDS = list(ChatRequest.model_fields)
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
