"""Drawings of lessons 03."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from vtlite.plots import _FROZEN, _TRAINED, _box, _image

_NAME = "clock"
# What stands before and behind the name of a class; v are learned.
LANGUAGE_PROMPTS = {
    "a template": (("an", "emoji", "of"), ()),
    "CoOp, name at the end": (("v1", "v2", "v3"), ()),
    "CoOp, in the middle": (("v1",), ("v2", "v3")),
    "CoOp, in front": ((), ("v1", "v2", "v3")),
    "CoOp, per class": (("v1 clock", "v2 clock", "v3 clock"), ()),
    "CoCoOp": (("v1 + image", "v2 + image", "v3 + image"), ()),
}


def prompt_texts() -> Figure:
    """The text of one class as the text tower reads it, one row a way to write it: grey are fixed
    words, blue is learned, white the name of the class."""
    figure, ax = plt.subplots(figsize=(8.2, 3.3), layout="constrained")
    for row, (label, (before, behind)) in enumerate(LANGUAGE_PROMPTS.items()):
        y = -0.75 * row
        tokens = [("start", _FROZEN), *((w, "") for w in before), (_NAME, "white")]
        tokens += [*((w, "") for w in behind), ("end", _FROZEN)]
        ax.text(-0.2, y + 0.25, label, ha="right", va="center", fontsize=9)
        for i, (word, colour) in enumerate(tokens):
            shade = colour or (_TRAINED if word[0] == "v" else _FROZEN)
            _box(ax, 1.3 * i, y, 1.2, 0.5, word, shade, 8)
    ax.set(xlim=(-3.2, 7.9), ylim=(-0.75 * (len(LANGUAGE_PROMPTS) - 1) - 0.1, 0.6))
    ax.axis("off")
    return figure


def projections(panels: dict[str, tuple[Tensor, Tensor, Tensor]]) -> Figure:
    """A panel for each (gradient, general direction, what is used), three vectors of any shape:
    the plane of the first two, in which the third lies. What points into the grey half is against
    the general direction. Lengths are in units of the gradient's, but for the direction."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.2 * len(panels), 2.5), layout="constrained", squeeze=False
    )
    for ax, (title, vectors) in zip(axes[0], panels.items(), strict=True):
        gradient, general, used = (v.flatten().double() for v in vectors)
        first = general / general.norm()
        rest = gradient - gradient @ first * first
        second = rest / rest.norm()
        ax.axvspan(-1.25, 0, color="#EEEEEE")
        ax.axvline(0, color="black", lw=0.8, ls=":")
        for vector, name, colour, width in (
            (first, "zero-shot CLIP", "#E69F00", 0.014),
            (gradient / gradient.norm(), "labels", "#000000", 0.014),
            (used / gradient.norm(), "used", "#0072B2", 0.026),
        ):
            x, y = float(vector @ first), float(vector @ second)
            order = 1 if name == "used" else 2  # below, as it may be the same arrow
            ax.quiver(
                [0], [0], [x], [y], angles="xy", scale_units="xy", scale=1, color=colour,
                width=width, zorder=order, label=name,
            )  # fmt: skip
        ax.set(xlim=(-1.25, 1.25), ylim=(-0.25, 1.2), aspect="equal", xticks=[], yticks=[])
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("against    |    with zero-shot CLIP", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def place_maps(images: Tensor, maps: Tensor, titles: Sequence[Sequence[str]]) -> Figure:
    """Images [B, 3, S, S] in [-1, 1] in rows, and beside each its maps [B, N, h, w] under their
    titles: how many times its even share each place has, from none over 1 (white) to the most."""
    B, N = maps.shape[:2]
    figure, axes = plt.subplots(
        B, N + 1, figsize=(1.35 * (N + 1) + 1, 1.5 * B), layout="constrained", squeeze=False
    )
    most = max(1.01, float(maps.max()))
    for row, image, own, names in zip(axes, images, maps, titles, strict=True):
        _image(row[0], image)
        for ax, each, name in zip(row[1:], own.numpy(), names, strict=True):
            shades = np.where(each < 1, each - 1, (each - 1) / (most - 1))  # -1 to 0, 0 to 1
            drawn = ax.imshow(shades, cmap="PuOr_r", vmin=-1, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.set_title(name, fontsize=8, pad=2)
    bar = figure.colorbar(
        drawn, ax=axes, shrink=0.8, ticks=[-1, 0, 1], label="times the even share"
    )
    bar.ax.set_yticklabels(["0", "1", f"{most:.1f}"])
    return figure
