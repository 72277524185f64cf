"""PGN: prompts that a small network mixes for each image out of a learned library."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.base import about
from vtlite.backbones.stages import attention_blocks
from vtlite.method import Backbone, Method
from vtlite.methods.prompt.vision.tokens import Around, pass_through


class Norm(nn.BatchNorm2d):
    """Batch norm, which takes its running values where a batch has one value a channel."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            values = self.running_mean, self.running_var, self.weight, self.bias
            return F.batch_norm(x, *values, eps=self.eps)
        return super().forward(x)


class Residual(nn.Module):
    """Two 3x3 convolutions and a skip: [B, in, h, w] -> [B, out, h / stride, w / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = Norm(outputs), Norm(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(z + self.skip(x))


class Generator(nn.Module):
    """A ResNet of ten layers: images [B, C, H, W] -> prompts [B, K, D], each a mean of the
    library's M tokens with weights of its own."""

    def __init__(self, channels: int, dim: int, count: int, tokens: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 16, 3, 2, 1, bias=False)
        self.norm = Norm(16)
        sizes = ((16, 16, 1), (16, 32, 2), (32, 64, 2), (64, 128, 2))
        self.blocks = nn.Sequential(*(Residual(*size) for size in sizes))
        self.weigh = nn.Linear(128, count * tokens)
        self.library = nn.Parameter(0.02 * torch.randn(tokens, dim))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.stem(images))), 3, 2, 1)
        weights = self.weigh(self.blocks(x).mean((2, 3))).unflatten(1, (-1, len(self.library)))
        return weights.softmax(-1) @ self.library  # [B, K, M] [M, D]


class Generated(Around):
    """A frozen ViT, and the prompts that are made of each image."""

    def __init__(self, base: Backbone, generator: Generator, side: int | None) -> None:
        super().__init__(base)
        self.generator, self.side = generator, side

    def prepared(self, images: Tensor) -> Tensor:
        seen = images
        if self.side is not None:
            seen = F.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        self.given.value = self.generator(seen)
        return images


@dataclass
class PGN(Method):
    """Let a small convolutional network look at each image, and mix its prompts out of a library of
    tokens that all images share.

        P(x) = softmax(g(x)) T,   g: image -> [num_prompts, library], T [library, D]

    The prompts enter at the first block and go with the image's tokens to the end, as in
    VPT-shallow. g is a ResNet of ten layers with 16 to 128 channels, trained from random values; T
    starts from N(0, 0.02). Loedeman, Stol, Han, Asano, "Prompt Generation Networks for Input-Space
    Adaptation of Frozen Vision Transformers", BMVC 2024, arXiv 2210.06466;
    github.com/jochemloedeman/PGN. On ViT-B/16: 1,032,304 parameters. The paper keeps CLIP's texts
    as classes, or trains a linear head, as here.
    """

    lr = 1e-2
    small = {"num_prompts": 8, "library": 64}

    starts_elsewhere = "random prompts take part in every softmax from the first step"
    unmergeable = "its prompts are made anew for each image"

    num_prompts: int = 16  # K, tokens added to the sequence
    library: int = 256  # M, tokens that they are mixed of
    side: int | None = None  # of the images that the small network sees; as they are if not given

    def __post_init__(self) -> None:
        self.expect(self.num_prompts >= 1, "num_prompts", "an integer of at least 1")
        self.expect(self.library >= 1, "library", "an integer of at least 1")
        self.expect(self.side is None or self.side >= 1, "side", "an integer of at least 1")

    def attach(self, backbone: Backbone) -> nn.Module:
        attention_blocks(backbone, "pgn", plain=True)  # raises for other networks
        shape = about(backbone).in_chans, backbone.embed_dim, self.num_prompts, self.library
        generator = Generator(*shape)
        generated = Generated(backbone, generator, self.side)
        pass_through(backbone, "pgn", generated.given, self.num_prompts)
        return generated
