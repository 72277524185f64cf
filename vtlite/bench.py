"""`python -m vtlite bench`: every method on every embedded task, three seeds, learning rates chosen on validation data.

The protocol of the field (VTAB-1k): for each method and task, the learning rate with the best accuracy on the 200 validation images after
training on the 800 training images; then training on all 1,000 with each of three seeds, and one look at the test images each.
Every finished run is kept in the results file at once, so a stopped benchmark continues where it was.
"""

from __future__ import annotations

import json
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from vtlite.backbones import create_backbone, load_backbone
from vtlite.data.tasks import TASKS, ImageDataset, Task, load_task
from vtlite.methods.base import Backbone
from vtlite.storage import VTError, atomic_write
from vtlite.tour import SMALL
from vtlite.training import evaluate, fit
from vtlite.tuning import count_parameters, tune

SEEDS = (0, 1, 2)
EPOCHS = 15
# Wide enough that the best of a grid is seldom at its edge.
FULL_LRS, SMALL_LRS, HEAD_LRS = (2e-4, 6e-4, 2e-3, 6e-3), (1e-3, 3e-3, 1e-2, 3e-2), (3e-3, 1e-2, 3e-2, 1e-1)


@dataclass(frozen=True)
class Entry:
    """One line of the table: a method, where its backbone's weights come from, and the learning rates to choose from."""

    method: str
    weights: str = "vtlite-tiny"  # "random": the same architecture untrained; "pixels": no backbone at all
    lrs: tuple[float, ...] = SMALL_LRS
    settings: dict[str, Any] = field(default_factory=dict)  # other than the tour's


ENTRIES = {
    "pixels + linear": Entry("linear", "pixels", (1e-4, 1e-3, 1e-2, 1e-1, 1.0)),
    "random backbone + linear": Entry("linear", "random", HEAD_LRS),
    "from scratch": Entry("full", "random", FULL_LRS),
    "linear": Entry("linear", lrs=HEAD_LRS),
    "full": Entry("full", lrs=FULL_LRS),
    "vpt_deep": Entry("vpt_deep"),
    "adaptformer": Entry("adaptformer"),
    "adaptformer, bottleneck 48": Entry("adaptformer", settings={"bottleneck": 48}),
    "lora": Entry("lora"),
    "lora, rank 16 on q, k, v": Entry("lora", settings={"rank": 16, "targets": "qkv"}),
    "bitfit": Entry("bitfit"),
    "ssf": Entry("ssf"),
    "kd": Entry("kd", lrs=FULL_LRS[1:]),
}


def run_cell(name: str, task_name: str, lr: float, seed: int, final: bool) -> dict[str, Any]:
    """One training run: accuracy on the validation images, or on the test images after training on all 1,000 (`final`)."""
    torch.set_num_threads(1)
    entry, task = ENTRIES[name], load_task(task_name)
    assert isinstance(task.train, ImageDataset)
    assert isinstance(task.val, ImageDataset)
    if final:
        both = ImageDataset(torch.cat([task.train.images, task.val.images]), torch.cat([task.train.labels, task.val.labels]))
        train, held_out = both, task.test
    else:
        train, held_out = task.train, task.val
    if entry.weights == "pixels":
        accuracy, trainable = _pixels(train, held_out, task, lr)
    else:
        settings = {**SMALL.get(entry.method, {}), **entry.settings}
        model = tune(_backbone(entry.weights), entry.method, num_classes=task.num_classes, seed=seed, **settings)
        fit(model, train, epochs=EPOCHS, lr=lr, seed=seed, progress=False)
        accuracy, trainable = evaluate(model, held_out)["accuracy"], count_parameters(model)[0]
    return {"entry": name, "task": task_name, "lr": lr, "seed": seed, "final": final, "accuracy": accuracy, "trainable": trainable}


@cache
def _backbone(weights: str) -> Backbone:
    if weights != "random":
        return load_backbone(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_backbone("vtlite-tiny")


def _pixels(train: ImageDataset, test: Any, task: Task, strength: float) -> tuple[float, int]:
    """Logistic regression on raw pixels; `strength` is scikit-learn's C, chosen like a learning rate."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=1000).fit(train.images.flatten(1).numpy() / 255, train.labels.numpy())
    return float(model.score(test.images.flatten(1).numpy() / 255, test.labels.numpy())), model.coef_.size + len(task.classes)


def bench(
    results: Path, workers: int = 2, entries: tuple[str, ...] = tuple(ENTRIES), tasks: tuple[str, ...] = TASKS
) -> list[dict[str, Any]]:
    """Run what `results` (JSON) lacks, `workers` processes of one thread each, and return all runs.

    Choosing comes first for every cell, the final runs follow as soon as their choice is made.
    """
    runs: list[dict[str, Any]] = _read(results)
    done = {_key(run) for run in runs}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for final in (False, True):
            wanted = [key for name in entries for task in tasks for key in _wanted(name, task, final, runs) if key not in done]
            futures = [pool.submit(run_cell, *key) for key in wanted]
            for future in tqdm(as_completed(futures), total=len(futures), desc="final runs" if final else "choosing on validation data"):
                runs.append(future.result())
                with atomic_write(results) as temporary:
                    temporary.write_text("[\n" + ",\n".join(json.dumps(run) for run in sorted(runs, key=_key)) + "\n]\n")
    return runs


def chosen_lr(name: str, task: str, runs: list[dict[str, Any]]) -> float:
    """The learning rate with the best validation accuracy; the smaller one in a tie."""
    found = [run for run in runs if (run["entry"], run["task"], run["final"]) == (name, task, False)]
    return min(found, key=lambda run: (-run["accuracy"], run["lr"]))["lr"]


def _wanted(name: str, task: str, final: bool, runs: list[dict[str, Any]]) -> list[tuple[str, str, float, int, bool]]:
    if not final:
        return [(name, task, lr, SEEDS[0], False) for lr in ENTRIES[name].lrs]
    return [(name, task, chosen_lr(name, task, runs), seed, True) for seed in SEEDS]


def _key(run: dict[str, Any]) -> tuple[str, str, float, int, bool]:
    return run["entry"], run["task"], run["lr"], run["seed"], run["final"]


def _read(results: Path) -> list[dict[str, Any]]:
    if not results.exists():
        return []
    try:
        return json.loads(results.read_text())
    except json.JSONDecodeError as error:
        raise VTError(f"{results} is not a results file ({error}); delete it or give another path") from error


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per entry: mean test accuracy and standard deviation over seeds per task, and the mean over tasks (each over its seeds)."""
    rows = []
    for name, entry in ENTRIES.items():
        finals = [run for run in runs if run["entry"] == name and run["final"]]
        if not finals:
            continue
        per_task = {task: [run["accuracy"] for run in finals if run["task"] == task] for task in TASKS}
        per_seed = [statistics.mean(run["accuracy"] for run in finals if run["seed"] == seed) for seed in SEEDS]
        rows.append({
            "entry": name,
            "method": entry.method,
            "weights": entry.weights,
            "trainable": round(statistics.mean(run["trainable"] for run in finals)),
            "tasks": {task: (statistics.mean(values), statistics.pstdev(values)) for task, values in per_task.items() if values},
            "mean": statistics.mean(per_seed),
            "spread": statistics.pstdev(per_seed),
            "lrs": {task: chosen_lr(name, task, runs) for task, values in per_task.items() if values},
        })  # fmt: skip
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The summary as a Markdown table: accuracies in per cent, mean and spread over seeds."""
    lines = ["| | trainable | " + " | ".join(TASKS) + " | mean |", "|---|---:|" + "---:|" * (len(TASKS) + 1)]
    for row in rows:
        cells = [f"{100 * m:.1f} ± {100 * s:.1f}" for m, s in row["tasks"].values()]
        lines.append(
            f"| {row['entry']} | {row['trainable']:,} | {' | '.join(cells)} | **{100 * row['mean']:.1f} ± {100 * row['spread']:.1f}** |"
        )
    return "\n".join(lines)
