"""Metrics of a run: an append-only log that keeps every point, and a reader that returns numpy arrays.

with Run("runs/mine") as run: run.log({"pretrain/loss": 1.2}, step=3)
read("runs/mine")["pretrain/loss"].value     Leaves out: a server, histograms, images, any downsampling.
"""

from moonlet.tracker.log import Run, Series, read

__all__ = ["Run", "Series", "read"]
