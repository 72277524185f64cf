"""What a notebook's cells define, and which statements an answer needs to live as it did there."""

from __future__ import annotations

import ast
import difflib
import re
import symtable
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from IPython.core.inputtransformer2 import TransformerManager

# Cell magics that run their cell as Python; any other makes it something else.
_PYTHON_MAGIC = re.compile(r"\s*%%(time|capture|prun)\b.*\n?")


@dataclass
class Cell:
    """A code cell: its statements at the top level, or why it has none."""

    source: str
    statements: list[ast.stmt] = field(default_factory=list)
    error: str = ""
    binds: list[set[str]] = field(default_factory=list, init=False)  # of each statement
    changes: list[set[str]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.source = _PYTHON_MAGIC.sub("", self.source, count=1)
        try:
            # IPython's own reading of magics, `!` and `?`
            python = TransformerManager().transform_cell(self.source)
            tree = ast.parse(python)
            # What only compiling finds: a `return` outside a function, a late __future__.
            compile(tree, "cell", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            self.statements = tree.body
            # asked for every name of a notebook, so found once
            self.binds = [bound(s) for s in self.statements]
            self.changes = [changed(s) for s in self.statements]
        except SyntaxError as error:
            blank = re.match(r"(?:[ \t]*\n)*", self.source)  # IPython takes these away
            line = (error.lineno or 1) + (blank[0].count("\n") if blank else 0)
            self.error = f"a syntax error in line {line}: {error.msg}"
        except (ValueError, RecursionError, MemoryError) as error:
            self.error = f"what Python can't read ({type(error).__name__})"


Plan = list[set[int] | None]  # of each cell: the places of the statements to run; None: all


def plan(cells: list[Cell], name: str) -> Plan:
    """The statements that `name` needs, of the cells up to the last one needed. Raises `KeyError`
    where no cell defines it.

    Functions, classes, imports and constants are taken alone, as they were when the cell that
    defines `name` ran. An answer that uses more, such as a table that other cells fill, gets all
    cells before it, as in the notebook.
    """
    last = max((i for i, cell in enumerate(cells) if _places(cell, name, False)), default=None)
    if last is None:
        raise KeyError(name)
    imported = {
        name
        for cell in cells
        for statement, binds in zip(cell.statements, cell.binds, strict=True)
        if _imports(statement)
        for name in binds
    }
    kept: list[set[int]] = [set() for _ in cells]
    wanted, seen, end, whole = [name], {name}, last, False
    while wanted:
        one = wanted.pop()
        # What a cell puts into a package is nobody's state: `torch.relu = ...` is left out.
        found = [_places(cell, one, one not in imported) for cell in cells]
        # A helper of a later cell is used only where there is none before.
        if not any(found[: last + 1]) and any(found):
            end = max(end, next(i for i, places in enumerate(found) if places))
        for i, places in enumerate(found[: end + 1]):
            if i > last and any(found[: last + 1]):
                break
            for place in places:
                statement = cells[i].statements[place]
                kept[i].add(place)
                whole = whole or not _plain(statement, cells[: end + 1])
                new = {n for n in used(statement) if n not in seen}
                seen |= new
                wanted += sorted(new)
    if whole:
        return [None] * (end + 1)
    for i, cell in enumerate(cells[: end + 1]):
        kept[i] |= {place for place, s in enumerate(cell.statements) if _star(s)}
    return list(kept[: end + 1])


def definitions(sources: list[str]) -> tuple[dict[str, str], str]:
    """For each name bound at the top of the notebook, the code that binds it with all it needs; and
    a word on the first cell without sense. An import that fails is no reason to stop."""
    cells = [Cell(source) for source in sources]
    found = {}
    for name in dict.fromkeys(n for cell in cells for binds in cell.binds for n in binds):
        statements = [
            statement
            for cell, kept in zip(cells, plan(cells, name), strict=False)
            for place, statement in enumerate(cell.statements)
            if kept is None or place in kept
        ]
        imports = [s for s in statements if _imports(s)]
        future = [s for s in imports if _star(s) and ast.unparse(s).startswith("from __future__")]
        safe = [
            ast.Try([s], [ast.ExceptHandler(None, None, [ast.Pass()])], [], [])
            for s in imports
            if s not in future
        ]
        rest = [s for s in statements if s not in imports and (bound(s) or changed(s))]
        code = [ast.unparse(ast.fix_missing_locations(s)) for s in [*future, *safe, *rest]]
        found[name] = "\n".join(code)
    broken = next((f"code cell {i} has {c.error}" for i, c in enumerate(cells, 1) if c.error), "")
    return found, broken


def why_missing(cells: list[Cell], name: str, others: Iterable[str]) -> str:
    """A sentence on an exercise that no cell defines."""
    for cell in cells:
        if cell.error and re.search(rf"\b(def|class)\s+{re.escape(name)}\b", cell.source):
            return f"{name} is not defined in the notebook: its cell has {cell.error}"
    defined = {
        s.name for cell in cells for s in cell.statements if isinstance(s, ast.FunctionDef)
    } - {*others}
    near = difflib.get_close_matches(name, sorted(defined), 1, 0.7)
    hint = f"was it renamed to {near[0]}?" if near else "was it renamed or its cell deleted?"
    return f"{name} is not defined in the notebook; {hint}"


class Only(ast.NodeTransformer):
    """For IPython's `ast_transformers`: of a cell, only the statements at `places` (None: all), and
    no call of a check that the notebook makes itself."""

    def __init__(self) -> None:
        self.places: set[int] | None = None
        self.checks: Collection[str] = ()

    def visit_Module(self, node: ast.Module) -> ast.Module:
        node.body = [
            statement
            for place, statement in enumerate(node.body)
            if (self.places is None or place in self.places) and not self._checks(statement)
        ]
        return node

    def _checks(self, statement: ast.stmt) -> bool:
        """`check.NAME(...)`."""
        return (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Call)
            and isinstance(statement.value.func, ast.Attribute)
            and statement.value.func.attr in self.checks
        )


def _places(cell: Cell, name: str, parts: bool) -> list[int]:
    """Where a cell gives `name` a value or, with `parts`, changes a part of it."""
    return [
        place
        for place, (binds, changes) in enumerate(zip(cell.binds, cell.changes, strict=True))
        if name in binds or (parts and name in changes)
    ]


def _imports(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Import | ast.ImportFrom)


def _star(statement: ast.stmt) -> bool:
    """What may matter to any name: `from x import *` and `from __future__ import ...`."""
    return isinstance(statement, ast.ImportFrom) and (
        statement.module == "__future__" or statement.names[0].name == "*"
    )


def bound(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top level gives a value."""
    found: set[str] = set()
    for node in _top(statement):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Import() | ast.ImportFrom():
                found |= {a.asname or a.name.split(".")[0] for a in node.names if a.name != "*"}
            case ast.Name(ctx=ast.Store()):
                found.add(node.id)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                found.add(name)
    return found


def changed(statement: ast.stmt) -> set[str]:
    """The names of which a statement sets a part: x.a = ..., x[0] = ..."""
    found = set()
    for node in _top(statement):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            root: ast.expr = node
            while isinstance(root, ast.Attribute | ast.Subscript):
                root = root.value
            if isinstance(root, ast.Name):
                found.add(root.id)
    return found


def _top(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a statement that run when it runs: not what is inside functions and classes."""
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        return
    for child in ast.iter_child_nodes(node):
        yield from _top(child)


def _plain(statement: ast.stmt, cells: list[Cell]) -> bool:
    """Whether a statement means the same alone: a definition, an import, a constant."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return True
        case ast.Import() | ast.ImportFrom():
            return True
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=value)
            | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
        ):
            if isinstance(value, ast.Lambda):
                return True
            try:
                literal = ast.literal_eval(value)
            except (ValueError, TypeError, SyntaxError, RecursionError):
                return False
            # A list or dict may be changed by whoever names it at the top level.
            return not isinstance(literal, list | dict | set) or not any(
                name in _named(other)
                for cell in cells
                for other in cell.statements
                if other is not statement
            )
    return False


def _named(statement: ast.stmt) -> set[str]:
    return {node.id for node in _top(statement) if isinstance(node, ast.Name)}


def used(statement: ast.stmt) -> list[str]:
    """The names that a statement, and what it defines, takes from the top of the notebook."""
    try:
        return global_names(symtable.symtable(ast.unparse(statement), "cell", "exec"))
    except (ValueError, SyntaxError, RecursionError):  # some f-strings can't be written again
        return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]


def global_names(table: symtable.SymbolTable) -> list[str]:
    """The names that a piece of code takes from the top of the notebook; a function's own variables
    are not among them."""
    top = table.get_type() == "module"
    found = [
        s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())
    ]
    return found + [name for child in table.get_children() for name in global_names(child)]


def exercise_of(cells: list[Cell], numbers: Mapping[str, str]) -> list[str]:
    """Where each cell stands, in the numbers that a student knows: "of exercise 5.2", "after
    exercise 5.2", "before the first exercise"."""
    places, last = [], ""
    for cell in cells:
        own = [number for name, number in numbers.items() if _places(cell, name, False)]
        own += [n for name, n in numbers.items() if re.search(rf"\bdef {name}\b", cell.source)]
        if own:
            last = own[0]
            places.append(f"of exercise {last}")
        else:
            places.append(f"after exercise {last}" if last else "before the first exercise")
    return places
