"""Let what runs on rank 0 alone see a world of one process.

Inside :func:`world_of_one` a metric of Ignite or torchmetrics computes by itself, as it does on
one process, and cannot wait for ranks that are elsewhere.  What asks them all the same is refused.

Private names used here, and put back: ``_model`` and ``_need_to_sync`` of
``ignite.distributed.utils``; of torch's ``distributed_c10d`` the ``_world`` that its own tests
override too, and what collectives ask first, ``_rank_not_in_group`` and ``_get_default_group``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import ignite.distributed.utils as ignite_distributed
import torch
import torch.distributed as dist
from ignite.distributed.comp_models.base import _SerialModel

from ._stand_in import in_place, real_model
from .exceptions import EvaluationError

__all__: list[str] = []


class _Alone(_SerialModel):
    """Ignite's model of one process, on the device of the model that it replaces."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def device(self) -> torch.device:
        """Return the device."""
        return self._device


@contextmanager
def world_of_one() -> Iterator[None]:
    """Let the body see one process, by ``ignite.distributed`` and by ``torch.distributed``.

    ``is_initialized()`` is false, rank and world size are 0 and 1; collectives of Ignite give back
    what they get, those of torch are refused.  For torch that holds in this thread only.  On one
    process nothing changes.
    """
    if ignite_distributed.get_world_size() == 1:
        yield
        return
    with in_place(_Alone(real_model().device())), ExitStack() as stack:
        ignite_distributed._need_to_sync = False  # or it would look for a process group
        if dist.is_available() and dist.is_initialized():
            _hide_groups(stack)
        yield


def _hide_groups(stack: ExitStack) -> None:
    """Hide torch's process groups from this thread, until the end of ``stack``."""
    core, thread = dist.distributed_c10d, threading.get_ident()
    world: Any = core._world

    def refuse(group: Any = None) -> Any:
        raise EvaluationError(
            "torch.distributed has no other ranks here: what computes or judges metrics "
            "(compute_metrics, derive, rule_map) runs on rank 0 alone, on what all ranks brought, "
            "while they wait; compute without a collective"
        )

    def here(answer: Callable[..., Any], elsewhere: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the one in this thread, and the other in others."""

        def choose(*args: Any, **kwargs: Any) -> Any:
            function = answer if threading.get_ident() == thread else elsewhere
            return function(*args, **kwargs)

        return choose

    def replace(owner: Any, name: str, value: Any) -> None:
        stack.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    group = type(world).default_pg
    hidden = group.getter(here(lambda self: None, group.fget))
    replace(world, "__class__", type("_World", (type(world),), {"default_pg": hidden}))
    for name in ("_rank_not_in_group", "_get_default_group"):
        replace(core, name, here(refuse, getattr(core, name)))
    for name, answer in (("get_rank", 0), ("get_world_size", 1)):
        function = here(lambda group=None, answer=answer: answer, getattr(core, name))
        for module in (core, dist):
            replace(module, name, function)
