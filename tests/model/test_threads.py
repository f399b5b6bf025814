"""A team of the native kernels runs every part of every round exactly once, however short the rounds are."""

import subprocess
from pathlib import Path

import pytest

from moonlet.model.kernels.native import build

ROUNDS = r"""
#include <atomic>
#include <cstdio>
#include "threads.h"

int main() {
    const threads::Team together(2);
    static std::atomic<int> ran[16];
    for (int round = 0; round < 1000000; round++) {
        const int parts = 2 + round % 7 + (round % 3 ? 0 : 5);
        for (auto& one : ran) one = 0;
        threads::parallel(parts, [&](int part) { ran[part]++; });
        for (int part = 0; part < 16; part++)
            if (ran[part] != (part < parts)) {
                std::printf("round %d: part %d of %d ran %d times\n", round, part, parts, ran[part].load());
                return 1;
            }
    }
}
"""


def test_every_part_runs_once(tmp_path: Path) -> None:
    if (compiler := build.compiler()) is None:
        pytest.skip("no compiler here")
    (tmp_path / "rounds.cpp").write_text(ROUNDS)
    command = [compiler, "-O2", "-std=c++17", "-pthread", f"-I{build.HERE}", "rounds.cpp", "-o", "rounds"]
    subprocess.run(command, cwd=tmp_path, check=True)
    found = subprocess.run([tmp_path / "rounds"], check=False, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stdout
