"""Cells: the mixture and what is found by hand, DARTS's gradient against the exact one, searches
that are killed and go on."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

import vtlite as vt
from tests.conftest import make_tiny_resnet
from tests.methods.checks import CLASSES, SMALL, batch, trained, tuned
from tests.test_task import tasks
from vtlite.method import short
from vtlite.methods.remapping.architecture import baselines
from vtlite.methods.remapping.architecture.cells import (
    OPERATIONS,
    Supernet,
    anew,
    as_kept,
    as_names,
    cell_of,
    edges,
    found_network,
    graph,
    searched,
    strongest_cell,
)
from vtlite.methods.remapping.architecture.darts import DARTS, architecture_gradient
from vtlite.methods.remapping.architecture.data import ensemble
from vtlite.methods.remapping.architecture.sgas import score
from vtlite.task import Classification

FAMILY = [short(k) for k, cls in vt.METHODS.items() if issubclass(cls, DARTS)]
ALL = tuple(OPERATIONS)


def task(count: int = 12) -> Classification:
    g = torch.Generator().manual_seed(5)
    images, labels = torch.randn(count, 3, 32, 32, generator=g), torch.arange(count) % CLASSES
    data = TensorDataset(images, labels)
    return Classification(train=data, val=data, test=data, classes=("a", "b", "c"))


def fit(model: vt.Tuned, **changes: Any) -> list[dict[str, float]]:
    return vt.fit(model, **{"epochs": 2, "batch_size": 3, "progress": False, **changes})


# The network against its formula
# -------------------------------------------------------------------------------------------------
def normed(x: Tensor, norm: Any) -> Tensor:
    return (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()


def convolved(x: Tensor, parts: Any, size: int, dilation: int) -> Tensor:
    """Every place and channel in a loop of its own."""
    _, depthwise, pointwise, norm = parts
    x = F.pad(x.clamp(min=0), [dilation * (size // 2)] * 4)
    h, w = (n - dilation * (size - 1) for n in x.shape[2:])
    y = torch.zeros(len(x), x.shape[1], h, w)
    for i in range(size):
        for j in range(size):
            shifted = x[:, :, i * dilation : i * dilation + h, j * dilation : j * dilation + w]
            y = y + depthwise.weight[:, 0, i, j, None, None] * shifted
    return normed(torch.einsum("bchw,dc->bdhw", y, pointwise.weight[:, :, 0, 0]), norm)


def neighbours(x: Tensor, outside: float) -> Tensor:
    padded = F.pad(x, (1, 1, 1, 1), value=outside)
    h, w = x.shape[2:]
    return torch.stack([padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)])


def applied(name: str, operation: Any, x: Tensor) -> Tensor:
    if name == "none":
        return 0 * x
    if name == "skip_connect":
        return x
    if name == "avg_pool_3x3":
        inside = neighbours(torch.ones_like(x), 0).sum(0)
        return normed(neighbours(x, 0).sum(0) / inside, operation[1])
    if name == "max_pool_3x3":
        return normed(neighbours(x, -1e9).amax(0), operation[1])
    size = int(name[-1])
    if name.startswith("dil"):
        return convolved(x, operation, size, 2)
    return convolved(convolved(x, operation[0], size, 1), operation[1], size, 1)


def by_hand(net: Any, images: Tensor) -> Tensor:
    def fitted(x: Tensor, parts: Any) -> Tensor:
        return normed(
            torch.einsum("bchw,dc->bdhw", x.clamp(min=0), parts[1].weight[..., 0, 0]), parts[2]
        )

    base = net.base
    maps = F.max_pool2d(base.bn1(base.conv1(images)).relu(), 3, 2, 1)
    maps = base.layer2(base.layer1(maps))
    s0 = s1 = normed(
        torch.einsum("bchw,dc->bdhw", maps, net.stem[0].weight[..., 0, 0]), net.stem[1]
    )
    for cell in net.cells:
        x = {0: fitted(s0, cell.inputs[0]), 1: fitted(s1, cell.inputs[1])}
        for node in range(2, net.nodes + 2):
            x[node] = torch.zeros_like(x[0])
            for source in range(node):
                e = edges(net.nodes).index((source, node))
                weights = net.alpha[e].exp() / net.alpha[e].exp().sum()
                for k, name in enumerate(net.names):
                    x[node] = x[node] + weights[k] * applied(name, cell.edges[e][k], x[source])
        s0, s1 = s1, torch.cat([x[node] for node in range(2, net.nodes + 2)], 1)
    return s1.mean((2, 3))


def test_the_mixed_network_by_hand() -> None:
    """A wrong dilation, a pool that counts the border, a norm with a scale, a node that reads its
    sources in another order: each gives other numbers."""
    backbone = make_tiny_resnet()
    model = vt.tune(backbone, "darts", CLASSES, operations=ALL, nodes=3, cells=3, channels=4)
    net, images = searched(model), batch()[0]
    with torch.no_grad():
        net.alpha.copy_(torch.randn(net.alpha.shape))
        for name, buffer in net.named_buffers():
            if name.endswith(("running_mean", "running_var")) and not name.startswith("base"):
                buffer += 0.5 * torch.rand(buffer.shape)
    parameters = [p for p in net.parameters() if p.requires_grad]
    found, expected = net(images), by_hand(net, images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(found.square().sum(), parameters)
    theirs = torch.autograd.grad(expected.square().sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_cell_is_read_by_hand() -> None:
    """Node 2 has three inputs: its weakest edge goes, though its "none" is the strongest of all."""
    names = ("none", "skip_connect", "sep_conv_3x3")
    weights = torch.tensor(
        [[0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0.9, 0.04, 0.06], [0.2, 0.35, 0.45], [0.1, 0.7, 0.2]]
    )
    kept = strongest_cell(weights, 2, names)
    assert as_names(kept, names) == (
        "sep_conv_3x3",
        "skip_connect",
        "none",
        "sep_conv_3x3",
        "skip_connect",
    )
    assert torch.equal(as_kept(as_names(kept, names), 2, names, "darts"), kept)


def test_a_cell_as_a_graph() -> None:
    cell = ("skip_connect", "none", "none", "none", "skip_connect+sep_conv_3x3")
    points, arrows = graph(cell)
    assert arrows[:3] == [
        ("cell before last", "1", "skip_connect"),
        ("1", "2", "skip_connect"),
        ("1", "2", "sep_conv_3x3"),
    ]
    assert arrows[3:] == [("1", "output", ""), ("2", "output", "")]
    across = {name: x for name, (x, _) in points.items()}
    assert across["last cell"] == 0 < across["1"] < across["2"] < across["output"] == 1
    assert len(set(points.values())) == len(points)


def test_the_first_stages_alone_are_run_and_held() -> None:
    backbone, images = make_tiny_resnet(), batch()[0]
    net = searched(vt.tune(backbone, "darts", CLASSES, stem=1))
    expected = backbone.layer1(backbone.maxpool(backbone.bn1(backbone.conv1(images)).relu()))
    torch.testing.assert_close(net.base.feature_maps(images), expected)
    assert not [name for name, _ in net.base.named_parameters() if name.startswith("layer2")]


# DARTS's gradient
# -------------------------------------------------------------------------------------------------
def exact(alpha: Tensor, w: Tensor, training: Any, held_out: Any, xi: float) -> Tensor:
    """Through the inner step itself, by a second derivative."""
    (g,) = torch.autograd.grad(training(w, alpha), w, create_graph=True)
    return torch.autograd.grad(held_out(w - xi * g, alpha), alpha)[0]


def unrolled(alpha: Tensor, w: Tensor, training: Any, held_out: Any, xi: float) -> Tensor:
    (g,) = torch.autograd.grad(training(w, alpha), w)
    return architecture_gradient(
        alpha, [w], [g], lambda: training(w, alpha), lambda: held_out(w, alpha), xi
    )


def problem(kind: str) -> tuple[Tensor, Tensor, Any, Any]:
    g = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    A, B, t, s = drawn(6, 6), drawn(6, 4), drawn(6), drawn(4)
    alpha, w = drawn(4).requires_grad_(), drawn(6).requires_grad_()
    if kind == "quadratic":
        return (
            alpha,
            w,
            lambda w, a: 0.5 * (A @ w - B @ a).square().sum(),
            lambda w, a: 0.5 * (w - t).square().sum() + (s * a).sum(),
        )
    return (
        alpha,
        w,
        lambda w, a: ((A @ w).tanh() * (B @ a).exp()).sum() + 0.1 * w.pow(4).sum(),
        lambda w, a: (w * t).sin().sum() * (s * a).sum().cos(),
    )


@pytest.mark.parametrize("kind", ["quadratic", "curved"])
@pytest.mark.parametrize("xi", [0.0, 0.01, 0.3])
def test_the_unrolled_gradient_is_the_exact_one(kind: str, xi: float) -> None:
    """A wrong sign, a missing xi or 2, v taken at w in place of w': off by far. Where the training
    loss is quadratic the finite difference has no error at all."""
    alpha, w, training, held_out = problem(kind)
    before = w.detach().clone()
    found = unrolled(alpha, w, training, held_out, xi)
    wanted = exact(alpha, w, training, held_out, xi)
    tolerance = 1e-10 if kind == "quadratic" else 2e-4
    assert (found - wanted).norm() <= tolerance * wanted.norm()
    assert torch.equal(w, before)  # bit for bit
    if xi == 0.3:
        assert (found - unrolled(alpha, w, training, held_out, 0.0)).norm() > 0.1 * wanted.norm()


@pytest.mark.parametrize("kind", ["quadratic", "curved"])
def test_the_exact_gradient_is_that_of_finite_differences(kind: str) -> None:
    alpha, w, training, held_out = problem(kind)

    def outer(a: Tensor) -> float:
        (g,) = torch.autograd.grad(training(w, a), w)
        return float(held_out(w - 0.3 * g, a).detach())

    h, numeric = 1e-6, torch.zeros_like(alpha)
    for i in range(len(alpha)):
        step = h * F.one_hot(torch.tensor(i), len(alpha)).double()
        numeric[i] = (outer(alpha.detach() + step) - outer(alpha.detach() - step)) / (2 * h)
    torch.testing.assert_close(exact(alpha, w, training, held_out, 0.3), numeric)


def test_a_quadratic_problem_in_closed_form() -> None:
    """w' = w - xi A^T (A w - B a); the gradient is s + xi B^T A (w' - t)."""
    alpha, w, training, held_out = problem("quadratic")
    g = torch.Generator().manual_seed(3)
    A, B, t, s = (
        torch.randn(*n, generator=g, dtype=torch.float64) for n in ((6, 6), (6, 4), (6,), (4,))
    )
    w1 = w - 0.3 * A.T @ (A @ w - B @ alpha)
    torch.testing.assert_close(
        unrolled(alpha, w, training, held_out, 0.3), s + 0.3 * B.T @ A @ (w1 - t)
    )


@pytest.mark.parametrize("xi", [0.0, 0.25, 0.5])
def test_the_paper_s_problem_with_a_known_answer(xi: float) -> None:
    """Training loss w^2 - 2 a w + a^2, held-out loss a w - 2 a + 1, from (a, w) = (2, -2): the
    answer is (1, 1). First order ends at (2, 2), xi at a = 2 / (1 + 2 xi)."""
    alpha = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    w = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)

    def training(w: Tensor, a: Tensor) -> Tensor:
        return w * w - 2 * a * w + a * a

    for _ in range(600):
        step = unrolled(alpha, w, training, lambda w, a: a * w - 2 * a + 1, xi)
        with torch.no_grad():
            alpha -= 0.1 * step
        (g,) = torch.autograd.grad(training(w, alpha), w)
        with torch.no_grad():
            w -= 0.1 * g
    assert float(alpha.detach()) == pytest.approx(2 / (1 + 2 * xi), abs=1e-6)
    assert float(w.detach()) == pytest.approx(2 / (1 + 2 * xi), abs=1e-6)


def test_alpha_learns_from_held_out_images_and_the_weights_from_the_others() -> None:
    model, (images, labels) = tuned("darts").train(), batch(6)
    net = searched(model)
    net.held_out = [(images[4], int(labels[4]))]  # one image, drawn twice
    seen, state = images[:4], {k: t.clone() for k, t in model.state_dict().items()}
    model.method.backward(model, seen, labels[:4])
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.load_state_dict(state)
    model.zero_grad()
    model.task.loss(model(seen), labels[:4]).backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert torch.equal(found[name], p.grad) == (p is not net.alpha), name
    model.load_state_dict(state)
    drawn = images[[4, 4, 4, 4]], labels[[4, 4, 4, 4]]
    (expected,) = torch.autograd.grad(model.task.loss(model(*drawn[:1]), drawn[1]), net.alpha)
    torch.testing.assert_close(found["network.backbone.alpha"], expected)


def test_the_second_order_form_on_the_network_is_the_exact_one_in_double_precision() -> None:
    """Few kinks of ReLUs for the finite difference to cross: what the second order adds to the
    first is right to two hundredths."""
    operations = ("none", "skip_connect", "avg_pool_3x3")
    settings = {"operations": operations, "channels": 4, "nodes": 2, "cells": 1}
    model = vt.tune(make_tiny_resnet().double(), "darts", CLASSES, xi=1.0, **settings)
    net, images, labels = searched(model), batch(6)[0].double(), batch(6)[1]
    net.held_out = [(images[i], int(labels[i])) for i in (4, 5)]
    torch.manual_seed(7)
    model.method.backward(model, images[:4], labels[:4])
    torch.manual_seed(7)
    held_out = net.draw(4)
    values = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = {name: p for name, p in values.items() if p is not net.alpha}
    loss = model.task.loss(model(images[:4]), labels[:4])
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    moved = {k: p - g for (k, p), g in zip(weights.items(), gradients, strict=True)}
    answer = torch.func.functional_call(model, moved, held_out[0])
    (expected,) = torch.autograd.grad(model.task.loss(answer, held_out[1]), net.alpha)
    (first,) = torch.autograd.grad(model.task.loss(model(held_out[0]), held_out[1]), net.alpha)
    assert (net.alpha.grad - expected).norm() < 0.02 * (first - expected).norm()


# A search and what it leaves
# -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FAMILY)
def test_a_search_finds_a_cell_and_the_found_network_has_nothing_else(name: str) -> None:
    model = vt.tune(make_tiny_resnet(), name, task(), **SMALL[name])
    before = searched(model).alpha.detach().clone()
    history = fit(model)
    net, images = searched(model), batch()[0]
    assert not torch.equal(net.alpha, before)
    assert bool(net.found)
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    plain = found_network(model)
    assert torch.equal(plain(images), model(images))
    count = sum(p.numel() for p in plain.parameters())
    assert count < sum(p.numel() for p in model.parameters())
    assert cell_of(model) == as_names(net.kept, net.names)
    assert net.held_out is None


def test_the_weights_start_again_when_the_cell_is_found() -> None:
    """Kept weights would go on from those of the mixture; a new base would not be the backbone's."""
    model = trained("darts")
    net, head = searched(model), model.head
    for part in (net.stem, net.cells, head):
        for value in (*part.parameters(), *part.buffers()):
            value.data.fill_(50)
    alpha, base = net.alpha.clone(), {k: t.clone() for k, t in net.base.state_dict().items()}
    anew(model, strongest_cell(net.weights(), net.nodes, net.names))
    for part in (net.stem, net.cells, head):
        for value in (*part.parameters(), *part.buffers()):
            assert value.abs().max() <= 1
    assert torch.equal(net.alpha, alpha)
    assert all(torch.equal(t, base[k]) for k, t in net.base.state_dict().items())


def test_a_cell_that_is_given_is_trained_without_a_search() -> None:
    cell = ("sep_conv_3x3", "none", "skip_connect", "none", "dil_conv_3x3")
    model = vt.tune(make_tiny_resnet(), "darts", task(), cell=cell, **SMALL["darts"])
    assert cell_of(model) == cell
    assert len(fit(model, epochs=1)) == 1
    assert cell_of(model) == cell


def test_the_trace_has_every_epoch_of_the_search() -> None:
    model = vt.tune(make_tiny_resnet(), "darts", task(), **{**SMALL["darts"], "search_epochs": 5})
    fit(model)
    trace = searched(model).trace
    torch.testing.assert_close(trace.sum(2), torch.ones(trace.shape[:2]))
    assert all(not torch.equal(a, b) for a, b in pairwise(trace))


def test_alpha_waits_while_the_weights_learn() -> None:
    settings = {**SMALL["darts"], "search_epochs": 4, "wait": 0.5}
    model = vt.tune(make_tiny_resnet(), "darts", task(), **settings)
    fit(model)
    trace = searched(model).trace
    assert torch.equal(trace[0], trace[1])
    assert not torch.equal(trace[2], trace[3])


class Torn(Dataset[Any]):
    """Raises at one of the accesses."""

    def __init__(self, data: Any, last: int) -> None:
        self.data, self.left = data, last

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.data[index]


@pytest.mark.parametrize("name", FAMILY)
def test_killed_at_random_moments_it_ends_at_the_same_result(name: str, tmp_path: Path) -> None:
    """In the search, between, and in the second training; several times one after the other."""
    asked = task()
    whole = vt.tune(make_tiny_resnet(), name, asked, **SMALL[name])
    history = fit(whole, seed=3)
    kills = {"darts": ((20, 31), (50,)), "darts_plus": ((8, 25),)}  # whose search ends early
    for moments in kills.get(name, ((20, 31),)):
        part = vt.tune(make_tiny_resnet(), name, asked, **SMALL[name])
        for moment in moments:
            torn = dataclasses.replace(asked, train=Torn(asked.train, 12 + moment))
            before = {k: t.clone() for k, t in part.state_dict().items()}
            part.task = torn
            with pytest.raises(KeyboardInterrupt):
                fit(part, seed=3, checkpoint=tmp_path / f"{moments}")
            assert all(torch.equal(t, before[k]) for k, t in part.state_dict().items())
        part.task = asked
        again = fit(part, seed=3, checkpoint=tmp_path / f"{moments}")
        for key, value in whole.state_dict().items():
            assert torch.equal(part.state_dict()[key], value), (moments, key)
        assert [row["loss"] for row in again] == [row["loss"] for row in history]


@pytest.mark.parametrize("name", FAMILY)
def test_a_found_network_comes_back_from_its_delta(name: str, tmp_path: Path) -> None:
    backbone, images = make_tiny_resnet(), batch()[0]
    model = vt.tune(backbone, name, task(), **SMALL[name])
    fit(model)
    vt.save_delta(model, tmp_path / "delta")
    loaded = vt.load_delta(backbone, tmp_path / "delta")
    assert torch.equal(loaded(images), model(images))
    assert cell_of(loaded) == cell_of(model)


# What each successor does
# -------------------------------------------------------------------------------------------------
def mid_search(name: str, **settings: Any) -> tuple[vt.Tuned, Any, Any]:
    model = vt.tune(make_tiny_resnet(), name, task(), **{**SMALL[name], **settings})
    return model, searched(model), model.method


def test_milenas_adds_the_gradient_of_the_training_loss() -> None:
    images, labels = batch(6)
    grads = {}
    for name, settings in (("darts", {}), ("milenas", {"balance": 0.5}), ("snas", {})):
        model, net, method = mid_search(name, **settings)
        net.alpha.data = torch.linspace(-1, 1, net.alpha.numel()).view_as(net.alpha)
        if name != "snas":
            net.held_out = [(images[5], int(labels[5]))]
        method.backward(model, images[:4], labels[:4])
        grads[name] = net.alpha.grad
    # SNAS in eval mode draws no noise: its gradient is that of the training loss alone
    torch.testing.assert_close(grads["milenas"], grads["darts"] + 0.5 * grads["snas"])
    assert grads["darts"].sub(grads["snas"]).abs().max() > 1e-4


def test_concrete_samples_have_their_known_moments() -> None:
    """P(z_k is the largest) = p_k at every temperature; at temperature 1 the entries of an even
    pair are uniform, of variance 1 / 12; near 0 the samples are one-hot, with mean p. A Gaussian in
    place of the Gumbel noise, or noise behind the division, has other moments."""
    net: Any = mid_search("snas", nodes=1)[1].train()
    count = 20_000

    def drawn(alpha: Tensor, temperature: float) -> Tensor:
        net.alpha.data, net.temperature = alpha.expand(count, -1), temperature
        return net.logits().detach().softmax(1)

    alpha = torch.tensor([[1.0, 0.0, -1.0, 0.5]])
    p = alpha.softmax(1)[0]
    for temperature in (0.1, 1.0, 5.0):
        largest = F.one_hot(drawn(alpha, temperature).argmax(1), 4).float().mean(0)
        torch.testing.assert_close(largest, p, atol=0.015, rtol=0)
    even = drawn(torch.zeros(1, 2), 1.0)[:, 0]
    assert float(even.mean()) == pytest.approx(1 / 2, abs=0.01)
    assert float(even.var()) == pytest.approx(1 / 12, abs=0.003)
    sharp = drawn(alpha, 0.01)
    torch.testing.assert_close(sharp.mean(0), p, atol=0.015, rtol=0)
    torch.testing.assert_close(sharp.var(0), p * (1 - p), atol=0.015, rtol=0)


def test_snas_counts_the_expected_size_and_lets_none_win() -> None:
    model, net, method = mid_search("snas", cost=2.0)
    images, labels = batch(6)
    plain = mid_search("snas")[2].loss(model, images, labels)
    sizes = [0, 0, 0, 0, 2 * (9 * 4 + 16), 9 * 4 + 16]
    p = net.alpha.softmax(1)
    by_hand = sum(p[e, k] * sizes[k] for e in range(5) for k in range(6)) / sizes[4] / 5
    torch.testing.assert_close(method.loss(model, images, labels), plain + 2 * by_hand)
    with torch.no_grad():
        net.alpha[:, 0] = 9.0
    assert not method.choose(net).any()
    assert mid_search("darts")[2].choose(net).sum() == 4


def test_data_draws_several_operations_and_divides_by_their_number() -> None:
    _model, net, method = mid_search("data", samples=3)
    weights = net.train().logits()
    several = {int(n) for n in (weights.detach() > 1e-6).sum(1)}
    assert several <= {1, 2, 3}
    assert len(several) > 1
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    values = weights.detach()[weights.detach() > 1e-6]
    assert all(min(abs(v - 1 / n) for n in (1, 2, 3)) < 1e-6 for v in values.tolist())
    (weights * torch.randn(weights.shape)).sum().backward()
    assert net.alpha.grad.abs().min() > 0  # through the soft samples
    with torch.no_grad():
        net.alpha.zero_()
        net.alpha[:, 1], net.alpha[:, 4] = 50.0, 50.0
    kept = torch.stack([method.choose(net) for _ in range(20)])
    assert {int(n) for n in kept.sum(2).flatten()} == {1, 2}
    assert not kept[..., [0, 2, 3, 5]].any()


def test_data_draws_by_hand() -> None:
    """The straight-through gradient of one draw is that of its softmax at the temperature."""
    alpha = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    code = ensemble(alpha, 1, 0.7)
    torch.manual_seed(1)
    u = torch.rand(5, 4, dtype=torch.float64)
    soft = ((alpha.log_softmax(1) - (-u.log()).log()) / 0.7).softmax(1)
    assert torch.equal(code.detach().argmax(1), soft.argmax(1))
    weights = torch.randn(5, 4, dtype=torch.float64)
    (found,) = torch.autograd.grad((code * weights).sum(), alpha)
    (expected,) = torch.autograd.grad((soft * weights).sum(), alpha)
    torch.testing.assert_close(found, expected)


def test_darts_minus_adds_a_skip_that_fades_and_is_no_candidate() -> None:
    _model, net, method = mid_search("darts_minus", cells=1)
    images = batch()[0]
    x = torch.randn(2, 4, 3, 3)
    made = [torch.randn_like(x) for _ in range(6)]
    method.watch(net, 0.0)
    with_it = net.mix(made, net.alpha[0], x)
    method.watch(net, 0.75)
    torch.testing.assert_close(net.beta, 0.25)
    without = sum(w * y for w, y in zip(net.alpha[0].softmax(0), made, strict=True))
    torch.testing.assert_close(with_it, without + x)
    torch.testing.assert_close(net.mix(made, net.alpha[0], x), without + 0.25 * x)
    net.keep(method.choose(net), found=True)
    found = net(images)
    method.watch(net, 0.0)
    assert torch.equal(net(images), found)


def test_darts_plus_stops_at_two_skips_but_not_at_once() -> None:
    model, net, method = mid_search("darts_plus", search_epochs=10)
    assert not method.watch(net, 0.5)
    with torch.no_grad():
        net.alpha[:, 4] = 1.0
        net.alpha[[0, 3], 1] = 2.0
    assert method.skips(net) == 2
    assert not method.watch(net, 0.1)
    assert method.watch(net, 0.5)
    net.trace.zero_()
    fit(model, epochs=1)
    assert searched(model).trace.any((1, 2)).tolist() == [True] * 3 + [False] * 7


def test_darts_plus_stops_when_the_order_of_what_learns_has_settled() -> None:
    _model, net, method = mid_search("darts_plus", search_epochs=8, patience=3)
    learning, skips = [4, 5], [0, 1, 2, 3]
    for epoch in range(8):
        alpha = torch.zeros_like(net.alpha)
        alpha[:, skips] = torch.randn(5, 4) - 9  # whose order is not looked at
        alpha[:, learning[epoch == 2]] = 1.0 + 0.1 * epoch
        net.alpha.data = alpha
        assert bool(method.watch(net, epoch / 8)) == (epoch >= 6), epoch


def test_the_search_of_darts_plus_tells_of_no_epoch_that_it_did_not_train() -> None:
    model, net, _ = mid_search("darts_plus", search_epochs=10, most=1, begin=0.5)
    with torch.no_grad():
        net.alpha[[0, 3], 1] = 5.0
    history = fit(model, epochs=1)
    assert len(history) == 5 + 1
    assert all(row["loss"] > 0 for row in history)


def test_sgas_scores_by_hand() -> None:
    weights = torch.tensor([[0.2, 0.4, 0.4], [0.2, 0.79, 0.01], [0.6, 0.2, 0.2]])
    importance = torch.tensor([0.8, 0.8, 0.4])
    p = torch.tensor([[0.5, 0.5], [0.9875, 0.0125], [0.5, 0.5]])
    certainty = 1 + (p * p.log()).sum(1) / torch.tensor(2.0).log()
    scaled = (importance - 0.4) / 0.4 * certainty / certainty.max()
    torch.testing.assert_close(score(weights, 0, None), scaled, atol=1e-6, rtol=0)
    before = torch.stack([weights, weights.flip(0)])
    assert torch.equal(score(weights, 0, torch.stack([weights] * 3)), torch.zeros(3))  # all alike
    overlap = torch.stack([torch.minimum(p, q).sum(1) for q in (p, p.flip(0))]).mean(0)
    expected = scaled * (overlap - overlap.min()) / (overlap.max() - overlap.min()).clamp(min=1e-12)
    torch.testing.assert_close(score(weights, 0, before), expected, atol=1e-6, rtol=0)


def test_sgas_decides_one_edge_after_the_other_and_closes_full_nodes() -> None:
    _model, net, method = mid_search("sgas", nodes=3, begin=0.2)
    with torch.no_grad():
        net.alpha.copy_(3 * torch.randn(net.alpha.shape))
    decided = []
    for i in range(20):
        method.watch(net, i / 20)
        decided.append(int((net.kept.sum(1) == 1).sum()))
    assert decided[3] == 0
    assert decided[4] == 1
    assert decided[-1] == 6
    assert all(b - a in (0, 1) for a, b in pairwise(decided))
    for node in (2, 3, 4):
        at = [e for e, (_, j) in enumerate(edges(3)) if j == node]
        assert int(net.kept[at].sum()) == 2
        assert int(net.kept[at].sum(1).max()) == 1
    assert not net.kept[:, 0].any()
    assert torch.equal(method.choose(net), net.kept)


def test_sgas_keeps_the_frozen_stages_frozen() -> None:
    """Setting the whole network to training at a decision would move their batch statistics."""
    backbone = make_tiny_resnet()
    model = vt.tune(backbone, "sgas", task(), **SMALL["sgas"])
    fit(model)
    kept = searched(model).base.state_dict()
    assert all(torch.equal(t, backbone.state_dict()[k]) for k, t in kept.items())


def test_p_darts_grows_and_narrows() -> None:
    model, _net, method = mid_search("p_darts", cells=3, search_epochs=6)
    seen = []
    look = method.watch_stage

    def watch(*values: Any) -> None:
        look(*values)
        network = values[0]
        seen.append((network.active, int(network.kept.sum(1).max()), network.dropout))

    object.__setattr__(method, "watch_stage", watch)
    model.method = method
    fit(model)
    assert sorted({(active, left) for active, left, _ in seen}) == [(1, 6), (2, 4), (3, 2)]
    assert {active for active, _, p in seen if p == 0} == {1}
    assert max(p for _, _, p in seen) == 0.7
    assert bool(searched(model).trace.sum((1, 2)).min() > 0)


def test_p_darts_drops_skips_and_replaces_the_weakest() -> None:
    _model, net, method = mid_search("p_darts", nodes=2, most=1)
    with torch.no_grad():
        net.alpha[:, 1] = torch.tensor([4.0, 3.0, 2.0, 5.0, 1.0])
        net.alpha[:, 4] = 0.5
    kept = method.choose(net)
    assert as_names(kept, net.names).count("skip_connect") == 1
    assert bool(kept[3, 1])
    assert int(kept.sum()) == 4
    net.train().dropout = 0.5
    x = torch.ones(1, 4, 3, 3)
    assert {0.0, 2.0} == {*net.operate(1, net.cells[0].edges[0][1], x).flatten().tolist()}
    assert method.dropout(0.7, 0.0) == 0.7
    assert method.dropout(0.7, 1.0) == pytest.approx(0.7 * 2.718281828**-3)


@pytest.mark.parametrize("kind", tasks())
def test_every_kind_of_task_has_its_cell(kind: str, tmp_path: Path) -> None:
    asked, backbone = tasks()[kind], make_tiny_resnet()
    model = vt.tune(backbone, "darts", asked, **SMALL["darts"])
    fit(model)
    vt.save_delta(model, tmp_path / "delta")
    again = vt.load_delta(backbone, tmp_path / "delta")
    assert vt.evaluate(again, asked.test) == vt.evaluate(model, asked.test)


# Baselines
# -------------------------------------------------------------------------------------------------
def test_random_cells_are_cells_as_darts_reads_them() -> None:
    g, drawn = torch.Generator().manual_seed(0), set()
    for _ in range(50):
        cell = baselines.random_cell(3, ALL, g)
        kept = as_kept(cell, 3, ALL, "darts")
        assert [int(kept[[0, 1]].sum()), int(kept[2:5].sum()), int(kept[5:].sum())] == [2, 2, 2]
        drawn |= {*cell}
    assert drawn == {*ALL}


def test_baselines_rank_what_they_train() -> None:
    space = DARTS(**SMALL["darts"])
    found = baselines.random_search(
        make_tiny_resnet(), task(), budget=3, method=space, epochs=1, batch_size=3
    )
    again = baselines.random_search(
        make_tiny_resnet(), task(), budget=3, method=space, epochs=1, batch_size=3
    )
    assert found == again
    assert [score for score, _ in found] == sorted((s for s, _ in found), reverse=True)
    single = baselines.best_single_operation(make_tiny_resnet(), task(), method=space, epochs=1)
    assert len(single) == len(space.operations) - 1
    assert all(len({*cell} - {"none"}) == 1 for _, cell in single)


# Bad input
# -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"operations": ("none", "skip_connect")}, "operations of at least two different names"),
        ({"operations": ()}, "operations of at least two"),
        ({"operations": ("skip_connect", "skip_connect")}, "at least two different"),
        ({"operations": ("skip", "sep_conv_3x3")}, "unknown operation of darts 'skip'"),
        ({"search_epochs": 0}, "search_epochs of at least 1, found 0"),
        ({"stem": 5}, "stem from 1 to 4, the backbone's stages, found 5"),
        ({"stem": 0}, "stem from 1 to 4"),
        ({"nodes": 0}, "nodes of at least 1"),
        ({"xi": -1.0}, "xi of at least 0"),
        ({"wait": 1.0}, r"wait in \[0, 1\)"),
        ({"cell": ("skip_connect",)}, "a cell of 3 nodes as the names of 9 operations, one an"),
        ({"cell": ("skip",) * 9}, "unknown operation of darts 'skip': did you mean"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(vt.VTError, match=words):
        vt.tune(make_tiny_resnet(), "darts", CLASSES, **settings)


def test_bad_input_is_refused_in_a_sentence() -> None:
    with pytest.raises(vt.VTError, match="budget of at least 1, found 0"):
        baselines.random_search(make_tiny_resnet(), task(), budget=0)
    with pytest.raises(vt.VTError, match="at least two images, for the weights and"):
        fit(vt.tune(make_tiny_resnet(), "darts", task(1), **SMALL["darts"]))
    with pytest.raises(vt.VTError, match="a search that has not ended"):
        found_network(tuned("darts"))
    with pytest.raises(vt.VTError, match="a searched architecture, found one of lora"):
        cell_of(tuned("lora"))
    with pytest.raises(vt.VTError, match="a task with training images"):
        baselines.random_search(make_tiny_resnet(), Classification(classes=("a", "b")), budget=1)


def test_an_unsearched_model_mixes_everything() -> None:
    net: Supernet = searched(trained("darts"))
    assert net.searching
    assert bool(net.kept.all())
