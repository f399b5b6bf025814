"""Operations on a decoding cache (model.Cache): pick rows, put rows back, repeat one row, make room for more tokens."""

from torch import Tensor

from moonlet.model.kda import KDAState
from moonlet.model.mla import MLAState
from moonlet.model.model import Cache


def select(cache: Cache, rows: Tensor) -> Cache:
    """A copy of the given rows; a single-row cache may be repeated by rows = zeros(n)."""
    layers: list[KDAState | MLAState] = []
    for layer in cache.layers:
        if isinstance(layer, KDAState):
            layers.append(KDAState(layer.S[rows], layer.conv[rows]))
        else:
            layers.append(MLAState(layer.latents[rows]))
    return Cache(layers, cache.lengths[rows])


def put(cache: Cache, rows: Tensor, part: Cache) -> None:
    """Write `part` (as many rows as `rows`) back into `cache`."""
    for layer, new in zip(cache.layers, part.layers):
        if isinstance(layer, KDAState) and isinstance(new, KDAState):
            layer.S = layer.S.index_copy(0, rows, new.S)
            layer.conv = layer.conv.index_copy(0, rows, new.conv)
        elif isinstance(layer, MLAState) and isinstance(new, MLAState):
            layer.latents.index_copy_(0, rows, new.latents)
    cache.lengths = cache.lengths.index_copy(0, rows, part.lengths)


def reserve(cache: Cache, tokens: int) -> None:
    """Room for at least `tokens` tokens a row; grows by half at least, so the copies stay few."""
    for layer in cache.layers:
        if isinstance(layer, MLAState) and layer.latents.shape[1] < tokens:
            B, S, R = layer.latents.shape
            grown = layer.latents.new_zeros(B, max(tokens, S + S // 2), R)
            grown[:, :S] = layer.latents
            layer.latents, cache.memory = grown, None
