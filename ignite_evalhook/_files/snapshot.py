"""Copy a state into host memory that is kept, so that training may go on while it is written.

A copy has the structure of the original: what shares memory there shares it here, so that the
file that is made of it is the same.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

__all__ = ["Snapshots"]


class Snapshots:
    """Copies of states, made into the same memory each time.

    The first copy takes as much host memory as the state; later ones reuse it, so a copy may
    only be made when the one before is not needed any more.  On CUDA the memory is pinned, and
    copies run on a stream of their own: what training does next waits for them on the device,
    not here.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._used = 0
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._storages: dict[tuple[str, int], Tensor] = {}

    def take(self, state: Any) -> Any:
        """Return a copy of ``state``: plain dicts, lists and tuples of tensors and plain values.

        Before it is read, call :meth:`wait`.
        """
        self._used = 0
        self._storages = {}
        with torch.no_grad():
            copy = _Copier(self._tensor).copy(state)
        del self._buffers[self._used :]  # of a state that has become smaller
        self._storages = {}
        for device, stream in self._streams.items():
            torch.cuda.current_stream(device).wait_stream(stream)
        return copy

    def wait(self) -> None:
        """Wait until everything is copied; from any thread."""
        for stream in self._streams.values():
            stream.synchronize()

    def _tensor(self, tensor: Tensor) -> Tensor:
        plain = tensor.layout is torch.strided and not (
            tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg()
        )
        if not plain or tensor.device.type not in ("cpu", "cuda"):
            return tensor.detach().to("cpu", copy=True)
        memory = self._memory(tensor)
        copy = torch.empty(0, dtype=tensor.dtype)
        return copy.set_(
            memory.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
        )

    def _memory(self, tensor: Tensor) -> Tensor:
        """Return a copy of all the memory that a tensor is a view of."""
        storage = tensor.untyped_storage()
        key = (str(tensor.device), storage.data_ptr())
        if key in self._storages and storage.nbytes() > 0:
            return self._storages[key]
        source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
        buffer = self._buffer(storage.nbytes(), pinned=tensor.is_cuda)
        if tensor.is_cuda:
            stream = self._stream(tensor.device)
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
            with torch.cuda.stream(stream):
                buffer.copy_(source, non_blocking=True)
        else:
            buffer.copy_(source)
        self._storages[key] = buffer
        return buffer

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[device]

    def _buffer(self, size: int, *, pinned: bool) -> Tensor:
        place, self._used = self._used, self._used + 1
        if place == len(self._buffers):
            self._buffers.append(torch.empty(size, dtype=torch.uint8, pin_memory=pinned))
        buffer = self._buffers[place]
        if len(buffer) != size or buffer.is_pinned() != pinned:
            self._buffers[place] = buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        return buffer


class _Copier:
    """One pass over a state; what occurs twice is copied once."""

    def __init__(self, tensor: Any) -> None:
        self._copy_tensor = tensor
        self._known: dict[int, tuple[Any, Any]] = {}  # id -> (original, kept alive; copy)

    def copy(self, value: Any) -> Any:
        if id(value) in self._known:
            return self._known[id(value)][1]
        result = self._convert(value)
        self._known[id(value)] = (value, result)
        return result

    def _convert(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            copied: dict[Any, Any] = OrderedDict() if type(value) is OrderedDict else {}
            copied.update((key, self.copy(item)) for key, item in value.items())
            if isinstance(copied, OrderedDict):
                vars(copied).update((name, self.copy(item)) for name, item in vars(value).items())
            return copied
        if type(value) in (list, tuple):
            return type(value)(map(self.copy, value))
        return value

    def _tensor(self, value: Tensor) -> Tensor:
        copied: Tensor = self._copy_tensor(value.detach())
        if isinstance(value, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, value.requires_grad)
        elif value.requires_grad:
            copied.requires_grad_()
        vars(copied).update((name, self.copy(item)) for name, item in vars(value).items())
        return copied
