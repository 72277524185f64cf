"""DeiT's distillation token: the teacher speaks to a token of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks
from vtlite.backbones.vit import VisionTransformer
from vtlite.method import Backbone
from vtlite.methods.remapping.distillation.teaching import (
    Distillation,
    Student,
    answers_of,
    expect_classes,
)
from vtlite.ops.kd_loss import kd_loss
from vtlite.storage import VTError
from vtlite.task import Task


class TwoTokens(Student):
    """A ViT with a class token and a distillation token, and a head on each: images -> the mean of
    both answers."""

    def __init__(self, backbone: VisionTransformer, task: Task, source: Backbone) -> None:
        heads = nn.ModuleList([task.head(backbone), task.head(backbone)])
        super().__init__(backbone, heads, task, source)

    def features(self, inputs: Tensor) -> Tensor:
        """Both tokens [B, 2, D]."""
        return self.backbone.forward_features(inputs.to(self.backbone.cls_token.dtype))[:, :2]

    def both(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The answers of the class token and of the distillation token."""
        heads: Any = self.head
        by_class, by_token = self.features(inputs).unbind(1)
        return heads[0](by_class), heads[1](by_token)

    def forward(self, inputs: Tensor) -> Tensor:
        by_class, by_token = self.both(inputs)
        return (by_class + by_token) / 2


def with_token(vit: Any) -> VisionTransformer:
    """A ViT with a distillation token, which starts as the class token. Raises `VTError` for one
    that our own ViT can't be."""
    if not isinstance(vit, VisionTransformer):
        vit = _as_ours(vit)
    if vit.dist_token is None:
        vit.dist_token = nn.Parameter(vit.cls_token.detach().clone())
        here = vit.pos_embed.detach()
        vit.pos_embed = nn.Parameter(torch.cat([here[:, :1], here], 1))
        vit.num_prefix_tokens = 2
        vit.reset_classifier(0)
    if vit.global_pool == "avg":  # the norm behind the mean is now that of the two tokens
        vit.norm, vit.fc_norm, vit.global_pool = vit.fc_norm, nn.Identity(), "token"
    return vit


def _as_ours(vit: Any) -> VisionTransformer:
    """timm's ViT as one of ours."""
    block = attention_blocks(vit, "distillation_token", ("mlp.fc1",), plain=True)[0]
    try:
        gain = getattr(block.ls1, "gamma", None)
        with torch.random.fork_rng(devices=[]):  # all that it draws is replaced
            ours = VisionTransformer(
                vit.patch_embed.img_size[0],
                vit.patch_embed.patch_size[0],
                vit.patch_embed.proj.in_channels,
                global_pool="avg" if vit.global_pool == "avg" else "token",
                embed_dim=vit.embed_dim,
                depth=len(vit.blocks),
                num_heads=block.attn.num_heads,
                mlp_ratio=block.mlp.fc1.out_features / vit.embed_dim,
                qkv_bias=block.attn.qkv.bias is not None,
                init_values=None if gain is None else 1.0,
                distilled=getattr(vit, "dist_token", None) is not None,
                norm_eps=block.norm1.eps,
            )
        ours.load_state_dict(vit.state_dict())
    except (AttributeError, RuntimeError, TypeError) as error:
        raise VTError(
            "distillation_token: expected a ViT with the usual blocks, found "
            f"{type(vit).__name__} with others; distil it with kd"
        ) from error
    return ours


@dataclass
class DistillationToken(Distillation):
    """Give a student ViT a second token, whose head learns the teacher's label while that of the
    class token learns the true one.

        loss = (1 - weight) CE(z_class, y) + weight CE(z_token, argmax z_t),   answer = (z_class + z_token) / 2

    With soft=True the second term is T^2 KL(softmax(z_t / T) || softmax(z_token / T)). Touvron et
    al., "Training data-efficient image transformers & distillation through attention", ICML 2021,
    arXiv 2012.12877; github.com/facebookresearch/deit (hard labels, weight 1/2). Half of ViT-B/16:
    43,272,960 parameters, a token and a position more than a student without, and a second head. The
    token starts as the class token with its position, where DeiT's, trained from scratch, starts
    from random values. The paper's teacher is a convolutional network.
    """

    unmergeable = "its two tokens have a head each, which are no part of the backbone"

    weight: float = 0.5
    soft: bool = False  # the teacher's answer in place of its label
    temperature: float = 3.0  # T, of soft answers

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(0 <= self.weight <= 1, "weight", "in [0, 1]")
        self.expect(self.temperature > 0, "temperature", "above 0")

    def network(self, small: Backbone, task: Task, source: Backbone) -> Student:
        expect_classes("distillation_token", task)
        if not task.is_classifier:
            raise VTError(
                "distillation_token: expected a classification of images, found a "
                f"{type(task).__name__}; use kd"
            )
        attention_blocks(small, "distillation_token", plain=True)
        return TwoTokens(with_token(small).requires_grad_(True), task, source)

    def loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        by_class, by_token = model.network.both(inputs)
        if model.network.teacher is None:  # before `fit`: only the labels speak, to both
            return (model.task.loss(by_class, targets) + model.task.loss(by_token, targets)) / 2
        teacher = answers_of(model, inputs)
        if self.soft:
            by_teacher = kd_loss(by_token, teacher, self.temperature)
        else:
            by_teacher = F.cross_entropy(by_token, teacher.argmax(1))
        return (1 - self.weight) * model.task.loss(by_class, targets) + self.weight * by_teacher
