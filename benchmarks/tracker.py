"""The tracker against TensorBoard, trackio, wandb and MLflow: same numbers, same machine, same run.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install tensorboard trackio wandb mlflow-skinny sqlalchemy alembic
    python benchmarks/tracker.py --peers /tmp/peers [--only append chart ...] [--json FILE]

append   20 scalars a step through each writer, in a process of its own: main-thread CPU a point, bytes a point on disk
chart    50 runs of 10,000 points over HTTP: ours exact, TensorBoard's default with 1000 sampled points a run
big      one series of 5 million points over HTTP, exact, 1000 columns
start    until the table is complete (10 and 100 million compacted points, 10,000 runs), without and with an index
readers  a writer's step beside a board with 200 readers
import   10 million points of event files
The best of the repeats counts: machines are shared. Prints Markdown and, with --json, one JSON document (or to FILE).
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self

import numpy as np

from moonlet.tracker import Run, wire
from moonlet.tracker.compact import compact_run
from moonlet.tracker.imports.event_file import crc32c, masked

STEPS, METRICS = 2500, 20
VALUES = "import random, time, sys, os; r = random.Random(1); out = sys.argv[1]; n = int(sys.argv[2])\n"
VALUES += "names = [f'train/metric_{k}' for k in range(20)]\n"
VALUES += "import struct; f32 = lambda v: struct.unpack('f', struct.pack('f', v))[0]\n"
VALUES += "rows = [dict(zip(names, (f32(5 / (i + 1) + r.gauss(0, .01)) for k in names))) for i in range(n)]\n"
EACH = "start = time.thread_time()\nfor i, row in enumerate(rows):\n    {each}\nspent = time.thread_time() - start\n"
EACH += "{end}\nprint('CPU', spent / n / 20 * 1e6)"
SCALARS = "for name, value in row.items(): w.add_scalar(name, value, i)"
# name -> (interpreter: ours, peer or torch; steps; set up; a step; end)
WRITERS = {
    "moonlet add_scalar": ("ours", 1, "from moonlet.tracker import Run; w = Run(out)", SCALARS, "w.close()"),
    "moonlet log": ("ours", 1, "from moonlet.tracker import Run; w = Run(out)", "w.log(row, i)", "w.close()"),
    "torch SummaryWriter": (
        "torch",
        1,
        "from torch.utils.tensorboard import SummaryWriter; w = SummaryWriter(out)",
        SCALARS,
        "w.close()",
    ),
    "trackio log": (
        "peer",
        0.4,
        "os.environ['TRACKIO_DIR'] = out; import trackio; trackio.init(project='p', name='n')",
        "trackio.log(row, step=i)",
        "trackio.finish()",
    ),
    "wandb offline log": (
        "peer",
        1,
        "import wandb; os.makedirs(out); w = wandb.init(project='p', mode='offline', dir=out)",
        "w.log(row)",
        "w.finish()",
    ),
    "MLflow SQLite log_metrics": (
        "peer",
        0.04,
        "import mlflow; os.makedirs(out); mlflow.set_tracking_uri(f'sqlite:///{out}/m.db'); mlflow.log_metric('a', 1)",
        "mlflow.log_metrics(row, step=i)",
        "mlflow.end_run()",
    ),
}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def append(work: Path, peers: Path | None, repeats: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (kind, share, setup, each, end) in WRITERS.items():
        if kind != "ours" and peers is None:
            continue
        steps, cpu = int(STEPS * share), []
        environment = dict(os.environ)
        if kind == "torch":
            packages = next((peers or Path()).glob("lib/python*/site-packages"))
            environment["PYTHONPATH"] = f"{environment.get('PYTHONPATH', '')}:{packages}"
        python = str(peers / "bin" / "python") if kind == "peer" and peers else sys.executable
        code = VALUES + setup + "\n" + EACH.format(each=each, end=end)
        for repeat in range(repeats):
            out = work / f"{name.replace(' ', '-')}-{repeat}"
            command = [python, "-c", code, str(out), str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-2000:]}")
            cpu.append(float(done.stdout.rsplit("CPU", 1)[1].split()[0]))
        points = steps * METRICS
        found[name] = {"cpu_us_a_point": min(cpu), "all": cpu, "bytes_a_point": size(out) / points, "points": points}
        if kind == "ours":
            compact_run(out)
            found[name]["bytes_a_point_compacted"] = size(out) / points
    return found


class Board:
    """`moonlet board` as a process. `ready`: seconds until its table was complete; `cpu`: of the process until then."""

    def __init__(self, root: Path) -> None:
        command = [sys.executable, "-m", "moonlet", "board", str(root), "--port", "0"]
        start = time.perf_counter()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.url = self.process.stderr.readline().split(" on ")[1].strip().rstrip("/")
        while True:
            news = self.get("/api/changes?since=-1&wait=0")
            if not news["scanning"]:
                break
            time.sleep(0.02)
        self.matched = self.get("/api/runs?limit=50")["matched"]
        self.ready = time.perf_counter() - start
        facts = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        self.cpu = (int(facts[11]) + int(facts[12])) / os.sysconf("SC_CLK_TCK")

    def get(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        for _ in range(400):
            try:
                with urllib.request.urlopen(request) as reply:
                    raw = reply.read()
                return wire.unpack(raw) if raw[:4] == wire.MAGIC else json.loads(raw)
            except urllib.error.URLError:
                time.sleep(0.01)
        raise SystemExit("the board does not answer")

    def memory(self) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1e3

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait()


def made(folder: Path, steps: int, metrics: int, spike: bool = False) -> Path:
    """A compacted run of float32 values with noise."""
    rng = np.random.default_rng(abs(hash(str(folder))) % 2**32)
    with Run(folder, {"lr": 0.1, "seed": len(str(folder))}) as run:
        for k in range(metrics):
            value = (5 / (1 + np.arange(steps) / 100) + rng.standard_normal(steps) / 100).astype(np.float32)
            if spike:
                value[int(rng.integers(steps))] = 1000
            run.add_points(f"train/metric_{k}", np.arange(steps), 1.7e9 + np.arange(steps) * 0.1, value)
    compact_run(folder)
    return folder


def event_file(path: Path, tags: list[str], steps: int) -> None:
    """The event file that SummaryWriter would have written, in bulk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(abs(hash(str(path))) % 2**32)

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    with open(path, "wb") as file:
        for low in range(0, steps, 2000):
            values = rng.standard_normal((2000, len(tags))).astype("<f4")
            records = []
            for step in range(low, min(low + 2000, steps)):
                head = b"\x09" + np.float64(1.7e9 + step).tobytes() + (b"\x10" + varint(step) if step else b"")
                for tag, value in zip(tags, values[step - low], strict=True):
                    inner = b"\x0a" + varint(len(tag)) + tag.encode() + b"\x15" + value.tobytes()
                    inner = b"\x0a" + varint(len(inner)) + inner
                    records.append(head + b"\x2a" + varint(len(inner)) + inner)
            lengths = np.array([len(record) for record in records])
            out = [b""] * len(records)
            for length in np.unique(lengths).tolist():
                which = np.flatnonzero(lengths == length)
                rows = np.frombuffer(b"".join(records[i] for i in which), np.uint8).reshape(-1, length)
                count = np.uint64(length).tobytes()
                start = count + masked(crc32c(np.frombuffer(count, np.uint8)[None]))[0].tobytes()
                for i, check in zip(which.tolist(), masked(crc32c(rows)), strict=True):
                    out[i] = start + records[i] + check.tobytes()
            file.write(b"".join(out))


def timed(work: Any, repeats: int) -> dict[str, float]:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    best = {"first_ms": seconds[0] * 1e3, "best_ms": min(seconds) * 1e3}
    return best | {"median_ms": statistics.median(seconds) * 1e3}


def chart(work: Path, peers: Path | None, repeats: int) -> dict[str, Any]:
    root = work / "chart"
    for k in range(50):
        made(root / f"r{k}", 10_000, 20, spike=True)
    with Board(root) as board:
        ids = [row[0] for row in board.get("/api/runs?columns=id")["rows"]]
        body = {"series": [{"run": one, "name": "train/metric_0"} for one in ids], "pixels": 1000}
        found: dict[str, Any] = {"moonlet": timed(lambda: board.get("/api/m4", body), 10)}
        answer = board.get("/api/m4", body)
        found["moonlet"]["points"] = sum(series["points"] for series in answer["series"])
        found["moonlet"]["spikes"] = sum(bool(series["arrays"]["max"].max() == 1000) for series in answer["series"])
    if peers:
        logs = work / "chart-tb"
        for k in range(50):
            event_file(logs / f"r{k}" / "events.out.tfevents.1.h.1", ["train/metric_0"], 10_000)
        command = [str(peers / "bin" / "tensorboard"), "--logdir", str(logs), "--port", "16006", "--load_fast=auto"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            found["tensorboard"] = _tensorboard_chart(repeats)
        finally:
            process.terminate()
    return found


def _tensorboard_chart(repeats: int) -> dict[str, Any]:
    url = "http://localhost:16006/data/plugin/timeseries/timeSeries"
    form = urllib.parse.urlencode({"requests": json.dumps([{"plugin": "scalars", "tag": "train/metric_0"}])}).encode()

    def fetch() -> Any:
        with urllib.request.urlopen(url, form) as reply:
            return json.loads(reply.read())[0].get("runToSeries", {})

    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            series = fetch()
            if len(series) == 50 and all(points[-1]["step"] == 9999 for points in series.values()):
                return {**timed(fetch, max(repeats, 5)), "points": sum(map(len, series.values()))}
        except (OSError, ValueError):
            pass
        time.sleep(0.5)
    raise SystemExit("TensorBoard did not show all 50 runs in 120 s")


def big(work: Path, peers: Path | None, repeats: int) -> dict[str, Any]:
    made(work / "big" / "r", 5_000_000, 1, spike=True)
    with Board(work / "big") as board:
        (run,) = (row[0] for row in board.get("/api/runs?columns=id")["rows"])
        body = {"series": [{"run": run, "name": "train/metric_0"}], "pixels": 1000}
        found = timed(lambda: board.get("/api/m4", body), 20)
        zoomed = iter(range(1, 100))
        zoom = timed(lambda: board.get("/api/m4", {**body, "x0": 1e4 * next(zoomed), "x1": 3e6}), 50)
        return {"whole": found, "zoom": zoom, "memory_mb": board.memory()}


def start(work: Path, peers: Path | None, repeats: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    template = made(work / "template" / "r", 10_000, 20)
    small = made(work / "template" / "s", 20, 20)
    for name, source, count in (
        ("10 M points", template, 50),
        ("100 M points", template, 500),
        ("10,000 runs", small, 10_000),
    ):
        root = work / f"start-{count}"
        for k in range(count):
            shutil.copytree(source, root / f"r{k}")
        cold: list[tuple[float, float]] = []
        warm: list[tuple[float, float]] = []
        for _ in range(min(repeats, 2)):
            shutil.rmtree(root / ".moonlet-board", ignore_errors=True)
            for times in (cold, warm):
                with Board(root) as board:
                    assert board.matched == count
                    times.append((board.ready, board.cpu))
                    query = "filter=summary.train%2Fmetric_0%3E0&sort=-summary.train/metric_3&limit=100".replace(
                        "summary.train%2Fmetric_0", "config.lr"
                    )
                    table = timed(lambda: board.get(f"/api/runs?{query}"), 5)  # noqa: B023
                    memory = board.memory()
        found[name] = {
            "without_index_s": min(cold)[0],
            "without_index_cpu_s": min(cpu for _, cpu in cold),
            "with_index_s": min(warm)[0],
            "with_index_cpu_s": min(cpu for _, cpu in warm),
            "table_ms": table["best_ms"],
            "memory_mb": memory,
        }
        shutil.rmtree(root)
    return found


WRITER = """
import sys, time, statistics
import numpy as np
from moonlet.tracker import Run
row = {f"m{k}": k + 0.5 for k in range(20)}
a = np.random.rand(90, 90)
with Run(sys.argv[1]) as run:
    steps, work, cpu = [], [], 0.0
    end = time.perf_counter() + float(sys.argv[2])
    step = 0
    while time.perf_counter() < end:
        start, began = time.perf_counter(), time.thread_time()
        for _ in range(30):
            a @ a
        c = time.thread_time()
        run.log(row, step)
        cpu += time.thread_time() - c
        work.append(time.thread_time() - began)
        steps.append(time.perf_counter() - start)
        step += 1
        time.sleep(0.002)
print(statistics.median(steps) * 1e3, statistics.median(work) * 1e3, cpu / step * 1e6, step)
"""


def readers(work: Path, peers: Path | None, repeats: int) -> dict[str, Any]:
    root = work / "readers"
    root.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

    def write(name: str) -> list[float]:
        command = [sys.executable, "-c", WRITER, str(root / name), "6"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return [float(word) for word in done.stdout.split()]

    async def reader(port: int, ends: float, counts: list[int]) -> None:
        cursor = 0
        while time.monotonic() < ends:
            read, write_to = await asyncio.open_connection("127.0.0.1", port)
            head = f"GET /api/changes?since={cursor}&wait=5 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            write_to.write(head.encode())
            data = await read.read()
            cursor = json.loads(data.split(b"\r\n\r\n", 1)[1])["cursor"]
            counts[0] += 1
            write_to.close()

    async def crowd(port: int) -> tuple[list[float], int]:
        counts = [0]
        ends = time.monotonic() + 7
        tasks = [asyncio.create_task(reader(port, ends, counts)) for _ in range(200)]
        measured = await asyncio.to_thread(write, "with")
        await asyncio.gather(*tasks)
        return measured, counts[0]

    alone = write("alone")
    with Board(root) as board:
        beside, answers = asyncio.run(crowd(int(board.url.rsplit(":", 1)[1])))
    names = ("step_ms", "step_cpu_ms", "log_cpu_us", "steps")
    return {
        "alone": dict(zip(names, alone, strict=True)),
        "200 readers": dict(zip(names, beside, strict=True)),
        "answers": answers,
    }


def bring(work: Path, peers: Path | None, repeats: int) -> dict[str, Any]:
    tags = [f"train/metric_{k}" for k in range(20)]
    for k in range(50):
        event_file(work / "logs" / f"r{k}" / "events.out.tfevents.1.h.1", tags, 10_000)
    command = [sys.executable, "-m", "moonlet", "board", "import", str(work / "logs"), "--out", str(work / "imported")]
    start, used = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, now = time.perf_counter() - start, os.times()
    cpu = now.children_user + now.children_system - used.children_user - used.children_system
    return {"points": 10_000_000, "seconds": seconds, "cpu_seconds": cpu, "event_bytes": size(work / "logs")}


MEASURES = {"append": append, "chart": chart, "big": big, "start": start, "readers": readers, "import": bring}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="a virtual environment with the other trackers; without: only ours")
    parser.add_argument("--only", nargs="*", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", nargs="?", const="-", help="print, or write, one JSON document")
    options = parser.parse_args()
    found: dict[str, Any] = {"load": os.getloadavg(), "cpus": os.cpu_count()}
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix="moonlet-bench-") as work:
            found[name] = MEASURES[name](Path(work), options.peers, options.repeats)
        if options.json != "-":
            print(f"{name}: {json.dumps(found[name])}", flush=True)
    found["load after"] = os.getloadavg()
    text = json.dumps(found, indent=2)
    if options.json == "-":
        print(text)
    elif options.json:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
