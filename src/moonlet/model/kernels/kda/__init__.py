"""Kimi Delta Attention: `naive.py` the recurrence, `chunk.py` the same function in tiles, `native.py` in C++.

On a GPU: fla's kernels, in ../gpu.py.
"""

from torch import Tensor

from moonlet.model.kernels import gpu
from moonlet.model.kernels.kda.chunk import chunk_kda
from moonlet.model.kernels.kda.naive import step
from moonlet.model.kernels.kda.native import native_kda
from moonlet.model.kernels.native import usable


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    S: Tensor | None = None,
    segments: Tensor | None = None,
    pairwise: bool = False,
) -> tuple[Tensor, Tensor]:
    """Same function as `naive_kda`: native or fla's where these can be, else a step for one cached token and tiles."""
    if usable(q, k, v, g, beta, S):
        return native_kda(q, k, v, g, beta, S, segments)
    if gpu.kda_usable(q, k, v, g, beta, S, segments):
        return gpu.fla_kda(q, k, v, g, beta, S, segments, not pairwise)
    if S is None or q.shape[1] > 1:
        return chunk_kda(q, k, v, g, beta, S, segments, pairwise)
    o, S = step(q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0], S)
    return o.unsqueeze(1), S
