"""Evaluate, and save, the averaged weights that an ``EMAHandler`` keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from ignite.handlers import EMAHandler
from torch import Tensor, nn

from ._whole_state import unwrap

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
