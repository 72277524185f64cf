"""What a training step costs: counted by hand for the simple methods, and every method beside its
bound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import vtlite as vt
from vtlite import accounting, counting
from vtlite.backbones.vit import VisionTransformer
from vtlite.storage import VTError

B, N, D, L, P, C = 4, 17, 24, 2, 64, 3  # images, tokens, width, blocks, patch pixels, classes
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def by_name(backbone: nn.Module, *names: str) -> dict[str, counting.Row]:
    rows = counting.count(backbone, names, batch=B, num_classes=C)
    return {row["method"]: row for row in rows}


@pytest.fixture(scope="module")
def small() -> VisionTransformer:
    """The tests' tiny ViT, of the meta device."""
    return vt.create_backbone(
        "vtlite-tiny", device="meta", embed_dim=D, depth=L, num_heads=3, img_size=32, patch_size=8
    )


def test_operations_of_a_step_are_counted_by_hand(small: VisionTransformer) -> None:
    rows = by_name(small, "linear", "full", "bitfit", "gps")
    weights = 2 * B * N * D * 12 * D * L  # qkv, proj, fc1 and fc2 of all blocks
    attention, embedding, head = 4 * B * N * N * D * L, 2 * B * (N - 1) * 3 * P * D, 2 * B * D * C
    forward = weights + attention + embedding + head
    assert rows["linear"]["flops"] == forward + head  # and the gradient of its weight
    # Gradients of inputs and of weights; not of the images.
    assert rows["full"]["flops"] == forward + 2 * weights + 2 * attention + embedding + 2 * head
    passed = forward + weights + 2 * attention + 2 * head  # no weight but the head's
    assert rows["bitfit"]["flops"] == passed
    entries = 2 * B * N * (9 * D) * L  # a product per token and row, backward
    assert rows["gps"]["flops"] == passed + entries + embedding  # the convolution's is made whole


def test_bytes_of_a_step_are_counted_by_hand(small: VisionTransformer) -> None:
    rows = by_name(small, "linear", "full", "bitfit", "lora", "gps")
    inputs = 4 * B * N * (D + D + 4 * D) * L  # of qkv, fc1 and fc2; attention keeps that of proj
    assert rows["full"]["bytes"] == rows["bitfit"]["bytes"] + inputs
    kernel = 4 * 3 * P * D  # of the patch embedding, the only weight that is made anew
    places = 8 * 9 * D * L
    assert rows["gps"]["bytes"] <= rows["full"]["bytes"] + kernel + places + 8 * D
    assert rows["linear"]["bytes"] == 4 * B * (D + C)  # features and probabilities


def test_the_peak_is_the_most_that_is_alive_at_once() -> None:
    x, weight = torch.ones(4, 8, requires_grad=True), torch.ones(8, 16, requires_grad=True)
    with accounting._Live() as live:
        ((x @ weight).relu() @ weight.T).sum().backward()
    # at the last product backwards: relu [4, 16] is gone, the gradients of x and of weight, twice
    # (their sum is made of two), are there
    assert live.peak >= 4 * (2 * 8 * 16)
    with accounting._Live() as live:
        ((x.detach() @ weight.detach()).relu() @ weight.detach().T).sum()
    assert live.peak == 4 * (2 * 4 * 16)  # a product and what ReLU makes of it, no more
    with accounting._Live() as live:
        for _ in range(5):
            x = x.detach() * 2
    assert live.peak == 4 * (2 * 4 * 8)  # what is let go counts no longer


def test_a_ladder_and_queries_need_less_at_once_than_a_gradient_through_all(
    small: VisionTransformer,
) -> None:
    rows = by_name(small, "full", "lora", "adaptformer", "lst", "vqt")
    peak = {name: row["peak"] for name, row in rows.items()}
    assert all(row["peak"] >= row["bytes"] for row in rows.values())
    assert max(peak["lst"], peak["vqt"]) < min(peak["lora"], peak["adaptformer"]) < peak["full"]


def test_a_bound_keeps_what_it_must(small: VisionTransformer) -> None:
    rows = by_name(small, "lora", "bitfit")
    first = 4 * B * N * (D + 2)  # of block 0's norm: nothing below it wants a gradient
    x = 4 * B * N * D * L
    assert rows["lora"]["bound_bytes"] == rows["bitfit"]["bytes"] - first + x
    assert rows["bitfit"]["bound_bytes"] == rows["bitfit"]["bytes"]


def test_the_meta_device_counts_what_a_cpu_does(
    small: VisionTransformer, tiny_backbone: VisionTransformer
) -> None:
    images, labels = torch.randn(B, 3, 32, 32), torch.arange(B) % C
    rows = by_name(small, "full", "lora", "spt")
    for name, row in rows.items():
        model = counting.tuned(tiny_backbone, name, C)
        assert accounting.step_flops(model, images, labels) == row["flops"]
        assert accounting.step_bytes(model, images, labels) == pytest.approx(row["bytes"], rel=1e-3)
        assert accounting.step_peak(model, images, labels) == pytest.approx(row["peak"], rel=0.05)


def test_bounds_are_those_of_methods() -> None:
    """A new method is counted when somebody has said what its bound is."""
    assert set(counting.BOUNDS) <= {key.rpartition("/")[2] for key in vt.METHODS}
    assert set(counting.REMARKS) <= set(counting.BOUNDS)


@pytest.fixture(scope="module")
def wide() -> list[counting.Row]:
    """Three blocks of ViT-B/16: in the others it is the same again."""
    backbone = vt.create_backbone("vit_base_patch16_224", device="meta", depth=3)
    return counting.count(backbone, counting.BOUNDS, batch=4, num_classes=100)


def test_every_method_is_near_its_bound_or_says_why(wide: list[counting.Row]) -> None:
    for row in wide:
        assert not counting.above_bound(row) or row["method"] in counting.REMARKS, row


def test_the_committed_table_is_that_of_the_committed_rows() -> None:
    rows = json.loads((BENCHMARKS / "counted.json").read_text(encoding="utf-8"))
    names = [key.rpartition("/")[2] for key in vt.METHODS]
    assert [row["method"] for row in rows] == [name for name in names if name in counting.BOUNDS]
    above = {row["method"] for row in rows if counting.above_bound(row)}
    assert above == set(counting.REMARKS)
    assert counting.table(rows) in (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    measured = {row["method"] for row in rows if "step" in row}
    assert measured == set(counting.BOUNDS) - set(counting.UNMEASURED)


def test_steps_are_measured_once(small: VisionTransformer, tmp_path: Path) -> None:
    rows = counting.count(small, ("full", "linear"), batch=B, num_classes=C)
    rows[0]["step"] = 1.0
    backbone = vt.create_backbone("vtlite-tiny", embed_dim=D, depth=L, num_heads=3)
    counting.measure(backbone, rows, B, C, repeats=1, path=tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8")) == rows
    assert rows[0]["step"] == 1.0
    assert rows[1]["step"] > 0
    assert "| linear | " in counting.table(rows)


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("[", encoding="utf-8")
    with pytest.raises(VTError, match="not a results file"):
        counting.counted(tmp_path / "c.json")
