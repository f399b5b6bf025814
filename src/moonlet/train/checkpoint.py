"""Checkpoints of a stage: `FOLDER/step-N/` with model.safetensors, optim.safetensors, state.json (sha256 of both).

Written into a temporary sibling, fsynced, renamed: a step folder is whole or absent. `load_newest` takes the highest
step whose hashes verify, so a torn disk costs one interval, not the run. State is tensors and JSON; no pickle.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from moonlet.errors import InputError
from moonlet.files import new_folder
from moonlet.model.model import Model
from moonlet.optim.muon import MuonAdamW

KEEP = 2


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def model_state(model: Model) -> dict[str, torch.Tensor]:
    return {k: v.detach().contiguous() for k, v in model.state_dict().items()}


def save(folder: Path, step: int, model: Model, optimizer: MuonAdamW | None, state: dict[str, Any]) -> Path:
    """Write `folder/step-N` and remove all but the newest KEEP steps."""
    target = Path(folder) / f"step-{step}"
    with new_folder(target) as tmp:
        save_file(model_state(model), tmp / "model.safetensors")
        files = ["model.safetensors"]
        if optimizer is not None:
            save_file(optimizer.state, tmp / "optim.safetensors")
            files.append("optim.safetensors")
        record = {**state, "step": step, "sha256": {f: sha256(tmp / f) for f in files}}
        (tmp / "state.json").write_text(json.dumps(record, indent=1))
    kept = [p for p in steps(folder) if int(p.name[5:]) <= step]  # later ones are torn: this run resumed below them
    for path in {*steps(folder)} - {*kept[-KEEP:]}:
        shutil.rmtree(path)
    return target


def steps(folder: Path) -> list[Path]:
    """Step folders, oldest first."""
    found = [p for p in Path(folder).glob("step-*") if p.name[5:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def load_newest(folder: Path, model: Model, optimizer: MuonAdamW | None = None) -> dict[str, Any] | None:
    """Load the newest verified checkpoint in place and return its state; None when there is none."""
    for path in reversed(steps(folder)):
        try:
            state = json.loads((path / "state.json").read_text())
            if any(sha256(path / f) != digest for f, digest in state["sha256"].items()):
                continue
        except (OSError, ValueError, KeyError):
            continue
        try:
            model.load_state_dict(load_file(path / "model.safetensors"))
        except RuntimeError as error:
            raise InputError(
                f"{path} holds another model shape than the recipe; use a new --out folder ({str(error)[:200]})"
            ) from error
        if optimizer is not None and (path / "optim.safetensors").exists():
            for key, value in load_file(path / "optim.safetensors").items():
                optimizer.state[key].copy_(value)
        return state
    return None
