"""The pre-training of the embedded networks: its losses, its determinism, what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vtlite as vt
from vtlite import pretrain as module
from vtlite.backbones import WEIGHTS, load_clip
from vtlite.data.upstream import CONCEPT, GROUP, KIND, STYLES, Batch, Upstream
from vtlite.storage import VTError, load_tensors


class Few(Upstream):
    """The smallest style alone."""

    def __init__(self, styles: Sequence[str] = ("fxemoji",)) -> None:
        super().__init__(styles)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Upstream", Few)
    monkeypatch.setattr(module, "MEASURED", {})
    monkeypatch.setattr(module, "EVERY", 2)
    monkeypatch.setattr(module, "AGE", 2)


def make(out: Path, name: str = "vtlite-clip", seed: int = 0, steps: int = 5) -> dict[str, Any]:
    module.pretrain(name, out, steps, lr=1e-3, seed=seed, batch_size=16, progress=False)
    return load_tensors(out)[0]


def batch_of(captions: list[str], about: list[int], topics: list[list[int]]) -> Batch:
    return Batch(
        torch.zeros(len(captions), 3, 32, 32),
        captions,
        torch.tensor(about),
        torch.tensor(topics),
        torch.zeros(len(captions), dtype=torch.long),
        torch.zeros(len(captions), 3),
    )


def test_a_picture_owns_what_is_said_of_its_concept() -> None:
    """An apple, the same apple in another style, a pear, a cat; captions about all levels."""
    apple, pear, cat = [0, 0, 0], [1, 0, 0], [2, 1, 1]
    batch = batch_of(
        ["red apple", "an apple", "fruit", "animals"],
        [CONCEPT, CONCEPT, KIND, GROUP],
        [apple, apple, pear, cat],
    )
    own, aside = module.matches(batch, ["red apple", "an apple", "fruit", "animals"])
    assert own.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert aside.int().tolist() == [[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_the_contrast_is_clips_where_each_has_its_own() -> None:
    logits = torch.randn(5, 5)
    target = torch.arange(5)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    none = torch.zeros(5, 5, dtype=torch.bool)
    found = module.contrast(logits, torch.eye(5, dtype=torch.bool), none)
    torch.testing.assert_close(found, expected)


def test_pairs_set_aside_have_no_part_in_the_contrast() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    own = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]).bool()
    aside = torch.zeros(3, 4).bool()
    aside[0, 3] = True
    module.contrast(logits, own, aside).backward()
    assert logits.grad is not None
    assert logits.grad[0, 3] == 0
    assert (logits.grad[~aside] != 0).all()
    log_p = logits.detach()[0, :3].log_softmax(0)[0], logits.detach()[1].log_softmax(0)[1:3].mean()
    log_p = (*log_p, logits.detach()[2].log_softmax(0)[3])
    by_image = -torch.stack(log_p).mean()
    columns = [logits.detach()[:, u].log_softmax(0) for u in range(3)]
    last = logits.detach()[1:, 3].log_softmax(0)
    by_text = -torch.stack([columns[0][0], columns[1][1], columns[2][1], last[1]]).mean()
    torch.testing.assert_close(module.contrast(logits, own, aside), (by_image + by_text) / 2)


def test_texts_by_halves_are_texts_at_once() -> None:
    data = Few()
    model = module.Pretraining(vt.create_backbone("vtlite-tiny", depth=1), data)
    captions = ["apple", "an emoji of a very long and winding road", "a drawing of cat", "flag"]
    tokens = model.clip.tokenizer(captions)
    torch.testing.assert_close(model._encode(captions), model.clip.encode_text(tokens))


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [module._factor(step, 1000) for step in range(1000)]
    assert rates[0] == 1 / module.WARMUP
    assert rates[module.WARMUP : 600] == [1.0] * (600 - module.WARMUP)
    assert rates[800] == pytest.approx(0.5)
    assert rates[999] == pytest.approx(1 / 400)


@pytest.mark.usefixtures("_quick")
def test_deterministic_by_seed_with_a_card_and_no_rest(tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    first, again = make(out), make(tmp_path / "b.safetensors")
    other = make(tmp_path / "c.safetensors", seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    card = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "--name vtlite-clip --steps 5 --lr 0.001\n  --batch-size 16 --seed 0" in card
    assert "from the weights of `vtlite-supervised`" in card
    assert not list(tmp_path.glob("*.partial"))
    clip = load_clip(out)
    assert clip.num_heads == 3
    assert clip.tokenize(["an emoji of cat"]).shape == (1, 16)


@pytest.mark.usefixtures("_quick")
def test_a_backbone_alone_is_made_by_the_same_command(tmp_path: Path) -> None:
    make(tmp_path / "r.safetensors", "vtlite-resnet", steps=1)
    card = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "A ResNet with torchvision's names: 690,552 parameters" in card
    assert "from random weights" in card
    assert vt.load_backbone(tmp_path / "r.safetensors").num_features == 192


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("steps_before", [5, 7])
def test_a_stopped_run_continues_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps_before: int
) -> None:
    """Also with another number of steps, as long as the learning rate has not begun to fall."""
    whole, out, real = make(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", Few.batch

    def stop_in_the_fourth_step(data: Upstream, count: int, seed: int) -> Batch:
        if seed == 3:
            raise KeyboardInterrupt
        return real(data, count, seed)

    monkeypatch.setattr(Few, "batch", stop_in_the_fourth_step)
    with pytest.raises(KeyboardInterrupt):
        make(out, steps=steps_before)
    assert out.with_suffix(".partial").exists()
    assert not out.exists()
    monkeypatch.setattr(Few, "batch", real)
    continued = make(out)
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


@pytest.mark.usefixtures("_quick")
def test_mistakes_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VTError, match="unknown backbone 'vtlite-clap': did you mean"):
        make(tmp_path / "a.safetensors", "vtlite-clap")
    with pytest.raises(VTError, match="expected at least 1 step, 8 pictures a step"):
        make(tmp_path / "a.safetensors", steps=0)
    monkeypatch.setattr(module, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "a.safetensors", steps=4)
    with pytest.raises(VTError, match=r"a run with seed 1 in .*partial, found 0; ask for the same"):
        make(tmp_path / "a.safetensors", seed=1, steps=4)
    with pytest.raises(VTError, match=r"a run with steps 6 in .*, found 4"):
        make(tmp_path / "a.safetensors", steps=6)


def test_what_is_measured_for_the_card() -> None:
    found = module.measure(load_clip(), "fxemoji")
    assert list(found) == [
        "label, first 1",
        "label, first 5",
        "subcategory, first 1",
        "category, first 1",
    ]
    assert 0.2 < found["label, first 1"] < found["label, first 5"] < 1


@pytest.mark.parametrize(
    "name", ["vtlite-tiny", "vtlite-supervised", "vtlite-resnet", "vtlite-clip"]
)
def test_the_embedded_network_is_the_one_its_card_describes(name: str) -> None:
    network = vt.load_backbone(name)
    card = (WEIGHTS / f"{name}.md").read_text(encoding="utf-8")
    assert f"{sum(p.numel() for p in network.parameters()):,} parameters" in card
    metadata = load_tensors(WEIGHTS / f"{name}.safetensors")[1]
    length = "steps" if "steps" in metadata else "epochs"
    assert f"--{length} {metadata[length]} --lr {metadata['lr']}" in card
    assert f"--seed {metadata['seed']}" in card
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 4 * 2**20


def test_styles_that_are_tested_on_are_not_trained_on() -> None:
    assert not {"twemoji", "high-contrast"} & set(STYLES)
