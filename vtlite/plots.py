"""Every figure, drawn from result rows; one colour and marker per group of the taxonomy, safe for
colour-blind readers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from torch import Tensor

from vtlite.plots_tasks import show_task as show_task
from vtlite.storage import atomic_write

Row = dict[str, Any]

# Okabe and Ito's palette; the order of the survey.
GROUP_STYLE = {
    "finetuning": ("#000000", "s"),
    "prompt": ("#0072B2", "^"),
    "adapter": ("#D55E00", "o"),
    "parameter": ("#009E73", "D"),
    "remapping": ("#CC79A7", "P"),
}
GROUP_LABEL = {
    "finetuning": "fine-tuning",
    "prompt": "prompt tuning",
    "adapter": "adapter tuning",
    "parameter": "parameter tuning",
    "remapping": "remapping tuning",
}
_LINES = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#999999")
# Where the name of a point may be, in points from it, the best first, and which side of it is fixed
# there.
_NAME_PLACES = (
    ((8, 0), "left"),
    ((-8, 0), "right"),
    ((0, 10), "center"),
    ((0, -10), "center"),
    ((6, 10), "left"),
    ((6, -10), "left"),
    ((-6, 10), "right"),
    ((-6, -10), "right"),
    ((0, 20), "center"),
    ((0, -20), "center"),
    ((8, 20), "left"),
    ((8, -20), "left"),
    ((-8, 20), "right"),
    ((-8, -20), "right"),
)
_TRAINED = "#8CC8F0"  # a pale blue that black text stands out from
_FROZEN = "#DDDDDD"


def accuracy_over_parameters(
    rows: Sequence[Row],
    title: str = "",
    ax: Axes | None = None,
    size: tuple[float, float] = (7, 4.2),
) -> Figure:
    """The figure that everyone in this field draws: accuracy over trainable parameters, log axis.

    `rows` have "method" (a key of METHODS), "trainable" and "accuracy" in [0, 1]; a row with
    "spread" gets an error bar of that half height. A dashed line marks full fine-tuning where it is
    among them, a dotted one whatever trains nothing.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=size, layout="constrained")
    seen: set[str] = set()
    for row in (row for row in rows if not row["trainable"]):  # a log axis has no place for it
        name, height = row["method"].split("/")[-1], 100 * row["accuracy"]
        ax.axhline(height, color="#777777", lw=0.8, ls=":", zorder=0)
        ax.annotate(name, (1, height), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    rows = [row for row in rows if row["trainable"]]
    for row in rows:
        group = row["method"].split("/")[0]
        colour, marker = GROUP_STYLE[group]
        label = None if group in seen else GROUP_LABEL[group]
        seen.add(group)
        ax.errorbar(
            row["trainable"],
            100 * row["accuracy"],
            100 * row.get("spread", 0),
            fmt=marker,
            color=colour,
            ms=8,
            capsize=3,
            label=label,
        )
        if row["method"] == "finetuning/full":
            ax.axhline(100 * row["accuracy"], color=colour, lw=0.8, ls="--", zorder=0)
    ax.set(
        xscale="log",
        xlabel="trainable parameters (head included)",
        ylabel="test accuracy (%)",
        title=title,
    )
    ax.margins(0.14, 0.14)
    ax.grid(alpha=0.3)
    if seen:
        ax.legend(fontsize=8, loc="best")
    _name_points(
        ax,
        [(row["trainable"], 100 * row["accuracy"], row["method"].split("/")[-1]) for row in rows],
    )
    return _figure(ax)


def _name_points(ax: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each name beside its point (x, y, name): at the first place inside the axes where it
    covers no other name or point, else at the right."""
    figure = _figure(ax)
    figure.canvas.draw()  # only now it is known where on the page points lie
    frame = ax.get_window_extent()
    at = [ax.transData.transform(point[:2]) for point in points]
    taken = [Bbox([centre - 4, centre + 4]) for centre in at]
    for x, y, name in points:
        text = ax.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=9, va="center"
        )
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])  # over a line
        for place, side in (*_NAME_PLACES, _NAME_PLACES[0]):
            text.xyann = place
            text.set(ha=side)
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def bars(
    names: Sequence[str],
    values: Sequence[float],
    ylabel: str,
    title: str = "",
    errors: Sequence[float] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """One bar per name, its value written above it; `errors` are half heights of the error bars."""
    if ax is None:
        _, ax = plt.subplots(figsize=(1.1 * len(names) + 1.5, 3.2), layout="constrained")
    drawn = ax.bar(list(names), list(values), yerr=errors, color="#0072B2", capsize=3)
    ax.bar_label(drawn, fmt="%.3g", fontsize=8, padding=2)
    ax.set(ylabel=ylabel, title=title)
    if min(values, default=0) < 0:
        ax.margins(y=0.12)  # or the values below zero are written over the axis
        ax.axhline(0, color="black", linewidth=0.8)
    if len(names) > 4:  # or names run into each other
        ax.tick_params(axis="x", rotation=30)
        plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    ax.spines[["top", "right"]].set_visible(False)
    return _figure(ax)


def bar_panels(names: Sequence[str], panels: dict[str, Sequence[float]]) -> Figure:
    """One panel of bars per entry of `panels`, side by side; its key says what the axis shows."""
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.2), layout="constrained")
    for ax, (ylabel, values) in zip(np.ravel(axes), panels.items(), strict=True):
        bars(names, values, ylabel, ax=ax)
    return figure


def learning_curves(
    histories: dict[str, list[dict[str, float]]], value: str = "val_accuracy", title: str = ""
) -> Figure:
    """One line per history of `fit`: `value` over epochs; an accuracy in per cent."""
    share = value.endswith("accuracy")
    figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for i, (name, history) in enumerate(
        histories.items()
    ):  # colour and marker differ, so that neither is needed
        colour, marker = _LINES[i % len(_LINES)], "os^DvPX*"[i % 8]
        ax.plot(
            [row["epoch"] for row in history],
            [100 * row[value] if share else row[value] for row in history],
            marker=marker,
            ms=4,
            color=colour,
            label=name,
        )
    ylabel = value.replace("val_", "validation ") + (" (%)" if share else "")
    ax.set(xlabel="epoch", ylabel=ylabel, title=title)
    ax.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper", frameon=False)
    return figure


def lines(values: dict[str, Sequence[float]], xlabel: str, ylabel: str, first: int = 1) -> Figure:
    """One line per name; x counts from `first`."""
    figure, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for i, (name, y) in enumerate(values.items()):
        ax.plot(
            range(first, first + len(y)),
            list(y),
            marker="os^DvPX*"[i % 8],
            ms=4,
            color=_LINES[i % len(_LINES)],
            label=name,
        )
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper", frameon=False)
    return figure


def line_panels(xs: Sequence[Any], xlabel: str, panels: dict[str, Sequence[float]]) -> Figure:
    """One line per entry of `panels`, each in a panel of its own; its key says what the axis shows.
    The `xs` stand evenly, whatever their values."""
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3), layout="constrained")
    for ax, (ylabel, values) in zip(np.ravel(axes), panels.items(), strict=True):
        ax.plot([f"{x:g}" for x in xs], list(values), marker="o", color="#0072B2")
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.grid(alpha=0.3)
    return figure


def path(
    points: dict[str, tuple[float, float]],
    xlabel: str,
    ylabel: str,
    others: dict[str, tuple[float, float]] | None = None,
) -> Figure:
    """Named points (x, y), joined in their order; `others` are not on the way."""
    figure, ax = plt.subplots(figsize=(5.4, 3.8), layout="constrained")
    ax.plot(*zip(*points.values(), strict=True), marker="o", color="#009E73")
    for x, y in (others or {}).values():
        ax.plot(x, y, marker="s", color="black")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.margins(0.2)
    ax.grid(alpha=0.3)
    _name_points(ax, [(x, y, name) for name, (x, y) in (points | (others or {})).items()])
    return figure


def graph(points: dict[str, tuple[float, float]], arrows: Sequence[tuple[str, str, str]]) -> Figure:
    """Named points and labelled arrows (from, to, label) between them, such as a cell that a search
    has found. Each label has the colour of its own; an arrow without one is grey."""
    figure, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
    labels = list(dict.fromkeys(label for _, _, label in arrows if label))
    colours = dict(zip(labels, _LINES[1:], strict=False))
    for i, (start, end, label) in enumerate(arrows):
        bend = 0.12 * (1 + i % 2) * (-1) ** i if label else 0.0  # so that no two lie on one another
        colour = colours.get(label, "#BBBBBB")
        style = {"arrowstyle": "-|>", "color": colour, "lw": 1.8 if label else 1.0}
        more = {"connectionstyle": f"arc3,rad={bend}", "shrinkA": 18, "shrinkB": 20}
        ax.annotate("", points[end], points[start], arrowprops={**style, **more})
    for label, colour in colours.items():
        ax.plot([], [], color=colour, lw=1.8, label=label)
    box = {"boxstyle": "round", "facecolor": _TRAINED, "edgecolor": "black"}
    for name, (x, y) in points.items():
        ax.text(x, y, name, ha="center", va="center", bbox=box)
    ax.set(xlim=(-0.12, 1.08), ylim=(0, 1))
    ax.axis("off")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def heatmap(
    values: Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    numbers: bool = False,
    marks: dict[tuple[int, int], str] | None = None,
) -> Figure:
    """Values [rows, columns] as shades from zero to the greatest; `numbers` writes each value into
    its cell, `marks` a word into the cell (row, column)."""
    figure, ax = plt.subplots(
        figsize=(min(1.0 * len(columns) + 2, 12), 0.36 * len(rows) + 1.1), layout="constrained"
    )
    drawn = ax.imshow(values.numpy(), cmap="cividis", vmin=0, aspect="auto")
    ax.set(
        xticks=range(len(columns)),
        xticklabels=list(columns),
        yticks=range(len(rows)),
        yticklabels=list(rows),
    )
    if numbers:
        for (row, column), value in np.ndenumerate(values.numpy()):
            light = value < float(values.max()) / 2
            ax.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if light else "black",
            )
    for (row, column), word in (marks or {}).items():
        text = ax.text(column, row, word, ha="center", va="center", fontsize=8)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
    figure.colorbar(drawn, label=label)
    return figure


def tuning_idea() -> Figure:
    """The survey's subject in one picture: a backbone trained once on much data, and re-used on a
    task by training little."""
    figure, ax = plt.subplots(figsize=(8.5, 2.9), layout="constrained")
    rows = (
        (
            1.5,
            ("many images,\nupstream labels", r"backbone $f_\theta$", "upstream head"),
            ("white", _TRAINED, _TRAINED),
        ),
        (
            0.0,
            ("few images,\ntask labels", r"same backbone $f_{\theta_0}$", r"new head $g_w$"),
            ("white", _FROZEN, _TRAINED),
        ),
    )
    for y, texts, colours in rows:
        for x, text, colour in zip((0, 2.6, 5.2), texts, colours, strict=True):
            _box(ax, x, y, 2.0, 1.0, text, colour)
            if x:
                _arrow(ax, (x - 0.6, y + 0.5), (x, y + 0.5))
    _box(ax, 4.05, 0.08, 0.5, 0.3, r"$\phi$", _TRAINED)
    _arrow(ax, (3.6, 1.48), (3.6, 1.02))
    ax.text(3.7, 1.25, "copy the weights", va="center", fontsize=9)
    for y, text in ((2.0, "pre-training:\nonce, long"), (0.5, "tuning:\nper task, short")):
        ax.text(7.4, y, text, va="center", fontsize=10)
    ax.set(xlim=(-0.1, 8.8), ylim=(-0.1, 2.6))
    ax.axis("off")
    return figure


def five_groups() -> Figure:
    """What trains in each of the survey's five groups: a frozen network is grey, what trains is
    blue. Arrows are the way of the tokens, from below."""
    figure, axes = plt.subplots(1, 5, figsize=(11, 3.6), layout="constrained")
    for ax, group in zip(axes, GROUP_STYLE, strict=True):
        inside = "block" if group != "parameter" else "block      "  # room for its change
        _network(ax, 0, inside, _TRAINED if group == "finetuning" else _FROZEN)
        for y in (1.1, 2.5, 3.9):  # the lower edges of the blocks
            if group == "prompt":
                _box(ax, 1.75, y - 0.35, 0.45, 0.5, "P", _TRAINED)
                _arrow(ax, (1.75, y - 0.1), (1.0, y - 0.02))
            elif group == "adapter":
                _box(ax, 1.75, y + 0.2, 1.15, 0.4, "bottleneck", _TRAINED, fontsize=7)
                ax.plot([0.8, 2.32, 2.32], [y - 0.35, y - 0.35, y + 0.2], color="black", lw=1)
                ax.plot([2.32, 2.32], [y + 0.6, y + 0.95], color="black", lw=1)
                _arrow(ax, (2.32, y + 0.95), (0.8, y + 0.95))
            elif group == "parameter":
                _box(ax, 1.0, y + 0.15, 0.5, 0.5, r"$\Delta W$", _TRAINED, fontsize=7)
        if group == "remapping":
            _network(ax, 2.0, "block", _TRAINED, blocks=2)
            _arrow(ax, (1.6, 5.45), (2.0, 4.15), ls="--")
            ax.text(1.85, 4.95, "answers", fontsize=8)
        ax.set_title(GROUP_LABEL[group], fontsize=10, loc="left")
        ax.set(xlim=(-0.1, 3.7), ylim=(0, 5.9))
        ax.axis("off")
    return figure


def _network(ax: Axes, left: float, text: str, colour: str, blocks: int = 3) -> None:
    """A column of blocks under a head, with arrows between them."""
    ax.text(left + 0.8, 0.25, "image tokens", ha="center", va="center", fontsize=8)
    for i in range(blocks + 1):
        y = 1.1 + 1.4 * i
        _arrow(ax, (left + 0.8, y - 0.6), (left + 0.8, y))
        if i < blocks:
            _box(ax, left, y, 1.6, 0.8, text, colour)
        else:
            _box(ax, left, y, 1.6, 0.5, "head", _TRAINED)


# Method -> formula, and its factors as (name, width, height, who owns it); one unit is an eighth of
# the width D of the layer.
_FACTORS: dict[str, tuple[str, tuple[tuple[str, float, float, str], ...]]] = {
    "LoRA": (r"$B\,A$", (("B", 1, 8, "layer"), ("A", 8, 1, "layer"))),
    "KronA": (r"$A \otimes B$", (("A", 2.6, 2.6, "layer"), ("B", 3, 3, "layer"))),
    "KAdaptation": (
        r"$\sum_i a_i^L a_i^R \otimes u_i v_i^\top$",
        (("$a_i$", 2, 2, "shared"), ("$u_i$", 0.5, 4, "layer"), ("$v_i$", 4, 0.5, "layer")),
    ),
    "Compacter": (
        r"$\sum_i A_i \otimes s_i t_i$",
        (("$A_i$", 2, 2, "shared"), ("$s_i$", 0.5, 4, "layer"), ("$t_i$", 4, 0.5, "layer")),
    ),
    "FacT-TT": (
        r"$U\,S_l\,V$",
        (("U", 2, 8, "shared"), ("$S_l$", 2, 2, "layer"), ("V", 8, 2, "shared")),
    ),
    "FacT-TK": (
        r"$U\,(C \cdot p_l)\,V$",
        (
            ("U", 2, 8, "shared"),
            ("C", 2, 2, "shared"),
            ("$p_l$", 0.5, 2, "layer"),
            ("V", 8, 2, "shared"),
        ),
    ),
    "Aurora": (
        r"$U\,\mathrm{diag}(\lambda\,p_l)\,V$",
        (("U", 2, 8, "shared"), ("$p_l$", 0.5, 2, "layer"), ("V", 8, 2, "shared")),
    ),
    "VeRA": (
        r"$\mathrm{diag}(b_l)\,B\,\mathrm{diag}(d_l)\,A$",
        (
            ("$b_l$", 0.5, 8, "layer"),
            ("B", 3, 8, "random"),
            ("$d_l$", 0.5, 3, "layer"),
            ("A", 8, 3, "random"),
        ),
    ),
}
_OWNERS = {
    "layer": ("#8CC8F0", "", "one per layer"),
    "shared": ("#F5C77E", "", "shared by all layers"),
    "random": ("#DDDDDD", "///", "random, frozen"),
}


def update_families() -> Figure:
    """What the change of one D x D matrix is made of in each method, and which factor belongs to
    whom."""
    figure, axes = plt.subplots(2, 4, figsize=(11, 4.6), layout="constrained")
    for ax, (name, (formula, factors)) in zip(axes.flat, _FACTORS.items(), strict=True):
        left = 0.0
        for label, width, height, owner in factors:
            colour, hatch, _ = _OWNERS[owner]
            ax.add_patch(
                Rectangle(
                    (left, -height / 2),
                    width,
                    height,
                    facecolor=colour,
                    edgecolor="black",
                    hatch=hatch,
                )
            )
            thin = width < 1 or height < 1  # no room inside
            ax.text(
                left + width / 2,
                height / 2 + 0.3 if thin else 0,
                label,
                ha="center",
                va="bottom" if thin else "center",
                fontsize=9,
            )
            left += width + 0.6
        ax.set(xlim=(-0.5, 15), ylim=(-4.2, 5.2), aspect="equal")
        ax.set_title(f"{name}: {formula}", fontsize=10)
        ax.axis("off")
    handles = [
        Rectangle((0, 0), 1, 1, facecolor=c, edgecolor="black", hatch=h, label=label)
        for c, h, label in _OWNERS.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def show_patches(image: Tensor, patch: int) -> Figure:
    """An image [3, S, S] in [-1, 1], beside the patches that the ViT reads, at their places and
    numbered in its order."""
    side = image.shape[-1] // patch
    figure = plt.figure(figsize=(6.4, 3), layout="constrained")
    parts: Any = figure.subfigures(1, 2)
    whole, right = parts
    _image(whole.subplots(), image)
    for i, ax in enumerate(right.subplots(side, side).flat):
        row, column = divmod(i, side)
        _image(
            ax,
            image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch],
            title=str(i + 1),
        )
    return figure


def image_rows(rows: dict[str, tuple[Tensor, Sequence[str]]]) -> Figure:
    """Per row its name, and images [B, 3, S, S] in [-1, 1] with a title each."""
    columns = max(len(images) for images, _ in rows.values())
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.2 * columns, 1.35 * len(rows)), layout="constrained"
    )
    for row, (name, (images, titles)) in zip(np.atleast_2d(axes), rows.items(), strict=True):
        for ax, image, title in zip(row, images, titles, strict=True):
            _image(ax, image, title=title)
        row[0].set_ylabel(name, fontsize=9)
    return figure


def attention_maps(images: Tensor, maps: Tensor) -> Figure:
    """Images [B, 3, S, S], and below each, per head, the same image through how much the class token
    attends to each patch, maps [B, H, h, w]: the patch with the most is clear, one with none
    white."""
    count, heads = maps.shape[:2]
    figure, axes = plt.subplots(
        heads + 1, count, figsize=(1.25 * count, 1.25 * (heads + 1)), layout="constrained"
    )
    side = images.shape[-1]
    for b in range(count):
        _image(axes[0, b], images[b])
        for ax, attended in zip(axes[1:, b], maps[b], strict=True):
            _image(ax, images[b])
            veil = 1 - (attended / attended.max())[..., None]  # [h, w, 1]
            white = np.concatenate([np.ones((*attended.shape, 3)), veil.numpy()], axis=-1)
            ax.imshow(white, extent=(-0.5, side - 0.5, side - 0.5, -0.5))
    for h in range(heads):
        axes[h + 1, 0].set_ylabel(f"head {h + 1}")
    return figure


def position_similarity(similarity: Tensor) -> Figure:
    """Cosine similarity [N, N] of the position vectors of N = h h patches: map i compares patch i
    with all patches, and a dot marks patch i itself."""
    side = round(len(similarity) ** 0.5)
    figure, axes = plt.subplots(side, side, figsize=(4.6, 4), layout="constrained")
    for i, ax in enumerate(axes.flat):
        drawn = ax.imshow(similarity[i].view(side, side).numpy(), vmin=-1, vmax=1, cmap="PuOr")
        ax.plot(i % side, i // side, marker=".", color="white")
        ax.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="cosine similarity")
    return figure


def neighbours(queries: Tensor, found: dict[str, tuple[Tensor, Tensor]]) -> Figure:
    """Query images [B, 3, S, S] and, per space, their neighbours: images [B, k, 3, S, S] and
    whether the class is right [B, k].

    A neighbour of the right class has a thick frame, a wrong one is pale.
    """
    widths = [1, *(len(images[0]) for images, _ in found.values())]
    figure = plt.figure(
        figsize=(0.62 * sum(widths) + 0.6, 0.72 * len(queries) + 0.4), layout="constrained"
    )
    parts: Any = figure.subfigures(1, len(widths), width_ratios=widths)
    for row, ax in enumerate(np.ravel(parts[0].subplots(len(queries), 1))):
        _image(ax, queries[row])
    parts[0].suptitle("query", fontsize=9)
    for part, (name, (images, right)) in zip(parts[1:], found.items(), strict=True):
        part.suptitle(name, fontsize=9)
        for (row, i), ax in np.ndenumerate(part.subplots(len(queries), images.shape[1])):
            _image(
                ax,
                images[row, i],
                frame="#0072B2" if right[row, i] else None,
                alpha=1.0 if right[row, i] else 0.45,
            )
    return figure


def grouped_bars(
    values: dict[str, dict[str, Sequence[float]]],
    ylabel: str,
    chance: dict[str, float] | None = None,
) -> Figure:
    """`values[group][name]` are repeated measurements: bars of their means, one hatching per name,
    whiskers from least to greatest.

    `chance[group]` is marked by a dotted line across the group.
    """
    figure, ax = plt.subplots(figsize=(1.9 * len(values) + 1.5, 3.2), layout="constrained")
    names = list(next(iter(values.values())))
    for i, (name, colour, hatch) in enumerate(
        zip(names, ("#BBBBBB", "#E69F00", "#0072B2", "#CC79A7"), ("", "//", "", ".."), strict=False)
    ):
        x = np.arange(len(values)) + (i - (len(names) - 1) / 2) * 0.8 / len(names)
        runs = [100 * np.asarray(group[name]) for group in values.values()]
        mean = np.array([r.mean() for r in runs])
        spread = np.array([[m - r.min(), r.max() - m] for m, r in zip(mean, runs, strict=True)]).T
        drawn = ax.bar(
            x,
            mean,
            0.75 / len(names),
            yerr=spread if spread.any() else None,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            capsize=3,
            label=name,
        )
        ax.bar_label(drawn, fmt="%.0f", fontsize=8, padding=1)
    for i, group in enumerate(values):
        if chance:
            ax.plot(
                [i - 0.45, i + 0.45],
                [100 * chance[group]] * 2,
                ":k",
                lw=1.2,
                label=None if i else "chance",
            )
    ax.set(xticks=range(len(values)), xticklabels=list(values), ylabel=ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, loc="outside upper center", ncols=len(names) + 1, frameon=False)
    return figure


def accuracy_over_dimension(
    curves: dict[str, dict[int, float]], full: dict[str, float], chance: float
) -> Figure:
    """Accuracy over the number of trained dimensions, one curve per backbone; full fine-tuning of
    each is a dashed line."""
    figure, ax = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
    for (name, curve), colour, marker in zip(
        curves.items(), ("#0072B2", "#D55E00"), "os", strict=True
    ):
        ax.plot(
            list(curve),
            [100 * a for a in curve.values()],
            color=colour,
            marker=marker,
            label=f"{name}, d dimensions",
        )
        ax.axhline(
            100 * full[name],
            color=colour,
            ls="--",
            lw=1.2,
            marker=marker,
            label=f"{name}, full fine-tuning",
        )
    ax.axhline(100 * chance, color="black", ls=":", lw=1, label="chance")
    ax.set(xscale="log", xlabel="trained dimensions d", ylabel="test accuracy (%)")
    ticks = list(next(iter(curves.values())))
    ax.set_xticks(ticks, [str(d) for d in ticks])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper", frameon=False)
    return figure


def curves(
    series: dict[str, dict[Any, float]],
    xlabel: str,
    ylabel: str,
    levels: dict[str, float] | None = None,
    axis: str = "even",
) -> Figure:
    """One line per name over its own places {x: y}, which stand evenly, or on a "linear" or "log"
    `axis`. `levels` are lines across, a value per name."""
    figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for i, (name, points) in enumerate(series.items()):
        ax.plot(
            [str(x) for x in points] if axis == "even" else list(points),
            list(points.values()),
            marker="os^DvPX*"[i % 8],
            ms=5,
            color=_LINES[i % len(_LINES)],
            label=name,
        )
    _levels(ax, levels)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if axis != "even":
        ax.set_xscale(axis)
    ax.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper", frameon=False)
    return figure


def named_points(
    points: dict[str, tuple[float, float]],
    xlabel: str,
    ylabel: str,
    levels: dict[str, float] | None = None,
    marked: Sequence[str] = (),
) -> Figure:
    """Each name at its (x, y), x on a logarithmic axis; those `marked` are drawn as circles.
    `levels` are lines across, a value per name."""
    figure, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for name, (x, y) in points.items():
        colour, marker = ("#009E73", "o") if name in marked else ("#0072B2", "D")
        ax.plot(x, y, marker=marker, color=colour)
    _levels(ax, levels)
    ax.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    ax.margins(0.2, 0.15)
    ax.grid(alpha=0.3)
    _name_points(ax, [(x, y, name) for name, (x, y) in points.items()])
    if levels:
        figure.legend(fontsize=8, loc="outside right upper", frameon=False)
    return figure


def _levels(ax: Axes, levels: dict[str, float] | None) -> None:
    for (name, y), style in zip((levels or {}).items(), ("--", ":", "-."), strict=False):
        ax.axhline(y, color="black", ls=style, lw=1, label=name)


def spreads(values: Sequence[Sequence[float]], xlabel: str, ylabel: str, start: float) -> Figure:
    """How the values of each group spread, one violin per group, counted from 1; a dotted line is
    where they started."""
    figure, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    ax.violinplot([list(group) for group in values], showextrema=True)
    ax.axhline(start, color="grey", ls=":")
    ax.set(xlabel=xlabel, ylabel=ylabel, xticks=range(1, len(values) + 1))
    return figure


def memory_trips() -> Figure:
    """Where a tensor travels between memory and chip for x * scale + shift: as two kernels, and as
    one."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.6), layout="constrained")
    two = [(1.3, "read x", True), (4, "write x γ", False)]
    two += [(6.3, "read x γ", True), (9, "write y", False)]
    _trips(axes[0], "plain PyTorch: two kernels", [(1, "times γ"), (6, "plus β")], two)
    one = [(3.5, "read x", True), (6, "write y", False)]
    _trips(axes[1], "fused: one kernel", [(3, "times γ, plus β")], one)
    return figure


def _trips(
    ax: Axes, title: str, kernels: list[tuple[float, str]], arrows: list[tuple[float, str, bool]]
) -> None:
    """Memory above, the chip below; arrows (x, text, down) are tensors on the way."""
    ax.add_patch(Rectangle((0, 2), 10, 0.8, facecolor=_FROZEN, edgecolor="black"))
    ax.text(0.2, 2.4, "memory", va="center")
    for left, text in kernels:
        ax.add_patch(Rectangle((left, 0), 3.6, 0.8, facecolor=_TRAINED, edgecolor="black"))
        ax.text(left + 1.8, 0.4, text, ha="center", va="center")
    for x, text, down in arrows:
        start, end = ((x, 1.95), (x, 0.85)) if down else ((x, 0.85), (x, 1.95))
        colour = "#0072B2" if down else "#D55E00"
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "lw": 2, "color": colour})
        ax.text(x + 0.15, 1.4, text, va="center", fontsize=9)
    ax.set(xlim=(-0.1, 10.1), ylim=(-0.1, 3), title=title)
    ax.axis("off")


def roofline(
    points: dict[str, tuple[float, float]], flops: float, bandwidth: float, title: str
) -> Figure:
    """The roof of a machine with `flops` operations and `bandwidth` bytes a second over operations
    per byte; below it, on the same axis, each operation as it is and as a perfect kernel."""
    figure, (top, low) = plt.subplots(
        2, 1, figsize=(8.5, 5), sharex=True, layout="constrained", height_ratios=(1, 1.4)
    )
    ridge = flops / bandwidth
    reach = (0.1, ridge, 3000)
    top.plot(reach, [min(flops, bandwidth * i) for i in reach], "k-", lw=2)
    top.set(xscale="log", yscale="log", ylabel="attainable flop/s", title=title)
    top.text(0.15, flops / 5, "bytes decide")
    top.text(1.2 * ridge, flops / 500, "arithmetic\ndecides")
    arrow = {"arrowstyle": "-|>", "color": "#0072B2", "lw": 1.5, "shrinkA": 5, "shrinkB": 5}
    for i, (name, (plain, fused)) in enumerate(sorted(points.items(), key=lambda item: item[1])):
        low.annotate("", (fused, i), (plain, i), arrowprops=arrow)
        first = i == 0
        low.plot(
            plain, i, "o", mfc="white", color="#E69F00", ms=8, label="plain PyTorch" * first or None
        )
        low.plot(fused, i, "o", color="#0072B2", ms=8, label="a perfect kernel" * first or None)
        text = f"{name}, {fused / plain:.1f} times fewer bytes"
        low.text(1.4 * fused, i, text, va="center", fontsize=8, backgroundcolor="white")
    for ax in (top, low):
        ax.axvline(ridge, color="black", ls=":", lw=1)
        ax.grid(alpha=0.3)
    limits = {"ylim": (-0.7, len(points) - 0.3), "xlim": (0.1, 60000)}
    low.set(xlabel="operations per byte", yticks=[], **limits)
    low.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def kept_bytes(ways: dict[str, float], pairs: dict[str, Sequence[float]]) -> Figure:
    """Megabytes that are kept for the backward pass: of each way to write one operation, and of
    each operation in plain PyTorch and as ours."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 3.4), layout="constrained", width_ratios=(1, 2)
    )
    drawn = left.barh(list(ways), [b / 1e6 for b in ways.values()], color="#0072B2")
    left.bar_label(drawn, fmt="%.1f", padding=2, fontsize=8)
    left.set(xlabel="MB kept for the backward pass", title="LoRA, four ways to write it")
    left.margins(x=0.18)
    for i, (way, colour, hatch) in enumerate(
        (("plain PyTorch", "#E69F00", "//"), ("vtlite.ops", "#0072B2", ""))
    ):
        drawn = right.barh(
            [j + 0.4 * i - 0.2 for j in range(len(pairs))],
            [pair[i] / 1e6 for pair in pairs.values()],
            0.38,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=way,
        )
        right.bar_label(drawn, fmt="%.1f", padding=2, fontsize=7)
    right.set(yticks=range(len(pairs)), yticklabels=list(pairs))
    right.set(xlabel="MB kept, beside the inputs", title="the package's operations")
    right.margins(x=0.12)
    right.legend(frameon=False, fontsize=8, loc="lower right")
    for ax in (left, right):
        ax.invert_yaxis()
    return figure


def tiles(seen: Tensor, block: tuple[int, int]) -> Figure:
    """Which program wrote each number of `seen` [M, D], in blocks of `block` that hang over its
    edges; beside it the addresses that the last program computes."""
    (M, D), (BM, BD) = seen.shape, block
    grid = -(-M // BM), -(-D // BD)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4), layout="constrained", width_ratios=(1.5, 1)
    )
    left.imshow(seen, cmap="cividis", vmin=-1, vmax=grid[0] * grid[1], extent=(0, D, M, 0))
    whole = Rectangle(
        (0, 0), grid[1] * BD, grid[0] * BM, fill=False, hatch="///", edgecolor="#AAAAAA", zorder=-1
    )
    left.add_patch(whole)
    for i in range(grid[0]):
        for j in range(grid[1]):
            corner, colour = (j * BD, i * BM), "black" if i else "white"
            left.add_patch(Rectangle(corner, BD, BM, fill=False, edgecolor="#D55E00", lw=2))
            left.text(j * BD + 0.2, i * BM + 1.6, f"program ({i}, {j})", fontsize=8, color=colour)
    left.set(xlim=(-0.3, grid[1] * BD + 0.3), ylim=(grid[0] * BM + 0.3, -0.3))
    left.set(xlabel="channel d", ylabel="row m")
    left.set_title("who wrote which number; hatched: masked lanes", fontsize=10)
    m = (grid[0] - 1) * BM + np.arange(BM)[:, None]
    d = (grid[1] - 1) * BD + np.arange(BD)[None, :]
    inside = (m < M) & (d < D)
    right.imshow(inside, cmap="cividis", vmin=-1, vmax=1.4, aspect="auto")
    for (row, column), address in np.ndenumerate(m * D + d):
        colour = "black" if inside[row, column] else _FROZEN
        right.text(column, row, address, ha="center", va="center", fontsize=9, color=colour)
    right.set(xticks=range(BD), xticklabels=d[0], yticks=range(BM), yticklabels=m[:, 0])
    right.set(xlabel="channel d", ylabel="row m")
    last = f"({grid[0] - 1}, {grid[1] - 1})"
    right.set_title(f"program {last}: addresses m D + d; dark: masked", fontsize=10)
    return figure


def hits(found: dict[str, Sequence[bool]], columns: Sequence[str]) -> Figure:
    """Whether each row was found by each column."""
    figure, ax = plt.subplots(figsize=(9, 3.8), layout="constrained")
    values = np.array(list(found.values()), dtype=float)
    ax.imshow(values, cmap="cividis", vmin=-0.6, vmax=1.2, aspect="auto")
    for (row, column), hit in np.ndenumerate(values):
        text, colour = ("found", "black") if hit else ("passes", "white")
        ax.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    ax.set(xticks=range(len(columns)), xticklabels=list(columns))
    ax.set(yticks=range(len(found)), yticklabels=list(found))
    ax.tick_params(labelsize=8)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure (the suffix says the format), atomically, and close it."""
    path = Path(path)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=130)
    plt.close(figure)


def _figure(ax: Axes) -> Figure:
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure


def _box(
    ax: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    text: str,
    colour: str,
    fontsize: int = 10,
) -> None:
    ax.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="black"))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=fontsize)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], ls: str = "-") -> None:
    ax.annotate(
        "", end, start, arrowprops={"arrowstyle": "->", "ls": ls, "shrinkA": 0, "shrinkB": 0}
    )


def _image(
    ax: Axes, image: Tensor, title: str = "", frame: str | None = None, alpha: float = 1.0
) -> None:
    """Draw [3, S, S] in [-1, 1] without ticks."""
    ax.imshow(((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy(), alpha=alpha)
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=7, pad=2)
    ax.spines[:].set(visible=frame is not None, color=frame or "none", linewidth=2.5)
