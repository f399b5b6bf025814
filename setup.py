"""What pyproject.toml cannot say: a wheel made on 64-bit x86 Linux with a C++ compiler carries the kernels compiled.

One library a level of the processor (native/build.py), two minutes of one core; such a wheel fits that platform alone.
Without a compiler, on other processors and with MOONLET_NATIVE=0 a wheel has the sources only and fits every machine.
"""

import os
import platform
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path("moonlet/model/kernels/native")
build = runpy.run_path(str("src" / NATIVE / "build.py"))


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / NATIVE / "prebuilt"
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
        here = (sys.platform, platform.machine()) == ("linux", "x86_64")
        if here and build["compiler"]() and os.environ.get("MOONLET_NATIVE") != "0":
            try:
                build["prebuild"](folder)
            except subprocess.CalledProcessError as error:  # GCC before 11 does not know the levels
                shutil.rmtree(folder, ignore_errors=True)
                print(f"the kernels do not compile, the wheel has the sources only: {error.stderr}", file=sys.stderr)


class BdistWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        self.root_is_pure = not (Path(self.bdist_dir) / NATIVE / "prebuilt").exists()
        *_, platform_tag = super().get_tag()
        return ("py3", "none", platform_tag)


setup(cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel})
