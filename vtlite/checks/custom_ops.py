"""Checks of assignment 07, custom operations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vtlite.checks.base import copies, expect, fail, passed, randn, same, stays_small, untouched
from vtlite.checks.naive import dense, kron, product

_Function = Callable[..., Any]
_Three = tuple[Tensor, Tensor, Tensor]


# What the three gradients share
# -------------------------------------------------------------------------------------------------
def _by_hand(
    student: _Function, arguments: dict[str, Any], likes: dict[str, str]
) -> dict[str, Tensor]:
    """What `student` returns, each with its argument's shape and type: {"dx": "x"}. Run where
    autograd is off; arguments unchanged."""
    given = {name: t for name, t in arguments.items() if isinstance(t, Tensor)}
    before = copies(given)
    with torch.inference_mode():
        try:
            returned = student(*arguments.values())
        except RuntimeError as error:
            if "require grad" in str(error) or "requires_grad" in str(error):
                fail(
                    "expected a gradient written out, found a call of autograd",
                    "you let autograd do it; use the formula instead",
                )
            raise
    untouched(given, before)
    if len(likes) == 1:
        returned = (returned,)
    order = ", ".join(likes)
    several = isinstance(returned, tuple | list)
    expect(
        several and len(returned) == len(likes),
        f"expected {len(likes)} tensors, found"
        f" {len(returned) if several else type(returned).__name__}",
        f"return ({order}); what is frozen has no gradient",
    )
    for (name, like), t in zip(likes.items(), returned, strict=True):
        expect(
            isinstance(t, Tensor),
            f"expected a tensor as {name}, found {type(t).__name__}",
            f"return ({order}), all of them tensors",
        )
        wanted, found = list(given[like].shape), list(t.shape)
        if found != wanted:
            others = [list(given[other].shape) for other in likes.values() if other != like]
            likely = (
                "you give one gradient per token; a factor serves all of them, so sum over all"
                " dimensions in front"
                if t.ndim > len(wanted) and found[-2:] in (wanted, wanted[::-1])
                else (
                    f"it is transposed: a gradient has the shape of its tensor, here that of {like}"
                    if found == wanted[::-1]
                    else (
                        f"the order is ({order})"
                        if found in others
                        else f"a gradient has the shape of its tensor, here that of {like}"
                    )
                )
            )
            fail(f"{name}: expected shape {wanted}, found {found}", likely)
        expect(
            t.dtype == given[like].dtype,
            f"{name}: expected {given[like].dtype}, found {t.dtype}",
            "the type is lost (float(), torch.zeros without dtype=): a gradient has the type of its"
            " tensor",
        )
    return dict(zip(likes, returned, strict=True))


def _any_device(student: _Function, arguments: dict[str, Any]) -> None:
    """On meta tensors, which have no values, the result is a meta tensor, too: nothing is made on
    the CPU, and nothing read."""
    moved = [t.to("meta") if isinstance(t, Tensor) else t for t in arguments.values()]
    likely = (
        "you make a tensor without device= (torch.zeros, torch.eye), or read values (item, float,"
        " if): stay on the arguments' device"
    )
    try:
        returned = student(*moved)
    except RuntimeError as error:
        fail(
            "expected it to run on any device, found an error on meta tensors:"
            f" {str(error).splitlines()[0]}",
            likely,
        )
    for t in returned if isinstance(returned, tuple | list) else [returned]:
        expect(
            t.device.type == "meta",
            f"expected the result on the device of the arguments, meta, found {t.device}",
            likely,
        )


def _finite(found: Tensor, case: str, likely: str) -> None:
    for number in found[~found.isfinite()][:1]:
        fail(f"{case}: expected numbers, found {number.item()}", likely)


def _autograd(
    function: _Function, dy: Tensor, arguments: dict[str, Any], wanted: str
) -> list[Tensor]:
    """The gradients of sum(dy * function(...)), computed in float64, in the arguments' own type."""
    wide = {
        name: t.double().clone() if isinstance(t, Tensor) else t for name, t in arguments.items()
    }
    leaves = {name: wide[name].requires_grad_() for name in wanted.split()}
    grads = torch.autograd.grad(
        (function(*wide.values()) * dy.double()).sum(), list(leaves.values())
    )
    return [grad.to(arguments[name].dtype) for grad, name in zip(grads, leaves, strict=True)]


# 7.1
# -------------------------------------------------------------------------------------------------
def lora_linear_backward(
    student: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], _Three],
) -> None:
    """7.1: `lora_linear_backward(dy, x, weight, A, B, scale)` -> (dx, dA, dB) of y = x W^T + scale
    (x A^T) B^T, B A never formed."""
    for seed, lead, N, K, r, scale, dtype in (
        (0, (2, 3), 4, 5, 3, 2.5, torch.float32),
        (1, (7,), 6, 3, 2, -0.5, torch.float64),
        (2, (1, 1), 3, 4, 1, 0.25, torch.float32),
        (3, (2, 2, 3), 3, 3, 3, 3.0, torch.float32),
        (4, (), 5, 2, 4, 1.5, torch.float32),
    ):
        dy, x, weight, A, B = (
            t.to(dtype) for t in randn(seed, (*lead, N), (*lead, K), (N, K), (r, K), (N, r))
        )
        _lora_backward_case(student, dy, x, weight, A, B, scale)
    dy, x, weight, A, B = randn(5, (2, 3, 40), (2, 3, 48), (40, 48), (2, 48), (40, 2))
    large = {"dy": dy, "x": x, "weight": weight, "A": A, "B": B, "scale": 4.0}
    stays_small(
        student,
        large,
        40 * 48,
        "you form B A, or dy^T x, as large as W itself; go through the r numbers h = x A^T and dh ="
        " dy B instead",
    )
    _any_device(student, large)
    passed(
        "lora_linear_backward",
        "dx",
        "dA",
        "dB",
        "the scale",
        "any leading shape",
        "B A never formed",
        "type and device",
        "arguments untouched",
    )


def _lora_backward_case(
    student: _Function, dy: Tensor, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scale: float
) -> None:
    tokens, r = dy[..., 0].numel(), len(A)
    found = _by_hand(
        student,
        {"dy": dy, "x": x, "weight": weight, "A": A, "B": B, "scale": scale},
        {"dx": "x", "dA": "A", "dB": "B"},
    )
    naive = {"x": x, "weight": weight, "A": A, "B": B}
    dx, dA, dB = _autograd(
        lambda x, weight, A, B: dense(x, weight + scale * product(A, B), 0.0), dy, naive, "x A B"
    )
    frozen = dense(dy, weight.T, 0.0)
    case = f"for x {list(x.shape)}, weight {len(weight)} x {len(weight.T)}, rank {r}, scale {scale}"
    mistakes = {
        "the update's share is missing: x reaches y through A and B as well": frozen,
        "the frozen layer's share is missing: W gets no gradient, but passes one on": dx - frozen,
        "the update's share is not scaled": frozen + (dx - frozen) / scale,
        "the update's share is scaled twice": frozen + (dx - frozen) * scale,
        "everything is scaled; the scale belongs to the update alone, not to dy W": (
            frozen * scale + (dx - frozen)
        ),
        "the update's share is subtracted": 2 * frozen - dx,
    }
    if len(weight) == len(weight.T):
        mistakes["you multiply by W^T: forward it is x W^T, backward dy W"] = (
            dense(dy, weight, 0.0) + dx - frozen
        )
    same(f"dx {case}", found["dx"], dx, mistakes)
    flat_dy, flat_x = dy.reshape(-1, len(weight)), x.reshape(-1, len(weight.T))
    for name, right, formula, one in (
        ("dA", dA, "scale B^T dy^T x", product(flat_x[-1:], (flat_dy @ B)[-1:].T) * scale),
        ("dB", dB, "scale dy^T x A^T", product((flat_x @ A.T)[-1:], flat_dy[-1:].T) * scale),
    ):
        mistakes = {
            f"the scale is missing in {name} = {formula}": right / scale,
            f"the scale counts once in {name} = {formula}; is it in h or dh already?": (
                right * scale
            ),
            "you take the mean over the tokens; the gradient of a shared factor is the sum": (
                right / tokens
            ),
            "you divide by the rank; the factor is scale, and it is given": right / r,
            "one token alone is counted; sum over all of them": one,
            "the sign is turned": -right,
            f"{name} is zero: A and B both train": torch.zeros_like(right),
        }
        if len(dA) == len(dA.T) == len(dB):
            mistakes |= {
                "the order is (dx, dA, dB)": dB if name == "dA" else dA,
                f"{name} is transposed": right.T,
            }
        same(f"{name} {case}", found[name], right, mistakes)


# 7.2
# -------------------------------------------------------------------------------------------------
class _Operations(TorchDispatchMode):
    """Remembers the names of all operations that do more than reserve memory or look at a tensor in
    another way."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        out = func(*args, **(kwargs or {}))
        if (
            "empty" not in name
            and not func.is_view
            and any(isinstance(t, Tensor) for t in (out, *args))
        ):
            self.names.append(name)
        return out


def attention_fake(student: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """7.2: `attention_fake(q, k, v)` -> empty (out, lse) as the operation would return them."""
    cases = (
        ((2, 3, 5, 7, 4, 6), torch.float32, "cpu"),
        ((1, 2, 4, 3, 5, 5), torch.float16, "cpu"),
        ((3, 1, 6, 6, 2, 2), torch.bfloat16, "cpu"),
        ((2, 4, 3, 8, 6, 5), torch.float64, "cpu"),
        ((2, 3, 4, 6, 5, 7), torch.float16, "meta"),
        ((64, 12, 577, 197, 64, 96), torch.float32, "meta"),
    )
    for sizes, dtype, device in cases:
        _fake_case(student, *sizes, dtype, device)
    passed(
        "attention_fake",
        "both shapes",
        "both types",
        "contiguous",
        "the device, on meta tensors",
        "nothing computed, read or written",
    )


def _fake_case(
    student: _Function,
    B: int,
    H: int,
    N: int,
    S: int,
    d: int,
    e: int,
    dtype: torch.dtype,
    device: str,
) -> None:
    # As a fused projection gives them: heads and tokens exchanged, so not contiguous.
    q, k, v = (
        torch.ones(B, n, H, w, dtype=dtype, device=device).transpose(1, 2)
        for n, w in ((N, d), (S, d), (S, e))
    )
    case = f"for q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}, {dtype}, on {device}"
    with _Operations() as operations:
        try:
            returned = student(q, k, v)
        except RuntimeError as error:
            if device == "cpu":
                raise
            fail(
                f"expected it to run on meta tensors, found {str(error).splitlines()[0]}",
                "there are no values to read while a program is traced: item, float, if and a copy"
                " to the CPU are out",
            )
    fills = (
        "zeros",
        "ones",
        "full",
        "new_zeros",
        "new_ones",
        "new_full",
        "zeros_like",
        "ones_like",
        "fill_",
        "zero_",
    )
    copying, reads = ("_to_copy", "clone", "copy_"), ("_local_scalar_dense", "equal")
    for group, likely in (
        (
            reads,
            (
                "you read a value; a rule for shapes never does, as there are none while a program"
                " is traced"
            ),
        ),
        (
            set(operations.names) - {*fills, *copying},
            "you compute the attention itself to learn its shape; write the shape down instead",
        ),
        (fills, "you fill the tensors; empty reserves memory and writes nothing"),
        (
            copying,
            (
                "a conversion or a copy is an operation, too: make the tensor in its type (dtype=)"
                " and shape at once"
            ),
        ),
    ):
        names = [name for name in operations.names if name in group]
        expect(
            not names,
            f"{case}: expected empty tensors and nothing else, found {names[:1]} at work",
            likely,
        )
    expect(
        isinstance(returned, tuple | list)
        and len(returned) == 2
        and all(isinstance(t, Tensor) for t in returned),
        f"{case}: expected two tensors, found {type(returned).__name__}",
        "return (out, lse)",
    )
    # Which mistake makes which shape; where two sizes agree, the last one counts, and the first
    # case has six different ones.
    shapes = {
        (B, H, S, e): "there is one output per query: N rows from q, not S from v",
        (B, H, N, d): "its width is v's e, not q's d",
        (B, H, N, S): "that is the shape of the scores, which a fused operation never writes",
        (B, N, H, e): "heads come before tokens",
        (B, H, N, 1): "there is no last dimension of 1",
        (B, H, S): "there is one number per query: N, not S",
        (B, H): "there is one number per query, not per head",
        (B, N): "there is one number per query and head",
        (B, H, N): "out comes first, lse second",
        (B, H, N, e): "out comes first, lse second",
    }
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    for name, t, shape, kind in (
        ("out", returned[0], (B, H, N, e), dtype),
        ("lse", returned[1], (B, H, N), precise),
    ):
        expect(
            tuple(t.shape) == shape,
            f"{name} {case}: expected shape {list(shape)}, found {list(t.shape)}",
            shapes.get(tuple(t.shape), "out is [B, H, N, e], lse is [B, H, N]"),
        )
        expect(
            t.dtype == kind,
            f"{name} {case}: expected {kind}, found {t.dtype}",
            (
                "out has the type of its inputs; give dtype= or use q.new_empty"
                if name == "out"
                else (
                    "float64 stays float64: at least float32, not always"
                    if dtype == torch.float64
                    else (
                        "a sum of exponentials is kept in float32 where the inputs are half"
                        " precision"
                    )
                )
            ),
        )
        expect(
            t.device.type == device,
            f"{name} {case}: expected it on {device}, found {t.device}",
            "torch.empty without device= is on the CPU; use q.new_empty or device=q.device",
        )
        expect(
            t.is_contiguous(),
            f"{name} {case}: expected a contiguous tensor, found strides {t.stride()}",
            "empty_like copies the strides of its argument, whose heads and tokens are exchanged;"
            " the operation writes contiguously",
        )


# 7.3
# -------------------------------------------------------------------------------------------------
class _Tile(NamedTuple):
    """Program (i, j) and its tensor, entry by entry."""

    i: int
    j: int
    BM: int
    BN: int
    M: int
    N: int
    sm: int
    sn: int

    def places(
        self,
        row: Callable[[_Tile, int], int] = lambda t, r: t.i * t.BM + r,
        col: Callable[[_Tile, int], int] = lambda t, c: t.j * t.BN + c,
        offset: Callable[[_Tile, int, int], int] = lambda t, row, col: row * t.sm + col * t.sn,
        inside: Callable[[_Tile, int, int], bool] = lambda t, row, col: row < t.M and col < t.N,
    ) -> tuple[Tensor, Tensor]:
        """Offsets, int64 [BM, BN], and mask, 0 and 1 [BM, BN]."""
        grid = [(row(self, r), col(self, c)) for r in range(self.BM) for c in range(self.BN)]
        offsets, mask = (
            torch.tensor([offset(self, *place) for place in grid]),
            torch.tensor([inside(self, *place) for place in grid]),
        )
        return offsets.view(self.BM, self.BN), mask.view(self.BM, self.BN).long()


_TILE_MISTAKES: dict[str, dict[str, Any]] = {
    "the ids are exchanged: i counts tiles down, j across": {
        "row": lambda t, r: t.j * t.BM + r,
        "col": lambda t, c: t.i * t.BN + c,
    },
    "the block sizes are exchanged: tile i starts at row i BM, tile j at column j BN": {
        "row": lambda t, r: t.i * t.BN + r,
        "col": lambda t, c: t.j * t.BM + c,
    },
    "the program's place is missing: tile i starts at row i BM": {
        "row": lambda t, r: r,
        "col": lambda t, c: c,
    },
    "tile i starts at row i BM, not at row i": {
        "row": lambda t, r: t.i + r,
        "col": lambda t, c: t.j + c,
    },
    "ids count from 0": {
        "row": lambda t, r: (t.i - 1) * t.BM + r,
        "col": lambda t, c: (t.j - 1) * t.BN + c,
    },
    "nothing is masked: the last tiles reach past the end": {"inside": lambda t, row, col: True},
    "the mask is turned round: true where the tensor is": {
        "inside": lambda t, row, col: row >= t.M or col >= t.N
    },
    "off by one: the last row is M - 1, so row < M": {
        "inside": lambda t, row, col: row <= t.M and col <= t.N
    },
    "off by one: row M - 1 and column N - 1 are part of the tensor": {
        "inside": lambda t, row, col: row < t.M - 1 and col < t.N - 1
    },
    "the columns are not masked: past the end of a row begins the next": {
        "inside": lambda t, row, col: row < t.M
    },
    "the rows are not masked": {"inside": lambda t, row, col: col < t.N},
    "both have to be inside, row and column: &, not |": {
        "inside": lambda t, row, col: row < t.M or col < t.N
    },
    "M and N are exchanged in the mask: rows end at M, columns at N": {
        "inside": lambda t, row, col: row < t.N and col < t.M
    },
    "you compare the offset with M N: past the end of a row that is the next row, inside the tensor and wrong": {
        "inside": lambda t, row, col: row * t.sm + col * t.sn < t.M * t.N
    },
    "you compare the place in the tile with M and N, not the place in the tensor": {
        "inside": lambda t, row, col: row - t.i * t.BM < t.M and col - t.j * t.BN < t.N
    },
    "the strides are exchanged: one row further is stride_m places further": {
        "offset": lambda t, row, col: row * t.sn + col * t.sm
    },
    "you take N as the stride of a row; use the strides that are given, a transposed tensor has others": {
        "offset": lambda t, row, col: row * t.N + col
    },
    "the columns have a stride, too": {"offset": lambda t, row, col: row * t.sm + col},
    "the rows have a stride, too": {"offset": lambda t, row, col: row + col * t.sn},
    "a large tensor has more than 2^31 places: multiply in int64, convert before and not after": {
        "offset": lambda t, row, col: (row * t.sm + col * t.sn + 2**31) % 2**32 - 2**31
    },
}


def tile_places(
    student: Callable[[int, int, int, int, int, int, int, int], tuple[Tensor, Tensor]],
) -> None:
    """7.3: `tile_places(i, j, BM, BN, M, N, stride_m, stride_n)` -> (offsets, mask) of program (i,
    j), as a Triton kernel computes them."""
    tensors = (
        (2, 4, 5, 7, 7, 1),
        (4, 4, 6, 9, 1, 6),
        (4, 2, 3, 10, 23, 2),
        (4, 2, 8, 4, 4, 1),
        (8, 2, 4, 1, 3, 3),
    )  # BM, BN, M, N, strides
    programs = [
        (ij, t)
        for t in tensors
        for ij in itertools.product(range(math.ceil(t[2] / t[0])), range(math.ceil(t[3] / t[1])))
    ]
    tiles = [_Tile(*ij, *t) for ij, t in programs] + [
        _Tile(600, 1, 4, 2, 2403, 3, 2**20, 1)
    ]  # the last has more than 2^31 places
    found = [_tile_case(student, t) for t in tiles]
    wrong = [t for t, f in zip(tiles, found, strict=True) if not _same_places(t, f, t.places())]
    if not wrong:
        passed(
            "tile_places",
            "every tile of five tensors",
            "the last tiles",
            "any strides",
            "offsets beyond 2^31",
            "a mask of two conditions",
        )
        return
    # One tile looks the same for several mistakes; all of them together do not.
    likely = [
        sentence
        for sentence, mistake in _TILE_MISTAKES.items()
        if all(_same_places(t, f, t.places(**mistake)) for t, f in zip(tiles, found, strict=True))
    ]
    t = wrong[0]
    (offsets, mask), (right, inside) = found[tiles.index(t)], t.places()
    place = next(
        (r, c)
        for r in range(t.BM)
        for c in range(t.BN)
        if mask[r, c] != inside[r, c] or (inside[r, c] and offsets[r, c] != right[r, c])
    )
    name, ours, theirs = (
        ("mask", inside.bool(), mask.bool())
        if mask[place] != inside[place]
        else ("offset", right, offsets)
    )
    fail(
        f"program ({t.i}, {t.j}), blocks {t.BM} x {t.BN}, tensor {t.M} x {t.N} with strides"
        f" ({t.sm}, {t.sn}): at {list(place)} expected the {name} {ours[place].item()}, found"
        f" {theirs[place].item()}",
        "".join(likely[:1]),
    )


def _tile_case(student: _Function, t: _Tile) -> tuple[Tensor, Tensor]:
    returned = student(*t)
    expect(
        isinstance(returned, tuple | list)
        and len(returned) == 2
        and all(isinstance(part, Tensor) for part in returned),
        f"expected two tensors, found {type(returned).__name__}",
        "return (offsets, mask)",
    )
    for name, part, kind in (
        ("offsets", returned[0], torch.int64),
        ("mask", returned[1], torch.bool),
    ):
        expect(
            tuple(part.shape) == (t.BM, t.BN),
            f"{name}: expected shape {[t.BM, t.BN]}, found {list(part.shape)}",
            (
                "rows go down and columns across: rows[:, None] and cols[None, :]"
                if tuple(part.shape) == (t.BN, t.BM)
                else (
                    "rows[:, None] has a second dimension, cols[None, :] a first one: broadcasting"
                    " them makes the grid"
                )
            ),
        )
        expect(
            part.dtype == kind,
            f"{name}: expected {kind}, found {part.dtype}",
            (
                "a large tensor has more than 2^31 places, too many for int32"
                if part.dtype == torch.int32
                else "offsets are whole numbers, the mask is true or false; return (offsets, mask)"
            ),
        )
    return returned[0], returned[1].long()


def _same_places(t: _Tile, found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    """The same mask and, where the tensor is, the same offsets; what is masked is never read, so
    its offset does not matter."""
    here = t.places()[1].bool()
    return torch.equal(found[1], expected[1]) and torch.equal(found[0][here], expected[0][here])


# 7.4
# -------------------------------------------------------------------------------------------------
class _Blocks:
    """Scores [..., R, S] and values [..., S, e] in blocks, once. What was handed out is gone when
    the next block comes."""

    def __init__(self, scores: Tensor, values: Tensor, sizes: tuple[int, ...]) -> None:
        self.scores, self.values, self.sizes, self.seen, self.asked, self.written = (
            scores,
            values,
            sizes,
            0,
            0,
            False,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked += 1
        expect(
            self.asked == 1,
            "expected one pass over the blocks, found a second",
            "you go through the blocks twice, once for the maximum; "
            "carry the maximum along, and correct what you have when it rises",
        )
        return self.generate()

    def generate(self) -> Iterator[tuple[Tensor, Tensor]]:
        for s, v in zip(
            self.scores.split(self.sizes, -1), self.values.split(self.sizes, -2), strict=True
        ):
            handed = s.clone(), v.clone()
            self.seen += 1
            yield handed
            self.written |= not (torch.equal(handed[0], s) and torch.equal(handed[1], v))
            for t in handed:
                t.fill_(torch.nan)


def online_attention(student: Callable[[Iterable[tuple[Tensor, Tensor]]], Tensor]) -> None:
    """7.4: `online_attention(blocks)` = softmax(scores) values, from one pass over blocks of
    both."""
    inf = torch.inf
    kept = (
        "you use a block after the next was asked for; its memory is gone. Carry maximum, sum and"
        " weighted sum instead"
    )
    start = "the running maximum has to start at -inf: above all the scores, every exp gives 0"
    overflow = (
        "exp of a large score is infinite: subtract the running maximum first, and rescale by"
        " exp(old - new), never above 1"
    )
    level = (
        "every row needs a maximum of its own; under that of another row, all its exponentials"
        " are 0"
    )
    masked = (
        "-inf - (-inf) is no number: a row with nothing but -inf so far has to keep its sums at 0"
    )
    plain, low, mixed = (
        torch.tensor(0.0),
        torch.tensor(-130.0),
        torch.tensor([[130.0], [-120.0], [0.0]]),
    )
    for seed, lead, sizes, e, level_of, hidden, likely, dtype in (
        (0, (3,), (4, 4, 4), 2, plain, None, kept, torch.float32),
        (1, (2, 3), (3, 5, 1), 4, plain, None, kept, torch.float64),
        (2, (3,), (6,), 3, plain, None, kept, torch.float32),
        (3, (3,), (1, 2, 3), 2, -low, None, overflow, torch.float32),
        (4, (3,), (4, 3), 2, low, None, start, torch.float32),
        (5, (3,), (2, 5, 2), 3, mixed, None, level, torch.float32),
        (6, (2, 3), (3, 3, 2), 2, plain, slice(0, 4), masked, torch.float32),
        (7, (3,), (3, 3, 2), 2, plain, slice(5, 8), masked, torch.float32),
        (
            8,
            (3,),
            (2, 2),
            2,
            plain,
            slice(0, 4),
            masked + ". A row that is masked throughout gives zeros",
            torch.float32,
        ),
    ):
        S = sum(sizes)
        scores, values = (t.to(dtype) for t in randn(seed, (*lead, S), (*lead[:-1], S, e)))
        scores = 3 * scores + level_of.to(dtype)
        if hidden:
            scores[..., :2, hidden] = -inf  # for some rows, not for all
        _online_case(student, scores, values, sizes, likely)
    scores, values = randn(9, (2, 4, 60), (2, 60, 3))
    stays_small(
        lambda scores, values: student(_Blocks(scores, values, (10,) * 6)),
        {"scores": scores, "values": values},
        scores.numel(),
        "you collect the blocks and join them, so the whole row is there again; carry maximum, sum"
        " and weighted sum",
    )
    passed(
        "online_attention",
        "values against the whole row",
        "uneven blocks",
        "large, small and mixed scores",
        "masked blocks and rows",
        "one pass, one block at a time",
        "blocks untouched",
    )


def _online_case(
    student: _Function, scores: Tensor, values: Tensor, sizes: tuple[int, ...], likely: str
) -> None:
    blocks = _Blocks(scores, values, sizes)
    found = student(blocks)
    s, v = scores.double(), values.double()

    def softmax(s: Tensor) -> Tensor:  # entry by entry; a row without any gives zeros
        top = s.amax(-1, keepdim=True)
        p = torch.where(s == -torch.inf, 0.0, (s - torch.where(top == -torch.inf, 0.0, top)).exp())
        return p / p.sum(-1, keepdim=True).clamp(min=1e-300)

    case = f"scores {list(scores.shape)} in blocks of {sizes}"
    expected = (softmax(s) @ v).to(scores.dtype)
    expect(
        isinstance(found, Tensor),
        f"{case}: expected a tensor, found {type(found).__name__}",
        "return weighted sum / sum",
    )
    expect(
        found.shape == expected.shape,
        f"{case}: expected shape {list(expected.shape)}, found {list(found.shape)}",
        "keep the last dimension of maximum and sum (keepdim=True), so that they fit to [...,"
        " R, e]",
    )
    expect(
        found.dtype == scores.dtype,
        f"{case}: expected {scores.dtype}, found {found.dtype}",
        "the type is lost: start from the first block, or with new_zeros and new_full",
    )
    _finite(found, case, likely)
    parts = list(zip(s.split(sizes, -1), v.split(sizes, -2), strict=True))
    tops = [
        torch.stack([part.amax(-1, keepdim=True) for part, _ in parts[: n + 1]]).amax(0)
        for n in range(len(parts))
    ]
    total, weighted = _running(
        parts, tops, lambda old, new: (old - new).exp(), lambda old, new: (old - new).exp()
    )
    raw_total, raw_weighted = _running(parts, tops, lambda old, new: 1.0, lambda old, new: 1.0)
    wrong = {
        "sum and weighted sum keep their old scale: when the maximum rises, multiply both by exp(old - new)": (
            raw_weighted / raw_total
        ),
        "the sum keeps its old scale: when the maximum rises, multiply it by exp(old - new)": (
            weighted / raw_total
        ),
        "the weighted sum keeps its old scale: when the maximum rises, multiply it by exp(old - new)": (
            raw_weighted / total
        ),
        "the factor is turned round: exp(old - new), at most 1": _quotient(
            _running(
                parts, tops, lambda old, new: (new - old).exp(), lambda old, new: (new - old).exp()
            )
        ),
        "every block has its own softmax and they are averaged; a block counts by its share of the sum": (
            sum(softmax(part) @ value for part, value in parts) / len(parts)
        ),
        "every block has its own softmax and they are added; divide once, by the sum over all blocks": sum(
            (softmax(part) @ value for part, value in parts), torch.zeros_like(weighted)
        ),
        "you divide by the sum in every block; once, at the end": _divided(parts, tops),
        "you never divide by the sum": weighted,
        "only the last block is left: add to what was carried": (
            softmax(parts[-1][0]) @ parts[-1][1]
        ),
        "the last block is missing": (
            softmax(torch.cat([part for part, _ in parts[:-1]] or [s], -1))
            @ torch.cat([value for _, value in parts[:-1]] or [v], -2)
        ),
        likely: torch.where(found == 0, 0.0, expected),
    }
    same(
        case,
        found,
        expected,
        {sentence: w.to(scores.dtype).nan_to_num() for sentence, w in wrong.items()},
        tolerance=3e-5,
    )
    expect(
        blocks.seen == len(sizes),
        f"{case}: expected {len(sizes)} blocks to be used, found {blocks.seen}",
        "go through all blocks",
    )
    expect(
        not blocks.written,
        f"{case}: expected the blocks to stay as they were, found one changed",
        "you wrote into a block (-=, exp_, masked_fill_): make a new tensor",
    )


def _running(
    parts: list[tuple[Tensor, Tensor]],
    tops: list[Tensor],
    of_sum: _Function,
    of_weighted: _Function,
) -> tuple[Tensor, Tensor]:
    """Sum and weighted sum with the factors given; for the mistakes, so without care for masked
    rows."""
    total, weighted, old = (
        torch.zeros_like(tops[0]),
        torch.zeros_like(parts[0][0] @ parts[0][1]),
        tops[0],
    )
    for (s, v), top in zip(parts, tops, strict=True):
        p = (s - top).exp()
        total = total * of_sum(old, top) + p.sum(-1, keepdim=True)
        weighted = weighted * of_weighted(old, top) + p @ v
        old = top
    return total, weighted


def _quotient(sums: tuple[Tensor, Tensor]) -> Tensor:
    return sums[1] / sums[0]


def _divided(parts: list[tuple[Tensor, Tensor]], tops: list[Tensor]) -> Tensor:
    total, out, old = (
        torch.zeros_like(tops[0]),
        torch.zeros_like(parts[0][0] @ parts[0][1]),
        tops[0],
    )
    for (s, v), top in zip(parts, tops, strict=True):
        p = (s - top).exp()
        total = total * (old - top).exp() + p.sum(-1, keepdim=True)
        out = (out * (old - top).exp() + p @ v) / total
        old = top
    return out


# 7.5
# -------------------------------------------------------------------------------------------------
def _kd(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    """Row by row: the mean of T^2 KL(p || q)."""
    rows = []
    for z, t in zip(
        student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1]), strict=True
    ):
        log_q, log_p = z / T - torch.logsumexp(z / T, 0), t / T - torch.logsumexp(t / T, 0)
        rows.append(
            sum((a.exp() * (a - b) for a, b in zip(log_p, log_q, strict=True)), torch.zeros(()))
        )
    return T**2 * torch.stack(rows).mean()


def kd_gradient(student: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """7.5: `kd_gradient(student, teacher, temperature)`: the gradient of the mean over rows of T^2
    KL(p || q) to the student's logits."""
    for seed, shape, T, size, dtype in (
        (0, (3, 5), 4.0, 2.0, torch.float32),
        (1, (2, 3, 4), 0.5, 1.0, torch.float64),
        (2, (1, 7), 1.0, 3.0, torch.float32),
        (3, (4, 4), 2.0, 300.0, torch.float32),
        (4, (6,), 3.0, 2.0, torch.float32),
    ):
        z, t = (size * logits.to(dtype) for logits in randn(seed, shape, shape))
        _kd_case(student, z, t, T, large=size > 100)
    z, t = randn(5, (3, 4), (3, 4))
    _any_device(student, {"student": z, "teacher": t, "temperature": 2.0})
    passed(
        "kd_gradient",
        "values for five temperatures",
        "mean over all rows",
        "large logits",
        "no autograd",
        "type and device",
        "arguments untouched",
    )


def _kd_case(function: _Function, z: Tensor, t: Tensor, T: float, large: bool) -> None:
    arguments = {"student": z, "teacher": t, "temperature": T}
    found = _by_hand(function, arguments, {"the gradient": "student"})["the gradient"]
    case = f"the gradient for logits {list(z.shape)}, temperature {T}"
    _finite(
        found,
        case,
        "exp of a large logit is infinite: use softmax, which subtracts the maximum first",
    )
    (right,) = _autograd(
        lambda student, teacher: _kd(student, teacher, T),
        torch.ones(()),
        {"student": z, "teacher": t},
        "student",
    )
    rows, classes = z[..., 0].numel(), z.shape[-1]
    s, u = z.double(), t.double()
    q, p = (s / T).softmax(-1), (u / T).softmax(-1)
    label = torch.zeros_like(p).scatter(-1, u.argmax(-1, keepdim=True), 1.0)
    ratio = (s / T).log_softmax(-1) - (u / T).log_softmax(-1)
    wrong = {
        "the sign is turned: q - p, the student's answer minus the teacher's": -right.double(),
        "T^2 is missing: the loss has the factor T^2, and the chain rule one 1 / T, so T is left": (
            right.double() / T**2
        ),
        "1 / T is missing: the logits are divided by T, so the chain rule gives 1 / T, and T^2 / T = T is left": (
            right.double() * T
        ),
        "the factor T is missing: T^2 from the loss, 1 / T from the chain rule": right.double() / T,
        "the mean over the rows is missing: divide by their number": right.double() * rows,
        "you divide by all entries; the mean is over the rows": right.double() / classes,
        "the rows of all dimensions in front count, not the first alone": (
            right.double() * rows / len(z)
        ),
        "the student's logits are not divided by T": T * (s.softmax(-1) - p) / rows,
        "the teacher's logits are not divided by T": T * (q - u.softmax(-1)) / rows,
        "neither is divided by T before the softmax": T * (s.softmax(-1) - u.softmax(-1)) / rows,
        "the logits are multiplied by T; divide": (
            T * ((s * T).softmax(-1) - (u * T).softmax(-1)) / rows
        ),
        "the softmax runs over the rows; it belongs to the last dimension, the classes": (
            T * ((s / T).softmax(0) - (u / T).softmax(0)) / rows
        ),
        "student and teacher are exchanged, KL(q || p): the teacher's answer weighs the difference": (
            T * q * (ratio - (q * ratio).sum(-1, keepdim=True)) / rows
        ),
        "you take the teacher's best class as a label; its soft answer is what the student learns": (
            T * (q - label) / rows
        ),
        "the logits themselves are compared: that is a squared error": (s - u) / rows,
    }
    same(
        case,
        found,
        right,
        {sentence: w.to(z.dtype) for sentence, w in wrong.items()},
        tolerance=1e-4 if large else 1e-5,
    )


# 7.6
# -------------------------------------------------------------------------------------------------
def kron_backward(student: Callable[[Tensor, Tensor, Tensor, Tensor], _Three]) -> None:
    """7.6: `kron_backward(dy, x, A, B)` -> (dx, dA, dB) of y = x (A (x) B)^T, with the large matrix
    never formed."""
    for seed, lead, a, p, b, q, dtype in (
        (0, (2, 2), 3, 3, 3, 3, torch.float32),
        (1, (2, 3), 2, 3, 4, 5, torch.float64),
        (2, (1,), 4, 1, 2, 3, torch.float32),
        (3, (), 1, 5, 3, 2, torch.float32),
        (4, (4,), 2, 2, 3, 3, torch.float32),
    ):
        dy, x, A, B = (
            t.to(dtype) for t in randn(seed, (*lead, a * b), (*lead, p * q), (a, p), (b, q))
        )
        _kron_backward_case(student, dy, x, A, B)
    dy, x, A, B = randn(5, (3, 192), (3, 180), (12, 10), (16, 18))
    large = {"dy": dy, "x": x, "A": A, "B": B}
    stays_small(
        student,
        large,
        A.numel() * B.numel(),
        "you form A (x) B, or its gradient, with every pair of entries; cut x and dy into grids"
        " instead",
    )
    _any_device(student, large)
    passed(
        "kron_backward",
        "dx",
        "dA",
        "dB",
        "any leading shape",
        "the matrix never formed",
        "type and device",
        "arguments untouched",
    )


def _kron_backward_case(student: _Function, dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> None:
    (a, p), (b, q), tokens = A.shape, B.shape, x[..., 0].numel()
    found = _by_hand(student, {"dy": dy, "x": x, "A": A, "B": B}, {"dx": "x", "dA": "A", "dB": "B"})

    def gradients(dy: Tensor, x: Tensor, A: Tensor, B: Tensor) -> list[Tensor]:
        return _autograd(kron, dy, {"x": x, "A": A, "B": B}, "x A B")

    right = gradients(dy, x, A, B)
    columns = x.unflatten(-1, (q, p)).mT.flatten(-2)
    tall = dy.unflatten(-1, (b, a)).mT.flatten(-2)
    wrong = {
        "x is cut column by column; X [p, q] has x[0], ..., x[q - 1] in its first row": gradients(
            dy, columns, A, B
        ),
        "dy is cut column by column; dY [a, b] has dy[0], ..., dy[b - 1] in its first row": (
            gradients(tall, x, A, B)
        ),
        "dX is read column by column; flatten it row by row": [
            right[0].unflatten(-1, (p, q)).mT.flatten(-2),
            *right[1:],
        ],
        "you take the mean over the tokens; the gradient of a shared factor is the sum": [
            right[0],
            *(g / tokens for g in right[1:]),
        ],
        "one token alone is counted; sum over all of them": [
            right[0],
            *gradients(dy.reshape(-1, a * b)[-1], x.reshape(-1, p * q)[-1], A, B)[1:],
        ],
        "a gradient is zero: x, A and B all have one": [torch.zeros_like(g) for g in right],
        "the sign is turned": [-g for g in right],
    }
    if a == p and b == q:
        wrong |= {
            "A is transposed: forward A X B^T, so backward dX = A^T dY B": gradients(dy, x, A.T, B),
            "B is transposed: forward A X B^T, so backward dX = A^T dY B": gradients(dy, x, A, B.T),
            "that is the forward pass: backward dX = A^T dY B, each factor the other way": (
                gradients(dy, x, A.T, B.T)
            ),
            "B is missing: dY meets B on its way to A, and to x": gradients(
                dy, x, A, torch.eye(b, dtype=B.dtype)
            ),
            "A is missing: dY meets A on its way to B, and to x": gradients(
                dy, x, torch.eye(a, dtype=A.dtype), B
            ),
            "it is transposed: a gradient has the shape of its tensor": [
                right[0],
                right[1].T,
                right[2].T,
            ],
        }
        if a == b:
            wrong |= {
                "the factors are exchanged: A works on the rows of the grid, B on its columns": (
                    gradients(dy, x, B, A)
                ),
                "the order is (dx, dA, dB)": [right[0], right[2], right[1]],
            }
    for i, (name, t) in enumerate(found.items()):
        same(
            f"{name} for x {list(x.shape)}, A {a} x {p}, B {b} x {q}",
            t,
            right[i],
            {sentence: w[i] for sentence, w in wrong.items()},
        )
