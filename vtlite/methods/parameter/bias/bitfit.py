"""BitFit: the biases alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.stages import stage_names
from vtlite.method import HIGH_LRS, Backbone, Method
from vtlite.methods.parameter.updates import HeldLinear
from vtlite.storage import unknown

THIRDS = ("query", "key", "value")
# A bias by its name in a parameter's own module, where queries, keys and values have theirs apart
# from a layer (BEiT, EVA); and that of a layer for each of them.
APART = {f"{third[0]}_bias": third for third in THIRDS}
SINGLE = {f"{third[0]}{ending}": third for third in THIRDS for ending in ("", "_proj")}


class SplitBias(HeldLinear):
    """A linear layer with its bias in equal parts, so that some can train and others not: x [...,
    K] -> [..., N]."""

    def __init__(self, base: nn.Linear, trains: Sequence[bool]) -> None:
        super().__init__(base)
        parts = base.bias.detach().chunk(len(trains))
        self.parts = nn.ParameterList(
            nn.Parameter(part.clone(), requires_grad=on)
            for part, on in zip(parts, trains, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor:
        return torch.cat(list(self.parts))

    def merged(self) -> nn.Linear:
        """The plain layer with the parts as its bias."""
        self.base.bias.copy_(self.bias)
        return self.base


@dataclass
class BitFit(Method):
    """Train the bias of every layer and norm; all weights stay frozen.

        y = W_0 x + b,   only b trains

    Ben Zaken, Goldberg, Ravfogel, "BitFit: Simple Parameter-efficient Fine-tuning for
    Transformer-based Masked Language-models", ACL 2022, arXiv 2106.10199;
    github.com/benzakenelad/BitFit. On ViT-B/16: 102,912 parameters; 46,080 with the paper's two
    terms, `subset=("query", "fc1")`. A subset is one of layers inside the blocks: the patch
    embedding and the final norm are then frozen. The key bias of an attention layer shifts all
    scores of a query alike, so the softmax cancels it: it trains in name only. The original has no
    learning-rate schedule; here every method shares the one of `fit`, and biases have no weight
    decay.
    """

    lr = 3e-2
    lrs = HIGH_LRS

    subset: tuple[
        str, ...
    ] = ()  # layers whose bias trains, by the last part of their names, or query, key, value; empty: every bias

    def attach(self, backbone: Backbone) -> None:
        biases = {
            name: called(name)
            for name, _ in backbone.named_parameters()
            if name.endswith((".bias", "_bias"))
        }
        if self.subset:
            inside = tuple(f"{stage}." for stage in stage_names(backbone))
            biases = {name: of for name, of in biases.items() if name.startswith(inside)}
            names = set(biases.values())
            names |= set(THIRDS) if "qkv" in names else set()
            for wanted in self.subset:
                if wanted not in names:
                    raise unknown("layer of bitfit's subset", wanted, sorted(names))
        thirds = tuple(third in self.subset for third in THIRDS)
        for name, of in biases.items():
            if not self.subset or of in self.subset:
                backbone.get_parameter(name).requires_grad = True
            elif of == "qkv" and any(thirds):
                layer = name.removesuffix(".bias")
                parent, _, last = layer.rpartition(".")
                split = SplitBias(backbone.get_submodule(layer), thirds)
                setattr(backbone.get_submodule(parent), last, split)


def called(name: str) -> str:
    """What a subset calls the bias of this name: by its layer, or query, key, value."""
    layer, _, last = name.rpartition(".")
    layer = layer.rpartition(".")[2]
    return APART.get(last, SINGLE.get(layer, layer))
