"""A small policy that reads a network block by block and is reinforced by how good its children
are (Williams, "Simple Statistical Gradient-Following Algorithms", Machine Learning 1992)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.method import Train, Tuned
from vtlite.methods.remapping.weight.steps import Remapped, block_tokens, try_out
from vtlite.task import Task

MEMORY = 0.95  # of the moving average of rewards, as released


class Controller(nn.Module):
    """A network's blocks, as two numbers each, read forwards and backwards -> `actions` scores for
    each block [T, actions]."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 16)
        self.read = nn.LSTM(16, 50, bidirectional=True)
        self.score = nn.Linear(100, actions)
        self.average, self.rewards = 0.0, list[float]()

    def forward(self, network: Remapped) -> Tensor:
        states, _ = self.read(self.embed(block_tokens(network.backbone)))
        return self.score(states)


def steep(score: float) -> float:
    """tan(score pi / 2), so that the last points count most."""
    return math.tan(min(score, 0.99) * math.pi / 2)


Sampled = tuple[Remapped, list[Tensor], list[Tensor]]  # a child, log p and entropy of its choices


def search(
    model: Tuned,
    task: Task,
    train: Train,
    controller: Controller,
    sample: Callable[[Controller], Sampled],
    episodes: int,
    children: int,
    epochs: int,
    reward: Callable[[Remapped, float], float] = lambda child, score: steep(score),
) -> Any:
    """The child of all episodes with the highest reward.

    The controller climbs the sum over a child's choices of log p times its reward, less the moving
    average of rewards, and a little entropy.
    """
    optimizer, best = torch.optim.Adam(controller.parameters(), lr=2e-3), (None, -math.inf)
    for _ in range(episodes):
        sampled = [sample(controller) for _ in range(children)]
        tried = [try_out(model, net, task, train, epochs) for net, _, _ in sampled]
        rewards = [reward(child.network, score) for child, score in tried]
        found = [(child, r) for (child, _), r in zip(tried, rewards, strict=True)]
        best = max([best, *found], key=lambda pair: pair[1])
        mean = sum(rewards) / len(rewards)
        first = not controller.rewards
        controller.rewards.append(mean)
        controller.average = mean if first else MEMORY * controller.average + (1 - MEMORY) * mean
        climb = torch.zeros(())
        for (_, log_p, entropy), r in zip(sampled, rewards, strict=True):
            if log_p:
                climb = climb + (r - controller.average) * torch.stack(log_p).sum()
                climb = climb + 1e-5 * torch.stack(entropy).sum()
        if climb.requires_grad:
            optimizer.zero_grad()
            (-climb / children).backward()
            optimizer.step()
    return best[0]
