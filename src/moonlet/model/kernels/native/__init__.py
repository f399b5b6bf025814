"""The native kernels: plain C++ beside this file, compiled for this machine at first use, called through ctypes.

The sources know nothing of torch: C functions on float pointers, so a build takes seconds, needs only a C++ compiler,
and `-march=native` gives whatever vectors the processor has. The library lies in the user's cache folder under a hash
of sources, compiler and processor. ctypes releases the interpreter lock, so worker threads run kernels side by side.
`library()` is None where there is no compiler or MOONLET_NATIVE=0 is set; everything then runs in PyTorch, slower.
Shapes and formulas stand in each .cpp beside the function; the truth of each is its twin in plain PyTorch.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
# What -ffast-math allows, by name: with -ffast-math itself, GCC before 13 links code into the library that turns off
# denormal numbers for the whole process. Infinities and NaN keep their meaning.
MATH = ("-fassociative-math", "-freciprocal-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno")
FLAGS = ("-O3", "-march=native", *MATH, "-ffp-contract=fast", "-std=c++17", "-fPIC", "-pthread")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, built where need be; None where that is not possible (`why_not` tells)."""
    return None if why_not() else ctypes.CDLL(str(built()))


@functools.cache
def why_not() -> str | None:
    """None when the native kernels work here, else one line: the reason and the fix."""
    if os.environ.get("MOONLET_NATIVE") == "0":
        return "native kernels are off (MOONLET_NATIVE=0): training runs in plain PyTorch, several times slower"
    if compiler() is None:
        return "no C++ compiler: training runs in plain PyTorch, several times slower; install g++"
    try:
        built()
    except (OSError, subprocess.CalledProcessError) as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return f"the native kernels do not compile here ({detail[0] if detail else error}): training is slower"
    return None


def compiler() -> str | None:
    return next((path for name in ("g++", "c++", "clang++") if (path := shutil.which(name))), None)


def run(command: list[str]) -> str:
    """Standard output of a compiler; CalledProcessError with its complaint."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@functools.cache
def built() -> Path:
    """Path of the shared library for these sources, this compiler and this processor."""
    sources = sorted(HERE.glob("*.cpp"))
    command = [str(compiler()), *FLAGS]
    version = run([command[0], "--version"])
    key = hashlib.sha256("\n".join([*command, version, processor()]).encode())
    for path in [*sources, *sorted(HERE.glob("*.h"))]:
        key.update(path.read_bytes())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moonlet"
    path = folder / f"kernels-{key.hexdigest()[:16]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # whole or not at all, whoever else builds now
            objects = [f"{scratch}/{source.stem}.o" for source in sources]
            with ThreadPoolExecutor() as pool:  # one compiler a file, side by side
                list(pool.map(run, ([*command, "-c", str(s), "-o", o] for s, o in zip(sources, objects))))
            made = Path(scratch) / path.name
            run([*command, "-shared", *objects, "-o", str(made), "-lm"])
            made.replace(path)
    return path


def processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


@torch.compiler.assume_constant_result  # else torch.compile would trace the build
def ready() -> bool:
    return library() is not None


def usable(*tensors: Tensor | None) -> bool:
    """True when the kernels can take these: fp32 on the CPU, and a library is there."""
    for tensor in tensors:
        if tensor is not None and (tensor.dtype != torch.float32 or tensor.device.type != "cpu"):
            return False
    return ready()


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Address of a contiguous tensor's data; NULL for None."""
    return ctypes.c_void_p(None if tensor is None else address(tensor))


def call(name: str, *arguments: Tensor | float | None) -> None:
    """Runs a kernel: tensors (or None) go as addresses of their data, whole numbers as int, others as float."""
    function = getattr(library(), name)
    if function.argtypes is None:  # so that numbers need no wrapping from the second call on
        function.restype, function.argtypes = None, [c_type(value) for value in arguments]
    function(*[address(value) if isinstance(value, Tensor) else value for value in arguments])


def c_type(value: Tensor | float | None) -> type:
    if isinstance(value, int):
        return ctypes.c_int
    return ctypes.c_float if isinstance(value, float) else ctypes.c_void_p


def address(tensor: Tensor) -> int:
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def kernel(name: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None], *numbers: float) -> None:
    """`call` with tensors to read, then tensors to write, then numbers; torch.compile sees it as one operator."""
    if torch.compiler.is_compiling():
        given = [t is not None for t in outputs]
        torch.ops.moonlet.kernel(name, inputs, [t for t in outputs if t is not None], given, numbers)
    else:
        call(name, *inputs, *outputs, *numbers)


def compiled_kernel(
    name: str, inputs: list[Tensor | None], outputs: list[Tensor], given: list[bool], numbers: list[float]
) -> None:
    rest = iter(outputs)
    call(name, *inputs, *(next(rest) if wanted else None for wanted in given), *numbers)


# An operator of torch costs several times as much a call as ctypes alone, so only compiled graphs go through it.
OPERATORS = torch.library.Library("moonlet", "FRAGMENT")
OPERATORS.define("kernel(str name, Tensor?[] inputs, Tensor(a!)[] outputs, bool[] given, Scalar[] numbers) -> ()")
OPERATORS.impl("kernel", compiled_kernel, "CPU")
OPERATORS.impl("kernel", lambda *_: None, "Meta")
