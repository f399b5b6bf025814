"""SQL over runs: `query("SELECT run, max(value) FROM points WHERE name = 'loss' GROUP BY run", "runs")`.

DuckDB (an extra) answers over two tables: `points` (run, name, attempt, step, time, value: every point) and `runs` (id,
name, folder, state, created, updated, points, last_step, tags, config and summary as JSON). `points.run` is the id. The
points are copied into a temporary database that may spill to disk, only when the text names the table.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from moonlet.tracker import format as f
from moonlet.tracker.index import Index
from moonlet.tracker.reader import RunData

POINTS = "(run VARCHAR, name VARCHAR, attempt INTEGER, step BIGINT, time DOUBLE, value DOUBLE)"
RUNS = "(id VARCHAR, name VARCHAR, folder VARCHAR, state VARCHAR, created DOUBLE, updated DOUBLE, points BIGINT, "
RUNS += "last_step BIGINT, tags VARCHAR[], config JSON, summary JSON)"


def query(sql: str, root: str | os.PathLike[str] = "runs", safe: bool = False) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows. `safe`: the text comes from elsewhere, so it reaches no file. Raises ValueError."""
    import duckdb

    with tempfile.TemporaryDirectory(prefix="moonlet-sql-") as scratch:
        connection = _filled(Path(root), sql, scratch)
        try:
            if safe:
                connection.execute("SET enable_external_access = false")
                connection.execute("SET lock_configuration = true")
            found = connection.execute(sql)
            columns = [column[0] for column in found.description or []]
            return columns, [list(row) for row in found.fetchall()]
        except duckdb.Error as error:
            raise ValueError(f"DuckDB: {error}") from error
        finally:
            connection.close()


def export(root: str | os.PathLike[str], path: Path) -> None:
    """Every point of every run to a .parquet or .csv file. Raises ValueError for another ending."""
    kinds = {".parquet": "FORMAT parquet, COMPRESSION zstd", ".csv": "FORMAT csv, HEADER"}
    if path.suffix not in kinds:
        raise ValueError(f"{path} must end in .parquet or .csv")
    place = str(path).replace("'", "''")
    query(f"COPY points TO '{place}' ({kinds[path.suffix]})", root)


def _filled(root: Path, sql: str, scratch: str) -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise ValueError("SQL needs the package duckdb: pip install 'moonlet[tracker]'") from error

    connection = duckdb.connect(str(Path(scratch, "points.duckdb")))
    connection.execute(f"CREATE TABLE points {POINTS}")
    connection.execute(f"CREATE TABLE runs {RUNS}")
    index = Index(root)
    index.scan()
    keys = ("id", "name", "folder", "state", "created", "updated", "points", "last_step", "tags")
    for name, record in index.records.items():
        row = [*(record[key] for key in keys), f.dumps(record["config"]), f.dumps(record["summary"])]
        connection.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        if "points" in sql.lower():
            _insert(connection, name, index.folder(name))
    return connection


def _insert(connection: Any, name: str, folder: Path) -> None:
    run = RunData(folder)
    run.refresh()
    for source in run.sources.values():
        for series in source.stats:
            step, time, value = source.raw(series)
            columns = {"step": step, "time": time, "value": value}
            connection.register("incoming", columns)
            head = "INSERT INTO points SELECT ?, ?, ?, step, time, value FROM incoming"
            connection.execute(head, [name, series, source.attempt])
            connection.unregister("incoming")
