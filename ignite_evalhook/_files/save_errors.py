"""Say what happens when a file of the run cannot be written: an error, or a line in the log."""

from __future__ import annotations

from .._log import logger
from ..exceptions import CheckpointError

__all__: list[str] = []


class SaveErrors:
    """What becomes of the failures to write a hook's files.

    Args:
        name: The hook's name.
        warns: Whether a failure is only logged, and training goes on.
    """

    def __init__(self, name: str, *, warns: bool) -> None:
        self.warns = warns
        self._name = name
        self._told: set[str] = set()

    def failed(self, what: str, error: CheckpointError) -> None:
        """Raise ``error``, or log it; of one kind only the first, until a file is written again.

        Args:
            what: The kind of file, in words.
            error: What went wrong.
        """
        if not self.warns:
            raise error
        if what not in self._told:
            logger.error("%s: %s was not saved: %s", self._name, what, error)
        self._told.add(what)

    def written(self, what: str) -> None:
        """Note that a file was written: the next failure is told again."""
        self._told.discard(what)
