"""Exercise 6.2, `decoupled_parts`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, randn, same, untouched
from vtlite.checks.gradients import finite
from vtlite.checks.harness import Answer, check, lives, same_gradients

Row = Callable[[Tensor, Tensor], Tensor]


def _split(z: Tensor, y: int) -> tuple[Tensor, Tensor]:
    """Logits of one image -> the logs of (p_y, 1 - p_y), and of the others' shares among themselves."""
    others = torch.cat([z[:y], z[y + 1 :]])
    rest = torch.logsumexp(others, 0)
    return torch.stack([z[y], rest]) - torch.logsumexp(z, 0), others - rest


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    terms = [a.exp() * (a - b) for a, b in zip(log_p, log_q, strict=True)]
    return torch.stack(terms).sum()


def _right(
    student: Tensor, teacher: Tensor, labels: Tensor, T: float, of: Row = _kl
) -> tuple[Tensor, Tensor]:
    parts: list[list[Tensor]] = [[], []]
    for z, t, y in zip(student / T, teacher / T, labels.tolist(), strict=True):
        for part, log_p, log_q in zip(parts, _split(t, y), _split(z, y), strict=True):
            part.append(T**2 * of(log_p, log_q))
    return torch.stack(parts[0]), torch.stack(parts[1])


@check
def decoupled_parts(student: Answer) -> None:
    """6.2: `decoupled_parts(student, teacher, labels, temperature)` -> T^2 KL of (p_y, 1 - p_y), and
    T^2 KL among the other classes, [B] each."""
    # The labels leave room for one more, as they are one more in another life.
    for seed, C, labels, T, size, sure in (
        (0, 5, (0, 3, 1), 4.0, 2.0, 0.0),
        (5, 4, (0, 2, 1), 1.5, 2.0, 60.0),  # 1 - p_y is 0 in float32
        (1, 3, (1, 0, 1, 1), 0.5, 1.0, 0.0),
        (2, 6, (2,), 2.0, 3.0, 0.0),
        (3, 4, (0, 1, 2, 0), 1.0, 2.0, 0.0),
        (4, 2, (0, 1, 0), 2.0, 2.0, 0.0),
        (6, 4, (0, 2, 1), 1.5, 100.0, 0.0),
    ):
        z, t = (size * logits for logits in randn(seed, (len(labels), C), (len(labels), C)))
        chosen = torch.nn.functional.one_hot(torch.tensor(labels), C)
        z, t = z + 0.8 * sure * chosen, t + sure * chosen
        arguments = {"student": z, "teacher": t, "labels": torch.tensor(labels)}
        _parts_case(student, arguments, T)
    z, t = (3 * logits for logits in randn(7, (3, 5), (3, 5)))
    given = {"student": z, "teacher": t, "labels": torch.tensor((3, 0, 1))}
    lives(student, _right, given | {"temperature": 2.0})
    passed(
        "decoupled_parts",
        "the true class against the rest",
        "the others among themselves",
        "the identity with KD",
        "each image by itself",
        "a teacher without a doubt",
        "the gradient of the student",
        "any type and device",
        "arguments untouched",
    )


def _parts_case(student: Answer, arguments: dict[str, Any], T: float) -> None:
    before = copies(arguments)
    found = student(*arguments.values(), T)
    untouched(arguments, before)
    z, t, labels = arguments["student"], arguments["teacher"], arguments["labels"]
    case = f"logits {list(z.shape)}, temperature {T}"
    expect(
        isinstance(found, tuple | list) and len(found) == 2,
        f"{case}: expected two results, found {type(found).__name__}",
        "return (the part of the true class, the part of the others)",
    )
    names = ("the part of the true class", "the part of the others")
    for name, part in zip(names, found, strict=True):
        expect(
            isinstance(part, Tensor) and part.shape == labels.shape,
            f"{name}, {case}: expected a tensor of shape {list(labels.shape)}, found"
            f" {list(part.shape) if isinstance(part, Tensor) else type(part).__name__}",
            "one number for each image: sum over the classes, and take no mean",
        )
        finite(
            part,
            f"{name}, {case}",
            "the log of 1 - p_y, where p_y has become 1, or a class that is filled with -inf:"
            " logsumexp of the other logits keeps the digits",
        )
    right = _right(z, t, labels, T)
    # Together they have a size, where the others are one class and their part is 0.
    together = torch.stack(right)
    mistakes = _mistakes(z, t, labels, T, right)
    for i, name in enumerate(names):
        wrong = {text: value[i] for text, value in mistakes[i].items()}
        wrong = {text: value for text, value in wrong.items() if not torch.equal(value, right[i])}
        size = together if z.shape[1] == 2 else right[i]
        given = torch.stack([found[0], found[1]]) if z.shape[1] == 2 else found[i]
        same(f"{name}, {case}", given, size, wrong if z.shape[1] > 2 else {}, tolerance=2e-5)

    def weighed(function: Any) -> Any:
        """Both parts at once, with weights that no other sum has."""
        return lambda student: torch.stack(list(function(student, t, labels, T)))

    same_gradients(weighed(student), weighed(_right), {"student": z}, "student")


def _mistakes(
    z: Tensor, t: Tensor, labels: Tensor, T: float, right: tuple[Tensor, Tensor]
) -> list[dict[str, Any]]:
    """What each likely mistake makes of the parts: those of the first, and of the second."""
    ys = labels.tolist()
    target, others = right
    whole = torch.stack(
        [T**2 * _kl(a.log_softmax(0), b.log_softmax(0)) for a, b in zip(t / T, z / T, strict=True)]
    )
    p = (t / T).softmax(1)
    true = torch.stack([row[y] for row, y in zip(p, ys, strict=True)])

    def both(*parts: Tensor) -> tuple[Tensor, ...]:
        return parts if len(parts) == 2 else parts * 2

    def rows(of: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
        return T**2 * torch.stack([of(a, b, y) for a, b, y in zip(t / T, z / T, ys, strict=True)])

    def others_in_all(a: Tensor, b: Tensor, y: int) -> Tensor:
        """Without the division by 1 - p_y."""
        terms = a.softmax(0) * (a.log_softmax(0) - b.log_softmax(0))
        return terms.sum() - terms[y]

    def true_alone(a: Tensor, b: Tensor, y: int) -> Tensor:
        return (a.softmax(0) * (a.log_softmax(0) - b.log_softmax(0)))[y]

    def zeroed(a: Tensor, b: Tensor, y: int) -> Tensor:
        """The true class's logit set to 0, and not left out."""
        keep = torch.arange(len(a)) != y
        return _kl((a * keep).log_softmax(0), (b * keep).log_softmax(0))

    def of_the_teachers_class(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return _right(student, teacher, teacher.argmax(1), T)

    def summed(a: Tensor, b: Tensor, y: int) -> Tensor:
        """(z_y, the sum of the other logits) as if those were the logits of two classes."""
        pairs = [torch.stack([c[y], c.sum() - c[y]]).log_softmax(0) for c in (a, b)]
        return _kl(*pairs)

    general = {
        "the parts are exchanged: first the true class, then the others": both(others, target),
        "the student's answer weighs the difference, KL(q || p): it is the teacher's that does": (
            _right(z, t, labels, T, lambda p, q: _kl(q, p))
        ),
        "T^2 is missing": both(target / T**2, others / T**2),
        "T stands once: it is T^2": both(target / T, others / T),
        "the logits are not divided by T": tuple(T**2 * x for x in _right(z, t, labels, 1.0)),
        "the student's logits are not divided by T": _right(z * T, t, labels, T),
        "the teacher's logits are not divided by T": _right(z, t * T, labels, T),
        "the logits are multiplied by T; divide": _right(z * T**2, t * T**2, labels, T),
        "the class that the teacher likes best is taken for the true one: the labels say which": (
            of_the_teachers_class(z, t)
        ),
        "the sign is turned": both(-target, -others),
        "you take the mean over the images: one number for each": both(
            target.mean().expand_as(target), others.mean().expand_as(others)
        ),
        "that is the cross-entropy: KL also subtracts the teacher's entropy": _right(
            z, t, labels, T, lambda p, q: -(p.exp() * q).sum()
        ),
        "you divide by the number of classes (kl_div's 'mean'): sum over them": both(
            target / 2, others / max(1, z.shape[1] - 1)
        ),
        "that is KD's whole divergence, over all classes": both(whole),
    }
    first = {
        "the rest is missing: (1 - p_y) log((1 - p_y) / (1 - q_y)) is a term of its own": rows(
            true_alone
        ),
        "the sum of the other logits is no logit: probabilities add up, so take logsumexp": rows(
            summed
        ),
    }
    second = {
        "the part is weighed by 1 - p_y, as in KD: taking this weight out is what DKD is about": (
            (1 - true) * others
        ),
        "the others are not divided by 1 - p_y, so they do not sum to one": rows(others_in_all),
        "the true class is set to zero: a logit of 0 is a class like any other, leave it out": rows(
            zeroed
        ),
        "the part is divided by 1 - p_y: the others' shares are, their part is not": others
        / (1 - true),
        "the part is weighed by p_y": true * others,
        "it is what KD's divergence has left over: divide this by the teacher's 1 - p_y": (
            whole - target
        ),
    }
    return [
        general | {text: both(value) for text, value in first.items()},
        general | {text: both(value) for text, value in second.items()},
    ]
