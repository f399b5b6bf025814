"""A small draft for a trained model: one layer that guesses the next tokens from what the model made of the last (K3
report 4.1.4: the layer of multi-token prediction, as an EAGLE-3 draft).

    h_t = W_f (b_t^first | b_t^middle | b_t^last)     b: what a block of the depth bus adds up to; W_f starts as [0 0 I]
    x_t = W_e (RMSNorm(embed(token_t)) | RMSNorm(h_{t-1}))
    x_t += MLA(RMSNorm(x_t));  g_t = x_t + MLP(RMSNorm(x_t));  q(token_{t+1}) = softmax(head(RMSNorm(g_t)))

Place t has token t and the model's features of t-1 (zero at the start of a document); where those are not there yet,
the draft's own g_{t-1} stands for h_{t-1}. Embedding and head are the model's, frozen. Scaled down: the layer has a
dense MLP where K3's has experts, and it starts untrained, as our pretraining predicts one token. Names are those of
DeepSeek-V3's layer for it (`model.layers.N.enorm`, ...) and EAGLE-3's `fc`. Shapes: [B, T, d].
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from moonlet.model.config import ModelConfig
from moonlet.model.model import Layer
from moonlet.model.norm import RMSNorm


def block_count(c: ModelConfig) -> int:
    return 1 if c.attn_res_block_size is None else -(-c.num_hidden_layers // c.attn_res_block_size)


def chosen_blocks(c: ModelConfig) -> list[int]:
    """The blocks that the draft reads, 0-based: the first, the middle one and the last (K3: 1, 4 and 8 of 8)."""
    count = block_count(c)
    return sorted({0, max(0, count // 2 - 1), count - 1})


class Draft(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        """c: the model's."""
        super().__init__()
        d, blocks = c.hidden_size, chosen_blocks(c)
        self.config = replace(c, num_hidden_layers=1, linear_attn_config=None, num_experts=0, attn_res_block_size=None)
        self.blocks, self.index = blocks, c.num_hidden_layers
        self.fc = nn.Linear(len(blocks) * d, d, bias=False)
        self.enorm, self.hnorm = RMSNorm(d, c.rms_norm_eps), RMSNorm(d, c.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * d, d, bias=False)
        self.layers = nn.ModuleList([Layer(self.config, 0)])
        self.norm = RMSNorm(d, c.rms_norm_eps)

    @torch.no_grad()
    def init_weights(self, seed: int) -> "Draft":
        """Normal(0, initializer_range) for every matrix, norms 1, the fusion [0 0 I]."""
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            if p.ndim >= 2:
                p.normal_(0, self.config.initializer_range, generator=generator)
        d = self.config.hidden_size
        self.fc.weight.zero_()[:, -d:] = torch.eye(d)
        return self

    def fuse(self, blocks: Tensor) -> Tensor:
        """The model's features: what all its blocks add up to [..., blocks, d] -> h [..., d]."""
        return self.fc(blocks[..., self.blocks, :].flatten(-2))

    def inputs(self, embedded: Tensor, before: Tensor) -> Tensor:
        """embed(token_t) and h_{t-1} [..., d] -> x_t [..., d]."""
        return self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(before)], dim=-1))


def published_name(name: str, draft: Draft) -> str:
    """Our parameter name -> its name in `draft.safetensors`."""
    if name.startswith("fc."):
        return name
    name = name.removeprefix("layers.0.")
    return f"model.layers.{draft.index}." + ("shared_head.norm.weight" if name == "norm.weight" else name)
