"""Say what a folder of files can do, wherever it is.

:class:`Storage` is the promise that the local and the remote folder keep: a file is there
complete or not at all.  Beside it stand what both need: errors in plain words, and text.  No disk
is touched here.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .._decide.file_names import checked, is_temporary, temporary_name
from .._log import logger
from ..exceptions import CheckpointError, EvalHookError

__all__ = ["Names", "Storage"]

BLOCK = 1 << 20  # bytes read at once
UNHARMED = "an earlier file of that name is unharmed"
Names = list[str]  # within the class, ``list`` is a method


class Storage(abc.ABC):
    """A folder of files.  Names are relative to it, with ``/`` for folders below.

    Every method that fails raises :class:`CheckpointError`, which says what failed and why and
    carries the ``errno`` of its cause.  A name that leads out of the folder is a ``ValueError``.

    Attributes:
        location: The folder's absolute path or its URL, for messages.
        owner: Who writes there, as a part of temporary names; see :meth:`clean`.
    """

    location: str
    owner: str = ""

    @abc.abstractmethod
    def path(self, name: str) -> Path | str:
        """Return where ``name`` is: a ``Path`` in a local folder, else a URL."""

    @abc.abstractmethod
    def write(self, name: str, save: Callable[[BinaryIO], object]) -> None:
        """Write a file, replacing an old one of that name only when the new one is complete.

        Args:
            name: Name of the file; missing folders are created.
            save: Writes the content into the file object it is given, in one pass: the object
                cannot seek and has no ``fileno``.

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
        """Return the size of a file in bytes, ``None`` if there is no such file.

        In a local folder, what has the name and is no file is an error.
        """

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

    def fingerprint(self, name: str) -> tuple[int, str] | None:
        """Return the size of a file in bytes, and the CRC-32 of its last MiB in hex.

        There ``torch.save`` lists what it has saved, with the CRC-32 of each piece: so it tells
        any two checkpoints apart, and costs the same for large and small ones.  ``None`` if
        there is no such file.
        """
        size = self.size(name)
        if size is None:
            return None
        with self._explained("read", name), self.open(name) as file:
            file.seek(max(0, size - BLOCK))
            return size, f"{zlib.crc32(file.read()):08x}"

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
        return sorted(name for name in self._names() if not is_temporary(name))

    def clean(self) -> Names:
        """Remove the temporary files that killed writes of this owner left in the folder itself.

        Those of other owners stay, as nobody can tell whether they are being written.

        Returns:
            What was removed, or could not be, of which a warning tells.
        """
        stale = [name for name in sorted(self._names()) if is_temporary(name, self.owner)]
        for name in stale:
            try:
                self.remove(name)
            except CheckpointError as error:
                logger.warning("%s", error)
        return stale

    def check_writable(self) -> None:
        """Try to write a file in the folder, and leave no trace of it.

        Folders that had to be created for the attempt are removed again.
        """
        missing = self._missing_folders()
        probe = temporary_name("probe", self.owner)
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
