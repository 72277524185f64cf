"""Path-level EAS: a small policy learns which layers become branches."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.distributions import Categorical

from vtlite.method import LOW_LRS, Backbone, Method, Train, Tuned
from vtlite.methods.remapping.weight.controller import Controller, Sampled, search
from vtlite.methods.remapping.weight.steps import (
    ADDED,
    BESIDE,
    Remapped,
    blocks_of,
    expect_places,
    held_out,
    numbers,
)
from vtlite.task import Task


@dataclass
class PathLevelEAS(Method):
    """Let a policy choose layers to replace by two branches that give what the layer gave; train
    each child for a while, and reinforce the policy by how good they are.

        added:  C(x) = (C_1(x) + C_2(x)) / 2;   side by side:  C(x) = [C_1(x), C_2(x)], each with half of the output channels
        p(merge m at block t) = softmax over (t, m) of (W h_t)_m,   h = LSTM forwards and backwards over the blocks

    The branches start as copies; so that they can part, the second one grows: an MLP half as wide
    again (Net2Wider), a convolution with a ring of zeros around its kernel. The layers are the MLPs
    of a ViT and the second convolutions of residual blocks. Reward, policy gradient, comparison and
    delta as in EAS. Cai et al., "Path-Level Network Transformation for Efficient Architecture
    Search", ICML 2018, arXiv 1806.02639; github.com/han-cai/PathLevel-EAS. There a branch may
    branch again, to a tree three deep, read by a tree LSTM, and a path may become a pooling; here a
    layer branches once, so that a search is a matter of minutes.
    """

    key = "remapping/weight/path_level_eas"
    lr = 6e-4
    lrs = LOW_LRS

    episodes: int = 3
    children: int = 3  # of each episode
    branchings: int = 2  # layers of a child that become branches
    start_epochs: int = 2  # of the network that all children grow out of
    child_epochs: int = 1
    most: float = 3.0  # times the backbone's numbers that a child may have

    def __post_init__(self) -> None:
        for name in ("episodes", "children", "branchings", "start_epochs", "child_epochs"):
            self.expect(getattr(self, name) >= 1, name, "an integer of at least 1")
        self.expect(self.most >= 1, "most", "of at least 1")

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        expect_places(backbone, ADDED)
        backbone.requires_grad_(True)
        return Remapped(backbone, task.head(backbone), task)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        train(model, held_out(task)[0], epochs=self.start_epochs, val=None)
        limit = self.most * numbers(model.backbone)
        best = search(
            *(model, task, train, Controller(actions=BESIDE + 1)),
            partial(self.child, parent=model.network, limit=limit),
            *(self.episodes, self.children, self.child_epochs),
        )
        model.network = best.network
        train(model, task.train)

    def child(self, controller: Controller, parent: Remapped, limit: float) -> Sampled:
        """A child that the policy has drawn. A step that would make it too large is not taken."""
        network, log_p, entropy = copy.deepcopy(parent), [], []
        for _ in range(self.branchings):
            blocks = blocks_of(network.backbone, ADDED)
            if not blocks:
                break
            scores = controller(network)[blocks][:, [ADDED, BESIDE]]  # [places, 2]
            choice = Categorical(logits=scores.flatten())
            drawn = choice.sample()
            log_p.append(choice.log_prob(drawn))
            entropy.append(choice.entropy())
            place, merge = divmod(int(drawn), 2)
            network.take((ADDED, BESIDE)[merge], place, limit)
        return network, log_p, entropy
