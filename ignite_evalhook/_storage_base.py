"""Say what a folder of files can do, wherever it is.

:class:`Storage` is the promise that the local and the remote folder keep: a file is there
complete or not at all.  Beside it stand what both need: the names of temporary files, and
errors in plain words.  No disk is touched here.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO

from .exceptions import CheckpointError, EvalHookError

__all__ = ["Names", "Storage"]

BLOCK = 1 << 20  # bytes read at once
UNHARMED = "an earlier file of that name is unharmed"
Names = list[str]  # within the class, ``list`` is a method

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.tmp")


class Storage(abc.ABC):
    """A folder of files.  Names are relative to it, with ``/`` for folders below.

    Every method that fails raises :class:`CheckpointError`, which says what failed and why and
    carries the ``errno`` of its cause.  A name that leads out of the folder is a ``ValueError``.

    Attributes:
        location: The folder's absolute path or its URL, for messages.
    """

    location: str

    @abc.abstractmethod
    def path(self, name: str) -> Path | str:
        """Return where ``name`` is: a ``Path`` in a local folder, else a URL."""

    @abc.abstractmethod
    def write(
        self, name: str, save: Callable[[BinaryIO], object], *, hashed: bool = True
    ) -> str | None:
        """Write a file, replacing an old one of that name only when the new one is complete.

        Args:
            name: Name of the file; missing folders are created.
            save: Writes the content into the file object it is given, in one pass: the object
                cannot seek and has no ``fileno``.
            hashed: Whether anybody wants its sum, which takes longer than writing.

        Returns:
            The SHA-256 of the content, in hex, computed while writing; ``None`` if not wanted.

        Raises:
            CheckpointError: If it fails, also when ``save`` raises; nothing new is left then.
        """

    @abc.abstractmethod
    def append_line(self, name: str, line: str) -> None:
        """Add ``line`` and a line break at the end of a text file.

        A last line without its line break is what is left of a write that was killed: it is
        cut off first, so that it cannot spoil the new line.
        """

    @abc.abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""

    @abc.abstractmethod
    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, ``None`` if there is no such file."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file; a missing one is fine."""

    @abc.abstractmethod
    def wait(self) -> None:
        """Wait until nothing is left of what was removed, so that its room is free."""

    @abc.abstractmethod
    def move(self, name: str, to: str) -> None:
        """Rename a file; a missing one is fine.

        If ``to`` is taken the file becomes ``to`` with ``-2``, ``-3``, ... before the suffix.
        """

    def write_text(self, name: str, text: str) -> None:
        """Write a text file in UTF-8, as safely as :meth:`write`."""
        data = encoded(text)
        self.write(name, lambda file: file.write(data))

    def read_text(self, name: str) -> str | None:
        """Return the content of a text file, ``None`` if there is no such file."""
        if not self.exists(name):
            return None
        with self._explained("read", name), self.open(name) as file:
            # A kill may have cut the last line within a character; the lines before it count.
            return file.read().decode("utf-8", errors="replace")

    def exists(self, name: str) -> bool:
        """Return whether there is such a file."""
        return self.size(name) is not None

    def sha256(self, name: str) -> str | None:
        """Return the SHA-256 of a file's content in hex, ``None`` if there is no such file."""
        if not self.exists(name):
            return None
        digest = hashlib.sha256()
        with self._explained("read", name), self.open(name) as file:
            while block := file.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def link_or_copy(self, name: str, alias: str, mode: str) -> None:
        """Give a file a second name, replacing what had that name in one step.

        Args:
            name: The file there is.
            alias: Its second name.
            mode: ``"link"`` makes a hard link, and a copy where there are none; ``"copy"``
                makes a file of its own, which somebody's careless write through the other
                name cannot damage.
        """
        if mode not in ("link", "copy"):
            raise ValueError(f"mode must be 'link' or 'copy', got {mode!r}")
        names = checked(name), checked(alias)
        if mode == "copy" or not self._link(*names):
            self._copy(*names)

    def list(self) -> Names:
        """Return the names of the files directly in the folder, sorted.

        No folders, and no temporary files of writes that are under way or were killed.  A
        folder that does not exist has none.
        """
        return sorted(name for name in self._names() if not _TEMPORARY.fullmatch(name))

    def clean(self, prefix: str = "") -> Names:
        """Remove the temporary files that killed writes left directly in the folder.

        Those of writes under way stay, in a local folder.  In a store they look the same as
        the others: there nobody else may be writing names that start with ``prefix``.

        Returns:
            What was removed.
        """
        stale = [
            name
            for name in sorted(self._names())
            if (match := _TEMPORARY.fullmatch(name))
            and match["name"].startswith(prefix)
            and not self._is_open(name)
        ]
        for name in stale:
            self.remove(name)
        return stale

    def check_writable(self) -> None:
        """Try to write a file in the folder, and leave no trace of it.

        Folders that had to be created for the attempt are removed again.
        """
        missing = self._missing_folders()
        probe = temporary_name("probe")
        try:
            self.write_text(probe, "probe")
            self.remove(probe)
        except CheckpointError as error:
            what = f"cannot write to {self.location}"
            raise failure(what, error.__cause__ or error, "choose another out_dir") from error
        finally:
            with contextlib.suppress(CheckpointError):  # the first failure tells more
                self.remove(probe)
            for folder in missing:
                self._remove_empty_folder(folder)

    @abc.abstractmethod
    def _link(self, name: str, alias: str) -> bool:
        """Make ``alias`` a link of ``name``; return ``False`` if that cannot be done."""

    @abc.abstractmethod
    def _copy(self, name: str, alias: str) -> None:
        """Make ``alias`` a copy of ``name``."""

    @abc.abstractmethod
    def _names(self) -> Names:
        """Return the names of all files directly in the folder."""

    @abc.abstractmethod
    def _is_open(self, name: str) -> bool:
        """Return whether a write of this temporary file is known to be under way."""

    @abc.abstractmethod
    def _missing_folders(self) -> Names:
        """Return the folders that a first write would create, deepest first."""

    @abc.abstractmethod
    def _remove_empty_folder(self, folder: str) -> None:
        """Remove a folder if it is there and empty."""

    @contextlib.contextmanager
    def _explained(self, verb: str, name: str = "", hint: str = "") -> Iterator[None]:
        """Turn any failure inside into words; an error of this package has them already."""
        try:
            yield
        except EvalHookError:
            raise
        except Exception as error:
            where = self.path(name) if name else self.location
            raise failure(f"could not {verb} {where}", error, hint) from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"


def failure(what: str, cause: BaseException, hint: str = "") -> CheckpointError:
    """Return the error that says what failed, why, and what to do, with the cause's errno."""
    number = getattr(cause, "errno", None)
    if isinstance(cause, CheckpointError) or not isinstance(number, int):
        reason = f"{type(cause).__name__}: {cause}"
    else:
        text = getattr(cause, "strerror", None) or str(cause)
        reason = f"{text} [{errno.errorcode.get(number, number)}]"
    error = CheckpointError("; ".join(filter(None, [f"{what}: {reason}", hint])))
    error.errno = number
    return error


def temporary_name(name: str) -> str:
    """Return a new name for a file that is to become ``name``."""
    # From the system's generator: those of Python, NumPy and torch belong to the training.
    return f".{name}.{os.urandom(4).hex()}.tmp"


def checked(name: str) -> str:
    """Return ``name`` if it stays within the folder.

    Raises:
        ValueError: If it is empty, absolute, or leads upwards.
    """
    path = PurePath(name)
    if not path.name or path.is_absolute() or path.drive or ".." in path.parts or "\0" in name:
        raise ValueError(f"a file's name must stay within the folder, got {name!r}")
    return name


def spellings(name: str) -> Iterator[str]:
    """Yield ``name`` and, for when it is taken, the same with -2, -3, ... before the suffix."""
    yield name
    path, number = PurePosixPath(name), 2
    while True:
        yield str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
        number += 1


def encoded(text: str) -> bytes:
    """Return ``text`` in UTF-8."""
    # A lone surrogate has no UTF-8; spelled out it is what JSON itself would write.
    return text.encode("utf-8", errors="backslashreplace")


def encoded_line(line: str) -> bytes:
    """Return ``line`` and its line break in UTF-8.

    Raises:
        ValueError: If it holds a line break of its own.
    """
    if "\n" in line:
        raise ValueError(f"a line must not hold a line break, got {line!r}")
    return encoded(line + "\n")


def complete_lines(data: bytes) -> int:
    """Return how many bytes of ``data`` are lines that end with their line break."""
    return data.rfind(b"\n") + 1
