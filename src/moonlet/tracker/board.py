"""`moonlet board`: the page of a folder of runs, and what else is done with their logs.

moonlet board [DIR]                          serve it
moonlet board query "SELECT ..." [--runs DIR]
moonlet board export --runs DIR --out points.parquet (or .csv)
moonlet board import SOURCE --out DIR [--follow]
moonlet board compact [DIR ...]
moonlet board push SPOOL --to URL --token T
"""

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

WORDS = ("query", "export", "import", "compact", "push")


def main(
    arguments: list[str], runs: Path, out: Path | None, follow: bool, rules: Path | None, to: str | None, **options: Any
) -> int:
    """Returns the exit code: 0, or 2 for bad input, which is told in one line."""
    word, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in WORDS else ("serve", arguments)
    try:
        if word == "query":
            _query(" ".join(rest), runs)
        elif word == "export":
            from moonlet.tracker.sql import export

            export(runs, _given(out, "--out points.parquet"))
        elif word == "import":
            from moonlet.tracker.imports import bring

            for line in bring(Path(_one(rest, "a folder or file")), _given(out, "--out RUNS"), follow):
                print(line, flush=True)
        elif word == "compact":
            _compact([Path(one) for one in rest] or [runs])
        elif word == "push":
            _push(Path(_one(rest, "a spool folder")), to, options["token"])
        else:
            from moonlet.tracker.server import serve

            serve(Path(rest[0]) if rest else runs, rules=rules, **options)
    except ValueError as error:
        print(f"moonlet: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


def _query(sql: str, runs: Path) -> None:
    from moonlet.tracker.sql import query

    columns, rows = query(sql, runs)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(columns)
    table.writerows([json.dumps(cell) if isinstance(cell, list | dict) else cell for cell in row] for row in rows)


def _compact(folders: list[Path]) -> None:
    from moonlet.tracker.compact import compact_run
    from moonlet.tracker.index import discover

    for root in folders:
        if not root.is_dir():
            raise ValueError(f"{root} is not a folder: give a folder of runs")
        for folder in discover(root):
            for path in compact_run(root / folder):
                print(path)


def _push(spool: Path, to: str | None, token: str | None) -> None:
    from moonlet.tracker.push import Pusher

    if not to or not token:
        raise ValueError("push needs --to URL and --token (of a team board, or of its /api/session)")
    pusher = Pusher(to, token, spool, spool.resolve().name)
    while True:
        pusher.send()
        if pusher.error:
            print(f"moonlet: {pusher.error}; trying again", file=sys.stderr)
        time.sleep(1)


def _one(rest: list[str], what: str) -> str:
    if len(rest) != 1:
        raise ValueError(f"give {what}")
    return rest[0]


def _given(path: Path | None, what: str) -> Path:
    if path is None:
        raise ValueError(f"say where to: {what}")
    return path
