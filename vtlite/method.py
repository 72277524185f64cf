"""What every method is (`Method`), and what comes of it: a tuned model (`Tuned`).

A method is a dataclass of settings. What it learns lives in tensors of the network, so that
equality, copies, deltas and resuming need nothing of it. Most methods write `attach` alone.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from vtlite.arguments import expect_kinds
from vtlite.storage import VTError, said, unknown
from vtlite.task import Task

Backbone = Any  # one of ours or timm's; `tune` checks for the names that they share

METHODS: dict[str, type[Method]] = {}

# Learning rates to choose from: low for what trains many numbers, high for what trains few.
LOW_LRS, MIDDLE_LRS = (2e-4, 6e-4, 2e-3, 6e-3), (1e-3, 3e-3, 1e-2, 3e-2)
HIGH_LRS = (3e-3, 1e-2, 3e-2, 1e-1)


class Predictor(nn.Module):
    """A backbone and a head: inputs -> the task's answer. What most methods build."""

    def __init__(self, backbone: Backbone, head: nn.Module, task: Task) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        self.head = head
        self.read = task.features  # the backbone's features as this kind of task reads them

    def features(self, inputs: Tensor) -> Tensor:
        """What the head reads."""
        return self.read(self.backbone, inputs)

    def forward(self, inputs: Tensor) -> Any:
        return self.head(self.features(inputs))


class Tuned(nn.Module):
    """A network that a method has built for a task: inputs -> the task's answer.

    `network`, `method` and `task` are what they say; the `requires_grad` flags tell what trains.
    """

    def __init__(self, network: nn.Module, method: Method, task: Task, fingerprint: str) -> None:
        super().__init__()
        self.network: Any = network
        self.method, self.task, self.fingerprint = method, task, fingerprint

    @property
    def backbone(self) -> Backbone:
        return self.network.backbone

    @property
    def head(self) -> Any:
        return self.network.head

    def __setattr__(self, name: str, value: Any) -> None:
        owner = self.network if name in ("backbone", "head") else super()
        owner.__setattr__(name, value)  # `model.head = ...` gives the network another head

    @property
    def num_classes(self) -> int:
        return self.task.num_classes

    def features(self, inputs: Tensor) -> Tensor:
        """What the head reads; for a classification [B, D]."""
        return self.network.features(inputs)

    def forward(self, inputs: Tensor) -> Any:
        return self.network(inputs)

    def train(self, mode: bool = True) -> Tuned:
        """As in torch, but a module in which nothing trains stays in eval mode: no drop-path or
        batch statistics in a frozen backbone."""
        super().train(mode)
        for module in self.modules() if mode else ():
            flags = [p.requires_grad for p in module.parameters()]
            if flags and not any(flags):
                module.eval()
        return self

    def extra_repr(self) -> str:
        trainable, total = count_parameters(self)
        return f"method={self.method}, trainable={trainable:,} of {total:,}"


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) numbers of parameters, the head included."""
    if not isinstance(model, nn.Module):
        raise VTError(f"expected a model, found {said(model)}; pass what vt.tune gave")
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)


class Train(Protocol):
    """The plain loop that a method's `fit` is given (`vtlite.training.Train`)."""

    augment: Callable[[Tensor], Tensor] | None  # of each batch, before the model sees it

    def __call__(
        self, model: Tuned, data: Any, each: Callable[[float], Any] | None = None, **changes: Any
    ) -> Any: ...

    def once(self, model: Tuned, do: Callable[[], Any]) -> None: ...


@dataclasses.dataclass
class Method:
    """One way to tune a backbone. Its fields are its settings; its key is its file's place.

    A subclass in `vtlite/methods/parameter/weight/lora.py` is "parameter/weight/lora"; one that is
    defined elsewhere is "own/NAME", or says its `key` itself.
    """

    key: ClassVar[str] = ""
    # What `fit` uses if not told: best on the validation images of all tasks together
    # (benchmarks/).
    lr: ClassVar[float] = 1e-2
    lrs: ClassVar[tuple[float, ...]] = MIDDLE_LRS  # the benchmark chooses from these
    small: ClassVar[dict[str, Any]] = {}  # settings for a backbone of width 96
    # Why the tuned model does not start as the backbone; empty where it does.
    starts_elsewhere: ClassVar[str] = ""
    # Why the change cannot be folded into the backbone; empty where it can.
    unmergeable: ClassVar[str] = ""
    # Whether the features never change, so that they need computing but once.
    frozen_features: ClassVar[bool] = False
    # Whether it tunes a two-tower model such as "vtlite-clip" in place of an image backbone.
    two_towers: ClassVar[bool] = False
    # The embedded network that the benchmark measures it on.
    measured_on: ClassVar[str] = "vtlite-tiny"

    def __init_subclass__(cls, shared: bool = False) -> None:
        if shared:  # what several methods have in common, and no method by itself
            return
        if "key" not in cls.__dict__:
            place = cls.__module__.removeprefix("vtlite.methods.").replace(".", "/")
            name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
            cls.key = place if place != cls.__module__.replace(".", "/") else f"own/{name}"
        METHODS[cls.key] = cls

    def __new__(cls, *values: Any, **settings: Any) -> Method:
        parameters = inspect.signature(cls.__init__).parameters
        known, any_ = [*parameters][1:], inspect.Parameter.VAR_KEYWORD
        open_ = any(p.kind is any_ for p in parameters.values())  # an __init__ of one's own
        for setting in settings:
            if setting not in known and not open_:
                if known:
                    raise unknown(f"setting of {short(cls.key)}", setting, known)
                raise VTError(
                    f"unknown setting of {short(cls.key)} {setting!r}: {short(cls.key)} has no "
                    "settings; leave it out"
                )
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        hints = _hints(type(self))  # type: ignore[arg-type]  # mypy: a class is hashable
        expect_kinds(short(self.key), {name: value}, hints)
        if isinstance(value, list):
            value = tuple(value)
        elif hints.get(name) is float:
            value = float(value)
        object.__setattr__(self, name, value.item() if isinstance(value, np.generic) else value)

    # How a model is made

    def attach(self, backbone: Backbone) -> nn.Module | None:
        """Change the frozen `backbone` in place, or return another one.

        What trains afterwards is what requires a gradient.
        """
        raise NotImplementedError

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        """The network from a frozen copy of the backbone: inputs -> the task's answer.

        Written by methods for which changing the backbone is not all (prompts in a text tower, a
        ladder, a cache, a student).
        """
        backbone = self.attach(backbone) or backbone
        return Predictor(backbone, task.head(backbone), task)

    # How it learns

    def groups(self, model: Tuned) -> list[dict[str, Any]]:
        """What the optimiser gets: dicts with "params" and, if their learning rate is scaled, a
        "scale": the progress in [0, 1) of the training -> a factor."""
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]

    def loss(self, model: Any, inputs: Any, targets: Any) -> Tensor:
        """The training loss of one batch -> scalar."""
        return model.task.loss(model(inputs), targets)

    def backward(self, model: Any, inputs: Any, targets: Any) -> Tensor:
        """Leave gradients in the trainable parameters and return the loss."""
        loss = self.loss(model, inputs, targets)
        loss.backward()
        return loss

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        """The method's training in the order of its paper.

        `train(model, data)` is the plain loop, to be called once, never or often.
        `train.once(model, do)` runs whatever else changes the model's tensors; it is not repeated
        when a training that was stopped goes on.
        """
        train(model, task.train)

    # What it says of itself

    def settings(self) -> dict[str, Any]:
        """The settings as JSON-able values (what a delta file records)."""
        fields = [
            f.name for f in dataclasses.fields(self) if f.init and not f.metadata.get("model")
        ]
        return json.loads(json.dumps({name: getattr(self, name) for name in fields}))

    def expect(self, condition: bool, setting: str, wanted: str) -> None:
        """Raise the one-sentence error for a setting out of its range."""
        if not condition:
            found = getattr(self, setting)
            raise VTError(f"{short(self.key)}: expected {setting} {wanted}, found {said(found)}")


@cache
def _hints(cls: Any) -> dict[str, Any]:
    """The types of a method's settings; none where they name what only a function knows."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError:
        return {}
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def short(key: str) -> str:
    """The last part of a method's key: "parameter/weight/lora" -> "lora"."""
    return key.rpartition("/")[2]


def find_method(name: str) -> type[Method]:
    """A method's class by its full key or the last part of it. Raises `VTError` with the nearest
    names."""
    wanted = name.replace("-", "_") if isinstance(name, str) else None
    found = [cls for key, cls in METHODS.items() if wanted in (key, short(key))]
    if not found:
        raise unknown("method", name, [short(key) for key in METHODS])
    return found[0]


def make_method(name: str | Method | type[Method], **settings: Any) -> Method:
    """A method of one's own to tune with, from its name (or class) and settings, or a copy of one
    already made."""
    if isinstance(name, Method):
        type(name).__new__(type(name), **settings)  # refuses unknown ones in a sentence
        method = dataclasses.replace(name, **settings)
    else:
        cls = name if isinstance(name, type) and issubclass(name, Method) else find_method(name)
        method = cls(**settings)
    if type(method).attach is Method.attach and type(method).build is Method.build:
        raise VTError(
            f"expected a method that changes a backbone, found {said(method)}, which does not say "
            "how; write its attach, or choose another"
        )
    return method
