"""EVP: prompts made of the image's own patches and of its high frequencies, for every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks, patch_weight
from vtlite.backbones.vit import initialise_linear
from vtlite.method import Backbone, Method
from vtlite.methods.prompt.vision.tokens import Around, Given
from vtlite.storage import VTError


def high_frequencies(images: Tensor, share: float) -> Tensor:
    """Images without the lowest frequencies, a square of `share` of all in the middle of the
    spectrum; without signs: [B, C, H, W] -> [B, C, H, W]."""
    wide = images.to(torch.promote_types(images.dtype, torch.float32))  # no transform of bf16
    waves = torch.fft.fftshift(torch.fft.fft2(wide), dim=(-2, -1))
    H, W = images.shape[-2:]
    half, y, x = int((H * W * share) ** 0.5 / 2), H // 2, W // 2
    kept = torch.ones(H, W, dtype=wide.dtype, device=images.device)
    kept[max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
    waves = torch.fft.ifftshift(waves * kept, dim=(-2, -1))
    return torch.fft.ifft2(waves).real.abs().to(images.dtype)


class Explicit(Around):
    """A frozen ViT, and what its blocks make their prompts of: [B, N, r], from the patches before
    their positions and from the high frequencies."""

    def __init__(self, base: Backbone, patch: tuple[int, ...], width: int, share: float) -> None:
        super().__init__(base)
        self.share = share
        self.of_patches = nn.Linear(base.embed_dim, width)
        self.of_waves = nn.Conv2d(self.in_chans, width, (patch[0], patch[1]), (patch[0], patch[1]))

    def prepared(self, images: Tensor) -> Tensor:
        patches = self.base.patch_embed(images).flatten(1, -2)  # [B, N, D]
        waves = self.of_waves(high_frequencies(images, self.share)).flatten(2).mT  # [B, N, r]
        self.given.value = self.of_patches(patches) + waves
        return images


class ExplicitBlock(nn.Module):
    """A frozen block before which a prompt is added to each patch."""

    def __init__(
        self, block: nn.Module, prefix: int, width: int, up: nn.Linear, given: Given
    ) -> None:
        super().__init__()
        self.block, self.prefix, self.given = block, prefix, given
        self.own, self.up = nn.Linear(width, width), up  # `up` is one for all blocks

    def forward(self, x: Tensor, **named: Any) -> Tensor:
        prompts = self.up(F.gelu(self.own(self.given())))  # [B, N, D]
        x = torch.cat([x[:, : self.prefix], x[:, self.prefix :] + prompts], dim=1)
        return self.block(x, **named)


@dataclass
class EVP(Method):
    """Add to every patch, before each block, a prompt made of the patch itself and of what is left
    of the image without its low frequencies.

        x_patches <- x_patches + U gelu(A_i F + a_i) + u,   F = W E + w + conv(|highpass(image)|),   E [N, D] the patches' embeddings, W [r, D], A_i [r, r], U [D, r], r = D / reduction

    U, W and the convolution, over one patch at a time, are shared by all blocks. The high-pass
    zeroes a square of `share` of all frequencies around zero. Tokens without a place get no prompt.
    Linear layers start from N(0, 0.02), the convolution from N(0, 2 / fan-out), biases at zero.
    Liu, Shen, Pun, Cun, "Explicit Visual Prompting for Low-Level Structure Segmentations", CVPR
    2023, arXiv 2303.10883; github.com/NiFangBaAGe/Explicit-Visual-Prompt. On ViT-B/16: 63,312
    parameters, 888,192 with reduction 4. The paper segments with SegFormer (there, each stage has
    prompts of its own) and ViT; its decoder and its sum of cross-entropy and IoU as loss are here
    the head and the loss of the task, of masks or of classes.
    """

    lr = 1e-2
    small = {"reduction": 4}

    starts_elsewhere = "its prompts are different from zero from the first step"
    unmergeable = "its prompts are made of the image, through a GELU"

    reduction: int = 32  # the width over that of the prompts
    share: float = 0.25  # of the frequencies, the lowest, that are taken out

    def __post_init__(self) -> None:
        self.expect(self.reduction >= 1, "reduction", "an integer of at least 1")
        self.expect(0 <= self.share <= 1, "share", "in [0, 1]")

    def attach(self, backbone: Backbone) -> nn.Module:
        blocks = attention_blocks(backbone, "evp", plain=True)
        weight = patch_weight(backbone, "evp")
        if weight.ndim != 4 or "backbone" in dict(backbone.patch_embed.named_children()):
            raise VTError(
                "evp: expected a ViT that makes its tokens of the pixels of one patch each, found "
                f"{type(backbone).__name__}; tune this backbone with vpt_deep or adaptformer"
            )
        dim, prefix = backbone.embed_dim, getattr(backbone, "num_prefix_tokens", 0)
        width = dim // self.reduction
        self.expect(width >= 1, "reduction", f"of at most {dim}, the backbone's width")
        prompted = Explicit(backbone, tuple(weight.shape[2:]), width, self.share)
        up = nn.Linear(width, dim)
        for i, block in enumerate(blocks):
            backbone.blocks[i] = ExplicitBlock(block, prefix, width, up, prompted.given)
            initialise_linear(backbone.blocks[i].own)
        for linear in (prompted.of_patches, up):
            initialise_linear(linear)
        wave = prompted.of_waves
        nn.init.kaiming_normal_(wave.weight, mode="fan_out", nonlinearity="relu")
        assert wave.bias is not None
        nn.init.zeros_(wave.bias)
        return prompted
