"""Drawings of lessons 03."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vtlite.plots import _FROZEN, _TRAINED, _arrow, _box, _image

# Who has prompts (t: the text blocks, i: the image blocks), and where those of the images come from.
_TOWERS = {
    "CoOp": ("t", "", "texts only"),
    "IVLP": ("ttt", "iii", "each of its own"),
    "MaPLe": ("ttt", "iii", r"images' from the texts'"),
    "UPT": ("t", "i", "both from one sequence"),
    "CLIP-LoRA": ("", "", "no prompts: the weights"),
}


def both_towers() -> Figure:
    """What trains in the two towers, and how what is put into one hangs together with what is put
    into the other: a text tower at the left, an image tower at the right, tokens from below."""
    figure, axes = plt.subplots(1, len(_TOWERS), figsize=(12, 3.5), layout="constrained")
    for ax, (name, (texts, images, how)) in zip(axes, _TOWERS.items(), strict=True):
        for x, what in ((0.0, "class names"), (3.3, "patches")):
            ax.text(x + 0.7, 0.05, what, ha="center", fontsize=8)
            for i in range(3):
                y = 0.7 + 1.2 * i
                _arrow(ax, (x + 0.7, y - 0.4), (x + 0.7, y))
                _box(ax, x, y, 1.4, 0.8, "", _FROZEN)
                if name == "CLIP-LoRA":
                    _box(ax, x + 0.45, y + 0.15, 0.5, 0.5, r"$BA$", _TRAINED, fontsize=7)
            _arrow(ax, (x + 0.7, 3.9), (2.35, 4.45))
        _between(ax, name, len(texts), len(images))
        ax.text(2.35, 4.6, "cosine", ha="center", fontsize=8)
        ax.set_title(f"{name}: {how}", fontsize=9)
        ax.set(xlim=(-0.1, 4.8), ylim=(-0.1, 5))
        ax.axis("off")
    return figure


def _between(ax: Axes, name: str, texts: int, images: int) -> None:
    """Prompts between the towers, at the blocks that they enter."""
    if name == "UPT":
        _box(ax, 1.75, 1.4, 1.2, 0.5, "attention", _TRAINED, fontsize=7)
        _box(ax, 2.1, 0.35, 0.5, 0.4, "$U$", _TRAINED, fontsize=8)
        _arrow(ax, (2.35, 0.75), (2.35, 1.4))
        _arrow(ax, (1.75, 1.5), (1.4, 1.1))
        _arrow(ax, (2.95, 1.5), (3.3, 1.1))
        return
    for i in range(texts):
        y = 0.9 + 1.2 * i
        _box(ax, 1.65, y, 0.4, 0.4, "$P$", _TRAINED, fontsize=8)
        _arrow(ax, (1.65, y + 0.2), (1.4, y + 0.2))
    for i in range(images):
        y = 0.9 + 1.2 * i
        letter = "$F$" if name == "MaPLe" else r"$\tilde{P}$"
        _box(ax, 2.65, y, 0.4, 0.4, letter, _TRAINED, fontsize=8)
        _arrow(ax, (3.05, y + 0.2), (3.3, y + 0.2))
        if name == "MaPLe":
            _arrow(ax, (2.05, y + 0.2), (2.65, y + 0.2))


def sure_views(
    rows: Sequence[tuple[Tensor, Tensor, int]],
    answers: Sequence[tuple[Sequence[str], Tensor, Tensor]],
    shown: int = 7,
) -> Figure:
    """Test-time prompt tuning, an image a row: its views, the surest first, those that are kept
    framed, and at the right the probabilities of its likely classes before and after.

    A row is (views [V, 3, S, S] in the order of their entropies, entropies [V], how many are kept);
    an answer (names [K], probabilities [K] before, after).
    """
    figure, axes = plt.subplots(
        len(rows),
        shown + 1,
        figsize=(1.15 * shown + 3.6, 1.5 * len(rows)),
        width_ratios=[1] * shown + [1.6],
        layout="constrained",
    )
    for line, (views, entropy, kept), (names, before, after) in zip(
        np.atleast_2d(axes), rows, answers, strict=True
    ):
        # the surest, and towards the end the least sure ones
        places = [*range(shown - 2), len(views) // 2, len(views) - 1]
        for ax, i in zip(line[:-1], places, strict=True):
            _image(ax, views[i], f"{entropy[i]:.2f}", "#0072B2" if i < kept else None)
        y = np.arange(len(names))
        for values, shift, colour, label in (
            (before, -0.2, "#BBBBBB", "before"),
            (after, 0.2, "#0072B2", "after"),
        ):
            line[-1].barh(y + shift, 100 * values.numpy(), 0.38, color=colour, label=label)
        line[-1].set_yticks(y, list(names), fontsize=7)
        line[-1].tick_params(axis="x", labelsize=7)
        line[-1].yaxis.tick_right()
        line[-1].invert_yaxis()
        line[-1].set_xlim(0, 100)
        line[-1].spines[["top", "left"]].set_visible(False)
    line[-1].set_xlabel("probability (%)", fontsize=7)
    handles, labels = line[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    return figure


def attended(images: Tensor, maps: dict[str, Tensor]) -> Figure:
    """Images [B, 3, S, S], and below each, a row per name, the same image through how much a token
    attends to each patch, maps [B, h, w]: the patch with the most is clear, one with none white."""
    figure, axes = plt.subplots(
        len(maps) + 1,
        len(images),
        figsize=(1.15 * len(images) + 1.2, 1.15 * (len(maps) + 1)),
        layout="constrained",
        squeeze=False,
    )
    side = images.shape[-1]
    for b, image in enumerate(images):
        for ax in axes[:, b]:
            _image(ax, image)
        for ax, found in zip(axes[1:, b], maps.values(), strict=True):
            veil = 1 - (found[b] / found[b].max())[..., None]  # [h, w, 1]
            white = np.concatenate([np.ones((*found[b].shape, 3)), veil.numpy()], axis=-1)
            ax.imshow(white, extent=(-0.5, side - 0.5, side - 0.5, -0.5))
    for ax, name in zip(axes[:, 0], ("image", *maps), strict=True):
        ax.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    return figure
