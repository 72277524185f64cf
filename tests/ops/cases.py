"""Small inputs for every custom operation: what the common tests (contract.py) need to know of it.

To add an operation, write a function that makes its inputs and one entry in OPS. `r(*shape)` makes
a random tensor that needs a gradient, `r(*shape, grad=False)` a frozen one. Every operation has the
shapes of SHAPES, and may have its own beside them (no bias, two groups). Keep all but "blocks" to
about 50 entries: gradcheck runs a kernel twice for each, in Triton's slow interpreter too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtlite.ops import (
    adapter,
    cross_entropy,
    kd_loss,
    kron_linear,
    lora_linear,
    mixed_op,
    prompt_attention,
    scale_shift,
    sparse_linear,
)

# "blocks" is larger than a block of the kernel in each direction, and a multiple of none.
SHAPES = ("plain", "one row", "empty", "blocks")


def rows(shape: str) -> tuple[int, ...]:
    """The leading sizes of x [..., D]."""
    return {"one row": (1,), "empty": (0, 3), "blocks": (2, 67)}.get(shape, (2, 3))


@dataclass(frozen=True)
class Case:
    """One operation."""

    operator: Any  # the registered torch.library operator
    function: Callable[..., Tensor]  # what users call
    reference: Callable[..., Tensor]  # what it means
    make: Callable[
        [Callable[..., Tensor], str], tuple[Any, ...]
    ]  # r, shape -> arguments of function and reference
    own_shapes: tuple[str, ...] = ()
    operands: Callable[..., tuple[Any, ...]] = lambda *inputs: (
        inputs
    )  # arguments of the function -> arguments of the operator

    @property
    def shapes(self) -> tuple[str, ...]:
        return SHAPES + self.own_shapes

    def inputs(
        self, shape: str = "plain", dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> tuple[Any, ...]:
        """Drawn in float64 from a fixed seed, then rounded: the same numbers in each dtype and on
        each device."""
        generator = torch.Generator().manual_seed(0)

        def r(*size: int, grad: bool = True) -> Tensor:
            return (
                torch.randn(*size, dtype=torch.float64, generator=generator)
                .to(device, dtype)
                .requires_grad_(grad)
            )

        return self.make(r, shape)


def _lora_linear(r: Callable[..., Tensor], shape: str) -> tuple[Any, ...]:
    # Rows 0, 1 and 4, 5 of 6, as q and v of qkv.
    starts = (0, 4) if shape in ("groups", "shared A") else (0,)
    G, K, N, R = len(starts), 5, 6, 2
    if shape == "blocks":
        K, N, R = 70, 131, 17
    bias = None if shape == "no bias" else r(N, grad=shape == "trained bias")
    x = r(*rows(shape), K, grad=shape != "frozen x")  # x needs no gradient in the first block
    A = r(R, K, grad=False) if shape == "shared A" else r(G * R, K)
    return x, r(N, K, grad=False), bias, A, r(2 * G if G > 1 else N, R), 0.5, starts


def _kron_linear(r: Callable[..., Tensor], shape: str) -> tuple[Any, ...]:
    n, a, p, b, q = {
        "sum": (3, 2, 2, 1, 3),
        "rows first": (2, 2, 2, 4, 1),
        "blocks": (1, 11, 9, 12, 10),
    }.get(shape, (1, 3, 2, 2, 3))
    return r(*rows(shape), p * q), r(n, a, p), r(n, b, q)


def _sparse_linear(r: Callable[..., Tensor], shape: str) -> tuple[Any, ...]:
    K, N, m = (70, 131, 200) if shape == "blocks" else (5, 6, 0 if shape == "no entries" else 7)
    bias = None if shape == "no bias" else r(N, grad=shape != "frozen bias")
    x = r(*rows(shape), K, grad=shape != "frozen x")  # x needs no gradient in the first block
    places = torch.randperm(N * K, generator=torch.Generator().manual_seed(1))[:m].int()
    return x, r(N, K, grad=False), bias, r(m), places.to(x.device)


def _cross_entropy(r: Callable[..., Tensor], shape: str) -> tuple[Any, ...]:
    C = 131 if shape == "blocks" else 5
    logits = r(*rows(shape), C)
    labels = (
        torch.arange(logits[..., 0].numel(), device=logits.device).reshape(logits.shape[:-1]) % C
    )
    if shape == "ignored":
        labels[0, 1] = -100
    return logits, labels, 0.0 if shape == "hard" else 0.1


def _kd_loss(r: Callable[..., Tensor], shape: str) -> tuple[Any, ...]:
    C = 131 if shape == "blocks" else 5
    return r(*rows(shape), C), r(*rows(shape), C, grad=False), 2.5


def _adapter(r: Callable[..., Tensor], shape: str) -> tuple[Any, ...]:
    D, R = (70, 17) if shape == "blocks" else (5, 2)
    down = (
        r(R, D, grad=False) / (8 if shape == "blocks" else 1)
    ).requires_grad_()  # keeps the hidden near 1
    x, up, biases, norm, residual = r(*rows(shape), D), r(D, R), (r(R), r(D)), (r(D), r(D)), None
    activation = "gelu"
    if shape == "no norm":  # AdaptFormer's
        norm, activation, residual = (None, None), "relu", r(*rows(shape), D)
    if shape == "no biases":
        biases, norm = (None, None), (norm[0], None)
    return x, down, up, *biases, *norm, residual, 0.7, activation, 1e-6


def _prompt_attention(r: Callable[..., Tensor], shape: str) -> tuple[Any, ...]:
    B, H, N, P, D = {
        "one row": (3, 2, 1, 3, 4),
        "empty": (0, 2, 3, 2, 3),
        "blocks": (
            9,
            2,
            67,
            70,
            20,
        ),  # 9 images: two for each partial sum of the prompts' gradients, the last one alone
        "no prompts": (2, 1, 3, 0, 3),
        "more prompts": (2, 2, 2, 5, 3),
    }.get(shape, (2, 2, 3, 2, 3))
    return r(B, H, N, D), r(B, H, N, D), r(B, H, N, D), r(H, P, D), r(H, P, D)


def _flat(x: Tensor) -> Tensor:
    return x.detach().flatten(0, -2).requires_grad_(x.requires_grad)


OPS = {
    "adapter": Case(
        adapter._adapter,
        adapter.adapter,
        adapter.adapter_reference,
        _adapter,
        own_shapes=("no norm", "no biases"),
        operands=lambda x, *rest: (
            _flat(x),
            *rest[:6],
            None if rest[6] is None else _flat(rest[6]),
            *rest[7:],
        ),
    ),
    "cross_entropy": Case(
        cross_entropy._cross_entropy,
        cross_entropy.cross_entropy,
        cross_entropy.cross_entropy_reference,
        _cross_entropy,
        own_shapes=("hard", "ignored"),
        operands=lambda logits, labels, smoothing: (_flat(logits), labels.flatten(), smoothing),
    ),
    "kd_loss": Case(
        kd_loss._kd_loss,
        kd_loss.kd_loss,
        kd_loss.kd_loss_reference,
        _kd_loss,
        operands=lambda student, teacher, temperature: (
            _flat(student),
            _flat(teacher),
            temperature,
        ),
    ),
    "kron_linear": Case(
        kron_linear._kron_linear,
        kron_linear.kron_linear,
        kron_linear.kron_linear_reference,
        _kron_linear,
        own_shapes=("sum", "rows first"),
        operands=lambda x, *factors: (x.detach().flatten(0, -2).requires_grad_(), *factors),
    ),
    "lora_linear": Case(
        lora_linear._lora_linear,
        lora_linear.lora_linear,
        lora_linear.lora_linear_reference,
        _lora_linear,
        own_shapes=("groups", "shared A", "no bias", "trained bias", "frozen x"),
        operands=lambda x, *rest: (
            x.detach().flatten(0, -2).requires_grad_(x.requires_grad),
            *rest[:-1],
            list(rest[-1]),
        ),
    ),
    "sparse_linear": Case(
        sparse_linear._sparse_linear,
        sparse_linear.sparse_linear,
        sparse_linear.sparse_linear_reference,
        _sparse_linear,
        own_shapes=("no entries", "no bias", "frozen bias", "frozen x"),
        operands=lambda x, *rest: (_flat(x), *rest),
    ),
    "mixed_op": Case(
        mixed_op._mixed_op,
        mixed_op.mixed_op,
        mixed_op.mixed_op_reference,
        lambda r, shape: (r(3, *rows(shape), 5), r(3)),  # stacked here; a list of tensors as well
        operands=lambda xs, alpha: ([x.detach().requires_grad_() for x in xs], alpha),
    ),
    "prompt_attention": Case(
        prompt_attention._prompt_attention,
        prompt_attention.prompt_attention,
        prompt_attention.prompt_attention_reference,
        _prompt_attention,
        own_shapes=("no prompts", "more prompts"),
    ),
    "scale_shift": Case(
        scale_shift._scale_shift,
        scale_shift.scale_shift,
        scale_shift.scale_shift_reference,
        lambda r, shape: (lambda D: (r(*rows(shape), D), r(D), r(D)))(
            300 if shape == "blocks" else 5
        ),
        operands=lambda x, *rest: (_flat(x), *rest),
    ),
}
