"""Hypothesis strategies for conversations whose text is hostile: markers, tags, quotes, any unicode."""

import json

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# No deadline: a busy machine is not a failure.
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FRAGMENTS = ["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>", "<|op", "<", "|>", "think", 'message role="user"',
             "tools", "&quot;", "&amp;", '"', "&", " ", "\n", "```", "é", "月"]  # fmt: skip
text = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6), max_size=5).map("".join)
name = st.text(min_size=1, max_size=6) | st.sampled_from(["add", 'a"b&c', "<|sep|>"])
value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2),
    max_leaves=4,
)
arguments = st.dictionaries(text, value, max_size=3)


@st.composite
def assistant(draw, least_calls=0):
    message = {"role": "assistant", "reasoning_content": draw(text), "content": draw(text)}
    functions = [
        {"name": draw(name), "arguments": json.dumps(draw(arguments))} for _ in range(draw(st.integers(least_calls, 3)))
    ]
    if functions:
        message["tool_calls"] = [
            {"id": f"{function['name']}:{i}", "type": "function", "function": function}
            for i, function in enumerate(functions)
        ]
    return message


@st.composite
def conversation(draw):
    messages = [{"role": "system", "content": draw(text)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 3))):
        messages += [{"role": "user", "content": draw(text)} | draw(st.sampled_from([{}, {"name": "Ann"}]))]
        messages += [answer := draw(assistant())]
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": draw(text)} for call in answer.get("tool_calls", [])
        ]
        if draw(st.booleans()) and results:
            results[0]["tool_call_id"] = "unknown"
        messages += draw(st.permutations(results))
    return messages


tool = st.builds(
    lambda n, d, keys: {
        "type": "function",
        "function": {
            "parameters": {"type": "object", "properties": {key: {"type": "string"} for key in keys}},
            "name": n,
            "description": d,
        },
    },
    name, text, st.lists(name, max_size=2),
)  # fmt: skip
