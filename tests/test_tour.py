from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import vtlite as vt
from vtlite import tour
from vtlite.__main__ import main
from vtlite.data.tasks import ImageDataset
from vtlite.method import find_method
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


# Published towers: open_clip's names and byte pairs, random numbers in small shapes.


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    vision = {"layers": 2, "width": 64, "patch_size": 16, "image_size": 32}
    text = {"layers": 2, "width": 64, "heads": 1}
    theirs = open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text)
    path = tmp_path_factory.mktemp("clip") / "published.safetensors"
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, a class of one colour each; larger than the network takes."""
    folder = tmp_path_factory.mktemp("pets")
    for split, count in (("train", 10), ("test", 4)):
        for name, colour in (("tabby_cat", "orange"), ("guinea pig", "brown")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                size = (40 + i, 36)
                Image.new("RGB", size, colour).save(folder / split / name / f"{i}.png")
    return folder


def test_one_command_tunes_a_published_two_tower_model_on_a_folder(
    published: Path, pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["tour", "--backbone", str(published), "--task", f"folder:{pets}"]
    outputs = [f"--{kind}={tmp_path / f't.{end}'}" for kind, end in tour_files().items()]
    assert main([*command, "--methods", "coop,maple,tda,lora", "--epochs", "1", *outputs]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("left out: lora: expected an image backbone")
    rows = {
        row["method"].split("/")[-1]: row
        for row in json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    }
    assert list(rows) == ["coop", "maple", "tda", "zero_shot"]
    # the methods' own settings: 16 vectors of width 64, not the three of a small backbone
    assert rows["coop"]["trainable"] == 16 * 64
    assert rows["maple"]["trainable"] == 2 * (2 * 64 + 64 * 64 + 64)
    clip = vt.load_backbone(published)
    task = vt.load_task(f"folder:{pets}", like=clip)
    named = tour.ZeroShot(clip, task.classes, "a photo of a {}")
    assert rows["zero_shot"]["accuracy"] == vt.evaluate(named, task.test, task=task)["accuracy"]


def tour_files() -> dict[str, str]:
    return {"json": "json", "csv": "csv", "figure": "png"}


def test_openais_activation_is_asked_for(
    published: Path, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(names: object, task: object, network: Any, *_: object) -> list[tour.Row]:
        seen.append(network)
        return []

    monkeypatch.setattr(tour, "tour", look)
    monkeypatch.chdir(tmp_path)
    command = ["tour", "--backbone", str(published), "--task", f"folder:{pets}"]
    for more in ([], ["--quick-gelu"]):
        assert main([*command, *more]) == 0
    assert [network.quick_gelu for network in seen] == [False, True]


def test_two_towers_have_methods_and_a_template_of_their_own(published: Path, pets: Path) -> None:
    assert all(find_method(name).two_towers for name in tour.TWO_TOWERS)
    embedded = vt.load_backbone("vtlite-clip")
    task = Classification("fruit", ("apple", "melon"))
    named = tour.ZeroShot(embedded, task.classes, tour.TEMPLATE)
    assert torch.equal(tour._untouched(embedded, task).texts, named.texts)  # type: ignore[arg-type]
    assert tour._settings(embedded, "coop") == find_method("coop").small
    assert tour._settings(vt.load_backbone(published), "coop") == {}


@pytest.mark.parametrize("wrong", ["no tokenizer", "long name", "one class", "no text tower"])
def test_what_two_towers_can_not_be_asked_is_a_sentence(
    wrong: str, published: Path, pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = vt.load_backbone(published)
    task = vt.load_task(f"folder:{pets}", like=clip)
    expected = {
        "no tokenizer": "expected a tokenizer, found none beside these weights",
        "long name": "expected at most 75 tokens in a text, found 80",
        "one class": "expected a method that CLIP bears, found none among coop",
        "no text tower": "expected a method that VisionTransformer bears, found none among coop",
    }
    if wrong == "no tokenizer":
        clip.tokenizer = None
    elif wrong == "long name":
        task = replace(task, classes=("dog", "cat " * 80))
    elif wrong == "one class":
        task = replace(task, classes=("dog",))
    else:
        clip = clip.visual
    with pytest.raises(vt.VTError, match=expected[wrong]):
        tour.tour(["coop"], task, clip, progress=False)
    reasons = {"one class": "at least two classes", "no text tower": "expected a two-tower model"}
    assert reasons.get(wrong, "") in capsys.readouterr().err
