"""DARTS: a cell that is found by gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtlite.backbones.stages import stage_names
from vtlite.method import Backbone, Method, Train, Tuned, short
from vtlite.methods.remapping.architecture.cells import (
    NONE,
    OPERATIONS,
    Supernet,
    anew,
    as_kept,
    first_stages,
    halves,
    strongest_cell,
)
from vtlite.storage import unknown
from vtlite.task import Task


@contextmanager
def moved(weights: Sequence[Tensor], directions: Sequence[Tensor], by: float) -> Iterator[None]:
    """With `by` times the directions added to the weights; afterwards they are bit for bit as
    before."""
    before = [w.detach().clone() for w in weights]
    try:
        with torch.no_grad():
            torch._foreach_add_(list(weights), list(directions), alpha=by)
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights), before)


def architecture_gradient(
    alpha: Tensor,
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    training: Callable[[], Tensor],
    held_out: Callable[[], Tensor],
    xi: float,
) -> Tensor:
    """d/dalpha of the held-out loss at w - xi d/dw L_train(w, alpha), by finite differences in w.

    `training` and `held_out` compute the two losses from the values that the tensors have at that
    moment; `gradients` are those of the first by the weights. Without an inner step (xi = 0) it is
    the plain gradient.
    """
    if not xi:
        return torch.autograd.grad(held_out(), alpha)[0]
    with moved(weights, gradients, -xi):
        direct, *v = torch.autograd.grad(held_out(), [alpha, *weights])
    size = 0.01 / torch.stack([g.norm() for g in v]).norm().item()
    by_alpha = []
    for sign in (1, -1):
        with moved(weights, v, sign * size):
            by_alpha.append(torch.autograd.grad(training(), alpha)[0])
    return direct - xi * (by_alpha[0] - by_alpha[1]) / (2 * size)


@dataclass
class DARTS(Method):
    """Let cells of mixed candidate operations learn on the maps of the backbone's first stages, and
    the mixture's weights on held-out images; then keep the strongest operations, and train anew.

        o(x) = sum_k softmax(alpha)_k o_k(x),   w: min L_train(w, alpha),   alpha: min L_held-out(w - xi d/dw L_train(w, alpha), alpha)

    xi = 0 is the first-order form. With xi the gradient is that of alpha at w' = w - xi d/dw
    L_train, minus xi (d/dalpha L_train(w+) - d/dalpha L_train(w-)) / 2 r with w+- = w +- r v, v =
    d/dw' L_held-out, r = 0.01 / |v|. At each node the two strongest edges stay, each with its
    strongest operation other than "none". Liu, Simonyan, Yang, "DARTS: Differentiable Architecture
    Search", ICLR 2019, arXiv 1806.09055; github.com/quark0/darts.

    A space for minutes on two cores: one kind of cell, three nodes, no reduction, and a stem that is
    the first half of the backbone's stages, frozen. On ViT-B/16 the searched network has 47,814
    parameters. Half of the training images are held out for alpha, and come back for the second
    training. Weights and alpha step together by AdamW, both from the values before the step, where
    the original alternates, by SGD with momentum and Adam; alpha, a hundred times fewer steps than
    there, learns faster.
    """

    lr = 1e-2
    starts_elsewhere = "cells that start at random stand where its later stages were"
    unmergeable = "its cells are no change of the backbone's weights"
    network: ClassVar[type[Supernet]] = Supernet

    operations: tuple[str, ...] = (
        "none",
        "skip_connect",
        "avg_pool_3x3",
        "max_pool_3x3",
        "sep_conv_3x3",
        "dil_conv_3x3",
    )  # the candidates
    nodes: int = 3  # of a cell
    cells: int = 3
    channels: int = 16  # of a node
    stem: int | None = None  # stages of the backbone that stay; half of them if not given
    search_epochs: int = 20  # on half of the images, before the epochs of `fit` on all of them
    alpha_rate: float = 3.0  # how much faster than the weights alpha learns
    wait: float = 0.0  # share of the search in which only the weights learn
    xi: float = 0.0  # the inner step; 0: first order
    cell: tuple[str, ...] = ()  # train this one, one text an edge, without a search

    def __post_init__(self) -> None:
        for name in self.operations:
            if name not in OPERATIONS:
                raise unknown(f"operation of {short(self.key)}", name, OPERATIONS)
        some = {*self.operations} - {NONE}
        distinct = len({*self.operations}) == len(self.operations)
        wanted = 'of at least two different names beside "none"'
        self.expect(len(some) >= 2 and distinct, "operations", wanted)
        self.expect(self.nodes >= 1, "nodes", "of at least 1")
        self.expect(self.cells >= 1, "cells", "of at least 1")
        self.expect(self.channels >= 1, "channels", "of at least 1")
        self.expect(self.search_epochs >= 1, "search_epochs", "of at least 1")
        self.expect(self.alpha_rate > 0, "alpha_rate", "above 0")
        self.expect(0 <= self.wait < 1, "wait", "in [0, 1)")
        self.expect(self.xi >= 0, "xi", "of at least 0")
        if self.cell:
            as_kept(self.cell, self.nodes, self.operations, short(self.key))

    def attach(self, backbone: Backbone) -> nn.Module:
        total = len(stage_names(backbone))
        stem = (total + 1) // 2 if self.stem is None else self.stem
        self.expect(1 <= stem <= total, "stem", f"from 1 to {total}, the backbone's stages")
        base, width = first_stages(backbone, stem, short(self.key))
        sizes = (self.channels, self.nodes, self.cells, self.search_epochs)
        net = self.network(base, width, self.operations, *sizes)
        if self.cell:
            net.keep(as_kept(self.cell, self.nodes, self.operations, short(self.key)), found=True)
        return net

    def groups(self, model: Tuned) -> list[dict[str, Any]]:
        alpha = model.backbone.alpha
        rest = [p for p in model.parameters() if p.requires_grad and p is not alpha]
        faster = {"scale": lambda progress: self.alpha_rate, "betas": (0.5, 0.999)}
        return [{"params": rest}, {"params": [alpha], **faster}]

    def backward(self, model: Any, inputs: Any, targets: Any) -> Tensor:
        loss, net = super().backward(model, inputs, targets), model.network.backbone
        if not net.learns:
            net.alpha.grad = None
        elif net.searching and net.held_out is not None:
            net.alpha.grad = self.by_alpha(model, inputs, targets)
        return loss

    def by_alpha(self, model: Any, inputs: Any, targets: Any) -> Tensor:
        """What alpha descends; the weights have their gradients from this batch already."""
        net = model.network.backbone
        held_out = net.draw(len(inputs))
        weights = [p for p in model.parameters() if p.grad is not None and p is not net.alpha]
        return architecture_gradient(
            net.alpha,
            weights,
            [p.grad for p in weights],
            lambda: self.loss(model, inputs, targets),
            lambda: self.loss(model, *held_out),
            self.xi,
        )

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        net = model.backbone
        if not self.cell:
            data, net.held_out = self.parts(task.train)
            self.search(model, data, train)
            net.held_out = None
            train.once(model, lambda: anew(model, self.choose(net)))
        train(model, task.train)

    def parts(self, data: Any) -> tuple[Any, Any]:
        """What the weights learn from, and what alpha learns from."""
        return halves(data, short(self.key))

    def search(self, model: Tuned, data: Any, train: Train) -> None:
        """Train weights and alpha together."""
        net, epochs = model.backbone, self.search_epochs
        train(model, data, lambda progress: self.watch(net, progress), epochs=epochs)

    def watch(self, net: Supernet, progress: float) -> bool | None:
        """Called before each step of the search; True ends it."""
        net.learns = progress >= self.wait
        net.trace[self.epoch(progress)] = net.weights()
        return None

    def epoch(self, progress: float) -> int:
        """Of the search, from 0."""
        return int(progress * self.search_epochs + 1e-6)

    def choose(self, net: Supernet) -> Tensor:
        """What is kept of the candidates [edges, operations]."""
        return strongest_cell(net.weights(), self.nodes, self.operations)
