"""MLP head: a small network on frozen features."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vtlite.backbones.base import about
from vtlite.method import Backbone, Method, Predictor
from vtlite.task import Task


@dataclass
class MLPHead(Method):
    """Train a head of several layers; the features under it stay frozen, so they are computed once.

        logits = W_out h_k,   h_i = dropout(LayerNorm(ReLU(W_i h_{i-1} + b_i))),   h_0 = features [B, D],   W_i [D, D]

    The baseline MLP-k of Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119;
    github.com/KMnP/vpt. On ViT-B/16: 592,128 parameters per hidden layer, beside the linear head.
    The original has a BatchNorm where this has a LayerNorm of the same size: so a batch may have
    one image, and no running statistics need to be stored.
    """

    frozen_features = True
    unmergeable = "its head is a network, which no single linear layer can stand for"

    layers: int = 1  # hidden layers, each as wide as the features
    dropout: float = 0.1  # after each hidden layer, in training

    def __post_init__(self) -> None:
        self.expect(self.layers >= 1, "layers", "an integer of at least 1")
        self.expect(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def build(self, backbone: Backbone, task: Task) -> nn.Module:
        width, hidden = about(backbone).num_features, list[nn.Module]()
        for _ in range(self.layers):
            linear = nn.Linear(width, width)
            nn.init.kaiming_normal_(linear.weight, mode="fan_out")
            hidden += [linear, nn.ReLU(), nn.LayerNorm(width), nn.Dropout(self.dropout)]
        return Predictor(backbone, nn.Sequential(*hidden, task.head(backbone)), task)
