"""Decide whether the price of data workers is worth a word.

Pure: seconds in, a line or nothing out.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

__all__: list[str] = []

SHARE = 0.1  # of an evaluation, above which it is worth a word
LEAST = 0.01  # seconds an evaluation; what saves less is not


class WorkerHint:
    """Say once that workers are started anew for each evaluation, if that takes long.

    Said when two evaluations in a row, of the same loader, have paid too much: one may have met a
    busy machine, and the workers of a loader that is used once cannot be kept.
    """

    def __init__(self) -> None:
        self._before: ref[Any] | None = None
        self._said = False

    def heed(self, data: Any, workers: float, seconds: float) -> str | None:
        """Look at an evaluation; return what there is to say.

        Args:
            data: What was evaluated.
            workers: Seconds it took to start workers and to end them.
            seconds: Seconds of the evaluation.
        """
        if self._said:
            return None
        if workers < LEAST or workers <= SHARE * seconds:
            self._before = None
            return None
        again = self._before is not None and self._before() is data
        self._before = ref(data)
        if not again:
            return None
        self._said = True
        return (
            f"{workers:.2f} s of this evaluation's {seconds:.2f} s went into starting and ending "
            "data workers, and so it is each time; DataLoader(..., persistent_workers=True) keeps "
            "them"
        )
