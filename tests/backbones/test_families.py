"""ResNet, Swin, the convolutional stem and the distillation token: the same function as
torchvision's and timm's, under the same names."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

import vtlite as vt
from vtlite.backbones.hybrid import HybridViT
from vtlite.backbones.stages import parameters_by_layer, stage_names, stages


def shaken(model: nn.Module, seed: int = 0) -> Any:
    """No neutral value anywhere: a norm that is left out, or statistics that are ignored, change
    the output."""
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data += 0.02 * torch.randn(p.shape, generator=g)
    for name, b in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            b += 0.3 * torch.rand(b.shape, generator=g)
    return model.eval()


def pictures(count: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_same_function(ours: Any, theirs: Any, images: Tensor) -> None:
    assert {k: t.shape for k, t in ours.state_dict().items()} == {
        k: t.shape for k, t in theirs.state_dict().items()
    }
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_equals_torchvision(name: str) -> None:
    theirs = shaken(getattr(torchvision.models, name)(num_classes=7))
    assert_same_function(vt.create_backbone(name, num_classes=7), theirs, pictures(2, 64, 96))


def test_resnet_collects_statistics_like_torchvision() -> None:
    theirs = shaken(torchvision.models.resnet18(num_classes=7)).train()
    ours = vt.create_backbone("resnet18", num_classes=7)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.train()(pictures()), theirs(pictures()), atol=1e-4, rtol=1e-4)
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.get_buffer(name), atol=1e-5, rtol=1e-5)


def test_resnet_also_has_timms_names() -> None:
    timm = pytest.importorskip("timm")
    assert_same_function(
        vt.create_backbone("resnet18", num_classes=7),
        shaken(timm.create_model("resnet18", num_classes=7)),
        pictures(),
    )


def test_swin_tiny_equals_timm() -> None:
    timm = pytest.importorskip("timm")
    theirs = shaken(timm.create_model("swin_tiny_patch4_window7_224", num_classes=7))
    assert_same_function(
        vt.create_backbone("swin_tiny_patch4_window7_224", num_classes=7),
        theirs,
        pictures(1, 224, 224),
    )


@pytest.mark.parametrize("window", [2, 4, 8])
def test_swin_of_other_windows_equals_timm(window: int) -> None:
    """A window as large as the map has no shift; the last stages are smaller than the window."""
    swin = pytest.importorskip("timm").models.swin_transformer.SwinTransformer
    settings: dict[str, Any] = {
        "img_size": 32,
        "patch_size": 2,
        "embed_dim": 12,
        "depths": (2, 2),
        "num_heads": (2, 3),
        "window_size": window,
    }
    theirs = shaken(swin(num_classes=5, **settings))
    assert_same_function(
        vt.create_backbone("swin_tiny_patch4_window7_224", num_classes=5, **settings),
        theirs,
        pictures(3, 32, 32),
    )


def test_distilled_deit_equals_timm() -> None:
    timm = pytest.importorskip("timm")
    theirs = shaken(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=7))
    ours = vt.create_backbone("deit_tiny_distilled_patch16_224", num_classes=7)
    assert_same_function(ours, theirs, pictures(1, 224, 224))
    x = pictures(1, 224, 224)
    torch.testing.assert_close(
        ours.forward_head(ours.forward_features(x), pre_logits=True),
        theirs.forward_head(theirs.forward_features(x), pre_logits=True),
    )


def hybrid(**arguments: Any) -> HybridViT:
    return HybridViT(
        (4, 8, 16), img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, **arguments
    )


def test_convolutional_stem_equals_timms_hybrid() -> None:
    timm = pytest.importorskip("timm")
    stem = timm.models.vision_transformer_hybrid.ConvStem(
        depth=3, channels=(4, 8, 16), stride=(2, 2, 2)
    )
    embed = partial(timm.layers.HybridEmbed, backbone=stem)
    vit = timm.models.vision_transformer.VisionTransformer
    theirs = shaken(
        vit(
            img_size=32,
            patch_size=1,
            embed_dim=24,
            depth=2,
            num_heads=3,
            num_classes=5,
            embed_layer=embed,
        )
    )
    assert_same_function(hybrid(num_classes=5), theirs, pictures(2, 32, 32))


MAKERS = {
    "resnet": lambda: vt.create_backbone("resnet18", width=8, small_images=True),
    "resnet-bottleneck": lambda: vt.create_backbone("resnet50", width=4, depths=(1, 2, 1, 1)),
    "hybrid": hybrid,
    "deit": lambda: vt.create_backbone("vtlite-tiny", embed_dim=24, depth=2, distilled=True),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_saved_backbone_is_recognised_by_its_tensors(kind: str, tmp_path: Path) -> None:
    backbone = shaken(MAKERS[kind]())
    vt.save_backbone(backbone, tmp_path / "x.safetensors")
    loaded = vt.load_backbone(tmp_path / "x.safetensors")
    assert type(loaded) is type(backbone)
    assert torch.equal(loaded(pictures(2, 32, 32)), backbone(pictures(2, 32, 32)))


def test_published_swin_and_resnet_files_load_without_their_heads(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    for name, images in (
        ("swin_tiny_patch4_window7_224", pictures(1, 224, 224)),
        ("resnet18", pictures(1)),
    ):
        theirs = shaken(timm.create_model(name, num_classes=10))
        save_file(theirs.state_dict(), tmp_path / f"{name}.safetensors")
        theirs.reset_classifier(0)
        torch.testing.assert_close(
            vt.load_backbone(tmp_path / f"{name}.safetensors")(images),
            theirs(images),
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "resnet18", "depths": (2, 2)}, "expected depths of four stages"),
        ({"name": "swin_tiny_patch4_window7_224", "img_size": 96}, "to hold whole windows of 7"),
        (
            {"name": "vit_tiny_convstem_patch16_224", "stem_channels": (8, 8, 8, 8, 8)},
            "that 5 halvings divide, found 16",
        ),
        ({"name": "resnet18", "patch_size": 4}, "unknown backbone argument 'patch_size'"),
        ({"name": "resnet19"}, "did you mean 'resnet18'"),
    ],
)
def test_sizes_that_do_not_fit_are_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(vt.VTError, match=sentence):
        vt.create_backbone(**arguments)


def layer_of(backbone: nn.Module) -> dict[str, int]:
    """The layer of each parameter by its name."""
    names = {id(p): name for name, p in backbone.named_parameters()}
    layers = parameters_by_layer(backbone)
    return {names[id(p)]: i for i, layer in enumerate(layers) for p in layer}


def test_stages_run_from_input_to_output() -> None:
    resnet, swin = (
        MAKERS["resnet"](),
        vt.create_backbone("swin_tiny_patch4_window7_224", device="meta"),
    )
    assert stage_names(resnet) == ["layer1", "layer2", "layer3", "layer4"]
    assert [len(stages(swin)), stage_names(swin)[4]] == [12, "layers.2.blocks.0"]
    swin.reset_classifier(2)
    places = {
        "patch_embed.proj.weight": 0,
        "layers.0.blocks.1.norm1.weight": 2,
        "layers.2.downsample.norm.weight": 5,
        "head.fc.bias": 13,
    }
    assert {name: layer_of(swin)[name] for name in places} == places
    resnet.reset_classifier(2)
    found = layer_of(resnet)
    assert [found[n] for n in ("conv1.weight", "layer1.0.bn1.bias")] == [0, 1]
    assert [found[n] for n in ("layer4.1.conv2.weight", "fc.weight")] == [4, 5]
    with pytest.raises(vt.VTError, match="expected a backbone of vtlite's or timm's, found Linear"):
        stage_names(nn.Linear(1, 1))
