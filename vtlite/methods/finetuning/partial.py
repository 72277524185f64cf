"""Partial fine-tuning: the last blocks only."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from vtlite.backbones.stages import parameters_by_layer
from vtlite.method import Backbone, Method


@dataclass
class Partial(Method):
    """Train the last k blocks and what follows them (the final norm); what comes before stays
    frozen.

        theta = (frozen theta_1 ... theta_{L-k},  trained theta_{L-k+1} ... theta_L)

    Early layers are general and late ones specific: Yosinski et al., "How transferable are features
    in deep neural networks?", NeurIPS 2014, arXiv 1411.1792; as a baseline in VPT, arXiv
    2203.12119, github.com/KMnP/vpt. On ViT-B/16: 7,089,408 parameters with one block. The gradient
    stops at the first trained block, so time and memory are saved too. A ResNet's blocks are its
    four stages.
    """

    lr = 3e-3

    blocks: int = 1  # k, counted from the end

    def __post_init__(self) -> None:
        self.expect(self.blocks >= 1, "blocks", "an integer of at least 1")

    def attach(self, backbone: Backbone) -> None:
        backbone.requires_grad_(True)
        layers = parameters_by_layer(backbone)  # before the blocks, the L blocks, after them
        L = len(layers) - 2
        self.expect(self.blocks <= L, "blocks", f"of at most {L}, the backbone's number of blocks")
        for parameter in chain(*layers[: L + 1 - self.blocks]):
            parameter.requires_grad = False
