"""Attention Residuals: zero pseudo-queries are a plain residual network; one mix against fla-core's reference."""

import pytest
import torch
from small_models import fla, k3, kimi_linear, random_ids, random_model, relative

from moonlet.model.attn_res import AttnResMix
from moonlet.model.config import ModelConfig
from moonlet.model.model import Model, Stats
from moonlet.model.norm import RMSNorm


def with_zero_queries(config: ModelConfig) -> tuple[Model, Model]:
    """The model with every pseudo-query 0, and the plain residual model of the same weights."""
    model = random_model(config)
    for name, p in model.named_parameters():
        if "res.proj" in name:
            p.data.zero_()
    plain = Model(ModelConfig(**{**vars(config), "attn_res_block_size": None}))
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if "_res." not in n})
    return model, plain


@pytest.mark.parametrize("form", [k3, kimi_linear])
@pytest.mark.parametrize("block", [1, 2, 3, 4, 12])
def test_zero_queries_are_the_plain_network(form, block: int) -> None:  # type: ignore[no-untyped-def]
    # The mean of n disjoint sums is the stream / n, and the norm that follows takes the factor out but for its eps.
    model, plain = with_zero_queries(form(attn_res_block_size=block, rms_norm_eps=1e-12))
    ids = random_ids(2, 20)
    assert (model(ids) - plain(ids)).abs().max() < 5e-6


def test_queries_change_the_network() -> None:
    model, plain = with_zero_queries(k3())
    torch.nn.init.normal_(model.layers[2].mlp_res.proj.weight)
    ids = random_ids(2, 20)
    assert (model(ids) - plain(ids)).abs().max() > 1e-3


def test_layer_zero_reads_one_source() -> None:
    """Its attention mix has the embedding alone: the query cannot matter. Every other query and norm must."""
    model = random_model(k3())
    loss = model(random_ids(2, 20)).square().mean()
    mixes = {n: p for n, p in model.named_parameters() if "_res." in n}
    assert len(mixes) == 2 * (2 * 4 + 1)
    for (name, _), grad in zip(mixes.items(), torch.autograd.grad(loss, list(mixes.values()), allow_unused=True)):
        if name.startswith("layers.0.self_attention_res"):
            assert grad is None
        else:
            assert grad is not None and grad.abs().max() > 0, name


@pytest.mark.parametrize("sources", [2, 5])
def test_mix_equals_fla(sources: int) -> None:
    torch.manual_seed(0)
    d, eps = 24, 1e-5
    values = [torch.randn(2, 7, d, requires_grad=True) for _ in range(sources)]
    mix = AttnResMix(d, eps)
    torch.nn.init.normal_(mix.proj.weight)
    torch.nn.init.uniform_(mix.norm.weight, 0.5, 1.5)
    after = RMSNorm(d, 0.1)
    torch.nn.init.uniform_(after.weight, 0.5, 1.5)
    leaves = [*values, mix.proj.weight, mix.norm.weight, after.weight]
    ours = mix(values, after)
    h = fla("attnres").naive_attnres(mix.proj.weight[0], values, mix.norm.weight, rms_eps=eps)
    theirs = after.weight * h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 0.1)
    assert relative(ours, theirs) < 1e-6
    weights = torch.randn_like(ours)
    our_grads, their_grads = (torch.autograd.grad((y * weights).sum(), leaves) for y in (ours, theirs))
    for a, b in zip(our_grads, their_grads):
        assert relative(a, b) < 1e-5


def test_blocks_as_the_report_wires_them() -> None:
    """The layer loop of the K3 report, written out: banked inputs, a live sum that restarts from attention alone."""
    model = random_model(k3(attn_res_block_size=2, num_hidden_layers=4))
    ids = random_ids(2, 20)
    where, eps = model.where(ids, None, None, None), model.config.rms_norm_eps

    def read(mix: AttnResMix, sources: list[torch.Tensor]) -> torch.Tensor:
        v = torch.stack(sources)
        keys = v * torch.rsqrt(v.square().mean(-1, keepdim=True) + eps) * mix.norm.weight
        return (torch.softmax(keys @ mix.proj.weight[0], dim=0).unsqueeze(-1) * v).sum(0)

    banked, p = [], model.embed_tokens(ids)
    for layer in model.layers:
        h = read(layer.self_attention_res, [*banked, p]) if banked else p
        first = layer.index % 2 == 0
        if first:
            banked.append(p)
        attention = layer.attention(layer.input_layernorm(h), where, Stats())
        p = attention if first else p + attention
        p = p + layer.ffn(layer.post_attention_layernorm(read(layer.mlp_res, [*banked, p])), Stats())
    logits = model.lm_head(model.norm(read(model.output_attn_res, [*banked, p])))
    assert (model(ids) - logits).abs().max() < 5e-6
