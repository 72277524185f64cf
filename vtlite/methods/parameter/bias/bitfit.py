"""BitFit: the biases alone."""

from __future__ import annotations

from dataclasses import dataclass

from vtlite.methods.base import Backbone, Method, method


@method("parameter/bias/bitfit")
@dataclass
class BitFit(Method):
    """Train the bias of every layer and norm; all weights stay frozen.

        y = W_0 x + b,   only b trains

    Ben Zaken, Goldberg, Ravfogel, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
    ACL 2022, arXiv 2106.10199; github.com/benzakenelad/BitFit. On ViT-B/16: 102,912 parameters.
    The key bias of an attention layer shifts all scores of a query alike, so the softmax cancels it: it trains in name only.
    The original has no learning-rate schedule; here every method shares the one of `fit`, and biases have no weight decay.
    """

    lr = 3e-2

    def attach(self, backbone: Backbone) -> None:
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad = name.endswith(".bias")
