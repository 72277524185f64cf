"""The bias part of parameter tuning beyond the common suite: subsets, formulas by hand, clipping
and noise, the privacy accountant."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import vtlite as vt
from tests.backbones.test_families import MAKERS, shaken
from tests.conftest import make_tiny
from tests.methods.checks import batch
from tests.methods.test_other_backbones import BACKBONES
from tests.methods.test_references import added, assert_same, example, naive_vit
from vtlite.accounting import activation_memory
from vtlite.methods.parameter.bias.accountant import epsilon, noise_multiplier_for

D = 24  # the width of make_tiny


# BitFit
# -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("subset", "moving"),
    [
        (("query", "fc1"), {"attn.qkv.bias": range(D), "mlp.fc1.bias": range(4 * D)}),
        (
            ("value", "query", "norm2"),
            {"attn.qkv.bias": [*range(D), *range(2 * D, 3 * D)], "norm2.bias": range(D)},
        ),
        (("qkv", "key"), {"attn.qkv.bias": range(3 * D)}),
        (
            ("proj", "fc2", "norm1"),
            {"attn.proj.bias": range(D), "mlp.fc2.bias": range(D), "norm1.bias": range(D)},
        ),
    ],
)
def test_a_subset_moves_these_biases_and_no_other(
    subset: tuple[str, ...], moving: dict[str, Any]
) -> None:
    backbone = make_tiny()
    model = vt.tune(backbone, "bitfit", 3, subset=subset)
    with torch.no_grad():
        for p in model.parameters():
            p += p.requires_grad * 1.0
    images = batch()[0].double()
    merged: Any = vt.merge(model.double())
    assert_same(model, images, naive_vit(merged.state_dict(), images))
    expected = {f"blocks.{i}.{name}": value for i in range(2) for name, value in moving.items()}
    start = backbone.double().state_dict()
    for name, value in merged.state_dict().items():
        if not name.startswith("head."):
            moved = (value - start[name]).flatten().round().nonzero().flatten().tolist()
            assert moved == list(expected.get(name, [])), name


def test_the_key_bias_trains_in_name_only() -> None:
    images, labels = batch()
    model = vt.tune(make_tiny(), "bitfit", 3, subset=("query", "key", "value"))
    model.method.backward(model, images, labels)
    grads = {name: p.grad for name, p in model.backbone.named_parameters() if p.grad is not None}
    for block in range(2):
        q, k, v = (grads[f"blocks.{block}.attn.qkv.parts.{i}"].abs().max() for i in range(3))
        assert k < 1e-6 < 1e-5 < min(q, v)


def test_a_subset_names_layers_that_have_a_bias() -> None:
    with pytest.raises(
        vt.VTError, match=r"unknown layer of bitfit's subset 'querry': did you mean 'query'"
    ):
        vt.tune(make_tiny(), "bitfit", 3, subset=("querry",))
    with pytest.raises(
        vt.VTError, match=r"unknown .* 'query'"
    ):  # fused or not, there is no such bias
        vt.tune(make_tiny(qkv_bias=False), "bitfit", 3, subset=("query",))
    with pytest.raises(vt.VTError, match="expected subset to be a tuple, each of it a text"):
        vt.tune(make_tiny(), "bitfit", 3, subset="query")
    resnet = vt.tune(shaken(MAKERS["resnet"]()), "bitfit", 3, subset=("bn1",)).backbone
    assert {name.split(".")[-2] for name, p in resnet.named_parameters() if p.requires_grad} == {
        "bn1"
    }
    assert not resnet.bn1.bias.requires_grad  # the stem's is in no stage


# AdapterBias
# -------------------------------------------------------------------------------------------------
def test_adapterbias_adds_a_vector_by_as_much_as_each_token_asks_for() -> None:
    model, state, images = example("adapterbias")
    w, c, v = (added(model, suffix) for suffix in ("alpha.weight", "alpha.bias", "vector"))
    hidden: dict[str, Tensor] = {}

    def shifted(name: str, x: Tensor) -> Tensor:
        block = name.split(".")[1] if name.startswith("blocks") else ""
        if name.endswith("fc1"):
            hidden[block] = F.gelu(x)
        if name.endswith("fc2"):
            weight = (hidden[block] * w[int(block)][0]).sum(-1) + c[int(block)]  # [B, N]
            return x + torch.stack([weight * entry for entry in v[int(block)]], -1)
        return x

    assert_same(model, images, naive_vit(state, images, shifted))


def test_adapterbias_can_train_the_norms_before_the_mlps() -> None:
    model = vt.tune(make_tiny(), "adapterbias", 3, norms=True)
    theirs = {
        name
        for name, p in model.backbone.named_parameters()
        if p.requires_grad and "fc2" not in name
    }
    assert theirs == {f"blocks.{i}.norm2.{what}" for i in range(2) for what in ("weight", "bias")}


# Side-tuning
# -------------------------------------------------------------------------------------------------
def test_side_tuning_blends_two_vits() -> None:
    model, state, images = example("side_tuning")
    side, a = model.backbone.side.state_dict(), model.backbone.alpha.item()
    weight = 1 / (1 + math.exp(-a))
    assert a != 0
    assert_same(
        model, images, weight * naive_vit(state, images) + (1 - weight) * naive_vit(side, images)
    )


@pytest.mark.parametrize(("depth", "kept"), [(1, [5]), (2, [2, 5]), (3, [1, 3, 5])])
def test_the_side_network_starts_from_evenly_spaced_blocks_and_the_blend_from_one_half(
    depth: int, kept: list[int]
) -> None:
    backbone, images = make_tiny(depth=6), batch()[0]
    model = vt.tune(backbone, "side_tuning", 3, depth=depth)
    state = {
        key: value for key, value in backbone.state_dict().items() if not key.startswith("blocks.")
    }
    for new, old in enumerate(kept):
        state |= {
            f"blocks.{new}.{key}": value for key, value in backbone.blocks[old].state_dict().items()
        }
    expected = (naive_vit(backbone.state_dict(), images) + naive_vit(state, images)) / 2
    torch.testing.assert_close(model.features(images), expected, atol=1e-5, rtol=1e-5)


def test_the_base_stays_frozen_in_eval_mode_and_out_of_the_backward_pass() -> None:
    images, labels = batch()
    model = vt.tune(make_tiny(depth=6), "side_tuning", 3, depth=1)
    model.train()
    assert not model.backbone.base.training
    assert model.backbone.side.training
    model.method.backward(model, images, labels)
    assert all(p.grad is None for p in model.backbone.base.parameters())
    whole = vt.tune(make_tiny(depth=6), "full", 3)
    assert activation_memory(model, images, labels) < 0.4 * activation_memory(whole, images, labels)


def test_alexnet_as_the_side_network() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(3, 3, 64, 64), torch.arange(3)
    backbone = make_tiny(img_size=64)
    model = vt.tune(backbone, "side_tuning", 3, side="alexnet")
    x, layers = images, model.backbone.side[0]
    for i, (stride, padding) in {
        0: (4, 2),
        3: (1, 2),
        6: (1, 1),
        8: (1, 1),
        10: (1, 1),
    }.items():  # Krizhevsky 2014, by hand
        x = F.relu(F.conv2d(x, layers[i].weight, layers[i].bias, stride, padding))
        x = F.max_pool2d(x, 3, 2) if i in (0, 3, 10) else x
    x = x.expand(-1, -1, 6, 6).flatten(1)  # one position is left, and the pooling repeats it
    expected = (backbone(images) + x @ model.backbone.side[-1].weight.T) / 2
    torch.testing.assert_close(model.features(images), expected, atol=1e-5, rtol=1e-5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    vt.fit(model, TensorDataset(images, labels), epochs=2, lr=1e-3, progress=False)
    assert all(
        torch.equal(p, before[name]) != p.requires_grad for name, p in model.named_parameters()
    )


def test_alexnet_refuses_what_its_pooling_or_its_first_layer_cannot_take() -> None:
    for wrong in ({"img_size": 56}, {"img_size": 64, "in_chans": 1}):
        with pytest.raises(vt.VTError, match='expected side "blocks" for images'):
            vt.tune(make_tiny(**wrong), "side_tuning", 3, side="alexnet")
    with pytest.raises(vt.VTError, match="expected depth of at most 2"):
        vt.tune(make_tiny(), "side_tuning", 3, depth=3)


# DP-BiTFiT
# -------------------------------------------------------------------------------------------------
def private(backbone: nn.Module | None = None, **settings: Any) -> vt.Tuned:
    return vt.tune(backbone or make_tiny(), "dp_bitfit", 3, **{"noise_multiplier": 0.0, **settings})


def gradient(model: vt.Tuned, images: Tensor, labels: Tensor, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model.method.backward(model, images, labels)
    return {
        name.replace(".layer.", "."): p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def norm(tensors: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


def by_loop(backbone: nn.Module, images: Tensor, labels: Tensor, factor: Any) -> dict[str, Tensor]:
    """The clipped mean of gradients, one image at a time through plain BitFit."""
    model = vt.tune(backbone, "bitfit", 3)
    total: dict[str, Tensor] = {}
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        F.cross_entropy(model(image[None]), label[None]).backward()
        own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        c = factor(norm(own))
        total = {name: total.get(name, 0) + c * g / len(images) for name, g in own.items()}
    return total


@pytest.mark.parametrize("kind", ["tiny", "deit", "swin"])
@pytest.mark.parametrize("clipping", ["automatic", "abadi"])
def test_private_gradients_equal_a_loop_over_images(kind: str, clipping: str) -> None:
    backbone = make_tiny() if kind == "tiny" else shaken(BACKBONES[kind]())
    images, labels = batch()
    images = images * torch.tensor([0.1, 0.5, 1, 2, 4]).view(-1, 1, 1, 1)
    norms = sorted(
        norm(by_loop(backbone, images[i : i + 1], labels[i : i + 1], lambda n: 1)) for i in range(5)
    )
    R = sum(norms[1:3]) / 2  # so that "abadi" clips some images and leaves others
    factor = {"automatic": lambda n: R / (n + 0.01), "abadi": lambda n: min(1, R / n)}[clipping]
    expected = by_loop(backbone, images, labels, factor)
    found = gradient(private(backbone, clipping=clipping, max_norm=R), images, labels)
    assert found.keys() == expected.keys()
    for name, g in found.items():
        torch.testing.assert_close(
            g, expected[name], atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("clipping", ["automatic", "abadi"])
def test_one_image_moves_the_sum_by_at_most_max_norm(clipping: str) -> None:
    images, labels = batch(7)
    images[3] *= 1e3  # an outlier
    model = private(clipping=clipping, max_norm=0.3)
    whole = {name: 7 * g for name, g in gradient(model, images, labels).items()}
    moves = []
    for i in range(7):
        rest = [j for j in range(7) if j != i]
        without = gradient(model, images[rest], labels[rest])
        moves.append(norm({name: whole[name] - 6 * g for name, g in without.items()}))
    assert max(moves) <= 0.3 * (1 + 1e-4)
    assert max(moves) > 0.25  # the bound is nearly reached, so images do count


def test_noise_has_the_spread_that_the_formula_says_and_is_fresh_everywhere() -> None:
    images, labels = batch()
    plain = gradient(private(max_norm=0.5), images, labels)
    model = private(max_norm=0.5, noise_multiplier=3.0)
    draws = []
    for seed in range(20):
        noisy = gradient(model, images, labels, seed)
        draws.append(
            torch.cat([(noisy[name] - plain[name]).flatten() for name in plain]) * 5 / (3.0 * 0.5)
        )
    z = torch.stack(draws)  # [20, parameters], to be N(0, 1)
    n = z.numel()
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert torch.corrcoef(z).fill_diagonal_(0).abs().max() < 5 / math.sqrt(
        z.shape[1]
    )  # fresh at every step
    one = torch.stack([z[:, i : i + 3].flatten() for i in range(0, z.shape[1] - 3, 3)])
    assert one.unique(dim=0).shape == one.shape  # and no parameter gets another's


def test_the_same_seed_gives_the_same_noise() -> None:
    images, labels = batch()
    model = private(noise_multiplier=1.0)
    first, again, other = (gradient(model, images, labels, seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    data, runs = TensorDataset(images, labels), []
    for seed in (0, 0, 1):
        model = private(noise_multiplier=1.0)
        vt.fit(
            model, data, epochs=2, batch_size=5, seed=seed, progress=False
        )  # one batch holds all: only the noise differs
        runs.append(model(images))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_only_the_private_gradient_is_left() -> None:
    images, labels = batch()
    model = private(max_norm=0.2)
    clean = gradient(model, images, labels)
    for p in model.parameters():
        p.grad = (
            torch.full_like(p, 100.0) if p.requires_grad else None
        )  # as a plain backward pass may have left
    assert all(torch.equal(g, clean[name]) for name, g in gradient(model, images, labels).items())
    assert norm(clean) <= 0.2 * (1 + 1e-4)


def test_a_failed_step_leaves_no_shifts_behind() -> None:
    images, labels = batch()
    model = private()
    with pytest.raises(vt.VTError):
        model.method.backward(model, images[:, :1], labels)
    plain = vt.tune(make_tiny(), "bitfit", 3)
    torch.testing.assert_close(model(images[:2]), plain(images[:2]))


@pytest.mark.parametrize(
    "wrong", [{"noise_multiplier": -1.0}, {"max_norm": 0.0}, {"clipping": "global"}]
)
def test_dp_bitfit_refuses_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(vt.VTError, match=f"dp_bitfit: expected {next(iter(wrong))}"):
        private(**wrong)


# The accountant
# -------------------------------------------------------------------------------------------------
MNIST = {"sample_rate": 256 / 60000, "steps": 14_062, "delta": 1e-5}


def test_epsilon_of_the_usual_example() -> None:
    assert epsilon(1.1, **MNIST) == pytest.approx(2.597, abs=5e-4)


@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.1, 4.0, 30.0])
@pytest.mark.parametrize("q", [1e-3, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 1000])
def test_epsilon_agrees_with_opacus(sigma: float, q: float, steps: int) -> None:
    rdp = pytest.importorskip("opacus.accountants.analysis.rdp")
    orders = list(range(2, 257))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the best order is the last of the list
        spent = rdp.compute_rdp(q=q, noise_multiplier=sigma, steps=steps, orders=orders)
        expected, _ = rdp.get_privacy_spent(orders=orders, rdp=spent, delta=1e-5)
    assert epsilon(sigma, q, steps, 1e-5) == pytest.approx(max(0, float(expected)), rel=1e-6)


def test_epsilon_by_plain_sums() -> None:
    sigma, q, steps, delta = 2.0, 0.3, 10, 1e-3
    best = math.inf
    for a in range(2, 30):  # larger orders overflow here, and are not the best ones
        total = sum(
            math.comb(a, k) * (1 - q) ** (a - k) * q**k * math.exp((k * k - k) / (2 * sigma**2))
            for k in range(a + 1)
        )
        best = min(
            best,
            steps * math.log(total) / (a - 1)
            + math.log((a - 1) / a)
            - (math.log(delta) + math.log(a)) / (a - 1),
        )
    assert epsilon(sigma, q, steps, delta) == pytest.approx(best, rel=1e-9)


def test_privacy_costs_what_it_should() -> None:
    base: dict[str, Any] = {
        "noise_multiplier": 1.0,
        "sample_rate": 0.01,
        "steps": 500,
        "delta": 1e-5,
    }
    for name, values, sign in (
        ("noise_multiplier", (0.6, 1.0, 2.0, 8.0), -1),
        ("sample_rate", (0.001, 0.01, 0.1, 1.0), 1),
        ("steps", (1, 10, 500, 10_000), 1),
        ("delta", (1e-8, 1e-6, 1e-4, 1e-2), -1),
    ):
        costs = [epsilon(**{**base, name: value}) for value in values]
        assert costs == sorted(costs, reverse=sign < 0)
        assert len(set(costs)) == 4
    assert epsilon(**{**base, "noise_multiplier": 0}) == math.inf


@pytest.mark.parametrize("target", [0.5, 2.0, 8.0, 200.0])
def test_the_noise_for_an_epsilon_is_the_least_that_keeps_it(target: float) -> None:
    sigma = noise_multiplier_for(target, **MNIST)
    assert epsilon(sigma, **MNIST) <= target
    assert epsilon(sigma * (1 - 1e-5), **MNIST) > target


def test_the_accountant_refuses_what_means_nothing() -> None:
    for name, value in (
        ("noise_multiplier", -1),
        ("sample_rate", 0),
        ("sample_rate", 1.5),
        ("steps", 0),
        ("delta", 0),
        ("delta", 1),
    ):
        with pytest.raises(vt.VTError, match=f"expected {name}"):
            epsilon(
                **{
                    "noise_multiplier": 1.0,
                    "sample_rate": 0.01,
                    "steps": 5,
                    "delta": 1e-5,
                    name: value,
                }
            )
    for target, message in (
        (0.0, "expected a target above 0"),
        (math.inf, "expected a target"),
        (1e-3, "that noise can reach"),
    ):
        with pytest.raises(vt.VTError, match=message):
            noise_multiplier_for(target, **MNIST)
