"""Say one plain line, visible without any logging set-up.

``logging.getLogger("ignite_evalhook").setLevel("WARNING")`` silences the lines of evaluations.
"""

from __future__ import annotations

import logging
import sys

__all__: list[str] = []

logger = logging.getLogger("ignite_evalhook")


class _ShowIfNobodyElseDoes(logging.Handler):
    """Write to standard error unless the program has set up logging."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's message as a line."""
        if logging.getLogger().handlers or len(logger.handlers) > 1:
            return
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        sys.stderr.write(f"{prefix}{record.getMessage()}\n")
        sys.stderr.flush()


if not logger.handlers:
    logger.addHandler(_ShowIfNobodyElseDoes())
if logger.level == logging.NOTSET:
    logger.setLevel(logging.INFO)
