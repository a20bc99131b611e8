"""Make whatever happens inside a ``with`` block invisible to training.

:func:`quiet` remembers how training stands (each module's own training flag, its attributes and
their contents, the values of parameters and buffers, every random generator) and puts it back bit
for bit.  Inside a region of autocast it keeps away from what is cached there.  Gradients and the
grad mode are not its business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from .eval_mode import EvalMode
from .mixed_precision import hide_casts, remember_cache_mode
from .random import remember_random, run_all
from .values import remember_values, writable

__all__: list[str] = []


@contextmanager
def quiet(
    modules: Sequence[nn.Module], *data: object, eval_mode: bool = True
) -> Iterator[EvalMode]:
    """Run the body so that training goes on as if it had never run.

    Args:
        modules: The models.  They and all their submodules are put back.
        data: Loaders and datasets used in the body.  A generator that they share with training
            (the loader's, a sampler's, a dataset's own) does not move.
        eval_mode: Put the models into eval mode for the body, which gets what may end that
            earlier.

    Raises:
        Exception: What the body raised, also if putting back failed too (that error is its
            ``__context__``); else what putting back raised, after all of it was tried.
    """
    mode = EvalMode(modules)
    attributes = mode.attributes
    steps = [
        mode.leave,
        remember_values(
            [*attributes.tensors, *writable(attributes.parameters), *_renormed(attributes.modules)]
        ),
        remember_random(attributes.modules, *data),
        remember_cache_mode(),
    ]
    try:
        hide_casts()
        if eval_mode:
            mode.enter()
        yield mode
    except BaseException as error:  # noqa: BLE001  # raised again, whatever happens in between
        try:
            run_all(steps)
        finally:
            raise error
    run_all(steps)


def _renormed(modules: Sequence[nn.Module]) -> list[torch.Tensor]:
    """Return the weights that torch's own embeddings change in forward passes."""
    embeddings = [m for m in modules if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    return [m.weight for m in embeddings if m.max_norm is not None]
