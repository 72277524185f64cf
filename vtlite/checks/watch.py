"""What an answer does while it runs: whom it calls, and which numbers it makes and keeps."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PACKAGE = str(Path(__file__).parents[1])
_GRADING = str(Path(_PACKAGE, "classroom"))  # whose alarm may ring while an answer runs
_INPUTS = tuple(
    str(Path(__file__).with_name(name)) for name in ("inputs.py", "watch.py", "base.py")
)
# Every way to autograd ends in one of these: .backward, autograd.grad, torch.func, forward mode.
_AUTOGRAD = {
    "run_backward",
    "_grad_increment_nesting",
    "_jvp_increment_nesting",
    "enter_dual_level",
    "_enter_dual_level",
}
_PEEKS = {
    "_getframe",
    "_current_frames",
    "get_objects",
    "get_referrers",
    "currentframe",
    "stack",
    "getouterframes",
    "getclosurevars",
    "getsource",
    "f_back",
    "tb_frame",
    "gi_frame",
    "cell_contents",
}
_CODE_ONLY = {"stack"}  # also the name of an operation: it counts when called, not when written


def code_of(function: Any) -> types.CodeType | None:
    """The code of a function, of a partial one, or of an object that is called."""
    function = getattr(function, "func", function)
    function = getattr(function, "__func__", function)
    if not hasattr(function, "__code__"):
        function = type(function).__call__
    return getattr(function, "__code__", None)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


class Calls:
    """Watches every call between `__enter__` and `__exit__`.

    `package`: a function of this package that was called; `peeked`: a look into other frames or
    into all objects; `autograd`: whether a derivative was asked of PyTorch, in whatever way.
    """

    def __init__(self, function: Any) -> None:
        code = code_of(function)
        self.file = code.co_filename if code else ""
        written = (set(_names(code)) if code else set()) & (_PEEKS - _CODE_ONLY)
        self.package, self.peeked, self.autograd = "", next(iter(written), ""), False

    def __enter__(self) -> Calls:
        self.before = sys.getprofile(), threading.getprofile()
        sys.setprofile(self._see)
        threading.setprofile(self._see)  # of threads that the answer starts
        return self

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(self.before[0])
        threading.setprofile(self.before[1])

    def _see(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code, caller = frame.f_code, frame.f_back
            file, name = code.co_filename, code.co_name
            inside = file.startswith(_PACKAGE) and not file.startswith(_GRADING)
            if inside and file not in _INPUTS and name != "<module>":
                self.package = self.package or name
            if file.endswith("inspect.py") and name in _PEEKS and self._own(caller):
                self.peeked = name
        elif event == "c_call":
            name = getattr(argument, "__name__", "")
            self.autograd |= name in _AUTOGRAD
            if name in _PEEKS - _CODE_ONLY and self._own(frame):
                self.peeked = name

    def _own(self, frame: types.FrameType | None) -> bool:
        return frame is not None and frame.f_code.co_filename == self.file


# Operations that only move numbers: what they give is as new as what they were given.
_MOVES = ("clone", "_to_copy", "copy_", "cat", "stack", "_unsafe_view", "contiguous", "lift_fresh")


class Numbers(TorchDispatchMode):
    """Counts the numbers that are alive at once, over all memory made while it watches.

    `computed`: the most that were the result of arithmetic, in place or not; what is copied from an
    argument is not. `kept`: the most of any kind.
    """

    def __init__(self) -> None:
        super().__init__()
        self.computed = self.kept = 0
        self._live: dict[int, tuple[StorageWeakRef, int, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view:
            return out
        name = func._schema.name.removeprefix("aten::")
        sources = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        given = {t.untyped_storage()._cdata for t in sources} - self._live.keys()
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self._add(t, name, sources[name == "copy_" :], given)
        self.computed = max(self.computed, sum(entry[1] for entry in self._live.values()))
        self.kept = max(self.kept, sum(entry[2] for entry in self._live.values()))
        return out

    def _add(self, t: Tensor, name: str, sources: list[Tensor], given: set[int]) -> None:
        storage = t.untyped_storage()
        room = storage.nbytes() // t.element_size()
        new = t.numel()
        if name in _MOVES:
            new = sum(self._computed_of(source) for source in sources)
        old = self._live.get(storage._cdata)
        new = min(room, new + (old[1] if old else 0))
        kept = 0 if storage._cdata in given else room
        self._live[storage._cdata] = (StorageWeakRef(storage), new, kept)

    def _computed_of(self, t: Tensor) -> int:
        entry = self._live.get(t.untyped_storage()._cdata)
        return min(t.numel(), entry[1]) if entry else 0


class Operations(TorchDispatchMode):
    """Remembers the names of all operations that do more than reserve memory or look at a tensor in
    another way, and whether one made a tensor on the CPU from nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.on_cpu = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        out = func(*args, **(kwargs or {}))
        sources = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.on_cpu |= not sources and any(t.device.type == "cpu" and t.ndim > 0 for t in made)
        moves_nothing = "empty" in name or name.startswith("prim::")  # a question of a device
        if not moves_nothing and not func.is_view and (sources or made):
            self.names.append(name)
        return out


def numbers(function: Callable[..., Any], *arguments: Any) -> Numbers:
    """What `function` makes on its way, whatever it returns."""
    with Numbers() as found:
        function(*arguments)
    return found
