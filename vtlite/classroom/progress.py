"""For a learner alone: which exercises pass, and what comes next. Nothing is kept between two
calls: each looks at the notebooks as they are."""

from __future__ import annotations

import ast
import contextlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import nbformat
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vtlite.classroom.cells import Cell, plan
from vtlite.classroom.grade import Exercise as Marked
from vtlite.classroom.grade import Limits, run_submission
from vtlite.classroom.release import read
from vtlite.classroom.submissions import Submission
from vtlite.storage import VTError

PASSED, TRIED, UNTOUCHED = "passes", "not yet", "not begun"
LIMITS = Limits()
LOOKS = {PASSED: "green", TRIED: "yellow", UNTOUCHED: "dim"}


@dataclass(frozen=True)
class Exercise:
    """One exercise of an assignment; `words` is what its check said, or nothing."""

    assignment: str
    title: str  # "2.3: layer-wise learning rates"
    name: str  # the function
    state: str
    words: str = ""


def progress(
    exercises: Path, lessons: Path, limits: Limits = LIMITS, console: Console | None = None
) -> list[Exercise]:
    """Check what was begun in `exercises`, print it with the next step, and return it.

    Each notebook's functions are checked in a process of their own, with the limits of grading; its
    other cells do not run. Raises `VTError` where there are no exercises.
    """
    notebooks = sorted(exercises.glob("[0-9]*.ipynb"))
    if not notebooks:
        raise VTError(
            f"expected the exercises' notebooks in {exercises}, found none; go to the repository's"
            " folder, or say where they are: --exercises FOLDER"
        )
    console = console or Console()
    found: list[Exercise] = []
    for path in notebooks:
        with console.status(f"checking {path.name}"):
            found += look(path, limits)
    console.print(table(found))
    console.print(f"Next: {next_step(found, exercises, lessons)}", markup=False, highlight=False)
    return found


def look(path: Path, limits: Limits) -> list[Exercise]:
    """The exercises of one notebook, in their order."""
    notebook = read(path)
    named = exercises_of([(cell.cell_type, cell.source) for cell in notebook.cells])
    cells = [Cell(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    begun = {name: title for title, name in named if name and not is_stub(cells, name)}
    said = check(cells, begun, limits) if begun else {}
    found = []
    for title, name in named:
        gone = "its cell, or the call of its check, is no longer in the notebook; put it back"
        ok, words = said.get(name, (False, "" if name else gone))
        state = PASSED if ok else TRIED if words else UNTOUCHED
        found.append(Exercise(path.stem, title, name, state, words))
    return found


def exercises_of(cells: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """(number and title, function) of each exercise, by the headings and the calls of the checks;
    no function where the call is missing."""
    found: list[tuple[str, str]] = []
    for kind, source in cells:
        if kind == "markdown" and (heading := re.search(r"^## Exercise (.+)$", source, re.M)):
            found.append((heading[1], ""))
        for name in re.findall(r"^check\.(\w+)\(", source, re.M) if kind == "code" else ():
            if name in (other for _, other in found):
                continue
            if found and not found[-1][1]:
                found[-1] = (found[-1][0], name)
            else:
                found.append((name, name))
    return found


def is_stub(cells: list[Cell], name: str) -> bool:
    """Whether `name` still is what was handed out: nothing but `raise NotImplementedError`."""
    functions = [
        statement
        for cell in cells
        for statement in cell.statements
        if isinstance(statement, ast.FunctionDef) and statement.name == name
    ]
    body = [s for s in functions[-1].body if not isinstance(s, ast.Expr)] if functions else []
    return len(body) == 1 and ast.unparse(body[0]).startswith("raise NotImplementedError")


def check(cells: list[Cell], titles: dict[str, str], limits: Limits) -> dict[str, tuple[bool, str]]:
    """What grading says to each function, when the notebook has nothing but them and what they
    use. Raises `VTError` on Windows."""
    if os.name != "posix":
        raise VTError(
            "checking needs Linux or macOS, whose processes can be limited and stopped; on Windows"
            " use WSL, or run the notebook's own cells, which check as well"
        )
    notebook = nbformat.v4.new_notebook(
        cells=list(map(nbformat.v4.new_code_cell, needed(cells, titles)))
    )
    one = Submission("", "", "the notebook", nbformat.writes(notebook).encode())
    exercises = {name: Marked(title.partition(":")[0], 1) for name, title in titles.items()}
    marks, _, status = run_submission(one, exercises, limits, [])
    return {name: marks.get(name, (False, status or "not reached")) for name in titles}


def needed(cells: list[Cell], names: Collection[str]) -> list[str]:
    """The cells, with only those statements that the functions need to run. One with a syntax error
    stays as it is: grading says where it is."""
    kept: list[set[int]] = [set() for _ in cells]
    for name in names:
        with contextlib.suppress(KeyError):  # nowhere defined
            for cell, places, wanted in zip(cells, kept, plan(cells, name), strict=False):
                places |= set(range(len(cell.statements))) if wanted is None else wanted
    return [
        cell.source
        if cell.error
        else "\n".join(
            ast.unparse(s)
            for place, s in enumerate(cell.statements)
            if place in places and not ast.unparse(s).startswith("check.")
        )
        for cell, places in zip(cells, kept, strict=True)
    ]


def table(found: list[Exercise]) -> Table:
    shown = Table("exercise", "state", "what the check said", title="Your exercises", expand=False)
    for i, one in enumerate(found):
        last = i + 1 == len(found) or found[i + 1].assignment != one.assignment
        if i == 0 or found[i - 1].assignment != one.assignment:
            here = [other for other in found if other.assignment == one.assignment]
            passed = sum(other.state == PASSED for other in here)
            shown.add_row(f"[bold]{escape(one.assignment)}[/]", f"{passed} of {len(here)}", "")
        look = f"[{LOOKS[one.state]}]{one.state}[/]"
        shown.add_row(f"  {escape(one.title)}", look, escape(one.words), end_section=last)
    return shown


def next_step(found: list[Exercise], exercises: Path, lessons: Path) -> str:
    """One sentence: the next exercise or lesson."""
    assignments = list(dict.fromkeys(one.assignment for one in found))
    if all(one.state == UNTOUCHED for one in found):
        early = [p for p in sorted(lessons.glob("[0-9]*.ipynb")) if p.stem[:2] < assignments[0][:2]]
        begin = " and ".join(str(path) for path in early)
        return (
            f"begin with {begin or 'the first lessons'}, which have no exercises; then"
            f" {_lesson(assignments[0], lessons)}, with {exercises / assignments[0]}.ipynb."
        )
    for assignment in assignments:
        here = [one for one in found if one.assignment == assignment]
        if all(one.state == UNTOUCHED for one in here):
            return f"{_lesson(assignment, lessons)}, with {exercises / assignment}.ipynb."
        # What was tried and fails is nearer than what was not begun.
        for state in (TRIED, UNTOUCHED):
            for one in here:
                if one.state == state:
                    doing = "go on with" if state == TRIED else "begin"
                    return (
                        f"{doing} exercise {one.title} in {exercises / assignment}.ipynb; what it"
                        f" needs is in {_lesson(assignment, lessons)}."
                    )
    return (
        "every exercise passes. Each lesson ends with open questions and exercises without checks."
    )


def _lesson(assignment: str, lessons: Path) -> str:
    path = next(iter(sorted(lessons.glob(f"{assignment[:2]}_*.ipynb"))), None)
    return str(path) if path else f"lesson {assignment[:2]}"
