"""`moonlet draft`: train a draft for a run's model on the run's own conversations, and write it beside the model.

The longest packed rows of `data/sft-*` are the text; the first HELD_OUT of them are not trained on and show, when it is
done, what share of the draft's tokens the model would take at each place of a chain. Nothing else of the run changes.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save

from moonlet.data.shards import Loader, Rows
from moonlet.engine.draft import FILE
from moonlet.engine.load import load
from moonlet.errors import InputError
from moonlet.files import write_atomic
from moonlet.model.draft import Draft, published_name
from moonlet.optim.muon import MuonAdamW, OptimConfig, muon_blocks
from moonlet.optim.schedule import cosine
from moonlet.train.draft import row_loss, rows_of, step
from moonlet.train.loop import to_tensors

HELD_OUT, ROWS, RATE = 64, 8, 0.01
UNROLLED = 4  # steps; K3's 7 would take nearly twice the time, and the later places guess as well as the first


def conversations(folder: Path) -> Rows:
    """The longest rows of the run that `folder` is the model of. InputError where it has none."""
    data = Path(folder).resolve().parent / "data"
    found = [Rows.load(path) for path in sorted(data.glob("sft-*"))]
    if not found:
        raise InputError(f"{data} has no sft-* rows to train on: give the model folder of a run, runs/NAME/model")
    longest = max(rows.seq_len for rows in found)
    return Rows.concatenate([rows for rows in found if rows.seq_len == longest])


def part(rows: Rows, of: slice) -> Rows:
    return Rows(rows.tokens[of], rows.segments[of], rows.loss[of])


def main(folder: Path, out: Path | None, steps: int, say: Callable[[str], None] = print) -> None:
    """Train for `steps` steps and write `out`, by default draft.safetensors in `folder`."""
    rows = conversations(folder)
    model = load(folder)[0].requires_grad_(False)
    draft = Draft(model.config).init_weights(0)
    held_out, loader = part(rows, slice(HELD_OUT)), Loader([(part(rows, slice(HELD_OUT, None)), steps)], 0, ROWS)
    optimizer = MuonAdamW(draft, muon_blocks(draft), OptimConfig(RATE, RATE))
    workers = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for number in range(steps):
            batch = to_tensors(loader.batch(number))
            log = step(model, draft, optimizer, batch, cosine(number, steps), UNROLLED, pool)
            if (number + 1) % 20 == 0 or number + 1 == steps:
                shares = ", ".join(f"{log[f'accepted_{s}']:.2f}" for s in range(1, UNROLLED + 1))
                say(f"step {number + 1} of {steps}: loss {log['loss']:.3f}, accepted {shares}")
        batch = to_tensors({name: getattr(held_out, name) for name in ("tokens", "segments", "loss")})
        with torch.no_grad():
            found = list(pool.map(lambda row: row_loss(model, draft, row, UNROLLED), rows_of(batch)))
    count = torch.stack([f.count for f in found]).sum(0)
    for what, sums in (("accepted", [f.accepted for f in found]), ("same likeliest token", [f.same for f in found])):
        of_all = (torch.stack(sums).sum(0) / count).tolist()
        say(f"held out, {what}, by place: " + ", ".join(f"{share:.3f}" for share in of_all))
    tensors = {published_name(name, draft): value.detach().contiguous() for name, value in draft.named_parameters()}
    write_atomic(out or Path(folder) / FILE, save(tensors, {"format": "pt"}))
