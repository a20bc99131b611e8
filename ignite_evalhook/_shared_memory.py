"""Lend bytes to another process of the same host, in memory that both can see.

The memory is a *memfd*, a file that has no name in any folder: nothing is left when its processes
are gone, however they go, and the size of ``/dev/shm`` (64 MB in a container) does not matter.  It
is filled by ``write()``, so that too little memory is an ``OSError`` here, and never a SIGBUS.

The borrower opens it through ``/proc``, while the lender waits.  Only Linux has all that; where it
is missing or forbidden, :func:`host`, :func:`lend` or :func:`borrow` says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from ._packing import memory_of

__all__ = ["Loan", "borrow", "host", "lend"]

_NAME = "ignite_evalhook-"  # what a memfd is called only shows in /proc


def host() -> str | None:
    """Return what processes that can lend to each other have in common, and no others have.

    ``None``: this system has no such memory.
    """
    if not hasattr(os, "memfd_create"):
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # In another container a process number means another process.
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


class Loan:
    """Bytes that another process may map, until :meth:`end`.

    Attributes:
        address: What :func:`borrow` needs, without line breaks.
    """

    def __init__(self, file: int, name: str) -> None:
        self._file = file
        self.address = f"/proc/{os.getpid()}/fd/{file} {name}"

    def end(self) -> None:
        """Let go of the memory; who has borrowed it keeps it as long as needed."""
        os.close(self._file)


def lend(pieces: Iterable[torch.Tensor]) -> Loan | None:
    """Copy 1-d uint8 CPU tensors, one after another, to where another process can map them.

    Returns:
        The loan, or ``None`` if the system does not allow it or has not so much memory.
    """
    name = f"{_NAME}{os.urandom(16).hex()}"
    try:
        file = os.memfd_create(name)
    except OSError:
        return None
    try:
        for piece in pieces:
            data = memory_of(piece)
            while data:
                data = data[os.write(file, data) :]
    except OSError:
        os.close(file)
        return None
    except BaseException:
        os.close(file)
        raise
    return Loan(file, name)


def borrow(address: str, size: int) -> torch.Tensor | None:
    """Map what another process lends, as a tensor of shape (size,).

    What is written to it stays in this process.

    Returns:
        The tensor, or ``None`` if it cannot be had here.
    """
    path, _, name = address.partition(" ")
    try:
        # Should two hosts be taken for one, the name tells: nothing else is ever opened.
        if os.readlink(path) != f"/memfd:{name} (deleted)":
            return None
        return torch.from_file(path, shared=False, size=size, dtype=torch.uint8)
    except (OSError, RuntimeError):
        return None
