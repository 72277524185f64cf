"""Assignment 02: plausible wrong answers, each with words that the check's message must contain,
and right answers written differently."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

NOTEBOOK = "02_fine_tuning"

# freeze_except
# -------------------------------------------------------------------------------------------------


def named(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)


def freeze(inside: Any, count: Any = lambda p: p.numel(), both: bool = True) -> Any:
    def answer(model: nn.Module, prefixes: tuple[str, ...]) -> int:
        for name, p in model.named_parameters():
            if both or not inside(name, prefixes):
                p.requires_grad_(inside(name, prefixes))
        return sum(count(p) for p in model.parameters() if p.requires_grad)

    return answer


def freeze_by_regex(model: nn.Module, prefixes: tuple[str, ...]) -> int:
    pattern = (
        re.compile("^(" + "|".join(re.escape(p) for p in prefixes) + r")\b(?!\d)")
        if prefixes
        else None
    )
    total = 0
    for name, p in model.named_parameters():
        p.requires_grad = bool(pattern and pattern.match(name))
        total += p.numel() * p.requires_grad
    return total


def freeze_and_zero(model: nn.Module, prefixes: tuple[str, ...]) -> int:
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not named(name, prefixes):
                p.zero_()
    return freeze(named)(model, prefixes)


def freeze_nothing(model: nn.Module, prefixes: tuple[str, ...]) -> int:
    return sum(
        p.numel()
        for name, p in model.requires_grad_(True).named_parameters()
        if named(name, prefixes)
    )


def count_all(model: nn.Module, prefixes: tuple[str, ...]) -> int:
    freeze(named)(model, prefixes)
    return sum(p.numel() for p in model.parameters())


def count_frozen(model: nn.Module, prefixes: tuple[str, ...]) -> int:
    return sum(p.numel() for p in model.parameters()) - freeze(named)(model, prefixes)


# cached_features
# -------------------------------------------------------------------------------------------------


def features(
    evaluate: bool = True,
    restore: bool = True,
    grad: bool = False,
    last: bool = True,
    flip: bool = False,
    joined: bool = True,
    whole: bool = False,
) -> Any:
    def answer(backbone: nn.Module, images: Tensor, batch_size: int) -> Any:
        mode = backbone.training
        if evaluate:
            backbone.eval()
        end = len(images) if last else len(images) - len(images) % batch_size
        size = len(images) if whole else batch_size
        with torch.set_grad_enabled(grad):
            parts = [backbone(images[i : i + size]) for i in range(0, end, size)]
        if restore:
            backbone.train(mode)
        found = torch.cat(parts) if joined and parts else parts
        return found.flip(0) if flip and isinstance(found, Tensor) else found

    return answer


def features_by_split(backbone: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    mode = backbone.training
    backbone.eval()
    with torch.inference_mode():
        out = torch.vstack([backbone(part) for part in images.split(batch_size)])
    backbone.train(mode)
    return out.clone()


def features_twice(backbone: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    features()(backbone, images, batch_size)
    return features()(backbone, images, batch_size)


def features_of_changed_images(backbone: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    found = features()(backbone, images, batch_size)
    images.mul_(2)
    return found


# layerwise_lrs
# -------------------------------------------------------------------------------------------------


def layer_of(name: str, depth: int) -> int:
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1 if name.startswith(("norm.", "head.")) else 0


def lrs(
    layer: Any = layer_of, factor: Any = lambda i, depth, decay: decay ** (depth + 1 - i)
) -> Any:
    return lambda names, depth, lr, decay: {
        name: lr * factor(layer(name, depth), depth, decay) for name in names
    }


def lrs_by_loop(names: list[str], depth: int, lr: float, decay: float) -> dict[str, float]:
    rates = [lr]
    for _ in range(depth + 1):
        rates.insert(0, rates[0] * decay)
    found = {}
    for name in names:
        match = re.match(r"blocks\.(\d+)\.", name)
        found[name] = (
            rates[int(match[1]) + 1]
            if match
            else rates[-1]
            if re.match(r"norm\.|head\.", name)
            else rates[0]
        )
    return found


def lrs_that_sort(names: list[str], depth: int, lr: float, decay: float) -> dict[str, float]:
    names.sort()
    return lrs()(names, depth, lr, decay)


# l2_sp_penalty
# -------------------------------------------------------------------------------------------------


def penalty(
    half: float = 0.5,
    strength: bool = True,
    zero: bool = False,
    biases: bool = False,
    head: bool = False,
    detach: bool = False,
    reduce: Any = lambda d: d.square().sum(),
    outer: Any = lambda x: x,
) -> Any:
    def answer(weights: dict[str, Tensor], start: dict[str, Tensor], alpha: float) -> Tensor:
        total = torch.zeros(())
        for name, w in weights.items():
            if name not in start and not head:
                continue
            if w.ndim < 2 and not biases:
                continue
            origin = 0 if zero or name not in start else start[name]
            total = total + reduce((w.detach() if detach else w) - origin)
        return half * (alpha if strength else 1.0) * outer(total)

    return answer


def penalty_flat(weights: dict[str, Tensor], start: dict[str, Tensor], alpha: float) -> Tensor:
    moved = torch.cat([(weights[n] - s).reshape(-1) for n, s in start.items() if s.dim() > 1])
    return alpha * torch.dot(moved, moved) / 2


def penalty_in_place(weights: dict[str, Tensor], start: dict[str, Tensor], alpha: float) -> Tensor:
    value = penalty()(weights, start, alpha)
    for n, s in start.items():
        s.copy_(weights[n].detach())
    return value


def penalty_number(weights: dict[str, Tensor], start: dict[str, Tensor], alpha: float) -> Any:
    return penalty()(weights, start, alpha).item()


# lp_ft_lrs
# -------------------------------------------------------------------------------------------------


def cosine(share: float, lr: float) -> float:
    return lr * 0.5 * (1 + math.cos(math.pi * share))


def schedule(first: Any = None, second: Any = None, boundary: int = 0) -> Any:
    first = first or (lambda step, probe, total, lr: (0.0, cosine(step / max(probe, 1), lr)))
    second = second or (
        lambda step, probe, total, lr: (cosine((step - probe) / (total - probe), lr),) * 2
    )

    def answer(step: int, probe: int, total: int, lr: float) -> tuple[float, float]:
        return (first if step < probe + boundary else second)(step, probe, total, lr)

    return answer


def schedule_in_one(step: int, probe_steps: int, total_steps: int, lr: float) -> list[float]:
    start, length = (
        (0, probe_steps) if step < probe_steps else (probe_steps, total_steps - probe_steps)
    )
    head = (
        lr * math.cos(math.pi / 2 * (step - start) / length) ** 2
    )  # the same cosine by the half-angle formula
    return [head * (step >= probe_steps), head]


# wise_ft
# -------------------------------------------------------------------------------------------------


def mix(
    a: Any = lambda x: 1 - x,
    b: Any = lambda x: x,
    counter: Any = lambda s, t, x: t.clone(),
    skip: str = "",
    tuned_only: str = "",
    inplace: bool = False,
) -> Any:
    def answer(
        start: dict[str, Tensor], tuned: dict[str, Tensor], alpha: float
    ) -> dict[str, Tensor]:
        found = {}
        for name, t in tuned.items():
            if skip and name.startswith(skip):
                continue
            if not t.is_floating_point():
                found[name] = counter(start[name], t, alpha)
            elif tuned_only and tuned_only in name:
                found[name] = t.clone()
            elif inplace:
                found[name] = start[name].lerp_(t, alpha)
            else:
                found[name] = a(alpha) * start[name] + b(alpha) * t
        return found

    return answer


def mix_by_lerp(
    start: dict[str, Tensor], tuned: dict[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    return {
        n: torch.lerp(start[n], t, alpha) if torch.is_floating_point(t) else t.clone()
        for n, t in tuned.items()
    }


def mix_returning_arguments(
    start: dict[str, Tensor], tuned: dict[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    if alpha == 1:
        return tuned
    return {
        n: start[n] if alpha == 0 and t.is_floating_point() else t
        for n, t in mix()(start, tuned, alpha).items()
    }


# count_vit
# -------------------------------------------------------------------------------------------------


def count(
    tokens: int = 1,
    parameters: Any = lambda **k: 0,
    operations: Any = lambda **k: 0,
    factor: int = 2,
    N_flops: int = 1,
) -> Any:
    """The right counts plus an error in each."""

    def answer(image: int, patch: int, D: int, depth: int, classes: int) -> tuple[int, int]:
        n = (image // patch) ** 2
        N = n + 1
        known = {"n": n, "N": N, "D": D, "depth": depth, "classes": classes, "patch": patch}
        block = 12 * D * D + 9 * D + 4 * D
        p = 3 * patch * patch * D + D + D + N * D + depth * block + 2 * D + D * classes + classes
        M = n + N_flops
        f = n * 3 * patch * patch * D + depth * (12 * M * D * D + 2 * M * M * D) + D * classes
        return p + parameters(**known), factor * f + operations(**known)

    return answer


def count_by_building(
    image: int, patch: int, width: int, depth: int, classes: int
) -> tuple[int, int]:
    tokens = (image // patch) ** 2 + 1
    linears = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    total, work = 0, 0
    for _ in range(depth):
        total += sum(a * b + b for a, b in linears) + 2 * (width + width)
        work += sum(2 * tokens * a * b for a, b in linears) + 2 * (2 * tokens * tokens * width)
    embed = 3 * patch**2 * width
    total += embed + width + width + tokens * width + 2 * width + (width + 1) * classes
    return total, work + 2 * (tokens - 1) * embed + 2 * width * classes


RIGHT: dict[str, list[Any]] = {
    "freeze_except": [freeze(named), freeze_by_regex],
    "cached_features": [features(), features_by_split],
    "layerwise_lrs": [lrs(), lrs_by_loop],
    "l2_sp_penalty": [penalty(), penalty_flat],
    "lp_ft_lrs": [schedule(), schedule_in_one],
    "wise_ft": [mix(), mix_by_lerp],
    "count_vit": [count(), count_by_building],
}

WRONG: dict[str, dict[str, tuple[Any, str]]] = {
    "freeze_except": {
        "start of the name only": (
            freeze(lambda n, ps: n.startswith(ps)),
            "a prefix ends at a dot",
        ),
        "anywhere in the name": (
            freeze(lambda n, ps: any(p in n for p in ps)),
            "anywhere in the name",
        ),
        "the wrong way round": (freeze(lambda n, ps: not named(n, ps)), "turn it round"),
        "freezes nothing": (freeze_nothing, "never set requires_grad to False"),
        "only ever freezes": (
            freeze(named, both=False),
            "nothing is frozen that is not named first|never set|stays frozen",
        ),
        "counts tensors": (freeze(named, count=lambda p: 1), "numel"),
        "counts everything": (count_all, "only those that train"),
        "counts the frozen": (count_frozen, "you count the frozen"),
        "sets values to zero": (freeze_and_zero, "wrote to the parameters"),
    },
    "cached_features": {
        "train mode": (features(evaluate=False), "call eval"),
        "mode not restored": (features(restore=False), "restore it at the end"),
        "with a graph": (features(grad=True), "no_grad"),
        "drops the last batch": (features(last=False), "last, smaller batch|torch.cat"),
        "reversed": (features(flip=True), "order"),
        "a list of batches": (features(joined=False), "torch.cat"),
        "all at once": (features(whole=True), "split them into batches"),
        "computed twice": (features_twice, "more than once"),
        "changes the images": (features_of_changed_images, "in place"),
    },
    "layerwise_lrs": {
        "reversed": (lrs(factor=lambda i, n, d: d**i), "reversed"),
        "head decays": (lrs(factor=lambda i, n, d: d ** (n + 2 - i)), "head's factor is decay"),
        "last block at full rate": (
            lrs(factor=lambda i, n, d: d ** max(0, n - i)),
            "last block's factor",
        ),
        "block 0 is layer 0": (
            lrs(layer=lambda s, n: layer_of(s, n) - s.startswith("blocks.")),
            "layer i \\+ 1",
        ),
        "tokens with the head": (
            lrs(layer=lambda s, n: n + 1 if s in ("cls_token", "pos_embed") else layer_of(s, n)),
            "layer 0",
        ),
        "all norms on top": (
            lrs(layer=lambda s, n: n + 1 if "norm" in s else layer_of(s, n)),
            "own norms",
        ),
        "final norm at the bottom": (
            lrs(layer=lambda s, n: 0 if s.startswith("norm.") else layer_of(s, n)),
            "final norm belongs",
        ),
        "a product": (
            lrs(factor=lambda i, n, d: 1.0 if i == n + 1 else d * (n + 1 - i)),
            "a power",
        ),
        "one digit": (
            lrs(layer=lambda s, n: int(s[7]) + 1 if s.startswith("blocks.") else layer_of(s, n)),
            "one digit",
        ),
        "sorts its argument": (lrs_that_sort, "changed the list"),
    },
    "l2_sp_penalty": {
        "no half": (penalty(half=1.0), "factor 1/2"),
        "no alpha": (penalty(strength=False), "not multiplied by alpha"),
        "from zero": (penalty(zero=True), "distance from zero"),
        "biases too": (penalty(biases=True), "biases"),
        "head too": (penalty(head=True), "head counts"),
        "not squared": (penalty(outer=torch.sqrt), "takes its square"),
        "sum of distances": (penalty(reduce=lambda d: d.norm()), "sum of the distances"),
        "mean": (penalty(reduce=lambda d: d.square().mean()), "takes the sum"),
        "detached": (penalty(detach=True), "detached"),
        "a number": (penalty_number, "detached"),
        "moves the start": (penalty_in_place, "in place"),
    },
    "lp_ft_lrs": {
        "swapped": (
            schedule(first=lambda s, p, t, lr: (cosine(s / max(p, 1), lr), 0.0)),
            "swapped",
        ),
        "backbone moves": (
            schedule(first=lambda s, p, t, lr: (cosine(s / max(p, 1), lr),) * 2),
            "moves while the head",
        ),
        "head stops": (
            schedule(second=lambda s, p, t, lr: (cosine((s - p) / (t - p), lr), 0.0)),
            "head stops",
        ),
        "one cosine": (
            schedule(
                lambda s, p, t, lr: (0.0, cosine(s / t, lr)),
                lambda s, p, t, lr: (cosine(s / t, lr),) * 2,
            ),
            "does not start again",
        ),
        "boundary late": (schedule(boundary=1), "first step of the second part"),
        "second part one ahead": (
            schedule(second=lambda s, p, t, lr: (cosine((s - p + 1) / (t - p), lr),) * 2),
            "full learning rate",
        ),
        "constant": (
            schedule(lambda s, p, t, lr: (0.0, lr), lambda s, p, t, lr: (lr, lr)),
            "constant",
        ),
        "stretched": (
            schedule(second=lambda s, p, t, lr: (cosine((s - p) / t, lr),) * 2),
            "stretched",
        ),
        "one number": (
            lambda s, p, t, lr: schedule()(s, p, t, lr)[1],
            "return \\(backbone, head\\)",
        ),
    },
    "wise_ft": {
        "wrong side": (mix(lambda x: x, lambda x: 1 - x), "wrong side"),
        "always the mean": (mix(lambda x: 0.5, lambda x: 0.5), "ignore alpha"),
        "adds": (mix(lambda x: 1.0, lambda x: x), "sum to one"),
        "averages the counter": (mix(counter=lambda s, t, x: (1 - x) * s + x * t), "counter"),
        "rounds the counter": (
            mix(counter=lambda s, t, x: ((1 - x) * s + x * t).round().long()),
            "counter",
        ),
        "old counter": (mix(counter=lambda s, t, x: s), "counter comes from the start"),
        "no head": (mix(skip="head"), "head is missing"),
        "tuned head": (mix(tuned_only="head"), "leave the head"),
        "tuned statistics": (mix(tuned_only="running"), "running statistics"),
        "in place": (mix(inplace=True), "in place"),
        "its own arguments": (mix_returning_arguments, "argument's own tensor"),
    },
    "count_vit": {
        "no class position": (count(parameters=lambda D, **k: -D), "D numbers are missing"),
        "no final norm": (count(parameters=lambda D, **k: -2 * D), "2 D numbers"),
        "no biases in blocks": (
            count(parameters=lambda D, depth, **k: -9 * D * depth),
            "biases of the blocks",
        ),
        "no block norms": (
            count(parameters=lambda D, depth, **k: -4 * D * depth),
            "norms of the blocks",
        ),
        "no head": (
            count(parameters=lambda D, classes, **k: -(D + 1) * classes),
            "head is missing",
        ),
        "no positions": (count(parameters=lambda D, N, **k: -N * D), "positions are missing"),
        "one channel": (
            count(parameters=lambda D, patch, **k: -2 * patch * patch * D),
            "three channels",
        ),
        "multiply-adds": (count(factor=1), "counts as two"),
        "no attention": (
            count(operations=lambda D, N, depth, **k: -4 * depth * N * N * D),
            "attention itself",
        ),
        "half an attention": (
            count(operations=lambda D, N, depth, **k: -2 * depth * N * N * D),
            "two products",
        ),
        "no class token": (count(N_flops=0), "class token passes"),
        "head on every token": (
            count(operations=lambda D, N, classes, **k: 2 * D * classes * (N - 1)),
            "one token",
        ),
    },
}
