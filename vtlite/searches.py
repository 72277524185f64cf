"""`python -m vtlite bench --study search`: every search for a cell at equal cost, beside cells at
random and cells of one operation.

All have a budget of `SEARCH` epochs on half of the training images: of the supernet, or of the
candidates that are trained and ranked. Then the found cell is trained anew on all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from vtlite.backbones import load_backbone
from vtlite.data.images import joined
from vtlite.data.tasks import load_task
from vtlite.method import Tuned
from vtlite.methods.remapping.architecture.baselines import best_single_operation, random_search
from vtlite.methods.remapping.architecture.cells import (
    SKIP,
    cell_of,
    found_network,
    searched,
    strongest_cell,
)
from vtlite.methods.remapping.architecture.darts import DARTS
from vtlite.runs import ASKED, Run, choice, finals, read_rows, run_missing, wanted, worker_pool
from vtlite.task import Task
from vtlite.training import evaluate, fit
from vtlite.tuning import tune

TASKS = ("twemoji", "shapes-location")
LRS = (3e-3, 1e-2)  # chosen on validation images; alpha's rate goes with it
SEARCH, FINAL = 16, 10  # epochs
OPERATIONS = ("none", "skip_connect", "max_pool_3x3", "sep_conv_3x3", "dil_conv_3x3")
SPACE: dict[str, Any] = {"operations": OPERATIONS, "channels": 8, "cells": 2}

SEARCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "DARTS": ("darts", {}),
    "DARTS, second order": ("darts", {"xi": 0.01}),
    "SNAS": ("snas", {}),
    "P-DARTS": ("p_darts", {}),
    "DARTS+": ("darts_plus", {}),
    "SGAS": ("sgas", {}),
    "MiLeNAS": ("milenas", {}),
    "DARTS-": ("darts_minus", {}),
    "DATA": ("data", {}),
}
# How many candidates share the budget: cells at random, and one cell for each operation.
BASELINES = {"random search": SEARCH // 4, "best single operation": len(OPERATIONS) - 1}
ARMS = (*SEARCHES, *BASELINES)


def skips(cell: Iterable[str]) -> int:
    """The skip connections of a cell."""
    return sum(text.split("+").count(SKIP) for text in cell)


def skips_by_epoch(model: Tuned) -> list[int]:
    """Those of the cell that DARTS would read at the end of each epoch of a search."""
    net = searched(model)
    if SKIP not in net.names:
        return [0] * len(net.trace)
    at = net.names.index(SKIP)
    lived = [w for w in net.trace.cpu() if bool(w.any())]  # a search may end early
    return [int(strongest_cell(w, net.nodes, net.names)[:, at].sum()) for w in lived]


def numbers(model: Tuned) -> int:
    """What trains in the found network, head included."""
    named = found_network(model).named_parameters()
    return sum(p.numel() for name, p in named if p.requires_grad and not name.endswith("alpha"))


def search(arm: str, task: Task, lr: float, seed: int, epochs: int, final: int) -> tuple[Any, Run]:
    """Search with a budget of so many epochs, train the found cell for `final` more -> the model,
    and what the search was like."""
    backbone = load_backbone("vtlite-tiny")
    settings: dict[str, Any] = {"lr": lr, "seed": seed, "progress": False}
    if arm in SEARCHES:
        name, more = SEARCHES[arm]
        model = tune(backbone, name, task, seed, **SPACE, **more, search_epochs=epochs)
        history = fit(model, task.train, epochs=final, **settings)
        seconds, trace = sum(row["seconds"] for row in history[:-final]), skips_by_epoch(model)
    else:
        space, start = DARTS(**SPACE), time.perf_counter()
        more = {"method": space, "epochs": max(1, epochs // BASELINES[arm]), "lr": lr}
        if arm == "random search":
            found = random_search(backbone, task, BASELINES[arm], seed, **more)
        else:
            found = best_single_operation(backbone, task, seed, **more)
        seconds, trace = time.perf_counter() - start, []
        model = tune(backbone, "darts", task, seed, **SPACE, cell=found[0][1])
        fit(model, task.train, epochs=final, **settings)
    cell = cell_of(model)
    about = {"cell": list(cell), "skips": skips(cell), "by_epoch": trace}
    return model, {**about, "seconds": round(seconds, 2), "numbers": numbers(model)}


def run_one(
    arm: str,
    task_name: str,
    lr: float,
    seed: int,
    final: bool,
    epochs: int = SEARCH,
    train: int = FINAL,
) -> Run:
    """One search and training, scored on the validation images, or on the test images after both
    have had the validation images too (`final`)."""
    torch.set_num_threads(1)
    task = load_task(task_name)
    data: Any = task.test if final else task.val
    images: Any = joined([task.train, task.val]) if final else task.train
    task = replace(task, train=images, val=None)
    model, found = search(arm, task, lr, seed, epochs, train)
    score = evaluate(model, data)[task.metric]
    key = {"arm": arm, "task": task_name, "lr": lr, "seed": seed, "final": final}
    return {**key, "score": score, **found}


def run(
    results: Path,
    workers: int = 2,
    arms: tuple[str, ...] = ARMS,
    tasks: tuple[str, ...] = TASKS,
    epochs: int = SEARCH,
    train: int = FINAL,
) -> list[Run]:
    """Run what `results` (JSON) lacks, and return all runs: for each task first the choice of each
    rate on validation images, then three seeds. Each run is kept as soon as it has ended."""
    runs = read_rows(results, "arm", *ASKED, "skips", "numbers", "seconds")
    one = partial(run_one, epochs=epochs, train=train)
    with worker_pool(workers) as pool:
        for task in tasks:
            for final in (False, True):
                keys = [key for arm in arms for key in wanted(arm, task, LRS, final, runs)]
                doing = f"{task}: {'three seeds' if final else 'choosing on validation images'}"
                run_missing(pool, one, keys, results, runs, doing)
    return runs


def table(runs: list[Run], tasks: tuple[str, ...] = TASKS) -> str:
    """Of what has finished: one Markdown table a task. Test accuracy is the mean over seeds, with
    the lowest and the highest; skips are those of each seed's cell."""
    parts = []
    for task in tasks:
        found = {arm: own for arm in ARMS if (own := finals(runs, arm, task))}
        if found:
            head = f"| {task} | test (%) | validation (%) | skips | numbers | search (s) | rate |"
            rows = [_row(arm, own, choice(runs, arm, task)) for arm, own in found.items()]
            parts.append("\n".join([head, "|---|---:|---:|---:|---:|---:|---:|", *rows]))
    return "\n\n".join(parts)


def _row(arm: str, own: list[Run], choice: Run) -> str:
    scores = [100 * run["score"] for run in own]
    test = f"{mean(scores):.1f} ({min(scores):.1f} to {max(scores):.1f})"
    found = ", ".join(str(run["skips"]) for run in own)
    size, seconds = mean(run["numbers"] for run in own), mean(run["seconds"] for run in own)
    rest = f"{100 * choice['score']:.1f} | {found} | {size:,.0f} | {seconds:.0f}"
    return f"| {arm} | {test} | {rest} | {choice['lr']:g} |"
