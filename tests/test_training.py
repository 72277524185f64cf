from __future__ import annotations

import gc
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import TensorDataset

import vtlite as vt
from tests.conftest import make_tiny
from vtlite.training import Diverged, Train, _Run, parameter_groups


def data(count: int = 30, classes: int = 3, seed: int = 0) -> TensorDataset:
    g = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(count, 3, 32, 32, generator=g), torch.randint(classes, (count,), generator=g)
    )


def tuned(name: str = "lora", **settings: object) -> vt.Tuned:
    return vt.tune(make_tiny(), name, num_classes=3, **settings)


def fit(
    model: vt.Tuned, train: TensorDataset | None = None, **arguments: object
) -> list[dict[str, float]]:
    return vt.fit(
        model,
        data() if train is None else train,
        **{"epochs": 3, "batch_size": 8, "progress": False, **arguments},
    )  # type: ignore[arg-type]


def values(model: vt.Tuned) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lora", {}),
        ("adaptformer", {"dropout": 0.5}),
        ("linear", {}),
        ("kd", {"teacher_epochs": 1}),
    ],
)
def test_the_seed_decides_everything(name: str, settings: dict) -> None:
    models = [tuned(name, **settings) for _ in range(3)]
    histories = [fit(model, seed=seed) for model, seed in zip(models, (0, 0, 1), strict=True)]
    assert torch.equal(values(models[0]), values(models[1]))
    assert [row["loss"] for row in histories[0]] == [row["loss"] for row in histories[1]]
    assert not torch.equal(values(models[0]), values(models[2]))


def test_torchs_own_generator_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    fit(tuned())
    assert torch.equal(state, torch.random.get_rng_state())


def test_history_tells_what_happened() -> None:
    model, train, val = tuned("full"), data(), data(10, seed=1)
    history = fit(model, train, val=val, epochs=4)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert history[-1]["val_accuracy"] == vt.evaluate(model, val)["accuracy"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_the_methods_own_learning_rate_is_the_default() -> None:
    a, b = tuned(), tuned()
    fit(a)
    fit(b, lr=a.method.lr)
    assert torch.equal(values(a), values(b))


KILLED = """
import os, signal, sys, torch
from tests.test_training import data, tuned, values, fit
torch.set_num_threads(1)
calls = 0
def die(images):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return images
fit(tuned("adaptformer", dropout=0.5), epochs=4, augment=die, checkpoint=sys.argv[1])
"""


def test_a_killed_run_continues_to_the_same_result(tmp_path: Path) -> None:
    whole, path = tuned("adaptformer", dropout=0.5), tmp_path / "run.safetensors"
    history = fit(whole, epochs=4, augment=lambda images: images)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), "10"],
        cwd=Path(__file__).parents[1],
        env={**os.environ},
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL  # in the third epoch: four batches make one
    continued = tuned("adaptformer", dropout=0.5)
    again = fit(continued, epochs=4, augment=lambda images: images, checkpoint=path)
    assert torch.equal(values(continued), values(whole))
    assert [row["loss"] for row in again] == [row["loss"] for row in history]
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, second = tuned(), tuned()
    fit(first, checkpoint=tmp_path / "run.safetensors")
    fit(
        second,
        checkpoint=tmp_path / "run.safetensors",
        augment=lambda images: pytest.fail("trained again"),
    )
    assert torch.equal(values(first), values(second))


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    fit(tuned(), checkpoint=path)
    with pytest.raises(
        vt.VTError,
        match=r"belongs to another run \(epochs, seed differ\); delete it or give another path",
    ):
        fit(tuned(), checkpoint=path, epochs=5, seed=1)


def test_cached_features_train_the_same_head() -> None:
    cached, plain = tuned("linear"), tuned("linear")
    seen: list[int] = []
    cached.backbone.patch_embed.register_forward_hook(
        lambda module, inputs, output: seen.append(len(output))
    )
    fit(cached, epochs=5, val=data(10, seed=1))
    assert sum(seen) == 30 + 10  # every image once, whatever the number of epochs
    fit(plain, epochs=5, augment=lambda images: images)  # augmented images have no fixed features
    assert torch.allclose(values(cached), values(plain), atol=1e-5)


def unchanged(call, model: vt.Tuned, error: type[BaseException], match: str) -> None:
    before = values(model)
    with pytest.raises(error, match=match):
        call()
    assert torch.equal(values(model), before)
    assert not model.training


@pytest.mark.parametrize("name", ["full", "linear"])
@pytest.mark.parametrize("label", [3, -1])
def test_labels_out_of_range_leave_the_model_alone(name: str, label: int) -> None:
    train, model = data(), tuned(name)
    train.tensors[1][20] = label
    unchanged(
        lambda: fit(model, train),
        model,
        vt.VTError,
        "expected labels from 0 to 2, found .* tune with the task's num_classes",
    )
    with pytest.raises(vt.VTError, match="expected labels from 0 to 2"):
        vt.evaluate(model, train)


@pytest.mark.parametrize("name", ["full", "linear"])
def test_a_nan_pixel_is_named(name: str) -> None:
    train, model = data(), tuned(name)
    train.tensors[0][17, 1, 5, 5] = math.nan
    unchanged(lambda: fit(model, train), model, vt.VTError, "NaN or infinity in an image")


def test_a_diverging_run_names_step_and_learning_rate() -> None:
    model = tuned("full")
    sentence = r"the loss became (nan|inf) at step \d+ with learning rate \S+e\+\d\d; lower lr"
    unchanged(lambda: fit(model, lr=1e30, warmup=0.0), model, Diverged, sentence)


def test_an_interruption_leaves_the_model_as_it_was() -> None:
    model, calls = tuned("full"), 0

    def interrupt(images: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return images

    unchanged(lambda: fit(model, augment=interrupt), model, KeyboardInterrupt, "^$")


def test_an_empty_data_set_is_an_error() -> None:
    empty = TensorDataset(torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.long))
    model = tuned()
    unchanged(
        lambda: fit(model, empty),
        model,
        vt.VTError,
        "expected at least one image in the training data",
    )
    with pytest.raises(vt.VTError, match="expected at least one image in the evaluation data"):
        vt.evaluate(model, empty)


@pytest.mark.parametrize(
    "arguments", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lr": -1.0}, {"lr": math.nan}]
)
def test_settings_out_of_range(arguments: dict) -> None:
    with pytest.raises(
        vt.VTError,
        match=r"expected (epochs of at least 1|batch_size of at least 1|lr above 0), found",
    ):
        fit(tuned(), **arguments)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    loop = Train(epochs=10, lr=1.0, batch_size=8, warmup=0.2)
    run = _Run(loop, tuned(), data(40), 0)  # 50 steps, the first 10 rising
    rates = [run.lr_at(step) for step in range(51)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == max(rates) == 1.0
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[30] == pytest.approx(0.5)
    assert rates[50] == pytest.approx(0.0)


def test_only_matrices_decay() -> None:
    model = tuned("full")
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, rest = (
        {names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.1)
    )
    assert decayed | rest == set(names.values())
    assert {
        "network.backbone.pos_embed",
        "network.backbone.cls_token",
        "network.backbone.norm.weight",
        "network.head.bias",
    } <= rest
    assert {
        "network.backbone.blocks.0.attn.qkv.weight",
        "network.backbone.patch_embed.proj.weight",
        "network.head.weight",
    } <= decayed


def test_evaluate_by_hand_and_in_eval_mode() -> None:
    model, test = tuned("adaptformer", dropout=0.5), data(17)
    logits = model(test.tensors[0])
    expected = {
        "accuracy": float((logits.argmax(1) == test.tensors[1]).float().mean()),
        "loss": F.cross_entropy(logits, test.tensors[1]).item(),
    }
    model.train()
    assert vt.evaluate(model, test, batch_size=5) == pytest.approx(expected)
    assert model.training


# A copy that is swapped in
# -------------------------------------------------------------------------------------------------


@dataclass
class Grows(vt.Method):
    """Trains, then changes its own structure and settings, writes to frozen weights, trains
    again."""

    width: int = 0

    def attach(self, backbone: Any) -> None:
        backbone.norm.requires_grad_(True)

    def fit(self, model: vt.Tuned, task: Any, train: Any) -> None:
        train(model, task.train)
        model.network.extra = nn.Linear(3, 5)
        model.method = replace(self, width=5)
        model.backbone.blocks[0].mlp.fc1.weight.mul_(2)  # frozen: nobody may share it any longer
        train(model, task.train, each=stop_at(self))


vt.METHODS.pop(Grows.key)  # known to these tests alone


def stop_at(method: Grows) -> Any:
    def each(progress: float) -> None:
        if progress > 0.5 and STOP:
            raise KeyboardInterrupt

    return each


STOP: list[int] = []


@pytest.mark.parametrize("stopped", [True, False])
def test_a_method_that_changes_its_structure_is_swapped_in_whole_or_not_at_all(
    stopped: bool,
) -> None:
    model = vt.tune(make_tiny(), Grows(), num_classes=3)
    network, before = model.network, {n: t.clone() for n, t in model.state_dict().items()}
    STOP[:] = [1] if stopped else []
    if stopped:
        with pytest.raises(KeyboardInterrupt):
            fit(model)
        assert model.network is network
        assert model.method == Grows()
        now = model.state_dict()
        assert now.keys() == before.keys()
        assert all(torch.equal(now[n], t) for n, t in before.items())
    else:
        history = fit(model)
        assert model.method == Grows(width=5)
        assert "network.extra.weight" in model.state_dict()
        assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    first = "network.backbone.blocks.0.mlp.fc1.weight"
    times = 1 if stopped else 2
    assert torch.equal(model.state_dict()[first], times * before[first])


def test_fit_holds_frozen_weights_once() -> None:
    """On ViT-B/16 a training takes room for what trains and its optimiser, not for another 330
    MB."""
    model = vt.tune(vt.create_backbone("vit_base_patch16_224"), "bitfit", 3)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    inside: list[int] = []

    def look(images: Tensor) -> Tensor:
        copies = [o for o in gc.get_objects() if type(o) is nn.Parameter and o.ndim >= 2]
        inside.append(sum(p.nbytes for p in copies if not torch._C._is_cow_tensor(p)))
        return images

    g = torch.Generator().manual_seed(0)
    one = TensorDataset(torch.randn(1, 3, 224, 224, generator=g), torch.tensor([1]))
    fit(model, one, epochs=1, batch_size=1, augment=look)
    weights = sum(p.nbytes for p in frozen)
    assert weights > 300e6
    assert inside
    assert inside[0] < 0.1 * weights  # all large frozen weights are shared, none is a second copy


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("kd", {"teacher_epochs": 2, "teacher_method": "full"}),
        ("lp_ft", {}),
        ("dldr", {"k": 4, "snapshots": 6, "stride": 1}),
        ("gps", {}),
    ],
)
@pytest.mark.parametrize("steps", [2, 6, 8])
def test_a_stopped_training_of_several_parts_continues_exactly_and_repeats_nothing_finished(
    name: str, settings: dict, steps: int, tmp_path: Path
) -> None:
    """Stopped in the teacher's training, between, and in the student's; then resumed; then asked
    for again when it has finished."""
    made: list[str] = []
    whole, part = tuned(name, **settings), tuned(name, **settings)
    with Watch(made):
        fit(whole, epochs=2)
    expected = list(made)
    made.clear()
    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt), Watch(made, stop=steps):
        fit(part, epochs=2, checkpoint=path)
    with Watch(made):
        fit(part, epochs=2, checkpoint=path)
    assert torch.equal(values(part), values(whole))
    lost = len(made) - len(expected)
    assert 0 <= lost <= 6  # at most the batches of the epoch that was stopped (or of one `once`)
    made.clear()
    again = tuned(name, **settings)
    with Watch(made):
        fit(again, epochs=2, checkpoint=path)
    assert torch.equal(values(again), values(whole))
    assert not made, "a finished training was done again"


class Watch:
    """Counts optimiser steps of any kind, and interrupts at one of them."""

    def __init__(self, made: list[str], stop: int = 0) -> None:
        self.made, self.stop = made, stop

    def __enter__(self) -> None:
        self.count = 0

        def step(optimizer: Any, args: Any, kwargs: Any) -> None:
            self.count += 1
            if self.count == self.stop:
                raise KeyboardInterrupt
            self.made.append(type(optimizer).__name__)

        self.handle = register_optimizer_step_pre_hook(step)

    def __exit__(self, *error: object) -> None:
        self.handle.remove()


def test_a_plain_network_cannot_be_fitted_merged_or_saved(tmp_path: Path) -> None:
    backbone = make_tiny()
    for call in (
        lambda: vt.fit(backbone, data()),
        lambda: vt.merge(backbone),
        lambda: vt.save_delta(backbone, tmp_path / "d"),
    ):
        with pytest.raises(vt.VTError, match=r"expected a model that vt.tune made, found Vision"):
            call()
    with pytest.raises(vt.VTError, match="expected a model with a head, found a Vision"):
        vt.evaluate(backbone, data())
    with pytest.raises(vt.VTError, match="expected training data, found a model tuned for a numb"):
        vt.fit(tuned())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"epochs": 1.5}, "expected epochs of at least 1, found 1.5; give a whole number"),
        ({"epochs": True}, "expected epochs of at least 1, found True"),
        ({"epochs": 10**9}, "expected epochs of at most 1,000,000"),
        ({"lr": "1e-3"}, "expected lr above 0, found '1e-3'"),
        ({"lr": math.inf}, "expected lr above 0, found inf"),
        ({"batch_size": "8"}, "expected batch_size of at least 1, found '8'"),
        ({"seed": "a"}, "expected seed of at least 0, found 'a'"),
        ({"seed": 2**64}, "expected seed of at most 4,294,967,295"),
        ({"warmup": 2}, "expected warmup from 0 to 1, a share of the steps, found 2"),
        ({"warmup": -1}, "expected warmup from 0 to 1"),
        ({"weight_decay": -1}, "expected weight_decay of at least 0, found -1"),
        ({"augment": 3}, "expected augment to map a batch"),
        ({"augment": lambda x: None}, "expected augment to return images, found NoneType"),
        ({"augment": lambda x: x.nothing}, "it fails on .*AttributeError"),
        ({"checkpoint": 3}, "expected a checkpoint as text or a Path, found 3"),
        ({"checkpoint": "/nowhere/at/all"}, "expected an existing folder to write all into"),
        ({"progress": "no"}, "expected progress to be True or False"),
        ({"epoch": 3}, "unknown argument of fit 'epoch': did you mean 'epochs'"),
        ({"batchsize": 3}, "did you mean 'batch_size'"),
        ({"val": []}, "expected at least one image in the validation data"),
    ],
)
def test_a_wrong_setting_is_one_sentence_before_anything_runs(
    arguments: dict, sentence: str
) -> None:
    model = tuned()
    unchanged(lambda: fit(model, **arguments), model, vt.VTError, sentence)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fit_trains_where_gradients_are_off(mode: Any) -> None:
    model, other = tuned(), tuned()
    with mode():
        history = fit(model)
        assert not torch.is_grad_enabled()
    assert [row["loss"] for row in history] == [row["loss"] for row in fit(other)]


def test_numpy_numbers_are_settings() -> None:
    found = fit(tuned(), epochs=np.int64(2), lr=np.float64(1e-3), batch_size=np.int32(8))
    assert [row["loss"] for row in found] == [
        row["loss"] for row in fit(tuned(), epochs=2, lr=1e-3)
    ]


def test_a_checkpoint_of_other_classes_is_refused(tmp_path: Path) -> None:
    fit(tuned(), checkpoint=tmp_path / "c")
    other = vt.tune(make_tiny(), "lora", num_classes=4)
    unchanged(
        lambda: fit(other, checkpoint=tmp_path / "c"), other, vt.VTError, "another run .task differ"
    )


def test_evaluation_leaves_every_module_in_its_mode() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(3072, 3)).train()
    plain[1].eval()
    vt.evaluate(plain, data())
    assert [m.training for m in plain.modules()] == [True, True, False, True]


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("lora", "expected a model, found 'lora'"),
        (nn.Conv2d(3, 3, 3), r"expected logits \[B, classes\], found \[30, 3, 30, 30\]"),
        (nn.Linear(5, 5), r"Linear, which fails on images \[30, 3, 32, 32\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), "expected labels from 0 to 1"),
    ],
)
def test_a_model_that_does_not_answer(model: Any, sentence: str) -> None:
    with pytest.raises(vt.VTError, match=sentence):
        vt.evaluate(model, data())


def test_weights_of_nan_are_refused_not_scored(tmp_path: Path) -> None:
    model = tuned()
    with torch.no_grad():
        model.head.bias.fill_(math.nan)
    with pytest.raises(vt.VTError, match="found NaN from Tuned"):
        vt.evaluate(model, data())
    with pytest.raises(vt.VTError, match=r"NaN or infinity in network\.head\.bias"):
        vt.save_delta(model, tmp_path / "d")
    assert not list(tmp_path.iterdir())
