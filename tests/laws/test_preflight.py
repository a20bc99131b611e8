"""What is found before the first training step, and that looking leaves no trace."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from ignite.metrics import (
    Accuracy,
    ConfusionMatrix,
    EpochMetric,
    Fbeta,
    Loss,
    Metric,
    Precision,
    Recall,
    RunningAverage,
)
from ignite.metrics.metric import BatchFiltered, RunningEpochWise
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ignite_evalhook import (
    CheckpointError,
    EvalEvents,
    EvalHook,
    EvaluationError,
    RuleInferenceError,
    ValLoss,
    create_evaluator,
)

X = torch.linspace(-1, 1, 20).reshape(10, 2)
Y = torch.tensor([0, 1] * 5)
CROSS_ENTROPY = nn.functional.cross_entropy


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=4, **options)


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


class Group(Metric):
    """A metric whose result is a mapping, as detection metrics have."""

    def __init__(self, least: int = 1) -> None:
        self.least = least
        super().__init__()

    def reset(self) -> None:
        self.seen = 0

    def update(self, output: Any) -> None:
        self.seen += len(output[1])

    def compute(self) -> dict[str, float]:
        if self.seen < self.least:
            raise RuntimeError("too few samples to compute")
        return {"top1": 0.5, "top5": 0.9, "seen": float(self.seen)}


class Run:
    """A run of two epochs of three iterations, and everything that must stay as it was."""

    def __init__(
        self,
        folder: Path,
        *,
        metrics: Mapping[str, Metric] | None = None,
        evaluator: Engine | None = None,
        data: Any = None,
        prepare: Callable[[EvalHook], object] | None = None,
        **options: Any,
    ) -> None:
        self.folder = folder
        self.trained = 0
        self.fired: list[str] = []
        self.model = make_model()
        self.model[1].eval()  # type: ignore[index]  # frozen
        self.trainer = Engine(self._train)
        if evaluator is None:
            evaluator = create_evaluator(self.model, metrics, loss_fn=CROSS_ENTROPY)
        self.evaluator = evaluator
        options = {"out_dir": folder / "run" / "1", "model": self.model, **options}
        self.hook = EvalHook(loader() if data is None else data, evaluator, **options)
        self.hook.attach(self.trainer)
        for event in EvalEvents:
            self.trainer.add_event_handler(event, self._fire, event.name)
        # Handlers of other events might prepare the evaluator, or add metrics.
        evaluator.add_event_handler(Events.COMPLETED, self._fire, "evaluator's COMPLETED")
        if prepare is not None:
            prepare(self.hook)

    def _train(self, engine: Engine, batch: Any) -> None:
        self.trained += 1

    def _fire(self, engine: Engine, name: str) -> None:
        self.fired.append(name)

    def go(self) -> EvalHook:
        self.trainer.run(range(3), max_epochs=2)
        return self.hook

    def traces(self) -> dict[str, Any]:
        """Return all that preflight might have touched."""
        state = self.evaluator.state
        return {
            "files": sorted(self.folder.rglob("*")),
            "fired": list(self.fired),
            "trained": self.trained,
            "evaluator": {**vars(state), "metrics": dict(state.metrics)},
            "last event": self.evaluator.last_event_name,
            "process": self.evaluator._process_function,
            "modes": [module.training for module in self.model.modules()],
            "weights": {n: v.tolist() for n, v in self.model.state_dict().items()},
            "torch": torch.get_rng_state().tolist(),
            "python": random.getstate(),
            "numpy": str(np.random.get_state()),
            "grad": torch.is_grad_enabled(),
            "history": len(self.hook.history),
            "best": self.hook.bests,
        }


# -- what is found --------------------------------------------------------------------------------


class Plain:
    """An object to save, with the state that it is given."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.state}

    def load_state_dict(self, state: Any) -> None: ...


class MMLoss:
    """A loss as MMEngine's data elements carry it."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss

    def keys(self) -> list[str]:
        return ["loss"]


def outputs(*items: Any) -> Engine:
    return Engine(lambda engine, batch: items)


def raises(engine: Engine, batch: Any) -> Any:
    raise ZeroDivisionError("the model fails")


def use_up() -> Any:
    return DataLoader(TensorDataset(X[:0], Y[:0]))


ACCURACY = {"save_best": "accuracy", "metrics": lambda: {"accuracy": Accuracy()}}
FAULTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a misspelled metric": (
        {**ACCURACY, "save_best": "acuracy", "rule": "greater"},
        ValueError,
        r"no metric 'acuracy' in the result, which has \[.*'accuracy'.*\]; "
        r"did you mean 'accuracy'\?",
    ),
    "a misspelled validation loss": (
        {"save_best": "valid_loss"},
        ValueError,
        r"no metric 'valid_loss' .*\['val_loss'\]; did you mean 'val_loss'\?",
    ),
    "the second of two metrics": (
        {**ACCURACY, "save_best": ["accuracy", "acc"]},
        ValueError,
        "no metric 'acc' in the result",
    ),
    "a misspelled metric inside a mapping": (
        {"metrics": lambda: {"group": Group()}, "save_best": "top2", "rule": "greater"},
        ValueError,
        "no metric 'top2' .*'top1', 'top5', 'seen'.*did you mean",
    ),
    "a misspelled metric of early stopping": (
        {**ACCURACY, "prepare": lambda hook: hook.early_stopping(3, metric="valid_loss")},
        ValueError,
        "no metric 'valid_loss' in the result.*did you mean 'val_loss'",
    ),
    "a misspelled metric of a scheduler": (
        {
            "prepare": lambda hook: hook.step_on_plateau(
                torch.optim.lr_scheduler.ReduceLROnPlateau(
                    torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
                ),
                metric="valid_loss",
            )
        },
        ValueError,
        "no metric 'valid_loss' in the result",
    ),
    "'auto' that chooses a name without a rule": (
        {"metrics": lambda: {"zorp": Accuracy()}, "save_best": "auto"},
        RuleInferenceError,
        "'zorp' is better",
    ),
    "a loss that is no tensor": (
        {"evaluator": lambda: Engine(lambda engine, batch: (X[:4], MMLoss("high")))},
        TypeError,
        "loss must be a tensor or a number, got str",
    ),
    "a mean of nobody knows how many samples": (
        {"evaluator": lambda: outputs(None, ValLoss(0.5)), "data": lambda: [object()]},
        ValueError,
        "weight",
    ),
    "a loss that weighs less than nothing": (
        {"evaluator": lambda: outputs(X[:4], ValLoss(0.5, weight=torch.tensor(-1.0)))},
        ValueError,
        "negative",
    ),
    "a loss that is not the last item": (
        {"evaluator": lambda: outputs(ValLoss(torch.ones(4)), X[:4])},
        ValueError,
        "a ValLoss must be the last item of the outputs",
    ),
    "a model that raises": (
        {"evaluator": lambda: Engine(raises)},
        ZeroDivisionError,
        "the model fails",
    ),
    "a metric that cannot use the output": (
        {"metrics": lambda: {"acc": Accuracy(lambda output: (output[0], output[1][:1]))}},
        ValueError,
        "y and y_pred must have compatible shapes",
    ),
    "a batch that cannot be unpacked": (
        {"data": lambda: [{"x": X, "y": Y}]},
        TypeError,
        r"expects \(x, y\); got a dict with keys",
    ),
    "no data": ({"data": use_up}, EvaluationError, "the evaluation data is empty"),
    "a folder that cannot be written": (
        {"out_dir": "/proc/nowhere/run"},
        CheckpointError,
        "cannot write to /proc/nowhere/run.*choose another out_dir",
    ),
    "a state that weights_only refuses": (
        {
            "to_save": lambda: {"model": make_model(), "extra": Plain({1, 2})},
            "save_best": "val_loss",
        },
        TypeError,
        r"to_save\['extra'\].*a set.*weights_only.*sorted list",
    ),
    "a schedule that is never due": (
        {"interval": 500},
        ValueError,
        "interval=500 counts epochs and this run has 2, so no evaluation would ever be due; "
        "by_epoch=False counts iterations",
    ),
    "iterations that are never reached": (
        {"interval": 7, "by_epoch": False},
        ValueError,
        "interval=7 counts iterations and this run has 6",
    ),
    "a time that starts too late": (
        {"interval": timedelta(hours=1), "start": 9},
        ValueError,
        "start=9 with interval=.* and this run has 2",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_found_before_the_first_step_and_leaves_no_trace(
    name: str, tmp_path: Path, caplog: Any
) -> None:
    options, error, words = FAULTS[name]
    made = {key: value() if _is_maker(key, value) else value for key, value in options.items()}
    run = Run(tmp_path, **made)
    run.evaluator.state.metrics["left over"] = 1.0
    run.evaluator.state.output = "left over"
    before = run.traces()
    with caplog.at_level(logging.INFO, logger="ignite_evalhook"), pytest.raises(error, match=words):
        run.go()
    assert run.traces() == before
    assert [record for record in caplog.records if record.name == "ignite_evalhook"] == []


def _is_maker(key: str, value: Any) -> bool:
    """Tell whether a table's entry is made anew for each test."""
    return key in ("metrics", "evaluator", "data", "to_save") and callable(value)


# A schedule that is never due, and a folder that cannot be locked, end a run in any case.
EVEN_SO = ("a folder", "a schedule", "iterations", "a time")


@pytest.mark.parametrize("name", [name for name in FAULTS if not name.startswith(EVEN_SO)])
def test_with_preflight_off_the_same_fault_ends_the_first_evaluation(
    name: str, tmp_path: Path
) -> None:
    options, error, _ = FAULTS[name]
    made = {key: value() if _is_maker(key, value) else value for key, value in options.items()}
    run = Run(tmp_path, preflight=False, save_best=made.pop("save_best", "val_loss"), **made)
    with pytest.raises((error, EvaluationError, CheckpointError)):
        run.go()
    assert run.trained == 3


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_found_too(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="cannot write to"):
            Run(tmp_path).go()
    finally:
        tmp_path.chmod(0o700)


def test_a_file_in_place_of_the_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    run = Run(tmp_path, out_dir=tmp_path / "file" / "run")
    with pytest.raises(CheckpointError, match="cannot write to"):
        run.go()
    assert run.trained == 0
    assert (tmp_path / "file").read_text() == "mine"


def test_an_evaluation_on_demand_is_checked_as_well_and_again_when_mended(tmp_path: Path) -> None:
    run = Run(tmp_path, save_best="accuracy")
    before = run.traces()
    for _ in range(2):
        with pytest.raises(ValueError, match="no metric 'accuracy'"):
            run.hook.evaluate()
    assert run.traces() == before
    Accuracy().attach(run.evaluator, "accuracy")
    assert run.hook.evaluate().is_best
    assert len(run.go().history) == 3


# -- what is not found, since nobody can know -----------------------------------------------------


def passes(tmp_path: Path, **options: Any) -> EvalHook:
    run = Run(tmp_path, **options)
    hook = run.go()
    assert run.trained == 6
    assert len(hook.history) == 2
    assert hook.best is not None
    return hook


def as_labels(output: Any) -> Any:
    return output[0].argmax(1), output[1]


METRICS: dict[str, Callable[[], Mapping[str, Metric]]] = {
    "plain": lambda: {"score": Accuracy()},
    "inside a mapping": lambda: {"group": Group()},
    "made of others": lambda: {"score": Fbeta(1.0)},
    "made of others with transforms": lambda: {
        "score": Fbeta(
            1.0,
            precision=Precision(as_labels, average=False),
            recall=Recall(as_labels, average=False),
        )
    },
    "arithmetic": lambda: {"score": 1.0 - Accuracy() * 0.5},
    "an item of another": lambda: {"score": ConfusionMatrix(2)[0, 0]},
    "running over batches": lambda: {"score": RunningAverage(Accuracy())},
    "an epoch metric": lambda: {"score": EpochMetric(lambda p, y: float(y.sum()))},
    "a loss": lambda: {"score": Loss(CROSS_ENTROPY)},
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_of_every_make_pass(name: str, tmp_path: Path) -> None:
    followed = "top1" if name == "inside a mapping" else "score"
    metrics = METRICS[name]()
    hook = passes(tmp_path, metrics=metrics, save_best=followed, rule="greater")
    assert hook.best is not None
    alone = create_evaluator(make_model(), METRICS[name](), loss_fn=CROSS_ENTROPY)
    assert hook.best.score == EvalHook(loader(), alone).evaluate().metrics[followed]


@pytest.mark.parametrize("usage", [BatchFiltered(every=2), RunningEpochWise()])
def test_metrics_of_every_usage_pass(usage: Any, tmp_path: Path) -> None:
    def attach(hook: EvalHook) -> None:
        metric = Accuracy()
        running = isinstance(usage, RunningEpochWise)
        (RunningAverage(metric) if running else metric).attach(hook.evaluator, "score", usage)

    passes(tmp_path, prepare=attach, save_best="score", rule="greater")


def test_two_metrics_that_share_a_third_are_not_updated_twice(tmp_path: Path) -> None:
    counted: list[int] = []

    class Counting(Precision):
        def update(self, output: Any) -> None:
            counted.append(len(output[1]))
            super().update(output)

    def attach(hook: EvalHook) -> None:
        shared = Counting(average=False)
        shared.attach(hook.evaluator, "precision")
        shared.mean().attach(hook.evaluator, "mean")
        (shared * 2).mean().attach(hook.evaluator, "double")

    passes(tmp_path, prepare=attach, save_best="mean", rule="greater")
    assert counted == [4, *[4, 4, 2] * 2]


def test_a_mapping_metric_that_one_batch_is_too_little_for_is_waited_for(tmp_path: Path) -> None:
    passes(tmp_path, metrics={"group": Group(least=10)}, save_best="top5", rule="greater")


def test_auto_waits_for_a_metric_that_one_batch_is_too_little_for(tmp_path: Path) -> None:
    metrics = {"group": Group(least=10), "zorp": Accuracy()}
    hook = passes(tmp_path, metrics=metrics, save_best="auto")
    assert hook.best is not None
    assert hook.best.metric == "top1"


HANDLED = (Events.STARTED, Events.EPOCH_STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED)


@pytest.mark.parametrize("event", HANDLED)
def test_handlers_of_the_users_own_may_bring_the_metric(event: Events, tmp_path: Path) -> None:
    def bring(hook: EvalHook) -> None:
        @hook.evaluator.on(event)
        def handler(engine: Engine) -> None:
            engine.state.metrics["mine"] = 0.5

    passes(tmp_path, prepare=bring, save_best="mine", rule="greater")


class Handler:
    def __call__(self, engine: Engine) -> None: ...


def nothing(engine: Engine, more: int = 0) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [Handler(), partial(nothing, more=1), print, [].append],
    ids=["object", "partial", "builtin", "method"],
)
def test_handlers_of_any_make_might_bring_it(handler: Any, tmp_path: Path) -> None:
    def attach(hook: EvalHook) -> None:
        hook.evaluator.add_event_handler(Events.STARTED, handler)

    run = Run(tmp_path, prepare=attach, save_best="mine", rule="greater")
    with pytest.raises(EvaluationError, match="there is no metric 'mine'"):
        run.go()
    assert run.trained == 3


def test_ignites_own_handlers_do_not(tmp_path: Path) -> None:
    def attach(hook: EvalHook) -> None:
        ProgressBar().attach(hook.evaluator)

    with pytest.raises(ValueError, match="no metric 'mine'"):
        Run(tmp_path, prepare=attach, save_best="mine", rule="greater").go()


def test_compute_metrics_may_bring_the_metric_and_is_not_called_early(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute(results: list[Any]) -> dict[str, float]:
        calls.append(len(results))
        return {"mine": 0.5}

    passes(tmp_path, compute_metrics=compute, save_best="mine", rule="greater")
    assert calls == [10, 10]


def test_the_process_function_may_bring_the_metric(tmp_path: Path) -> None:
    def step(engine: Engine, batch: Any) -> None:
        engine.state.metrics["mine"] = 0.5

    passes(tmp_path, evaluator=Engine(step), save_best="mine", rule="greater")


def test_derived_metrics_are_taken_at_their_word_and_not_called_early(tmp_path: Path) -> None:
    calls: list[float] = []

    def derived(metrics: Mapping[str, Any]) -> float:
        calls.append(metrics["val_loss"])
        return 0.5

    passes(tmp_path, derive={"mine": derived}, save_best="mine", rule="greater")
    assert len(calls) == 2


def test_a_function_evaluator_is_not_called_early(tmp_path: Path) -> None:
    calls: list[int] = []
    trainer = Engine(lambda engine, batch: None)

    def validate(engine: Engine | None) -> dict[str, float]:
        calls.append(trainer.state.epoch)
        return {"fid": 3.0}

    EvalHook(None, validate, model=make_model(), save_best="fid", out_dir=tmp_path).attach(trainer)
    trainer.run([0], max_epochs=2)
    assert calls == [1, 2]


def test_components_of_the_loss_are_known(tmp_path: Path) -> None:
    def step(engine: Engine, batch: Any) -> Any:
        return {"loss": ValLoss({"loss_cls": torch.ones(4), "loss_box": torch.ones(4)})}

    passes(tmp_path, evaluator=Engine(step), save_best=["loss_box", "val_loss"])


def test_auto_follows_the_validation_loss_before_its_components(tmp_path: Path) -> None:
    def step(engine: Engine, batch: Any) -> Any:
        return {
            "loss": ValLoss({"loss_cls": torch.ones(4), "acc": torch.ones(4)}, total="loss_cls")
        }

    hook = passes(
        tmp_path, evaluator=Engine(step), save_best="auto", derive={"zorp": lambda metrics: 0.0}
    )
    assert hook.best is not None
    assert hook.best.metric == "val_loss"


@pytest.mark.parametrize(
    ("metrics", "chosen"),
    [
        ({"matrix": ConfusionMatrix(2), "accuracy": Accuracy()}, "accuracy"),
        ({"accuracy": Accuracy(), "recall_like": Loss(CROSS_ENTROPY)}, "accuracy"),
        ({"matrix": ConfusionMatrix(2)}, "val_loss"),
        (None, "val_loss"),
    ],
)
def test_auto_is_checked_against_the_metric_that_it_will_choose(
    metrics: Mapping[str, Metric] | None, chosen: str, tmp_path: Path
) -> None:
    hook = passes(tmp_path, metrics=metrics, save_best="auto")
    assert hook.best is not None
    assert hook.best.metric == chosen


# -- no trace -------------------------------------------------------------------------------------


class Drawing(nn.Module):
    """Draws random numbers and changes a buffer, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_model()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        random.random()
        np.random.rand()
        return self.inner(x) + torch.rand(1) + (1000.0 if self.training else 0.0)


def test_a_run_with_preflight_is_the_same_as_one_without(tmp_path: Path) -> None:
    def run(preflight: bool) -> list[Any]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model = Drawing()
        evaluator = create_evaluator(model, {"accuracy": Accuracy()}, loss_fn=CROSS_ENTROPY)
        found: list[Any] = []

        def train(engine: Engine, batch: Any) -> None:
            assert model.training
            found.append([*model(batch[0]).tolist(), float(model.calls)])

        trainer = Engine(train)
        hook = EvalHook(
            loader(shuffle=True),
            evaluator,
            preflight=preflight,
            save_best="accuracy",
            out_dir=False,
        ).attach(trainer)
        trainer.run(loader(shuffle=True), max_epochs=2)
        return [found, [dict(record.metrics) for record in hook.history]]

    assert run(True) == run(False)


def test_one_batch_is_looked_at_once_a_run_and_no_event_of_the_evaluator_is_fired(
    tmp_path: Path,
) -> None:
    seen: list[int] = []

    def step(engine: Engine, batch: Any) -> None:
        seen.append(len(batch[0]))

    run = Run(tmp_path, evaluator=Engine(step), start=2)
    iterations: list[list[int]] = []
    run.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: iterations.append(list(seen))
    )
    run.go()
    assert iterations == [[4]] * 6
    assert seen == [4, 4, 4, 2]
    assert run.fired.count("evaluator's COMPLETED") == 1


def test_the_batch_looked_at_is_the_first_of_a_pass_also_after_earlier_ones(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def step(engine: Engine, batch: Any) -> None:
        seen.append((engine.state.epoch, engine.state.iteration))

    run = Run(tmp_path, evaluator=Engine(step))
    run.hook.evaluate(track=False)
    run.go()
    one_pass = [(1, 1), (1, 2), (1, 3)]
    assert seen == [*one_pass, (1, 1), *one_pass, *one_pass]


def test_a_model_that_has_moved_since_is_looked_at_where_it_is(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.device.type)
            return x

    seen: list[str] = []
    model = Model()
    run = Run(tmp_path, evaluator=create_evaluator(model), model=model)
    run.hook.evaluate(track=False)
    model.to("meta")
    run.go()
    assert seen == ["cpu"] * 3 + ["meta"] * 7


def test_metrics_start_the_first_evaluation_empty(tmp_path: Path) -> None:
    hook = passes(tmp_path, metrics={"group": Group()}, save_best="seen", rule="greater")
    assert [record.metrics["seen"] for record in hook.history] == [10, 10]


def test_metrics_hold_nothing_of_the_batch_afterwards(tmp_path: Path) -> None:
    group = Group()
    run = Run(tmp_path, metrics={"group": group}, save_best="top2", rule="greater")
    with pytest.raises(ValueError, match="no metric 'top2'"):
        run.go()
    assert group.seen == 0


def test_metrics_are_computed_only_where_the_answer_depends_on_it(tmp_path: Path) -> None:
    computed: list[int] = []

    class Slow(Accuracy):
        def compute(self) -> float:
            computed.append(1)
            return float(super().compute())

    passes(
        tmp_path,
        metrics={"accuracy": Slow()},
        derive={"mine": lambda metrics: 1.0},
        save_best=["accuracy", "mine", "val_loss"],
        rule={"mine": "greater"},
    )
    assert len(computed) == 2


def test_data_workers_are_let_go_of(tmp_path: Path) -> None:
    started = loader(num_workers=1)
    run = Run(tmp_path, data=started, save_best="nothing", rule="greater")
    with pytest.raises(ValueError, match="no metric 'nothing'"):
        run.go()
    assert torch.multiprocessing.active_children() == []


def test_a_stream_can_be_looked_at_too(tmp_path: Path) -> None:
    class Stream(IterableDataset[Any]):
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            Stream.passes += 1
            yield from zip(X, Y, strict=True)

    hook = passes(tmp_path, data=DataLoader(Stream(), batch_size=4), save_best="val_loss")
    assert [record.samples for record in hook.history] == [10, 10]
    assert Stream.passes == 3


def test_a_context_is_left_again(tmp_path: Path) -> None:
    depth = [0]

    @contextmanager
    def context() -> Iterator[None]:
        depth[0] += 1
        try:
            yield
        finally:
            depth[0] -= 1

    run = Run(tmp_path, context=context, save_best="nothing", rule="greater")
    with pytest.raises(ValueError, match="no metric 'nothing'"):
        run.go()
    assert depth == [0]


# -- when -----------------------------------------------------------------------------------------


def test_preflight_false_switches_it_off(tmp_path: Path) -> None:
    run = Run(tmp_path, preflight=False, save_best="acuracy", rule="greater")
    with pytest.raises(EvaluationError, match="there is no metric 'acuracy'"):
        run.go()
    assert run.trained == 3


def test_start_0_finds_the_rest_before_the_first_step(tmp_path: Path) -> None:
    run = Run(tmp_path, start=0, compute_metrics=lambda results: {"mIoU": 0.5}, save_best="miou")
    with pytest.raises(EvaluationError, match=r"there is no metric 'miou'.*did you mean 'mIoU'"):
        run.go()
    assert run.trained == 0


def test_a_misspelled_metric_of_early_stopping_ends_the_first_evaluation_at_the_latest(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, compute_metrics=lambda results: {"mIoU": 0.5})
    run.hook.early_stopping(5, metric="MIOU")
    with pytest.raises(EvaluationError, match=r"no metric 'MIOU' .*did you mean 'mIoU'\?"):
        run.go()
    assert len(run.hook.history) == 0


def test_a_hook_that_evaluates_on_demand_only_is_not_checked(tmp_path: Path) -> None:
    run = Run(tmp_path, interval=None, save_best="acuracy", rule="greater")
    run.go()
    assert run.trained == 6


def test_a_metric_attached_at_the_last_moment_counts(tmp_path: Path) -> None:
    run = Run(tmp_path, save_best="accuracy")
    Accuracy().attach(run.evaluator, "accuracy")
    assert len(run.go().history) == 2


def test_a_hook_attached_in_mid_run_is_checked_at_the_first_event_it_sees(tmp_path: Path) -> None:
    trainer = Engine(lambda engine, batch: None)
    model = make_model()
    hook = EvalHook(loader(), model, save_best="acuracy", rule="greater", out_dir=tmp_path)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda e: hook.attach(trainer))
    with pytest.raises(ValueError, match="no metric 'acuracy'"):
        trainer.run(range(3), max_epochs=1)
    assert trainer.state.iteration == 3
    assert list(tmp_path.iterdir()) == []
