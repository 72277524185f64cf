"""What is asked of a network: a `Task`, one subclass for each kind of answer.

A task has images (or clips) with their targets in three splits, and answers four questions that
only the kind of answer decides: which features of a backbone it reads, what head turns them into an
answer, what the loss of an answer is, and how good the answers to a whole split are.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.base import about, feature_maps, features
from vtlite.ops.cross_entropy import cross_entropy
from vtlite.storage import VTError, said, unknown

KINDS: dict[str, type[Task]] = {}


@dataclass(frozen=True)
class Task:
    """A task of one kind: its class names and, where it has them, its three splits.

    Items of a split are (input, target). `group` is natural, specialised, shifted or structured, as
    the field sorts tasks.
    """

    metric: ClassVar[str] = "accuracy"  # the one number of `score` that methods are compared by
    # Whether a backbone's own classifier asks the same: logits from the pooled features.
    is_classifier: ClassVar[bool] = False
    # Whether it asks about the places of an image, and so reads maps.
    asks_about_places: ClassVar[bool] = False

    name: str = ""
    classes: tuple[str, ...] = ()
    # Datasets of (input, target); None where a task is asked without data of its own.
    train: Any = field(default=None, repr=False)
    val: Any = field(default=None, repr=False)
    test: Any = field(default=None, repr=False)
    group: str = ""
    description: str = field(default="", repr=False)

    def __init_subclass__(cls) -> None:
        KINDS[cls.__name__] = cls

    def __new__(cls, *values: Any, **named: Any) -> Task:
        known = [field.name for field in fields(cls)]
        for name in named:
            if name not in known:
                raise unknown(f"argument of {cls.__name__}", name, known)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        listed = isinstance(self.classes, tuple | list)
        if not listed or not all(isinstance(name, str) for name in self.classes):
            raise VTError(
                f"expected classes as a tuple of names, found {said(self.classes)}; "
                'write classes=("cat", "dog")'
            )
        object.__setattr__(self, "classes", tuple(self.classes))

    def __deepcopy__(self, memo: dict[int, Any]) -> Task:
        return self  # it never changes, and its images need no second copy

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Items in train, val and test."""
        return tuple(len(s) if s else 0 for s in (self.train, self.val, self.test))

    def features(self, backbone: nn.Module, inputs: Tensor) -> Tensor:
        """What the head reads: images [B, C, H, W] -> [B, D]."""
        return features(backbone, inputs)

    def head(self, backbone: Any) -> nn.Module:
        """A fresh head, from the backbone's features to the answer."""
        raise VTError(
            f"expected a task of one kind, found a {type(self).__name__} without a head; make it "
            "one, e.g. vtlite.task.Classification(classes=...)"
        )

    def loss(self, answers: Any, targets: Any) -> Tensor:
        """The mean loss of a batch of answers -> scalar."""
        raise NotImplementedError

    def score(self, answers: Any, targets: Any) -> dict[str, float]:
        """How good the answers to a whole split are, by name; `metric` is among the names."""
        raise NotImplementedError

    def check(self, targets: Any, inputs: Any = None) -> Any:
        """A batch of targets as `loss` and `score` take them. Raises `VTError` for those that this
        task can't have, or not for these inputs."""
        return targets

    def record(self) -> dict[str, Any]:
        """What a file has to say to ask the same again, as JSON-able values; no data."""
        return {"kind": type(self).__name__, "name": self.name, "classes": list(self.classes)}

    @staticmethod
    def from_record(record: dict[str, Any]) -> Task:
        """The task of a `record`, without data. Raises `VTError` for an unknown kind."""
        kind = record.get("kind") if isinstance(record, dict) else None
        if not isinstance(kind, str) or kind not in KINDS:
            raise VTError(
                f"expected a task of kind {', '.join(KINDS)}, found {said(kind)}; "
                "import the module that defines it first"
            )
        known = {key: value for key, value in record.items() if key != "kind"}
        try:
            if "parts" in known:
                known["parts"] = {k: Task.from_record(part) for k, part in known["parts"].items()}
            if "stages" in known:
                known["stages"] = tuple(Task.from_record(stage) for stage in known["stages"])
            return KINDS[kind](**known)
        except (TypeError, AttributeError) as error:
            raise VTError(
                f"expected the record of a {kind}, found another ({error}); the file is damaged"
            ) from error


class Classification(Task):
    """One of `classes` for each image: targets are labels [B], answers logits [B, classes]."""

    is_classifier = True

    def head(self, backbone: Any) -> nn.Module:
        return nn.Linear(about(backbone).num_features, self.num_classes)

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(answers, targets)

    def score(self, answers: Tensor, targets: Tensor) -> dict[str, float]:
        return {"accuracy": (answers.argmax(dim=1) == targets).double().mean().item()}

    def check(self, targets: Tensor, inputs: Any = None) -> Tensor:
        if isinstance(targets, Tensor) and targets.ndim == 2 and targets.shape[1] == 1:
            targets = targets[:, 0]  # a column, as in tables
        return check_labels(targets, self.num_classes, ("B",))


class MultiLabel(Task):
    """Some of `classes` for each image: targets [B, classes] of 0 and 1, answers logits of the same
    shape."""

    metric = "mAP"
    is_classifier = True

    def head(self, backbone: Any) -> nn.Module:
        return nn.Linear(about(backbone).num_features, self.num_classes)

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(answers, targets.to(answers.dtype))

    def score(self, answers: Tensor, targets: Tensor) -> dict[str, float]:
        """mAP: average precision over the ranked images, the mean over classes; exact: all
        right."""
        order = answers.argsort(dim=0, descending=True)
        hits = targets.double().gather(0, order)  # [N, classes], the most confident images first
        ranks = torch.arange(1, len(hits) + 1, device=hits.device)[:, None]
        precision = hits.cumsum(0) / ranks
        found = hits.sum(0)
        average = (precision * hits).sum(0)[found > 0] / found[found > 0]
        exact = ((answers > 0) == (targets > 0.5)).all(dim=1)
        return {"mAP": average.mean().item(), "exact": exact.double().mean().item()}

    def check(self, targets: Tensor, inputs: Any = None) -> Tensor:
        tensor = isinstance(targets, Tensor)
        if not tensor or targets.ndim != 2 or targets.shape[1] != self.num_classes:
            raise VTError(
                f"expected targets [B, {self.num_classes}] of zeros and ones, found "
                + (f"shape {list(targets.shape)}" if tensor else type(targets).__name__)
                + "; give one number for each class"
            )
        if not ((targets >= 0) & (targets <= 1)).all():  # NaN is neither
            raise VTError(
                f"expected targets [B, {self.num_classes}] of zeros and ones, found "
                f"{targets.min().item():g} to {targets.max().item():g}; give 1 for the classes "
                "that an image shows"
            )
        return targets


class PatchDecoder(nn.Module):
    """Each place of a map answers for a square of pixels: [B, D, h, w] -> [B, classes, r h, r
    w]."""

    def __init__(self, dim: int, num_classes: int, upsample: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(dim, num_classes * upsample**2, 1)
        self.upsample = upsample

    def forward(self, maps: Tensor) -> Tensor:
        return F.pixel_shuffle(self.project(maps), self.upsample)


@dataclass(frozen=True)
class Segmentation(Task):
    """One of `classes` for each pixel: targets are masks [B, H, W], answers logits [B, classes, h,
    w] that are resized to the mask."""

    metric = "mIoU"
    asks_about_places = True

    upsample: int = 8  # pixels a side that each place of the last map answers for

    def features(self, backbone: nn.Module, inputs: Tensor) -> Tensor:
        """What the head reads: images [B, C, H, W] -> [B, D, h, w]."""
        return feature_maps(backbone, inputs)

    def head(self, backbone: Any) -> nn.Module:
        return PatchDecoder(about(backbone).map_features, self.num_classes, self.upsample)

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.resized(answers, targets), targets)

    def score(self, answers: Tensor, targets: Tensor) -> dict[str, float]:
        """mIoU: intersection over union, the mean over the classes that occur; pixels: right
        ones."""
        found = self.resized(answers, targets).argmax(dim=1)
        each = torch.arange(self.num_classes, device=found.device).view(-1, 1, 1, 1)
        here, there = found == each, targets == each  # [classes, N, H, W]
        both, either = (here & there).sum((1, 2, 3)), (here | there).sum((1, 2, 3))
        ratio = both[either > 0].double() / either[either > 0]
        return {"mIoU": ratio.mean().item(), "pixels": (found == targets).double().mean().item()}

    def check(self, targets: Tensor, inputs: Any = None) -> Tensor:
        if isinstance(targets, Tensor) and targets.ndim == 4 and targets.shape[1] == 1:
            targets = targets[:, 0]  # a channel, as images have
        masks = check_labels(targets, self.num_classes, ("B", "H", "W"))
        if isinstance(inputs, Tensor) and inputs.shape[-2:] != masks.shape[-2:]:
            sizes = [" x ".join(map(str, each.shape[-2:])) for each in (inputs, masks)]
            raise VTError(
                f"expected masks of {sizes[0]} pixels, as their images have, found {sizes[1]}; "
                "resize and crop both alike"
            )
        return masks

    def record(self) -> dict[str, Any]:
        return {**super().record(), "upsample": self.upsample}

    @staticmethod
    def resized(answers: Tensor, targets: Tensor) -> Tensor:
        """Logits at the size of the masks."""
        if answers.shape[2:] == targets.shape[1:]:
            return answers
        return F.interpolate(answers, targets.shape[1:], mode="bilinear")


class Clips(Classification):
    """One of `classes` for each clip [B, T, C, H, W]: the head reads the mean over the frames."""

    is_classifier = False

    def features(self, backbone: nn.Module, inputs: Tensor) -> Tensor:
        """What the head reads: clips [B, T, C, H, W] -> [B, D], blind to the order of frames."""
        if not isinstance(inputs, Tensor) or inputs.ndim != 5 or not inputs.shape[1]:
            tensor = isinstance(inputs, Tensor)
            found = f"shape {list(inputs.shape)}" if tensor else type(inputs).__name__
            raise VTError(
                f"expected clips [B, T, C, H, W], found {found}; "
                "give each clip its frames in the second dimension of a tensor"
            )
        return features(backbone, inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2]).mean(dim=1)


class Heads(nn.Module):
    """One head for each question: features [B, D] -> answers by name."""

    def __init__(self, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: head(x) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Several(Task):
    """Several questions about each image: targets and answers are dicts by the names of `parts`."""

    parts: dict[str, Task] = field(default_factory=dict, repr=False)

    def features(self, backbone: nn.Module, inputs: Tensor) -> Tensor:
        """What the heads read, all of them the same."""
        return next(iter(self.parts.values())).features(backbone, inputs)

    def head(self, backbone: Any) -> nn.Module:
        if len({type(part).features for part in self.parts.values()}) > 1:
            kinds = ", ".join(sorted({type(part).__name__ for part in self.parts.values()}))
            raise VTError(
                f"expected questions that read the same features of an image, found {kinds}; ask "
                "those about the whole image and those about its places in two tasks"
            )
        return Heads({name: part.head(backbone) for name, part in self.parts.items()})

    def loss(self, answers: dict[str, Any], targets: dict[str, Any]) -> Tensor:
        losses = [part.loss(answers[name], targets[name]) for name, part in self.parts.items()]
        return torch.stack(losses).sum()

    def score(self, answers: dict[str, Any], targets: dict[str, Any]) -> dict[str, float]:
        """accuracy: the mean of the parts' metrics, and each of these as NAME/METRIC."""
        scores = {
            f"{name}/{what}": value
            for name, part in self.parts.items()
            for what, value in part.score(answers[name], targets[name]).items()
        }
        metrics = [scores[f"{name}/{part.metric}"] for name, part in self.parts.items()]
        return {"accuracy": sum(metrics) / len(metrics), **scores}

    def check(self, targets: dict[str, Any], inputs: Any = None) -> dict[str, Any]:
        if not isinstance(targets, dict) or self.parts.keys() - targets.keys():
            found = ", ".join(targets) if isinstance(targets, dict) else "no dict"
            raise VTError(
                f"expected targets as a dict of {', '.join(self.parts)}, found {found}; give each "
                "image an answer to every question"
            )
        return {name: part.check(targets[name], inputs) for name, part in self.parts.items()}

    def record(self) -> dict[str, Any]:
        return {**super().record(), "parts": {k: part.record() for k, part in self.parts.items()}}


@dataclass(frozen=True)
class Stream(Classification):
    """The same question in one domain after another: `stages` are the domains' tasks, and the three
    splits hold all of them together."""

    stages: tuple[Task, ...] = field(default=(), repr=False)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "stages": [stage.record() for stage in self.stages]}


def check_labels(labels: Tensor, num_classes: int, axes: tuple[str, ...] = ("B",)) -> Tensor:
    """The labels as int64. Raises `VTError` unless they are whole numbers between 0 and num_classes
    - 1, with the dimensions that `axes` names."""
    wanted = f"labels [{', '.join(axes)}]"
    if not isinstance(labels, Tensor) or labels.ndim != len(axes):
        tensor = isinstance(labels, Tensor)
        found = f"shape {list(labels.shape)}" if tensor else type(labels).__name__
        one_hot = tensor and labels.shape[1:] == (num_classes,)
        raise VTError(
            f"expected {wanted} from 0 to {num_classes - 1}, found {found}; "
            + ("take labels.argmax(1)" if one_hot else "give each image one label")
        )
    if labels.is_floating_point() or labels.is_complex():
        raise VTError(
            f"expected {wanted} as whole numbers, found {labels.dtype}; convert them with .long()"
        )
    if labels.numel() and (labels.min() < 0 or labels.max() >= num_classes):
        raise VTError(
            f"expected labels from 0 to {num_classes - 1}, found {int(labels.min())} to "
            f"{int(labels.max())}; tune with the task's num_classes, or count labels from 0"
        )
    return labels.long()
