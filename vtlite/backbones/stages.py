"""The parts of a backbone in order from input to output, whatever it calls them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

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


# What the projections of an attention are called, and which of its queries, keys and values each
# of them makes: fused, or each by itself as in EVA-02.
PROJECTIONS = {
    "qkv": "qkv",
    **{f"{letter}{ending}": letter for letter in "qkv" for ending in ("", "_proj")},
    "kv": "kv",
}
# Blocks that normalise what a branch gives, not what it gets: a module beside their MLP would see
# another input, and be normalised with it.
_NORMS_AFTER = (
    "ResPostBlock",
    "ResPostRelPosBlock",
    "SwinTransformerV2Block",
    "EvaBlockPostNorm",
)


def attention_blocks(
    backbone: nn.Module, method: str, parts: Sequence[str] = (), plain: bool = False
) -> list[Any]:
    """The Transformer blocks that `method` attaches to, each of which has the modules in `parts`
    (`plain`: those of a ViT, whose tokens stay [B, N, D] from one block to the next).

    "norm2" among the parts stands for a norm before the MLP. Raises `VTError` for a network without
    such blocks.
    """
    kind = "ViT" if plain else "ViT or Swin"
    found = stages(backbone)
    needed = ("attn", *parts)
    lacking = [
        name
        for block in found
        for name in needed
        if not isinstance(block, nn.Module) or not has_part(block, name)
    ]
    uniform = hasattr(backbone, "embed_dim") and len({type(block) for block in found}) == 1
    if plain and not (hasattr(backbone, "blocks") and uniform):
        lacking.append("one width")
    if "norm2" in parts and any(type(block).__name__ in _NORMS_AFTER for block in found):
        lacking.append("a norm before the MLP")
    if lacking:
        raise VTError(
            f"{method}: expected a {kind}, whose blocks it changes, found "
            f"{type(backbone).__name__} without {lacking[0]} in some of them; "
            "tune this backbone with a method of the fine-tuning group, bitfit, lora or ssf"
        )
    return found


def has_part(block: nn.Module, name: str) -> bool:
    """Whether a block has a submodule of this dotted name."""
    try:
        return isinstance(block.get_submodule(name), nn.Module)
    except AttributeError:
        return False


class Gain(nn.Module):
    """A gain per channel: x [..., D] -> [..., D]."""

    def __init__(self, gamma: nn.Parameter) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


def take_gain(block: Any) -> nn.Module:
    """The gain on the branch of the MLP, taken out of the block, which then has none: a module
    `ls2` in a ViT, a parameter `gamma_2` in BEiT and EVA."""
    gain: nn.Module = getattr(block, "ls2", nn.Identity())
    if getattr(block, "gamma_2", None) is not None:
        gain = Gain(block.gamma_2)
        # not None, which in BEiT would turn off the attention's gain as well
        block.gamma_2 = nn.Parameter(torch.ones_like(gain.gamma), requires_grad=False)
    elif hasattr(block, "ls2"):
        block.ls2 = nn.Identity()
    return gain


class PositionsWithPrompts(nn.Module):
    """What a block is told about positions, for a sequence with P more tokens behind its prefix,
    which have none: no rotation, and no bias from or to them.

    A block's own biases, which know the length of the sequence, are computed once (they are frozen)
    and taken out of it; it gets them with the others. Raises `VTError` for positions that can't be
    extended.
    """

    bias: Tensor | None

    def __init__(self, block: Any, prefix: int, more: int) -> None:
        super().__init__()
        self.prefix, self.more = prefix, more
        attn = block.attn
        if hasattr(attn, "num_prefix_tokens"):  # tokens that are not rotated
            attn.num_prefix_tokens += more
        self.name, bias = "", None
        if getattr(attn, "relative_position_bias_table", None) is not None:  # BEiT
            self.name, bias = "shared_rel_pos_bias", attn._get_rel_pos_bias()
            attn.relative_position_bias_table = None
        elif getattr(attn, "rel_pos", None) is not None:
            self.name, bias = "shared_rel_pos", attn.rel_pos.get_bias()
            attn.rel_pos = None
        bias = None if bias is None else self.extended(bias.detach())
        self.register_buffer("bias", bias, persistent=False)

    def extended(self, bias: Tensor) -> Tensor:
        """[.., N, N] -> [.., N + P, N + P], zero for the new tokens."""
        for dim in (-1, -2):
            before, after = bias.tensor_split([self.prefix], dim)
            zeros = torch.zeros_like(bias.narrow(dim, 0, 1)).repeat_interleave(self.more, dim)
            bias = torch.cat([before, zeros, after], dim)
        return bias

    def forward(self, named: dict[str, Any]) -> dict[str, Any]:
        """The block's named arguments, as they are to be for the longer sequence."""
        longer = {
            name: self.extended(value) if isinstance(value, Tensor) and name != "rope" else value
            for name, value in named.items()
        }
        if self.bias is not None:
            shared = longer.get(self.name)
            longer[self.name] = self.bias if shared is None else self.bias + shared
        return longer


def keeps_values(module: nn.Module) -> bool:
    """Whether a module in eval mode computes once from its parameters, and not again when they
    change: LeViT's attention does, until its mode is set."""
    return hasattr(module, "attention_bias_cache")


def sees_images(layer: str) -> bool:
    """Whether the layer of this name sees images: some make biases of relative positions, the same
    for every image."""
    return not any(part in ("cpb_mlp", "rel_pos") for part in layer.split("."))


def patch_weight(backbone: Any, method: str) -> Tensor:
    """The weight of the layer that makes tokens of patches [D, ...].

    Raises `VTError` for a network that has none.
    """
    embed = getattr(backbone, "patch_embed", getattr(backbone, "embeds", None))
    weight = getattr(getattr(embed, "proj", None), "weight", None)
    if weight is None:
        raise VTError(
            f"{method}: expected a ViT, which makes tokens of patches, found "
            f"{type(backbone).__name__}; tune this backbone with another method"
        )
    return weight


def with_fewer_blocks(backbone: Any, depth: int) -> Any:
    """A copy of a ViT with `depth` of its blocks, evenly spaced, the last one among them."""
    shallow, total = copy.deepcopy(backbone), len(backbone.blocks)
    kept = [shallow.blocks[round((i + 1) * total / depth) - 1] for i in range(depth)]
    listed = isinstance(shallow.blocks, nn.ModuleList)
    shallow.blocks = nn.ModuleList(kept) if listed else nn.Sequential(*kept)
    return shallow
