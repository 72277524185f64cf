"""Exercise 6.5, `identity_layer`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d

from vtlite.checks.base import expect, fail, passed, randn, same, untouched
from vtlite.checks.compare import difference
from vtlite.checks.harness import Answer, check, lives, new_memory

_KEYS = ("kernel", "gamma", "beta", "mean", "var")


def _right(x: Tensor, size: int, eps: float) -> dict[str, Tensor]:
    """Channel by channel, from all of its pixels in a row."""
    C = x.shape[1]
    pixels = [x[:, c].reshape(-1) for c in range(C)]
    mean = torch.stack([sum(p, p.new_zeros(())) / len(p) for p in pixels])
    var = torch.stack([((p - m) ** 2).sum() / len(p) for p, m in zip(pixels, mean, strict=True)])
    kernel = x.new_zeros(C, C, size, size)
    for c in range(C):
        kernel[c, c, size // 2, size // 2] = 1
    return {
        "kernel": kernel,
        "gamma": (var + eps) ** 0.5,
        "beta": mean + 0,
        "mean": mean,
        "var": var,
    }


def _applied(x: Tensor, layer: dict[str, Tensor], eps: float, train: bool) -> Tensor:
    mean, var = layer["mean"].clone(), layer["var"].clone()
    y = conv2d(x, layer["kernel"], padding=layer["kernel"].shape[-1] // 2)
    return batch_norm(y, mean, var, layer["gamma"], layer["beta"], train, 0.1, eps)


@check
def identity_layer(student: Answer) -> None:
    """6.5: `identity_layer(x, size, eps)` -> the kernel and the batch norm of a new layer that gives
    back x [B, C, h, w], in eval and in train mode."""
    for seed, shape, size, eps in (
        (0, (3, 4, 2, 5), 3, 0.05),
        (1, (2, 2, 3, 3), 5, 0.5),
        (2, (1, 3, 4, 2), 1, 1e-3),
        (3, (4, 1, 1, 3), 3, 1e-5),
        (4, (5, 3, 2, 2), 7, 0.1),
    ):
        (x,) = randn(seed, shape)
        scale = torch.arange(1.0, shape[1] + 1)[:, None, None]
        _layer_case(student, 0.3 * scale * x + (scale - 2.5), size, eps, "")
    (x,) = randn(5, (3, 3, 2, 4))
    x[:, 1] = 1.5
    _layer_case(student, x, 3, 0.02, ", one channel constant")
    x[:, 2] += 300
    _layer_case(student, x, 3, 1e-3, ", one channel far from zero")
    (x,) = randn(6, (3, 4, 2, 3))
    lives(student, _right, {"x": x, "size": 3, "eps": 0.1})
    passed(
        "identity_layer",
        "a convolution that is the identity",
        "the statistics of all pixels of a channel",
        "the scale with its eps",
        "the shift",
        "x again in eval and in train mode",
        "channels that are constant or far from zero",
        "any type and device",
        "new tensors and arguments untouched",
    )


def _layer_case(student: Answer, x: Tensor, size: int, eps: float, what: str) -> None:
    before = x.clone()
    found = student(x, size, eps)
    untouched({"x": x}, {"x": before})
    case = f"x {list(x.shape)}, size {size}, eps {eps}{what}"
    if not (isinstance(found, dict) and found.keys() == {*_KEYS}):
        fail(
            f"{case}: expected a dict with the keys {list(_KEYS)}, found"
            f" {sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__}",
            "return a dict with these five keys, and no other",
        )
    right = _right(x.double(), size, eps)
    mistakes = _mistakes(x.double(), size, eps, right)
    for key in ("kernel", "mean", "var", "gamma", "beta"):
        expected = right[key].to(x.dtype)
        wrong = {
            text: value.to(x.dtype)
            for text, value in mistakes[key].items()
            if difference(value.to(x.dtype), expected, 1e-5)
        }
        same(f"{key!r}, {case}", found[key], expected, wrong)
        new_memory(found[key], {"x": x})
    owners = {key: found[key].untyped_storage().data_ptr() for key in ("beta", "mean")}
    expect(
        len(set(owners.values())) == 2,
        f"{case}: expected five tensors, found that 'beta' and 'mean' share their memory",
        "beta learns and mean follows the batches: one tensor under two names would move both;"
        " clone it",
    )
    wide = {key: t.double() for key, t in found.items()}
    if x[:, 0].numel() > 1:
        for mode, train in (("eval", False), ("train", True)):
            same(
                f"the layer's output in {mode} mode, {case}",
                _applied(x.double(), wide, eps, train),
                x.double(),
                tolerance=1e-4,
            )


def _mistakes(x: Tensor, size: int, eps: float, right: dict[str, Tensor]) -> dict[str, Any]:
    C, n = x.shape[1], x[:, 0].numel()
    mean, var, kernel = right["mean"], right["var"], right["kernel"]
    dense = torch.zeros_like(kernel)
    dense[:, :, size // 2, size // 2] = 1
    blur = torch.zeros_like(kernel)
    blur[range(C), range(C)] = 1 / size**2
    full = torch.zeros_like(kernel)
    full[range(C), range(C)] = 1
    corner = torch.zeros_like(kernel)
    corner[range(C), range(C), 0, 0] = 1
    last = torch.zeros_like(kernel)
    last[range(C), range(C), -1, -1] = 1
    unbiased = var * n / max(1, n - 1)
    images = x.mean((2, 3)).var(0, unbiased=False)
    whole = x.mean().expand(C)
    scale = (var + eps).sqrt()
    safe = (var + eps).rsqrt()
    return {
        "kernel": {
            "every output sums all channels: the 1 stands only where both channels agree": dense,
            "that is a mean over the window: the identity is a 1 in the middle": blur,
            "the whole window is summed: the identity is a 1 in the middle": full,
            "the 1 stands in the corner, so the image moves: it belongs into the middle": corner,
            "the 1 stands in the last corner, so the image moves; it belongs into the middle": last,
            "the kernel is zero: nothing passes": torch.zeros_like(kernel),
            "the kernel has the scale in it: that is the norm's part": kernel
            * scale[:, None, None, None],
            "the kernel is one for each channel (groups): here every output reads all channels": (
                kernel.sum(1, keepdim=True)
            ),
        },
        "mean": {
            "the mean runs over all channels: each has its own": whole,
            "the mean is zero, as in a new norm: x has one": torch.zeros_like(mean),
            "the mean is taken over the images alone: over the places, too": x.mean(0),
            "the mean is turned": -mean,
            "the mean is a sum": mean * n,
            "the mean is by the first image alone": x[0].mean((1, 2)),
        },
        "var": {
            "that is the sample variance, over n - 1: in train mode the norm divides by n": unbiased,
            "that is the standard deviation: var is its square": var.sqrt(),
            "the variance is that of all channels together: each has its own": x.var(
                unbiased=False
            ).expand(C),
            "the variance is 1, as in a new norm: x has another": torch.ones_like(var),
            "the mean is not subtracted: that is the mean of the squares": x.square().mean(
                (0, 2, 3)
            ),
            "that is the variance of the images' means: every pixel counts": images,
            "the variance is the mean of each image's own: one mean belongs to all images": x.var(
                (2, 3), unbiased=False
            ).mean(0),
            "eps is in the variance: the norm adds it by itself": var + eps,
            "it is a sum; take the mean": var * n,
        },
        "gamma": {
            "eps is missing: the norm divides by sqrt(var + eps)": var.sqrt(),
            "eps is outside the root: sqrt(var + eps)": var.sqrt() + eps,
            "the root is missing: the norm divides by sqrt(var + eps)": var + eps,
            "gamma is one over what it should be: it undoes a division, so it multiplies": safe,
            "gamma is 1, as in a new norm: it must undo the division": torch.ones_like(var),
            "gamma is that of a new norm, with variance 1": torch.full_like(var, (1 + eps) ** 0.5),
            "gamma has the sample variance, over n - 1": (unbiased + eps).sqrt(),
            "eps is counted twice": (var + 2 * eps).sqrt(),
            "eps is subtracted": (var - eps).clamp(min=0).sqrt(),
            "eps is squared": (var + eps**2).sqrt(),
            "the sign is turned": -scale,
        },
        "beta": {
            "the sign is turned: the norm subtracts the mean, beta adds it again": -mean,
            "beta is 0, as in a new norm: the mean is missing": torch.zeros_like(mean),
            "beta is added behind the scale, so it is the mean itself, not mean times gamma": (
                mean * scale
            ),
            "beta is added behind the scale, so it is the mean itself, not mean over gamma": (
                mean * safe
            ),
            "that is mean / sqrt(var + eps) with a minus: it merges a norm, and makes no identity": (
                -mean * safe
            ),
        },
    }
