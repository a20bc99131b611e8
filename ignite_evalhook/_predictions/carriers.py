"""Carry the predictions of every rank to rank 0.

There are three ways, MMCV's three: with what is said at the meeting after the last batch, which
goes through the processes' own connections; through files on a disk that all ranks share; and
through the devices, by the process group's own backend.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist

from .._files.flock import close
from .._ranks.messages import chunks
from .._ranks.packing import Packed, aligned, memory_of, pack, unpack
from .._ranks.team import Section
from .private_folder import make_private_folder, open_new, open_ours

__all__ = ["read", "write"]

_CHUNK = 64 << 20  # bytes sent from device to device at once


class Carrier:
    """Send predictions along with what is said at a meeting.

    Of other ways, :meth:`hand_over` and :meth:`take` differ.
    """

    def hand_over(self, parts: Any, section: Section) -> Any:
        """Return what this rank has to say at the meeting, so that rank 0 gets ``parts``."""
        return parts

    def take(self, said: Any) -> Any:
        """Return the parts of another rank, on rank 0, from what it said."""
        return said


class FolderCarrier(Carrier):
    """Send predictions through files; see :func:`open_carrier`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def hand_over(self, parts: Any, section: Section) -> Any:
        """Write the parts to a file, and return its name."""
        if section.team.leads:
            return None
        name = f"{section.team.rank}.bin"
        with open(self._folder / name, "wb", opener=open_new) as file:
            write(pack(parts), file)
        return name

    def take(self, said: Any) -> Any:
        """Map a file into memory, and remove its name."""
        file = self._folder / said
        parts = read(file, opener=open_ours)
        with contextlib.suppress(OSError):  # some systems keep a mapped file; the folder goes later
            file.unlink()
        return parts


class DeviceCarrier(Carrier):
    """Send predictions from device to device."""

    def __init__(self) -> None:
        self._received: list[Any] = []

    def hand_over(self, parts: Any, section: Section) -> Any:
        """Send the parts, when all ranks are known to be there; on rank 0, receive them."""
        team = section.team
        packed = None if team.leads else pack(parts)
        own = None if packed is None else (packed.head, packed.size)
        sizes = section.meet("sizes", own, lambda said: said)
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        if packed is not None:
            _send(packed, device)
            return team.rank
        self._received = [
            unpack(head, _receive(rank, size, device))
            for rank, (head, size) in enumerate(sizes[1:], start=1)
        ]
        return 0

    def take(self, said: Any) -> Any:
        """Return what was received."""
        return self._received[said - 1]


def _send(packed: Packed, device: torch.device) -> None:
    for chunk in chunks(packed.pieces, _CHUNK):
        dist.send(chunk.to(device), 0)


def _receive(rank: int, size: int, device: torch.device) -> torch.Tensor:
    payload = torch.empty(size, dtype=torch.uint8)
    for start in range(0, size, _CHUNK):
        part = payload[start : start + _CHUNK]
        received = part if device.type == "cpu" else torch.empty_like(part, device=device)
        dist.recv(received, rank)
        if received is not part:
            part.copy_(received)
    return payload


@contextmanager
def open_carrier(
    section: Section, tmpdir: str | os.PathLike[str] | None, gpu_collect: bool
) -> Iterator[Carrier]:
    """Get ready to carry predictions; on every rank.

    Args:
        section: What all ranks go through together.
        tmpdir: A folder that all ranks share: the files go into a private folder in it, which is
            removed afterwards; after a kill, by the next evaluation that uses ``tmpdir``.
        gpu_collect: Send from device to device.  ``tmpdir`` is not used then, as in MMCV.
    """
    if section.team.alone or (tmpdir is None and not gpu_collect):
        yield Carrier()
        return
    if gpu_collect:
        yield DeviceCarrier()
        return
    parent = Path(os.path.abspath(os.path.expanduser(os.fsdecode(tmpdir or ""))))
    held: list[int] = []

    def make() -> str:
        folder, handle = make_private_folder(parent)
        held.append(handle)
        return str(folder)

    folder = Path(section.meet("folder", None, lambda said: make()))
    try:
        yield FolderCarrier(folder)
    finally:
        if held:
            shutil.rmtree(folder, ignore_errors=True)
            close(held[0])


# -- keep a packed value in a file, and map it into memory to read it ------------------------------

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
