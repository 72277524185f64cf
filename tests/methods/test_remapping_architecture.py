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
from vtlite.method import short
from vtlite.methods.remapping.architecture import baselines
from vtlite.methods.remapping.architecture.cells import (
    OPERATIONS,
    Supernet,
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
    """Kept weights would go on from those of the mixture."""
    model = vt.tune(make_tiny_resnet(), "darts", task(), **SMALL["darts"])
    searches = fit(model, epochs=1)
    cell = cell_of(model)
    again = vt.tune(make_tiny_resnet(), "darts", task(), cell=cell, **SMALL["darts"])
    retrained = fit(again, epochs=1)
    assert len(searches) == 3
    assert len(retrained) == 1
    assert cell_of(again) == cell
    assert torch.equal(searched(again).kept, searched(model).kept)
    assert abs(retrained[0]["loss"] - searches[2]["loss"]) < 1


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
    for moments in ((20, 31), (40, 25), (95,), (120, 13)):
        part = vt.tune(make_tiny_resnet(), name, asked, **SMALL[name])
        for moment in moments:
            torn = dataclasses.replace(asked, train=Torn(asked.train, 12 + moment))
            before = {k: t.clone() for k, t in part.state_dict().items()}
            part.task = torn
            try:
                fit(part, seed=3, checkpoint=tmp_path / f"{moments}")
            except KeyboardInterrupt:
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
