"""Adapters for clips against the most naive reading of their formulas, and what they know about the
order of frames."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vtlite as vt
from tests.backbones.test_families import MAKERS
from tests.conftest import make_tiny
from tests.methods.test_other_backbones import BACKBONES
from vtlite.methods.adapter.clips import Frames
from vtlite.methods.adapter.parallel.st_adapter import SpaceTimeAdapter
from vtlite.methods.adapter.places import Places
from vtlite.task import Clips

TASK = Clips("t", ("a", "b", "c"))
VIDEO: dict[str, dict[str, Any]] = {"st_adapter": {"bottleneck": 4}, "aim": {}}
WHOLE = {"st_adapter": {"bottleneck": 4, "before_attention": True}, "aim": {"before_time": True}}


def clips(count: int = 2, length: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(4)
    return torch.randn(count, length, 3, 32, 32, generator=g)


def moved(backbone: Any, name: str, **settings: Any) -> vt.Tuned:
    """A model for clips whose every trainable value is away from its start, in float64."""
    model = vt.tune(backbone, name, TASK, **settings).double().eval()
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.2 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return model


def linear(layer: Any, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def bottleneck(module: Any, x: Tensor) -> Tensor:
    return linear(module.up, F.gelu(linear(module.down, x)))


def over_time_by_hand(module: Any, frames: Tensor) -> Tensor:
    """What an ST-Adapter adds to the patches [T, N, D] of one clip, frame by frame."""
    weight, bias = module.conv.weight[:, 0, :, 0, 0], module.conv.bias  # [R, K], [R]
    narrow = [linear(module.down, frame) for frame in frames]
    half, out = weight.shape[1] // 2, []
    for t in range(len(frames)):
        z = bias.expand_as(narrow[t])
        for k in range(-half, half + 1):
            if 0 <= t + k < len(frames):
                z = z + weight[:, half + k] * narrow[t + k]
        out.append(linear(module.up, z))
    return torch.stack(out)


@pytest.mark.parametrize("length", [1, 3, 5])
@pytest.mark.parametrize("taps", [3, 5])
def test_st_adapter_is_a_convolution_over_time(length: int, taps: int) -> None:
    frames = Frames()
    module = SpaceTimeAdapter(6, 4, (taps, 1, 1), Places(1), frames).double()
    for p in module.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, length, 1 + 4, 6, dtype=torch.float64)
    frames.count = length
    found = module(x.flatten(0, 1)).view(x.shape)
    assert not found[:, :, 0].any()  # the class token is left alone
    for clip, added in zip(x, found, strict=True):
        torch.testing.assert_close(added[:, 1:], over_time_by_hand(module, clip[:, 1:]))


def test_st_adapter_for_images_is_a_convolution_over_places() -> None:
    module = SpaceTimeAdapter(6, 4, (1, 3, 3), Places(1), Frames()).double()
    for p in module.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 1 + 9, 6, dtype=torch.float64)
    maps = linear(module.down, x[:, 1:]).mT.unflatten(2, (3, 3))
    z = F.conv2d(maps, module.conv.weight[:, :, 0], module.conv.bias, padding=1, groups=4)
    torch.testing.assert_close(module(x)[:, 1:], linear(module.up, z.flatten(2).mT))


def embedded(backbone: Any, frames: Tensor) -> Tensor:
    x = backbone.patch_embed(frames)
    return torch.cat([backbone.cls_token.expand(len(x), -1, -1), x], 1) + backbone.pos_embed


def test_st_adapter_works_on_the_stream_before_attention_and_before_the_mlp() -> None:
    backbone, given = make_tiny(init_values=0.5).double(), clips().double()
    model = moved(backbone, "st_adapter", **WHOLE["st_adapter"])
    features = []
    for clip in given:
        x = embedded(backbone, clip)
        for plain, tuned in zip(backbone.blocks, model.backbone.blocks, strict=True):
            x = torch.cat([x[:, :1], x[:, 1:] + over_time_by_hand(tuned.adapter, x[:, 1:])], 1)
            x = x + plain.ls1(plain.attn(plain.norm1(x)))
            adapter = tuned.block.mlp.adapter
            x = torch.cat([x[:, :1], x[:, 1:] + over_time_by_hand(adapter, x[:, 1:])], 1)
            x = x + plain.ls2(plain.mlp(plain.norm2(x)))
        features.append(backbone.norm(x)[:, 0].mean(0))
    torch.testing.assert_close(model.features(given), torch.stack(features))


def test_no_class_token_sees_the_last_adapter_before_an_mlp() -> None:
    """As published: what it adds to the patches comes after the last attention."""
    model = moved(make_tiny(), "st_adapter", **VIDEO["st_adapter"])
    model.task.loss(model(clips().double()), torch.tensor([0, 1])).backward()
    first, last = (block.mlp.adapter for block in model.backbone.blocks)
    assert all(p.grad.any() for p in first.parameters())
    assert not any(p.grad.any() for p in last.parameters())


def attention_by_hand(attn: Any, x: Tensor) -> Tensor:
    """One sequence [N, D] -> [N, D], head by head."""
    q, k, v = (t.chunk(attn.num_heads, -1) for t in linear(attn.qkv, x).chunk(3, -1))
    heads = [
        (a @ b.T / math.sqrt(a.shape[-1])).softmax(-1) @ c for a, b, c in zip(q, k, v, strict=True)
    ]
    return linear(attn.proj, torch.cat(heads, -1))


@pytest.mark.parametrize("settings", [{}, WHOLE["aim"], {"frames": 3, "scale": 2.0}])
def test_aim_looks_along_time_place_by_place_and_then_over_each_frame(
    settings: dict[str, Any],
) -> None:
    backbone, given = make_tiny().double(), clips().double()
    model = moved(backbone, "aim", **settings)
    features = []
    for clip in given:
        x = embedded(backbone, clip)  # [T, N, D]
        x = torch.stack([x[t] + model.backbone.norm_pre.times[t] for t in range(len(x))])
        for plain, tuned in zip(backbone.blocks, model.backbone.blocks, strict=True):
            y = x.clone()
            for n in range(x.shape[1]):
                z = plain.norm1(torch.stack([frame[n] for frame in x]))
                if tuned.enter is not None:
                    z = z + bottleneck(tuned.enter, z)
                y[:, n] = x[:, n] + bottleneck(tuned.leave, attention_by_hand(plain.attn, z))
            out = []
            for frame in y:
                a = attention_by_hand(plain.attn, plain.norm1(frame))
                frame = frame + a + bottleneck(tuned.block.attn, a)
                n = plain.norm2(frame)
                M = model.method.scale * bottleneck(tuned.block.mlp, n)  # type: ignore[attr-defined]
                out.append(frame + plain.mlp(n) + M)
            x = torch.stack(out)
        features.append(model.backbone.norm(x)[:, 0].mean(0))
    torch.testing.assert_close(model.features(given), torch.stack(features))


@pytest.mark.parametrize("name", VIDEO)
def test_it_starts_as_the_image_model_frame_by_frame(name: str) -> None:
    backbone, given = make_tiny(), clips()
    frames = torch.stack([backbone(given[:, t]) for t in range(given.shape[1])])
    model = vt.tune(backbone, name, TASK, **WHOLE[name])
    torch.testing.assert_close(model.features(given), frames.mean(0))


def shuffled(given: Tensor) -> Tensor:
    return given[:, [2, 0, 1]]


@pytest.mark.parametrize("name", ["linear", "adaptformer", "aim with frames=1"])
def test_a_model_of_single_frames_is_blind_to_their_order(name: str) -> None:
    settings = {"frames": 1} if "frames" in name else {}
    model, given = moved(make_tiny(), name.split()[0], **settings), clips().double()
    torch.testing.assert_close(model.features(shuffled(given)), model.features(given))


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("kind", ["vit", "swin", "hybrid", "deit"])
def test_order_counts_within_a_clip_and_no_clip_sees_another(name: str, kind: str) -> None:
    if (name, kind) == ("aim", "swin"):
        return  # refused: test_other_backbones.py
    backbone: Any = make_tiny() if kind == "vit" else BACKBONES[kind]()
    model, given = moved(backbone, name, **VIDEO[name]), clips().double()
    features = model.features(given)
    assert (model.features(shuffled(given)) - features).abs().max() > 1e-4  # of 1e-15 by rounding
    torch.testing.assert_close(model.features(given.flip(0)).flip(0), features)
    for i in range(len(given)):
        torch.testing.assert_close(model.features(given[i : i + 1])[0], features[i])


@pytest.mark.parametrize("name", VIDEO)
def test_the_length_of_a_clip_is_forgotten_after_it_even_after_an_error(name: str) -> None:
    model, given = moved(make_tiny(), name, **VIDEO[name]), clips().double()
    images = given[:, 0].repeat(2, 1, 1, 1)[:3]  # three frames would make them one clip
    alone = torch.stack([model.backbone(image[None])[0] for image in images])
    model(given)
    torch.testing.assert_close(model.backbone(images), alone)
    with pytest.raises(vt.VTError, match="expected float images"):
        model(given[..., :16])
    torch.testing.assert_close(model.backbone(images), alone)
    torch.testing.assert_close(model.features(images[:, None]), alone)  # clips of one frame


@pytest.mark.parametrize("name", VIDEO)
def test_one_model_takes_clips_of_several_lengths_and_compiles(name: str) -> None:
    model = moved(make_tiny(), name, **VIDEO[name])
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for length in (3, 1, 4):
        given = clips(2, length).double()
        torch.testing.assert_close(compiled(given), model(given))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("st_adapter", {"bottleneck": 0}, "expected bottleneck an integer of at least 1"),
        ("st_adapter", {"kernel": (3, 1)}, "expected kernel as three odd numbers"),
        ("st_adapter", {"kernel": (2, 1, 1)}, "expected kernel as three odd numbers"),
        ("aim", {"frames": 0}, "expected frames an integer of at least 1"),
        ("aim", {"reduction": 25}, "expected reduction of at most 24"),
    ],
)
def test_settings_out_of_range_are_a_sentence(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(vt.VTError, match=message):
        vt.tune(make_tiny(), name, TASK, **settings)


@pytest.mark.parametrize("name", [*VIDEO, "linear"])
def test_clips_of_wrong_axes_or_without_a_frame_are_a_sentence(name: str) -> None:
    model = vt.tune(make_tiny(), name, TASK)
    for wrong in (clips()[:, 0], clips()[:, :0], clips()[None]):
        with pytest.raises(vt.VTError, match=r"expected clips \[B, T, C, H, W\]"):
            model(wrong)
    with pytest.raises(vt.VTError, match="expected float images"):
        model(clips(2, 4).transpose(1, 2))  # channels before frames


def test_a_clip_longer_than_aim_knows_is_a_sentence() -> None:
    model = vt.tune(make_tiny(), "aim", TASK, frames=2)
    with pytest.raises(vt.VTError, match="at most 2 frames, found 3; tune with frames=3"):
        model(clips())


def test_aim_asks_for_the_usual_blocks() -> None:
    with pytest.raises(vt.VTError, match="aim: expected a ViT"):
        vt.tune(MAKERS["resnet"](), "aim", TASK)
    models: Any = pytest.importorskip("timm").models
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 3}
    beit = models.beit.Beit(img_size=32, patch_size=8, use_rel_pos_bias=True, **sizes)
    with pytest.raises(vt.VTError, match=r"aim: .* with the usual blocks.*found Beit"):
        vt.tune(beit, "aim", TASK)
    vt.tune(beit, "st_adapter", TASK, bottleneck=4)
