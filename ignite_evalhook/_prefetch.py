"""Copy the next batch to a GPU while the present one is computed.

In the stream of computation a copy would wait for all that was asked for before it, and what comes
after would wait for the copy.  So it goes through a stream of its own, in this order:

1. The memory for batch k + 1 comes from the stream of computation, as all other memory does, so
   that it may be used again without asking the second stream.  What had it before may still be at
   work: the second stream waits for what the first one has been told up to here.
2. The second stream copies, while the first one is given batch k to compute.
3. The first stream waits for the copy before it uses it, or before the memory is given back.

The host waits for nothing.  :func:`look_ahead` and :class:`Prefetch` know nothing of CUDA;
:class:`CudaStreams` is all that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ._loading import Batches

__all__: list[str] = []

T = TypeVar("T")
S = TypeVar("S")

_END: Any = object()


def look_ahead(items: Iterable[T], begin: Callable[[T], S]) -> Iterator[tuple[T, S]]:
    """Yield each item when the next one has been fetched, and ``begin`` called with it.

    What fetching or beginning the next one raises comes when that is due, behind those that were
    there before.  What is no ``Exception``, an interrupt, comes at once.

    Args:
        items: Gone through once; never more than one item further than what was yielded.
        begin: Called with each item, in order.

    Returns:
        Pairs of an item and what ``begin`` returned.
    """
    iterator: Iterator[Any] = iter(items)
    waiting: list[tuple[T, S]] = []
    late: Exception | None = None
    while late is None:
        try:
            item = next(iterator, _END)
            if item is _END:
                break
            waiting.append((item, begin(item)))
        except Exception as error:  # noqa: BLE001  # raised below, in its turn
            late = error
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting
    if late is not None:
        try:
            raise late
        finally:
            late = None  # it holds this frame, and so the loader and its workers


class Streams(Protocol):
    """The stream of computation, and one for copies to the device."""

    def empty_for(self, tensor: Tensor) -> Tensor | None:
        """Return memory on the device for a copy; ``None``: the tensor had better stay."""

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Any:
        """Begin to copy pairs ``(to, from)``; return a mark of the end of it."""

    def wait(self, mark: Any) -> None:
        """Let what is computed from here on wait for a mark."""


class CudaStreams:
    """The two streams on a GPU.

    Args:
        device: The GPU.
        cuda: ``torch.cuda``, or what takes its place in a test.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device = device
        self._cuda = cuda
        self._copies = cuda.Stream(device)

    def empty_for(self, tensor: Tensor) -> Tensor | None:
        """Return memory of the stream of computation, for a pinned tensor."""
        # Pinned memory is not given to anybody else before torch has seen the copy end.
        plain = type(tensor) is Tensor and tensor.layout is torch.strided
        return torch.empty_like(tensor, device=self._device) if plain and _pinned(tensor) else None

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Any:
        """Copy behind what is being computed, and beside what will be."""
        told = self._cuda.current_stream(self._device).record_event()
        self._copies.wait_event(told)
        with self._cuda.stream(self._copies):
            for to, source in pairs:
                to.copy_(source, non_blocking=True)
        return self._copies.record_event()

    def wait(self, mark: Any) -> None:
        """Let the stream of computation wait for an event; the host goes on."""
        self._cuda.current_stream(self._device).wait_event(mark)


def _pinned(tensor: Tensor) -> bool:
    return tensor.is_pinned()


def streams_of(device: torch.device) -> Streams | None:
    """Return the streams of a device; ``None`` if it is no GPU."""
    return CudaStreams(device) if device.type == "cuda" else None


@dataclass(frozen=True)
class _Copy:
    """The copies of one batch's tensors: ``id(source)`` to source, its version, and copy."""

    rooms: dict[int, tuple[Tensor, int | None, Tensor]]
    mark: Any

    def of(self, tensor: Tensor) -> Tensor:
        """Return the copy of a tensor; if there is none, or it was written since, itself."""
        source, version, room = self.rooms.get(id(tensor), (None, None, tensor))
        return room if source is None or version == _version(source) else tensor


class Prefetch:
    """Has each batch of an evaluation copied to the device while the one before is computed.

    Whoever takes the batches gets them as they came, on the host; the step asks for the copy.

    Args:
        device: Says where batches go; asked once an evaluation.
    """

    def __init__(self, device: Callable[[], torch.device]) -> None:
        self._device = device
        self._streams: Streams | None = None
        self._due: _Copy | None = None
        self._last: Any = None
        self._full = False

    @contextmanager
    def over(self, batches: Batches) -> Iterator[None]:
        """Look ahead in batches inside the ``with`` block, if that can help.

        It can where they come pinned from a ``DataLoader`` with workers, for a GPU: elsewhere the
        host would have to load the next batch before it can begin with the present one.
        """
        streams = streams_of(self._device()) if _comes_pinned(batches.data) else None
        if streams is None:
            yield
            return
        self._streams = streams
        batches.through = self._lead
        try:
            yield
        finally:
            if self._last is not None:  # a batch that nobody took may still be on its way
                streams.wait(self._last)
            self._streams = self._due = self._last = None
            self._full = False

    def take(self, batch: Any) -> Any:
        """Return a batch with the copies of its tensors in their place, where there are some."""
        copy, self._due = self._due, None
        if copy is None or self._streams is None:
            return batch
        self._streams.wait(copy.mark)
        # The batch may not be the one that came: a handler has put another tensor into it.
        return map_tensors(batch, copy.of)

    def _lead(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch, copy in look_ahead(batches, self._begin):
            self._due = copy
            del copy  # so that its memory can be that of the next but one
            yield batch
            self.take(None)  # if the step has not asked for it

    def _begin(self, batch: Any) -> _Copy | None:
        streams, rooms = self._streams, {}
        if streams is None or self._full:
            return None

        def make_room(tensor: Tensor) -> None:
            room = streams.empty_for(tensor)
            if room is not None:
                rooms[id(tensor)] = (tensor, _version(tensor), room)

        try:
            map_tensors(batch, make_room)
        except torch.cuda.OutOfMemoryError:
            self._full = True  # a batch goes to the device when the one before has made room
            return None
        if not rooms:
            return None
        self._last = streams.copy([(room, source) for source, _, room in rooms.values()])
        return _Copy(rooms, self._last)


def _comes_pinned(data: Any) -> bool:
    return (
        isinstance(data, DataLoader)
        and type(data).__iter__ is DataLoader.__iter__
        and data.pin_memory
        and data.num_workers > 0
    )


def map_tensors(batch: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to every tensor of a nested structure; anything else stays as it is."""
    if isinstance(batch, Tensor):
        return function(batch)
    if type(batch) is list or type(batch) is tuple:
        return type(batch)([map_tensors(item, function) for item in batch])
    if type(batch) is dict:
        return {key: map_tensors(item, function) for key, item in batch.items()}
    return batch


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
