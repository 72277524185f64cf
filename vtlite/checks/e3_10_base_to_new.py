"""Exercise 3.10, `base_to_new`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, expect, passed, plain, randn, same, untouched
from vtlite.checks.harness import Answer, check, lives

Halves = tuple[float, float]
_WITHOUT = {
    "expanded": "all images would be of one class, and one half would have none",
    "float64": "the mean of a yes or no may be taken in single precision",
}

Lives = Callable[[], None]  # what is run after all values


def _accuracies(
    logits: Tensor, labels: Tensor, middle: int, whole: bool = False, shifted: bool = True
) -> Halves:
    """Image by image, the largest logit among the classes of its own half; `whole`: among all."""
    C = logits.shape[1]
    rights: tuple[list[bool], list[bool]] = ([], [])
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        new = label >= middle
        first, last = (0, C) if whole else (middle, C) if new else (0, middle)
        best = max(range(first, last), key=lambda c: row[c])
        rights[new].append(best - (0 if shifted or whole else first) == label)
    base, new = (sum(own) / len(own) if own else 0.0 for own in rights)
    return base, new


def _harmonic(base: float, new: float) -> float:
    return 2 / (1 / base + 1 / new) if base and new else 0.0


def _right(logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    base, new = _accuracies(logits, labels, (logits.shape[1] + 1) // 2)
    return base, new, _harmonic(base, new)


@check
def base_to_new(student: Answer) -> None:
    """3.10: `base_to_new(logits, labels)` -> accuracy on the first half of the classes, among
    these; on the second half, among those; and the harmonic mean of both."""
    later: list[Lives] = []
    # The last class has no image, nor has it when each label is one more.
    for seed, labels, C in (
        (0, (0, 3, 1, 4, 4, 2, 0, 3, 4, 1, 3), 6),
        (1, (3, 0, 5, 1, 4, 3, 2, 2, 5, 4, 0, 1, 2, 3, 5, 4, 0), 7),
        (2, (1, 2, 1, 2, 0, 1), 4),
        (3, (4, 4, 0, 5, 6, 1, 4, 5, 2, 3, 4, 6), 8),
        (4, (0, 2, 3, 0, 3, 1, 2, 2), 5),
    ):
        (noise,) = randn(seed, (len(labels), C))
        later.append(_halves_case(student, noise, torch.tensor(labels), "random logits"))
        # Some right, most of them mistaken for a class of the other half.
        own = torch.nn.functional.one_hot(torch.tensor(labels), C).to(noise)
        later.append(
            _halves_case(student, noise + 1.5 * own, torch.tensor(labels), "better logits")
        )
        later.append(_halves_case(student, -own - 0.01 * noise, torch.tensor(labels), "none right"))
        middle = (C + 1) // 2
        of_base = (torch.tensor(labels) < middle)[:, None]
        half_right = torch.where(of_base, own, -own) + 0.01 * noise
        later.append(_halves_case(student, half_right, torch.tensor(labels), "base alone right"))
        all_right = own + 0.01 * noise
        later.append(_halves_case(student, all_right, torch.tensor(labels), "all right"))
        _halves_case(student, noise.double(), torch.tensor(labels), "logits in double precision")
    for run in later:
        run()
    passed(
        "base_to_new",
        "the split of an odd and an even number of classes",
        "base images among base classes",
        "new images among new classes",
        "the harmonic mean",
        "nothing right",
        "plain numbers",
        "any type and device",
        "arguments untouched",
    )


def _halves_case(student: Answer, logits: Tensor, labels: Tensor, kind: str) -> Lives:
    given = {"logits": logits, "labels": labels}
    before = copies(given)
    found = student(*given.values())
    untouched(given, before)
    C = logits.shape[1]
    middle = (C + 1) // 2
    case = f"{kind}, {len(labels)} images, {C} classes"
    several = isinstance(found, tuple | list)
    expect(
        several and len(found) == 3,
        f"{case}: expected three numbers, found {len(found) if several else type(found).__name__}",
        "return (base, new, harmonic)",
    )
    base, new, harmonic = _right(logits, labels)
    halves = (base, new)
    all_classes = _accuracies(logits, labels, middle, whole=True)
    other = _accuracies(logits, labels, C // 2)
    unshifted = _accuracies(logits, labels, middle, shifted=False)
    images = [int((labels < middle).sum()), int((labels >= middle).sum())]
    right_ones = [halves[i] * images[i] for i in (0, 1)]
    by_class = [
        [
            _accuracies(logits[labels == c], labels[labels == c], middle)[i]
            for c in labels.unique().tolist()
            if (c >= middle) == bool(i)
        ]
        for i in (0, 1)
    ]
    for i, (name, value) in enumerate(zip(("base", "new"), halves, strict=True)):
        number = plain(found[i])
        expect(
            isinstance(number, int | float),
            f"{case}: expected a number as {name}, found {type(number).__name__}",
            "an accuracy is one number: the mean over the images of its half",
        )
        mistakes = {
            "all classes are asked; an image of one half is judged among the classes of its half": (
                all_classes[i]
            ),
            "base and new are exchanged": halves[1 - i],
            "with an odd number of classes the first half has one more: (C + 1) // 2": other[i],
            "the places in the second half begin at 0 and the labels do not: subtract the middle": (
                unshifted[i]
            ),
            "that is a percentage; a share between 0 and 1 is wanted": 100 * value,
            "right answers are counted; divide by the number of images of the half": right_ones[i],
            "right answers are divided by the number of all images; by that of the half": (
                right_ones[i] / len(labels)
            ),
            "it is the accuracy over both halves together": sum(right_ones) / len(labels),
            "it is averaged over classes; each image counts the same": sum(by_class[i])
            / len(by_class[i]),
            "that is the share of wrong answers": 1 - value,
            "images of both halves are judged among the classes of this one": float(
                _among(logits, labels, middle, i)
            )
            / len(labels),
        }
        same(f"{name} for {case}", number, value, mistakes, tolerance=1e-6)
    number = plain(found[2])
    expect(
        isinstance(number, int | float),
        f"{case}: expected a number as the harmonic mean, found {type(number).__name__}",
        "it is one number, 2 base new / (base + new)",
    )
    total = base + new
    means = {
        "that is the arithmetic mean; the harmonic one is 2 base new / (base + new)": total / 2,
        "that is the geometric mean; the harmonic one is 2 base new / (base + new)": (base * new)
        ** 0.5,
        "that is their product": base * new,
        "the 2 is missing: 2 base new / (base + new)": harmonic / 2,
        "the smaller one is taken; 2 base new / (base + new)": min(halves),
        "the larger one is taken; 2 base new / (base + new)": max(halves),
        "it is the accuracy over both halves together": sum(right_ones) / len(labels),
        "it is weighed by the numbers of images; both halves count the same": len(labels)
        / sum(n / a for n, a in zip(images, halves, strict=True))
        if base and new
        else harmonic,
        "that is the root of the mean of their squares": ((base**2 + new**2) / 2) ** 0.5,
        "that is the sum": total,
        "that is a percentage; a share between 0 and 1 is wanted": 100 * harmonic,
        "it is the mean of the reciprocals; of that the reciprocal is wanted": (
            (1 / base + 1 / new) / 2 if base and new else harmonic
        ),
        "it is made of accuracies among all classes": _harmonic(*all_classes),
    }
    if number != number or abs(number) == float("inf"):
        expect(
            False,
            f"{case}: expected the harmonic mean {harmonic:g}, found {number}",
            "nothing is right in both halves, and 0 / 0 is no number: the mean is 0 then",
        )
    same(f"the harmonic mean for {case}", number, harmonic, means, tolerance=1e-6)
    kinds = [type(n).__name__ for n in found if type(n) not in (int, float)]
    expect(
        not kinds,
        f"{case}: expected plain numbers, found {''.join(kinds[:1])}",
        "float(...) or item() makes a number of a tensor",
    )
    return partial(lives, student, _right, given, without=_WITHOUT)


def _among(logits: Tensor, labels: Tensor, middle: int, half: int) -> int:
    """How many of all images are right among the classes of one half."""
    first, last = (middle, logits.shape[1]) if half else (0, middle)
    best: Any = logits[:, first:last].argmax(1) + first
    return int((best == labels).sum())
