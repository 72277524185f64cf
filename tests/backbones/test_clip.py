"""The two-tower model: its parts agree, published weights load, and mistakes are one sentence."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import vtlite as vt
from vtlite.backbones import create_backbone, load_backbone, load_clip, save_backbone
from vtlite.backbones.clip import CLIP, TextTransformer
from vtlite.backbones.tokenizer import BPETokenizer, WordTokenizer, words_of
from vtlite.storage import VTError

TEXTS = ["an emoji of a red apple", "apple", "a cat"]


def small() -> CLIP:
    torch.manual_seed(0)
    tokenizer = WordTokenizer.of(TEXTS)
    text = TextTransformer(len(tokenizer.vocabulary), 16, 96, depth=2, num_heads=3)
    return CLIP(create_backbone("vtlite-tiny", depth=2), text, 96, tokenizer).eval()


def test_features_are_normalised_and_meet_in_the_logits() -> None:
    clip, images = small(), torch.randn(4, 3, 32, 32)
    tokens = clip.tokenize(TEXTS)
    image, text = clip.encode_image(images), clip.encode_text(tokens)
    assert image.shape == (4, 96)
    assert text.shape == (3, 96)
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(clip(images, tokens), image @ text.T / 0.07)


def test_a_text_does_not_see_what_follows_its_end() -> None:
    """So a text's features do not depend on its company, and the context may be cut."""
    clip = small()
    tokens = clip.tokenize(TEXTS)
    together = clip.encode_text(tokens)
    alone = torch.cat([clip.encode_text(row[None]) for row in tokens])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(clip.encode_text(tokens[:, :9]), together)


def test_every_block_of_the_text_tower_is_causal() -> None:
    clip = small()
    x = torch.randn(1, 6, 96)
    changed = x.clone()
    changed[:, 4] += 1
    y, z = clip.text.blocks(x), clip.text.blocks(changed)
    torch.testing.assert_close(y[:, :4], z[:, :4])
    assert not torch.allclose(y[:, 4:], z[:, 4:])


def test_a_prompt_of_vectors_goes_between_the_words() -> None:
    """As CoOp does it: context vectors in the places of the first words."""
    clip = small()
    tokens = clip.tokenize([f"x x {name}" for name in ("apple", "red cat")])
    embedded = clip.embed(tokens)
    assert embedded.shape == (2, 16, 96)
    torch.testing.assert_close(clip.encode_embedded(embedded, tokens), clip.encode_text(tokens))
    torch.testing.assert_close(
        clip.encode_embedded(embedded, tokens.argmax(-1)), clip.encode_text(tokens)
    )
    context = torch.zeros(2, 96, requires_grad=True)
    prompted = torch.cat([embedded[:, :1], context.expand(2, -1, -1), embedded[:, 3:]], dim=1)
    clip.encode_embedded(prompted, tokens)[:, 0].sum().backward()
    assert context.grad is not None
    assert context.grad.abs().sum() > 0


def test_a_prompt_that_is_too_long_is_one_sentence() -> None:
    clip = small()
    embedded = torch.zeros(1, 20, 96)
    with pytest.raises(VTError, match=r"at most 16 tokens.*found the end at position 18 of 20"):
        clip.encode_embedded(embedded, torch.tensor([17]))


def test_words_and_their_numbers(tmp_path: Path) -> None:
    assert words_of("A man’s  T-shirt: 2!") == [
        "a",
        "man",
        "'",
        "s",
        "t",
        "-",
        "shirt",
        ":",
        "2",
        "!",
    ]
    tokenizer = WordTokenizer.of(TEXTS, context=6)
    assert tokenizer.vocabulary[:3] == ("<pad>", "<unknown>", "<start>")
    assert tokenizer.vocabulary[-1] == "<end>"
    last = len(tokenizer.vocabulary) - 1
    number = tokenizer.vocabulary.index
    assert tokenizer(["Apple zebra", ""]).tolist() == [
        [2, number("apple"), 1, last, 0, 0],
        [2, last, 0, 0, 0, 0],
    ]
    tokenizer.save(tmp_path / "words.txt")
    assert WordTokenizer.load(tmp_path / "words.txt").vocabulary == tokenizer.vocabulary


def test_mistakes_with_texts_are_one_sentence(tmp_path: Path) -> None:
    tokenizer = WordTokenizer.of(TEXTS, context=6)
    with pytest.raises(VTError, match=r"at most 4 tokens in a text, found 6 in 'an emoji.*shorten"):
        tokenizer(TEXTS)
    assert tokenizer(TEXTS, truncate=True)[0].argmax() == 5
    with pytest.raises(VTError, match="expected a list of texts, found the text 'apple'"):
        tokenizer("apple")
    with pytest.raises(VTError, match="expected a vocabulary that begins with <pad>"):
        WordTokenizer(["apple", "cat"])
    with pytest.raises(VTError, match=r"expected the vocabulary .*found no file"):
        WordTokenizer.load(tmp_path / "none.txt")
    with pytest.raises(VTError, match="expected a file of byte pair merges, found no file"):
        BPETokenizer(tmp_path / "none.gz")
    (tmp_path / "few.gz").write_bytes(gzip.compress(b"version\na b\n"))
    with pytest.raises(VTError, match="expected 48,894 pairs"):
        BPETokenizer(tmp_path / "few.gz")


def test_a_saved_model_is_loaded_again_with_its_words(tmp_path: Path) -> None:
    clip, path = small(), tmp_path / "mine.safetensors"
    save_backbone(clip, path)
    clip.tokenizer.save(path.with_suffix(".txt"))  # type: ignore[union-attr]
    again = load_clip(path)
    images = torch.randn(2, 3, 32, 32)
    assert again.num_heads == 3
    torch.testing.assert_close(
        again(images, again.tokenize(TEXTS)), clip(images, clip.tokenize(TEXTS))
    )
    path.with_suffix(".txt").unlink()
    with pytest.raises(VTError, match="expected a tokenizer, found none"):
        load_clip(path).tokenize(TEXTS)


def test_a_file_without_a_text_tower_is_no_clip(tmp_path: Path) -> None:
    with pytest.raises(VTError, match="expected a model with a text tower, found a VisionTrans"):
        load_clip("vtlite-tiny")
    tensors = {k: v.contiguous() for k, v in small().state_dict().items()}
    del tensors["text.positional_embedding"]
    save_file(tensors, tmp_path / "part.safetensors", metadata={"num_heads": "3"})
    with pytest.raises(VTError, match=r"lacks text\.positional_embedding of 2 dimensions"):
        load_clip(tmp_path / "part.safetensors")


def test_the_image_tower_is_a_plain_backbone() -> None:
    clip = small()
    tuned = vt.tune(clip.visual, "linear", num_classes=5)
    assert tuned(torch.randn(2, 3, 32, 32)).shape == (2, 5)


# Published weights: open_clip's models with random numbers stand for them.

SHAPES = [
    ("ViT-B-32", False),
    ("ViT-B-32-quickgelu", True),
    ("ViT-B-16", False),
    ("ViT-B-16-quickgelu", True),
]


@pytest.fixture(scope="module")
def open_clip() -> Any:
    return pytest.importorskip("open_clip")


@pytest.mark.parametrize(("name", "quick"), SHAPES)
def test_open_clips_weights_give_open_clips_features(
    open_clip: Any, tmp_path: Path, name: str, quick: bool
) -> None:
    torch.manual_seed(0)
    few = {"vision_cfg": {"layers": 2}, "text_cfg": {"layers": 2}}  # of 12, the widths are whole
    theirs = open_clip.create_model(name, pretrained=None, **_fewer(open_clip, name, few)).eval()
    for parameter in theirs.parameters():  # biases and norms of every kind are seen
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    path = tmp_path / "published.safetensors"
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, path)
    ours = load_clip(path, quick_gelu=quick)
    images, texts = torch.randn(2, 3, 224, 224), ["a photo of a cat", "two dogs"]
    tokens = open_clip.get_tokenizer(name)(texts)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.encode_image(images), theirs.encode_image(images, True), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            ours.encode_text(tokens), theirs.encode_text(tokens, True), atol=1e-5, rtol=0
        )
        other = load_backbone(path, quick_gelu=not quick).encode_image(images)
        assert not torch.allclose(other, ours.encode_image(images), atol=1e-4)
    assert torch.equal(ours.tokenize(texts), tokens)
    save_backbone(ours, tmp_path / "kept.safetensors")
    assert load_clip(tmp_path / "kept.safetensors").quick_gelu == quick


def _fewer(open_clip: Any, name: str, changes: dict[str, dict[str, int]]) -> dict[str, Any]:
    config = open_clip.get_model_config(name)
    return {part: {**config[part], **change} for part, change in changes.items()}


def test_byte_pairs_are_open_clips(open_clip: Any) -> None:
    merges = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    texts = [
        "a photo of a cat",
        "Two dogs' tails don't wag: 2026!?",
        "naïve café, Åland \n Islands &amp; 東京 😀",
        "snake_case __init__ a1b22",
        "",
    ]
    assert torch.equal(BPETokenizer(merges)(texts), open_clip.get_tokenizer("ViT-B-32")(texts))
    with pytest.raises(VTError, match="at most 75 tokens in a text, found 80"):
        BPETokenizer(merges)(["cat " * 80])
