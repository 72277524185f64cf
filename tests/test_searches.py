"""The study of searches: equal budgets, one file, and a run that was stopped goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vtlite as vt
from vtlite import searches
from vtlite.data.tasks import load_task
from vtlite.methods.remapping.architecture.cells import searched
from vtlite.runs import choice, finals


def row(arm: str, lr: float, score: float, seed: int = 0, final: bool = False) -> dict[str, Any]:
    about = {"cell": [], "skips": 2, "by_epoch": [], "seconds": 3.0, "numbers": 5_000}
    key = {"arm": arm, "task": "twemoji", "lr": lr, "seed": seed, "final": final}
    return {**key, "score": score, **about}


def test_skips_are_counted_in_cells_of_one_and_of_several_operations() -> None:
    assert searches.skips(("skip_connect", "none", "skip_connect+sep_conv_3x3")) == 2
    assert searches.skips(("sep_conv_3x3", "none")) == 0


def test_skips_by_epoch_are_those_of_the_epochs_that_were() -> None:
    task = load_task("digits")
    model = vt.tune(vt.load_backbone("vtlite-tiny"), "darts", task, **searches.SPACE)
    net = searched(model)
    at = net.names.index("skip_connect")
    net.trace[0] = 0.2
    net.trace[1] = 0.2 * torch.eye(len(net.names))[at] + 0.1
    assert searches.skips_by_epoch(model)[1:] == [6]  # a search that ended after two epochs


def test_all_have_the_same_budget() -> None:
    assert all(searches.SEARCH % share == 0 for share in searches.BASELINES.values())


def test_the_rate_is_chosen_on_validation_images_and_the_smaller_one_wins_a_tie() -> None:
    runs = [row("SNAS", 1e-2, 0.7), row("SNAS", 3e-3, 0.7), row("SNAS", 1e-2, 0.9, final=True)]
    assert choice(runs, "SNAS", "twemoji")["lr"] == 3e-3
    assert finals(runs, "SNAS", "twemoji") == []  # its rate was replaced
    assert searches.table(runs) == ""


def test_a_table_of_what_has_finished() -> None:
    runs = [row("SNAS", 1e-2, 0.7)]
    runs += [row("SNAS", 1e-2, 0.6 + 0.1 * seed, seed, True) for seed in range(3)]
    assert searches.table(runs).splitlines()[-1] == (
        "| SNAS | 70.0 (60.0 to 80.0) | 70.0 | 2, 2, 2 | 5,000 | 3 | 0.01 |"
    )


def test_a_tiny_study_is_kept_run_by_run_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the file is not run again; the file has a cell, its skips and its size."""
    small = {"operations": ("skip_connect", "avg_pool_3x3"), "channels": 2, "cells": 1, "nodes": 1}
    monkeypatch.setattr(searches, "SPACE", small)
    monkeypatch.setattr(searches, "load_task", tiny_task)
    for arm in searches.ARMS:
        found = searches.run_one(arm, "twemoji", 1e-2, 0, arm == "DARTS", 4, 1)
        assert 0 <= found["score"] <= 1
        assert found["skips"] == searches.skips(found["cell"])
        assert found["numbers"] > 0
        assert found["seconds"] > 0
        assert bool(found["by_epoch"]) == (arm in searches.SEARCHES)
    path = tmp_path / "search.json"
    kept = [row("SNAS", lr, lr) for lr in searches.LRS]
    kept += [row("SNAS", 1e-2, 0.5, seed, True) for seed in range(3)]
    path.write_text(json.dumps(kept), encoding="utf-8")
    assert searches.run(path, 1, ("SNAS",), ("twemoji",)) == kept  # nothing is left to do


def tiny_task(name: str) -> Any:
    task: Any = load_task(name)
    parts = ("train", "val", "test")
    return replace(task, **{part: getattr(task, part).subset(slice(20)) for part in parts})
