"""Keep files behind a URL that fsspec understands: ``s3://...``, ``gs://...``, ``memory://...``.

Most stores have no rename and no flush.  What they have is enough: a file that is written
under a new name, closed, and read back by its size is complete, and a copy of it appears under
the final name complete or not at all.  Whether it is durable then is the store's promise.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any, BinaryIO, cast

from .._decide.file_names import checked, spellings, temporary_name
from .base import (
    UNHARMED,
    Names,
    Storage,
    complete_lines,
    encoded_line,
)
from .counting_file import CountingFile

__all__ = ["FsspecStorage"]


class FsspecStorage(Storage):
    """A folder in a store.

    On a store that renames, but never over an existing file, a new version's name is free for
    an instant between the removal of the old one and the renaming.

    Args:
        url: URL of the folder.

    Raises:
        ImportError: If the package behind the URL's protocol is not installed.
        ValueError: If fsspec knows no such protocol.
    """

    def __init__(self, url: str) -> None:
        self._fs, root = _file_system(url)
        self._root = root.rstrip("/")
        is_root = not url.partition("://")[2].strip("/")
        self.location = url if is_root else url.rstrip("/")

    def path(self, name: str) -> str:
        """Return the URL of ``name``."""
        between = "" if self.location.endswith("/") else "/"
        return f"{self.location}{between}{checked(name)}"

    def write(self, name: str, save: Callable[[BinaryIO], object]) -> None:
        """Write a file; see :meth:`Storage.write`."""
        final = self._full(name)
        with self._explained("write", name, UNHARMED):
            temporary = self._temporary(final)
            try:
                count = self._write_new(temporary, save)
                self._expect_size(temporary, count)
                self._put(temporary, final)
            except BaseException:
                self._discard(temporary)
                raise
            self._expect_size(final, count)

    def append_line(self, name: str, line: str) -> None:
        """Add a line by writing the whole file anew; see :meth:`Storage.append_line`."""
        data, before = encoded_line(line), b""
        if self.exists(name):
            with self._explained("read", name), self.open(name) as file:
                before = file.read()
        whole = before[: complete_lines(before)] + data
        self.write(name, lambda file: file.write(whole))

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        full = self._full(name)
        with self._explained("open", name):
            return cast("BinaryIO", self._fs.open(full, "rb"))

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, ``None`` if there is no such file."""
        full = self._full(name)
        with self._explained("look at", name):
            return self._size(full)

    def remove(self, name: str) -> None:
        """Remove a file; a missing one is fine."""
        if self.exists(name):
            with self._explained("remove", name):
                self._fs.rm_file(self._full(name))

    def wait(self) -> None:
        """Do nothing: what was removed is gone."""

    def move(self, name: str, to: str) -> None:
        """Rename a file; see :meth:`Storage.move`."""
        candidates = spellings(checked(to))
        if not self.exists(name):
            return
        target = self._full(next(free for free in candidates if not self.exists(free)))
        with self._explained("move", name):
            self._fs.makedirs(_parent(target), exist_ok=True)
            self._put(self._full(name), target)

    def _link(self, name: str, alias: str) -> bool:
        return False  # a store has no links

    def _copy(self, name: str, alias: str) -> None:
        source, target = self._full(name), self._full(alias)
        with self._explained("copy", name, UNHARMED):
            temporary = self._temporary(target)
            try:
                self._fs.cp_file(source, temporary)
                self._expect_size(temporary, self._size(source))
                self._put(temporary, target)
            except BaseException:
                self._discard(temporary)
                raise

    def _names(self) -> Names:
        with self._explained("list"):
            self._fs.invalidate_cache()
            try:
                entries = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
        # A store may list the folder itself, as a file without a name.
        names = [str(entry["name"]) for entry in entries if entry["type"] == "file"]
        return [name.rpartition("/")[2] for name in names if not name.endswith("/")]

    def _missing_folders(self) -> Names:
        missing, folder = [], self._root
        with self._explained("look at"):
            while folder and not self._fs.exists(folder):
                missing.append(folder)
                folder = _parent(folder)
        return missing

    def _remove_empty_folder(self, folder: str) -> None:
        with contextlib.suppress(Exception):  # most stores have no folders that one could remove
            self._fs.invalidate_cache()
            if self._fs.exists(folder) and not self._fs.ls(folder):
                self._fs.rmdir(folder)

    def _full(self, name: str) -> str:
        return f"{self._root}/{checked(name)}"

    def _temporary(self, final: str) -> str:
        """Return a new name beside ``final``, in a folder that exists."""
        folder, _, name = final.rpartition("/")
        self._fs.makedirs(folder, exist_ok=True)
        return f"{folder}/{temporary_name(name, self.owner)}"

    def _write_new(self, path: str, save: Callable[[BinaryIO], object]) -> int:
        """Create the file ``path``, and return how many bytes were written."""
        file = self._fs.open(path, "wb")
        sink = CountingFile(file.write)
        try:
            sink.fill(save)
        except BaseException:
            with contextlib.suppress(Exception):  # the first failure tells more
                file.close()
            raise
        file.close()
        return sink.count

    def _expect_size(self, path: str, count: int | None) -> None:
        size = self._size(path)
        if size is None or size != count:
            raise OSError(errno.EIO, f"wrote {count} bytes, but the store has {size}")

    def _size(self, path: str) -> int | None:
        self._fs.invalidate_cache()
        try:
            info = self._fs.info(path)
        except FileNotFoundError:
            return None
        return None if info["type"] == "directory" else int(info["size"])

    def _put(self, source: str, target: str) -> None:
        """Rename ``source`` to ``target``, replacing what is there."""
        self._rename(source, target)
        if self._size(source) is not None:  # refused because ``target`` exists
            self._fs.rm_file(target)
            self._rename(source, target)

    def _rename(self, source: str, target: str) -> None:
        from fsspec.spec import AbstractFileSystem

        if type(self._fs).mv is AbstractFileSystem.mv:
            # No rename: copy and remove, by calls that do not read "[" and "*" as patterns.
            self._fs.cp_file(source, target)
            self._fs.rm_file(source)
            return
        with contextlib.suppress(FileExistsError):  # some stores say nothing either: _put looks
            self._fs.mv(source, target)

    def _discard(self, path: str) -> None:
        with contextlib.suppress(Exception):  # already renamed, or the error on its way tells more
            self._fs.rm_file(path)


def _file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for ``url``, and the folder within it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ImportError(f"out_dir={url!r} needs fsspec: pip install fsspec") from error
    protocol = url.partition("://")[0]
    try:
        file_system, root = url_to_fs(url)
    except ImportError as error:
        raise ImportError(
            f"out_dir={url!r} needs a package that is not installed ({error}): "
            f"pip install {_requirement(protocol)}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"out_dir={url!r} cannot be used: {error}; allowed are a local folder and the "
            f"protocols that fsspec knows, such as s3://, gs://, memory://"
        ) from error
    return file_system, str(root)


def _requirement(protocol: str) -> str:
    """Return what to install for a protocol: one of fsspec's extras where it has one."""
    try:
        extras = metadata("fsspec").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        extras = []
    return f"'fsspec[{protocol}]'" if protocol in extras else f"the package for {protocol}://"


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
