"""Make a state plain, so that ``torch.load(weights_only=True)`` reads what was saved.

:func:`to_plain` turns what NumPy and the standard library bring into what torch's restricted
reader knows, and names the place of anything it cannot turn.  It writes no file.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import io
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NoReturn

import torch

__all__ = ["to_plain"]

_AS_THEY_ARE = frozenset(
    {bool, float, str, type(None), torch.Size, torch.device, torch.dtype}
)  # exact types: an enum may well be a ``str``
_NUMBERS = frozenset({bool, int, float, complex, str, bytes})  # what a NumPy scalar may hold
_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
_MAX_DEPTH = 100  # levels of nesting; a state that contains itself has more
_MAX_BITS = 255 * 8 - 1  # of an int; the restricted reader knows no longer ones

Place = tuple[Any, str, Any]  # (the place above or None, the form of the step here, its key)
_ITEM, _KEY, _ATTRIBUTE = "[{!r}]", " (the key {!r})", ".{}"


def to_plain(state: Any, where: str) -> Any:
    """Return ``state`` with foreign values turned into plain ones.

    NumPy scalars become Python numbers, NumPy arrays tensors (copies), named tuples tuples, and
    other mappings dicts.  A container in which nothing changes is returned as it is, not
    copied, so that what is attached to it (``_metadata`` of a module's state) stays.

    Args:
        state: Nested dicts, lists and tuples of tensors, numbers, strings, bytes, ``None``,
            ``torch.Size``, ``torch.device`` and ``torch.dtype``.
        where: What the state is of, for the error: ``to_save['scheduler']``.

    Raises:
        TypeError: If a value is of another type, or nested too deep.  The error names its
            place.
    """
    return _Walk(where).plain(state, (None, "{}", "state"))


class _Walk:
    """One pass over a state; remembers containers, so that what was shared stays shared."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._known: dict[int, tuple[Any, Any]] = {}  # id -> (value, kept alive; plain value)

    def plain(self, value: Any, place: Place, depth: int = 0) -> Any:
        """Return the plain value of ``value``, found at ``place``."""
        kind = type(value)
        if kind in _AS_THEY_ARE:
            return value
        if kind in (int, bytes, complex):
            self._check_number(value, place)
            return value
        if id(value) in self._known:
            return self._known[id(value)][1]
        if depth > _MAX_DEPTH:
            self._refuse(place, f"is nested more than {_MAX_DEPTH} levels deep", _CYCLE)
        result = self._convert(value, place, depth)
        self._known[id(value)] = (value, result)
        return result

    def _convert(self, value: Any, place: Place, depth: int) -> Any:
        kind = type(value)
        if kind in _TENSORS:
            return self._tensor(value, place, depth)
        if isinstance(value, enum.Enum):
            self._refuse_type(value, place)
        if isinstance(value, Mapping):
            return self._mapping(value, place, depth)
        if isinstance(value, (list, tuple)):
            return self._sequence(value, place, depth)
        numpy: Any = sys.modules.get("numpy")
        if numpy is not None and kind in (numpy.ndarray, numpy.memmap):
            return self._array(value, place, numpy)
        if numpy is not None and isinstance(value, numpy.generic):
            number = value.item()
            if type(number) in _NUMBERS:
                return self.plain(number, place)
        return self._refuse_type(value, place)

    def _mapping(self, mapping: Mapping[Any, Any], place: Place, depth: int) -> Any:
        kind = type(mapping)
        changed = kind not in (dict, OrderedDict)
        items = []
        for key, value in mapping.items():
            new = self.plain(value, (place, _ITEM, key), depth + 1)
            new_key = self.plain(key, (place, _KEY, key), depth + 1)
            changed = changed or new is not value or new_key is not key
            items.append((new_key, new))
        if kind is not OrderedDict:
            return dict(items) if changed else mapping
        attributes = self._attributes(mapping, place, depth)
        if not changed and attributes is vars(mapping):
            return mapping
        ordered = OrderedDict(items)
        vars(ordered).update(attributes)
        return ordered

    def _sequence(self, values: Any, place: Place, depth: int) -> Any:
        kind = type(values)
        changed = kind not in (list, tuple)
        items = []
        for index, value in enumerate(values):
            new = value
            if type(value) not in _AS_THEY_ARE:  # saves building a place for each of many numbers
                new = self.plain(value, (place, _ITEM, index), depth + 1)
            changed = changed or new is not value
            items.append(new)
        if not changed:
            return values
        return items if isinstance(values, list) else tuple(items)

    def _tensor(self, tensor: torch.Tensor, place: Place, depth: int) -> torch.Tensor:
        if self._attributes(tensor, place, depth) is not vars(tensor):
            self._refuse(place, "has attributes that would have to be converted", _DETACH)
        return tensor

    def _attributes(self, value: Any, place: Place, depth: int) -> Mapping[str, Any]:
        """Return what was set on ``value`` from outside, which is saved with it."""
        attributes = vars(value)
        plain = {
            name: self.plain(attribute, (place, _ATTRIBUTE, name), depth + 1)
            for name, attribute in attributes.items()
        }
        same = all(plain[name] is attribute for name, attribute in attributes.items())
        return attributes if same else plain

    def _array(self, array: Any, place: Place, numpy: Any) -> torch.Tensor:
        native = numpy.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        try:
            return torch.from_numpy(native)
        except TypeError:
            self._refuse(place, f"is an array of {array.dtype}, which no tensor can hold", _PLAIN)

    def _check_number(self, value: complex | bytes, place: Place) -> None:
        """Refuse the few values of plain types that the restricted reader cannot read."""
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            self._refuse(place, f"is an integer of {value.bit_length()} bits" + _REFUSED, _STRING)
        if value == b"":
            self._refuse(place, "is b''" + _REFUSED, "let state_dict() give None")
        if isinstance(value, complex) and not _reads_complex():
            self._refuse(place, "is a complex number" + _REFUSED, _FLOATS)

    def _refuse_type(self, value: Any, place: Place) -> NoReturn:
        kind = type(value)
        name = kind.__qualname__
        if kind.__module__ != "builtins":
            name = f"{kind.__name__} ({kind.__module__}.{kind.__qualname__})"
        article = "an" if name[0].upper() in "AEIOU" else "a"
        self._refuse(place, f"is {article} {name}" + _REFUSED, _advice(value))

    def _refuse(self, place: Place, what: str, advice: str) -> NoReturn:
        steps = []
        above: Place | None = place
        while above is not None:
            above, form, key = above
            steps.append(form.format(key))
        steps.reverse()
        if len(steps) > _MAX_DEPTH:
            steps[4:] = ["..."]
        raise TypeError(f"{self._where}: {''.join(steps)} {what}; {advice}")


_REFUSED = ", which torch.load(weights_only=True) refuses"
_CYCLE = "does it contain itself?"
_DETACH = "let state_dict() give a tensor without them, tensor.detach()"
_PLAIN = "let state_dict() give tensors, numbers, strings, None, and dicts, lists, tuples of them"
_FLOATS = "let state_dict() give two floats"
_STRING = "let state_dict() give it as a string"


def _advice(value: Any) -> str:
    """Return what a ``state_dict`` could give in place of ``value``."""
    if isinstance(value, enum.Enum):
        return "let state_dict() give its .value"
    if isinstance(value, (set, frozenset)):
        return "let state_dict() give a sorted list"
    if dataclasses.is_dataclass(value):
        return "let state_dict() give dataclasses.asdict() of it"
    if isinstance(value, os.PathLike):
        return "let state_dict() give it as a string"
    if torch.nn.parameter.is_lazy(value):
        return "run one batch through the model first, so that it gets its shape"
    if isinstance(value, torch.Tensor):
        return "let state_dict() give a plain torch.Tensor"
    if callable(value):
        return "leave it out of state_dict()"
    return _PLAIN


@functools.cache
def _reads_complex() -> bool:
    """Return whether this torch's restricted reader knows complex numbers."""
    file = io.BytesIO()
    torch.save(1j, file)
    file.seek(0)
    try:
        torch.load(file, weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True
