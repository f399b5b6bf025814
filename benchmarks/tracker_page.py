"""The board's page in a real Chromium: first paint of one series of 5 M points, frames while zooming and panning, the
table of 10,000 runs while it scrolls.

Prints one JSON document. First paint is from the start of the navigation to the chart's pixels, the board warm; `cold`
is the first visit, as the board tells its address: it has no index yet and reads the whole log of the run (160 MB)
before the page can draw it. Frames are those the page itself draws.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

from moonlet.doctor import find_browser
from moonlet.tracker import Run
from moonlet.tracker import format as f

POINTS, RUNS, VISITS = 5_000_000, 10_000, 7
PAINTED = "performance.getEntriesByName('chart-painted')[0]?.startTime"
# Frames of two seconds in which every frame moves something: [frames a second, slowest frame in ms].
FRAMES = """async (source) => {
  const step = {
    zoom: (k) => expanded.scaleAt(500, k % 120 < 60 ? 0.9 : 1 / 0.9),
    pan: (k) => expanded.pan(k % 60 < 30 ? 12 : -12),
    scroll: (k) => { runsTable.scroller.scrollTop = (k * 700) % 250000; },
  }[source];
  const times = [];
  for (let k = 0; k === 0 || times.at(-1) - times[0] < 2000; k += 1) {
    step(k);
    times.push(await new Promise((go) => requestAnimationFrame(go)));
  }
  const gaps = times.slice(1).map((time, i) => time - times[i]);
  return [1000 / (gaps.reduce((a, b) => a + b) / gaps.length), Math.max(...gaps)];
}"""


def waited(page: Any, expression: str) -> Any:
    end = time.monotonic() + 120
    while not (value := page.evaluate(expression)):
        if time.monotonic() > end:
            raise TimeoutError(expression)
        time.sleep(0.01)
    return value


def write_series(root: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, POINTS)
    steps = np.arange(POINTS)
    with Run(root / "long") as run:
        run.add_points("loss", steps, 1.7e9 + steps / 100, 2 + 5 * np.exp(-steps / 4e5) + noise)


def write_runs(root: Path) -> None:
    for i in range(RUNS):
        folder = root / f"run-{i:05d}" / "metrics"
        folder.mkdir(parents=True)
        header = {"version": 1, "host": "here", "pid": 1, "started": 1.7e9 + i}
        facts = [
            ("config", {"lr": i / RUNS, "seed": i % 5}),
            ("summary", {"loss": float(i % 997)}),
            ("end", {"exit": None}),
        ]
        log = [f.MAGIC, f.record(b"H" + f.dumps(header).encode())]
        log += [f.event({"kind": kind, "time": 1.7e9 + i, "data": data}) for kind, data in facts]
        (folder / "000001.log").write_bytes(b"".join(log))


def board(root: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "moonlet", "board", str(root), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    return process, process.stderr.readline().split(" on ")[-1].strip()


def series(page: Any, address: str) -> dict[str, Any]:
    paints = []
    for _ in range(VISITS + 1):
        page.goto("about:blank")
        page.goto(address)
        paints.append(waited(page, PAINTED))
    page.get_by_label("Enlarge loss").click()
    waited(page, "expanded?.shown")
    frames = {source: page.evaluate(FRAMES, source) for source in ("zoom", "pan")}
    first = {"cold": paints[0], "median": float(np.median(paints[1:])), "least": min(paints[1:])}
    return {"first_paint_ms": first, **told(frames)}


def table(page: Any, address: str) -> dict[str, Any]:
    page.goto(address)
    waited(page, f"runsTable.total === {RUNS} && document.querySelectorAll('.row').length > 10")
    return told({"scroll": page.evaluate(FRAMES, "scroll")})


def told(frames: dict[str, tuple[float, float]]) -> dict[str, Any]:
    return {
        source: {"frames_per_second": rate, "slowest_frame_ms": slowest} for source, (rate, slowest) in frames.items()
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        for name, write, measure in (("series", write_series, series), ("runs", write_runs, table)):
            (Path(folder) / name).mkdir()
            write(Path(folder) / name)
            process, address = board(Path(folder) / name)
            try:
                result |= measure(page, address)
            finally:
                page.goto("about:blank")
                process.terminate()
                process.wait()
        print(json.dumps({**result, "load": os.getloadavg()[0], "browser": browser.version}, indent=1))
        browser.close()


if __name__ == "__main__":
    main()
