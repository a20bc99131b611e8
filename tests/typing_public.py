"""Use the public names as users do; nothing here runs, mypy alone reads it (``make types``)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from ignite.handlers import DiskSaver, EarlyStopping
from ignite.metrics import Accuracy
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from typing_extensions import assert_type

from ignite_evalhook import (
    Best,
    BestCheckpoint,
    CheckpointError,
    DistEvalHook,
    EvalEvents,
    EvalHook,
    EvalHookError,
    EvalRecord,
    EvaluationError,
    History,
    Rule,
    RuleInferenceError,
    Schedule,
    StateError,
    ValLoss,
    add_eval_args,
    create_evaluator,
    find_best,
    infer_rule,
    load_best,
    shard_batches,
    split_val_loss,
)


def on_several_processes(model: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]]) -> None:
    """MMCV's name for the hook, and the dealing by itself."""
    hook = DistEvalHook(
        loader, model, broadcast_bn_buffer=False, tmpdir=Path("tmp"), gpu_collect=True, interval=2
    )
    assert_type(hook.attach(Engine(lambda engine, batch: None)).best, Best | None)
    EvalHook(loader, model, shard=False, sync_buffers="mean")
    assert_type(shard_batches(loader), DataLoader[tuple[Tensor, Tensor]])
    shard_batches(loader, rank=0, world_size=2)


def evaluators(model: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]]) -> None:
    """An engine, a module, or a function evaluates."""
    evaluator = create_evaluator(
        model,
        {"accuracy": Accuracy()},
        loss_fn=nn.CrossEntropyLoss(),
        device="cpu",
        non_blocking=False,
        amp_dtype=torch.bfloat16,
        inference_mode=True,
    )
    assert_type(evaluator, Engine)
    create_evaluator(model, step=lambda engine, batch: batch)
    create_evaluator(model, device=torch.device("cpu"))

    def validate(trainer: Engine | None) -> dict[str, float]:
        return {"fid": 1.0}

    EvalHook(loader, evaluator)
    EvalHook(loader, model)
    EvalHook([torch.ones(1)], model)
    EvalHook(None, validate, model={"generator": model})


def when(loader: DataLoader[Any], model: nn.Module) -> None:
    """Every way to say when."""
    EvalHook(loader, model, interval=2, start=0, by_epoch=False, at_end=True)
    EvalHook(loader, model, interval=[1, 2, 5])
    EvalHook(loader, model, interval=range(1, 9))
    EvalHook(loader, model, interval=0.25)
    EvalHook(loader, model, interval=Fraction(1, 3))
    EvalHook(loader, model, interval=timedelta(minutes=10))
    EvalHook(loader, model, interval=None)
    EvalHook(loader, model, interval=5, dynamic_intervals=[(90, 1)], limit_batches=3)
    schedule = Schedule(2, start=1, by_epoch=True, dynamic_intervals=[(4, 1)])
    assert_type(schedule.is_due(3), bool)
    assert_type(schedule.next_due(3), "int | None")
    assert_type(str(schedule), str)


def what_is_best(loader: DataLoader[Any], model: nn.Module, optimizer: SGD) -> None:
    """Every way to say what is best and where it goes."""
    EvalHook(loader, model, save_best="val_loss", out_dir="runs/a")
    EvalHook(loader, model, save_best=["acc", "val_loss"], out_dir=Path("runs"))
    EvalHook(loader, model, save_best={"acc": 3, "val_loss": None}, out_dir=False)
    EvalHook(loader, model, save_best="zorp", rule="less", out_dir=DiskSaver("runs"))
    EvalHook(loader, model, save_best="a", rule={"a": "greater"}, out_dir="memory://runs")
    EvalHook(loader, model, save_best="auto", preset="mmpose", greater_keys=["a"], less_keys=())
    checkpoint = BestCheckpoint(
        {"model": model, "optimizer": optimizer},
        "runs",
        n_saved=None,
        alias="copy",
        on_save_error="warn",
    )
    EvalHook(loader, model, save_best="acc", checkpoint=checkpoint, on_bad_score="skip")
    assert_type(infer_rule("mIoU"), Rule)
    infer_rule("zorp", ("zorp",), ["loss"], preset="mmseg")
    assert_type(Rule("less").is_better(0.0, None), bool)


def around_it(loader: DataLoader[Any], model: nn.Module) -> None:
    """What computes, derives and swaps."""

    def compute(results: list[Any], thr: float = 0.5, **options: Any) -> Mapping[str, Any]:
        return {"n": len(results)}

    def pre_eval(output: Tensor, indices: Sequence[int]) -> list[Tensor]:
        return list(output)

    @contextmanager
    def swapped() -> Iterator[None]:
        yield

    def manager() -> AbstractContextManager[object]:
        return swapped()

    EvalHook(loader, model, compute_metrics=compute, pre_eval=pre_eval, thr=0.25)
    EvalHook(loader, model, compute_metrics=compute, pre_eval=True)
    EvalHook(loader, model, compute_metrics=compute, lazy_results=True)
    DistEvalHook(loader, model, compute_metrics=compute, lazy_results=True)
    EvalHook(loader, model, derive={"twice": lambda metrics: 2 * metrics["val_loss"]})
    EvalHook(loader, model, context=swapped, preflight=False)
    EvalHook(loader, model, context=manager)
    EvalHook(loader, model, context=torch.no_grad)


def a_run(hook: EvalHook, trainer: Engine, model: nn.Module, optimizer: SGD) -> None:
    """Everything that is called on a hook."""
    assert_type(hook.attach(trainer), EvalHook)
    assert_type(hook.evaluator, Engine)
    assert_type(hook.history, History)
    assert_type(hook.best, "Best | None")
    assert_type(hook.bests, Mapping[str, tuple[Best, ...]])
    assert_type(hook.evaluate(), EvalRecord)
    hook.evaluate([torch.ones(1)], track=False)
    assert_type(hook.score_function(trainer), float)
    assert_type(hook.score_function_for("acc")(trainer), float)
    assert_type(hook.global_step(trainer, EvalEvents.EVAL_COMPLETED), int)
    assert_type(hook.early_stopping(3, metric="acc", rule="greater", min_delta=0.1), EarlyStopping)
    EarlyStopping(patience=3, score_function=hook.score_function, trainer=trainer)
    hook.step_on_plateau(ReduceLROnPlateau(optimizer), metric="val_loss")
    assert_type(hook.keep_last({"model": model, "optimizer": optimizer}, every=2), bool)
    assert_type(hook.load_best("acc", to_load={"model": model}), Best)
    assert_type(hook.state_dict(), dict[str, Any])
    hook.load_state_dict(hook.state_dict())
    hook.reset()
    hook.detach()

    @hook.on(EvalEvents.NEW_BEST)
    def note(record: EvalRecord | None) -> int:
        return 0 if record is None else record.epoch

    assert_type(note(None), int)

    def use(record: EvalRecord) -> int:
        return record.epoch

    assert_type(hook.on(EvalEvents.EVAL_COMPLETED(every=2), use)(hook.history[0]), int)
    trainer.add_event_handler(EvalEvents.EVAL_STARTED, lambda engine: None)


def results(record: EvalRecord, history: History) -> None:
    """What is read afterwards."""
    assert_type(record.epoch, int)
    assert_type(record.iteration, int)
    assert_type(record.metrics, Mapping[str, Any])
    assert_type(record.best_of, tuple[str, ...])
    assert_type(record.is_best, bool)
    assert_type(record.samples, "int | None")
    assert_type(record.seconds, float)
    assert_type(history[0], EvalRecord)
    assert_type(history[1:], list[EvalRecord])
    assert_type(history.table(), str)
    assert_type([record.epoch for record in history], list[int])
    best = find_best("runs", "acc", name="val")
    assert_type(best, Best)
    assert_type(best.metric, str)
    assert_type(best.score, float)
    assert_type(best.path, "Path | str | None")


def losses(y_pred: Tensor, y: Tensor, model: nn.Module) -> None:
    """Losses that travel with an output."""
    ValLoss(y_pred.mean(), weight=3)
    ValLoss({"loss_cls": y_pred, "loss_box": [y, y]}, weight={"loss_cls": y}, total="loss_cls")
    outputs, loss = split_val_loss((y_pred, y, ValLoss(0.5)))
    assert_type(outputs, Any)
    assert_type(loss, "ValLoss | None")
    load_best(Path("runs"), {"model": model}, metric="val_loss")


def arguments(loader: DataLoader[Any], evaluator: Engine) -> None:
    """Options of the command line."""
    parser = add_eval_args(argparse.ArgumentParser())
    assert_type(parser, argparse.ArgumentParser)
    assert_type(EvalHook.from_args(parser.parse_args(), loader, evaluator, interval=2), EvalHook)
    EvalHook.from_args(parser.parse_args(), None, lambda trainer: {}, model=nn.Identity())


def errors() -> tuple[type[EvalHookError], ...]:
    """The tree of errors."""
    return (RuleInferenceError, StateError, EvaluationError, CheckpointError)


class MyHook(EvalHook):
    """A subclass with rules of its own, as MMCV's migration notes say."""

    rule_map = {"greater": lambda x, y: x >= y, "less": lambda x, y: x <= y}  # noqa: RUF012
    init_value_map = {"greater": -1.0, "less": 1.0}  # noqa: RUF012
    greater_keys = ("zorp",)
    less_keys = ["loss"]  # noqa: RUF012
