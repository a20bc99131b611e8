"""Tests of the val loss: how it travels in outputs, what it weighs, what its mean is."""

from __future__ import annotations

import copy
import math
import pickle
import random
import subprocess
import sys
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from helpers.private import LossMeter, ValLoss, _loss_meter, count_samples, split_val_loss

Pair = namedtuple("Pair", "y_pred y loss")

# 5 samples whose losses average to exactly 2.0.
LOSSES = [1.0, 1.0, 1.0, 2.0, 5.0]
BATCHES = [[1.0, 1.0], [1.0, 2.0], [5.0]]


def t(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """One number gives a 0-d tensor, several a vector."""
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=dtype)


def vector(values: Iterable[float], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(list(values), dtype=dtype)


def measure(batches: Iterable[tuple[ValLoss, int | None]]) -> dict[str, float]:
    meter = LossMeter()
    for val_loss, samples in batches:
        meter.update(val_loss, samples)
    return meter.compute()


def bits(result: dict[str, float]) -> dict[str, str]:
    return {name: value.hex() for name, value in result.items()}


class Element:
    """What MMEngine's BaseDataElement looks like from outside."""

    def __init__(self, **data: Any) -> None:
        self.__dict__.update(data)

    def keys(self) -> list[str]:
        return list(self.__dict__)


# ---------------------------------------------------------------- split_val_loss

LOSS = ValLoss(t(2.0))
X, Y = torch.zeros(4, 3), torch.zeros(4)


@pytest.mark.parametrize(
    ("outputs", "rest"),
    [
        ((X, Y, LOSS), (X, Y)),
        ((X, LOSS), (X,)),
        ((LOSS,), ()),
        ([X, Y, LOSS], [X, Y]),
        ([LOSS], []),
        (Pair(X, Y, LOSS), (X, Y)),
        ({"y_pred": X, "loss": LOSS}, {"y_pred": X}),
        ({"loss": LOSS, "y_pred": X}, {"y_pred": X}),
        (OrderedDict(loss=LOSS), {}),
        (LOSS, None),
    ],
)
def test_a_val_loss_is_taken_off_its_outputs(outputs: Any, rest: Any) -> None:
    found_rest, found = split_val_loss(outputs)
    assert found is LOSS
    assert type(found_rest) is type(rest)
    if isinstance(rest, dict):
        assert list(found_rest) == list(rest)
        assert all(found_rest[key] is rest[key] for key in rest)
    elif rest is not None:
        assert len(found_rest) == len(rest)
        assert all(a is b for a, b in zip(found_rest, rest, strict=True))


@pytest.mark.parametrize(
    "outputs",
    [
        None,
        1.0,
        "loss",
        X,
        (),
        [],
        {},
        (X, Y),
        [X, Y],
        {"loss": t(1.0)},
        (X, {"loss": t(1.0)}),  # a mapping, not an object
        (X, OrderedDict(loss=t(1.0))),
        [["loss"]],
        (X, "loss"),
        [Element(loss=t(1.0), scores=X)],
        [Element(scores=X)],
        [Element()],
        Element(loss=t(1.0)),  # not in a tuple or list
        (X, Element),  # a class: keys() needs an instance
        {"a": Element(loss=t(1.0))},
        iter([X]),
    ],
)
def test_outputs_without_a_val_loss_are_left_alone(outputs: Any) -> None:
    rest, found = split_val_loss(outputs)
    assert rest is outputs
    assert found is None


def test_what_only_resembles_an_object_with_a_loss_is_left_alone() -> None:
    class Odd:
        loss = 1.0
        keys = "loss"

    class Store:
        def keys(self, prefix: str) -> list[str]:
            raise NotImplementedError

    class Box(UserDict):  # type: ignore[type-arg]
        loss = 1.0

    class Sample:
        loss = 1.0

        def keys(self) -> list[str]:
            return ["loss"]

    for item in (Odd(), Store(), Box(loss=1.0), Sample):
        outputs = (X, item)
        assert split_val_loss(outputs) == (outputs, None)


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("loss", [t(2.0), {"loss_a": t(2.0)}])
def test_an_object_with_nothing_but_a_loss_is_a_val_loss(kind: type, loss: Any) -> None:
    outputs = kind([X, Element(loss=loss)])
    rest, found = split_val_loss(outputs)
    assert type(rest) is kind
    assert len(rest) == 1
    assert found is not None
    assert measure([(found, 1)])["val_loss"] == 2.0


def test_an_object_may_carry_a_val_loss_with_its_weight() -> None:
    assert split_val_loss([X, Element(loss=LOSS)])[1] is LOSS


def test_the_models_own_list_is_not_changed() -> None:
    outputs = [X, Y, LOSS]
    rest, _ = split_val_loss(outputs)
    assert len(outputs) == 3
    assert rest is not outputs


@pytest.mark.parametrize(
    "outputs", [(LOSS, X), [X, LOSS, Y], (LOSS, LOSS), (LOSS, Element(loss=Y))]
)
def test_a_val_loss_that_is_not_last_is_refused(outputs: Any) -> None:
    with pytest.raises(ValueError, match=r"must be the last item of the outputs, got one at pos"):
        split_val_loss(outputs)


def test_two_val_losses_in_a_mapping_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one ValLoss, got 2 under the keys \['a', 'b'\]"):
        split_val_loss({"a": LOSS, "b": LOSS})


# ----------------------------------------------------------------- count_samples

IMAGES = [torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)]


@pytest.mark.parametrize(
    ("output", "batch", "samples"),
    [
        # the output tells
        (torch.zeros(4, 2), None, 4),
        (torch.zeros(4, 2), (torch.zeros(7),), 4),
        ((torch.zeros(4, 2), torch.zeros(5)), None, 4),
        ({"boxes": torch.zeros(4, 2)}, None, 4),
        ({"name": "a", "boxes": {"deep": (None, torch.zeros(4))}}, None, 4),
        ((t(0.1), torch.zeros(4)), None, 4),
        (np.zeros((4, 2)), None, 4),
        (["a", "b", "c"], None, 3),
        ([{"label": 1}, {"label": 2}], (torch.zeros(2, 3), torch.zeros(2)), 2),
        ([torch.zeros(7, 4), torch.zeros(3, 4)], (torch.zeros(2, 3),), 2),
        (["a", "b"], (torch.zeros(5, 3),), 2),
        (torch.zeros(0, 2), (torch.zeros(4),), 0),
        # a list of outputs, not of samples
        ([torch.zeros(4, 2), torch.zeros(4, 8)], [torch.zeros(4, 3), torch.zeros(4)], 4),
        ([torch.zeros(4, 2), torch.zeros(4, 8)], None, 2),
        ([torch.zeros(4, 2), torch.zeros(3, 8)], (torch.zeros(4, 3),), 2),
        (([torch.zeros(4, 2)] * 3, torch.zeros(4)), (torch.zeros(4, 3),), 4),
        ([torch.zeros(2, 3), torch.zeros(2, 3)], (torch.zeros(2, 3),), 2),
        # the output does not tell, the batch does
        (None, (torch.zeros(4, 3), torch.zeros(4)), 4),
        ((), (torch.zeros(4, 3), torch.zeros(4)), 4),
        ([], [torch.zeros(4, 3), torch.zeros(4)], 4),
        ({}, {"x": torch.zeros(4, 3)}, 4),
        ("text", torch.zeros(4), 4),
        (3.0, torch.zeros(4), 4),
        (t(0.3), (torch.zeros(4, 3),), 4),
        ({"accuracy": t(0.3)}, (torch.zeros(4, 3),), 4),
        (None, {"epoch": 3, "x": torch.zeros(4)}, 4),
        (None, {"epoch": t(3.0), "x": torch.zeros(4)}, 4),
        (None, (np.zeros((4, 2)), np.zeros(4)), 4),
        (None, ({"x": torch.zeros(4)}, {"y": torch.zeros(4)}), 4),
        (None, [[torch.zeros(4), torch.zeros(4)], torch.zeros(4)], 4),
        (None, {"inputs": IMAGES, "data_samples": [object(), object()]}, 2),
        (None, (tuple(IMAGES), ({}, {})), 2),
        (None, (["a", "b"], [1, 2]), 2),
        (None, [["a", "b", "c"], [1, 2, 3]], 3),
        (None, [{"image": IMAGES[0]}, {"image": IMAGES[1]}, {"image": IMAGES[0]}], 3),
        (None, [(IMAGES[0], 1), (IMAGES[1], 2), (IMAGES[0], 1)], 3),
        (None, ["a", "b"], 2),
        # last resorts
        (t(0.3), None, 1),
        ((t(0.3), "a"), None, 1),
        ([], None, 0),
        ([], [], 0),
        # nobody tells
        (None, None, None),
        ("text", "text", None),
        ((), None, None),
        ({}, {}, None),
        (3.0, 4, None),
        (("a", "b"), ("c",), None),
        (object(), object(), None),
        (Element(shape="round"), None, None),
        (None, (), None),
    ],
)
def test_samples_are_counted(output: Any, batch: Any, samples: int | None) -> None:
    assert count_samples(output, batch) == samples


# ----------------------------------------------------------------------- ValLoss


@pytest.mark.parametrize(
    ("val_loss", "text"),
    [
        (lambda: ValLoss(t(0.5)), "ValLoss(float32[])"),
        (lambda: ValLoss(0.5, weight=32), "ValLoss(0.5, weight=32)"),
        (lambda: ValLoss(torch.zeros(8, device="meta")), "ValLoss(float32[8]@meta)"),
        (lambda: ValLoss(Y, weight=Y), "ValLoss(float32[4], weight=float32[4])"),
        (
            lambda: ValLoss({"loss_a": t(1.0), "all": [X] * 5}, weight={"all": 2}, total="all"),
            "ValLoss({'loss_a': float32[], 'all': [float32[4, 3], float32[4, 3], float32[4, 3], "
            "...]}, weight={'all': 2}, total='all')",
        ),
    ],
)
def test_repr_tells_shapes_and_reads_no_values(val_loss: Any, text: str) -> None:
    assert repr(val_loss()) == text


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (("low",), {}, TypeError, "loss must be a tensor or a number, got str"),
        ((None,), {}, TypeError, "loss must be a tensor or a number, got NoneType"),
        (([t(1.0), t(2.0)],), {}, TypeError, r"got \[float32\[\], float32\[\]\]; torch.stack"),
        ((torch.zeros(2, dtype=torch.cfloat),), {}, TypeError, r"real, got complex64\[2\]"),
        (({"loss": torch.zeros((), dtype=torch.cfloat)},), {}, TypeError, "loss must be real"),
        (({"loss": {"a": t(1.0)}},), {}, TypeError, "loss must be a tensor or a number, got dict"),
        (({"loss": ["a"]},), {}, TypeError, r"loss\[0\] must be a tensor or a number, got str"),
        (({"loss": []},), {}, ValueError, "the losses 'loss' are an empty list"),
        (({1: t(1.0)},), {}, TypeError, "names of the losses must be strings, got 1"),
        (({},), {}, ValueError, r"no name in \[\] contains 'loss'"),
        (({"acc": t(1.0)},), {}, ValueError, r"no name in \['acc'\] contains 'loss'.*total='...'"),
        (
            ({"loss": t(1.0)},),
            {"total": "all"},
            ValueError,
            "total='all' is no entry of the losses",
        ),
        ((t(1.0),), {"total": "loss"}, ValueError, r"names an entry of a mapping.* float32\[\]"),
        (({"val_loss": t(1.0)},), {}, ValueError, "may not be called 'val_loss'"),
        (({"val_loss": t(1.0), "loss": t(1.0)},), {"total": "loss"}, ValueError, "'val_loss'"),
        ((t(1.0),), {"weight": -1}, ValueError, "weight must be finite and not negative, got -1"),
        ((t(1.0),), {"weight": math.nan}, ValueError, "weight must be finite"),
        ((t(1.0),), {"weight": math.inf}, ValueError, "weight must be finite"),
        ((t(1.0),), {"weight": "4"}, TypeError, "weight must be a number or a tensor, got str"),
        ((t(1.0),), {"weight": {"loss": 1}}, TypeError, "weight may be a mapping only where"),
        ((t(1.0),), {"weight": Y}, ValueError, r"one entry a sample, shape \(4,\), but.*sum\(\)"),
        ((t(1.0),), {"weight": torch.ones(1)}, ValueError, "one entry a sample"),
        ((Y,), {"weight": torch.ones(3)}, ValueError, "3 entries, but the loss has .4. samples"),
        ((Y,), {"weight": torch.ones(4, 1)}, ValueError, r"0-d.*or 1-d.*got shape \(4, 1\)"),
        ((Y,), {"weight": torch.ones((), dtype=torch.cfloat)}, TypeError, "weight must be real"),
        (({"loss": Y},), {"weight": {"los": 1}}, ValueError, r"weight names \['los'\]"),
        (({"loss": Y},), {"weight": {"loss": -2}}, ValueError, r"weight\['loss'\] must be finite"),
    ],
)
def test_a_val_loss_that_cannot_be_is_refused(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ValLoss(*arguments, **options)


def test_a_val_loss_takes_only_the_loss_by_position() -> None:
    with pytest.raises(TypeError, match="positional"):
        ValLoss(t(1.0), 4)  # type: ignore[misc]


def test_a_val_loss_does_not_follow_changes_of_the_models_dict() -> None:
    losses: dict[str, Any] = {"loss": t(1.0)}
    val_loss = ValLoss(losses)
    losses["acc"] = "high"
    assert measure([(val_loss, 1)]) == {"val_loss": 1.0, "loss": 1.0}


def test_a_val_loss_can_be_copied_and_pickled() -> None:
    for twin in (copy.copy(LOSS), copy.deepcopy(LOSS), pickle.loads(pickle.dumps(LOSS))):
        assert measure([(twin, 1)]) == {"val_loss": 2.0}


# -------------------------------------------------------------- LossMeter, tables


def test_nothing_seen_is_an_empty_result() -> None:
    meter = LossMeter()
    assert meter.compute() == {}
    assert meter.names == ()
    assert meter.state() == {}


@pytest.mark.parametrize(
    ("batches", "result"),
    [
        # a mean by its samples, its weight, its weight on a device
        ([(ValLoss(t(1.0)), 2), (ValLoss(t(4.0)), 1)], {"val_loss": 2.0}),
        ([(ValLoss(1), 2), (ValLoss(np.float32(4.0)), 1)], {"val_loss": 2.0}),
        ([(ValLoss(t(1.0), weight=6), 2), (ValLoss(t(4.0), weight=3), 9)], {"val_loss": 2.0}),
        ([(ValLoss(t(1.0), weight=6), None), (ValLoss(4, weight=t(3.0)), None)], {"val_loss": 2.0}),
        ([(ValLoss(t(1.0)), 2), (ValLoss(t(4.0), weight=np.int64(1)), None)], {"val_loss": 2.0}),
        (  # numbers and tensors keep their places among each other
            [(ValLoss(1), 1), (ValLoss(2, weight=t(4.0)), 1), (ValLoss(8), 3)],
            {"val_loss": 4.125},
        ),
        # per-sample losses, with a weight for each or for the batch
        ([(ValLoss(t(1.0, 1.0)), None), (ValLoss(torch.tensor([4.0])), 1)], {"val_loss": 2.0}),
        ([(ValLoss(t(1.0, 3.0), weight=t(3.0, 1.0)), None)], {"val_loss": 1.5}),
        ([(ValLoss(t(1.0, 3.0), weight=t(1, 0, dtype=torch.bool)), None)], {"val_loss": 1.0}),
        ([(ValLoss(t(1.0, 1.0), weight=6), 2), (ValLoss(t(4.0), weight=3), 1)], {"val_loss": 2.0}),
        (
            [(ValLoss(t(0.0, 2.0), weight=t(6.0)), 2), (ValLoss(t(4.0), weight=3), 1)],
            {"val_loss": 2.0},
        ),
        ([(ValLoss(t(1.0, 3.0)), 2), (ValLoss(t(8.0)), 1)], {"val_loss": 4.0}),
        ([(ValLoss(torch.tensor([[1.0, 3.0], [3.0, 5.0]])), 2)], {"val_loss": 3.0}),
        ([(ValLoss(torch.tensor([[[1.0], [3.0]]]), weight=2), 9)], {"val_loss": 2.0}),
        ([(ValLoss(torch.zeros(0)), 0), (ValLoss(t(2.0, 4.0)), 2)], {"val_loss": 3.0}),
        ([(ValLoss(torch.zeros(0), weight=5), 0), (ValLoss(t(2.0)), 2)], {"val_loss": 2.0}),
        ([(ValLoss(torch.zeros(0, 7)), 0), (ValLoss(t(2.0, 4.0)), 2)], {"val_loss": 3.0}),
        # components
        (
            [(ValLoss({"loss_a": t(1.0), "b_loss": t(2.0), "acc": t(0.5)}), 2)],
            {"val_loss": 3.0, "loss_a": 1.0, "b_loss": 2.0, "acc": 0.5},
        ),
        (
            [(ValLoss({"loss_a": t(1.0), "all": t(3.0), "loss_b": t(2.0)}, total="all"), 2)],
            {"val_loss": 3.0, "loss_a": 1.0, "all": 3.0, "loss_b": 2.0},
        ),
        (
            [(ValLoss({"loss_a": t(1.0), "val_loss": t(3.0)}, total="val_loss"), 2)],
            {"val_loss": 3.0, "loss_a": 1.0},
        ),
        (
            [(ValLoss({"loss_a": [t(1.0), t(2.0, 4.0)], "loss_b": (1, t(1.0))}), 2)],
            {"val_loss": 6.0, "loss_a": 4.0, "loss_b": 2.0},
        ),
        (
            [(ValLoss({"loss_a": 1, "loss_b": t(1.0, 3.0)}), None)],  # a mean of the same 2
            {"val_loss": 3.0, "loss_a": 1.0, "loss_b": 2.0},
        ),
        (  # 2 samples and 3 boxes
            [
                (ValLoss({"loss_a": t(1.0, 3.0), "loss_b": t(1.0, 2.0, 3.0), "loss_c": 1}), 2),
                (ValLoss({"loss_a": t(5.0, 5.0), "loss_b": t(4.0, 4.0, 4.0), "loss_c": 1}), 2),
            ],
            {"val_loss": 7.5, "loss_a": 3.5, "loss_b": 3.0, "loss_c": 1.0},
        ),
        (
            [(ValLoss({"loss_a": 1, "loss_b": t(1.0, 3.0)}, weight=t(3.0, 1.0)), None)],
            {"val_loss": 2.5, "loss_a": 1.0, "loss_b": 1.5},
        ),
        # a component missing in a batch counts 0 in the total, and nothing in its own mean
        (
            [
                (ValLoss({"loss_a": t(1.0), "loss_b": t(2.0)}), 2),
                (ValLoss({"loss_a": t(1.0)}), 2),
            ],
            {"val_loss": 2.0, "loss_a": 1.0, "loss_b": 2.0},
        ),
        # weights by component: the total is the sum of the means
        (
            [
                (ValLoss({"loss_a": t(1.0), "loss_b": t(2.0)}, weight={"loss_b": 0}), 2),
                (ValLoss({"loss_a": t(1.0), "loss_b": t(4.0)}, weight={"loss_b": t(5.0)}), 2),
            ],
            {"val_loss": 5.0, "loss_a": 1.0, "loss_b": 4.0},
        ),
        (
            [(ValLoss({"loss_a": t(1.0, 3.0), "acc": 1}, weight={"loss_a": t(3.0, 1.0)}), None)],
            {"val_loss": 1.5, "loss_a": 1.5, "acc": 1.0},
        ),
        (
            [(ValLoss({"loss_a": t(1.0), "loss_b": t(2.0)}, weight={"loss_a": None}), 2)],
            {"val_loss": 3.0, "loss_a": 1.0, "loss_b": 2.0},
        ),
        (
            [
                (ValLoss({"loss_a": 1, "all": 4}, weight={"all": 1}, total="all"), 2),
                (ValLoss({"loss_a": 1, "all": 8}, weight={"all": 3}, total="all"), 2),
            ],
            {"val_loss": 7.0, "loss_a": 1.0, "all": 7.0},
        ),
        # what weighs 0 counts nothing, even a mean of nothing
        ([(ValLoss(t(2.0)), 4), (ValLoss(t(math.nan)), 0)], {"val_loss": 2.0}),
        ([(ValLoss(t(2.0)), 4), (ValLoss(t(math.nan), weight=t(0.0)), 4)], {"val_loss": 2.0}),
        ([(ValLoss(t(2.0, math.nan), weight=t(1.0, 0.0)), 4)], {"val_loss": 2.0}),
    ],
)
def test_the_mean_is(batches: list[tuple[ValLoss, int | None]], result: dict[str, float]) -> None:
    found = measure(batches)
    assert found == result
    assert next(iter(found)) == "val_loss"
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize(
    ("batches", "result"),
    [
        ([(ValLoss(t(math.nan)), 2), (ValLoss(t(1.0)), 98)], math.nan),
        ([(ValLoss(t(1.0)), 2), (ValLoss(t(1.0, math.nan)), 2)], math.nan),
        ([(ValLoss(t(math.inf)), 2), (ValLoss(t(1.0)), 98)], math.inf),
        ([(ValLoss(t(-math.inf)), 2), (ValLoss(t(1.0)), 98)], -math.inf),
        ([(ValLoss(t(math.inf)), 2), (ValLoss(t(-math.inf)), 2)], math.nan),
        ([(ValLoss(t(math.inf)), 2), (ValLoss(t(math.nan)), 2)], math.nan),
        ([(ValLoss(t(1.0), weight=t(math.nan)), 2)], math.nan),
        ([(ValLoss(t(1.0), weight=0), 2)], math.nan),
        ([(ValLoss(t(1.0)), 0)], math.nan),
        ([(ValLoss(torch.zeros(0)), 0)], math.nan),
        ([(ValLoss(torch.zeros(2, 0)), 2)], math.nan),
        ([(ValLoss({"loss": [t(1.0), torch.zeros(0)]}), 2)], math.nan),
        ([(ValLoss(1e308), 1)] * 2 + [(ValLoss(-1e308), 1)] * 2, 0.0),  # too large on the way
        ([(ValLoss(1e308), 1)] * 2, math.inf),
        ([(ValLoss(-1e308), 1)] * 2, -math.inf),
        ([(ValLoss(1e308), 1)] * 2 + [(ValLoss(math.nan), 1)], math.nan),
        ([(ValLoss(1e308), 1)] * 2 + [(ValLoss(-math.inf), 1)], -math.inf),
    ],
)
def test_odd_numbers_stay_visible_in_any_order(
    batches: list[tuple[ValLoss, int | None]], result: float
) -> None:
    for order in (batches, batches[::-1]):
        found = measure(order)["val_loss"]
        assert found == result or (math.isnan(result) and math.isnan(found))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_any_real_dtype_is_summed_in_float64(dtype: torch.dtype) -> None:
    one = ValLoss(torch.ones((), dtype=dtype), weight=torch.ones((), dtype=dtype))
    two = ValLoss(torch.full((3,), 2, dtype=dtype), weight=torch.ones(3, dtype=dtype))
    assert measure([(one, None), (two, None)]) == {"val_loss": 1.75}
    assert measure([(ValLoss(t(1, 0, dtype=torch.bool)), 2)]) == {"val_loss": 0.5}


def test_a_long_sum_loses_nothing() -> None:
    meter = LossMeter()
    loss = ValLoss(torch.tensor(0.1, dtype=torch.float64))
    for _ in range(3000):
        meter.update(loss, 1)
    assert meter.compute()["val_loss"] == math.fsum([0.1] * 3000) / 3000


def test_names_tell_what_will_be_computed() -> None:
    meter = LossMeter()
    meter.update(ValLoss({"loss_a": t(1.0), "acc": t(1.0)}), 1)
    meter.update(ValLoss({"loss_a": t(1.0), "loss_b": t(1.0)}), 1)
    assert meter.names == ("val_loss", *(n for n in meter.compute() if n != "val_loss"))
    assert set(meter.names) == {"val_loss", "loss_a", "loss_b", "acc"}


def test_reset_forgets_everything_the_kind_of_loss_too() -> None:
    meter = LossMeter()
    meter.update(ValLoss({"loss_a": t(1.0)}), 1)
    meter.reset()
    assert meter.compute() == {}
    meter.update(ValLoss(t(7.0)), 1)
    assert meter.compute() == {"val_loss": 7.0}


def test_computing_twice_and_going_on_is_fine() -> None:
    meter = LossMeter()
    meter.update(ValLoss(t(1.0)), 1)
    assert meter.compute() == meter.compute() == {"val_loss": 1.0}
    meter.update(ValLoss(t(3.0), weight=t(1.0)), 1)
    meter.update(ValLoss(2), 1)
    assert meter.compute() == {"val_loss": 2.0}


# ------------------------------------------------------- what the model does next


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_a_buffer_that_the_model_uses_again_is_copied(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    wraps: list[tuple[int, Any]] = [
        (1, lambda x: x),
        (1, lambda x: {"loss": x}),
        (2, lambda x: {"loss": [x, x]}),
    ]
    for times, wrap in wraps:
        loss, weight = torch.full(shape, 2.0, dtype=dtype), torch.ones((), dtype=dtype)
        meter = LossMeter()
        meter.update(ValLoss(wrap(loss), weight=weight), 3)
        loss.fill_(100.0)
        weight.fill_(7.0)
        meter.update(ValLoss(wrap(loss), weight=weight), 3)
        assert meter.compute()["val_loss"] == times * (2.0 + 7 * 100.0) / 8


def test_a_merged_state_is_a_copy() -> None:
    state = {"layout": [False, False, None], "entries": {"val_loss": torch.ones(2, 3)}}
    meter = LossMeter()
    meter.merge(state)
    state["entries"]["val_loss"].fill_(5.0)
    assert meter.compute() == {"val_loss": 1.0}


def test_losses_with_a_graph_are_detached() -> None:
    x = torch.ones(4, requires_grad=True)
    meter = LossMeter()
    meter.update(ValLoss({"loss_a": (x * 2).sum(), "loss_b": [x.mean(), x]}, weight=x.sum()), None)
    meter.update(ValLoss({"loss_a": x * 2}, weight=x), None)
    entries = meter.state()["entries"]
    assert not any(tensor.requires_grad for tensor in entries.values())
    pending = [v for c in meter._columns.values() for s in c for v in s.tensors()]
    assert pending
    assert not any(tensor.requires_grad for tensor in pending)


@pytest.mark.parametrize("inside", [True, False])
def test_inference_mode_may_begin_and_end_between_batches(inside: bool) -> None:
    meter = LossMeter()
    for index in range(2):
        with torch.inference_mode(inside == bool(index)):
            meter.update(ValLoss({"loss_a": t(1.0, 3.0), "loss_b": t(1.0)}), 2)
    with torch.inference_mode(inside):
        assert meter.compute() == {"val_loss": 3.0, "loss_a": 2.0, "loss_b": 1.0}


def test_a_default_device_or_dtype_changes_nothing() -> None:
    batches = [(ValLoss(1), 2), (ValLoss(t(4.0)), 1), (ValLoss(t(1.0, 3.0)), 2)]
    before = torch.get_default_dtype()
    try:
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float16)
        result = measure(batches)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
    assert result == {"val_loss": 2.0}


# ------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (t(1.0), {"loss": t(1.0)}, "of one kind, got a mapping of losses with one.*a single loss"),
        ({"loss": t(1.0)}, t(1.0), "of one kind, got a single loss after a mapping of losses"),
    ],
)
def test_a_single_loss_and_a_mapping_do_not_mix(first: Any, second: Any, words: str) -> None:
    meter = LossMeter()
    meter.update(ValLoss(first), 2)
    before = meter.compute()
    with pytest.raises(ValueError, match=words):
        meter.update(ValLoss(second), 2)
    assert meter.compute() == before


def test_kinds_of_total_and_weight_do_not_mix() -> None:
    losses = {"loss_a": t(1.0), "loss_b": t(2.0)}
    meter = LossMeter()
    meter.update(ValLoss(losses), 2)
    with pytest.raises(ValueError, match="a weight for each component and total=None after"):
        meter.update(ValLoss(losses, weight={"loss_a": 1}), 2)
    with pytest.raises(ValueError, match="one weight and total='loss_a' after"):
        meter.update(ValLoss(losses, total="loss_a"), 2)
    with pytest.raises(ValueError, match="of one kind"):
        meter.merge({"layout": [False, False, None], "entries": {"val_loss": torch.ones(2, 1)}})
    assert meter.compute() == {"val_loss": 3.0, "loss_a": 1.0, "loss_b": 2.0}


@pytest.mark.parametrize("loss", [t(1.0), 1.0, {"loss": t(1.0)}, {"loss": [t(1.0), t(1.0, 2.0)]}])
def test_a_mean_of_unknown_samples_asks_for_a_weight(loss: Any) -> None:
    meter = LossMeter()
    with pytest.raises(ValueError, match=r"needs the number of samples.*ValLoss\(loss, weight="):
        meter.update(ValLoss(loss), None)
    assert meter.compute() == {}


def test_components_of_different_lengths_ask_for_a_weight() -> None:
    losses = {"loss_a": t(1.0, 3.0), "loss_b": t(1.0, 2.0, 3.0)}
    with pytest.raises(ValueError, match="'val_loss' needs the number of samples"):
        measure([(ValLoss(losses), None)])
    assert measure([(ValLoss(losses, weight=2), None)])["val_loss"] == 4.0


@pytest.mark.parametrize("loss", [torch.ones(1), torch.ones(1, 5), {"loss": torch.ones(1)}])
def test_one_loss_for_several_samples_is_not_taken_for_one_sample(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"has shape \(1,\) in a batch of 4 samples.*squeeze"):
        measure([(ValLoss(loss), 4)])
    for samples in (1, None):
        assert measure([(ValLoss(loss), samples)])["val_loss"] == 1.0
    assert measure([(ValLoss(loss, weight=4), 4)])["val_loss"] == 1.0


def test_negative_weights_on_a_device_are_found_at_the_end() -> None:
    meter = LossMeter()
    meter.update(ValLoss({"loss_a": t(1.0, 2.0)}, weight=t(3.0, -1.0)), None)
    with pytest.raises(ValueError, match="weights of 'loss_a' must not be negative, got -1"):
        meter.compute()


# --------------------------------------------------------------------------- laws

finite = st.floats(-1e6, 1e6, width=32)
samples_with_weights = st.lists(st.tuples(finite, st.floats(0, 1e3)), min_size=1, max_size=40)


@contextmanager
def chunks_of(size: int) -> Iterator[None]:
    before = _loss_meter._CHUNK
    _loss_meter._CHUNK = size
    try:
        yield
    finally:
        _loss_meter._CHUNK = before


def in_batches(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


@given(
    st.lists(st.tuples(st.floats(allow_nan=False), st.integers(0, 64)), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
    st.sampled_from([1, 3, 512]),
)
def test_the_order_of_batches_does_not_change_a_bit(
    batches: list[tuple[float, int]], rng: random.Random, chunk: int
) -> None:
    losses = [(ValLoss(torch.tensor(x, dtype=torch.float64)), n) for x, n in batches]
    first = bits(measure(losses))
    rng.shuffle(losses)
    with chunks_of(chunk):
        assert bits(measure(losses)) == first


@given(samples_with_weights, st.integers(1, 9), st.randoms(use_true_random=False), st.booleans())
def test_per_sample_losses_do_not_depend_on_batches(
    data: list[tuple[float, float]], size: int, rng: random.Random, weighted: bool
) -> None:
    def result(data: list[tuple[float, float]], size: int) -> dict[str, str]:
        values, weights = zip(*data, strict=True)
        return bits(
            measure(
                (
                    ValLoss(
                        {
                            "loss_a": vector(values[i] for i in part),
                            "loss_b": vector([0.1] * len(part)),
                        },
                        weight=vector(weights[i] for i in part) if weighted else None,
                    ),
                    len(part),
                )
                for part in in_batches(len(data), size)
            )
        )

    shuffled = data.copy()
    rng.shuffle(shuffled)
    with chunks_of(2):
        assert result(shuffled, size) == result(data, len(data))


@pytest.mark.parametrize("shape", [(2,), (3,), (7, 5), (33, 31), (3, 101, 113)])
def test_losses_per_pixel_do_not_depend_on_batches(shape: tuple[int, ...]) -> None:
    maps = torch.randn(7, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps *= torch.logspace(-3, 3, shape[-1], dtype=torch.float64)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # Tensor.sum shares one long row among threads, but not several
    try:
        results = {
            measure((ValLoss(part), len(part)) for part in maps.split(size))["val_loss"].hex()
            for size in (1, 2, 3, 7)
        }
    finally:
        torch.set_num_threads(threads)
    assert len(results) == 1
    truth = math.fsum(maps.flatten().tolist()) / maps.numel()
    assert float.fromhex(results.pop()) == pytest.approx(truth, abs=1e-12)


@given(samples_with_weights, st.integers(1, 9), st.sampled_from(["samples", "number", "tensor"]))
def test_means_weigh_up_to_the_mean_of_all_samples(
    data: list[tuple[float, float]], size: int, how: str
) -> None:
    if how == "samples":
        data = [(value, 1.0) for value, _ in data]
    if math.fsum(w for _, w in data) < 1e-3:
        return
    batches = []
    for part in in_batches(len(data), size):
        weight = math.fsum(data[i][1] for i in part)
        mean = math.fsum(data[i][0] * data[i][1] for i in part) / weight if weight else math.nan
        given_weight = {"samples": None, "number": weight, "tensor": vector([weight]).squeeze()}[
            how
        ]
        batches.append((ValLoss(vector([mean]).squeeze(), weight=given_weight), len(part)))
    truth = math.fsum(v * w for v, w in data) / math.fsum(w for _, w in data)
    scale = max(abs(v) for v, _ in data)
    assert measure(batches)["val_loss"] == pytest.approx(truth, rel=1e-12, abs=1e-12 * scale)


@given(
    st.lists(st.tuples(finite, finite, st.integers(1, 64)), min_size=1, max_size=20),
    st.sampled_from(["one weight", "a weight each", "lists"]),
)
def test_the_total_is_the_sum_of_its_components(
    batches: list[tuple[float, float, int]], how: str
) -> None:
    def loss(a: float, b: float, n: int) -> ValLoss:
        if how == "lists":
            return ValLoss({"loss_a": [t(a), t(a)], "loss_b": [t(b)], "acc": 1})
        weight = {"loss_a": n} if how == "a weight each" else n
        return ValLoss({"loss_a": t(a), "loss_b": t(b), "acc": 1}, weight=weight)

    result = measure((loss(a, b, n), n) for a, b, n in batches)
    scale = max(abs(x) for a, b, _ in batches for x in (a, b))
    assert result["val_loss"] == pytest.approx(
        result["loss_a"] + result["loss_b"], rel=1e-12, abs=1e-12 * scale
    )


@given(
    st.lists(st.tuples(finite, st.integers(1, 9)), min_size=1, max_size=20),
    st.integers(1, 4),
    st.booleans(),
)
def test_ranks_that_share_the_batches_agree_to_the_bit(
    batches: list[tuple[float, int]], world_size: int, per_sample: bool
) -> None:
    losses = [
        (ValLoss({"loss_a": t(x).expand(n) if per_sample else t(x), "loss_b": 0.1}), n)
        for x, n in batches
    ]
    ranks = []
    for rank in range(world_size):
        meter = LossMeter()
        for val_loss, samples in losses[rank::world_size]:
            meter.update(val_loss, samples)
        ranks.append(meter.state())
    for order in (ranks, ranks[::-1]):
        merged = LossMeter()
        for state in order:
            merged.merge(state)
        assert bits(merged.compute()) == bits(measure(losses))


def test_a_state_is_made_of_plain_things() -> None:
    meter = LossMeter()
    meter.update(ValLoss({"loss_a": t(1.0, 3.0), "all": 2}, weight={"all": 4}, total="all"), None)
    state = meter.state()
    assert state["layout"] == [True, True, "all"]
    assert state["entries"]["loss_a"].tolist() == [[1.0, 3.0], [1.0, 1.0]]
    assert state["entries"]["all"].tolist() == [[2.0], [4.0]]
    assert {tensor.dtype for tensor in state["entries"].values()} == {torch.float64}


# ------------------------------------------------------------------- no waiting

READS = {
    "item", "tolist", "cpu", "numpy", "nonzero", "equal", "is_nonzero", "unique", "masked_select",
    "__bool__", "__float__", "__int__", "__index__", "__len__", "__contains__", "__repr__",
}  # fmt: skip


class Spy(TorchFunctionMode):
    """Note each call that needs the values of a tensor on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.reads: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.calls += 1
        name = getattr(func, "__name__", "")
        targets = [*args[1:], *kwargs.values()]
        to_host = name == "to" and any(str(target).startswith("cpu") for target in targets)
        if name in READS or to_host:
            self.reads.append(name)
        return func(*args, **kwargs)


ALL_KINDS: list[tuple[Any, Any]] = [
    (lambda one, many: one, lambda one, many: None),
    (lambda one, many: one, lambda one, many: 3.0),
    (lambda one, many: one, lambda one, many: one),
    (lambda one, many: many, lambda one, many: None),
    (lambda one, many: many, lambda one, many: one),
    (lambda one, many: many, lambda one, many: many),
    (lambda one, many: many.reshape(-1, 1).expand(-1, 7), lambda one, many: many),
    (lambda one, many: {"loss_a": one, "loss_b": [one, many]}, lambda one, many: None),
    (lambda one, many: {"loss_a": one, "loss_b": many, "acc": 1.0}, lambda one, many: many),
    (lambda one, many: {"loss_a": one, "loss_b": many}, lambda one, many: {"loss_a": one}),
]


class Elsewhere(torch.Tensor):
    """A tensor that is not known to be on the host, as one on a device."""


@pytest.mark.parametrize(("loss", "weight"), ALL_KINDS)
def test_no_value_is_read_before_the_end(loss: Any, weight: Any) -> None:
    one, many = t(1.0).as_subclass(Elsewhere), t(1.0, 2.0, 3.0).as_subclass(Elsewhere)
    meter = LossMeter()
    with Spy() as spy, chunks_of(2):
        for _ in range(7):
            outputs = (many, ValLoss(loss(one, many), weight=weight(one, many)))
            rest, val_loss = split_val_loss(outputs)
            assert val_loss is not None
            repr(val_loss)
            meter.update(val_loss, count_samples(rest))
        assert spy.calls > 7
        assert spy.reads == []
        meter.compute()
        assert spy.reads != []  # the spy sees


@pytest.mark.parametrize(("loss", "weight"), ALL_KINDS)
def test_losses_without_values_are_taken_in(loss: Any, weight: Any) -> None:
    one, many = torch.ones((), device="meta"), torch.ones(3, device="meta")
    meter = LossMeter()
    with chunks_of(2):  # a tensor on "meta" raises as soon as its value is asked for
        for _ in range(7):
            meter.update(ValLoss(loss(one, many), weight=weight(one, many)), 3)
    with pytest.raises(NotImplementedError):
        meter.compute()


def test_a_weight_may_be_on_another_device_than_the_loss() -> None:
    meter = LossMeter()
    with chunks_of(2):
        for index in range(6):
            device = "meta" if index % 3 else "cpu"
            meter.update(ValLoss(t(1.0), weight=torch.ones((), device=device)), None)
    assert meter.names == ("val_loss",)


def test_the_host_is_reached_once_whatever_was_seen() -> None:
    meter = LossMeter()
    for _ in range(50):
        meter.update(ValLoss({"loss_a": t(1.0), "loss_b": t(1.0, 2.0)}, weight=t(2.0)), 2)
    with Spy() as spy:
        meter.compute()
    assert spy.reads.count("cpu") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("loss", "weight"), ALL_KINDS)
def test_a_cuda_device_is_not_waited_for(loss: Any, weight: Any) -> None:
    one, many = torch.ones((), device="cuda"), torch.ones(3, device="cuda")
    meter = LossMeter()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(1100):
            meter.update(ValLoss(loss(one, many), weight=weight(one, many)), 3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = meter.compute()
    assert bits(found) == bits(
        measure(
            (ValLoss(loss(one.cpu(), many.cpu()), weight=weight(one.cpu(), many.cpu())), 3)
            for _ in range(1100)
        )
    )


@pytest.mark.parametrize("how", ["mean", "per-sample", "mapping"])
def test_what_is_kept_grows_with_the_batches_and_no_faster(how: str) -> None:
    loss = {"mean": t(1.0), "per-sample": t(1.0, 2.0), "mapping": {"loss_a": t(1.0)}}[how]
    meter = LossMeter()
    joined = 0

    class Joins(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal joined
            result = func(*args, **(kwargs or {}))
            if getattr(func, "__name__", "") in {"stack", "cat"}:
                joined += result.numel()
            return result

    with Joins(), chunks_of(8):
        for _ in range(1000):
            meter.update(ValLoss(loss, weight=t(1.0)), 1)
        assert all(len(s._pending) <= 8 for column in meter._columns.values() for s in column)
    kept = sum(t.numel() for column in meter._columns.values() for s in column for t in s.tensors())
    assert joined <= kept  # nothing is copied a second time
    pending = [len(s._chunks) for column in meter._columns.values() for s in column]
    assert max(pending) <= 1000 / 8 + 1


# ----------------------------------------------- what MMEngine's val loss gets wrong


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_five_samples_average_to_two_at_any_batch_size(size: int) -> None:
    """Not 2.33 with batches of 2 and 2.75 with batches of 4."""
    batches = [[LOSSES[i] for i in part] for part in in_batches(5, size)]
    assert measure((ValLoss(vector(b).mean()), len(b)) for b in batches) == {"val_loss": 2.0}
    assert measure((ValLoss(vector(b)), len(b)) for b in batches) == {"val_loss": 2.0}


def test_a_list_of_losses_is_summed_as_in_training() -> None:
    """Not averaged: 3.0, not 1.0."""
    assert measure([(ValLoss({"loss_rpn": [t(1.0)] * 3}), 2)])["val_loss"] == 3.0


def test_a_vector_of_losses_is_taken() -> None:
    """Not a crash in ``.item()``."""
    assert measure([(ValLoss({"loss": t(1.0, 3.0)}), 2)])["val_loss"] == 2.0


def test_a_returned_total_is_not_counted_again() -> None:
    """3 = 1 + 2 is 3, not 6."""
    losses = {"loss_a": t(1.0), "loss_b": t(2.0), "loss": t(3.0)}
    assert measure([(ValLoss(losses, total="loss"), 2)])["val_loss"] == 3.0


@pytest.mark.parametrize("outputs", [{"y_pred": X}, {}, [], ()])
def test_outputs_with_no_last_item_are_not_asked_for_it(outputs: Any) -> None:
    """Not ``KeyError: -1``, not ``IndexError``."""
    assert split_val_loss(outputs)[0] is outputs


# ------------------------------------------------------------------------- imports


def test_neither_ignite_nor_mmengine_is_needed() -> None:
    """The two files stand by themselves: torch is all they import."""
    code = (
        "import sys, types\n"
        "package = types.ModuleType('ignite_evalhook'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['ignite_evalhook'] = package\n"
        "import ignite_evalhook._evaluate.val_loss\n"
        "assert not {'ignite', 'mmengine', 'mmcv'} & set(sys.modules), 'too much'\n"
    )
    folder = str(Path(_loss_meter.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
