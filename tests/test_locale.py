"""Text files are UTF-8 whatever the locale: Windows' code pages and LC_ALL=C change nothing."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

COMMANDS = """
import sys, locale, pathlib
assert locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8"), "no test of anything"
from vtlite.__main__ import main
out = pathlib.Path(sys.argv[1])
ends = {"json": "json", "csv": "csv", "figure": "png"}
outputs = [f"--{kind}={out}/t.{end}" for kind, end in ends.items()]
for command in (
    ["list"], ["list", "--json"], *(["show", name] for name in ("lora", "dp_bitfit", "kd")),
    ["data", "show", "digits", f"--figure={out}/d.png"],
    ["classroom", "release", f"--exercises={out}"],
    ["tour", "--methods=linear", "--task=digits", "--epochs=1", *outputs],
):
    assert main(command) == 0, command
import vtlite as vt
clip = vt.load_backbone("vtlite-clip")
clip.tokenizer.save(out / "words.txt")
assert type(clip.tokenizer).load(out / "words.txt", clip.text.context).vocabulary == clip.tokenizer.vocabulary
vt.save_backbone(clip.visual, out / "b", title="\\xe9\\u732b")
vt.load_backbone(out / "b")
print("all fine: \\xe9\\u732b")
"""


def test_commands_run_where_nothing_is_utf_8(tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment.pop("PYTHONIOENCODING", None)
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert b"all fine" in done.stdout
    assert (tmp_path / "words.txt").read_text(encoding="utf-8")
    for exercise in tmp_path.glob("*.ipynb"):
        kept = ROOT / "exercises" / exercise.name
        assert exercise.read_text(encoding="utf-8") == kept.read_text(encoding="utf-8")


def texts_without_encoding(path: Path) -> list[str]:
    """The calls of a file that read or write text and leave the encoding to the locale."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        owner = getattr(getattr(node.func, "value", None), "id", "")
        words = {keyword.arg for keyword in node.keywords}
        modes = [a.value for a in node.args if isinstance(a, ast.Constant) and a.value]
        opens = name in ("open", "fdopen") and owner not in (
            "Image",
            "self",
            "archive",
            "os",
        )  # which open bytes
        text = opens and not any("b" in mode for mode in modes if isinstance(mode, str))
        piped = name in ("run", "Popen", "check_output") and words & {"text", "universal_newlines"}
        if (name in ("read_text", "write_text") or text or piped) and "encoding" not in words:
            found.append(f"{path.name}:{node.lineno}: {name}")
    return found


@pytest.mark.parametrize("folder", ["vtlite", "tests"])
def test_no_text_is_read_or_written_as_the_locale_says(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert [line for path in files for line in texts_without_encoding(path)] == []
