"""`python -m vtlite pretrain`: make the embedded networks again, from the embedded images alone.

One training asks four questions about each picture, and adds their losses: which words of the
batch belong to it (CLIP's contrast with a text tower), which of all names (the same contrast, with
text features that are some steps old), of which kind it is (a label), and where it lies (centre and
size). So the two-tower model and the backbone are made at once.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from vtlite.backbones import create_backbone, load_backbone, save_backbone
from vtlite.backbones.clip import CLIP, TextTransformer
from vtlite.backbones.resnet import ResNet
from vtlite.backbones.tokenizer import WordTokenizer
from vtlite.data import draw
from vtlite.data.sheets import TILE, emoji
from vtlite.data.upstream import CONCEPT, STYLES, Batch, Upstream, plain
from vtlite.storage import VTError, atomic_write, load_tensors, save_tensors, unknown
from vtlite.version import __version__
from vtlite.zero_shot import zero_shot

STARTS = {  # name -> what its image tower starts from: weights, or None for random ones
    "vtlite-clip": "vtlite-supervised",
    "vtlite-tiny": "vtlite-supervised",  # the same run, of which the image tower alone is kept
    "vtlite-resnet": None,
}
WIDTH, DEPTH, HEADS, CONTEXT = 96, 3, 3, 16  # of the text tower; the towers meet at its width
PROMPT = "an emoji of {}"  # for kinds and groups when the result is measured
AGE = 50  # steps until the features of all names are made anew
WEIGHTS = (1.0, 0.5, 0.5, 1.0)  # of the losses: words, names, kind, where
EVERY = 250  # steps from one kept state to the next
WARMUP, DECAY = 200, 0.4  # steps of rising learning rate; the share of steps in which it falls
AVERAGE = 0.995  # of the weights: a moving average over some 200 steps

# Drawing styles to measure, and what the network knows of them.
MEASURED = {
    "noto": "trained on, newly placed",
    "twemoji": "never seen",
    "high-contrast": "never seen, line drawings",
}

CARD = """# {name}

{architecture}

Stored in half precision; load it with `vt.load_backbone("{name}")`.

- **Made by** `python -m vtlite pretrain --name {name} --steps {steps} --lr {lr}
  --batch-size {batch_size} --seed {seed}` (`vtlite/pretrain.py`), from {start}: AdamW, weight
  decay {weight_decay}, {seen:,} augmented pictures, a moving average of the weights;
  {minutes:.0f} minutes on {threads} shared CPU thread(s), torch {torch}, vtlite {version}. The same
  seed gives the same weights on the same machine and number of threads; a run that was stopped
  continues.
- **Data** (`vtlite/data/upstream.py`): {drawings:,} emoji drawings in the styles {styles}
  (Apache-2.0, MIT) with names and tags (MIT), and 5,000 Fashion-MNIST training photographs of five
  classes (MIT); recoloured, made into line drawings, moved and laid on random backgrounds. None of
  these pictures, and none of the five other clothing classes, is in a downstream task; Twemoji and
  the high-contrast drawings were never seen, and nothing was chosen on them in this training (an
  earlier, smaller one had shown on them that more styles and line drawings help).
- **Results**, zero-shot (`vtlite/zero_shot.py`), among all names that a style has:

| drawings | right name first | in the first five | sub-category of 98 | category of 9 |
|---|---:|---:|---:|---:|
{rows}

- **Limits**: small pictures, synthetic backgrounds, the words of emoji and of some clothes; no
  photographs of scenes. It is for learning and for tests, not for products.
- **Licence**: Apache-2.0, as vtlite.
"""


class Pretraining(nn.Module):
    """A CLIP and the two linear heads that the other questions need while it is trained."""

    def __init__(self, visual: nn.Module, data: Upstream) -> None:
        super().__init__()
        tokenizer = WordTokenizer.of(data.texts(), CONTEXT)
        text = TextTransformer(len(tokenizer.vocabulary), CONTEXT, WIDTH, DEPTH, HEADS)
        self.clip = CLIP(visual, text, WIDTH, tokenizer)
        self.kind = nn.Linear(self.clip.visual.num_features, len(data.classes))
        self.where = nn.Linear(self.clip.visual.num_features, 3)
        self.names = tokenizer(data.names(), truncate=True)  # [C, L], by concept
        self.renew()

    @torch.no_grad()
    def renew(self) -> None:
        """Make the features of all names [C, E] anew."""
        self.named = torch.cat([self.clip.encode_text(part) for part in self.names.split(256)])

    def forward(self, batch: Batch) -> Tensor:
        """The four losses: words, names, kind, where."""
        features = self.clip.visual(batch.images)  # [B, D]
        images = F.normalize(features @ self.clip.visual_projection, dim=-1)
        captions = list(dict.fromkeys(batch.captions))  # each only once, [U]
        texts = self._encode(captions)
        words = contrast(self.clip.logits(images, texts), *matches(batch, captions))
        names = F.cross_entropy(self.clip.logits(images, self.named), batch.topics[:, CONCEPT])
        kind = F.cross_entropy(self.kind(features), batch.labels, label_smoothing=0.1)
        where = F.smooth_l1_loss(self.where(features), batch.where, beta=0.1)
        return torch.stack([words, names, kind, where])

    def _encode(self, captions: list[str]) -> Tensor:
        """Text features [U, E], the shorter half by itself: there the tower has less to read."""
        tokenizer: Any = self.clip.tokenizer
        tokens = tokenizer(captions, truncate=True)
        order = tokens.argmax(-1).argsort(stable=True)
        texts = torch.cat([self.clip.encode_text(half) for half in tokens[order].chunk(2)])
        return texts[order.argsort()]


def matches(batch: Batch, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Which captions are a picture's own, and which are true of it all the same: bool [B, U] each.

    Its own are the one it was drawn with and all that are about the same concept. True as well is
    what another picture of its kind or group was called by; that is neither right nor wrong.
    """
    column = {caption: u for u, caption in enumerate(captions)}
    index = torch.tensor([column[caption] for caption in batch.captions])  # [B]
    first = torch.tensor([batch.captions.index(caption) for caption in captions])  # [U]
    about = batch.about[first]
    topic = batch.topics[first, about]  # [U], what the caption is about
    true = batch.topics[:, about] == topic  # [B, U]
    own = (true & (about == CONCEPT)) | (index[:, None] == torch.arange(len(captions)))
    return own, true & ~own


def contrast(logits: Tensor, own: Tensor, aside: Tensor) -> Tensor:
    """CLIP's loss over logits [B, U] where several texts may belong to a picture: the target is
    spread over `own`, and the pairs of `aside` do not take part."""
    logits, target = logits - 1e4 * aside, own.float()
    by_image = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    by_text = F.cross_entropy(logits.T, (target / target.sum(0)).T)
    return (by_image + by_text) / 2


def pretrain(
    name: str,
    out: Path,
    steps: int,
    lr: float,
    seed: int = 0,
    batch_size: int = 128,
    weight_decay: float = 0.1,
    progress: bool = True,
) -> CLIP:
    """Train the network `name` (see STARTS) and write `out` (safetensors), its card beside it
    and, for the two-tower model, its vocabulary.

    Deterministic by `seed`: the batch of each step has a seed of its own. The state after every
    250 steps is kept in `out` with the suffix `.partial`; the same call continues from it, and
    removes it when done. What is written is the moving average of the weights. Raises `VTError`
    for an unknown name, or a state of another run.
    """
    if name not in STARTS:
        raise unknown("backbone", name, STARTS)
    if steps < 1 or batch_size < 8 or not lr > 0:
        raise VTError(
            f"expected at least 1 step, 8 pictures a step and a learning rate above 0, found "
            f"{steps}, {batch_size} and {lr}"
        )
    settings = {"name": name, "steps": steps, "lr": lr, "seed": seed}
    settings |= {"batch_size": batch_size, "weight_decay": weight_decay}
    data = Upstream()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        start = STARTS[name]
        visual = load_backbone(start).train() if start else create_backbone(name)
        model = Pretraining(visual, data)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE), use_buffers=True)
    optimiser = torch.optim.AdamW(
        _groups(model, weight_decay), lr=lr, betas=(0.9, 0.98), fused=True
    )
    partial = out.with_suffix(".partial")
    done, seconds = 0, 0.0
    if partial.exists():
        done, seconds = _restore(partial, settings, model, average, optimiser)
    began = time.perf_counter() - seconds
    bar = tqdm(total=steps, initial=done, disable=not progress, mininterval=10, desc=name)
    for step in range(done, steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * _factor(step, steps)
        if step % AGE == 0:
            model.renew()
        losses = model(data.batch(batch_size, seed * 1_000_000 + step))
        optimiser.zero_grad()
        (losses @ torch.tensor(WEIGHTS)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.clip.logit_scale.clamp_(max=CLIP.logit_scale_max)
        average.update_parameters(model)
        bar.update()
        if step % 50 == 0:
            bar.set_postfix_str(" ".join(f"{loss:.3f}" for loss in losses.tolist()))
        if (step + 1) % EVERY == 0:
            kept = {**settings, "step": step + 1, "seconds": time.perf_counter() - began}
            _keep(partial, kept, model, average, optimiser)
    bar.close()
    averaged: Any = average.module
    clip: CLIP = averaged.clip.eval()
    _write(clip, out, settings, (time.perf_counter() - began) / 60)
    partial.unlink(missing_ok=True)
    return clip


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors, embeddings and the scale do not."""
    bare = ("cls_token", "pos_embed", "positional_embedding", "token_embedding.weight")
    matrices = {
        name: p for name, p in model.named_parameters() if p.ndim >= 2 and not name.endswith(bare)
    }
    rest = [p for name, p in model.named_parameters() if name not in matrices]
    return [
        {"params": list(matrices.values()), "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def _factor(step: int, steps: int) -> float:
    """Of the learning rate: up, level, and down along a line (Hägele et al., NeurIPS 2024, arXiv
    2405.18392). As the first part does not know `steps`, a run that has not begun to fall may be
    continued with another number of them."""
    return min((step + 1) / WARMUP, 1.0, (steps - step) / (DECAY * steps))


def _keep(
    path: Path,
    metadata: dict[str, Any],
    model: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
) -> None:
    """Everything that the rest of the training depends on, in one file."""
    state = optimiser.state_dict()["state"]
    tensors = {
        **{f"model.{key}": t for key, t in model.state_dict().items()},
        **{f"average.{key}": t for key, t in average.state_dict().items()},
        **{f"optimiser.{i}.{key}": t for i, each in state.items() for key, t in each.items()},
    }
    save_tensors(path, tensors, metadata)


def _restore(
    path: Path,
    settings: dict[str, Any],
    model: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
) -> tuple[int, float]:
    """The inverse of `_keep` -> steps done and seconds spent so far."""
    tensors, metadata = load_tensors(path)
    step = int(str(metadata["step"]))
    other = [key for key, value in settings.items() if metadata.get(key) != value]
    if other == ["steps"] and step <= (1 - DECAY) * min(settings["steps"], metadata["steps"]):
        other = []  # nothing so far depends on their number
    if other:
        raise VTError(
            f"expected the state of a run with {other[0]} {settings[other[0]]!r} in {path}, found "
            f"{metadata.get(other[0])!r}; ask for the same run, or delete the file"
        )
    for prefix, module in (("model.", model), ("average.", average)):
        module.load_state_dict(
            {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        )
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return step, float(str(metadata["seconds"]))


def _write(clip: CLIP, out: Path, settings: dict[str, Any], minutes: float) -> None:
    """The weights in half precision, the vocabulary, and the card with the results."""
    recipe = {"made_by": "python -m vtlite pretrain", **settings}
    if settings["name"] == "vtlite-clip":
        save_backbone(clip, out, half=True, **recipe)
        cast(WordTokenizer, clip.tokenizer).save(out.with_suffix(".txt"))
    else:
        save_backbone(clip.visual, out, half=True, **recipe)
    with atomic_write(out.with_suffix(".md")) as temporary:
        temporary.write_text(card(clip, settings, minutes), encoding="utf-8")


def card(clip: CLIP, settings: dict[str, Any], minutes: float) -> str:
    """What a user of the checkpoint should know, in Markdown."""
    rows = []
    for style, note in MEASURED.items():
        found = measure(clip, style)
        rows.append(
            f"| {style} ({note}) | " + " | ".join(f"{v:.2f}" for v in found.values()) + " |"
        )
    name = settings["name"]
    start = f"the weights of `{STARTS[name]}`" if STARTS[name] else "random weights"
    return CARD.format(
        **settings,
        architecture=describe(clip if name == "vtlite-clip" else clip.visual),
        start=start,
        seen=settings["steps"] * settings["batch_size"],
        minutes=minutes,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        version=__version__,
        styles=", ".join(STYLES),
        drawings=Upstream().emojis,
        rows="\n".join(rows),
    )


def describe(network: Any) -> str:
    """The architecture in a paragraph of a card."""
    count = f"{sum(p.numel() for p in network.parameters()):,} parameters without head"
    if isinstance(network, CLIP):
        text, indented = network.text, describe(network.visual).replace("\n", "\n  ")
        return (
            f"Two towers, {count.removesuffix(' without head')}, that meet at width "
            f"{network.text_projection.shape[1]}.\n\n"
            f"- Images: {indented}\n"
            f"- Texts: causal, width {text.embed_dim}, {len(text.blocks)} blocks, "
            f"{text.num_heads} heads, {text.vocabulary:,} words, {text.context} tokens with start "
            "and end."
        )
    if isinstance(network, ResNet):
        depths = [len(cast(Any, network.get_submodule(stage))) for stage in network.stage_names()]
        return (
            f"A ResNet with torchvision's names: {count}, {depths} blocks in its stages,\n"
            f"width {len(network.bn1.weight)}, for small images (32x32)."
        )
    patch = network.patch_embed.patch_size[0]
    return (
        f"A Vision Transformer with timm's names: {count}, images {network.input_size[0]}x"
        f"{network.input_size[0]}, patches {patch}x{patch},\nwidth {network.embed_dim}, "
        f"{len(network.blocks)} blocks, {network.num_heads} heads, {network.global_pool} pooling."
    )


def measure(clip: CLIP, style: str, seed: int = 1_000) -> dict[str, float]:
    """Zero-shot accuracy on one drawing style, freshly placed: the right one of all names first and
    among the first five, of the sub-categories, of the categories."""
    sprites, facts = emoji(style)
    g = torch.Generator().manual_seed(seed)
    images = draw.over(draw.place(sprites, g), draw.backgrounds(len(sprites), TILE, g)) * 2 - 1
    found = {}
    for key, prompt, most in (
        ("label", "{}", 1),
        ("label", "{}", 5),
        ("subcategory", PROMPT, 1),
        ("category", PROMPT, 1),
    ):
        names = sorted({fact[key] for fact in facts})
        right = torch.tensor([[names.index(fact[key])] for fact in facts])  # [B, 1]
        texts = names if key == "label" else [plain(name) for name in names]
        hits = zero_shot(clip, images, texts, prompt).topk(most).indices == right  # [B, most]
        found[f"{key}, first {most}"] = float(hits.any(1).float().mean())
    return found
