"""What runs one submission, in a process of its own: `python -m vtlite.classroom.worker` reads a
request on stdin, answers on stdout.

The notebook is executed twice by nbclient. Once as it is, to tell the student which cells stop.
Then only its definitions (imports, functions, classes, and the names they use), in a fresh kernel,
with the grader's own checks: so nothing that a notebook prints, replaces or deletes reaches its
marks.
"""

from __future__ import annotations

import ast
import json
import secrets
import symtable
import sys
from collections.abc import Iterator
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode


def run(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """{"notebook", "exercises": [name], "cell_seconds", "scratch"} -> {"cells": [problem per code
    cell]}, then {name: [ok, words]}, one by one.

    What is known is said at once, so that it survives when the process has to be stopped.
    """
    notebook = nbformat.read(request["notebook"], as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    execute(notebook, request)
    yield {"cells": [problem(cell) for cell in code]}
    defined, broken = definitions([cell.source for cell in code])
    for name in request["exercises"]:
        if name not in defined:
            why = f"{name} is not defined in the notebook" + (
                f"; {broken}" if broken else "; was it renamed or its cell deleted?"
            )
            yield {name: [False, why]}
    wanted = [name for name in request["exercises"] if name in defined]
    # One kernel for all exercises; after one that took too long the kernel is gone, and the rest
    # get a new one.
    while wanted:
        done = grade(wanted, defined, request)
        yield done
        wanted = [name for name in wanted if name not in done]


def execute(notebook: NotebookNode, request: dict[str, Any]) -> None:
    manager = AsyncKernelManager(
        kernel_name="python3", transport="ipc"
    )  # sockets in the file system: works without a network
    options: dict[str, Any] = {
        "timeout": request["cell_seconds"],
        "allow_errors": True,
        "interrupt_on_timeout": True,
    }
    client = NotebookClient(
        notebook, km=manager, resources={"metadata": {"path": request["scratch"]}}, **options
    )
    try:
        client.execute()
    except Exception as error:  # a dead kernel; the cells that did run keep their outputs
        notebook.metadata["stopped"] = (
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )


def problem(cell: NotebookNode) -> str:
    """Why a cell stopped, in a line, or nothing."""
    for output in cell.get("outputs", []):
        if output.output_type == "error":
            if output.ename == "KeyboardInterrupt":
                return "stopped: it ran longer than a cell may"
            return f"{output.ename}: {output.evalue}"[:2000]
    return ""


def definitions(cells: list[str]) -> tuple[dict[str, str], str]:
    """For each name defined at the top of the notebook, the code that defines it with all it needs;
    and a word on cells without sense."""
    statements: dict[str, list[ast.stmt]] = {}
    imports: list[ast.stmt] = []
    broken = ""
    for number, source in enumerate(cells, 1):
        plain = "\n".join(
            "" if line.lstrip().startswith(("%", "!", "?")) else line
            for line in source.splitlines()
        )
        try:
            tree = ast.parse(plain)
        except SyntaxError as error:
            broken = (
                broken
                or f"code cell {number} has a syntax error in line {error.lineno}: {error.msg}"
            )
            continue
        for statement in tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                imports.append(statement)
            for name in bound(statement):
                # A redefinition replaces; an assignment may build on what the name was before.
                keep = statements.get(name, []) if isinstance(statement, ast.AugAssign) else []
                statements[name] = [*keep, statement]
    safe = [
        ast.unparse(ast.Try([i], [ast.ExceptHandler(None, None, [ast.Pass()])], [], []))
        for i in imports
    ]
    return {name: "\n".join([*safe, *needed(name, statements)]) for name in statements}, broken


def bound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets = (
        statement.targets
        if isinstance(statement, ast.Assign)
        else [getattr(statement, "target", None)]
    )
    plain = [
        t
        for target in targets
        for t in (target.elts if isinstance(target, ast.Tuple) else [target])
    ]
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return []
    return [target.id for target in plain if isinstance(target, ast.Name)]


def needed(name: str, statements: dict[str, list[ast.stmt]]) -> list[str]:
    """The source of `name` after that of every other top-level name it uses, directly or not."""
    order: list[ast.stmt] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        for statement in statements.get(name, []):
            for other in global_names(symtable.symtable(ast.unparse(statement), "cell", "exec")):
                visit(other)
            if statement not in order:
                order.append(statement)

    visit(name)
    return [ast.unparse(ast.fix_missing_locations(statement)) for statement in order]


def global_names(table: symtable.SymbolTable) -> list[str]:
    """The names that a piece of code takes from the top of the notebook; a function's own variables
    are not among them."""
    top = table.get_type() == "module"
    found = [
        s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())
    ]
    return found + [name for child in table.get_children() for name in global_names(child)]


def grade(
    names: list[str], defined: dict[str, str], request: dict[str, Any]
) -> dict[str, list[Any]]:
    """Run the grader's check of each name in one fresh kernel; stops at the first that kills it or
    takes too long."""
    cells = [nbformat.v4.new_code_cell("import vtlite.checks, sys, traceback")]
    tokens = {}
    for name in names:
        tokens[name] = secrets.token_hex(16)
        cells.append(
            nbformat.v4.new_code_cell(
                _CHECK.format(code=defined[name], name=name, token=tokens[name])
            )
        )
    notebook = nbformat.v4.new_notebook(cells=cells)
    execute(notebook, request)
    done: dict[str, list[Any]] = {}
    for name, cell in zip(names, cells[1:], strict=True):
        text = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        if f"\n{tokens[name]} " in text:
            verdict, _, words = text.split(f"\n{tokens[name]} ")[-1].partition(" ")
            done[name] = [verdict == "passed", words.strip()]
            continue
        why = (
            problem(cell) or str(notebook.metadata.get("stopped", "")) or "the check did not finish"
        )
        dead = "DeadKernel" in why or cell.execution_count is None
        why = (
            "it ran longer than a check may"
            if why.startswith("stopped") or "Timeout" in why
            else why
        )
        done[name] = [False, "it ended its process" if dead else why]
        break
    return done


# Each exercise in its own namespace. BaseException: a student's sys.exit is an answer like any
# other.
_CHECK = """
__scope = {{"__name__": "student"}}
try:
    exec({code!r}, __scope)
    vtlite.checks.{name}(__scope[{name!r}])
    __verdict = "passed", ""
except KeyboardInterrupt:
    raise
except vtlite.checks.CheckFailed as error:
    __verdict = "failed", str(error)
except BaseException as error:
    __verdict = "failed", "".join(traceback.format_exception_only(error)).strip()
print("\\n{token}", *__verdict)
"""


if __name__ == "__main__":
    answer = sys.stdout
    sys.stdout = sys.stderr  # only the answer goes to stdout
    for event in run(json.load(sys.stdin)):
        print(json.dumps(event), file=answer, flush=True)
