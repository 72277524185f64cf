"""Exercises from solutions: what stands between the markers becomes a stub. nbgrader's markers, so
that it reads the same sources."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from vtlite.storage import VTError, atomic_write

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


def release(solutions: Path, exercises: Path, check: bool = False) -> list[Path]:
    """Write EXERCISES/NAME.ipynb for each SOLUTIONS/NAME.ipynb and return what was written;
    `check`: only compare.

    Two runs give the same bytes. Raises `VTError` for unbalanced markers or, with `check`, for an
    exercise that is not what its solution gives.
    """
    sources = sorted(solutions.glob("*.ipynb"))
    if not sources:
        raise VTError(f"expected notebooks in {solutions}, found none")
    texts = {
        exercises / source.name: nbformat.writes(make_exercise(read(source), source)) + "\n"
        for source in sources
    }
    for path, text in texts.items():
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            raise VTError(
                f"{path} is not what {solutions / path.name} gives; run: python -m vtlite classroom"
                " release"
            )
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return list(texts)


def read(path: Path) -> NotebookNode:
    """A notebook of version 4. Raises `VTError` for anything else."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many types, for JSON, schema and version
        raise VTError(
            f"expected a Jupyter notebook, found {path}, which cannot be read"
            f" ({type(error).__name__})"
        ) from error


def make_exercise(solution: NotebookNode, source: Path) -> NotebookNode:
    """The student's notebook: stubs instead of solutions, no outputs, no word for the
    instructor."""
    notebook = copy.deepcopy(solution)
    notebook.cells = [
        cell for cell in notebook.cells if "instructor" not in cell.metadata.get("tags", [])
    ]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = replace_solutions(
                cell.source, cell.metadata.get("nbgrader", {}).get("grade_id", ""), source
            )
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = {
        "kernelspec": solution.metadata.kernelspec,
        "language_info": {"name": "python"},
    }
    return notebook


def replace_solutions(code: str, grade_id: str, source: Path) -> str:
    """`code` with `raise NotImplementedError("Exercise 2.1: NAME ...")` in the place of each marked
    block, at its indentation."""
    lines: list[str] = []
    inside, name = False, "this"
    for line in code.splitlines():
        if found := re.match(r"\s*(?:def|class) (\w+)", line):
            name = found[1]
        if BEGIN in line or END in line:
            if inside == (BEGIN in line):
                raise VTError(
                    f"{source}: {line.strip()} without its partner in cell"
                    f" {grade_id or code.splitlines()[0]!r}"
                )
            inside = not inside
            if inside:
                number = ".".join(re.findall(r"\d+", grade_id))
                lines.append(
                    f'{line[: len(line) - len(line.lstrip())]}raise NotImplementedError("Exercise'
                    f' {number}: {name} is yours to write")'
                )
        elif not inside:
            lines.append(line)
    if inside:
        raise VTError(
            f"{source}: {BEGIN} without {END} in cell {grade_id or code.splitlines()[0]!r}"
        )
    return "\n".join(lines)
