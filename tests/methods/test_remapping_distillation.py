"""Distillation: each loss against its formula written in the dumbest way, what is thrown away
after training, teachers and students of any kind, and the sentences for those that don't fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vtlite as vt
from tests.backbones.test_families import MAKERS, shaken
from tests.conftest import make_tiny, make_tiny_resnet
from tests.methods.checks import CLASSES, batch
from tests.methods.test_other_backbones import BACKBONES, DISTILLATION
from tests.test_task import tasks
from tests.test_training import Watch
from vtlite.methods.remapping.distillation.activation_boundaries import boundary
from vtlite.methods.remapping.distillation.dkd import split
from vtlite.methods.remapping.distillation.layers import look
from vtlite.methods.remapping.distillation.rkd import angles, distances
from vtlite.methods.remapping.distillation.teaching import as_classes
from vtlite.ops.kd_loss import kd_loss
from vtlite.task import Classification, MultiLabel, Segmentation

IMAGES, LABELS = batch(6)
BY_LAYERS = ("fitnet", "attention_transfer", "activation_boundaries", "dfa")


def task(count: int = CLASSES, images: Tensor = IMAGES) -> Classification:
    data = list(zip(images, LABELS, strict=True))
    return Classification("t", tuple(str(i) for i in range(count)), data, data)


def teacher(**sizes: Any) -> vt.Tuned:
    """Four blocks on 4 x 4 patches."""
    return vt.tune(make_tiny(**{"depth": 4, **sizes}), "linear", CLASSES, seed=5)


def student() -> Any:
    """Another width and depth, and 2 x 2 patches."""
    return make_tiny(embed_dim=12, depth=2, patch_size=16)


def pair(name: str, **settings: Any) -> vt.Tuned:
    own = {"student": student(), "teacher": teacher(), **settings}
    return vt.tune(make_tiny(), name, task(), **own)


class Stages:
    """In the place of the plain loop: `do` is called in each training, with its number."""

    def __init__(self, do: Callable[..., None]) -> None:
        self.do, self.count = do, 0

    def __call__(self, model: vt.Tuned, data: Any, each: Any = None, **changes: Any) -> None:
        self.count += 1
        self.do(self.count, model, data, each, changes)

    def once(self, model: vt.Tuned, do: Callable[[], Any]) -> None:
        do()


def in_stage(number: int, model: vt.Tuned, do: Callable[[vt.Tuned], None]) -> None:
    """`do` in the training of that number."""
    called = []

    def at(count: int, model: vt.Tuned, *_: Any) -> None:
        if count == number:
            called.append(do(model))

    model.method.fit(model, model.task, Stages(at))
    assert called


def same(model: vt.Tuned, naive: Tensor) -> None:
    """The loss of the batch and its gradients are those of the naive one."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = model.method.loss(model, IMAGES, LABELS)
    assert found.item() == pytest.approx(naive.item(), rel=1e-5)
    ours, theirs = (
        torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for loss in (found, naive)
    )
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        zero = torch.zeros_like(parameters[name])
        torch.testing.assert_close(
            zero if a is None else a, zero if b is None else b, atol=1e-5, rtol=1e-4, msg=name
        )


def maps(vit: Any, images: Tensor = IMAGES, part: str = "") -> list[Tensor]:
    """What leaves each block (or the first layer of its MLP), place by place [B, h, w, D]."""
    x = torch.cat([vit.cls_token.expand(len(images), -1, -1), vit.patch_embed(images)], 1)
    x, found = x + vit.pos_embed, []
    for block in vit.blocks:
        middle = x + block.attn(block.norm1(x))
        x = block(x)
        seen = block.mlp.fc1(block.norm2(middle)) if part else x
        side = math.isqrt(seen.shape[1] - 1)
        rows = [seen[:, 1 + side * row : 1 + side * (row + 1)] for row in range(side)]
        found.append(torch.stack(rows, 1))
    return found


def halved(x: Tensor) -> Tensor:
    """[B, 4, 4, D] -> [B, 2, 2, D], the mean of each square of four."""
    corners = [x[:, i : i + 2, j : j + 2].mean((1, 2)) for i in (0, 2) for j in (0, 2)]
    return torch.stack(corners, 1).unflatten(1, (2, 2))


# The losses


def test_fitnet_gives_a_hint_in_the_middle_and_then_distils() -> None:
    model = pair("fitnet", temperature=2.0, weight=0.7)
    t: Any = model.network.teacher.network

    def hint(model: vt.Tuned) -> None:
        r: Any = model.network.connectors[0]
        f = maps(model.backbone)[0] @ r.weight[:, :, 0, 0].T + r.bias  # the first of two blocks
        wanted = halved(maps(t.backbone)[1]).detach()  # the second of four, not the third
        same(model, ((f - wanted) ** 2).sum() / f.numel())
        model.zero_grad()
        model.method.loss(model, IMAGES, LABELS).backward()
        last = [p.grad for n, p in model.named_parameters() if ".1." in n or "head" in n]
        assert all(g is None or not g.any() for g in last)  # nothing behind the hint moves

    def distil(model: vt.Tuned) -> None:
        naive = 0.3 * F.cross_entropy(model(IMAGES), LABELS)
        same(model, naive + 0.7 * kd_loss(model(IMAGES), t(IMAGES), 2.0))

    in_stage(1, model, hint)
    in_stage(2, model, distil)


def test_fitnet_takes_the_layers_that_it_is_told() -> None:
    model = pair("fitnet", layers=(1, 2), teacher_layers=(4, 1))

    def hint(model: vt.Tuned) -> None:
        naive = torch.zeros(())
        wanted = maps(model.network.teacher.network.backbone)
        for r, f, w in zip(
            model.network.connectors, maps(model.backbone), (wanted[3], wanted[0]), strict=True
        ):
            regressed = f @ r.weight[:, :, 0, 0].T + r.bias
            naive = naive + (regressed - halved(w).detach()).square().mean()
        same(model, naive)

    in_stage(1, model, hint)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_attention_transfer_by_loops(power: float) -> None:
    model = pair("attention_transfer", weight=30.0, power=power)
    t: Any = model.network.teacher.network
    naive = F.cross_entropy(model(IMAGES), LABELS)
    wanted = maps(t.backbone)
    for f, w in zip(maps(model.backbone), (wanted[1], wanted[3]), strict=True):
        total = torch.zeros(())
        for b in range(6):
            q = []
            for x in (f[b], halved(w)[b].detach()):
                v = torch.stack([(x[i, j].abs() ** power).mean() for i in (0, 1) for j in (0, 1)])
                q.append(v / (v * v).sum().sqrt())
            total = total + ((q[0] - q[1]) ** 2).sum()
        naive = naive + 30.0 * total / (6 * 4)
    same(model, naive)


def test_activation_boundaries_start_without_labels_and_end_without_the_teacher() -> None:
    model = pair("activation_boundaries", margin=0.5)

    def boundaries(model: vt.Tuned) -> None:
        wanted = maps(model.network.teacher.network.backbone, part="fc1")
        naive = torch.zeros(())
        own, chosen = maps(model.backbone, part="fc1"), (wanted[1], wanted[3])
        for number, (f, w) in enumerate(zip(own, chosen, strict=True)):
            convolution, norm = model.network.connectors[number]
            s = f @ convolution.weight[:, :, 0, 0].T + convolution.bias
            mean, var = norm.running_mean, norm.running_var
            s = (s - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias
            total = torch.zeros(())
            for x, y in zip(s.flatten(), halved(w).detach().flatten(), strict=True):
                if y > 0 and x <= 0.5:
                    total = total + (x - 0.5) ** 2
                if y <= 0 and x > -0.5:
                    total = total + (x + 0.5) ** 2
            naive = naive + total / 6 * (0.5, 1.0)[number]  # the last layer counts most
        same(model.eval(), naive)

    in_stage(1, model, boundaries)
    in_stage(2, model, lambda model: same(model, F.cross_entropy(model(IMAGES), LABELS)))


def test_a_boundary_is_zero_only_beyond_the_margin_on_the_teachers_side() -> None:
    s, t = torch.tensor([[2.0, -2.0, 0.5, 0.5]]), torch.tensor([[1.0, -0.1, 3.0, 0.0]])
    assert boundary(s, t).item() == pytest.approx(0.25 + 2.25)  # the last is silent: (0.5 + 1)^2


def test_normalised_kd_by_loops() -> None:
    model = pair("normalized_kd", tau=1.5, weight=4.0)
    t: Any = model.network.teacher.network
    naive = F.cross_entropy(model(IMAGES), LABELS)
    for f, g in zip(model.features(IMAGES), t.features(IMAGES).detach(), strict=True):
        z = model.head.weight @ (1.5 * f / f.norm()) + model.head.bias
        p = (t.head.weight @ (1.5 * g / g.norm()) + t.head.bias).softmax(0)
        naive = naive + 4.0 / 6 * (p * (p.log() - z.log_softmax(0))).sum()
    same(model, naive)


def test_dkd_by_loops() -> None:
    model = pair("dkd", alpha=0.7, beta=3.0, temperature=2.0)
    t: Any = model.network.teacher.network
    naive = F.cross_entropy(model(IMAGES), LABELS)
    for z, w, y in zip(model(IMAGES), t(IMAGES), LABELS, strict=True):
        p_s, p_t = (z / 2).softmax(0), (w / 2).softmax(0)
        b_s, b_t = p_s[y], p_t[y]
        true = b_t * (b_t / b_s).log() + (1 - b_t) * ((1 - b_t) / (1 - b_s)).log()
        others = torch.zeros(())
        for c in range(CLASSES):
            if c != y:
                o_s, o_t = p_s[c] / (1 - b_s), p_t[c] / (1 - b_t)
                others = others + o_t * (o_t / o_s).log()
        naive = naive + 4 / 6 * (0.7 * true + 3.0 * others)
    same(model, naive)


def test_kd_is_dkd_with_the_teachers_doubt_as_beta() -> None:
    """Row by row: KL(p_t || p_s) = KL(b_t || b_s) + (1 - p_y) KL(o_t || o_s)."""
    z, w = torch.randn(20, 5).double(), 3 * torch.randn(20, 5).double()
    for s, t, y in zip(z, w, torch.arange(20) % 5, strict=True):
        (b_s, o_s), (b_t, o_t) = split(s[None], y[None]), split(t[None], y[None])
        doubt = 1 - t.softmax(0)[y]
        both = kd_loss(b_s, b_t, 1.0) + doubt * kd_loss(o_s, o_t, 1.0)
        assert both.item() == pytest.approx(kd_loss(s[None], t[None], 1.0).item(), rel=1e-9)
    t_model = teacher()
    doubt = 1 - (t_model(IMAGES[:1]) / 4).softmax(1)[0, LABELS[0]].item()
    dkd = pair("dkd", beta=doubt)
    kd = pair("kd", weight=0.5)  # half of both
    one = (IMAGES[:1], LABELS[:1])
    assert dkd.method.loss(dkd, *one).item() == pytest.approx(
        2 * kd.method.loss(kd, *one).item(), rel=1e-5
    )


def test_rkd_by_loops() -> None:
    model = pair("rkd", distance=3.0, angle=7.0)
    t: Any = model.network.teacher.network

    def h(x: Tensor) -> Tensor:
        return x * x / 2 if x.abs() < 1 else x.abs() - 0.5

    def relations(e: Tensor) -> tuple[dict[Any, Tensor], dict[Any, Tensor]]:
        d = {(i, j): (e[i] - e[j]).norm() for i in range(6) for j in range(6) if i != j}
        mean = torch.stack(list(d.values())).mean()
        cosines = {}
        for i, j in d:
            for k in range(6):
                if k != j:
                    a, b = e[i] - e[j], e[k] - e[j]
                    cosines[i, j, k] = (a @ b) / (a.norm() * b.norm())
        return {key: value / mean for key, value in d.items()}, cosines

    (d_s, a_s), (d_t, a_t) = (
        relations(e) for e in (model.features(IMAGES), t.features(IMAGES).detach())
    )
    naive = F.cross_entropy(model(IMAGES), LABELS)
    naive = naive + 3.0 * torch.stack([h(d_s[key] - d_t[key]) for key in d_s]).sum() / 36
    naive = naive + 7.0 * torch.stack([h(a_s[key] - a_t[key]) for key in a_s]).sum() / 216
    same(model, naive)


@pytest.mark.parametrize("images", [IMAGES[:1], IMAGES[:1].repeat(3, 1, 1, 1)])
def test_rkd_bears_one_image_and_the_same_image_again(images: Tensor) -> None:
    model = pair("rkd")
    model.method.loss(model, images, LABELS[: len(images)]).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert not distances(torch.ones(3, 4)).any()
    assert not angles(torch.ones(3, 4)).any()


@pytest.mark.parametrize("soft", [False, True])
def test_the_distillation_token_learns_the_teachers_label(soft: bool) -> None:
    model = pair("distillation_token", weight=0.3, soft=soft)
    t: Any = model.network.teacher.network
    vit: Any = model.backbone
    x = torch.cat([p.expand(6, -1, -1) for p in (vit.cls_token, vit.dist_token)], 1)
    x = vit.blocks(torch.cat([x, vit.patch_embed(IMAGES)], 1) + vit.pos_embed)
    by_class = vit.norm(x[:, 0]) @ model.head[0].weight.T + model.head[0].bias
    by_token = vit.norm(x[:, 1]) @ model.head[1].weight.T + model.head[1].bias
    torch.testing.assert_close(model(IMAGES), (by_class + by_token) / 2)
    said = t(IMAGES)
    assert not torch.equal(said.argmax(1), LABELS)  # else the two labels could not be told apart
    hard = F.cross_entropy(by_token, said.argmax(1))
    by_teacher = kd_loss(by_token, said, 3.0) if soft else hard
    same(model, 0.7 * F.cross_entropy(by_class, LABELS) + 0.3 * by_teacher)


def test_a_student_with_a_token_starts_from_the_backbones_blocks() -> None:
    backbone = make_tiny(depth=4, global_pool="avg")
    vit: Any = vt.tune(backbone, "distillation_token", CLASSES, depth=4).backbone
    for name, value in backbone.blocks.state_dict().items():
        assert torch.equal(vit.blocks.state_dict()[name], value)
    assert torch.equal(vit.pos_embed[:, 2:], backbone.pos_embed[:, 1:])
    assert torch.equal(vit.dist_token, backbone.cls_token)
    assert torch.equal(vit.norm.weight, backbone.fc_norm.weight)


def test_dfa_mixes_bridges_and_distils_by_hand() -> None:
    model = pair("dfa", weight=0.6)
    t: Any = model.network.teacher.network

    def mixed(model: vt.Tuned) -> list[Tensor]:
        """Blocks 1 and 2 of the teacher for the student's first, 3 and 4 for its second."""
        mixture, wanted = model.network.connectors, [halved(w).detach() for w in maps(t.backbone)]
        result = []
        for g, group in enumerate(((0, 1), (2, 3))):
            e = [math.exp(mixture.alpha[g, i]) for i in group]
            parts = []
            for i, a in zip(group, e, strict=True):
                p = mixture.project[f"{g + 1}-{i + 1}"]
                parts.append(a / sum(e) * (wanted[i] @ p.weight[:, :, 0, 0].T + p.bias))
            result.append(parts[0] + parts[1])
        return result

    def terms(model: vt.Tuned, bridge: bool) -> Tensor:
        vit, aims = model.backbone, mixed(model)
        loss = F.cross_entropy(model(IMAGES), LABELS)
        for g, (f, a) in enumerate(zip(maps(vit), aims, strict=True)):
            loss = loss + 0.6 * (f - a).square().mean() / 2
            if bridge:
                x = torch.cat([vit.cls_token.expand(6, -1, -1), vit.patch_embed(IMAGES)], 1)
                x = vit.blocks[: g + 1](x + vit.pos_embed)
                assert x.shape[1] == 5
                x = torch.cat([a.mean((1, 2))[:, None], a.flatten(1, 2)], 1)
                z = model.head(vit.norm(vit.blocks[g + 1 :](x))[:, 0])
                loss = loss + F.cross_entropy(z, LABELS) / 2
        return loss

    def search(model: vt.Tuned) -> None:
        model.network.connectors.alpha += torch.randn(2, 4)
        same(model, terms(model, bridge=True))

    in_stage(1, model, search)
    in_stage(2, model, lambda model: same(model, terms(model, bridge=False)))


def test_dfa_searches_on_the_other_half_and_starts_anew() -> None:
    model = pair("dfa", search_epochs=3, search_lr=0.5)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def stage(count: int, model: vt.Tuned, data: Any, each: Any, changes: Any) -> None:
        mixture = model.network.connectors
        if count == 1:
            assert changes == {"epochs": 3}
            assert [data[i][0] is IMAGES[2 * i] or data[i][1] for i in range(3)]
            torch.testing.assert_close(data[1][0], IMAGES[2])
            mixture.alpha.requires_grad_(True)
            inputs, targets = IMAGES[1::2], LABELS[1::2]
            loss = model.method.taught(model, inputs, targets)
            (slope,) = torch.autograd.grad(loss, mixture.alpha)
            mixture.alpha.requires_grad_(False)
            assert not each(0.0)  # the training goes on
            torch.testing.assert_close(mixture.alpha, -0.5 * slope)
            assert mixture.alpha[0, :2].all()
            assert not mixture.alpha[0, 2:].any()  # no part of the group
            for p in model.parameters():
                p.data += 1.0
        else:
            assert not any(p.requires_grad for p in mixture.parameters())
            assert mixture.alpha.any()
            assert len(data) == 6
            for name, tensor in start.items():
                assert torch.equal(model.state_dict()[name], tensor)

    model.method.fit(model, model.task, Stages(stage))


def test_masks_and_several_labels_have_one_distribution_each() -> None:
    """Softmax along the width of a mask, or over labels that may all be true, is the wrong one."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, 3, 4, 4, generator=g)
    rows = as_classes(z, Segmentation(classes=("a", "b", "c"))).softmax(-1)
    torch.testing.assert_close(rows[1, 2, 3], z[1, :, 2, 3].softmax(0))
    z = torch.randn(2, 3, generator=g)
    both = as_classes(z, MultiLabel(classes=("a", "b", "c"))).softmax(-1)
    torch.testing.assert_close(both[..., 0], z.sigmoid())
    masks = (IMAGES[:, 0] > 0).long()
    question = Segmentation("m", ("a", "b"), [(x, y) for x, y in zip(IMAGES, masks, strict=True)])
    own = vt.tune(make_tiny(), "linear", question, seed=3)
    model = vt.tune(make_tiny(), "kd", question, teacher=own, weight=1.0, temperature=1.0)
    p_t, z_s = own(IMAGES).softmax(1), model(IMAGES).log_softmax(1)
    naive = (p_t * (p_t.log() - z_s)).sum(1).mean()
    assert model.method.loss(model, IMAGES, masks).item() == pytest.approx(naive.item(), rel=1e-5)


# Inside networks


def test_layers_of_a_resnet_and_a_swin_are_seen_as_maps() -> None:
    resnet = make_tiny_resnet()
    answer, found = look(resnet, IMAGES)
    x = resnet.maxpool(F.relu(resnet.bn1(resnet.conv1(IMAGES))))
    for layer, seen in zip(
        (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4), found, strict=True
    ):
        x = layer(x)
        assert torch.equal(seen, x)
    assert torch.equal(answer, resnet(IMAGES))
    swin = shaken(BACKBONES["swin"]())
    _, found = look(swin, IMAGES)
    assert [list(x.shape) for x in found] == [[6, 12, 8, 8]] * 2 + [[6, 24, 4, 4]] * 2
    assert not resnet.layer1._forward_hooks  # nothing stays behind


@pytest.mark.parametrize("kind", ["resnet", "swin", "deit"])
@pytest.mark.parametrize("number", [0, 1])
def test_maps_can_be_put_in_the_place_of_a_layers(kind: str, number: int) -> None:
    """Behind the last block of a ViT patches alone would change no answer."""
    network = shaken(BACKBONES[kind]())
    with torch.no_grad():
        answer, found = look(network, IMAGES)
        again, _ = look(network, IMAGES, put={number: found[number]})
        maps = found[number] + found[number].flip(0)
        other, seen = look(network, IMAGES, put={number: maps})
    assert torch.equal(again, answer) == (kind != "deit")  # whose tokens are their mean
    assert not torch.allclose(other, answer)
    torch.testing.assert_close(seen[number], maps)
    assert all(torch.equal(a, b) for a, b in zip(seen[:number], found, strict=False))


KINDS = {
    "vit": lambda: make_tiny(depth=4),
    "narrow vit": student,
    "resnet": lambda: make_tiny_resnet(),
    "swin": lambda: shaken(BACKBONES["swin"]()),
    "hybrid": lambda: shaken(MAKERS["hybrid"]()),
}


@pytest.mark.parametrize("name", DISTILLATION)
@pytest.mark.parametrize(
    ("source", "small"),
    [
        ("vit", "resnet"),
        ("resnet", "narrow vit"),
        ("swin", "narrow vit"),
        ("vit", "swin"),
        ("hybrid", "narrow vit"),
    ],
)
def test_teacher_and_student_may_be_of_different_kinds(name: str, source: str, small: str) -> None:
    settings: dict[str, Any] = {"teacher_method": "linear", "teacher_epochs": 1}
    if name == "dfa":
        settings["layers"] = (2,)
    backbone, own = KINDS[source](), KINDS[small]()
    if name == "distillation_token" and small != "narrow vit":
        with pytest.raises(vt.VTError, match="distillation_token: expected a ViT"):
            vt.tune(backbone, name, task(), student=own)
        return
    model = vt.tune(backbone, name, task(), student=own, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these teachers are small
        history = vt.fit(model, epochs=2, batch_size=3, progress=False)
    assert all(math.isfinite(row["loss"]) for row in history)
    assert type(model.backbone) is type(own)
    if name != "distillation_token":
        assert type(vt.merge(model)) is type(own)


@pytest.mark.parametrize("name", DISTILLATION)
@pytest.mark.parametrize("kind", ["labels", "masks", "clips", "several", "stream"])
def test_every_kind_of_task_is_distilled_or_refused_in_a_sentence(kind: str, name: str) -> None:
    refused = {
        "several": DISTILLATION,
        "labels": ("dkd", "normalized_kd", "distillation_token"),
        "masks": ("dkd", "normalized_kd", "distillation_token"),
        "clips": ("distillation_token",),
    }
    settings: dict[str, Any] = {"teacher_method": "linear", "teacher_epochs": 1}
    if name in refused.get(kind, ()):
        with pytest.raises(vt.VTError, match=rf"{name}: expected a (task|classification).*; \w+"):
            vt.tune(make_tiny(), name, tasks()[kind], **settings)
        return
    model = vt.tune(make_tiny(), name, tasks()[kind], **settings)
    history = vt.fit(model, epochs=1, batch_size=4, progress=False)
    assert all(math.isfinite(row["loss"]) for row in history)


@pytest.mark.parametrize("name", DISTILLATION)
def test_the_teacher_may_be_a_network_of_timms(name: str) -> None:
    models: Any = pytest.importorskip("timm").models
    own = models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=3, num_classes=CLASSES
    )
    before = {n: t.clone() for n, t in own.state_dict().items()}
    model = pair(name, teacher=own)
    vt.fit(model, epochs=1, batch_size=3, progress=False)
    assert all(torch.equal(t, before[n]) for n, t in own.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in own.parameters())


# What stays, and what does not


@pytest.mark.parametrize("name", DISTILLATION)
def test_what_is_saved_and_used_has_no_teacher_and_no_connectors(name: str, tmp_path: Path) -> None:
    small = vt.tune(make_tiny(depth=4), name, task(), teacher_method="linear", teacher_epochs=1)
    names = list(small.state_dict())
    vt.fit(small, epochs=1, batch_size=3, progress=False)
    assert list(small.state_dict()) == names
    assert small.network.connectors is None
    vt.save_delta(small, tmp_path / "d.safetensors")
    again = vt.load_delta(make_tiny(depth=4), tmp_path / "d.safetensors")
    assert torch.equal(again(IMAGES), small(IMAGES))
    vt.fit(small, epochs=1, batch_size=3, progress=False)  # and it can be taught once more


@pytest.mark.parametrize("name", ["fitnet", "activation_boundaries", "dfa"])
@pytest.mark.parametrize("steps", [2, 6, 9])
def test_a_stopped_training_continues_exactly(name: str, steps: int, tmp_path: Path) -> None:
    """Stopped in the teacher's training, in the first part of the student's, and in the second."""
    first = {
        "fitnet": "hint_epochs",
        "activation_boundaries": "starting_epochs",
        "dfa": "search_epochs",
    }[name]
    settings: dict[str, Any] = {"teacher_method": "linear", "teacher_epochs": 2, first: 2}
    whole, part = (vt.tune(make_tiny(depth=4), name, task(), **settings) for _ in range(2))
    arguments: dict[str, Any] = {"epochs": 2, "batch_size": 3, "progress": False}
    made: list[str] = []
    history = vt.fit(whole, **arguments)
    with pytest.raises(KeyboardInterrupt), Watch(made, stop=steps):
        vt.fit(part, **arguments, checkpoint=tmp_path / "run.safetensors")
    resumed = vt.fit(part, **arguments, checkpoint=tmp_path / "run.safetensors")
    for a, b in zip(part.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in history]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", DISTILLATION)
def test_a_taught_loss_runs_in_bfloat16(name: str) -> None:
    model = pair(name)
    expected = model.method.loss(model, IMAGES, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.method.loss(model, IMAGES, LABELS)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=0.1)


def test_layers_are_seen_where_the_model_was_compiled_before() -> None:
    """A compiled forward pass would not call hooks that came later."""
    model = pair("attention_transfer")
    expected = model.method.loss(model, IMAGES, LABELS)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    compiled(IMAGES)
    torch.testing.assert_close(model.method.loss(compiled, IMAGES, LABELS), expected)


# What does not fit


@pytest.mark.parametrize("name", DISTILLATION)
def test_a_teacher_of_other_classes_or_images_is_a_sentence(name: str) -> None:
    other = vt.tune(make_tiny(depth=4), "linear", 5)
    with pytest.raises(vt.VTError, match=f"{name}: expected a teacher .* 3 classes, found 5; tune"):
        vt.fit(pair(name, teacher=other), epochs=1, progress=False)
    large = vt.tune(make_tiny(depth=4, img_size=64), "linear", CLASSES)
    with pytest.raises(
        vt.VTError,
        match=rf"{name}: expected a teacher of the student's images \[3, 32, 32\], found a Tuned "
        "that fails on them .*; tune one",
    ):
        vt.fit(pair(name, teacher=large), epochs=1, progress=False)


def test_a_teacher_without_an_answer_is_a_sentence() -> None:
    class Says(nn.Module):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [images]

    with pytest.raises(vt.VTError, match=r"kd: expected .* with \[2, 3\], found list"):
        vt.fit(pair("kd", teacher=Says()), epochs=1, progress=False)


def test_a_student_larger_than_its_teacher_is_allowed_and_said() -> None:
    model = pair("kd", student=make_tiny(depth=6), teacher=teacher(depth=1))
    with pytest.warns(UserWarning, match=r"kd: the student has .*, more than its teacher's") as got:
        vt.fit(model, epochs=1, progress=False)
    assert got[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vt.fit(pair("kd"), epochs=1, progress=False)


@pytest.mark.parametrize("name", BY_LAYERS)
@pytest.mark.parametrize("layers", [(3,), (0,), (1, -1)])
def test_layers_that_do_not_exist_are_a_sentence(name: str, layers: tuple[int, ...]) -> None:
    with pytest.raises(
        vt.VTError, match=f"{name}: expected layers from 1 to 2, the student's number of layers"
    ):
        pair(name, layers=layers)
    if name != "dfa":
        with pytest.raises(vt.VTError, match="expected teacher_layers from 1 to 4, the teacher's"):
            pair(name, layers=(1,), teacher_layers=(5,))
        with pytest.raises(vt.VTError, match="as many layers as teacher_layers, found 1 and 2"):
            pair(name, layers=(1,), teacher_layers=(1, 2))


def test_dfa_needs_something_to_mix() -> None:
    with pytest.raises(vt.VTError, match="dfa: expected a teacher of more layers than the 4 that"):
        vt.tune(make_tiny(depth=4), "dfa", CLASSES, depth=4)


def test_dfa_needs_two_images() -> None:
    one = Classification("t", ("a", "b"), [(IMAGES[0], 0)])
    model = vt.tune(make_tiny(), "dfa", one, teacher_method="linear", teacher_epochs=1)
    with pytest.raises(vt.VTError, match="dfa: expected at least two training images"):
        vt.fit(model, epochs=1, progress=False)


@pytest.mark.parametrize("name", [*BY_LAYERS, "rkd", "normalized_kd"])
def test_a_teacher_that_can_not_be_looked_into_is_a_sentence(name: str) -> None:
    anything = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, CLASSES))
    with pytest.raises(
        vt.VTError, match=r"expected a teacher to look into.*found a Sequential.*kd"
    ):
        pair(name, teacher=anything)
    if name == "rkd":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is a small one
            vt.fit(pair("dkd", teacher=anything), epochs=1, progress=False)  # answers are enough


@pytest.mark.parametrize("name", ["dkd", "normalized_kd", "distillation_token"])
def test_methods_about_the_true_class_need_one(name: str) -> None:
    several = MultiLabel("m", ("a", "b"))
    with pytest.raises(vt.VTError, match=f"{name}: expected a classification.*found a MultiLabel"):
        vt.tune(make_tiny(depth=4), name, several)
    with pytest.raises(vt.VTError, match=f"{name}: expected a classification.*found one class"):
        vt.tune(make_tiny(depth=4), name, 1)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("fitnet", {"hint_epochs": 0}, "hint_epochs of at least 1"),
        ("fitnet", {"weight": 2.0}, r"weight in \[0, 1\]"),
        ("fitnet", {"layers": 1}, "layers to be a tuple"),
        ("attention_transfer", {"weight": -1.0}, "weight of at least 0"),
        ("attention_transfer", {"power": 0.0}, "power above 0"),
        ("activation_boundaries", {"margin": 0.0}, "margin above 0"),
        ("activation_boundaries", {"starting_epochs": 0}, "starting_epochs of at least 1"),
        ("normalized_kd", {"tau": 0.0}, "tau above 0"),
        ("dfa", {"search_epochs": 0}, "search_epochs of at least 1"),
        ("dfa", {"search_lr": 0.0}, "search_lr above 0"),
        ("dkd", {"beta": -1.0}, "beta of at least 0"),
        ("dkd", {"temperature": 0.0}, "temperature above 0"),
        ("rkd", {"angle": -1.0}, "angle of at least 0"),
        ("distillation_token", {"weight": 1.5}, r"weight in \[0, 1\]"),
    ],
)
def test_settings_out_of_range_are_a_sentence(name: str, settings: Any, sentence: str) -> None:
    with pytest.raises(vt.VTError, match=f"{name}: expected {sentence}"):
        vt.tune(make_tiny(depth=4), name, CLASSES, **settings)
