"""trackio's and MLflow's stores: SQLite databases, opened read-only, and MLflow's folder of text files.

trackio's media come as `typed` says, its traces as rollouts at the time of the import. MLflow's artifacts are left out.
"""

import json
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from moonlet.tracker.imports import fresh, kind_of, typed
from moonlet.tracker.imports.wandb import flat_numbers
from moonlet.tracker.media import Rollout
from moonlet.tracker.writer import Run

LARGEST = 1.7976931348623157e308  # MLflow stores infinities as this


def bring(source: Path, out: Path) -> Iterator[str]:
    """Import every run of a trackio or MLflow database; yields their folders below `out`."""
    database = sqlite3.connect(f"file:{source}?mode=ro", uri=True)
    try:
        yield from (_mlflow if kind_of(source) == "mlflow" else _trackio)(database, source, out)
    finally:
        database.close()


def _trackio(database: sqlite3.Connection, source: Path, out: Path) -> Iterator[str]:
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    key = "run_id" if "run_id" in {row[1] for row in database.execute("PRAGMA table_info(metrics)")} else "run_name"
    runs = database.execute(f"SELECT {key}, run_name FROM metrics GROUP BY {key} ORDER BY min(id)").fetchall()
    for ident, name in runs:
        twice = sum(other == name for _, other in runs) > 1
        folder = safe(f"{name}_{ident}" if twice else name)
        with Run(fresh(out / folder), {"imported_from": source.name}, name=name) as run:
            if "configs" in tables:
                for (config,) in database.execute(f"SELECT config FROM configs WHERE {key} = ?", (ident,)):
                    run.config.update(json.loads(config))
            columns: dict[str, list[tuple[int, float, float]]] = {}
            rows = f"SELECT timestamp, step, metrics FROM metrics WHERE {key} = ? ORDER BY id"
            for stamp, step, metrics in database.execute(rows, (ident,)):
                time, found = datetime.fromisoformat(stamp).timestamp(), json.loads(metrics)
                for metric, value in found.items():
                    if isinstance(value, dict) and "_type" in value:
                        typed.put(run, metric, value, int(step), time, source.parent / "media")
                for metric, value in flat_numbers(found):
                    if isinstance(value, str):
                        run.event("text", metric, step, {"text": value}, walltime=time)
                    else:
                        columns.setdefault(metric, []).append((int(step), time, value))
            if "system_metrics" in tables:
                rows = f"SELECT timestamp, metrics FROM system_metrics WHERE {key} = ? ORDER BY id"
                for stamp, metrics in database.execute(rows, (ident,)):
                    time = datetime.fromisoformat(stamp).timestamp()
                    for metric, value in flat_numbers(json.loads(metrics)):
                        if not isinstance(value, str):
                            columns.setdefault(f"system/{metric}", []).append((int(time), time, value))
            if "traces" in tables:
                rows = f"SELECT step, key, messages FROM traces WHERE {key} = ? ORDER BY rowid"
                for step, trace, messages in database.execute(rows, (ident,)):
                    Rollout(json.loads(messages)).log_to(run, trace, step)
            _put(run, columns)
        yield folder


def _mlflow(database: sqlite3.Connection, source: Path, out: Path) -> Iterator[str]:
    runs = "SELECT run_uuid, runs.name, experiments.name FROM runs JOIN experiments USING (experiment_id)"
    for ident, name, experiment in database.execute(runs).fetchall():
        folder = f"{safe(experiment)}/{safe(ident)}"
        with Run(fresh(out / folder), {"imported_from": source.name}, name=name) as run:
            params = database.execute("SELECT key, value FROM params WHERE run_uuid = ?", (ident,))
            run.config.update({key: parsed(value) for key, value in params})
            tags = database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (ident,))
            run.config.update({f"tags.{key}": value for key, value in tags if not key.startswith("mlflow.")})
            columns: dict[str, list[tuple[int, float, float]]] = {}
            rows = "SELECT key, value, timestamp, step, is_nan FROM metrics WHERE run_uuid = ? ORDER BY step, timestamp"
            for key, value, stamp, step, is_nan in database.execute(rows, (ident,)):
                columns.setdefault(key, []).append((step, stamp / 1000, float("nan") if is_nan else _infinite(value)))
            _put(run, columns)
        yield folder


def bring_files(source: Path, out: Path) -> Iterator[str]:
    """MLflow's mlruns/EXPERIMENT/RUN/{params,metrics,tags}/KEY."""
    for meta in sorted(source.glob("*/*/meta.yaml")):
        place = meta.parent
        folder = f"{safe(place.parent.name)}/{safe(place.name)}"
        with Run(fresh(out / folder), {"imported_from": place.name}) as run:
            params = [path for path in sorted(place.glob("params/**/*")) if path.is_file()]
            run.config.update({_key(path, place / "params"): parsed(path.read_text()) for path in params})
            columns: dict[str, list[tuple[int, float, float]]] = {}
            for path in sorted(place.glob("metrics/**/*")):
                if path.is_file():
                    lines = [line.split() for line in path.read_text().splitlines() if line]
                    points = [
                        (int(part[2]) if len(part) > 2 else 0, int(part[0]) / 1000, float(part[1])) for part in lines
                    ]
                    columns[_key(path, place / "metrics")] = points
            _put(run, columns)
        yield folder


def _put(run: Run, columns: dict[str, list[tuple[int, float, float]]]) -> None:
    for key, points in columns.items():
        step, time, value = zip(*points, strict=True)
        run.add_points(key, step, time, value)


def _key(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix()


def _infinite(value: float) -> float:
    return float("inf") * (1 if value > 0 else -1) if abs(value) >= LARGEST else value


def parsed(value: str) -> Any:
    """MLflow keeps parameters as text: numbers and truth values as what they were."""
    try:
        return json.loads(value)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(value, value)


def safe(name: str) -> str:
    """A folder's name for any text: what is no letter, digit, dot, _ or - becomes _."""
    kept = "".join(c if c.isalnum() or c in "._-" else "_" for c in name).lstrip(".")[:100]
    return kept or "run"
