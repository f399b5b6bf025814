"""A starting point that can recall: every KDA layer begins as a memory of what followed each token.

Source: mimetic initialisation (Trockman et al. 2024, arXiv 2410.11135), here for KDA. Queries and keys share their
projection, so equal tokens match. The convolution of the queries starts as a weighted sum of the last n tokens, that
of the keys as the same sum one token earlier, n = `CONTEXT` layer by layer, and that of the values as the token alone:
the state then maps "the n tokens before" to "this token". The decay starts slow (softplus(dt_bias) log-uniform in
`DECAY`). That is induction, the skill under every copied number and name, which from a plain random start comes only
after a long plateau (measured: docs/log.md).

Two things keep it alive while the rest of the model is still noise. The embedding starts large and what the layers add
to it small, so that every layer's memory sees tokens and not the noise of the layers below. And the shared projection
starts at d^-0.5: an update of Muon has the same size whatever the gradient, and would turn a matrix of 0.02 over within
tens of steps. All of it is trained like anything else afterwards, and the architecture is untouched. Leaves out MLA,
whose keys learn from what the KDA layers give them.
"""

import torch

from moonlet.model.kda import KDA, set_decay
from moonlet.model.model import Model

CONTEXT = (1, 2, 1)  # tokens that a match looks at, layer by layer, repeated
WEIGHTS = (1.0, 0.7)  # of the last token, the one before
NOISE = 0.1  # what is left of the random taps
EMBEDDING = 0.2  # standard deviation
ADDS = "o_proj.weight", ".down_proj.weight", "routed_expert_up_proj.weight"  # what writes to the stream
ADDED = 0.3  # the factor on it
DECAY = 1e-4, 1e-2


@torch.no_grad()
def start_with_recall(model: Model, seed: int) -> Model:
    """Change a model fresh from `init_weights`; in place, and returned."""
    generator = torch.Generator().manual_seed(seed)
    model.embed_tokens.weight.normal_(0, EMBEDDING, generator=generator)
    for name, matrix in model.named_parameters():
        if name.endswith(ADDS):
            matrix.mul_(ADDED)
    layers = [layer.self_attn for layer in model.layers if isinstance(layer.self_attn, KDA)]
    for index, kda in enumerate(layers):
        for projection in (kda.q_proj, kda.v_proj):
            projection.weight.normal_(0, projection.in_features**-0.5, generator=generator)
        kda.k_proj.weight.copy_(kda.q_proj.weight)
        weights = WEIGHTS[: CONTEXT[index % len(CONTEXT)]]
        for conv, lag, taps in ((kda.q_conv1d, 0, weights), (kda.k_conv1d, 1, weights), (kda.v_conv1d, 0, (1.0,))):
            conv.weight.uniform_(-NOISE, NOISE, generator=generator)
            width = conv.weight.shape[-1]
            for back, weight in enumerate(taps, lag):
                if back < width:
                    conv.weight[:, 0, width - 1 - back] += weight
        set_decay(kda.dt_bias, DECAY, generator)
    return model
