"""Runs of other trackers as runs of this one: `bring(source, out)` finds out what the source is.

TensorBoard folders, wandb's offline files, trackio's and MLflow's stores, CSV and JSON lines. Nothing of those packages
is needed. What was imported lies in `out` as ordinary runs; the source is only read.
"""

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

FOLLOW_SECONDS = 0.3


def bring(source: Path, out: Path, follow: bool = False) -> Iterator[str]:
    """Import; yields a line for each run. `follow` (TensorBoard) goes on as training writes, until interrupted.

    Raises ValueError when the source is nothing that is known, or a run is already there.
    """
    kind = kind_of(source)
    if follow and kind != "tensorboard":
        raise ValueError(f"{source} is of {kind}: only TensorBoard folders can be followed")
    if kind == "tensorboard":
        yield from _tensorboard(source, out, follow)
        return
    if kind == "wandb":
        from moonlet.tracker.imports.wandb import bring as each
    elif kind in ("trackio", "mlflow"):
        from moonlet.tracker.imports.databases import bring as each
    elif kind == "mlruns":
        from moonlet.tracker.imports.databases import bring_files as each
    else:
        from moonlet.tracker.imports.tables import bring as each
    for name in each(source, out):
        yield f"{out / name}"


def kind_of(source: Path) -> str:
    """tensorboard, wandb, trackio, mlflow (a database), mlruns (its folder form), csv or jsonl."""
    if not source.exists():
        raise ValueError(f"{source} is not there: give a folder or a file to import")
    if source.is_dir():
        for kind, pattern in (("tensorboard", "*tfevents*"), ("wandb", "*.wandb"), ("mlruns", "*/*/meta.yaml")):
            if next(source.rglob(pattern), None):
                return kind
    elif source.suffix in (".csv", ".jsonl", ".wandb"):
        return source.suffix[1:]
    elif source.suffix in (".db", ".sqlite", ".sqlite3"):
        database = sqlite3.connect(f"file:{source}?mode=ro", uri=True)
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        if "experiments" in tables:
            return "mlflow"
        if "metrics" in tables:
            return "trackio"
    raise ValueError(
        f"{source} is nothing that can be imported: a folder with event files or .wandb files or mlruns, a trackio or "
        "MLflow .db, a .csv or a .jsonl"
    )


def fresh(folder: Path) -> Path:
    """Raises ValueError where a run is already."""
    if (folder / "metrics").exists():
        raise ValueError(f"{folder} is a run already: choose another --out, or remove it first")
    return folder


def _tensorboard(source: Path, out: Path, follow: bool) -> Iterator[str]:
    from moonlet.tracker.imports.tensorboard import Folder

    for path in source.rglob("*tfevents*"):
        fresh(out / path.parent.relative_to(source))
    folder, said = Folder(source, out), set[str]()
    try:
        while True:
            came = folder.step()
            for key in folder.open.keys() - said:
                said.add(key)
                yield f"{folder.open[key][1].folder.parent}"
            if not follow:
                return
            if not came:
                time.sleep(FOLLOW_SECONDS)
    finally:
        folder.close()
