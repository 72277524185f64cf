"""Training steps of whole networks, ours beside the usual way."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.accounting import kept_bytes
from vtlite.backbones.vit import VisionTransformer
from vtlite.bench_ops.tables import model_line
from vtlite.bench_ops.timing import clock, in_turns, peak
from vtlite.tuning import tune

Row = dict[str, Any]


class ConcatenatedPrompts(nn.Module):
    """VPT as it is usually written: the prompts of each image go through the block beside its
    tokens. x [B, N, D] -> [B, N, D]"""

    def __init__(self, block: nn.Module, prompts: nn.Parameter, prefix: int) -> None:
        super().__init__()
        self.block, self.prompts, self.prefix = block, prompts, prefix

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat(
            [x[:, : self.prefix], self.prompts.expand(len(x), -1, -1), x[:, self.prefix :]], dim=1
        )
        x = self.block(x)
        return torch.cat([x[:, : self.prefix], x[:, self.prefix + len(self.prompts) :]], dim=1)


def pairs(tiny: bool = False) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Networks that compute the same function -> (the usual way, ours). ViT-B/16 with random
    weights, 100 classes.

    The last is a bound: nothing is added to the frozen layers, and the gradient goes as far back as
    LoRA's does. No LoRA that leaves those layers to PyTorch can be faster.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = (
            VisionTransformer(img_size=32, embed_dim=32, depth=2, num_heads=2)
            if tiny
            else VisionTransformer()
        )
    prompts = 3 if tiny else 50
    prompted = tune(vit, "vpt_deep", num_classes=100, num_prompts=prompts)
    usual = copy.deepcopy(prompted)
    for i, block in enumerate(usual.backbone.blocks):
        usual.backbone.blocks[i] = ConcatenatedPrompts(block.block, block.prompts, block.prefix)
    found: dict[str, tuple[nn.Module, nn.Module]] = {
        f"VPT-deep, {prompts} prompts: concatenated -> shared": (usual, prompted)
    }
    try:
        import peft
    except ImportError:
        print("the comparison with peft is left out: it is not installed")
        return found
    ours = tune(
        vit, "lora", num_classes=100, rank=8, alpha=8.0, targets="", layers=("qkv",)
    )  # one update of the whole qkv, as peft's
    head = copy.deepcopy(ours.head)
    adapted = peft.get_peft_model(
        copy.deepcopy(vit), peft.LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"])
    )
    bound = tune(vit, "linear", num_classes=100)
    bound.network.head = copy.deepcopy(head)
    bound.backbone.blocks[0].attn.qkv.bias.requires_grad_()
    theirs = nn.Sequential(adapted, head)
    return (
        {"LoRA, rank 8 on qkv: peft -> vtlite": (theirs, ours)}
        | found
        | {"its bound: peft -> no update at all": (theirs, bound)}
    )


def measure_models(device: str, repeats: int, tiny: bool = False) -> list[Row]:
    """A training step (forward, backward, AdamW) and its memory, ours beside the usual way; batch 4
    on a CPU, 64 on a GPU."""
    rows: list[Row] = []
    batch = 64 if device == "cuda" else 4
    for name, models in pairs(tiny).items():
        side = 32 if tiny else 224
        images, labels = (
            torch.randn(batch, 3, side, side, device=device),
            torch.arange(batch, device=device),
        )
        steps = {
            way: one_step(model.to(device).train(), images, labels)
            for way, model in zip(("usual", "ours"), models, strict=True)
        }
        if device == "cpu":
            memory = {
                way: kept_bytes(loss, (*model.parameters(), *model.buffers(), images, labels))
                for (way, (loss, _)), model in zip(steps.items(), models, strict=True)
            }
        else:
            memory = {way: peak(step) for way, (_, step) in steps.items()}
        taken = in_turns({way: step for way, (_, step) in steps.items()}, clock(device), repeats)
        row: Row = {
            "models": name,
            "batch": batch,
            "step_ratio": statistics.median(o / u for u, o in zip(*taken.values(), strict=True)),
        }
        row |= {
            way: {"seconds": statistics.median(taken[way]), "memory_bytes": memory[way]}
            for way in taken
        }
        rows.append(row)
        print(model_line(row), flush=True)
    return rows


def one_step(
    model: nn.Module, images: Tensor, labels: Tensor
) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """The loss, and a whole training step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def loss() -> Tensor:
        return F.cross_entropy(model(images), labels)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return loss, step
