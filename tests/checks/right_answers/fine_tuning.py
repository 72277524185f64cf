"""Assignment 02: right answers, each written in another way than the solution."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

# freeze_except
# -------------------------------------------------------------------------------------------------


def freeze_by_parts(model: nn.Module, prefixes: tuple[str, ...]) -> int:
    """Names as lists of parts, and a count by NumPy."""
    wanted = [prefix.split(".") for prefix in prefixes]
    total = np.int64(0)
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        train = any(parts[: len(prefix)] == prefix for prefix in wanted)
        parameter.requires_grad_(train)
        total += np.prod(parameter.shape, dtype=np.int64) * train
    return total


def freeze_then_thaw(model: nn.Module, prefixes: tuple[str, ...]) -> int:
    """All off, then those on that are a prefix or go on with a dot."""
    model.requires_grad_(False)
    chosen = {}
    for prefix in prefixes:
        for name, parameter in model.named_parameters():
            if name == prefix or name.startswith(prefix + "."):
                chosen[name] = parameter
    for parameter in chosen.values():
        parameter.requires_grad = True
    return sum(map(Tensor.numel, chosen.values()))


def freeze_by_pattern(model: nn.Module, prefixes: tuple[str, ...]) -> int:
    names = "|".join(map(re.escape, prefixes)) or "(?!)"
    pattern = re.compile(rf"({names})(\..*)?")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = pattern.fullmatch(name) is not None
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class Freezer:
    """An object instead of a function; it climbs from each name to its parents."""

    def __call__(self, model: nn.Module, prefixes: tuple[str, ...]) -> int:
        return sum(self.set(name, p, set(prefixes)) for name, p in model.named_parameters())

    def set(self, name: str, parameter: Tensor, prefixes: set[str]) -> int:
        while name and name not in prefixes:
            name = name.rpartition(".")[0]
        parameter.requires_grad = bool(name)
        return parameter.nelement() if name else 0


# cached_features
# -------------------------------------------------------------------------------------------------


def features_in_place(backbone: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """One tensor, made after the first batch and filled."""
    mode, found = backbone.training, None
    try:
        backbone.train(False)
        with torch.no_grad():
            for i in range(0, len(images), batch_size):
                part = backbone(images[i : i + batch_size])
                if found is None:
                    found = part.new_empty(len(images), *part.shape[1:])
                found[i : i + len(part)] = part
    finally:
        backbone.train(mode)
    assert found is not None
    return found


def features_by_loader(backbone: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    mode = backbone.training
    backbone.eval()
    found = []
    for (batch,) in DataLoader(TensorDataset(images), batch_size=batch_size):
        with torch.set_grad_enabled(False):
            found += list(backbone(batch))
    backbone.train(mode)
    return torch.stack(found)


@torch.no_grad()
def features_by_index(backbone: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """The gradient is off for the whole function; every module gets its own mode back."""
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    parts = [backbone(images[i]) for i in torch.arange(len(images)).split(batch_size)]
    for module, mode in modes:
        module.training = mode
    return torch.concatenate(parts, dim=0)


def features_detached(backbone: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """From the last batch to the first, and put in front."""
    mode = backbone.training
    backbone.eval()
    found: Tensor | None = None
    starts = range(0, images.shape[0], batch_size)
    with torch.no_grad():
        for start in reversed(starts):
            part = backbone(images.narrow(0, start, min(batch_size, len(images) - start)))
            found = part if found is None else torch.cat((part, found))
    if mode:
        backbone.train()
    assert found is not None
    return found.detach()


# layerwise_lrs
# -------------------------------------------------------------------------------------------------


def lrs_by_numpy(names: list[str], depth: int, lr: float, decay: float) -> dict[str, float]:
    """Rates of all layers as an array; its entries are NumPy's numbers."""
    rates = lr * np.power(decay, np.arange(depth + 1, -1, -1))
    layers = {"norm": -1, "head": -1}

    def layer(name: str) -> int:
        part, _, rest = name.partition(".")
        return 1 + int(rest.partition(".")[0]) if part == "blocks" else layers.get(part, 0)

    return {name: rates[layer(name)] for name in names}


def lrs_step_by_step(names: list[str], depth: int, lr: float, decay: float) -> dict[str, float]:
    """Down from the head, one factor a layer."""
    found = dict.fromkeys(names, lr)
    for layer in range(depth + 1):
        for name in names:
            block = re.match(r"blocks\.(\d+)\.", name)
            own = int(block[1]) + 1 if block else 0
            if own <= layer and not name.startswith(("head.", "norm.")):
                found[name] *= decay
    return found


def lrs_by_match(names: list[str], depth: int, lr: float, decay: float) -> dict[str, float]:
    found = {}
    for name in names:
        match name.split("."):
            case ["blocks", number, *_]:
                found[name] = lr * math.pow(decay, depth - int(number))
            case ["norm" | "head", *_]:
                found[name] = lr
            case _:
                found[name] = lr * decay * decay**depth
    return found


# l2_sp_penalty
# -------------------------------------------------------------------------------------------------


def penalty_by_loss(weights: dict[str, Tensor], start: dict[str, Tensor], alpha: float) -> Tensor:
    terms = [
        F.mse_loss(weights[name], before, reduction="sum")
        for name, before in start.items()
        if before.dim() > 1
    ]
    return 0.5 * alpha * torch.stack(terms).sum()


def penalty_by_norm(weights: dict[str, Tensor], start: dict[str, Tensor], alpha: float) -> Tensor:
    """From the weights' side; the square of a norm, whose gradient at 0 is 0."""
    total = torch.zeros(())
    for name, now in weights.items():
        if name in start and now.ndim >= 2:
            total = total + torch.linalg.vector_norm(start[name] - now) ** 2 * alpha / 2
    return total


def penalty_expanded(weights: dict[str, Tensor], start: dict[str, Tensor], alpha: float) -> Tensor:
    """One long vector, and its product with itself."""
    both = [name for name in weights.keys() & start.keys() if len(start[name].shape) >= 2]
    moved = torch.cat([weights[name].flatten() - start[name].flatten() for name in both])
    return alpha * moved.pow(2).mul(0.5).sum()


# lp_ft_lrs
# -------------------------------------------------------------------------------------------------


def schedule_by_numpy(
    step: int, probe_steps: int, total_steps: int, lr: float
) -> tuple[float, float]:
    """Whole curves first, from which one step is taken: NumPy's numbers."""
    probe = lr / 2 * (1 + np.cos(np.pi * np.arange(probe_steps) / max(probe_steps, 1)))
    rest = total_steps - probe_steps
    full = lr / 2 * (1 + np.cos(np.pi * np.arange(rest) / rest))
    head = np.concatenate([probe, full])
    backbone = np.concatenate([np.zeros(probe_steps), full])
    return backbone[step], head[step]


def schedule_nested(step: int, probe_steps: int, total_steps: int, lr: float) -> Any:
    def rate(k: int, n: int) -> float:
        return lr * math.cos(math.pi * k / (2 * n)) ** 2

    if step >= probe_steps:
        return [rate(step - probe_steps, total_steps - probe_steps)] * 2
    return [0, rate(step, probe_steps)]


def schedule_backwards(
    step: int, probe_steps: int, total_steps: int, lr: float
) -> tuple[float, float]:
    """By the steps that are left: 1 + cos(pi - x) = 1 - cos(x)."""
    probing = step < probe_steps
    length = probe_steps if probing else total_steps - probe_steps
    left = (probe_steps if probing else total_steps) - step
    head = (1 - math.cos(left / length * math.pi)) * lr * 0.5
    return head * (not probing), head


def schedule_array(step: int, probe_steps: int, total_steps: int, lr: float) -> Any:
    """An array of two numbers, which unpacks like a tuple."""
    return np.array(schedule_by_numpy(step, probe_steps, total_steps, lr))


# wise_ft
# -------------------------------------------------------------------------------------------------


def mix_from_the_start(
    start: dict[str, Tensor], tuned: dict[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """A step from the start towards the tuned model."""
    mixed = OrderedDict((name, value.clone()) for name, value in tuned.items())
    for name, value in start.items():
        if value.dtype.is_floating_point:
            mixed[name] = value + alpha * (tuned[name] - value)
    return mixed


def mix_in_new_memory(
    start: dict[str, Tensor], tuned: dict[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """In place, in copies."""
    mixed = {}
    for name in start:
        mixed[name] = tuned[name].detach().clone()
        if torch.is_floating_point(mixed[name]):
            mixed[name].mul_(alpha).add_(start[name], alpha=1 - alpha)
    return mixed


def mix_by_lerp(
    start: dict[str, Tensor], tuned: dict[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

    def mixed(name: str) -> Tensor:
        if tuned[name].dtype not in kinds:
            return torch.empty_like(tuned[name]).copy_(tuned[name])
        return torch.lerp(start[name], tuned[name], alpha)

    return dict(zip(tuned, map(mixed, tuned), strict=True))


# count_vit
# -------------------------------------------------------------------------------------------------


def count_by_modules(
    image: int, patch: int, width: int, depth: int, classes: int
) -> tuple[int, int]:
    """From the layers themselves, without their memory."""
    n = image // patch * (image // patch)
    with torch.device("meta"):
        embed = nn.Conv2d(3, width, patch, patch)
        norm = nn.LayerNorm(width)
        linears = [nn.Linear(width, 3 * width), nn.Linear(width, width)]
        linears += [nn.Linear(width, 4 * width), nn.Linear(4 * width, width)]
        head = nn.Linear(width, classes)
    layers = [embed, head, norm, *depth * [norm, norm, *linears]]
    parameters = (n + 2) * width + sum(p.numel() for m in layers for p in m.parameters())
    work = n * embed.weight.numel() + head.weight.numel()
    for linear in linears:
        work += depth * (n + 1) * linear.weight.numel()
    work += depth * 2 * (n + 1) ** 2 * width
    return parameters, 2 * work


def count_by_products(
    image: int, patch: int, width: int, depth: int, classes: int
) -> tuple[int, int]:
    """A list of all matrix products, and NumPy's integers."""
    n = (image // patch) ** 2
    N, D = n + 1, width
    block = [(N, D, 3 * D), (N, D, N), (N, N, D), (N, D, D), (N, D, 4 * D), (N, 4 * D, D)]
    products = np.array([(n, 3 * patch**2, D), (1, D, classes), *block * depth], dtype=np.int64)
    matrices = (
        products[[0, 1]],
        np.array([p for p in block if p[1:] not in ((D, N), (N, D))] * depth),
    )
    weights = sum(rows[:, 1] @ rows[:, 2] + rows[:, 2].sum() for rows in matrices)
    return weights + N * D + D + (2 * depth + 1) * 2 * D, 2 * products.prod(axis=1).sum()


def count_in_closed_form(image: int, patch: int, width: int, depth: int, classes: int) -> list[int]:
    side = image // patch
    tokens = 1 + side * side
    parameters = width * (
        12 * width * depth + 13 * depth + tokens + 4 + classes + 3 * patch * patch
    )
    operations = 24 * tokens * width**2 + 4 * tokens**2 * width
    rest = 6 * (side * patch) ** 2 * width + 2 * width * classes
    return [parameters + classes, depth * operations + rest]


RIGHT: dict[str, list[Any]] = {
    "freeze_except": [freeze_by_parts, freeze_then_thaw, freeze_by_pattern, Freezer()],
    "cached_features": [
        features_in_place,
        features_by_loader,
        features_by_index,
        features_detached,
    ],
    "layerwise_lrs": [lrs_by_numpy, lrs_step_by_step, lrs_by_match],
    "l2_sp_penalty": [penalty_by_loss, penalty_by_norm, penalty_expanded],
    "lp_ft_lrs": [schedule_by_numpy, schedule_nested, schedule_backwards, schedule_array],
    "wise_ft": [mix_from_the_start, mix_in_new_memory, mix_by_lerp],
    "count_vit": [count_by_modules, count_by_products, count_in_closed_form],
}
