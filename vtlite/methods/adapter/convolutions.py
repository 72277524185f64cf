"""The 3x3 convolutions of a CNN, to which residual adapters are attached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from vtlite.backbones.base import is_norm
from vtlite.backbones.stages import stage_names
from vtlite.method import Backbone
from vtlite.storage import VTError

Place = tuple[str, nn.Conv2d, nn.Module | None]  # its name, itself, and the norm that follows


def convolutions(backbone: Backbone) -> Iterator[Place]:
    """Plain 3x3 convolutions in the stages of a backbone that keep places (padding 1)."""
    inside = tuple(f"{stage}." for stage in stage_names(backbone))
    modules = [(name, m) for name, m in backbone.named_modules() if name.startswith(inside)]
    for (name, module), (_, after) in zip(modules, [*modules[1:], ("", None)], strict=True):
        plain = type(module) is nn.Conv2d and module.kernel_size == (3, 3)
        if plain and module.padding == module.dilation:
            yield name, module, after


def replace_convolutions(
    backbone: Backbone, method: str, make: Callable[[nn.Conv2d, nn.Module | None], nn.Module]
) -> None:
    """Replace each of them by `make(convolution, the module after it)`, and let all norms train.

    Raises `VTError` for a network that has none.
    """
    found = list(convolutions(backbone))
    if not found:
        raise VTError(
            f"{method}: expected a CNN with 3x3 convolutions in its stages, found "
            f"{type(backbone).__name__} without; tune this backbone with houlsby or adaptformer"
        )
    for name, convolution, after in found:
        parent, _, last = name.rpartition(".")
        setattr(backbone.get_submodule(parent), last, make(convolution, after))
    for module in backbone.modules():
        if is_norm(module):
            module.requires_grad_(True)


def pointwise(inputs: int, outputs: int, stride: Any, groups: int) -> nn.Conv2d:
    """A 1x1 convolution that starts as those of the network did: N(0, 2 / outputs)."""
    layer = nn.Conv2d(inputs, outputs, 1, stride, groups=groups, bias=False)
    nn.init.normal_(layer.weight, std=(2 / outputs) ** 0.5)
    return layer


def as_matrix(layer: nn.Conv2d) -> torch.Tensor:
    """The weight of a 1x1 convolution without groups: [outputs, inputs]."""
    return torch.block_diag(*layer.weight[:, :, 0, 0].chunk(layer.groups))
