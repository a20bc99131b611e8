"""A lazy sequence of predictions holds what the list holds, and makes it when it is asked for."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from helpers.private import LazyResults, ResultCollector, _results, pack, unpack
from helpers.ranks import on_ranks
from ignite_evalhook import DistEvalHook, EvalHook, create_evaluator

T = torch.tensor


def same(found: Any, expected: Any) -> bool:
    """Return whether two values are alike in types, dtypes, shapes and bits, all the way down."""
    if type(found) is not type(expected):
        return False
    if isinstance(expected, Tensor):
        if expected.layout is not torch.strided:
            return same(found.to_dense(), expected.to_dense())
        return (
            (found.dtype, found.shape) == (expected.dtype, expected.shape)
            and not (found.requires_grad or found.is_inference())
            and torch.equal(found, expected)
        )
    if isinstance(expected, (np.ndarray, np.generic)):
        return found.dtype == expected.dtype and found.tolist() == expected.tolist()
    if isinstance(expected, dict):
        return same(list(found.items()), list(expected.items()))
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected) and repr(found) == repr(expected)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        ([1], (1,)),
        (T([1]), T([1.0])),
        (T([1.0]), T([[1.0]])),
        (T([1.0]), T([2.0])),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([T(1)], [T(1), T(1)]),
        ({1: "a"}, {True: "a"}),
        (0.0, -0.0),
        (np.ones(2), torch.ones(2)),
        (np.ones(2), np.ones(2, np.float32)),
        (torch.ones(2, requires_grad=True), torch.ones(2)),
    ],
)
def test_what_differs_is_not_taken_for_the_same(one: Any, other: Any) -> None:
    assert not same(one, other)
    assert same([other], [copy.deepcopy(other)])


# -- the same as the list -------------------------------------------------------------------------


def ragged(batch: Sequence[int]) -> list[Tensor]:
    return [torch.full((i % 3, 2), float(i)) for i in batch]


def boxes(batch: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"box": box, "score": torch.rand(len(box)), "name": f"€{i}"}
        for i, box in zip(batch, ragged(batch), strict=True)
    ]


OUTPUTS: dict[str, Callable[[list[int]], Any]] = {
    "tensor": T,
    "rows": lambda batch: T(batch)[:, None].expand(-1, 3) / 7,
    "rows without numbers": lambda batch: torch.ones(len(batch), 0),
    "rows of rows": lambda batch: torch.rand(len(batch), 2, 3, dtype=torch.float64),
    "array": np.array,
    "rows of an array": lambda batch: np.array(batch)[:, None] / np.ones(3, np.float32),
    "names in an array": lambda batch: np.array([str(i) for i in batch]),
    "numbers": list,
    "strings": lambda batch: [str(i) for i in batch],
    "0-d tensors": lambda batch: [T(i) for i in batch],
    "arrays": lambda batch: [np.full(i % 3, i) for i in batch],
    "ragged": ragged,
    "many dtypes": lambda batch: [T(i) if i % 2 else T(float(i)) for i in batch],
    "rows that are not alike": lambda batch: [torch.ones(2, 1 + i % 3) for i in batch],
    "dicts": boxes,
    "dicts of unlike keys": lambda batch: [{str(i % 2): T(i)} for i in batch],
    "keys that are equal": lambda batch: [{(1, True, 1.0)[len(batch) % 3]: T(i)} for i in batch],
    "deep": lambda batch: [{"a": {"b": [*ragged([i]), (str(i),)]}} for i in batch],
    "lists of unlike length": lambda batch: [[T([i])] * (i % 3) for i in batch],
    "sparse": lambda batch: torch.eye(len(batch)).to_sparse(),
    "columns": lambda batch: [T(batch), T(batch)] if len(batch) != 2 else [T(batch)] * 3,
    "tuple": lambda batch: (T(batch), np.array(batch), tuple(map(str, batch)), ragged(batch)),
    "mapping": lambda batch: {"i": T(batch), "deep": {"box": ragged(batch)}, "same": T(7)},
    "the same for all": lambda batch: {"i": T(batch), "zero": (0.0, -0.0)[len(batch) % 2]},
    "empty mapping": lambda batch: {},
    "None": lambda batch: None,
}


def reduced(output: Sequence[int], indices: Sequence[int]) -> list[Any]:
    """Give as many items as the number says."""
    return [item for i in output for item in boxes([i]) * (i % 3)]


@st.composite
def dealt(draw: st.DrawFn) -> list[ResultCollector]:
    """Draw what some processes have collected: any outputs, in any order, joined at any time."""
    size, world = draw(st.integers(0, 24)), draw(st.integers(1, 4))
    order = draw(st.permutations(range(size))) if draw(st.booleans()) else list(range(size))
    kinds = draw(st.lists(st.sampled_from(sorted(OUTPUTS)), min_size=1, max_size=2))
    pre_eval = reduced if draw(st.integers(0, 4)) == 0 else None
    known = draw(st.sampled_from([True, True, False]))
    many = draw(st.sampled_from([1, 2, 3, 1024]))
    collectors = [ResultCollector(pre_eval, join=draw(st.booleans())) for _ in range(world)]
    begin = number = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_results, "_MANY", many)
        while begin < size:
            batch = list(order[begin : begin + draw(st.integers(1, 5))])
            kind = "numbers" if pre_eval else draw(st.sampled_from(kinds))
            collectors[number % world].add(
                OUTPUTS[kind](batch), len(batch), batch if known else None, number
            )
            begin, number = begin + len(batch), number + 1
    return collectors


def carried(value: Any) -> Any:
    """Take a value the way to another process."""
    packed = pack(value)
    return unpack(packed.head, packed.payload())


def both(collectors: list[ResultCollector]) -> tuple[LazyResults, list[Any]]:
    """Return the lazy sequence and the list of all."""
    leader, *others = collectors
    for other in others:
        leader.merge(carried(other.parts()))
    return leader.lazy_results(), leader.results()


@given(dealt())
def test_a_lazy_sequence_has_the_items_of_the_list(collectors: list[ResultCollector]) -> None:
    lazy, items = both(collectors)
    assert isinstance(lazy, Sequence)
    assert not isinstance(lazy, list)
    assert len(lazy) == len(items)
    assert same(list(lazy), items)
    assert same([lazy[i] for i in range(len(items))], items)
    assert same([lazy[-1 - i] for i in range(len(items))], items[::-1])
    assert same(list(reversed(lazy)), items[::-1])
    assert same([lazy[i] for i in range(len(items))], items)  # again


@given(dealt(), st.data())
def test_a_slice_has_the_items_of_the_list_s_slice(
    collectors: list[ResultCollector], data: st.DataObject
) -> None:
    lazy, items = both(collectors)
    for _ in range(3):  # of a slice, too
        part = data.draw(st.slices(len(items)))
        lazy, items = lazy[part], items[part]
        assert type(lazy) is LazyResults
        assert len(lazy) == len(items)
        assert same(list(lazy), items)
        assert same([lazy[i] for i in range(len(items))], items)


@pytest.mark.parametrize("name", OUTPUTS)
def test_joined_batches_have_the_items_that_batches_by_themselves_have(name: str) -> None:
    # What the tests above compare, both sides have read from one table.
    apart, together = ResultCollector(), ResultCollector(join=True)
    for begin, size in ((0, 3), (3, 1), (4, 4), (8, 4), (12, 2)):
        batch = list(range(begin, begin + size))
        output = OUTPUTS[name](batch)
        apart.add(output, size, batch)
        together.add(output, size, batch)
    assert same(list(together.lazy_results()), apart.results())
    kinds = {part[3][0] for part in together._parts}
    # All are joined but the one that repeats a tensor for each sample of a batch.
    assert kinds == ({"dict"} if name == "mapping" else {"part"})
    assert "part" not in {part[3][0] for part in apart._parts}


@given(dealt())
def test_a_lazy_sequence_can_be_sent_copied_and_pickled(collectors: list[ResultCollector]) -> None:
    lazy, items = both(collectors)
    for way in (carried, copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        again = way(lazy)
        assert type(again) is LazyResults
        assert same(list(again), items)
        assert same(list(again[1::2]), items[1::2])


# -- a sequence -----------------------------------------------------------------------------------


def filled(*outputs: Any, join: bool = True) -> LazyResults:
    """Return what is lazy of some outputs, each of as many samples as it has items."""
    collector = ResultCollector(join=join)
    for output in outputs:
        collector.add(output, len(output), None)
    return collector.lazy_results()


@pytest.mark.parametrize(
    ("index", "error", "words"),
    [
        (3, IndexError, "index 3 is out of range: there are 3 predictions"),
        (-4, IndexError, "index -4 is out of range: there are 3 predictions"),
        ("a", TypeError, "'str' object cannot be interpreted as an integer"),
        (1.0, TypeError, "'float' object cannot be interpreted as an integer"),
    ],
)
@pytest.mark.parametrize("indices", [[0, 1, 2], [2, 0, 1], ["b", "a", "c"]])
def test_what_is_no_index_is_an_error(
    index: Any, error: type[Exception], words: str, indices: list[Any]
) -> None:
    collector = ResultCollector()
    collector.add([T(0), T(1), T(2)], 3, indices)
    with pytest.raises(error, match=words):
        collector.lazy_results()[index]


def test_an_index_may_be_of_any_integer_type() -> None:
    lazy = filled(["a", "b"])
    assert [lazy[np.int64(1)], lazy[T(0)], lazy[True]] == ["b", "a", "b"]


def test_it_is_read_only() -> None:
    lazy: Any = filled([T([1, 2])])
    with pytest.raises(TypeError, match="does not support item assignment"):
        lazy[0] = None
    with pytest.raises(TypeError, match="item deletion"):
        del lazy[0]
    assert not hasattr(lazy, "append")


def test_nothing_collected_is_an_empty_sequence() -> None:
    for lazy in (filled(), filled([], []), filled(["a"])[:0]):
        assert not lazy
        assert list(lazy) == []
        with pytest.raises(IndexError, match="there are 0 predictions"):
            lazy[0]


def test_items_share_the_memory_of_the_predictions_and_not_their_containers() -> None:
    lazy = filled([{"box": T([1.0, 2.0])}, {"box": T([3.0])}])
    first = lazy[0]
    first["box"].zero_()
    first["more"] = 1
    assert same(list(lazy), [{"box": T([0.0, 0.0])}, {"box": T([3.0])}])
    assert lazy[0]["box"].data_ptr() == lazy[:1][0]["box"].data_ptr()


@pytest.mark.parametrize("read", [list, lambda lazy: [lazy[i] for i in range(len(lazy))]])
def test_items_are_ordinary_tensors_in_whatever_mode_they_are_asked_for(read: Any) -> None:
    with torch.inference_mode():
        lazy = filled((torch.ones(2, 3), [torch.ones(3, 2), torch.ones(1, 2)]))
        items = read(lazy)
    for item in items:
        for tensor in item:
            assert not tensor.is_inference()
            assert not tensor._is_view()  # of which each would be larger
            tensor.requires_grad_()
            tensor.sum().backward()


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ([], "LazyResults(0 items)"),
        (torch.ones(2, 3), "LazyResults(2 items, the first: float32[3])"),
        (np.ones(2), "LazyResults(2 items, the first: float64[])"),
        (["a" * 1000], "LazyResults(1 items, the first: 'aaaaaaaaaaaa...aaaaaaaaaaaaa')"),
        (
            [{"box": torch.ones(2, 4), "of": [T(1), ("x", None)]}],
            "LazyResults(1 items, the first: {'box': float32[2, 4], 'of': [int64[], ('x', None)]})",
        ),
    ],
)
def test_it_shows_how_many_items_there_are_and_what_one_is(output: Any, shown: str) -> None:
    assert repr(filled(output)) == shown


def test_what_it_shows_is_short() -> None:
    assert len(repr(filled([{str(i): i for i in range(1000)}]))) < 250


# -- memory ---------------------------------------------------------------------------------------


def detections(samples: int) -> list[dict[str, Tensor]]:
    sizes = torch.randint(0, 21, (samples,), generator=torch.Generator().manual_seed(0)).tolist()
    return [{"boxes": torch.rand(n, 4), "labels": torch.arange(n)} for n in sizes]


def blocks_of(make: Callable[[], Any]) -> int:
    """Return how many pieces of memory Python's objects take that are made."""
    make()
    gc.collect()
    before = sys.getallocatedblocks()
    made = make()
    gc.collect()
    taken = sys.getallocatedblocks() - before
    del made
    return taken


def collected(outputs: Sequence[Any], *, join: bool) -> ResultCollector:
    collector = ResultCollector(join=join)
    for output in outputs:
        collector.add(output, len(output), None)
    return collector


def test_neither_collecting_nor_sending_makes_an_object_for_each_item() -> None:
    items = detections(5000)
    outputs = [items[begin : begin + 50] for begin in range(0, len(items), 50)]

    def sent(read: str) -> Any:
        parts = carried(collected(outputs, join=True).parts())
        collector = ResultCollector()
        collector.merge(parts)
        return getattr(collector, read)()

    assert blocks_of(lambda: sent("results")) > 3 * len(items)  # a dict and its tensors
    assert blocks_of(lambda: sent("lazy_results")) < len(items) / 5
    assert blocks_of(lambda: collected(outputs, join=True).lazy_results()) < len(items) / 5


def test_batches_of_one_sample_become_columns_too() -> None:
    items = detections(3000)
    outputs = [[item] for item in items]
    lazy = collected(outputs, join=True).lazy_results()
    assert len(lazy._runs._tables) == len(lazy._runs._which) <= 3
    assert {table[0] for table in lazy._runs._tables} == {"dict"}
    assert same(list(lazy), items)


def test_large_batches_are_not_copied_twice() -> None:
    collector = ResultCollector(join=True)
    for number in range(20):
        collector.add(torch.full((100, 1000), float(number)), 100, None)
    assert {part[3][0] for part in collector._parts} == {"rows"}
    assert [int(row[0]) for row in collector.lazy_results()[::100]] == list(range(20))


def test_batches_that_differ_are_joined_by_runs_of_those_that_are_alike() -> None:
    runs: list[Any] = [torch.ones(2, 3)] * 5 + [torch.ones(2, 4)] * 4 + [["a", "b"]] * 3
    runs += [torch.ones(2, 4)] * 2 + [torch.ones(2, 4).long()] * 2
    lazy = filled(*runs)
    kinds = [table[0] for table in lazy._runs._tables]
    assert kinds == ["rows", "rows", "items", "rows", "rows"]
    assert same(list(lazy), [item for output in runs for item in output])


def test_batches_that_come_in_another_order_than_they_have_are_joined_and_put_right() -> None:
    collector = ResultCollector(join=True)
    for number in (3, 0, 2, 1):
        collector.add(T([2 * number, 2 * number + 1]), 2, None, number)
    lazy = collector.lazy_results()
    assert len(lazy._runs._tables) == 1
    assert [int(item) for item in lazy] == [int(lazy[i]) for i in range(8)] == list(range(8))


def test_one_batch_that_cannot_be_joined_keeps_its_neighbours_as_they_are() -> None:
    # Their memory stays for its sake, so that joined copies of them would be one more.
    collector = ResultCollector(join=True)
    for same_for_all in (1, T(2), 3):
        collector.add({"i": T([1, 2]), "same": same_for_all}, 2, None)
    lazy = collector.lazy_results()
    assert len(lazy._runs._tables) == 3
    assert [int(item["same"]) for item in lazy] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    "name", ["tensor", "array", "arrays", "ragged", "many dtypes", "dicts", "deep", "tuple"]
)
def test_what_was_joined_leaves_its_first_memory(name: str) -> None:
    collector = ResultCollector(join=True)
    for batch in ([1, 2, 3, 4], [5, 6, 7, 8]):
        collector.add(OUTPUTS[name](batch), 4, None)
    gone = weakref.ref(collector._memory._piece)
    lazy = collector.lazy_results()
    assert gone() is None
    assert len(lazy) == 8


@pytest.mark.parametrize("use", [list, lambda lazy: lazy[0], lambda lazy: lazy[1:]])
def test_the_predictions_go_when_the_sequence_goes(use: Callable[[LazyResults], Any]) -> None:
    lazy = filled([T([1, 2]), T([3])])
    use(lazy)
    gone = weakref.ref(lazy._runs)
    gc.disable()  # a circle would wait for it
    try:
        del lazy
        assert gone() is None
    finally:
        gc.enable()


def test_nothing_of_an_output_is_kept() -> None:
    class Output(list[Any]):  # a plain list takes no weak reference
        pass

    output = Output([{"box": T([1, 2])}])
    gone = weakref.ref(output)
    lazy = filled(output, [{"box": T([3])}])
    lazy[0]
    del output
    assert gone() is None


# -- what compute_metrics gets --------------------------------------------------------------------


class Numbers(Dataset[int]):
    """Sample i is the number i."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


class Evaluated(Numbers):
    """Evaluates by itself, as in OpenMMLab."""

    def evaluate(self, results: Any, logger: Any = None) -> dict[str, Any]:
        return seen(results)


def seen(results: Any) -> dict[str, Any]:
    """Say which kind of sequence came, and all that is in it."""
    return {"kind": type(results).__name__, "n": len(results), "all": repr(list(results))}


def detect(engine: Any, batch: Tensor) -> list[dict[str, Any]]:
    return [
        {"box": torch.arange(int(i) % 4) / 7, "at": (i.clone(), f"€{i}")} for i in batch.reshape(-1)
    ]


def as_tuple(engine: Any, batch: Tensor) -> Any:
    return batch, [f"sample {i}" for i in batch.tolist()]


STEPS: dict[str, Callable[[Any, Tensor], Any]] = {"dicts": detect, "tuple": as_tuple}


def in_fours(output: Any, indices: Sequence[int]) -> list[Any]:
    return [(list(indices), item) for item in output if int(item["at"][0]) % 4]


def evaluated(rank: int, cases: Sequence[tuple[str, int, int, dict[str, Any]]]) -> list[Any]:
    """Evaluate each case lazily and as a list; return what ``compute_metrics`` has seen."""
    found = []
    for step, size, batch_size, options in cases:
        evaluator = create_evaluator(nn.Identity(), step=STEPS[step])
        for lazy in (True, False):
            kind = EvalHook if rank == 0 else DistEvalHook
            torch.manual_seed(rank)
            loader = DataLoader(Numbers(size), batch_size, shuffle=options.get("shuffle", False))
            given = {name: value for name, value in options.items() if name != "shuffle"}
            hook = kind(loader, evaluator, compute_metrics=seen, lazy_results=lazy, **given)
            found.append(hook.evaluate(track=False).metrics)
    return found


def cases_in(folder: str) -> list[tuple[str, int, int, dict[str, Any]]]:
    ways: list[dict[str, Any]] = [
        {}, {"pre_eval": in_fours}, {"shuffle": True}, {"tmpdir": folder},
        {"gpu_collect": True}, {"limit_batches": 2},
    ]  # fmt: skip
    # Batches: 1, 2 and 3 of unequal size, so that ranks have none, and many.
    sizes = [(2, 4), (5, 3), (7, 3), (23, 2), (9, 1)]
    return [
        (step, size, batch_size, options)
        for step in STEPS
        for options in ways
        for size, batch_size in sizes
        if step == "dicts" or "pre_eval" not in options
    ]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_on_any_number_of_processes_it_is_what_one_process_gets_as_a_list(
    world: int, tmp_path: Any
) -> None:
    cases = cases_in(str(tmp_path))
    alone = evaluated(0, [(step, size, batch, {
        name: value for name, value in options.items() if name in ("pre_eval", "limit_batches")
    }) for step, size, batch, options in cases])[1::2]  # fmt: skip
    for found in on_ranks(world, evaluated, cases):
        for case, lazy, as_list, expected in zip(
            cases, found[::2], found[1::2], alone, strict=True
        ):
            assert as_list == expected, case
            assert lazy == {**expected, "kind": "LazyResults"}, case
    assert {one["kind"] for one in alone} == {"list"}
    assert any(one["n"] == 23 for one in alone)


def test_a_dataset_that_evaluates_gets_it_too() -> None:
    evaluator = create_evaluator(nn.Linear(1, 1), step=detect)
    loader = DataLoader(Evaluated(5), 2)
    kinds = [
        EvalHook(loader, evaluator, **options).evaluate().metrics["kind"]
        for options in ({"lazy_results": True}, {})  # the default stays
    ]
    assert kinds == ["LazyResults", "list"]


def test_it_may_be_kept_after_the_evaluation() -> None:
    kept: list[Any] = []

    def compute(results: Any) -> dict[str, int]:
        kept.append(results)
        return {}

    evaluator = create_evaluator(nn.Linear(1, 1), step=lambda engine, batch: batch)
    hook = EvalHook(DataLoader(Numbers(5), 2), evaluator, compute_metrics=compute,
                    lazy_results=True)  # fmt: skip
    hook.evaluate()
    hook.evaluate()
    assert [[int(item) for item in results] for results in kept] == [list(range(5))] * 2
    assert [len(results._runs._tables) for results in kept] == [1, 1]  # three batches, joined


def test_other_data_that_nobody_evaluates_needs_none() -> None:
    evaluator = create_evaluator(nn.Linear(1, 1), step=detect)
    hook = EvalHook(DataLoader(Evaluated(5), 2), evaluator, lazy_results=True)
    assert hook.evaluate(DataLoader(Numbers(3), 2), track=False).metrics == {}
