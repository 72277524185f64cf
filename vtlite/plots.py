"""Every figure, drawn from result rows; one colour and marker per group of the taxonomy, safe for colour-blind readers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vtlite.storage import atomic_write

if TYPE_CHECKING:
    from vtlite.data.tasks import Task

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


def accuracy_over_parameters(rows: Sequence[Row], title: str = "", ax: Axes | None = None) -> Figure:
    """The figure that everyone in this field draws: accuracy over trainable parameters, log axis.

    `rows` have "method" (a key of METHODS), "trainable" and "accuracy" in [0, 1]; a row with "spread" gets an error bar of that half height.
    A dashed line marks full fine-tuning where it is among them.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    seen: set[str] = set()
    for row in rows:
        group, name = row["method"].split("/")[0], row["method"].split("/")[-1]
        colour, marker = GROUP_STYLE[group]
        label = None if group in seen else GROUP_LABEL[group]
        seen.add(group)
        ax.errorbar(
            row["trainable"], 100 * row["accuracy"], 100 * row.get("spread", 0), fmt=marker, color=colour, ms=8, capsize=3, label=label
        )
        ax.annotate(name, (row["trainable"], 100 * row["accuracy"]), xytext=(7, 5), textcoords="offset points", fontsize=9)
        if row["method"] == "finetuning/full":
            ax.axhline(100 * row["accuracy"], color=colour, lw=0.8, ls="--", zorder=0)
    ax.set(xscale="log", xlabel="trainable parameters (head included)", ylabel="test accuracy (%)", title=title)
    ax.margins(0.14, 0.14)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="best")
    return _figure(ax)


def show_task(task: Task, columns: int = 10, rows: int = 1) -> Figure:
    """The first training images of a task with their class names."""
    figure, axes = plt.subplots(rows, columns, figsize=(1.15 * columns, 1.4 * rows), layout="constrained", squeeze=False)
    for i, ax in enumerate(axes.flat):
        image, label = task.train[i]
        ax.imshow(((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy())
        ax.set_title(task.classes[label], fontsize=7)
        ax.axis("off")
    return figure


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
    ax.spines[["top", "right"]].set_visible(False)
    return _figure(ax)


def learning_curves(histories: dict[str, list[dict[str, float]]], value: str = "val_accuracy", title: str = "") -> Figure:
    """One line per history of `fit`: `value` over epochs."""
    figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for (name, history), colour in zip(histories.items(), plt.get_cmap("cividis")(np.linspace(0, 0.9, len(histories))), strict=True):
        ax.plot([row["epoch"] for row in history], [row[value] for row in history], marker="o", ms=3, color=colour, label=name)
    ax.set(xlabel="epoch", ylabel=value.replace("_", " "), title=title)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
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
