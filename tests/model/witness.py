"""transformers as the outside witness: its models with random weights, logits and gradients of both by published name.

Every parameter is random. The low-rank projections are made small, so that a wrong epsilon of their norms shows.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moonlet.model.config import from_json
from moonlet.model.model import Model
from moonlet.model.weights import from_published, to_published

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
STD = 0.07


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """`model` of transformers, in place."""
    r = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "A_log" in name:
            p.uniform_(-0.5, 2.0, generator=r)
        elif "dt_bias" in name:
            p.uniform_(-5, 0, generator=r)
        elif "conv1d" in name:
            p.uniform_(-0.5, 0.5, generator=r)
        elif p.ndim == 1:
            p.uniform_(0.5, 1.5, generator=r)
        else:
            p.normal_(0, STD * (0.05 if "q_a_proj" in name or "kv_a_proj" in name else 1), generator=r)
    for name, b in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            b.normal_(0, 0.2, generator=r)


def load_ours(folder: Path) -> Model:
    """Our model from a folder in the published layout."""
    model = Model(from_json(folder / "config.json"))
    from_published(model, load_file(folder / "model.safetensors"))
    return model


def write_ours(model: Model, folder: Path) -> None:
    folder.mkdir()
    save_file(to_published(model), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))


def logits_and_gradients(model: nn.Module, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and d(mean next-token loss)/d(parameter) by the model's own names."""
    out: Any = model(ids)
    logits = out if isinstance(out, Tensor) else out.logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    params = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    return logits.detach(), {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(params.items(), grads)}


@torch.no_grad()
def published_gradients(model: nn.Module, grads: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Gradients under the published names: written as if they were the weights, by each side's own writer."""
    kept = {n: p.clone() for n, p in model.named_parameters()}
    for n, p in model.named_parameters():
        p.copy_(grads[n])
    if isinstance(model, Model):
        named = {n: t.clone() for n, t in to_published(model).items()}
    else:
        model.save_pretrained(folder)  # type: ignore[operator]
        named = load_file(folder / "model.safetensors")
    for n, p in model.named_parameters():
        p.copy_(kept[n])
    return {n.replace(".block_sparse_moe.", ".mlp."): t for n, t in named.items() if "correction_bias" not in n}


def gradient_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative difference of any one tensor, and its name. Tensors with next to no gradient (1e-4 of the
    typical tensor's norm) are held to that norm: of theirs, rounding is all that is left."""
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    floor = 1e-4 * float(torch.stack([t.norm() for t in b.values()]).median())
    return max((float((a[n] - b[n]).norm() / b[n].norm().clamp(min=floor)), n) for n in b)


def compare(theirs: nn.Module, ids: Tensor, tmp: Path) -> tuple[float, float, str]:
    """Both directions: their files in our model, our files in theirs. -> logits' largest difference, gradients'."""
    theirs.eval()
    theirs.save_pretrained(tmp / "theirs")  # type: ignore[operator]
    ours = load_ours(tmp / "theirs")
    their_logits, their_grads = logits_and_gradients(theirs, ids)
    our_logits, our_grads = logits_and_gradients(ours, ids)
    with torch.no_grad():
        assert (ours(ids) - our_logits).abs().max() < 5e-6  # the path of few tokens, without gradient
    write_ours(ours, tmp / "ours")
    loader: Any = type(theirs)
    again, report = loader.from_pretrained(tmp / "ours", output_loading_info=True, **EAGER)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        assert (again.eval()(ids).logits - their_logits).abs().max() < 1e-6
    difference, name = gradient_difference(
        published_gradients(ours, our_grads, tmp), published_gradients(theirs, their_grads, tmp / "grads")
    )
    return float((our_logits - their_logits).abs().max()), difference, name
