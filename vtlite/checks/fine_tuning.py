"""Checks of assignment 02, fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vtlite.backbones.vit import VisionTransformer
from vtlite.checks.base import expect, passed, same

_FlopsAndParameters = tuple[int, int]


class _Toy(nn.Module):
    """A backbone in small: names like a ViT's, one buffer, dropout and a batch norm, so that train
    and eval mode differ."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 5, 2, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5)) for _ in range(11)
        )
        self.pre_norm = nn.LayerNorm(5)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pre_norm(self.patch_embed(images).mean(dim=(2, 3)))
        for block in self.blocks:
            x = x + block(x)
        return self.norm(x)


def _toy(seed: int = 0) -> _Toy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        toy = _Toy()
        for parameter in toy.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        toy.norm.running_mean = torch.randn(5)
    return toy


def _freeze_case(student: Callable[..., Any], prefixes: tuple[str, ...]) -> None:
    model = _toy()
    model.head.bias.requires_grad = False  # a model that was partly frozen before
    before = {name: t.clone() for name, t in model.state_dict().items()}
    returned = student(model, prefixes)

    def inside(name: str) -> bool:
        return any(name == prefix or name[: len(prefix) + 1] == prefix + "." for prefix in prefixes)

    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    wrong = [name for name, flag in flags.items() if flag != inside(name)]
    if wrong:
        loose = {name: name.startswith(prefixes) if prefixes else False for name in flags}
        anywhere = {name: any(prefix in name for prefix in prefixes) for name in flags}
        likely = {
            "you compare the start of the name only, so that blocks.10 counts as blocks.1: a prefix ends at a dot": (
                flags == loose
            ),
            "you look for the prefix anywhere in the name; it has to be at the start and end at a dot": (
                flags == anywhere
            ),
            "you froze the named parts and train the others: turn it round": (
                flags == {n: not inside(n) for n in flags}
            ),
            "you never set requires_grad to False, so everything trains": (
                all(flags.values()) and not all(map(inside, flags))
            ),
            "a part that was frozen before stays frozen: set requires_grad to True as well": all(
                not flags[n] for n in wrong
            ),
            "nothing is frozen that is not named first: set every flag, in both directions": True,
        }
        what = (
            f"prefixes {prefixes}: expected requires_grad = {inside(wrong[0])} for {wrong[0]},"
            f" found {flags[wrong[0]]}"
        )
        expect(False, what, next(sentence for sentence, match in likely.items() if match))
    expected = sum(p.numel() for name, p in model.named_parameters() if inside(name))
    same(
        f"the number returned for {prefixes}",
        returned,
        expected,
        {
            "you return how many tensors train; count their elements with numel()": sum(
                map(inside, flags)
            ),
            "you count all parameters; count only those that train": sum(
                p.numel() for p in model.parameters()
            ),
            "you count the frozen numbers; count those that train": (
                sum(p.numel() for p in model.parameters()) - expected
            ),
        },
    )
    changed = [name for name, t in model.state_dict().items() if not torch.equal(t, before[name])]
    expect(
        not changed,
        f"expected the values to stay as they were, found {changed[:1]} changed",
        "you wrote to the parameters",
    )


def freeze_except(student: Callable[[nn.Module, tuple[str, ...]], int]) -> None:
    """2.1: `freeze_except(model, prefixes)` leaves only the named parts trainable and returns how
    many numbers train."""
    for prefixes in (("head",), ("norm", "blocks.10"), ("blocks.1", "head"), ()):
        _freeze_case(student, prefixes)
    passed(
        "freeze_except",
        "flags of every parameter",
        "prefixes that end at a dot",
        "the count",
        "values untouched",
    )


def _features_case(student: Callable[..., Any], count: int, batch_size: int) -> None:
    backbone = _toy(1).train()
    images = torch.randn(count, 3, 6, 8, generator=torch.Generator().manual_seed(count))
    original, state = images.clone(), {name: t.clone() for name, t in backbone.state_dict().items()}
    calls: list[int] = []
    hook = backbone.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    found = student(backbone, images, batch_size)
    hook.remove()
    trained = backbone.training
    with torch.no_grad():
        expected = torch.stack([backbone.eval()(image[None])[0] for image in original])
    moved = [name for name, t in backbone.state_dict().items() if not torch.equal(t, state[name])]
    expect(
        not moved,
        f"expected the backbone to stay as it was, found {moved[:1]} changed",
        "the backbone ran in train mode, so its batch norm collected statistics: call eval() first",
    )
    expect(
        isinstance(found, Tensor),
        f"expected one tensor of features, found {type(found).__name__}",
        "join the batches with torch.cat",
    )
    whole = count - count % batch_size
    same(
        f"features of {count} images in batches of {batch_size}",
        found,
        expected,
        {
            "the last, smaller batch is missing": expected[:whole],
            "the images are not in their order": expected.flip(0),
        },
    )
    expect(
        not found.requires_grad,
        "expected features without a gradient, found requires_grad = True",
        "wrap the loop in torch.no_grad(), or the whole graph stays in memory",
    )
    expect(
        max(calls) <= batch_size,
        f"expected at most {batch_size} images at a time, found a batch of {max(calls)}",
        "you pass all images at once; split them into batches",
    )
    expect(
        sum(calls) == count,
        f"expected each image to pass the backbone once, found {sum(calls)} for {count} images",
        "you compute features more than once; keep them",
    )
    expect(
        trained,
        "expected the backbone back in train mode, as it was before, found eval mode",
        "remember backbone.training first and restore it at the end",
    )
    expect(
        torch.equal(images, original),
        "expected the images to stay as they were",
        "you changed the images in place",
    )


def cached_features(student: Callable[[nn.Module, Tensor, int], Tensor]) -> None:
    """2.2: `cached_features(backbone, images, batch_size)` computes frozen features batch by batch,
    once."""
    for count, batch_size in ((8, 3), (6, 2), (1, 4)):
        _features_case(student, count, batch_size)
    passed(
        "cached_features",
        "values in eval mode",
        "order and last batch",
        "batch size",
        "no gradient",
        "mode and statistics restored",
    )


def layerwise_lrs(student: Callable[[list[str], int, float, float], dict[str, float]]) -> None:
    """2.3: `layerwise_lrs(names, depth, lr, decay)` gives each parameter its learning rate."""
    for depth, lr, decay in ((12, 2e-3, 0.65), (3, 0.5, 0.9)):
        _layerwise_case(student, depth, lr, decay)
    passed(
        "layerwise_lrs",
        "every layer of 12 and of 3 blocks",
        "embedding, final norm and head",
        "block numbers of two digits",
    )


def _layerwise_case(student: Callable[..., Any], depth: int, lr: float, decay: float) -> None:
    names = [
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    ]
    names += [
        f"blocks.{i}.{rest}"
        for i in range(depth)
        for rest in ("norm1.weight", "attn.qkv.weight", "mlp.fc2.bias")
    ]
    given = list(names)

    def layer(name: str) -> int:
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return depth + 1 if name.startswith(("norm.", "head.")) else 0

    def power(layer: int) -> float:
        return decay ** (depth + 1 - layer)

    def table(factor: Callable[[int], float], of: Callable[[str], int] = layer) -> dict[str, float]:
        return {name: lr * factor(of(name)) for name in names}

    found = student(names, depth, lr, decay)
    same(
        f"learning rates for depth {depth}, lr {lr}, decay {decay}",
        found,
        table(power),
        {
            "the order is reversed: the head has the full learning rate, the embedding the smallest": table(
                lambda i: decay**i
            ),
            "off by one: the head's factor is decay ** 0, the last block's decay ** 1": table(
                lambda i: decay ** (depth + 2 - i)
            ),
            "off by one: the last block's factor is decay ** 1, not 1": table(
                lambda i: decay ** max(0, depth - i)
            ),
            "block i is layer i + 1: layer 0 is the embedding": table(
                power, lambda s: layer(s) - s.startswith("blocks.")
            ),
            "the class token and the positions belong to layer 0, with the patch embedding": table(
                power, lambda s: depth + 1 if s in ("cls_token", "pos_embed") else layer(s)
            ),
            "a block's own norms (blocks.2.norm1) belong to the block: only the final norm stands above": table(
                power, lambda s: depth + 1 if "norm" in s else layer(s)
            ),
            "the final norm belongs to the last layer, with the head": table(
                power, lambda s: 0 if s.startswith("norm.") else layer(s)
            ),
            "the decay multiplies once per layer: a power, not a product": table(
                lambda i: 1.0 if i == depth + 1 else decay * (depth + 1 - i)
            ),
            "you read one digit of the block's number, so block 10 became block 1": table(
                power,
                lambda s: int(s.split(".")[1][0]) + 1 if s.startswith("blocks.") else layer(s),
            ),
        },
    )
    expect(
        names == given,
        "expected the list of names to stay as it was",
        "you changed the list that you were given",
    )


def _l2_sp_case(student: Callable[..., Any], seed: int, alpha: float) -> None:
    g = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (3, 4), "a.bias": (3,), "b.weight": (2, 3, 2, 2), "head.weight": (5, 3)}
    start = {
        name: torch.randn(shape, generator=g)
        for name, shape in shapes.items()
        if not name.startswith("head")
    }
    weights = {
        name: torch.randn(shape, generator=g).requires_grad_() for name, shape in shapes.items()
    }
    kept = {
        name: t.detach().clone()
        for name, t in (weights | {f"start {n}": t for n, t in start.items()}).items()
    }
    found, given = student(weights, start, alpha), start
    start = {name: kept[f"start {name}"] for name in start}  # as it was before the call
    matrices = [name for name in start if start[name].ndim >= 2]

    def total(over: list[str], value: Callable[[str], float]) -> float:
        return sum(value(name) for name in over)

    def squared(name: str) -> float:
        difference = weights[name].detach() - start.get(name, torch.zeros(()))
        return sum(x * x for x in difference.flatten().tolist())

    def norm2(name: str) -> float:
        return sum(x * x for x in weights[name].flatten().tolist())

    distance = total(matrices, squared)
    same(
        f"the penalty for alpha {alpha}",
        found,
        alpha / 2 * distance,
        {
            "the factor 1/2 is missing": alpha * distance,
            "the penalty is not multiplied by alpha": distance / 2,
            "you measure the distance from zero (weight decay); L2-SP measures it from the start": (
                alpha / 2 * total(matrices, norm2)
            ),
            "biases and norms count too; only tensors of two or more dimensions should": (
                alpha / 2 * total(list(start), squared)
            ),
            "the head counts too, though it has no start": (
                alpha / 2 * (distance + norm2("head.weight"))
            ),
            "you take the distance; L2-SP takes its square": alpha / 2 * math.sqrt(distance),
            "you take the sum of the distances; square them": (
                alpha / 2 * total(matrices, lambda n: math.sqrt(squared(n)))
            ),
            "you take a mean over the entries; L2-SP takes the sum": (
                alpha / 2 * total(matrices, lambda n: squared(n) / start[n].numel())
            ),
        },
        tolerance=1e-4,
    )
    expect(
        isinstance(found, Tensor) and found.requires_grad,
        "expected a penalty with a gradient, found none",
        "something detached the weights (detach, item, data or no_grad): the penalty would pull on"
        " nothing",
    )
    found.backward()
    for name in weights:
        grad = weights[name].grad
        wanted = (
            alpha * (weights[name].detach() - start[name])
            if name in matrices
            else torch.zeros(shapes[name])
        )
        same(
            f"the gradient of {name}",
            torch.zeros(shapes[name]) if grad is None else grad,
            wanted,
            {
                "the gradient does not reach the weights: something detached them": torch.zeros(
                    shapes[name]
                )
            },
        )
    now = weights | {f"start {n}": t for n, t in given.items()}
    changed = [name for name, t in kept.items() if not torch.equal(now[name].detach(), t)]
    expect(
        not changed,
        f"expected weights and start to stay as they were, found {changed[:1]} changed",
        "you subtracted in place",
    )


def l2_sp_penalty(student: Callable[[dict[str, Tensor], dict[str, Tensor], float], Tensor]) -> None:
    """2.4: `l2_sp_penalty(weights, start, alpha)` is alpha / 2 times the squared distance from the
    start."""
    for seed, alpha in ((0, 0.1), (1, 3.0)):
        _l2_sp_case(student, seed, alpha)
    passed(
        "l2_sp_penalty",
        "the value for two strengths",
        "matrices only",
        "its gradient",
        "arguments untouched",
    )


def lp_ft_lrs(student: Callable[[int, int, int, float], tuple[float, float]]) -> None:
    """2.5: `lp_ft_lrs(step, probe_steps, total_steps, lr)` -> learning rates of (backbone,
    head)."""
    for probe, total, lr in ((4, 15, 0.3), (1, 6, 2.0), (0, 5, 1.0)):
        for step in range(total):
            _lp_ft_case(student, step, probe, total, lr)
    passed(
        "lp_ft_lrs",
        "every step of three schedules",
        "the boundary between the parts",
        "no probe at all",
    )


def _lp_ft_case(student: Callable[..., Any], step: int, probe: int, total: int, lr: float) -> None:
    def cosine(share: float) -> float:
        return lr * 0.5 * (1 + math.cos(math.pi * share))

    def pair(backbone: float, head: float) -> dict[str, float]:
        return {"backbone": backbone, "head": head}

    def both(
        second: float,
    ) -> dict[str, float]:  # a right first part, and `second` for both after it
        return pair(0.0, cosine(step / probe)) if step < probe else pair(second, second)

    expected = both(cosine((step - probe) / (total - probe)))
    returned = student(step, probe, total, lr)
    expect(
        isinstance(returned, tuple | list) and len(returned) == 2,
        f"expected two numbers, found {returned!r}",
        "return (backbone, head)",
    )
    same(
        f"step {step} of {total}, {probe} of them probing",
        pair(*returned),
        expected,
        {
            "backbone and head are swapped": pair(expected["head"], expected["backbone"]),
            "the backbone moves while the head is probed": pair(expected["head"], expected["head"]),
            "the head stops when the backbone starts; in the second part both train": pair(
                expected["head"], 0.0
            ),
            "off by one: step probe_steps is the first step of the second part": pair(
                0.0, cosine(step / max(1, probe))
            ),
            "off by one: the second part starts at the full learning rate": both(
                cosine((step - probe + 1) / (total - probe))
            ),
            "the rate is constant; it should fall along a cosine in each part": pair(
                0.0 if step < probe else lr, lr
            ),
            "the cosine does not start again with the second part": pair(
                0.0 if step < probe else cosine(step / total), cosine(step / total)
            ),
            "the second part's cosine is stretched over all steps; it has total_steps - probe_steps": both(
                cosine((step - probe) / total)
            ),
        },
    )


def _wise_ft_case(student: Callable[..., Any], seed: int, alpha: float) -> None:
    g = torch.Generator().manual_seed(seed)
    start, tuned = (
        {
            "w": torch.randn(3, 5, generator=g),
            "bn.running_var": torch.rand(4, generator=g) + 0.5,
            "head.bias": torch.randn(2, generator=g),
            "bn.num_batches_tracked": torch.tensor(steps),
        }
        for steps in (11, 208)
    )
    kept = [{name: t.clone() for name, t in state.items()} for state in (start, tuned)]
    found = student(start, tuned, alpha)
    changed = any(
        not torch.equal(t, state[name])
        for state, old in zip((start, tuned), kept, strict=True)
        for name, t in old.items()
    )
    expect(
        not changed,
        "expected both state dicts to stay as they were, found one changed",
        "you interpolated in place (lerp_, +=, *=): make new tensors",
    )

    def mixed(a: float, b: float) -> dict[str, Tensor]:
        return {
            n: tuned[n] if not t.is_floating_point() else a * t + b * tuned[n]
            for n, t in start.items()
        }

    expected = mixed(1 - alpha, alpha)
    counter = {
        **expected,
        "bn.num_batches_tracked": (
            (1 - alpha) * start["bn.num_batches_tracked"] + alpha * tuned["bn.num_batches_tracked"]
        ),
    }
    same(
        f"weights for alpha {alpha}",
        found,
        expected,
        {
            "alpha is on the wrong side: 0 is the start, 1 is the tuned model": mixed(
                alpha, 1 - alpha
            ),
            "you ignore alpha and take the mean": mixed(0.5, 0.5),
            "the factors do not sum to one: the start has 1 - alpha": mixed(1.0, alpha),
            "an integer counter (num_batches_tracked) has no average; take it from the tuned model": (
                counter
            ),
            "an integer counter (num_batches_tracked) has no average; take it from the tuned model, not as a rounded mean": {
                **expected,
                "bn.num_batches_tracked": counter["bn.num_batches_tracked"].round().long(),
            },
            "the counter comes from the start; take it from the tuned model": {
                **expected,
                "bn.num_batches_tracked": start["bn.num_batches_tracked"],
            },
            "the head is missing: WiSE-FT interpolates every parameter": {
                n: t for n, t in expected.items() if not n.startswith("head")
            },
            "you leave the head as tuned: WiSE-FT interpolates every parameter": {
                **expected,
                "head.bias": tuned["head.bias"],
            },
            "the running statistics are left as tuned; interpolate every floating-point tensor": {
                **expected,
                "bn.running_var": tuned["bn.running_var"],
            },
        },
    )
    shared = [
        n
        for n, t in found.items()
        if t.is_floating_point() and t.data_ptr() in (start[n].data_ptr(), tuned[n].data_ptr())
    ]
    expect(
        not shared,
        f"expected new tensors, found {shared[:1]} sharing memory with an argument",
        "you return the argument's own tensor; a later training step would change both",
    )


def wise_ft(student: Callable[[dict[str, Any], dict[str, Any], float], dict[str, Any]]) -> None:
    """2.6: `wise_ft(start, tuned, alpha)` interpolates two state dicts."""
    for seed, alpha in ((0, 0.3), (1, 0.0), (2, 1.0)):
        _wise_ft_case(student, seed, alpha)
    passed(
        "wise_ft",
        "three values of alpha",
        "integer counters",
        "all keys",
        "arguments untouched",
        "new tensors",
    )


def count_vit(student: Callable[[int, int, int, int, int], _FlopsAndParameters]) -> None:
    """2.7: `count_vit(image, patch, width, depth, classes)` -> (parameters, floating-point
    operations of one image)."""
    from vtlite.accounting import flops as count_flops

    for image, patch, D, depth, classes in ((16, 4, 12, 2, 5), (24, 8, 30, 3, 7)):
        with torch.random.fork_rng(devices=[]):
            model = VisionTransformer(
                image, patch, 3, classes, embed_dim=D, depth=depth, num_heads=3
            )
        parameters, operations = (
            sum(p.numel() for p in model.parameters()),
            count_flops(model.eval(), torch.zeros(1, 3, image, image)),
        )
        case = f"image {image}, patch {patch}, width {D}, depth {depth}, {classes} classes"
        returned = student(image, patch, D, depth, classes)
        expect(
            isinstance(returned, tuple | list) and len(returned) == 2,
            f"expected two numbers, found {returned!r}",
            "return (parameters, operations)",
        )
        patches = (image // patch) ** 2
        N = patches + 1
        same(
            f"parameters for {case}",
            returned[0],
            parameters,
            {
                "D numbers are missing: the class token, its position, or the bias of the patch embedding": (
                    parameters - D
                ),
                "2 D numbers are missing: the final norm, or the class token with its position": (
                    parameters - 2 * D
                ),
                "the biases of the blocks' linear layers are missing": parameters - depth * 9 * D,
                "all biases of linear layers are missing": parameters - depth * 9 * D - D - classes,
                "the norms of the blocks are missing: two per block, 2 D each": (
                    parameters - depth * 4 * D
                ),
                "the head is missing": parameters - D * classes - classes,
                "the positions are missing": parameters - N * D,
                "the patch embedding sees three channels": parameters - 2 * patch * patch * D,
                "qkv makes three vectors per token": parameters - depth * 2 * D * D,
            },
            tolerance=1e-9,
        )
        attention, linear = depth * 4 * N * N * D, depth * 2 * N * 12 * D * D
        same(
            f"operations for {case}",
            returned[1],
            operations,
            {
                "a multiply-add counts as two operations": operations / 2,
                "attention itself is missing: q k^T and A v have 2 N N D operations each": (
                    operations - attention
                ),
                "attention has two products: q k^T and A v": operations - attention / 2,
                "the class token passes the blocks too: N is the number of patches plus one": (
                    operations - depth * (2 * 12 * D * D + 4 * D * (N * N - patches * patches))
                ),
                "the head is missing": operations - 2 * D * classes,
                "the head reads one token, not all": operations + 2 * D * classes * (N - 1),
                "the patch embedding is missing": operations - 2 * patches * 3 * patch * patch * D,
                "the MLP is missing: 8 D D multiply-adds per token": (
                    operations - depth * 2 * N * 8 * D * D
                ),
                "the linear layers of the blocks are missing": operations - linear,
                "biases and norms are left out of this count": operations + depth * N * 9 * D,
            },
            tolerance=1e-9,
        )
    passed(
        "count_vit", "parameters of two networks, entry by entry", "operations as torch counts them"
    )
