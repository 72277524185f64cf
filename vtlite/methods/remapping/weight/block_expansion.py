"""Block expansion: new blocks that start as the identity, and train alone."""

from __future__ import annotations

from dataclasses import dataclass

from vtlite.method import Backbone, Method
from vtlite.methods.remapping.weight.growing import insert_blocks


@dataclass
class BlockExpansion(Method):
    """Insert copies of some blocks that add nothing at first, and train them and nothing else.

        y = x + attention(LN(x)) + MLP(...),   the last layers of both branches zero at the start

    A Net2Deeper step as a way of tuning: the old blocks stay, so that what they knew can be had
    back by taking the new ones out. Bafghi et al., "Parameter Efficient Fine-tuning of
    Self-supervised ViTs without Catastrophic Forgetting", CVPR Workshops 2024, arXiv 2404.17245;
    github.com/rezaakb/peft-vit; from LLaMA Pro, arXiv 2401.02415. On ViT-B/16: 21,263,616
    parameters with three new blocks, one behind every fourth.
    """

    lr = 3e-3
    small = {"every": 2}

    every: int = 4  # a new block behind every so many blocks

    def __post_init__(self) -> None:
        self.expect(self.every >= 1, "every", "an integer of at least 1")

    def attach(self, backbone: Backbone) -> None:
        for block in insert_blocks(backbone, "block_expansion", self.every):
            block.requires_grad_(True)
