from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vtlite as vt
from vtlite import bench
from vtlite.data.images import ImageDataset
from vtlite.data.tasks import load_task
from vtlite.studies import (
    STUDIES,
    by_frequency,
    further,
    harmonic,
    in_sequence,
    shifted,
    small_resnet,
    small_vit,
)
from vtlite.task import Classification, Stream


def test_the_harmonic_mean_is_low_where_one_of_the_two_is() -> None:
    assert harmonic(0.9, 0.3) == pytest.approx(0.45)  # their mean is 0.6
    assert harmonic(0.0, 0.0) == 0.0


class Always(nn.Module):
    """Answers with one class, whatever it sees."""

    def __init__(self, label: int, classes: int) -> None:
        super().__init__()
        self.logits = nn.functional.one_hot(torch.tensor(label), classes).float()

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def pictures(labels: list[int]) -> ImageDataset:
    return ImageDataset(torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8), torch.tensor(labels))


def test_each_class_of_a_long_tail_counts_where_its_training_images_are() -> None:
    """A class with 21 images is one of many, one with 20 is not; of two classes of a kind the right
    one is half."""
    train = pictures([0] * 21 + [1] * 20 + [2] * 7 + [3] * 6)
    task = Classification("long", ("a", "b", "c", "d"), train, test=pictures([0, 1, 2, 3] * 2))
    found = [by_frequency(Always(label, 4), task) for label in range(4)]
    assert found[0] == {"many": 1, "medium": 0, "few": 0}
    assert found[1] == found[2] == {"many": 0, "medium": 0.5, "few": 0}
    assert found[3] == {"many": 0, "medium": 0, "few": 1}


def test_what_was_learnt_on_base_classes_is_asked_for_the_new_ones_by_their_names() -> None:
    """The new classes' names and images are used, and the context that was learnt, not a fresh
    one."""
    clip, task = vt.load_backbone("vtlite-clip"), load_task("twemoji-subgroups:base:1-shot")
    seen: list[Any] = []

    def again(other: Any) -> vt.Tuned:
        seen.append(other)
        seen.append(vt.tune(clip, "coop", other, num_context=3))
        return seen[-1]

    model = vt.tune(clip, "coop", task, num_context=3)
    with torch.no_grad():
        model.head.context += 0.1
    base = vt.evaluate(model, task.test)["accuracy"]
    more = further(model, task, base, again)
    new = load_task("twemoji-subgroups:new:1-shot")
    assert seen[0].classes == new.classes
    assert not set(new.classes) & set(task.classes)
    torch.testing.assert_close(seen[1].head.context, model.head.context)
    assert more["new"] == vt.evaluate(seen[1], new.test)["accuracy"]
    assert more["harmonic mean"] == pytest.approx(harmonic(base, more["new"]))


def small_stream() -> Stream:
    """Two domains whose second contradicts the first: the same pictures, other labels."""
    images = (torch.arange(8)[:, None, None, None] % 2 * 255).byte().expand(8, 3, 32, 32).clone()
    labels = torch.arange(8) % 2
    stages = []
    for name, own in (("first", labels), ("second", 1 - labels)):
        data = ImageDataset(images, own)
        stages.append(Classification(name, ("a", "b"), data, data, data))
    return Stream("two", ("a", "b"), *[stages[0].train] * 3, stages=tuple(stages))


def test_forgetting_is_the_fall_from_where_a_domain_was_when_it_was_new() -> None:
    stream = small_stream()
    model = vt.tune(vt.load_backbone("vtlite-tiny"), "linear", stream)
    score, more = in_sequence(model, stream, "test", epochs=30, lr=0.1, seed=0)
    assert more["matrix"] == [[1, 0], [0, 1]]  # whoever learns the second forgets the first
    assert (score, more["forgotten"]) == (0.5, 1.0)


def test_s_prompting_answers_after_each_domain_as_if_it_had_seen_no_other_yet() -> None:
    """After the first, no key of the second may be taken, though all keys are there by then."""
    stream = small_stream()
    model = vt.tune(vt.load_backbone("vtlite-tiny"), "s_prompting", stream, num_prompts=2)
    _, more = in_sequence(model, stream, "test", epochs=20, lr=0.05, seed=0)
    assert more["matrix"][0] == [1, 0]
    assert model.network.known.tolist() == [True, True]


@pytest.mark.parametrize("name", ["tpt", "tda"])
def test_what_trains_nothing_takes_its_setting_from_the_grid(name: str) -> None:
    entry = bench.ENTRIES[name]
    task = load_task("emoji-domains:high-contrast")
    settings = [entry.tuned(task, lr=number).method.settings() for number in entry.choices()]
    assert len({str(each) for each in settings}) == len(entry.choices()) > 1


def test_every_study_asks_for_what_its_table_shows() -> None:
    run = bench.run_cell("linear", "twemoji-longtail", 1e-3, 0, True, 1)
    assert set(run["more"]) == {"many", "medium", "few"}
    (row,) = bench.summary(
        [{**run, "final": final} for final in (False, True)], STUDIES["long-tail"].tasks
    )
    assert "| twemoji-longtail | many | medium | few |" in bench.markdown([row])


def test_a_shifted_image_is_one_of_the_same_image_moved() -> None:
    """Every one of the 49 places is somewhere, within is what was there, and nothing else."""
    images = torch.rand(200, 3, 8, 8)
    moved = shifted(images)
    assert moved.shape == images.shape
    middle = images[:, :, 3:5, 3:5]  # stays inside, wherever it goes
    places = set()
    for image, inside in zip(moved, middle, strict=True):
        windows = image.unfold(1, 2, 1).unfold(2, 2, 1)  # [3, 7, 7, 2, 2]
        same = (windows == inside[:, None, None]).all(-1).all(-1).all(0)
        assert same.any()
        places |= {tuple(place) for place in same.nonzero().tolist()}
    assert len(places) > 40
    assert shifted(images, 0).equal(images)


def test_students_are_a_tenth_and_their_start_is_the_seeds() -> None:
    large = sum(p.numel() for p in vt.load_backbone("vtlite-tiny").parameters())
    for make in (small_vit, small_resnet):
        first, again, other = (next(make(seed).parameters()) for seed in (0, 0, 1))
        assert first.equal(again)
        assert not first.equal(other)
        assert 0.09 < sum(p.numel() for p in make(0).parameters()) / large < 0.12


def test_alone_is_the_same_student_without_a_word_of_the_teacher() -> None:
    task = load_task("twemoji")
    alone, taught = (
        bench.ENTRIES[name].tuned(task, 1) for name in ("student alone", "student, kd")
    )
    assert [p.shape for p in alone.parameters()] == [p.shape for p in taught.parameters()]
    assert all(a.equal(b) for a, b in zip(alone.parameters(), taught.parameters(), strict=True))
    assert alone.method.settings()["weight"] == 0
    entries = STUDIES["distillation"].entries
    assert set(entries) == set(bench.STUDENTS)
