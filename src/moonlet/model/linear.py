"""The matrix products with trained weights: in fp32, or with bf16 operands under fp32 master weights.

Inside `bf16_products` both operands of a product are rounded to bf16 first; it is summed in fp32 and comes out in bf16.
Autograd then multiplies the same bf16 tensors in the backward pass. All else is fp32 as before: parameters, what goes
into a product and comes out, sums of gradients, norms, recurrence, softmax, losses. The router stays fp32 as well.
Source: mixed precision, arXiv 1710.03740, with bf16 for fp16, so no loss scale. Shapes: x [..., in], W [out, in] ->
[..., out]. Left out: fp32 results, which torch's bf16 products on a CPU do not give.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from moonlet.model.kernels.native.build import processor


def product(x: Tensor, W: Tensor, bf16: bool) -> Tensor:
    return F.linear(x.bfloat16(), W.bfloat16()).to(x.dtype) if bf16 else F.linear(x, W)


class Linear(nn.Linear):
    """No bias."""

    bf16 = False

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__(size_in, size_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, self.bf16)


@contextmanager
def bf16_products(model: nn.Module, on: bool = True) -> Iterator[None]:
    """Inside, projections and experts of `model` multiply in bf16; not so if `on` is False."""
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "bf16")]
    for module in modules:
        module.bf16 = on
    try:
        yield
    finally:
        for module in modules:
            module.bf16 = False


def has_bf16() -> bool:
    """True where the processor multiplies bf16; elsewhere such products run, some ten times slower than fp32."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(processor().split())
