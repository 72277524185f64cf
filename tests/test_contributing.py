"""CONTRIBUTING.md's recipe works: its example is taken from the page, added to a copy of the
package, and passes the suite there; it touches three files."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def changed(copy: Path) -> set[str]:
    """The files of a copy that are new or differ from ours."""
    files = (p.relative_to(copy) for p in copy.rglob("*") if p.is_file())
    return {
        str(name)
        for name in files
        if not (ROOT / name).exists() or not filecmp.cmp(ROOT / name, copy / name, shallow=False)
    }


def test_the_recipe_of_contributing_adds_a_method_with_three_files(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    file = re.search(r"\*\*Write the file\*\*, `(.+?)`", text)
    assert file
    code, row, count = re.findall(r"```(?:python|text)\n(.*?)```", text, re.DOTALL)[:3]
    for folder in ("vtlite", "tests"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )

    def insert(name: str, behind: str, lines: str) -> None:
        path = tmp_path / name
        before = path.read_text(encoding="utf-8")
        assert before.count(behind) == 1
        path.write_text(before.replace(behind, behind + lines.rstrip(" ")), encoding="utf-8")

    # Step 2: the file, step 3: the row, step 4: the count, as printed on the page.
    (tmp_path / file[1]).write_text(re.sub(r"^   ", "", code, flags=re.MULTILINE), encoding="utf-8")
    insert("vtlite/taxonomy.py", '    "parameter/bias": (\n', row)
    insert("tests/methods/test_methods.py", '    ("full", {}, 85_798_656),\n', count)
    assert changed(tmp_path) == {file[1], "vtlite/taxonomy.py", "tests/methods/test_methods.py"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/methods", "tests/test_taxonomy.py", "-k", "last_bias"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=240,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
