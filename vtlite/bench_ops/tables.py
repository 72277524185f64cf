"""Rows as lines of Markdown tables."""

from __future__ import annotations

from typing import Any

from vtlite.bench_ops.traffic import Machine

Row = dict[str, Any]


HEADER = (
    "| operation | size | pass | plain, ms | compile | ours | of the limit | memory: plain |"
    " compile | ours |\n|---|---|---|---:|---:|---:|---:|---:|---:|---:|"
)


def line(row: Row) -> str:
    """Times of the other ways as multiples of speed: 2.00x is half the time of plain PyTorch."""
    cells = [row["operation"], row["size"], row["pass"], f"{1e3 * row['plain']['seconds']:.3f}"]
    cells += [f"{row[way]['speedup']:.2f}x" if way in row else "" for way in ("compile", "ours")]
    cells.append(f"{row['ours']['share_of_limit']:.0%}")
    cells += [
        mb(row[way]["memory_bytes"]) if way in row else "" for way in ("plain", "compile", "ours")
    ]
    return f"| {' | '.join(cells)} |"


def model_line(row: Row) -> str:
    usual, ours = row["usual"], row["ours"]
    cells = [
        row["models"],
        f"{1e3 * usual['seconds']:.1f}",
        f"{1e3 * ours['seconds']:.1f}",
        f"{row['step_ratio']:.2f}x",
    ]
    return f"| {' | '.join([*cells, mb(usual['memory_bytes']), mb(ours['memory_bytes'])])} |"


def estimate_table(rows: list[Row], limits: Machine) -> str:
    lines = [
        (
            f"An estimate for {limits.name} ({limits.source}: {limits.bandwidth / 1e12:.2f} TB/s,"
            f" {limits.flops / 1e12:.0f} Tflop/s), forward and"
        ),
        (
            "backward: bytes are counted, each kernel reading and writing once; nothing was run."
            " `ceiling` is the speed-up of a perfect kernel.\n"
        ),
        (
            "| operation | size | kernels: plain | ours | bytes moved: plain | ours | least | kept:"
            " plain | ours | Gflop | ceiling |"
        ),
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        plain, ours = row["plain"], row["ours"]
        lines.append(
            f"| {row['operation']} | {row['size']} | {plain['kernels']} | {ours['kernels']} |"
            f" {mb(plain['bytes'])} | {mb(ours['bytes'])} | {mb(row['least_bytes'])} |"
            f" {mb(plain['kept_bytes'])} | {mb(ours['kept_bytes'])} | {row['flops'] / 1e9:.1f} |"
            f" {row['ceiling']:.1f}x |"
        )
    return "\n".join(lines)


def mb(size: int | None) -> str:
    return (
        "" if size is None else f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
    )
