"""N2N: a small policy learns which blocks a network can do without, and which can be narrower."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli

from vtlite.method import LOW_LRS, Backbone, Method, Train, Tuned
from vtlite.methods.remapping.distillation.teaching import Fixed
from vtlite.methods.remapping.weight.controller import Controller, Sampled, search
from vtlite.methods.remapping.weight.steps import (
    NARROWER,
    SHORTER,
    Remapped,
    blocks_of,
    expect_places,
    held_out,
    numbers,
    places,
)
from vtlite.storage import VTError
from vtlite.task import Classification, Task
from vtlite.training import evaluate


@dataclass
class N2N(Method):
    """Tune the network; then let a policy take blocks out of it and halve the inside of others; let
    each child learn the network's answers for a while, and reinforce the policy by how small and
    how right they are.

        R = C (2 - C) score / score_0,   C = 1 - numbers / numbers_0;   loss = mean (z - z_0)^2
        p(leave out block t) = sigmoid(a h_t),   p(halve the inside of t) = sigmoid(b h_t),   h = LSTM forwards and backwards over the blocks

    Index 0 is the tuned network, z are logits, without labels. Of a width that is halved the units
    with the largest weights stay. A first policy takes out, for `removals` episodes, a second one
    halves what the best child has left, for `shrinkages`. Then the best child learns the answers
    on all training images. Ashok et al., "N2N Learning: Network to Network Compression via Policy
    Gradient Reinforcement Learning", ICLR 2018, arXiv 1709.06030; github.com/anubhavashok/N2N. There
    a layer may keep one of seven shares of its channels, a hundred rounds of five children train for
    five epochs, and children of no use have the reward -1; the layers start as they are there too.
    """

    key = "remapping/weight/n2n"
    lr = 2e-3
    lrs = LOW_LRS

    removals: int = 2  # episodes of the first policy
    shrinkages: int = 2  # of the second
    children: int = 3  # of each episode
    teacher_epochs: int = 5
    child_epochs: int = 1

    def __post_init__(self) -> None:
        for name in ("removals", "shrinkages"):
            self.expect(getattr(self, name) >= 0, name, "an integer of at least 0")
        for name in ("children", "teacher_epochs", "child_epochs"):
            self.expect(getattr(self, name) >= 1, name, "an integer of at least 1")
        some = self.removals + self.shrinkages > 0
        self.expect(some, "shrinkages", "of at least 1 where nothing is removed")

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        if not isinstance(task, Classification):
            raise VTError(
                f"n2n: expected a classification, whose logits are repeated, found a "
                f"{type(task).__name__}; choose another method"
            )
        expect_places(backbone, SHORTER)
        backbone.requires_grad_(True)
        return Remapped(backbone, task.head(backbone), task)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        shown, compared = held_out(task)
        if model.network.teacher is None:
            train(model, shown, epochs=self.teacher_epochs, val=None)
            whole = copy.deepcopy(model.network).requires_grad_(False).eval()
            model.network.teacher = Fixed(whole)
        whole = model.network.teacher.network
        score = evaluate(model, compared)[task.metric]

        def reward(child: Remapped, found: float) -> float:
            saved = 1 - numbers(child.backbone) / numbers(whole.backbone)
            return saved * (2 - saved) * found / max(score, 1e-6)

        for kind, episodes in ((SHORTER, self.removals), (NARROWER, self.shrinkages)):
            if episodes:
                best = search(
                    *(model, task, train, Controller(actions=NARROWER + 2)),
                    partial(self.child, parent=model.network, kind=kind),
                    *(episodes, self.children, self.child_epochs, reward),
                )
                model.network = best.network
        train(model, task.train)

    def child(self, controller: Controller, parent: Remapped, kind: int) -> Sampled:
        """A child that the policy has drawn: for each place, whether the step is taken there."""
        network = copy.deepcopy(parent)
        blocks = blocks_of(network.backbone, kind)
        if not blocks:
            return network, [], []
        drawn = Bernoulli(logits=controller(network)[blocks, kind])
        taken = drawn.sample()
        for place in reversed(taken.nonzero().flatten().tolist()):  # places behind it stay
            if place < len(places(network.backbone, kind)):  # a last block stays
                network.take(kind, place)
        return network, [drawn.log_prob(taken).sum()], [drawn.entropy().sum()]

    def loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        if model.network.teacher is None:  # the network is tuned by the labels first
            return model.task.loss(model(inputs), targets)
        with torch.no_grad():
            wanted = model.network.teacher.network(inputs)
        return F.mse_loss(model(inputs), wanted)
