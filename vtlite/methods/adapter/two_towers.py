"""What the adapters of two-tower models share: class names as features, and who answers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vtlite.backbones.clip import CLIP, ImageTower
from vtlite.method import Method, Predictor, short
from vtlite.storage import VTError
from vtlite.task import Classification, Task
from vtlite.zero_shot import class_features


def named_classes(clip: CLIP, task: Task, method: Method, template: str) -> Tensor:
    """The normalised text features of the task's classes [C, E]. Raises `VTError` for a task that
    does not ask for one class of each image."""
    if not isinstance(task, Classification):
        raise VTError(
            f"{short(method.key)}: expected a classification, whose classes have names, found a "
            f"{type(task).__name__}; choose another method"
        )
    return class_features(clip, task.classes, template)


def answering(clip: CLIP, head: nn.Module, task: Any) -> nn.Module:
    """The frozen image tower, whose features `head` reads before they are normalised."""
    return Predictor(ImageTower(clip), head, task)
