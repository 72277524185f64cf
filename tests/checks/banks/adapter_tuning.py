"""Assignment 04: plausible wrong answers, each with words that the check's message must contain,
and right answers written differently."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NOTEBOOK = "04_adapter_tuning"

# bottleneck
# -------------------------------------------------------------------------------------------------


def zeros(*tensors: Tensor) -> None:
    for t in tensors:
        nn.init.zeros_(t)


def start_of_up(m: Any) -> None:
    zeros(m.up.weight)


class Adapter(nn.Module):
    def __init__(
        self, dim: int, width: int, scale: float, start: Any, biases: str, forward: Any
    ) -> None:
        super().__init__()
        self.down, self.up, self.scale = nn.Linear(dim, width), nn.Linear(width, dim), scale
        start(self)
        zeros(*(getattr(self, name).bias for name in biases.split()))
        self.inner = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self, x)


def usual(m: Any, x: Tensor) -> Tensor:
    return x + m.scale * m.up(torch.relu(m.down(x)))


def adapter(start: Any = start_of_up, biases: str = "down up", forward: Any = usual) -> Any:
    return lambda dim, width, scale: Adapter(dim, width, scale, start, biases, forward)


def same_rows(m: Any) -> None:
    start_of_up(m)
    nn.init.constant_(m.down.weight, 0.1)


def with_a_seed(m: Any) -> None:
    start_of_up(m)
    nn.init.normal_(m.down.weight, generator=torch.Generator().manual_seed(0))


def learns_its_scale(dim: int, width: int, scale: float) -> nn.Module:
    module = adapter()(dim, width, scale)
    module.scale = nn.Parameter(torch.tensor(scale))
    return module


def in_a_sequence(dim: int, width: int, scale: float) -> nn.Module:
    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, dim))
            self.down, self.up = self.net[0], self.net[2]
            with torch.no_grad():
                self.down.bias.zero_()
                for p in self.up.parameters():
                    p.fill_(0)

        def forward(self, x: Tensor) -> Tensor:
            return torch.add(x, self.net(x), alpha=scale)

    return Series()


KEPT: dict[Any, nn.Module] = {}


def only_once(dim: int, width: int, scale: float) -> nn.Module:
    return KEPT.setdefault((dim, width, scale), adapter()(dim, width, scale))


def in_place(m: Any, x: Tensor) -> Tensor:
    more = m.scale * m.up(torch.relu(m.down(x)))
    with torch.no_grad():
        x += more
    return x


def without_names(dim: int, width: int, scale: float) -> nn.Module:
    module = adapter()(dim, width, scale)
    module.first = module.down
    del module.down
    return module


# half_block
# -------------------------------------------------------------------------------------------------


def half(**wrong: Any) -> Any:
    """Right, or wrong at the places that `wrong` names: a formula of x, n(), m(), a() and s."""
    right: dict[str, Callable[..., Tensor]] = {
        "after": lambda x, n, m, a, s: (lambda z: x + z + s * a(z))(m(n(x))),
        "beside": lambda x, n, m, a, s: x + m(n(x)) + s * a(x),
        "before": lambda x, n, m, a, s: (lambda t: x + m(t + s * a(t)))(n(x)),
    }
    rules = right | wrong

    def answer(x: Tensor, norm: Any, mlp: Any, adapter: Any, scale: float, place: str) -> Tensor:
        return rules[place](x, norm, mlp, adapter, scale)

    return answer


def half_in_lines(x: Tensor, norm: Any, mlp: Any, adapter: Any, scale: float, place: str) -> Tensor:
    more = scale * adapter(x) if place == "beside" else 0
    n = norm(x)
    if place == "before":
        n = torch.add(n, adapter(n), alpha=scale)
    z = mlp(n)
    if place == "after":
        more = adapter(z).mul(scale)
    return more + x + z


def half_in_place(x: Tensor, norm: Any, mlp: Any, adapter: Any, scale: float, place: str) -> Tensor:
    more = half()(x, norm, mlp, adapter, scale, place) - x
    with torch.no_grad():
        x += more
    return x


def half_writes_into_z(
    x: Tensor, norm: Any, mlp: Any, adapter: Any, scale: float, place: str
) -> Tensor:
    if place != "after":
        return half()(x, norm, mlp, adapter, scale, place)
    z = mlp(norm(x))
    z += scale * adapter(z)
    return x + z


# repadapter_merge
# -------------------------------------------------------------------------------------------------


def rep(
    up: Any = lambda B: torch.block_diag(*B),
    weight: Any = lambda W, A, up, s: W + s * W @ up @ A,
    shift: Any = lambda W, a, up, b, s: s * W @ (up @ a + b),
    old: float = 1.0,
) -> Any:
    def answer(
        W: Tensor, bias: Tensor | None, A: Tensor, a: Tensor, B: Tensor, b: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        matrix = up(B)
        more = shift(W, a, matrix, b, scale)
        new = weight(W, A, matrix, scale)
        return new, more if bias is None else old * bias + more

    return answer


def rep_by_groups(
    W: Tensor, bias: Tensor | None, A: Tensor, a: Tensor, B: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Each block meets its own columns of W and its own rows of A; no matrix B is made."""
    g = len(B)
    new, shift = W.clone(), scale * (W @ b)
    parts = zip(W.chunk(g, 1), B, A.chunk(g), a.chunk(g), strict=True)
    for columns, block, rows, part in parts:
        new += scale * (columns @ block) @ rows
        shift = shift + scale * columns @ (block @ part)
    return new, shift if bias is None else shift + bias


def rep_by_layers(
    W: Tensor, bias: Tensor | None, A: Tensor, a: Tensor, B: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The bias is what the whole gives for zero, the weight what it gives for the unit vectors."""
    up = torch.zeros(B.shape[0] * B.shape[1], len(A), dtype=B.dtype, device=B.device)
    for i, block in enumerate(B):
        rows, columns = block.shape
        up[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns] = block

    def both(x: Tensor) -> Tensor:
        return F.linear(x + scale * F.linear(F.linear(x, A, a), up, b), W, bias)

    eye = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)
    zero = both(torch.zeros_like(eye[0]))
    return (both(eye) - zero).T, zero


def interleaved(B: Tensor) -> Tensor:
    g, rows, columns = B.shape
    up = B.new_zeros(g * rows, g * columns)
    for i in range(g):
        up[i::g, i::g] = B[i]
    return up


def rep_in_place(W: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    new, shift = rep()(W, bias, *rest)
    W.copy_(new)
    return W, shift


def rep_none_stays(W: Tensor, bias: Tensor | None, *rest: Any) -> Any:
    new, shift = rep()(W, bias, *rest)
    return new, None if bias is None else shift


def rep_shortcut(
    W: Tensor, bias: Tensor | None, A: Tensor, a: Tensor, B: Tensor, b: Tensor, scale: float
) -> Any:
    if scale == 0 and bias is not None:
        return W, bias
    return rep()(W, bias, A, a, B, b, scale)


def if_square(other: Any) -> Any:
    """Wrong for a square layer, right for all others, where the mistake would be an error."""
    return lambda W, *rest: (other if W.shape[0] == W.shape[1] else rep())(W, *rest)


def turned(W: Tensor, A: Tensor, up: Tensor, s: float) -> Tensor:
    return W + s * up @ A @ W


# ladder
# -------------------------------------------------------------------------------------------------


def climb(
    gate: Any = lambda a: torch.sigmoid(a / 0.1),
    mix: Any = lambda thin, s, r, g: thin(g * s + (1 - g) * r),
    start: Any = lambda s: s,
    rung: Any = lambda h, i: h[i + 1],
    mode: Any = torch.no_grad,
    first: Any = lambda x: x.detach(),
    after: Any = lambda h: h,
) -> Any:
    def answer(x: Tensor, trunk: Any, side: Any, reads: Any, gates: Tensor) -> Tensor:
        h = [first(x)]
        with mode():
            for block in trunk:
                h.append(after(block(h[-1])))
        s = start(h[0] @ reads[0].mT)
        for i, thin in enumerate(side):
            s = mix(thin, s, rung(h, i) @ reads[i + 1].mT, gate(gates[i]))
        return s

    return answer


def climb_by_step(x: Tensor, trunk: Any, side: Any, reads: Any, gates: Tensor) -> Tensor:
    x = x.detach()
    s, g = F.linear(x, reads[0]), (10 * gates).sigmoid()
    for i in range(len(trunk)):
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        x = trunk[i](x)
        torch.set_grad_enabled(before)
        s = side[i](torch.lerp(F.linear(x, reads[i + 1]), s, g[i]))
    return s


def climb_without_return(x: Tensor, trunk: Any, side: Any, reads: Any, gates: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    h = [x]
    for block in trunk:
        h.append(block(h[-1]))
    torch.set_grad_enabled(True)
    return climb(rung=lambda _, i: h[i + 1])(x, trunk, side, reads, gates)


def climb_wholly_without_graph(*arguments: Any) -> Tensor:
    with torch.no_grad():
        return climb()(*arguments)


def plain() -> Any:
    return torch.set_grad_enabled(torch.is_grad_enabled())


# st_adapter
# -------------------------------------------------------------------------------------------------


def over_time(z: Tensor, kernel: Tensor, c: Tensor, pad: Any = None) -> Tensor:
    """[B, T, N, R] -> the same, by pads and slices."""
    k, T = kernel.shape[1], z.shape[1]
    long = F.pad(z, (0, 0, 0, 0, k // 2, k // 2)) if pad is None else pad(z, k)
    total = c.expand_as(z)
    for i in range(k):
        total = total + long[:, i : i + T] * kernel[:, i]
    return total


def space_time(
    inside: Any = over_time,
    skip: float = 1.0,
    bias: Any = lambda d, c, u: (d, c, u),
    act: Any = lambda z: z,
    act_before: Any = lambda z: z,
) -> Any:
    def answer(
        x: Tensor, D: Tensor, d: Tensor, kernel: Tensor, c: Tensor, U: Tensor, u: Tensor
    ) -> Tensor:
        d, c, u = bias(d, c, u)
        z = act(inside(act_before(F.linear(x, D, d)), kernel, c))
        return skip * x + F.linear(z, U, u)

    return answer


def by_conv1d(z: Tensor, kernel: Tensor, c: Tensor) -> Tensor:
    B, T, N, R = z.shape
    rows = z.permute(0, 2, 3, 1).reshape(B * N, R, T)
    rows = F.conv1d(rows, kernel.unsqueeze(1), c, padding="same", groups=R)
    return rows.reshape(B, N, R, T).permute(0, 3, 1, 2)


def by_reshape(z: Tensor, kernel: Tensor, c: Tensor) -> Tensor:
    B, T, N, R = z.shape
    rows = z.reshape(B, R, T, N, 1)
    weight = kernel[:, None, :, None, None]
    rows = F.conv3d(rows, weight, c, padding=(kernel.shape[1] // 2, 0, 0), groups=R)
    return rows.reshape(B, T, N, R)


def by_reshape_of_places(z: Tensor, kernel: Tensor, c: Tensor) -> Tensor:
    B, T, N, R = z.shape
    rows = z.reshape(B, N, T, R).transpose(1, 2)
    return over_time(rows, kernel, c).transpose(1, 2).reshape(z.shape)


def dense_kernel(z: Tensor, kernel: Tensor, c: Tensor) -> Tensor:
    ones = torch.ones_like(kernel)
    return over_time(z, ones, 0 * c).sum(-1, keepdim=True) + c.expand_as(z)


def padded_x(
    x: Tensor, D: Tensor, d: Tensor, kernel: Tensor, c: Tensor, U: Tensor, u: Tensor
) -> Tensor:
    half = kernel.shape[1] // 2
    z = F.linear(F.pad(x, (0, 0, 0, 0, half, half)), D, d)
    return x + F.linear(over_time(x @ D.T, kernel, c, lambda *_: z), U, u)


def round_the_clip(z: Tensor, k: int) -> Tensor:
    T = z.shape[1]
    return torch.stack([z[:, (t - k // 2) % T] for t in range(T + k - 1)], 1)


def repeated_ends(z: Tensor, k: int) -> Tensor:
    last = z.shape[1] - 1
    places = [min(max(t - k // 2, 0), last) for t in range(last + k)]
    return torch.stack([z[:, t] for t in places], 1)


def causal(z: Tensor, k: int) -> Tensor:
    return F.pad(z, (0, 0, 0, 0, k - 1, 0))


def future(z: Tensor, k: int) -> Tensor:
    return F.pad(z, (0, 0, 0, 0, 0, k - 1))


def st_in_place(x: Tensor, *weights: Tensor) -> Tensor:
    more = space_time()(x, *weights) - x
    with torch.no_grad():
        x.add_(more)
    return x


# tip_logits
# -------------------------------------------------------------------------------------------------


def unit(t: Tensor) -> Tensor:
    return t / t.norm(dim=-1, keepdim=True)


def summed(votes: Tensor, labels: Tensor, C: int) -> Tensor:
    return votes @ F.one_hot(labels, C).to(votes)


def tip(
    lengths: str = "f texts keys",
    vote: Any = lambda near, beta: torch.exp(-beta * (1 - near)),
    cast: Any = summed,
    both: Any = lambda zero_shot, votes, alpha, scale: scale * zero_shot + alpha * votes,
) -> Any:
    def answer(
        f: Tensor,
        texts: Tensor,
        keys: Tensor,
        labels: Tensor,
        alpha: float,
        beta: float,
        scale: float,
    ) -> Tensor:
        f, texts, keys = (
            unit(t) if name in lengths.split() else t
            for name, t in (("f", f), ("texts", texts), ("keys", keys))
        )
        votes = cast(vote(f @ keys.mT, beta), labels, len(texts))
        return both(f @ texts.mT, votes, alpha, scale)

    return answer


def tip_by_index(
    f: Tensor, texts: Tensor, keys: Tensor, labels: Tensor, alpha: float, beta: float, scale: float
) -> Tensor:
    out = scale * F.cosine_similarity(f[:, None], texts, dim=-1)
    near = F.cosine_similarity(f[:, None], keys, dim=-1)
    return out.index_add(1, labels, (beta * (near - 1)).exp(), alpha=alpha)


def assigned(votes: Tensor, labels: Tensor, C: int) -> Tensor:
    out = votes.new_zeros(len(votes), C)
    for i, label in enumerate(labels):
        out = out.index_copy(1, label[None], votes[:, i : i + 1])
    return out


def averaged(votes: Tensor, labels: Tensor, C: int) -> Tensor:
    return summed(votes, labels, C) / torch.bincount(labels, minlength=C).clamp(min=1)


def nearest(votes: Tensor, labels: Tensor, C: int) -> Tensor:
    columns = [
        votes[:, labels == c].amax(1) if (labels == c).any() else 0 * votes[:, 0] for c in range(C)
    ]
    return torch.stack(columns, 1)


def tip_with_the_largest_label(
    f: Tensor, texts: Tensor, keys: Tensor, labels: Tensor, alpha: float, beta: float, scale: float
) -> Tensor:
    C = int(labels.max()) + 1
    return tip()(f, texts[:C], keys, labels, alpha, beta, scale)


def tip_in_place(f: Tensor, *rest: Any) -> Tensor:
    if not f.requires_grad:
        f /= f.norm(dim=-1, keepdim=True)
    return tip()(f, *rest)


def tip_detached(f: Tensor, texts: Tensor, keys: Tensor, *rest: Any) -> Tensor:
    return tip()(f, texts, keys.detach(), *rest)


# vqt_attention
# -------------------------------------------------------------------------------------------------


def vqt(
    factor: Any = lambda d, D: d**-0.5,
    dim: int = -1,
    roles: str = "qkv",
    of_P: Any = lambda q, k, v: q,
    seen: Any = lambda x, P: x,
    strided: bool = False,
    bias_of_P: float = 1.0,
) -> Any:
    def answer(
        x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int
    ) -> tuple[Tensor, Tensor]:
        D = x.shape[-1]
        shift = torch.zeros_like(weight[:, 0]) if bias is None else bias
        prompts = P.expand(len(x), -1, -1)

        def cut(t: Tensor) -> Tensor:
            if strided:
                return t.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)
            return t.unflatten(-1, (heads, -1)).transpose(1, 2)

        def all_three(t: Tensor, b: Tensor) -> list[Tensor]:
            parts = dict(zip(roles, F.linear(t, weight, b).chunk(3, -1), strict=True))
            return [parts[letter] for letter in "qkv"]

        q = all_three(x, shift)[0]
        _, k, v = all_three(seen(x, prompts), shift)
        own = of_P(*all_three(prompts, bias_of_P * shift))
        both = []
        for asks in (q, own):
            scores = cut(asks) @ cut(k).mT * factor(D // heads, D)
            out = scores.softmax(dim) @ cut(v)
            if strided:
                both.append(out.permute(0, 2, 3, 1).flatten(2))
            else:
                both.append(out.transpose(1, 2).flatten(2))
        return both[0], both[1]

    return answer


def vqt_by_head(
    x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> list[Tensor]:
    """Head by head, from rows of the weight."""
    D = x.shape[-1]
    d = D // heads
    outs, reads = [], []
    for h in range(heads):
        rows = [slice(i * D + h * d, i * D + (h + 1) * d) for i in range(3)]
        parts = [(weight[r], None if bias is None else bias[r]) for r in rows]
        q, k, v = (F.linear(x, *part) for part in parts)
        asked = F.linear(P, *parts[0])
        outs.append(torch.softmax(q @ k.mT / math.sqrt(d), -1) @ v)
        reads.append(torch.softmax(asked @ k.mT / math.sqrt(d), -1) @ v)
    return [torch.cat(outs, -1), torch.cat(reads, -1)]


def vqt_with(other: Any) -> Any:
    def answer(*arguments: Any) -> Any:
        return other(*vqt()(*arguments), *arguments)

    return answer


def vqt_in_vain(x: Tensor, P: Tensor, *rest: Any) -> Any:
    return vqt()(x, P.detach(), *rest)


# kept_bytes
# -------------------------------------------------------------------------------------------------


def memory(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def whole(t: Tensor) -> int:
    return t.untyped_storage().nbytes()


def bytes_kept(
    key: Any = memory,
    size: Any = whole,
    mine: Any = lambda t, own: memory(t) in {memory(o) for o in own},
    total: Any = lambda found, out: sum(found),
    calls: int = 1,
) -> Any:
    def answer(call: Callable[[], Tensor], own: Any) -> int:
        own, found = list(own), {}

        def pack(t: Tensor) -> Tensor:
            if not mine(t, own):
                found[key(t) if key else len(found)] = size(t)
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            for _ in range(calls):
                out = call()
        return total(found.values(), out)

    return answer


def bytes_of_a_list(call: Callable[[], Tensor], own: Any) -> int:
    saved: list[Tensor] = []

    class Saves(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self) -> None:
            super().__init__(lambda t: saved.append(t) or t, lambda t: t)

    with Saves():
        call()
    sizes = {memory(t): whole(t) for t in saved}
    return sum(sizes[place] for place in sizes.keys() - {memory(t) for t in own})


def bytes_before(call: Callable[[], Tensor], own: Any) -> int:
    call()
    return bytes_kept()(lambda: torch.zeros(1), own)


def bytes_lost(call: Callable[[], Tensor], own: Any) -> int:
    found: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: found.__setitem__(memory(t), whole(t)), lambda t: t
    ):
        call()
    return sum(n for place, n in found.items() if place not in {memory(t) for t in own})


def bytes_and_backward(call: Callable[[], Tensor], own: Any) -> int:
    def run() -> Tensor:
        out = call()
        if out.requires_grad:
            out.sum().backward()
        return out

    return bytes_kept()(run, own)


def bytes_with_hooks_left(call: Callable[[], Tensor], own: Any) -> int:
    found: dict[int, int] = {}
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: found.__setitem__(memory(t), whole(t)) or t, lambda t: t
    )
    hooks.__enter__()
    call()
    return sum(n for place, n in found.items() if place not in {memory(t) for t in own})


RIGHT: dict[str, list[Any]] = {
    "bottleneck": [adapter(), in_a_sequence],
    "half_block": [half(), half_in_lines],
    "repadapter_merge": [rep(), rep_by_groups, rep_by_layers],
    "ladder": [climb(), climb_by_step],
    "st_adapter": [space_time(), space_time(by_conv1d)],
    "tip_logits": [tip(), tip_by_index],
    "vqt_attention": [vqt(), vqt_by_head],
    "kept_bytes": [bytes_kept(), bytes_of_a_list],
}

WRONG: dict[str, dict[str, tuple[Any, str]]] = {
    "bottleneck": {
        "both zero": (adapter(lambda m: zeros(m.down.weight, m.up.weight)), "both at zero"),
        "the wrong one zero": (adapter(lambda m: zeros(m.down.weight)), "wrong one is zero"),
        "neither zero": (adapter(lambda m: None), "neither is zero"),
        "d drawn": (adapter(biases="up"), "zeros_ for d"),
        "u drawn": (adapter(biases="down"), "zeros_ for u"),
        "all rows alike": (adapter(same_rows), "rows that are alike"),
        "a seed of its own": (adapter(with_a_seed), "a seed of your own"),
        "the same object": (only_once, "keep nothing between calls"),
        "a scale that learns": (learns_its_scale, "scale is a fixed number"),
        "the class": (lambda dim, width, scale: Adapter, "with its brackets"),
        "turned round": (
            lambda dim, width, scale: adapter()(width, dim, scale),
            "down goes from dim|needs other|both layers",
        ),
        "other names": (without_names, "under these names"),
        "no bias": (
            adapter(lambda m: (start_of_up(m), m.down.register_parameter("bias", None)), "up"),
            "both layers have one",
        ),
        "no skip": (
            adapter(forward=lambda m, x: m.scale * m.up(torch.relu(m.down(x)))),
            "skip is missing",
        ),
        "no scale": (
            adapter(forward=lambda m, x: x + m.up(torch.relu(m.down(x)))),
            "scale is missing",
        ),
        "u not scaled": (
            adapter(
                forward=lambda m, x: (
                    x + m.scale * F.linear(torch.relu(m.down(x)), m.up.weight) + m.up.bias
                )
            ),
            "multiplies u as well",
        ),
        "no activation": (
            adapter(forward=lambda m, x: x + m.scale * m.up(m.down(x))),
            "activation is missing",
        ),
        "GELU": (
            adapter(forward=lambda m, x: x + m.scale * m.up(F.gelu(m.down(x)))),
            "that is GELU",
        ),
        "activation late": (
            adapter(forward=lambda m, x: x + m.scale * torch.relu(m.up(m.down(x)))),
            "between the two",
        ),
        "a norm": (
            adapter(
                forward=lambda m, x: (
                    x + m.scale * m.up(torch.relu(m.down(F.layer_norm(x, x.shape[-1:]))))
                )
            ),
            "has no norm",
        ),
        "detached": (
            adapter(forward=lambda m, x: x + m.scale * m.up(torch.relu(m.down(x.detach())))),
            "the gradient of x",
        ),
        "in place": (adapter(forward=in_place), "wrote into a tensor"),
        "half precision by hand": (
            adapter(forward=lambda m, x: usual(m, x).float()),
            "type is lost|the type",
        ),
    },
    "half_block": {
        "after is beside": (
            half(after=lambda x, n, m, a, s: x + m(n(x)) + s * a(x)),
            'this is "beside"',
        ),
        "beside is after": (
            half(beside=lambda x, n, m, a, s: (lambda z: x + z + s * a(z))(m(n(x)))),
            'this is "after"',
        ),
        "before is beside": (
            half(before=lambda x, n, m, a, s: x + m(n(x)) + s * a(x)),
            'this is "beside"',
        ),
        "beside behind the norm": (
            half(beside=lambda x, n, m, a, s: (lambda t: x + m(t) + s * a(t))(n(x))),
            "before its norm",
        ),
        "after the block": (
            half(after=lambda x, n, m, a, s: (lambda y: y + s * a(y))(x + m(n(x)))),
            "before x is added",
        ),
        "before the norm": (
            half(before=lambda x, n, m, a, s: x + m(n(x + s * a(x)))),
            "comes after the norm",
        ),
        "no skip of the adapter": (
            half(after=lambda x, n, m, a, s: x + s * a(m(n(x)))),
            "adapter's own skip",
        ),
        "no skip of the block": (
            half(before=lambda x, n, m, a, s: (lambda t: m(t + s * a(t)))(n(x))),
            "skip of the block",
        ),
        "no scale": (half(beside=lambda x, n, m, a, s: x + m(n(x)) + a(x)), "scale is missing"),
        "scales the MLP": (
            half(beside=lambda x, n, m, a, s: x + s * (m(n(x)) + a(x))),
            "more than the adapter",
        ),
        "no norm": (half(beside=lambda x, n, m, a, s: x + m(x) + s * a(x)), "norm is missing"),
        "no adapter": (half(after=lambda x, n, m, a, s: x + m(n(x))), "adapter is missing"),
        "the norm twice": (
            half(before=lambda x, n, m, a, s: x + m(n(x) + s * a(n(x)))),
            "call each once",
        ),
        "the MLP twice": (
            half(after=lambda x, n, m, a, s: x + m(n(x)) + s * a(m(n(x)))),
            "call each once",
        ),
        "detached": (
            half(beside=lambda x, n, m, a, s: x + m(n(x)) + s * a(x.detach())),
            "the gradient of x",
        ),
        "adapter detached": (
            half(before=lambda x, n, m, a, s: (lambda t: x + m(t + s * a(t).detach()))(n(x))),
            "gradient of (x|norm|adapter)",
        ),
        "in place": (half_in_place, "wrote into a tensor"),
        "writes into what autograd needs": (half_writes_into_z, "autograd still needs"),
    },
    "repadapter_merge": {
        "the wrong order": (if_square(rep(weight=turned)), "order is turned round|adapter comes"),
        "no scale": (
            rep(
                weight=lambda W, A, up, s: W + W @ up @ A,
                shift=lambda W, a, up, b, s: W @ (up @ a + b),
            ),
            "scale is missing",
        ),
        "no skip": (rep(weight=lambda W, A, up, s: s * W @ up @ A), "with the identity"),
        "no b": (rep(shift=lambda W, a, up, b, s: s * W @ (up @ a)), "b is missing"),
        "no a": (rep(shift=lambda W, a, up, b, s: s * W @ b), "a is missing"),
        "no shift": (rep(shift=lambda W, a, up, b, s: 0 * (W @ b)), "both missing|stays as it was"),
        "b not scaled": (
            rep(shift=lambda W, a, up, b, s: W @ (s * up @ a + b)),
            "b is not scaled",
        ),
        "a not scaled": (
            rep(shift=lambda W, a, up, b, s: W @ (up @ a + s * b)),
            "a goes through B",
        ),
        "interleaved": (rep(interleaved), "interleaved"),
        "the last block first": (rep(lambda B: torch.block_diag(*B.flip(0))), "last first"),
        "no old bias": (rep(old=0.0), "old bias is lost"),
        "b behind the layer": (
            if_square(rep(shift=lambda W, a, up, b, s: s * (W @ up @ a + b))),
            "added behind the layer",
        ),
        "shift not through W": (
            if_square(rep(shift=lambda W, a, up, b, s: s * (up @ a + b))),
            "do not go through W",
        ),
        "weight as it was": (rep(weight=lambda W, A, up, s: W.clone()), "weight stays as it was"),
        "subtracts": (
            rep(
                weight=lambda W, A, up, s: W - s * W @ up @ A,
                shift=lambda W, a, up, b, s: -s * W @ (up @ a + b),
            ),
            "subtracted",
        ),
        "None stays None": (rep_none_stays, "a and b need a place"),
        "weight alone": (lambda *k: rep()(*k)[0], "return \\(weight, bias\\)"),
        "in place": (rep_in_place, "wrote into a tensor"),
        "its own argument": (rep_shortcut, "the argument itself"),
    },
    "ladder": {
        "no temperature": (climb(torch.sigmoid), "temperature is missing"),
        "temperature multiplied": (climb(lambda a: torch.sigmoid(0.1 * a)), "not sigmoid\\(0.1 a"),
        "the gate as it is": (climb(lambda a: a), "used as it is"),
        "gates exchanged": (
            climb(mix=lambda thin, s, r, g: thin((1 - g) * s + g * r)),
            "gates are exchanged",
        ),
        "no 1 - g": (climb(mix=lambda thin, s, r, g: thin(g * s + r)), "without 1 - g"),
        "mixture late": (
            climb(mix=lambda thin, s, r, g: g * thin(s) + (1 - g) * r),
            "before the thin block",
        ),
        "a skip": (
            climb(mix=lambda thin, s, r, g: s + thin(g * s + (1 - g) * r)),
            "skip of its own",
        ),
        "reads the input": (climb(rung=lambda h, i: h[i]), "what leaves it"),
        "reads the last": (climb(rung=lambda h, i: h[-1]), "last output"),
        "reads x": (climb(rung=lambda h, i: h[0]), "reads x"),
        "starts at zero": (climb(start=torch.zeros_like), "starts at zero"),
        "a graph": (climb(mode=plain), "without a graph"),
        "detached late": (climb(mode=plain, after=lambda h: h.detach()), "comes too late"),
        "a gradient of x": (climb(first=lambda x: x), "no gradient of x"),
        "no graph at all": (climb_wholly_without_graph, "no gradient reaches gates"),
        "gates detached": (
            climb(lambda a: torch.sigmoid(a.detach() / 0.1)),
            "no gradient reaches gates",
        ),
        "rungs detached": (
            climb(mix=lambda thin, s, r, g: thin(g * s + (1 - g) * r.detach())),
            "gradient of",
        ),
        "inference_mode": (climb(mode=torch.inference_mode), "torch.no_grad\\(\\) does not"),
        "the trunk twice": (climb_without_return, "one call of each"),
    },
    "st_adapter": {
        "reshape": (space_time(by_reshape), "use permute \\(0, 3, 1, 2\\)"),
        "reshape of places": (space_time(by_reshape_of_places), "use permute \\(0, 2, 1, 3\\)"),
        "turned in time": (
            space_time(lambda z, kernel, c: over_time(z, kernel.flip(1), c)),
            "turned round in time",
        ),
        "over places": (
            space_time(lambda z, k, c: over_time(z.transpose(1, 2), k, c).transpose(1, 2)),
            "over the places",
        ),
        "over clips": (
            space_time(lambda z, k, c: over_time(z.transpose(0, 1), k, c).transpose(0, 1)),
            "over the clips|first of the next",
        ),
        "one long clip": (
            space_time(lambda z, k, c: over_time(z.flatten(0, 1)[None], k, c).view(z.shape)),
            "first of the next",
        ),
        "in a circle": (
            space_time(lambda z, k, c: over_time(z, k, c, round_the_clip)),
            "in a circle",
        ),
        "ends repeated": (
            space_time(lambda z, k, c: over_time(z, k, c, repeated_ends)),
            "are repeated",
        ),
        "the past": (space_time(lambda z, k, c: over_time(z, k, c, causal)), "the past alone"),
        "the future": (space_time(lambda z, k, c: over_time(z, k, c, future)), "the future alone"),
        "x padded": (padded_x, "counts as d"),
        "the middle alone": (
            space_time(lambda z, k, c: z * k[:, k.shape[1] // 2] + c),
            "only the middle",
        ),
        "one kernel": (
            space_time(lambda z, k, c: over_time(z, k[:1].expand_as(k), c)),
            "kernel of the first",
        ),
        "no skip": (space_time(skip=0.0), "skip is missing"),
        "a second skip": (
            space_time(lambda z, k, c: z + over_time(z, k, c)),
            "skip of its own",
        ),
        "no d": (space_time(bias=lambda d, c, u: (0 * d, c, u)), "d is missing"),
        "no c": (space_time(bias=lambda d, c, u: (d, 0 * c, u)), "c is missing"),
        "no u": (space_time(bias=lambda d, c, u: (d, c, 0 * u)), "u is missing"),
        "ReLU": (space_time(act=F.relu), "there is an activation"),
        "ReLU before": (space_time(act_before=F.relu), "in front of the convolution"),
        "kernel detached": (
            space_time(lambda z, k, c: over_time(z, k.detach(), c)),
            "no gradient reaches kernel",
        ),
        "in place": (st_in_place, "wrote into a tensor"),
    },
    "tip_logits": {
        "features as they are": (tip("texts keys"), "features are not divided"),
        "keys as they are": (tip("f texts"), "keys are not divided"),
        "texts as they are": (tip("f keys"), "texts are not divided"),
        "nothing divided": (tip(""), "nothing is divided"),
        "sign turned": (tip(vote=lambda near, b: (b * (1 - near)).exp()), "sign in the exponent"),
        "no 1": (tip(vote=lambda near, b: (b * near).exp()), "the 1 is missing"),
        "minus near": (tip(vote=lambda near, b: (-b * near).exp()), "not -beta near"),
        "no beta": (tip(vote=lambda near, b: (near - 1).exp()), "beta is missing"),
        "no exp": (tip(vote=lambda near, b: -b * (1 - near)), "exp is missing"),
        "affinity": (tip(vote=lambda near, b: near), "affinity itself"),
        "squared distance": (
            tip(vote=lambda near, b: (-b * (2 - 2 * near)).exp()),
            "squared distance",
        ),
        "softmax": (
            tip(vote=lambda near, b: (-b * (1 - near)).exp().softmax(-1)),
            "through a softmax",
        ),
        "sum to one": (
            tip(vote=lambda near, b: (-b * (1 - near)).softmax(-1)),
            "sum to one",
        ),
        "mean of a class": (tip(cast=averaged), "averaged over the images of a class"),
        "the nearest": (tip(cast=nearest), "votes alone"),
        "the last": (tip(cast=assigned), "only the last image"),
        "no alpha": (tip(both=lambda z, v, a, s: s * z + v), "alpha is missing"),
        "alpha for all": (tip(both=lambda z, v, a, s: a * (s * z + v)), "alpha multiplies every"),
        "no scale": (tip(both=lambda z, v, a, s: z + a * v), "scale is missing"),
        "scale for all": (tip(both=lambda z, v, a, s: s * (z + a * v)), "scale multiplies every"),
        "exchanged": (tip(both=lambda z, v, a, s: a * z + s * v), "are exchanged"),
        "votes alone": (tip(both=lambda z, v, a, s: a * v), "texts are missing"),
        "no votes": (tip(both=lambda z, v, a, s: s * z), "votes are missing"),
        "classes of the labels": (tip_with_the_largest_label, "as many classes as texts"),
        "keys detached": (tip_detached, "no gradient reaches keys"),
        "in place": (tip_in_place, "wrote into a tensor"),
    },
    "vqt_attention": {
        "as VPT": (vqt(seen=lambda x, P: torch.cat([P, x], 1)), "as in VPT"),
        "reads prompts": (
            lambda x, P, *rest: (
                vqt()(x, P, *rest)[0],
                vqt(seen=lambda x, P: torch.cat([P, x], 1))(x, P, *rest)[1],
            ),
            "read the prompts, too",
        ),
        "reads prompts alone": (
            lambda x, P, *rest: (
                vqt()(x, P, *rest)[0],
                vqt(seen=lambda x, P: P)(x, P, *rest)[1],
            ),
            "instead of the image",
        ),
        "no factor": (vqt(lambda d, D: 1.0), "factor is missing"),
        "root of D": (vqt(lambda d, D: D**-0.5), "divided by sqrt\\(D\\)"),
        "no root": (vqt(lambda d, D: 1 / d), "it is its root"),
        "softmax over queries": (vqt(dim=-2), "runs over the keys"),
        "k, q, v": (vqt(roles="kqv"), "queries and keys are exchanged"),
        "q, v, k": (vqt(roles="qvk"), "keys and values are exchanged"),
        "P as keys": (vqt(of_P=lambda q, k, v: k), "it asks"),
        "P as values": (vqt(of_P=lambda q, k, v: v), "it asks"),
        "every H-th channel": (vqt(strided=True), "every H-th channel"),
        "one head": (lambda x, P, w, b, heads: vqt()(x, P, w, b, 1), "heads are missing"),
        "no bias for P": (vqt(bias_of_P=0.0), "bias is missing in the queries"),
        "no bias": (lambda x, P, w, b, heads: vqt()(x, P, w, None, heads), "bias is missing"),
        "P itself": (
            lambda x, P, w, b, heads: (
                vqt()(x, P, w, b, heads)[0],
                vqt(of_P=lambda q, k, v: P.expand_as(q))(x, P, w, b, heads)[1],
            ),
            "used as the query itself",
        ),
        "a skip": (
            vqt_with(lambda out, read, x, P, *_: (x + out, P + read)),
            "attention alone",
        ),
        "exchanged": (vqt_with(lambda out, read, *_: (read, out)), "are exchanged|expected shape"),
        "joined": (
            vqt_with(lambda out, read, *_: torch.cat([out, read], 1)),
            "return \\(out, read\\)",
        ),
        "P detached": (vqt_in_vain, "no gradient reaches P"),
    },
    "kept_bytes": {
        "each time": (bytes_kept(key=None), "is there once"),
        "by the tensor": (bytes_kept(key=id), "is there once"),
        "views by their size": (
            bytes_kept(size=lambda t: t.numel() * t.element_size()),
            "keeps the whole memory",
        ),
        "weights too": (bytes_kept(mine=lambda t, own: False), "compare memories"),
        "weights by identity": (
            bytes_kept(mine=lambda t, own: any(t is o for o in own)),
            "compare memories",
        ),
        "tensors": (bytes_kept(size=lambda t: 1), "count tensors"),
        "numbers": (
            bytes_kept(size=lambda t: whole(t) // t.element_size()),
            "count numbers",
        ),
        "four bytes": (
            bytes_kept(size=lambda t: 4 * (whole(t) // t.element_size())),
            "float32 alone",
        ),
        "floats alone": (
            bytes_kept(mine=lambda t, own: memory(t) in map(memory, own) or t.dtype == torch.bool),
            "truth values",
        ),
        "the output": (
            bytes_kept(total=lambda found, out: whole(out)),
            "output's memory|what comes out",
        ),
        "the output, too": (
            bytes_kept(total=lambda found, out: sum(found) + whole(out)),
            "what comes out|output's memory|expected",
        ),
        "before the block": (bytes_before, "inside the with block"),
        "two passes": (bytes_kept(calls=2), "expected"),
        "weights by where they begin": (
            bytes_kept(mine=lambda t, own: memory(t) in {o.data_ptr() for o in own}),
            "where a view begins",
        ),
        "gives nothing back": (bytes_lost, "give the tensor back"),
        "leaves are own": (
            bytes_kept(mine=lambda t, own: t.grad_fn is None and t._base is None),
            "expected",
        ),
        "a backward pass": (bytes_and_backward, "no backward pass"),
        "hooks left": (bytes_with_hooks_left, "with block"),
    },
}
