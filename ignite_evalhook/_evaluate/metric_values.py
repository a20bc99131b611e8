"""Make the value of a metric plain: for the record, and for handlers and loggers.

What a metric, a function or a handler may bring is anything.  Numbers become floats, arrays nested
lists (for handlers: tensors), and what is neither becomes text: no value ends a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__: list[str] = []

_DTYPES = {"b": torch.bool, "i": torch.int64, "u": torch.int64, "f": torch.float64}
_MAX_DEPTH = 50  # levels of nesting
_MAX_DENSE = 1 << 20  # elements of a sparse tensor that are spelt out


def to_record(value: Any) -> Any:
    """Return a metric's value as plain Python: floats, strings, nested lists and dicts.

    Whatever is a number becomes a float, also a tensor or an array of one element; other tensors
    and arrays become nested lists.  Mappings and sequences are converted inside.  What is no
    number (complex ones, sets, ``None``, objects) becomes its ``repr``.
    """
    return _Walk(as_text, as_lists=True).plain(value)


def to_state(value: Any) -> Any:
    """Return a metric's value as handlers get it: as :func:`to_record`, but arrays are tensors."""
    return _Walk(as_text, as_lists=False).plain(value)


def to_compare(value: Any) -> str:
    """Return a text that is the same on all ranks where the value is.

    Objects are told apart by their type only: the ``repr`` may name a place in memory.
    """
    return repr(_Walk(lambda item: type(item).__name__, as_lists=True).plain(value))


def as_text(value: object) -> str:
    """Return the ``repr`` of a value, or its type where it has none."""
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001  # the user's own __repr__; what it raises is told
        return f"<{type(value).__name__} whose repr() raises {type(error).__name__}>"


class _Walk:
    """One pass over a value.

    Args:
        text: What becomes of a value that is no number.
        as_lists: Whether arrays become nested lists, or tensors.
    """

    def __init__(self, text: Callable[[object], str], *, as_lists: bool) -> None:
        self._text = text
        self._as_lists = as_lists
        self._within: set[int] = set()  # ids of the containers around the present value

    def plain(self, value: Any) -> Any:
        if type(value) is float:
            return value
        if isinstance(value, str):
            return str.__str__(value)  # of an enum its value; NumPy's become Python's
        try:
            return self._convert(value)
        except Exception:  # noqa: BLE001  # huge integers, foreign arrays: they are recorded as text
            return self._text(value)

    def _convert(self, value: Any) -> Any:
        if isinstance(value, (bool, int, float)):
            return float(value)
        if isinstance(value, Tensor):
            return self._tensor(value.detach(), value)
        if isinstance(value, (Mapping, list, tuple)):
            return self._container(value)
        kind = type(value)
        if hasattr(kind, "tolist"):  # arrays, and NumPy's scalars
            return self._array(value)
        # Decimal, Fraction and whatever else says that it is a number.
        return float(value) if hasattr(kind, "__float__") else self._text(value)

    def _container(self, value: Any) -> Any:
        if id(value) in self._within or len(self._within) >= _MAX_DEPTH:
            return self._text(value)
        self._within.add(id(value))
        try:
            if isinstance(value, Mapping):
                return {self._key(key): self.plain(item) for key, item in value.items()}
            return [self.plain(item) for item in value]
        finally:
            self._within.remove(id(value))

    def _key(self, key: object) -> str:
        return str.__str__(key) if isinstance(key, str) else self._text(key)

    def _tensor(self, tensor: Tensor, value: Any) -> Any:
        if tensor.is_nested:
            return [self.plain(part) for part in tensor.unbind()]
        is_sparse = tensor.layout is not torch.strided
        if tensor.is_complex() or tensor.is_meta or (is_sparse and tensor.numel() > _MAX_DENSE):
            return self._text(value)
        if is_sparse or tensor.is_quantized:
            tensor = tensor.to_dense() if is_sparse else tensor.dequantize()
        if tensor.numel() == 1:
            return float(tensor.item())
        return tensor.tolist() if self._as_lists else tensor

    def _array(self, array: Any) -> Any:
        """Convert an array or a scalar of NumPy's, or of a library that follows it."""
        dtype = getattr(array, "dtype", None)
        kind = getattr(dtype, "kind", None)
        if kind in ("M", "m"):  # in nanoseconds they would pass for integers
            array = array.astype(str)
        items = array.tolist()
        while isinstance(items, list) and len(items) == 1:
            items = items[0]
        if not isinstance(items, list):  # NumPy's long double stays one
            return float(items) if type(items) is type(array) else self.plain(items)
        if kind not in _DTYPES or dtype.itemsize > 8:  # type: ignore[union-attr]
            return self.plain(items)
        items = array.tolist()
        return items if self._as_lists else torch.tensor(items, dtype=_DTYPES[kind])
