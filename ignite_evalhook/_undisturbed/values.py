"""Remember the values of tensors, and put them back bit for bit."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors
from torch.nn.parameter import is_lazy

from .random import Restore, run_all

__all__: list[str] = []

# Of these, tensors are copied many at once; a model has hundreds.
_PACKED_TYPES = frozenset(
    {torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
     torch.bool}
)  # fmt: skip
_TYPES = frozenset({Tensor, nn.Parameter})
_KIN = (attrgetter("dtype"), attrgetter("layout"), attrgetter("device"))
_ROOM = 2**24  # bytes of parameters of one model that are copied at most


def writable(parameters: Iterable[nn.Parameter], room: float = _ROOM) -> list[nn.Parameter]:
    """Return the parameters that may be written in a forward pass.

    Where one writes, it is into scales and shifts that the first batch decides on, or into the
    weights of a small layer: of too many, the largest are left out.  So are those whose memory
    another library moves about, as DeepSpeed and FSDP do.

    Args:
        parameters: The parameters of a model.
        room: Bytes that they may have together.
    """
    own = [p for p in parameters if type(p) is nn.Parameter or is_lazy(p)]
    if own and hasattr(own[0], "ds_id"):
        return []
    sizes = [0 if is_lazy(p) else p.nbytes for p in own]
    if sum(sizes) <= room:
        return own
    order = sorted(range(len(own)), key=sizes.__getitem__)
    fitting = bisect_right(list(accumulate(sizes[n] for n in order)), room)
    return [own[n] for n in order[:fitting]]


def remember_values(tensors: Sequence[Tensor]) -> Restore:
    """Remember the values of tensors of any kind.

    A tensor's version counter cannot tell whether it was written: BatchNorm changes its running
    statistics without moving it, and so does writing through ``.data``.
    """
    groups: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    steps: list[Restore] = []
    plain = [tensor for tensor in tensors if type(tensor) in _TYPES]
    for tensor, kin in zip(
        plain, zip(*(map(get, plain) for get in _KIN), strict=True), strict=True
    ):
        groups[kin].append(tensor)
    # Here and below, since tensors made in inference mode can be written in it only.
    with torch.inference_mode():
        for (dtype, layout, _), group in groups.items():
            if layout is not torch.strided:
                steps += [partial(tensor.copy_, tensor.clone()) for tensor in group]
            elif dtype in _PACKED_TYPES and not any(map(_is_expanded, group)):
                group = [t for t in group if t.data_ptr() != 0]  # not empty, nor given up for now
                steps += [_remember_group(group)] if group else []
            else:
                steps += map(_remember_one, group)
        for tensor in tensors if len(plain) < len(tensors) else ():
            if is_lazy(tensor):
                steps.append(partial(_make_lazy, tensor, type(tensor), tensor.data))
            elif type(tensor) not in _TYPES:  # of these, not all have aliases
                steps.append(partial(tensor.copy_, tensor.clone()))

    @torch.inference_mode()
    def restore() -> None:
        run_all(steps)

    return restore


def _remember_group(tensors: list[Tensor]) -> Restore:
    """Remember tensors of one device and type."""
    pack = _joined(tensors)
    pack = pack if len(tensors) > 1 else pack.clone()
    # An alias sees the same memory but has a version counter of its own: writing through it
    # does not invalidate a graph that training still holds.
    aliases = [tensor.data for tensor in tensors]

    def restore() -> None:
        if pack.is_cpu and _places(tensors) == _places(aliases):  # elsewhere, to compare is to wait
            now = _joined(tensors)
            if torch.equal(now.view(torch.uint8), pack.view(torch.uint8)):
                return
        for tensor, alias in zip(tensors, aliases, strict=True):
            tensor.data = alias  # undoes resize_() and another assignment to .data
        parts = torch.split_with_sizes(pack, [alias.numel() for alias in aliases])
        values = [part.view(alias.shape) for part, alias in zip(parts, aliases, strict=True)]
        torch._foreach_copy_(aliases, values)

    return restore


def _joined(tensors: list[Tensor]) -> Tensor:
    """Return all elements, shape (numbers,); of one tensor perhaps in its own memory."""
    flatten: Any = _flatten_dense_tensors  # which has no types
    found: Tensor = flatten(tensors)
    return found.as_strided((found.numel(),), (1,))  # a single element has any stride


def _places(tensors: list[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


def _remember_one(tensor: Tensor) -> Restore:
    alias = tensor.data
    own = _without_repeats(alias)
    values = own.clone()

    def restore() -> None:
        own.copy_(values)
        tensor.data = alias

    return restore


def _is_expanded(tensor: Tensor) -> bool:
    return not tensor.is_contiguous() and 0 in tensor.stride()


def _make_lazy(tensor: Tensor, kind: type, memory: Tensor) -> None:
    """Let a tensor be without a value again, if it was and has got one."""
    if type(tensor) is not kind:
        tensor.data = memory
        tensor.__class__ = kind


def _without_repeats(tensor: Tensor) -> Tensor:
    """Return a view without the dimensions along which an expanded tensor repeats itself."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
