"""Find the storage behind an ``out_dir``: a local folder, or a URL for fsspec.

A :class:`Storage` is one folder of files, each there complete or not at all.  What the files
mean and who may write them is not its business: no metric, no hook, no engine.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit
from urllib.request import url2pathname

from .base import Storage
from .local import LocalStorage
from .remote import FsspecStorage

__all__ = ["FsspecStorage", "LocalStorage", "Storage", "open_storage"]


def open_storage(out_dir: str | os.PathLike[str]) -> Storage:
    """Return the storage that a path or a URL names, without touching it.

    Args:
        out_dir: A path or a ``file://`` URL for a local folder; ``proto://...`` for any other
            file system that fsspec knows.  A relative path is resolved now, and ``~`` is the
            home folder.

    Raises:
        ImportError: If the package behind the URL's protocol is not installed.
        ValueError: If it is empty, fsspec knows no such protocol, or a ``file://`` URL names
            another machine.
    """
    where = os.fsdecode(out_dir)
    if not where:
        raise ValueError("out_dir must be a folder or a URL, got ''; '.' is the current folder")
    if "://" not in where:
        return LocalStorage(os.path.expanduser(where))
    if not where.lower().startswith("file://"):
        return FsspecStorage(where)
    parts = urlsplit(where)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"a file:// URL has three slashes (file:///folder), got {where!r}")
    return LocalStorage(url2pathname(parts.path))
