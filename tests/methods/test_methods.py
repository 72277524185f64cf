"""One suite for all methods. A new method is in it by being in `vt.METHODS`; only its published
count is added below."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import vtlite as vt
from tests.methods import checks
from vtlite.backbones.clip import CLIP, TextTransformer
from vtlite.backbones.tokenizer import WordTokenizer

# Trained on ViT-B/16 without the head, with the settings given: ../methods' sheets, computed from
# shapes and checked with the papers' figures.
PUBLISHED: list[tuple[str, dict[str, Any], int]] = [
    ("full", {}, 85_798_656),
    ("linear", {}, 0),
    ("mlp_head", {}, 592_128),  # 768 * 768 + 768 and a norm of 2 * 768
    ("mlp_head", {"layers": 3}, 1_776_384),
    ("partial", {}, 7_089_408),  # a block of 7,087,872 and the final norm
    ("partial", {"blocks": 4}, 28_353_024),
    ("norm_tuning", {}, 38_400),  # 25 norms of 2 * 768
    ("layerwise_decay", {}, 85_798_656),
    ("gradual_unfreezing", {}, 85_798_656),
    ("lp_ft", {}, 85_798_656),
    ("l2_sp", {}, 85_798_656),
    ("wise_ft", {}, 85_798_656),
    ("vpt_deep", {"num_prompts": 50}, 460_800),  # 12 blocks * 50 * 768
    ("vpt_deep", {"num_prompts": 10}, 92_160),
    ("adaptformer", {}, 1_189_632),  # 12 * (2 * 768 * 64 + 64 + 768)
    ("adaptformer", {"bottleneck": 8}, 156_768),
    ("pfeiffer", {}, 156_768),
    ("pfeiffer", {"bottleneck": 96}, 1_779_840),
    ("houlsby", {}, 313_536),
    ("houlsby", {"bottleneck": 64, "norms": True}, 2_417_664),  # 2,379,264 and 25 norms
    ("repadapter", {}, 239_808),
    ("repadapter", {"attention_only": True}, 119_904),
    ("mona", {}, 2_684_928),  # 24 * (2 * 768 * 64 + 64 + 768 + 4 * 768 + 64 * 83 + 192 + 64 * 65)
    ("lst", {}, 2_376_492),  # 12 blocks of 96, 13 * 73,824, 74,496, 192 and 12
    ("dtl", {}, 36_864),  # 12 * 2 * 768 * 2
    ("dtl", {"conv": True}, 43_776),
    ("convpass", {}, 327_552),
    ("convpass", {"attention_only": True}, 163_776),
    # prior 1,579,328; 4 injectors of 927,024; 6 extractors of 1,004,112; the rest 2,368,512
    ("vit_adapter", {}, 13_680_608),
    ("vit_adapter", {"train_backbone": True}, 99_479_264),  # and 85,798,656
    ("st_adapter", {}, 7_110_144),  # 12 * (2 * 768 * 384 + 384 + 768 + 384 * 3 + 384)
    ("st_adapter", {"before_attention": True}, 14_220_288),
    ("aim", {}, 10_659_072),  # 36 adapters of 295,872: 10,651,392; 8 frames 6,144, a norm 1,536
    ("aim", {"before_time": True, "frames": 32}, 14_227_968),  # 14,201,856, 24,576 and 1,536
    ("aim", {"frames": 1}, 7_102_464),  # 7,100,928 and the norm: the form for images
    ("consolidator", {}, 425_472),
    ("fpet", {}, 1_193_824),  # AdaptFormer's, and 2 * 64 * 32 + 32 + 64
    ("fpet", {"bottleneck": 8}, 160_960),
    ("vqt", {}, 930_816),  # 12 * 768, and a head of 12 * 768 more inputs for 100 classes
    ("vqt", {"num_queries": 2}, 1_861_632),
    ("lora", {}, 294_912),  # 12 * 2 * 2 * 768 * 8: V-PETL Bench prints 0.29 M
    ("lora", {"rank": 4}, 147_456),
    ("lora", {"rank": 8, "targets": "qkv"}, 442_368),
    (
        "lora",
        {"targets": "", "layers": ("qkv", "proj")},
        442_368,
    ),  # 12 * 8 * (768 + 2304 + 2 * 768)
    ("lora", {"layers": ("proj", "fc1", "fc2")}, 884_736),  # 12 * 8 * (2 * 768 + 2 * (768 + 3072))
    ("dylora", {}, 294_912),  # as LoRA of the largest rank
    ("dora", {}, 313_344),  # as LoRA, and 12 * 2 * 768 lengths
    ("vera", {}, 24_576),  # 12 * 2 * (768 + 256)
    ("mosa", {}, 197_376),  # one convolution, k = 16: k^2 (3 + 768)
    ("fact_tt", {}, 61_440),  # 2 * 768 * 16 and 144 cores of 16 * 16
    ("fact_tt", {"rank": 4}, 8_448),
    ("fact_tk", {}, 86_528),  # 2 * 768 * 32, 32^3 and 144 vectors of 32
    ("fact_tk", {"rank": 16}, 30_976),
    ("aurora", {}, 107_584),  # 2 * 768 * 64, 64 and 144 vectors of 64
    ("krona", {}, 38_400),  # 12 * 2 * (24 * 24 + 32 * 32)
    ("krona", {"place": "block"}, 19_200),
    ("krona", {"place": "residual"}, 19_212),
    ("kadaptation", {}, 50_176),  # shared 2 * 2 * 32 * 32; a layer 2 * 2 * 768 and a bias of 768
    ("phm_adapter", {}, 175_680),  # 24 * (2 * (12^3 + 12 * 64 * 2) + 24 + 768)
    ("compacter", {}, 57_088),  # 4^3 and 24 * (2 * (768 + 24) + 24 + 768)
    ("compacter", {"after_mlp_only": True}, 28_576),
    ("bitfit", {}, 102_912),  # V-PETL Bench: 0.10 M
    ("bitfit", {"subset": ("query", "fc1")}, 46_080),  # 12 * (768 + 3072)
    ("dp_bitfit", {}, 102_912),
    ("adapterbias", {}, 46_092),  # 12 * (768 + 3072 + 1)
    ("adapterbias", {"norms": True}, 64_524),  # and 12 norms of 2 * 768
    ("side_tuning", {}, 14_919_937),  # 2 blocks of 7,087,872, embeddings 742,656, norm 1,536, a
    (
        "side_tuning",
        {"side": "alexnet"},
        9_547_585,
    ),  # VPT's: AlexNet's features 2,469,696, 9216 * 768, a
    ("dldr", {}, 40),
    ("gps", {}, 167_424),  # rows 12 * (2304 + 768 + 3072 + 768) + 768, and as many biases
    ("gps", {"k": 2}, 251_136),
    ("spt", {}, 425_272),  # 0.5% of 12 blocks of 7,087,872
    ("ssf", {}, 205_824),  # V-PETL Bench: 0.21 M
    ("net2wider", {}, 142_458_624),  # and 12 * (2 * 3072 * 768 + 3072)
    ("net2deeper", {}, 128_325_888),  # and 6 blocks of 7,087,872
    ("block_expansion", {}, 21_263_616),  # 3 of them
    ("kd", {}, 43_271_424),  # 6 blocks of 7,087,872, embeddings 742,656, norm 1,536
]
# The same on ResNet-50, for what changes 3x3 convolutions.
PUBLISHED_RESNET50: list[tuple[str, dict[str, Any], int]] = [
    ("residual_adapter_series", {}, 1_318_144),  # 1,257,472, norms 53,120 and 2 * 3,776
    ("residual_adapter_parallel", {}, 1_310_592),
    ("conv_adapter", {}, 199_192),
    ("conv_adapter", {"reduction": 4}, 356_848),
]
# The same on CLIP's ViT-B/16, for what tunes two towers; of 100 classes.
PUBLISHED_CLIP: list[tuple[str, dict[str, Any], int]] = [
    ("clip_adapter", {}, 131_072),
    ("tip_adapter", {}, 819_200),  # 512 * 16 * 100
    ("tip_adapter", {"tune_keys": False}, 0),
]


@pytest.fixture(params=list(vt.METHODS), ids=lambda key: key.rsplit("/", 1)[-1])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def vit_b16() -> Any:
    return vt.create_backbone("vit_base_patch16_224", device="meta")


@pytest.mark.parametrize(
    ("method", "settings", "count"),
    PUBLISHED,
    ids=lambda value: str(value) if not isinstance(value, dict) else "",
)
def test_published_parameter_count(
    method: str, settings: dict[str, Any], count: int, vit_b16: Any
) -> None:
    model = vt.tune(vit_b16, method, num_classes=100, **settings)
    assert vt.count_parameters(model)[0] - (768 * 100 + 100) == count


@pytest.mark.parametrize(("method", "settings", "count"), PUBLISHED_RESNET50)
def test_published_parameter_count_on_resnet50(
    method: str, settings: dict[str, Any], count: int
) -> None:
    resnet50 = vt.create_backbone("resnet50", device="meta")
    model = vt.tune(resnet50, method, num_classes=10, **settings)
    assert vt.count_parameters(model)[0] - (2048 * 10 + 10) == count


@pytest.mark.parametrize(("method", "settings", "count"), PUBLISHED_CLIP)
def test_published_parameter_count_on_clip(
    method: str, settings: dict[str, Any], count: int
) -> None:
    words = WordTokenizer.of(["a photo of a"])
    text = TextTransformer(len(words.vocabulary), 16, 64, depth=1, num_heads=1)
    clip = CLIP(vt.create_backbone("vit_base_patch16_224", depth=1), text, 512, words)
    assert vt.count_parameters(vt.tune(clip, method, 100, **settings))[0] == count


def test_every_method_has_a_published_count(name: str) -> None:
    counted = {method for method, _, _ in (*PUBLISHED, *PUBLISHED_RESNET50, *PUBLISHED_CLIP)}
    assert name.rsplit("/", 1)[-1] in counted


def test_no_setting_hides_what_every_method_has(name: str) -> None:
    fields = {field.name for field in dataclasses.fields(vt.METHODS[name])}
    assert not {field for field in fields if hasattr(vt.Method, field)}


def test_starts_as_the_backbone_or_says_why(name: str) -> None:
    checks.starts_as_the_backbone_or_says_why(name)


def test_leaves_the_backbone_alone(name: str) -> None:
    checks.leaves_the_backbone_alone(name)


def test_trains_only_what_it_declares(name: str) -> None:
    checks.trains_only_what_it_declares(name)


def test_gradients_reach_everything_within_two_steps(name: str) -> None:
    checks.gradients_reach_everything_within_two_steps(name)


def test_loss_falls_on_a_fixed_batch(name: str) -> None:
    checks.loss_falls_on_a_fixed_batch(name)


def test_merged_equals_unmerged(name: str) -> None:
    checks.merged_equals_unmerged(name)


def test_delta_round_trip(name: str, tmp_path: Path) -> None:
    checks.delta_round_trip(name, tmp_path)


def test_works_on_timm_as_on_ours(name: str) -> None:
    checks.works_on_timm_as_on_ours(name)


def test_same_seed_same_model(name: str) -> None:
    checks.same_seed_same_model(name)


def test_works_with_mean_pooling_and_layer_scale(name: str) -> None:
    checks.works_with_mean_pooling_and_layer_scale(name)


def test_runs_compiled(name: str) -> None:
    checks.runs_compiled(name)


def test_runs_in_bfloat16(name: str) -> None:
    checks.runs_in_bfloat16(name)


def test_runs_as_a_pure_function(name: str) -> None:
    checks.runs_as_a_pure_function(name)


def test_frozen_modules_stay_in_eval_mode(name: str) -> None:
    checks.frozen_modules_stay_in_eval_mode(name)
