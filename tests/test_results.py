"""Predictions become one item per sample, in the order of the dataset."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict, namedtuple
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ignite_evalhook._results import ResultCollector, rows, to_host

Pair = namedtuple("Pair", ["a", "b"])
T = torch.tensor


def plain(value: Any) -> Any:
    """Return tensors and arrays as lists, so that results can be compared."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
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
