"""The HTTP API over a scripted engine: wire format as the OpenAI SDK reads it, errors, disconnects, concurrency."""

import json
import socket
import threading
import time

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from scripted import ScriptedEngine, call, end, say, served

from moonlet.engine.request import Busy
from moonlet.errors import InputError
from moonlet.server import app as server

HTTP = httpx.Client(timeout=60)  # patient: the machine may be busy
USER = [{"role": "user", "content": "17*23?"}]
TOOLS = [{"type": "function", "function": {"name": "calculator", "parameters": {"type": "object"}}}]
ANSWER = [*say("let me think", "reasoning_content"), *say("it is 391"), end()]
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 0}}
CALLS = [
    *say("use it", "reasoning_content"),
    call(1, "calculator", '{"expression":"17*23"}'),
    call(2, "calculator", '{"expression":"1+1"}'),
    end("tool_calls"),
]


def sdk(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="x", max_retries=0)


def body(**fields: object) -> dict:
    return {"model": "scripted", "messages": USER} | fields


def chunks_of(url: str, **fields: object) -> list[dict]:
    """Every event of a streamed answer as it is on the wire, [DONE] checked and left out."""
    response = HTTP.post(f"{url}/chat/completions", json=body(stream=True, **fields))
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_answer_without_streaming() -> None:
    engine = ScriptedEngine(ANSWER)
    with served(engine) as url:
        raw = HTTP.post(f"{url}/chat/completions", json=body(temperature=0, seed=3, max_tokens=50))
        reply = sdk(url).chat.completions.create(model="scripted", messages=USER)
    ChatCompletion.model_validate_json(raw.content, strict=True)
    choice = raw.json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "it is 391", "reasoning_content": "let me think"}
    assert choice["finish_reason"] == "stop"
    assert raw.json()["usage"] == USAGE
    assert reply.id != raw.json()["id"]
    asked = engine.requests[0]
    assert asked["messages"] == USER
    assert {key: asked[key] for key in ("temperature", "seed", "max_tokens")} == {
        "temperature": 0.0,
        "seed": 3,
        "max_tokens": 50,
    }
    assert engine.requests[1]["max_tokens"] == engine.context_length


def test_streamed_answer() -> None:
    with served(ScriptedEngine(ANSWER)) as url:
        chunks = chunks_of(url)
    for chunk in chunks:
        ChatCompletionChunk.model_validate_json(json.dumps(chunk), strict=True)
        assert chunk["choices"][0]["index"] == 0
        assert "usage" not in chunk
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "let me think"
    assert "".join(d.get("content", "") for d in deltas) == "it is 391"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]


def test_streamed_usage() -> None:
    with served(ScriptedEngine(ANSWER)) as url:
        *chunks, last = chunks_of(url, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"] == USAGE
    assert {chunk["usage"] for chunk in chunks} == {None}


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls(stream: bool) -> None:
    engine = ScriptedEngine(CALLS)
    with served(engine) as url:
        client = sdk(url)
        ids = []
        for _ in range(2):
            if stream:
                with client.chat.completions.stream(model="scripted", messages=USER, tools=TOOLS) as events:
                    choice = events.get_final_completion().choices[0]
            else:
                choice = client.chat.completions.create(model="scripted", messages=USER, tools=TOOLS).choices[0]
            assert choice.finish_reason == "tool_calls"
            assert not choice.message.content
            assert choice.message.reasoning_content == "use it"
            calls = choice.message.tool_calls
            assert [c.function.arguments for c in calls] == ['{"expression":"17*23"}', '{"expression":"1+1"}']
            assert {(c.type, c.function.name) for c in calls} == {("function", "calculator")}
            ids += [c.id for c in calls]
    assert len(set(ids)) == 4
    assert all(name.startswith("call_") for name in ids)
    assert engine.requests[0]["tools"] == TOOLS


@pytest.mark.parametrize("stream", [False, True])
def test_choices_and_log_probs(stream: bool) -> None:
    entry = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    first = [{"logprobs": [entry]}, {"content": "a"}, {}, end("length")]
    engine = ScriptedEngine(first, [*say("b c"), {"logprobs": [entry, entry]}, end()])
    with served(engine) as url:
        asked = {"model": "scripted", "messages": USER, "n": 2, "seed": 7, "logprobs": True}
        texts, entries, reasons = ["", ""], [0, 0], ["", ""]
        if stream:
            for chunk in sdk(url).chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
                for c in chunk.choices:
                    texts[c.index] += c.delta.content or ""
                    entries[c.index] += len(c.logprobs.content) if c.logprobs else 0
                    reasons[c.index] = c.finish_reason or reasons[c.index]
            usage = chunk.usage
        else:
            reply = sdk(url).chat.completions.create(**asked)
            for c in reply.choices:
                texts[c.index], entries[c.index], reasons[c.index] = (
                    c.message.content,
                    len(c.logprobs.content),
                    c.finish_reason,
                )
            usage = reply.usage
        assert (texts, entries, reasons) == (["a", "b c"], [1, 2], ["length", "stop"])
        assert (usage.prompt_tokens, usage.completion_tokens) == (7, 10)
        assert [request["seed"] for request in engine.requests] == [7, 8]
        assert engine.becomes_idle()


def test_a_full_line_is_429() -> None:
    engine = ScriptedEngine([Busy("64 requests are waiting already")])
    with served(engine) as url:
        answer = HTTP.post(f"{url}/chat/completions", json=body(stream=True))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert "try again" in answer.json()["error"]["message"]


def test_models_and_health() -> None:
    with served(ScriptedEngine(ANSWER)) as url:
        client = sdk(url)
        assert [model.id for model in client.models.list()] == ["scripted"]
        assert client.models.list().data[0].context_length == 512
        assert HTTP.get(url.removesuffix("/v1") + "/health").json() == {"status": "ok", "model": "scripted"}


def test_refusals_have_openai_form() -> None:
    engine = ScriptedEngine([InputError("the prompt has 900 tokens: at most 512 fit")])
    with served(engine) as url:
        client = sdk(url)
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(model="gpt-9", messages=USER)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError, match="n='9'"):
            client.chat.completions.create(model="scripted", messages=USER, n=9)
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="900 tokens: at most 512 fit"):
                client.chat.completions.create(model="scripted", messages=USER, stream=stream)
        for response, status in (
            (HTTP.get(f"{url}/nothing"), 404),
            (HTTP.get(f"{url}/chat/completions"), 405),
            (HTTP.post(f"{url}/chat/completions", content=b"{"), 400),
        ):
            assert response.status_code == status
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert engine.becomes_idle()


@pytest.mark.parametrize("chunked", [False, True])
def test_large_body(chunked: bool) -> None:
    text = b'{"x":"' + b"a" * server.BODY_LIMIT + b'"}'
    with served(ScriptedEngine(ANSWER)) as url:
        response = HTTP.post(f"{url}/chat/completions", content=iter([text]) if chunked else text)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_engine_failure() -> None:
    broken = RuntimeError("secret detail")
    engine = ScriptedEngine([broken], [*say("so far"), broken], [*say("no end")], ANSWER)
    with served(engine) as url:
        client = sdk(url)
        with pytest.raises(openai.InternalServerError) as failed:
            client.chat.completions.create(model="scripted", messages=USER)
        assert "secret" not in str(failed.value)
        for _ in range(2):
            stream = client.chat.completions.create(model="scripted", messages=USER, stream=True)
            with pytest.raises(openai.APIError, match="failed during this answer"):
                list(stream)
        assert client.chat.completions.create(model="scripted", messages=USER).choices[0].message.content == "it is 391"
        assert engine.becomes_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_frees_the_engine(stream: bool) -> None:
    engine = ScriptedEngine([*say("word " * 1000), end()], pause=0.01)
    with served(engine) as url:
        data = json.dumps(body(stream=stream)).encode()
        address = ("127.0.0.1", int(url.split(":")[2].removesuffix("/v1")))
        with socket.create_connection(address) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode() + data)
            while engine.steps < 5:
                time.sleep(0.01)
            assert engine.active == 1
        assert engine.becomes_idle()
        assert engine.steps < 1000


def test_slow_client_that_leaves_frees_the_engine() -> None:
    """The server is held up in sending, not in the engine, when the client goes."""
    engine = ScriptedEngine([*say(("x" * 100_000 + " ") * 1000), end()])
    with served(engine) as url:
        with HTTP.stream("POST", f"{url}/chat/completions", json=body(stream=True)) as response:
            assert response.status_code == 200
            steps = -1
            while steps != engine.steps:  # until the socket is full
                steps = engine.steps
                time.sleep(0.3)
            assert engine.active == 1
        assert engine.becomes_idle()
        assert engine.steps < 1000


@pytest.mark.parametrize("stream", [False, True])
def test_slow_request_blocks_nobody(stream: bool) -> None:
    gate = threading.Event()
    engine = ScriptedEngine([*say("slow "), gate, *say("end"), end()], [*say("quick"), end()])
    answers = []

    def ask_slowly(url: str) -> None:
        answers.append(HTTP.post(f"{url}/chat/completions", json=body(stream=stream)))

    with served(engine) as url:
        thread = threading.Thread(target=ask_slowly, args=(url,))
        thread.start()
        while engine.steps < 2:  # it is at the gate, within an engine step
            time.sleep(0.01)
        try:
            assert HTTP.get(f"{url}/models").status_code == 200
            quick = HTTP.post(f"{url}/chat/completions", json=body()).json()
            assert quick["choices"][0]["message"]["content"] == "quick"
            assert answers == []
        finally:
            gate.set()
            thread.join()
    assert "end" in answers[0].text


def test_serve_refuses_an_address_in_use(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="choose another"):
        server.serve(tmp_path, port=taken.getsockname()[1])
