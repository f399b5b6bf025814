"""What runs beside training: CPU, memory, disk and GPU; which code it was; what it printed. `run.watch()` turns it on.

Readings come from /proc and, where there is one, nvidia-smi, in a thread; their step is the second since the start.
Leaves out: other cards than NVIDIA's, processes other than this one.
"""

import io
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

GPU = "index,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw"
FLUSH_SECONDS, LONGEST_TEXT = 1.0, 1 << 16


def watch(run: Any, seconds: float) -> None:
    """Read the machine every `seconds` until the run is closed."""
    thread = threading.Thread(target=_watch, args=(run, seconds), name="moonlet-tracker-system", daemon=True)
    thread.start()


def _watch(run: Any, seconds: float) -> None:
    start, before = time.time(), _times()
    while not run.wait_closed(seconds):
        now = _times()
        try:
            for name, value in readings(before, now, run.folder).items():
                run.add_scalar(f"system/{name}", value, int(time.time() - start))
        except (ValueError, OSError):  # closed just now, or no such reading here
            return
        before = now


def _times() -> tuple[float, float, float]:
    """Seconds: wall, busy over all CPUs, this process."""
    busy = 0.0
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        ticks = [int(field) for field in fields]
        busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        pass
    return time.monotonic(), busy, time.process_time()


def readings(before: tuple[float, ...], now: tuple[float, ...], folder: Path) -> dict[str, float]:
    """Percent and GB by name."""
    wall = max(now[0] - before[0], 1e-9)
    found = {"process_cpu_percent": 100 * (now[2] - before[2]) / wall}
    found["cpu_percent"] = 100 * (now[1] - before[1]) / wall / (os.cpu_count() or 1)
    memory = {}
    for path, wanted in (("/proc/meminfo", ("MemTotal", "MemAvailable")), ("/proc/self/status", ("VmRSS",))):
        try:
            for line in Path(path).read_text().splitlines():
                key, _, rest = line.partition(":")
                if key in wanted:
                    memory[key] = int(rest.split()[0]) / 1e6
        except (OSError, ValueError, IndexError):
            continue
    if "MemTotal" in memory and "MemAvailable" in memory:
        found["memory_gb"] = memory["MemTotal"] - memory["MemAvailable"]
        found["memory_percent"] = 100 * found["memory_gb"] / memory["MemTotal"]
    if "VmRSS" in memory:
        found["process_memory_gb"] = memory["VmRSS"]
    disk = shutil.disk_usage(folder)
    found |= {"disk_free_gb": disk.free / 1e9, "disk_percent": 100 * disk.used / disk.total}
    return found | _gpus()


def _gpus() -> dict[str, float]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={GPU}", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    found = {}
    for line in lines:
        index, *values = (part.strip() for part in line.split(","))
        names = ("percent", "memory_gb", "memory_total_gb", "celsius", "watts")
        for name, value in zip(names, values, strict=False):
            try:
                found[f"gpu{index}_{name}"] = float(value) / (1024 if "memory" in name else 1)
            except ValueError:  # "[N/A]"
                continue
    return found


def code(folder: Path | None = None) -> dict[str, Any]:
    """Which code runs: command line, Python, and of the git repository around `folder` its commit and changed files."""
    found: dict[str, Any] = {"argv": sys.argv, "python": platform.python_version(), "platform": platform.platform()}
    for key, command in (("commit", ["rev-parse", "HEAD"]), ("branch", ["rev-parse", "--abbrev-ref", "HEAD"])):
        found[key] = _git(command, folder)
    changed = _git(["status", "--porcelain", "--untracked-files=no"], folder)
    return found | {"changed": changed.splitlines()[:200] if changed else []}


def _git(arguments: list[str], folder: Path | None) -> str | None:
    # A repository's own configuration must not start anything.
    command = ["git", "-c", "core.fsmonitor=", "-c", "core.hooksPath=/dev/null", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


class Tee(io.TextIOBase):
    """Writes to a stream as before, and what was written to the run as "console" events, once a second at most."""

    def __init__(self, run: Any, stream: Any, name: str) -> None:
        self.run, self.stream, self.name, self.waiting, self.sent = run, stream, name, "", 0.0
        self.guard = threading.Lock()

    def write(self, text: str) -> int:
        self.stream.write(text)
        with self.guard:
            self.waiting += text
            if len(self.waiting) > LONGEST_TEXT or (
                time.monotonic() - self.sent > FLUSH_SECONDS and self.waiting.endswith("\n")
            ):
                self._send()
        return len(text)

    def _send(self) -> None:
        text, self.waiting, self.sent = self.waiting, "", time.monotonic()
        if text and not self.run.closed:
            self.run.event("console", data={"stream": self.name, "text": text})

    def finish(self) -> None:
        with self.guard:
            self._send()

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return bool(self.stream.isatty())

    def fileno(self) -> int:
        return int(self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def console(run: Any) -> None:
    """Keep what Python prints, until the run is closed."""
    tees = [Tee(run, sys.stdout, "stdout"), Tee(run, sys.stderr, "stderr")]
    sys.stdout, sys.stderr = tees

    def restore() -> None:
        for tee in tees:
            tee.finish()
        sys.stdout = tees[0].stream if sys.stdout is tees[0] else sys.stdout
        sys.stderr = tees[1].stream if sys.stderr is tees[1] else sys.stderr

    run.before_close.append(restore)
