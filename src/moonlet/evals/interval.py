"""95% intervals: Wilson's for a share, the normal one for a mean and for a paired difference."""

import math
from collections.abc import Sequence

Z = 1.959964


def wilson(successes: float, n: int) -> tuple[float, float, float]:
    """(share, low, high) of `successes` out of n."""
    if n == 0:
        return 0.0, 0.0, 1.0
    p = successes / n
    centre = p + Z * Z / (2 * n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return p, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of real values, also of per-item differences."""
    n = len(values)
    if n == 0:
        return 0.0, 0.0, 0.0
    mean = sum(values) / n
    variance = sum((v - mean) ** 2 for v in values) / max(1, n - 1)
    half = Z * math.sqrt(variance / n)
    return mean, mean - half, mean + half
