"""`python -m vtlite pretrain`: make the embedded backbone again, from the embedded upstream images
alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

import vtlite
from vtlite.backbones import create_backbone, save_backbone
from vtlite.backbones.resnet import ResNet
from vtlite.backbones.stages import stages
from vtlite.data.upstream import Upstream, augment
from vtlite.method import Tuned
from vtlite.storage import atomic_write
from vtlite.training import evaluate, fit
from vtlite.tuning import tune

CARD = """# {name}

{architecture}
Stored in half precision; load it with `vt.load_backbone("{name}")`.

- **Made by** `python -m vtlite pretrain --name {name} --epochs {epochs} --lr {lr} --seed {seed}`: supervised classification into
  {classes} classes with `vt.fit` (AdamW, weight decay {weight_decay}, batch {batch_size}, {warmup:.0%} warm-up, cosine), {seen:,} augmented
  images, {minutes:.0f} minutes on {threads} CPU threads, torch {torch}, vtlite {version}. The same seed gives the same weights on the same
  machine and number of threads; a run that was stopped continues.
- **Data** (`vtlite/data/upstream.py`): 1,906 Noto emoji in 98 sub-categories (Apache-2.0) and 5,000 Fashion-MNIST training photographs of five
  classes (MIT), recoloured, moved and laid on random backgrounds. None of these images, and none of the five other clothing classes, is in
  a downstream task.
- **Upstream accuracy**: {accuracy:.3f} over the {classes} classes, on freshly augmented training images (there is no upstream test set).
- **What it is worth downstream**: `benchmarks/README.md`, against a random backbone, pixels and training from scratch.
- **Limits**: small pictures, synthetic backgrounds, no photographs of scenes. It is for learning and for tests, not for products.
- **Licence**: Apache-2.0, as vtlite.
"""


def pretrain(
    name: str,
    out: Path,
    epochs: int,
    lr: float,
    seed: int = 0,
    batch_size: int = 64,
    weight_decay: float = 0.05,
    progress: bool = True,
) -> Tuned:
    """Train the architecture `name` on the upstream images and write `out` (safetensors) and its
    card beside it.

    Deterministic by `seed`. The state after every epoch is kept in `out` with the suffix
    `.partial`; the same call continues from it, and removes it when done.
    """
    data, warmup = Upstream(), 0.05
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blank = create_backbone(name)
    model = tune(blank, "full", num_classes=len(data.classes), seed=seed)
    partial = out.with_suffix(".partial")
    start = time.perf_counter()
    history = fit(
        model,
        data,
        epochs=epochs,
        lr=lr,
        seed=seed,
        batch_size=batch_size,
        weight_decay=weight_decay,
        warmup=warmup,
        augment=augment,
        checkpoint=partial,
        progress=progress,
    )
    print(
        f"trained in {time.perf_counter() - start:.0f} s (this call), last loss {history[-1]['loss']:.3f}"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        accuracy = evaluate(torch.nn.Sequential(_Augment(), model), data)["accuracy"]
    save_backbone(
        model.backbone,
        out,
        half=True,
        made_by="python -m vtlite pretrain",
        epochs=epochs,
        lr=lr,
        seed=seed,
    )
    card = CARD.format(
        name=name,
        architecture=describe(blank),
        epochs=epochs,
        lr=lr,
        seed=seed,
        weight_decay=weight_decay,
        warmup=warmup,
        batch_size=batch_size,
        classes=len(data.classes),
        seen=epochs * len(data),
        accuracy=accuracy,
        minutes=sum(row["seconds"] for row in history) / 60,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        version=vtlite.__version__,
    )
    with atomic_write(out.with_suffix(".md")) as temporary:
        temporary.write_text(card)
    partial.unlink()
    return model


def describe(backbone: Any) -> str:
    """The architecture in two lines of a card."""
    parameters = f"{sum(p.numel() for p in backbone.parameters()):,} parameters without head"
    if isinstance(backbone, ResNet):
        depths, width = [len(stage) for stage in stages(backbone)], len(backbone.bn1.weight)
        return f"A ResNet with torchvision's names: {parameters}, {depths} blocks in its stages, width {width},\nfor small images (32x32)."
    embed = backbone.patch_embed
    return (
        f"A Vision Transformer with timm's names: {parameters}, images {embed.img_size[0]}x{embed.img_size[0]}, "
        f"patches {embed.patch_size[0]}x{embed.patch_size[0]},\nwidth {backbone.embed_dim}, {len(backbone.blocks)} blocks, "
        f"{backbone.num_heads} heads, {backbone.global_pool} pooling."
    )


class _Augment(torch.nn.Module):
    def forward(self, sprites: torch.Tensor) -> torch.Tensor:
        return augment(sprites)
