"""What a method costs: parameters, bytes on disk, arithmetic, memory kept for the backward pass,
time.

Times are noisy and belong to the machine they were taken on, so comparisons are made as ratios
within one run.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vtlite.method import Tuned, count_parameters
from vtlite.storage import VTError
from vtlite.training import parameter_groups
from vtlite.tuning import merge, save_delta

__all__ = [
    "activation_memory",
    "count_parameters",
    "delta_size",
    "flops",
    "kept_bytes",
    "latency_ratio",
    "step_bytes",
    "step_flops",
    "step_peak",
    "step_ratio",
    "step_ratios",
    "step_time",
    "without_method",
]


def delta_size(model: Tuned) -> int:
    """Bytes of the file that `save_delta` writes for this model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        save_delta(model, path)
        return path.stat().st_size


@torch.no_grad()
def flops(model: nn.Module, images: Tensor) -> int:
    """Floating-point operations of one forward pass over `images` (a multiply-add counts as two),
    as torch counts them."""
    # The counter does not know the CPU's fused attention; the unfused one is made of matrix
    # products, which it does know.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(images)
    return counter.get_total_flops()


def step_flops(model: Tuned, images: Tensor, labels: Tensor) -> int:
    """The same of a whole training step, forward and backward. Products are counted; what moves or
    adds numbers (a gather, a norm, the optimiser) is not."""
    model = copy.deepcopy(model).train()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.method.backward(model, images, labels)
    return counter.get_total_flops()


class _FusedAttention(TorchFunctionMode):
    """On the meta device, the attention that CPUs and GPUs have: its own choice would keep every
    softmax."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        plain = len(args) == 3 and kwargs.get("attn_mask") is None  # a mask may want a gradient
        if func is F.scaled_dot_product_attention and args[0].is_meta and plain:
            fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return fused(*args, **kwargs)[0]
        return func(*args, **kwargs)


def kept_bytes(call: Callable[[], Tensor], own: Iterable[Tensor]) -> int:
    """Bytes that the forward pass `call` keeps for the backward pass, the tensors in `own` (inputs,
    parameters) not counted."""
    mine = {t.untyped_storage()._cdata for t in own}
    kept: dict[
        int, Tensor
    ] = {}  # by storage, so that a tensor saved twice counts once; holding it keeps its address taken

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    saved = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with saved, _FusedAttention():
        out = call()
    del out
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in mine)


def activation_memory(model: Tuned, images: Tensor, labels: Tensor) -> int:
    """Bytes that one forward pass keeps for the backward pass, the parameters and the images
    themselves not counted."""
    training = model.training
    model.train()
    own = (*model.parameters(), *model.buffers(), images, labels)
    kept = kept_bytes(lambda: model.method.loss(model, images, labels), own)
    model.train(training)
    return kept


def step_bytes(model: Tuned, images: Tensor, labels: Tensor) -> int:
    """The same of a whole training step, for methods with a backward pass of their own."""
    model = copy.deepcopy(model).train()
    own = (*model.parameters(), *model.buffers(), images, labels)
    return kept_bytes(lambda: model.method.backward(model, images, labels), own)


class _Live(TorchDispatchMode):
    """Remembers the most bytes that were alive at once, of memory made while it watches."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._alive = 0, dict[int, tuple[StorageWeakRef, int]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        old = {t.untyped_storage()._cdata for t in given} - self._alive.keys()
        out = func(*args, **(kwargs or {}))
        self._alive = {k: alive for k, alive in self._alive.items() if not alive[0].expired()}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in old:
                storage = t.untyped_storage()
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


def step_peak(model: Tuned, images: Tensor, labels: Tensor) -> int:
    """The most bytes that a training step (forward and backward, with its gradients) has alive at
    once beside parameters and images: what is kept for the backward pass, and what operations need
    on their way. On the meta device nothing is computed, and the bytes are the same."""
    model = copy.deepcopy(model).train()
    with _FusedAttention(), _Live() as live:
        model.method.backward(model, images, labels)
    return live.peak


def step_time(model: Tuned, images: Tensor, labels: Tensor, repeats: int = 7) -> float:
    """Seconds of one training step (forward, backward, AdamW) on this batch, the median of
    `repeats`; `model` stays as it was."""
    return statistics.median(_times([_step(model, images, labels)], repeats)[0])


def step_ratio(
    model: Tuned, reference: Tuned, images: Tensor, labels: Tensor, repeats: int = 15
) -> float:
    """How many times as long a training step of `model` takes as one of `reference`: the median of
    ratios measured in turns."""
    return step_ratios([model], reference, images, labels, repeats)[0]


def step_ratios(
    models: Iterable[Tuned],
    reference: Tuned,
    images: Tensor,
    labels: Tensor,
    repeats: int = 15,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """The same of several models, all in turns with the reference, by any clock."""
    steps: list[Callable[[], object]] = [
        _step(model, images, labels) for model in (reference, *models)
    ]
    theirs, *ours = _times(steps, repeats, clock)
    return [statistics.median(a / b for a, b in zip(taken, theirs, strict=True)) for taken in ours]


def _step(model: Tuned, images: Tensor, labels: Tensor) -> Callable[[], None]:
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=1e-5)

    def step() -> None:
        model.method.backward(model, images, labels)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@torch.no_grad()
def latency_ratio(
    model: nn.Module,
    reference: nn.Module,
    images: Tensor,
    repeats: int = 15,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """How many times as long `model` takes as `reference` for one forward pass: the median of
    ratios measured in turns, by any clock."""
    ours, theirs = _times([lambda: model(images), lambda: reference(images)], repeats, clock)
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def without_method(model: Tuned) -> nn.Module:
    """What is deployed: the merged backbone where the method allows it, the tuned model where it
    does not."""
    try:
        return merge(model)
    except VTError:
        return model


def _times(
    calls: list[Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds of each of `repeats` runs of each call, in turns, after one warm-up of all."""
    taken: list[list[float]] = [[] for _ in calls]
    for i in range(repeats + 1):
        for which, function in enumerate(calls):
            start = clock()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:
                taken[which].append(clock() - start)
    return taken
