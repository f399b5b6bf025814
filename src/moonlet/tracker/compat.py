"""The names that other trackers' scripts use: SummaryWriter (TensorBoard) and init, log, finish (wandb).

from moonlet.tracker import SummaryWriter       # was: from torch.utils.tensorboard import SummaryWriter
from moonlet import tracker as wandb            # was: import wandb
"""

import datetime
import os
import socket
import uuid
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moonlet.tracker.writer import Run

IGNORED = {"add_graph", "add_embedding", "add_pr_curve", "add_audio", "add_video", "add_mesh", "add_custom_scalars"}
_current: Run | None = None


class SummaryWriter(Run):
    """A Run with the constructor of torch.utils.tensorboard.SummaryWriter. What it cannot keep warns and is ignored."""

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        comment: str = "",
        purge_step: int | None = None,
        max_queue: int = 10,
        flush_secs: int = 120,
        filename_suffix: str = "",
    ) -> None:
        """`log_dir` None: runs/DATE_HOST and `comment`, as there. The other arguments change nothing."""
        date = datetime.datetime.now().strftime("%b%d_%H-%M-%S")
        super().__init__(log_dir or Path("runs", f"{date}_{socket.gethostname()}{comment}"))
        self.log_dir = os.fspath(log_dir or self.folder.parent)

    def get_logdir(self) -> str:
        return self.log_dir

    def __getattr__(self, name: str) -> Any:
        if name not in IGNORED:
            raise AttributeError(f"SummaryWriter has no {name!r}")
        warnings.warn(f"the tracker does not keep what {name} logs", stacklevel=2)
        return lambda *arguments, **more: None


def init(
    project: str | None = None,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    dir: str | os.PathLike[str] | None = None,
    id: str | None = None,
    tags: Iterable[str] = (),
    notes: str | None = None,
    group: str | None = None,
    **ignored: Any,
) -> Run:
    """Open the run that `log` and `finish` speak of: a folder `dir` (default: runs) / project / id (or name)."""
    global _current
    if ignored:
        warnings.warn(f"init: {', '.join(sorted(ignored))} changes nothing here", stacklevel=2)
    finish()
    label = id or name or datetime.datetime.now().strftime("%Y%m%d_%H%M%S_") + uuid.uuid4().hex[:8]
    folder = Path(dir or "runs", *(part.replace("/", "-").lstrip(".") for part in (project, label) if part))
    _current = Run(folder, config, name, [*tags, *([f"group:{group}"] if group else [])], notes)
    return _current


def log(values: Mapping[str, Any], step: int | None = None, commit: bool = True) -> None:
    """A row of the run that `init` opened. Raises RuntimeError before it."""
    if _current is None:
        raise RuntimeError("no run is open: call moonlet.tracker.init() first")
    _current.log(values, step)


def finish(exit_code: int | None = None) -> None:
    """Close the run that `init` opened; nothing when there is none."""
    global _current
    if _current is not None:
        _current.close(f"exit code {exit_code}" if exit_code else None)
    _current = None
