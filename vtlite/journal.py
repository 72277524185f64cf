"""What a training has finished, in one file: so that the same call goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from vtlite.storage import VTError, load_tensors, save_tensors


@dataclass
class Step:
    """One part of a training: a run of the plain loop, or what `Train.once` was given to do."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    finished: bool = False


class Journal:
    """The steps of one training by their order, kept in `path` (None: nowhere).

    A method takes its steps in the same order each time, so the number of a step is its name.
    Raises `VTError` for a file of another training.
    """

    def __init__(self, path: Path | None = None, identity: dict[str, Any] | None = None) -> None:
        self.path, self.identity = path, identity or {}
        self.steps: dict[int, Step] = {}
        self.begun = 0
        if path is not None and path.exists():
            self.read(path)

    def begin(self) -> int:
        """The number of the next step."""
        self.begun += 1
        return self.begun - 1

    @torch.no_grad()
    def restore(self, number: int, state: Mapping[str, Tensor]) -> Step | None:
        """Copy what is kept of a step into `state` and return the step; None if nothing is."""
        step = self.steps.get(number)
        if step is None:
            return None
        if state.keys() != step.tensors.keys():
            raise VTError(
                f"the checkpoint {self.path} belongs to another model (its tensors have other "
                "names); delete it or give another path"
            )
        for name, tensor in step.tensors.items():
            state[name].copy_(tensor)
        return step

    def keep(
        self,
        number: int,
        state: Mapping[str, Tensor],
        optimizer: dict[int, dict[str, Tensor]] | None = None,
        history: list[dict[str, float]] | None = None,
        finished: bool = False,
    ) -> None:
        """Write where a step stands, with all steps before it, atomically."""
        if self.path is None:
            return
        copies = {name: tensor.detach().clone() for name, tensor in state.items()}
        self.steps[number] = Step(copies, optimizer or {}, history or [], finished)
        tensors = {}
        for i, step in self.steps.items():
            tensors.update({f"{i}/model/{name}": t for name, t in step.tensors.items()})
            for j, values in step.optimizer.items():
                tensors.update({f"{i}/optimizer/{j}/{name}": t for name, t in values.items()})
        steps = [{"history": s.history, "finished": s.finished} for s in self.steps.values()]
        save_tensors(self.path, tensors, {"run": self.identity, "steps": steps})

    def read(self, path: Path) -> None:
        tensors, metadata = load_tensors(path)
        if metadata.get("run") != self.identity:
            run = metadata.get("run")
            found: dict[str, Any] = run if isinstance(run, dict) else {}
            differing = [k for k, v in self.identity.items() if found.get(k, self) != v]
            raise VTError(
                f"the checkpoint {path} belongs to another run ({', '.join(differing)} differ); "
                "delete it or give another path"
            )
        for i, kept in enumerate(cast(list[dict[str, Any]], metadata["steps"])):
            self.steps[i] = Step({}, {}, kept["history"], kept["finished"])
        for key, tensor in tensors.items():
            number, kind, name = key.split("/", 2)
            step = self.steps[int(number)]
            if kind == "model":
                step.tensors[name] = tensor
            else:
                index, _, value = name.partition("/")
                step.optimizer.setdefault(int(index), {})[value] = tensor
