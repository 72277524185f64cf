"""What the list and show commands print, and that the README's table is theirs."""

import json
from pathlib import Path

import pytest

from vtlite import show
from vtlite.methods import METHODS
from vtlite.show import (
    count_on_vit_b16,
    list_systems,
    methods_table,
    read_docstring,
    read_settings,
    show_method,
    update_readme,
)
from vtlite.storage import VTError
from vtlite.taxonomy import GROUPS, LEAVES, SYSTEMS, find_system

BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"
README = Path(__file__).parents[1] / "README.md"
Capture = pytest.CaptureFixture[str]


def printed(capsys: Capture, *args: str) -> str:
    """The output of `show`, or of `list` without arguments, with its line breaks undone."""
    show_method(*args) if args else list_systems()
    return " ".join(capsys.readouterr().out.split())


def test_the_list_names_every_group_leaf_and_system(capsys: Capture) -> None:
    list_systems()
    text = capsys.readouterr().out
    for group in GROUPS:
        assert f"{group.section} {group.title} ({group.path})" in text
    for leaf in LEAVES:
        assert f"({leaf.path})" in text
    for system in SYSTEMS:
        assert system.short in text
    assert f"Implemented: {len(METHODS)}." in text


def test_the_list_is_plain_text_in_a_pipe_and_keeps_to_the_width(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    for columns in (70, 140):
        monkeypatch.setenv("COLUMNS", str(columns))
        list_systems()
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= columns
        assert all(line == line.rstrip() and "\x1b" not in line for line in lines)


def test_the_list_of_one_group_or_leaf(capsys: Capture) -> None:
    list_systems("adapter")
    text = capsys.readouterr().out
    assert "adaptformer" in text
    assert "lora" not in text
    list_systems("parameter/bias")
    text = capsys.readouterr().out
    assert "bitfit" in text
    assert "lora" not in text


def test_the_list_as_json(capsys: Capture) -> None:
    list_systems("parameter", as_json=True)
    records = {record["name"]: record for record in json.loads(capsys.readouterr().out)}
    assert records["LoRA"]["key"] == "parameter/weight/lora"
    assert records["LoRA"]["status"] == "implemented"
    assert records["LoRA"]["arxiv"] == "2106.09685"
    assert records["PHNNs"]["status"] == "row"
    assert records["DoRA"]["extra"] is True
    assert not any(record["leaf"].startswith("adapter") for record in records.values())


def test_showing_a_method(capsys: Capture) -> None:
    text = printed(capsys, "lora")
    for part in (
        "LoRA",
        "3.4 Parameter tuning, Weight part",
        "y = x W_0^T + b",
        "rank = 8",
        "https://arxiv.org/abs/2106.09685",
        "vtlite/methods/parameter/weight/lora.py",
        "294,912 on ViT-B/16, without the head",
        "merges yes",
    ):
        assert part in text
    assert printed(capsys, "parameter/weight/lora") == printed(capsys, "LoRA") == text


@pytest.mark.parametrize("key", METHODS)
def test_every_method_can_be_shown(key: str, capsys: Capture) -> None:
    text = printed(capsys, key)
    for label in ("idea", "formula", "parameters", "at the start", "merges", "file"):
        assert label in text
    assert (Path(show.__file__).parents[1] / show.source_file(METHODS[key])).is_file()


@pytest.mark.parametrize("key", METHODS)
def test_every_method_has_an_idea_a_formula_and_notes(key: str) -> None:
    idea, formula, notes = read_docstring(METHODS[key])
    assert idea.endswith(".")
    assert formula
    assert find_system(key).arxiv is None or "arXiv" in notes  # a source to look up


def test_the_meaning_of_a_setting_is_its_comment() -> None:
    settings = {
        name: (default, meaning)
        for name, default, meaning in read_settings(METHODS["parameter/weight/lora"])
    }
    assert settings["rank"][0] == "8"
    assert all(meaning for _, meaning in settings.values())


def test_showing_a_row_names_its_paper_and_the_nearest_method(capsys: Capture) -> None:
    text = printed(capsys, "DnA")
    assert "Low-Rank Decomposition and Alignment, ECCV 2022" in text
    assert "not implemented" in text
    assert "python -m vtlite show lora" in text
    assert "arxiv.org" not in text


def test_showing_a_group_lists_it(capsys: Capture) -> None:
    list_systems("adapter/mix")
    listed = " ".join(capsys.readouterr().out.split())
    assert printed(capsys, "adapter/mix") == listed


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(VTError, match="did you mean 'adaptformer'"):
        show_method("adapformer")
    with pytest.raises(VTError, match="did you mean 'remapping'"):
        list_systems("remaping")


@pytest.mark.parametrize(
    ("key", "count"),
    [("finetuning/full", 85_798_656), ("finetuning/linear", 0), ("parameter/weight/lora", 294_912)],
)
def test_parameters_are_counted_without_the_head(key: str, count: int) -> None:
    assert count_on_vit_b16(key) == count


def test_the_table_has_a_row_per_method_and_links_that_lead_somewhere() -> None:
    head, rule, *rows = methods_table().splitlines()
    assert len(rows) == len(METHODS)
    assert {row.count("|") for row in (head, rule, *rows)} == {7}
    for key in METHODS:
        assert f"](vtlite/methods/{key}.py)" in methods_table()
    assert "(https://arxiv.org/abs/2106.09685) | 294,912 | yes |" in methods_table()


def test_updating_a_readme_replaces_only_the_table(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n", encoding="utf-8")
    update_readme(path)
    expected = f"before\n\n{BEGIN}\n{methods_table()}\n{END}\n\nafter\n"
    assert path.read_text(encoding="utf-8") == expected
    update_readme(path)
    assert path.read_text(encoding="utf-8") == expected


@pytest.mark.parametrize(
    "text", ["no markers", f"{BEGIN} only", f"{END} {BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"]
)
def test_a_readme_without_one_pair_of_markers_is_refused_and_kept(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "README.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(VTError, match="expected one <!-- methods:begin -->"):
        update_readme(path)
    assert path.read_text(encoding="utf-8") == text


def test_the_readme_has_the_current_table() -> None:
    table = README.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert table == f"\n{methods_table()}\n", (
        "run: python -c 'import vtlite.show as s; s.update_readme(\"README.md\")'"
    )
