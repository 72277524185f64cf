"""What is said of timm's networks: pixels, sizes, stages, maps; and what a changed layer
answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import vtlite as vt
from vtlite.backbones.base import about, feature_maps, features, pixels_of
from vtlite.backbones.stages import PositionsWithPrompts, parameters_by_layer, stage_names
from vtlite.networks import SETTINGS, small_network

timm = pytest.importorskip("timm")


def images(height: int = 32, width: int = 32, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "first", "last", "count"),
    [
        ("ViT", "blocks.0", "blocks.1", 2),
        ("Swin V2", "layers.0.blocks.0", "layers.1.blocks.1", 4),
        ("ConvNeXt", "stages.0.blocks.0", "stages.3.blocks.0", 4),
        ("ResNet", "layer1", "layer4", 4),
        ("RegNet", "s1", "s4", 4),
        ("CaiT", "blocks.0", "blocks_token_only.1", 4),
        ("DenseNet", "features.denseblock1", "features.denseblock4", 7),
    ],
)
def test_stages_of_every_family(name: str, first: str, last: str, count: int) -> None:
    names = stage_names(small_network(name))
    assert (names[0], names[-1], len(names)) == (first, last, count)


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("ViT", (32, 32), (4, 4)),
        ("ViT, not square", (32, 48), (4, 6)),
        ("ViT, any size", (48, 64), (6, 8)),
        ("DINOv3", (32, 32), (4, 4)),  # a class token and four registers
        ("SigLIP", (32, 32), (4, 4)),  # no class token
        ("NaFlex", (32, 48), (4, 6)),
        ("Swin", (32, 32), (4, 4)),  # channels last
        ("ConvNeXt", (64, 96), (2, 3)),
        ("MobileNet V3", (64, 96), (2, 3)),  # as wide as before its head
    ],
)
def test_maps_of_every_family(name: str, size: tuple[int, int], shape: tuple[int, int]) -> None:
    network = small_network(name)
    maps = feature_maps(network, images(*size))
    assert maps.shape == (4, about(network).map_features, *shape)


def test_tokens_stand_at_their_places() -> None:
    """A change of one patch alone moves that place's feature most, in a network without blocks."""
    network = small_network("ViT, not square")
    network.blocks = torch.nn.Sequential()
    x, other = images(32, 48, 1), images(32, 48, 1)
    other[:, :, 8:16, 40:48] += 1  # row 1, column 5
    moved = (feature_maps(network, x) - feature_maps(network, other)).abs().sum((0, 1))
    assert moved.nonzero().tolist() == [[1, 5]]


def test_heads_read_the_width_that_the_network_gives() -> None:
    for name, width in (("MobileNet V3", 1024), ("GhostNet", 1280), ("ViT", 48)):
        network = small_network(name)
        size = about(network).input_size or (64, 64)
        found = features(network, images(*size))
        assert found.shape[1] == about(network).num_features == width
        model = vt.tune(network, "linear", 3)
        assert torch.allclose(vt.merge(model)(images(*size)), model(images(*size)), atol=1e-5)


def test_pixels_are_the_published_ones() -> None:
    assert pixels_of(small_network("DINOv2")).mean == (0.485, 0.456, 0.406)
    assert pixels_of(small_network("SigLIP")).std == (0.5, 0.5, 0.5)
    assert pixels_of(small_network("ResNet")).size == (224, 224)
    assert pixels_of(small_network("ViT, not square")).size == (32, 48)
    eight = timm.create_model("resnet18", in_chans=8, num_classes=0, channels=(8, 8, 8, 8))
    assert about(eight).in_chans == 8


@pytest.mark.parametrize("name", ["ViT", "EVA-02", "BEiT", "Swin V2"])
def test_an_updated_layer_is_a_linear_layer(name: str) -> None:
    """weight, bias, in_features and out_features give the same function as calling it."""
    for method in ("lora", "dora", "krona", "kadaptation", "vera"):
        model = vt.tune(small_network(name), method, 3, **SETTINGS.get(method, {}))
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p += 0.1 * torch.randn_like(p)
        layers = [m for m in model.backbone.modules() if hasattr(m, "starts")]
        assert layers
        for layer in layers:
            x = torch.randn(5, layer.in_features)
            expected = F.linear(x, layer.weight, layer.bias)
            assert expected.shape == (5, layer.out_features)
            torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["DINOv3", "EVA-02", "BEiT"])
def test_lora_trains_in_a_plain_loop_and_merges(name: str) -> None:
    model = vt.tune(small_network(name), "lora", 2, rank=2)
    x, labels = images(), torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    torch.testing.assert_close(vt.merge(model)(x), model(x), atol=1e-4, rtol=1e-4)


def test_separate_projections_get_what_their_letters_say() -> None:
    model = vt.tune(small_network("EVA-02"), "lora", 2, rank=2, targets="qv")
    attn: Any = model.backbone.blocks[0].attn
    kinds = [type(layer).__name__ for layer in (attn.q_proj, attn.k_proj, attn.v_proj)]
    assert kinds == ["LoRALinear", "Linear", "LoRALinear"]


def test_bitfit_trains_biases_that_belong_to_no_layer() -> None:
    model = vt.tune(small_network("BEiT"), "bitfit", 2)
    trains = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert {"blocks.0.attn.q_bias", "blocks.1.attn.v_bias", "blocks.0.mlp.fc1.bias"} <= trains
    subset = vt.tune(small_network("BEiT"), "bitfit", 2, subset=("query",))
    trains = {name for name, p in subset.backbone.named_parameters() if p.requires_grad}
    assert trains == {"blocks.0.attn.q_bias", "blocks.1.attn.q_bias"}


def test_what_follows_the_blocks_is_the_last_layer() -> None:
    """SigLIP's pooling by attention learns at the full rate, as with timm's own groups."""
    network = small_network("SigLIP")
    last = {id(p) for p in parameters_by_layer(network)[-1]}
    assert all(id(p) in last for p in network.attn_pool.parameters())
    assert id(network.pos_embed) in {id(p) for p in parameters_by_layer(network)[0]}


def test_prompts_have_no_position() -> None:
    """A bias of relative positions grows by zeros behind the prefix; the others keep theirs."""
    block = small_network("BEiT").blocks[0]
    with torch.no_grad():
        block.attn.relative_position_bias_table.normal_()
    bias = block.attn._get_rel_pos_bias().detach()  # [1, H, 17, 17]
    longer = PositionsWithPrompts(block, prefix=1, more=3)({})["shared_rel_pos_bias"]
    assert longer.shape == (1, 4, 20, 20)
    assert not longer[..., 1:4, :].any()
    assert not longer[..., 1:4].any()
    kept = [0, *range(4, 20)]
    assert torch.equal(longer[..., kept, :][..., kept], bias)


def test_what_can_not_work_is_one_sentence() -> None:
    for name, method, settings, sentence in (
        ("Swin", "vpt_deep", {}, "expected a ViT, whose blocks it changes"),
        ("ConvNeXt", "lora", {}, "expected a backbone with layers named qkv"),
        ("ViT", "lora", {"layers": ("norm1",)}, "expected layers of kind Linear or Conv2d, found"),
        ("Swin V2", "adaptformer", {}, "without a norm before the MLP"),
        ("ResNet", "dp_bitfit", {}, "without batch norm"),
    ):
        with pytest.raises(vt.VTError, match=sentence):
            vt.tune(small_network(name), method, 3, **settings)


def test_same_padding_stays_the_layers_own() -> None:
    network = small_network("EfficientNet, TensorFlow")
    model = vt.tune(network, "lora", 3, rank=1, layers=("conv_dw",))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn_like(p)
    x = images(50, 50)  # not a multiple of the strides
    shapes = [m.forward_features(x).shape for m in (network, model.backbone)]
    assert shapes[0] == shapes[1]
    torch.testing.assert_close(vt.merge(model)(x), model(x), atol=1e-4, rtol=1e-4)


def test_ssf_folds_into_norms_with_an_activation() -> None:
    for name in ("EfficientNet", "MobileNet V2", "DenseNet"):
        model = vt.tune(small_network(name), "ssf", 3)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p += 0.1 * torch.randn_like(p)
        torch.testing.assert_close(
            vt.merge(model)(images(64, 64)), model(images(64, 64)), atol=1e-4, rtol=1e-4
        )


def test_fit_asks_nothing_that_tune_did_not() -> None:
    data = TensorDataset(images(64, 64), torch.tensor([0, 1, 0, 1]))
    for name in ("ConvNeXt", "ResNet V2", "XCiT"):
        network = small_network(name)
        size = about(network).input_size
        if size in (None, (64, 64)):
            vt.fit(vt.tune(network, "full", 2), data, epochs=1, batch_size=2, progress=False)
