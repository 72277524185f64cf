"""Full fine-tuning: the baseline of every comparison."""

from __future__ import annotations

from dataclasses import dataclass

from vtlite.method import LOW_LRS, Backbone, Method


@dataclass
class Full(Method):
    """Train every parameter of the backbone, starting from its pre-trained values.

        theta <- theta_0 - lr * gradient

    Trains all 85,798,656 parameters of ViT-B/16, and stores as many per task; at 1,000 examples it
    can forget more than it learns (Kumar et al., "Fine-Tuning can Distort Pretrained Features and
    Underperform Out-of-Distribution", ICLR 2022, arXiv 2202.10054).
    """

    lr = 2e-3
    lrs = LOW_LRS

    def attach(self, backbone: Backbone) -> None:
        backbone.requires_grad_(True)
