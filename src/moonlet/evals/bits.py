"""Held-out bits per byte: the loss of a text model, comparable across tokenizers."""

import math

import torch
import torch.nn.functional as F

from moonlet.data.tokenizer import Tokenizer
from moonlet.evals.interval import mean_interval
from moonlet.model.model import Model


@torch.no_grad()
def bits_per_byte(
    model: Model, tokenizer: Tokenizer, texts: list[str], context: int = 256
) -> tuple[float, float, float]:
    """(bits per byte, low, high) over documents; each cut to `context` tokens, interval over documents."""
    eos = tokenizer.special["[EOS]"]
    ratios, weights, device = [], [], model.embed_tokens.weight.device
    for text in texts:
        ids = [*tokenizer.encode(text), eos][:context]
        size = len(tokenizer.decode(ids[:-1] if len(ids) > 1 else ids).encode())
        if len(ids) < 2 or not size:
            continue
        logits = model(torch.tensor([ids], device=device))[0, :-1]
        nats = float(F.cross_entropy(logits, torch.tensor(ids[1:], device=device), reduction="sum"))
        ratios.append(nats / math.log(2))
        weights.append(size)
    total = sum(weights)
    score = sum(ratios) / total
    scale = total / len(weights)
    _, low, high = mean_interval([(r - score * w) / scale for r, w in zip(ratios, weights)])
    return score, score + low, score + high
