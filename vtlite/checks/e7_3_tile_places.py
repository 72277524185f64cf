"""Exercise 7.3, `tile_places`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtlite.checks.base import expect, fail, passed
from vtlite.checks.guess import guess
from vtlite.checks.harness import (
    Answer,
    check,
)


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


@check
def tile_places(student: Answer) -> None:
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
        "".join(likely[:1]) or guess((theirs if name == "offset" else theirs.long()), ours.long()),
    )


def _tile_case(student: Answer, t: _Tile) -> tuple[Tensor, Tensor]:
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
