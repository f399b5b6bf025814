"""A published checkpoint with its routed experts on another grid, for `moonlet convert`: INT4, MXFP4 or bf16.

File by file, so that what is in memory is one shard of the checkpoint and not its model: any of the published forms
goes through, with its vision tower and multi-token prediction. Only the routed experts change; every other tensor is
copied as it is stored, and so are tokenizer, template and the other small files. The error of a class of tensors (gate,
up, down) is the norm of what changed over the norm of what was there. Left out: scales in bf16 (INT4's are fp32 here),
and files of code, which are not carried over.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor

from moonlet.engine.load import PUBLISHED, pack, quantization_config
from moonlet.engine.tensor_files import INDEX, Dequantised, TensorFiles, format_of
from moonlet.errors import InputError, nearest
from moonlet.files import check_writable, new_folder

TARGETS = (*PUBLISHED, "bf16")
EXPERT = re.compile(r"\.experts\.\d+\.(\w+)\.weight$")
CLASSES = {"w1": "gate", "gate_proj": "gate", "w3": "up", "up_proj": "up", "w2": "down", "down_proj": "down"}
COPIED = (".json", ".jinja", ".model", ".txt", ".md", ".tiktoken")


@dataclass
class Error:
    """Of the tensors of a class: squared norms of the change and of the values, the largest change, how many."""

    changed: float = 0.0
    whole: float = 0.0
    largest: float = 0.0
    count: int = 0

    def add(self, before: Tensor, after: Tensor) -> None:
        change = (after.float() - before.float()).abs()
        self.changed += float(change.square().sum())
        self.whole += float(before.float().square().sum())
        self.largest = max(self.largest, float(change.max()))
        self.count += 1


def convert(folder: Path, to: str, out: Path) -> list[str]:
    """Write `out`; a table to tell the user."""
    if to not in TARGETS:
        raise InputError(f"--to {to}: {nearest(to, TARGETS)}")
    if out.resolve() == folder.resolve():
        raise InputError(f"--out {out} is the checkpoint itself: choose another path")
    config = read_config(folder)
    source = format_of(config)
    if source is not None and source == PUBLISHED.get(to):
        raise InputError(f"{folder} is {to} already ({source})")
    stored = TensorFiles(folder)
    tensors = stored if source is None else Dequantised(stored, source)
    if not any(EXPERT.search(name) for name in tensors):
        raise InputError(f"{folder} has no routed experts: there is nothing to convert")
    check_writable(out.parent, (4 if to == "bf16" else 1) * sum(path.stat().st_size for path in stored.open))
    errors = {name: Error() for name in ("gate", "up", "down")}
    where: dict[str, str] = {}
    size = 0
    with new_folder(out) as tmp:
        for path in track(stored.open, f"{to} <- {folder.name}", console=Console(stderr=True)):
            written: dict[str, Tensor] = {}
            for name in (
                name for name in tensors if stored.files.get(name, stored.files.get(f"{name}_packed")) == path
            ):
                written |= tensor(name, tensors[name], to, errors)
            save_file(written, tmp / path.name, metadata={"format": "pt"})
            where |= dict.fromkeys(written, path.name)
            size += sum(t.nbytes for t in written.values())
        if (folder / INDEX).exists():
            index = {"metadata": {"total_size": size}, "weight_map": where}
            (tmp / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True))
        (tmp / "config.json").write_text(json.dumps(requantised(config, to), indent=2))
        for file in folder.iterdir():
            if file.is_file() and file.suffix in COPIED and file.name not in ("config.json", INDEX):
                shutil.copyfile(file, tmp / file.name)
    return [f"wrote {out}", *table(errors)]


def read_config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder}/config.json is not to be read ({error}); give a model folder") from None


def tensor(name: str, value: Tensor, to: str, errors: dict[str, Error]) -> dict[str, Tensor]:
    """The tensors to write for one that is stored or was dequantised; an expert's error is counted."""
    found = EXPERT.search(name)
    if found is None or found[1] not in CLASSES:
        return {name: value}
    written = {name: value.bfloat16()} if to == "bf16" else pack(name, value, to)
    after = written[name] if to == "bf16" else Dequantised(written, PUBLISHED[to])[name]
    errors[CLASSES[found[1]]].add(value, after)
    return written


def requantised(config: dict[str, Any], to: str) -> dict[str, Any]:
    """config.json with its quantization_config replaced where it stood, and the list of what to ignore kept."""
    inner = "text_config" if "quantization_config" in (config.get("text_config") or {}) else None
    level = dict(config[inner] if inner else config)
    old = level.pop("quantization_config", None)
    if to != "bf16":
        level["quantization_config"] = quantization_config(to)
        if old and old.get("ignore"):
            level["quantization_config"]["ignore"] = old["ignore"]
    return {**config, inner: level} if inner else level


def table(errors: dict[str, Error]) -> list[str]:
    out = [f"{'routed experts':16}{'tensors':>10}{'relative error':>16}{'largest change':>16}"]
    for name, e in errors.items():
        out.append(f"{name:16}{e.count:>10,}{(e.changed / max(e.whole, 1e-30)) ** 0.5:>16.2g}{e.largest:>16.2g}")
    return out
