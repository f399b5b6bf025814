"""What the board's routes need above Starlette: checked queries and JSON bodies, errors as JSON, routes added late.

    @api.get("/api/runs/{run}")
    def run(request: Request, run: str) -> Response: ...

Plain functions run in worker threads, `async` ones in the loop. A KeyError becomes 404, a ValueError 400. No FastAPI:
with pydantic it would double the time of a start.
"""

import asyncio
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request as Raw
from starlette.responses import Response

from moonlet.tracker import format as f

D = TypeVar("D")
T = TypeVar("T")


def answer(content: Any, status: int = 200) -> Response:
    return Response(f.dumps(content).encode("utf-8", "backslashreplace"), status, media_type="application/json")


def file(content: bytes, kind: str, headers: dict[str, str] | None = None) -> Response:
    return Response(content, headers={"content-type": kind, **(headers or {})})


@dataclass
class Request:
    query: QueryParams
    body: bytes

    def needed(self, name: str) -> str:
        """Raises ValueError when the query lacks it."""
        if name not in self.query:
            raise ValueError(f"the query lacks {name}: add {name}=")
        return self.query[name]

    def text(self, name: str, default: D) -> str | D:
        return self.query.get(name, default)

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


class Routes(Starlette):
    """The app. `later` adds routes to it when none of those that are here fits, once."""

    def __init__(self, later: "Callable[[Routes], None] | None" = None) -> None:
        handlers = {KeyError: _not_found, ValueError: _bad, HTTPException: _http, Exception: _failed}
        super().__init__(exception_handlers=handlers)
        self._later, self._lock, self._nothing = later, asyncio.Lock(), self.router.default
        self.router.redirect_slashes, self.router.default = False, self._load

    def get(self, path: str) -> Callable[[T], T]:
        return self._add("GET", path)

    def post(self, path: str) -> Callable[[T], T]:
        return self._add("POST", path)

    def _add(self, method: str, path: str) -> Callable[[Any], Any]:
        def add(act: Callable) -> Callable:
            async def endpoint(raw: Raw) -> Response:
                given = Request(raw.query_params, await raw.body()), *raw.path_params.values()
                return await (act(*given) if inspect.iscoroutinefunction(act) else run_in_threadpool(act, *given))

            self.router.add_route(path, endpoint, [method])
            return act

        return add

    async def _load(self, scope: Any, receive: Any, send: Any) -> None:
        """In place of a 404: with the routes that come later, once more."""
        async with self._lock:
            if self._later is not None:
                await run_in_threadpool(self._later, self)
                self._later, self.router.default = None, self._nothing
        await self.router(scope, receive, send)


async def _not_found(request: Raw, wrong: Exception) -> Response:
    return error(404, f"there is no {wrong.args[0]!r} here" if wrong.args else "not found")


async def _bad(request: Raw, wrong: Exception) -> Response:
    return error(400, str(wrong))


async def _http(request: Raw, wrong: Exception) -> Response:
    assert isinstance(wrong, HTTPException)
    return error(wrong.status_code, str(wrong.detail))


async def _failed(request: Raw, wrong: Exception) -> Response:
    return error(500, "the board failed at this request: its log says why")


def error(status: int, message: str) -> Response:
    return answer({"error": {"message": message.encode("utf-8", "replace").decode()}}, status)
