"""fla's kernels behind our adapters give what the plain forms give: outputs, states and every gradient, by Triton's
interpreter (gpu_forms.py, in a process of its own).

Needs Triton, which comes with torch for CUDA and is too large to be asked of everyone: `pip install triton`. One run
serves all cases; fp32 with sums of some hundred terms, so 1e-5 leaves room, and a wrong formula shows at 1e-2.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moonlet.model.kernels import gpu

HERE = Path(__file__).parent
NAMES = (
    "gate, bounded",
    "gate, unbounded",
    "convolution",
    "convolution of a token",
    "convolution of fifty",
    "convolution, packed",
    "a token",
    "seven tokens",
    "chunks, bounded, from a state",
    "chunks, bounded, packed",
    "chunks, unbounded, packed",
    "model",
)


@pytest.fixture(scope="module")
def errors() -> dict[str, list[float]]:
    if gpu.why_not():
        pytest.skip(str(gpu.why_not()))
    settings = {"TRITON_INTERPRET": "1", "MOONLET_NATIVE": "0", "CUDA_VISIBLE_DEVICES": ""}
    env = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, "-W", "ignore", str(HERE / "gpu_forms.py")]
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_plain_form(name: str, errors: dict[str, list[float]]) -> None:
    assert set(errors) == set(NAMES)
    assert max(errors[name]) < 1e-5


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.why_not.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else object())
    line = gpu.why_not()
    monkeypatch.undo()
    gpu.why_not.cache_clear()
    assert line is not None and line.startswith("no triton: ") and "pip install" in line
