"""Put something in the place of Ignite's computation model, for a time.

:class:`StandIn` tells where the process is, as the real model does, and has no process group.
:func:`no_collectives` puts one there that refuses whoever asks the other ranks.

Private names of Ignite are used here only to replace its model: ``_model`` and ``_need_to_sync``
of ``ignite.distributed.utils``, and ``_SerialModel``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn, cast

import ignite.distributed.utils as ignite_distributed
import torch
import torch.distributed as dist
from ignite.distributed.comp_models.base import ComputationModel, _SerialModel

from ..exceptions import EvaluationError

__all__ = ["StandIn", "in_place", "no_collectives", "real_model"]

WHILE_BATCHES = (
    "while batches are evaluated; ranks have different numbers of batches, so it would hang; keep "
    "what you count on each rank, and reduce it in a metric's compute()"
)


class StandIn(ComputationModel):
    """A computation model in another one's place; tells where it is, and has no group."""

    available_backends = ()

    def __init__(self, real: Any) -> None:
        super().__init__()
        self._real = real

    @property
    def name(self) -> str:
        """Return the name of the model that is replaced."""
        return str(self._real.name)

    def get_local_rank(self) -> int:
        """Return the process's number on its machine."""
        return int(self._real.get_local_rank())

    def get_rank(self) -> int:
        """Return the process's number."""
        return int(self._real.get_rank())

    def get_world_size(self) -> int:
        """Return the number of processes."""
        return int(self._real.get_world_size())

    def get_nproc_per_node(self) -> int:
        """Return the number of processes on each machine."""
        return int(self._real.get_nproc_per_node())

    def get_nnodes(self) -> int:
        """Return the number of machines."""
        return int(self._real.get_nnodes())

    def get_node_rank(self) -> int:
        """Return the machine's number."""
        return int(self._real.get_node_rank())

    def device(self) -> torch.device:
        """Return the device of the model that is replaced."""
        return cast(torch.device, self._real.device())

    def backend(self) -> str | None:
        """Return the backend of the model that is replaced."""
        return cast("str | None", self._real.backend())

    def finalize(self) -> None:
        """Refuse to end the process group."""
        self._refuse("finalize")

    @staticmethod
    def create_from_context() -> None:
        """Return nothing: there is no process group."""

    @staticmethod
    def create_from_backend(backend: str, **kwargs: Any) -> ComputationModel:
        """Refuse: this model is made here only."""
        raise NotImplementedError(backend)

    @staticmethod
    def spawn(*args: Any, **kwargs: Any) -> None:
        """Refuse: this model starts no process."""
        raise NotImplementedError

    def new_group(self, ranks: list[int], **kwargs: Any) -> Any:
        """Refuse to make a group of some ranks."""
        self._refuse("new_group")

    def _refuse(self, operation: str) -> NoReturn:
        raise NotImplementedError(operation)

    def _compute_nproc_per_node(self) -> int:
        return self.get_nproc_per_node()

    def _rank_not_in_group(self, group: Any) -> bool:
        return False

    # The public operations are answered before these would be reached.
    def _do_all_reduce(self, tensor: Any, op: str = "SUM", group: Any = None) -> Any:
        self._refuse("all_reduce")

    def _do_all_gather(self, tensor: Any, group: Any = None) -> Any:
        self._refuse("all_gather")

    def _do_all_gather_object(self, tensor: Any, group: Any = None) -> Any:
        self._refuse("all_gather")

    def _do_broadcast(self, tensor: Any, src: int) -> Any:
        self._refuse("broadcast")

    def _do_new_group(self, ranks: list[int], **kwargs: Any) -> Any:
        self._refuse("new_group")


class _Refusing(StandIn):
    """Tells rank and world size as they are, and refuses everything that needs other ranks."""

    def __init__(self, real: Any, words: str) -> None:
        super().__init__(real)
        self._words = words

    def all_reduce(self, tensor: Any, op: str = "SUM", group: Any = None) -> Any:
        """Refuse."""
        self._refuse("all_reduce")

    def all_gather(self, tensor: Any, group: Any = None) -> Any:
        """Refuse."""
        self._refuse("all_gather")

    def broadcast(self, tensor: Any, src: int = 0, safe_mode: bool = False) -> Any:
        """Refuse."""
        self._refuse("broadcast")

    def barrier(self) -> None:
        """Refuse."""
        self._refuse("barrier")

    def _refuse(self, operation: str) -> NoReturn:
        raise EvaluationError(f"idist.{operation} was called {self._words}")


@contextmanager
def no_collectives(words: str = WHILE_BATCHES) -> Iterator[None]:
    """Refuse, for a time, everything of ``ignite.distributed`` that needs the other ranks.

    Rank, world size, device and the like are answered as before.  On one process nothing changes.

    Args:
        words: When that is, why it is refused and what to do instead; ends the error's sentence
            ``idist.all_reduce was called ...``.
    """
    real = ignite_distributed._model
    if isinstance(real, _SerialModel):
        yield
        return
    with in_place(_Refusing(real, words)):
        yield


@contextmanager
def in_place(model: ComputationModel) -> Iterator[None]:
    """Put ``model`` in the place of Ignite's own.

    Ignite looks for a process group only while its model is the serial one, which ours is not.
    """
    kept = ignite_distributed._model, ignite_distributed._need_to_sync
    ignite_distributed._model = cast(Any, model)
    try:
        yield
    finally:
        ignite_distributed._model, ignite_distributed._need_to_sync = kept


def real_model() -> Any:
    """Return Ignite's computation model, or what stands in its place."""
    return ignite_distributed._model


# -- let what runs on rank 0 alone see a world of one process --------------------------------------


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
