"""The live table of a run: stage, status, progress, tokens a second, loss, time left. Plain lines off a terminal."""

import sys
import time
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

PLAIN_EVERY = 20.0  # seconds between progress lines when output is not a terminal


class Board:
    """Context manager around the run; `start`, `progress`, `finish` follow the stages."""

    def __init__(self, title: str, names: list[str], stages: dict[str, dict[str, Any]]) -> None:
        self.title, self.names = title, names
        self.cells = {n: self.done_cells(stages[n]) if n in stages else ["waiting", "", "", "", ""] for n in names}
        self.live = Live(self.table(), console=Console(file=sys.stdout), refresh_per_second=4)
        self.tty = sys.stdout.isatty()
        self.current, self.began, self.first, self.printed = "", 0.0, 0, 0.0

    def __enter__(self) -> Self:
        if self.tty:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.tty:
            self.live.stop()

    def start(self, name: str, input_passed: bool) -> None:
        self.current, self.began, self.first, self.printed = name, time.perf_counter(), -1, time.perf_counter()
        self.cells[name] = ["running" if input_passed else "running, INPUT DID NOT PASS", "", "", "", ""]
        self.show(f"{name}: start" + ("" if input_passed else " (its input did not pass its gate)"))

    def progress(self, done: int, total: int, log: dict[str, float]) -> None:
        """After step `done` of `total`; shows log's tokens_per_second and loss or reward where there."""
        now = time.perf_counter()
        if self.first < 0:
            self.first, self.began = done, now
        rate = (now - self.began) / max(1, done - self.first)
        eta = f"{rate * (total - done):.0f} s" if done > self.first else ""
        speed = f"{log['tokens_per_second']:.0f}" if "tokens_per_second" in log else ""
        value = next((f"{k} {log[k]:.3f}" for k in ("reward", "loss", "score") if k in log), "")
        status = self.cells[self.current][0]
        self.cells[self.current] = [status, f"{done}/{total}", speed, value, eta]
        if self.tty or now - self.printed > PLAIN_EVERY:
            self.printed = now
            self.show(f"{self.current}: {done}/{total} {speed} tokens/s {value} ETA {eta}")

    def finish(self, name: str, record: dict[str, Any]) -> None:
        self.cells[name] = self.done_cells(record)
        self.show(f"{name}: {' '.join(c for c in self.cells[name] if c)}")

    def done_cells(self, record: dict[str, Any]) -> list[str]:
        passed = {True: "finished, passed", False: "finished, NOT PASSED", None: "finished"}[record.get("passed")]
        speed = f"{record['tokens'] / record['seconds']:.0f}" if record.get("tokens") else ""
        return [passed, f"{record['seconds']:.0f} s", speed, record.get("gate", ""), ""]

    def show(self, line: str) -> None:
        if self.tty:
            self.live.update(self.table())
        else:
            print(line, flush=True)

    def table(self) -> Table:
        table = Table(title=f"moonlet run {self.title}")
        for heading in ("stage", "status", "progress", "tokens/s", "loss, reward or gate", "ETA"):
            table.add_column(heading)
        for name in self.names:
            table.add_row(name, *self.cells[name])
        return table
