"""Inside two networks that are compared: what leaves their layers, as maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.base import about, channel_dim, features, is_norm
from vtlite.backbones.stages import has_part, stages
from vtlite.method import Backbone, Predictor, Tuned, short
from vtlite.methods.adapter.places import Places
from vtlite.methods.remapping.distillation.teaching import Distillation, Student, some_inputs
from vtlite.storage import VTError
from vtlite.task import Task
from vtlite.tuning import evaluating


def trunk(network: Any) -> Backbone:
    """The backbone of a tuned model, or a network that is one itself. Raises `VTError` for one that
    can't be looked into."""
    inner = getattr(network, "backbone", network)
    try:
        about(inner)
    except VTError as error:
        raise VTError(
            "expected a teacher to look into, a backbone of vtlite's or timm's or a tuned one, "
            f"found a {type(network).__name__}; learn from its answers alone, with kd or dkd"
        ) from error
    return inner


def pooled(network: Any, inputs: Tensor) -> tuple[Tensor, Any]:
    """The features that a network's head reads, and that head."""
    if isinstance(network, Tuned | Predictor):
        return network.features(inputs), network.head
    return features(trunk(network), inputs), network.get_classifier()


def look(
    network: Any, inputs: Tensor, part: str = "", put: Mapping[int, Tensor] | None = None
) -> tuple[Any, list[Tensor]]:
    """What a network answers, and what leaves each of its layers, as maps [B, C, h, w].

    Layers are the blocks of a ViT or Swin and the stages of a ResNet; with `part`, of those that
    have a part of this name, that part. `put` has maps to go on with in the place of those of a
    layer, by its number from 0. Hooks, as the network may be anybody's; a compiled one is looked at
    uncompiled.
    """
    backbone = trunk(network)
    places, seen = Places.of(backbone), list[Tensor]()

    def hook(number: int, layer: nn.Module) -> Callable[..., Tensor]:
        norm = next((m for m in layer.modules() if is_norm(m)), nn.BatchNorm2d(1))
        last = channel_dim(norm) == -1  # Swin's maps are [B, h, w, C]

        def see(module: nn.Module, _: Any, x: Tensor) -> Tensor:
            if put and number in put:
                x = _replaced(x, put[number], places, last)
            tokens = x.ndim == 3
            seen.append(places.maps(x) if tokens else x.permute(0, 3, 1, 2) if last else x)
            return x

        return see

    hooks = []
    for number, layer in enumerate(stages(backbone)):
        inside = part and has_part(layer, part)
        module = layer.get_submodule(part) if inside else layer
        hooks.append(module.register_forward_hook(hook(number, layer)))
    try:
        return network(inputs), seen
    finally:
        for each in hooks:
            each.remove()


def _replaced(x: Tensor, maps: Tensor, places: Places, last: bool) -> Tensor:
    """Tokens [B, N, C] or a map, made of other maps [B, C, h, w] alone; their mean is the token
    that has no place."""
    if x.ndim == 3:
        patches = maps.flatten(2).mT
        return torch.cat(
            [patches.mean(1, keepdim=True).expand_as(x[:, : places.prefix]), patches], 1
        )
    return maps.permute(0, 2, 3, 1) if last else maps


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps, the larger of them averaged to the size of the other."""
    height, width = (min(one, other) for one, other in zip(a.shape[2:], b.shape[2:], strict=True))
    return F.adaptive_avg_pool2d(a, (height, width)), F.adaptive_avg_pool2d(b, (height, width))


def matched(
    method: Distillation,
    student: Student,
    layers: tuple[int, ...] | None,
    teacher_layers: tuple[int, ...] | None = None,
) -> list[tuple[int, int]]:
    """Which of the student's layers learns from which of the teacher's, counted from 1: all of
    them, each from the one as deep in proportion, where nothing else is said.

    Raises `VTError` for layers that do not exist.
    """
    teacher = student.source if student.teacher is None else student.teacher
    ours, theirs = len(stages(student.backbone)), len(stages(trunk(teacher.network)))
    layers = tuple(range(1, ours + 1)) if layers is None else layers
    _expect_layers(method, "layers", "student", layers, ours)
    if teacher_layers is None:
        teacher_layers = tuple(max(1, round(i * theirs / ours)) for i in layers)
    _expect_layers(method, "teacher_layers", "teacher", teacher_layers, theirs)
    if len(layers) != len(teacher_layers):
        raise VTError(
            f"{short(method.key)}: expected as many layers as teacher_layers, found {len(layers)} "
            f"and {len(teacher_layers)}; name a pair for each"
        )
    return list(zip(layers, teacher_layers, strict=True))


def _expect_layers(
    method: Distillation, name: str, whose: str, found: tuple[int, ...], most: int
) -> None:
    if not found or not all(1 <= i <= most for i in found):
        raise VTError(
            f"{short(method.key)}: expected {name} from 1 to {most}, the {whose}'s number of "
            f"layers, found {found}; choose among them"
        )


def connectors(
    model: Tuned,
    task: Task,
    pairs: list[tuple[int, int]],
    part: str = "",
    norm: bool = False,
) -> nn.ModuleList:
    """For each pair of layers a 1x1 convolution from the student's width to the teacher's, with
    batch norm if asked for."""
    student, inputs = model.network, some_inputs(model, task)
    with evaluating(model):
        (_, ours), (_, theirs) = (
            look(network, inputs, part) for network in (student, student.teacher.network)
        )
    made = []
    for s, t in pairs:
        narrow, wide = ours[s - 1].shape[1], theirs[t - 1].shape[1]
        convolution = nn.Conv2d(narrow, wide, 1)
        made.append(nn.Sequential(convolution, nn.BatchNorm2d(wide)) if norm else convolution)
    return nn.ModuleList(made).to(next(model.parameters()))
