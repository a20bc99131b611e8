"""Make the buffers of a model the same on every rank, for the time of an evaluation.

BatchNorm's statistics differ between ranks, so that each would score another model, and the
file written by rank 0 would be of yet another.  Afterwards each rank gets its own back: that
is :func:`quiet`'s business, inside of which this happens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._team import Team

__all__: list[str] = []


def buffers_of(modules: Sequence[nn.Module]) -> list[tuple[str, Tensor]]:
    """Return the buffers of some modules by name, each once, in an order that all ranks share."""
    found: dict[int, tuple[str, Tensor]] = {}
    for number, module in enumerate(modules):
        for name, buffer in module.named_buffers():
            if _is_plain(buffer):
                found.setdefault(id(buffer), (f"{number}.{name}", buffer))
    return list(found.values())


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_meta


def layout_of(buffers: Sequence[tuple[str, Tensor]]) -> list[Any]:
    """Describe buffers as plain values: all ranks must have the same."""
    return [[name, str(buffer.dtype), list(buffer.shape)] for name, buffer in buffers]


def equalise(buffers: Sequence[Tensor], how: str, team: Team) -> None:
    """Give every rank rank 0's values, or the mean over the ranks, by one collective.

    Call it on all ranks, when all are known to be there and to have the same buffers.

    Args:
        buffers: The same on all ranks, but for their values.
        how: ``"broadcast"``, or ``"mean"``: floating-point buffers are averaged in float64,
            others are rank 0's.
        team: The ranks.
    """
    averaged = [b for b in buffers if how == "mean" and b.is_floating_point()]
    copied = [b for b in buffers if not (how == "mean" and b.is_floating_point())]
    if copied:
        flat = torch.cat([_bytes(buffer) for buffer in copied])
        dist.broadcast(flat, 0, group=team.group)
        for buffer, part in zip(copied, _split(flat, copied), strict=True):
            _fill(buffer, part.view(buffer.dtype))
    if averaged:
        numbers = torch.cat([b.detach().to("cpu", torch.float64).reshape(-1) for b in averaged])
        dist.all_reduce(numbers, group=team.group)
        numbers /= team.size
        parts = torch.split(numbers, [b.numel() for b in averaged])
        for buffer, part in zip(averaged, parts, strict=True):
            _fill(buffer, part)


def _bytes(buffer: Tensor) -> Tensor:
    # A clone, so that it is contiguous, and aligned for its type.
    return buffer.detach().to("cpu", copy=True).contiguous().reshape(-1).view(torch.uint8)


def _split(flat: Tensor, buffers: Sequence[Tensor]) -> Iterator[Tensor]:
    sizes = [buffer.numel() * buffer.element_size() for buffer in buffers]
    yield from (part.clone() for part in torch.split(flat, sizes))


def _fill(buffer: Tensor, values: Tensor) -> None:
    # As quiet() writes: also what was made in inference mode, and without touching versions.
    with torch.inference_mode():
        buffer.data.copy_(values.view(buffer.shape))


@contextmanager
def without_ddp_broadcast() -> Iterator[None]:
    """Keep ``DistributedDataParallel`` from broadcasting buffers in each forward pass.

    Ranks have different numbers of batches, one perhaps none: the others would wait for it.
    And on ranks that had one, a wrapper would remember that its last pass was without gradients,
    and leave out the broadcast before the next step of training, for which the others wait.

    All wrappers are meant, since an engine of the user's may hold one that it does not tell.
    """
    wrapper = nn.parallel.DistributedDataParallel
    own = wrapper.will_sync_module_buffers
    before: dict[nn.parallel.DistributedDataParallel, bool] = {}

    def never(module: nn.parallel.DistributedDataParallel) -> bool:
        before.setdefault(module, module.require_forward_param_sync)
        return False

    wrapper.will_sync_module_buffers = never  # type: ignore[method-assign]
    try:
        yield
    finally:
        wrapper.will_sync_module_buffers = own  # type: ignore[method-assign]
        for module, synchronises in before.items():
            module.require_forward_param_sync = synchronises
