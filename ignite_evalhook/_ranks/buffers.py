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

from ..exceptions import EvaluationError
from .compare import NOTHING, Given, check_alike
from .team import Section, Team

__all__: list[str] = []


class Buffers:
    """The buffers of some models, ready to be made equal.

    Everything that could fail on one rank alone is done at construction, before the ranks meet.

    Args:
        modules: The same on all ranks, but for the buffers' values.
        how: ``"broadcast"`` gives every rank rank 0's values; ``"mean"`` averages floating-point
            buffers in float64, others are rank 0's; ``None``: there is nothing to do.
    """

    def __init__(self, modules: Sequence[nn.Module], how: str | None) -> None:
        named = [] if how is None else _buffers_of(modules)
        is_averaged = [how == "mean" and b.is_floating_point() for _, b in named]
        pairs = list(zip(named, is_averaged, strict=True))
        self.layout = [[name, str(b.dtype), list(b.shape)] for name, b in named]
        self._copied = [buffer for (_, buffer), averaged in pairs if not averaged]
        self._averaged = [buffer for (_, buffer), averaged in pairs if averaged]
        self._bytes = _joined([_bytes(buffer) for buffer in self._copied], torch.uint8)
        self._numbers = _joined([_numbers(buffer) for buffer in self._averaged], torch.float64)

    def equalise(self, team: Team) -> None:
        """Make the buffers the same on every rank, by one collective a kind.

        Call it when all ranks are known to be there, and to have the same layout.
        """
        if self._copied:
            dist.broadcast(self._bytes, 0, group=team.group)
            sizes = [buffer.numel() * buffer.element_size() for buffer in self._copied]
            for buffer, part in zip(self._copied, torch.split(self._bytes, sizes), strict=True):
                _fill(buffer, part.clone().view(buffer.dtype))  # a clone is aligned
        if self._averaged:
            dist.all_reduce(self._numbers, group=team.group)
            means = torch.split(self._numbers / team.size, [b.numel() for b in self._averaged])
            for buffer, part in zip(self._averaged, means, strict=True):
                _fill(buffer, part)


def get_ready(
    section: Section,
    modules: Sequence[nn.Module],
    how: str | None,
    place: Any = None,
    given: Given = NOTHING,
) -> None:
    """Meet the other ranks, and make the models' buffers the same everywhere.

    Args:
        section: What all ranks go through together.
        modules: The models.
        how: As for :class:`Buffers`.
        place: Plain values that must be the same on all ranks: where training stands.
        given: What else must be the same.

    Raises:
        EvaluationError: On every rank, if one stands elsewhere, has another model, or was given
            other things.
    """
    if section.team.alone:
        return
    buffers = Buffers(modules, how)

    def compare(said: Sequence[Any]) -> None:
        check_alike(given, [each for *_, each in said])
        _check_same_place(said)

    section.meet("ready", [place, buffers.layout, given.said], compare)
    buffers.equalise(section.team)


def _check_same_place(said: Sequence[Any]) -> None:
    """Refuse ranks of which one stands elsewhere, or has another model."""
    for rank, (place, layout, _) in enumerate(said):
        for what, own, first in (("stands at", place, said[0][0]), ("has the buffers", layout,
                                                                   said[0][1])):  # fmt: skip
            if own != first:
                raise EvaluationError(
                    f"rank {rank} {what} {own!r:.200}, rank 0 {first!r:.200}: every rank needs the "
                    "same model, and the same state loaded"
                )


def _buffers_of(modules: Sequence[nn.Module]) -> list[tuple[str, Tensor]]:
    """Return the buffers of some modules by name, each once, in an order that all ranks share."""
    found: dict[int, tuple[str, Tensor]] = {}
    for number, module in enumerate(modules):
        for name, buffer in module.named_buffers():
            if _is_plain(buffer):
                found.setdefault(id(buffer), (f"{number}.{name}", buffer))
    return list(found.values())


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_meta


def _joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat(parts) if parts else torch.empty(0, dtype=dtype)


def _bytes(buffer: Tensor) -> Tensor:
    # A copy, so that it is contiguous, and aligned for its type.
    return buffer.detach().to("cpu", copy=True).contiguous().reshape(-1).view(torch.uint8)


def _numbers(buffer: Tensor) -> Tensor:
    return buffer.detach().to("cpu", torch.float64).reshape(-1)


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
