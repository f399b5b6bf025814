"""KDA on a GPU: fla-core's Triton kernels behind the functions of conv.py, kda/gate.py and kda/.

Source: fla-core 0.6 (github.com/fla-org/flash-linear-attention, MIT): `pip install fla-core triton`, imported when the
first tensor on a GPU comes. Shapes as in the plain forms; q, k, v and o keep the projection's dtype, decay, beta and
states are fp32. Rows of packed documents [B, T] become one row [1, B T] with `cu_seqlens`, where each document begins.
fla multiplies fp32 as TF32, so fp32 chunks run only where torch allows that (`torch.set_float32_matmul_precision`).
torch.compile breaks its graph at each of these calls. Left out: fla's output norm, which PyTorch's own ops do as well.
Checked by Triton's interpreter (tests/model/test_gpu_fla.py); unchecked on a GPU so far.
"""

import functools
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
STEPS = 64  # tokens up to which going one by one beats the chunks, as in fla's own layers


def here(*tensors: Tensor | None) -> bool:
    """True where all of these (None aside) are on a GPU, in a dtype that its kernels take."""
    return all(t is None or (t.is_cuda and t.dtype in DTYPES) for t in tensors)


@functools.cache
def why_not() -> str | None:
    """None where fla-core can be imported, else one line: what is missing, what it costs, and the fix."""
    missing = [name for name in ("fla", "triton", "einops") if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return f"no {' or '.join(missing)}: KDA on a GPU runs in plain PyTorch, slower; pip install fla-core triton"


@torch.compiler.assume_constant_result
def ready() -> bool:
    return why_not() is None


def usable(*tensors: Tensor | None) -> bool:
    """True where fla's kernels can take these."""
    return here(*tensors) and ready()


@torch.compiler.assume_constant_result
def tf32_allowed() -> bool:
    return torch.get_float32_matmul_precision() != "highest"


def by_steps(q: Tensor, segments: Tensor | None) -> bool:
    """True where the recurrence goes token by token: few of them, one document a row, nothing to learn."""
    return segments is None and q.shape[1] <= STEPS and not torch.is_grad_enabled()


def kda_usable(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor | None, segments: Tensor | None
) -> bool:
    """True where `fla_kda` can take these and multiplies no less exactly than torch would."""
    if not usable(q, k, v, g, beta, S) or (S is not None and segments is not None):
        return False
    return q.dtype != torch.float32 or by_steps(q, segments) or tf32_allowed()


BORDERS: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of the batch that all layers see: finding them waits for the GPU


def borders(segments: Tensor) -> Tensor:
    """segments [B, T] -> int64 [documents + 1]: where each run of equal numbers begins in the rows laid end to end."""
    if segments not in BORDERS:
        first = torch.ones_like(segments, dtype=torch.bool)
        first[:, 1:] = segments[:, 1:] != segments[:, :-1]
        BORDERS[segments] = F.pad(first.flatten().nonzero()[:, 0], (0, 1), value=segments.numel())
    return BORDERS[segments]


def joined(*tensors: Tensor) -> tuple[Tensor, ...]:
    """[B, T, ...] -> [1, B T, ...]."""
    return tuple(t.flatten(0, 1).unsqueeze(0) for t in tensors)


@torch.compiler.disable
def fla_conv_qkv(
    x: Tensor, taps: Tensor, past: Tensor | None, segments: Tensor | None, heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`conv_qkv_torch`, with past or segments or neither; q, k, v in the dtype of x. No gradient for `past`."""
    from fla.modules.causal_conv1d import causal_conv1d
    from fla.modules.norm.l2norm import l2norm

    (B, T, _), starts = x.shape, None
    if segments is not None:
        starts, (x,) = borders(segments), joined(x)
    before = None if past is None else F.pad(past.to(x.dtype).transpose(1, 2), (1, 0))  # as wide as the taps
    y, _ = causal_conv1d(x, taps.to(x.dtype), initial_state=before, activation="silu", cu_seqlens=starts)
    q, k, v = y.view(B, T, 3, heads, -1).unbind(2)
    return l2norm(q, eps) * q.shape[-1] ** -0.5, l2norm(k, eps), v


@torch.compiler.disable
def fla_kda_gate(raw: Tensor, dt_bias: Tensor, A_log: Tensor, lower: float | None) -> Tensor:
    """`kda_gate_torch`, fp32 out."""
    from fla.ops.kda.gate import fused_kda_gate

    return fused_kda_gate(raw.unflatten(-1, (len(A_log), -1)), A_log, dt_bias, lower_bound=lower)


@torch.compiler.disable
def fla_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    S: Tensor | None,
    segments: Tensor | None,
    bounded: bool,
) -> tuple[Tensor, Tensor]:
    """`naive_kda`; with segments from an empty state. bounded: g >= -5 throughout, which the tensor cores can take."""
    from fla.ops.kda import chunk_kda, fused_recurrent_kda

    B, T = q.shape[:2]
    if segments is None:
        if by_steps(q, segments):
            return fused_recurrent_kda(q, k, v, g, beta, scale=1.0, initial_state=S, output_final_state=True)
        return chunk_kda(q, k, v, g, beta, 1.0, S, output_final_state=True, safe_gate=bounded)
    starts = borders(segments)
    q, k, v, g, beta = joined(q, k, v, g, beta)
    o, states = chunk_kda(q, k, v, g, beta, 1.0, output_final_state=True, safe_gate=bounded, cu_seqlens=starts)
    ends = torch.arange(T, B * T + 1, T, device=q.device)
    return o.view(B, T, *o.shape[2:]), states[torch.searchsorted(starts, ends) - 1]
