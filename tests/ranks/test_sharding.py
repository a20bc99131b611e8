"""Dealing batches out to ranks: together they have each batch of one process, once."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import accelerate.data_loader
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ignite.distributed import auto
from ignite.distributed.auto import DistributedProxySampler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from helpers.datasets import Numbers, Stream
from helpers.private import (
    Batches,
    Chunks,
    Turn,
    _loading,
    _sharding,
    draw,
    plan_batches,
    shard_batches,
)
from ignite_evalhook import EvaluationError

SIZES, WORLDS, BATCH_SIZES = range(21), range(1, 6), range(1, 5)


class Backwards(BatchSampler):
    """Batches of a user's own making."""

    def __iter__(self) -> Iterator[list[int]]:
        return reversed(list(super().__iter__()))


class EvenFirst(DistributedSampler[int]):
    """A distributed sampler of a user's own class, with an order of its own."""

    def __iter__(self) -> Iterator[int]:
        indices = sorted(super().__iter__(), key=lambda i: (i % 2, i))
        return iter(indices)


class Again:
    """A re-iterable of batches that is neither a loader nor a list."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        yield from self.batches


class Rank0:
    """Ranks of one process: runs what rank 0 draws, and repeats it to the others afterwards."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def turn(self, rank: int, world_size: int) -> Turn:
        told = iter(self.told)  # rank 0 goes first; this begins to be read when it has spoken

        def agree(said: Any, decide: Callable[[list[Any]], Any]) -> Any:
            if rank == 0:
                self.told.append(decide([said]))
                return copy.deepcopy(self.told[-1])
            return copy.deepcopy(next(told))

        return Turn(rank, world_size, agree)


def plain(batch: Any) -> Any:
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


def serve(batches: Batches) -> list[Any]:
    """Take all batches as an engine does, which counts them."""
    served = []
    for batch in batches:
        batches.seen += 1
        served.append(plain(batch))
    return served


def interleave(parts: list[list[Any]]) -> list[Any]:
    """Put the ranks' batches back into the order of one process, if each rank has its turns."""
    total = sum(map(len, parts))
    for rank, part in enumerate(parts):
        assert len(part) == len(range(rank, total, len(parts)))
    return [parts[number % len(parts)][number // len(parts)] for number in range(total)]


def shard_of(monkeypatch: pytest.MonkeyPatch, loader: Any, turn: Turn) -> Any:
    """Call shard_batches as it is called in a distributed run."""
    with monkeypatch.context() as patch:
        patch.setattr(_sharding.dist, "is_initialized", lambda: True)
        patch.setattr(_sharding.dist, "get_rank", lambda: turn.rank)
        patch.setattr(_sharding.dist, "get_world_size", lambda: turn.world_size)
        patch.setattr(_sharding, "_agree_in_team", turn.agree)
        return shard_batches(loader)


# -- The ranks together have what one process has -------------------------------------------------

# (size, batch size, drop_last, rank, world) -> the loader that this rank was given.
Make = Callable[[int, int, bool, int, int], Any]


def sequential(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    return DataLoader(Numbers(size), batch_size, drop_last=drop)


def distributed(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    sampler = DistributedSampler(Numbers(size), world, rank, shuffle=True)
    return DataLoader(Numbers(size), batch_size, drop_last=drop, sampler=sampler)


def distributed_class(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    sampler = EvenFirst(Numbers(size), world, rank, shuffle=False)
    return DataLoader(Numbers(size), batch_size, drop_last=drop, sampler=sampler)


def proxy(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    sampler = DistributedProxySampler(SequentialSampler(Numbers(size)), world, rank)
    return DataLoader(Numbers(size), batch_size, drop_last=drop, sampler=sampler)


def shuffled(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    generator = torch.Generator().manual_seed(rank)
    dataset = Numbers(max(size, 1))  # torch shuffles no empty dataset
    return DataLoader(dataset, batch_size, True, drop_last=drop, generator=generator)


def shuffled_proxy(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    inner = RandomSampler(Numbers(max(size, 1)), generator=torch.Generator().manual_seed(rank))
    sampler = DistributedProxySampler(inner, world, rank)
    return DataLoader(Numbers(size), batch_size, drop_last=drop, sampler=sampler)


def batches_of_my_own(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    sampler = Backwards(SequentialSampler(Numbers(size)), batch_size, drop)
    return DataLoader(Numbers(size), batch_sampler=sampler)


def my_own_of_distributed(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    inner = DistributedSampler(Numbers(size), world, rank, shuffle=False)
    return DataLoader(Numbers(size), batch_sampler=Backwards(inner, batch_size, drop))


def weighted(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    generator = torch.Generator().manual_seed(rank)
    sampler = WeightedRandomSampler([1.0] * (size + 1), size + 1, generator=generator)
    return DataLoader(Numbers(size), batch_size, drop_last=drop, sampler=sampler)


def listed(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    return DataLoader(Numbers(size), batch_size, drop_last=drop, sampler=[*range(size)][::-1])


def unbatched(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    return DataLoader(Numbers(size), batch_size=None)


def unbatched_distributed(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    sampler = DistributedSampler(Numbers(size), world, rank)
    return DataLoader(Numbers(size), batch_size=None, sampler=sampler)


def unbatched_shuffled(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    generator = torch.Generator().manual_seed(rank)
    return DataLoader(Numbers(max(size, 1)), batch_size=None, shuffle=True, generator=generator)


def unbatched_of_class() -> Any:
    sampler = EvenFirst(Numbers(5), 2, 0, shuffle=False)
    return DataLoader(Numbers(5), batch_size=None, sampler=sampler)


def list_of_batches(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    return [*range(size)]


def re_iterable(size: int, batch_size: int, drop: bool, rank: int, world: int) -> Any:
    return Again([*range(size)])


# What one process would have been given: the loader of a world of one, in the dataset's order
# where a DistributedSampler, which shuffles even then, is put right.
ALONE: dict[Make, Make] = {
    distributed: sequential,
    unbatched_distributed: unbatched,
    my_own_of_distributed: batches_of_my_own,
}
MAKERS: list[Make] = [
    sequential, distributed, distributed_class, proxy, shuffled, shuffled_proxy,
    batches_of_my_own, my_own_of_distributed, weighted, listed, unbatched, unbatched_distributed,
    unbatched_shuffled, list_of_batches, re_iterable,
]  # fmt: skip
BATCHED = MAKERS[: MAKERS.index(listed) + 1]


def cases(make: Make) -> Iterator[tuple[int, int, bool]]:
    batched = make in BATCHED
    yield from itertools.product(
        SIZES, BATCH_SIZES if batched else [1], (False, True) if batched else [False]
    )


def one_process(make: Make, case: tuple[int, int, bool]) -> list[Any]:
    return [plain(batch) for batch in ALONE.get(make, make)(*case, 0, 1)]


@pytest.mark.parametrize("make", MAKERS)
def test_the_ranks_take_turns_at_the_batches_of_one_process(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in cases(make):
        expected = one_process(make, case)
        for world in WORLDS:
            ranks = Rank0()
            parts = []
            for rank in range(world):
                loader = make(*case, rank, world)
                shard = shard_of(monkeypatch, loader, ranks.turn(rank, world))
                parts.append([plain(batch) for batch in shard])
                if make is not re_iterable:
                    assert len(shard) == len(parts[-1])
            assert interleave(parts) == expected, (case, world)


@pytest.mark.parametrize("make", MAKERS)
def test_an_evaluation_plans_the_same_turns(make: Make) -> None:
    for case in cases(make):
        whole = one_process(make, case)
        if whole:  # where the indices are asked for, the order is drawn at another moment
            whole = serve(plan_batches(ALONE.get(make, make)(*case, 0, 1), order=True))
        for world in WORLDS[1:]:
            limit = 3 if case[0] % 2 else None
            ranks = Rank0()
            plans = [
                plan_batches(
                    make(*case, rank, world), limit, order=True, turn=ranks.turn(rank, world)
                )
                for rank in range(world)
            ]
            parts = [serve(plan) for plan in plans]
            assert len(ranks.told) <= 1
            assert interleave(parts) == whole[:limit], (case, world, limit)
            for rank, (plan, part) in enumerate(zip(plans, parts, strict=True)):
                assert plan.exhausted
                assert plan.total == len(whole[:limit])
                assert plan.numbers() == [*range(rank, plan.total, world)]
                if isinstance(make(*case, rank, world), DataLoader):
                    assert plan.length == len(part)
                    for batch in part:
                        assert plan.next_indices() == (
                            batch if isinstance(batch, list) else [batch]
                        )
                assert plan.next_indices() is None


@given(
    st.sampled_from(MAKERS),
    st.integers(0, 60),
    st.integers(1, 9),
    st.booleans(),
    st.integers(2, 7),
    st.none() | st.integers(1, 30),
)
def test_whatever_the_sizes_nothing_is_lost_repeated_or_out_of_turn(
    make: Make, size: int, batch_size: int, drop: bool, world: int, limit: int | None
) -> None:
    case = (size, batch_size, drop and make in BATCHED)
    ranks = Rank0()
    plans = [
        plan_batches(make(*case, rank, world), limit, turn=ranks.turn(rank, world))
        for rank in range(world)
    ]
    served = [serve(plan) for plan in plans]
    assert interleave(served) == one_process(make, case)[:limit]
    numbers = [number for plan in plans for number in plan.numbers() or ()]
    assert sorted(numbers) == [*range(sum(map(len, served)))]
    assert {plan.total for plan in plans} == {len(numbers)}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("own", [True, False], ids=["own generator", "global generator"])
def test_ranks_draw_the_order_that_one_process_draws_from_the_same_seed(
    own: bool, workers: int
) -> None:
    def loader() -> DataLoader[Any]:
        torch.manual_seed(7)
        generator = torch.Generator().manual_seed(7) if own else None
        return DataLoader(Numbers(), 3, True, num_workers=workers, generator=generator)

    expected = serve(plan_batches(loader()))
    ranks = Rank0()
    assert expected == interleave(
        [serve(plan_batches(loader(), turn=ranks.turn(rank, 2))) for rank in range(2)]
    )


def test_a_loader_of_auto_dataloader_is_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = []
    for rank in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(auto.idist, "get_world_size", lambda: 2)
            patch.setattr(auto.idist, "get_rank", lambda rank=rank: rank)
            patch.setattr(auto.idist, "get_nproc_per_node", lambda: 2)
            loader = auto.auto_dataloader(Numbers(5), batch_size=4)
        assert isinstance(loader.sampler, DistributedSampler)
        shards.append([plain(b) for b in shard_batches(loader, rank=rank, world_size=2)])
    assert shards == [[[0, 1], [4]], [[2, 3]]]  # its batch size was halved by Ignite


def test_a_sampler_of_mmengine_is_put_right() -> None:
    dataset = pytest.importorskip("mmengine.dataset")

    def loader(rank: int) -> DataLoader[Any]:
        sampler = dataset.DefaultSampler(Numbers(5), shuffle=False)
        sampler.rank, sampler.world_size, sampler.num_samples, sampler.total_size = rank, 2, 3, 6
        assert [*sampler] == [[0, 2, 4], [1, 3, 0]][rank]  # as it is in a world of two
        return DataLoader(Numbers(5), 2, sampler=sampler)

    ranks = Rank0()
    parts = [serve(plan_batches(loader(r), turn=ranks.turn(r, 2))) for r in range(2)]
    assert interleave(parts) == [[0, 1], [2, 3], [4]]


def test_what_was_dealt_out_already_is_not_dealt_out_twice() -> None:
    loader = DataLoader(Numbers(5), 1)
    once = shard_batches(loader, rank=0, world_size=2)
    assert [*shard_batches(once, rank=1, world_size=2)] == [1, 3]
    assert serve(plan_batches(once, turn=Rank0().turn(1, 2))) == [[1], [3]]
    assert [*shard_batches(once, rank=0, world_size=1)] == [0, 1, 2, 3, 4]
    some = shard_batches([0, 1, 2], rank=0, world_size=2)
    assert [*shard_batches(some, rank=1, world_size=2)] == [1]
    assert serve(plan_batches(some, turn=Rank0().turn(1, 2))) == [1]


# -- One process, and what is not dealt out -------------------------------------------------------


@pytest.mark.parametrize("make", [sequential, shuffled, batches_of_my_own, list_of_batches])
def test_for_one_process_the_data_stays_as_it_is(make: Make) -> None:
    data = make(5, 2, False, 0, 1)
    assert shard_batches(data) is data
    assert shard_batches(data, rank=0, world_size=1) is data
    planned = plan_batches(data, order=False, turn=Rank0().turn(0, 1))
    # Only a batch sampler of another class is asked how large its batches are.
    assert (planned._source is data) is (make is not batches_of_my_own)


def test_one_process_gets_everything_of_a_sampler_made_for_several() -> None:
    loader = distributed(5, 2, False, 1, 2)
    assert [plain(b) for b in shard_batches(loader)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("data", [DataLoader(Stream(), 2), Stream()], ids=["loader", "dataset"])
def test_each_rank_has_its_own_stream(data: Any) -> None:
    assert shard_batches(data, rank=1, world_size=2) is data
    batches = plan_batches(data, turn=Rank0().turn(1, 2))
    served = serve(batches)
    assert [i for b in served for i in (b if isinstance(b, list) else [b])] == [*range(5)]
    assert batches.numbers() is None
    assert batches.total is None


def test_data_that_is_not_shared_is_taken_as_it_is() -> None:
    loader = distributed(6, 2, False, 1, 2)
    batches = plan_batches(loader, 2, order=True, turn=Rank0().turn(1, 2), shard=False)
    [batch] = serve(batches)
    assert batch == [*loader.sampler][:2] == batches.next_indices()
    assert batches.numbers() is None
    assert batches.total is None
    assert batches.length == 1


@pytest.mark.parametrize("data", [[], Again([]), DataLoader(Numbers(0)), DataLoader(Stream())])
@pytest.mark.parametrize("shard", [True, False])
def test_a_rank_without_a_batch_is_no_error(data: Any, shard: bool) -> None:
    limit = 1 if isinstance(getattr(data, "dataset", None), Stream) else None
    batches = plan_batches(data, limit, turn=Rank0().turn(1, 3), shard=shard)
    serve(batches)
    assert batches.exhausted


def test_one_process_knows_its_total_and_numbers() -> None:
    batches = plan_batches(Again([5, 6]))
    assert batches.total is None
    serve(batches)
    assert batches.total == 2
    assert batches.numbers() == [0, 1]
    assert plan_batches([5, 6, 7], 2).total == 2


# -- The loader stays what it is ------------------------------------------------------------------


class Doubling(DataLoader[Any]):
    """A loader of the user's own class, whose __init__ is not DataLoader's."""

    def __init__(self, size: int) -> None:
        super().__init__(Numbers(size), batch_size=2)
        self.factor = 2

    def __iter__(self) -> Any:
        return (batch * self.factor for batch in super().__iter__())


class Pids(Numbers):
    """The sample at index i is i and the process that loaded it."""

    def __getitem__(self, index: int) -> Any:
        return index, os.getpid()


def collate(samples: list[Any]) -> list[Any]:
    return samples


def start_worker(number: int) -> None:
    pass


def let_go(*loaders: DataLoader[Any]) -> None:
    for loader in loaders:
        loader._iterator = None  # ends workers now: the garbage collector takes 5 s for each


def test_a_loader_keeps_all_its_settings() -> None:
    loader = DataLoader(
        Numbers(9), batch_size=2, num_workers=1, collate_fn=collate, pin_memory=True,
        drop_last=True, timeout=60, worker_init_fn=start_worker, prefetch_factor=3,
        persistent_workers=True, generator=torch.Generator(), multiprocessing_context="fork",
    )  # fmt: skip
    before = dict(vars(loader))
    shard = shard_batches(loader, rank=1, world_size=2)
    assert len(shard) == 2  # of 4: the last batch was dropped
    differing = {name for name in before if vars(shard)[name] is not before[name]}
    assert differing == {"batch_sampler"}
    assert vars(loader) == before


def test_a_loader_keeps_its_class() -> None:
    shard = shard_batches(Doubling(5), rank=0, world_size=2)
    assert isinstance(shard, Doubling)
    assert [plain(batch) for batch in shard] == [[0, 2], [8]]
    assert serve(plan_batches(Doubling(5), turn=Rank0().turn(0, 2))) == [[0, 2], [8]]


def test_samplers_of_the_loader_stay_as_they_were() -> None:
    loader = my_own_of_distributed(5, 2, False, 0, 2)
    sampler, inner = loader.batch_sampler, loader.batch_sampler.sampler
    plan_batches(loader, turn=Rank0().turn(0, 2))
    shard_batches(loader, rank=0, world_size=1)
    assert loader.batch_sampler is sampler
    assert sampler.sampler is inner
    assert (inner.num_replicas, inner.num_samples) == (2, 3)


def test_training_that_goes_through_the_same_loader_keeps_its_workers() -> None:
    loader = DataLoader(Numbers(6), 1, num_workers=1, persistent_workers=True)
    training = iter(loader)
    first = int(next(training))
    shard = shard_batches(loader, rank=1, world_size=2)
    assert [*shard] == [1, 3, 5]
    plan = plan_batches(loader, turn=Rank0().turn(0, 2))
    assert serve(plan) == [[0], [2], [4]]
    assert [first, *map(int, training)] == [0, 1, 2, 3, 4, 5]
    let_go(loader, shard, _loading._KEPT[loader])


def test_workers_persist_from_pass_to_pass() -> None:
    options: dict[str, Any] = {"num_workers": 1, "persistent_workers": True}
    loader = DataLoader(Pids(4), 1, collate_fn=collate, **options)
    shard = shard_batches(loader, rank=1, world_size=2)
    passes = [[item for batch in shard for item in batch] for _ in range(3)]
    let_go(shard)
    assert [[index for index, _ in one] for one in passes] == [[1, 3]] * 3
    pids = {pid for one in passes for _, pid in one}
    assert len(pids) == 1
    assert os.getpid() not in pids
    assert loader._iterator is None


def test_workers_persist_from_evaluation_to_evaluation_while_the_order_changes() -> None:
    loader = DataLoader(
        Pids(6), 2, True, collate_fn=collate, num_workers=1, persistent_workers=True
    )
    ranks, orders, pids = Rank0(), [], set()
    for limit in (None, None, 2, None):
        batches = plan_batches(loader, limit, order=True, turn=ranks.turn(0, 2))
        served = []
        for batch in batches:
            batches.seen += 1
            pids.update(pid for _, pid in batch)
            served.append([index for index, _ in batch])
            assert served[-1] == batches.next_indices()
        orders.append(served)
    let_go(_loading._KEPT[loader])
    assert len(pids) == 1
    assert [len(order) for order in orders] == [2, 2, 1, 2]
    assert len({str(order) for order in orders}) > 1
    assert orders == [told[::2] for told, _ in ranks.told]
    assert loader._iterator is None


def test_workers_that_may_overtake_each_other_keep_the_order_in_an_evaluation() -> None:
    loader = DataLoader(Numbers(5), 2)
    loader.in_order = False
    batches = plan_batches(loader, turn=Rank0().turn(0, 2))
    serve(batches)
    assert _loading.apart(loader, [[0]]).in_order is True
    assert loader.in_order is False


# -- How an order is found out --------------------------------------------------------------------


def test_nobody_goes_through_the_batches_of_the_others() -> None:
    sampler = BatchSampler(SequentialSampler(Numbers(10**12)), 10, False)
    loader = DataLoader(Numbers(10**12), batch_sampler=sampler)
    shard = shard_batches(loader, rank=2, world_size=10**6)
    assert len(shard) == 10**5
    assert plain(next(iter(shard))) == [*range(20, 30)]
    plan = plan_batches(loader, turn=Rank0().turn(2, 10**6), order=True)
    assert plan.total == 10**11
    assert plan.next_indices() == [*range(20, 30)]


def test_a_dataset_may_grow_between_passes() -> None:
    dataset = Numbers(3)
    shard = shard_batches(DataLoader(dataset, 1), rank=1, world_size=2)
    assert [*shard] == [1]
    dataset.size = 6
    assert len(shard) == 3
    assert [*shard] == [1, 3, 5]
    batches = [0]
    dealt = shard_batches(batches, rank=0, world_size=2)
    batches += [1, 2]
    assert [*dealt] == [0, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_order_is_told_once_for_each_pass_and_drawn_anew(
    monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    ranks = Rank0()
    shards = [
        shard_of(monkeypatch, shuffled(20, 1, False, rank, 2), ranks.turn(rank, 2))
        for rank in range(2)
    ]
    for shard in shards:
        shard.num_workers = workers
        shard.prefetch_factor = 2 if workers else None
    passes = [interleave([[plain(b) for b in shard] for shard in shards]) for _ in range(2)]
    assert len(ranks.told) == 2
    assert passes == [told for told, _ in ranks.told]
    assert passes[0] != passes[1]


def test_in_an_evaluation_all_is_told_before_the_first_batch() -> None:
    ranks = Rank0()
    batches = plan_batches(shuffled(4, 1, False, 0, 2), turn=ranks.turn(0, 2))
    assert len(ranks.told) == 1
    serve(batches)
    assert len(ranks.told) == 1


def test_an_epoch_that_is_set_later_reaches_a_distributed_sampler_of_the_users_class() -> None:
    class Shuffled(DistributedSampler[int]):
        pass

    sampler = Shuffled(Numbers(30), 2, 0, shuffle=True)
    shard = shard_batches(DataLoader(Numbers(30), 1, sampler=sampler), rank=0, world_size=1)
    first = [*shard]
    sampler.set_epoch(1)
    assert sorted(first) == [*range(30)] == sorted(shard)
    assert first != [*shard]
    assert (sampler.num_replicas, sampler.rank, sampler.num_samples) == (2, 0, 15)


def test_endless_samplers_are_asked_up_to_the_limit() -> None:
    class Endless:
        def __iter__(self) -> Iterator[list[int]]:
            for number in itertools.count():
                assert number < 5, "asked for more than the limit"
                yield [number]

    def loader() -> DataLoader[Any]:
        return DataLoader(Numbers(9), batch_sampler=Endless())  # type: ignore[arg-type]

    ranks = Rank0()
    parts = [serve(plan_batches(loader(), 5, turn=ranks.turn(rank, 2))) for rank in range(2)]
    assert parts == [[[0], [2], [4]], [[1], [3]]]


def test_endless_samplers_with_a_length_are_asked_for_one_pass() -> None:
    class Endless(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            for number in itertools.count():
                assert number < 3, "asked for more than one pass"
                yield number

        def __len__(self) -> int:
            return 3

    loader = DataLoader(Numbers(9), 1, sampler=Endless())
    assert serve(plan_batches(loader, turn=Rank0().turn(0, 2))) == [[0], [2]]


def test_a_sampler_may_give_other_things_than_numbers() -> None:
    class Named(Dataset[str]):
        def __getitem__(self, key: str) -> str:
            return key.upper()

    class Keys(Sampler[str]):
        def __iter__(self) -> Iterator[str]:
            return iter(["ab", "cd", "ef"])

    class Slices:
        def __iter__(self) -> Iterator[slice]:
            return iter([slice(0, 2), slice(2, 4)])

    class Sliced(Dataset[int]):
        def __getitems__(self, wanted: slice) -> list[int]:
            return [*range(10)][wanted]

    def parts(make: Callable[[], DataLoader[Any]]) -> list[list[Any]]:
        ranks = Rank0()
        return [serve(plan_batches(make(), turn=ranks.turn(rank, 2))) for rank in range(2)]

    assert parts(lambda: DataLoader(Named(), sampler=Keys(), batch_size=None)) == [
        ["AB", "EF"],
        ["CD"],
    ]
    assert parts(lambda: DataLoader(Named(), sampler=Keys())) == [[["AB"], ["EF"]], [["CD"]]]
    assert parts(lambda: DataLoader(Sliced(), batch_sampler=Slices())) == [[[0, 1]], [[2, 3]]]  # type: ignore[arg-type]


def test_a_sampler_that_uses_its_list_again_is_written_down_right() -> None:
    def batches() -> Iterator[list[int]]:
        batch: list[int] = []
        for index in range(3):
            batch[:] = [index]
            yield batch

    assert draw(batches()) == [[0], [1], [2]]
    assert draw(iter([iter([1, 2]), iter([3])])) == [[1, 2], [3]]


@given(st.integers(0, 50), st.integers(1, 9), st.booleans())
def test_chunks_are_what_a_batch_sampler_makes(size: int, batch_size: int, drop: bool) -> None:
    chunks = Chunks(size, batch_size, drop)
    made = [chunks[number] for number in range(len(chunks))]
    assert made == [*BatchSampler(range(size), batch_size, drop)]


def test_a_re_iterable_has_a_length_if_its_source_has() -> None:
    assert len(shard_batches(range(5), rank=1, world_size=2)) == 2  # type: ignore[arg-type]
    unsized = shard_batches(Again([1, 2, 3]), rank=0, world_size=2)
    assert [*unsized] == [*unsized] == [1, 3]
    with pytest.raises(TypeError, match="no len"):
        len(unsized)  # type: ignore[arg-type]


def test_a_loader_whose_sampler_has_no_length_has_none() -> None:
    class Unsized(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(4))

    loader = DataLoader(Numbers(4), sampler=Unsized())
    ranks = Rank0()
    plan = plan_batches(loader, turn=ranks.turn(0, 2))
    assert (plan.length, plan.total) == (2, 4)
    with pytest.raises(TypeError, match="no len"):
        len(_sharding.Shard(loader.batch_sampler, ranks.turn(0, 2)))


# -- Refusals -------------------------------------------------------------------------------------

OUTSIDE = "the order of a {} cannot be dealt out by rank=0 and world_size=2 alone"


@pytest.mark.parametrize(
    ("loader", "name"),
    [
        (shuffled(4, 2, False, 0, 2), "RandomSampler"),
        (shuffled_proxy(4, 2, False, 0, 2), "RandomSampler"),
        (weighted(4, 2, False, 0, 2), "WeightedRandomSampler"),
        (unbatched_shuffled(4, 1, False, 0, 2), "RandomSampler"),
        (distributed_class(4, 2, False, 0, 2), "EvenFirst"),
        (batches_of_my_own(4, 2, False, 0, 2), "Backwards"),
        (unbatched_of_class(), "EvenFirst"),
        (DataLoader(Numbers(4), sampler=SubsetRandomSampler([1, 2])), "SubsetRandomSampler"),
    ],
)
def test_an_order_is_not_drawn_where_nobody_can_be_told(loader: Any, name: str) -> None:
    with pytest.raises(ValueError, match=OUTSIDE.format(name)):
        shard_batches(loader, rank=0, world_size=2)
    assert shard_batches(loader, rank=0, world_size=1) is not None


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Numbers(4), 1, sampler=[3, 1, 0]),
        DataLoader(Numbers(4), batch_sampler=[[3], [1], [0]]),
        DataLoader(Numbers(4), batch_size=None, sampler=(3, 1, 0)),  # type: ignore[arg-type]
    ],
)
def test_a_list_is_dealt_out_by_rank_and_world_size_alone(loader: DataLoader[Any]) -> None:
    assert [int(batch) for batch in shard_batches(loader, rank=0, world_size=2)] == [3, 0]
    assert [int(batch) for batch in shard_batches(loader, rank=1, world_size=2)] == [1]


@pytest.mark.parametrize(
    ("rank", "world_size", "words"),
    [
        (0, None, "must be given together or not at all, got rank=0 and world_size=None"),
        (None, 2, "must be given together or not at all, got rank=None and world_size=2"),
        (0, 0, "world_size must be a positive integer, got 0"),
        (0, 2.0, r"world_size must be a positive integer, got 2\.0"),
        (0, True, "world_size must be a positive integer, got True"),
        (2, 2, r"rank must be an integer from 0 to 1 \(world_size - 1\), got 2"),
        (-1, 2, r"rank must be an integer from 0 to 1 \(world_size - 1\), got -1"),
        (False, 2, r"rank must be an integer from 0 to 1 \(world_size - 1\), got False"),
        ("0", 2, r"rank must be an integer from 0 to 1 \(world_size - 1\), got '0'"),
    ],
)
def test_a_wrong_rank_or_world_size_is_refused(rank: Any, world_size: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shard_batches([1, 2], rank=rank, world_size=world_size)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (iter([1]), "must be re-iterable: a list_iterator is used up by one pass; pass a Data"),
        ((x for x in [1]), "must be re-iterable: a generator is used up by one pass"),
        (5, "must be a DataLoader or a re-iterable of batches, got int"),
        ("text", "must be a DataLoader or a re-iterable of batches, got str"),
        ({"a": 1}, "must be a DataLoader or a re-iterable of batches, got dict"),
        (Numbers(), "must be a DataLoader or a re-iterable of batches, got Numbers"),
    ],
)
def test_what_is_no_re_iterable_of_batches_is_refused(data: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        shard_batches(data)


class Fixed(DistributedSampler[int]):
    """Chooses its indices when it is made, so that nobody can ask it for others."""

    def __init__(self, dataset: Dataset[int], world: int, rank: int) -> None:
        super().__init__(dataset, world, rank, shuffle=False)
        self.chosen = list(super().__iter__())

    def __iter__(self) -> Iterator[int]:
        return iter(self.chosen)


class RankedBatches(BatchSampler):
    num_replicas = 2


class Ranked(Sampler[int]):
    world_size = 2


@pytest.mark.parametrize(
    ("sampler", "batched"),
    [
        (Fixed(Numbers(6), 2, 0), False),
        (Ranked(), False),
        (RankedBatches(range(6), 2, False), True),
    ],
)
@pytest.mark.parametrize("size", [1, 3, None])
def test_a_sampler_that_cannot_be_put_right_is_refused(
    sampler: Any, batched: bool, size: int | None
) -> None:
    if batched:
        loader = DataLoader(Numbers(6), batch_sampler=sampler)
    else:
        loader = DataLoader(Numbers(6), size, sampler=sampler)
    words = rf"the loader's {type(sampler).__name__} deals out to 2 ranks itself.*shard=False"
    with pytest.raises(ValueError, match=words):
        plan_batches(loader, turn=Rank0().turn(0, 2))


@pytest.mark.parametrize("shard", [True, False])
@pytest.mark.parametrize(
    ("data", "options"),
    [
        (Numbers(5), {}),
        (Numbers(5), {"split_batches": True}),
        (Numbers(5), {"dispatch_batches": True}),
        (Stream(), {"dispatch_batches": False}),
        (Numbers(5), {"even_batches": False}),
    ],
)
def test_a_loader_that_accelerate_has_prepared_is_refused(
    data: Any, options: dict[str, Any], shard: bool
) -> None:
    loader = accelerate.data_loader.prepare_data_loader(
        DataLoader(data, 2), torch.device("cpu"), 2, 1, put_on_device=True, **options
    )
    if "even_batches" in options and not shard:
        assert serve(plan_batches(loader, turn=Rank0().turn(1, 2), shard=False)) == [[2, 3]]
        return
    with pytest.raises(ValueError, match=r"give the hook the loader as it was before accelerator"):
        plan_batches(loader, turn=Rank0().turn(1, 2), shard=shard)


class Busy(DataLoader[Any]):
    """Keeps an iterator of its own, which does not hear of another sampler."""

    def __init__(self) -> None:
        super().__init__(Numbers(8), 2)
        self.own = super().__iter__()

    def __iter__(self) -> Any:
        return itertools.islice(self.own, len(self))


class Twice(DataLoader[Any]):
    """Gives each batch twice."""

    def __iter__(self) -> Any:
        return (batch for batch in super().__iter__() for _ in range(2))


@pytest.mark.parametrize("loader", [Busy(), Twice(Numbers(8), 2)], ids=["busy", "twice"])
def test_a_loader_that_does_not_follow_its_sampler_is_refused(loader: DataLoader[Any]) -> None:
    words = f"a {type(loader).__name__} does not give the batches that its sampler names"
    batches = plan_batches(loader, turn=Rank0().turn(0, 2))
    assert batches.length is None  # so that an engine goes on to the end, where this is seen
    with pytest.raises(EvaluationError, match=words):
        serve(batches)


def test_failing_to_draw_fails_the_planning() -> None:
    class Broken(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            raise RuntimeError("no order today")

    loader = DataLoader(Numbers(4), sampler=Broken())
    with pytest.raises(RuntimeError, match="no order today"):
        plan_batches(loader, turn=Rank0().turn(0, 2))


def test_closing_ends_the_pass_of_a_rank() -> None:
    closed: list[bool] = []

    class Data:
        def __iter__(self) -> Iterator[int]:
            try:
                yield from range(5)
            finally:
                closed.append(True)

    batches = plan_batches(Data(), turn=Rank0().turn(1, 2))
    assert next(iter(batches)) == 1
    batches.close()
    assert closed == [True]
