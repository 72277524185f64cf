"""Fixtures that several tests share."""

from __future__ import annotations

import matplotlib as mpl
import pytest
import torch

import vtlite as vt
from vtlite.backbones.clip import CLIP, TextTransformer
from vtlite.backbones.resnet import ResNet
from vtlite.backbones.tokenizer import WordTokenizer
from vtlite.backbones.vit import VisionTransformer

mpl.use("Agg")
torch.set_num_threads(1)  # the tests run side by side


def make_tiny(**overrides: object) -> VisionTransformer:
    """A ViT of two blocks with random values everywhere, so that no bias, norm or scale is neutral
    and hides a mistake."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = vt.create_backbone(
            "vtlite-tiny", **{"embed_dim": 24, "depth": 2, "num_heads": 3, **overrides}
        )
        for parameter in backbone.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return backbone.eval()


def make_tiny_resnet(width: int = 8, **overrides: object) -> ResNet:
    """A ResNet of four blocks with random values everywhere, its statistics among them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = vt.create_backbone(
            "resnet18", **{"width": width, "depths": (1, 1, 1, 1), **overrides}
        )
        for parameter in backbone.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        for name, buffer in backbone.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.3 * torch.rand_like(buffer)
    return backbone.eval()


def make_tiny_clip() -> CLIP:
    """Two towers with random values everywhere; it knows a few words."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = WordTokenizer.of(["an emoji of a photo 0 1 2"])
        text = TextTransformer(len(tokenizer.vocabulary), 16, 24, depth=1, num_heads=3)
        clip = CLIP(make_tiny(), text, 16, tokenizer)
        for parameter in text.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        clip.logit_scale.data.fill_(clip.logit_scale_max)  # that of published weights
    return clip.eval()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test starts from the same random numbers, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def tiny_backbone() -> VisionTransformer:
    """Images 32x32, patches 8x8, width 24, 2 blocks, 3 heads."""
    return make_tiny()
