"""The routes of the board's API that read points, media and whole runs, as docs/tracker.md lists them."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.responses import Response, StreamingResponse

from moonlet.tracker import bundle, entries, push, wire
from moonlet.tracker.curves import Request as Window
from moonlet.tracker.index import edits, series_of
from moonlet.tracker.logfile import Points
from moonlet.tracker.routes import Board, Runs
from moonlet.tracker.web import Request, Routes, answer, file

MAX_SERIES = 2000  # of one request for curves
MAX_POINTS = 1_000_000  # of one JSON answer
ROWS = 10_000  # of a piece of CSV
NAME = re.compile("[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True)
class SeriesOf:
    run: str
    name: str
    attempt: int | None = None


@dataclass(frozen=True, kw_only=True)
class M4(Window):
    series: list[SeriesOf]


@dataclass(frozen=True)
class Group:
    runs: list[str]
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Aggregate(Window):
    groups: list[Group]
    name: str
    quantiles: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75])

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.quantiles) > 9 or not all(0 <= q <= 1 for q in self.quantiles):
            raise ValueError(f"quantiles {self.quantiles[:10]}: give at most 9 between 0 and 1")


@dataclass
class Rollouts(Runs):
    name: str | None = None
    prompt: str | None = None
    step: int | None = None
    limit: int = 200


@dataclass
class Bundle(Runs):
    names: list[str] | None = None


def binary(content: dict[str, Any]) -> Response:
    return file(wire.pack(content), "application/octet-stream")


def few(wanted: list[Any]) -> list[Any]:
    if len(wanted) > MAX_SERIES:
        raise ValueError(f"{len(wanted)} curves: ask for at most {MAX_SERIES} at once")
    return wanted


def add(api: Routes, board: Board) -> None:
    index, curves = board.index, board.curves

    @api.get("/api/runs/{run}")
    def run(request: Request, run_id: str) -> Response:
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

    @api.get("/api/runs/{run}/points")
    def raw_points(request: Request, run_id: str) -> Response:
        name, attempt, kind = request.needed("name"), request.whole("attempt", None), request.text("format", "json")
        offset, limit = request.whole("offset", 0, 0), request.whole("limit", MAX_POINTS, 1, MAX_POINTS)
        if kind not in ("json", "csv"):
            raise ValueError(f"format is {kind[:40]!r}: it must be json or csv")
        with index.lock:
            step, when, value = curves.run(run_id).raw(name, attempt)
        if kind == "csv":
            headers = {"content-disposition": attachment("points.csv")}
            return StreamingResponse(rows((step, when, value)), headers=headers, media_type="text/csv")
        part = slice(offset, offset + limit)
        columns = {"step": step[part].tolist(), "time": when[part].tolist(), "value": value[part].tolist()}
        return answer({**columns, "next": offset + limit if offset + limit < len(step) else None})

    @api.get("/api/runs/{run}/media")
    def media(request: Request, run_id: str) -> Response:
        kind, name = request.text("kind", None), request.text("name", None)
        after, limit = request.whole("after", -1), request.whole("limit", 100, 1, 10_000)
        with index.lock:
            found = [one for one in entries.listed(curves.run(run_id), kind, name) if one[0] > after]
            part = [entries.entry(*one) for one in found[:limit]]
        return answer({"entries": part, "next": part[-1]["index"] if len(found) > limit else None})

    @api.get("/api/runs/{run}/blob/{number:int}")
    def blob(request: Request, run_id: str, number: int) -> Response:
        with index.lock:
            data, kind = entries.blob(curves.run(run_id), number)
        headers = {} if kind else {"content-disposition": attachment(f"{number}.bin")}
        return file(data, kind or "application/octet-stream", headers)

    @api.get("/api/runs/{run}/histograms")
    def histograms(request: Request, run_id: str) -> Response:
        name = request.needed("name")
        with index.lock:
            return answer(entries.histograms(curves.run(run_id), name))

    @api.post("/api/m4")
    def m4(request: Request) -> Response:
        cursor, body = index.version, request.json(M4)
        return binary({**curves.m4([asdict(one) for one in few(body.series)], body), "cursor": cursor})

    @api.post("/api/aggregate")
    def aggregate(request: Request) -> Response:
        cursor, body = index.version, request.json(Aggregate)
        groups = [asdict(group) for group in few(body.groups)]
        return binary({**curves.aggregate(groups, body.name, body.quantiles, body), "cursor": cursor})

    @api.post("/api/rollouts")
    def rollouts(request: Request) -> Response:
        body = request.json(Rollouts)
        with index.lock:
            runs = {name: curves.run(name) for name in body.runs}
            return answer({"prompts": entries.rollouts(runs, body.name, body.prompt, body.step, max(body.limit, 1))})

    @api.post("/api/bundle")
    def make_bundle(request: Request) -> Response:
        body = request.json(Bundle)
        content = bundle.bundle(index, curves, board.files, body.runs, body.names)
        headers = {"content-disposition": attachment("moonlet-board.html")}
        return file(content, "text/html; charset=utf-8", headers)

    @api.post("/api/push/{run}/{writer}")  # guard.PUSH: it needs a token
    def receive(request: Request, name: str, writer: str) -> Response:
        if not all(NAME.fullmatch(given) for given in (name, writer)):
            raise ValueError(f"{name[:40]!r} and {writer[:40]!r}: letters, digits, _ and -, 1 to 128 of them")
        offset = request.whole("offset", 0, 0)
        return answer({"size": push.append(index.root, name, writer, offset, request.body)})


def rows(points: Points) -> Iterator[bytes]:
    yield b"step,time,value\r\n"
    for start in range(0, len(points[0]), ROWS):
        step, time, value = (column[start : start + ROWS].tolist() for column in points)
        yield "".join(f"{s},{t},{v}\r\n" for s, t, v in zip(step, time, value, strict=True)).encode()


def attachment(name: str) -> str:
    return f'attachment; filename="{name}"'
