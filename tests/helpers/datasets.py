"""Datasets that show in their samples which ones they are."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Dataset, IterableDataset


class Numbers(Dataset[int]):
    """The sample at index i is i itself, so that a batch shows what it holds."""

    def __init__(self, size: int = 10) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


class Stream(IterableDataset[int]):
    """The numbers from 0 to 4, without a length."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(5))
