"""What `python -m vtlite list` and `python -m vtlite show NAME` print, and the table of methods in
README.md."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
from functools import cache
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from vtlite.backbones import create_backbone
from vtlite.method import count_parameters
from vtlite.methods import METHODS, Method
from vtlite.storage import VTError, atomic_write
from vtlite.taxonomy import (
    GROUPS,
    LEAVES,
    System,
    find_system,
    nearest_implemented,
    status,
    systems,
)
from vtlite.tuning import tune

COUNTED_ON = "vit_base_patch16_224"  # the backbone on which papers count their parameters
_MARKS = {"implemented": "", "planned": "*", "row": "~"}


def list_systems(part: str | None = None, as_json: bool = False) -> None:
    """Print the survey's tree, or one group or leaf of it ("adapter", "adapter/parallel"), as a
    tree or as a JSON list.

    Raises `VTError` for a name that is no group or leaf.
    """
    found = systems(part)
    if as_json:
        print(json.dumps([_record(system) for system in found], indent=2))
        return
    output: list[RenderableType] = []
    for group in GROUPS:
        tree = Tree(
            Text.assemble(
                (f"{group.section} {group.title}", "bold"),
                " (",
                (group.path, "cyan"),
                f"): {group.idea}",
            )
        )
        for leaf in group.leaves:
            if members := [system for system in found if system.leaf == leaf.path]:
                title = Text.assemble(
                    (leaf.title, "bold"), " (", (leaf.path, "cyan"), f"): {leaf.idea}"
                )
                tree.add(
                    _table(members) if leaf.path == group.path else Group(title, _table(members))
                )
        if tree.children:
            output += [tree, ""]
    counts = {state: sum(status(system) == state for system in found) for state in _MARKS}
    _print(
        *output,
        f"Implemented: {counts['implemented']}. Planned (*): {counts['planned']}. Described only (~"
        f" nearest method): {counts['row']}.",
        "Details: python -m vtlite show NAME",
    )


def show_method(name: str) -> None:
    """Print all there is to know of a method or system, or list a group or leaf. Raises `VTError`
    with the nearest names."""

    if name in {group.path for group in GROUPS} | {leaf.path for leaf in LEAVES}:
        list_systems(name)
        return
    system = find_system(name)
    titles = {leaf.path: leaf.title for leaf in LEAVES}
    group = next(group for group in GROUPS if system.leaf.startswith(group.path))
    place = f"{group.section} {group.title}" + (
        f", {titles[system.leaf]}" if system.leaf != group.path else ""
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="cyan", no_wrap=True)
    facts.add_column()
    if system.key in METHODS:
        cls = METHODS[system.key]
        idea, formula, notes = read_docstring(cls)
        facts.add_row("idea", idea)
        facts.add_row("formula", Text(formula))
        facts.add_row("notes", notes)
        for field, default, meaning in read_settings(cls):
            facts.add_row(
                "setting",
                Text.assemble((f"{field} = {default}", "bold"), f"  {meaning}" if meaning else ""),
            )
        count = count_on_vit_b16(cls.key)
        facts.add_row(
            "parameters",
            (
                f"{count:,} on ViT-B/16, without the head"
                if count is not None
                else "not counted: needs another backbone"
            ),
        )
        facts.add_row(
            "at the start",
            (
                f"differs from the backbone: {cls.starts_elsewhere}"
                if cls.starts_elsewhere
                else "equals the backbone"
            ),
        )
        facts.add_row(
            "merges",
            f"no: {cls.unmergeable}" if cls.unmergeable else "yes, into the plain backbone",
        )
        facts.add_row("file", source_file(cls))
    else:
        near = nearest_implemented(system)
        facts.add_row("idea", system.idea)
        facts.add_row(
            "status",
            "planned, not implemented yet" if system.key else "described here, not implemented",
        )
        facts.add_row(
            "nearest",
            f"{near}: python -m vtlite show {near.rsplit('/', 1)[-1]}" if near else "none",
        )
    if system.paper:
        facts.add_row("paper", f"{system.paper}, {system.venue} {system.year}")
    if system.arxiv:
        facts.add_row("arXiv", f"https://arxiv.org/abs/{system.arxiv}")
    if system.extra:
        facts.add_row("note", "an addition to the survey")
    _print(Text(system.name, "bold"), place, facts)


def methods_table() -> str:
    """The implemented methods as a Markdown table, in the taxonomy's order."""

    groups, leaves = (
        {group.path: group.title for group in GROUPS},
        {leaf.path: leaf.title for leaf in LEAVES},
    )
    lines = [
        "| Group | Leaf | Method | Paper | Parameters on ViT-B/16 | Merges |",
        "|---|---|---|---|---:|---|",
    ]
    for system in systems():
        if cls := METHODS.get(system.key or ""):
            group, leaf = groups[system.leaf.split("/")[0]], leaves[system.leaf]
            paper = f"{system.name}, {system.venue} {system.year}"
            count = count_on_vit_b16(cls.key)
            cells = [
                group,
                leaf if leaf != group else "",
                f"[`{system.short}`]({source_file(cls)})",
                f"[{paper}](https://arxiv.org/abs/{system.arxiv})" if system.arxiv else paper,
                "n/a" if count is None else f"{count:,}",
                "no" if cls.unmergeable else "yes",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def update_readme(path: str | Path) -> None:
    """Write `methods_table()` between the two markers of a Markdown file. Raises `VTError` if it
    has not exactly one pair of them."""
    write_between(path, "methods", methods_table())


def write_between(path: str | Path, name: str, table: str) -> None:
    """Replace what is between <!-- name:begin --> and <!-- name:end --> in a Markdown file. Raises
    `VTError` without exactly one such pair."""

    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = Path(path).read_text(encoding="utf-8")
    if not (text.count(begin) == text.count(end) == 1 and text.index(begin) < text.index(end)):
        raise VTError(
            f"expected one {begin} and one {end} after it in {path}, found another arrangement; put"
            " them where the table belongs"
        )
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    with atomic_write(path) as temporary:
        temporary.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


@cache
def count_on_vit_b16(key: str) -> int | None:
    """Trainable parameters of a method with its default settings on ViT-B/16, beside a linear head;
    None if it needs another backbone.

    Counted on the meta device: no memory, no weights, some milliseconds.
    """

    try:
        model = tune(create_backbone(COUNTED_ON, device="meta"), key, num_classes=2)
    except VTError:
        return None
    return count_parameters(model)[0] - 2 * (model.backbone.num_features + 1)


def read_docstring(cls: type[Method]) -> tuple[str, str, str]:
    """(idea, formula, notes) of a method: the first paragraph of its docstring, the indented ones,
    and the others as running text."""
    first, *others = (inspect.getdoc(cls) or "").split("\n\n")
    formula = [inspect.cleandoc(text) for text in others if text.startswith("    ")]
    notes = [" ".join(text.split()) for text in others if not text.startswith("    ")]
    return " ".join(first.split()), "\n".join(formula), "\n".join(notes)


def read_settings(cls: type[Method]) -> list[tuple[str, str, str]]:
    """(name, default, meaning) of each setting; the meaning is the comment behind the field, or the
    one above it."""
    meanings: dict[str, str] = {}
    for base in (base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)):
        above: list[str] = []
        for line in map(str.strip, inspect.getsource(base).splitlines()):
            field, behind = line.partition(":")[0], line.partition("  # ")[2]
            if field.isidentifier():
                meanings[field] = behind or " ".join(above)
            above = [*above, line[2:]] if line.startswith("# ") else []
    settings = [field for field in dataclasses.fields(cls) if field.init]
    return [(field.name, _default(field), meanings.get(field.name, "")) for field in settings]


def source_file(cls: type[Method]) -> str:
    """Where a method is written, from the root of the repository:
    "vtlite/methods/parameter/weight/lora.py"."""
    return cls.__module__.replace(".", "/") + ".py"


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return (
        repr(field.default_factory())
        if field.default_factory is not dataclasses.MISSING
        else "(required)"
    )


def _record(system: System) -> dict[str, object]:
    return {**dataclasses.asdict(system), "status": status(system)}


def _table(members: list[System]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(max_width=28)
    table.add_column()
    for system in members:
        state = status(system)
        near = (nearest_implemented(system) or "").rsplit("/", 1)[-1]
        handle = f"~ {near}" if state == "row" else system.short + _MARKS[state]
        table.add_row(handle, f"{system.name} {system.year or ''}".strip(), system.idea)
    return table


def _print(*output: RenderableType) -> None:
    # Not rich's own guess for a pipe, which is 80: wide enough for a line per system, unless
    # COLUMNS says otherwise.
    console = Console(
        width=shutil.get_terminal_size((140, 24)).columns, highlight=False, markup=False
    )
    with console.capture() as captured:
        console.print(*output, sep="\n")
    for line in captured.get().splitlines():
        print(line.rstrip())  # tables are padded with spaces, which help nobody in a file
