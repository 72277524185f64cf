"""VP: a learned picture, added to every image before the backbone sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.base import about
from vtlite.method import HIGH_LRS, Backbone, Method
from vtlite.methods.prompt.vision.tokens import Around

PLACES = ("padding", "fixed", "random")


class Framed(Around):
    """A frozen backbone that sees images with a learned frame of P pixels on them."""

    def __init__(self, base: Backbone, size: tuple[int, int], width: int) -> None:
        super().__init__(base)
        (H, W), C, P = size, self.in_chans, width
        self.input_size = size
        self.up, self.down = (nn.Parameter(torch.randn(C, P, W)) for _ in range(2))
        self.left, self.right = (nn.Parameter(torch.randn(C, H - 2 * P, P)) for _ in range(2))

    def picture(self) -> Tensor:
        """The frame with zeros inside: [C, H, W]."""
        C, P, W = self.up.shape
        inside = self.left.new_zeros(C, self.left.shape[1], W - 2 * P)
        return torch.cat([self.up, torch.cat([self.left, inside, self.right], 2), self.down], 1)

    def prepared(self, images: Tensor) -> Tensor:
        return images + self.picture()


class Patched(Around):
    """A frozen backbone that sees images with a learned square of P x P pixels on them: in the
    corner, or somewhere else at each step of a training, and in the middle afterwards."""

    def __init__(self, base: Backbone, size: tuple[int, int], width: int, moves: bool) -> None:
        super().__init__(base)
        self.input_size, self.moves = size, moves
        self.patch = nn.Parameter(torch.randn(self.in_chans, width, width))

    def picture(self) -> Tensor:
        """The square at its place, zero elsewhere: [C, H, W]."""
        assert self.input_size is not None
        H, W = (side - self.patch.shape[1] for side in self.input_size)  # what is left of it
        y, x = 0, 0
        if self.moves:
            y, x = H // 2, W // 2
            if self.training:
                y, x = (int(torch.randint(side + 1, ())) for side in (H, W))
        return F.pad(self.patch, (x, W - x, y, H - y))

    def prepared(self, images: Tensor) -> Tensor:
        return images + self.picture()


@dataclass
class VP(Method):
    """Add a learned frame of pixels to every image, and leave the network alone.

        x' = x + d,   d [C, S, S] is learned on a frame `width` pixels wide and zero inside: 4 C width (S - width) numbers

    The frame lies on the image, which keeps its size; x is normalised, x' is not clipped, and d
    starts from N(0, 1). Bahng, Jahanian, Sankaranarayanan, Isola, "Exploring Visual Prompts for
    Adapting Large-Scale Models", arXiv 2203.17274 (2022); github.com/hjbahng/visual_prompting. On
    images of 224 pixels: 69,840 parameters; with place="fixed" or "random" it is a square in the
    corner or anywhere, of 2,700. The paper trains no head: its classes are CLIP's texts, or the
    first of those that a network knows. Here every method has the task's head, so what the frame
    adds to a linear probe is what it gives. The paper draws the place of the random square in tests
    as well; here it lies in the middle then, so that an answer can be had again. It uses SGD with a
    learning rate of 40, here it is AdamW.
    """

    lr = 3e-2
    lrs = HIGH_LRS
    small = {"width": 4}

    starts_elsewhere = "its picture is random from the first step"
    unmergeable = "it changes the image, and no weight of the backbone can stand for that"

    width: int = 30  # of the frame, or of the square, in pixels
    place: str = (
        "padding"  # "padding": a frame; "fixed": a square in the corner; "random": anywhere
    )
    image_size: int | None = None  # side of the images, for a backbone that takes any

    def __post_init__(self) -> None:
        self.expect(self.width >= 1, "width", "an integer of at least 1")
        self.expect(self.place in PLACES, "place", '"padding", "fixed" or "random"')
        self.expect(
            self.image_size is None or self.image_size >= 1, "image_size", "of at least 1 pixel"
        )

    def attach(self, backbone: Backbone) -> nn.Module:
        size = about(backbone).input_size
        if size is None:
            side = self.image_size
            self.expect(
                side is not None, "image_size", "as the side of the images, of which it takes any"
            )
            size = (side, side)
        most = min(size) if self.place != "padding" else (min(size) - 1) // 2
        self.expect(self.width <= most, "width", f"of at most {most}, for images of {min(size)}")
        if self.place == "padding":
            return Framed(backbone, size, self.width)
        return Patched(backbone, size, self.width, self.place == "random")
