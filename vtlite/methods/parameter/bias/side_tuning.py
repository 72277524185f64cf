"""Side-tuning: a small network beside a frozen one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.backbones.base import VisionBackbone, about, feature_maps
from vtlite.backbones.stages import attention_blocks, stage_names, with_fewer_blocks
from vtlite.method import LOW_LRS, Backbone, Method


class SideTuned(VisionBackbone):
    """A frozen backbone and a trainable network beside it, blended: images [B, C, S, S] -> features
    [B, D]."""

    def __init__(self, base: Backbone, side: nn.Module) -> None:
        super().__init__()
        said = about(base)
        self.base: Backbone = base
        self.in_chans, self.input_size = said.in_chans, said.input_size
        self.side, self.num_features = side, base.num_features
        self.alpha = nn.Parameter(torch.zeros(()))  # the weight of the base before its sigmoid

    def stage_names(self) -> list[str]:
        """The base's."""
        return [f"base.{name}" for name in stage_names(self.base)]

    def feature_maps(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> the blend of both networks' last maps [B, D, h, w]."""
        weight = self.alpha.sigmoid()
        maps = feature_maps(self.base, images), feature_maps(self.side, images)
        return weight * maps[0] + (1 - weight) * maps[1]

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> the blend of both networks' pooled features [B, D]."""
        weight = self.alpha.sigmoid()
        # in the frozen base autograd has nothing to keep
        return weight * self.base(images) + (1 - weight) * self.side(images)

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        return features  # they are pooled already


@dataclass
class SideTuning(Method):
    """Blend the features of the frozen backbone with those of a small network that trains beside
    it.

        R(x) = sigmoid(a) B(x) + (1 - sigmoid(a)) S(x),   B, S: images -> features [dim], a scalar

    a starts at zero: half of each. Zhang, Sax, Zamir, Guibas, Malik, "Side-Tuning: A Baseline for
    Network Adaptation via Additive Side Networks", ECCV 2020, arXiv 1912.13503;
    github.com/jozhang97/side-tuning. The paper finds a side network copied or distilled from the
    base better than a random one, so S is `depth` of the backbone's blocks, evenly spaced, with its
    embedding and norm: 14,919,937 parameters on ViT-B/16. With side="alexnet", as in VPT's
    baseline, it is torchvision's AlexNet without its classifier and a linear layer to the width:
    9,547,585 parameters; it starts from random values, where VPT's comes trained on ImageNet (load
    such values into `model.backbone.side[0]`). The paper also anneals a by a fixed schedule instead
    of learning it, not done here.
    """

    lr = 6e-3
    lrs = LOW_LRS

    starts_elsewhere = "half of the first features come from the side network"
    unmergeable = "its side network stays a second network beside the backbone"

    # the network S: "blocks" of the backbone itself, or "alexnet" (images of at least 63 x 63)
    side: str = "blocks"
    depth: int = 2  # how many blocks are copied

    def __post_init__(self) -> None:
        self.expect(self.side in ("blocks", "alexnet"), "side", '"blocks" or "alexnet"')
        self.expect(self.depth >= 1, "depth", "an integer of at least 1")

    def attach(self, backbone: Backbone) -> nn.Module:
        attention_blocks(backbone, "side_tuning", plain=True)
        side: Any
        if self.side == "alexnet":
            from torchvision.models import alexnet

            channels, size = (
                backbone.patch_embed.proj.in_channels,
                min(backbone.patch_embed.img_size),
            )
            self.expect(
                channels == 3 and size >= 63,
                "side",
                f'"blocks" for images [{channels}, {size}, {size}]',
            )
            network = alexnet()
            project = nn.Linear(256 * 6 * 6, backbone.num_features, bias=False)
            side = nn.Sequential(network.features, network.avgpool, nn.Flatten(), project)
        else:
            total = len(backbone.blocks)
            self.expect(
                self.depth <= total, "depth", f"of at most {total}, the backbone's number of blocks"
            )
            side = with_fewer_blocks(backbone, self.depth)
        return SideTuned(backbone, side.requires_grad_(True))
