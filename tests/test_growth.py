"""The study of growth: its arms start where they should, and it keeps each run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vtlite as vt
from tests.conftest import make_tiny_resnet
from vtlite import __main__, growth
from vtlite.methods.remapping.weight.steps import NARROWER, Remapped, numbers
from vtlite.runs import key_of, wanted
from vtlite.studies import OWN_STUDIES, STUDIES
from vtlite.task import Classification

TASK = Classification("two", ("a", "b"))
IMAGES = torch.randn(4, 3, 32, 32)


@pytest.fixture
def small() -> vt.Tuned:
    return vt.tune(make_tiny_resnet(), "full", TASK).eval()


def test_what_has_grown_answers_as_before_and_what_is_new_does_not(small: vt.Tuned) -> None:
    before = small(IMAGES)
    for method in ("net2wider", "net2deeper"):
        model = growth.grown(small, method, TASK).eval()
        fresh = growth.from_scratch(model, TASK).eval()
        assert torch.allclose(model(IMAGES), before, atol=1e-5)
        assert numbers(model) == numbers(fresh) > numbers(small)
        assert not torch.allclose(fresh(IMAGES), before, atol=1e-2)


def test_padding_keeps_the_old_units_and_draws_the_new_ones(small: vt.Tuned) -> None:
    wider = growth.grown(small, "net2wider", TASK)
    model = growth.padded(small, wider, TASK)
    old, new = small.backbone.layer1[0], model.backbone.layer1[0]
    width = len(old.conv1.weight)
    assert torch.equal(new.conv1.weight[:width], old.conv1.weight)
    assert torch.equal(new.conv2.weight[:, :width], old.conv2.weight)  # undivided
    assert not torch.allclose(new.conv1.weight, wider.backbone.layer1[0].conv1.weight)


def test_no_arm_is_the_small_network_itself(small: vt.Tuned) -> None:
    """In a lesson all arms grow out of one, which training one of them must not change."""
    theirs = {
        id(p) for change, _ in growth.GROWN.values() for p in change(small, TASK, 0).parameters()
    }
    assert not theirs & {id(p) for p in small.parameters()}


def test_a_toss_has_no_gradient_so_that_nothing_is_learnt(small: vt.Tuned) -> None:
    network = Remapped(small.backbone.requires_grad_(True), small.head, TASK)
    for method, more in (
        (growth.RandomEAS(), (torch.inf,)),
        (growth.RandomPathLevelEAS(), (torch.inf,)),
        (growth.RandomN2N(), (NARROWER,)),
    ):
        _, log_p, _ = method.child(None, network, *more)  # type: ignore[attr-defined]
        assert log_p
        assert not any(p.requires_grad for p in log_p)


def test_all_searches_have_the_same_budget() -> None:
    nash, eas, n2n = growth._NASH, growth._EAS, growth._N2N
    assert nash["rounds"] * nash["children"] * nash["child_epochs"] == growth.BUDGET
    assert eas["start_epochs"] + eas["episodes"] * eas["children"] == growth.BUDGET
    rounds = n2n["removals"] + n2n["shrinkages"]
    assert n2n["teacher_epochs"] + rounds * n2n["children"] == growth.BUDGET


def run(arm: str, lr: float, seed: int, final: bool, score: float, **more: Any) -> dict[str, Any]:
    found = {"score": score, "numbers": 10, **more}
    return {"arm": arm, "task": "digits", "lr": lr, "seed": seed, "final": final, **found}


def test_a_rate_is_chosen_on_validation_images_and_only_final_runs_are_in_the_table() -> None:
    arm = "wider, Net2Wider"
    runs = [
        run(arm, lr, 0, False, score)
        for lr, score in zip((2e-3, 6e-3, 2e-2), (0.5, 0.7, 0.7), strict=True)
    ]
    assert growth.table(runs) == ""
    assert [key[2] for key in wanted(arm, "digits", growth.LRS, True, runs)] == [6e-3] * 3
    curve = [0.25, 0.75]
    runs += [run(arm, 6e-3, seed, True, 0.5 + seed / 10, curve=curve) for seed in range(3)]
    runs += [run(arm, 2e-3, 0, True, 1.0, curve=curve)]  # of an older grid: it does not count
    assert f"| {arm} | 10 | 25.0 | 60.0 (50.0 to 70.0) | 0.006 |" in growth.table(runs)
    assert growth.reached(curve, 0.5) == 1
    assert growth.reached(curve, 0.8) is None


def test_every_run_is_kept_and_a_second_call_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With processes in place of a pool's, so that the small budget reaches them."""
    monkeypatch.setattr("vtlite.runs.ProcessPoolExecutor", Here)
    monkeypatch.setattr(growth, "run_one", lambda *key: run(key[0], *key[2:], score=0.5))
    path, arms = tmp_path / "growth.json", ("small, trained on",)
    monkeypatch.setattr(growth, "TASKS", ("digits",))
    runs = growth.run(path, 1, arms)
    assert len(runs) == len(growth.LRS) + 3
    assert json.loads(path.read_text(encoding="utf-8")) == sorted(runs, key=key_of)
    monkeypatch.setattr(growth, "run_one", None)
    assert len(growth.run(path, 1, arms)) == len(runs)


class Here:
    """A pool that works at once, in this process."""

    def __init__(self, *args: Any, **more: Any) -> None: ...

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *args: object) -> None: ...

    def submit(self, call: Any, *args: Any) -> Any:
        from concurrent.futures import Future

        future: Any = Future()
        future.set_result(call(*args))
        return future


@pytest.mark.parametrize("arm", ["deeper, Net2Deeper", "EAS, tossed", "steps at random"])
def test_an_arm_runs(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch of everything, on few images."""
    task = vt.load_task("digits")
    data = task.train.subset(slice(20))
    few = Classification("few", task.classes, data, data, data)
    monkeypatch.setattr(growth, "load_task", lambda name: few)
    monkeypatch.setattr(growth, "FINAL", 1)
    monkeypatch.setitem(growth.GROWN, "deeper, Net2Deeper", (growth._deeper, 1))
    found = growth.run_one(arm, "digits", 1e-3, 0, True)
    assert found["numbers"] > 1000
    assert 0 <= found["score"] <= 1
    assert len(found.get("curve", [0, 0])) == 2


def test_the_command_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert not set(OWN_STUDIES) & set(STUDIES)
    monkeypatch.setattr(growth, "run", lambda results, workers: [results.name, workers])
    monkeypatch.setattr(growth, "table", lambda runs: f"table of {runs}")
    arguments = ["bench", "--study", "growth", "--results", str(tmp_path / "results.json")]
    assert __main__.main([*arguments, "--workers", "1"]) == 0
    assert "table of ['growth.json', 1]" in capsys.readouterr().out
