"""What vision prompts share: tokens put among those of an image, and a frozen backbone before which
something is made of the images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.base import VisionBackbone, about
from vtlite.backbones.stages import (
    PositionsWithPrompts,
    attention_blocks,
    patch_weight,
    stage_names,
)
from vtlite.method import Backbone


def random_prompts(backbone: Backbone, method: str, *shape: int) -> Tensor:
    """Prompts [*shape, D] as VPT starts them: U(-v, v), v = sqrt(6 / (channels * patch^2 + D))."""
    patches = patch_weight(backbone, method)  # [D, C, patch, patch]
    bound = math.sqrt(6 / (patches[0].numel() + backbone.embed_dim))
    return torch.empty(*shape, backbone.embed_dim).uniform_(-bound, bound)


def insert(x: Tensor, prompts: Tensor, prefix: int) -> Tensor:
    """Prompts [P, D], or one lot an image [B, P, D], behind the first `prefix` tokens: [B, N, D] ->
    [B, N + P, D]."""
    return torch.cat([x[:, :prefix], prompts.expand(len(x), -1, -1), x[:, prefix:]], dim=1)


def remove(x: Tensor, count: int, prefix: int) -> Tensor:
    """The opposite: [B, N + P, D] -> [B, N, D]."""
    return torch.cat([x[:, :prefix], x[:, prefix + count :]], dim=1)


class Prompts(nn.Module):
    """P learned tokens [P, D], the same for every image."""

    def __init__(self, start: Tensor, dropout: float = 0.0) -> None:
        super().__init__()
        self.prompts, self.dropout = nn.Parameter(start), dropout

    def forward(self) -> Tensor:
        return F.dropout(self.prompts, self.dropout, self.training)


class Given:
    """What was made of the images that are under way, for the blocks to read; it is no part of the
    model, and copies start without."""

    value: Any = None

    def __call__(self) -> Any:
        return self.value

    def __deepcopy__(self, memo: dict[int, Any]) -> Given:
        return Given()


class PassedBlock(nn.Module):
    """A frozen block that P prompts pass beside the tokens; the first one puts them in, the last
    one takes them out, so that pooling and heads need not know of them."""

    def __init__(
        self,
        block: nn.Module,
        prefix: int,
        count: int,
        prompts: Callable[[], Tensor | None] | None,
        last: bool,
        inside: Given,
    ) -> None:
        super().__init__()
        self.block, self.prefix, self.last, self.inside = block, prefix, last, inside
        self.positions = PositionsWithPrompts(block, prefix, count)
        self.prompts = prompts  # of the first block alone

    def forward(self, x: Tensor, **named: Any) -> Tensor:
        if self.prompts is not None:
            prompts = self.prompts()
            self.inside.value = 0 if prompts is None else prompts.shape[-2]
            x = x if prompts is None else insert(x, prompts, self.prefix)
        x = self.block(x, **self.positions(named))
        return remove(x, self.inside.value, self.prefix) if self.last else x


def pass_through(
    backbone: Backbone, method: str, prompts: Callable[[], Tensor | None], count: int
) -> None:
    """Let the `count` tokens that `prompts` gives (None: none this time, for usual blocks) go
    through all blocks of a ViT, beside the image's own. Raises `VTError` for another network."""
    blocks = attention_blocks(backbone, method, plain=True)
    prefix, inside = getattr(backbone, "num_prefix_tokens", 0), Given()
    for i, block in enumerate(blocks):
        source, last = prompts if i == 0 else None, i == len(blocks) - 1
        backbone.blocks[i] = PassedBlock(block, prefix, count, source, last, inside)


class Around(VisionBackbone):
    """A frozen backbone, and what is made of the images before it sees them.

    A subclass writes `prepared`, and may put into `given` what the blocks are to read.
    """

    def __init__(self, base: Backbone) -> None:
        super().__init__()
        said = about(base)
        self.base: Backbone = base
        self.in_chans, self.input_size = said.in_chans, said.input_size
        self.num_features = said.num_features
        self.given = Given()

    def prepared(self, images: Tensor) -> Tensor:
        """What the base is to see of images [B, C, H, W]."""
        raise NotImplementedError

    def stage_names(self) -> list[str]:
        """The base's."""
        return [f"base.{name}" for name in stage_names(self.base)]

    @property
    def map_features(self) -> int:
        return about(self.base).map_features

    def forward_features(self, images: Tensor) -> Tensor:
        return self.passed(self.base.forward_features, images)

    def passed(self, see: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """What the base sees in the prepared images; then what was given is forgotten."""
        try:
            return see(self.prepared(images))
        finally:
            self.given.value = None

    def forward_head(self, found: Tensor, pre_logits: bool = True) -> Tensor:
        return self.base.forward_head(found, pre_logits=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def feature_maps(self, images: Tensor) -> Tensor:
        return self.passed(about(self.base).feature_maps, images)
