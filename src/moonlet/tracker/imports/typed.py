"""What wandb and trackio log besides numbers: dicts with a `_type`, some of which name a file beside the store.

Taken: images (one or several), histograms (edges, or first edge and width), tables, Markdown. Left out, with a warning:
audio, video, HTML, 3D, plots, and files that are no longer there. A name that leads out of its folder is refused.
"""

import json
import warnings
from pathlib import Path
from typing import Any

from moonlet.tracker.media import image_type
from moonlet.tracker.writer import Run

MAX_FILE = 64 << 20  # bytes


def put(run: Run, name: str, value: dict[str, Any], step: int, time: float, base: Path) -> None:
    """One such dict as an event. `base`: the folder that its paths are relative to. Raises ValueError for a bad one."""
    kind = str(value["_type"]).removeprefix("trackio.")
    try:
        _put(run, name, kind, value, step, time, base)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{name!r} at step {step} is no {kind} ({error!r}): mend the store") from error


def _put(run: Run, name: str, kind: str, value: dict[str, Any], step: int, time: float, base: Path) -> None:
    if kind == "histogram":
        run.event("histogram", name, step, {"edges": _edges(value), "counts": value["values"]}, walltime=time)
    elif kind in ("image-file", "image"):
        _image(run, name, value, value.get("path") or value.get("file_path"), value.get("caption"), step, time, base)
    elif kind == "images/separated":
        names = value["filenames"]
        captions = value.get("captions") or [None] * len(names)
        for path, caption in zip(names, captions, strict=False):
            _image(run, name, value, path, caption, step, time, base)
    elif kind == "table-file":
        if (content := _read(base, value["path"])) is not None:
            table = json.loads(content)
            run.event("table", name, step, {"columns": table["columns"], "rows": table["data"]}, walltime=time)
    elif kind == "table":
        columns = list(dict.fromkeys(column for row in value["_value"] for column in row))
        rows = [[row.get(column) for column in columns] for row in value["_value"]]
        run.event("table", name, step, {"columns": columns, "rows": rows}, walltime=time)
    elif kind == "markdown":
        run.event("text", name, step, {"text": str(value["_value"])}, walltime=time)
    else:
        warnings.warn(f"{name!r} at step {step} is of type {kind}, which is not imported", stacklevel=3)


def _edges(value: dict[str, Any]) -> list[float]:
    if "bins" in value:
        return value["bins"]
    packed = value["packedBins"]
    return [packed["min"] + k * packed["size"] for k in range(int(packed["count"]) + 1)]


def _image(
    run: Run, name: str, value: dict[str, Any], path: Any, caption: Any, step: int, time: float, base: Path
) -> None:
    content = _read(base, path)
    if content is not None and (kind := image_type(content)):
        data = {"width": value.get("width"), "height": value.get("height"), "caption": caption}
        run.event("image", name, step, data, content, time, type=kind)


def _read(base: Path, name: Any) -> bytes | None:
    path = (base / str(name)).resolve()
    if not path.is_relative_to(base.resolve()):
        raise ValueError(f"{str(name)[:200]!r} leads out of {base}: this store was not written by its tracker")
    if not path.is_file() or path.stat().st_size > MAX_FILE:
        warnings.warn(f"{path} is not there, or longer than {MAX_FILE} bytes: not imported", stacklevel=3)
        return None
    return path.read_bytes()
