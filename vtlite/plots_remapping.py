"""Drawings of lessons 06."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vtlite.plots import _FROZEN, _LINES, _TRAINED, _arrow, _box, _image

# Distillation ------------------------------------------------------------------------------------

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
