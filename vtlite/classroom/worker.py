"""What runs one submission, inside the sandbox: a request on stdin, answers on stdout, one a line.

Everything of the student's runs in forks of this process, which has imported the package and runs
nothing of it. One fork per exercise: there the cells that the answer needs run in IPython, and then
the grader's own check. So nothing that one answer does, prints, replaces or leaves behind reaches
another, or its own marks. Last, one fork runs the whole notebook, so that the page can say which
cells stop.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import json
import linecache
import math
import os
import random
import secrets
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import nbformat

if sys.platform != "win32":  # where nothing is graded
    import resource

from vtlite.classroom.cells import (
    Cell,
    Only,
    Plan,
    definitions,
    exercise_of,
    plan,
    why_missing,
)
from vtlite.classroom.sandbox import limit_memory, sweep

__all__ = ["definitions", "serve"]

Send = Callable[[Any], None]
LATE = "it ran longer than a check may"
GRACE = 2  # seconds for an answer that was told to stop
PATIENCE = 4  # limits count computing; the clock may show so many times more on a busy machine
LONGEST = 2000  # letters of what is said about one cell or exercise


def serve(scratch: str, memory_mb: int) -> None:
    """Answer one request: {"notebook": text, "exercises": {name: number}, "cell_seconds",
    "seconds"} -> {"broken": kind of error}, or {"mark": [name, passed, words]} for each exercise
    and then {"cell": [where, words]} for each cell that stopped.

    What is known is said at once, so that it survives when the process has to be stopped.
    """
    request = json.load(sys.stdin)
    answer = os.dup(1)  # not inherited by programs, and closed in forks
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for event in run(request, scratch, memory_mb, answer):
        os.write(answer, f"{json.dumps(event)}\n".encode())


def run(
    request: dict[str, Any], scratch: str, memory_mb: int, answer: int
) -> Iterator[dict[str, Any]]:
    numbers: dict[str, str] = request["exercises"]
    cell_seconds: int = request["cell_seconds"]
    try:
        with at_most(cell_seconds):
            notebook = nbformat.reads(request["notebook"], as_version=4)
            raw = ["".join(c.source) for c in notebook.cells if c.cell_type == "code"]
            cells = [Cell(source) for source in raw]
            plans = {}
            for name in numbers:
                with contextlib.suppress(KeyError):
                    plans[name] = plan(cells, name)
    except (Late, Exception) as error:  # many types, for JSON, schema and version
        yield {"broken": type(error).__name__}
        return
    for name in numbers:
        if name not in plans:
            yield {"mark": [name, False, why_missing(cells, name, numbers)]}

    room = Room(scratch, memory_mb, answer, cell_seconds + GRACE, request["seconds"])
    student = Student(cell_seconds, numbers)
    for name in plans:
        said, ended = room.apart(functools.partial(student.mark, name, cells, plans[name]))
        verdict = next((message for message in said if message), None)
        yield {"mark": [name, *(verdict or (False, ended))]}
    # Last, because a whole notebook may take all its time.
    said, ended = room.apart(functools.partial(student.run, raw))
    where = exercise_of(cells, numbers)
    for place, words in enumerate(said):
        if words:
            yield {"cell": [where[place], words]}
    if len(said) < len(raw):
        ended = ended.replace("a check may", "a cell may")
        yield {"cell": [where[len(said)], f"{ended}; the cells after it did not run"]}


class Late(BaseException):
    """The time for a piece of the student's code is over."""


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raises `Late` in the block after so many seconds of computing, so that a busy machine changes
    no mark; code that catches even this is ended by the kernel."""

    def stop(*_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.2)  # again, for one who catches it
        raise Late

    computing, clock = signal.ITIMER_PROF, signal.ITIMER_REAL
    signal.signal(signal.SIGPROF, stop)
    signal.signal(signal.SIGALRM, stop)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    end = math.ceil(time.process_time()) + seconds + GRACE
    resource.setrlimit(resource.RLIMIT_CPU, (end if hard < 0 else min(end, hard), hard))
    signal.setitimer(computing, seconds)
    signal.setitimer(clock, PATIENCE * seconds)
    try:
        yield
    finally:
        signal.setitimer(computing, 0)
        signal.setitimer(clock, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))


class Room:
    """Where forks run: with limits of time and memory, and swept after each."""

    def __init__(
        self, scratch: str, memory_mb: int, answer: int, quiet_seconds: int, seconds: int
    ) -> None:
        self.scratch, self.memory_mb, self.answer = scratch, memory_mb, answer
        self.quiet_seconds, self.seconds = PATIENCE * quiet_seconds, PATIENCE * seconds

    def apart(self, job: Callable[[Send], None]) -> tuple[list[Any], str]:
        """What `job` sent from a fork of its own, and how the fork ended if not as it should."""
        token = secrets.token_hex(16)  # only `job` can answer, not what the student writes
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            self._inside(job, reader, writer, token)
        os.close(writer)
        try:
            text, ended = self._listen(reader, child)
        finally:
            for stop, which in ((os.killpg, child), (os.kill, child)):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    stop(which, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            os.close(reader)
            sweep(self.scratch)
        lines = [line.removeprefix(token) for line in text.splitlines() if line.startswith(token)]
        said = [json.loads(line) for line in lines]
        if said and said[-1] == "end":
            return said[:-1], ""
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
            ended = LATE
        return said, ended or "it ended its process"

    def _inside(self, job: Callable[[Send], None], reader: int, writer: int, token: str) -> None:
        try:
            os.setsid()
            os.close(reader)
            os.close(self.answer)
            os.dup2(0, 2)
            limit_memory(self.memory_mb)

            def send(message: Any) -> None:
                os.write(writer, f"{token}{json.dumps(message)}\n".encode())

            job(send)
            send("end")
        finally:
            os._exit(0)

    def _listen(self, reader: int, child: int) -> tuple[str, str]:
        start = heard = time.monotonic()
        text = b""
        while len(text) < 2**22:
            if select.select([reader], [], [], 0.1)[0]:
                part = os.read(reader, 2**16)
                if not part:
                    return text.decode(errors="replace"), ""
                text += part
                heard = time.monotonic()
            elif os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                # it ended, and something that it started holds the pipe
                return text.decode(errors="replace"), ""
            now = time.monotonic()
            if now - heard > self.quiet_seconds or now - start > self.seconds:
                return text.decode(errors="replace"), LATE
        return text.decode(errors="replace"), "it said too much"


class Student:
    """IPython as the student's notebook had it, made once and run only in forks."""

    def __init__(self, cell_seconds: int, numbers: dict[str, str]) -> None:
        from IPython.core.interactiveshell import InteractiveShell
        from IPython.utils.text import SList
        from traitlets.config import Config

        import vtlite.checks

        self.checks = vtlite.checks
        self.cell_seconds, self.numbers = cell_seconds, numbers
        config = Config()
        config.HistoryManager.enabled = False
        self.shell: Any = InteractiveShell.instance(config=config)
        for name, instead in {
            "showtraceback": None,
            "showsyntaxerror": None,
            # `!` does nothing: there is no network to install from, and nothing to look at.
            "system": None,
            "getoutput": SList([]),
        }.items():
            setattr(self.shell, name, functools.partial(_give, instead))
        self.only = Only()
        self.shell.ast_transformers.append(self.only)
        neutral()  # also loads what torch loads late, once for all forks
        self.tools = tools()

    def cell(self, source: str) -> str:
        """Run a cell as the notebook would; why it stopped, or nothing."""
        result = None
        try:
            with at_most(self.cell_seconds):
                result = self.shell.run_cell(source, silent=True)
        except Late:
            return "stopped: it ran longer than a cell may"
        error = result.error_before_exec or result.error_in_exec
        if isinstance(error, Late):
            return "stopped: it ran longer than a cell may"
        return self.words(error) if error else ""

    def run(self, sources: list[str], send: Send) -> None:
        for source in sources:
            send(self.cell(source))

    def mark(self, name: str, cells: list[Cell], needed: Plan, send: Send) -> None:
        """Send (passed, words)."""
        check = getattr(self.checks, name)
        before = ""
        for cell, kept in zip(cells, needed, strict=False):
            self.only.places, self.only.checks = kept, self.numbers
            if kept is None or kept:
                stopped = self.cell(cell.source)
                before = before or stopped
                send(None)  # still alive
        for (module, tool), value in self.tools.items():  # whatever the cells put there
            if getattr(module, tool, None) is not value:
                setattr(module, tool, value)
        neutral()
        whole = tools()
        if name not in self.shell.user_ns:
            send((False, f"{name} was not reached: {before or 'its cell stopped before it'}"))
            return
        words = ""
        try:
            with self.shell.builtin_trap, at_most(self.cell_seconds):
                check(self.shell.user_ns[name])
        except Late:
            words = LATE
        except BaseException as error:  # a student's sys.exit is an answer like any other
            words = self.words(error)
            words += f"\n(A cell before it stopped: {before})" if before else ""
        if not words:
            now = tools()
            other = [key for key, value in whole.items() if now.get(key) is not value]
            words = "".join(f"it changes {m.__name__}.{t} while checked" for m, t in other[:1])
        send((not words, words[:LONGEST]))

    def words(self, error: BaseException) -> str:
        """What is said about an error: the check's own words, or Python's with the line."""
        if isinstance(error, self.checks.CheckFailed):
            return str(error)[:LONGEST]
        said = "".join(traceback.format_exception_only(error)).strip()
        if isinstance(error, NotImplementedError):
            return f"not written yet: {str(error)[:200] or 'NotImplementedError'}"
        own = [
            (frame.f_code.co_filename, line)
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_globals is self.shell.user_ns
        ]
        if own and (line := linecache.getline(*own[-1]).strip()):
            said += f"\nYour line: {line}"
        return said[:LONGEST]


def _give(instead: Any, *_: Any, **__: Any) -> Any:
    return instead


def tools() -> dict[tuple[Any, str], Any]:
    """What a check works with: an answer that replaces one of these would mark itself."""
    import torch

    checks = [module for name, module in sys.modules.items() if name.startswith("vtlite.checks")]
    kit = [builtins, math, torch, torch.nn, torch.nn.functional, torch.linalg, torch.autograd]
    return {
        (module, name): value
        for module in [*kit, *checks, torch.Tensor, torch.nn.Module]
        for name, value in list(vars(module).items())
        if callable(value) and not isinstance(value, type)  # torch itself changes some types
    }


def neutral() -> None:
    """The state of a new kernel: whatever cells did before, a check begins here."""
    import numpy as np
    import torch

    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
