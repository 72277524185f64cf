"""The parts of a backbone in order from input to output, whatever it calls them."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from vtlite.backbones.base import about
from vtlite.storage import VTError


def stage_names(backbone: nn.Module) -> list[str]:
    """The names of a backbone's blocks (a ViT, Swin) or stages (a ResNet) from input to output."""
    return about(backbone).stage_names()


def stages(backbone: nn.Module) -> list[Any]:
    """The modules of `stage_names`."""
    return [backbone.get_submodule(name) for name in stage_names(backbone)]


def parameters_by_layer(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters that train, by layers as BEiT counts them: 0 the embedding, 1 to L the blocks,
    L + 1 what comes after them.

    Whatever lies between two blocks (Swin's downsampling) counts with the block that follows.
    """
    names = stage_names(backbone)
    layers: list[list[nn.Parameter]] = [[] for _ in range(len(names) + 2)]
    passed = 0  # blocks that have begun, in the order of the modules
    for name, parameter in backbone.named_parameters():
        inside = next((i for i, stage in enumerate(names, 1) if name.startswith(f"{stage}.")), None)
        passed = max(passed, inside or 0)
        outside = 0 if passed == 0 else passed + 1
        if parameter.requires_grad:
            layers[outside if inside is None else inside].append(parameter)
    return layers


def attention_blocks(backbone: nn.Module, method: str, plain: bool = False) -> list[Any]:
    """The Transformer blocks that `method` attaches to (`plain`: of a ViT only).

    Raises `VTError` for a network without them.
    """
    kind = "ViT" if plain else "ViT or Swin"
    if not hasattr(backbone, "blocks") and (plain or not hasattr(backbone, "layers")):
        raise VTError(
            f"{method}: expected a {kind}, whose blocks it changes, found {type(backbone).__name__}; "
            "tune this backbone with a method of the fine-tuning group, bitfit, lora or ssf"
        )
    return stages(backbone)


def with_fewer_blocks(backbone: Any, depth: int) -> Any:
    """A copy of a ViT with `depth` of its blocks, evenly spaced, the last one among them."""
    shallow, total = copy.deepcopy(backbone), len(backbone.blocks)
    shallow.blocks = nn.Sequential(
        *(shallow.blocks[round((i + 1) * total / depth) - 1] for i in range(depth))
    )
    return shallow
