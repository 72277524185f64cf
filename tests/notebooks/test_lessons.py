"""What nbval cannot see: that the committed lessons were run, in order, whole, and that they keep
the rules of the house."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

LESSONS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.ipynb"))
# Numbers in prose that are facts from elsewhere, not results: citations, or the protocol's own.
CITED = re.compile(
    r"arXiv[: ]\d{4}\.\d{4,5}|abs/\d{4}\.\d{4,5}|sections? \d(\.\d)?( to \d(\.\d)?)?|^#+"
    r" \d(\.\d)?|\bPython 3\.\d+|torch(>=| )\d\.\d+",
    re.IGNORECASE | re.MULTILINE,
)


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request: pytest.FixtureRequest) -> Path:
    return request.param


def cells(path: Path, kind: str) -> list[dict]:
    return [
        cell
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == kind and "".join(cell["source"]).strip()
    ]


def test_there_are_lessons() -> None:
    assert [path.stem for path in LESSONS][:2] == ["00_tour", "01_background"]


def test_executed_completely_and_in_order(lesson: Path) -> None:
    counts = [cell["execution_count"] for cell in cells(lesson, "code")]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks` and commit the result"


def test_no_stored_errors_or_warnings(lesson: Path) -> None:
    outputs = [output for cell in cells(lesson, "code") for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


def test_some_outputs_are_compared(lesson: Path) -> None:
    checked = [
        cell
        for cell in cells(lesson, "code")
        if "nbval-check-output" in cell["metadata"].get("tags", [])
    ]
    assert len(checked) >= 3
    assert all(cell["outputs"] for cell in checked), "a checked cell without output checks nothing"


def test_cell_ids_are_unique_in_the_raw_file(lesson: Path) -> None:
    ids = [cell["id"] for cell in json.loads(lesson.read_text(encoding="utf-8"))["cells"]]
    assert len(ids) == len(set(ids))


def test_cells_are_short(lesson: Path) -> None:
    longest = max(cells(lesson, "code"), key=lambda cell: len("".join(cell["source"]).splitlines()))
    assert len("".join(longest["source"]).splitlines()) <= 22, "".join(longest["source"])


def test_size_and_figures(lesson: Path) -> None:
    assert lesson.stat().st_size < 2**20
    outputs = [output for cell in cells(lesson, "code") for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not [cell for cell in cells(lesson, "markdown") if "base64" in "".join(cell["source"])]


def test_prose_has_no_uncomputed_results(lesson: Path) -> None:
    """A percentage or a decimal number in Markdown is a result, and results are printed by code
    (formulas and code spans aside)."""
    for cell in cells(lesson, "markdown"):
        prose = re.sub(
            r"\$\$.*?\$\$|\$[^$]*\$|```.*?```|`[^`]*`", "", "".join(cell["source"]), flags=re.DOTALL
        )
        found = re.findall(r"\d+(?:\.\d+)?\s?%|\d+\.\d+", CITED.sub("", prose))
        assert not found, f"{found} in: {prose[:200]}"


def test_says_what_it_teaches(lesson: Path) -> None:
    text = "\n".join("".join(cell["source"]) for cell in cells(lesson, "markdown"))
    for part in (
        "After this you can",
        "Predict",
        "Summary",
        "Quiz",
        "Exercises",
        "References",
        "Coverage",
    ):
        assert part.lower() in text.lower(), f"the lesson lacks its part {part!r}"
