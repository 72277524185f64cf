"""LPT: prompts that all images share, then groups of prompts picked by key, for long-tailed
classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from vtlite.method import HIGH_LRS, Backbone, Method, Predictor, Train, Tuned
from vtlite.methods.prompt.vision.tokens import Around, Given
from vtlite.methods.prompt.vision.vpt_deep import PromptedBlock, usual_blocks
from vtlite.storage import VTError
from vtlite.task import Classification, Task

SCALE = 20.0  # of the cosines, as logits
NOISE, MARGIN, SMOOTHING = 0.5, 0.1, 0.1
BALANCED, AS_THEY_COME = (0.0, 4.0), (0.5, 8.0)  # how much less the easy ones count


class Cosine(nn.Module):
    """Logits by angle: features [B, D] -> 20 cos [B, C]; and how often each class was seen."""

    counts: Tensor

    def __init__(self, dim: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.weight = nn.Parameter(F.normalize(torch.empty(classes, dim).uniform_(-1, 1)))
        self.register_buffer("counts", torch.ones(classes))

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(F.dropout(x, self.dropout, self.training), dim=-1)
        return SCALE * x @ F.normalize(self.weight, dim=-1).T


def asymmetric_loss(
    logits: Tensor, labels: Tensor, counts: Tensor, gammas: tuple[float, float]
) -> Tensor:
    """Logits 20 z [B, C] and labels [B] -> scalar: rare classes learn with a noisy margin, and what
    is easy counts less.

        z_c <- z_c - 0.5 |e| m_c / max m - 0.1 [c = y],   m_c = log(n_max / n_c),   e ~ N(0, 1/3) in [-1, 1];   p = softmax(20 z)
        loss = - sum_c t_c w_c log p_c,   w_y = (1 - p_y)^gammas[0], w_c = p_c^gammas[1], t smoothed by 0.1
    """
    target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    margins = (counts.max() / counts.clamp(min=1)).log()
    margins = NOISE * margins / margins.max().clamp(min=1e-6)
    noise = (torch.randn_like(logits) / 3).clamp(-1, 1).abs()
    log_p = (logits - SCALE * (noise * margins + MARGIN * target)).log_softmax(-1)
    p = log_p.exp()
    # A root has no slope at zero, where a sure answer is.
    easy = torch.where(target > 0, 1 - p, p).clamp(min=1e-6)
    weights = easy ** torch.where(target > 0, *gammas)
    target = target * (1 - SMOOTHING) + SMOOTHING / logits.shape[1]
    return -(target * weights * log_p).sum(-1).mean()


class SharedBlock(PromptedBlock):
    """A frozen block with prompts for all images; a later one has, at `place` of those picked for
    each image, more of them."""

    def __init__(self, *parts: Any, place: int, given: Given) -> None:
        super().__init__(*parts)
        self.place, self.given = place, given

    def forward(self, x: Tensor, **named: Any) -> Tensor:
        picked = self.given()  # [B, blocks, P, D]
        if picked is None or self.place < 0:
            return super().forward(x, **named)
        prompts = self.seen().expand(len(x), -1, -1)
        return self.concatenated(x, torch.cat([prompts, picked[:, self.place]], 1), named)


class Pooled(Around):
    """A frozen ViT with shared prompts, and a pool of groups of prompts, of which each image gets
    the mean of the `top` whose keys are nearest to its features."""

    def __init__(self, base: Backbone, pool: Tensor, top: int) -> None:
        super().__init__(base)
        self.pool = nn.Parameter(pool)  # [M, blocks, P, D]
        self.keys = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(len(pool), base.num_features), std=0.02)
        )
        self.top, self.phase = top, 0  # 1: without the pool; 2: the shared ones do not learn
        self.matched = Given()  # how near the picked keys were, a mean over the images

    def prepared(self, images: Tensor) -> Tensor:
        if self.phase == 1:
            return images
        with torch.no_grad():  # what is picked can't be learnt from the answer
            query = self.base.forward_head(self.base.forward_features(images), pre_logits=True)
        near, picked = (F.normalize(query, dim=-1) @ F.normalize(self.keys, dim=-1).T).topk(
            self.top
        )
        self.matched.value = near.sum(-1).mean()
        self.given.value = self.pool[picked].mean(1)
        return images


class Balanced:
    """Training items, drawn so that every class is as likely, and `augment`ed as the others."""

    def __init__(self, data: Any, task: Task, augment: Callable[[Tensor], Tensor] | None) -> None:
        self.data, self.augment = data, augment
        labels = task.check(torch.tensor([int(data[i][1]) for i in range(len(data))]))
        self.counts = labels.bincount(minlength=task.num_classes)
        self.places = [(labels == c).nonzero().flatten() for c in labels.unique()]

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Images [count, ...] and labels [count]."""
        classes = torch.randint(len(self.places), (count,)).tolist()
        own = [self.places[c][torch.randint(len(self.places[c]), ())] for c in classes]
        images, labels = default_collate([self.data[int(i)] for i in own])
        return images if self.augment is None else self.augment(images), labels.flatten().long()


@dataclass
class LPT(Method):
    """First learn prompts that all images share; then, with those fixed, a pool of groups of
    prompts from which each image picks by its features, so that rare classes find what suits them.

        block i:  [x, u_i] in the first half,  [x, u_i, mean of R_(g, i) over the k groups g with the largest cos(q, K_g)] in the second;   q the features with u alone

    u_i [num_prompts, D], R [pool, blocks, num_prompts, D], K [pool, D]. The head gives 20 cos(x,
    w_c). Dong, Zhou, Yan, Zuo, "LPT: Long-tailed Prompt Tuning for Image Classification", ICLR
    2023, arXiv 2210.01033; github.com/DongSky/LPT. Both phases learn by `asymmetric_loss`; the
    second by L(class-balanced batch) + w L(batch as it comes), each less 0.5 times the cosines of
    the picked keys, w falling from 0.5 to 0. On ViT-B/16: 1,029,120 parameters; two forward passes.
    The repository has the second phase alone; the first is after the paper, with the same loss on
    batches as they come. `fit` trains twice, for as many epochs each time. In a loop of one's own
    all trains at once, without the balanced batches.
    """

    lr = 3e-2
    lrs = HIGH_LRS

    starts_elsewhere = "random prompts take part in every softmax from the first step"
    unmergeable = "its prompts are picked for each image"

    num_prompts: int = 10  # tokens per block, and in each group of the pool
    pool: int = 20  # groups
    top: int = 2  # groups that an image picks
    dropout: float = 0.1  # before the head

    def __post_init__(self) -> None:
        self.expect(self.num_prompts >= 1, "num_prompts", "an integer of at least 1")
        self.expect(self.pool >= 1, "pool", "an integer of at least 1")
        self.expect(1 <= self.top <= self.pool, "top", f"from 1 to {self.pool}, the groups")
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        if not isinstance(task, Classification):
            raise VTError(
                "lpt: expected a classification, whose rare classes it helps, found a "
                f"{type(task).__name__}; choose another method, such as vpt_deep"
            )
        prompted = self.attach(backbone)
        head = Cosine(prompted.num_features, task.num_classes, self.dropout)
        return Predictor(prompted, head, task)

    def attach(self, backbone: Backbone) -> Pooled:
        blocks = usual_blocks(backbone, "lpt", "some of which get more prompts")
        half, shape = len(blocks) // 2, (self.num_prompts, backbone.embed_dim)
        pool = torch.empty(self.pool, len(blocks) - half, *shape)
        pooled = Pooled(backbone, nn.init.trunc_normal_(pool, std=0.02), self.top)
        prefix = getattr(backbone, "num_prefix_tokens", 0)
        for i, block in enumerate(blocks):
            parts = block, nn.init.trunc_normal_(torch.empty(shape), std=0.02), prefix, 0.0
            backbone.blocks[i] = SharedBlock(*parts, place=i - half, given=pooled.given)
        return pooled

    def groups(self, model: Tuned) -> list[dict[str, Any]]:
        pooled: Any = model.backbone
        picked, shared = [pooled.pool, pooled.keys], [b.prompts for b in pooled.base.blocks]
        own = {0: [*shared, *picked], 1: shared, 2: picked}[pooled.phase]
        return [{"params": [*own, *model.head.parameters()]}]

    def loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        network, balanced = model.network, getattr(model.network, "balanced", None)
        if balanced is None:
            return self.of_batch(model, inputs, targets, BALANCED)
        images, labels = (t.to(inputs.device) for t in balanced.draw(len(inputs)))
        loss = self.of_batch(model, images, labels, BALANCED)
        more = self.of_batch(model, inputs, targets, AS_THEY_COME)
        return loss + 0.5 * (1 - network.progress) * more

    def of_batch(
        self, model: Any, inputs: Tensor, targets: Tensor, gammas: tuple[float, float]
    ) -> Tensor:
        """The loss of one batch; keys come nearer to the features that picked them."""
        answers, matched = model(inputs), model.network.backbone.matched
        loss = asymmetric_loss(answers, targets, model.network.head.counts, gammas)
        loss, matched.value = loss - 0.5 * (matched() or 0.0), None
        return loss

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        network, pooled = model.network, model.backbone
        balanced = Balanced(task.train, model.task, train.augment)

        def progressed(progress: float) -> None:
            network.progress = progress

        train.once(model, lambda: model.head.counts.copy_(balanced.counts))
        pooled.phase = 1
        train(model, task.train)
        pooled.phase, network.balanced = 2, balanced
        train(model, task.train, each=progressed)
        pooled.phase, network.balanced = 0, None
