"""Grading a class: every submission in a sandbox, with limits, and a row for each whatever happens
in it."""

from __future__ import annotations

import csv
import functools
import hashlib
import html
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from vtlite.classroom import sandbox
from vtlite.classroom.release import read
from vtlite.classroom.submissions import Submission, find_submissions
from vtlite.storage import VTError, atomic_write

__all__ = ["Limits", "find_submissions", "grade", "what_holds"]

Row = dict[str, Any]
PACKAGE = Path(__file__).parents[1]
SANDBOX = Path(sandbox.__file__)


@dataclass(frozen=True)
class Limits:
    """What one submission may use."""

    seconds: int = 180  # for the run of the whole notebook, and for the cells that an answer needs
    cell_seconds: int = 30  # of computing, for one cell, and for one check
    memory_mb: int = 4096  # of data, in each of its processes
    disk_mb: int = 256  # of all its files, which lie in memory, and of one


@dataclass(frozen=True)
class Exercise:
    """A function that is marked: its number in the assignment, such as 5.2, and its points."""

    number: str
    points: float


def grade(
    folder: Path,
    out: Path,
    solutions: Path,
    assignment: str = "",
    limits: Limits = Limits(),
    workers: int = 2,
) -> list[Row]:
    """Mark every submission in `folder` (see `find_submissions`); write `out` (CSV) and one page
    per student in the folder beside it; return the rows.

    What was marked before is not marked again, unless its file, the points, the limits or anything
    in the package has changed since. Raises `VTError` for a folder without submissions or an
    unknown assignment.
    """
    if os.name != "posix":
        raise VTError(
            "grading needs Linux or macOS, whose processes can be limited and stopped; on Windows"
            " use WSL"
        )
    sources = sorted(find_solutions(solutions).glob("*.ipynb"))
    exercises = {path.stem: read_exercises(path) for path in sources}
    pages = out.with_suffix("")
    own = [out.absolute(), pages.absolute()]
    found = find_submissions(folder, assignment, exercises, own)
    pages.mkdir(parents=True, exist_ok=True)
    for left in pages.glob(".*.*"):  # half-written by a run that was killed
        left.unlink()
    hide = [str(path.resolve()) for path in (folder, solutions, pages)]
    rows: list[Row] = []
    with ThreadPoolExecutor(workers) as pool:
        futures = [
            pool.submit(grade_one, one, exercises[one.assignment], limits, pages, hide)
            for one in found
        ]
        try:
            for future in tqdm(
                as_completed(futures), total=len(futures), desc="grading", unit="notebook"
            ):
                rows.append(future.result())
                rows.sort(key=lambda row: (row["assignment"], row["student"]))
                write_csv(rows, out, folder)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return rows


def find_solutions(folder: Path) -> Path:
    """`folder` if it has notebooks; else, for the usual name, the one beside the package, as in a
    clone. Raises `VTError` where neither is there."""
    beside = PACKAGE.parent / "solutions"
    for place in (folder, beside) if folder == Path("solutions") else (folder,):
        if any(place.glob("*.ipynb")):
            return place
    raise VTError(
        f"expected the instructor's notebooks in {folder}, found none; run this in a clone of the"
        " repository, or name its folder with --solutions"
    )


def read_exercises(solution: Path) -> dict[str, Exercise]:
    """Name -> exercise, from the solution's cells that nbgrader would mark, in their order."""
    found = {}
    for cell in read(solution).cells:
        facts = cell.metadata.get("nbgrader", {})
        if facts.get("grade") and (check := re.search(r"\bcheck\.(\w+)\(", cell.source)):
            number = ".".join(re.findall(r"\d+", facts.get("grade_id", "")))
            found[check[1]] = Exercise(number or check[1], float(facts.get("points", 1)))
    if not found:
        raise VTError(
            f"expected cells with nbgrader's points and a check in {solution}, found none"
        )
    return found


def page_name(student: str, assignment: str) -> str:
    """A file's name for exactly this student: readable, and different for any other, also where
    case, normalisation or the alphabet count for nothing."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,59}", student) and "-" not in assignment:
        return f"{student}-{assignment}"
    code = hashlib.sha256(f"{student}\0{assignment}".encode("utf-8", "backslashreplace"))
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", student)[:40]
    return f"{plain}~{code.hexdigest()[:16]}-{assignment}"


@functools.cache
def package_hash() -> str:
    """Of every file of the package: the checks, and all that they or an answer may use."""
    found = hashlib.sha256(sys.version.encode())
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            found.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def grade_one(
    one: Submission, exercises: dict[str, Exercise], limits: Limits, pages: Path, hide: list[str]
) -> Row:
    """Mark one submission, or take its marks from the last time; never raises for what is in it."""
    name = page_name(one.student, one.assignment)
    page, kept = pages / f"{name}.html", pages / f"{name}.json"
    facts = (replace(one, file=Path(one.file).name), exercises, limits, package_hash())
    key = hashlib.sha256(repr(facts).encode("utf-8", "backslashreplace")).hexdigest()
    if page.exists() and (row := _kept(kept)).get("key") == key:
        if row["file"] != one.file:  # the folder was moved
            row["file"] = one.file
            _write(kept, json.dumps(row))
        return row
    start = time.perf_counter()
    marks, cells, status = run_submission(one, exercises, limits, hide)
    passed = {name: marks.get(name, (False, ""))[0] for name in exercises}
    status = status or ("ok" if all(passed.values()) else "some checks failed")
    row = {
        "student": one.student,
        "assignment": one.assignment,
        "file": one.file,
        "points": sum(e.points * passed[name] for name, e in exercises.items()),
        "of": sum(e.points for e in exercises.values()),
        "status": "; ".join(filter(None, [status, one.note])),
        "seconds": round(time.perf_counter() - start, 1),
        "exercises": {name: e.points if passed[name] else 0.0 for name, e in exercises.items()},
        "said": {name: marks.get(name, (False, "not reached"))[1] for name in exercises},
        "numbers": {name: e.number for name, e in exercises.items()},
        "key": key,
    }
    written = {page: feedback(row, exercises, cells)}
    if not status.startswith(_ENDED):  # may be this machine's fault: look again the next time
        written[kept] = json.dumps(row)
    for path, text in written.items():
        _write(path, text)
    return row


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def _kept(path: Path) -> Row:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return row if isinstance(row, dict) else {}


_ENDED = "the grader's process ended"


def run_submission(
    one: Submission, exercises: dict[str, Exercise], limits: Limits, hide: list[str]
) -> tuple[dict[str, tuple[bool, str]], list[tuple[str, str]], str]:
    """(exercise -> (passed, words), (where, words) of each cell that stopped, what went wrong with
    the whole)."""
    if one.problem:
        return {}, [], one.problem
    request = {
        "notebook": one.content.decode("utf-8-sig", "replace"),
        "exercises": {name: e.number for name, e in exercises.items()},
        "cell_seconds": limits.cell_seconds,
        "seconds": limits.seconds,
    }
    # The worker keeps the limits; this one is for a worker that doesn't come to its end.
    last = 600 + 5 * (len(exercises) + 1) * (limits.seconds + limits.cell_seconds)
    with tempfile.TemporaryDirectory() as scratch:
        process = _start(scratch, limits, hide)
        status = ""
        try:
            output, errors = process.communicate(json.dumps(request), timeout=last)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            status = f"stopped after {last} s"
        finally:
            if process.poll() is None:  # interrupted: leave nothing behind
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    events = [json.loads(line) for line in output.splitlines() if line.endswith("}")]
    marks = {name: (ok, words) for name, ok, words in (e["mark"] for e in events if "mark" in e)}
    cells = [(where, words) for where, words in (e["cell"] for e in events if "cell" in e)]
    if broken := next((event["broken"] for event in events if "broken" in event), ""):
        name = Path(one.file).name
        status = f"expected a Jupyter notebook, found {name}, which cannot be read ({broken})"
    elif not status and process.returncode:
        said = (errors.strip().splitlines() or ["no message"])[-1]
        status = f"{_ENDED} with code {process.returncode}: {said}"
    elif late := sum("longer than a cell may" in words for _, words in cells):
        status = status or f"time-out in {late} cell{'s' if late > 1 else ''}"
    return marks, cells, status


def _start(
    scratch: str, limits: Limits, hide: list[str], probe: bool = False
) -> subprocess.Popen[str]:
    """A process that shuts itself in and then waits for a request."""
    program = Path(sys.executable).resolve()
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    walls = {
        # Python as it runs here, and the package; not the folder in which the package lies.
        "see": [sys.prefix, sys.base_prefix, str(program.parents[1]), *libraries, str(PACKAGE)],
        "hide": hide,
        "scratch": scratch,
        "disk_mb": limits.disk_mb,
        "memory_mb": limits.memory_mb,
        "probe": probe,
    }
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
        "PYTHONPATH": str(PACKAGE.parent),  # this copy of the checks, whatever lies about
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "PYTHONUTF8": "1",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **{n: os.environ[n] for n in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if n in os.environ},
    }
    return subprocess.Popen(
        [sys.executable, "-P", "-s", str(SANDBOX), json.dumps(walls)],
        cwd=scratch,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        encoding="utf-8",
        errors="replace",
    )


@functools.cache
def _gaps() -> list[str]:
    """What the sandbox can't do here, tried once."""
    with tempfile.TemporaryDirectory() as scratch:
        process = _start(scratch, Limits(), [], probe=True)
        output, errors = process.communicate(timeout=60)
    if process.returncode:
        raise VTError(f"the sandbox does not start: {(errors.strip().splitlines() or [''])[-1]}")
    found: list[str] = json.loads(output)
    return found


def what_holds(limits: Limits) -> str:
    """The limits in force on this system, and exactly which do not hold."""
    gaps = _gaps()
    walls = {
        sandbox.FILES: "only the package, Python and its own scratch folder are to be seen",
        sandbox.PROCESSES: "no process outlives it",
        sandbox.NETWORK: "no network",
        sandbox.MEMORY: f"{limits.memory_mb} MB of memory per process",
        sandbox.DISK: f"{limits.disk_mb} MB of files",
        sandbox.COUNT: f"{sandbox.MOST_PROCESSES} processes",
    }
    held = [f"{limits.seconds} s per notebook", f"{limits.cell_seconds} s per cell and check"]
    held += [words for gap, words in walls.items() if gap not in gaps]
    missing = f"; NOT on this system: {'; '.join(gaps)}" if gaps else ""
    return ", ".join(held) + missing


def plain_text(text: str) -> str:
    """`text` for a table: what a spreadsheet would take for a formula has a quote in front, and so
    has what already began with one, so that no two become equal."""
    return f"'{text}" if re.match(r"[\s']*[=+\-@＝＋－＠|%]|[\t\r\n]", text) else text


def write_csv(rows: list[Row], out: Path, folder: Path) -> None:
    """The table: the same for the same submissions, however often grading was stopped."""
    names = list(dict.fromkeys(name for row in rows for name in row["exercises"]))
    buffer = io.StringIO()
    columns = ["student", "assignment", "points", "of", "status", "file"]
    writer = csv.DictWriter(
        buffer, [*columns, *names], quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"
    )
    writer.writeheader()
    for row in rows:
        shown = {**row, "file": row["file"].removeprefix(f"{folder}{os.sep}")}
        cells = {c: plain_text(v) if isinstance(v := shown[c], str) else v for c in columns}
        writer.writerow({**cells, **row["exercises"]})
    _write(out, buffer.getvalue())


_STOPS = "Cells that stopped when your notebook ran from top to bottom"


def feedback(row: Row, exercises: dict[str, Exercise], cells: list[tuple[str, str]]) -> str:
    """The student's page: marks and what each check said; then the cells that stopped."""
    e = html.escape
    lines = [
        f"<tr><td>{'passed' if row['exercises'][name] else 'not yet'}</td>"
        f"<td>{e(exercise.number)} {e(name)}</td>"
        f"<td>{row['exercises'][name]:g} of {exercise.points:g}</td>"
        f"<td><pre>{e(row['said'][name])}</pre></td></tr>"
        for name, exercise in exercises.items()
    ]
    stops = "".join(  # what the table says already is not said again
        f"<li>The cell {e(where)}: <pre>{e(words)}</pre></li>"
        for where, words in cells
        if words not in row["said"].values()
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8">
<title>{e(row["student"])}: {e(row["assignment"])}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
td, th {{ text-align: left; vertical-align: top; padding: .3em 1em .3em 0 }}
td, th {{ border-bottom: 1px solid #ccc }}
pre {{ margin: 0; white-space: pre-wrap }}
</style>
<h1>{e(row["assignment"])}</h1>
<p>{e(row["student"])}: <strong>{row["points"]:g} of {row["of"]:g} points</strong>
({e(row["status"])})</p>
<p>Marked: {e(Path(row["file"]).name or "nothing")}</p>
<table><tr><th></th><th>exercise</th><th>points</th><th>what the check said</th></tr>
{"".join(lines)}</table>
{f"<h2>{_STOPS}</h2><ul>{stops}</ul>" if stops else ""}
<p>The marks come from the instructor's own checks, run on what your notebook defines, not from what
it prints.</p>
</html>
"""
