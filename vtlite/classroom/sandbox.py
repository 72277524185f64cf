"""The walls around a submission: `python sandbox.py WALLS` shuts itself in, then runs the worker.

On Linux a process may leave the system it sees without being root: in namespaces of its own (users,
files, processes, network) it builds a root folder that has the package and Python, read-only, and
one scratch folder in memory, and drops every right it had. When its first process ends, the kernel
ends all others. Nothing here may import torch: namespaces are for processes without threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

if sys.platform != "win32":  # where nothing is graded
    import resource

# What may not hold, in the words of the command. The first three need namespaces.
FILES = "files are not hidden: a submission can read and write what you can"
PROCESSES = "a process that leaves its group can outlive its notebook"
NETWORK = "the network is not cut"
MEMORY = "memory is not limited"
COUNT = "the number of processes is not limited"
DISK = "only the size of a file is limited, not the sum of all"

# From the kernel's headers; Python 3.11 has no names for them.
_NEW = {"files": 0x20000, "names": 0x4000000, "messages": 0x8000000, "users": 0x10000000}
_NEW |= {"processes": 0x20000000, "network": 0x40000000}
_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_PROGRAMS = 1, 2, 4, 8
_REMOUNT, _BIND, _RECURSIVE, _PRIVATE, _DETACH = 32, 4096, 16384, 1 << 18, 2
_DIE_WITH_PARENT, _DUMPABLE, _DROP_BOUND, _NO_NEW_RIGHTS = 1, 4, 24, 38
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
SETTINGS = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "ssl/certs")
DEVICES = ("null", "zero", "full", "random", "urandom")
SCRATCH = "/scratch"
MOST_PROCESSES = 400  # threads count, too; a few hundred numbers are the kernel's own


def enter(walls: dict[str, Any]) -> tuple[list[str], str]:
    """Shut this process in; return what does not hold, and its scratch folder.

    walls: "see" (folders to be seen, read-only), "hide" (folders never to be seen, even inside
    those), "scratch" (an empty folder of the caller), "disk_mb", "memory_mb".
    """
    if sys.platform != "linux":
        _limit(walls)
        return [FILES, PROCESSES, NETWORK, MEMORY, DISK, COUNT], walls["scratch"]
    _prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    root = not os.geteuid()
    try:
        _own_namespaces()
    except OSError:
        _limit(walls)
        return [FILES, PROCESSES, NETWORK, DISK, COUNT], walls["scratch"]
    gaps, scratch = [], SCRATCH
    try:
        _own_root(walls)
    except OSError:
        gaps, scratch = [FILES, DISK], walls["scratch"]
    # Counted in these namespaces alone; for root the kernel counts only in newer ones.
    resource.setrlimit(resource.RLIMIT_NPROC, (MOST_PROCESSES, MOST_PROCESSES))
    if root and (gaps or not _counts_in_namespace()):
        gaps.append(COUNT)
    _drop_rights()
    _limit(walls)
    return gaps, scratch


def _own_namespaces() -> None:
    """Go into new namespaces and go on there as process 1; the process outside only waits."""
    user, group = os.geteuid(), os.getegid()
    _call("unshare", sum(_NEW.values()))
    for name, text in {
        "setgroups": "deny",
        "uid_map": f"0 {user} 1",
        "gid_map": f"0 {group} 1",
    }.items():
        Path("/proc/self", name).write_text(text, encoding="ascii")
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    _prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _own_root(walls: dict[str, Any]) -> None:
    """A root folder with what is to be seen and nothing else. Raises `OSError`, with the old root
    still in its place, where the system does not allow it."""
    _mount("none", "/", flags=_RECURSIVE | _PRIVATE)
    root = walls["scratch"]
    _mount("tmpfs", root, "tmpfs", _NO_SUID | _NO_DEVICES, "size=16m,mode=755")
    inside = lambda path: Path(root + os.path.abspath(path))  # noqa: E731
    settings = [f"/etc/{name}" for name in SETTINGS]
    devices = [f"/dev/{name}" for name in DEVICES]
    # Shorter paths first, so that a folder inside another one is not covered by it.
    for path in sorted({*SYSTEM, *settings, *devices, *walls["see"]}, key=lambda p: (len(p), p)):
        if path in SYSTEM and os.path.islink(path):
            inside(path).symlink_to(os.readlink(path))
        elif os.path.exists(path) and not inside(path).exists():
            _bind(path, inside(path))
    for path in walls["hide"]:
        if inside(path).is_dir():
            _mount("tmpfs", str(inside(path)), "tmpfs", _NO_SUID | _NO_DEVICES, "size=4k,mode=755")
    for name in ("etc", "proc", "old", SCRATCH[1:]):
        inside(f"/{name}").mkdir(exist_ok=True)
    inside("/etc/passwd").write_text(f"student:x:0:0::{SCRATCH}:/bin/sh\n", encoding="ascii")
    for name in ("/tmp", "/dev/shm"):
        if not inside(name).exists():  # a package may be installed below /tmp
            inside(name).symlink_to(SCRATCH)
    _mount("proc", str(inside("/proc")), "proc", _NO_SUID | _NO_DEVICES | _NO_PROGRAMS)
    none = inside("/proc/sys/user/max_user_namespaces")
    if none.exists():  # no namespaces, and so no rights, inside these
        none.write_text("0", encoding="ascii")
    if _counts_in_namespace():  # before that version it would be a setting of the whole machine
        inside("/proc/sys/kernel/pid_max").write_text(str(MOST_PROCESSES), encoding="ascii")
    for place in _places(root):
        if place.startswith(root):
            _read_only(place)
    size = f"size={walls['disk_mb']}m,nr_inodes=20000,mode=755"
    _mount("tmpfs", str(inside(SCRATCH)), "tmpfs", _NO_SUID | _NO_DEVICES, size)
    os.chdir(root)
    _call("syscall", _PIVOT_ROOT[os.uname().machine], b".", b"old")
    os.chdir("/")
    _call("umount2", b"/old", _DETACH)


def _counts_in_namespace() -> bool:
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 14)


def _places(root: str) -> list[str]:
    """Every mount in and below `root`, as the kernel lists them."""
    text = Path("/proc/self/mountinfo").read_bytes().decode("utf-8", "surrogateescape")
    places = [line.split(" ")[4] for line in text.splitlines()]
    for code, letter in {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}.items():
        places = [place.replace(code, letter) for place in places]
    return [place for place in places if place == root or place.startswith(root + "/")]


def _bind(path: str, target: Path) -> None:
    if os.path.isdir(path):
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(path, str(target), flags=_BIND | _RECURSIVE)


def _read_only(place: str) -> None:
    """A mount's other flags stay: one who is not root may not take them away."""
    now = os.statvfs(place).f_flag
    names = ("ST_NOSUID", "ST_NODEV", "ST_NOEXEC", "ST_NOATIME", "ST_NODIRATIME", "ST_RELATIME")
    bits = (_NO_SUID, _NO_DEVICES, _NO_PROGRAMS, 1024, 2048, 1 << 21)
    kept = sum(bit for name, bit in zip(names, bits, strict=True) if now & getattr(os, name))
    _mount("none", place, flags=_REMOUNT | _BIND | _READ_ONLY | kept)


def _drop_rights() -> None:
    """No right of the new namespaces is left, and none can come back with a program."""
    _prctl(_NO_NEW_RIGHTS, 1)
    for right in range(64):
        if ctypes.CDLL(None).prctl(_DROP_BOUND, right, 0, 0, 0):
            break
    _call("capset", (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())


def _limit(walls: dict[str, Any]) -> None:
    for name, amount in {
        "RLIMIT_DATA": walls["memory_mb"] * 2**20,  # only Linux keeps to it
        "RLIMIT_FSIZE": walls["disk_mb"] * 2**20,
        "RLIMIT_CORE": 0,
    }.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # an outer limit is lower
            resource.setrlimit(getattr(resource, name), (amount, amount))
    if sys.platform == "linux":
        _prctl(_DUMPABLE, 0)  # a child can't look into this process, nor write to its answer


def limit_memory(megabytes: int) -> None:
    """From now on, no more than this on top of what is there already: shared memory counts, too."""
    if sys.platform == "linux" and os.path.exists("/proc/self/statm"):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        amount = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (amount, amount))


def sweep(scratch: str) -> None:
    """End every process that is left inside the walls, and empty the scratch folder."""
    if os.getpid() == 1:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # all but this one
    for entry in os.scandir(scratch):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


def _mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    text = [os.fsencode(part) for part in (source, target, kind)]
    _call("mount", *text, ctypes.c_ulong(flags), options.encode())


def _prctl(*arguments: int) -> None:
    _call("prctl", *arguments, *[0] * (5 - len(arguments)))


def _call(name: str, *arguments: Any) -> None:
    """A call of the system; raises `OSError`."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def main() -> None:
    walls = json.loads(sys.argv[1])
    gaps, scratch = enter(walls)
    os.environ |= dict.fromkeys(("HOME", "TMPDIR", "IPYTHONDIR"), scratch)
    os.environ["MPLCONFIGDIR"] = f"{scratch}/matplotlib"
    os.chdir(scratch)
    if walls.get("probe"):
        print(json.dumps(gaps))
        return
    # Another program, which brings torch and its threads: it may start only inside the walls.
    importlib.import_module("vtlite.classroom.worker").serve(scratch, walls["memory_mb"])


if __name__ == "__main__":
    main()
