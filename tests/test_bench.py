from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from vtlite import bench, searches
from vtlite.data.tasks import load_task
from vtlite.methods import METHODS
from vtlite.runs import SEEDS, key_of, wanted
from vtlite.storage import VTError
from vtlite.studies import OWN_STUDIES, STUDIES
from vtlite.training import evaluate

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results.json"


def run(entry: str, task: str, lr: float, score: float, seed: int = 0, final: bool = False) -> dict:
    return {
        "entry": entry,
        "task": task,
        "lr": lr,
        "seed": seed,
        "final": final,
        "score": score,
        "trainable": 10,
    }


def test_the_learning_rate_is_chosen_on_validation_runs_only() -> None:
    runs = [
        run("lora", "digits", 1e-3, 0.5),
        run("lora", "digits", 3e-3, 0.7),
        run("lora", "digits", 1e-2, 0.7),
    ]
    runs += [
        run("lora", "digits", 1e-3, 0.99, final=True),
        run("full", "digits", 1e-3, 0.9),
        run("lora", "twemoji", 1e-3, 0.9),
    ]
    assert (
        bench.chosen_lr("lora", "digits", runs) == 3e-3
    )  # the best on validation data; the smaller of two equals


def test_summary_averages_seeds_and_tasks() -> None:
    runs = [run("full", task, 2e-4, 0.5) for task in ("digits", "twemoji")]
    runs += [run("full", "digits", 2e-4, a, s, True) for s, a in enumerate((0.6, 0.7, 0.8))]
    runs += [run("full", "twemoji", 2e-4, a, s, True) for s, a in enumerate((0.2, 0.3, 0.4))]
    (row,) = bench.summary(runs)
    assert row["tasks"]["digits"] == pytest.approx((0.7, 0.0816), abs=1e-3)
    assert (row["mean"], row["spread"]) == pytest.approx((0.5, 0.0816), abs=1e-3)


def test_a_stopped_benchmark_continues_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple] = []
    grid = len(bench.ENTRIES["lora"].choices())

    class InProcess:  # the real pool starts processes, in which nothing can be counted
        def __init__(self, *args: object, **kwargs: object) -> None: ...
        def __enter__(self) -> InProcess:
            return self

        def __exit__(self, *args: object) -> None: ...
        def submit(self, function, *key):
            from concurrent.futures import Future

            calls.append(key)
            if len(calls) == grid + 2:  # the second final run
                raise KeyboardInterrupt
            future: Future = Future()
            future.set_result(run(key[0], key[1], key[2], 0.5, key[3], key[4]))
            return future

    monkeypatch.setattr("vtlite.runs.ProcessPoolExecutor", InProcess)
    path = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        bench.bench(path, entries=("lora",), tasks=("digits",))
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert len(kept) == grid  # the choice was made
    bench.bench(path, entries=("lora",), tasks=("digits",))
    assert (
        len(calls) - 2 == len(json.loads(path.read_text(encoding="utf-8"))) == grid + 3
    )  # only the two final runs that were lost are repeated
    assert bench.bench(path, entries=("lora",), tasks=("digits",)) == json.loads(
        path.read_text(encoding="utf-8")
    )


def test_a_damaged_results_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("[{", encoding="utf-8")
    with pytest.raises(VTError, match="delete it or give another path"):
        bench.bench(tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text(encoding="utf-8") == "[{"


def test_pixels_need_no_backbone() -> None:
    result = bench.run_cell("pixels + linear", "shapes-count", 1e-4, 0, False)
    assert 0.15 < result["score"] < 0.6
    assert result["trainable"] == 4 * (3 * 32 * 32 + 1)


def test_a_run_that_diverges_is_a_result() -> None:
    assert bench.run_cell("bitfit", "shapes-count", 1e30, 0, False)["score"] == 0


# The committed results
# -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed() -> dict[str, dict]:
    return {
        row["entry"]: row for row in bench.summary(json.loads(RESULTS.read_text(encoding="utf-8")))
    }


def test_committed_results_are_complete() -> None:
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))
    asked = {
        key
        for name in {run["entry"] for run in runs}  # a new method is measured when there is time
        for task in bench.BENCHED
        for final in (False, True)
        for key in wanted(name, task, bench.ENTRIES[name].choices(), final, runs)
    }
    assert asked <= {key_of(run) for run in runs}
    costs = {
        row["entry"]
        for row in json.loads((RESULTS.parent / "costs.json").read_text(encoding="utf-8"))
    }
    measured = {name for name, _, _, _, _ in asked}
    of_networks = {n for n in measured if bench.ENTRIES[n].weights.startswith("vtlite-")}
    assert costs - {*bench.REMAPPED} == of_networks


def test_the_published_tables_are_written_from_them(committed: dict[str, dict]) -> None:
    costs = json.loads((RESULTS.parent / "costs.json").read_text(encoding="utf-8"))
    text = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
    assert bench.markdown(list(committed.values())) in text
    assert bench.costs_markdown(list(committed.values()), costs) in text
    readme = (RESULTS.parents[1] / "README.md").read_text(encoding="utf-8")
    for group in ("parameter", "prompt", "adapter", "remapping"):
        rows = [row for name, row in committed.items() if name in bench.entries_of(group)]
        if group == "remapping":
            rows += [{"entry": name} for name in bench.REMAPPED]
        assert bench.costs_markdown(rows, costs) in readme


def test_a_wider_grid_replaces_the_final_runs_of_the_old_choice() -> None:
    runs = [
        run("lora", "digits", 3e-3, 0.5),
        *(run("lora", "digits", 3e-3, 0.6, seed, True) for seed in SEEDS),
    ]
    assert bench.summary(runs)[0]["mean"] == pytest.approx(0.6)
    runs.append(run("lora", "digits", 1e-2, 0.7))  # better on validation data, and no final run yet
    assert bench.summary(runs) == []
    runs += [run("lora", "digits", 1e-2, 0.4, seed, True) for seed in SEEDS]
    assert bench.summary(runs)[0]["mean"] == pytest.approx(
        0.4
    )  # even though it is worse on the test images


def test_a_mean_is_over_the_tasks_that_all_have() -> None:
    pairs = [(entry, task) for entry in ("full", "lora") for task in ("digits", "twemoji")] + [
        ("full", "fashion")
    ]
    rows = bench.summary(
        [
            run(e, t, 2e-4, 0.5, seed, final)
            for e, t in pairs
            for seed, final in ((0, False), (0, True), (1, True), (2, True))
        ]
    )
    assert [list(row["tasks"]) for row in rows] == [["digits", "twemoji"]] * 2
    assert bench.markdown(rows).splitlines()[0] == "| | trainable | digits | twemoji | mean |"


def test_entries_of_a_group_and_what_they_are_compared_with() -> None:
    entries = bench.entries_of("prompt")
    prompts = {key.rpartition("/")[2] for key in METHODS if key.startswith("prompt/")}
    assert entries[:2] == ("full", "linear")
    assert "vpt_deep" in prompts - {*bench.ELSEWHERE} == {*entries[2:]}
    with pytest.raises(VTError, match="unknown group 'promt': did you mean 'prompt'"):
        bench.entries_of("promt")


def test_costs_are_exact_numbers_and_ratios_and_are_measured_once(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    rows = bench.costs(path, ("pixels + linear", "bitfit"))
    assert json.loads(path.read_text(encoding="utf-8")) == rows == bench.costs(path, ("bitfit",))
    (row,) = rows  # pixels have no backbone to compare with
    assert (row["trainable"], row["merged"]) == (7_401, True)  # as in the tour's table
    assert row["activation_bytes"] > 0
    assert row["step_ratio"] > 0


def test_the_embedded_backbone_is_worth_learning_on(committed: dict[str, dict]) -> None:
    """The claims of benchmarks/README.md, with room to spare: margins are several times the spread
    over seeds."""
    mean = {name: row["mean"] for name, row in committed.items()}
    assert mean["linear"] > max(mean["random backbone + linear"], mean["pixels + linear"]) + 0.10
    assert mean["full"] > mean["from scratch"] + 0.10


def test_default_learning_rates_are_the_best_over_all_tasks() -> None:
    """`Method.lr` has the best accuracy on the validation images, in the mean over tasks."""
    runs = [r for r in json.loads(RESULTS.read_text(encoding="utf-8")) if not r["final"]]
    for name, entry in bench.ENTRIES.items():
        measured = any(run["entry"] == name for run in runs)
        if name == entry.method and measured:  # not those with other weights or settings
            (cls,) = [cls for key, cls in METHODS.items() if key.endswith("/" + name)]
            mean = {
                lr: sum(r["score"] for r in runs if (r["entry"], r["lr"]) == (name, lr))
                for lr in bench.ENTRIES[name].choices()
            }
            assert cls.lr == max(mean, key=lambda lr: mean[lr]), name


def test_what_has_no_row_among_all_tasks_is_in_a_study() -> None:
    studied = {name for study in STUDIES.values() for name in study.entries}
    studied |= {bench.ENTRIES[name].method for name in studied}  # that teach a student
    studied |= {name for name, _ in searches.SEARCHES.values()}
    studied |= {"net2wider", "net2deeper", "nash", "eas", "path_level_eas", "n2n"}  # vtlite.growth
    assert set(bench.ELSEWHERE) <= studied
    assert set(bench.TABLED) | set(bench.ELSEWHERE) == set(bench.ENTRIES)


# Studies: the same protocol on other kinds of tasks
# -------------------------------------------------------------------------------------------------


def test_a_study_is_of_known_entries_and_tasks() -> None:
    for study in STUDIES.values():
        assert set(study.entries) <= set(bench.ENTRIES)
        assert all(load_task(name).val is not None for name in study.tasks)


@pytest.mark.parametrize("name", [n for n in STUDIES if RESULTS.with_name(f"{n}.json").exists()])
def test_the_table_of_a_study_is_written_from_its_runs(name: str) -> None:
    path, study = RESULTS.with_name(f"{name}.json"), STUDIES[name]
    runs = json.loads(path.read_text(encoding="utf-8"))
    rows = bench.summary(runs, study.tasks)
    assert {row["entry"] for row in rows} == set(study.entries)
    assert all(set(row["tasks"]) == set(study.tasks) for row in rows)
    assert bench.markdown(rows) in (RESULTS.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", [n for n in OWN_STUDIES if RESULTS.with_name(f"{n}.json").exists()]
)
def test_the_table_of_a_study_of_its_own_is_written_from_its_runs(name: str) -> None:
    runs = json.loads(RESULTS.with_name(f"{name}.json").read_text(encoding="utf-8"))
    table = import_module(OWN_STUDIES[name]).table(runs)
    assert table.count("|---") >= 1
    assert table in (RESULTS.parent / "README.md").read_text(encoding="utf-8")


def test_the_score_is_the_tasks_own_metric() -> None:
    found = bench.run_cell("linear", "emoji-masks", 1e-6, 0, True, 1)
    model = bench.ENTRIES["linear"].tuned(load_task("emoji-masks"))
    answers = evaluate(model, load_task("emoji-masks").test)
    # one epoch of next to no learning: nowhere near the share of right pixels
    assert abs(found["score"] - answers["mIoU"]) < 0.05 < answers["pixels"] - found["score"]


def test_each_seed_of_a_few_shot_task_draws_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(bench, "fit", lambda model, data, **_: seen.append(data))
    for seed, final in ((0, False), (0, True), (1, True)):
        bench.run_cell("linear", "twemoji-subgroups:1-shot", 1e-3, seed, final)
    chosen, first, second = (data.images for data in seen)
    assert torch.equal(chosen, first)  # validation images stay out of the training
    assert not torch.equal(first, second)
