"""EAS: a small policy learns which blocks to widen and where to put new ones."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.distributions import Bernoulli, Categorical

from vtlite.method import LOW_LRS, Backbone, Method, Train, Tuned
from vtlite.methods.remapping.weight.controller import Controller, Sampled, search
from vtlite.methods.remapping.weight.steps import (
    DEEPER,
    WIDER,
    Remapped,
    blocks_of,
    expect_places,
    held_out,
    numbers,
)
from vtlite.task import Task


@dataclass
class EAS(Method):
    """Let a policy choose Net2Net steps on the trained network; train each child for a while, as it
    starts from what its parent knew; reinforce the policy by how good they are.

        p(widen block t) = sigmoid(w h_t),   p(deepen at t) = softmax_t(d h_t),   h = LSTM forwards and backwards over the blocks
        gradient of the policy: sum over choices of log p times (R - mean R),   R = tan(score pi / 2)

    A child is made by `wider_steps` rounds in which each block is widened or not, and then
    `deeper_steps` choices of a place for a new one; none may have more than `most` times the
    backbone's numbers. Children are compared on validation images, or on every fifth training
    image. Then the best one trains on all training images. Cai et al., "Efficient Architecture
    Search by Network Transformation", AAAI 2018, arXiv 1707.04873; github.com/han-cai/EAS. All
    numbers of the network train, and what the search has found is in the delta. There 4 and 5
    steps, children of 20 epochs, a choice of kernel size, and a decoder for the deeper steps; a
    block's token here is its width and its place.
    """

    key = "remapping/weight/eas"
    lr = 6e-4
    lrs = LOW_LRS

    episodes: int = 3
    children: int = 3  # of each episode
    wider_steps: int = 1
    deeper_steps: int = 1
    start_epochs: int = 2  # of the network that all children grow out of
    child_epochs: int = 1
    most: float = 3.0  # times the backbone's numbers that a child may have

    def __post_init__(self) -> None:
        for name in ("episodes", "children", "start_epochs", "child_epochs"):
            self.expect(getattr(self, name) >= 1, name, "an integer of at least 1")
        for name in ("wider_steps", "deeper_steps"):
            self.expect(getattr(self, name) >= 0, name, "an integer of at least 0")
        steps = self.wider_steps + self.deeper_steps > 0
        self.expect(steps, "deeper_steps", "of at least 1 where there is no wider step")
        self.expect(self.most >= 1, "most", "of at least 1")

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        expect_places(backbone, DEEPER)
        backbone.requires_grad_(True)
        return Remapped(backbone, task.head(backbone), task)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        train(model, held_out(task)[0], epochs=self.start_epochs, val=None)
        limit = self.most * numbers(model.backbone)
        best = search(
            *(model, task, train, Controller(actions=2)),
            partial(self.child, parent=model.network, limit=limit),
            *(self.episodes, self.children, self.child_epochs),
        )
        model.network = best.network
        train(model, task.train)

    def child(self, controller: Controller, parent: Remapped, limit: float) -> Sampled:
        """A child that the policy has drawn. A step that would make it too large is not taken."""
        network, log_p, entropy = copy.deepcopy(parent), [], []
        for _ in range(self.wider_steps):
            blocks = blocks_of(network.backbone, WIDER)
            drawn = Bernoulli(logits=controller(network)[blocks, WIDER])
            wide = drawn.sample()
            log_p.append(drawn.log_prob(wide).sum())
            entropy.append(drawn.entropy().sum())
            for place in wide.nonzero().flatten().tolist():
                network.take(WIDER, place, limit)
        for _ in range(self.deeper_steps):
            blocks = blocks_of(network.backbone, DEEPER)
            if not blocks:
                break
            choice = Categorical(logits=controller(network)[blocks, DEEPER])
            place = choice.sample()
            log_p.append(choice.log_prob(place))
            entropy.append(choice.entropy())
            network.take(DEEPER, int(place), limit)
        return network, log_p, entropy
