"""KronA, KAdaptation, PHM adapters and Compacter: against a ViT in plain tensor algebra with
torch.kron, and against peft."""

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
from tests.methods.checks import CLASSES, batch, step, trained, tuned
from tests.methods.test_references import added, assert_same, naive_vit
from vtlite.methods.parameter.weight.krona import KronLinear, near_square


def moved(name: str, **settings: Any) -> tuple[vt.Tuned, dict[str, Tensor], Tensor]:
    """As `example`, for other settings."""
    model = vt.tune(make_tiny(), name, CLASSES, **settings).double()
    g = torch.Generator().manual_seed(2)
    for p in model.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=g) if p.requires_grad else 0
    return model.eval(), make_tiny().double().state_dict(), batch()[0].double()


def kron_sum(A: Tensor, B: Tensor) -> Tensor:
    return sum(
        (torch.kron(A_i, B_i) for A_i, B_i in zip(A, B, strict=True)), torch.zeros(()).double()
    )


# KronA
# -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("targets", ["qv", "k"])
def test_krona_is_a_vit_with_a_kronecker_product_added_to_each_projection(targets: str) -> None:
    model, state, images = moved("krona", scale=0.7, targets=targets)
    for i, (A, B) in enumerate(zip(added(model, "kron_A"), added(model, "kron_B"), strict=True)):
        for g, letter in enumerate(targets):
            rows = slice(24 * "qkv".index(letter), 24 * "qkv".index(letter) + 24)
            state[f"blocks.{i}.attn.qkv.weight"][rows] += 0.7 * torch.kron(A[g], B[g])
    assert_same(model, images, naive_vit(state, images))


@pytest.mark.parametrize("place", ["block", "residual"])
def test_krona_beside_the_mlp_adds_a_product_and_a_share_of_its_input(place: str) -> None:
    model, state, images = moved("krona", scale=0.7, place=place)
    share = added(model, "share") if place == "residual" else [torch.tensor(0.0)] * 2
    products = [
        torch.kron(A[0], B[0])
        for A, B in zip(added(model, "kron_A"), added(model, "kron_B"), strict=True)
    ]

    def beside(i: int, x: Tensor) -> Tensor:
        x = F.layer_norm(
            x, (24,), state[f"blocks.{i}.norm2.weight"], state[f"blocks.{i}.norm2.bias"], 1e-6
        )
        return 0.7 * x @ products[i].T + share[i] * x

    assert_same(model, images, naive_vit(state, images, beside=beside))


@pytest.mark.parametrize("place", ["block", "residual"])
def test_krona_beside_the_mlp_starts_as_the_backbone_trains_and_does_not_merge(
    place: str, tmp_path: Path
) -> None:
    images, labels = batch()
    model = vt.tune(make_tiny(), "krona", CLASSES, place=place)
    torch.testing.assert_close(model.features(images), make_tiny()(images), atol=1e-6, rtol=0)
    with pytest.raises(vt.VTError, match="krona cannot be merged: it runs beside the MLP"):
        vt.merge(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    start = {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}
    for _ in range(2):
        step(model, optimizer, images, labels)
    assert not any(torch.equal(value, model.get_parameter(key)) for key, value in start.items())
    vt.save_delta(model, tmp_path / "d.safetensors")
    fresh = vt.load_delta(
        vt.tune(make_tiny(), "krona", CLASSES, seed=5, place=place), tmp_path / "d.safetensors"
    )
    assert torch.equal(fresh(images), model(images))
    vt.merge(vt.tune(make_tiny(), "krona", CLASSES))  # another place does not matter to the default


@pytest.mark.parametrize(
    ("width", "pair"), [(768, (24, 32)), (96, (8, 12)), (36, (6, 6)), (7, (1, 7))]
)
def test_krona_factors_are_as_square_as_the_width_allows(width: int, pair: tuple[int, int]) -> None:
    assert near_square(width) == pair


def test_krona_equals_peft_lokr() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Linear(24, 40)
    theirs = peft.get_peft_model(
        nn.Sequential(nn.Linear(24, 40)), peft.LoKrConfig(r=16, alpha=32, target_modules=["0"])
    )
    layer = theirs.base_model.model[0]
    layer.base_layer.load_state_dict(base.state_dict())
    ours = KronLinear(base.requires_grad_(False), scale=2.0)
    with torch.no_grad():
        ours.kron_B.normal_()
        layer.lokr_w1["default"].copy_(ours.kron_A[0])
        layer.lokr_w2["default"].copy_(ours.kron_B[0])
    x = torch.randn(4, 2, 24)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    for output in (ours(x), theirs(x)):
        output.square().mean().backward()
    assert ours.kron_A.grad is not None
    assert ours.kron_B.grad is not None
    torch.testing.assert_close(
        ours.kron_A.grad[0], layer.lokr_w1["default"].grad, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        ours.kron_B.grad[0], layer.lokr_w2["default"].grad, atol=1e-5, rtol=1e-5
    )


# KAdaptation
# -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rank", [1, 2])
def test_kadaptation_adds_a_sum_of_kronecker_products_and_a_bias(rank: int) -> None:
    model, state, images = moved("kadaptation", n=4, rank=rank, scale=0.7)
    (left,), (right,) = added(model, "left"), added(model, "right")  # one for all layers
    for i, (u, v, c) in enumerate(
        zip(added(model, ".u"), added(model, ".v"), added(model, "shift"), strict=True)
    ):
        for g, start in enumerate((0, 48)):
            delta = kron_sum(left[g][:, :, None] @ right[g][:, None, :], u[g] @ v[g])
            state[f"blocks.{i}.attn.qkv.weight"][start : start + 24] += 0.7 * delta
            state[f"blocks.{i}.attn.qkv.bias"][start : start + 24] += c
    assert_same(model, images, naive_vit(state, images))


def test_kadaptation_merges_into_a_layer_without_bias() -> None:
    images, _ = batch()
    model = vt.tune(make_tiny(qkv_bias=False), "kadaptation", CLASSES, n=4)
    for p in model.parameters():
        p.data += 0.05 if p.requires_grad else 0
    torch.testing.assert_close(vt.merge(model)(images), model(images), atol=1e-5, rtol=1e-5)


def test_kadaptation_refuses_a_number_that_does_not_divide_the_width() -> None:
    with pytest.raises(
        vt.VTError, match="expected n to divide the width 24, found n = 32; 8 would do"
    ):
        vt.tune(make_tiny(), "kadaptation", CLASSES)
    vt.tune(make_tiny(), "kadaptation", CLASSES, n=8)


# PHM adapter and Compacter
# -------------------------------------------------------------------------------------------------
def adapters_by_torch_kron(model: vt.Tuned, state: dict[str, Tensor]) -> Any:
    """What each adapted layer does to its output, in the (in, out) order of the papers: y = x W
    with W = sum_i A_i^T (x) B_i^T."""
    modules = dict(model.backbone.named_modules())

    def phm(layer: Any, x: Tensor) -> Tensor:
        B = (
            layer.factors[0]
            if len(layer.factors) == 1
            else torch.einsum("ibr,irq->ibq", *layer.factors)
        )
        return x @ kron_sum(layer.rule.detach().mT, B.detach().mT) + layer.bias.detach()

    def op(name: str, x: Tensor) -> Tensor:
        if not hasattr(modules.get(name), "down"):
            return x
        hidden = phm(modules[name].down, x)
        return x + phm(modules[name].up, 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)))

    return op


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("phm_adapter", {}),
        ("compacter", {}),
        ("compacter", {"rank": 2, "bottleneck": 8}),
        ("compacter", {"n": 2}),
    ],
)
@pytest.mark.parametrize("after_mlp_only", [False, True])
def test_adapters_change_the_output_of_attention_and_mlp(
    name: str, settings: dict[str, Any], after_mlp_only: bool
) -> None:
    model, state, images = moved(name, after_mlp_only=after_mlp_only, **settings)
    places = [key for key, module in model.backbone.named_modules() if hasattr(module, "down")]
    layers = ("mlp.fc2",) if after_mlp_only else ("attn.proj", "mlp.fc2")
    assert places == [f"blocks.{i}.{layer}" for i in range(2) for layer in layers]
    with torch.no_grad():
        for factor in [p for key, p in model.named_parameters() if key.endswith("factors.0")]:
            factor.mul_(3)  # large enough to matter
        assert_same(model, images, naive_vit(state, images, adapters_by_torch_kron(model, state)))
        assert (naive_vit(state, images) - model.features(images)).abs().max() > 1e-2


def test_the_gain_of_the_residual_branch_comes_after_the_adapter() -> None:
    images, _ = batch()
    backbone = make_tiny(init_values=0.5)
    for key, p in backbone.named_parameters():
        if key.endswith("gamma"):
            p.data.zero_()
    model = trained("phm_adapter", backbone)
    torch.testing.assert_close(
        model.features(images), backbone(images)
    )  # a branch of gain 0 is closed, adapter included


def test_compacter_starts_within_rounding_of_the_backbone_and_leaves_it() -> None:
    """A rule of spread 1e-4 is no dead start."""
    images, labels = batch(9)
    exact = images.double()
    assert (
        tuned("compacter").double().features(exact) - make_tiny().double()(exact)
    ).abs().max() < 1e-6
    model = tuned("compacter")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(25):
        step(model, optimizer, images, labels)
    (rule,) = added(model, ".rule")
    assert rule.abs().mean() > 0.01  # a hundred times where it began
    assert (model.features(images) - make_tiny()(images)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "settings", "shared"),
    [("compacter", {}, ["rule"]), ("kadaptation", {"n": 4}, ["left", "right"])],
)
def test_what_is_shared_is_one_tensor_saved_once_and_stays_tied(
    name: str, settings: dict[str, Any], shared: list[str], tmp_path: Path
) -> None:
    from safetensors import safe_open

    def tensors(model: nn.Module, last: str) -> list[Tensor]:
        return [
            p
            for key, p in model.named_parameters(remove_duplicate=False)
            if key.endswith(f".{last}")
        ]

    model = vt.tune(make_tiny(), name, CLASSES, **settings)
    for p in model.parameters():
        p.data += 0.05 if p.requires_grad else 0
    vt.save_delta(model, tmp_path / "d.safetensors")
    with safe_open(tmp_path / "d.safetensors", "pt") as file:
        saved = list(file.keys())
    fresh = vt.load_delta(
        vt.tune(make_tiny(), name, CLASSES, seed=5, **settings), tmp_path / "d.safetensors"
    )
    for last in shared:
        assert sum(key.endswith(f".{last}") for key in saved) == 1
        for one in (model, fresh, copy.deepcopy(model), model.double()):
            assert len(tensors(one, last)) == (
                8 if name == "compacter" else 2
            )  # two blocks, two adapters each, two projections each
            assert len({id(p) for p in tensors(one, last)}) == 1
        torch.testing.assert_close(tensors(fresh, last)[0].double(), tensors(model, last)[0])


def test_phm_rules_are_not_shared() -> None:
    assert len(added(tuned("phm_adapter"), ".rule")) == 8


@pytest.mark.parametrize("name", ["phm_adapter", "compacter"])
def test_adapters_refuse_sizes_that_do_not_divide_and_name_some_that_do(name: str) -> None:
    with pytest.raises(
        vt.VTError, match="expected bottleneck that is a multiple of n = 4, such as 8, found 10"
    ):
        vt.tune(make_tiny(), name, CLASSES, n=4, bottleneck=10)
    with pytest.raises(vt.VTError, match="such as 4, found 3"):
        vt.tune(make_tiny(), name, CLASSES, n=4, bottleneck=3)
    with pytest.raises(
        vt.VTError, match="expected n to divide the width 24, found n = 9; 3 would do"
    ):
        vt.tune(make_tiny(), name, CLASSES, n=9, bottleneck=18)
    vt.tune(make_tiny(), name, CLASSES, n=3, bottleneck=18)
    vt.tune(
        vt.create_backbone("vtlite-tiny"), name, CLASSES
    )  # the defaults fit the embedded backbone


def test_kadaptation_fits_the_embedded_backbone() -> None:
    assert isinstance(vt.tune(vt.create_backbone("vtlite-tiny"), "kadaptation", CLASSES), vt.Tuned)
