"""`python -m vtlite tour`: one method of each group and more, on one task, in one table and one
figure."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vtlite.accounting import (
    activation_memory,
    delta_size,
    latency_ratio,
    step_time,
    without_method,
)
from vtlite.backbones import load_backbone
from vtlite.backbones.base import pixels_of
from vtlite.backbones.clip import CLIP
from vtlite.backbones.tokenizer import WordTokenizer
from vtlite.data.tasks import load_task
from vtlite.method import Backbone, Tuned, count_parameters
from vtlite.methods import find_method
from vtlite.plots import accuracy_over_parameters, save_figure
from vtlite.storage import VTError, atomic_write
from vtlite.task import Classification, Task
from vtlite.training import evaluate, fit
from vtlite.tuning import tune
from vtlite.zero_shot import ZeroShot

Row = dict[str, Any]

TEMPLATE = "an emoji of {}"  # how the embedded two-tower model is told of a class
PUBLISHED_TEMPLATE = "a photo of a {}"
METHODS = ("full", "linear", "vpt_deep", "adaptformer", "lora", "bitfit", "ssf", "kd")
TWO_TOWERS = ("coop", "maple", "clip_adapter", "clip_lora")


def tour(
    methods: Sequence[str] = METHODS,
    task: str | Task = "shapes-location",
    backbone: str | Backbone = "vtlite-tiny",
    epochs: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> list[Row]:
    """Tune a backbone with each method on one task -> one row per method (see `measure`).

    Names or loaded objects may be given. Everything is validated before the first training starts;
    a method that this backbone or task does not bear is left out, with a line that says so.
    """
    keys = [find_method(name).key for name in methods]
    backbone = load_backbone(backbone) if isinstance(backbone, str) else backbone
    task = load_task(task, like=backbone) if isinstance(task, str) else task
    if isinstance(backbone, CLIP):
        backbone.tokenize(task.classes)  # raises where it has no tokenizer, or for too long a name
    keys = [key for key in keys if _bears(backbone, key, task)]
    if not keys:
        raise VTError(
            f"expected a method that {type(backbone).__name__} bears, found none among "
            f"{', '.join(methods)}; name others with --methods"
        )
    rows = []
    with tqdm(keys, desc=f"tour of {task.name}", unit="method", disable=not progress) as bar:
        for key in bar:
            bar.set_postfix_str(key.split("/")[-1])
            model = tune(backbone, key, task, seed, **_settings(backbone, key))
            start = time.perf_counter()
            fit(model, task.train, epochs=epochs, seed=seed, progress=False)
            rows.append(
                {
                    **measure(model, backbone, task),
                    "fit_seconds": round(time.perf_counter() - start, 1),
                }
            )
    return rows


def _bears(backbone: Backbone, key: str, task: Task) -> bool:
    """Whether `tune` takes the method for this backbone and task; if not, it is said why."""
    try:
        tune(backbone, key, task, **_settings(backbone, key))
    except VTError as refusal:
        print(f"left out: {refusal}", file=sys.stderr)
        return False
    return True


def _published(backbone: Backbone) -> bool:
    """Whether it is a two-tower model that byte pairs were read to, not a vocabulary of words."""
    return isinstance(backbone, CLIP) and not isinstance(backbone.tokenizer, WordTokenizer)


def _settings(backbone: Backbone, key: str) -> dict[str, Any]:
    """A method's settings for a small backbone; for published towers its own, which are made for
    them."""
    return {} if _published(backbone) else find_method(key).small


def _untouched(backbone: Backbone, task: Task) -> nn.Module:
    """The backbone that no method has changed: under a linear head or, of two towers, told the
    names of the classes."""
    if not isinstance(backbone, CLIP):
        return tune(backbone, "linear", task)
    template = PUBLISHED_TEMPLATE if _published(backbone) else TEMPLATE
    return ZeroShot(backbone, task.classes, template).eval()


def two_towers(task: Task, backbone: Backbone) -> list[Row]:
    """The row of a two-tower model (the embedded one if `backbone` is none), which is told the
    names of the classes and trains nothing; none where the question or the images are not for
    it."""
    clip = backbone if isinstance(backbone, CLIP) else load_backbone("vtlite-clip")
    images_of = getattr(backbone, "visual", backbone)
    if not isinstance(task, Classification) or pixels_of(clip.visual) != pixels_of(images_of):
        return []
    model, reference = _untouched(clip, task), _untouched(backbone, task)
    images, _ = next(iter(DataLoader(task.train, 50)))
    nothing = dict.fromkeys(("trainable", "share", "delta_bytes", "step_ms", "activation_bytes"), 0)
    row = {
        "method": "two_towers/zero_shot",
        "accuracy": evaluate(model, task.test, task=task)["accuracy"],
        **nothing,
        "latency_ratio": latency_ratio(model, reference, images),
        "merged": True,
        "fit_seconds": 0.0,
    }
    return [row]


def measure(model: Tuned, backbone: Backbone, task: Task) -> Row:
    """Accuracy on the test images and every cost of one tuned model; latency is relative to the
    untouched backbone with a linear head, or with the names of the classes."""
    trainable, total = count_parameters(model)
    images, labels = next(iter(DataLoader(task.train, 50)))
    reference = _untouched(backbone, task)
    return {
        "method": model.method.key,
        "accuracy": evaluate(model, task.test)["accuracy"],
        "trainable": trainable,
        "share": trainable / total,
        "delta_bytes": delta_size(model),
        # A method may train nothing, such as a cache that fills while it answers.
        "step_ms": 1000 * step_time(model, images, labels) if trainable else 0,
        "activation_bytes": activation_memory(model, images, labels) if trainable else 0,
        "latency_ratio": latency_ratio(plain := without_method(model), reference, images),
        "merged": plain is not model,
    }


COLUMNS = {
    "method": ("method", lambda r: r["method"].split("/")[-1]),
    "group": ("group", lambda r: r["method"].split("/")[0]),
    "accuracy": ("accuracy", lambda r: f"{r['accuracy']:.1%}"),
    "trainable": ("trainable", lambda r: f"{r['trainable']:,}"),
    "share": ("share", lambda r: f"{r['share']:.1%}"),
    "delta": ("delta", lambda r: f"{r['delta_bytes'] / 1024:,.0f} KiB"),
    "step": ("step", lambda r: f"{r['step_ms']:.0f} ms" if r["step_ms"] else "none"),
    "memory": ("activations", lambda r: f"{r['activation_bytes'] / 2**20:.1f} MiB"),
    "latency": ("latency", lambda r: f"{r['latency_ratio']:.2f}x" + ("" if r["merged"] else " *")),
}


def table(rows: Sequence[Row], title: str = "") -> Table:
    """The rows as a table for the terminal; a latency with a star is that of an unmerged model."""
    result = Table(
        title=title,
        caption=(
            "latency: relative to the untouched backbone; * cannot be merged, measured as tuned"
        ),
        caption_justify="left",
    )
    for i, (heading, _) in enumerate(COLUMNS.values()):
        result.add_column(heading, justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        result.add_row(*(show(row) for _, show in COLUMNS.values()))
    return result


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |",
        "|---|---|" + "---:|" * (len(COLUMNS) - 2),
    ]
    lines += ["| " + " | ".join(show(row) for _, show in COLUMNS.values()) + " |" for row in rows]
    return "\n".join(lines)


def save_rows(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as JSON or, for a path that ends in .csv, as CSV."""
    buffer = io.StringIO()
    if path.suffix == ".csv":
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    else:
        json.dump(list(rows), buffer, indent=1)
    with atomic_write(path) as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8")


def run(
    methods: str | None,
    task: str,
    backbone: str,
    epochs: int,
    outputs: dict[str, Path],
    quick_gelu: bool | None = None,
) -> None:
    """The command: everything above, with its outputs on the terminal and in files ("json", "csv",
    "figure")."""
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    if outputs["figure"].suffix not in (".png", ".svg", ".pdf"):
        raise VTError(
            f"expected a figure that ends in .png, .svg or .pdf, found {outputs['figure'].name}"
        )
    start = time.perf_counter()
    network = load_backbone(backbone, quick_gelu=quick_gelu)
    default = TWO_TOWERS if isinstance(network, CLIP) else METHODS
    names = [name.strip() for name in methods.split(",")] if methods is not None else default
    asked = load_task(task, like=network)
    rows = [*tour(names, asked, network, epochs), *two_towers(asked, network)]
    seconds, threads = time.perf_counter() - start, torch.get_num_threads()
    said = f"{epochs} epochs of {asked.sizes[0]} images, {seconds:.0f} s, {threads} threads"
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table(rows, f"{task} on {backbone}: {said}"))
    save_rows(rows, outputs["json"])
    save_rows(rows, outputs["csv"])
    save_figure(accuracy_over_parameters(rows, f"{task} on {backbone}"), outputs["figure"])
    console.print("written: " + ", ".join(str(path) for path in outputs.values()))
