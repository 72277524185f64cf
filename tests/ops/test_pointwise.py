"""Scale-shift and the mixed operation: sums over several programs, mixed types, lists, errors; the
rest is in test_contract.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.contract import close, run
from vtlite.ops import mixed_op as mixed
from vtlite.ops import scale_shift as ss
from vtlite.ops.mixed_op import mixed_op, mixed_op_reference
from vtlite.ops.scale_shift import scale_shift, scale_shift_reference
from vtlite.storage import VTError


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (
        torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
        .to(dtype)
        .requires_grad_()
    )


def test_scale_shift_adds_up_many_rows() -> None:
    """More rows than one program takes, in several steps each."""
    inputs = random(2100, 5), random(5), random(5)
    close(run(ss._scale_shift, inputs), run(scale_shift_reference, inputs), 1e-10)


def test_scale_shift_takes_float32_pairs_after_a_half_precision_layer() -> None:
    inputs = (
        random(7, 5, dtype=torch.float16),
        random(5, dtype=torch.float32),
        random(5, dtype=torch.float32),
    )
    for ours, theirs in zip(
        run(scale_shift, inputs), run(scale_shift_reference, inputs), strict=True
    ):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)


def test_scale_shift_refuses_other_shapes() -> None:
    with pytest.raises(
        VTError, match=r"expected a scale and a shift of 5 numbers each.*found \[1\] and \[5\]"
    ):
        scale_shift(random(7, 5), random(1), random(5))


@pytest.mark.parametrize("candidates", [1, 3])
def test_mixed_op_of_a_list_in_several_blocks(candidates: int) -> None:
    xs = [random(2500 + k).detach()[:2500].requires_grad_() for k in range(candidates)]
    inputs = *xs, random(candidates)
    ours, theirs = (
        run(lambda *t, f=f: f(list(t[:-1]), t[-1]), inputs)
        for f in (mixed._mixed_op, mixed_op_reference)
    )
    close(ours, theirs, 1e-10)


def test_mixed_op_takes_the_widest_type_of_the_candidates() -> None:
    xs = [random(4, 5, dtype=torch.float16), random(4, 5, dtype=torch.float32)]
    out = mixed_op(xs, random(2, dtype=torch.float32))
    assert out.dtype == torch.float32
    assert [t.dtype for t in torch.autograd.grad(out.sum(), xs)] == [torch.float16, torch.float32]


def test_mixed_op_keeps_its_inputs_alone() -> None:
    xs, alpha = [random(4, 5), random(5, 4).mT], random(2)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        mixed._mixed_op(xs, alpha)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (*xs, alpha)}


def test_mixed_op_refuses_other_shapes() -> None:
    with pytest.raises(VTError, match=r"found alpha \[3\] and candidates \[\[4, 5\], \[4, 5\]\]"):
        mixed_op([random(4, 5), random(4, 5)], random(3))
    with pytest.raises(VTError, match=r"candidates of one shape, found"):
        mixed_op([random(4, 5), random(5)], random(2))
