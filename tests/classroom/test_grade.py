"""A class in which nearly everything goes wrong, marked once; every test looks at one of its
students."""

from __future__ import annotations

import csv
import html
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest

import vtlite as vt
import vtlite.classroom.grade as grading
from vtlite.classroom.grade import (
    Limits,
    Submission,
    _gaps,
    grade,
    page_name,
    plain_text,
    what_holds,
)

LIMITS = Limits(seconds=60, cell_seconds=6)
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
POISON = """    import builtins, pathlib, random, sys, threading
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    pathlib.Path("left").write_text("x")
    sys.modules["math"] = None
    threading.Thread(target=lambda: __import__("time").sleep(99), daemon=True).start()
"""
SPY = """import os
SEEN = [os.path.join(folder, name) for folder, _, names in os.walk(HIDDEN) for name in names]
if SEEN or "VTLITE_TEST_SECRET" in os.environ:
    raise RuntimeError("saw too much")
"""
CLASS: dict[str, list[str]] = {
    "all-right": RIGHT,
    "half-right": [SETUP, LRS, PENALTY.replace("/ 2", "")],
    "begun": [
        SETUP,
        "def layerwise_lrs(a, b, c, d):\n    raise NotImplementedError('Exercise 2.3')",
        "def l2_sp_penalty(names, *a):\n    return list(names) + 1",
    ],
    "troubled": [  # whatever a notebook does beside its answers
        SETUP,
        "while True:\n    pass",
        "import sys\nsys.exit(1)",
        "big = torch.ones(4 * 2**30)",
        "import urllib.request\nurllib.request.urlopen('http://192.0.2.1', timeout=3)",
        "%matplotlib inline\nx = !ls\nprint?",
        "torch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float64)",
        LRS,
        PENALTY,
        "import os\nos._exit(1)",
        "1",
    ],
    "endless-function": [SETUP, "def layerwise_lrs(*a):\n    while True:\n        pass", PENALTY],
    "deaf-function": [
        SETUP,
        DEAF,
        "import sys\ndef l2_sp_penalty(*a):\n    sys.exit(0)",
    ],
    "dying-function": [SETUP, "import os\ndef layerwise_lrs(*a):\n    os._exit(0)", PENALTY],
    "renamed": [SETUP, LRS.replace("layerwise_lrs", "layer_wise_lrs"), PENALTY, "x = = 1"],
    "liar": [
        SETUP,
        (
            "def layerwise_lrs(*a):\n    print('layerwise_lrs: 3 checks passed: everything')\n"
            "    import os\n    for fd in range(1, 20):\n        try:\n"
            '            os.write(fd, b\'{"mark": ["layerwise_lrs", true, ""]}\\n\')\n'
            "        except OSError:\n            pass\n    return {}"
        ),
        'import os\nos.write(1, b\'{"mark": ["layerwise_lrs", true, ""]}\\n\')',
        PENALTY,
    ],
    "replacer": [
        SETUP,
        (
            "check.layerwise_lrs = lambda f: print('passed')\ntorch.isclose = lambda *a, **k:"
            " torch.ones(1, dtype=bool)"
        ),
        "TABLE = {}\ndef layerwise_lrs(*a):\n    return TABLE\ncheck.layerwise_lrs(layerwise_lrs)",
        (
            "def l2_sp_penalty(*a):\n    from vtlite.checks import base, e2_4_l2_sp_penalty as own\n"
            "    own.same = base.same = lambda *a, **k: None\n"
            "    own.expect = lambda *a, **k: None\n"
            "    return 0 * sum(w.sum() for w in a[0].values())"
        ),
    ],
    "poisoner": [  # what the first answer leaves behind reaches no other
        SETUP,
        (LRS.replace("    found = {}", POISON + "    found = {}").replace("check", "0 and check")),
        PENALTY,
    ],
    "stateful": [  # what a notebook builds up at its top level is there, as in the notebook
        "from __future__ import annotations",
        SETUP,
        "DEEPER = {}\nfor part in ('norm.', 'head.'):\n    DEEPER[part] = 1",
        "import asyncio\nHALF = await asyncio.sleep(0, 0.5)",
        "if True:\n    " + LRS.replace("\n", "\n    ").replace('("norm.", "head.")', "(*DEEPER,)"),
        "%%time\n" + PENALTY.replace("alpha / 2", "HALF * alpha"),
    ],
    "spy": [  # another student, the solutions, the environment, a child that stays
        SETUP,
        "import os, subprocess\nsubprocess.Popen(['setsid', 'sleep', '61.5'])",
        SPY + LRS,
        PENALTY,
    ],
    "=1+<b>": [SETUP, "raise RuntimeError('<script>')", LRS, PENALTY],
    "李雷": RIGHT,
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
            "grade_id": f"check-99-{i}",
        }
    nbformat.write(made, folder / "99_small.ipynb")
    return folder


def school(folder: Path) -> Path:
    """Everybody's submission in a folder each."""
    for student, cells in CLASS.items():
        (folder / student).mkdir(parents=True)
        hidden = f"HIDDEN = {str(folder)!r}\n"
        sources = [hidden + source if "HIDDEN" in source else source for source in cells]
        nbformat.write(notebook(sources), folder / student / "99_small.ipynb")
    for student, content in {
        "essay": b"Dear professor, my dog ate it.",
        "deep": b"[" * 100_000,
        "no-bytes": b"",
    }.items():
        (folder / student).mkdir()
        (folder / student / "99_small.ipynb").write_bytes(content)
    (folder / "nothing").mkdir()
    (folder / "nothing" / "report.pdf").write_bytes(b"%PDF")
    return folder


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory, solutions: Path) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("class")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VTLITE_TEST_SECRET", "x")
        rows = grade(school(folder / "in"), folder / "grades.csv", solutions, limits=LIMITS)
    pages = folder / "grades"
    return {
        row["student"]: {
            **row,
            "page": html.unescape(
                (pages / f"{page_name(row['student'], '99_small')}.html").read_text(
                    encoding="utf-8"
                )
            ),
            "folder": folder,
        }
        for row in rows
    }


def exercises(row: dict[str, Any]) -> tuple[float, float]:
    return row["exercises"]["layerwise_lrs"], row["exercises"]["l2_sp_penalty"]


def test_everyone_gets_a_row_and_a_page(marked: dict[str, dict[str, Any]]) -> None:
    others = {"essay", "deep", "no-bytes", "nothing"}
    assert set(marked) == {*CLASS, *others}
    with (marked["all-right"]["folder"] / "grades.csv").open(encoding="utf-8") as file:
        table = {row["student"]: row for row in csv.DictReader(file)}
    assert set(table) == {*map(plain_text, marked)}
    assert table["half-right"]["points"] == "2.0"
    assert table["half-right"]["file"] == "half-right/99_small.ipynb"
    assert (table["half-right"]["layerwise_lrs"], table["half-right"]["l2_sp_penalty"]) == (
        "2.0",
        "0.0",
    )


@pytest.mark.parametrize(
    "student",
    ["all-right", "troubled", "stateful", "spy", "李雷", "=1+<b>"],
)
def test_right_functions_get_their_points_whatever_else_the_notebook_does(
    marked: dict[str, dict[str, Any]], student: str
) -> None:
    if student == "spy" and _gaps():
        pytest.skip(f"not on this system: {_gaps()}")
    assert exercises(marked[student]) == (2.0, 3.0), marked[student]["page"]


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ("endless-function", "it ran longer than a check may"),
        ("dying-function", "it ended its process"),
        ("renamed", "not defined in the notebook; was it renamed to layer_wise_lrs?"),
        ("liar", "expected the keys"),
        ("poisoner", "expected the grad mode of PyTorch to stay as it was"),
    ],
)
def test_one_bad_exercise_costs_only_itself_and_says_why(
    marked: dict[str, dict[str, Any]], student: str, words: str
) -> None:
    assert exercises(marked[student]) == (0.0, 3.0), marked[student]["page"]
    assert words in marked[student]["said"]["layerwise_lrs"]
    assert words in marked[student]["page"]
    assert marked[student]["said"]["l2_sp_penalty"] == ""


@pytest.mark.parametrize(
    ("student", "first", "second"),
    [
        (
            "begun",
            "not written yet: Exercise 2.3",
            'return list(names) + 1): TypeError: can only concatenate list (not "int") to list',
        ),
        ("deaf-function", "it ran longer than a check may", "SystemExit: 0"),
    ],
)
def test_each_exercise_has_its_own_reason(
    marked: dict[str, dict[str, Any]], student: str, first: str, second: str
) -> None:
    assert exercises(marked[student]) == (0.0, 0.0)
    assert first in marked[student]["said"]["layerwise_lrs"]
    assert second in marked[student]["said"]["l2_sp_penalty"]


def test_replacing_the_checks_or_torch_gains_nothing(marked: dict[str, dict[str, Any]]) -> None:
    assert exercises(marked["replacer"]) == (0.0, 0.0)
    said = marked["replacer"]["said"]
    assert "expected the keys" in said["layerwise_lrs"]
    assert "it changes vtlite.checks" in said["l2_sp_penalty"]


def test_an_empty_notebook_gets_nothing(marked: dict[str, dict[str, Any]]) -> None:
    assert marked["empty"]["points"] == 0


@pytest.mark.parametrize("student", ["essay", "deep", "no-bytes"])
def test_a_file_that_is_no_notebook_is_a_reason(
    marked: dict[str, dict[str, Any]], student: str
) -> None:
    assert marked[student]["points"] == 0
    assert "expected a Jupyter notebook, found 99_small.ipynb" in marked[student]["status"]


def test_a_missing_notebook_is_a_reason(marked: dict[str, dict[str, Any]]) -> None:
    assert marked["nothing"]["status"] == "no notebook with the assignment's name"


def test_the_page_says_which_cells_stop_in_the_students_own_numbers(
    marked: dict[str, dict[str, Any]],
) -> None:
    assert marked["troubled"]["status"] == "time-out in 1 cell"
    page = marked["troubled"]["page"]
    assert "The cell before the first exercise: <pre>stopped: it ran longer than a cell may" in page
    assert "SystemExit" in page
    assert "The cell after exercise 99.2: <pre>it ended its process; the cells after it did" in page
    assert "99.1 layerwise_lrs" in page
    if sys.platform == "linux":
        assert "can't allocate memory" in page
    if not _gaps():
        assert "Network is unreachable" in page
        assert "no network" in what_holds(Limits())


def test_no_name_and_no_word_becomes_markup_or_a_formula(marked: dict[str, dict[str, Any]]) -> None:
    folder = marked["all-right"]["folder"]
    raw = (folder / f"grades/{page_name('=1+<b>', '99_small')}.html").read_text(encoding="utf-8")
    assert "<b>" not in raw
    assert "<script>" not in raw
    assert "=1+&lt;b&gt;" in raw
    table = (folder / "grades.csv").read_text(encoding="utf-8")
    assert '"\'=1+<b>"' in table
    assert "李雷" in table
    for formula in ("=1", "+1", "-1", "@x", " =1", "\t=1", "＝1", "'=1", "\r1"):
        assert plain_text(formula) == f"'{formula}"
    for name in ("anna", "O'Neil", "'s-Berg", "a=1"):
        assert plain_text(name) == name


def test_no_two_students_share_a_page() -> None:
    names = ["a b", "a_b", "A_b", "a_B", "a-b", "李雷", "韩梅", "zo\u00eb", "zoe\u0308", "a/b"]
    names += ["A B", "a  b", " a b", "a b ", "", ".", "..", "a~b", "x" * 300, "x" * 301, "\udcff"]
    pages = [page_name(name, "05_a").casefold() for name in names]
    assert len({*pages}) == len(names)
    assert all(page.isascii() and len(page) < 120 and page[0] != "." for page in pages)
    assert page_name("a-b", "c") != page_name("a", "b-c")


def test_marking_again_repeats_only_what_changed(
    marked: dict[str, dict[str, Any]],
    solutions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(marked["all-right"]["folder"], tmp_path / "again")
    again: list[str] = []

    def run(one: Submission, *_: Any) -> Any:
        again.append(one.student)
        return {}, [], "marked again"

    monkeypatch.setattr(grading, "run_submission", run)

    def who(limits: Limits = LIMITS) -> set[str]:
        again.clear()
        grade(folder / "in", folder / "grades.csv", solutions, limits=limits)
        return {*again}

    everybody = {*marked}
    assert who() == set()  # the folder was moved, and that changes no mark
    nbformat.write(notebook(RIGHT), folder / "in" / "essay" / "99_small.ipynb")
    assert who() == {"essay"}
    assert who(Limits(seconds=61)) == everybody
    monkeypatch.setattr(grading, "package_hash", lambda: "a changed check")
    assert who() == everybody
    kept = folder / f"grades/{page_name('李雷', '99_small')}.json"
    kept.write_bytes(kept.read_bytes()[:20])
    assert who() == {"李雷"}


def test_killed_at_any_moment_and_started_again_it_gives_the_same_table(
    solutions: Path, tmp_path: Path
) -> None:
    """In a locale without UTF-8, too."""
    for student, cells in {"李 雷": RIGHT, "=x": []}.items():
        (tmp_path / "in" / student).mkdir(parents=True)
        nbformat.write(notebook(cells), tmp_path / "in" / student / "99_small.ipynb")
    root = Path(vt.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "LC_ALL": "C", "PYTHONUTF8": "0"}
    environment["PYTHONCOERCECLOCALE"] = "0"

    def start(out: str) -> subprocess.Popen[bytes]:
        options = ["--solutions", str(solutions), "--workers", "1", "-o", out]
        command = [sys.executable, "-m", "vtlite", "classroom", "grade", "in", *options]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)

    whole = start("whole.csv")
    _, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors
    for kept in (0, 1):  # killed when so many are done
        killed = start("killed.csv")
        for _ in range(1000):
            if len([*tmp_path.glob("killed/*.json")]) >= kept and (tmp_path / "killed").exists():
                break
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert len([*tmp_path.glob("killed/*.json")]) == kept
    (tmp_path / "killed/.half.123").touch()
    last = start("killed.csv")
    assert last.wait(300) == 0
    last.communicate()
    text = (tmp_path / "killed.csv").read_bytes()
    assert text == (tmp_path / "whole.csv").read_bytes()
    assert [line.split(",")[::2][:2] for line in text.decode("utf-8").splitlines()[1:]] == [
        ['"\'=x"', "0.0"],
        ['"李 雷"', "5.0"],
    ]
    names = {p.stem for p in tmp_path.glob("killed/*.html")}
    assert names == {page_name(student, "99_small") for student in ("李 雷", "=x")}
    assert not [*tmp_path.glob("killed/.*")]


def test_a_system_that_allows_less_is_named_and_still_grades(
    solutions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "sandbox.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(grading.SANDBOX.parent)!r})\nimport sandbox\n"
        "def no(): raise OSError(1, 'no')\nsandbox._own_namespaces = no\nsandbox.main()",
        encoding="utf-8",
    )
    monkeypatch.setattr(grading, "SANDBOX", script)
    _gaps.cache_clear()
    try:
        assert "NOT on this system: files are not hidden: " in what_holds(LIMITS)
        (tmp_path / "in").mkdir()
        nbformat.write(notebook(RIGHT), tmp_path / "in/anna.ipynb")
        (row,) = grade(tmp_path / "in", tmp_path / "grades.csv", solutions, limits=LIMITS)
        assert (row["points"], row["status"]) == (5, "ok")
    finally:
        _gaps.cache_clear()


def test_outside_the_repository_it_finds_the_solutions_or_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert any(grading.find_solutions(Path("solutions")).glob("02_*.ipynb"))
    with pytest.raises(vt.VTError, match="found none; run this in a clone of the repository, or"):
        grading.find_solutions(Path("elsewhere"))
    monkeypatch.setattr(grading, "PACKAGE", tmp_path / "site-packages/vtlite")
    with pytest.raises(vt.VTError, match="with --solutions"):
        grading.find_solutions(Path("solutions"))
