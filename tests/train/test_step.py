"""One step: gradients against a plain sum over documents, however the rows are dealt; what is skipped and logged."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import relative
from small_runs import fresh, tensors

from moonlet.model.model import Model
from moonlet.optim.qk_clip import qk_clip
from moonlet.quant.grids import round_to_grid
from moonlet.train import step as step_module
from moonlet.train.step import Batch, Stepper, cross_entropy, deal, micro_batches, signal_share, target_mask


@pytest.fixture(scope="module")
def steppers():  # type: ignore[no-untyped-def]
    made = {n: Stepper(n) for n in (1, 2, 3, 8)}
    yield made
    for stepper in made.values():
        stepper.pool.shutdown()


def by_document(model: Model, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss over the targets and its gradients, one document at a time, each alone in its row."""
    total, losses = 0, []
    for ids, segments, loss in zip(batch["tokens"], batch["segments"], batch["loss"]):
        for number in range(1, int(segments.max()) + 1):
            mine = segments == number
            document, target = ids[mine], loss[mine].bool()
            logits = model(document[None])[0]
            each = F.cross_entropy(logits[:-1], document[1:], reduction="none")
            losses.append(each[target[1:]].sum())
            total += int(target[1:].sum())
    mean = sum(losses) / total
    params = dict(model.named_parameters())
    grads = torch.autograd.grad(mean, list(params.values()), allow_unused=True)
    return mean.item(), {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(params.items(), grads)}


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Of any tensor, by its norm; tensors with next to no gradient by a thousandth of the typical norm."""
    floor = 1e-3 * float(torch.stack([t.norm() for t in b.values()]).median())
    return max(float((a[n] - b[n]).norm() / b[n].norm().clamp(min=floor)) for n in b)


@pytest.mark.parametrize("micro_tokens", [2048, 40])
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_gradients(workers: int, micro_tokens: int, steppers, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(step_module, "MICRO_TOKENS", micro_tokens)
    model, _ = fresh()
    batch = tensors()
    expected_loss, expected = by_document(model, batch)
    loss, grads, parts = steppers[workers].gradients(model, batch)
    assert len(parts) >= (4 if micro_tokens == 40 else min(workers, 4))
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert largest_difference(grads, expected) < 2e-5


def test_workers_agree(steppers) -> None:  # type: ignore[no-untyped-def]
    model, _ = fresh()
    one, two = (steppers[n].gradients(model, tensors())[1] for n in (1, 2))
    assert largest_difference(two, one) < 1e-5
    whole = [torch.cat([t.flatten() for t in g.values()]) for g in (one, two)]
    assert relative(whole[1], whole[0]) < 1e-6


def test_the_workers_get_equal_shares_and_no_padding() -> None:
    lengths = [5, 90, 12, 40, 30, 7, 3, 1]
    numbers = torch.tensor(lengths).unsqueeze(1)
    place = torch.arange(90)
    batch = {
        "tokens": torch.arange(8).unsqueeze(1) * 100 + place,
        "segments": torch.where(place < numbers // 2, 1, 2) * (place < numbers),
    }
    hands = deal(batch, 2)
    assert sorted(row for hand in hands for row, _ in hand) == list(range(8))
    assert sorted(sum(n for _, n in hand) for hand in hands) == [94, 94]
    for hand in hands:
        (whole,) = micro_batches(batch, hand)
        assert whole["tokens"].tolist() == [[row * 100 + i for row, n in hand for i in range(n)]]
        segments = whole["segments"][0]
        documents = sum(1 if n == 1 else 2 for _, n in hand)
        assert int((segments[1:] != segments[:-1]).sum()) + 1 == len(segments.unique()) == documents
    assert deal(batch, 20) == [[(row, lengths[row])] for row in (1, 3, 4, 2, 5, 0, 6, 7)]


def test_signal_share() -> None:
    """Of two noisy gradients it is the factor that brings their sum nearest to twice the signal."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(4000, generator=generator)
    for noise in (0.0, 0.5, 1.0, 4.0):
        a, b = (signal + noise * torch.randn(4000, generator=generator) for _ in range(2))
        share = signal_share([a[:1000], a[1000:]], [b[:1000], b[1000:]])
        assert share == pytest.approx(1 / (1 + noise**2 / 2), abs=0.04)
        best = float(((a + b) @ (2 * signal)) / (a + b).square().sum())
        assert share == pytest.approx(best, abs=0.04)
    assert signal_share([signal], [-signal]) == 0.0 and signal_share([0 * signal], [signal]) == 0.0


def losses(bf16: bool) -> list[float]:
    """Of twelve steps with experts in 4 bits; whatever the products take, everything that is kept is fp32."""
    stepper, (model, optimizer) = Stepper(1, bf16), fresh()
    model.expert_format = "mxfp4"
    found = [stepper.step(model, optimizer, tensors(step), 1.0, 100.0)["loss"] for step in range(12)]
    stepper.pool.shutdown()
    kept = [*model.parameters(), *(t for t in optimizer.state.values() if t.ndim)]
    assert all(t.dtype == torch.float32 for t in kept)
    return found


def test_bf16_learns_as_fp32_does() -> None:
    exact, rounded = torch.tensor(losses(bf16=False)), torch.tensor(losses(bf16=True))
    assert exact[-1] < 0.6 * exact[0]
    assert 0 < (rounded - exact).abs().max() < 0.005 * exact[0]


def test_two_halves_are_one_batch_and_the_step_is_as_long_as_they_agree(steppers) -> None:  # type: ignore[no-untyped-def]
    batch = tensors()
    half, other = ({k: v[at] for k, v in batch.items()} for at in (slice(0, 2), slice(2, None)))
    (model, optimizer), (twin, twin_optimizer) = fresh(), fresh()
    log = steppers[2].step(model, optimizer, half, 1.0, 1e9, balance=False, other=other)
    assert 0 < log["signal_share"] < 1
    alike = steppers[2].step(twin, twin_optimizer, batch, log["signal_share"], 1e9, balance=False)
    assert log["loss"] == pytest.approx(alike["loss"], rel=1e-6)
    assert log["grad_norm"] == pytest.approx(alike["grad_norm"], rel=1e-5)
    for (name, p), q in zip(model.named_parameters(), twin.parameters()):
        assert (p - q).abs().max() < 1e-5, name


def test_targets_stay_in_their_document() -> None:
    batch = {
        "segments": torch.tensor([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0]]),
        "loss": torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0]]),
    }
    assert target_mask(batch).int().tolist() == [[0, 1, 0, 1, 0, 0], [0, 0, 1, 1, 0, 0]]


def finite_loss_bad_gradient(logits: torch.Tensor, batch: Batch, where: torch.Tensor):  # type: ignore[no-untyped-def]
    return (logits.sum() - logits.sum()).abs().sqrt(), {}


def bad_loss(logits: torch.Tensor, batch: Batch, where: torch.Tensor):  # type: ignore[no-untyped-def]
    return cross_entropy(logits, batch, where)[0] * math.inf, {}


@pytest.mark.parametrize("objective", [finite_loss_bad_gradient, bad_loss])
def test_a_step_that_is_not_finite_changes_nothing(objective, steppers) -> None:  # type: ignore[no-untyped-def]
    model, optimizer = fresh()
    before = {n: t.clone() for n, t in [*model.state_dict().items(), *optimizer.state.items()]}
    log = steppers[1].step(model, optimizer, tensors(), 1.0, 100.0, objective=objective)
    assert log["skipped"] == 1.0
    assert all(torch.equal(t, before[n]) for n, t in [*model.state_dict().items(), *optimizer.state.items()])
    assert steppers[1].step(model, optimizer, tensors(), 1.0, 100.0)["skipped"] == 0.0
    assert not torch.equal(model.lm_head.weight, before["lm_head.weight"])


def test_what_a_step_does_after_the_update(steppers) -> None:  # type: ignore[no-untyped-def]
    """QK-Clip by the largest logit of the step, then the expert bias from the step's real tokens, padding left out."""
    (model, optimizer), (twin, twin_optimizer) = fresh(), fresh()
    batch = tensors()
    with torch.no_grad():
        stats = twin.hidden(batch["tokens"], batch["segments"])[1]
    tau = float(stats.max_logits[1].max()) * 0.5
    log = steppers[1].step(model, optimizer, batch, 1.0, tau)
    _, grads, _ = steppers[1].gradients(twin, batch)
    twin_optimizer.step(grads, 1.0)
    assert qk_clip(twin, stats.max_logits, tau) == log["clipped_heads"] >= 1
    assert log["max_logit"] == pytest.approx(2 * tau, rel=1e-5)
    for (name, p), q in zip(model.named_parameters(), twin.parameters()):
        assert (p - q).abs().max() < 1e-5, name
    real = batch["segments"].flatten() > 0
    router = stats.routers[1]
    r = (router.cutoff.unsqueeze(1) - router.scores)[real]
    b = r.sort(dim=0).values[int(real.sum()) * 2 // 4]
    assert torch.allclose(model.layers[1].mlp.gate.e_score_correction_bias, b - b.mean(), atol=1e-6)
    frozen, optimizer = fresh()
    steppers[1].step(frozen, optimizer, batch, 1.0, tau, balance=False)
    assert (frozen.layers[1].mlp.gate.e_score_correction_bias == 0).all()


def test_log_of_a_step(steppers) -> None:  # type: ignore[no-untyped-def]
    model, optimizer = fresh()
    batch = tensors()
    loss, grads = by_document(model, batch)
    log = steppers[2].step(model, optimizer, batch, 1.0, 100.0)
    assert log["loss"] == pytest.approx(loss, rel=1e-6)
    norm = torch.cat([g.flatten() for g in grads.values()]).norm()
    assert log["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert 0 <= log["dead_experts"] < 1 and 1 <= log["expert_imbalance"] <= 2
    assert all(math.isfinite(v) for v in log.values())


@pytest.mark.parametrize("format", ["mxfp4", "int4"])
def test_training_through_a_grid(format: str, steppers) -> None:  # type: ignore[no-untyped-def]
    """Gradients are those of the model with rounded experts; the update goes to the unrounded weights."""
    model, optimizer = fresh()
    rounded, rounded_optimizer = fresh()
    for n, p in rounded.named_parameters():
        if ".experts." in n:
            p.data.copy_(round_to_grid(p.data, format))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    start = {n: p.detach().clone() for n, p in rounded.named_parameters()}
    model.expert_format = format
    log = steppers[1].step(model, optimizer, tensors(), 1.0, 100.0)
    theirs = steppers[1].step(rounded, rounded_optimizer, tensors(), 1.0, 100.0)
    assert log["loss"] == theirs["loss"]
    decay = 1 - 0.02 * 0.1  # of the weights, so of what differs between them
    for (n, p), q in zip(model.named_parameters(), rounded.parameters()):
        expected = (before[n] - start[n]) * decay if ".experts." in n else torch.zeros_like(p)
        assert (p - q - expected).abs().max() < 1e-6, n
