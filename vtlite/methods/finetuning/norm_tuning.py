"""Normalisation-only tuning: the scales and shifts of the norms."""

from __future__ import annotations

from dataclasses import dataclass

from vtlite.backbones.base import is_norm
from vtlite.method import HIGH_LRS, Backbone, Method


@dataclass
class NormTuning(Method):
    """Train the affine part of every normalisation layer, nothing else.

        y = gamma * (x - mean) / std + beta,   only gamma, beta [channels] train

    Frankle, Schwab, Morcos, "Training BatchNorm and Only BatchNorm: On the Expressive Power of
    Random Features in CNNs", ICLR 2021, arXiv 2003.00152. On ViT-B/16: 38,400 parameters in 25
    LayerNorms; on ResNet-50: 53,120 in 53 BatchNorms. A BatchNorm that trains goes on collecting
    its running mean and variance, which are saved with the delta.
    """

    lr = 1e-1
    lrs = HIGH_LRS

    def attach(self, backbone: Backbone) -> None:
        for module in backbone.modules():
            if is_norm(module):
                module.requires_grad_(True)
