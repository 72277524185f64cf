"""Pictures of a task: its images with their answers, whatever kind of answer it has."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from vtlite.storage import VTError
from vtlite.task import Clips, MultiLabel, Segmentation, Several, Stream, Task


def show_task(task: Task, columns: int = 10, rows: int = 1) -> Figure:
    """The first training images of a task with their answers.

    Labels stand over the images; masks are laid over a second copy below; a clip is a row of its
    frames; a stream has one row for each stage. Raises `VTError` for a task without images.
    """
    if task.train is None:
        raise VTError(f"expected a task with training images, found {task.name!r} without any")
    if isinstance(task, Stream):
        return _stages(task, columns)
    if isinstance(task, Clips):
        return _clips(task, rows)
    if isinstance(task, Segmentation):
        return _masks(task, columns, rows)
    lines = 3 if isinstance(task, Several | MultiLabel) else 1
    figure, axes = _grid(rows, columns, 1.25 + 0.15 * lines)
    for i, ax in enumerate(axes.flat[: len(task.train)]):
        image, target = task.train[i]
        _draw(ax, image, task.train)
        ax.set_title(answer(task, target), fontsize=7)
    return figure


def answer(task: Task, target: Any) -> str:
    """A target in words: a class, several classes, or each part's class on a line of its own."""
    if isinstance(task, Several):
        return "\n".join(answer(part, target[name]) for name, part in task.parts.items())
    if isinstance(task, MultiLabel):
        chosen = [name for name, here in zip(task.classes, target, strict=True) if here > 0.5]
        return "\n".join(chosen) or "none"
    return task.classes[int(target)]


def _stages(task: Stream, columns: int) -> Figure:
    figure, axes = _grid(len(task.stages), columns, 1.35)
    for row, stage in zip(axes, task.stages, strict=True):
        for i, ax in enumerate(row):
            image, target = stage.train[i]
            _draw(ax, image, stage.train)
            ax.set_title(answer(stage, target), fontsize=7)
        _name_row(row[0], stage.name)
    return figure


def _clips(task: Task, rows: int) -> Figure:
    data: Any = task.train
    clip, _ = data[0]
    figure, axes = _grid(max(rows, task.num_classes), len(clip), 1.15)
    for row, (frames, target) in zip(axes, (data[i] for i in range(len(axes))), strict=True):
        for ax, frame in zip(row, frames, strict=True):
            _draw(ax, frame, data)
        _name_row(row[0], answer(task, target).replace(", ", ",\n"))
    return figure


def _masks(task: Task, columns: int, rows: int) -> Figure:
    data: Any = task.train
    figure, axes = _grid(2 * rows, columns, 1.15)
    colours = ListedColormap(["#FFFFFF", *plt.get_cmap("tab10").colors][: task.num_classes])  # type: ignore[attr-defined]
    seen: set[int] = set()
    for i in range(rows * columns):
        image, mask = data[i]
        above, below = axes[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
        for ax in (above, below):
            _draw(ax, image, data)
        below.imshow(mask.numpy(), cmap=colours, vmin=-0.5, vmax=task.num_classes - 0.5, alpha=0.7)
        seen |= set(mask.unique().tolist())
    patches = [
        Patch(facecolor=colours(c), edgecolor="black", label=task.classes[c]) for c in sorted(seen)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _grid(rows: int, columns: int, height: float) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(1.25 * columns, height * rows),
        layout="constrained",
        squeeze=False,
    )
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return figure, axes


def _draw(ax: Axes, image: Tensor, data: Any) -> None:
    """One image of `data` [3, H, W], its normalisation undone."""
    middle, width = (
        torch.tensor(getattr(data, name, (0.5,))).view(-1, 1, 1) for name in ("mean", "std")
    )
    pixels: np.ndarray = (image * width + middle).clamp(0, 1).permute(1, 2, 0).numpy()
    ax.imshow(pixels)


def _name_row(ax: Axes, name: str) -> None:
    ax.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")


def show_answers(task: Segmentation, data: Any, answers: dict[str, Tensor]) -> Figure:
    """Images of `data`, their true masks, and under these the masks [N, H, W] that each network
    gives, one row per name."""
    columns = len(next(iter(answers.values())))
    figure, axes = _grid(len(answers) + 2, columns, 1.15)
    colours = ListedColormap(["#FFFFFF", *plt.get_cmap("tab10").colors][: task.num_classes])  # type: ignore[attr-defined]
    for i in range(columns):
        image, mask = data[i]
        _draw(axes[0, i], image, data)
        for ax, shown in zip(axes[1:, i], (mask, *(a[i] for a in answers.values())), strict=True):
            ax.imshow(shown.numpy(), cmap=colours, vmin=-0.5, vmax=task.num_classes - 0.5)
            ax.spines[:].set_visible(True)
    for ax, name in zip(axes[:, 0], ("image", "truth", *answers), strict=True):
        _name_row(ax, name)
    return figure


def show_kernels(kernels: Tensor) -> Figure:
    """Kernels over time and places [N, T, h, w]: a column each, frame below frame; blue takes away,
    red adds."""
    frames = kernels.shape[1]
    figure, axes = _grid(frames, len(kernels), 1.25)
    for column, kernel in zip(axes.T, kernels, strict=True):
        most = float(kernel.abs().max())
        for ax, place in zip(column, kernel, strict=True):
            ax.imshow(place.numpy(), cmap="RdBu_r", vmin=-most, vmax=most)
    for ax, t in zip(axes[:, 0], range(-(frames // 2), frames), strict=False):
        _name_row(ax, f"frame t{t:+d}" if t else "frame t")
    return figure
