"""The embedded tasks, by name: the table of them, and `load_task`.

Each has 800 training and 200 validation images (where its idea does not ask for other numbers) and
a test set whose drawings are in neither. A task is made by one short function of the files beside
this one; the same seed gives the same pixels. `vt.load_task("NAME")` is the way in, `vt.TASKS` the
list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Generator

from vtlite.arguments import named, whole
from vtlite.backbones.base import Pixels, pixels_of
from vtlite.data import emoji, motion, photographs, scenes, shapes, shots
from vtlite.data.images import TRAIN, VAL, ImageDataset, normalise
from vtlite.method import Tuned
from vtlite.storage import as_path, unknown
from vtlite.task import Several, Stream, Task

__all__ = ["TASKS", "TRAIN", "VAL", "ImageDataset", "load_task", "normalise", "source_of"]

TWEMOJI = "Twemoji, CC-BY 4.0"


@dataclass(frozen=True)
class _Recipe:
    group: str
    description: str
    source: str
    make: Callable[[Generator], Task]


# A task's place in this table is its seed: new ones go to the end.
_RECIPES = {
    "fashion": _Recipe(
        "natural",
        "photographs of five kinds of clothing never seen in pre-training, tinted, on coloured "
        "backgrounds",
        "Fashion-MNIST, MIT",
        photographs.clothing,
    ),
    "digits": _Recipe(
        "specialised",
        "scanned handwritten digits (scikit-learn) in one ink on a coloured background",
        "UCI's digits in scikit-learn, CC-BY 4.0",
        photographs.digits,
    ),
    "twemoji": _Recipe(
        "shifted",
        "nine categories of emoji in a drawing style never seen in pre-training",
        TWEMOJI,
        emoji.twemoji,
    ),
    "shapes-location": _Recipe(
        "structured",
        "in which cell of a 4x4 grid does the disc lie, beside another shape?",
        "drawn",
        shapes.location,
    ),
    "shapes-count": _Recipe("structured", "how many shapes, one to four?", "drawn", shapes.count),
    "twemoji-subgroups": _Recipe(
        "shifted",
        "sub-groups of emoji, named in words; made for few shots and for base and new classes",
        TWEMOJI,
        emoji.subgroups,
    ),
    "twemoji-longtail": _Recipe(
        "shifted",
        "thirty sub-groups of emoji, from 100 training images down to 2; as many of each to test",
        TWEMOJI,
        emoji.longtail,
    ),
    "emoji-domains": _Recipe(
        "shifted",
        "eight groups of emoji in one drawing style after another; the same concepts are held out "
        "in every style",
        "Noto and FxEmoji, Apache-2.0; Fluent, MIT; " + TWEMOJI,
        emoji.domains,
    ),
    "emoji-several": _Recipe(
        "shifted",
        "which groups do the two or three emoji in the picture belong to?",
        TWEMOJI,
        scenes.several,
    ),
    "emoji-masks": _Recipe(
        "shifted",
        "which pixels show the emoji, which the busy background?",
        TWEMOJI,
        scenes.masks,
    ),
    "emoji-scenes": _Recipe(
        "shifted",
        "for each pixel the group of the emoji that it shows, or the busy background",
        TWEMOJI,
        scenes.scenes,
    ),
    "emoji-motion": _Recipe(
        "structured",
        "in which order does the emoji go round a circle? No frame, and no set of frames, tells",
        TWEMOJI,
        motion.motion,
    ),
    "emoji-several-tasks": _Recipe(
        "structured",
        "three questions about one emoji: its group, its place, the pattern behind it",
        TWEMOJI,
        scenes.questions,
    ),
}
TASKS = tuple(_RECIPES)


@named
def load_task(
    name: str, image_size: int | None = None, root: str | Path = "data", like: Any = None
) -> Task:
    """Load a task by name -> Task with `.train` (800 images), `.val` (200), `.test`, `.classes`.

    `name` is one of `vt.TASKS`, `"torchvision:CIFAR10"` (any classification set of torchvision,
    downloaded to `root`) or `"folder:PATH"` (PATH/train/CLASS/*.png and PATH/test/CLASS/*.png). An
    embedded name may be followed by a stage (`"emoji-domains:fluent"`), by `base` or `new` (half of
    the classes) and by a number of training images a class and the number of their draw
    (`"twemoji-subgroups:new:16-shot:2"`).

    `image_size` resizes every image to that side; `like` gives images in the size and normalisation
    that this backbone was trained on. Raises `VTError` for a name that does not exist, with the
    nearest ones that do.
    """
    valid = (*TASKS, "torchvision:CIFAR10", "folder:PATH")
    if not isinstance(name, str | Path):
        raise unknown("task", name, valid)
    pixels, name = _pixels(image_size, like), str(name)
    kind, _, rest = name.partition(":")
    if rest and kind in ("torchvision", "folder"):
        from vtlite.data.folders import load_folder, load_torchvision

        return (
            load_folder(rest, pixels)
            if kind == "folder"
            else load_torchvision(rest, as_path(root, "root"), pixels)
        )
    if kind not in _RECIPES or name.endswith(":"):
        raise unknown("task", name, valid)
    recipe = _RECIPES[kind]
    task = recipe.make(Generator().manual_seed(TASKS.index(kind)))
    if rest:
        task = shots.variant(replace(task, name=kind), rest.split(":"))
    task = replace(task, name=name, group=recipe.group, description=recipe.description)
    return _fitted(task, pixels)


def source_of(name: str) -> str:
    """Where an embedded task's pictures come from, and their licence."""
    return _RECIPES[name].source


def _pixels(image_size: int | None, like: Any) -> Pixels:
    if image_size is not None:
        image_size = whole("image_size", image_size, most=4096)
    if isinstance(like, Tuned):
        like = like.backbone
    pixels = Pixels() if like is None else pixels_of(getattr(like, "visual", like))
    return replace(pixels, size=(image_size, image_size)) if image_size else pixels


def _fitted(task: Task, pixels: Pixels) -> Task:
    """The task with all its images in another size and normalisation."""
    if pixels == Pixels():
        return task
    splits: dict[str, Any] = {
        split: data.fitted(pixels)
        for split in ("train", "val", "test")
        if isinstance(data := getattr(task, split), ImageDataset)
    }
    if isinstance(task, Stream):
        splits["stages"] = tuple(_fitted(stage, pixels) for stage in task.stages)
    if isinstance(task, Several):
        splits["parts"] = {name: _fitted(part, pixels) for name, part in task.parts.items()}
    return replace(task, **splits)
