"""Prompts in both towers, against the formulas written in the most naive way."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import vtlite as vt
from tests.conftest import make_tiny_clip
from tests.methods.checks import batch
from vtlite.backbones.clip import CLIP
from vtlite.methods.prompt.vision_language.tpt import entropy_of_mean, surest
from vtlite.task import Classification
from vtlite.zero_shot import class_features

NAMES = ("0", "1", "2")
TASK = Classification("numbers", NAMES)


def tuned(name: str, clip: CLIP | None = None, task: Any = TASK, **settings: Any) -> vt.Tuned:
    """A method on two towers, every value that trains moved away from its start."""
    model = vt.tune(clip or make_tiny_clip(), name, task, **settings)
    g = torch.Generator().manual_seed(2)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn(p.shape, generator=g)
    return model.eval()


def image_feature(clip: CLIP, images: Tensor, prompts: list[Tensor], drops: bool = False) -> Tensor:
    """The image tower with prompts concatenated behind the patches: replaced in front of each
    block that has some, flowing on behind, or dropped after each (`drops`)."""
    visual: Any = clip.visual
    x = visual.patch_embed(images)
    x = torch.cat([visual.cls_token.expand(len(x), -1, -1), x], 1) + visual.pos_embed
    N = x.shape[1]
    for i, block in enumerate(visual.blocks):
        if i < len(prompts):
            each = prompts[i] if prompts[i].ndim == 3 else prompts[i].expand(len(x), -1, -1)
            x = torch.cat([x[:, :N], each], 1)
        x = block(x)
        x = x[:, :N] if drops else x
    return F.normalize(visual.norm(x)[:, 0] @ clip.visual_projection, dim=-1)


def text_features(clip: CLIP, contexts: list[Tensor], before: str = "") -> Tensor:
    """The text tower, one class at a time, with contexts behind the start token: replaced in front
    of each block that has one."""
    rows = []
    for name in NAMES:
        tokens = clip.tokenize([f"{before} {name}"])[:, : int(clip.tokenize([name]).argmax()) + 9]
        end = int(tokens.argmax())
        words = clip.text.token_embedding(tokens)[0, : end + 1]
        x = torch.cat([words[:1], contexts[0], words[1:]])[None]
        x, M = x + clip.text.positional_embedding[: x.shape[1]], len(contexts[0])
        for i, block in enumerate(clip.text.blocks):
            if 0 < i < len(contexts):
                x = torch.cat([x[:, :1], contexts[i][None], x[:, 1 + M :]], 1)
            x = block(x)
        rows.append(clip.text.ln_final(x)[0, -1] @ clip.text_projection)
    return torch.stack(rows)


def same_with_gradients(model: vt.Tuned, found: Tensor, wanted: Tensor) -> None:
    """Outputs and the gradients of everything that trains agree to 1e-5."""
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
    own = [p for p in model.parameters() if p.requires_grad]
    weights = torch.linspace(-1, 1, found.numel()).view_as(found)
    gradients = [
        torch.autograd.grad((y * weights).sum(), own, allow_unused=True, retain_graph=True)
        for y in (found, wanted)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def two_block_clip() -> CLIP:
    """Two blocks in both towers, so that a context can be replaced in the second."""
    clip = make_tiny_clip()
    clip.text.blocks = nn.Sequential(*clip.text.blocks, *make_tiny_clip().text.blocks)
    for p in clip.text.blocks[1].parameters():
        p.data = p.data.roll(1, 0)
    return clip


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("coupled", [True, False])
def test_maple_is_prompts_in_both_towers(depth: int, coupled: bool) -> None:
    """Prompts that were not replaced in the second block, or left out behind the first, would give
    others."""
    clip, (images, _) = two_block_clip(), batch()
    model = tuned("maple", clip, depth=depth, coupled=coupled, words="a photo of a")
    network: Any = model.network
    first = network.head.context[0]
    visual = network.backbone.visual
    made = [getattr(b, "prompts", None) for b in visual.blocks]
    if depth == 1:
        made = [visual.blocks[0].prompts]
    made[0] = made[0].prompts  # behind a norm that is none here
    contexts = [first, *(m.context for m in made[1:] if coupled)]
    if not coupled and depth == 2:
        contexts.append(network.head.texts.tower.blocks[1].context)
    prompts = [m.project(m.context.flatten(0, -2)) for m in made]
    f = image_feature(clip, images, prompts)
    g = F.normalize(text_features(clip, contexts, "of a"), dim=-1)
    same_with_gradients(model, model(images), clip.logit_scale.exp() * f @ g.T)
    assert len(contexts) == len(prompts) == depth


def test_maple_starts_from_the_words_with_their_rest_before_the_names() -> None:
    clip = make_tiny_clip()
    model = vt.tune(clip, "maple", TASK, depth=1, words="a photo of a").eval()
    g = F.normalize(model.head.texts(model.head.context), dim=-1)
    torch.testing.assert_close(g, class_features(clip, NAMES, "a photo of a {}"))


def test_upt_lets_the_vectors_look_at_each_other() -> None:
    """With the axes of batch and sequence exchanged each vector would see itself alone."""
    clip, (images, _) = make_tiny_clip(), batch()
    model = tuned("upt", clip, num_context=3)
    unified: Any = model.head.unified
    U, D = unified.vectors, 24
    w, b = unified.attention.in_proj_weight, unified.attention.in_proj_bias
    q, k, v = (U @ w[i * D : (i + 1) * D].T + b[i * D : (i + 1) * D] for i in range(3))
    mixed = ((q @ k.T / math.sqrt(D)).softmax(-1) @ v) @ unified.attention.out_proj.weight.T
    S = unified.norm1(U + mixed + unified.attention.out_proj.bias)
    H = S + unified.fc2(unified.fc1(unified.norm2(S)).relu())
    f = image_feature(clip, images, [unified.project(H[3:])])
    g = F.normalize(text_features(clip, [H[:3]]), dim=-1)
    same_with_gradients(model, model(images), clip.logit_scale.exp() * f @ g.T)


def test_both_halves_are_of_one_pass_with_one_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (images, _) = tuned("upt", dropout=0.5).train(), batch()
    passes = []
    whole = type(model.head.unified).halves
    monkeypatch.setattr(
        type(model.head.unified), "halves", lambda self: passes.append(1) or whole(self)
    )
    model(images)
    assert len(passes) == 1
    model.features(images)
    model.head(model.features(images))
    assert len(passes) == 3
    assert not model.head.unified.waiting


def test_dpt_makes_the_last_prompts_of_likely_classes() -> None:
    """A text that was normalised before it asks, or tokens that let a gradient through, would give
    others."""
    clip, (images, _) = make_tiny_clip(), batch()
    settings: dict[str, Any] = {"num_context": 3, "num_prompts": 2, "num_likely": 2}
    model = tuned("dpt", clip, template="an emoji of {}", **settings)
    network: Any = model.network
    first, last = network.backbone.visual.blocks
    zero_shot = class_features(clip, NAMES, "an emoji of {}")
    likely = (image_feature(clip, images, []) @ zero_shot.T).argsort(1, descending=True)[:, :2]
    texts = text_features(clip, [network.head.context[0]])

    visual: Any = clip.visual
    x = visual.patch_embed(images)
    x = torch.cat([visual.cls_token.expand(len(x), -1, -1), x], 1) + visual.pos_embed
    N = x.shape[1]
    x = visual.blocks[0](torch.cat([x, first.prompts.expand(len(x), -1, -1)], 1))[:, :N]
    prompts, says = [], []
    for image, tokens in enumerate(x.detach()):
        X = torch.cat([tokens, last.extra])
        for c in likely[image]:
            q = last.from_text(texts[c])
            a = (last.query(q) @ last.key(X).T / math.sqrt(32)).softmax(-1)
            o = sum(weight * last.value(row) for weight, row in zip(a, X, strict=True))
            says.append(last.classify(last.norm1(o)))
            prompts.append(last.norm2(o + q))
    each = torch.stack(prompts).unflatten(0, (len(images), 2))
    x = visual.blocks[1](torch.cat([x, each], 1))[:, :N]
    f = F.normalize(visual.norm(x)[:, 0] @ clip.visual_projection, dim=-1)
    wanted = clip.logit_scale.exp() * f @ F.normalize(texts, dim=-1).T
    torch.testing.assert_close(model(images), wanted, atol=1e-4, rtol=1e-5)

    targets = torch.tensor([0, 1, 2, 0, 1])
    at = [(i, j) for i in range(5) for j in range(2) if likely[i, j] == targets[i]]
    assert 0 < len(at) < 5  # some images are not among their likely classes, and are left out
    own = torch.stack([says[2 * i + j] for i, j in at])
    loss = F.cross_entropy(wanted, targets)
    loss = loss + 0.3 * F.cross_entropy(own, targets[[i for i, _ in at]])
    found = model.method.loss(model, images, targets)
    same_with_gradients(model, found, loss)


def test_dpt_is_guided_in_the_first_part_of_its_training_only() -> None:
    model, (images, labels) = tuned("dpt", num_context=3, num_likely=2, guidance=0.5), batch()
    seen: list[bool] = []
    whole = type(model.method).loss

    class Watched(type(model.method)):  # type: ignore[misc]
        key = "own/watched"

        def loss(self, model: Any, inputs: Any, targets: Any) -> Tensor:
            seen.append(model.network.guided)
            return whole(self, model, inputs, targets)

    model.method.__class__ = Watched
    vt.fit(model, TensorDataset(images, labels), epochs=4, lr=1e-3, progress=False)
    vt.METHODS.pop("own/watched")
    assert seen == [True, True, False, False]


def test_entropy_is_that_of_the_mean_of_probabilities() -> None:
    """Not the mean of the entropies, nor the entropy of the mean of the logits."""
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [1.0, 1.0, 0.0]])
    p = logits.softmax(1).mean(0)
    torch.testing.assert_close(entropy_of_mean(logits), -(p * p.log()).sum())
    assert surest(logits, 0.7).tolist() == [0, 1]
    assert surest(logits, 0.01).tolist() == [0]  # at least one


def test_tpt_takes_a_step_on_each_image_and_forgets_it() -> None:
    clip, (images, _) = make_tiny_clip(), batch()
    model = tuned("tpt", clip, num_views=6, share=0.5, smallest=0.5, step=0.1)
    network: Any = model.network
    context = network.head.context.detach().clone()
    logits = model(images)
    assert torch.equal(network.head.context, context)
    assert torch.equal(model(images[2:3])[0], logits[2])  # whatever came before it
    # by hand, for one image: the first step of AdamW is one of the gradient's sign
    with torch.random.fork_rng():
        torch.manual_seed(0)
        views = torch.stack([images[1], *(network.views(images[1]) for _ in range(5))])
    f = image_feature(clip, views, [])
    V = context[0].clone().requires_grad_()
    z = clip.logit_scale.exp() * f @ F.normalize(text_features(clip, [V]), dim=-1).T
    entropy = [-(p * p.log()).sum() for p in z.softmax(1)]
    kept = sorted(range(6), key=lambda i: float(entropy[i]))[:3]
    mean = z[kept].softmax(1).mean(0)
    (g,) = torch.autograd.grad(-(mean * mean.log()).sum(), V)
    V = V * (1 - 0.1 * 0.01) - 0.1 * g / (g.abs() + 1e-8)
    wanted = clip.logit_scale.exp() * f[0] @ F.normalize(text_features(clip, [V]), dim=-1).T
    torch.testing.assert_close(logits[1], wanted, atol=2e-3, rtol=1e-4)
    assert (logits[1] - z[0]).abs().max() > 0.05  # the step is seen


def test_tpt_fits_nothing_unless_it_is_told_to() -> None:
    images, labels = batch()
    for first in (False, True):
        model = vt.tune(make_tiny_clip(), "tpt", TASK, num_views=2, first=first)
        before = model.head.context.detach().clone()
        vt.fit(model, TensorDataset(images, labels), epochs=2, progress=False)
        assert torch.equal(model.head.context, before) != first


def test_tda_answers_images_one_after_the_other() -> None:
    """Taking an image in after it is answered, or keeping unsure ones by class alone, would give
    others."""
    clip = make_tiny_clip()
    clip.logit_scale.data.fill_(3.5)  # so that some images are unsure
    g = torch.Generator().manual_seed(4)
    images = torch.randn(40, 3, 32, 32, generator=g)
    model = vt.tune(clip, "tda", TASK, template="an emoji of {}", sure=2, unsure=1).eval()
    m: Any = model.method
    texts = class_features(clip, NAMES, "an emoji of {}")
    sure: dict[int, list] = {}
    unsure: dict[int, list] = {}
    wanted, taken = [], 0
    for f in image_feature(clip, images, []).detach():
        z = clip.logit_scale.exp() * texts @ f
        p = z.softmax(0)
        entropy, label = float(-(p * p.log()).sum()), int(p.argmax())
        between = m.between[0] < entropy / math.log2(3) < m.between[1]
        taken += between
        for cache, places, wants in ((sure, 2, True), (unsure, 1, between)):
            if wants:
                kept = [*cache.get(label, []), (entropy, f, p)]
                cache[label] = sorted(kept, key=lambda entry: entry[0])[:places]
        for label, kept in sure.items():
            for _, key, _ in kept:
                z = z + 2.0 * math.exp(-5.0 * (1 - float(f @ key))) * torch.eye(3)[label]
        for kept in unsure.values():
            for _, key, q in kept:
                z = z - 0.117 * math.exp(-1.0 * (1 - float(f @ key))) * (q > m.doubt)
        wanted.append(z)
    assert 0 < taken < 40
    torch.testing.assert_close(model(images), torch.stack(wanted), atol=1e-4, rtol=1e-5)
    assert torch.equal(model(images), model(images))  # nothing is kept unless it is asked for
    first = model.head.keep(model.features(images[:25]))
    second = model.head.keep(model.features(images[25:]))
    torch.testing.assert_close(
        torch.cat([first, second]), torch.stack(wanted), atol=1e-4, rtol=1e-5
    )


def test_a_kept_cache_is_in_the_delta(tmp_path: Any) -> None:
    model, (images, _) = vt.tune(make_tiny_clip(), "tda", TASK), batch()
    model.head.keep(model.features(images))
    vt.save_delta(model, tmp_path / "d.safetensors")
    other = vt.load_delta(make_tiny_clip(), tmp_path / "d.safetensors")
    assert torch.equal(other(images), model(images))
    assert not torch.equal(vt.tune(make_tiny_clip(), "tda", TASK)(images), model(images))


def test_promptkd_repeats_its_teacher_and_keeps_the_class_vectors(tmp_path: Any) -> None:
    clip, (images, labels) = make_tiny_clip(), batch()
    teacher = tuned("coop", clip, num_context=3)
    model = vt.tune(clip, "promptkd", TASK, teacher=teacher, depth=2, temperature=2.0)
    g = F.normalize(teacher.head.texts(teacher.head.context), dim=-1)
    assert torch.equal(model.head.classes, g.detach())
    z_t, z_s = teacher(images).detach(), model(images)
    wanted = 4 * F.kl_div((z_s / 2).log_softmax(1), (z_t / 2).softmax(1), reduction="batchmean")
    same_with_gradients(model, model.method.loss(model, images, labels), wanted)
    vt.fit(model, TensorDataset(images, labels), epochs=2, progress=False)
    vt.save_delta(model, tmp_path / "d.safetensors")
    other = vt.load_delta(clip, tmp_path / "d.safetensors")  # without a teacher
    torch.testing.assert_close(other(images), model(images))


def test_promptkd_makes_a_teacher_and_uses_no_label_itself() -> None:
    images, labels = batch()
    settings: Any = {"teacher_method": "maple", "teacher_epochs": 1}
    model = vt.tune(make_tiny_clip(), "promptkd", TASK, **settings)
    vt.fit(model, TensorDataset(images, labels), epochs=1, progress=False)
    a, b = (model.method.loss(model, images, y) for y in (labels, labels.flip(0)))
    assert torch.equal(a, b)
    assert "teacher" not in "".join(dict(model.named_parameters()))


def test_a_teacher_without_a_context_or_of_other_classes_is_refused() -> None:
    clip = make_tiny_clip()
    with pytest.raises(vt.VTError, match=r"a learned context.*take maple or coop"):
        vt.tune(clip, "promptkd", TASK, teacher=vt.tune(clip, "tda", TASK))
    two = Classification("two", ("0", "1"))
    with pytest.raises(vt.VTError, match=r"class vectors \[3, 16\], found \[2, 16\]"):
        vt.tune(clip, "promptkd", TASK, teacher=vt.tune(clip, "coop", two, num_context=3))
    with pytest.raises(vt.VTError, match=r"expected teacher as a model that vt\.tune made"):
        vt.tune(clip, "promptkd", TASK, teacher=nn.Linear(2, 2))


def test_clip_lora_is_dense_updates_of_q_k_v_in_both_towers() -> None:
    """Divided by the rank in place of its root, or one A for all three, would give others."""
    clip, (images, _) = make_tiny_clip(), batch()
    model = tuned("clip_lora", clip, rank=2, dropout=0.0, targets="qv")
    plain: Any = make_tiny_clip()
    layers = [(plain.visual, model.backbone.visual), (plain.text, model.head.tower)]
    for old, new in layers:
        for a, b in zip(old.blocks, new.blocks, strict=True):
            lora, D = b.attn.qkv, 24
            weight = a.attn.qkv.weight.detach().clone()
            for row, start in enumerate((0, 2 * D)):
                A, B = lora.lora_A[2 * row : 2 * row + 2], lora.lora_B[D * row : D * row + D]
                weight[start : start + D] += (B @ A).detach() / math.sqrt(2)
            a.attn.qkv.weight.data = weight
    wanted = plain.logits(
        plain.encode_image(images), class_features(plain, NAMES, "a photo of a {}")
    )
    torch.testing.assert_close(model(images), wanted, atol=1e-4, rtol=1e-5)


def test_clip_lora_drops_inputs_of_q_k_and_v_each_by_itself() -> None:
    model = tuned("clip_lora", dropout=0.5).train()
    layer = model.backbone.visual.blocks[0].attn.qkv
    x = torch.randn(1, 1, 24)
    torch.manual_seed(0)
    masks = [F.dropout(x, 0.5) for _ in range(3)]
    torch.manual_seed(0)
    A, B = layer.lora_A.chunk(3), layer.lora_B.chunk(3)
    parts = [m @ a.T @ b.T / math.sqrt(2) for m, a, b in zip(masks, A, B, strict=True)]
    torch.testing.assert_close(layer(x), layer.base(x) + torch.cat(parts, -1))


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("maple", {"depth": 0}, "expected depth an integer of at least 1"),
        ("maple", {"words": "a photo of " * 5}, "expected texts|expected at most"),
        ("upt", {"dropout": 1.0}, r"expected dropout in \[0, 1\)"),
        ("dpt", {"num_likely": 0}, "expected num_likely an integer of at least 1"),
        ("tpt", {"share": 0.0}, r"expected share in \(0, 1\]"),
        ("tda", {"sure": 0}, "expected sure an integer of at least 1"),
        ("clip_lora", {"template": "a photo"}, "expected template with {} where the name"),
        ("clip_lora", {"targets": "x"}, "expected targets some of the letters"),
        ("promptkd", {"teacher_method": "nobody"}, "unknown method 'nobody'"),
    ],
)
def test_settings_out_of_range(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(vt.VTError, match=sentence):
        vt.tune(make_tiny_clip(), name, TASK, **settings)
