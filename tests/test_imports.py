"""Imports go one way, and the parts that need no torch load none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import moonlet

PACKAGE = Path(moonlet.__file__).parent

# What each part may import. What those may import in turn is allowed too: no such arrow can close a circle.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "recipe": {"errors", "files"},
    "tracker": set(),
    "sandbox": {"errors", "files"},
    "data": {"errors", "files"},
    "chat": {"errors", "files"},
    "tasks": {"chat", "sandbox", "data"},
    "model": {"data", "errors", "files"},
    "quant": {"model"},
    "optim": {"model"},
    "train": {"data", "chat", "tasks", "model", "quant", "optim", "tracker", "recipe"},
    "engine": {"chat", "model", "quant", "data"},
    "rl": {"tasks", "engine", "train"},
    "server": {"engine", "chat"},
    "agent": {"chat", "sandbox"},
    "evals": {"tasks", "engine", "train", "rl", "recipe"},
    "report": {"tracker", "errors", "files"},
    "doctor": {"model"},
    "fit": {"model", "optim"},
    "bench": {"errors"},
    "draft": {"engine", "train"},
    "progress": set(),
    "stages": {"recipe", "rl", "evals", "report", "progress"},
    "run": {"recipe", "stages", "progress"},
    "cli": {"run", "engine", "server", "agent", "evals", "doctor", "fit", "bench", "draft"},
    "__main__": {"cli"},
    "__init__": {"engine", "tracker"},
}
NO_TORCH = ["chat", "tasks", "sandbox", "tracker", "agent", "data.tiny_world", "recipe", "files", "cli"]


def allowed(part: str) -> set[str]:
    """`MAY_IMPORT`, followed to its end."""
    found, waiting = set(), [part]
    while waiting:
        for name in MAY_IMPORT.get(waiting.pop(), set()) - found:
            found.add(name)
            waiting.append(name)
    return found


def imported(source: str, module: str, is_package: bool) -> set[str]:
    """The dotted names below `moonlet` that `source`, the text of `moonlet.<module>`, imports anywhere in it."""
    names = set()
    package = ["moonlet", *module.split(".")][: None if is_package else -1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
    return {name.removeprefix("moonlet.") for name in names if name.startswith("moonlet.")}


def back_arrows(source: str, module: str, is_package: bool = False) -> list[str]:
    part = module.split(".")[0]
    may = allowed(part) | {part, "__version__"}
    names = imported(source, module, is_package)
    return sorted(name for name in names if not any(f"{name}.".startswith(f"{valid}.") for valid in may))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_one_way(path: Path) -> None:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    is_package = len(parts) > 1 and parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    assert parts[0] in MAY_IMPORT, f"moonlet.{parts[0]} has no line in the table above"
    assert back_arrows(path.read_text(), module, is_package) == []


def test_table_has_no_circle() -> None:
    assert [part for part in MAY_IMPORT if part in allowed(part)] == []


@pytest.mark.parametrize(
    ("source", "module", "found"),
    [
        ("def late():\n    from moonlet.engine.load import load", "model.kda", ["engine.load.load"]),
        ("from moonlet import engine", "train.loop", ["engine"]),
        ("import moonlet.errors", "tracker.store", ["errors"]),
        ("from ..rl import loop", "engine.sampler", ["rl.loop"]),
        ("from moonlet.server.app import serve", "evals.measure", ["server.app.serve"]),
        ("from moonlet.train.flops import count\nfrom . import a\nfrom moonlet.tasks import base", "evals.measure", []),
        ("from moonlet.model import block\nfrom moonlet.errors import InputError", "rl.loop", []),
    ],
)
def test_back_arrows_are_found(source: str, module: str, found: list[str]) -> None:
    assert back_arrows(source, module) == found


def modules(name: str) -> list[str]:
    """Every module of part `name`; none where the part is not there."""
    path = PACKAGE.joinpath(*name.split("."))
    if path.with_suffix(".py").exists():
        return [f"moonlet.{name}"]
    inner = (file.relative_to(PACKAGE).with_suffix("").parts for file in sorted(path.rglob("*.py")))
    return [".".join(("moonlet", *parts)).removesuffix(".__init__") for parts in inner if parts[-1] != "__main__"]


@pytest.mark.parametrize("name", [name for name in NO_TORCH if modules(name)])
def test_loads_no_torch(name: str) -> None:
    loads = "".join(f"import {module}\n" for module in modules(name))
    code = f"{loads}import sys\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_is_quick_and_loads_no_torch() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import moonlet; seconds = time.perf_counter() - start;"
        "assert 'torch' not in sys.modules; assert moonlet.__version__; assert seconds < 1, seconds"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_lazy_names() -> None:
    assert {"load", "Engine", "tracker"} <= set(dir(moonlet))
    assert moonlet.tracker.__name__ == "moonlet.tracker"
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        moonlet.lod  # noqa: B018
