"""NOAH: how many prompts, which rank of LoRA and which width of adapter each block gets, searched
in one network that holds them all."""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.method import Backbone, Method, Train, Tuned
from vtlite.methods.prompt.vision.vpt_deep import usual_blocks
from vtlite.ops.prompt_attention import prompt_attention
from vtlite.storage import VTError
from vtlite.task import Task
from vtlite.training import evaluate

Sizes = tuple[tuple[int, ...], ...]  # prompts, ranks, widths, each for all blocks


class SearchedBlock(nn.Module):
    """A frozen block with up to p prompts, LoRA of rank up to r on the fused qkv and an adapter of
    width up to w behind the MLP; `active` says how many of each, the first ones, are at work."""

    chosen: Tensor

    def __init__(self, block: Any, dim: int, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        (p, r, w), D = sizes, dim
        self.block, self.active = block, sizes
        self.register_buffer("chosen", torch.tensor(sizes))  # what the search finds
        if p:
            self.prompts = nn.Parameter(nn.init.xavier_uniform_(torch.empty(p, D)))
        if r:
            A = nn.init.kaiming_uniform_(torch.empty(r, D), a=math.sqrt(5))
            self.lora_A, self.lora_B = nn.Parameter(A), nn.Parameter(torch.zeros(3 * D, r))
        if w:
            self.down, self.up = nn.Linear(D, w), nn.Linear(w, D)
            for layer in (self.down, self.up):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        block, (p, r, w) = self.block, self.active
        x = x + block.ls1(self.attention(block.norm1(x), p, r))
        z = block.ls2(block.mlp(block.norm2(x)))
        return x + (self.adapter(z, w) if w else z)

    def attention(self, x: Tensor, p: int, r: int) -> Tensor:
        """[B, N, D] -> [B, N, D], with the first p prompts as more keys and values."""
        heads = 3, self.block.attn.num_heads, -1
        q, k, v = (t.transpose(1, 2) for t in self.qkv(x, r).unflatten(-1, heads).unbind(2))
        if p:
            prompts = self.qkv(self.block.norm1(self.prompts[:p]), r).unflatten(-1, heads)
            _, pk, pv = (t.transpose(0, 1) for t in prompts.unbind(1))  # [H, p, D / H]
            read = prompt_attention(q, k, v, pk, pv)
        else:
            read = F.scaled_dot_product_attention(q, k, v)
        return self.block.attn.proj(read.transpose(1, 2).flatten(2))

    def qkv(self, x: Tensor, r: int) -> Tensor:
        """[..., D] -> [..., 3 D], with the first r ranks."""
        y = self.block.attn.qkv(x)
        return y + x @ self.lora_A[:r].T @ self.lora_B[:, :r].T if r else y

    def adapter(self, z: Tensor, w: int) -> Tensor:
        """[B, N, D] -> [B, N, D], with the first w hidden units."""
        hidden = F.linear(z, self.down.weight[:w], self.down.bias[:w])
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        return z + F.linear(hidden, self.up.weight[:, :w], self.up.bias)


@dataclass
class NOAH(Method):
    """Train one network that has prompts, LoRA and an adapter in every block, at random sizes in
    each step; search the sizes that do best on validation images within a budget; and train these
    anew.

        x' = x + attention([LN(x); LN(P[:p])]),   x <- x' + Ad(MLP(LN(x'))),   qkv(z) = W z + b + B[:, :r] A[:r] z,   Ad(z) = z + U[:, :w] g(D[:w] z + d[:w]) + u

    g(h) = h sigmoid(1.702 h). Smaller sizes are the first rows of larger ones (entangled weights).
    A kind of module is in the first L/4, L/2, 3L/4 or L blocks, in each with one of the `choices`
    as size. The search keeps the best fifth of a population; half of the next one are mutants (a
    depth anew with probability 0.4, each size with 0.2), half take each kind of module from one of
    two parents. Zhang, Zhou, Liu, "Neural Prompt Search", TPAMI 2024, arXiv 2206.04673;
    github.com/Davidzhangyuanhan/NOAH. On ViT-B/16: 768 numbers a prompt, 3,072 a rank, 1,537 a unit
    of an adapter and 768 for its last bias; 320,330 in the network published for CIFAR-100. The
    published code counts prompts before the first block that are replaced at once, lets old prompts
    stay where a block has none, and mutates depths alone: not here. With `prompts`, `ranks` and
    `widths` given, nothing is searched; after a search they are the settings of the tuned model.
    The common network learns at the same rate as the last one (there: half of it).
    """

    lr = 3e-3
    small = {"budget": 20_000, "population": 20, "generations": 5}

    starts_elsewhere = "its prompts and adapters are random from the first step"
    unmergeable = "its prompts and adapters are no change of a weight"

    budget: int = 640_000  # numbers that may train, without the head
    choices: tuple[int, ...] = (1, 5, 10)  # sizes
    supernet_epochs: int = 20  # of the network that holds all
    population: int = 50  # networks compared in each generation of the search
    generations: int = 20
    prompts: tuple[int, ...] = ()  # tokens of each block; to be searched if not given
    ranks: tuple[int, ...] = ()  # of LoRA in each block
    widths: tuple[int, ...] = ()  # of the adapter in each block

    def __post_init__(self) -> None:
        self.expect(self.budget >= 1, "budget", "an integer of at least 1")
        self.expect(
            len(self.choices) > 0 and min(self.choices) >= 1, "choices", "as sizes of at least 1"
        )
        self.expect(self.supernet_epochs >= 1, "supernet_epochs", "an integer of at least 1")
        self.expect(self.population >= 5, "population", "an integer of at least 5")
        self.expect(self.generations >= 1, "generations", "an integer of at least 1")
        for name in ("prompts", "ranks", "widths"):
            own = getattr(self, name)
            self.expect(len(own) == len(self.prompts), name, "for as many blocks as prompts")
            self.expect(min(own, default=0) >= 0, name, "of at least 0 in each block")

    def attach(self, backbone: Backbone) -> None:
        blocks = usual_blocks(backbone, "noah", "whose attention it changes")
        D, L = backbone.embed_dim, len(blocks)
        most = ((max(self.choices),) * L,) * 3
        sizes = (self.prompts, self.ranks, self.widths) if self.prompts else most
        self.expect(len(sizes[0]) == L, "prompts", f"for each of {L} blocks")
        if not self.prompts:
            least = numbers(smallest(L, self.choices), D)
            self.expect(
                self.budget >= least, "budget", f"of at least {least}, the smallest network"
            )
        for i, (block, own) in enumerate(zip(blocks, zip(*sizes, strict=True), strict=True)):
            backbone.blocks[i] = SearchedBlock(block, D, own)

    def loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        if self.prompts:
            return super().loss(model, inputs, targets)
        blocks: Any = model.network.backbone.blocks
        own = random.Random(int(torch.randint(2**31, ())))
        use(blocks, drawn(own, len(blocks), self.choices))
        try:
            return super().loss(model, inputs, targets)
        finally:
            use(blocks, ((max(self.choices),) * len(blocks),) * 3)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        if not self.prompts:
            if task.val is None:
                raise VTError(
                    "noah: expected validation images, which its search compares networks on, found "
                    "none; give some, or prompts, ranks and widths"
                )
            train(model, task.train, epochs=self.supernet_epochs)
            train.once(model, lambda: self.search(model, task.val))
            self.settle(model, task)
        train(model, task.train)

    def search(self, model: Tuned, val: Any) -> None:
        """Let the best network of an evolution be `chosen` in the blocks."""
        blocks, D = model.backbone.blocks, model.backbone.embed_dim
        L, own = len(blocks), random.Random(int(torch.randint(2**31, ())))
        scores: dict[Sizes, float] = {}

        def legal(make: Any) -> Sizes:
            for _ in range(1000):
                if numbers(sizes := make(), D) <= self.budget:
                    return sizes
            return smallest(L, self.choices)

        def score(sizes: Sizes) -> float:
            if sizes not in scores:
                use(blocks, sizes)
                scores[sizes] = evaluate(model, val)[model.task.metric]
            return scores[sizes]

        def mutant() -> Sizes:
            return mutated(own, own.choice(parents), self.choices)

        def child() -> Sizes:
            both = own.choice(parents), own.choice(parents)
            return tuple(own.choice(kind) for kind in zip(*both, strict=True))

        parents: list[Sizes] = []
        group = [legal(lambda: drawn(own, L, self.choices)) for _ in range(self.population)]
        for _ in range(self.generations):
            best = sorted({*parents, *group}, key=lambda sizes: (-score(sizes), sizes))
            parents = best[: self.population // 5]
            half = self.population // 2
            group = [legal(mutant) for _ in range(half)] + [legal(child) for _ in range(half)]
        found = min({*parents, *group}, key=lambda sizes: (-score(sizes), sizes))
        for block, sizes in zip(blocks, zip(*found, strict=True), strict=True):
            block.chosen.copy_(torch.tensor(sizes))
        use(blocks, ((max(self.choices),) * L,) * 3)

    def settle(self, model: Tuned, task: Task) -> None:
        """Build the model anew with the sizes that were chosen."""
        backbone, like = model.backbone, next(model.parameters())
        prompts, ranks, widths = zip(*(b.chosen.tolist() for b in backbone.blocks), strict=True)
        method = dataclasses.replace(self, prompts=prompts, ranks=ranks, widths=widths)
        for i, block in enumerate(backbone.blocks):
            backbone.blocks[i] = block.block
        model.network = method.build(backbone, task).to(like)
        model.method = method


def numbers(sizes: Sizes, dim: int) -> int:
    """How many numbers train in a network of these sizes."""
    prompts, ranks, widths = sizes
    adapters = sum((2 * dim + 1) * w + dim for w in widths if w)
    return dim * sum(prompts) + 4 * dim * sum(ranks) + adapters


def use(blocks: Any, sizes: Sizes) -> None:
    """Let the modules of these sizes be at work."""
    for block, own in zip(blocks, zip(*sizes, strict=True), strict=True):
        block.active = own


def depths(total: int) -> list[int]:
    """In how many of the first blocks a kind of module may be."""
    return sorted({math.ceil(total * part / 4) for part in (1, 2, 3, 4)})


def smallest(total: int, choices: tuple[int, ...]) -> Sizes:
    """The sizes with the fewest numbers."""
    least, depth = min(choices), depths(total)[0]
    return ((least,) * depth + (0,) * (total - depth),) * 3


def drawn(own: random.Random, total: int, choices: tuple[int, ...]) -> Sizes:
    """Sizes at random."""
    found = []
    for _ in range(3):
        depth = own.choice(depths(total))
        found.append(tuple(own.choice(choices) if i < depth else 0 for i in range(total)))
    return tuple(found)


def mutated(own: random.Random, parent: Sizes, choices: tuple[int, ...]) -> Sizes:
    """Each kind's depth anew with probability 0.4, each size with 0.2."""
    found = []
    for kind in parent:
        depth = own.choice(depths(len(kind))) if own.random() < 0.4 else sum(n > 0 for n in kind)
        kept = [n if n and own.random() >= 0.2 else own.choice(choices) for n in kind]
        found.append(tuple(n if i < depth else 0 for i, n in enumerate(kept)))
    return tuple(found)
