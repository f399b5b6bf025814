"""Lets test modules import `small_models`, and fills new memory with NaN: a forgotten initialisation cannot pass.

importlib mode puts no test folder on the path, so the helpers' folder is added here.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


def poisoned(make):  # type: ignore[no-untyped-def]
    def wrapper(*args, **kwargs):  # type: ignore[no-untyped-def]
        tensor = make(*args, **kwargs)
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.fill_(torch.nan)
        return tensor

    return wrapper


@pytest.fixture(autouse=True, scope="module")
def nan_in_new_memory() -> Iterator[None]:
    with torch.device("cpu"):
        torch.empty(0)  # the device context remembers the constructors it has seen: let it see the real one
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            patch.setattr(owner, name, poisoned(getattr(owner, name)))
        assert torch.empty(3).isnan().all()
        yield
