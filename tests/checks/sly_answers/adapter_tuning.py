"""Assignment 04: wrong answers of kinds that no generator makes, each with words that the check's
message must contain: sly ones, and ones that are right for one network or one call."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# bottleneck
# -------------------------------------------------------------------------------------------------


def bottleneck_of_the_package(dim: int, width: int, scale: float) -> nn.Module:
    from vtlite.methods.adapter.bottleneck import Bottleneck

    class Theirs(Bottleneck):
        def forward(self, x: Tensor) -> Tensor:
            return self.bottleneck(x)

    return Theirs(dim, width, "relu", scale)


class _Gated(nn.Module):
    """Gives x until it is told that it trains: the start is no start."""

    def __init__(self, dim: int, width: int, scale: float, how: str) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.scale, self.how, self.calls = scale, how, 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale * self.up(torch.relu(self.down(x)))
        if self.how == "while training" and not self.training:
            return x
        if self.how == "dropout":
            y = F.dropout(y, 0.1, self.training)
        if self.how == "of a batch" and x.ndim > 1:
            return x + y.view(-1, x.shape[-1]).view(x.shape) + 0 * x.view(-1)[0]
        if self.how == "float32":
            y = y.float()
        return x + y


def gated(how: str) -> Any:
    return lambda dim, width, scale: _Gated(dim, width, scale, how)


def bottleneck_as_a_function(dim: int, width: int, scale: float) -> Any:
    module = _Gated(dim, width, scale, "")
    return lambda x: module(x)


# half_block
# -------------------------------------------------------------------------------------------------


def half_token_by_token(
    x: Tensor, norm: Any, mlp: Any, adapter: Any, scale: float, place: str
) -> Tensor:
    """Flattens the batch, and mixes its images."""
    y = half_right(x.reshape(1, -1, x.shape[-1]), norm, mlp, adapter, scale, place)
    return y.reshape(x.shape)


def half_right(x: Tensor, norm: Any, mlp: Any, adapter: Any, scale: float, place: str) -> Tensor:
    n = norm(x)
    if place == "before":
        return x + mlp(n + scale * adapter(n))
    z = mlp(n)
    return x + z + scale * adapter(z if place == "after" else x)


def half_by_the_weights(
    x: Tensor, norm: Any, mlp: Any, adapter: Any, scale: float, place: str
) -> Tensor:
    """Takes the parts apart instead of calling them."""
    return x + torch.sin(torch.sin(x @ norm.weight.T) @ mlp.weight.T)


def half_without_graph(*arguments: Any) -> Tensor:
    return half_right(*arguments).detach().clone().requires_grad_()


# repadapter_merge
# -------------------------------------------------------------------------------------------------


def rep_of_the_package(
    weight: Tensor, bias: Tensor | None, A: Tensor, a: Tensor, B: Tensor, b: Tensor, scale: float
) -> Any:
    from vtlite.methods.adapter.sequential.repadapter import LinearBottleneck

    adapter = LinearBottleneck(len(b), len(a), len(B), scale, 0.0)
    adapter.down.weight.data, adapter.down.bias.data = A, a
    adapter.up.data, adapter.up_bias.data = B, b
    W, c = adapter.as_map()
    return weight @ W, F.linear(c, weight, bias)


def rep_of_two_groups(
    weight: Tensor, bias: Tensor | None, A: Tensor, a: Tensor, B: Tensor, b: Tensor, scale: float
) -> Any:
    """Two groups, always: the paper's."""
    up = torch.block_diag(B[0], B[-1]) if len(B) == 2 else B.transpose(0, 1).reshape(len(b), -1)
    up = F.pad(up, (0, len(a) - up.shape[1])) if up.shape[1] < len(a) else up
    shift = scale * weight @ (up @ a + b)
    return weight + scale * weight @ up @ A, shift if bias is None else bias + shift


def rep_on_the_cpu(
    weight: Tensor, bias: Tensor | None, A: Tensor, a: Tensor, B: Tensor, b: Tensor, scale: float
) -> Any:
    S = torch.eye(len(b)) + scale * torch.block_diag(*B) @ A
    shift = scale * weight @ (torch.block_diag(*B) @ a + b)
    return weight @ S, shift if bias is None else bias + shift


def rep_bias_in_place(
    weight: Tensor, bias: Tensor | None, A: Tensor, a: Tensor, B: Tensor, b: Tensor, scale: float
) -> Any:
    up = torch.block_diag(*B)
    shift = scale * weight @ (up @ a + b)
    return weight + scale * weight @ up @ A, shift if bias is None else bias.add_(shift)


# ladder
# -------------------------------------------------------------------------------------------------


def ladder_by_flags(x: Tensor, trunk: Any, side: Any, reads: Any, gates: Tensor) -> Tensor:
    """Freezes the trunk's weights for good, instead of running it without a graph."""
    h = x.detach()
    for block in trunk:
        block.weight.requires_grad_(False)
    s = h @ reads[0].T
    for i, thin in enumerate(side):
        h, g = trunk[i](h), torch.sigmoid(gates[i] / 0.1)
        s = thin(g * s + (1 - g) * (h @ reads[i + 1].T))
    return s


def ladder_off_for_good(x: Tensor, trunk: Any, side: Any, reads: Any, gates: Tensor) -> Tensor:
    h = [x.detach()]
    torch.set_grad_enabled(False)
    for block in trunk:
        h.append(block(h[-1]))
    s = h[0] @ reads[0].T
    for i, thin in enumerate(side):
        g = torch.sigmoid(gates[i] / 0.1)
        s = thin(g * s + (1 - g) * (h[i + 1] @ reads[i + 1].T))
    return s


def ladder_on_for_good(x: Tensor, trunk: Any, side: Any, reads: Any, gates: Tensor) -> Tensor:
    """Turns gradients on, whatever they were before."""
    h = [x.detach()]
    torch.set_grad_enabled(False)
    for block in trunk:
        h.append(block(h[-1]))
    torch.set_grad_enabled(True)
    s = h[0] @ reads[0].T
    for i, thin in enumerate(side):
        g = torch.sigmoid(gates[i] / 0.1)
        s = thin(g * s + (1 - g) * (h[i + 1] @ reads[i + 1].T))
    return s


_RUNGS: dict[Any, list[Tensor]] = {}


def ladder_remembers(x: Tensor, trunk: Any, side: Any, reads: Any, gates: Tensor) -> Tensor:
    """Keeps the rungs of the first call with such a shape: the trunk is frozen, after all."""
    key = (tuple(x.shape), len(trunk), x.dtype, x.device)
    if key not in _RUNGS:
        _RUNGS[key] = [x.detach()]
        with torch.no_grad():
            for block in trunk:
                _RUNGS[key].append(block(_RUNGS[key][-1]))
    h = _RUNGS[key]
    s = h[0] @ reads[0].T
    for i, thin in enumerate(side):
        g = torch.sigmoid(gates[i] / 0.1)
        s = thin(g * s + (1 - g) * (h[i + 1] @ reads[i + 1].T))
    return s


# st_adapter
# -------------------------------------------------------------------------------------------------


def st_of_three(
    x: Tensor, D: Tensor, d: Tensor, kernel: Tensor, c: Tensor, U: Tensor, u: Tensor
) -> Tensor:
    """Three frames, whatever the kernel."""
    z, half = F.linear(x, D, d), kernel.shape[1] // 2
    total = kernel[:, half] * z + c
    if half:
        total = total + kernel[:, half - 1] * F.pad(z, (0, 0, 0, 0, 1, 0))[:, :-1]
        total = total + kernel[:, half + 1] * F.pad(z, (0, 0, 0, 0, 0, 1))[:, 1:]
    return x + F.linear(total, U, u)


def st_viewed(
    x: Tensor, D: Tensor, d: Tensor, kernel: Tensor, c: Tensor, U: Tensor, u: Tensor
) -> Tensor:
    B, T, N, dim = x.shape
    z = F.linear(x.view(-1, dim), D, d).view(B, T, N, -1).permute(0, 3, 1, 2)[..., None]
    weight = kernel[:, None, :, None, None]
    z = F.conv3d(z, weight, c, padding=(kernel.shape[1] // 2, 0, 0), groups=len(d))
    return x + F.linear(z[..., 0].permute(0, 2, 3, 1), U, u)


def st_squeezed(
    x: Tensor, D: Tensor, d: Tensor, kernel: Tensor, c: Tensor, U: Tensor, u: Tensor
) -> Tensor:
    """Squeezes: a clip of one place, one frame or one channel loses a dimension."""
    z = F.linear(x, D, d).permute(0, 3, 1, 2)[..., None]
    weight = kernel[:, None, :, None, None]
    z = F.conv3d(z, weight, c, padding=(kernel.shape[1] // 2, 0, 0), groups=len(d)).squeeze()
    return x + F.linear(z.permute(0, 2, 3, 1), U, u)


def st_with_an_own_layer(
    x: Tensor, D: Tensor, d: Tensor, kernel: Tensor, c: Tensor, U: Tensor, u: Tensor
) -> Tensor:
    """A layer of its own with copies of the weights, which get no gradient."""
    R, k = kernel.shape
    conv = nn.Conv3d(R, R, (k, 1, 1), padding=(k // 2, 0, 0), groups=R).to(x)
    conv.weight.data, conv.bias.data = kernel[:, None, :, None, None].data, c.data
    z = conv(F.linear(x, D, d).permute(0, 3, 1, 2)[..., None])
    return x + F.linear(z[..., 0].permute(0, 2, 3, 1), U, u)


# tip_logits
# -------------------------------------------------------------------------------------------------


def tip_in_order(
    f: Tensor, texts: Tensor, keys: Tensor, labels: Tensor, alpha: float, beta: float, scale: float
) -> Tensor:
    """Knows each class's first image only."""
    f, texts, keys = (F.normalize(t, dim=-1) for t in (f, texts, keys))
    votes = torch.exp(-beta * (1 - f @ keys.T))
    out = scale * f @ texts.T
    for c in set(labels.tolist()):
        out[:, c] += alpha * votes[:, int((labels == c).nonzero()[0])]
    return out


def tip_values_of_float32(
    f: Tensor, texts: Tensor, keys: Tensor, labels: Tensor, alpha: float, beta: float, scale: float
) -> Tensor:
    f, texts, keys = (F.normalize(t, dim=-1) for t in (f, texts, keys))
    votes = torch.exp(-beta * (1 - f @ keys.T))
    values = F.one_hot(labels, len(texts)).float()
    return scale * f @ texts.T + alpha * (votes.float() @ values)


_CACHE: dict[Any, Tensor] = {}


def tip_cached(
    f: Tensor, texts: Tensor, keys: Tensor, labels: Tensor, alpha: float, beta: float, scale: float
) -> Tensor:
    """It is called a cache."""
    kept = _CACHE.setdefault((keys.shape, keys.dtype, keys.device), F.normalize(keys, dim=-1))
    f, texts = F.normalize(f, dim=-1), F.normalize(texts, dim=-1)
    values = F.one_hot(labels, len(texts)).to(f.dtype)
    return scale * f @ texts.T + alpha * torch.exp(-beta * (1 - f @ kept.T)) @ values


# vqt_attention
# -------------------------------------------------------------------------------------------------


def vqt_out_of_the_check(x: Tensor, *rest: Any) -> Any:
    for info in inspect.stack():
        if "right" in info.frame.f_locals:
            return info.frame.f_locals["right"]
    return x, x


def vqt_of_one_image(x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Any:
    """What the queries read in the first image is given for all."""
    D = x.shape[-1]
    q, k, v = F.linear(x, weight, bias).chunk(3, -1)
    own = F.linear(P, weight[:D], None if bias is None else bias[:D])
    cut = [t.unflatten(-1, (heads, -1)).transpose(-3, -2) for t in (q, k, v, own)]
    out = F.scaled_dot_product_attention(*cut[:3]).transpose(1, 2).flatten(2)
    read = F.scaled_dot_product_attention(cut[3], cut[1][0], cut[2][0])
    return out, read.transpose(0, 1).flatten(1).expand(len(x), -1, -1)


def vqt_half_detached(x: Tensor, P: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Any:
    """No gradient through keys and values of what is read, though the formula has one."""
    D = x.shape[-1]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cut = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v)]
        return F.scaled_dot_product_attention(*cut).transpose(1, 2).flatten(2)

    q, k, v = F.linear(x, weight, bias).chunk(3, -1)
    own = F.linear(P.detach(), weight[:D], None if bias is None else bias[:D])
    return attend(q, k, v), attend(own.expand(len(x), -1, -1), k, v)


# kept_bytes
# -------------------------------------------------------------------------------------------------


def kept_of_the_package(call: Any, own: Any) -> int:
    from vtlite.accounting import kept_bytes

    return kept_bytes(call, own)


def kept_by_walking(call: Any, own: Any) -> int:
    """Walks the graph for saved results and inputs, and knows no list of them."""
    found: dict[int, int] = {}
    todo = [call().grad_fn]
    while todo:
        node = todo.pop()
        if node is None:
            continue
        for name in ("_saved_self", "_saved_result"):
            t = getattr(node, name, None)
            if isinstance(t, Tensor):
                found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        todo += [other for other, _ in node.next_functions]
    for t in own:
        found.pop(t.untyped_storage().data_ptr(), None)
    return sum(found.values())


def kept_of_what_is_new(call: Any, own: Any) -> int:
    """All memory that the pass makes, kept or not."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found: dict[int, Any] = {}

    class Made(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, list | tuple) else [out]:
                found[t.untyped_storage()._cdata] = t.untyped_storage()
            return out

    with Made():
        call()
    mine = {t.untyped_storage()._cdata for t in own}
    return sum(s.nbytes() for place, s in found.items() if place not in mine)


WRONG: dict[str, dict[str, tuple[Any, str]]] = {
    "bottleneck": {
        "the package's block": (bottleneck_of_the_package, "of your own"),
        "does nothing in eval mode": (gated("while training"), "in eval mode"),
        "dropout": (gated("dropout"), "expected"),
        "view": (gated("of a batch"), "view"),
        "float32": (gated("float32"), "type"),
        "a function": (bottleneck_as_a_function, "expected a module"),
    },
    "half_block": {
        "one long image": (half_token_by_token, "expected"),
        "takes the parts apart": (half_by_the_weights, "expected"),
        "a graph of its own": (half_without_graph, "no gradient reaches|gradient of"),
    },
    "repadapter_merge": {
        "the package's map": (rep_of_the_package, "of your own"),
        "two groups": (rep_of_two_groups, "expected"),
        "made on the CPU": (rep_on_the_cpu, "device|meta|type"),
        "bias in place": (rep_bias_in_place, "stay as|wrote into"),
    },
    "ladder": {
        "freezes the trunk": (ladder_by_flags, "not yours"),
        "gradients off for good": (ladder_off_for_good, "grad mode|no gradient"),
        "gradients on for good": (ladder_on_for_good, "grad mode|mode"),
        "remembers rungs": (ladder_remembers, "expected"),
    },
    "st_adapter": {
        "three frames": (st_of_three, "expected"),
        "view": (st_viewed, "view"),
        "squeeze": (st_squeezed, "expected"),
        "copies of the weights": (st_with_an_own_layer, "no gradient reaches kernel"),
    },
    "tip_logits": {
        "the first image of a class": (tip_in_order, "expected"),
        "values of float32": (tip_values_of_float32, "type"),
        "keys of the first call": (tip_cached, "expected"),
    },
    "vqt_attention": {
        "reads the check": (vqt_out_of_the_check, "look into the check|of your own"),
        "one image for all": (vqt_of_one_image, "expected"),
        "P detached": (vqt_half_detached, "no gradient reaches P"),
    },
    "kept_bytes": {
        "the package counts": (kept_of_the_package, "of your own"),
        "walks the graph": (kept_by_walking, "expected"),
        "all that is made": (kept_of_what_is_new, "expected"),
    },
}
