"""QK-Clip (K2 report 2.1): after a step, shrink the query and key rows of any MLA head whose logit passed tau.

With S_h the largest logit of head h in the step and gamma = min(1, tau / S_h): the head's nope query and key rows are
scaled by sqrt(gamma), its rope (or extra) query rows by gamma; the shared key slice and the value rows stay. KDA layers
need none: their q and k are unit vectors.
"""

import torch
from torch import Tensor

from moonlet.model.mla import MLA
from moonlet.model.model import Model


@torch.no_grad()
def qk_clip(model: Model, max_logits: dict[int, Tensor], tau: float) -> int:
    """Clip in place; max_logits {layer: [H]}. Returns the number of heads clipped."""
    clipped = 0
    for index, logits in max_logits.items():
        attn = model.layers[index].self_attn
        assert isinstance(attn, MLA)
        gamma = (tau / logits.clamp(min=1e-9)).clamp(max=1.0)
        if bool((gamma == 1).all()):
            continue
        clipped += int((gamma < 1).sum())
        query = attn.q_b_proj if hasattr(attn, "q_b_proj") else attn.q_proj
        q = query.weight.data.unflatten(0, (attn.num_heads, -1))
        q[:, : attn.nope] *= gamma.sqrt()[:, None, None]
        q[:, attn.nope :] *= gamma[:, None, None]
        kv = attn.kv_b_proj.weight.data.unflatten(0, (attn.num_heads, -1))
        kv[:, : attn.nope] *= gamma.sqrt()[:, None, None]
    return clipped
