"""What the methods of the first group promise beyond the common suite: schedules, penalties,
averages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch.utils.data import TensorDataset

import vtlite as vt
from tests.conftest import make_tiny
from vtlite.backbones.stages import parameters_by_layer
from vtlite.training import Train, _Run, extract_features, fit_head, parameter_groups


def data(count: int = 24) -> TensorDataset:
    g = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(count, 3, 32, 32, generator=g), torch.arange(count) % 3)


def run_of(model: vt.Tuned, epochs: int = 4) -> _Run:
    loop = Train(epochs=epochs, lr=0.1, batch_size=6, weight_decay=0.0, warmup=0.0)
    return _Run(loop, model, data(), 0)


def test_layerwise_decay_gives_each_layer_its_rate() -> None:
    model = vt.tune(make_tiny(depth=3), "layerwise_decay", 3, decay=0.5)
    groups = parameter_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    assert sum(len(g["params"]) for g in groups) == len(names)
    for group in groups:
        for p in group["params"]:
            name = names[id(p)].removeprefix("network.backbone.")
            expected = (
                0
                if name.startswith(("cls", "pos", "patch"))
                else int(name.split(".")[1]) + 1
                if name.startswith("blocks")
                else 4
            )
            assert group["scale"](0.3) == 0.5 ** (4 - expected)
            assert bool(group["weight_decay"]) == (
                p.ndim >= 2 and "pos_embed" not in name and "cls_token" not in name
            )


def test_layerwise_decay_of_one_is_full_fine_tuning() -> None:
    models = [
        vt.tune(make_tiny(), name, 3, **settings)
        for name, settings in (("full", {}), ("layerwise_decay", {"decay": 1.0}))
    ]
    for model in models:
        vt.fit(model, data(), epochs=2, lr=1e-3, progress=False)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_gradual_unfreezing_goes_from_the_head_down_and_holds_the_rest_exactly() -> None:
    model = vt.tune(make_tiny(depth=3), "gradual_unfreezing", 3, span=1.0)
    run = run_of(model, epochs=5)
    layers = parameters_by_layer(model.backbone)
    layers[-1] += model.head.parameters()
    layer_of = {id(p): i for i, layer in enumerate(layers) for p in layer}
    images, labels = data()[:6]
    order: list[int] = []
    for step in range(20):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        run.one_step(step, images, labels)
        moved = {
            layer_of[id(p)] for n, p in model.named_parameters() if not torch.equal(p, before[n])
        }
        assert moved == set(range(min(moved), 5))
        order.append(min(moved))
    assert sorted(order, reverse=True) == order
    assert [order.index(layer) for layer in (4, 3, 2, 1, 0)] == [
        0,
        4,
        8,
        12,
        16,
    ]  # a fifth of the training each


def test_the_fitted_head_is_logistic_regression() -> None:
    model, train = vt.tune(make_tiny(), "lp_ft", 3), data(60)
    fit_head(model, train, c=0.5)
    x, y = (t.numpy() for t in extract_features(model, train).tensors)
    scaled = (x - x.mean()) / x.std(ddof=1)
    reference = LogisticRegression(C=0.5, max_iter=2000, tol=1e-8).fit(scaled, y)
    ours = F.softmax(model(train.tensors[0]), dim=1).detach().numpy()
    np.testing.assert_allclose(ours, reference.predict_proba(scaled), atol=2e-3)


def test_lp_ft_starts_from_the_fitted_head_and_an_untouched_backbone() -> None:
    model = vt.tune(make_tiny(), "lp_ft", 3)
    plain = vt.tune(make_tiny(), "full", 3)
    model.method.fit(model, replace(model.task, train=data()), Train(epochs=0))
    assert vt.evaluate(model, data())["loss"] < vt.evaluate(plain, data())["loss"]
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.backbone.parameters(), plain.backbone.parameters(), strict=True)
    )


def test_l2_sp_adds_half_the_squared_distance_of_matrices() -> None:
    model = vt.tune(make_tiny(), "l2_sp", 3, alpha=0.7, beta=0.2)
    images, labels = data()[:5]
    start = {n: p.detach().clone() for n, p in model.backbone.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p += 0.01 * torch.randn_like(p)
    penalty = 0.2 / 2 * sum(float(w) ** 2 for w in model.head.weight.flatten())  # type: ignore[union-attr]
    for name, p in model.backbone.named_parameters():
        if p.ndim >= 2:
            penalty += 0.7 / 2 * float((p.detach().double() - start[name].double()).pow(2).sum())
    expected = float(F.cross_entropy(model(images), labels)) + penalty
    assert float(model.method.loss(model, images, labels)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_wise_ft_ends_between_probe_and_tuned(alpha: float) -> None:
    results: dict[float, Any] = {}
    for a in (0.0, alpha, 1.0):
        model = vt.tune(make_tiny(), "wise_ft", 3, alpha=a)
        vt.fit(model, data(), epochs=2, lr=1e-3, progress=False)
        results[a] = model.state_dict()
    tuned = vt.tune(make_tiny(), "lp_ft", 3)
    vt.fit(tuned, data(), epochs=2, lr=1e-3, progress=False)
    for name, t in results[alpha].items():
        torch.testing.assert_close(
            t, (1 - alpha) * results[0.0][name] + alpha * results[1.0][name], atol=1e-6, rtol=1e-5
        )
        torch.testing.assert_close(results[1.0][name], tuned.state_dict()[name])
    assert torch.equal(results[0.0]["network.backbone.norm.weight"], make_tiny().norm.weight)


@pytest.mark.parametrize(
    "name", ["wise_ft", "gradual_unfreezing", "lp_ft", "l2_sp", "layerwise_decay", "mlp_head"]
)
def test_a_stopped_run_continues_to_the_same_weights(
    name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, part = (vt.tune(make_tiny(), name, 3) for _ in range(2))
    vt.fit(whole, data(), epochs=3, progress=False)
    method_save, saved = _Run.save, 0

    def stop(self: _Run, finished: bool) -> None:
        nonlocal saved
        method_save(self, finished)
        saved += 1
        if saved == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(_Run, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        vt.fit(part, data(), epochs=3, checkpoint=tmp_path / "c", progress=False)
    monkeypatch.setattr(_Run, "save", method_save)
    vt.fit(part, data(), epochs=3, checkpoint=tmp_path / "c", progress=False)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), part.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("partial", {"blocks": 3}, "expected blocks of at most 2"),
        ("partial", {"blocks": 0}, "expected blocks an integer of at least 1"),
        ("layerwise_decay", {"decay": 0.0}, "expected decay above 0 and at most 1"),
        ("gradual_unfreezing", {"span": 2.0}, "expected span above 0 and at most 1"),
        ("lp_ft", {"c": 0.0}, "expected c above 0"),
        ("l2_sp", {"alpha": -1.0}, "expected alpha of at least 0"),
        ("wise_ft", {"alpha": 1.5}, r"expected alpha in \[0, 1\]"),
        ("mlp_head", {"layers": 0}, "expected layers an integer of at least 1"),
    ],
)
def test_settings_out_of_range_are_a_sentence(
    name: str, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(vt.VTError, match=sentence):
        vt.tune(make_tiny(), name, 3, **settings)
