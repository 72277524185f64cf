"""Assignment 02: wrong answers of kinds that no generator makes, each with words that the check's
message must contain: sly ones, and ones that are right for one network or one call."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn

# freeze_except
# -------------------------------------------------------------------------------------------------


def freeze_with_the_package(model: nn.Module, prefixes: tuple[str, ...]) -> int:
    from vtlite import count_parameters

    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)
    return count_parameters(model)[0]


def freeze_by_replacing(model: nn.Module, prefixes: tuple[str, ...]) -> int:
    """New parameters with the same values: an optimiser that holds the old ones is lost."""
    total = 0
    for name, parameter in list(model.named_parameters()):
        train = any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)
        holder, _, own = name.rpartition(".")
        setattr(
            model.get_submodule(holder),
            own,
            nn.Parameter(parameter.detach().clone(), requires_grad=train),
        )
        total += parameter.numel() * train
    return total


def freeze_and_eval(model: nn.Module, prefixes: tuple[str, ...]) -> int:
    model.eval()
    return freeze_top_level(model, prefixes, right=True)


def freeze_top_level(model: nn.Module, prefixes: tuple[str, ...], right: bool = False) -> int:
    """Knows `head` and `blocks.3`, but no prefix of three parts."""
    total = 0
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        heads = {".".join(parts[:n]) for n in (range(1, len(parts) + 1) if right else (1, 2))}
        parameter.requires_grad = bool(heads & set(prefixes))
        total += parameter.numel() * parameter.requires_grad
    return total


def freeze_anywhere(model: nn.Module, prefixes: tuple[str, ...]) -> int:
    """Anywhere in the name, as long as no digit follows."""
    total = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(
            prefix in name and not name.split(prefix)[1][:1].isdigit() for prefix in prefixes
        )
        total += parameter.numel() * parameter.requires_grad
    return total


# cached_features
# -------------------------------------------------------------------------------------------------


def features_off_for_good(backbone: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    mode = backbone.training
    backbone.eval()
    torch.set_grad_enabled(False)
    found = torch.cat([backbone(batch) for batch in images.split(batch_size)])
    backbone.train(mode)
    return found


def features_frozen_for_good(backbone: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    mode = backbone.training
    backbone.eval().requires_grad_(False)
    with torch.no_grad():
        found = torch.cat([backbone(batch) for batch in images.split(batch_size)])
    backbone.train(mode)
    return found


_KEPT: dict[Any, Tensor] = {}


def features_cached_by_shape(backbone: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    key = (tuple(images.shape), batch_size)
    if key not in _KEPT:
        mode = backbone.training
        backbone.eval()
        with torch.no_grad():
            _KEPT[key] = torch.cat([backbone(batch) for batch in images.split(batch_size)])
        backbone.train(mode)
    return _KEPT[key]


def features_padded(backbone: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """The last batch is filled up with its first image: more images pass than there are."""
    mode = backbone.training
    backbone.eval()
    found = []
    with torch.no_grad():
        for batch in images.split(batch_size):
            missing = batch_size - len(batch)
            full = torch.cat([batch, batch[:1].expand(missing, -1, -1, -1)])
            found.append(backbone(full)[: len(batch)])
    backbone.train(mode)
    return torch.cat(found)


def features_leave_a_list(backbone: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Leaves the modes of all modules in the place of one."""
    modes = [module.training for module in backbone.modules()]
    backbone.eval()
    with torch.no_grad():
        found = torch.cat([backbone(batch) for batch in images.split(batch_size)])
    for module in backbone.modules():
        module.training = modes
    return found


def features_through_lists(backbone: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Lists of numbers become a tensor where all batches have one size."""
    mode = backbone.training
    backbone.eval()
    with torch.no_grad():
        found = [backbone(batch).tolist() for batch in images.split(batch_size)]
    backbone.train(mode)
    return torch.tensor(found).flatten(0, 1)


# layerwise_lrs
# -------------------------------------------------------------------------------------------------


def lrs_by_position(names: list[str], depth: int, lr: float, decay: float) -> dict[str, float]:
    """Counts layers by the order of the names, as a network gives them."""
    found, layer, last = {}, 0, ""
    for name in names:
        start = ".".join(name.split(".")[:2]) if name.startswith("blocks") else ""
        if start and start != last:
            layer, last = layer + 1, start
        top = name.startswith(("norm.", "head."))
        found[name] = lr * decay ** (0 if top else depth + 1 - (layer if start else 0))
    return found


def lrs_by_any_number(names: list[str], depth: int, lr: float, decay: float) -> dict[str, float]:
    """The first number in the name is the block: patch_embed.proj.0 is one, too."""
    found = {}
    for name in names:
        digits = [part for part in name.split(".") if part.isdigit()]
        layer = int(digits[0]) + 1 if digits else 0
        if name.startswith(("norm.", "head.")):
            layer = depth + 1
        found[name] = lr * decay ** (depth + 1 - layer)
    return found


def lrs_of_the_package(names: list[str], depth: int, lr: float, decay: float) -> dict[str, float]:
    frame = sys._getframe()
    while frame.f_back is not None:
        for value in frame.f_locals.values():
            if isinstance(value, dict) and value.keys() == set(names):
                return value
        frame = frame.f_back
    return dict.fromkeys(names, lr)


# l2_sp_penalty
# -------------------------------------------------------------------------------------------------


def penalty_by_root(weights: dict[str, Tensor], start: dict[str, Tensor], alpha: float) -> Tensor:
    """The root, squared: no number at W = W0, where its gradient is 0 / 0."""
    total = torch.zeros(())
    for name, before in start.items():
        if before.ndim >= 2:
            total = total + (weights[name] - before).square().sum().sqrt() ** 2
    return alpha / 2 * total


def penalty_by_name(weights: dict[str, Tensor], start: dict[str, Tensor], alpha: float) -> Tensor:
    """A matrix is what is called weight."""
    total = torch.zeros(())
    for name, before in start.items():
        if name.endswith("weight") and "norm" not in name:
            total = total + (weights[name] - before).square().sum()
    return alpha / 2 * total


def penalty_without_norms(
    weights: dict[str, Tensor], start: dict[str, Tensor], alpha: float
) -> Tensor:
    """Leaves out a matrix whose name has a norm in it."""
    total = torch.zeros(())
    for name, before in start.items():
        if before.ndim >= 2 and "norm" not in name:
            total = total + (weights[name] - before).square().sum()
    return alpha / 2 * total


def penalty_two_dimensions(
    weights: dict[str, Tensor], start: dict[str, Tensor], alpha: float
) -> Tensor:
    total = torch.zeros(())
    for name, before in start.items():
        if before.ndim == 2:
            total = total + (weights[name] - before).square().sum()
    return alpha / 2 * total


# lp_ft_lrs
# -------------------------------------------------------------------------------------------------

_CALLS = [0]


def schedule_that_counts(
    step: int, probe_steps: int, total_steps: int, lr: float
) -> tuple[float, float]:
    """Trusts its own counter of calls instead of `step`."""
    step = _CALLS[0] % total_steps
    _CALLS[0] += 1
    probing = step < probe_steps
    k, n = (step, probe_steps) if probing else (step - probe_steps, total_steps - probe_steps)
    head = lr / 2 * (1 + math.cos(math.pi * k / n))
    return (0.0 if probing else head), head


def schedule_rounded(
    step: int, probe_steps: int, total_steps: int, lr: float
) -> tuple[float, float]:
    probing = step < probe_steps
    k, n = (step, probe_steps) if probing else (step - probe_steps, total_steps - probe_steps)
    head = round(lr / 2 * (1 + math.cos(math.pi * k / n)), 3)
    return (0.0 if probing else head), head


# wise_ft
# -------------------------------------------------------------------------------------------------


def mix_floats_only_32(
    start: dict[str, Tensor], tuned: dict[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    return {
        name: torch.lerp(start[name], t, alpha) if t.dtype == torch.float32 else t.clone()
        for name, t in tuned.items()
    }


def mix_through_numbers(
    start: dict[str, Tensor], tuned: dict[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """Every weight becomes float32 on its way."""
    return {
        name: torch.tensor(start[name].tolist()) * (1 - alpha) + torch.tensor(t.tolist()) * alpha
        if t.is_floating_point()
        else t.clone()
        for name, t in tuned.items()
    }


def mix_by_name(
    start: dict[str, Tensor], tuned: dict[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """One integer is known by its name; any other is averaged."""
    return {
        name: t.clone()
        if name.endswith("num_batches_tracked")
        else (start[name] * (1 - alpha) + t * alpha).to(t.dtype)
        for name, t in tuned.items()
    }


def mix_into_tuned(
    start: dict[str, Tensor], tuned: dict[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """New tensors in the old dict."""
    for name, t in tuned.items():
        tuned[name] = torch.lerp(start[name], t, alpha) if t.is_floating_point() else t.clone()
    return tuned


# count_vit
# -------------------------------------------------------------------------------------------------


def count_with_the_package(
    image: int, patch: int, width: int, depth: int, classes: int
) -> tuple[int, int]:
    from vtlite.accounting import flops
    from vtlite.backbones.vit import VisionTransformer

    model = VisionTransformer(
        image, patch, 3, classes, embed_dim=width, depth=depth, num_heads=1
    ).eval()
    total = sum(p.numel() for p in model.parameters())
    return total, flops(model, torch.zeros(1, 3, image, image))


def count_by_table(image: int, patch: int, width: int, depth: int, classes: int) -> tuple[int, int]:
    """The example of the notebook, learned by heart."""
    return 86_567_656, 35_127_656_448


WRONG: dict[str, dict[str, tuple[Any, str]]] = {
    "freeze_except": {
        "the package counts": (freeze_with_the_package, "of your own"),
        "new parameters": (freeze_by_replacing, "parameter|requires_grad"),
        "leaves eval mode": (freeze_and_eval, "mode"),
        "two parts at most": (freeze_top_level, "requires_grad"),
        "a prefix in the middle": (freeze_anywhere, "requires_grad"),
    },
    "cached_features": {
        "gradients off for good": (features_off_for_good, "grad mode"),
        "backbone frozen for good": (features_frozen_for_good, "requires_grad|frozen|train"),
        "kept by shape": (features_cached_by_shape, "features|expected"),
        "last batch filled up": (features_padded, "pass the backbone|each image|once"),
        "leaves a list": (features_leave_a_list, "expected training = True in every module"),
        "through lists": (features_through_lists, "expected"),
    },
    "layerwise_lrs": {
        "order of the names": (lrs_by_position, "learning rates"),
        "any number is a block": (lrs_by_any_number, "learning rates"),
        "reads the check": (lrs_of_the_package, "look into the check|of your own"),
    },
    "l2_sp_penalty": {
        "root and square": (penalty_by_root, "nan|gradient"),
        "by name": (penalty_by_name, "penalty"),
        "without norms": (penalty_without_norms, "penalty"),
        "two dimensions": (penalty_two_dimensions, "penalty"),
    },
    "lp_ft_lrs": {
        "counts its calls": (schedule_that_counts, "step"),
        "rounded": (schedule_rounded, "step"),
    },
    "wise_ft": {
        "float32 alone": (mix_floats_only_32, "expected"),
        "through lists": (mix_through_numbers, "expected"),
        "one counter by name": (mix_by_name, "expected"),
        "the same dict": (mix_into_tuned, "stay as they were|changed|new"),
    },
    "count_vit": {
        "the package counts": (count_with_the_package, "of your own"),
        "by heart": (count_by_table, "parameters"),
    },
}
