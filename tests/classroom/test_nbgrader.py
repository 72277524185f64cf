"""An instructor who uses nbgrader works with the same sources: generate, autograde and export, end
to end."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "02_fine_tuning"


def nbgrader(course: Path, *arguments: str) -> None:
    # nbgrader calls alembic by name
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(
        command,
        cwd=course,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_generate_autograde_and_export(tmp_path: Path) -> None:
    pytest.importorskip("nbgrader")
    (tmp_path / "source" / NAME).mkdir(parents=True)
    shutil.copy(ROOT / "solutions" / f"{NAME}.ipynb", tmp_path / "source" / NAME)
    nbgrader(tmp_path, "generate_assignment", NAME, "--create")
    released = tmp_path / "release" / NAME / f"{NAME}.ipynb"
    assert "BEGIN SOLUTION" not in released.read_text(encoding="utf-8")
    assert "raise NotImplementedError" in released.read_text(encoding="utf-8")
    for student, work in {"anna": ROOT / "solutions" / f"{NAME}.ipynb", "ben": released}.items():
        (tmp_path / "submitted" / student / NAME).mkdir(parents=True)
        shutil.copy(work, tmp_path / "submitted" / student / NAME)
    nbgrader(tmp_path, "autograde", NAME, "--create")
    nbgrader(tmp_path, "export")
    with (tmp_path / "grades.csv").open(encoding="utf-8") as file:
        scores = {
            row["student_id"]: (float(row["score"]), float(row["max_score"]))
            for row in csv.DictReader(file)
        }
    assert scores == {"anna": (20.0, 20.0), "ben": (0.0, 20.0)}
