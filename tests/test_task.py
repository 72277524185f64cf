"""Each kind of task: its head, loss and score by hand, and every method that changes a backbone on
it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, jaccard_score
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

import vtlite as vt
from tests.conftest import make_tiny
from vtlite.task import Classification, Clips, MultiLabel, Segmentation, Several, Stream, Task

NAMES = ("a", "b", "c")
G = torch.Generator().manual_seed(3)
IMAGES = torch.randn(12, 3, 32, 32, generator=G)
LABELS = torch.arange(12) % 3


class Dicts(Dataset[Any]):
    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, int]]:
        return IMAGES[i], {"kind": int(LABELS[i]), "light": int(IMAGES[i].mean() > 0)}


def tasks() -> dict[str, Task]:
    def of(kind: type[Task], inputs: Tensor, targets: Tensor, **more: Any) -> Task:
        data = TensorDataset(inputs, targets)
        return kind("t", NAMES, data, data, data, **more)

    parts = {"kind": Classification(classes=NAMES), "light": Classification(classes=("no", "yes"))}
    several = Dicts()
    plain = of(Classification, IMAGES, LABELS)
    return {
        "classification": plain,
        "labels": of(MultiLabel, IMAGES, (torch.rand(12, 3, generator=G) < 0.5).float()),
        "masks": of(Segmentation, IMAGES, (IMAGES[:, 0] > 0).long()),
        "clips": of(Clips, IMAGES[:, None].repeat(1, 2, 1, 1, 1), LABELS),
        "several": Several("s", NAMES, several, several, several, parts=parts),
        "stream": of(Stream, IMAGES, LABELS, stages=(plain, plain)),
    }


@pytest.mark.parametrize("kind", tasks())
@pytest.mark.parametrize("method", ["linear", "lora", "adaptformer", "vpt_deep", "kd", "lp_ft"])
def test_methods_of_a_backbone_answer_every_kind_of_task(
    kind: str, method: str, tmp_path: Path
) -> None:
    task, backbone = tasks()[kind], make_tiny()
    if (method, kind) == ("kd", "several"):
        with pytest.raises(vt.VTError, match="kd: expected a task with one answer"):
            vt.tune(backbone, method, task)
        return
    model = vt.tune(backbone, method, task)
    if method == "lp_ft" and kind in ("labels", "masks", "several"):
        with pytest.raises(vt.VTError, match="expected a classification with a linear head"):
            vt.fit(model, epochs=2, progress=False)
        return
    history = vt.fit(model, epochs=3, lr=3e-3, batch_size=4, progress=False)
    assert history[-1]["loss"] < history[0]["loss"]
    assert f"val_{task.metric}" in history[-1]
    scores = vt.evaluate(model, task.test)
    assert 0 <= scores[task.metric] <= 1
    assert scores == vt.evaluate(model, task.test, batch_size=5) | {"loss": scores["loss"]}
    vt.save_delta(model, tmp_path / "d.safetensors")
    again = vt.load_delta(backbone, tmp_path / "d.safetensors")
    assert type(again.task) is type(task)
    assert again.task.classes == task.classes
    assert vt.evaluate(again, task.test) == scores
    if not model.method.unmergeable:
        merged = vt.evaluate(vt.merge(model), task.test, task=task)
        assert merged[task.metric] == pytest.approx(scores[task.metric], abs=1e-6)


def test_mean_average_precision_is_scikit_learns() -> None:
    answers, targets = torch.randn(40, 3, generator=G), torch.rand(40, 3, generator=G) < 0.4
    ours = MultiLabel(classes=NAMES).score(answers, targets.float())
    assert ours["mAP"] == pytest.approx(average_precision_score(targets, answers), rel=1e-6)
    exact = ((answers > 0) == targets).all(1).double().mean()
    assert ours["exact"] == pytest.approx(float(exact))


def test_mean_intersection_over_union_is_scikit_learns_and_leaves_out_absent_classes() -> None:
    answers = torch.randn(4, 3, 8, 8, generator=G)
    masks = torch.randint(2, (4, 8, 8), generator=G)  # class 2 never occurs, but is answered
    ours = Segmentation(classes=NAMES).score(answers, masks)
    found = answers.argmax(1).flatten()
    theirs = jaccard_score(masks.flatten(), found, average="macro")
    assert ours["mIoU"] == pytest.approx(theirs)
    answers[:, 2] = -99.0  # nor answered: now it does not count
    ours = Segmentation(classes=NAMES).score(answers, masks)
    theirs = jaccard_score(masks.flatten(), answers.argmax(1).flatten(), average="macro")
    assert ours["mIoU"] == pytest.approx(theirs)


def test_masks_of_any_size_are_answered_at_their_size() -> None:
    task = Segmentation(classes=NAMES, upsample=4)  # maps 4 x 4: answers 16 x 16
    model = vt.tune(make_tiny(), "linear", task)
    answers = model(IMAGES)
    assert answers.shape == (12, 3, 16, 16)
    masks = torch.randint(3, (12, 32, 32), generator=G)
    larger = F.interpolate(answers, (32, 32), mode="bilinear")
    assert torch.equal(task.loss(answers, masks), F.cross_entropy(larger, masks))


def test_a_clip_is_read_frame_by_frame() -> None:
    task, model = tasks()["clips"], vt.tune(make_tiny(), "linear", tasks()["clips"])
    clips = torch.randn(2, 3, 3, 32, 32, generator=G)
    frames = torch.stack([make_tiny()(clips[:, t]) for t in range(3)])
    assert torch.allclose(model.features(clips), frames.mean(0), atol=1e-6)
    with pytest.raises(vt.VTError, match=r"expected clips \[B, T, C, H, W\], found shape \[2, 3"):
        model(clips[:, 0])
    assert task.metric == "accuracy"


def test_several_answers_are_scored_apart_and_together() -> None:
    task = tasks()["several"]
    answers = {"kind": F.one_hot(LABELS, 3).float(), "light": torch.zeros(12, 2)}
    targets = {"kind": LABELS, "light": torch.tensor([0] * 9 + [1] * 3)}
    scores = task.score(answers, targets)
    assert scores == {"accuracy": 0.875, "kind/accuracy": 1.0, "light/accuracy": 0.75}


def test_wrong_targets_are_a_sentence() -> None:
    with pytest.raises(vt.VTError, match="expected labels from 0 to 2, found 0 to 3"):
        Classification(classes=NAMES).check(torch.tensor([0, 3]))
    with pytest.raises(vt.VTError, match=r"expected targets \[B, 3\] of zeros and ones"):
        MultiLabel(classes=NAMES).check(torch.zeros(4))
    with pytest.raises(vt.VTError, match="expected labels from 0 to 2"):
        Segmentation(classes=NAMES).check(torch.full((1, 4, 4), 7))


def test_a_task_and_a_number_of_classes_that_contradict_are_refused() -> None:
    with pytest.raises(vt.VTError, match="found one of 3 classes and num_classes=4"):
        vt.tune(make_tiny(), "lora", tasks()["classification"], num_classes=4)
    with pytest.raises(vt.VTError, match="positive integer"):
        vt.tune(make_tiny(), "lora", num_classes=True)


def test_an_unknown_kind_in_a_file_is_a_sentence() -> None:
    with pytest.raises(vt.VTError, match=r"expected a task of kind .*, found 'Poem'"):
        Task.from_record({"kind": "Poem", "classes": []})


@pytest.mark.parametrize("classes", ["abc", 3, None, [1, 2], {"a": 1}])
def test_classes_are_names(classes: Any) -> None:
    with pytest.raises(vt.VTError, match="expected classes as a tuple of names, found"):
        Classification("c", classes)
    assert Classification("c", ["a", "b"]).classes == ("a", "b")


def test_a_task_without_an_answer_is_refused() -> None:
    for task, sentence in (
        (vt.Task("t", ("a",)), "expected a task of one kind, found a Task without a head"),
        (Classification("c"), "expected a task with classes, found the Classification 'c' without"),
    ):
        with pytest.raises(vt.VTError, match=sentence):
            vt.tune(make_tiny(), "lora", task)
    with pytest.raises(
        vt.VTError, match="argument of Classification 'clases': did you mean 'classes'"
    ):
        Classification("c", clases=("a",))  # type: ignore[call-arg]


def test_frozen_features_of_masks_are_no_images() -> None:
    """Features are computed once there, and their maps have another size than the masks."""
    task = vt.load_task("emoji-masks")
    few: Any = replace(task, train=[task.train[i] for i in range(8)], val=[task.val[0]])
    model = vt.tune(vt.load_backbone("vtlite-tiny"), "linear", few)
    assert "val_mIoU" in vt.fit(model, epochs=1, progress=False)[0]


def test_questions_about_wholes_and_places_are_two_tasks() -> None:
    masks = Segmentation("masks", NAMES, upsample=2)
    parts: Any = {"what": Classification("what", NAMES), "where": masks}
    with pytest.raises(vt.VTError, match=r"read the same features.*Classification, Segmentation;"):
        vt.tune(make_tiny(), "linear", Several("both", parts=parts))
    model = vt.tune(make_tiny(), "linear", Several("maps", parts={"a": masks, "b": masks}))
    assert model(torch.randn(2, 3, 32, 32))["b"].shape == (2, len(NAMES), 8, 8)
