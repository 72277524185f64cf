"""The checks are checked: every wrong answer is rejected with the right words, every right one
passes, the stub says what it is."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest

import tests.checks.banks as banks
from vtlite import checks
from vtlite.classroom.worker import definitions

ROOT = Path(__file__).parents[2]
BANKS = [
    importlib.import_module(f"{banks.__name__}.{module.name}")
    for module in pkgutil.iter_modules(banks.__path__)
]
WRONG = [
    (name, label, *case)
    for bank in BANKS
    for name, cases in bank.WRONG.items()
    for label, case in cases.items()
]
RIGHT = [
    (name, answer) for bank in BANKS for name, answers in bank.RIGHT.items() for answer in answers
]
EXERCISES = [(bank.NOTEBOOK, name) for bank in BANKS for name in bank.WRONG]


@cache
def code_of(folder: str, notebook: str) -> dict[str, str]:
    cells = nbformat.read(ROOT / folder / f"{notebook}.ipynb", as_version=4).cells
    return definitions([cell.source for cell in cells if cell.cell_type == "code"])[0]


def defined_in(folder: str, notebook: str, name: str) -> Callable[..., Any]:
    """The function `name` of a committed notebook, made as the grader makes it."""
    scope: dict[str, Any] = {}
    exec(code_of(folder, notebook)[name], scope)
    return scope[name]


@pytest.mark.parametrize(
    ("name", "label", "answer", "words"),
    WRONG,
    ids=[f"{name}-{label}" for name, label, _, _ in WRONG],
)
def test_wrong_answers_are_rejected_and_named(
    name: str, label: str, answer: Any, words: str
) -> None:
    for _ in range(2):  # a cell may be run twice
        with pytest.raises(checks.CheckFailed) as error:
            getattr(checks, name)(answer)
        assert re.search(words, str(error.value)), str(error.value)
        assert "Likely mistake:" in str(error.value)


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_pass_and_say_what_was_verified(
    name: str, answer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    getattr(checks, name)(answer)
    getattr(checks, name)(answer)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert re.fullmatch(rf"{name}: [2-9] checks passed: .+, .+", first)


@pytest.mark.parametrize(("notebook", "name"), EXERCISES)
def test_the_solution_passes_and_the_stub_does_not(notebook: str, name: str) -> None:
    getattr(checks, name)(defined_in("solutions", notebook, name))
    with pytest.raises(NotImplementedError, match=rf"Exercise \d+\.\d+: {name}"):
        getattr(checks, name)(defined_in("exercises", notebook, name))


@pytest.mark.parametrize(("notebook", "name"), EXERCISES)
def test_every_bank_has_at_least_six_wrong_and_two_right_answers(notebook: str, name: str) -> None:
    bank = next(bank for bank in BANKS if notebook == bank.NOTEBOOK)
    assert len(bank.WRONG[name]) >= 6
    assert len(bank.RIGHT[name]) >= 2


def test_every_check_has_a_bank() -> None:
    assert {name for _, name in EXERCISES} == set(checks.__all__) - {"CheckFailed"}
