"""Assignment 05: wrong answers of kinds that no generator makes, each with words that the check's
message must contain: sly ones, and ones that are right for one network or one call."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# bitfit
# -------------------------------------------------------------------------------------------------


def biases_of_known_layers(model: nn.Module) -> int:
    """Layers that it knows by their class; a layer of one's own is forgotten."""
    model.requires_grad_(False)
    kinds = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d)
    chosen = [m.bias for m in model.modules() if isinstance(m, kinds) and m.bias is not None]
    for bias in chosen:
        bias.requires_grad = True
    return sum(bias.numel() for bias in chosen)


def biases_twice(model: nn.Module) -> int:
    """A bias that two layers share is counted twice."""
    total = 0
    for name, p in model.named_parameters(remove_duplicate=False):
        p.requires_grad = name.split(".")[-1] == "bias"
        total += p.numel() * p.requires_grad
    return total


def biases_but_the_last(model: nn.Module) -> int:
    """Takes the last parameter for a bias, as the head's is."""
    *others, (_, last) = model.named_parameters()
    for name, p in others:
        p.requires_grad = name.split(".")[-1] == "bias"
    return sum(p.numel() for _, p in others if p.requires_grad) + last.numel() * (last.ndim == 1)


def biases_of_the_package(model: nn.Module) -> int:
    from vtlite import count_parameters

    for name, p in model.named_parameters():
        p.requires_grad = name.split(".")[-1] == "bias"
    return count_parameters(model)[0]


# lora_forward
# -------------------------------------------------------------------------------------------------


def lora_of_the_package(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    from vtlite.ops.lora_linear import lora_linear_reference

    return lora_linear_reference(x, weight, bias, A, B, alpha / len(A))


def lora_in_a_copy(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    """The large matrix in place, in a copy of the weight."""
    return F.linear(x, weight.clone().addmm_(B, A, alpha=alpha / len(A)), bias)


def lora_in_strips(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    """B A in strips, all of which are kept."""
    strips = [alpha / len(A) * row @ A for row in B]
    return F.linear(x, weight, bias) + F.linear(x, torch.stack(strips))


def lora_viewed(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    flat = x.view(-1, x.shape[-1])
    y = flat @ weight.T + bias + alpha / len(A) * (flat @ A.T) @ B.T
    return y.view(*x.shape[:-1], -1)


def lora_of_a_batch(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    """Squeezes: one image, or one rank, loses a dimension."""
    h = (x @ A.T).squeeze()
    return F.linear(x, weight, bias) + alpha / len(A) * h @ B.T


_OLD: dict[Any, Tensor] = {}


def lora_remembered(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float
) -> Tensor:
    """Keeps A and B of the first call, as an optimiser would change them."""
    kept = _OLD.setdefault(("A", *A.shape), A), _OLD.setdefault(("B", *B.shape), B)
    return F.linear(x, weight, bias) + alpha / len(A) * (x @ kept[0].T) @ kept[1].T


# lora_merge
# -------------------------------------------------------------------------------------------------


def merge_square(weight: Tensor, factors: dict[str, tuple[Tensor, Tensor]], alpha: float) -> Tensor:
    """The width is taken for the number of inputs."""
    merged, D = weight.clone(), weight.shape[1]
    for letter, (A, B) in factors.items():
        start = "qkv".index(letter) * D
        merged[start : start + D] += alpha / len(A) * B @ A
    return merged


def merge_on_the_cpu(
    weight: Tensor, factors: dict[str, tuple[Tensor, Tensor]], alpha: float
) -> Tensor:
    D = len(weight) // 3
    update = torch.zeros(weight.shape)
    for letter, (A, B) in factors.items():
        update["qkv".index(letter) * D :][:D] = alpha / len(A) * B @ A
    return weight + update


def merge_and_pop(
    weight: Tensor, factors: dict[str, tuple[Tensor, Tensor]], alpha: float
) -> Tensor:
    """Takes the dict apart that it was given."""
    merged, D = weight.clone(), len(weight) // 3
    while factors:
        letter, (A, B) = factors.popitem()
        merged["qkv".index(letter) * D :][:D] += alpha / len(A) * B @ A
    return merged


# kron_forward
# -------------------------------------------------------------------------------------------------


def kron_of_the_package(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    from vtlite.ops.kron_linear import kron_linear_reference

    return kron_linear_reference(x, A[None], B[None])


def kron_one_einsum(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """A (x) B first, in a shape that nobody recognises."""
    outer = torch.outer(B.flatten(), A.flatten()).reshape(*B.shape, *A.shape)
    X = x.reshape(*x.shape[:-1], A.shape[1], B.shape[1])
    return torch.einsum("bqap,...pq->...ab", outer, X).flatten(-2)


def kron_viewed(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    X = x.view(-1, A.shape[1], B.shape[1])
    return (A @ X @ B.T).reshape(*x.shape[:-1], -1)


# count_updates
# -------------------------------------------------------------------------------------------------


def count_of_the_check(D: int, L: int, r: int, a: int, n: int) -> dict[str, int]:
    for info in inspect.stack():
        for value in info.frame.f_locals.values():
            if isinstance(value, dict) and value.keys() == {
                "lora",
                "krona",
                "fact_tt",
                "compacter",
            }:
                return value
    return {}


def count_for_a_vit_b(D: int, L: int, r: int, a: int, n: int) -> dict[str, int]:
    """Twelve blocks, always."""
    m = D // 32
    return {
        "lora": 48 * D * r,
        "krona": 24 * (a * a + (D // a) ** 2),
        "fact_tt": 2 * D * r + 144 * r * r,
        "compacter": n**3 + 72 * (D + m),
    }


# ssf_merge
# -------------------------------------------------------------------------------------------------


def ssf_bias_in_place(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Writes into a new tensor by the name of the old one, and once into the old one."""
    new = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return new, shift.clone() if bias is None else bias.mul_(scale).add(shift)


def ssf_square(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Transposes: right for linear layers, and for convolutions of as many inputs as outputs."""
    new = (weight.mT if weight.ndim == 2 else weight) * (
        scale if weight.ndim < 3 else scale[None, :, None, None]
    )
    new = new.mT if weight.ndim == 2 else new
    return new, shift.clone() if bias is None else scale * bias + shift


# dylora_forward
# -------------------------------------------------------------------------------------------------


def dylora_with_hooks(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
) -> Tensor:
    """Hooks on the parameters: they stay, and the next step with another b gets both."""
    rows = (torch.arange(len(A), device=A.device) == b - 1).to(A)
    if A.requires_grad:
        A.register_hook(lambda grad: grad * rows[:, None])
    if B.requires_grad:
        B.register_hook(lambda grad: grad * rows)
    return F.linear(x, weight, bias) + alpha / b * (x @ A[:b].T) @ B[:, :b].T


def dylora_by_flags(
    x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float, b: int
) -> Tensor:
    """Lets the frozen weight train."""
    A_, B_ = A[:b].detach().clone(), B[:, :b].detach().clone()
    A_[b - 1], B_[:, b - 1] = A[b - 1], B[:, b - 1]
    if weight.is_leaf:
        weight.requires_grad_(True)
    return F.linear(x, weight, bias) + alpha / b * (x @ A_.T) @ B_.T


# private_gradient
# -------------------------------------------------------------------------------------------------


def private_with_a_seed(per_sample: Tensor, max_norm: float, noise: Tensor, sigma: float) -> Tensor:
    """Sets the seed of everybody, though it draws nothing."""
    torch.manual_seed(0)
    norms = per_sample.norm(dim=1, keepdim=True)
    clipped = per_sample * (max_norm / norms.clamp(min=max_norm))
    return (clipped.sum(0) + sigma * max_norm * noise) / len(per_sample)


def private_in_double(per_sample: Tensor, max_norm: float, noise: Tensor, sigma: float) -> Tensor:
    """Sets the default type for everybody."""
    torch.set_default_dtype(torch.float64)
    norms = per_sample.norm(dim=1, keepdim=True)
    clipped = per_sample * (max_norm / norms.clamp(min=max_norm))
    return (clipped.sum(0) + sigma * max_norm * noise) / len(per_sample)


def private_without_zeros(
    per_sample: Tensor, max_norm: float, noise: Tensor, sigma: float
) -> Tensor:
    """Leaves out samples whose gradient is zero, also where it counts them."""
    kept = per_sample[per_sample.norm(dim=1) > 0]
    norms = kept.norm(dim=1, keepdim=True)
    clipped = kept * (max_norm / norms.clamp(min=max_norm))
    return (clipped.sum(0) + sigma * max_norm * noise) / len(kept)


WRONG: dict[str, dict[str, tuple[Any, str]]] = {
    "bitfit": {
        "layers by their class": (biases_of_known_layers, "requires_grad|number"),
        "a shared bias twice": (biases_twice, "number"),
        "all but the last": (biases_but_the_last, "requires_grad = False for last.weight"),
        "the package counts": (biases_of_the_package, "of your own"),
    },
    "lora_forward": {
        "the package's operation": (lora_of_the_package, "of your own"),
        "B A in a copy of W": (lora_in_a_copy, "form B A|apply A"),
        "B A in strips": (lora_in_strips, "form B A|apply A"),
        "view": (lora_viewed, "view"),
        "squeeze": (lora_of_a_batch, "expected"),
        "factors of the first call": (lora_remembered, "expected"),
    },
    "lora_merge": {
        "square": (merge_square, "expected"),
        "made on the CPU": (merge_on_the_cpu, "device|meta"),
        "takes the dict apart": (merge_and_pop, "stay as|changed"),
    },
    "kron_forward": {
        "the package's operation": (kron_of_the_package, "of your own"),
        "the matrix in another order": (kron_one_einsum, "form A"),
        "view": (kron_viewed, "view"),
    },
    "count_updates": {
        "reads the check": (count_of_the_check, "look into the check|of your own"),
        "twelve blocks": (count_for_a_vit_b, "expected"),
    },
    "ssf_merge": {
        "bias in place": (ssf_bias_in_place, "stay as|wrote into"),
        "convolution along its inputs": (ssf_square, "expected"),
    },
    "dylora_forward": {
        "hooks that stay": (dylora_with_hooks, "hook|second|gradient|call"),
        "sets a flag": (dylora_by_flags, "requires_grad|flag|changed"),
    },
    "private_gradient": {
        "sets the seed": (private_with_a_seed, "seed"),
        "sets the default type": (private_in_double, "default type"),
        "zeros do not count": (private_without_zeros, "expected"),
    },
}
