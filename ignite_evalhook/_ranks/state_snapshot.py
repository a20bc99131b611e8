"""Remember how objects stand that may keep a state, and put them back: metrics."""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from .._undisturbed.attributes import AttributeSnapshot
from .._undisturbed.values import remember_values

__all__ = ["StateSnapshot", "inner_items", "is_users"]

_ROOM = 16 << 20  # bytes of tensors that are copied; larger ones are watched
_MANY = 1000  # items of a container beyond which none is looked at
_CODE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, nn.Module)
_PACKAGES = frozenset({"ignite", "numpy", "torch", "torchmetrics"}) | sys.stdlib_module_names


class StateSnapshot:
    """The attributes of some objects, the contents of containers in them, and tensors."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._attributes = AttributeSnapshot(items)
        self._tensors = [t for t in self._attributes.tensors if t.layout is torch.strided]
        copied, room = [], _ROOM
        self._versions: list[tuple[torch.Tensor, int]] = []
        for tensor in sorted(self._tensors, key=lambda tensor: tensor.nbytes):
            if tensor.nbytes <= room:
                copied.append(tensor)
                room -= tensor.nbytes
            elif not tensor.is_inference():
                self._versions.append((tensor, tensor._version))
        self._put_values_back = remember_values(copied)

    def put_back(self) -> torch.Tensor | None:
        """Put everything back.

        Returns:
            A tensor that has changed and was not copied; ``None`` if there is none.
        """
        self._attributes.restore()
        self._put_values_back()
        return next((t for t, version in self._versions if t._version != version), None)

    def apart(self, value: Any) -> Any:
        """Return a value that does not change when everything is put back."""
        if not isinstance(value, torch.Tensor):
            return copy.deepcopy(value)
        return value.clone() if any(_overlap(value, own) for own in self._tensors) else value


def inner_items(root: Any, wanted: Callable[[Any], bool]) -> list[Any]:
    """Return ``root`` and what is inside it and wanted: in attributes, and in their containers."""
    found, seen = [root], {id(root)}
    waiting = deque(vars(root).values())
    while waiting:
        value = waiting.popleft()
        if id(value) in seen:
            continue
        if isinstance(value, (dict, list, tuple)):
            seen.add(id(value))
            items = value.values() if isinstance(value, dict) else value
            waiting.extend(items if len(items) <= _MANY else ())
        elif wanted(value):
            seen.add(id(value))
            found.append(value)
            waiting.extend(vars(value).values())
    return found


def is_users(value: object) -> bool:
    """Return whether an object is of a class of the user's, and has attributes."""
    if isinstance(value, _CODE) or not hasattr(value, "__dict__"):
        return False
    return type(value).__module__.partition(".")[0] not in _PACKAGES


def _overlap(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()
