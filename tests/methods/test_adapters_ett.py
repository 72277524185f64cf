"""ETT against the most naive reading of its formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

import vtlite as vt
from tests.conftest import make_tiny
from tests.methods.checks import batch, trained
from vtlite.methods.adapter.mix.ett import attended
from vtlite.task import Clips, MultiLabel, Several


def linear(layer: Any, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def heads(x: Tensor) -> tuple[Tensor, ...]:
    return x.chunk(3, -1)


def by_hand(model: Any, images: Tensor) -> Tensor:
    """Logits, one image at a time, prefixes before the keys and values of each head."""
    own, out = model.backbone, []
    prefix = own.blocks[0].prefix
    for image in images:
        x = torch.cat([own.cls_token[0], own.patch_embed(image[None])[0]]) + own.pos_embed[0]
        for each in own.blocks:
            block = each.block
            made = linear(each.keys_values, torch.tanh(linear(prefix.hidden, prefix.vectors)))
            q, k, v = linear(block.attn.qkv, block.norm1(x)).chunk(3, -1)
            k, v = torch.cat([made[:, :24], k]), torch.cat([made[:, 24:], v])
            read = [
                (a @ b.T / math.sqrt(8)).softmax(-1) @ c
                for a, b, c in zip(heads(q), heads(k), heads(v), strict=True)
            ]
            x = x + (block.ls1(linear(block.attn.proj, torch.cat(read, -1))) + each.offsets[0])
            x = x + (block.ls2(block.mlp(block.norm2(x))) + each.offsets[1])
        f = model.head.transform @ own.norm(x)[0]
        out.append(torch.stack([10 * unit(f) @ unit(m) for m in model.head.prototypes]))
    return torch.stack(out)


def drift_by_hand(prefix: Any) -> Tensor:
    losses = []
    for p, start in zip(prefix.vectors, prefix.start, strict=True):
        teacher = ((linear(prefix.compare, unit(start)) - prefix.centre) / 0.04).softmax(-1)
        student = (linear(prefix.compare, unit(p)) / 0.1).log_softmax(-1)
        losses.append(-(teacher.detach() * student).sum())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("regularisation", [0.0, 0.7])
def test_the_whole_of_it_by_hand(regularisation: float) -> None:
    """The wrong answers that this alone catches: prefixes as queries, offsets before a gain, V
    transposed, a gradient through the teacher."""
    model: Any = trained("ett", make_tiny(init_values=0.5)).double().eval()
    model.method.regularisation = regularisation
    images, labels = batch()
    images, prefix = images.double(), model.backbone.blocks[0].prefix
    prefix.start.normal_()
    prefix.centre.normal_()
    expected = by_hand(model, images)
    torch.testing.assert_close(model(images), expected)
    naive = F.cross_entropy(expected, labels) + regularisation * drift_by_hand(prefix)
    loss = model.method.loss(model, images, labels)
    torch.testing.assert_close(loss, naive)
    learnt = [p for p in model.parameters() if p.requires_grad]
    grads = (torch.autograd.grad(each, learnt, allow_unused=True) for each in (loss, naive))
    for found, wanted in zip(*grads, strict=True):
        none = not regularisation and (found is None or wanted is None)
        assert none or torch.allclose(found, wanted, atol=1e-10)


def test_it_sees_what_the_last_class_token_attends_to() -> None:
    """By the plain network's own attention, softmaxed over patches alone; not the class token's
    own features, which would be the likely mistake."""
    backbone = make_tiny(depth=3).double().eval()
    model = vt.tune(backbone, "ett", 3).double().eval()
    images = batch()[0].double()
    expected = []
    for image in images:
        tokens = torch.cat([backbone.cls_token[0], backbone.patch_embed(image[None])[0]])
        tokens = tokens + backbone.pos_embed[0]
        x = backbone.blocks[1](backbone.blocks[0](tokens[None]))[0]
        last = backbone.blocks[2]
        q, k, _ = linear(last.attn.qkv, last.norm1(x)).chunk(3, -1)
        looks = [
            (b[1:] @ a[0] / math.sqrt(8)).softmax(0) @ tokens[1:]
            for a, b in zip(heads(q), heads(k), strict=True)
        ]
        expected.append(sum(looks) / 3)
    torch.testing.assert_close(attended(model.backbone, images), torch.stack(expected))  # type: ignore[arg-type]


def test_it_starts_from_its_training_images_and_never_again() -> None:
    images, labels = batch(7)
    labels[labels == 2] = 0  # the last class has no image
    model: Any = vt.tune(make_tiny(), "ett", 3).eval()
    data, prefix = TensorDataset(images, labels), model.backbone.blocks[0].prefix
    random, prototype = prefix.vectors.detach().clone(), model.head.prototypes.detach().clone()
    model.method.look(model, data)
    with torch.no_grad():
        for c in range(2):
            shown = images[labels == c]
            torch.testing.assert_close(prefix.vectors[c], attended(model.backbone, shown).mean(0))
            # with the prefixes that it has by now
            torch.testing.assert_close(model.head.prototypes[c], model.features(shown).mean(0))
    assert torch.equal(prefix.vectors[2], random[2])
    assert torch.equal(model.head.prototypes[2], prototype[2])
    assert torch.equal(prefix.start, prefix.vectors)
    vt.fit(model, data, epochs=1, lr=1e-2, progress=False)
    prefix = model.backbone.blocks[0].prefix
    learnt = prefix.vectors.detach().clone()
    assert not torch.equal(learnt, prefix.start)
    model.method.look(model, data)
    assert torch.equal(prefix.vectors, learnt)


def test_the_centre_follows_the_teacher_once_a_step() -> None:
    model, (images, labels) = vt.tune(make_tiny(), "ett", 3), batch()
    prefix = model.backbone.blocks[0].prefix
    seen = 0.1 * prefix.teacher().mean(0)
    model.method.loss(model, images, labels)  # a loss alone moves nothing
    assert not prefix.centre.any()
    model.method.backward(model, images, labels)
    torch.testing.assert_close(prefix.centre, seen)
    seen = 0.9 * seen + 0.1 * prefix.teacher().mean(0)
    model.method.backward(model, images, labels)
    torch.testing.assert_close(prefix.centre, seen)


def test_without_a_class_token_the_mean_query_looks() -> None:
    models: Any = pytest.importorskip("timm").models
    sizes: Any = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    network = models.VisionTransformer(class_token=False, global_pool="avg", **sizes)
    model = vt.tune(network, "ett", 3)
    images, labels = batch()
    assert attended(model.backbone, images).shape == (5, 24)
    history = vt.fit(model, TensorDataset(images, labels), epochs=2, progress=False)
    assert math.isfinite(history[-1]["loss"])


@pytest.mark.parametrize(
    "task",
    [
        MultiLabel("several", ("a", "b")),
        Clips("clips", ("a", "b")),
        Several("questions", parts={"one": MultiLabel("one", ("a", "b"))}),
        vt.load_task("emoji-masks"),
    ],
    ids=lambda task: type(task).__name__,
)
def test_a_task_without_one_class_an_image_is_a_sentence(task: Any) -> None:
    sentence = f"ett: expected a classification of images.*found a {type(task).__name__};"
    with pytest.raises(vt.VTError, match=sentence):
        vt.tune(make_tiny(), "ett", task)


def test_settings_and_networks_out_of_range_are_a_sentence() -> None:
    with pytest.raises(vt.VTError, match="ett: expected regularisation of at least 0, found -1"):
        vt.tune(make_tiny(), "ett", 3, regularisation=-1.0)
    models: Any = pytest.importorskip("timm").models
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 3}
    beit = models.beit.Beit(img_size=32, patch_size=8, use_rel_pos_bias=True, **sizes)
    with pytest.raises(vt.VTError, match=r"ett: .* with the usual blocks.*found Beit"):
        vt.tune(beit, "ett", 3)
