"""The step loop of pretraining and SFT: batch, step, log every raw number, save, report progress.

The state is one integer (the step): batches are a function of (seed, step), so a run that was killed and started again
takes the same steps. Checkpoints are saved before anything is evaluated. `max_skips` non-finite steps in a row stop it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from moonlet.model.model import Model
from moonlet.optim.muon import MuonAdamW
from moonlet.optim.schedule import cosine
from moonlet.tracker import Run
from moonlet.train import checkpoint
from moonlet.train.flops import training_flops
from moonlet.train.step import Stepper


class Batches(Protocol):
    def batch(self, step: int) -> dict[str, np.ndarray]: ...


@dataclass
class LoopConfig:
    """One stage of gradient steps on a fixed stream of batches."""

    name: str
    steps: int
    save_every: int
    warmup_fraction: float = 0.01
    lr_floor: float = 0.1
    tau: float = 100.0
    max_skips: int = 5


Progress = Callable[[int, int, dict[str, float]], None]


def to_tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(np.ascontiguousarray(v)).long() for k, v in batch.items()}


def train(
    model: Model,
    optimizer: MuonAdamW,
    batches: Batches,
    config: LoopConfig,
    folder: Path,
    tracker: Run,
    stepper: Stepper,
    progress: Progress = lambda step, steps, log: None,
) -> dict[str, Any]:
    """Run (or resume) the stage in `folder`; returns totals {seconds, tokens, flops, skipped}."""
    totals = {"seconds": 0.0, "tokens": 0, "flops": 0.0, "skipped": 0}
    saved = checkpoint.load_newest(folder, model, optimizer)
    start = 0
    if saved is not None:
        start, totals = saved["step"], saved["totals"]
    skips = 0
    for step in range(start, config.steps):
        began = time.perf_counter()
        batch = to_tensors(batches.batch(step))
        scale = cosine(step, config.steps, config.warmup_fraction, config.lr_floor)
        log = stepper.step(model, optimizer, batch, scale, config.tau)
        real = batch["segments"] > 0
        tokens, targets = int(real.sum()), float(batch["loss"].sum())
        seconds = time.perf_counter() - began
        context = mean_context(batch["segments"])
        totals["seconds"] += seconds
        totals["tokens"] += tokens
        totals["flops"] += training_flops(model.config, tokens, context, targets / max(tokens, 1))
        totals["skipped"] += int(log["skipped"])
        skips = skips + 1 if log["skipped"] else 0
        if skips >= config.max_skips:
            raise FloatingPointError(
                f"{config.name}: loss or gradient not finite {skips} steps in a row at step {step}; "
                "lower the learning rate"
            )
        log["tokens_per_second"] = tokens / seconds
        log["lr"] = scale * optimizer.config.muon_lr
        tracker.log({f"{config.name}/{k}": v for k, v in log.items()}, step=step)
        done = step + 1
        if done % config.save_every == 0 or done == config.steps:
            checkpoint.save(folder, done, model, optimizer, {"totals": totals})
        progress(done, config.steps, log)
    return totals


def mean_context(segments: torch.Tensor) -> float:
    """Mean number of keys a real token sees: (length + 1) / 2 over the documents, weighted by length."""
    lengths = []
    for row in segments:
        ids, counts = torch.unique(row, return_counts=True)
        lengths.append(counts[ids > 0])
    n = torch.cat(lengths).double()
    return float((n * (n + 1) / 2).sum() / n.sum().clamp(min=1))
