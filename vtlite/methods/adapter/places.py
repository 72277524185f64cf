"""Tokens on their way through a backbone, and at their places on the image: what an adapter beside
it, or with a convolution inside, needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vtlite.backbones.base import about
from vtlite.backbones.stages import stages
from vtlite.method import Backbone
from vtlite.storage import VTError
from vtlite.task import Several, Task


@torch.no_grad()  # so a frozen backbone keeps nothing for a backward pass
def passing(backbone: Backbone, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What a ViT makes of images [B, N, D]; and what enters its first block and leaves each block,
    L + 1 times [B, N, D]."""
    seen: list[Tensor] = []
    blocks = stages(backbone)
    hooks = [block.register_forward_hook(lambda *io: seen.append(io[2])) for block in blocks]
    hooks.append(blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0])))
    try:
        return backbone.forward_features(images), seen
    finally:
        for hook in hooks:
            hook.remove()


def expect_whole(method: str, task: Task, why: str) -> None:
    """Raise `VTError` for a task that asks about the places of an image; `why` says what comes of
    them."""
    parts = task.parts.values() if isinstance(task, Several) else (task,)
    if any(part.asks_about_places for part in parts):
        raise VTError(
            f"{method}: expected a task that asks about whole images, found a {type(task).__name__} "
            f"that asks about places, {why}; choose another method"
        )


@dataclass(frozen=True)
class Places:
    """How the tokens of a backbone lie: `prefix` without a place before those of the patches, which
    are row by row `ratio` times as high as wide."""

    prefix: int = 0
    ratio: float = 1.0

    @classmethod
    def of(cls, backbone: Backbone) -> Places:
        height, width = about(backbone).input_size or (1, 1)
        return cls(getattr(backbone, "num_prefix_tokens", 0), height / width)

    def apply(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`function`, from maps [B, C, h, w] to such maps, on tokens [B, N, C] or a map [B, h, w,
        C]. Each token without a place is a map of its own."""
        if x.ndim == 4:
            return function(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        patches = function(self.maps(x)).flatten(2).mT
        if not self.prefix:
            return patches
        before = x[:, : self.prefix]
        alone = function(before.reshape(-1, x.shape[2], 1, 1)).view(before.shape)
        return torch.cat([alone, patches], 1)

    def maps(self, x: Tensor) -> Tensor:
        """The patches among tokens [B, N, C] -> [B, C, h, w]."""
        patches = x[:, self.prefix :]
        height = max(1, round((patches.shape[1] * self.ratio) ** 0.5))
        if patches.shape[1] % height:
            raise VTError(
                f"expected patches in rows and columns, found {patches.shape[1]} for images "
                f"{self.ratio:g} times as high as wide; give images of the shape of the backbone's"
            )
        return patches.mT.unflatten(2, (height, -1))
