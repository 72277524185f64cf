"""CONTRIBUTING.md's recipe works: its example is taken from the page, added to a copy of the
package, and passes the suite there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_recipe_of_contributing_adds_a_method(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    file = re.search(r"\*\*Write the file\*\*, `(.+?)`", text)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert file
    assert code
    for folder in ("vtlite", "tests"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    # Step 2: the file, as printed on the page.
    (tmp_path / file[1]).write_text(re.sub(r"^   ", "", code[1], flags=re.MULTILINE))
    # Step 3: the import.
    with (tmp_path / "vtlite/methods/__init__.py").open("a") as init:
        init.write("from vtlite.methods.parameter.bias.last_bias import LastBias\n")
    # Step 4: the suite, with its count (the final norm of ViT-B/16 has 768 biases).
    suite = tmp_path / "tests/methods/test_methods.py"
    suite.write_text(
        suite.read_text().replace(
            '    ("full", {}, 85_798_656),\n',
            '    ("full", {}, 85_798_656),\n    ("last_bias", {}, 768),\n',
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": ""}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/methods",
        "-k",
        "last_bias",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= 15
