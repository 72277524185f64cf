"""Files and errors: everything here is written whole or not at all, and read without ever
unpickling."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

LONGEST_NAME = 255  # bytes, on all usual file systems
CHECKSUM = "checksum"  # its name among a file's metadata; files of other writers have none


class VTError(ValueError):
    """A user's mistake, in one sentence: what was expected, what was found, what to do."""


def said(value: object) -> str:
    """A value as a sentence names it: on one line, and short."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} {list(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{type(value).__name__} {text[:60]}..."


def unknown(kind: str, name: object, valid: Iterable[str]) -> VTError:
    """The error for a name that does not exist, with the nearest ones that do."""
    valid = sorted(valid)
    near = difflib.get_close_matches(said(name).strip("'"), valid, n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(repr(n) for n in near)}?"
        if near
        else f"choose from {', '.join(valid[:20])}"
    )
    return VTError(f"unknown {kind} {said(name)}: {hint}")


def as_path(value: object, what: str = "path") -> Path:
    """A path given as one or as text. Raises `VTError` for anything else, and for what no file can
    be called."""
    try:
        named = isinstance(value, str | os.PathLike) and bool(raw := os.fsencode(value))
        if not named or b"\0" in raw or max(map(len, raw.split(b"/"))) > LONGEST_NAME:
            raise ValueError
    except ValueError as error:  # UnicodeEncodeError is one
        raise VTError(
            f"expected a {what} as text or a Path, found {said(value)}; give its name"
        ) from error
    return Path(os.fsdecode(raw))


def expect_folder(path: Path) -> None:
    """Raise `VTError` where a file can't be written to `path`, before work is done for it."""
    if os.path.isdir(path):  # unlike Path.is_dir it never raises
        raise VTError(f"expected a file to write, found the folder {path}; add a name to it")
    if not os.path.isdir(path.parent):
        raise VTError(
            f"expected an existing folder to write {path.name} into, found no {path.parent}; create"
            " it first"
        )


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, to be written; it replaces `path` only when the block
    ends without an error.

    An interruption, a full disk or an exception leaves the old file as it was and no temporary file
    behind.
    """
    path = as_path(path)
    expect_folder(path)
    temporary = path.with_name(f".{path.name[:50]}.{uuid4().hex}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes private files; this should be an ordinary one
        os.replace(temporary, path)
    except OSError as error:
        raise VTError(
            f"could not write {path}: {error.strerror or error}; the file that was there before is"
            " unchanged"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def digest(tensors: Mapping[str, Tensor]) -> Any:
    """The SHA-256 of the names, shapes, types and values of tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if not tensor.is_meta:
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(raw.numpy().data)
    return found


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """What a file says of all that is in it."""
    found = digest(tensors)
    found.update(json.dumps(sorted(metadata.items())).encode())
    return found.hexdigest()


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]
) -> None:
    """Write tensors and JSON-able metadata to one safetensors file with a checksum of both,
    atomically."""
    contiguous = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()
    }
    if CHECKSUM in metadata:
        raise VTError(f"expected metadata without {CHECKSUM!r}, which is added here; rename it")
    try:
        texts = {key: json.dumps(value) for key, value in metadata.items()}
    except (TypeError, ValueError) as error:
        raise VTError(
            f"expected metadata of numbers, texts, lists and dicts, found others ({error}); "
            "leave them out"
        ) from error
    texts[CHECKSUM] = json.dumps(_checksum(contiguous, texts))
    with atomic_write(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata=texts)
        except SafetensorError as error:  # safetensors reports a full disk as its own error type
            raise OSError(str(error)) from error


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read what `save_tensors` (or anyone's safetensors writer) wrote -> (tensors, metadata).

    Raises `VTError` for a missing, truncated or pickled file, and for one that does not hold what
    its checksum says, where it has one. A pickle is recognised by its first bytes and never opened.
    """
    path = as_path(path)
    if not os.path.isfile(path):
        found = "a folder" if os.path.isdir(path) else "no file"
        raise VTError(f"expected a safetensors file, found {found} {path}; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            raw = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except OSError as error:
        raise VTError(
            f"could not read {path}: {error.strerror or error}; check its permissions"
        ) from error
    except Exception as error:  # safetensors' own error, and others for types torch has not
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
            f"{path} is not a whole safetensors file ({said(str(error))}); it is truncated or"
            " damaged, so fetch or save it again"
        ) from error
    claimed = raw.pop(CHECKSUM, None)
    # As another writer may use the same name, only what looks like ours is taken for it.
    if claimed and len(claimed) == 66 and claimed != json.dumps(_checksum(tensors, raw)):
        raise VTError(
            f"{path} is damaged: it does not hold the values that its checksum was made of; fetch"
            " or save it again"
        )
    return tensors, {key: _from_json(value) for key, value in raw.items()}


def expect_finite(tensors: Mapping[str, Tensor], source: object) -> None:
    """Raise `VTError` for NaN or infinity among the values of `source`."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
            raise VTError(
                f"expected finite values in {source}, found NaN or infinity in {name}; it comes of"
                " a training that went wrong, or is damaged"
            )


def _from_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # other writers store plain strings
        return text
