"""Methods on timm's networks: every pair works whole, or `tune` refuses it in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtlite.method import METHODS, short
from vtlite.networks import NETWORKS, WORKS, examine, markdown, small_network

pytest.importorskip("timm")
TABLE = Path(__file__).parents[2] / "benchmarks" / "networks.json"
# One of each way to put a change into a network; all methods would take ten minutes.
METHODS_TRIED = ("lora", "bitfit", "ssf", "adaptformer", "vpt_deep", "spt", "partial")


@pytest.mark.parametrize("name", NETWORKS)
def test_each_pair_gives_what_the_table_says(name: str) -> None:
    backbone, table = small_network(name), json.loads(TABLE.read_text(encoding="utf-8"))
    for method in METHODS_TRIED:
        result = examine(backbone, method)
        assert result.partition(":")[0] == table[name][method].partition(":")[0], result


def test_the_table_is_whole_and_has_no_failure() -> None:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert table.keys() == NETWORKS.keys()
    for row in table.values():
        assert row.keys() <= {short(key) for key in METHODS}  # a new method waits for its run
        assert all(result == WORKS or result.startswith("refused: ") for result in row.values())


def test_the_page_is_made_from_the_table() -> None:
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    page = markdown({name: table[name] for name in NETWORKS})
    assert page == TABLE.with_suffix(".md").read_text(encoding="utf-8")
