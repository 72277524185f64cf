"""What the methods share that look at the training data before they decide what to change (DLDR,
GPS, SPT).

Where a change lies, they keep in buffers, beside the numbers that train: so it is in the delta, and
an interrupted `fit` takes it back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vtlite.backbones.stages import keeps_values
from vtlite.data.items import batches
from vtlite.method import Backbone, Tuned
from vtlite.storage import VTError


class _OtherMethod(nn.Module):
    """A module whose forward is another method of `base`."""

    def __init__(self, base: nn.Module, name: str) -> None:
        super().__init__()
        self.base, self.name = base, name

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return getattr(self.base, self.name)(*inputs, **named)


class ChangedModule(nn.Module):
    """A frozen module that computes with p + change in the place of some of its own parameters. A
    subclass says which and how much."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base: Any = base

    def changes(self) -> dict[str, Tensor]:
        """The change of each parameter by its name, in its shape."""
        raise NotImplementedError

    def changed(self) -> dict[str, Tensor]:
        """p + change of each parameter that changes."""
        return {name: getattr(self.base, name) + c for name, c in self.changes().items()}

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return functional_call(self.base, self.changed(), inputs, named)

    def __getattr__(self, name: str) -> Any:
        """What else is asked of the module: a parameter is read with its change, another method of
        it computes with all changes (a table of positions has `get_bias`)."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = getattr(super().__getattr__("base"), name)
        if isinstance(found, nn.Parameter):
            return self.changed().get(name, found)
        return partial(self._other, name) if inspect.ismethod(found) else found

    def _other(self, name: str, *inputs: Any, **named: Any) -> Any:
        values = {f"base.{key}": value for key, value in self.changed().items()}
        return functional_call(_OtherMethod(self.base, name), values, inputs, named)

    def merged(self) -> nn.Module:
        """The plain module with p <- p + change."""
        for name, change in self.changes().items():
            getattr(self.base, name).add_(change)
        return self.base


def change_modules(backbone: Backbone, make: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Replace every module but the backbone itself by `make(name, module)`, called from input to
    output, where that is not None.

    Raises `VTError` for a module that would not see its change.
    """
    made = {module: make(name, module) for name, module in list(backbone.named_modules()) if name}
    if any(changed is not None and keeps_values(module) for module, changed in made.items()):
        raise VTError(
            "expected a network that computes from its parameters each time, found "
            f"{type(backbone).__name__}, whose attention keeps what it computed of them; "
            "tune it with a method of the fine-tuning group"
        )
    places = [(n, m) for n, m in backbone.named_modules(remove_duplicate=False) if n]
    for name, module in reversed(places):  # inner ones first, before a name leads elsewhere
        parent, _, last = name.rpartition(".")
        if (changed := made[module]) is not None:
            setattr(backbone.get_submodule(parent), last, changed)


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
    for images, labels in batches(train, batch_size, shuffle=True):  # `fit` has seeded the order
        yield images.to(device), model.task.check(labels).to(device)
