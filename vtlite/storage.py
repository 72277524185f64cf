"""Files and errors: everything here is written whole or not at all, and read without ever
unpickling."""

from __future__ import annotations

import difflib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class VTError(ValueError):
    """A user's mistake, in one sentence: what was expected, what was found, what to do."""


def unknown(kind: str, name: object, valid: Iterable[str]) -> VTError:
    """The error for a name that does not exist, with the nearest ones that do."""
    valid = sorted(valid)
    near = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.4)
    hint = (
        f"did you mean {' or '.join(repr(n) for n in near)}?"
        if near
        else f"choose from {', '.join(valid[:20])}"
    )
    return VTError(f"unknown {kind} {name!r}: {hint}")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; it replaces `path` only when the block ends without an
    error.

    An interruption, a full disk or an exception leaves the old file as it was and no temporary file
    behind.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise VTError(
            f"expected an existing folder to write {path.name} into, found no {path.parent}; create"
            " it first"
        )
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(
            0o666 & ~umask
        )  # mkstemp makes private files; the result should be an ordinary one
        os.replace(temporary, path)
    except OSError as error:
        raise VTError(
            f"could not write {path}: {error.strerror or error}; the file that was there before is"
            " unchanged"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]
) -> None:
    """Write tensors and JSON-able metadata to one safetensors file, atomically."""
    contiguous = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()
    }
    with atomic_write(path) as temporary:
        try:
            save_file(
                contiguous,
                temporary,
                metadata={key: json.dumps(value) for key, value in metadata.items()},
            )
        except SafetensorError as error:  # safetensors reports a full disk as its own error type
            raise OSError(str(error)) from error


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read what `save_tensors` (or anyone's safetensors writer) wrote -> (tensors, metadata).

    Raises `VTError` for a missing, truncated, damaged or pickled file. A pickle is recognised by
    its first bytes and never opened.
    """
    path = Path(path)
    if not path.is_file():
        raise VTError(f"expected a safetensors file, found no file {path}; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            raw = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        with path.open("rb") as opened:
            start = opened.read(4)
        if start.startswith(
            (b"PK", b"\x80")
        ):  # asked only now, because a safetensors file may begin with any byte: it is a length
            raise VTError(
                f"{path} is a pickled PyTorch checkpoint, and unpickling can run foreign code;"
                " convert it with safetensors.torch.save_file(torch.load(path, weights_only=True),"
                " new_path)"
            ) from error
        raise VTError(
            f"{path} is not a whole safetensors file ({error}); it is truncated or damaged, so"
            " fetch or save it again"
        ) from error
    return tensors, {key: _from_json(value) for key, value in raw.items()}


def _from_json(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # other writers store plain strings
        return text
