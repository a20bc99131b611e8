"""Reduce and join what several ranks have.  Pure: values in, values out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import torch

__all__ = ["OPERATIONS", "in_dataset_order", "joined", "reduced"]


def reduced(values: Sequence[Any], op: str) -> Any:
    """Reduce numbers or tensors as exactly as can be.

    Floating-point tensors are reduced in float64 and rounded once, integers exactly, Python's
    floats added with one rounding for all of them.

    Args:
        values: One value a rank, all numbers or tensors of one shape.
        op: One of Ignite's operations, ``"SUM"`` and so on.
    """
    numbers, tensors = OPERATIONS[op]
    if not any(isinstance(value, torch.Tensor) for value in values):
        return numbers(values)
    like = next(value for value in values if isinstance(value, torch.Tensor))
    # A rank that has not counted yet may still have the number or 0-d tensor it started with.
    parts = [torch.as_tensor(value, device=like.device) for value in values]
    shape = max((part.shape for part in parts), key=len)
    if any(part.shape != shape and part.ndim > 0 for part in parts):
        raise RuntimeError(f"shapes {', '.join(str(tuple(part.shape)) for part in parts)}")
    dtype = reduce(torch.promote_types, (v.dtype for v in values if isinstance(v, torch.Tensor)))
    wide = _wide(dtype)
    device = "cpu" if like.device.type == "mps" else like.device  # which has no float64
    result = reduce(tensors, (part.to(device, wide) for part in parts))
    return result.to(like.device, dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else torch.int64


def _sum(values: Sequence[Any]) -> Any:
    """Add numbers: integers exactly, floats with one rounding for all of them."""
    return math.fsum(values) if any(isinstance(v, float) for v in values) else sum(values)


# Each operation of Ignite, on numbers and on tensors.
OPERATIONS: dict[str, tuple[Callable[[Sequence[Any]], Any], Callable[[Any, Any], Any]]] = {
    "SUM": (_sum, torch.add),
    "PRODUCT": (math.prod, torch.mul),
    "MIN": (min, torch.minimum),
    "MAX": (max, torch.maximum),
    "AND": (lambda values: reduce(lambda a, b: a & b, values), torch.bitwise_and),
    "OR": (lambda values: reduce(lambda a, b: a | b, values), torch.bitwise_or),
}


def joined(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the rows of all tensors, which may have different numbers of them."""
    rows = [value.unsqueeze(0) if value.ndim == 0 else value for value in values]
    return torch.cat([row.to(rows[0].device) for row in rows], dim=0)


# -- put lists that grew batch by batch on several ranks into the order of the dataset -------------


def in_dataset_order(
    lists: Sequence[list[Any]],
    marks: Sequence[Sequence[int]],
    numbers: Sequence[Sequence[int]],
) -> list[list[Any]] | None:
    """Deal what the ranks have collected out again, so that rank after rank it is in order.

    Each rank gets the items of as many batches as it had, but of neighbouring ones: the first
    rank those of the first batches of the dataset.  So whoever joins the lists in the order of
    the ranks has them in the order of the dataset, and lists that grew together stay together.

    Args:
        lists: One list a rank.
        marks: How long a rank's list was before its first batch and after each batch.  Items
            from before the first batch stay where they are.
        numbers: The numbers of a rank's batches in the whole dataset.

    Returns:
        One new list a rank, or ``None`` if the lists did not just grow with these batches.
    """
    segments: list[tuple[int, list[Any]]] = []
    for items, ends, batches in zip(lists, marks, numbers, strict=True):
        steady = len(ends) == len(batches) + 1 and ends[-1] == len(items)
        if not steady or any(start > end for start, end in pairwise(ends)):
            return None
        segments.extend(
            (number, items[start:end])
            for number, (start, end) in zip(batches, pairwise(ends), strict=True)
        )
    segments.sort(key=lambda segment: segment[0])
    dealt = []
    remaining = iter(segments)
    for items, ends, batches in zip(lists, marks, numbers, strict=True):
        dealt.append(items[: ends[0]])
        for _ in batches:
            dealt[-1].extend(next(remaining)[1])
    return dealt
