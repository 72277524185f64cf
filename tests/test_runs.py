"""Lists of runs: a rate is chosen on validation images, no run is lost or made twice."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from vtlite import runs as module
from vtlite.runs import choice, finals, read_rows, run_missing, wanted, write_rows
from vtlite.storage import VTError


def run(who: str, task: str, lr: float, seed: int, final: bool, score: float) -> dict[str, Any]:
    key = {"arm": who, "task": task, "lr": lr, "seed": seed, "final": final}
    return {**key, "score": score}


def test_the_best_rate_on_validation_images_is_chosen_and_the_smaller_one_in_a_tie() -> None:
    rows = [run("A", "t", lr, 0, False, score) for lr, score in ((1, 0.5), (3, 0.7), (9, 0.7))]
    rows += [run("A", "t", 1, 0, True, 0.99)]  # a test score does not decide,
    rows += [run("A", "u", 1, 0, False, 0.9), run("B", "t", 1, 0, False, 0.9)]  # nor do others
    assert choice(rows, "A", "t") == rows[1]


def test_final_runs_at_a_rate_that_was_replaced_are_left_out() -> None:
    rows = [run("A", "t", 1, 0, False, 0.5), *(run("A", "t", 1, s, True, 0.4) for s in range(3))]
    assert finals(rows, "A", "t") == rows[1:]
    rows += [run("A", "t", 3, 0, False, 0.6)]
    assert finals(rows, "A", "t") == []
    assert finals(rows, "B", "t") == []


def test_a_run_of_the_benchmark_and_of_a_study_have_the_same_key() -> None:
    row = run("A", "t", 1, 0, False, 0.5)
    entry = {"entry" if name == "arm" else name: value for name, value in row.items()}
    assert module.key_of(row) == module.key_of(entry) == ("A", "t", 1, 0, False)


def test_one_rate_is_not_tried() -> None:
    assert wanted("A", "t", (3,), False, []) == []
    assert wanted("A", "t", (3,), True, []) == [("A", "t", 3, seed, True) for seed in (0, 1, 2)]
    assert wanted("A", "t", (1, 3), False, []) == [("A", "t", lr, 0, False) for lr in (1, 3)]


class Pool:
    """Works at once, and is interrupted at one of its runs."""

    def __init__(self, interrupted: int = -1) -> None:
        self.interrupted, self.asked = interrupted, 0

    def submit(self, call: Any, *key: Any) -> Any:
        future: Any = Future()
        if self.asked == self.interrupted:
            future.set_exception(KeyboardInterrupt())
        else:
            future.set_result(call(*key))
        self.asked += 1
        return future


def test_a_stopped_list_has_what_ended_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "as_completed", iter)  # in the order of the keys
    path, rows = tmp_path / "runs.json", []
    keys = wanted("A", "t", (1, 2, 3, 4), False, [])

    def one(*key: Any) -> dict[str, Any]:
        return run(*key, score=0.5)

    for interrupted in range(1, 4):
        with pytest.raises(KeyboardInterrupt):
            run_missing(Pool(1), one, keys, path, rows, "choosing")  # type: ignore[arg-type]
        rows = read_rows(path)
        assert [row["lr"] for row in rows] == list(range(1, interrupted + 1))
    pool = Pool()
    run_missing(pool, one, keys, path, rows, "choosing")  # type: ignore[arg-type]
    assert pool.asked == 1
    assert json.loads(path.read_text(encoding="utf-8")) == rows == [one(*key) for key in keys]


def test_no_file_has_no_rows_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    assert read_rows(path) == []
    for damaged in (b"[{", b"\xff\xfe", b"{}", b"[1]", b'[{"task": "t"}]', b"null"):
        path.write_bytes(damaged)
        with pytest.raises(VTError, match=r"not a results file.*; delete it or give another path"):
            read_rows(path, "task", "score")
    with pytest.raises(VTError, match="delete it or give another path"):
        read_rows(tmp_path)
    path.write_text(json.dumps([{"task": "t", "score": 1, "more": 2}]), encoding="utf-8")
    assert len(read_rows(path, "task", "score")) == 1


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    write_rows(path, [{"score": 0.5}])
    with pytest.raises(TypeError):
        write_rows(path, [{"score": 0.7}, {"score": object()}])
    assert read_rows(path) == [{"score": 0.5}]
