"""What every custom operation must hold, as plain functions of its case; `test_contract.py` runs
them over all of OPS.

In a process that started with TRITON_INTERPRET=1 the same functions test the Triton kernels, in
Triton's interpreter (`test_interpreter.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.library import opcheck
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.cases import Case
from vtlite.ops._launch import INTERPRET

Inputs = tuple[Any, ...]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-3}


def registration(case: Case, shape: str) -> None:
    """Schema, autograd formula, fake tensors, and tracing with dynamic sizes."""
    opcheck(case.operator, case.operands(*case.inputs(shape)))


def gradient_is_the_derivative(function: Callable[..., Tensor], inputs: Inputs) -> None:
    assert gradcheck(
        function, inputs, fast_mode=INTERPRET
    )  # fast: along random directions, as the interpreter is slow


def agrees_with_the_reference(case: Case, shape: str, dtype: torch.dtype) -> None:
    """Output and gradients, with the float64 reference of the same rounded inputs."""
    got = run(case.function, case.inputs(shape, dtype))
    want = run(case.reference, changed(case.inputs(shape, dtype), torch.Tensor.double))
    assert all(t.dtype == dtype for t in got)
    close(got, want, TOLERANCE[dtype])


def rounds_as_well_as_torch(case: Case, shape: str) -> None:
    """bfloat16: at most twice as far from the float64 result as plain PyTorch in bfloat16, or one
    rounding of the result."""
    inputs = case.inputs(shape, torch.bfloat16)
    want = run(case.reference, changed(inputs, torch.Tensor.double))
    for ours, theirs, right in zip(
        run(case.function, inputs), run(case.reference, inputs), want, strict=True
    ):
        error, allowed = ((t.double() - right).norm() for t in (ours, theirs))
        assert ours.dtype == torch.bfloat16
        assert error <= max(2 * allowed, 2**-8 * right.norm()), (
            f"error {error:.3g}, PyTorch's {allowed:.3g}, of {right.norm():.3g}"
        )


def takes_strided_inputs(case: Case, shape: str) -> None:
    inputs = case.inputs(shape)
    strided = changed(inputs, lambda t: torch.stack([t, t], -1)[..., 0])
    assert any(not t.is_contiguous() for t in tensors(strided))
    close(run(case.function, strided), run(case.function, inputs), 1e-12)


def takes_strided_gradients(case: Case) -> None:
    """What comes back from the next layer may be expanded from one number, as after a sum."""
    one, whole = case.inputs(), case.inputs()
    case.function(*one).sum().backward()
    out = case.function(*whole)
    out.backward(torch.ones_like(out))
    close([t.grad for t in leaves(one)], [t.grad for t in leaves(whole)], 1e-12)


def gives_each_gradient_alone(case: Case, shape: str) -> None:
    """Whichever of the inputs is frozen, the gradients of the others are the same."""
    whole = run(case.function, case.inputs(shape))[1:]
    for i, want in enumerate(whole):
        inputs = case.inputs(shape)
        for j, leaf in enumerate(leaves(inputs)):
            leaf.requires_grad_(i == j)
        close(run(case.function, inputs)[1:], [want], 1e-12)


def leaves_inputs_alone(case: Case, shape: str) -> None:
    inputs, before = case.inputs(shape), case.inputs(shape)
    run(case.function, inputs)
    assert all(torch.equal(a, b) for a, b in zip(tensors(inputs), tensors(before), strict=True))


def compiles_whole(case: Case, shape: str) -> None:
    """torch.compile without a graph break, forward and backward."""
    torch.compiler.reset()
    compiled = torch.compile(
        lambda *inputs: case.function(*inputs), fullgraph=True, backend="aot_eager"
    )
    close(run(compiled, case.inputs(shape)), run(case.function, case.inputs(shape)), 1e-12)


def exports(case: Case, shape: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, *inputs: Any) -> Tensor:
            return case.function(*inputs)

    inputs = changed(case.inputs(shape), lambda t: t, grad=False)
    close(
        [torch.export.export(Module(), inputs).module()(*inputs)], [case.function(*inputs)], 1e-12
    )


def counts_its_products(case: Case, shape: str) -> None:
    """A FLOP counter, which cannot see into an operator, finds the products of the reference or
    fewer, forward and backward.

    A fifth more is allowed backward, where something thin is made again instead of kept (the
    adapter's kernel).
    """
    found = []
    for function in (case.function, case.reference):
        with (
            FlopCounterMode(display=False) as forward,
            sdpa_kernel(SDPBackend.MATH),
        ):  # a counter does not see the CPU's fused attention
            function(*case.inputs(shape))
        with FlopCounterMode(display=False) as both, sdpa_kernel(SDPBackend.MATH):
            run(function, case.inputs(shape))
        found.append((forward.get_total_flops(), both.get_total_flops()))
    for ours, theirs, more in zip(*found, (1.0, 1.2), strict=True):
        assert theirs / 2 <= ours <= more * theirs, f"{ours} counted, {theirs} in the reference"


def works_on_meta(case: Case, shape: str) -> None:
    """Shapes and types without values."""
    real = run(case.function, case.inputs(shape))
    meta = case.function(*case.inputs(shape, device="meta"))
    assert (meta.shape, meta.dtype, meta.device.type) == (real[0].shape, real[0].dtype, "meta")


def works_under_autocast(case: Case, shape: str) -> None:
    """Low-precision activations, float32 parameters: what a layer meets inside a network under
    autocast."""
    dtype = (
        torch.float16 if INTERPRET else torch.bfloat16
    )  # the interpreter's bfloat16 products are wrong
    inputs = case.inputs(shape, torch.float32)
    want = run(case.reference, changed(inputs, lambda t: t))
    first = inputs[0].detach().to(dtype).requires_grad_(inputs[0].requires_grad)
    for x in (inputs[0], first):
        mixed = (x, *inputs[1:])
        with torch.autocast("cpu", dtype):
            out = case.function(*mixed)
        got = [out, *torch.autograd.grad(out, leaves(mixed), seed_like(out))]
        assert [t.dtype for t in got[1:]] == [t.dtype for t in leaves(mixed)]
        for a, b in zip(got, want, strict=True):
            assert (a.double() - b.double()).norm() <= 0.05 * b.double().norm() + 1e-6


# Helpers
# -------------------------------------------------------------------------------------------------
def tensors(inputs: Inputs) -> list[Tensor]:
    return [t for t in inputs if isinstance(t, Tensor)]


def leaves(inputs: Inputs) -> list[Tensor]:
    return [t for t in tensors(inputs) if t.requires_grad]


def changed(inputs: Inputs, change: Callable[[Tensor], Tensor], grad: bool = True) -> Inputs:
    """The same arguments with every floating-point tensor changed, as new leaves."""
    return tuple(
        (
            change(t.detach()).requires_grad_(t.requires_grad and grad)
            if isinstance(t, Tensor) and t.is_floating_point()
            else t
        )
        for t in inputs
    )


def seed_like(out: Tensor) -> Tensor:
    """The same random gradient for an output of this shape, in numbers that every dtype can
    hold."""
    return (
        torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out.dtype)
    )


def run(function: Callable[..., Tensor], inputs: Inputs) -> list[Tensor]:
    """The output, and the gradient of each input that wants one."""
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, leaves(inputs), seed_like(out))]


def close(got: Any, want: Any, tolerance: float) -> None:
    """Relative to the entry itself, or to the size of the tensor's entries (at least 1)."""
    for a, b in zip(got, want, strict=True):
        size = max(1.0, b.double().square().mean().sqrt().nan_to_num().item())
        torch.testing.assert_close(
            a.double(), b.double(), rtol=tolerance, atol=tolerance * size, equal_nan=True
        )
