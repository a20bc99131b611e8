"""Make metrics that configure themselves like this process's, and have another rank's state."""

from __future__ import annotations

import pickle
from collections import defaultdict, deque, namedtuple
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from ignite.metrics import Metric

from ._metric_state import COLLECTIONS, KIND, LEAVES, MAPPINGS
from .exceptions import EvaluationError

__all__ = ["Replicas"]

_MISSING = object()


class Replicas:
    """Metrics that configure themselves like this process's, with the state of one rank.

    A replica shares no container and no counter with the original; tensors inside lists are
    shared, and nobody changes those.
    """

    def __init__(
        self,
        own: Sequence[Metric],
        classes: Mapping[str, type],
        entries: Sequence[Mapping[str, Any]],
        *,
        compute: Callable[[int], Callable[[], Any]],
    ) -> None:
        self._own = own
        self._classes = classes
        self._entries = entries
        self._compute = compute
        self._made: dict[int, Metric] = {}
        self._places = {id(metric): place for place, metric in enumerate(own)}

    def make(self, place: int, *, root: bool = True) -> Metric:
        """Return the replica of the metric at ``place``; one that is no root computes by call.

        Raises:
            EvaluationError: If a rank keeps objects that cannot be told to another.
        """
        if place in self._made:
            return self._made[place]
        own, entry = self._own[place], self._entries[place]
        replica = type(own).__new__(type(own))
        self._made[place] = replica
        if "custom" in entry:
            vars(replica).update(vars(own))
        else:
            reading = _Reading(self, entry["objects"], own)
            for key, node in entry["values"].items():
                value = reading.read(node, vars(own).get(key, _MISSING))
                if value is not _MISSING:
                    vars(replica)[key] = value
            _forget_result(replica)
        if not root:
            vars(replica)["compute"] = self._compute(place)
        return replica

    def rebound(self, value: Any) -> Any:
        """Return a bound method of an original as one of its replica, anything else as it is."""
        place = self._places.get(id(value.__self__)) if isinstance(value, MethodType) else None
        if place is None:
            return value
        return MethodType(value.__func__, self.make(place, root=False))

    def class_named(self, name: str) -> type | None:
        """Return a class that this process's metric uses too."""
        return self._classes.get(name)


class _Reading:
    """Read the values of one metric."""

    def __init__(self, replicas: Replicas, objects: Sequence[Any], owner: Metric) -> None:
        self._replicas = replicas
        self._objects = objects
        self._owner = owner
        self._made: dict[int, Any] = {}

    def read(self, node: Any, own: Any) -> Any:
        """Return the value of ``node``; ``own`` is what this process has in its place."""
        if type(node) in LEAVES:
            return node
        if isinstance(node, torch.Tensor):
            return node.to(_device_like(node, own), copy=True)
        if isinstance(node, (list, tuple)):
            device = _device_like(None, own)
            return type(node)(
                item.to(device or item.device)
                if isinstance(item, torch.Tensor)
                else self._inner(item, _at(own, at))
                for at, item in enumerate(node)
            )
        kind = node.get(KIND)
        if kind is None:
            return {key: self._inner(item, _at(own, key)) for key, item in node.items()}
        if kind in MAPPINGS:
            return self._read_mapping(node, own)
        if kind in COLLECTIONS:
            return self._read_collection(node, own)
        if kind == "metric":
            return self._replicas.make(node["place"], root=False)
        if kind == "object":
            return self._read_object(node["place"], own)
        if kind == "namedtuple":
            made: Any = self._replicas.class_named(node["class"])
            made = made or namedtuple("Row", node["fields"])
            return made._make(
                self._inner(item, _at(own, i)) for i, item in enumerate(node["items"])
            )
        if kind == "array":
            return node["tensor"].numpy().copy()
        if kind == "pickled":
            return pickle.loads(bytes(node["bytes"].tolist()))
        return self._replicas.rebound(own)

    def _inner(self, node: Any, own: Any) -> Any:
        """Return a value inside a container, where nothing can be left out."""
        value = self.read(node, own)
        if value is _MISSING:
            raise EvaluationError(
                f"the metric {type(self._owner).__name__} keeps objects of the class "
                f"{node['type']} in a list, and they cannot be told to another process; keep "
                "tensors, numbers or strings, or reduce them in update()"
            )
        return value

    def _read_mapping(self, node: Any, own: Any) -> Any:
        keys = [self.read(key, _MISSING) for key in node["keys"]]
        values = [
            self._inner(value, _at(own, key))
            for key, value in zip(keys, node["values"], strict=True)
        ]
        items = dict(zip(keys, values, strict=True))
        if node[KIND] == "defaultdict":
            return defaultdict(getattr(own, "default_factory", None), items)
        return MAPPINGS[node[KIND]](items)

    def _read_collection(self, node: Any, own: Any) -> Any:
        values = [self._inner(item, _at(own, at)) for at, item in enumerate(node["items"])]
        if node[KIND] == "deque":
            return deque(values, node["maxlen"])
        return COLLECTIONS[node[KIND]](values)

    def _read_object(self, place: int, own: Any) -> Any:
        if place in self._made:
            return self._made[place]
        entry = self._objects[place]
        cls: Any = self._replicas.class_named(entry["class"])
        if cls is None:
            raise EvaluationError(
                f"the metric {type(self._owner).__name__} keeps objects of the class "
                f"{entry['class']} on one rank and none on rank 0; keep tensors, numbers or "
                "strings, or make the objects in __init__"
            )
        value = self._made[place] = object.__new__(cls)
        template = vars(own) if type(own) is cls else {}
        for key, node in entry["values"].items():
            item = self.read(node, template.get(key, _MISSING))
            if item is not _MISSING:
                vars(value)[key] = item
        return value


def _forget_result(metric: Metric) -> None:
    """Start as reset() leaves a metric whose ``_result`` is a value computed before."""
    if "_result" in vars(metric) and getattr(type(metric).update, "__wrapped__", None) is not None:
        vars(metric)["_result"] = None


def _at(own: Any, key: Any) -> Any:
    """Return what this process has at ``key`` of a container, or ``_MISSING``."""
    if isinstance(own, Mapping):
        return own.get(key, _MISSING)
    if isinstance(own, (list, tuple, deque)):
        return own[key] if key < len(own) else _MISSING
    return _MISSING


def _device_like(tensor: torch.Tensor | None, own: Any) -> Any:
    """Return the device on which this process keeps such a value, else the tensor's own."""
    if isinstance(own, (list, tuple)):
        own = next((item for item in own if isinstance(item, torch.Tensor)), None)
    if isinstance(own, torch.Tensor):
        return own.device
    return None if tensor is None else tensor.device
