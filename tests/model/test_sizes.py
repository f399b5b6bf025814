"""What a training step keeps, counted against what autograd really keeps."""

from typing import Any

import pytest
import torch
from small_models import FORMS, random_ids
from torch import Tensor

from moonlet.model.config import ModelConfig
from moonlet.model.kernels import native
from moonlet.model.kernels.cross_entropy import summed_cross_entropy
from moonlet.model.model import Model
from moonlet.model.sizes import activations

pytestmark = pytest.mark.skipif(native.library() is None, reason=f"no native kernels: {native.why_not()}")


def kept(c: ModelConfig, tokens: int) -> int:
    """Bytes of the storages that a forward pass and the loss save, weights left out."""
    model = Model(c).init_weights(0)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, Tensor] = {}  # the tensors too: no storage may be freed and its address used again

    def keep(t: Tensor) -> Tensor:
        found[t.untyped_storage().data_ptr()] = t
        return t

    ids = random_ids(1, tokens)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        logits = model.lm_head(model.hidden(ids, torch.ones_like(ids))[0].flatten(0, 1))
        summed_cross_entropy(logits, ids[0])
    logits_bytes = logits.untyped_storage().nbytes()  # the loss keeps them without telling autograd
    return logits_bytes + sum(t.untyped_storage().nbytes() for where, t in found.items() if where not in weights)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("changes", [{}, {"num_experts": 0}, {"moe_renormalize": False}, {"num_attention_heads": 5}])
def test_activations_are_what_autograd_keeps(form: str, changes: dict[str, Any]) -> None:
    c = FORMS[form](**changes)
    measured = (kept(c, 512) - kept(c, 256)) / 256 / 4
    assert activations(c) / measured == pytest.approx(1, abs=0.02)
