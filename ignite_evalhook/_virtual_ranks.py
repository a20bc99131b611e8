"""Let one process play all ranks of Ignite, one after another.

:func:`simulate` runs the same computation once for each of several virtual ranks.  Where it asks
the other ranks something, it is stopped; when all have asked, the answer is found, and they all
begin again, now with one more answer known.  No process group is ever used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any, NoReturn, cast

import torch
from ignite.exceptions import NotComputableError

from ._reductions import OPERATIONS, joined, reduced, same
from ._rng import remember_random
from ._stand_in import StandIn, in_place, real_model
from .exceptions import EvaluationError

__all__ = ["Outcome", "simulate"]


class _Inexact(Exception):
    """Says, in a sentence about "it", why a computation cannot be made exact."""


@dataclass(frozen=True)
class _Question:
    """What a virtual rank asks all others: the operation, its detail, and its own part."""

    operation: str
    detail: Any
    value: Any


class _Stopped(BaseException):
    """Stops a virtual rank at its question.  No ``except Exception`` is to catch it."""


class _Virtual(StandIn):
    """One of several virtual ranks that all run on this process."""

    def __init__(self, real: Any, rank: int, size: int, answers: Sequence[tuple[str, Any]]) -> None:
        super().__init__(real)
        self._rank = rank
        self._size = size
        self._answers = answers
        self._asked = 0
        self.question: _Question | None = None

    def get_local_rank(self) -> int:
        """Return the virtual rank."""
        return self._rank

    def get_rank(self) -> int:
        """Return the virtual rank."""
        return self._rank

    def get_world_size(self) -> int:
        """Return the number of virtual ranks."""
        return self._size

    def get_nproc_per_node(self) -> int:
        """Return the number of virtual ranks: they are all here."""
        return self._size

    def get_nnodes(self) -> int:
        """Return one machine."""
        return 1

    def get_node_rank(self) -> int:
        """Return the only machine's number."""
        return 0

    def all_reduce(self, tensor: Any, op: str = "SUM", group: Any = None) -> Any:
        """Reduce over the virtual ranks; a tensor is changed in place too, as by torch."""
        if not isinstance(tensor, (torch.Tensor, Number)):
            raise TypeError(f"Unhandled input type {type(tensor)}")
        if op not in OPERATIONS:
            raise ValueError(f"op must be one of {', '.join(OPERATIONS)}, got {op!r}")
        return _into(tensor, self._ask("all_reduce", op, tensor, group))

    def all_gather(self, tensor: Any, group: Any = None) -> Any:
        """Return the values of all virtual ranks."""
        if self._size == 1 and isinstance(tensor, torch.Tensor):
            return tensor
        return self._ask("all_gather", _kind_of(tensor), tensor, group)

    def broadcast(self, tensor: Any, src: int = 0, safe_mode: bool = False) -> Any:
        """Return the value of the virtual rank ``src``, not rounded."""
        if tensor is None and self._rank == src:
            raise ValueError("Source data can not be None")
        if tensor is None and not safe_mode:
            raise ValueError("Argument safe_mode should be True if None is passed for non src rank")
        return _into(tensor, self._ask("broadcast", src, tensor, None))

    def barrier(self) -> None:
        """Do nothing: the virtual ranks run one after another."""

    def _refuse(self, operation: str) -> NoReturn:
        raise _Inexact(
            f"it calls idist.{operation} while it computes, and a metric's ranks are no groups "
            "there; reduce over all ranks"
        )

    def _ask(self, operation: str, detail: Any, value: Any, group: Any) -> Any:
        if group is not None:
            self._refuse(f"{operation}(group=...)")
        question = _Question(operation, detail, value)
        if self._size == 1:
            return _answer([question])
        place, self._asked = self._asked, self._asked + 1
        if place == len(self._answers) and self.question is None:
            self.question = question
        if self.question is not None:
            raise _Stopped("a private signal of ignite-evalhook; let BaseException pass")
        known, answer = self._answers[place]
        if known != operation:
            raise _Inexact(f"it asks {operation} where it asked {known} a moment ago")
        # The computation may change what it gets, and a later run must get it unchanged.
        return answer.clone() if isinstance(answer, torch.Tensor) else copy.deepcopy(answer)


@dataclass(frozen=True)
class Outcome:
    """What a simulation ended with.

    Attributes:
        value: What the first rank got.
        asked: Whether the ranks ever asked each other.
        ranks: How many computed it.
        difference: Says in a sentence about "it" that other ranks got something else.
    """

    value: Any
    asked: bool
    ranks: int
    difference: str | None = None


def simulate(
    computations: Callable[[int], Callable[[], Any]],
    ranks: int,
    *,
    name: str,
    verify: bool = True,
) -> Outcome:
    """Compute on ``ranks`` virtual ranks, and return what the first one gets.

    A rank that raises Ignite's ``NotComputableError`` has nothing to compute from; it is left
    out, and the others begin again without it.

    Args:
        computations: Gives a rank's computation, on a state of its own, each time anew.  It is
            run several times, with the same random numbers each time.
        ranks: How many there are.
        name: What computes, for the errors.
        verify: Let every rank compute to the end, and compare.  Otherwise the first is enough.

    Raises:
        NotComputableError: If no rank has anything to compute from.
        EvaluationError: If the ranks ask different things.
    """
    try:
        return _simulate(computations, ranks, verify)
    except _Inexact as inexact:
        raise EvaluationError(f"{name} cannot be computed over all ranks: {inexact}") from inexact


def _simulate(
    computations: Callable[[int], Callable[[], Any]], ranks: int, verify: bool
) -> Outcome:
    rewind = remember_random(())
    real = real_model()
    present = list(range(ranks))
    answers: list[tuple[str, Any]] = []
    asked = False
    while True:
        outcomes: list[Any] = []
        for place, rank in enumerate(present):
            rewind()
            model = _Virtual(real, place, len(present), answers)
            outcomes.append(_run(model, computations(rank)))
            if not verify and isinstance(outcomes[0], _Value):
                return Outcome(outcomes[0].value, asked, len(present))
        unable = [isinstance(outcome, NotComputableError) for outcome in outcomes]
        if all(unable):
            raise outcomes[0]
        questions = [outcome for outcome in outcomes if isinstance(outcome, _Question)]
        asked = asked or bool(questions)
        if any(unable):
            present = [rank for rank, out in zip(present, unable, strict=True) if not out]
            answers.clear()
        elif questions:
            if len(questions) != len(present):
                raise _Inexact(
                    f"some ranks call idist.{questions[0].operation} and others have their value "
                    "without it; let all ranks ask the same, whatever they have counted"
                )
            answers.append((questions[0].operation, _answer(questions)))
        else:
            difference = _difference([outcome.value for outcome in outcomes])
            return Outcome(outcomes[0].value, asked, len(present), difference)


@dataclass(frozen=True)
class _Value:
    value: Any


def _run(model: _Virtual, compute: Callable[[], Any]) -> _Value | _Question | NotComputableError:
    """Compute on one virtual rank, up to its first open question."""
    try:
        with in_place(model):
            value = compute()
    except _Stopped:
        return cast(_Question, model.question)
    except NotComputableError as error:
        return error
    if model.question is not None:
        raise _Inexact(
            "it catches BaseException around a call of ignite.distributed; catch Exception"
        )
    return _Value(value)


def _answer(questions: Sequence[_Question]) -> Any:
    """Return what all ranks get when they ask this together."""
    first = questions[0]
    for other in questions:
        if other.operation != first.operation or other.detail != first.detail:
            raise _Inexact(
                f"its ranks ask different things at the same place: idist.{first.operation} "
                f"({first.detail}) and idist.{other.operation} ({other.detail})"
            )
    values = [question.value for question in questions]
    try:
        if first.operation == "all_reduce":
            return reduced(values, first.detail)
        if first.operation == "all_gather":
            return joined(values) if first.detail == "tensor" else values
    except RuntimeError as error:  # torch's word for shapes that do not fit
        raise _Inexact(f"its ranks cannot {first.operation} their values: {error}") from error
    if not 0 <= first.detail < len(values):
        raise _Inexact(f"it broadcasts from rank {first.detail} of {len(values)}")
    return values[first.detail]


def _into(value: Any, answer: Any) -> Any:
    """Write an answer into the tensor that was asked with, where it fits, as torch does."""
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


def _difference(values: Sequence[Any]) -> str | None:
    for value in values[1:]:
        if value is not None and not same(values[0], value):
            return (
                f"its ranks get different values, such as {_short(values[0])} and {_short(value)}: "
                "something it computes from is not reduced over the ranks; name all of it in "
                "@sync_all_reduce(...)"
            )
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
