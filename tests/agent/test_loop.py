"""The agent loop and the tools, against a real server with a scripted engine."""

import json
from pathlib import Path

import pytest
from scripted import ScriptedEngine, call, end, say, served

from moonlet.agent import loop
from moonlet.agent.client import Client, EndpointError
from moonlet.agent.tools import for_endpoint, for_folder
from moonlet.errors import InputError
from moonlet.tasks.base import CALCULATOR, Item, environment

USER = [{"role": "user", "content": "17*23?"}]
ASK = [*say("I compute", "reasoning_content"), call(1, "calculator", '{"expression":"17*23"}'), end("tool_calls")]
ANSWER = [*say("done", "reasoning_content"), *say("it is 391"), end()]


def run(engine: ScriptedEngine, shown: list | None = None) -> loop.Answer:
    with served(engine) as url:
        show = (lambda kind, text: None) if shown is None else (lambda kind, text: shown.append((kind, text)))
        return loop.answer(Client(url), {"model": "scripted", "seed": 3}, USER, for_endpoint(), show)


def test_round_trip() -> None:
    engine, shown = ScriptedEngine(ASK, ANSWER), []
    answer = run(engine, shown)
    assert (answer.content, answer.reasoning, answer.finish_reason) == ("it is 391", "I compute\ndone", "stop")
    assert answer.usage == {"prompt_tokens": 14, "completion_tokens": 10, "total_tokens": 24}
    assert answer.seconds > 0
    assert answer.tokens_per_second > 0
    user, asking, result, final = answer.messages
    assert user == USER[0]
    assert asking["reasoning_content"] == "I compute"
    assert result["tool_call_id"] == asking["tool_calls"][0]["id"]
    assert result["content"] == "391"
    assert final == {"role": "assistant", "content": "it is 391", "reasoning_content": "done"}
    assert engine.requests[1]["messages"] == answer.messages[:3]
    assert engine.requests[1]["seed"] == 3
    assert engine.requests[1]["tools"] == for_endpoint().schemas
    assert ("call", 'calculator {"expression":"17*23"}') in shown
    assert ("result", "391") in shown
    assert "".join(text for kind, text in shown if kind == "content") == "it is 391"
    assert USER == [{"role": "user", "content": "17*23?"}]


def test_calls_of_one_message_run_in_order() -> None:
    calls = [call(i, "calculator", json.dumps({"expression": f"{i}+1"})) for i in (1, 2, 3)]
    answer = run(ScriptedEngine([*calls, end("tool_calls")], ANSWER))
    assert [message["content"] for message in answer.messages if message["role"] == "tool"] == ["2", "3", "4"]


def test_a_loop_of_calls_ends_at_the_step_limit(monkeypatch) -> None:
    monkeypatch.setattr(loop, "MAX_STEPS", 5)
    engine = ScriptedEngine(ASK)
    answer = run(engine)
    assert answer.finish_reason == "max_steps"
    assert len(engine.requests) == 5
    assert loop.MAX_STEPS == 5


def test_endpoint_error_in_the_second_request() -> None:
    with pytest.raises(EndpointError, match="failed during the answer"):
        run(ScriptedEngine(ASK, [*say("it "), RuntimeError("boom")]))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("shell", "{}", "no tool shell"),
        ("calculator", "{", "takes expression"),
        ("calculator", "[" * 100_000, "takes expression"),
        ("calculator", "[]", "takes expression"),
        ("calculator", '{"expression": 3}', "not text"),
        ("calculator", '{"expression": "1", "x": "2"}', "takes expression"),
        ("calculator", '{"expression": "__import__(\'os\')"}', "bad expression"),
    ],
)
def test_a_bad_call_is_answered_in_text(name: str, arguments: str, words: str) -> None:
    result = for_endpoint().call(name, arguments)
    assert result.startswith("error: ")
    assert words in result
    item = Item("arithmetic", "train", USER, [CALCULATOR], "391", {})
    if arguments[0] == "{" and arguments != "{":
        assert result == environment(item).call(name, json.loads(arguments))


def test_the_calculator_is_declared_as_in_training() -> None:
    assert for_endpoint().schemas == [CALCULATOR]


def test_tools_of_a_folder(tmp_path: Path) -> None:
    assert for_folder(tmp_path).schemas == []
    schemas = [{"type": "function", "function": {"name": name}} for name in ("lookup", "shell")]
    declared = {"tools": schemas, "table": {"New Oslo": {"mayor": "Ada"}}}
    (tmp_path / "tools.json").write_text(json.dumps(declared))
    tools = for_folder(tmp_path)
    assert tools.schemas == schemas[:1]
    assert tools.call("lookup", '{"query": "New Oslo mayor"}') == "Ada"
    assert tools.call("lookup", '{"query": "New Oslo king"}') == "not found"
    assert "no tool calculator" in tools.call("calculator", '{"expression": "1"}')
    for broken in ("{", "[]", '{"tools": [1]}', '{"tools": [], "table": 3}'):
        (tmp_path / "tools.json").write_text(broken)
        with pytest.raises(InputError, match=r"tools\.json"):
            for_folder(tmp_path)
