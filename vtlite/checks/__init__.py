"""Checks of the exercises: `from vtlite import checks as check`, then `check.NAME(what_you_wrote)` at the end of its cell.

A check runs what it is given on seeded inputs of awkward shapes and compares with the most naive reference. It prints what it verified, or
raises `CheckFailed` with what was expected, what was found, where they differ first, and the likely mistake.
"""

from vtlite.checks.base import CheckFailed
from vtlite.checks.fine_tuning import cached_features, count_vit, freeze_except, l2_sp_penalty, layerwise_lrs, lp_ft_lrs, wise_ft

__all__ = ["CheckFailed", "cached_features", "count_vit", "freeze_except", "l2_sp_penalty", "layerwise_lrs", "lp_ft_lrs", "wise_ft"]
