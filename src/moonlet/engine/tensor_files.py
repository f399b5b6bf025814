"""The tensors of a published model folder: one safetensors file or a sharded index, opened lazily, nothing trusted.

`TensorFiles(folder)` reads the headers alone and maps each name to its file; a tensor's bytes are mapped from the disk
when it is asked for. `Dequantised` shows packed 4-bit experts as the matrices that they stand for, again one at a time.
A file that lies is refused with its name and the reason: a header that is cut off, runs past the file or names a tensor
twice, offsets that overlap (the safetensors library checks them), an index that leads out of the folder, or a shard
that lacks what the index promises. Nothing is ever unpickled.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from moonlet.errors import InputError
from moonlet.quant import grids

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FORMATS = {"mxfp4-pack-quantized": "mxfp4", "pack-quantized": "int4"}  # compressed-tensors' names and ours
HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library


class TensorFiles(Mapping[str, Tensor]):
    """name -> tensor as stored."""

    def __init__(self, folder: Path) -> None:
        self.files = {name: folder / file for name, file in listed(folder).items()}
        self.open = {path: opened(path) for path in sorted({*self.files.values()})}
        for path, handle in self.open.items():
            held = {*handle.keys()}
            promised = {name for name, file in self.files.items() if file == path}
            if held != promised:
                name = min(held ^ promised)
                what = "lacks" if name in promised else "holds, beside what the index says,"
                raise InputError(f"{path} {what} {name}: the index and the file do not fit; copy both again")

    def __getitem__(self, name: str) -> Tensor:
        return self.open[self.files[name]].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


class Dequantised(Mapping[str, Tensor]):
    """The same names with packed matrices as their fp32 `.weight`; with `keep` the routed experts' stay packed.

    format: mxfp4-pack-quantized or pack-quantized."""

    def __init__(self, stored: Mapping[str, Tensor], format: str, keep: bool = False) -> None:
        if format not in FORMATS:
            raise InputError(f"quantization format {format!r}: only {' and '.join(FORMATS)} are read")
        self.stored, self.format = stored, format
        self.names: set[str] = set()
        for name in stored:
            stem = name.removesuffix("_packed")
            if name != stem and f"{stem}_scale" not in stored:
                raise InputError(f"{name} has no {stem}_scale beside it; the checkpoint is not whole")
            if keep and ".experts." in name and not name.endswith("_shape"):
                self.names.add(name)
            elif not name.endswith(("_scale", "_shape")):
                self.names.add(stem)

    def __getitem__(self, name: str) -> Tensor:
        if name in self.stored:
            return self.stored[name]
        return grids.unpacked(self.stored[f"{name}_packed"], self.stored[f"{name}_scale"], FORMATS[self.format])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def listed(folder: Path) -> dict[str, str]:
    """{tensor: file name} of a folder, from the index where there is one."""
    index = folder / INDEX
    if not index.exists():
        return dict.fromkeys(header(folder / SINGLE), SINGLE)
    try:
        found = json.loads(index.read_text(), object_pairs_hook=unique)["weight_map"]
        pairs = {str(name): str(file) for name, file in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is not a safetensors index ({error}); copy it again") from None
    for name, file in pairs.items():
        if Path(file).name != file or not file.endswith(".safetensors") or "\\" in file:
            raise InputError(f"{index}: {name} is said to be in {file!r}, which is no .safetensors file of this folder")
    return pairs


def opened(path: Path) -> Any:
    header(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file ({error}); copy or write it again") from None


def header(path: Path) -> list[str]:
    """Tensor names of a file, its header checked for its length and for names that come twice."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if size < 8 or length > min(size - 8, HEADER_LIMIT):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            names = json.loads(file.read(length), object_pairs_hook=unique)
        return [name for name in names if name != "__metadata__"]
    except FileNotFoundError:
        raise InputError(f"{path} not found; a model folder holds config.json and {SINGLE} or {INDEX}") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not a safetensors file ({error}); copy or write it again") from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refused where a name comes twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def format_of(config: Mapping[str, Any]) -> str | None:
    """The packing that a config.json declares: at the top of its quantization_config, or inside the group."""
    for level in (config, config.get("text_config") or {}):
        quantization = level.get("quantization_config")
        if quantization:
            groups = [g for g in (quantization.get("config_groups") or {}).values() if isinstance(g, dict)]
            return quantization.get("format") or next((g["format"] for g in groups if g.get("format")), None)
    return None
