"""Backbones by name: blank ones (`create_backbone`), and ones with weights (`load_backbone`, `save_backbone`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtlite.backbones.vit import VisionTransformer
from vtlite.storage import VTError, load_tensors, save_tensors, unknown

WEIGHTS = Path(__file__).parent / "weights"  # the embedded checkpoints, one safetensors file and one card each

_SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
# Name -> arguments of VisionTransformer. The names are timm's; torchvision's are aliases below.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vtlite-tiny": {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3},
    **{f"vit_{size}_patch{p}_{img}": {"img_size": img, "patch_size": p, **_SIZES[size]} for size in _SIZES for p in (16, 32) for img in (224, 384)},
    **{f"vit_{size}_patch14_dinov2": {"img_size": 518, "patch_size": 14, "init_values": 1e-5, **_SIZES[size]} for size in ("small", "base", "large")},
}  # fmt: skip
_TORCHVISION = {f"vit_{size[0]}_{p}": f"vit_{size}_patch{p}_224" for size in ("base", "large") for p in (16, 32)}


def create_backbone(name: str, device: str | torch.device | None = None, **overrides: Any) -> VisionTransformer:
    """A backbone with random weights, by timm's name (`"vit_base_patch16_224"`, a tag after a dot is ignored) or torchvision's (`"vit_b_16"`).

    `overrides` replace arguments of `VisionTransformer`; `device="meta"` allocates nothing (to count parameters).
    Raises `VTError` for a name or argument that does not exist, with the nearest ones that do.
    """
    architecture = name.partition(".")[0]
    architecture = _TORCHVISION.get(architecture, architecture)
    if architecture not in ARCHITECTURES:
        raise unknown("backbone", name, (*ARCHITECTURES, *_TORCHVISION))
    arguments = [name for name in VisionTransformer.__init__.__annotations__ if name != "return"]
    for argument in overrides:
        if argument not in arguments:
            raise unknown("backbone argument", argument, arguments)
    with torch.device(device or "cpu"):
        return VisionTransformer(**{**ARCHITECTURES[architecture], **overrides})


def load_backbone(name_or_path: str | Path, num_heads: int | None = None) -> Any:
    """A pre-trained backbone, without a head and in eval mode.

    `name_or_path` is an embedded checkpoint (`"vtlite-tiny"`), a safetensors file with timm's names, or `"timm:NAME"`, which downloads
    timm's weights and, where the architecture is one of ours, loads them into our code. A file that does not say its number of heads is
    taken to have heads of width 64, as all published ViTs have; pass `num_heads` otherwise.
    Raises `VTError` for an unknown name, an unreadable file, foreign shapes, or a missing network.
    """
    name = str(name_or_path)
    if name.startswith("timm:"):
        return _load_timm(name.removeprefix("timm:")).eval()
    embedded = {path.stem: path for path in WEIGHTS.glob("*.safetensors")}
    if name not in embedded and Path(name).suffix == "" and not Path(name).exists():
        raise unknown("backbone", name, (*embedded, "timm:NAME", "a path to a .safetensors file"))
    path = embedded.get(name, Path(name))
    tensors, metadata = load_tensors(path)
    tensors = {key: tensor.float() for key, tensor in tensors.items() if not key.startswith("head.")}
    heads = num_heads or metadata.get("num_heads")
    if heads is not None and not str(heads).isdigit():
        raise VTError(f"expected a number of heads, found {heads!r} in {path}; pass num_heads=...")
    return _vit_from_tensors(tensors, int(str(heads)) if heads else None, path).eval()


def save_backbone(backbone: VisionTransformer, path: str | Path, half: bool = False, **metadata: object) -> None:
    """Write a backbone's weights (no head), in half precision if asked, as a file that `load_backbone` reads."""
    tensors = {key: t.half() if half else t for key, t in backbone.state_dict().items() if not key.startswith("head.")}
    save_tensors(path, tensors, {"num_heads": backbone.num_heads, **metadata})


def _vit_from_tensors(tensors: dict[str, Tensor], num_heads: int | None, source: Path | str) -> VisionTransformer:
    """Read the architecture off the shapes, build it, load the weights strictly."""
    needed = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.attn.qkv.weight": 2, "blocks.0.mlp.fc1.weight": 2}
    if missing := [f"{key} of {n} dimensions" for key, n in needed.items() if key not in tensors or tensors[key].ndim != n]:
        raise VTError(
            f"{source} is not a ViT with timm's names: it lacks {', '.join(missing)}; "
            "a state dict from another library has to be renamed first"
        )
    width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
    if width % (num_heads or 64):
        raise VTError(
            f"expected heads that divide the width {width} of {source}, found {num_heads or 'no number, and 64 does not'}; pass num_heads=..."
        )
    with torch.device("meta"):
        backbone = VisionTransformer(
            img_size=patch * round((tensors["pos_embed"].shape[1] - 1) ** 0.5),
            patch_size=patch,
            in_chans=channels,
            global_pool="avg" if "fc_norm.weight" in tensors else "token",
            embed_dim=width,
            depth=1 + max(int(key.split(".")[1]) for key in tensors if re.match(r"blocks\.\d+\.", key)),
            num_heads=num_heads or width // 64,
            mlp_ratio=tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
            qkv_bias="blocks.0.attn.qkv.bias" in tensors,
            init_values=1.0 if "blocks.0.ls1.gamma" in tensors else None,
        )
    expected = {key: tuple(t.shape) for key, t in backbone.state_dict().items()}
    found = {key: tuple(t.shape) for key, t in tensors.items()}
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            raise VTError(
                f"{source} does not fit a ViT: expected {key} of shape {expected.get(key, 'nothing')}, found {found.get(key, 'nothing')}; "
                "it is damaged or of another architecture"
            )
    backbone.load_state_dict(tensors, assign=True)
    return backbone


def _load_timm(name: str) -> Any:  # timm has no types
    try:
        import timm
    except ImportError as error:
        raise VTError("timm:NAME needs the timm package; install it with: pip install timm") from error
    if not timm.is_model(name):
        raise unknown("timm model", name, timm.list_models("*vit*") + timm.list_pretrained("*vit*"))
    try:
        model: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub client raises many types, all of which mean the same to the user
        raise VTError(
            f"could not get the weights of timm model {name!r} ({type(error).__name__}): check the network, "
            'or use an embedded backbone such as "vtlite-tiny" or a local .safetensors file'
        ) from error
    if name.partition(".")[0] in ARCHITECTURES:
        return _vit_from_tensors(model.state_dict(), model.blocks[0].attn.num_heads, name)
    return model
