"""NASH: climb the hill of networks that grow, and keep what they learn."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vtlite.method import LOW_LRS, Backbone, Method, Train, Tuned
from vtlite.methods.remapping.weight.steps import (
    DEEPER,
    WIDER,
    Remapped,
    expect_places,
    numbers,
    places,
    try_out,
)
from vtlite.task import Task


@dataclass
class NASH(Method):
    """Let several copies of the best network so far grow at random, each into a function that stays;
    train each for a while, keep the best, and go on from there.

        best <- argmax over children c of score(train(grow(best, `changes` steps))),   one child grows not at all

    A step widens the inside of a block by half or adds a layer (Net2Net). Children are compared on
    validation images, or on every fifth training image; none may have more than `most` times the
    backbone's numbers. Then the best one trains on all training images. Elsken, Metzen, Hutter,
    "Simple and Efficient Architecture Search for Convolutional Neural Networks", ICLR Workshops
    2018, arXiv 1711.04528; no code was released. All numbers of the network train, and what the
    search has found is in the delta. There 5 rounds of 8 children, 5 steps each, train for 17
    epochs and may also get a skip connection; here the search is to be a matter of minutes.
    """

    key = "remapping/weight/nash"
    lr = 6e-4
    lrs = LOW_LRS

    rounds: int = 3
    children: int = 4  # in each round, one of which stays as it is
    changes: int = 2  # steps of each other child
    child_epochs: int = 2  # of training for each child
    most: float = 3.0  # times the backbone's numbers that a child may have

    def __post_init__(self) -> None:
        for name in ("rounds", "changes", "child_epochs"):
            self.expect(getattr(self, name) >= 1, name, "an integer of at least 1")
        self.expect(self.children >= 2, "children", "an integer of at least 2")
        self.expect(self.most >= 1, "most", "of at least 1")

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        expect_places(backbone, DEEPER)
        backbone.requires_grad_(True)
        return Remapped(backbone, task.head(backbone), task)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        limit = self.most * numbers(model.backbone)
        for _ in range(self.rounds):
            grown = [copy.deepcopy(model.network) for _ in range(self.children)]
            for network in grown[1:]:
                self.grow(network, limit)
            tried = [try_out(model, net, task, train, self.child_epochs) for net in grown]
            best: Any = max(tried, key=lambda pair: pair[1])[0]
            model.network = best.network
        train(model, task.train)

    def grow(self, network: Remapped, limit: float) -> None:
        """Take random steps, fewer where the network would become too large."""
        for _ in range(self.changes):
            found = {kind: len(places(network.backbone, kind)) for kind in (WIDER, DEEPER)}
            steps = [(kind, place) for kind, count in found.items() for place in range(count)]
            if steps:  # where every block has been deepened there may be none left
                network.take(*steps[int(torch.randint(len(steps), ()))], limit)
