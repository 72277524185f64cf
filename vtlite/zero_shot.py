"""Classification without training: the class whose words lie nearest to the picture (CLIP, Radford
et al., ICML 2021, arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vtlite.backbones.clip import CLIP
from vtlite.storage import VTError

BATCH = 256  # pictures, or texts, at a time


@torch.no_grad()
def class_features(clip: CLIP, classes: Sequence[str], template: str | Sequence[str]) -> Tensor:
    """One normalised feature per class [C, E]; with several templates, the mean over them.

    A template has a place for the name: "a photo of a {}".
    """
    templates = [template] if isinstance(template, str) else list(template)
    if not classes or not templates:
        raise VTError(
            f"expected at least one class and one template, found {len(classes)} and "
            f"{len(templates)}; name what the picture may show"
        )
    for text in templates:
        if "{}" not in text:
            raise VTError(f'expected a template with a place for the name such as "an emoji of {{}}"'
                          f", found {text!r}; write {{}} where the name belongs")
    features = torch.zeros(())
    for text in templates:
        tokens = clip.tokenize([text.replace("{}", name) for name in classes])
        features = features + torch.cat([clip.encode_text(part) for part in tokens.split(BATCH)])
    return F.normalize(features, dim=-1)


@torch.no_grad()
def zero_shot(
    clip: CLIP, images: Tensor, classes: Sequence[str], template: str | Sequence[str] = "{}"
) -> Tensor:
    """Images [B, 3, S, S] in [-1, 1] -> logits [B, C], one per class name."""
    texts = class_features(clip, classes, template)
    return torch.cat(
        [clip.logits(clip.encode_image(part), texts) for part in images.split(BATCH)]
    )
