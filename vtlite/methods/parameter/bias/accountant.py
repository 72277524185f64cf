"""How much privacy a run of noisy gradients costs: Rényi differential privacy of the subsampled
Gaussian mechanism.

Each step draws every image with probability q (`sample_rate`), sums gradients of norm at most R and
adds noise of spread sigma R (`noise_multiplier` sigma). At order a the step costs

    rdp(a) = log( sum_k C(a, k) (1 - q)^(a - k) q^k exp((k^2 - k) / (2 sigma^2)) ) / (a - 1),   k from 0 to a,

costs add up over the steps, and any order gives a valid (epsilon, delta), so the best is taken:

    epsilon = min_a  steps rdp(a) + log((a - 1) / a) - (log delta + log a) / (a - 1).

Sources: Mironov, Talwar, Zhang, "Rényi Differential Privacy of the Sampled Gaussian Mechanism",
arXiv 1908.10530, for the first; Balle et al., "Hypothesis Testing Interpretations and Rényi
Differential Privacy", AISTATS 2020, arXiv 1905.09982, for the second.
"""

from __future__ import annotations

import math

import torch

from vtlite.storage import VTError

ORDERS = torch.arange(2, 257, dtype=torch.float64)


def epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """The epsilon of (epsilon, delta) differential privacy after `steps` steps; infinity without
    noise.

    Raises `VTError` for values out of range.
    """
    for name, value, holds, wanted in (
        ("noise_multiplier", noise_multiplier, noise_multiplier >= 0, "of at least 0"),
        (
            "sample_rate",
            sample_rate,
            0 < sample_rate <= 1,
            "in (0, 1]; it is batch size / number of images",
        ),
        ("steps", steps, steps >= 1, "of at least 1"),
        ("delta", delta, 0 < delta < 1, "in (0, 1); below 1 / number of images is usual"),
    ):
        if not holds:
            raise VTError(f"epsilon: expected {name} {wanted}, found {value!r}")
    if noise_multiplier == 0:
        return math.inf
    a, k = ORDERS[:, None], torch.arange(len(ORDERS) + 2, dtype=torch.float64)
    choose = torch.lgamma(a + 1) - torch.lgamma(k + 1) - torch.lgamma((a - k).clamp(min=0) + 1)
    terms = (
        choose
        + torch.special.xlog1py(a - k, -sample_rate)
        + k * math.log(sample_rate)
        + (k * k - k) / (2 * noise_multiplier**2)
    )
    rdp = terms.masked_fill(k > a, -math.inf).logsumexp(dim=1) / (
        ORDERS - 1
    )  # the terms themselves overflow at large orders
    spent = steps * rdp + (1 - 1 / ORDERS).log() - (math.log(delta) + ORDERS.log()) / (ORDERS - 1)
    return max(0.0, spent.min().item())


def noise_multiplier_for(target: float, sample_rate: float, steps: int, delta: float) -> float:
    """The smallest noise multiplier, to a relative 1e-6, that keeps epsilon at or below `target`,
    by bisection.

    Raises `VTError` for values out of range, or a target that no noise reaches with the orders used
    here.
    """
    if not 0 < target < math.inf:
        raise VTError(
            f"noise_multiplier_for: expected a target above 0 and finite, found {target!r}"
        )
    low, high = 0.0, 1.0
    while epsilon(high, sample_rate, steps, delta) > target:
        low, high = high, 2 * high
        if high > 1e9:
            raise VTError(
                f"noise_multiplier_for: expected an epsilon that noise can reach, found {target};"
                " raise it, or delta"
            )
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (
            (low, middle)
            if epsilon(middle, sample_rate, steps, delta) <= target
            else (middle, high)
        )
    return high
