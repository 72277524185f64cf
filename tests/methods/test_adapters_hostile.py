"""What no adapter can have, in one sentence for every one of them: clips and masks that do not fit,
widths of zero, groups that do not divide, tasks that it has no answer to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import vtlite as vt
from tests.methods.checks import SMALL, batch, home
from vtlite.method import METHODS, short
from vtlite.task import Classification, Clips, MultiLabel, Segmentation, Several, Task

NAMES = ("0", "1", "2")
CLASSES, CLIPS = Classification("classes", NAMES), Clips("clips", NAMES)
MASKS = Segmentation("masks", NAMES, upsample=2)
MIXED = Several("mixed", parts={"what": CLASSES, "where": MASKS})
ADAPTERS = [short(key) for key in METHODS if key.startswith("adapter/")]
# Why a method has no answer to some kinds of task.
ONE_CLASS = dict.fromkeys(("ett", "clip_adapter", "tip_adapter"), "expected a classification")
WHOLE = dict.fromkeys(("vqt", "fpet"), "expected a task that asks about whole images")
NAMED = {"vl_adapter": "expected a classification, whose classes have names"}
REFUSED: dict[str, dict[str, str]] = {
    "MultiLabel": {**ONE_CLASS, **NAMED},
    "Segmentation": {**ONE_CLASS, **NAMED, **WHOLE},
    "Clips": {"ett": "expected a classification of images"},
    "Several": {
        **dict.fromkeys(ADAPTERS, "expected questions that read the same features"),
        **ONE_CLASS,
        **NAMED,
        **WHOLE,
    },
}
del REFUSED["Several"]["polyhistor"]  # it reads them anew for each question


def made(name: str, task: Task, **settings: Any) -> vt.Tuned:
    return vt.tune(home(name), name, task, **{**SMALL.get(name, {}), **settings})


@pytest.mark.parametrize(
    "task", [MultiLabel("tags", NAMES), MASKS, CLIPS, MIXED], ids=lambda t: type(t).__name__
)
@pytest.mark.parametrize("name", ADAPTERS)
def test_each_kind_of_task_is_answered_or_refused_at_once(name: str, task: Any) -> None:
    kind, (images, _) = type(task).__name__, batch(2)
    if name in REFUSED[kind]:
        with pytest.raises(vt.VTError, match=REFUSED[kind][name]):
            made(name, task)
        return
    model = made(name, task)
    masks, labels = torch.zeros(2, 32, 32, dtype=torch.long), torch.tensor([0, 1])
    targets: Any = {
        "MultiLabel": torch.zeros(2, 3),
        "Segmentation": masks,
        "Clips": labels,
        "Several": {"what": labels, "where": masks},
    }[kind]
    inputs = torch.stack([images, images], 1) if task is CLIPS else images
    assert model.method.backward(model, inputs, targets).isfinite()


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name not in REFUSED["Clips"]])
def test_clips_of_wrong_axes_or_frames(name: str) -> None:
    model, images = made(name, CLIPS), batch(4)[0]
    clips = torch.stack([images, images, images], 1)
    for wrong in (images, clips[0, 0], clips[None], clips[:, :0], [1, 2], None, clips.numpy()):
        with pytest.raises(vt.VTError, match=r"expected clips \[B, T, C, H, W\], found"):
            model(wrong)
    for wrong in (clips.transpose(1, 2)[:, :, :2], clips[:, :, :2], clips.long()):
        with pytest.raises(vt.VTError, match="expected float images"):
            model(wrong)
    data = [(clips[0], 0), (clips[1, :2], 1)]
    with pytest.raises(vt.VTError, match=r"expected (images of one size|clips)"):
        vt.fit(model, data, epochs=1, progress=False)


@pytest.mark.parametrize("name", [n for n in ADAPTERS if n not in REFUSED["Segmentation"]])
def test_masks_of_another_size_or_with_classes_out_of_range(name: str) -> None:
    model, images = made(name, MASKS), batch(4)[0]
    masks = torch.zeros(4, 32, 32, dtype=torch.long)
    for wrong, sentence in (
        (masks[:, :16, :16], "expected masks of 32 x 32 pixels.*found 16 x 16"),
        (masks[:, :, :16], "expected masks of 32 x 32 pixels.*found 32 x 16"),
        (masks + 3, "expected labels from 0 to 2, found 3 to 3"),
        (masks - 1, "expected labels from 0 to 2, found -1 to -1"),
        (masks.float(), r"expected labels \[B, H, W\] as whole numbers"),
        (masks[:, 0, 0], r"expected labels \[B, H, W\]"),
    ):
        data = TensorDataset(images, wrong)
        for ask in (lambda d: vt.fit(model, d, epochs=1, progress=False), model_scores(model)):
            with pytest.raises(vt.VTError, match=sentence):
                ask(data)


def model_scores(model: vt.Tuned) -> Any:
    return lambda data: vt.evaluate(model, data)


@pytest.mark.parametrize("name", ADAPTERS)
def test_labels_out_of_range_or_of_wrong_axes(name: str) -> None:
    """Tip-Adapter and ETT look at them before the training loop does."""
    model, (images, labels) = made(name, CLASSES), batch(4)
    for wrong, sentence in (
        (labels + 2, "expected labels from 0 to 2"),
        (labels - 1, "expected labels from 0 to 2"),
        (labels.float(), r"expected labels \[B\] as whole numbers"),
        (images[:, 0], r"expected labels \[B\]"),
    ):
        with pytest.raises(vt.VTError, match=sentence):
            vt.fit(model, TensorDataset(images, wrong), epochs=1, progress=False)


# Every width, reduction and number of groups: zero, and one that does not divide or is too large.
WIDTHS: list[tuple[str, str, int]] = [
    *((name, "bottleneck", 0) for name in ("houlsby", "pfeiffer", "adaptformer", "convpass")),
    *((name, "bottleneck", 0) for name in ("mona", "repadapter", "st_adapter", "fpet")),
    *((name, "bottleneck", -1) for name in ("houlsby", "mona", "st_adapter")),
    *((name, "reduction", 0) for name in ("lst", "conv_adapter", "aim", "clip_adapter")),
    *((name, "reduction", 0) for name in ("polyhistor", "vl_adapter")),
    *((name, "reduction", 5) for name in ("lst", "conv_adapter", "clip_adapter")),
    *((name, "reduction", 5) for name in ("polyhistor", "vl_adapter")),
    ("aim", "reduction", 25),
    ("consolidator", "num_groups", 0),
    ("consolidator", "num_groups", 7),
    ("repadapter", "num_groups", 0),
    ("repadapter", "num_groups", 3),
    ("fpet", "refinement", 0),
    ("dtl", "rank", 0),
    ("polyhistor", "rank", 0),
    ("vqt", "num_queries", 0),
    ("tip_adapter", "shots", 0),
    ("vit_adapter", "heads", 5),
    ("vit_adapter", "prior_width", 0),
]


@pytest.mark.parametrize(("name", "setting", "value"), WIDTHS)
def test_widths_of_zero_and_groups_that_do_not_divide(name: str, setting: str, value: int) -> None:
    with pytest.raises(vt.VTError, match=f"{setting}.*found.* {value}") as error:
        made(name, CLASSES, **{setting: value})
    assert "\n" not in str(error.value)
