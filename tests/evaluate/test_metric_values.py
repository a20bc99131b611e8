"""Metrics of every kind: plain in the record, tensors for handlers and loggers, never an error."""

from __future__ import annotations

import array
import enum
import math
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from ignite.metrics import ConfusionMatrix
from torch import nn

from helpers.private import to_compare, to_record, to_state
from helpers.ranks import on_ranks
from ignite_evalhook import EvalHook, History, create_evaluator
from ignite_evalhook.exceptions import EvaluationError


class Silent:
    def __repr__(self) -> str:
        raise KeyError("no words")


class Word(str, enum.Enum):
    GOOD = "good"


class Pair(NamedTuple):
    left: Any
    right: Any


class Endless(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise OSError("gone")


def holding_itself(container: Any) -> Any:
    if isinstance(container, list):
        container.append(container)
    else:
        container["self"] = container
    return container


def nested(levels: int) -> list[Any]:
    return [] if levels == 0 else [nested(levels - 1)]


HUGE = 10**400
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # some versions of torch call these tensors deprecated
    QUANTIZED = torch.quantize_per_tensor(torch.tensor([0.5, 1.0]), 0.5, 0, torch.qint8)

NUMBERS: list[tuple[Any, float]] = [
    (True, 1.0),
    (np.bool_(False), 0.0),
    (np.longdouble("0.5"), 0.5),
    (np.float16(0.5), 0.5),
    (np.array([np.longdouble("0.5")]), 0.5),
    (Decimal("0.5"), 0.5),
    (Fraction(1, 2), 0.5),
    (torch.tensor([[0.5]]), 0.5),
    (torch.tensor([0.5], requires_grad=True), 0.5),
    (torch.tensor([0.5]).to_sparse(), 0.5),
    (QUANTIZED[0], 0.5),
    (np.array([[0.5]]), 0.5),
    (np.array([Decimal("0.5")], dtype=object), 0.5),
    (array.array("d", [0.5]), 0.5),
]


@pytest.mark.parametrize(("value", "number"), NUMBERS, ids=lambda value: repr(value)[:30])
def test_what_is_one_number_is_a_float_everywhere(value: Any, number: float) -> None:
    for found in (to_record(value), to_state(value)):
        assert type(found) is float
        assert found == number


ARRAYS: list[tuple[Any, Any]] = [
    (torch.tensor([1, 2]), [1, 2]),
    (torch.ones(0), []),
    (torch.eye(2).to_sparse(), [[1.0, 0.0], [0.0, 1.0]]),
    (QUANTIZED, [0.5, 1.0]),
    (torch.tensor([0.5, 1.0], dtype=torch.bfloat16), [0.5, 1.0]),
    (nn.Parameter(torch.ones(2)), [1.0, 1.0]),
    (np.array([[0.1, 0.2]], dtype=">f8"), [[0.1, 0.2]]),
    (np.array([0.5, math.nan], dtype=np.float32), [0.5, math.nan]),
    (np.array([3, 4], dtype=np.uint64), [3, 4]),
]


@pytest.mark.parametrize(("value", "listed"), ARRAYS, ids=lambda value: repr(value)[:30])
def test_arrays_are_nested_lists_in_the_record_and_tensors_for_handlers(
    value: Any, listed: Any
) -> None:
    assert repr(to_record(value)) == repr(listed)
    state = to_state(value)
    assert isinstance(state, torch.Tensor)
    assert not state.requires_grad
    assert repr(to_record(state)) == repr(listed)


OTHERS: list[tuple[Any, Any]] = [
    (None, "None"),
    (HUGE, str(HUGE)),
    ([HUGE, 1], [str(HUGE), 1.0]),
    (10**5000, "<int whose repr() raises ValueError>"),
    (1j, "1j"),
    (torch.tensor(1j), "tensor(0.+1.j)"),
    (np.array([1j, 2.0]), ["1j", "(2+0j)"]),
    ({3}, "{3}"),
    (b"ab", "b'ab'"),
    (Silent(), "<Silent whose repr() raises KeyError>"),
    (Word.GOOD, "good"),
    (np.str_("s"), "s"),
    (np.datetime64("2026-01-02", "ns"), "2026-01-02T00:00:00.000000000"),
    (np.array(["2026-01", "2026-02"], dtype="M8[M]"), ["2026-01", "2026-02"]),
    (np.timedelta64(3, "ns"), "3 nanoseconds"),
    (torch.ones(2, device="meta"), "tensor(..., device='meta', size=(2,))"),
    (holding_itself([1]), [1.0, "[1, [...]]"]),
    (holding_itself({}), {"self": "{'self': {...}}"}),
    (Endless(), "{}"),
    (Pair(1, "x"), [1.0, "x"]),
    ({1: 2, (1, 2): {"a": Silent}}, {"1": 2.0, "(1, 2)": {"a": repr(Silent)}}),
    (np.array([np.longdouble(1), 2]), [1.0, 2.0]),
    (array.array("i", [1, 2]), [1.0, 2.0]),
]


@pytest.mark.parametrize(("value", "recorded"), OTHERS, ids=lambda value: as_id(value))
def test_what_is_no_number_is_text(value: Any, recorded: Any) -> None:
    assert to_record(value) == to_state(value) == recorded


def as_id(value: Any) -> str:
    return to_record(value)[:30] if isinstance(to_record(value), str) else type(value).__name__


def test_deep_nesting_ends_in_text_and_a_large_sparse_tensor_stays_one() -> None:
    assert str(to_record(nested(900))).endswith("]" * 50)
    large = torch.sparse_coo_tensor([[0], [0]], [1.0], (10**6, 10**6), check_invariants=True)
    assert to_record(large).startswith("tensor(indices=")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text()
    | st.binary() | st.fractions() | st.decimals(allow_nan=True) | st.builds(object),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner,
                                                              max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(anything)
def test_law_what_is_recorded_is_plain_and_stays_as_it_is(value: Any) -> None:
    found = to_record(value)
    assert to_record(found) == found or "nan" in repr(found)
    assert type(found) in (float, str, list, dict)


def test_objects_are_the_same_on_all_ranks_where_their_type_is() -> None:
    assert to_compare({"a": object()}) == to_compare({"a": object()}) != to_compare({"a": {1}})
    assert to_compare(torch.ones(2)) != to_compare(torch.zeros(2))


# -- in an evaluation -----------------------------------------------------------------------------


def test_no_odd_value_ends_training_and_each_is_read_back_from_the_file(tmp_path: Path) -> None:
    values = [value for value, _ in (*NUMBERS, *ARRAYS, *OTHERS)]
    metrics = {f"m{number}": value for number, value in enumerate(values)}
    hook = EvalHook(
        None, lambda trainer: {**metrics, "a\ud800": "b\udfff", "acc": 0.5}, model=nn.Linear(1, 1),
        save_best="acc", out_dir=tmp_path,
    ).attach(Engine(lambda engine, batch: None))  # fmt: skip
    record = hook.evaluate()
    assert repr(History.read(tmp_path / "history.jsonl")[0].metrics) == repr(record.metrics)
    assert hook.best is not None


@pytest.mark.parametrize("value", [HUGE, Silent(), 1j, {1}, torch.ones(2), None, b""], ids=as_id)
def test_as_a_score_it_is_no_number_with_words_and_may_be_skipped(value: Any) -> None:
    def hook(**options: Any) -> EvalHook:
        return EvalHook(
            None, lambda trainer: {"acc": value}, model=nn.Linear(1, 1), save_best="acc",
            out_dir=False, **options,
        ).attach(Engine(lambda engine, batch: None))  # fmt: skip

    with pytest.raises(EvaluationError, match="'acc' is no number"):
        hook().evaluate()
    skipping = hook(on_bad_score="skip")
    skipping.evaluate()
    assert skipping.best is None


def classes(number: int) -> tuple[Engine, list[Any]]:
    y = torch.arange(number)
    evaluator = create_evaluator(nn.Identity(), {"cm": ConfusionMatrix(number)}, device="cpu")
    return evaluator, [(nn.functional.one_hot(y, number).float(), y)]


def test_handlers_get_the_tensor_that_a_run_by_hand_gives_them() -> None:
    evaluator, data = classes(3)
    seen: list[Any] = []
    evaluator.add_event_handler(Events.COMPLETED, lambda e: seen.append(e.state.metrics["cm"]))
    hook = EvalHook(
        data, evaluator, compute_metrics=lambda results: {"rows": np.ones((2, 2)), "acc": [1]},
        derive={"trace": lambda metrics: torch.tensor(metrics["cm"]).trace()},
    ).attach(Engine(lambda engine, batch: None))  # fmt: skip
    record = hook.evaluate()
    state = dict(evaluator.state.metrics)
    evaluator.run(data)
    assert torch.equal(seen[0], seen[1])
    assert record.metrics["cm"] == seen[0].tolist()
    assert record.metrics["rows"] == state["rows"].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert state["trace"] == record.metrics["trace"] == 3.0


def test_a_large_array_makes_no_tag_for_each_of_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = pytest.importorskip("ignite.handlers.tensorboard_logger")
    evaluator, data = classes(150)
    tags: list[str] = []

    class Writer:
        def add_scalar(self, tag: str, *args: Any) -> None:
            tags.append(tag)

    class Logger(handlers.TensorboardLogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.writer = Writer()

    logger = Logger()
    logger.attach_output_handler(evaluator, Events.COMPLETED, tag="val", metric_names="all")
    hook = EvalHook(data, evaluator, compute_metrics=lambda results: {"acc": torch.ones(1)})
    hook.attach(Engine(lambda engine, batch: None))
    with pytest.warns(UserWarning, match="can not log metrics value type"):
        hook.evaluate()
    assert tags == ["val/acc"]


def _values_of_rank(rank: int) -> tuple[Any, ...]:
    evaluator, data = classes(3)
    evaluator.add_event_handler(
        Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(place=object(), some={"a", "b"})
    )
    hook = EvalHook(
        data * 3, evaluator, save_best="acc", out_dir=False,
        compute_metrics=lambda results: {
            "acc": torch.tensor([len(results) / 9]), "huge": HUGE, "a\ud800": {"in": np.ones(2)},
            "self": holding_itself([]), "sparse": torch.eye(2).to_sparse(),
        },
    ).attach(Engine(lambda engine, batch: None))  # fmt: skip
    metrics = hook.evaluate().metrics
    state = evaluator.state.metrics
    kinds = [type(state[name]) for name in ("cm", "acc", "sparse")]
    return metrics, kinds, type(state["a\ud800"]["in"]), state["cm"].tolist()


def test_two_ranks_have_the_same_values_and_the_same_tensors() -> None:
    (one, *kinds), (other, *others) = on_ranks(2, _values_of_rank)
    assert repr(one) == repr(other)
    assert one["acc"] == 1.0
    assert one["sparse"] == [[1.0, 0.0], [0.0, 1.0]]
    assert kinds == others
    assert kinds[0] == [torch.Tensor, float, torch.Tensor]
    assert kinds[1:] == [torch.Tensor, torch.eye(3).mul(3).long().tolist()]
