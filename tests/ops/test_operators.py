"""Each operator itself against its reference, on the path without a kernel too, where some public
functions call the reference instead."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.ops.cases import OPS
from tests.ops.contract import close, seed_like


@pytest.mark.parametrize(
    ("name", "shape"), [(name, shape) for name, case in OPS.items() for shape in case.shapes]
)
def test_operator_is_the_reference_with_another_backward(name: str, shape: str) -> None:
    results = []
    for function in (OPS[name].operator, OPS[name].reference):
        operands = OPS[name].operands(*OPS[name].inputs(shape))
        out = function(*operands)
        out = (
            out[0] if isinstance(out, tuple) else out
        )  # what else it returns is for its backward pass
        leaves = [t for t in tree_leaves(operands) if isinstance(t, Tensor) and t.requires_grad]
        results.append([out, *torch.autograd.grad(out, leaves, seed_like(out))])
    close(*results, 1e-10)
