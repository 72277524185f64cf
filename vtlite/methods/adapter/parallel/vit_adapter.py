"""ViT-Adapter: a pyramid of convolutions beside a plain ViT, with which it exchanges features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.base import VisionBackbone, about
from vtlite.backbones.stages import attention_blocks, stage_names
from vtlite.backbones.vit import initialise_linear
from vtlite.method import Backbone, Method
from vtlite.methods.adapter.places import Places

PIXELS = 16  # of the image that the convolutions see, a side of each of the ViT's patches
Size = tuple[int, ...]  # height and width of a map


def as_tokens(maps: list[Tensor]) -> Tensor:
    """Maps [B, D, h, w] one behind the other, each row by row -> [B, sum of h w, D]."""
    return torch.cat([m.flatten(2) for m in maps], 2).mT


def as_maps(tokens: Tensor, sizes: list[Size]) -> list[Tensor]:
    """The inverse of `as_tokens`."""
    parts = tokens.mT.split([h * w for h, w in sizes], 2)
    return [part.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]


def centres(sizes: list[Size], like: Tensor) -> Tensor:
    """Where the places of maps lie on the image: (x, y) from 0 to 1, [sum of h w, 2]."""
    dtype, points = torch.promote_types(like.dtype, torch.float32), []
    for size in sizes:
        y, x = ((torch.arange(n, device=like.device, dtype=dtype) + 0.5) / n for n in size)
        points.append(torch.stack([x.repeat(len(y)), y.repeat_interleave(len(x))], -1))
    return torch.cat(points)


class DeformableAttention(nn.Module):
    """Attention that looks at a few points, which each query chooses around its own place: queries
    [B, Q, D] and what they read [B, N, D], both the tokens of maps -> [B, Q, D].

    Each of `heads` reads `points` on each of `levels` maps, between the pixels by bilinear
    interpolation and nothing outside, and weighs them.
    """

    def __init__(self, dim: int, levels: int, heads: int, points: int, ratio: float) -> None:
        super().__init__()
        self.shape, width = (heads, levels, points), int(ratio * dim)
        self.offsets = nn.Linear(dim, heads * levels * points * 2)
        self.weights = nn.Linear(dim, heads * levels * points)
        self.value, self.output = nn.Linear(dim, width), nn.Linear(width, dim)

    @torch.no_grad()
    def start(self) -> None:
        """Head by head another direction, point by point a pixel further, all with one weight."""
        heads, levels, points = self.shape
        angle = torch.arange(heads) * (2 * math.pi / heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)  # [heads, 2], on a square
        steps = torch.arange(1, points + 1)[:, None] * direction[:, None, None]
        self.offsets.bias.copy_(steps.expand(heads, levels, points, 2).flatten())
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.xavier_uniform_(self.output.weight)
        for zero in (self.offsets.weight, self.weights.weight, self.weights.bias):
            nn.init.zeros_(zero)

    def forward(self, query: Tensor, places: list[Size], read: Tensor, sizes: list[Size]) -> Tensor:
        heads, levels, points = self.shape
        where, found = centres(places, query)[:, None, None], []
        offsets = self.offsets(query).unflatten(-1, (heads, levels, points, 2))
        weights = self.weights(query).unflatten(-1, (heads, -1)).softmax(-1).transpose(1, 2)
        for level, values in enumerate(as_maps(self.value(read), sizes)):
            pixels = where.new_tensor(sizes[level][::-1])  # width and height of this map
            at = where + offsets[:, :, :, level] / pixels  # [B, Q, heads, points, 2]
            grid = 2 * at.transpose(1, 2).flatten(0, 1) - 1  # from -1 to 1
            values = values.unflatten(1, (heads, -1)).flatten(0, 1).to(grid.dtype)
            # [B heads, d, h, w] read at [B heads, Q, points] -> [B heads, d, Q, points]
            found.append(F.grid_sample(values, grid, align_corners=False))
        mixed = (torch.cat(found, -1) * weights.flatten(0, 1)[:, None]).sum(-1)
        return self.output(mixed.view(len(query), -1, query.shape[1]).mT.to(query.dtype))


class Injector(nn.Module):
    """The ViT's patches read the pyramid: x [B, h w, D] -> x + gamma attention(LN x, LN c)."""

    def __init__(self, dim: int, heads: int, points: int, ratio: float) -> None:
        super().__init__()
        self.query_norm, self.norm = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, 3, heads, points, ratio)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, grid: Size, c: Tensor, sizes: list[Size]) -> Tensor:
        return x + self.gamma * self.attn(self.query_norm(x), [grid], self.norm(c), sizes)


class Extractor(nn.Module):
    """The pyramid reads the ViT's patches, and then its own neighbours: c [B, N, D] -> [B, N,
    D]."""

    def __init__(self, dim: int, heads: int, points: int, ratio: float) -> None:
        super().__init__()
        self.query_norm, self.norm = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = DeformableAttention(dim, 1, heads, points, ratio)
        self.ffn_norm, hidden = nn.LayerNorm(dim, eps=1e-6), dim // 4
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, c: Tensor, sizes: list[Size], x: Tensor, grid: Size) -> Tensor:
        c = c + self.attn(self.query_norm(c), sizes, self.norm(x), [grid])
        z = as_maps(self.fc1(self.ffn_norm(c)), sizes)
        return c + self.fc2(F.gelu(as_tokens([self.conv(m) for m in z])))


class SpatialPrior(nn.Module):
    """A small CNN: images [B, C, 16 h, 16 w] -> four maps of width D, with 4 h x 4 w, 2 h x 2 w, h
    x w and (half of it, rounded up) h / 2 x w / 2 places."""

    def __init__(self, in_chans: int, width: int, dim: int) -> None:
        super().__init__()

        def conv(before: int, after: int, stride: int = 2) -> list[nn.Module]:
            layer = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            return [layer, nn.BatchNorm2d(after), nn.ReLU()]

        p = width
        stem = [*conv(in_chans, p), *conv(p, p, 1), *conv(p, p, 1), nn.MaxPool2d(3, 2, 1)]
        further = (conv(p, 2 * p), conv(2 * p, 4 * p), conv(4 * p, 4 * p))
        self.stages = nn.ModuleList([nn.Sequential(*layers) for layers in (stem, *further)])
        self.project = nn.ModuleList([nn.Conv2d(k * p, dim, 1) for k in (1, 2, 4, 4)])

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, z = [], images
        for stage, project in zip(self.stages, self.project, strict=True):
            z = stage(z)
            maps.append(project(z))
        return maps


class DenseViT(VisionBackbone):
    """A ViT, a pyramid of maps beside it, and their exchange before and after each of a few groups
    of blocks: images [B, C, H, W] -> features [B, D], or a map [B, D, 4 h, 4 w]."""

    def __init__(self, base: Backbone, depth: int, method: ViTAdapter) -> None:
        super().__init__()
        said, dim, groups = about(base), base.embed_dim, range(method.interactions)
        self.base: Backbone = base
        self.in_chans, self.input_size = said.in_chans, said.input_size
        self.num_features, self.places = said.num_features, Places.of(base)
        self.ends = [round(depth * (i + 1) / len(groups)) for i in groups]  # of groups of blocks
        shape = dim, method.heads, method.points, method.ratio
        self.prior = SpatialPrior(self.in_chans, method.prior_width, dim)
        self.level = nn.Parameter(torch.randn(3, dim))  # tells the scales of the pyramid apart
        self.injectors = nn.ModuleList([Injector(*shape) for _ in groups])
        counts = [3 if i == groups[-1] else 1 for i in groups]
        self.extractors: Any = nn.ModuleList(
            [nn.ModuleList([Extractor(*shape) for _ in range(count)]) for count in counts]
        )
        self.up = nn.ConvTranspose2d(dim, dim, 2, 2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(dim) for _ in range(4)])
        for part in (self.prior, self.injectors, self.extractors, self.up):
            initialise_linear(part)
            for m in part.modules():
                if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
                    fan = math.prod(m.kernel_size) * m.out_channels / m.groups
                    nn.init.normal_(m.weight, std=math.sqrt(2 / fan))
                    if m.bias is not None:
                        nn.init.zeros_(m.bias)
                if isinstance(m, DeformableAttention):
                    m.start()

    def stage_names(self) -> list[str]:
        """The base's."""
        return [f"base.{name}" for name in stage_names(self.base)]

    def exchange(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, C, H, W] -> what the ViT makes of the images [B, N, D], and the pyramid: four maps
        from [B, D, 4 h, 4 w] to [B, D, h / 2, w / 2]."""
        prefix = self.places.prefix
        grid: Size = ()
        sizes: list[Size] = []
        fine = c = x = images  # the finest map; the others, and the ViT's patches, as tokens

        def inject(i: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal grid, sizes, fine, c
            tokens, *more = args
            if i == 0:
                grid = self.places.maps(tokens).shape[2:]
                scaled = F.interpolate(images, [PIXELS * n for n in grid], mode="bilinear")
                fine, *coarse = self.prior(scaled)
                sizes = [m.shape[2:] for m in coarse]
                coarse = [m + e[:, None, None] for m, e in zip(coarse, self.level, strict=True)]
                c = as_tokens(coarse)
            patches = self.injectors[i](tokens[:, prefix:], grid, c, sizes)
            return torch.cat([tokens[:, :prefix], patches], 1), *more

        def extract(i: int, tokens: Tensor) -> None:
            nonlocal c, x
            x = tokens[:, prefix:]
            for extractor in self.extractors[i]:
                c = extractor(c, sizes, x, grid)

        blocks = [self.base.get_submodule(name) for name in stage_names(self.base)]
        hooks = []
        for i, (start, end) in enumerate(pairwise((0, *self.ends))):
            before, after = partial(inject, i), partial(extract, i)
            hook = blocks[start].register_forward_pre_hook(lambda _, args, do=before: do(args))
            hooks += [hook, blocks[end - 1].register_forward_hook(lambda *io, do=after: do(io[2]))]
        try:
            tokens = self.base.forward_features(images)
        finally:
            for hook in hooks:
                hook.remove()
        coarse = as_maps(c, sizes)
        (patches,) = as_maps(x, [grid])
        maps = [fine + self.up(coarse[0]), *coarse]
        maps = [m + F.interpolate(patches, m.shape[2:], mode="bilinear") for m in maps]
        return tokens, [norm(m) for norm, m in zip(self.norms, maps, strict=True)]

    def merged(self, maps: list[Tensor]) -> Tensor:
        """The mean of the pyramid's maps, all at the size of the finest [B, D, 4 h, 4 w]."""
        size = maps[0].shape[2:]
        return torch.stack([F.interpolate(m, size, mode="bilinear") for m in maps]).mean(0)

    def feature_maps(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> the mean of the pyramid's maps [B, D, 4 h, 4 w]."""
        return self.merged(self.exchange(images)[1])

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> the ViT's pooled features and the mean of the map, added [B, D]."""
        tokens, maps = self.exchange(images)
        pooled = self.base.forward_head(tokens, pre_logits=True)
        return pooled + self.merged(maps).mean((2, 3))

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        return features  # they are pooled already

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_features(images)


@dataclass
class ViTAdapter(Method):
    """Let a small CNN look at the image beside the ViT and exchange features with it, which gives a
    pyramid of maps for dense prediction.

        x <- x + gamma A(LN(x), LN(c)),   x <- blocks(x),   c <- c + A'(LN(c), LN(x)),   c <- c + G gelu(conv3(F LN(c)))       in each group of blocks
        A(q, f)_i = O sum_m w_im (V f)(p_i + d_im),   d_i = D q_i + d,   w_i = softmax(W q_i + w)

    x are the ViT's patches [h w, dim]; c are three maps with 2, 1 and 1/2 places a patch and side.
    V f is read at a few points around the query's own place p_i, by bilinear interpolation. gamma
    starts at zero, so the ViT's own path starts as it was. The last group has three steps for c. A
    fourth map, with 4 places, stays with the CNN; in the end each map gets the ViT's x, resized,
    and a batch norm. Chen et al., "Vision Transformer Adapter for Dense Predictions", ICLR 2023,
    arXiv 2205.08534; github.com/czczup/ViT-Adapter. On ViT-B/16: 13,680,608 parameters; the paper
    trains the ViT as well (`train_backbone`). Here the CNN sees the image with 16 pixels a patch,
    whatever the ViT does, so that the pyramid has the same scales for small patches. A task that
    asks about places reads the mean of the four maps at the size of the finest, where the paper has
    a decoder; one that asks about images reads the ViT's pooled features plus the mean of that map.
    The class token stays in the ViT. No drop-path, no attention in windows.
    """

    key = "adapter/parallel/vit_adapter"
    small = {"prior_width": 16}

    starts_elsewhere = "its maps come from a CNN that starts anew"
    unmergeable = "its CNN, and what it exchanges with the ViT, stay beside the backbone"

    prior_width: int = 64  # channels of the CNN's first map
    interactions: int = 4  # groups of blocks
    heads: int = 12  # of the deformable attention
    points: int = 4  # that each head reads on each map
    ratio: float = 0.5  # width of what the attention reads, a share of the ViT's
    train_backbone: bool = False  # the ViT trains as well, as in the paper

    def __post_init__(self) -> None:
        for name in ("prior_width", "interactions", "heads", "points"):
            self.expect(getattr(self, name) >= 1, name, "an integer of at least 1")
        self.expect(0 < self.ratio <= 1, "ratio", "above 0 and at most 1")

    def attach(self, backbone: Backbone) -> nn.Module:
        depth = len(attention_blocks(backbone, "vit_adapter", plain=True))
        self.expect(self.interactions <= depth, "interactions", f"of at most {depth}, its blocks")
        width = int(self.ratio * backbone.embed_dim)
        self.expect(
            width > 0 == width % self.heads, "heads", f"that divide {width}, what they read"
        )
        backbone.requires_grad_(self.train_backbone)
        return DenseViT(backbone, depth, self)
