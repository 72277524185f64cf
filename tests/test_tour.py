from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import vtlite as vt
from vtlite import tour
from vtlite.data.tasks import ImageDataset
from vtlite.task import Classification, Task


@pytest.fixture(scope="module")
def tiny_task() -> Task:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 3, 32, 32), generator=g, dtype=torch.uint8)
    data = ImageDataset(images, torch.arange(24) % 3)
    return Classification("tiny", ("a", "b", "c"), data, data, data, "structured", "noise")


@pytest.fixture
def rows(tiny_backbone: nn.Module, tiny_task: Task) -> list[dict]:
    return tour.tour(["lora", "vpt_deep"], tiny_task, tiny_backbone, epochs=1, progress=False)


def test_a_row_says_what_it_measured(
    rows: list[dict], tiny_backbone: nn.Module, tiny_task: Task
) -> None:
    lora, vpt = rows
    model = vt.tune(tiny_backbone, "lora", num_classes=3, rank=8)
    assert (lora["trainable"], lora["share"]) == (
        n := vt.count_parameters(model)[0],
        n / vt.count_parameters(model)[1],
    )
    vt.fit(model, tiny_task.train, epochs=1, progress=False)
    assert lora["accuracy"] == vt.evaluate(model, tiny_task.test)["accuracy"]
    assert (lora["merged"], vpt["merged"]) == (True, False)
    assert all(
        row[key] > 0
        for row in rows
        for key in ("delta_bytes", "step_ms", "activation_bytes", "latency_ratio", "fit_seconds")
    )


def test_tables_show_every_row(rows: list[dict]) -> None:
    lines = tour.markdown(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[2].startswith("| lora | parameter |")
    assert lines[3].endswith("* |")  # a prompt cannot be merged
    assert tour.table(rows).row_count == len(rows)


def test_rows_are_saved_whole_as_json_and_csv(rows: list[dict], tmp_path: Path) -> None:
    tour.save_rows(rows, tmp_path / "t.json")
    tour.save_rows(rows, tmp_path / "t.csv")
    assert json.loads((tmp_path / "t.json").read_text(encoding="utf-8")) == rows
    with (tmp_path / "t.csv").open(encoding="utf-8") as file:
        assert [float(row["accuracy"]) for row in csv.DictReader(file)] == [
            row["accuracy"] for row in rows
        ]


def test_a_wrong_name_is_found_before_anything_trains(
    tiny_backbone: nn.Module, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tour, "fit", lambda *a, **k: pytest.fail("trained although a name was wrong")
    )
    with pytest.raises(vt.VTError, match="unknown method 'lorra': did you mean 'lora'"):
        tour.tour(["full", "lorra"], tiny_task, tiny_backbone)


def test_the_default_tour_visits_all_five_groups() -> None:
    from vtlite.method import find_method

    assert {find_method(name).key.split("/")[0] for name in tour.METHODS} == {
        "finetuning",
        "prompt",
        "adapter",
        "parameter",
        "remapping",
    }


def test_the_readme_shows_the_committed_tour() -> None:
    root = Path(__file__).parents[1]
    rows = json.loads((root / "benchmarks/tour.json").read_text(encoding="utf-8"))
    assert [row["method"].split("/")[-1] for row in rows] == [*tour.METHODS, "zero_shot"]
    assert tour.markdown(rows) in (root / "README.md").read_text(encoding="utf-8")


def test_a_method_that_a_backbone_does_not_bear_is_left_out_with_a_line(
    tiny_task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    resnet = vt.create_backbone("vtlite-resnet", width=8)
    rows = tour.tour(["vpt_deep", "linear"], tiny_task, resnet, epochs=1, progress=False)
    assert [row["method"] for row in rows] == ["finetuning/linear"]
    assert capsys.readouterr().err.startswith("left out: vpt_deep: expected a ViT")
    with pytest.raises(
        vt.VTError, match="expected a method that ResNet bears, found none among kd"
    ):
        tour.tour(["kd"], tiny_task, resnet, epochs=1, progress=False)
