"""What this machine has and what is missing, for `moonlet doctor`: Python, torch, kernels, processor, memory, disk,
browser.

Everything is read from the running system and nothing is changed. A fact that this system does not tell is null. The
browser is needed by the tests of the web pages alone.
"""

import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def find_browser() -> str | None:
    """The path of a Chromium, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def report() -> dict[str, Any]:
    """Facts by name. Sizes are bytes."""
    return {
        "python": platform.python_version(),
        **_torch(),
        **_processor(),
        "memory_bytes": _memory(),
        "disk_free_bytes": shutil.disk_usage(".").free,
        "browser": find_browser(),
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """The facts as text, and one line for each thing that is missing."""
    out = []
    for name, value in facts.items():
        if name.endswith("_bytes") and value is not None:
            name, value = name.removesuffix("_bytes"), f"{value / 2**30:.1f} GiB"
        elif isinstance(value, dict):
            value = " ".join(flag for flag, there in value.items() if there) or "none of " + " ".join(value)
        out.append(f"{name.replace('_', ' '):14} {'unknown' if value is None else value}")
    if facts["torch"] is None:
        out.append("missing: torch; training and serving need it: pip install torch==2.13.0")
    if facts["browser"] is None:
        out.append("missing: chromium; the tests of the web pages need it, nothing else does")
    return out


def _torch() -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        return {"torch": None, "threads": None, "accelerator": None, "kernels": None, "gpu_kernels": None}
    import torch

    from moonlet.model.kernels import gpu
    from moonlet.model.kernels.native import found

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
        "kernels": found()[1],
        "gpu_kernels": gpu.why_not() or "fla-core" if torch.cuda.is_available() else "not needed",
    }


def _processor() -> dict[str, Any]:
    """Name, cores that this process may use, and the vector extensions that speed matrix products up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = _text("/proc/cpuinfo")
    if text is None:
        return {"processor": platform.processor() or None, "cores": cores, "flags": None}
    fields = dict(part for line in text.splitlines() if len(part := [s.strip() for s in line.split(":", 1)]) == 2)
    present = fields.get("flags", "").split()
    return {"processor": fields.get("model name"), "cores": cores, "flags": {flag: flag in present for flag in FLAGS}}


def _memory() -> int | None:
    """Bytes that this process may use: the machine's, or its control group's limit where that is lower."""
    if sys.platform == "win32":
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = (_text("/sys/fs/cgroup/memory.max") or "max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:  # not this kind of system
        return None
