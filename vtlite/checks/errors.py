"""An error of Python or PyTorch in an answer, told as a sentence beside the student's own line."""

from __future__ import annotations

import linecache
import re
import traceback
from typing import Any

# (type, what the message has in it, what to do). The first that fits is said.
_SENTENCES: tuple[tuple[type[BaseException], str, str], ...] = (
    (
        RuntimeError,
        r"view size is not compatible",
        "view needs memory that lies in order, and an argument may be transposed or cut:"
        " use reshape or flatten",
    ),
    (
        RuntimeError,
        r"mat1 and mat2 shapes|size mismatch|batch1|inconsistent tensor size|expected size for",
        "the inner sizes of a matrix product differ: write the shape beside each factor, and"
        " transpose or exchange one",
    ),
    (
        RuntimeError,
        r"(size|shape) of tensor|must match|broadcast|shape mismatch|expanded size",
        "two shapes do not fit: sizes are compared from the last to the first, and must be equal or"
        " 1; give the smaller one a dimension of 1 (keepdim=True, [:, None])",
    ),
    (
        RuntimeError,
        r"invalid for input of size|unflatten|cannot reshape|split_with_sizes|numel",
        "a tensor cannot be cut like that: the product of the new sizes has to be its number of"
        " entries",
    ),
    (
        RuntimeError,
        r"same dtype|scalar type|can't be cast|result type|dtype|not implemented for",
        "the types differ, or the operation does not exist for this one: make new tensors in the"
        " type of the arguments (dtype=x.dtype, x.new_zeros), and leave integers as they are",
    ),
    (
        RuntimeError,
        r"meta|same device|Expected all tensors",
        "you make a tensor without device= (torch.zeros, torch.eye), or read values (item, float,"
        " if): stay on the arguments' device",
    ),
    (
        RuntimeError,
        r"Inference tensors cannot be saved",
        "inference_mode makes tensors that no graph can use later: torch.no_grad() does not",
    ),
    (
        RuntimeError,
        r"needed for gradient computation has been modified",
        "you write into a tensor (+=, add_) that autograd still needs for a gradient: make a new"
        " one",
    ),
    (
        RuntimeError,
        r"in-place|inplace|written-to|single memory location|leaf Variable|inference",
        "you write into a tensor that you were given: make a new one",
    ),
    (
        RuntimeError,
        r"require.? grad|grad_fn|backward|element 0",
        "something detached it (detach, item, data or no_grad), or you ask autograd where it is off",
    ),
    (RuntimeError, r"Boolean value", "a tensor of many values is no condition: use torch.where"),
    (
        RuntimeError,
        r"permute|transpose|\.T|einsum|subscript|must be 2|2D|1D|dimension|dims",
        "the number of dimensions is another than you think: x may have any dimensions in front, or"
        " none; count them from the end (-1, -2)",
    ),
    (
        ValueError,
        r"more than 1 value per channel",
        "batch norm in train mode got a single image: call eval() first",
    ),
    (
        ValueError,
        r"unpack",
        "an argument has another number of parts than you take apart: print its shape or type",
    ),
    (
        IndexError,
        r"",
        "an index or a dimension lies outside: count from 0, or from the end with -1; dimensions in"
        " front may be missing",
    ),
    (
        KeyError,
        r"",
        "a name is not in the dictionary: go through the one that has fewer names, or ask with `in`",
    ),
    (
        ZeroDivisionError,
        r"",
        "you divide by zero: which case has nothing to divide by? Look at it before you divide",
    ),
    (
        UnboundLocalError,
        r"",
        "a variable is read before it has a value, as one branch or loop never sets it",
    ),
    (NameError, r"", "a name is not defined: a typing error, or an import that is missing"),
    (
        TypeError,
        r"argument|parameter|positional",
        "a function is called with other arguments than it takes: compare with its signature",
    ),
    (
        TypeError,
        r"NoneType",
        "a value is None: an argument may be None, or a function without return gives it",
    ),
    (
        TypeError,
        r"",
        "a value has another type than you think: print type(...) of what stands in this line",
    ),
    (
        AttributeError,
        r"",
        "this object has no such attribute: it is of another type than you think, or the name is"
        " misspelt",
    ),
    (AssertionError, r"", "your own assert does not hold for this input"),
    (RecursionError, r"", "the function calls itself without end"),
    (
        Exception,
        r"",
        "this line cannot run with such an input: print the shapes and types of what stands in it",
    ),
)


def sentence(error: BaseException) -> str:
    """What to do about `error`."""
    message = str(error)
    return next(
        text
        for kind, pattern, text in _SENTENCES
        if isinstance(error, kind) and re.search(pattern, message, re.IGNORECASE)
    )


def own_line(error: BaseException, code: Any) -> str:
    """Where in the student's file `error` arose, as ' (your line 3: y = x @ w)', or nothing."""
    if code is None:
        return ""
    frames = [
        (frame.f_code.co_filename, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == code.co_filename
    ]
    if not frames:
        return ""
    file, number = frames[-1]
    text = linecache.getline(file, number).strip()
    return f" (your line {number}{': ' + text if text else ''})"
