"""One pass over the evaluation data: complete, once, and with known samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from helpers.datasets import Numbers, Stream
from helpers.private import Batches, batch_indices, draw_order, plan_batches, with_order
from ignite_evalhook import EvaluationError


class Unsized:
    """A sampler of batches that does not tell how many there are."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[4, 1], [0], [2, 3]])


class Endless(BatchSampler):
    """Repeats itself for ever, as loaders that keep their workers busy do."""

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(3):  # enough to see that nobody stops
            yield from super().__iter__()
        raise AssertionError("asked for more than one pass")


class Doubling(DataLoader[Any]):
    """A loader of the user's own class, which does something to each batch."""

    def __iter__(self) -> Any:
        return (batch * 2 for batch in super().__iter__())


def serve(batches: Batches) -> list[Any]:
    """Take all batches as an engine does, which counts them."""
    served = []
    for batch in batches:
        batches.seen += 1
        served.append(batch.tolist() if isinstance(batch, torch.Tensor) else batch)
    return served


def serve_with_indices(batches: Batches) -> list[tuple[Any, list[int] | None]]:
    return [(batch, batches.next_indices()) for batch in serve(batches)]


# -- which samples a batch holds ------------------------------------------------------------------

LOADERS: list[tuple[str, DataLoader[Any]]] = [
    ("in order", DataLoader(Numbers(), batch_size=3)),
    ("in order, the last batch dropped", DataLoader(Numbers(), batch_size=3, drop_last=True)),
    ("shuffled", DataLoader(Numbers(), batch_size=3, shuffle=True)),
    (
        "shuffled by its own generator",
        DataLoader(Numbers(), batch_size=3, shuffle=True, generator=torch.Generator()),
    ),
    (
        "a subset, shuffled",
        DataLoader(Numbers(), batch_size=2, sampler=SubsetRandomSampler([7, 2, 5])),
    ),
    ("a list as sampler", DataLoader(Numbers(), batch_size=2, sampler=[9, 0, 4])),
    (
        "drawn with replacement",
        DataLoader(Numbers(), batch_size=4, sampler=WeightedRandomSampler([1.0] * 10, 12)),
    ),
    (
        "random batches",
        DataLoader(Numbers(), batch_sampler=BatchSampler(RandomSampler(Numbers()), 4, False)),
    ),
    ("batches of any size", DataLoader(Numbers(), batch_sampler=[[3], [1, 0, 2], [9, 8]])),
    ("batches of unknown number", DataLoader(Numbers(), batch_sampler=Unsized())),  # type: ignore[arg-type]
    ("no batches", DataLoader(Numbers(), batch_size=None)),
    ("no batches, shuffled", DataLoader(Numbers(), batch_size=None, shuffle=True)),
    ("a worker", DataLoader(Numbers(), batch_size=3, num_workers=1)),
    ("a worker, shuffled", DataLoader(Numbers(), batch_size=3, num_workers=1, shuffle=True)),
]  # fmt: skip
IDS = [name for name, _ in LOADERS]


@pytest.mark.parametrize("loader", [loader for _, loader in LOADERS], ids=IDS)
def test_each_batch_comes_with_the_indices_of_its_samples(loader: DataLoader[Any]) -> None:
    batches = plan_batches(loader, order=True)
    served = serve_with_indices(batches)
    assert served
    for batch, indices in served:
        assert (batch if isinstance(batch, list) else [batch]) == indices
    assert batches.next_indices() is None


@pytest.mark.parametrize("loader", [loader for _, loader in LOADERS], ids=IDS)
def test_a_limit_takes_the_first_batches_with_their_indices(loader: DataLoader[Any]) -> None:
    served = serve_with_indices(plan_batches(loader, 2, order=True))
    assert len(served) == 2
    for batch, indices in served:
        assert (batch if isinstance(batch, list) else [batch]) == indices


@pytest.mark.parametrize("loader", [loader for _, loader in LOADERS], ids=IDS)
def test_the_loader_itself_stays_as_it_was(loader: DataLoader[Any]) -> None:
    before = dict(vars(loader))
    serve(plan_batches(loader, order=True))
    assert {name: vars(loader)[name] for name in before} == before


def test_a_loader_that_keeps_the_order_is_used_as_it_is() -> None:
    loader = DataLoader(Numbers(5), batch_size=2)
    assert list(batch_indices(loader) or ()) == [[0, 1], [2, 3], [4]]
    assert plan_batches(loader, order=True)._source is loader


def test_without_order_any_loader_is_used_as_it_is() -> None:
    loader = DataLoader(Numbers(5), batch_size=2, shuffle=True)
    assert plan_batches(loader)._source is loader


def test_workers_that_may_overtake_each_other_are_made_to_keep_the_order() -> None:
    loader = DataLoader(Numbers(5), batch_size=2)
    loader.in_order = False
    assert batch_indices(loader) is None
    served = plan_batches(loader, order=True)
    assert served._source.in_order is True  # type: ignore[attr-defined]
    assert serve_with_indices(served) == [([0, 1], [0, 1]), ([2, 3], [2, 3]), ([4], [4])]


def test_what_a_loader_of_the_users_own_class_does_to_a_batch_stays() -> None:
    loader = Doubling(Numbers(6), batch_size=2, shuffle=True)
    for batch, indices in serve_with_indices(plan_batches(loader, order=True)):
        assert indices is not None
        assert batch == [2 * index for index in indices]


def test_settings_of_the_loader_stay() -> None:
    def collate(samples: list[int]) -> list[int]:
        return [sample + 100 for sample in samples]

    loader = DataLoader(Numbers(3), shuffle=True, collate_fn=collate, pin_memory=False, timeout=0)
    served = with_order(loader, [[2], [0, 1]])
    assert list(served) == [[102], [100, 101]]
    assert len(served) == 2


def test_a_sampler_that_repeats_itself_for_ever_is_asked_for_one_pass() -> None:
    sampler = Endless(RandomSampler(Numbers(5)), 2, False)
    loader = DataLoader(Numbers(5), batch_sampler=sampler)
    order = draw_order(loader)
    assert sorted(itertools.chain(*order)) == [0, 1, 2, 3, 4]


@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.booleans())
def test_every_sample_is_served_once_and_known(
    size: int, batch_size: int, shuffle: bool, drop_last: bool
) -> None:
    assume(size >= batch_size or not drop_last)
    loader = DataLoader(Numbers(size), batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)
    served = serve_with_indices(plan_batches(loader, order=True))
    assert all(batch == indices for batch, indices in served)
    seen = sorted(itertools.chain(*(batch for batch, _ in served)))
    assert len(set(seen)) == len(seen) == (size // batch_size * batch_size if drop_last else size)


@pytest.mark.parametrize(
    "data",
    [[[0, 1], [2]], DataLoader(Stream(), batch_size=2)],
    ids=["list of batches", "stream"],
)
def test_the_samples_of_other_data_are_not_known(data: Any) -> None:
    batches = plan_batches(data, order=True)
    assert [indices for _, indices in serve_with_indices(batches)] == [None] * batches.seen


# -- once, and complete ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "limit", "length"),
    [
        (DataLoader(Numbers(), batch_size=3), None, 4),
        (DataLoader(Numbers(), batch_size=3), 2, 2),
        (DataLoader(Numbers(), batch_size=3), 9, 4),
        (DataLoader(Numbers(0), batch_size=3), None, None),
        (DataLoader(Numbers(), batch_sampler=Unsized()), None, None),  # type: ignore[arg-type]
        (DataLoader(Stream(), batch_size=2), None, None),
        ([1, 2, 3], None, 3),
        ((1, 2, 3), 2, 2),
        ([], None, None),
        (range(3), None, 3),
        (range(0), None, None),
        (torch.zeros(3, 2), 5, 3),
        ((n for n in range(3)), None, None),
        ({1: 2}.keys(), None, 1),
    ],
)
def test_the_length_is_told_where_it_is_known(
    data: Any, limit: int | None, length: int | None
) -> None:
    assert plan_batches(data, limit).length == length


def test_a_second_iterator_goes_on_where_the_first_one_stopped() -> None:
    batches = plan_batches([10, 20, 30])
    assert next(iter(batches)) == 10
    assert serve(batches) == [20, 30]
    assert serve(batches) == []


def test_it_is_exhausted_when_each_batch_was_taken() -> None:
    batches = plan_batches([1, 2, 3])
    iterator = iter(batches)
    for left in (2, 1, 0):
        next(iterator)
        batches.seen += 1
        assert batches.exhausted is (left == 0)


def test_data_of_unknown_length_is_exhausted_only_at_its_end() -> None:
    batches = plan_batches(iter(range(2)))
    iterator = iter(batches)
    for _ in range(2):
        next(iterator)
        batches.seen += 1
    assert not batches.exhausted
    assert next(iterator, "end") == "end"
    assert batches.exhausted


def test_a_limit_asks_for_no_batch_beyond_it() -> None:
    asked: list[int] = []

    class Data:
        def __iter__(self) -> Iterator[int]:
            for number in range(9):
                asked.append(number)
                yield number

    assert serve(plan_batches(Data(), 3)) == [0, 1, 2]
    assert asked == [0, 1, 2]


@pytest.mark.parametrize("data", [[], range(0), DataLoader(Numbers(0))])
@pytest.mark.parametrize("order", [True, False])
def test_empty_data_is_an_error_in_words(data: Any, order: bool) -> None:
    with pytest.raises(EvaluationError, match="the evaluation data is empty: no batch came"):
        serve(plan_batches(data, order=order))


def test_closing_lets_go_of_data_and_iterator() -> None:
    closed: list[bool] = []

    class Data:
        def __iter__(self) -> Iterator[int]:
            try:
                yield from range(5)
            finally:
                closed.append(True)

    batches = plan_batches(Data())
    next(iter(batches))
    batches.close()
    assert closed == [True]
