"""DLDR: training inside the few directions that a full fine-tuning takes."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.method import HIGH_LRS, Backbone, Method, Train, Tuned
from vtlite.methods.parameter.changes import (
    ChangedModule,
    change_modules,
    has_learnt,
    shuffled_batches,
)
from vtlite.storage import VTError
from vtlite.task import Task
from vtlite.tuning import merged_backbone


def gram(rows: Tensor) -> Tensor:
    """The inner products of a few long rows, summed in double precision: [t, n] -> [t, t]."""
    return torch.stack(
        [part @ part.mT for part in (p.double() for p in rows.split(2**18, dim=1))]
    ).sum(dim=0)


def orthonormal(rows: Tensor) -> Tensor:
    """Gram-Schmidt: rows [k, n] -> orthonormal ones of the same spans (of the first, of the first
    two, ...)."""
    L = torch.linalg.cholesky(gram(rows))  # rows = L Q
    return torch.linalg.inv(L).to(rows.dtype) @ rows


def principal_directions(W: Tensor, k: int) -> Tensor:
    """The first k principal components of the points W [t, n] -> [k, n] with orthonormal rows.

        W_c W_c^T = V diag(s) V^T,   P_i = v_i^T W_c / sqrt(s_i)        # W_c: mean removed; t x t, where n x n has no room

    Raises `VTError` where the points span fewer directions.
    """
    centred = W - W.mean(dim=0)
    s, V = torch.linalg.eigh(gram(centred))  # ascending
    s, V = s.flip(0)[:k], V.flip(1)[:, :k]
    if not s[-1] > 1e-12 * s[0]:
        raise VTError(
            f"dldr: expected {k} different directions in the sampling run, found fewer; raise"
            " sampling_lr or stride, or lower k"
        )
    return orthonormal(
        (V / s.sqrt()).mT.to(W.dtype) @ centred
    )  # again, for what single precision has lost


class Subspace(nn.Module):
    """k directions in the space of n weights and the coordinates in it, z; shared by all layers."""

    basis: Tensor
    length: Tensor

    def __init__(self, k: int, n: int) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.zeros(k))
        self.register_buffer("basis", orthonormal(torch.randn(k, n) / math.sqrt(n)))
        self.register_buffer("length", torch.ones(()))

    def forward(self, start: int, stop: int) -> Tensor:
        """The change of the weights from `start` to `stop`: -> [stop - start]."""
        return self.length * self.z @ self.basis[:, start:stop]


class AlongModule(ChangedModule):
    """A module whose own parameters are those from `start` on of the n weights."""

    def __init__(self, base: nn.Module, subspace: Subspace, start: int) -> None:
        super().__init__(base)
        self.subspace, self.start = subspace, start

    def changes(self) -> dict[str, Tensor]:
        own = dict(self.base.named_parameters(recurse=False))
        sizes = [p.numel() for p in own.values()]
        parts = self.subspace(self.start, self.start + sum(sizes)).split(sizes)
        return {name: part.view_as(p) for (name, p), part in zip(own.items(), parts, strict=True)}


def inner(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a backbone's layers in order: all but its own positions and tokens."""
    return [p for name, p in module.named_parameters() if "." in name]


@dataclass
class DLDR(Method):
    """Fine-tune in full once, keep the few directions that the weights took, and train inside them.

        theta = theta_0 + length P^T z,   z [k] trains; P [k, n]: the principal directions of t snapshots of theta, orthonormal rows

    Li, Tan, Huang, Tao, Liu, Huang, "Low Dimensional Trajectory Hypothesis is True: DNNs Can Be
    Trained in Tiny Subspaces", TPAMI 2022, arXiv 2103.11154; github.com/nblt/DLDR. On any backbone
    k = 40 parameters; but they mean nothing without P, which the delta therefore holds: k times the
    backbone, 13.7 GB for ViT-B/16. `fit` makes P before its first step; until then it is random (Li
    et al., "Measuring the Intrinsic Dimension of Objective Landscapes", ICLR 2018, arXiv
    1804.08838). A second `fit` keeps it. Otherwise than in the paper, which trains from scratch and
    has all weights in the subspace, the head trains beside it, a ViT's tokens and positions stay
    frozen, as do the statistics of batch norms, and z is measured in lengths of the sampling run,
    so that the learning rate of the head suits it. AdamW takes the place of P-SGD; P-BFGS, a loop
    of its own, is left out.
    """

    lr = 1e-2
    lrs = HIGH_LRS

    k: int = 40  # directions
    snapshots: int = 80  # of the sampling run, besides its start; at least k
    stride: int = 2  # steps from one snapshot to the next
    sampling_lr: float = 1e-3  # of AdamW in the sampling run
    batch_size: int = 50  # images of one of its steps

    def __post_init__(self) -> None:
        self.expect(self.k >= 1, "k", "an integer of at least 1")
        self.expect(self.snapshots >= self.k, "snapshots", f"of at least k = {self.k}")
        self.expect(self.stride >= 1, "stride", "of at least 1")
        self.expect(self.sampling_lr > 0, "sampling_lr", "above 0")
        self.expect(self.batch_size >= 1, "batch_size", "of at least 1")

    def attach(self, backbone: Backbone) -> None:
        subspace, start = Subspace(self.k, sum(p.numel() for p in inner(backbone))), 0

        def along(name: str, module: nn.Module) -> AlongModule | None:
            nonlocal start
            here, size = start, sum(p.numel() for p in module.parameters(recurse=False))
            start += size
            return AlongModule(module, subspace, here) if size else None

        change_modules(backbone, along)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        if not has_learnt(model):
            train.once(model, lambda: self.sample(model, task.train))
        train(model, task.train)

    @torch.no_grad()
    def sample(self, model: Tuned, train: Any) -> None:
        """Fine-tune a copy in full and keep the directions that it took."""
        subspace = next(m for m in model.modules() if isinstance(m, Subspace))
        W = self.trajectory(model, train)
        subspace.basis.copy_(principal_directions(W, self.k))
        subspace.length.copy_((W[-1] - W[0]).norm())

    @torch.enable_grad()
    def trajectory(self, model: Tuned, train: Any) -> Tensor:
        """The weights along a full fine-tuning of a copy of the model -> [snapshots + 1, n]."""
        plain: Any = merged_backbone(model)
        head, weights = copy.deepcopy(model.head), inner(plain)
        W = weights[0].new_empty(self.snapshots + 1, sum(p.numel() for p in weights))
        optimizer = torch.optim.AdamW([*weights, *head.parameters()], self.sampling_lr)
        step = 0
        while True:
            for images, labels in shuffled_batches(model, train, self.batch_size):
                if step % self.stride == 0:
                    W[step // self.stride] = torch.cat([p.detach().flatten() for p in weights])
                if step == self.snapshots * self.stride:
                    return W
                optimizer.zero_grad(set_to_none=True)
                loss = model.task.loss(head(model.task.features(plain, images)), labels)
                if not loss.isfinite():
                    raise VTError(
                        f"dldr: the loss of the sampling run became {loss.item()} at step"
                        f" {step + 1}; lower sampling_lr"
                    )
                loss.backward()
                optimizer.step()
                step += 1
