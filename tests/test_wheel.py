"""The wheel carries what the package needs to run: built from a copy and unpacked elsewhere, it makes logits.

With a compiler it carries the kernels compiled too. Here: which library is taken where; behind `soak`: a wheel with and
without, and the operators' own tests on every library that this processor can run.
"""

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from moonlet.model.kernels import native
from moonlet.model.kernels.native import build

ROOT = Path(__file__).resolve().parents[1]
FORWARD = """
import torch, moonlet
from moonlet.model.config import for_depth
from moonlet.model.kernels import native
from moonlet.model.model import Model
print(moonlet.__file__)
print(native.found()[1])
print(*Model(for_depth(4, 256)).init_weights(0)(torch.zeros(1, 20, dtype=torch.long)).shape)
"""
OPERATORS = [
    f"tests/{t}.py" for t in ("model/test_native_ops", "model/test_native_kda", "engine/test_quantised_decoder")
]
X86_LINUX = (sys.platform, platform.machine()) == ("linux", "x86_64")
CORE2 = "flags : fpu sse sse2 ht syscall nx lm pni ssse3 cx16 lahf_lm"
HASWELL = CORE2 + " sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand abm bmi1 avx2 bmi2 erms fma"
SKYLAKE_X = HASWELL + " avx512f avx512dq avx512cd avx512bw avx512vl"
ICE_LAKE = SKYLAKE_X + " avx512ifma avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg"
LEVELS = ["x86-64-v4-vnni", "x86-64-v4", "x86-64-v3", "x86-64"]


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (ICE_LAKE, LEVELS),
        (SKYLAKE_X, LEVELS[1:]),
        (HASWELL, LEVELS[2:]),
        (HASWELL.replace(" avx2", ""), LEVELS[3:]),  # as under a hypervisor that hides it
        (ICE_LAKE.replace(" fma", ""), LEVELS[3:]),  # a level needs all those below
        (CORE2, LEVELS[3:]),
        ("Features : fp asimd evtstrm aes", []),
        ("arm64arm", []),
    ],
)
def test_levels(flags: str, found: list[str]) -> None:
    assert build.levels(flags) == found


def broken_compiler(folder: Path) -> Path:
    (folder / "g++").write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    (folder / "g++").chmod(0o755)
    return folder


@pytest.mark.skipif(build.compiler() is None or not X86_LINUX, reason="nothing to take for a prebuilt library")
def test_which_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built here, else the best prebuilt that loads, else none and a line that says so."""
    find = native.found.__wrapped__
    best, *worse = build.levels(build.processor())
    monkeypatch.setattr(native, "PREBUILT", tmp_path)
    monkeypatch.delenv("MOONLET_NATIVE", raising=False)
    assert find()[1] == "native, built here for this processor"
    library = build.built()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find() == (None, "no C++ compiler: training runs in plain PyTorch, several times slower; install g++")
    for level in worse:
        (tmp_path / f"{level}.so").write_bytes(b"no library")
    assert find()[0] is None
    shutil.copy(library, tmp_path / f"{best}.so")
    kernels, line = find()
    assert kernels is not None and kernels.kda_forward and line == f"native, prebuilt {best} (no C++ compiler)"
    broken_compiler(tmp_path)
    assert find()[1] == f"native, prebuilt {best} (the native kernels do not compile here (broken))"
    monkeypatch.setenv("MOONLET_NATIVE", "0")
    assert find()[0] is None


def made(folder: Path, **env: str) -> Path:
    """A wheel of a copy of the sources."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src" / "moonlet", folder / "src" / "moonlet")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, **env})
    (wheel,) = (folder / "out").glob("moonlet-*.whl")
    return wheel


def unpacked(wheel: Path, folder: Path) -> Path:
    """The folder, with the files of the wheel: every source (beside it), and nothing else but libraries."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        packed = {name for name in archive.namelist() if "dist-info" not in name and not name.endswith(".so")}
    source = wheel.parents[1] / "src"
    ours = {str(p.relative_to(source)) for p in (source / "moonlet").rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert packed == {name for name in ours if not name.endswith(".md")}
    return folder


def run(folder: Path, *arguments: str) -> list[str]:
    """Lines printed by Python that finds the wheel's files first and no compiler."""
    env = {"PYTHONPATH": str(folder), "PATH": "", "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-P", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.soak
@pytest.mark.parametrize("reason", ["not wanted", "does not compile"])
def test_sources_alone(reason: str, tmp_path: Path) -> None:
    env = {"MOONLET_NATIVE": "0"} if reason == "not wanted" else {"PATH": f"{broken_compiler(tmp_path)}:/usr/bin:/bin"}
    wheel = made(tmp_path, **env)
    assert wheel.name.endswith("-py3-none-any.whl")
    where, line, shape = run(unpacked(wheel, tmp_path / "there"), "-c", FORWARD)
    assert where == str(tmp_path / "there/moonlet/__init__.py") and shape == "1 20 256"
    assert line.startswith("no C++ compiler: training runs in plain PyTorch")


@pytest.mark.soak
@pytest.mark.skipif(build.compiler() is None or not X86_LINUX, reason="a wheel made here has the sources alone")
def test_prebuilt(tmp_path: Path) -> None:
    wheel = made(tmp_path)
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    there = unpacked(wheel, tmp_path / "there")
    libraries = there / native.__package__.replace(".", "/") / "prebuilt"
    assert {path.stem for path in libraries.iterdir()} == set(LEVELS)
    for level in build.levels(build.processor()):
        assert run(there, "-c", FORWARD)[1:] == [f"native, prebuilt {level} (no C++ compiler)", "1 20 256"]
        done = run(there, "-m", "pytest", "-q", "-o", "pythonpath=", *OPERATORS)
        assert "passed" in done[-1] and "skipped" not in done[-1], done[-1]
        (libraries / f"{level}.so").unlink()  # the next one is then the best
