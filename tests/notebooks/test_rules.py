"""The rules of the lessons can fail: each, on a lesson of a few cells that breaks it and on one that
keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.notebooks import test_lessons as rules

Cell = dict[str, Any]
ALT = "Two bars of accuracy, for the probe and for full fine-tuning"
TABLE = "| symbol | meaning |\n|---|---|\n| $A, \\alpha$ | a factor and its scale |\n"


def text(source: str) -> Cell:
    return {"cell_type": "markdown", "source": [source], "metadata": {}}


def code(source: str = "pass", *tags: str, read: str = "", alt: str | None = None) -> Cell:
    outputs: list[Cell] = [{"data": {"text/markdown": [read]}, "metadata": {}}] if read else []
    if alt is not None:
        outputs.append({"data": {"image/png": ""}, "metadata": {"image/png": {"alt": alt}}})
    metadata = {"tags": list(tags)}
    return {"cell_type": "code", "source": [source], "metadata": metadata, "outputs": outputs}


KNOB = code("knob(turn, 4, (1, 4))", "knob")
PREDICT, ANSWER = text("*Predict*: which is better?"), code(read="*Read*: the probe.")
LINK = "[arXiv 2106.09685](https://arxiv.org/abs/2106.09685)"
CASES: dict[Callable[[Path], None], tuple[dict[str, list[Cell]], dict[str, list[Cell]]]] = {
    rules.test_every_prediction_is_followed_by_its_reading: (
        {
            "computed": [PREDICT, ANSWER],
            "proved": [PREDICT, code(), text("*Read*: as it must.")],
            "the same cell": [PREDICT, code(read="*Read*: the probe.", alt=ALT)],
        },
        {
            "no reading": [PREDICT, code()],
            "one reading for two": [PREDICT, PREDICT, ANSWER],
            "typed beside a figure": [PREDICT, code(alt=ALT), text("*Read*: the probe.")],
        },
    ),
    rules.test_every_figure_has_its_own_alt_text: (
        {"a text": [code(alt=ALT)]},
        {
            "empty": [code(alt="")],
            "too short": [code(alt="bars")],
            "that of another": [code(alt=ALT), code(alt=ALT)],
        },
    ),
    rules.test_cells_are_short: (
        {"fifteen": [code("pass\n" * 15)], "subject": [code("pass\n" * 24, "subject")]},
        {
            "sixteen": [code("pass\n" * 16)],
            "subject": [code("pass\n" * 25, "subject")],
            "plotting": [code("plt.show()")],
        },
    ),
    rules.test_one_knob: (
        {"one": [PREDICT, KNOB]},
        {
            "none": [PREDICT, code()],
            "two": [PREDICT, KNOB, PREDICT, KNOB],
            "no question": [text("*Predict*."), KNOB],
            "nothing to turn": [PREDICT, code("rank = 4", "knob")],
        },
    ),
    rules.test_papers_are_links: (
        {
            "link": [text(f"LoRA ({LINK})")],
            "its name": [text(LINK.replace("arXiv 2106.09685", "LoRA"))],
        },
        {
            "bare": [text("LoRA, arXiv 2106.09685")],
            "another paper": [text(LINK.replace("abs/2106", "abs/2107"))],
        },
    ),
    rules.test_a_symbol_means_one_thing: (
        {"explained": [text(TABLE), text(r"$\alpha A^\top$ and $\mathrm{LN}(A)$")]},
        {
            "no table": [text("$A$")],
            "Latin": [text(TABLE), text("$A B$")],
            "Greek": [text(TABLE), text(r"$\beta A$")],
            "twice": [text(TABLE + TABLE.splitlines()[-1])],
        },
    ),
}


@pytest.mark.parametrize("rule", CASES, ids=lambda rule: rule.__name__.removeprefix("test_"))
def test_a_rule_tells_good_lessons_from_bad(rule: Callable[[Path], None], tmp_path: Path) -> None:
    keep, broken = CASES[rule]
    for name, cells in keep.items():
        rule(written(tmp_path / f"{name}.ipynb", cells))
    for name, cells in broken.items():
        path = written(tmp_path / f"{name}.ipynb", cells)
        with pytest.raises(AssertionError):
            rule(path)


def written(path: Path, cells: list[Cell]) -> Path:
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    return path
