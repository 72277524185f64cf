"""Drawing: every shape looks like its name and lies where it was asked to, and one generator
decides everything."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from vtlite.data import draw


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def shape(
    name: str,
    x: float = 0.0,
    y: float = 0.0,
    radius: float = 0.8,
    angle: float = 0.0,
    size: int = 64,
) -> Tensor:
    """Coverage of one shape [size, size]."""
    values = (torch.tensor([float(v)]) for v in (x, y, radius, angle))
    return draw.shape_coverage(torch.tensor([draw.SHAPES.index(name)]), *values, size)[0, 0]


def centre(coverage: Tensor) -> tuple[float, float]:
    """Centre of mass (x, y) in [-1, 1]."""
    axis = (torch.arange(len(coverage)) + 0.5) * 2 / len(coverage) - 1
    return float((coverage.sum(0) * axis).sum() / coverage.sum()), float(
        (coverage.sum(1) * axis).sum() / coverage.sum()
    )


def dot(count: int = 1, size: int = 32) -> Tensor:
    """Red RGBA discs in the middle, for `place`."""
    alpha = shape("disc", radius=0.5, size=size).expand(count, 1, -1, -1)
    return torch.cat([torch.ones_like(alpha), torch.zeros(count, 2, size, size), alpha], 1) * (
        alpha > 0
    )


GREY = torch.rand(6, 1, 32, 32, generator=Generator().manual_seed(9))
RANDOM: dict[str, Callable[[Generator], Tensor]] = {
    "uniform": lambda g: draw.uniform((50,), -2, 3, g),
    "backgrounds": lambda g: draw.backgrounds(6, 32, g),
    "place": lambda g: draw.place(dot(6), g),
    "tinted": lambda g: draw.tinted(GREY, g),
    "inks": lambda g: draw.inks(GREY, g),
}


@pytest.mark.parametrize("name", RANDOM)
def test_the_generator_decides_everything(name: str) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (RANDOM[name](seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", list(RANDOM)[1:])
def test_pictures_stay_between_zero_and_one_and_differ_within_a_batch(name: str) -> None:
    pictures = RANDOM[name](seeded())
    assert 0 <= pictures.min() < pictures.max() <= 1
    assert len({picture.numpy().tobytes() for picture in pictures}) == 6


def test_contrast_shrinks_towards_grey() -> None:
    full, half, none = (
        draw.backgrounds(20, 32, seeded(), contrast) for contrast in (1.0, 0.5, 0.0)
    )
    assert (none == 0.5).all()
    assert half.min() >= 0.25
    assert half.max() <= 0.75
    assert torch.allclose(half - 0.5, (full - 0.5) / 2, atol=1e-6)


def test_a_background_is_smooth() -> None:
    pictures = draw.backgrounds(20, 32, seeded())
    assert pictures.diff(dim=2).abs().mean() < 0.05
    assert pictures.std((2, 3)).mean() > 0.02  # but not plain
    assert ((pictures == 0) | (pictures == 1)).float().mean() < 0.05  # nor two plain halves


# Shapes
# -------------------------------------------------------------------------------------------------

FILLED = {"disc": math.pi / 4, "square": 1.0, "triangle": 0.5}  # the part of the bounding box


@pytest.mark.parametrize("name", FILLED)
def test_filled_shapes_cover_their_part_of_the_bounding_box(name: str) -> None:
    seen = shape(name) > 0.5
    height, width = seen.any(1).sum(), seen.any(0).sum()
    assert float(seen.sum() / (height * width)) == pytest.approx(FILLED[name], abs=0.05)


def test_a_ring_is_a_disc_with_a_hole() -> None:
    ring = shape("ring")
    assert ring[32, 32] == 0
    assert torch.equal(ring, ring.T)
    outwards = ring[32, 32:]
    assert outwards.max() == 1
    assert outwards[-1] == 0


def test_a_cross_reaches_its_sides_but_not_its_corners() -> None:
    seen = shape("cross") > 0.5
    rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    box = seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    middle = len(box) // 2
    assert box[middle].all()
    assert box[:, middle].all()
    assert not box[[0, 0, -1, -1], [0, -1, 0, -1]].any()


def test_a_triangle_points_up_and_has_equal_sides() -> None:
    triangle = shape("triangle")
    assert torch.allclose(triangle, triangle.flip(1), atol=1e-5)
    widths = (triangle > 0.5).sum(1)
    widths = widths[widths > 0]
    assert (widths.diff() >= 0).all()
    assert widths[-1] > 10 * widths[0]
    assert len(widths) / int(widths[-1]) == pytest.approx(math.sqrt(3) / 2, rel=0.05)


TURNS = {"disc": 0.7, "ring": 0.7, "square": math.pi / 2, "cross": math.pi / 2}


@pytest.mark.parametrize(("name", "angle"), TURNS.items())
def test_shapes_have_the_symmetry_of_their_name(name: str, angle: float) -> None:
    assert (shape(name, angle=angle) - shape(name)).abs().mean() < 0.01
    if name not in ("disc", "ring"):
        assert (shape(name, angle=angle / 2) - shape(name)).abs().mean() > 0.02


@pytest.mark.parametrize("name", draw.SHAPES)
@pytest.mark.parametrize(("x", "y"), [(0.5, -0.5), (-0.4, 0.3)])
def test_a_shape_lies_where_it_was_asked_to(name: str, x: float, y: float) -> None:
    off = (
        0.11 if name == "triangle" else 0.02
    )  # in radii; a triangle's centre of mass is a little below its centre
    assert centre(shape(name, x, y, radius=0.4)) == pytest.approx((x, y), abs=off * 0.4)


def test_a_positive_angle_turns_from_right_to_down() -> None:
    assert torch.allclose(
        shape("triangle", angle=math.pi / 2), shape("triangle").rot90(-1), atol=1e-4
    )


@pytest.mark.parametrize("name", draw.SHAPES)
def test_area_grows_with_the_square_of_the_radius_at_any_size(name: str) -> None:
    assert float(shape(name, radius=0.8).sum() / shape(name, radius=0.4).sum()) == pytest.approx(
        4, rel=0.05
    )
    assert float(shape(name, size=128).mean() / shape(name, size=32).mean()) == pytest.approx(
        1, rel=0.05
    )


def test_a_batch_draws_each_its_own() -> None:
    kinds = torch.arange(len(draw.SHAPES))
    x, y, radius, angle = torch.rand(4, len(kinds), generator=seeded())
    together = draw.shape_coverage(kinds, x, y, radius, angle, 32)
    for i, name in enumerate(draw.SHAPES):
        assert torch.allclose(
            together[i, 0],
            shape(name, x[i].item(), y[i].item(), radius[i].item(), angle[i].item(), 32),
            atol=1e-5,
        )


# Sprites
# -------------------------------------------------------------------------------------------------


def placed(sprites: Tensor, scale: float = 1.0, shift: float = 0.0, rotate: float = 0.0) -> Tensor:
    return draw.place(sprites, seeded(), (scale, scale), shift, rotate)


def test_placing_without_a_change_changes_nothing() -> None:
    assert torch.allclose(placed(dot(2)), dot(2), atol=1e-5)


def test_half_the_scale_is_a_quarter_of_the_area() -> None:
    assert float(placed(dot(), scale=0.5)[:, 3].sum() / dot()[:, 3].sum()) == pytest.approx(
        0.25, rel=0.1
    )


def test_shifts_stay_in_their_range_and_use_it() -> None:
    moved = torch.tensor([centre(sprite[3]) for sprite in placed(dot(100), shift=0.2)])
    assert moved.abs().max() <= 0.21
    assert (moved.amax(0) > 0.1).all()
    assert (moved.amin(0) < -0.1).all()


def test_rotations_keep_the_area_and_the_middle() -> None:
    alpha = shape("cross", radius=0.6, size=32).expand(10, 1, -1, -1)
    turned = placed(alpha.repeat(1, 4, 1, 1), rotate=180)[:, 3]
    assert torch.allclose(turned.sum((1, 2)), alpha.sum((1, 2, 3)), rtol=0.05)
    assert all(centre(picture) == pytest.approx((0, 0), abs=0.03) for picture in turned)
    assert (turned - alpha[:, 0]).abs().mean((1, 2)).max() > 0.05


def test_a_moved_sprite_keeps_its_colour_to_the_edge() -> None:
    sprites = dot(10) * torch.tensor([0.5, 1, 1, 1]).view(4, 1, 1)
    sprites[:, 1] = (sprites[:, 3] == 0).float()  # what is transparent may have any colour
    moved = placed(sprites, scale=0.8, shift=0.2, rotate=15)
    edge = (moved[:, 3] > 0.05) & (moved[:, 3] < 0.95)
    assert edge.any()
    assert torch.allclose(moved[:, 0][edge], torch.tensor(0.5), atol=0.01)  # no fringe
    assert moved[:, 1:3].permute(0, 2, 3, 1)[edge].max() == 0


def test_over_shows_the_sprite_where_it_is_opaque() -> None:
    behind = torch.full((1, 3, 1, 3), 0.2)
    sprite = torch.cat([torch.ones(1, 3, 1, 3), torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)], 1)
    assert torch.allclose(draw.over(sprite, behind)[0, 0, 0], torch.tensor([0.2, 0.6, 1.0]))


def test_black_around_a_photograph_becomes_transparent() -> None:
    grey = torch.zeros(5, 1, 8, 8)
    grey[..., 2:6, 2:6] = 0.8
    sprites = draw.tinted(grey, seeded())
    assert (sprites[:, 3:][grey == 0] == 0).all()
    assert (sprites[:, 3:][grey > 0] == 1).all()


def test_a_tint_keeps_the_order_of_brightness() -> None:
    ramp = torch.linspace(0, 1, 32).expand(5, 1, 32, 32)
    assert (draw.tinted(ramp, seeded())[:, :3].diff(dim=3) > 0).all()


def test_ink_is_one_vivid_colour_with_the_strokes_as_coverage() -> None:
    sprites = draw.inks(GREY, seeded())
    assert torch.equal(sprites[:, 3:], GREY)
    colours = sprites[:, :3, 0, 0]
    assert torch.equal(sprites[:, :3], colours[..., None, None].expand(-1, -1, 32, 32))
    assert (
        torch.minimum(colours, 1 - colours) <= 0.15
    ).all()  # outside what a background of half contrast can show
