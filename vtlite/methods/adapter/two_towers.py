"""What the adapters of two-tower models share: class names as features, and who answers."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.clip import CLIP, ImageTower
from vtlite.method import Method, Predictor, short
from vtlite.storage import VTError
from vtlite.task import Classification, Task
from vtlite.zero_shot import class_features


class FixedTexts(nn.Module):
    """Features [B, E] -> logits [B, C]: a scale times the cosine with texts [C, E] that no longer
    change, so that no text tower is needed."""

    texts: Tensor
    scale: Tensor

    def __init__(self, texts: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("texts", texts)
        self.register_buffer("scale", scale)

    def forward(self, f: Tensor) -> Tensor:
        return self.scale * F.normalize(f, dim=-1) @ self.texts.T


class TextHead(nn.Module):
    """Features [B, E] -> logits [B, C]: the cosine with each class's text, which the tower reads
    anew each time, as it changes."""

    tokens: Tensor
    scale: Tensor

    def __init__(self, clip: CLIP, classes: tuple[str, ...], template: str) -> None:
        super().__init__()
        self.tower, self.projection = clip.text, clip.text_projection
        tokens = clip.tokenize([template.replace("{}", name) for name in classes])
        used = int(tokens.argmax(-1).max()) + 1  # behind the last end nothing is read
        self.register_buffer("tokens", tokens[:, :used], persistent=False)
        self.register_buffer("scale", clip.logit_scale.exp().detach(), persistent=False)

    def texts(self) -> Tensor:
        """The normalised features of the classes [C, E]."""
        texts = self.tower(self.tower.token_embedding(self.tokens), self.tokens.argmax(-1))
        return F.normalize(texts @ self.projection, dim=-1)

    def forward(self, f: Tensor) -> Tensor:
        return self.scale * F.normalize(f, dim=-1) @ self.texts().T

    def merged(self) -> FixedTexts:
        return FixedTexts(self.texts(), self.scale)


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
