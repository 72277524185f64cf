"""Images with targets of every kind: items, sizes, normalisation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vtlite.backbones.base import Pixels
from vtlite.data.images import ImageDataset, joined
from vtlite.storage import VTError

IMAGES = torch.arange(4 * 3 * 6 * 8).remainder(256).byte().view(4, 3, 6, 8)
MASKS = torch.arange(4 * 6 * 8).remainder(5).view(4, 6, 8)
LABELS = {
    "label": torch.tensor([0, 1, 2, 3]),
    "several": torch.eye(4),
    "mask": MASKS,
    "dict": {"label": torch.tensor([0, 1, 2, 3]), "mask": MASKS},
}


@pytest.mark.parametrize("kind", LABELS)
def test_a_loader_gives_what_indexing_gives(kind: str) -> None:
    data = ImageDataset(IMAGES, LABELS[kind])
    images, targets = next(iter(DataLoader(data, batch_size=3)))
    assert torch.equal(images, torch.stack([data[i][0] for i in range(3)]))
    for i in range(3):
        target = data[i][1]
        pairs = [(targets, target)]
        if isinstance(target, dict):
            pairs = [(targets[name], target[name]) for name in target]
        assert all(torch.equal(batch[i], torch.as_tensor(one)) for batch, one in pairs)


def test_a_label_is_an_int_and_several_are_floats() -> None:
    assert isinstance(ImageDataset(IMAGES, LABELS["label"])[1][1], int)
    target = ImageDataset(IMAGES, torch.eye(4, dtype=torch.long))[1][1]
    assert target.dtype == torch.float32
    assert ImageDataset(IMAGES, MASKS.int())[0][1].dtype == torch.int64


@pytest.mark.parametrize("kind", LABELS)
def test_a_subset_keeps_targets_sources_and_normalisation(kind: str) -> None:
    data = ImageDataset(IMAGES, LABELS[kind], (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), torch.arange(4))
    some = data.subset([2, 0])
    assert torch.equal(some[0][0], data[2][0])
    assert str(some[1][1]) == str(data[0][1])
    assert some.sources is not None
    assert some.sources.tolist() == [2, 0]


def test_mean_and_std_are_those_of_each_channel() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = ImageDataset(IMAGES, LABELS["label"], mean, std)[0][0]
    expected = (IMAGES[0].float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(
        std
    ).view(3, 1, 1)
    assert torch.allclose(image, expected, atol=1e-6)
    assert image.dtype == torch.float32


@pytest.mark.parametrize("size", [(12, 16), (3, 4), (9, 5)])
def test_masks_follow_their_images_and_stay_whole_numbers(size: tuple[int, int]) -> None:
    whole = torch.zeros(1, 6, 8, dtype=torch.long)
    whole[:, :, 4:] = 3
    images = (whole * 80).byte().unsqueeze(1).expand(-1, 3, -1, -1)
    data = ImageDataset(images, whole).resized(size)
    image, mask = data[0]
    assert image.shape == (3, *size)
    assert mask.shape == size
    assert set(mask.unique().tolist()) == {0, 3}
    inside = [0, size[1] - 1]  # beside the border, pictures are mixed, masks are not
    assert torch.equal((image[0, :, inside] > -0.5).long() * 3, mask[:, inside])


def test_larger_masks_repeat_and_come_back() -> None:
    data = ImageDataset(IMAGES, MASKS)
    larger = data.resized((12, 16))
    assert torch.equal(larger.labels[:, ::2, ::2], MASKS)
    assert torch.equal(larger.labels[:, 1::2, 1::2], MASKS)
    assert torch.equal(larger.resized((6, 8)).labels, MASKS)


def test_clips_are_resized_frame_by_frame() -> None:
    clips = IMAGES.unsqueeze(1).expand(-1, 5, -1, -1, -1)
    data = ImageDataset(clips, LABELS["label"]).resized((12, 10))
    assert data[0][0].shape == (5, 3, 12, 10)
    assert torch.equal(
        data.images[:, 4], ImageDataset(IMAGES, LABELS["label"]).resized((12, 10)).images
    )


def test_fitted_takes_size_and_normalisation() -> None:
    data = ImageDataset(IMAGES, MASKS).fitted(Pixels((4, 10), (0.0,) * 3, (1.0,) * 3, "bicubic"))
    image, mask = data[0]
    assert image.shape == (3, 4, 10)
    assert mask.shape == (4, 10)
    assert 0 <= image.min() < image.max() <= 1


def test_joined_sets_follow_each_other() -> None:
    one, two = (
        ImageDataset(IMAGES[:1], torch.tensor([3])),
        ImageDataset(IMAGES[1:], torch.arange(3)),
    )
    both = joined([one, two])
    assert torch.equal(both.images, IMAGES)
    assert both.labels.tolist() == [3, 0, 1, 2]


@pytest.mark.parametrize("labels", [torch.zeros(3), {"a": torch.zeros(4), "b": torch.zeros(3)}])
def test_as_many_labels_as_images(labels: Tensor | dict[str, Tensor]) -> None:
    with pytest.raises(VTError, match=r"expected uint8 images \[N, C, H, W\] and N labels, found"):
        ImageDataset(IMAGES, labels)


@pytest.mark.parametrize("kind", LABELS)
def test_joined_sets_are_one_after_another(kind: str) -> None:
    data = ImageDataset(IMAGES, LABELS[kind], mean=(0.1,), std=(0.2,))
    both = joined([data.subset([2, 3]), data.subset([0])])
    assert len(both) == 3
    for i, j in enumerate((2, 3, 0)):
        assert torch.equal(both[i][0], data[j][0])
        assert str(both[i][1]) == str(data[j][1])
