from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vtlite as vt
from vtlite import pretrain as module
from vtlite.data.upstream import Upstream
from vtlite.storage import load_tensors


class Few(Upstream):
    """Every 400th upstream image: enough to train on for a second."""

    def __init__(self) -> None:
        super().__init__()
        self.sprites, self.labels = self.sprites[::400], self.labels[::400]


@pytest.fixture(autouse=True)
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Upstream", Few)


def make(out: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    module.pretrain("vtlite-tiny", out, epochs=2, lr=1e-3, seed=seed, progress=False)
    return load_tensors(out)[0]


def test_deterministic_by_seed_with_a_card_and_no_rest(tmp_path: Path) -> None:
    first, again, other = (
        make(tmp_path / "a.safetensors"),
        make(tmp_path / "b.safetensors"),
        make(tmp_path / "c.safetensors", seed=1),
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert "Upstream accuracy" in (tmp_path / "a.md").read_text()
    assert not list(tmp_path.glob("*.partial"))
    assert vt.load_backbone(tmp_path / "a.safetensors").num_heads == 3


def test_a_resnet_is_made_by_the_same_command(tmp_path: Path) -> None:
    module.pretrain("vtlite-resnet", tmp_path / "r.safetensors", epochs=1, lr=1e-3, progress=False)
    assert (
        "A ResNet with torchvision's names: 690,552 parameters" in (tmp_path / "r.md").read_text()
    )
    assert vt.load_backbone(tmp_path / "r.safetensors").num_features == 192


def test_a_stopped_run_continues_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out, calls = make(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", 0
    real = module.augment

    def stop_in_the_second_epoch(sprites: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(sprites)

    monkeypatch.setattr(module, "augment", stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        make(out)
    assert out.with_suffix(".partial").exists()
    assert not out.exists()
    monkeypatch.setattr(module, "augment", real)
    continued = make(out)
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


@pytest.mark.parametrize("name", ["vtlite-tiny", "vtlite-resnet"])
def test_the_embedded_backbone_is_the_one_its_card_describes(name: str) -> None:
    from vtlite.backbones import WEIGHTS

    backbone, card = vt.load_backbone(name), (WEIGHTS / f"{name}.md").read_text()
    assert f"{sum(p.numel() for p in backbone.parameters()):,} parameters" in card
    metadata = load_tensors(WEIGHTS / f"{name}.safetensors")[1]
    assert f"--epochs {metadata['epochs']} --lr {metadata['lr']} --seed {metadata['seed']}" in card
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 4 * 2**20
