"""Put lists that grew batch by batch on several ranks into the order of the dataset.

Pure: lists and numbers in, lists out.  What is in the lists is never looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

__all__ = ["in_dataset_order"]


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
