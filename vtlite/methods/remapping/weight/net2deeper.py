"""Net2Deeper: more layers, and the same function."""

from __future__ import annotations

from dataclasses import dataclass

from torch.utils.data import DataLoader

from vtlite.method import LOW_LRS, Backbone, Method, Train, Tuned
from vtlite.methods.remapping.weight.growing import (
    Deeper,
    insert_blocks,
    residual_blocks,
    see_data,
)
from vtlite.task import Task


@dataclass
class Net2Deeper(Method):
    """Insert layers that start as the identity, and train the deeper network on.

        y = relu(BN(I x)) = x   where x >= 0, BN the identity: gamma = sqrt(var + eps), beta = mean;   in a Transformer a block with zero last layers, y = x + 0 + 0

    In a ResNet a 3x3 convolution with its norm and ReLU, behind the first ReLU of a block: relu of
    relu is relu. `fit` shows it the training images first, so that its norm is the identity by the
    batch's statistics too. GELU of GELU is not GELU, so a ViT gets blocks, copies of the one
    before them. Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer",
    ICLR 2016, arXiv 1511.05641. On ViT-B/16, a block after every second one: 128,325,888
    parameters, all trained.
    """

    lr = 6e-4
    lrs = LOW_LRS

    every: int = 2  # a new layer in, or a new block after, every so many blocks

    def __post_init__(self) -> None:
        self.expect(self.every >= 1, "every", "an integer of at least 1")

    def attach(self, backbone: Backbone) -> None:
        residual = residual_blocks(backbone)
        if residual:
            for block in residual[:: self.every]:
                block.conv2 = Deeper(block.conv2)
        else:
            insert_blocks(backbone, "net2deeper", self.every)
        backbone.requires_grad_(True)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        deeper = [module for module in model.modules() if isinstance(module, Deeper)]
        if deeper:
            images = (batch[0] for batch in DataLoader(task.train, 100))
            train.once(model, lambda: see_data(model, deeper, images))
        train(model, task.train)
