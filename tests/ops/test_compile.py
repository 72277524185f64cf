"""Every kernel launch of every operation, at the sizes of ViT-B/16 and ViT-L/14, compiled for A100
and H100 on a machine without either."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from vtlite.bench_ops import OPERATIONS, SIZES
from vtlite.ops._launch import INTERPRET, triton

if triton is None or INTERPRET:
    pytest.skip("needs Triton, and TRITON_INTERPRET unset", allow_module_level=True)

from tests.ops.ahead_of_time import SHARED_MEMORY, Launch, compile_for, launches

WITHOUT_KERNEL: set[str] = {"kron_linear"}  # a kernel cannot pay: three products of cuBLAS


@cache
def launched(name: str, size: str, dtype: torch.dtype) -> list[Launch]:
    def r(*shape: int, grad: bool = True) -> Tensor:
        return torch.empty(*shape, dtype=dtype, requires_grad=grad)

    operation = OPERATIONS[name]
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True  # without it no float32 product goes to a kernel
    try:
        return launches(operation.ours, lambda: operation.inputs(r, SIZES[size]))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_compiles_for_a100_and_h100(name: str, size: str, dtype: torch.dtype) -> None:
    found = launched(name, size, dtype)
    assert bool(found) == (name not in WITHOUT_KERNEL)
    for launch in found:
        for capability, limit in SHARED_MEMORY.items():
            compiled = compile_for(launch, capability)
            where = f"{launch.kernel} {launch.source.constants} on sm_{capability}"
            assert compiled.shared <= limit, (
                f"{where}: {compiled.shared} bytes of shared memory, at most {limit} fit"
            )
            assert not compiled.stack, (
                f"{where}: {compiled.stack} bytes a thread do not fit in registers"
            )


def test_products_use_tensor_cores() -> None:
    forward, *_ = launched("lora_linear", "ViT-B/16", torch.bfloat16)
    assert "mma.sync" in compile_for(forward, 80).ptx
    assert "wgmma" in compile_for(forward, 90).ptx
