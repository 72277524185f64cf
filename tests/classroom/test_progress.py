"""A learner alone: what was begun is checked, nothing else runs, and the next step is named."""

from __future__ import annotations

import io
from pathlib import Path

import nbformat
import pytest
from rich.console import Console

from vtlite.__main__ import main
from vtlite.classroom.grade import Limits
from vtlite.classroom.progress import PASSED, TRIED, UNTOUCHED, Exercise, next_step, progress
from vtlite.classroom.release import release

REPOSITORY = Path(__file__).parents[2]
SETUP = "import time\nfrom vtlite import checks as check\n\ntime.sleep(600)"
LRS = '''POWER = 1

def layerwise_lrs(names, depth, lr, decay):
    """The rates."""
    found = {}
    for name in names:
        layer = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0
        layer = depth + 1 if name.startswith(("norm.", "head.")) else layer
        found[name] = lr * decay ** (POWER * (depth + 1 - layer))
    return found


check.layerwise_lrs(layerwise_lrs)'''
WRONG = """def l2_sp_penalty(weights, start, alpha):
    return alpha * sum((weights[n] - s).square().sum() for n, s in start.items() if s.ndim >= 2)


check.l2_sp_penalty(l2_sp_penalty)"""
STUB = '''def lp_ft_lrs(step, probe_steps, total_steps, lr):
    """The rates."""
    raise NotImplementedError("Exercise 2.5: lp_ft_lrs is yours to write")


check.lp_ft_lrs(lp_ft_lrs)'''
RENAMED = "def wise(start, tuned, alpha):\n    return start\n\n\ncheck.wise_ft(wise)"


@pytest.fixture
def exercises(tmp_path: Path) -> Path:
    """Five exercises: one right, one wrong, one as it was handed out, one renamed, one deleted; and a notebook
    that nobody has begun. Cells between them would take forever, or fail."""
    first = nbformat.v4.new_notebook()
    for number, source in enumerate((LRS, WRONG, STUB, RENAMED), 3):
        first.cells += [
            nbformat.v4.new_markdown_cell(f"## Exercise 2.{number}: task {number}\n\nText."),
            nbformat.v4.new_code_cell(source),
            nbformat.v4.new_code_cell("raise RuntimeError('this cell must not run')"),
        ]
    first.cells.append(nbformat.v4.new_markdown_cell("## Exercise 2.7: a cell that is gone"))
    first.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    second = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(STUB)])
    folder = tmp_path / "exercises"
    folder.mkdir()
    nbformat.write(first, folder / "02_a.ipynb")
    nbformat.write(second, folder / "05_b.ipynb")
    return folder


def test_what_was_begun_is_checked_and_the_next_exercise_named(
    exercises: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in exercises.iterdir()}
    text = io.StringIO()
    console = Console(file=text, width=160)
    found = progress(exercises, tmp_path / "notebooks", Limits(60, 20), console)
    states = {(one.assignment, one.name): (one.title, one.state) for one in found}
    assert states == {
        ("02_a", "layerwise_lrs"): ("2.3: task 3", PASSED),
        ("02_a", "l2_sp_penalty"): ("2.4: task 4", TRIED),
        ("02_a", "lp_ft_lrs"): ("2.5: task 5", UNTOUCHED),
        ("02_a", "wise_ft"): ("2.6: task 6", TRIED),
        ("02_a", ""): ("2.7: a cell that is gone", TRIED),
        ("05_b", "lp_ft_lrs"): ("lp_ft_lrs", UNTOUCHED),
    }
    assert "factor 1/2 is missing" in found[1].words
    assert "wise_ft is not defined in the notebook" in found[3].words
    said = text.getvalue()
    assert "no longer in the notebook; put it back" in found[4].words
    assert "1 of 5" in said
    assert "factor 1/2 is missing" in said
    assert "Next: go on with exercise 2.4: task 4 in" in said
    # Nothing is kept, so nothing can be out of date.
    assert {path: path.read_bytes() for path in exercises.parent.rglob("*.*")} == before


def test_a_syntax_error_is_said_and_the_right_function_still_passes(exercises: Path) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell("from vtlite import checks as check"),
        nbformat.v4.new_code_cell(LRS),
        nbformat.v4.new_code_cell(WRONG.replace("alpha):", "alpha)")),
    ]
    (exercises / "05_b.ipynb").unlink()
    nbformat.write(notebook, exercises / "02_a.ipynb")
    found = progress(exercises, exercises, Limits(60, 20), Console(file=io.StringIO()))
    assert [one.state for one in found] == [PASSED, TRIED]
    assert "a syntax error in line 1" in found[1].words


def test_before_the_first_exercise_nothing_runs_and_the_first_lessons_come(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("vtlite.classroom.progress.run_submission", None)  # any call would fail
    assert main(["classroom", "progress"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "0 of 7" in said
    assert "Next: begin with notebooks/00_tour.ipynb and notebooks/01_background.ipynb" in said


def test_elsewhere_it_says_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["classroom", "progress"]) == 2
    assert "go to the repository's folder, or say where they are" in capsys.readouterr().err


def made(*states: tuple[str, str]) -> list[Exercise]:
    return [
        Exercise(assignment, f"{i}: x", "x", state) for i, (assignment, state) in enumerate(states)
    ]


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([("02_a", PASSED), ("05_b", UNTOUCHED)], "notebooks/05_params.ipynb, with ex/05_b.ipynb."),
        ([("02_a", UNTOUCHED), ("05_b", PASSED)], "lesson 02, with ex/02_a.ipynb."),
        ([("02_a", UNTOUCHED), ("02_a", TRIED)], "go on with exercise 1: x in ex/02_a.ipynb"),
        ([("02_a", PASSED), ("02_a", UNTOUCHED)], "begin exercise 1: x in ex/02_a.ipynb"),
        ([("02_a", PASSED), ("05_b", PASSED)], "every exercise passes."),
    ],
)
def test_the_next_step(tmp_path: Path, states: list[tuple[str, str]], words: str) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/05_params.ipynb").touch()
    assert words in next_step(made(*states), Path("ex"), tmp_path / "notebooks")


def test_a_release_keeps_what_a_helper_may_do(tmp_path: Path) -> None:
    rules = (REPOSITORY / "exercises/AGENTS.md").read_bytes()
    (tmp_path / "AGENTS.md").write_bytes(rules)
    release(REPOSITORY / "solutions", tmp_path)
    assert (tmp_path / "AGENTS.md").read_bytes() == rules
