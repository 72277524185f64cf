"""Ctrl-C at any line: models, files and everything around them are as before, or finished."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import vtlite as vt
from tests.conftest import make_tiny
from tests.test_hostile import same, state_of, world
from vtlite.storage import load_tensors

PACKAGE = str(Path(vt.__file__).parent)
DATA = TensorDataset(
    torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
)


def interrupted(call: Callable[[], Any], line: int) -> int:
    """Run `call` and raise KeyboardInterrupt at the line of that number that is reached in the
    package; return how many were reached."""
    reached = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal reached
        tidying = frame.f_code.co_name == "evaluating"  # puts modes back, and can't be interrupted
        if tidying or not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            reached += 1
            if reached == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return reached


def trained() -> vt.Tuned:
    model = vt.tune(make_tiny(), "lora", 3, rank=2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1
    return model


OPERATIONS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "tune": lambda m, f: vt.tune(m.backbone if isinstance(m, vt.Tuned) else m, "full", 3),
    "fit": lambda m, f: vt.fit(
        m, DATA, DATA, epochs=2, batch_size=3, checkpoint=f / "c", progress=False
    ),
    "evaluate": lambda m, f: vt.evaluate(m, DATA),
    "extract_features": lambda m, f: vt.extract_features(m, DATA),
    "merge": lambda m, f: vt.merge(m),
    "save_delta": lambda m, f: vt.save_delta(m, f / "d"),
    "save_backbone": lambda m, f: vt.save_backbone(m.backbone, f / "b"),
    "load_delta": lambda m, f: vt.load_delta(m, f / "other"),
    "load_backbone": lambda m, f: vt.load_backbone(f / "b"),
}


def equal(one: tuple[dict, dict], other: tuple[dict, dict]) -> bool:
    """Whether two files hold the same tensors and metadata, in whatever order."""
    values = one[0].keys() == other[0].keys() and all(
        torch.equal(one[0][k], other[0][k]) for k in one[0]
    )
    return values and one[1] == other[1]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_interruption_at_any_line_changes_nothing(operation: str, tmp_path: Path) -> None:
    call = OPERATIONS[operation]
    model = trained()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p += p.requires_grad  # another value wherever it trains
    vt.save_delta(other, tmp_path / "other")
    vt.save_delta(other, tmp_path / "d")
    vt.save_backbone(make_tiny(depth=1), tmp_path / "b")

    finished = copy.deepcopy(model)
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    folder = tmp_path / "finished"
    (folder / "old").mkdir(parents=True)
    for name, content in old.items():
        (folder / name).write_bytes(content)
        (folder / "old" / name).write_bytes(content)
    lines = interrupted(lambda: call(finished, folder), 0)

    most = 400 if operation in ("load_delta", "save_delta", "save_backbone") else 25
    # Some lines from all over (each where a run is short), and the last, where results take their
    # places.
    for line in sorted({*range(1, lines, max(1, lines // most)), *range(lines - 10, lines + 1)}):
        trial, around = copy.deepcopy(model.train()), world()
        (tmp_path / "c").unlink(missing_ok=True)
        for name, content in old.items():
            (tmp_path / name).write_bytes(content)
        before = state_of(trial)
        interrupted(lambda trial=trial: call(trial, tmp_path), line)  # type: ignore[misc]
        assert same(around, world())
        after = state_of(trial)  # as it was, or with all of the new values
        assert same(before, after) or same(state_of(finished)[1:], after[1:]), line
        found = {p.name for p in tmp_path.iterdir() if p.is_file()}
        assert found <= old.keys() | {"c"}, line  # nothing half-written beside them
        for name in old:
            here = load_tensors(tmp_path / name)
            assert any(equal(here, load_tensors(f / name)) for f in (folder / "old", folder)), line
        if "c" in found:  # of one epoch or both: it can be read
            load_tensors(tmp_path / "c")


def test_merging_after_an_interruption_is_right() -> None:
    model = trained()
    expected = model(DATA.tensors[0])
    interrupted(lambda: vt.merge(model), 200)
    torch.testing.assert_close(vt.merge(model)(DATA.tensors[0]), expected, atol=1e-5, rtol=1e-5)
