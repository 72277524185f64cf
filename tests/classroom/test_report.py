"""A small class on paper: what the page, the lists and the CSV for Moodle and Canvas say of it."""

from __future__ import annotations

import ast
import csv
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest

import vtlite as vt
from vtlite.__main__ import main
from vtlite.classroom.report import diagnosis, report, structure

NAME = "99_small"
GIVEN = "SCALE = 3\n\ndef helper(x):\n    return SCALE * x + 1"
STUB = 'def {}(x, y):\n    """What is wanted."""\n    {}\n\ncheck.{}({})'
SAMPLE = {"first": "return x * y", "second": "return [x for x in y if x > 0]", "third": "return 0"}
# The answer of cleo, and what bo made of it.
LOOP = """def first(x, y):
    total = 0  # the sum
    for value in y:
        total += x * value
    return total"""
COPY = """def first(a, items):
    "Mine."
    result = 17
    for entry in items:
        result += a * entry
    return result"""
OWN = """def own(v):
    return v - 1

def second(x, y):
    return own(helper(x))"""
MINE = """%matplotlib inline
def second(a, b):
    return mine(helper(a))

def mine(w):  # another order
    return w - 2"""
CELLS: dict[str, dict[str, str]] = {
    "cleo": {"first": LOOP, "second": OWN},
    "bo": {"first": COPY, "second": MINE},
    "anna": {
        "first": "def first(x, y):\n    return x * y",
        "second": "def second(x, y):\n    return x",
    },
    "dora": {"first": "def first(p, q):\n    return p * q"},
    "<b>=1+1": {},
}
SAID = {
    "cleo": {"first": "", "second": "shape: expected 3, found 4\nLikely mistake: a < b"},
    "bo": {"first": "", "second": "shape: expected 5, found 7\nLikely mistake: a < b"},
    "anna": {"first": "", "second": "TypeError: 3 is no tensor"},
    "dora": {"first": "", "second": "not written yet: Exercise 9.2"},
    "<b>=1+1": {
        "first": "NotImplementedError: Exercise 9.1",
        "second": "second is not defined in the notebook; was it renamed or its cell deleted?",
    },
}


def notebook(cells: list[str]) -> nbformat.NotebookNode:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"display_name": "P", "language": "python", "name": "python3"}
    return made


@pytest.fixture
def solutions(tmp_path: Path) -> Path:
    folder = tmp_path / "solutions"
    folder.mkdir()
    body = "### BEGIN SOLUTION\n    {}\n    ### END SOLUTION"
    cells = [STUB.format(n, body.format(s), n, n) for n, s in SAMPLE.items()]
    nbformat.write(notebook([GIVEN, *cells]), folder / f"{NAME}.ipynb")
    return folder


@pytest.fixture
def grades(tmp_path: Path) -> Path:
    """What grading a class writes: a CSV, and a folder with a JSON of each row."""
    (tmp_path / "grades").mkdir()
    rows = []
    for i, (student, answers) in enumerate(CELLS.items()):
        file = tmp_path / f"{i}.ipynb"
        nbformat.write(notebook([GIVEN, *answers.values()]), file)
        row: dict[str, Any] = {"student": student, "assignment": NAME, "of": 5, "seconds": 1.0}
        row["exercises"] = {"first": 2.0 if answers else 0.0, "second": 0.0}
        row |= {"points": sum(row["exercises"].values()), "status": "some checks failed"}
        row |= {"said": SAID[student], "file": str(file)}
        (tmp_path / f"grades/{i}.json").write_text(json.dumps(row), encoding="utf-8")
        (tmp_path / f"grades/{i}.html").write_text("page", encoding="utf-8")
        rows.append(row)
    away = {"student": "eve", "points": 0.0, "status": "no notebook with the assignment's name"}
    rows.append({**rows[-1], **away, "exercises": {"first": 0.0, "second": 0.0}})
    columns = ["student", "assignment", "points", "of", "status", "seconds"]
    with (tmp_path / "grades.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "first", "second"])
        for row in rows:
            writer.writerow([*(row[c] for c in columns), *row["exercises"].values()])
    return tmp_path / "grades.csv"


def made(grades: Path, solutions: Path, roster: str = "") -> tuple[str, str, list[list[str]]]:
    """(summary, page, the CSV's lines)."""
    file = grades.with_name("roster.csv")
    if roster:
        file.write_text(roster, encoding="utf-8")
    out = grades.with_name("report.html")
    said, written = report(grades, out, solutions, file if roster else None)
    assert set(written) == {out, grades.with_name(f"report-{NAME}.csv")}
    with written[0].open(encoding="utf-8", newline="") as lines:
        return said, out.read_text(encoding="utf-8"), list(csv.reader(lines))


def cells(page: str, first: str) -> list[str]:
    """The texts of the table's row that begins with `first`."""
    row = next(row for row in re.findall(r"<tr>(.*?)</tr>", page, re.S) if f">{first}<" in row)
    return [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row, re.S)]


def test_the_page_counts_who_passed_and_why_others_did_not(grades: Path, solutions: Path) -> None:
    said, page, _ = made(grades, solutions)
    assert cells(page, "first")[1:4] == [" 4 of 5 (80%)", "0", "1"]
    passed, tried, untouched, why = cells(page, "second")[1:]
    assert (passed, untouched) == (" 0 of 5 (0%)", "1, 1 not found")
    assert tried == "3: anna, bo, cleo"
    assert why == "2 × a &lt; b1 × TypeError: … is no tensor"
    assert "5 handed in, median 2 of 5 points, from 0 to 2" in said
    assert "hardest: second, passed by 0 of 5" in said
    assert "most often (2): a < b" in said
    assert "No notebook of this assignment from: eve." in page
    assert "4 with 2 points" in page  # the figure in words
    assert cells(page, "bo")[:4] == ["bo", "2", "●", "✗"]
    assert 'href="grades/1.html"' in page


def test_the_page_is_whole_and_takes_nothing_for_markup(grades: Path, solutions: Path) -> None:
    _, page, _ = made(grades, solutions)
    assert "<b>" not in page
    assert "&lt;b&gt;=1+1" in page
    assert not re.findall(
        r"""(?:src=|url\(|@import|<link|<script)(?!#)""", page.replace("url(#", "")
    )


def test_a_renamed_copy_is_found_and_what_all_were_given_is_not(
    grades: Path, solutions: Path
) -> None:
    said, page, _ = made(grades, solutions)
    # bo and cleo: one loop with other names. anna and dora wrote the sample solution.
    assert cells(page.partition("built alike")[2], "cleo") == [
        "bo",
        "cleo",
        "2: first, second",
        "",
        "second",
    ]
    assert "alike: 1 pair; most bo and cleo, in 2 exercises" in said


def test_without_solutions_the_obvious_answer_is_listed_and_stubs_are_not(
    grades: Path, tmp_path: Path
) -> None:
    _, page, _ = made(grades, tmp_path / "none")
    alike = page.partition("built alike")[2]
    assert cells(alike, "dora")[2] == "1: first"
    assert "=1+1" not in alike


def test_a_notebook_in_a_zip_is_compared_too(grades: Path, solutions: Path) -> None:
    folder = grades.parent
    with zipfile.ZipFile(folder / "bo.zip", "w") as archive:
        archive.write(folder / "1.ipynb", "my work/1.ipynb")
    (folder / "1.ipynb").unlink()
    kept = folder / "grades/1.json"
    row = json.loads(kept.read_text(encoding="utf-8"))
    row["file"] = f"{folder}/bo.zip: my work/1.ipynb"
    kept.write_text(json.dumps(row), encoding="utf-8")
    _, page, _ = made(grades, solutions)
    assert cells(page.partition("built alike")[2], "cleo")[2] == "2: first, second"


def test_an_answer_of_many_says_nothing(grades: Path, solutions: Path, tmp_path: Path) -> None:
    nbformat.write(notebook([GIVEN, LOOP.replace("value", "v")]), tmp_path / "3.ipynb")
    _, page, _ = made(grades, solutions)
    assert cells(page.partition("built alike")[2], "cleo")[2] == "1: second"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (LOOP, COPY, True),
        ("def f(x: int) -> int:\n    return x + 1", "def g(y):\n    return y + 2.5", True),
        ("f = lambda a, b: a", "g = lambda c, d: c", True),
        ("f = lambda a, b: a", "g = lambda c, d: d", False),
        ("def f(x):\n    return x.sum(0)", "def f(x):\n    return x.mean(0)", False),
        ("def f(x):\n    return torch.sum(x)", "def f(x):\n    return math.sum(x)", False),
        ("def f(x):\n    return x + 1", "def f(x):\n    return x - 1", False),
        ("def f(x):\n    return f(x, True)", "def f(x):\n    return f(x, False)", False),
        ("def f(x):\n    y: int = 0\n    return y", "def f(x):\n    z = 0\n    return z", True),
    ],
)
def test_structure_forgets_names_and_numbers_only(one: str, other: str, same: bool) -> None:
    a, b = (structure(ast.parse(code).body) for code in (one, other))
    assert (a == b) is same


def test_a_diagnosis_is_the_likely_mistake_or_the_words_without_numbers() -> None:
    assert diagnosis("x: expected 1, found 2\nLikely mistake: no blocks.10") == "no blocks.10"
    assert diagnosis("lr: expected 1e-05, found -2.5 (shape [3, 4])") == (
        "lr: expected …, found … (shape […, …])"
    )
    assert diagnosis("") == ""


CANVAS = """Student,ID,SIS User ID,SIS Login ID,Section,Final Score
    Points Possible,,,,,(read only)
"Cruz, Cleo",11,s1,CLEO,A,
Bo,12,s2,bb,A,
"Álvarez, Anna",13,s3,anna,A,
Late,14,s4,late,B,
"""


def test_the_csv_has_canvas_s_columns_and_only_students_who_are_known(
    grades: Path, solutions: Path
) -> None:
    _, page, lines = made(grades, solutions, CANVAS)
    assert lines == [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", NAME],
        ["Bo", "12", "s2", "bb", "A", "2"],
        ["Cruz, Cleo", "11", "s1", "CLEO", "A", "2"],
        ["Álvarez, Anna", "13", "s3", "anna", "A", "2"],
    ]
    assert "On the roster, but nothing was handed in: Late." in page
    assert "not on the roster (no line in the CSV): dora, &lt;b&gt;=1+1." in page


def test_moodle_s_export_is_a_roster_too(grades: Path, solutions: Path) -> None:
    export = "\ufeffFirst name;Last name;ID number;Email address\nCleo;Cruz;7;cleo\nBo;;8;bo\n"
    _, _, lines = made(grades, solutions, export)
    assert lines[1:] == [["Bo", "", "8", "bo", "", "2"], ["Cleo Cruz", "", "7", "cleo", "", "2"]]


def test_twice_unclear_and_shared_ids_are_said_and_left_out(grades: Path, solutions: Path) -> None:
    roster = "student,id,login\ncleo,1,bo\nAnna,2,x\nanna ,2,y\nDora,4,dora\n"
    _, page, lines = made(grades, solutions, roster)
    assert [line[0] for line in lines[1:]] == ["Dora"]
    assert "handed in more than once (no line in the CSV): cleo (bo, cleo)".lower() in page.lower()
    assert "with the id of another (no line in the CSV): Anna, anna" in page


def test_a_name_that_fits_two_is_given_to_neither(grades: Path, solutions: Path) -> None:
    _, page, lines = made(grades, solutions, "student,id\nDORA,1\nDora,2\nbo,3\n")
    assert [line[0] for line in lines[1:]] == ["bo"]
    assert "the name fits several on the roster (no line in the CSV): dora." in page
    assert "nothing was handed in" not in page


def test_a_column_of_ids_with_a_gap_is_left_empty(grades: Path, solutions: Path) -> None:
    # Moodle would give a line without an id to the student of the line before.
    _, page, lines = made(grades, solutions, "student,username,id number\nbo,b,1\ncleo,c,\n")
    assert lines[1:] == [["bo", "", "", "b", "", "2"], ["cleo", "", "", "c", "", "2"]]
    assert "SIS User ID is left empty in the CSV, since it is not known for: cleo" in page


def test_without_a_roster_the_folder_s_name_is_the_login(grades: Path, solutions: Path) -> None:
    _, _, lines = made(grades, solutions)
    assert ["bo", "", "", "bo", "", "2"] in lines
    assert not any("eve" in line for line in lines)


def test_a_name_like_a_formula_is_matched_and_stays_text(grades: Path, solutions: Path) -> None:
    text = grades.read_text(encoding="utf-8").replace("dora", "'=dora")
    grades.write_text(text, encoding="utf-8")
    kept = grades.with_suffix("") / "3.json"
    kept.write_text(kept.read_text(encoding="utf-8").replace("dora", "=dora"), encoding="utf-8")
    _, page, lines = made(grades, solutions, "student,id\n=dora,9\n")
    assert lines[1:] == [["'=dora", "9", "", "", "", "2"]]
    assert "not written yet: Exercise 9.2" in page  # what was kept under the name itself


def test_a_syntax_error_was_tried_and_a_file_that_cannot_be_read_was_not(
    grades: Path, solutions: Path
) -> None:
    kept = grades.with_suffix("") / "3.json"
    row = json.loads(kept.read_text(encoding="utf-8"))
    why = "first is not defined in the notebook: its cell has a syntax error in line 1"
    row |= {"said": {"first": why, "second": "not reached"}}
    row["exercises"] = {"first": 0.0, "second": 0.0}
    kept.write_text(json.dumps(row), encoding="utf-8")
    _, page, _ = made(grades, solutions)
    assert cells(page.partition("Who is stuck")[2], "dora")[2:4] == ["✗", "?"]


def test_two_names_that_differ_by_the_quote_stay_two(grades: Path, solutions: Path) -> None:
    text = grades.read_text(encoding="utf-8")
    grades.write_text(text.replace("cleo", "'=x").replace("dora", "''=x"), encoding="utf-8")
    for number, old, new in (("0", "cleo", "=x"), ("3", "dora", "'=x")):
        kept = grades.with_suffix("") / f"{number}.json"
        row = kept.read_text(encoding="utf-8").replace(f'"{old}"', json.dumps(new))
        kept.write_text(row, encoding="utf-8")
    _, page, _ = made(grades, solutions)
    grid = page.partition("Who is stuck")[2]
    assert cells(grid, "=x")[3] == "✗"
    assert cells(grid, "&#x27;=x")[3] == "·"


def test_a_name_with_an_apostrophe_keeps_it(grades: Path, solutions: Path) -> None:
    text = grades.read_text(encoding="utf-8").replace("dora", "'dora")
    grades.write_text(text, encoding="utf-8")
    _, page, _ = made(grades, solutions, "student,id\n'dora,3\n")
    assert "&#x27;dora" in page


def test_files_are_found_from_the_folder_of_the_grades(grades: Path, solutions: Path) -> None:
    for kept in grades.with_suffix("").glob("*.json"):
        text = kept.read_text(encoding="utf-8")
        kept.write_text(text.replace(f"{grades.parent}/", ""), encoding="utf-8")
    _, page, _ = made(grades, solutions)
    assert cells(page.partition("built alike")[2], "cleo")[2] == "2: first, second"


def test_what_grading_remarks_stands_beside_the_marks(grades: Path, solutions: Path) -> None:
    text = grades.read_text(encoding="utf-8").replace(
        "some checks failed", '"some checks failed; 2 files: marked a.ipynb, not b.ipynb"', 1
    )
    grades.write_text(text, encoding="utf-8")
    _, page, _ = made(grades, solutions)
    grid = page.partition("Who is stuck")[2]
    assert cells(grid, "cleo")[-1] == "2 files: marked a.ipynb, not b.ipynb"
    assert cells(grid, "bo")[-1] == ""


def test_grades_alone_make_a_page_that_says_what_it_lacks(grades: Path, solutions: Path) -> None:
    for path in grades.with_suffix("").iterdir():
        path.unlink()
    _, page, lines = made(grades, solutions)
    assert "do not say why answers failed: grade again" in page
    assert f"cannot be read: anna ({NAME})" in page
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "expected a CSV of grades, found no"),
        ("student,points\nanna,3\n", "found line 2 without a good 'assignment'"),
        ("student,assignment,points,of,status\nanna,9,many,5,ok\n", "could not convert"),
        ("student,assignment,points,of,status\n", "found none; grade the class first"),
        ("\udcff", "expected UTF-8"),
    ],
)
def test_another_file_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "g.csv").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert main(["classroom", "report", str(tmp_path / "g.csv")]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html"))


def test_a_roster_without_students_is_refused(grades: Path, solutions: Path) -> None:
    with pytest.raises(
        vt.VTError, match=r"expected students in .* under the columns a, b; it needs"
    ):
        made(grades, solutions, "a,b\n1,2\n")


def test_the_command_writes_beside_the_grades(
    grades: Path, solutions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classroom", "report", str(grades), "--solutions", str(solutions)]) == 0
    said = capsys.readouterr().out
    assert f"{NAME}: 5 handed in" in said
    assert f"written: {grades.with_name('grades-report.html')}" in said
    assert grades.with_name(f"grades-report-{NAME}.csv").exists()
