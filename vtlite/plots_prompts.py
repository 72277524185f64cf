"""Drawings of lessons 03."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

from vtlite.plots import _FROZEN, _TRAINED, _arrow, _box, attention_maps


class VisualPrompt(NamedTuple):
    """One method's answers to three questions."""

    enters: str  # where
    made: str  # of what
    differs: str  # from image to image


VISUAL_PROMPTS = {
    "vp": VisualPrompt("pixels", "free pixels", "the same"),
    "vpt_shallow": VisualPrompt("first block, as tokens", "free tokens", "the same"),
    "vpt_deep": VisualPrompt("every block, as tokens", "free tokens", "the same"),
    "vfpt": VisualPrompt(
        "every block, as tokens", "free tokens, half of them transformed", "the same"
    ),
    "noah": VisualPrompt("every block, as tokens", "free tokens, LoRA and adapters", "the same"),
    "pgn": VisualPrompt("first block, as tokens", "a library, mixed by a small CNN", "another"),
    "evp": VisualPrompt("every block, added", "patches and high frequencies", "another"),
    "pro_tuning": VisualPrompt("four stages, added", "the stage's map, by convolutions", "another"),
    "lpt": VisualPrompt("every block, as tokens", "free tokens and a pool", "picked by key"),
    "s_prompting": VisualPrompt("first block, as tokens", "one set a domain", "picked by key"),
}
_BLOCKS = (3.4, 5.8, 8.2, 10.6)  # where the blocks begin
_LOW = -1.9  # where tokens wait


def prompt_map() -> Figure:
    """Every method on a frozen image and network of four blocks: grey is frozen, blue trains, a
    circle is a lot of tokens, a plus sign adds to the tokens that are there."""
    figure, axes = plt.subplots(2, 5, figsize=(13.5, 4.6), layout="constrained")
    for ax, (name, prompt) in zip(axes.flat, VISUAL_PROMPTS.items(), strict=True):
        pixels = prompt.enters == "pixels"
        _box(ax, 0, -0.9, 1.8, 1.8, "" if pixels else "image", "white", 7)
        _arrow(ax, (1.8, 0), (_BLOCKS[0], 0))
        for left, end in zip(_BLOCKS, (*_BLOCKS[1:], 12.8), strict=True):
            _box(ax, left, -0.6, 1.3, 1.2, "", _FROZEN)
            _arrow(ax, (left + 1.3, 0), (end, 0))
        if pixels:
            _box(ax, 0, -0.9, 1.8, 1.8, "", _TRAINED)
            _box(ax, 0.3, -0.6, 1.2, 1.2, "image", "white", 5)
        else:
            (_added if "added" in prompt.enters else _tokens)(ax, name, prompt)
        ax.set_title(name, fontsize=10, pad=0)
        ax.text(6.2, -4.4, prompt.made, ha="center", fontsize=8)
        ax.text(
            6.2,
            -5.4,
            f"from image to image: {prompt.differs}",
            ha="center",
            fontsize=8,
            color="#555555",
        )
        ax.set(xlim=(-0.6, 13.2), ylim=(-5.7, 3.0), aspect="equal")
        ax.axis("off")
    return figure


def _added(ax: Axes, name: str, prompt: VisualPrompt) -> None:
    """What is added in front of each block: made of the map there, or of the image."""
    for left in _BLOCKS:
        x = left - 0.4
        ax.add_patch(Circle((x, 0), 0.25, facecolor="white", edgecolor="black", lw=0.8, zorder=3))
        ax.text(x, 0, "+", ha="center", va="center", fontsize=8, zorder=4)
        _wire(ax, (x, 0.25), (x, 0.8))
        _box(ax, x - 0.35, 0.8, 0.7, 0.6, "", _TRAINED)
        if name == "pro_tuning":
            _wire(ax, (x - 0.6, 0), (x - 0.6, 1.9), (x, 1.9), (x, 1.4))
        else:
            _wire(ax, (x, 1.4), (x, 2.2))
    if name == "evp":
        _wire(ax, (0.9, 0.9), (0.9, 2.2), (_BLOCKS[-1] - 0.4, 2.2))
        _box(ax, -0.3, 1.65, 2.5, 1.1, "high-pass", "white", 6)


def _tokens(ax: Axes, name: str, prompt: VisualPrompt) -> None:
    """What goes into the blocks beside the image's tokens."""
    deep = "every" in prompt.enters
    for i, left in enumerate(_BLOCKS if deep else _BLOCKS[:1]):
        size = (0.3, 0.55, 0.42, 0.25)[i] if name == "noah" else 0.42
        _token(ax, left + 0.4, size, "~" if name == "vfpt" else "")
        if name == "noah":
            _box(ax, left + 0.4, 0.9, (0.5, 0.25, 0.6, 0.4)[i], 0.5, "", _TRAINED)
        if name == "lpt" and i >= 2:
            _token(ax, left + 1.2, 0.3)
    if not deep:  # and on, beside the image's tokens
        ax.plot([_BLOCKS[0] + 0.9, 11.9], [_LOW, _LOW], color="#0072B2", lw=1.5, ls=":")
    if name == "pgn":
        _wire(ax, (0.9, -0.9), (0.9, _LOW), (_BLOCKS[0], _LOW))
        _box(ax, 0.0, _LOW - 0.55, 1.8, 1.1, "CNN", _TRAINED, 7)
    if prompt.differs == "picked by key":
        left, low = (5.0, _LOW - 1.3) if name == "lpt" else (0.2, _LOW)
        for i in range(3):
            place = (left + 0.7 * i, low)
            ax.add_patch(Circle(place, 0.3, facecolor=_TRAINED, edgecolor="black", lw=0.8))
        end = (9.1, _LOW - 0.3) if name == "lpt" else (_BLOCKS[0] - 0.1, _LOW)
        _arrow(ax, (left + 1.8, low), end, ls=":")


def _token(ax: Axes, x: float, size: float, text: str = "") -> None:
    ax.add_patch(Circle((x, _LOW), size, facecolor=_TRAINED, edgecolor="black", lw=0.8))
    ax.text(x, _LOW, text, ha="center", va="center", fontsize=9)
    _arrow(ax, (x, _LOW + size), (x, -0.6))


def _wire(ax: Axes, *points: tuple[float, float]) -> None:
    ax.plot(*np.array(points).T, color="black", lw=0.8, zorder=0.5)


def looks(images: Tensor, maps: Tensor, names: Sequence[str]) -> Figure:
    """Images [B, 3, S, S], and below each what each of several tokens looks at, maps [B, names, h,
    w]: the patch with the most is clear, one with none white."""
    figure = attention_maps(images, maps)
    for ax, name in zip(figure.axes[len(images) :: len(images)], names, strict=True):
        ax.set_ylabel(name, fontsize=9)
    return figure


def stages_learnt(ways: dict[str, Tensor], stages: Sequence[str]) -> Figure:
    """A panel for each way of learning stages one after another: accuracy [after, on], in each row
    after one more stage, in each column on the test images of one. Below the diagonal lies what was
    learnt before."""
    figure, axes = plt.subplots(
        1, len(ways), figsize=(2.8 * len(ways) + 1, 3.1), layout="constrained", squeeze=False
    )
    low, high = (100 * float(f(torch.stack(list(ways.values())))) for f in (torch.amin, torch.amax))
    places = range(len(stages))
    for ax, (name, values) in zip(axes[0], ways.items(), strict=True):
        drawn = ax.imshow(100 * values.numpy(), cmap="cividis", vmin=low, vmax=high)
        for (row, column), value in np.ndenumerate(100 * values.numpy()):
            shade = "black" if value > (low + high) / 2 else "white"
            ax.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=shade)
        for i in places:
            ax.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="white", lw=2))
        ax.set(title=name, yticks=places, xlabel="tested on")
        ax.set_xticks(places, stages, rotation=30, ha="right", rotation_mode="anchor")
        ax.set_yticklabels(stages if ax is axes[0, 0] else [])
    axes[0, 0].set_ylabel("after learning")
    figure.colorbar(drawn, ax=axes, label="test accuracy (%)", shrink=0.9)
    return figure


def sizes_by_block(sizes: dict[str, Sequence[int]]) -> Figure:
    """For each kind of module a panel of bars: its size in each block, counted from 1."""
    figure, axes = plt.subplots(
        1, len(sizes), figsize=(9, 2.4), layout="constrained", sharey=True, squeeze=False
    )
    for ax, (kind, values) in zip(axes[0], sizes.items(), strict=True):
        drawn = ax.bar(range(1, len(values) + 1), list(values), color="#0072B2")
        ax.bar_label(drawn, fontsize=8, padding=1)
        ax.set(title=kind, xlabel="block", xticks=range(1, len(values) + 1))
        ax.margins(y=0.15)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("size")
    return figure
