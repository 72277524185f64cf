"""Compile every kernel launch of an operation for GPUs that are not here.

The bodies of the operators run on fake tensors (shapes without memory), forward and backward; where
they would launch a kernel, the arguments of the launch go to Triton's ahead-of-time compiler. Needs
Triton, and TRITON_INTERPRET unset.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

SHARED_MEMORY = {
    80: 163 * 1024,
    90: 227 * 1024,
}  # bytes that one block may use: A100, H100 and H200
DTYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
}
OPTIONS = ("num_warps", "num_stages")
CUOBJDUMP = next((Path(triton.__file__).parent / "backends/nvidia/bin").glob("cuobjdump*"), None)


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: its source with the types and constants of the arguments, and its
    options."""

    kernel: str
    source: ASTSource
    options: dict[str, int]


@dataclass(frozen=True)
class Compiled:
    shared: int  # bytes of shared memory
    stack: int | None  # bytes per thread that did not fit in registers; None: could not be read
    ptx: str


class _Bodies(TorchDispatchMode):
    """Run the bodies of our operators, where fake tensors alone would ask for the shapes of their
    results."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function = OPDEFS[func.name()]._init_fn if func.namespace == "vtlite" else func
        return function(*args, **(kwargs or {}))


def launches(function: Callable[..., Tensor], make: Callable[[], tuple[Any, ...]]) -> list[Launch]:
    """What one forward and backward pass launches on a GPU, each launch once."""
    found: dict[str, Launch] = {}
    with _recorded(found), FakeTensorMode(), _Bodies():
        inputs = make()
        out = function(*inputs)
        torch.autograd.grad(
            out,
            [t for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.requires_grad],
            torch.empty_like(out),
        )
    return list(found.values())


@contextmanager
def _recorded(found: dict[str, Launch]) -> Iterator[None]:
    """Fake CPU tensors (PyTorch's backward pass wants a real GPU for CUDA's), sent to the kernels
    by the switch of the interpreter."""

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launch = Launch(
            kernel.fn.__name__,
            _source(kernel, args, kwargs),
            {k: kwargs[k] for k in OPTIONS if k in kwargs},
        )
        found.setdefault(
            f"{launch.kernel} {launch.source.signature} {launch.source.constants}"
            f" {launch.source.attrs}",
            launch,
        )

    with (
        mock.patch("vtlite.ops._launch.INTERPRET", True),
        mock.patch.object(JITFunction, "run", record),
    ):
        yield


def _source(kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ASTSource:
    """What the launcher would infer: types, constants, and which arguments are multiples of 16."""
    values = dict(zip(kernel.arg_names, args, strict=False)) | {
        k: v for k, v in kwargs.items() if k not in OPTIONS
    }
    constexprs = {p.name for p in kernel.params if p.is_constexpr}
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    multiples: dict[tuple[int, ...], list[list[Any]]] = {}

    def describe(value: Any, path: tuple[int, ...], constant: bool = False) -> Any:
        if isinstance(value, tuple):
            return tuple(describe(part, (*path, i)) for i, part in enumerate(value))
        if constant or value is None or (isinstance(value, int) and value == 1):
            constants[path] = value
            return "constexpr"
        if isinstance(value, float):
            return "fp32"
        if isinstance(value, Tensor) or value % 16 == 0:
            multiples[path] = [["tt.divisibility", 16]]
        return "*" + DTYPES[value.dtype] if isinstance(value, Tensor) else "i32"

    for i, name in enumerate(kernel.arg_names):
        signature[name] = describe(values[name], (i,), name in constexprs)
    return ASTSource(kernel, signature, constants, multiples)


def compile_for(launch: Launch, capability: int) -> Compiled:
    """`capability`: 80 for an A100, 90 for an H100."""
    compiled = triton.compile(
        launch.source, target=GPUTarget("cuda", capability, 32), options=launch.options
    )
    return Compiled(compiled.metadata.shared, _stack(compiled.asm["cubin"]), compiled.asm["ptx"])


def _stack(cubin: bytes) -> int | None:
    if CUOBJDUMP is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=False,
            encoding="utf-8",
        ).stdout
    found = re.search(r"STACK:(\d+)", usage)
    return int(found[1]) if found else None
