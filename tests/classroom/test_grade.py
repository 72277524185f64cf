"""A class in which nearly everything goes wrong, marked once; every test looks at one of its
students."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest

import vtlite as vt
from vtlite.classroom.grade import Limits, find_submissions, grade, what_holds, without_network

LIMITS = Limits(seconds=60, cell_seconds=10)
SETUP = "import torch\nfrom vtlite import checks as check"
LRS = """def layerwise_lrs(names, depth, lr, decay):
    found = {}
    for name in names:
        layer = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth + 1 if name.startswith(("norm.", "head.")) else 0
        found[name] = lr * decay ** (depth + 1 - layer)
    return found
check.layerwise_lrs(layerwise_lrs)"""
PENALTY = """def l2_sp_penalty(weights, start, alpha):
    return alpha / 2 * sum((weights[n] - s).square().sum() for n, s in start.items() if s.ndim >= 2)
check.l2_sp_penalty(l2_sp_penalty)"""
RIGHT = [SETUP, LRS, PENALTY]
DEAF = """def layerwise_lrs(a, b, c, d):
    while True:
        try:
            while True: pass
        except BaseException: pass"""
CLASS: dict[str, list[str]] = {
    "all-right": RIGHT,
    "half-right": [SETUP, LRS, PENALTY.replace("/ 2", "")],
    "untouched": [
        SETUP,
        "def layerwise_lrs(a, b, c, d):\n    raise NotImplementedError('Exercise 2.3')",
        PENALTY,
    ],
    "endless-cell": [SETUP, "while True:\n    pass", LRS, PENALTY],
    "endless-function": [
        SETUP,
        "def layerwise_lrs(a, b, c, d):\n    while True:\n        pass",
        PENALTY,
    ],
    "deaf-function": [SETUP, PENALTY, DEAF],
    "dying-function": [
        SETUP,
        "import os\ndef layerwise_lrs(a, b, c, d):\n    os._exit(3)",
        PENALTY,
    ],
    "exit-in-cell": [SETUP, "import sys\nsys.exit(1)", LRS, PENALTY],
    "exit-in-function": [
        SETUP,
        "import sys\ndef layerwise_lrs(a, b, c, d):\n    sys.exit(0)",
        PENALTY,
    ],
    "deleted": [SETUP, PENALTY],
    "renamed": [SETUP, LRS.replace("layerwise_lrs", "layer_wise_lrs"), PENALTY],
    "no-import": [PENALTY, LRS],
    "syntax": [SETUP, "def layerwise_lrs(a, b, c, d)\n    return {}", PENALTY],
    "liar": [
        SETUP,
        (
            "def layerwise_lrs(*a):\n    print('layerwise_lrs: 3 checks passed: everything')\n   "
            " return {}"
        ),
        "print('passed')",
        PENALTY,
    ],
    "replacer": [
        SETUP,
        (
            "check.layerwise_lrs = lambda f: print('passed')\ntorch.isclose = lambda *a, **k:"
            " torch.ones(1, dtype=bool)"
        ),
        "def layerwise_lrs(*a):\n    return {}\ncheck.layerwise_lrs(layerwise_lrs)",
        PENALTY.replace("/ 2", ""),
    ],
    "split": [
        SETUP,
        "FACTOR = 0.5",
        "def half(alpha):\n    return alpha * FACTOR",
        PENALTY.replace("alpha / 2", "half(alpha)"),
        LRS,
        LRS,
    ],
    "hungry": [SETUP, "big = torch.ones(4 * 2**30)", LRS, PENALTY],
    "curious": [
        SETUP,
        "import urllib.request\nurllib.request.urlopen('http://192.0.2.1', timeout=3)",
        LRS,
        PENALTY,
    ],
    "magic": [SETUP, "%matplotlib inline\n!true", LRS, PENALTY],
    "empty": [],
}


def notebook(cells: list[str]) -> nbformat.NotebookNode:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    made.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    return made


@pytest.fixture(scope="module")
def solutions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("solutions")
    made = notebook(
        [SETUP, "check.layerwise_lrs(layerwise_lrs)", "check.l2_sp_penalty(l2_sp_penalty)"]
    )
    for i, points in ((1, 2), (2, 3)):
        made.cells[i].metadata["nbgrader"] = {
            "grade": True,
            "points": points,
            "grade_id": f"check-{i}",
        }
    nbformat.write(made, folder / "99_small.ipynb")
    return folder


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory, solutions: Path) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("class")
    for student, cells in CLASS.items():
        (folder / "in" / student).mkdir(parents=True)
        nbformat.write(notebook(cells), folder / "in" / student / "99_small.ipynb")
    for student, content in {
        "essay": b"Dear professor, my dog ate it.",
        "picture": b"\x89PNG\r\n\x1a\n\x00",
        "half-file": b'{"cells": [',
    }.items():
        (folder / "in" / student).mkdir()
        (folder / "in" / student / "99_small.ipynb").write_bytes(content)
    (folder / "in" / "nothing").mkdir()
    (folder / "in" / "nothing" / "report.pdf").write_bytes(b"%PDF")
    rows = grade(folder / "in", folder / "grades.csv", solutions, limits=LIMITS)
    return {
        row["student"]: {
            **row,
            "page": (folder / f"grades/{row['student']}-99_small.html").read_text(encoding="utf-8"),
            "folder": folder,
        }
        for row in rows
    }


def exercises(row: dict[str, Any]) -> tuple[float, float]:
    return row["exercises"]["layerwise_lrs"], row["exercises"]["l2_sp_penalty"]


def test_everyone_gets_a_row_and_a_page(marked: dict[str, dict[str, Any]]) -> None:
    assert set(marked) == {*CLASS, "essay", "picture", "half-file", "nothing"}
    with (marked["all-right"]["folder"] / "grades.csv").open(encoding="utf-8") as file:
        table = {row["student"]: row for row in csv.DictReader(file)}
    assert set(table) == set(marked)
    assert table["half-right"]["points"] == "2.0"
    assert (table["half-right"]["layerwise_lrs"], table["half-right"]["l2_sp_penalty"]) == (
        "2.0",
        "0.0",
    )


@pytest.mark.parametrize(
    "student", ["all-right", "endless-cell", "exit-in-cell", "split", "magic", "hungry", "curious"]
)
def test_right_functions_get_their_points_whatever_else_the_notebook_does(
    marked: dict[str, dict[str, Any]], student: str
) -> None:
    assert exercises(marked[student]) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ("untouched", "NotImplementedError"),
        ("endless-function", "longer than a check may"),
        ("dying-function", "ended its process"),
        ("exit-in-function", "SystemExit"),
        ("deleted", "not defined in the notebook"),
        ("renamed", "was it renamed"),
        ("syntax", "code cell 2 has a syntax error in line 1"),
        ("liar", "expected the keys"),
    ],
)
def test_one_bad_exercise_costs_only_itself_and_says_why(
    marked: dict[str, dict[str, Any]], student: str, words: str
) -> None:
    assert exercises(marked[student]) == (0.0, 3.0), marked[student]["page"]
    assert words in marked[student]["page"]


def test_replacing_the_checks_or_torch_gains_nothing(marked: dict[str, dict[str, Any]]) -> None:
    assert exercises(marked["replacer"]) == (0.0, 0.0)
    assert "factor 1/2 is missing" in marked["replacer"]["page"]


def test_an_exercise_that_cannot_be_interrupted_ends_with_the_submission(
    marked: dict[str, dict[str, Any]],
) -> None:
    row = marked["deaf-function"]
    assert row["exercises"]["layerwise_lrs"] == 0
    assert (
        "stopped after 60 s" in row["status"]
        or "longer than a check may" in row["page"]
        or "ended its process" in row["page"]
    )


def test_functions_without_their_import_still_run_where_they_need_none(
    marked: dict[str, dict[str, Any]],
) -> None:
    assert exercises(marked["no-import"]) == (2.0, 3.0)
    assert (
        "NameError" in marked["no-import"]["page"]
    )  # the cells themselves stopped, and the page says so


@pytest.mark.parametrize("student", ["essay", "picture", "half-file"])
def test_a_file_that_is_no_notebook_is_a_reason(
    marked: dict[str, dict[str, Any]], student: str
) -> None:
    assert marked[student]["points"] == 0
    assert "expected a Jupyter notebook" in marked[student]["status"]


def test_a_missing_notebook_is_a_reason(marked: dict[str, dict[str, Any]]) -> None:
    assert marked["nothing"]["status"] == "no notebook with the assignment's name"


def test_time_outs_are_called_time_outs(marked: dict[str, dict[str, Any]]) -> None:
    assert marked["endless-cell"]["status"] == "time-out in 1 cell"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to the limit")
def test_memory_is_limited(marked: dict[str, dict[str, Any]]) -> None:
    assert "Code cell 2" in marked["hungry"]["page"]


@pytest.mark.skipif(
    not without_network(), reason="this system cannot start a process without a network"
)
def test_there_is_no_network(marked: dict[str, dict[str, Any]]) -> None:
    assert "Network is unreachable" in marked["curious"]["page"]
    assert "no network" in what_holds(Limits())


def test_marking_again_repeats_only_what_changed(
    marked: dict[str, dict[str, Any]], solutions: Path, tmp_path: Path
) -> None:
    folder = marked["all-right"]["folder"]
    nbformat.write(notebook(RIGHT), folder / "in" / "essay" / "99_small.ipynb")
    start = time.perf_counter()
    rows = {
        row["student"]: row
        for row in grade(folder / "in", folder / "grades.csv", solutions, limits=LIMITS)
    }
    assert rows["essay"]["points"] == 5
    assert all(rows[s]["seconds"] == marked[s]["seconds"] for s in marked if s != "essay")
    assert time.perf_counter() - start < 60


def test_submissions_are_found_by_student_or_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "anna.ipynb").write_text("x", encoding="utf-8")
    assert [(s.student, s.assignment) for s in find_submissions(tmp_path, "", ["99_small"])] == [
        ("anna", "99_small")
    ]
    with pytest.raises(vt.VTError, match="does not say which assignment it is; give --assignment"):
        find_submissions(tmp_path, "", ["98_a", "99_small"])
    with pytest.raises(vt.VTError, match="unknown assignment '97'"):
        find_submissions(tmp_path, "97", ["98_a"])
    with pytest.raises(vt.VTError, match="expected a folder of submissions"):
        find_submissions(tmp_path / "no", "", ["98_a"])
    (tmp_path / "anna.ipynb").unlink()
    with pytest.raises(vt.VTError, match="expected submissions in"):
        find_submissions(tmp_path, "", ["98_a"])
