"""Small mistakes, made by a program: each mutant of a function differs from it in one place."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# What is easily written for what: operators, then methods, functions, types and modes.
OPERATORS = {
    "+": "- *",
    "-": "+ *",
    "*": "+ / @",
    "/": "* - //",
    "//": "/ * %",
    "**": "* /",
    "@": "* +",
    "&": "| ^",
    "<": "<= > >= == !=",
    ">": ">= < <= == !=",
    "<=": "< >= > ==",
    ">=": "> <= < ==",
    "==": "!= < > <= >=",
    "!=": "==",
}
LOOKALIKES = {
    "all": "any",
    "amax": "amin sum mean",
    "any": "all",
    "cat": "stack",
    "clone": "detach contiguous",
    "cos": "sin",
    "detach": "clone",
    "endswith": "startswith __contains__",
    "eval": "train",
    "exp": "exp2 expm1",
    "float32": "float64 float16",
    "float64": "float32 float16",
    "is_floating_point": "is_complex is_contiguous",
    "items": "keys",
    "mT": "T",
    "maximum": "minimum",
    "named_parameters": "named_buffers",
    "new_empty": "new_zeros",
    "no_grad": "enable_grad inference_mode",
    "norm": "sum",
    "numel": "dim",
    "reshape": "view",
    "softmax": "log_softmax",
    "split": "chunk",
    "square": "abs sqrt",
    "startswith": "endswith __contains__",
    "sum": "mean prod",
    "train": "eval",
    "zeros": "ones empty",
}
MODULES = ("torch", "math", "nn", "F", "np")


@dataclass(frozen=True)
class Mutant:
    """`was` and `line` are the statement before and after (of a block, its first line), `change`
    is what differs in it, as "before -> after"."""

    was: str
    line: str
    change: str
    source: str


def mutants(source: str) -> list[Mutant]:
    """Every mutant of the one function that `source` defines, in the order of its code, none twice.

    Its signature, docstring and annotations stay as they are.
    """
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    function.body = function.body[ast.get_docstring(function) is not None :]
    arguments = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    stored = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and _is_stored(n)}
    names = sorted(arguments | stored)
    seen, found = {_in_order(function)}, []
    for owner, holder, place, field, node in _places(function):
        was = _first_line(owner)
        for text in _alternatives(node, field, names):
            other = _parsed(text, node)
            _put(holder, place, other)
            source, line = ast.unparse(function), _first_line(other if node is owner else owner)
            key = _in_order(function)
            _put(holder, place, node)
            if key not in seen and _compiles(source):
                seen.add(key)
                found.append(
                    Mutant(was, line, f"{_first_line(node)} -> {_first_line(other)}", source)
                )
    return found


def _in_order(tree: ast.AST) -> str:
    """The code with the two sides of every sum and product in the order of the alphabet: what
    differs in this order alone is no mutant."""
    tree = ast.parse(ast.unparse(tree))
    for node in reversed(list(ast.walk(tree))):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
            node.left, node.right = sorted((node.left, node.right), key=ast.unparse)
    return ast.unparse(tree)


def _places(node: ast.AST, owner: ast.AST | None = None) -> Iterator[tuple[Any, ...]]:
    """(its statement, what holds it, under which name or number, which field that is, itself) for
    every node that may change."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns") or isinstance(value, ast.arguments):
            continue
        for i, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST):
                continue
            statement = child if isinstance(child, ast.stmt) else owner
            holder, place = (value, i) if isinstance(value, list) else (node, field)
            yield statement, holder, place, field, child
            if not _is_number(child):  # the 1 of -1 is no number of its own
                yield from _places(child, statement)


def _alternatives(node: ast.AST, field: str, names: list[str]) -> Iterator[str]:
    """The code that might stand in the place of `node` by mistake."""
    if isinstance(node, ast.stmt):
        yield from _statements(node)
        return
    if field in ("test", "ifs"):
        yield from (f"not ({ast.unparse(node)})", "True", "False")
    if field == "iter":
        yield from (f"[*{ast.unparse(node)}][1:]", f"[*{ast.unparse(node)}][:-1]")
    if _is_number(node):
        n = ast.literal_eval(ast.unparse(node))
        yield from map(repr, {0, 1, 2, -1, n + 1, n - 1, -n, 2 * n, n / 2} - {n})
        return
    match node:
        case ast.Constant(bool() as value):
            yield repr(not value)
        case ast.Constant(str() as value):
            yield from map(repr, (value[:-1], value[1:], value[::-1]))
        case ast.Name(id, ast.Load()) if id in names:
            yield from names
        case ast.BinOp(left, op, right):
            yield from _operators(left, _sign(op), right)
        case ast.Compare(left, [op], [right]):
            yield from _operators(left, _sign(op), right)
            yield f"not {ast.unparse(node)}"
        case ast.BoolOp(op, [left, right]):
            a, b = _each([left, right])
            yield from (f"{a} or {b}", f"{a} and {b}", a, b)
        case ast.UnaryOp(_, operand):
            yield ast.unparse(operand)
        case ast.IfExp(test, body, orelse):
            t, a, b = _each([test, body, orelse])
            yield from (f"{b} if {t} else {a}", a, b)
        case ast.Call():
            yield from _calls(node)
        case ast.Attribute(value, attr, ast.Load()):
            of = ast.unparse(value)
            yield from (f"({of}).{name}" for name in LOOKALIKES.get(attr, "").split())
            if of not in MODULES:
                yield of
        case ast.Subscript(value, _, ast.Load()):
            yield ast.unparse(value)
        case ast.Slice(lower, upper):
            a, b = (ast.unparse(bound) if bound else "" for bound in (lower, upper))
            yield from (f":{b}", f"{a}:", f"{a or 0} + 1:{b}")
            yield from (f"{a} - 1:{b}",) if a else ()
            yield from (f"{a}:{b} + 1", f"{a}:{b} - 1") if b else (f"{a}:-1",)
        case ast.Tuple(parts, ast.Load()) | ast.List(parts, ast.Load()):
            for other in _shuffled([ast.unparse(part) for part in parts]):
                inside = "".join(f"{part}, " for part in other)
                yield f"[{inside}]" if isinstance(node, ast.List) else inside or "()"
        case ast.Dict(keys, values):
            for other in _shuffled([ast.unparse(value) for value in values]):
                pairs = zip(map(ast.unparse, filter(None, keys)), other, strict=False)
                yield "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"


def _statements(node: ast.stmt) -> Iterator[str]:
    yield "pass"
    match node:
        case ast.With(_, body):
            yield ast.unparse(ast.If(ast.Constant(True), body, []))
        case ast.AugAssign(target, op, value):
            to, by = ast.unparse(target), ast.unparse(value)
            yield from (f"{to} {sign}= {by}" for sign in OPERATORS[_sign(op)].split())
            yield f"{to} = {by}"


def _operators(left: ast.AST, sign: str, right: ast.AST) -> Iterator[str]:
    a, b = _each([left, right])
    yield from (f"{a} {other} {b}" for other in OPERATORS.get(sign, "").split())
    yield from (a, b) if sign in ("==", "is", "is not") else (f"{b} {sign} {a}", a, b)


def _calls(node: ast.Call) -> Iterator[str]:
    """Without the call, without one argument or keyword, with two exchanged."""
    arguments = [ast.unparse(a) for a in node.args]
    keywords = [f"{k.arg}={ast.unparse(k.value)}" for k in node.keywords]
    f = ast.unparse(node.func)
    if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) not in MODULES:
        yield ast.unparse(node.func.value)
    elif arguments:
        yield arguments[0].removeprefix("*")
    for fewer in _shuffled(arguments):
        yield f"{f}({', '.join(fewer + keywords)})"
    for i in range(len(keywords)):
        yield f"{f}({', '.join(arguments + keywords[:i] + keywords[i + 1 :])})"


def _shuffled(parts: list[str]) -> Iterator[list[str]]:
    """Without one of them, and with two neighbours exchanged."""
    for i in range(len(parts)):
        yield parts[:i] + parts[i + 1 :]
    for i in range(len(parts) - 1):
        yield [*parts[:i], parts[i + 1], parts[i], *parts[i + 2 :]]


def _each(nodes: list[ast.AST]) -> list[str]:
    return [f"({ast.unparse(node)})" for node in nodes]


def _sign(op: Any) -> str:
    a, b = ast.Name("a"), ast.Name("b")
    two = ast.BinOp(a, op, b) if isinstance(op, ast.operator) else ast.Compare(a, [op], [b])
    return ast.unparse(two)[2:-2]


def _is_number(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _is_stored(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)


def _put(holder: Any, place: Any, node: ast.AST) -> None:
    if isinstance(holder, list):
        holder[place] = node
    else:
        setattr(holder, place, node)


def _parsed(text: str, instead_of: ast.AST) -> ast.AST:
    """The code as a node of the kind that it replaces: a statement, a part of an index, a value."""
    if isinstance(instead_of, ast.stmt):
        return ast.parse(text).body[0]
    if any(isinstance(node, ast.Slice) for node in ast.walk(instead_of)):
        return ast.parse(f"_[{text}]", mode="eval").body.slice  # type: ignore[attr-defined]
    return ast.parse(text, mode="eval").body


def _first_line(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0]


def _compiles(source: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            compile(source, "mutant", "exec")
        except SyntaxError:
            return False
    return True
