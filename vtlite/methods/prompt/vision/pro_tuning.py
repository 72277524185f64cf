"""Pro-tuning: in front of each stage, a light convolutional block adds a prompt made of the map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.base import channel_dim, is_norm
from vtlite.backbones.stages import stage_names
from vtlite.method import Backbone, Method
from vtlite.methods.adapter.places import Places
from vtlite.storage import VTError


class PromptBlock(nn.Module):
    """The prompt of a map: [B, C, h, w] -> the same shape, zero at the start."""

    def __init__(self, channels: int, kernel: int, reduction: int) -> None:
        super().__init__()
        C, groups, inside = channels, math.gcd(channels, 4), max(1, channels // reduction)
        self.enter = nn.Conv2d(C, C, 1, groups=groups)
        self.look = nn.Conv2d(C, C, kernel, padding=kernel // 2, groups=C)
        self.mix = nn.Conv2d(C, C, 1)
        self.squeeze, self.excite = nn.Conv2d(C, inside, 1), nn.Conv2d(inside, C, 1)
        self.leave = nn.Conv2d(C, C, 1, groups=groups)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        z = self.mix(self.look(self.enter(maps)))
        gate = self.excite(F.relu(self.squeeze(z.mean((2, 3), keepdim=True)))).sigmoid()
        return self.gain * self.leave(z * gate)


class PromptedStage(nn.Module):
    """A frozen stage, or the first block of one, which gets its input and the prompt of it."""

    def __init__(self, stage: nn.Module, made: PromptBlock, places: Places, last: bool) -> None:
        super().__init__()
        self.stage, self.made, self.places, self.last = stage, made, places, last

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Tensor:
        return self.stage(x + self.prompt(x), *more, **named)

    def prompt(self, x: Tensor) -> Tensor:
        """The prompt of maps [B, C, h, w] or, with the channels last, of maps [B, h, w, C] or
        tokens [B, N, C], of which those without a place get none."""
        if not self.last:
            return self.made(x)
        if x.ndim == 4:
            return self.made(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        prompts = self.made(self.places.maps(x)).flatten(2).mT
        return torch.cat([torch.zeros_like(x[:, : self.places.prefix]), prompts], 1)


def entrances(backbone: Backbone) -> list[str]:
    """The names of what each of the stages of a CNN or a hierarchical Transformer begins with; of a
    network of equal blocks, those of four equal parts."""
    names = stage_names(backbone)
    held = [[*own] for _, own in groupby(names, key=lambda name: name.rpartition(".")[0])]
    if not any("." in name for name in names):
        return names
    if len(held) > 1:
        return [own[0] for own in held]
    return [names[i] for i in sorted({len(names) * part // 4 for part in range(4)})]


def entering(stage: nn.Module, backbone: Backbone) -> tuple[int, bool]:
    """How many channels a stage gets, and whether they come last, from its first layer."""
    for layer in stage.modules():
        if isinstance(layer, nn.Conv2d):
            return layer.in_channels, False
        if is_norm(layer):
            return cast(Tensor, layer.weight).numel(), channel_dim(layer) == -1
    raise VTError(
        "pro_tuning: expected stages that begin with a norm or a convolution, found "
        f"{type(backbone).__name__} with others; tune this backbone with another method"
    )


@dataclass
class ProTuning(Method):
    """In front of each of four stages, add to the map a prompt that a light convolutional block
    makes of it.

        x <- x + g P(x),   P(x) = B (s(z) * z),   z = C (depthwise k x k (A x)),   s(z) = sigmoid(E relu(S mean(z)))

    x is the map [C, h, w] of a stage's input; A and B are 1x1 convolutions in four groups, C one in
    one, S and E from C to C / reduction channels and back; all with a bias. g, a number for each
    stage, starts at zero, so training starts from the backbone. Tokens without a place get no
    prompt. A CNN or a hierarchical Transformer has its own stages, a ViT four equal parts. Nie, Ni,
    Chang, Meng, Huo, Xiang, Tian, "Pro-tuning: Unified Prompt Tuning for Vision Tasks", TCSVT 2024,
    arXiv 2207.14381. There is no official code, and the block is known from a port
    (github.com/jimmylin0979/PAT), which adds the gate s instead of z * s, so that its prompts are
    the same everywhere; here it is z * s. On ViT-B/16: 3,926,212 parameters.
    """

    lr = 1e-2

    unmergeable = "its prompts are made of the map, through a gate"

    kernel: int = 5  # of the depthwise convolution
    reduction: int = 16  # the channels over those inside the gate

    def __post_init__(self) -> None:
        self.expect(self.kernel >= 1 and self.kernel % 2 == 1, "kernel", "an odd number")
        self.expect(self.reduction >= 1, "reduction", "an integer of at least 1")

    def attach(self, backbone: Backbone) -> None:
        places = Places.of(backbone)
        for name in entrances(backbone):
            parent, _, place = name.rpartition(".")
            stage = backbone.get_submodule(name)
            channels, last = entering(stage, backbone)
            prompt = PromptBlock(channels, self.kernel, self.reduction)
            prompted = PromptedStage(stage, prompt, places, last)
            setattr(backbone.get_submodule(parent), place, prompted)
