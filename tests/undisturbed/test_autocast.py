"""Autocast in an evaluation: the weights are always those of now, and no trace is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, TensorDataset

from helpers.private import inside_autocast, quiet
from ignite_evalhook import EvalHook, ValLoss, create_evaluator

BATCHES, BATCH, WEIGHTS = 5, 4, 4
X = torch.randn(BATCHES * BATCH, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(BATCHES * BATCH) % 3
CRITERION = nn.CrossEntropyLoss()


class Casts(TorchDispatchMode):
    """Counts how often the weights of a model are cast to another type."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = {weight.data_ptr() for weight in model.parameters()}
        self.count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op in (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype):
            self.count += args[0].data_ptr() in self.weights
        return op(*args, **(kwargs or {}))


class Model(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


class Stepping(Model):
    def val_step(self, batch: Any) -> Any:
        x, y = batch
        y_pred = self(x)
        return y_pred, y, ValLoss(CRITERION(y_pred, y))


def loader(data: Dataset[Any] | None = None) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y) if data is None else data, batch_size=BATCH)


def mixed(model: nn.Module, **options: Any) -> Engine:
    return create_evaluator(model, loss_fn=CRITERION, amp_dtype=torch.bfloat16, **options)


def by_hand(model: nn.Module) -> list[Tensor]:
    """Return what a model predicts, with a region of autocast for each batch."""
    found = []
    with torch.no_grad():
        for x, _ in loader():
            with torch.autocast("cpu", torch.bfloat16):
                found.append(model(x))
    return found


def predictions(evaluator: Engine) -> list[Tensor]:
    """Return a list that gets what the evaluator predicts for each batch."""
    found: list[Tensor] = []
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: found.append(engine.state.output[0])
    )
    return found


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


# -- the weights of now --------------------------------------------------------------------------


def run_hook(evaluator: Engine) -> None:
    EvalHook(loader(), evaluator).evaluate()


def test_values_are_those_of_a_region_for_each_batch() -> None:
    model = Model()
    evaluator = mixed(model)
    found = predictions(evaluator)
    run_hook(evaluator)
    assert equal(found, by_hand(model))
    assert found[0].dtype is torch.bfloat16


def test_nothing_but_model_and_loss_is_under_autocast() -> None:
    seen: dict[str, bool] = {}

    def look(name: str) -> None:
        seen[name] = inside_autocast() or torch.is_autocast_enabled("cpu")

    class Looking(Dataset[Any]):
        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, index: int) -> Any:
            look("data")
            return X[index], Y[index]

    class Metric(Accuracy):
        def update(self, output: Any) -> None:
            look("metric")
            super().update((output[0].float(), output[1]))

    def criterion(y_pred: Tensor, y: Tensor) -> Tensor:
        look("loss")
        return CRITERION(y_pred, y)

    def compute(results: list[Any]) -> dict[str, float]:
        look("compute_metrics")
        return {"count": float(len(results))}

    evaluator = create_evaluator(
        Model(), {"accuracy": Metric()}, loss_fn=criterion, amp_dtype=torch.bfloat16
    )
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: look("handler"))
    EvalHook(loader(Looking()), evaluator, compute_metrics=compute).evaluate()
    assert seen == {"data": False, "metric": False, "loss": True, "compute_metrics": False,
                    "handler": False}  # fmt: skip


# -- always the weights of now --------------------------------------------------------------------


def add_in_place(model: Any) -> None:
    with torch.no_grad():
        model[0].weight.add_(1.0)


def step_by_optimizer(model: Any) -> None:
    model.zero_grad()
    with torch.enable_grad():
        CRITERION(model(X), Y).backward()
        torch.optim.SGD(model.parameters(), 1.0).step()


def load_other_weights(model: Any) -> None:
    model.load_state_dict({name: value + 1.0 for name, value in model.state_dict().items()})


def swap_memory(model: Any) -> None:
    model[0].weight.data = model[0].weight.data + 1.0


def replace(model: Any) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach() + 1.0)


def write_through_data(model: Any) -> None:
    model[0].weight.data.add_(1.0)


CHANGES = [
    add_in_place, step_by_optimizer, load_other_weights, swap_memory, replace, write_through_data
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_weights_changed_between_two_evaluations_are_seen(change: Callable[[Any], None]) -> None:
    model = Model()
    evaluator = mixed(model)
    found = predictions(evaluator)
    run_hook(evaluator)
    before = found.copy()
    change(model)
    found.clear()
    run_hook(evaluator)
    assert equal(found, by_hand(model))
    assert not equal(found, before)


@pytest.mark.parametrize("change", CHANGES)
def test_weights_changed_between_two_batches_are_seen(change: Callable[[Any], None]) -> None:
    model = Model()
    evaluator = mixed(model)
    found = predictions(evaluator)
    before = by_hand(model)
    evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: change(model))
    run_hook(evaluator)
    assert equal(found[:2], before[:2])
    assert equal(by_hand(model), before)  # put back, as all that an evaluation changes is
    change(model)
    assert equal(found[2:], by_hand(model)[2:])
    assert not equal(found[2:], before[2:])


def test_what_a_context_swaps_in_is_what_is_evaluated() -> None:
    model = Model()
    averaged = [weight.detach() + 1.0 for weight in model.parameters()]

    class Swapped:
        def __enter__(self) -> None:
            self.swap()

        def __exit__(self, *error: Any) -> None:
            self.swap()

        def swap(self) -> None:
            for weight, other in zip(model.parameters(), averaged, strict=True):
                kept = weight.detach().clone()
                weight.data.copy_(other)
                other.copy_(kept)

    evaluator = mixed(model)
    found = predictions(evaluator)
    run_hook(evaluator)
    found.clear()
    EvalHook(loader(), evaluator, context=Swapped).evaluate()
    assert not equal(found, by_hand(model))
    with Swapped():
        assert equal(found, by_hand(model))


@pytest.mark.parametrize("where", ["handler", "compute_metrics"])
def test_a_probe_trained_meanwhile_under_autocast_learns(where: str) -> None:
    probe = nn.Linear(8, 1)
    seen: list[Tensor] = []

    def train(*_: Any) -> dict[str, float]:
        with torch.enable_grad():
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16):
                    seen.append(probe(X).detach())
                add_in_place([probe])
        return {"seen": 1.0}

    evaluator = mixed(Model())
    compute = train if where == "compute_metrics" else None
    if where == "handler":
        evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=2), train)
    EvalHook(loader(), evaluator, compute_metrics=compute).evaluate()
    assert not torch.equal(*seen)


def test_what_compute_metrics_does_under_autocast_begins_without_copies() -> None:
    model = Model()
    seen: list[Tensor] = []

    def compute(results: list[Any]) -> dict[str, float]:
        write_through_data(model)
        seen.extend(by_hand(model)[:1])
        return {"count": float(len(results))}

    EvalHook(loader(), mixed(model), compute_metrics=compute).evaluate()
    write_through_data(model)
    assert equal(seen, by_hand(model)[:1])


def test_weights_made_in_inference_mode_are_evaluated() -> None:
    with torch.inference_mode():
        model = Model()
    evaluator = mixed(model, inference_mode=True)
    found = predictions(evaluator)
    run_hook(evaluator)
    with torch.inference_mode():
        assert equal(found, by_hand(model))


# -- no trace -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["loss", "handler"])
def test_an_evaluation_that_raises_leaves_no_region_and_no_copy(
    where: str, error: type[BaseException]
) -> None:
    model = Model()
    calls: list[int] = []

    def breaks(*_: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise error("breaks")
        return torch.zeros(())

    loss = breaks if where == "loss" else CRITERION
    evaluator = create_evaluator(model, loss_fn=loss, amp_dtype=torch.bfloat16)
    if where == "handler":
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, breaks)
    with pytest.raises(error, match="breaks"):
        run_hook(evaluator)
    assert not inside_autocast()
    assert not torch.is_autocast_enabled("cpu")
    with Casts(model) as casts, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(X)
    assert casts.count == WEIGHTS


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16, None])
def test_inside_a_region_of_the_users_it_sees_the_weights_of_now(amp: torch.dtype | None) -> None:
    model = Model()
    evaluator = create_evaluator(model, loss_fn=CRITERION, amp_dtype=amp)
    found = predictions(evaluator)
    with torch.autocast("cpu", torch.bfloat16):
        model(X)  # torch keeps these casts up to the end of the region
        add_in_place(model)
        run_hook(evaluator)
    expected = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16 if amp is None else amp):
        expected = [model(x) for x, _ in loader()]
    assert equal(found, expected)


@pytest.mark.parametrize("breaks", [False, True])
def test_inside_a_region_of_the_users_its_copies_stay_and_none_is_added(breaks: bool) -> None:
    model = Model()

    def criterion(y_pred: Tensor, y: Tensor) -> Tensor:
        if breaks:
            raise RuntimeError("breaks")
        return CRITERION(y_pred, y)

    evaluator = create_evaluator(model, loss_fn=criterion, amp_dtype=torch.bfloat16)
    with Casts(model) as casts, torch.autocast("cpu", torch.bfloat16):
        model[0](X)
        casts.count = 0
        if breaks:
            with pytest.raises(RuntimeError, match="breaks"):
                run_hook(evaluator)
        else:
            run_hook(evaluator)
        assert torch.is_autocast_cache_enabled()
        casts.count = 0
        model[0](X)
        assert casts.count == 0
        model[2](X)
        assert casts.count == 2


def test_training_inside_a_region_of_the_users_is_the_same_with_a_hook() -> None:
    def train(with_hook: bool) -> list[Tensor]:
        model = Model()
        optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)

        def step(engine: Engine, batch: Any) -> None:
            optimizer.zero_grad()
            CRITERION(model(batch[0]), batch[1]).backward()
            optimizer.step()

        trainer = Engine(step)
        if with_hook:
            EvalHook(loader(), mixed(model), start=0).attach(trainer)
            EvalHook(loader(), model, name="plain", start=0).attach(trainer)
        with torch.autocast("cpu", torch.bfloat16):
            trainer.run(loader(), max_epochs=3)
        return list(model.parameters())

    assert equal(train(with_hook=True), train(with_hook=False))


def test_quiet_keeps_a_cache_that_was_off_off() -> None:
    torch.set_autocast_cache_enabled(False)
    try:
        with quiet([Model()]):
            pass
        assert not torch.is_autocast_cache_enabled()
    finally:
        torch.set_autocast_cache_enabled(True)
