"""`python -m vtlite bench-ops`: every custom operation beside plain PyTorch and torch.compile, at
the sizes of ViT-B/16 and ViT-L/14.

Times are medians, and every ratio is taken within one run, the ways in turns. The limit is the time
in which the machine could at best move the bytes (each input and output once) or do the arithmetic,
whichever is longer: no implementation can be faster. Where no datasheet is known, both speeds are
those of a large copy and a large product in the same run, and a share may come out a little above
100 %. Memory is, on a GPU, the peak of one forward and backward pass; on a CPU, what the forward
pass keeps for the backward pass. `--estimate` counts bytes and arithmetic without running anything;
`--models` times training steps of whole networks.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vtlite.bench_ops.cases import OPERATIONS, SIZES, TINY
from vtlite.bench_ops.models import measure_models
from vtlite.bench_ops.tables import HEADER, estimate_table
from vtlite.bench_ops.timing import measure
from vtlite.bench_ops.traffic import ESTIMATED, estimate, machine
from vtlite.ops._launch import triton
from vtlite.storage import VTError, atomic_write, unknown
from vtlite.version import __version__

Row = dict[str, Any]


def bench_ops(
    device: str | None = None,
    path: Path | None = None,
    tiny: bool = False,
    ops: str | None = None,
    models: bool = False,
    estimated: bool = False,
    repeats: int | None = None,
) -> dict[str, Any]:
    """Print a Markdown table, and write it with the device and the versions to `path` (JSON). See
    the module's first lines.

    `device` is "cpu" or "cuda" (None: a GPU if there is one). `tiny` is a smoke test: small sizes,
    no torch.compile, times that mean nothing.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise unknown("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available() and not estimated:
        raise VTError(
            "expected a CUDA GPU for --device cuda, found none; use --device cpu, or --estimate,"
            " which runs nothing"
        )
    if repeats is not None and repeats < 1:
        raise VTError(
            f"expected at least one repeat, found {repeats}; leave --repeats out for the default"
        )
    names = ops.split(",") if ops else list(OPERATIONS)
    for name in names:
        if name not in OPERATIONS:
            raise unknown("operation", name, OPERATIONS)
    if path is not None and not path.parent.is_dir():
        raise VTError(
            f"expected an existing folder to write {path.name} into, found no {path.parent}; create"
            " it first"
        )
    sizes = (
        TINY
        if tiny
        else (
            SIZES
            if device == "cuda" or estimated
            else {k: replace(z, batch=4, rows=64) for k, z in SIZES.items()}
        )
    )
    result: dict[str, Any] = {
        "sizes": {name: asdict(size) for name, size in sizes.items()},
        "versions": versions(),
    }
    result["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    repeats = repeats or (3 if tiny else 50 if device == "cuda" else 25)
    if estimated:
        result |= {
            "kind": "estimate",
            "machine": asdict(ESTIMATED),
            "operations": estimate(names, sizes),
        }
        print(estimate_table(result["operations"], ESTIMATED))
    elif models:
        print(
            f"{'| one training step | usual, ms | ours, ms | ratio | memory, usual | ours |'}\n|---|---:|---:|---:|---:|---:|"
        )
        result |= {"kind": "measurement", "device": device, "threads": torch.get_num_threads()}
        result["models"] = measure_models(device, repeats, tiny)
    else:
        limits = machine(device, torch.bfloat16 if device == "cuda" else torch.float32, tiny)
        print(
            f"{limits.name}: {limits.bandwidth / 1e9:,.0f} GB/s, {limits.flops / 1e12:,.2f} Tflop/s"
            f" ({limits.source})\n\n{HEADER}"
        )
        result |= {
            "kind": "measurement",
            "device": device,
            "threads": torch.get_num_threads(),
            "machine": asdict(limits),
        }
        result["operations"] = measure(names, sizes, device, limits, repeats, compiled=not tiny)
    if path is not None:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def versions() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__ if triton else None,
        "vtlite": __version__,
    }
