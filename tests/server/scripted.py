"""An engine with prepared answers, and a real uvicorn around any app: what tests of the wire and the agent run on.

A random model never thinks, calls a tool or fails on demand; this engine has the same interface and does.
"""

import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from moonlet.server.app import create_app


def say(text: str, kind: str = "content") -> list[dict]:
    """Events that say `text` word by word."""
    return [{kind: word} for word in text.replace(" ", " \0").split("\0")]


def call(index: int, name: str, arguments: str) -> dict:
    """A tool call; the scripted engine adds the id, as the real one does."""
    return {"tool_call": {"index": index, "name": name, "arguments": arguments}}


def end(reason: str = "stop", prompt: int = 7, completion: int = 5) -> dict:
    return {"finish_reason": reason, "prompt_tokens": prompt, "completion_tokens": completion}


class ScriptedEngine:
    """Gives `answers` in turn, the last one again and again. Among the events, an exception is raised,
    and a threading.Event is waited for.

    `pause`: seconds that each event takes. `requests`: what was asked. `active`: streams that are open now.
    """

    name = "scripted"
    context_length = 512

    def __init__(self, *answers: list, pause: float = 0.0):
        self.answers, self.pause = list(answers), pause
        self.requests: list[dict] = []
        self.active = self.steps = 0
        self.lock = threading.Lock()

    def stream(
        self, messages, tools=None, *, max_tokens=256, temperature=1.0, top_p=1.0, seed=None, thinking=True, **others
    ) -> Iterator[dict]:
        with self.lock:
            sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, **others}
            self.requests.append({"messages": messages, "tools": tools, "thinking": thinking, **sampling})
            events = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.active += 1
        try:
            for event in events:
                time.sleep(self.pause)
                self.steps += 1
                if isinstance(event, threading.Event):
                    event.wait(60)
                    continue
                if isinstance(event, Exception):
                    raise event
                if "tool_call" in event:
                    event = {"tool_call": event["tool_call"] | {"id": f"call_{uuid.uuid4().hex}"}}
                yield event
        finally:
            with self.lock:
                self.active -= 1

    def becomes_idle(self, seconds: float = 20.0) -> bool:
        end = time.monotonic() + seconds
        while self.active and time.monotonic() < end:
            time.sleep(0.01)
        return not self.active


@contextmanager
def served(app) -> Iterator[str]:
    """Serve an engine or an ASGI app on a free loopback port; yields the base URL."""
    app = create_app(app) if hasattr(app, "stream") else app
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive(), "the server did not stop"
