"""The public interface of tuning: `tune` a backbone, `merge` the result, save and load what was
trained.

>>> model = vt.tune(vt.load_backbone("vtlite-tiny"), "lora", num_classes=10, rank=4)
>>> vt.count_parameters(model)
(trainable, total)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.arguments import MOST, fits, named, seed_number
from vtlite.backbones.base import HEADS, about, features
from vtlite.backbones.clip import CLIP
from vtlite.method import Backbone, Method, Predictor, Tuned, make_method, short
from vtlite.storage import (
    VTError,
    as_path,
    digest,
    expect_finite,
    load_tensors,
    said,
    save_tensors,
    unknown,
)
from vtlite.task import Classification, Task

_FORMAT = "vtlite delta 2"


def tune(
    backbone: Backbone,
    method: str | Method | type[Method],
    task: Task | int | None = None,
    seed: int = 0,
    *,
    num_classes: int | None = None,
    **settings: Any,
) -> Tuned:
    """Build a method's network for a task from a copy of `backbone`; the backbone passed in stays
    as it was.

    `backbone` is one of ours or timm's, or a two-tower model for a method that tunes one; `method`
    a name ("lora", "parameter/weight/lora") with its `settings`, or a method object. `task` is what
    `load_task` gives or, for a classification of data of one's own, the number of classes. `seed`
    fixes the new parameters. Raises `VTError` for unknown names or settings, values out of range
    and foreign backbones.
    """
    for name in settings:
        if get_close_matches(name, own := ("task", "seed", "num_classes"), 1, 0.8):
            raise unknown("argument of tune", name, own)  # nearer than any setting
    method, seed = make_method(method, **settings), seed_number(seed)
    task = _as_task(task, num_classes)
    if isinstance(backbone, Tuned):
        raise VTError(
            "expected a plain backbone, found a model that is tuned already; pass vt.merge(model) "
            "or the backbone it was made from"
        )
    _image_network(backbone, method)  # raises for one that the method does not tune
    with torch.inference_mode(False), torch.enable_grad():  # a parameter made there could not train
        backbone = copy.deepcopy(backbone).requires_grad_(False)
        seeing = _image_network(backbone, method)
        seeing.reset_classifier(0)
        about(seeing).prepare()
        trial = _Trial(seeing, method)
        print_, like = fingerprint(backbone), next(backbone.parameters())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with like.device:  # new parameters are made where the backbone lives ...
                network = method.build(backbone, task)
        model = Tuned(network, method, task, print_).to(like.dtype).eval()  # ... in its precision
        trial.expect_to_run(model)
        return model


def _image_network(backbone: Any, method: Method) -> Any:
    """What sees images: the backbone, or the image tower of a two-tower model.

    Raises `VTError` where the method tunes the other kind, and for a foreign network.
    """
    name, two = short(method.key), isinstance(backbone, CLIP)
    if two and not method.two_towers:
        raise VTError(
            f"{name}: expected an image backbone, found a two-tower model; tune clip.visual, or "
            "choose a method for two towers, such as clip_adapter"
        )
    if method.two_towers and not two:
        raise VTError(
            f'{name}: expected a two-tower model, such as vt.load_backbone("vtlite-clip"), found '
            f"{type(backbone).__name__}; tune this backbone with another method"
        )
    network = backbone.visual if two else backbone
    about(network)
    return network


class _Trial:
    """Two images and what a backbone that is not ours makes of them, so that a change which it
    doesn't bear is refused at once, and not a traceback later."""

    def __init__(self, backbone: Backbone, method: Method) -> None:
        self.name = type(backbone).__name__
        self.method, self.images = method, about(backbone).sample()
        self.before = self.answers(backbone)

    @torch.no_grad()
    def answers(self, backbone: Backbone) -> Any:
        if self.images is None:
            return None
        size = about(backbone).input_size  # a method may settle what the backbone left open
        images = self.images if size is None else F.interpolate(self.images, size)
        return features(backbone, images)

    def expect_to_run(self, model: Tuned) -> None:
        """Raise `VTError` if the tuned model fails, or starts elsewhere than it should."""
        if self.images is None or not hasattr(model.network, "backbone"):
            return
        try:
            now = self.answers(model.backbone)
        except VTError:
            raise
        except Exception as error:  # foreign code may raise anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            if self.method.starts_elsewhere or _near(now, self.before, 1e-2):
                return
            reason = "it would not start as the backbone"
        raise VTError(
            f"{short(self.method.key)}: expected a network that bears its change, found "
            f"{self.name}, where it fails ({reason}); "
            "choose another method, python -m vtlite networks says which ones work"
        )


def _near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether two results are the same but for rounding, measured by the largest value."""
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _as_task(task: Task | int | None, num_classes: int | None) -> Task:
    if isinstance(task, Task):
        if not (task.classes or getattr(task, "parts", None)):
            raise VTError(
                f"expected a task with classes, found the {type(task).__name__} {task.name!r} "
                "without; give it their names"
            )
        if num_classes not in (None, task.num_classes):
            raise VTError(
                f"expected a task or a number of classes, found one of {task.num_classes} classes "
                f"and num_classes={num_classes}; leave num_classes out"
            )
        return task
    count: Any = num_classes if task is None else task
    if not fits(count, int) or not 1 <= count <= MOST:
        raise VTError(
            f"expected num_classes to be a positive integer (or a task), found {said(count)}; "
            "pass vt.load_task(...) or the number of classes"
        )
    return Classification(classes=tuple(str(i) for i in range(int(count))))


@named
@torch.no_grad()
def merge(model: Tuned) -> nn.Module:
    """The plain backbone with its head and the change folded in: same outputs, no trace of the
    method. `model` stays as it was.

    For a classification it is the backbone with its own classifier, for other tasks a backbone and
    a head. Raises `VTError` for a method that is no change of the backbone's weights.
    """
    if not isinstance(model, Tuned):
        raise VTError(
            f"expected a model that vt.tune made, found {type(model).__name__}; "
            "it has nothing to merge and can be used as it is"
        )
    if model.method.unmergeable:
        raise VTError(
            f"{short(model.method.key)} cannot be merged: {model.method.unmergeable}; "
            "use the tuned model as it is"
        )
    with torch.random.fork_rng(devices=[]):  # a new head draws values before it gets the model's
        head = model.head.merged() if hasattr(model.head, "merged") else model.head
        plain = _with_head(merged_backbone(model), head, model.task)
    plain = plain.to(next(model.parameters())).eval()
    _expect_same(model, plain)
    return plain


def _expect_same(model: Tuned, plain: Any) -> None:
    """Raise `VTError` if a network that is not ours answers otherwise after merging, on two
    images."""
    images = about(getattr(plain, "backbone", plain)).sample()
    if images is None or not model.task.is_classifier:
        return
    with evaluating(model):
        before, after = model(images), plain(images)
    exact = images.dtype in (torch.float32, torch.float64)
    if isinstance(after, Tensor) and not _near(after, before, 1e-3 if exact else 0.1):
        raise VTError(
            f"{short(model.method.key)} cannot be merged into this {type(plain).__name__}, which "
            "answers otherwise with the change in its weights; use the tuned model as it is"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def merged_backbone(model: Tuned) -> Backbone:
    """A copy of the model's backbone with the change folded in and without a head; all of it would
    train, as of any backbone that was just loaded."""
    plain: Any = copy.deepcopy(model.backbone)
    _merge_children(plain)
    return plain.requires_grad_(True).eval()


def _merge_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        _merge_children(child)  # innermost first, so that methods can be stacked
        merged: Any = getattr(child, "merged", None)
        if merged:
            setattr(module, name, merged())


def _with_head(plain: Any, head: nn.Module, task: Task) -> Any:
    """The backbone with `head` as its own classifier, where it takes one like it."""
    if task.is_classifier and isinstance(head, nn.Linear):
        plain.reset_classifier(task.num_classes)
        own = plain.get_classifier()
        own = own if isinstance(own, tuple) else (own,)  # DeiT's two: it answers with their mean
        if all(isinstance(h, nn.Linear) and h.weight.shape == head.weight.shape for h in own):
            for each in own:
                # in its own type first: what is made anew is float32, and would round
                each.to(head.weight).load_state_dict(head.state_dict())
            return plain.requires_grad_(True)
        plain.reset_classifier(0)
    return Predictor(plain, copy.deepcopy(head), task).requires_grad_(True)


def fingerprint(backbone: nn.Module) -> str:
    """A short hash of the names, shapes and values of a backbone's tensors, head excluded; the same
    for ours and timm's."""
    tensors = {n: t for n, t in backbone.state_dict().items() if not n.startswith(HEADS)}
    return digest(tensors).hexdigest()[:16]


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training may change, by name: the parameters that require a gradient, and the
    buffers."""
    state: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # A norm of which nothing trains stays in eval mode, and so do its statistics.
    owners = {name.rpartition(".")[0] for name in state}
    kept = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        owner = name.rpartition(".")[0]
        alone = not list(model.get_submodule(owner).parameters(recurse=False))
        if name in kept and (owner in owners or alone):
            state[name] = buffer
    return state


@named
def save_delta(model: Tuned, path: str | Path) -> None:
    """Write what was trained, the method's settings, the task's classes and the backbone's
    fingerprint to one safetensors file, atomically."""
    if not isinstance(model, Tuned):
        raise VTError(
            f"expected a model that vt.tune made, found {type(model).__name__}; "
            "write whole backbones with vt.save_backbone"
        )
    path = as_path(path)
    expect_finite(trained_state(model), "the model")
    metadata = {
        "format": _FORMAT,
        "method": model.method.key,
        "settings": model.method.settings(),
        "task": model.task.record(),
        "backbone": model.fingerprint,
    }
    save_tensors(path, trained_state(model), metadata)


@named
def load_delta(model: Tuned | Backbone, path: str | Path) -> Tuned:
    """Load what `save_delta` wrote: into a model tuned alike, in place, or onto the plain backbone
    that it was made on, which is then tuned by the method, settings and classes in the file.

    Everything is checked before the first value changes. Raises `VTError` for a damaged or foreign
    file, or one made with another method, other settings, another backbone, other shapes or types.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != _FORMAT:
        raise VTError(
            f"expected a delta written by vtlite.save_delta ({_FORMAT}), found none in {path}; "
            "load whole backbones with vt.load_backbone"
        )
    expect_finite(tensors, path)
    if not isinstance(model, Tuned):
        model = _tuned_like(model, metadata)
    for what, expected in (
        ("method", model.method.key),
        ("settings", model.method.settings()),
        ("backbone", model.fingerprint),
    ):
        if (found := metadata.get(what)) != expected:
            raise VTError(
                f"{path} was made with {what} {found}, but this model has {expected}; "
                "tune the same backbone the same way first"
            )
    fresh = model
    if hasattr(model.network, "shape_like"):  # a search has chosen its shape
        fresh = copy.deepcopy(model)
        fresh.network.shape_like(tensors)
    state = trained_state(fresh)
    for name in sorted(state.keys() | tensors.keys()):
        here, there = (
            f"{t.dtype} {list(t.shape)}" if t is not None else "nothing"
            for t in (state.get(name), tensors.get(name))
        )
        if here != there:
            raise VTError(
                f"{path} does not fit this model: expected {name} as {here}, found {there}; "
                "check the number of classes and the backbone's dtype"
            )
    before = {name: tensor.detach().clone() for name, tensor in state.items()}
    try:
        _copy(tensors, state)
    except BaseException:  # an interruption
        _copy(before, state)
        raise
    model.network = fresh.network
    return model.train(model.training)  # a network that keeps values of its old tensors drops them


@torch.no_grad()
def _copy(values: dict[str, Tensor], into: dict[str, Tensor]) -> None:
    for name, value in values.items():
        into[name].copy_(value)


def _tuned_like(backbone: Backbone, metadata: dict[str, Any]) -> Tuned:
    """A fresh model of the method, settings and task that a delta's metadata names."""
    settings, task = metadata.get("settings"), Task.from_record(metadata.get("task", {}))
    if not isinstance(settings, dict):
        raise VTError(
            f"expected a delta's settings as names and values, found {said(settings)}; the file is "
            "damaged"
        )
    return tune(backbone, make_method(str(metadata.get("method")), **settings), task)
