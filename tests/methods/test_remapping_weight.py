"""Networks that grow: the function stays, exactly, and the copies part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import vtlite as vt
from tests.conftest import make_tiny, make_tiny_resnet
from tests.methods.checks import CLASSES, batch
from vtlite.methods.remapping.weight.controller import Controller, search, steep
from vtlite.methods.remapping.weight.growing import (
    Deeper,
    Inner,
    copies,
    narrow,
    see_data,
    widen,
)
from vtlite.methods.remapping.weight.steps import (
    ADDED,
    BESIDE,
    DEEPER,
    NAMES,
    SHORTER,
    WIDER,
    Remapped,
    blocks_of,
    numbers,
    places,
    take_step,
)
from vtlite.task import Classification

EMBEDDED = ("vtlite-tiny", "vtlite-resnet")


def grown(backbone: Any, name: str, **settings: Any) -> vt.Tuned:
    return vt.tune(backbone, name, CLASSES, **settings)


@pytest.mark.parametrize("weights", EMBEDDED)
@pytest.mark.parametrize("name", ["net2wider", "net2deeper"])
def test_an_embedded_network_grows_and_computes_the_same(weights: str, name: str) -> None:
    backbone = vt.load_backbone(weights)
    images = torch.randn(4, 3, 32, 32)
    model = grown(backbone, name)
    assert sum(p.numel() for p in model.backbone.parameters()) > 1.1 * sum(
        p.numel() for p in backbone.parameters()
    )
    with torch.no_grad():
        found, before = model.eval().features(images), vt.load_backbone(weights)(images)
    assert (found - before).abs().max() < 1e-5


@pytest.mark.parametrize("make", [make_tiny, make_tiny_resnet])
@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0, 5.0])
def test_wider_is_exact_in_double_precision(make: Any, factor: float) -> None:
    backbone, images = make().double(), batch()[0].double()
    model = grown(backbone, "net2wider", factor=factor).eval()
    assert (model.features(images) - backbone(images)).abs().max() < 1e-12


def test_wider_in_training_too_where_the_batch_norm_uses_the_batch() -> None:
    backbone, images = make_tiny_resnet().double(), batch()[0].double()
    model = grown(backbone, "net2wider").train()  # a copy's statistics are those of its source
    assert (model.features(images) - backbone.train()(images)).abs().max() < 1e-12


def test_a_wider_layer_by_hand() -> None:
    """Undivided outgoing weights would give h0 three times and h1 twice."""
    mlp = make_tiny().blocks[0].mlp
    mlp.fc1, mlp.fc2 = nn.Linear(2, 2), nn.Linear(2, 1)
    x = torch.tensor([[0.3, -0.7]])
    h, w = mlp.act(mlp.fc1(x))[0], mlp.fc2.weight[0].clone()
    by_hand = h[0] * w[0] + h[1] * w[1] + mlp.fc2.bias
    first = mlp.fc1.weight.clone()
    inner = Inner(mlp, "fc1", "", "fc2")
    source, share = torch.tensor([0, 1, 0, 0, 1]), torch.tensor([0.5, 0.9, 0.2, 0.3, 0.1])
    widen(inner, source, share)
    assert torch.equal(mlp.fc1.weight, first[source])
    assert torch.allclose(mlp.fc2.weight[0], w[source] * share)
    assert torch.allclose(mlp.fc2(mlp.act(mlp.fc1(x)))[0], by_hand)
    assert (mlp.fc1.out_features, mlp.fc2.in_features) == (5, 5)


def test_old_units_stay_first_and_shares_of_a_unit_have_the_sum_one() -> None:
    source, share = copies(6, 15, spread=0.5)
    assert source[:6].tolist() == list(range(6))
    assert set(source[6:].tolist()) <= set(range(6))
    total = torch.zeros(6, dtype=share.dtype).index_add_(0, source, share)
    torch.testing.assert_close(total, torch.ones_like(total))
    source, even = copies(6, 15)
    assert torch.equal(even, 1 / torch.bincount(source).double()[source])  # the paper's


def after_training(spread: float) -> Tensor:
    backbone = make_tiny()
    torch.manual_seed(3)
    model = grown(backbone, "net2wider", spread=spread)
    images, labels = batch()
    vt.fit(model, TensorDataset(images, labels), epochs=3, lr=1e-2, progress=False)
    weight = model.backbone.blocks[0].mlp.fc1.weight
    apart = (weight[:, None] - weight[None]).abs().amax(2)
    return apart[torch.triu(torch.ones(len(weight), len(weight)), 1) > 0]


def test_copies_part_where_their_shares_differ_and_never_where_they_do_not() -> None:
    assert after_training(0.0).min() < 1e-7  # the same gradient for ever
    assert after_training(0.5).min() > 1e-5


def test_a_deeper_residual_network_is_the_same_before_and_after_it_saw_images() -> None:
    backbone, images = make_tiny_resnet().double(), batch()[0].double()
    model = grown(backbone, "net2deeper", every=1).eval()
    before = backbone(images)
    assert (model.features(images) - before).abs().max() < 1e-12
    deeper = [m for m in model.modules() if isinstance(m, Deeper)]
    assert len(deeper) == 4
    see_data(model, deeper, [images[:2], images[2:]])
    assert (model.features(images) - before).abs().max() < 1e-12
    assert not any(torch.equal(layer[1].bias, torch.zeros_like(layer[1].bias)) for layer in deeper)


def test_its_norm_is_the_identity_by_the_batch_too_once_it_saw_the_images() -> None:
    """Copying the statistics of the norm before it, as ports do, would change what passes."""
    backbone, images = make_tiny_resnet().double().eval(), batch()[0].double()
    model = grown(backbone, "net2deeper", every=1).eval()
    deeper = [m for m in model.modules() if isinstance(m, Deeper)]
    see_data(model, deeper, [images])
    for layer in deeper:
        layer[1].train()  # statistics of the batch, which are those it has seen
    assert (model.features(images) - backbone(images)).abs().max() < 1e-6
    for layer in deeper:  # unseen, it would norm what passes
        layer.see(torch.zeros_like(layer[1].bias), torch.ones_like(layer[1].bias))
    assert (model.features(images) - backbone(images)).abs().max() > 1e-3


def test_fit_shows_the_images_first() -> None:
    model = grown(make_tiny_resnet(), "net2deeper", every=1)
    images, labels = batch()
    vt.fit(model, TensorDataset(images, labels), epochs=1, lr=1e-9, progress=False)
    (layer, *_) = [m for m in model.modules() if isinstance(m, Deeper)]
    assert layer[1].bias.abs().max() > 1e-3


def test_new_blocks_can_be_taken_out_again() -> None:
    backbone = make_tiny()
    model = grown(backbone, "block_expansion", every=1)
    images, labels = batch()
    vt.fit(model, TensorDataset(images, labels), epochs=2, lr=1e-2, progress=False)
    assert not torch.allclose(model.features(images), backbone(images))
    model.backbone.blocks = nn.Sequential(*[model.backbone.blocks[i] for i in (0, 2)])
    assert torch.allclose(model.features(images), backbone(images), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("net2wider", {"factor": 0.5}, "expected factor of at least 1, found 0.5"),
        ("net2wider", {"spread": 1.0}, r"expected spread in \[0, 1\), found 1"),
        ("net2deeper", {"every": 3}, "found none after every 3 of 2; give a smaller number"),
        ("block_expansion", {"every": 0}, "expected every an integer of at least 1"),
    ],
)
def test_settings_out_of_range(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(vt.VTError, match=sentence):
        grown(make_tiny(), name, **settings)


def test_gates_and_groups_are_not_widened() -> None:
    timm = pytest.importorskip("timm")
    resnext = timm.create_model("resnext50_32x4d", layers=(1, 1, 1, 1), num_classes=0)
    with pytest.raises(vt.VTError, match="expected blocks of two plain layers"):
        grown(resnext, "net2wider")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    gated = timm.create_model("vit_giant_patch14_reg4_dinov2", num_classes=0, **sizes)
    with pytest.raises(vt.VTError, match="expected blocks of two plain layers"):
        grown(gated, "net2wider")


# Searches
# -------------------------------------------------------------------------------------------------

SEARCHES: dict[str, dict[str, Any]] = {
    "nash": {"rounds": 2, "children": 2, "child_epochs": 1},
    "eas": {"episodes": 2, "children": 2, "start_epochs": 1},
    "path_level_eas": {"episodes": 2, "children": 2, "start_epochs": 1},
    "n2n": {"removals": 1, "shrinkages": 2, "children": 2, "teacher_epochs": 1},
}
MAKERS = {"ViT": make_tiny, "ResNet": lambda: make_tiny_resnet(depths=(2, 1, 1, 2))}


def images_of(count: int = 15) -> TensorDataset:
    images = torch.randn(count, 3, 32, 32)
    return TensorDataset(images, torch.arange(count) % CLASSES)


@pytest.mark.parametrize("kind", [WIDER, DEEPER, ADDED, BESIDE])
@pytest.mark.parametrize("make", MAKERS)
def test_every_growing_step_at_every_place_keeps_the_function(make: str, kind: int) -> None:
    images = batch()[0].double()
    before = MAKERS[make]().double()(images)
    for place in range(len(places(MAKERS[make](), kind))):
        backbone = MAKERS[make]().double()
        count = numbers(backbone)
        take_step(backbone, kind, place)
        assert numbers(backbone) > count
        assert (backbone(images) - before).abs().max() < 1e-12, (NAMES[kind], place)


@pytest.mark.parametrize("make", MAKERS)
def test_ten_steps_on_top_of_each_other_do_too(make: str) -> None:
    backbone, images = MAKERS[make]().double(), batch()[0].double()
    before = backbone(images)
    for i in range(10):
        kind = (WIDER, DEEPER, ADDED, WIDER, BESIDE)[i % 5]
        if count := len(places(backbone, kind)):
            take_step(backbone, kind, i % count)
    assert (backbone(images) - before).abs().max() < 1e-11


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kind", [ADDED, BESIDE])
def test_the_second_branch_learns_what_the_first_does_not(make: str, kind: int) -> None:
    """Two even copies would have the same gradient for ever."""
    backbone, images = MAKERS[make](), batch()[0]
    take_step(backbone.requires_grad_(True), kind, 1)
    backbone(images).sin().sum().backward()
    (branches,) = [m for m in backbone.modules() if type(m).__name__ == "Branches"]
    a, b = (dict(branch.named_parameters()) for branch in branches.branches)
    shapes = [(a[name].shape, b[name].shape) for name in a]
    assert any(one != other for one, other in shapes)
    new = b["weight"].grad if "weight" in b else b["fc1.weight"].grad[a["fc1.weight"].shape[0] :]
    assert new.abs().max() > 0


def test_the_units_that_stay_are_those_of_the_largest_weights() -> None:
    mlp = make_tiny().blocks[0].mlp
    inner = Inner(mlp, "fc1", "", "fc2")
    mlp.fc1.weight.data[:48] *= 0.01  # a unit counts by what makes it and by what reads it
    mlp.fc2.weight.data[:, 48:72] *= 0.001
    kept = mlp.fc1.weight[72:].clone()
    narrow(inner, 24)
    assert torch.equal(mlp.fc1.weight, kept)
    assert mlp.fc2.weight.shape == (24, 24)


def test_what_can_be_left_out_leaves_shapes_as_they_are() -> None:
    resnet = MAKERS["ResNet"]()
    assert len(places(resnet, SHORTER)) == 3  # layer1 has two without a shortcut, layer4 one
    for place in range(3):
        backbone = MAKERS["ResNet"]()
        take_step(backbone, SHORTER, place)
        assert backbone(batch()[0]).shape == (5, 64)
    vit = make_tiny()
    take_step(vit, SHORTER, 0)
    assert places(vit, SHORTER) == []  # one block stays


def test_places_are_in_blocks() -> None:
    backbone = MAKERS["ResNet"]()
    assert blocks_of(backbone, WIDER) == blocks_of(backbone, DEEPER) == list(range(6))
    take_step(backbone, DEEPER, 2)
    assert blocks_of(backbone, DEEPER) == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_changes_the_network_and_its_delta_says_how(
    name: str, make: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, data = MAKERS[make](), images_of()

    def score(model: vt.Tuned, data: Any) -> dict[str, float]:
        return {"accuracy": numbers(model) / 1e8}  # of two that are level NASH keeps the parent

    monkeypatch.setattr("vtlite.methods.remapping.weight.steps.evaluate", score)
    found = set()
    for seed in range(4):  # a policy may take no step
        model = grown(backbone, name, **SEARCHES[name])
        vt.fit(model, data, epochs=1, lr=1e-3, seed=seed, progress=False)
        found |= set(model.network.told())
    assert found
    vt.save_delta(model, tmp_path / "d.safetensors")
    loaded = vt.load_delta(backbone, tmp_path / "d.safetensors")
    images = batch()[0]
    assert loaded.network.told() == model.network.told()
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("name", SEARCHES)
def test_the_same_seed_finds_the_same_network(name: str) -> None:
    data = images_of()
    models = [grown(make_tiny(), name, **SEARCHES[name]) for _ in range(2)]
    for model in models:
        vt.fit(model, data, epochs=1, lr=1e-3, seed=1, progress=False)
    a, b = (model.state_dict() for model in models)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_was_stopped_goes_on_to_the_same_end(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, images = images_of(), batch()[0]
    whole = grown(make_tiny(), name, **SEARCHES[name])
    vt.fit(whole, data, epochs=2, lr=1e-3, progress=False)
    backward, calls = type(whole.method).backward, []

    def stopping(self: Any, *args: Any) -> Tensor:
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return backward(self, *args)

    for stop in (2, 4):
        calls.clear()
        path = tmp_path / f"{stop}.pt"
        model = grown(make_tiny(), name, **SEARCHES[name])
        before = model(images)
        monkeypatch.setattr(type(whole.method), "backward", stopping)
        with pytest.raises(KeyboardInterrupt):
            vt.fit(model, data, epochs=2, lr=1e-3, progress=False, checkpoint=path)
        assert torch.equal(model(images), before)  # the model is as it was
        monkeypatch.setattr(type(whole.method), "backward", backward)
        vt.fit(model, data, epochs=2, lr=1e-3, progress=False, checkpoint=path)
        assert torch.equal(model(images), whole(images))


def test_the_policy_climbs_towards_what_is_rewarded() -> None:
    """With the sign or the average of the rewards wrong it would not."""
    torch.manual_seed(0)
    backbone = make_tiny()
    network = Remapped(backbone, nn.Identity(), Classification("x", ("a", "b")))
    controller = Controller(actions=2)

    def sample(policy: Controller) -> Any:
        choice = torch.distributions.Bernoulli(logits=policy(network)[0, 0])
        drawn = choice.sample()
        network.drawn = drawn  # type: ignore[assignment]
        child = Remapped(backbone, nn.Identity(), Classification("x", ("a", "b")))
        child.drawn = drawn  # type: ignore[assignment]
        return child, [choice.log_prob(drawn)], [choice.entropy()]

    first = float(torch.sigmoid(controller(network)[0, 0]))
    reward = lambda child, score: float(child.drawn)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        module = "vtlite.methods.remapping.weight.controller"
        patch.setattr(f"{module}.try_out", lambda m, net, *_: (Tried(net), 0.5))
        search(None, None, None, controller, sample, 60, 5, 1, reward)  # type: ignore[arg-type]
    assert float(torch.sigmoid(controller(network)[0, 0])) > max(0.8, first + 0.1)


class Tried:
    def __init__(self, network: Any) -> None:
        self.network = network


def test_the_last_points_count_most() -> None:
    assert steep(0.5) == pytest.approx(1)
    assert steep(0.95) - steep(0.9) > 5 * (steep(0.55) - steep(0.5))
    assert steep(1.0) < 100  # and not without end


def test_n2n_rewards_the_small_and_the_right() -> None:
    data = images_of()
    model = grown(make_tiny(), "n2n", **SEARCHES["n2n"])
    vt.fit(model, data, epochs=1, lr=1e-3, progress=False)
    assert numbers(model.backbone) <= numbers(make_tiny())
    # it repeats the tuned network's answers: labels count no more
    images, labels = batch()
    a, b = (model.method.loss(model, images, y) for y in (labels, labels.flip(0)))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("nash", {"children": 1}, "expected children an integer of at least 2"),
        ("nash", {"rounds": 0}, "expected rounds an integer of at least 1"),
        ("eas", {"episodes": 0}, "expected episodes an integer of at least 1"),
        ("eas", {"wider_steps": 0, "deeper_steps": 0}, "expected deeper_steps of at least 1"),
        ("path_level_eas", {"branchings": 0}, "expected branchings an integer of at least 1"),
        ("n2n", {"removals": 0, "shrinkages": 0}, "expected shrinkages of at least 1"),
    ],
)
def test_a_budget_of_zero(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(vt.VTError, match=sentence):
        grown(make_tiny(), name, **settings)


def test_too_few_images_to_compare_children_on() -> None:
    model = grown(make_tiny(), "nash")
    with pytest.raises(vt.VTError, match="at least 5 training images to compare candidates"):
        vt.fit(model, images_of(4), epochs=1, progress=False)


def test_a_delta_with_steps_that_the_backbone_cannot_take(tmp_path: Any) -> None:
    model = grown(make_tiny(depth=3), "nash", rounds=1, children=2, child_epochs=1)
    model.network.take(DEEPER, 2)
    vt.save_delta(model, tmp_path / "d.safetensors")
    other, images = grown(make_tiny(), "nash", rounds=1, children=2, child_epochs=1), batch()[0]
    other.fingerprint = model.fingerprint
    before = other(images)
    with pytest.raises(vt.VTError, match="steps that this backbone can take, found 1, 2"):
        vt.load_delta(other, tmp_path / "d.safetensors")
    assert torch.equal(other(images), before)


def test_nash_goes_on_where_every_block_of_a_resnet_is_deeper() -> None:
    """Whoever asks such a network for a width to grow finds none, which is no reason to stop."""
    model = grown(make_tiny_resnet(), "nash", changes=2)
    network = model.network
    while places(network.backbone, DEEPER):
        network.take(DEEPER, 0)
        if len(network.plan) > 30:
            break
    assert not places(network.backbone, WIDER)
    steps = len(network.plan)
    model.method.grow(network, limit=100 * numbers(network.backbone))
    assert len(network.plan) >= steps
