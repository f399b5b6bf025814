"""The one error for bad input, and the helper that names the nearest valid word.

Whatever a user can get wrong (a recipe, an option, a file, a full disk) raises `InputError` with one line that holds
the value, the bound and the fix. The command line prints it and exits with 2; the server answers 4xx.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message is one line: the value, the bound, the fix."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an "unknown name" message: the closest of `names`, or all of them where none is close."""
    names = sorted(names)
    # Case is folded first: `OPTIM` is nearer to `optim` than difflib thinks.
    folded = {valid.lower(): valid for valid in names}
    close = difflib.get_close_matches(name.lower(), folded, n=1)
    if close:
        return f"did you mean {folded[close[0]]!r}?"
    return f"valid: {', '.join(names)}" if names else "none is valid here"
