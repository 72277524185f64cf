"""`python -m vtlite bench --study growth`: networks that grow beside networks that were as large
from the start, and searches for what should grow beside steps at random."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.backbones import create_backbone, load_backbone
from vtlite.data.tasks import load_task
from vtlite.method import Method, Train, Tuned
from vtlite.methods.remapping.weight.eas import EAS
from vtlite.methods.remapping.weight.n2n import N2N
from vtlite.methods.remapping.weight.nash import NASH
from vtlite.methods.remapping.weight.path_level_eas import PathLevelEAS
from vtlite.methods.remapping.weight.steps import block_tokens, numbers, show
from vtlite.runs import ASKED, Run, finals, read_rows, run_missing, wanted, worker_pool
from vtlite.task import Task
from vtlite.training import evaluate, fit
from vtlite.tuning import tune

TASKS = ("digits", "shapes-count")
START, EPOCHS = 10, 10  # of the small network, and after it has grown
SMALL_LR = 2e-2  # of the small network: the best of a grid on validation images
LRS = (2e-3, 6e-3, 2e-2)

SEARCHED = ("digits",)  # at a good rate the backbone counts shapes as well without any step
BUDGET, FINAL = 20, 10  # epochs of all candidates together, and of the one that was found
SEARCH_LRS = (2e-3, 6e-3)  # lower ones favour what is larger and learns faster


# Growing
# -------------------------------------------------------------------------------------------------


def small_network(task: Task, seed: int, epochs: int = START, width: int = 4) -> Tuned:
    """A new ResNet of few numbers, trained for a while."""
    torch.manual_seed(seed)
    model = tune(create_backbone("vtlite-resnet", width=width), "full", task, seed=seed)
    fit(model, task.train, epochs=epochs, lr=SMALL_LR, seed=seed, progress=False)
    return model


def grown(small: Tuned, method: str | Method, task: Task, seed: int = 0, **settings: Any) -> Tuned:
    """The network after one method's growth, with the head that it had: the same function."""
    torch.manual_seed(seed)
    model = tune(small.backbone, method, task, seed=seed, **settings)
    model.head.load_state_dict(small.head.state_dict())
    return model


def from_scratch(model: Tuned, task: Task, seed: int = 0) -> Tuned:
    """A network of the same shape that has learnt nothing."""
    torch.manual_seed(seed)
    backbone = copy.deepcopy(model.backbone)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return tune(backbone, "full", task, seed=seed)


@torch.no_grad()
def padded(small: Tuned, wider: Tuned, task: Task, seed: int = 0) -> Tuned:
    """The wider network with the old units as they were, and the new ones drawn at random: what
    Net2Wider is compared with in its paper."""
    model = from_scratch(wider, task, seed)
    old = small.state_dict()
    for name, tensor in model.state_dict().items():
        tensor[tuple(slice(n) for n in old[name].shape)] = old[name]
    return model


def _longer(model: Tuned, task: Task, seed: int) -> Tuned:
    return copy.deepcopy(model)  # the small one stays, for others to grow from


def _wider(model: Tuned, task: Task, seed: int) -> Tuned:
    return grown(model, "net2wider", task, seed)


def _deeper(model: Tuned, task: Task, seed: int) -> Tuned:
    return grown(model, "net2deeper", task, seed, every=1)


def _padded(model: Tuned, task: Task, seed: int) -> Tuned:
    return padded(model, _wider(model, task, seed), task, seed)


def _wide(model: Tuned, task: Task, seed: int) -> Tuned:
    return from_scratch(_wider(model, task, seed), task, seed)


def _deep(model: Tuned, task: Task, seed: int) -> Tuned:
    return from_scratch(_deeper(model, task, seed), task, seed)


# What becomes of the small network, and how many epochs it trains for.
GROWN: dict[str, tuple[Callable[[Tuned, Task, int], Tuned], int]] = {
    "small, trained on": (_longer, EPOCHS),
    "wider, Net2Wider": (_wider, EPOCHS),
    "wider, new units at random": (_padded, EPOCHS),
    "wider, from scratch": (_wide, EPOCHS),
    "wider, from scratch, twice as long": (_wide, START + EPOCHS),
    "deeper, Net2Deeper": (_deeper, EPOCHS),
    "deeper, from scratch": (_deep, EPOCHS),
    "deeper, from scratch, twice as long": (_deep, START + EPOCHS),
}


def grow(arm: str, task: Task, data: Any, lr: float, seed: int) -> Run:
    """Train the small network, let it grow and train on -> its accuracy on `data` before and after
    each epoch."""
    (change, epochs), start = GROWN[arm], small_network(task, seed)
    model = change(start, task, seed)
    before = evaluate(model, data)["accuracy"]
    history = fit(model, task.train, data, epochs=epochs, lr=lr, seed=seed, progress=False)
    return {
        "curve": [before, *(row["val_accuracy"] for row in history)],
        "score": history[-1]["val_accuracy"],
        "numbers": numbers(model.backbone),
    }


# Searching
# -------------------------------------------------------------------------------------------------


def no_policy(network: Any) -> Tensor:
    """Even scores for each block, which learn nothing: every choice is a toss."""
    return torch.zeros(len(block_tokens(network.backbone)), 6)


class RandomEAS(EAS, shared=True):
    """EAS that tosses in place of its policy; the best child is kept all the same."""

    def child(self, controller: Any, parent: Any, limit: float) -> Any:
        return super().child(no_policy, parent, limit)  # type: ignore[arg-type]


class RandomPathLevelEAS(PathLevelEAS, shared=True):
    """Path-level EAS that tosses."""

    def child(self, controller: Any, parent: Any, limit: float) -> Any:
        return super().child(no_policy, parent, limit)  # type: ignore[arg-type]


class RandomN2N(N2N, shared=True):
    """N2N that tosses."""

    def child(self, controller: Any, parent: Any, kind: int) -> Any:
        return super().child(no_policy, parent, kind)  # type: ignore[arg-type]


class RandomSteps(NASH, shared=True):
    """As many steps as NASH takes, at random, all at once, and one training for as long as its
    search takes: nothing is compared."""

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        limit = self.most * numbers(model.backbone)
        for _ in range(self.rounds):
            self.grow(model.network, limit)
        show(model, task.train)
        train(model, task.train, epochs=self.rounds * self.children * self.child_epochs + FINAL)


# All of them train for BUDGET epochs. Four steps at most: a block that is deeper is not wider then,
# and the ResNet has four.
_NASH = {"rounds": 4, "children": 5, "changes": 1, "child_epochs": 1}
_EAS = {"episodes": 6, "children": 3, "start_epochs": 2}
_N2N = {"removals": 0, "shrinkages": 5, "children": 3, "teacher_epochs": 5}  # a stage has one block

SEARCHES: dict[str, Callable[[], str | Method]] = {
    "no step": lambda: "full",
    "steps at random": partial(RandomSteps, **_NASH),
    "NASH": partial(NASH, **_NASH),
    "EAS": partial(EAS, **_EAS),
    "EAS, tossed": partial(RandomEAS, **_EAS),
    "path-level EAS": partial(PathLevelEAS, **_EAS),
    "path-level EAS, tossed": partial(RandomPathLevelEAS, **_EAS),
    "N2N": partial(N2N, **_N2N),
    "N2N, tossed": partial(RandomN2N, **_N2N),
}


def search(arm: str, task: Task, data: Any, lr: float, seed: int) -> Run:
    """Search, and train what was found -> its accuracy on `data`, its size and the steps to it."""
    method = SEARCHES[arm]()
    model = tune(load_backbone("vtlite-resnet"), method, task, seed=seed)
    epochs = FINAL + (BUDGET if method == "full" else 0)
    fit(model, task.train, epochs=epochs, lr=lr, seed=seed, progress=False)
    return {
        "score": evaluate(model, data)["accuracy"],
        "numbers": numbers(model.backbone),
        "steps": [] if method == "full" else model.network.told(),
    }


# The study
# -------------------------------------------------------------------------------------------------


def run_one(arm: str, task_name: str, lr: float, seed: int, final: bool) -> Run:
    """One run: asked on the validation images, or on the test images (`final`)."""
    torch.set_num_threads(1)
    task = load_task(task_name)
    data = task.test if final else task.val
    found = (grow if arm in GROWN else search)(arm, task, data, lr, seed)
    return {"arm": arm, "task": task_name, "lr": lr, "seed": seed, "final": final, **found}


def run(results: Path, workers: int = 2, arms: tuple[str, ...] = (*GROWN, *SEARCHES)) -> list[Run]:
    """Run what `results` (JSON) lacks, and return all runs: first the choice of each rate on
    validation images, then three seeds."""
    runs = read_rows(results, "arm", *ASKED, "numbers")
    with worker_pool(workers) as pool:
        for final in (False, True):
            keys = [
                key
                for arm in arms
                for task in (TASKS if arm in GROWN else SEARCHED)
                for key in wanted(arm, task, LRS if arm in GROWN else SEARCH_LRS, final, runs)
            ]
            doing = "final runs" if final else "choosing on validation images"
            run_missing(pool, run_one, keys, results, runs, doing)
    return runs


def reached(curve: list[float], level: float) -> int | None:
    """The first epoch at the end of which an accuracy was reached; 0 is before any; None: never."""
    return next((epoch for epoch, value in enumerate(curve) if value >= level), None)


def table(runs: list[Run]) -> str:
    """Of what has finished: accuracy, size and rate of each arm, in Markdown."""
    lines = []
    for arms, tasks in ((GROWN, TASKS), (SEARCHES, SEARCHED)):
        for task in tasks:
            found = {arm: own for arm in arms if (own := finals(runs, arm, task))}
            if not found:
                continue
            lines += [f"| {task} | numbers | before | after | rate |"]
            lines += ["|---|---:|---:|---:|---:|", *(_row(*row) for row in found.items()), ""]
    return "\n".join(lines).strip()


def _row(arm: str, own: list[Run]) -> str:
    scores = [100 * run["score"] for run in own]
    curves = [run["curve"][0] for run in own if "curve" in run]
    before = f"{100 * mean(curves):.1f}" if curves else ""
    after = f"{mean(scores):.1f} ({min(scores):.1f} to {max(scores):.1f})"
    return f"| {arm} | {mean(r['numbers'] for r in own):,.0f} | {before} | {after} | {own[0]['lr']:g} |"
