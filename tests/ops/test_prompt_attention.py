"""Prompt attention beside attention over concatenated keys: the same numbers, less to keep; the
rest is in test_contract.py."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import vtlite as vt
from tests.conftest import make_tiny
from tests.methods.checks import batch
from tests.ops.contract import close, run
from vtlite.accounting import activation_memory, flops
from vtlite.backbones.vit import Block
from vtlite.bench_ops import ConcatenatedPrompts, kept_bytes
from vtlite.methods.prompt.vision.vpt_deep import PromptedBlock
from vtlite.ops._launch import INTERPRET
from vtlite.ops.prompt_attention import (
    _prompt_attention,
    concatenated_attention,
    prompt_attention,
    prompt_attention_reference,
)
from vtlite.storage import VTError

B, H, N, P, D = 3, 2, 7, 4, 5


def inputs(
    images: int = B, prompts: int = P, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """As a layer makes them: q, k, v cut out of one projection of the tokens, pk and pv of one of
    the prompts."""
    g = torch.Generator().manual_seed(0)
    own, shared = (
        torch.randn(*shape, H, D, generator=g, dtype=dtype)
        for shape in ((images, N, 3), (prompts, 3))
    )
    return *own.permute(2, 0, 3, 1, 4), *shared.permute(1, 2, 0, 3)[1:]


def leaves(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.detach().requires_grad_() for t in tensors)


def test_by_hand() -> None:
    q, k, v, pk, pv = inputs()
    want = torch.zeros(B, H, N, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for i in range(N):
                keys, values = [*pk[h], *k[b, h]], [*pv[h], *v[b, h]]
                weights = [((q[b, h, i] * key).sum() / D**0.5).exp() for key in keys]
                want[b, h, i] = sum(
                    w * value for w, value in zip(weights, values, strict=True)
                ) / sum(weights)
    close([prompt_attention(q, k, v, pk, pv)], [want], 1e-12)


@pytest.mark.parametrize("prompts", [0, 1, P, 3 * N])
def test_equals_concatenation(prompts: int) -> None:
    close(
        run(prompt_attention, leaves(inputs(prompts=prompts))),
        run(concatenated_attention, leaves(inputs(prompts=prompts))),
        1e-12,
    )


def test_order_does_not_matter() -> None:
    """No position enters: prompts are a set."""
    q, k, v, pk, pv = inputs()
    close(
        [prompt_attention(q, k, v, pk.flip(1), pv.flip(1))],
        [prompt_attention(q, k, v, pk, pv)],
        1e-12,
    )


def test_prompts_gradient_is_the_sum_over_images() -> None:
    *own, pk, pv = inputs()
    together = run(prompt_attention, leaves((*own, pk, pv)))[-2:]
    seed = torch.randn(B, H, N, D, generator=torch.Generator().manual_seed(1)).bfloat16().double()
    alone = [torch.zeros_like(pk), torch.zeros_like(pv)]
    for b in range(B):
        one = leaves((*(t[b : b + 1] for t in own), pk, pv))
        grads = torch.autograd.grad(prompt_attention(*one), one[3:], seed[b : b + 1])
        alone = [total + part for total, part in zip(alone, grads, strict=True)]
    close(together, alone, 1e-12)


@pytest.mark.parametrize("factor", [1e2, 1e4])
def test_scores_far_apart(factor: float) -> None:
    """Where one lot of keys has all the weight, the other's exponentials would overflow or vanish
    alone."""
    for ours, theirs in ((factor, 1.0), (1.0, factor)):
        q, k, v, pk, pv = inputs()
        scaled = leaves((q, ours * k, v, theirs * pk, pv))
        got, want = run(prompt_attention, scaled), run(prompt_attention_reference, scaled)
        assert all(t.isfinite().all() for t in got)
        close(got, want, 1e-9)


def test_keeps_nothing_per_image_of_the_prompts() -> None:
    """Beyond its inputs: the output, and one number for each query. Concatenated: keys and values
    of P + N tokens as well."""
    x = leaves(inputs())
    output, number = B * H * N * D * 8, B * H * N * 8
    assert kept_bytes(lambda: _prompt_attention(*x)[0], x) == output + number
    assert kept_bytes(lambda: concatenated_attention(*x), x) >= output + 2 * B * H * (P + N) * D * 8


@pytest.mark.skipif(INTERPRET, reason="the kernel's inputs are parts of the projection's output")
def test_without_a_kernel_the_projections_output_is_not_kept_whole() -> None:
    """Keys and values are kept once, beside the prompts', and not a second time as parts of what q
    is a part of."""
    tokens, (*_, pk, pv) = (
        torch.randn(B, N, 3, H, D, requires_grad=True),
        leaves(inputs(dtype=torch.float32)),
    )

    def kept(attention: Callable[..., Tensor]) -> int:
        return kept_bytes(
            lambda: attention(*(2 * tokens).permute(2, 0, 3, 1, 4), pk, pv), (tokens, pk, pv)
        )

    assert kept(prompt_attention) == kept(concatenated_attention) - 2 * B * H * N * D * 4


def test_refuses_what_does_not_fit() -> None:
    q, k, v, pk, pv = inputs()
    with pytest.raises(
        VTError, match=r"one shape \[H, P, D\], found .*\[3, 2, 7, 5\], \[2, 4, 5\], \[2, 3, 5\]"
    ):
        prompt_attention(q, k, v, pk, pv[:, 1:])
    with pytest.raises(VTError, match=r"expected q, k, v of one shape \[B, H, N, D\]"):
        prompt_attention(q, k[:, :, 1:], v[:, :, 1:], pk, pv)
    with pytest.raises(VTError, match="expected q, k, v of one shape"):  # prompts of each image
        prompt_attention(q, k, v, pk.expand(B, -1, -1, -1), pv.expand(B, -1, -1, -1))


# In VPT-deep
# -------------------------------------------------------------------------------------------------
def prompted(backbone: nn.Module) -> tuple[vt.Tuned, vt.Tuned]:
    """With shared prompts, and as one usually writes it."""
    ours = vt.tune(backbone, "vpt_deep", num_classes=3, num_prompts=6).train()
    usual = copy.deepcopy(ours)
    for i, block in enumerate(usual.backbone.blocks):
        usual.backbone.blocks[i] = ConcatenatedPrompts(block.block, block.prompts, block.prefix)
    return ours, usual


def assert_same(ours: vt.Tuned, usual: vt.Tuned) -> None:
    images, labels = batch()
    for model in (ours, usual):
        model.double().method.backward(model, images.double(), labels)
    close([ours(images.double())], [usual(images.double())], 1e-10)
    theirs = dict(usual.named_parameters())
    trained = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert len(trained) == len(ours.backbone.blocks) + 2
    close(trained.values(), [theirs[name].grad for name in trained], 1e-10)


@pytest.mark.parametrize(
    "settings",
    [{}, {"distilled": True}, {"global_pool": "avg", "init_values": 0.5}, {"qkv_bias": False}],
    ids=str,
)
def test_vpt_deep_is_the_same_function(settings: dict[str, object]) -> None:
    assert_same(*prompted(make_tiny(**settings)))


@pytest.mark.parametrize(
    ("settings", "shared"),
    [
        ({}, True),
        ({"init_values": 0.5, "drop_path_rate": 0.5, "attn_drop_rate": 0.5}, True),
        ({"qk_norm": True}, False),
    ],
    ids=str,
)
def test_vpt_deep_is_the_same_function_on_timm(settings: dict[str, object], shared: bool) -> None:
    timm_vit = pytest.importorskip("timm").models.vision_transformer.VisionTransformer
    ours, usual = prompted(
        timm_vit(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, **settings)
    )
    assert [block.known for block in ours.backbone.blocks] == [shared, shared]
    assert_same(ours, usual)


def test_foreign_blocks_see_their_prompts_as_tokens() -> None:
    class Post(Block):
        """Normed after, not before: the same names, another function."""

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.norm1(self.attn(x))
            return x + self.norm2(self.mlp(x))

    backbone = make_tiny()
    for i in range(len(backbone.blocks)):
        backbone.blocks[i] = Post(24, 3)
    assert_same(*prompted(backbone))


def test_a_block_that_trains_keeps_its_dropout() -> None:
    timm = pytest.importorskip("timm").models.vision_transformer
    block = PromptedBlock(timm.Block(24, 3, attn_drop=0.9), torch.zeros(2, 24), 1, 0.0)
    x = torch.randn(1, 5, 24)
    assert not torch.equal(block.train()(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


def test_vpt_deep_keeps_and_computes_less() -> None:
    images, labels = batch()
    ours, usual = prompted(make_tiny())
    assert activation_memory(ours, images, labels) < 0.85 * activation_memory(usual, images, labels)
    assert flops(ours, images) < 0.85 * flops(usual, images)
