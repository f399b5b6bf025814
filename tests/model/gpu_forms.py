"""fla's kernels in Triton's interpreter, through our adapters, against the plain twins in fp64.

    TRITON_INTERPRET=1 MOONLET_NATIVE=0 python gpu_forms.py      {case: relative errors of outputs and gradients}

Triton is led to believe that a CPU will do: the autotuner takes the first configuration unseen, loop counters, plain
integers here, get the cast that they have on a GPU, and fla's choices that the interpreter lacks fall to the others
that it has (sums in place of a gather, fp32 products in place of three in bf16).
"""

import json
from collections.abc import Callable

import torch
import triton.language as tl
from small_models import relative
from test_compiled import batch, loss_and_gradients, two_layers
from test_native_kda import DECAYS, documents, exact_conv, inputs, run
from torch import Tensor
from triton.runtime.autotuner import Autotuner

from moonlet.model.kernels import gpu
from moonlet.model.kernels.kda.gate import kda_gate_torch
from moonlet.model.kernels.kda.naive import naive_kda


class Counter(int):
    def to(self, dtype: object) -> "Counter":
        return self


def interpreted() -> None:
    Autotuner.do_bench = lambda self, call, quantiles: (1.0, 1.0, 1.0)  # type: ignore[method-assign]
    from fla.ops.common import chunk_delta_h
    from fla.ops.kda import chunk_intra

    chunk_delta_h.range = lambda *ends: map(Counter, range(*map(int, ends)))
    chunk_intra.IS_GATHER_SUPPORTED = False
    chunk_intra.SAFE_GATE_DOT_PRECISION = tl.constexpr("ieee")


def errors(form: Callable, plain: Callable, x: list[Tensor]) -> list[float]:
    (values, grads), (truths, true_grads) = run(form, x), run(plain, [t.double() for t in x])
    return [relative(a, b) for a, b in zip(values + grads, truths + true_grads, strict=True)]


def recurrence(decay: str, packed: bool, state: bool) -> list[float]:
    x = inputs(70, 1, 16, 16, DECAYS[decay])[: 6 if state else 5]
    segments = documents(70) if packed else None
    rest = (segments,) if state else (None, segments)
    return errors(lambda *t: gpu.fla_kda(*t, *rest, decay != "unbounded"), lambda *t: naive_kda(*t, *rest), x)


def decoding(tokens: int) -> list[float]:
    x = inputs(tokens, 2, 16, 16, DECAYS["unbounded"])
    with torch.no_grad():
        made, truth = gpu.fla_kda(*x, None, False), naive_kda(*(t.double() for t in x))
    return [relative(a, b) for a, b in zip(made, truth)]


def conv(packed: bool) -> list[float]:
    r = torch.Generator().manual_seed(0)
    x, taps = torch.randn(2, 50, 96, generator=r), torch.randn(96, 4, generator=r)
    segments = documents(50) if packed else None
    return errors(
        lambda x, w: gpu.fla_conv_qkv(x, w, None, segments, 2, 0.01),
        lambda x, w: exact_conv(x, w, None, segments, 2, 0.01),
        [x, taps],
    )


@torch.no_grad()
def conv_goes_on(tokens: int) -> list[float]:
    r = torch.Generator().manual_seed(0)
    x, taps, past = (torch.randn(*s, generator=r) for s in ((2, tokens, 96), (96, 4), (2, 3, 96)))
    truth = exact_conv(x.double(), taps.double(), past.double(), None, 2, 0.01)
    return [relative(a, b) for a, b in zip(gpu.fla_conv_qkv(x, taps, past, None, 2, 0.01), truth)]


def gate(lower: float | None) -> list[float]:
    r = torch.Generator().manual_seed(0)
    x = [torch.randn(*s, generator=r) for s in ((2, 50, 48), (48,), (3,))]
    return errors(lambda *t: gpu.fla_kda_gate(*t, lower), lambda *t: kda_gate_torch(*t, lower), x)


def model() -> list[float]:
    """Loss and gradients of a whole K3 model whose tensors pass for a GPU's."""
    made, ids = two_layers("k3"), batch(2)
    truth = loss_and_gradients(made, *ids)
    gpu.here = lambda *tensors: True  # its MLA is too narrow for flex attention, its experts are not in bf16
    torch.set_float32_matmul_precision("high")
    called: list[int] = []
    kda, gpu.fla_kda = gpu.fla_kda, lambda *t: (called.append(1), kda(*t))[1]
    found = [relative(a, b) for a, b in zip(loss_and_gradients(made, *ids), truth, strict=True)]
    assert called
    return found


CASES: dict[str, Callable[[], list[float]]] = {
    "gate, bounded": lambda: gate(-5.0),
    "gate, unbounded": lambda: gate(None),
    "convolution": lambda: conv(packed=False),
    "convolution of a token": lambda: conv_goes_on(1),
    "convolution of fifty": lambda: conv_goes_on(50),
    "convolution, packed": lambda: conv(packed=True),
    "a token": lambda: decoding(1),
    "seven tokens": lambda: decoding(7),
    "chunks, bounded, from a state": lambda: recurrence("bounded", packed=False, state=True),
    "chunks, bounded, packed": lambda: recurrence("bounded", packed=True, state=False),
    "chunks, unbounded, packed": lambda: recurrence("unbounded", packed=True, state=False),
    "model": model,
}

if __name__ == "__main__":
    interpreted()
    print(json.dumps({name: case() for name, case in CASES.items()}))
