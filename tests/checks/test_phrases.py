"""Every phrase that a check says it verified has a wrong answer, and is caught in words of its
own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tests.checks.test_banks import BANKS
from vtlite import checks

RIGHT = {name: answers[0] for bank in BANKS for name, answers in bank.RIGHT.items()}
WRONG = {name: cases for bank in BANKS for name, cases in bank.WRONG.items()}


# Mistakes that any right answer can be given
# -------------------------------------------------------------------------------------------------
def on_cpu(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: tree_map(lambda t: t + torch.zeros(t.shape, dtype=t.dtype), right(*given))


def reads_on_cpu(right: Callable[..., Any]) -> Callable[..., Any]:
    """For results without dimensions, which may come from the CPU."""

    def moved(t: Tensor) -> Tensor:
        return t + torch.zeros(t.shape, dtype=t.dtype)

    return lambda first, *rest: right(tree_map(moved, first), *rest)


def views(right: Callable[..., Any]) -> Callable[..., Any]:
    def answer(*given: Any) -> Any:
        for t in given:
            _ = t.view(-1) if isinstance(t, Tensor) else t
        return right(*given)

    return answer


def writes(right: Callable[..., Any]) -> Callable[..., Any]:
    def answer(*given: Any) -> Any:
        found = right(*given)
        if not given[0].requires_grad:
            given[0].mul_(1.5)
        return found

    return answer


def part(which: int, change: Callable[[Any], Any]) -> Callable[..., Any]:
    """One of several results is wrong."""

    def wrong(right: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*given: Any) -> Any:
            found = list(right(*given))
            found[which] = change(found[which])
            return tuple(found)

        return answer

    return wrong


def added(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: tree_map(lambda t: t + 1, right(*given))


def keeps_a_score(right: Callable[..., Any]) -> Callable[..., Any]:
    def answer(blocks: Any) -> Tensor:
        kept = []

        def keeping() -> Any:
            for scores, values in blocks:
                kept.append(scores[..., :1].clone())
                yield scores, values

        return right(keeping())

    return answer


def with_extra_key(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: {**right(*given), "extra": torch.ones(1)}


def where(bad: Callable[..., bool]) -> Callable[..., Any]:
    """Right, but for some arguments."""
    return lambda right: lambda *given: (added(right) if bad(*given) else right)(*given)


def adds_zeros(right: Callable[..., Any]) -> Callable[..., Any]:
    """Made on the CPU, before anything is read."""
    return lambda t, *rest: right(t + torch.zeros(t.shape, dtype=t.dtype), *rest)


def in_single(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: right(*given).float()


BY_HAND = {"any leading shape and strides": views, "arguments untouched": writes}
# exercise -> phrase -> the label of a wrong answer in the bank, or a mistake made above
PHRASES: dict[str, dict[str, Any]] = {
    "freeze_except": {
        "flags of every parameter": "only ever freezes",
        "prefixes that end at a dot": "start of the name only",
        "the count": "counts tensors",
        "values untouched": "sets values to zero",
    },
    "cached_features": {
        "values in eval mode": "train mode",
        "order and last batch": "drops the last batch",
        "batch size": "all at once",
        "no gradient": "with a graph",
        "mode and statistics restored": "mode not restored",
    },
    "layerwise_lrs": {
        "every layer of 12 and of 3 blocks": "a product",
        "embedding and final norm and head": "tokens with the head",
        "block numbers of two digits": "one digit",
    },
    "l2_sp_penalty": {
        "the value for three strengths": "no alpha",
        "matrices only": "biases too",
        "its gradient": "detached",
        "arguments untouched": "moves the start",
    },
    "lp_ft_lrs": {
        "every step of five schedules": "stretched",
        "the boundary between the parts": "boundary late",
        "no probe or nothing else": where(lambda step, probe, total, lr: probe in (0, total)),
    },
    "wise_ft": {
        "four values of alpha": "always the mean",
        "counters and masks of every type": "averages the counter",
        "all keys": with_extra_key,
        "arguments untouched": "in place",
        "new tensors": "its own arguments",
    },
    "count_vit": {
        "parameters of three networks entry by entry": "no positions",
        "operations as torch counts them": "multiply-adds",
    },
    "class_texts": {
        "the name at the end": "always in front",
        "the name in the middle": "middle rounded up",
        "the name in front": "always at the end",
        "the place of each end token": "the longest's place",
        "one context for all and one for each class": "first class for all",
        "one call of the tower": "class by class",
        "gradients of context and names": "context detached",
        "any type": in_single,
        "arguments untouched": "in place",
    },
    "similarity_logits": {
        "every length divided out": "nothing divided",
        "the temperature": "no exp",
        "the same texts for all images": "over the batch",
        "texts of each image's own": "the first image's texts",
        "gradients of features and texts and temperature": "a number",
        "any type and device": on_cpu,
        "arguments untouched": "in place",
    },
    "prompted_attention": {
        "as prompts among the tokens": "tokens alone",
        "one softmax over prompts and tokens": "two softmaxes",
        "no queries of the prompts": "as tokens",
        "the heads": "every H-th channel",
        "with and without a bias": "no bias for P",
        "keys and values of the prompts made once": "a copy for each image",
        "gradients of x and P and the projection": "P detached",
        "any type and device": on_cpu,
        "arguments untouched": writes,
    },
    "transport": {
        "the plan after every number of steps": "one step more",
        "the weights of rows and columns": "weights exchanged",
        "each image and class by itself": "all together",
        "a sharp plan": "plain",
        "the score": "score of the cost",
        "a plan without a graph": "a graph",
        "the gradient of the similarity": "a graph through the plan",
        "either precision and any device": on_cpu,
        "arguments untouched": "in place",
    },
    "aligned_gradient": {
        "a gradient against the direction": "never",
        "a gradient along it untouched": "always",
        "the direction alone counts": "no length",
        "the strength": "no strength",
        "the whole tensor at once": "by rows",
        "a direction of zero": "zero over zero",
        "new tensors and arguments untouched": "itself",
        "any type and device": adds_zeros,
    },
    "cocoop_logits": {
        "the small network": "no ReLU",
        "a shift for each image": "the mean of the batch",
        "the shift of every vector": "the first vector",
        "texts of each image's own": "mean of the texts",
        "every length divided out and the scale": "raw features",
        "one call of the tower": "image by image",
        "gradients of all weights": "context detached",
        "any type and device": on_cpu,
        "arguments untouched": "in place",
    },
    "confident_entropy": {
        "the surest views": "the least sure",
        "how many of them": "rounded up",
        "at least one view": "no view",
        "the entropy of the mean": "the mean of entropies",
        "large logits": "no slope",
        "gradients of the chosen views alone": "detached",
        "either precision and any device": adds_zeros,
        "arguments untouched": "in place",
    },
    "framed": {
        "the four sides": "up and down",
        "the corners once": "from the upper edge",
        "a sum and no replacement": "overwrites",
        "the middle as it was": "a rounding error",
        "images of any size": "around",
        "gradients of images and frame": "detached",
        "any type and device": on_cpu,
        "new tensors and arguments untouched": "in place",
    },
    "domain_answers": {
        "the nearest centre of all": "mean of the distances",
        "the sum of absolute differences": "squared",
        "features of length one": "features as they are",
        "domains of unlike numbers of centres": "filled up with zeros",
        "each image by itself": "one for the batch",
        "gradients of the chosen answers alone": "detached",
        "either precision and any device": on_cpu,
        "arguments untouched": "in place",
    },
    "base_to_new": {
        "the split of an odd and an even number of classes": "C // 2",
        "base images among base classes": "among all classes",
        "new images among new classes": "labels not shifted",
        "the harmonic mean": "arithmetic",
        "nothing right": "zero over zero of tensors",
        "plain numbers": "tensors",
        "any type and device": adds_zeros,
        "arguments untouched": "in place",
    },
    "bottleneck": {
        "the parts that train": "a scale that learns",
        "a start as x": "neither zero",
        "a start that learns": "both zero",
        "values for any weights and leading shape": "GELU",
        "the scale": "no scale",
        "gradients of x and all weights": "detached",
        "any type and device": "half precision by hand",
        "arguments untouched": "in place",
    },
    "half_block": {
        "after the MLP": "after the block",
        "beside it": "beside behind the norm",
        "before it": "before the norm",
        "every part run once": "the norm twice",
        "the scale": "no scale",
        "gradients of x and all parts": "detached",
        "any type and device": on_cpu,
        "arguments untouched": "in place",
    },
    "repadapter_merge": {
        "the weight": "weight as it was",
        "the bias": "no b",
        "groups": "interleaved",
        "the scale": "no scale",
        "a layer without a bias": "None stays None",
        "any type and device": on_cpu,
        "new tensors and arguments untouched": "its own argument",
    },
    "ladder": {
        "values for four ladders": "reads the input",
        "the gates": "gates exchanged",
        "no graph in the trunk": "a graph",
        "no gradient of x": "a gradient of x",
        "gradients of the ladder": "gates detached",
        "every block run once": "the trunk twice",
        "any type and device": on_cpu,
        "arguments untouched": writes,
    },
    "st_adapter": {
        "values for any clip": "reshape",
        "the neighbours in time": "turned in time",
        "each clip and channel and place by itself": "one kernel",
        "the first and the last frame": "ends repeated",
        "gradients of x and all weights": "kernel detached",
        "any type and device": on_cpu,
        "arguments untouched": "in place",
    },
    "tip_logits": {
        "values for four caches": "no exp",
        "every length divided out": "keys as they are",
        "the votes": "softmax",
        "a class without an image": "classes of the labels",
        "alpha and beta and the scale": "no beta",
        "gradients of features and texts and keys": "keys detached",
        "any type and device": on_cpu,
        "arguments untouched": "in place",
    },
    "vqt_attention": {
        "the image's tokens untouched": "as VPT",
        "what the queries read": "P itself",
        "keys and values of the image alone": "reads prompts",
        "the heads": "every H-th channel",
        "with and without a bias": "no bias for P",
        "gradients of P": "P detached",
        "any type and device": on_cpu,
        "arguments untouched": writes,
    },
    "kept_bytes": {
        "nine forward passes": "before the block",
        "bytes of every type": "four bytes",
        "a memory that is kept twice and views": "views by their size",
        "what is the network's own": "weights too",
        "a backward pass afterwards": "gives nothing back",
        "frozen parts": where(lambda call, own: not call.W.requires_grad),
        "one pass and no backward pass": "a backward pass",
        "hooks removed": "hooks left",
    },
    "bitfit": {
        "flags of every parameter": "only ever freezes",
        "biases of layers and of norms": "no norms",
        "names that only look like a bias": "ends in bias",
        "the count": "counts tensors",
        "values untouched": "sets biases to zero",
    },
    "lora_forward": {
        "values for any leading shape and strides": views,
        "the scale alpha / r": "scale alpha",
        "gradients of A and B and x": "detached",
        "B A never formed": "forms B A",
        "any device": on_cpu,
        "arguments untouched": writes,
    },
    "lora_merge": {
        "the rows of q and k and v": "backwards",
        "other rows unchanged": "all thirds",
        "alpha / r with each one's own rank": "first rank for all",
        "a new tensor": "the argument where nothing is to do",
        "any device": on_cpu,
        "arguments untouched": writes,
    },
    "kron_forward": {
        "values entry by entry": "exchanged",
        "rows and columns of both factors": "columns in",
        "any leading shape and strides": views,
        "gradients of A and B and x": "detached",
        "the matrix never formed": "torch.kron",
        "any device": on_cpu,
    },
    "count_updates": {
        "LoRA": "lora: one factor",
        "KronA": "krona: A alone",
        "FacT-TT": "fact: no V",
        "Compacter": "compacter: no biases",
        "each on three networks": where(lambda D, L, r, a, n: D == 1024),
    },
    "ssf_merge": {
        "linear layers": "along the inputs",
        "LayerNorm": "norm's weight as it was",
        "convolutions": where(lambda weight, *rest: weight.ndim == 4),
        "a layer without a bias": "None stays None",
        "any device": on_cpu,
        "new tensors and arguments untouched": "its own argument",
    },
    "dylora_forward": {
        "the first b ranks for any strides": views,
        "the scale alpha / b": "scale alpha",
        "gradients of rank b alone step after step": "ordinary LoRA",
        "the gradient of x": "no graph below",
        "any device": on_cpu,
        "arguments untouched": writes,
    },
    "private_gradient": {
        "each sample clipped and short ones untouched": "normalises",
        "noise once and sigma times the norm": "no sigma",
        "the mean over the batch": "a sum",
        "a sample without a gradient": "zero over zero",
        "any device": on_cpu,
        "arguments untouched": writes,
    },
    "distillation_loss": {
        "values for six temperatures": "no T^2",
        "the mean over the images": "a sum",
        "both weights": "weights exchanged",
        "large logits": "logs of a softmax",
        "the gradient of the student": "student detached",
        "no gradient of the teacher": "a teacher that learns",
        "any type and device": reads_on_cpu,
        "arguments untouched": "in place",
    },
    "decoupled_parts": {
        "the true class against the rest": "a sum of logits",
        "the others among themselves": "zeroed",
        "the identity with KD": "weighed by the rest",
        "each image by itself": "means",
        "a teacher without a doubt": "by probabilities",
        "the gradient of the student": "others detached",
        "any type and device": reads_on_cpu,
        "arguments untouched": "in place",
    },
    "attention_loss": {
        "one layer and several": "the last layer",
        "the squares summed over the channels": "absolute values",
        "a length of one for each image": "the whole batch",
        "the mean over images and places": "sum",
        "strong and weak maps": "an eps",
        "a map of zeros": "0 / 0",
        "the gradient of the student": "detached",
        "any type and device": reads_on_cpu,
        "arguments untouched": "in place",
    },
    "widened": {
        "copies of the units": "divides the units",
        "their batch norm": "a new norm",
        "shares by the number of copies": "only the new",
        "the bias behind them": "bias divided",
        "linear layers and convolutions": where(lambda first, *rest: first["weight"].ndim > 2),
        "with and without biases": "no bias key",
        "copies in any order": where(lambda a, b, c, source: source[0] == 2),
        "new tensors and arguments untouched": "its own argument",
        "any type and device": on_cpu,
    },
    "identity_layer": {
        "a convolution that is the identity": "a blur",
        "the statistics of all pixels of a channel": "per image",
        "the scale with its eps": "no eps",
        "the shift": "no beta",
        "x again in eval and in train mode": "over n - 1",
        "channels that are constant or far from zero": "digits lost",
        "any type and device": on_cpu,
        "new tensors and arguments untouched": "one tensor twice",
    },
    "mixed_node": {
        "the node": "alpha itself",
        "the gradient of alpha": "w dw",
        "a softmax for each edge": "over the edges",
        "one candidate and one edge": where(lambda xs, *rest: xs.shape[1] == 1),
        "large alpha": "exp of large alpha",
        "no autograd": "by autograd",
        "type and device for any strides": views,
        "arguments untouched": "in place",
    },
    "darts_gradient": {
        "the first order": where(lambda w, alpha, train, held, xi, size: xi == 0),
        "the inner step": "direct at w",
        "the second order by a central difference": "one-sided",
        "the length over all weights": "the first weight's length",
        "weights that the held-out loss does not move": "0 / 0",
        "the number of passes": "too many passes",
        "any type and device": reads_on_cpu,
        "arguments untouched": "in place",
    },
    "concrete_sample": {
        "the noise": "noise subtracted",
        "six temperatures": "no temperature",
        "a softmax over the last dimension": "first dimension",
        "the hard sample": "always soft",
        "the gradient of the soft one": "gradient of the logits",
        "the gradient of the hard one": "no straight-through",
        "any type and device": on_cpu,
        "arguments untouched": "in place",
    },
    "lora_linear_backward": {
        "dx": "dx without the update",
        "dA": part(1, lambda t: t + 1),
        "dB": "dB is zero",
        "the scale": "dx not scaled",
        "B A never formed": "forms B A",
        "type and device": on_cpu,
        **BY_HAND,
    },
    "attention_fake": {
        "both shapes": "v's rows",
        "both types": "lse in half precision",
        "contiguous": "empty_like",
        "the device of the inputs": "on the CPU",
        "nothing computed or read or written": "computes",
    },
    "tile_places": {
        "every tile of five tensors": "no program",
        "the last tiles": "below M - 1",
        "any strides": "contiguous",
        "offsets beyond 2^31": "int32, converted too late",
        "a mask of two conditions": "one mask for the offset",
    },
    "online_attention": {
        "values against the whole row": "averages",
        "uneven blocks": "last block only",
        "large and small and rising and falling scores": "no maximum",
        "masked blocks and rows": "masked blocks",
        "one pass with nothing kept but sums": keeps_a_score,
        "blocks untouched": "in place",
    },
    "kd_gradient": {
        "values for five temperatures": "no T",
        "mean over all rows for any strides": views,
        "large logits": "exp of large logits",
        "no autograd": "by autograd",
        "type and device": on_cpu,
        "arguments untouched": "in place",
    },
    "kron_backward": {
        "dx": "dX by columns",
        "dA": part(1, lambda t: t + 1),
        "dB": part(2, lambda t: -t),
        "the matrix never formed": "forms A (x) B",
        "any type and device": on_cpu,
        **BY_HAND,
    },
}


def caught(name: str, phrase: str) -> str:
    mistake = PHRASES[name][phrase]
    wrong = WRONG[name][mistake][0] if isinstance(mistake, str) else mistake(RIGHT[name])
    with pytest.raises(checks.CheckFailed) as error:
        getattr(checks, name)(wrong)
    return str(error.value)


@pytest.mark.parametrize("name", [name for name in checks.__all__ if name != "CheckFailed"])
def test_each_phrase_is_caught_in_words_of_its_own(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    getattr(checks, name)(RIGHT[name])
    said = capsys.readouterr().out.strip().split(" checks passed: ")[1].split(", ")
    assert sorted(said) == sorted(PHRASES[name])
    words = [caught(name, phrase) for phrase in PHRASES[name]]
    assert len(set(words)) == len(words)
