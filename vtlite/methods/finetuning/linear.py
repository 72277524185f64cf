"""Linear probing: what the frozen features are worth by themselves."""

from __future__ import annotations

from dataclasses import dataclass

from vtlite.method import HIGH_LRS, Backbone, Method


@dataclass
class Linear(Method):
    """Freeze the whole backbone and train only the linear head on its features.

        logits = W f(x) + b,   f frozen, W [classes, D], b [classes]

    Trains nothing of the backbone. As f never changes, `fit` computes the features of the data once
    and trains on those (the protocol of He et al., "Momentum Contrast", CVPR 2020, arXiv
    1911.05722, with AdamW instead of SGD).
    """

    lr = 3e-2
    lrs = HIGH_LRS

    frozen_features = True

    def attach(self, backbone: Backbone) -> None:
        pass  # everything is frozen already, and every tuned model has a head
