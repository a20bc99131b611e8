"""Predictions become one item per sample, in the order of the dataset."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.private import ResultCollector, pack, rows, to_host, unpack
from ignite_evalhook import EvaluationError

Pair = namedtuple("Pair", ["a", "b"])
T = torch.tensor


def plain(value: Any) -> Any:
    """Return tensors and arrays as lists, so that results can be compared."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(plain(item) for item in value)
    return value


# -- one item per sample --------------------------------------------------------------------------

SPLITS: list[tuple[str, Any, int | None, list[Any]]] = [
    ("tensor", T([[1, 2], [3, 4]]), 2, [[1, 2], [3, 4]]),
    ("tensor of numbers", T([1, 2, 3]), 3, [1, 2, 3]),
    ("0-d tensor", T(5), 1, [5]),
    ("empty tensor", torch.zeros(0, 2), 0, []),
    ("array", np.array([[1, 2], [3, 4]]), 2, [[1, 2], [3, 4]]),
    ("0-d array", np.array(5), 1, [5]),
    ("list", [T([1]), T([2, 3])], 2, [[1], [2, 3]]),
    ("list of dicts", [{"a": T(1)}, {"a": T(2)}], 2, [{"a": 1}, {"a": 2}]),
    ("list of strings", ["x", "y"], 2, ["x", "y"]),
    ("list that is longer than the batch", ["x", "y", "z"], 2, ["x", "y", "z"]),
    ("list, number of samples unknown", ["x", "y"], None, ["x", "y"]),
    ("list of columns", [T([1, 2, 3]), T([4, 5, 6])], 3, [[1, 4], [2, 5], [3, 6]]),
    ("empty list", [], 0, []),
    ("tuple", (T([1, 2]), T([3, 4])), 2, [(1, 3), (2, 4)]),
    ("tuple of columns as many as samples", (T([1, 2]), T([3, 4])), 2, [(1, 3), (2, 4)]),
    ("named tuple", Pair(T([1, 2]), T([3, 4])), 2, [(1, 3), (2, 4)]),
    ("mapping", {"a": T([1, 2]), "b": ["x", "y"]}, 2, [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]),
    ("ordered mapping", OrderedDict(a=T([1, 2])), 2, [{"a": 1}, {"a": 2}]),
    ("empty mapping", {}, 2, [{}, {}]),
    ("empty tuple", (), 2, [(), ()]),
    ("empty tuple inside", (T([1, 2]), ()), 2, [(1, ()), (2, ())]),
    ("None", None, 2, [None, None]),
    ("string", "same", 2, ["same", "same"]),
    ("number", 0.5, 2, [0.5, 0.5]),
    ("column of strings", (T([1, 2]), ["x", "y"]), 2, [(1, "x"), (2, "y")]),
    # A loader collates the strings of tuple samples into a tuple.
    ("tuple of strings inside", (T([1, 2]), ("x", "y")), 2, [(1, "x"), (2, "y")]),
    (
        "targets as detection collates them",
        ([T([1]), T([2])], ({"box": T([[1], [2]])}, {"box": T([[3]])})),
        2,
        [([1], {"box": [[1], [2]]}), ([2], {"box": [[3]]})],
    ),
    ("ragged tuple inside", (T([1, 2]), (T([7]), T([8, 9]))), 2, [(1, [7]), (2, [8, 9])]),
    ("nested tuple", (T([1, 2]), (T([3, 4]), T([5, 6]))), 2, [(1, (3, 5)), (2, (4, 6))]),
    (
        "nested list of columns",
        (T([1, 2, 3]), [T([4, 5, 6]), T([7, 8, 9])]),
        3,
        [(1, [4, 7]), (2, [5, 8]), (3, [6, 9])],
    ),
    ("nested mapping", {"a": {"b": T([1, 2])}}, 2, [{"a": {"b": 1}}, {"a": {"b": 2}}]),
    ("the same for all", (T([1, 2]), "a", None), 2, [(1, "a", None), (2, "a", None)]),
    ("0-d tensor inside", (T([1, 2]), T(9)), 2, [(1, 9), (2, 9)]),
    ("tensor of another length", (T([1, 2]), T([7, 8, 9])), 2, [(1, [7, 8, 9]), (2, [7, 8, 9])]),
    ("array inside", (T([1, 2]), np.array([3.5, 4.5])), 2, [(1, 3.5), (2, 4.5)]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("output", "count", "items"), [row[1:] for row in SPLITS], ids=[row[0] for row in SPLITS]
)
def test_an_output_is_split_into_one_item_per_sample(
    output: Any, count: int | None, items: list[Any]
) -> None:
    assert plain(rows(output, count)) == items


@pytest.mark.parametrize("output", [None, "text", 3.5, (T([1]),), {"a": T([1])}])
def test_an_output_that_does_not_tell_its_samples_is_an_error_with_a_way_out(output: Any) -> None:
    with pytest.raises(TypeError, match=r"does not tell how many samples it holds; .*pre_eval="):
        rows(output, None)


# -- copies ---------------------------------------------------------------------------------------

BUFFERS: list[Any] = [
    lambda t, a: t,
    lambda t, a: a,
    lambda t, a: [t, t],
    lambda t, a: [a, a],
    lambda t, a: (t, a),
    lambda t, a: {"t": t, "a": a},
    lambda t, a: [{"t": t, "a": [a]}, {"t": t, "a": (a,)}],
    lambda t, a: {"deep": {"t": [t, t]}},
]


@pytest.mark.parametrize("build", BUFFERS)
def test_items_do_not_change_when_the_model_reuses_its_buffers(build: Any) -> None:
    tensor, array = torch.ones(2, 3), np.ones((2, 3))
    collector = ResultCollector()
    collector.add(build(tensor, array), 2, None)
    before = plain(collector.results())
    tensor.fill_(-1)
    array.fill(-1)
    assert plain(collector.results()) == before


def test_items_of_pre_eval_are_copied_too() -> None:
    buffer = torch.ones(2)
    collector = ResultCollector(lambda output, indices: [buffer, {"b": buffer}])
    collector.add(None, 2, [0, 1])
    buffer.zero_()
    assert plain(collector.results()) == [[1, 1], {"b": [1, 1]}]


def test_items_carry_no_graph() -> None:
    output = torch.ones(2, requires_grad=True) * 2
    collector = ResultCollector()
    collector.add((output, [output]), 2, None)
    assert not any(item[0].requires_grad for item in collector.results())


def test_what_is_no_tensor_array_or_plain_container_is_kept_as_it_is() -> None:
    class Boxes:
        pass

    boxes = Boxes()
    assert to_host([boxes, "text", None, 1, Pair(1, 2)]) == [boxes, "text", None, 1, Pair(1, 2)]


def test_a_collector_lets_go_of_the_outputs() -> None:
    class Output(list):  # type: ignore[type-arg]  # a plain list takes no weak reference
        pass

    output = Output([torch.ones(3)])
    gone = weakref.ref(output)
    collector = ResultCollector()
    collector.add(output, 1, None)
    del output
    gc.collect()
    assert gone() is None


# -- order ----------------------------------------------------------------------------------------


@st.composite
def served(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    """Draw a dataset's size and how a sampler dealt it out: any order, any batches."""
    size = draw(st.integers(1, 30))
    order = draw(st.permutations(range(size)))
    cuts = sorted(draw(st.sets(st.integers(1, size))))
    edges = [0, *cuts, size]
    return size, [list(order[a:b]) for a, b in pairwise(edges)]


@given(served())
def test_whatever_the_order_of_the_batches_results_are_in_dataset_order(
    case: tuple[int, list[list[int]]],
) -> None:
    size, batches = case
    collector = ResultCollector()
    for batch in batches:
        collector.add(torch.tensor(batch), len(batch), batch)
    assert [int(item) for item in collector.results()] == list(range(size))


@given(served())
def test_without_indices_results_stay_in_the_order_of_evaluation(
    case: tuple[int, list[list[int]]],
) -> None:
    _, batches = case
    collector = ResultCollector()
    for batch in batches:
        collector.add(torch.tensor(batch), len(batch), None)
    assert [int(item) for item in collector.results()] == [i for batch in batches for i in batch]


@given(served(), st.data())
def test_samples_one_by_one_may_give_any_number_of_items(
    case: tuple[int, list[list[int]]], data: st.DataObject
) -> None:
    size, batches = case
    numbers = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))

    def pre_eval(output: Any, indices: Sequence[int]) -> list[int]:
        return [index for index in indices for _ in range(numbers[index])]

    collector = ResultCollector(pre_eval)
    for index in [i for batch in batches for i in batch]:
        collector.add(None, 1, [index])
    assert collector.results() == [i for i in range(size) for _ in range(numbers[i])]


def test_a_sample_that_came_twice_is_there_twice_in_the_order_of_evaluation() -> None:
    collector = ResultCollector()
    collector.add(["b1", "a"], 2, [1, 0])
    collector.add(["b2"], 1, [1])
    assert collector.results() == ["a", "b1", "b2"]


def test_where_items_cannot_be_told_apart_all_stay_in_the_order_of_evaluation() -> None:
    collector = ResultCollector(lambda output, indices: list(output))
    collector.add("cd!", 2, [2, 3])
    collector.add("ab", 2, [0, 1])
    assert "".join(collector.results()) == "cd!ab"


def test_a_batch_that_gives_no_item_does_not_spoil_the_order() -> None:
    collector = ResultCollector(lambda output, indices: list(output))
    collector.add("cd", 2, [2, 3])
    collector.add("", 2, [4, 5])
    collector.add("ab", 2, [0, 1])
    assert "".join(collector.results()) == "abcd"


# -- pre_eval -------------------------------------------------------------------------------------


def test_pre_eval_gets_the_output_and_the_indices_in_the_dataset() -> None:
    seen: list[tuple[Any, list[int]]] = []

    def pre_eval(output: Any, indices: Sequence[int]) -> list[Any]:
        seen.append((output, list(indices)))
        return [output]

    collector = ResultCollector(pre_eval)
    collector.add("x", 2, [5, 3])
    collector.add("y", 2, None)
    collector.add("z", None, None)
    assert seen == [("x", [5, 3]), ("y", [2, 3]), ("z", [])]


@pytest.mark.parametrize("reduced", [None, "text", 3, {"a": 1}, torch.ones(2)])
def test_pre_eval_must_return_a_list(reduced: Any) -> None:
    collector = ResultCollector(lambda output, indices: reduced)
    with pytest.raises(TypeError, match=f"must return a list, got {type(reduced).__name__}"):
        collector.add(None, 2, [0, 1])


def test_nothing_added_gives_no_results() -> None:
    assert ResultCollector().results() == []


# -- several processes ----------------------------------------------------------------------------


def carried(parts: Any) -> Any:
    """Take parts the way to another process."""
    packed = pack(parts)
    return unpack(packed.head, packed.payload())


def ragged(batch: Sequence[int]) -> list[torch.Tensor]:
    return [torch.full((i % 3, 2), float(i)) for i in batch]


OUTPUTS: dict[str, Callable[[list[int]], Any]] = {
    "tensor": T,
    "rows": lambda batch: T(batch)[:, None].expand(-1, 3),
    "array": np.array,
    "list of numbers": list,
    "list of strings": lambda batch: [str(i) for i in batch],
    "list of 0-d tensors": lambda batch: [T(i) for i in batch],
    "list of arrays": lambda batch: [np.full(i % 3, i) for i in batch],
    "ragged": ragged,
    "many dtypes": lambda batch: [T(i) if i % 2 else T(float(i)) for i in batch],
    "rows that are not alike": lambda batch: [torch.ones(2, 1 + i % 3) for i in batch],
    "dimensions that are not alike": lambda batch: [torch.ones([2] * (i % 3)) for i in batch],
    "dicts": lambda batch: [{"i": i, "box": ragged([i])[0]} for i in batch],
    "dicts of unlike keys": lambda batch: [{str(i % 2): T(i)} for i in batch],
    "deep": lambda batch: [{"a": {"b": [*ragged([i]), (str(i),)]}} for i in batch],
    "lists of unlike length": lambda batch: [[T([i])] * (i % 3) for i in batch],
    "named tuples": lambda batch: [Pair(T(i), i) for i in batch],
    "columns": lambda batch: [T(batch), T(batch)] if len(batch) != 2 else [T(batch)] * 3,
    "tuple": lambda batch: (T(batch), np.array(batch), tuple(map(str, batch)), ragged(batch)),
    "mapping": lambda batch: OrderedDict(i=T(batch), deep={"box": ragged(batch)}, same=T(7)),
    "None": lambda batch: None,
}


def items_of(pre_eval: str) -> Any:
    """Return a ``pre_eval`` that gives as many items as samples, fewer, more, or none."""
    numbers = {
        "one each": lambda i: 1,
        "some": lambda i: i % 3,
        "one of a batch": lambda i: 0,
        "none": lambda i: 0,
    }[pre_eval]

    def reduce(output: Any, indices: Sequence[int]) -> list[Any]:
        items = [{"i": i, "box": box} for i, box in zip(output, ragged(output), strict=True)]
        found = [item for item in items for _ in range(numbers(item["i"]))]  # type: ignore[no-untyped-call]
        return items[:1] if pre_eval == "one of a batch" else found

    return reduce


def dealt(
    batches: list[list[int]], world: int, known: bool, counted: bool, output: Any, pre_eval: Any
) -> list[ResultCollector]:
    """Deal batches to collectors by turn."""
    collectors = [ResultCollector(pre_eval) for _ in range(world)]
    for number, batch in enumerate(batches):
        count = len(batch) if counted else None
        indices = batch if known else None
        collectors[number % world].add(output(batch), count, indices, number)
    return collectors


@given(
    served(),
    st.integers(1, 4),
    st.booleans(),
    st.one_of(
        st.tuples(st.sampled_from(sorted(OUTPUTS)), st.none(), st.just(True)),
        st.tuples(
            st.just("list of numbers"),
            st.sampled_from(["one each", "some", "one of a batch", "none"]),
            st.booleans(),
        ),
    ),
    st.randoms(),
)
def test_shares_of_several_processes_merge_into_the_results_of_one(
    case: tuple[int, list[list[int]]],
    world: int,
    known: bool,
    kind: tuple[str, str | None, bool],
    random: Any,
) -> None:
    _, batches = case
    name, reduced, counted = kind
    output, pre_eval = OUTPUTS[name], None if reduced is None else items_of(reduced)
    (alone,) = dealt(batches, 1, known, counted, output, pre_eval)
    leader, *others = dealt(batches, world, known, counted, output, pre_eval)
    random.shuffle(others)
    for other in others:
        leader.merge(carried(other.parts()))
    found, expected = leader.results(), alone.results()
    assert type(found) is list
    assert plain(found) == plain(expected)
    assert repr(found) == repr(expected)  # types and dtypes too


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_table_has_the_items_that_splitting_by_hand_gives(name: str) -> None:
    # What the test above compares, both sides share; this is what each item should be.
    batch = [4, 1, 3]
    output = OUTPUTS[name](batch)
    found = carried(rows(output, 3))
    items = plain(found)
    if isinstance(output, (torch.Tensor, np.ndarray)):
        assert items == output.tolist()
    elif name == "columns":
        assert items == [[i, i] for i in batch]
    elif isinstance(output, list):
        assert items == plain(output)
        assert repr(found) == repr(output)  # dtypes too
    elif isinstance(output, tuple):
        assert items == [(i, i, str(i), plain(ragged([i])[0])) for i in batch]
    elif output is None:
        assert items == [None] * 3
    else:
        boxes = {i: plain(ragged([i])[0]) for i in batch}
        assert items == [{"i": i, "deep": {"box": boxes[i]}, "same": 7} for i in batch]


def test_sizes_that_columns_have_in_common_are_sent_once() -> None:
    collector = ResultCollector()
    items = [{"box": torch.ones(i % 5, 4), "score": torch.ones(i % 5)} for i in range(20)]
    collector.add(items, 20, None)
    [(_, _, _, (kind, _, columns, _))] = carried(collector.parts())
    assert kind == "dict"
    assert [column[0] for column in columns] == ["ragged", "ragged"]
    assert columns[0][2] is columns[1][2]


def test_without_indices_the_count_goes_by_the_numbers_of_all_batches() -> None:
    first, second = (ResultCollector(lambda output, indices: list(output)) for _ in range(2))
    first.add("ab", 2, None, 0)
    second.add("c", 1, None, 1)
    first.add("!", 1, [1], 2)  # the second sample once more
    second.add("de", 2, None, 3)
    first.merge(second.parts())
    assert "".join(first.results()) == "ab!cde"


def test_a_rank_without_a_batch_has_nothing_to_give_and_may_collect() -> None:
    idle, busy = ResultCollector(), ResultCollector()
    busy.add(T([1, 2]), 2, None, 0)
    idle.merge(carried(busy.parts()))
    busy.merge(carried(ResultCollector().parts()))
    assert plain(idle.results()) == plain(busy.results()) == [1, 2]


def test_equal_numbers_stay_in_the_order_in_which_they_were_merged() -> None:
    # Streams that are not dealt out: each rank counts its own.
    first, second = ResultCollector(), ResultCollector()
    for collector, items in ((first, ["a", "c"]), (second, ["b", "d"])):
        for item in items:
            collector.add([item], 1, None)
    first.merge(second.parts())
    assert first.results() == ["a", "b", "c", "d"]


def test_pre_eval_gets_no_wrong_indices_where_other_processes_had_the_batches_before() -> None:
    def ask(output: Any, indices: Sequence[int]) -> list[int]:
        assert len(indices) == 2
        return [indices[0]]

    first, second = ResultCollector(ask), ResultCollector(ask)
    first.add(None, 2, None, 0)
    assert first.results() == [0]
    for collector, number in ((first, 2), (second, 1), (second, 2)):
        with pytest.raises(EvaluationError, match=r"pre_eval asks for indices .* does not tell"):
            collector.add(None, 2, None, number)
        assert len(collector.results()) == (1 if collector is first else 0)


def test_pre_eval_that_does_not_ask_needs_no_indices() -> None:
    collector = ResultCollector(lambda output, indices: list(output))
    collector.add("ab", 2, None, 1)
    collector.add("cd", 2, None, 3)
    assert collector.results() == list("abcd")


# -- memory and errors ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensor", "rows", "ragged", "dicts", "tuple", "mapping"])
def test_items_are_views_of_one_host_copy_of_the_batch(name: str) -> None:
    collector = ResultCollector()
    output = OUTPUTS[name]([4, 1, 3])
    collector.add(output, 3, None)
    tensors = [t for item in collector.results() for t in tensors_in(item) if t.ndim or t.numel()]
    storages = {t.untyped_storage().data_ptr() for t in tensors}
    assert len(storages) <= 3
    assert not storages & {t.untyped_storage().data_ptr() for t in tensors_in(output)}


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def test_an_output_that_does_not_tell_its_samples_is_an_error_at_its_batch() -> None:
    collector = ResultCollector()
    collector.add(["a"], None, None)
    with pytest.raises(TypeError, match="a dict does not tell how many samples"):
        collector.add({"a": T([1])}, None, None)
    assert collector.results() == ["a"]


def test_named_tuples_and_ordered_dicts_inside_are_copied_too() -> None:
    buffer = torch.ones(2)
    collector = ResultCollector()
    collector.add([Pair(buffer, 1), OrderedDict(a=buffer)], 2, None)
    buffer.zero_()
    pair, mapping = collector.results()
    assert type(pair) is Pair
    assert type(mapping) is OrderedDict
    assert pair.a.tolist() == mapping["a"].tolist() == [1, 1]


def test_items_collected_in_inference_mode_are_ordinary_tensors() -> None:
    collector = ResultCollector()
    with torch.inference_mode():
        collector.add((torch.ones(2), [torch.ones(3), torch.ones(1)]), 2, None)
        results = collector.results()
    assert not any(tensor.is_inference() for item in results for tensor in item)
    results[0][0].add_(1)


def test_pre_eval_runs_in_the_mode_of_the_evaluation() -> None:
    seen: list[bool] = []

    def pre_eval(output: Any, indices: Sequence[int]) -> list[Any]:
        seen.append(torch.is_inference_mode_enabled())
        return []

    with torch.inference_mode():
        ResultCollector(pre_eval).add(None, 1, None)
    ResultCollector(pre_eval).add(None, 1, None)
    assert seen == [True, False]


def test_rows_of_a_sparse_output_are_items_too() -> None:
    collector = ResultCollector()
    collector.add(torch.eye(2).to_sparse(), 2, None)
    collector.merge(carried(collector.parts()))
    assert [item.to_dense().tolist() for item in collector.results()] == [[1, 0], [0, 1]] * 2


def test_nothing_of_a_batch_is_kept_in_memory_between_those_that_the_model_frees() -> None:
    # A tensor, or a list of more than 64 places, is small and would be kept in the allocator's
    # memory, where it stands in the way of what the model frees: see _host_memory.
    collector = ResultCollector()
    batch = list(range(100))
    dicts = [{"box": torch.ones(i % 3, 4), "name": str(i)} for i in batch]
    for output in (torch.ones(100, 3), dicts, {"a": torch.ones(100), "same": torch.ones(3)}):
        collector.add(output, 100, batch[::-1])
    kept: list[Any] = [collector._parts]
    for value in kept:  # grows
        assert not isinstance(value, torch.Tensor)
        if isinstance(value, (list, tuple)):
            kept += value
    lists = {id(value): value for value in kept if isinstance(value, list) and len(value) > 64}
    assert len(lists) <= 1  # the list of all objects


def test_items_are_tensors_by_themselves_without_a_base() -> None:
    collector = ResultCollector()
    collector.add((torch.ones(2, 3), [torch.ones(3, 2), torch.ones(1, 2)]), 2, None)
    for row, box in collector.results():
        assert not row._is_view()
        assert not box._is_view()
        row.requires_grad_()
        row.sum().backward()
