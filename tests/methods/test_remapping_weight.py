"""Networks that grow: the function stays, exactly, and the copies part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import vtlite as vt
from tests.conftest import make_tiny, make_tiny_resnet
from tests.methods.checks import CLASSES, batch
from vtlite.methods.remapping.weight.growing import (
    Deeper,
    Inner,
    copies,
    see_data,
    widen,
)

EMBEDDED = ("vtlite-tiny", "vtlite-resnet")


def grown(backbone: Any, name: str, **settings: Any) -> vt.Tuned:
    return vt.tune(backbone, name, CLASSES, **settings)


@pytest.mark.parametrize("weights", EMBEDDED)
@pytest.mark.parametrize("name", ["net2wider", "net2deeper"])
def test_an_embedded_network_grows_and_computes_the_same(weights: str, name: str) -> None:
    backbone = vt.load_backbone(weights)
    images = torch.randn(4, 3, 32, 32)
    model = grown(backbone, name)
    assert sum(p.numel() for p in model.backbone.parameters()) > 1.1 * sum(
        p.numel() for p in backbone.parameters()
    )
    with torch.no_grad():
        found, before = model.eval().features(images), vt.load_backbone(weights)(images)
    assert (found - before).abs().max() < 1e-5


@pytest.mark.parametrize("make", [make_tiny, make_tiny_resnet])
@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0, 5.0])
def test_wider_is_exact_in_double_precision(make: Any, factor: float) -> None:
    backbone, images = make().double(), batch()[0].double()
    model = grown(backbone, "net2wider", factor=factor).eval()
    assert (model.features(images) - backbone(images)).abs().max() < 1e-12


def test_wider_in_training_too_where_the_batch_norm_uses_the_batch() -> None:
    backbone, images = make_tiny_resnet().double(), batch()[0].double()
    model = grown(backbone, "net2wider").train()  # a copy's statistics are those of its source
    assert (model.features(images) - backbone.train()(images)).abs().max() < 1e-12


def test_a_wider_layer_by_hand() -> None:
    """Undivided outgoing weights would give h0 three times and h1 twice."""
    mlp = make_tiny().blocks[0].mlp
    mlp.fc1, mlp.fc2 = nn.Linear(2, 2), nn.Linear(2, 1)
    x = torch.tensor([[0.3, -0.7]])
    h, w = mlp.act(mlp.fc1(x))[0], mlp.fc2.weight[0].clone()
    by_hand = h[0] * w[0] + h[1] * w[1] + mlp.fc2.bias
    first = mlp.fc1.weight.clone()
    inner = Inner(mlp, "fc1", "", "fc2")
    source, share = torch.tensor([0, 1, 0, 0, 1]), torch.tensor([0.5, 0.9, 0.2, 0.3, 0.1])
    widen(inner, source, share)
    assert torch.equal(mlp.fc1.weight, first[source])
    assert torch.allclose(mlp.fc2.weight[0], w[source] * share)
    assert torch.allclose(mlp.fc2(mlp.act(mlp.fc1(x)))[0], by_hand)
    assert (mlp.fc1.out_features, mlp.fc2.in_features) == (5, 5)


def test_old_units_stay_first_and_shares_of_a_unit_have_the_sum_one() -> None:
    source, share = copies(6, 15, spread=0.5)
    assert source[:6].tolist() == list(range(6))
    assert set(source[6:].tolist()) <= set(range(6))
    total = torch.zeros(6, dtype=share.dtype).index_add_(0, source, share)
    torch.testing.assert_close(total, torch.ones_like(total))
    source, even = copies(6, 15)
    assert torch.equal(even, 1 / torch.bincount(source).double()[source])  # the paper's


def after_training(spread: float) -> Tensor:
    backbone = make_tiny()
    torch.manual_seed(3)
    model = grown(backbone, "net2wider", spread=spread)
    images, labels = batch()
    vt.fit(model, TensorDataset(images, labels), epochs=3, lr=1e-2, progress=False)
    weight = model.backbone.blocks[0].mlp.fc1.weight
    apart = (weight[:, None] - weight[None]).abs().amax(2)
    return apart[torch.triu(torch.ones(len(weight), len(weight)), 1) > 0]


def test_copies_part_where_their_shares_differ_and_never_where_they_do_not() -> None:
    assert after_training(0.0).min() < 1e-7  # the same gradient for ever
    assert after_training(0.5).min() > 1e-5


def test_a_deeper_residual_network_is_the_same_before_and_after_it_saw_images() -> None:
    backbone, images = make_tiny_resnet().double(), batch()[0].double()
    model = grown(backbone, "net2deeper", every=1).eval()
    before = backbone(images)
    assert (model.features(images) - before).abs().max() < 1e-12
    deeper = [m for m in model.modules() if isinstance(m, Deeper)]
    assert len(deeper) == 4
    see_data(model, deeper, [images[:2], images[2:]])
    assert (model.features(images) - before).abs().max() < 1e-12
    assert not any(torch.equal(layer[1].bias, torch.zeros_like(layer[1].bias)) for layer in deeper)


def test_its_norm_is_the_identity_by_the_batch_too_once_it_saw_the_images() -> None:
    """Copying the statistics of the norm before it, as ports do, would change what passes."""
    backbone, images = make_tiny_resnet().double().eval(), batch()[0].double()
    model = grown(backbone, "net2deeper", every=1).eval()
    deeper = [m for m in model.modules() if isinstance(m, Deeper)]
    see_data(model, deeper, [images])
    for layer in deeper:
        layer[1].train()  # statistics of the batch, which are those it has seen
    assert (model.features(images) - backbone(images)).abs().max() < 1e-6
    for layer in deeper:  # unseen, it would norm what passes
        layer.see(torch.zeros_like(layer[1].bias), torch.ones_like(layer[1].bias))
    assert (model.features(images) - backbone(images)).abs().max() > 1e-3


def test_fit_shows_the_images_first() -> None:
    model = grown(make_tiny_resnet(), "net2deeper", every=1)
    images, labels = batch()
    vt.fit(model, TensorDataset(images, labels), epochs=1, lr=1e-9, progress=False)
    (layer, *_) = [m for m in model.modules() if isinstance(m, Deeper)]
    assert layer[1].bias.abs().max() > 1e-3


def test_new_blocks_can_be_taken_out_again() -> None:
    backbone = make_tiny()
    model = grown(backbone, "block_expansion", every=1)
    images, labels = batch()
    vt.fit(model, TensorDataset(images, labels), epochs=2, lr=1e-2, progress=False)
    assert not torch.allclose(model.features(images), backbone(images))
    model.backbone.blocks = nn.Sequential(*[model.backbone.blocks[i] for i in (0, 2)])
    assert torch.allclose(model.features(images), backbone(images), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("net2wider", {"factor": 0.5}, "expected factor of at least 1, found 0.5"),
        ("net2wider", {"spread": 1.0}, r"expected spread in \[0, 1\), found 1"),
        ("net2deeper", {"every": 3}, "found none after every 3 of 2; give a smaller number"),
        ("block_expansion", {"every": 0}, "expected every an integer of at least 1"),
    ],
)
def test_settings_out_of_range(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(vt.VTError, match=sentence):
        grown(make_tiny(), name, **settings)


def test_gates_and_groups_are_not_widened() -> None:
    timm = pytest.importorskip("timm")
    resnext = timm.create_model("resnext50_32x4d", layers=(1, 1, 1, 1), num_classes=0)
    with pytest.raises(vt.VTError, match="expected blocks of two plain layers"):
        grown(resnext, "net2wider")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    gated = timm.create_model("vit_giant_patch14_reg4_dinov2", num_classes=0, **sizes)
    with pytest.raises(vt.VTError, match="expected blocks of two plain layers"):
        grown(gated, "net2wider")
