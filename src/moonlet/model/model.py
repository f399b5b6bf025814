"""The decoder: embedding, layers of (KDA or MLA) + (dense or MoE), joined by AttnRes or a plain residual, head.

Layer with the depth bus (banked list B, live sum p; K3 report 2.2, start p = embedding):

    x = norm(mix(B, p));  at a block start bank p and empty it;  p += attn(x);  p += ffn(norm(mix(B, p)))

and a final mix before the last norm. Without `attn_res_block_size`: x += attn(norm(x)); x += ffn(norm(x)).
`forward` returns logits; `hidden` returns what a training step needs (hidden states and the statistics that QK-Clip
and the balancer read), so that the loss can build logits for the target positions only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from moonlet.model.attn_res import AttnResMix
from moonlet.model.config import ModelConfig
from moonlet.model.kda import KDA, KDAState
from moonlet.model.linear import Linear
from moonlet.model.mla import MLA, MLAState
from moonlet.model.moe import MLP, MoE, RouterStats
from moonlet.model.norm import RMSNorm


@dataclass
class Stats:
    """By 0-based layer: largest attention logit of each MLA head [H]; router numbers of each MoE layer. `blocks`: what
    each block of the depth bus adds up to [B, T, d] (a plain residual is one block), for a draft."""

    max_logits: dict[int, Tensor] = field(default_factory=dict)
    routers: dict[int, RouterStats] = field(default_factory=dict)
    blocks: list[Tensor] = field(default_factory=list)


@dataclass
class Cache:
    """Decoding state of B sequences: one entry a layer, `lengths` [B] tokens already in. `memory`: where the native
    decoder found these last (engine/packed.py), with the `lengths` of that moment. `seen`: how many places attention
    looks at, None for as far as the longest row goes, which a GPU would have to be asked."""

    layers: list[KDAState | MLAState]
    lengths: Tensor
    memory: Any = None
    seen: int | None = None


class Layer(nn.Module):
    def __init__(self, c: ModelConfig, index: int) -> None:
        super().__init__()
        self.index, self.moe = index, c.is_moe(index)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn: Any = KDA(c) if c.is_kda(index) else MLA(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp: Any = MoE(c) if self.moe else MLP(c, c.intermediate_size)
        if c.attn_res_block_size is not None:
            self.self_attention_res = AttnResMix(c.hidden_size, c.rms_norm_eps)
            self.mlp_res = AttnResMix(c.hidden_size, c.rms_norm_eps)

    def attention(self, x: Tensor, where: "Where", stats: Stats) -> Tensor:
        """x [B, T, d], normed -> [B, T, d]."""
        state = None if where.cache is None else where.cache.layers[self.index]
        if isinstance(self.self_attn, KDA):
            return self.self_attn(x, where.segments, state, where.valid)
        if state is not None:
            return self.self_attn.decode(x, state, where.positions, where.seen)
        y, stats.max_logits[self.index] = self.self_attn(x, where.segments, where.positions)
        return y

    def ffn(self, x: Tensor, stats: Stats) -> Tensor:
        """x [B, T, d], normed -> [B, T, d]."""
        if not self.moe:
            return self.mlp(x)
        y, stats.routers[self.index] = self.mlp(x)
        return y


@dataclass
class Where:
    """Which tokens see which: packed segments when training, cache places when decoding."""

    segments: Tensor | None = None
    positions: Tensor | None = None
    cache: Cache | None = None
    valid: Tensor | None = None
    seen: int | None = None


class Model(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = c = config
        self.expert_format = "none"  # the 4-bit grid that training and sampling see; quant.rounded_experts applies it
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = cast(Sequence[Layer], nn.ModuleList(Layer(c, i) for i in range(c.num_hidden_layers)))
        if c.attn_res_block_size is not None:
            self.output_attn_res = AttnResMix(c.hidden_size, c.rms_norm_eps)
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = Linear(c.hidden_size, c.vocab_size)

    @torch.no_grad()
    def init_weights(self, seed: int) -> "Model":
        """Normal(0, initializer_range) for every matrix, conv taps uniform in +-width^-0.5, norms 1, pseudo-queries 0
        (AttnRes paper: the network starts as a plain residual network), KDA gates by the report."""
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            if name.endswith("res.proj.weight"):
                p.zero_()
            elif "conv1d" in name:
                p.uniform_(-(p.shape[-1] ** -0.5), p.shape[-1] ** -0.5, generator=generator)
            elif p.ndim >= 2:
                p.normal_(0, self.config.initializer_range, generator=generator)
            else:
                p.fill_(1.0)
        for layer in self.layers:
            if isinstance(layer.self_attn, KDA):
                layer.self_attn.A_log.zero_()
                layer.self_attn.init_gates(generator)
        return self

    def hidden(
        self,
        input_ids: Tensor,
        segments: Tensor | None = None,
        cache: Cache | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Stats]:
        """input_ids [B, T] -> final hidden states [B, T, d] (normed), Stats.

        segments [B, T]: packed documents. cache: continue cached sequences, and then `valid` [B, T] (True first,
        padding last) says how many of the new tokens each row has.
        """
        where = self.where(input_ids, segments, cache, valid)
        stats = Stats()
        x = self.embed_tokens(input_ids)
        block = self.config.attn_res_block_size
        x = self.residual(x, where, stats) if block is None else self.bus(x, where, stats, block)
        if cache is not None:
            cache.lengths = cache.lengths + (input_ids.shape[1] if valid is None else valid.sum(1))
        return x, stats

    def bus(self, live: Tensor, where: Where, stats: Stats, block: int) -> Tensor:
        banked: list[Tensor] = []
        for layer in self.layers:
            o = layer.attention(layer.self_attention_res([*banked, live], layer.input_layernorm), where, stats)
            if layer.index % block == 0:
                banked, live = [*banked, live], o
            else:
                live = live + o
            live = live + layer.ffn(layer.mlp_res([*banked, live], layer.post_attention_layernorm), stats)
        stats.blocks = [*banked[1:], live]
        return self.output_attn_res([*banked, live], self.norm)

    def residual(self, x: Tensor, where: Where, stats: Stats) -> Tensor:
        for layer in self.layers:
            x = x + layer.attention(layer.input_layernorm(x), where, stats)
            x = x + layer.ffn(layer.post_attention_layernorm(x), stats)
        stats.blocks = [x]
        return self.norm(x)

    def where(self, input_ids: Tensor, segments: Tensor | None, cache: Cache | None, valid: Tensor | None) -> Where:
        if cache is not None:
            positions = cache.lengths.unsqueeze(1) + torch.arange(input_ids.shape[1], device=input_ids.device)
            seen = int(positions.max()) + 1 if cache.seen is None else cache.seen
            return Where(positions=positions, cache=cache, valid=valid, seen=seen)
        if segments is None or self.config.mla_use_nope:
            return Where(segments=segments)
        return Where(segments=segments, positions=place(segments))

    def forward(self, input_ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits [B, T, vocab]."""
        return self.lm_head(self.hidden(input_ids, segments)[0])

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """Empty decoding state for `batch` sequences of at most `capacity` tokens."""
        c, device = self.config, self.embed_tokens.weight.device
        layers: list[KDAState | MLAState] = []
        for i in range(c.num_hidden_layers):
            if c.is_kda(i):
                H, K, width = c.kda("num_heads"), c.kda("head_dim"), c.kda("short_conv_kernel_size", 4)
                S = torch.zeros(batch, H, K, K, device=device)
                layers.append(KDAState(S, torch.zeros(batch, width - 1, 3 * H * K, device=device)))
            else:
                size = c.kv_lora_rank + c.qk_rope_head_dim
                layers.append(MLAState(torch.zeros(batch, capacity, size, device=device)))
        return Cache(layers, torch.zeros(batch, dtype=torch.long, device=device))


def place(segments: Tensor) -> Tensor:
    """Position of each token inside its document: [B, T]."""
    T = segments.shape[1]
    index = torch.arange(T, device=segments.device).expand_as(segments)
    first = torch.ones_like(segments, dtype=torch.bool)
    first[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - torch.where(first, index, 0).cummax(dim=1).values
