"""The recall start: finite, the same loss at step 0, and a memory that answers with what followed a token."""

import math

import torch
import torch.nn.functional as F
from small_models import FORMS, first_loss

from moonlet.model.config import for_depth
from moonlet.model.kda import KDA
from moonlet.model.model import Model
from moonlet.model.recall import start_with_recall


def test_finite_and_the_first_loss_is_that_of_a_guess() -> None:
    model = start_with_recall(Model(for_depth(4, 2048)).init_weights(0), 0)
    for name, p in model.named_parameters():
        assert p.isfinite().all(), name
    assert abs(first_loss(model) - math.log(2048)) < 0.05 * math.log(2048)


def test_the_first_layer_recalls_what_followed() -> None:
    """After "... x y ... x" its output is nearer to that of y's own value than to any other token's."""

    def hits(recall: bool) -> float:
        torch.manual_seed(0)
        model = Model(for_depth(4, 256)).init_weights(0)
        if recall:
            start_with_recall(model, 0)
        kda = model.layers[0].self_attn
        assert isinstance(kda, KDA)
        x = F.rms_norm(model.embed_tokens(torch.arange(64)), (128,))  # 64 different tokens
        right = 0
        with torch.no_grad():
            values = F.silu(kda.v_proj(x)) @ kda.o_proj.weight.T
            for place in range(40):
                seq = torch.cat([x[:48], x[place : place + 1]])[None]
                out = kda(seq)[0, -1]
                others = F.cosine_similarity(out[None], values[:48])
                others[place] = -1  # the token itself was just written
                right += int(others.argmax() == place + 1)
        return right / 40

    assert hits(False) < 0.2
    assert hits(True) > 0.6


def test_other_forms_keep_their_gate() -> None:
    model = start_with_recall(Model(FORMS["kimi_linear"]()).init_weights(0), 0)
    for name, p in model.named_parameters():
        assert p.isfinite().all(), name
        if name.endswith("dt_bias"):
            assert F.softplus(p).max() < 1.1e-2
