"""Every custom operation against the contract (contract.py). With TRITON_INTERPRET=1 in the
environment, its kernels."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from tests.ops import contract
from tests.ops.cases import OPS
from vtlite.ops._launch import INTERPRET, triton

each_op = pytest.mark.parametrize("name", OPS)
small_shape = pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name, case in OPS.items()
        for shape in case.shapes
        if shape not in ("empty", "blocks")
    ],
)
each_shape = pytest.mark.parametrize(
    ("name", "shape"), [(name, shape) for name, case in OPS.items() for shape in case.shapes]
)
not_about_kernels = pytest.mark.skipif(INTERPRET, reason="says nothing of the kernel")


@small_shape
def test_registration(name: str, shape: str) -> None:
    if INTERPRET and shape != "plain":
        pytest.skip("says nothing more of the kernel")
    contract.registration(OPS[name], shape)


@small_shape
def test_gradient_is_the_derivative(name: str, shape: str) -> None:
    contract.gradient_is_the_derivative(OPS[name].function, OPS[name].inputs(shape))


@small_shape
@not_about_kernels
def test_gradient_of_the_reference_is_the_derivative(name: str, shape: str) -> None:
    contract.gradient_is_the_derivative(OPS[name].reference, OPS[name].inputs(shape))


@each_shape
@pytest.mark.parametrize("dtype", contract.TOLERANCE, ids=str)
def test_agrees_with_the_reference(name: str, shape: str, dtype: torch.dtype) -> None:
    contract.agrees_with_the_reference(OPS[name], shape, dtype)


@each_shape
@pytest.mark.skipif(
    INTERPRET, reason="the interpreter's bfloat16 products are wrong (triton-lang/triton#11584)"
)
def test_bfloat16_rounds_as_well_as_torch(name: str, shape: str) -> None:
    if shape != "empty":
        contract.rounds_as_well_as_torch(OPS[name], shape)


@each_op
def test_strided_inputs_and_gradients(name: str) -> None:
    contract.takes_strided_inputs(OPS[name], "plain")
    contract.takes_strided_gradients(OPS[name])


@each_op
def test_each_gradient_alone(name: str) -> None:
    contract.gives_each_gradient_alone(OPS[name], "plain")


@small_shape
def test_inputs_stay(name: str, shape: str) -> None:
    contract.leaves_inputs_alone(OPS[name], shape)


@each_op
def test_compiles_whole(name: str) -> None:
    contract.compiles_whole(OPS[name], "plain")


@each_op
@not_about_kernels
def test_exports(name: str) -> None:
    contract.exports(OPS[name], "plain")


@small_shape
def test_counts_its_products(name: str, shape: str) -> None:
    if shape == "one row":
        pytest.skip("PyTorch's gradients of one row are sums, which are not counted")
    contract.counts_its_products(OPS[name], shape)


@small_shape
@not_about_kernels
def test_works_on_meta(name: str, shape: str) -> None:
    contract.works_on_meta(OPS[name], shape)


@each_op
def test_autocast(name: str) -> None:
    contract.works_under_autocast(OPS[name], "plain")


@each_op
@pytest.mark.skipif(not INTERPRET, reason="needs TRITON_INTERPRET=1; see test_interpreter.py")
def test_the_kernels_are_what_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would test the reference twice."""
    from triton.runtime.interpreter import InterpretedFunction

    kernels = {
        value.fn.__name__
        for value in vars(sys.modules[OPS[name].function.__module__]).values()
        if hasattr(value, "fn")
    }
    launched = set()
    run = InterpretedFunction.run

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        launched.add(self.fn.__name__)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "run", spy)
    contract.run(OPS[name].function, OPS[name].inputs())
    assert triton is not None
    assert launched <= kernels
    assert bool(launched) == bool(kernels)
