"""Classification without training: the class whose words lie nearest to the picture (CLIP, Radford
et al., ICML 2021, arXiv 2103.00020).

    p(class c | picture) = softmax_c(exp(logit_scale) image . text_c)

`python -m vtlite zero-shot PICTURE...` names pictures of one's own.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vtlite.arguments import whole
from vtlite.backbones.base import Pixels, check_images
from vtlite.backbones.clip import CLIP
from vtlite.data.folders import read_image
from vtlite.storage import VTError, as_path, said

BATCH = 256  # pictures or texts at a time
MAX_PIXELS = 50_000_000  # of a picture of one's own


@torch.no_grad()
def class_features(clip: CLIP, classes: Sequence[str], template: str | Sequence[str]) -> Tensor:
    """One normalised feature per class [C, E]; of several templates, the mean.

    A template says where the name belongs: "a photo of a {}". Raises `VTError` for one that does
    not, and where there is nothing to choose from.
    """
    _expect_clip(clip)
    templates: Any = [template] if isinstance(template, str) else template
    if not (_names(classes) and _names(templates)):
        raise VTError(
            f"expected a list of class names and at least one template, found {said(classes)} and "
            f'{said(templates)}; name what the pictures may show, e.g. ["cat", "dog"]'
        )
    if without := [text for text in templates if "{}" not in text]:
        raise VTError(
            f"expected a template with a place for the name, found {without[0]!r}; write {{}} "
            'where the name belongs, e.g. "a photo of a {}"'
        )
    total = torch.zeros(())
    for text in templates:
        tokens = clip.tokenize([text.replace("{}", name) for name in classes])
        total = total + torch.cat([clip.encode_text(part) for part in tokens.split(BATCH)])
    return F.normalize(total, dim=-1)


def _expect_clip(clip: Any) -> None:
    if not isinstance(clip, CLIP):
        raise VTError(
            f"expected a model of two towers, found {type(clip).__name__}; load one, e.g. "
            'vt.load_backbone("vtlite-clip")'
        )


def _names(texts: Any) -> bool:
    """Whether it is a list of at least one text."""
    listed = isinstance(texts, list | tuple) and len(texts) > 0
    return listed and all(isinstance(text, str) for text in texts)


@torch.no_grad()
def zero_shot(
    clip: CLIP, images: Tensor, classes: Sequence[str], template: str | Sequence[str] = "{}"
) -> Tensor:
    """Images [B, 3, S, S] -> logits [B, C], one per class name; their softmax are the
    probabilities."""
    texts = class_features(clip, classes, template)
    check_images(images, clip.visual.in_chans, clip.visual.input_size)
    if not images.isfinite().all():
        raise VTError("expected finite pixels, found NaN or infinity in an image; clean it first")
    return torch.cat([clip.logits(clip.encode_image(part), texts) for part in images.split(BATCH)])


class ZeroShot(nn.Module):
    """A two-tower model asked for one of `classes`: images [B, 3, S, S] -> logits [B, C]; nothing
    trains."""

    texts: Tensor

    def __init__(
        self, clip: CLIP, classes: Sequence[str], template: str | Sequence[str] = "{}"
    ) -> None:
        super().__init__()
        self.register_buffer("texts", class_features(clip, classes, template))
        self.clip = copy.deepcopy(clip).requires_grad_(False)  # the one passed in stays as it was

    def forward(self, images: Tensor) -> Tensor:
        return self.clip.logits(self.clip.encode_image(images), self.texts)


def read_picture(path: str | Path, pixels: Pixels) -> Tensor:
    """A picture file of any size and mode -> [3, H, W] as a network expects it.

    The whole picture is kept: it is laid on white where it is transparent, and padded to a square
    with the colour of its upper left corner. Raises `VTError` for what is no picture.
    """
    path = as_path(path, "picture")
    if not os.path.isfile(path):
        raise VTError(
            f"expected a picture such as a PNG, JPEG or WebP, found no file: {path}; check the path"
        )
    picture = read_image(path, MAX_PIXELS)
    side = max(picture.size)
    corner: Any = picture.getpixel((0, 0))
    square = Image.new("RGB", (side, side), corner)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    values = np.asarray(square.resize(pixels.size or square.size, Image.Resampling.LANCZOS))
    image = torch.from_numpy(values.copy()).permute(2, 0, 1).float() / 255  # [3, H, W]
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (pixels.mean, pixels.std))
    return (image - mean) / std


def name_pictures(
    clip: CLIP,
    paths: Sequence[str | Path],
    names: Sequence[str],
    template: str | Sequence[str] = "{}",
    most: int = 5,
) -> list[list[tuple[str, float]]]:
    """For each picture file its `most` likely names with their probabilities, best first."""
    if isinstance(paths, str | os.PathLike) or not isinstance(paths, Sequence) or not paths:
        raise VTError(
            f"expected a list of picture files, found {said(paths)}; write [path] for a single one"
        )
    most = whole("most", most)
    _expect_clip(clip)
    images = torch.stack([read_picture(path, clip.visual.pixels) for path in paths])
    best = zero_shot(clip, images, names, template).softmax(-1).topk(min(most, len(names)))
    return [
        [(names[i], p) for i, p in zip(indices, values, strict=True)]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
