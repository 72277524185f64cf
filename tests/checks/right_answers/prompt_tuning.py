"""Assignment 03: right answers, each written in another way than the solution."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# class_texts
# -------------------------------------------------------------------------------------------------


def texts_without_padding_behind(
    tower: Any, context: Tensor, names: Tensor, ends: Tensor, position: str
) -> Tensor:
    """Rows end with the longest text's end token, filled up with its own."""
    M, most = context.shape[-2], int(ends.max())
    rows = []
    for c, end in enumerate(ends.tolist()):
        V = context[c] if context.ndim == 3 else context
        first, second = V[: M // 2], V[M // 2 :]
        start, name, last = names[c].split([1, end - 1, names.shape[1] - end])
        match position:
            case "end":
                parts = [start, V, name]
            case "middle":
                parts = [start, first, name, second]
            case _:
                parts = [start, name, V]
        rows.append(torch.cat([*parts, last[:1].expand(most - end + 1, -1)]))
    features = tower(torch.stack(rows))
    return torch.stack([row[M + end] for row, end in zip(features, ends.tolist(), strict=True)])


def texts_by_writing(
    tower: Any, context: Tensor, names: Tensor, ends: Tensor, position: str
) -> Tensor:
    """Into a new tensor, class by class."""
    C, L, D = names.shape
    M = context.shape[-2]
    rows = names.new_zeros(C, M + L, D)
    for c in range(C):
        e = int(ends[c])
        V = context.expand(C, M, D)[c]
        h = {"front": 0, "middle": M // 2, "end": M}[position]
        rows[c, 0] = names[c, 0]
        rows[c, 1 : 1 + h] = V[:h]
        rows[c, 1 + h : h + e] = names[c, 1:e]
        rows[c, h + e : M + e] = V[h:]
        rows[c, M + e :] = names[c, e:]
    features = tower(rows)
    mask = F.one_hot(M + ends, M + L).to(features)
    return torch.einsum("cl,cle->ce", mask, features)


def texts_by_take(
    tower: Any, context: Tensor, names: Tensor, ends: Tensor, position: str
) -> Tensor:
    M = context.shape[-2]
    h = {"end": M, "middle": M // 2}.get(position, 0)
    rows = [
        torch.vstack((n[0], v[:h], n[1:e], v[h:], n[e:]))
        for n, v, e in zip(
            names, context if context.ndim == 3 else [context] * len(names), ends, strict=True
        )
    ]
    out = tower(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))
    places = (ends + M).reshape(-1, 1, 1)
    return torch.take_along_dim(out, places, 1).squeeze(1)


# similarity_logits
# -------------------------------------------------------------------------------------------------


def head_by_matmul(f: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    f = torch.exp(logit_scale) * f / torch.linalg.vector_norm(f, dim=1, keepdim=True)
    g = texts / torch.linalg.vector_norm(texts, dim=-1, keepdim=True)
    if texts.ndim == 2:
        return f @ g.mT
    return torch.bmm(g, f.unsqueeze(2)).squeeze(2)


def head_image_by_image(f: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    rows = []
    for i, image in enumerate(f):
        own = texts[i] if texts.dim() == 3 else texts
        rows.append(F.cosine_similarity(image[None], own, dim=1))
    return torch.stack(rows) * logit_scale.exp()


def head_afterwards(f: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    products = (f.unsqueeze(1) * texts).sum(dim=-1)
    inverse = f.pow(2).sum(-1, keepdim=True).rsqrt() * texts.pow(2).sum(-1).rsqrt()
    return products * inverse * torch.exp(logit_scale)


# prompted_attention
# -------------------------------------------------------------------------------------------------


def prompted_by_einsum(
    x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> Tensor:
    D = x.shape[2]
    shift = x.new_zeros(3 * D) if bias is None else bias
    parts = list(zip(weight.split(D), shift.split(D), strict=True))

    def cut(t: Tensor, which: int) -> Tensor:
        rows, b = parts[which]
        return (torch.einsum("...d,od->...o", t, rows) + b).unflatten(-1, (heads, D // heads))

    q, k, v, pk, pv = cut(x, 0), cut(x, 1), cut(x, 2), cut(P, 1), cut(P, 2)
    scores = torch.cat(
        [torch.einsum("bnhd,phd->bhnp", q, pk), torch.einsum("bnhd,bmhd->bhnm", q, k)], -1
    )
    p, t = (scores * (D // heads) ** -0.5).softmax(3).split([len(P), x.shape[1]], 3)
    out = torch.einsum("bhnp,phd->bnhd", p, pv) + torch.einsum("bhnm,bmhd->bnhd", t, v)
    return out.reshape(x.shape)


def prompted_head_by_head(
    x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> Tensor:
    q, k, v = F.linear(x, weight, bias).chunk(3, -1)
    _, pk, pv = F.linear(P, weight, bias).chunk(3, -1)
    outs = []
    for one in zip(*(t.chunk(heads, -1) for t in (q, k, v, pk, pv)), strict=True):
        qh, kh, vh, pkh, pvh = one
        keys = torch.cat([kh, pkh.unsqueeze(0).repeat(len(x), 1, 1)], 1)  # prompts last
        values = torch.cat([vh, pvh.unsqueeze(0).repeat(len(x), 1, 1)], 1)
        outs.append((qh @ keys.mT / math.sqrt(qh.shape[-1])).softmax(-1) @ values)
    return torch.cat(outs, -1)


def prompted_with_exponentials(
    x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> Tensor:
    """One numerator, one denominator."""
    q, k, v = (
        t.unflatten(-1, (heads, -1)).transpose(-3, -2)
        for t in F.linear(x, weight, bias).chunk(3, -1)
    )
    pk, pv = (
        t.unflatten(-1, (heads, -1)).transpose(-3, -2)
        for t in F.linear(P, weight, bias).chunk(3, -1)[1:]
    )
    a, b = ((q * q.shape[-1] ** -0.5) @ keys.mT for keys in (pk, k))
    top = torch.maximum(a.amax(-1, True), b.amax(-1, True)).detach()
    a, b = (a - top).exp(), (b - top).exp()
    out = (a @ pv + b @ v) / (a.sum(-1, keepdim=True) + b.sum(-1, keepdim=True))
    return out.transpose(1, 2).flatten(2)


# transport
# -------------------------------------------------------------------------------------------------


def transport_by_potentials(S: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    """Potentials in the units of the cost."""
    P, N = S.shape[-2], S.shape[-1]
    C = (1 - S).detach()
    a, b = C.new_zeros(C.shape[:-1]), C.new_zeros(*C.shape[:-2], N)
    for _ in range(steps):
        a = -eps * (math.log(P) + torch.logsumexp((b[..., None, :] - C) / eps, -1))
        b = -eps * (math.log(N) + torch.logsumexp((a[..., None] - C) / eps, -2))
    plan = torch.exp((a[..., None] + b[..., None, :] - C) / eps)
    return plan, (S * plan).flatten(-2).sum(-1)


@torch.no_grad()
def _plan(S: Tensor, eps: float, steps: int) -> Tensor:
    log_plan = S / eps
    while steps:
        log_plan = log_plan - log_plan.logsumexp(-1, True) - math.log(S.shape[-2])
        log_plan = log_plan - log_plan.logsumexp(-2, True) - math.log(S.shape[-1])
        steps -= 1
    return log_plan.exp()


def transport_by_a_helper(S: Tensor, eps: float, steps: int) -> list[Tensor]:
    plan = _plan(S, eps, steps)
    return [plan, torch.sum(plan * S, dim=[-1, -2])]


def transport_in_double(S: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    """Plain scaling, in a precision in which exp(-500) is a number."""
    P, N = S.shape[-2:]
    kernel = torch.exp((S.detach().double() - 1) / eps)
    v = kernel.new_full((*S.shape[:-2], N, 1), 1.0)
    for _ in range(steps):
        u = 1 / (P * (kernel @ v))
        v = 1 / (N * (kernel.mT @ u))
    plan = (u * kernel * v.mT).to(S.dtype)
    return plan, (plan * S).sum(-1).sum(-1)


# aligned_gradient
# -------------------------------------------------------------------------------------------------


def aligned_by_where(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    product = torch.sum(gradient * general)
    square = torch.sum(general * general)
    share = torch.where(product < 0, product / square, torch.zeros_like(product))
    return gradient - strength * share * general


def aligned_by_nan(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    u = torch.nan_to_num(general / general.norm())
    along = (gradient * u).sum()
    return gradient - strength * (along if along < 0 else 0) * u


def aligned_as_vectors(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    g, u = gradient.flatten(), general.flatten()
    new = g.clone()
    if u.any() and g @ u < 0:
        u = u / u.square().sum().sqrt()
        new -= strength * (g @ u) * u
    return new.view(gradient.shape)


# cocoop_logits
# -------------------------------------------------------------------------------------------------


def cocoop_by_products(
    texts: Any,
    f: Tensor,
    context: Tensor,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    scale: float,
) -> Tensor:
    n = f / f.square().sum(-1, keepdim=True).sqrt()
    hidden = n @ W1.T + b1
    shift = (hidden * (hidden > 0)) @ W2.T + b2
    g = texts(context.unsqueeze(0).repeat(len(f), 1, 1) + shift.unsqueeze(1))
    return torch.einsum("be,bce->bc", n, g) / g.norm(dim=2) * scale


def cocoop_one_list(
    texts: Any,
    f: Tensor,
    context: Tensor,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    scale: float,
) -> Tensor:
    """The contexts image by image, the tower once."""
    n = F.normalize(f)
    contexts = []
    for image in n:
        shift = W2 @ torch.relu(W1 @ image + b1) + b2
        contexts.append(torch.stack([v + shift for v in context]))
    g = F.normalize(texts(torch.stack(contexts)), dim=2)
    return scale * torch.stack([own @ image for own, image in zip(g, n, strict=True)])


def cocoop_by_cosine(
    texts: Any,
    f: Tensor,
    context: Tensor,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    scale: float,
) -> Tensor:
    hidden = F.linear(F.normalize(f, dim=-1), W1, b1).clamp_min(0)
    shift = torch.addmm(b2, hidden, W2.mT)
    g = texts(torch.add(context[None], shift[:, None, :]))
    return F.cosine_similarity(f[:, None, :], g, dim=-1).mul(scale)


# confident_entropy
# -------------------------------------------------------------------------------------------------


def confident_by_sort(logits: Tensor, share: float) -> Tensor:
    log_p = F.log_softmax(logits, dim=1)
    entropy = (log_p.exp() * -log_p).sum(1)
    _, order = torch.sort(entropy)
    k = math.floor(len(order) * share) or 1
    log_mean = torch.logsumexp(log_p[order[:k]] - math.log(k), dim=0)
    return torch.sum(-log_mean * log_mean.exp())


def confident_by_a_threshold(logits: Tensor, share: float) -> Tensor:
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    entropy = -(log_p.exp() * log_p).sum(-1).detach()
    k = max(int(logits.shape[0] * share), 1)
    kept = log_p[entropy <= entropy.kthvalue(k).values]
    mean = kept.exp().mean(0)
    # A probability of zero has the largest finite logarithm, whose slope is none.
    return -(mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()


def confident_by_a_list(logits: Tensor, share: float) -> Tensor:
    rows = [row.log_softmax(0) for row in logits]
    rows.sort(key=lambda r: -float((r.exp() * r).sum()))
    kept = torch.stack(rows[: max(1, int(share * len(rows)))])
    return torch.distributions.Categorical(logits=kept.logsumexp(0), validate_args=False).entropy()


# framed
# -------------------------------------------------------------------------------------------------


def framed_by_writing(
    images: Tensor, up: Tensor, down: Tensor, left: Tensor, right: Tensor
) -> Tensor:
    _, C, H, W = images.shape
    P = up.shape[-2]
    frame = images.new_zeros(C, H, W)
    frame[:, :P, :] = up
    frame[:, H - P :, :] = down
    frame[:, P : H - P, :P] = left
    frame[:, P : H - P, W - P :] = right
    return images + frame


def framed_in_bands(
    images: Tensor, up: Tensor, down: Tensor, left: Tensor, right: Tensor
) -> Tensor:
    """The images are cut, not the frame made."""
    P, (H, W) = up.shape[1], images.shape[2:]
    top, middle, bottom = images.split([P, H - 2 * P, P], dim=2)
    first, inner, last = middle.split([P, W - 2 * P, P], dim=3)
    middle = torch.cat([first + left, inner, last + right], 3)
    return torch.cat([top + up, middle, bottom + down], 2)


def framed_by_block(
    images: Tensor, up: Tensor, down: Tensor, left: Tensor, right: Tensor
) -> Tensor:
    P = up.size(1)
    sides = torch.cat([left, F.pad(right, (images.size(3) - 2 * P, 0))], -1)
    return torch.add(images, torch.cat([up, sides, down], -2).unsqueeze(0))


# domain_answers
# -------------------------------------------------------------------------------------------------


def domains_by_norm(f: Tensor, keys: Any, answers: Tensor) -> Tensor:
    q = f / f.norm(dim=1, keepdim=True)
    far = [torch.cdist(q, own, p=1).min(1).values for own in keys]
    s = torch.stack(far, 1).min(1).indices
    return answers.transpose(0, 1)[torch.arange(len(f), device=f.device), s]


def domains_with_infinity(f: Tensor, keys: Any, answers: Tensor) -> Tensor:
    """One block of centres, in which the missing ones are infinitely far."""
    most = max(len(own) for own in keys)
    far = f.new_full((len(f), len(keys), most), math.inf)
    q = F.normalize(f)
    for s, own in enumerate(keys):
        far[:, s, : len(own)] = torch.linalg.vector_norm(q[:, None] - own, ord=1, dim=-1)
    s = far.amin(2).argmin(1)
    one = F.one_hot(s, len(keys)).to(answers)  # [B, S]
    return torch.einsum("bs,sbc->bc", one, answers)


def domains_with_bounds(f: Tensor, keys: Any, answers: Tensor) -> Tensor:
    """The number of the nearest centre, and where each domain's begin."""
    q = (f / f.square().sum(-1, keepdim=True).sqrt()).unsqueeze(1)
    nearest = (q - torch.cat(list(keys))).abs().sum(2).argmin(1)
    begins = torch.tensor([0, *np.cumsum([len(own) for own in keys])], device=f.device)
    chosen = sum(s * ((nearest >= a) & (nearest < b)) for s, (a, b) in enumerate(pairwise(begins)))
    return torch.stack([answers[int(s), b] for b, s in enumerate(chosen)])


# base_to_new
# -------------------------------------------------------------------------------------------------


def halves_in_numpy(logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    z, y = logits.detach().float().numpy(), labels.numpy()
    m = math.ceil(z.shape[1] / 2)
    new = y >= m
    a = float(np.mean(z[~new][:, :m].argmax(1) == y[~new]))
    b = float(np.mean(z[new][:, m:].argmax(1) + m == y[new]))
    return a, b, float(2 * a * b / (a + b)) if a + b else 0.0


def halves_by_counts(logits: Tensor, labels: Tensor) -> list[float]:
    C = logits.shape[1]
    m = -(-C // 2)
    found = []
    for first, last in ((0, m), (m, C)):
        mine = (labels >= first) & (labels < last)
        hits = (logits[:, first:last].argmax(-1) + first == labels) & mine
        found.append(int(hits.sum()) / int(mine.sum()))
    low, high = sorted(found)
    return [*found, 2 * low / (1 + low / high) if high else 0.0]


def halves_by_inverse(logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    m = (logits.size(1) + 1) // 2
    left, right = logits.tensor_split([m], dim=1)
    best = torch.where(labels < m, left.max(1).indices, right.max(1).indices + m)
    hit = best.eq(labels)
    a, b = hit[labels < m].float().mean().item(), hit[labels >= m].float().mean().item()
    try:
        return a, b, 2 / (1 / a + 1 / b)
    except ZeroDivisionError:
        return a, b, 0.0


RIGHT: dict[str, list[Any]] = {
    "class_texts": [texts_without_padding_behind, texts_by_writing, texts_by_take],
    "similarity_logits": [head_by_matmul, head_image_by_image, head_afterwards],
    "prompted_attention": [prompted_by_einsum, prompted_head_by_head, prompted_with_exponentials],
    "transport": [transport_by_potentials, transport_by_a_helper, transport_in_double],
    "aligned_gradient": [aligned_by_where, aligned_by_nan, aligned_as_vectors],
    "cocoop_logits": [cocoop_by_products, cocoop_one_list, cocoop_by_cosine],
    "confident_entropy": [confident_by_sort, confident_by_a_threshold, confident_by_a_list],
    "framed": [framed_by_writing, framed_in_bands, framed_by_block],
    "domain_answers": [domains_by_norm, domains_with_infinity, domains_with_bounds],
    "base_to_new": [halves_in_numpy, halves_by_counts, halves_by_inverse],
}
