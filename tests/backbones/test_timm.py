"""What was once wrong on timm's networks, each with its right value."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import vtlite as vt
from vtlite.backbones.base import features
from vtlite.backbones.stages import parameters_by_layer
from vtlite.networks import small_network
from vtlite.ops.kd_loss import kd_loss, kd_loss_reference

timm: Any = pytest.importorskip("timm")


def pixels(count: int = 4, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def moved(model: Any) -> Any:
    """The model with all that trains moved by a little."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def test_the_pooling_of_siglip_learns_as_fast_as_the_head() -> None:
    model = vt.tune(small_network("SigLIP"), "layerwise_decay", 3)
    groups = {id(p): group for group in model.method.groups(model) for p in group["params"]}
    for parameter in model.backbone.attn_pool.parameters():
        assert groups[id(parameter)]["scale"](0.0) == 1.0
    first = groups[id(model.backbone.patch_embed.proj.weight)]
    assert first["scale"](0.0) == pytest.approx(0.75**3)  # two blocks lie between


@pytest.mark.parametrize("name", ["ResNet", "Swin", "DenseNet", "ConvNeXt", "EVA-02", "XCiT"])
def test_every_parameter_is_in_one_layer(name: str) -> None:
    backbone = small_network(name)
    layers = [id(p) for layer in parameters_by_layer(backbone) for p in layer]
    assert sorted(layers) == sorted(id(p) for p in backbone.parameters())


@pytest.mark.parametrize("name", ["BEiT", "BEiT v2", "EVA-01", "EVA-02"])
def test_bitfit_trains_the_biases_that_attention_keeps_apart(name: str) -> None:
    model = vt.tune(small_network(name), "bitfit", 3)
    trains = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    biases = {n for n, _ in model.backbone.named_parameters() if n.endswith(("q_bias", "v_bias"))}
    assert biases <= trains
    assert biases or any(n.endswith("q_proj.bias") for n in trains)


CONVOLUTIONS = ("conv_pw", "conv_dw", "conv_pwl", "conv1", "conv2")


@pytest.mark.parametrize("method", ["ssf", "lora", "gps", "norm_tuning"])
@pytest.mark.parametrize(
    "name",
    ["EfficientNet", "EfficientNet, TensorFlow", "MobileNet V2", "DenseNet", "ResNet V2"],
)
def test_a_merged_cnn_gives_the_same(name: str, method: str) -> None:
    settings = {"layers": CONVOLUTIONS, "rank": 1} if method == "lora" else {}
    model = moved(vt.tune(small_network(name), method, 3, **settings))
    with torch.no_grad():
        tuned, merged = model(pixels()), vt.merge(model)(pixels())
    assert ((merged - tuned).abs().max() / tuned.abs().max()).item() < 1e-4


def test_an_updated_convolution_pads_as_tensorflow_does() -> None:
    backbone = small_network("EfficientNet, TensorFlow")
    model = vt.tune(backbone, "lora", 3, layers=("conv_dw",), rank=1)
    with torch.no_grad():
        expected = backbone.forward_features(pixels())
        torch.testing.assert_close(model.backbone.forward_features(pixels()), expected)


@pytest.mark.parametrize("name", ["MobileNet V3", "GhostNet"])
def test_the_head_reads_what_the_network_gives_last(name: str) -> None:
    backbone = small_network(name)
    model = vt.tune(backbone, "linear", 3)
    with torch.no_grad():
        assert model.head.in_features == features(backbone, pixels()).shape[1]
        torch.testing.assert_close(vt.merge(model)(pixels()), model(pixels()))


@pytest.mark.parametrize("method", ["lora", "vpt_deep", "adaptformer", "ssf", "spt"])
def test_a_network_for_any_size_takes_any_size(method: str) -> None:
    small = {"vpt_deep": {"num_prompts": 2}, "adaptformer": {"bottleneck": 2}, "lora": {"rank": 2}}
    model = vt.tune(small_network("ViT, any size"), method, 3, **small.get(method, {}))
    assert model(pixels(2, 32, 32)).shape == model(pixels(2, 48, 64)).shape == (2, 3)


def test_an_updated_layer_is_a_linear_layer_to_whoever_reads_it() -> None:
    backbone = small_network("ViT")
    small = {"kadaptation": {"n": 4}, "krona": {}, "ssf": {}}
    for method in ("lora", "dora", "krona", "kadaptation", "dylora", "ssf"):
        settings = small.get(method, {"rank": 2})
        model = moved(vt.tune(backbone, method, 3, **settings))
        layer = model.backbone.blocks[0].attn.qkv
        x = torch.randn(2, 5, layer.in_features)
        with torch.no_grad():
            read = nn.functional.linear(x, layer.weight, layer.bias)
            torch.testing.assert_close(layer(x), read, atol=1e-5, rtol=1e-4)
        assert layer.out_features == 3 * layer.in_features


def test_lora_on_a_norm_is_refused_in_a_sentence() -> None:
    with pytest.raises(vt.VTError, match=r"lora: expected layers of kind Linear or Conv2d, found"):
        vt.tune(small_network("ViT"), "lora", 3, layers=("norm1",))


def plain_vit(width: int, heads: int, path: Path) -> Path:
    """A file of a ViT that doesn't say its number of heads."""
    vit = vt.create_backbone("vtlite-tiny", embed_dim=width, depth=1, num_heads=heads)
    save_file({k: t.contiguous() for k, t in vit.state_dict().items()}, path)
    return path


@pytest.mark.parametrize(("width", "heads"), [(1280, 16), (384, 12)])  # ViT-H, MoCo v3's ViT-S
def test_heads_that_differ_between_published_networks_are_asked_for(
    width: int, heads: int, tmp_path: Path
) -> None:
    path = plain_vit(width, heads, tmp_path / "vit.safetensors")
    with pytest.raises(vt.VTError, match=r"found no number, which differs.*num_heads="):
        vt.load_backbone(path)
    assert vt.load_backbone(path, num_heads=heads).blocks[0].attn.num_heads == heads


def test_heads_that_all_published_networks_share_are_known(tmp_path: Path) -> None:
    path = plain_vit(768, 12, tmp_path / "vit.safetensors")
    assert vt.load_backbone(path).blocks[0].attn.num_heads == 12


def test_a_resnet_of_another_stem_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "resnet26d.safetensors"
    save_file(small_network("ResNet-D").state_dict(), path)
    with pytest.raises(vt.VTError, match=r"stem of one convolution.*timm:resnet26d"):
        vt.load_backbone(path)


def test_a_class_that_the_teacher_excludes_costs_nothing() -> None:
    student = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 5, dtype=torch.float64).index_fill(1, torch.tensor([3]), -torch.inf)
    p, log_q = (teacher / 2).softmax(1), (student / 2).log_softmax(1)
    expected = 4 * nn.functional.kl_div(log_q, p, reduction="batchmean")
    for loss in (kd_loss(student, teacher, 2.0), kd_loss_reference(student, teacher, 2.0)):
        torch.testing.assert_close(loss, expected)
        (gradient,) = torch.autograd.grad(loss, student, retain_graph=True)
        (right,) = torch.autograd.grad(expected, student, retain_graph=True)
        torch.testing.assert_close(gradient, right)


def small_data(images: Tensor) -> TensorDataset:
    return TensorDataset(images, torch.arange(len(images)) % 3)


def test_a_model_tuned_in_inference_mode_trains() -> None:
    with torch.inference_mode():
        model = vt.tune(small_network("ViT"), "lora", 3, rank=2)
    data = small_data(pixels(6, 32, 32))
    history = vt.fit(model, data, epochs=1, batch_size=3, progress=False)
    assert history[0]["loss"] > 0


def test_images_of_another_type_than_the_backbone_work() -> None:
    model = vt.tune(small_network("ViT").to(torch.bfloat16), "lora", 3, rank=2)
    data = small_data(pixels(6, 32, 32))  # float32
    vt.fit(model, data, epochs=1, batch_size=3, progress=False)
    assert model(pixels(2, 32, 32).double()).isfinite().all()


@pytest.mark.parametrize("name", ["ViT", "DINOv2"])
def test_pixels_of_another_range_are_told_once(name: str) -> None:
    model = vt.tune(small_network(name), "linear", 3)
    inside = pixels(6, 32, 32).clamp(-2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vt.fit(model, small_data(inside), epochs=1, batch_size=3, progress=False)
    whole = 255 * torch.rand(6, 3, 32, 32)
    with pytest.warns(UserWarning, match=r"expected pixels between .* found .*255") as told:
        vt.fit(model, small_data(whole), epochs=2, batch_size=3, progress=False)
    assert len(told) == 1
