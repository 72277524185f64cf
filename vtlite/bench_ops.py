"""`python -m vtlite bench-ops`: every custom operation beside plain PyTorch and torch.compile, at
the sizes of ViT-B/16 and ViT-L/14.

Times are medians, and every ratio is taken within one run, the ways in turns. The limit is the time
in which the machine could at best move the bytes (each input and output once) or do the arithmetic,
whichever is longer: no implementation can be faster. Where no datasheet is known, both speeds are
those of a large copy and a large product in the same run, and a share may come out a little above
100 %. Memory is, on a GPU, the peak of one forward and backward pass; on a CPU, what the forward
pass keeps for the backward pass. `--estimate` counts bytes and arithmetic without running anything;
`--models` times training steps of whole networks.
"""

from __future__ import annotations

import copy
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import vtlite as vt
from vtlite.accounting import kept_bytes
from vtlite.backbones.vit import VisionTransformer
from vtlite.ops._launch import triton
from vtlite.ops.adapter import adapter, adapter_reference
from vtlite.ops.cross_entropy import cross_entropy
from vtlite.ops.kd_loss import kd_loss
from vtlite.ops.kron_linear import kron_linear, kron_matrix
from vtlite.ops.lora_linear import lora_linear
from vtlite.ops.mixed_op import mixed_op, mixed_op_reference
from vtlite.ops.prompt_attention import prompt_attention
from vtlite.ops.scale_shift import scale_shift, scale_shift_reference
from vtlite.storage import VTError, atomic_write, unknown
from vtlite.version import __version__

Row = dict[str, Any]


# What is measured
# -------------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """The sizes of a ViT's layers, and of what methods add to them."""

    batch: int
    tokens: int
    width: int
    heads: int
    rank: int = 8  # LoRA
    prompts: int = 50  # VPT
    bottleneck: int = 64  # AdaptFormer
    rows: int = 256  # images whose logits a loss sees
    classes: int = 21841  # ImageNet-21k
    candidates: int = 6  # operations that a mixed one weighs
    factor: int = 4  # Kronecker: the small factor is [4, 4]


SIZES = {"ViT-B/16": Size(64, 197, 768, 12), "ViT-L/14": Size(64, 257, 1024, 16)}
TINY = {
    "tiny": Size(2, 5, 32, 2, rank=4, prompts=3, bottleneck=8, rows=4, classes=10, candidates=3)
}


@dataclass(frozen=True)
class Operation:
    """One operation: as one would write it in PyTorch, ours, and its inputs; `r(*shape)` makes a
    tensor, `grad=False` a frozen one."""

    plain: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    inputs: Callable[[Callable[..., Tensor], Size], tuple[Any, ...]]


def _plain_lora(x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return F.linear(x, weight, bias) + (x @ A.mT) @ B.mT


def _plain_kron(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return F.linear(x, kron_matrix(A, B))


def _plain_kd(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    log_q, log_p = F.log_softmax(student / T, -1), F.log_softmax(teacher / T, -1)
    return T**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _plain_prompts(q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor) -> Tensor:
    k, v = (torch.cat([p.expand(len(q), -1, -1, -1), t], dim=2) for p, t in ((pk, k), (pv, v)))
    if q.is_meta:  # the fused kernel of a GPU; the meta device would count the unfused one
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return F.scaled_dot_product_attention(q, k, v)


def _heads(r: Callable[..., Tensor], z: Size) -> tuple[Any, ...]:
    """q, k, v and the prompts' k, v, lying in memory as one projection of all tokens writes
    them."""
    own, shared = (
        r(*rows, 3, z.heads, z.width // z.heads, grad=False)
        for rows in ((z.batch, z.tokens), (z.prompts,))
    )
    return *(t.transpose(1, 2).requires_grad_() for t in own.unbind(2)), *(
        t.transpose(0, 1).requires_grad_() for t in shared.unbind(1)[1:]
    )


def _tokens(r: Callable[..., Tensor], z: Size) -> Tensor:
    return r(z.batch, z.tokens, z.width)


def _labelled(r: Callable[..., Tensor], z: Size) -> tuple[Any, ...]:
    logits = r(z.rows, z.classes)
    return logits, torch.arange(z.rows, device=logits.device) % z.classes, 0.1


OPERATIONS = {
    "cross_entropy": Operation(
        lambda z, labels, s: F.cross_entropy(z, labels, label_smoothing=s), cross_entropy, _labelled
    ),
    "kd_loss": Operation(
        _plain_kd,
        kd_loss,
        lambda r, z: (r(z.rows, z.classes), r(z.rows, z.classes, grad=False), 4.0),
    ),
    "lora_linear": Operation(
        _plain_lora,
        lora_linear,
        lambda r, z: (
            _tokens(r, z),
            r(3 * z.width, z.width, grad=False),
            r(3 * z.width, grad=False),
            r(z.rank, z.width),
            r(3 * z.width, z.rank),
        ),
    ),
    "adapter": Operation(
        adapter_reference,
        adapter,
        lambda r, z: (
            _tokens(r, z),
            r(z.bottleneck, z.width),
            r(z.width, z.bottleneck),
            r(z.bottleneck),
            r(z.width),
            r(z.width),
            r(z.width),
        ),
    ),
    "prompt_attention": Operation(_plain_prompts, prompt_attention, _heads),
    "scale_shift": Operation(
        scale_shift_reference, scale_shift, lambda r, z: (_tokens(r, z), r(z.width), r(z.width))
    ),
    "mixed_op": Operation(
        mixed_op_reference,
        mixed_op,
        lambda r, z: ([_tokens(r, z) for _ in range(z.candidates)], r(z.candidates)),
    ),
    "kron_linear": Operation(
        _plain_kron,
        kron_linear,
        lambda r, z: (
            _tokens(r, z),
            r(1, z.factor, z.factor),
            r(1, z.width // z.factor, z.width // z.factor),
        ),
    ),
}


def make_inputs(
    operation: Operation, size: Size, device: str, dtype: torch.dtype
) -> tuple[Any, ...]:
    """Random inputs of an operation; on the "meta" device shapes alone."""
    generator = None if device == "meta" else torch.Generator(device).manual_seed(0)

    def r(*shape: int, grad: bool = True) -> Tensor:
        return (
            torch.randn(*shape, device=device, dtype=dtype, generator=generator)
            .mul_(0.1)
            .requires_grad_(grad)
        )

    return operation.inputs(r, size)


def _tensors(inputs: Any) -> list[Tensor]:
    return [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]


def _leaves(inputs: Any) -> list[Tensor]:
    return [t for t in _tensors(inputs) if t.requires_grad]


# What the machine can do
# ------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Machine:
    name: str
    bandwidth: float  # bytes a second, read and written
    flops: float  # of matrix products, a second
    source: str  # of the two


# NVIDIA's datasheets: memory bandwidth, dense bfloat16 arithmetic. The first name that is part of
# the device's name counts.
DATASHEETS = {
    "H200": (4.8e12, 989e12),
    "H100 PCIe": (2.0e12, 756e12),
    "H100 NVL": (3.9e12, 835e12),
    "H100": (3.35e12, 989e12),
    "A100-SXM4-40GB": (1.555e12, 312e12),
    "A100-PCIE-40GB": (1.555e12, 312e12),
    "A100": (2.0e12, 312e12),
    "L40S": (0.864e12, 362e12),
    "L4": (0.3e12, 121e12),
}
ESTIMATED = Machine("H100", *DATASHEETS["H100"], "datasheet")


def machine(device: str, dtype: torch.dtype, tiny: bool = False) -> Machine:
    """The limits of this machine: the datasheet's for a known GPU, else those of a large copy and a
    large product, measured now."""
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else platform.processor() or platform.machine()
    )
    for known, limits in DATASHEETS.items():
        if device == "cuda" and known in name:
            return Machine(name, *limits, "datasheet")
    n, side = (1 << 16, 64) if tiny else (1 << 26, 1536)
    source, target = torch.ones(n, device=device), torch.empty(n, device=device)
    square = torch.ones(side, side, device=device, dtype=dtype)
    clock = _clock(device)
    copied = min(clock(lambda: target.copy_(source)) for _ in range(10))
    multiplied = min(clock(lambda: square @ square) for _ in range(10))
    return Machine(
        name, 2 * source.nbytes / copied, 2 * side**3 / multiplied, "measured in this run"
    )


# Counting without running
# -----------------------------------------------------------------------------------------------------------------
def _nbytes(tensor: Tensor) -> int:
    """An expanded tensor costs only the memory behind it."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


class Traffic(TorchDispatchMode):
    """Count kernels, bytes and arithmetic: each operator reads its inputs and writes its outputs
    once; a custom operation is one kernel."""

    def __init__(self, limits: Machine) -> None:
        super().__init__()
        self.limits, self.kernels, self.bytes, self.flops, self.seconds = limits, 0, 0, 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not views and not func.name().startswith(
            ("aten::detach", "aten::empty", "aten::new_empty", "aten::_unsafe_view")
        ):
            moved = sum(map(_nbytes, _tensors((args, kwargs, out))))
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=out) if count else 0
            self.kernels, self.bytes, self.flops = (
                self.kernels + 1,
                self.bytes + moved,
                self.flops + flops,
            )
            self.seconds += max(
                moved / self.limits.bandwidth, flops / self.limits.flops
            )  # each kernel at its own limit
        return out


def count(
    function: Callable[..., Tensor], inputs: tuple[Any, ...], limits: Machine, backward: bool
) -> Traffic:
    """What one pass moves; `inputs` on the meta device. The gradient of the output is given, as
    inside a network."""
    traffic = Traffic(limits)
    with traffic:
        out = function(*inputs)
    if backward:
        seed = torch.ones_like(out)
        with traffic:
            torch.autograd.grad(out, _leaves(inputs), seed)
    return traffic


def least_bytes(function: Callable[..., Tensor], inputs: tuple[Any, ...], backward: bool) -> int:
    """Inputs read and the output written once; backward, inputs and the output's gradient read and
    the inputs' gradients written."""
    read = sum(map(_nbytes, _tensors(inputs)))
    out = _nbytes(function(*inputs))
    return read + out + (out + read + sum(map(_nbytes, _leaves(inputs))) if backward else 0)


def estimate(
    names: Iterable[str],
    sizes: dict[str, Size],
    limits: Machine = ESTIMATED,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Row]:
    """The roofline of every operation, forward and backward: nothing runs, no time is measured."""
    rows = []
    for size_name, size in sizes.items():
        for name in names:
            operation = OPERATIONS[name]
            inputs = make_inputs(operation, size, "meta", dtype)
            own, least = _tensors(inputs), least_bytes(operation.plain, inputs, backward=True)
            plain, ours = (
                count(function, inputs, limits, backward=True)
                for function in (operation.plain, operation.ours)
            )
            flops = min(plain.flops, ours.flops)
            rows.append(
                {
                    "operation": name,
                    "size": size_name,
                    "plain": {
                        "kernels": plain.kernels,
                        "bytes": plain.bytes,
                        "seconds": plain.seconds,
                        "kept_bytes": kept_bytes(partial(operation.plain, *inputs), own),
                    },
                    "ours": {
                        "kernels": ours.kernels,
                        "bytes": ours.bytes,
                        "kept_bytes": kept_bytes(partial(operation.ours, *inputs), own),
                    },
                    "least_bytes": least,
                    "flops": flops,
                    "ceiling": plain.seconds / max(least / limits.bandwidth, flops / limits.flops),
                }
            )
    return rows


# Measuring
# --------------------------------------------------------------------------------------------------------------------------------
def measure(
    names: Iterable[str],
    sizes: dict[str, Size],
    device: str,
    limits: Machine,
    repeats: int,
    compiled: bool,
) -> list[Row]:
    """Every operation in every way: one row for the forward pass and one for forward and
    backward."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows = []
    for size_name, size in sizes.items():
        for name in names:
            operation = OPERATIONS[name]
            inputs, meta = (
                make_inputs(operation, size, where, dtype) for where in (device, "meta")
            )
            torch.compiler.reset()
            ways = {
                "plain": operation.plain,
                "compile": torch.compile(operation.plain, dynamic=False),
                "ours": operation.ours,
            }
            if not compiled:
                del ways["compile"]
            memory = {way: _memory(function, inputs, device) for way, function in ways.items()}
            for backward in (False, True):
                least = least_bytes(operation.plain, meta, backward)
                flops = min(
                    count(function, meta, limits, backward).flops
                    for function in (operation.plain, operation.ours)
                )
                limit = max(least / limits.bandwidth, flops / limits.flops)
                taken = _in_turns(
                    {way: _pass(function, inputs, backward) for way, function in ways.items()},
                    _clock(device),
                    repeats,
                )
                row: Row = {
                    "operation": name,
                    "size": size_name,
                    "pass": "forward + backward" if backward else "forward",
                }
                row |= {"least_bytes": least, "flops": flops, "limit_seconds": limit}
                for way, times in taken.items():
                    row[way] = {
                        "seconds": statistics.median(times),
                        "speedup": statistics.median(
                            p / t for p, t in zip(taken["plain"], times, strict=True)
                        ),
                        "share_of_limit": limit / statistics.median(times),
                        "memory_bytes": memory[way] if backward else None,
                    }
                rows.append(row)
                print(_line(row), flush=True)
    return rows


def _pass(
    function: Callable[..., Tensor], inputs: tuple[Any, ...], backward: bool
) -> Callable[[], object]:
    if not backward:
        return torch.no_grad()(
            lambda: function(*inputs)
        )  # as in evaluation: nobody trains with a forward pass alone
    seed = torch.ones_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*inputs), _leaves(inputs), seed)


def _clock(device: str) -> Callable[[Callable[[], object]], float]:
    """Seconds of one call; on a GPU with its cache emptied first, as other layers would leave
    it."""

    def cpu(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    if device == "cpu":
        return cpu
    other = torch.empty(256 << 20, dtype=torch.int8, device=device)

    def cuda(call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        other.zero_()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    return cuda


def _in_turns(
    calls: dict[str, Callable[[], object]],
    clock: Callable[[Callable[[], object]], float],
    repeats: int,
) -> dict[str, list[float]]:
    """Seconds of `repeats` rounds, each way once a round, after three rounds to warm up.

    Every other round goes backwards: what a way leaves in caches and in the allocator is then not
    always left to the same one.
    """
    rounds = [
        {way: clock(calls[way]) for way in (calls if i % 2 else reversed(calls))}
        for i in range(repeats + 3)
    ][3:]
    return {way: [times[way] for times in rounds] for way in calls}


def _memory(function: Callable[..., Tensor], inputs: tuple[Any, ...], device: str) -> int:
    if device == "cpu":
        return kept_bytes(partial(function, *inputs), _tensors(inputs))
    return _peak(_pass(function, inputs, backward=True))


def _peak(step: Callable[[], object]) -> int:
    """CUDA: the most that one call allocates beyond what is there before it."""
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


# Whole models
# -----------------------------------------------------------------------------------------------------------------------------
class ConcatenatedPrompts(nn.Module):
    """VPT as it is usually written: the prompts of each image go through the block beside its
    tokens. x [B, N, D] -> [B, N, D]"""

    def __init__(self, block: nn.Module, prompts: nn.Parameter, prefix: int) -> None:
        super().__init__()
        self.block, self.prompts, self.prefix = block, prompts, prefix

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat(
            [x[:, : self.prefix], self.prompts.expand(len(x), -1, -1), x[:, self.prefix :]], dim=1
        )
        x = self.block(x)
        return torch.cat([x[:, : self.prefix], x[:, self.prefix + len(self.prompts) :]], dim=1)


def pairs(tiny: bool = False) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Networks that compute the same function -> (the usual way, ours). ViT-B/16 with random
    weights, 100 classes.

    The last is a bound: nothing is added to the frozen layers, and the gradient goes as far back as
    LoRA's does. No LoRA that leaves those layers to PyTorch can be faster.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = (
            VisionTransformer(img_size=32, embed_dim=32, depth=2, num_heads=2)
            if tiny
            else VisionTransformer()
        )
    prompts = 3 if tiny else 50
    prompted = vt.tune(vit, "vpt_deep", num_classes=100, num_prompts=prompts)
    usual = copy.deepcopy(prompted)
    for i, block in enumerate(usual.backbone.blocks):
        usual.backbone.blocks[i] = ConcatenatedPrompts(block.block, block.prompts, block.prefix)
    found: dict[str, tuple[nn.Module, nn.Module]] = {
        f"VPT-deep, {prompts} prompts: concatenated -> shared": (usual, prompted)
    }
    try:
        import peft
    except ImportError:
        print("the comparison with peft is left out: it is not installed")
        return found
    ours = vt.tune(
        vit, "lora", num_classes=100, rank=8, alpha=8.0, targets="", layers=("qkv",)
    )  # one update of the whole qkv, as peft's
    head = copy.deepcopy(ours.head)
    adapted = peft.get_peft_model(
        copy.deepcopy(vit), peft.LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"])
    )
    bound = vt.tune(vit, "linear", num_classes=100)
    bound.network.head = copy.deepcopy(head)
    bound.backbone.blocks[0].attn.qkv.bias.requires_grad_()
    theirs = nn.Sequential(adapted, head)
    return (
        {"LoRA, rank 8 on qkv: peft -> vtlite": (theirs, ours)}
        | found
        | {"its bound: peft -> no update at all": (theirs, bound)}
    )


def measure_models(device: str, repeats: int, tiny: bool = False) -> list[Row]:
    """A training step (forward, backward, AdamW) and its memory, ours beside the usual way; batch 4
    on a CPU, 64 on a GPU."""
    rows: list[Row] = []
    batch = 64 if device == "cuda" else 4
    for name, models in pairs(tiny).items():
        side = 32 if tiny else 224
        images, labels = (
            torch.randn(batch, 3, side, side, device=device),
            torch.arange(batch, device=device),
        )
        steps = {
            way: _step(model.to(device).train(), images, labels)
            for way, model in zip(("usual", "ours"), models, strict=True)
        }
        if device == "cpu":
            memory = {
                way: kept_bytes(loss, (*model.parameters(), *model.buffers(), images, labels))
                for (way, (loss, _)), model in zip(steps.items(), models, strict=True)
            }
        else:
            memory = {way: _peak(step) for way, (_, step) in steps.items()}
        taken = _in_turns({way: step for way, (_, step) in steps.items()}, _clock(device), repeats)
        row: Row = {
            "models": name,
            "batch": batch,
            "step_ratio": statistics.median(o / u for u, o in zip(*taken.values(), strict=True)),
        }
        row |= {
            way: {"seconds": statistics.median(taken[way]), "memory_bytes": memory[way]}
            for way in taken
        }
        rows.append(row)
        print(_model_line(row), flush=True)
    return rows


def _step(
    model: nn.Module, images: Tensor, labels: Tensor
) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """The loss, and a whole training step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def loss() -> Tensor:
        return F.cross_entropy(model(images), labels)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return loss, step


# The command
# ------------------------------------------------------------------------------------------------------------------------------
def bench_ops(
    device: str | None = None,
    path: Path | None = None,
    tiny: bool = False,
    ops: str | None = None,
    models: bool = False,
    estimated: bool = False,
    repeats: int | None = None,
) -> dict[str, Any]:
    """Print a Markdown table, and write it with the device and the versions to `path` (JSON). See
    the module's first lines.

    `device` is "cpu" or "cuda" (None: a GPU if there is one). `tiny` is a smoke test: small sizes,
    no torch.compile, times that mean nothing.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise unknown("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available() and not estimated:
        raise VTError(
            "expected a CUDA GPU for --device cuda, found none; use --device cpu, or --estimate, which runs nothing"
        )
    if repeats is not None and repeats < 1:
        raise VTError(
            f"expected at least one repeat, found {repeats}; leave --repeats out for the default"
        )
    names = ops.split(",") if ops else list(OPERATIONS)
    for name in names:
        if name not in OPERATIONS:
            raise unknown("operation", name, OPERATIONS)
    if path is not None and not path.parent.is_dir():
        raise VTError(
            f"expected an existing folder to write {path.name} into, found no {path.parent}; create it first"
        )
    sizes = (
        TINY
        if tiny
        else SIZES
        if device == "cuda" or estimated
        else {k: replace(z, batch=4, rows=64) for k, z in SIZES.items()}
    )
    result: dict[str, Any] = {
        "sizes": {name: asdict(size) for name, size in sizes.items()},
        "versions": _versions(),
    }
    result["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    repeats = repeats or (3 if tiny else 50 if device == "cuda" else 25)
    if estimated:
        result |= {
            "kind": "estimate",
            "machine": asdict(ESTIMATED),
            "operations": estimate(names, sizes),
        }
        print(_estimate_table(result["operations"], ESTIMATED))
    elif models:
        print(
            f"{'| one training step | usual, ms | ours, ms | ratio | memory, usual | ours |'}\n|---|---:|---:|---:|---:|---:|"
        )
        result |= {"kind": "measurement", "device": device, "threads": torch.get_num_threads()}
        result["models"] = measure_models(device, repeats, tiny)
    else:
        limits = machine(device, torch.bfloat16 if device == "cuda" else torch.float32, tiny)
        print(
            f"{limits.name}: {limits.bandwidth / 1e9:,.0f} GB/s, {limits.flops / 1e12:,.2f} Tflop/s ({limits.source})\n\n{HEADER}"
        )
        result |= {
            "kind": "measurement",
            "device": device,
            "threads": torch.get_num_threads(),
            "machine": asdict(limits),
        }
        result["operations"] = measure(names, sizes, device, limits, repeats, compiled=not tiny)
    if path is not None:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n")
    return result


HEADER = (
    "| operation | size | pass | plain, ms | compile | ours | of the limit | memory: plain | compile | ours |\n"
    "|---|---|---|---:|---:|---:|---:|---:|---:|---:|"
)


def _line(row: Row) -> str:
    """Times of the other ways as multiples of speed: 2.00x is half the time of plain PyTorch."""
    cells = [row["operation"], row["size"], row["pass"], f"{1e3 * row['plain']['seconds']:.3f}"]
    cells += [f"{row[way]['speedup']:.2f}x" if way in row else "" for way in ("compile", "ours")]
    cells.append(f"{row['ours']['share_of_limit']:.0%}")
    cells += [
        _mb(row[way]["memory_bytes"]) if way in row else "" for way in ("plain", "compile", "ours")
    ]
    return f"| {' | '.join(cells)} |"


def _model_line(row: Row) -> str:
    usual, ours = row["usual"], row["ours"]
    cells = [
        row["models"],
        f"{1e3 * usual['seconds']:.1f}",
        f"{1e3 * ours['seconds']:.1f}",
        f"{row['step_ratio']:.2f}x",
    ]
    return f"| {' | '.join([*cells, _mb(usual['memory_bytes']), _mb(ours['memory_bytes'])])} |"


def _estimate_table(rows: list[Row], limits: Machine) -> str:
    lines = [
        f"An estimate for {limits.name} ({limits.source}: {limits.bandwidth / 1e12:.2f} TB/s, {limits.flops / 1e12:.0f} Tflop/s), forward and",
        "backward: bytes are counted, each kernel reading and writing once; nothing was run. `ceiling` is the speed-up of a perfect kernel.\n",
        "| operation | size | kernels: plain | ours | bytes moved: plain | ours | least | kept: plain | ours | Gflop | ceiling |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        plain, ours = row["plain"], row["ours"]
        lines.append(
            f"| {row['operation']} | {row['size']} | {plain['kernels']} | {ours['kernels']} | {_mb(plain['bytes'])} | {_mb(ours['bytes'])} "
            f"| {_mb(row['least_bytes'])} | {_mb(plain['kept_bytes'])} | {_mb(ours['kept_bytes'])} "
            f"| {row['flops'] / 1e9:.1f} | {row['ceiling']:.1f}x |"
        )
    return "\n".join(lines)


def _mb(size: int | None) -> str:
    return (
        "" if size is None else f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
    )


def _versions() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__ if triton else None,
        "vtlite": __version__,
    }
