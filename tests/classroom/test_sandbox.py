"""What a process inside the walls can and can't do; nothing here needs torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from vtlite.classroom import sandbox
from vtlite.classroom.grade import _gaps

SANDBOX = Path(sandbox.__file__)
START = f"""
import json, os, signal, socket, subprocess, sys, time
sys.path.insert(0, {str(SANDBOX.parent)!r})
import sandbox
"""
needs_walls = pytest.mark.skipif(bool(_gaps()), reason=f"not on this system: {_gaps()}")


def inside(code: str, scratch: Path, before: str = "", **walls: Any) -> Any:
    """What `code` leaves in `found`, run inside."""
    given = {
        "see": [sys.prefix, sys.base_prefix, str(SANDBOX.parents[1])],
        "hide": [],
        "scratch": str(scratch),
        "disk_mb": 8,
        "memory_mb": 512,
        **walls,
    }
    enter = f"gaps, scratch = sandbox.enter(json.loads({json.dumps(given)!r}))\nos.chdir(scratch)"
    script = "\n".join([START, before, enter, textwrap.dedent(code), "print(json.dumps(found))"])
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        timeout=60,
        encoding="utf-8",
        env={"PATH": "/usr/bin:/bin"},
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@needs_walls
def test_only_the_package_python_and_scratch_are_seen(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/solution.ipynb").touch()
    code = f"""
    places = [{str(tmp_path / "secret")!r}, {str(SANDBOX.parents[2] / "solutions")!r}]
    places += ["/home", "/root/.bashrc", "/etc/shadow", "/sys", "/old/etc", "/proc/1/cwd/../old"]
    found = [p for p in places if os.path.exists(p) and (not os.path.isdir(p) or os.listdir(p))]
    """
    assert inside(code, tmp_path / "scratch") == []


@needs_walls
def test_a_folder_to_hide_is_empty_even_inside_one_to_see(tmp_path: Path) -> None:
    for name in ("scratch", "see/hide", "see/other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "see/hide/solution").touch()
    see, hide = str(tmp_path / "see"), str(tmp_path / "see/hide")
    code = f"found = [os.listdir({see!r}), os.listdir({hide!r})]"
    walls = {"see": [sys.prefix, sys.base_prefix, see], "hide": [hide]}
    seen, hidden = inside(code, tmp_path / "scratch", **walls)
    assert sorted(seen) == ["hide", "other"]
    assert hidden == []


@needs_walls
def test_nothing_but_scratch_can_be_written_and_it_has_an_end(tmp_path: Path) -> None:
    code = """
    found = {}
    package = os.path.dirname(sandbox.__file__)
    for place in ("/", "/usr", sys.prefix, package, "/etc", "/dev", "/proc/sys/kernel", scratch):
        try:
            open(os.path.join(place, "zz"), "w").close()
            found[place] = True
        except OSError:
            found[place] = False
    def fill(size):
        try:
            for i in range(20):
                with open(f"{scratch}/{i}", "wb") as file:
                    file.write(bytes(size))
        except OSError as error:
            return error.strerror
    found = [[p for p, ok in found.items() if ok], fill(9 * 2**20), fill(2**20)]
    """
    written, large, many = inside(code, tmp_path)
    assert set(written) == {"/scratch"}
    assert large == "File too large"
    assert many == "No space left on device"
    assert not list(tmp_path.iterdir())


@needs_walls
def test_there_is_no_network_and_no_right_comes_back(tmp_path: Path) -> None:
    code = """
    found = []
    for address in (("192.0.2.1", 80), ("127.0.0.1", 22)):
        try:
            socket.create_connection(address, 2)
        except OSError as error:
            found.append(error.strerror)
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    found += [int(status[key], 16) for key in ("CapEff", "CapPrm", "CapBnd")]
    found.append(subprocess.run(["unshare", "--user", "true"], capture_output=True).returncode != 0)
    found.append(len([p for p in os.listdir("/proc") if p.isdigit()]))
    """
    assert inside(code, tmp_path) == ["Network is unreachable"] * 2 + [0, 0, 0, True, 1]


@needs_walls
def test_no_process_outlives_the_first_even_when_the_grader_is_killed(tmp_path: Path) -> None:
    mark = f"60{os.getpid()}"
    code = f"""
    subprocess.Popen(["setsid", "sh", "-c", "sleep {mark} & sleep {mark}"], start_new_session=True)
    time.sleep(0.3)
    found = True
    """

    def left() -> int:
        lines = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
        return sum(f"sleep\0{mark}\0".encode() == line for line in lines)

    assert inside(code, tmp_path)
    assert left() == 0
    walls = {"see": [], "hide": [], "scratch": str(tmp_path), "disk_mb": 8, "memory_mb": 512}
    script = f"{START}\nsandbox.enter({walls!r})\nos.system('sleep {mark}')"
    outer = subprocess.Popen([sys.executable, "-c", script])
    for _ in range(100):
        time.sleep(0.05)
        if left():
            break
    assert left() == 1
    outer.kill()
    outer.wait()
    for _ in range(100):
        if not left():
            break
        time.sleep(0.05)
    assert left() == 0


@needs_walls
def test_a_sweep_ends_processes_and_empties_scratch(tmp_path: Path) -> None:
    code = """
    subprocess.Popen(["setsid", "sleep", "60"])
    os.makedirs("a/b"); open("a/b/c", "w").close(); os.symlink("/usr", "d"); open("e", "w").close()
    time.sleep(0.2)
    sandbox.sweep(scratch)
    time.sleep(0.2)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError:
        pass
    found = [os.listdir(scratch), len([p for p in os.listdir("/proc") if p.isdigit()])]
    """
    assert inside(code, tmp_path) == [[], 1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to the limit")
@pytest.mark.parametrize("kind", ["bytes(2**30)", "__import__('mmap').mmap(-1, 2**30)"])
def test_memory_has_an_end_also_when_it_is_shared(tmp_path: Path, kind: str) -> None:
    code = f"""
    sandbox.limit_memory(512)
    try:
        {kind}
        found = "given"
    except (MemoryError, OSError):
        found = "refused"
    """
    assert inside(code, tmp_path) == "refused"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux without namespaces")
def test_where_the_system_allows_less_it_says_so_and_runs(tmp_path: Path) -> None:
    refuse = "def no(): raise OSError(1, 'no')\nsandbox.{} = lambda *a: no()"
    code = "found = [gaps, scratch]"
    gaps, scratch = inside(code, tmp_path, refuse.format("_own_namespaces"))
    assert gaps == [sandbox.FILES, sandbox.PROCESSES, sandbox.NETWORK, sandbox.DISK, sandbox.COUNT]
    assert scratch == str(tmp_path)
    if not _gaps():
        gaps, scratch = inside(code, tmp_path, refuse.format("_own_root"))
        assert gaps[:2] == [sandbox.FILES, sandbox.DISK]
        assert scratch == str(tmp_path)


@needs_walls
def test_processes_have_an_end(tmp_path: Path) -> None:
    code = """
    found = 0
    try:
        for found in range(1, 500):
            if not os.fork():
                signal.pause()
    except OSError:
        pass
    """
    assert 50 < inside(code, tmp_path) < 400
    maximum = Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii")
    assert int(maximum) > 1000  # the machine's own number is as it was
