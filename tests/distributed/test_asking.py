"""How metrics are computed over ranks: by asking, stopping and beginning again.

What comes out for each metric there is stands in ``test_metric_zoo.py``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import ignite.distributed as idist
import ignite.metrics as im
import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.metric import sync_all_reduce
from torch import Tensor

from helpers.over_ranks import over_ranks
from helpers.private import (
    Again,
    Answer,
    Answers,
    Holder,
    InexactError,
    Large,
    ListMarks,
    Question,
    Questions,
    Raised,
    Reduce,
    StateSnapshot,
    Unable,
    Value,
    decide,
    inner_items,
    is_users,
)
from helpers.ranks import die, on_ranks
from ignite_evalhook import EvalHook
from ignite_evalhook.exceptions import EvaluationError

LARGE = Large((1000, 1000), torch.int64)


def ask(*values: Any, operation: str = "all_reduce", detail: Any = "SUM") -> Questions:
    return Questions([Question(operation, detail, value) for value in values])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({0: ask(1, 5), 1: ask(2, 6)},
         Answers([Answer("all_reduce", 3), Answer("all_reduce", 11)])),
        ({0: ask(1, operation="all_gather", detail="number"),
          2: ask(2, operation="all_gather", detail="number")},
         Answers([Answer("all_gather", [1, 2])])),
        ({0: ask("a", operation="broadcast", detail=1),
          1: ask("b", operation="broadcast", detail=1)}, Answers([Answer("broadcast", "b")])),
        ({0: Unable("none"), 1: ask(2), 2: ask(3)}, Again([1, 2])),
        ({0: Unable(), 1: Value(2, False)}, Again([1])),
        ({1: Value(2, False)}, Value(2, False)),
        ({0: Value(2.0), 1: Value(None)}, Value(2.0)),
        ({0: Unable(), 1: Unable("none")}, Unable("none")),
        ({0: ask(1), 1: Raised("failed")}, Raised("failed")),
        ({0: ask(LARGE), 1: ask(LARGE)}, Answers([Reduce("SUM", LARGE)])),
        ({0: ask(1, 0), 1: ask(1, LARGE)}, Again()),
    ],
    ids=str,
)  # fmt: skip
def test_what_ranks_say_decides_what_they_are_told(said: Any, told: Any) -> None:
    assert decide(said) == told


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({0: Value(1, False), 1: Value(1, False)}, "never asks the other ranks"),
        ({0: Value(1), 1: ask(1)}, r"some ranks call idist\.all_reduce and others have"),
        ({0: ask(1), 1: ask(1, detail="MAX")}, "ask different things at the same place"),
        ({0: ask(torch.ones(2)), 1: ask(torch.ones(3))}, "cannot all_reduce their values"),
        (
            {
                0: ask(1, operation="broadcast", detail=2),
                1: ask(1, operation="broadcast", detail=2),
            },
            "broadcasts from rank 2 of 2",
        ),
        ({0: ask(1), 1: ask(1, 2)}, "different numbers of things at once"),
    ],
)
def test_what_does_not_fit_is_refused(said: Any, words: str) -> None:
    with pytest.raises(InexactError, match=words):
        decide(said)


# -- what is asked at once -------------------------------------------------------------------------


class Three(Metric):
    """Asks for three at once; looks at them in some way."""

    def __init__(self, look: Callable[[Any], Any]) -> None:
        self.look = look
        super().__init__()

    def reset(self) -> None:
        self._a, self._b, self._c = 0, torch.zeros(2), 0.0

    def update(self, output: Any) -> None:
        self._a += 1
        self._b = self._b + output
        self._c = max(self._c, float(output))

    @sync_all_reduce("_a", "_b", "_c:MAX")
    def compute(self) -> Any:
        return self.look(self)


@pytest.mark.parametrize(
    "look",
    [
        lambda m: (m._a, m._b.tolist(), m._c),
        lambda m: [f"{m._a:d}", str(m._b), repr(m._c)],
        lambda m: m._a if isinstance(m._a, int) else 0,
        lambda m: torch.tensor([m._a, m._c]).tolist(),
        lambda m: (m._b / m._a + m._c).tolist(),
        lambda m: {"a": m._a, "b": [m._b[0].item(), -m._c]},
        lambda m: idist.all_reduce(m._a),
        lambda m: idist.all_gather(3)[0] + max(m._c, m._a, 2),
        lambda m: None if m._a == 0 else math.sqrt(m._a),
        lambda m: 1 / (type(m._a) is int and m._a),
    ],
)
def test_attributes_are_asked_for_at_once_and_looked_at_when_they_are_there(look: Any) -> None:
    batches = [torch.tensor(float(number)) for number in range(5)]
    expected = over_ranks(lambda: Three(look), batches, 1)
    for world in (2, 3):
        found = over_ranks(lambda: Three(look), batches, world)
        assert found == (expected * world if look.__code__.co_names == ALL_REDUCE else expected)


ALL_REDUCE = ("idist", "all_reduce", "_a")


# -- nothing is left behind -----------------------------------------------------------------------


class Sum(Metric):
    def reset(self) -> None:
        self._sum = torch.zeros(2)
        self._parts: dict[str, Any] = {"all": [torch.zeros(())]}
        self._queue: deque[int] = deque()

    def update(self, output: Any) -> None:
        self._sum += torch.tensor([float(output.sum()), len(output)])

    def compute(self) -> Any:
        return idist.all_reduce(self._sum.clone()).tolist()


class Dividing(Sum):
    """Changes its own state, in all the ways there are."""

    def compute(self) -> Any:
        self._sum /= 2
        self._parts["all"].append(1)
        self._parts["new"] = len(self._parts["all"])
        self._queue.append(1)
        once = idist.all_reduce(self._sum)[1]
        self._sum *= 2
        twice = idist.all_reduce(self._sum.clone())[1]
        self.more = len(self._queue)
        return once.item(), twice.item(), self._parts["new"], idist.all_reduce(self.more)


@pytest.mark.parametrize("world", [2, 3])
def test_a_computation_that_changes_its_state_begins_each_time_as_it_was(world: int) -> None:
    batches = [torch.ones(n) for n in (3, 1, 2)]
    found = over_ranks(Dividing, batches, world)
    # As if it had run once on each rank: what was reduced in place is doubled there.
    assert found == (6.0, 6.0 * world, 2, world)


def test_a_value_that_is_the_state_itself_stays_what_it_was() -> None:
    class Itself(Sum):
        def compute(self) -> Any:
            idist.all_reduce(self._sum)
            return {"sum": self._sum}

    found = over_ranks(Itself, [torch.ones(n) for n in (3, 1, 2)], 2)
    assert found["sum"].tolist() == [6.0, 6.0]


def test_a_large_tensor_that_is_changed_is_refused_by_name() -> None:
    class Big(Sum):
        def reset(self) -> None:
            self._sum = torch.zeros(5 << 20)

        def update(self, output: Any) -> None:
            self._sum += 1

        def compute(self) -> Any:
            self._sum += 1
            return idist.all_reduce(self._sum.sum())

    with pytest.raises(EvaluationError, match=r"'x' \(Big\) changes a tensor of 5242880 numbers"):
        over_ranks(Big, [1, 1], 2)


def test_of_many_tensors_only_some_are_copied() -> None:
    class Holding:
        def __init__(self) -> None:
            self.rows = [torch.zeros(1 << 20) for _ in range(9)]  # 36 MiB
            self.sum = torch.zeros(())

    holding = Holding()
    snapshot = StateSnapshot([holding])
    for tensor in (holding.sum, *holding.rows):
        tensor += 1
    assert snapshot.put_back() is not None
    assert holding.sum == 0.0
    assert sum(float(row[0]) for row in holding.rows) == 6.0  # three fit, beside the sum


def test_a_snapshot_puts_back_what_is_the_users() -> None:
    class Helper:
        def __init__(self) -> None:
            self.items = [1]

    class Holding:
        def __init__(self) -> None:
            self.helper = Helper()
            self.nested: Any = [{"a": (deque([1]), {2})}]
            self.table = {number: [number] for number in range(5000)}
            self.model = torch.nn.Linear(2, 2)
            self.tensor = torch.tensor([float("nan"), 1.0])
            self.one = torch.zeros(3, 3)[:1, 1]  # whose stride is 3

    holding = Holding()
    found = inner_items(holding, is_users)
    assert found == [holding, holding.helper]
    snapshot = StateSnapshot(found)
    holding.helper.items.append(2)
    holding.nested[0]["a"][0].append(2)
    holding.nested[0]["a"][1].clear()
    holding.nested.append(3)
    holding.table[5000] = []
    holding.model = None  # type: ignore[assignment]
    holding.new = 1  # type: ignore[attr-defined]
    holding.tensor[1] = 5.0
    holding.one += 1
    assert snapshot.put_back() is None
    assert holding.helper.items == [1]
    assert holding.nested == [{"a": (deque([1]), {2})}]
    assert len(holding.table) == 5000
    assert isinstance(holding.model, torch.nn.Linear)
    assert not hasattr(holding, "new")
    assert holding.tensor[1] == 1.0
    assert holding.one == 0.0


# -- lists ----------------------------------------------------------------------------------------


class Bag:
    def __init__(self) -> None:
        self.rows: Any = []
        self.setting: Any = None
        self.count: Any = 0
        self.sums: Any = [torch.zeros(())]
        self.helper = object()


def grow(bag: Bag, change: Callable[[Bag], None], **options: Any) -> Any:
    marks = ListMarks([Holder(bag, **options)])
    marks.note()
    for _ in range(2):
        bag.rows.extend("ab")
        change(bag)
        marks.note()
    return marks.report()


def set_(name: str, value: Any) -> Callable[[Bag], None]:
    return lambda bag: setattr(bag, name, value(getattr(bag, name)))


@pytest.mark.parametrize(
    ("change", "counting"),
    [
        (lambda bag: None, []),
        (set_("setting", lambda old: "multiclass"), []),
        (set_("setting", lambda old: 3), []),
        (set_("setting", lambda old: (old or 0) + 1), ["Bag.setting"]),
        (set_("count", lambda old: old + 1), ["Bag.count"]),
        (set_("rows", lambda old: old[1:]), ["Bag.rows"]),
        (set_("rows", lambda old: ["z", *old]), ["Bag.rows"]),
        (set_("sums", lambda old: [old[0].add_(1)]), ["Bag.sums"]),
        (set_("setting", lambda old: {"a": 1}), ["Bag.setting"]),
    ],
)
def test_what_changes_beside_lists_may_count(change: Any, counting: list[str]) -> None:
    report = grow(Bag(), change, known=True)
    assert report.counting == counting
    assert report.batches == 2
    if "Bag.rows" not in counting:
        assert report.lists == {(0, "rows"): (list("abab"), [0, 2, 4])}


def test_a_tensor_of_inference_mode_is_taken_for_a_count() -> None:
    bag = Bag()
    with torch.inference_mode():
        bag.count = torch.zeros(2)
        report = grow(bag, lambda bag: bag.count.add_(1), known=True)
    assert report.counting == ["Bag.count"]


def test_of_an_unknown_class_nobody_knows_what_its_objects_do() -> None:
    assert grow(Bag(), lambda bag: None).counting == ["Bag.helper"]
    assert grow(Bag(), lambda bag: None, names=("rows", "setting")).counting == []
    assert grow(Bag(), set_("setting", lambda old: 3), names=("rows", "setting")).counting == [
        "Bag.setting"
    ]


def test_an_epoch_metric_computes_once_from_all_in_the_order_of_the_dataset() -> None:
    calls: list[list[float]] = []

    def first(y_pred: Tensor, y: Tensor) -> float:
        calls.append(y_pred.tolist())
        return float(y_pred[0])

    batches = [(torch.full((2,), float(n)), torch.zeros(2)) for n in range(7)]
    for world in (2, 3, 9):
        calls.clear()
        make = lambda: im.EpochMetric(first, check_compute_fn=False)  # noqa: E731
        assert over_ranks(make, batches, world) == 0.0
        assert calls == [[float(n) for n in range(7) for _ in range(2)]]


def test_a_rank_whose_lists_stayed_empty_is_left_out_or_given_others() -> None:
    class Filtering(im.EpochMetric):
        def update(self, output: Any) -> None:
            if len(output[0]) > 1:
                super().update(output)

    batches = [(torch.ones(n), torch.zeros(n)) for n in (1, 2, 1, 3)]
    for world in (2, 3, 4):
        make = lambda: Filtering(lambda p, y: len(p), check_compute_fn=False)  # noqa: E731
        assert over_ranks(make, batches, world) == 5
    with pytest.raises(NotComputableError, match="at least one example"):
        over_ranks(make, batches[:1], 3)


# -- on real ranks --------------------------------------------------------------------------------


class LargeCounts(Metric):
    """Counts in a large tensor; has none before the first sample."""

    def __init__(self, op: str, dtype: torch.dtype) -> None:
        self.op, self.dtype = op, dtype
        super().__init__()

    def reset(self) -> None:
        self.counts: Any = 0

    def update(self, output: Any) -> None:
        counts = torch.zeros(1100, 1100, dtype=self.dtype)
        counts[int(output[0])] = int(output[0]) + 1
        self.counts = self.counts + counts

    def compute(self) -> Any:
        found: Any = idist.all_reduce(self.counts, op=self.op)
        return found[:5, 0].clone()


class Reducing(Sum):
    @sync_all_reduce("_sum")
    def compute(self) -> Any:
        return (self._sum[0] / self._sum[1]).item()


def evaluate(rank: int, batches: int) -> dict[str, Any]:
    evaluator = Engine(lambda engine, batch: batch)
    for op in ("SUM", "MIN", "MAX"):
        for dtype in (torch.int32, torch.int64):
            LargeCounts(op, dtype).attach(evaluator, f"{op} of {dtype}")
    Reducing().attach(evaluator, "mean")
    im.EpochMetric(lambda p, y: p.tolist(), check_compute_fn=False,
                   output_transform=lambda x: (x, x)).attach(evaluator, "order")  # fmt: skip
    if hasattr(im, "fairness"):  # each batch is of one group, so that ranks see one of two only
        im.fairness.SubgroupMetric(
            im.Precision(average=False), [0, 1, 9],
            output_transform=lambda x: (torch.eye(5)[x.long()], x.long(), x.long() % 2),
        ).attach(evaluator, "groups")  # fmt: skip
    ((im.Recall(average=True, output_transform=lambda x: (torch.eye(5)[x.long()], x.long()))
      + 1) * 2).attach(evaluator, "composed")  # fmt: skip
    data = [torch.tensor([float(number)]) for number in range(batches)]
    return EvalHook(data, evaluator, model=torch.nn.Linear(1, 1)).evaluate(track=False).metrics


@pytest.mark.parametrize("batches", [5, 2])
def test_large_counts_are_reduced_together_also_by_ranks_that_have_none(batches: int) -> None:
    expected = evaluate(0, batches)
    assert expected["order"] == [float(number) for number in range(batches)]
    for found in on_ranks(3, evaluate, batches):
        assert found["mean"] == pytest.approx(expected["mean"])
        assert found["groups"] == expected["groups"]
        for name in ("order", "composed", *(name for name in expected if str(name)[:3] == "SUM")):
            assert found[name] == expected[name]
        for name in expected:
            if str(name).startswith("MAX"):
                assert found[name] == list(range(1, batches + 1)) + [0] * (5 - batches)


class Dying(Sum):
    """Kills rank 1 when it computes for the second time, knowing an answer."""

    def compute(self) -> Any:
        first: Any = idist.all_reduce(self._sum.clone())
        if idist.get_rank() == 1 and first is not None:
            die()
        return idist.all_reduce(first).tolist()


def evaluate_dying(rank: int) -> None:
    evaluator = Engine(lambda engine, batch: batch)
    Dying().attach(evaluator, "x")
    EvalHook([torch.ones(1)] * 4, evaluator, model=torch.nn.Linear(1, 1)).evaluate(track=False)


def test_a_rank_that_dies_while_it_asks_ends_the_others() -> None:
    first, dead, last = on_ranks(3, evaluate_dying, check=False)
    assert dead.code == -9
    for outcome in (first, last):
        assert outcome.error[0] == "EvaluationError"
        assert "rank 1 failed: ConnectionError" in outcome.error[1]
