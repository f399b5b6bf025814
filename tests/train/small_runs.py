"""Batches and stages small enough to train in a test."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moonlet.model.config import for_depth
from moonlet.model.model import Model
from moonlet.optim.muon import MuonAdamW, OptimConfig, muon_blocks
from moonlet.tracker import Run
from moonlet.train.loop import LoopConfig, train
from moonlet.train.step import Stepper

VOCAB, ROWS, LENGTH = 64, 4, 32


class Documents:
    """Packed rows of counting sequences, two documents a row, padding in every other row; a function of the step."""

    def batch(self, step: int) -> dict[str, np.ndarray]:
        r = np.random.default_rng([7, step])
        tokens = (r.integers(0, VOCAB, (ROWS, 1)) + np.arange(LENGTH)) % VOCAB
        segments = np.ones((ROWS, LENGTH), dtype=np.uint16)
        for row, cut in enumerate(r.integers(4, LENGTH - 8, ROWS)):
            segments[row, cut:] = 2
            tokens[row, cut:] = (tokens[row, cut:] + 11) % VOCAB
            if row % 2:
                segments[row, -5:] = 0
        loss = (segments > 0) & (np.arange(LENGTH) % 5 != 0)
        return {"tokens": tokens.astype(np.uint16), "segments": segments, "loss": loss.astype(np.uint8)}


def tensors(step: int = 0) -> dict[str, torch.Tensor]:
    """One batch as the stepper takes it."""
    return {k: torch.from_numpy(v.astype(np.int64)) for k, v in Documents().batch(step).items()}


def fresh(seed: int = 0) -> tuple[Model, MuonAdamW]:
    model = Model(for_depth(2, VOCAB, {"hidden_size": 64, "num_experts": 4})).init_weights(seed)
    return model, MuonAdamW(model, muon_blocks(model), OptimConfig(muon_lr=0.02, adamw_lr=0.003))


def run(folder: Path, workers: int = 1, model_and_optimizer: Any = None, progress: Any = None, **options: Any) -> Any:
    """One call of `train` in `folder`, from its newest checkpoint or from seed 0 -> totals."""
    model, optimizer = model_and_optimizer or fresh()
    stepper = Stepper(workers)
    try:
        with Run(folder) as tracker:
            config = LoopConfig(**{"name": "small", "steps": 6, "save_every": 2, **options})
            more = {"progress": progress} if progress else {}
            return train(model, optimizer, Documents(), config, folder / "steps", tracker, stepper, **more)
    finally:
        stepper.pool.shutdown()


def digests(folder: Path, step: int) -> list[str]:
    """sha256 of the weights and of the optimizer state at a step."""
    files = ("model.safetensors", "optim.safetensors")
    return [hashlib.sha256((folder / "steps" / f"step-{step}" / f).read_bytes()).hexdigest() for f in files]
