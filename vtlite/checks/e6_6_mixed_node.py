"""Exercise 6.6, `mixed_node`."""

from __future__ import annotations

import torch
from torch import Tensor

from vtlite.checks.base import passed, randn, same
from vtlite.checks.gradients import autograd, by_hand, finite
from vtlite.checks.harness import AUTOGRAD_OFF, Answer, check, lives


def _weights(alpha: Tensor) -> Tensor:
    return torch.stack([(row - torch.logsumexp(row, 0)).exp() for row in alpha])


def _node(xs: Tensor, alpha: Tensor) -> Tensor:
    """Edge by edge, candidate by candidate."""
    terms = [
        w * x
        for row, candidates in zip(_weights(alpha), xs, strict=True)
        for w, x in zip(row, candidates, strict=True)
    ]
    return torch.stack(terms).sum(0)


def _right(xs: Tensor, alpha: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    (dalpha,) = autograd(_node, dy, {"xs": xs, "alpha": alpha}, "alpha")
    return _node(xs, alpha), dalpha


@check
def mixed_node(student: Answer) -> None:
    """6.6: `mixed_node(xs, alpha, dy)` -> the node y = sum over edges and candidates of
    softmax(alpha) x, and the gradient of alpha."""
    for seed, E, K, shape, dtype, size in (
        (0, 2, 4, (3, 5), torch.float32, 1.0),
        (1, 3, 2, (2, 3, 4, 1), torch.float64, 1.5),
        (2, 1, 5, (6,), torch.float32, 1.0),
        (3, 4, 3, (1, 2, 3, 2), torch.float32, 2.0),
        (4, 3, 3, (2, 2, 2), torch.float32, 1.0),
        (5, 2, 1, (3, 2), torch.float32, 1.0),
        (6, 2, 3, (4,), torch.float32, 200.0),
    ):
        xs, alpha, dy = randn(seed, (E, K, *shape), (E, K), shape)
        _node_case(student, xs.to(dtype), size * alpha.to(dtype), dy.to(dtype))
    for sizes in ((2, 3, 4, 5), (3, 2, 2, 3, 2)):
        xs, alpha, dy = randn(7, sizes, sizes[:2], sizes[2:])
        given = {"xs": xs + 0.5, "alpha": alpha, "dy": dy + 0.5}
        lives(student, _right, given, without=AUTOGRAD_OFF, reads=False)
    passed(
        "mixed_node",
        "the node",
        "the gradient of alpha",
        "a softmax for each edge",
        "one candidate and one edge",
        "large alpha",
        "no autograd",
        "type and device for any strides",
        "arguments untouched",
    )


def _node_case(student: Answer, xs: Tensor, alpha: Tensor, dy: Tensor) -> None:
    arguments = {"xs": xs, "alpha": alpha, "dy": dy}
    found = by_hand(student, arguments, {"y": "dy", "dalpha": "alpha"})
    (E, K), shape = alpha.shape, list(dy.shape)
    case = f"{E} edges, {K} candidates [{', '.join(map(str, shape))}]"
    for name, t in found.items():
        finite(
            t,
            f"{name}, {case}",
            "exp of a large alpha is infinite: use softmax, which subtracts the maximum first",
        )
    x, a, d = xs.double(), alpha.double(), dy.double()
    w, across, all_ = _weights(a), _weights(a.T).T, a.flatten().softmax(0).view(E, K)

    def mixed(v: Tensor) -> Tensor:
        return (v.view(E, K, *[1] * dy.ndim) * x).sum((0, 1))

    y, dalpha = mixed(w), _right(x, a, d)[1]
    tall = x.softmax(1)
    wrong = {
        "the softmax runs over the edges; it belongs to the candidates of one": mixed(across),
        "one softmax runs over all edges together; each edge has its own": mixed(all_),
        "alpha is used as it is: its softmax weighs the candidates": mixed(a),
        "the exponentials are not divided by their sum": mixed(a.exp()),
        "a sigmoid is no softmax: the candidates of an edge share one": mixed(a.sigmoid()),
        "the candidates go through the softmax, and not alpha": (
            a.view(E, K, *[1] * dy.ndim) * tall
        ).sum((0, 1)),
        "the softmax comes after the mixing: alpha goes through it before": (mixed(a).softmax(-1)),
        "the candidates are added up, unweighted": x.sum((0, 1)),
        "the mean over the candidates is taken, unweighted": x.mean(1).sum(0),
        "only the strongest candidate of each edge is taken: that comes after the search": mixed(
            torch.nn.functional.one_hot(a.argmax(1), K).double()
        ),
        "the mean over the edges is taken: they are added up": y / E,
        "only the first edge counts: a node adds up all of them": mixed(
            w * (torch.arange(E) == 0)[:, None]
        ),
        "only the last edge counts; a node adds up all of them": mixed(
            w * (torch.arange(E) == E - 1)[:, None]
        ),
        "the sum over the candidates is divided by their number": y / K,
    }
    same(f"y, {case}", found["y"], y.to(dy.dtype), _typed(wrong, dy, y))
    dw = torch.stack([torch.stack([(d * c).sum() for c in row]) for row in x])
    mean = (w * dw).sum(1, keepdim=True)
    n = dy.numel()
    summed = (d * y).sum()
    wrong = {
        "that is the gradient of the weights, not of alpha: the softmax has a derivative": dw,
        "<w, dw> is missing: raising one logit lowers the others' weights": w * dw,
        "the factor w is missing: w (dw - <w, dw>)": dw - mean,
        "<w, dw> belongs inside the bracket: w (dw - <w, dw>)": w * dw - mean,
        "the mean of dw is subtracted: it is the one weighed with w": (
            w * (dw - dw.mean(1, keepdim=True))
        ),
        "<w, dw> is one number for all edges together: each edge has its own": (
            w * (dw - mean.sum())
        ),
        "<dy, y> is the sum over all edges: each edge subtracts its own share": w * (dw - summed),
        "<w, dw> is summed over the edges; sum over the candidates": (
            w * (dw - (w * dw).sum(0, keepdim=True))
        ),
        "dw itself is summed, without its weights": w * (dw - dw.sum(1, keepdim=True)),
        "that is a sigmoid's derivative, w (1 - w) dw: the softmax's has terms between candidates": (
            w * (1 - w) * dw
        ),
        "the sign is turned": -dalpha,
        "the mean over the entries is taken; <dy, x> is their sum": dalpha / n,
        "the mean over the images is taken: dy has the loss's mean in it already": (
            dalpha / len(dy)
        ),
        "the softmax runs over the edges; it belongs to the candidates of one": across
        * (dw - (across * dw).sum(0, keepdim=True)),
        "dy is missing: <dy, x>, not the sum of x": w
        * (x.flatten(2).sum(2) - (w * x.flatten(2).sum(2)).sum(1, keepdim=True)),
        "w is squared": w * dalpha,
        "the gradient is plus <w, dw>: it is subtracted": w * (dw + mean),
        "it is zero: alpha was detached": torch.zeros_like(dw),
    }
    same(f"dalpha, {case}", found["dalpha"], dalpha.to(dy.dtype), _typed(wrong, dy, dalpha), 2e-5)


def _typed(wrong: dict[str, Tensor], like: Tensor, right: Tensor) -> dict[str, Tensor]:
    """The mistakes that are none of the right values."""
    return {
        text: t.to(like.dtype)
        for text, t in wrong.items()
        if t.shape != right.shape or not torch.allclose(t, right)
    }
