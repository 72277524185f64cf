"""Exercise 4.5, `st_adapter`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtlite.checks.base import copies, passed, randn, same, untouched
from vtlite.checks.harness import Answer, check, lives, same_gradients
from vtlite.checks.naive import dense


def _nothing(z: Tensor, t: int) -> Tensor:
    """Frame t of z [B, T, N, R]; zero where there is none."""
    return z[:, t] if 0 <= t < z.shape[1] else torch.zeros_like(z[:, 0])


def _over_time(
    z: Tensor,
    kernel: Tensor,
    frame: Callable[[Tensor, int], Tensor] = _nothing,
    start: Callable[[int], int] = lambda k: -(k // 2),
) -> Tensor:
    """sum over i of kernel[:, i] * z[t + i - k // 2], frame by frame."""
    size = kernel.shape[1]
    return torch.stack(
        [
            sum(
                (kernel[:, i] * frame(z, t + i + start(size)) for i in range(size)),
                torch.zeros_like(z[:, 0]),
            )
            for t in range(z.shape[1])
        ],
        dim=1,
    )


def _right(
    x: Tensor, D: Tensor, d: Tensor, kernel: Tensor, c: Tensor, U: Tensor, u: Tensor
) -> Tensor:
    return x + dense(_over_time(dense(x, D, d), kernel) + c, U, u)


@check
def st_adapter(student: Answer) -> None:
    """4.5: `st_adapter(x, D, d, kernel, c, U, u)` -> x + U (conv over time (D x + d) + c) + u for
    clips [B, T, N, D]."""
    for case in (
        (0, 2, 4, 3, 5, 2, 3),
        (1, 1, 5, 2, 3, 4, 5),
        (2, 3, 1, 4, 4, 3, 3),
        (3, 2, 3, 3, 4, 4, 3),
        (4, 2, 2, 5, 3, 1, 5),
        (5, 3, 4, 2, 6, 3, 1),
    ):
        _clip_case(student, *case)
    passed(
        "st_adapter",
        "values for any clip",
        "the neighbours in time",
        "each clip and channel and place by itself",
        "the first and the last frame",
        "gradients of x and all weights",
        "any type and device",
        "arguments untouched",
    )


def _clip_case(
    student: Answer, seed: int, B: int, T: int, N: int, width: int, R: int, k: int
) -> None:
    x, D, d, kernel, c, U, u = randn(
        seed, (B, T, N, width), (R, width), (R,), (R, k), (R,), (width, R), (width,)
    )
    arguments = {"x": x, "D": D, "d": d, "kernel": kernel, "c": c, "U": U, "u": u}
    before = copies(arguments)
    found = student(*arguments.values())
    untouched(arguments, before)
    z = dense(x, D, d)

    def output(inside: Tensor, skip: float = 1.0, shift: Tensor | float = c) -> Tensor:
        return skip * x + dense(inside + shift, U, u)

    def other(frame: Callable[[Tensor, int], Tensor]) -> Tensor:
        return output(_over_time(z, kernel, frame))

    def cut(order: tuple[int, ...]) -> Tensor:
        """Cut anew by reshape where the axes had to be turned, and back."""
        turned = z.reshape([z.shape[i] for i in order])
        back = [order.index(i) for i in range(4)]
        done = _over_time(turned.permute(back), kernel) + c
        return output(done.permute(order).reshape(z.shape), shift=0.0)

    joined = z.reshape(1, B * T, N, R)
    mixed = dense(_over_time(z, torch.ones_like(kernel)), torch.ones(R, R), 0.0)
    last = T - 1
    expected = _right(*arguments.values())
    mistakes: dict[str, Tensor] = {
        "the kernel is turned round in time: entry 0 belongs to the earliest frame": output(
            _over_time(z, kernel.flip(1))
        ),
        "the kernel moves over the places of a frame; it moves over time, the second axis": output(
            _over_time(z.transpose(1, 2), kernel).transpose(1, 2)
        ),
        "the kernel moves over the clips of the batch; it moves over time, the second axis": output(
            _over_time(z.transpose(0, 1), kernel).transpose(0, 1)
        ),
        "the last frame of a clip sees the first of the next: each clip is convolved by itself": output(
            _over_time(joined, kernel).reshape(z.shape)
        ),
        "time goes round in a circle; before the first frame and behind the last are zeros": other(
            lambda z, t: z[:, t % T]
        ),
        "the first and the last frame are repeated; before and behind the clip are zeros": other(
            lambda z, t: z[:, min(max(t, 0), last)]
        ),
        "the clip is mirrored at its ends; before and behind it are zeros": other(
            lambda z, t: z[:, min(max(abs(t if t <= last else 2 * last - t), 0), last)]
        ),
        "x is padded before the first layer, so that a missing frame counts as d; zeros belong behind D x + d": other(
            lambda z, t: z[:, t] if 0 <= t < T else d.expand_as(z[:, 0])
        ),
        "frame t sees the past alone; the kernel's middle lies on t": output(
            _over_time(z, kernel, start=lambda k: 1 - k)
        ),
        "frame t sees the future alone; the kernel's middle lies on t": output(
            _over_time(z, kernel, start=lambda k: 0)
        ),
        "nothing comes from other frames: only the middle of the kernel is used": output(
            kernel[:, k // 2] * z
        ),
        "the channels are summed; each is convolved by itself (depth-wise: groups=R)": output(
            mixed
        ),
        "every channel has the kernel of the first; row r belongs to channel r": output(
            _over_time(z, kernel[:1].expand_as(kernel))
        ),
        "the skip is missing: x itself": output(_over_time(z, kernel), skip=0.0),
        "d is missing, the bias of the first layer": output(_over_time(dense(x, D, 0.0), kernel)),
        "c is missing, the bias of the convolution": output(_over_time(z, kernel), shift=0.0),
        "u is missing, the bias of the last layer": expected - u,
        "there is an activation; this adapter has none": output(
            (_over_time(z, kernel) + c).relu(), shift=0.0
        ),
        "there is an activation in front of the convolution; this adapter has none": output(
            _over_time(z.relu(), kernel)
        ),
        "the convolution has a skip of its own; the only one is x": output(
            z + _over_time(z, kernel)
        ),
        "the convolution is missing": output(z),
        "it is divided by the length of the kernel; a convolution is a sum": output(
            _over_time(z, kernel) / k
        ),
    }
    for order in ((0, 2, 1, 3), (0, 3, 1, 2), (0, 2, 3, 1), (0, 1, 3, 2)):
        mistakes.setdefault(
            f"reshape (view, unflatten) cuts the numbers anew and turns no axes: use permute {order}",
            cut(order),
        )
    same(
        f"the output for clips {list(x.shape)}, {R} channels, a kernel of {k}",
        found,
        expected,
        {text: wrong for text, wrong in mistakes.items() if not torch.equal(wrong, expected)},
    )
    same_gradients(student, _right, arguments, " ".join(arguments))
    lives(student, _naive, arguments)


def _naive(*arguments: Any) -> Tensor:
    return _right(*arguments)
