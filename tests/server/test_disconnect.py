"""A client that goes away, over a real socket, with the real engine: what its request held is free again at once."""

import json
import random
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from helpers import tiny_model_folder
from scripted import served

from moonlet.engine.cache import Pool
from moonlet.engine.engine import Engine
from moonlet.engine.request import Limits

CONTEXT = 1 << 16  # an answer without an end: minutes of work
USER = [{"role": "user", "content": "What is 12 + 30?"}]
LONG = [{"role": "user", "content": "1 " * 15_000}]
PATIENCE = 20.0  # seconds; the machine may be busy
ENDLESS: dict[str, float] = {}  # the bias against the end of a message


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tiny_model_folder(tmp_path_factory.mktemp("served") / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_max_length": CONTEXT}))
    made = Engine(folder, Limits(sequences=4, prefix_cache=False))
    assert made.context_length == CONTEXT
    ENDLESS[str(made.stop)] = -100.0
    return made


@pytest.fixture(scope="module")
def port(engine: Engine) -> Iterator[int]:
    with served(engine) as url:
        yield int(url.split(":")[2].removesuffix("/v1"))


def begun(port: int, **fields: object) -> socket.socket:
    """A connection on which a request for an answer without an end has been sent."""
    asked = {"model": "tiny", "messages": USER, "logit_bias": ENDLESS, "max_tokens": CONTEXT} | fields
    body = json.dumps(asked).encode()
    connection = socket.create_connection(("127.0.0.1", port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def until(happened: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not happened() and time.monotonic() < end:
        time.sleep(0.002)
    return happened()


def everything(pool: Pool) -> tuple:
    """What is free and what is used, whatever the order."""
    return sorted(pool.free_rows), sorted(pool.free_snapshots), sorted(pool.free_pages), pool.users, pool.used


def idle(engine: Engine) -> bool:
    s = engine.scheduler
    return not (s.inbox or s.waiting or s.running)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_while_it_is_answered(engine: Engine, port: int, stream: bool, n: int) -> None:
    before = everything(engine.scheduler.pool)
    with begun(port, stream=stream, n=n):
        assert until(lambda: len(engine.scheduler.running) == n and engine.scheduler.running[-1].made > 3)
        requests = list(engine.scheduler.running)
    assert until(lambda: idle(engine))
    assert all(request.cancelled and 3 < request.made < CONTEXT // 4 for request in requests)
    assert everything(engine.scheduler.pool) == before


@pytest.mark.parametrize("stream", [False, True])
def test_while_its_prompt_is_read(engine: Engine, port: int, stream: bool) -> None:
    before, prefilled = everything(engine.scheduler.pool), engine.scheduler.prefilled
    with begun(port, stream=stream, messages=LONG):
        assert until(lambda: engine.scheduler.prefilled > prefilled)
    assert until(lambda: idle(engine))
    assert engine.scheduler.prefilled - prefilled < 25_000  # of some 30,000 tokens
    assert everything(engine.scheduler.pool) == before


def test_while_it_waits_in_line(engine: Engine, port: int) -> None:
    before = everything(engine.scheduler.pool)
    with begun(port, n=4, stream=True):
        assert until(lambda: len(engine.scheduler.running) == 4)
        with begun(port, stream=True):
            assert until(lambda: len(engine.scheduler.waiting) == 1)
        assert until(lambda: not engine.scheduler.waiting)
        assert len(engine.scheduler.running) == 4  # nobody else is touched
    assert until(lambda: idle(engine))
    assert everything(engine.scheduler.pool) == before


def test_a_stream_that_nobody_has_read(engine: Engine) -> None:
    """As of the other choices, when the client goes before the first one's first piece."""
    before = everything(engine.scheduler.pool)
    stream = engine.stream(USER, max_tokens=CONTEXT, logit_bias={engine.stop: -100.0})
    assert until(lambda: bool(engine.scheduler.running))
    stream.close()
    assert until(lambda: idle(engine))
    assert everything(engine.scheduler.pool) == before


@pytest.mark.soak
def test_a_thousand_at_random_moments(engine: Engine, port: int) -> None:
    before, rng = everything(engine.scheduler.pool), random.Random(0)
    for _ in range(1000):
        with begun(port, stream=rng.random() < 0.5, n=rng.randint(1, 4)):
            time.sleep(rng.random() * 0.05)
    assert until(lambda: idle(engine))
    assert everything(engine.scheduler.pool) == before
