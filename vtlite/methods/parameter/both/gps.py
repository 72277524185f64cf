"""GPS: for every neuron the few input connections with the largest gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.method import HIGH_LRS, Backbone, Method, Train, Tuned
from vtlite.methods.parameter.changes import (
    ChangedModule,
    change_modules,
    has_learnt,
    shuffled_batches,
)
from vtlite.ops.sparse_linear import sparse_linear
from vtlite.storage import VTError
from vtlite.task import Task
from vtlite.tuning import merged_backbone


class SparseModule(ChangedModule):
    """A linear layer or convolution in each row of whose weight, read as a matrix [rows, inputs], k
    entries change."""

    places: Tensor

    def __init__(self, base: nn.Linear | nn.Conv2d, k: int) -> None:
        super().__init__(base)
        if k > base.weight[0].numel():
            raise VTError(
                f"gps: expected k of at most {base.weight[0].numel()}, the fewest inputs of a"
                f" neuron, found {k}; lower it"
            )
        self.values = nn.Parameter(torch.zeros(len(base.weight), k))
        self.register_buffer(
            "places", torch.zeros(len(base.weight), k, dtype=torch.int32)
        )  # the column of each value
        self.choose(base.weight)

    @torch.no_grad()
    def choose(self, scores: Tensor) -> None:
        """Take the places with the largest |score| in each row: scores in the weight's shape."""
        self.places.copy_(scores.flatten(1).abs().topk(self.places.shape[1]).indices)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        base, places = self.base, self.places
        if not isinstance(base, nn.Linear):  # a kernel is small beside its images: it is formed
            return super().forward(*inputs, **named)
        rows = torch.arange(len(places), device=places.device)[:, None]
        places = (rows * base.in_features + places).flatten()
        (x,) = inputs
        return sparse_linear(x, base.weight, base.bias, self.values.flatten(), places)

    def changes(self) -> dict[str, Tensor]:
        weight = self.base.weight
        return {
            "weight": (
                torch.zeros_like(weight)
                .flatten(1)
                .scatter(1, self.places.long(), self.values)
                .view_as(weight)
            )
        }


def contrastive_loss(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss: features [B, D], labels [B] -> scalar, the mean over the images
    that share their class with another.

        loss_i = - mean over p of  log( exp(z_i z_p / T) / sum_{a != i} exp(z_i z_a / T) ),   z = features / |features|, p: of i's class

    Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, arXiv 2004.11362. Zero where no
    two images share a class.
    """
    z = F.normalize(features, dim=1)
    self_pairs = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.mT / temperature).masked_fill(
        self_pairs, torch.finfo(z.dtype).min
    )  # not -inf: a last batch may be a single image
    positive = (labels[:, None] == labels) & ~self_pairs
    count = positive.sum(dim=1)
    of_image = -(F.log_softmax(logits, dim=1) * positive).sum(dim=1) / count.clamp(min=1)
    return of_image.sum() / (count > 0).sum().clamp(min=1)


@dataclass
class GPS(Method):
    """Train, in every neuron, only the k weights with the largest gradients on the task.

        W = W_0 + scatter(v),   v [rows, k] trains at the places  argtop_k |sum over the batches of dL / dW|  of each row

    Zhang et al., "Gradient-based Parameter Selection for Efficient Fine-Tuning", CVPR 2024, arXiv
    2312.10136; github.com/FightingFighting/GPS. All linear layers and convolutions, and their
    biases whole; norms, LayerScale, positions and tokens are frozen. On ViT-B/16 with k = 1:
    167,424 parameters. `fit` chooses the places before its first step, with the supervised
    contrastive loss on the features, which needs no head; until then they are the largest weights.
    A second `fit` keeps the places. The original trains whole tensors and masks their gradients,
    which its own optimiser can undo: weight decay and momentum move an entry without a gradient.
    Here the rest of W has no parameter, and the delta is as small as the count says (with as many
    places).
    """

    lr = 3e-2
    lrs = HIGH_LRS

    k: int = 1  # weights that train in each row
    # whose gradients choose: "contrastive", or "cross_entropy" of the untrained head
    loss_of_choice: str = "contrastive"
    temperature: float = 0.07  # T of the contrastive loss
    batch_size: int = 32  # images per gradient; the contrastive loss compares those of one batch

    def __post_init__(self) -> None:
        self.expect(self.k >= 1, "k", "an integer of at least 1")
        self.expect(
            self.loss_of_choice in ("contrastive", "cross_entropy"),
            "loss_of_choice",
            '"contrastive" or "cross_entropy"',
        )
        self.expect(self.temperature > 0, "temperature", "above 0")
        self.expect(
            self.batch_size >= 2,
            "batch_size",
            "an integer of at least 2",
        )

    def attach(self, backbone: Backbone) -> None:
        change_modules(backbone, self.sparse)

    def sparse(self, name: str, module: nn.Module) -> SparseModule | None:
        if not isinstance(module, nn.Linear | nn.Conv2d):
            return None
        if module.bias is not None:
            module.bias.requires_grad = True
        return SparseModule(module, self.k)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        if not has_learnt(model):
            train.once(model, lambda: self.choose(model, task.train))
        train(model, task.train)

    def choose(self, model: Tuned, train: Any) -> None:
        """Let the gradients on the training images say which weights train."""
        contrastive = self.loss_of_choice == "contrastive"
        plain: Any = merged_backbone(model)  # so far the backbone itself, with all its gradients
        for images, labels in shuffled_batches(model, train, self.batch_size):
            read = model.task.features(plain, images)
            loss = (
                contrastive_loss(read, labels, self.temperature)
                if contrastive
                else model.task.loss(model.head(read), labels)
            )
            loss.backward()
        for name, module in model.backbone.named_modules():
            if isinstance(module, SparseModule):
                gradient = plain.get_parameter(f"{name}.weight").grad
                if contrastive and not gradient.any():
                    raise VTError(
                        "gps: expected a gradient of the contrastive loss in every layer, found"
                        f" none in {name}; raise batch_size, "
                        f"now {self.batch_size}, until batches hold two images of a class, set"
                        ' loss_of_choice="cross_entropy", or choose '
                        "a backbone whose features are not all zero"
                    )
                module.choose(gradient)
