"""The custom operations beside plain PyTorch: what each is called with, at which sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vtlite.ops.adapter import adapter, adapter_reference
from vtlite.ops.cross_entropy import cross_entropy
from vtlite.ops.kd_loss import kd_loss
from vtlite.ops.kron_linear import kron_linear, kron_matrix
from vtlite.ops.lora_linear import lora_linear
from vtlite.ops.mixed_op import mixed_op, mixed_op_reference
from vtlite.ops.prompt_attention import prompt_attention
from vtlite.ops.scale_shift import scale_shift, scale_shift_reference

Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """The sizes of a ViT's layers, and of what methods add to them."""

    batch: int
    tokens: int
    width: int
    heads: int
    rank: int = 8  # LoRA
    prompts: int = 50  # VPT
    bottleneck: int = 64  # AdaptFormer
    rows: int = 256  # images whose logits a loss sees
    classes: int = 21841  # ImageNet-21k
    candidates: int = 6  # operations that a mixed one weighs
    factor: int = 4  # Kronecker: the small factor is [4, 4]


SIZES = {"ViT-B/16": Size(64, 197, 768, 12), "ViT-L/14": Size(64, 257, 1024, 16)}
TINY = {
    "tiny": Size(2, 5, 32, 2, rank=4, prompts=3, bottleneck=8, rows=4, classes=10, candidates=3)
}


@dataclass(frozen=True)
class Operation:
    """One operation: as one would write it in PyTorch, ours, and its inputs; `r(*shape)` makes a
    tensor, `grad=False` a frozen one."""

    plain: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    inputs: Callable[[Callable[..., Tensor], Size], tuple[Any, ...]]


def _plain_lora(x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return F.linear(x, weight, bias) + (x @ A.mT) @ B.mT


def _plain_kron(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return F.linear(x, kron_matrix(A, B))


def _plain_kd(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    log_q, log_p = F.log_softmax(student / T, -1), F.log_softmax(teacher / T, -1)
    return T**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _plain_prompts(q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor) -> Tensor:
    k, v = (torch.cat([p.expand(len(q), -1, -1, -1), t], dim=2) for p, t in ((pk, k), (pv, v)))
    if q.is_meta:  # the fused kernel of a GPU; the meta device would count the unfused one
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return F.scaled_dot_product_attention(q, k, v)


def _heads(r: Callable[..., Tensor], z: Size) -> tuple[Any, ...]:
    """q, k, v and the prompts' k, v, lying in memory as one projection of all tokens writes
    them."""
    own, shared = (
        r(*rows, 3, z.heads, z.width // z.heads, grad=False)
        for rows in ((z.batch, z.tokens), (z.prompts,))
    )
    return *(t.transpose(1, 2).requires_grad_() for t in own.unbind(2)), *(
        t.transpose(0, 1).requires_grad_() for t in shared.unbind(1)[1:]
    )


def _tokens(r: Callable[..., Tensor], z: Size) -> Tensor:
    return r(z.batch, z.tokens, z.width)


def _labelled(r: Callable[..., Tensor], z: Size) -> tuple[Any, ...]:
    logits = r(z.rows, z.classes)
    return logits, torch.arange(z.rows, device=logits.device) % z.classes, 0.1


OPERATIONS = {
    "cross_entropy": Operation(
        lambda z, labels, s: F.cross_entropy(z, labels, label_smoothing=s), cross_entropy, _labelled
    ),
    "kd_loss": Operation(
        _plain_kd,
        kd_loss,
        lambda r, z: (r(z.rows, z.classes), r(z.rows, z.classes, grad=False), 4.0),
    ),
    "lora_linear": Operation(
        _plain_lora,
        lora_linear,
        lambda r, z: (
            _tokens(r, z),
            r(3 * z.width, z.width, grad=False),
            r(3 * z.width, grad=False),
            r(z.rank, z.width),
            r(3 * z.width, z.rank),
        ),
    ),
    "adapter": Operation(
        adapter_reference,
        adapter,
        lambda r, z: (
            _tokens(r, z),
            r(z.bottleneck, z.width),
            r(z.width, z.bottleneck),
            r(z.bottleneck),
            r(z.width),
            r(z.width),
            r(z.width),
        ),
    ),
    "prompt_attention": Operation(_plain_prompts, prompt_attention, _heads),
    "scale_shift": Operation(
        scale_shift_reference, scale_shift, lambda r, z: (_tokens(r, z), r(z.width), r(z.width))
    ),
    "mixed_op": Operation(
        mixed_op_reference,
        mixed_op,
        lambda r, z: ([_tokens(r, z) for _ in range(z.candidates)], r(z.candidates)),
    ),
    "kron_linear": Operation(
        _plain_kron,
        kron_linear,
        lambda r, z: (
            _tokens(r, z),
            r(1, z.factor, z.factor),
            r(1, z.width // z.factor, z.width // z.factor),
        ),
    ),
}


def make_inputs(
    operation: Operation, size: Size, device: str, dtype: torch.dtype
) -> tuple[Any, ...]:
    """Random inputs of an operation; on the "meta" device shapes alone."""
    generator = None if device == "meta" else torch.Generator(device).manual_seed(0)

    def r(*shape: int, grad: bool = True) -> Tensor:
        return (
            torch.randn(*shape, device=device, dtype=dtype, generator=generator)
            .mul_(0.1)
            .requires_grad_(grad)
        )

    return operation.inputs(r, size)


def tensors_of(inputs: Any) -> list[Tensor]:
    return [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]


def leaves_of(inputs: Any) -> list[Tensor]:
    return [t for t in tensors_of(inputs) if t.requires_grad]
