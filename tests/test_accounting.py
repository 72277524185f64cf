from __future__ import annotations

import pytest
import torch
from torch import nn

import vtlite as vt
from vtlite import accounting


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 32, 32, generator=g), torch.tensor([0, 1, 2, 0])


def test_flops_of_a_linear_layer_are_counted_by_hand() -> None:
    assert accounting.flops(nn.Linear(5, 7), torch.randn(3, 5)) == 2 * 3 * 5 * 7


def test_flops_of_a_vit_are_counted_by_hand(
    tiny_backbone: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    B, N, D, L, classes = 4, 17, tiny_backbone.embed_dim, len(tiny_backbone.blocks), 3
    per_block = 2 * B * N * D * (3 * D + D + 4 * D + 4 * D)  # qkv, proj, fc1, fc2
    attention = 2 * 2 * B * N * N * D  # q k^T and its product with v
    embedding, head = 2 * B * (N - 1) * 3 * 64 * D, 2 * B * D * classes
    model = vt.tune(tiny_backbone, "linear", num_classes=classes)
    assert accounting.flops(model, batch[0]) == L * (per_block + attention) + embedding + head


def test_activation_memory_of_a_linear_probe_is_features_and_logits(
    tiny_backbone: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Only the head trains: kept are the log-probabilities [4, 3] and the features [4, D]; the
    tokens are free to go."""
    model = vt.tune(tiny_backbone, "linear", num_classes=3)
    kept = accounting.activation_memory(model, *batch)
    bytes_of_both = 4 * (4 * tiny_backbone.embed_dim + 4 * 3)
    assert bytes_of_both <= kept < bytes_of_both + 64


def test_activation_memory_orders_methods_as_it_must(
    tiny_backbone: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    kept = {
        name: accounting.activation_memory(vt.tune(tiny_backbone, name, num_classes=3), *batch)
        for name in ("linear", "bitfit", "full")
    }
    assert kept["linear"] < kept["bitfit"] <= kept["full"]
    doubled = accounting.activation_memory(
        vt.tune(tiny_backbone, "full", num_classes=3),
        torch.cat([batch[0]] * 2),
        torch.cat([batch[1]] * 2),
    )
    assert doubled == pytest.approx(2 * kept["full"], rel=0.05)


def test_delta_size_is_that_of_the_file(tiny_backbone: nn.Module, tmp_path) -> None:
    model = vt.tune(tiny_backbone, "lora", num_classes=3, rank=2)
    vt.save_delta(model, tmp_path / "x.safetensors")
    assert (
        accounting.delta_size(model)
        == (tmp_path / "x.safetensors").stat().st_size
        > 4 * vt.count_parameters(model)[0]
    )


def test_step_time_leaves_the_model_as_it_was(
    tiny_backbone: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model = vt.tune(tiny_backbone, "full", num_classes=3)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    assert accounting.step_time(model, *batch, repeats=2) > 0
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_latency_ratio_tells_a_slow_model_from_a_fast_one(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Two hundred layers against one: the direction is certain on any machine, the size of the
    ratio is not tested."""
    fast, slow = (
        nn.Conv2d(3, 3, 3),
        nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(200))),
    )
    assert accounting.latency_ratio(slow, fast, batch[0], repeats=5) > 1


def test_without_method_merges_what_can_be_merged(tiny_backbone: nn.Module) -> None:
    lora, vpt = (
        vt.tune(tiny_backbone, "lora", num_classes=3),
        vt.tune(tiny_backbone, "vpt_deep", num_classes=3),
    )
    assert type(accounting.without_method(lora)) is type(tiny_backbone)
    assert accounting.without_method(vpt) is vpt
