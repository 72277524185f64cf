"""What every operation needs to launch a kernel: Triton if it is there, when to use it, and sizes
that it accepts."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

# Triton reads this variable when it is imported and when a kernel is defined: set it in the
# environment, before Python starts.
INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"

try:
    import triton
    import triton.language as tl

    # Older interpreters have no float64 products and fail on numpy 2.4; their compilers are all
    # right.
    if INTERPRET and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
        triton, tl, INTERPRET = None, None, False
except ImportError:  # macOS, Windows: the references do all the work
    triton = tl = None


def use_kernel(x: Tensor, dot: bool = False) -> bool:
    """Whether `x` goes to the kernel: on a CUDA device, or anywhere in Triton's interpreter (how
    the kernels are tested without a GPU).

    Kernels with a matrix product (`dot`) leave full-precision float32 and float64 to cuBLAS:
    without tensor cores they would spill registers. On the meta device, where only shapes are asked
    for, the answer is that of a GPU.
    """
    tensor_cores = (
        not dot
        or x.element_size() == 2
        or (x.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32)
    )
    return (triton is not None or x.is_meta) and (
        INTERPRET or ((x.is_cuda or x.is_meta) and tensor_cores)
    )


def accumulator(x: Tensor) -> Any:
    """Kernels add up in float32, or in float64 where the input is float64, so that gradcheck is
    exact."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def wide(x: Tensor) -> torch.dtype:
    """The same as a torch type: of partial sums and of losses."""
    return torch.promote_types(x.dtype, torch.float32)


def precision() -> str:
    """Triton's own default for float32 products is tf32; torch's setting decides here."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def gradient_asked(*tensors: Tensor) -> bool:
    """Whether a gradient of the result may be asked for: else nothing need be kept for it."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def under_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of x; the meta device has none."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def same_dtype(*tensors: Tensor | None) -> list[Any]:
    """All in the autocast type where autocast is on, else in the type of the first: a kernel sees
    neither autocast nor mixed types."""
    x = tensors[0]
    assert x is not None
    dtype = torch.get_autocast_dtype(x.device.type) if under_autocast(x) else x.dtype
    return [None if t is None else t.to(dtype) for t in tensors]


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def block(n: int, low: int = 16) -> int:
    """The smallest power of two that holds n and is at least `low`: a kernel's ranges have no other
    sizes."""
    return max(low, 1 << max(n - 1, 0).bit_length())
