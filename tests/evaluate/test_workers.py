"""Data workers: those that persist serve every evaluation, and others are worth a word."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from helpers.private import apart
from helpers.ranks import on_ranks
from ignite_evalhook import EvalHook, create_evaluator


class Pids(Dataset[Tensor]):
    """The sample at index i is i and the process that loads it."""

    def __init__(self, size: int = 12) -> None:
        self.size = size
        self.loaded = torch.zeros(size, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        self.loaded[index] += 1
        return torch.tensor([index, os.getpid()])


class PidStream(IterableDataset[Tensor]):
    """Twelve samples from two workers."""

    def __iter__(self) -> Iterator[Tensor]:
        info = get_worker_info()
        assert info is not None
        yield from (torch.tensor([i, os.getpid()]) for i in range(info.id, 12, 2))


def loader_of(dataset: Any = None, **options: Any) -> DataLoader[Any]:
    """Return a loader with two workers that persist."""
    settings: dict[str, Any] = {"num_workers": 2, "persistent_workers": True,
                                "multiprocessing_context": "fork"}  # fmt: skip
    return DataLoader(Pids() if dataset is None else dataset, 2, **(settings | options))


def end_workers(*loaders: DataLoader[Any]) -> None:
    """End workers now: the garbage collector takes 5 s for each."""
    for loader in loaders:
        for each in (loader, apart(loader)):
            each._iterator = None


def hook_on(loader: Any, seen: list[list[int]], **options: Any) -> EvalHook:
    """Return a hook that notes what each evaluation saw: indices and processes, in turn."""
    evaluator = create_evaluator(nn.Linear(1, 1), step=lambda engine, batch: batch)

    @evaluator.on(Events.STARTED)
    def begin(engine: Engine) -> None:
        seen.append([])

    @evaluator.on(Events.ITERATION_COMPLETED)
    def note(engine: Engine) -> None:
        seen[-1].extend(engine.state.output.flatten().tolist())

    return EvalHook(loader, evaluator, **options)


def indices(seen: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(one[::2]) for one in seen]


def processes(seen: Sequence[Sequence[int]]) -> set[int]:
    return {pid for one in seen for pid in one[1::2]}


def predictions(results: list[Any]) -> dict[str, float]:
    return {"first": float(results[0][0])}


WAYS: dict[str, dict[str, Any]] = {
    "in order": {},
    "shuffled": {"shuffle": True},
    "predictions": {"compute_metrics": predictions},
    "predictions, shuffled": {"compute_metrics": predictions, "shuffle": True},
    "limited": {"limit_batches": 4, "shuffle": True},
    "predictions, limited": {"limit_batches": 4, "shuffle": True, "compute_metrics": predictions},
    "not shared": {"shard": False},
    "may overtake": {"in_order": False, "compute_metrics": predictions},
}


def trained(options: dict[str, Any], loader: DataLoader[Any]) -> list[list[int]]:
    """Train for three epochs, with preflight; return what the evaluations saw."""
    seen: list[list[int]] = []
    trainer = Engine(lambda engine, batch: None)
    hook_on(loader, seen, **options).attach(trainer)
    trainer.run([0], max_epochs=3)
    return seen


def split(way: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of a way: the loader's and the hook's."""
    options = WAYS[way]
    own = {"shuffle", "in_order"}
    return (
        {name: value for name, value in options.items() if name in own},
        {name: value for name, value in options.items() if name not in own},
    )


# -- workers that persist -------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_same_workers_serve_all_evaluations(way: str) -> None:
    for_loader, for_hook = split(way)
    loader = loader_of(**for_loader)
    seen = trained(for_hook, loader)
    count = 8 if "limit_batches" in for_hook else 12
    assert [len(set(one)) for one in indices(seen)] == [count] * 3
    assert len(processes(seen)) == 2
    assert loader._iterator is None  # training's own are not touched
    end_workers(loader)


def test_the_same_workers_serve_all_evaluations_of_a_stream() -> None:
    loader = loader_of(PidStream())
    seen = trained({}, loader)
    assert [sorted(one) for one in indices(seen)] == [list(range(12))] * 3
    assert len(processes(seen)) == 2
    end_workers(loader)


def test_hooks_that_go_different_ways_share_the_workers_of_their_loader() -> None:
    loader, seen = loader_of(shuffle=True), []
    for options in ({}, {"compute_metrics": predictions}, {"limit_batches": 3}):
        hook_on(loader, seen, **options).evaluate()
    assert [len(one) for one in indices(seen)] == [12, 12, 6]
    assert len(processes(seen)) == 2
    end_workers(loader)


def run_all_ways(rank: int) -> dict[str, Any]:
    found = {}
    for way in WAYS:
        for_loader, for_hook = split(way)
        loader = loader_of(**for_loader)
        seen = trained(for_hook, loader)
        found[way] = (indices(seen), len(processes(seen)), len(multiprocessing.active_children()))
        end_workers(loader)
    return found


def test_the_same_workers_serve_all_evaluations_of_a_rank() -> None:
    ranks = on_ranks(2, run_all_ways)
    for way in WAYS:
        _, for_hook = split(way)
        for found in ranks:
            seen, pids, running = found[way]
            assert (len(seen), pids, running) == (3, 2, 2), way  # preflight has started no others
        if for_hook.get("shard") is False:
            continue
        count = 8 if "limit_batches" in for_hook else 12
        for first, second in zip(ranks[0][way][0], ranks[1][way][0], strict=True):
            assert len(first) + len(second) == count
            assert len({*first, *second}) == count


@pytest.mark.parametrize("options", [{}, {"limit_batches": 3}, {"compute_metrics": predictions}])
def test_workers_that_persist_change_nothing_about_what_is_evaluated(
    options: dict[str, Any],
) -> None:
    orders = []
    for persistent in (True, False):
        torch.manual_seed(3)
        loader = loader_of(shuffle=True, persistent_workers=persistent, num_workers=1)
        seen: list[list[int]] = []
        hook = hook_on(loader, seen, **options)
        for _ in range(3):
            hook.evaluate()
            torch.rand(1)  # as training would
        orders.append(indices(seen))
        end_workers(loader)
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders[0]}) == 3


def test_workers_that_persist_load_nothing_in_vain() -> None:
    dataset = Pids()
    loader = loader_of(dataset)
    seen: list[list[int]] = []
    hook = hook_on(loader, seen, limit_batches=2)
    hook.evaluate()
    hook.evaluate()
    assert dataset.loaded.tolist() == [2, 2, 2, 2] + [0] * 8
    end_workers(loader)


def test_workers_that_may_overtake_each_other_are_not_used_where_order_matters() -> None:
    loader = loader_of(num_workers=1, in_order=False)
    twin = apart(loader)
    iter(twin)
    assert (twin.in_order, apart(loader)._iterator) == (False, twin._iterator)
    ordered = apart(loader, [[0], [1]])
    assert (ordered.in_order, ordered._iterator) == (True, None)
    iter(ordered)
    again = apart(loader)  # where it does not, those that keep it do as well
    assert (again.in_order, again._iterator) == (True, ordered._iterator)
    assert loader.in_order is False
    end_workers(twin, loader)


def test_a_class_of_the_users_own_is_not_told_of_a_limit() -> None:
    class Pairs(DataLoader[Any]):
        """Two batches of the sampler's make one."""

        def __iter__(self) -> Any:
            batches = super().__iter__()
            return (torch.cat(pair) for pair in zip(batches, batches, strict=True))

    loader = Pairs(Pids(), 2, num_workers=1, persistent_workers=True)
    seen: list[list[int]] = []
    hook_on(loader, seen, limit_batches=2).evaluate()
    assert indices(seen) == [list(range(8))]
    end_workers(loader)


def test_an_evaluation_inside_an_evaluation_of_the_same_data_disturbs_nothing() -> None:
    loader = loader_of(num_workers=1)
    inner: list[list[int]] = []
    outer: list[list[int]] = []
    other = hook_on(loader, inner, limit_batches=2)
    hook = hook_on(loader, outer)
    hook.evaluator.add_event_handler(
        Events.ITERATION_COMPLETED(once=3), lambda engine: other.evaluate(track=False)
    )
    hook.evaluate()
    hook.evaluate()
    assert indices(outer) == [list(range(12))] * 2
    assert indices(inner) == [list(range(4))] * 2
    assert len(processes(outer)) == 1
    assert processes(outer).isdisjoint(processes(inner))
    end_workers(loader)


def test_workers_are_free_again_after_an_evaluation_that_raised() -> None:
    loader = loader_of(num_workers=1)
    seen: list[list[int]] = []
    hook = hook_on(loader, seen)

    def fail(engine: Engine) -> None:
        raise RuntimeError("broken")

    with (
        hook.evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=2), fail),
        pytest.raises(RuntimeError, match="broken"),
    ):
        hook.evaluate()
    hook.evaluate()
    assert indices(seen) == [list(range(4)), list(range(12))]
    assert len(processes(seen)) == 1
    end_workers(loader)


def test_training_in_the_middle_of_the_same_loader_keeps_its_place() -> None:
    loader = loader_of(num_workers=1, shuffle=True)
    training = iter(loader)
    before = [int(i) for i in next(training)[:, 0]]
    seen: list[list[int]] = []
    hook_on(loader, seen, compute_metrics=predictions).evaluate()
    after = [int(i) for batch in training for i in batch[:, 0]]
    assert sorted([*before, *after]) == list(range(12))
    assert len(indices(seen)[0]) == 12
    end_workers(loader)


# -- the hint -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"persistent_workers": False}, 1),
        ({"persistent_workers": True}, 0),
        ({"num_workers": 0, "persistent_workers": False, "multiprocessing_context": None}, 0),
    ],
)
def test_a_hook_says_once_that_its_workers_are_started_anew(
    options: dict[str, Any], said: int, caplog: pytest.LogCaptureFixture
) -> None:
    loader = loader_of(**{"num_workers": 1, **options})
    hook = hook_on(loader, [], name="set")
    trainer = Engine(lambda engine, batch: None)
    hook.attach(trainer)
    with caplog.at_level(logging.INFO, "ignite_evalhook"):
        trainer.run([0], max_epochs=2)
    lines = [r.getMessage() for r in caplog.records if "persistent_workers" in r.getMessage()]
    assert lines == ["set: each evaluation starts 1 data workers and ends them; "
                     "DataLoader(..., persistent_workers=True) keeps them"] * said  # fmt: skip
    end_workers(loader)
