"""The token-level objective of K2.5 and K3 (K3 report section 4; arXiv 2602.02276 eq. 1).

    J = 1/N sum_j sum_i [ Clip(pi/pi_old, alpha, beta) (r_j - mean r) - tau (log pi/pi_old)^2 ]

over the K answers of each prompt and their N sampled tokens: no value model, no division by the standard deviation. A
token whose log-ratio leaves [alpha, beta] gives no gradient, whatever the sign of its advantage. Tokens that the model
did not choose (tool results, openings) are no targets at all. `mismatch_kl` is the mean of r - 1 - log r with r =
pi/pi_old (the k3 estimator): zero up to rounding on fresh rollouts, since trainer and engine share the weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moonlet.train.step import Batch, Objective


def advantages(rewards: Sequence[float]) -> list[float]:
    """r - mean r over one prompt's group."""
    mean = sum(rewards) / len(rewards)
    return [r - mean for r in rewards]


def policy_objective(low: float, high: float, tau: float) -> Objective:
    """Loss to minimise: -J summed over the targets of a part. Batch keys: advantage, logprob [B, T] at each token.

    low, high: bounds of the log-ratio (log alpha, log beta); tau: weight of the squared log-ratio.
    """

    def objective(logits: Tensor, batch: Batch, where: Tensor) -> tuple[Tensor, dict[str, float]]:
        logprobs = logits.float().log_softmax(-1).gather(1, batch["tokens"][where][:, None])[:, 0]
        log_ratio = logprobs - batch["logprob"][where]
        inside = (log_ratio >= low) & (log_ratio <= high)
        gain = log_ratio.exp() * batch["advantage"][where] - tau * log_ratio.square()
        with torch.no_grad():
            kl = (log_ratio.exp() - 1 - log_ratio).sum()
            figures = {"masked": float((~inside).sum()), "mismatch_kl": float(kl)}
            figures["surprise"] = float(-logprobs.sum())
        return -(gain * inside).sum(), figures

    return objective
