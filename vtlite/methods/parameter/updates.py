"""What the methods of parameter tuning share: a frozen linear layer, some rows of which get a
learned update.

Letters: K inputs and N outputs of the layer, G updates side by side (those of q and v in a fused
qkv are two), R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks, stage_names
from vtlite.method import Backbone
from vtlite.ops.lora_linear import lora_linear
from vtlite.storage import VTError


class UpdatedLinear(nn.Module):
    """A frozen linear layer plus an update of some of its equal groups of output rows: x [..., K]
    -> y [..., N].

    `groups` says which groups have one: (True,) is the whole layer, (True, False, True) the queries
    and values of a fused qkv. A subclass says what the update is, once for the forward pass
    (`update`) and once as a matrix for merging (`delta`).
    """

    def __init__(self, base: nn.Linear, groups: Sequence[bool] = (True,)) -> None:
        super().__init__()
        self.base, self.rows = base, base.out_features // len(groups)
        self.starts = [i * self.rows for i, on in enumerate(groups) if on]

    def update(self, x: Tensor, group: int) -> Tensor:
        """The update of one group: x [..., K] -> [..., rows]."""
        raise NotImplementedError

    def delta(self, group: int) -> Tensor:
        """The same as a matrix [rows, K]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for group, start in enumerate(self.starts):
            y[..., start : start + self.rows].add_(
                self.update(x, group)
            )  # `+=` would also copy the slice onto itself
        return y

    def merged(self) -> nn.Linear:
        """The plain layer with W <- W + delta."""
        for group, start in enumerate(self.starts):
            self.base.weight[start : start + self.rows] += self.delta(group)
        return self.base


class LowRankLinear(UpdatedLinear):
    """An update of low rank, W <- W + scale B_g A_g in each group. A subclass says what the factors
    are made of."""

    def __init__(self, base: nn.Linear, scale: float, groups: Sequence[bool] = (True,)) -> None:
        super().__init__(base, groups)
        self.scale = scale

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [G R, K] and B [G rows, R]: those of all groups, one below the other. A may also be
        [R, K], one that all groups share."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return lora_linear(
            x, self.base.weight, self.base.bias, *self.factors(), self.scale, self.starts
        )

    def delta(self, group: int) -> Tensor:
        A, B = self.factors()
        A = A if len(A) == B.shape[1] else A.chunk(len(self.starts))[group]
        return self.scale * B.chunk(len(self.starts))[group] @ A


class SlicedLinear(LowRankLinear):
    """A linear layer cut into D x D slices, x_s -> x_s U core_s V: U [D, R] and V [R, D] are shared
    by all layers (FacT, Aurora).

    The slices lie side by side in the output (3 of qkv, 1 of proj, 4 of fc1) or in the input (4 of
    fc2). A subclass says what the cores are.
    """

    def __init__(
        self, base: nn.Linear, slices: int, U: nn.Parameter, V: nn.Parameter, scale: float
    ) -> None:
        super().__init__(base, scale)
        self.slices, self.U, self.V = slices, U, V
        # fc2: there the slices are summed, and share the one V
        self.slices_inputs = base.in_features > base.out_features

    def cores(self) -> Tensor:
        """[S, R, R], one for each slice."""
        raise NotImplementedError

    def factors(self) -> tuple[Tensor, Tensor]:
        if self.slices_inputs:
            return (self.U @ self.cores()).flatten(0, 1).mT, self.V.mT  # [R, S D], [D, R]
        return self.U.mT, (self.cores() @ self.V).mT.flatten(0, 1)  # [R, D], [S D, R]


def qkv_groups(layer: str, targets: str) -> tuple[bool, ...]:
    """Which thirds of the layer called `layer` get an update: of a fused qkv those in `targets`, of
    any other layer the whole."""
    return tuple(letter in targets for letter in "qkv") if layer == "qkv" and targets else (True,)


def check_rank(method: str, rank: int, rows: int, columns: int) -> None:
    """Raise `VTError` where a matrix [rows, columns] has no room for `rank`."""
    if rank > min(rows, columns):
        raise VTError(
            f"{method}: expected rank at most {min(rows, columns)} for a {rows} x {columns} matrix, found {rank}; lower it"
        )


def replace_layers(
    backbone: Backbone,
    method: str,
    names: Sequence[str],
    make: Callable[[nn.Module, str], nn.Module],
) -> None:
    """Replace each layer in the backbone's blocks or stages whose last name is in `names` by
    `make(layer, last name)`.

    Raises `VTError` where there is none.
    """
    inside = tuple(f"{stage}." for stage in stage_names(backbone))
    found = [
        name
        for name, _ in backbone.named_modules()
        if name.startswith(inside) and name.rpartition(".")[2] in names
    ]
    if not found:
        raise VTError(
            f"{method}: expected a backbone with layers named {' or '.join(names)} in its blocks, found {type(backbone).__name__} without; "
            "choose a Vision Transformer, or other layers"
        )
    for name in found:
        parent, _, last = name.rpartition(".")
        setattr(backbone.get_submodule(parent), last, make(backbone.get_submodule(name), last))


def replace_slices(
    backbone: Backbone,
    method: str,
    rank: int,
    make: Callable[[nn.Linear, int, nn.Parameter, nn.Parameter], SlicedLinear],
) -> None:
    """Replace qkv, proj, fc1 and fc2 in all blocks of a ViT by `make(layer, slices, U, V)` with one
    U [D, rank] and V [rank, D] for all.

    U starts as an nn.Linear, V at zero. Raises `VTError` for a backbone with other widths in other
    blocks.
    """
    D = attention_blocks(backbone, method, plain=True)[0].attn.qkv.in_features
    U = nn.Parameter(torch.empty(D, rank).uniform_(-(D**-0.5), D**-0.5))
    V = nn.Parameter(torch.zeros(rank, D))

    def sliced(layer: nn.Module, name: str) -> SlicedLinear:
        assert isinstance(layer, nn.Linear)
        slices, rest = divmod(max(layer.weight.shape), D)
        if rest or min(layer.weight.shape) != D:
            raise VTError(
                f"{method}: expected weights that divide into {D} x {D} slices, found {name} with {layer.out_features} x "
                f"{layer.in_features}; choose a ViT whose MLP is a whole number of times as wide"
            )
        return make(layer, slices, U, V)

    replace_layers(backbone, method, ("qkv", "proj", "fc1", "fc2"), sliced)
