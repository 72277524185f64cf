"""Drawings of lessons 06."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

from vtlite.methods.remapping.weight.steps import (
    ADDED,
    BESIDE,
    DEEPER,
    NARROWER,
    SHORTER,
    WIDER,
    blocks_of,
    places,
    take_step,
)
from vtlite.plots import _FROZEN, _LINES, _TRAINED, _arrow, _box, _image

# Distillation (lesson 06a)
# -------------------------------------------------------------------------------------------------

# What is transferred -> the methods that do it, and the layers (0 to 3, 4 is the answer) whose arrow
# is drawn.
TRANSFERRED: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "answers": (("kd", "normalized_kd", "dkd", "distillation_token"), (4,)),
    "features": (("fitnet", "dfa", "activation_boundaries"), (1, 3)),
    "attention": (("attention_transfer",), (0, 1, 2, 3)),
    "relations": (("rkd",), (3,)),
}


def transfers() -> Figure:
    """What a student can be taught, a panel each: the frozen teacher above, the student that trains
    below, dashed arrows from what is shown to what learns it, and the methods that do so."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 5.4), layout="constrained")
    for ax, (what, (methods, layers)) in zip(axes.flat, TRANSFERRED.items(), strict=True):
        for y, height, colour, whose in (
            (2.4, 1.3, _FROZEN, "teacher"),
            (0, 0.7, _TRAINED, "student"),
        ):
            ax.text(-0.2, y + height / 2, whose, ha="right", va="center", fontsize=9)
            for layer in range(5):
                text = "answer" if layer == 4 else ""
                _box(ax, 1.6 * layer, y, 1.2, height, text, colour, fontsize=8)
                if layer:
                    _arrow(ax, (1.6 * layer - 0.4, y + height / 2), (1.6 * layer, y + height / 2))
        for layer in layers:
            x = 1.6 * layer + 0.6
            if what == "attention":
                _spot(ax, x, 3.05, 0.9)
                _spot(ax, x, 0.35, 0.5)
            if what == "relations":
                _triangle(ax, x, 3.05, 0.42)
                _triangle(ax, x, 0.35, 0.24)
            _arrow(ax, (x, 2.4), (x, 0.7), ls="--")
        ax.set(xlim=(-2, 8), ylim=(-0.9, 4), title=what)
        ax.text(3.8, -0.55, ", ".join(methods), ha="center", va="center", fontsize=9)
        ax.axis("off")
    return figure


def _spot(ax: Axes, x: float, y: float, side: float) -> None:
    """A map of four by four places, strong in one corner."""
    places = np.add.outer(np.arange(4), np.arange(4))[::-1]
    ax.imshow(
        places,
        cmap="cividis",
        extent=(x - side / 2, x + side / 2, y - side / 2, y + side / 2),
        zorder=3,
    )
    ax.set_aspect("auto")


def _triangle(ax: Axes, x: float, y: float, size: float) -> None:
    """Three images and the distances between them."""
    corners = x + size * np.array([-1, 1, 0.3, -1]), y + size * np.array([-0.9, -0.5, 1, -0.9])
    ax.plot(*corners, color="black", marker="o", ms=3, lw=1)


def soft_labels(
    images: Tensor, answers: dict[str, Tensor], names: Sequence[str], true: Sequence[int]
) -> Figure:
    """Images [B, 3, S, S] in rows, and beside each the shares that a teacher gives to every class,
    one panel for each entry of `answers`, [B, C] each; the true class has another colour."""
    figure, axes = plt.subplots(
        len(images),
        1 + len(answers),
        figsize=(2.4 * len(answers) + 1.6, 1.5 * len(images)),
        width_ratios=[0.8, *[1.0] * len(answers)],
        layout="constrained",
        squeeze=False,
    )
    for b, row in enumerate(axes):
        _image(row[0], images[b], title=names[true[b]])
        colours = [_LINES[1] if c == true[b] else _LINES[2] for c in range(len(names))]
        for column, (ax, (title, shares)) in enumerate(zip(row[1:], answers.items(), strict=True)):
            ax.barh(range(len(names)), shares[b].tolist(), color=colours)
            ax.set(yticks=range(len(names)), xlim=(0, 1), xticks=[0, 0.5, 1])
            ax.set_yticklabels([] if column else list(names), fontsize=6)
            ax.tick_params(axis="x", labelsize=6)
            ax.invert_yaxis()
            ax.spines[["top", "right"]].set_visible(False)
            if not b:
                ax.set_title(title, fontsize=9)
    return figure


def map_rows(images: Tensor, maps: dict[str, Tensor]) -> Figure:
    """Images [B, 3, S, S] in columns, and below them, for each name, maps [B, h, w], each from its
    own least (dark) to its greatest value."""
    figure, axes = plt.subplots(
        1 + len(maps),
        len(images),
        figsize=(1.2 * len(images) + 1, 1.25 * (1 + len(maps))),
        layout="constrained",
        squeeze=False,
    )
    for b, image in enumerate(images):
        _image(axes[0, b], image)
        for ax, (name, shown) in zip(axes[1:, b], maps.items(), strict=True):
            ax.imshow(shown[b].numpy(), cmap="cividis")
            ax.set(xticks=[], yticks=[])
            if not b:
                ax.set_ylabel(name, fontsize=9)
    return figure


# Growing (lesson 06b)
# -------------------------------------------------------------------------------------------------


def net2net_idea() -> Figure:
    """Two units and what reads them; then one unit copied, its outgoing weight divided; then a
    layer that is the identity in between."""
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
    inner, outer = [(0.25, 0.55), (0.75, 0.55)], (0.5, 0.92)
    wider = [(0.15, 0.55), (0.5, 0.55), (0.85, 0.55)]
    _units(axes[0], "small", [inner], outer, [["w1", "w2"]])
    _units(axes[1], "wider: unit 1 has a copy", [wider], outer, [["w1/2", "w2", "w1/2"]], (2,))
    deep = [(0.25, 0.35), (0.75, 0.35)], [(0.25, 0.65), (0.75, 0.65)]
    _units(axes[2], "deeper: the identity between", deep, outer, [["1", "1"], ["w1", "w2"]], (0, 1))
    return figure


def _units(
    ax: Axes,
    title: str,
    layers: Sequence[Sequence[tuple[float, float]]],
    outer: tuple[float, float],
    weights: Sequence[Sequence[str]],
    new: tuple[int, ...] = (),
) -> None:
    """Layers of units from the input at the bottom to one output; `new` ones of the last are blue."""
    for at in layers[0]:
        _arrow(ax, (0.5, 0.05), (at[0], at[1] - 0.06))
    for below, above, names in zip(layers, [*layers[1:], [outer] * 9], weights, strict=True):
        for at, to, name in zip(below, above, names, strict=False):
            _arrow(ax, (at[0], at[1] + 0.06), (to[0], to[1] - 0.06))
            middle = at[0] + 0.35 * (to[0] - at[0]), at[1] + 0.45 * (to[1] - at[1])
            ax.text(*middle, f" {name} ", ha="right" if at[0] < 0.5 else "left", fontsize=10)
    for layer in layers:
        for i, at in enumerate(layer):
            colour = _TRAINED if layer is layers[-1] and i in new else _FROZEN
            ax.add_patch(Circle(at, 0.06, facecolor=colour, edgecolor="black", zorder=2))
    for at, text in ((outer, "y"), ((0.5, 0.02), "x")):
        ax.text(*at, text, ha="center", va="center", fontsize=11)
    ax.set(xlim=(0, 1), ylim=(-0.03, 1), title=title)
    ax.axis("off")


@dataclass
class Cell:
    """What has become of one block."""

    width: float = 1.0  # of its inside, by that of the block before all steps
    deeper: int = 0
    branches: str = ""
    new: bool = False
    gone: bool = False


def cells_after(backbone: Any, plan: Sequence[tuple[int, int]]) -> list[Cell]:
    """What a plan of steps (kind, place) makes of each block of a backbone."""
    backbone = copy.deepcopy(backbone)
    cells = [Cell() for _ in range(max(blocks_of(backbone, WIDER)) + 1)]
    there = list(cells)  # those that are in the network now, in its order
    for kind, place in plan:
        block = blocks_of(backbone, kind)[place]
        cell, inserts = (
            there[block],
            kind == DEEPER and not hasattr(places(backbone, kind)[place], "conv2"),
        )
        if inserts:  # a Transformer gets a block of its own
            new = Cell(cell.width, new=True)
            there.insert(block + 1, new)
            cells.insert(next(i for i, c in enumerate(cells) if c is cell) + 1, new)
        elif kind == DEEPER:
            cell.deeper += 1
        elif kind == SHORTER:
            cell.gone = True
            del there[block]
        elif kind in (ADDED, BESIDE):
            cell.branches = "+" if kind == ADDED else "||"
        else:
            cell.width *= {WIDER: 1.5, NARROWER: 0.5}[kind]
        take_step(backbone, kind, place)
    return cells


def networks_drawn(networks: dict[str, list[Cell]]) -> Figure:
    """One row of blocks per network, input at the left: a block is as high as its inside is wide,
    has a blue bar for each layer that was added, two halves for two branches, and a dotted line
    where it was left out."""
    figure, axes = plt.subplots(
        len(networks), 1, figsize=(8, 1.15 * len(networks)), layout="constrained", squeeze=False
    )
    most = max(len(cells) for cells in networks.values())
    for (name, cells), ax in zip(networks.items(), axes[:, 0], strict=True):
        for i, cell in enumerate(cells):
            _cell(ax, i, cell)
        ax.plot([-0.6, len(cells) - 0.4], [0, 0], color="black", lw=1, zorder=0)
        ax.text(-0.75, 0, name, ha="right", va="center", fontsize=9)
        ax.set(xlim=(-3, most - 0.3), ylim=(-1.7, 1.7))
        ax.axis("off")
    return figure


def _cell(ax: Axes, x: float, cell: Cell) -> None:
    high = 0.6 * min(cell.width, 2.6)
    box: dict[str, Any] = {"facecolor": "white", "edgecolor": "black", "ls": ":"}
    if not cell.gone:
        box = {"facecolor": _TRAINED if cell.new else _FROZEN, "edgecolor": "black"}
    halves = [(-high, 2 * high)]
    if cell.branches:
        halves = [(-high - 0.1, high), (0.1, high)]
    for low, height in halves:
        ax.add_patch(Rectangle((x - 0.35, low), 0.7, height, **box))
    for i in range(cell.deeper):
        ax.add_patch(Rectangle((x - 0.28 + 0.14 * i, -high), 0.09, 2 * high, color="#0072B2"))
    text = cell.branches or (f"x{cell.width:.3g}" if cell.width != 1 else "")
    ax.text(x, -high - 0.15, text, ha="center", va="top", fontsize=8)
