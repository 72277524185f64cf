"""Language-driven prompts against the most naive reading of their formulas."""

from __future__ import annotations

import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import TensorDataset

import vtlite as vt
from tests.conftest import make_tiny, make_tiny_clip
from tests.methods.checks import SMALL, batch, trained
from vtlite.backbones import load_clip
from vtlite.methods.prompt.contexts import Texts
from vtlite.methods.prompt.language import cocoop
from vtlite.methods.prompt.language.dualcoop import asymmetric_loss
from vtlite.methods.prompt.language.plot import sinkhorn
from vtlite.methods.prompt.language.prograd import aligned
from vtlite.methods.prompt.language.sgva_clip import among_themselves
from vtlite.task import Classification, MultiLabel
from vtlite.zero_shot import ZeroShot, class_features

NAMES = ("a photo", "0", "emoji of 1")  # of two, one and three words
METHODS = ("coop", "cocoop", "prograd", "plot", "lasp", "dualcoop", "sgva_clip")


def task(names: tuple[str, ...] = NAMES, **more: Any) -> Classification:
    return Classification("named", names, **more)


def moved(name: str, **settings: Any) -> Any:
    """A model with other values than those it starts with."""
    model = vt.tune(make_tiny_clip(), name, task(), **{**SMALL.get(name, {}), **settings})
    g = torch.Generator().manual_seed(3)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn(p.shape, generator=g)
    return model


def text(clip: Any, vectors: Tensor, name: str, position: str = "end") -> Tensor:
    """One text's feature [E], its embeddings put together by hand; behind the end stands noise."""
    numbers = clip.tokenizer.numbers(name)
    start, end, *words = clip.embed(torch.tensor([2, clip.text.vocabulary - 1, *numbers]))
    M = len(vectors)
    before = {"end": M, "middle": M // 2, "front": 0}[position]
    rows = [start, *vectors[:before], *words, *vectors[before:], end]
    noise = torch.randn(clip.text.context - len(rows), clip.text.embed_dim)
    embedded = torch.cat([torch.stack(rows), noise])[None]
    return clip.text(embedded, torch.tensor([len(rows) - 1]))[0] @ clip.text_projection


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def same_gradients(model: Any, found: Tensor, expected: Tensor) -> None:
    """Two losses are equal, and so are their gradients in all that trains."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    one = torch.autograd.grad(found, parameters)
    other = torch.autograd.grad(expected, parameters)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# Contexts


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("M", [1, 3, 4])
def test_vectors_and_names_stand_where_they_should(position: Any, M: int) -> None:
    """Catches a middle or an end that is counted for the longest name in place of each."""
    clip = make_tiny_clip()
    context = torch.randn(len(NAMES), M, 24)
    found = Texts(clip, NAMES, M, position)(context)
    expected = [text(clip, v, name, position) for v, name in zip(context, NAMES, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_padding_is_never_seen() -> None:
    clip = make_tiny_clip()
    texts, context = Texts(clip, NAMES, 2), torch.randn(1, 2, 24)
    before = texts(context)
    for row, words in zip(texts.words, (2, 1, 3), strict=True):
        row[words + 2 :] = torch.nan  # behind start, words and end
    assert torch.equal(texts(context), before)


def test_several_contexts_are_read_in_one_pass_in_their_order() -> None:
    """Catches features of contexts and of classes that are mixed up: [N, C] is not [C, N]."""
    texts, contexts = Texts(make_tiny_clip(), NAMES, 2), torch.randn(2, 4, 1, 2, 24)
    found = texts(contexts)
    assert found.shape == (2, 4, 3, 16)
    for i, j in itertools.product(range(2), range(4)):
        torch.testing.assert_close(found[i, j], texts(contexts[i, j]))


@pytest.mark.parametrize(
    ("name", "count"),
    [(name, {"plot": 4, "dualcoop": 2}.get(name, 1)) for name in METHODS if name != "cocoop"],
)
def test_each_class_is_read_once_in_a_step(name: str, count: int) -> None:
    """Catches texts read once per image, or once per term of a loss."""
    model, read = moved(name), []
    model.head.texts.tower.register_forward_hook(lambda m, inputs, out: read.append(len(out)))
    model.method.backward(model, *batch(7))
    assert read == [count * 3]


def test_cocoop_reads_each_class_once_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read, (images, labels) = moved("cocoop"), [], batch(7)
    whole = model(images)
    model.head.texts.tower.register_forward_hook(lambda m, inputs, out: read.append(len(out)))
    model.method.backward(model, images, labels)
    assert read == [7 * 3]
    monkeypatch.setattr(cocoop, "AT_ONCE", 7)  # two images at a time
    torch.testing.assert_close(model(images), whole)
    assert read[1:] == [6, 6, 6, 3]


def test_words_start_a_context_and_zeros_fill_it() -> None:
    clip, (images, _) = make_tiny_clip(), batch()
    exact = vt.tune(clip, "coop", task(), num_context=4, words="a photo of a")
    written = ZeroShot(clip, NAMES, "a photo of a {}")(images)
    torch.testing.assert_close(exact(images), written, atol=1e-4, rtol=1e-5)
    longer: Any = vt.tune(clip, "coop", task(), num_context=6, words="a photo of a").head.context
    assert torch.equal(longer[0, 2:], exact.head.context[0])
    assert not longer[0, :2].any()
    drawn: Any = vt.tune(clip, "coop", task(), num_context=10, per_class=True).head.context
    assert drawn.shape == (3, 10, 24)
    assert 0.015 < drawn.std() < 0.025


# CoOp, CoCoOp, ProGrad


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("per_class", [False, True])
def test_coop(per_class: bool, position: str) -> None:
    model, (images, labels) = moved("coop", per_class=per_class, position=position), batch()
    clip, head = make_tiny_clip(), model.head
    vectors = [head.context[c if per_class else 0] for c in range(3)]
    pairs = zip(vectors, NAMES, strict=True)
    g = unit(torch.stack([text(clip, v, name, position) for v, name in pairs]))
    expected = clip.logit_scale.exp().detach() * clip.encode_image(images).detach() @ g.T
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-5)
    found = model.method.loss(model, images, labels)
    same_gradients(model, found, F.cross_entropy(expected, labels))


def test_cocoop_image_by_image() -> None:
    model, (images, labels) = moved("cocoop"), batch()
    clip, head = make_tiny_clip(), model.head
    rows = []
    for f in clip.encode_image(images).detach():
        hidden = torch.relu(head.down.weight @ f + head.down.bias)
        vectors = head.context[0] + head.up.weight @ hidden + head.up.bias
        g = unit(torch.stack([text(clip, vectors, name) for name in NAMES]))
        rows.append(clip.logit_scale.exp().detach() * g @ f)
    expected = torch.stack(rows)
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-5)
    found = model.method.loss(model, images, labels)
    same_gradients(model, found, F.cross_entropy(expected, labels))


def test_prograd_projects_by_hand() -> None:
    g, along = torch.tensor([[3.0, -1.0]]), torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(aligned(g, along, 1.0), torch.tensor([[3.0, 0.0]]))
    torch.testing.assert_close(aligned(g, along, 0.25), torch.tensor([[3.0, -0.75]]))
    assert torch.equal(aligned(g, -along, 1.0), g)  # they agree: nothing is dropped
    assert torch.equal(aligned(g, 0 * along, 1.0), g)  # no direction at all


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_prograd_drops_what_contradicts_zero_shot(strength: float) -> None:
    """Catches a projection that is made always, or never; both signs occur."""
    model, (images, _) = moved("prograd", strength=strength, temperature=2.0), batch()
    context, clip, signs = model.head.context, make_tiny_clip(), set()
    zero = ZeroShot(clip, NAMES, "a photo of a {}")(images)
    for labels in torch.cartesian_prod(*[torch.arange(3)] * 5)[::9]:
        logits = model(images)
        (g_d,) = torch.autograd.grad(F.cross_entropy(logits, labels), context, retain_graph=True)
        kl = F.kl_div((logits / 2).log_softmax(1), (zero / 2).softmax(1), reduction="batchmean")
        (g_g,) = torch.autograd.grad(4 * kl, context)
        u = g_g / g_g.norm()
        inner = float((g_d * u).sum())
        signs.add(inner < 0)
        expected = g_d - strength * inner * u if inner < 0 else g_d
        loss = model.method.backward(model, images, labels)
        torch.testing.assert_close(loss, F.cross_entropy(logits, labels))
        torch.testing.assert_close(context.grad, expected, atol=1e-5, rtol=1e-4)
    assert signs == {True, False}


def test_prograd_learns_through_the_loop_and_its_cached_features() -> None:
    images, labels = batch(9)
    data = TensorDataset(images, labels)
    model = vt.tune(make_tiny_clip(), "prograd", task(train=data, val=data), num_context=4)
    before = model.head.context.clone()
    vt.fit(model, epochs=2, progress=False)
    assert not torch.equal(model.head.context, before)


# PLOT


def test_sinkhorn_is_a_double_loop() -> None:
    P, N, eps = 3, 2, 0.3
    cost = torch.rand(2, P, N)
    found = sinkhorn(cost, eps, 4)
    for b in range(2):
        k = [[math.exp(-float(cost[b, p, n]) / eps) for n in range(N)] for p in range(P)]
        rows, columns = [1.0] * P, [1.0] * N
        for _ in range(4):
            for p in range(P):
                rows[p] = 1 / P / sum(k[p][n] * columns[n] for n in range(N))
            for n in range(N):
                columns[n] = 1 / N / sum(k[p][n] * rows[p] for p in range(P))
        plan = torch.tensor([[rows[p] * k[p][n] * columns[n] for n in range(N)] for p in range(P)])
        torch.testing.assert_close(found[b], plan)


def test_sinkhorn_keeps_its_marginals_and_finds_the_cheapest_plan() -> None:
    cost = torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.3, 0.9], [0.4, 0.8, 1.2]], requires_grad=True)
    plan = sinkhorn(cost, 0.05, 500)
    assert not plan.requires_grad
    torch.testing.assert_close(plan.sum(0), torch.full((3,), 1 / 3))
    torch.testing.assert_close(plan.sum(1), torch.full((3,), 1 / 3), atol=1e-4, rtol=0)
    best = min(
        itertools.permutations(range(3)), key=lambda s: sum(cost[i, s[i]].item() for i in range(3))
    )
    assert tuple(plan.argmax(1).tolist()) == best  # the nearest in each row would be (0, 0, 0)
    assert tuple(cost.argmin(1).tolist()) != best


def places(clip: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The class token [B, E], and what it would be if the last attention saw one place alone
    [B, P, E], by a mask."""
    visual, block = clip.visual, clip.visual.blocks[-1]
    x = visual.patch_embed(images)
    x = torch.cat([visual.cls_token.expand(len(x), -1, -1), x], 1) + visual.pos_embed
    x = visual.blocks[:-1](x)
    q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, -1)
    D, found = x.shape[-1], []
    for place in (None, *range(1, x.shape[1])):
        mask = torch.full((x.shape[1],), 0.0 if place is None else -torch.inf)
        if place is not None:
            mask[place] = 0
        heads = []
        for h in range(3):
            i = slice(h * D // 3, (h + 1) * D // 3)
            scores = q[:, :1, i] @ k[..., i].mT / (D // 3) ** 0.5 + mask
            heads.append(scores.softmax(-1) @ v[..., i])
        y = x[:, :1] + block.attn.proj(torch.cat(heads, -1))
        y = visual.norm(y + block.mlp(block.norm2(y)))
        found.append(y[:, 0] @ clip.visual_projection)
    return found[0], torch.stack(found[1:], dim=1)


def test_plot_place_by_place() -> None:
    settings: dict[str, Any] = {"num_prompts": 2, "eps": 0.2, "iterations": 7}
    model, (images, labels) = moved("plot", **settings), batch(3)
    clip, contexts = make_tiny_clip(), model.head.context
    _, tokens = places(clip, images)
    f = unit(tokens.detach())
    g = torch.stack([torch.stack([text(clip, v[0], n) for n in NAMES]) for v in contexts])
    rows = []
    for image in f:
        for c in range(3):
            S = image @ unit(g[:, c]).T  # [P, N]
            plan = sinkhorn((1 - S)[None], 0.2, 7)[0]
            rows.append(clip.logit_scale.exp().detach() * (plan * S).sum())
    expected = torch.stack(rows).view(3, 3)
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-5)
    found = model.method.loss(model, images, labels)
    same_gradients(model, found, F.cross_entropy(expected, labels))


def test_plots_answer_does_not_depend_on_its_company() -> None:
    """Catches iterations that stop when a batch has converged in the mean."""
    model, (images, _) = moved("plot"), batch()
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, atol=1e-4, rtol=1e-5)


# LASP


def lasp_by_hand(model: Any, images: Tensor, labels: Tensor, others: tuple[str, ...]) -> Tensor:
    clip, method, head = make_tiny_clip(), model.method, model.head
    names, scale = (*NAMES, *others), clip.logit_scale.exp().detach()
    f = unit(model.features(images))
    logits, losses = torch.zeros(len(images), 3), []
    for G, vectors in enumerate(head.context):
        t = unit(torch.stack([text(clip, vectors[0], n) + head.offset for n in names]))
        logits = logits + scale * f @ t[:3].T / method.num_groups
        share = len(method.templates) // method.num_groups
        for template in method.templates[G * share : (G + 1) * share]:
            h = class_features(clip, names, template)
            for j in range(len(names)):
                losses.append(-(scale * t @ h[j]).log_softmax(0)[j])
    return F.cross_entropy(logits, labels) + method.weight * torch.stack(losses).mean()


@pytest.mark.parametrize(("groups", "others"), [(1, ()), (2, ("2", "emoji emoji"))])
def test_lasp_text_to_text(groups: int, others: tuple[str, ...]) -> None:
    """Catches an alignment with templates and prompts the other way round, or of another group."""
    templates = ("a photo of a {}", "an emoji of {}", "{}", "photo {} photo")
    settings: dict[str, Any] = {"templates": templates, "num_groups": groups, "others": others}
    model, (images, labels) = moved("lasp", **settings), batch()
    found = model.method.loss(model, images, labels)
    same_gradients(model, found, lasp_by_hand(model, images, labels, others))
    assert model(images).shape == (5, 3)


def test_lasp_adds_noise_to_written_texts_in_half_of_the_training_steps() -> None:
    model, (images, labels) = moved("lasp", noise=0.5), batch()
    still = {float(model.method.loss(model, images, labels).detach()) for _ in range(9)}
    model.train()
    found = [float(model.method.loss(model, images, labels).detach()) for _ in range(40)]
    assert len(still) == 1
    assert 8 < sum(value in still for value in found) < 32


def test_lasps_norms_are_those_of_the_blocks_and_learn_at_a_tenth() -> None:
    model = moved("lasp")
    names = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    kinds = itertools.product("01", "12", ("weight", "bias"))
    assert names == {f"visual.blocks.{i}.norm{j}.{kind}" for i, j, kind in kinds}
    texts, norms = model.method.groups(model)
    assert [p.shape for p in texts["params"]] == [(1, 1, 4, 24), (16,)]
    assert norms["scale"](0.3) == 0.1
    without = moved("lasp", norms=False)
    assert not any(p.requires_grad for p in without.backbone.parameters())


# DualCoOp


@pytest.mark.parametrize("per_class", [False, True])
def test_dualcoop_place_by_place(per_class: bool) -> None:
    model, (images, _) = moved("dualcoop", per_class=per_class, sharpness=5.0), batch(3)
    targets = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
    clip, contexts = make_tiny_clip(), model.head.context
    token, rest = places(clip, images)
    tokens = unit(torch.cat([token[:, None], rest], dim=1).detach())
    scale, rows, losses = clip.logit_scale.exp().detach(), [], []
    for image, row in zip(tokens, targets, strict=True):
        for c, name in enumerate(NAMES):
            both = [unit(text(clip, v[c if per_class else 0], name)) for v in contexts]
            present, absent = (image @ g for g in both)
            w = (5 * present).softmax(0)
            two = scale * torch.stack([(w * present).sum(), (w * absent).sum()])
            p = two.softmax(0)
            right = p[0] if row[c] else (p[1] + 0.05).clamp(max=1)
            gamma = 1 if row[c] else 2
            losses.append(-((1 - right.detach()) ** gamma) * right.log())
            rows.append(two[0] - two[1])
    torch.testing.assert_close(model(images), torch.stack(rows).view(3, 3), atol=1e-4, rtol=1e-5)
    found = model.method.loss(model, images, targets)
    same_gradients(model, found, torch.stack(losses).mean())


def test_dualcoops_loss_at_its_ends() -> None:
    """Catches logarithms of zero, and an absent class that pays although the margin covers it."""
    logits = torch.tensor([[-200.0, 200.0, -5.0]], requires_grad=True)
    loss = asymmetric_loss(logits, torch.tensor([[1, 0, 0]]), 1.0, 2.0, 0.05)
    torch.testing.assert_close(loss, torch.tensor((200 - math.log(0.05) * 0.95**2) / 3))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 2] == 0


def test_dualcoop_learns_pictures_of_several() -> None:
    images, labels = batch(9)
    targets = F.one_hot(labels, 3) | F.one_hot((labels + 1) % 3, 3)
    data = TensorDataset(images, targets)
    asked = MultiLabel("several", NAMES, data, data, data)
    model = vt.tune(make_tiny_clip(), "dualcoop", asked, num_context=4, per_class=True)
    history = vt.fit(model, epochs=12, lr=3e-2, progress=False)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    one = vt.tune(make_tiny_clip(), "dualcoop", task(), num_context=4)  # a label of its own each
    both = [one.method.loss(one, images, y) for y in (labels, F.one_hot(labels, 3))]
    assert torch.equal(*both)


# SgVA-CLIP


def test_sgva_clip_by_hand() -> None:
    settings: dict[str, Any] = {"weight": 0.7, "temperature": 3.0}
    model, (images, labels) = moved("sgva_clip", **settings), batch(8)
    clip, head = make_tiny_clip(), model.head
    labels = torch.tensor([0, 1, 0, 1, 2, 0, 1, 0])  # the only picture of class 2 is not asked
    head.prototypes.copy_(torch.rand(3, 24))
    scale = clip.logit_scale.exp().detach()
    h = clip.visual(images).detach()
    mixed = head.alpha * torch.relu(h @ head.up.weight.T) @ head.down.weight.T
    v = unit(torch.relu(mixed + (1 - head.alpha) * h))
    g = unit(torch.stack([text(clip, head.context[0], n) for n in NAMES]))
    f = unit(h @ clip.visual_projection.detach())
    by_texts = scale * f @ g.T
    torch.testing.assert_close(
        model(images), 0.5 * scale * v @ head.prototypes.T + 0.5 * by_texts, atol=1e-4, rtol=1e-5
    )
    losses = []
    for i in range(8):
        others = {c: [j for j in range(8) if labels[j] == c and j != i] for c in range(3)}
        means = {c: v[js].mean(0) for c, js in others.items() if js}
        if int(labels[i]) in means:
            scores = torch.stack([scale * v[i] @ m for m in means.values()])
            losses.append(-scores.log_softmax(0)[list(means).index(int(labels[i]))])
    assert len(losses) == 7
    teacher = (by_texts.detach() / 3).softmax(1)
    student = (scale * v @ clip.visual_projection.detach() @ g.detach().T / 3).log_softmax(1)
    taught = -(teacher * student).sum(1).mean()
    expected = F.cross_entropy(by_texts, labels) + torch.stack(losses).mean() + 0.7 * taught
    same_gradients(model, model.method.loss(model, images, labels), expected)


def test_sgva_clips_batch_without_pairs_has_no_loss() -> None:
    v = unit(torch.randn(3, 4)).requires_grad_()
    loss = among_themselves(v, torch.tensor([0, 1, 2]), 3, torch.tensor(100.0))
    loss.backward()
    assert loss == 0
    assert v.grad is not None
    assert not v.grad.any()


def test_sgva_clip_keeps_prototypes_and_the_best_blend(tmp_path: Path) -> None:
    clip, (images, labels) = make_tiny_clip(), batch(9)
    data = TensorDataset(images, labels)
    model: Any = vt.tune(clip, "sgva_clip", task(train=data, val=data), search=True)
    vt.fit(model, epochs=2, progress=False)
    head = model.head
    with torch.no_grad():
        v, chosen = head.adapted(model.features(images)), float(head.blend)
        means = torch.stack([v[labels == c].mean(0) for c in range(3)])
        torch.testing.assert_close(head.prototypes, means)
        right = []
        for i in range(11):
            head.blend.fill_(i / 10)
            right.append(int((model(images).argmax(1) == labels).sum()))
        head.blend.fill_(chosen)
        assert right[round(10 * chosen)] == max(right)
    vt.save_delta(model, tmp_path / "d.safetensors")
    again = vt.load_delta(clip, tmp_path / "d.safetensors")
    assert torch.equal(again(images), model(images))


# What can go wrong


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("0", " ", "1"), "expected class names of words, found ' ' as that of class 1"),
        (("0", "1", "0"), "a name of its own for each class, found '0' beside '0'"),
        (("A_Photo", "a photo"), "found 'a photo' beside 'A_Photo'"),
        (("0",), "at least two classes to tell apart, found '0' alone"),
        (("0", "a " * 12), "at most 16 tokens, found 4 context vectors, start, end and 12 of"),
        (("0", "a " * 15), "at most 14 tokens in a text, found 15"),
    ],
)
def test_class_names_that_tell_nothing_apart(names: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(vt.VTError, match=sentence):
        vt.tune(make_tiny_clip(), "coop", task(names), num_context=4)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_refuses_a_task_without_names_and_a_backbone_without_texts(name: str) -> None:
    with pytest.raises(vt.VTError, match=f"{name}: expected a task whose classes have names"):
        vt.tune(make_tiny_clip(), name, 3)
    with pytest.raises(vt.VTError, match=f"{name}: expected a two-tower model"):
        vt.tune(make_tiny(), name, task())
    with pytest.raises(vt.VTError, match=f"{name}: expected num_context an integer of at least 1"):
        vt.tune(make_tiny_clip(), name, task(), num_context=0)
    with pytest.raises(vt.VTError, match=f'{name}: expected position "end", "middle" or "front"'):
        vt.tune(make_tiny_clip(), name, task(), position="left")
    if name != "dualcoop":
        with pytest.raises(vt.VTError, match=f"{name}: expected a Classification, whose classes"):
            vt.tune(make_tiny_clip(), name, MultiLabel("several", NAMES))


def test_unknown_words_are_named_and_read_as_unknown() -> None:
    clip = make_tiny_clip()
    with pytest.warns(UserWarning, match="coop: the text tower does not know 'zebra' in 'a zebra'"):
        model = vt.tune(clip, "coop", task(("a zebra", "0")), num_context=2)
    vectors = model.head.context[0]
    expected = text(clip, vectors, "a <unknown>".replace("<unknown>", "quagga"))
    torch.testing.assert_close(model.head.texts(model.head.context)[0], expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vt.tune(clip, "coop", task(), num_context=2)


def test_words_for_a_context_that_do_not_fit() -> None:
    with pytest.raises(vt.VTError, match="at most 2 words to start a context of 2 vectors from"):
        vt.tune(make_tiny_clip(), "coop", task(), num_context=2, words="a photo of")
    with pytest.raises(vt.VTError, match="lasp: expected templates that 2 groups can share out"):
        vt.tune(make_tiny_clip(), "lasp", task(), num_groups=2, templates=("{}",))


def test_a_shared_context_goes_to_other_classes_and_one_per_class_does_not(tmp_path: Path) -> None:
    clip, (images, _), path = make_tiny_clip(), batch(), tmp_path / "d.safetensors"
    model: Any = vt.tune(clip, "coop", task(), num_context=4)
    model.head.context.data += 1
    vt.save_delta(model, path)
    assert path.stat().st_size < 4096
    other = vt.tune(clip, "coop", task(("2", "emoji")), num_context=4)
    assert vt.load_delta(other, path)(images).shape == (5, 2)
    assert torch.equal(other.head.context, model.head.context)
    vt.save_delta(vt.tune(clip, "coop", task(), num_context=4, per_class=True), path)
    with pytest.raises(vt.VTError, match="does not fit this model"):
        vt.load_delta(
            vt.tune(clip, "coop", task(("2", "emoji")), num_context=4, per_class=True), path
        )


# Published weights: open_clip's model with random numbers stands for them.


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Any:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-16")
    few = {part: {**config[part], "layers": 2} for part in ("vision_cfg", "text_cfg")}
    theirs = open_clip.create_model("ViT-B-16", pretrained=None, **few)
    path = tmp_path_factory.mktemp("clip") / "published.safetensors"
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, path)
    return load_clip(path)


@pytest.mark.parametrize("name", METHODS)
def test_works_on_open_clips_towers(name: str, published: Any) -> None:
    images, names = torch.randn(2, 3, 224, 224), ("tabby cat", "Newfoundland_dog")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # byte pairs spell every word
        model = vt.tune(published, name, task(names))
    assert math.isfinite(model.method.backward(model, images, torch.tensor([0, 1])))
    reached = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in reached)
    assert model(images).shape == (2, 2)


def test_the_suites_models_have_moved() -> None:
    assert trained("coop").head.context.abs().max() > 0.05
