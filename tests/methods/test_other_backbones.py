"""Every method on every kind of backbone: it works whole, or it refuses in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vtlite as vt
from tests.backbones.test_families import MAKERS, shaken
from tests.methods.checks import CLASSES, CNNS, SMALL, batch
from vtlite.method import find_method

BACKBONES = {
    "resnet": MAKERS["resnet"],
    "hybrid": MAKERS["hybrid"],
    "deit": MAKERS["deit"],
    "swin": lambda: vt.create_backbone(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        embed_dim=12,
        depths=(2, 2),
        num_heads=(2, 3),
        window_size=4,
    ),
}
REFUSED = {
    "resnet": {
        "vpt_deep",
        "fact_tt",
        "fact_tk",
        "aurora",
        "vera",
        "dora",
        "dylora",
        "adaptformer",
        "adapterbias",
        "side_tuning",
        "dp_bitfit",
        "kd",
        "krona",
        "kadaptation",
        "phm_adapter",
        "compacter",
        "houlsby",
        "pfeiffer",
        "repadapter",
        "mona",
        "convpass",
        "consolidator",
        "lst",
        "dtl",
        "vqt",
        "fpet",
        "vit_adapter",
        "st_adapter",
        "aim",
        "block_expansion",
    },
    "swin": {
        "block_expansion",
        "net2deeper",
        "vpt_deep",
        "fact_tt",
        "fact_tk",
        "aurora",
        "kd",
        "side_tuning",
        "lst",
        "dtl",
        "vqt",
        "fpet",
        "vit_adapter",
        "aim",
        *CNNS,
    },
    "hybrid": {"dp_bitfit", *CNNS},
    "deit": {*CNNS},
}
DEEPER = ("block_expansion", "net2deeper")  # than the backbone: they have names of their own


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("key", vt.METHODS)
def test_works_whole_or_refuses_in_a_sentence(kind: str, key: str, tmp_path: Path) -> None:
    torch.manual_seed(2)  # a small random ResNet may be dead, all its features zero: not this one
    name, backbone = key.rsplit("/", 1)[-1], shaken(BACKBONES[kind]())
    settings: dict[str, Any] = SMALL.get(name, {})
    if name in REFUSED[kind] or find_method(key).two_towers:
        with pytest.raises(
            vt.VTError,
            match=f"expected a (ViT|backbone with|CNN|ResNet|two-tower).*found {type(backbone).__name__}",
        ):
            vt.tune(backbone, key, CLASSES, **settings)
        return
    images, labels = batch()
    before = {k: t.clone() for k, t in backbone.state_dict().items()}
    data = torch.utils.data.TensorDataset(images, labels)
    model = vt.tune(backbone, key, CLASSES, **settings)
    if not find_method(key).starts_elsewhere:
        torch.testing.assert_close(
            model.features(images),
            backbone.forward_head(backbone.forward_features(images), pre_logits=True),
        )
    vt.fit(model, data, epochs=2, lr=1e-2, batch_size=3, progress=False)
    assert all(torch.equal(t, before[k]) for k, t in backbone.state_dict().items())
    out = model(images)
    fresh = vt.tune(backbone, key, CLASSES, seed=5, **settings)
    vt.save_delta(model, tmp_path / "d.safetensors")
    torch.testing.assert_close(vt.load_delta(fresh, tmp_path / "d.safetensors")(images), out)
    if not find_method(key).unmergeable:
        plain: Any = vt.merge(model)
        assert type(plain) is type(backbone)
        torch.testing.assert_close(plain.eval()(images), out, atol=1e-5, rtol=1e-5)
        assert name in DEEPER or set(plain.state_dict()) - set(before) <= {
            k for k in plain.state_dict() if k.startswith(("head.", "head_dist.", "fc."))
        }


def test_a_frozen_batch_norm_keeps_its_statistics_and_its_place_out_of_the_delta(
    tmp_path: Path,
) -> None:
    images, labels = batch(6)
    backbone = shaken(MAKERS["resnet"]())
    model = vt.tune(backbone, "partial", CLASSES)
    vt.fit(
        model,
        torch.utils.data.TensorDataset(images, labels),
        epochs=1,
        batch_size=3,
        progress=False,
    )
    moved = {
        n for n, b in model.backbone.named_buffers() if not torch.equal(b, backbone.get_buffer(n))
    }
    assert moved == {n for n, _ in backbone.named_buffers() if n.startswith("layer4.")}
    vt.save_delta(model, tmp_path / "d.safetensors")
    from safetensors import safe_open

    with safe_open(tmp_path / "d.safetensors", "pt") as file:
        names = list(file.keys())
    assert all(n.startswith(("network.backbone.layer4.", "network.head.")) for n in names)


def test_bn_only_count_on_resnet50() -> None:
    resnet50 = vt.create_backbone("resnet50", device="meta")
    assert vt.count_parameters(vt.tune(resnet50, "norm_tuning", 10))[0] - (2048 * 10 + 10) == 53_120


def test_a_student_of_another_kind_can_be_given() -> None:
    images, labels = batch(6)
    teacher, student = (
        shaken(MAKERS["resnet"]()),
        vt.create_backbone("vtlite-tiny", embed_dim=24, depth=1),
    )
    model = vt.tune(
        teacher, "kd", CLASSES, student=student, teacher_method="linear", teacher_epochs=1
    )
    vt.fit(model, torch.utils.data.TensorDataset(images, labels), epochs=1, progress=False)
    assert type(vt.merge(model)) is type(student)
