"""What the methods of parameter tuning share: a frozen linear layer, some rows of which get a
learned update.

Letters: K inputs and N outputs of the layer, G updates side by side (those of q and v in a fused
qkv are two), R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.backbones.stages import (
    PROJECTIONS,
    attention_blocks,
    sees_images,
    stage_names,
)
from vtlite.method import Backbone
from vtlite.ops.lora_linear import lora_linear
from vtlite.storage import VTError


class HeldLinear(nn.Module):
    """A frozen linear layer in another module, which is of its size to whoever reads it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features


class UpdatedLinear(HeldLinear):
    """A frozen linear layer plus an update of some of its equal groups of output rows: x [..., K]
    -> y [..., N].

    `groups` says which groups have one: (True,) is the whole layer, (True, False, True) the queries
    and values of a fused qkv. A subclass says what the update is, once for the forward pass
    (`update`) and once as a matrix for merging (`delta`). To whoever reads it, it is a linear
    layer: `weight` [N, K], with the update, and `bias`, `in_features`, `out_features`.
    """

    def __init__(self, base: nn.Linear, groups: Sequence[bool] = (True,)) -> None:
        super().__init__(base)
        self.rows = base.out_features // len(groups)
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

    def change(self) -> Tensor:
        """All updates as one matrix [N, K], zero in the groups without."""
        changes = {start: self.delta(group) for group, start in enumerate(self.starts)}
        none = torch.zeros_like(self.base.weight[: self.rows])
        starts = range(0, self.base.out_features, self.rows)
        return torch.cat([changes.get(start, none) for start in starts])

    @property
    def weight(self) -> Tensor:
        return self.base.weight + self.change()

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def merged(self) -> nn.Linear:
        """The plain layer with W <- W + delta."""
        self.base.weight += self.change()
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
    """Which parts of the layer called `layer` get an update: of a projection of the attention those
    in `targets` (of a fused qkv three), of any other layer, or without targets, the whole."""
    letters = PROJECTIONS.get(layer, "") if targets else ""
    return tuple(letter in targets for letter in letters) or (True,)


def check_rank(method: str, rank: int, rows: int, columns: int) -> None:
    """Raise `VTError` where a matrix [rows, columns] has no room for `rank`."""
    if rank > min(rows, columns):
        raise VTError(
            f"{method}: expected rank at most {min(rows, columns)} for a {rows} x {columns} matrix,"
            f" found {rank}; lower it"
        )


def replace_layers(
    backbone: Backbone,
    method: str,
    names: Sequence[str],
    make: Callable[[Any, str], nn.Module],
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,),
    targets: str = "",
) -> None:
    """Replace each layer in the backbone's blocks or stages whose last name is in `names` by
    `make(layer, last name)`.

    "qkv" stands for the projections of an attention whatever they are called; of those that make
    none of `targets` ("qv": not of keys alone), none is replaced. Raises `VTError` where there is
    no layer of these names, or one that is not of `kinds`.
    """
    wanted = {*names, *PROJECTIONS} if "qkv" in names else {*names}
    inside = tuple(f"{stage}." for stage in stage_names(backbone))
    layers = {
        name: layer
        for name, layer in backbone.named_modules(remove_duplicate=False)
        if name.startswith(inside) and sees_images(name)
    }
    found = {name: layer for name, layer in layers.items() if name.rpartition(".")[2] in wanted}
    found = {name: layer for name, layer in found.items() if _projects(name, layer, names)}
    if not found:
        others = {n.rpartition(".")[2] for n, layer in layers.items() if isinstance(layer, kinds)}
        raise VTError(
            f"{method}: expected a backbone with layers named {' or '.join(names)} in its blocks, "
            f"found {type(backbone).__name__} without; "
            f"choose a Vision Transformer, or layers out of {', '.join(sorted(others)) or 'none'}"
        )
    for name, layer in found.items():
        if not isinstance(layer, kinds):
            raise VTError(
                f"{method}: expected layers of kind {' or '.join(k.__name__ for k in kinds)}, found"
                f" a {type(layer).__name__} called {name} in {type(backbone).__name__}; choose"
                " other layers, or a Vision Transformer"
            )
    made: dict[nn.Module, nn.Module] = {}  # a layer may stand in two places
    for name, layer in found.items():
        parent, _, last = name.rpartition(".")
        if any(qkv_groups(last, targets)):
            made[layer] = made[layer] if layer in made else make(layer, last)
            setattr(backbone.get_submodule(parent), last, made[layer])


def _projects(name: str, layer: nn.Module, names: Sequence[str]) -> bool:
    """Whether a layer was asked for by its own name, or is a projection of an attention."""
    last = name.rpartition(".")[2]
    return last in names or (last in PROJECTIONS and isinstance(layer, nn.Linear))


def replace_slices(
    backbone: Backbone,
    method: str,
    rank: int,
    make: Callable[[nn.Linear, int, nn.Parameter, nn.Parameter], SlicedLinear],
) -> None:
    """Replace the projections of the attention and of the MLP in all blocks of a ViT by
    `make(layer, slices, U, V)` with one U [D, rank] and V [rank, D] for all.

    U starts as an nn.Linear, V at zero. Raises `VTError` for a backbone with other widths in other
    blocks.
    """
    attention_blocks(backbone, method, ("attn.proj", "mlp"), plain=True)
    D = backbone.embed_dim
    U = nn.Parameter(torch.empty(D, rank).uniform_(-(D**-0.5), D**-0.5))
    V = nn.Parameter(torch.zeros(rank, D))

    def sliced(layer: nn.Linear, name: str) -> SlicedLinear:
        slices, rest = divmod(max(layer.weight.shape), D)
        if rest or min(layer.weight.shape) != D:
            raise VTError(
                f"{method}: expected weights that divide into {D} x {D} slices, found {name} with "
                f"{layer.out_features} x {layer.in_features}; "
                "choose a ViT whose MLP is a whole number of times as wide"
            )
        return make(layer, slices, U, V)

    # SwiGLU's first layer is one (fc1), or two
    replace_layers(backbone, method, ("qkv", "proj", "fc1", "fc1_g", "fc1_x", "fc2"), sliced)
