"""Grading a class: every submission in its own process, with limits, and a row for each whatever
happens in it."""

from __future__ import annotations

import csv
import functools
import hashlib
import html
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from vtlite.classroom.release import read
from vtlite.storage import VTError, atomic_write

Row = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What one submission may use."""

    seconds: int = 180  # for the whole submission
    cell_seconds: int = 30  # for one cell, and for one check
    memory_mb: int = 4096  # of data, in each of its processes


@dataclass(frozen=True)
class Submission:
    """One student's file; `path` None where there is none."""

    student: str
    assignment: str
    path: Path | None


def grade(
    folder: Path,
    out: Path,
    solutions: Path,
    assignment: str = "",
    limits: Limits = Limits(),
    workers: int = 2,
) -> list[Row]:
    """Mark every submission in `folder`; write `out` (CSV) and one page per student in the folder
    beside it; return the rows.

    A submission is FOLDER/STUDENT/ASSIGNMENT.ipynb or FOLDER/STUDENT.ipynb. What was marked before,
    and has not changed since, is not marked again. Raises `VTError` for a folder without
    submissions or an unknown assignment.
    """
    if os.name != "posix":
        raise VTError(
            "grading needs Linux or macOS, whose processes can be limited and stopped; on Windows"
            " use WSL"
        )
    points = {path.stem: read_points(path) for path in sorted(solutions.glob("*.ipynb"))}
    found = find_submissions(folder, assignment, list(points))
    pages = out.with_suffix("")
    pages.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with ThreadPoolExecutor(workers) as pool:
        futures = [
            pool.submit(grade_one, one, points[one.assignment], limits, pages) for one in found
        ]
        try:
            for future in tqdm(
                as_completed(futures), total=len(futures), desc="grading", unit="notebook"
            ):
                rows.append(future.result())
                rows.sort(key=lambda row: (row["assignment"], row["student"]))
                write_csv(rows, out)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return rows


def read_points(solution: Path) -> dict[str, float]:
    """Exercise -> points, from the solution's cells that nbgrader would mark, in their order."""
    points = {}
    for cell in read(solution).cells:
        facts = cell.metadata.get("nbgrader", {})
        if facts.get("grade") and (check := re.search(r"\bcheck\.(\w+)\(", cell.source)):
            points[check[1]] = float(facts.get("points", 1))
    if not points:
        raise VTError(
            f"expected cells with nbgrader's points and a check in {solution}, found none"
        )
    return points


def find_submissions(folder: Path, assignment: str, known: list[str]) -> list[Submission]:
    """One for each student and assignment: a folder per student, or a notebook per student."""
    if not folder.is_dir():
        raise VTError(f"expected a folder of submissions, found none at {folder}")
    if assignment and assignment not in known:
        raise VTError(f"unknown assignment {assignment!r}: there are {', '.join(known)}")
    wanted = [assignment] if assignment else known
    found: list[Submission] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            here = [
                (name, path) for name in wanted for path in sorted(entry.rglob(f"{name}.ipynb"))[:1]
            ]
            found += [Submission(entry.name, name, path) for name, path in here] or [
                Submission(entry.name, wanted[0], None)
            ]
        elif len(wanted) == 1:
            found.append(Submission(entry.stem, wanted[0], entry))
        else:
            raise VTError(
                f"{entry} does not say which assignment it is; give --assignment, one of"
                f" {', '.join(known)}"
            )
    if not found:
        raise VTError(
            f"expected submissions in {folder}, found none: STUDENT/{wanted[0]}.ipynb or"
            " STUDENT.ipynb"
        )
    return found


def grade_one(one: Submission, points: dict[str, float], limits: Limits, pages: Path) -> Row:
    """Mark one submission, or take its marks from the last time; never raises for what is in it."""
    page = pages / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', one.student)}-{one.assignment}.html"
    content = one.path.read_bytes() if one.path and one.path.is_file() else b""
    # The marks depend on the file, the checks' points and the limits: a change of any marks it
    # again.
    key = hashlib.sha256(content + repr((sorted(points.items()), limits)).encode()).hexdigest()
    kept = page.with_suffix(".json")
    if kept.exists() and (row := json.loads(kept.read_text(encoding="utf-8")))["key"] == key:
        return row
    start = time.perf_counter()
    cells, results, status = run_submission(one.path, list(points), limits)
    row = {
        "student": one.student,
        "assignment": one.assignment,
        "points": sum(points[name] for name, (ok, _) in results.items() if ok),
        "of": sum(points.values()),
        "status": (
            status or ("ok" if all(ok for ok, _ in results.values()) else "some checks failed")
        ),
        "seconds": round(time.perf_counter() - start, 1),
        "exercises": {name: points[name] if results[name][0] else 0.0 for name in points},
        "key": key,
    }
    written = {page: feedback(row, points, results, cells)}
    if not row["status"].startswith(
        "its process ended"
    ):  # may be this machine's fault: look again the next time
        written[kept] = json.dumps(row)
    for path, text in written.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return row


def run_submission(
    path: Path | None, names: list[str], limits: Limits
) -> tuple[list[str], dict[str, tuple[bool, str]], str]:
    """(problem of each code cell, exercise -> (passed, words), what went wrong with the whole)."""
    nothing = dict.fromkeys(names, (False, "not reached"))
    if path is None:
        return [], nothing, "no notebook with the assignment's name"
    try:
        read(path)
    except (VTError, OSError) as error:
        return [], nothing, str(error).replace(str(path), path.name)
    with tempfile.TemporaryDirectory() as scratch:  # what the notebook writes goes away with it
        copy = shutil.copy(path, scratch)
        request = {
            "notebook": copy,
            "exercises": names,
            "cell_seconds": limits.cell_seconds,
            "scratch": scratch,
        }
        package = str(
            Path(__file__).parents[2]
        )  # the grader's own copy of the checks, whatever lies about
        environment = {
            **os.environ,
            "PYTHONPATH": package,
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",
            "JUPYTER_RUNTIME_DIR": scratch,
            "IPYTHONDIR": scratch,
        }
        process = subprocess.Popen(
            [*without_network(), sys.executable, "-m", "vtlite.classroom.worker"],
            cwd=scratch,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=functools.partial(limit_memory, limits.memory_mb),
            encoding="utf-8",
        )
        status = ""
        try:
            output, errors = process.communicate(json.dumps(request), timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            status = f"stopped after {limits.seconds} s"
        finally:
            if process.poll() is None:  # interrupted: leave no kernel behind
                os.killpg(process.pid, signal.SIGKILL)
    events = [
        json.loads(line)
        for line in output.splitlines()
        if line.startswith("{") and line.endswith("}")
    ]
    known: dict[str, Any] = {name: value for event in events for name, value in event.items()}
    cells = known.pop("cells", [])
    if not status and process.returncode:
        status = (
            f"its process ended with code {process.returncode}:"
            f" {(errors.strip().splitlines() or ['no message'])[-1]}"
        )
    if not status and (late := sum(words.startswith("stopped: it ran longer") for words in cells)):
        status = f"time-out in {late} cell{'s' if late > 1 else ''}"
    return (
        cells,
        {
            name: (known[name][0], known[name][1]) if name in known else nothing[name]
            for name in names
        },
        status,
    )


@functools.cache
def without_network() -> tuple[str, ...]:
    """The command that starts a process without a network, or nothing where the system has none
    (only Linux has)."""
    command = ("unshare", "--map-root-user", "--net")
    try:
        works = subprocess.run([*command, "true"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        works = False
    return command if works else ()


def limit_memory(megabytes: int) -> None:
    """In the child, before it starts: no more than this much data. Only Linux keeps to it."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (megabytes * 2**20, megabytes * 2**20))
    except (ImportError, ValueError, OSError):
        pass


def what_holds(limits: Limits) -> str:
    """One sentence on the limits in force on this system."""
    memory = (
        f"{limits.memory_mb} MB of data per process"
        if sys.platform == "linux"
        else "no limit of memory on this system"
    )
    network = "no network" if without_network() else "network not cut on this system"
    return (
        f"{limits.seconds} s per submission, {limits.cell_seconds} s per cell, {memory}, a scratch"
        f" copy, {network}"
    )


def write_csv(rows: list[Row], out: Path) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row["exercises"]))
    buffer = io.StringIO()
    columns = ["student", "assignment", "points", "of", "status", "seconds"]
    writer = csv.DictWriter(buffer, [*columns, *names])
    writer.writeheader()
    writer.writerows(
        {**{column: row[column] for column in columns}, **row["exercises"]} for row in rows
    )
    with atomic_write(out) as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8")


def feedback(
    row: Row, points: dict[str, float], results: dict[str, tuple[bool, str]], cells: list[str]
) -> str:
    """The student's page: marks and what each check said; then the cells that stopped."""
    lines = [
        f"<tr><td>{'passed' if ok else 'not yet'}</td><td>{html.escape(name)}</td><td>{points[name] * ok:g}"
        f" of {points[name]:g}</td><td><pre>{html.escape(words)}</pre></td></tr>"
        for name, (ok, words) in results.items()
    ]
    stops = "".join(
        f"<li>Code cell {i}: <pre>{html.escape(words)}</pre></li>"
        for i, words in enumerate(cells, 1)
        if words
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(row["student"])}: {html.escape(row["assignment"])}</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }} td, th {{ text-align: left; vertical-align: top;
padding: .3em 1em .3em 0; border-bottom: 1px solid #ccc }} pre {{ margin: 0; white-space: pre-wrap }}</style>
<h1>{html.escape(row["assignment"])}</h1>
<p>{html.escape(row["student"])}: <strong>{row["points"]:g} of {row["of"]:g} points</strong> ({html.escape(row["status"])})</p>
<table><tr><th></th><th>exercise</th><th>points</th><th>what the check said</th></tr>{"".join(lines)}</table>
{f"<h2>Cells that stopped when your notebook was run from top to bottom</h2><ul>{stops}</ul>" if stops else ""}
<p>The marks come from the instructor's own checks, run on the functions that your notebook defines, not from what it prints.</p>
</html>
"""
