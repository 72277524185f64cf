"""Wrong values at every public function: a right result or one sentence (`VTError`), never another
exception, and nothing changed that should not be."""

from __future__ import annotations

import copy
import inspect
import json
import math
import os
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import vtlite as vt
from tests.conftest import make_tiny

SOME = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

BACKBONE = make_tiny()
IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3
DATA = TensorDataset(IMAGES, LABELS)
MODEL = vt.tune(BACKBONE, "lora", 3, rank=2)

JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    1.5,
    2**70,
    -(2**70),
    math.nan,
    math.inf,
    "",
    "x",
    "a\0b",
    "\udcff",
    "é" * 300,
    "lora",
    "digits",
    b"x",
    (),
    [],
    [1],
    {},
    {"image": 1},
    {1, 2},
    object(),
    len,
    int,
    Path("nowhere/x"),
    Path("."),
    np.float32(0.5),
    np.int64(3),
    np.zeros(3),
    np.zeros(0),
    torch.zeros(()),
    torch.zeros(2, 3, 32, 32),
    torch.zeros(0),
    torch.zeros(1, device="meta"),
    torch.zeros(3, dtype=torch.complex64),
    nn.Linear(3, 3),
    nn.Identity(),
    BACKBONE,
    MODEL,
    DATA,
    DataLoader(DATA, 2),
    vt.Task(),
    vt.load_task("digits"),
    vt.Method(),
    vt.find_method("full"),
    range(3),
    (i for i in ()),
]
junk = st.integers(0, len(JUNK) - 1)  # by number, for a short report


def calls(folder: Path) -> dict[str, dict[str, Any]]:
    """Each public function, with arguments that are right."""
    vt.save_delta(MODEL, delta := folder / "right-delta")
    vt.save_backbone(BACKBONE, whole := folder / "right-backbone", num_heads=3)
    return {
        "count_parameters": {"model": MODEL},
        "create_backbone": {"name": "vtlite-tiny", "device": "cpu", "depth": 1, "embed_dim": 24},
        "evaluate": {"model": MODEL, "data": DATA, "batch_size": 4, "task": MODEL.task},
        "extract_features": {"model": MODEL, "data": DATA, "batch_size": 4},
        "find_method": {"name": "lora"},
        "fit": {
            "model": MODEL,
            "train": DATA,
            "val": DATA,
            "epochs": 1,
            "lr": 1e-3,
            "seed": 0,
            "batch_size": 4,
            "weight_decay": 0.0,
            "warmup": 0.1,
            "augment": None,
            "checkpoint": None,
            "progress": False,
        },
        "load_backbone": {
            "name_or_path": whole,
            "num_heads": 3,
            "quick_gelu": None,
            "img_size": 16,
        },
        "load_delta": {"model": BACKBONE, "path": delta},
        "load_task": {"name": "digits", "image_size": 16, "root": folder, "like": BACKBONE},
        "merge": {"model": MODEL},
        "save_backbone": {"backbone": BACKBONE, "path": folder / "b", "half": False, "note": "x"},
        "save_delta": {"model": MODEL, "path": folder / "d"},
        "tune": {
            "backbone": BACKBONE,
            "method": "lora",
            "task": 3,
            "seed": 0,
            "num_classes": 3,
            "rank": 2,
            "alpha": 8.0,
            "targets": "qv",
            "layers": ("qkv",),
        },
    }


def state_of(model: nn.Module) -> list[Any]:
    """Everything that a call could leave changed in a model."""
    flags = [p.requires_grad for p in model.parameters()]
    grads = [p.grad for p in model.parameters()]
    values = [value.clone() for value in model.state_dict().values()]
    return [[m.training for m in model.modules()], flags, grads, *values]


def world() -> list[Any]:
    """What a call could leave changed outside the models."""
    return [
        torch.get_rng_state(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_num_threads(),
        random.getstate(),
        repr(np.random.get_state()),
        os.getcwd(),
        list(warnings.filters),
    ]


def same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for a, b in zip(before, after, strict=True)
    )


def right_or_one_sentence(call: Callable[[], Any]) -> Any:
    """The result, or None after a `VTError` of one sentence; the world and `MODEL` stay the same."""
    before = [state_of(BACKBONE), state_of(MODEL), world()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result, sentence = None, ""
        try:
            result = call()
        except vt.VTError as error:
            sentence = str(error)
    assert "\n" not in sentence
    assert len(sentence) < 1500
    after = [state_of(BACKBONE), state_of(MODEL), world()]
    assert all(same(a, b) for a, b in zip(before, after, strict=True))
    return result


FUNCTIONS = [name for name in vt.__all__ if inspect.isfunction(getattr(vt, name))]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_wrong_values_at_every_function(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    right = calls(tmp_path)[function]
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    @SOME
    @given(st.sampled_from(sorted(right)), junk)
    def wrong(name: str, number: int) -> None:
        arguments = {**right, name: JUNK[number]}
        if function == "fit" and arguments["model"] is MODEL:
            arguments["model"] = copy.deepcopy(MODEL)  # a training that works changes its model
        if function == "load_delta" and arguments["model"] is MODEL:
            arguments["model"] = copy.deepcopy(MODEL)
        before = {n: state_of(v) for n, v in arguments.items() if isinstance(v, nn.Module)}

        def call() -> Any:
            if function != "create_backbone":
                return vt.__dict__[function](**arguments)
            with torch.random.fork_rng(devices=[]):  # its values are drawn from torch's generator
                return vt.create_backbone(**arguments)

        result = right_or_one_sentence(call)
        if result is None and function not in ("save_delta", "save_backbone"):
            for n, state in before.items():
                assert same(state, state_of(arguments[n]))

    wrong()
    assert all((tmp_path / name).read_bytes() == content for name, content in kept.items())
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]  # no half-written file


@SOME
@given(st.text(min_size=1, max_size=12).filter(str.isidentifier), st.sampled_from(vt.__all__))
def test_unknown_names_of_arguments(name: str, function: str) -> None:
    call = getattr(vt, function)
    if inspect.isfunction(call) and hasattr(call, "__wrapped__"):
        with pytest.raises(vt.VTError, match="unknown argument of"):
            call(**{f"{name}_": 1})


FIELDS = [
    (key, name)
    for key, method in vt.METHODS.items()
    for name in inspect.signature(method).parameters
    if key.count("/")
]


@settings(SOME, max_examples=200)
@given(st.sampled_from(FIELDS), junk)
def test_wrong_settings_of_every_method(field: tuple[str, str], number: int) -> None:
    key, name = field
    right_or_one_sentence(lambda: vt.find_method(key)(**{name: JUNK[number]}))


LABEL: list[Any] = [
    *(
        0,
        2,
        3,
        -1,
        2**70,
        1.0,
        math.nan,
        "cat",
        None,
        True,
        np.int32(1),
        np.uint8(2),
        np.bool_(True),
    ),
    *(torch.tensor(1), torch.tensor(1, dtype=torch.int32), torch.tensor([1]), torch.tensor(1.0)),
    *(np.array(2), np.array([2]), [1], [0, 1, 0], [], ["a"], {"a": 1}, object(), b"1"),
    *(torch.zeros(3), torch.zeros(2, 2), torch.tensor(1j), torch.zeros(1, device="meta")),
    Image.new("L", (4, 4)),
]
RIGHT = {repr(x) for x in (0, 2, True, np.int32(1), np.uint8(2), np.bool_(True))}
PICTURE: list[Any] = [
    IMAGES[0],
    IMAGES[1].double(),
    IMAGES[2].half(),
    IMAGES[0].numpy(),
    IMAGES[0] * math.nan,
    IMAGES[0].byte(),
    IMAGES[0] > 0,
    IMAGES[0].permute(1, 2, 0),
    IMAGES[0][:1],
    IMAGES[0][0],
    IMAGES[0][:, :16],
    IMAGES[0].to(torch.complex64),
    IMAGES[0].numpy().astype(object),
    torch.zeros(0),
    torch.zeros(()),
    Image.new("RGB", (32, 32)),
    "a.png",
    None,
    IMAGES[0].tolist(),
    IMAGES[0].to("meta"),
    IMAGES[0].to_sparse(),
]


@settings(SOME, max_examples=120)
@given(
    st.lists(
        st.tuples(st.integers(0, len(PICTURE) - 1), st.integers(0, len(LABEL) - 1)),
        min_size=0,
        max_size=3,
    ),
    st.booleans(),
    st.sampled_from(["fit", "evaluate", "extract_features"]),
)
def test_data_of_any_kind(items: list[tuple[int, int]], dicts: bool, function: str) -> None:
    pairs = [(PICTURE[i], LABEL[j]) for i, j in items]
    data = [{"image": image, "label": label} if dicts else (image, label) for image, label in pairs]
    model = copy.deepcopy(MODEL)
    before = state_of(model)
    more: dict[str, Any] = {"epochs": 1, "progress": False} if function == "fit" else {}
    result = right_or_one_sentence(lambda: getattr(vt, function)(model, data, **more))
    if result is None or function != "fit":
        assert same(before, state_of(model))
    if pairs and all(i < 4 and repr(LABEL[j]) in RIGHT for i, j in items):
        assert result is not None  # nothing right is refused


def test_a_byte_changed_anywhere_in_a_file_is_refused_or_harmless(tmp_path: Path) -> None:
    vt.save_delta(MODEL, delta := tmp_path / "d")
    vt.save_backbone(BACKBONE, whole := tmp_path / "b")
    raw = {delta: delta.read_bytes(), whole: whole.read_bytes()}
    header = {path: int.from_bytes(data[:8], "little") + 8 for path, data in raw.items()}
    right = {path: load_file(path) for path in raw}

    @settings(SOME, max_examples=150)
    @given(st.sampled_from(sorted(raw)), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
    def flip(path: Path, where: float, bits: int) -> None:
        # as often in the header as in the whole
        start, end = (8, header[path]) if bits % 2 else (0, len(raw[path]))
        at = start + int(where * (end - start))
        damaged = bytearray(raw[path])
        damaged[at] ^= bits
        (tmp_path / "x").write_bytes(damaged)
        load = vt.load_backbone if path == whole else lambda p, **_: vt.load_delta(BACKBONE, p)
        found = right_or_one_sentence(lambda: load(tmp_path / "x", num_heads=3))
        if found is not None:  # the damage was in a name of the metadata
            assert load_file(tmp_path / "x").keys() == right[path].keys()
            values = load_file(tmp_path / "x")
            assert all(torch.equal(values[key], right[path][key]) for key in values)
            assert at < header[path]

    flip()

    @SOME
    @given(st.sampled_from(sorted(raw)), st.floats(0, 1, exclude_max=True), st.binary(max_size=4))
    def cut(path: Path, where: float, tail: bytes) -> None:
        (tmp_path / "x").write_bytes(raw[path][: int(where * len(raw[path]))] + tail)
        assert right_or_one_sentence(lambda: vt.load_backbone(tmp_path / "x")) is None
        assert right_or_one_sentence(lambda: vt.load_delta(BACKBONE, tmp_path / "x")) is None

    cut()


NAMES = [
    *("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
    *("blocks.0.mlp.fc1.weight", "blocks.999999999.norm1.weight", "conv1.weight"),
    *("layer1.0.conv1.weight", "layers.0.blocks.0.attn.relative_position_bias_table"),
    *("text_projection", "visual.x", "text.token_embedding.weight", "dist_token", "head.weight"),
]
TENSORS = [
    *(torch.zeros(0), torch.zeros(()), torch.zeros(3), torch.zeros(0, 0), torch.zeros(4, 2)),
    *(torch.zeros(1, 1, 4), torch.zeros(1, 5, 4), torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 0, 0)),
    *(torch.ones(2, dtype=torch.int8), torch.full((4, 3, 8, 8), math.nan), torch.zeros(0, 3, 7, 7)),
]


@settings(SOME, max_examples=120)
@given(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TENSORS), max_size=8),
    st.dictionaries(
        st.sampled_from(["num_heads", "quick_gelu", "format", "method", "settings", "task"]),
        st.sampled_from(
            [
                *('"vtlite delta 2"', "3", "0", "-1", '"x"', "[]", "{}", "null", "[" * 2000),
                *('"lora"', '{"rank": "x"}', '{"kind": "Classification"}', "9" * 4500),
                '{"kind": "Classification", "classes": 3}',
            ]
        ),
        max_size=6,
    ),
)
def test_foreign_files(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        save_file({n: t.clone() for n, t in tensors.items()}, path, metadata=metadata)
        assert right_or_one_sentence(lambda: vt.load_backbone(path)) is None
        assert right_or_one_sentence(lambda: vt.load_delta(BACKBONE, path)) is None


def test_a_files_metadata_are_in_its_checksum(tmp_path: Path) -> None:
    """A delta whose settings were edited is no longer what was saved."""
    vt.save_delta(MODEL, tmp_path / "d")
    raw = (tmp_path / "d").read_bytes()
    changed = raw.replace(
        json.dumps('{"rank": 2').encode()[1:-1], json.dumps('{"rank": 1').encode()[1:-1]
    )
    assert changed != raw
    (tmp_path / "d").write_bytes(changed)
    with pytest.raises(vt.VTError, match="is damaged: it does not hold the values"):
        vt.load_delta(BACKBONE, tmp_path / "d")
