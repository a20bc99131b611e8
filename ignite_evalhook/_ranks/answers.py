"""Decide what the ranks are told that ask each other while a metric computes.

Pure: what each rank says of one metric in, what all are told out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from .asking_rank import InexactError, Question, Questions
from .reductions import joined, reduced

__all__ = [
    "UNREDUCED",
    "Again",
    "Answer",
    "Answers",
    "Large",
    "Own",
    "Raised",
    "Reduce",
    "Unable",
    "Value",
    "decide",
    "summary",
]


class Value(NamedTuple):
    """A metric's value on a rank, or its summary; whether others had a part in it."""

    value: Any
    shared: bool = True


class Own(NamedTuple):
    """Each rank is to take its own value, which need not be sent."""


class Unable(NamedTuple):
    """A rank has nothing to compute from; ``words`` is ``None`` if it had no batch."""

    words: str | None = None


class Raised(NamedTuple):
    """Computing has failed on a rank, or cannot be done over the ranks."""

    words: str


class Large(NamedTuple):
    """Stands for an integer tensor too large to be sent by each rank to one."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Answer(NamedTuple):
    """What was asked, and what all get."""

    operation: str
    value: Any


class Reduce(NamedTuple):
    """All ranks are to reduce their large tensors by a collective."""

    op: str
    tensor: Large


class Answers(NamedTuple):
    """The answers to what was asked at once."""

    each: Sequence[Answer | Reduce]


class Again(NamedTuple):
    """These ranks are to begin again; or to go on, sending large tensors whole."""

    ranks: Sequence[int] | None = None


Said = Value | Unable | Raised | Questions
Told = Value | Own | Unable | Raised | Answers | Again


def decide(said: Mapping[int, Said]) -> Told:
    """Return what all are told, from what each rank says that computes.

    Raises:
        InexactError: If the metric cannot be computed over the ranks.
    """
    words = list(said.values())
    raised = next((word for word in words if isinstance(word, Raised)), None)
    if raised is not None:
        return raised
    able = {rank: word for rank, word in said.items() if not isinstance(word, Unable)}
    if not able:
        told = [word for word in words if isinstance(word, Unable) and word.words is not None]
        return told[0] if told else Unable("no batch came, on no rank")
    if len(able) < len(said):
        return Again(sorted(able))
    asked = [word.each for word in words if isinstance(word, Questions)]
    if not asked:
        return _agreed([word for word in words if isinstance(word, Value)])
    if len(asked) < len(words):
        raise InexactError(
            f"some ranks call idist.{asked[0][0].operation} and others have their value without "
            "it; let all ranks ask the same, whatever they have counted"
        )
    if len({*map(len, asked)}) > 1:
        raise InexactError("its ranks ask different numbers of things at once")
    answers = [_answered(questions) for questions in zip(*asked, strict=True)]
    known = [answer for answer in answers if answer is not None]
    return Answers(known) if len(known) == len(answers) else Again()


def _agreed(values: Sequence[Value]) -> Value:
    if len(values) > 1 and not any(value.shared for value in values):
        raise InexactError(UNREDUCED)
    for value in values[1:]:
        if value.value is not None and not _alike(summary(values[0].value), value.value):
            raise InexactError(
                f"its ranks get different values, such as {_short(values[0].value)} and others: "
                "something it computes from is not reduced over the ranks; name all of it in "
                "@sync_all_reduce(...)"
            )
    return values[0]


UNREDUCED = (
    "it never asks the other ranks while it computes, so each rank would have its own value; put "
    "@sync_all_reduce('_sum', ...) on compute(), with the names of all that update() counts"
)


def _answered(questions: Sequence[Question]) -> Answer | Reduce | None:
    """Return what all ranks get when they ask this together; ``None``: it must be sent whole."""
    first = questions[0]
    for other in questions:
        if (other.operation, other.detail) != (first.operation, first.detail):
            raise InexactError(
                f"its ranks ask different things at the same place: idist.{first.operation} "
                f"({first.detail}) and idist.{other.operation} ({other.detail})"
            )
    values = [question.value for question in questions]
    large = [value for value in values if isinstance(value, Large)]
    if large:
        alike = len(large) == len(values) and len({*large}) == 1
        return Reduce(first.detail, large[0]) if alike else None
    try:
        if first.operation == "all_reduce":
            return Answer("all_reduce", reduced(values, first.detail))
        if first.operation == "all_gather":
            return Answer("all_gather", joined(values) if first.detail == "tensor" else values)
    except RuntimeError as error:  # torch's word for shapes that do not fit
        raise InexactError(f"its ranks cannot {first.operation} their values: {error}") from error
    if not 0 <= first.detail < len(values):
        raise InexactError(f"it broadcasts from rank {first.detail} of {len(values)}")
    return Answer("broadcast", values[first.detail])


def summary(value: Any) -> Any:
    """Return what tells two values apart that are not the same, and is small.

    Ranks on unlike machines may differ in last digits.
    """
    leaves, structure = pytree.tree_flatten(value)
    return str(structure), [_summary_of(leaf) for leaf in leaves]


def _summary_of(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        numbers = leaf.detach().to("cpu", torch.float64 if not leaf.is_complex() else None)
        numbers = torch.view_as_real(numbers) if numbers.is_complex() else numbers
        numbers = numbers.double().nan_to_num(0.5)
        return [*leaf.shape, numbers.sum().item(), numbers.square().sum().item()]
    if isinstance(leaf, (bool, int, float, str, bytes)):
        return leaf
    return type(leaf).__qualname__


def _alike(left: Any, right: Any) -> bool:
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(_alike, left, right))
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        close = math.isclose(left, right, rel_tol=1e-5, abs_tol=1e-7)
        return close or (left != left and right != right)
    return bool(left == right)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
