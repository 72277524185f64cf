from __future__ import annotations

import ast
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import vtlite as vt
from vtlite.classroom.release import release, replace_solutions

ROOT = Path(__file__).parents[2]
SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_exercises_are_what_solutions_give(solution: Path) -> None:
    release(ROOT / "solutions", ROOT / "exercises", check=True)


def test_a_hand_edited_exercise_is_found(tmp_path: Path) -> None:
    release(ROOT / "solutions", tmp_path)
    path = tmp_path / SOLUTIONS[0].name
    path.write_text(
        path.read_text(encoding="utf-8").replace("stands still", "stands quite still"),
        encoding="utf-8",
    )
    with pytest.raises(
        vt.VTError, match=r"is not what .* gives; run: python -m vtlite classroom release"
    ):
        release(ROOT / "solutions", tmp_path, check=True)


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_the_student_gets_stubs_and_nothing_of_the_solution(solution: Path, tmp_path: Path) -> None:
    (made,) = [path for path in release(ROOT / "solutions", tmp_path) if path.name == solution.name]
    text = made.read_text(encoding="utf-8")
    assert "BEGIN SOLUTION" not in text
    assert "END SOLUTION" not in text
    ours, theirs = nbformat.read(solution, 4), nbformat.read(made, 4)
    marked = [cell for cell in ours.cells if "### BEGIN SOLUTION" in cell.source]
    stubs = {cell.id: cell for cell in theirs.cells}
    assert marked
    for cell in marked:
        stub = stubs[cell.id].source
        assert stub.count('raise NotImplementedError("Exercise ') == cell.source.count(
            "### BEGIN SOLUTION"
        )
        assert stub.splitlines()[-1].startswith(
            "check."
        )  # one check call at the end of the same cell
        (function,) = [
            node
            for node in ast.parse(stub).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
        assert ast.get_docstring(function)
        assert isinstance(function, ast.ClassDef) or (
            function.returns and all(a.annotation for a in function.args.args)
        )
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in theirs.cells)


@pytest.mark.parametrize(
    "exercise", sorted((ROOT / "exercises").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_an_untouched_exercise_runs_to_its_first_stub(exercise: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(shutil.copy(exercise, tmp_path), 4)
    with pytest.raises(CellExecutionError) as error:
        NotebookClient(
            notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
    assert error.value.ename == "NotImplementedError"
    assert "Exercise" in error.value.evalue
    stopped = next(
        i
        for i, cell in enumerate(notebook.cells)
        if any(o.output_type == "error" for o in cell.get("outputs", []))
    )
    first = next(
        i
        for i, cell in enumerate(notebook.cells)
        if "raise NotImplementedError" in cell.source and cell.cell_type == "code"
    )
    assert stopped == first


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    ### BEGIN SOLUTION\n    pass",
        "### END SOLUTION",
        "### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION",
    ],
    ids=["no end", "no begin", "two begins"],
)
def test_unbalanced_markers_are_an_error(code: str) -> None:
    with pytest.raises(vt.VTError, match="SOLUTION without"):
        replace_solutions(code, "exercise-3-1", Path("x.ipynb"))


def test_stubs_keep_indentation_and_what_is_not_marked() -> None:
    code = (
        "def f(x: int) -> int:\n    y = 1\n    ### BEGIN SOLUTION\n    z = 2\n    ### END"
        " SOLUTION\n    return y\ncheck.f(f)"
    )
    expected = (
        'def f(x: int) -> int:\n    y = 1\n    raise NotImplementedError("Exercise 3.1: f is yours'
        ' to write")\n    return y\ncheck.f(f)'
    )
    assert replace_solutions(code, "exercise-3-1", Path("x.ipynb")) == expected


def test_a_folder_without_solutions_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(vt.VTError, match="expected notebooks in"):
        release(tmp_path, tmp_path / "out")


def test_what_is_no_notebook_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.ipynb").write_text("{", encoding="utf-8")
    with pytest.raises(vt.VTError, match="expected a Jupyter notebook, found"):
        release(tmp_path, tmp_path / "out")
