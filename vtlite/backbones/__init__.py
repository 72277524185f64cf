"""Backbones by name: blank ones (`create_backbone`), and ones with weights (`load_backbone`,
`save_backbone`)."""

from __future__ import annotations

import inspect
import os
import re
import typing
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtlite.arguments import as_device, expect_kinds, fits, named, whole
from vtlite.backbones.base import HEADS, about
from vtlite.backbones.clip import CLIP, TextTransformer, is_clip, with_our_names
from vtlite.backbones.hybrid import HybridViT
from vtlite.backbones.resnet import ResNet
from vtlite.backbones.swin import SwinTransformer
from vtlite.backbones.tokenizer import WordTokenizer, published_tokenizer
from vtlite.backbones.vit import VisionTransformer
from vtlite.storage import (
    VTError,
    as_path,
    expect_finite,
    load_tensors,
    said,
    save_tensors,
    unknown,
)

WEIGHTS = (
    Path(__file__).parent / "weights"
)  # the embedded checkpoints, one safetensors file and one card each

_SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
MOST_PIXELS = 4096  # a side of an image; more is a mistake
Build = tuple[type[nn.Module], dict[str, Any]]


def _vit(size: str, img_size: int, patch_size: int, **more: Any) -> Build:
    return VisionTransformer, {
        "img_size": img_size,
        "patch_size": patch_size,
        **_SIZES[size],
        **more,
    }


# Name -> class and arguments. The names are timm's; torchvision's are aliases below.
ARCHITECTURES: dict[str, Build] = {
    "vtlite-tiny": (
        VisionTransformer,
        {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3},
    ),
    "vtlite-resnet": (ResNet, {"depths": (1, 1, 1, 1), "width": 24, "small_images": True}),
    **{
        f"vit_{size}_patch{p}_{img}": _vit(size, img, p)
        for size in _SIZES
        for p in (16, 32)
        for img in (224, 384)
    },
    **{
        f"vit_{size}_patch14_dinov2": _vit(size, 518, 14, init_values=1e-5)
        for size in ("small", "base", "large")
    },
    **{
        f"deit_{size}_distilled_patch16_224": _vit(size, 224, 16, distilled=True)
        for size in ("tiny", "small", "base")
    },
    "vit_tiny_convstem_patch16_224": (
        HybridViT,
        {**_SIZES["tiny"], "stem_channels": (24, 48, 96, 192)},
    ),
    "swin_tiny_patch4_window7_224": (SwinTransformer, {}),
    "resnet18": (ResNet, {}),
    "resnet34": (ResNet, {"depths": (3, 4, 6, 3)}),
    "resnet50": (ResNet, {"depths": (3, 4, 6, 3), "bottleneck": True}),
    "resnet101": (ResNet, {"depths": (3, 4, 23, 3), "bottleneck": True}),
}
_TORCHVISION = {
    f"vit_{size[0]}_{p}": f"vit_{size}_patch{p}_224" for size in ("base", "large") for p in (16, 32)
}


def create_backbone(name: str, device: str | torch.device | None = None, **overrides: Any) -> Any:
    """A backbone with random weights, by timm's name (`"vit_base_patch16_224"`, a tag after a dot
    is ignored) or torchvision's (`"vit_b_16"`).

    `overrides` replace arguments of its class; `device="meta"` allocates nothing (to count
    parameters). A ViT, ResNet or Swin. Raises `VTError` for a name or argument that does not exist,
    with the nearest ones that do.
    """
    architecture = name.partition(".")[0] if isinstance(name, str) else ""
    architecture = _TORCHVISION.get(architecture, architecture)
    if architecture not in ARCHITECTURES:
        raise unknown("backbone", name, (*ARCHITECTURES, *_TORCHVISION))
    cls, arguments = ARCHITECTURES[architecture]
    _expect_arguments(cls, overrides)
    with as_device("cpu" if device is None else device):
        try:
            return cls(**{**arguments, **overrides})
        except (RuntimeError, MemoryError) as error:  # such as more values than there is memory
            reason = str(error).splitlines()[0]
            raise VTError(
                f"expected sizes of which a {cls.__name__} can be made, found {overrides} "
                f"({reason}); choose others"
            ) from error


def _expect_arguments(cls: type[nn.Module], overrides: dict[str, Any]) -> None:
    """Raise `VTError` for an argument that the class has not, of another kind, or not positive."""
    ours = [kind for kind in cls.__mro__ if kind.__module__.startswith("vtlite")]
    ours = [kind for kind in ours if "__init__" in kind.__dict__]
    hints: dict[str, Any] = {}
    for kind in reversed(ours):
        own = inspect.signature(kind).parameters
        typed = typing.get_type_hints(kind.__dict__["__init__"])
        hints.update({name: typed[name] for name in own if name != "arguments"})
    for argument, value in overrides.items():
        if argument not in hints:
            raise unknown("backbone argument", argument, hints)
        expect_kinds("backbone", {argument: value}, hints)
        least = -1 if argument == "num_classes" else 0
        most = 1000 if argument in ("depth", "depths") else 100_000
        for each in value if isinstance(value, tuple | list) else [value]:
            if fits(each, float) and not least < each <= most:
                raise VTError(
                    f"expected {argument} of {'at least 0' if least else 'more than 0'} and at most "
                    f"{most:,}, found {value}; choose another"
                )


@named
def load_backbone(
    name_or_path: str | Path,
    num_heads: int | None = None,
    quick_gelu: bool | None = None,
    img_size: int | None = None,
) -> Any:
    """A pre-trained backbone, without a head and in eval mode.

    `name_or_path` is an embedded checkpoint (`"vtlite-tiny"`), a safetensors file with timm's
    names, or `"timm:NAME"`, which downloads timm's weights and, where the architecture is one of
    ours, loads them into our code. A file that does not say its number of heads is taken to have
    heads of width 64, except where published ViTs of its width differ (384, or above 1024) and
    `num_heads` is asked for. A file of two towers
    (`"vtlite-clip"`, or a published CLIP with open_clip's names) gives a `CLIP`; `quick_gelu=True`
    belongs to OpenAI's weights, which do not say so themselves. With `img_size` a ViT takes images
    of another size: its positions are interpolated. Raises `VTError` for an unknown name, an
    unreadable or damaged file, foreign shapes, or a missing network.
    """
    name = str(as_path(name_or_path, "name or path of a backbone"))
    expect_kinds("load_backbone", {"quick_gelu": quick_gelu}, {"quick_gelu": bool | None})
    if num_heads is not None:
        num_heads = whole("num_heads", num_heads)
    if img_size is not None:
        img_size = whole("img_size", img_size, most=MOST_PIXELS)
    if name.startswith("timm:"):
        return _load_timm(name.removeprefix("timm:"), img_size).eval()
    embedded = {path.stem: path for path in WEIGHTS.glob("*.safetensors")}
    if name not in embedded and Path(name).suffix == "" and not os.path.exists(name):
        raise unknown("backbone", name, (*embedded, "timm:NAME", "a path to a .safetensors file"))
    path = embedded.get(name, Path(name))
    tensors, metadata = load_tensors(path)
    tensors = {
        k: t.float() if t.is_floating_point() else t
        for k, t in tensors.items()
        if not k.startswith(HEADS)
    }
    heads: Any = num_heads or metadata.get("num_heads")
    if isinstance(heads, str) and re.fullmatch(r"\d{1,4}", heads):  # other writers' text
        heads = int(heads)
    if heads is not None and (not fits(heads, int) or heads < 1):
        raise VTError(
            f"expected a number of heads, found {said(heads)} in {path}; pass num_heads=..."
        )
    quick = bool(metadata.get("quick_gelu")) if quick_gelu is None else quick_gelu
    network = _from_tensors(tensors, heads, path, quick, img_size).eval()
    if isinstance(network, CLIP):
        text, words = network.text, path.with_suffix(".txt")
        network.tokenizer = (
            WordTokenizer.load(words, text.context)
            if words.is_file()
            else published_tokenizer(text.vocabulary, text.context)
        )
    return network


def load_clip(name_or_path: str | Path = "vtlite-clip", quick_gelu: bool | None = None) -> CLIP:
    """A pre-trained two-tower model (see `load_backbone`). Raises `VTError` for a file without a
    text tower."""
    clip = load_backbone(name_or_path, quick_gelu=quick_gelu)
    if not isinstance(clip, CLIP):
        raise VTError(
            f"expected a model with a text tower, found a {type(clip).__name__} in "
            f'{name_or_path}; use "vtlite-clip" or a published CLIP'
        )
    return clip


def save_backbone(backbone: Any, path: str | Path, half: bool = False, **metadata: object) -> None:
    """Write a backbone's weights (no head), in half precision if asked, as a file that
    `load_backbone` reads. Raises `VTError` for what is no backbone, and values that are not finite."""
    if not isinstance(backbone, CLIP):
        about(backbone)  # raises for a foreign network
    expect_kinds("save_backbone", {"half": half}, {"half": bool})
    tensors = {
        k: t.half() if half and t.is_floating_point() else t
        for k, t in backbone.state_dict().items()
        if not k.startswith(HEADS)
    }
    known = {  # the rest can be read off the shapes
        key: getattr(backbone, key)
        for key in ("num_heads", "quick_gelu")
        if getattr(backbone, key, 0)
    }
    expect_finite(tensors, "the backbone in half precision" if half else "the backbone")
    save_tensors(path, tensors, {**known, **metadata})


def _from_tensors(
    tensors: dict[str, Tensor],
    num_heads: int | None,
    source: Path | str,
    quick_gelu: bool = False,
    img_size: int | None = None,
) -> nn.Module:
    """Read the architecture off the names and shapes, build it, load the weights strictly."""
    if is_clip(list(tensors)):
        tensors = with_our_names(tensors)
    try:
        with torch.random.fork_rng(devices=[]):
            backbone = _blank(tensors, num_heads, source, quick_gelu)
    except VTError:
        raise
    except Exception as error:  # shapes of a file that is of none of these may fail anywhere
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise VTError(
            f"{source} is no ViT, Swin, ResNet or CLIP that can be read ({reason}); it is damaged "
            "or of another architecture"
        ) from error
    expected = {key: tuple(t.shape) for key, t in backbone.state_dict().items()}
    found = {key: tuple(t.shape) for key, t in tensors.items()}
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            raise VTError(
                f"{source} does not fit a {type(backbone).__name__}: expected {key} of shape"
                f" {expected.get(key, 'nothing')}, found {found.get(key, 'nothing')}; it is damaged"
                " or of another architecture"
            )
    for key, _ in backbone.named_parameters():
        if not tensors[key].is_floating_point():
            raise VTError(
                f"{source} does not fit a {type(backbone).__name__}: expected {key} as floats, "
                f"found {tensors[key].dtype}; it is damaged or quantised"
            )
    expect_finite(tensors, source)
    backbone.load_state_dict(tensors, assign=True)
    return backbone if img_size is None else _of_size(backbone, img_size, source)


def _blank(
    tensors: dict[str, Tensor], num_heads: int | None, source: Path | str, quick_gelu: bool
) -> nn.Module:
    """A network of the file's architecture, without values."""
    if "layers.0.blocks.0.attn.relative_position_bias_table" in tensors:
        with torch.device("cpu"):  # its masks and indices are no part of the file
            return _swin_like(tensors)
    with torch.device("meta"):
        if "layer1.0.conv1.weight" in tensors:
            return _resnet_like(tensors, source)
        if is_clip(list(tensors)):
            return _clip_like(tensors, num_heads, source, quick_gelu)
        return _vit_like(tensors, num_heads, source, quick_gelu)


@torch.no_grad()
def _of_size(network: Any, size: int, source: Path | str) -> nn.Module:
    """The network for square images of another size: a ViT's positions [1, P + n, D], those of the
    n patches interpolated as in timm; a ResNet takes any size as it is."""
    vit = network.visual if isinstance(network, CLIP) else network
    if isinstance(vit, ResNet):
        return network
    if not isinstance(vit, VisionTransformer):
        raise VTError(
            f"expected a ViT or ResNet for another image size, found a {type(vit).__name__} in "
            f"{source}; leave img_size out"
        )
    embed = vit.patch_embed
    patch = embed.patch_size[0]
    if size % patch:
        raise VTError(
            f"expected img_size to be a multiple of the patch size {patch} of {source}, found "
            f"{size}; choose another"
        )
    prefix, old, new = vit.num_prefix_tokens, embed.img_size[0] // patch, size // patch
    if new != old:
        own, places = vit.pos_embed[:, :prefix], vit.pos_embed[:, prefix:]
        maps = places.mT.unflatten(2, (old, old))
        maps = F.interpolate(maps, (new, new), mode="bicubic", antialias=True, align_corners=False)
        vit.pos_embed = nn.Parameter(torch.cat([own, maps.flatten(2).mT], dim=1))
    embed.img_size, embed.num_patches = (size, size), new**2
    vit.input_size = (size, size)
    return network


def _count(tensors: dict[str, Tensor], prefix: str) -> int:
    """How many numbered children stand behind `prefix`."""
    names = (re.match(rf"{re.escape(prefix)}(\d+)\.", key) for key in tensors)
    return len({found[1] for found in names if found})


def _resnet_like(tensors: dict[str, Tensor], source: Path | str) -> ResNet:
    if "conv1.weight" not in tensors:
        raise VTError(
            f"expected a ResNet with a stem of one convolution, found another in {source}; "
            "load it with timm, e.g. timm:resnet26d"
        )
    width, channels, kernel, _ = tensors["conv1.weight"].shape
    depths = tuple(max(1, _count(tensors, f"layer{i}.")) for i in (1, 2, 3, 4))
    return ResNet(
        depths, "layer1.0.conv3.weight" in tensors, width, channels, small_images=kernel == 3
    )


def _swin_like(tensors: dict[str, Tensor]) -> SwinTransformer:
    """Swin-T, S, B and L at 224 pixels differ in width, depths and heads only."""
    stages = range(_count(tensors, "layers."))
    tables = [
        tensors[f"layers.{i}.blocks.0.attn.relative_position_bias_table"].shape for i in stages
    ]
    return SwinTransformer(
        embed_dim=tensors["patch_embed.proj.weight"].shape[0],
        depths=[_count(tensors, f"layers.{i}.blocks.") for i in stages],
        num_heads=[heads for _, heads in tables],
        window_size=(round(tables[0][0] ** 0.5) + 1) // 2,
    )


def _clip_like(
    tensors: dict[str, Tensor], num_heads: int | None, source: Path | str, quick_gelu: bool
) -> CLIP:
    """Both towers have heads of one width, but those of published text towers are 64 wide also where
    the image tower's are wider (80 in ViT-H/14, 88 in ViT-g/14)."""
    needed = {
        "text.token_embedding.weight": 2,
        "text.positional_embedding": 2,
        "text.blocks.0.attn.qkv.weight": 2,
        "text_projection": 2,
    }
    if missing := _missing(tensors, needed):
        raise VTError(
            f"{source} is not a CLIP with open_clip's names: it lacks {', '.join(missing)}; "
            "a state dict from another library has to be renamed first"
        )
    images = {k.removeprefix("visual."): t for k, t in tensors.items() if k.startswith("visual.")}
    visual: Any = _vit_like(images, num_heads, source, quick_gelu)
    vocabulary, width = tensors["text.token_embedding.weight"].shape
    text = TextTransformer(
        vocabulary,
        context=len(tensors["text.positional_embedding"]),
        embed_dim=width,
        depth=_count(tensors, "text.blocks."),
        num_heads=width // min(64, visual.blocks[0].attn.head_dim),
        quick_gelu=quick_gelu,
    )
    return CLIP(visual, text, tensors["text_projection"].shape[1])


def _missing(tensors: dict[str, Tensor], needed: dict[str, int]) -> list[str]:
    return [
        f"{key} of {n} dimensions"
        for key, n in needed.items()
        if key not in tensors or tensors[key].ndim != n
    ]


def _vit_like(
    tensors: dict[str, Tensor],
    num_heads: int | None,
    source: Path | str,
    quick_gelu: bool = False,
) -> VisionTransformer:
    needed = {
        "cls_token": 3,
        "pos_embed": 3,
        "patch_embed.proj.weight": 4,
        "blocks.0.attn.qkv.weight": 2,
        "blocks.0.mlp.fc1.weight": 2,
    }
    if missing := _missing(tensors, needed):
        raise VTError(
            f"{source} is not a ViT with timm's names: it lacks {', '.join(missing)}; "
            "a state dict from another library has to be renamed first"
        )
    width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
    # Published heads are 64 wide, but not of these widths: DeiT-S has 6 and MoCo v3's ViT-S 12,
    # ViT-H 16 or 20, ViT-g and SigLIP's So400m 16.
    differs = width == 384 or width > 1024
    if width % (num_heads or 64) or (differs and not num_heads):
        why = "which differs between networks of this width" if differs else "and 64 does not"
        raise VTError(
            f"expected heads that divide the width {width} of {source}, "
            f"found {num_heads or f'no number, {why}'}; pass num_heads=..."
        )
    distilled, stem = "dist_token" in tensors, _count(tensors, "patch_embed.backbone.")
    if stem:
        channels, patch = tensors["patch_embed.backbone.0.conv.weight"].shape[1], patch * 2**stem
    arguments = {
        "img_size": patch * round((tensors["pos_embed"].shape[1] - (2 if distilled else 1)) ** 0.5),
        "patch_size": patch,
        "in_chans": channels,
        "global_pool": "avg" if "fc_norm.weight" in tensors else "token",
        "embed_dim": width,
        "depth": _count(tensors, "blocks."),
        "num_heads": num_heads or width // 64,
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "init_values": 1.0 if "blocks.0.ls1.gamma" in tensors else None,
        "distilled": distilled,
        "pre_norm": "norm_pre.weight" in tensors,  # a published CLIP's image tower
        "norm_eps": 1e-5 if "norm_pre.weight" in tensors else 1e-6,
        "quick_gelu": quick_gelu,
    }
    if not stem:
        return VisionTransformer(**arguments)
    return HybridViT(
        [len(tensors[f"patch_embed.backbone.{i}.conv.weight"]) for i in range(stem)], **arguments
    )


def _load_timm(name: str, img_size: int | None = None) -> Any:  # timm has no types
    try:
        import timm
    except ImportError as error:
        raise VTError(
            "timm:NAME needs the timm package; install it with: pip install timm"
        ) from error
    if not timm.is_model(name):
        raise unknown("timm model", name, timm.list_models("*vit*") + timm.list_pretrained("*vit*"))
    try:
        sizes: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
        model: Any = timm.create_model(name, pretrained=True, num_classes=0, **sizes)
    except (
        Exception
    ) as error:  # the hub client raises many types, all of which mean the same to the user
        raise VTError(
            f"could not get the weights of timm model {name!r} ({type(error).__name__}): check the"
            ' network, or use an embedded backbone such as "vtlite-tiny" or a local .safetensors'
            " file"
        ) from error
    if name.partition(".")[0] in ARCHITECTURES:
        heads = model.blocks[0].attn.num_heads if hasattr(model, "blocks") else None
        return _from_tensors(
            {k: t for k, t in model.state_dict().items() if not k.startswith(HEADS)}, heads, name
        )
    return model
