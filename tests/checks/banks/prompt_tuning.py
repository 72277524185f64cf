"""Assignment 03: plausible wrong answers, each with words that the check's message must contain,
and right answers written differently."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NOTEBOOK = "03_prompt_tuning"

# class_texts
# -------------------------------------------------------------------------------------------------


def arranged(V: Tensor, text: Tensor, end: int, position: str) -> Tensor:
    """[start, name, end, padding] with V among them."""
    half = {"front": 0, "middle": len(V) // 2, "end": len(V)}[position]
    return torch.cat([text[:1], V[:half], text[1:end], V[half:], text[end:]])


def texts(
    arrange: Any = arranged,
    place: Any = lambda M, ends, length: M + ends,
    one: Any = lambda context, c: context if context.ndim == 2 else context[c],
) -> Any:
    def answer(tower: Any, context: Tensor, names: Tensor, ends: Tensor, position: str) -> Tensor:
        rows = [
            arrange(one(context, c), text, int(end), position)
            for c, (text, end) in enumerate(zip(names, ends, strict=True))
        ]
        features = tower(torch.stack(rows))
        places = place(context.shape[-2], ends, features.shape[1])
        return torch.stack([row[int(at)] for row, at in zip(features, places, strict=True)])

    return answer


def texts_by_gather(
    tower: Any, context: Tensor, names: Tensor, ends: Tensor, position: str
) -> Tensor:
    """Places in [V, names] are put in order, and gathered in one go."""
    C, L, D = names.shape
    M = context.shape[-2]
    half = {"front": 0, "middle": M // 2, "end": M}[position]
    order = []
    for end in ends.tolist():
        vectors, words = list(range(M)), list(range(M, M + L))
        order.append(words[:1] + vectors[:half] + words[1:end] + vectors[half:] + words[end:])
    rows = torch.cat([context.expand(C, M, D), names], 1)
    index = torch.tensor(order, device=names.device)[..., None].expand(-1, -1, D)
    features = tower(rows.gather(1, index))
    at = (M + ends)[:, None, None].expand(-1, 1, features.shape[-1])
    return features.gather(1, at).squeeze(1)


def texts_class_by_class(
    tower: Any, context: Tensor, names: Tensor, ends: Tensor, position: str
) -> Tensor:
    alone = [
        texts()(
            tower,
            context if context.ndim == 2 else context[c],
            names[c : c + 1],
            ends[c : c + 1],
            position,
        )
        for c in range(len(names))
    ]
    return torch.cat(alone)


def middle_rounded_up(V: Tensor, text: Tensor, end: int, position: str) -> Tensor:
    half = {"front": 0, "middle": (len(V) + 1) // 2, "end": len(V)}[position]
    return torch.cat([text[:1], V[:half], text[1:end], V[half:], text[end:]])


def always(position: str) -> Any:
    return texts(lambda V, text, end, _: arranged(V, text, end, position))


def behind_the_longest(
    tower: Any, context: Tensor, names: Tensor, ends: Tensor, position: str
) -> Tensor:
    most = int(ends.max())
    return texts(lambda V, text, end, position: arranged(V, text, most, position))(
        tower, context, names, ends, position
    )


def texts_in_place(tower: Any, context: Tensor, names: Tensor, *rest: Any) -> Tensor:
    found = texts()(tower, context, names, *rest)
    with torch.no_grad():
        names[:, 1:] += 1
    return found


def texts_detached(tower: Any, context: Tensor, *rest: Any) -> Tensor:
    return texts()(tower, context.detach(), *rest)


# similarity_logits
# -------------------------------------------------------------------------------------------------


def unit(t: Tensor) -> Tensor:
    return t / t.norm(dim=-1, keepdim=True)


def dots(f: Tensor, texts: Tensor) -> Tensor:
    return (f[:, None] * texts).sum(-1)


def head(
    of_f: Any = unit,
    of_texts: Any = unit,
    last: Any = lambda cosines, s: s.exp() * cosines,
    product: Any = dots,
) -> Any:
    return lambda f, texts, s: last(product(of_f(f), of_texts(texts)), s)


def head_by_cosine(f: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    return F.cosine_similarity(f.unsqueeze(1), texts, dim=2).mul(torch.exp(logit_scale))


def head_by_einsum(f: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    kind = "be,ce->bc" if texts.ndim == 2 else "be,bce->bc"
    lengths = f.square().sum(1, keepdim=True).sqrt() * texts.square().sum(-1).sqrt()
    return torch.einsum(kind, f, texts) / lengths * math.e**logit_scale


def head_in_place(f: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    if not f.requires_grad:
        f /= f.norm(dim=-1, keepdim=True)
    return head()(f, texts, logit_scale)


def head_of_a_number(f: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    return math.exp(float(logit_scale)) * dots(unit(f), unit(texts))


def head_of_matrices(f: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    return logit_scale.exp() * unit(f) @ unit(texts.reshape(-1, f.shape[1])).T


# prompted_attention
# -------------------------------------------------------------------------------------------------


def split(t: Tensor, heads: int, strided: bool = False) -> Tensor:
    """[B, N, D] -> [B, H, N, D / H]"""
    if strided:
        return t.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)
    return t.unflatten(-1, (heads, -1)).transpose(1, 2)


def join(t: Tensor, strided: bool = False) -> Tensor:
    return (t.permute(0, 2, 3, 1) if strided else t.transpose(1, 2)).flatten(2)


def prompted(
    of_P: Any = lambda P, q, k, v: (k, v),
    factor: Any = lambda d, D: d**-0.5,
    dim: int = -1,
    roles: str = "qkv",
    strided: bool = False,
    bias_of_P: float = 1.0,
    both: Any = lambda p, t: torch.cat([p, t], 1),
) -> Any:
    def answer(x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Tensor:
        D = x.shape[-1]
        thirds = dict(zip("qkv", F.linear(x, weight, bias).chunk(3, -1), strict=True))
        shift = None if bias is None else bias_of_P * bias
        own = dict(zip("qkv", F.linear(P, weight, shift).chunk(3, -1), strict=True))
        q, k, v = (thirds[role] for role in roles)
        pk, pv = (t.expand(len(x), -1, -1) for t in of_P(P, *(own[role] for role in roles)))
        q, k, v = (split(t, heads, strided) for t in (q, both(pk, k), both(pv, v)))
        scores = q @ k.mT * factor(D // heads, D)
        return join(scores.softmax(dim) @ v, strided)

    return answer


def prompted_by_parts(
    x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> Tensor:
    """Scores with prompts and with tokens, one softmax over both, two products."""
    B, N, D = x.shape
    q, k, v = F.linear(x, weight, bias).view(B, N, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
    _, pk, pv = F.linear(P, weight, bias).reshape(len(P), 3, heads, -1).permute(1, 2, 0, 3)
    scores = torch.cat([q @ pk.mT, q @ k.mT], -1) / math.sqrt(D // heads)
    p = scores.softmax(-1)
    out = p[..., : len(P)] @ pv + p[..., len(P) :] @ v
    return out.transpose(1, 2).reshape(B, N, D)


def prompted_by_sums(
    x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> Tensor:
    """Two softmaxes, weighed by their sums of exponentials: the same as one."""
    q, k, v = (split(t, heads) for t in F.linear(x, weight, bias).chunk(3, -1))
    _, pk, pv = (split(t[None], heads) for t in F.linear(P, weight, bias).chunk(3, -1))
    root = q.shape[-1] ** 0.5
    tokens, prompts = q @ k.mT / root, q @ pk.mT / root
    share = (prompts.logsumexp(-1) - tokens.logsumexp(-1)).sigmoid()[..., None]
    return join(share * prompts.softmax(-1) @ pv + (1 - share) * tokens.softmax(-1) @ v)


def prompts_as_tokens(
    x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int, keep: bool = False
) -> Tensor:
    both = torch.cat([P.expand(len(x), -1, -1), x], 1)
    q, k, v = (split(t, heads) for t in F.linear(both, weight, bias).chunk(3, -1))
    out = join(F.scaled_dot_product_attention(q, k, v))
    return out if keep else out[:, len(P) :]


def prompts_with_own_keys(
    x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> Tensor:
    """No queries, but the projection of every image's copy."""
    both = torch.cat([P.expand(len(x), -1, -1), x], 1)
    q, k, v = (split(t, heads) for t in F.linear(both, weight, bias).chunk(3, -1))
    return join(F.scaled_dot_product_attention(q[:, :, len(P) :], k, v))


def two_softmaxes(x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    q, k, v = (split(t, heads) for t in F.linear(x, weight, bias).chunk(3, -1))
    _, pk, pv = (split(t[None], heads) for t in F.linear(P, weight, bias).chunk(3, -1))
    attend = F.scaled_dot_product_attention
    copies = (t.expand(len(x), -1, -1, -1) for t in (pk, pv))
    return join(attend(q, k, v) + attend(q, *copies))


# transport
# -------------------------------------------------------------------------------------------------


def moved(
    first: int = -1,
    cost: Any = lambda S: 1 - S,
    exponent: Any = lambda C, eps: -C / eps,
    weights: Any = lambda P, N: (1 / P, 1 / N),
    steps_of: Any = lambda steps: steps,
    mode: Any = torch.no_grad,
    gathered: Any = lambda plan, S: (plan * S).sum((-2, -1)),
    last: Any = lambda log_plan: log_plan.exp(),
    over: Any = lambda log_plan, dim: log_plan.logsumexp(dim, keepdim=True),
) -> Any:
    def answer(S: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
        row, column = weights(*S.shape[-2:])
        sums = {-1: math.log(row), -2: math.log(column)}
        with mode():
            log_plan = exponent(cost(S), eps)
            for _ in range(steps_of(steps)):
                for dim in (first, -3 - first):
                    log_plan = log_plan - over(log_plan, dim) + sums[dim]
            plan = last(log_plan)
        return plan, gathered(plan, S)

    return answer


def moved_by_softmax(S: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    """A step is a softmax over the columns of the logarithms, then one over the rows."""
    log_plan = S.detach() / eps
    for _ in range(steps):
        log_plan = log_plan.log_softmax(-1).log_softmax(-2)
    plan = log_plan.exp() / S.shape[-1]
    return plan, torch.einsum("...pn,...pn->...", plan, S)


def moved_plainly(S: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    """The textbook's form, which is zero over zero for a small eps."""
    P, N = S.shape[-2:]
    K = ((S.detach() - 1) / eps).exp()
    u, v = S.new_ones(*S.shape[:-1], 1), S.new_ones(*S.shape[:-2], N, 1)
    for _ in range(steps):
        u = 1 / P / (K @ v)
        v = 1 / N / (K.mT @ u)
    plan = u * K * v.mT
    return plan, (plan * S).sum((-2, -1))


def moved_once(S: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    plan = (S.detach() / eps).flatten(-2).softmax(-1).view(S.shape)
    return plan, (plan * S).sum((-2, -1))


def rows_only(S: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    plan = (S.detach() / eps).softmax(-1) / S.shape[-2]
    return plan, (plan * S).sum((-2, -1))


def of_all_together(log_plan: Tensor, dim: int) -> Tensor:
    front = tuple(range(log_plan.ndim - 2))
    return log_plan.logsumexp((*front, dim), keepdim=True)


def until_it_stands(S: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    """Steps until little changes, whatever number is asked for."""
    return moved(steps_of=lambda steps: 300)(S, eps, steps)


def moved_in_place(S: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    found = moved()(S, eps, steps)
    with torch.no_grad():
        S += 1
    return found


# aligned_gradient
# -------------------------------------------------------------------------------------------------


def aligned(
    when: Any = lambda product: product < 0,
    part: Any = lambda g, u, product: product / u.square().sum() * u,
    both: Any = lambda g, s, part: g - s * part,
    zero: Any = lambda g: g.clone(),
) -> Any:
    def answer(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
        product = (gradient * general).sum()
        if not when(product):
            return zero(gradient)
        return both(gradient, strength, part(gradient, general, product))

    return answer


def aligned_by_unit(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    length = general.norm()
    if length == 0:
        return gradient * 1
    u = general / length
    return gradient - strength * min((gradient * u).sum(), gradient.new_zeros(())) * u


def aligned_in_a_row(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    g, u = gradient.reshape(-1), general.reshape(-1)
    product = torch.dot(g, u)
    along = torch.where(product < 0, product / torch.dot(u, u), torch.zeros_like(product))
    return torch.add(g, torch.where(product < 0, along * u, 0 * u), alpha=-strength).reshape(
        gradient.shape
    )


def aligned_without_a_question(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    u = general / general.norm()
    return gradient - strength * (gradient * u).sum().clamp(max=0) * u


def aligned_with_a_bound(eps: float) -> Any:
    return aligned(part=lambda g, u, product: product / (u.square().sum() + eps) * u)


def aligned_by_rows(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    square = general.square().sum(-1, keepdim=True).clamp_min(1e-30)
    along = (gradient * general).sum(-1, keepdim=True) / square
    return gradient - strength * along.clamp(max=0) * general


def aligned_by_signs(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    return torch.where(gradient * general < 0, torch.zeros_like(gradient), gradient)


def aligned_in_place(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    found = aligned()(gradient, general, strength)
    with torch.no_grad():
        general /= 2
    return found


# cocoop_logits
# -------------------------------------------------------------------------------------------------


def conditional(
    seen: Any = unit,
    act: Any = F.relu,
    net: Any = lambda f, W1, b1, W2, b2, act: F.linear(act(F.linear(f, W1, b1)), W2, b2),
    shifted: Any = lambda V, s: V + s[:, None],
    of_f: Any = unit,
    of_texts: Any = unit,
    last: Any = lambda cosines, scale: scale * cosines,
    pick: Any = lambda g: g,
) -> Any:
    def answer(
        texts: Any,
        f: Tensor,
        context: Tensor,
        W1: Tensor,
        b1: Tensor,
        W2: Tensor,
        b2: Tensor,
        scale: float,
    ) -> Tensor:
        shift = net(seen(f), W1, b1, W2, b2, act)
        g = of_texts(pick(texts(shifted(context, shift))))
        return last(dots(of_f(f), g), scale)

    return answer


def conditional_by_einsum(
    texts: Any,
    f: Tensor,
    context: Tensor,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    scale: float,
) -> Tensor:
    f = torch.nn.functional.normalize(f, dim=1)
    hidden = torch.clamp(torch.einsum("be,re->br", f, W1) + b1, min=0)
    shift = torch.einsum("br,dr->bd", hidden, W2).add(b2)
    contexts = torch.stack([context + one for one in shift])
    g = texts(contexts)
    return F.cosine_similarity(f.unsqueeze(1), g, dim=-1) * scale


def conditional_image_by_image(texts: Any, f: Tensor, *rest: Any) -> Tensor:
    return torch.cat([conditional()(texts, image[None], *rest) for image in f])


def conditional_in_place(texts: Any, f: Tensor, context: Tensor, *rest: Any) -> Tensor:
    found = conditional()(texts, f, context, *rest)
    with torch.no_grad():
        context += 1
    return found


def conditional_detached(texts: Any, f: Tensor, context: Tensor, *rest: Any) -> Tensor:
    return conditional(seen=lambda f: unit(f).detach())(texts, f, context, *rest)


def only(which: int) -> Any:
    def shifted(V: Tensor, s: Tensor) -> Tensor:
        mask = torch.zeros(len(V), 1, dtype=V.dtype, device=V.device)
        mask[which] = 1
        return V + mask * s[:, None]

    return shifted


# confident_entropy
# -------------------------------------------------------------------------------------------------


def entropies(logits: Tensor, dim: int = 1) -> Tensor:
    return -(logits.softmax(dim) * logits.log_softmax(dim)).sum(1)


def of_the_mean(kept: Tensor) -> Tensor:
    log_mean = kept.log_softmax(1).logsumexp(0) - math.log(len(kept))
    return -(log_mean.exp() * log_mean).sum()


def confident(
    order: Any = lambda logits: entropies(logits).argsort(),
    count: Any = lambda V, share: max(1, int(share * V)),
    loss: Any = of_the_mean,
    pick: Any = lambda order, k: order[:k],
) -> Any:
    return lambda logits, share: loss(logits[pick(order(logits), count(len(logits), share))])


def confident_by_topk(logits: Tensor, share: float) -> Tensor:
    k = max(math.floor(len(logits) * share), 1)
    places = torch.distributions.Categorical(logits=logits.detach()).entropy()
    kept = logits[places.topk(k, largest=False).indices].log_softmax(-1)
    log_mean = torch.logsumexp(kept, 0) - math.log(k)
    return (log_mean.exp() * log_mean).sum().neg()


def confident_without_a_slope(logits: Tensor, share: float) -> Tensor:
    """Right, with a gradient of zero times infinity where a probability is zero."""
    places = torch.distributions.Categorical(logits=logits.detach()).entropy().argsort()
    kept = logits[places[: max(1, int(share * len(logits)))]].softmax(-1)
    return torch.special.entr(kept.mean(0)).sum()


def confident_plainly(logits: Tensor, share: float) -> Tensor:
    """With p log p, which is nan where p is zero."""
    p = logits.softmax(1)
    places = (-(p * p.log()).sum(1)).argsort()[: max(1, int(share * len(p)))]
    mean = p[places].mean(0)
    return -(mean * mean.log()).sum()


def confident_with_a_bound(logits: Tensor, share: float) -> Tensor:
    p = logits.softmax(1)
    places = (-(p * (p + 1e-3).log()).sum(1)).argsort()[: max(1, int(share * len(p)))]
    mean = p[places].mean(0)
    return -(mean * (mean + 1e-3).log()).sum()


def mean_of_logits(kept: Tensor) -> Tensor:
    return entropies(kept.mean(0, keepdim=True))[0]


def confident_in_place(logits: Tensor, share: float) -> Tensor:
    found = confident()(logits, share)
    with torch.no_grad():
        logits -= logits.amax(1, keepdim=True)
    return found


def over_views(logits: Tensor, share: float) -> Tensor:
    places = entropies(logits, 0).argsort()[: max(1, int(share * len(logits)))]
    mean = logits.softmax(0)[places].mean(0)
    return -(mean * mean.log()).sum()


# framed
# -------------------------------------------------------------------------------------------------


def picture(up: Tensor, down: Tensor, left: Tensor, right: Tensor) -> Tensor:
    P, W = up.shape[1:]
    inside = left.new_zeros(len(up), left.shape[1], W - 2 * P)
    return torch.cat([up, torch.cat([left, inside, right], 2), down], 1)


def frame(
    sides: Any = lambda u, d, le, r: (u, d, le, r),
    both: Any = lambda x, p, P: x + p,
    made: Any = picture,
) -> Any:
    def answer(images: Tensor, *four: Tensor) -> Tensor:
        return both(images, made(*sides(*four)), four[0].shape[1])

    return answer


def framed_by_pads(images: Tensor, up: Tensor, down: Tensor, left: Tensor, right: Tensor) -> Tensor:
    H, W = images.shape[-2:]
    P = up.shape[1]
    out = images + F.pad(up, (0, 0, 0, H - P)) + F.pad(down, (0, 0, H - P, 0))
    return out + F.pad(left, (0, W - P, P, P)) + F.pad(right, (W - P, 0, P, P))


def framed_by_slices(images: Tensor, *four: Tensor) -> Tensor:
    up, down, left, right = four
    P = up.shape[1]
    out = images.clone()
    out[:, :, :P] += up
    out[:, :, -P:] += down
    out[:, :, P:-P, :P] += left
    out[:, :, P:-P, -P:] += right
    return out


def border(images: Tensor, P: int) -> Tensor:
    mask = torch.ones_like(images)
    mask[..., P:-P, P:-P] = 0
    return mask


def framed_in_place(images: Tensor, *four: Tensor) -> Tensor:
    found = frame()(images, *four)
    with torch.no_grad():
        images.copy_(found)
    return found


def framed_from_above(
    images: Tensor, up: Tensor, down: Tensor, left: Tensor, right: Tensor
) -> Tensor:
    """Left and right begin at the upper edge, beside up."""
    H, W = images.shape[-2:]
    P = up.shape[1]
    out = images + F.pad(up, (0, 0, 0, H - P)) + F.pad(down, (0, 0, H - P, 0))
    return out + F.pad(left, (0, W - P, 0, 2 * P)) + F.pad(right, (W - P, 0, 0, 2 * P))


def framed_around(images: Tensor, up: Tensor, *rest: Tensor) -> Tensor:
    P = up.shape[1]
    return F.pad(images, (P, P, P, P))


def framed_in_fractions(images: Tensor, *four: Tensor) -> Tensor:
    """The middle comes back with a rounding error."""
    p = picture(*four)
    return (images * 3 + 3 * p) / 3


# domain_answers
# -------------------------------------------------------------------------------------------------


def l1(q: Tensor, centres: Tensor) -> Tensor:
    return (q[:, None] - centres).abs().sum(-1)


def matched(
    of_f: Any = unit,
    of_keys: Any = lambda own: own,
    measure: Any = l1,
    over: Any = lambda far: far.amin(1),
    best: Any = lambda far: far.argmin(0),
    taken: Any = lambda answers, s: answers[s, torch.arange(len(s), device=s.device)],
) -> Any:
    def answer(f: Tensor, keys: Any, answers: Tensor) -> Tensor:
        q = of_f(f)
        far = torch.stack([over(measure(q, of_keys(own))) for own in keys])
        return taken(answers, best(far))

    return answer


def matched_by_cdist(f: Tensor, keys: Any, answers: Tensor) -> Tensor:
    """All centres in one matrix, and beside it the number of each one's domain."""
    owner = torch.tensor([s for s, own in enumerate(keys) for _ in own], device=f.device)
    far = torch.cdist(F.normalize(f), torch.cat(list(keys)), p=1.0)
    s = owner[far.argmin(1)]
    return answers.gather(0, s[None, :, None].expand(1, -1, answers.shape[2]))[0]


def matched_image_by_image(f: Tensor, keys: Any, answers: Tensor) -> Tensor:
    rows = []
    for b, image in enumerate(f):
        q = image / image.square().sum().sqrt()
        nearest = [min((q - c).abs().sum() for c in own) for own in keys]
        rows.append(answers[nearest.index(min(nearest)), b])
    return torch.stack(rows)


def matched_in_a_block(f: Tensor, keys: Any, answers: Tensor) -> Tensor:
    """Centres of fewer domains filled up with zeros."""
    most = max(map(len, keys))
    block = torch.stack([F.pad(own, (0, 0, 0, most - len(own))) for own in keys])
    far = (unit(f)[:, None, None] - block).abs().sum(-1).amin(-1)
    return answers[far.argmin(1), range(len(f))]


def matched_by_number(f: Tensor, keys: Any, answers: Tensor) -> Tensor:
    far = l1(unit(f), torch.cat(list(keys)))
    s = (far.argmin(1) // len(keys[0])).clamp(max=len(keys) - 1)
    return answers[s, range(len(f))]


def matched_in_place(f: Tensor, keys: Any, answers: Tensor) -> Tensor:
    found = matched()(f, keys, answers)
    f /= f.norm(dim=-1, keepdim=True)
    return found


def matched_softly(f: Tensor, keys: Any, answers: Tensor) -> Tensor:
    far = torch.stack([l1(unit(f), own).amin(1) for own in keys])
    return ((-far).softmax(0)[..., None] * answers).sum(0)


def matched_detached(f: Tensor, keys: Any, answers: Tensor) -> Tensor:
    return matched()(f, keys, answers.detach())


# base_to_new
# -------------------------------------------------------------------------------------------------


def harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def halves(
    middle: Any = lambda C: (C + 1) // 2,
    mean: Any = harmonic,
    shift: bool = True,
    whole: bool = False,
    accuracy: Any = lambda right, labels: right.double().mean().item(),
    order: Any = lambda a, b: (a, b),
) -> Any:
    def answer(logits: Tensor, labels: Tensor) -> tuple[Any, Any, Any]:
        m = middle(logits.shape[1])
        found = []
        for new in (False, True):
            own = (labels >= m) == new
            part = logits[own] if whole else logits[own][:, m:] if new else logits[own][:, :m]
            wanted = labels[own] - (m if new and shift and not whole else 0)
            found.append(accuracy(part.argmax(1) == wanted, labels[own]))
        a, b = order(*found)
        return a, b, mean(a, b)

    return answer


def halves_image_by_image(logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    C = logits.shape[1]
    m = C - C // 2
    right, total = [0, 0], [0, 0]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        new = int(label >= m)
        among = range(m, C) if new else range(m)
        total[new] += 1
        right[new] += max(among, key=lambda c: row[c]) == label
    a, b = (r / t for r, t in zip(right, total, strict=True))
    return a, b, 0.0 if a == 0 or b == 0 else 2 / (1 / a + 1 / b)


def halves_by_masks(logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Classes of the other half get a logit of minus infinity."""
    C = logits.shape[1]
    is_new = torch.arange(C, device=logits.device) >= (C + 1) // 2
    other = is_new != is_new[labels][:, None]
    right = logits.masked_fill(other, -torch.inf).argmax(1) == labels
    a, b = (right[is_new[labels] == half].double().mean().item() for half in (False, True))
    return a, b, (2 * a * b) / max(a + b, 1e-9)


def mean_of_classes(right: Tensor, labels: Tensor) -> float:
    own = [right[labels == c].double().mean().item() for c in labels.unique()]
    return sum(own) / len(own)


def halves_of_all(logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """All images are judged in both halves."""
    m = (logits.shape[1] + 1) // 2
    a = (logits[:, :m].argmax(1) == labels).double().mean().item()
    b = (logits[:, m:].argmax(1) + m == labels).double().mean().item()
    return a, b, harmonic(a, b)


def halves_in_place(logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    found = halves()(logits, labels)
    labels[labels >= (logits.shape[1] + 1) // 2] -= (logits.shape[1] + 1) // 2
    return found


RIGHT: dict[str, list[Callable[..., Any]]] = {
    "class_texts": [texts(), texts_by_gather],
    "similarity_logits": [head(), head_by_cosine, head_by_einsum],
    "prompted_attention": [prompted(), prompted_by_parts, prompted_by_sums],
    "transport": [moved(), moved_by_softmax],
    "aligned_gradient": [aligned(), aligned_by_unit, aligned_in_a_row],
    "cocoop_logits": [conditional(), conditional_by_einsum],
    "confident_entropy": [confident(), confident_by_topk],
    "framed": [frame(), framed_by_pads, framed_by_slices],
    "domain_answers": [matched(), matched_by_cdist, matched_image_by_image],
    "base_to_new": [halves(), halves_image_by_image, halves_by_masks],
}

WRONG: dict[str, dict[str, tuple[Any, str]]] = {
    "class_texts": {
        "reads the old place": (texts(place=lambda M, ends, n: ends), "moves it by M places"),
        "one place before": (texts(place=lambda M, ends, n: M + ends - 1), "before the end token"),
        "one place behind": (texts(place=lambda M, ends, n: M + ends + 1), "behind the end token"),
        "the last place": (texts(place=lambda M, ends, n: 0 * ends + n - 1), "which is padding"),
        "the first place": (texts(place=lambda M, ends, n: 0 * ends), "seen nothing"),
        "the longest's place": (
            texts(place=lambda M, ends, n: M + ends.max().expand_as(ends)),
            "where the longest ends",
        ),
        "the first one's place": (
            texts(place=lambda M, ends, n: M + ends[:1].expand_as(ends)),
            "where the first ends",
        ),
        "the mean": (
            lambda tower, *rest: texts()(
                lambda x: tower(x).mean(1, keepdim=True) + 0 * x[..., :1], *rest
            ),
            "mean over all tokens",
        ),
        "always at the end": (always("end"), "stands at the end"),
        "always in front": (always("front"), "stands in front"),
        "front is the end": (
            texts(
                lambda V, text, end, position: arranged(
                    V, text, end, {"front": "end", "end": "front"}.get(position, position)
                )
            ),
            "stands in front|stands at the end",
        ),
        "middle rounded up": (texts(middle_rounded_up), "smaller half"),
        "context before start": (
            texts(lambda V, text, end, position: torch.cat([V, text])),
            "before the start token",
        ),
        "context behind the end": (
            texts(
                lambda V, text, end, position: torch.cat([text[: end + 1], V, text[end + 1 :]]),
                lambda M, ends, n: ends,
            ),
            "does not see the context",
        ),
        "context behind the padding": (
            texts(lambda V, text, end, position: torch.cat([text, V])),
            "behind the padding",
        ),
        "behind the longest name": (behind_the_longest, "longest name"),
        "no start": (
            texts(
                lambda *k: arranged(*k)[1:],
                lambda M, ends, n: M + ends - 1,
            ),
            "start token is lost",
        ),
        "no start, place kept": (texts(lambda *k: arranged(*k)[1:]), "one too far"),
        "overwrites the name": (
            texts(
                lambda V, text, end, position: torch.cat([text[:1], V, text[1 + len(V) :]])[
                    : len(text)
                ],
                lambda M, ends, n: ends,
            ),
            "takes the places|expected",
        ),
        "no context": (
            texts(lambda V, text, end, position: text, lambda M, ends, n: ends),
            "does not see the context",
        ),
        "reversed": (
            texts(lambda V, text, end, position: arranged(V.flip(0), text, end, position)),
            "reversed order",
        ),
        "first class for all": (
            texts(one=lambda context, c: context if context.ndim == 2 else context[0]),
            "first class serves all",
        ),
        "class by class": (texts_class_by_class, "one call of the tower"),
        "context detached": (texts_detached, "no gradient reaches context"),
        "in place": (texts_in_place, "wrote into a tensor"),
    },
    "similarity_logits": {
        "features as they are": (head(of_f=lambda f: f), "features are not divided"),
        "texts as they are": (head(of_texts=lambda t: t), "texts are not divided"),
        "nothing divided": (head(lambda f: f, lambda t: t), "nothing is divided"),
        "no scale": (head(last=lambda c, s: c), "scale is missing"),
        "no exp": (head(last=lambda c, s: s * c), "is a logarithm"),
        "exp twice": (head(last=lambda c, s: s.exp().exp() * c), "applied twice"),
        "divided": (head(last=lambda c, s: c / s.exp()), "it multiplies"),
        "scale twice": (head(last=lambda c, s: s.exp() ** 2 * c), "applied twice"),
        "over the batch": (head(lambda f: f / f.norm(dim=0)), "over the batch"),
        "over the first dimension": (
            head(lambda f: f / f.norm(dim=0), lambda t: t / t.norm(dim=0)),
            "first dimension|over the batch",
        ),
        "texts over dimension 1": (head(of_texts=F.normalize), "dimension 1|over the classes"),
        "one length for all": (head(lambda f: f / f.norm()), "one length is taken"),
        "the square of the length": (
            head(
                lambda f: unit(f) / f.norm(dim=-1, keepdim=True),
                lambda t: unit(t) / t.norm(dim=-1, keepdim=True),
            ),
            "square of their length",
        ),
        "sum of absolute values": (
            head(lambda f: F.normalize(f, p=1, dim=-1), lambda t: F.normalize(t, p=1, dim=-1)),
            "absolute values",
        ),
        "softmax": (head(last=lambda c, s: (s.exp() * c).softmax(-1)), "probabilities"),
        "sign turned": (head(last=lambda c, s: -s.exp() * c), "sign is turned"),
        "distance": (head(last=lambda c, s: s.exp() * (1 - c)), "distance"),
        "as in attention": (
            lambda f, texts, s: head()(f, texts, s) / f.shape[1] ** 0.5,
            "as in attention",
        ),
        "the first image's texts": (
            head(product=lambda f, t: f @ (t if t.ndim == 2 else t[0]).T),
            "first image serve all",
        ),
        "all texts": (head_of_matrices, "expected shape|all images"),
        "a number": (head_of_a_number, "no gradient reaches logit_scale"),
        "features detached": (
            lambda f, texts, s: head()(f.detach(), texts, s),
            "no gradient reaches f",
        ),
        "length detached": (
            head(lambda f: f / f.norm(dim=-1, keepdim=True).detach()),
            "the gradient of f",
        ),
        "in place": (head_in_place, "wrote into a tensor"),
    },
    "prompted_attention": {
        "as tokens": (
            lambda *k: prompts_as_tokens(*k, keep=True),
            "only the image's tokens have queries",
        ),
        "queries and all": (prompts_as_tokens, "for each image anew"),
        "a copy for each image": (prompts_with_own_keys, "for each image anew"),
        "two softmaxes": (two_softmaxes, "share one"),
        "prompts alone": (prompted(both=lambda p, t: p), "prompts alone"),
        "tokens alone": (prompted(both=lambda p, t: t), "not seen"),
        "keys alone": (prompted(lambda P, q, k, v: (k, 0 * v)), "keys alone"),
        "values alone": (prompted(lambda P, q, k, v: (0 * k, v)), "values alone"),
        "P itself": (prompted(lambda P, q, k, v: (P, P)), "P itself"),
        "exchanged for prompts": (prompted(lambda P, q, k, v: (v, k)), "are exchanged"),
        "the first two thirds": (prompted(lambda P, q, k, v: (q, k)), "second and"),
        "no factor": (prompted(factor=lambda d, D: 1.0), "factor is missing"),
        "root of D": (prompted(factor=lambda d, D: D**-0.5), "divided by sqrt\\(D\\)"),
        "no root": (prompted(factor=lambda d, D: 1 / d), "it is its root"),
        "softmax over queries": (prompted(dim=-2), "runs over the keys"),
        "k, q, v": (prompted(roles="kqv"), "queries and keys are exchanged"),
        "q, v, k": (prompted(roles="qvk"), "keys and values are exchanged"),
        "every H-th channel": (prompted(strided=True), "every H-th channel"),
        "one head": (lambda x, P, w, b, heads: prompted()(x, P, w, b, 1), "heads are missing"),
        "no bias for P": (prompted(bias_of_P=0.0), "missing in the prompts' keys and values"),
        "no bias": (lambda x, P, w, b, heads: prompted()(x, P, w, None, heads), "bias is missing"),
        "a skip": (lambda x, *rest: x + prompted()(x, *rest), "skip is added"),
        "the prompts' places": (
            lambda x, P, *rest: prompts_as_tokens(x, P, *rest, keep=True)[:, : x.shape[1]],
            "places of the prompts",
        ),
        "P detached": (
            lambda x, P, *rest: prompted()(x, P.detach(), *rest),
            "no gradient reaches P",
        ),
        "weight detached": (
            lambda x, P, w, *rest: prompted()(x, P, w.detach(), *rest),
            "no gradient reaches weight",
        ),
    },
    "transport": {
        "columns first": (moved(first=-2), "columns come first"),
        "one step less": (moved(steps_of=lambda steps: steps - 1), "one step less|expected"),
        "one step more": (moved(steps_of=lambda steps: steps + 1), "one step more"),
        "one step": (moved(steps_of=lambda steps: 1), "only one step|one step less"),
        "until it stands": (until_it_stands, "expected"),
        "rows only": (rows_only, "only the rows"),
        "weights exchanged": (moved(weights=lambda P, N: (1 / N, 1 / P)), "are exchanged"),
        "weights of one": (moved(weights=lambda P, N: (1.0, 1.0)), "weigh 1 each|one step less"),
        "sign turned": (moved(exponent=lambda C, eps: C / eps), "sign is turned"),
        "similarity as cost": (moved(cost=lambda S: S), "sign is turned"),
        "eps multiplies": (moved(exponent=lambda C, eps: -C * eps), "eps multiplies"),
        "no eps": (moved(exponent=lambda C, eps: -C), "eps is missing"),
        "softmax over all": (moved_once, "softmax over everything"),
        "all together": (moved(over=of_all_together), "plan of its own"),
        "plain": (moved_plainly, "keep the logarithms"),
        "logarithm": (moved(last=lambda log_plan: log_plan), "logarithm of the plan"),
        "a graph": (moved(mode=torch.enable_grad), "without a graph"),
        "score of the cost": (
            moved(gathered=lambda plan, S: (plan * (1 - S)).sum((-2, -1))),
            "weighs the cost",
        ),
        "score as a mean": (
            moved(gathered=lambda plan, S: (plan * S).mean((-2, -1))),
            "so sum",
        ),
        "score of all": (
            moved(gathered=lambda plan, S: (plan * S).sum()),
            "images and classes|expected",
        ),
        "score over prompts": (
            moved(gathered=lambda plan, S: (plan * S).sum(-1)),
            "over the prompts only",
        ),
        "score detached": (
            moved(gathered=lambda plan, S: (plan * S.detach()).sum((-2, -1))),
            "no gradient reaches similarity",
        ),
        "a graph through the plan": (
            lambda S, eps, steps: (
                moved()(S, eps, steps)[0],
                moved(mode=torch.enable_grad)(S, eps, steps)[1],
            ),
            "through the plan as well",
        ),
        "plan alone": (lambda *k: moved()(*k)[0], "return \\(plan, score\\)"),
        "in place": (moved_in_place, "wrote into a tensor"),
    },
    "aligned_gradient": {
        "always": (aligned(when=lambda product: product != 0), "dropped always"),
        "where they agree": (aligned(when=lambda product: product > 0), "where the two agree"),
        "never": (aligned(when=lambda product: False), "stays as it is"),
        "added": (aligned(both=lambda g, s, part: g + s * part), "subtract it"),
        "no strength": (aligned(both=lambda g, s, part: g - part), "strength is missing"),
        "strength for all": (
            aligned(both=lambda g, s, part: s * (g - part)),
            "multiplies everything",
        ),
        "no length": (
            aligned(part=lambda g, u, product: product * u),
            "not divided by its length",
        ),
        "length, not its square": (
            aligned(part=lambda g, u, product: product / u.norm() * u),
            "by its square",
        ),
        "both lengths": (
            aligned(part=lambda g, u, product: product / u.norm() / g.norm() * u / u.norm()),
            "lengths of both",
        ),
        "the part alone": (aligned(both=lambda g, s, part: s * part), "not what is left"),
        "all of it": (aligned(both=lambda g, s, part: 0 * g), "all of the gradient"),
        "the general gradient": (aligned(both=lambda g, s, part: g - g + part * 0), "expected"),
        "exchanged": (
            lambda g, u, s: (
                u - s * (g * u).sum() / g.square().sum() * g if (g * u).sum() < 0 else g.clone()
            ),
            "roles are exchanged",
        ),
        "by rows": (aligned_by_rows, "one long row"),
        "by signs": (aligned_by_signs, "directions as a whole"),
        "zero over zero": (aligned_without_a_question, "contradicts nothing"),
        "a small number added": (aligned_with_a_bound(1e-8), "small number is added"),
        "a bound on the length": (
            aligned(
                part=lambda g, u, product: product / u.norm().clamp(min=1e-2) ** 2 * u,
            ),
            "small number is added",
        ),
        "as long as before": (
            aligned(
                both=lambda g, s, part: (g - s * part) * g.norm() / (g - s * part).norm(),
            ),
            "as long as before",
        ),
        "itself": (aligned(zero=lambda g: g), "the argument itself"),
        "in place": (aligned_in_place, "wrote into a tensor"),
    },
    "cocoop_logits": {
        "no shift": (conditional(shifted=lambda V, s: V + 0 * s[:, None]), "shift is missing"),
        "shift alone": (
            conditional(shifted=lambda V, s: 0 * V + s[:, None]),
            "takes the context's place",
        ),
        "multiplied": (conditional(shifted=lambda V, s: V * s[:, None]), "multiplies the context"),
        "subtracted": (conditional(shifted=lambda V, s: V - s[:, None]), "is subtracted"),
        "the first image's": (
            conditional(shifted=lambda V, s: V + s[:1, None].expand(len(s), 1, -1)),
            "first image serves all",
        ),
        "the mean of the batch": (
            conditional(shifted=lambda V, s: (V + s.mean(0)).expand(len(s), -1, -1)),
            "mean of all shifts",
        ),
        "the first vector": (conditional(shifted=only(0)), "first vector alone"),
        "the last vector": (conditional(shifted=only(-1)), "last vector alone"),
        "raw features inside": (conditional(seen=lambda f: f), "small network reads"),
        "raw features outside": (conditional(of_f=lambda f: f), "for the cosine"),
        "raw features": (
            conditional(seen=lambda f: f, of_f=lambda f: f),
            "features are not divided",
        ),
        "raw texts": (conditional(of_texts=lambda t: t), "texts are not divided"),
        "no ReLU": (conditional(act=lambda h: h), "ReLU is missing"),
        "GELU": (conditional(act=F.gelu), "that is GELU"),
        "a ReLU behind": (
            conditional(
                net=lambda f, W1, b1, W2, b2, act: act(F.linear(F.linear(f, W1, b1), W2, b2))
            ),
            "behind the second layer",
        ),
        "two ReLUs": (
            conditional(
                net=lambda f, W1, b1, W2, b2, act: act(F.linear(act(F.linear(f, W1, b1)), W2, b2))
            ),
            "second ReLU",
        ),
        "no b1": (
            conditional(net=lambda f, W1, b1, W2, b2, act: F.linear(act(f @ W1.T), W2, b2)),
            "b1 is missing",
        ),
        "no b2": (
            conditional(net=lambda f, W1, b1, W2, b2, act: act(F.linear(f, W1, b1)) @ W2.T),
            "b2 is missing",
        ),
        "no scale": (conditional(last=lambda c, scale: c), "scale is missing"),
        "exp of the scale": (
            conditional(last=lambda c, scale: math.exp(scale) * c),
            "exp of the scale",
        ),
        "the first image's texts": (
            conditional(pick=lambda g: g[:1]),
            "first image serve|shift of the first image",
        ),
        "mean of the texts": (conditional(pick=lambda g: g.mean(0)), "mean of all images' texts"),
        "image by image": (conditional_image_by_image, "one call of texts"),
        "features detached inside": (conditional_detached, "the gradient of f"),
        "context detached": (
            lambda t, f, V, *rest: conditional()(t, f, V.detach(), *rest),
            "no gradient reaches context",
        ),
        "in place": (conditional_in_place, "wrote into a tensor"),
    },
    "confident_entropy": {
        "the least sure": (
            confident(order=lambda z: entropies(z).argsort(descending=True)),
            "least sure views",
        ),
        "all views": (confident(count=lambda V, share: V), "all views are kept"),
        "the first views": (
            confident(order=lambda z: torch.arange(len(z), device=z.device)),
            "as they come",
        ),
        "rounded up": (confident(count=lambda V, share: math.ceil(share * V)), "rounded up"),
        "rounded": (
            confident(count=lambda V, share: max(1, round(share * V))),
            "rounded to the nearest|rounded up",
        ),
        "one too many": (
            confident(count=lambda V, share: int(share * V) + 1),
            "one view too many|rounded up",
        ),
        "no view": (
            confident(count=lambda V, share: int(share * V)),
            "expected",
        ),
        "the surest left out": (
            confident(pick=lambda order, k: order[1 : k + 1] if len(order) > 1 else order),
            "number 0",
        ),
        "the mean of entropies": (
            confident(loss=lambda kept: entropies(kept).mean()),
            "mean of the entropies",
        ),
        "the mean of all entropies": (
            lambda logits, share: entropies(logits).mean(),
            "mean of the entropies",
        ),
        "the mean of logits": (confident(loss=mean_of_logits), "logits are averaged"),
        "the mean of logarithms": (
            confident(
                loss=lambda kept: (
                    -(kept.log_softmax(1).mean(0).exp() * kept.log_softmax(1).mean(0)).sum()
                )
            ),
            "logarithms of the probabilities are averaged",
        ),
        "no sign": (confident(loss=lambda kept: -of_the_mean(kept)), "sign is missing"),
        "a mean over classes": (
            confident(loss=lambda kept: of_the_mean(kept) / kept.shape[1]),
            "entropy is a sum",
        ),
        "bits": (confident(loss=lambda kept: of_the_mean(kept) / math.log(2)), "in bits"),
        "sums over views": (
            confident(
                loss=lambda kept: -(kept.softmax(1).sum(0) * kept.softmax(1).sum(0).log()).sum()
            ),
            "not averaged",
        ),
        "over views": (over_views, "runs over the views"),
        "largest logits": (
            confident(order=lambda z: z.amax(1).argsort(descending=True)),
            "largest logit",
        ),
        "largest probabilities": (
            confident(order=lambda z: z.softmax(1).amax(1).argsort(descending=True)),
            "largest probability",
        ),
        "zero times infinity": (confident_plainly, "0 log 0"),
        "no slope": (confident_without_a_slope, "the gradient for logits"),
        "a thousandth added": (confident_with_a_bound, "expected"),
        "detached": (lambda z, share: confident()(z.detach(), share), "no gradient reaches logits"),
        "half detached": (
            confident(
                loss=lambda kept: (
                    -(kept.softmax(1).mean(0).detach() * kept.softmax(1).mean(0).log()).sum()
                )
            ),
            "the gradient of logits",
        ),
        "a number": (lambda *k: confident()(*k).item(), "expected a tensor"),
        "in place": (confident_in_place, "wrote into a tensor"),
    },
    "framed": {
        "overwrites": (
            frame(both=lambda x, p, P: torch.where(border(x, P) > 0, p, x)),
            "takes the place",
        ),
        "black inside": (frame(both=lambda x, p, P: x * border(x, P) + p), "middle is overwritten"),
        "nothing": (frame(both=lambda x, p, P: x.clone()), "frame is missing"),
        "the frame alone": (frame(both=lambda x, p, P: p + 0 * x), "frame alone"),
        "subtracts": (frame(both=lambda x, p, P: x - p), "is subtracted"),
        "multiplies": (
            frame(both=lambda x, p, P: x * torch.where(border(x, P) > 0, p, 1.0)),
            "multiplies",
        ),
        "up and down": (frame(lambda u, d, le, r: (d, u, le, r)), "up and down are exchanged"),
        "left and right": (
            frame(lambda u, d, le, r: (u, d, r, le)),
            "left and right are exchanged",
        ),
        "up twice": (frame(lambda u, d, le, r: (u, u, le, r)), "for both, up and down"),
        "left twice": (frame(lambda u, d, le, r: (u, d, le, le)), "for both, left and right"),
        "upside down": (frame(lambda u, d, le, r: (u, d.flip(1), le, r)), "upside down"),
        "mirrored": (frame(lambda u, d, le, r: (u, d, le, r.flip(2))), "mirrored"),
        "no sides": (
            frame(lambda u, d, le, r: (u, d, 0 * le, 0 * r)),
            "left and right are missing",
        ),
        "from the upper edge": (framed_from_above, "begin at the upper edge"),
        "around": (framed_around, "lies around"),
        "clipped": (frame(both=lambda x, p, P: (x + p).clamp(0, 1)), "clipped to 0"),
        "clipped on both sides": (
            frame(both=lambda x, p, P: (x + p).clamp(-1, 1)),
            "clipped to -1",
        ),
        "one channel": (frame(both=lambda x, p, P: x + p[:1]), "one channel's"),
        "the first image": (
            frame(both=lambda x, p, P: torch.cat([x[:1] + p, x[1:]])),
            "only the first image",
        ),
        "transposed": (
            frame(both=lambda x, p, P: x + (p.mT if x.shape[-1] == x.shape[-2] else p)),
            "transposed",
        ),
        "a rounding error": (framed_in_fractions, "exactly as it was"),
        "detached": (
            frame(lambda u, d, le, r: (u.detach(), d, le, r)),
            "no gradient reaches up",
        ),
        "images detached": (
            frame(both=lambda x, p, P: x.detach() + p),
            "no gradient reaches images",
        ),
        "in place": (framed_in_place, "wrote into a tensor"),
    },
    "domain_answers": {
        "squared": (
            matched(measure=lambda q, c: (q[:, None] - c).square().sum(-1)),
            "squared differences",
        ),
        "Euclid": (matched(measure=torch.cdist), "squared differences"),
        "the largest difference": (
            matched(measure=lambda q, c: (q[:, None] - c).abs().amax(-1)),
            "largest difference",
        ),
        "signs": (matched(measure=lambda q, c: (q[:, None] - c).sum(-1)), "with their signs"),
        "signs, then absolute": (
            matched(measure=lambda q, c: (q[:, None] - c).sum(-1).abs()),
            "with their signs",
        ),
        "product": (matched(measure=lambda q, c: -q @ c.T), "by their product"),
        "cosine": (
            matched(measure=lambda q, c: -F.cosine_similarity(q[:, None], c, dim=-1)),
            "by the cosine|by their product",
        ),
        "features as they are": (matched(of_f=lambda f: f), "features are not divided"),
        "centres of length one": (matched(of_keys=unit), "centres are divided"),
        "the other way round": (matched(lambda f: f, unit), "and the features are not"),
        "over the batch": (matched(of_f=lambda f: F.normalize(f, dim=0)), "over the batch"),
        "sum of absolute values": (
            matched(of_f=lambda f: F.normalize(f, p=1, dim=-1)),
            "sum of their absolute values",
        ),
        "mean of the distances": (matched(over=lambda far: far.mean(1)), "is averaged"),
        "sum of the distances": (matched(over=lambda far: far.sum(1)), "are summed"),
        "the farthest centre": (matched(over=lambda far: far.amax(1)), "farthest centre"),
        "the mean centre": (
            matched(of_keys=lambda own: own.mean(0, keepdim=True)),
            "centres of a domain are averaged",
        ),
        "the first centre": (matched(of_keys=lambda own: own[:1]), "first centre"),
        "the farthest domain": (matched(best=lambda far: far.argmax(0)), "farthest domain"),
        "one for the batch": (
            matched(best=lambda far: far.argmin(0).mode().values.expand(far.shape[1])),
            "whole batch",
        ),
        "that of the first image": (
            matched(best=lambda far: far.argmin(0)[:1].expand(far.shape[1])),
            "first image is taken|whole batch",
        ),
        "filled up with zeros": (matched_in_a_block, "filled up with zeros"),
        "by the number of the centre": (matched_by_number, "as many centres as the first|expected"),
        "the first image's answer": (
            matched(taken=lambda answers, s: answers[s, 0]),
            "answer to the first image",
        ),
        "the numbers": (matched(taken=lambda answers, s: s), "numbers of the domains|expected"),
        "softly": (matched_softly, "expected"),
        "detached": (matched_detached, "no gradient reaches answers"),
        "in place": (matched_in_place, "wrote into a tensor|stay as"),
    },
    "base_to_new": {
        "among all classes": (halves(whole=True), "all classes are asked"),
        "labels not shifted": (halves(shift=False), "subtract the middle"),
        "C // 2": (halves(middle=lambda C: C // 2), "one more"),
        "exchanged": (halves(order=lambda a, b: (b, a)), "are exchanged"),
        "arithmetic": (halves(mean=lambda a, b: (a + b) / 2), "arithmetic mean"),
        "geometric": (halves(mean=lambda a, b: (a * b) ** 0.5), "geometric mean"),
        "no 2": (halves(mean=lambda a, b: harmonic(a, b) / 2), "2 is missing"),
        "product": (halves(mean=lambda a, b: a * b), "their product"),
        "the smaller": (halves(mean=min), "smaller one"),
        "zero over zero": (
            halves(mean=lambda a, b: 2 * a * b / (a + b)),
            "divide by zero|0 / 0",
        ),
        "zero over zero of tensors": (
            halves(mean=lambda a, b: (2 * a * b / (torch.tensor(a) + b)).item()),
            "0 / 0",
        ),
        "one over zero": (
            halves(mean=lambda a, b: 2 / (1 / a + 1 / b)),
            "divide by zero",
        ),
        "zero for nothing": (
            halves(mean=lambda a, b: harmonic(a, b) if a + b else 1.0),
            "should be zero|expected",
        ),
        "one right half is enough": (
            halves(mean=lambda a, b: harmonic(a, b) if a and b else a + b),
            "larger one|sum|arithmetic|expected",
        ),
        "percent": (
            halves(accuracy=lambda right, labels: 100 * right.double().mean().item()),
            "percentage",
        ),
        "counts": (
            halves(accuracy=lambda right, labels: int(right.sum())),
            "right answers are counted",
        ),
        "a mean of classes": (halves(accuracy=mean_of_classes), "averaged over classes"),
        "wrong answers": (
            halves(accuracy=lambda right, labels: 1 - right.double().mean().item()),
            "share of wrong answers",
        ),
        "all images in both": (halves_of_all, "images of both halves|all images"),
        "tensors": (
            halves(
                accuracy=lambda right, labels: right.double().mean(),
                mean=lambda a, b: torch.tensor(harmonic(float(a), float(b)), dtype=torch.float64),
            ),
            "plain numbers",
        ),
        "two numbers": (lambda *k: halves()(*k)[:2], "three numbers"),
        "in place": (halves_in_place, "wrote into a tensor"),
    },
}
