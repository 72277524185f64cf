"""What the adapter keeps and refuses, mixed types, and its formula by hand; the rest is in
test_contract.py and test_operators.py."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ops.contract import run
from vtlite.ops import adapter as op
from vtlite.ops._launch import INTERPRET
from vtlite.ops.adapter import adapter, adapter_reference
from vtlite.storage import VTError

M, D, R = 3, 6, 2


def parts() -> list[Tensor]:
    """x, down, up, down_bias, up_bias, norm_weight, norm_bias, residual"""
    g = torch.Generator().manual_seed(0)
    shapes = [(M, D), (R, D), (D, R), (R,), (D,), (D,), (D,), (M, D)]
    return [
        torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_() for shape in shapes
    ]


def kept(function: Callable[[], Tensor]) -> list[Tensor]:
    """What a forward pass keeps for the backward pass."""
    tensors: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        function()
    return tensors


def test_by_hand() -> None:
    x, down, up, d, u, g, b, residual = (t.tolist() for t in parts())
    rows = []
    for m in range(M):
        mean = sum(x[m]) / D
        deviation = math.sqrt(sum((v - mean) ** 2 for v in x[m]) / D + 1e-6)
        n = [g[i] * (x[m][i] - mean) / deviation + b[i] for i in range(D)]
        z = [sum(down[r][i] * n[i] for i in range(D)) + d[r] for r in range(R)]
        h = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z]
        rows.append(
            [
                residual[m][i] + 0.3 * (sum(up[i][r] * h[r] for r in range(R)) + u[i])
                for i in range(D)
            ]
        )
    torch.testing.assert_close(
        adapter(*parts(), scale=0.3),
        torch.tensor(rows, dtype=torch.float64),
        atol=1e-12,
        rtol=1e-12,
    )


def test_keeps_its_inputs_alone() -> None:
    """Plain PyTorch keeps the normed x, the hidden before and after its activation too."""
    inputs = parts()
    operator = kept(lambda: op._adapter(*inputs, 1.0, "gelu", 1e-6))
    plain = kept(lambda: adapter_reference(*inputs))
    own = {t.data_ptr() for t in inputs}
    assert {t.data_ptr() for t in operator} <= own
    assert sum(t.numel() for t in plain if t.data_ptr() not in own) >= M * (D + 2 * R)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_norm_of_rows_far_from_zero(mean: float) -> None:
    """The mean is subtracted after the product with x, in float32."""
    inputs = [t.detach().float() for t in parts()]
    inputs[0] = inputs[0] + mean
    want = adapter_reference(*(t.double() for t in inputs))
    got = op._adapter(*inputs, 1.0, "gelu", 1e-6)
    torch.testing.assert_close(got.double(), want, atol=1e-3 if mean else 1e-5, rtol=1e-4)


@pytest.mark.skipif(
    not INTERPRET,
    reason="without a kernel the reference does the work, and autocast mixes types there",
)
def test_kernel_takes_a_residual_of_another_type() -> None:
    """Under autocast the weights have two bytes, and the stream of residuals keeps its four."""
    inputs = [t.detach().float().requires_grad_() for t in parts()]
    with torch.autocast("cpu", torch.float16):
        got = run(lambda *t: adapter(*t, activation="relu"), tuple(inputs))
    want = run(lambda *t: adapter_reference(*t, activation="relu"), tuple(inputs))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() <= 5e-3 * b.norm()


def test_dropout_drops_hidden_entries() -> None:
    inputs = parts()
    torch.manual_seed(0)
    first, second = adapter(*inputs, dropout=0.5), adapter(*inputs, dropout=0.5)
    assert not torch.equal(first, second)
    assert torch.equal(
        adapter(*inputs, dropout=1.0), inputs[-1] + inputs[4]
    )  # no hidden at all: residual + up's bias


def test_wide_bottlenecks_go_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "WIDEST", 1)
    monkeypatch.setattr(op, "_adapter", None)
    assert torch.equal(adapter(*parts()), adapter_reference(*parts()))


def test_refuses_what_does_not_fit() -> None:
    x, down, up, *_ = parts()
    with pytest.raises(
        VTError,
        match=r"expected up of shape \[6, 2\] beside x \[3, 6\] and down \[2, 6\], found \[2, 6\]",
    ):
        adapter(x, down, up.mT)
    with pytest.raises(VTError, match=r"expected residual of shape \[3, 6\].*found \[6\]"):
        adapter(x, down, up, residual=x[0])
    with pytest.raises(VTError, match=r"unknown activation 'gellu'.*did you mean 'gelu'"):
        adapter(x, down, up, activation="gellu")
