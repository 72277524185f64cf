"""Layer-wise learning-rate decay: early layers move less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vtlite.backbones.stages import parameters_by_layer
from vtlite.method import LOW_LRS, Backbone, Method, Tuned


@dataclass
class LayerwiseDecay(Method):
    """Train everything, each block with a smaller learning rate than the one after it.

        lr_l = lr * decay^(L + 1 - l),   l = 0: embedding,  1 ... L: blocks,  L + 1: final norm and head

    Bao et al., "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022, arXiv 2106.08254, and
    MAE, arXiv 2111.06377; github.com/facebookresearch/mae (util/lr_decay.py). All 85,798,656
    parameters of ViT-B/16 train. Deep models use 0.65 to 0.75; with few blocks a larger value keeps
    the first ones alive.
    """

    lr = 2e-3
    lrs = LOW_LRS

    decay: float = 0.75  # factor from one block to the one before it; 1 is full fine-tuning

    def __post_init__(self) -> None:
        self.expect(0 < self.decay <= 1, "decay", "above 0 and at most 1")

    def attach(self, backbone: Backbone) -> None:
        backbone.requires_grad_(True)

    def groups(self, model: Tuned) -> list[dict[str, Any]]:
        layers = parameters_by_layer(model.backbone)
        layers[-1] += model.head.parameters()
        L = len(layers) - 2
        factors = [self.decay ** (L + 1 - layer) for layer in range(L + 2)]
        return [
            {"params": parameters, "scale": lambda progress, factor=factor: factor}
            for parameters, factor in zip(layers, factors, strict=True)
        ]
