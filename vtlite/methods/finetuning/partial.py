"""Partial fine-tuning: the last blocks only."""

from __future__ import annotations

from dataclasses import dataclass

from vtlite.backbones.stages import stages
from vtlite.method import Backbone, Method


@dataclass
class Partial(Method):
    """Train the last k blocks and the final norm; what comes before stays frozen.

        theta = (frozen theta_1 ... theta_{L-k},  trained theta_{L-k+1} ... theta_L)

    Early layers are general and late ones specific: Yosinski et al., "How transferable are features
    in deep neural networks?", NeurIPS 2014, arXiv 1411.1792; as a baseline in VPT, arXiv
    2203.12119, github.com/KMnP/vpt. On ViT-B/16: 7,089,408 parameters with one block. The gradient
    stops at the first trained block, so time and memory are saved too. A ResNet's blocks are its
    four stages.
    """

    lr = 6e-3

    blocks: int = 1  # k, counted from the end

    def __post_init__(self) -> None:
        self.expect(
            isinstance(self.blocks, int) and self.blocks >= 1, "blocks", "an integer of at least 1"
        )

    def attach(self, backbone: Backbone) -> None:
        found = stages(backbone)
        self.expect(
            self.blocks <= len(found),
            "blocks",
            f"of at most {len(found)}, the backbone's number of blocks",
        )
        finals = [
            getattr(backbone, name) for name in ("norm", "fc_norm") if hasattr(backbone, name)
        ]  # a ResNet has none
        for part in (*found[-self.blocks :], *finals):
            part.requires_grad_(True)
