"""`python -m vtlite bench --study NAME`: some entries of the benchmark on tasks of another kind, by
the same protocol, and what such tasks are asked beside their score."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.backbones import create_backbone
from vtlite.data.images import ImageDataset
from vtlite.data.tasks import load_task
from vtlite.method import Backbone, Tuned
from vtlite.methods.prompt.vision.s_prompting import SPrompting
from vtlite.task import Stream, Task
from vtlite.training import evaluate, fit
from vtlite.tuning import load_delta, save_delta

KINDS = {"many": 20, "medium": 6, "few": 0}  # of a long tail's classes: more training images than


@dataclass(frozen=True)
class Study:
    """Some entries of `vtlite.bench` and the tasks that they are compared on."""

    tasks: tuple[str, ...]
    entries: tuple[str, ...]
    epochs: int = 15


STUDIES = {
    "masks": Study(
        ("emoji-masks", "emoji-scenes"),
        ("full", "linear", "adaptformer", "lora", "mona", "convpass", "vit_adapter", "evp"),
    ),
    "motion": Study(
        ("emoji-motion",), ("full", "linear", "aim", "st_adapter", "st_adapter, 3x3x3"), epochs=10
    ),
    "few-shot": Study(
        tuple(f"twemoji-subgroups:{k}-shot" for k in (1, 2, 4, 8, 16)),
        (
            *("zero-shot", "linear", "clip_adapter", "tip_adapter", "coop", "cocoop", "prograd"),
            *("plot", "lasp", "sgva_clip", "maple", "upt", "clip_lora"),
        ),
        epochs=30,
    ),
    "base-to-new": Study(
        ("twemoji-subgroups:base:16-shot",),
        ("zero-shot", "coop", "cocoop", "prograd", "lasp", "maple", "clip_lora"),
        epochs=30,
    ),
    "test-time": Study(
        ("twemoji-subgroups", "emoji-domains:twemoji", "emoji-domains:high-contrast"),
        ("zero-shot", "tpt", "tda"),
    ),
    "domains": Study(
        ("emoji-domains",),
        ("full", "full, all at once", "linear", "vpt_shallow", "s_prompting"),
        epochs=6,
    ),
    "several": Study(("emoji-several",), ("zero-shot", "linear", "full", "lora", "dualcoop")),
    "distillation": Study(
        ("twemoji", "digits"),
        (
            *("student alone", "student, kd", "student, kd, weight 0.5", "student, fitnet"),
            *("student, attention_transfer", "student, attention_transfer, weight 1"),
            *("student, activation_boundaries", "student, dfa", "student, normalized_kd"),
            *("student, dkd", "student, rkd"),
            *("ViT student alone", "ViT student, kd", "ViT student, distillation_token"),
        ),
    ),
    "long-tail": Study(("twemoji-longtail",), ("linear", "full", "lora", "vpt_deep", "lpt")),
}

# Studies that are no table of the benchmark's entries: a module with `run(results, workers)`, which
# runs what the file lacks and returns all runs, and `table(runs)`, which gives Markdown.
OWN_STUDIES = {"growth": "vtlite.growth", "search": "vtlite.searches"}


def small_vit(seed: int) -> Backbone:
    """A ViT with a tenth of vtlite-tiny's numbers, which has learnt nothing."""
    return _fresh("vtlite-tiny", seed, embed_dim=36, depth=4)


def small_resnet(seed: int) -> Backbone:
    """A ResNet with a ninth of vtlite-tiny's numbers, which has learnt nothing."""
    return _fresh("vtlite-resnet", seed, width=8)


def _fresh(name: str, seed: int, **sizes: Any) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_backbone(name, **sizes)


def shifted(images: Tensor, most: int = 3) -> Tensor:
    """Each image moved by up to `most` pixels in both directions, its edge repeated: what a student
    of so few images needs, and its teacher can say something of. [B, C, S, S] -> [B, C, S, S]."""
    count, side = len(images), images.shape[-1]
    padded = F.pad(images, (most,) * 4, "replicate")
    windows = padded.unfold(2, side, 1).unfold(3, side, 1)  # [B, C, rows, columns, S, S]
    rows, columns = torch.randint(0, 2 * most + 1, (2, count), device=images.device)
    return windows[torch.arange(count, device=images.device), :, rows, columns]


def further(
    model: nn.Module, task: Task, score: float, again: Callable[[Task], nn.Module]
) -> dict[str, Any]:
    """What a trained model is asked beside its `score` on the test images.

    Of a long tail: the accuracy on classes with many, medium and few training images. Of half of the
    classes: the accuracy on the other half, which it knows by name only (`again` makes it for another
    task), and the harmonic mean of both.
    """
    if task.name == "twemoji-longtail":
        return by_frequency(model, task)
    if ":base" not in task.name:
        return {}
    new = load_task(task.name.replace(":base", ":new"))
    other = again(new)
    if isinstance(model, Tuned) and isinstance(other, Tuned):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "delta.safetensors"
            save_delta(model, path)
            other = load_delta(other, path)
    unseen = evaluate(other, cast(Any, new.test), task=new)[new.metric]
    return {"new": unseen, "harmonic mean": harmonic(score, unseen)}


def harmonic(base: float, new: float) -> float:
    """Their harmonic mean, which is low where one of the two is."""
    return 2 * base * new / (base + new) if base + new else 0.0


def by_frequency(model: nn.Module, task: Task) -> dict[str, float]:
    """Accuracy on the test images of classes with more than 20 training images, more than 6, and
    fewer."""
    counts = cast(Any, task.train).labels.bincount(minlength=task.num_classes)
    test, found, most = cast(ImageDataset, task.test), {}, torch.inf
    for kind, least in KINDS.items():
        own = ((counts > least) & (counts <= most))[test.labels]
        found[kind] = evaluate(model, test.subset(own), task=task)[task.metric]
        most = least
    return found


def in_sequence(
    model: Tuned, stream: Stream, part: str, **settings: Any
) -> tuple[float, dict[str, Any]]:
    """Learn one domain after another -> the mean accuracy over all of them after the last, and the
    `matrix` of accuracies (a row after each domain, a column for each) with what was forgotten: how
    far each but the last fell, in the mean, from where it was when it had just been learnt.

    `part` says which images of the stages are asked for.
    """
    matrix = []
    if isinstance(model.method, SPrompting):  # whose keys say which domains it has seen
        fit(model, progress=False, **settings)
    for s, stage in enumerate(stream.stages):
        if isinstance(model.method, SPrompting):
            model.network.known[:] = torch.arange(len(stream.stages)) <= s
        else:
            fit(model, stage.train, progress=False, **settings)
        asked = [cast(Any, getattr(each, part)) for each in stream.stages]
        matrix.append([evaluate(model, data)[stream.metric] for data in asked])
    last = matrix[-1]
    forgotten = mean(matrix[s][s] - last[s] for s in range(len(last) - 1))
    return mean(last), {"forgotten": forgotten, "matrix": matrix}
