"""Which file is marked: names of browsers, platforms, students; zips; what is no notebook."""

from __future__ import annotations

import io
import json
import os
import stat
import zipfile
from pathlib import Path

import pytest

import vtlite as vt
from vtlite.classroom.submissions import Submission, exact, find_submissions

KNOWN = {"02_fine_tuning": ["l2_sp_penalty", "wise_ft"], "05_parameter_tuning": ["bitfit", "ssf"]}


def notebook(*names: str) -> bytes:
    source = "".join(f"x = 1\ndef {name}():\n    pass\n" for name in names)
    return json.dumps({"cells": [{"cell_type": "code", "source": source}]}).encode()


TWO, FIVE = notebook("l2_sp_penalty"), notebook("bitfit")


def zipped(entries: dict[str, bytes], link: str = "") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        if link:
            entry = zipfile.ZipInfo(link)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, "/etc/passwd")
    return file.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> None:
    for time, (name, content) in enumerate(files.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        os.utime(folder / name, (1e9 + time, 1e9 + time))


def find(folder: Path, files: dict[str, bytes], assignment: str = "") -> list[Submission]:
    write(folder, files)
    return find_submissions(folder, assignment, KNOWN)


@pytest.mark.parametrize(
    ("name", "student"),
    [
        ("anna/05_parameter_tuning.ipynb", "anna"),
        ("anna/05_parameter_tuning/05_parameter_tuning.ipynb", "anna"),  # nbgrader's tree
        ("anna/05_parameter_tuning (1).ipynb", "anna"),
        ("anna/05_parameter_tuning-Copy1.ipynb", "anna"),
        ("anna/Copy of 05_Parameter_Tuning.ipynb", "anna"),
        ("anna/05_parameter_tuning.ipynb.txt", "anna"),
        ("anna/homework.ipynb", "anna"),
        ("anna.ipynb", "anna"),
        ("Anna Berg_123_assignsubmission_file_/05_parameter_tuning.ipynb", "Anna Berg"),
        ("Anna Berg_123_assignsubmission_file_05_parameter_tuning.ipynb", "Anna Berg"),
        ("berganna_123_456_05_parameter_tuning-1.ipynb", "berganna"),
        ("berganna_LATE_123_456_05_parameter_tuning.ipynb", "berganna"),
        ("李 雷/05_parameter_tuning.ipynb", "李 雷"),
        ("O'Neil, Zoë (she)/x.ipynb", "O'Neil, Zoë (she)"),
    ],
)
def test_a_notebook_is_found_under_any_usual_name(tmp_path: Path, name: str, student: str) -> None:
    (found,) = find(tmp_path, {name: FIVE})
    assert (found.student, found.assignment) == (student, "05_parameter_tuning")
    assert (found.file, found.content, found.problem) == (str(tmp_path / name), FIVE, "")


@pytest.mark.parametrize("name", ["anna.zip", "anna/all.zip", "anna_1_2_hand-in.zip"])
def test_a_notebook_is_found_in_a_zip(tmp_path: Path, name: str) -> None:
    inside = {"__MACOSX/._x.ipynb": b"?", ".ipynb_checkpoints/a.ipynb": TWO, "w/x (2).ipynb": FIVE}
    (found,) = find(tmp_path, {name: zipped(inside)})
    assert (found.student, found.content) == ("anna", FIVE)
    assert found.file == f"{tmp_path / name}: w/x (2).ipynb"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (zipped({"../../x.ipynb": FIVE}), "leads out of it ('../../x.ipynb')"),
        (zipped({"/etc/x.ipynb": FIVE}), "leads out of it"),
        (zipped({"C:\\x.ipynb": FIVE}), "leads out of it"),
        (zipped({"a\\..\\..\\x.ipynb": FIVE}), "leads out of it"),
        (zipped({"x.ipynb": FIVE}, link="y.ipynb"), "has a link in it"),
        (zipped({"x.ipynb": bytes(60 * 2**20)}), "more than 1000 files or 50 MB"),
        (zipped({f"{i}": b"" for i in range(1001)}), "more than 1000 files or 50 MB"),
        (b"PK", "is damaged or no zip"),
        (zipped({"x.ipynb": FIVE}).replace(b"x.ipynb", b"y.ipynb", 1), "is damaged"),
        (zipped({"x.txt": FIVE}), "no notebook"),
    ],
)
def test_a_hostile_zip_is_refused_in_a_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    (found,) = find(tmp_path, {"anna/in.zip": content})
    assert (found.student, found.content) == ("anna", b"")
    assert words in found.problem


def test_a_zip_that_lies_about_its_size_is_read_no_further(tmp_path: Path) -> None:
    bomb = zipped({"x.ipynb": bytes(60 * 2**20)})
    size = (60 * 2**20).to_bytes(4, "little")
    (found,) = find(tmp_path, {"anna/in.zip": bomb.replace(size, (9).to_bytes(4, "little"))})
    assert "damaged" in found.problem


def test_of_several_files_the_asked_name_is_marked_and_the_row_says_so(tmp_path: Path) -> None:
    name = "05_parameter_tuning"
    (found,) = find(
        tmp_path,
        {f"a/{name}.ipynb": FIVE, f"a/{name} (1).ipynb": notebook("ssf"), "a/n.ipynb": b"{}"},
    )
    assert found.content == FIVE
    assert found.note == f"2 files: marked {name}.ipynb, not {name} (1).ipynb"
    (tmp_path / f"a/{name}.ipynb").unlink()
    (found,) = find(tmp_path, {"a/x (3).ipynb": FIVE, "a/x (2).ipynb": notebook("bitfit", "ssf")})
    assert found.file.endswith("x (2).ipynb")  # the newest
    assert "not 05_parameter_tuning (1).ipynb, x (3).ipynb" in found.note


def test_equal_copies_are_no_question(tmp_path: Path) -> None:
    (found,) = find(tmp_path, {"a/b.ipynb": FIVE, "a/c.ipynb": FIVE})
    assert not found.note


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a/x.py": b""}, "expected a notebook, found x.py: hand in the .ipynb file"),
        ({"a.py": b""}, "expected a notebook, found a.py"),
        ({"a/x.pdf": b""}, "no notebook with the assignment's name"),
        ({"a/x.ipynb": TWO}, "x.ipynb is another assignment's: 02_fine_tuning"),
    ],
)
def test_what_is_no_answer_gets_a_row(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    (found,) = find(tmp_path, files, "05_parameter_tuning")
    assert found.assignment == "05_parameter_tuning"
    assert words in found.problem


def test_a_file_with_the_wrong_name_is_known_by_what_it_defines(tmp_path: Path) -> None:
    (found,) = find(tmp_path, {"a/05_parameter_tuning.ipynb": TWO})
    assert found.assignment == "02_fine_tuning"
    assert found.note == "05_parameter_tuning.ipynb holds the exercises of 02_fine_tuning"


def test_no_link_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "out", {"secret/05_parameter_tuning.ipynb": FIVE})
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/a/05_parameter_tuning.ipynb").symlink_to(
        tmp_path / "out/secret/05_parameter_tuning.ipynb"
    )
    (tmp_path / "in/b").mkdir()
    (tmp_path / "in/b/folder").symlink_to(tmp_path / "out/secret")
    (tmp_path / "in/c").symlink_to(tmp_path / "out/secret")
    os.mkfifo(tmp_path / "in/d.ipynb")
    found = {one.student: one for one in find_submissions(tmp_path / "in", "", KNOWN)}
    assert {*found} == {"a", "b", "c", "d"}
    assert not any(one.content for one in found.values())
    assert "is a link or no plain file" in found["a"].problem
    assert "is a link or no plain file" in found["c"].problem
    assert "is a link or no plain file" in found["d"].problem


def test_students_of_one_name_are_told_apart(tmp_path: Path) -> None:
    files = {f"Jo Li_{i}_assignsubmission_file_/05_parameter_tuning.ipynb": FIVE for i in (7, 8)}
    files |= {"jo li/05.ipynb": FIVE, "JO LI/05.ipynb": FIVE}
    assert [one.student for one in find(tmp_path, files)] == [
        "JO LI",
        "Jo Li (7)",
        "Jo Li (8)",
        "jo li",
    ]


def test_a_name_in_no_encoding_is_still_a_name() -> None:
    assert exact(os.fsdecode(b"a\xff")) == "a\\xff"
    assert exact("zo\u00eb") != exact("zoe\u0308")


def test_the_grades_themselves_are_no_submission(tmp_path: Path) -> None:
    write(tmp_path, {"anna.ipynb": FIVE, "grades.csv": b"", "grades/x.html": b""})
    skip = [tmp_path / "grades.csv", tmp_path / "grades"]
    assert [s.student for s in find_submissions(tmp_path, "", KNOWN, skip)] == ["anna"]


def test_a_folder_without_sense_is_a_sentence(tmp_path: Path) -> None:
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
    write(tmp_path, {"all.zip": zipped({})})
    with pytest.raises(vt.VTError, match=r"all\.zip; unpack it first"):
        find_submissions(tmp_path / "all.zip", "", ["98_a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(vt.VTError, match="expected submissions in"):
        find_submissions(tmp_path / "empty", "", ["98_a"])
