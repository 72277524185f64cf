"""Exercise 3.8, `framed`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlite.checks.base import copies, expect, fail, passed, randn, same, untouched
from vtlite.checks.harness import Answer, check, lives, new_memory, same_gradients

Lives = Callable[[], None]  # what is run after all values


def _right(images: Tensor, up: Tensor, down: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Pixel by pixel, from the side that it lies on."""
    H, W = images.shape[-2:]
    P = up.shape[1]
    rows = []
    for y in range(H):
        row = []
        for x in range(W):
            pixel = images[:, :, y, x]
            if y < P:
                pixel = pixel + up[:, y, x]
            elif y >= H - P:
                pixel = pixel + down[:, y - (H - P), x]
            elif x < P:
                pixel = pixel + left[:, y - P, x]
            elif x >= W - P:
                pixel = pixel + right[:, y - P, x - (W - P)]
            row.append(pixel)
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


@check
def framed(student: Answer) -> None:
    """3.8: `framed(images, up, down, left, right)` -> the images with a learned frame of pixels
    added to their edges."""
    later: list[Lives] = []
    for seed, B, C, H, W, P in (
        (0, 2, 3, 6, 7, 2),
        (1, 1, 1, 5, 4, 1),
        (2, 3, 2, 7, 9, 3),
        (3, 2, 3, 6, 6, 2),
        (4, 1, 3, 9, 5, 2),
        (5, 3, 3, 3, 3, 1),
    ):
        images, up, down, left, right = randn(
            seed, (B, C, H, W), (C, P, W), (C, P, W), (C, H - 2 * P, P), (C, H - 2 * P, P)
        )
        given = {"images": images, "up": up, "down": down, "left": left, "right": right}
        later.append(_frame_case(student, given))
    for run in later:
        run()
    passed(
        "framed",
        "the four sides",
        "the corners once",
        "a sum and no replacement",
        "the middle as it was",
        "images of any size",
        "gradients of images and frame",
        "any type and device",
        "new tensors and arguments untouched",
    )


def _frame_case(student: Answer, given: dict[str, Tensor]) -> Lives:
    before = copies(given)
    found = student(*given.values())
    untouched(given, before)
    images, up, down, left, right = given.values()
    (_, P, W), H = up.shape, images.shape[-2]
    expected = _right(*given.values())
    case = f"images {list(images.shape)}, a frame of {P} pixels"
    larger = (H + 2 * P, W + 2 * P)
    if isinstance(found, Tensor) and tuple(found.shape[-2:]) == larger:
        fail(
            f"{case}: expected shape {list(images.shape)}, found {list(found.shape)}",
            "the frame lies around the images; it lies on them, and their size stays",
        )

    def of(up: Tensor, down: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return _right(images, up, down, left, right)

    inside = torch.zeros_like(images)
    inside[..., P : H - P, P : W - P] = 1.0
    frame = (expected - images)[0]
    zero = [torch.zeros_like(t) for t in (up, down, left, right)]
    higher = F.pad(left, (0, W - P, 0, 2 * P)) + F.pad(right, (W - P, 0, 0, 2 * P))
    mistakes = {
        "the frame takes the place of the pixels; it is added to them": images * inside + frame,
        "the middle is overwritten, with zero: the frame is zero there": images * (1 - inside)
        + frame,
        "the frame is missing": images.clone(),
        "the frame alone is returned, without the images": frame.expand_as(images).clone(),
        "the frame is subtracted": images - frame,
        "the frame is added twice": images + 2 * frame,
        "the frame multiplies; it is added": images * torch.where(inside > 0, 1.0, frame),
        "up and down are exchanged": of(down, up, left, right),
        "left and right are exchanged": of(up, down, right, left),
        "up and down, left and right are exchanged": of(down, up, right, left),
        "up is used for both, up and down": of(up, up, left, right),
        "left is used for both, left and right": of(up, down, left, left),
        "up is upside down": of(up.flip(1), down, left, right),
        "down is upside down": of(up, down.flip(1), left, right),
        "up and down are upside down": of(up.flip(1), down.flip(1), left, right),
        "right is mirrored": of(up, down, left, right.flip(2)),
        "left is mirrored": of(up, down, left.flip(2), right),
        "left and right are missing": of(up, down, zero[2], zero[3]),
        "up and down are missing": of(zero[0], zero[1], left, right),
        "right is missing": of(up, down, left, zero[3]),
        "left is missing": of(up, down, zero[2], right),
        "down is missing": of(up, zero[1], left, right),
        "up is missing": of(zero[0], down, left, right),
        "left and right begin at the upper edge; they begin below up": of(
            up, down, zero[2], zero[3]
        )
        + higher,
        "left and right begin at the upper edge, and up and down lie over them": images
        + torch.where(of(up, down, zero[2], zero[3]) != images, frame, higher),
        "the frame of the first image's size is scaled": images + frame / len(images),
        "the result is clipped to 0 .. 1; the images are normalised, and so it is not": (
            expected.clamp(0, 1)
        ),
        "the result is clipped to -1 .. 1; it is not clipped": expected.clamp(-1, 1),
        "the frame is one channel's for all; each channel has its own": images
        + frame[:1].expand_as(frame),
        "the frame is the mean of its channels; each channel has its own": images
        + frame.mean(0, keepdim=True),
        "only the first image has the frame": torch.cat([expected[:1], images[1:]]),
    }
    if H == W:
        mistakes["the picture is transposed"] = images + frame.mT
        mistakes["rows and columns are exchanged"] = images + frame.flip(-1, -2)
    same(f"the result for {case}", found, expected, mistakes)
    middle = (..., slice(P, H - P), slice(P, W - P))
    expect(
        torch.equal(found[middle], images[middle]),
        f"{case}: expected the middle exactly as it was, found it changed a little",
        "nothing is to be done there: add zero, or write the edges alone",
    )
    new_memory(found, given)
    same_gradients(student, _right, dict(given), " ".join(given))
    return partial(lives, student, _right, given)
