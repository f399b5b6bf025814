"""Matrices in 4 and 8 bits in the native decoder: exact products, and the same bits for any team, batch and part."""

import pytest
import torch
from small_models import FORMS, random_ids, random_model
from torch import Tensor

from moonlet.engine.packed import KINDS, PackedModel, in_rows
from moonlet.model.kernels.native import call, library, why_not
from moonlet.model.model import Model
from moonlet.quant.grids import int_codes, int_values, mxfp4_codes, mxfp4_values, round_to_grid
from moonlet.quant.packed_experts import pack_experts

pytestmark = pytest.mark.skipif(library() is None, reason=f"no native kernels: {why_not()}")

WIDE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}
WIDE_HEADS = 2


def coded(w: Tensor, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and the fp32 values that they stand for."""
    if format == "mxfp4":
        return *(pair := mxfp4_codes(w)), mxfp4_values(*pair)
    return *(pair := int_codes(w, 7 if format == "int4" else 127)), int_values(*pair)


def in_8_bits(x: Tensor) -> Tensor:
    groups = x.unflatten(-1, (-1, 32))
    step = groups.abs().amax(-1, keepdim=True) / 127
    return (torch.round(groups / step.clamp(min=1e-30)) * step).flatten(-2)


@pytest.mark.parametrize("format", ["int4", "mxfp4", "int8"])
@pytest.mark.parametrize(("rows", "width", "out"), [(1, 32, 8), (3, 64, 37), (9, 256, 100), (40, 96, 5)])
def test_products_are_those_of_the_rounded_inputs(format: str, rows: int, width: int, out: int) -> None:
    r = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=r) * torch.logspace(-3, 3, rows)[:, None]
    x[0, :32] = 0.0
    codes, scale, values = coded(torch.randn(out, width, generator=r) * 0.02, format)
    matrix = PackedModel.__new__(PackedModel)
    matrix.kept, matrix.scratch = [], None
    packed = matrix.quantised([(codes, scale)], 1, format)
    panels = matrix.kept[-1]
    assert isinstance(panels, Tensor) and packed.panels == panels.data_ptr()
    results = []
    for team in (1, 2, 3):
        y = torch.empty(rows, out)
        call("multiply_quantised", panels, x, y, KINDS[format], rows, width, out, team)
        results.append(y)
    assert all(torch.equal(y, results[0]) for y in results)
    exact = in_8_bits(x).double() @ values.double().T
    assert ((results[0] - exact).abs() <= 1e-5 * exact.abs().amax(1, keepdim=True)).all()
    alone = torch.empty(1, out)
    call("multiply_quantised", panels, x[-1:].contiguous(), alone, KINDS[format], 1, width, out, 1)
    assert torch.equal(alone[0], results[0][-1])


def model(form: str, experts: str | None) -> tuple[Model, Model]:
    """A model with its experts in 4 bits, and the same one with their values in fp32."""
    latent = {"routed_expert_hidden_size": 32} if form == "k3" else {}
    plain, packed = (random_model(FORMS[form](**WIDE, **latent)) for _ in range(2))
    for name, bias in [*plain.named_buffers(), *packed.named_buffers()]:
        if name.endswith("e_score_correction_bias"):
            bias.copy_(2.0 * torch.arange(len(bias)))  # rounding makes no token choose others
    if experts:
        pack_experts(packed, experts)
        for whole, small in ((a.mlp.experts, b.mlp.experts) for a, b in zip(plain.layers, packed.layers) if a.moe):
            for name, w in whole.named_parameters():
                codes, scale, _ = coded(w.detach(), experts)
                nibbles = codes + 8 if experts == "int4" else codes
                pairs = nibbles.to(torch.uint8).view(*codes.shape[:-1], -1, 2)
                bytes_ = (pairs[..., 0] | pairs[..., 1] << 4).contiguous()
                setattr(small, f"{name}_packed", bytes_.view(torch.int32) if experts == "int4" else bytes_)
                setattr(small, f"{name}_scale", scale)
                w.data = round_to_grid(w.data, experts)
    return plain, packed


def round_matrices(made: Model, weights: str) -> None:
    """Put every matrix of the model but the router's, the experts' and the embedding on the grid of `weights`."""
    for name, module in made.named_modules():
        if not isinstance(module, torch.nn.Linear) or "res." in name or module.weight.shape[1] % 32:
            continue
        w = module.weight.data
        if name.endswith("kv_b_proj"):  # keys are multiplied the other way round (absorbed)
            k, v = w.unflatten(0, (WIDE_HEADS, -1)).split([WIDE["qk_nope_head_dim"], WIDE["v_head_dim"]], dim=1)
            k = coded(k.transpose(1, 2).contiguous(), weights)[2].transpose(1, 2)
            module.weight.data = torch.cat([k, coded(v.contiguous(), weights)[2]], dim=1).flatten(0, 1)
        else:
            module.weight.data = coded(w, weights)[2]


def fed(packed: PackedModel, made: Model, ids: Tensor, parts: list[int], team: int) -> Tensor:
    """All logits [B, T, vocab] of ids that come in parts."""
    cache, out = made.new_cache(len(ids), ids.shape[1]), []
    for part in ids.split(parts, dim=1):
        queues = part.tolist()
        logits = packed.decode(in_rows(cache), range(len(ids)), queues, [part.shape[1]] * len(ids), team)
        out.append(logits.view(len(ids), part.shape[1], -1))
    return torch.cat(out, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("form", ["k3", "kimi_linear", "k2_yarn"])
@pytest.mark.parametrize(
    ("experts", "weights"), [("mxfp4", "fp32"), ("int4", "fp32"), ("mxfp4", "int8"), ("int4", "int4"), (None, "int8")]
)
def test_the_same_bits_for_any_team_batch_and_part(form: str, experts: str | None, weights: str) -> None:
    plain, made = model(form, experts)
    packed, ids = PackedModel(made, weights), random_ids(3, 24)
    whole = fed(packed, made, ids, [24], 1)
    assert torch.equal(fed(packed, made, ids, [24], 2), whole)
    assert torch.equal(fed(packed, made, ids, [1, 16, 5, 2], 3), whole)
    assert torch.equal(fed(packed, made, ids[1:2], [24], 2)[0], whole[1])
    if weights != "fp32":
        round_matrices(plain, weights)
        for layer in plain.layers if experts is None else ():
            for w in layer.mlp.experts.parameters() if layer.moe else ():
                w.data = coded(w.data, weights)[2]
    exact = plain(ids)
    assert (whole - exact).abs().mean() / exact.std() < 0.1  # inputs in 8 bits; a wrong part gives about 1


@torch.no_grad()
def test_threads_change_no_bit_in_fp32() -> None:
    made = random_model(FORMS["k3"](**WIDE))
    packed, ids = PackedModel(made), random_ids(4, 60)
    assert torch.equal(fed(packed, made, ids, [60], 4), fed(packed, made, ids, [60], 1))
