"""What the board needs of HTTP: routes by method and path, checked queries and JSON bodies, errors as JSON.

    api = Routes()
    @api.get("/api/runs/([^/]+)")
    def run(request: Request, name: str) -> Answer: ...

Plain functions run in worker threads, `async` ones in the loop. A KeyError becomes 404, a ValueError 400. `Routes` is
an ASGI app; that there is no framework under it halves the board's start. Leaves out: everything that only other
servers need (uploads, templates, sessions).
"""

import asyncio
import inspect
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin
from urllib.parse import parse_qs

from moonlet.tracker import format as f

D = TypeVar("D")
T = TypeVar("T")
log = logging.getLogger("moonlet.tracker")


@dataclass
class Answer:
    """`body`: bytes, or pieces of them that are sent as they are made."""

    body: bytes | Iterator[bytes]
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


def answer(content: Any, status: int = 200) -> Answer:
    return Answer(f.dumps(content).encode("utf-8", "backslashreplace"), status=status)


@dataclass
class Request:
    query: dict[str, list[str]]
    body: bytes

    def needed(self, name: str) -> str:
        """Raises ValueError when the query lacks it."""
        if name not in self.query:
            raise ValueError(f"the query lacks {name}: add {name}=")
        return self.query[name][-1]

    def text(self, name: str, default: D) -> str | D:
        return self.query[name][-1] if name in self.query else default

    def whole(self, name: str, default: D, low: int = -(2**63), high: int = 2**63 - 1) -> int | D:
        return self._number(int, name, default, low, high)

    def real(self, name: str, default: D, low: float, high: float) -> float | D:
        return self._number(float, name, default, low, high)

    def _number(self, kind: Any, name: str, default: Any, low: float, high: float) -> Any:
        given = self.text(name, None)
        if given is None:
            return default
        try:
            value = kind(given)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise ValueError(f"{name} is {given[:40]!r}: it must be a number from {low} to {high}")
        return value

    def json(self, kind: type[T]) -> T:
        """The body as a dataclass. Raises ValueError where it is none."""
        try:
            given = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the body is not JSON ({error})") from error
        return filled(kind, given, "the body")


def filled(kind: Any, given: Any, at: str) -> Any:
    """JSON as `kind`: a dataclass, list[...], dict, ... | None, a plain type or Any. Raises ValueError, naming it."""
    if kind is Any:
        return given
    if isinstance(kind, UnionType):
        return None if given is None else filled(get_args(kind)[0], given, at)
    structure = is_dataclass(kind)
    plain: Any = dict if structure else get_origin(kind) or kind
    accepted: Any = (int, float) if plain is float else plain
    odd = isinstance(given, bool) and plain is not bool  # which Python counts among the whole numbers
    if odd or not isinstance(given, accepted):
        raise ValueError(f"{at} is {f.dumps(given)[:60]}: it must be of type {plain.__name__}")
    if plain is list:
        return [filled(get_args(kind)[0], one, f"{at}[{i}]") for i, one in enumerate(given)]
    if plain is float and abs(given) > sys.float_info.max:
        raise ValueError(f"{at} is {f.dumps(given)[:60]}: it must fit a 64-bit float")
    if not structure:
        return given
    parts = {part.name: part for part in fields(kind)}
    for name, part in parts.items():
        if name not in given and part.default is MISSING and part.default_factory is MISSING:
            raise ValueError(f"{at} lacks {name}")
    return kind(**{name: filled(parts[name].type, one, name) for name, one in given.items() if name in parts})


class Routes:
    """`later`: adds routes when none of those that are here fits, once."""

    def __init__(self, later: "Callable[[Routes], None] | None" = None) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Any]] = []
        self._later = later
        self._lock = threading.Lock()

    def get(self, path: str) -> Callable[[T], T]:
        return self._add("GET", path)

    def post(self, path: str) -> Callable[[T], T]:
        return self._add("POST", path)

    def _add(self, method: str, path: str) -> Callable[[T], T]:
        def add(act: T) -> T:
            self._routes.append((method, re.compile(path), act))
            return act

        return add

    def load(self) -> None:
        """Add the routes that come later, now."""
        with self._lock:
            if self._later is not None:
                self._later(self)
                self._later = None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = bytearray()
        while True:  # what may be refused of a body is refused here, by whoever made `receive`
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        reply = await self._reply(scope, bytes(body))
        headers = {"content-type": reply.kind, **reply.headers}
        if isinstance(reply.body, bytes):
            headers["content-length"] = str(len(reply.body))
        packed = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": packed})
        if isinstance(reply.body, bytes):
            await send({"type": "http.response.body", "body": reply.body})
            return
        while piece := await asyncio.to_thread(next, reply.body, b""):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _reply(self, scope: dict[str, Any], body: bytes) -> Answer:
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        try:
            act, parts = await self._find(scope["method"], scope["path"])
            if act is None:
                return error(*((405, "not with this method") if parts else (404, "there is no such page")))
            request = Request(query, body)
            if inspect.iscoroutinefunction(act):
                return await act(request, *parts)
            return await asyncio.to_thread(act, request, *parts)
        except KeyError as wrong:
            return error(404, f"there is no {wrong.args[0]!r} here" if wrong.args else "not found")
        except ValueError as wrong:
            return error(400, str(wrong))
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            return error(500, "the board failed at this request: its log says why")

    async def _find(self, method: str, path: str) -> tuple[Any, tuple[str, ...]]:
        """The function for a path and the groups of its pattern; (None, some) when only the method does not fit."""
        while True:
            fits = [(way, act, match.groups()) for way, form, act in self._routes if (match := form.fullmatch(path))]
            for way, act, groups in fits:
                if way == method:
                    return act, groups
            if self._later is None:
                return None, tuple(way for way, *_ in fits)
            await asyncio.to_thread(self.load)


def error(status: int, message: str) -> Answer:
    return answer({"error": {"message": message.encode("utf-8", "replace").decode()}}, status)
