"""What a run accepts: names, steps and numbers, and the dicts `run.config` and `run.summary` that log their changes."""

import weakref
from numbers import Integral, Real
from typing import Any


class Fields(dict[str, Any]):
    """A dict whose changes are logged: `run.config["lr"] = 1e-3`, `run.config.lr`, `run.summary.update(best=0.9)`."""

    def __init__(self, run: Any, kind: str) -> None:
        super().__init__()
        self.__dict__.update(_run=weakref.ref(run), _kind=kind)

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def update(self, *values: Any, **more: Any) -> None:
        new = dict(*values, **more)
        super().update(new)
        run = self._run()
        if run is not None and new:
            run.event(self._kind, data=new)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} here: it was never set") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def as_step(step: object) -> int:
    if isinstance(step, bool) or not isinstance(step, Integral) or not 0 <= int(step) < 2**63:
        raise ValueError(f"step is {step!r}: it must be an integer from 0 to 2^63-1")
    return int(step)


def as_float(name: object, value: Any) -> float:
    if isinstance(value, bool) or not (isinstance(value, Real) or getattr(value, "ndim", None) == 0):
        kind = type(value).__name__
        raise ValueError(f"{name!r} is a {kind}: give a real number (.item() of a one-element tensor)")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name!r} does not fit a 64-bit float: log its logarithm") from error


def check_name(name: object) -> None:
    """Raises ValueError unless the name is like 'pretrain/loss': printable, no empty part."""
    if not isinstance(name, str) or not name or len(name) > 200 or not name.isprintable():
        raise ValueError(f"{str(name)[:40]!r} is a bad name: it must be printable text of 1 to 200 characters")
    if any(part != part.strip() or not part for part in name.split("/")):
        raise ValueError(f"{name!r} is a bad name: no part between slashes may be empty or begin or end with a space")
