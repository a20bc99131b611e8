"""Keep a packed value in a file, and map it into memory to read it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import torch

from ._packing import Packed, aligned, memory_of, unpack

__all__ = ["read", "write"]

_MAGIC = b"evalpack"
_HEADER = struct.Struct("<8sQQ")  # magic, bytes of the head, bytes of the payload
_FILE_ALIGNMENT = 64  # bytes; where the payload begins in a file


def write(packed: Packed, file: BinaryIO) -> None:
    """Write a packed value to a file, from where its tensors lie."""
    start = _HEADER.pack(_MAGIC, len(packed.head), packed.size) + packed.head
    _write_all(file, memoryview(start.ljust(aligned(len(start), _FILE_ALIGNMENT), b"\0")))
    for piece in packed.pieces:
        _write_all(file, memory_of(piece))


def _write_all(file: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]  # an unbuffered file may take less than all


def read(path: str | os.PathLike[str], *, opener: Callable[[str, int], int] | None = None) -> Any:
    """Return the value in a file, with tensors that are views into the mapped file.

    They are writable, and what is written to them stays in memory.  The file may be removed
    while they are in use (where the system allows that at all), but not changed.

    Args:
        path: The file.
        opener: As for :func:`open`; may refuse the file.

    Raises:
        ValueError: If the file is not of this kind, or incomplete.
    """
    with open(path, "rb", opener=opener) as file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise ValueError(f"{os.fspath(path)!r} holds no packed value, or only its beginning")
        _, head_size, size = _HEADER.unpack(header)
        begin = aligned(_HEADER.size + head_size, _FILE_ALIGNMENT)
        found = os.fstat(file.fileno()).st_size
        if found != begin + size:
            raise ValueError(
                f"{os.fspath(path)!r} must have {begin + size} bytes, as it says itself, and has "
                f"{found}; it was not written to its end, or changed since"
            )
        head = file.read(head_size)
    # Only numbers come from here: what is unpickled was read from the file that was opened.
    mapped = torch.from_file(os.fspath(path), shared=False, size=begin + size, dtype=torch.uint8)
    return unpack(head, mapped[begin:])
