"""moonlet: a small Kimi. Text to shards, pre-training, SFT, RL, 4-bit, an engine, a server and an agent.

Importing the package loads no torch and takes milliseconds. The three names below are found when they are first used:
`load(folder) -> (model, tokenizer or None)`, `Engine(folder)` and `tracker` (the module).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moonlet import tracker as tracker
    from moonlet.engine.engine import Engine as Engine
    from moonlet.engine.load import load as load

__version__ = "0.1.0"
__all__ = ["Engine", "__version__", "load", "tracker"]


def __getattr__(name: str) -> Any:
    if name == "tracker":
        return importlib.import_module("moonlet.tracker")
    if name == "load":
        return importlib.import_module("moonlet.engine.load").load
    if name == "Engine":
        return importlib.import_module("moonlet.engine.engine").Engine
    raise AttributeError(f"module 'moonlet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
