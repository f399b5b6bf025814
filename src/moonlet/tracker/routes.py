"""The routes of the board's API, as docs/tracker.md lists them: those that read, and those that change something.

Routes are plain functions that run in worker threads; the index's lock keeps them apart from the scan.
"""

import asyncio
import csv
import io
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from moonlet.tracker import bundle, entries, filters, push, wire
from moonlet.tracker import format as f
from moonlet.tracker.curves import Curves
from moonlet.tracker.curves import Request as Window
from moonlet.tracker.index import Index, edits, series_of

MAX_SERIES = 2000  # of one request for curves
VERSION = 1
Ids = Annotated[list[str], Field(max_length=20_000)]


@dataclass
class Board:
    index: Index
    curves: Curves
    write_token: str
    files: dict[str, tuple[bytes, str]]
    page: Path
    _waiting: asyncio.Task[None] | None = None
    _fields: tuple[int, dict[str, Any]] = field(default=(-1, {}))

    def run(self, name: str) -> dict[str, Any]:
        return self.index.records[name]

    async def news(self, seconds: float) -> None:
        """Wait until the index has changed, at most so long. However many wait, one task looks."""
        if self._waiting is None or self._waiting.done():
            self._waiting = asyncio.create_task(self._change(self.index.version))
        await asyncio.wait([self._waiting], timeout=seconds)

    async def _change(self, version: int) -> None:
        while self.index.version == version:
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


class SeriesOf(BaseModel):
    run: str
    name: str
    attempt: int | None = None


class WindowOf(BaseModel):
    x: str = "step"
    x0: float | None = None
    x1: float | None = None
    pixels: int = Field(1000, ge=1, le=20_000)
    scale: Literal["linear", "log"] = "linear"
    smooth: float = Field(0.0, ge=0, lt=1)

    def window(self) -> Window:
        return Window(self.x, self.x0, self.x1, self.pixels, self.scale, self.smooth)


class M4(WindowOf):
    series: list[SeriesOf] = Field(max_length=MAX_SERIES)


class Group(BaseModel):
    label: str = ""
    runs: Ids


class Aggregate(WindowOf):
    groups: list[Group] = Field(max_length=MAX_SERIES)
    name: str
    quantiles: list[Annotated[float, Field(ge=0, le=1)]] = Field([0.25, 0.5, 0.75], max_length=9)


class Runs(BaseModel):
    runs: Ids


class Rollouts(Runs):
    name: str | None = None
    prompt: str | None = None
    step: int | None = None
    limit: int = Field(200, ge=1, le=10_000)


class Bundle(Runs):
    names: list[str] | None = None


class Edit(Runs):
    set: dict[str, Any]


class Undo(BaseModel):
    undo: int


class View(BaseModel):
    name: str = Field(min_length=1, max_length=200)
    state: Any = None


class Sql(BaseModel):
    sql: str = Field(max_length=100_000)


def answer(content: Any) -> Response:
    return Response(f.dumps(content).encode("utf-8", "backslashreplace"), media_type="application/json")


def binary(content: dict[str, Any]) -> Response:
    return Response(wire.pack(content), media_type="application/octet-stream")


def matching(board: Board, expression: str, search: str, deleted: bool) -> list[dict[str, Any]]:
    words = search.lower().split()
    runs = [run for run in list(board.index.records.values()) if deleted or not run["deleted"]]
    if words:
        runs = [run for run in runs if all(word in searched(run) for word in words)]
    return filters.choose(runs, expression)


def searched(run: dict[str, Any]) -> str:
    return " ".join([run["id"], run["name"], run["folder"], run["notes"] or "", *run["tags"]]).lower()


def reading(board: Board) -> APIRouter:
    api = APIRouter()
    index, curves = board.index, board.curves

    @api.get("/")
    def home() -> Response:
        return page("index.html")

    @api.get("/page/{name:path}")
    def page(name: str) -> Response:
        data, kind = board.files[name]
        return Response(data, media_type=kind)

    @api.get("/api/session")
    def session() -> Response:
        facts = {"token": board.write_token, "version": VERSION, "root": str(index.root), "cursor": index.version}
        return answer(facts)

    @api.get("/api/changes")
    async def changes(since: int = 0, wait: Annotated[float, Query(ge=0, le=30)] = 20) -> Response:
        end = time.monotonic() + wait
        while index.version <= since and (left := end - time.monotonic()) > 0:
            await board.news(left)
        with index.lock:
            news = {
                "cursor": index.version,
                "runs": [name for name, version in index.changed.items() if version > since],
                "removed": [name for name, version in index.removed.items() if version > since],
            }
        return answer({**news, "scanning": index.scanning})

    @api.get("/api/runs")
    def runs(
        filter: str = "",
        search: str = "",
        sort: str = "-created",
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=0, le=100_000)] = 200,
        deleted: int = 0,
        columns: str = "",
        column: Annotated[list[str] | None, Query()] = None,
    ) -> Response:
        cursor = index.version
        found = matching(board, filter, search, bool(deleted))
        if sort:
            key = filters.sort_key(filters.field(sort.removeprefix("-")))
            absent = [run for run in found if key(run)[0] == 2]  # last in either direction
            found = sorted((run for run in found if key(run)[0] != 2), key=key, reverse=sort.startswith("-")) + absent
        facts = {"total": len(index.records), "matched": len(found), "cursor": cursor}
        part = found[offset : offset + limit]
        names = [*(column or []), *(name for name in columns.split(",") if name)]
        if not names:
            return answer({**facts, "runs": part})
        getters = [filters.field(name) for name in names]
        return answer({**facts, "columns": names, "rows": [[get(run) for get in getters] for run in part]})

    @api.get("/api/fields")
    def fields() -> Response:
        return answer(board.fields())

    @api.get("/api/groups")
    def groups(by: str, of: str = "", filter: str = "") -> Response:
        getters = [filters.field(name) for name in by.split(",") if name]
        measure = filters.field(of) if of else None
        found: dict[str, dict[str, Any]] = {}
        for run in matching(board, filter, "", False):
            key = [get(run) for get in getters]
            group = found.setdefault(f.dumps(key), {"key": key, "runs": [], "values": []})
            group["runs"].append(run["id"])
            value = filters.number(measure(run)) if measure else None
            if isinstance(value, int | float) and value == value:  # noqa: PLR0124
                group["values"].append(float(value))
        return answer({"groups": [grouped(group) for group in found.values()]})

    @api.get("/api/runs/{run_id}")
    def run(run_id: str) -> Response:
        with index.lock:
            record, data = board.run(run_id), curves.run(run_id)
            attempts = [
                {
                    "attempt": source.attempt,
                    "host": source.header.get("host"),
                    "pid": source.header.get("pid"),
                    "started": source.header.get("started"),
                    "updated": max([event.time for event in source.events[-1:]], default=None),
                    "ended": source.end["time"] if source.end else None,
                    "exit": source.end["exit"] if source.end else None,
                    "points": source.points,
                    "damage": source.damage,
                }
                for source in data.sources.values()
            ]
            gaps = [
                {**event.data, "attempt": source.attempt}
                for source in data.sources.values()
                for event in source.events
                if event.kind == "gap"
            ]
            alerts = [entries.entry(*one) for one in entries.listed(data, "alert")]
            alerts += edits(index.folder(run_id))[1]
            more = {"series": series_of(data), "attempts": attempts, "gaps": gaps, "media": entries.counts(data)}
            return answer({**record, **more, "code": data.fields("code"), "alerts": alerts})

    @api.get("/api/runs/{run_id}/points")
    def raw_points(
        run_id: str, name: str, attempt: int | None = None, format: Literal["json", "csv"] = "json"
    ) -> Response:
        with index.lock:
            step, when, value = curves.run(run_id).raw(name, attempt)
        if format == "json":
            return answer({"step": step.tolist(), "time": when.tolist(), "value": value.tolist()})
        out = io.StringIO()
        table = csv.writer(out)
        table.writerow(["step", "time", "value"])
        table.writerows(zip(step.tolist(), when.tolist(), map(repr, value.tolist()), strict=True))
        headers = {"content-disposition": 'attachment; filename="points.csv"'}
        return Response(out.getvalue(), media_type="text/csv", headers=headers)

    @api.get("/api/runs/{run_id}/media")
    def media(
        run_id: str,
        kind: str | None = None,
        name: str | None = None,
        after: int = -1,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    ) -> Response:
        with index.lock:
            found = [one for one in entries.listed(curves.run(run_id), kind, name) if one[0] > after]
            part = [entries.entry(*one) for one in found[:limit]]
        return answer({"entries": part, "next": part[-1]["index"] if len(found) > limit else None})

    @api.get("/api/runs/{run_id}/blob/{number}")
    def blob(run_id: str, number: int) -> Response:
        with index.lock:
            data, kind = entries.blob(curves.run(run_id), number)
        headers = {} if kind else {"content-disposition": f'attachment; filename="{number}.bin"'}
        return Response(data, media_type=kind or "application/octet-stream", headers=headers)

    @api.get("/api/runs/{run_id}/histograms")
    def histograms(run_id: str, name: str) -> Response:
        with index.lock:
            return answer(entries.histograms(curves.run(run_id), name))

    @api.post("/api/m4")
    def m4(body: M4) -> Response:
        cursor = index.version
        return binary({**curves.m4([one.model_dump() for one in body.series], body.window()), "cursor": cursor})

    @api.post("/api/aggregate")
    def aggregate(body: Aggregate) -> Response:
        cursor, groups = index.version, [group.model_dump() for group in body.groups]
        return binary({**curves.aggregate(groups, body.name, body.quantiles, body.window()), "cursor": cursor})

    @api.post("/api/rollouts")
    def rollouts(body: Rollouts) -> Response:
        with index.lock:
            runs = {name: curves.run(name) for name in body.runs}
            return answer({"prompts": entries.rollouts(runs, body.name, body.prompt, body.step, body.limit)})

    @api.post("/api/diff")
    def diff(body: Runs) -> Response:
        configs = [board.run(name)["config"] for name in body.runs]
        keys = sorted({key for config in configs for key in config})
        rows = [{"key": key, "values": [config.get(key) for config in configs]} for key in keys]
        same = [len({f.dumps(config.get(key)) for config in configs}) <= 1 for key in keys]
        return answer({"runs": body.runs, "keys": [{**row, "same": s} for row, s in zip(rows, same, strict=True)]})

    @api.get("/api/views")
    def views() -> Response:
        return answer({"views": saved_views(index.root)})

    @api.post("/api/bundle")
    def make_bundle(body: Bundle) -> Response:
        headers = {"content-disposition": 'attachment; filename="moonlet-board.html"'}
        content = bundle.bundle(index, curves, board.files, body.runs, body.names)
        return Response(content, media_type="text/html; charset=utf-8", headers=headers)

    return api


def grouped(group: dict[str, Any]) -> dict[str, Any]:
    values = np.array(group.pop("values"))
    if not len(values):
        return {**group, "n": 0, "mean": None, "std": None, "min": None, "max": None, "quantiles": {}}
    with np.errstate(invalid="ignore"):
        quantiles = {str(q): float(np.quantile(values, q)) for q in (0.25, 0.5, 0.75)}
        ends = {"min": float(values.min()), "max": float(values.max()), "quantiles": quantiles}
        return {**group, "n": len(values), "mean": float(values.mean()), "std": float(values.std()), **ends}


def writing(board: Board) -> APIRouter:
    """Every route here is in guard.WRITES or below guard.PUSH."""
    api = APIRouter()
    index = board.index

    @api.post("/api/edit")
    def edit(body: Edit) -> Response:
        return answer({"undo": index.edit(body.runs, body.set)})

    @api.post("/api/undo")
    def undo(body: Undo) -> Response:
        return answer({"runs": index.undo(body.undo)})

    @api.post("/api/purge")
    def purge(body: Runs) -> Response:
        index.purge(body.runs)
        return answer({"runs": body.runs})

    @api.post("/api/views")
    def save(body: View) -> Response:
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
    def run_query(body: Sql) -> Response:
        from moonlet.tracker.sql import query

        columns, rows = query(body.sql, index.root, safe=True)
        return answer({"columns": columns, "rows": rows})

    @api.post("/api/push/{run}/{writer}")
    async def receive(run: str, writer: str, request: Request, offset: int = 0) -> Response:
        if not all(re.fullmatch("[A-Za-z0-9_-]{1,128}", part) for part in (run, writer)):
            raise KeyError(run)
        data = await request.body()
        return answer({"size": push.append(index.root, run, writer, offset, data)})

    return api


def saved_views(root: Path) -> list[dict[str, Any]]:
    try:
        return json.loads((root / ".moonlet-board" / "views.json").read_bytes())
    except (OSError, ValueError):
        return []
