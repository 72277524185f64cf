"""Sparse linear: y = x (W + S)^T + b with W frozen and S zero but for a few entries, which learn
(parameter tuning: GPS, SPT).

    W' = W + S,  S[n_e, k_e] = v_e     dx = dy W'     dv_e = sum_m dy[m, n_e] x[m, k_e]     db = sum_m dy[m]

The gradient of S is never formed: only its m entries are, each from a column of dy and one of x,
gathered in parts no larger than x. W' is made for each product and dropped after it: a copy of W
takes 1 ms for the qkv layer of ViT-B/16 on one CPU core, its product with 788 tokens 24 ms; a
gather of the chosen inputs with its sum took 3 ms, and adding them up for dx 5 ms.

Kept for the backward pass: x alone (2.4 MB for the 768-wide tokens of ViT-B/16, batch 4, float32).
Plain PyTorch keeps W' beside it (7.1 MB for qkv), and makes the whole gradient of W. Source: Zhang
et al., "Gradient-based Parameter Selection", CVPR 2024, arXiv 2312.10136; He et al.,
"Sensitivity-Aware Visual PEFT", ICCV 2023, arXiv 2303.08566.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vtlite.ops._launch import same_dtype
from vtlite.storage import VTError


# 1. What it means
# -------------------------------------------------------------------------------------------------
def sparse_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, places: Tensor
) -> Tensor:
    """x [..., K], weight [N, K], bias [N], values [m] -> y [..., N]. places [m], integers: value e
    is added to entry places[e] of the weight, counted row by row."""
    return F.linear(x, with_entries(weight, values, places), bias)


def with_entries(weight: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """The weight itself, for merging: a copy [N, K] with `values` added at `places`."""
    return weight.flatten().index_add(0, places, values).view_as(weight)


# 2. The operator
# -------------------------------------------------------------------------------------------------
@torch.library.custom_op("vtlite::sparse_linear", mutates_args=())
def _sparse_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, places: Tensor
) -> Tensor:
    """x [M, K] -> y [M, N]"""
    return sparse_linear_reference(x, weight, bias, values, places)


@torch.library.custom_op("vtlite::sparse_linear_backward", mutates_args=())
def _sparse_linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, values: Tensor, places: Tensor, first: bool
) -> tuple[Tensor, Tensor]:
    """dy [M, N] -> dx [M, K] (empty where x needs no gradient: it is `first`), dvalues [m]"""
    K = x.shape[1]
    pairs = zip((places // K).split(K), (places % K).split(K), strict=True)
    dvalues = [dy.index_select(1, n).mul_(x.index_select(1, k)).sum(0) for n, k in pairs]
    dx = dy.new_empty(0) if first else dy @ with_entries(weight, values, places)
    return dx, torch.cat(dvalues)


@_sparse_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, places: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@_sparse_linear_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, values: Tensor, places: Tensor, first: bool
) -> tuple[Tensor, Tensor]:
    return dy.new_empty(0) if first else x.new_empty(x.shape), values.new_empty(values.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, values, places = inputs
    ctx.save_for_backward(x, weight, values, places)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    first, bias_trains = not ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    dx, dvalues = _sparse_linear_backward(dy, *ctx.saved_tensors, first)
    return None if first else dx, None, dy.sum(0) if bias_trains else None, dvalues, None


_sparse_linear.register_autograd(_backward, setup_context=_setup)


@register_flop_formula(torch.ops.vtlite.sparse_linear)
def _(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * x[0] * weight.numel()  # a counter of operations does not see into an operator


@register_flop_formula(torch.ops.vtlite.sparse_linear_backward)
def _(
    dy: torch.Size,
    x: torch.Size,
    weight: torch.Size,
    values: torch.Size,
    places: Any,
    first: bool,
    **_: Any,
) -> int:
    return 2 * dy[0] * (values.numel() + (0 if first else weight.numel()))


# 3. No kernel
# -------------------------------------------------------------------------------------------------
# The product with W' is a matrix product, which cuBLAS does well, and what surrounds it is small: a
# copy of W does not grow with the batch, and for k entries a row the gathers move about k times the
# bytes of y.


# 4. The function
# -------------------------------------------------------------------------------------------------
def sparse_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor, places: Tensor
) -> Tensor:
    """As `sparse_linear_reference`, in one operation with a backward pass of its own, on every
    device: gradients go to x, bias and values. Raises `VTError` unless each value has one place.

    No second derivatives and no `torch.func` transforms; the reference has both.
    """
    if values.ndim != 1 or values.shape != places.shape:
        found = f"{list(values.shape)} and {list(places.shape)}"
        raise VTError(f"expected values [m] and places [m], one for each, found {found}")
    x, weight, bias, values = same_dtype(x, weight.detach(), bias, values)
    y = _sparse_linear(x.reshape(-1, x.shape[-1]), weight, bias, values, places)
    return y.view(*x.shape[:-1], weight.shape[0])
