"""Adapters of two-tower models against the most naive reading of their formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import vtlite as vt
from tests.conftest import make_tiny_clip
from tests.methods.checks import batch
from vtlite.task import Classification, MultiLabel
from vtlite.zero_shot import ZeroShot

CLASSES = ("0", "1", "2")


def task(images: Tensor, labels: Tensor, **more: Any) -> Classification:
    data = TensorDataset(images, labels)
    return Classification(classes=CLASSES, train=data, **{"val": data, "test": data, **more})


def parts(clip: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image features that are not normalised, text features that are, and the scale."""
    texts = clip.encode_text(clip.tokenize([f"a photo of a {name}" for name in CLASSES]))
    return clip.visual(images) @ clip.visual_projection, texts, clip.logit_scale.exp()


@torch.no_grad()
def test_clip_adapter_blends_before_it_normalises() -> None:
    clip, (images, _) = make_tiny_clip(), batch()
    model = vt.tune(clip, "clip_adapter", 3, reduction=2, ratio=0.3)
    f, texts, scale = parts(clip, images)
    head: Any = model.head
    a = torch.relu(torch.relu(f @ head.down.weight.T) @ head.up.weight.T)
    blended = 0.3 * a + 0.7 * f
    expected = scale * blended / blended.norm(dim=1, keepdim=True) @ texts.T
    torch.testing.assert_close(model(images), expected)


@torch.no_grad()
def test_tip_adapter_adds_the_votes_of_what_it_keeps() -> None:
    clip, (images, labels) = make_tiny_clip(), batch(7)
    model = vt.tune(
        clip, "tip_adapter", task(images, labels), shots=2, views=1, alpha=0.5, beta=3.0
    )
    model.method.fill(model, TensorDataset(images, labels))
    f, texts, scale = parts(clip, images)
    f = f / f.norm(dim=1, keepdim=True)
    expected = scale * f @ texts.T
    kept = {c: [i for i in range(7) if labels[i] == c][:2] for c in range(3)}  # the first two
    for b in range(7):
        for c, places in kept.items():
            for i in places:
                expected[b, c] += 0.5 * math.exp(-3 * (1 - float(f[b] @ f[i])))
    torch.testing.assert_close(model(images), expected)


def test_tip_adapter_is_zero_shot_until_it_has_seen_images_and_then_trains_only_its_keys() -> None:
    clip, (images, labels) = make_tiny_clip(), batch(9)
    settings = {"shots": 4, "views": 1}
    model = vt.tune(clip, "tip_adapter", task(images, labels), **settings)
    torch.testing.assert_close(model(images), ZeroShot(clip, CLASSES, "a photo of a {}")(images))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "network.head.keys"
    ]
    free = vt.tune(clip, "tip_adapter", task(images, labels), tune_keys=False, **settings)
    for each in (model, free):
        vt.fit(each, epochs=5, lr=0.1, progress=False)
    assert vt.count_parameters(free)[0] == 0
    taken = free.head.taken.bool()
    torch.testing.assert_close(free.head.keys[taken].norm(dim=1), torch.ones(int(taken.sum())))
    assert torch.equal(model.head.taken, free.head.taken)
    assert not torch.allclose(model.head.keys[taken], free.head.keys[taken])


@pytest.mark.parametrize("trains", [True, False])
def test_what_is_kept_is_in_the_delta(trains: bool, tmp_path: Path) -> None:
    clip, (images, labels) = make_tiny_clip(), batch(9)
    settings = {"shots": 2, "views": 3, "tune_keys": trains, "search": True}
    model = vt.tune(clip, "tip_adapter", task(images, labels), **settings)
    vt.fit(model, epochs=2, seed=3, progress=False)
    vt.save_delta(model, tmp_path / "d.safetensors")
    again = vt.load_delta(clip, tmp_path / "d.safetensors")
    assert torch.equal(again(images), model(images))
    same = vt.tune(clip, "tip_adapter", task(images, labels), **settings)
    vt.fit(same, epochs=2, seed=3, progress=False)
    assert torch.equal(same(images), model(images))


@torch.no_grad()
def test_search_takes_the_best_pair_on_validation_images() -> None:
    clip, (images, labels) = make_tiny_clip(), batch(9)
    wrong = (labels + 1) % 3  # the votes mislead on validation images: the less the better
    val = TensorDataset(images, wrong)
    model = vt.tune(clip, "tip_adapter", task(images, labels, val=val), views=1, search=True)
    with torch.enable_grad():
        vt.fit(model, epochs=1, lr=1e-6, progress=False)
    found = (model(images).argmax(1) == wrong).sum()
    chosen = model.head.strength.clone()
    for alpha, beta in ((0.1, 0.1), (1.17, 1.0), (2.9, 6.9), (1.0, 5.5)):
        model.head.strength.copy_(torch.tensor([alpha, beta]))
        assert (model(images).argmax(1) == wrong).sum() <= found, chosen


def test_each_kind_of_network_has_its_methods() -> None:
    clip = make_tiny_clip()
    with pytest.raises(vt.VTError, match=r"lora: expected an image backbone.*tune clip.visual"):
        vt.tune(clip, "lora", 3)
    with pytest.raises(vt.VTError, match="tip_adapter: expected a two-tower model"):
        vt.tune(clip.visual, "tip_adapter", 3)
    with pytest.raises(vt.VTError, match="expected a classification, whose classes have names"):
        vt.tune(clip, "clip_adapter", MultiLabel(classes=CLASSES))
