"""Data that says how long it is, and is no DataLoader, is as long in an evaluation."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from torch import nn

from helpers.ranks import on_ranks
from ignite_evalhook import EvalHook

MODEL = nn.Linear(1, 1)


class Sized:
    """A re-iterable with a length of its own, true or not."""

    def __init__(self, size: int, said: int | None = None) -> None:
        self.size, self.said = size, size if said is None else said

    def __len__(self) -> int:
        return self.said

    def __iter__(self) -> Iterator[int]:
        yield from range(self.size)


class Indexed:
    """Has a length, and no ``__iter__``."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> int:
        if index >= 5:
            raise IndexError(index)
        return index


DATA: dict[str, Callable[[], Any]] = {
    "a list": lambda: [0, 1, 2, 3, 4],
    "a tuple": lambda: (0, 1, 2, 3, 4),
    "a range": lambda: range(5),
    "a deque": lambda: deque(range(5)),
    "a tensor": lambda: torch.zeros(5, 2),
    "a class of the user's": lambda: Sized(5),
    "one with __getitem__ alone": Indexed,
}


def lengths(data: Any, **options: Any) -> tuple[list[Any], int]:
    """Return the epoch lengths that handlers see, and how many batches came."""
    evaluator, found, count = Engine(lambda engine, batch: None), [], [0]
    evaluator.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: count.append(count.pop() + 1)
    )
    evaluator.add_event_handler(
        Events.STARTED, lambda engine: found.append(engine.state.epoch_length)
    )
    EvalHook(data, evaluator, model=MODEL, **options).evaluate(track=False)
    return found, count[0]


@pytest.mark.parametrize("name", DATA)
def test_handlers_and_progress_bars_see_its_length(name: str) -> None:
    assert lengths(DATA[name]()) == ([5], 5)
    assert lengths(DATA[name](), limit_batches=3) == ([3], 3)
    assert lengths(DATA[name](), limit_batches=9) == ([5], 5)
    evaluator, shown = Engine(lambda engine, batch: None), io.StringIO()
    ProgressBar(file=shown, persist=True, ncols=60).attach(evaluator)
    EvalHook(DATA[name](), evaluator, model=MODEL).evaluate(track=False)
    assert "[5/5]" in shown.getvalue()


def test_the_same_data_may_grow_from_one_evaluation_to_the_next() -> None:
    data = [1, 2]
    evaluator, found = Engine(lambda engine, batch: None), []
    evaluator.add_event_handler(
        Events.STARTED, lambda engine: found.append(engine.state.epoch_length)
    )
    hook = EvalHook(data, evaluator, model=MODEL)
    for _ in range(2):
        hook.evaluate()
        data.append(3)
    assert found == [2, 3]


def test_a_length_that_is_too_short_is_told_and_with_a_limit_it_is_meant() -> None:
    with pytest.warns(RuntimeWarning, match=r"more batches than the 3 of its len\(\).*limit_batch"):
        assert lengths(Sized(5, said=3)) == ([3], 3)
    assert lengths(Sized(5, said=3), limit_batches=3) == ([3], 3)
    assert lengths(Sized(5, said=3), limit_batches=2) == ([2], 2)


def test_a_length_that_is_too_long_loses_no_batch() -> None:
    assert lengths(Sized(3, said=5)) == ([5], 3)


def share(rank: int) -> list[Any]:
    return [
        lengths(DATA[name](), limit_batches=limit) for name in DATA for limit in (None, 2, 5, 9)
    ]


def test_each_of_several_ranks_sees_the_length_of_its_share() -> None:
    for rank, found in enumerate(on_ranks(3, share)):
        for one in range(0, len(found), 4):
            for length, of_rank in zip((5, 2, 5, 5), found[one : one + 4], strict=True):
                mine = len(range(rank, length, 3))
                assert of_rank == ([mine or None], mine)
