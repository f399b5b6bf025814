"""`write_report(run folder)`: report/results.json, the metrics log and manifest.json -> report/index.html.

One file: style, script and data are inside, nothing is fetched (a Content-Security-Policy forbids it, and forbids every
script but the page's own, by its hash). The curves are drawn by the board's scripts, from the first, least, greatest
and last point of PIXELS columns (`tracker.m4`): the page stays small and no extreme is lost. The template escapes
whatever it is given, above all what a model wrote; only the drawings of `charts` go in as they are. A value that the
run did not record is a dash and a section without data says so: nothing is guessed or left out.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from moonlet import tracker
from moonlet.errors import InputError
from moonlet.files import write_atomic
from moonlet.report import charts, formats
from moonlet.tracker.wire import pack

HERE = Path(__file__).parent
BOARD = Path(tracker.__file__).parent / "page"
SCRIPTS = ("format", "wire", "scales", "canvas", "plot", "readout")  # of the board, before our own
PIXELS = 300  # columns of a curve: as many as a chart has pixels
FIRST = ("loss", "learning_rate", "lr", "grad_norm", "tokens_per_second", "max_logit", "dead_experts", "reward")


def write_report(run_folder: str | Path) -> Path:
    """Write the page of a run and return its path. Raises InputError when results.json or the log cannot be read."""
    folder = Path(run_folder)
    results = _read_json(folder / "report" / "results.json")
    manifest = _read_json(folder / "manifest.json") if (folder / "manifest.json").exists() else {}
    try:
        series = tracker.read(folder)
    except ValueError as error:
        raise InputError(str(error)) from error
    page = folder / "report" / "index.html"
    write_atomic(page, _page(folder.resolve().name, results, manifest, series).encode("utf-8", "replace"))
    return page


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is missing: finish the run first, its evaluation writes this file") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): run the evaluation again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__} where an object is needed: run the evaluation again")
    return content


def _page(folder: str, results: dict[str, Any], manifest: dict[str, Any], series: dict[str, tracker.Series]) -> str:
    rows, run = results.get("results") or [], results.get("run") or {}
    groups, curves = _curves(series, [stage.get("name") for stage in results.get("stages") or []])
    scripts = [*(BOARD / f"{name}.js" for name in SCRIPTS), HERE / "curves.js"]
    script = "\n".join(path.read_text("utf-8") for path in scripts)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {name: getattr(formats, name) for name in ("short", "units", "percent", "duration")}
    environment.filters["json"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    environment.tests["number"] = formats.is_number
    environment.globals |= {
        "bar": lambda *numbers: Markup(charts.bar(*numbers)),
        "heat": lambda name, load: Markup(charts.heat(name, load)),
    }
    return environment.get_template("page.html").render(
        results,
        run=run,
        machine=results.get("machine") or {},
        name=run.get("name") or folder,
        manifest=manifest,
        best=_best(rows),
        suites=_suites(rows),
        receipts=Markup(charts.receipts([row for row in rows if row.get("suite") == "receipts"])),
        groups=groups,
        curves=Markup(json.dumps(curves)),
        style=Markup((HERE / "style.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


# Shares that are no skill of their own (receipts have a curve): in the table, not in the headline.
NO_HEADLINE = {"receipts", "calls", "needless calls", "one digit", "invents", "quantisation"}


def _best(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the model can do now: of each suite the last accuracy, of its `unseen` split where it has one."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        suite = str(row.get("suite"))
        counts = (
            row.get("unit", "accuracy") == "accuracy"
            and suite not in NO_HEADLINE
            and formats.is_number(row.get("score"))
        )
        if counts and (row.get("split") == "unseen" or best.get(suite, {}).get("split") != "unseen"):
            best[suite] = row
    return best


def _suites(rows: list[dict[str, Any]]) -> list[tuple[str, str, float, list[dict[str, Any]]]]:
    """(suite, unit, end of the bars' scale, rows), in the order in which the suites first appear."""
    suites: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        suites.setdefault((str(row.get("suite")), str(row.get("unit", "accuracy"))), []).append(row)
    tops = [
        [row[key] for row in part for key in ("score", "high") if formats.is_number(row.get(key))]
        for part in suites.values()
    ]
    return [
        (suite, unit, 1.0 if unit == "accuracy" else max(top, default=0) or 1.0, part)
        for ((suite, unit), part), top in zip(suites.items(), tops, strict=True)
    ]


def _curves(series: dict[str, tracker.Series], stages: list[Any]) -> tuple[dict[str, list[Any]], dict[str, str]]:
    """Every series, grouped by what stands before its first slash, stages in their order; and its curve's bytes
    (`tracker.wire`, in base64) by id."""
    groups: dict[str, list[Any]] = {}
    curves: dict[str, str] = {}

    def rank(name: str) -> tuple[int, str, int, str]:
        stage, label = name.split("/", 1) if "/" in name else ("", name)
        return (
            stages.index(stage) if stage in stages else len(stages),
            stage,
            FIRST.index(label) if label in FIRST else len(FIRST),
            label,
        )

    for name in sorted(series, key=rank):
        _, stage, _, label = rank(name)
        key, one = f"curve-{len(curves)}", series[name]
        ends = {"x0": float(one.step[0]), "x1": float(one.step[-1])}
        header = {**ends, "pixels": PIXELS, "scale": "linear", "series": [tracker.m4(one, pixels=PIXELS)]}
        curves[key] = base64.b64encode(pack(header)).decode()
        groups.setdefault(stage, []).append((key, name, label, float(one.value[-1]), len(one.step)))
    return groups, curves
