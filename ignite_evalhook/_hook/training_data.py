"""Tell training data apart, so that a restart can say that they are not what they were."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Subset, TensorDataset

from .._ranks.compare import fingerprint, held_indices

__all__: list[str] = []


def batches_of(data: Any) -> int | None:
    """Return how many batches training data have; ``None`` if they do not tell."""
    try:
        return len(data)
    except TypeError:  # no length, or one of a stream that has none
        return None


def told_apart(data: Any) -> int | None:
    """Return a number that other training data would not have; ``None`` if nothing cheap tells.

    Looked at are the indices of subsets and samplers, tensors of a ``TensorDataset``, and the ends
    of a list of batches.  No sample is made.
    """
    found: list[int] = []
    dataset, sampler = getattr(data, "dataset", None), getattr(data, "sampler", None)
    holders = [sampler]
    while isinstance(dataset, Subset):
        holders.append(dataset)
        dataset = dataset.dataset
    for holder in holders:
        indices = getattr(holder, "indices", None)
        if indices is not None:
            found.append(held_indices(indices.tolist() if hasattr(indices, "tolist") else indices))
    if isinstance(dataset, TensorDataset):
        found.append(fingerprint(dataset.tensors))
    elif isinstance(data, (list, tuple)) and data:
        found.append(fingerprint([data[0], data[-1], len(data)]))
    return hash(tuple(found)) if found else None
