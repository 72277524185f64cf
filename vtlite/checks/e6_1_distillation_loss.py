"""Exercise 6.1, `distillation_loss`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, randn, same, untouched
from vtlite.checks.gradients import finite
from vtlite.checks.harness import Answer, check, gradients, lives, same_gradients


def _logs(z: Tensor) -> Tensor:
    """The log-softmax of one row."""
    return z - torch.logsumexp(z, 0)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return sum((a.exp() * (a - b) for a, b in zip(log_p, log_q, strict=True)), torch.zeros(()))


def _right(student: Tensor, teacher: Tensor, labels: Tensor, T: float, weight: float) -> Tensor:
    rows = []
    for z, t, y in zip(student, teacher.detach(), labels, strict=True):
        by_teacher = T**2 * _kl(_logs(t / T), _logs(z / T))
        rows.append((1 - weight) * -_logs(z)[y] + weight * by_teacher)
    return torch.stack(rows).mean()


@check
def distillation_loss(student: Answer) -> None:
    """6.1: `distillation_loss(student, teacher, labels, temperature, weight)`: the mean over images
    of (1 - weight) CE + weight T^2 KL(p || q), p the teacher's answer."""
    # The labels leave room for one more, as they are one more in another life.
    for seed, B, C, labels, T, weight, size in (
        (0, 3, 5, (0, 3, 1), 4.0, 0.7, 2.0),
        (1, 4, 3, (1, 0, 1, 1), 0.5, 0.25, 1.0),
        (2, 1, 6, (2,), 2.0, 0.9, 3.0),
        (3, 5, 4, (0, 1, 2, 0, 1), 1.0, 0.5, 2.0),
        (4, 3, 3, (0, 1, 0), 3.0, 1.0, 2.0),
        (5, 2, 4, (0, 2), 2.5, 0.0, 2.0),
        (6, 4, 4, (0, 1, 2, 1), 2.0, 0.5, 300.0),
    ):
        z, t = (size * logits for logits in randn(seed, (B, C), (B, C)))
        arguments = {"student": z, "teacher": t, "labels": torch.tensor(labels)}
        _loss_case(student, arguments, T, weight)
    z, t = (2 * logits for logits in randn(7, (3, 5), (3, 5)))
    given = {"student": z, "teacher": t, "labels": torch.tensor((3, 0, 1))}
    lives(student, _right, given | {"temperature": 3.0, "weight": 0.6}, reads=False)
    passed(
        "distillation_loss",
        "values for six temperatures",
        "the mean over the images",
        "both weights",
        "large logits",
        "the gradient of the student",
        "no gradient of the teacher",
        "any type and device",
        "arguments untouched",
    )


def _loss_case(student: Answer, arguments: dict[str, Any], T: float, weight: float) -> None:
    before = copies(arguments)
    found = student(*arguments.values(), T, weight)
    untouched(arguments, before)
    z, t, labels = arguments["student"], arguments["teacher"], arguments["labels"]
    B, C = z.shape
    case = f"the loss for logits {[B, C]}, temperature {T}, weight {weight}"
    if isinstance(found, Tensor):
        expect(
            found.ndim == 0,
            f"{case}: expected one number, found shape {list(found.shape)}",
            "a loss is one number: take the mean over the images",
        )
        finite(
            found,
            case,
            "the log of a softmax that has become 0: log_softmax keeps the digits",
        )

    def hard_term(z: Tensor) -> Tensor:
        return torch.stack([-_logs(row)[y] for row, y in zip(z, labels, strict=True)]).mean()

    def soft_term(of: Any) -> Tensor:
        """The mean over images of what `of` makes of log p and log q at temperature T."""
        rows = [of(_logs(a / T), _logs(b / T)) for a, b in zip(t, z, strict=True)]
        return T**2 * torch.stack(rows).mean()

    def other(of: Any = _kl, factor: float = 1.0) -> Tensor:
        return (1 - weight) * hard_term(z) + weight * factor * soft_term(of)

    def warm(student_by: float, teacher_by: float) -> Tensor:
        """The logits divided by other numbers than T."""
        rows = [
            _kl(_logs(a / teacher_by), _logs(b / student_by)) for a, b in zip(t, z, strict=True)
        ]
        return (1 - weight) * hard_term(z) + weight * T**2 * torch.stack(rows).mean()

    hard, soft = hard_term(z), soft_term(_kl)
    right = _right(z, t, labels, T, weight)
    columns = [_kl(_logs(a / T), _logs(b / T)) for a, b in zip(t.T, z.T, strict=True)]
    label = torch.nn.functional.one_hot(t.argmax(1), C).to(z)
    by_best = -sum((row * _logs(b / T)).sum() for row, b in zip(label, z, strict=True)) / B
    mistakes = {
        "the student's answer weighs the difference, KL(q || p): it is the teacher's that does": other(
            lambda p, q: _kl(q, p)
        ),
        "T^2 is missing: without it the teacher's share shrinks as T rises": other(factor=1 / T**2),
        "T stands once: it is T^2": other(factor=1 / T),
        "you divide by T^2; it multiplies": other(factor=T**-4),
        "T^2 multiplies both terms: the label's has none": (1 - weight) * T**2 * hard
        + weight * soft,
        "the teacher's logits are not divided by T": warm(T, 1.0),
        "the student's logits are not divided by T": warm(1.0, T),
        "neither is divided by T before the softmax": warm(1.0, 1.0),
        "the logits are multiplied by T; divide": warm(1 / T, 1 / T),
        "the label's term is softened, too: there the student answers as it is, without T": (
            (1 - weight) * hard_term(z / T) + weight * soft
        ),
        "the weights are exchanged: `weight` belongs to the teacher": weight * hard
        + (1 - weight) * soft,
        "1 - weight is missing in the label's term": hard + weight * soft,
        "weight is missing in the teacher's term": (1 - weight) * hard + soft,
        "the weights are missing": hard + soft,
        "the label's term is missing": weight * soft,
        "the teacher's term is missing": (1 - weight) * hard,
        "the teacher's term is a sum over the images; take the mean": (1 - weight) * hard
        + weight * B * soft,
        "the label's term is a sum over the images; take the mean": (1 - weight) * B * hard
        + weight * soft,
        "both terms are sums over the images; take the mean": B * right,
        "the teacher's term is divided by all entries (kl_div's 'mean'); by the images alone": other(
            factor=1 / C
        ),
        "that is the cross-entropy with the teacher's answer: KL also subtracts its entropy": other(
            lambda p, q: -(p.exp() * q).sum()
        ),
        "the teacher's best class is taken as a label; its soft answer is what the student learns": (
            (1 - weight) * hard + weight * T**2 * by_best
        ),
        "the softmax runs over the images; it belongs to the classes": (1 - weight) * hard
        + weight * T**2 * sum(columns) / B,
        "the sign of the teacher's term is turned": (1 - weight) * hard - weight * soft,
        "the sign of the label's term is turned": weight * soft - (1 - weight) * hard,
        "the label is compared with the teacher's logits": (1 - weight) * hard_term(t)
        + weight * soft,
        "kl_div wants the logarithm of the student's answer, not the answer": other(
            lambda p, q: (p.exp() * (p - q.exp())).sum()
        ),
        "the teacher's logarithm weighs the difference: it is its probability that does": other(
            lambda p, q: (p * (p - q)).sum()
        ),
        "the probabilities are subtracted; the difference is that of their logarithms": other(
            lambda p, q: (p.exp() * (p.exp() - q.exp())).sum()
        ),
        "the logits themselves are compared: that is a squared error": (1 - weight) * hard
        + weight * (z - t).square().mean(),
    }
    mistakes = {text: value.to(z.dtype) for text, value in mistakes.items()}
    same(case, found, right, mistakes)

    def of(function: Any) -> Any:
        return lambda student, teacher: function(student, teacher, labels, T, weight)

    logits = {"student": z, "teacher": t}
    by_teacher = gradients(of(student), logits, "teacher")["teacher"]
    expect(
        not by_teacher.any(),
        f"{case}: expected no gradient of the teacher's logits, found one",
        "the teacher is not to learn from its student: detach its logits",
    )
    same_gradients(of(student), of(_right), logits, "student")
