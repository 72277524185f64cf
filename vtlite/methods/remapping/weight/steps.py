"""A network that is its backbone after some steps, which a search has chosen, and says which."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from vtlite.backbones.stages import attention_blocks, stages
from vtlite.data.items import batches
from vtlite.method import Backbone, Predictor, Train, Tuned
from vtlite.methods.remapping.distillation.teaching import Fixed
from vtlite.methods.remapping.weight.growing import (
    Deeper,
    Inner,
    branched,
    copies,
    inner_widths,
    narrow,
    residual_blocks,
    see_data,
    silent_copy,
    widen,
    widths,
)
from vtlite.storage import VTError
from vtlite.task import Task
from vtlite.training import evaluate

WIDER, DEEPER, ADDED, BESIDE, NARROWER, SHORTER = range(6)
NAMES = ("wider", "deeper", "two branches added", "two branches side by side", "half", "without")


class Remapped(Predictor):
    """Inputs -> the task's answer, by the backbone after the steps in `plan` [S, 2], each a kind
    and the place where it was taken."""

    plan: Tensor

    def __init__(self, backbone: Backbone, head: nn.Module, task: Task) -> None:
        super().__init__(backbone, head, task)
        self.register_buffer("plan", torch.zeros(0, 2, dtype=torch.long))
        self.teacher: Fixed | None = None  # whose answers it repeats, where a method gives it one

    def take(self, kind: int, place: int, limit: float = math.inf) -> None:
        """Take a step, unless the backbone would have more than `limit` numbers; what the network
        computes stays."""
        larger = copy.deepcopy(self.backbone)
        take_step(larger, kind, place)
        if numbers(larger) <= limit:
            self.backbone = larger.requires_grad_(True)
            self.plan = torch.cat([self.plan, self.plan.new_tensor([[kind, place]])])

    def shape_like(self, tensors: dict[str, Tensor]) -> None:
        """Take the steps of a saved network, whose values come afterwards."""
        plan = tensors.get("network.plan", self.plan)
        for kind, place in plan[len(self.plan) :].tolist():
            if not (0 <= kind < len(NAMES) and 0 <= place < len(places(self.backbone, kind))):
                raise VTError(
                    f"expected steps that this backbone can take, found {kind}, {place}; load the "
                    "delta on the backbone that it was made on"
                )
            self.take(kind, place)

    def told(self) -> list[str]:
        """The steps in words."""
        return [f"{NAMES[kind]} at {place}" for kind, place in self.plan.tolist()]


def places(backbone: Backbone, kind: int) -> list[Any]:
    """Where a step of this kind can be taken now, from input to output."""
    if kind in (WIDER, NARROWER):
        return widths(backbone)
    if kind == DEEPER:
        if getattr(backbone, "rope_mixed", False):  # each block has a rotation of its own
            return []
        return residual_blocks(backbone) or [b for b in block_list(backbone) if whole(b)]
    if kind == SHORTER:
        return removable(backbone)
    return [block for block in block_list(backbone) if hasattr(block, "attn") and whole(block)] or (
        residual_blocks(backbone)
    )


def expect_places(backbone: Backbone, *kinds: int) -> None:
    """Raise `VTError` for a network in which no width can change, or without the blocks that steps
    of these kinds need."""
    inner_widths(backbone, "a step")
    for kind in kinds:
        places(backbone, kind)


def whole(block: Any) -> bool:
    """Whether a Transformer block's MLP is one."""
    return hasattr(getattr(block, "mlp", None), "fc2")


def removable(backbone: Backbone) -> list[Any]:
    """The blocks that can be left out: what enters has the shape of what leaves, and one block of a
    stage is left."""
    blocks = [b for b in block_list(backbone) if getattr(b, "downsample", None) is None]
    return [block for block in blocks if len(container_of(backbone, block)) > 1]


def container_of(backbone: Backbone, block: nn.Module) -> Any:
    """The list of blocks that this one is in."""
    lists = (m for m in backbone.modules() if isinstance(m, nn.Sequential | nn.ModuleList))
    return next(found for found in lists if any(each is block for each in found))


def block_list(backbone: Backbone) -> list[Any]:
    """All blocks, those that have grown among them."""
    modules = [m for stage in stages(backbone) for m in stage.modules()]
    found = [m for m in modules if hasattr(m, "conv2")]
    if found and not any(hasattr(m, "attn") for m in modules):  # XCiT's blocks have both inside
        return found
    parts = ("attn.proj", "norm2", "mlp")
    return attention_blocks(backbone, "a step", parts, plain=True)


def take_step(backbone: Backbone, kind: int, place: int) -> None:
    """One step, at a place among those of `places`."""
    at = places(backbone, kind)[place]
    match kind:
        case 0:  # half as many units more
            widen(at, *copies(at.width, at.width * 3 // 2, spread=0.5))
        case 4:
            narrow(at, max(1, at.width // 2))
        case 1 if hasattr(at, "conv2"):
            at.conv2 = Deeper(at.conv2)
        case 1:
            blocks = container_of(backbone, at)
            blocks.insert([*blocks].index(at) + 1, silent_copy(at))
        case 5:
            blocks = container_of(backbone, at)
            del blocks[[*blocks].index(at)]
        case _ if hasattr(at, "conv2"):
            at.conv2 = branched(at.conv2, kind == BESIDE)
        case _:
            at.mlp = branched(at.mlp, kind == BESIDE)


def blocks_of(backbone: Backbone, kind: int) -> list[int]:
    """For each place of a step of this kind the number of the block that it is in."""
    inside = [set(map(id, block.modules())) for block in block_list(backbone)]
    found = [at.block if isinstance(at, Inner) else at for at in places(backbone, kind)]
    return [next(i for i, ids in enumerate(inside) if id(at) in ids) for at in found]


def block_tokens(backbone: Backbone) -> Tensor:
    """What a policy reads of each block: its numbers on a logarithmic scale, and its place [T,
    2]."""
    blocks = block_list(backbone)
    sizes = torch.tensor([math.log10(numbers(block)) for block in blocks])
    return torch.stack([sizes, torch.linspace(0, 1, len(blocks))], dim=1)


def numbers(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def held_out(task: Task) -> tuple[Any, Any]:
    """What candidates train on and what they are compared on: the validation images, or every
    fifth of the training images where there are none. Raises `VTError` for too few images."""
    if task.val is not None:
        return task.train, task.val
    count = len(task.train)
    if count < 5:
        raise VTError(
            f"expected at least 5 training images to compare candidates on some, found {count}; "
            "give more, or validation images"
        )
    kept = [i for i in range(count) if i % 5]
    return Subset(task.train, kept), Subset(task.train, range(0, count, 5))


def show(model: Tuned, data: Any) -> None:
    """Let new layers with a norm see the images, so that they are the identity in training too."""
    new = [m for m in model.modules() if isinstance(m, Deeper) and not m.seen]
    if new:
        see_data(model, new, (images for images, _ in batches(data, 100)))


def try_out(model: Tuned, network: Remapped, task: Task, train: Train, epochs: int) -> Any:
    """A candidate that has trained for a while, and how good it is on images held out."""
    candidate = Tuned(network, model.method, model.task, model.fingerprint)
    shown, compared = held_out(task)
    show(candidate, shown)
    train(candidate, shown, epochs=epochs, val=None)
    return candidate, evaluate(candidate, compared)[task.metric]
