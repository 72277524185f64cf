"""What the methods share that look at the training data before they decide what to change (DLDR,
GPS, SPT).

Where a change lies, they keep in buffers, beside the numbers that train: so it is in the delta, and
an interrupted `fit` takes it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader

from vtlite.method import Backbone, Tuned


class ChangedModule(nn.Module):
    """A frozen module that computes with p + change in the place of some of its own parameters. A
    subclass says which and how much."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base: Any = base

    def changes(self) -> dict[str, Tensor]:
        """The change of each parameter by its name, in its shape."""
        raise NotImplementedError

    def forward(self, *inputs: Tensor) -> Tensor:
        return functional_call(
            self.base,
            {name: getattr(self.base, name) + change for name, change in self.changes().items()},
            inputs,
        )

    # To whoever reads its weights, as attention in a text tower does, it is the layer it stands for.

    @property
    def weight(self) -> Tensor:
        return self.changed("weight")

    @property
    def bias(self) -> Tensor | None:
        return self.changed("bias")

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def changed(self, name: str) -> Any:
        """One parameter of the base as it is computed with."""
        parameter, change = getattr(self.base, name), self.changes().get(name)
        return parameter if change is None else parameter + change

    def merged(self) -> nn.Module:
        """The plain module with p <- p + change."""
        for name, change in self.changes().items():
            getattr(self.base, name).add_(change)
        return self.base


def change_modules(backbone: Backbone, make: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Replace every module but the backbone itself by `make(name, module)`, called from input to
    output, where that is not None."""
    made = [(name, make(name, module)) for name, module in list(backbone.named_modules()) if name]
    for name, module in reversed(
        made
    ):  # a module may hold others: the inner ones are replaced before its name leads elsewhere
        parent, _, last = name.rpartition(".")
        if module is not None:
            setattr(backbone.get_submodule(parent), last, module)


@torch.no_grad()
def has_learnt(model: Tuned) -> bool:
    """Whether any change is different from zero. A choice is made only before: what was learnt for
    one place means nothing in another."""
    return any(
        bool(change.any())
        for m in model.modules()
        if isinstance(m, ChangedModule)
        for change in m.changes().values()
    )


def shuffled_batches(model: Tuned, train: Any, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of images [B, C, S, S] and labels [B] where the model lives. Raises `VTError` for
    labels out of range."""
    device = next(model.parameters()).device
    for images, labels in DataLoader(train, batch_size, shuffle=True):  # `fit` has seeded the order
        model.task.check(labels)
        yield images.to(device), labels.to(device)
