"""Prompts inside the blocks of both towers: given to some blocks, flowing on through the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vtlite.methods.prompt.vision.vpt_deep import PromptedBlock


class Replacing(nn.Module):
    """A block of the text tower, in front of which the context of every text is replaced: tokens
    [C, L, D] -> [C, L, D], the first of which is the start token."""

    def __init__(self, block: nn.Module, context: nn.Parameter) -> None:
        super().__init__()
        self.block, self.context = block, context  # [M, D]

    def forward(self, x: Tensor) -> Tensor:
        M = len(self.context)
        context = self.context.expand(len(x), -1, -1)
        return self.block(torch.cat([x[:, :1], context, x[:, 1 + M :]], dim=1))


class Entering(nn.Module):
    """A block of the image tower, in front of which prompts join the end of the tokens, to flow on
    with them: [B, N, D] -> [B, N + P, D]."""

    def __init__(self, block: nn.Module, prompts: nn.Module) -> None:
        super().__init__()
        self.block, self.prompts = block, prompts

    def forward(self, x: Tensor, **named: Any) -> Tensor:
        return self.block(torch.cat([x, self.prompts().expand(len(x), -1, -1)], dim=1), **named)


class Leaving(nn.Module):
    """The last block, behind which prompts leave: [B, N + P, D] -> [B, N, D]."""

    def __init__(self, block: nn.Module, count: int) -> None:
        super().__init__()
        self.block, self.count = block, count

    def forward(self, x: Tensor, **named: Any) -> Tensor:
        return self.block(x, **named)[:, : -self.count]


class Normed(nn.Module):
    """Prompts that enter before the norm in front of all blocks, where an image tower has one."""

    def __init__(self, prompts: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.prompts, self.norm = prompts, norm

    def forward(self) -> Tensor:
        return self.norm(self.prompts())


def put_into_images(visual: Any, prompts: list[nn.Module], count: int) -> None:
    """Give the first blocks of an image tower what `prompts` make, each [count, D]; those of the
    last one flow on to the end.

    All others end where the next ones enter, so they are seen as in VPT-deep: as keys and values,
    which are made once for all images.
    """
    blocks, last = visual.blocks, len(visual.blocks) - 1
    for i, each in enumerate(prompts):
        if i == len(prompts) - 1 < last:
            blocks[i] = Entering(blocks[i], each)
            blocks[last] = Leaving(blocks[last], count)
        else:
            blocks[i] = PromptedBlock(blocks[i], each, visual.num_prefix_tokens, 0.0, count)


def put_into_texts(text: Any, contexts: list[nn.Parameter]) -> None:
    """Give the second and following blocks of a text tower contexts of their own, each [M, D]."""
    for i, context in enumerate(contexts, 1):
        text.blocks[i] = Replacing(text.blocks[i], context)


def shared_depth(clip: Any, depth: int) -> int:
    """`depth`, or the number of blocks of the shallower tower where that is less."""
    return min(depth, len(clip.text.blocks), len(clip.visual.blocks))
