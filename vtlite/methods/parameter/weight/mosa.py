"""MoSA: a low-rank update of convolutions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vtlite.method import HIGH_LRS, Backbone, Method
from vtlite.methods.parameter.updates import replace_layers
from vtlite.methods.parameter.weight.lora import LoRAConv2d


@dataclass
class MoSA(Method):
    """Learn a change of the convolutions that see the new style, of the smallest rank.

        y = conv(x, W_0 + (alpha / rank) B A),   A [rank k, in k], B [out k, rank k], B A [out k, in k] read as a kernel [out, in, k, k]

    The paper tunes the first layers of a convolutional encoder that predicts motion. Here it is the
    first convolution of each residual block of a ResNet; a Vision Transformer has no other
    convolution than that of its patches, and perhaps a stem before it, so there it is these. B
    starts at zero, so training starts from the backbone. Kothari et al., "Motion Style Transfer:
    Modular Low-Rank Adaptation for Deep Motion Forecasting", CoRL 2022, arXiv 2211.03165;
    github.com/vita-epfl/motion-style-transfer. Parameters of a convolution: rank k^2 (in + out); on
    ViT-B/16: 197,376. The paper keeps the old output layer; here, as everywhere, a new head trains.
    """

    lr = 3e-2
    lrs = HIGH_LRS

    rank: int = 1  # rank of the update, per k of the kernel; parameters grow in proportion
    alpha: float = 1.0  # the update is scaled by alpha / rank; kept while the rank changes

    def __post_init__(self) -> None:
        self.expect(self.rank >= 1, "rank", "an integer of at least 1")

    def attach(self, backbone: Backbone) -> None:
        if not hasattr(backbone, "patch_embed"):
            kinds = (nn.Conv2d,)
            replace_layers(backbone, "mosa", ("conv1",), lambda m, name: self.updated(m), kinds)
            return
        for parent in list(backbone.patch_embed.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Conv2d):
                    setattr(parent, name, self.updated(child))

    def updated(self, layer: nn.Conv2d) -> nn.Module:
        return LoRAConv2d(layer, self.rank, self.alpha / self.rank)
