"""CSV and JSON lines: one row a step, one column a metric. Text columns are left out.

The step is the first of STEPS that is there (else the row's number), the time the first of TIMES (else the file's).
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moonlet.tracker.imports import fresh
from moonlet.tracker.imports.wandb import flat_numbers
from moonlet.tracker.writer import Run

STEPS = ("step", "_step", "global_step", "Step", "iteration", "iter", "epoch")
TIMES = ("time", "_timestamp", "timestamp", "wall_time", "Wall time")


def bring(source: Path, out: Path) -> Iterator[str]:
    """Import the file as the run `out`/its name. Raises ValueError for a row that cannot be read."""
    columns: dict[str, tuple[list[int], list[float], list[float]]] = {}
    default = source.stat().st_mtime
    for number, row in enumerate(_rows(source)):
        flat = {name: number_of(value) for name, value in flat_numbers(row)}
        step = next((flat.pop(name) for name in STEPS if flat.get(name) is not None), None)
        time = next((flat.pop(name) for name in TIMES if flat.get(name) is not None), None)
        for name, value in flat.items():
            if value is not None:
                steps, times, values = columns.setdefault(name, ([], [], []))
                steps.append(number if step is None else int(step))
                times.append(default if time is None else time)
                values.append(value)
    with Run(fresh(out / source.stem), {"imported_from": source.name}) as run:
        for name, (steps, times, values) in columns.items():
            run.add_points(name, steps, times, values)
    yield source.stem


def number_of(value: Any) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    with open(source, newline="", encoding="utf-8") as file:
        if source.suffix == ".csv":
            for row in csv.DictReader(file):
                yield {str(name): value for name, value in row.items() if name is not None and isinstance(value, str)}
            return
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{source} line {number} is not JSON: mend or remove it") from error
            if isinstance(row, dict):
                yield {**row, **row["values"]} if isinstance(row.get("values"), dict) else row
