"""Classification without training: the class whose words lie nearest to the picture (CLIP, Radford
et al., ICML 2021, arXiv 2103.00020).

    p(class c | picture) = softmax_c(exp(logit_scale) image . text_c)

`python -m vtlite zero-shot PICTURE...` names pictures of one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from vtlite.backbones.base import Pixels
from vtlite.backbones.clip import CLIP
from vtlite.data.folders import as_rgb
from vtlite.storage import VTError

BATCH = 256  # pictures or texts at a time
MAX_PIXELS = 50_000_000  # of a picture of one's own


@torch.no_grad()
def class_features(clip: CLIP, classes: Sequence[str], template: str | Sequence[str]) -> Tensor:
    """One normalised feature per class [C, E]; of several templates, the mean.

    A template says where the name belongs: "a photo of a {}". Raises `VTError` for one that does
    not, and where there is nothing to choose from.
    """
    templates = [template] if isinstance(template, str) else list(template)
    if isinstance(classes, str) or not classes or not templates:
        raise VTError(
            f"expected a list of class names and at least one template, found {classes!r} and "
            f'{templates!r}; name what the pictures may show, e.g. ["cat", "dog"]'
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


@torch.no_grad()
def zero_shot(
    clip: CLIP, images: Tensor, classes: Sequence[str], template: str | Sequence[str] = "{}"
) -> Tensor:
    """Images [B, 3, S, S] -> logits [B, C], one per class name; their softmax are the
    probabilities."""
    texts = class_features(clip, classes, template)
    return torch.cat([clip.logits(clip.encode_image(part), texts) for part in images.split(BATCH)])


class ZeroShot(nn.Module):
    """A two-tower model asked for one of `classes`: images [B, 3, S, S] -> logits [B, C]; nothing
    trains."""

    texts: Tensor

    def __init__(
        self, clip: CLIP, classes: Sequence[str], template: str | Sequence[str] = "{}"
    ) -> None:
        super().__init__()
        self.clip = clip.requires_grad_(False)
        self.register_buffer("texts", class_features(clip, classes, template))

    def forward(self, images: Tensor) -> Tensor:
        return self.clip.logits(self.clip.encode_image(images), self.texts)


def read_picture(path: str | Path, pixels: Pixels) -> Tensor:
    """A picture file of any size and mode -> [3, H, W] as a network expects it.

    The whole picture is kept: it is laid on white where it is transparent, and padded to a square
    with the colour of its upper left corner. Raises `VTError` for what is no picture.
    """
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise VTError(
                    f"expected a picture of at most {MAX_PIXELS:,} pixels, found "
                    f"{opened.width}x{opened.height} in {path}; make it smaller"
                )
            picture = as_rgb(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, VTError):
            raise
        found = "no file" if not Path(path).exists() else "a file that is none, or is damaged"
        raise VTError(
            f"expected a picture such as a PNG, JPEG or WebP, found {found}: {path}; check the path"
        ) from error
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
    images = torch.stack([read_picture(path, clip.visual.pixels) for path in paths])
    best = zero_shot(clip, images, names, template).softmax(-1).topk(min(most, len(names)))
    return [
        [(names[i], p) for i, p in zip(indices, values, strict=True)]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
