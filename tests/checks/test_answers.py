"""Right answers of every kind pass, and answers of a kind that no generator makes are rejected."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.checks import right_answers, sly_answers
from tests.checks.test_banks import EXERCISES
from vtlite import checks

RIGHT = [
    pytest.param(name, answer, id=f"{name}-{getattr(answer, '__name__', type(answer).__name__)}")
    for module in right_answers.MODULES
    for name, answers in module.RIGHT.items()
    for answer in answers
]
# What the checks do not see yet: strict, so that a check that learns it must be taken off the list.
OPEN: dict[str, str] = {}  # exercise-label -> what the check does not see yet
CASES = {
    f"{name}-{label}": (name, answer, words)
    for module in sly_answers.MODULES
    for name, cases in module.WRONG.items()
    for label, (answer, words) in cases.items()
}
WRONG = [
    pytest.param(
        *case,
        id=key,
        marks=[pytest.mark.xfail(strict=True, reason=OPEN[key])] if key in OPEN else [],
    )
    for key, case in CASES.items()
]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_no_right_answer_is_refused(name: str, answer: Any) -> None:
    for _ in range(2):  # a cell may be run twice
        getattr(checks, name)(answer)


@pytest.mark.parametrize(("name", "answer", "words"), WRONG)
def test_sly_and_confused_answers_are_rejected(name: str, answer: Any, words: str) -> None:
    with pytest.raises(checks.CheckFailed) as error:
        getattr(checks, name)(answer)
    assert re.search(words, str(error.value)), str(error.value)


def test_every_exercise_has_three_more_right_answers() -> None:
    counts = {name: len(a) for module in right_answers.MODULES for name, a in module.RIGHT.items()}
    assert counts.keys() == {name for _, name in EXERCISES}
    assert min(counts.values()) >= 3


def test_what_is_open_is_in_the_bank() -> None:
    assert CASES.keys() >= OPEN.keys()


def test_every_assignment_has_ten_sly_answers() -> None:
    for module in sly_answers.MODULES:
        assert sum(map(len, module.WRONG.values())) >= 10
