"""`make notebooks`: run every lesson and solution (or those named) from top to bottom and keep its
outputs, without what changes from run to run."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]


def stays(output: nbformat.NotebookNode) -> bool:
    """Whether an output is of use on a page: warnings and widgets, which live in a kernel, are
    not."""
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return output.get("name") != "stderr" and not widget


def execute(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # time stamps
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if stays(output)]
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    for lesson in [Path(name) for name in sys.argv[1:]] or sorted(
        [*ROOT.glob("notebooks/[0-9]*.ipynb"), *ROOT.glob("solutions/[0-9]*.ipynb")]
    ):
        execute(lesson)
