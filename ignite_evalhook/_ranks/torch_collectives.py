"""Keep a piece of code from calling collectives of ``torch.distributed`` by itself.

Ranks have different numbers of batches, and compute several times: a collective that a metric
calls on torch's own group would pair with another one, or wait.

Private names of torch are used here only: ``GroupMember.WORLD``, and the tables ``pg_map`` and
``pg_group_ranks`` of ``distributed_c10d._world``, in which a group's backend is looked up.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from ignite.metrics import Metric

from ..exceptions import EvaluationError

__all__ = ["no_torch_collectives", "watch_first_update"]


@contextmanager
def no_torch_collectives(title: str) -> Iterator[None]:
    """Refuse collectives of torch's default group; rank, size and backend are answered.

    Args:
        title: Who runs in the body, for the error.

    Raises:
        EvaluationError: In the place of what a collective raises, since its group has no backend.
    """
    if not (dist.is_available() and dist.is_initialized()):
        yield
        return
    member: Any = dist.GroupMember
    world: Any = dist.distributed_c10d._world
    real = member.WORLD
    make: Any = dist.ProcessGroup
    refusing = make(real.rank(), real.size())
    world.pg_map[refusing] = world.pg_map[real]
    world.pg_group_ranks[refusing] = world.pg_group_ranks[real]
    member.WORLD = refusing
    try:
        yield
    except Exception as error:
        called = _called(error)
        if called is None:
            raise
        raise EvaluationError(
            f"{title} calls {called} of torch.distributed, and the other ranks need not be there "
            f"when it does; call idist.{called} of ignite.distributed in compute()"
        ) from error
    finally:
        member.WORLD = real
        del world.pg_map[refusing], world.pg_group_ranks[refusing]


def watch_first_update(metric: Metric, title: str) -> Callable[[], None]:
    """Refuse collectives in the next ``update()`` of a metric; the later ones cost nothing.

    Returns:
        A function that ends it, if there was no update.
    """

    def end() -> None:
        vars(metric).pop("update", None)

    def update(output: Any) -> None:
        end()
        with no_torch_collectives(title):
            metric.update(output)

    vars(metric)["update"] = update
    return end


def _called(error: BaseException) -> str | None:
    """Return the function of torch's in which an exception came up."""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.endswith("distributed_c10d.py") and frame.name != "wrapper":
            return frame.name
    return None
