"""Per-head Muon against its definition block by block, and the AdamW part against torch's."""

import pytest
import torch
from small_models import k2, k3, kimi_linear, random_ids, random_model, relative
from torch import Tensor

from moonlet.model.kernels import native
from moonlet.model.model import Model
from moonlet.optim.muon import MuonAdamW, OptimConfig, muon_blocks, newton_schulz


def gradients(model: Model, seed: int = 0) -> dict[str, Tensor]:
    r = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=r) * 0.1 for n, p in model.named_parameters()}


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (1, 12)])
def test_newton_schulz(shape: tuple[int, int]) -> None:
    G = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    O = newton_schulz(G)
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    # In the frame of G's own singular vectors the result is diagonal: the same directions, values near 1.
    inside = U.mT @ O @ Vh.mT
    values = inside.diagonal(dim1=1, dim2=2)
    assert (inside - torch.diag_embed(values)).abs().max() < 1e-3
    strong = S / S.norm(dim=1, keepdim=True) > 0.02  # five steps lift what is not too small
    assert values[strong].min() > 0.6 and values[strong].max() < 1.25
    assert relative(newton_schulz(7 * G), O) < 1e-4  # scale does not matter
    assert relative(newton_schulz(G.mT), O.mT) < 1e-4


def test_what_is_split_and_what_goes_to_adamw() -> None:
    model = Model(k3())
    blocks = muon_blocks(model)
    kda, mla = "layers.0.self_attn.", "layers.3.self_attn."
    expected = {kda + n + "_proj.weight": 2 for n in "qkv"}
    expected |= {kda + n + ".weight": 1 for n in ("f_a_proj", "f_b_proj", "b_proj", "g_proj", "o_proj")}
    expected |= {mla + n + ".weight": 2 for n in ("q_b_proj", "kv_b_proj")}
    expected |= {mla + n + ".weight": 1 for n in ("q_a_proj", "kv_a_proj_with_mqa", "g_proj", "o_proj")}
    expected |= {"layers.0.mlp." + n + "_proj.weight": 1 for n in ("gate", "up", "down")}
    expected |= {"layers.1.mlp.experts." + n: 6 for n in ("w1", "w2", "w3")}
    expected |= {"layers.1.mlp.routed_expert_" + n + "_proj.weight": 1 for n in ("up", "down")}
    expected |= {"layers.1.mlp.shared_experts." + n + "_proj.weight": 1 for n in ("gate", "up", "down")}
    expected["layers.1.mlp.gate.weight"] = 1
    layers = ("layers.0.", "layers.3.self", "layers.1.mlp")
    assert {n: b for n, b in blocks.items() if n.startswith(layers)} == expected
    rest = set(dict(model.named_parameters())) - set(blocks)
    ends = ("norm.weight", "layernorm.weight", "conv1d.weight", "A_log", "dt_bias", "res.proj.weight")
    assert {n for n in rest if not n.endswith(ends)} == {"embed_tokens.weight", "lm_head.weight"}
    # Heads of the two kinds of layer are counted apart.
    uneven = {**k3().linear_attn_config, "num_heads": 4, "head_dim": 8}  # type: ignore[dict-item]
    assert muon_blocks(Model(k3(linear_attn_config=uneven)))[kda + "q_proj.weight"] == 4
    assert muon_blocks(Model(k2(q_lora_rank=None)))["layers.0.self_attn.q_proj.weight"] == 2


def muon_by_definition(p: Tensor, g: Tensor, m: Tensor, c: OptimConfig, lr: float) -> tuple[Tensor, Tensor]:
    """Moonlight eq. 1-4 on one matrix, Nesterov momentum."""
    m = c.momentum * m + g
    O = newton_schulz((c.momentum * m + g).unsqueeze(0))[0]
    return p - lr * (0.2 * max(p.shape) ** 0.5 * O + c.weight_decay * p), m


@pytest.mark.parametrize("library", [native.library, lambda: None], ids=["native", "plain"])
@pytest.mark.parametrize("form", [k3, kimi_linear, k2])
def test_each_block_is_stepped_alone(form, library, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """A head's (an expert's) update is the one that Muon gives to that block as a matrix of its own."""
    monkeypatch.setattr(native, "library", library)
    model = random_model(form())
    config = OptimConfig(muon_lr=0.02, adamw_lr=0.003)
    blocks = muon_blocks(model)
    optimizer = MuonAdamW(model, blocks, config)
    params = dict(model.named_parameters())
    expected = {n: list(params[n].detach().clone().reshape(k, -1, params[n].shape[-1])) for n, k in blocks.items()}
    momentum = {n: [torch.zeros_like(b) for b in parts] for n, parts in expected.items()}
    for step in range(2):
        grads = gradients(model, step)
        optimizer.step(grads, 0.5)
        for n, parts in expected.items():
            for i, g in enumerate(grads[n].reshape(blocks[n], -1, grads[n].shape[-1])):
                parts[i], momentum[n][i] = muon_by_definition(parts[i], g, momentum[n][i], config, 0.5 * 0.02)
    for n, parts in expected.items():
        assert (params[n].detach() - torch.cat(parts).view_as(params[n])).abs().max() < 2e-6, n


def test_a_head_with_small_gradients_steps_as_far_as_the_others() -> None:
    model = random_model(k3())
    before = model.layers[0].self_attn.q_proj.weight.detach().clone()
    grads = gradients(model)
    grads["layers.0.self_attn.q_proj.weight"][:16] *= 1e-4
    MuonAdamW(model, muon_blocks(model), OptimConfig(0.02, 0.003, weight_decay=0.0)).step(grads, 1.0)
    moved = (model.layers[0].self_attn.q_proj.weight.detach() - before).view(2, 16, 32).norm(dim=(1, 2))
    assert 0.8 < moved[0] / moved[1] < 1.25


def test_update_has_the_rms_of_an_adamw_step() -> None:
    model = random_model(k3())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    blocks = muon_blocks(model)
    MuonAdamW(model, blocks, OptimConfig(1.0, 1.0, weight_decay=0.0)).step(gradients(model), 1.0)
    for n, p in model.named_parameters():
        if n in blocks and p.shape[-1] == p.shape[-2] == 32:
            assert 0.15 < float((p.detach() - before[n]).square().mean().sqrt()) < 0.25, n


def test_adamw_equals_torch() -> None:
    model, twin = random_model(k3()), random_model(k3())
    config = OptimConfig(muon_lr=0.02, adamw_lr=0.003)
    blocks = muon_blocks(model)
    optimizer = MuonAdamW(model, blocks, config)
    rest = {n: p for n, p in twin.named_parameters() if n not in blocks}
    decayed = ("embed_tokens.weight", "lm_head.weight")
    groups = [
        {"params": [rest[n] for n in decayed], "weight_decay": config.weight_decay},
        {"params": [p for n, p in rest.items() if n not in decayed], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=config.adamw_lr, betas=config.betas, eps=config.eps)
    for step, scale in enumerate((1.0, 1.0, 0.3, 0.3, 0.1)):
        grads = gradients(model, step)
        optimizer.step(grads, scale)
        for n, p in rest.items():
            p.grad = grads[n].clone()
        for group in theirs.param_groups:
            group["lr"] = scale * config.adamw_lr
        theirs.step()
    for n, p in model.named_parameters():
        if n in rest:
            assert (p - rest[n]).abs().max() < 1e-6, n
    assert int(optimizer.state["step"]) == 5


def test_state_is_all_there_is() -> None:
    """A copy of the weights with a copy of `state` takes the same next step."""
    model, twin = random_model(k3()), random_model(k3(), seed=1)
    config = OptimConfig(0.02, 0.003)
    a, b = MuonAdamW(model, muon_blocks(model), config), MuonAdamW(twin, muon_blocks(twin), config)
    a.step(gradients(model, 0), 1.0)
    twin.load_state_dict(model.state_dict())
    for key, value in a.state.items():
        b.state[key].copy_(value)
    for optimizer, m in ((a, model), (b, twin)):
        optimizer.step(gradients(m, 1), 1.0)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters()))


def test_training_lowers_the_loss() -> None:
    model = random_model(k3())
    optimizer = MuonAdamW(model, muon_blocks(model), OptimConfig(0.02, 0.01))
    ids = random_ids(4, 24)
    losses = []
    for _ in range(12):
        logits = model(ids)[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        named = dict(zip(dict(model.named_parameters()), grads))
        params = dict(model.named_parameters())
        optimizer.step({n: torch.zeros_like(params[n]) if g is None else g for n, g in named.items()}, 1.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
