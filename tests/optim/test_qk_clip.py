"""QK-Clip: the largest logit of a clipped head comes down to tau, and nothing else moves."""

import pytest
import torch
from small_models import FORMS, YARN, k2, k3, random_ids, random_model

from moonlet.model.config import ModelConfig
from moonlet.model.model import Model
from moonlet.optim.qk_clip import qk_clip


def one_layer(rope: bool, q_lora_rank: int | None) -> ModelConfig:
    """One MLA layer: its input does not depend on what is clipped, so the logits can be compared."""
    if rope:
        return k2(num_hidden_layers=1, q_lora_rank=q_lora_rank, rope_scaling=YARN)
    attention = {"kda_layers": [], "full_attn_layers": [1], "head_dim": 16, "num_heads": 2}
    return k3(num_hidden_layers=1, q_lora_rank=q_lora_rank, linear_attn_config=attention, num_attention_heads=3)


def largest(model: Model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.hidden(ids)[1].max_logits[0]


@pytest.mark.parametrize("q_lora_rank", [None, 12])
@pytest.mark.parametrize("rope", [False, True])
def test_clipped_heads_come_down_to_tau(rope: bool, q_lora_rank: int | None) -> None:
    model = random_model(one_layer(rope, q_lora_rank), std=0.5)
    ids = random_ids(3, 40)
    before = largest(model, ids)
    tau = float(before.sort().values[-2:].mean())  # between the two largest: one head is clipped
    state = {n: t.clone() for n, t in model.state_dict().items()}
    assert qk_clip(model, {0: before}, tau) == 1
    after = largest(model, ids)
    head = int(before.argmax())
    assert float(after[head]) <= tau * (1 + 1e-5) and float(after[head]) > tau * (1 - 1e-3)
    others = [h for h in range(len(before)) if h != head]
    assert torch.allclose(after[others], before[others])
    query = "q_b_proj" if q_lora_rank else "q_proj"
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, state[n])}
    assert moved == {f"layers.0.self_attn.{n}.weight" for n in (query, "kv_b_proj")}

    def by_head(weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        return weights[f"layers.0.self_attn.{name}.weight"].unflatten(0, (len(before), -1))

    kv, kv_before = by_head(model.state_dict(), "kv_b_proj"), by_head(state, "kv_b_proj")
    assert torch.equal(kv[:, 8:], kv_before[:, 8:])  # value rows
    assert torch.equal(kv[others], kv_before[others])
    gamma = tau / before[head]
    q, q_before = by_head(model.state_dict(), query), by_head(state, query)
    assert torch.allclose(kv[head, :8], kv_before[head, :8] * gamma.sqrt())
    assert torch.allclose(q[head, :8], q_before[head, :8] * gamma.sqrt())
    assert torch.allclose(q[head, 8:], q_before[head, 8:] * gamma)


def test_nothing_happens_below_tau() -> None:
    model = random_model(k3())
    ids = random_ids(2, 20)
    with torch.no_grad():
        max_logits = model.hidden(ids)[1].max_logits
    assert list(max_logits) == [3]  # MLA layers only
    state = {n: t.clone() for n, t in model.state_dict().items()}
    assert qk_clip(model, max_logits, float(max_logits[3].max()) + 1e-3) == 0
    assert qk_clip(model, {3: -max_logits[3].abs()}, 1e-6) == 0  # all logits negative: below any tau
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_largest_logits_are_those_of_the_attention(form: str) -> None:
    """Of seen keys only, over the whole batch, and packed rows by document."""
    model = random_model(FORMS[form](), std=0.3)
    ids = random_ids(2, 24)
    rows = [model.hidden(ids[i : i + 1])[1].max_logits for i in range(2)]
    whole = model.hidden(ids)[1].max_logits
    for layer, logits in whole.items():
        assert torch.allclose(logits, torch.maximum(rows[0][layer], rows[1][layer]), atol=1e-5)
    segments = torch.tensor([[1] * 10 + [2] * 14]).expand(2, 24)
    packed = model.hidden(ids, segments)[1].max_logits
    parts = [model.hidden(ids[:, a:b])[1].max_logits for a, b in ((0, 10), (10, 24))]
    for layer, logits in packed.items():
        assert torch.allclose(logits, torch.maximum(parts[0][layer], parts[1][layer]), atol=1e-5)
