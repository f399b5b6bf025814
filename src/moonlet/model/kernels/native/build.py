"""Compiles the sources beside this file: for this processor at first use, and by level when a wheel is made.

The sources know nothing of torch: C functions on float pointers, so a build needs a C++ compiler and seconds. What is
built here lies in the user's cache folder under a hash of sources, compiler and processor. A wheel carries one library
a level, for machines without a compiler. setup.py runs this file by its path: it imports nothing of ours.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
# What -ffast-math allows, by name: with -ffast-math itself, GCC before 13 links code into the library that turns off
# denormal numbers for the whole process. Infinities and NaN keep their meaning.
MATH = ("-fassociative-math", "-freciprocal-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")
FLAGS = ("-O3", *MATH, "-ffp-contract=fast", "-std=c++17", "-fPIC", "-pthread")
# Of a library that other machines load: no libstdc++ to be found there, none of its symbols shared with torch's.
PORTABLE = ("-static-libstdc++", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections", "-s")
# The levels of x86-64, each with the compiler's options and the flags (as Linux spells them) that it adds to the one
# before. VNNI is no level of its own elsewhere, but the products in 4 and 8 bits have a path for it (quantised.h).
LEVELS = {
    "x86-64": (("-march=x86-64", "-Wno-psabi"), ""),
    "x86-64-v3": (
        ("-march=x86-64-v3",),
        "cx16 lahf_lm popcnt ssse3 sse4_1 sse4_2 avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
    ),
    "x86-64-v4": (("-march=x86-64-v4",), "avx512f avx512bw avx512cd avx512dq avx512vl"),
    "x86-64-v4-vnni": (("-march=x86-64-v4", "-mavx512vnni"), "avx512_vnni"),
}


def compiler() -> str | None:
    return next((path for name in ("g++", "c++", "clang++") if (path := shutil.which(name))), None)


def processor() -> str:
    """The line of flags that Linux has for this processor: what `-march=native` depends on; elsewhere its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def levels(processor: str) -> list[str]:
    """The levels that this processor (a line of flags) can run, the best first; none where it is no x86-64."""
    flags, found = set(processor.split()), []
    for name, (_, needed) in LEVELS.items():
        if "lm" not in flags or not flags.issuperset(needed.split()):
            break
        found.append(name)
    return found[::-1]


def built() -> Path:
    """The library for these sources, this compiler and this processor, compiled if it is not in the cache."""
    options = (str(compiler()), *FLAGS, "-march=native")
    key = hashlib.sha256("\n".join([*options, run([options[0], "--version"]), processor()]).encode())
    for path in [*sorted(HERE.glob("*.cpp")), *sorted(HERE.glob("*.h"))]:
        key.update(path.read_bytes())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moonlet"
    path = folder / f"kernels-{key.hexdigest()[:16]}.so"
    if not path.exists():
        build(path, ["-march=native"])
    return path


def build(path: Path, options: list[str]) -> None:
    """Compile the library to `path`. Raises CalledProcessError with the compiler's complaint."""
    command, sources = [str(compiler()), *FLAGS, *options], sorted(HERE.glob("*.cpp"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:  # whole or not at all, whoever else builds now
        objects = [f"{scratch}/{source.stem}.o" for source in sources]
        with ThreadPoolExecutor() as pool:  # one compiler a file, side by side
            list(pool.map(run, ([*command, "-c", str(s), "-o", o] for s, o in zip(sources, objects))))
        made = Path(scratch) / path.name
        run([*command, "-shared", *objects, "-o", str(made), "-lm"])
        made.replace(path)


def run(command: list[str]) -> str:
    """Standard output of a compiler; CalledProcessError with its complaint."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def prebuild(folder: Path) -> None:
    """One library a level into `folder`, for a wheel."""
    for level, (options, _) in LEVELS.items():
        build(folder / f"{level}.so", [*options, *PORTABLE])
