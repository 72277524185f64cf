"""What nbval cannot see: that the committed lessons were run, in order, whole, and that they keep
the rules of the house."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

GREEK = (
    r"\\(alpha|beta|[gG]amma|[dD]elta|(?:var)?epsilon|eta|[tT]heta|kappa|[lL]ambda|mu|nu|xi|pi|rho"
    r"|[sS]igma|tau|(?:var)?phi|Phi|chi|[pP]si|[oO]mega)(?![a-zA-Z])"
)
FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$]+\$", re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\(https://arxiv\.org/abs/(\d{4}\.\d{4,5})\)")
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


def every_cell(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def displayed(cell: dict) -> list[str]:
    return ["".join(output.get("data", {}).get("text/markdown", "")) for output in cell["outputs"]]


def figures(path: Path) -> list[dict]:
    outputs = [output for cell in cells(path, "code") for output in cell["outputs"]]
    return [output for output in outputs if "image/png" in output.get("data", {})]


def letters(formula: str) -> set[str]:
    """The letters of a formula, Latin, Greek or script; words such as softmax and operators are
    none."""
    formula = re.sub(
        r"\\(mathrm|text|operatorname|begin|end)\{[^{}]*\}|\\mathbb\{R\}", " ", formula
    )
    script = re.findall(r"\\mathcal\{(\w)\}", formula)
    formula = re.sub(r"\\mathcal\{\w\}", " ", formula)
    greek = re.findall(GREEK, formula)
    return {*script, *greek, *re.findall(r"[A-Za-z]", re.sub(r"\\[a-zA-Z]+", " ", formula))}


def test_there_are_lessons() -> None:
    assert [path.stem for path in LESSONS][:2] == ["00_tour", "01_background"]


def test_executed_completely_and_in_order(lesson: Path) -> None:
    counts = [cell["execution_count"] for cell in cells(lesson, "code")]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks` and commit the result"


def test_no_stored_errors_or_warnings(lesson: Path) -> None:
    outputs = [output for cell in cells(lesson, "code") for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


def test_some_outputs_are_compared(lesson: Path) -> None:
    checked = [cell for cell in cells(lesson, "code") if "nbval-check-output" in tags(cell)]
    assert len(checked) >= 3
    assert all(cell["outputs"] for cell in checked), "a checked cell without output checks nothing"


def test_cell_ids_are_unique_in_the_raw_file(lesson: Path) -> None:
    ids = [cell["id"] for cell in json.loads(lesson.read_text(encoding="utf-8"))["cells"]]
    assert len(ids) == len(set(ids))


def test_cells_are_short(lesson: Path) -> None:
    """A cell is one thought; what is the lesson's subject may be two, and plotting is in
    `vtlite/plots.py`."""
    for cell in cells(lesson, "code"):
        source = "".join(cell["source"])
        most = 24 if "subject" in tags(cell) else 15
        assert len(source.splitlines()) <= most, source
        assert not re.search(r"\bplt\.|matplotlib", source), source


def test_size_and_figures(lesson: Path) -> None:
    assert lesson.stat().st_size < 2**20
    assert len(figures(lesson)) >= 3
    assert not [cell for cell in cells(lesson, "markdown") if "base64" in "".join(cell["source"])]


def test_every_figure_has_its_own_alt_text(lesson: Path) -> None:
    texts = [output["metadata"].get("image/png", {}).get("alt", "") for output in figures(lesson)]
    assert all(len(text) >= 30 for text in texts), "use `show_figure(figure, alt)`"
    assert len(set(texts)) == len(texts)


def test_every_prediction_is_followed_by_its_reading(lesson: Path) -> None:
    """From a *Predict* to the next there is a *Read*, in the text or made by `read`; beside a
    figure of results it is made by `read`, which computes it."""
    waiting, figure = "", False
    for cell in every_cell(lesson):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            figure = any("image/png" in output.get("data", {}) for output in cell["outputs"])
            if any("*Read*" in text for text in displayed(cell)):
                waiting, figure = "", False
            continue
        for word in re.findall(r"\*(Predict|Read)\*", source):
            assert word == "Read" or not waiting, f"no *Read* after: {waiting}"
            assert word == "Predict" or not figure, f"not computed, beside a figure: {source}"
            waiting = source if word == "Predict" else ""
        figure = False
    assert not waiting, f"no *Read* after: {waiting}"


def test_one_knob(lesson: Path) -> None:
    """One place where the reader changes a number and runs again, after having said what will
    happen."""
    everything = every_cell(lesson)
    at = [i for i, cell in enumerate(everything) if "knob" in tags(cell)]
    assert len(at) == 1, "tag one cell `knob`"
    source = "".join(everything[at[0]]["source"])
    assert re.search(r"^knob\(\w+, .+\)", source, re.MULTILINE), source
    question = "".join(everything[at[0] - 1]["source"])
    assert "*Predict*" in question
    assert "?" in question


def test_papers_are_links(lesson: Path) -> None:
    for cell in cells(lesson, "markdown"):
        source = "".join(cell["source"])
        assert not re.search(r"arXiv|\b\d{4}\.\d{5}\b", LINK.sub("", source)), source
        for shown, address in LINK.findall(source):
            number = re.search(r"\d{4}\.\d{5}", shown)
            assert number is None or number[0] == address, f"{shown} leads to {address}"


def test_a_symbol_means_one_thing(lesson: Path) -> None:
    """Every letter of a formula is in a table `| symbol | meaning |` of the lesson, in one row of
    them all."""
    text = "\n".join("".join(cell["source"]) for cell in cells(lesson, "markdown"))
    tables = re.findall(r"^\| symbol \| .*\n\|[-|: ]+\n((?:\|.*\n?)+)", text, re.MULTILINE)
    rows = [row.split(" | ")[0].strip("| ") for table in tables for row in table.splitlines()]
    assert rows, "the lesson lacks its table `| symbol | meaning |`"
    assert len(rows) == len(set(rows)), f"explained twice: {[r for r in rows if rows.count(r) > 1]}"
    known = {letter for row in rows for letter in letters(row)}
    used = {letter for formula in FORMULA.findall(text) for letter in letters(formula)}
    assert used <= known, f"in no table of symbols: {sorted(used - known)}"


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
