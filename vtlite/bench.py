"""`python -m vtlite bench`: every method on every embedded task, three seeds, learning rates chosen
on validation data.

The protocol of the field (VTAB-1k): for each method and task, the learning rate with the best
accuracy on the 200 validation images after training on the 800 training images; then training on
all 1,000 with each of three seeds, and one look at the test images each. Every finished run is kept
in the results file at once, so a stopped benchmark continues where it was; so is every row of
costs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from vtlite.accounting import (
    activation_memory,
    delta_size,
    latency_ratio,
    step_ratio,
    without_method,
)
from vtlite.backbones import create_backbone, load_backbone, load_clip
from vtlite.data.images import ImageDataset, joined
from vtlite.data.tasks import load_task
from vtlite.method import Backbone, Tuned, count_parameters, short
from vtlite.methods import METHODS, find_method
from vtlite.runs import ASKED, Run, best_lr, read_rows, run_missing, wanted, worker_pool, write_rows
from vtlite.runs import SEEDS as SEEDS  # lessons ask the benchmark for it
from vtlite.storage import unknown
from vtlite.studies import further, in_sequence, shifted, small_resnet, small_vit
from vtlite.task import Stream, Task
from vtlite.training import Diverged, evaluate, fit
from vtlite.tuning import tune
from vtlite.zero_shot import ZeroShot

BENCHED = ("fashion", "digits", "twemoji", "shapes-location", "shapes-count")  # classifications
EPOCHS = 15
ON_RESNET = ", on the ResNet"


@dataclass(frozen=True)
class Entry:
    """One line of the table: a method, where its backbone's weights come from, and what else
    differs from the method's own settings for a small backbone and its own learning rates."""

    method: str
    # "random": the same, untrained; "pixels": no backbone at all; "words": no training at all
    weights: str = "vtlite-tiny"
    lrs: tuple[float, ...] = ()  # to choose from; the method's own if none are given
    settings: dict[str, Any] = field(default_factory=dict)
    # Where nothing trains: the settings that a number of `lrs` stands for.
    by: Callable[[float], dict[str, Any]] | None = None
    at_once: bool = False  # the domains of a stream together, not one after another
    # seed -> an untrained network that learns from the backbone, on shifted images
    student: Callable[[int], Backbone] | None = None

    def tuned(self, task: Task, seed: int = 0, lr: float = 0.0) -> Tuned:
        """The method on its backbone."""
        settings = {**find_method(self.method).small, **self.settings}
        if self.by:
            settings |= self.by(lr)
        if self.student:
            settings["student"] = self.student(seed)
        return tune(_backbone(self.weights), self.method, task, seed, **settings)

    def choices(self) -> tuple[float, ...]:
        return self.lrs or find_method(self.method).lrs


# Weight 0: the labels alone. Its teacher is made and not heard, so it need not be a good one.
ALONE: dict[str, Any] = {"weight": 0.0, "teacher_epochs": 1}


def _student(method: str, small: Callable[[int], Backbone] = small_resnet, **more: Any) -> Entry:
    """A small network that learns from vtlite-resnet, of which all is tuned."""
    lrs = (1e-2, 2e-2) if small is small_resnet else (2e-3, 4e-3)
    return Entry(method, "vtlite-resnet", lrs, {"teacher_method": "full", **more}, student=small)


TAUGHT: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("kd", "fitnet", "attention_transfer", "activation_boundaries")},
    "dfa": {"layers": (2, 4)},  # it mixes, so it needs more of the teacher's
    **{name: {} for name in ("normalized_kd", "dkd", "rkd")},
}
STUDENTS = {
    "student alone": _student("kd", **ALONE),
    **{f"student, {method}": _student(method, **more) for method, more in TAUGHT.items()},
    # The methods' own weights suit a ViT's maps; a student of other maps may want the teacher less.
    "student, kd, weight 0.5": _student("kd", weight=0.5),
    "student, attention_transfer, weight 1": _student("attention_transfer", weight=1.0),
    "ViT student alone": _student("kd", small_vit, **ALONE),
    "ViT student, kd": _student("kd", small_vit),
    "ViT student, distillation_token": _student("distillation_token", small_vit),
}

ENTRIES = {
    "pixels + linear": Entry("linear", "pixels", (1e-4, 1e-3, 1e-2, 1e-1, 1.0)),
    "random backbone + linear": Entry("linear", "random"),
    "from scratch": Entry("full", "random"),
    "zero-shot": Entry("linear", "words", (1.0,)),  # and no learning rate
    **{short(key): Entry(short(key), cls.measured_on) for key, cls in METHODS.items()},
    "adaptformer, bottleneck 48": Entry("adaptformer", settings={"bottleneck": 48}),
    "lora, rank 16 on q, k, v": Entry("lora", settings={"rank": 16, "targets": "qkv"}),
    "full" + ON_RESNET: Entry("full", "vtlite-resnet"),
    "linear" + ON_RESNET: Entry("linear", "vtlite-resnet"),
    "full, all at once": Entry("full", at_once=True),
    "st_adapter, 3x3x3": Entry("st_adapter", settings={"kernel": (3, 3, 3), "bottleneck": 16}),
    # Nothing trains: what is chosen is how far a context moves, and how much the cache counts.
    "tpt": Entry("tpt", "vtlite-clip", (5e-4, 2e-3, 5e-3, 2e-2), by=lambda n: {"step": n}),
    "tda": Entry("tda", "vtlite-clip", (0.2, 0.6, 2.0), by=lambda n: {"alphas": (n, 0.06 * n)}),
    **STUDENTS,
}

# Their networks are others: studies say what they are worth, and the tables what they cost.
REMAPPED = tuple(
    name
    for name in map(short, METHODS)
    if find_method(name).key.startswith("remapping/") and name not in ("kd", "block_expansion")
)
# Their tasks are others: studies have them (vtlite.studies), the tables of all tasks do not.
ELSEWHERE = (
    *REMAPPED,
    *("dualcoop", "full, all at once", "aim", "st_adapter", "st_adapter, 3x3x3", "tpt", "tda"),
    *("vit_adapter", "evp", "lpt", "s_prompting", "zero-shot"),
    *STUDENTS,
)
TABLED = tuple(name for name in ENTRIES if name not in ELSEWHERE)


def run_cell(
    name: str, task_name: str, lr: float, seed: int, final: bool, epochs: int = EPOCHS
) -> dict[str, Any]:
    """One training run: the score (of a classification, its accuracy) on the validation images, or
    on the test images after training on all others (`final`).

    Of a few-shot task the seed is also the draw, and validation images stay out of the training. A
    run that diverges has the score 0.
    """
    torch.set_num_threads(1)
    entry, few = ENTRIES[name], task_name.endswith("-shot")
    task = load_task(f"{task_name}:{seed}" if few else task_name)
    train, held_out = task.train, task.val
    more: dict[str, Any] = {}  # what else such tasks are asked (vtlite.studies)
    if final:
        train, held_out = train if few else joined([train, held_out]), task.test

    def again(task: Task) -> Any:
        if entry.weights == "words":
            return ZeroShot(load_clip(), task.classes, "an emoji of {}")
        return entry.tuned(task, seed, lr)

    if entry.weights == "pixels":
        score, trainable = _pixels(train, held_out, task, lr)
    else:
        model: Any = again(task)
        settings: Any = {"epochs": epochs, "lr": lr, "seed": seed}
        try:
            if isinstance(task, Stream) and not entry.at_once:
                score, more = in_sequence(model, task, "test" if final else "val", **settings)
            else:
                score = _score(entry, model, task, train, held_out, **settings)
                more = further(model, task, score, again) if final else {}
        except Diverged:
            score = 0.0  # the largest rate of a grid may be too large: a result like any other
        # now: some methods choose what trains from the data
        trainable = count_parameters(model)[0] if isinstance(model, Tuned) else 0
    return {
        "entry": name,
        "task": task_name,
        "lr": lr,
        "seed": seed,
        "final": final,
        "score": score,
        "trainable": trainable,
        **({"more": more} if more else {}),
    }


def _score(
    entry: Entry, model: nn.Module, task: Task, train: Any, held_out: Any, **settings: Any
) -> float:
    """Train where something trains, and ask about what was held out."""
    if isinstance(model, Tuned):
        augment = shifted if entry.student else None
        fit(model, train, progress=False, augment=augment, **settings)
    batch = 200
    if entry.by:  # the order of the images is all that is left to chance
        generator = Generator().manual_seed(settings["seed"])
        held_out = held_out.subset(torch.randperm(len(held_out), generator=generator))
        batch = len(held_out)  # what learns from the images that it is asked about sees all
    return evaluate(model, held_out, batch, task)[task.metric]


@cache
def _backbone(weights: str) -> Backbone:
    if weights != "random":
        return load_backbone(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_backbone("vtlite-tiny")


def _pixels(train: ImageDataset, test: Any, task: Task, strength: float) -> tuple[float, int]:
    """Logistic regression on raw pixels; `strength` is scikit-learn's C, chosen like a learning
    rate."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=1000).fit(
        train.images.flatten(1).numpy() / 255, train.labels.numpy()
    )
    return float(
        model.score(test.images.flatten(1).numpy() / 255, test.labels.numpy())
    ), model.coef_.size + len(task.classes)


def entries_of(group: str | None) -> tuple[str, ...]:
    """The entries of one of the survey's groups and, to compare with, full fine-tuning and a linear
    probe; all of them for None."""
    if group is None:
        return TABLED
    groups = {name: find_method(entry.method).key.split("/")[0] for name, entry in ENTRIES.items()}
    if group not in groups.values():
        raise unknown("group", group, set(groups.values()))
    own = {name for name in TABLED if groups[name] == group}
    compared = ["full", "linear"]
    if any(ENTRIES[name].weights == "vtlite-resnet" for name in own):
        compared += [name + ON_RESNET for name in compared]
    return tuple(name for name in TABLED if name in own or name in compared)


def bench(
    results: Path,
    workers: int = 2,
    entries: tuple[str, ...] = TABLED,
    tasks: tuple[str, ...] = BENCHED,
    epochs: int = EPOCHS,
) -> list[dict[str, Any]]:
    """Run what `results` (JSON) lacks, `workers` processes of one thread each, and return all runs.

    Task by task, so that a benchmark that was stopped has whole tasks: first the choice for every
    entry, then the final runs.
    """
    runs = read_rows(results, "entry", *ASKED, "trainable")
    cell = partial(run_cell, epochs=epochs)
    with worker_pool(workers) as pool:
        for task in tasks:
            for final in (False, True):
                keys = [
                    key
                    for name in entries
                    for key in wanted(name, task, ENTRIES[name].choices(), final, runs)
                ]
                doing = f"{task}: {'final runs' if final else 'choosing on validation data'}"
                run_missing(pool, cell, keys, results, runs, doing)
    return runs


COSTS = (
    *("entry", "method", "trainable", "delta_bytes", "activation_bytes"),
    *("step_ratio", "latency_ratio", "merged"),
)


def costs(path: Path, entries: tuple[str, ...]) -> list[dict[str, Any]]:
    """What each method costs on its embedded backbone, one row per entry, added to those in `path`
    (JSON) as soon as it is measured.

    Bytes and numbers are exact. Times are ratios measured in turns: a training step to one of full
    fine-tuning, a forward pass of the merged model (where it merges) to one of the untouched
    backbone. Of two towers both are those of the image tower, which is `vtlite-tiny`.
    """
    rows = read_rows(path, *COSTS)
    done = {row["entry"] for row in rows}
    missing = [
        name for name in entries if name not in done and ENTRIES[name].weights.startswith("vtlite-")
    ]
    if not missing:
        return rows
    task = load_task("twemoji")
    images, labels = next(iter(DataLoader(task.train, 50)))
    references = {  # full fine-tuning and the untouched network
        place: [ENTRIES[name + place].tuned(task) for name in ("full", "linear")]
        for place in ("", ON_RESNET)
    }
    for name in tqdm(missing, desc="costs"):
        model = ENTRIES[name].tuned(task)
        # Some choose from the data what trains, or search for a network, at their own rate.
        lr = None if name in REMAPPED else 1e-6
        fit(model, task.train, epochs=1, lr=lr, progress=False)
        deployed = without_method(model)
        full, plain = references[ON_RESNET if ENTRIES[name].weights == "vtlite-resnet" else ""]
        rows.append(
            {
                "entry": name,
                "method": model.method.key,
                "trainable": count_parameters(model)[0],
                "delta_bytes": delta_size(model),
                "activation_bytes": activation_memory(model, images, labels),
                "step_ratio": step_ratio(model, full, images, labels),
                "latency_ratio": latency_ratio(deployed, plain, images),
                "merged": deployed is not model,
            }
        )
        write_rows(path, rows)
    return rows


def chosen_lr(name: str, task: str, runs: list[Run]) -> float:
    """The learning rate with the best validation score; the smaller one in a tie."""
    return best_lr(name, task, ENTRIES[name].choices(), runs)


def summary(runs: list[dict[str, Any]], among: tuple[str, ...] = BENCHED) -> list[dict[str, Any]]:
    """One row per entry: mean test score and standard deviation over seeds per task, and the
    mean over tasks (each over its seeds).

    Left out are final runs at a learning rate that another has replaced, since its grid was
    widened, and tasks that some entry lacks: a mean is compared with others over the same tasks.
    """
    runs = [run for run in runs if run["entry"] in ENTRIES]  # others are of another version
    chosen = {
        pair: chosen_lr(*pair, runs)
        for pair in {(run["entry"], run["task"]) for run in runs if run["final"]}
    }
    finals = [
        run for run in runs if run["final"] and run["lr"] == chosen[run["entry"], run["task"]]
    ]
    seen = {(run["entry"], run["task"]) for run in finals}
    tasks = [task for task in among if all((name, task) in seen for name, _ in seen)]
    rows = []
    for name, entry in ENTRIES.items():
        own = [run for run in finals if run["entry"] == name and run["task"] in tasks]
        if not own:  # or no task is whole yet
            continue
        per_task = {task: [run["score"] for run in own if run["task"] == task] for task in tasks}
        per_seed = [
            statistics.mean(run["score"] for run in own if run["seed"] == seed)
            for seed in {run["seed"] for run in own}
        ]
        rows.append(
            {
                "entry": name,
                "method": entry.method,
                "weights": entry.weights,
                "trainable": round(statistics.mean(run["trainable"] for run in own)),
                "tasks": {
                    task: (statistics.mean(values), statistics.pstdev(values))
                    for task, values in per_task.items()
                },
                "mean": statistics.mean(per_seed),
                "spread": statistics.pstdev(per_seed),
                "lrs": {task: chosen[name, task] for task in tasks},
                "more": _more(own),
            }
        )
    return rows


def _more(runs: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """What else was asked of the final runs, mean and spread; tables of it are left out."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.get("more", {}).items():
            if not isinstance(value, list):
                found.setdefault(name, []).append(value)
    return {name: (statistics.mean(v), statistics.pstdev(v)) for name, v in found.items()}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The summary as a Markdown table: scores in per cent, mean and spread over seeds, with what
    else was asked where there is one task, and with their mean where there are more."""
    tasks = tuple(rows[0]["tasks"]) if rows else ()
    more = tuple(dict.fromkeys(name for row in rows for name in row["more"]))
    columns = (*tasks, "mean") if len(tasks) > 1 else (*tasks, *more)
    lines = [f"| | trainable | {' | '.join(columns)} |", "|---|---:|" + "---:|" * len(columns)]
    for row in rows:
        found = {**row["more"], **row["tasks"], "mean": (row["mean"], row["spread"])}
        cells = [
            f"{100 * found[c][0]:.1f} ± {100 * found[c][1]:.1f}" if c in found else ""
            for c in columns
        ]
        if len(tasks) > 1:
            cells[-1] = f"**{cells[-1]}**"
        lines.append(f"| {row['entry']} | {row['trainable']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def costs_markdown(rows: list[dict[str, Any]], costs: list[dict[str, Any]]) -> str:
    """Accuracy beside every cost as a Markdown table, the most accurate first, then what has no
    accuracy on all tasks; a latency with a star is that of an unmerged model."""
    found = {row["entry"]: row for row in costs}
    lines = [
        "| | mean accuracy | trainable | delta | step | activations | latency |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    known = [row for row in rows if row["entry"] in found]
    for row in sorted(known, key=lambda row: -row.get("mean", 0)):
        cost = found[row["entry"]]
        mean = f"{100 * row['mean']:.1f} ± {100 * row['spread']:.1f}" if "mean" in row else ""
        lines.append(
            f"| {row['entry']} | {mean} |"
            f" {cost['trainable']:,} | {cost['delta_bytes'] / 1024:,.0f} KiB |"
            f" {cost['step_ratio']:.2f}x | {cost['activation_bytes'] / 2**20:.1f} MiB |"
            f" {cost['latency_ratio']:.2f}x{'' if cost['merged'] else ' *'} |"
        )
    return "\n".join(lines)
