"""The RL objective against its equation, token by token, and which tokens it gives a gradient."""

import pytest
import torch

from moonlet.rl.objective import advantages, policy_objective
from moonlet.train.step import Batch

LOW, HIGH, TAU = -0.5, 0.7, 0.1
VOCAB, T = 11, 40


def sampled(spread: float) -> tuple[torch.Tensor, Batch, torch.Tensor]:
    """Logits of the targets (a leaf), the batch and the mask; `spread`: how far the old log-probs are from the new."""
    r = torch.Generator().manual_seed(0)
    where = torch.rand(2, T, generator=r) < 0.6
    where[:, 0] = False
    logits = torch.randn(int(where.sum()), VOCAB, generator=r, requires_grad=True)
    tokens = torch.randint(0, VOCAB, (2, T), generator=r)
    logprob = torch.full((2, T), torch.nan)  # what is not a target must not be read
    new = logits.detach().log_softmax(-1).gather(1, tokens[where][:, None])[:, 0]
    logprob[where] = new + spread * torch.randn(len(new), generator=r)
    advantage = torch.randn(2, T, generator=r)
    return logits, {"tokens": tokens, "logprob": logprob, "advantage": advantage}, where


def test_equation_and_its_gradient() -> None:
    logits, batch, where = sampled(spread=0.6)
    loss, figures = policy_objective(LOW, HIGH, TAU)(logits, batch, where)
    expected, outside = [], []
    for i, (row, t) in enumerate(where.nonzero().tolist()):
        pi = torch.softmax(logits[i], dim=0)[batch["tokens"][row, t]]
        log_ratio = torch.log(pi) - batch["logprob"][row, t]
        outside.append(not LOW <= float(log_ratio.detach()) <= HIGH)
        if not outside[-1]:
            ratio = pi / torch.exp(batch["logprob"][row, t])
            expected.append(ratio * batch["advantage"][row, t] - TAU * log_ratio**2)
    assert 3 < sum(outside) < len(outside) - 3
    assert figures["masked"] == sum(outside)
    by_hand = -torch.stack(expected).sum()
    assert float(loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)
    ours, theirs = torch.autograd.grad(loss, logits)[0], torch.autograd.grad(by_hand, logits)[0]
    assert torch.allclose(ours, theirs, atol=1e-6)
    out = torch.tensor(outside)
    assert (ours[out] == 0).all() and (ours[~out].abs().amax(1) > 0).all()  # whatever the sign of the advantage


def test_fresh_samples_have_no_mismatch() -> None:
    logits, batch, where = sampled(spread=0.0)
    _, figures = policy_objective(LOW, HIGH, TAU)(logits, batch, where)
    assert figures["masked"] == 0 and abs(figures["mismatch_kl"]) < 1e-5
    logits, batch, where = sampled(spread=0.2)
    assert policy_objective(LOW, HIGH, TAU)(logits, batch, where)[1]["mismatch_kl"] > 0.1


def test_advantages_are_differences_from_the_group_s_mean() -> None:
    assert advantages([1.0, 0.0, 0.0, 1.0]) == [0.5, -0.5, -0.5, 0.5]
    assert advantages([0.3, 0.3]) == [0.0, 0.0]
    assert advantages([2.0, -1.0, 2.0])[1] == pytest.approx(-2.0)  # no division by the standard deviation
