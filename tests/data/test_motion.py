"""The task of clips: the order of frames tells the class, and nothing else does."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.ensemble import ExtraTreesClassifier
from torch import Generator, Tensor

import vtlite as vt
from vtlite.data import motion
from vtlite.data.sheets import emoji

CHANCE = 0.25
SPREAD = 4 * (0.25 * 0.75 / 600) ** 0.5  # four standard deviations of a guess on 600 clips


@cache
def task() -> Any:
    return vt.load_task("emoji-motion")


def clips(first: Tensor, step: int) -> Tensor:
    sprites = emoji("twemoji")[0][: len(first)]
    steps = torch.full_like(first, step)
    return motion._clips(sprites, first, steps, Generator().manual_seed(0))


@pytest.mark.parametrize("step", motion.STEPS.values())
def test_the_frames_of_a_clip_are_the_same_set_in_every_class(step: int) -> None:
    first = torch.arange(8)
    one, other = clips(first, 1), clips(first, step)
    for a, b in zip(one, other, strict=True):
        assert {f.numpy().tobytes() for f in a} == {f.numpy().tobytes() for f in b}
        assert len({f.numpy().tobytes() for f in a}) == motion.FRAMES


@pytest.mark.parametrize("step", motion.STEPS.values())
def test_each_single_frame_is_equally_often_at_each_place_in_every_class(step: int) -> None:
    """Over the eight first places, frame t sees every place once."""
    places = [(torch.arange(8) + step * t) % 8 for t in range(motion.FRAMES)]
    assert all(sorted(place.tolist()) == list(range(8)) for place in places)


def test_the_orders_differ() -> None:
    first = torch.zeros(4, dtype=torch.long)
    seen = {clips(first, step)[0].numpy().tobytes() for step in motion.STEPS.values()}
    assert len(seen) == len(motion.STEPS) == 4


@cache
def without_background(split: str) -> np.ndarray:
    """Where the emoji is: distance from the clip's median picture, 8x8 cells -> [N, T, 64]."""
    frames = getattr(task(), split).images.float()
    moving = (frames - frames.median(dim=1, keepdim=True).values).abs().mean(2)  # [N, T, 32, 32]
    return moving.unflatten(3, (8, 4)).unflatten(2, (8, 4)).mean((3, 5)).flatten(2).numpy()


def accuracy(train: np.ndarray, test: np.ndarray) -> float:
    model = ExtraTreesClassifier(100, random_state=0)
    model.fit(train, task().train.labels.numpy())
    return float(model.score(test, task().test.labels.numpy()))


@pytest.mark.parametrize("t", [0, 5])
def test_no_single_frame_tells_the_class(t: int) -> None:
    train, test = (without_background(split)[:, t] for split in ("train", "test"))
    assert abs(accuracy(train, test) - CHANCE) < SPREAD


def test_the_frames_without_their_order_do_not_tell_the_class() -> None:
    """Every cell's eight values, sorted: all that a set of frames says of it."""
    train, test = (
        np.sort(cells, axis=1).reshape(len(cells), -1)
        for cells in (without_background("train"), without_background("test"))
    )
    assert abs(accuracy(train, test) - CHANCE) < SPREAD


def test_shuffled_clips_do_not_tell_the_class_and_ordered_ones_do() -> None:
    """The way between two successive frames, turned by the place in the first: 8 angles a clip."""
    axis = np.arange(8) - 3.5
    g = np.random.default_rng(0)

    def turns(split: str, shuffled: bool) -> np.ndarray:
        weight = without_background(split).reshape(-1, 8, 8, 8)
        weight = weight**2 / (weight**2).sum((2, 3), keepdims=True)
        y, x = (weight.sum(3) * axis).sum(2), (weight.sum(2) * axis).sum(2)
        place = x + 1j * y
        place -= place.mean(1, keepdims=True)
        if shuffled:
            place = g.permuted(place, axis=1)
        turn = place[:, 1:] * place[:, :-1].conj()
        return np.concatenate([turn.real, turn.imag], 1)

    scores = {
        shuffled: accuracy(turns("train", shuffled), turns("test", shuffled))
        for shuffled in (True, False)
    }
    assert abs(scores[True] - CHANCE) < SPREAD
    assert scores[False] > 0.9
