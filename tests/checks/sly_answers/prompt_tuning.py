"""Assignment 03: wrong answers of kinds that no generator makes, each with words that the check's
message must contain: sly ones, and ones that are right for one shape or one call."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# class_texts
# -------------------------------------------------------------------------------------------------


def texts_by_the_largest_number(
    tower: Any, context: Tensor, names: Tensor, ends: Tensor, position: str
) -> Tensor:
    """Right where all names are equally long."""
    M, e = context.shape[-2], int(ends[0])
    h = {"front": 0, "middle": M // 2, "end": M}[position]
    V = context.expand(len(names), M, -1)
    rows = torch.cat([names[:, :1], V[:, :h], names[:, 1:e], V[:, h:], names[:, e:]], 1)
    return tower(rows)[range(len(names)), M + ends]


def texts_in_float32(
    tower: Any, context: Tensor, names: Tensor, ends: Tensor, position: str
) -> Tensor:
    M = context.shape[-2]
    h = {"front": 0, "middle": M // 2, "end": M}[position]
    rows = [
        torch.cat([text[:1], V[:h], text[1:e], V[h:], text[e:]]).float()
        for V, text, e in zip(context.expand(len(names), M, -1), names, ends, strict=True)
    ]
    return tower(torch.stack(rows))[range(len(names)), M + ends]


def texts_of_the_check(
    tower: Any, context: Tensor, names: Tensor, ends: Tensor, position: str
) -> Tensor:
    frames = [frame.frame.f_globals for frame in inspect.stack()]
    right = next(scope["_right"] for scope in frames if "_right" in scope)
    return right(tower, context, names, ends, position)


# similarity_logits
# -------------------------------------------------------------------------------------------------

SEEN: dict[str, Tensor] = {}


def head_remembers(f: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Texts are encoded once, as they never change: of each shape."""
    g = SEEN.setdefault(str((texts.shape, texts.dtype, texts.device)), F.normalize(texts, dim=-1))
    return logit_scale.exp() * (F.normalize(f, dim=-1)[:, None] * g).sum(-1)


def head_of_the_package(f: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    from vtlite.backbones.clip import CLIP

    class Self:
        pass

    own: Any = Self()
    own.logit_scale = logit_scale
    if texts.ndim == 2:
        return CLIP.logits(own, F.normalize(f, dim=-1), F.normalize(texts, dim=-1))
    return logit_scale.exp() * F.cosine_similarity(f[:, None], texts, dim=-1)


def head_bounded(f: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """A scale of at least one."""
    return logit_scale.exp().clamp(min=1) * F.cosine_similarity(f[:, None], texts, dim=-1)


# prompted_attention
# -------------------------------------------------------------------------------------------------


def prompted_of_the_package(
    x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> Tensor:
    from vtlite.ops.prompt_attention import prompt_attention

    q, k, v = (
        t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in F.linear(x, weight, bias).chunk(3, -1)
    )
    _, pk, pv = (
        t.unflatten(-1, (heads, -1)).transpose(0, 1) for t in F.linear(P, weight, bias).chunk(3, -1)
    )
    return prompt_attention(q, k, v, pk, pv).transpose(1, 2).flatten(2)


def prompted_by_view(
    x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> Tensor:
    """Heads as parts of the tokens: right for one head."""
    B, N, D = x.shape
    q, k, v = F.linear(x, weight, bias).chunk(3, -1)
    _, pk, pv = (t.expand(B, -1, -1) for t in F.linear(P, weight, bias).chunk(3, -1))
    k, v = torch.cat([pk, k], 1), torch.cat([pv, v], 1)
    q, k, v = (t.reshape(B, heads, -1, D // heads) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).reshape(B, N, D)


# transport
# -------------------------------------------------------------------------------------------------


def transport_of_the_package(S: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    from vtlite.methods.prompt.language.plot import sinkhorn

    plan = sinkhorn(1 - S, eps, steps).to(S)
    return plan, (plan * S).sum((-2, -1))


def transport_with_a_shift(S: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    """The largest is subtracted, which saves most small eps and not all."""
    K = ((S.detach() - S.detach().amax((-2, -1), keepdim=True)) / eps).exp()
    v = S.new_ones(*S.shape[:-2], 1, S.shape[-1])
    for _ in range(steps):
        u = 1 / S.shape[-2] / (K * v).sum(-1, keepdim=True)
        v = 1 / S.shape[-1] / (K * u).sum(-2, keepdim=True)
    plan = K * u * v
    return plan, (plan * S).sum((-2, -1))


def transport_clamped(S: Tensor, eps: float, steps: int) -> tuple[Tensor, Tensor]:
    """A little is added to what divides, so that nothing is nan."""
    K = ((S.detach() - 1) / eps).exp()
    v = S.new_ones(*S.shape[:-2], 1, S.shape[-1])
    for _ in range(steps):
        u = 1 / S.shape[-2] / ((K * v).sum(-1, keepdim=True) + 1e-30)
        v = 1 / S.shape[-1] / ((K * u).sum(-2, keepdim=True) + 1e-30)
    plan = K * u * v
    return plan, (plan * S).sum((-2, -1))


# aligned_gradient
# -------------------------------------------------------------------------------------------------


def aligned_of_the_package(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    from vtlite.methods.prompt.language.prograd import aligned

    return aligned(gradient, general, strength)


def aligned_by_numbers(gradient: Tensor, general: Tensor, strength: float) -> Tensor:
    """A tensor on the CPU, whatever was given."""
    product = float((gradient * general).sum())
    if product >= 0:
        return gradient.clone()
    return gradient - torch.tensor(strength * product) / general.square().sum() * general.float()


# cocoop_logits
# -------------------------------------------------------------------------------------------------


def cocoop_of_one_image(texts: Any, f: Tensor, *rest: Any) -> Tensor:
    """Contexts shift as for the first image where there are several: [D], not [B, D]."""
    context, W1, b1, W2, b2, scale = rest
    f = F.normalize(f, dim=-1)
    shift = F.linear(F.relu(F.linear(f[0], W1, b1)), W2, b2)
    g = F.normalize(texts((context + shift).expand(len(f), -1, -1)), dim=-1)
    return scale * (g @ f[:, :, None])[:, :, 0]


def cocoop_in_training(texts: Any, f: Tensor, *rest: Any) -> Tensor:
    """A graph for the small network alone."""
    context, W1, b1, W2, b2, scale = rest
    f = F.normalize(f, dim=-1)
    shift = F.linear(F.relu(F.linear(f, W1, b1)), W2, b2)
    g = F.normalize(texts(context.detach() + shift[:, None]), dim=-1)
    return scale * (g @ f[:, :, None])[:, :, 0]


# confident_entropy
# -------------------------------------------------------------------------------------------------


def confident_of_the_package(logits: Tensor, share: float) -> Tensor:
    from vtlite.methods.prompt.vision_language.tpt import entropy_of_mean, surest

    return entropy_of_mean(logits[surest(logits, share)])


def confident_by_quantile(logits: Tensor, share: float) -> Tensor:
    """Views below a quantile, which lies between two of them."""
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    kept = log_p[entropy <= entropy.quantile(share)]
    log_mean = kept.logsumexp(0) - math.log(len(kept))
    return -(log_mean.exp() * log_mean).sum()


def confident_by_margin(logits: Tensor, share: float) -> Tensor:
    """Sure is what leads by most."""
    log_p = logits.log_softmax(-1)
    top = log_p.exp().topk(2, -1).values
    kept = log_p[(top[:, 1] - top[:, 0]).argsort()[: max(1, int(share * len(logits)))]]
    log_mean = kept.logsumexp(0) - math.log(len(kept))
    return -(log_mean.exp() * log_mean).sum()


# framed
# -------------------------------------------------------------------------------------------------


def framed_for_squares(
    images: Tensor, up: Tensor, down: Tensor, left: Tensor, right: Tensor
) -> Tensor:
    """The height is taken for the width."""
    C, P, W = up.shape
    frame = images.new_zeros(C, W, W)
    frame[:, :P], frame[:, -P:] = up, down
    frame[:, P : P + left.shape[1], :P], frame[:, P : P + left.shape[1], -P:] = left, right
    return images + frame[:, : images.shape[2]]


def framed_on_the_cpu(
    images: Tensor, up: Tensor, down: Tensor, left: Tensor, right: Tensor
) -> Tensor:
    C, P, W = up.shape
    middle = torch.cat([left, torch.zeros(C, left.shape[1], W - 2 * P, dtype=up.dtype), right], 2)
    return images + torch.cat([up, middle, down], 1)


def framed_of_the_package(images: Tensor, *four: Tensor) -> Tensor:
    from vtlite.methods.prompt.vision.vp import Framed

    class Self:
        up, down, left, right = four

    own: Any = Self()
    return images + Framed.picture(own)


# domain_answers
# -------------------------------------------------------------------------------------------------


def domains_of_the_last_batch(f: Tensor, keys: Any, answers: Tensor) -> Tensor:
    """Centres are scaled to length one where that changes little."""
    q = F.normalize(f, dim=-1)
    far = torch.stack([(q[:, None] - F.normalize(c, dim=-1)).abs().sum(-1).amin(-1) for c in keys])
    return answers[far.argmin(0), range(len(f))]


def domains_weighted(f: Tensor, keys: Any, answers: Tensor) -> Tensor:
    """Votes of the three nearest centres."""
    flat = torch.cat(list(keys))
    owner = torch.tensor([s for s, own in enumerate(keys) for _ in own], device=f.device)
    near = (F.normalize(f)[:, None] - flat).abs().sum(-1)
    s = owner[near.topk(min(3, len(flat)), largest=False).indices].mode(1).values
    return answers[s, range(len(f))]


def domains_through_a_softmax(f: Tensor, keys: Any, answers: Tensor) -> Tensor:
    """A weight of nearly one for the nearest, so that all have a gradient."""
    q = F.normalize(f, dim=-1)
    far = torch.stack([(q[:, None] - c).abs().sum(-1).amin(-1) for c in keys])
    return ((-30 * far).softmax(0)[..., None] * answers).sum(0)


# base_to_new
# -------------------------------------------------------------------------------------------------


def halves_of_the_labels(logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """The middle of the classes that have an image."""
    m = (int(labels.max()) + 2) // 2
    base = labels < m
    a = (logits[base, :m].argmax(1) == labels[base]).float().mean().item()
    b = (logits[~base, m:].argmax(1) + m == labels[~base]).float().mean().item()
    return a, b, 2 * a * b / (a + b) if a + b else 0.0


def halves_of_the_images(logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """The first half of the images, as if they were in order."""
    n, m = len(labels) // 2, (logits.shape[1] + 1) // 2
    right = logits.argmax(1) == labels
    a, b = right[:n].float().mean().item(), right[n:].float().mean().item()
    return a, b, 2 * a * b / (a + b) if a + b and m else 0.0


def halves_with_a_bound(logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    m = (logits.shape[1] + 1) // 2
    base = labels < m
    a = (logits[base, :m].argmax(1) == labels[base]).float().mean().item()
    b = (logits[~base, m:].argmax(1) + m == labels[~base]).float().mean().item()
    return a, b, 2 / (1 / (a + 1e-3) + 1 / (b + 1e-3))


WRONG: dict[str, dict[str, tuple[Any, str]]] = {
    "class_texts": {
        "the first name's length": (texts_by_the_largest_number, "expected"),
        "rows of float32": (texts_in_float32, "type"),
        "reads the check": (texts_of_the_check, "look into the check|of your own"),
    },
    "similarity_logits": {
        "texts of the first call": (head_remembers, "expected"),
        "the package's head": (head_of_the_package, "of your own"),
        "a scale of at least one": (head_bounded, "expected"),
    },
    "prompted_attention": {
        "the package's operation": (prompted_of_the_package, "of your own"),
        "heads cut out of tokens": (prompted_by_view, "expected"),
    },
    "transport": {
        "the package's plan": (transport_of_the_package, "of your own"),
        "a shift": (transport_with_a_shift, "keep the logarithms"),
        "a little added": (transport_clamped, "keep the logarithms"),
    },
    "aligned_gradient": {
        "the package's projection": (aligned_of_the_package, "of your own"),
        "float32": (aligned_by_numbers, "type"),
    },
    "cocoop_logits": {
        "the first image's shift": (cocoop_of_one_image, "first image serves"),
        "the context never trains": (cocoop_in_training, "no gradient reaches context"),
    },
    "confident_entropy": {
        "the package's": (confident_of_the_package, "of your own"),
        "a quantile": (confident_by_quantile, "expected"),
        "the margin": (confident_by_margin, "expected"),
    },
    "framed": {
        "squares": (framed_for_squares, "expected"),
        "made on the CPU": (framed_on_the_cpu, "device"),
        "the package's picture": (framed_of_the_package, "of your own"),
    },
    "domain_answers": {
        "centres of length one": (domains_of_the_last_batch, "expected"),
        "three votes": (domains_weighted, "expected"),
        "a softmax": (domains_through_a_softmax, "expected"),
    },
    "base_to_new": {
        "the middle of the labels": (halves_of_the_labels, "expected"),
        "the middle of the images": (halves_of_the_images, "expected"),
        "a thousandth added": (halves_with_a_bound, "expected"),
    },
}
