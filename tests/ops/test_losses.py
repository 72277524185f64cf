"""Cross-entropy and distillation: PyTorch's own functions, classes that do not fit one block,
labels that do not count or do not exist."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.contract import run
from vtlite.ops._launch import INTERPRET
from vtlite.ops.cross_entropy import _cross_entropy, cross_entropy
from vtlite.ops.kd_loss import _kd_loss, kd_loss
from vtlite.storage import VTError


def logits(*shape: int, seed: int = 0, grad: bool = True) -> Tensor:
    return (
        3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()
    ).requires_grad_(grad)


def assert_equal(got: list[Tensor], want: list[Tensor]) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10, equal_nan=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("classes", [1, 7, 40_001])  # the last in several blocks
def test_cross_entropy_is_pytorchs(classes: int, smoothing: float) -> None:
    labels = torch.tensor([0, -100, classes - 1, classes // 2])
    ours = run(lambda z: cross_entropy(z, labels, smoothing), (logits(4, classes),))
    assert_equal(
        ours,
        run(lambda z: F.cross_entropy(z, labels, label_smoothing=smoothing), (logits(4, classes),)),
    )


def test_cross_entropy_of_ignored_rows_alone_is_nan_as_pytorchs() -> None:
    labels = torch.full((2,), -100)
    ours, theirs = cross_entropy(logits(2, 3), labels), F.cross_entropy(logits(2, 3), labels)
    assert ours.isnan()
    assert theirs.isnan()


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy, in the interpreter
def test_cross_entropy_takes_logits_of_minus_infinity() -> None:
    z = logits(2, 5, grad=False).index_fill(1, torch.tensor([3]), -torch.inf)
    labels = torch.tensor([0, 4])
    assert_equal(
        run(lambda z: cross_entropy(z, labels), (z.clone().requires_grad_(),)),
        run(lambda z: F.cross_entropy(z, labels), (z.clone().requires_grad_(),)),
    )


def test_cross_entropy_of_a_label_that_is_no_class() -> None:
    if INTERPRET:
        assert cross_entropy(logits(2, 3), torch.tensor([0, 3])).isnan()
        assert cross_entropy(logits(2, 3), torch.tensor([-1, 0])).isnan()
    else:
        with pytest.raises(IndexError, match="3 is out of bounds"):
            cross_entropy(logits(2, 3), torch.tensor([0, 3]))


def test_cross_entropy_refuses_what_it_cannot_do() -> None:
    with pytest.raises(
        VTError,
        match=(
            r"expected a class number of type long for each row of logits, \[2\], found \[2, 3\] of"
            r" torch.float64"
        ),
    ):
        cross_entropy(logits(2, 3), logits(2, 3))
    with pytest.raises(VTError, match=r"expected label_smoothing in \[0, 1\], found 1.5"):
        cross_entropy(logits(2, 3), torch.tensor([0, 1]), 1.5)


def _kl(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    p, q = F.log_softmax(teacher / T, -1), F.log_softmax(student / T, -1)
    return T**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


@pytest.mark.parametrize("temperature", [0.7, 4.0])
@pytest.mark.parametrize(
    "classes", [1, 7, 50_001]
)  # the last in several blocks, and on the CPU large enough for the operator
def test_kd_loss_is_pytorchs(classes: int, temperature: float) -> None:
    teacher = logits(3, classes, seed=1, grad=False)
    ours = run(lambda z: kd_loss(z, teacher, temperature), (logits(3, classes),))
    assert_equal(ours, run(lambda z: _kl(z, teacher, temperature), (logits(3, classes),)))


def test_kd_loss_teaches_only_the_student() -> None:
    student, teacher = logits(2, 3), logits(2, 3, seed=1)
    kd_loss(student, teacher, 2.0).backward()
    assert student.grad is not None
    assert teacher.grad is None
    with pytest.raises(
        VTError,
        match=r"expected logits of one shape from student and teacher, found \[2, 3\] and \[2, 4\]",
    ):
        kd_loss(student, logits(2, 4), 2.0)


def saved(function: Callable[[], Tensor]) -> list[Tensor]:
    """What a forward pass keeps for the backward pass."""
    tensors: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        function()
    return tensors


def test_losses_keep_one_tensor_of_the_size_of_the_logits() -> None:
    """Of the logits' own type; the labels are alive anyway."""
    z, labels, teacher = (
        logits(4, 50).detach().half().requires_grad_(),
        torch.arange(4),
        logits(4, 50, grad=False).half(),
    )
    for function in (
        lambda: _cross_entropy(z, labels, 0.1)[0],
        lambda: _kd_loss(z, teacher, 2.0)[0],
    ):
        kept = saved(function)
        assert sum(t.numel() * t.element_size() for t in kept if t.numel() > 4) == 4 * 50 * 2


@pytest.mark.skipif(not INTERPRET, reason="without a kernel autocast decides for itself")
def test_losses_are_float32_under_autocast() -> None:
    z, labels = logits(4, 5).detach().half().requires_grad_(), torch.arange(4)
    with torch.autocast("cpu", torch.float16):
        assert cross_entropy(z, labels).dtype == kd_loss(z, z, 2.0).dtype == torch.float32
    assert cross_entropy(z, labels).dtype == kd_loss(z, z, 2.0).dtype == torch.float16
