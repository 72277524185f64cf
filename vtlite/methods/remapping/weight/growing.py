"""Steps by which a network grows and computes what it did before: a wider layer, a deeper block.

Chen, Goodfellow, Shlens, "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016, arXiv
1511.05641. Everything is exact in eval mode, up to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.backbones.stages import attention_blocks, has_part, stages
from vtlite.method import Backbone
from vtlite.storage import VTError

# What makes the units inside a block, what norms them, and what alone reads them.
INSIDE = (("fc1", "", "fc2"), ("conv1", "bn1", "conv2"), ("conv2", "bn2", "conv3"))


@dataclass(frozen=True)
class Inner:
    """A width that only two layers of a block know: `producer` gives it, `consumer` takes it, and
    between them each unit goes its own way, perhaps through a batch norm."""

    block: Any
    producer: str
    norm: str
    consumer: str

    @property
    def width(self) -> int:
        return len(getattr(self.block, self.producer).weight)

    def layers(self) -> tuple[Any, Any]:
        return getattr(self.block, self.producer), getattr(self.block, self.consumer)

    def may_widen(self) -> bool:
        """Whether nothing else reads the units, or mixes them on their way."""
        names = self.producer, self.norm, self.consumer
        if not all(has_part(self.block, name) for name in names):
            return False
        producer, consumer = self.layers()
        plain = type(producer) is type(consumer) and type(producer) in (nn.Linear, nn.Conv2d)
        if not plain or producer.weight.shape[0] != consumer.weight.shape[1]:
            return False  # a grouped convolution's kernel and a gated MLP's are smaller
        if getattr(producer, "groups", 1) > 1:
            return False
        if self.norm:
            norm, pool = getattr(self.block, self.norm), getattr(self.block, "aa", None)
            return isinstance(norm, nn.BatchNorm2d) and not any(pool.buffers() if pool else ())
        others = {key for key, _ in self.block.named_parameters()}
        return all(key.split(".")[0] in names for key in others)  # no norm or gate in the MLP


def widths(backbone: Backbone) -> list[Inner]:
    """All widths inside a backbone's blocks that may grow, from input to output."""
    modules = (module for stage in stages(backbone) for module in stage.modules())
    found = [Inner(module, *names) for module in modules for names in INSIDE]
    return [inner for inner in found if inner.may_widen()]


def inner_widths(backbone: Backbone, method: str) -> list[Inner]:
    """The same. Raises `VTError` for a network without."""
    if not (found := widths(backbone)):
        raise VTError(
            f"{method}: expected blocks of two plain layers, one of which reads the other, as in a "
            f"ViT's MLP or a ResNet, found {type(backbone).__name__} without; choose another "
            "backbone"
        )
    return found


def widen(inner: Inner, source: Tensor, share: Tensor) -> None:
    """Give the width `len(source)` units: unit j is a copy of unit `source[j]`, and what reads it
    weighs it with `share[j]`; the shares of all copies of a unit have the sum one."""
    producer, consumer = inner.layers()
    for layer in (producer, getattr(inner.block, inner.norm)) if inner.norm else (producer,):
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            if tensor.ndim:  # not a count of batches
                _set(layer, name, tensor[source])
    shares = share.to(consumer.weight).view(-1, *[1] * (consumer.weight.ndim - 2))
    _set(consumer, "weight", consumer.weight[:, source] * shares)
    if isinstance(consumer, nn.Conv2d):
        producer.out_channels = consumer.in_channels = len(source)
        if inner.norm:
            getattr(inner.block, inner.norm).num_features = len(source)
    else:
        producer.out_features = consumer.in_features = len(source)


def copies(width: int, wanted: int, spread: float = 0.0) -> tuple[Tensor, Tensor]:
    """Which unit each of `wanted` units is a copy of: first itself, then one drawn at random; and
    its share, one over the number of copies, or up to `spread` more or less."""
    source = torch.cat([torch.arange(width), torch.randint(width, (wanted - width,))])
    weight = 1 + spread * (2 * torch.rand(wanted, dtype=torch.float64) - 1)
    total = torch.zeros(width, dtype=torch.float64).index_add_(0, source, weight)
    return source, weight / total[source]


def silent_copy(block: nn.Module) -> nn.Module:
    """A copy of a Transformer block that adds nothing: the last layers of its two branches are
    zero."""
    new: Any = copy.deepcopy(block)
    for last in (new.attn.proj, new.mlp.fc2):
        for tensor in last.parameters():
            nn.init.zeros_(tensor)
    return new


class Deeper(nn.Sequential):
    """A 3x3 convolution that begins as the identity, with its norm and ReLU, in front of a layer
    that reads the output of a ReLU: relu(relu(x)) = relu(x)."""

    def __init__(self, reader: nn.Conv2d) -> None:
        channels = reader.in_channels
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        norm = nn.BatchNorm2d(channels)
        conv.to(reader.weight)
        norm.to(reader.weight)
        nn.init.dirac_(conv.weight)
        # the mean is 0 and the variance 1 so far: undo what is added to it
        nn.init.constant_(norm.weight, (1 + norm.eps) ** 0.5)
        super().__init__(conv, norm, nn.ReLU(), reader)
        self.train(reader.training)
        self.seen = False  # any images

    @torch.no_grad()
    def see(self, mean: Tensor, var: Tensor) -> None:
        """Take the statistics of what passes, and undo them: the identity in training as well."""
        norm: Any = self[1]
        self.seen = True
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
        norm.bias.copy_(mean)
        norm.weight.copy_((var + norm.eps).sqrt())


class Branches(nn.Module):
    """Several layers on one input: their outputs weighed and added, or one beside the other."""

    def __init__(self, branches: list[nn.Module], shares: tuple[float, ...], dim: int) -> None:
        super().__init__()
        self.branches, self.shares, self.dim = nn.ModuleList(branches), shares, dim

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches]
        if not self.shares:
            return torch.cat(outputs, dim=self.dim)
        weighed = [share * y for share, y in zip(self.shares, outputs, strict=True)]
        return torch.stack(weighed).sum(0)


def branched(layer: Any, concatenated: bool) -> Branches:
    """An MLP or a convolution as two branches that give what it gave: both of them copies whose mean
    is taken, or each a copy that makes half of the output channels. The second branch has grown, so
    that the two can part: a wider MLP, a convolution that reaches farther."""
    pair = [copy.deepcopy(layer), copy.deepcopy(layer)]
    conv = isinstance(layer, nn.Conv2d)
    if concatenated:
        for branch, last in ((b, b if conv else b.fc2) for b in pair):
            half, first = len(last.weight) // 2, branch is pair[0]
            for name, tensor in list(last.named_parameters()):
                _set(last, name, tensor[:half] if first else tensor[half:])
            setattr(last, "out_channels" if conv else "out_features", len(last.weight))
    if conv:
        _reach_farther(pair[1])
    else:
        inner = Inner(pair[1], "fc1", "", "fc2")
        widen(inner, *copies(inner.width, inner.width * 3 // 2, spread=0.5))
    return Branches(pair, () if concatenated else (0.5, 0.5), 1 if conv else -1)


def _reach_farther(conv: nn.Conv2d) -> None:
    """A kernel with a ring of zeros around it: the same convolution, until they learn."""
    _set(conv, "weight", nn.functional.pad(conv.weight, (1, 1, 1, 1)))
    rings: Any = conv
    rings.kernel_size = tuple(k + 2 for k in rings.kernel_size)
    rings.padding = tuple(p + d for p, d in zip(rings.padding, rings.dilation, strict=True))


def narrow(inner: Inner, wanted: int) -> None:
    """Keep the `wanted` units of a width whose weights are the largest, by the sum of their
    values."""
    producer, consumer = inner.layers()
    sizes = producer.weight.detach().flatten(1).abs().sum(1)
    sizes = sizes * consumer.weight.detach().abs().transpose(0, 1).flatten(1).sum(1)
    kept = sizes.argsort(descending=True)[:wanted].sort().values
    widen(inner, kept, torch.ones(wanted))


@torch.no_grad()
def see_data(network: nn.Module, deeper: list[Deeper], batches: Iterable[Tensor]) -> None:
    """Show images to new layers that have a norm, so that they stay the identity where a norm
    computes with the batch's own statistics."""
    seen: dict[Deeper, list[Tensor]] = {layer: [] for layer in deeper}

    def keep(layer: Any, args: Any) -> None:
        x = args[0].double()  # a variance is a difference of large numbers
        seen[layer].append(torch.stack([torch.ones_like(x), x, x**2]).sum((1, 3, 4)))  # [3, C]

    hooks = [layer.register_forward_pre_hook(keep) for layer in deeper]
    training = network.training
    network.eval()
    try:
        for images in batches:
            network(images)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    for layer, sums in seen.items():
        count, total, squares = torch.stack(sums).sum(0)
        mean = total / count
        layer.see(mean, squares / count - mean**2)


def residual_blocks(backbone: Backbone) -> list[Any]:
    """The blocks of a ResNet whose second convolution reads the output of a ReLU."""
    found = [module for stage in stages(backbone) for module in stage.modules()]
    return [
        block
        for block in found
        if isinstance(getattr(block, "bn1", None), nn.BatchNorm2d)
        and type(getattr(block, "conv2", None)) is nn.Conv2d
        and isinstance(getattr(block, "act1", nn.ReLU()), nn.ReLU)
        and not any(block.aa.buffers() if getattr(block, "aa", None) else ())
    ]


def insert_blocks(backbone: Backbone, method: str, every: int) -> list[nn.Module]:
    """Put a copy that adds nothing behind every `every`-th block of a ViT -> the new blocks."""
    blocks = attention_blocks(backbone, method, ("attn.proj", "norm2", "mlp.fc2"), plain=True)
    if every > len(blocks):
        raise VTError(
            f"{method}: expected at least one new block, found none after every {every} of "
            f"{len(blocks)}; give a smaller number"
        )
    all_, new = [], []
    for i, block in enumerate(blocks, 1):
        all_.append(block)
        if i % every == 0:
            new.append(silent_copy(block))
            all_.append(new[-1])
    listed = isinstance(backbone.blocks, nn.ModuleList)
    backbone.blocks = nn.ModuleList(all_) if listed else nn.Sequential(*all_)
    return new


def _set(layer: Any, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer by one of another shape."""
    if isinstance(old := getattr(layer, name), nn.Parameter):
        value = nn.Parameter(value.detach().clone(), requires_grad=old.requires_grad)
    setattr(layer, name, value)
