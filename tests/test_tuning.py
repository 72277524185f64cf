"""The public interface, and every mistake one can make with it: one sentence each, and nothing half
changed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import vtlite as vt
from tests.conftest import make_tiny
from tests.methods.checks import batch, trained, tuned
from vtlite.method import find_method
from vtlite.methods import AdaptFormer, LoRA


@pytest.mark.parametrize("name", ["lora", "parameter/weight/lora"])
def test_a_method_is_found_by_its_key_or_the_last_part_of_it(name: str) -> None:
    assert find_method(name) is LoRA


def test_hyphens_are_as_good_as_underscores() -> None:
    assert find_method("vpt-deep") is find_method("vpt_deep")


def test_a_method_object_is_copied_not_kept() -> None:
    mine = LoRA(rank=2)
    model = vt.tune(make_tiny(), mine, num_classes=3)
    assert model.method == mine
    assert model.method is not mine
    assert vt.tune(make_tiny(), mine, num_classes=3, rank=1).method == LoRA(rank=1)


def test_count_parameters_by_hand() -> None:
    model = vt.tune(make_tiny(), "linear", num_classes=3)
    assert vt.count_parameters(model) == (
        24 * 3 + 3,
        sum(p.numel() for p in make_tiny().parameters()) + 75,
    )


def test_a_backbone_that_has_a_head_loses_it() -> None:
    model = vt.tune(make_tiny(num_classes=7), "linear", num_classes=3)
    assert isinstance(model.backbone.head, nn.Identity)
    assert model(batch()[0]).shape == (5, 3)


def test_precision_of_the_backbone_is_kept() -> None:
    model = vt.tune(make_tiny().double(), "adaptformer", num_classes=3)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (("lorra",), {}, "unknown method 'lorra': did you mean 'lora'"),
        (("lora",), {"rnak": 4}, "unknown setting of lora 'rnak': did you mean 'rank'"),
        (("linear",), {"rank": 4}, "linear has no settings"),
        (("lora",), {"rank": 0}, "lora: expected rank an integer of at least 1, found 0"),
        (("lora",), {"rank": -1}, "found -1"),
        (("lora",), {"rank": 1.5}, "found 1.5"),
        (("lora",), {"rank": 25}, "expected rank at most 24"),
        (("lora",), {"targets": "qx"}, "some of the letters q, k, v"),
        (("vpt_deep",), {"num_prompts": 0}, "expected num_prompts"),
        (("vpt_deep",), {"dropout": 1.0}, "expected dropout in"),
        (("adaptformer",), {"bottleneck": 0}, "expected bottleneck"),
        (("kd",), {"depth": 3}, "of at most 2"),
        (("kd",), {"temperature": 0.0}, "above 0"),
        (("kd",), {"weight": 1.1}, "expected weight in"),
    ],
)
def test_wrong_names_and_settings(
    arguments: tuple[str], settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(vt.VTError) as error:
        vt.tune(make_tiny(), *arguments, num_classes=3, **settings)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_classes", [0, -1, 2.5, "3"])
def test_num_classes_must_be_a_positive_integer(num_classes: Any) -> None:
    with pytest.raises(vt.VTError, match="expected num_classes to be a positive integer"):
        vt.tune(make_tiny(), "lora", num_classes=num_classes)


def test_only_known_backbones_are_tuned() -> None:
    with pytest.raises(vt.VTError, match="expected a backbone of vtlite's or timm's, found Linear"):
        vt.tune(nn.Linear(3, 3), "lora", num_classes=3)
    with pytest.raises(vt.VTError, match="tuned already"):
        vt.tune(tuned("lora"), "lora", num_classes=3)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "found dtype torch.uint8; scale the pixels"),
        (torch.zeros(3, 32, 32), "add the batch dimension"),
        (torch.zeros(2, 1, 32, 32), "found shape [2, 1, 32, 32]"),
        (torch.zeros(2, 3, 32, 40), "found 32x40 pixels; resize"),
        (
            torch.zeros(2, 3, 64, 64),
            "found 64x64 pixels; resize, or load the task with image_size=32",
        ),
    ],
)
@pytest.mark.parametrize("of", ["ours", "timm"])
@pytest.mark.parametrize(
    "name", ["linear", "ssf"]
)  # SSF replaces the patch projection that the check looks at
def test_wrong_images(images: torch.Tensor, sentence: str, of: str, name: str) -> None:
    backbone: Any = make_tiny()
    if of == "timm":
        vit = pytest.importorskip("timm").models.vision_transformer.VisionTransformer
        backbone = vit(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3)
    with pytest.raises(vt.VTError) as error:
        tuned(name, backbone)(images)
    assert sentence in str(error.value)


# Deltas
# -------------------------------------------------------------------------------------------------


def refused(model: vt.Tuned, path: Path) -> str:
    """Load a bad delta: the message, after checking that the model did not change."""
    before = {key: t.clone() for key, t in model.state_dict().items()}
    with pytest.raises(vt.VTError) as error:
        vt.load_delta(model, path)
    assert all(torch.equal(before[key], t) for key, t in model.state_dict().items())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    vt.save_delta(trained("lora"), tmp_path / "delta.safetensors")
    return tmp_path / "delta.safetensors"


def test_a_delta_is_refused_by_another_method_setting_backbone_or_head(delta: Path) -> None:
    assert (
        "was made with method parameter/weight/lora, but this model has parameter/bias/bitfit"
        in refused(tuned("bitfit"), delta)
    )
    assert "settings" in refused(
        vt.tune(make_tiny(), "lora", num_classes=3, rank=2, alpha=16.0), delta
    )
    other = make_tiny()
    with torch.no_grad():
        other.norm.bias[0] += 1e-3  # one value is enough
    assert "backbone" in refused(tuned("lora", other), delta)
    assert "head.bias" in refused(vt.tune(make_tiny(), "lora", num_classes=4, rank=2), delta)


def test_a_delta_of_another_precision_is_refused(delta: Path) -> None:
    assert "expected" in refused(tuned("lora").double(), delta)


def test_a_truncated_delta_is_refused(delta: Path) -> None:
    for size in (4, 100, delta.stat().st_size - 1):
        cut = delta.with_name("cut.safetensors")
        cut.write_bytes(delta.read_bytes()[:size])
        assert "truncated or damaged" in refused(tuned("lora"), cut)


def test_a_pickled_file_is_refused_unopened(tmp_path: Path) -> None:
    torch.save(trained("lora").state_dict(), tmp_path / "x.pt")
    assert "pickled" in refused(tuned("lora"), tmp_path / "x.pt")


def test_another_safetensors_file_is_no_delta(tmp_path: Path) -> None:
    save_file({"head.bias": torch.zeros(3)}, tmp_path / "x.safetensors")
    assert "expected a delta written by vtlite.save_delta" in refused(
        tuned("lora"), tmp_path / "x.safetensors"
    )
    assert "found no file" in refused(tuned("lora"), tmp_path / "none.safetensors")


def test_an_interrupted_save_leaves_the_old_file(
    delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = delta.read_bytes()

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vtlite.storage.save_file", full_disk)
    with pytest.raises(
        vt.VTError, match="No space left on device; the file that was there before is unchanged"
    ):
        vt.save_delta(tuned("lora"), delta)
    assert delta.read_bytes() == before
    assert list(delta.parent.iterdir()) == [delta]


def test_methods_compare_by_their_settings() -> None:
    assert AdaptFormer(bottleneck=8).settings() == {"bottleneck": 8, "scale": 0.1, "dropout": 0.1}


@pytest.mark.parametrize(
    ("method", "settings", "sentence"),
    [
        ("lora", {"alpha": "x"}, "lora: expected alpha to be a number, found 'x'"),
        ("lora", {"rank": True}, "lora: expected rank to be a whole number, found True"),
        (
            "lora",
            {"layers": "qkv"},
            "expected layers to be a tuple, each of it a text, found 'qkv'",
        ),
        ("lora", {"rnk": 2}, "unknown setting of lora 'rnk': did you mean 'rank'"),
        ("lora", {"num_clases": 3}, "argument of tune 'num_clases': did you mean 'num_classes'"),
        ("adaptformer", {"scale": "big"}, "expected scale to be a number"),
        ("adaptformer", {"dropout": math.nan}, "expected dropout to be a number, found nan"),
        ("dylora", {"frozen": 1}, "expected frozen to be True or False"),
        ("kd", {"depth": "3"}, "expected depth to be a whole number or None"),
        ("kd", {"teacher": "x"}, "expected teacher as a network"),
        ("kd", {"student": nn.Linear(2, 2)}, "expected a backbone of vtlite's or timm's"),
        ("kd", {"teacher_method": "lorra"}, "unknown method 'lorra': did you mean 'lora'"),
        ("lora", {"seed": "a"}, "expected seed of at least 0, found 'a'"),
    ],
)
def test_a_setting_of_another_kind_is_one_sentence(
    method: str, settings: dict, sentence: str
) -> None:
    with pytest.raises(vt.VTError, match=sentence):
        vt.tune(make_tiny(), method, 3, **settings)
    if not settings.keys() & {"seed", "num_clases"} and method != "kd":
        with pytest.raises(vt.VTError, match=sentence):
            vt.find_method(method)(**settings)


def test_lists_and_numpys_numbers_are_settings_that_a_delta_keeps(tmp_path: Path) -> None:
    model = vt.tune(
        make_tiny(), vt.find_method("lora"), 3, layers=["qkv"], rank=np.int64(2), alpha=4
    )
    assert model.method == vt.find_method("lora")(layers=("qkv",), rank=2, alpha=4.0)
    vt.save_delta(model, tmp_path / "d")
    assert vt.load_delta(make_tiny(), tmp_path / "d").method == model.method


def test_merging_draws_no_random_numbers() -> None:
    model, state = vt.tune(make_tiny(), "lora", 3), torch.get_rng_state()
    vt.merge(model)
    assert torch.equal(state, torch.get_rng_state())
