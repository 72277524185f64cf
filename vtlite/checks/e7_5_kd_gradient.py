"""Exercise 7.5, `kd_gradient`."""

from __future__ import annotations

import torch
from torch import Tensor

from vtlite.checks.base import passed, randn, same
from vtlite.checks.gradients import autograd, by_hand, finite
from vtlite.checks.harness import (
    AUTOGRAD_OFF,
    Answer,
    check,
    lives,
)


def _kd(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    """Row by row: the mean of T^2 KL(p || q)."""
    rows = []
    for z, t in zip(
        student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1]), strict=True
    ):
        log_q, log_p = z / T - torch.logsumexp(z / T, 0), t / T - torch.logsumexp(t / T, 0)
        rows.append(
            sum((a.exp() * (a - b) for a, b in zip(log_p, log_q, strict=True)), torch.zeros(()))
        )
    return T**2 * torch.stack(rows).mean()


@check
def kd_gradient(student: Answer) -> None:
    """7.5: `kd_gradient(student, teacher, temperature)`: the gradient of the mean over rows of T^2
    KL(p || q) to the student's logits."""
    for seed, shape, T, size, dtype in (
        (0, (3, 5), 4.0, 2.0, torch.float32),
        (1, (2, 3, 4), 0.5, 1.0, torch.float64),
        (2, (1, 7), 1.0, 3.0, torch.float32),
        (3, (4, 4), 2.0, 300.0, torch.float32),
        (4, (6,), 3.0, 2.0, torch.float32),
    ):
        z, t = (size * logits.to(dtype) for logits in randn(seed, shape, shape))
        _kd_case(student, z, t, T, large=size > 100)
    for sizes in ((2, 3, 4), (1, 5), (3, 1), (2, 3, 1, 5)):
        z, t = randn(5, sizes, sizes)
        lives(
            student,
            lambda z, t, T: autograd(
                lambda z, t: _kd(z, t, T), torch.ones(()), {"z": z, "t": t}, "z"
            )[0],
            {"student": z, "teacher": t, "temperature": 3.0},
            without=AUTOGRAD_OFF,
            reads=False,
        )
    passed(
        "kd_gradient",
        "values for five temperatures",
        "mean over all rows for any strides",
        "large logits",
        "no autograd",
        "type and device",
        "arguments untouched",
    )


def _kd_case(function: Answer, z: Tensor, t: Tensor, T: float, large: bool) -> None:
    arguments = {"student": z, "teacher": t, "temperature": T}
    found = by_hand(function, arguments, {"the gradient": "student"})["the gradient"]
    case = f"the gradient for logits {list(z.shape)}, temperature {T}"
    finite(
        found,
        case,
        "exp of a large logit is infinite: use softmax, which subtracts the maximum first",
    )
    (right,) = autograd(
        lambda student, teacher: _kd(student, teacher, T),
        torch.ones(()),
        {"student": z, "teacher": t},
        "student",
    )
    rows, classes = z[..., 0].numel(), z.shape[-1]
    s, u = z.double(), t.double()
    q, p = (s / T).softmax(-1), (u / T).softmax(-1)
    label = torch.zeros_like(p).scatter(-1, u.argmax(-1, keepdim=True), 1.0)
    ratio = (s / T).log_softmax(-1) - (u / T).log_softmax(-1)
    wrong = {
        "the sign is turned: q - p, the student's answer minus the teacher's": -right.double(),
        "T^2 is missing: the loss has the factor T^2, and the chain rule one 1 / T, so T is left": (
            right.double() / T**2
        ),
        "1 / T is missing: the logits are divided by T, so the chain rule gives 1 / T, and T^2 / T = T is left": (
            right.double() * T
        ),
        "the factor T is missing: T^2 from the loss, 1 / T from the chain rule": right.double() / T,
        "the mean over the rows is missing: divide by their number": right.double() * rows,
        "you divide by all entries; the mean is over the rows": right.double() / classes,
        "the rows of all dimensions in front count, not the first alone": (
            right.double() * rows / len(z)
        ),
        "the student's logits are not divided by T": T * (s.softmax(-1) - p) / rows,
        "the teacher's logits are not divided by T": T * (q - u.softmax(-1)) / rows,
        "neither is divided by T before the softmax": T * (s.softmax(-1) - u.softmax(-1)) / rows,
        "the logits are multiplied by T; divide": (
            T * ((s * T).softmax(-1) - (u * T).softmax(-1)) / rows
        ),
        "the softmax runs over the rows; it belongs to the last dimension, the classes": (
            T * ((s / T).softmax(0) - (u / T).softmax(0)) / rows
        ),
        "student and teacher are exchanged, KL(q || p): the teacher's answer weighs the difference": (
            T * q * (ratio - (q * ratio).sum(-1, keepdim=True)) / rows
        ),
        "you take the teacher's best class as a label; its soft answer is what the student learns": (
            T * (q - label) / rows
        ),
        "the logits themselves are compared: that is a squared error": (s - u) / rows,
    }
    same(
        case,
        found,
        right,
        {sentence: w.to(z.dtype) for sentence, w in wrong.items()},
        tolerance=1e-4 if large else 1e-5,
    )
