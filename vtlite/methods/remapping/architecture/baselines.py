"""What a search has to beat, as plain functions: random cells, and cells of one operation.

>>> ranked = random_search(backbone, task, budget=8)
>>> model = vt.tune(backbone, "darts", task, cell=ranked[0][1])  # the best one, to be trained anew
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vtlite.arguments import seed_number, whole
from vtlite.method import Backbone
from vtlite.methods.remapping.architecture.cells import NONE, edges, halves
from vtlite.methods.remapping.architecture.darts import DARTS
from vtlite.storage import VTError
from vtlite.task import Task
from vtlite.training import evaluate, fit
from vtlite.tuning import tune

Ranked = list[tuple[float, tuple[str, ...]]]


def random_cell(
    nodes: int, operations: Sequence[str], generator: torch.Generator
) -> tuple[str, ...]:
    """A cell as DARTS reads them, drawn evenly: two edges a node, of each one operation."""
    some = [name for name in operations if name != NONE]
    cell = [NONE] * len(edges(nodes))
    for node in range(2, nodes + 2):
        at = [e for e, (_, target) in enumerate(edges(nodes)) if target == node]
        for place in torch.randperm(len(at), generator=generator)[:2].tolist():
            cell[at[place]] = some[int(torch.randint(len(some), (), generator=generator))]
    return tuple(cell)


def single_operation_cells(nodes: int, operations: Sequence[str]) -> list[tuple[str, ...]]:
    """For each operation the cell that has it, and no other, on both inputs of every node."""
    return [
        tuple(name if source < 2 else NONE for source, _ in edges(nodes))
        for name in operations
        if name != NONE
    ]


def ranked(
    cells: Sequence[tuple[str, ...]],
    backbone: Backbone,
    task: Task,
    *,
    epochs: int = 10,
    seed: int = 0,
    method: DARTS | None = None,
    **settings: Any,
) -> Ranked:
    """Train each cell on half of the training images and score it on the other half, as a search
    sees them -> (score, cell), the best first. `settings` are those of `fit`."""
    if not task.train:
        raise VTError(
            f"expected a task with training images, found {task.name or 'one'} without; "
            "load one with vt.load_task"
        )
    (data, held_out), scores = halves(task.train, "ranked"), []
    for cell in cells:
        model = tune(backbone, method or DARTS(), task, seed, cell=cell)
        fit(model, data, epochs=epochs, seed=seed, **{"progress": False, **settings})
        scores.append(evaluate(model, held_out)[task.metric])
    order = sorted(range(len(cells)), key=lambda i: -scores[i])
    return [(scores[i], tuple(cells[i])) for i in order]


def random_search(
    backbone: Backbone,
    task: Task,
    budget: int,
    seed: int = 0,
    method: DARTS | None = None,
    **settings: Any,
) -> Ranked:
    """`budget` random cells, ranked. Raises `VTError` for a budget below one."""
    budget, space = whole("budget", budget), method or DARTS()
    generator = torch.Generator().manual_seed(seed_number(seed))
    cells = [random_cell(space.nodes, space.operations, generator) for _ in range(budget)]
    return ranked(cells, backbone, task, seed=seed, method=space, **settings)


def best_single_operation(
    backbone: Backbone, task: Task, seed: int = 0, method: DARTS | None = None, **settings: Any
) -> Ranked:
    """The cells of one operation each, ranked."""
    space = method or DARTS()
    cells = single_operation_cells(space.nodes, space.operations)
    return ranked(cells, backbone, task, seed=seed, method=space, **settings)
