"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv
1512.03385), from scratch.

Modules and parameters carry torchvision's names (which are timm's too), so published weights load
without a translation table.

    y = relu(F(x) + shortcut(x))                      # F: two 3x3 convolutions, or a 1x1 - 3x3 - 1x1 bottleneck
    logits = fc(mean over positions of layer4(layer3(layer2(layer1(stem(x))))))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.base import VisionBackbone, check_images
from vtlite.storage import VTError


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """What brings x to the shape of F(x): a strided 1x1 convolution with its norm, or nothing where
    the shapes agree."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, in, h, w] -> [B, width, h / stride, w / stride]."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (self.downsample(x) if self.downsample else x))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution and a shortcut: [B, in, h, w] -> [B, 4 width, h / stride,
    w / stride].

    The 3x3 convolution has the stride, as in torchvision ("ResNet v1.5"); the paper has it in the
    first 1x1.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut(in_channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (self.downsample(x) if self.downsample else x))


class ResNet(VisionBackbone):
    """A ResNet: images [B, in_chans, S, S] of any size -> logits [B, num_classes], or features [B,
    num_features] when num_classes is 0.

    `depths` are the blocks of the four stages, `width` the channels of the first. `small_images`
    replaces the stem's 7x7 convolution and pooling, which would leave little of 32 pixels, by a 3x3
    convolution of stride 2.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 2, 2),
        bottleneck: bool = False,
        width: int = 64,
        in_chans: int = 3,
        num_classes: int = 0,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        if len(depths) != 4 or min(depths) < 1:
            raise VTError(
                "expected depths of four stages with at least one block each, found"
                f" {tuple(depths)}"
            )
        block = Bottleneck if bottleneck else BasicBlock
        self.in_chans = in_chans
        self.conv1 = (
            nn.Conv2d(in_chans, width, 3, 2, 1, bias=False)
            if small_images
            else nn.Conv2d(in_chans, width, 7, 2, 3, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, 1)
        channels = width
        for i, depth in enumerate(depths):
            blocks: list[nn.Module] = []
            for j in range(depth):
                blocks.append(block(channels, width * 2**i, 2 if i and not j else 1))
                channels = width * 2**i * block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.num_features = channels
        self.fc: nn.Module = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def reset_classifier(self, num_classes: int) -> None:
        """Give the backbone a fresh head of `num_classes` outputs (0: none)."""
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.fc

    def stage_names(self) -> list[str]:
        """The four stages."""
        return ["layer1", "layer2", "layer3", "layer4"]

    def feature_maps(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> the last map [B, num_features, h, w]."""
        return self.forward_features(images)

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> the last feature map [B, num_features, h, w]."""
        check_images(images, self.in_chans, None)
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        for i in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{i}")(x)
        return x

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, num_features, h, w] -> logits [B, num_classes], or the pooled features [B,
        num_features] with `pre_logits`."""
        pooled = maps.mean(dim=(2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))
