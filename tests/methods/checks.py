"""What every method must pass, as plain functions of a method's name: `test_methods.py` runs them
over all of `vt.METHODS`."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vtlite as vt
from tests.conftest import make_tiny, make_tiny_clip, make_tiny_resnet
from vtlite.backbones.clip import CLIP, ImageTower
from vtlite.method import METHODS, find_method, short
from vtlite.task import Classification
from vtlite.zero_shot import ZeroShot

CLASSES = 3
# Settings for a backbone of width 24 and 2 blocks; everything else is the method's default.
SMALL: dict[str, dict[str, Any]] = {
    "adaptformer": {"bottleneck": 4, "dropout": 0.0},
    "consolidator": {"num_groups": 6},
    "block_expansion": {"every": 1},
    "clip_adapter": {"reduction": 2, "ratio": 0.6},
    "conv_adapter": {"reduction": 4},
    "cocoop": {"reduction": 2},
    "coop": {"num_context": 4},
    "clip_lora": {"dropout": 0.0},
    "dpt": {"num_context": 3, "num_prompts": 2, "num_likely": 2},
    "maple": {"depth": 1},
    "promptkd": {"num_prompts": 2},
    "tpt": {"num_views": 5, "smallest": 0.5},
    "upt": {"dropout": 0.0},
    "convpass": {"bottleneck": 4, "dropout": 0.0},
    "fpet": {"bottleneck": 4, "dropout": 0.0},
    "lst": {"reduction": 4},
    "mona": {"bottleneck": 4, "dropout": 0.0},
    "polyhistor": {"reduction": 4},
    "st_adapter": {"bottleneck": 4},
    "lasp": {
        "templates": ("a photo of a {}", "an emoji of {}"),
        "weight": 1.0,  # random towers can't tell texts apart, which is 5/6 of the default's loss
    },
    "dualcoop": {"num_context": 4},
    "plot": {"num_context": 4, "iterations": 20},
    "prograd": {
        "num_context": 5,
        "words": "",
        "strength": 0.0,
    },  # test_prompts_language.py projects
    "repadapter": {"bottleneck": 4, "dropout": 0.0},
    "kadaptation": {"n": 4},
    "aurora": {"rank": 6},
    **{
        name: {"channels": 4, "nodes": 2, "cells": 2, "search_epochs": 3}
        for name in (
            *("darts", "darts_minus", "darts_plus", "data"),
            *("milenas", "p_darts", "sgas", "snas"),
        )
    },
    "dldr": {"k": 4, "snapshots": 6, "stride": 1},
    "dora": {"rank": 2},
    "dp_bitfit": {
        "noise_multiplier": 0.0,
        "clipping": "abadi",
        "max_norm": 1e6,
    },  # BitFit; test_parameter_bias.py clips and adds noise
    "dylora": {
        "rank": 1
    },  # each step draws a rank to train, here the only one; test_parameter_low_rank.py has more of them
    "fact_tk": {"rank": 4},
    "fact_tt": {"rank": 4},
    "tip_adapter": {"shots": 4, "views": 1},
    "lora": {"rank": 2},
    "side_tuning": {"depth": 1},
    "spt": {"budget": 0.1, "rank": 2},
    "vera": {"rank": 16},
    "vit_adapter": {"prior_width": 4, "interactions": 2, "heads": 3},
    "evp": {"reduction": 4},
    "pgn": {"num_prompts": 3, "library": 5},
    "lpt": {"num_prompts": 2, "pool": 2, "dropout": 0.0},
    "noah": {"prompts": (3, 0), "ranks": (2, 1), "widths": (4, 2)},
    "pro_tuning": {"reduction": 4},
    "s_prompting": {"num_prompts": 3},
    "vp": {"width": 4, "image_size": 32},
    "vfpt": {"num_prompts": 4},
    "vpt_deep": {"num_prompts": 3},
    "vpt_shallow": {"num_prompts": 3},
}
# What has nothing to train: no test of a step speaks of it.
UNTRAINED = ("tda",)
# What draws no number when it is made: it starts from words, or with an empty cache.
UNDRAWN = ("lasp", "tip_adapter", "tda", "tpt")
# How features are to be pooled for all that trains to be read.
READ: dict[str, dict[str, Any]] = {
    "st_adapter": {"global_pool": "avg"}  # the last adapter changes patches after all attention
}

# What changes 3x3 convolutions is tried on a ResNet; all else on a ViT.
CNNS = tuple(short(k) for k, cls in METHODS.items() if cls.measured_on == "vtlite-resnet")


def home(name: str, **overrides: Any) -> Any:
    """The small network on which the suite tries a method."""
    if find_method(name).two_towers:
        return make_tiny_clip()
    return (make_tiny_resnet if name.split("/")[-1] in CNNS else make_tiny)(**overrides)


def plain(network: Any, images: Tensor) -> Tensor:
    """What a model answers that starts as its network: features, or zero-shot logits."""
    if isinstance(network, CLIP):
        return ZeroShot(network, [str(i) for i in range(CLASSES)], "a photo of a {}")(images)
    return network(images)


def batch(count: int = 5) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 32, 32, generator=g), torch.arange(count) % CLASSES


def tuned(name: str, backbone: nn.Module | None = None, seed: int = 0) -> vt.Tuned:
    """A method on its network; of a cache that is to hold images, one that holds some."""
    model = fresh(name, backbone, seed)
    if name.split("/")[-1] == "tip_adapter":
        images, labels = batch()
        model.method.fill(model, list(zip(images, labels, strict=True)))
    return model


def fresh(name: str, backbone: nn.Module | None = None, seed: int = 0) -> vt.Tuned:
    settings = SMALL.get(name.split("/")[-1], {})
    return vt.tune(backbone or home(name), name, asked(name), seed=seed, **settings)


def asked(name: str) -> Any:
    """The task on which the suite tries a method: one with names where a text tower reads them."""
    names = tuple(str(i) for i in range(CLASSES))
    return Classification("numbers", names) if find_method(name).two_towers else CLASSES


def trained(name: str, backbone: nn.Module | None = None) -> vt.Tuned:
    """A tuned model whose every trainable value was moved away from its start."""
    model = tuned(name, backbone)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=g)
    return model


def step(
    model: vt.Tuned, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> float:
    optimizer.zero_grad()
    loss = model.method.backward(model, images, labels)
    optimizer.step()
    return float(loss.detach())


def starts_as_the_backbone_or_says_why(name: str) -> None:
    images, _ = batch()
    backbone, model = home(name), fresh(name)
    found = model(images) if isinstance(backbone, CLIP) else model.features(images)
    before = plain(backbone, images)
    same = found.shape == before.shape and torch.allclose(found, before, atol=1e-6)
    assert same == (not find_method(name).starts_elsewhere), find_method(name).starts_elsewhere


def leaves_the_backbone_alone(name: str) -> None:
    backbone = home(name)
    modules, values = str(backbone), {key: t.clone() for key, t in backbone.state_dict().items()}
    flags = [p.requires_grad for p in backbone.parameters()]
    model, (images, labels) = tuned(name, backbone), batch()
    step(
        model,
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0),
        images,
        labels,
    )
    assert str(backbone) == modules
    assert [p.requires_grad for p in backbone.parameters()] == flags
    assert all(torch.equal(values[key], t) for key, t in backbone.state_dict().items())


def trains_only_what_it_declares(name: str) -> None:
    model, (images, labels) = tuned(name), batch()
    frozen = {key: p.detach().clone() for key, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.1, weight_decay=0.1
    )  # all parameters: only the flags protect the frozen
    for _ in range(2):
        step(model, optimizer, images, labels)
    now = dict(model.named_parameters())
    assert all(torch.equal(value, now[key]) for key, value in frozen.items())
    if not find_method(name).two_towers:  # there the head may hold the frozen text tower
        assert all(p.requires_grad for p in model.head.parameters())


def gradients_reach_everything_within_two_steps(name: str) -> None:
    network = home(name, **READ.get(name.split("/")[-1], {}))
    model, (images, labels) = tuned(name, network), batch()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    reached: set[str] = set()
    # ViT-Adapter's gain starts at zero, and so do, behind it, the weights that choose its points
    for _ in range(3 if name.endswith("vit_adapter") else 2):
        step(model, optimizer, images, labels)
        reached |= {
            key
            for key, p in model.named_parameters()
            if p.grad is not None and p.grad.abs().max() > 0
        }
    assert reached == {key for key, p in model.named_parameters() if p.requires_grad}


def loss_falls_on_a_fixed_batch(name: str) -> None:
    model, (images, labels) = tuned(name), batch(9)
    # a cache's keys are of length one; what generates adapters starts a hundred times smaller
    lr = {"tip_adapter": 0.1, "polyhistor": 3e-3}.get(short(name), 1e-2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = [step(model, optimizer, images, labels) for _ in range(25)]
    assert losses[-1] < 0.8 * losses[0]


def merged_equals_unmerged(name: str) -> None:
    images, _ = batch()
    model = trained(name).eval()
    before = model(images)
    if reason := find_method(name).unmergeable:
        with pytest.raises(vt.VTError, match="cannot be merged") as error:
            vt.merge(model)
        assert reason in str(error.value)
        return
    plain: Any = vt.merge(model)
    assert torch.allclose(plain(images), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(model(images), before)
    # a plain network: the same modules under the same names
    if find_method(name).two_towers:  # of which only one is left: the texts are constants
        assert not hasattr(plain.head, "tower")
        plain, like = plain.backbone, ImageTower(home(name))
    else:
        depth = {"depth": len(plain.blocks)} if hasattr(plain, "blocks") else {}
        like = home(name, num_classes=CLASSES, **depth)
    assert [(key, type(m)) for key, m in plain.named_modules()] == [
        (key, type(m)) for key, m in like.named_modules()
    ]
    assert all(p.requires_grad for p in plain.parameters())


def delta_round_trip(name: str, folder: Path) -> None:
    images, _ = batch()
    model, fresh = trained(name), tuned(name, seed=7)
    vt.save_delta(model, folder / "delta.safetensors")
    assert not torch.equal(fresh(images), model(images))
    vt.load_delta(fresh, folder / "delta.safetensors")
    assert torch.equal(fresh(images), model(images))
    bytes_of_values = 4 * vt.count_parameters(model)[0]
    for module in (
        model.modules()
    ):  # where the numbers that train belong is stored with them: GPS's places, DLDR's directions
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            bytes_of_values += sum(
                b.nbytes
                for key, b in module.named_buffers(recurse=False)
                if key in module.state_dict()
            )
    size = (folder / "delta.safetensors").stat().st_size
    about_it = max(8192, 128 * len(model.state_dict()))  # names, shapes, settings
    assert bytes_of_values <= size <= bytes_of_values + about_it  # nothing frozen was written


def works_on_timm_as_on_ours(name: str) -> None:
    if find_method(name).two_towers:
        return  # timm has no two towers
    models: Any = pytest.importorskip("timm").models
    if name.split("/")[-1] in CNNS:
        ours = home(name, width=64)  # the only width of timm's first layer
        block = models.resnet.BasicBlock
        theirs = models.resnet.ResNet(block, layers=(1, 1, 1, 1), num_classes=5)
    else:
        ours, sizes = home(name), {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
        theirs = models.VisionTransformer(img_size=32, patch_size=8, **sizes)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.eval()
    images, labels = batch()
    a, b = tuned(name, ours), tuned(name, theirs)
    optimizers = [
        torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1) for m in (a, b)
    ]
    for _ in range(2):
        losses = [step(m, o, images, labels) for m, o in zip((a, b), optimizers, strict=True)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.allclose(a(images), b(images), atol=1e-5)
    assert {key for key, p in a.named_parameters() if p.requires_grad} == {
        key for key, p in b.named_parameters() if p.requires_grad
    }
    assert a.fingerprint == b.fingerprint  # so that a delta made on one loads on the other


def same_seed_same_model(name: str) -> None:
    first, again, other = (tuned(name, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = any(not torch.equal(first[key], other[key]) for key in first)
    # a cache draws nothing, nor does a context of words
    assert drawn or name.split("/")[-1] in UNDRAWN
    state = torch.random.get_rng_state()
    tuned(name)
    assert torch.equal(state, torch.random.get_rng_state())


def works_with_mean_pooling_and_layer_scale(name: str) -> None:
    if name.split("/")[-1] in CNNS or find_method(name).two_towers:
        return  # a CNN has neither, and CLIP's image tower is one ViT
    backbone = make_tiny(global_pool="avg", init_values=0.5)
    images, labels = batch()
    model = trained(name, backbone)
    loss = model.method.backward(model, images, labels)
    assert math.isfinite(loss)
    if not find_method(name).unmergeable:
        assert torch.allclose(vt.merge(model)(images), model(images), atol=1e-5, rtol=1e-5)


def runs_compiled(name: str) -> None:
    model, (images, labels) = trained(name), batch()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    assert torch.allclose(compiled(images), model(images), atol=1e-5)
    model.method.loss(compiled, images, labels).backward()
    by_compiled = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.method.backward(model, images, labels)
    assert all(
        torch.allclose(by_compiled[key], p.grad, atol=1e-5)
        for key, p in model.named_parameters()
        if p.grad is not None
    )


def runs_in_bfloat16(name: str) -> None:
    model, (images, labels) = trained(name), batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.method.loss(model, images, labels)
    loss.backward()
    assert float(loss) == pytest.approx(float(model.method.loss(model, images, labels)), rel=0.05)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def runs_as_a_pure_function(name: str) -> None:
    model, (images, _) = trained(name), batch()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.1)
    values = {key: p.detach() for key, p in other.named_parameters()}
    assert torch.allclose(
        torch.func.functional_call(model, values, images), other(images), atol=1e-6
    )


def frozen_modules_stay_in_eval_mode(name: str) -> None:
    model = tuned(name).train()
    for key, module in model.named_modules():
        flags = [p.requires_grad for p in module.parameters()]
        if flags:
            assert module.training == any(flags), key
