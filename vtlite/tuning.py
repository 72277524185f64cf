"""The public interface of tuning: `tune` a backbone, `merge` the result, save and load what was
trained.

>>> model = vt.tune(vt.load_backbone("vtlite-tiny"), "lora", num_classes=10, rank=4)
>>> vt.count_parameters(model)
(trainable, total)
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.backbones.stages import HEADS
from vtlite.backbones.vit import check_images
from vtlite.methods.base import Backbone, Method, make_method
from vtlite.storage import VTError, load_tensors, save_tensors

_NEEDED = (
    "forward_features",
    "forward_head",
    "reset_classifier",
    "get_classifier",
    "num_features",
)  # what our backbones and timm's share
_FORMAT = "vtlite delta 1"


class Tuned(nn.Module):
    """A backbone with a method attached and a head: images [B, C, S, S] -> logits [B, num_classes].

    `backbone`, `head` and `method` are what they say; the `requires_grad` flags tell what trains.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        method: Method,
        num_classes: int,
        fingerprint: str,
    ) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        self.head, self.method, self.num_classes, self.fingerprint = (
            head,
            method,
            num_classes,
            fingerprint,
        )

    def features(self, images: Tensor) -> Tensor:
        """Pooled features before the head: [B, C, S, S] -> [B, D]."""
        embed = getattr(self.backbone, "patch_embed", None)  # a ResNet has none, and takes any size
        check_images(images, self.in_chans, embed and embed.img_size)
        return self.backbone.forward_head(self.backbone.forward_features(images), pre_logits=True)

    @property
    def in_chans(self) -> int:
        return next(p for p in self.backbone.parameters() if p.ndim == 4).shape[
            1
        ]  # the first convolution sees the image

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def train(self, mode: bool = True) -> Tuned:
        """As in torch, but a module in which nothing trains stays in eval mode: no drop-path or
        batch statistics in a frozen backbone."""
        super().train(mode)
        for module in self.modules() if mode else ():
            flags = [p.requires_grad for p in module.parameters()]
            if flags and not any(flags):
                module.eval()
        return self

    def extra_repr(self) -> str:
        trainable, total = count_parameters(self)
        return f"method={self.method}, trainable={trainable:,} of {total:,}"


def tune(
    backbone: Backbone, method: str | Method, num_classes: int, seed: int = 0, **settings: Any
) -> Tuned:
    """Attach a method and a fresh head to a copy of `backbone`; the backbone passed in stays as it
    was.

    `backbone` is a ViT of ours or timm's, `method` a name ("lora", "parameter/weight/lora") with
    its `settings`, or a method object. `seed` fixes the new parameters. Raises `VTError` for
    unknown names or settings, values out of range and foreign backbones.
    """
    method = make_method(method, **settings)
    if not isinstance(num_classes, int) or num_classes < 1:
        raise VTError(f"expected num_classes to be a positive integer, found {num_classes!r}")
    if isinstance(backbone, Tuned):
        raise VTError(
            "expected a plain backbone, found a model that is tuned already; pass vt.merge(model) or the backbone it was made from"
        )
    if missing := [name for name in _NEEDED if not hasattr(backbone, name)]:
        raise VTError(
            f"expected a backbone of vtlite's or timm's, found {type(backbone).__name__} without {', '.join(missing)}; "
            "load one with vt.load_backbone or vt.create_backbone"
        )
    backbone = copy.deepcopy(backbone).requires_grad_(False)
    backbone.reset_classifier(0)
    identity, like = fingerprint(backbone), next(backbone.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with like.device:  # new parameters are made where the backbone lives ...
            backbone = method.attach(backbone) or backbone
            head = method.make_head(backbone.num_features, num_classes)
    return (
        Tuned(backbone, head, method, num_classes, identity).to(like.dtype).eval()
    )  # ... and in its precision


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) numbers of parameters, the head included."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)


@torch.no_grad()
def merge(model: Tuned) -> nn.Module:
    """The plain backbone with its head and the change folded in: same outputs, no trace of the
    method. `model` stays as it was.

    Raises `VTError` for a method that is no change of the backbone's weights.
    """
    if model.method.unmergeable:
        raise VTError(
            f"{_name(model.method)} cannot be merged: {model.method.unmergeable}; use the tuned model as it is"
        )
    plain: Any = copy.deepcopy(model.backbone)
    _merge_children(plain)
    plain.reset_classifier(model.num_classes)
    heads = plain.get_classifier()
    for head in (
        heads if isinstance(heads, tuple) else (heads,)
    ):  # DeiT has two, and answers with their mean
        head.load_state_dict(model.head.state_dict())
    return (
        plain.to(next(model.parameters())).requires_grad_(True).eval()
    )  # as any backbone that was just loaded


def _merge_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        _merge_children(child)  # innermost first, so that methods can be stacked
        merged: Any = getattr(child, "merged", None)
        if merged:
            setattr(module, name, merged())


def fingerprint(backbone: nn.Module) -> str:
    """A short hash of the names, shapes and values of a backbone's tensors, head excluded; the same
    for ours and timm's."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        if not name.startswith(HEADS):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            if not tensor.is_meta:
                digest.update(
                    tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                )
    return digest.hexdigest()[:16]


def trained_state(model: Tuned) -> dict[str, Tensor]:
    """What training may change, by name: the parameters that require a gradient, and the
    buffers."""
    state: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    owners = {
        name.rpartition(".")[0] for name in state
    }  # a frozen norm stays in eval mode, and so do its statistics
    kept = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        owner = name.rpartition(".")[0]
        if name in kept and (
            owner in owners or not list(model.get_submodule(owner).parameters(recurse=False))
        ):
            state[name] = buffer
    return state


def save_delta(model: Tuned, path: str | Path) -> None:
    """Write what was trained, the method's settings and the backbone's fingerprint to one
    safetensors file, atomically."""
    metadata = {
        "format": _FORMAT,
        "method": model.method.key,
        "settings": model.method.settings(),
        "backbone": model.fingerprint,
    }
    save_tensors(path, trained_state(model), metadata)


def load_delta(model: Tuned, path: str | Path) -> Tuned:
    """Load what `save_delta` wrote into a model tuned alike, in place, and return it.

    Everything is checked before the first value changes. Raises `VTError` for a damaged or foreign
    file, or one made with another method, other settings, another backbone, other shapes or types.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != _FORMAT:
        raise VTError(
            f"expected a delta written by vtlite.save_delta, found none in {path}; load whole backbones with vt.load_backbone"
        )
    for what, expected in (
        ("method", model.method.key),
        ("settings", model.method.settings()),
        ("backbone", model.fingerprint),
    ):
        if metadata.get(what) != expected:
            raise VTError(
                f"{path} was made with {what} {metadata.get(what)}, but this model has {expected}; tune the same backbone the same way first"
            )
    state: dict[str, Tensor] = trained_state(model)
    for name in sorted(state.keys() | tensors.keys()):
        expected, found = (
            f"{t.dtype} {list(t.shape)}" if t is not None else "nothing"
            for t in (state.get(name), tensors.get(name))
        )
        if expected != found:
            raise VTError(
                f"{path} does not fit this model: expected {name} as {expected}, found {found}; check num_classes and the backbone's dtype"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    return model


def _name(method: Method) -> str:
    return method.key.rsplit("/", 1)[-1]
