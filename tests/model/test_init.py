"""A fresh model: everything finite, a first loss of ln(vocab), the size of the smallest preset, seeds."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import FORMS, first_loss

from moonlet.model.config import for_depth
from moonlet.model.model import Model


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_and_buffer_is_finite(form: str) -> None:
    model = Model(FORMS[form]()).init_weights(0)
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        assert t.isfinite().all(), name


def test_nano() -> None:
    model = Model(for_depth(5, 2048)).init_weights(0)
    assert 1_000_000 < sum(p.numel() for p in model.parameters()) < 2_000_000
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        assert t.isfinite().all(), name
    assert abs(first_loss(model) - math.log(2048)) < 0.05 * math.log(2048)


def test_starting_values() -> None:
    model = Model(FORMS["k3"]()).init_weights(0)
    for name, p in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (p == 1).all(), name
        elif "res.proj" in name or name.endswith("A_log"):
            assert (p == 0).all(), name
        elif name.endswith("dt_bias"):  # softplus(dt_bias) is log-uniform in [1e-3, 1e-1]
            assert 0.9e-3 < F.softplus(p).min() and F.softplus(p).max() < 1.1e-1
        elif "conv1d" in name:
            assert p.abs().max() <= 0.5 and p.std() > 0.2, name
        else:
            assert 0.013 < p.std() < 0.027, name
    unbounded = Model(FORMS["kimi_linear"]()).init_weights(0)
    A = torch.cat([p.exp() for name, p in unbounded.named_parameters() if name.endswith("A_log")])
    assert 1 <= A.min() and A.max() <= 16 and A.std() > 1


def test_the_seed_decides() -> None:
    a, b, c = (Model(FORMS["k3"]()).init_weights(seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["embed_tokens.weight"], c["embed_tokens.weight"])
