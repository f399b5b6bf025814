"""Learning-rate schedule: linear warm-up, then cosine to a floor (K3 report 3.3: 1% warm-up, cosine beats WSD)."""

import math


def cosine(step: int, steps: int, warmup_fraction: float = 0.01, floor: float = 0.1) -> float:
    """Factor on the peak learning rate at 0-based `step` of `steps`."""
    warmup = max(1, round(steps * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
