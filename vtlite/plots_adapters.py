"""The design space of adapters: as data, which a lesson shows as a table, and as a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon

from vtlite.methods import find_method
from vtlite.plots import _FROZEN, _TRAINED, _arrow, _box


class Design(NamedTuple):
    """One method's answers to the four questions."""

    sees: str  # what goes in
    at: tuple[str, ...]  # where it sits
    inside: str  # what it computes
    added: str  # how its result is added


_BOTH = ("attention", "MLP")

# By what an adapter stands beside: the rows of the map.
DESIGNS: dict[str, dict[str, Design]] = {
    "in series": {
        "houlsby": Design(
            "what a branch gives", tuple(f"after {b}" for b in _BOTH), "D, gelu, U", "own skip"
        ),
        "pfeiffer": Design("what a branch gives", ("after MLP",), "D, gelu, U", "own skip"),
        "mona": Design(
            "the stream and its norm",
            tuple(f"in the stream after {b}" for b in _BOTH),
            "D, convolutions 3 5 7, gelu, U",
            "own skip",
        ),
        "repadapter": Design(
            "a branch's normed input", tuple(f"before {b}" for b in _BOTH), "A, B", "own skip"
        ),
    },
    "in parallel": {
        "adaptformer": Design("the stream", ("beside LN and MLP",), "D, relu, U", "to the branch"),
        "convpass": Design(
            "a branch's normed input",
            tuple(f"beside {b}" for b in _BOTH),
            "D, gelu, 3x3, gelu, U",
            "to the branch",
        ),
        "consolidator": Design(
            "what a layer sees",
            tuple(f"beside each layer of {b}" for b in _BOTH),
            "block-diagonal G",
            "to the layer",
        ),
    },
    "across the network": {
        "lst": Design(
            "every block's output",
            ("ladder beside all blocks",),
            "thin blocks",
            "replaces the features",
        ),
        "dtl": Design(
            "every block's input",
            ("side path beside all blocks",),
            "A, B, summed",
            "to later blocks",
        ),
        "vqt": Design(
            "every block's input", ("queries in all blocks",), "learned queries", "beside features"
        ),
        "fpet": Design(
            "the stream", ("merging half-way", "beside LN and MLP"), "D, relu, U", "to the branch"
        ),
    },
    "on a convolution": {
        "residual_adapter_series": Design(
            "what a convolution gives", ("after convolution",), "norm, 1x1", "own skip"
        ),
        "residual_adapter_parallel": Design(
            "a convolution's input", ("beside convolution",), "1x1", "to the convolution"
        ),
        "conv_adapter": Design(
            "a convolution's input",
            ("beside convolution, norm and ReLU",),
            "grouped 3x3, relu, 1x1",
            "to both",
        ),
    },
}


def design_map() -> Figure:
    """Every method's place on a frozen block, network or convolution: grey is frozen, blue trains,
    an hourglass is a bottleneck. Below stand what is inside and, from the method's own class,
    whether it folds away and whether it starts as the backbone."""
    figure, axes = plt.subplots(len(DESIGNS), 4, figsize=(13, 8.6), layout="constrained")
    draw = dict(zip(DESIGNS, (_block, _block, _network, _convolution), strict=True))
    for row, (family, designs) in zip(axes, DESIGNS.items(), strict=True):
        floor = -5.4 if draw[family] is _network else -4.6  # nothing stands above its stream
        row[0].text(-1.5, 0, family, rotation=90, ha="center", va="center", fontsize=11)
        for ax in row:
            ax.set(xlim=(-1, 14.6), ylim=(floor, floor + 9.1), aspect="equal")
            ax.axis("off")
        for ax, (name, design) in zip(row, designs.items(), strict=False):
            ax.set_title(name, fontsize=10, pad=0)
            draw[family](ax, design.at)
            ax.text(6.8, floor + 1.5, design.inside, ha="center", va="center", fontsize=8)
            ax.text(
                6.8, floor + 0.4, _fate(name), ha="center", va="center", fontsize=8, color="#555555"
            )
    _legend(axes[1, 3])
    return figure


def _fate(name: str) -> str:
    method = find_method(name)
    start = "starts elsewhere" if method.starts_elsewhere else "starts as the backbone"
    return f"{start}, {'stays' if method.unmergeable else 'folds away'}"


def _legend(ax: Axes) -> None:
    entries = ("frozen", _FROZEN), ("trains", _TRAINED)
    for i, (text, colour) in enumerate(entries):
        _box(ax, 1, 2.6 - 1.6 * i, 1.6, 1, "", colour)
        ax.text(3.4, 3.1 - 1.6 * i, text, va="center", fontsize=9)
    _hourglass(ax, 1.8, -0.6)
    ax.text(3.4, -0.6, "trains, a bottleneck", va="center", fontsize=9)
    _plus(ax, 1.8, -2.2)
    ax.text(3.4, -2.2, "sum", va="center", fontsize=9)


def _block(ax: Axes, at: Sequence[str]) -> None:
    """A pre-norm block, from the left: two branches beside the stream, at the places `at` with an
    adapter."""
    _stream(ax, 13.8)
    for left, branch in zip((0.0, 6.6), _BOTH, strict=True):
        start, end, high = left + 0.4, left + 5.0, 2.2
        _wire(ax, (start, 0), (start, high), (end, high), (end, 0))
        layers = f"beside each layer of {branch}" in at  # whoever sits there trains the norms, too
        _box(ax, start - 0.45, 0.6, 0.9, 0.8, "LN", _TRAINED if layers else _FROZEN, 6)
        names = {"attention": ("qkv", "proj"), "MLP": ("fc1", "fc2")}[branch]
        for i, name in enumerate(names if layers else (branch,)):
            width = 1.1 if layers else 2.6
            x = left + (1.3 + 1.8 * i if layers else 1.8)
            _box(ax, x, high - 0.55, width, 1.1, name, _FROZEN, 6 if layers else 7)
            if layers:
                low, top = x - 0.18, x + width + 0.18
                _wire(ax, (low, high), (low, high + 1.3), (top, high + 1.3), (top, high))
                _box(ax, x + 0.15, high + 0.85, 0.8, 0.9, "", _TRAINED)
                ax.add_patch(
                    Polygon([(x + 0.15, high + 1.75), (x + 0.95, high + 0.85)], fill=False)
                )
        if f"after {branch}" in at:
            _skip(ax, (end, 1.85), (end, 0.4), (end + 0.85, 0))
            _hourglass(ax, end, 1.12, upright=True)
        if f"before {branch}" in at:
            _skip(ax, (start + 0.15, high), (start + 1.25, high), (0, high + 1.0))
            _hourglass(ax, start + 0.7, high, width=0.8)
        if f"in the stream after {branch}" in at:
            _skip(ax, (end + 0.3, 0), (end + 1.5, 0), (0, -1.0))
            _hourglass(ax, end + 0.85, 0, width=0.9)
        if f"beside {branch}" in at:
            _wire(ax, (start, high), (start, high + 1.5), (end, high + 1.5), (end, high))
            _hourglass(ax, left + 2.8, high + 1.5)
            _plus(ax, end, high)
        if f"beside LN and {branch}" in at:
            _wire(ax, (start, 0), (start, -1.5), (end, -1.5), (end, 0))
            _hourglass(ax, left + 2.8, -1.5)
        _plus(ax, end, 0)


def _network(ax: Axes, at: Sequence[str]) -> None:
    """Four frozen blocks on the stream and a head, with what stands beside them all."""
    ladder, merging, low = "ladder beside all blocks" in at, "merging half-way" in at, -1.9
    for i in range(4):
        left = 0.5 + 2.9 * i
        tap = left + 2.15
        _wire(ax, (left - 0.9, 0), (left, 0), width=5 if merging and i < 2 else 1)
        _box(ax, left, -0.6, 1.5, 1.2, "merge" if merging and i == 1 else "block", _FROZEN, 6)
        _wire(ax, (left + 1.5, 0), (tap, 0), width=5 if merging and i < 1 else 1)
        if ladder:
            _arrow(ax, (tap, 0), (tap, low + 0.35))
            _box(ax, tap - 0.55, low - 0.35, 1.1, 0.7, "", _TRAINED)
        if "side path beside all blocks" in at:
            _wire(ax, (left - 0.45, 0), (left - 0.45, low))
            _hourglass(ax, left - 0.45, -0.95, upright=True, width=0.8)
            if i >= 2:
                _arrow(ax, (tap - 0.35, low), (tap - 0.35, -0.25))
                _plus(ax, tap - 0.35, 0)
        if "queries in all blocks" in at:
            _arrow(ax, (left + 0.75, -0.6), (left + 0.75, -1.1))
            ax.add_patch(Circle((left + 0.75, -1.5), 0.4, facecolor=_TRAINED, edgecolor="black"))
            ax.text(left + 0.75, -1.5, "q", ha="center", va="center", fontsize=7)
            _wire(ax, (left + 0.75, -1.9), (left + 0.75, -2.5))
        if merging:
            _wire(ax, (left - 0.3, 0), (left - 0.3, -1.5), (left + 1.8, -1.5), (left + 1.8, 0))
            _hourglass(ax, left + 0.75, -1.5)
    if merging:
        _hourglass(ax, 4.15, 1.15, width=0.8)  # decides which tokens are alike
        _wire(ax, (4.15, 0.75), (4.15, 0.6))
    if ladder:
        _wire(ax, (-0.4, 0), (-0.4, low), (11.9, low))
    elif "side path beside all blocks" in at:
        _wire(ax, (0.05, low), (11.0, low))
    elif "queries in all blocks" in at:
        _wire(ax, (1.25, -2.5), (13, -2.5), (13, -0.6))
    y = low if ladder else 0.0
    _arrow(ax, (11.9 if ladder else 11.3, y), (12.3, y))
    _box(ax, 12.3, y - 0.6, 1.5, 1.2, "head", _TRAINED, 6)


def _convolution(ax: Axes, at: Sequence[str]) -> None:
    """A frozen 3x3 convolution, its norm and its ReLU, with an adapter."""
    _stream(ax, 13.8)
    trained = "beside convolution, norm and ReLU" not in at  # residual adapters train all norms
    places = (0.9, 2.7, "conv 3x3", _FROZEN), (8.0, 1.6, "norm", _TRAINED if trained else _FROZEN)
    for x, width, text, colour in (*places, (10.2, 1.7, "ReLU", _FROZEN)):
        _box(ax, x, -0.6, width, 1.2, text, colour, 7)
    start, end = (4.1, 7.5) if "after convolution" in at else (0.3, 4.3)
    if "beside convolution, norm and ReLU" in at:
        end = 12.4
        _hourglass(ax, 6.2, 1.9)
    elif "after convolution" in at:
        _box(ax, 4.35, 1.4, 1.45, 1.0, "norm", _TRAINED, 7)
        _box(ax, 5.95, 1.4, 1.1, 1.0, "1x1", _TRAINED, 7)
    else:
        _box(ax, 1.85, 1.4, 1.1, 1.0, "1x1", _TRAINED, 7)
    _wire(ax, (start, 0), (start, 1.9), (end, 1.9), (end, 0))
    _plus(ax, end, 0)


def _wire(ax: Axes, *points: tuple[float, float], width: float = 1) -> None:
    ax.plot(*np.array(points).T, color="black", lw=width, zorder=0.5, solid_capstyle="butt")


def _stream(ax: Axes, end: float) -> None:
    _wire(ax, (-0.6, 0), (end - 0.5, 0))  # below the boxes, where an arrow would not be
    _arrow(ax, (end - 0.5, 0), (end, 0))


def _skip(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], away: tuple[float, float]
) -> None:
    """A way around from `start` to `end`, off by `away`: (dx, 0) to a line x, (0, y) to a line y."""
    x, y = away
    if y:
        _wire(ax, start, (start[0], y), (end[0], y), end)
    else:
        _wire(ax, start, (x, start[1]), (x, end[1]), end)


def _plus(ax: Axes, x: float, y: float) -> None:
    ax.add_patch(Circle((x, y), 0.3, facecolor="white", edgecolor="black"))
    ax.plot([x - 0.18, x + 0.18], [y, y], color="black", lw=0.8)
    ax.plot([x, x], [y - 0.18, y + 0.18], color="black", lw=0.8)


def _hourglass(ax: Axes, x: float, y: float, upright: bool = False, width: float = 1.3) -> None:
    """Wide, narrow, wide, along the way of the tokens."""
    corners = np.array([(-0.5, 1), (0, 0.4), (0.5, 1), (0.5, -1), (0, -0.4), (-0.5, -1)])
    corners = corners * (width, 0.5)
    corners = corners[:, ::-1] if upright else corners
    ax.add_patch(Polygon(corners + np.array((x, y)), facecolor=_TRAINED, edgecolor="black", lw=0.8))


def memory_bars(
    panels: dict[str, dict[str, float]], published: dict[str, dict[str, float]]
) -> Figure:
    """Panels of bars, a value per name; diamonds are what papers report of a panel's names."""
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.2), layout="constrained")
    for ax, (label, values) in zip(np.ravel(axes), panels.items(), strict=True):
        drawn = ax.barh(list(values), list(values.values()), color="#0072B2")
        ax.bar_label(drawn, fmt="%.0f", padding=3, fontsize=8)
        theirs = published.get(label, {})
        if theirs:
            ax.plot(
                list(theirs.values()),
                list(theirs),
                "D",
                color="#E69F00",
                mec="black",
                label="published, other networks",
            )
            ax.legend(frameon=False, fontsize=8, loc="lower right")
        ax.set(xlabel=label)
        ax.margins(x=0.12)
        ax.invert_yaxis()
        ax.spines[["top", "right"]].set_visible(False)
    return figure
