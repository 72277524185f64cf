"""A plain training loop for every method: AdamW, warm-up and cosine, exact resume, and no work
repeated that need not be."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from tqdm.auto import tqdm

from vtlite.backbones.stages import layer_of, stage_names
from vtlite.methods import Method
from vtlite.storage import VTError, load_tensors, save_tensors
from vtlite.tuning import Tuned, trained_state

History = list[dict[str, float]]


def fit(
    model: Tuned,
    train: Dataset[Any],
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
    """Train `model` in place and return one dict per epoch: epoch, loss, lr, seconds and, with
    `val`, val_accuracy and val_loss.

    `lr` is the method's own if not given. The learning rate rises linearly over the first `warmup`
    share of the steps and falls to zero along a cosine. `seed` fixes the order of the images and
    all random numbers; torch's own generator is left as it was. `augment` maps each batch before
    the model sees it. When nothing before the head trains, the features are computed once. With
    `checkpoint`, the state is kept in that file after every epoch, and the same call continues from
    there, to the same result as if it had never stopped.

    `fit` either finishes or leaves the model as it was. Raises `VTError` for an empty data set,
    labels out of range, NaN in an image, a loss that is not finite (with the step and learning
    rate), or a checkpoint of another run.
    """
    _expect_images(train, "training")
    lr = model.method.lr if lr is None else lr
    if epochs < 1 or batch_size < 1 or not lr > 0:
        raise VTError(
            f"expected epochs and batch_size of at least 1 and lr above 0, found {epochs}, {batch_size} and {lr}"
        )
    before = {name: tensor.detach().clone() for name, tensor in trained_state(model).items()}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.method.prepare(model, train)
            run = _Run(
                model, train, val, epochs, lr, seed, batch_size, weight_decay, warmup, augment
            )
            history = run.train(Path(checkpoint) if checkpoint else None, progress)
            model.method.finish(model)
            return history
    except BaseException:
        with torch.no_grad():
            for name, tensor in trained_state(model).items():
                tensor.copy_(before[name])
        raise
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()


@torch.no_grad()
def evaluate(model: nn.Module, data: Dataset[Any], batch_size: int = 200) -> dict[str, float]:
    """Accuracy in [0, 1] and mean cross-entropy of any model that maps images to logits, in eval
    mode -> {"accuracy", "loss"}.

    Raises `VTError` for an empty data set or labels out of range.
    """
    _expect_images(data, "evaluation")
    training, device = model.training, next(model.parameters()).device
    model.eval()
    correct, loss, count = 0.0, 0.0, 0
    for images, labels in DataLoader(data, batch_size):
        logits, labels = model(images.to(device)), labels.to(device)
        check_labels(labels, logits.shape[1])
        correct += (logits.argmax(dim=1) == labels).sum().item()
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        count += len(labels)
    model.train(training)
    return {"accuracy": correct / count, "loss": loss / count}


@torch.no_grad()
def extract_features(model: Tuned, data: Dataset[Any], batch_size: int = 200) -> TensorDataset:
    """The features before the head and the labels of a whole data set, computed once ->
    TensorDataset of [N, D] and [N]."""
    device = next(model.parameters()).device
    batches = [
        (model.features(images.to(device)), labels)
        for images, labels in DataLoader(data, batch_size)
    ]
    return TensorDataset(torch.cat([f for f, _ in batches]), torch.cat([y for _, y in batches]))


def fit_head(model: Tuned, train: Dataset[Any], c: float = 1.0) -> None:
    """Fit the linear head by logistic regression on the model's features, in place: penalty |w|^2 /
    (2 c n), to convergence.

    The features are standardised by one mean and one standard deviation for the fit, which are then
    folded into the head.
    """
    features, labels = extract_features(model, train).tensors
    check_labels(labels, model.num_classes)
    mean, std = features.mean(), features.std() + 1e-6
    x, labels = (features - mean) / std, labels.to(features.device)  # [n, D], [n]
    weight = torch.zeros(model.num_classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(model.num_classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels) + weight.square().sum() / (
            2 * c * len(x)
        )
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        model.head.get_parameter("weight").copy_(weight / std)
        model.head.get_parameter("bias").copy_(bias - weight.sum(dim=1) * mean / std)


def parameter_groups(model: Tuned, weight_decay: float) -> list[dict[str, Any]]:
    """What the optimiser gets: weight decay on matrices only, none on biases, norms, scales,
    positions and the class token.

    Where the method scales learning rates by layer, every layer has its own two groups, and each
    group knows its "layer".
    """
    names = (
        stage_names(model.backbone) if type(model.method).lr_scale is not Method.lr_scale else None
    )
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and not name.endswith(("pos_embed", "cls_token"))
            groups.setdefault((layer_of(name, names) if names else 0, decays), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay * decays, "layer": layer}
        for (layer, decays), parameters in sorted(
            groups.items(), key=lambda item: (item[0][0], not item[0][1])
        )
    ]


class Diverged(VTError):
    """The loss is no longer finite: the learning rate is too large."""


class _Run:
    """One training run: what it trains on and where it stands."""

    def __init__(
        self,
        model: Tuned,
        train: Dataset[Any],
        val: Dataset[Any] | None,
        epochs: int,
        lr: float,
        seed: int,
        batch_size: int,
        weight_decay: float,
        warmup: float,
        augment: Callable[[Tensor], Tensor] | None,
    ) -> None:
        frozen = not any(p.requires_grad for p in model.backbone.parameters())
        cached = frozen and augment is None and type(model.method).loss is Method.loss
        if cached:
            train = extract_features(model, train, batch_size)
            val = extract_features(model, val, batch_size) if val is not None else None
        self.model, self.network = model, model.head if cached else model
        self.train_data, self.val_data, self.augment = train, val, augment
        self.epochs, self.lr, self.seed, self.warmup, self.batch_size = (
            epochs,
            lr,
            seed,
            warmup,
            batch_size,
        )
        self.device = next(model.parameters()).device
        self.num_images = len(cast(Any, train))
        self.steps_per_epoch = math.ceil(self.num_images / batch_size)
        self.depth = len(stage_names(model.backbone))
        self.optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr)
        self.history: History = []
        self.identity = {
            "method": model.method.key,
            "settings": model.method.settings(),
            "backbone": model.fingerprint,
            "epochs": epochs,
            "lr": lr,
            "seed": seed,
            "batch_size": batch_size,
            "weight_decay": weight_decay,
            "warmup": warmup,
            "images": self.num_images,
        }

    def train(self, checkpoint: Path | None, progress: bool) -> History:
        if checkpoint and checkpoint.exists():
            self.resume(checkpoint)
        total, done = self.epochs * self.steps_per_epoch, len(self.history) * self.steps_per_epoch
        with tqdm(
            total=total,
            initial=done,
            desc=self.model.method.key.rsplit("/", 1)[-1],
            disable=not progress,
            unit="step",
        ) as bar:
            for epoch in range(len(self.history), self.epochs):
                self.history.append(self.one_epoch(epoch, bar))
                if checkpoint:
                    self.save(checkpoint)
        return self.history

    def one_epoch(self, epoch: int, bar: tqdm) -> dict[str, float]:
        torch.manual_seed(
            self.seed * 1_000_003 + epoch
        )  # each epoch has its own random numbers: a resumed run needs no saved generator
        start, loss_sum = time.perf_counter(), 0.0
        self.model.train()
        for step, (images, labels) in enumerate(
            DataLoader(self.train_data, self.batch_size, shuffle=True), epoch * self.steps_per_epoch
        ):
            loss_sum += self.step(step, images.to(self.device), labels.to(self.device)) * len(
                labels
            )
            bar.update()
        row = {
            "epoch": epoch + 1,
            "loss": loss_sum / self.num_images,
            "lr": self.lr_at((epoch + 1) * self.steps_per_epoch - 1),
        }
        if self.val_data is not None:
            row.update(
                {
                    f"val_{name}": value
                    for name, value in evaluate(self.network, self.val_data).items()
                }
            )
        bar.set_postfix(
            {
                name: f"{value:.3f}"
                for name, value in row.items()
                if name in ("loss", "val_accuracy")
            }
        )
        return {**row, "seconds": time.perf_counter() - start}

    def step(self, step: int, images: Tensor, labels: Tensor) -> float:
        check_labels(labels, self.model.num_classes)
        lr = self.lr_at(step)
        progress = step / (self.epochs * self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * self.model.method.lr_scale(group["layer"], self.depth, progress)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model.method.backward(
            self.network, self.augment(images) if self.augment else images, labels
        ).item()
        if not math.isfinite(loss):
            if not torch.isfinite(images).all():
                raise VTError(
                    f"expected finite pixels, found NaN or infinity in an image at step {step + 1}; clean the data set first"
                )
            raise Diverged(
                f"the loss became {loss} at step {step + 1} with learning rate {lr:.2g}; lower lr, or raise warmup"
            )
        self.optimizer.step()
        return loss

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then cosine to zero at the end of the last step."""
        total = self.epochs * self.steps_per_epoch
        rising = self.warmup * total
        if step < rising:
            return self.lr * (step + 1) / (rising + 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, total - rising)))

    def save(self, path: Path) -> None:
        tensors = {f"model/{name}": t for name, t in trained_state(self.model).items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer/{i}/{name}": t for name, t in state.items()})
        save_tensors(path, tensors, {"run": self.identity, "history": self.history})

    def resume(self, path: Path) -> None:
        tensors, metadata = load_tensors(path)
        if metadata.get("run") != self.identity:
            found = metadata.get("run")
            differing = [
                k
                for k, v in self.identity.items()
                if not isinstance(found, dict) or found.get(k) != v
            ]
            raise VTError(
                f"the checkpoint {path} belongs to another run ({', '.join(differing)} differ); delete it or give another path"
            )
        optimizer: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            state = trained_state(self.model)
            for key, tensor in tensors.items():
                kind, _, rest = key.partition("/")
                if kind == "model":
                    state[rest].copy_(tensor)
                else:
                    index, _, name = rest.partition("/")
                    optimizer.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict(
            {"state": optimizer, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        self.history = cast(History, metadata["history"])


def _expect_images(data: Dataset[Any], purpose: str) -> None:
    if len(cast(Any, data)) == 0:
        raise VTError(
            f"expected at least one image in the {purpose} data, found an empty data set; check the folder or the split"
        )


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise `VTError` unless labels [B] lie between 0 and num_classes - 1."""
    if labels.min() < 0 or labels.max() >= num_classes:
        raise VTError(
            f"expected labels from 0 to {num_classes - 1}, found {int(labels.min())} to {int(labels.max())}; "
            "tune with the task's num_classes, or count labels from 0"
        )
