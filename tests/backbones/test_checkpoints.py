"""Backbones with weights: what can be loaded, what is refused, and never a network or a pickle
behind one's back."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vtlite as vt
from tests.conftest import make_tiny
from vtlite.backbones import WEIGHTS, VisionTransformer
from vtlite.backbones.clip import CLIP, TextTransformer
from vtlite.data.tasks import normalise

EMBEDDED = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def pictures(count: int = 3, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def message(name_or_path: object, **settings: Any) -> str:
    with pytest.raises(vt.VTError) as error:
        vt.load_backbone(str(name_or_path), **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    vt.save_backbone(make_tiny(), tmp_path / "vit.safetensors")
    return tmp_path / "vit.safetensors"


def changed(path: Path, tensors: dict[str, Tensor | None]) -> Path:
    """A one-head ViT of two blocks with some tensors replaced or, where None, left out."""
    whole: dict[str, Any] = {**make_tiny(embed_dim=64, num_heads=1).state_dict(), **tensors}
    save_file({key: t for key, t in whole.items() if t is not None}, path)
    return path


# What can be loaded
# -------------------------------------------------------------------------------------------------


def test_vtlite_tiny_is_embedded() -> None:
    assert "vtlite-tiny" in EMBEDDED


@pytest.mark.parametrize("name", [n for n in EMBEDDED if n != "vtlite-clip"])  # two towers
def test_an_embedded_backbone_loads_twice_the_same_in_eval_mode_without_a_head(name: str) -> None:
    first, second = vt.load_backbone(name), vt.load_backbone(name)
    assert not any(module.training for module in first.modules())
    assert isinstance(first.get_classifier(), nn.Identity)
    assert {p.dtype for p in first.parameters()} == {torch.float32}
    features = first(pictures())
    assert features.shape == (3, first.num_features)
    assert torch.isfinite(features).all()
    assert torch.equal(features, second(pictures()))
    with torch.no_grad():
        next(second.parameters()).add_(1)
    assert torch.equal(
        vt.load_backbone(name)(pictures()), features
    )  # nobody else's copy was changed


def test_loading_draws_no_random_numbers() -> None:
    state = torch.random.get_rng_state()
    vt.load_backbone("vtlite-tiny")
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_embedded_backbone_is_trained() -> None:
    """A linear probe on its features beats one on those of a fresh backbone by far."""
    from sklearn.linear_model import LogisticRegression

    task: Any = vt.load_task("digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = vt.create_backbone("vtlite-tiny").eval()
    train, test = task.train.subset(slice(400)), task.test.subset(slice(300))
    accuracy = []
    for backbone in (vt.load_backbone("vtlite-tiny"), fresh):
        with torch.no_grad():
            features, unseen = (
                nn.functional.normalize(backbone(normalise(data.images))).numpy()
                for data in (train, test)
            )
        probe = LogisticRegression(C=100, max_iter=300).fit(features, train.labels.numpy())
        accuracy.append(probe.score(unseen, test.labels.numpy()))
    assert accuracy[0] > accuracy[1] + 0.2


def test_the_embedded_file_means_the_same_to_timm() -> None:
    vit = pytest.importorskip("timm").models.vision_transformer.VisionTransformer
    ours, file = vt.load_backbone("vtlite-tiny"), load_file(WEIGHTS / "vtlite-tiny.safetensors")
    theirs = vit(
        img_size=32, patch_size=8, embed_dim=96, depth=6, num_heads=3, num_classes=0
    ).eval()
    theirs.load_state_dict({key: t.float() for key, t in file.items()})
    torch.testing.assert_close(ours(pictures()), theirs(pictures()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"global_pool": "avg"},
        {"init_values": 0.1},
        {"qkv_bias": False},
        {"num_heads": 4, "mlp_ratio": 2},
    ],
)
@pytest.mark.parametrize("as_type", [str, Path])
def test_a_saved_backbone_comes_back_as_it_was(
    tmp_path: Path, overrides: dict[str, Any], as_type: type
) -> None:
    backbone = make_tiny(**overrides)
    vt.save_backbone(backbone, as_type(tmp_path / "vit.safetensors"))
    loaded = vt.load_backbone(as_type(tmp_path / "vit.safetensors"))
    assert isinstance(loaded, VisionTransformer)
    assert torch.equal(loaded(pictures()), backbone(pictures()))


def test_another_image_size_and_channels_are_read_off_the_file(tmp_path: Path) -> None:
    backbone = make_tiny(img_size=48, patch_size=12, in_chans=1)
    vt.save_backbone(backbone, tmp_path / "x.safetensors")
    images = torch.rand(2, 1, 48, 48)
    assert torch.equal(vt.load_backbone(tmp_path / "x.safetensors")(images), backbone(images))


def test_a_loaded_backbone_can_be_tuned_and_does_not_touch_the_file(saved: Path) -> None:
    before = saved.read_bytes()
    model = vt.tune(vt.load_backbone(saved), "full", num_classes=3)
    model(pictures()).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert saved.read_bytes() == before


def test_a_head_is_not_saved(tmp_path: Path) -> None:
    vt.save_backbone(make_tiny(num_classes=9), tmp_path / "x.safetensors")
    assert not [key for key in load_file(tmp_path / "x.safetensors") if key.startswith("head")]
    assert vt.load_backbone(tmp_path / "x.safetensors")(pictures()).shape == (3, 24)


def test_half_precision_is_half_the_file_and_nearly_the_same(tmp_path: Path) -> None:
    backbone = make_tiny(embed_dim=96)
    for name, half in (("full", False), ("half", True)):
        vt.save_backbone(backbone, tmp_path / name, half=half)
    values = 2 * sum(p.numel() for p in backbone.parameters())
    assert (tmp_path / "full").stat().st_size - (tmp_path / "half").stat().st_size == pytest.approx(
        values, rel=0.01
    )
    loaded = vt.load_backbone(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded(pictures()), backbone(pictures()), atol=0.02, rtol=0.02)


def test_a_published_file_loads_without_its_head(tmp_path: Path) -> None:
    """As on the hub: timm's names, a head, no word about the number of heads."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=64, depth=2, num_classes=10
    ).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = vt.load_backbone(tmp_path / "model.safetensors")
    theirs.reset_classifier(0)
    torch.testing.assert_close(
        loaded(pictures(2, 64)), theirs(pictures(2, 64)), atol=1e-5, rtol=1e-5
    )


def test_the_number_of_heads_can_be_told(tmp_path: Path) -> None:
    save_file(make_tiny().state_dict(), tmp_path / "x.safetensors")
    assert "found no number, and 64 does not; pass num_heads" in message(tmp_path / "x.safetensors")
    assert torch.equal(
        vt.load_backbone(tmp_path / "x.safetensors", num_heads=3)(pictures()),
        make_tiny()(pictures()),
    )
    assert not torch.allclose(
        vt.load_backbone(tmp_path / "x.safetensors", num_heads=4)(pictures()),
        make_tiny()(pictures()),
        atol=1e-3,
    )


# What is refused
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0, 4, 100, 0.5, -1])
def test_a_truncated_file(saved: Path, part: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(len(whole) * part) if part == 0.5 else int(part)])
    assert "truncated or damaged" in message(saved)


def test_a_pickled_checkpoint(tmp_path: Path) -> None:
    torch.save(make_tiny().state_dict(), tmp_path / "vit.pt")
    assert "is a pickled PyTorch checkpoint" in message(tmp_path / "vit.pt")


def test_a_safetensors_file_of_another_library(tmp_path: Path) -> None:
    foreign = torchvision.models.VisionTransformer(
        32, 8, num_layers=1, num_heads=3, hidden_dim=24, mlp_dim=48
    )
    save_file(foreign.state_dict(), tmp_path / "x.safetensors")
    said = message(tmp_path / "x.safetensors")
    assert "is not a ViT with timm's names: it lacks" in said
    assert "blocks.0.attn.qkv.weight" in said
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert "is not a ViT with timm's names" in message(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (
            {"blocks.1.mlp.fc2.bias": None},
            "expected blocks.1.mlp.fc2.bias of shape (64,), found nothing",
        ),
        (
            {"patch_embed.proj.bias": None},
            "expected patch_embed.proj.bias of shape (64,), found nothing",
        ),
        ({"norm.weight": None}, "expected norm.weight of shape (64,), found nothing"),
        ({"pos_embed": None}, "it lacks pos_embed"),
        (
            {"reg_token": torch.zeros(1, 4, 64)},
            "expected reg_token of shape nothing, found (1, 4, 64)",
        ),
        (
            {"blocks.3.norm1.weight": torch.zeros(64)},
            "does not fit a VisionTransformer: expected blocks.2.",
        ),
        (
            {"pos_embed": torch.zeros(1, 16, 64)},
            "expected pos_embed of shape (1, 17, 64), found (1, 16, 64)",
        ),
        (
            {"blocks.0.attn.qkv.weight": torch.zeros(128, 64)},
            "expected blocks.0.attn.qkv.weight of shape (192, 64), found (128, 64)",
        ),
        ({"norm.bias": torch.zeros(65)}, "expected norm.bias of shape (64,), found (65,)"),
    ],
)
def test_missing_foreign_and_misshapen_tensors_are_named(
    tmp_path: Path, tensors: dict[str, Any], sentence: str
) -> None:
    assert sentence in message(changed(tmp_path / "x.safetensors", tensors))


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        (
            "patch_embed.proj.weight",
            torch.zeros(64, 3, 2, 8, 8),
        ),  # a ViT for video, with timm's names
        ("pos_embed", torch.zeros(64)),
        ("blocks.0.mlp.fc1.weight", torch.tensor(1.0)),
        ("blocks.extra.weight", torch.zeros(64)),
    ],
)
def test_tensors_of_other_dimensions_or_blocks_are_a_sentence(
    tmp_path: Path, key: str, tensor: Tensor
) -> None:
    path = changed(tmp_path / "x.safetensors", {key: tensor})
    assert str(path) in message(path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("vtlite-tny", "unknown backbone 'vtlite-tny': did you mean 'vtlite-tiny'"),
        (
            "zzzzzz",
            "choose from a path to a .safetensors file, timm:NAME, vtlite-clip, vtlite-resnet",
        ),
        ("none.safetensors", "found no file none.safetensors"),
    ],
)
def test_an_unknown_name_or_path(name: str, sentence: str) -> None:
    assert sentence in message(name)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert "expected a safetensors file" in message(tmp_path)


def test_saving_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(vt.VTError, match="expected an existing folder"):
        vt.save_backbone(make_tiny(), tmp_path / "none" / "x.safetensors")


# timm:NAME
# -------------------------------------------------------------------------------------------------


class Timm:
    """timm with a `create_model` that needs no network: asked for trained weights, it makes random
    ones."""

    def __init__(self, patch: pytest.MonkeyPatch, **overrides: Any) -> None:
        self.module = pytest.importorskip("timm")
        self.real, self.overrides, self.calls = self.module.create_model, overrides, []
        patch.setattr(self.module, "create_model", self.create)

    def create(self, name: str, pretrained: bool = False, **settings: Any) -> Any:
        assert pretrained
        self.calls.append(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = self.real(name, pretrained=False, **settings, **self.overrides)
            for parameter in self.model.parameters():
                parameter.data += 0.03 * torch.randn_like(parameter)
        return self.model


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vit_tiny_patch16_224.augreg_in21k", {"img_size": 64, "depth": 2}),
        ("vit_small_patch14_dinov2", {"img_size": 98, "depth": 2}),
        (
            "vit_small_patch32_224",
            {"depth": 1, "embed_dim": 96, "num_heads": 3},
        ),  # heads that are not of width 64
    ],
)
def test_timms_weights_come_into_our_code(
    name: str, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = Timm(monkeypatch, **overrides)
    loaded = vt.load_backbone(f"timm:{name}")
    assert timm.calls == [name]
    assert isinstance(loaded, VisionTransformer)
    assert not loaded.training
    images = pictures(2, overrides.get("img_size", 224))
    torch.testing.assert_close(loaded(images), timm.model.eval()(images), atol=1e-5, rtol=1e-5)


def test_another_architecture_stays_timms_own_in_eval_mode_without_a_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timm = Timm(monkeypatch)
    loaded = vt.load_backbone("timm:test_vit")
    assert loaded is timm.model
    assert not loaded.training
    assert isinstance(loaded.head, nn.Identity)


def test_an_unknown_timm_model_is_answered_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timm = Timm(monkeypatch)
    assert (
        "unknown timm model 'vit_tiny_patch16_225': did you mean 'vit_tiny_patch16_224'"
        in message("timm:vit_tiny_patch16_225")
    )
    assert timm.calls == []


def test_no_network_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(
        hub.constants, "HF_HUB_OFFLINE", True
    )  # without this the client tries again for a minute
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError(101, "Network is unreachable")

    for function in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, function, unreachable)
    said = message("timm:vit_tiny_patch16_224")
    assert "could not get the weights of timm model 'vit_tiny_patch16_224'" in said
    assert 'check the network, or use an embedded backbone such as "vtlite-tiny"' in said


@pytest.mark.parametrize(
    "error",
    [OSError("unreachable"), RuntimeError("no such file"), ConnectionError(), TimeoutError()],
)
def test_whatever_the_hub_client_raises_is_that_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(pytest.importorskip("timm"), "create_model", fail)
    assert f"({type(error).__name__}): check the network" in message("timm:vit_tiny_patch16_224")


def test_without_timm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "install it with: pip install timm" in message("timm:vit_tiny_patch16_224")


def test_local_and_embedded_backbones_need_neither_timm_nor_network(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setattr(socket, "socket", None)
    vt.load_backbone("vtlite-tiny")
    vt.load_backbone(saved)


@pytest.mark.parametrize("size", [16, 32, 48])
def test_another_image_size_interpolates_the_positions_as_timm(size: int, saved: Path) -> None:
    layers = pytest.importorskip("timm.layers")
    network = vt.load_backbone(saved, num_heads=3, img_size=size)
    plain = vt.load_backbone(saved, num_heads=3)
    expected = layers.resample_abs_pos_embed(plain.pos_embed, [size // 8] * 2, num_prefix_tokens=1)
    torch.testing.assert_close(network.pos_embed.detach(), expected)
    assert vt.tune(network, "lora", 3)(pictures(2, size)).shape == (2, 3)
    assert vt.load_task("digits", like=network).train[0][0].shape == (3, size, size)


def test_another_image_size_of_other_networks(saved: Path) -> None:
    clip = vt.load_backbone("vtlite-clip", img_size=48)
    assert clip.encode_image(pictures(2, 48)).shape == (2, clip.text_projection.shape[1])
    assert vt.load_backbone("vtlite-resnet", img_size=48)(pictures(2, 48)).shape == (2, 192)
    assert "expected img_size to be a multiple of the patch size 8" in message(saved, img_size=30)
    assert "expected img_size of at least 1, found 'x'" in message(saved, img_size="x")


@pytest.mark.parametrize(("width", "heads"), [(80, 2), (64, 2), (32, 4)])
def test_a_text_towers_heads_are_at_most_64_wide(width: int, heads: int, tmp_path: Path) -> None:
    """ViT-H/14's image tower has heads of 80, its text tower of 64."""
    visual = make_tiny(embed_dim=2 * width, num_heads=2, pre_norm=True, norm_eps=1e-5)
    clip = CLIP(visual, TextTransformer(50, 8, 128, 1, heads), 16)
    vt.save_backbone(clip, tmp_path / "clip")
    assert vt.load_backbone(tmp_path / "clip").text.num_heads == heads


def test_weights_of_nan_or_of_integers_are_refused(saved: Path) -> None:
    tensors = load_file(saved)
    for wrong, sentence in (
        (tensors["norm.bias"] * float("nan"), "found NaN or infinity in norm.bias"),
        (tensors["norm.bias"].to(torch.int8), "expected norm.bias as floats, found torch.int8"),
    ):
        save_file({**tensors, "norm.bias": wrong}, saved)
        assert sentence in message(saved, num_heads=3)


def test_half_precision_that_overflows_is_not_written(tmp_path: Path) -> None:
    backbone = make_tiny()
    with torch.no_grad():
        backbone.norm.bias[0] = 1e6
    with pytest.raises(vt.VTError, match=r"half precision, found NaN or infinity in norm\.bias"):
        vt.save_backbone(backbone, tmp_path / "b", half=True)
    assert not list(tmp_path.iterdir())


def test_loading_a_swin_draws_no_random_numbers(tmp_path: Path) -> None:
    swin = vt.create_backbone(
        "swin_tiny_patch4_window7_224", embed_dim=12, depths=(1,), num_heads=(2,)
    )
    vt.save_backbone(swin, tmp_path / "s")
    state = torch.get_rng_state()
    vt.load_backbone(tmp_path / "s")
    assert torch.equal(state, torch.get_rng_state())
