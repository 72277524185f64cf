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

from vtlite.plots import _FROZEN, _TRAINED, _arrow, _box, _image, attention_maps


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
