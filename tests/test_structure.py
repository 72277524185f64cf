"""The shape of the package: what imports what."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imports(path: Path) -> set[str]:
    """The modules of the package that a file names anywhere: at its top, in functions, for
    types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def graph() -> dict[str, set[str]]:
    """Each module of vtlite -> the modules that it imports, by files (a package is its
    __init__)."""
    files = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in (ROOT / "vtlite").rglob("*.py")
    }
    edges = {}
    for name, path in files.items():
        named = imports(path)
        edges[name] = {module for module in named if module in files and module != name}
    del edges["vtlite"]  # the whole package: everything below it, for its users
    return edges


def circle(edges: dict[str, set[str]]) -> list[str]:
    """One circle of imports, or nothing."""
    state: dict[str, int] = {}
    path: list[str] = []

    def visit(name: str) -> list[str]:
        state[name] = 1
        path.append(name)
        for other in sorted(edges.get(name, ())):
            if state.get(other) == 1:
                return [*path[path.index(other) :], other]
            if other not in state and (found := visit(other)):
                return found
        path.pop()
        state[name] = 2
        return []

    return next(
        (found for name in sorted(edges) if name not in state and (found := visit(name))), []
    )


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_imports_run_in_a_circle() -> None:
    """Neither at the top of a file nor inside a function: there is nothing that such an import
    would have to break."""
    assert circle(graph()) == []


def test_methods_stand_above_training_and_nothing_general_knows_a_method() -> None:
    edges = graph()
    for name in ("tuning", "training", "method", "task", "journal"):
        below = edges[f"vtlite.{name}"]
        assert not {other for other in below if other.startswith("vtlite.methods")}, name
    for name in ("tuning", "training", "bench", "tour"):
        tree = ast.parse((ROOT / f"vtlite/{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "type" or not compares(node, tree), name
        modules = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        assert not [m for m in modules if (m or "").startswith("vtlite.methods.")], name


def compares(call: ast.Call, tree: ast.AST) -> bool:
    """Whether `type(...)` is asked about an override or a class: `type(x).loss is ...`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(inner is call for inner in ast.walk(node)):
            return True
    return False
