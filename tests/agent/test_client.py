"""The HTTP client against endpoints that fail in every common way, and the deltas of one that does not."""

import json
import socket
import time

import pytest
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, StreamingResponse
from scripted import ScriptedEngine, call, end, say, served

from moonlet.agent.client import Client, EndpointError
from moonlet.errors import InputError

BODY = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}


def endpoint(response: Response) -> FastAPI:
    app = FastAPI()
    app.add_api_route("/v1/chat/completions", lambda: response, methods=["POST"])
    app.add_api_route("/v1/models", lambda: response)
    return app


def sse(*events: object) -> StreamingResponse:
    return StreamingResponse(iter(f"data: {event}\n\n" for event in events), media_type="text/event-stream")


def failure(app: FastAPI, timeout: float = 60.0) -> EndpointError:
    with served(app) as url, pytest.raises(EndpointError) as failed:
        list(Client(url, timeout).stream(BODY))
    assert "\n" not in str(failed.value)
    return failed.value


def test_deltas() -> None:
    engine = ScriptedEngine([*say("hm", "reasoning_content"), *say("a b"), call(1, "f", "{}"), end("tool_calls")])
    with served(engine) as url:
        client = Client(url.removesuffix("/v1"))
        assert client.models() == ["scripted"]
        events = list(client.stream(BODY))
    assert events[:3] == [{"reasoning_content": "hm"}, {"content": "a "}, {"content": "b"}]
    assert events[3]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert events[4] == {"finish_reason": "tool_calls"}
    assert events[5]["usage"]["total_tokens"] == 12


def test_closing_the_iterator_stops_the_answer() -> None:
    engine = ScriptedEngine([*say("word " * 1000), end()], pause=0.01)
    with served(engine) as url:
        events = Client(url).stream(BODY)
        next(events)
        events.close()
        assert engine.becomes_idle()
        assert engine.steps < 1000


def test_refused_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(EndpointError, match=f"cannot connect to http://127.0.0.1:{port}/v1 .*is the server running"):
        Client(f"http://127.0.0.1:{port}").models()


@pytest.mark.parametrize(
    ("status", "words"), [(401, "MOONLET_API_KEY"), (404, "base URL"), (429, "retry after 2 seconds"), (503, "log")]
)
def test_status(status: int, words: str) -> None:
    headers = {"Retry-After": "2"} if status == 429 else {}
    body = {"error": {"message": "because", "type": "t", "param": None, "code": None}}
    error = failure(endpoint(JSONResponse(body, status, headers)))
    assert error.status == status
    assert f"answered {status}: because" in str(error)
    assert words in str(error)


def test_error_page_that_is_not_json() -> None:
    assert "answered 502: Bad Gateway" in str(failure(endpoint(Response("<html>\n", 502))))


def test_silence() -> None:
    def nothing():
        yield ": wait\n\n"
        time.sleep(1)

    assert "sent nothing for 0.3 seconds" in str(failure(endpoint(StreamingResponse(nothing())), 0.3))


CHUNK = {"choices": [{"delta": {"content": "x"}, "finish_reason": None}]}


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([json.dumps(CHUNK)], "before it was finished"),
        ([json.dumps(CHUNK), "[DONE]"], "before it was finished"),
        ([json.dumps({"error": {"message": "out of memory"}})], "during the answer: out of memory"),
        (["{"], "not a chat chunk"),
        (["[]"], "not a chat chunk"),
        ([json.dumps({"choices": 3})], "not a chat chunk"),
        ([json.dumps({"choices": [3]})], "not a chat chunk"),
    ],
)
def test_broken_streams(events: list, words: str) -> None:
    assert words in str(failure(endpoint(sse(*events))))


def test_models_that_are_no_list() -> None:
    with served(endpoint(JSONResponse({"models": 1}))) as url, pytest.raises(EndpointError, match="list of models"):
        Client(url).models()


@pytest.mark.parametrize("url", ["ftp://a", "http://", "http://[", "http://a:99999", "localhost:80"])
def test_bad_url(url: str) -> None:
    with pytest.raises(InputError, match="give http"):
        Client(url)
