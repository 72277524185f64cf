"""Which method works on which of timm's networks: every pair is tried on a small network with
random values, and the table is written down.

    python -m vtlite networks

A pair works if the tuned model starts as the backbone (unless the method says why not), trains for
two steps, merges into the same outputs and comes back from its delta; or `tune` refuses it in one
sentence. There is no third case: anything else is a failure, and fails the tests.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from vtlite.backbones.base import about, features
from vtlite.method import METHODS, short
from vtlite.storage import VTError, atomic_write, unknown
from vtlite.training import fit
from vtlite.tuning import Tuned, load_delta, merge, save_delta, tune

WORKS = "works"
CLASSES = 3

_VIT: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 4,
}
_SWIN: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 24,
    "depths": (2, 2),
    "num_heads": (2, 3),
    "window_size": 4,
}
_FOUR: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
# What the table calls it -> timm's name, and what makes it small.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit_base_patch16_224", _VIT),
    "ViT, registers": ("vit_base_patch16_reg4_gap_256", _VIT),
    "ViT, mean pooling": (
        "vit_base_patch16_224",
        {**_VIT, "class_token": False, "global_pool": "avg"},
    ),
    "ViT, QK-norm": ("vit_base_patch16_224", {**_VIT, "qk_norm": True}),
    "ViT, any size": ("vit_base_patch16_224", {**_VIT, "dynamic_img_size": True}),
    "ViT, not square": ("vit_base_patch16_224", {**_VIT, "img_size": (32, 48)}),
    "ViT, norms after": ("vit_base_patch16_xp_224", _VIT),
    "ViT, rotary positions": ("vit_base_patch16_rope_mixed_224", _VIT),
    "ViT, relative positions": ("vit_relpos_base_patch16_224", _VIT),
    "ViT, shared relative positions": ("vit_relpos_base_patch16_rpn_224", _VIT),
    "ViT, convolutional stem": ("vit_tiny_r_s16_p8_224", {**_VIT, "img_size": 64}),
    "CLIP": ("vit_base_patch16_clip_224", _VIT),
    "SigLIP": ("vit_base_patch16_siglip_224", _VIT),
    "DeiT": ("deit_base_distilled_patch16_224", _VIT),
    "DeiT III": ("deit3_base_patch16_224", _VIT),
    "DINOv2": ("vit_small_patch14_dinov2", _VIT),
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", _VIT),
    "DINOv2, SwiGLU": ("vit_giant_patch14_dinov2", {**_VIT, "mlp_ratio": 2}),
    "DINOv3": ("vit_small_patch16_dinov3", _VIT),
    "DINOv3, SwiGLU": ("vit_small_plus_patch16_dinov3", _VIT),
    "PE, core": ("vit_pe_core_base_patch16_224", _VIT),
    "PE, spatial": ("vit_pe_spatial_base_patch16_512", _VIT),
    "EVA-01": ("eva_giant_patch14_224", {**_VIT, "mlp_ratio": 2}),
    "EVA-02": ("eva02_base_patch14_224", _VIT),
    "EVA-02, CLIP": ("eva02_base_patch16_clip_224", _VIT),
    "EVA-02, large": ("eva02_large_patch14_448", _VIT),
    "BEiT": ("beit_base_patch16_224", _VIT),
    "BEiT v2": ("beitv2_base_patch16_224", _VIT),
    "NaFlex": (
        "naflexvit_base_patch16_gap",
        {"embed_dim": 48, "depth": 2, "num_heads": 4, "patch_size": 8},
    ),
    "Swin": ("swin_tiny_patch4_window7_224", _SWIN),
    "Swin V2": ("swinv2_tiny_window8_256", _SWIN),
    "XCiT": ("xcit_nano_12_p16_224", _VIT),
    "CaiT": ("cait_xxs24_224", _VIT),
    "PVT v2": (
        "pvt_v2_b0",
        {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 2, 4)},
    ),
    "LeViT": (
        "Levit",
        {
            "img_size": 64,
            "embed_dim": (32, 48, 64),
            "key_dim": 16,
            "depth": (1, 1, 1),
            "num_heads": (2, 3, 4),
        },
    ),
    "Mixer": ("MlpMixer", {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_blocks": 2}),
    "ConvNeXt": ("convnext_atto", _FOUR),
    "ConvNeXt V2": ("convnextv2_atto", _FOUR),
    "EfficientNet": ("test_efficientnet", {}),
    "EfficientNet, TensorFlow": ("test_efficientnet", {"pad_type": "same"}),
    "MobileNet V2": ("mobilenetv2_035", {}),
    "MobileNet V3": ("mobilenetv3_small_050", {}),
    "GhostNet": ("ghostnet_050", {}),
    "DenseNet": ("densenet121", {"growth_rate": 8, "block_config": (2, 2, 2, 2)}),
    "ResNet": ("resnet18", {"channels": (8, 16, 24, 32)}),
    "ResNet-D": ("resnet26d", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}),
    "ResNet V2": ("resnetv2_50", {"layers": (1, 1, 1, 1), "channels": (16, 32, 48, 64)}),
    "RegNet": ("regnety_002", {}),
}
# Settings for networks as narrow as these; everything else is the method's default.
SETTINGS: dict[str, dict[str, Any]] = {
    "adaptformer": {"bottleneck": 4},
    "aurora": {"rank": 6},
    "block_expansion": {"every": 1},
    "consolidator": {"num_groups": 2},
    "conv_adapter": {"reduction": 2},
    **{
        name: {"channels": 4, "nodes": 2, "search_epochs": 3}
        for name in (
            *("darts", "darts_minus", "darts_plus", "data"),
            *("milenas", "p_darts", "sgas", "snas"),
        )
    },
    "dldr": {"k": 2, "snapshots": 4, "stride": 1},
    "dora": {"rank": 2},
    "dp_bitfit": {"noise_multiplier": 0.0},
    "dylora": {"rank": 2},
    "fact_tk": {"rank": 4},
    "fact_tt": {"rank": 4},
    "kadaptation": {"n": 4},
    **{
        short(key): {"teacher_method": "linear", "teacher_epochs": 1}
        for key in METHODS
        if key.startswith("remapping/distillation/")
    },
    "lora": {"rank": 2},
    "lst": {"reduction": 2},
    "phm_adapter": {"n": 4, "bottleneck": 8},
    "compacter": {"bottleneck": 8},
    "polyhistor": {"reduction": 4},
    "evp": {"reduction": 8},
    "lpt": {"num_prompts": 2, "pool": 2},
    "noah": {"prompts": (1, 1), "ranks": (1, 1), "widths": (1, 1)},
    "pgn": {"num_prompts": 2, "library": 4},
    "pro_tuning": {"reduction": 4},
    "s_prompting": {"num_prompts": 2},
    "side_tuning": {"depth": 1},
    "spt": {"budget": 0.05, "rank": 2},
    "vera": {"rank": 16},
    "vit_adapter": {"prior_width": 4, "interactions": 2, "heads": 4},
    "vp": {"width": 4, "image_size": 64},
    "vpt_deep": {"num_prompts": 3},
}


def small_network(name: str) -> Any:
    """The network of that name in `NETWORKS`, with random values everywhere, in eval mode."""
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    try:
        import timm
    except ImportError as error:
        raise VTError("the table of networks needs timm; install it: pip install timm") from error
    architecture, sizes = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if timm.is_model(architecture):
            network = timm.create_model(architecture, pretrained=False, num_classes=0, **sizes)
        else:  # a class, where the functions by name fix all sizes
            network = getattr(timm.models, architecture)(num_classes=0, **sizes)
        # no neutral value anywhere, behind which a mistake could hide
        for parameter in network.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        for key, buffer in network.named_buffers():
            if key.endswith("running_var"):
                buffer += 0.3 * torch.rand_like(buffer)
    return network.eval()


def examine(backbone: Any, method: str) -> str:
    """What comes of one pair: `WORKS`, "refused: ...", or what failed."""
    try:
        try:
            model = tune(backbone, method, CLASSES, **SETTINGS.get(short(method), {}))
        except VTError as refusal:
            return f"refused: {refusal}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _failure(backbone, model) or WORKS
    except Exception as error:  # whatever it is, it belongs into the table
        return f"failed: {type(error).__name__}: {error}"


def _failure(backbone: Any, model: Tuned) -> str:
    """What is wrong with a tuned model; empty where all is well."""
    method = model.method
    height, width = about(backbone).input_size or (64, 64)
    images = torch.randn(6, 3, height, width, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(len(images)) % CLASSES
    with torch.no_grad():
        start = features(backbone, images)
        if not method.starts_elsewhere and (far := _distance(model.features(images), start)) > 1e-4:
            return f"failed: starts {far:.1e} away from the backbone"
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fit(model, TensorDataset(images, labels), epochs=1, batch_size=3, lr=1e-2, progress=False)
    now = dict(model.named_parameters())  # a search may have found a network with other ones
    moved = {n for n, p in now.items() if n not in before or not torch.equal(p, before[n])}
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    if moved - trains or not moved:
        return f"failed: moved {sorted(moved - trains) or 'nothing'}"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.01)
        answers = model(images)
    if not answers.isfinite().all():
        return "failed: infinite answers"
    with tempfile.TemporaryDirectory() as folder:
        save_delta(model, Path(folder) / "delta.safetensors")
        again = load_delta(backbone, Path(folder) / "delta.safetensors")
    with torch.no_grad():
        if (far := _distance(again(images), answers)) > 1e-5:
            return f"failed: its delta gives back a model {far:.1e} away"
        if not method.unmergeable and (far := _distance(merge(model)(images), answers)) > 1e-4:
            return f"failed: merged, it is {far:.1e} away"
    return ""


def _distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, measured by the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def networks(folder: Path, names: Iterable[str] = NETWORKS) -> dict[str, dict[str, str]]:
    """Try every method on the networks called `names` and write networks.json and networks.md into
    `folder`; what other networks gave before is kept. Raises `VTError` for unknown names."""
    path = folder / "networks.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in names:
        backbone = small_network(name)
        results[name] = {short(key): examine(backbone, key) for key in METHODS}
        found = counts(results[name])
        print(f"{name:32} {found}", flush=True)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    ordered = {name: results[name] for name in NETWORKS if name in results}
    with atomic_write(folder / "networks.md") as temporary:
        temporary.write_text(markdown(ordered), encoding="utf-8")
    return ordered


def counts(results: dict[str, str]) -> str:
    """How many methods work on a network, are refused and fail."""
    kinds = [result.partition(":")[0] for result in results.values()]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(sorted(kinds)[::-1]))


def markdown(results: dict[str, dict[str, str]]) -> str:
    """The table: a row a network, and below it why methods are refused."""
    total = counts({f"{n}/{m}": r for n, row in results.items() for m, r in row.items()})
    lines = [
        "# Methods on timm's networks",
        "",
        f"Written by `python -m vtlite networks`, on small networks with random values: {total}.",
        "A pair works if it starts as the backbone, trains, merges into the same outputs and comes",
        "back from its delta; else `tune` refuses it in the sentence below.",
        "",
        "| Network | timm's name | works | refused |",
        "|---|---|--:|---|",
    ]
    for name, row in results.items():
        refused = sorted(method for method, result in row.items() if result != WORKS)
        works = len(row) - len(refused)
        named = ", ".join(refused) or "none"
        lines.append(f"| {name} | `{NETWORKS[name][0]}` | {works} | {named} |")
    lines += ["", "## Why", ""]
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, row in results.items():
        for method, result in row.items():
            if result != WORKS:
                reasons.setdefault((method, result), []).append(name)
    for (_, result), where in sorted(reasons.items()):
        lines.append(f"- {result.removeprefix('refused: ')}  \n  ({'; '.join(where)})")
    return "\n".join(lines) + "\n"
