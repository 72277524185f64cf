"""Drawing on batches: backgrounds, sprites placed on them, and simple shapes. Everything takes its
randomness from one generator.

Letters: B images in the batch, S side in pixels. Colours and coverage lie in [0, 1], positions in
[-1, 1] with y downwards.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SOFT = 0.5  # contrast of the backgrounds behind vivid ink, so that what is asked for can be seen
SHAPES = ("disc", "square", "triangle", "ring", "cross")


def uniform(shape: tuple[int, ...], low: float, high: float, g: Generator | None) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=g)


def backgrounds(count: int, size: int, g: Generator | None = None, contrast: float = 1.0) -> Tensor:
    """A gradient between two random colours with soft noise of random strength -> [B, 3, S, S];
    `contrast` shrinks all towards mid-grey."""
    first, second = torch.rand(2, count, 3, 1, 1, generator=g)
    angle = uniform((count, 1, 1, 1), 0, 2 * math.pi, g)
    y, x = _grid(size)
    along = (
        angle.cos() * x + angle.sin() * y
    ) / 2.83 + 0.5  # [B, 1, S, S], 0 at one end, 1 at the other
    noise = F.interpolate(torch.randn(count, 3, 5, 5, generator=g), size=size, mode="bilinear")
    pictures = (first.lerp(second, along) + uniform((count, 1, 1, 1), 0, 0.15, g) * noise).clamp(
        0, 1
    )
    return 0.5 + contrast * (pictures - 0.5)


def busy(count: int, size: int, g: Generator | None = None) -> Tensor:
    """A background with seven half-transparent shapes of random kind and colour on it, some cut by
    the edge -> [B, 3, S, S]."""
    pictures = backgrounds(count, size, g)
    for _ in range(7):
        x, y = uniform((2, count), -1, 1, g)
        kind = torch.randint(len(SHAPES), (count,), generator=g)
        radius, angle = uniform((count,), 0.1, 0.5, g), uniform((count,), 0, 6.28, g)
        cover = shape_coverage(kind, x, y, radius, angle, size)
        colour = torch.rand(count, 3, 1, 1, generator=g).expand(-1, -1, size, size)
        pictures = over(torch.cat([colour, 0.6 * cover], 1), pictures)
    return pictures


PATTERNS = ("plain", "stripes", "checks", "dots")


def patterns(kind: Tensor, size: int, g: Generator | None = None) -> Tensor:
    """A background of two colours in one of PATTERNS, kind [B], anywhere -> [B, 3, S, S]."""
    count = len(kind)
    first = uniform((count, 3, 1, 1), 0.1, 0.9, g)
    second = (first + 0.25 + 0.5 * torch.rand(count, 3, 1, 1, generator=g)) % 1
    y, x = _grid(size)
    offset_y, offset_x = uniform((2, count, 1, 1, 1), 0, 2 * math.pi, g)
    waves = 4 * math.pi  # four periods a picture
    u, v = (waves * x + offset_x).sin(), (waves * y + offset_y).sin()  # [B, 1, S, S]
    zero = torch.zeros(count, 1, size, size)
    amounts = [zero, u.expand_as(zero), u * v, (u + v) - 0.8]
    amount = torch.stack(amounts).gather(0, kind.view(1, -1, 1, 1, 1).expand(1, -1, 1, size, size))
    return first.lerp(second, (0.5 + 2 * amount[0]).clamp(0, 1) * (kind > 0).view(-1, 1, 1, 1))


def place(
    sprites: Tensor,
    g: Generator | None = None,
    scale: tuple[float, float] = (0.7, 1.1),
    shift: float = 0.2,
    rotate: float = 15.0,
) -> Tensor:
    """Scale, shift (fraction of the half side) and rotate (degrees) each RGBA sprite at random: [B,
    4, S, S] -> [B, 4, S, S]."""
    count = len(sprites)
    factor = 1 / uniform((count,), *scale, g)
    angle = uniform((count,), -rotate, rotate, g) * math.pi / 180
    offset = uniform((count, 2), -shift, shift, g)
    cos, sin = factor * angle.cos(), factor * angle.sin()
    theta = torch.stack(
        [torch.stack([cos, -sin, offset[:, 0]], 1), torch.stack([sin, cos, offset[:, 1]], 1)], 1
    )  # [B, 2, 3]
    return _warped(sprites, theta)


def place_at(sprites: Tensor, x: Tensor, y: Tensor, scale: Tensor, angle: Tensor) -> Tensor:
    """Draw each RGBA sprite around a given point: [B, 4, S, S] -> [B, 4, S, S].

    All others are [B]: the centre in units of the half side, the sprite's side as a fraction of the
    picture's, and the angle in radians.
    """
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = [
        torch.stack([cos, -sin, sin * y - cos * x], 1),
        torch.stack([sin, cos, -sin * x - cos * y], 1),
    ]
    return _warped(sprites, torch.stack(rows, 1))


def _warped(sprites: Tensor, theta: Tensor) -> Tensor:
    """Sprites seen through affine maps [B, 2, 3] from places in the result to places in the
    sprite."""
    premultiplied = torch.cat([sprites[:, :3] * sprites[:, 3:], sprites[:, 3:]], 1)
    moved = F.grid_sample(
        premultiplied,
        F.affine_grid(theta, list(sprites.shape), align_corners=False),
        align_corners=False,
    )
    return torch.cat([moved[:, :3] / moved[:, 3:].clamp(min=1e-3), moved[:, 3:]], 1).clamp(0, 1)


def over(sprites: Tensor, behind: Tensor) -> Tensor:
    """Lay RGBA sprites over RGB pictures: [B, 4, S, S], [B, 3, S, S] -> [B, 3, S, S]."""
    return behind.lerp(sprites[:, :3], sprites[:, 3:])


def tinted(grey: Tensor, g: Generator | None = None) -> Tensor:
    """Grey photographs on black become RGBA sprites of a random colour: [B, 1, S, S] -> [B, 4, S,
    S]."""
    colour = uniform((len(grey), 3, 1, 1), 0.3, 1.0, g)
    return torch.cat([(0.15 + 0.85 * grey) * colour, (grey * 4).clamp(0, 1)], 1)


def inks(grey: Tensor, g: Generator | None = None) -> Tensor:
    """Strokes (1 = ink) become RGBA sprites of one vivid colour each, every channel near 0 or 1:
    [B, 1, S, S] -> [B, 4, S, S]."""
    colour = torch.randint(2, (len(grey), 3, 1, 1), generator=g) * 0.85 + uniform(
        (len(grey), 3, 1, 1), 0, 0.15, g
    )
    return torch.cat([colour.expand(-1, -1, *grey.shape[2:]), grey], 1)


def shape_coverage(
    kind: Tensor, x0: Tensor, y0: Tensor, radius: Tensor, angle: Tensor, size: int
) -> Tensor:
    """Anti-aliased coverage of one shape per image (see SHAPES) -> [B, 1, S, S].

    All arguments but `size` are [B]: kind (index into SHAPES), centre and radius in units of the
    half side, angle in radians.
    """
    kind, x0, y0, radius, angle = (v.view(-1, 1, 1, 1) for v in (kind, x0, y0, radius, angle))
    y, x = _grid(size)
    u = (angle.cos() * (x - x0) + angle.sin() * (y - y0)) / radius  # the shape's own axes, radius 1
    v = (-angle.sin() * (x - x0) + angle.cos() * (y - y0)) / radius
    r, box = (u**2 + v**2).sqrt(), torch.maximum(u.abs(), v.abs())
    distances = torch.stack(  # signed distance to the border of each kind, negative inside
        [
            r - 0.9,
            box - 0.78,
            torch.maximum(v - 0.6, 0.87 * u.abs() - 0.5 * v - 0.45),
            (r - 0.72).abs() - 0.22,
            torch.maximum(box - 0.95, torch.minimum(u.abs(), v.abs()) - 0.3),
        ]
    )  # [5, B, 1, S, S]
    distance = distances.gather(0, kind.expand(1, -1, 1, size, size).long())[0]
    return (0.5 - distance * radius * size / 2).clamp(0, 1)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    return axis.view(1, 1, size, 1), axis.view(1, 1, 1, size)
