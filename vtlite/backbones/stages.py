"""What the backbones have in common: an order of their parts from input to output, whatever they
call them."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from vtlite.storage import VTError

HEADS = (
    "head.",
    "head_dist.",
    "fc.",
)  # what a classifier's parameters are called; a backbone is kept without it


def stage_names(backbone: nn.Module) -> list[str]:
    """The names of a backbone's stages from input to output: the blocks of a ViT or Swin, `layer1`
    to `layer4` of a ResNet.

    Raises `VTError` for a network that has none of these.
    """
    model: Any = backbone
    if hasattr(model, "blocks"):
        return [f"blocks.{i}" for i in range(len(model.blocks))]
    if hasattr(model, "layers"):  # Swin: stages of blocks
        return [
            f"layers.{i}.blocks.{j}"
            for i, layer in enumerate(model.layers)
            for j in range(len(layer.blocks))
        ]
    if hasattr(model, "layer1"):
        return [name for name in ("layer1", "layer2", "layer3", "layer4") if hasattr(model, name)]
    raise VTError(
        f"expected a ViT, Swin or ResNet, found {type(backbone).__name__}, whose blocks have no names known here"
    )


def stages(backbone: nn.Module) -> list[Any]:
    """The modules of `stage_names`."""
    return [backbone.get_submodule(name) for name in stage_names(backbone)]


def layer_of(name: str, names: list[str]) -> int:
    """The layer of the parameter `name` as BEiT counts: 0 for the embedding, i for stage i,
    len(names) + 1 for last norm and head."""
    inner = name.removeprefix("backbone.")
    for i, stage in enumerate(names, 1):
        if inner.startswith(f"{stage}."):
            return i
    if inner.startswith("layers."):  # Swin's downsampling comes before the first block of its stage
        return 1 + names.index(f"layers.{inner.split('.')[1]}.blocks.0")
    return len(names) + 1 if inner.startswith(("norm.", "fc_norm.", *HEADS)) else 0


def attention_blocks(backbone: nn.Module, method: str, plain: bool = False) -> list[Any]:
    """The Transformer blocks that `method` attaches to (`plain`: of a ViT only). Raises `VTError`
    for a network without them."""
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
