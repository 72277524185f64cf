"""WiSE-FT: the average of two models, before and after fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from vtlite.method import LOW_LRS, Backbone, Method, Train, Tuned
from vtlite.task import Task
from vtlite.training import fit_head


@dataclass
class WiSEFT(Method):
    """Fine-tune from a linear probe, then go back part of the way in a straight line through the
    weights.

        theta = (1 - alpha) theta_probe + alpha theta_tuned,   for every parameter, the head included

    Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv 2109.01903;
    github.com/mlfoundations/wise-ft. There, theta_probe is CLIP with a head made of text; without
    text, the probed model takes its place. All 85,798,656 parameters of ViT-B/16 train, and the
    average costs nothing at inference.
    """

    lr = 2e-3
    lrs = LOW_LRS

    alpha: float = 0.5  # 0: the linear probe, 1: the fine-tuned model
    c: float = 1.0  # inverse strength of the probe's penalty, as in LP-FT

    def __post_init__(self) -> None:
        self.expect(0 <= self.alpha <= 1, "alpha", "in [0, 1]")
        self.expect(self.c > 0, "c", "above 0")

    def attach(self, backbone: Backbone) -> None:
        backbone.requires_grad_(True)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        train.once(model, lambda: fit_head(model, task.train, self.c))
        probed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        train(model, task.train)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():  # a counter of batches has no average
                tensor.lerp_(probed[name], 1 - self.alpha)
