"""Remember how an object and all it holds stand, see later what has changed, and put it back.

For metrics of MMEngine, which may count in any attribute.  The walk through attributes and
containers is bounded: what is large is data or configuration, and is not looked into.
MMEngine itself is not imported here.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["Change", "Standing", "counting"]

_MOST = 2000  # containers and objects remembered
_LARGE = 1000  # items of a container beyond which it is not looked into
_TOLD = 1000  # numbers of one value that are told to other ranks

_LEAVES = (bool, int, float, complex, str, bytes, type(None))
_CODE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, logging.Logger)
_PACKAGES = frozenset({"ignite", "mmengine", "numpy", "torch"}) | sys.stdlib_module_names
_UNTOLD = "cannot be compared"


class Change(NamedTuple):
    """What something has become, as plain values, and whether it is of a kind that counts."""

    value: Any
    counts: bool


class Standing:
    """How an object stands now.

    Args:
        root: The object.
        kinds: Classes that are looked into, whatever package they come from.
        apart: A class and its attribute that is somebody else's business.

    Attributes:
        items: What was found: containers and objects, outer before inner.
    """

    def __init__(self, root: Any, *, kinds: tuple[type, ...], apart: tuple[type, str]) -> None:
        self._kinds = kinds
        self._apart = apart
        self._kept: dict[str, tuple[Any, Any]] = {}  # place -> (item, copy of its content)
        seen: set[int] = set()
        # Those of the kinds come first, so that they are found behind whatever data.
        first, later = deque([(type(root).__name__, root)]), deque[tuple[str, Any]]()
        while (first or later) and len(self._kept) < _MOST:
            place, item = (first or later).popleft()
            if id(item) in seen or not self._is_kept(item):
                continue
            seen.add(id(item))
            if isinstance(item, kinds):
                place = self._unused(type(item).__name__)
            content = self._content(item)
            self._kept[place] = (item, content)
            for inner, part in _parts(place, item, content):
                (first if isinstance(part, kinds) else later).append((inner, part))

    @property
    def items(self) -> list[Any]:
        """Containers and objects found, those of ``kinds`` in the order of attributes and lists."""
        return [item for item, _ in self._kept.values()]

    def changes(self) -> dict[str, Change]:
        """Return what has changed since, by place."""
        found: dict[str, Change] = {}
        for place, (item, before) in self._kept.items():
            now = self._content(item)
            if isinstance(before, dict):
                for key in {**before, **now}:
                    value, old = now.get(key), before.get(key)
                    if (key in before) == (key in now) and _unchanged(old, value):
                        continue
                    # A number that an attribute gets once may be configuration.
                    once = old is None and not isinstance(item, dict) and _is_number(value)
                    counts = not once and (_may_count(value) or _may_count(old))
                    found[_place_of(place, item, key)] = Change(self._plain(value), counts)
            elif not _unchanged(before, now):
                found[place] = Change(self._plain(item), _may_count(item))
        return found

    def constants(self) -> dict[str, Any]:
        """Return all plain attributes by place, for ranks on which they have changed."""
        return {
            f"{place}.{name}": value
            for place, (item, content) in self._kept.items()
            if isinstance(content, dict) and not isinstance(item, dict)
            for name, value in self._content(item).items()
            if type(value) in _LEAVES
        }

    def put_back(self) -> None:
        """Give everything its content again, in place."""
        for item, content in self._kept.values():
            if isinstance(item, torch.Tensor):
                with torch.no_grad():
                    item.copy_(content)
            elif isinstance(item, (dict, set)):
                item.clear()
                item.update(content)
            elif isinstance(item, deque):
                item.clear()
                item.extend(content)
            elif isinstance(item, list):
                item[:] = content
            elif _is_array(item):
                item[...] = content
            elif isinstance(content, dict):
                for name in self._content(item).keys() - content.keys():
                    del vars(item)[name]
                vars(item).update(content)

    def _unused(self, name: str) -> str:
        number = sum(place.split("#")[0] == name for place in self._kept)
        return name if number == 0 else f"{name}#{number + 1}"

    def _is_kept(self, item: Any) -> bool:
        if isinstance(item, torch.Tensor):
            return not item.is_meta and item.layout is torch.strided
        if isinstance(item, (dict, list, tuple, set, deque)) or _is_array(item):
            return True
        if isinstance(item, self._kinds):
            return True
        if isinstance(item, _CODE) or not hasattr(item, "__dict__"):
            return False
        return type(item).__module__.partition(".")[0] not in _PACKAGES

    def _content(self, item: Any) -> Any:
        """Return a copy of what may change in an item."""
        if isinstance(item, torch.Tensor):
            return item.detach().clone()
        if isinstance(item, dict):
            return dict(item)
        if isinstance(item, (list, tuple, deque)):
            return list(item)
        if isinstance(item, set):
            return set(item)
        if _is_array(item):
            return item.copy()
        apart = {"_parameters"} if isinstance(item, nn.Module) else set()
        if isinstance(item, self._apart[0]):
            apart.add(self._apart[1])
        return {name: value for name, value in vars(item).items() if name not in apart}

    def _plain(self, value: Any) -> Any:
        budget = [_TOLD]
        try:
            return self._told(value, budget)
        except OverflowError:
            return {_UNTOLD: True}

    def _told(self, value: Any, budget: list[int]) -> Any:
        budget[0] -= 1
        if budget[0] < 0:
            raise OverflowError
        if isinstance(value, torch.Tensor):
            return value.detach()
        if type(value) in _LEAVES or _is_array(value):
            return value
        if hasattr(value, "dtype") and hasattr(value, "item"):  # a number of NumPy's
            return value.item()
        if isinstance(value, set):
            return sorted(map(repr, value))
        if isinstance(value, (list, tuple, deque)):
            return [self._told(item, budget) for item in value]
        if self._is_kept(value):
            content = self._content(value)
            return {repr(key): self._told(item, budget) for key, item in content.items()}
        return type(value).__qualname__


def counting(ranks: Sequence[tuple[Mapping[str, Change], Mapping[str, Any]]]) -> str | None:
    """Return the place of a change that ranks cannot share, if there is one.

    What counts is refused even where it is the same on all ranks: the sum would be another.

    Args:
        ranks: Changes and constants of each rank.
    """
    if len(ranks) < 2:
        return None
    for place in {place: None for changes, _ in ranks for place in changes}:
        if any(place in changes and changes[place].counts for changes, _ in ranks):
            return place
        values = [
            changes[place].value if place in changes else constants.get(place, {_UNTOLD: True})
            for changes, constants in ranks
        ]
        if any(not _equal(values[0], value) for value in values[1:]):
            return place
    return None


def _is_number(value: Any) -> bool:
    """Return whether a value is a number, NumPy's included, but no bool."""
    if isinstance(value, (torch.Tensor, bool)) or _is_array(value):
        return False
    return isinstance(value, (int, float, complex)) or hasattr(value, "dtype")


def _may_count(value: Any) -> bool:
    kinds = (torch.Tensor, list, deque)
    return isinstance(value, kinds) or _is_array(value) or _is_number(value)


def _place_of(place: str, item: Any, key: Any) -> str:
    return f"{place}[{key!r}]" if isinstance(item, dict) else f"{place}.{key}"


def _parts(place: str, item: Any, content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(item, (torch.Tensor, set)) or _is_array(item) or len(content) > _LARGE:
        return
    if isinstance(content, dict):
        for key, value in content.items():
            yield _place_of(place, item, key), value
    else:
        for at, value in enumerate(content):
            yield f"{place}[{at}]", value


def _is_array(value: Any) -> bool:
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.kind in "biufc"


def _unchanged(before: Any, now: Any) -> bool:
    """Compare contents; an object that is still the same one is looked at by itself."""
    if before is now:
        return True
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(map(_unchanged, before, now))
    return _equal(before, now)


def _equal(left: Any, right: Any) -> bool:
    """Compare plain values; NaN equals NaN."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        right = right.to(left.device)
    if isinstance(left, torch.Tensor) or _is_array(left):
        if type(left) is not type(right) or left.shape != right.shape or left.dtype != right.dtype:
            return False
        return bool(((left == right) | ((left != left) & (right != right))).all())
    if isinstance(left, dict) and isinstance(right, dict):
        keys = left.keys() == right.keys() and _UNTOLD not in left
        return keys and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, set) and isinstance(right, set):
        return left == right
    if type(left) in _LEAVES and type(right) in _LEAVES:
        return bool(left == right) or (left != left and right != right)
    return False
