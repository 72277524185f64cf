"""One page for the instructor: how the class did, where it is stuck, whose answers are alike; and
the points in a form that learning platforms import."""

from __future__ import annotations

import ast
import contextlib
import csv
import html
import io
import itertools
import json
import os
import re
import statistics
import tempfile
import unicodedata
import urllib.parse
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from nbformat import NotebookNode

from vtlite.classroom.grade import find_solutions, plain_text
from vtlite.classroom.release import make_exercise, read
from vtlite.storage import VTError, atomic_write

# Canvas takes a file only with these columns in this order; Moodle asks which one is the user.
COLUMNS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
# What a roster may call them: as Canvas and Moodle export a class, or written by hand.
ALIASES = {
    "Student": ("student", "name", "full name"),
    "ID": ("id",),
    "SIS User ID": ("sis user id", "id number", "student number"),
    "SIS Login ID": ("sis login id", "username", "login", "email address", "email"),
    "Section": ("section",),
}
PASSED, TRIED, UNTOUCHED, GONE = "passed", "tried", "not begun", "not found"
SIGNS = {PASSED: "●", TRIED: "✗", UNTOUCHED: "·", GONE: "?"}


@dataclass(frozen=True, eq=False)
class Mark:
    """One row of the grades, with what grading kept beside it."""

    student: str
    assignment: str
    points: float
    of: float
    status: str
    exercises: dict[str, float]  # points
    said: dict[str, str] = field(default_factory=dict)  # what the check said
    file: str = ""  # the notebook that was marked: a path, or "PATH.zip: NAME"
    page: Path | None = None

    @property
    def handed_in(self) -> bool:
        return not self.status.startswith("no notebook")

    def state(self, exercise: str) -> str:
        """One of `SIGNS`."""
        words = self.said.get(exercise, "")
        if self.exercises.get(exercise, 0) > 0:
            return PASSED
        if not self.handed_in or words.startswith(_STUB):
            return UNTOUCHED
        gone = "is not defined in the notebook" in words and "syntax error" not in words
        gone = gone or words == "not reached"
        return GONE if gone else TRIED

    @property
    def remark(self) -> str:
        """What the instructor should know beside the marks."""
        return re.sub(r"^(ok|some checks failed)(; )?", "", self.status)


@dataclass(frozen=True)
class Alike:
    """Two students of one assignment, and the exercises whose answers are built alike."""

    students: tuple[str, str]
    assignment: str
    exercises: tuple[str, ...]
    letter_by_letter: tuple[str, ...]  # names and numbers are the same, too
    wrong: tuple[str, ...]


def report(
    grades: Path, out: Path, solutions: Path, roster: Path | None = None
) -> tuple[str, list[Path]]:
    """Write the page `out` and, beside it, OUT-ASSIGNMENT.csv for each assignment; return a short
    summary for the terminal and what was written.

    `grades` is what `classroom grade` wrote; its folder beside it says why answers failed. Raises
    `VTError` for a file that is no such table, or a roster without students.
    """
    marks = read_marks(grades)
    people = read_roster(roster) if roster else None
    pairs, unread = alike(marks, solutions)
    sections, lines, files = [], [], {}
    for assignment, here in by_assignment(marks).items():
        table, notes = import_table(here, people)
        files[out.with_name(f"{out.stem}-{assignment}.csv")] = table
        close = [pair for pair in pairs if pair.assignment == assignment]
        sections.append(section(assignment, here, notes, close, out.parent))
        lines += summary(assignment, here, notes, close)
    files[out] = page(sections, marks, unread)
    for path, text in files.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    return "\n".join(lines), list(files)


def by_assignment(marks: Iterable[Mark]) -> dict[str, list[Mark]]:
    found: dict[str, list[Mark]] = defaultdict(list)
    for mark in sorted(marks, key=lambda mark: (mark.assignment, -mark.points, mark.student)):
        found[mark.assignment].append(mark)
    return found


# What grading wrote


def read_marks(grades: Path) -> list[Mark]:
    """The rows of the CSV, each with what the folder beside it keeps of it."""
    kept = {}
    for path in sorted(grades.with_suffix("").glob("*.json"), key=lambda p: p.stat().st_mtime):
        row = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(row, dict) and "student" in row:
            kept[plain_text(row["student"]), row.get("assignment")] = (row, path)
    marks = []
    for number, row in enumerate(read_csv(grades, "grades"), 2):
        try:
            marks.append(_mark(row, kept, grades.parent))
        except (KeyError, ValueError) as error:
            raise VTError(
                f"expected the table that `classroom grade` writes in {grades}, found line"
                f" {number} without a good {error}; grade again, or name the right file"
            ) from error
    if not marks:
        raise VTError(f"expected rows of students in {grades}, found none; grade the class first")
    return marks


def _mark(row: dict[str, str], kept: dict[Any, tuple[dict[str, Any], Path]], beside: Path) -> Mark:
    more, path = kept.get((row["student"], row["assignment"]), ({}, None))
    numbers = {name: _number(text) for name, text in row.items() if name not in _FIXED}
    file = more.get("file") or ""
    # A path is kept as it was given, perhaps from the folder of the grades.
    found = Path(file.partition(".zip: ")[0] + ".zip" if ".zip: " in file else file).exists()
    return Mark(
        student=more.get("student", row["student"]),
        assignment=row["assignment"],
        points=float(row["points"]),
        of=float(row["of"]),
        status=row["status"],
        exercises=more.get("exercises") or {k: v for k, v in numbers.items() if v is not None},
        said=more.get("said") or {},
        file=file if found or not file else str(beside / file),
        page=path.with_suffix(".html") if path else None,
    )


# How grading says that an exercise is as it was handed out.
_STUB = ("not written yet", "NotImplementedError")
_FIXED = {"student", "assignment", "points", "of", "status", "seconds", "file"}


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def read_csv(path: Path, what: str) -> list[dict[str, str]]:
    """A CSV in UTF-8, with or without a mark at its start, commas or semicolons between."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise VTError(f"expected a CSV of {what}, found no {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise VTError(
            f"expected UTF-8 in {path}, found other bytes; save it as CSV UTF-8"
        ) from error
    first = text.partition("\n")[0]
    between = ";" if first.count(";") > first.count(",") else ","
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=between, restval="")
    return [{k: v for k, v in row.items() if isinstance(k, str)} for row in rows]


# Who is who


def read_roster(path: Path) -> list[dict[str, str]]:
    """One dictionary of `COLUMNS` for each student, from Canvas's or Moodle's own export of the
    class or a table with the columns student and id."""
    rows = read_csv(path, "the students of the class")
    people = []
    for row in rows:
        low = {name.strip().lower(): text.strip() for name, text in row.items()}
        person = {
            column: next((low[a] for a in aliases if low.get(a)), "")
            for column, aliases in ALIASES.items()
        }
        parts = (low.get("first name", ""), low.get("last name", "") or low.get("surname", ""))
        person["Student"] = person["Student"] or " ".join(filter(None, parts))
        # Canvas's export has a line that is no student.
        if person["Student"] and "Points Possible" not in person["Student"]:
            people.append(person)
    if not people:
        raise VTError(
            f"expected students in {path}, found none under the columns"
            f" {', '.join(rows[0]) if rows else '(nothing)'}; it needs a column student (or first"
            " name and last name) and one with ids: id, sis login id, username, email address"
        )
    return people


def plain(name: str) -> str:
    """A name as people compare it: accents composed, case and spaces of no account."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def import_table(marks: list[Mark], people: list[dict[str, str]] | None) -> tuple[str, list[str]]:
    """The CSV of one assignment for Moodle and Canvas, and sentences on what is not in it.

    There are lines only for students who are known once and handed in: Moodle refuses a whole file
    for one unknown user, and gives a line without an id to the student before it.
    """
    here = [mark for mark in marks if mark.handed_in]
    if people is None:
        rows = [({"Student": m.student, "SIS Login ID": m.student}, m.points) for m in here]
        notes = ["No roster was given: the login in the CSV is the name under which was handed in."]
    else:
        rows, notes = _match(here, people)
    for column in ("ID", "SIS User ID", "SIS Login ID"):
        without = [person["Student"] for person, _ in rows if not person.get(column)]
        if without and len(without) < len(rows):
            notes.append(
                f"The column {column} is left empty in the CSV, since it is not known for:"
                f" {', '.join(without)}."
            )
            rows = [({**person, column: ""}, points) for person, points in rows]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([*COLUMNS, marks[0].assignment])
    for person, points in rows:
        # Only ids decide, so a name may be changed that a spreadsheet would run.
        writer.writerow(
            [
                plain_text(person["Student"]),
                *(person.get(c, "") for c in COLUMNS[1:]),
                f"{points:g}",
            ]
        )
    return buffer.getvalue(), notes


def _match(
    marks: list[Mark], people: list[dict[str, str]]
) -> tuple[list[tuple[dict[str, str], float]], list[str]]:
    """(person, points) of those known once, and who is missing, unknown or there twice."""
    exact: dict[str, set[int]] = defaultdict(set)
    loose: dict[str, set[int]] = defaultdict(set)
    for i, person in enumerate(people):
        for column in COLUMNS[:4]:
            if person[column]:
                exact[unicodedata.normalize("NFC", person[column])].add(i)
                loose[plain(person[column])].add(i)
    found: dict[int, list[Mark]] = defaultdict(list)
    unknown: list[str] = []
    unclear: list[str] = []
    for mark in marks:
        who = exact.get(unicodedata.normalize("NFC", mark.student)) or loose[plain(mark.student)]
        if len(who) == 1:
            found[next(iter(who))].append(mark)
        else:
            (unclear if who else unknown).append(mark.student)
    twice = {i for i, several in found.items() if len(several) > 1}
    ids = [Counter(person[column] for person in people) for column in COLUMNS[1:4]]
    shared = {
        i
        for i, person in enumerate(people)
        if any(person[c] and n[person[c]] > 1 for c, n in zip(COLUMNS[1:4], ids, strict=True))
    }
    sentences = {
        "On the roster, but nothing was handed in": [
            p["Student"]
            for i, p in enumerate(people)
            if i not in found and plain(p["Student"]) not in map(plain, unclear)
        ],
        "Handed in, but not on the roster (no line in the CSV)": unknown,
        "Handed in, but the name fits several on the roster (no line in the CSV)": unclear,
        "Handed in more than once (no line in the CSV)": [
            f"{people[i]['Student']} ({', '.join(mark.student for mark in found[i])})"
            for i in sorted(twice)
        ],
        "On the roster with the id of another (no line in the CSV)": [
            people[i]["Student"] for i in sorted(shared)
        ],
    }
    rows = [
        (people[i], found[i][0].points)
        for i in sorted(found, key=lambda i: people[i]["Student"])
        if i not in twice | shared
    ]
    return rows, [f"{what}: {', '.join(names)}." for what, names in sentences.items() if names]


# Answers that are built alike


def alike(marks: list[Mark], solutions: Path) -> tuple[list[Alike], list[str]]:
    """Pairs of students with answers of the same structure, most exercises first; and the students
    whose notebook could not be read.

    What every student was given does not count, nor an answer built like the sample solution, nor
    one that more than a quarter of the class has: these are the obvious ones.
    """
    with contextlib.suppress(VTError):  # without them, all that is alike is listed
        solutions = find_solutions(solutions)
    pairs: list[Alike] = []
    unread: list[str] = []
    for assignment, here in by_assignment(marks).items():
        given, obvious = _given(solutions / f"{assignment}.ipynb")
        answers = {}
        for mark in here:
            try:
                answers[mark] = _answers(mark, given) if mark.handed_in else {}
            except (VTError, OSError, KeyError, RecursionError, zipfile.BadZipFile):
                unread.append(f"{mark.student} ({assignment})")
        pairs += _pairs(assignment, answers, obvious)
    return sorted(pairs, key=lambda p: (-len(p.exercises), -len(p.letter_by_letter))), unread


Answer = tuple[str, str]  # structure, code


def _given(solution: Path) -> tuple[set[str], set[str]]:
    """Structures of all functions that the students were given, and of the sample solutions."""
    if not solution.is_file():
        return set(), set()
    notebook = read(solution)
    given = {
        structure([statement])
        for statement in functions(make_exercise(notebook, solution)).values()
    }
    solved = functions(notebook)
    return given, {structure(_own(solved, name, given)) for name in solved}


def _answers(mark: Mark, given: set[str]) -> dict[str, Answer]:
    """What a student wrote for each exercise that was begun."""
    if not mark.file:
        raise VTError(f"the grades do not say which file of {mark.student} was marked")
    defined = functions(open_notebook(mark.file))
    begun = [n for n in mark.exercises if n in defined and mark.state(n) != UNTOUCHED]
    own = {name: _own(defined, name, given) for name in begun}
    return {
        name: (structure(statements), "\n".join(map(ast.unparse, statements)))
        for name, statements in own.items()
        if statements
    }


def open_notebook(file: str) -> NotebookNode:
    """A notebook by its path; one in a zip is named "PATH.zip: NAME"."""
    path, inside, name = file.partition(".zip: ")
    if not inside:
        return read(Path(file))
    with zipfile.ZipFile(f"{path}.zip") as archive, tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "notebook.ipynb"
        copy.write_bytes(archive.read(name))
        return read(copy)


def functions(notebook: NotebookNode) -> dict[str, ast.stmt]:
    """Functions and classes at the top of a notebook by name, the last of each."""
    found: dict[str, ast.stmt] = {}
    for cell in notebook.cells:
        code = re.sub(r"(?m)^\s*[%!?].*$", "", cell.source) if cell.cell_type == "code" else ""
        with contextlib.suppress(SyntaxError, ValueError):
            for statement in ast.parse(code).body:
                if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                    found[statement.name] = statement
                elif isinstance(statement, ast.Assign):
                    names = [t.id for t in statement.targets if isinstance(t, ast.Name)]
                    found |= dict.fromkeys(names, statement)
    return found


def _own(defined: dict[str, ast.stmt], name: str, given: set[str]) -> list[ast.stmt]:
    """The statement that binds `name` and those it uses, apart from what was given."""
    names, own = [name], []
    for one in names:  # grows while it runs
        statement = defined[one]
        used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        names += sorted(used & defined.keys() - {*names})
        if structure([statement]) not in given:
            own.append(statement)
    return own


def _pairs(
    assignment: str, answers: dict[Mark, dict[str, Answer]], obvious: set[str]
) -> list[Alike]:
    shared: dict[tuple[Mark, Mark], list[str]] = defaultdict(list)
    for name in dict.fromkeys(name for found in answers.values() for name in found):
        groups: dict[str, list[Mark]] = defaultdict(list)
        for mark, found in answers.items():
            if name in found and found[name][0] not in obvious:
                groups[found[name][0]].append(mark)
        often = max(2, sum(name in found for found in answers.values()) // 4)
        for group in groups.values():
            for pair in itertools.combinations(group, 2) if len(group) <= often else ():
                shared[pair].append(name)
    return [
        Alike(
            (a.student, b.student),
            assignment,
            tuple(names),
            tuple(n for n in names if answers[a][n][1] == answers[b][n][1]),
            tuple(n for n in names if not a.exercises.get(n) and not b.exercises.get(n)),
        )
        for (a, b), names in shared.items()
    ]


def structure(statements: list[ast.stmt]) -> str:
    """Code without what is easily changed: names, numbers, texts, annotations, comments."""
    tree = ast.Module(ast.parse("\n".join(map(ast.unparse, statements))).body, [])
    return ast.dump(_Bare(tree).visit(tree))


class _Bare(ast.NodeTransformer):
    """Names that the code itself binds are numbered as they come; those of libraries stay."""

    def __init__(self, tree: ast.AST) -> None:
        self.names: dict[str, str] = {}
        self.bound = {
            name
            for node in ast.walk(tree)
            for name in (
                [node.id]
                if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
                else [node.arg]
                if isinstance(node, ast.arg)
                else [node.name]
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                else []
            )
        }

    def rename(self, name: str) -> str:
        return self.names.setdefault(name, f"v{len(self.names)}") if name in self.bound else name

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.rename(node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self.rename(node.arg))

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        fixed = node.value is None or isinstance(node.value, bool)
        number = isinstance(node.value, int | float | complex)
        return node if fixed else ast.Constant("number" if number else "text")

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return self.visit(ast.Assign([node.target], node.value))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.name, node.returns = self.rename(node.name), None
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)


# The page


def diagnosis(words: str) -> str:
    """What a check said without the numbers of one student, so that it can be counted."""
    _, found, likely = words.partition("Likely mistake:")
    line = next(
        (line.strip() for line in (likely if found else words).splitlines() if line.strip()), ""
    )
    return line if found else re.sub(r"(?<![\w.])-?\d+(\.\d+)?(e[+-]?\d+)?(?!\w)", "…", line)[:200]


def diagnoses(marks: list[Mark], exercise: str) -> list[tuple[str, int]]:
    """The most frequent reasons for which tried answers failed."""
    said = [m.said[exercise] for m in marks if m.state(exercise) == TRIED and m.said.get(exercise)]
    return Counter(map(diagnosis, said)).most_common(3)


def exercises_of(marks: list[Mark]) -> list[str]:
    return list(dict.fromkeys(name for mark in marks for name in mark.exercises))


def count(marks: list[Mark], exercise: str, state: str) -> int:
    return sum(mark.state(exercise) == state for mark in marks)


def summary(assignment: str, marks: list[Mark], notes: list[str], pairs: list[Alike]) -> list[str]:
    """Some lines for the terminal."""
    here = [mark for mark in marks if mark.handed_in]
    if not here:
        return [f"{assignment}: nobody handed in", *(f"  {note}" for note in notes)]
    names = exercises_of(here)
    hardest = min(names, key=lambda name: count(here, name, PASSED))
    points = [mark.points for mark in here]
    lines = [
        f"{assignment}: {len(here)} handed in, median {statistics.median(points):g} of"
        f" {here[0].of:g} points, from {min(points):g} to {max(points):g}",
        f"  hardest: {hardest}, passed by {count(here, hardest, PASSED)} of {len(here)}",
    ]
    if found := diagnoses(here, hardest):
        lines.append(f"    most often ({found[0][1]}): {found[0][0]}")
    if pairs:
        a, b = pairs[0].students
        n = len(pairs[0].exercises)
        lines.append(
            f"  alike: {len(pairs)} pair{'s' * (len(pairs) > 1)}; most {a} and {b}, in {n}"
            f" exercise{'s' * (n > 1)}"
        )
    return [*lines, *(f"  {note}" for note in notes)]


_EMPTY = ("Creator", "Date", "Format", "Type")


def histogram(marks: list[Mark], assignment: str) -> str:
    """How many students have how many points, as SVG."""
    of = max(mark.of for mark in marks)
    width = max(1, round(of / 20))
    edges = [width * i - width / 2 for i in range(int(of / width) + 2)]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": assignment, "font.size": 10}):
        figure = Figure(figsize=(7, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.hist([m.points for m in marks], edges, color="#0072B2", rwidth=0.85)
        axes.set(xlabel=f"points of {of:g}", ylabel="students", xlim=(edges[0], edges[-1]))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(_EMPTY))
    svg = text.getvalue()
    points = Counter(mark.points for mark in marks)
    words = "; ".join(f"{n} with {p:g} points" for p, n in sorted(points.items()))
    label = html.escape(f"Bars: how many students have how many points. {words}.", quote=True)
    return svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def section(
    assignment: str, marks: list[Mark], notes: list[str], pairs: list[Alike], folder: Path
) -> str:
    here = [mark for mark in marks if mark.handed_in]
    away = [mark.student for mark in marks if not mark.handed_in]
    e = html.escape
    if away:
        notes = [f"No notebook of this assignment from: {', '.join(away)}.", *notes]
    said = "".join(f"<li>{e(note)}</li>" for note in notes)
    head = f"<h2>{e(assignment)}</h2><ul>{said}</ul>"
    if not here:
        return f"{head}<p>Nobody handed in.</p>"
    points = [mark.points for mark in here]
    numbers = (
        f"{len(here)} handed in. Points of {here[0].of:g}: median {statistics.median(points):g},"
        f" mean {statistics.fmean(points):.1f}, from {min(points):g} to {max(points):g}."
    )
    names = exercises_of(here)
    rows = "".join(_exercise_row(name, here) for name in names)
    head_cells = "".join(f"<th class=turned><span>{e(name)}</span></th>" for name in names)
    students = "".join(_student_row(mark, names, folder) for mark in here)
    key = ", ".join(f"{sign} {state}" for state, sign in SIGNS.items())
    return f"""{head}
<p>{numbers}</p>
{histogram(here, assignment)}
<h3>Exercises</h3>
<table><tr><th>exercise</th><th>passed</th><th>tried, not passed</th><th>not begun</th>
<th>most frequent diagnoses</th></tr>{rows}</table>
<h3>Who is stuck where</h3>
<p>{key}. What the check said stands under each sign (point at it) and on the student's page.</p>
<table class=grid><tr><th>student</th><th>points</th>{head_cells}<th>remark</th></tr>{students}</table>
{_pair_table(pairs)}"""


def _exercise_row(name: str, marks: list[Mark]) -> str:
    e = html.escape
    passed, n = count(marks, name, PASSED), len(marks)
    stuck = [mark.student for mark in marks if mark.state(name) == TRIED]
    reasons = "".join(f"<li>{times} × {e(words)}</li>" for words, times in diagnoses(marks, name))
    lost = count(marks, name, GONE)
    return (
        f"<tr><td>{e(name)}</td><td><meter min=0 max={n} value={passed}></meter> {passed} of {n}"
        f" ({100 * passed / n:.0f}%)</td><td>{len(stuck)}{': ' * bool(stuck)}{e(', '.join(stuck))}"
        f"</td><td>{count(marks, name, UNTOUCHED)}{f', {lost} not found' * bool(lost)}</td>"
        f"<td><ul>{reasons}</ul></td></tr>"
    )


def _student_row(mark: Mark, names: list[str], folder: Path) -> str:
    e = html.escape
    who = e(mark.student)
    if mark.page and mark.page.is_file():
        address = urllib.parse.quote(Path(os.path.relpath(mark.page, folder)).as_posix())
        who = f'<a href="{address}">{who}</a>'
    cells = "".join(
        f'<td class="{mark.state(name).replace(" ", "-")}" title="{e(mark.said.get(name, ""))}">'
        f"{SIGNS[mark.state(name)]}</td>"
        for name in names
    )
    return f"<tr><td>{who}</td><td>{mark.points:g}</td>{cells}<td>{e(mark.remark)}</td></tr>"


def _pair_table(pairs: list[Alike]) -> str:
    e = html.escape
    if not pairs:
        return "<h3>Answers that are built alike</h3><p>None.</p>"
    rows = "".join(
        f"<tr><td>{e(pair.students[0])}</td><td>{e(pair.students[1])}</td>"
        f"<td>{len(pair.exercises)}: {e(', '.join(pair.exercises))}</td>"
        f"<td>{e(', '.join(pair.letter_by_letter))}</td><td>{e(', '.join(pair.wrong))}</td></tr>"
        for pair in pairs[:30]
    )
    more = f"<p>and {len(pairs) - 30} more pairs</p>" if len(pairs) > 30 else ""
    return f"""<h3>Answers that are built alike</h3>
<p>The same structure after names, numbers, texts and comments are taken away. What you gave out,
what is built like the sample solution and what more than a quarter of the class has are not counted.
Short functions are often alike by chance: this is a reason to read two notebooks, not a proof. Most
telling is a mistake that both have, or names that both chose.</p>
<table><tr><th>one</th><th>other</th><th>exercises alike</th><th>of these, names and numbers the same
</th><th>of these, wrong in both</th></tr>{rows}</table>{more}"""


def page(sections: list[str], marks: list[Mark], unread: list[str]) -> str:
    notes = []
    if not any(mark.said for mark in marks):
        notes.append("The kept marks do not say why answers failed: grade again to see diagnoses.")
    if unread:
        notes.append(f"Not compared, as the notebook cannot be read: {', '.join(unread)}.")
    said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Report on the class</title>
<meta name="viewport" content="width=device-width">
<style>body {{ font: 16px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse }} td, th {{ text-align: left; vertical-align: top;
padding: .3em 1em .3em 0; border-bottom: 1px solid #ccc }} td ul {{ margin: 0; padding-left: 1em }}
.grid td, .grid th {{ padding: .2em .6em; vertical-align: bottom }}
.turned span {{ writing-mode: vertical-rl; transform: rotate(180deg) }}
.passed {{ background: #d5ecf9 }} .tried {{ background: #fbdcc4 }} .not-found {{ background: #eee }}
svg {{ max-width: 100%; height: auto }}</style>
<h1>Report on the class</h1>{said}
{"".join(sections)}
</html>
"""
