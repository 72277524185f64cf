"""LP-FT: a linear probe first, then everything from there."""

from __future__ import annotations

from dataclasses import dataclass

from vtlite.method import LOW_LRS, Backbone, Method, Train, Tuned
from vtlite.task import Task
from vtlite.training import fit_head


@dataclass
class LPFT(Method):
    """Fit the head on frozen features before the first step, so that its random start does not
    distort them.

        w_1 = argmin_w CE(w^T f_{theta_0}(x), y) + |w|^2 / (2 c n),   then (theta, w) train together from (theta_0, w_1)

    Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution", ICLR 2022, arXiv 2202.10054; github.com/AnanyaKumar/transfer_learning. All
    85,798,656 parameters of ViT-B/16 train. As there, the probe is a logistic regression on
    features standardised by one mean and one standard deviation, folded into the head. The paper
    searches c; a smaller learning rate than that of full fine-tuning is usually best.
    """

    lr = 2e-3
    lrs = LOW_LRS

    c: float = 1.0  # inverse strength of the probe's penalty

    def __post_init__(self) -> None:
        self.expect(self.c > 0, "c", "above 0")

    def attach(self, backbone: Backbone) -> None:
        backbone.requires_grad_(True)

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        train.once(model, lambda: fit_head(model, task.train, self.c))
        train(model, task.train)
