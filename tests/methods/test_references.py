"""Each method against the most naive reading of its formula: one ViT in plain tensor algebra,
changed where the formula says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vtlite as vt
from tests.conftest import make_tiny
from tests.methods.checks import batch, trained
from vtlite.methods.parameter.weight.lora import LoRALinear
from vtlite.methods.remapping.distillation.kd import KD
from vtlite.ops.kd_loss import kd_loss

HEADS, PATCH = 3, 8
Op = Callable[[str, Tensor], Tensor]


def naive_vit(
    state: dict[str, Tensor], images: Tensor, op: Op | None = None, **change: Any
) -> Tensor:
    """Features [B, D] of the ViT in `state`. `op` is applied after each named operation; `prompts`
    and `beside` are below."""
    op = op or (lambda name, x: x)
    prompts, beside = change.get("prompts"), change.get("beside", lambda i, x: 0)

    def linear(name: str, x: Tensor) -> Tensor:
        return op(name, x @ state[f"{name}.weight"].T + state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        z = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return op(name, z * state[f"{name}.weight"] + state[f"{name}.bias"])

    patches = F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)  # [B, N, C P P]
    x = op(
        "patch_embed.proj",
        patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"],
    )
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    for i in range(1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))):
        if prompts is not None:  # replaced, not added to, in every block
            x = torch.cat(
                [
                    x[:, :1],
                    prompts[i].expand(len(x), -1, -1),
                    x[:, 1 if i == 0 else 1 + prompts.shape[1] :],
                ],
                1,
            )
        q, k, v = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", x)).chunk(3, -1)
        heads = []
        for q_h, k_h, v_h in zip(
            q.chunk(HEADS, -1), k.chunk(HEADS, -1), v.chunk(HEADS, -1), strict=True
        ):
            heads.append((q_h @ k_h.transpose(1, 2) / math.sqrt(q_h.shape[-1])).softmax(-1) @ v_h)
        x = x + linear(f"blocks.{i}.attn.proj", torch.cat(heads, -1))
        hidden = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", x)))
        x = x + linear(f"blocks.{i}.mlp.fc2", hidden) + beside(i, x)
    return norm("norm", x)[:, 0]


def example(name: str) -> tuple[vt.Tuned, dict[str, Tensor], Tensor]:
    """A tuned model moved away from its start, the plain backbone's values, and images; all in
    float64."""
    return trained(name).double().eval(), make_tiny().double().state_dict(), batch()[0].double()


def assert_same(model: vt.Tuned, images: Tensor, features: Tensor) -> None:
    torch.testing.assert_close(
        model(images), features @ model.head.weight.T + model.head.bias, atol=1e-10, rtol=1e-10
    )


def added(model: vt.Tuned, suffix: str) -> list[Tensor]:
    return [p.detach() for name, p in model.backbone.named_parameters() if name.endswith(suffix)]


def test_linear_is_a_head_on_the_untouched_backbone() -> None:
    model, state, images = example("linear")
    assert_same(model, images, naive_vit(state, images))


@pytest.mark.parametrize("name", ["full", "bitfit"])
def test_what_changes_weights_in_place_is_a_vit_of_the_changed_weights(name: str) -> None:
    model, start, images = example(name)
    state = model.backbone.state_dict()
    moved = {key for key in start if not torch.equal(start[key], state[key])}
    assert moved == {key for key in start if name == "full" or key.endswith(".bias")}
    assert_same(model, images, naive_vit(state, images))


def test_lora_is_a_vit_with_the_product_added_to_queries_and_values() -> None:
    model, state, images = example("lora")
    rank, alpha = model.method.rank, model.method.alpha  # type: ignore[attr-defined]
    for i, (A, B) in enumerate(zip(added(model, "lora_A"), added(model, "lora_B"), strict=True)):
        weight = state[f"blocks.{i}.attn.qkv.weight"]
        D = weight.shape[1]
        weight[:D] += alpha / rank * B[:D] @ A[:rank]
        weight[2 * D :] += alpha / rank * B[D:] @ A[rank:]
    assert_same(model, images, naive_vit(state, images))


def test_lora_linear_equals_peft() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Linear(7, 5)
    theirs = peft.get_peft_model(
        nn.Sequential(nn.Linear(7, 5)), peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"])
    )
    layer = theirs.base_model.model[0]
    layer.base_layer.load_state_dict(base.state_dict())
    ours = LoRALinear(base.requires_grad_(False), rank=3, scale=2.0)
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(ours.lora_A)
        ours.lora_B.normal_()
        layer.lora_B["default"].weight.copy_(ours.lora_B)
    x = torch.randn(4, 2, 7)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(
        ours.lora_A.grad, layer.lora_A["default"].weight.grad, atol=1e-4, rtol=1e-5
    )
    torch.testing.assert_close(
        ours.lora_B.grad, layer.lora_B["default"].weight.grad, atol=1e-4, rtol=1e-5
    )


def test_ssf_scales_and_shifts_after_every_operation() -> None:
    model, state, images = example("ssf")
    pairs = {
        name: (m.scale.detach(), m.shift.detach())
        for name, m in model.backbone.named_modules()
        if hasattr(m, "shift")
    }
    used: set[str] = set()

    def scale_and_shift(name: str, x: Tensor) -> Tensor:
        used.add(name)
        gamma, beta = pairs[name]
        return x * gamma + beta

    assert_same(model, images, naive_vit(state, images, scale_and_shift))
    assert used == set(pairs)


def test_vpt_deep_replaces_the_prompts_in_every_block() -> None:
    model, state, images = example("vpt_deep")
    assert_same(
        model, images, naive_vit(state, images, prompts=torch.stack(added(model, "prompts")))
    )


def test_vpt_deep_drops_prompts_in_training_only() -> None:
    model = vt.tune(make_tiny(), "vpt_deep", 3, dropout=0.5)
    images, _ = batch()
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_adaptformer_adds_a_bottleneck_of_the_tokens_before_the_norm() -> None:
    model, state, images = example("adaptformer")
    D, d, U, u = (added(model, s) for s in ("down.weight", "down.bias", "up.weight", "up.bias"))
    s = model.method.scale  # type: ignore[attr-defined]
    assert_same(
        model,
        images,
        naive_vit(
            state, images, beside=lambda i, x: s * (F.relu(x @ D[i].T + d[i]) @ U[i].T + u[i])
        ),
    )


def test_kd_loss_by_loops() -> None:
    g = torch.Generator().manual_seed(0)
    student, teacher, T = torch.randn(4, 3, generator=g), torch.randn(4, 3, generator=g), 2.5
    total = 0.0
    for z_s, z_t in zip(student.tolist(), teacher.tolist(), strict=True):
        e_s, e_t = [math.exp(z / T) for z in z_s], [math.exp(z / T) for z in z_t]
        p_s, p_t = [e / sum(e_s) for e in e_s], [e / sum(e_t) for e in e_t]
        total += T * T * sum(p * math.log(p / q) for p, q in zip(p_t, p_s, strict=True)) / 4
    assert float(kd_loss(student, teacher, T)) == pytest.approx(total, rel=1e-5)
    assert float(kd_loss(teacher, teacher, T)) == pytest.approx(0, abs=1e-6)


def test_kd_weighs_labels_and_teacher_and_leaves_the_teacher_alone() -> None:
    images, labels = batch()
    teacher = vt.tune(make_tiny(), "linear", 3, seed=5)
    model = vt.tune(make_tiny(), KD(teacher=teacher, weight=0.7, temperature=3.0), 3)
    loss = model.method.backward(model, images, labels)
    expected = 0.3 * F.cross_entropy(model(images), labels) + 0.7 * kd_loss(
        model(images), teacher(images), 3.0
    )
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert all(p.grad is None for p in teacher.parameters())
    assert not any("teacher" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("depth", "kept"), [(1, [5]), (2, [2, 5]), (3, [1, 3, 5]), (6, [0, 1, 2, 3, 4, 5])]
)
def test_kd_student_starts_from_evenly_spaced_blocks(depth: int, kept: list[int]) -> None:
    backbone = make_tiny(depth=6)
    student = vt.tune(backbone, "kd", 3, depth=depth).backbone
    assert len(student.blocks) == depth
    for block, i in zip(student.blocks, kept, strict=True):
        assert torch.equal(block.mlp.fc1.weight, backbone.blocks[i].mlp.fc1.weight)
