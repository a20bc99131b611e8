"""Evaluate, save and bring back the averaged weights that an ``EMAHandler`` keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine
from ignite.handlers import EMAHandler
from torch import Tensor, nn

from .._log import logger
from .._ranks.sharded_models import check_fits, load_whole, unwrap

__all__: list[str] = []


@contextmanager
def averaged_weights(handler: EMAHandler) -> Iterator[None]:
    """Let the trained model have the averaged weights and buffers, for the time of the body.

    Tensors change places and nothing is copied, so the model gets exactly its own back.

    Args:
        handler: Ignite's handler, with ``model`` and ``ema_model``.
    """
    pairs = _pairs(unwrap(handler.model), unwrap(handler.ema_model))
    _swap(pairs)
    try:
        yield
    finally:
        _swap(pairs)


def _pairs(model: nn.Module, averaged: nn.Module) -> list[tuple[Tensor, Tensor]]:
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    other = {**dict(averaged.named_parameters()), **dict(averaged.named_buffers())}
    return [(tensor, other[name]) for name, tensor in own.items()]


def _swap(pairs: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for one, other in pairs:
            one.data, other.data = other.data, one.data


def handler_of(context: object) -> EMAHandler | None:
    """Return the handler of a context that is :func:`averaged_weights` of one."""
    if isinstance(context, partial) and context.func is averaged_weights:
        return context.args[0]  # type: ignore[no-any-return]
    return None


class Averaged(NamedTuple):
    """One handler, and what it can be known by in the next run.

    Attributes:
        handler: The handler.
        name: Of its momentum in the trainer's state; ``None`` if it is not attached to it.
        hooks: Names of the hooks that evaluate its weights.
    """

    handler: EMAHandler
    name: str | None
    hooks: list[str]


class Averages:
    """All averaged weights of a run, as a part of its last checkpoint.

    Args:
        trainer: The engine that handlers are attached to.
        contexts: Returns the handlers that hooks evaluate, by the hooks' names.
    """

    def __init__(
        self, trainer: Engine, contexts: Callable[[], Mapping[str, EMAHandler | None]]
    ) -> None:
        self._trainer = trainer
        self._contexts = contexts
        self._loaded: list[Mapping[str, Any]] | None = None  # until a run starts
        self._done: set[int] = set()  # handlers that have their weights

    def find(self) -> list[Averaged]:
        """Return the handlers that are attached to the trainer, or that a hook evaluates."""
        found: dict[int, Averaged] = {}
        for handlers in self._trainer._event_handlers.values():
            for function, args, _ in handlers:
                owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
                if isinstance(owner, EMAHandler):
                    found.setdefault(id(owner), Averaged(owner, str(args[-1]), []))
        for hook, handler in self._contexts().items():
            if handler is not None:
                found.setdefault(id(handler), Averaged(handler, None, [])).hooks.append(hook)
        return list(found.values())

    def models(self) -> list[nn.Module]:
        """Return the models that have the averaged weights."""
        return [handler.ema_model for handler, *_ in self.find()]

    def states(self, models: Sequence[Any]) -> list[dict[str, Any]]:
        """Return their states, given those of :meth:`models`."""
        return [
            {
                "name": name,
                "hooks": hooks,
                "model": model,
                "momentum": None if name is None else getattr(self._trainer.state, name, None),
                "scheduled": getattr(_scheduler(handler), "event_index", None),
            }
            for (handler, name, hooks), model in zip(self.find(), models, strict=True)
        ]

    def check(self, states: Iterable[Mapping[str, Any]], where: str) -> None:
        """Refuse states that do not fit, before anything is loaded.

        Raises:
            StateError: Naming what differs.
        """
        for item in self.find():
            state = _state_of(item, states)
            if state is not None:
                check_fits(item.handler.ema_model, state["model"], f"{where}: averaged weights")

    def load(self, states: Iterable[Mapping[str, Any]], named: Iterable[Any], where: str) -> None:
        """Load the weights of handlers that there are; of others when :meth:`started`.

        Args:
            states: From :meth:`states`.
            named: What the user has loaded by name.
            where: The file, for messages.
        """
        self._loaded, self._where = list(states), where
        self._done = {
            id(item.handler) for item in self.find()
            if any(item.handler.ema_model is other for other in named)
        }  # fmt: skip
        self._load_weights()

    def _load_weights(self) -> None:
        for item in self.find():
            handler, state = item.handler, _state_of(item, self._loaded or ())
            if id(handler) in self._done:
                continue
            self._done.add(id(handler))
            if state is not None:
                load_whole(handler.ema_model, state["model"])
                continue
            logger.warning(
                "%s has no averaged weights of the EMAHandler %s: the average begins with the "
                "weights of its model", self._where, item.name or f"of the hook {item.hooks[0]!r}",
            )  # fmt: skip
            with torch.no_grad():
                for own, average in _pairs(unwrap(handler.model), unwrap(handler.ema_model)):
                    average.copy_(own)

    def started(self) -> None:
        """Bring everything back, once, when every handler is attached."""
        if self._loaded is None:
            return
        self._load_weights()
        for item in self.find():
            state = _state_of(item, self._loaded)
            if state is None or item.name is None:
                continue
            if state["momentum"] is not None:
                setattr(self._trainer.state, item.name, state["momentum"])
            scheduler = _scheduler(item.handler)
            if scheduler is not None and state["scheduled"] is not None:
                scheduler.event_index = state["scheduled"]
        self._loaded = None


def _scheduler(handler: EMAHandler) -> Any:
    """Return what steps the momentum while it warms up, if it is to and is attached."""
    return getattr(handler, "momentum_scheduler", None)


def _state_of(item: Averaged, states: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    by_hook = (state for state in states if set(item.hooks) & set(state["hooks"]))
    by_name = (state for state in states if item.name is not None and item.name == state["name"])
    return next(by_hook, None) or next(by_name, None)
