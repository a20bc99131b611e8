"""Run a step under autocast, and keep an evaluation's casts apart from training's.

Autocast caches what it casts of a weight, in one place for the whole process, and throws it away
at the end of the outermost region.  :func:`mixed` has a region for each batch, so that metrics,
handlers and loaders stay outside autocast.  :func:`hide_casts` is for an evaluation inside a region
of the user's own: the copies there may be older than the weights, and training goes on with them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine
from torch import nn

__all__: list[str] = []

Step = Callable[[Engine, Any], Any]


def mixed(
    step: Step, model: nn.Module, dtype: torch.dtype, device: torch.device | str | None = None
) -> Step:
    """Return a step that runs under autocast.

    Args:
        step: ``step(engine, batch) -> output``.
        model: Says where it computes, if ``device`` does not: where its first parameter is.
        dtype: The type that autocast casts to.
        device: Where the model computes.
    """

    def run(engine: Engine, batch: Any) -> Any:
        place = device_of(model) if device is None else torch.device(device)
        with torch.autocast(place.type, dtype):
            return step(engine, batch)

    return run


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
