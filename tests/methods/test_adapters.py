"""Adapters against the most naive reading of their formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vtlite as vt
from tests.conftest import make_tiny, make_tiny_resnet
from tests.methods.checks import CNNS, batch
from tests.methods.test_references import added, assert_same, example, naive_vit
from vtlite.methods.adapter.mix.fpet import SizedAttention, Sizes
from vtlite.methods.adapter.parallel.convpass import Bypass
from vtlite.methods.adapter.places import Places, passing
from vtlite.methods.adapter.sequential.mona import MonaAdapter
from vtlite.task import Classification, Segmentation, Several


def bottlenecks(model: Any) -> Any:
    """Applies bottleneck k of the model, in the order of its modules, to z."""
    D, d, U, u = (added(model, s) for s in ("down.weight", "down.bias", "up.weight", "up.bias"))
    return lambda k, z: z + F.gelu(z @ D[k].T + d[k]) @ U[k].T + u[k]


def test_houlsby_has_a_bottleneck_after_attention_and_mlp() -> None:
    model, state, images = example("houlsby")
    A = bottlenecks(model)

    def op(name: str, z: Tensor) -> Tensor:
        block = int(name.split(".")[1]) if name.startswith("blocks") else 0
        if name.endswith("attn.proj"):
            return A(2 * block, z)
        return A(2 * block + 1, z) if name.endswith("mlp.fc2") else z

    assert_same(model, images, naive_vit(state, images, op))


def test_pfeiffer_has_one_after_the_mlp_alone() -> None:
    model, state, images = example("pfeiffer")
    A = bottlenecks(model)

    def op(name: str, z: Tensor) -> Tensor:
        return A(int(name.split(".")[1]), z) if name.endswith("mlp.fc2") else z

    assert_same(model, images, naive_vit(state, images, op))


def test_repadapter_comes_between_the_norms_and_what_follows() -> None:
    model, state, images = example("repadapter")
    s, groups = model.method.scale, model.method.num_groups  # type: ignore[attr-defined]
    names = ("down.weight", "down.bias", "up", "up_bias")
    A, a, B, b = (added(model, f"adapter.{name}") for name in names)
    assert len(A) == 4  # one for q, k and v together, one for the MLP, in each of two blocks

    def op(name: str, z: Tensor) -> Tensor:
        if "norm" not in name or name == "norm":
            return z
        k = 2 * int(name.split(".")[1]) + name.endswith("norm2")
        hidden = z @ A[k].T + a[k]
        parts = [h @ B[k][g].T for g, h in enumerate(hidden.chunk(groups, -1))]
        return z + s * (torch.cat(parts, -1) + b[k])

    assert_same(model, images, naive_vit(state, images, op))


def test_consolidator_adds_blocks_on_the_diagonal() -> None:
    model, state, images = example("consolidator")
    groups = model.method.num_groups  # type: ignore[attr-defined]
    changed = dict(model.backbone.named_parameters())
    for name in [n for n in changed if n.endswith(".blocks")]:
        layer, blocks = name.removesuffix(".blocks"), changed[name].detach()
        weight = state[f"{layer}.weight"]
        rows, columns = weight.shape[0] // groups, weight.shape[1] // groups
        for g in range(groups):
            place = slice(g * rows, (g + 1) * rows), slice(g * columns, (g + 1) * columns)
            weight[place] += blocks[g]
        state[f"{layer}.bias"] = changed[f"{layer}.base.bias"] + changed[f"{layer}.shift"]
    for name, value in changed.items():
        if "norm" in name:
            state[name] = value.detach()
    assert_same(model, images, naive_vit(state, images))


def test_consolidator_drops_the_whole_of_it_for_an_image() -> None:
    model = vt.tune(make_tiny(), "consolidator", 3, num_groups=6, drop=0.5)
    layer: Any = model.backbone.blocks[0].mlp.fc1
    torch.manual_seed(0)
    x = torch.randn(64, 5, 24)
    beside = layer.update(x)  # in eval mode nothing is dropped
    layer.train()
    left = (layer.update(x) / beside).flatten(1)
    torch.testing.assert_close(left.amin(1), left.amax(1), atol=1e-3, rtol=0)
    assert set(left.mean(1).round().tolist()) == {0.0, 2.0}


def by_hand(z: Tensor, weight: Tensor, bias: Tensor, h: int, w: int) -> Tensor:
    """A convolution over patches [h w, C_in] that lie row by row, position by position. weight
    [C_out, C_in / groups, k, k] with one or C_in groups."""
    alone, k = weight.shape[1] == 1 and z.shape[1] > 1, weight.shape[-1]
    out = bias.expand(h * w, -1).clone()
    for y in range(h):
        for x in range(w):
            for i in range(k):
                for j in range(k):
                    v, u = y + i - k // 2, x + j - k // 2
                    if 0 <= v < h and 0 <= u < w:
                        seen, tap = z[v * w + u], weight[:, :, i, j]
                        out[y * w + x] += seen * tap[:, 0] if alone else tap @ seen
    return out


def places_by_hand(x: Tensor, prefix: int, conv: Any, h: int, w: int) -> Tensor:
    """`conv(map, h, w)` over the patches of one image, and over each token before them alone."""
    alone = [conv(token[None], 1, 1) for token in x[:prefix]]
    return torch.cat([*alone, conv(x[prefix:], h, w)])


@pytest.mark.parametrize(("prefix", "h", "w"), [(0, 4, 4), (1, 3, 3), (3, 4, 2)])
def test_convpass_is_a_convolution_over_the_patches(prefix: int, h: int, w: int) -> None:
    torch.manual_seed(0)
    branch, places = nn.Linear(6, 6).double(), Places(prefix, h / w)
    module = Bypass(branch, 6, 4, 0.7, 0.0, places).double()
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    x = torch.randn(2, prefix + h * w, 6, dtype=torch.float64)
    q = lambda v: v / (1 + torch.exp(-1.702 * v))  # noqa: E731
    for image, found in zip(x, module(x), strict=True):
        z = q(image @ module.down.weight.T + module.down.bias)
        conv = lambda z, h, w: by_hand(z, module.conv.weight, module.conv.bias, h, w)  # noqa: E731
        z = q(places_by_hand(z, prefix, conv, h, w))
        expected = branch(image) + 0.7 * (z @ module.up.weight.T + module.up.bias)
        torch.testing.assert_close(found, expected)


def test_convpass_stands_beside_attention_and_mlp_on_normed_tokens() -> None:
    torch.manual_seed(0)
    model = vt.tune(make_tiny(), "convpass", 3, bottleneck=4, scale=2.0).eval()
    block: Any = model.backbone.blocks[1]
    with torch.no_grad():
        for p in block.parameters():
            p += 0.1 * torch.randn(p.shape)
    x = torch.randn(2, 17, 24)
    q = lambda v: v * torch.sigmoid(1.702 * v)  # noqa: E731
    C = lambda m, z: 2 * m.up(q(m.places.apply(m.conv, q(m.down(z)))))  # noqa: E731
    n = block.norm1(x)
    y = x + block.attn.branch(n) + C(block.attn, n)
    n = block.norm2(y)
    torch.testing.assert_close(block(x), y + block.mlp.branch(n) + C(block.mlp, n))


@pytest.mark.parametrize("prefix", [0, 1])
def test_mona_by_hand(prefix: int) -> None:
    torch.manual_seed(0)
    module = MonaAdapter(6, 3, 0.0, Places(prefix)).double()
    with torch.no_grad():
        for p in module.parameters():
            p.normal_()
    x = torch.randn(2, prefix + 9, 6, dtype=torch.float64)

    def over(z: Tensor, h: int, w: int) -> Tensor:
        z = z + sum(by_hand(z, c.weight, c.bias, h, w) for c in module.convs) / 3
        return z + z @ module.mix.weight[:, :, 0, 0].T + module.mix.bias

    for image, found in zip(x, module(x), strict=True):
        z = module.gamma * module.norm(image) + module.gamma_x * image
        z = places_by_hand(z @ module.down.weight.T + module.down.bias, prefix, over, 3, 3)
        torch.testing.assert_close(found, F.gelu(z) @ module.up.weight.T + module.up.bias)


def test_mona_works_on_the_stream_after_attention_and_after_the_mlp() -> None:
    torch.manual_seed(0)
    backbone = make_tiny().eval()
    model = vt.tune(backbone, "mona", 3, bottleneck=4).eval()
    block, plain = model.backbone.blocks[0], backbone.blocks[0]
    x, _ = torch.randn(2, 17, 24), batch()
    y = x + plain.attn(plain.norm1(x))
    y = y + block.mlp.before(y)
    y = y + plain.mlp(plain.norm2(y))
    torch.testing.assert_close(block(x), y + block.mlp.after(y))


def test_images_of_another_shape_than_the_backbones_are_refused_in_a_sentence() -> None:
    with pytest.raises(vt.VTError, match="found 10 for images 1 times as high as wide"):
        Places(1).apply(lambda z: z, torch.randn(1, 11, 2))


def test_lst_climbs_a_ladder_of_blends() -> None:
    model, _, images = example("lst")
    ladder: Any = model.backbone
    _, (first, *rungs) = passing(ladder.base, images)
    expected = ladder.base.patch_embed(images)
    expected = torch.cat([ladder.base.cls_token.expand(len(images), -1, -1), expected], 1)
    torch.testing.assert_close(first, expected + ladder.base.pos_embed)
    torch.testing.assert_close(ladder.base.norm(rungs[-1]), ladder.base.forward_features(images))
    s = first @ ladder.reads[0].weight.T + ladder.reads[0].bias
    for i, rung in enumerate(rungs):
        g = 1 / (1 + torch.exp(-ladder.gates[i] / 0.1))
        read = rung @ ladder.reads[i + 1].weight.T + ladder.reads[i + 1].bias
        s = ladder.side[i](g * s + (1 - g) * read)
    tokens = ladder.norm(s) @ ladder.back.weight.T + ladder.back.bias
    assert_same(model, images, tokens[:, 0])


def test_lst_lets_no_gradient_and_no_graph_into_the_trunk() -> None:
    model, (images, labels) = vt.tune(make_tiny(), "lst", 3, reduction=4), batch()
    seen: list[bool] = []
    for block in model.backbone.base.blocks:
        block.register_forward_hook(lambda m, args, out: seen.append(out.requires_grad))
    images.requires_grad_(True)  # even where one is asked for
    model.method.backward(model, images, labels)
    assert seen == [False, False]
    assert images.grad is None
    assert all(p.grad is None for p in model.backbone.base.parameters())
    assert all(p.grad is not None for p in model.backbone.side.parameters())


def test_lst_starts_as_what_is_strongest_in_the_blocks() -> None:
    backbone = make_tiny()
    keep = torch.tensor([1, 2, 5, 8, 13, 20])
    with torch.no_grad():  # six strong channels, two strong ones in each head, a quarter of the MLP
        rows = [torch.tensor([0, 3]), torch.tensor([1, 7]), torch.tensor([4, 5])]
        hidden = torch.arange(0, 96, 4)
        for block in backbone.blocks:
            for p in block.parameters():
                p.mul_(0.01)
            for h, kept in enumerate(rows):
                for part in range(3):
                    block.attn.qkv.weight[24 * part + 8 * h + kept] *= 100
                block.attn.proj.weight[:, 8 * h + kept] *= 100
            block.mlp.fc1.weight[hidden] *= 100
            block.mlp.fc2.weight[:, hidden] *= 100
            for layer in (block.attn.qkv, block.mlp.fc1):
                layer.weight[:, keep] *= 100
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight[keep] *= 100
    side: Any = vt.tune(backbone, "lst", 3, reduction=4).backbone.side
    inside = torch.cat([8 * h + kept for h, kept in enumerate(rows)])
    for thin, block in zip(side, backbone.blocks, strict=True):
        expected = block.attn.qkv.weight.view(3, 24, 24)[:, inside][:, :, keep].flatten(0, 1)
        assert torch.equal(thin.attn.qkv.weight, expected)
        assert torch.equal(thin.attn.proj.weight, block.attn.proj.weight[keep][:, inside])
        assert torch.equal(thin.mlp.fc1.weight, block.mlp.fc1.weight[hidden][:, keep])
        assert torch.equal(thin.mlp.fc2.weight, block.mlp.fc2.weight[keep][:, hidden])
        assert torch.equal(thin.norm2.weight, block.norm2.weight[keep])


@pytest.mark.parametrize("conv", [False, True])
def test_dtl_gathers_everywhere_and_gives_back_late(conv: bool) -> None:
    torch.manual_seed(0)
    backbone = make_tiny(depth=4).double().eval()
    model = vt.tune(backbone, "dtl", 3, conv=conv).double().eval()
    blocks: Any = model.backbone.blocks
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.3 * torch.randn_like(p)
    x, s = torch.randn(2, 17, 24, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    found = blocks(x)
    for i, block in enumerate(blocks):
        s = s + (x @ block.A.T) @ block.B.T
        x = backbone.blocks[i](x)
        if i >= 2:
            given = s / (1 + torch.exp(-100 * s))
            if conv:
                weight, none = block.gives.conv.weight, torch.zeros(24, dtype=torch.float64)
                patches = torch.stack([by_hand(z, weight, none, 4, 4) for z in given[:, 1:]])
                given = torch.cat([given[:, :1], patches], 1)
            x = x + given
    torch.testing.assert_close(found, x)


def test_dtl_needs_no_graph_through_the_first_blocks() -> None:
    model, (images, _) = vt.tune(make_tiny(depth=4), "dtl", 3), batch()
    seen: list[bool] = []
    for block in model.backbone.blocks:
        block.block.register_forward_hook(lambda m, args, out: seen.append(out.requires_grad))
    model(images)
    assert seen == [False, False, False, True]  # the third one's output is given the path's


def convolved(x: Tensor, layer: Any) -> Tensor:
    """A convolution of maps with one of a network's layers, in float64."""
    return F.conv2d(
        x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )


def moved(name: str, **settings: Any) -> vt.Tuned:
    """A ResNet with a method on it, whose every value and statistic is moved from its start."""
    torch.manual_seed(0)
    model = vt.tune(make_tiny_resnet(), name, 3, **settings).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.2 * torch.randn_like(p)
        for key, b in model.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                b += torch.rand_like(b)
    return model


def test_residual_adapters_in_series_by_hand() -> None:
    module: Any = moved("residual_adapter_series").backbone.layer2[0].conv1  # with a stride
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    y, n = convolved(x, module.base), module.norm
    normed = (y - n.running_mean[:, None, None]) / (n.running_var[:, None, None] + n.eps).sqrt()
    normed = normed * n.weight[:, None, None] + n.bias[:, None, None]
    expected = y + torch.einsum("ij,bjhw->bihw", module.adapter.weight[:, :, 0, 0], normed)
    torch.testing.assert_close(module(x), expected)


def test_residual_adapters_in_parallel_by_hand() -> None:
    module: Any = moved("residual_adapter_parallel").backbone.layer2[0].conv1
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    weight = module.adapter.weight[:, :, 0, 0]
    expected = convolved(x, module.base) + torch.einsum("ij,bjhw->bihw", weight, x[:, :, ::2, ::2])
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("name", ["residual_adapter_series", "residual_adapter_parallel"])
def test_residual_adapters_train_all_norms_and_their_statistics(name: str) -> None:
    model, (images, labels) = vt.tune(make_tiny_resnet(), name, 3), batch(6)
    before = {n: b.clone() for n, b in model.named_buffers() if n.endswith("running_mean")}
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.weight.requires_grad for norm in norms)
    vt.fit(model, torch.utils.data.TensorDataset(images, labels), epochs=1, progress=False)
    assert not any(torch.equal(b, before[n]) for n, b in model.named_buffers() if n in before)


@pytest.mark.parametrize("groups", [1, 2])
def test_residual_adapters_follow_the_groups_of_a_convolution_and_merge(groups: int) -> None:
    for name in ("residual_adapter_series", "residual_adapter_parallel"):
        backbone = make_tiny_resnet().double()
        backbone.layer1[0].conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=groups).double()
        model = vt.tune(backbone, name, 3).double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1 * torch.randn_like(p)
        images = batch()[0].double()
        torch.testing.assert_close(vt.merge(model).eval()(images), model(images))


def bottleneck_by_hand(x: Tensor, module: Any) -> Tensor:
    hidden = F.relu(convolved(x, module.down))
    return module.gain * convolved(hidden, module.up)


def test_conv_adapter_beside_the_first_of_two_convolutions() -> None:
    model = moved("conv_adapter", reduction=4)
    block: Any = model.backbone.layer2[0]
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    y = convolved(x, block.conv1.base) + bottleneck_by_hand(x, block.conv1.adapter)
    y = block.bn2(convolved(F.relu(block.bn1(y)), block.conv2))
    torch.testing.assert_close(block(x), F.relu(y + block.downsample(x)))


def test_conv_adapter_beside_the_middle_one_of_three_and_after_its_relu() -> None:
    torch.manual_seed(0)
    backbone = make_tiny_resnet(bottleneck=True)
    model = vt.tune(backbone, "conv_adapter", 3, reduction=4).double().eval()
    block: Any = model.backbone.layer2[0]
    z = torch.randn(2, 32, 6, 6, dtype=torch.float64)
    a = F.relu(block.bn1(block.conv1(z)))
    h = F.relu(block.bn2(convolved(a, block.conv2.base)))
    h = h + bottleneck_by_hand(a, block.conv2.adapter)
    expected = block.bn3(convolved(h, block.conv3.base)) + block.downsample(z)
    torch.testing.assert_close(block(z), F.relu(expected))


@pytest.mark.parametrize("name", sorted(CNNS))
def test_a_zero_start_is_the_backbone(name: str) -> None:
    images, backbone = batch()[0], make_tiny_resnet()
    model = vt.tune(backbone, name, 3, zero=True, **({"reduction": 4} if "conv" in name else {}))
    torch.testing.assert_close(model.features(images), backbone(images))


def test_vqt_asks_without_being_seen() -> None:
    """As in the paper: queries before the tokens, and a mask by which nobody sees them."""
    torch.manual_seed(0)
    backbone = make_tiny().double().eval()
    model = vt.tune(backbone, "vqt", 3, num_queries=2).double().eval()
    images = batch()[0].double()
    x = backbone.patch_embed(images)
    x = torch.cat([backbone.cls_token.expand(len(x), -1, -1), x], 1) + backbone.pos_embed
    pieces, T = [], 2
    for block, queries in zip(backbone.blocks, model.backbone.queries, strict=True):
        x = torch.cat([queries.queries.expand(len(x), -1, -1), x], 1)
        q, k, v = (
            t.transpose(1, 2)
            for t in block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 3, 8)).unbind(2)
        )
        scores = q @ k.transpose(2, 3) / 8**0.5
        scores[..., :T] = -torch.inf
        x = x + block.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        pieces.append(x[:, :T].flatten(1))
        x = x[:, T:]
    torch.testing.assert_close(backbone.norm(x), backbone.forward_features(images))
    pieces = [
        piece / piece.norm(dim=1, keepdim=True) for piece in (backbone.norm(x)[:, 0], *pieces)
    ]
    torch.testing.assert_close(model.features(images), torch.cat(pieces, 1))


def test_vqt_keeps_the_images_tokens_out_of_the_graph() -> None:
    model, (images, labels) = vt.tune(make_tiny(), "vqt", 3), batch()
    seen: list[bool] = []
    for block in model.backbone.base.blocks:
        block.register_forward_hook(lambda m, args, out: seen.append(out.requires_grad))
    model.method.backward(model, images, labels)
    assert seen == [False, False]
    assert all(p.grad is not None for p in model.backbone.queries.parameters())


@pytest.mark.parametrize("name", ["vqt", "fpet"])
def test_what_forgets_places_refuses_a_task_that_asks_about_them(name: str) -> None:
    masks: Any = Segmentation("masks", ("no", "yes"))
    for task in (
        masks,
        Several("both", parts={"what": Classification("what", ("a", "b")), "where": masks}),
    ):
        sentence = f"{name}: expected a task that asks about whole images, .*{type(task).__name__}"
        with pytest.raises(vt.VTError, match=sentence):
            vt.tune(make_tiny(), name, task)


def test_fpet_merges_one_colour_of_a_checkerboard_into_the_other() -> None:
    model, _, images = example("fpet")
    backbone: Any = model.backbone
    merging: Any = backbone.blocks[0]
    x = backbone.patch_embed(images)
    x = torch.cat([backbone.cls_token.expand(len(x), -1, -1), x], 1) + backbone.pos_embed
    left, block, refine = merging(x), merging.block, merging.refine
    n = block.norm1(x)
    keys = block.attn.qkv(n)[..., 24:48].unflatten(-1, (3, 8)).mean(2)
    r = keys + F.relu(keys @ refine.down.weight.T + refine.down.bias) @ refine.up.weight.T
    r = r + refine.up.bias
    x = x + block.attn(n)
    white = [1 + 4 * i + j for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    black = [1 + 4 * i + j for i in range(4) for j in range(4) if (i + j) % 2]
    for image, keys_of, found in zip(x, r, left, strict=True):
        groups = {0: [0], **{j: [j] for j in black}}
        for i in white:
            groups[
                max(black, key=lambda j: float(F.cosine_similarity(keys_of[i], keys_of[j], 0)))
            ] += [i]
        merged = torch.stack([image[group].mean(0) for group in groups.values()])
        merged = merged + block.mlp(block.norm2(merged))
        torch.testing.assert_close(found, merged)


def test_a_merged_token_counts_as_many_times_as_it_stands_for() -> None:
    torch.manual_seed(0)
    attn: Any = make_tiny().double().blocks[0].attn
    module = SizedAttention(attn, sizes := Sizes())
    x = torch.randn(1, 3, 24, dtype=torch.float64)
    sizes.sizes = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)[None, :, None]
    torch.testing.assert_close(module(x), attn(x[:, [0, 1, 1, 1, 2, 2]])[:, [0, 1, 4]])


def test_fpet_works_on_half_of_the_patches_and_leaves_nothing_behind() -> None:
    model, (images, _) = vt.tune(make_tiny(depth=4), "fpet", 3, bottleneck=4), batch()
    seen: list[int] = []
    for block in model.backbone.blocks:
        block.register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    model(images)
    assert seen == [17, 17, 9, 9]
    assert model.backbone.blocks[3].merged.sizes is None
