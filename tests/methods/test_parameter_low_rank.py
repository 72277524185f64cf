"""LoRA and its relatives against explicit slices and loops, and what only some of them promise: any
rank, shared factors, frozen matrices."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vtlite as vt
from tests.conftest import make_tiny
from tests.methods.checks import CLASSES, batch
from tests.methods.test_other_backbones import BACKBONES
from tests.methods.test_references import added, assert_same, example, naive_vit
from vtlite.methods.parameter.updates import SlicedLinear
from vtlite.methods.parameter.weight.dora import DoRALinear
from vtlite.methods.parameter.weight.dylora import DyLoRALinear, truncate
from vtlite.methods.parameter.weight.lora import LoRAConv2d
from vtlite.methods.parameter.weight.vera import VeRALinear

D = 24


def moved(backbone: nn.Module, name: str, **settings: Any) -> Any:
    """A tuned model whose every trainable value was moved away from its start, in float64."""
    model = vt.tune(backbone, name, CLASSES, **settings).double()
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return model


def double_batch(count: int = 4) -> tuple[Tensor, Tensor]:
    images, labels = batch(count)
    return images.double(), labels


# LoRA
# -------------------------------------------------------------------------------------------------
def test_lora_without_targets_gives_the_fused_matrix_one_update() -> None:
    model, state = (
        moved(make_tiny(), "lora", rank=3, alpha=6.0, targets="", layers=("qkv",)),
        make_tiny().double().state_dict(),
    )
    for i, (A, B) in enumerate(zip(added(model, "lora_A"), added(model, "lora_B"), strict=True)):
        assert (A.shape, B.shape) == ((3, D), (3 * D, 3))
        state[f"blocks.{i}.attn.qkv.weight"] += 2.0 * B @ A
    assert_same(model, double_batch()[0], naive_vit(state, double_batch()[0]))


def test_lora_on_other_layers() -> None:
    model, state = (
        moved(make_tiny(), "lora", rank=2, alpha=4.0, layers=("proj", "fc1", "fc2")),
        make_tiny().double().state_dict(),
    )
    factors = dict(model.backbone.named_parameters())
    changed = [name.removesuffix(".lora_A") for name in factors if name.endswith("lora_A")]
    assert changed == [
        f"blocks.{i}.{layer}" for i in range(2) for layer in ("attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    for name in changed:
        state[f"{name}.weight"] += (
            2.0 * factors[f"{name}.lora_B"].detach() @ factors[f"{name}.lora_A"].detach()
        )
    assert_same(model, double_batch()[0], naive_vit(state, double_batch()[0]))


@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "groups", "stride"),
    [(5, 4, 3, 1, 1), (4, 6, 3, 2, 2), (6, 6, 2, 3, 1), (3, 7, 1, 1, 2)],
)
def test_lora_convolution_is_the_matrix_product_read_in_the_order_of_the_kernel(
    inputs: int, outputs: int, kernel: int, groups: int, stride: int
) -> None:
    torch.manual_seed(0)
    base = (
        nn.Conv2d(inputs, outputs, kernel, stride, padding=1, groups=groups)
        .double()
        .requires_grad_(False)
    )
    layer = LoRAConv2d(base, rank=2, scale=0.7).double()
    assert layer.lora_A.shape == (2 * kernel, inputs * kernel)  # loralib's shapes
    assert layer.lora_B.shape == (outputs // groups * kernel, 2 * kernel)
    nn.init.normal_(layer.lora_B)
    flat, weight = (layer.lora_B @ layer.lora_A).flatten(), base.weight.clone()
    place = 0
    for o in range(outputs):
        for i in range(inputs // groups):
            for row in range(kernel):
                for column in range(kernel):
                    weight[o, i, row, column] += 0.7 * flat[place]
                    place += 1
    assert place == len(flat)
    images = torch.randn(2, inputs, 5, 6, dtype=torch.float64)
    expected = [  # each group of outputs sees its own inputs
        F.unfold(x, kernel, padding=1, stride=stride).mT @ w.flatten(1).T + b
        for x, w, b in zip(
            images.chunk(groups, 1), weight.chunk(groups), base.bias.chunk(groups), strict=True
        )
    ]
    out = layer(images)
    torch.testing.assert_close(out.flatten(2).mT, torch.cat(expected, -1))
    with torch.no_grad():
        torch.testing.assert_close(layer.merged()(images), out)


def test_lora_convolution_refuses_a_rank_without_room() -> None:
    with pytest.raises(vt.VTError, match=r"rank at most 3 for a 8 x 3 matrix, found 4"):
        LoRAConv2d(nn.Conv2d(3, 8, 5), rank=4, scale=1.0)


# MoSA
# -------------------------------------------------------------------------------------------------
def test_mosa_changes_the_patch_embedding_of_a_vit() -> None:
    model, state, images = example("mosa")
    (A,), (B,) = added(model, "lora_A"), added(model, "lora_B")
    assert (A.shape, B.shape) == ((8, 3 * 8), (D * 8, 8))
    state["patch_embed.proj.weight"] += (B @ A).reshape(D, 3, 8, 8)
    assert_same(model, images, naive_vit(state, images))


def test_mosa_changes_the_first_convolution_of_each_residual_block() -> None:
    backbone = vt.create_backbone("resnet18", device="meta")
    model = vt.tune(backbone, "mosa", CLASSES, rank=2)
    changed = {name for name, m in model.backbone.named_modules() if isinstance(m, LoRAConv2d)}
    assert changed == {f"layer{stage}.{block}.conv1" for stage in range(1, 5) for block in range(2)}
    sizes = [
        (64, 64),
        (64, 64),
        (64, 128),
        (128, 128),
        (128, 256),
        (256, 256),
        (256, 512),
        (512, 512),
    ]
    assert vt.count_parameters(model)[0] - (512 * CLASSES + CLASSES) == sum(
        9 * 2 * (a + b) for a, b in sizes
    )


def test_mosa_changes_the_stem_of_a_hybrid_and_nothing_else() -> None:
    model = vt.tune(BACKBONES["hybrid"](), "mosa", CLASSES)
    changed = [name for name, m in model.backbone.named_modules() if isinstance(m, LoRAConv2d)]
    assert changed == [
        name for name, m in BACKBONES["hybrid"]().named_modules() if isinstance(m, nn.Conv2d)
    ]


# FacT and Aurora
# -------------------------------------------------------------------------------------------------
def core(layer: Any, name: str, s: int) -> Tensor:
    """The core [R, R] of slice s by its definition, entry by entry."""
    R = range(layer.U.shape[1])
    if name == "fact_tt":
        return layer.S[s].detach()
    entries = {
        "fact_tk": lambda i, j: sum((layer.C[i, j, k] * layer.P[s, k]).item() for k in R),
        "aurora": lambda i, j: (layer.modes[i] * layer.P[s, i]).item() if i == j else 0.0,
    }[name]
    return torch.tensor([[entries(i, j) for j in R] for i in R], dtype=torch.float64)


@pytest.mark.parametrize("name", ["fact_tt", "fact_tk", "aurora"])
def test_each_slice_of_each_weight_has_its_core_between_the_shared_factors(name: str) -> None:
    model, state = moved(make_tiny(), name, rank=5, scale=0.8), make_tiny().double().state_dict()
    U, V = (
        dict(model.backbone.named_parameters())[f"blocks.0.attn.qkv.{factor}"].detach()
        for factor in "UV"
    )
    for i in range(2):
        for where, slices in (("attn.qkv", 3), ("attn.proj", 1), ("mlp.fc1", 4), ("mlp.fc2", 4)):
            layer, weight = (
                model.backbone.get_submodule(f"blocks.{i}.{where}"),
                state[f"blocks.{i}.{where}.weight"],
            )
            for s in range(slices):
                rows = (
                    weight[:, s * D : (s + 1) * D]
                    if where == "mlp.fc2"
                    else weight[s * D : (s + 1) * D]
                )
                rows += 0.8 * (U @ core(layer, name, s) @ V).T
    assert_same(model, double_batch()[0], naive_vit(state, double_batch()[0]))


@pytest.mark.parametrize(
    ("name", "shared"), [("fact_tt", "UV"), ("fact_tk", "UVC"), ("aurora", ("U", "V", "modes"))]
)
def test_shared_factors_are_one_parameter_also_in_a_copy(name: str, shared: Any) -> None:
    layers = [
        m
        for m in copy.deepcopy(vt.tune(make_tiny(), name, CLASSES, rank=3)).modules()
        if isinstance(m, SlicedLinear)
    ]
    assert len(layers) == 8
    for factor in shared:
        assert len({id(getattr(layer, factor)) for layer in layers}) == 1


@pytest.mark.parametrize("name", ["fact_tt", "fact_tk", "aurora"])
def test_slices_need_an_mlp_of_whole_multiples(name: str) -> None:
    with pytest.raises(
        vt.VTError, match="expected weights that divide into 24 x 24 slices, found fc1 with 60 x 24"
    ):
        vt.tune(make_tiny(mlp_ratio=2.5), name, CLASSES, rank=3)
    images, _ = batch()
    model = moved(make_tiny(mlp_ratio=2), name, rank=3).float()
    torch.testing.assert_close(vt.merge(model)(images), model(images), atol=1e-5, rtol=1e-5)


def test_fact_refuses_a_rank_without_room_and_starts_as_the_original() -> None:
    with pytest.raises(vt.VTError, match="fact_tt: expected rank at most 24"):
        vt.tune(make_tiny(), "fact_tt", CLASSES, rank=25)
    block = vt.tune(make_tiny(), "fact_tt", CLASSES, rank=16).backbone.blocks[0]
    for values, inputs in (
        (block.attn.qkv.U, D),
        (block.attn.qkv.S, 16),
        (block.mlp.fc1.S, 16),
        (block.mlp.fc2.S, 64),
    ):  # nn.Linear's
        assert 0.95 * inputs**-0.5 < float(values.detach().abs().max()) <= inputs**-0.5


# VeRA
# -------------------------------------------------------------------------------------------------
def test_vera_scales_the_rows_of_two_matrices_that_all_layers_share() -> None:
    model, state, images = example("vera")
    layers = [block.attn.qkv for block in model.backbone.blocks]
    A, B = layers[0].vera_A, layers[0].vera_B
    assert all(
        layer.vera_A is A and layer.vera_B is B and not A.requires_grad and not B.requires_grad
        for layer in layers
    )
    for i, layer in enumerate(layers):
        for group, start in enumerate((0, 2 * D)):  # q and v
            d, b = (
                layer.d.detach()[16 * group : 16 * (group + 1)],
                layer.b.detach()[D * group : D * (group + 1)],
            )
            state[f"blocks.{i}.attn.qkv.weight"][start : start + D] += (
                torch.diag(b) @ B @ torch.diag(d) @ A
            )
    assert_same(model, images, naive_vit(state, images))


def test_vera_projections_come_from_their_own_seed() -> None:
    def A(seed: int, projection_seed: int) -> Tensor:
        return (
            vt.tune(
                make_tiny(), "vera", CLASSES, seed=seed, rank=9, projection_seed=projection_seed
            )
            .backbone.blocks[0]
            .attn.qkv.vera_A
        )

    assert torch.equal(A(0, 0), A(1, 0))
    assert not torch.equal(A(0, 0), A(0, 1))
    bound = (6 / D) ** 0.5  # Kaiming's for ReLU
    assert 0.9 * bound < float(A(0, 0).abs().max()) <= bound


def test_vera_gives_narrow_layers_a_corner() -> None:
    model = moved(BACKBONES["swin"](), "vera", rank=7)
    narrow, wide = (model.backbone.layers[i].blocks[0].attn.qkv for i in (0, 1))
    assert (narrow.base.in_features, wide.base.in_features) == (12, 24)
    assert narrow.vera_A is wide.vera_A
    expected = (
        torch.diag(narrow.b[12:])
        @ wide.vera_B[:12]
        @ torch.diag(narrow.d[7:])
        @ wide.vera_A[:, :12]
    )
    torch.testing.assert_close(narrow.delta(1), expected)


def test_vera_equals_peft() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Linear(7, 5).requires_grad_(False)
    theirs = peft.get_peft_model(
        nn.Sequential(copy.deepcopy(base)),
        peft.VeraConfig(r=4, target_modules=["0"], vera_dropout=0.0),
    )
    layer = theirs.base_model.model[0]
    A, B = (
        nn.Parameter(m["default"].clone(), requires_grad=False)
        for m in (layer.vera_A, layer.vera_B)
    )
    ours = VeRALinear(base, len(A), A, B, d_initial=0.1)
    with torch.no_grad():
        for mine, other in (
            (ours.d, layer.vera_lambda_d["default"]),
            (ours.b, layer.vera_lambda_b["default"]),
        ):
            torch.testing.assert_close(mine, other.detach())  # the same start
            other.copy_(mine.normal_())
    same_outputs_and_gradients(
        ours,
        theirs,
        [(ours.d, layer.vera_lambda_d["default"]), (ours.b, layer.vera_lambda_b["default"])],
    )


def same_outputs_and_gradients(
    ours: nn.Module, theirs: nn.Module, pairs: list[tuple[Tensor, Tensor]]
) -> None:
    x, g = torch.randn(4, 2, 7), torch.randn(4, 2, 5)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(ours(a), theirs(b), atol=1e-5, rtol=1e-5)
    ours(a).backward(g)
    theirs(b).backward(g)
    for mine, other in [(a, b), *pairs]:
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-5)


# DoRA
# -------------------------------------------------------------------------------------------------
def test_dora_gives_rows_a_length_and_a_direction() -> None:
    model, state, images = example("dora")
    for i, block in enumerate(model.backbone.blocks):
        layer, weight = block.attn.qkv, state[f"blocks.{i}.attn.qkv.weight"]
        for group, start in enumerate((0, 2 * D)):  # q and v
            for row in range(D):
                B, A = layer.lora_B[group * D + row], layer.lora_A[2 * group : 2 * group + 2]
                w = weight[start + row] + model.method.alpha / 2 * (B @ A).detach()
                weight[start + row] = (
                    layer.magnitude[group * D + row].detach() * w / w.square().sum().sqrt()
                )
    assert_same(model, images, naive_vit(state, images))


def test_dora_equals_peft() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Linear(7, 5).requires_grad_(False)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"], use_dora=True)
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(base)), config)
    layer, ours = theirs.base_model.model[0], DoRALinear(base, rank=3, scale=2.0)
    m = layer.lora_magnitude_vector["default"].weight
    pairs = [
        (ours.lora_A, layer.lora_A["default"].weight),
        (ours.lora_B, layer.lora_B["default"].weight),
        (ours.magnitude, m),
    ]
    torch.testing.assert_close(ours.magnitude.detach(), m.detach())  # the same start
    with torch.no_grad():
        for mine, other in pairs:
            mine += 0.5 * torch.randn_like(mine)
            other.copy_(mine)
    same_outputs_and_gradients(ours, theirs, pairs)


def test_dora_without_a_bias() -> None:
    base = nn.Linear(7, 6, bias=False).requires_grad_(False)
    layer, x = DoRALinear(base, rank=2, scale=1.0, groups=(False, True)), torch.randn(3, 7)
    torch.testing.assert_close(layer(x), base(x))


# DyLoRA
# -------------------------------------------------------------------------------------------------
RANKS = 3


def dylora_features(model: Any, images: Tensor, b: int) -> Tensor:
    """The ViT with the first b ranks of q and v added to its weights; the gradient reaches the
    factors."""
    state = make_tiny().double().state_dict()
    for i, block in enumerate(model.backbone.blocks):
        weight, layer = state[f"blocks.{i}.attn.qkv.weight"], block.attn.qkv
        q, v = (
            sum(layer.lora_B[k][g * D : (g + 1) * D] @ layer.lora_A[k][g : g + 1] for k in range(b))
            for g in range(2)
        )
        state[f"blocks.{i}.attn.qkv.weight"] = weight + model.method.alpha / b * torch.cat(
            [q, torch.zeros_like(q), v]
        )
    return naive_vit(state, images)


def ranks_with_gradient(model: Any) -> list[int]:
    """The ranks that have one in all layers; raises where layers disagree."""
    layers = [block.attn.qkv for block in model.backbone.blocks]
    found = {
        tuple(k for k, p in enumerate(ps) if p.grad is not None)
        for layer in layers
        for ps in (layer.lora_A, layer.lora_B)
    }
    (ranks,) = found
    return list(ranks)


@pytest.mark.parametrize("frozen", [True, False])
def test_dylora_trains_one_truncation_in_each_step(frozen: bool) -> None:
    model, (images, labels) = (
        moved(make_tiny(), "dylora", rank=RANKS, frozen=frozen),
        double_batch(),
    )
    torch.manual_seed(0)
    seen = set()
    for _ in range(12):
        model.zero_grad()
        loss = model.method.backward(model, images, labels)
        ranks = ranks_with_gradient(model)
        b = ranks[-1] + 1
        seen.add(b)
        assert ranks == ([b - 1] if frozen else list(range(b)))
        expected = F.cross_entropy(
            dylora_features(model, images, b) @ model.head.weight.T + model.head.bias, labels
        )
        torch.testing.assert_close(loss, expected, atol=1e-10, rtol=1e-10)
        parts = [
            p
            for block in model.backbone.blocks
            for ps in (block.attn.qkv.lora_A, block.attn.qkv.lora_B)
            for p in list(ps)[:b]
        ]
        for p, gradient in zip(parts, torch.autograd.grad(expected, parts), strict=True):
            assert p.grad is None or torch.allclose(p.grad, gradient, atol=1e-10)
        torch.testing.assert_close(
            model.features(images), dylora_features(model, images, RANKS)
        )  # outside of a step all ranks work
    assert seen == {1, 2, 3}


def test_dylora_draws_every_rank_as_often() -> None:
    model, (images, labels) = moved(make_tiny(depth=1), "dylora", rank=RANKS), double_batch(1)
    torch.manual_seed(0)
    counts = [0] * RANKS
    for _ in range(150):
        model.zero_grad()
        model.method.backward(model, images, labels)
        counts[ranks_with_gradient(model)[-1]] += 1
    assert all(30 <= count <= 70 for count in counts), counts  # 50 with a standard deviation of 6


def test_dylora_leaves_other_ranks_alone_whatever_the_optimiser_remembers() -> None:
    model, (images, labels) = moved(make_tiny(), "dylora", rank=RANKS), double_batch()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1
    )
    torch.manual_seed(0)
    for _ in range(12):
        before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
        optimizer.zero_grad()
        model.method.backward(model, images, labels)
        optimizer.step()
        moved_ranks = {
            int(name.rsplit(".", 1)[1])
            for name, p in model.backbone.named_parameters()
            if not torch.equal(p, before[name])
        }
        assert moved_ranks == set(ranks_with_gradient(model))
        assert len(moved_ranks) == 1


@pytest.mark.parametrize("b", [1, 2, 3])
def test_dylora_cut_to_its_first_ranks(b: int, tmp_path: Path) -> None:
    model, (images, _) = moved(make_tiny(), "dylora", rank=RANKS), double_batch()
    out = model(images)
    cut = truncate(model, b)
    assert_same(cut, images, dylora_features(model, images, b))
    single = copy.deepcopy(cut).float()
    torch.testing.assert_close(
        vt.merge(single)(images.float()), single(images.float()), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(truncate(truncate(model, max(b, 2)), b)(images), cut(images))
    fresh = vt.tune(make_tiny().double(), "dylora", CLASSES, seed=9, rank=b)
    cut.fingerprint = fresh.fingerprint  # of the float64 backbone
    vt.save_delta(cut, tmp_path / "cut.safetensors")
    assert torch.equal(vt.load_delta(fresh, tmp_path / "cut.safetensors")(images), cut(images))
    assert torch.equal(model(images), out)
    assert model.method.rank == RANKS


def test_dylora_resumes_exactly_with_ranks_that_never_trained(tmp_path: Path) -> None:
    images, labels = batch(6)
    data = torch.utils.data.TensorDataset(images, labels)

    def run(stop: bool) -> Tensor:
        model = vt.tune(make_tiny(), "dylora", CLASSES, rank=8)
        arguments: dict[str, Any] = {"epochs": 3, "batch_size": 6, "progress": False}
        if stop:
            with pytest.raises(KeyboardInterrupt):
                vt.fit(
                    model,
                    data,
                    augment=interrupt_at(2),
                    checkpoint=tmp_path / "run.safetensors",
                    **arguments,
                )
        vt.fit(
            model,
            data,
            augment=lambda x: x,
            checkpoint=tmp_path / "run.safetensors" if stop else None,
            **arguments,
        )
        return model(images)

    assert torch.equal(run(False), run(True))


def interrupt_at(step: int) -> Any:
    calls = iter(range(step))

    def augment(images: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return images

    return augment


def test_dylora_runs_compiled_at_any_rank() -> None:
    model, (images, labels) = moved(make_tiny(depth=1), "dylora", rank=2).float(), batch()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for seed in range(4):
        torch.manual_seed(seed)
        model.zero_grad()
        expected = model.method.backward(model, images, labels)
        ranks = ranks_with_gradient(model)
        torch.manual_seed(seed)
        model.zero_grad()
        torch.testing.assert_close(model.method.backward(compiled, images, labels), expected)
        assert ranks_with_gradient(model) == ranks


def test_dylora_restores_its_rank_after_a_failed_step() -> None:
    model, (images, labels) = vt.tune(make_tiny(), "dylora", CLASSES, rank=8), batch()
    with pytest.raises(vt.VTError):
        model.method.loss(model, images[:, :1], labels)
    assert {(m.active, m.frozen) for m in model.modules() if isinstance(m, DyLoRALinear)} == {
        (8, False)
    }


def test_truncate_says_what_it_needs() -> None:
    with pytest.raises(vt.VTError, match="expected a rank from 1 to 3, found 4"):
        truncate(vt.tune(make_tiny(), "dylora", CLASSES, rank=RANKS), 4)
    with pytest.raises(vt.VTError, match="expected a model of dylora, found parameter/weight/lora"):
        truncate(vt.tune(make_tiny(), "lora", CLASSES), 1)
