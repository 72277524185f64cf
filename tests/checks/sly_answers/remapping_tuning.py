"""Assignment 06: wrong answers of kinds that no generator makes, each with words that the check's
message must contain: sly ones, and ones that are right for one network or one call."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.checks.banks.remapping_tuning import (
    at,
    concrete,
    copied,
    counts,
    darts,
    dirac,
    dkd,
    grads,
    kd,
    layer,
    node,
    plus,
    wider,
)


def of_the_package(z: Tensor, t: Tensor, labels: Tensor, T: float, weight: float) -> Tensor:
    from vtlite.ops.kd_loss import kd_loss

    return (1 - weight) * F.cross_entropy(z, labels) + weight * kd_loss(z, t.detach(), T)


def loss_on_the_cpu(z: Tensor, t: Tensor, labels: Tensor, T: float, weight: float) -> Tensor:
    return kd()(z + torch.zeros(z.shape, dtype=z.dtype), t, labels, T, weight)


def loss_in_float32(z: Tensor, t: Tensor, labels: Tensor, T: float, weight: float) -> Tensor:
    return kd()(z.float(), t.float(), labels, T, weight).to(z.dtype)


def frozen_for_good(z: Tensor, t: Tensor, *rest: Any) -> Tensor:
    """Freezes the teacher's logits by a flag of theirs."""
    if t.is_leaf:
        t.requires_grad_(False)
    return kd()(z, t, *rest)


def parts_of_the_package(z: Tensor, t: Tensor, labels: Tensor, T: float) -> Any:
    from vtlite.methods.remapping.distillation.dkd import split

    found = []
    for a, b in zip(split(t / T, labels), split(z / T, labels), strict=True):
        p, q = a.log_softmax(1), b.log_softmax(1)
        found.append(T**2 * (p.exp() * (p - q)).sum(1))
    return found[0], found[1]


def parts_nearly_sure(z: Tensor, t: Tensor, labels: Tensor, T: float) -> Any:
    """Holds 1 - p away from zero instead of computing it."""
    chosen = F.one_hot(labels, z.shape[1]).bool()
    p, q = ((a / T).softmax(1)[chosen] for a in (t, z))
    rest = [(1 - a).clamp(min=1e-8) for a in (p, q)]
    target = p * (p / q).log() + rest[0] * (rest[0] / rest[1]).log()
    return T**2 * target, dkd()(z, t, labels, T)[1]


def parts_by_a_large_number(z: Tensor, t: Tensor, labels: Tensor, T: float) -> Any:
    """Takes 50 off the true class's logit: too little for a sure one."""
    low = 50.0 * F.one_hot(labels, z.shape[1]).to(z)
    p, q = (t / T - low).log_softmax(1), (z / T - low).log_softmax(1)
    return dkd()(z, t, labels, T)[0], T**2 * (p.exp() * (p - q)).sum(1)


def attention_of_three_dimensions(student: Any, teacher: Any) -> Tensor:
    return at(strength=lambda m: m.view(len(m), m.shape[1], -1).square().sum(1))(student, teacher)


def attention_of_a_pair(student: Any, teacher: Any) -> Tensor:
    """The first and the last layer."""
    ends = sorted({0, len(student) - 1})
    return at()([student[i] for i in ends], [teacher[i] for i in ends])


def attention_with_a_threshold(student: Any, teacher: Any) -> Tensor:
    return at(unit=lambda q: q / q.norm(dim=1, keepdim=True).clamp(min=1e-2))(student, teacher)


def wider_by_modules(first: Any, norm: Any, last: Any, source: list[int]) -> Any:
    """Believes that the first copy stands at its own place."""
    N = len(first["weight"])
    order = [*range(N), *source[N:]]
    return wider()(first, norm, last, order)


def wider_for_linear(first: Any, norm: Any, last: Any, source: list[int]) -> Any:
    """Divides the last dimension."""
    found = wider(share=lambda s, N: [1.0] * len(s))(first, norm, last, source)
    weight = found[2]["weight"]
    if weight.ndim == 2 or weight.shape[-1] == 1:
        return wider()(first, norm, last, source)
    mean = sum(counts(source)) / len(source)
    return found[0], found[1], found[2] | {"weight": weight / mean}


def wider_with_a_bias(first: Any, norm: Any, last: Any, source: list[int]) -> Any:
    bias = {"bias": last.get("bias", last["weight"].new_zeros(len(last["weight"])))}
    found = wider()(first, norm, last, source)
    return found[0], found[1], found[2] | {k: t.clone() for k, t in bias.items()}


def wider_norm_uncounted(first: Any, norm: Any, last: Any, source: list[int]) -> Any:
    def again(state: Any, source: list[int]) -> Any:
        zero = torch.zeros_like(state["num_batches_tracked"])
        return copied(state, source) | {"num_batches_tracked": zero}

    return wider(norm=again)(first, norm, last, source)


def layer_of_ones(x: Tensor, size: int, eps: float) -> Any:
    """The right values, in the type of the default."""
    return layer(kernel=lambda x, size: dirac(x, size).float())(x, size, eps)


def layer_that_remembers(x: Tensor, size: int, eps: float) -> Any:
    key = (tuple(x.shape), size, x.dtype, x.device)
    if key not in _SEEN:
        _SEEN[key] = layer()(x.detach(), size, eps)
    return {k: t.clone() for k, t in _SEEN[key].items()}


_SEEN: dict[Any, Any] = {}


def layer_of_the_first(x: Tensor, size: int, eps: float) -> Any:
    """Sees no more than 64 pixels of a channel, and one row of each image."""
    return layer()(x[:, :, :1], size, eps)


def node_by_backward(xs: Tensor, alpha: Tensor, dy: Tensor) -> Any:
    with torch.inference_mode(False), torch.enable_grad():
        leaf = alpha.clone().requires_grad_()
        y = torch.einsum("ek,ek...->...", leaf.softmax(1), xs.clone())
        y.backward(dy.clone())
        return y.detach(), leaf.grad


def node_of_the_package(xs: Tensor, alpha: Tensor, dy: Tensor) -> Any:
    from vtlite.ops.mixed_op import mixed_op_reference

    y = sum(mixed_op_reference(x, a) for x, a in zip(xs, alpha, strict=True))
    return y, node()(xs, alpha, dy)[1]


def node_by_differences(xs: Tensor, alpha: Tensor, dy: Tensor) -> Any:
    """No autograd, but no formula either."""
    y, found = node()(xs, alpha, dy)[0], torch.zeros_like(alpha)
    for i in range(alpha.numel()):
        step = torch.zeros_like(alpha).flatten()
        step[i] = 1e-2
        ends = [node()(xs, alpha + s * step.view_as(alpha), dy)[0] for s in (1, -1)]
        found.view(-1)[i] = ((ends[0] - ends[1]) * dy).sum() / 2e-2
    return y, found


def darts_of_the_package(
    w: Any, alpha: Tensor, train: Any, held: Any, xi: float, size: float
) -> Tensor:
    from vtlite.methods.remapping.architecture.darts import architecture_gradient

    leaves = [t.detach().clone().requires_grad_() for t in w]
    a = alpha.detach().clone().requires_grad_()
    steps = torch.autograd.grad(train(leaves, a), leaves)
    return architecture_gradient(
        a, leaves, steps, lambda: train(leaves, a), lambda: held(leaves, a), xi
    )


def darts_of_a_hundredth(
    w: Any, alpha: Tensor, train: Any, held: Any, xi: float, _: float
) -> Tensor:
    """The paper's size, whatever is asked for."""
    return darts()(w, alpha, train, held, xi, 0.01)


def darts_of_two_weights(
    w: Any, alpha: Tensor, train: Any, held: Any, xi: float, size: float
) -> Tensor:
    """A threshold on v that a small gradient meets."""
    found, v = grads(held, plus(w, grads(train, w, alpha)[1], -xi), alpha)
    if torch.cat([t.flatten() for t in v]).norm() < 10:
        return found
    return darts()(w, alpha, train, held, xi, size)


def sample_by_torch(alpha: Tensor, u: Tensor, temperature: float, hard: bool) -> Tensor:
    return F.gumbel_softmax(alpha, temperature, hard)


def sample_with_a_seed(alpha: Tensor, u: Tensor, temperature: float, hard: bool) -> Tensor:
    torch.manual_seed(0)
    return concrete()(alpha, torch.rand(u.shape), temperature, hard)


def sample_clamped(alpha: Tensor, u: Tensor, temperature: float, hard: bool) -> Tensor:
    """Keeps u away from the ends, and much of it with it."""
    return concrete()(alpha, u.clamp(0.2, 0.8), temperature, hard)


def sample_of_a_matrix(alpha: Tensor, u: Tensor, temperature: float, hard: bool) -> Tensor:
    return concrete(soft=lambda z: z.softmax(min(1, z.ndim - 1)))(alpha, u, temperature, hard)


WRONG: dict[str, dict[str, tuple[Any, str]]] = {
    "distillation_loss": {
        "the package's operation": (of_the_package, "of your own"),
        "on the CPU": (loss_on_the_cpu, "device"),
        "float32": (loss_in_float32, "type"),
        "a flag of the teacher": (frozen_for_good, "requires_grad"),
    },
    "decoupled_parts": {
        "the package's split": (parts_of_the_package, "of your own"),
        "1 - p held": (parts_nearly_sure, "expected"),
        "too small a number": (parts_by_a_large_number, "expected"),
    },
    "attention_loss": {
        "a view": (attention_of_three_dimensions, "reshape or flatten"),
        "two layers": (attention_of_a_pair, "expected"),
        "a threshold": (attention_with_a_threshold, "strong and weak maps"),
    },
    "widened": {
        "originals in front": (wider_by_modules, "expected"),
        "linear layers": (wider_for_linear, "expected"),
        "a bias for all": (wider_with_a_bias, "keys of the old one"),
        "counts from zero": (wider_norm_uncounted, "num_batches_tracked"),
    },
    "identity_layer": {
        "float32": (layer_of_ones, "type"),
        "remembers": (layer_that_remembers, "expected"),
        "one row": (layer_of_the_first, "expected"),
    },
    "mixed_node": {
        "backward": (node_by_backward, "you let autograd do it"),
        "the package's operation": (node_of_the_package, "of your own"),
        "differences": (node_by_differences, "expected"),
    },
    "darts_gradient": {
        "the package's gradient": (darts_of_the_package, "of your own"),
        "a hundredth": (darts_of_a_hundredth, "expected"),
        "a threshold": (darts_of_two_weights, "second term is missing"),
    },
    "concrete_sample": {
        "torch's own": (sample_by_torch, "expected"),
        "a seed": (sample_with_a_seed, "the seed"),
        "clamped": (sample_clamped, "expected"),
        "a matrix": (sample_of_a_matrix, "expected"),
    },
}
