"""Vision prompts against the most naive reading of their formulas: answers and gradients."""

from __future__ import annotations

import cmath
import copy
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

import vtlite as vt
from tests.conftest import make_tiny, make_tiny_resnet
from tests.methods.checks import SMALL, batch, trained
from tests.methods.test_references import HEADS
from tests.test_task import tasks
from vtlite.methods.prompt.vision.evp import high_frequencies
from vtlite.methods.prompt.vision.lpt import BALANCED, Balanced, asymmetric_loss
from vtlite.methods.prompt.vision.noah import depths, drawn, mutated, numbers, smallest
from vtlite.storage import load_tensors
from vtlite.task import Classification, Stream

State = dict[str, Tensor]
Block = Callable[[int, Tensor], Tensor]
NAMES = ("vpt_shallow", "vp", "vfpt", "evp", "pgn", "pro_tuning", "s_prompting", "lpt", "noah")


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state: State, name: str, x: Tensor) -> Tensor:
    z = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return z * state[f"{name}.weight"] + state[f"{name}.bias"]


def patches(state: State, images: Tensor) -> Tensor:
    weight = state["patch_embed.proj.weight"]
    cut = F.unfold(images, 8, stride=8).transpose(1, 2)
    return cut @ weight.flatten(1).T + state["patch_embed.proj.bias"]


def attention(state: State, i: int, x: Tensor, qkv: Any = None) -> Tensor:
    name = f"blocks.{i}.attn"
    z = (qkv or (lambda x: linear(state, f"{name}.qkv", x)))(norm(state, f"blocks.{i}.norm1", x))
    heads = []
    for q, k, v in zip(*(t.chunk(HEADS, -1) for t in z.chunk(3, -1)), strict=True):
        heads.append((q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ v)
    return linear(state, f"{name}.proj", torch.cat(heads, -1))


def mlp(state: State, i: int, x: Tensor) -> Tensor:
    hidden = F.gelu(linear(state, f"blocks.{i}.mlp.fc1", norm(state, f"blocks.{i}.norm2", x)))
    return linear(state, f"blocks.{i}.mlp.fc2", hidden)


def block(state: State, i: int, x: Tensor) -> Tensor:
    x = x + attention(state, i, x)
    return x + mlp(state, i, x)


def vit(state: State, images: Tensor, each: Block | None = None) -> Tensor:
    """Features [B, D] of a ViT of two blocks, the i-th of which is each(i, x)."""
    x = patches(state, images)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    for i in range(2):
        x = each(i, x) if each else block(state, i, x)
    return norm(state, "norm", x)[:, 0]


def between(x: Tensor, prompts: Tensor) -> Tensor:
    """Prompts [P, D] or [B, P, D] behind the class token."""
    return torch.cat([x[:, :1], prompts.expand(len(x), -1, -1), x[:, 1:]], 1)


def without(x: Tensor, count: int) -> Tensor:
    return torch.cat([x[:, :1], x[:, 1 + count :]], 1)


def example(name: str, **settings: Any) -> tuple[Any, State, Tensor]:
    """A tuned model moved away from its start, the plain backbone's values, and images; all in
    float64."""
    model = vt.tune(make_tiny(), name, 3, **{**SMALL.get(name, {}), **settings})
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.05 * torch.randn(p.shape, generator=g)
    return model.double().eval(), make_tiny().double().state_dict(), batch()[0].double()


def assert_same(model: Any, images: Tensor, expected: Tensor) -> None:
    """The same answers, and the same gradients of all that trains."""
    found = model(images)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    towards = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)).double()
    learnt = {n: p for n, p in model.named_parameters() if p.requires_grad}
    unused = dict.fromkeys(["allow_unused", "materialize_grads"], True)
    for name, ours, naive in zip(
        learnt,
        torch.autograd.grad(found, learnt.values(), towards, **unused),
        torch.autograd.grad(expected, learnt.values(), towards, **unused),
        strict=True,
    ):
        torch.testing.assert_close(ours, naive, atol=1e-8, rtol=1e-5, msg=name)


def headed(model: Any, x: Tensor) -> Tensor:
    return x @ model.head.weight.T + model.head.bias


def test_vpt_shallow_keeps_what_blocks_make_of_the_prompts() -> None:
    """Not the prompts anew in each block, nor their positions, nor a mean over them."""
    model, state, images = example("vpt_shallow")
    prompts = model.backbone.blocks[0].prompts.prompts

    def each(i: int, x: Tensor) -> Tensor:
        x = block(state, i, between(x, prompts) if i == 0 else x)
        return without(x, 3) if i == 1 else x

    assert_same(model, images, headed(model, vit(state, images, each)))


def test_vfpt_transforms_the_first_prompts_by_sums_of_cosines() -> None:
    """Over tokens and channels, unscaled, the real part; the others stay as they are."""
    model, state, images = example("vfpt", num_prompts=5, fourier=0.5)

    def each(i: int, x: Tensor) -> Tensor:
        P = model.backbone.blocks[i].prompts
        m, D = 2, P.shape[1]
        wave = torch.zeros(m, D, dtype=torch.complex128)
        for u in range(m):
            for v in range(D):
                for n in range(m):
                    turn = [cmath.exp(-2j * math.pi * (u * n / m + v * d / D)) for d in range(D)]
                    wave[u, v] = wave[u, v] + (P[n] * torch.tensor(turn)).sum()
        seen = torch.cat([wave.real, P[m:]])
        return without(block(state, i, between(x, seen)), 5)

    assert_same(model, images, headed(model, vit(state, images, each)))


@pytest.mark.parametrize(("fourier", "same"), [(0.0, True), (0.2, True), (0.25, False)])
def test_vfpt_without_a_transformed_prompt_is_vpt_deep(fourier: float, same: bool) -> None:
    images, _ = batch()
    deep = vt.tune(make_tiny(), "vpt_deep", 3, num_prompts=4)
    ours = vt.tune(make_tiny(), "vfpt", 3, num_prompts=4, fourier=fourier)
    assert torch.allclose(ours(images), deep(images), atol=1e-6) == same


def test_vp_adds_a_frame_pixel_by_pixel() -> None:
    model, state, images = example("vp")
    own, P, S = model.backbone, 4, 32
    seen = images.clone()
    for y in range(S):
        for x in range(S):
            if y < P:
                seen[:, :, y, x] += own.up[:, y, x]
            elif y >= S - P:
                seen[:, :, y, x] += own.down[:, y - (S - P), x]
            elif x < P:
                seen[:, :, y, x] += own.left[:, y - P, x]
            elif x >= S - P:
                seen[:, :, y, x] += own.right[:, y - P, x - (S - P)]
    assert_same(model, images, headed(model, vit(state, seen)))


@pytest.mark.parametrize(("place", "at"), [("fixed", 0), ("random", 14)])
def test_vp_adds_a_square_in_the_corner_or_in_the_middle(place: str, at: int) -> None:
    model, state, images = example("vp", place=place)
    seen = images.clone()
    seen[:, :, at : at + 4, at : at + 4] += model.backbone.patch
    assert_same(model, images, headed(model, vit(state, seen)))


def test_vp_moves_the_random_square_in_training_everywhere_and_only_there() -> None:
    model = vt.tune(make_tiny(), "vp", 3, place="random", width=30).backbone.train()
    places = {tuple(model.picture().sum(0).nonzero()[0].tolist()) for _ in range(200)}
    assert places == {(y, x) for y in range(3) for x in range(3)}
    still = model.eval().picture()
    assert torch.equal(still, model.picture())


def test_vp_works_on_a_cnn_of_a_given_size_only() -> None:
    backbone = make_tiny_resnet()
    with pytest.raises(vt.VTError, match="vp: expected image_size as the side of the images"):
        vt.tune(backbone, "vp", 3, width=4)
    model = vt.tune(backbone, "vp", 3, width=4, image_size=48)
    images = torch.randn(2, 3, 48, 48)
    picture: Any = model.backbone
    torch.testing.assert_close(model.features(images), backbone(images + picture.picture()))
    with pytest.raises(vt.VTError, match=r"\[B, 3, 48, 48\], found 32x32 pixels"):
        model(torch.randn(2, 3, 32, 32))


def test_high_frequencies_by_sums_over_all_waves() -> None:
    """The middle of the spectrum is zero frequency for odd sizes as well; the square that is taken
    out may be higher than the image."""
    for H, W in ((6, 6), (5, 7), (2, 12)):
        image = torch.randn(1, 1, H, W).double()
        half = int(math.sqrt(H * W * 0.25) / 2)
        expected = torch.zeros(H, W, dtype=torch.complex128)
        for u in range(-(H // 2), (H + 1) // 2):
            for v in range(-(W // 2), (W + 1) // 2):
                if -half <= u < half and -half <= v < half:
                    continue
                wave = torch.tensor(
                    [
                        [cmath.exp(2j * math.pi * (u * y / H + v * x / W)) for x in range(W)]
                        for y in range(H)
                    ]
                )
                expected += (image[0, 0] * wave.conj()).sum() * wave / (H * W)
        torch.testing.assert_close(high_frequencies(image, 0.25)[0, 0], expected.real.abs())
    assert not high_frequencies(torch.ones(1, 1, 8, 8), 0.25).abs().max() > 1e-6


def test_evp_adds_to_each_patch_before_each_block() -> None:
    """From embeddings before their positions, and nothing to the class token."""
    model, state, images = example("evp")
    own = model.backbone
    waves = F.unfold(high_frequencies(images, 0.25), 8, stride=8).transpose(1, 2)
    conv = own.of_waves
    shared = patches(state, images) @ own.of_patches.weight.T + own.of_patches.bias
    shared = shared + waves @ conv.weight.flatten(1).T + conv.bias

    def each(i: int, x: Tensor) -> Tensor:
        b = own.base.blocks[i]
        prompts = F.gelu(shared @ b.own.weight.T + b.own.bias) @ b.up.weight.T + b.up.bias
        return block(state, i, torch.cat([x[:, :1], x[:, 1:] + prompts], 1))

    assert_same(model, images, headed(model, vit(state, images, each)))


def generated(generator: Any, images: Tensor) -> Tensor:
    """The ten layers in eval mode, one after another."""

    def bn(layer: Any, x: Tensor) -> Tensor:
        mean, var, w, b = (
            t[:, None, None]
            for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
        )
        return (x - mean) / (var + 1e-5).sqrt() * w + b

    x = F.conv2d(images, generator.stem.weight, stride=2, padding=1)
    x = F.max_pool2d(F.relu(bn(generator.norm, x)), 3, 2, 1)
    for i, b in enumerate(generator.blocks):
        stride = 1 if i == 0 else 2
        z = F.relu(bn(b.norm1, F.conv2d(x, b.conv1.weight, stride=stride, padding=1)))
        z = bn(b.norm2, F.conv2d(z, b.conv2.weight, padding=1))
        x = F.relu(z + (x if i == 0 else F.conv2d(x, b.skip.weight, b.skip.bias, stride=2)))
    z = x.mean((2, 3)) @ generator.weigh.weight.T + generator.weigh.bias
    T = generator.library
    return torch.stack([z[:, k * len(T) : (k + 1) * len(T)].softmax(-1) @ T for k in range(3)], 1)


def test_pgn_mixes_the_prompts_of_each_image_itself() -> None:
    """Not those of another image, and by a softmax over the library, not over the prompts."""
    model, state, images = example("pgn")
    prompts = generated(model.backbone.generator, images)
    assert not torch.allclose(prompts[0], prompts[1])

    def each(i: int, x: Tensor) -> Tensor:
        x = block(state, i, between(x, prompts) if i == 0 else x)
        return without(x, 3) if i == 1 else x

    assert_same(model, images, headed(model, vit(state, images, each)))


def test_pgn_looks_at_images_of_another_size_and_trains_on_a_batch_of_one() -> None:
    images, labels = batch()
    model = vt.tune(make_tiny(), "pgn", 3, num_prompts=2, library=3, side=64)
    seen = F.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    own: Any = model.backbone
    own.prepared(images)
    torch.testing.assert_close(own.given(), own.generator(seen))
    model = vt.tune(make_tiny(), "pgn", 3, num_prompts=2, library=3)
    history = vt.fit(model, TensorDataset(images, labels), epochs=1, batch_size=4, progress=False)
    assert math.isfinite(history[0]["loss"])  # the fifth image is a batch of its own


def test_pro_tuning_adds_a_gated_map_in_front_of_four_parts() -> None:
    """With two blocks, in front of both; the gate is times the map, not in its place."""
    model, state, images = example("pro_tuning")

    def each(i: int, x: Tensor) -> Tensor:
        b = model.backbone.blocks[i].made
        maps = x[:, 1:].mT.unflatten(2, (4, 4))
        z = F.conv2d(maps, b.enter.weight, b.enter.bias, groups=4)
        z = F.conv2d(z, b.look.weight, b.look.bias, padding=2, groups=24)
        z = F.conv2d(z, b.mix.weight, b.mix.bias)
        s = F.relu(z.mean((2, 3)) @ b.squeeze.weight[:, :, 0, 0].T + b.squeeze.bias)
        s = (s @ b.excite.weight[:, :, 0, 0].T + b.excite.bias).sigmoid()
        z = F.conv2d(z * s[:, :, None, None], b.leave.weight, b.leave.bias, groups=4)
        return block(state, i, torch.cat([x[:, :1], x[:, 1:] + b.gain * z.flatten(2).mT], 1))

    assert_same(model, images, headed(model, vit(state, images, each)))


@pytest.mark.parametrize(
    ("depth", "fronts"), [(12, [0, 3, 6, 9]), (6, [0, 1, 3, 4]), (3, [0, 1, 2])]
)
def test_pro_tuning_divides_a_vit_into_four(depth: int, fronts: list[int]) -> None:
    blocks: Any = vt.tune(make_tiny(depth=depth), "pro_tuning", 3).backbone.blocks
    assert [i for i, b in enumerate(blocks) if hasattr(b, "made")] == fronts


def test_pro_tuning_stands_before_the_stages_of_a_cnn() -> None:
    model = vt.tune(make_tiny_resnet(), "pro_tuning", 3)
    own: Any = model.backbone
    widths = [getattr(own, f"layer{i}").made.mix.in_channels for i in (1, 2, 3, 4)]
    assert widths == [8, 8, 16, 32]


def stream(count: int = 8) -> Stream:
    """Two domains that differ in brightness; the second asks the opposite of the first."""
    g = torch.Generator().manual_seed(5)
    stages = []
    for s, level in enumerate((-2.0, 2.0)):
        labels = torch.arange(count) % 2
        sign = 1.0 - 2.0 * labels if s == 0 else 2.0 * labels - 1.0
        images = 0.3 * torch.randn(count, 3, 32, 32, generator=g) + level
        images[:, :, :16] += sign[:, None, None, None]
        data = TensorDataset(images.clamp(-4, 4) / 2, labels)
        stages.append(Classification(f"s{s}", ("a", "b"), data, data, data))
    whole = torch.utils.data.ConcatDataset([stage.train for stage in stages])
    return Stream("stream", ("a", "b"), whole, None, whole, stages=tuple(stages))


def s_prompting(**settings: Any) -> vt.Tuned:
    return vt.tune(make_tiny(), "s_prompting", stream(), num_prompts=3, centres=2, **settings)


def test_s_prompting_reads_the_prompts_and_the_head_of_the_nearest_key() -> None:
    """By the sum of absolute differences: by squares, both images would be the second domain's."""
    model, state, images = s_prompting().double(), make_tiny().double().state_dict(), batch(2)[0]
    network, images = model.network, images.double()
    q = F.normalize(vit(state, images), dim=-1)
    near, far = torch.zeros(24).double(), torch.zeros(24).double()
    near[:3], far[0] = 0.01, 0.025  # sums 0.03 and 0.025, lengths 0.017 and 0.025
    network.keys.copy_(torch.stack([q[1] + far, q[0] + 9, q[1] + near, q[0]]).view(2, 2, 24))
    network.known.fill_(True)
    assert network.domains(images).tolist() == [1, 0]

    def each(i: int, x: Tensor) -> Tensor:
        prompts = torch.stack([network.prompts[1], network.prompts[0]])
        x = block(state, i, between(x, prompts) if i == 0 else x)
        return without(x, 3) if i == 1 else x

    x = vit(state, images, each)
    heads = model.head
    expected = [x[b] @ heads[s].weight.T + heads[s].bias for b, s in ((0, 1), (1, 0))]
    assert_same(model, images, torch.stack(expected))


def test_s_prompting_never_looks_back() -> None:
    """The second domain asks the opposite of the first: one set of prompts would forget it."""
    task, model = stream(16), vt.tune(make_tiny(), "s_prompting", stream(16), centres=2)
    vt.fit(model, epochs=40, lr=1e-2, batch_size=16, progress=False)
    assert vt.evaluate(model, task.test)["accuracy"] > 0.9
    images = torch.stack([image for image, _ in task.stages[0].test])
    assert model.network.domains(images).unique().tolist() == [0]


def test_s_prompting_learns_one_domain_at_a_time() -> None:
    model = s_prompting()
    network = model.network
    network.learning = 1
    (group,) = model.method.groups(model)
    own = [network.prompts[1], *network.head[1].parameters()]
    assert {id(p) for p in group["params"]} == {id(p) for p in own}


def test_s_prompting_refuses_other_images_than_its_stages() -> None:
    data = stream().stages[0].train
    with pytest.raises(
        vt.VTError, match="expected to train on the stages of its task, found other"
    ):
        vt.fit(s_prompting(), data, epochs=1, progress=False)


def test_s_prompting_keeps_its_domains_in_a_delta(tmp_path: Path) -> None:
    model, task = s_prompting(), stream()
    vt.fit(model, epochs=2, batch_size=4, progress=False)
    vt.save_delta(model, tmp_path / "d.safetensors")
    again = vt.load_delta(make_tiny(), tmp_path / "d.safetensors")
    images = torch.stack([image for image, _ in task.test])
    assert torch.equal(again(images), model(images))
    assert torch.equal(again.network.domains(images), torch.arange(2).repeat_interleave(8))


def test_lpt_picks_prompts_by_the_features_with_the_shared_ones() -> None:
    """The mean of the nearest two of three groups, in the second block only; keys by angle."""
    model, state, images = example("lpt", pool=3)
    own = model.backbone
    shared = [b.prompts for b in own.base.blocks]

    def alone(i: int, x: Tensor) -> Tensor:
        return without(block(state, i, between(x, shared[i])), 2)

    q = vit(state, images, alone).detach()
    own.keys.data = q[:3] - q.mean(0)  # so that not all images pick the same
    cosines = F.normalize(q, dim=-1) @ F.normalize(own.keys, dim=-1).T
    order = cosines.argsort(1, descending=True)
    assert len({tuple(sorted(row)) for row in order[:, :2].tolist()}) > 1

    def each(i: int, x: Tensor) -> Tensor:
        if i == 0:
            return alone(0, x)
        picked = [(own.pool[a, 0] + own.pool[b, 0]) / 2 for a, b in order[:, :2].tolist()]
        prompts = torch.cat([shared[1].expand(len(x), -1, -1), torch.stack(picked)], 1)
        return without(block(state, 1, between(x, prompts)), 4)

    x = vit(state, images, each)
    W = model.head.weight
    expected = 20 * (x / x.norm(dim=1, keepdim=True)) @ (W / W.norm(dim=1, keepdim=True)).T
    assert_same(model, images, expected)
    labels = torch.arange(5) % 3
    near = torch.stack([cosines[b, order[b, :2]].sum() for b in range(5)]).mean()
    loss = asymmetric_loss(expected, labels, torch.ones(3).double(), BALANCED) - 0.5 * near
    found = model.method.loss(model, images, labels)
    torch.testing.assert_close(found, loss)
    (ours,), (naive,) = (torch.autograd.grad(value, own.keys) for value in (found, loss))
    torch.testing.assert_close(ours, naive)
    assert ours.abs().max() > 0


@pytest.mark.parametrize("gammas", [(0.0, 4.0), (0.5, 8.0)])
def test_the_asymmetric_loss_by_loops(gammas: tuple[float, float]) -> None:
    """The margins grow with rareness, and the label has one more."""
    z, labels = (2 * torch.rand(4, 3) - 1).double(), torch.tensor([0, 2, 1, 2])
    z.requires_grad_(True)
    counts = torch.tensor([100.0, 10.0, 2.0]).double()
    torch.manual_seed(7)
    found = asymmetric_loss(20 * z, labels, counts, gammas)
    torch.manual_seed(7)
    noise = (torch.randn(4, 3, dtype=torch.float64) / 3).clamp(-1, 1).abs()
    total = torch.zeros((), dtype=torch.float64)
    for b, y in enumerate(labels.tolist()):
        moved = []
        for c in range(3):
            m = math.log(100 / counts[c]) / math.log(100 / 2)
            moved.append(20 * (z[b, c] - 0.5 * noise[b, c] * m - (0.1 if c == y else 0.0)))
        p = torch.stack(moved).softmax(0)
        for c in range(3):
            t = 0.9 * (c == y) + 0.1 / 3
            weight = (1 - p[c]) ** gammas[0] if c == y else p[c] ** gammas[1]
            total = total - t * weight * p[c].log() / 4
    torch.testing.assert_close(found, total)
    torch.testing.assert_close(*(torch.autograd.grad(value, z)[0] for value in (found, total)))


def test_the_asymmetric_loss_is_finite_where_an_answer_is_sure() -> None:
    logits = torch.tensor([[60.0, -60.0, -60.0]], requires_grad=True)
    asymmetric_loss(logits, torch.tensor([0]), torch.ones(3), (0.5, 8.0)).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def longtail() -> TensorDataset:
    return TensorDataset(batch(12)[0], torch.tensor([0] * 8 + [1] * 3 + [2]))


def test_lpt_draws_every_class_as_often() -> None:
    drawn_ = Balanced(longtail(), Classification(classes=("a", "b", "c")), lambda x: x + 100)
    assert drawn_.counts.tolist() == [8, 3, 1]
    images, labels = drawn_.draw(600)
    assert (labels.bincount() - 200).abs().max() < 60
    assert images.min() > 90  # augmented as the others


def test_lpt_learns_in_two_phases(tmp_path: Path) -> None:
    """What is shared learns first and alone, and stands still in the second phase."""
    model = vt.tune(make_tiny(), "lpt", 3, num_prompts=2, pool=2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    path = tmp_path / "run.safetensors"
    history = vt.fit(model, longtail(), epochs=2, batch_size=6, checkpoint=path, progress=False)
    assert len(history) == 4
    assert model.head.counts.tolist() == [8, 3, 1]
    tensors, _ = load_tensors(path)
    seen = [
        {k.split("/", 2)[2]: t for k, t in tensors.items() if k.startswith(f"{i}/model/")}
        for i in (1, 2)
    ]
    moved = [
        {n for n in before if n in new and not torch.equal(old[n], new[n])}
        for old, new in ((before, seen[0]), (seen[0], seen[1]))
    ]
    pooled = {"network.backbone.pool", "network.backbone.keys"}
    shared = {f"network.backbone.base.blocks.{i}.prompts" for i in (0, 1)}
    assert moved == [shared | {"network.head.weight"}, pooled | {"network.head.weight"}]
    again = vt.tune(make_tiny(), "lpt", 3, num_prompts=2, pool=2)
    vt.fit(again, longtail(), epochs=2, batch_size=6, checkpoint=path, progress=False)
    images = batch()[0]
    assert torch.equal(again(images), model(images))


def test_lpt_refuses_labels_out_of_range_in_a_sentence() -> None:
    data = TensorDataset(batch(4)[0], torch.tensor([0, 1, 2, 7]))
    with pytest.raises(vt.VTError, match="expected labels from 0 to 2, found 0 to 7"):
        vt.fit(vt.tune(make_tiny(), "lpt", 3, num_prompts=2), data, epochs=1, progress=False)


def test_noah_is_prompts_lora_and_an_adapter_behind_the_mlp() -> None:
    """LoRA also moves the prompts' keys and values; the adapter's skip is around itself."""
    model, state, images = example("noah")

    def each(i: int, x: Tensor) -> Tensor:
        b = model.backbone.blocks[i]

        def qkv(z: Tensor) -> Tensor:
            return linear(state, f"blocks.{i}.attn.qkv", z) + z @ b.lora_A.T @ b.lora_B.T

        longer = between(x, b.prompts) if i == 0 else x
        read = attention(state, i, longer, qkv)
        x = x + (without(read, 3) if i == 0 else read)
        z = mlp(state, i, x)
        h = z @ b.down.weight.T + b.down.bias
        return x + z + h * (1.702 * h).sigmoid() @ b.up.weight.T + b.up.bias

    assert_same(model, images, headed(model, vit(state, images, each)))


def test_noah_entangles_its_sizes() -> None:
    """A smaller network in the common one is the network of its first rows."""
    images, _ = batch()
    common: Any = vt.tune(make_tiny(), "noah", 3, choices=(1, 3))
    sizes: Any = {"prompts": (1, 0), "ranks": (3, 1), "widths": (0, 3)}
    small = vt.tune(make_tiny(), "noah", 3, **sizes)
    with torch.no_grad():
        for p in common.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn_like(p)
        small.head.load_state_dict(common.head.state_dict())
        whole = dict(common.named_parameters())
        for name, p in small.backbone.named_parameters():
            if p.requires_grad:
                from_ = whole[f"network.backbone.{name}"]
                p.copy_(from_[tuple(slice(n) for n in p.shape)])
    for block_, own in zip(common.backbone.blocks, [(1, 3, 0), (0, 1, 3)], strict=True):
        block_.active = own
    torch.testing.assert_close(common(images), small(images))


def test_noah_counts_what_trains() -> None:
    sizes = ((3, 0), (2, 1), (4, 0))
    model = vt.tune(make_tiny(), "noah", 3, prompts=sizes[0], ranks=sizes[1], widths=sizes[2])
    assert vt.count_parameters(model)[0] - (24 * 3 + 3) == numbers(sizes, 24)


def test_noah_draws_and_mutates_legal_sizes() -> None:
    own = random.Random(0)
    assert depths(12) == [3, 6, 9, 12]
    assert depths(2) == [1, 2]
    parent = drawn(own, 12, (1, 5, 10))
    for sizes in [drawn(own, 12, (1, 5, 10)) for _ in range(50)] + [
        mutated(own, parent, (1, 5, 10)) for _ in range(50)
    ]:
        for kind in sizes:
            depth = sum(n > 0 for n in kind)
            assert depth in depths(12)
            assert all((n > 0) == (i < depth) and n in (0, 1, 5, 10) for i, n in enumerate(kind))
    changed = [mutated(own, parent, (1, 5, 10)) != parent for _ in range(50)]
    assert any(changed)
    assert smallest(12, (5, 1)) == ((1,) * 3 + (0,) * 9,) * 3


NOAH: Any = {"choices": (1, 2), "supernet_epochs": 1, "population": 6, "generations": 2}


def test_noah_searches_within_the_budget_and_trains_what_it_found(tmp_path: Path) -> None:
    """The result has only what was chosen, and loads from its delta; the wrong network, which
    keeps the common one's weights or its size, is larger than the budget."""
    images, labels = batch(12)
    data = TensorDataset(images, labels)
    settings = {**NOAH, "budget": 900}
    model = vt.tune(make_tiny(), "noah", 3, **settings)
    backbone = {n: p.clone() for n, p in make_tiny().named_parameters()}
    vt.fit(model, data, data, epochs=2, batch_size=6, progress=False)
    method: Any = model.method
    sizes = method.prompts, method.ranks, method.widths
    assert numbers(sizes, 24) == vt.count_parameters(model)[0] - (24 * 3 + 3) <= 900
    own: Any = model.backbone
    for i, found in enumerate(own.blocks):
        assert found.active == tuple(kind[i] for kind in sizes)
        base = found.block.attn.qkv.weight
        assert torch.equal(base, backbone[f"blocks.{i}.attn.qkv.weight"])
    vt.save_delta(model, tmp_path / "d.safetensors")
    again = vt.load_delta(make_tiny(), tmp_path / "d.safetensors")
    assert again.method == method
    assert torch.equal(again(images), model(images))


@pytest.mark.parametrize(
    ("name", "settings", "stops"),
    [
        ("noah", NOAH, (1, 3, 3)),  # in the common network, in the last one's two epochs
        ("lpt", {"num_prompts": 2, "pool": 3}, (1, 5, 3)),  # in both phases, the second's last
        ("s_prompting", {"num_prompts": 2, "centres": 2}, (1, 5, 3)),  # in both domains
    ],
)
def test_it_goes_on_where_it_was_stopped_to_the_same_model(
    name: str, settings: dict[str, Any], stops: tuple[int, ...], tmp_path: Path
) -> None:
    """Two steps an epoch, two epochs a training; what was finished is not done again."""
    images, labels = batch(12)
    data: Any = TensorDataset(images, labels)
    task: Any = stream(12) if name == "s_prompting" else Classification("", ("a", "b", "c"), data)

    def run(checkpoint: Path | None, stop: int | None = None) -> vt.Tuned:
        model, seen = vt.tune(make_tiny(), name, task, **settings), [0]

        def counted(x: Tensor) -> Tensor:
            seen[0] += 1
            if stop is not None and seen[0] > stop:
                raise KeyboardInterrupt
            return x

        more: Any = {"train": data, "val": data} if name != "s_prompting" else {}
        more |= {"checkpoint": checkpoint, "augment": counted, "progress": False}
        vt.fit(model, epochs=2, batch_size=6, **more)
        return model

    whole, path = run(None), tmp_path / "run.safetensors"
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            run(path, stop)
    resumed = run(path)
    assert resumed.method == whole.method
    assert torch.equal(resumed(images), whole(images))


def test_noah_says_what_it_lacks() -> None:
    images, labels = batch()
    data = TensorDataset(images, labels)
    with pytest.raises(vt.VTError, match="noah: expected validation images"):
        vt.fit(vt.tune(make_tiny(), "noah", 3), data, epochs=1, progress=False)
    with pytest.raises(vt.VTError, match="expected budget of at least 193, the smallest network"):
        vt.tune(make_tiny(), "noah", 3, budget=192)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", tasks())
def test_every_kind_of_task_is_answered_or_refused(name: str, kind: str, tmp_path: Path) -> None:
    task = tasks()[kind]
    if name == "lpt" and kind in ("labels", "masks", "several"):
        with pytest.raises(vt.VTError, match="lpt: expected a classification, whose rare classes"):
            vt.tune(make_tiny(), name, task)
        return
    model = vt.tune(make_tiny(), name, task, **SMALL[name])
    vt.fit(model, epochs=2, lr=3e-3, batch_size=4, progress=False)
    scores = vt.evaluate(model, task.test)
    assert 0 <= scores[task.metric] <= 1
    vt.save_delta(model, tmp_path / "d.safetensors")
    again = vt.load_delta(make_tiny(), tmp_path / "d.safetensors")
    assert vt.evaluate(again, task.test) == scores


@pytest.mark.parametrize("name", ["evp", "pgn", "pro_tuning", "lpt", "s_prompting"])
def test_nothing_of_a_batch_stays_behind(name: str) -> None:
    """Else the next copy, which `fit` makes, fails, or memory is held."""
    model, (images, _) = trained(name), batch()
    model(images).sum().backward()
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(images[:2]), model(images[:2]))
    given = [m.given for m in model.modules() if hasattr(m, "given")]
    assert all(g.value is None for g in given)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("vpt_shallow", {"num_prompts": 0}, "expected num_prompts an integer of at least 1"),
        ("vpt_shallow", {"dropout": 1.0}, "expected dropout in"),
        ("vfpt", {"fourier": 1.5}, "vfpt: expected fourier in"),
        ("vp", {}, "expected width of at most 15, for images of 32, found 30"),
        ("vp", {"place": "left"}, 'expected place "padding", "fixed" or "random"'),
        ("evp", {"reduction": 25}, "expected reduction of at most 24, the backbone's width"),
        ("evp", {"share": 2.0}, "expected share in"),
        ("pgn", {"library": 0}, "expected library an integer of at least 1"),
        ("pro_tuning", {"kernel": 4}, "expected kernel an odd number, found 4"),
        ("s_prompting", {"centres": 0}, "expected centres an integer of at least 1"),
        ("lpt", {"top": 21}, "expected top from 1 to 20, the groups, found 21"),
        ("noah", {"ranks": (1,)}, "expected ranks for as many blocks as prompts"),
        (
            "noah",
            {"prompts": (1,), "ranks": (1,), "widths": (1,)},
            "expected prompts for each of 2",
        ),
        ("noah", {"choices": ()}, "expected choices as sizes of at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_a_sentence(
    name: str, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(vt.VTError, match=sentence):
        vt.tune(make_tiny(), name, 3, **settings)
