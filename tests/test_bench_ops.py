"""The benchmark of operations: that it runs, counts rightly and says what it measured; never how
long anything took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite import bench_ops
from vtlite.__main__ import main

LIMITS = bench_ops.Machine("a machine", bandwidth=1e9, flops=1e12, source="made up")


@pytest.mark.parametrize("name", bench_ops.OPERATIONS)
def test_plain_and_ours_are_the_same_function(name: str) -> None:
    operation = bench_ops.OPERATIONS[name]
    inputs = bench_ops.make_inputs(operation, bench_ops.TINY["tiny"], "cpu", torch.float64)
    plain, ours = (
        torch.autograd.grad(f(*inputs).square().sum(), bench_ops.leaves_of(inputs))
        for f in (operation.plain, operation.ours)
    )
    torch.testing.assert_close(operation.ours(*inputs), operation.plain(*inputs))
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize(
    "pair", bench_ops.pairs(tiny=True).values(), ids=lambda pair: type(pair[0]).__name__
)
def test_models_compared_are_the_same_function(pair: tuple[nn.Module, nn.Module]) -> None:
    images = torch.randn(2, 3, 32, 32)
    usual, ours = (model.eval()(images) for model in pair)
    torch.testing.assert_close(ours, usual)


def test_the_tiny_run_writes_what_it_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ops.json"
    assert main(["bench-ops", "--tiny", "--device", "cpu", "--json", str(path)]) == 0
    result, printed = json.loads(path.read_text(encoding="utf-8")), capsys.readouterr().out
    assert result["kind"] == "measurement"
    assert result["versions"]["torch"] == torch.__version__
    assert [row["operation"] for row in result["operations"]] == [
        name for name in bench_ops.OPERATIONS for _ in range(2)
    ]
    for row in result["operations"]:
        assert row["plain"]["speedup"] == 1
        assert "compile" not in row
        assert f"| {row['operation']} | tiny | {row['pass']} |" in printed


def test_tiny_models(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    assert main(["bench-ops", "--tiny", "--models", "--device", "cpu", "--json", str(path)]) == 0
    rows = json.loads(path.read_text(encoding="utf-8"))["models"]
    assert any("VPT" in row["models"] for row in rows)
    assert all(row["ours"]["memory_bytes"] > 0 for row in rows)


def test_the_readme_has_the_committed_rows() -> None:
    folder = Path(__file__).parent.parent / "benchmarks"
    readme, measured = (
        (folder / "README.md").read_text(encoding="utf-8"),
        json.loads((folder / "ops-models.json").read_text(encoding="utf-8")),
    )
    rows = bench_ops.estimate(bench_ops.OPERATIONS, {"ViT-B/16": bench_ops.SIZES["ViT-B/16"]})
    for line in (
        *map(bench_ops.model_line, measured["models"]),
        bench_ops.estimate_table(rows, bench_ops.ESTIMATED).split("\n\n")[-1],
    ):
        assert line in readme


def test_an_estimate_is_called_one_and_needs_no_memory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert (
        main(["bench-ops", "--estimate", "--device", "cuda", "--json", str(tmp_path / "e.json")])
        == 0
    )
    result = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    assert result["kind"] == "estimate"
    assert "An estimate" in capsys.readouterr().out
    assert {row["size"] for row in result["operations"]} == {"ViT-B/16", "ViT-L/14"}
    assert all(row["least_bytes"] <= row["plain"]["bytes"] for row in result["operations"])


def test_bytes_and_arithmetic_of_a_linear_layer_by_hand() -> None:
    M, K, N = 7, 5, 3
    x, w = (torch.randn(*s, device="meta", requires_grad=True) for s in ((M, K), (N, K)))

    def linear(x: Tensor, w: Tensor) -> Tensor:
        return F.linear(x, w)

    forward, both = (
        bench_ops.count(linear, (x, w), LIMITS, backward) for backward in (False, True)
    )
    X, W, Y = 4 * M * K, 4 * N * K, 4 * M * N
    assert (forward.kernels, forward.bytes, forward.flops) == (1, X + W + Y, 2 * M * K * N)
    assert (both.kernels, both.bytes, both.flops) == (3, 3 * (X + W + Y), 6 * M * K * N)
    assert forward.seconds == max((X + W + Y) / 1e9, 2 * M * K * N / 1e12)
    assert bench_ops.least_bytes(linear, (x, w), backward=False) == X + W + Y
    assert bench_ops.least_bytes(linear, (x, w), backward=True) == 3 * (X + W) + 2 * Y


def test_kept_bytes_counts_a_storage_once_and_no_input() -> None:
    x = torch.randn(6, 4, requires_grad=True)
    assert (
        bench_ops.kept_bytes(lambda: x.exp().square(), [x]) == 6 * 4 * 4
    )  # exp keeps its result, which the square keeps as well
    assert bench_ops.kept_bytes(lambda: x * x, [x]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--ops", "lora_linea"], "did you mean 'lora_linear'"),
        (["--json", "nowhere/x.json"], "expected an existing folder to write x.json into"),
        (["--repeats", "0"], "expected at least one repeat"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench-ops", "--tiny", *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench-ops", "--device", "cuda"]) == 2
    assert "expected a CUDA GPU for --device cuda, found none" in capsys.readouterr().err
