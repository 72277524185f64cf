"""DLDR, GPS and SPT: what they choose from the training images, against the most naive way to
choose it, and what `fit` makes of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import vtlite as vt
from tests.conftest import make_tiny
from tests.methods.checks import CLASSES, SMALL
from vtlite.accounting import activation_memory
from vtlite.methods.parameter.both.gps import SparseModule, contrastive_loss
from vtlite.methods.parameter.both.spt import Budget, Unit, allocate
from vtlite.methods.parameter.weight.dldr import DLDR, Subspace, inner, principal_directions
from vtlite.training import Train
from vtlite.tuning import merged_backbone

METHODS = ("dldr", "gps", "spt")


def images_and_labels(count: int = 12, seed: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    return torch.randn(count, 3, 32, 32, generator=g) + labels[:, None, None, None], labels


def data(count: int = 12) -> TensorDataset:
    return TensorDataset(*images_and_labels(count))


def tuned(name: str, **settings: Any) -> vt.Tuned:
    return vt.tune(make_tiny(), name, CLASSES, **{**SMALL.get(name, {}), **settings})


def fit(model: vt.Tuned, train: Dataset[Any] | None = None, **settings: Any) -> None:
    vt.fit(model, train or data(), **{"epochs": 2, "batch_size": 4, "progress": False, **settings})


def prepared(model: vt.Tuned, train: Dataset[Any] | None = None) -> vt.Tuned:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.method.fit(model, replace(model.task, train=train or data()), Train(epochs=0))
    return model


def moved(model: vt.Tuned) -> dict[str, Tensor]:
    """Where the merged weights differ from the backbone's, by name, in their shapes."""
    plain, backbone = vt.merge(model), make_tiny()
    return {
        name: plain.get_parameter(name) != p
        for name, p in backbone.named_parameters()
        if not name.startswith("head.")
    }


def part(model: vt.Tuned, kind: type) -> Any:
    return next(m for m in model.modules() if isinstance(m, kind))


# What all three promise
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_delta_carries_the_choice_into_a_model_tuned_afresh(name: str, tmp_path: Path) -> None:
    images, _ = images_and_labels()
    model, fresh = tuned(name), tuned(name, seed=9)
    fit(model)
    vt.save_delta(model, tmp_path / "d.safetensors")
    assert not torch.allclose(fresh.features(images), model.features(images), atol=1e-4)
    vt.load_delta(fresh, tmp_path / "d.safetensors")
    assert torch.equal(fresh(images), model(images))
    assert torch.allclose(vt.merge(fresh)(images), model(images), atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_model_is_still_the_backbone_when_the_choice_is_made(name: str) -> None:
    images, _ = images_and_labels()
    model, before = tuned(name), tuned(name)
    prepared(model)
    buffers = dict(before.named_buffers())
    assert any(not torch.equal(b, buffers[key]) for key, b in model.named_buffers())
    assert torch.equal(model(images), before(images))
    assert vt.count_parameters(model) == vt.count_parameters(before)
    assert [p.requires_grad for p in model.parameters()] == [
        p.requires_grad for p in before.parameters()
    ]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_second_fit_goes_on_where_the_first_stopped(name: str) -> None:
    images, labels = images_and_labels()
    model = tuned(name)
    fit(model)
    outputs, buffers = model(images), {key: b.clone() for key, b in model.named_buffers()}
    other = TensorDataset(images.flip(0) ** 2, labels)  # its gradients would choose otherwise
    prepared(model, other)
    assert torch.equal(model(images), outputs)
    assert all(torch.equal(b, buffers[key]) for key, b in model.named_buffers())


@pytest.mark.parametrize("name", METHODS)
def test_an_interrupted_choice_leaves_the_model_as_it_was(name: str) -> None:
    class Torn(TensorDataset):
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            self.reads += 1
            if self.reads > 9:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    model = tuned(name, batch_size=3)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        fit(model, Torn(*images_and_labels()))
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_equals_one_that_never_stopped(name: str, tmp_path: Path) -> None:
    images, _ = images_and_labels()
    left = 8  # batches: an interruption in the last of three epochs

    def torn(batch: Tensor) -> Tensor:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return batch

    whole, halves, again = tuned(name), tuned(name), tuned(name)
    before = {key: t.clone() for key, t in halves.state_dict().items()}
    fit(whole, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        fit(halves, epochs=3, augment=torn, checkpoint=tmp_path / "c.safetensors")
    assert all(torch.equal(t, before[key]) for key, t in halves.state_dict().items())
    for model in (halves, again):  # in the same process, and in a new one
        fit(model, epochs=3, augment=torn, checkpoint=tmp_path / "c.safetensors")
        assert torch.equal(model(images), whole(images))


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_alone_decides_and_torchs_generator_is_left_alone(name: str) -> None:
    images, _ = images_and_labels()
    outputs = []
    for seed, world in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(world)
        state = torch.random.get_rng_state()
        model = tuned(name, batch_size=5)
        fit(model, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        outputs.append(model(images))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("name", METHODS)
def test_labels_out_of_range_are_refused(name: str) -> None:
    images, labels = images_and_labels()
    with pytest.raises(vt.VTError, match="expected labels from 0 to 2, found 0 to 5"):
        fit(tuned(name), TensorDataset(images, labels.where(labels < 2, 5)))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gps", {"k": 0}, "gps: expected k an integer of at least 1, found 0"),
        (
            "gps",
            {"k": 25},
            "gps: expected k of at most 24, the fewest inputs of a neuron, found 25; lower it",
        ),
        ("gps", {"loss_of_choice": "hinge"}, "gps: expected loss_of_choice"),
        ("spt", {"budget": 1.0}, "spt: expected budget between 0 and 1"),
        ("spt", {"alpha": 0.5}, "spt: expected alpha of at least 1"),
        ("dldr", {"k": 8, "snapshots": 7}, "dldr: expected snapshots of at least k = 8, found 7"),
    ],
)
def test_settings_out_of_range_are_refused(
    name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(vt.VTError, match=message):
        tuned(name, **settings)


# GPS
# -------------------------------------------------------------------------------------------------


def naive_contrastive(features: Tensor, labels: Tensor, T: float) -> Tensor:
    z = [f / f.norm() for f in features]
    losses = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        same = [p for p in others if labels[p] == labels[i]]
        total = sum(torch.exp(z[i] @ z[a] / T) for a in others)
        if same:
            losses.append(
                -sum(torch.log(torch.exp(z[i] @ z[p] / T) / total) for p in same) / len(same)
            )
    return torch.stack(losses).mean()


def test_contrastive_loss_is_the_formula_written_in_loops() -> None:
    g = torch.Generator().manual_seed(0)
    features, labels = (
        torch.randn(7, 5, generator=g, requires_grad=True),
        torch.tensor([0, 1, 0, 2, 1, 0, 3]),
    )
    for T in (0.3, 1.0):
        torch.testing.assert_close(
            contrastive_loss(features, labels, T), naive_contrastive(features, labels, T)
        )
    alone = contrastive_loss(features[:1], labels[:1], 0.07)  # the last batch of an epoch
    alone.backward()
    assert alone == 0
    assert features.grad is not None
    assert not features.grad.any()


@pytest.mark.parametrize("loss", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("k", [1, 3])
def test_gps_takes_the_largest_gradients_of_every_row(loss: str, k: int) -> None:
    images, labels = images_and_labels()
    model = prepared(
        tuned("gps", k=k, loss_of_choice=loss, batch_size=12)
    )  # one batch: its order does not matter
    backbone = make_tiny().requires_grad_(True)
    features = backbone(images)
    (
        naive_contrastive(features, labels, 0.07)
        if loss == "contrastive"
        else F.cross_entropy(model.head(features), labels)
    ).backward()
    checked = 0
    for name, module in model.backbone.named_modules():
        if isinstance(module, SparseModule):
            gradient = backbone.get_parameter(f"{name}.weight").grad
            for row, places in zip(gradient.flatten(1).abs(), module.places.tolist(), strict=True):
                smallest, others = (
                    min(row[j] for j in places),
                    [v for j, v in enumerate(row) if j not in places],
                )
                assert len(set(places)) == k
                assert (
                    smallest >= max(others) - 1e-5 * row.max()
                )  # the two losses are summed in another order
                checked += 1
    assert checked == 24 + 2 * (72 + 24 + 96 + 24)


def test_gps_sums_its_gradients_over_all_batches() -> None:
    images, labels = images_and_labels()
    model = prepared(
        tuned("gps", loss_of_choice="cross_entropy", batch_size=4)
    )  # equal batches: the sum is that of all images
    backbone = make_tiny().requires_grad_(True)
    F.cross_entropy(model.head(backbone(images)), labels).backward()
    for name in ("patch_embed.proj", "blocks.1.mlp.fc1"):
        row_max = backbone.get_parameter(f"{name}.weight").grad.flatten(1).abs()
        chosen = row_max.gather(1, model.backbone.get_submodule(name).places.long())[:, 0]
        assert torch.allclose(chosen, row_max.max(dim=1).values, rtol=1e-4)


def test_gps_moves_k_entries_of_each_row_and_the_biases() -> None:
    model = tuned("gps", k=2)
    fit(model, weight_decay=0.1)
    changed = moved(model)
    for name, entries in changed.items():
        layer = name.rpartition(".")[0]
        if name.endswith("bias") and "norm" not in name:
            assert entries.any(), name
        elif layer in dict(model.backbone.named_modules()) and isinstance(
            model.backbone.get_submodule(layer), SparseModule
        ):
            rows = entries.flatten(1).sum(dim=1)
            places = model.backbone.get_submodule(layer).places.long()
            assert rows.max() == 2
            assert not entries.flatten(1).scatter(1, places, False).any(), name
        else:
            assert not entries.any(), name


def test_gps_says_when_no_two_images_share_a_class() -> None:
    images, labels = images_and_labels(3)
    with pytest.raises(vt.VTError, match=r'found none in .*loss_of_choice="cross_entropy"'):
        fit(tuned("gps"), TensorDataset(images, labels))
    fit(tuned("gps", loss_of_choice="cross_entropy"), TensorDataset(images, labels))


# SPT
# -------------------------------------------------------------------------------------------------


def naive_allocation(
    scores: np.ndarray, units: list[Unit], budget: int, rank: int, alpha: float, beta: float
) -> tuple[list[int], list[int]]:
    """Try every tau, unit by unit, entry by entry."""
    ranking = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    starts = np.cumsum([0] + [u.size for u in units])
    best: tuple[set[int], list[int], set[int]] = (set(), [], set())
    for tau in range(len(scores) + 1):
        top, single, lora, closed, cost = set(ranking[:tau]), set(), [], set(), 0
        for number, unit in enumerate(units):
            entries = range(starts[number], starts[number + 1])
            mine = [i for i in entries if i in top]
            factors = rank * (unit.rows + unit.columns)
            if (
                unit.columns
                and rank <= min(unit.rows, unit.columns)
                and len(mine) >= factors / alpha
            ):
                lora, cost = [*lora, number], cost + factors
                closed |= set(entries)
            elif not unit.columns and len(mine) >= unit.rows / beta:
                single, cost = single | set(entries), cost + unit.rows
            else:
                single, cost = single | set(mine), cost + len(mine)
        if cost <= budget:
            best = single, lora, closed
    single, lora, closed = best
    spent = len(single) + sum(rank * (units[i].rows + units[i].columns) for i in lora)
    for i in ranking:
        if spent < budget and i not in single and i not in closed:
            single, spent = single | {i}, spent + 1
    return sorted(single), lora


@pytest.mark.parametrize("seed", range(6))
def test_spt_allocates_as_one_would_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    units = [Unit(6, 4), Unit(5, 0), Unit(4, 7), Unit(3, 1), Unit(8, 0), Unit(5, 5), Unit(2, 9)]
    scores = np.concatenate([rng.exponential(rng.exponential(), u.size) for u in units]).astype(
        np.float32
    )
    scores[rng.choice(len(scores), 30)] = 0  # ties: dead entries
    kinds = set()
    for budget in (1, 7, 30, 61, 90):
        wanted = naive_allocation(scores, units, budget, 2, 2.0, 3.0)
        entries, lora = allocate(torch.from_numpy(scores), units, budget, 2, 2.0, 3.0)
        assert (entries.tolist(), lora) == wanted
        kinds |= {bool(lora)}
    assert kinds == {True, False}


def test_spt_measures_sensitivity_by_summed_squares_of_batch_gradients() -> None:
    images, labels = images_and_labels(4)
    model = tuned(
        "spt", batch_size=1, batches=4, budget=0.02, rank=24
    )  # a batch is an image; no room for LoRA
    backbone = make_tiny().requires_grad_(True)
    names = [name for name, _ in backbone.named_parameters() if name.startswith("blocks.")]
    scores = torch.zeros(sum(backbone.get_parameter(name).numel() for name in names))
    for image, label in zip(images, labels, strict=True):
        backbone.zero_grad()
        F.cross_entropy(model.head(backbone(image[None])), label[None]).backward()
        scores += torch.cat([backbone.get_parameter(name).grad.flatten() ** 2 for name in names])
    prepared(model, TensorDataset(images, labels))
    budget = part(model, Budget)
    with torch.no_grad():
        budget.theta.fill_(1.0)
    changed = moved(model)
    found = set(torch.cat([changed[name].flatten() for name in names]).nonzero().flatten().tolist())
    wanted = set(allocate(scores, budget.units, len(budget.theta), 24, 5.0, 5.0)[0].tolist())
    assert len(found) == len(wanted) == len(budget.theta)
    assert len(found ^ wanted) <= 2  # the squares are summed in another order
    assert not any(entries.any() for name, entries in changed.items() if name not in names)


def test_spt_gives_lora_to_crowded_matrices_and_single_entries_to_others() -> None:
    model = prepared(tuned("spt", budget=0.15, rank=2))
    budget = part(model, Budget)
    layout, backbone = budget.layout.tolist(), make_tiny()
    with torch.no_grad():
        budget.theta += 1.0
    plain, kinds, number = vt.merge(model), {"lora": 0, "whole": 0, "single": 0}, 0
    for name, before in backbone.named_parameters():
        if name.startswith("blocks."):
            change = plain.get_parameter(name) - before
            for part_of in change.chunk(3) if ".qkv." in name else [change]:  # q, k and v
                start, stop, lora = layout[number]
                if lora >= 0:
                    assert torch.linalg.matrix_rank(part_of, rtol=1e-4) <= 2
                    assert (part_of != 0).all()
                    kinds["lora"] += 2 * sum(part_of.shape)
                else:
                    assert int((part_of != 0).sum()) == stop - start
                    kinds["whole" if stop - start == part_of.numel() else "single"] += stop - start
                number += 1
    assert number == len(budget.units) == 2 * 16
    assert sum(kinds.values()) == len(budget.theta) == round(0.15 * 2 * 7224)  # nothing is wasted
    assert all(kinds.values())


def test_spt_keeps_to_its_choice_through_training() -> None:
    model = tuned("spt", budget=0.15, rank=2)
    fit(model, weight_decay=0.1)
    changed, budget = moved(model), part(model, Budget)
    entries = sum(stop - start for start, stop, lora in budget.layout.tolist() if lora < 0)
    dense = sum(
        u.size
        for u, (_, _, lora) in zip(budget.units, budget.layout.tolist(), strict=True)
        if lora >= 0
    )
    assert 0 < sum(int(c.sum()) for c in changed.values()) <= entries + dense
    assert not any(c.any() for name, c in changed.items() if not name.startswith("blocks."))


def test_sparse_layers_are_to_others_the_layers_they_stand_for() -> None:
    for name in ("gps", "spt"):
        model = prepared(tuned(name))
        fc1, plain = model.backbone.blocks[0].mlp.fc1, vt.merge(model).blocks[0].mlp.fc1
        assert (fc1.in_features, fc1.out_features) == (24, 96)
        torch.testing.assert_close(fc1.weight, plain.weight)
        torch.testing.assert_close(fc1.bias, plain.bias)


@pytest.mark.parametrize("name", ["gps", "spt"])
def test_no_weight_is_kept_and_none_gets_a_whole_gradient(name: str) -> None:
    """Beside what full fine-tuning keeps: places, and the patch embedding of GPS."""
    images, labels = images_and_labels()
    model, full = prepared(tuned(name)), vt.tune(make_tiny(), "full", CLASSES)
    kept = [activation_memory(m, images, labels) for m in (model, full)]
    weights = sum(4 * b.numel() for b in make_tiny().blocks.parameters())
    assert kept[0] < kept[1] + 0.5 * weights


# DLDR
# -------------------------------------------------------------------------------------------------


def test_principal_directions_are_those_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    g = torch.Generator().manual_seed(0)
    W = (
        torch.randn(9, 9, generator=g) * torch.logspace(0, -2, 9) @ torch.randn(9, 500, generator=g)
        + 5.0
    )
    P = principal_directions(W, 6)
    assert torch.allclose(P @ P.mT, torch.eye(6), atol=1e-5)
    theirs = torch.from_numpy(PCA(6, svd_solver="full").fit(W.double().numpy()).components_).float()
    cosines = (P * theirs).sum(dim=1).abs()  # a direction has no sign
    assert torch.allclose(cosines, torch.ones(6), atol=1e-4)


def test_a_trajectory_that_spans_too_little_is_refused() -> None:
    line = torch.arange(5.0)[:, None] * torch.randn(40, generator=torch.Generator().manual_seed(0))
    with pytest.raises(vt.VTError, match="expected 3 different directions in the sampling run"):
        principal_directions(line, 3)


def test_dldr_samples_a_full_fine_tuning() -> None:
    model, train = (
        tuned("dldr", k=2, snapshots=4, stride=3, batch_size=5, sampling_lr=1e-3),
        data(12),
    )
    method: Any = model.method
    torch.manual_seed(3)
    W = method.trajectory(model, train)
    # The same run, written out: three batches an epoch, all parameters but the class token and the
    # positions.
    plain: Any = make_tiny(num_classes=CLASSES).requires_grad_(True)
    plain.load_state_dict(vt.merge(model).state_dict())
    torch.manual_seed(3)
    free = [p for name, p in plain.named_parameters() if name not in ("cls_token", "pos_embed")]
    optimizer, snapshots = torch.optim.AdamW(free, 1e-3), []
    batches = [b for _ in range(5) for b in torch.utils.data.DataLoader(train, 5, shuffle=True)]
    for step in range(13):
        if step in (0, 3, 6, 9, 12):
            snapshots.append(
                torch.cat([p.detach().flatten() for p in free[:-2]])
            )  # without the head
        optimizer.zero_grad()
        F.cross_entropy(plain(batches[step][0]), batches[step][1]).backward()
        optimizer.step()
    assert torch.allclose(W, torch.stack(snapshots), atol=1e-6)
    assert (W[1:] - W[:-1]).abs().max(dim=1).values.min() > 1e-4


def test_dldr_moves_inside_the_directions_of_its_trajectory() -> None:
    model = tuned("dldr", k=4, snapshots=4, stride=1)  # four directions hold all five snapshots
    method: Any = model.method
    torch.manual_seed(0)
    W = method.trajectory(model, data())
    prepared(model)
    subspace = part(model, Subspace)
    P = subspace.basis
    assert torch.allclose(P @ P.mT, torch.eye(4), atol=1e-5)
    start = torch.cat([p.detach().flatten() for p in inner(make_tiny())])
    assert torch.equal(W[0], start)
    steps = W[1:] - start
    assert torch.allclose(steps @ P.mT @ P, steps, atol=1e-5)
    assert float(subspace.length) == pytest.approx(float(steps[-1].norm()), rel=1e-5)
    with torch.no_grad():
        subspace.z.copy_(torch.tensor([0.5, -1.0, 2.0, 0.25]))
    naive = start + subspace.length * sum(
        z * p for z, p in zip(subspace.z.detach(), P, strict=True)
    )
    assert torch.allclose(
        torch.cat([p.detach().flatten() for p in inner(merged_backbone(model))]), naive, atol=1e-6
    )


def test_the_end_of_the_trajectory_lies_in_the_subspace() -> None:
    """Some z gives back the weights of the sampling run: the loss that full fine-tuning reaches can
    be reached."""
    images, labels = images_and_labels()
    model = tuned("dldr", k=6, snapshots=6, stride=4)
    torch.manual_seed(0)
    method: Any = model.method
    W = method.trajectory(model, data())
    prepared(model)
    subspace = part(model, Subspace)
    with torch.no_grad():
        subspace.z.copy_((W[-1] - W[0]) @ subspace.basis.mT / subspace.length)
    end = make_tiny()
    nn.utils.vector_to_parameters(W[-1], inner(end))
    assert math.isclose(float(subspace.z.norm()), 1.0, rel_tol=1e-3)
    assert torch.allclose(model.features(images), end(images), atol=1e-4)
    assert not torch.allclose(end(images), make_tiny()(images), atol=1e-2)
    assert labels.max() == CLASSES - 1


def test_before_fit_the_subspace_is_random_and_orthonormal() -> None:
    P = part(tuned("dldr", k=5), Subspace).basis
    assert P.shape == (5, sum(p.numel() for p in inner(make_tiny())))
    assert torch.allclose(P @ P.mT, torch.eye(5), atol=1e-5)
    assert not torch.equal(P, part(tuned("dldr", k=5, seed=1), Subspace).basis)


def test_a_sampling_run_that_diverges_is_refused_in_a_sentence() -> None:
    images, labels = images_and_labels()
    model = tuned("dldr", sampling_lr=1e30)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    with pytest.raises(vt.VTError, match=r"loss of the sampling run became (nan|inf)"):
        fit(model, TensorDataset(images, labels))
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


def test_dldr_says_what_it_costs() -> None:
    assert "13.7 GB" in str(DLDR.__doc__)
    assert round(4 * 40 * (85_798_656 - 768 - 151_296) / 1e9, 1) == 13.7
