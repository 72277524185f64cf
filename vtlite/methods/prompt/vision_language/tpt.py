"""TPT: a context tuned on one test image, without its label, and then forgotten."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from vtlite.backbones.clip import CLIP, ImageTower
from vtlite.method import Predictor, Train, Tuned
from vtlite.methods.prompt.contexts import (
    PromptedHead,
    Texts,
    class_names,
    first_context,
    temperature,
)
from vtlite.methods.prompt.language.coop import CoOp
from vtlite.task import Task


def surest(logits: Tensor, share: float) -> Tensor:
    """Logits of many views [V, C] -> the places of the `share` of them with the lowest entropy, at
    least one."""
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1)
    return entropy.argsort()[: max(1, int(share * len(logits)))]


def entropy_of_mean(logits: Tensor) -> Tensor:
    """The entropy of the mean of the probabilities of logits [V, C] -> scalar."""
    log_mean = logits.log_softmax(1).logsumexp(0) - math.log(len(logits))
    return -(log_mean.exp() * log_mean).sum()


class TestTimePredictor(Predictor):
    """Images [B, 3, S, S] -> logits [B, C]; in eval mode each image tunes a context of its own
    before it is answered."""

    def __init__(self, clip: CLIP, head: PromptedHead, task: Task, method: TPT) -> None:
        super().__init__(ImageTower(clip), head, task)
        self.method = method
        self.views = v2.Compose(
            [
                v2.RandomResizedCrop(self.backbone.input_size, (method.smallest, 1.0)),
                v2.RandomHorizontalFlip(),
            ]
        )

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            return super().forward(images)  # the context as it is
        return torch.stack([self.answer(image) for image in images])

    @torch._dynamo.disable  # an optimiser in a forward pass
    def answer(self, image: Tensor) -> Tensor:
        """One image [3, S, S] -> its logits [C]."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # every image is cut in the same ways, whatever came before it
            cuts = [self.views(image) for _ in range(self.method.num_views - 1)]
        head: Any = self.head
        with torch.no_grad():
            f = F.normalize(self.features(torch.stack([image, *cuts])), dim=-1)
        with torch.enable_grad():
            head = PromptedHead(head.texts, nn.Parameter(head.context.detach().clone()), head.scale)
            optimizer = torch.optim.AdamW([head.context], lr=self.method.step)
            kept = f[surest(head(f), self.method.share)]  # chosen before the first step
            for _ in range(self.method.steps):
                optimizer.zero_grad()
                entropy_of_mean(head(kept)).backward(inputs=[head.context])
                optimizer.step()
        with torch.no_grad():
            return head(f[:1])[0]


@dataclass
class TPT(CoOp):
    """Cut a test image in many ways, keep the cuts on which the answer is surest, tune a context
    until they agree, answer, and forget it.

        V' = V - step of AdamW on H(mean_i p(cut_i; V)),   i among the `share` of the cuts with the lowest H(p);   answer p(image; V')

    H is entropy, V the context of CoOp, started from `words`; no label and no other image is used,
    and nothing is kept. For two-tower models. In training mode, or with `first`, it is CoOp: the
    paper's "CoOp + TPT" tunes a trained context. Shu et al., "Test-Time Prompt Tuning for Zero-Shot
    Generalization in Vision-Language Models", NeurIPS 2022, arXiv 2209.07511; github.com/azshue/
    TPT. On CLIP's ViT-B/16: 2,048 parameters, for one image. The cuts are random crops and flips,
    as the paper's for ImageNet, and the same for every image.
    """

    key = "prompt/vision_language/tpt"
    frozen_features = False  # cuts are made of images
    small = {"words": "an emoji of a", "smallest": 0.5, "num_views": 32}
    unmergeable = "each image has a context of its own"
    starts_elsewhere = "each image tunes the context before it is answered"

    num_context: int = 4
    words: str = "a photo of a"
    num_views: int = 64  # the image and its cuts
    share: float = 0.1  # of the views that are kept
    steps: int = 1  # of AdamW
    step: float = 5e-3  # its learning rate
    smallest: float = 0.08  # the share of the area that a cut keeps at least
    first: bool = False  # train the context on the training images first, as CoOp does

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(self.num_views >= 1, "num_views", "an integer of at least 1")
        self.expect(0 < self.share <= 1, "share", "in (0, 1]")
        self.expect(self.steps >= 1, "steps", "an integer of at least 1")
        self.expect(self.step > 0, "step", "above 0")
        self.expect(0 < self.smallest <= 1, "smallest", "in (0, 1]")

    def build(self, clip: Any, task: Task) -> nn.Module:
        names = class_names(clip, task, self)
        texts = Texts(clip, names, self.num_context, self.position)
        sets = len(names) if self.per_class else 1
        context = first_context(clip, sets, self.num_context, words=self.words)
        head = PromptedHead(texts, context, temperature(clip))
        return TestTimePredictor(clip, head, task, self)

    def loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        """CoOp's: the context as it is."""
        network = model.network
        return model.task.loss(network.head(network.features(inputs)), targets)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        if self.first:
            train(model, task.train)
