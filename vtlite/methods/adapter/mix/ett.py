"""ETT: a prefix for each class, made from what its images show, and offsets in every block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks
from vtlite.data.items import batches
from vtlite.method import Backbone, Method, Predictor, Train, Tuned
from vtlite.methods.adapter.places import passing
from vtlite.methods.prompt.vision.vpt_deep import known
from vtlite.ops.prompt_attention import prompt_attention
from vtlite.storage import VTError
from vtlite.task import Classification, Task

COMPARED, STUDENT, TEACHER, MOMENTUM = 64, 0.1, 0.04, 0.9  # of the regulariser, as released


class Prefix(nn.Module):
    """A vector for each class [C, D], which all blocks share, and their hidden layer: -> [C, D /
    2]."""

    start: Tensor
    centre: Tensor

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(classes, dim))
        self.hidden = nn.Linear(dim, dim // 2)
        self.compare = nn.Linear(dim, COMPARED)
        self.register_buffer("start", self.vectors.detach().clone())  # what was seen in the images
        self.register_buffer("centre", torch.zeros(COMPARED))

    def forward(self) -> Tensor:
        return torch.tanh(self.hidden(self.vectors))

    def teacher(self) -> Tensor:
        """What the vectors looked like at the start [C, 64]; no gradient."""
        with torch.no_grad():
            seen = self.compare(F.normalize(self.start, dim=-1))
            return ((seen - self.centre) / TEACHER).softmax(-1)

    def drift(self) -> Tensor:
        """How far the vectors have moved from it -> scalar, a cross-entropy."""
        now = self.compare(F.normalize(self.vectors, dim=-1)) / STUDENT
        return -(self.teacher() * now.log_softmax(-1)).sum(-1).mean()


class PrefixedBlock(nn.Module):
    """A frozen block whose tokens also see a key and a value for each class, and to whose branches
    an offset is added: [B, N, D] -> [B, N, D]."""

    def __init__(self, block: Any, prefix: Prefix, dim: int) -> None:
        super().__init__()
        self.block, self.prefix = block, prefix
        self.keys_values = nn.Linear(dim // 2, 2 * dim)
        self.offsets = nn.Parameter(torch.zeros(2, dim))

    def forward(self, x: Tensor, **named: Any) -> Tensor:
        block, attn = self.block, self.block.attn
        pairs = self.keys_values(self.prefix()).unflatten(-1, (2, attn.num_heads, -1))
        pk, pv = (t.transpose(0, 1) for t in pairs.unbind(1))  # [H, C, D / H]
        qkv = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, -1))
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))  # [B, H, N, D / H]
        read = prompt_attention(q, k, v, pk, pv).transpose(1, 2).flatten(2)
        x = x + block.ls1(attn.proj(read)) + self.offsets[0]
        return x + block.ls2(block.mlp(block.norm2(x))) + self.offsets[1]


class PrototypeHead(nn.Module):
    """Features [B, D] -> logits [B, C]: ten times the cosine of the transformed feature and a
    prototype of each class."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.transform = nn.Parameter(torch.eye(dim))
        self.prototypes = nn.Parameter(torch.randn(classes, dim))

    def forward(self, f: Tensor) -> Tensor:
        f = F.normalize(f @ self.transform.T, dim=-1)
        return 10 * f @ F.normalize(self.prototypes, dim=-1).T


@dataclass
class ETT(Method):
    """Give the attention of every block a key and a value for each class, made from what the class
    shows, and each of its branches an offset; compare the feature with a prototype of each class.

        x <- x + attention(q, [k_c; k], [v_c; v]) + a,   x <- x + MLP(LN(x)) + b,   (k_c, v_c) of block l = W_l tanh(H p_c),   p_c [dim]
        logits_c = 10 cos(V f, m_c),   loss = cross-entropy + regularisation * drift(p),   V [dim, dim] from the identity

    p_c starts as what the frozen class token attends to: the patch embeddings, averaged by the
    scores of its last attention, over heads and over the class's training images; m_c as the
    class's mean feature. Until `fit` has seen images both are random. drift is the cross-entropy
    between softmaxes of 64 learned features of p_c as it was and as it is. a and b start at zero.
    Xu et al., "Exploring Efficient Few-shot Adaptation for Vision Transformers", TMLR 2022, arXiv
    2301.02419; github.com/chmxu/eTT_TMLR2022. On ViT-B/16: 18,432 parameters in the offsets,
    7,391,616 in the layers that make the prefixes, 49,216 that compare, 589,824 in V, and two
    vectors of 768 a class. The original takes the training images in one batch and their means as
    prototypes in each step, for 40 steps; batches here need not hold every class, so prototypes are
    kept and train. It halves the learning rate of all but V. Without a class token the mean query
    stands for its own.
    """

    key = "adapter/mix/ett"
    lr = 1e-2
    lrs = (3e-4, 1e-3, 3e-3, 1e-2)

    starts_elsewhere = "its prefixes take part in every softmax from the first step"
    unmergeable = "its prefixes stay beside the keys and values of every image"

    regularisation: float = 0.1  # weight of the drift of the prefixes

    def __post_init__(self) -> None:
        self.expect(self.regularisation >= 0, "regularisation", "of at least 0")

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        blocks = attention_blocks(backbone, "ett", plain=True)
        if not all(known(block) for block in blocks):
            raise VTError(
                "ett: expected a ViT with the usual blocks, to whose keys and values it adds, found "
                f"{type(backbone).__name__} with others; tune this backbone with vpt_deep"
            )
        if not (isinstance(task, Classification) and task.is_classifier):
            raise VTError(
                "ett: expected a classification of images, as each class has a prefix, found a "
                f"{type(task).__name__}; choose another method, such as vpt_deep"
            )
        prefix = Prefix(task.num_classes, backbone.embed_dim)
        for i, block in enumerate(blocks):
            backbone.blocks[i] = PrefixedBlock(block, prefix, backbone.embed_dim)
        return Predictor(backbone, PrototypeHead(task.num_classes, backbone.num_features), task)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        train.once(model, lambda: self.look(model, task.train))
        train(model, task.train)

    @torch.no_grad()
    def look(self, model: Tuned, data: Any) -> None:
        """Start the prefixes and prototypes from the images; not where they have learnt already."""
        prefix, head = model.backbone.blocks[0].prefix, model.head
        if torch.equal(prefix.vectors, prefix.start):
            class_means(model, data, prefix.vectors, lambda x: attended(model.backbone, x))
            prefix.start.copy_(prefix.vectors)
            class_means(model, data, head.prototypes, model.features)

    def loss(self, model: Any, inputs: Any, targets: Any) -> Tensor:
        drift = model.backbone.blocks[0].prefix.drift()
        return super().loss(model, inputs, targets) + self.regularisation * drift

    def backward(self, model: Any, inputs: Any, targets: Any) -> Tensor:
        loss = super().backward(model, inputs, targets)
        prefix = model.backbone.blocks[0].prefix
        prefix.centre.lerp_(prefix.teacher().mean(0), 1 - MOMENTUM)
        return loss


def class_means(model: Tuned, data: Any, into: Tensor, read: Callable[[Tensor], Tensor]) -> None:
    """Write the mean of what is read of each class's images [B, D] into its row [C, D]; a class
    without images keeps its own."""
    total, count = torch.zeros_like(into), into.new_zeros(len(into), 1)
    for images, labels in batches(data, 64):
        labels = model.task.check(labels).to(into.device)
        total.index_add_(0, labels, read(images.to(into)).to(into))
        count.index_add_(0, labels, count.new_ones(len(labels), 1))
    into.copy_(torch.where(count > 0, total / count.clamp(min=1), into))


def attended(backbone: Backbone, images: Tensor) -> Tensor:
    """The embedded patches, averaged as the class token of the frozen network attends to them in
    the last block: [B, 3, S, S] -> [B, D]."""
    *blocks, last = (each.block for each in backbone.blocks)
    x = tokens = passing(backbone, images)[1][0]
    for block in blocks:
        x = block(x)
    attn, before = last.attn, backbone.num_prefix_tokens
    q, k, _ = attn.qkv(last.norm1(x)).unflatten(-1, (3, attn.num_heads, -1)).unbind(2)
    q = q[:, :1] if before else q.mean(1, keepdim=True)  # [B, 1, H, D / H]
    scores = (q * k[:, before:]).sum(-1) * q.shape[-1] ** -0.5  # [B, P, H]
    return torch.einsum("bph,bpd->bd", scores.softmax(1), tokens[:, before:]) / attn.num_heads
