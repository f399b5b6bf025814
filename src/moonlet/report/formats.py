"""Values as people read them. What is not a finite number becomes a dash (NaN and infinities keep their names)."""

import math
from typing import Any, TypeGuard

DASH = "–"
SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def short(value: Any, digits: int = 4) -> str:
    """0.0003 -> 3e-4, 2.3184 -> 2.318, 12500 -> 12.5k."""
    if not is_number(value):
        return str(value) if isinstance(value, float) else DASH
    if abs(value) >= 10_000:
        scale, suffix = next((scale, suffix) for scale, suffix in SCALES if abs(value) >= scale)
        return f"{value / scale:.{digits}g}{suffix}"
    if 0 < abs(value) < 1e-3:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def units(value: Any, unit: str) -> str:
    """1.2e12, "FLOP" -> 1.2 TFLOP."""
    if not is_number(value):
        return DASH
    scale, suffix = next(((scale, suffix) for scale, suffix in SCALES if abs(value) >= scale), (1, ""))
    return f"{value / scale:.3g} {suffix}{unit}"


def percent(value: Any) -> str:
    if not is_number(value):
        return DASH
    return f"{value:.0%}" if abs(value) >= 0.1 or value == 0 else f"{value:.1%}"


def duration(seconds: Any) -> str:
    if not is_number(seconds):
        return DASH
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
