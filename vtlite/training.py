"""A plain training loop for every method: AdamW, warm-up and cosine, exact resume, and no work
repeated that need not be."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from vtlite.arguments import expect_kinds, named, number, seed_number, whole
from vtlite.backbones.base import outside, pixels_of
from vtlite.data.items import Features, as_items, batches
from vtlite.journal import Journal
from vtlite.method import Tuned, short
from vtlite.storage import VTError, as_path, expect_folder, said
from vtlite.task import Classification, Task
from vtlite.tuning import evaluating, trained_state

History = list[dict[str, float]]


class Diverged(VTError):
    """The loss is no longer finite: the learning rate is too large."""


@named
def fit(
    model: Tuned,
    train: Dataset[Any] | None = None,
    val: Dataset[Any] | None = None,
    *,
    epochs: int = 10,
    lr: float | None = None,
    seed: int = 0,
    batch_size: int = 50,
    weight_decay: float = 1e-4,
    warmup: float = 0.1,
    augment: Callable[[Tensor], Tensor] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> History:
    """Train `model` as its method says and return one dict per epoch: epoch, loss, lr, seconds and,
    with validation data, val_loss and the task's scores (val_accuracy).

    Without `train`, the task that the model was tuned for is trained and validated on. Items of
    `train` and `val` are (float image, label), or dicts of both as in Hugging Face's data sets; of
    a `DataLoader` its data set is taken. `lr` is the method's own if not given. The learning rate
    rises linearly over the first `warmup` share of the steps and falls to zero along a cosine.
    `seed` fixes the order of the images and all random numbers; torch's own generator is left as it
    was. `augment` maps each batch before the model sees it. With `checkpoint`, the state is kept in
    that file after every epoch, and the same call continues from there, to the same result as if it
    had never stopped.

    All of it happens to a copy, which takes the model's place when it has finished: a training that
    is interrupted or fails leaves the model as it was. Raises `VTError` for settings out of range,
    an empty data set, targets out of range, NaN in an image, a loss that is not finite (`Diverged`,
    with step and learning rate), or a checkpoint of another run.
    """
    _expect_tuned(model)
    epochs, batch_size = whole("epochs", epochs), whole("batch_size", batch_size)
    lr = number("lr", model.method.lr if lr is None else lr, "above 0", lambda n: n > 0)
    weight_decay = number("weight_decay", weight_decay, "of at least 0", lambda n: n >= 0)
    warmup = number("warmup", warmup, "from 0 to 1, a share of the steps", lambda n: 0 <= n <= 1)
    seed = seed_number(seed)
    expect_kinds("fit", {"progress": progress}, {"progress": bool})
    if augment is not None and not callable(augment):
        raise VTError(
            f"expected augment to map a batch of images to another, found {said(augment)}; "
            "pass a function"
        )
    if checkpoint is not None:
        checkpoint = as_path(checkpoint, "checkpoint")
        expect_folder(checkpoint)
    task = _with_data(model.task, train, val)
    _warn_of_pixels(model, task.train)
    identity = {
        "method": model.method.key,
        "settings": model.method.settings(),
        "task": model.task.record(),
        "backbone": model.fingerprint,
        "epochs": epochs,
        "lr": lr,
        "seed": seed,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "images": len(cast(Any, task.train)),
    }
    loop = Train(
        epochs=epochs,
        lr=lr,
        seed=seed,
        batch_size=batch_size,
        weight_decay=weight_decay,
        warmup=warmup,
        augment=augment,
        progress=progress,
        val=task.val,
        journal=Journal(checkpoint, identity),
    )
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        trial = lazy_copy(model)
        trial.method.fit(trial, task, loop)
    trial.eval().zero_grad(set_to_none=True)
    history = loop.history_of(trial)
    model.method = trial.method
    model.network = trial.network  # one step: an interruption finds the old model or the new one
    model.training = False
    return history


def _expect_tuned(model: Any) -> None:
    if not isinstance(model, Tuned):
        raise VTError(
            f"expected a model that vt.tune made, found {type(model).__name__}; "
            'tune it first, e.g. vt.tune(backbone, "lora", num_classes=10)'
        )


def _warn_of_pixels(model: Tuned, data: Any) -> None:
    """Say so if some of the images can't be in the range that the backbone was trained on."""
    backbone = getattr(model.network, "backbone", None)
    if backbone is None:
        return
    with torch.random.fork_rng(devices=[]):  # an item may draw its augmentation
        images = [data[i][0] for i in range(0, len(data), max(1, len(data) // 8))]
    if why := outside(pixels_of(backbone), images):
        warnings.warn(why, stacklevel=4)  # at the line of the user


def lazy_copy(model: Tuned) -> Tuned:
    """A copy that shares every tensor with `model` until one of the two is written to.

    So weights that stay frozen exist once, whatever the method does to the others.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        shared = torch._lazy_clone(parameter.detach())  # copied on the first write, by torch itself
        memo[id(parameter)] = nn.Parameter(shared, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch._lazy_clone(buffer)
    return copy.deepcopy(model, memo)


@dataclass
class Train:
    """The plain loop, with the settings of one `fit`: a method calls it once, never or often."""

    epochs: int = 10
    lr: float = 1e-2
    seed: int = 0
    batch_size: int = 50
    weight_decay: float = 1e-4
    warmup: float = 0.1
    augment: Callable[[Tensor], Tensor] | None = None
    progress: bool = True
    val: Dataset[Any] | None = None
    journal: Journal = field(default_factory=Journal)
    histories: list[tuple[Tuned, History]] = field(default_factory=list)

    def __call__(
        self,
        model: Tuned,
        data: Dataset[Any] | None,
        each: Callable[[float], Any] | None = None,
        **changes: Any,
    ) -> History:
        """Train `model` on `data` in place -> one row per epoch.

        `each` is called before every step with the progress in [0, 1); if it returns True the
        training ends there. `changes` replace settings of this loop for this training alone.
        """
        run = _Run(replace(self, **changes), model, data, self.journal.begin())
        torch.manual_seed(run.seed)
        ended = run.resume()
        first, last = len(run.history), 0 if ended else run.loop.epochs
        with run.bar() as bar:
            for epoch in range(first, last):
                ended = run.one_epoch(epoch, bar, each)
                run.save(finished=ended or epoch + 1 == last)
                if ended:
                    break
        torch.manual_seed(run.seed + 1)  # what follows draws the same, trained or resumed
        self.histories.append((model, run.history))
        return run.history

    def once(self, model: Tuned, do: Callable[[], Any]) -> None:
        """Let `do` change tensors of the model, or take its result from the checkpoint if it was
        finished before."""
        step = self.journal.begin()
        torch.manual_seed(self.seed + 7919 * step)
        if not self.journal.restore(step, trained_state(model)):
            do()
            self.journal.keep(step, trained_state(model), finished=True)
        torch.manual_seed(self.seed + 7919 * step + 1)

    def history_of(self, model: Tuned) -> History:
        """The rows of all trainings of this model, numbered through."""
        rows = [row for trained, history in self.histories if trained is model for row in history]
        return [{**row, "epoch": i} for i, row in enumerate(rows, 1)]


class _Run:
    """One training: what it trains on and where it stands."""

    def __init__(self, loop: Train, model: Tuned, data: Dataset[Any] | None, step: int) -> None:
        self.loop, self.model, self.step = loop, model, step
        self.data: Any = as_items(data, "training")
        self.val: Any = loop.val
        self.network: Any = model
        self.seed = loop.seed + 7919 * step
        if model.method.frozen_features and loop.augment is None and _backbone_is_frozen(model):
            self.data, self.network = extract_features(model, data, loop.batch_size), _Head(model)
            if self.val is not None:
                self.val = extract_features(model, self.val, loop.batch_size)
        self.device = device_of(model)
        self.steps_per_epoch = math.ceil(len(self.data) / loop.batch_size)
        self.total = loop.epochs * self.steps_per_epoch
        self.optimizer = torch.optim.AdamW(parameter_groups(model, loop.weight_decay), lr=loop.lr)
        self.history: History = []

    def bar(self) -> tqdm:
        """The progress, from where the run stands."""
        done, name = len(self.history) * self.steps_per_epoch, short(self.model.method.key)
        hidden = not self.loop.progress
        return tqdm(total=self.total, initial=done, desc=name, disable=hidden, unit="step")

    def one_epoch(self, epoch: int, bar: tqdm, each: Callable[[float], Any] | None) -> bool:
        """Train, validate, and add a row to the history; True if `each` ended the training."""
        # Each epoch has its own random numbers: a resumed run needs no saved generator.
        torch.manual_seed(self.seed * 1_000_003 + epoch)
        start, loss_sum, seen, ended = time.perf_counter(), 0.0, 0, False
        self.model.train()
        shuffled = batches(self.data, self.loop.batch_size, shuffle=True)
        for step, (inputs, targets) in enumerate(shuffled, epoch * self.steps_per_epoch):
            if each is not None and each(step / self.total):
                ended = True
                break
            inputs, targets = to_device(inputs, self.device), to_device(targets, self.device)
            loss_sum += self.one_step(step, inputs, targets) * len(inputs)
            seen += len(inputs)
            bar.update()
        if ended and not seen:
            return True  # there was no such epoch
        row = {
            "epoch": epoch + 1,
            "loss": loss_sum / max(1, seen),
            "lr": self.lr_at((epoch + 1) * self.steps_per_epoch - 1),
        }
        if self.val is not None:
            scores = _scores(self.network, self.val, 200, self.model.task)
            row.update({f"val_{name}": value for name, value in scores.items()})
        shown = ("loss", f"val_{self.model.task.metric}")
        bar.set_postfix({name: f"{row[name]:.3f}" for name in shown if name in row})
        self.history.append({**row, "seconds": time.perf_counter() - start})
        return ended

    def one_step(self, step: int, inputs: Any, targets: Any) -> float:
        targets = self.model.task.check(targets, _images(self.network, inputs))
        lr = self.lr_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"](step / self.total)
        self.optimizer.zero_grad(set_to_none=True)
        seen = self.augmented(inputs)
        loss = self.model.method.backward(self.network, seen, targets).item()
        if not math.isfinite(loss):
            if not torch.isfinite(seen).all():
                raise VTError(
                    "expected finite pixels, found NaN or infinity in an augmented image at step "
                    f"{step + 1}; mend augment"
                )
            raise Diverged(
                f"the loss became {loss} at step {step + 1} with learning rate {lr:.2g}; "
                "lower lr, or raise warmup"
            )
        self.optimizer.step()
        return loss

    def augmented(self, inputs: Any) -> Any:
        if self.loop.augment is None:
            return inputs
        try:
            seen = self.loop.augment(inputs)
        except Exception as error:  # it is the user's
            raise VTError(
                "expected augment to map a batch of images to another, but it fails on "
                f"{list(inputs.shape)} ({_first_line(error)}); try it by itself"
            ) from error
        if not isinstance(seen, Tensor):
            raise VTError(
                f"expected augment to return images, found {type(seen).__name__}; let it return a "
                "tensor"
            )
        return seen

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then cosine to zero at the end of the last step."""
        rising = self.loop.warmup * self.total
        if step < rising:
            return self.loop.lr * (step + 1) / (rising + 1)
        along = (step - rising) / max(1.0, self.total - rising)
        return self.loop.lr * 0.5 * (1 + math.cos(math.pi * along))

    def save(self, finished: bool) -> None:
        state, rows = trained_state(self.model), self.history
        optimizer = None if finished else self.optimizer.state_dict()["state"]
        self.loop.journal.keep(self.step, state, optimizer, rows, finished)

    def resume(self) -> bool:
        """Take up what the checkpoint has of this training; True if it had ended."""
        found = self.loop.journal.restore(self.step, trained_state(self.model))
        if not found:
            return False
        self.history = found.history
        if found.optimizer:
            groups = self.optimizer.state_dict()["param_groups"]
            for group, own in zip(groups, self.optimizer.param_groups, strict=True):
                group["scale"] = own["scale"]
            self.optimizer.load_state_dict({"state": found.optimizer, "param_groups": groups})
        return found.finished


class _Head(nn.Module):
    """A tuned model behind its features, which were computed before: features -> answer."""

    def __init__(self, model: Tuned) -> None:
        super().__init__()
        self.head, self.task = model.head, model.task

    def features(self, features: Tensor) -> Tensor:
        """What the head reads, for a loss that asks for more than the answer."""
        return features

    def forward(self, features: Tensor) -> Any:
        return self.head(features)


def _images(network: nn.Module, inputs: Any) -> Any:
    """What the network sees, for its task to look at; None where it gets features in its place."""
    return None if isinstance(network, _Head) else inputs


def _backbone_is_frozen(model: Tuned) -> bool:
    return not any(p.requires_grad for p in model.backbone.parameters())


def parameter_groups(model: Tuned, weight_decay: float) -> list[dict[str, Any]]:
    """The method's groups for the optimiser, each with its "scale" and split in two: weight decay
    on matrices only, none on biases, norms, scales, positions and the class token."""
    names = {id(p): name for name, p in model.named_parameters()}

    def decays(p: nn.Parameter) -> bool:
        return p.ndim >= 2 and not names.get(id(p), "").endswith(("pos_embed", "cls_token"))

    groups = []
    for group in model.method.groups(model):
        for wanted in (True, False):
            if parameters := [p for p in group["params"] if decays(p) == wanted]:
                kept = {"params": parameters, "weight_decay": weight_decay * wanted}
                groups.append({"scale": lambda progress: 1.0, **group, **kept})
    return groups


@named
def evaluate(
    model: nn.Module, data: Dataset[Any], batch_size: int = 200, task: Task | None = None
) -> dict[str, float]:
    """The task's scores (accuracy in [0, 1]) and mean loss of any model that answers it, in eval
    mode -> {"accuracy", "loss"}.

    The task is the model's own; of a model without one, images to logits are taken for a
    classification. Items of `data` are as for `fit`. Raises `VTError` for an empty data set,
    targets out of range, or a model that does not answer.
    """
    if not isinstance(model, nn.Module):
        raise VTError(
            f"expected a model, found {said(model)}; pass one that vt.tune or vt.merge made"
        )
    if not (task is None or isinstance(task, Task)):
        raise VTError(f"expected a task, found {said(task)}; leave it out, or vt.load_task one")
    data, batch_size = as_items(data, "evaluation"), whole("batch_size", batch_size)
    if isinstance(model, Tuned):
        _warn_of_pixels(model, data)
    return _scores(model, data, batch_size, task or getattr(model, "task", None))


def _scores(model: nn.Module, data: Any, batch_size: int, task: Task | None) -> dict[str, float]:
    device, answers, targets = device_of(model), [], []
    with evaluating(model):
        for inputs, target in batches(data, batch_size):
            answers.append(_answer(model, to_device(inputs, device)))
            task = task or _classification(model, answers[-1])
            targets.append(to_device(task.check(target, _images(model, inputs)), device))
        assert task is not None
        whole_answer, expected = joined(answers), joined(targets)
        if isinstance(whole_answer, Tensor) and whole_answer.isnan().any():
            raise VTError(
                f"expected numbers as answers, found NaN from {type(model).__name__}; "
                "its weights are damaged or its training went wrong"
            )
        try:
            loss = task.loss(whole_answer, expected).item()
            return {**task.score(whole_answer, expected), "loss": loss}
        except (RuntimeError, IndexError, KeyError, TypeError) as error:
            raise VTError(
                f"expected answers to a {type(task).__name__} of {task.num_classes} classes, found "
                f"others from {type(model).__name__} ({_first_line(error)}); pass the task that "
                "the model was made for"
            ) from error


def _answer(model: nn.Module, inputs: Tensor) -> Any:
    """What a model says to a batch. Raises `VTError` if it fails, as a model of one's own may."""
    try:
        answer = model(inputs)
    except VTError:
        raise
    except Exception as error:
        raise VTError(
            f"expected a model from images to answers, found {type(model).__name__}, which fails "
            f"on images {list(inputs.shape)} ({_first_line(error)}); try model(images) by itself"
        ) from error
    if not isinstance(answer, Tensor | dict):
        raise VTError(
            f"expected a model that answers with a tensor of logits, found "
            f"{type(model).__name__}, which answers with {type(answer).__name__}; wrap it in a "
            "module that returns the logits"
        )
    return answer


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _classification(model: Any, logits: Any) -> Task:
    """What a plain model is asked: as many classes as it has logits."""
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise VTError(
            f"expected logits [B, classes], found {shape} from {type(model).__name__}; pass the "
            "task that it answers: vt.evaluate(model, data, task=...)"
        )
    if logits.shape[1] == getattr(model, "num_features", None):
        head = model.get_classifier() if hasattr(model, "get_classifier") else None
        if isinstance(head, nn.Identity):
            raise VTError(
                f"expected a model with a head, found a {type(model).__name__} that ends in "
                f"{logits.shape[1]} features; tune it first, or give it a head with "
                "reset_classifier(num_classes)"
            )
    return Classification(classes=tuple(str(i) for i in range(logits.shape[1])))


@named
def extract_features(model: Tuned, data: Any, batch_size: int = 200) -> Features:
    """The features before the head and the targets of a whole data set, computed once, in eval
    mode. Raises `VTError` as `evaluate`."""
    _expect_tuned(model)
    data, batch_size = as_items(data, "extraction"), whole("batch_size", batch_size)
    device = device_of(model)
    with evaluating(model):
        parts = [
            (model.features(inputs.to(device)), model.task.check(targets, inputs))
            for inputs, targets in batches(data, batch_size)
        ]
    return Features(joined([f for f, _ in parts]), joined([y for _, y in parts]))


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU for one without."""
    return next(model.parameters(), torch.empty(0)).device


def fit_head(model: Tuned, train: Any, c: float = 1.0) -> None:
    """Fit the linear head by logistic regression on the model's features, in place: penalty |w|^2 /
    (2 c n), to convergence.

    The features are standardised by one mean and one standard deviation for the fit, which are then
    folded into the head. Raises `VTError` for a head that is not linear.
    """
    if not (isinstance(model.head, nn.Linear) and isinstance(model.task, Classification)):
        raise VTError(
            "expected a classification with a linear head for a logistic regression, found a "
            f"{type(model.task).__name__} with a {type(model.head).__name__}; choose another method"
        )
    found = extract_features(model, train)
    features, labels = found.features, found.targets
    mean, std = features.mean(), features.std() + 1e-6
    x, labels = (features - mean) / std, labels.to(features.device)  # [n, D], [n]
    weight = torch.zeros_like(model.head.weight, requires_grad=True)
    bias = torch.zeros_like(model.head.bias, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = weight.square().sum() / (2 * c * len(x))
        loss = F.cross_entropy(F.linear(x, weight, bias), labels) + penalty
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        model.head.weight.copy_(weight / std)
        model.head.bias.copy_(bias - weight.sum(dim=1) * mean / std)


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor, or a dict of them, on the device."""
    if isinstance(value, dict):
        return {name: to_device(each, device) for name, each in value.items()}
    return value.to(device)


def joined(parts: list[Any]) -> Any:
    """Batches of tensors, or of dicts of them, one behind the other."""
    if isinstance(parts[0], dict):
        return {name: joined([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(parts)


def _with_data(task: Task, train: Dataset[Any] | None, val: Dataset[Any] | None) -> Task:
    """The task with the data of this call: its own splits where none are given."""
    if train is None and task.train is None:
        raise VTError(
            "expected training data, found a model tuned for a number of classes; pass them as "
            "vt.fit(model, train), or tune for a task of vt.load_task"
        )
    if train is None:
        val = task.val if val is None else val
    train = as_items(task.train if train is None else train, "training")
    return replace(task, train=train, val=None if val is None else as_items(val, "validation"))
