"""Lists of runs, as the benchmark and its studies keep them: in a JSON file, each run as soon as it
has ended, and none twice.

A run is a row of what was asked (an entry of the benchmark or an arm of a study, a task, a learning
rate, a seed, and whether it is final), of its score, and of whatever else was seen. First each
learning rate is tried with one seed and scored on validation images; then the best one runs with
three seeds, and is scored on test images: those runs are final.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from vtlite.storage import VTError, atomic_write

SEEDS = (0, 1, 2)

ASKED = ("task", "lr", "seed", "final", "score")  # and "entry", or "arm" in some studies
Run = dict[str, Any]
Key = tuple[str, str, float, int, bool]


def key_of(run: Run) -> Key:
    """What was asked: who, task, learning rate, seed, final."""
    who = run["arm"] if "arm" in run else run["entry"]
    return who, run["task"], run["lr"], run["seed"], run["final"]


def choice(runs: list[Run], who: str, task: str) -> Run:
    """The run on validation images that decided for its learning rate: the one with the best score,
    that of the smaller rate in a tie."""
    own = [run for run in runs if (*key_of(run)[:2], run["final"]) == (who, task, False)]
    return min(own, key=lambda run: (-run["score"], run["lr"]))


def finals(runs: list[Run], who: str, task: str) -> list[Run]:
    """The final runs at the rate that was chosen, one a seed; none before they have begun. Those
    at a rate that another has replaced, since its grid was widened, are left out."""
    own = [run for run in runs if (*key_of(run)[:2], run["final"]) == (who, task, True)]
    lr = choice(runs, who, task)["lr"] if own else None
    return [run for run in own if run["lr"] == lr]


def best_lr(who: str, task: str, rates: tuple[float, ...], runs: list[Run]) -> float:
    """The rate that was chosen. Of one, nothing is chosen, and there are no runs to do so."""
    return rates[0] if len(rates) == 1 else choice(runs, who, task)["lr"]


def wanted(
    who: str, task: str, rates: tuple[float, ...], final: bool, runs: list[Run]
) -> list[Key]:
    """The keys of the runs that choose a rate, or of the final ones. One rate needs no choice."""
    if not final:
        return [(who, task, lr, SEEDS[0], False) for lr in rates if len(rates) > 1]
    lr = best_lr(who, task, rates, runs)
    return [(who, task, lr, seed, True) for seed in SEEDS]


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Fresh processes for runs, as threads of the first one do not survive a fork."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def run_missing(
    pool: ProcessPoolExecutor,
    one: Callable[..., Run],
    keys: Iterable[Key],
    results: Path,
    runs: list[Run],
    doing: str,
) -> None:
    """Run `one(*key)` for the keys that `runs` lack. Each run is added to them, and kept in
    `results`, as soon as it has ended."""
    done = {key_of(run) for run in runs}
    futures = [pool.submit(one, *key) for key in keys if key not in done]
    for future in tqdm(as_completed(futures), total=len(futures), desc=doing):
        runs.append(future.result())
        write_rows(results, sorted(runs, key=key_of))


def read_rows(path: Path, *names: str) -> list[Run]:
    """The rows of a file of results, each with at least these names; none if there is no file yet.

    Raises:
        VTError: the file can't be read, or has something else in it.
    """
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # no text, or no JSON
        raise VTError(
            f"{path} is not a results file ({error}); delete it or give another path"
        ) from error
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {*names} <= row.keys() for row in rows
    ):
        raise VTError(
            f"{path} is not a results file of this kind: expected a list of rows with "
            f"{', '.join(sorted(names))}; delete it or give another path"
        )
    return rows


def write_rows(path: Path, rows: Iterable[Run]) -> None:
    """One row a line: a file of results that was whole stays whole, whatever happens."""
    with atomic_write(path) as temporary:
        temporary.write_text(
            "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8"
        )
