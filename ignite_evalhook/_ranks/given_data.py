"""Say in words what data this rank was given, so that ranks can compare.

Of the data a little is looked at, and nothing is left changed.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Collection, Iterator, Sized
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from .._undisturbed.random import remember_random
from .compare import fingerprint, held_indices, some
from .order import check_unprepared, origin_of
from .share import Dealt, is_stream, whole_of

__all__: list[str] = []

Words = Iterator[tuple[str, str]]
_ITEMS = 64  # of what a dataset holds for each sample that are looked at
_READS = 3  # of one sample, to see that it is not random


def data_of(data: Any, *, read: bool) -> dict[str, str]:
    """Return what tells data apart of which ranks hold different parts, in words by aspect.

    Args:
        data: What is evaluated.
        read: Whether a sample may be read, if nothing lies in memory.

    Raises:
        ValueError: If a sampler deals out to ranks in a way that cannot be undone.
    """
    if isinstance(data, Dealt):
        data = data.source
    check_unprepared(data, shard=True)
    if is_stream(data) or not isinstance(data, DataLoader):
        return dict(_batches(data))
    origin = origin_of(whole_of(data))
    found = {
        "kind": f"a {type(data).__name__} of a {type(data.dataset).__name__} in the order of a "
        f"{type(origin).__name__}",
        "batch": f"batches of {data.batch_size} samples, drop_last={data.drop_last}",
        **dict(_samples(data.dataset)),
    }
    held: Any = getattr(origin, "indices", None)
    if isinstance(held, Collection):
        found["sampler"] = f"a sampler of {_listed(held)}, {held_indices(held):x}"
    # Workers may have to be the first to open files; and a sampler may leave samples out.
    in_process = data.num_workers == 0 and type(origin) in (SequentialSampler, RandomSampler)
    if read and in_process and not any(key.startswith("content") for key in found):
        found.update(_first_sample(data))
    return found


def _batches(data: Any) -> Words:
    yield "kind", f"a {type(data).__name__} of batches"
    if isinstance(data, (list, tuple)):
        yield "length", f"{len(data)} batches"
        if len(data) > 0:
            ends = fingerprint([data[0], data[-1]])
            yield "content", f"batches with the fingerprint {ends:x}"


def _samples(dataset: Any, at: str = "") -> Words:
    """Yield what lies in memory: indices, tensors, samples, the lists of files of a dataset."""
    count = len(dataset) if isinstance(dataset, Sized) else None
    yield f"length{at}", f"a dataset of {count} samples"
    if isinstance(dataset, Subset):
        # In this very order, since ranks tell each other the places in it.
        indices = some(list(dataset.indices))
        yield f"indices{at}", f"a Subset of {_listed(dataset.indices)}, {fingerprint(indices):x}"
        yield from _samples(dataset.dataset, f"{at} inside")
    elif isinstance(dataset, ConcatDataset):
        for number, part in enumerate(dataset.datasets):
            yield from _samples(part, f"{at} part {number}")
    elif isinstance(dataset, (list, tuple)):
        seen = _seen(dataset, count)
        if seen is not None:
            yield f"content{at}", f"samples with the fingerprint {seen:x}"
    else:
        held = getattr(dataset, "__dict__", {})
        if isinstance(dataset, TensorDataset):
            held = {f"tensors[{number}]": each for number, each in enumerate(dataset.tensors)}
        for name, value in held.items():
            seen = _seen(value, count)
            if seen is not None:
                words = f"a dataset whose {name!r} has the fingerprint {seen:x}"
                yield f"content {name}{at}", words


def _seen(value: Any, count: int | None) -> int | None:
    """Return the fingerprint of what a dataset holds for each sample; ``None`` for all else."""
    numpy = sys.modules.get("numpy")
    kinds: Any = (list, tuple, torch.Tensor, *(() if numpy is None else (numpy.ndarray,)))
    if not count or not isinstance(value, kinds):
        return None
    if getattr(value, "ndim", 1) == 0 or len(value) != count:
        return None
    items = some(value, _ITEMS)
    is_filled = isinstance(value, torch.Tensor) or all(item is not None for item in items)
    return fingerprint(items) if is_filled else None  # what is not may be a cache


def _listed(indices: Any) -> str:
    first = ", ".join(str(index) for index in islice(iter(indices), 3))
    return f"the {len(indices)} indices {first}, …"


def _first_sample(data: DataLoader[Any]) -> Words:
    """Yield what the first sample is, if it is the same each time that it is read."""
    if not isinstance(data.dataset, Sized) or len(data.dataset) == 0:
        return
    put_back = remember_random((), data)
    try:
        # So that ranks see the same where a sample is random; a GPU is not for samples.
        torch.default_generator.manual_seed(0)
        random.seed(0)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(0)
        seen = {fingerprint(data.dataset[0]) for _ in range(_READS)}
    finally:
        put_back()
    if len(seen) == 1:
        yield "content", f"a first sample with the fingerprint {seen.pop():x}"
