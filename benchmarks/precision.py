"""What bf16 products cost in loss: a small K3 model trained in fp32 and with bf16 operands, from the same seeds.

    python benchmarks/precision.py [--steps 200] [--seeds 3]

4 layers, 64 wide, 8 experts; bytes of the standard library's text, 4 rows of 128 a step, one thread. Both sides of a
seed have the same weights at first and the same batches, so their difference is the products' alone; how far the seeds
are apart in fp32 is the noise that it has to be seen in. Loss: mean of each quarter of the steps, and held-out bits a
byte at the end, in fp32 for both. Writes runs/bench/precision.json.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from moonlet.data import stdlib_text
from moonlet.files import write_json
from moonlet.model.config import for_depth
from moonlet.model.model import Model
from moonlet.optim.muon import MuonAdamW, OptimConfig, muon_blocks
from moonlet.optim.schedule import cosine
from moonlet.train.step import Stepper

ROWS, LENGTH = 4, 128
SHAPE = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 2, "num_heads": 2}
SHAPE |= {"q_lora_rank": 32, "kv_lora_rank": 32, "routed_expert_hidden_size": 32, "moe_intermediate_size": 32}


def train(text: torch.Tensor, held_out: torch.Tensor, seed: int, steps: int, bf16: bool) -> dict[str, Any]:
    """Losses by step, and bits a byte of `held_out` [n, LENGTH]."""
    model = Model(for_depth(4, 256, SHAPE)).init_weights(seed)
    optimizer = MuonAdamW(model, muon_blocks(model), OptimConfig(muon_lr=0.01, adamw_lr=0.01))
    stepper, draw, losses = Stepper(1, bf16), torch.Generator().manual_seed(seed), []
    for step in range(steps):
        tokens = text[torch.randint(len(text), (ROWS,), generator=draw)]
        batch = {"tokens": tokens, "segments": torch.ones_like(tokens), "loss": torch.ones_like(tokens)}
        losses.append(stepper.step(model, optimizer, batch, cosine(step, steps), tau=100.0)["loss"])
    stepper.pool.shutdown()
    with torch.no_grad():
        loss = F.cross_entropy(model(held_out)[:, :-1].flatten(0, 1), held_out[:, 1:].flatten())
    return {"seed": seed, "bf16": bf16, "losses": losses, "bits_per_byte": float(loss) / math.log(2)}


def quarters(losses: list[float]) -> list[float]:
    return [float(part.mean()) for part in torch.tensor(losses).chunk(4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = "\n".join(stdlib_text.documents(200_000)).encode()
    rows = torch.tensor(list(data[: len(data) // LENGTH * LENGTH])).view(-1, LENGTH)
    held_out, text = rows[::50], rows[torch.arange(len(rows)) % 50 != 0]
    runs = []
    for seed in range(options.seeds):
        for bf16 in (False, True):
            run = train(text, held_out, seed, options.steps, bf16)
            runs.append(run)
            side, means = "bf16" if bf16 else "fp32", " ".join(f"{mean:.4f}" for mean in quarters(run["losses"]))
            print(f"seed {seed} {side}  {means}  {run['bits_per_byte']:.4f} bits a byte", flush=True)
    write_json(Path("runs/bench/precision.json"), {"steps": options.steps, "runs": runs})


if __name__ == "__main__":
    main()
