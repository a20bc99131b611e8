"""Evaluate while training: the public face of a hook.

:class:`EvalHook` checks what it is given, once, and hands it to a session that listens to the
trainer.  Here is what people call; what happens when, is in ``session``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from fractions import Fraction
from functools import partial
from os import PathLike
from typing import Any, ClassVar, TypeVar, overload

from ignite.engine import Engine
from ignite.handlers import EarlyStopping, EMAHandler
from torch import nn

from .._decide.best import INIT_VALUE_MAP, KEEP_ALL, RULE_MAP, Best, Compare, Target
from .._decide.history import EvalRecord, History
from .._decide.rules import (
    DEFAULT_GREATER_KEYS,
    DEFAULT_LESS_KEYS,
    PRESETS,
    Rule,
    check_keys,
    match_rule,
)
from .._decide.schedule import Schedule
from .._evaluate.evaluation import (
    ComputeMetrics,
    Context,
    Evaluation,
    method_of_dataset,
    parameters_of,
)
from .._files.best_checkpoint import BestCheckpoint, check_to_save
from .._files.load import load_entry
from .._files.run_folder import RunFolder
from .._files.storage import Storage
from .._predictions.collect import PreEval
from .._ranks.sharded_models import whole_states
from ..exceptions import CheckpointError
from .arguments import (
    as_context,
    check_choice,
    check_count,
    check_dataloader,
    check_eval_kwargs,
    check_functions,
    check_rules,
    check_save_best,
    check_without_data,
)
from .command_line_args import options_of
from .early_stopping import SafeEarlyStopping, check_options
from .events import EvalEvents, Handler
from .follower import Follower
from .handlers import check_scheduler, metric_of
from .last_checkpoint import ADDED, LastCheckpoint
from .plan import Plan
from .preflight import check_saving
from .session import Session, sessions_of
from .settings import (
    Function,
    OutDir,
    as_engine,
    as_pre_eval,
    best_checkpoint,
    check_derive,
    check_lazy_results,
    check_needs_save_best,
    modules_to_switch,
    objects_to_save,
    where_files_go,
)

__all__ = ["EvalHook"]

_H = TypeVar("_H", bound=Handler)

Interval = int | float | Fraction | Sequence[int] | timedelta | None


class EvalHook:
    """Evaluate while training, keep the best checkpoint, stop early.

    The hook is right on any number of processes: construct and attach it on every rank alike.
    Each rank evaluates its share of the batches; rank 0 decides and writes files, and
    tells all.  :class:`DistEvalHook` is the same under MMCV's name.

    Args:
        dataloader: A ``DataLoader`` or any re-iterable of batches; or ``None``, and then
            ``evaluator`` is a function ``(trainer) -> mapping of metrics``.
        evaluator: An Ignite engine with metrics; a module, for which ``create_evaluator`` is
            called; or the function.  One engine may serve several hooks.
        model: Module, or mapping of modules, to put into eval mode and back, and the default of
            ``to_save``.  By default the model of ``create_evaluator``, else the modules in
            ``to_save``.
        start: First step at which to evaluate, and the anchor of the grid; 0 evaluates before
            training.  ``None``: from the first full interval on.
        interval: Steps between evaluations; a sorted list of steps; a part of an epoch (0.25);
            a ``timedelta``; ``None``: only on demand.
        by_epoch: Steps are completed epochs (``True``) or iterations of the trainer.
        dynamic_intervals: ``[(from_step, interval), ...]``.
        at_end: Evaluate also when the run ends off the grid.
        limit_batches: Evaluate the first so many batches only, counted over all ranks.
        save_best: The metric to follow: a name (``"bbox/AP50"`` leads into a nested result), a
            list of names, a mapping name -> files to keep, ``"auto"`` (the first scalar), or
            ``None``.
        rule: ``"greater"`` or ``"less"``; a mapping name -> rule; or a list in the order of
            ``save_best``.  Inferred by default.
        preset: Keys of a project for the inference, ``"mmpose"`` say.
        greater_keys: Keys for the inference, in place of the class attribute; one string is one
            key.
        less_keys: Likewise.
        out_dir: A folder, an fsspec URL, or an Ignite save handler, for best files and history.
            ``False`` follows the best without files.
        to_save: Name to object, as for Ignite's ``Checkpoint``; by default the model.
        n_saved: Files to keep of each metric.
        checkpoint: A :class:`BestCheckpoint` in place of ``out_dir``, ``to_save``, ``n_saved``.
        compute_metrics: ``compute_metrics(results, **eval_kwargs) -> mapping``, on the
            predictions of the whole set, one item per sample, in the order of the dataset.  By
            default ``dataloader.dataset.evaluate`` where there is one.
        pre_eval: ``pre_eval(output, indices) -> list`` reduces a batch before it is kept;
            ``True`` is ``dataset.pre_eval``.
        derive: Name -> function of the other metrics, computed last, in order.
        context: Returns a context manager to evaluate (and save the best) in; or Ignite's
            ``EMAHandler``, whose averaged weights are then evaluated and saved.
        on_bad_score: ``"raise"`` or ``"skip"``: when the followed metric is missing or no number.
        preflight: Check one batch and the folder before the first step.
        shard: Deal the batches out to the ranks, which must have been given the same data and
            model.  ``False``: ``dataloader`` is this rank's own part already.
        sync_buffers: Make the models' buffers the same on all ranks for the evaluation (and the
            file of the best): ``"broadcast"`` rank 0's, or the ``"mean"``.  Afterwards each rank
            has its own back.  ``None``: each rank evaluates a model of its own, whose weights may
            be others, too.
        name: Tells several hooks apart in files, state, logs and events.
        broadcast_bn_buffer: MMCV's; ``False`` is ``sync_buffers=None``.
        tmpdir: MMCV's: collect predictions through files in a private folder within this one,
            which all ranks must share.  ``None``: through the processes' own connections.
        gpu_collect: MMCV's: collect predictions through the devices.
        lazy_results: Give ``compute_metrics`` a read-only sequence that makes each item when it is
            asked for, in place of a list: it takes the predictions' own memory and no more.
        clock: Seconds that only grow, for a ``timedelta``.
        **eval_kwargs: Passed to ``compute_metrics``.

    Raises:
        TypeError: If an argument is of the wrong kind or unknown.
        ValueError: If an argument is out of range, or lacks another one.
        RuleInferenceError: If the name of a metric does not tell its rule.

    Source:
        Arguments, their meaning and the inference of the rule follow ``EvalHook`` in MMCV 1.x
        (open-mmlab/mmcv#739); the appended validation loss follows MMEngine
        (open-mmlab/mmengine#1503).
    """

    #: Rule to comparison of two scores; a subclass may override these four, as in MMCV.
    rule_map: ClassVar[Mapping[str, Compare]] = RULE_MAP
    init_value_map: ClassVar[Mapping[str, float]] = INIT_VALUE_MAP
    greater_keys: ClassVar[Sequence[str]] = DEFAULT_GREATER_KEYS
    less_keys: ClassVar[Sequence[str]] = DEFAULT_LESS_KEYS

    def __init__(
        self,
        dataloader: Iterable[Any] | None,
        evaluator: Engine | nn.Module | Function,
        *,
        model: nn.Module | Mapping[str, nn.Module] | None = None,
        start: int | None = None,
        interval: Interval = 1,
        by_epoch: bool = True,
        dynamic_intervals: Sequence[tuple[int, int]] | None = None,
        at_end: bool = False,
        limit_batches: int | None = None,
        save_best: str | Sequence[str] | Mapping[str, int | None] | None = None,
        rule: str | Mapping[str, str] | Sequence[str | None] | None = None,
        preset: str | None = None,
        greater_keys: Sequence[str] | None = None,
        less_keys: Sequence[str] | None = None,
        out_dir: OutDir = None,
        to_save: Mapping[str, Any] | None = None,
        n_saved: int | None = 1,
        checkpoint: BestCheckpoint | None = None,
        compute_metrics: ComputeMetrics | None = None,
        pre_eval: PreEval | bool | None = None,
        derive: Mapping[str, Callable[[Mapping[str, Any]], Any]] | None = None,
        context: Context | EMAHandler | None = None,
        on_bad_score: str = "raise",
        preflight: bool = True,
        shard: bool = True,
        sync_buffers: str | None = "broadcast",
        name: str = "val",
        broadcast_bn_buffer: bool | None = None,
        tmpdir: str | PathLike[str] | None = None,
        gpu_collect: bool = False,
        lazy_results: bool = False,
        clock: Callable[[], float] = time.monotonic,
        **eval_kwargs: Any,
    ) -> None:
        self._check_plain(name, at_end, preflight, shard, gpu_collect, on_bad_score, sync_buffers)
        check_choice("broadcast_bn_buffer", broadcast_bn_buffer, (True, False, None))
        if tmpdir is not None and not isinstance(tmpdir, (str, PathLike)):
            raise TypeError(f"tmpdir must be a folder or None, got {tmpdir!r}")
        check_choice("lazy_results", lazy_results, (True, False))
        check_choice("preset", preset, (None, *sorted(PRESETS)))
        check_count("limit_batches", limit_batches)
        check_dataloader(dataloader)
        check_functions(compute_metrics=compute_metrics, clock=clock)
        if clock is None:
            raise TypeError("clock must be a function, got None")
        if dataloader is None:
            check_without_data(
                compute_metrics=compute_metrics, pre_eval=pre_eval, limit_batches=limit_batches,
                lazy_results=lazy_results,
            )  # fmt: skip
        self.name = name
        schedule = Schedule(
            interval, start=start, by_epoch=by_epoch, dynamic_intervals=dynamic_intervals
        )
        self._preset = preset
        self._keys = (
            check_keys(self.greater_keys if greater_keys is None else greater_keys, "greater_keys"),
            check_keys(self.less_keys if less_keys is None else less_keys, "less_keys"),
        )
        of_dataset = compute_metrics is None
        if of_dataset:
            compute_metrics = method_of_dataset(dataloader, "evaluate")
        own_names = parameters_of(EvalHook.__init__)[0] - {"self"}
        check_eval_kwargs(compute_metrics, eval_kwargs, own_names)
        engine, function = as_engine(dataloader, evaluator)
        # Where nothing else tells the modules to put into eval mode, to_save does.
        told = model is not None or isinstance(getattr(engine, "model", None), nn.Module)
        idle_objects = to_save is not None and told
        to_save = objects_to_save(to_save, model, engine, checkpoint)
        evaluation = Evaluation(
            engine,
            function,
            modules_to_switch(model, engine, to_save),
            limit_batches,
            compute_metrics,
            dict(eval_kwargs),
            as_pre_eval(pre_eval, compute_metrics, dataloader),
            check_derive(derive),
            as_context(context),
            of_dataset,
            pre_eval is True,
            shard,
            None if broadcast_bn_buffer is False else sync_buffers,
            tmpdir,
            gpu_collect,
            check_lazy_results(lazy_results, compute_metrics),
        )
        if checkpoint is not None:
            if n_saved != 1:
                raise ValueError("n_saved= belongs into the BestCheckpoint; pass one of the two")
            n_saved = checkpoint.n_saved
        wanted = check_save_best(save_best, n_saved)
        self._rule = check_rules(rule, list(wanted or ()))
        where = where_files_go(out_dir, checkpoint, save_best)
        check_needs_save_best(save_best, n_saved=n_saved != 1, to_save=idle_objects)
        if wanted is not None:
            checkpoint = best_checkpoint(checkpoint, where, to_save, n_saved)
        self._plan = Plan(
            name,
            schedule,
            at_end,
            preflight,
            clock,
            dataloader,
            evaluation,
            Follower(
                name,
                wanted or {},
                self._make_target,
                None if wanted is None else checkpoint,
                on_bad_score,
            ),
            RunFolder(where, name) if isinstance(where, Storage) else None,
            to_save,
            self._explain,
            [] if save_best is not None else self._idle_options(on_bad_score),
        )
        self._session = Session(self._plan, self)

    @staticmethod
    def _check_plain(
        name: object,
        at_end: object,
        preflight: object,
        shard: object,
        gpu_collect: object,
        on_bad_score: object,
        sync_buffers: object,
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"name must be a non-empty string, got {name!r}")
        flags = (("at_end", at_end), ("preflight", preflight), ("shard", shard),
                 ("gpu_collect", gpu_collect))  # fmt: skip
        for argument, value in flags:
            check_choice(argument, value, (True, False))
        check_choice("on_bad_score", on_bad_score, ("raise", "skip"))
        check_choice("sync_buffers", sync_buffers, ("broadcast", "mean", None))

    def _idle_options(self, on_bad_score: str) -> list[str]:
        """Return options that nothing uses unless early stopping or the like names a metric."""
        given = {"rule": self._rule is not None, "on_bad_score": on_bad_score != "raise"}
        return [argument for argument, is_given in given.items() if is_given]

    def _given_rule(self, metric: str) -> str | None:
        return self._rule.get(metric) if isinstance(self._rule, Mapping) else self._rule

    def _make_target(self, metric: str, n_saved: int | None, rule: str | None = None) -> Target:
        given = self._given_rule(metric) if rule is None else rule
        if given is not None:
            found = Rule(given)
        else:
            found = match_rule(metric, *self._keys, preset=self._preset)[0]
        return Target(metric, found, n_saved or KEEP_ALL, self.rule_map, self.init_value_map)

    def _explain(self, target: Target) -> str:
        how = "as given"
        if self._given_rule(target.metric) is None:
            how = f"told by {match_rule(target.metric, *self._keys, preset=self._preset)[1]!r}"
        return f"{target.metric} ({target.rule.value} is better, {how})"

    @property
    def evaluator(self) -> Engine:
        """The engine that evaluates; attach metrics, progress bars and loggers to it."""
        return self._plan.evaluation.evaluator

    @property
    def history(self) -> History:
        """All records, in order."""
        return self._session.history

    @property
    def best(self) -> Best | None:
        """The best of the first followed metric, judged by this run's own history."""
        return self._plan.follower.best()

    @property
    def bests(self) -> Mapping[str, tuple[Best, ...]]:
        """What is kept of each followed metric, best first."""
        return self._plan.follower.bests()

    def attach(self, trainer: Engine) -> EvalHook:
        """Listen to ``trainer``.

        Returns:
            The hook itself.

        Raises:
            TypeError: If ``trainer`` is no engine.
            ValueError: If the hook is attached already, or another one has its name.
        """
        if not isinstance(trainer, Engine):
            raise TypeError(f"trainer must be an ignite Engine, got {type(trainer).__name__}")
        if trainer is self.evaluator:
            raise ValueError("the trainer cannot be the evaluator: make a second engine")
        if self._session.trainer is not None:
            raise ValueError(f"the hook {self.name!r} is attached already; detach() it first")
        aliases = self._plan.follower.alias_paths()
        for other in sessions_of(trainer):
            if other.name == self.name:
                raise ValueError(
                    f"another hook named {self.name!r} is attached to this trainer; give one of "
                    "them another name="
                )
            both = aliases & other.plan.follower.alias_paths()
            if both:
                raise ValueError(
                    f"the hooks {self.name!r} and {other.name!r} would both write {min(both)}; "
                    "give one of them another name= or out_dir=, or leave alias= out"
                )
        self._session.attach(trainer)
        return self

    def detach(self) -> None:
        """Stop listening, and let go of the folder; history and best stay."""
        if self._session.trainer is not None:
            self._session.detach()

    def reset(self) -> None:
        """Forget history and best; touch no file.

        A state loaded next may be of another metric or rule; it is then forgotten as well.
        """
        self._session.start_over()
        self._session.tolerant = True

    def evaluate(
        self, dataloader: Iterable[Any] | None = None, *, track: bool | None = None
    ) -> EvalRecord:
        """Evaluate now.

        Args:
            dataloader: Other data than the hook's own.
            track: Whether this evaluation counts: history, best, files, events.  ``False`` only
                answers.  By default it counts if the hook is attached and the data its own.

        Returns:
            The record.  A step that has one is not evaluated again.

        Raises:
            ValueError: If ``track=True`` without a trainer, or there is no data.
            EvaluationError: If the result is not complete, or an evaluation is under way.
        """
        check_dataloader(dataloader)
        if dataloader is not None and self._plan.evaluation.function is not None:
            raise ValueError("this hook's evaluator is a function, which takes no dataloader")
        own = dataloader is None or dataloader is self._plan.dataloader
        data = self._plan.dataloader if own else dataloader
        attached = self._session.trainer is not None
        if track is None:
            track = attached and own
        if not track:
            return self._session.answer(data)
        if not attached:
            raise ValueError("track=True needs a trainer: call hook.attach(trainer) first")
        return self._session.track(data)

    @overload
    def on(self, event: Any, handler: _H) -> _H: ...
    @overload
    def on(self, event: Any, handler: None = None) -> Callable[[_H], _H]: ...
    def on(self, event: Any, handler: Handler | None = None) -> Any:
        """Call ``handler(record)`` on an event of this hook only.

        ``EVAL_STARTED`` comes before there is a record and passes ``None``.  Works before
        :meth:`attach`, and as a decorator.

        Args:
            event: One of :class:`EvalEvents`, also filtered: ``EvalEvents.NEW_BEST(every=2)``.
            handler: The function.

        Returns:
            The handler, or a decorator.

        Raises:
            ValueError: If ``event`` is none of this hook's.
        """
        if handler is None:
            return lambda function: self.on(event, function)
        if not any(event == known for known in EvalEvents):
            raise ValueError(f"event must be one of {[str(e) for e in EvalEvents]}, got {event!r}")
        check_functions(handler=handler)
        self._session.speaker.listeners.append((event, handler))
        return handler

    def global_step(self, engine: Engine | None = None, event: Any = None) -> int:
        """Return the step of the present or latest evaluation.

        Fits ``global_step_transform`` of Ignite's loggers: epochs, or iterations where the
        schedule counts those.
        """
        return self._session.at.step

    def score_function(self, engine: Engine | None = None) -> float:
        """Return the last score of the first followed metric, signed so that higher is better.

        NaN, infinity and a missing score give ``-inf``.
        """
        return self._session.signed_score(None)

    def score_function_for(self, metric: str) -> Callable[[Engine | None], float]:
        """Return a function like :meth:`score_function` for any metric.

        Raises:
            RuleInferenceError: If the name does not tell the rule.
        """
        target = self._target_of(metric)
        return partial(_signed_of, self._session, target)

    def _target_of(self, metric: str, rule: str | None = None) -> Target:
        self._plan.idle_options.clear()
        if rule is None and metric in [t.metric for t in self._plan.follower.targets]:
            return self._plan.follower.target(metric)
        return self._make_target(metric, 1, rule)

    def early_stopping(
        self, patience: int, *, metric: str | None = None, rule: str | None = None, **options: Any
    ) -> EarlyStopping:
        """Stop training after ``patience`` evaluations without improvement.

        Args:
            patience: Number of evaluations.
            metric: Any metric, followed or not; by default the first followed one.
            rule: Its rule; by default as for ``save_best``.
            **options: ``threshold``, ``threshold_mode``, ``cumulative`` of Ignite's handler.

        Returns:
            The handler.  Its state travels in the hook's, its patience does not.

        Raises:
            ValueError: If no metric is followed and none is named.
        """
        if metric is None and not self._plan.follower.wanted:
            raise ValueError("early_stopping needs metric='…', since save_best names none")
        if metric is None and rule is not None:
            raise ValueError("rule= belongs to metric=; the followed metric has its rule already")
        score: Callable[[Engine], float] = self.score_function
        if metric is not None:
            score = partial(_signed_of, self._session, self._target_of(metric, rule))
        trainer = self._session.trainer
        if trainer is None:
            trainer = Engine(lambda engine, batch: None)  # until there is one to stop
        stopper = SafeEarlyStopping(patience, score, trainer, **check_options(options))
        self._session.watchers.add_stopper(metric, stopper)
        return stopper

    def step_on_plateau(self, scheduler: Any, *, metric: str | None = None) -> None:
        """Step a learning-rate scheduler that watches a metric, after each evaluation.

        Args:
            scheduler: torch's ``ReduceLROnPlateau``, or Ignite's handler around it.
            metric: Any metric, followed or not; by default the one that Ignite's handler names,
                else the first followed one.

        Raises:
            TypeError: If ``scheduler`` can neither be stepped nor called.
            ValueError: If its mode contradicts the metric's rule.
        """
        metric = metric_of(scheduler, metric)
        if metric is None and not self._plan.follower.wanted:
            raise ValueError("step_on_plateau needs metric='…', since save_best names none")
        target = None
        if metric is not None:
            target = self._target_of(metric)
        elif self._plan.follower.targets:
            target = self._plan.follower.target()
        check_scheduler(scheduler, target)
        self._session.watchers.add_scheduler(metric, scheduler)

    def keep_last(self, to_save: Mapping[str, Any], *, every: int = 1, resume: bool = True) -> bool:
        """Keep a checkpoint to resume from, and resume from it if there is one.

        The file ``last.pt`` holds ``to_save``, the trainer, every hook that is attached to it by
        the time it is written, the averaged weights of its ``EMAHandler``, and the random
        generators.  A hook or handler that is attached after this call gets its state when it is
        attached, or when the run starts.  The file is replaced safely after every ``every``
        epochs (for a schedule by iterations, or by parts of an epoch or time: evaluations) and at
        the end of the run.

        Args:
            to_save: Name to object, such as model, optimizer and scheduler; mappings and lists of
                such; and plain values, such as a config: tensors, numbers, strings, ``None``, and
                dicts and lists of them.  A plain value is saved as it stands, and loaded into
                nothing: ``torch.load("run/last.pt", weights_only=True)["config"]`` gives it back.
            every: Epochs (or evaluations) between saves.
            resume: Load the file if there is one.

        Returns:
            Whether the run was resumed.

        Raises:
            TypeError: If an entry is neither, or has a state that ``weights_only`` refuses.
            ValueError: If the hook is not attached or has no folder.
            StateError: If the file is not of this run's kind.
            CheckpointError: If it is damaged.
        """
        trainer, folder, session = self._session.need_trainer(), self._plan.folder, self._session
        if folder is None:
            raise ValueError("keep_last needs a folder: give the hook out_dir='…'")
        if type(every) is not int or every < 1:
            raise ValueError(f"every must be a positive integer, got {every!r}")
        with session.team.together("keep_last"):
            check_to_save(to_save, resumable=True)
            with whole_states(to_save, session.team) as states:
                check_saving(None, states)
        if session.last is not None:
            raise ValueError("keep_last was called already")
        own = {"trainer": trainer, "eval_hook": self}
        taken = [n for n in ADDED if n in to_save and to_save[n] is not own.get(n)]
        if taken:
            raise ValueError(f"to_save must not use {taken}, which keep_last adds itself")
        hooks = {n: item for n, item in {**to_save, **own}.items() if isinstance(item, EvalHook)}
        last = LastCheckpoint(
            folder.storage, folder.last_name,
            {name: item for name, item in to_save.items() if name not in (*own, *hooks)},
            trainer, every, {name: hook._session for name, hook in hooks.items()},
            partial(sessions_of, trainer), session.team, session.background(),
            self._plan.follower.keeper.errors,
        )  # fmt: skip
        if resume:
            resumed = last.resume()
            for other in sessions_of(trainer):
                other.go_on()
        else:
            resumed = False
            last.refuse_foreign()
        session.last = last
        return resumed

    def load_best(
        self, metric: str | None = None, *, to_load: Mapping[str, Any] | None = None
    ) -> Best:
        """Load the best checkpoint on disk.

        Args:
            metric: A followed metric; by default the first.
            to_load: Name to object; by default the modules in ``to_save``.

        Returns:
            What was loaded.

        Raises:
            CheckpointError: If there is none, or its file is missing or damaged.
        """
        storage = self._plan.follower.storage
        target = self._plan.follower.target(metric)
        self._session.wait_for_files()
        if storage is None:
            raise CheckpointError("this hook writes no best files that could be loaded")
        entry = self._plan.follower.entry_on_disk(target.metric)
        if entry is None:
            raise CheckpointError(f"no best of {target.metric!r} in {storage.location} yet")
        modules = {n: o for n, o in self._plan.to_save.items() if isinstance(o, nn.Module)}
        load_entry(storage, entry, modules if to_load is None else to_load)
        return Best(
            target.metric, entry.score, entry.epoch, entry.iteration, storage.path(entry.file)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return history, bests and counters as plain values; always valid."""
        return self._session.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; before or after :meth:`attach`.

        Args:
            state: From :meth:`state_dict`; an empty mapping loads as fresh.

        Raises:
            TypeError: If it is no mapping.
            StateError: If it belongs to another hook, metric or rule, or is damaged.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping, got {type(state).__name__}")
        self._session.load_state_dict(state)

    @classmethod
    def from_args(
        cls,
        args: argparse.Namespace,
        dataloader: Iterable[Any] | None,
        evaluator: Engine | nn.Module | Function,
        **more: Any,
    ) -> EvalHook:
        """Construct a hook from the options of ``add_eval_args``.

        Args:
            args: The parsed options.
            dataloader: As for the constructor.
            evaluator: As for the constructor.
            **more: Further arguments; options that were given on the command line win.
        """
        return cls(dataloader, evaluator, **{**more, **options_of(args)})

    def __repr__(self) -> str:
        return f"EvalHook({self.name!r}, {self._plan.schedule}, {len(self.history)} evaluations)"


def _signed_of(session: Session, target: Target, engine: Engine | None = None) -> float:
    return session.signed(target)
