"""The errors this package raises on purpose.

.. code-block:: text

    EvalHookError
    ├── RuleInferenceError (ValueError)    no direction can be told from a metric's name
    ├── StateError (RuntimeError)          a saved state or folder does not belong to this hook
    ├── EvaluationError (RuntimeError)     an evaluation did not produce a complete result
    └── CheckpointError (OSError)          a checkpoint could not be written or read

Bad arguments raise plain :class:`ValueError` and :class:`TypeError`.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "CheckpointError",
    "EvalHookError",
    "EvaluationError",
    "RuleInferenceError",
    "StateError",
]


class EvalHookError(Exception):
    """Base of every error that only this package raises."""


class RuleInferenceError(EvalHookError, ValueError):
    """The name of a metric does not tell whether greater or less is better."""


class StateError(EvalHookError, RuntimeError):
    """A state or a run folder belongs to another metric, rule, run or moment."""


class EvaluationError(EvalHookError, RuntimeError):
    """An evaluation was cut short or gave a result that cannot be used.

    On several processes this is what every rank raises when one has failed, in whatever way.  Its
    words are one line; the traceback of the other rank is a note (``__notes__``).

    Attributes:
        failures: What went wrong on which rank, each with ``rank``, ``kind`` (the name of the
            exception's type), ``message`` and ``trace``; ``()`` if it is not about ranks.
    """

    failures: tuple[Any, ...] = ()


class CheckpointError(EvalHookError, OSError):
    """A checkpoint could not be written, or the file found is missing or damaged."""
