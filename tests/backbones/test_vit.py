"""Our ViT is timm's: same names, same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import vtlite as vt
from tests.conftest import make_tiny
from vtlite.backbones import ARCHITECTURES

timm = pytest.importorskip("timm")


def pair(name: str, num_classes: int = 7, **overrides: Any) -> tuple[Any, Any]:
    """timm's model and ours with the same weights, none of them neutral, both in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = timm.create_model(name, pretrained=False, num_classes=num_classes, **overrides)
        for parameter in theirs.parameters():
            parameter.data += 0.03 * torch.randn_like(parameter)
    ours = vt.create_backbone(name, num_classes=num_classes, **overrides)
    ours.load_state_dict(theirs.state_dict())
    return theirs.eval(), ours.eval()


def pictures(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "overrides", "count", "size"),
    [
        ("vit_tiny_patch16_224", {}, 2, 224),
        ("vit_small_patch16_224", {}, 1, 224),
        ("vit_base_patch16_224", {}, 1, 224),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, 2, 224),
        ("vit_small_patch14_dinov2", {"img_size": 98}, 2, 98),
        ("vit_small_patch14_dinov2", {"img_size": 98, "global_pool": "avg", "depth": 2}, 2, 98),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2, "qkv_bias": False}, 2, 64),
        (
            "vit_tiny_patch16_224",
            {"img_size": 64, "depth": 2, "mlp_ratio": 2.0, "num_heads": 6},
            2,
            64,
        ),
    ],
)
@torch.no_grad()
def test_same_weights_same_features_and_logits_as_timm(
    name: str, overrides: dict[str, Any], count: int, size: int
) -> None:
    theirs, ours = pair(name, **overrides)
    images = pictures(count, size)
    tokens, expected = ours.forward_features(images), theirs.forward_features(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    pooled = theirs.forward_head(expected, pre_logits=True)
    torch.testing.assert_close(
        ours.forward_head(tokens, pre_logits=True), pooled, atol=1e-5, rtol=1e-5
    )
    logits = theirs(images)
    assert logits.shape == (count, 7)
    torch.testing.assert_close(ours(images), logits, atol=1e-5, rtol=1e-5)
    for model in (theirs, ours):
        model.reset_classifier(0)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=1e-5)
    assert ours(images).shape == (count, ours.num_features)


def test_same_gradients_as_timm() -> None:
    images, gradients = pictures(2, 64), []
    for model in pair("vit_tiny_patch16_224", img_size=64, depth=2, init_values=0.5):
        model(images).square().sum().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for key, expected in gradients[0].items():
        assert (gradients[1][key] - expected).abs().max() <= 1e-4 * expected.abs().max(), key


@pytest.mark.parametrize(
    "name", [name for name in ARCHITECTURES if timm.is_model(name) and name.startswith("vit")]
)
@pytest.mark.parametrize("settings", [{}, {"num_classes": 5, "global_pool": "avg"}])
def test_state_dicts_have_timms_names_and_shapes_in_timms_order(
    name: str, settings: dict[str, Any]
) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, pretrained=False, **{"num_classes": 0, **settings})
    ours = vt.create_backbone(name, device="meta", **settings)
    assert [(k, t.shape) for k, t in ours.state_dict().items()] == [
        (k, t.shape) for k, t in theirs.state_dict().items()
    ]


def test_most_of_the_architectures_are_timms() -> None:
    assert len([name for name in ARCHITECTURES if timm.is_model(name)]) >= 15


@pytest.mark.parametrize("alias", ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"])
def test_torchvisions_names_give_torchvisions_sizes(alias: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(alias)
    ours = vt.create_backbone(alias, device="meta", num_classes=1000)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert ours.patch_embed.img_size == (theirs.image_size, theirs.image_size)
    assert ours.patch_embed.patch_size == (theirs.patch_size, theirs.patch_size)


def test_a_tag_after_a_dot_does_not_matter() -> None:
    tagged = vt.create_backbone("vit_tiny_patch16_224.augreg_in21k_ft_in1k", device="meta")
    assert str(tagged) == str(vt.create_backbone("vit_tiny_patch16_224", device="meta"))


def test_overrides_change_the_architecture() -> None:
    backbone = vt.create_backbone(
        "vit_tiny_patch16_224", img_size=48, patch_size=12, in_chans=1, num_classes=4, depth=1
    )
    assert backbone(torch.zeros(2, 1, 48, 48)).shape == (2, 4)
    assert backbone.forward_features(torch.zeros(2, 1, 48, 48)).shape == (2, 17, 192)


def test_a_backbone_on_meta_takes_no_memory() -> None:
    assert {
        p.device.type
        for p in vt.create_backbone("vit_large_patch16_384", device="meta").parameters()
    } == {"meta"}


def test_fresh_weights_follow_the_global_seed_and_break_symmetry() -> None:
    def fresh(seed: int) -> dict[str, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return vt.create_backbone("vtlite-tiny").state_dict()

    first, again, other = fresh(0), fresh(0), fresh(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    for key, value in first.items():
        if value.ndim > 1 and "norm" not in key:
            assert value.std() > 0, key
            assert not torch.equal(value, other[key]), key


def test_a_new_head_replaces_the_old_one() -> None:
    backbone = make_tiny(num_classes=3)
    backbone.reset_classifier(5)
    assert backbone(pictures(2, 32)).shape == (2, 5)
    assert backbone.get_classifier() is backbone.head
    backbone.reset_classifier(0)
    assert isinstance(backbone.get_classifier(), nn.Identity)
    assert backbone(pictures(2, 32)).shape == (2, 24)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    backbone, images = make_tiny(), pictures(4, 32)
    torch.testing.assert_close(backbone(images)[2:3], backbone(images[2:3]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "overrides", "sentence"),
    [
        (
            "vit_bse_patch16_224",
            {},
            "unknown backbone 'vit_bse_patch16_224': did you mean 'vit_base_patch16_224'",
        ),
        ("vit_b_17", {}, "did you mean 'vit_b_16'"),
        ("resnet", {}, "unknown backbone 'resnet'"),
        (
            "vtlite-tiny",
            {"img_sise": 32},
            "unknown backbone argument 'img_sise': did you mean 'img_size'",
        ),
        ("vtlite-tiny", {"img_size": 33}, "multiple of the patch size 8, found 33"),
        ("vtlite-tiny", {"num_heads": 5}, "found width 96 and 5 heads"),
        (
            "vtlite-tiny",
            {"global_pool": "max"},
            'expected global_pool "token" or "avg", found \'max\'',
        ),
    ],
)
def test_wrong_names_and_arguments(name: str, overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises(vt.VTError) as error:
        vt.create_backbone(name, **overrides)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "found dtype torch.uint8; scale the pixels"),
        (torch.zeros(3, 32, 32), "add the batch dimension"),
        (torch.zeros(2, 1, 32, 32), "convert the channels"),
        (
            torch.zeros(2, 3, 28, 28),
            "found 28x28 pixels; resize, or load the task with image_size=32",
        ),
    ],
)
def test_images_that_do_not_fit_are_a_sentence(images: Tensor, sentence: str) -> None:
    with pytest.raises(vt.VTError, match=r"expected float images \[B, 3, 32, 32\]") as error:
        make_tiny()(images)
    assert sentence in str(error.value)
