"""Say one plain line, visible without any logging set-up, on one process only.

``logging.getLogger("ignite_evalhook").setLevel("WARNING")`` silences the lines of evaluations.
"""

from __future__ import annotations

import logging
import sys
from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist

__all__: list[str] = []

logger = logging.getLogger("ignite_evalhook")


def add_note(error: BaseException, note: str) -> None:
    """Say more about an error on its way, below its traceback; before Python 3.11 in the log."""
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:
        vars(error)["__notes__"] = [*getattr(error, "__notes__", ()), note]
        logger.error("%s", note)


_SAID: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def say_once(owner: object, message: str, *values: object, level: int = logging.WARNING) -> None:
    """Log a message once in the life of ``owner``, whatever the values."""
    said = _SAID.setdefault(owner, set())
    if message not in said:
        said.add(message)
        logger.log(level, message, *values)


class _ShowIfNobodyElseDoes(logging.Handler):
    """Write to standard error unless the program has set up logging."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's message as a line."""
        if logging.getLogger().handlers or len(logger.handlers) > 1:
            return
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        sys.stderr.write(f"{prefix}{record.getMessage()}\n")
        sys.stderr.flush()


def _is_first_rank(record: logging.LogRecord) -> bool:
    """Return whether this process speaks for all: every rank has the same to say."""
    # Not by ignite.distributed, whose first call may be a collective.
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


if not logger.handlers:
    logger.addHandler(_ShowIfNobodyElseDoes())
    logger.addFilter(_is_first_rank)
if logger.level == logging.NOTSET:
    logger.setLevel(logging.INFO)
