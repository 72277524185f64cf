"""Adapters for several questions about one image, against the most naive reading of their
formulas."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import vtlite as vt
from tests.conftest import make_tiny, make_tiny_clip
from tests.methods.checks import batch
from tests.methods.test_other_backbones import BACKBONES
from vtlite.methods.adapter.bottleneck import Bottleneck
from vtlite.methods.adapter.parallel.vl_adapter import AfterEach
from vtlite.methods.adapter.questions import Question
from vtlite.methods.adapter.sequential.polyhistor import GeneratedAdapter, HyperNetwork
from vtlite.task import Classification, MultiLabel, Segmentation, Several

PARTS: dict[str, Any] = {
    "what": Classification("what", ("0", "1", "2")),
    "where": Classification("where", ("photo", "emoji")),
}
SEVERAL = Several("two", parts=PARTS)
SETTINGS: dict[str, dict[str, Any]] = {
    "polyhistor": {"reduction": 4},
    "vl_adapter": {"shared": "none"},
}


def network(name: str) -> Any:
    return make_tiny_clip() if name == "vl_adapter" else make_tiny()


def moved(name: str, task: Any = SEVERAL, **settings: Any) -> Any:
    """A tuned model in float64 whose every trainable value is away from its start."""
    settings = {**SETTINGS[name], **settings}
    model = vt.tune(network(name), name, task, **settings).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.2 * torch.randn_like(p)
    return model


class Pictures(Dataset[Any]):
    """Images with an answer to each question."""

    def __init__(self, count: int = 6) -> None:
        self.images, labels = batch(count)
        self.targets = {"what": labels, "where": labels % 2}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.images[i], {name: labels[i] for name, labels in self.targets.items()}


def linear(layer: Any, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def generated(module: Any, z: Tensor, task: int) -> Tensor:
    """Polyhistor's adapter on z [.., D], every matrix written out by torch.kron."""
    own, total = module.network, {}
    for i in range(len(module.layer)):
        code = torch.cat([own.tasks[task], module.layer[i]])
        code = linear(own.code[2], F.relu(linear(own.code[0], code)))
        code = (code - code.mean()) / (code.var(unbiased=False) + 1e-6).sqrt()
        code = code * own.code[3].weight + own.code[3].bias
        rank, narrow, width = own.rank, own.narrow, own.up_bias.out_features
        P, Q = linear(own.down, code).split([rank * narrow, rank * width])
        D = P.view(narrow, rank) @ Q.view(rank, width)
        P, Q = linear(own.up, code).split([rank * width, rank * narrow])
        U = P.view(width, rank) @ Q.view(rank, narrow)
        K, b, n = module.kernel[i], module.bias_kernel[i], module.norm_kernel[i]
        for name, part in (
            ("D", torch.kron(K, D)),
            ("U", torch.kron(K, U)),
            ("d", torch.kron(b, linear(own.down_bias, code))),
            ("u", torch.kron(b, linear(own.up_bias, code))),
            ("g", torch.kron(n, linear(own.gain, code))),
            ("h", torch.kron(n, linear(own.shift, code))),
        ):
            total[name] = total.get(name, 0) + part
    hidden = z @ total["D"].T + total["d"]
    y = (hidden * torch.sigmoid(hidden)) @ total["U"].T + total["u"]
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return z + y * total["g"] + total["h"]


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(("rank", "task"), [(1, 0), (2, 1)])
def test_polyhistor_generates_kronecker_sums(k: int, rank: int, task: int) -> None:
    """The wrong answers that this alone catches: templates before kernels in the product, one
    factor's rows taken for columns, a bias without its kernel, the other question's embedding."""
    question = Question()
    own = HyperNetwork(3, 6, 2, rank, question)
    module = GeneratedAdapter(nn.Linear(5, 6 * k), k, own).double()
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    question.number = task
    found, expected = module(x), generated(module, linear(module.base, x), task)
    torch.testing.assert_close(found, expected)
    towards, inputs = torch.randn_like(found), (x, *module.parameters())
    for ours, naive in zip(
        torch.autograd.grad(found, inputs, towards),
        torch.autograd.grad(expected, inputs, towards),
        strict=True,
    ):
        torch.testing.assert_close(ours, naive)


@pytest.mark.parametrize("number", [0, 1])
def test_polyhistor_stands_after_every_mlp_and_differs_from_question_to_question(
    number: int,
) -> None:
    model, plain, images = moved("polyhistor"), make_tiny().double(), batch()[0].double()
    x = torch.cat([plain.cls_token.expand(5, -1, -1), plain.patch_embed(images)], 1)
    x = x + plain.pos_embed
    for block, tuned in zip(plain.blocks, model.backbone.blocks, strict=True):
        x = x + block.attn(block.norm1(x))
        x = x + generated(tuned.mlp.fc2, block.mlp(block.norm2(x)), number)
    name = [*PARTS][number]
    expected = linear(model.head.heads[name], plain.norm(x)[:, 0])
    torch.testing.assert_close(model(images)[name], expected)


def test_polyhistor_enlarges_its_templates_where_a_swin_is_wider() -> None:
    model: Any = vt.tune(BACKBONES["swin"](), "polyhistor", SEVERAL, reduction=4)
    found = [m for m in model.backbone.modules() if isinstance(m, GeneratedAdapter)]
    assert [len(m.layer) for m in found] == [1, 1, 2, 2]
    assert len({id(m.network) for m in found}) == 1  # one for all
    images, _ = batch()
    loss = sum(answer.square().sum() for answer in model(images).values())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_polyhistor_on_the_papers_network_with_four_questions() -> None:
    """65 * (2 * 102 + 102) + 65 * 192 for the layers that generate, 139,584 for the code, 512 for
    each of 46 templates and 4 questions, and kernels of 2 * 16 + 6 * 96 + 2 * 640."""
    swin = vt.create_backbone("swin_tiny_patch4_window7_224", device="meta")
    parts: Any = {str(i): Classification(str(i), ("a", "b")) for i in range(4)}
    model = vt.tune(swin, "polyhistor", Several("four", parts=parts))
    assert vt.count_parameters(model)[0] - 4 * (768 * 2 + 2) == 199_442


def test_a_question_about_places_reads_maps() -> None:
    parts: Any = {"what": PARTS["what"], "mask": Segmentation("mask", ("no", "yes"), upsample=2)}
    model = vt.tune(make_tiny(), "polyhistor", Several("both", parts=parts), reduction=4)
    answers = model(batch()[0])
    assert answers["what"].shape == (5, 3)
    assert answers["mask"].shape == (5, 2, 8, 8)


def text_by_hand(clip: Any, model: Any, classes: tuple[str, ...], number: int) -> Tensor:
    tower, head = clip.text, model.head.heads[[*PARTS][number]]
    out = []
    for name in classes:
        tokens = clip.tokenize([f"a photo of a {name}"])
        x = clip.embed(tokens) + tower.positional_embedding
        for block, tuned in zip(tower.blocks, head.tower.blocks, strict=True):
            x = adapted_block(block, tuned, x, number)
        end = int(tokens.argmax())
        out.append((head.tower.ln_final(x)[0, end]) @ clip.text_projection)
    return torch.stack(out)


def adapted_block(block: Any, tuned: Any, x: Tensor, number: int) -> Tensor:
    """A frozen block whose norms train, with bottlenecks after attention and MLP."""

    def after(z: Tensor, module: Any) -> Tensor:
        a = module.adapters[number]
        return z + linear(a.up, F.gelu(linear(a.down, z)))

    x = x + after(block.attn(tuned.norm1(x)), tuned.attn.proj)
    return x + after(block.mlp(tuned.norm2(x)), tuned.mlp.fc2)


@pytest.mark.parametrize("number", [0, 1])
def test_vl_adapter_adapts_both_towers_by_hand(number: int) -> None:
    """The wrong answers that this alone catches: texts read once at the start, adapters in one
    tower, the other question's, features normalised before the projection."""
    model, clip, images = moved("vl_adapter"), make_tiny_clip().double(), batch()[0].double()
    name = [*PARTS][number]
    texts = text_by_hand(clip, model, PARTS[name].classes, number)
    plain, own = clip.visual, model.backbone.visual
    x = torch.cat([plain.cls_token.expand(5, -1, -1), plain.patch_embed(images)], 1)
    x = x + plain.pos_embed
    for block, tuned in zip(plain.blocks, own.blocks, strict=True):
        x = adapted_block(block, tuned, x, number)
    f = own.norm(x)[:, 0] @ model.backbone.projection
    cosines = [[F.cosine_similarity(a, b, 0) for b in texts] for a in f]
    expected = clip.logit_scale.exp() * torch.stack([torch.stack(row) for row in cosines])
    found = model(images)[name]
    torch.testing.assert_close(found, expected)
    towards, learnt = torch.randn_like(found), [p for p in model.parameters() if p.requires_grad]
    for ours, naive in zip(
        torch.autograd.grad(found, learnt, towards, allow_unused=True),
        torch.autograd.grad(expected, learnt, towards, allow_unused=True),
        strict=True,
    ):
        assert (ours is None) == (naive is None)
        assert ours is None or torch.allclose(ours, naive, atol=1e-8)


@pytest.mark.parametrize(("shared", "count"), [("all", 1), ("down", 1.5), ("up", 1.5), ("none", 2)])
def test_what_the_bottlenecks_of_two_questions_share(shared: Any, count: float) -> None:
    module = AfterEach(nn.Linear(24, 24), 3, 2, shared, Question())
    first, second = module.adapters
    assert isinstance(first, Bottleneck)
    assert isinstance(second, Bottleneck)
    assert (first.down is second.down) == (shared in ("all", "down"))
    assert (first.up is second.up) == (shared in ("all", "up"))
    sizes = {"down": 24 * 3 + 3, "up": 24 * 3 + 24}
    whole = sum(sizes.values())
    expected = {1: whole, 2: 2 * whole, 1.5: 2 * whole - sizes.get(shared, 0)}[count]
    assert sum(p.numel() for p in module.adapters.parameters()) == expected


def test_vl_adapter_on_the_towers_of_clips_vit_b16() -> None:
    """All 12 blocks of each tower: 24 * 148,320 and 24 * 66,112."""
    module = AfterEach(nn.Linear(768, 768, device="meta"), 96, 1, "all", Question())
    assert 24 * sum(p.numel() for p in module.adapters.parameters()) == 3_559_680
    module = AfterEach(nn.Linear(512, 512, device="meta"), 64, 1, "all", Question())
    assert 24 * sum(p.numel() for p in module.adapters.parameters()) == 1_586_688


@pytest.mark.parametrize("name", SETTINGS)
def test_several_questions_train_and_come_back_from_a_delta(name: str, tmp_path: Path) -> None:
    data, images = Pictures(), batch(6)[0]
    model: Any = vt.tune(network(name), name, SEVERAL, **SETTINGS[name])
    history = vt.fit(model, data, epochs=8, batch_size=6, lr=3e-3, progress=False)
    assert history[-1]["loss"] < history[0]["loss"]
    vt.save_delta(model, tmp_path / "d.safetensors")
    again = vt.load_delta(network(name), tmp_path / "d.safetensors")
    for key, answer in model(images).items():
        assert torch.equal(again(images)[key], answer)
    assert math.isfinite(vt.evaluate(model, data)["accuracy"])


@pytest.mark.parametrize("name", SETTINGS)
def test_no_question_disturbs_another_and_an_error_leaves_the_first_one_under_way(
    name: str,
) -> None:
    model, images = moved(name), batch()[0].double()
    before = model(images)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith("tasks"):
                p[1] += 1
            if "adapters.1." in key:
                p += 1
    after = model(images)
    assert torch.equal(after["what"], before["what"])
    assert not torch.allclose(after["where"], before["where"])
    with pytest.raises(vt.VTError, match="expected float images"):
        model(images[..., :16])
    assert model.network.question.number == 0


@pytest.mark.parametrize("name", SETTINGS)
def test_several_questions_compile(name: str) -> None:
    model, images = moved(name), batch()[0].double()
    torch._dynamo.reset()
    found = torch.compile(model, backend="aot_eager")(images)
    for key, answer in model(images).items():
        torch.testing.assert_close(found[key], answer)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("polyhistor", {"reduction": 0}, "expected reduction an integer of at least 1, found 0"),
        ("polyhistor", {"reduction": 5}, "expected reduction that divides 24, .* found 5"),
        ("polyhistor", {"reduction": 48}, "expected reduction that divides 24, .* found 48"),
        ("polyhistor", {"rank": 0}, "expected rank an integer of at least 1, found 0"),
        ("polyhistor", {"rank": 7}, "expected rank of at most 6, .* found 7"),
        ("vl_adapter", {"reduction": 0}, "expected reduction an integer of at least 1, found 0"),
        ("vl_adapter", {"reduction": 7}, "expected reduction that divides 24, .* found 7"),
        ("vl_adapter", {"shared": "half"}, 'expected shared "all", "down", "up" or "none"'),
        ("vl_adapter", {"template": "a photo"}, "expected a template with a place for the name"),
    ],
)
def test_settings_out_of_range_are_a_sentence(
    name: str, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(vt.VTError, match=sentence):
        vt.tune(network(name), name, SEVERAL, **{**SETTINGS[name], **settings})


def test_a_question_without_names_is_a_sentence_and_names_that_read_alike_a_warning() -> None:
    parts: Any = {"what": PARTS["what"], "tags": MultiLabel("tags", ("0", "1"))}
    with pytest.raises(vt.VTError, match=r"vl_adapter: expected a classification.*MultiLabel"):
        vt.tune(make_tiny_clip(), "vl_adapter", Several("both", parts=parts))
    with pytest.warns(UserWarning, match="reads 'dog' as it reads 'cat', and no training"):
        vt.tune(make_tiny_clip(), "vl_adapter", Classification("pets", ("cat", "dog")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vt.tune(make_tiny_clip(), "vl_adapter", Classification("three", ("0", "1", "2")))


def test_polyhistor_asks_for_widths_that_its_templates_fill() -> None:
    backbone = BACKBONES["swin"]()
    for block in backbone.layers[1].blocks:
        block.mlp.fc2 = nn.Linear(96, 25)
    with pytest.raises(
        vt.VTError, match=r"multiples of the first.*SwinTransformer with \[12, 25\]"
    ):
        vt.tune(backbone, "polyhistor", 3, reduction=4)
