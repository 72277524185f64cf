"""Inputs that are code: networks in small, and blocks that come one by one. An answer runs them; it
runs nothing else of this package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.checks.base import expect, randn


class _Toy(nn.Module):
    """A backbone in small: names like a ViT's, one buffer, dropout and a batch norm, so that train
    and eval mode differ."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []  # the batches that came
        self.graph = False  # whether one came with a graph
        self.cls_token = nn.Parameter(torch.ones(5))
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, 5, 2, 2), "norm": nn.LayerNorm(5), "head": nn.Linear(5, 5)}
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.Linear(5, 5)) for _ in range(11)
        )
        tied = self.blocks.get_submodule("1.0").get_parameter("weight")
        self.blocks.get_submodule("1.2").register_parameter("weight", tied)
        self.blocks_1 = nn.Linear(5, 5)
        self.overhead = nn.Linear(5, 3)
        self.norm_pre = nn.LayerNorm(5)
        self.pre_norm = nn.LayerNorm(5)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        x = self.patch_embed["proj"](images).mean(dim=(2, 3)) + self.cls_token
        x = self.pre_norm(self.patch_embed["head"](self.patch_embed["norm"](x)))
        for block in self.blocks:
            x = x + block(x)
        x = self.norm(x)
        self.graph |= x.requires_grad
        return x


def toy_backbone(seed: int = 0) -> _Toy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        toy = _Toy()
        for parameter in toy.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        toy.norm.running_mean = torch.randn(5)
    return toy


class _Biases(nn.Module):
    """Everything that looks like a bias and is none, and biases of all kinds of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 4, 2)
        self.relative_position_bias_table = nn.Parameter(torch.ones(5, 2))
        self.blocks = nn.ModuleList(self.block() for _ in range(2))
        self.bias_gate = nn.Linear(4, 3)
        self.gates = nn.ModuleDict(
            {"bias": nn.Linear(3, 3), "bias_gate": nn.Linear(3, 2), "bias_norm": nn.LayerNorm(2)}
        )
        self.tied = nn.Linear(3, 3)
        self.tied.register_parameter("bias", self.gates.get_parameter("bias.bias"))
        self.norm = nn.BatchNorm1d(4)
        self.alpha = nn.Parameter(torch.ones(3))
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.head = nn.Linear(4, 6)
        self.last = nn.Linear(6, 2, bias=False)

    @staticmethod
    def block() -> nn.Module:
        block = nn.ModuleDict(
            {"norm1": nn.LayerNorm(4), "qkv": nn.Linear(4, 12), "proj": nn.Linear(4, 4, bias=False)}
        )
        block.register_parameter("position_bias", nn.Parameter(torch.ones(7)))
        return block


def strided(t: Tensor) -> Tensor:
    """The same values, cut out of larger memory, so that no two dimensions lie in a row there."""
    if t.ndim == 0:
        return t.clone()
    wide = t.new_zeros([*(n + 1 for n in t.shape[:-1]), 2 * t.shape[-1] + 1])
    cut = wide[tuple(slice(1, None) for _ in t.shape[:-1])][..., 1::2]
    return cut.copy_(t)


class Blocks:
    """Scores [..., R, S] and values [..., S, e] in blocks, once. What was handed out is gone when
    the next block comes."""

    def __init__(
        self, scores: Tensor, values: Tensor, sizes: tuple[int, ...], cut: bool = False
    ) -> None:
        self.cut = cut  # whether the blocks lie apart in larger memory
        self.scores, self.values, self.sizes, self.seen, self.asked, self.written = (
            scores,
            values,
            sizes,
            0,
            0,
            False,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked += 1
        expect(
            self.asked == 1,
            "expected one pass over the blocks, found a second",
            "you go through the blocks twice, once for the maximum; "
            "carry the maximum along, and correct what you have when it rises",
        )
        return self.generate()

    def generate(self) -> Iterator[tuple[Tensor, Tensor]]:
        for s, v in zip(
            self.scores.split(self.sizes, -1), self.values.split(self.sizes, -2), strict=True
        ):
            handed = (strided(s), strided(v)) if self.cut else (s.clone(), v.clone())
            self.seen += 1
            yield handed
            self.written |= not (torch.equal(handed[0], s) and torch.equal(handed[1], v))
            for t in handed:
                t.fill_(torch.nan)


class Part:
    """A piece of a network, [B, N, K] -> [B, N, M]: its weight is [M, K], its tokens see the others
    of their image, and it is in the type and on the device of what goes in.

    `seen`: what went in; `graph`: whether what came out had a graph.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.graph = weight, False
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        weight = self.weight.to(x)
        mean = x.mean(1, keepdim=True) @ weight.T
        y = torch.sin(x @ weight.T - 0.5 * mean)
        self.graph |= y.requires_grad
        return y


class Forward:
    """A forward pass of some kind over tokens [B, N, K], without arguments, that counts how often
    it runs; W is [R, K], V is [M, R]."""

    def __init__(self, kind: str, x: Tensor, W: Tensor, V: Tensor) -> None:
        self.run = getattr(self, kind)
        self.x, self.W, self.V, self.calls = x, W, V, 0

    def __call__(self) -> Tensor:
        self.calls += 1
        self.out = self.run()
        return self.out

    def linear(self) -> Tensor:
        return self.x @ self.W.T

    def relu(self) -> Tensor:
        return self.linear().relu() @ self.V.T

    def gelu(self) -> Tensor:
        return nn.functional.gelu(self.linear()) @ self.V.T

    def thirds(self) -> Tensor:
        q, k, v = self.linear().chunk(3, dim=-1)
        return q * k * v

    def piece(self) -> Tensor:
        return self.linear()[:, :1].square()

    def chosen(self) -> Tensor:
        z = self.linear()
        return torch.where(z > 0, z, 2 * z)

    def chain(self) -> Tensor:
        return self.linear().sigmoid().sigmoid().sigmoid()

    def head(self) -> Tensor:
        with torch.no_grad():
            features = self.relu()
        return features @ self.V

    def frozen(self) -> Tensor:
        with torch.no_grad():
            return self.gelu()


def toy_biases() -> nn.Module:
    """A network with biases of all kinds, and names that only look like one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _Biases()


class TextTower:
    """A causal tower in small, embedded texts [C, L, D] -> a feature for each token [C, L, E]: a
    token knows those before it, and where it stands. Its weight is [E, D].

    `seen`: the shapes that came.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        h = x @ self.weight.to(x).T
        places = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)[:, None]
        before = (h * places).cumsum(1) / places.cumsum(0)
        return torch.sin(0.5 * h + 2 * before + 0.1 * places)


class Texts:
    """A text tower with C class names in it: contexts [..., M, D] -> features [..., C, E]. `names`
    are [C, D], `weight` is [E, D].

    `calls`: how often it ran.
    """

    def __init__(self, names: Tensor, weight: Tensor) -> None:
        self.names, self.weight, self.calls = names, weight, 0

    def __call__(self, contexts: Tensor) -> Tensor:
        self.calls += 1
        names, weight = self.names.to(contexts), self.weight.to(contexts)
        places = torch.arange(1, contexts.shape[-2] + 1, device=names.device, dtype=names.dtype)
        mean = (contexts * places[:, None]).sum(-2, keepdim=True) / places.sum()  # [..., 1, D]
        return torch.sin(mean + names) @ weight.T


# seed, images B, tokens N, others beside them T, width D, heads: of all sizes, and one of each alone
BESIDE = (
    (0, 2, 5, 3, 6, 2),
    (1, 1, 4, 1, 4, 4),
    (2, 3, 2, 4, 6, 3),
    (3, 3, 3, 3, 8, 2),
    (4, 2, 1, 2, 3, 1),
)


def tokens_beside(seed: int, B: int, N: int, T: int, D: int, with_bias: bool) -> dict[str, Any]:
    """The tokens x [B, N, D], others P [T, D], and a projection to q, k and v with or without its
    bias."""
    x, P, weight, bias = randn(seed, (B, N, D), (T, D), (3 * D, D), (3 * D,))
    return {"x": x, "P": P, "weight": weight, "bias": bias if with_bias else None}


class CellLoss:
    """A smooth loss of weights (W [n, K], b [n]) and of logits alpha [K], with a target [n], that
    counts how often it is asked. With a `share` of 0 the weights have no part in it."""

    def __init__(self, target: Tensor, share: float = 1.0) -> None:
        self.target, self.share, self.calls = target, share, 0

    def __call__(self, w: Iterable[Tensor], alpha: Tensor) -> Tensor:
        self.calls += 1
        W, b = w
        mixed = torch.sin(W @ alpha.softmax(0) + b) - self.target.to(W)
        return self.share * mixed.square().sum() + 0.3 * torch.sin(alpha + 0.5).square().sum()
