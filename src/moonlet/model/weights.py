"""Published tensor names in and out: our module names <-> the names in Kimi checkpoints (K3, Kimi Linear, K2).

Differences: the stacked experts [E, ...] become one matrix an expert (`experts.J.w1` or `.gate_proj`), MoE sits under
`block_sparse_moe` (Kimi) or `mlp` (K2), AttnRes mixes are spelled `self_attention_res_norm` / `_proj`, A_log is
[1, 1, H, 1] in Kimi Linear and flat, zero-padded to a multiple of 128, in K3. All other names are the same.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from moonlet.errors import InputError
from moonlet.model.config import ModelConfig, is_k2
from moonlet.model.model import Model

K2_EXPERT = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def published_name(name: str, c: ModelConfig) -> str:
    """Our parameter name -> published name (a stack of experts keeps its last part, the callers split it)."""
    if name.startswith("lm_head"):
        return name
    parts = name.split(".")
    if parts[0] == "layers" and parts[2] == "mlp" and c.is_moe(int(parts[1])) and not is_k2(c):
        parts[2] = "block_sparse_moe"
    name = ".".join(parts)
    for mix in ("self_attention_res", "mlp_res", "output_attn_res"):
        name = name.replace(f"{mix}.norm.", f"{mix}_norm.").replace(f"{mix}.proj.", f"{mix}_proj.")
    return "model." + name


def to_published(model: Model) -> dict[str, Tensor]:
    """Every parameter and the router biases under published names, experts one by one, in fp32."""
    c = model.config
    out: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        value = value.detach()
        published = published_name(name, c)
        stem, _, last = published.rpartition(".")
        if stem.endswith(".experts"):
            for j in range(value.shape[0]):
                out[f"{stem}.{j}.{K2_EXPERT[last] if is_k2(c) else last}.weight"] = value[j].contiguous()
        elif last == "A_log":
            out[published] = pad_a_log(value) if c.attn_res_block_size is not None else value.view(1, 1, -1, 1)
        else:
            out[published] = value.contiguous()
    return out


def pad_a_log(value: Tensor) -> Tensor:
    return torch.cat([value, value.new_zeros(-value.shape[0] % 128)])


def from_published(model: Model, tensors: Mapping[str, Tensor], room: Callable[..., Tensor] = torch.empty) -> None:
    """Fill `model`, which may be on the meta device, in fp32 from published tensors (dequantised), one at a time.
    room(shape, dtype=): the memory of stacks of experts.

    Of a multimodal checkpoint the text part is taken (`language_model.`), of one with a layer for multi-token
    prediction the others. InputError lists missing, surplus and misshapen names.
    """
    c = model.config
    names = text_names(tensors, c.num_hidden_layers)
    missing, misshapen, used = [], [], set()
    filled: dict[str, Tensor] = {}

    def take(name: str) -> Tensor | None:
        kimi, k2 = name.replace(".mlp.", ".block_sparse_moe."), name.replace(".block_sparse_moe.", ".mlp.")
        for spelling in (name, kimi, k2):
            if spelling in names:
                used.add(spelling)
                return tensors[names[spelling]]
        missing.append(name)
        return None

    def fits(value: Tensor | None, own: Tensor, name: str) -> Tensor | None:
        if value is None or value.shape == own.shape:
            return value
        misshapen.append(f"{name} is {list(value.shape)}, config says {list(own.shape)}")
        return None

    for name, own in model.state_dict().items():
        published = published_name(name, c)
        stem, _, last = published.rpartition(".")
        if stem.endswith(".experts"):
            key, _, part = last.partition("_")  # w1; or w1_packed, w1_scale where experts stay in 4 bits
            key, part = K2_EXPERT[key] if is_k2(c) else key, f"weight_{part}" if part else "weight"
            for j in range(own.shape[0]):
                row = fits(take(f"{stem}.{j}.{key}.{part}"), own[j], f"{stem}.{j}.{key}.{part}")
                if row is not None:
                    if name not in filled:
                        filled[name] = room(own.shape, dtype=torch.float32 if part == "weight" else row.dtype)
                    filled[name][j] = row
            continue
        value = take(published)
        if value is not None and last == "A_log":
            value = value.flatten()[: own.shape[0]]
        value = fits(value, own, published)
        if value is not None:
            filled[name] = value.float()
    surplus = sorted(set(names) - used)
    problems = [
        f"{kind} {len(names)}: {', '.join(names[:10])}"
        for kind, names in (("missing", missing), ("misshapen", misshapen), ("surplus", surplus))
        if names
    ]
    if problems:
        raise InputError("checkpoint does not fit its config: " + "; ".join(problems))
    model.load_state_dict(filled, assign=True)


def text_names(tensors: Mapping[str, Tensor], layers: int) -> dict[str, str]:
    """{name without prefix: name} of the text model's tensors."""
    prefix = "language_model."
    chosen = [n for n in tensors if n.startswith(prefix)] or [*tensors]
    names = {n.removeprefix(prefix): n for n in chosen}
    behind = f"model.layers.{layers}."  # K2's layer for multi-token prediction, known by its joint projection
    if f"{behind}eh_proj.weight" in names:
        names = {short: n for short, n in names.items() if not short.startswith(behind)}
    return names
