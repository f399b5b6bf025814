"""The wheel carries what the package needs to run: it is built from a copy, unpacked elsewhere, and makes logits."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORWARD = """
import torch, moonlet
from moonlet.model.config import for_depth
from moonlet.model.kernels import native
from moonlet.model.model import Model
print(moonlet.__file__)
print(native.library() is not None or native.compiler() is None)
print(*Model(for_depth(4, 256)).init_weights(0)(torch.zeros(1, 20, dtype=torch.long)).shape)
"""


@pytest.mark.soak
def test_wheel(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "src" / "moonlet", tmp_path / "src" / "moonlet")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    subprocess.run(command, cwd=tmp_path, check=True)
    (wheel,) = (tmp_path / "out").glob("moonlet-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        packed = {name for name in archive.namelist() if "dist-info" not in name}
    source = ROOT / "src"
    ours = {str(p.relative_to(source)) for p in (source / "moonlet").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert packed == {name for name in ours if not name.endswith(".md")}
    env = {"PYTHONPATH": str(tmp_path / "installed"), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", FORWARD],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**env, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "installed/moonlet/__init__.py"), "True", "1", "20", "256"]
