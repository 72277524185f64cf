"""The checks reject small mistakes that nobody thought of: every mutant of every solution."""

from __future__ import annotations

import ast
import contextlib
import io
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import nbformat
import pytest

from tests.checks.mutants import Mutant, mutants
from tests.checks.test_banks import EXERCISES, ROOT
from vtlite import checks
from vtlite.classroom.worker import definitions

SECONDS = 20  # what runs longer counts as rejected; a check itself takes a few at most
# Mutants that are right answers: a piece that the mutated line has and the solution's has not, or
# "before -> after" wherever it is, and why it changes nothing. All others must be rejected.
EQUIVALENT: dict[str, dict[str, str]] = {
    "cached_features": {"inference_mode": "no graph either way"},
    "layerwise_lrs": {"('head.', 'norm.')": "startswith knows no order"},
    "l2_sp_penalty": {"before - weights[name]": "it is squared"},
    "lp_ft_lrs": {
        "probe_steps - step": "cos(-x) = cos(x)",
        "probe_steps - total_steps": "cos(-x) = cos(x)",
    },
    "count_vit": {
        "image / patch": "patches fill the image",
        "D -> width": "D is width",
        "2 + 2": "2 * 2 = 2 + 2",
    },
    "class_texts": {
        "len(ends)": "one for each class",
        "M // -2": "counted from behind, it is the same place",
    },
    "similarity_logits": {
        "f = F.normalize(f)": "dimension 1 by default, the last of a matrix",
        "F.normalize(f, dim=1)": "a matrix: its last dimension is dimension 1",
        "cosines[:, :, -1]": "a dimension of size one",
    },
    "prompted_attention": {
        "P.shape[-1]": "tokens and prompts are equally wide",
        "weight.shape[-1]": "as wide as the tokens",
        "x.shape[2]": "three dimensions: the last is dimension 2",
        "chunk(3, dim=2)": "three dimensions: the last is dimension 2",
        "chunk(2, dim=2)": "three dimensions: the last is dimension 2",
        "unflatten(2,": "three dimensions: the last is dimension 2",
        "transpose(2, 1)": "exchanging knows no order",
        "transpose(1, -2)": "four dimensions: dimension -2 is dimension 2",
        "flatten(-2)": "four dimensions: dimension -2 is dimension 2",
    },
    "transport": {"(-1, -2)": "a sum knows no order"},
    "cocoop_logits": {
        "f = F.normalize(f)": "dimension 1 by default, the last of a matrix",
        "F.normalize(f, dim=1)": "a matrix: its last dimension is dimension 1",
        "[:, None]), dim=2)": "three dimensions: the last is dimension 2",
        "[:, :, -1]": "a dimension of size one",
    },
    "confident_entropy": {
        "log_softmax(1)": "a matrix: its last dimension is dimension 1",
        "log_p).sum(1)": "a matrix: its last dimension is dimension 1",
        "log_p).mean(-1)": "means have the order of sums",
        "max(int(share * len(logits)), 1)": "the maximum knows no order",
        "share * len(entropy)": "one for each view",
        "share * len(log_p)": "one for each view",
        "log_mean.exp() @ log_mean": "a product of two vectors is summed",
    },
    "framed": {
        "P, W = down.shape": "up and down have one shape",
        "images.new_zeros": "all have one type and device",
        "up.new_zeros": "all have one type and device",
        "down.new_zeros": "all have one type and device",
        "right.new_zeros": "all have one type and device",
        "C, right.shape[1]": "left and right have one shape",
        "inside, right], dim=-1": "three dimensions: the last is dimension 2",
    },
    "domain_answers": {
        "f = F.normalize(f)": "dimension 1 by default, the last of a matrix",
        "F.normalize(f, dim=1)": "a matrix: its last dimension is dimension 1",
        "abs().mean(-1)": "means have the order of sums",
        "abs().sum(2)": "three dimensions: the last is dimension 2",
        "centres - f[:, None]": "absolute values know no sign",
        "amin(1)": "a matrix: its last dimension is dimension 1",
        "range(len(distances))": "one for each image",
        "range(len(domains))": "one for each image",
    },
    "base_to_new": {
        "logits.shape[-1]": "a matrix: its last dimension is dimension 1",
        ":middle].argmax(-1)": "a matrix: its last dimension is dimension 1",
        "middle:].argmax(-1)": "a matrix: its last dimension is dimension 1",
        "if a + b != 0": "shares are not negative",
        "if a + b else": "shares are not negative",
        "if a * b > 0": "where one is zero, the mean is zero anyway",
        "if a > 0": "where one is zero, the mean is zero anyway",
        "if b > 0": "where one is zero, the mean is zero anyway",
        "if a + a > 0": "where one is zero, the mean is zero anyway",
        "if b + b > 0": "where one is zero, the mean is zero anyway",
    },
    "bottleneck": {
        "zero in (self.up.weight, self.down.bias": "zeroed in another order",
        "self.down.bias, self.up.bias, self.up.weight": "zeroed in another order",
    },
    "half_block": {"place <= 'after'": "'before' has returned, and 'beside' comes later"},
    "tip_logits": {
        "F.normalize(t) ": "dimension 1 by default, the last of a matrix",
        "dim=1": "a matrix: its last dimension is dimension 1",
        ".to(f)": "the type and the device of the features",
        "keys.dtype": "features, texts and keys have one type",
        "texts.dtype": "features, texts and keys have one type",
        "votes.dtype": "features, texts and keys have one type",
    },
    "st_adapter": {
        "permute(0, -1, 1, 2)": "four dimensions: dimension -1 is dimension 3",
        "permute(0, 3, 1, -2)": "four dimensions: dimension -2 is dimension 2",
        "permute(0, -2, 3, 1)": "four dimensions: dimension -2 is dimension 2",
        "permute(0, 2, -1, 1)": "four dimensions: dimension -1 is dimension 3",
        "z[..., -1]": "a dimension of size one",
    },
    "vqt_attention": {
        "chunk(3, dim=2": "three dimensions: the last is dimension 2",
        "unflatten(2,": "three dimensions: the last is dimension 2",
        "len(q)": "one for each image",
        "len(k)": "one for each image",
        "len(v)": "one for each image",
        "transpose(2, 1)": "exchanging knows no order",
        "transpose(1, -2)": "four dimensions: dimension -2 is dimension 2",
        "flatten(-2)": "four dimensions: dimension -2 is dimension 2",
    },
    "distillation_loss": {
        "detach() / T)": "log_softmax takes dimension 1 of a matrix by itself",
        "student / T)": "log_softmax takes dimension 1 of a matrix by itself",
        "teacher.detach() / temperature": "T is the temperature",
        "student / temperature": "T is the temperature",
        "temperature ** 2": "T is the temperature",
        "dim=-1": "a matrix: its last dimension is dimension 1",
    },
    "decoupled_parts": {
        "one_hot(labels, teacher.shape[1])": "student and teacher have one shape",
        "student.shape[-1]": "a matrix: its last dimension is dimension 1",
        "len(labels)": "one row for each image",
        "len(student)": "one row for each image",
        "len(teacher)": "one row for each image",
        "len(true)": "one row for each image",
        "[others.logsumexp(dim=1), z[true]]": "the divergence of a pair knows no order",
        "dim=-1": "a matrix: its last dimension is dimension 1",
        "parts[0], parts[-1]": "the last of two",
    },
    "attention_loss": {
        "zip(teacher, student)": "the squared difference knows no order",
        ".flatten(1)) for": "normalize takes dimension 1 by itself",
        "square().mean": "a map is divided by its length, so a factor goes out",
        "dim=-1) for": "a matrix: its last dimension is dimension 1",
        "mse_loss(t, s)": "the squared difference knows no order",
    },
    "darts_gradient": {
        "t.clone()": "a gradient can be asked of a copy, too",
        "length <= 0": "no length is negative",
    },
    "widened": {
        "[*last.items()][1:]": "the weight, which comes first, is put in later",
        "first['weight'].new_tensor": "all tensors have one type and device",
        "norm['weight'].new_tensor": "all tensors have one type and device",
        "wider['weight'].new_tensor": "all tensors have one type and device",
        ".transpose(-1, 1)": "exchanging knows no order",
        "wider['weight'][:, source]": "a copy of last's",
    },
    "identity_layer": {
        "(2, 0, 3)": "a mean over dimensions knows no order",
        "(0, 3, 2)": "a mean over dimensions knows no order",
        "(0, -2, 3)": "four dimensions: dimension -2 is dimension 2",
        "(0, 2, -1)": "four dimensions: dimension -1 is dimension 3",
        "mean.new_zeros": "x and its statistics have one type and device",
        "var.new_zeros": "x and its statistics have one type and device",
        "size // -2": "the middle counted from the end",
        "'mean': mean.clone()": "either of the two is the copy",
    },
    "mixed_node": {"dim=-1": "two dimensions: the last is dimension 1"},
    "concrete_sample": {
        "zeros_like(alpha)": "alpha, u and the sample have one shape and type",
        "zeros_like(noise)": "alpha, u and the sample have one shape and type",
        "zeros_like(u)": "alpha, u and the sample have one shape and type",
    },
    "lora_merge": {"D = len(merged)": "as long as the weight"},
    "kron_forward": {"shape[-1]": "a matrix: its last dimension is dimension 1"},
    "count_updates": {
        "D / 32": "D is a multiple of 32",
        "D / n": "D is a multiple of n",
        "m / n": "D / 32 is a multiple of n",
        "D / a": "D is a multiple of a",
    },
    "ssf_merge": {"scale.view": "one dimension can always be viewed as [N, 1, ...]"},
    "dylora_forward": {"dim=-1": "a matrix: its last dimension is dimension 1"},
    "private_gradient": {
        "norm(dim=-1": "a matrix: its last dimension is dimension 1",
        "len(clipped)": "one for each sample",
        "len(norms)": "one for each sample",
    },
    "lora_linear_backward": {"h.view(": "a product that was just made is contiguous"},
    "attention_fake": {
        "k.dtype": "q, k and v have one type",
        "v.dtype": "q, k and v have one type",
        "k.new_empty": "q, k and v have one type and device",
        "v.new_empty": "q, k and v have one type and device",
    },
    "tile_places": {
        "j * BN + torch.arange(BN))": "broadcasting adds dimensions in front",
        "torch.arange(BN)[:,]": "broadcasting adds dimensions in front",
        "torch.arange(BN)[None,]": "[None] is [None, :]",
        "(cols < N) & (rows < M)": "both must hold",
    },
    "online_attention": {
        "if out is None": "top, total and out are made together",
        "if total is None": "top, total and out are made together",
        "maximum(here, top)": "the maximum knows no order",
        "maximum(new, here)": "`new` still is the last block's, which is `top`",
        "new <= -torch.inf": "nothing is below -inf",
        "-torch.inf, 1, ": "exp(-inf - c) = 0 for any number c",
        "-torch.inf, 2, ": "exp(-inf - c) = 0 for any number c",
        "-torch.inf, -1, ": "exp(-inf - c) = 0 for any number c",
        "total != 0": "a sum of exponentials is never negative",
    },
    "kd_gradient": {
        "student.numel() / ": "a whole number of rows",
        "teacher.numel()": "student and teacher have one shape",
        "teacher.shape": "student and teacher have one shape",
    },
    "kron_backward": {"right).view": "a product that was just made is contiguous"},
}


class _TooLong(BaseException):
    """Not an Exception, so that no check takes it for the student's."""


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _TooLong

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def verdict(check: Callable[[Any], None], answer: Any) -> str:
    """passed, sentence, error or too long."""
    try:
        with _limit(SECONDS), contextlib.redirect_stdout(io.StringIO()):
            check(answer)
    except checks.CheckFailed:
        return "sentence"
    except _TooLong:
        return "too long"
    except Exception:
        return "error"
    return "passed"


def solution(notebook: str, name: str) -> tuple[str, dict[str, Any]]:
    """The source of the function `name`, and a namespace in which it can be defined again."""
    cells = nbformat.read(ROOT / "solutions" / f"{notebook}.ipynb", as_version=4).cells
    code = definitions([cell.source for cell in cells if cell.cell_type == "code"])[0][name]
    scope: dict[str, Any] = {}
    exec(code, scope)
    functions = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    return ast.unparse(next(node for node in functions if node.name == name)), scope


def is_row(row: str, mutant: Mutant) -> bool:
    return row == mutant.change or (row in mutant.line and row not in mutant.was)


@pytest.mark.parametrize(("notebook", "name"), EXERCISES)
def test_every_mutant_is_rejected_in_a_sentence_or_listed_as_equivalent(
    notebook: str, name: str
) -> None:
    source, scope = solution(notebook, name)
    check, rows = getattr(checks, name), EQUIVALENT.get(name, {})
    assert verdict(check, scope[name]) == "passed"
    found: dict[str, list[Mutant]] = {"passed": [], "sentence": [], "error": [], "too long": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mutant may divide by zero, or call `1(x)`
        for mutant in mutants(source):
            exec(compile(mutant.source, "<mutant>", "exec"), scope)
            found[verdict(check, scope[name])].append(mutant)
    survivors = [m for m in found["passed"] if not any(is_row(row, m) for row in rows)]
    assert not survivors, "\n".join(f"{m.was}\n    {m.line}" for m in survivors)
    rejected = [m for what, group in found.items() if what != "passed" for m in group]
    for row in rows:
        assert any(is_row(row, m) for m in found["passed"]), f"no such mutant: {row}"
        refused = [m.line for m in rejected if is_row(row, m)]
        assert not refused, f"listed as a right answer, but rejected: {refused}"
    assert len(rejected) >= 50
    assert len(found["sentence"]) >= 0.95 * len(rejected), [m.line for m in found["error"]]


def test_a_mutant_differs_in_one_place_and_none_comes_twice() -> None:
    source = '''
def f(x, y):
    """Not touched: 1 + 1."""
    if x > 1:
        x = x.clone()
    return torch.cat([x, y], dim=0)[1:] - y
'''
    made = mutants(source)
    assert made == mutants(source)
    assert len({mutant.source for mutant in made}) == len(made)
    assert all(mutant.change.split(" -> ")[0] in mutant.was for mutant in made)
    lines = {mutant.line.strip() for mutant in made}
    for line in (
        "if x >= 1:",
        "if not x > 1:",
        "if x > 2:",
        "x = x",
        "x = x.detach()",
        "pass",
        "return torch.stack([x, y], dim=0)[1:] - y",
        "return torch.cat([y, x], dim=0)[1:] - y",
        "return torch.cat([x, y], dim=1)[1:] - y",
        "return torch.cat([x, y])[1:] - y",
        "return torch.cat([x, y], dim=0) - y",
        "return torch.cat([x, y], dim=0)[:] - y",
        "return torch.cat([x, y], dim=0)[2:] - y",
        "return torch.cat([x, y], dim=0)[1:] + y",
        "return y - torch.cat([x, y], dim=0)[1:]",
    ):
        assert line in lines, line


def test_the_order_of_a_sum_makes_no_mutant() -> None:
    changes = {mutant.change for mutant in mutants("def f(a, b):\n    return a + b * 2")}
    assert "b * 2 -> 2 * b" not in changes
    assert "a + b * 2 -> b * 2 + a" not in changes


def test_an_endless_answer_counts_as_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.checks.test_mutants.SECONDS", 0.2)

    def endless(*_: Any) -> None:
        while True:
            pass

    assert verdict(checks.lp_ft_lrs, endless) == "too long"
