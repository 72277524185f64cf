"""Gradual unfreezing: from the head downwards, one block after the other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from vtlite.backbones.stages import parameters_by_layer
from vtlite.method import LOW_LRS, Backbone, Method, Tuned


@dataclass
class GradualUnfreezing(Method):
    """Train the head first, then one more block at a time, from the top, until everything trains.

        lr_l(t) = lr(t) if t >= span (L + 1 - l) / (L + 2) else 0,   t in [0, 1]: how much of the training is done

    Howard, Ruder, "Universal Language Model Fine-tuning for Text Classification" (ULMFiT), ACL
    2018, arXiv 1801.06146, which unfreezes one layer per epoch; here the time is spread over a
    share of the training, so that it does not depend on depth or epochs. All 85,798,656 parameters
    of ViT-B/16 train. A learning rate of zero does the freezing: the weights stay exactly where
    they are, and the optimiser's state is ready. It saves no time, because those gradients are
    computed all the same.
    """

    lr = 2e-3
    lrs = LOW_LRS

    span: float = 0.5  # share of the training after which everything trains

    def __post_init__(self) -> None:
        self.expect(0 < self.span <= 1, "span", "above 0 and at most 1")

    def attach(self, backbone: Backbone) -> None:
        backbone.requires_grad_(True)

    def groups(self, model: Tuned) -> list[dict[str, Any]]:
        layers = parameters_by_layer(model.backbone)
        layers[-1] += model.head.parameters()
        L = len(layers) - 2

        def begun(progress: float, layer: int) -> float:
            return float(progress >= self.span * (L + 1 - layer) / (L + 2))

        return [{"params": p, "scale": partial(begun, layer=i)} for i, p in enumerate(layers)]
