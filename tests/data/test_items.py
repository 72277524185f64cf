"""The kinds of data that people bring: the usual ones train as a TensorDataset does, each other one
is refused in a sentence that says what to do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import vtlite as vt
from tests.conftest import make_tiny
from vtlite.data.items import as_items, batches
from vtlite.task import MultiLabel, Segmentation

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(9, 3, 32, 32, generator=G), torch.arange(9) % 3
PLAIN = TensorDataset(X, Y)


class Made(Dataset[Any]):
    """Nine items of a function."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


def loss(data: Any) -> float:
    model = vt.tune(make_tiny(), "lora", 3, rank=2)
    return vt.fit(model, data, data, epochs=2, batch_size=4, progress=False)[-1]["val_loss"]


@pytest.fixture(scope="module")
def expected() -> float:
    return loss(PLAIN)


USUAL: dict[str, Any] = {
    "Hugging Face": Made(lambda i: {"image": X[i], "label": int(Y[i])}),
    "its image processors": Made(lambda i: {"pixel_values": X[i], "labels": Y[i], "id": i}),
    "its NumPy format": Made(lambda i: {"img": X[i].numpy(), "label": np.int64(Y[i])}),
    "a list of pairs": [(X[i], int(Y[i])) for i in range(9)],
    "a list of lists": [[X[i], Y[i]] for i in range(9)],
    "a DataLoader": DataLoader(PLAIN, 3, shuffle=True),
    "int32": TensorDataset(X, Y.int()),
    "uint8": TensorDataset(X, Y.to(torch.uint8)),
    "a column": TensorDataset(X, Y[:, None]),
    "NumPy scalars": Made(lambda i: (X[i], np.int32(Y[i]))),
    "NumPy arrays of one": Made(lambda i: (X[i].numpy(), np.array([int(Y[i])], dtype=np.uint8))),
    "float64": TensorDataset(X.double(), Y),
    "big-endian": Made(lambda i: (X[i].numpy().astype(">f4"), int(Y[i]))),
    "a subset": Subset(TensorDataset(X.repeat(2, 1, 1, 1), Y.repeat(2)), range(9)),
    "tensors with gradients": TensorDataset(X.clone().requires_grad_(), Y),
}


@pytest.mark.parametrize("kind", USUAL)
def test_what_is_usual_trains_to_the_same_loss(kind: str, expected: float) -> None:
    assert loss(USUAL[kind]) == expected


def test_booleans_are_two_classes() -> None:
    model = vt.tune(make_tiny(), "linear", 2)
    found = vt.evaluate(model, Made(lambda i: (X[i], bool(Y[i] > 0))))
    assert found == vt.evaluate(model, TensorDataset(X, (Y > 0).long()))


REFUSED: dict[str, tuple[Any, str]] = {
    "dict of others": (
        Made(lambda i: {"photo": X[i], "y": 1}),
        "found item 0 with photo, y; rename",
    ),
    "triple": (Made(lambda i: (X[i], 1, i)), "found 3 things in item 0"),
    "image alone": (
        Made(lambda i: X[i]),
        r"expected items \(image, label\), found Tensor in item 0",
    ),
    "PIL": (
        Made(lambda i: (Image.new("RGB", (32, 32)), 1)),
        "found a PIL image in item 0; .*ToTensor",
    ),
    "list of numbers": (Made(lambda i: (X[i].tolist(), 1)), r'with_format\("torch"\)'),
    "uint8": (TensorDataset(X.byte(), Y), r"found dtype torch.uint8 in item 0; scale the pixels"),
    "channels last": (TensorDataset(X.permute(0, 2, 3, 1), Y), r"channels first: images.permute"),
    "sizes": (Made(lambda i: (X[i][:, : 16 + i], 1)), "expected images of one size, found"),
    "NaN": (Made(lambda i: (X[i] / (i != 7), 1)), "NaN or infinity in an image, item 7"),
    "text label": (Made(lambda i: (X[i], "cat")), r"found 'cat' in item 0; number the classes"),
    "no label": (Made(lambda i: (X[i], None)), "found None in item 0"),
    "float label": (TensorDataset(X, Y.float()), "as whole numbers, found torch.float64"),
    "NaN label": (Made(lambda i: (X[i], math.nan)), "as whole numbers"),
    "one-hot": (
        TensorDataset(X, torch.eye(3)[Y]),
        r"found shape \[4, 3\]; take labels.argmax\(1\)",
    ),
    "negative": (TensorDataset(X, Y - 1), "expected labels from 0 to 2, found -1 to 1"),
    "too large": (TensorDataset(X, Y + 1), "expected labels from 0 to 2, found 1 to 3"),
    "beyond int64": (Made(lambda i: (X[i], 2**64)), "found 18446744073709551616 in item 0"),
    "of two kinds": (Made(lambda i: (X[i], 1 if i % 2 else torch.ones(2))), "targets of one kind"),
    "empty": (TensorDataset(X[:0], Y[:0]), "expected at least one image in the training data"),
    "iterable": (Endless(), "found Endless without a length; make a list"),
    "generator": (((x, 0) for x in X), "found generator without a length; make a list"),
    "its DataLoader": (DataLoader(Endless(), 2), "found a DataLoader that chooses"),
    "sampler": (
        DataLoader(PLAIN, sampler=SubsetRandomSampler([1])),
        "found a DataLoader that chooses",
    ),
    "collate": (DataLoader(PLAIN, collate_fn=list), "found a DataLoader that chooses"),
    "path": ("images/train", r'load it first, e.g. vt.load_task\("folder:PATH"\)'),
    "splits": ({"train": PLAIN, "test": PLAIN}, r'found a dict of train, test; .* data\["train"\]'),
    "images alone": (X, r"TensorDataset\(images, labels\)"),
    "arrays": ((X.numpy(), Y.numpy()), r"TensorDataset\(images, labels\)"),
    "number": (3, "found int without a length"),
    "task": (vt.load_task("digits"), "found the task digits; pass one of its splits"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_rest_is_one_sentence(kind: str) -> None:
    data, sentence = REFUSED[kind]
    model = vt.tune(make_tiny(), "lora", 3, rank=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(vt.VTError, match=sentence) as error:
        vt.fit(model, data, epochs=1, batch_size=4, progress=False)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_method_that_looks_at_the_data_first_reads_them_too() -> None:
    model = vt.tune(make_tiny(), "gps", 3, batch_size=4)
    other = vt.tune(make_tiny(), "gps", 3, batch_size=4)
    found = vt.fit(model, USUAL["Hugging Face"], epochs=1, progress=False)
    assert found[0]["loss"] == vt.fit(other, PLAIN, epochs=1, progress=False)[0]["loss"]


def test_targets_of_other_tasks() -> None:
    several = MultiLabel("m", ("a", "b"))
    assert several.check(torch.tensor([[0.0, 1.0]])).shape == (1, 2)
    for wrong in (torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, math.nan]])):
        with pytest.raises(vt.VTError, match="zeros and ones"):
            several.check(wrong)
    masks = Segmentation("s", ("a", "b"))
    assert masks.check(torch.ones(1, 4, 4, dtype=torch.uint8)).dtype == torch.int64
    assert masks.check(torch.ones(1, 1, 4, 4, dtype=torch.uint8)).shape == (1, 4, 4)
    with pytest.raises(
        vt.VTError, match=r"expected labels \[B, H, W\] from 0 to 1, found shape \[1\]"
    ):
        masks.check(torch.ones(1, dtype=torch.int64))


def test_only_a_shuffled_order_draws_random_numbers() -> None:
    state = torch.get_rng_state()
    order = torch.cat([y for _, y in batches(as_items(PLAIN, "a test"), 4)])
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(order, Y)


@pytest.mark.parametrize(
    ("images", "warned"),
    [
        (X.clamp(-1, 1), False),
        (X.sigmoid(), True),  # in [0, 1]
        (X.sigmoid() * 255, True),
        (torch.zeros(9, 3, 32, 32), False),  # nobody can say
        (torch.full((9, 3, 32, 32), -1.0), False),
    ],
)
@pytest.mark.parametrize("call", [vt.evaluate, lambda *a: vt.fit(*a, epochs=1, progress=False)])
def test_pixels_of_another_range_are_warned_of_once(
    images: Tensor, warned: bool, call: Callable[..., Any]
) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call(vt.tune(make_tiny(), "linear", 3), TensorDataset(images, Y))
    assert len(found) == warned
    if warned:
        assert "expected pixels between -1.0 and 1.0" in str(found[0].message)
        assert found[0].filename == __file__  # where the user's line stands
