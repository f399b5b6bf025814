"""Packed rows, the folder they are kept in, and the loader whose whole state is one integer.

Documents are laid whole into rows of `seq_len` tokens: each goes to the open row with the least room that still takes
it (best fit), and a bounded number of rows is open at a time, so packing is one pass in the order given. A row is three
arrays of [seq_len]: tokens; segments (0 = padding, 1, 2, ... = which document of the row, so that attention and state
stop at document borders); loss (1 = this token is a target, to be predicted from the one before it in the same
document). The first token of a document therefore never has loss.

A folder holds tokens.npy, segments.npy, loss.npy and index.json with their sizes and SHA-256; arrays are memory-mapped
when read. The order of rows is a pure function of (seed, epoch), a batch one of (seed, step). It is built on the raw
output of PCG64, which numpy promises to keep, unlike that of `Generator.permutation`.

Left out: splitting a batch over devices (take a slice), datasets larger than one file system.
"""

import bisect
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moonlet.errors import InputError
from moonlet.files import new_folder, write_json

OPEN_ROWS = 512  # rows that packing may still add to; more wastes less and costs little
FORMAT = "moonlet-rows-1"
DTYPES = {"tokens": np.uint16, "segments": np.uint16, "loss": np.uint8}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """Packed rows: tokens uint16 [N, T], segments uint16 [N, T] (0 = padding), loss uint8 [N, T]."""

    tokens: Array
    segments: Array
    loss: Array

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def seq_len(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def fill(self) -> float:
        """The share of positions that hold a token rather than padding."""
        return float(np.count_nonzero(self.segments) / max(1, self.segments.size))

    @property
    def targets(self) -> int:
        """How many tokens have loss."""
        return int(np.count_nonzero(self.loss))

    @staticmethod
    def concatenate(parts: Sequence["Rows"]) -> "Rows":
        """The rows of all parts, in order. Raises InputError when there is none or their lengths differ."""
        lengths = sorted({part.seq_len for part in parts})
        if len(lengths) != 1:
            raise InputError(f"rows of lengths {lengths} cannot be joined: pack all parts with one seq_len")
        return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in DTYPES))

    def save(self, folder: str | Path) -> None:
        """Write the rows to `folder`, whole or not at all, in place of what was there."""
        with new_folder(folder) as part:
            files = {}
            for name in DTYPES:
                path = part / f"{name}.npy"
                np.save(path, getattr(self, name), allow_pickle=False)
                files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            index = {"format": FORMAT, "rows": len(self), "seq_len": self.seq_len, "targets": self.targets}
            write_json(part / "index.json", index | {"fill": round(self.fill, 6), "files": files})

    @staticmethod
    def load(folder: str | Path, verify: bool = True) -> "Rows":
        """Map the rows in `folder` into memory, read only.

        Raises InputError that names the file when one is missing, torn or (with `verify`, which reads them once)
        changed.
        """
        folder = Path(folder)
        try:
            index = json.loads((folder / "index.json").read_text("utf-8"))
            if index["format"] != FORMAT:
                raise ValueError(f"format {index['format']!r} is not {FORMAT!r}")
            shape = (index["rows"], index["seq_len"])
            files = {name: index["files"][f"{name}.npy"] for name in DTYPES}
            expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
        except OSError as error:
            raise InputError(f"cannot read {folder / 'index.json'} ({error.strerror}): pack the data again") from error
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder / 'index.json'} is damaged ({error}): pack the data again") from error
        arrays = {}
        for name, (size, sha256) in expected.items():
            path = folder / f"{name}.npy"
            try:
                found = path.stat().st_size
                changed = found == size and verify and _sha256(path) != sha256
            except OSError as error:
                raise InputError(f"cannot read {path} ({error.strerror}): pack the data again") from error
            if found != size:
                raise InputError(f"{path} has {found} bytes, not the {size} that were written: pack the data again")
            if changed:
                raise InputError(f"{path} has changed since it was written (SHA-256 differs): pack the data again")
            try:
                array = np.load(path, mmap_mode="r" if shape[0] else None, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise InputError(f"{path} is not an array of numbers ({error}): pack the data again") from error
            if array.shape != shape or array.dtype != DTYPES[name]:
                raise InputError(f"{path} holds {array.dtype} {array.shape}, not {shape}: pack the data again")
            arrays[name] = array
        return Rows(**arrays)


def pack(documents: Iterable[tuple[Sequence[int], Sequence[int]]], seq_len: int, *, split_long: bool = False) -> Rows:
    """Lay documents, each (ids, loss) of equal length, into rows of `seq_len`. The same input gives the same rows.

    The loss of a document's first token is dropped: nothing stands before it. A document longer than `seq_len` is cut
    into pieces that count as documents of their own when `split_long`, else it is an InputError; an empty one takes no
    room. Ids are 0..65535.
    """
    if seq_len < 2:
        raise InputError(f"seq_len {seq_len} is below 2: a row must hold a token and one to predict")
    rows: list[list[tuple[Array, Array]]] = []
    room: list[tuple[int, int]] = []  # (free, row) of the open rows, sorted
    for number, (ids, loss) in enumerate(documents):
        tokens, targets = _document(number, ids, loss)
        if len(tokens) > seq_len and not split_long:
            raise InputError(
                f"document {number} has {len(tokens)} tokens, more than seq_len {seq_len}: "
                "raise seq_len, shorten it or set split_long"
            )
        for start in range(0, len(tokens), seq_len):
            piece = (tokens[start : start + seq_len], targets[start : start + seq_len])
            size = len(piece[0])
            place = bisect.bisect_left(room, (size, -1))
            if place < len(room):
                free, row = room.pop(place)
                rows[row].append(piece)
            else:
                free, row = seq_len, len(rows)
                rows.append([piece])
            if free > size:
                bisect.insort(room, (free - size, row))
                if len(room) > OPEN_ROWS:
                    room.pop(0)  # the fullest: least likely to take another
    return _filled(rows, seq_len)


def one_a_row(documents: Iterable[tuple[Sequence[int], Sequence[int]]], seq_len: int) -> Rows:
    """One document, each (ids, loss) as in `pack`, a row, for batches that are cut to their longest document. A
    document longer than `seq_len` is an InputError."""
    rows = []
    for number, (ids, loss) in enumerate(documents):
        if len(ids) > seq_len:
            raise InputError(f"document {number} has {len(ids)} tokens, more than seq_len {seq_len}: raise seq_len")
        rows.append([_document(number, ids, loss)])
    return _filled(rows, seq_len)


def row_order(seed: int, epoch: int, n: int, phase: int = 0) -> Array:
    """The order in which an epoch visits `n` rows: a permutation of 0..n-1, int64 [n]."""
    if min(seed, epoch, n, phase) < 0:
        raise InputError(f"seed {seed}, epoch {epoch}, rows {n} and phase {phase} must not be negative")
    bits = np.random.PCG64(np.random.SeedSequence([seed, phase, epoch]))
    return np.argsort(bits.random_raw(n), kind="stable")


class Loader:
    """Batches of rows by step. Each phase draws from its own rows only and reshuffles them every epoch."""

    def __init__(self, phases: Rows | Sequence[tuple[Rows, int]], seed: int, batch_rows: int) -> None:
        """`phases`: (rows, steps) in order, or one set of rows for any number of steps. `batch_rows`: rows a step."""
        self.phases: list[tuple[Rows, int | None]] = [(phases, None)] if isinstance(phases, Rows) else list(phases)
        self.seed, self.batch_rows = seed, batch_rows
        if seed < 0:
            raise InputError(f"seed {seed} must not be negative: choose 0 or more")
        if batch_rows < 1:
            raise InputError(f"batch_rows {batch_rows} must be at least 1: raise it")
        for number, (rows, steps) in enumerate(self.phases):
            if not len(rows):
                raise InputError(f"phase {number} has no rows: add data or leave it out")
            if steps is not None and steps < 0:
                raise InputError(f"phase {number} has {steps} steps: give 0 or more")
        self._order = lru_cache(maxsize=4)(row_order)

    def where(self, step: int) -> tuple[int, int]:
        """(phase, step within it) of a step. Raises InputError beyond the last phase."""
        rest = step
        for phase, (_, steps) in enumerate(self.phases):
            if rest >= 0 and (steps is None or rest < steps):
                return phase, rest
            rest -= steps or 0
        raise InputError(f"step {step} is outside the {step - rest} steps of the phases: add steps to one")

    def rows_at(self, step: int) -> Array:
        """Which rows of the step's phase make its batch: int64 [batch_rows]."""
        phase, local = self.where(step)
        n = len(self.phases[phase][0])
        places = np.arange(local * self.batch_rows, (local + 1) * self.batch_rows)
        epochs = places // n
        return np.concatenate(
            [
                self._order(self.seed, int(epoch), n, phase)[places[epochs == epoch] % n]
                for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
            ]
        )

    def batch(self, step: int) -> dict[str, Array]:
        """The batch of a step, a pure function of (seed, step).

        tokens int64 [B, T]; segments int64 [B, T], 0 = padding; loss float32 [B, T], 1 where token t is a target to
        be predicted from t-1.
        """
        rows = self.phases[self.where(step)[0]][0]
        chosen = self.rows_at(step)
        return {
            "tokens": rows.tokens[chosen].astype(np.int64),
            "segments": rows.segments[chosen].astype(np.int64),
            "loss": rows.loss[chosen].astype(np.float32),
        }


def _document(number: int, ids: Sequence[int], loss: Sequence[int]) -> tuple[Array, Array]:
    """Checked arrays of one document."""
    tokens, targets = np.asarray(ids), np.asarray(loss)
    if len(tokens) != len(targets):
        raise InputError(f"document {number} has {len(tokens)} ids and {len(targets)} loss marks: make them equal")
    if len(tokens) and not (0 <= tokens.min() and tokens.max() <= 0xFFFF):
        raise InputError(f"document {number} has ids {tokens.min()}..{tokens.max()}: shards hold 0..65535")
    return tokens, targets != 0


def _filled(rows: list[list[tuple[Array, Array]]], seq_len: int) -> Rows:
    """The arrays of rows given as lists of pieces."""
    arrays = {name: np.zeros((len(rows), seq_len), dtype) for name, dtype in DTYPES.items()}
    for row, pieces in enumerate(rows):
        start = 0
        for segment, (tokens, targets) in enumerate(pieces, 1):
            stop = start + len(tokens)
            arrays["tokens"][row, start:stop] = tokens
            arrays["segments"][row, start:stop] = segment
            arrays["loss"][row, start + 1 : stop] = targets[1:]
            start = stop
    return Rows(**arrays)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
