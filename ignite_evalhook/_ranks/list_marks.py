"""Note how lists grow batch by batch, and put those of several ranks into the order of the dataset.

Many metrics keep what they are given in lists, and the order may matter: that of tied scores, or
of rows that are the result.  What is in a list is never looked at.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from functools import partial
from itertools import chain
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from torch import nn

from .reductions import in_dataset_order

__all__ = ["Holder", "ListMarks", "ListReport", "dealt_lists", "joined_lists"]

Place = tuple[int, str]  # a holder's number, and the name of its attribute
Lists = dict[Place, list[Any]]

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_LARGE = 1 << 20  # bytes of an array beyond which it is not looked at
_MISSING = object()
_NEW = (_MISSING, None)
_MANY = 1000  # items of a container beyond which they are not looked at
_SETTINGS = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, partial, Enum,
             torch.device, torch.dtype, nn.Module, Metric, Engine)  # fmt: skip


class Holder(NamedTuple):
    """An object that may hold lists that grow.

    Attributes:
        item: The object.
        names: The attributes that are its state; ``None``: any may be.
        lists: Those of them whose lists are told to other ranks; ``None``: all.
        known: An object inside of it does not count, nor does a number that an attribute gets in
            the place of ``None`` with the first batch.
        trusted: Nor with a later one.
    """

    item: Any
    names: Collection[str] | None = None
    lists: Collection[str] | None = None
    known: bool = False
    trusted: bool = False

    def state(self) -> dict[str, Any]:
        """Return the attributes that may be state."""
        held = vars(self.item)
        names = held if self.names is None else self.names
        return {name: held[name] for name in names if name in held}

    def grown(self) -> dict[str, list[Any]]:
        """Return the lists that may have grown."""
        names = self.names if self.lists is None else self.lists
        return {
            name: value
            for name, value in vars(self.item).items()
            if type(value) is list and (names is None or name in names)
        }


class ListReport(NamedTuple):
    """What the batches of one rank have added to its lists.

    Attributes:
        lists: The items added, and how many there were before the first batch (0) and after each.
        batches: The number of batches.
        counting: The names of what has changed otherwise, and may count.  If there is none on all
            ranks, their lists are all that one process would have.
        settings: What other attributes have become, with their names.
    """

    lists: dict[Place, tuple[list[Any], list[int]]]
    batches: int
    counting: list[str]
    settings: dict[Place, tuple[str, Any]]


class ListMarks:
    """How the lists of some objects grow, batch by batch."""

    def __init__(self, holders: Sequence[Holder]) -> None:
        self._holders = holders
        self._marks: dict[Place, _Marks] = {}
        self._before: Sequence[dict[str, tuple[Any, Any]]] = ()
        self._first: Sequence[dict[str, Any]] = ()  # after the first batch
        self._notes = 0

    def note(self) -> None:
        """Note the lengths; to be called before the first batch and after every batch."""
        if self._notes == 0:
            self._before = [
                {name: (value, _picture(value, holder.known)) for name, value in state.items()}
                for holder in self._holders
                for state in (holder.state(),)
            ]
        elif self._notes == 1:
            self._first = [holder.state() for holder in self._holders]
        for number, holder in enumerate(self._holders):
            for name, items in holder.grown().items():
                place = number, name
                if place not in self._marks:
                    self._marks[place] = _Marks(self._notes)
                self._marks[place].note(items)
        self._notes += 1

    def report(self) -> ListReport | None:
        """Return what the batches have added; ``None`` if there is no list at all."""
        if not self._marks:
            return None
        report = ListReport({}, max(self._notes - 1, 0), [], {})
        for number, holder in enumerate(self._holders):
            for name, value in holder.state().items():
                place, title = (number, name), f"{type(holder.item).__name__}.{name}"
                marks = self._marks.get(place)
                if marks is not None and len({*marks.lengths}) > 1:
                    if marks.grows and len(marks.lengths) == self._notes:
                        start = marks.lengths[0]
                        lengths = [length - start for length in marks.lengths]
                        report.lists[place] = value[start:], lengths
                    else:
                        report.counting.append(title)
                elif self._counts(number, name, value):
                    report.counting.append(title)
                elif isinstance(value, _PLAIN) and self._before[number].get(name, _NEW)[0] != value:
                    report.settings[place] = title, value
        return report

    def _counts(self, number: int, name: str, value: Any) -> bool:
        """Return whether an attribute has become what may be a count, rather than a setting."""
        known = self._holders[number].known
        old, picture = self._before[number].get(name, (None, None))
        if picture == _picture(value, known):
            return False
        if isinstance(old, (torch.Tensor, *_CONTAINERS)) or _is_number(old):
            return True
        if known and _is_number(value):
            trusted = self._holders[number].trusted
            return not trusted and bool(self._first[number].get(name) != value)
        return not isinstance(value, (bool, str, type(None))) and (
            not known or _is_array(value) or isinstance(value, (torch.Tensor, *_CONTAINERS))
        )

    def put(self, values: Mapping[Place, Any]) -> dict[Place, Any]:
        """Give the lists other items after those they began with, and attributes other values.

        Returns:
            What was there, for :meth:`put_back`.
        """
        had = {}
        for (number, name), value in values.items():
            attributes = vars(self._holders[number].item)
            had[number, name] = attributes.get(name, _MISSING)
            if isinstance(value, list):
                own = attributes.get(name, [])
                marks = self._marks.get((number, name))
                begin = own[: marks.lengths[0]] if marks is not None else []
                value = begin + _on_device_of(value, own, attributes.get("_device"))
            attributes[name] = value
        return had

    def put_back(self, had: Mapping[Place, Any]) -> None:
        """Put back what :meth:`put` has returned."""
        for (number, name), value in had.items():
            vars(self._holders[number].item)[name] = value
            if value is _MISSING:
                del vars(self._holders[number].item)[name]


class _Marks:
    """The lengths of one list, and whether it has only grown at its end."""

    def __init__(self, before: int) -> None:
        self.lengths = [0] * before
        self.grows = True
        self._first: Any = None
        self._last: Any = None

    def note(self, items: list[Any]) -> None:
        known = self.lengths[-1] if self.lengths else 0
        if known > 0 and not (
            len(items) >= known and items[0] is self._first and items[known - 1] is self._last
        ):
            self.grows = False
        self.lengths.append(len(items))
        if items:
            self._first, self._last = items[0], items[-1]


def joined_lists(reports: Sequence[ListReport], numbers: Sequence[Sequence[int]]) -> Lists:
    """Return the lists of all ranks as one process would have them.

    Args:
        reports: One for each rank.
        numbers: For each rank, the numbers of its batches in the whole dataset.
    """
    dealt = dealt_lists(reports, numbers)
    return {place: list(chain(*(lists[place] for lists in dealt))) for place in dealt[0]}


def dealt_lists(reports: Sequence[ListReport], numbers: Sequence[Sequence[int]]) -> list[Lists]:
    """Deal the items out again, so that rank after rank they are in the order of the dataset.

    Each rank gets what as many batches have added as had added something on it.  Arguments are
    those of :func:`joined_lists`.
    """
    places = {place: None for report in reports for place in report.lists}
    adding = [
        [at for at in range(report.batches)
         if any(ends[at] != ends[at + 1] for _, ends in report.lists.values())]
        for report in reports
    ]  # fmt: skip
    kept = [[part[at] for at in ats] for part, ats in zip(numbers, adding, strict=True)]
    dealt: list[Lists] = [{} for _ in reports]
    for place in places:
        parts = [report.lists.get(place, ([], [0] * (report.batches + 1))) for report in reports]
        marks = [
            [0, *(ends[at + 1] for at in ats)] for (_, ends), ats in zip(parts, adding, strict=True)
        ]
        shares = in_dataset_order([items for items, _ in parts], marks, kept)
        # Lists that only grow can be dealt out, so there are shares.
        for own, share in zip(dealt, shares or (), strict=True):
            own[place] = share
    return dealt


def _on_device_of(items: list[Any], own: list[Any], device: Any) -> list[Any]:
    """Return items that came from other ranks on the device where this one keeps its own."""
    kept = next((item.device for item in own if isinstance(item, torch.Tensor)), device)
    if kept is None:
        return items
    return [item.to(kept) if isinstance(item, torch.Tensor) else item for item in items]


def _picture(value: Any, known: bool) -> Any:
    """Return what tells later whether a value, or its content, has changed."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return id(value), object() if value.is_inference() else value._version
    if _is_array(value):
        return id(value), value.tobytes() if value.nbytes <= _LARGE else None
    if isinstance(value, _CONTAINERS) and len(value) <= _MANY:
        items = chain(*value.items()) if isinstance(value, dict) else value
        return [_picture(item, known) for item in items]
    # Who knows what happens in an object, or in a tensor without a version: it equals nothing.
    return id(value) if known or isinstance(value, _SETTINGS) else object()


def _is_number(value: Any) -> bool:
    """Return whether a value is a number, NumPy's included, but no bool."""
    if isinstance(value, (bool, torch.Tensor)) or _is_array(value):
        return False
    return isinstance(value, (int, float, complex)) or hasattr(value, "dtype")


def _is_array(value: Any) -> bool:
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)
