"""PromptKD: what a prompted two-tower model says of images without labels, for a prompted image
tower to repeat."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones.clip import CLIP, ImageTower
from vtlite.method import Method, Predictor, Train, Tuned, find_method
from vtlite.methods.prompt.both_towers import put_into_images
from vtlite.methods.prompt.contexts import PromptedHead, class_names, temperature
from vtlite.methods.prompt.vision_language.maple import Coupling
from vtlite.methods.remapping.distillation.teaching import Fixed
from vtlite.ops.kd_loss import kd_loss
from vtlite.storage import VTError
from vtlite.task import Task
from vtlite.tuning import tune
from vtlite.zero_shot import class_features


class SharedTexts(nn.Module):
    """Image features [B, E] -> logits [B, C]: a small map of the feature, and the cosine with the
    class vectors [C, E'] that the teacher made once."""

    classes: Tensor
    scale: Tensor

    def __init__(self, width: int, classes: Tensor, scale: Tensor) -> None:
        super().__init__()
        E = classes.shape[1]
        self.project = nn.Sequential(nn.Linear(width, E), nn.BatchNorm1d(E), nn.ReLU())
        self.last = nn.Linear(E, E)
        self.register_buffer("classes", classes)
        self.register_buffer("scale", scale)

    def forward(self, f: Tensor) -> Tensor:
        return self.scale * F.normalize(self.last(self.project(f)), dim=-1) @ self.classes.T


class Taught(Predictor):
    """The student: the image tower with prompts, and class vectors that were another's. `teacher`
    is there while it learns."""

    def __init__(self, clip: CLIP, head: nn.Module, task: Task) -> None:
        untouched = copy.deepcopy(clip)
        super().__init__(ImageTower(clip), head, task)
        self.clip = Fixed(untouched)  # to make a teacher from
        self.teacher: Fixed | None = None


@dataclass
class PromptKD(Method):
    """Prompt both towers of a teacher on the labelled images; keep its class vectors; and let a
    prompted image tower repeat its answers on images, whose labels are not used.

        loss = T^2 KL(softmax(z_t / T) || softmax(z_s / T)),   z_t = exp(logit_scale) f_t g_c,   z_s = exp(logit_scale) normalised(h(f_s)) g_c

    g_c is the teacher's text feature of class c, kept and shared; h a small map, W2 relu(BN(W1 f)).
    The student's image blocks get prompts of their own, drawn from N(0, 0.02^2). For two-tower
    models; the teacher is given, or `fit` makes it first. Li et al., "PromptKD: Unsupervised Prompt
    Distillation for Vision-Language Models", CVPR 2024, arXiv 2403.02781; github.com/zhengli97/
    PromptKD. On CLIP's ViT-B/16 with prompts in 9 blocks and classes of 512: 553,984 parameters.
    There the teacher is a ViT-L/14, tuned by PromptSRC, and the images are all of a data set's; here
    teacher and student are one model, and the images are the training images.
    """

    lr = 3e-2
    starts_elsewhere = "its map between features starts as layers of PyTorch do"
    unmergeable = "its prompts are extra tokens, which no weight of the tower can stand for"
    two_towers = True
    measured_on = "vtlite-clip"
    small = {"template": "an emoji of {}"}

    num_prompts: int = 4  # in each of the first blocks of the image tower
    depth: int = 9  # blocks that get prompts, if there are as many
    temperature: float = 1.0  # T
    teacher_method: str = "maple"  # how the teacher is tuned if none is given; one with a context
    teacher_epochs: int = 10
    template: str = "a photo of a {}"  # of the class vectors until there is a teacher
    # a two-tower model tuned for the same classes, with a context in front of their names
    teacher: Any = field(default=None, repr=False, compare=False, metadata={"model": True})

    def __post_init__(self) -> None:
        self.expect(self.num_prompts >= 1, "num_prompts", "an integer of at least 1")
        self.expect(self.depth >= 1, "depth", "an integer of at least 1")
        self.expect(self.temperature > 0, "temperature", "above 0")
        self.expect(self.teacher_epochs >= 1, "teacher_epochs", "an integer of at least 1")
        find_method(self.teacher_method)  # raises for an unknown name
        given = self.teacher is None or isinstance(self.teacher, Tuned)
        self.expect(given, "teacher", "as a model that vt.tune made")

    def build(self, clip: Any, task: Task) -> nn.Module:
        classes = class_features(clip, class_names(clip, task, self), self.template)
        head = SharedTexts(clip.visual_projection.shape[1], classes, temperature(clip))
        student = Taught(clip, head, task)
        width, depth = clip.visual.embed_dim, min(self.depth, len(clip.visual.blocks))
        own = [nn.Parameter(0.02 * torch.randn(self.num_prompts, width)) for _ in range(depth)]
        prompts: list[nn.Module] = [Coupling(p, nn.Identity()) for p in own]
        put_into_images(clip.visual, prompts, self.num_prompts)
        if self.teacher is not None:
            listen(student, copy.deepcopy(self.teacher))
        return student

    def fit(self, model: Tuned, task: Task, train: Train) -> None:
        student, device = model.network, next(model.parameters()).device
        if student.teacher is None:
            teacher = tune(student.clip.network, self.teacher_method, task).to(device)
            own: Any = {"lr": teacher.method.lr, "epochs": self.teacher_epochs}
            train(teacher, task.train, **own, val=None, augment=None, progress=False)
            listen(student, teacher)
        student.teacher.network.to(device)
        train(model, task.train)

    def loss(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        student = model(inputs)
        if model.network.teacher is None:  # before `fit`: there is nobody but the labels
            return model.task.loss(student, targets)
        with torch.no_grad():
            teacher = model.network.teacher.network(inputs)
        return kd_loss(student, teacher, self.temperature)


@torch.no_grad()
def listen(student: Taught, teacher: Tuned) -> None:
    """Give a student its teacher and the teacher's class vectors. Raises `VTError` for one without,
    or of other classes."""
    head, own = teacher.head, cast(SharedTexts, student.head)
    if not isinstance(head, PromptedHead):
        raise VTError(
            "promptkd: expected a teacher with a learned context in front of the class names, "
            f"found one of {teacher.method}; take maple or coop"
        )
    classes, wanted = F.normalize(head.texts(head.context), dim=-1), own.classes
    if classes.shape != wanted.shape:
        raise VTError(
            f"promptkd: expected a teacher of class vectors {list(wanted.shape)}, found "
            f"{list(classes.shape)}; tune it for the same classes"
        )
    wanted.copy_(classes)
    student.teacher = Fixed(teacher.requires_grad_(False).eval())
