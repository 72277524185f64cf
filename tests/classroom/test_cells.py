"""Which statements of a notebook an answer needs."""

from __future__ import annotations

import pytest

from vtlite.classroom.cells import Cell, definitions, exercise_of, plan, why_missing


def needed(*sources: str, name: str = "f") -> list[set[int] | None]:
    return plan([Cell(source) for source in sources], name)


def test_functions_imports_and_constants_are_taken_alone() -> None:
    cells = (
        "import torch\nimport os\nprint(1)",
        "EPS = 1e-6\nORDER = ['q', 'v']",
        "def half(x):\n    return x / 2 + EPS",
        "class G:\n    pass\ndef f(x):\n    return torch.relu(half(x)) + len(ORDER)\nf(3)",
        "1 / 0",
    )
    assert needed(*cells) == [{0}, {0, 1}, {0}, {1}]


@pytest.mark.parametrize(
    "state",
    [
        "TABLE = {}\nfor i in range(3):\n    TABLE[i] = i",
        "TABLE = {}\nTABLE.update(a=1)",
        "TABLE = [1]\nTABLE[0] = 2",
        "with open('x') as TABLE:\n    pass",
        "if True:\n    TABLE = 3",
        "import random\nTABLE = random.random()",
        "TABLE = 1\nTABLE += 1",
        "(TABLE := 3)",
        "import asyncio\nTABLE = await asyncio.sleep(0, 3)",
        "TABLE = !ls",
        "TABLE = %timeit -o 1",
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    TABLE = 3",
    ],
)
def test_other_state_takes_all_cells_before(state: str) -> None:
    assert needed("1 + 1", state, "def f():\n    return TABLE", "2") == [None, None, None]


def test_a_change_of_a_package_is_nobodys_state() -> None:
    cells = ("import torch", "torch.relu = abs\ntorch.nn.x = 3", "def f():\n    return torch.relu")
    assert needed(*cells) == [{0}, set(), {0}]


def test_helpers_are_those_of_the_time_of_the_answer() -> None:
    later = "def h(a, b):\n    return 2"
    assert needed("def h(a):\n    return 1", "def f():\n    return h(1)", later) == [{0}, {0}]
    assert needed("def f():\n    return h(1)", "h(1)", later) == [{0}, set(), {0}]


def test_an_answer_in_a_condition_is_found() -> None:
    assert needed("try:\n    def f():\n        pass\nexcept Exception:\n    pass") == [None]
    assert needed("if True:\n    def f():\n        pass") == [None]
    assert needed("%%time\ndef f():\n    pass") == [{0}]
    assert needed("f = lambda x: x") == [{0}]


def test_the_future_is_kept() -> None:
    cells = ("from __future__ import annotations\nimport os", "def f(x: Nothing):\n    pass")
    assert needed(*cells) == [{0}, {0}]
    scope: dict[str, object] = {}
    exec(definitions([*cells])[0]["f"], scope)
    assert callable(scope["f"])


def test_magics_and_help_are_no_syntax_errors() -> None:
    for source in ("%matplotlib inline", "!pip \\\n  install x", "f?", "x = !ls", "t = %timeit 1"):
        assert not Cell(f"{source}\ndef f(): pass").error
    assert Cell("def f(:").error.startswith("a syntax error in line 1")
    assert Cell("x = '\0'").error
    assert Cell("return 3").error
    assert Cell("x = 1\nfrom __future__ import annotations").error


def test_what_is_missing_is_blamed_on_its_own_cell() -> None:
    def why(*sources: str) -> str:
        return why_missing([Cell(source) for source in sources], "ssf_merge", ["ssf_merge", "lora"])

    assert "its cell has a syntax error in line 2" in why("x = = 1", "\ndef ssf_merge(:")
    assert why("x = = 1", "def ssfmerge(): pass").endswith("was it renamed to ssfmerge?")
    assert why("def lora(): pass").endswith("was it renamed or its cell deleted?")


def test_cells_are_called_by_exercise_numbers() -> None:
    cells = [Cell(s) for s in ("1", "def a(): pass", "a()", "def b(:", "2")]
    assert exercise_of(cells, {"a": "9.1", "b": "9.2"}) == [
        "before the first exercise",
        "of exercise 9.1",
        "after exercise 9.1",
        "of exercise 9.2",
        "after exercise 9.2",
    ]
