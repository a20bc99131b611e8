"""How far a metric's computation over the ranks is: answers, lists, large tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.exceptions import NotComputableError

from ..exceptions import EvaluationError
from .answers import Large, Reduce, Unable, Value
from .asking_rank import Question, Questions
from .metric_units import Unit
from .state_snapshot import StateSnapshot

__all__ = ["AskedUnit"]

_LARGE = 1 << 20  # bytes of an integer tensor that is reduced by a collective
_REDUCED = frozenset({torch.uint8, torch.int8, torch.int32, torch.int64})
_NEUTRAL: dict[str, Callable[[torch.dtype], int]] = {
    "SUM": lambda dtype: 0,
    "MIN": lambda dtype: torch.iinfo(dtype).max,
    "MAX": lambda dtype: torch.iinfo(dtype).min,
}


class AskedUnit:
    """How far the computation of one unit is, on one rank.

    Attributes:
        ranks: Those that compute it.
        begun: Whether it has been heard of since the batches.
        answers: What was asked, and the answers.
        result: The last word on it, once there is one.
        error: What it raised here, if it is a part of another metric.
        snapshot: How everything stands that computing may change.
    """

    def __init__(self, unit: Unit, ranks: Sequence[int], *, attached: bool, sends: bool) -> None:
        self.unit = unit
        self.ranks = ranks
        self.attached = attached
        self.begun = False
        self.answers: list[tuple[str, Any]] = []
        self.result: Any = None  # Value, Unable or Raised
        self.own: Value | None = None  # the value that this rank has found
        self.error: Exception | None = None
        self.snapshot: StateSnapshot | None = None
        self._sends = sends  # large tensors, too
        self._parts: dict[int, Question] = {}  # what was asked last
        self._had: dict[Any, Any] | None = None

    def take(self) -> Any:
        """Return the value over the ranks, or raise."""
        if isinstance(self.result, Value):
            return copy.deepcopy(self.result.value)
        if isinstance(self.result, Unable):
            raise NotComputableError(self.result.words)
        if self.error is not None:
            raise self.error
        raise EvaluationError(self.result.words)

    def is_everywhere(self, words: Mapping[int, Any], size: int) -> bool:
        """Return whether all ranks have a value that only the metrics around it take."""
        values = [word for word in words.values() if isinstance(word, Value)]
        return not self.attached and len(values) == size

    def begin_again(self, ranks: Sequence[int] | None) -> None:
        """Forget the answers; or, of the same ranks, go on sending large tensors whole."""
        if ranks is None:
            self._sends = True
        else:
            self.ranks, self.answers, self._parts = ranks, [], {}

    def shortened(self, questions: Questions) -> Questions:
        """Return questions without large tensors that can be reduced by a collective."""
        self._parts = dict(enumerate(questions.each))
        if self._sends:
            return questions
        return Questions([
            question._replace(value=Large(tuple(question.value.shape), question.value.dtype))
            if _is_large(question) else question
            for question in questions.each
        ])  # fmt: skip

    def large_part(self, number: int, word: Reduce) -> torch.Tensor:
        """Return this rank's part of a large tensor; if it has none, one that changes nothing."""
        question = self._parts.pop(number, None)
        if question is not None:
            part: torch.Tensor = question.value.detach().to("cpu", copy=True)
            return part.contiguous()
        neutral = _NEUTRAL[word.op](word.tensor.dtype)
        return torch.full(word.tensor.shape, neutral, dtype=word.tensor.dtype)

    def put(self, values: Mapping[Any, Any]) -> None:
        """Give the unit other lists and settings, until they are put back."""
        self._had = self.unit.marks.put(values)
        self.snapshot = None

    def put_lists_back(self) -> None:
        """Give the unit its own lists again."""
        if self._had is not None:
            self.unit.marks.put_back(self._had)
            self._had, self.snapshot = None, None


def _is_large(question: Question) -> bool:
    value = question.value
    return (
        question.operation == "all_reduce"
        and question.detail in _NEUTRAL
        and isinstance(value, torch.Tensor)
        and value.dtype in _REDUCED
        and value.nbytes >= _LARGE
    )
