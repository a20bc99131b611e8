"""What surrounds an evaluation: metrics derived from others, and weights swapped for its time."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from ignite.metrics import Accuracy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ignite_evalhook import EvalEvents, EvalHook, EvaluationError, create_evaluator, load_best

X = torch.linspace(-1, 1, 24).reshape(12, 2)
Y = X.sum(1, keepdim=True) * 2 + 0.5
MSE = nn.functional.mse_loss
Context = Callable[[], AbstractContextManager[Any]]


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=4, **options)


def make_model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.2), nn.Linear(3, 1))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(dict(model.state_dict()))


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def loss_of(model: nn.Module) -> float:
    """Return the loss by hand, and leave the model as it is."""
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        return float(MSE(twin(X), Y))


class Training:
    """A small run, the same every time."""

    def __init__(self) -> None:
        self.model = make_model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.trainer = Engine(self._step)

    def _step(self, engine: Engine, batch: Any) -> None:
        self.model.train()
        x, y = batch
        self.optimizer.zero_grad()
        MSE(self.model(x), y).backward()
        self.optimizer.step()

    def run(self, epochs: int = 4) -> None:
        torch.manual_seed(11)
        self.trainer.run(loader(shuffle=True), max_epochs=epochs)


def bystander() -> Engine:
    return Engine(lambda engine, batch: None)


# -- derive ---------------------------------------------------------------------------------------


def test_derived_metrics_come_last_in_order_and_see_all_the_others() -> None:
    seen: list[list[str]] = []

    def spy(name: str) -> Callable[[Any], float]:
        def function(metrics: Any) -> float:
            seen.append(list(metrics))
            return float(len(metrics))

        return function

    evaluator = create_evaluator(
        nn.Linear(2, 1),
        {"acc": Accuracy(lambda output: (torch.ones(1), torch.ones(1)))},
        loss_fn=MSE,
    )
    record = EvalHook(
        loader(),
        evaluator,
        compute_metrics=lambda results: {"n": len(results)},
        derive={"second": spy("second"), "first": spy("first")},
    ).evaluate()
    assert seen == [["acc", "val_loss", "n"], ["acc", "val_loss", "n", "second"]]
    assert list(record.metrics.items())[-2:] == [("second", 3.0), ("first", 4.0)]


def test_a_derived_metric_may_be_the_score(tmp_path: Path) -> None:
    values = iter([3.0, 1.0, 2.0])
    trainer = bystander()
    hook = EvalHook(
        None,
        lambda trainer: {"loss": next(values)},
        model=nn.Linear(1, 1),
        derive={"perplexity": lambda metrics: math.exp(metrics["loss"])},
        save_best="perplexity",
        out_dir=tmp_path,
    ).attach(trainer)
    trainer.run([0], max_epochs=3)
    assert hook.best is not None
    assert (hook.best.epoch, hook.best.score) == (2, math.exp(1.0))
    assert load_best(tmp_path, {"model": nn.Linear(1, 1)}) == hook.best


@pytest.mark.parametrize(
    ("value", "recorded"),
    [
        (torch.tensor(0.5), 0.5),
        (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
        (0, 0.0),
        ("text", "text"),
        (None, "None"),
    ],
)
def test_derived_values_end_as_plain_ones(value: Any, recorded: Any) -> None:
    hook = EvalHook(loader(), nn.Linear(2, 1), derive={"value": lambda metrics: value})
    assert hook.evaluate().metrics == {"value": recorded}


def test_derived_from_metrics_that_are_plain_numbers_by_then() -> None:
    evaluator = create_evaluator(nn.Linear(2, 1), loss_fn=MSE)
    hook = EvalHook(
        loader(),
        evaluator,
        compute_metrics=lambda results: {"t": torch.tensor(2.0)},
        derive={"kinds": lambda m: [type(m["t"]).__name__, type(m["val_loss"]).__name__]},
    )
    assert hook.evaluate().metrics["kinds"] == ["float", "float"]


def test_a_derived_nan_is_recorded_and_never_the_best(caplog: Any) -> None:
    hook = EvalHook(
        loader(),
        nn.Linear(2, 1),
        derive={"loss": lambda metrics: math.nan},
        save_best="loss",
        out_dir=False,
    ).attach(bystander())
    with caplog.at_level(logging.WARNING, logger="ignite_evalhook"):
        record = hook.evaluate()
    assert math.isnan(record.metrics["loss"])
    assert hook.best is None
    assert "loss is nan; recorded, but never the best" in caplog.text


@pytest.mark.parametrize("name", ["val_loss", "n", "acc"])
def test_a_derived_metric_may_not_overwrite_another(name: str) -> None:
    evaluator = create_evaluator(
        nn.Linear(2, 1),
        {"acc": Accuracy(lambda output: (torch.ones(1), torch.ones(1)))},
        loss_fn=MSE,
    )
    hook = EvalHook(
        loader(),
        evaluator,
        compute_metrics=lambda results: {"n": 1},
        derive={name: lambda metrics: 0.0},
    )
    with pytest.raises(EvaluationError, match=f"derive='{name}' would overwrite a metric"):
        hook.evaluate()


def test_an_error_in_a_derived_metric_passes_through() -> None:
    hook = EvalHook(loader(), nn.Linear(2, 1), derive={"x": lambda metrics: metrics["missing"]})
    with pytest.raises(KeyError, match="missing"):
        hook.evaluate()
    assert len(hook.history) == 0


def test_derived_metrics_reach_the_evaluators_own_handlers() -> None:
    seen: dict[str, float] = {}
    hook = EvalHook(loader(), nn.Linear(2, 1), derive={"one": lambda metrics: 1})
    hook.attach(bystander())
    hook.evaluator.add_event_handler(
        Events.COMPLETED, lambda engine: seen.update(engine.state.metrics)
    )
    hook.evaluate()
    assert seen == {"one": 1.0}


# -- an averaged model beside the one that trains -------------------------------------------------


@pytest.mark.parametrize("buffers", ["copy", "update", "ema_train"])
def test_ignites_ema_model_is_scored_and_saved_and_training_does_not_notice(
    buffers: str, tmp_path: Path
) -> None:
    plain = Training()
    plain_ema = EMAHandler(plain.model, momentum=0.3, handle_buffers=buffers)
    plain_ema.attach(plain.trainer)
    plain.run()

    training = Training()
    ema = EMAHandler(training.model, momentum=0.3, handle_buffers=buffers)
    ema.attach(training.trainer)
    hook = EvalHook(
        loader(),
        create_evaluator(ema.ema_model, loss_fn=MSE),
        save_best="val_loss",
        out_dir=tmp_path,
    ).attach(training.trainer)
    scored: list[tuple[float, dict[str, Tensor]]] = []

    @hook.on(EvalEvents.NEW_BEST)
    def note(record: Any) -> None:
        scored.append((loss_of(ema.ema_model), weights(ema.ema_model)))

    training.run()
    assert same(weights(training.model), weights(plain.model))
    assert same(weights(ema.ema_model), weights(plain_ema.ema_model))
    assert ema.ema_model.training is (buffers == "ema_train")
    assert hook.best is not None
    assert hook.best.score == pytest.approx(scored[-1][0], rel=1e-6)
    saved = make_model()
    load_best(tmp_path, {"model": saved})
    assert same(weights(saved), scored[-1][1])
    assert not same(weights(saved), weights(training.model))


def test_a_model_given_besides_does_not_keep_the_evaluated_one_in_training_mode() -> None:
    trained, averaged = make_model(), make_model()
    before = weights(averaged)
    hook = EvalHook(loader(), create_evaluator(averaged, loss_fn=MSE), model=trained)
    assert hook.evaluate().metrics["val_loss"] == pytest.approx(loss_of(averaged), rel=1e-6)
    assert same(weights(averaged), before)
    assert all(module.training for module in (*trained.modules(), *averaged.modules()))


# -- weights swapped for the time of an evaluation ------------------------------------------------


class Average:
    """A moving average of a model's weights that is swapped in and out."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.shadow = weights(model)
        self.inside = False

    def update(self, engine: Engine) -> None:
        for name, value in self.model.state_dict().items():
            self.shadow[name] = (self.shadow[name] * 0.7 + value * 0.3).to(value.dtype)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        raw = weights(self.model)
        self.model.load_state_dict(self.shadow)
        self.inside = True
        try:
            yield
        finally:
            self.model.load_state_dict(raw)
            self.inside = False


def swapping(training: Training) -> Average:
    average = Average(training.model)
    training.trainer.add_event_handler(Events.ITERATION_COMPLETED, average.update)
    return average


def test_swapped_weights_are_scored_and_saved_and_the_raw_ones_come_back(tmp_path: Path) -> None:
    plain = Training()
    plain.run()

    training = Training()
    average = swapping(training)
    hook = EvalHook(
        loader(),
        create_evaluator(training.model, loss_fn=MSE),
        context=average.swapped,
        save_best="val_loss",
        out_dir=tmp_path,
    ).attach(training.trainer)
    shadows: list[dict[str, Tensor]] = []
    hook.on(EvalEvents.NEW_BEST, lambda record: shadows.append(copy.deepcopy(average.shadow)))
    training.run()
    assert same(weights(training.model), weights(plain.model))
    saved = make_model()
    best = load_best(tmp_path, {"model": saved})
    assert same(weights(saved), shadows[-1])
    assert best.score == pytest.approx(loss_of(saved), rel=1e-6)


def test_the_last_checkpoint_holds_the_raw_weights(tmp_path: Path) -> None:
    training = Training()
    average = swapping(training)
    hook = EvalHook(
        loader(),
        create_evaluator(training.model, loss_fn=MSE),
        context=average.swapped,
        save_best="val_loss",
        out_dir=tmp_path,
    ).attach(training.trainer)
    hook.keep_last({"model": training.model, "optimizer": training.optimizer})
    training.run()
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert same(last["model"], weights(training.model))


def test_it_is_entered_after_the_model_is_in_eval_mode_and_left_when_the_best_is_saved(
    tmp_path: Path,
) -> None:
    model = make_model()
    story: list[Any] = []

    @contextmanager
    def context() -> Iterator[None]:
        story.append(("in", model.training, len(list(tmp_path.glob("best*.pt")))))
        try:
            yield
        finally:
            story.append(("out", model.training, len(list(tmp_path.glob("best*.pt")))))

    hook = EvalHook(
        loader(),
        create_evaluator(model, loss_fn=MSE),
        context=context,
        save_best="val_loss",
        out_dir=tmp_path,
        preflight=False,
    ).attach(bystander())
    hook.on(EvalEvents.EVAL_STARTED, lambda record: story.append("started"))
    hook.on(EvalEvents.EVAL_COMPLETED, lambda record: story.append("completed"))
    hook.evaluate()
    assert story == ["started", ("in", False, 0), ("out", False, 1), "completed"]
    assert model.training


@pytest.mark.parametrize("track", [True, False])
def test_it_surrounds_every_kind_of_evaluation(track: bool) -> None:
    inside: list[bool] = []
    average = Average(make_model())

    def validate(trainer: Any) -> dict[str, float]:
        inside.append(average.inside)
        return {"loss": 1.0}

    hook = EvalHook(None, validate, model=average.model, context=average.swapped)
    hook.attach(bystander())
    hook.evaluate(track=track)
    assert inside == [True]
    assert not average.inside


def test_preflight_looks_at_the_swapped_weights_too() -> None:
    training = Training()
    average = swapping(training)
    inside: list[bool] = []

    def step(engine: Engine, batch: Any) -> None:
        inside.append(average.inside)

    evaluator = create_evaluator(training.model, step=step)
    EvalHook(loader(), evaluator, context=average.swapped).attach(training.trainer)
    training.run(epochs=1)
    assert inside == [True] * 4  # one batch, then all three


def test_a_context_manager_class_of_torch_will_do() -> None:
    seen: list[bool] = []

    def step(engine: Engine, batch: Any) -> None:
        seen.append(torch.is_inference_mode_enabled())

    model = make_model()
    EvalHook(loader(), create_evaluator(model, step=step), context=torch.inference_mode).evaluate()
    assert set(seen) == {True}


# -- optimizers that train and evaluate at different points ---------------------------------------


class ScheduleFree(torch.optim.SGD):
    """Like the schedule-free optimizers: the weights to evaluate are not those to train on."""

    mode = "train"
    training_point: tuple[Tensor, ...] = ()

    def eval(self) -> None:
        assert self.mode == "train"
        self.mode = "eval"
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.training_point = tuple(p.detach().clone() for p in parameters)
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(0.5)

    def train(self) -> None:
        assert self.mode == "eval"
        self.mode = "train"
        parameters = [p for group in self.param_groups for p in group["params"]]
        with torch.no_grad():
            for parameter, value in zip(parameters, self.training_point, strict=True):
                parameter.copy_(value)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert self.mode == "train", "an optimizer in eval mode must not step"
        super().step(closure)


@contextmanager
def in_eval_mode(optimizer: ScheduleFree) -> Iterator[None]:
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()


def test_a_schedule_free_optimizer_is_back_in_train_mode_for_each_step(tmp_path: Path) -> None:
    def train(context: bool) -> tuple[Training, EvalHook]:
        training = Training()
        optimizer = ScheduleFree(training.model.parameters(), lr=0.1)
        training.optimizer = optimizer
        hook = EvalHook(
            loader(),
            create_evaluator(training.model, loss_fn=MSE),
            context=(lambda: in_eval_mode(optimizer)) if context else None,
            interval=2,
            by_epoch=False,
            save_best="val_loss",
            out_dir=tmp_path / str(context),
        ).attach(training.trainer)
        training.run()
        assert optimizer.mode == "train"
        return training, hook

    without, with_it = train(False), train(True)
    assert same(weights(without[0].model), weights(with_it[0].model))
    assert without[1].history[0].metrics != with_it[1].history[0].metrics
    saved = make_model()
    best = load_best(tmp_path / "True", {"model": saved})
    assert best.score == pytest.approx(loss_of(saved), rel=1e-6)


# -- a context that raises ------------------------------------------------------------------------


class Fails:
    """A context that swaps weights and raises where it is told to."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.where: str | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        torch.rand(3)
        if self.where == "entry":
            raise RuntimeError("cannot enter")
        raw = weights(self.model)
        with torch.no_grad():
            for value in (*self.model.parameters(), *self.model.buffers()):
                value.zero_()
        try:
            yield
        finally:
            self.model.load_state_dict(raw)
        if self.where == "exit":
            raise RuntimeError("cannot leave")


def failing_hook(model: nn.Module, where: list[str], out_dir: Path) -> tuple[EvalHook, Fails]:
    """Return a hook that fails at ``where[0]`` once there is something in that list."""
    context = Fails(model)

    def fail(here: str) -> None:
        if where == [here]:
            raise RuntimeError(f"{here} failed")

    def step(engine: Engine, batch: Any) -> Any:
        fail("model")
        x, y = batch
        torch.rand(2)
        return model(x), y

    def compute(results: list[Any]) -> dict[str, float]:
        fail("compute")
        return {"score": 1.0 + len(where)}

    class Saved:
        def state_dict(self) -> dict[str, Any]:
            fail("saving")
            return {}

        def load_state_dict(self, state: Any) -> None: ...

    def derived(metrics: Any) -> float:
        fail("derive")
        context.where = where[0] if where else None
        return 0.0

    hook = EvalHook(
        loader(),
        create_evaluator(model, step=step),
        to_save={"model": model, "extra": Saved()},
        compute_metrics=compute,
        derive={"nothing": derived},
        context=context,
        save_best="score",
        rule="greater",
        out_dir=out_dir,
    ).attach(bystander())
    return hook, context


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("entry", "cannot enter"),
        ("model", "model failed"),
        ("compute", "compute failed"),
        ("derive", "derive failed"),
        ("saving", "saving failed"),
        ("exit", "cannot leave"),
    ],
)
def test_wherever_it_fails_training_and_the_best_stand_as_they_stood(
    where: str, words: str, tmp_path: Path
) -> None:
    model = make_model()
    model[1].eval()  # type: ignore[index]  # a frozen BatchNorm
    failures: list[str] = []
    hook, context = failing_hook(model, failures, tmp_path)
    trainer = hook._session.need_trainer()
    trainer.run([0], max_epochs=1)
    best = hook.best
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    before, modes = weights(model), [module.training for module in model.modules()]
    random = torch.get_rng_state()

    failures.append(where)
    context.where = where if where == "entry" else None
    trainer.state.iteration += 1  # a step that has no record
    with pytest.raises(Exception, match=words):
        hook.evaluate()
    assert same(weights(model), before)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert len(hook.history) == 1
    assert hook.best == best
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files

    failures.clear()
    context.where = None
    assert hook.evaluate().metrics["score"] == 1.0
    assert len(hook.history) == 2


def test_a_keyboard_interrupt_leaves_the_context_too() -> None:
    average = Average(make_model())
    raw = weights(average.model)

    def step(engine: Engine, batch: Any) -> None:
        raise KeyboardInterrupt

    hook = EvalHook(loader(), create_evaluator(average.model, step=step), context=average.swapped)
    with pytest.raises(KeyboardInterrupt):
        hook.evaluate()
    assert not average.inside
    assert same(weights(average.model), raw)


def test_a_context_that_swallows_an_error_does_not_pass_for_an_evaluation() -> None:
    model = make_model()

    def step(engine: Engine, batch: Any) -> None:
        raise RuntimeError("boom")

    evaluator = create_evaluator(model, step=step)
    hook = EvalHook(loader(), evaluator, context=lambda: suppress(RuntimeError))
    hook.attach(bystander())
    for track in (True, False):
        with pytest.raises(RuntimeError, match="boom"):
            hook.evaluate(track=track)
    assert model.training
    assert len(hook.history) == 0


def test_what_the_function_returns_must_be_a_context_manager() -> None:
    hook = EvalHook(loader(), make_model(), context=lambda: 3)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="context manager"):
        hook.evaluate()


def test_no_context_is_the_default() -> None:
    hooks = [EvalHook(loader(), make_model(), context=c) for c in (None, nullcontext)]
    assert hooks[0].evaluate().metrics == hooks[1].evaluate().metrics
