"""What every method is: a dataclass of settings with one hook, `attach`, and a few more that have
defaults."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor, nn

from vtlite.ops.cross_entropy import cross_entropy
from vtlite.storage import VTError, unknown

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from vtlite.tuning import Tuned

Backbone = (
    Any  # a Vision Transformer of ours or timm's; `tune` checks for the names that they share
)

METHODS: dict[str, type[Method]] = {}
M = TypeVar("M", bound="type[Method]")


@dataclasses.dataclass
class Method:
    """One way to tune a backbone. Its fields are its settings; a subclass is registered with
    `@method("group/leaf/name")`."""

    key: ClassVar[str]
    lr: ClassVar[float] = (
        # what `fit` uses if not told: the best on the validation images of all tasks together
        # (benchmarks/)
        1e-2
    )
    identity: ClassVar[str] = (
        ""  # why the tuned model does not start as the backbone; empty where it does
    )
    unmergeable: ClassVar[str] = (
        ""  # why the change cannot be folded into the backbone; empty where it can
    )

    def attach(self, backbone: Backbone) -> nn.Module | None:
        """Change the frozen `backbone` in place, or return another one. What trains afterwards is
        what requires a gradient."""
        raise NotImplementedError

    def make_head(self, features: int, num_classes: int) -> nn.Module:
        """The new head: features [B, D] -> logits [B, num_classes]."""
        return nn.Linear(features, num_classes)

    def prepare(self, model: Tuned, train: Dataset[Any]) -> None:
        """Called once by `fit` before the first step, with the training images (a cache, gradient
        scores, a teacher)."""

    def lr_scale(self, layer: int, depth: int, progress: float) -> float:
        """The factor on the learning rate of one layer after `progress` in [0, 1) of the training.

        Layers count as in BEiT: 0 is the embedding, 1 to `depth` the blocks (or stages), depth + 1
        the final norm and the head.
        """
        return 1.0

    def finish(self, model: Tuned) -> None:
        """Called once by `fit` after the last step (an average of weights)."""

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The training loss of one batch: images [B, C, S, S], labels [B] -> scalar."""
        return cross_entropy(model(images), labels)

    def backward(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Leave gradients in the trainable parameters and return the loss."""
        loss = self.loss(model, images, labels)
        loss.backward()
        return loss

    def settings(self) -> dict[str, Any]:
        """The settings as JSON-able values (what a delta file records)."""
        fields = [
            field.name
            for field in dataclasses.fields(self)
            if field.init and not field.metadata.get("model")
        ]
        return json.loads(json.dumps({name: getattr(self, name) for name in fields}))

    def expect(self, condition: bool, setting: str, wanted: str) -> None:
        """Raise the one-sentence error for a setting out of its range."""
        if not condition:
            raise VTError(
                f"{self.key.split('/')[-1]}: expected {setting} {wanted}, found {getattr(self, setting)!r}"
            )


def method(key: str) -> Callable[[M], M]:
    """Register a dataclass as the method `key`, e.g. "parameter/weight/lora"; the last part alone
    also finds it."""

    def register(cls: M) -> M:
        cls.key = key
        METHODS[key] = cls
        return cls

    return register


def find_method(name: str) -> type[Method]:
    """A method's class by its full key or the last part of it. Raises `VTError` with the nearest
    names."""
    wanted = str(name).replace("-", "_")
    found = [cls for key, cls in METHODS.items() if wanted in (key, key.rsplit("/", 1)[-1])]
    if not found:
        raise unknown("method", name, [key.rsplit("/", 1)[-1] for key in METHODS])
    return found[0]


def make_method(name: str | Method, **settings: Any) -> Method:
    """A method of one's own to tune with, from its name and settings, or a copy of one already
    made."""
    if isinstance(name, Method):
        return dataclasses.replace(name, **settings)
    cls = find_method(name)
    fields = [field.name for field in dataclasses.fields(cls) if field.init]
    for setting in settings:
        if setting not in fields:
            if fields:
                raise unknown(f"setting of {name}", setting, fields)
            raise VTError(
                f"unknown setting of {name} {setting!r}: {name} has no settings; leave it out"
            )
    return cls(**settings)
