"""VPT-shallow: learned tokens that enter with the image's own and go with them to the end."""

from __future__ import annotations

from dataclasses import dataclass

from vtlite.backbones.stages import attention_blocks
from vtlite.method import Backbone, Method
from vtlite.methods.prompt.vision.tokens import Prompts, pass_through, random_prompts


@dataclass
class VPTShallow(Method):
    """Put learned tokens beside the image's at the input of the first block; all blocks then treat
    them as tokens like any other.

        [x_cls, Z_1, x_patches] = block_1([x_cls, P, x_patches]),   [x_cls, Z_i, x_patches] <- block_i([x_cls, Z_(i-1), x_patches]),   P [num_prompts, D]

    Prompts are drawn as in VPT-deep, and get no position; the last block's Z is dropped, so that a
    mean over tokens is one over patches. Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv
    2203.12119; github.com/KMnP/vpt. On ViT-B/16: 38,400 parameters with 50 prompts, and the cost of
    50 more tokens in every block, MLP included: other than VPT-deep's, these are needed as queries,
    too.
    """

    lr = 3e-2
    small = {"num_prompts": 8}

    starts_elsewhere = "random prompts take part in every softmax from the first step"
    unmergeable = "its prompts are extra tokens, which no weight of the backbone can stand for"

    num_prompts: int = 8  # tokens added to the sequence
    dropout: float = 0.0  # on the prompts, in training

    def __post_init__(self) -> None:
        self.expect(self.num_prompts >= 1, "num_prompts", "an integer of at least 1")
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def attach(self, backbone: Backbone) -> None:
        attention_blocks(backbone, "vpt_shallow", plain=True)  # raises for other networks
        start = random_prompts(backbone, "vpt_shallow", self.num_prompts)
        pass_through(backbone, "vpt_shallow", Prompts(start, self.dropout), self.num_prompts)
