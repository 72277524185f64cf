"""DP-BiTFiT: BitFit that keeps each image's share of the gradient bounded and hidden in noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.base import channel_dim
from vtlite.backbones.stages import sees_images
from vtlite.method import HIGH_LRS, Backbone, Method
from vtlite.storage import VTError


class ShiftPerImage(torch.autograd.Function):
    """y + a shift per image [B, channels] that is zero, and there for its gradient: so y as it is,
    with no pass over it. Channels are the last dimension of y, or number `dim`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, shifts: Tensor, dim: int) -> Tensor:
        ctx.images, ctx.dim = len(shifts), dim
        ctx.mark_dirty(y)  # not a view of y, which a network that writes into it could not have
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        # Swin has several windows per image, one after another.
        of_image = dy.movedim(ctx.dim, -1).reshape(ctx.images, -1, dy.shape[ctx.dim])
        return dy, of_image.sum(1), None


class BiasPerImage(nn.Module):
    """A layer or norm whose bias trains. While `shifts` is set, each image has a shift of its own:
    zeros [B, channels], for their gradients."""

    def __init__(self, layer: nn.Linear | nn.LayerNorm | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.bias.requires_grad = True
        self.shifts: Tensor | None = None

    @property
    def bias(self) -> Tensor:
        return self.layer.get_parameter("bias")

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.shifts is None:
            return y
        return ShiftPerImage.apply(y, self.shifts, channel_dim(self.layer))

    @property
    def weight(self) -> Tensor:
        return self.layer.get_parameter("weight")

    def merged(self) -> nn.Module:
        return self.layer


@dataclass
class DPBitFit(Method):
    """Train the biases on gradients that are clipped for each image and then noised, so that no
    single image can be told from the result.

        g = (sum_i C_i g_i + sigma R z) / B,   z ~ N(0, I),   C_i = R / (|g_i| + 0.01) or min(1, R / |g_i|)

    g_i is the gradient of image i over all that trains: the biases, and the head with its weight.
    Only g reaches the optimiser. Bu, Wang, Zha, Karypis, "Differentially Private Bias-Term
    Fine-tuning of Foundation Models", ICML 2024, arXiv 2210.00036;
    github.com/awslabs/fast-differential-privacy. On ViT-B/16: 102,912 parameters, as BitFit. A bias
    needs no activations for g_i: the gradient of the layer's output, summed over the image's
    tokens, is what autograd gives to a shift per image. What epsilon a `noise_multiplier` buys, and
    what noise an epsilon needs, is told by `epsilon` and `noise_multiplier_for` in
    vtlite/methods/parameter/bias/accountant.py. They assume that every step draws each image with
    the same probability; `fit` shuffles instead, as most published code does. The guarantee covers
    neither the loss that `fit` reports, nor settings chosen on the same images, nor noise whose
    seed is known. The original trains the head's weight in a first phase together with all others,
    here it trains along. Batch norm mixes the images of a batch, so backbones with it are refused.
    """

    lr = 3e-2
    lrs = HIGH_LRS

    noise_multiplier: float = 1.0  # sigma, the spread of the noise in units of max_norm
    max_norm: float = 1.0  # R, the most that one image adds to the sum of gradients
    # "automatic" scales every image's gradient to about R, "abadi" only those above it
    clipping: str = "automatic"

    def __post_init__(self) -> None:
        self.expect(self.noise_multiplier >= 0, "noise_multiplier", "of at least 0")
        self.expect(self.max_norm > 0, "max_norm", "above 0")
        self.expect(self.clipping in ("automatic", "abadi"), "clipping", '"automatic" or "abadi"')

    def attach(self, backbone: Backbone) -> None:
        for name, layer in list(backbone.named_modules()):
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                raise VTError(
                    "dp_bitfit: expected a ViT or Swin without batch norm, which mixes the images"
                    f" of a batch, found {type(backbone).__name__}; choose such a backbone, or"
                    " bitfit without privacy"
                )
            kinds = nn.Linear | nn.LayerNorm | nn.Conv2d
            if isinstance(layer, kinds) and layer.bias is not None and sees_images(name):
                parent, _, last = name.rpartition(".")
                setattr(backbone.get_submodule(parent), last, BiasPerImage(layer))

    def backward(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        layers = [module for module in model.modules() if isinstance(module, BiasPerImage)]
        shifts = [
            layer.bias.new_zeros(len(inputs), len(layer.bias)).requires_grad_() for layer in layers
        ]
        try:
            for layer, shift in zip(layers, shifts, strict=True):
                layer.shifts = shift
            features = model.features(inputs)  # [B, D]
        finally:
            for layer in layers:
                layer.shifts = None
        logits = model.head(features)  # [B, C]
        loss = F.cross_entropy(logits, targets, reduction="sum")
        # [B, channels] each, [B, C]: image i's is in row i
        *by_bias, by_logits = torch.autograd.grad(loss, [*shifts, logits])
        with torch.no_grad():
            # The gradient of the head's weight is by_logits[i] times features[i] for image i, so
            # its norm is a product of two.
            squares = [g.square().sum(dim=1) for g in by_bias]
            squares.append(by_logits.square().sum(dim=1) * (1 + features.square().sum(dim=1)))
            factors = self.clip(torch.stack(squares).sum(dim=0).sqrt())  # [B]
            weight, biases = model.head.weight, [model.head.bias, *(m.bias for m in layers)]
            self.release(weight, (factors[:, None] * by_logits).T @ features, len(inputs))
            for bias, g in zip(biases, [by_logits, *by_bias], strict=True):
                self.release(bias, factors @ g, len(inputs))
        return loss.detach() / len(inputs)

    def clip(self, norms: Tensor) -> Tensor:
        """The factors C_i that bring gradients of these norms to at most max_norm: [B] -> [B]."""
        return (
            self.max_norm / (norms + 0.01)
            if self.clipping == "automatic"
            else (self.max_norm / norms).clamp(max=1)
        )

    def release(self, parameter: Tensor, total: Tensor, count: int) -> None:
        """The private gradient of one parameter from the clipped sum over `count` images; it
        replaces any gradient that was there."""
        parameter.grad = (
            total + self.noise_multiplier * self.max_norm * torch.randn_like(total)
        ) / count
