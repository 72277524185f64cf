"""Assignment 04: right answers, each written in another way than the solution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# bottleneck
# -------------------------------------------------------------------------------------------------


def bottleneck_of_parts(dim: int, width: int, scale: float) -> nn.Module:
    """A module with layers that are put in from outside, and a ReLU that is a module."""
    module = Parts(scale)
    module.down, module.act, module.up = nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, dim)
    nn.init.constant_(module.down.bias, 0)
    for parameter in module.up.parameters():
        parameter.data = torch.zeros_like(parameter)
    return module


class Parts(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.down(x))
        return x.add(self.up(h) * self.scale)


def bottleneck_as_a_dict(dim: int, width: int, scale: float) -> nn.Module:
    """A ModuleDict, which gives its layers as attributes; an own draw for D."""

    class Layers(nn.ModuleDict):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.clamp(F.linear(x, self.down.weight, self.down.bias), min=0)
            return torch.einsum("...r,nr->...n", scale * h, self.up.weight) + (
                scale * self.up.bias + x
            )

    layers = Layers({"up": nn.Linear(width, dim), "down": nn.Linear(dim, width)})
    with torch.no_grad():
        layers.up.weight.mul_(0)
        layers.up.bias.copy_(torch.zeros(dim))
        layers.down.bias.zero_()
        nn.init.xavier_uniform_(layers.down.weight)
    return layers


def bottleneck_in_place(dim: int, width: int, scale: float) -> nn.Module:
    """In place, in tensors of its own."""

    class InPlace(nn.Module):
        up: nn.Linear

        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Linear(dim, width)
            self.up = nn.Linear(width, dim)
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)
            nn.init.zeros_(self.down.bias)
            nn.init.kaiming_normal_(self.down.weight)

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(F.relu(self.down(x), inplace=True))
            y *= scale
            y += x
            return y

    return InPlace()


# half_block
# -------------------------------------------------------------------------------------------------


def half_by_match(x: Tensor, norm: Any, mlp: Any, adapter: Any, scale: float, place: str) -> Tensor:
    match place:
        case "after":
            z = mlp(norm(x))
            return torch.stack([x, z, scale * adapter(z)]).sum(0)
        case "beside":
            return scale * adapter(x) + mlp(norm(x)) + x
        case _:
            n = norm(x)
            return mlp(n.add(adapter(n), alpha=scale)).add(x)


def half_by_functions(
    x: Tensor, norm: Any, mlp: Any, adapter: Any, scale: float, place: str
) -> Tensor:
    """An adapter with its own skip, in the way or not."""

    def series(t: Tensor) -> Tensor:
        return t + scale * adapter(t)

    inside = norm(x)
    inside = mlp(series(inside) if place == "before" else inside)
    inside = series(inside) if place == "after" else inside
    return (series(x) if place == "beside" else x) + inside


def half_in_place(x: Tensor, norm: Any, mlp: Any, adapter: Any, scale: float, place: str) -> Tensor:
    """In place, in tensors of its own that no gradient needs."""
    n = norm(x)
    y = x.clone()
    if place == "before":
        y += mlp(n + scale * adapter(n))
    elif place == "beside":
        y += adapter(x).mul_(scale)
        y += mlp(n)
    else:
        z = mlp(n)
        y += adapter(z) * scale
        y += z
    return y


# repadapter_merge
# -------------------------------------------------------------------------------------------------


def rep_by_einsum(
    weight: Tensor, bias: Tensor | None, A: Tensor, a: Tensor, B: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    g = B.shape[0]
    columns = weight.unflatten(1, (g, -1))  # [N, g, D / g]
    through = torch.einsum("ngi,gij->ngj", columns, B).flatten(1)  # W B [N, R]
    shift = (through @ a + weight @ b) * scale
    return torch.addmm(weight, through, A, alpha=scale), shift if bias is None else bias + shift


def rep_block_by_block(
    weight: Tensor, bias: Tensor | None, A: Tensor, a: Tensor, B: Tensor, b: Tensor, scale: float
) -> list[Tensor]:
    g, rows, columns = B.shape
    new = weight.clone()
    shift = torch.zeros_like(weight[:, 0]) if bias is None else bias.clone()
    shift += scale * torch.mv(weight, b)
    for i in range(g):
        W = weight[:, i * rows : (i + 1) * rows] @ B[i]
        new += scale * W @ A[i * columns : (i + 1) * columns]
        shift += scale * W @ a[i * columns : (i + 1) * columns]
    return [new, shift]


def rep_as_one_map(
    weight: Tensor, bias: Tensor | None, A: Tensor, a: Tensor, B: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The adapter as S x + c, then the layer after it."""
    up = A.new_zeros(len(b), len(a))
    for i, block in enumerate(B):
        up[i * block.shape[0] :, i * block.shape[1] :][: block.shape[0], : block.shape[1]] = block
    S = torch.eye(len(b), dtype=A.dtype, device=A.device) + scale * torch.matmul(up, A)
    c = scale * (torch.mv(up, a) + b)
    return weight @ S, F.linear(c, weight, bias)


# ladder
# -------------------------------------------------------------------------------------------------


@torch.no_grad()
def rungs(x: Tensor, trunk: Any) -> list[Tensor]:
    found = [x]
    for block in trunk:
        found.append(block(found[-1]))
    return found


def ladder_in_two_passes(x: Tensor, trunk: Any, side: Any, reads: Any, gates: Tensor) -> Tensor:
    first, *others = rungs(x.detach(), trunk)
    s = torch.einsum("bnd,wd->bnw", first, reads[0])
    for h, thin, P, a in zip(others, side, reads[1:], gates.unbind(), strict=True):
        g = torch.sigmoid(10 * a)
        r = torch.einsum("bnd,wd->bnw", h, P)
        s = thin(r + g * (s - r))
    return s


def ladder_through_inference(x: Tensor, trunk: Any, side: Any, reads: Any, gates: Tensor) -> Tensor:
    """inference_mode, and a clone outside of it, which autograd may use."""
    rows = [x.detach()]
    for block in trunk:
        with torch.inference_mode():
            h = block(rows[-1])
        rows.append(h.clone())
    g = 1 / (1 + torch.exp(-gates / 0.1))
    s = F.linear(rows[0], reads[0])
    for i in range(len(side)):
        s = side[i](g[i] * s + (1 - g[i]) * F.linear(rows[i + 1], reads[i + 1]))
    return s


def ladder_recursive(x: Tensor, trunk: Any, side: Any, reads: Any, gates: Tensor) -> Tensor:
    with torch.no_grad():
        h = [x.clone()]
        for block in trunk:
            h.append(block(h[-1]))

    def step(i: int) -> Tensor:
        read = h[i] @ reads[i].transpose(0, 1)
        if i == 0:
            return read
        g = (gates[i - 1] / 0.1).sigmoid()
        return side[i - 1](g * step(i - 1) + (1 - g) * read)

    return step(len(side))


# st_adapter
# -------------------------------------------------------------------------------------------------


def st_frame_by_frame(
    x: Tensor, D: Tensor, d: Tensor, kernel: Tensor, c: Tensor, U: Tensor, u: Tensor
) -> Tensor:
    z = torch.einsum("btnd,rd->btnr", x, D) + d
    T, k = x.shape[1], kernel.shape[1]
    frames = []
    for t in range(T):
        y = c.expand_as(z[:, t])
        for i in range(k):
            if 0 <= t + i - k // 2 < T:
                y = y + kernel[:, i] * z[:, t + i - k // 2]
        frames.append(x[:, t] + torch.einsum("bnr,dr->bnd", y, U) + u)
    return torch.stack(frames, 1)


def st_by_windows(
    x: Tensor, D: Tensor, d: Tensor, kernel: Tensor, c: Tensor, U: Tensor, u: Tensor
) -> Tensor:
    half = kernel.shape[1] // 2
    z = F.pad(F.linear(x, D, d), (0, 0, 0, 0, half, half))
    windows = z.unfold(1, kernel.shape[1], 1)  # [B, T, N, R, k]
    return x + F.linear((windows * kernel).sum(-1) + c, U, u)


def st_by_matrix(
    x: Tensor, D: Tensor, d: Tensor, kernel: Tensor, c: Tensor, U: Tensor, u: Tensor
) -> Tensor:
    """The convolution as a matrix over time for each channel."""
    T, (R, k) = x.shape[1], kernel.shape
    mix = kernel.new_zeros(R, T, T)
    for i in range(k):
        o = i - k // 2
        n = T - abs(o)
        if n > 0:
            rows = torch.arange(n, device=x.device) + max(-o, 0)
            mix[:, rows, rows + o] = kernel[:, i : i + 1]
    z = torch.einsum("rts,bsnr->btnr", mix, F.linear(x, D, d))
    return x + F.linear(z + c, U, u)


def st_by_layer(
    x: Tensor, D: Tensor, d: Tensor, kernel: Tensor, c: Tensor, U: Tensor, u: Tensor
) -> Tensor:
    """conv2d: time one way, places the other."""
    z = torch.movedim(F.linear(x, D, d), -1, 1)  # [B, R, T, N]
    z = F.conv2d(z, kernel.reshape(len(d), 1, -1, 1), padding="same", groups=len(d))
    return F.linear(torch.movedim(z, 1, -1) + c, U, u).add(x)


# tip_logits
# -------------------------------------------------------------------------------------------------


def tip_by_masks(
    f: Tensor, texts: Tensor, keys: Tensor, labels: Tensor, alpha: float, beta: float, scale: float
) -> Tensor:
    f = f / torch.linalg.vector_norm(f, dim=-1, keepdim=True)
    near = f @ (keys / keys.norm(dim=1, keepdim=True)).T
    v = torch.exp(beta * near - beta)
    columns = [
        scale * f @ (t / t.norm()) + alpha * (v * (labels == c)).sum(1) for c, t in enumerate(texts)
    ]
    return torch.stack(columns, dim=-1)


def tip_by_scatter(
    f: Tensor, texts: Tensor, keys: Tensor, labels: Tensor, alpha: float, beta: float, scale: float
) -> Tensor:
    unit = [F.normalize(t, p=2.0, dim=1) for t in (f, texts, keys)]
    votes = ((unit[0] @ unit[2].T - 1) * beta).exp()
    out = torch.zeros_like(unit[0] @ unit[1].T)
    out = out.scatter_add(1, labels.expand(len(f), -1), votes)
    return torch.addmm(alpha * out, unit[0], unit[1].T, alpha=scale)


def tip_image_by_image(
    f: Tensor, texts: Tensor, keys: Tensor, labels: Tensor, alpha: float, beta: float, scale: float
) -> Tensor:
    keys, texts = F.normalize(keys, dim=-1), F.normalize(texts, dim=-1)
    values = torch.eye(len(texts), dtype=f.dtype, device=f.device)[labels]
    rows = []
    for image in f:
        image = image / image.square().sum().sqrt()
        votes = torch.exp(-beta * (1 - keys @ image))
        rows.append(scale * (texts @ image) + alpha * (votes @ values))
    return torch.stack(rows)


# vqt_attention
# -------------------------------------------------------------------------------------------------


def vqt_by_einsum(
    x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> tuple[Tensor, Tensor]:
    D = x.shape[-1]
    W = weight.reshape(3, heads, D // heads, D)
    b = torch.zeros_like(weight[:, 0]) if bias is None else bias
    b = b.reshape(3, heads, 1, D // heads)
    q, k, v = torch.einsum("bnd,ched->cbhne", x, W) + b[:, None]
    asked = torch.einsum("td,hed->hte", P, W[0]) + b[0]

    def read(q: Tensor, how: str) -> Tensor:
        scores = torch.einsum(how, q, k) / (D // heads) ** 0.5
        return torch.einsum("bhqk,bhke->bqhe", scores.softmax(-1), v).flatten(2)

    return read(q, "bhqe,bhke->bhqk"), read(asked, "hqe,bhke->bhqk")


def vqt_with_a_mask(
    x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> tuple[Tensor, Tensor]:
    """All tokens together; nobody may look at a prompt."""
    T = len(P)
    every = torch.cat([P.expand(len(x), -1, -1), x], 1)
    qkv = F.linear(every, weight, bias).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    seen = torch.arange(every.shape[1], device=x.device) >= T
    out = F.scaled_dot_product_attention(*qkv, attn_mask=seen.expand(every.shape[1], -1))
    out = out.permute(0, 2, 1, 3).reshape(every.shape)
    return out[:, T:], out[:, :T]


def vqt_twice(
    x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> list[Tensor]:
    """Two calls of attention."""
    parts = weight.chunk(3), (None,) * 3 if bias is None else bias.chunk(3)
    q, k, v = (F.linear(x, *pair) for pair in zip(*parts, strict=True))
    own = F.linear(P, parts[0][0], parts[1][0]).unsqueeze(0).repeat(len(x), 1, 1)
    found = []
    for asks in (q, own):
        cut = [t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in (asks, k, v)]
        weights = torch.softmax(cut[0] @ cut[1].mT / math.sqrt(cut[0].shape[-1]), dim=-1)
        found.append((weights @ cut[2]).transpose(1, 2).reshape(asks.shape))
    return found


# kept_bytes
# -------------------------------------------------------------------------------------------------


def kept_as_storages(call: Any, own: Any) -> int:
    """Storages by their own address, and sizes by NumPy."""
    storages: dict[int, Any] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage()._cdata] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = call()
    del out
    mine = {t.untyped_storage()._cdata for t in own}
    return np.sum([s.nbytes() for place, s in storages.items() if place not in mine], dtype=int)


def kept_as_they_come(call: Any, own: Any) -> int:
    seen = {t.untyped_storage().data_ptr() for t in own}
    total = 0

    def pack(t: Tensor) -> Tensor:
        nonlocal total
        if t.untyped_storage().data_ptr() not in seen:
            seen.add(t.untyped_storage().data_ptr())
            total += len(t.untyped_storage())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = call()
    assert isinstance(loss, Tensor)
    return total


class Counter:
    """Hooks that are methods; what is packed is a pair."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    def pack(self, t: Tensor) -> tuple[str, Tensor]:
        storage = t.untyped_storage()
        self.sizes[storage.data_ptr()] = storage.size() * storage.element_size()
        return "kept", t

    @staticmethod
    def unpack(pair: tuple[str, Tensor]) -> Tensor:
        return pair[1]


def kept_by_a_counter(call: Any, own: Any) -> int:
    counter = Counter()
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, counter.unpack):
        call()
    for t in own:
        counter.sizes.pop(t.untyped_storage().data_ptr(), 0)
    return int(sum(counter.sizes.values()))


RIGHT: dict[str, list[Any]] = {
    "bottleneck": [bottleneck_of_parts, bottleneck_as_a_dict, bottleneck_in_place],
    "half_block": [half_by_match, half_by_functions, half_in_place],
    "repadapter_merge": [rep_by_einsum, rep_block_by_block, rep_as_one_map],
    "ladder": [ladder_in_two_passes, ladder_through_inference, ladder_recursive],
    "st_adapter": [st_frame_by_frame, st_by_windows, st_by_matrix, st_by_layer],
    "tip_logits": [tip_by_masks, tip_by_scatter, tip_image_by_image],
    "vqt_attention": [vqt_by_einsum, vqt_with_a_mask, vqt_twice],
    "kept_bytes": [kept_as_storages, kept_as_they_come, kept_by_a_counter],
}
