"""What fits on which machine, for `moonlet fit`: weights, cache and training state of the sizes in model/sizes.py.

Bytes as the published checkpoints hold them: bf16 for all but the routed experts, these at 4 bits with a scale byte for
32 (4.25). The cache: MLA's latents in bf16, KDA's state in fp32 (in a snapshot bf16, if asked for). `cpu` is what this
project's engine holds on a CPU, in fp32 or with the experts in 4 bits and the rest in 8 (8.5 with scales; embedding and
router fp32). Training, fp32: weights, one gradient sum and one running gradient a worker, Muon's momentum (AdamW's two
moments for embeddings, head and vectors), and what one micro-batch keeps for its backward pass. Left out: what a
serving program itself takes.
"""

from pathlib import Path
from typing import Any

from moonlet.errors import InputError, nearest
from moonlet.model import config as configs
from moonlet.model import sizes
from moonlet.model.config import ModelConfig
from moonlet.model.presets import PRESETS, preset
from moonlet.optim.muon import is_muon

EXPERT_BITS, GIB = 4.25, 2**30


def open_config(name: str) -> ModelConfig:
    """A preset by name, or the config of a model folder."""
    if name in PRESETS:
        return preset(name)
    if Path(name).is_dir():
        return configs.from_json(Path(name) / "config.json")
    raise InputError(f"{name!r} is neither a model folder nor a preset; nearest preset: {nearest(name, PRESETS)}")


def muon_parameters(c: ModelConfig) -> int:
    """How many of the parameters are Muon's."""
    return sum(
        n * p.numel() for layer, n in sizes.layers(c) for name, p in layer.named_parameters() if is_muon(name, p)
    )


def cache_bytes(c: ModelConfig) -> tuple[int, int]:
    """(bytes a token, bytes a sequence whatever its length)."""
    token, sequence = sizes.cache_numbers(c)
    return 2 * token, 4 * sequence


def facts(name: str, memory: int | None, context: int) -> dict[str, Any]:
    """Everything the command prints. memory: bytes, or None; context: tokens of a stream."""
    c = open_config(name)
    parts, muon = sizes.parameters(c), muon_parameters(c)
    total, routed = sum(parts.values()), parts["routed experts"]
    token, sequence = cache_bytes(c)
    chosen, stream = sizes.active(parts, c), sequence + token * context
    whole = parts["embedding and head"] // 2 + parts["router"] + parts["norms"]
    published = 2 * (total - routed) + round(routed * EXPERT_BITS / 8)
    out: dict[str, Any] = {
        "model": name,
        "parameters": parts,
        "active": chosen,
        "total": total,
        "active_total": sum(chosen.values()),
        "weights_bf16": 2 * total,
        "weights_4bit": published,
        "cache_per_1k_tokens": 1000 * token,
        "state_per_sequence": sequence,
        "snapshot_bf16": sequence // 2,
        "cpu": 4 * total,
        "cpu_int8": round(whole * 4 + routed * EXPERT_BITS / 8 + (total - routed - whole) * 8.5 / 8),
        "training_fp32": 4 * (total + 2 * total + muon + 2 * (total - muon)),
        "activations_per_1k_tokens": round(4 * 1000 * sizes.activations(c)),
    }
    if memory is not None:
        room = memory - published
        longest = (room - sequence) // token if token and room > sequence else 0
        out["memory"] = {
            "bytes": memory,
            "room": room,
            "fits": room >= stream,
            "needs": published + stream,
            "longest_context": max(0, min(longest, c.max_position_embeddings)),
            "context": context,
            "streams": max(0, room // stream),
            "bf16_fits": memory >= 2 * total + stream,
            "training_room": memory - out["training_fp32"],
            "training_tokens": max(0, 1000 * (memory - out["training_fp32"]) // out["activations_per_1k_tokens"]),
        }
    return out


def size(n: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n) < 1024 or unit == "GiB":
            return f"{n:,.0f} {unit}" if unit == "B" else f"{n:,.1f} {unit}"
        n /= 1024
    raise AssertionError


def count(n: float) -> str:
    """A number of parameters for people."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if n >= scale:
            return f"{n / scale:.4g} {unit}"
    return f"{n:.0f}"


def lines(f: dict[str, Any]) -> list[str]:
    """The facts as a table."""
    out = [f"{f['model']}: {count(f['total'])} parameters, {count(f['active_total'])} active", ""]
    out.append(f"{'part':20}{'total':>12}{'active':>12}")
    out += [f"{p:20}{count(n):>12}{count(f['active'][p]):>12}" for p, n in f["parameters"].items() if n]
    out += [
        "",
        f"weights, bf16                       {size(f['weights_bf16']):>14}",
        f"weights, experts in 4 bits          {size(f['weights_4bit']):>14}",
        f"cache of 1,000 tokens (MLA)         {size(f['cache_per_1k_tokens']):>14}",
        f"state of a sequence (KDA)           {size(f['state_per_sequence']):>14}",
        f"  of a snapshot, --snapshots bf16   {size(f['snapshot_bf16']):>14}",
        f"moonlet's engine on a CPU, fp32     {size(f['cpu']):>14}",
        f"  experts in 4 bits, the rest in 8  {size(f['cpu_int8']):>14}",
        f"training, fp32, one worker          {size(f['training_fp32']):>14}",
        f"  and 1,000 tokens of a micro-batch {size(f['activations_per_1k_tokens']):>14}",
    ]
    if "memory" in f:
        m = f["memory"]
        out.append(f"\nin {size(m['bytes'])}, experts in 4 bits:")
        if m["fits"]:
            out.append(f"  fits with {size(m['room'])} beside the weights")
            out.append(f"  longest context of one stream: {m['longest_context']:,} tokens")
            out.append(f"  streams of {m['context']:,} tokens: {m['streams']:,}")
        else:
            out.append(f"  does not fit: one stream of {m['context']:,} tokens needs {size(m['needs'])}")
        out.append(f"  in bf16: {'fits' if m['bf16_fits'] else 'does not fit'}")
        left = m["training_room"]
        word = f"fits, micro-batches of {m['training_tokens']:,} tokens" if left > 0 else f"lacks {size(-left)}"
        out.append(f"  training in fp32: {word}")
    return out


def presets(rows: list[dict[str, Any]]) -> list[str]:
    """Which of the presets, given as facts with memory, fit; largest first."""
    memory, context = rows[0]["memory"]["bytes"], rows[0]["memory"]["context"]
    out = [f"in {size(memory)}, experts in 4 bits, one stream of {context:,} tokens:", ""]
    out.append(f"{'preset':18}{'total':>9}{'active':>9}{'weights':>14}{'room':>14}{'longest context':>18}")
    for f in sorted(rows, key=lambda f: -f["total"]):
        m = f["memory"]
        end = f"{size(m['room']):>14}{m['longest_context']:>18,}" if m["fits"] else f"{'does not fit':>14}"
        out.append(
            f"{f['model']:18}{count(f['total']):>9}{count(f['active_total']):>9}{size(f['weights_4bit']):>14}{end}"
        )
    return out


def memory_bytes(text: str) -> int:
    """24GB, 24GiB or 500M -> bytes; card makers' GB are GiB here."""
    number, unit = text.rstrip("iBb "), 1
    if number and number[-1].upper() in "KMGT":
        unit = 1024 ** ("KMGT".index(number[-1].upper()) + 1)
        number = number[:-1]
    try:
        value = int(float(number) * unit)
    except (ValueError, OverflowError):
        value = 0
    if value <= 0:
        raise InputError(f"--memory {text}: write a size above 0 such as 24GB")
    return value
