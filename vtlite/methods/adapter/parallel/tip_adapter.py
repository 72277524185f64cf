"""Tip-Adapter: zero-shot CLIP, and votes of the training images that lie near."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from vtlite.method import Method, Train, Tuned
from vtlite.methods.adapter.two_towers import answering, named_classes
from vtlite.task import Task


class Cache(nn.Module):
    """Features [B, E] -> logits [B, C]: the cosine with each class's text, and the votes of kept
    images, `shots` places for each class."""

    texts: Tensor
    scale: Tensor
    keys: Tensor
    taken: Tensor
    strength: Tensor

    def __init__(
        self, texts: Tensor, scale: Tensor, shots: int, strength: tuple[float, float], trains: bool
    ) -> None:
        super().__init__()
        C, E = texts.shape
        self.shots = shots
        self.register_buffer("texts", texts, persistent=False)  # made anew from the class names
        self.register_buffer("scale", scale, persistent=False)
        keys = torch.zeros(C * shots, E)
        if trains:
            self.keys = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("taken", torch.zeros(C * shots))  # 1 where there is an image
        self.register_buffer("strength", torch.tensor(strength))  # alpha, beta

    def forward(self, f: Tensor) -> Tensor:
        f = F.normalize(f, dim=-1)
        alpha, beta = self.strength
        votes = torch.exp(-beta * (1 - f @ self.keys.T)) * self.taken  # [B, C shots]
        return self.scale * f @ self.texts.T + alpha * votes.unflatten(1, (-1, self.shots)).sum(2)

    @torch.no_grad()
    def put(self, features: Tensor, label: int, place: int) -> None:
        """Keep the features [V, E] of the views of one image, at one of its class's places."""
        row = label * self.shots + place
        self.keys[row] = F.normalize(features.mean(0), dim=0)
        self.taken[row] = 1


@dataclass
class TipAdapter(Method):
    """Keep the features of some training images with their classes, and add their votes to
    zero-shot CLIP.

        logits = exp(logit_scale) f t_c + alpha sum_(k in class c) exp(-beta (1 - f key_k)),   key_k [E] of `shots` images a class

    For two-tower models; f is normalised, t_c the text feature of a class in a `template`. A key is
    the mean over `views` of an image, cropped and flipped at random (1: the image as it is). With
    `tune_keys` (the paper's Tip-Adapter-F) the keys train afterwards; without, nothing does. Until
    it has seen images it is zero-shot CLIP. Zhang et al., "Tip-Adapter: Training-free Adaption of
    CLIP for Few-shot Classification", ECCV 2022, arXiv 2207.09519; github.com/gaopengcuhk/
    Tip-Adapter. On CLIP's ViT-B/16 (E = 512): 512 * 16 parameters a class. `search` chooses alpha
    and beta on the task's validation images after that; the released code also picks its best epoch
    on test images. It has 100 in the place of CLIP's own scale, which is that in published weights.
    """

    key = "adapter/parallel/tip_adapter"
    lr = 1e-2
    lrs = (3e-4, 1e-3, 3e-3, 1e-2)
    small = {"template": "an emoji of {}", "views": 1}

    unmergeable = "it keeps training images beside the model"
    frozen_features = True
    two_towers = True
    measured_on = "vtlite-clip"

    shots: int = 16  # images kept for each class, at most
    alpha: float = 1.17  # how much the votes count
    beta: float = 1.0  # how fast a vote falls with distance
    views: int = 10  # of each kept image
    tune_keys: bool = True  # Tip-Adapter-F; without, nothing trains
    search: bool = False  # choose alpha and beta on validation images
    template: str = "a photo of a {}"  # where a class name belongs

    def __post_init__(self) -> None:
        self.expect(self.shots >= 1, "shots", "an integer of at least 1")
        self.expect(self.views >= 1, "views", "an integer of at least 1")
        self.expect(self.alpha >= 0, "alpha", "of at least 0")
        self.expect(self.beta >= 0, "beta", "of at least 0")

    def build(self, clip: Any, task: Task) -> nn.Module:
        texts = named_classes(clip, task, self, self.template)
        scale, strength = clip.logit_scale.exp().detach(), (self.alpha, self.beta)
        return answering(clip, Cache(texts, scale, self.shots, strength, self.tune_keys), task)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        train.once(model, lambda: self.fill(model, task.train))
        if self.tune_keys:
            train(model, task.train)
        if self.search and task.val is not None:
            train.once(model, lambda: self.choose(model, task.val))

    @torch.no_grad()
    def fill(self, model: Tuned, data: Any) -> None:
        """Keep the first `shots` images of each class."""
        cache: Any = model.head
        size = image_size(data)
        views = v2.Compose([v2.RandomResizedCrop(size, (0.5, 1.0)), v2.RandomHorizontalFlip()])
        kept = [0] * model.task.num_classes
        for image, target in data:
            label = int(model.task.check(torch.as_tensor(target)[None]))
            place = kept[label]
            if place < self.shots:
                many = [image] if self.views == 1 else [views(image) for _ in range(self.views)]
                cache.put(model.features(torch.stack(many).to(cache.keys.device)), label, place)
                kept[label] += 1

    @torch.no_grad()
    def choose(self, model: Tuned, data: Any) -> None:
        """Set alpha and beta to the best pair of the paper's grid on these images."""
        cache: Any = model.head
        batches = [(model.features(images), labels) for images, labels in DataLoader(data, 256)]
        features, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))

        def right(strength: tuple[float, float]) -> int:
            cache.strength.copy_(torch.tensor(strength))
            return int((cache(features).argmax(1) == labels).sum())

        grid = [(0.1 + 2.9 * i / 20, 0.1 + 6.9 * j / 200) for j in range(200) for i in range(20)]
        cache.strength.copy_(torch.tensor(max(grid, key=right)))


def image_size(data: Any) -> tuple[int, int]:
    """Height and width of the images."""
    height, width = data[0][0].shape[-2:]
    return int(height), int(width)
