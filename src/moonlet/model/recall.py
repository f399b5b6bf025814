"""A starting point that can recall: every KDA layer begins as a memory of what followed each token.

Source: mimetic initialisation (Trockman et al. 2024, arXiv 2410.11135), here for KDA. Queries and keys share their
projection, so equal tokens match; the convolution of the keys starts as a delay of `KEY_LAGS` tokens and those of
queries and values as none, so the state maps "the token before" to "this token"; the decay starts slow
(softplus(dt_bias) log-uniform in [1e-4, 1e-2]). That is induction, the skill under every copied number and name, which
from a plain random start comes only after a long plateau (measured: docs/log.md). All of it is trained like anything
else afterwards, and the architecture is untouched. Leaves out MLA, whose keys learn from what the KDA layers give them.
"""

import torch

from moonlet.model.kda import KDA, set_decay
from moonlet.model.model import Model

KEY_LAGS = (1, 2, 1)  # layer by layer, repeated
NOISE = 0.2  # what is left of the random taps
DECAY = 1e-4, 1e-2


@torch.no_grad()
def start_with_recall(model: Model, seed: int) -> Model:
    """Change the KDA layers of a model fresh from `init_weights`; in place, and returned."""
    generator = torch.Generator().manual_seed(seed)
    layers = [layer.self_attn for layer in model.layers if isinstance(layer.self_attn, KDA)]
    for index, kda in enumerate(layers):
        kda.k_proj.weight.copy_(kda.q_proj.weight)
        for conv, lag in ((kda.q_conv1d, 0), (kda.k_conv1d, KEY_LAGS[index % len(KEY_LAGS)]), (kda.v_conv1d, 0)):
            conv.weight.mul_(NOISE)
            conv.weight[:, 0, -1 - min(lag, conv.weight.shape[-1] - 1)] += 1.0
        set_decay(kda.dt_bias, DECAY, generator)
    return model
