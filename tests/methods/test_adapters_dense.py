"""ViT-Adapter against the most naive reading of its formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vtlite as vt
from tests.conftest import make_tiny
from tests.methods.checks import batch, trained
from tests.methods.test_adapters import by_hand, convolved
from vtlite.methods.adapter.parallel.vit_adapter import (
    DeformableAttention,
    Extractor,
    Injector,
    SpatialPrior,
)
from vtlite.task import Segmentation

SIZES = [
    (3, 5),
    (2, 3),
    (1, 2),
]  # of maps; not square, so that height and width can't change places


def random(module: Any) -> Any:
    """The module in float64 with random values everywhere, large enough to look outside of maps."""
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    return module


def linear(layer: Any, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def normed(layer: Any, x: Tensor) -> Tensor:
    z = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return z * layer.weight + layer.bias


def between(values: Tensor, h: int, w: int, x: Tensor, y: Tensor) -> Tensor:
    """A map of h w places, row by row [h w, d], at (x, y), where places have whole numbers; zero
    outside. Differentiable in all."""
    found = torch.zeros(values.shape[1], dtype=values.dtype)
    for i in (math.floor(x.item()), math.floor(x.item()) + 1):
        for j in (math.floor(y.item()), math.floor(y.item()) + 1):
            if 0 <= i < w and 0 <= j < h:
                found = found + (1 - (x - i).abs()) * (1 - (y - j).abs()) * values[j * w + i]
    return found


def look(attn: Any, query: Tensor, places: Any, read: Tensor, sizes: Any) -> Tensor:
    """Deformable attention for one image, query by query, head by head, point by point."""
    heads, levels, points = attn.shape
    centres = [
        ((u + 0.5) / w, (v + 0.5) / h) for h, w in places for v in range(h) for u in range(w)
    ]
    values, width = linear(attn.value, read), attn.value.out_features // heads
    out = []
    for q, (x, y) in zip(query, centres, strict=True):
        offsets = linear(attn.offsets, q).view(heads, levels, points, 2)
        weights = linear(attn.weights, q).view(heads, levels * points).softmax(-1)
        parts = []
        for head in range(heads):
            mixed = torch.zeros(width, dtype=q.dtype)
            start = 0
            for level, (h, w) in enumerate(sizes):
                own = values[start : start + h * w, head * width : (head + 1) * width]
                start += h * w
                for p in range(points):
                    dx, dy = offsets[head, level, p]  # in pixels of this map
                    at = between(own, h, w, x * w + dx - 0.5, y * h + dy - 0.5)
                    mixed = mixed + weights[head, level * points + p] * at
            parts.append(mixed)
        out.append(linear(attn.output, torch.cat(parts)))
    return torch.stack(out)


def count(sizes: Any) -> int:
    return sum(h * w for h, w in sizes)


@pytest.mark.parametrize(("places", "sizes"), [([(2, 3)], SIZES), (SIZES, [(2, 3)])])
def test_deformable_attention_by_loops(places: Any, sizes: Any) -> None:
    torch.manual_seed(0)
    attn = random(DeformableAttention(8, len(sizes), 2, 3, 0.5))
    query = torch.randn(2, count(places), 8, dtype=torch.float64, requires_grad=True)
    read = torch.randn(2, count(sizes), 8, dtype=torch.float64, requires_grad=True)
    inputs = (query, read, *attn.parameters())
    found = attn(query, places, read, sizes)
    pairs = zip(query, read, strict=True)
    expected = torch.stack([look(attn, q, places, r, sizes) for q, r in pairs])
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(found)
    for ours, naive in zip(
        torch.autograd.grad(found, inputs, towards),
        torch.autograd.grad(expected, inputs, towards),
        strict=True,
    ):
        torch.testing.assert_close(ours, naive)


def test_deformable_attention_starts_by_looking_around() -> None:
    attn = DeformableAttention(16, 2, 8, 2, 1.0)
    attn.start()
    around = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    expected = torch.tensor([[[(k * x, k * y) for k in (1, 2)]] * 2 for x, y in around]).float()
    torch.testing.assert_close(attn.offsets(torch.randn(16)), expected.flatten())
    assert attn.weights(torch.randn(16)).tolist() == [0.0] * 32


def test_an_injector_adds_what_the_patches_read_times_a_gain() -> None:
    torch.manual_seed(0)
    injector = random(Injector(8, 2, 3, 0.5))
    x, c = torch.randn(1, 6, 8).double(), torch.randn(1, count(SIZES), 8).double()
    query, read = normed(injector.query_norm, x[0]), normed(injector.norm, c[0])
    expected = x[0] + injector.gamma * look(injector.attn, query, [(2, 3)], read, SIZES)
    torch.testing.assert_close(injector(x, (2, 3), c, SIZES)[0], expected)


def test_an_extractor_reads_the_patches_and_then_convolves_each_map_by_itself() -> None:
    torch.manual_seed(0)
    extractor = random(Extractor(8, 2, 3, 0.5))
    x, c = torch.randn(1, 6, 8).double(), torch.randn(1, count(SIZES), 8).double()
    query, read = normed(extractor.query_norm, c[0]), normed(extractor.norm, x[0])
    expected = c[0] + look(extractor.attn, query, SIZES, read, [(2, 3)])
    z = linear(extractor.fc1, normed(extractor.ffn_norm, expected)).split([15, 6, 2])
    conv = extractor.conv
    z = [by_hand(m, conv.weight, conv.bias, h, w) for m, (h, w) in zip(z, SIZES, strict=True)]
    expected = expected + linear(extractor.fc2, F.gelu(torch.cat(z)))
    torch.testing.assert_close(extractor(c, SIZES, x, (2, 3))[0], expected)


def test_the_prior_halves_its_maps_and_projects_each_to_the_width() -> None:
    torch.manual_seed(0)
    prior = random(SpatialPrior(3, 2, 8)).eval()
    convs = [[s[i] for i in range(0, len(s) - 1, 3)] for s in prior.stages]
    bns = [[s[i + 1] for i in range(0, len(s) - 1, 3)] for s in prior.stages]
    for bn in (bn for norms in bns for bn in norms):
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
    z = images = torch.randn(2, 3, 48, 32).double()
    found = prior(images)
    widths, strides = [[2, 2, 2], [4], [8], [8]], [[2, 1, 1], [2], [2], [2]]
    for i, (layers, norms) in enumerate(zip(convs, bns, strict=True)):
        assert [layer.out_channels for layer in layers] == widths[i]
        for layer, bn, stride in zip(layers, norms, strides[i], strict=True):
            z = F.conv2d(z, layer.weight, stride=stride, padding=1)
            mean, var = (b[:, None, None] for b in (bn.running_mean, bn.running_var))
            z = (z - mean) / (var + bn.eps).sqrt()
            z = F.relu(z * bn.weight[:, None, None] + bn.bias[:, None, None])
        z = F.max_pool2d(z, 3, 2, 1) if i == 0 else z
        torch.testing.assert_close(found[i], convolved(z, prior.project[i]))
    assert [tuple(m.shape[2:]) for m in found] == [(12, 8), (6, 4), (3, 2), (2, 1)]


@pytest.mark.parametrize("depth", [4, 3])
def test_the_exchange_step_by_step(depth: int) -> None:
    """Two groups of blocks, the longer first; one extractor after the first, three in the end."""
    torch.manual_seed(0)
    backbone = make_tiny(depth=depth).double().eval()
    settings: Any = {"prior_width": 4, "interactions": 2, "heads": 3}
    model = vt.tune(backbone, "vit_adapter", 3, **settings).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn_like(p)
    own: Any = model.backbone
    images, sizes, grid = batch(2)[0].double(), [(8, 8), (4, 4), (2, 2)], (4, 4)
    large = F.interpolate(images, (64, 64), mode="bilinear")  # 16 pixels for each of 4 x 4 patches
    fine, *maps = own.prior(large)
    c = torch.cat([m.flatten(2).mT + own.level[i] for i, m in enumerate(maps)], 1)
    x = torch.cat([backbone.cls_token.expand(2, -1, -1), backbone.patch_embed(images)], 1)
    x = x + backbone.pos_embed
    for i, group in enumerate(([0, 1], list(range(2, depth)))):
        x = torch.cat([x[:, :1], own.injectors[i](x[:, 1:], grid, c, sizes)], 1)
        for block in group:
            x = backbone.blocks[block](x)
        assert len(own.extractors[i]) == (1, 3)[i]
        for extractor in own.extractors[i]:
            c = extractor(c, sizes, x[:, 1:], grid)
    patches = x[:, 1:].mT.unflatten(2, grid)
    maps = [m.mT.unflatten(2, s) for m, s in zip(c.split([64, 16, 4], 1), sizes, strict=True)]
    maps = [fine + own.up(maps[0]), *maps]
    for i, (m, side) in enumerate(zip(maps, (16, 8, 4, 2), strict=True)):
        maps[i] = own.norms[i](m + F.interpolate(patches, (side, side), mode="bilinear"))
    tokens, found = own.exchange(images)
    torch.testing.assert_close(tokens, backbone.norm(x))
    for ours, naive in zip(found, maps, strict=True):
        torch.testing.assert_close(ours, naive)
    merged = sum(F.interpolate(m, (16, 16), mode="bilinear") for m in maps) / 4
    torch.testing.assert_close(own.feature_maps(images), merged)
    pooled = backbone.norm(x)[:, 0] + merged.flatten(2).mean(2)
    torch.testing.assert_close(model.features(images), pooled)


def test_a_gain_of_zero_leaves_the_vits_tokens_as_they_are() -> None:
    model: Any = trained("vit_adapter").eval()
    images, backbone = batch()[0], make_tiny()
    plain = backbone.forward_features(images)
    assert not torch.allclose(model.backbone.exchange(images)[0], plain, atol=1e-3)
    with torch.no_grad():
        for injector in model.backbone.injectors:
            injector.gamma.zero_()
    torch.testing.assert_close(model.backbone.exchange(images)[0], plain)


@pytest.mark.parametrize(
    ("sizes", "sides"),
    [
        ({"img_size": 32, "patch_size": 8}, [16, 8, 4, 2]),
        ({"img_size": 32, "patch_size": 16}, [8, 4, 2, 1]),
        ({"img_size": 42, "patch_size": 14}, [12, 6, 3, 2]),  # an odd number of patches
        ({"img_size": 64, "patch_size": 32}, [8, 4, 2, 1]),
    ],
)
def test_the_pyramid_has_the_same_scales_for_patches_of_any_size(
    sizes: dict[str, int], sides: list[int]
) -> None:
    model: Any = vt.tune(
        make_tiny(**sizes), "vit_adapter", 3, prior_width=4, interactions=2, heads=3
    )
    images = torch.randn(2, 3, sizes["img_size"], sizes["img_size"])
    maps = model.backbone.exchange(images)[1]
    assert [m.shape for m in maps] == [(2, 24, side, side) for side in sides]


@pytest.mark.parametrize("whole", [False, True])
def test_masks_train_the_pyramid_and_the_vit_only_if_told(whole: bool) -> None:
    task = Segmentation("masks", ("ground", "thing"), upsample=2)
    settings: Any = {"prior_width": 4, "interactions": 2, "heads": 3, "train_backbone": whole}
    model = vt.tune(make_tiny(), "vit_adapter", task, **settings)
    images = batch(6)[0]
    masks = torch.zeros(6, 32, 32, dtype=torch.long)
    for i, mask in enumerate(masks):  # a bright square, elsewhere in every picture
        mask[4 * i : 4 * i + 10, 20 - 4 * i : 30 - 4 * i] = 1
    images = (images + 3 * masks[:, None]).clamp(-3, 3) / 3
    assert model(images).shape == (6, 2, 32, 32)  # two pixels a place of a map of 16 x 16
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = torch.utils.data.TensorDataset(images, masks)
    history = vt.fit(model, data, epochs=12, batch_size=6, lr=1e-2, progress=False)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    still = {n.removeprefix("network.backbone.base.") for n in before.keys() - moved}
    if whole:
        assert still == {"norm.weight", "norm.bias"}  # maps come from before the last norm
    else:
        assert still == {n for n, _ in make_tiny().named_parameters()}


def test_it_works_in_half_precision() -> None:
    model, images = trained("vit_adapter").eval(), batch()[0]
    plain = model.features(images)
    half = model.to(torch.bfloat16).features(images.to(torch.bfloat16))
    assert (half - plain).abs().max() < 0.1 * plain.abs().max()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"interactions": 3, "heads": 3},
            "expected interactions of at most 2, its blocks, found 3",
        ),
        ({"interactions": 2, "heads": 5}, "expected heads that divide 12, what they read, found 5"),
        ({"interactions": 2, "heads": 1, "ratio": 0.01}, "expected heads that divide 0"),
        ({"points": 0}, "expected points an integer of at least 1, found 0"),
        ({"ratio": 1.5}, "expected ratio above 0 and at most 1, found 1.5"),
        ({"ratio": float("nan")}, "expected ratio"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_a_sentence(
    settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(vt.VTError, match=sentence):
        vt.tune(make_tiny(), "vit_adapter", 3, **settings)
