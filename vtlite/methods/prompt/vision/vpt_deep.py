"""VPT-deep: learned tokens beside the image's own, fresh ones in every block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks
from vtlite.methods.base import Backbone, Method, method


class PromptedBlock(nn.Module):
    """A frozen block that sees P extra tokens after the class token: [B, N, D] -> [B, N, D].

    The prompts' own outputs are dropped at the end of the block, as the next one brings its own: the same function as the paper's
    replacing them there, with the sequence outside the block unchanged, so that pooling and heads need not know of prompts.
    """

    def __init__(self, block: nn.Module, prompts: Tensor, prefix: int, dropout: float) -> None:
        super().__init__()
        self.block, self.prefix, self.dropout = block, prefix, dropout
        self.prompts = nn.Parameter(prompts)  # [P, D]

    def forward(self, x: Tensor) -> Tensor:
        prompts = F.dropout(self.prompts, self.dropout, self.training).expand(len(x), -1, -1)
        x = torch.cat([x[:, : self.prefix], prompts, x[:, self.prefix :]], dim=1)  # [B, N + P, D]
        x = self.block(x)
        return torch.cat([x[:, : self.prefix], x[:, self.prefix + prompts.shape[1] :]], dim=1)


@method("prompt/vision/vpt_deep")
@dataclass
class VPTDeep(Method):
    """Give every block its own learned tokens, and let the frozen attention read them.

        [x_cls, _, x_patches] <- block_i([x_cls, P_i, x_patches]),   P_i [num_prompts, D]

    Prompts are drawn from U(-v, v), v = sqrt(6 / (channels * patch^2 + D)), and get no position. Jia et al., "Visual Prompt Tuning",
    ECCV 2022, arXiv 2203.12119; github.com/KMnP/vpt. On ViT-B/16: 460,800 parameters with 50 prompts. The paper searches SGD learning
    rates up to 50 and gives the head a bias of -4.6; here AdamW and a plain head are used, as in most later work.
    """

    identity = "random prompts take part in every softmax from the first step"
    unmergeable = "its prompts are extra tokens, which no weight of the backbone can stand for"

    num_prompts: int = 8  # tokens added per block; attention cost grows with them
    dropout: float = 0.0  # on the prompts, in training

    def __post_init__(self) -> None:
        self.expect(isinstance(self.num_prompts, int) and self.num_prompts >= 1, "num_prompts", "an integer of at least 1")
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def attach(self, backbone: Backbone) -> None:
        blocks = attention_blocks(backbone, "vpt_deep", plain=True)
        patches = backbone.patch_embed.proj.weight  # [D, C, patch, patch]
        bound = math.sqrt(6 / (patches[0].numel() + backbone.embed_dim))
        for i, block in enumerate(blocks):
            prompts = torch.empty(self.num_prompts, backbone.embed_dim).uniform_(-bound, bound)
            backbone.blocks[i] = PromptedBlock(block, prompts, backbone.num_prefix_tokens, self.dropout)
