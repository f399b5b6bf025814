"""The HTTP server: three routes over one engine, and errors in OpenAI's form.

The engine's streams are synchronous, so each step of a request runs in a worker thread and the event loop stays free: a
long answer never delays another request. A request owns its streams and closes them however it ends (finished, failed,
client gone). Leaves out: keys, quotas and TLS; the server binds to loopback unless told otherwise.
"""

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import uvicorn
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from moonlet.engine.request import Busy, Limits
from moonlet.errors import InputError
from moonlet.server import wire
from moonlet.server.wire import ApiError

BODY_LIMIT = 8 << 20  # bytes; far above what any context of ours holds
PARENT_VARIABLE = "MOONLET_PARENT_PID"  # set by the terminal agent: the server ends with that process
MOST_WORKERS = 256  # threads that wait for the engine, one a request
Events = Generator[dict, None, None]  # what the engine streams
log = logging.getLogger("moonlet.server")


async def _read_body(request: Request) -> bytes:
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        body += part if size <= BODY_LIMIT else b""  # dropped, but read: a client that still sends reads no refusal
    if size > BODY_LIMIT:
        raise ApiError(413, f"the body is larger than {BODY_LIMIT} bytes: send less", code="request_too_large")
    return bytes(body)


class Answer:
    """The choices of one request, each a stream of the engine; what they do runs in worker threads, one at a time."""

    def __init__(self, engine: Any, chat: wire.ChatRequest, limiter: CapacityLimiter) -> None:
        self.engine, self.chat, self.limiter = engine, chat, limiter
        self.streams: list[Events] = []
        self.open: set[int] = set()

    def begin(self) -> list[tuple[int, dict]]:
        """Begin all choices and look at the first: a bad prompt shows here, before any byte of a response is sent."""
        asked = self.chat.engine_arguments(self.engine.context_length)
        try:
            for index in range(self.chat.n or 1):
                seed = {"seed": asked["seed"] + index} if index and "seed" in asked else {}
                self.streams.append(self.engine.stream(**(asked | seed)))
                self.open.add(index)
            return self.step([0])
        except BaseException:
            self.close()
            raise

    def step(self, indices: Iterable[int]) -> list[tuple[int, dict]]:
        """The next event of each of these choices."""
        out = []
        for index in indices:
            event = next(self.streams[index], None)
            if event is None:
                raise RuntimeError("the engine's stream ended without a finish_reason")
            self.open -= {index} if "finish_reason" in event else set()
            out.append((index, event))
        return out

    def close(self) -> None:
        for stream in self.streams:
            stream.close()

    async def run(self, function: Callable, *arguments: Any) -> Any:
        return await run_sync(function, *arguments, limiter=self.limiter)

    async def events(self, first: list[tuple[int, dict]]) -> AsyncIterator[tuple[int, dict]]:
        """All events of all choices, those in `first` ahead."""
        while True:
            for pair in first:
                yield pair
            if not self.open:
                return
            first = await self.run(self.step, sorted(self.open))


async def _sse(head: dict, answer: Answer, first: list[tuple[int, dict]], include_usage: bool) -> AsyncIterator[bytes]:
    extra: dict = {"usage": None} if include_usage else {}
    calls, ends = [0] * len(answer.streams), []
    try:
        for index in range(len(answer.streams)):
            yield wire.sse(wire.chunk(head, index, {"role": "assistant", "content": ""}) | extra)
        async for index, event in answer.events(first):
            delta, logprobs = wire.delta_of(event, calls[index]), wire.logprobs_of(event.get("logprobs", []))
            calls[index] += "tool_calls" in delta
            ends += [event] if "finish_reason" in event else []
            if delta or logprobs or "finish_reason" in event:
                yield wire.sse(wire.chunk(head, index, delta, event.get("finish_reason"), logprobs) | extra)
        if include_usage:
            yield wire.sse(wire.chunk(head, 0, {}) | {"choices": [], "usage": wire.usage_of(ends)})
        yield wire.sse("[DONE]")
    except Exception:
        # The status line is out. An error event is what is left, and the SDKs raise on it.
        log.exception("the engine failed during %s", head["id"])
        yield wire.sse(ApiError(500, f"the engine failed during this answer ({head['id']})").body)


async def _answer(engine: Any, limiter: CapacityLimiter, request: Request) -> Response:
    chat = wire.parse_request(await _read_body(request))
    if chat.model != engine.name:
        message = f"the model {chat.model[:100]!r} does not exist: this server has {engine.name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    answer = Answer(engine, chat, limiter)
    first = await answer.run(answer.begin)
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": engine.name}
    if chat.stream:
        include_usage = bool((chat.stream_options or {}).get("include_usage"))
        body = _sse(head, answer, first, include_usage)
        # The background task runs when the response is over, also because the client has gone.
        return StreamingResponse(body, media_type="text/event-stream", background=BackgroundTask(answer.close))
    events: list[list[dict]] = [[] for _ in answer.streams]
    try:
        async for index, event in answer.events(first):
            if await request.is_disconnected():
                raise ClientDisconnect
            events[index].append(event)
        return JSONResponse(wire.completion(head, events))
    finally:
        await answer.run(answer.close)


def create_app(engine: Any) -> FastAPI:
    """The application around an engine: `.name`, `.context_length` and `.stream(messages, tools, **sampling)`."""
    app, limiter = FastAPI(title="moonlet", openapi_url=None), CapacityLimiter(MOST_WORKERS)
    card = {"id": engine.name, "object": "model", "created": int(time.time()), "owned_by": "moonlet"}
    card["context_length"] = engine.context_length

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body, status_code=error.status)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        body = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").body
        return JSONResponse(body, status_code=error.status_code)

    @app.get("/health")
    async def health() -> dict:
        return {"status": "ok", "model": engine.name}

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [card]}

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        try:
            return await _answer(engine, limiter, request)
        except ApiError:
            raise
        except InputError as error:
            code = "context_length_exceeded" if "the context holds" in str(error) else None
            param = "messages" if code else wire.named(str(error)) or "messages"
            raise ApiError(400, str(error), param=param, code=code) from error
        except Busy as error:
            busy = ApiError(429, f"{error}: try again in a second", code="rate_limit_exceeded")
            return JSONResponse(busy.body, status_code=429, headers={"Retry-After": "1"})
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it
        except Exception as error:
            log.exception("a request failed")
            raise ApiError(500, "the request failed in the server: its log says why") from error

    return app


def _end_with(parent: int) -> None:
    """Stop this process when its parent is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def serve(
    folder: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    weights: str = "fp32",
    scratch: Path | None = None,
    draft: bool = True,
    limits: Limits | None = None,
) -> None:
    """Load the model in `folder` and serve it until interrupted. Port 0: the system chooses one.

    Prints one line on stdout, `listening on http://HOST:PORT/v1`, when requests can be sent.
    Raises InputError if the folder is not a model or the address cannot be bound.
    """
    if parent := os.environ.get(PARENT_VARIABLE):
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise InputError(f"{host}:{port} cannot be bound ({error}): choose another --host or --port") from error
    # What is accepted inherits it: an answer's body and the pieces of a stream do not wait for acknowledgements.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        from moonlet.engine.engine import Engine  # torch: loaded when the address is known to be good

        app = create_app(Engine(folder, limits, weights=weights, scratch=scratch, draft=draft))
        if host not in ("127.0.0.1", "::1", "localhost"):
            print(f"warning: {host} may be reachable from other machines, and there is no key", file=sys.stderr)
        shown = f"[{host}]" if ":" in host else host
        print(f"listening on http://{shown}:{listener.getsockname()[1]}/v1", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listener])
