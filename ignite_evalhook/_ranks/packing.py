"""Turn nested values into bytes, and back: pickle, with the memory of tensors and arrays beside it.

:func:`pack` pickles a value by protocol 5.  The bytes of large tensors and NumPy arrays stay out of
the pickle: they are the *payload*, and are sent or written from where they lie.  :func:`unpack`
gives the value back, with tensors that are views into the payload.  Nothing here knows who sends
it, or how; only bytes of this very run may be unpacked.  NumPy is not imported.
"""

from __future__ import annotations

import ctypes
import gc
import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["JOINABLE", "Packed", "aligned", "gc_paused", "memory_of", "pack", "unpack"]

_ALIGNMENT = 16  # bytes; the widest element, complex128, has as many
_IN_BAND = 4 * 1024  # bytes; a smaller tensor or array stays in the pickle

# Dtypes that torch.cat has always taken.
JOINABLE = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    | {torch.complex64, torch.complex128}
)

_ZEROS = torch.zeros(_ALIGNMENT, dtype=torch.uint8)


class Packed:
    """A value as bytes: the pickle, and the payload in pieces.

    The payload refers to the tensors' own memory: it must be used before they change.

    Attributes:
        head: What :func:`unpack` needs beside the payload.
        size: Bytes of the payload, a multiple of 16.
    """

    def __init__(self, structure: bytes, buffers: Sequence[Tensor]) -> None:
        sizes = [len(buffer) for buffer in buffers]
        self.head = pickle.dumps(sizes, 5) + structure
        self.size = sum(map(aligned, sizes))
        self._buffers = buffers

    @property
    def pieces(self) -> Iterator[Tensor]:
        """The payload in order, in 1-d uint8 CPU tensors of any length; padding is a piece too."""
        for buffer in self._buffers:
            yield buffer
            if len(buffer) % _ALIGNMENT:
                yield _ZEROS[: -len(buffer) % _ALIGNMENT]

    def payload(self) -> Tensor:
        """Return the payload in memory of its own, shape (size,)."""
        whole = torch.empty(self.size, dtype=torch.uint8)
        position = 0
        for piece in self.pieces:
            whole[position : position + len(piece)] = piece
            position += len(piece)
        return whole


def aligned(offset: int, alignment: int = _ALIGNMENT) -> int:
    """Return the next multiple of ``alignment``."""
    return -(-offset // alignment) * alignment


# -- to bytes -------------------------------------------------------------------------------------


def pack(value: Any) -> Packed:
    """Pickle ``value``, with large tensors and arrays beside the pickle.

    A tensor that occurs twice, as the same object, is sent once; two views of one tensor are
    sent each by itself.  Gradients are dropped, parameters become tensors, and tensors of any
    device come to the CPU.  Sparse, nested, quantized and meta tensors and those of subclasses
    are pickled in the ordinary way.

    Raises:
        TypeError: If something in it cannot be pickled.  The error names it.
    """
    with gc_paused():
        try:
            return Packed(*_dump(value))
        except MemoryError:
            raise
        except Exception as error:
            raise _refusal(value, error) from error


class _Pickler(pickle.Pickler):
    """Pickle tensors by their bytes, in the same way as arrays are."""

    # Python calls it for objects of no built-in type only.
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        if type(value) is Tensor or type(value) is torch.nn.Parameter:
            tensor = value.detach()
            if _has_plain_memory(tensor):
                tensor = tensor.cpu().resolve_conj().resolve_neg().contiguous()
                # One element or none has any stride and is contiguous, but has no bytes to view.
                data = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
                return _rebuild, (tensor.dtype, tuple(tensor.shape), _buffer_of(data))
            if tensor.is_mkldnn:
                return tensor.to_dense().__reduce_ex__(5)  # type: ignore[no-untyped-call]
            return (tensor if tensor.is_meta else tensor.cpu().clone()).__reduce_ex__(5)  # type: ignore[no-untyped-call]
        if value.device.type not in ("cpu", "meta"):
            return value.cpu().__reduce_ex__(5)  # type: ignore[no-untyped-call]
        return NotImplemented


def _has_plain_memory(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.is_meta:
        return False
    return not (tensor.is_quantized or tensor.is_nested)


def _buffer_of(data: Tensor) -> pickle.PickleBuffer:
    return pickle.PickleBuffer(memory_of(data))


def _rebuild(dtype: torch.dtype, shape: tuple[int, ...], data: Any) -> Tensor:
    """Return a tensor that is a view into ``data``."""
    if not len(data):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype).view(shape)


def _dump(value: Any) -> tuple[bytes, list[Tensor]]:
    """Return the pickle of a value, and the memory that was left out of it, in order."""
    buffers: list[Tensor] = []

    def stays_in_band(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _IN_BAND:
            return True
        # A read-only buffer is copied, since torch warns about it.
        memory = bytearray(raw) if raw.readonly else raw
        buffers.append(torch.frombuffer(memory, dtype=torch.uint8))
        return False

    file = io.BytesIO()
    with torch.inference_mode(False), torch.no_grad():
        _Pickler(file, 5, buffer_callback=stays_in_band).dump(value)
    return file.getvalue(), buffers


# -- what cannot be sent --------------------------------------------------------------------------


def _refusal(value: Any, error: Exception) -> TypeError:
    """Return an error that names what cannot be pickled."""
    culprit, place = _culprit(value)
    what = culprit.__qualname__ if callable(culprit) and hasattr(culprit, "__qualname__") else ""
    code = getattr(culprit, "__code__", None)
    if code is not None:
        origin = f"{what}, defined in {code.co_filename}:{code.co_firstlineno}"
    elif isinstance(culprit, type):
        origin = f"the class {culprit.__module__}.{what}"
    else:
        kind = type(culprit)
        origin = f"an object of {kind.__module__}.{kind.__qualname__}"
    return TypeError(
        f"cannot be sent to other processes: {origin}{place} ({error}); tensors, arrays, numbers, "
        "strings, None, containers of these, and objects that pickle takes can be; leave the "
        "rest out of the output, or reduce it by pre_eval="
    )


def _culprit(value: Any) -> tuple[Any, str]:
    """Return the innermost part of a value that cannot be pickled, and where it stands."""
    place, known = "", {id(value)}
    while True:
        for where, part in _parts(value):
            if id(part) not in known and not _can_be_packed(part):
                known.add(id(part))
                value, place = part, where
                break
        else:
            return value, place


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a value holds, each with words for its place."""
    kind = type(value).__qualname__
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield f", a key of a {kind}", key
            yield f", under the key {key!r} of a {kind}", item
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(value):
            yield f", item {index} of a {kind}", item
    if not isinstance(value, type):
        for name, item in getattr(value, "__dict__", {}).items():
            yield f", attribute {name!r} of a {kind}", item


def _can_be_packed(value: Any) -> bool:
    try:
        _dump(value)
    except Exception:  # noqa: BLE001  # what it is has been kept when it first came
        return False
    return True


# -- and back -------------------------------------------------------------------------------------


def unpack(head: bytes, payload: Tensor) -> Any:
    """Return the value that was packed.

    Its large tensors and arrays are writable views into the payload, which lives as long as one
    of them.

    Args:
        head: ``Packed.head``.
        payload: All bytes, a contiguous uint8 CPU tensor of shape (size,).  As a slice of
            another tensor it begins at a multiple of 16 bytes.

    Raises:
        ValueError: If the payload is not of that kind.
    """
    file = io.BytesIO(head)
    with gc_paused(), torch.inference_mode(False):
        sizes: list[int] = pickle.load(file)
        _check_payload(payload, sum(map(aligned, sizes)))
        memory = memory_of(payload)
        buffers = []
        begin = 0
        for size in sizes:
            buffers.append(memory[begin : begin + size])
            begin += aligned(size)
        return pickle.load(file, buffers=buffers)


def _check_payload(payload: Tensor, size: int) -> None:
    if payload.dtype is not torch.uint8 or payload.ndim != 1 or not payload.is_cpu:
        raise ValueError(
            "payload must be a 1-d uint8 tensor on the CPU, got "
            f"{payload.dtype} of shape {tuple(payload.shape)} on {payload.device}"
        )
    if len(payload) != size:
        raise ValueError(f"payload must have {size} bytes, as the head says, got {len(payload)}")
    if not payload.is_contiguous() or payload.storage_offset() % _ALIGNMENT:
        raise ValueError(
            f"payload must be contiguous and begin at a multiple of {_ALIGNMENT} bytes, got stride "
            f"{payload.stride(0)} and offset {payload.storage_offset()}; pass payload.clone()"
        )


def memory_of(data: Tensor) -> memoryview:
    """Return the memory of a contiguous uint8 CPU tensor, kept alive by the view."""
    # torch gives its memory to Python through NumPy alone, which may be missing.
    array: Any = (ctypes.c_ubyte * len(data)).from_address(data.data_ptr())
    array.owner = data
    return memoryview(array).cast("B")


# -- keep Python's garbage collector out of the way while many objects are made --------------------


@contextmanager
def gc_paused() -> Iterator[None]:
    """Keep Python's cyclic garbage collector from running in the body.

    Each few hundred new tensors and dicts start it, and it then visits all those made before:
    with 150,000 tensors it takes twice the time of the work itself, and finds nothing.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
