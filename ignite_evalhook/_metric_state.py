"""Turn what metrics have counted into plain values.

:func:`metric_state` gives all of a metric's attributes that may be its state.  What it cannot
know (functions, modules, devices, engines) is taken for configuration, which is the same on all
ranks.  :mod:`~ignite_evalhook._replicas` makes metrics of the values again.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import enum
import fractions
import io
import pickle
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from ignite.metrics import Metric

__all__ = ["ListMarks", "Writer", "metric_state"]

LEAVES = frozenset({type(None), bool, int, float, str})
_PICKLED = (complex, bytes, bytearray, range, torch.Size, fractions.Fraction, decimal.Decimal,
            datetime.date, datetime.timedelta)  # fmt: skip
MAPPINGS: dict[str, type] = {
    "dict": dict, "OrderedDict": OrderedDict, "Counter": Counter, "defaultdict": defaultdict,
}  # fmt: skip
COLLECTIONS: dict[str, type] = {
    "set": set, "frozenset": frozenset, "deque": deque, "list": list, "tuple": tuple,
}  # fmt: skip

# What is configuration: objects of these kinds, of a class of the standard library, or of a class
# that descends from one of these packages (a data set, an engine, a part of a model).
_CONFIGURATION = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)
_PACKAGES = frozenset({"ignite", "logging", "numpy", "torch", "torchmetrics"})
_PURE_PYTHON = 1 << 9  # the flag of a class that was written in Python

KIND = "@"  # the key that tells a container of another kind from a plain dict


def metric_state(metric: Metric, *, marks: ListMarks | None = None) -> dict[str, Any]:
    """Return everything in a metric that may be state, as plain values.

    Args:
        metric: Any metric; it is not changed.  Metrics inside it are found in its attributes
            and in their lists, tuples and dicts.  A class with ``shard_state`` is asked for its
            own state, see :class:`~ignite_evalhook._merge.Mergeable`.
        marks: How its lists grew.  Without it, lists with more than one item a batch stay in
            the order of the ranks.

    Returns:
        Nested dicts with strings as keys, lists and tuples of tensors (detached, not copied),
        numbers, strings and ``None``.
    """
    return {"metrics": Writer(metric).write_all(marks)}


class Writer:
    """One walk through a metric: its inner metrics in a fixed order, and its plain values."""

    def __init__(self, metric: Metric) -> None:
        self.metrics = [metric]
        self.classes: dict[str, type] = {}
        self._places = {id(metric): 0}
        self._objects: list[dict[str, Any]] = []
        self._object_places: dict[int, int] = {}
        self._kept: list[object] = []  # an id is good as long as its object lives

    def write_all(self, marks: ListMarks | None = None) -> list[dict[str, Any]]:
        """Return one entry for each metric; the list grows while it is walked."""
        entries: list[dict[str, Any]] = []
        for metric in self.metrics:
            entry: dict[str, Any] = {"class": _name_of(type(metric))}
            shard_state = getattr(type(metric), "shard_state", None)
            if shard_state is not None:
                entry["custom"] = shard_state(metric)
            else:
                self._objects, self._object_places = [], {}
                entry["values"] = {
                    key: self._write(item) for key, item in vars(metric).items() if key != "compute"
                }  # ``compute`` stands there when an evaluation gives its result to all ranks
                entry["objects"] = self._objects
                if marks is not None:
                    entry["marks"] = marks.of(metric)
                    entry["batches"] = marks.batches
            entries.append(entry)
        return entries

    def _write(self, value: Any) -> Any:
        kind = type(value)
        if kind in LEAVES:
            return value
        if isinstance(value, torch.Tensor):
            return value.detach()
        if isinstance(value, Metric):
            return {KIND: "metric", "place": self._place_of(value)}
        if isinstance(value, enum.Enum):
            return _own(value)
        if isinstance(value, Mapping):
            return self._write_mapping(value)
        numpy: Any = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
            return _write_array(value)
        if isinstance(value, _PICKLED):
            return {KIND: "pickled", "bytes": _pickled(value)}
        if isinstance(value, (list, tuple, set, frozenset, deque)):
            return self._write_collection(value)
        if _is_helper(value):
            return {KIND: "object", "place": self._object_place_of(value)}
        return _own(value)

    def _write_mapping(self, value: Mapping[Any, Any]) -> Any:
        kind = next(
            (name for name, known in MAPPINGS.items() if type(value) is known),
            "dict" if isinstance(value, dict) else None,
        )
        if kind is None:
            return _own(value)
        if kind == "dict" and KIND not in value and all(type(key) is str for key in value):
            return {key: self._write(item) for key, item in value.items()}
        keys = [self._write(key) for key in value]
        return {KIND: kind, "keys": keys, "values": [self._write(v) for v in value.values()]}

    def _write_collection(self, value: Any) -> Any:
        items = [self._write(item) for item in value]
        if isinstance(value, list):
            return items
        if isinstance(value, tuple):
            if hasattr(value, "_fields"):
                fields = list(value._fields)
                self.classes[_name_of(type(value))] = type(value)
                return {KIND: "namedtuple", "class": _name_of(type(value)), "items": items,
                        "fields": fields}  # fmt: skip
            return tuple(items)
        if isinstance(value, deque):
            return {KIND: "deque", "items": items, "maxlen": value.maxlen}
        kind = "frozenset" if isinstance(value, frozenset) else "set"
        return {KIND: kind, "items": items}

    def _place_of(self, metric: Metric) -> int:
        place = self._places.setdefault(id(metric), len(self.metrics))
        if place == len(self.metrics):
            self.metrics.append(metric)
        return place

    def _object_place_of(self, value: Any) -> int:
        place = self._object_places.get(id(value))
        if place is None:
            place = self._object_places[id(value)] = len(self._objects)
            self._kept.append(value)
            entry: dict[str, Any] = {"class": _name_of(type(value)), "values": {}}
            self.classes[entry["class"]] = type(value)
            self._objects.append(entry)
            for key, item in vars(value).items():
                entry["values"][key] = self._write(item)
        return place


class ListMarks:
    """Remember how long the lists of a metric, and of the metrics in it, were batch by batch."""

    def __init__(self, metric: Metric) -> None:
        writer = Writer(metric)
        writer.write_all()
        self._metrics = writer.metrics
        self._lengths: list[dict[str, list[int]]] = [{} for _ in self._metrics]
        self._notes = 0

    def note(self) -> None:
        """Note the lengths; to be called before the first batch and after every batch."""
        for metric, lengths in zip(self._metrics, self._lengths, strict=True):
            for name, value in vars(metric).items():
                if type(value) is list:
                    noted = lengths.setdefault(name, [])
                    noted.extend([0] * (self._notes - len(noted)))
                    noted.append(len(value))
        self._notes += 1

    @property
    def batches(self) -> int:
        """Return the number of batches noted."""
        return max(self._notes - 1, 0)

    def of(self, metric: Metric) -> dict[str, Any]:
        """Return the lengths of the lists that changed, by attribute."""
        for known, lengths in zip(self._metrics, self._lengths, strict=True):
            if known is metric:
                return {name: noted for name, noted in lengths.items() if len({*noted}) > 1}
        return {}


def _own(value: Any) -> dict[str, str]:
    return {KIND: "own", "type": _name_of(type(value))}


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_helper(value: Any) -> bool:
    """Return whether an object of the user's may hold state in its attributes."""
    cls = type(value)
    if isinstance(value, _CONFIGURATION) or _package_of(cls) in sys.stdlib_module_names:
        return False
    bases = [base for base in cls.__mro__ if base is not object]
    return all(
        base.__flags__ & _PURE_PYTHON
        and not base.__dict__.get("__slots__")
        and _package_of(base) not in _PACKAGES
        for base in bases
    )


def _package_of(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _write_array(value: Any) -> dict[str, Any]:
    """Return a NumPy array as a tensor where torch knows its type; a NumPy number is small."""
    if value.ndim > 0 and value.dtype.isnative and value.dtype.kind in "biuf":
        with contextlib.suppress(TypeError):  # a type that no tensor can hold
            return {KIND: "array", "tensor": torch.from_numpy(value.copy())}
    return {KIND: "pickled", "bytes": _pickled(value)}


def _pickled(value: Any) -> torch.Tensor:
    file = io.BytesIO()
    pickle.dump(value, file)
    return torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)
