"""Checkpoints: a round trip of every bit, the fallback past what is torn, and how many are kept."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import fresh, tensors

from moonlet.errors import InputError
from moonlet.model.config import for_depth
from moonlet.model.model import Model
from moonlet.train import checkpoint
from moonlet.train.step import Stepper


def trained(steps: int = 1):  # type: ignore[no-untyped-def]
    model, optimizer = fresh()
    stepper = Stepper(1)
    for step in range(steps):
        stepper.step(model, optimizer, tensors(step), 1.0, 100.0)
    stepper.pool.shutdown()
    return model, optimizer


def test_round_trip(tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpoint.save(tmp_path, 3, model, optimizer, {"totals": {"tokens": 5}})
    other, other_optimizer = fresh(seed=1)
    state = checkpoint.load_newest(tmp_path, other, other_optimizer)
    assert state is not None and state["step"] == 3 and state["totals"] == {"tokens": 5}
    for n, t in [*model.state_dict().items(), *optimizer.state.items()]:
        assert torch.equal(t, {**other.state_dict(), **other_optimizer.state}[n]), n
    assert (other.layers[1].mlp.gate.e_score_correction_bias != 0).any()  # the router bias travels too
    assert sorted(p.name for p in (tmp_path / "step-3").iterdir()) == [
        "model.safetensors",
        "optim.safetensors",
        "state.json",
    ]


def test_weights_alone(tmp_path: Path) -> None:
    model, _ = trained()
    checkpoint.save(tmp_path, 1, model, None, {})
    assert not (tmp_path / "step-1" / "optim.safetensors").exists()
    other, optimizer = fresh(seed=1)
    assert checkpoint.load_newest(tmp_path, other, optimizer) is not None
    assert torch.equal(other.lm_head.weight, model.lm_head.weight) and int(optimizer.state["step"]) == 0


def test_nothing_there(tmp_path: Path) -> None:
    model, optimizer = fresh()
    assert checkpoint.load_newest(tmp_path / "none", model, optimizer) is None
    (tmp_path / "step-x").mkdir()
    (tmp_path / ".step-4.partial").mkdir()
    assert checkpoint.load_newest(tmp_path, model, optimizer) is None


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "a bit of the weights": lambda f: flip_a_bit(f / "model.safetensors"),
    "a bit of the optimizer state": lambda f: flip_a_bit(f / "optim.safetensors"),
    "short weights": lambda f: (f / "model.safetensors").write_bytes(b""),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "no record": lambda f: (f / "state.json").unlink(),
    "half a record": lambda f: (f / "state.json").write_text((f / "state.json").read_text()[:20]),
    "an empty record": lambda f: (f / "state.json").write_text("{}"),
    "nothing at all": lambda f: [p.unlink() for p in f.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_falls_back_to_the_one_before(damage: str, tmp_path: Path) -> None:
    first, first_optimizer = trained(1)
    checkpoint.save(tmp_path, 1, first, first_optimizer, {})
    second, second_optimizer = trained(2)
    checkpoint.save(tmp_path, 10, second, second_optimizer, {})  # 10 is newer than 1, not less as text would have it
    model, optimizer = fresh(seed=1)
    assert checkpoint.load_newest(tmp_path, model, optimizer)["step"] == 10  # type: ignore[index]
    DAMAGE[damage](tmp_path / "step-10")
    assert checkpoint.load_newest(tmp_path, model, optimizer)["step"] == 1  # type: ignore[index]
    for n, t in [*first.state_dict().items(), *first_optimizer.state.items()]:
        assert torch.equal(t, {**model.state_dict(), **optimizer.state}[n]), n


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    model, optimizer = fresh()
    for step in (8, 9, 10, 11):
        checkpoint.save(tmp_path, step, model, optimizer, {})
    assert [p.name for p in checkpoint.steps(tmp_path)] == ["step-10", "step-11"]
    checkpoint.save(tmp_path, 11, model, optimizer, {"again": True})
    assert json.loads((tmp_path / "step-11" / "state.json").read_text())["again"]
    shutil.rmtree(tmp_path / "step-11")
    assert checkpoint.load_newest(tmp_path, model, optimizer)["step"] == 10  # type: ignore[index]


def test_another_shape_is_told(tmp_path: Path) -> None:
    model, optimizer = fresh()
    checkpoint.save(tmp_path, 1, model, optimizer, {})
    with pytest.raises(InputError, match="holds another model shape than the recipe"):
        checkpoint.load_newest(tmp_path, Model(for_depth(3, 64)))
