"""VL-Adapter: bottlenecks in both towers, shared between tasks of pictures and words."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from vtlite.backbones.base import is_norm
from vtlite.backbones.clip import CLIP, ImageTower
from vtlite.method import Method
from vtlite.methods.adapter.bottleneck import Bottleneck
from vtlite.methods.adapter.questions import Question, QuestionPredictor, parts_of
from vtlite.methods.adapter.two_towers import TextHead, named_classes
from vtlite.methods.parameter.updates import replace_layers
from vtlite.task import Heads, Several, Task

Shared = Literal["all", "down", "up", "none"]  # what the questions share


class AfterEach(nn.Module):
    """A frozen layer and, on what it gives, a bottleneck for each question."""

    def __init__(
        self, base: nn.Linear, width: int, count: int, shared: Shared, question: Question
    ) -> None:
        super().__init__()
        self.base, self.question = base, question
        first, *others = (Bottleneck(base.out_features, width) for _ in range(count))
        for other in others:  # the same module in several places
            if shared in ("all", "down"):
                other.down = first.down
            if shared in ("all", "up"):
                other.up = first.up
        self.adapters = nn.ModuleList([first, *others])

    def forward(self, x: Tensor) -> Tensor:
        z, adapter = self.base(x), self.adapters[self.question.number]
        assert isinstance(adapter, Bottleneck)
        return adapter.bottleneck(z)


@dataclass
class VLAdapter(Method):
    """Put a bottleneck with its own skip after the attention and the MLP of every block of both
    towers, and let all questions about the pictures share them.

        x' = x + A(attention(LN(x)));   y = x' + A'(MLP(LN(x')));   A(z) = z + U gelu(D z + d) + u,   D [dim / reduction, dim], U [dim, dim / reduction]
        logits = exp(logit_scale) normalised(image) normalised(text of "a photo of a CLASS")

    For two-tower models. U, d, u start at zero, so it starts as zero-shot CLIP. All norms and the
    projection of the image train as well. Of a task that asks several questions, whose classes all
    have names, `shared` says what of a bottleneck is the same for all: "all" (the paper's single
    adapter, its best), "down", "up" (half-shared) or "none" (one for each question). Sung, Cho,
    Bansal, "VL-Adapter: Parameter-Efficient Transfer Learning for Vision-and-Language Tasks", CVPR
    2022, arXiv 2112.06825; github.com/ylsung/VL_adapter. A translation: there one language model
    (BART, T5) reads words and the features of a frozen CLIP and writes the answer, and the adapters
    are in it; here a question is which class's words fit the picture, and so both towers, which do
    that reading, have them. On CLIP's ViT-B/16: 3,559,680 parameters in the image tower's
    bottlenecks (dim 768), 1,586,688 in the text tower's (512), and norms and projection. The
    original's GELU is the tanh approximation, and its U starts as a layer of PyTorch.
    """

    key = "adapter/parallel/vl_adapter"
    lr = 1e-2
    lrs = (3e-4, 1e-3, 3e-3, 1e-2)
    small = {"template": "an emoji of {}"}

    unmergeable = "its bottlenecks have a GELU inside, so they are no linear change of the weights"
    two_towers = True
    measured_on = "vtlite-clip"

    reduction: int = 8  # how many times narrower the bottlenecks are
    shared: Shared = "all"  # what the bottlenecks of several questions share
    norms: bool = True  # train the weights and biases of the norms, too
    projection: bool = True  # train the projection of the image, too
    template: str = "a photo of a {}"  # where a class name belongs

    def __post_init__(self) -> None:
        self.expect(self.reduction >= 1, "reduction", "an integer of at least 1")
        options = ("all", "down", "up", "none")
        self.expect(self.shared in options, "shared", '"all", "down", "up" or "none"')

    def build(self, clip: Any, task: Task) -> nn.Module:
        parts, question = parts_of(task), Question()
        for part in parts.values():
            named_classes(clip, part, self, self.template)  # refuses what has no names
            warn_of_alike(clip, part.classes)

        def after(layer: nn.Linear, name: str) -> nn.Module:
            D = layer.out_features
            self.expect(D % self.reduction == 0, "reduction", f"that divides {D}, a tower's width")
            return AfterEach(layer, D // self.reduction, len(parts), self.shared, question)

        replace_layers(clip.visual, "vl_adapter", ("proj", "fc2"), after)
        for block in clip.text.blocks:
            block.attn.proj, block.mlp.fc2 = after(block.attn.proj, ""), after(block.mlp.fc2, "")
        for module in clip.modules() if self.norms else ():
            if is_norm(module):
                module.requires_grad_(True)
        clip.visual_projection.requires_grad = self.projection
        heads = {name: TextHead(clip, part.classes, self.template) for name, part in parts.items()}
        head = Heads(dict(heads)) if isinstance(task, Several) else heads[""]
        return QuestionPredictor(ImageTower(clip), head, task, question)


def warn_of_alike(clip: CLIP, classes: tuple[str, ...]) -> None:
    """Warn of names that are the same text to the tower, as it does not know their words."""
    first: dict[tuple[int, ...], str] = {}
    for name, tokens in zip(classes, clip.tokenize(list(classes)).tolist(), strict=True):
        if (other := first.setdefault(tuple(tokens), name)) is not name:
            warnings.warn(
                f"vl_adapter: the text tower reads {name!r} as it reads {other!r}, and no training "
                "tells them apart; name them in words that it knows",
                stacklevel=2,
            )
            return
