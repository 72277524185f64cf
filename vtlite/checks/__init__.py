"""Checks of the exercises: `from vtlite import checks as check`, then `check.NAME(what_you_wrote)`
at the end of its cell.

A check runs what it is given on seeded inputs of awkward shapes and compares with the most naive
reference. It prints what it verified, or raises `CheckFailed` with what was expected, what was
found, where they differ first, and the likely mistake.
"""

from vtlite.checks.base import CheckFailed
from vtlite.checks.custom_ops import (
    attention_fake,
    kd_gradient,
    kron_backward,
    lora_linear_backward,
    online_attention,
    tile_places,
)
from vtlite.checks.fine_tuning import (
    cached_features,
    count_vit,
    freeze_except,
    l2_sp_penalty,
    layerwise_lrs,
    lp_ft_lrs,
    wise_ft,
)
from vtlite.checks.parameter_tuning import (
    bitfit,
    count_updates,
    dylora_forward,
    kron_forward,
    lora_forward,
    lora_merge,
    private_gradient,
    ssf_merge,
)

__all__ = [
    "CheckFailed",
    "attention_fake",
    "bitfit",
    "cached_features",
    "count_updates",
    "count_vit",
    "dylora_forward",
    "freeze_except",
    "kd_gradient",
    "kron_backward",
    "kron_forward",
    "l2_sp_penalty",
    "layerwise_lrs",
    "lora_forward",
    "lora_linear_backward",
    "lora_merge",
    "lp_ft_lrs",
    "online_attention",
    "private_gradient",
    "ssf_merge",
    "tile_places",
    "wise_ft",
]
