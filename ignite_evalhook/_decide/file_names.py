"""Name files: within their folder, beside what is there already, and while they are written.

No disk is touched here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import PurePosixPath, PureWindowsPath

__all__: list[str] = []

_MOST_BYTES = 255  # of a name, on most systems
_TEMPORARY = re.compile(r"\..+?(~(?P<owner>[^~]*))?\.[0-9a-f]{8}\.tmp")


def checked(name: str) -> str:
    """Return ``name`` if it stays within the folder, on any system.

    Raises:
        ValueError: If it is empty, absolute, or leads upwards.
    """
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if not path.name or path.anchor or ".." in path.parts or "\0" in name:
            raise ValueError(f"a file's name must stay within the folder, got {name!r}")
    return name


def check_length(name: str, owner: str) -> None:
    """Refuse a name that is too long for most systems, also while the file is written.

    Raises:
        ValueError: With words.
    """
    *folders, file = PurePosixPath(name).parts
    longest = max(len(part.encode()) for part in (*folders, temporary_name(file, owner)))
    if longest > _MOST_BYTES:
        raise ValueError(
            f"file systems take names of {_MOST_BYTES} bytes in UTF-8, and {name!r} needs "
            f"{longest} while it is written; use shorter names"
        )


def spellings(name: str) -> Iterator[str]:
    """Yield ``name`` and, for when it is taken, the same with -2, -3, ... before the suffix."""
    yield name
    path, number = PurePosixPath(name), 2
    while True:
        yield str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
        number += 1


def temporary_name(name: str, owner: str) -> str:
    """Return a new name for a file that is to become ``name``, or was it.

    Args:
        name: The final name.
        owner: Who writes it, without ``~``: nobody else may remove the file.
    """
    # From the system's generator: those of Python, NumPy and torch belong to the training.
    return f".{name}~{owner}.{os.urandom(4).hex()}.tmp"


def another_temporary(name: str) -> str:
    """Return a new temporary name for the same file and owner as a temporary ``name``."""
    return f"{name[: -len('xxxxxxxx.tmp')]}{os.urandom(4).hex()}.tmp"


def is_temporary(name: str, owner: str | None = None) -> bool:
    """Return whether a name is a temporary one; of ``owner``, if that is given."""
    match = _TEMPORARY.fullmatch(name)
    return match is not None and owner in (None, match["owner"])
