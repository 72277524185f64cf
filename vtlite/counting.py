"""`python -m vtlite bench --counted FILE`: what one training step of each method costs on ViT-B/16
(224 pixels, batch 4), beside full fine-tuning and beside its bound.

The bound of a method is a frozen network through which the gradient passes as far back as the
method needs it, and which keeps what the gradients of the method's own numbers cannot do without:
the input of a layer that gets an update, the output of one that is scaled or adapted. Its head is
the same; the method's own arithmetic is not in it. A method that trains layers of a plain network
as they are is its own bound, or that of the first method which does the same.

Operations and bytes are counted on the meta device, where nothing is computed: exact, the same
everywhere, in a second a method. Operations are products, of the forward and the backward pass;
gathers, norms and the optimiser are not counted. Bytes are those kept from the forward pass for the
backward pass, beside weights and images. Steps are measured: the median of ratios to full
fine-tuning, in turns, in seconds of the processor.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import vtlite as vt
from vtlite.accounting import step_bytes, step_flops, step_peak, step_ratios
from vtlite.backbones.stages import stage_names
from vtlite.method import Tuned, short
from vtlite.methods.parameter.both.spt import Budget
from vtlite.runs import read_rows, write_rows

Row = dict[str, Any]
LINEAR = ("qkv", "proj", "fc1", "fc2")  # of each block


@dataclass(frozen=True)
class Bound:
    """From the output of the layer `first` on there is a gradient; in each block the inputs and
    outputs of the layers with these names are kept."""

    first: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


_ATTENTION = Bound("blocks.0.attn.qkv", inputs=("qkv",))
_SLICES = Bound("blocks.0.attn.qkv", inputs=LINEAR)
_BOTTLENECKS = Bound("blocks.0.attn.proj", outputs=("proj", "fc2"))

# Of each method by its last name; a string is the method whose step is the bound.
BOUNDS: dict[str, Bound | str] = {
    "full": "full",
    "linear": "linear",
    "mlp_head": "mlp_head",
    "partial": "partial",
    "norm_tuning": "norm_tuning",
    "layerwise_decay": "full",
    "gradual_unfreezing": "full",
    "lp_ft": "full",
    "l2_sp": "full",
    "wise_ft": "full",
    "vpt_deep": Bound("blocks.0.attn.qkv"),
    "adaptformer": Bound("blocks.0.mlp.fc2"),
    "fpet": Bound("blocks.0.mlp.fc2"),
    "houlsby": _BOTTLENECKS,
    "pfeiffer": Bound("blocks.0.mlp.fc2", outputs=("fc2",)),
    "repadapter": Bound("blocks.0.norm1", inputs=("qkv", "fc1")),
    "mona": _BOTTLENECKS,
    "convpass": Bound("blocks.0.attn.proj", inputs=("qkv", "fc1")),
    "consolidator": Bound("patch_embed.proj", inputs=LINEAR),
    "lst": "lst",
    "dtl": "dtl",
    "vqt": "vqt",
    "bitfit": "bitfit",
    "dp_bitfit": "bitfit",
    "adapterbias": Bound("blocks.0.mlp.fc2", inputs=("fc2",)),
    "side_tuning": "side_tuning",
    "lora": _ATTENTION,
    "dylora": _ATTENTION,
    "dora": _ATTENTION,
    "krona": _ATTENTION,
    "kadaptation": _ATTENTION,
    "vera": Bound("blocks.0.attn.qkv"),
    "fact_tt": _SLICES,
    "fact_tk": _SLICES,
    "aurora": _SLICES,
    "phm_adapter": _BOTTLENECKS,
    "compacter": _BOTTLENECKS,
    "dldr": "full",
    "mosa": Bound("patch_embed.proj"),
    "ssf": Bound("patch_embed.proj", outputs=("proj", "fc2")),
    "gps": Bound("patch_embed.proj", inputs=LINEAR),
    "spt": Bound("blocks.0.norm1", inputs=LINEAR),
    "kd": "kd",
}

ALLOWED = 1.10  # of its bound; whatever does or keeps more has a sentence here
REMARKS = {
    "ssf": "A scale's gradient needs what it multiplies; attention and GELU keep the product beside "
    "it, and dividing that by the scale would fail where the scale passes zero.",
    "dora": "As in SSF: the gradient of a length needs what it multiplies, and attention keeps the "
    "product beside it.",
    "aurora": "Its own products: U and V with 64 modes, in every layer.",
    "vera": "Its own products: 256 random directions for queries and values.",
    "krona": "What lies between its two thin products is kept, as large as the input for each of q "
    "and v; to make it again would be a seventh product beside its six.",
    "mona": "Its convolutions keep what enters each of them, and its two gains the tokens before and "
    "after a norm.",
    "phm_adapter": "As in KronA: what lies between the two products of each projection is kept.",
    "dldr": "It needs the gradient of every weight, and keeps the weights it has moved: to make "
    "them again would read its 40 directions, 13.7 GB, a second time.",
}

# Not measured: those whose step is full fine-tuning's own, and one that does not fit into memory.
UNMEASURED = ("layerwise_decay", "gradual_unfreezing", "lp_ft", "wise_ft", "dldr")


class _Keep(torch.autograd.Function):
    """y as it is, while `what` is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, what: Tensor) -> Tensor:
        ctx.save_for_backward(what)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy, None


class Keeping(nn.Module):
    """A layer that keeps its input or output, whether or not its own gradient asks for it."""

    def __init__(self, layer: nn.Module, inputs: bool) -> None:
        super().__init__()
        self.layer, self.inputs = layer, inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return _Keep.apply(y, (x if self.inputs else y).detach())


def bound_model(backbone: nn.Module, bound: Bound, num_classes: int) -> Tuned:
    """The frozen network that `bound` describes, with a head."""
    model = vt.tune(backbone, "linear", num_classes)
    plain: Any = model.backbone
    plain.get_submodule(bound.first).bias.requires_grad_()
    for stage in stage_names(plain):
        for name, layer in list(plain.get_submodule(stage).named_modules()):
            parent, _, last = f"{stage}.{name}".rpartition(".")
            if last in bound.inputs + bound.outputs:
                keeping = Keeping(layer, last in bound.inputs)
                setattr(plain.get_submodule(parent), last, keeping)
    return model


def tuned(backbone: nn.Module, name: str, num_classes: int) -> Tuned:
    """The model of a method's default settings, as its steps are inside `fit`."""
    settings: dict[str, Any] = (
        {"teacher": vt.tune(backbone, "linear", num_classes)} if name == "kd" else {}
    )
    model = vt.tune(backbone, name, num_classes, **settings)
    for module in model.modules():
        if isinstance(module, Budget):
            spend(module)
    return model


def spend(budget: Budget) -> None:
    """What `fit` does with SPT's budget, without images to ask: half of it is LoRA, of every second
    matrix while it lasts, the rest single entries spread evenly over all other units."""
    left, lora = len(budget.theta) // 2, []
    for number, unit in list(enumerate(budget.units))[::2]:
        if 0 < unit.lora_size(budget.rank) <= left:
            left -= unit.lora_size(budget.rank)
            lora.append(number)
    size = torch.tensor([unit.size for unit in budget.units], device="cpu")
    free = torch.ones(int(size.sum()), dtype=torch.bool, device="cpu")
    for number in lora:
        start = int(size[:number].sum())
        free[start : start + budget.units[number].size] = False
    places, count = free.nonzero().flatten(), left + len(budget.theta) - len(budget.theta) // 2
    entries = places[torch.arange(count, device="cpu") * len(places) // count]
    budget.assign(entries, lora)
    if budget.layout.is_meta:  # the one buffer whose values a step reads
        twin = Budget(budget.units, len(budget.theta), budget.rank)
        twin.assign(entries, lora)
        budget.layout = twin.layout


def count(backbone: nn.Module, names: Iterable[str], batch: int, num_classes: int) -> list[Row]:
    """Operations and bytes of each method and of its bound; `backbone` a ViT on the meta device."""
    model: Any = backbone
    images = torch.randn(batch, 3, *model.patch_embed.img_size, device="meta")
    labels = torch.zeros(batch, dtype=torch.long, device="meta")
    seen: dict[Bound | str, tuple[int, int]] = {}

    def costs(of: Bound | str) -> tuple[int, int]:
        if of not in seen:
            make: Any = tuned if isinstance(of, str) else bound_model
            step = make(backbone, of, num_classes)
            seen[of] = step_flops(step, images, labels), step_bytes(step, images, labels)
        return seen[of]

    rows = []
    for name in names:
        (flops, kept), (bound_flops, bound_bytes) = costs(name), costs(BOUNDS[name])
        row: Row = {"method": name, "flops": flops, "bytes": kept}
        row["peak"] = step_peak(tuned(backbone, name, num_classes), images, labels)
        rows.append(row | {"bound_flops": bound_flops, "bound_bytes": bound_bytes})
    return rows


def above_bound(row: Row) -> bool:
    """Whether a method does or keeps more than a tenth more than its bound."""
    return any(row[what] > ALLOWED * row[f"bound_{what}"] for what in ("flops", "bytes"))


def measure(
    backbone: nn.Module, rows: list[Row], batch: int, num_classes: int, repeats: int, path: Path
) -> None:
    """Add to each row the time of a step relative to one of full fine-tuning, in turns; a row that
    has a time keeps it. Eight methods share a full one (there is no room for all at once), and
    `path` is written after each eight."""
    model: Any = backbone
    images = torch.randn(batch, 3, *model.patch_embed.img_size)
    labels = torch.arange(batch) % num_classes
    full = tuned(backbone, "full", num_classes)
    write_rows(path, rows)
    wanted = [row for row in rows if "step" not in row and row["method"] not in UNMEASURED]
    for start in tqdm(range(0, len(wanted), 8), desc="steps"):
        some = wanted[start : start + 8]
        models = [tuned(backbone, row["method"], num_classes) for row in some]
        # Of the processor's seconds: on a shared machine those on the wall are not the step's own.
        ratios = step_ratios(models, full, images, labels, repeats, time.process_time)
        for row, ratio in zip(some, ratios, strict=True):
            row["step"] = ratio
        write_rows(path, rows)


def counted(path: Path, repeats: int = 3) -> list[Row]:
    """One row for each method, written to `path` (JSON). Everything is counted anew; a time that
    is in the file stays there, so that a stopped run continues."""
    names = [name for name in map(short, vt.METHODS) if name in BOUNDS]
    known = {row["method"]: row for row in read_rows(path, "method")}
    rows = count(vt.create_backbone("vit_base_patch16_224", device="meta"), names, 4, 100)
    for row in rows:
        if "step" in (old := known.get(row["method"], {})):
            row["step"] = old["step"]
    measure(vt.create_backbone("vit_base_patch16_224"), rows, 4, 100, repeats, path)
    return rows


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table, relative to full fine-tuning and to the bound."""
    full = next(row for row in rows if row["method"] == "full")
    lines = [
        "| | operations / full | bytes / full | peak / full | operations / bound | bytes / bound |"
        " step / full | |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        ratios = [
            row[what] / (full[what] if whole == "full" else row[f"bound_{what}"])
            for whole in ("full", "bound")
            for what in ("flops", "bytes")
        ]
        ratios.insert(2, row["peak"] / full["peak"])
        cells = [row["method"], *(f"{ratio:.2f}" for ratio in ratios)]
        cells.append(f"{row['step']:.2f}" if "step" in row else "")
        cells.append(REMARKS.get(row["method"], "") if above_bound(row) else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
