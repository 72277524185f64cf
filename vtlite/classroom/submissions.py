"""What came back: which file of a folder is whose answer to which assignment."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vtlite.storage import VTError

_UNKNOWN = "is no notebook of a known assignment"
LARGEST = 50 * 2**20  # bytes of one notebook, and of all that a zip unpacks to
MOST = 1000  # files in a zip

# The names that learning platforms give: "Anna Berg_123_assignsubmission_file_..." (Moodle, a
# folder or a file), "berganna_LATE_123_456_..." (Canvas, a file).
_MOODLE = re.compile(r"(?P<student>.+)_(?P<id>\d+)_assignsubmission_[a-z]+_?(?P<rest>.*)", re.S)
_CANVAS = re.compile(r"(?P<student>[^_]+)_(?:LATE_)?(?P<id>\d+)_\d+_(?P<rest>.+)", re.S)


@dataclass(frozen=True)
class Submission:
    """One student's answer to one assignment."""

    student: str  # exactly as the folder or file has it
    assignment: str
    file: str = ""  # which was marked: a path, of a zip also the name inside
    content: bytes = b""  # the notebook
    problem: str = ""  # why there is nothing to mark
    note: str = ""  # what else the instructor should know


@dataclass(frozen=True)
class _File:
    name: str  # as the student called it
    file: str
    content: bytes = b""
    time: float = 0.0
    problem: str = ""


def find_submissions(
    folder: Path,
    assignment: str,
    known: Mapping[str, Collection[str]] | list[str],
    skip: Collection[Path] = (),
) -> list[Submission]:
    """One for each student and assignment that `folder` has something for.

    Found are STUDENT/ASSIGNMENT.ipynb (at any depth, as nbgrader collects them), STUDENT.ipynb,
    Moodle's and Canvas's exports, and any of these in a zip. A name may have "(1)", "-Copy1" or the
    like in it; a notebook without the assignment's name is known by the functions it defines, where
    `known` gives them: assignment -> names. No link is followed, and what is in `skip` (the grades
    themselves, in the same folder) is no submission. Raises `VTError` for a folder without
    submissions or an unknown assignment.
    """
    if not folder.is_dir():
        hint = "; unpack it first" if folder.suffix == ".zip" and folder.is_file() else ""
        raise VTError(f"expected a folder of submissions, found none at {folder}{hint}")
    if assignment and assignment not in known:
        raise VTError(f"unknown assignment {assignment!r}: there are {', '.join(known)}")
    exercises = known if isinstance(known, Mapping) else dict.fromkeys(known, ())
    wanted = [assignment] if assignment else list(known)
    students: dict[tuple[str, str], list[_File]] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name)):
        if entry.name.startswith((".", "__MACOSX")) or Path(entry.path).absolute() in skip:
            continue
        student, number, files = _student(Path(entry.path), exact(entry.name))
        students.setdefault((student, number), []).extend(files)
    if not students:
        raise VTError(
            f"expected submissions in {folder}, found none: STUDENT/{wanted[0]}.ipynb or"
            " STUDENT.ipynb"
        )
    names = [student for student, _ in students]
    found = []
    for (student, number), files in students.items():
        # Two who share a name on a platform are told apart by its number.
        name = f"{student} ({number})" if names.count(student) > 1 and number else student
        found += _of_student(name, files, wanted, exercises)
    if all(one.problem for one in found) and any(_UNKNOWN in one.problem for one in found):
        raise VTError(
            f"{folder} does not say which assignment it is; give --assignment, one of"
            f" {', '.join(known)}"
        )
    return sorted(found, key=lambda one: (one.assignment, one.student))


def exact(name: str) -> str:
    """A file's name as text, whatever the locale; what is not UTF-8 is written as its bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _student(path: Path, name: str) -> tuple[str, str, list[_File]]:
    """Whose an entry of the folder is, that platform's number, and the files in it."""
    folder = path.is_dir() and not path.is_symlink()
    stem = name if folder else name.removesuffix(path.suffix)
    match = _MOODLE.fullmatch(stem) or (None if folder else _CANVAS.fullmatch(stem))
    student, number, own = (
        (match["student"], match["id"], match["rest"]) if match else (stem, "", "")
    )
    if not folder:
        file = f"{own}{exact(path.suffix)}" if own else name
        return student, number, list(_read(path, file))
    files: list[_File] = []
    for here, folders, inside in os.walk(path):  # follows no links
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        for one in sorted(inside):
            if not one.startswith("."):
                files += _read(Path(here, one), exact(one))
    return student, number, files


def _read(path: Path, name: str) -> Iterator[_File]:
    """The file, or what is in it where it is a zip; never outside of the folder."""
    file = exact(str(path))
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode):
            yield _File(
                name, file, problem=f"{name} is a link or no plain file; it is not followed"
            )
        elif facts.st_size > LARGEST:
            size = facts.st_size / 2**20
            yield _File(name, file, problem=f"{name} has {size:.0f} MB; a notebook has at most 50")
        elif path.suffix.lower() == ".zip":
            yield from _unzip(path.read_bytes(), name, file, facts.st_mtime)
        else:
            yield _File(name, file, path.read_bytes(), facts.st_mtime)
    except OSError as error:
        yield _File(name, file, problem=f"{name} can't be read: {error.strerror}")


def _unzip(content: bytes, name: str, file: str, time: float) -> Iterator[_File]:
    """The files of a zip, or one with the reason why it is refused. Nothing is written."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if problem := _refused(entries):
                yield _File(name, file, problem=f"{name} {problem}")
                return
            for entry in entries:
                inside = PurePosixPath(entry.filename)
                hidden = any(part.startswith((".", "__MACOSX")) for part in inside.parts)
                if entry.is_dir() or hidden:
                    continue
                with archive.open(entry) as member:
                    text = member.read(entry.file_size + 1)
                if len(text) > entry.file_size:
                    raise zipfile.BadZipFile
                yield _File(inside.name, f"{file}: {entry.filename}", text, time)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, NotImplementedError):
        yield _File(name, file, problem=f"{name} is damaged or no zip")
    except Exception as error:  # zlib and lzma raise their own
        yield _File(name, file, problem=f"{name} can't be unpacked ({type(error).__name__})")


def _refused(entries: list[zipfile.ZipInfo]) -> str:
    if len(entries) > MOST or sum(entry.file_size for entry in entries) > LARGEST:
        return f"unpacks to more than {MOST} files or {LARGEST // 2**20} MB; it is not unpacked"
    for entry in entries:
        path = entry.filename.replace("\\", "/")
        if path.startswith("/") or ".." in path.split("/") or re.match("[A-Za-z]:", path):
            return f"has a path that leads out of it ({entry.filename!r}); it is not unpacked"
        if stat.S_ISLNK(entry.external_attr >> 16):
            return f"has a link in it ({entry.filename!r}); it is not unpacked"
        if entry.flag_bits & 1:
            return "needs a password; it is not unpacked"
    return ""


def _of_student(
    student: str, files: list[_File], wanted: list[str], known: Mapping[str, Collection[str]]
) -> list[Submission]:
    """A row for each wanted assignment that a student's files are for, and at least one."""
    notebooks = {f: _assignment(f, wanted, known) for f in files if _notebook(f)}
    found = []
    for name in wanted:
        if mine := [f for f, (assignment, _) in notebooks.items() if assignment == name]:
            sure = [f for f in mine if notebooks[f][1]]
            found.append(_best(student, name, sure or mine))
    if found:
        return found
    one = next((f for f in files if f.problem), None)
    if one:
        problem = one.problem
    elif other := next((f for f, (assignment, _) in notebooks.items() if assignment), None):
        one, problem = other, f"{other.name} is another assignment's: {notebooks[other][0]}"
    elif notebooks:
        one = next(iter(notebooks))
        problem = f"{one.name} {_UNKNOWN}"
    elif one := next((f for f in files if f.name.lower().endswith(".py")), None):
        problem = f"expected a notebook, found {one.name}: hand in the .ipynb file"
    else:
        problem = "no notebook with the assignment's name"
    return [Submission(student, wanted[0], one.file if one else "", problem=problem)]


def _notebook(file: _File) -> bool:
    """Some browsers add .txt or .json to the name of a download."""
    name = re.sub(r"( ?\(\d+\))?\.(txt|json)$", "", file.name.lower())
    return not file.problem and name.endswith(".ipynb")


def _best(student: str, assignment: str, files: list[_File]) -> Submission:
    """The file with the asked name, else the newest."""
    best = max(files, key=lambda f: (f.name == f"{assignment}.ipynb", f.time, f.name, f.file))
    notes = []
    if others := sorted({f.name for f in files if f.content != best.content}):
        notes.append(f"{len(files)} files: marked {best.name}, not {', '.join(others)}")
    if _letters(assignment) not in _letters(best.name) and re.match(r"\d\d_", best.name):
        notes.append(f"{best.name} holds the exercises of {assignment}")
    return Submission(student, assignment, best.file, best.content, note="; ".join(notes))


def _assignment(
    file: _File, wanted: list[str], known: Mapping[str, Collection[str]]
) -> tuple[str, bool]:
    """Which assignment a notebook is for, and whether it says so, by what it defines and by its
    name; "" where nothing tells."""
    text = file.content.decode("utf-8", "replace")
    defined = {*re.findall(r"(?:\b|\\n)def (\w+)", text)}
    counts = {name: len(defined & {*exercises}) for name, exercises in known.items()}
    named = [name for name in known if _letters(name) in _letters(file.name)]
    if any(counts.values()):  # a name that agrees decides between equal counts
        return max(known, key=lambda name: (counts[name], name in named)), True
    if named:
        return max(named, key=len), True
    return (wanted[0] if len(wanted) == 1 else ""), False


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
