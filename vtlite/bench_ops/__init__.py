"""The benchmark of the custom operations (`python -m vtlite bench-ops`), by its parts."""

from vtlite.accounting import kept_bytes
from vtlite.bench_ops.cases import OPERATIONS, SIZES, TINY, leaves_of, make_inputs, tensors_of
from vtlite.bench_ops.command import bench_ops
from vtlite.bench_ops.models import ConcatenatedPrompts, pairs
from vtlite.bench_ops.tables import estimate_table, model_line
from vtlite.bench_ops.traffic import ESTIMATED, Machine, count, estimate, least_bytes

__all__ = [
    "ESTIMATED",
    "OPERATIONS",
    "SIZES",
    "TINY",
    "ConcatenatedPrompts",
    "Machine",
    "bench_ops",
    "count",
    "estimate",
    "estimate_table",
    "kept_bytes",
    "least_bytes",
    "leaves_of",
    "make_inputs",
    "model_line",
    "pairs",
    "tensors_of",
]
