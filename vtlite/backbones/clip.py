"""CLIP (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, arXiv 2103.00020), from scratch: an image tower and a text tower whose features meet.

    image = normalise(visual(images) W_image)                  # [B, E]
    text  = normalise(text(tokens) W_text)                     # [C, E]
    logits = exp(logit_scale) image text^T                     # [B, C]

Both towers are made of the same blocks, with timm's names, so a method that attaches to a ViT
attaches to `clip.visual` and to `clip.text`. Letters: B images, C texts, L tokens of a text, D the
width of a tower, E the width where they meet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.base import Pixels, VisionBackbone
from vtlite.backbones.vit import Block
from vtlite.storage import VTError

Tokenizer = Callable[[Sequence[str]], Tensor]


class TextTransformer(nn.Module):
    """The causal text tower: embedded tokens [C, L, D] -> features at the end token [C, D]."""

    def __init__(
        self,
        vocabulary: int,
        context: int = 77,
        embed_dim: int = 512,
        depth: int = 12,
        num_heads: int = 8,
        quick_gelu: bool = False,
    ) -> None:
        super().__init__()
        self.vocabulary, self.context = vocabulary, context
        self.embed_dim, self.num_features, self.num_heads = embed_dim, embed_dim, num_heads
        self.token_embedding = nn.Embedding(vocabulary, embed_dim)
        self.positional_embedding = nn.Parameter(torch.empty(context, embed_dim))
        self.blocks = nn.Sequential(
            *(
                Block(embed_dim, num_heads, norm_eps=1e-5, quick_gelu=quick_gelu, causal=True)
                for _ in range(depth)
            )
        )
        self.ln_final = nn.LayerNorm(embed_dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for name, layer in self.blocks.named_modules():  # the paper's start
            if isinstance(layer, nn.Linear):
                inner = (2 * depth) ** -0.5 if name.endswith(("attn.proj", "mlp.fc2")) else 1.0
                wide = 2**-0.5 if name.endswith("mlp.fc1") else 1.0
                nn.init.normal_(layer.weight, std=embed_dim**-0.5 * inner * wide)
                nn.init.zeros_(layer.bias)

    def forward(self, embedded: Tensor, end: Tensor) -> Tensor:
        """`end` [C] is the position of each text's end token. What stands behind the last of them
        is cut off: no token before it can see it."""
        length = int(end.max()) + 1
        if length > self.context or embedded.shape[1] < length:
            raise VTError(
                f"expected texts of at most {self.context} tokens with their end token, found the "
                f"end at position {length} of {embedded.shape[1]}; shorten the texts or the prompt"
            )
        x = embedded[:, :length] + self.positional_embedding[:length]
        x = self.ln_final(self.blocks(x))
        return x[torch.arange(len(x), device=x.device), end]


class CLIP(nn.Module):
    """Two towers: images [B, 3, S, S] and tokens [C, L] -> normalised features [B, E] and [C, E].

    `visual` is a backbone of features, `text` a `TextTransformer`. `tokenizer` turns texts into
    tokens and may be replaced. A prompt of vectors goes in between `embed` and `encode_embedded`.
    """

    logit_scale_max = math.log(100)  # the paper's bound

    def __init__(
        self,
        visual: Any,
        text: TextTransformer,
        joint_dim: int,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        self.visual, self.text, self.tokenizer = visual, text, tokenizer
        self.visual_projection = nn.Parameter(torch.empty(visual.num_features, joint_dim))
        self.text_projection = nn.Parameter(torch.empty(text.embed_dim, joint_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        for projection in (self.visual_projection, self.text_projection):
            nn.init.normal_(projection, std=len(projection) ** -0.5)

    @property
    def num_heads(self) -> int:
        return self.visual.num_heads

    @property
    def quick_gelu(self) -> bool:
        first: Any = self.text.blocks[0]
        return type(first.mlp.act).__name__ == "QuickGELU"

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> tokens [C, context], on the model's device. Raises `VTError` for a text that is
        too long, and for a model that came without a tokenizer."""
        if self.tokenizer is None:
            raise VTError(
                "expected a tokenizer, found none beside these weights; install open_clip_torch, "
                'or set clip.tokenizer = BPETokenizer("bpe_simple_vocab_16e6.txt.gz")'
            )
        return self.tokenizer(texts).to(self.logit_scale.device)

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [C, L] -> their embeddings [C, L, D], without positions."""
        return self.text.token_embedding(tokens)

    def encode_embedded(self, embedded: Tensor, tokens_or_end: Tensor) -> Tensor:
        """Embeddings [C, L, D] -> normalised features [C, E].

        The second argument says where each text ends: the tokens [C, L] that the embeddings stand
        for, or positions [C].
        """
        end = tokens_or_end.argmax(-1) if tokens_or_end.ndim == 2 else tokens_or_end
        return F.normalize(self.text(embedded, end) @ self.text_projection, dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Tokens [C, L] -> normalised features [C, E]."""
        return self.encode_embedded(self.embed(tokens), tokens)

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> normalised features [B, E]."""
        return F.normalize(self.visual(images) @ self.visual_projection, dim=-1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Normalised features [B, E] and [C, E] -> scaled cosines [B, C]."""
        return self.logit_scale.exp() * images @ texts.T

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Images [B, 3, S, S] and tokens [C, L] -> logits [B, C]."""
        return self.logits(self.encode_image(images), self.encode_text(tokens))


class ImageTower(VisionBackbone):
    """The image tower of a CLIP with its projection, as a backbone: images [B, 3, S, S] -> features
    [B, E] that are not normalised yet."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.visual, self.projection = clip.visual, clip.visual_projection
        self.in_chans, self.input_size = clip.visual.in_chans, clip.visual.input_size
        self.num_features = self.projection.shape[1]

    @property
    def pixels(self) -> Pixels:
        return self.visual.pixels

    def stage_names(self) -> list[str]:
        """The tower's."""
        return [f"visual.{name}" for name in self.visual.stage_names()]

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, E]"""
        return self.visual(images) @ self.projection

    def forward_head(self, features: Tensor, pre_logits: bool = True) -> Tensor:
        return features  # they are pooled already

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_features(images)


# open_clip's names (and OpenAI's) -> ours, for both towers
_NAMES = (
    (r"^visual\.conv1\.", "visual.patch_embed.proj."),
    (r"^visual\.class_embedding$", "visual.cls_token"),
    (r"^visual\.positional_embedding$", "visual.pos_embed"),
    (r"^visual\.ln_pre\.", "visual.norm_pre."),
    (r"^visual\.ln_post\.", "visual.norm."),
    (r"^visual\.proj$", "visual_projection"),
    (r"^(token_embedding\.|positional_embedding$|ln_final\.|transformer\.)", r"text.\1"),
    (r"\.transformer\.resblocks\.", ".blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def is_clip(names: Sequence[str]) -> bool:
    """Whether a file with these names holds a CLIP, ours or a published one."""
    return "text_projection" in names and any(name.startswith("visual.") for name in names)


def with_our_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published CLIP's tensors under our names; ours stay as they are."""
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, ours in _NAMES:
            name = re.sub(theirs, ours, name)
        renamed[name] = tensor
    if "visual.conv1.weight" in tensors:  # ours have a dimension for the batch, as timm's
        renamed["visual.cls_token"] = renamed["visual.cls_token"].view(1, 1, -1)
        renamed["visual.pos_embed"] = renamed["visual.pos_embed"][None]
        # What OpenAI's files have beside the weights.
        for rest in ("input_resolution", "context_length", "vocab_size", "attn_mask"):
            renamed.pop(rest, None)
    return renamed
