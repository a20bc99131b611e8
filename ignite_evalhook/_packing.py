"""Turn nested values into bytes, and back, without a pickle of any tensor.

:func:`pack` takes the tensors out of a value and pickles what is left, the structure.  The bytes
of the tensors are the *payload*: they are sent or written from where they lie, many small ones
joined.  :func:`unpack` gives the structure back, with tensors that are views into the payload.
Nothing here knows who sends it, or how.

The structure's pickle says only "the next tensor" at each place, and the plan before it says
which bytes are which tensors, by columns: tensors whose rows are alike become one tensor, which
one ``split`` turns into all the views.

Large NumPy arrays travel in the payload too, by the buffers of pickle's protocol 5; NumPy is not
imported.  Times are in ``benchmarks/collect.py``.
"""

from __future__ import annotations

import ctypes
import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ._gc_paused import gc_paused

__all__ = ["JOINABLE", "Packed", "aligned", "memory_of", "pack", "unpack"]

_ALIGNMENT = 16  # bytes; the widest element, complex128, has as many
_ALONE = 16 * 1024  # bytes; a larger tensor is sent from where it lies, smaller ones are joined
_RUN = 8 * 1024 * 1024  # bytes; joined at a time, so that joining needs no second payload
_IN_BAND = 4 * 1024  # bytes; a smaller NumPy array stays in the structure's pickle
_FEW = 4  # tensors whose rows are alike make a column of their own from this number on

# Dtypes that torch.cat has always taken.  Others are joined as integers of the same width.
JOINABLE = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    | {torch.complex64, torch.complex128}
)
_OF_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


_ZEROS = torch.zeros(_ALIGNMENT, dtype=torch.uint8)


class _Column(NamedTuple):
    """Tensors of one dtype that follow one another in the payload."""

    dtype: torch.dtype
    offset: int  # bytes
    places: Sequence[int]  # which tensors they are, in the order of the structure's pickle
    sizes: Sequence[int]  # rows of each; elements of each, if their rows are not alike
    row: tuple[int, ...] | None  # shape of one row; None: the tensors are 0-d
    shapes: Sequence[tuple[int, ...]] | None  # of each tensor, if their rows are not alike

    def views(self, payload: Tensor) -> Sequence[Tensor]:
        """Return the tensors as views into the payload."""
        row = () if self.row is None else self.row
        count = sum(self.sizes)
        end = self.offset + count * prod(row) * self.dtype.itemsize
        data = payload[self.offset : end].view(self.dtype)
        if self.row is None:
            return data.unbind(0)
        if row:
            data = data.view(count, *row)
        parts: Sequence[Tensor] = torch.split_with_sizes(data, self.sizes)
        if self.shapes is None:
            return parts
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


class _Plan(NamedTuple):
    """Which bytes of the payload are which tensors and buffers."""

    size: int  # bytes of the payload
    number: int  # of tensors
    columns: list[_Column]
    buffers: list[tuple[int, int]]  # (offset, bytes)
    odd: dict[int, Tensor]  # tensors that are pickled in the ordinary way, by their place


class _Block(NamedTuple):
    """Tensors whose bytes follow one another in the payload, and are one piece of it."""

    size: int  # bytes, without padding
    tensors: Sequence[Tensor]
    column: _Column | None  # None: a buffer

    def piece(self) -> Tensor:
        """Return the bytes, shape (size,): the tensor's own memory where that can be."""
        with torch.inference_mode(False), torch.no_grad():
            tensors = self.tensors
            if self.column is not None and self.column.shapes is not None:
                tensors = [tensor.reshape(-1) for tensor in tensors]
            dtype = tensors[0].dtype
            if dtype not in JOINABLE:
                tensors = [tensor.view(_OF_WIDTH[dtype.itemsize]) for tensor in tensors]
            if len(tensors) == 1:
                data = tensors[0].detach()
            elif self.column is not None and self.column.row is None:
                data = torch.stack(list(tensors))
            else:
                data = torch.cat(list(tensors))
            data = data.resolve_conj().resolve_neg().cpu().contiguous()
            # One element or none has any stride and is contiguous, but has no bytes to view.
            return data.as_strided((data.numel(),), (1,)).view(torch.uint8)


class Packed:
    """A value as bytes: the structure, and the payload in pieces.

    The payload refers to the tensors' own memory: it must be used before they change.

    Attributes:
        head: What :func:`unpack` needs beside the payload.
        size: Bytes of the payload, a multiple of 16.
    """

    def __init__(self, head: bytes, size: int, blocks: Sequence[_Block]) -> None:
        self.head = head
        self.size = size
        self._blocks = blocks

    @property
    def pieces(self) -> Iterator[Tensor]:
        """The payload in order, in 1-d uint8 CPU tensors of any length.

        A large tensor is a view of its own memory; small ones are joined when their turn comes,
        so that a second copy of everything is never in memory.  Padding is a piece too.
        """
        for block in self._blocks:
            if block.size:
                yield block.piece()
            if block.size % _ALIGNMENT:
                yield _ZEROS[: -block.size % _ALIGNMENT]

    def payload(self) -> Tensor:
        """Return the payload in memory of its own, shape (size,)."""
        whole = torch.empty(self.size, dtype=torch.uint8)
        position = 0
        for piece in self.pieces:
            whole[position : position + len(piece)] = piece
            position += len(piece)
        return whole


# -- to bytes -------------------------------------------------------------------------------------


def pack(value: Any) -> Packed:
    """Take the tensors out of ``value``, and pickle the rest.

    A tensor that occurs twice, as the same object, is sent once; two views of one tensor are
    sent each by itself.  Gradients are dropped, parameters become tensors, and tensors of any
    device come to the CPU.  Sparse, nested, quantized and meta tensors and those of subclasses
    are pickled in the ordinary way.

    Raises:
        TypeError: If something in it cannot be pickled.  The error names it.
    """
    with gc_paused():
        try:
            structure, tensors, buffers = _dump(value)
            plan, blocks = _lay_out(tensors, buffers)
            return Packed(pickle.dumps(plan, 5) + structure, plan.size, blocks)
        except MemoryError:
            raise
        except Exception as error:
            raise _refusal(value, error) from error


def _next_tensor() -> NoReturn:
    """Stand in a structure's pickle for "the next tensor"; only :func:`unpack` can read it."""
    raise pickle.UnpicklingError("a head of packed values is read by unpack() alone")


_NEXT_TENSOR = (_next_tensor, ())


class _Pickler(pickle.Pickler):
    """Pickle everything but tensors, which are put aside."""

    tensors: list[Tensor]

    # Python calls it for objects of no built-in type only; a persistent_id() would be called for
    # every string and number.  A dispatch_table is as fast, but knows no subclasses.
    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is Tensor or kind is torch.nn.Parameter:
            self.tensors.append(value)
            return _NEXT_TENSOR
        if isinstance(value, Tensor) and value.device.type not in ("cpu", "meta"):
            return value.cpu().__reduce_ex__(5)  # type: ignore[no-untyped-call]
        return NotImplemented


def _dump(value: Any) -> tuple[bytes, list[Tensor], list[pickle.PickleBuffer]]:
    """Return the pickle of a value, and the tensors and buffers left out of it, in order."""
    buffers: list[pickle.PickleBuffer] = []

    def stays_in_band(buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < _IN_BAND:
            return True
        buffers.append(buffer)
        return False

    file = io.BytesIO()
    pickler = _Pickler(file, 5, buffer_callback=stays_in_band)
    pickler.tensors = []
    pickler.dump(value)
    return file.getvalue(), pickler.tensors, buffers


class _Group(NamedTuple):
    """Tensors whose rows are alike."""

    places: list[int]
    tensors: list[Tensor]
    sizes: list[int]  # rows

    def add(self, place: int, tensor: Tensor, size: int) -> None:
        self.places.append(place)
        self.tensors.append(tensor)
        self.sizes.append(size)


def _lay_out(
    tensors: list[Tensor], buffers: list[pickle.PickleBuffer]
) -> tuple[_Plan, list[_Block]]:
    """Give every tensor and buffer its bytes of the payload."""
    groups, odd = _group(tensors)
    blocks: list[_Block] = []
    offset = 0
    mixed: dict[Any, _Group] = {}  # few of a kind: joined by dtype, as flat tensors
    for (dtype, row, *device), group in groups.items():
        if row and len(group.places) < _FEW:
            flat = mixed.setdefault((dtype, *device), _Group([], [], []))
            for place, tensor, size in zip(*group, strict=True):
                flat.add(place, tensor, size * prod(row))
            continue
        offset = _add_blocks(blocks, group, dtype, row, offset)
    for (dtype, *_), group in mixed.items():
        offset = _add_blocks(blocks, group, dtype, (), offset, flat=True)
    columns = [block.column for block in blocks if block.column is not None]
    spans = []
    for buffer in buffers:
        raw = buffer.raw()
        # A read-only buffer is copied, since torch warns about it.
        data = torch.frombuffer(bytearray(raw) if raw.readonly else raw, dtype=torch.uint8)
        blocks.append(_Block(len(data), (data,), None))
        spans.append((offset, len(data)))
        offset = aligned(offset + len(data))
    return _Plan(offset, len(tensors), columns, spans, odd), blocks


def _group(tensors: list[Tensor]) -> tuple[dict[Any, _Group], dict[int, Tensor]]:
    """Group tensors by dtype, shape of a row, and device other than the CPU.

    Returns:
        The groups, and the tensors that have no plain memory, by place.
    """
    groups: dict[Any, _Group] = {}
    odd: dict[int, Tensor] = {}
    strided = torch.strided
    for place, tensor in enumerate(tensors):
        try:
            plain = tensor.layout is strided and (tensor.is_cpu or not tensor.is_meta)
            shape = tensor.shape if plain else torch.Size()
        except RuntimeError:  # a nested tensor has no shape
            plain = False
        if not plain:
            odd[place] = _ordinary(tensor)
            continue
        key: Any = (tensor.dtype, shape[1:] if shape else None)
        if not tensor.is_cpu:
            key = (*key, tensor.device)
        group = groups.get(key)
        if group is None:
            if tensor.is_quantized:
                odd[place] = _ordinary(tensor)
                continue
            group = groups[key] = _Group([], [], [])
        group.add(place, tensor, shape[0] if shape else 1)
    return groups, odd


def _ordinary(tensor: Tensor) -> Tensor:
    """Return a tensor that pickle takes, with no more memory than it needs."""
    tensor = tensor.detach()
    if tensor.is_meta:
        return tensor
    if tensor.is_mkldnn:
        return tensor.to_dense()
    return tensor.cpu().clone()


def _add_blocks(
    blocks: list[_Block],
    group: _Group,
    dtype: torch.dtype,
    row: tuple[int, ...] | None,
    offset: int,
    *,
    flat: bool = False,
) -> int:
    """Append the blocks of one group, and return the offset behind them."""
    row = None if row is None else tuple(row)
    bytes_of_row = prod(row or ()) * dtype.itemsize
    for begin, end in _runs(group.sizes, bytes_of_row):
        tensors, sizes = group.tensors[begin:end], group.sizes[begin:end]
        shapes = [tuple(tensor.shape) for tensor in tensors] if flat else None
        column = _Column(dtype, offset, group.places[begin:end], sizes, row, shapes)
        blocks.append(_Block(sum(sizes) * bytes_of_row, tensors, column))
        offset = aligned(offset + blocks[-1].size)
    return offset


def _runs(sizes: Sequence[int], bytes_of_row: int) -> Iterator[tuple[int, int]]:
    """Yield from where to where tensors are joined."""
    begin, joined = 0, 0
    for index, size in enumerate(sizes):
        size *= bytes_of_row
        alone = size > _ALONE
        if (alone or joined + size > _RUN) and begin < index:
            yield begin, index
            begin, joined = index, 0
        joined += size
        if alone:
            yield index, index + 1
            begin, joined = index + 1, 0
    if begin < len(sizes):
        yield begin, len(sizes)


def aligned(offset: int, alignment: int = _ALIGNMENT) -> int:
    return -(-offset // alignment) * alignment


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
        tensors = _dump(value)[1]
        pickle.dumps([_ordinary(tensor) for tensor in _group(tensors)[1].values()], 5)
    except Exception:  # noqa: BLE001  # what it is has been kept when it first came
        return False
    return True


# -- and back -------------------------------------------------------------------------------------


class _Unpickler(pickle.Unpickler):
    """Read a structure, giving out the tensors in order."""

    tensors: Iterator[Tensor]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == (__name__, _next_tensor.__name__):
            return self.tensors.__next__
        return super().find_class(module, name)


def unpack(head: bytes, payload: Tensor) -> Any:
    """Return the value that was packed.

    Its tensors, and large arrays, are writable views into the payload, which lives as long as
    one of them.

    Args:
        head: ``Packed.head``.
        payload: All bytes, a contiguous uint8 CPU tensor of shape (size,).  As a slice of
            another tensor it begins at a multiple of 16 bytes.

    Raises:
        ValueError: If the payload is not of that kind.
    """
    file = io.BytesIO(head)
    with gc_paused(), torch.inference_mode(False):
        plan: _Plan = pickle.load(file)
        _check_payload(payload, plan.size)
        tensors: list[Any] = [None] * plan.number
        for column in plan.columns:
            for place, view in zip(column.places, column.views(payload), strict=True):
                tensors[place] = view
        for place, tensor in plan.odd.items():
            tensors[place] = tensor
        memory = memory_of(payload) if plan.buffers else memoryview(b"")
        buffers = [memory[begin : begin + size] for begin, size in plan.buffers]
        unpickler = _Unpickler(file, buffers=buffers)
        unpickler.tensors = iter(tensors)
        return unpickler.load()


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
