"""The HTTP server: three routes over one engine, and errors in OpenAI's form.

The engine is synchronous and gives one token a step, so each step runs in a worker thread and the event loop stays
free: a long answer never delays another request. A request owns its engine iterator and closes it however it ends
(finished, failed, client gone). Leaves out: keys, quotas and TLS; the server binds to loopback unless told otherwise.
"""

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import uvicorn
from anyio.to_thread import run_sync
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from moonlet.errors import InputError
from moonlet.server import wire
from moonlet.server.wire import ApiError

BODY_LIMIT = 8 << 20  # bytes; far above what any context of ours holds
PARENT_VARIABLE = "MOONLET_PARENT_PID"  # set by the terminal agent: the server ends with that process
Events = Generator[dict, None, None]  # what the engine streams
Deltas = AsyncIterator[tuple[dict, dict | None]]  # a message delta, and with the last one the engine's last event
log = logging.getLogger("moonlet.server")


async def _read_body(request: Request) -> bytes:
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        body += part if size <= BODY_LIMIT else b""  # dropped, but read: a client that still sends reads no refusal
    if size > BODY_LIMIT:
        raise ApiError(413, f"the body is larger than {BODY_LIMIT} bytes: send less", code="request_too_large")
    return bytes(body)


def _step(events: Events) -> dict:
    for event in events:
        return event
    raise RuntimeError("the engine's stream ended without a finish_reason")


def _start(engine: Any, request: wire.ChatRequest) -> tuple[dict, Events]:
    """Begin an answer: prefill and first token. Bad prompts show here, before any byte of a response is sent."""
    events = engine.stream(**request.engine_arguments(engine.context_length))
    return _step(events), events


async def _deltas(event: dict, events: Events) -> Deltas:
    """Message deltas from the first event on, then ({}, the engine's last event)."""
    calls = 0
    while "finish_reason" not in event:
        delta = wire.delta_of(event, calls)
        calls += "tool_calls" in delta
        if delta:
            yield delta, None
        event = await run_sync(_step, events)
    yield {}, event


async def _sse(head: dict, deltas: Deltas, include_usage: bool) -> AsyncIterator[bytes]:
    extra: dict = {"usage": None} if include_usage else {}
    try:
        yield wire.sse(wire.chunk(head, {"role": "assistant", "content": ""}) | extra)
        async for delta, last in deltas:
            yield wire.sse(wire.chunk(head, delta, last["finish_reason"] if last else None) | extra)
            if last and include_usage:
                yield wire.sse(wire.chunk(head, {}) | {"choices": [], "usage": wire.usage_of(last)})
        yield wire.sse("[DONE]")
    except Exception:
        # The status line is out. An error event is what is left, and the SDKs raise on it.
        log.exception("the engine failed during %s", head["id"])
        yield wire.sse(ApiError(500, f"the engine failed during this answer ({head['id']})").body)


async def _answer(engine: Any, request: Request) -> Response:
    chat = wire.parse_request(await _read_body(request))
    if chat.model != engine.name:
        message = f"the model {chat.model[:100]!r} does not exist: this server has {engine.name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    event, events = await run_sync(_start, engine, chat)
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": engine.name}
    if chat.stream:
        include_usage = bool((chat.stream_options or {}).get("include_usage"))
        body = _sse(head, _deltas(event, events), include_usage)
        # The background task runs when the response is over, also because the client has gone.
        return StreamingResponse(body, media_type="text/event-stream", background=BackgroundTask(events.close))
    deltas: list[dict] = []
    try:
        async for delta, last in _deltas(event, events):
            if last:
                return JSONResponse(wire.completion(head, deltas, last))
            if await request.is_disconnected():
                break
            deltas.append(delta)
    finally:
        await run_sync(events.close)
    raise ClientDisconnect


def create_app(engine: Any) -> FastAPI:
    """The application around an engine: `.name`, `.context_length` and `.stream(messages, tools, **sampling)`."""
    app = FastAPI(title="moonlet", openapi_url=None)
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
            return await _answer(engine, request)
        except ApiError:
            raise
        except InputError as error:
            code = "context_length_exceeded" if "the context holds" in str(error) else None
            raise ApiError(400, str(error), param="messages", code=code) from error
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


def serve(folder: str | Path, host: str = "127.0.0.1", port: int = 8000) -> None:
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
    with listener:
        from moonlet.engine.engine import Engine  # torch: loaded when the address is known to be good

        app = create_app(Engine(folder))
        if host not in ("127.0.0.1", "::1", "localhost"):
            print(f"warning: {host} may be reachable from other machines, and there is no key", file=sys.stderr)
        shown = f"[{host}]" if ":" in host else host
        print(f"listening on http://{shown}:{listener.getsockname()[1]}/v1", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listener])
