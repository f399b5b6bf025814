"""The draft against its equations written out, token by token."""

import pytest
import torch
from small_models import FORMS, random_ids, random_model
from torch import Tensor

from moonlet.model.draft import Draft, block_count, chosen_blocks, published_name
from moonlet.model.model import Model, Stats, Where
from moonlet.train.draft import unrolled


def pair(form: str = "k3") -> tuple[Model, Draft]:
    model = random_model(FORMS[form](), std=0.2)
    draft = Draft(model.config).init_weights(1)
    with torch.no_grad():
        for name, p in draft.named_parameters():
            p.normal_(1.0 if p.ndim == 1 else 0.0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    return model, draft


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def chain(model: Model, draft: Draft, ids: Tensor, known: int) -> list[Tensor]:
    """g of the last place of ids [T], of which the model has seen the first `known`: one place after the other, the
    layer as the model runs its own, on all places up to this one."""
    blocks = model.hidden(ids[None, :known])[1].blocks if known else []
    joined = torch.cat([blocks[i] for i in draft.blocks], -1)[0] if known else torch.empty(0, draft.fc.in_features)
    h = [torch.zeros(draft.config.hidden_size), *(joined @ draft.fc.weight.T)]
    layer, inputs = draft.layers[0], []
    for t, token in enumerate(ids.tolist()):
        e = rms(model.embed_tokens.weight[token], draft.enorm.weight, draft.enorm.eps)
        inputs.append(draft.eh_proj.weight @ torch.cat([e, rms(h[t], draft.hnorm.weight, draft.hnorm.eps)]))
        x = torch.stack(inputs)[None]
        x = x + layer.attention(layer.input_layernorm(x), Where(), Stats())
        g = (x + layer.ffn(layer.post_attention_layernorm(x), Stats()))[0, -1]
        if t >= known:
            h.append(g)
    return g


@torch.no_grad()
@pytest.mark.parametrize("form", ["k3", "kimi_linear", "k2"])
def test_unrolled_steps_are_chains(form: str) -> None:
    """Step s at place t is a chain of s places that ends there, in each document of a packed row."""
    model, draft = pair(form)
    one, other = random_ids(2, 9, seed=3)
    ids, segments = torch.cat([one, other])[None], torch.tensor([[1] * 9 + [2] * 9])
    blocks = torch.stack(model.hidden(ids, segments)[1].blocks, 2)
    steps = unrolled(draft, model.embed_tokens(ids), blocks, segments, 4)
    for s, g in enumerate(steps, 1):
        for t in (s - 1, 5, 8):
            for row, start in ((one, 0), (other, 9)):
                wanted = chain(model, draft, row[: t + 1], t + 1 - s)
                assert (g[0, start + t] - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_blocks_and_the_fusion_at_first() -> None:
    """K3 reads blocks 1, 4 and 8; at first the last one's sum goes through as it is."""
    model, _ = pair()
    assert chosen_blocks(model.config) == [0, 1] and block_count(model.config) == 2
    eight = FORMS["k3"](attn_res_block_size=1, num_hidden_layers=8, linear_attn_config=None)
    assert [n + 1 for n in chosen_blocks(eight)] == [1, 4, 8]
    assert chosen_blocks(FORMS["k2"]()) == [0]
    draft, blocks = Draft(eight).init_weights(0), torch.randn(3, 8, 32)
    assert torch.equal(draft.fuse(blocks), blocks[:, 7])


def test_names_are_the_published_ones() -> None:
    _, draft = pair()
    names = {published_name(name, draft) for name, _ in draft.named_parameters()}
    assert {"fc.weight", "model.layers.4.eh_proj.weight", "model.layers.4.shared_head.norm.weight"} <= names
    assert {"model.layers.4.self_attn.kv_b_proj.weight", "model.layers.4.mlp.down_proj.weight"} <= names
    assert len(names) == len(list(draft.parameters()))
