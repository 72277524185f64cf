from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vtlite.backbones import WEIGHTS
from vtlite.storage import (
    VTError,
    as_path,
    atomic_write,
    load_tensors,
    save_tensors,
    unknown,
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")
    return path


def only_the_old_is_there(path: Path) -> bool:
    return path.read_text(encoding="utf-8") == "old" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_while_writing_leaves_the_old_file(old: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_write(old) as temporary:  # noqa: PT012
        temporary.write_text("half of the new", encoding="utf-8")
        raise error
    assert only_the_old_is_there(old)


def test_a_full_disk_is_a_sentence(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        VTError,
        match=(
            r"could not write .*file.txt: No space left on device; the file that was there before"
            r" is unchanged"
        ),
    ):
        save_tensors(old, {"a": torch.ones(2)}, {})
    assert only_the_old_is_there(old)


def test_a_killed_process_leaves_the_old_file_whole(old: Path) -> None:
    code = (
        "import os, signal, sys; from vtlite.storage import atomic_write\n"
        "with atomic_write(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(old)], cwd=Path(__file__).parents[1], timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    assert old.read_text(encoding="utf-8") == "old"


def test_a_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("", encoding="utf-8")
    with atomic_write(tmp_path / "atomic") as temporary:
        temporary.write_text("", encoding="utf-8")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_missing_folder_is_a_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(VTError, match="expected an existing folder to write x into"),
        atomic_write(tmp_path / "none" / "x"),
    ):
        pass


def test_tensors_and_metadata_round_trip(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6.0).view(2, 3).T,
        "b": torch.tensor(3, dtype=torch.int64),
    }  # not contiguous; no dimensions
    save_tensors(tmp_path / "t", tensors, {"settings": {"rank": 4}, "name": "x"})
    loaded, metadata = load_tensors(tmp_path / "t")
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)
    assert metadata == {"settings": {"rank": 4}, "name": "x"}


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickle_is_recognised_and_never_opened(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name, write in (
        ("a.pt", lambda p: torch.save(Evil(mark), p)),
        ("b.safetensors", lambda p: p.write_bytes(pickle.dumps(Evil(mark)))),
    ):
        write(tmp_path / name)
        with pytest.raises(VTError, match="is a pickled PyTorch checkpoint"):
            load_tensors(tmp_path / name)
    assert not mark.exists()
    pickle.loads(
        (tmp_path / "b.safetensors").read_bytes()
    )  # the trap works: only vtlite did not step into it
    assert mark.exists()


def test_the_nearest_names_come_first_and_few_names_are_listed() -> None:
    assert (
        str(unknown("task", "digts", ["digits", "twemoji"]))
        == "unknown task 'digts': did you mean 'digits'?"
    )
    assert (
        str(unknown("task", "zzz", ["digits", "twemoji"]))
        == "unknown task 'zzz': choose from digits, twemoji"
    )


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    """The first byte of a safetensors file is the low byte of its header's length: here 0x80, as a
    pickle's."""
    for padding in range(256):
        save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(3)}, {"note": "x" * padding})
        if (tmp_path / "x.safetensors").read_bytes()[0] == 0x80:
            break
    else:
        pytest.fail("no length ended in 0x80")
    assert torch.equal(load_tensors(tmp_path / "x.safetensors")[0]["a"], torch.ones(3))


@pytest.mark.parametrize("name", sorted(p.stem for p in WEIGHTS.glob("*.safetensors")))
def test_the_embedded_weights_carry_their_checksum(name: str, tmp_path: Path) -> None:
    raw = bytearray((WEIGHTS / f"{name}.safetensors").read_bytes())
    assert b'"checksum"' in raw
    raw[-100] ^= 1  # the smallest damage there is
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(VTError, match="is damaged: it does not hold the values"):
        load_tensors(tmp_path / "x")


def test_files_of_other_writers_need_no_checksum(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "t", metadata={"format": "pt", "checksum": "none"})
    tensors, metadata = load_tensors(tmp_path / "t")
    assert torch.equal(tensors["a"], torch.ones(2))
    assert metadata["format"] == "pt"


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(VTError, match="expected a safetensors file, found a folder"):
        load_tensors(tmp_path)
    with pytest.raises(VTError, match="expected a file to write, found the folder"):
        save_tensors(tmp_path, {}, {})


@pytest.mark.parametrize("path", [None, 3, "", "a\0b", "\ud800", "x" * 300, b"bytes"])
def test_what_no_file_can_be_called(path: object) -> None:
    with pytest.raises(VTError, match="expected a path as text or a Path"):
        as_path(path)


def test_metadata_that_are_no_json(tmp_path: Path) -> None:
    with pytest.raises(VTError, match="expected metadata of numbers"):
        save_tensors(tmp_path / "t", {}, {"model": object()})
    assert not list(tmp_path.iterdir())
