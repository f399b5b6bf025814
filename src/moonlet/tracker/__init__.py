"""The tracker: every number that a training script logs, kept, read back and drawn. No torch, nothing else of moonlet.

    with Run("runs/mine", config={"lr": 1e-3}) as run: run.log({"pretrain/loss": 1.2}, step=3)
    read("runs/mine")["pretrain/loss"].value
    writer = SummaryWriter("runs/mine")                  as of torch.utils.tensorboard
    tracker.init(project="mine", config={...}); tracker.log({"loss": 1.2}); tracker.finish()      as of wandb

The names are found when they are first used: writing loads no numpy. docs/tracker.md says what is promised.
"""

import importlib
from typing import TYPE_CHECKING, Any

from moonlet.tracker.media import Histogram, Image, Rollout, Table, Text
from moonlet.tracker.writer import Run

if TYPE_CHECKING:
    from moonlet.tracker.compat import SummaryWriter, finish, init, log
    from moonlet.tracker.pixels import m4
    from moonlet.tracker.reader import Series, read
    from moonlet.tracker.sql import query

LATER = {
    "Series": "reader",
    "read": "reader",
    "m4": "pixels",
    "query": "sql",
    "SummaryWriter": "compat",
    "init": "compat",
    "log": "compat",
    "finish": "compat",
}
__all__ = ["Histogram", "Image", "Rollout", "Run", "Series", "SummaryWriter", "Table", "Text"]
__all__ += ["finish", "init", "log", "m4", "query", "read"]


def __getattr__(name: str) -> Any:
    if name in LATER:
        value = getattr(importlib.import_module(f"moonlet.tracker.{LATER[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'moonlet.tracker' has no attribute {name!r}")
