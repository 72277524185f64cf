"""What a machine can do, and what an operation asks of it: counted, nothing is timed."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vtlite.accounting import kept_bytes
from vtlite.bench_ops.cases import OPERATIONS, Size, leaves_of, make_inputs, tensors_of

Row = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    name: str
    bandwidth: float  # bytes a second, read and written
    flops: float  # of matrix products, a second
    source: str  # of the two


# NVIDIA's datasheets: memory bandwidth, dense bfloat16 arithmetic. The first name that is part of
# the device's name counts.
DATASHEETS = {
    "H200": (4.8e12, 989e12),
    "H100 PCIe": (2.0e12, 756e12),
    "H100 NVL": (3.9e12, 835e12),
    "H100": (3.35e12, 989e12),
    "A100-SXM4-40GB": (1.555e12, 312e12),
    "A100-PCIE-40GB": (1.555e12, 312e12),
    "A100": (2.0e12, 312e12),
    "L40S": (0.864e12, 362e12),
    "L4": (0.3e12, 121e12),
}
ESTIMATED = Machine("H100", *DATASHEETS["H100"], "datasheet")


def clock(device: str) -> Callable[[Callable[[], object]], float]:
    """Seconds of one call; on a GPU with its cache emptied first, as other layers would leave
    it."""

    def cpu(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    if device == "cpu":
        return cpu
    other = torch.empty(256 << 20, dtype=torch.int8, device=device)

    def cuda(call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        other.zero_()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    return cuda


def machine(device: str, dtype: torch.dtype, tiny: bool = False) -> Machine:
    """The limits of this machine: the datasheet's for a known GPU, else those of a large copy and a
    large product, measured now."""
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else platform.processor() or platform.machine()
    )
    for known, limits in DATASHEETS.items():
        if device == "cuda" and known in name:
            return Machine(name, *limits, "datasheet")
    n, side = (1 << 16, 64) if tiny else (1 << 26, 1536)
    source, target = torch.ones(n, device=device), torch.empty(n, device=device)
    square = torch.ones(side, side, device=device, dtype=dtype)
    seconds = clock(device)
    copied = min(seconds(lambda: target.copy_(source)) for _ in range(10))
    multiplied = min(seconds(lambda: square @ square) for _ in range(10))
    return Machine(
        name, 2 * source.nbytes / copied, 2 * side**3 / multiplied, "measured in this run"
    )


def nbytes_of(tensor: Tensor) -> int:
    """An expanded tensor costs only the memory behind it."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


class Traffic(TorchDispatchMode):
    """Count kernels, bytes and arithmetic: each operator reads its inputs and writes its outputs
    once; a custom operation is one kernel."""

    def __init__(self, limits: Machine) -> None:
        super().__init__()
        self.limits, self.kernels, self.bytes, self.flops, self.seconds = limits, 0, 0, 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not views and not func.name().startswith(
            ("aten::detach", "aten::empty", "aten::new_empty", "aten::_unsafe_view")
        ):
            moved = sum(map(nbytes_of, tensors_of((args, kwargs, out))))
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=out) if count else 0
            self.kernels, self.bytes, self.flops = (
                self.kernels + 1,
                self.bytes + moved,
                self.flops + flops,
            )
            self.seconds += max(
                moved / self.limits.bandwidth, flops / self.limits.flops
            )  # each kernel at its own limit
        return out


def count(
    function: Callable[..., Tensor], inputs: tuple[Any, ...], limits: Machine, backward: bool
) -> Traffic:
    """What one pass moves; `inputs` on the meta device. The gradient of the output is given, as
    inside a network."""
    traffic = Traffic(limits)
    with traffic:
        out = function(*inputs)
    if backward:
        seed = torch.ones_like(out)
        with traffic:
            torch.autograd.grad(out, leaves_of(inputs), seed)
    return traffic


def least_bytes(function: Callable[..., Tensor], inputs: tuple[Any, ...], backward: bool) -> int:
    """Inputs read and the output written once; backward, inputs and the output's gradient read and
    the inputs' gradients written."""
    read = sum(map(nbytes_of, tensors_of(inputs)))
    out = nbytes_of(function(*inputs))
    return read + out + (out + read + sum(map(nbytes_of, leaves_of(inputs))) if backward else 0)


def estimate(
    names: Iterable[str],
    sizes: dict[str, Size],
    limits: Machine = ESTIMATED,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Row]:
    """The roofline of every operation, forward and backward: nothing runs, no time is measured."""
    rows = []
    for size_name, size in sizes.items():
        for name in names:
            operation = OPERATIONS[name]
            inputs = make_inputs(operation, size, "meta", dtype)
            own, least = tensors_of(inputs), least_bytes(operation.plain, inputs, backward=True)
            plain, ours = (
                count(function, inputs, limits, backward=True)
                for function in (operation.plain, operation.ours)
            )
            flops = min(plain.flops, ours.flops)
            rows.append(
                {
                    "operation": name,
                    "size": size_name,
                    "plain": {
                        "kernels": plain.kernels,
                        "bytes": plain.bytes,
                        "seconds": plain.seconds,
                        "kept_bytes": kept_bytes(partial(operation.plain, *inputs), own),
                    },
                    "ours": {
                        "kernels": ours.kernels,
                        "bytes": ours.bytes,
                        "kept_bytes": kept_bytes(partial(operation.ours, *inputs), own),
                    },
                    "least_bytes": least,
                    "flops": flops,
                    "ceiling": plain.seconds / max(least / limits.bandwidth, flops / limits.flops),
                }
            )
    return rows
