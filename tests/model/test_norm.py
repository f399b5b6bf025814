"""RMSNorm and the GLUs: gradients against finite differences, SiTU against its formula and its limits."""

import pytest
import torch
import torch.nn.functional as F

from moonlet.model.norm import RMSNorm, SiTU, glu


def written_out(g: torch.Tensor, u: torch.Tensor, b1: float, b2: float | None) -> torch.Tensor:
    up = u if b2 is None else b2 * torch.tanh(u / b2)
    return b1 * torch.tanh(g / b1) * torch.sigmoid(g) * up


@pytest.mark.parametrize("betas", [(4.0, 25.0), (1.0, 0.5), (4.0, None)])
def test_situ_is_its_formula(betas: tuple[float, float | None]) -> None:
    g, u = 6 * torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(glu(g, u, "situ", *betas), written_out(g, u, *betas), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("betas", [(4.0, 25.0), (1.0, 0.5), (4.0, None)])
def test_situ_gradient(betas: tuple[float, float | None]) -> None:
    g, u = (3 * torch.randn(2, 40, generator=torch.Generator().manual_seed(1))).double()
    assert torch.autograd.gradcheck(lambda a, b: SiTU.apply(a, b, *betas), (g.requires_grad_(), u.requires_grad_()))


def test_situ_tends_to_swiglu_and_is_capped() -> None:
    g, u = 3 * torch.randn(2, 500, generator=torch.Generator().manual_seed(2))
    differences = [(glu(g, u, "situ", b, b) - F.silu(g) * u).abs().max() for b in (3.0, 30.0, 300.0)]
    assert differences[0] > 20 * differences[1] > 1000 * differences[2] and differences[2] < 0.05
    assert torch.equal(glu(g, u, "silu", 4.0, 25.0), F.silu(g) * u)
    huge = torch.tensor([-1e4, 1e4])
    assert torch.allclose(glu(huge.abs(), huge, "situ", 4.0, 25.0), torch.tensor([-100.0, 100.0]))


def test_situ_keeps_the_dtype_and_works_in_fp32() -> None:
    g, u = (4 * torch.randn(2, 200, generator=torch.Generator().manual_seed(3))).bfloat16()
    y = glu(g, u, "situ", 4.0, 25.0)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, written_out(g.float(), u.float(), 4.0, 25.0).bfloat16())


def test_rms_norm() -> None:
    norm = RMSNorm(8, 0.1)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(norm(x), norm.weight * x / torch.sqrt(x.square().mean(-1, keepdim=True) + 0.1), atol=1e-6)
