"""The loop: a run stopped anywhere ends in the same bits, two runs are equal, bad steps are skipped, many end it."""

import json
from pathlib import Path

import pytest
import torch
from small_runs import digests, fresh, run

from moonlet.tracker import read
from moonlet.train.loop import mean_context


class Stopped(Exception):
    """What interrupts a run in these tests."""


def stop_after(step: int):  # type: ignore[no-untyped-def]
    def progress(done: int, steps: int, log: dict[str, float]) -> None:
        if done == step:
            raise Stopped

    return progress


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A run of 6 steps that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_stopped_run_ends_in_the_same_bits(step: int, whole: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, progress=stop_after(step))
    assert not (tmp_path / "steps" / "step-6").exists()
    totals = run(tmp_path)
    assert digests(tmp_path, 6) == digests(whole[0], 6)
    assert {k: totals[k] for k in ("tokens", "flops", "skipped")} == {
        k: whole[1][k] for k in ("tokens", "flops", "skipped")
    }
    theirs, ours = read(whole[0])["small/loss"], read(tmp_path)["small/loss"]
    assert ours.step.tolist() == list(range(6)) and ours.value.tolist() == theirs.value.tolist()


def test_stopped_twice_and_after_a_torn_checkpoint(whole: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    for step in (3, 5):
        with pytest.raises(Stopped):
            run(tmp_path, progress=stop_after(step))
    torn = tmp_path / "steps" / "step-4" / "optim.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    run(tmp_path)
    assert digests(tmp_path, 6) == digests(whole[0], 6)


def test_a_finished_run_does_nothing_more(whole: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    before = digests(whole[0], 6)
    assert run(whole[0]) == whole[1]
    assert digests(whole[0], 6) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_two_runs_are_equal(workers: int, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(tmp_path / name, workers, steps=3)
    assert digests(tmp_path / "a", 3) == digests(tmp_path / "b", 3)


def test_another_seed_is_another_run(whole: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    run(tmp_path, model_and_optimizer=fresh(seed=1))
    assert digests(tmp_path, 6) != digests(whole[0], 6)


def test_it_learns(whole: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    run(tmp_path, steps=30, save_every=30)
    loss = read(tmp_path)["small/loss"].value
    assert loss[-1] < 0.6 * loss[0]


def test_a_bad_step_is_skipped_and_many_stop_the_run(tmp_path: Path) -> None:
    model, optimizer = fresh()
    kept = model.lm_head.weight.detach().clone()
    state = {}

    def progress(done: int, steps: int, log: dict[str, float]) -> None:
        """NaN in the head during steps 1 and 2 (0-based), and from step 4 on."""
        if done == 1:
            kept.copy_(model.lm_head.weight.detach())
            state.update({n: t.clone() for n, t in model.state_dict().items()})
        if done == 3:
            assert log["skipped"] == 1.0
            model.lm_head.weight.data.copy_(kept)
            assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())  # no step was taken
            assert int(optimizer.state["step"]) == 1
        if done in (1, 4):
            model.lm_head.weight.data.fill_(torch.nan)

    with pytest.raises(FloatingPointError, match=r"small: .* 3 steps in a row at step 6; lower the learning rate"):
        run(tmp_path, model_and_optimizer=(model, optimizer), progress=progress, steps=20, max_skips=3)
    series = read(tmp_path)
    assert series["small/skipped"].value.tolist()[:6] == [0, 1, 1, 0, 1, 1]
    assert int(optimizer.state["step"]) == 2


def test_checkpoints_come_at_their_interval_and_at_the_end(tmp_path: Path) -> None:
    seen = {}

    def progress(done: int, steps: int, log: dict[str, float]) -> None:
        seen[done] = sorted(p.name for p in (tmp_path / "steps").glob("step-*"))

    totals = run(tmp_path, steps=5, progress=progress)
    assert seen == {1: [], 2: ["step-2"], 3: ["step-2"], 4: ["step-2", "step-4"], 5: ["step-4", "step-5"]}
    state = json.loads((tmp_path / "steps" / "step-5" / "state.json").read_text())
    assert state["step"] == 5 and state["totals"] == totals


def test_mean_context() -> None:
    # Documents of 3 and 1 tokens, one of 4: keys seen are 1+2+3, 1, 1+2+3+4 over 8 tokens. Padding counts for nothing.
    assert mean_context(torch.tensor([[1, 1, 1, 2, 0], [1, 1, 1, 1, 0]])) == pytest.approx(17 / 8)
