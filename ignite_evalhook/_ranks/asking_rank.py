"""Stand in for Ignite's communication while a metric computes on one of several ranks.

A question to the other ranks whose answer is known gets it; the first other one stops the
computation, which is to be run again when it is answered.

Ignite's ``sync_all_reduce`` asks for one attribute after the other without looking at the answers:
it gets an :class:`OpenAnswer`, so that all its questions are answered at once.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from numbers import Number
from typing import Any, NamedTuple, NoReturn

import torch

from .offline import StandIn
from .reductions import OPERATIONS

__all__ = ["AskingRank", "InexactError", "Question", "Questions", "Stopped"]


class InexactError(Exception):
    """Says, in a sentence about "it", why a computation cannot be made exact."""


class Stopped(BaseException):
    """Stops a computation at its question.  No ``except Exception`` is to catch it."""


class Question(NamedTuple):
    """What a rank asks all others: the operation, its detail, and its own part."""

    operation: str
    detail: Any
    value: Any


class Questions(NamedTuple):
    """What a rank asks at once."""

    each: Sequence[Question]


class AskingRank(StandIn):
    """A rank that knows some answers.

    Args:
        real: Ignite's own computation model.
        rank: The number among those that compute, 0-based.
        size: How many there are, more than one.
        answers: What it asked before, and the answers.

    Attributes:
        questions: Those without an answer.
        asked: Whether it has asked anything.
        stopped: Whether it has been stopped.
    """

    def __init__(
        self, real: Any, rank: int, size: int, answers: Sequence[tuple[str, Any]] = ()
    ) -> None:
        super().__init__(real)
        self._rank = rank
        self._size = size
        self._answers = answers
        self._place = 0
        self.questions: list[Question] = []
        self.asked = self.stopped = False

    def get_local_rank(self) -> int:
        """Return the rank: where it is, is nobody's business."""
        return self._rank

    def get_rank(self) -> int:
        """Return the number among those that compute."""
        return self._rank

    def get_world_size(self) -> int:
        """Return how many compute."""
        return self._size

    def get_nproc_per_node(self) -> int:
        """Return how many compute."""
        return self._size

    def get_nnodes(self) -> int:
        """Return one machine."""
        return 1

    def get_node_rank(self) -> int:
        """Return the only machine's number."""
        return 0

    def all_reduce(self, tensor: Any, op: str = "SUM", group: Any = None) -> Any:
        """Reduce over the ranks; a tensor is changed in place too, as by torch."""
        if not isinstance(tensor, (torch.Tensor, Number)):
            raise TypeError(f"Unhandled input type {type(tensor)}")
        if op not in OPERATIONS:
            raise ValueError(f"op must be one of {', '.join(OPERATIONS)}, got {op!r}")
        return _into(tensor, self._ask("all_reduce", op, tensor, group))

    def all_gather(self, tensor: Any, group: Any = None) -> Any:
        """Return the values of all ranks; tensors are joined by rows."""
        return self._ask("all_gather", _kind_of(tensor), tensor, group)

    def broadcast(self, tensor: Any, src: int = 0, safe_mode: bool = False) -> Any:
        """Return the value of the rank ``src``, not rounded."""
        if tensor is None and self._rank == src:
            raise ValueError("Source data can not be None")
        if tensor is None and not safe_mode:
            raise ValueError("Argument safe_mode should be True if None is passed for non src rank")
        return _into(tensor, self._ask("broadcast", src, tensor, None))

    def barrier(self) -> None:
        """Do nothing: the ranks meet at the next question anyway."""

    def stop(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Stop the computation."""
        self.stopped = True
        raise Stopped("a private signal of ignite-evalhook; let BaseException pass")

    def _refuse(self, operation: str) -> NoReturn:
        raise InexactError(
            f"it calls idist.{operation} while it computes, and a metric's ranks are no groups "
            "there; reduce over all ranks"
        )

    def _ask(self, operation: str, detail: Any, value: Any, group: Any) -> Any:
        if group is not None:
            self._refuse(f"{operation}(group=...)")
        self.asked = True
        place, self._place = self._place, self._place + 1
        if place >= len(self._answers):
            is_ignites = sys._getframe(3).f_globals.get("__name__") == "ignite.metrics.metric"
            if is_ignites or not self.questions:
                self.questions.append(Question(operation, detail, value))
            return OpenAnswer(self.stop) if is_ignites else self.stop()
        known, answer = self._answers[place]
        if known != operation:
            raise InexactError(f"it asks {operation} where it asked {known} a moment ago")
        # The computation may change what it gets, and a later run must get it unchanged.
        if isinstance(answer, torch.Tensor):
            device = value.device if isinstance(value, torch.Tensor) else answer.device
            return answer.to(device, copy=True)
        return copy.deepcopy(answer)


class OpenAnswer:
    """An answer that is not there yet: whoever looks at it is stopped.

    It can be kept: in an attribute, in a container.
    """

    __slots__ = ("_stop",)

    def __init__(self, stop: Callable[..., NoReturn]) -> None:
        self._stop = stop

    def __getattribute__(self, name: str) -> Any:
        _look(self)


def _look(answer: OpenAnswer, *args: Any) -> NoReturn:
    stop: Callable[[], NoReturn] = object.__getattribute__(answer, "_stop")
    stop()


_LOOKS = """
    abs add and bool call complex contains divmod enter eq float floordiv format ge getitem gt hash
    iadd imul index int invert isub iter itruediv le len lt matmul mod mul ne neg or pos pow radd
    rdivmod repr rfloordiv rmatmul rmod rmul round rpow rsub rtruediv setitem str sub truediv
"""
for _name in _LOOKS.split():
    setattr(OpenAnswer, f"__{_name}__", _look)


def _into(value: Any, answer: Any) -> Any:
    """Write an answer into the tensor that was asked with, where it fits, as torch does."""
    if type(answer) is OpenAnswer:
        return answer
    if not isinstance(value, torch.Tensor) or not isinstance(answer, torch.Tensor):
        return answer
    if value.shape != answer.shape or value.dtype != answer.dtype or value.requires_grad:
        return answer
    return value.copy_(answer)


def _kind_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "tensor"
    if isinstance(value, Number):
        return "number"
    return "text" if isinstance(value, str) else "object"
