"""Assignment 06: plausible wrong answers, each with words that the check's message must contain,
and right answers written differently."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NOTEBOOK = "06_remapping_tuning"

# distillation_loss
# -------------------------------------------------------------------------------------------------


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Of logarithms, [B, C] -> [B]."""
    return (p.exp() * (p - q)).sum(1)


def kd(
    warm: Any = lambda z, T: z / T,
    warm_teacher: Any = None,
    of: Any = kl,
    mean: Any = lambda rows: rows.mean(),
    factor: Any = lambda T: T**2,
    hard: Any = lambda z, t, y, T: F.cross_entropy(z, y),
    both: Any = lambda a, b, w: (1 - w) * a + w * b,
    teacher_is: Any = lambda t: t.detach(),
    dim: int = 1,
) -> Any:
    def answer(z: Tensor, t: Tensor, labels: Tensor, T: float, weight: float) -> Tensor:
        t = teacher_is(t)
        p = (warm_teacher or warm)(t, T).log_softmax(dim)
        q = warm(z, T).log_softmax(dim)
        return both(hard(z, t, labels, T), factor(T) * mean(of(p, q)), weight)

    return answer


def kd_by_torch(z: Tensor, t: Tensor, labels: Tensor, T: float, weight: float) -> Tensor:
    p, q = (t.detach() / T).log_softmax(-1), (z / T).log_softmax(-1)
    soft = F.kl_div(q, p, reduction="batchmean", log_target=True)
    return torch.lerp(F.cross_entropy(z, labels), T * T * soft, weight)


def kd_unsafe(z: Tensor, t: Tensor, labels: Tensor, T: float, weight: float) -> Tensor:
    p, q = (t.detach() / T).softmax(1), (z / T).softmax(1)
    soft = (p * (p / q).log()).sum(1).mean()
    return (1 - weight) * F.cross_entropy(z, labels) + weight * T**2 * soft


def kd_in_place(z: Tensor, t: Tensor, *rest: Any) -> Tensor:
    found = kd()(z, t, *rest)
    with torch.no_grad():
        t /= rest[1]
    return found


# decoupled_parts
# -------------------------------------------------------------------------------------------------


def without(z: Tensor, labels: Tensor) -> Tensor:
    """[B, C] -> [B, C - 1]."""
    rest = torch.ones_like(z, dtype=torch.bool).scatter(1, labels[:, None], False)
    return z[rest].view(len(z), -1)


def dkd(
    others: Any = without,
    pair: Any = lambda z, rest, y: torch.cat([z.gather(1, y[:, None]), rest.logsumexp(1, True)], 1),
    of: Any = kl,
    warm: Any = lambda z, T: z / T,
    warm_teacher: Any = None,
    factor: Any = lambda T: T**2,
    which: Any = lambda t, y: y,
    after: Any = lambda target, rest, p_y: (target, rest),
    both: Any = lambda s, t: (s, t),
) -> Any:
    def answer(z: Tensor, t: Tensor, labels: Tensor, T: float) -> Any:
        labels = which(t, labels)
        z, t = warm(z, T), (warm_teacher or warm)(t, T)
        parts = []
        for split in (lambda a: pair(a, without(a, labels), labels), lambda a: others(a, labels)):
            p, q = both(split(t).log_softmax(1), split(z).log_softmax(1))
            parts.append(factor(T) * of(p, q))
        return after(*parts, t.softmax(1).gather(1, labels[:, None])[:, 0])

    return answer


def dkd_of_probabilities(z: Tensor, t: Tensor, labels: Tensor, T: float) -> Any:
    """Right, where 1 - p is no small difference."""
    chosen = F.one_hot(labels, z.shape[1]).bool()
    p, q = (t / T).softmax(1), (z / T).softmax(1)
    py, qy = p[chosen], q[chosen]
    target = py * (py / qy).log() + (1 - py) * ((1 - py) / (1 - qy)).log()
    p, q = (without(a, labels) / (1 - b)[:, None] for a, b in ((p, py), (q, qy)))
    return T**2 * target, T**2 * (p * (p / q).log()).sum(1)


def dkd_in_columns(z: Tensor, t: Tensor, labels: Tensor, T: float) -> Any:
    """The others' logarithms from those of all classes."""
    at = labels[:, None]
    (a, ra), (b, rb) = ((x.log_softmax(1), without(x, labels)) for x in (t / T, z / T))
    rest = [r.logsumexp(1) - x.logsumexp(1) for r, x in ((ra, t / T), (rb, z / T))]
    py, qy = a.gather(1, at).squeeze(1), b.gather(1, at).squeeze(1)
    target = py.exp() * (py - qy) + rest[0].exp() * (rest[0] - rest[1])
    return T**2 * target, T**2 * kl(ra.log_softmax(1), rb.log_softmax(1))


def dkd_filled(z: Tensor, labels: Tensor) -> Tensor:
    return z.scatter(1, labels[:, None], -torch.inf)


def dkd_zeroed(z: Tensor, labels: Tensor) -> Tensor:
    return z.scatter(1, labels[:, None], 0.0)


def dkd_detached(z: Tensor, *rest: Any) -> Any:
    target, others = dkd()(z, *rest)
    return target, others.detach()


def dkd_in_place(z: Tensor, *rest: Any) -> Any:
    found = dkd()(z, *rest)
    with torch.no_grad():
        z /= rest[-1]
    return found


# attention_loss
# -------------------------------------------------------------------------------------------------


def at(
    strength: Any = lambda m: m.pow(2).sum(1),
    unit: Any = lambda q: q / q.norm(dim=1, keepdim=True).clamp(min=1e-12),
    unit_teacher: Any = None,
    of: Any = lambda a, b: (a - b).pow(2).mean(),
    layers: Any = lambda values: sum(values),
) -> Any:
    def answer(student: Any, teacher: Any) -> Tensor:
        values = []
        for s, t in zip(student, teacher, strict=True):
            s, t = (strength(m).flatten(1) for m in (s, t))
            values.append(of(unit(s), (unit_teacher or unit)(t)))
        return layers(values)

    return answer


def at_by_einsum(student: Any, teacher: Any) -> Tensor:
    """1 + 1 - 2 cos, image by image; the length of a map of zeros is taken for one."""
    total: Any = 0
    for s, t in zip(student, teacher, strict=True):
        q = []
        for m in (s, t):
            strong = torch.einsum("bchw,bchw->bhw", m, m).reshape(len(m), -1)
            square = strong.square().sum(1, keepdim=True)
            length = torch.where(square == 0, torch.ones_like(square), square).sqrt()
            q.append(strong / length)
        total = total + torch.dist(q[0], q[1]).square() / q[0].numel()
    return total


def at_in_place(student: Any, teacher: Any) -> Tensor:
    found = at()(student, teacher)
    with torch.no_grad():
        for m in teacher:
            m.square_()
    return found


def at_detached(student: Any, teacher: Any) -> Tensor:
    return at(strength=lambda m: m.detach().square().sum(1))(student, teacher)


# widened
# -------------------------------------------------------------------------------------------------


def copied(state: Any, source: list[int]) -> Any:
    return {key: t[source] if t.ndim else t.clone() for key, t in state.items()}


def counts(source: list[int]) -> list[int]:
    return [source.count(g) for g in source]


def wider(
    first: Any = copied,
    norm: Any = copied,
    share: Any = lambda source, N: [1 / n for n in counts(source)],
    weight: Any = lambda t, source: t[:, source],
    bias: Any = lambda b, source, N: b.clone(),
    together: Any = lambda *states: states,
) -> Any:
    def answer(one: Any, middle: Any, last: Any, source: list[int]) -> Any:
        N = len(one["weight"])
        new = weight(last["weight"], source)
        shares = new.new_tensor(share(source, N)).view(-1, *[1] * (new.ndim - 2))
        read = {"weight": new * shares}
        if "bias" in last:
            read["bias"] = bias(last["bias"], source, N)
        return together(first(one, source), norm(middle, source), read)

    return answer


def wider_by_loops(one: Any, middle: Any, last: Any, source: list[int]) -> Any:
    results = []
    for state in (one, middle):
        results.append({})
        for key, t in state.items():
            results[-1][key] = t.clone() if t.ndim == 0 else torch.stack([t[j] for j in source])
    weight = last["weight"]
    columns = [weight.select(1, j) / source.count(j) for j in source]
    return *results, {k: t.clone() for k, t in last.items()} | {"weight": torch.stack(columns, 1)}


def only_new(source: list[int], N: int) -> list[float]:
    return [1.0 if j < N else 1 / n for j, n in enumerate(counts(source))]


def split_first(state: Any, source: list[int]) -> Any:
    new = copied(state, source)
    n = torch.tensor(counts(source)).to(new["weight"])
    return new | {"weight": new["weight"] / n.view(-1, *[1] * (new["weight"].ndim - 1))}


def with_new_norm(state: Any, source: list[int]) -> Any:
    N, more = len(state["weight"]), len(source) - len(state["weight"])
    old = {k: t[source] if t.ndim else t.clone() for k, t in state.items()}
    ones, zeros = state["weight"].new_ones(more), state["weight"].new_zeros(more)
    old["running_mean"] = torch.cat([state["running_mean"], zeros])
    old["running_var"] = torch.cat([state["running_var"], ones])
    return old if N else state


def wider_in_place(one: Any, middle: Any, last: Any, source: list[int]) -> Any:
    found = wider()(one, middle, last, source)
    last["weight"].mul_(0.5)
    return found


def modulo(state: Any, source: list[int]) -> Any:
    return {
        k: t[[j % len(t) for j in range(len(source))]] if t.ndim else t.clone()
        for k, t in state.items()
    }


# identity_layer
# -------------------------------------------------------------------------------------------------


def dirac(x: Tensor, size: int) -> Tensor:
    kernel = torch.zeros(x.shape[1], x.shape[1], size, size, dtype=x.dtype, device=x.device)
    return torch.nn.init.dirac_(kernel)


def layer(
    kernel: Any = dirac,
    mean: Any = lambda x: x.mean((0, 2, 3)),
    var: Any = lambda x: x.var((0, 2, 3), correction=0),
    gamma: Any = lambda v, eps, n: (v + eps).sqrt(),
    beta: Any = lambda m, v, eps: m.clone(),
) -> Any:
    def answer(x: Tensor, size: int, eps: float) -> Any:
        m, v = mean(x), var(x)
        n = x[:, 0].numel()
        return {
            "kernel": kernel(x, size),
            "mean": m,
            "var": v,
            "gamma": gamma(v, eps, n),
            "beta": beta(m, v, eps),
        }

    return answer


def layer_by_rows(x: Tensor, size: int, eps: float) -> Any:
    rows = x.transpose(0, 1).flatten(1)
    mean = rows.mean(1)
    var = (rows - mean[:, None]).square().mean(1)
    eye = torch.eye(len(rows), dtype=x.dtype, device=x.device)[:, :, None, None]
    kernel = F.pad(eye, [size // 2] * 4)
    gamma = torch.sqrt(eps + var)
    return {"kernel": kernel, "gamma": gamma, "beta": mean * 1, "mean": mean, "var": var}


def at_places(*places: Any) -> Any:
    """A kernel with ones at (output, input, row, column)."""

    def kernel(x: Tensor, size: int) -> Tensor:
        made = x.new_zeros(x.shape[1], x.shape[1], size, size)
        for place in places:
            made[place(x.shape[1], size)] = 1
        return made

    return kernel


def layer_in_place(x: Tensor, size: int, eps: float) -> Any:
    found = layer()(x, size, eps)
    with torch.no_grad():
        x -= found["mean"][:, None, None]
    return found


# mixed_node
# -------------------------------------------------------------------------------------------------


def node(
    weights: Any = lambda a: a.softmax(1),
    mix: Any = lambda w, xs: torch.einsum("ek,ek...->...", w, xs),
    dw: Any = lambda xs, dy: torch.einsum("ek...,...->ek", xs, dy),
    back: Any = lambda w, dw: w * (dw - (w * dw).sum(1, keepdim=True)),
) -> Any:
    def answer(xs: Tensor, alpha: Tensor, dy: Tensor) -> Any:
        w = weights(alpha)
        return mix(w, xs), back(w, dw(xs, dy))

    return answer


def node_by_jacobians(xs: Tensor, alpha: Tensor, dy: Tensor) -> Any:
    y, rows = torch.zeros_like(dy), []
    for a, candidates in zip(alpha, xs, strict=True):
        w = a.softmax(0)
        y = y + (w.view(-1, *[1] * dy.ndim) * candidates).sum(0)
        jacobian = torch.diag(w) - torch.outer(w, w)
        rows.append(jacobian @ (candidates * dy).reshape(len(w), -1).sum(1))
    return y, torch.stack(rows)


def node_by_autograd(xs: Tensor, alpha: Tensor, dy: Tensor) -> Any:
    with torch.inference_mode(False), torch.enable_grad():
        leaf = alpha.clone().requires_grad_()
        y = torch.einsum("ek,ek...->...", leaf.softmax(1), xs.clone())
        return y.detach(), torch.autograd.grad((y * dy.clone()).sum(), leaf)[0]


def node_in_place(xs: Tensor, alpha: Tensor, dy: Tensor) -> Any:
    found = node()(xs, alpha, dy)
    xs *= 2
    return found


def node_on_a_softmax(a: Tensor) -> Tensor:
    return a.exp() / a.exp().sum(1, keepdim=True)


# darts_gradient
# -------------------------------------------------------------------------------------------------


def grads(loss: Any, w: Any, alpha: Tensor) -> Any:
    """The gradient of alpha, and those of the weights."""
    leaves = [t.detach().clone().requires_grad_() for t in (alpha, *w)]
    g, *rest = torch.autograd.grad(loss(leaves[1:], leaves[0]), leaves)
    return g, rest


def length_of(v: Any) -> Tensor:
    return torch.cat([t.flatten() for t in v]).norm()


def plus(w: Any, v: Any, by: Any) -> Any:
    return [a + by * b for a, b in zip(w, v, strict=True)]


def darts(
    step: float = -1.0,
    inner: Any = lambda train, held: train,
    v_at: str = "next",
    direct_at: str = "next",
    around: str = "w",
    of: Any = lambda train, held: train,
    r: Any = lambda size, v: size / length_of(v),
    over: Any = lambda r, size: 2 * r,
    term: Any = lambda direct, second, xi: direct - xi * second,
    zero: bool = True,
    v_of: Any = lambda train, held: held,
    one_sided: bool = False,
) -> Any:
    def answer(w: Any, alpha: Tensor, train: Any, held: Any, xi: float, size: float) -> Tensor:
        next_ = plus(w, grads(inner(train, held), w, alpha)[1], step * xi)
        points = {"w": w, "next": next_}
        direct, v = grads(v_of(train, held), points[v_at], alpha)
        if direct_at != v_at or v_of(train, held) is not held:
            direct = grads(held, points[direct_at], alpha)[0]
        if zero and not length_of(v):
            return direct
        radius = r(size, v)
        above = grads(of(train, held), plus(points[around], v, radius), alpha)[0]
        if one_sided:
            return direct - xi * (above - grads(train, w, alpha)[0]) / radius
        below = grads(of(train, held), plus(points[around], v, -radius), alpha)[0]
        return term(direct, (above - below) / over(radius, size), xi)

    return answer


def darts_in_memory(w: Any, alpha: Tensor, train: Any, held: Any, xi: float, size: float) -> Tensor:
    """Weights of its own that move, as an optimiser moves them."""
    mine = [torch.nn.Parameter(t.detach().clone()) for t in w]
    a = torch.nn.Parameter(alpha.detach().clone())
    train(mine, a).backward()
    with torch.no_grad():
        for p in mine:
            p.sub_(xi * p.grad)
            p.grad = None
    a.grad = None
    held(mine, a).backward()
    found, v = a.grad.clone(), [p.grad.clone() for p in mine]
    length = sum(t.square().sum() for t in v).sqrt()
    if xi == 0 or length == 0:
        return found
    r = size / length
    for sign in (1, -1):
        moved = [t.detach() + sign * r * d for t, d in zip(w, v, strict=True)]
        a.grad = None
        train(moved, a).backward()
        found -= sign * xi * a.grad / (2 * r)
    return found


def darts_exact(w: Any, alpha: Tensor, train: Any, held: Any, xi: float, size: float) -> Tensor:
    leaves = [t.detach().clone().requires_grad_() for t in (alpha, *w)]
    a, *mine = leaves
    steps = torch.autograd.grad(train(mine, a), mine, create_graph=True)
    return torch.autograd.grad(held(plus(mine, steps, -xi), a), a)[0]


def darts_per_weight(
    w: Any, alpha: Tensor, train: Any, held: Any, xi: float, size: float
) -> Tensor:
    next_ = plus(w, grads(train, w, alpha)[1], -xi)
    direct, v = grads(held, next_, alpha)
    if not length_of(v):
        return direct
    r = size / length_of(v)
    unit = [t * (size / t.norm()) for t in v]
    a, b = (grads(train, plus(w, unit, sign), alpha)[0] for sign in (1, -1))
    return direct - xi * (a - b) / (2 * r)


def darts_sets_flags(w: Any, alpha: Tensor, *rest: Any) -> Tensor:
    for t in (*w, alpha):
        t.requires_grad_()
    return darts()(w, alpha, *rest)


def darts_in_place(w: Any, alpha: Tensor, train: Any, held: Any, xi: float, size: float) -> Tensor:
    found = darts()(w, alpha, train, held, xi, size)
    steps = grads(train, w, alpha)[1]
    with torch.no_grad():
        for t, g in zip(w, steps, strict=True):
            t -= 0.1 * g
    return found


def darts_first_order(w: Any, alpha: Tensor, train: Any, held: Any, *_: Any) -> Tensor:
    return grads(held, w, alpha)[0]


def darts_many_calls(w: Any, alpha: Tensor, train: Any, held: Any, xi: float, size: float) -> Any:
    next_ = plus(w, grads(train, w, alpha)[1], -xi)
    direct = grads(held, next_, alpha)[0]
    v = grads(held, next_, alpha)[1]
    if not length_of(v):
        return direct
    r = size / length_of(v)
    a, b = (grads(train, plus(w, v, sign * r), alpha)[0] for sign in (1, -1))
    return direct - xi * (a - b) / (2 * r)


# concrete_sample
# -------------------------------------------------------------------------------------------------


def gumbel(u: Tensor) -> Tensor:
    return -torch.log(-torch.log(u))


def concrete(
    noise: Any = gumbel,
    logits: Any = lambda a, g, T: (a + g) / T,
    soft: Any = lambda z: z.softmax(-1),
    chosen: Any = lambda z, a: F.one_hot(z.argmax(-1), z.shape[-1]).to(z),
    straight: Any = lambda soft, hard: hard - soft.detach() + soft,
) -> Any:
    def answer(alpha: Tensor, u: Tensor, temperature: float, hard: bool) -> Tensor:
        z = soft(logits(alpha, noise(u), temperature))
        return straight(z, chosen(z, alpha)) if hard else z

    return answer


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, soft: Tensor) -> Tensor:
        return torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # type: ignore[override]
        return dy


def concrete_by_function(alpha: Tensor, u: Tensor, temperature: float, hard: bool) -> Tensor:
    z = alpha.log_softmax(-1) - u.log().neg().log()
    soft = torch.softmax(z / temperature, dim=-1)
    return Straight.apply(soft) if hard else soft


def concrete_in_place(alpha: Tensor, u: Tensor, temperature: float, hard: bool) -> Tensor:
    found = concrete()(alpha, u, temperature, hard)
    u.log_()
    return found


WRONG: dict[str, dict[str, tuple[Any, str]]] = {
    "distillation_loss": {
        "KL reversed": (kd(of=lambda p, q: kl(q, p)), r"KL\(q \|\| p\)"),
        "no T^2": (kd(factor=lambda T: 1.0), r"T\^2 is missing"),
        "T once": (kd(factor=lambda T: T), "T stands once"),
        "over T^2": (kd(factor=lambda T: T**-2), r"you divide by T\^2"),
        "T^2 on both": (
            kd(factor=lambda T: T**2, hard=lambda z, t, y, T: T**2 * F.cross_entropy(z, y)),
            "multiplies both terms",
        ),
        "teacher not warm": (kd(warm_teacher=lambda t, T: t), "teacher's logits are not divided"),
        "student not warm": (
            kd(warm=lambda z, T: z, warm_teacher=lambda t, T: t / T),
            "student's logits are not divided",
        ),
        "no T in the softmax": (kd(warm=lambda z, T: z), "neither is divided"),
        "T multiplies": (kd(warm=lambda z, T: z * T), "multiplied by T; divide"),
        "warm labels": (
            kd(hard=lambda z, t, y, T: F.cross_entropy(z / T, y)),
            "label's term is softened",
        ),
        "weights exchanged": (
            kd(both=lambda a, b, w: w * a + (1 - w) * b),
            "weights are exchanged",
        ),
        "no 1 - w": (kd(both=lambda a, b, w: a + w * b), "1 - weight is missing"),
        "no labels": (kd(both=lambda a, b, w: w * b), "label's term is missing"),
        "no teacher": (kd(both=lambda a, b, w: (1 - w) * a), "teacher's term is missing"),
        "a sum": (kd(mean=lambda rows: rows.sum()), "sum over the images"),
        "mean of all entries": (
            kd(of=lambda p, q: kl(p, q) / p.shape[1]),
            "divided by all entries",
        ),
        "cross-entropy": (kd(of=lambda p, q: -(p.exp() * q).sum(1)), "subtracts its entropy"),
        "over the images": (
            kd(dim=0, of=lambda p, q: (p.exp() * (p - q)).sum(1)),
            "runs over the images",
        ),
        "kl_div of probabilities": (
            kd(of=lambda p, q: F.kl_div(q.exp(), p.exp(), reduction="none").sum(1)),
            "logarithm of the student's answer",
        ),
        "weighed by logarithms": (
            kd(of=lambda p, q: (p * (p - q)).sum(1)),
            "teacher's logarithm weighs",
        ),
        "sign": (kd(of=lambda p, q: -kl(p, q)), "sign of the teacher's term"),
        "labels of the teacher": (
            kd(hard=lambda z, t, y, T: F.cross_entropy(t, y)),
            "compared with the teacher's logits",
        ),
        "a squared error": (
            lambda z, t, y, T, w: (1 - w) * F.cross_entropy(z, y) + w * F.mse_loss(z, t),
            "squared error",
        ),
        "for each image": (kd(mean=lambda rows: rows), "one number"),
        "logs of a softmax": (kd_unsafe, "log_softmax keeps the digits"),
        "a teacher that learns": (kd(teacher_is=lambda t: t), "detach its logits"),
        "student detached": (
            lambda z, *rest: kd()(z.detach(), *rest),
            "no gradient reaches student",
        ),
        "in place": (kd_in_place, "wrote into a tensor"),
    },
    "decoupled_parts": {
        "KL reversed": (dkd(of=lambda p, q: kl(q, p)), r"KL\(q \|\| p\)"),
        "no T^2": (dkd(factor=lambda T: 1.0), r"T\^2 is missing"),
        "T once": (dkd(factor=lambda T: T), "T stands once"),
        "no T in the softmax": (dkd(warm=lambda z, T: z), "not divided by T"),
        "teacher not warm": (dkd(warm_teacher=lambda t, T: t), "teacher's logits are not divided"),
        "weighed by the rest": (
            dkd(after=lambda a, b, p: (a, (1 - p) * b)),
            "weighed by 1 - p_y",
        ),
        "divided by the rest": (
            dkd(after=lambda a, b, p: (a, b / (1 - p))),
            "divided by 1 - p_y|1 - p_y, where",
        ),
        "exchanged": (dkd(after=lambda a, b, p: (b, a)), "parts are exchanged"),
        "zeroed": (dkd(others=dkd_zeroed), "set to zero"),
        "filled with -inf": (dkd(others=dkd_filled), "filled with -inf"),
        "all classes": (dkd(others=lambda z, y: z), "KD's whole divergence"),
        "a sum of logits": (
            dkd(pair=lambda z, rest, y: torch.cat([z.gather(1, y[:, None]), rest.sum(1, True)], 1)),
            "no logit",
        ),
        "true class alone": (
            lambda z, t, y, T: (
                T**2
                * ((t / T).softmax(1) * ((t / T).log_softmax(1) - (z / T).log_softmax(1))).gather(
                    1, y[:, None]
                )[:, 0],
                dkd()(z, t, y, T)[1],
            ),
            "the rest is missing",
        ),
        "the teacher's class": (dkd(which=lambda t, y: t.argmax(1)), "labels say which"),
        "cross-entropy": (dkd(of=lambda p, q: -(p.exp() * q).sum(1)), "teacher's entropy"),
        "means": (
            dkd(after=lambda a, b, p: (a.mean(), b.mean())),
            "one number for each image",
        ),
        "by probabilities": (dkd_of_probabilities, "keeps the digits"),
        "one result": (dkd(after=lambda a, b, p: a + b), "return \\(the part"),
        "others detached": (dkd_detached, "the gradient of student"),
        "in place": (dkd_in_place, "wrote into a tensor"),
    },
    "attention_loss": {
        "absolute values": (at(strength=lambda m: m.abs().sum(1)), "absolute values"),
        "not squared": (at(strength=lambda m: m.sum(1)), "cancel"),
        "square of the sum": (at(strength=lambda m: m.sum(1).square()), "sum over channels"),
        "a root": (at(strength=lambda m: m.norm(dim=1)), "root is taken"),
        "the largest": (at(strength=lambda m: m.square().amax(1)), "largest channel"),
        "not normalised": (at(unit=lambda q: q), "not divided by their length"),
        "by the sum": (at(unit=lambda q: q / q.sum(1, keepdim=True)), "divided by its sum"),
        "by the square": (
            at(unit=lambda q: q / q.square().sum(1, keepdim=True)),
            "root is missing",
        ),
        "softmax": (at(unit=lambda q: q.softmax(1)), "softmax"),
        "the whole batch": (at(unit=lambda q: q / q.norm()), "whole batch"),
        "over the images": (at(unit=lambda q: F.normalize(q, dim=0)), "over the images"),
        "0 / 0": (at(unit=lambda q: q / q.norm(dim=1, keepdim=True)), "length 0"),
        "an eps": (at(unit=lambda q: q / (q.norm(dim=1, keepdim=True) + 1e-6)), "weak maps"),
        "an eps in the root": (
            at(unit=lambda q: q / (q.square().sum(1, keepdim=True) + 1e-6).sqrt()),
            "strong and weak maps",
        ),
        "sum over places": (
            at(of=lambda a, b: (a - b).square().sum(1).mean()),
            "over the places; take the mean",
        ),
        "sum": (at(of=lambda a, b: (a - b).square().sum()), "images and places; take the mean"),
        "no square": (at(of=lambda a, b: (a - b).abs().mean()), "differences are not squared"),
        "mean over layers": (at(layers=lambda v: sum(v) / len(v)), "mean over the layers"),
        "the last layer": (at(layers=lambda v: v[-1]), "last layer"),
        "a list": (at(layers=lambda v: torch.stack(v)), "one number"),
        "teacher not normalised": (at(unit_teacher=lambda q: q), "the teacher's"),
        "detached": (at_detached, "no gradient reaches student"),
        "in place": (at_in_place, "wrote into a tensor"),
    },
    "widened": {
        "no division": (wider(share=lambda s, N: [1.0] * len(s)), "division is missing"),
        "only the new": (wider(share=only_new), "only the new copies"),
        "copies ignored": (
            wider(share=lambda s, N: [float(j < N) for j in range(len(s))]),
            "copies are ignored",
        ),
        "twice": (wider(share=lambda s, N: [n**-2 for n in counts(s)]), "copies twice"),
        "multiplies": (wider(share=lambda s, N: counts(s)), "you multiply"),
        "a root": (wider(share=lambda s, N: [n**-0.5 for n in counts(s)]), "by the root"),
        "by the widths": (wider(share=lambda s, N: [N / len(s)] * len(s)), "new width"),
        "one more": (wider(share=lambda s, N: [1 / (n + 1) for n in counts(s)]), "one more"),
        "by place": (
            wider(share=lambda s, N: [1 / s.count(j % N) for j in range(len(s))]),
            "by their place",
        ),
        "divides the units": (
            wider(first=split_first, share=lambda s, N: [1.0] * len(s)),
            "units are divided",
        ),
        "round and round": (wider(first=modulo), "go round"),
        "a new norm": (wider(norm=with_new_norm), "as in a new norm"),
        "norm as it was": (
            wider(norm=lambda state, s: {k: t.clone() for k, t in state.items()}),
            "stays as it was",
        ),
        "a count for each": (
            wider(
                norm=lambda state, s: {
                    k: t.expand(len(s)) if not t.ndim else t[s] for k, t in state.items()
                }
            ),
            "counts batches",
        ),
        "rows of last": (
            wider(
                weight=lambda t, s: (
                    t[s].transpose(0, 1) if len(t) > max(s) and len(t) == t.shape[1] else t[:, s]
                ).contiguous(),
            ),
            "shape|outputs|expected",
        ),
        "bias divided": (wider(bias=lambda b, s, N: b * N / len(s)), "bias of last is divided"),
        "bias copied": (
            wider(bias=lambda b, s, N: b[s] if len(b) > max(s) else b * 1),
            "not copied",
        ),
        "bias lost": (wider(bias=lambda b, s, N: torch.zeros_like(b)), "bias of last is lost"),
        "its own argument": (wider(bias=lambda b, s, N: b), "the argument itself"),
        "only two": (wider(together=lambda a, b, c: (a, c)), "return \\(first, norm, last\\)"),
        "no bias key": (
            wider(first=lambda state, s: {"weight": state["weight"][s]}),
            "keys of the old one",
        ),
        "in place": (wider_in_place, "wrote into a tensor"),
    },
    "identity_layer": {
        "all channels": (
            layer(kernel=at_places(lambda C, s: (slice(None), slice(None), s // 2, s // 2))),
            "sums all channels",
        ),
        "a blur": (layer(kernel=lambda x, s: dirac(x, 1).expand(-1, -1, s, s) / s**2), "mean over"),
        "the corner": (layer(kernel=at_places(lambda C, s: (range(C), range(C), 0, 0))), "corner"),
        "per channel": (layer(kernel=lambda x, s: dirac(x, s).sum(1, True)), "groups"),
        "mean of all": (layer(mean=lambda x: x.mean().expand(x.shape[1]).clone()), "all channels"),
        "no mean": (layer(mean=lambda x: torch.zeros_like(x[0, :, 0, 0])), "mean is zero"),
        "over n - 1": (layer(var=lambda x: x.var((0, 2, 3))), "over n - 1"),
        "standard deviation": (
            layer(var=lambda x: x.std((0, 2, 3), correction=0)),
            "standard deviation",
        ),
        "mean of squares": (layer(var=lambda x: x.square().mean((0, 2, 3))), "mean of the squares"),
        "per image": (
            layer(var=lambda x: x.var((2, 3), correction=0).mean(0)),
            "each image's own",
        ),
        "digits lost": (
            layer(var=lambda x: x.square().mean((0, 2, 3)) - x.mean((0, 2, 3)).square()),
            "far from zero",
        ),
        "no eps": (layer(gamma=lambda v, eps, n: v.sqrt()), "eps is missing"),
        "eps outside": (layer(gamma=lambda v, eps, n: v.sqrt() + eps), "outside the root"),
        "no root": (layer(gamma=lambda v, eps, n: v + eps), "root is missing"),
        "one over": (layer(gamma=lambda v, eps, n: (v + eps).rsqrt()), "one over"),
        "gamma is 1": (layer(gamma=lambda v, eps, n: torch.ones_like(v)), "gamma is 1"),
        "gamma over n - 1": (
            layer(gamma=lambda v, eps, n: (v * n / (n - 1) + eps).sqrt()),
            "sample variance",
        ),
        "eps twice": (layer(gamma=lambda v, eps, n: (v + 2 * eps).sqrt()), "eps is counted twice"),
        "beta turned": (layer(beta=lambda m, v, eps: -m), "sign is turned"),
        "no beta": (layer(beta=lambda m, v, eps: torch.zeros_like(m)), "beta is 0"),
        "beta scaled": (
            layer(beta=lambda m, v, eps: m * (v + eps).sqrt()),
            "not mean times gamma",
        ),
        "one tensor twice": (layer(beta=lambda m, v, eps: m), "share their memory"),
        "a tuple": (lambda *k: tuple(layer()(*k).values()), "five keys"),
        "in place": (layer_in_place, "wrote into a tensor"),
    },
    "mixed_node": {
        "over the edges": (node(weights=lambda a: a.softmax(0)), "runs over the edges"),
        "one softmax": (node(weights=lambda a: a.flatten().softmax(0).view_as(a)), "all edges"),
        "alpha itself": (node(weights=lambda a: a), "as it is"),
        "exp of large alpha": (node(weights=node_on_a_softmax), "maximum first"),
        "sigmoid": (node(weights=lambda a: a.sigmoid()), "sigmoid is no softmax"),
        "not divided": (node(weights=lambda a: a.exp()), "not divided by their sum"),
        "the strongest": (
            node(weights=lambda a: F.one_hot(a.argmax(1), a.shape[1]).to(a)),
            "strongest candidate",
        ),
        "mean over edges": (
            node(mix=lambda w, xs: torch.einsum("ek,ek...->...", w, xs) / len(w)),
            "mean over the edges",
        ),
        "softmax late": (
            lambda xs, a, dy: (
                torch.einsum("ek,ek...->...", a, xs).softmax(-1),
                node()(xs, a, dy)[1],
            ),
            "after the mixing",
        ),
        "dw": (node(back=lambda w, dw: dw), "gradient of the weights"),
        "w dw": (node(back=lambda w, dw: w * dw), "<w, dw> is missing"),
        "no w": (
            node(back=lambda w, dw: dw - (w * dw).sum(1, keepdim=True)),
            "factor w is missing",
        ),
        "bracket": (
            node(back=lambda w, dw: w * dw - (w * dw).sum(1, keepdim=True)),
            "inside the bracket",
        ),
        "plain mean": (
            node(back=lambda w, dw: w * (dw - dw.mean(1, keepdim=True))),
            "mean of dw is subtracted",
        ),
        "all edges at once": (
            node(back=lambda w, dw: w * (dw - (w * dw).sum())),
            "all edges",
        ),
        "sigmoid's derivative": (node(back=lambda w, dw: w * (1 - w) * dw), "sigmoid's derivative"),
        "sign": (
            node(back=lambda w, dw: w * ((w * dw).sum(1, keepdim=True) - dw)),
            "sign is turned",
        ),
        "mean of entries": (
            node(dw=lambda xs, dy: (xs * dy).flatten(2).mean(2)),
            "mean over the entries",
        ),
        "no dy": (node(dw=lambda xs, dy: xs.flatten(2).sum(2)), "dy is missing"),
        "detached": (node(back=lambda w, dw: 0 * dw), "alpha was detached"),
        "by autograd": (node_by_autograd, "you let autograd do it"),
        "y alone": (lambda *k: node()(*k)[0], "return \\(y, dalpha\\)"),
        "in place": (node_in_place, "wrote into a tensor"),
    },
    "darts_gradient": {
        "first order": (
            darts(term=lambda direct, second, xi: direct),
            "second term is missing",
        ),
        "first order at w": (darts_first_order, "at w"),
        "added": (darts(term=lambda d, s, xi: d + xi * s), "second term is added"),
        "no xi": (
            darts(term=lambda d, s, xi: d - s if xi else d),
            "xi is missing in the second term",
        ),
        "xi twice": (darts(term=lambda d, s, xi: d - xi**2 * s), "xi stands twice"),
        "the second alone": (darts(term=lambda d, s, xi: -xi * s), "second term alone"),
        "over r": (darts(over=lambda r, size: r), "2 r apart"),
        "over 2": (darts(over=lambda r, size: 2.0), "divided by 2, and not by r"),
        "not divided": (darts(over=lambda r, size: 1.0), "not divided: by 2 r"),
        "over 2 size": (darts(over=lambda r, size: 2 * size), "not of length one"),
        "r is size": (darts(r=lambda size, v: size), "r is size itself"),
        "r multiplies": (darts(r=lambda size, v: size * length_of(v)), "size times"),
        "no root": (darts(r=lambda size, v: size / length_of(v) ** 2), "root is missing"),
        "the first weight's length": (
            darts(r=lambda size, v: size / v[0].norm()),
            "first weight alone",
        ),
        "sum of lengths": (
            darts(r=lambda size, v: size / sum(t.norm() for t in v)),
            "sum of the weights' lengths",
        ),
        "per weight": (darts_per_weight, "of its own"),
        "v at w": (darts(v_at="w"), "v is taken at w"),
        "direct at w": (darts(direct_at="w"), "first term is taken at w"),
        "around w'": (darts(around="next"), "they lie around w"),
        "uphill": (darts(step=1.0), "goes uphill"),
        "inner on held-out": (darts(inner=lambda train, held: held), "w learns from"),
        "difference of held-out": (darts(of=lambda train, held: held), "the training loss's"),
        "v of training": (darts(v_of=lambda train, held: train), "held-out"),
        "one-sided": (darts(one_sided=True), "one-sided"),
        "exact": (darts_exact, "exact product"),
        "0 / 0": (darts(zero=False), "no second term then"),
        "sets flags": (darts_sets_flags, "detach\\(\\) or clone\\(\\) it"),
        "too many passes": (darts_many_calls, "each call is a pass"),
        "a graph": (
            lambda w, alpha, *rest: darts()(w, alpha, *rest) + 0 * alpha.clone().requires_grad_(),
            "create_graph",
        ),
        "in place": (darts_in_place, "wrote into a tensor"),
    },
    "concrete_sample": {
        "noise subtracted": (
            concrete(logits=lambda a, g, T: (a - g) / T),
            "noise is subtracted",
        ),
        "no noise": (concrete(noise=torch.zeros_like), "noise is missing"),
        "sign of the noise": (
            concrete(noise=lambda u: (-u.log()).log()),
            "subtracted|wrong sign|log",
        ),
        "exponential": (concrete(noise=lambda u: -u.log()), "exponential noise"),
        "uniform": (concrete(noise=lambda u: u), "u itself"),
        "of 1 - u": (concrete(noise=lambda u: gumbel(1 - u)), "that of 1 - u"),
        "logistic": (concrete(noise=lambda u: (u / (1 - u)).log()), "logistic"),
        "nan": (concrete(noise=lambda u: -u.log().log()), "below zero"),
        "multiplies": (concrete(logits=lambda a, g, T: (a + g) * T), "temperature multiplies"),
        "no temperature": (concrete(logits=lambda a, g, T: a + g), "temperature is missing"),
        "alpha alone": (concrete(logits=lambda a, g, T: a / T + g), "divides alpha alone"),
        "noise alone": (concrete(logits=lambda a, g, T: a + g / T), "divides the noise alone"),
        "probabilities": (
            concrete(logits=lambda a, g, T: (a.softmax(-1) + g) / T),
            "softmax first",
        ),
        "first dimension": (concrete(soft=lambda z: z.softmax(0)), "first dimension"),
        "no softmax": (concrete(soft=lambda z: z), "softmax is missing"),
        "log": (concrete(soft=lambda z: z.log_softmax(-1)), "logarithm of the sample"),
        "always hard": (
            lambda a, u, T, hard: concrete()(a, u, T, True),
            "though soft is asked for",
        ),
        "always soft": (
            lambda a, u, T, hard: concrete()(a, u, T, False),
            "with hard, one entry is 1",
        ),
        "without noise": (
            concrete(chosen=lambda z, a: F.one_hot(a.argmax(-1), a.shape[-1]).to(a)),
            "without the noise",
        ),
        "no straight-through": (concrete(straight=lambda soft, hard: hard), "argmax and one_hot"),
        "adds both": (concrete(straight=lambda soft, hard: hard + soft), "without its gradient"),
        "soft subtracted": (
            concrete(straight=lambda soft, hard: hard - soft + soft.detach()),
            "sign is turned",
        ),
        "gradient of the logits": (
            lambda a, u, T, hard: concrete()(a, u, T, hard).detach() + a - a.detach(),
            "the gradient of alpha",
        ),
        "detached": (
            lambda a, u, T, hard: concrete()(a.detach(), u, T, hard),
            "no gradient reaches alpha",
        ),
        "whole numbers": (
            lambda a, u, T, hard: (
                concrete()(a, u, T, hard).long() if hard else concrete()(a, u, T, hard)
            ),
            "whole numbers",
        ),
        "in place": (concrete_in_place, "wrote into a tensor"),
    },
}

RIGHT: dict[str, list[Any]] = {
    "distillation_loss": [kd(), kd_by_torch],
    "decoupled_parts": [dkd(), dkd_in_columns],
    "attention_loss": [at(), at_by_einsum],
    "widened": [wider(), wider_by_loops],
    "identity_layer": [layer(), layer_by_rows],
    "mixed_node": [node(), node_by_jacobians],
    "darts_gradient": [darts(), darts_in_memory],
    "concrete_sample": [concrete(), concrete_by_function],
}
