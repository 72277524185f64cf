"""The tests of this folder in processes of another kind: kernels in Triton's interpreter, and a
machine without Triton.

Both are decided when Python starts, so each is a process of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vtlite.ops._launch import INTERPRET, triton

ROOT = Path(__file__).parents[2]
WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # import triton now raises ImportError
import vtlite
from tests.ops.cases import OPS
from tests.ops.contract import TOLERANCE, agrees_with_the_reference
from vtlite.ops._launch import triton
assert triton is None
for case in OPS.values():
    for shape in case.shapes:
        for dtype in TOLERANCE:
            agrees_with_the_reference(case, shape, dtype)
print(len(OPS), "operations")
"""


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=1200,
        encoding="utf-8",
    )


@pytest.mark.skipif(triton is None, reason="needs Triton")
@pytest.mark.skipif(INTERPRET, reason="this process is the interpreter's already")
def test_kernels_in_the_interpreter() -> None:
    # One needs a compiler, the other is this file.
    others = [f"--ignore=tests/ops/{name}.py" for name in ("test_compile", "test_interpreter")]
    done = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops", *others, TRITON_INTERPRET="1"
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)


@pytest.mark.skipif(triton is None, reason="needs Triton")
@pytest.mark.parametrize(
    ("version", "interpret", "used"),
    [("3.7.1", "1", False), ("3.8.0+git1a", "1", True), ("3.4.0", "0", True)],
)
def test_an_interpreter_that_would_fail_is_not_used(
    version: str, interpret: str, used: bool
) -> None:
    code = (
        f"import triton; triton.__version__ = {version!r}; from vtlite.ops._launch import"
        " INTERPRET, triton; print(triton is not None, INTERPRET)"
    )
    done = python("-c", code, TRITON_INTERPRET=interpret)
    assert done.stdout == f"{used} {used and interpret == '1'}\n", done.stderr[-2000:]


def test_references_without_triton() -> None:
    done = python("-c", WITHOUT_TRITON, TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr[-5000:]
    assert re.fullmatch(r"[1-9]\d* operations\n", done.stdout)
