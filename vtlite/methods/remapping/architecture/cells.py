"""The search space of all architecture methods: a small network of equal cells on the maps of a
backbone's first, frozen stages.

    images -> first stages (frozen) -> 1x1 -> cell 1 -> cell 2 -> ... -> mean over places -> head

    cell(s0, s1) = concat(x_2, ..., x_{n+1}),   x_0, x_1 = 1x1(s0), 1x1(s1),   x_j = sum_{i<j} o_ij(x_i)

Each edge (i, j) has all candidate operations as modules. While the cell is searched they are mixed,
o_ij(x) = sum_k softmax(alpha_ij)_k o_k(x); once it is found those in `kept` are summed, at most one
an edge for most methods. So a found network has the same tensors as a searched one, and a delta, a
copy or a checkpoint needs nothing beside them; `found_network` drops what is not used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from vtlite.backbones.base import VisionBackbone, about
from vtlite.backbones.stages import stage_names
from vtlite.data.items import as_items, batches
from vtlite.method import Backbone, Tuned, short
from vtlite.ops.mixed_op import mixed_op
from vtlite.storage import VTError, unknown
from vtlite.training import to_device


# The candidates
# -------------------------------------------------------------------------------------------------
class Zero(nn.Module):
    """Nothing: x -> 0, of the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def norm(channels: int) -> nn.BatchNorm2d:
    """Without a scale of its own, which would speak into the mixture's weights."""
    return nn.BatchNorm2d(channels, affine=False)


def convolution(channels: int, size: int, dilation: int = 1) -> nn.Sequential:
    """ReLU, a convolution of each channel by itself, a 1x1 convolution, norm."""
    around = dilation * (size - 1) // 2
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, size, 1, around, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        norm(channels),
    )


def fitting(before: int, channels: int) -> nn.Sequential:
    """What brings an input of a cell to its width."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(before, channels, 1, bias=False), norm(channels))


NONE, SKIP = "none", "skip_connect"
OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    NONE: lambda c: Zero(),
    SKIP: lambda c: nn.Identity(),
    "avg_pool_3x3": lambda c: nn.Sequential(
        nn.AvgPool2d(3, 1, 1, count_include_pad=False), norm(c)
    ),
    "max_pool_3x3": lambda c: nn.Sequential(nn.MaxPool2d(3, 1, 1), norm(c)),
    "sep_conv_3x3": lambda c: nn.Sequential(convolution(c, 3), convolution(c, 3)),
    "sep_conv_5x5": lambda c: nn.Sequential(convolution(c, 5), convolution(c, 5)),
    "dil_conv_3x3": lambda c: convolution(c, 3, dilation=2),
    "dil_conv_5x5": lambda c: convolution(c, 5, dilation=2),
}


def gumbel_like(x: Tensor) -> Tensor:
    """Independent Gumbel noise: -log(-log u), u ~ U(0, 1) kept away from both ends."""
    return -(-torch.rand_like(x).clamp(1e-6, 1 - 1e-6).log()).log()


def edges(nodes: int) -> list[tuple[int, int]]:
    """(from, to) in the order of the rows of alpha; 0 and 1 are the cell's inputs."""
    return [(i, j) for j in range(2, nodes + 2) for i in range(j)]


# The network
# -------------------------------------------------------------------------------------------------
class Cell(nn.Module):
    """Nodes that sum what reaches them: two maps [B, *, h, w] -> [B, nodes * C, h, w]."""

    def __init__(self, before: tuple[int, int], channels: int, nodes: int, names: Any) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(fitting(width, channels) for width in before)
        self.edges = nn.ModuleList(
            nn.ModuleList(OPERATIONS[name](channels) for name in names) for _ in edges(nodes)
        )
        self.nodes = nodes

    def forward(self, s0: Tensor, s1: Tensor, mixed: Callable[..., Tensor | None]) -> Tensor:
        """`mixed(e, candidates, x)` is what edge e makes of x, None where there is no edge."""
        states = [fit(s) for fit, s in zip(self.inputs, (s0, s1), strict=True)]
        for e, (source, target) in enumerate(edges(self.nodes)):
            if target == len(states):
                states.append(torch.zeros_like(states[0]))
            if (y := mixed(e, self.edges[e], states[source])) is not None:
                states[target] = states[target] + y
        return torch.cat(states[2:], 1)


class Supernet(VisionBackbone):
    """The frozen first stages of a backbone and, in place of the others, cells: images [B, C, S, S]
    -> maps [B, nodes * channels, h, w]."""

    kept: Tensor
    found: Tensor
    trace: Tensor

    def __init__(
        self,
        base: Backbone,
        width: int,
        operations: Sequence[str],
        channels: int,
        nodes: int,
        cells: int,
        epochs: int,
    ) -> None:
        super().__init__()
        self.base: Backbone = base
        self.in_chans, self.input_size = about(base).in_chans, about(base).input_size
        self.names, self.nodes, self.num_features = tuple(operations), nodes, nodes * channels
        self.stem = nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), norm(channels))
        widths = [channels, channels, *[self.num_features] * cells]
        self.cells = nn.ModuleList(
            Cell((widths[max(1, i)], widths[i + 1]), channels, nodes, self.names)
            for i in range(cells)
        )
        shape = (len(edges(nodes)), len(self.names))
        self.alpha = nn.Parameter(1e-3 * torch.randn(shape))
        self.register_buffer("kept", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("found", torch.zeros((), dtype=torch.bool))
        # `weights` at the end of each epoch of the search
        self.register_buffer("trace", torch.zeros(epochs, *shape))
        self.active = cells  # how many of the cells are used
        self.learns = True  # whether alpha does, or the weights alone
        self.held_out: Any = None  # what alpha learns from; there only while it does
        self.look()

    def train(self, mode: bool = True) -> Supernet:
        """As in torch; and look at `kept`, which may have been loaded."""
        super().train(mode)
        self.look()
        return self

    def look(self) -> None:
        """Read off `kept` and `found` what there is to compute."""
        real = not self.kept.is_meta
        kept = self.kept if real else torch.ones_like(self.kept, device="cpu")
        self.open = [[k for k, is_kept in enumerate(row) if is_kept] for row in kept.tolist()]
        undecided = any(len(some) > 1 for some in self.open)
        self.searching = undecided and not (real and bool(self.found))

    def keep(self, kept: Tensor, found: bool = False) -> None:
        """Go on with these candidates [edges, operations] alone; `found`: the search is over."""
        self.kept.copy_(kept)
        self.found.fill_(found)
        self.look()

    @torch.no_grad()
    def weights(self) -> Tensor:
        """softmax(alpha) over the candidates that are kept [edges, operations]; 0 for others."""
        return self.alpha.masked_fill(~self.kept, -torch.inf).softmax(1).nan_to_num(0.0)

    def logits(self) -> Tensor:
        """What the candidates are mixed by in this batch [edges, operations]."""
        return self.alpha

    def operate(self, k: int, operation: nn.Module, x: Tensor) -> Tensor:
        """What candidate k of an edge makes of x."""
        return operation(x)

    def mix(self, made: list[Tensor], logits: Tensor, x: Tensor) -> Tensor:
        """The mixture of what the candidates of an edge have made of x."""
        return mixed_op(made, logits)

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, nodes * channels, h, w]"""
        logits = self.logits() if self.searching else None

        def mixed(e: int, candidates: nn.ModuleList, x: Tensor) -> Tensor | None:
            made = [self.operate(k, candidates[k], x) for k in self.open[e]]
            if logits is not None and len(made) > 1:
                return self.mix(made, logits[e, self.open[e]], x)
            return sum(made[1:], start=made[0]) if made else None

        s0 = s1 = self.stem(about(self.base).feature_maps(images))
        for cell in self.cells[: self.active]:
            s0, s1 = s1, cell(s0, s1, mixed)
        return s1

    def forward_head(self, maps: Tensor, pre_logits: bool = True) -> Tensor:
        """[B, D, h, w] -> [B, D]"""
        return maps.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def feature_maps(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, D, h, w]"""
        return self.forward_features(images)

    def stage_names(self) -> list[str]:
        """The cells."""
        return [f"cells.{i}" for i in range(len(self.cells))]

    def draw(self, count: int) -> Any:
        """A random batch of the held-out data: inputs and targets."""
        some = torch.randint(len(self.held_out), (count,), device="cpu").tolist()
        drawn = next(iter(batches([self.held_out[i] for i in some], count)))
        return [to_device(each, self.alpha.device) for each in drawn]


class Passing(nn.Module):
    """Stands where a stage was, and passes on what it is given."""

    def forward(self, x: Tensor, *_: Any, **named: Any) -> Tensor:
        return x


@torch.no_grad()
def first_stages(backbone: Backbone, stages: int, method: str) -> tuple[Backbone, int]:
    """The backbone with only the first of its stages, and the width of their maps.

    Raises `VTError` for a network whose first stages make no map by themselves.
    """
    for name in stage_names(backbone)[stages:]:
        parent, _, place = name.rpartition(".")
        setattr(backbone.get_submodule(parent), place, Passing())
    like, said = next(backbone.parameters()), about(backbone)
    size = said.input_size or (64, 64)
    images = torch.zeros(2, said.in_chans or 3, *size, dtype=like.dtype, device=like.device)
    try:
        found = backbone.forward_features(images)
        if found.ndim == 4 and backbone.num_features not in (found.shape[1], found.shape[3]):
            backbone.num_features = found.shape[1]  # a CNN's later stages are wider
        maps = said.feature_maps(images)
    except (RuntimeError, AssertionError, ValueError, AttributeError, TypeError) as error:
        raise VTError(
            f"{method}: expected a backbone with first stages that make a map by themselves, found "
            f"{type(backbone).__name__}, where they do not; choose another backbone, e.g. a ResNet "
            "or a ViT"
        ) from error
    return backbone, maps.shape[1]


# Cells as names
# -------------------------------------------------------------------------------------------------
def strongest_cell(weights: Tensor, nodes: int, names: Sequence[str]) -> Tensor:
    """softmax(alpha) [edges, operations] -> what is kept, in the same shape: at each node the two
    edges with the largest weights, of each its largest; "none" is no candidate."""
    weights = weights.clone()
    if NONE in names:
        weights[:, [*names].index(NONE)] = -1
    best = weights.max(1)
    kept = torch.zeros_like(weights, dtype=torch.bool)
    for node in range(2, nodes + 2):
        at = [e for e, (_, target) in enumerate(edges(nodes)) if target == node]
        for e in sorted(at, key=lambda e: -best.values[e].item())[:2]:
            kept[e, best.indices[e]] = True
    return kept


def as_names(kept: Tensor, names: Sequence[str]) -> tuple[str, ...]:
    """One text an edge: its operation, several joined by "+", or "none"."""
    rows = [[name for name, k in zip(names, row, strict=True) if k] for row in kept.tolist()]
    return tuple("+".join(name for name in row if name != NONE) or NONE for row in rows)


def as_kept(cell: Sequence[str], nodes: int, names: Sequence[str], method: str) -> Tensor:
    """The reverse of `as_names`. Raises `VTError` for another number of edges or unknown names."""
    if len(cell) != len(edges(nodes)):
        raise VTError(
            f"{method}: expected a cell of {nodes} nodes as the names of {len(edges(nodes))} "
            f'operations, one an edge, found {len(cell)}; write "none" where there is no edge'
        )
    kept = torch.zeros(len(cell), len(names), dtype=torch.bool)
    for e, text in enumerate(cell):
        for name in text.split("+"):
            if name not in names and name != NONE:
                raise unknown(f"operation of {method}", name, [NONE, *names])
            if name != NONE:
                kept[e, [*names].index(name)] = True
    return kept


def halves(data: Any, method: str) -> tuple[Any, Any]:
    """Two halves of the items, always the same. Raises `VTError` for fewer than two."""
    if len(data) < 2:
        raise VTError(
            f"{method}: expected at least two images, for the weights and for the architecture to "
            f"learn from, found {len(data)}; give more"
        )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    return as_items(Subset(data, order[::2]), method), as_items(Subset(data, order[1::2]), method)


def anew(model: Tuned, kept: Tensor, found: bool = True) -> None:
    """Go on with these candidates [edges, operations] alone, and start all weights again."""
    net = searched(model)
    net.keep(kept, found)
    for part in (net.stem, net.cells, model.head):
        for module in part.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset:
                reset()


def searched(model: Tuned) -> Supernet:
    """The searched part of a model. Raises `VTError` for one of another method."""
    if isinstance(model, Tuned):
        network = getattr(model.network, "backbone", None)
        if isinstance(network, Supernet):
            return network
        raise VTError(
            f"expected a model of a searched architecture, found one of {short(model.method.key)}; "
            'tune it with a method such as "darts"'
        )
    raise VTError(
        f"expected a model of a searched architecture, found {type(model).__name__}; tune one with "
        'a method such as "darts"'
    )


def cell_of(model: Tuned) -> tuple[str, ...]:
    """The cell of a model, one text an edge; of one that is not searched yet, what DARTS would
    read."""
    net = searched(model)
    kept = net.kept
    if not bool(net.found):
        kept = strongest_cell(net.weights(), net.nodes, net.names)
    return as_names(kept.cpu(), net.names)


def graph(cell: Sequence[str]) -> tuple[dict[str, tuple[float, float]], list[tuple[str, str, str]]]:
    """What to draw of a cell: its points by name, with places in [0, 1], and its arrows (from, to,
    operation). A node stands one step to the right of the last one that it reads."""
    nodes = next(n for n in range(1, len(cell) + 1) if len(edges(n)) >= len(cell))
    arrows = [
        (i, j, name)
        for (i, j), text in zip(edges(nodes), cell, strict=True)
        for name in text.split("+")
        if name != NONE
    ]
    steps = [0, 0]
    for node in range(2, nodes + 2):
        steps.append(1 + max((steps[i] for i, j, _ in arrows if j == node), default=0))
    labels = ["cell before last", "last cell", *map(str, range(1, nodes + 1)), "output"]
    steps.append(max(steps) + 1)
    arrows += [(node, nodes + 2, "") for node in range(2, nodes + 2)]
    rows = [sum(s == step for s in steps[:i]) for i, step in enumerate(steps)]
    places = {}
    for label, step, row in zip(labels, steps, rows, strict=True):
        height = (row + 1) / (steps.count(step) + 1)
        # alone in a line the arrows would hide one another
        if steps.count(step) == 1 and step < steps[-1]:
            height += 0.22 * (-1) ** step
        places[label] = (step / steps[-1], height)
    return places, [(labels[i], labels[j], name) for i, j, name in arrows]


def found_network(model: Tuned) -> nn.Module:
    """A copy of the model's network without the candidates that the found cell does not use: same
    outputs, fewer numbers. Raises `VTError` before a search."""
    if not bool(searched(model).found):
        raise VTError(
            "expected a found cell, found a search that has not ended; train the model first: "
            "vt.fit(model)"
        )
    network: Any = copy.deepcopy(model.network)
    for cell in network.backbone.cells:
        for candidates, used in zip(cell.edges, network.backbone.open, strict=True):
            for k in range(len(candidates)):
                if k not in used:
                    candidates[k] = nn.Identity()
    return network
