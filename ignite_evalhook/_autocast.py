"""Keep the copies of weights that autocast makes: for an evaluation, and apart from training.

Autocast caches what it casts of a weight, in one place for the whole process, and throws it away
at the end of the outermost region.  A region for each batch would cast each weight for each batch.

- :class:`MixedStep` has a region for each batch, so that metrics, handlers and loaders stay outside
  autocast, and lets the copies last from the first batch to the last.
- :func:`hide_casts` is for an evaluation inside a region of the user's own: the copies there may be
  older than the weights, and training goes on with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine
from torch import nn

__all__: list[str] = []

Step = Callable[[Engine, Any], Any]

_PLAIN = frozenset({torch.Tensor, nn.Parameter})


class MixedStep:
    """A step of an engine under autocast.

    Args:
        step: ``step(engine, batch) -> output``.
        model: Whose weights are cast.
        dtype: The type that autocast casts to.
        device: Where the model computes; ``None``: where its first parameter is.
    """

    def __init__(
        self,
        step: Step,
        model: nn.Module,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        self._step = step
        self._model = model
        self._dtype = dtype
        self._device = device
        self._keeps = False
        self._weights: Sequence[torch.Tensor] = ()
        self._seen: list[tuple[int, int]] = []

    def __call__(self, engine: Engine, batch: Any) -> Any:
        """Run the step on one batch."""
        device = device_of(self._model) if self._device is None else torch.device(self._device)
        if not self._keeps:
            with torch.autocast(device.type, self._dtype):
                return self._step(engine, batch)
        self._drop_old_casts()
        # One level more, so that this region is not the outermost when it ends.  In between there
        # is none: what a handler or a metric does under autocast drops its copies as ever.
        torch.autocast_increment_nesting()
        try:
            with torch.autocast(device.type, self._dtype):
                return self._step(engine, batch)
        finally:
            torch.autocast_decrement_nesting()

    @contextmanager
    def casts_kept(self) -> Iterator[None]:
        """Let what is cast for one batch serve the next ones, inside the ``with`` block.

        A weight that was changed between two batches is cast again, unless it was written
        through ``.data``, of which a tensor keeps no count.  Inside another region of autocast,
        and where weights are not plain tensors, nothing is kept.
        """
        weights = [weight for weight in self._model.parameters() if weight.requires_grad]
        if inside_autocast() or not all(map(_is_countable, weights)):
            yield
            return
        torch.clear_autocast_cache()
        self._weights, self._seen = weights, _marks(weights)
        self._keeps = True
        try:
            yield
        finally:
            self._keeps = False
            self._weights, self._seen = (), []
            torch.clear_autocast_cache()

    def _drop_old_casts(self) -> None:
        marks = _marks(self._weights)
        if marks != self._seen:
            self._seen = marks
            torch.clear_autocast_cache()


def _is_countable(weight: torch.Tensor) -> bool:
    plain = type(weight) in _PLAIN and weight.layout is torch.strided
    return plain and not weight.is_inference()


def _marks(weights: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """Return what changes when weights do: how often each was written, and where it is."""
    return [(weight._version, weight.data_ptr()) for weight in weights]


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter; the CPU if it has none."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def inside_autocast() -> bool:
    """Return whether this thread is inside a region of autocast, also one that is switched off."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting() > 0


def remember_cache_mode() -> Callable[[], object]:
    """Return a function that puts back whether autocast caches what it casts."""
    return partial(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())


def hide_casts() -> None:
    """Inside a region of autocast: use no copies of weights made there, and add none."""
    if inside_autocast():
        torch.set_autocast_cache_enabled(False)
