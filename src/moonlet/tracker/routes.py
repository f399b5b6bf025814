"""The routes of the board's API that live from the index alone: the page, the table of runs, news, edits, views.

docs/tracker.md lists all; those that read points or media are in `routes_data`, which is loaded when it is first
needed. Routes are plain functions that run in worker threads; the index's lock keeps them apart from the scan.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from moonlet.tracker import filters
from moonlet.tracker import format as f
from moonlet.tracker.index import Index
from moonlet.tracker.web import Request, Routes, answer, file

if TYPE_CHECKING:
    from moonlet.tracker.curves import Curves

VERSION = 1
MAX_RUNS = 20_000  # ids in one body


@dataclass
class Board:
    index: Index
    write_token: str
    files: dict[str, tuple[bytes, str]]
    page: Path
    closing: bool = False
    _waiting: asyncio.Task[None] | None = None
    _fields: tuple[int, dict[str, Any]] = field(default=(-1, {}))

    @cached_property
    def curves(self) -> "Curves":
        from moonlet.tracker.curves import Curves  # brings numpy, which a start does without

        return Curves(self.index)

    def run(self, name: str) -> dict[str, Any]:
        return self.index.records[name]

    async def news(self, seconds: float) -> None:
        """Wait until the index has changed, at most so long. However many wait, one task looks."""
        if self._waiting is None or self._waiting.done():
            self._waiting = asyncio.create_task(self._change(self.index.version))
        await asyncio.wait([self._waiting], timeout=seconds)

    async def _change(self, version: int) -> None:
        while self.index.version == version and not self.closing:
            await asyncio.sleep(0.1)

    def fields(self) -> dict[str, Any]:
        """Every key of any run with the number of runs that have it."""
        if self._fields[0] != self.index.version:
            found: dict[str, dict[str, int]] = {"config": {}, "summary": {}, "tags": {}}
            version = self.index.version
            for record in list(self.index.records.values()):
                for kind, keys in found.items():
                    for key in record[kind]:
                        keys[key] = keys.get(key, 0) + 1
            found["series"] = found["summary"]
            tables = {k: [{"name": n, "runs": c} for n, c in sorted(keys.items())] for k, keys in found.items()}
            self._fields = (version, tables)
        return self._fields[1]


@dataclass
class Runs:
    runs: list[str]

    def __post_init__(self) -> None:
        if len(self.runs) > MAX_RUNS:
            raise ValueError(f"{len(self.runs)} runs: name at most {MAX_RUNS} at once")


@dataclass
class Edit(Runs):
    set: dict[str, Any]


@dataclass
class Undo:
    undo: int


@dataclass
class View:
    name: str
    state: Any = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= 200:
            raise ValueError(f"the view's name has {len(self.name)} characters: 1 to 200 are allowed")


@dataclass
class Sql:
    sql: str


def matching(board: Board, expression: str, search: str, deleted: bool) -> list[dict[str, Any]]:
    words = search.lower().split()
    runs = [run for run in list(board.index.records.values()) if deleted or not run["deleted"]]
    if words:
        runs = [run for run in runs if all(word in searched(run) for word in words)]
    return filters.choose(runs, expression)


def searched(run: dict[str, Any]) -> str:
    return " ".join([run["id"], run["name"], run["folder"], run["notes"] or "", *run["tags"]]).lower()


def reading(api: Routes, board: Board) -> None:
    index = board.index

    @api.get("/")
    def home(request: Request) -> Response:
        return file(*board.files["index.html"])

    @api.get("/page/{name:path}")
    def page(request: Request, name: str) -> Response:
        return file(*board.files[name])

    @api.get("/api/session")
    def session(request: Request) -> Response:
        facts = {"token": board.write_token, "version": VERSION, "root": str(index.root), "cursor": index.version}
        return answer({**facts, "scanning": index.scanning})

    @api.get("/api/changes")
    async def changes(request: Request) -> Response:
        since = request.whole("since", 0)
        end = time.monotonic() + request.real("wait", 20.0, 0, 30)
        while index.version <= since and not board.closing and (left := end - time.monotonic()) > 0:
            await board.news(left)
        with index.lock:
            news = {
                "cursor": index.version,
                "runs": [name for name, version in index.changed.items() if version > since],
                "removed": [name for name, version in index.removed.items() if version > since],
            }
        return answer({**news, "scanning": index.scanning})

    @api.get("/api/runs")
    def runs(request: Request) -> Response:
        sort, offset = request.text("sort", "-created"), request.whole("offset", 0, 0)
        limit, deleted = request.whole("limit", 200, 0, 100_000), request.whole("deleted", 0)
        cursor = index.version
        found = matching(board, request.text("filter", ""), request.text("search", ""), bool(deleted))
        if sort:
            key = filters.sort_key(filters.field(sort.removeprefix("-")))
            absent = [run for run in found if key(run)[0] == 2]  # last in either direction
            found = sorted((run for run in found if key(run)[0] != 2), key=key, reverse=sort.startswith("-")) + absent
        facts = {"total": len(index.records), "matched": len(found), "cursor": cursor}
        part = found[offset : offset + limit]
        names = [*request.query.getlist("column"), *(name for name in request.text("columns", "").split(",") if name)]
        if not names:
            return answer({**facts, "runs": part})
        getters = [filters.field(name) for name in names]
        return answer({**facts, "columns": names, "rows": [[get(run) for get in getters] for run in part]})

    @api.get("/api/fields")
    def fields(request: Request) -> Response:
        return answer(board.fields())

    @api.post("/api/diff")
    def diff(request: Request) -> Response:
        wanted = request.json(Runs).runs
        configs = [board.run(name)["config"] for name in wanted]
        keys = sorted({key for config in configs for key in config})
        rows = [{"key": key, "values": [config.get(key) for config in configs]} for key in keys]
        same = [len({f.dumps(config.get(key)) for config in configs}) <= 1 for key in keys]
        return answer({"runs": wanted, "keys": [{**row, "same": s} for row, s in zip(rows, same, strict=True)]})

    @api.get("/api/views")
    def views(request: Request) -> Response:
        return answer({"views": saved_views(index.root)})


def writing(api: Routes, board: Board) -> None:
    """Every route here is in guard.WRITES."""
    index = board.index

    @api.post("/api/edit")
    def edit(request: Request) -> Response:
        body = request.json(Edit)
        return answer({"undo": index.edit(body.runs, body.set)})

    @api.post("/api/undo")
    def undo(request: Request) -> Response:
        return answer({"runs": index.undo(request.json(Undo).undo)})

    @api.post("/api/purge")
    def purge(request: Request) -> Response:
        wanted = request.json(Runs).runs
        index.purge(wanted)
        return answer({"runs": wanted})

    @api.post("/api/views")
    def save(request: Request) -> Response:
        body = request.json(View)
        with index.lock:
            views = [view for view in saved_views(index.root) if view["name"] != body.name]
            views += [{"name": body.name, "state": body.state}] if body.state is not None else []
            place = index.root / ".moonlet-board" / "views.json"
            place.parent.mkdir(exist_ok=True)
            part = place.with_suffix(".tmp")
            part.write_bytes(f.dumps(views).encode("utf-8", "backslashreplace"))
            part.replace(place)
        return answer({"views": views})

    @api.post("/api/query")
    def run_query(request: Request) -> Response:
        from moonlet.tracker.sql import query

        columns, rows = query(request.json(Sql).sql, index.root, safe=True)
        return answer({"columns": columns, "rows": rows})


def saved_views(root: Path) -> list[dict[str, Any]]:
    try:
        return json.loads((root / ".moonlet-board" / "views.json").read_bytes())
    except (OSError, ValueError):
        return []
