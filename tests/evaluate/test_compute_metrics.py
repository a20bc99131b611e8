"""Metrics on the predictions of a whole set: compute_metrics, dataset.evaluate and pre_eval."""

from __future__ import annotations

import gc
import json
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from ignite.metrics import Accuracy
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
)

from ignite_evalhook import EvalHook, EvaluationError, ValLoss, create_evaluator

SIZE = 10
Samples = Dataset[tuple[Tensor, int]]


class Numbers(Samples):
    """Sample i is the number i, and nothing here evaluates."""

    def __init__(self, size: int = SIZE, first: int = 0) -> None:
        self.size, self.first = size, first

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([float(self.first + index)]), index % 2


class Evaluated(Numbers):
    """Keeps what its ``evaluate`` was called with."""

    def __init__(self, size: int = SIZE, first: int = 0) -> None:
        super().__init__(size, first)
        self.calls: list[tuple[list[Any], dict[str, Any]]] = []

    def evaluate(
        self, results: list[Any], metric: str = "sum", scale: float = 1.0, logger: Any = None
    ) -> dict[str, float]:
        self.calls.append((results, {"metric": metric, "scale": scale, "logger": logger}))
        return {metric: scale * float(sum(results)), "count": len(results)}


def identity() -> nn.Linear:
    """Return a model that gives back the number it is given."""
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def evaluator_of(model: nn.Module, shape: Callable[[Tensor, Any], Any] | None = None) -> Engine:
    """Return an evaluator whose output is the predictions, or what ``shape`` makes of them."""

    def step(engine: Engine, batch: Any) -> Any:
        x, y = batch
        predicted = model(x)[..., 0]
        return predicted if shape is None else shape(predicted, y)

    return create_evaluator(model, step=step)


def collect(data: Any, shape: Callable[[Tensor, Any], Any] | None = None, **options: Any) -> Any:
    """Evaluate once and return what compute_metrics was given."""
    given: list[Any] = []

    def compute(results: list[Any]) -> Mapping[str, float]:
        given.extend(results)
        return {"count": len(results)}

    evaluator = evaluator_of(identity(), shape)
    record = EvalHook(data, evaluator, compute_metrics=compute, **options).evaluate()
    assert record.metrics["count"] == len(given)
    return given


def numbers(results: Sequence[Any]) -> list[float]:
    return [float(item) for item in results]


# -- results in the order of the dataset ----------------------------------------------------------

LOADERS: dict[str, Callable[[Samples, int], DataLoader[Any]]] = {
    "in order": lambda d, w: DataLoader(d, batch_size=3, num_workers=w),
    "shuffled": lambda d, w: DataLoader(d, batch_size=3, shuffle=True, num_workers=w),
    "random batches": lambda d, w: DataLoader(
        d, batch_sampler=BatchSampler(RandomSampler(d), 4, False), num_workers=w
    ),
    "random samples": lambda d, w: DataLoader(
        d, batch_size=4, sampler=SubsetRandomSampler(range(SIZE)), num_workers=w
    ),
    "one by one": lambda d, w: DataLoader(d, batch_size=None, num_workers=w),
    "one by one, shuffled": lambda d, w: DataLoader(
        d, batch_size=None, shuffle=True, num_workers=w
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_results_come_in_the_order_of_the_dataset(name: str) -> None:
    torch.manual_seed(0)
    assert numbers(collect(LOADERS[name](Numbers(), 0))) == list(range(SIZE))


@pytest.mark.parametrize("name", ["in order", "shuffled", "random batches", "one by one, shuffled"])
def test_data_workers_do_not_change_that(name: str) -> None:
    torch.manual_seed(0)
    assert numbers(collect(LOADERS[name](Numbers(), 2))) == list(range(SIZE))


def test_persistent_workers_serve_every_evaluation() -> None:
    loader = DataLoader(
        Numbers(), batch_size=3, shuffle=True, num_workers=1, persistent_workers=True
    )
    seen: list[list[float]] = []

    def compute(results: list[Any]) -> dict[str, float]:
        seen.append(numbers(results))
        return {}

    hook = EvalHook(loader, evaluator_of(identity()), compute_metrics=compute)
    hook.evaluate()
    hook.evaluate()
    assert seen == [list(range(SIZE))] * 2


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_subset_gives_its_own_samples_in_its_own_order(shuffle: bool) -> None:
    subset = Subset(Numbers(), [7, 2, 9, 4])
    assert numbers(collect(DataLoader(subset, batch_size=3, shuffle=shuffle))) == [7, 2, 9, 4]


def test_a_sampler_of_some_samples_gives_these_in_the_order_of_the_dataset() -> None:
    loader = DataLoader(Numbers(), batch_size=2, sampler=[7, 2, 9, 4])
    assert numbers(collect(loader)) == [2, 4, 7, 9]


def test_ready_made_batches_of_a_dataset_stay_together() -> None:
    class Batches(Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return 10.0 * index + torch.arange(3.0)[:, None], torch.zeros(3)

    torch.manual_seed(0)
    loader = DataLoader(Batches(), batch_size=None, shuffle=True)
    assert numbers(collect(loader)) == [0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32]


class Stream(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Any:
        return iter([(torch.tensor([3.0]), 0), (torch.tensor([1.0]), 0), (torch.tensor([2.0]), 0)])


@pytest.mark.parametrize(
    "data",
    [
        [(torch.tensor([[3.0], [1.0]]), 0), (torch.tensor([[2.0]]), 0)],
        DataLoader(Stream(), batch_size=2),
    ],
    ids=["list of batches", "stream"],
)
def test_data_without_indices_keeps_the_order_in_which_it_came(data: Any) -> None:
    assert numbers(collect(data)) == [3, 1, 2]


def test_limit_batches_gives_the_results_of_the_first_batches() -> None:
    loader = DataLoader(Numbers(), batch_size=3)
    assert numbers(collect(loader, limit_batches=2)) == [0, 1, 2, 3, 4, 5]


def test_shuffled_evaluation_leaves_a_generator_shared_with_training_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(Numbers(), batch_size=3, shuffle=True, generator=generator)
    hook = EvalHook(loader, evaluator_of(identity()), compute_metrics=lambda results: {})
    shared, everywhere = generator.get_state(), torch.get_rng_state()
    hook.evaluate()
    assert torch.equal(generator.get_state(), shared)
    assert torch.equal(torch.get_rng_state(), everywhere)


# -- one item per sample --------------------------------------------------------------------------

Pair = tuple[Tensor, Any]
SHAPES: dict[str, tuple[Callable[[Tensor, Any], Any], Callable[[int], Any]]] = {
    "tensor": (lambda p, y: p, lambda i: float(i)),
    "tuple": (lambda p, y: (p, y), lambda i: (float(i), i % 2)),
    "mapping": (lambda p, y: {"p": p, "y": y}, lambda i: {"p": float(i), "y": i % 2}),
    "list": (lambda p, y: list(p), lambda i: float(i)),
    "list of dicts": (lambda p, y: [{"p": v} for v in p], lambda i: {"p": float(i)}),
    "strings": (lambda p, y: [f"image {v:.0f}" for v in p], lambda i: f"image {i}"),
    "ragged": (lambda p, y: [v.repeat(int(v)) for v in p], lambda i: [float(i)] * i),
    "arrays": (lambda p, y: p.numpy(), lambda i: float(i)),
    "columns of every kind": (
        lambda p, y: (p, p.numpy(), [str(int(v)) for v in p], tuple(str(int(v)) for v in p), None),
        lambda i: (float(i), float(i), str(i), str(i), None),
    ),
    "None": (lambda p, y: None, lambda i: None),
}


def plain(value: Any) -> Any:
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize("appended", [False, True], ids=["bare", "with a ValLoss"])
@pytest.mark.parametrize("name", [n for n in SHAPES if n != "None"])
def test_each_sample_has_one_item_also_when_shuffled(name: str, appended: bool) -> None:
    shape, expected = SHAPES[name]

    def with_loss(p: Tensor, y: Any) -> Any:
        output, loss = shape(p, y), ValLoss(p.mean())
        if isinstance(output, (tuple, list)):
            return type(output)([*output, loss])
        return {**output, "loss": loss} if isinstance(output, dict) else (output, loss)

    loader = DataLoader(Numbers(), batch_size=3, shuffle=True)
    found = [plain(item) for item in collect(loader, with_loss if appended else shape)]
    bare = appended and name in ("tensor", "arrays")  # a tuple of one column then
    assert found == [(expected(i),) if bare else expected(i) for i in range(SIZE)]


def test_an_output_of_nothing_still_has_an_item_per_sample() -> None:
    assert collect(DataLoader(Numbers(), batch_size=3), lambda p, y: None) == [None] * SIZE


def test_results_are_copies_of_a_buffer_that_the_model_uses_again() -> None:
    buffer = torch.zeros(2)
    array = np.zeros(2)

    def shape(p: Tensor, y: Any) -> Any:
        buffer.copy_(p)
        array[:] = p.numpy()
        return [{"tensor": buffer[i : i + 1], "array": array[i : i + 1]} for i in range(2)]

    found = collect(DataLoader(Numbers(), batch_size=2), shape)
    assert [item["tensor"].item() for item in found] == list(range(SIZE))
    assert [item["array"].item() for item in found] == list(range(SIZE))


def test_results_carry_no_gradient() -> None:
    evaluator = Engine(lambda engine, batch: batch[0] * torch.ones(1, requires_grad=True))
    given: list[Tensor] = []

    def compute(results: list[Tensor]) -> dict[str, float]:
        given.extend(results)
        return {}

    loader = DataLoader(Numbers(), batch_size=3)
    EvalHook(loader, evaluator, model=identity(), compute_metrics=compute).evaluate()
    assert not any(item.requires_grad for item in given)


def test_an_output_that_does_not_tell_its_samples_asks_for_pre_eval() -> None:
    hook = EvalHook(
        [object()],
        Engine(lambda engine, batch: "text"),
        model=identity(),
        compute_metrics=lambda results: {},
    )
    with pytest.raises(TypeError, match=r"a str does not tell how many samples .* pass pre_eval="):
        hook.evaluate()


# -- memory ---------------------------------------------------------------------------------------


class Result:
    """A prediction that can be watched, and that is kept as it is."""


def watched(alive: list[int]) -> Engine:
    """Return an evaluator that notes how many earlier results are alive when a batch comes."""
    results: list[weakref.ref[Result]] = []

    def step(engine: Engine, batch: Any) -> list[Result]:
        alive.append(sum(result() is not None for result in results))
        result = Result()
        results.append(weakref.ref(result))
        return [result]

    return Engine(step)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0] * SIZE),
        (
            {"compute_metrics": lambda results: {}, "pre_eval": lambda output, indices: [1]},
            [0] * SIZE,
        ),
        ({"compute_metrics": lambda results: {}}, list(range(SIZE))),
    ],
    ids=["no compute_metrics", "pre_eval", "compute_metrics"],
)
def test_predictions_are_kept_only_where_compute_metrics_asks_for_them(
    options: dict[str, Any], kept: list[int]
) -> None:
    alive: list[int] = []
    EvalHook(DataLoader(Numbers()), watched(alive), model=identity(), **options).evaluate()
    # Some versions of Ignite keep the latest output in the engine's state.
    assert all(there - more in (0, 1) for there, more in zip(alive, kept, strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_predictions_are_let_go_of_when_the_evaluation_is_over(fails: bool) -> None:
    kept: list[weakref.ref[Result]] = []

    def pre_eval(output: Any, indices: Sequence[int]) -> list[Any]:
        result = Result()
        kept.append(weakref.ref(result))
        return [result]

    def compute(results: list[Any]) -> dict[str, float]:
        assert sum(result() is not None for result in kept) == SIZE
        if fails:
            raise RuntimeError("boom")
        return {}

    loader = DataLoader(Numbers())
    hook = EvalHook(loader, evaluator_of(identity()), compute_metrics=compute, pre_eval=pre_eval)
    gc.collect()
    gc.disable()  # whatever is freed is freed at once, not when the collector happens to run
    try:
        try:
            hook.evaluate()
        except RuntimeError:
            assert fails
        if fails:
            gc.collect()  # an exception refers to its frames, and they to it
        assert not any(result() is not None for result in kept)
    finally:
        gc.enable()


# -- dataset.evaluate -----------------------------------------------------------------------------


def test_the_datasets_own_evaluate_is_the_default() -> None:
    dataset = Evaluated()
    record = EvalHook(DataLoader(dataset, batch_size=3), evaluator_of(identity())).evaluate()
    assert record.metrics == {"sum": 45.0, "count": 10.0}
    assert numbers(dataset.calls[0][0]) == list(range(SIZE))


def test_compute_metrics_goes_before_the_datasets_own() -> None:
    dataset = Evaluated()
    hook = EvalHook(
        DataLoader(dataset), evaluator_of(identity()), compute_metrics=lambda results: {"mine": 1}
    )
    assert hook.evaluate().metrics == {"mine": 1.0}
    assert dataset.calls == []


def test_eval_kwargs_reach_it() -> None:
    dataset = Evaluated()
    hook = EvalHook(
        DataLoader(dataset, batch_size=3), evaluator_of(identity()), metric="total", scale=2.0
    )
    assert hook.evaluate().metrics == {"total": 90.0, "count": 10.0}


def test_a_logger_is_passed_where_it_is_named_and_none_is_given() -> None:
    dataset = Evaluated()
    EvalHook(DataLoader(dataset), evaluator_of(identity())).evaluate()
    assert dataset.calls[0][1]["logger"] is logging.getLogger("ignite_evalhook")


def test_a_logger_may_be_asked_for_without_a_default() -> None:
    def compute(results: list[Any], *, logger: logging.Logger) -> dict[str, float]:
        return {"level": logger.level}

    hook = EvalHook(DataLoader(Numbers()), evaluator_of(identity()), compute_metrics=compute)
    assert hook.evaluate().metrics == {"level": logging.getLogger("ignite_evalhook").level}


def test_a_logger_of_the_users_own_is_passed_on() -> None:
    dataset = Evaluated()
    EvalHook(DataLoader(dataset), evaluator_of(identity()), logger="mine").evaluate()
    assert dataset.calls[0][1]["logger"] == "mine"


def test_no_logger_is_passed_where_none_is_named() -> None:
    def compute(results: list[Any], **options: Any) -> dict[str, float]:
        assert options == {}
        return {"seen": 1.0}

    hook = EvalHook(DataLoader(Numbers()), evaluator_of(identity()), compute_metrics=compute)
    assert hook.evaluate().metrics == {"seen": 1.0}


def test_a_dataset_without_evaluate_needs_no_results() -> None:
    assert EvalHook(DataLoader(Numbers()), evaluator_of(identity())).evaluate().metrics == {}


def test_an_attribute_called_evaluate_that_is_no_function_is_none() -> None:
    dataset = Numbers()
    dataset.evaluate = True  # type: ignore[attr-defined]
    assert EvalHook(DataLoader(dataset), evaluator_of(identity())).evaluate().metrics == {}


# -- other data -----------------------------------------------------------------------------------


def test_other_data_is_evaluated_by_its_own_dataset() -> None:
    mine, other = Evaluated(), Evaluated(4, first=100)
    hook = EvalHook(DataLoader(mine), evaluator_of(identity()), scale=0.5)
    record = hook.evaluate(DataLoader(other, batch_size=3, shuffle=True))
    assert record.metrics == {"sum": 203.0, "count": 4.0}
    assert numbers(other.calls[0][0]) == [100, 101, 102, 103]
    assert mine.calls == []
    assert hook.evaluate().metrics["sum"] == 22.5


def test_other_data_is_never_judged_by_the_annotations_of_the_hooks_own() -> None:
    mine = Evaluated()
    hook = EvalHook(DataLoader(mine), evaluator_of(identity()))
    record = hook.evaluate(DataLoader(Numbers(4)))
    assert record.metrics == {}
    assert record.samples == 4
    assert mine.calls == []


def test_other_data_brings_an_evaluate_that_the_hooks_own_lacks() -> None:
    hook = EvalHook(DataLoader(Numbers()), evaluator_of(identity()))
    assert hook.evaluate(DataLoader(Evaluated(3))).metrics["count"] == 3.0


def test_a_compute_metrics_given_to_the_hook_is_for_all_data() -> None:
    other = Evaluated(4)
    hook = EvalHook(
        DataLoader(Numbers()),
        evaluator_of(identity()),
        compute_metrics=lambda results: {"n": len(results)},
    )
    assert hook.evaluate(DataLoader(other)).metrics == {"n": 4.0}
    assert other.calls == []


# -- pre_eval -------------------------------------------------------------------------------------


def test_pre_eval_gets_each_batch_with_its_indices_and_reduces_it() -> None:
    seen: list[tuple[list[float], list[int]]] = []

    def pre_eval(output: Tensor, indices: Sequence[int]) -> list[float]:
        seen.append((output.tolist(), list(indices)))
        return [2 * value for value in output.tolist()]

    torch.manual_seed(0)
    loader = DataLoader(Numbers(), batch_size=3, shuffle=True)
    assert collect(loader, pre_eval=pre_eval) == [2.0 * i for i in range(SIZE)]
    assert all(output == indices for output, indices in seen)
    assert [len(output) for output, _ in seen] == [3, 3, 3, 1]


@pytest.mark.parametrize("items", [0, 1, 5])
def test_pre_eval_may_return_any_number_of_items(items: int) -> None:
    loader = DataLoader(Numbers(), batch_size=3)
    found = collect(loader, pre_eval=lambda output, indices: [indices[0]] * items)
    assert found == [first for first in (0, 3, 6, 9) for _ in range(items)]


def test_pre_eval_does_not_see_the_validation_loss() -> None:
    seen: list[Any] = []

    def pre_eval(output: Any, indices: Sequence[int]) -> list[Any]:
        seen.append(output)
        return []

    loader = DataLoader(Numbers(), batch_size=5)
    collect(loader, lambda p, y: (p, ValLoss(p.mean())), pre_eval=pre_eval)
    assert [type(output) for output in seen] == [tuple, tuple]
    assert [len(output) for output in seen] == [1, 1]


class PreEvaluated(Evaluated):
    """MMSegmentation's kind of dataset: reduces each batch, and evaluates the reductions."""

    factor = 10.0

    def pre_eval(self, output: Tensor, indices: Sequence[int]) -> list[float]:
        assert output.tolist() == [float(self.first + index) for index in indices]
        return [self.factor * value for value in output.tolist()]


class AnotherPreEvaluated(PreEvaluated):
    factor = 100.0


def test_pre_eval_true_is_the_datasets_own() -> None:
    hook = EvalHook(
        DataLoader(PreEvaluated(), batch_size=3), evaluator_of(identity()), pre_eval=True
    )
    assert hook.evaluate().metrics["sum"] == 450.0


def test_pre_eval_true_works_with_a_compute_metrics_of_the_users_own() -> None:
    hook = EvalHook(
        DataLoader(PreEvaluated(), batch_size=3),
        evaluator_of(identity()),
        pre_eval=True,
        compute_metrics=lambda results: {"max": max(results)},
    )
    assert hook.evaluate().metrics == {"max": 90.0}
    assert hook.evaluate(DataLoader(AnotherPreEvaluated())).metrics == {"max": 900.0}


def test_pre_eval_true_is_that_of_the_data_evaluated_on() -> None:
    hook = EvalHook(DataLoader(PreEvaluated()), evaluator_of(identity()), pre_eval=True)
    assert hook.evaluate(DataLoader(AnotherPreEvaluated())).metrics["sum"] == 4500.0


def test_other_data_whose_dataset_lacks_pre_eval_is_refused() -> None:
    hook = EvalHook(DataLoader(PreEvaluated()), evaluator_of(identity()), pre_eval=True)
    with pytest.raises(ValueError, match="pre_eval=True needs a dataset with a method pre_eval"):
        hook.evaluate(DataLoader(Evaluated()))


def test_a_function_that_happens_to_be_called_pre_eval_is_the_one_used() -> None:
    def pre_eval(output: Tensor, indices: Sequence[int]) -> list[float]:
        return [1.0] * len(output)

    hook = EvalHook(DataLoader(PreEvaluated()), evaluator_of(identity()), pre_eval=pre_eval)
    assert hook.evaluate().metrics["sum"] == 10.0


def test_pre_eval_must_return_a_list() -> None:
    with pytest.raises(TypeError, match="pre_eval must return a list, got float"):
        collect(DataLoader(Numbers()), pre_eval=lambda output, indices: 0.5)


# -- what it returns ------------------------------------------------------------------------------

VALUES: list[tuple[Any, Any]] = [
    (-1, -1.0),
    (-1.0, -1.0),
    (True, 1.0),
    (np.float32(0.5), 0.5),
    (np.int64(3), 3.0),
    (torch.tensor(0.5), 0.5),
    (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
    (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    ("12.3/45.6", "12.3/45.6"),
    (None, "None"),
    ([1, "a", None], [1.0, "a", "None"]),
    ({"inner": torch.tensor(2.0)}, {"inner": 2.0}),
    (1j, "1j"),
]


@pytest.mark.parametrize(("value", "recorded"), VALUES, ids=lambda value: str(value)[:20])
def test_every_kind_of_value_is_kept_in_record_and_file(
    value: Any, recorded: Any, tmp_path: Path
) -> None:
    hook = EvalHook(
        DataLoader(Numbers()),
        evaluator_of(identity()),
        compute_metrics=lambda results: {"value": value, "acc": 0.0},
        save_best="acc",
        out_dir=tmp_path,
    ).attach(Engine(lambda engine, batch: None))
    record = hook.evaluate()
    assert record.metrics == {"value": recorded, "acc": 0.0}
    row = json.loads((tmp_path / "history.jsonl").read_text())
    assert row["metrics"] == {"value": recorded, "acc": 0.0}
    assert hook.best is not None
    assert hook.best.score == 0.0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("high", "'acc' is no number: 'high'"),
        ([0.5], r"'acc' is no number: \[0.5\]"),
        (None, "'acc' is no number: 'None'"),
    ],
)
def test_only_a_score_must_be_a_number(value: Any, words: str) -> None:
    hook = EvalHook(
        DataLoader(Numbers()),
        evaluator_of(identity()),
        compute_metrics=lambda results: {"acc": value},
        save_best="acc",
        out_dir=False,
    ).attach(Engine(lambda engine, batch: None))
    with pytest.raises(EvaluationError, match=words):
        hook.evaluate()
    assert len(hook.history) == 0


def test_a_misspelled_score_is_an_error_that_lists_what_there_is() -> None:
    hook = EvalHook(
        DataLoader(Evaluated()), evaluator_of(identity()), save_best="mIoU", out_dir=False
    ).attach(Engine(lambda engine, batch: None))
    with pytest.raises(EvaluationError, match=r"mIoU.*sum.*count"):
        hook.evaluate()


@pytest.mark.parametrize("empty", [{}, None, OrderedDict()])
def test_an_empty_result_is_recorded_and_never_ends_training(empty: Any, caplog: Any) -> None:
    hook = EvalHook(
        DataLoader(Numbers()),
        evaluator_of(identity()),
        compute_metrics=lambda results: empty,
        save_best="mIoU",
        out_dir=False,
    ).attach(Engine(lambda engine, batch: None))
    with caplog.at_level(logging.WARNING, logger="ignite_evalhook"):
        record = hook.evaluate()
    assert dict(record.metrics) == {}
    assert not record.is_best
    assert "the result is empty; recorded without a score" in caplog.text


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (0.5, "compute_metrics must return a mapping of names to values, got float"),
        ([("acc", 0.5)], "got list"),
        ("acc", "got str"),
        ({"acc": 1, 3: 0.5}, "got the name 3, which is no string"),
    ],
)
def test_a_result_that_is_no_mapping_of_names_is_an_error(found: Any, words: str) -> None:
    hook = EvalHook(
        DataLoader(Numbers()), evaluator_of(identity()), compute_metrics=lambda results: found
    )
    with pytest.raises(EvaluationError, match=words):
        hook.evaluate()


def test_any_mapping_will_do() -> None:
    class Found(Mapping[str, float]):
        def __getitem__(self, name: str) -> float:
            return 0.5

        def __iter__(self) -> Any:
            return iter(["acc"])

        def __len__(self) -> int:
            return 1

    hook = EvalHook(
        DataLoader(Numbers()), evaluator_of(identity()), compute_metrics=lambda results: Found()
    )
    assert hook.evaluate().metrics == {"acc": 0.5}


def test_its_result_is_not_changed_and_may_be_the_same_every_time() -> None:
    found = {"acc": np.float64(0.5)}
    hook = EvalHook(
        DataLoader(Numbers()),
        evaluator_of(identity()),
        compute_metrics=lambda results: found,
        derive={"twice": lambda metrics: 2 * metrics["acc"]},
    )
    assert hook.evaluate().metrics == hook.evaluate().metrics == {"acc": 0.5, "twice": 1.0}
    assert found == {"acc": np.float64(0.5)}


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["acc", "val_loss"])
def test_a_name_that_the_evaluator_has_already_is_an_error(name: str) -> None:
    model = nn.Linear(1, 2)
    evaluator = create_evaluator(
        model, metrics={"acc": Accuracy()}, loss_fn=nn.functional.cross_entropy
    )
    hook = EvalHook(
        DataLoader(Numbers(), batch_size=3), evaluator, compute_metrics=lambda results: {name: 1}
    )
    with pytest.raises(EvaluationError, match=rf"compute_metrics returned \['{name}'\], which the"):
        hook.evaluate()


def test_a_derived_metric_may_not_overwrite_its_result() -> None:
    hook = EvalHook(
        DataLoader(Evaluated()), evaluator_of(identity()), derive={"sum": lambda metrics: 1}
    )
    with pytest.raises(EvaluationError, match="derive='sum' would overwrite a metric of that name"):
        hook.evaluate()


def test_auto_follows_its_first_number_before_those_of_the_evaluator() -> None:
    evaluator = create_evaluator(
        nn.Linear(1, 2), metrics={"acc": Accuracy()}, loss_fn=nn.functional.cross_entropy
    )
    hook = EvalHook(
        DataLoader(Numbers(), batch_size=3),
        evaluator,
        compute_metrics=lambda results: {"remark": "fine", "mIoU": 0.5, "mAP": 0.1},
        save_best="auto",
        out_dir=False,
    ).attach(Engine(lambda engine, batch: None))
    hook.evaluate()
    assert hook.best is not None
    assert hook.best.metric == "mIoU"


# -- faults ---------------------------------------------------------------------------------------


def test_an_error_of_its_own_passes_through_and_leaves_everything_usable() -> None:
    model = identity()
    model.train()
    fail = [True]

    def compute(results: list[Any]) -> dict[str, float]:
        if fail[0]:
            raise KeyError("annotations")
        return {"n": len(results)}

    hook = EvalHook(DataLoader(Numbers()), evaluator_of(model), compute_metrics=compute)
    with pytest.raises(KeyError, match="annotations"):
        hook.evaluate()
    assert model.training
    fail[0] = False
    assert hook.evaluate().metrics == {"n": 10.0}


def test_it_is_called_once_an_evaluation_and_never_by_preflight() -> None:
    dataset = Evaluated()
    trainer = Engine(lambda engine, batch: None)
    moments: list[int] = []

    def compute(results: list[Any]) -> dict[str, float]:
        moments.append(trainer.state.epoch)
        return {"n": len(results)}

    hook = EvalHook(DataLoader(dataset), evaluator_of(identity()), compute_metrics=compute)
    hook.attach(trainer)
    trainer.run([0], max_epochs=3)
    assert moments == [1, 2, 3]


def test_an_evaluation_that_only_answers_computes_too_and_leaves_no_trace(tmp_path: Path) -> None:
    dataset = Evaluated()
    hook = EvalHook(
        DataLoader(dataset),
        evaluator_of(identity()),
        save_best="sum",
        rule="greater",
        out_dir=tmp_path / "run",
    ).attach(Engine(lambda engine, batch: None))
    assert hook.evaluate(track=False).metrics["sum"] == 45.0
    assert hook.best is None
    assert list(tmp_path.iterdir()) == []
