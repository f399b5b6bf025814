"""The native kernels: plain C++ beside this file, called through ctypes.

`build.py` compiles them for this machine at first use, which gives whatever vectors the processor has; without a
compiler the best library that the wheel brought compiled and the processor can run is taken (folder `prebuilt`).
ctypes releases the interpreter lock, so worker threads run kernels side by side. `library()` is None where there is
neither or MOONLET_NATIVE=0 is set; everything then runs in PyTorch, slower. Shapes and formulas stand in each .cpp
beside the function; the truth of each is its twin in plain PyTorch.
"""

import ctypes
import functools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from moonlet.model.kernels.native.build import built, compiler, levels, processor

PREBUILT = Path(__file__).parent / "prebuilt"


@functools.cache
def found() -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernels and one line that says which; or None, the reason and the fix."""
    if os.environ.get("MOONLET_NATIVE") == "0":
        return None, "native kernels are off (MOONLET_NATIVE=0): training runs in plain PyTorch, several times slower"
    reason, fix = "no C++ compiler", "; install g++"
    if compiler() is not None:
        try:
            return ctypes.CDLL(str(built())), "native, built here for this processor"
        except (OSError, subprocess.CalledProcessError) as error:
            detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            reason, fix = f"the native kernels do not compile here ({detail[0] if detail else error})", ""
    for level in levels(processor()):
        try:
            return ctypes.CDLL(str(PREBUILT / f"{level}.so")), f"native, prebuilt {level} ({reason})"
        except OSError:  # not in this package, or made for a newer system
            continue
    return None, f"{reason}: training runs in plain PyTorch, several times slower{fix}"


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where there are none (`why_not` tells)."""
    return found()[0]


def why_not() -> str | None:
    """None when the native kernels work here, else one line: the reason and the fix."""
    kernels, line = found()
    return line if kernels is None else None


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
