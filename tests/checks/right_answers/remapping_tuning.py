"""Assignment 06: right answers, each written in another way than the solution."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# distillation_loss
# -------------------------------------------------------------------------------------------------


def loss_by_cross_entropies(z: Tensor, t: Tensor, y: Tensor, T: float, w: float) -> Tensor:
    """KL is the cross-entropy with the teacher's answer minus the teacher's entropy."""
    p = F.softmax(t.detach() / T, dim=-1)
    entropy = F.cross_entropy(t.detach() / T, p)
    soft = F.cross_entropy(z / T, p) - entropy
    return (1 - w) * F.cross_entropy(z, y) + w * T**2 * soft


def loss_under_no_grad(z: Tensor, t: Tensor, y: Tensor, T: float, w: float) -> Tensor:
    with torch.no_grad():
        log_p = (t / T).log_softmax(1)
    log_q = F.log_softmax(z / T, 1)
    rows = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1) * T * T
    hard = -z.log_softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)
    return (w * rows + (1 - w) * hard).mean()


def loss_by_logsumexp(z: Tensor, t: Tensor, y: Tensor, T: float, w: float) -> Tensor:
    t = t.detach() / T
    s = z / T
    log_p, log_q = t - t.logsumexp(1, keepdim=True), s - torch.logsumexp(s, 1, True)
    soft = torch.einsum("bc,bc->", log_p.exp(), log_p - log_q) / len(z)
    return w * T**2 * soft + (1 - w) * nn.CrossEntropyLoss()(z, y)


# decoupled_parts
# -------------------------------------------------------------------------------------------------


def parts_by_rows(z: Tensor, t: Tensor, y: Tensor, T: float) -> Any:
    C = z.shape[1]
    columns = torch.arange(C - 1, device=z.device).expand(len(z), -1)
    columns = columns + (columns >= y[:, None])  # all but y
    found = []
    for a in (t / T, z / T):
        rest = a.gather(1, columns)
        true = a.gather(1, y[:, None])
        pair = torch.cat([true, rest.logsumexp(1, keepdim=True)], 1)
        found.append((pair.log_softmax(1), rest.log_softmax(1)))
    (b, o), (c, q) = found
    return (
        T * T * F.kl_div(c, b, reduction="none", log_target=True).sum(1),
        T * T * F.kl_div(q, o, reduction="none", log_target=True).sum(1),
    )


def parts_with_a_mask(z: Tensor, t: Tensor, y: Tensor, T: float) -> list[Tensor]:
    """A logit lowered by far: its share is zero, and its logarithm finite."""
    true = F.one_hot(y, z.shape[1]).to(z)
    low = 1e4 * true
    logs = []
    for a in (t / T, z / T):
        rest = (a - low).logsumexp(1)
        own = (a * true).sum(1)
        both = torch.stack([own, rest], 1)
        logs.append((both - both.logsumexp(1, keepdim=True), (a - low).log_softmax(1)))
    first, second = zip(*logs, strict=True)
    return [T**2 * (p.exp() * (p - q)).sum(1) for p, q in (first, second)]


def parts_image_by_image(z: Tensor, t: Tensor, y: Tensor, T: float) -> Any:
    target, others = [], []
    for a, b, label in zip(t / T, z / T, y, strict=True):
        keep = torch.arange(len(a), device=a.device) != label
        a_rest, b_rest = a[keep], b[keep]
        p = torch.stack([a[label], a_rest.logsumexp(0)]).log_softmax(0)
        q = torch.stack([b[label], b_rest.logsumexp(0)]).log_softmax(0)
        target.append((p.exp() * (p - q)).sum())
        p, q = a_rest.log_softmax(0), b_rest.log_softmax(0)
        others.append((p.exp() * (p - q)).sum())
    return T**2 * torch.stack(target), T**2 * torch.stack(others)


# attention_loss
# -------------------------------------------------------------------------------------------------


def attention_by_where(student: Any, teacher: Any) -> Tensor:
    def q(maps: Tensor) -> Tensor:
        strong = (maps * maps).sum(1, keepdim=True)
        length = strong.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return torch.where(length > 0, strong / torch.where(length > 0, length, 1), strong)

    losses = [(q(s) - q(t)).square().mean() for s, t in zip(student, teacher, strict=True)]
    return torch.stack(losses).sum()


def attention_by_means(student: Any, teacher: Any) -> Tensor:
    """The mean over the channels, which the length divides out again."""
    total = student[0].new_zeros(())
    for i in range(len(student)):
        s = F.normalize(student[i].pow(2).mean(1).reshape(len(student[i]), -1), p=2.0, dim=-1)
        t = F.normalize(teacher[i].detach().pow(2).mean(1).reshape(s.shape), p=2.0, dim=-1)
        total = total + (s - t).pow(2).mean()
    return total


def attention_image_by_image(student: Any, teacher: Any) -> Tensor:
    total = 0.0 * student[0].sum()
    for s, t in zip(student, teacher, strict=True):
        for a, b in zip(s, t, strict=True):
            p, q = (m.abs().square().sum(0).flatten() for m in (a, b))
            p, q = (v / v.norm().clamp_min(1e-12) for v in (p, q))
            total = total + ((p - q) ** 2).mean() / len(s)
    return total


# widened
# -------------------------------------------------------------------------------------------------


def widened_by_a_matrix(first: Any, norm: Any, last: Any, source: list[int]) -> Any:
    """A matrix of zeros and ones says who is whose copy."""
    N = len(first["weight"])
    choice = F.one_hot(torch.tensor(source, device=first["weight"].device), N)
    choice = choice.to(first["weight"])  # [new, N]
    pick = [
        {k: torch.tensordot(choice, t, 1) if t.ndim else t + 0 for k, t in state.items()}
        for state in (first, norm)
    ]
    share = choice / choice.sum(0)
    weight = torch.einsum("mn...,jn->mj...", last["weight"], share)
    bias = {"bias": last["bias"].clone()} if "bias" in last else {}
    return pick[0], pick[1], {"weight": weight, **bias}


def widened_by_a_counter(first: Any, norm: Any, last: Any, source: list[int]) -> list[Any]:
    count = Counter(source)
    result = []
    for state in (first, norm, last):
        new = {}
        for key, t in state.items():
            if state is not last:
                new[key] = t.index_select(0, t.new_tensor(source).long()) if t.dim() else t.clone()
            elif key == "weight":
                new[key] = torch.cat([t[:, j : j + 1] / count[j] for j in source], dim=1)
            else:
                new[key] = t.detach().clone()
        result.append(new)
    return result


def widened_step_by_step(first: Any, norm: Any, last: Any, source: list[int]) -> Any:
    weight = last["weight"][:, source].clone()
    for j, unit in enumerate(source):
        weight[:, j] /= sum(1 for other in source if other == unit)
    wide = tuple(
        {k: (t.clone() if k == "num_batches_tracked" else t[source]) for k, t in state.items()}
        for state in (first, norm)
    )
    rest = {k: t.clone() for k, t in last.items() if k != "weight"}
    return *wide, {"weight": weight, **rest}


# identity_layer
# -------------------------------------------------------------------------------------------------


def layer_by_var_mean(x: Tensor, size: int, eps: float) -> Any:
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    C = x.shape[1]
    kernel = torch.zeros(C, C, size, size, device=x.device, dtype=x.dtype)
    for c in range(C):
        kernel[c, c, size // 2, size // 2] = 1
    gamma = (var + eps).pow(0.5)
    return {"kernel": kernel, "gamma": gamma, "beta": mean.clone(), "mean": mean, "var": var}


def layer_channel_by_channel(x: Tensor, size: int, eps: float) -> Any:
    stats = [(c.mean(), (c - c.mean()).square().mean()) for c in x.unbind(1)]
    mean, var = (torch.stack(list(s)) for s in zip(*stats, strict=True))
    window = x.new_zeros(size, size)
    window[(size - 1) // 2, (size - 1) // 2] = 1
    eye = torch.eye(len(mean), dtype=x.dtype, device=x.device)
    return {
        "var": var,
        "mean": mean,
        "beta": mean + 0,
        "gamma": torch.sqrt(var + eps),
        "kernel": torch.einsum("ij,kl->ijkl", eye, window),
    }


def layer_in_double(x: Tensor, size: int, eps: float) -> Any:
    pixels = x.double().movedim(1, -1).reshape(-1, x.shape[1])
    mean = pixels.mean(0)
    var = (pixels - mean).pow(2).mean(0)
    kernel = nn.init.dirac_(x.new_empty(x.shape[1], x.shape[1], size, size))
    values = {"gamma": (var + eps).sqrt(), "beta": mean.clone(), "mean": mean, "var": var}
    return {"kernel": kernel} | {k: v.to(x.dtype, copy=True) for k, v in values.items()}


# mixed_node
# -------------------------------------------------------------------------------------------------


def node_by_products(xs: Tensor, alpha: Tensor, dy: Tensor) -> Any:
    """Each edge's candidates as a matrix."""
    flat = xs.reshape(*alpha.shape, -1)
    w = torch.softmax(alpha, -1)
    y = (w.unsqueeze(1) @ flat).sum(0).view(dy.shape)
    dw = flat @ dy.reshape(-1)
    return y, w * dw - w * (w * dw).sum(-1, keepdim=True)


def node_by_the_output(xs: Tensor, alpha: Tensor, dy: Tensor) -> list[Tensor]:
    """<w, dw> is <dy, what the edge brings>."""
    w = alpha.softmax(-1)
    shape = (*alpha.shape, *[1] * dy.ndim)
    brought = (w.view(shape) * xs).sum(1)  # [E, ...]
    apart = (xs - brought.unsqueeze(1)) * dy
    return [brought.sum(0), w * apart.flatten(2).sum(-1)]


def node_by_loops(xs: Tensor, alpha: Tensor, dy: Tensor) -> Any:
    y, rows = torch.zeros_like(xs[0, 0]), []
    for x, a in zip(xs, alpha, strict=True):
        w = (a - a.max()).exp()
        w = w / w.sum()
        for k in range(len(w)):
            y = y + w[k] * x[k]
        dw = torch.stack([torch.sum(dy * c) for c in x])
        rows.append(w * (dw - torch.dot(w, dw)))
    return y, torch.stack(rows)


# darts_gradient
# -------------------------------------------------------------------------------------------------


def darts_on_a_row(w: Any, alpha: Tensor, train: Any, held: Any, xi: float, size: float) -> Tensor:
    """All weights in one row."""
    row = torch.cat([t.detach().reshape(-1) for t in w])

    def cut(row: Tensor) -> list[Tensor]:
        pieces = row.split([t.numel() for t in w])
        return [piece.reshape(t.shape) for piece, t in zip(pieces, w, strict=True)]

    def both(loss: Any, at: Tensor) -> Any:
        at, a = at.clone().requires_grad_(), alpha.detach().clone().requires_grad_()
        return torch.autograd.grad(loss(cut(at), a), (at, a))

    v, found = both(held, row - xi * both(train, row)[0])
    if xi == 0 or not v.any():
        return found
    r = size / v.norm()
    return found - xi / (2 * r) * (both(train, row + r * v)[1] - both(train, row - r * v)[1])


def darts_with_func(w: Any, alpha: Tensor, train: Any, held: Any, xi: float, size: float) -> Tensor:
    w, alpha = tuple(t.detach() for t in w), alpha.detach()
    step = torch.func.grad(train)(w, alpha)
    ahead = tuple(t - xi * g for t, g in zip(w, step, strict=True))
    v, found = torch.func.grad(held, argnums=(0, 1))(ahead, alpha)
    length = torch.stack([t.norm() for t in v]).norm()
    if length == 0:
        return found
    r = size / length
    by_alpha = torch.func.grad(train, argnums=1)
    ends = [by_alpha(tuple(t + s * d for t, d in zip(w, v, strict=True)), alpha) for s in (r, -r)]
    return found - xi * (ends[0] - ends[1]) / (2 * r)


def darts_moving_copies(
    w: Any, alpha: Tensor, train: Any, held: Any, xi: float, size: float
) -> Tensor:
    """One set of leaves, moved from point to point."""
    mine = [t.detach().clone().requires_grad_() for t in w]
    a = alpha.detach().clone().requires_grad_()
    steps = torch.autograd.grad(train(mine, a), mine)

    def go(directions: Any, by: Any) -> None:
        with torch.no_grad():
            for t, old, d in zip(mine, w, directions, strict=True):
                t.copy_(old + by * d)

    go(steps, -xi)
    found, *v = torch.autograd.grad(held(mine, a), [a, *mine])
    length = torch.stack([t.square().sum() for t in v]).sum().sqrt()
    if length == 0 or xi == 0:
        return found
    r = size / length
    go(v, r)
    (above,) = torch.autograd.grad(train(mine, a), [a])
    go(v, -r)
    (below,) = torch.autograd.grad(train(mine, a), [a])
    return found - xi * (above - below).div(2 * r)


# concrete_sample
# -------------------------------------------------------------------------------------------------


def concrete_by_exponentials(alpha: Tensor, u: Tensor, temperature: float, hard: bool) -> Tensor:
    """alpha + g = log(exp(alpha) / -log u)."""
    z = torch.exp((alpha - (-u.log()).log()) / temperature - _top(alpha, u, temperature))
    z = z / z.sum(-1, keepdim=True)
    if hard:
        largest = z.argmax(-1, keepdim=True)
        return torch.zeros_like(z).scatter(-1, largest, 1.0) - z.detach() + z
    return z


def _top(alpha: Tensor, u: Tensor, T: float) -> Tensor:
    return ((alpha - (-u.log()).log()) / T).detach().amax(-1, keepdim=True)


def concrete_by_logs(alpha: Tensor, u: Tensor, temperature: float, hard: bool) -> Tensor:
    """Of log-probabilities: a number added to a row changes nothing."""
    gumbel = u.log().neg().log().neg()
    soft = F.log_softmax((alpha.log_softmax(-1) + gumbel) / temperature, dim=-1).exp()
    if not hard:
        return soft
    K = alpha.shape[-1]
    chosen = torch.arange(K, device=alpha.device) == soft.argmax(-1, keepdim=True)
    return (chosen.to(soft.dtype) - soft).detach() + soft


def concrete_by_max(alpha: Tensor, u: Tensor, temperature: float, hard: bool) -> Tensor:
    noisy = alpha - torch.log(-torch.log(u))
    soft = F.softmax(noisy.div(temperature), dim=-1)
    with torch.no_grad():
        gap = F.one_hot(noisy.max(dim=-1).indices, noisy.shape[-1]).to(soft) - soft
    return soft + gap if hard else soft


RIGHT: dict[str, list[Any]] = {
    "distillation_loss": [loss_by_cross_entropies, loss_under_no_grad, loss_by_logsumexp],
    "decoupled_parts": [parts_by_rows, parts_with_a_mask, parts_image_by_image],
    "attention_loss": [attention_by_where, attention_by_means, attention_image_by_image],
    "widened": [widened_by_a_matrix, widened_by_a_counter, widened_step_by_step],
    "identity_layer": [layer_by_var_mean, layer_channel_by_channel, layer_in_double],
    "mixed_node": [node_by_products, node_by_the_output, node_by_loops],
    "darts_gradient": [darts_on_a_row, darts_with_func, darts_moving_copies],
    "concrete_sample": [concrete_by_exponentials, concrete_by_logs, concrete_by_max],
}
