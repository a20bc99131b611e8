"""Evaluate once: from a model and its data to plain metrics.

:class:`Evaluation` knows how a hook evaluates and leaves training as it stood.  It neither
knows why it runs nor what follows from the result.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from os import PathLike
from typing import Any

from ignite.engine import Engine
from torch import nn

from .._log import logger
from .._predictions.carriers import Carrier, open_carrier
from .._predictions.collect import PreEval, ResultCollector
from .._ranks.buffers import get_ready, without_ddp_broadcast
from .._ranks.compare import NOTHING, Given
from .._ranks.offline import world_of_one
from .._ranks.sharded_models import is_sharded
from .._ranks.share import turn_of
from .._ranks.team import Section, Team
from .._undisturbed.eval_mode import EvalMode
from .._undisturbed.training import quiet
from ..exceptions import EvaluationError
from .loader import plan_batches
from .metric_values import to_compare, to_record, to_state
from .one_pass import grad_mode, run_pass, tell_data

__all__: list[str] = []

ComputeMetrics = Callable[..., Mapping[str, Any]]
Context = Callable[[], AbstractContextManager[Any]]
Judge = Callable[[dict[str, Any], Sequence[str]], Any]


@dataclass(frozen=True)
class Outcome:
    """What one evaluation measured: plain metrics, samples, and seconds.

    But for the seconds it is the same on every rank, and so is the verdict: what was judged.
    """

    metrics: dict[str, Any]
    samples: int | None
    seconds: float
    verdict: Any = None


@dataclass
class Evaluation:
    """How a hook evaluates."""

    evaluator: Engine
    function: Callable[[Engine | None], Mapping[str, Any]] | None
    modules: Sequence[nn.Module]
    limit_batches: int | None
    compute_metrics: ComputeMetrics | None
    eval_kwargs: Mapping[str, Any]
    pre_eval: PreEval | None
    derive: Mapping[str, Callable[[Mapping[str, Any]], Any]]
    context: Context | None
    evaluate_of_dataset: bool = False  # compute_metrics is dataset.evaluate
    pre_eval_of_dataset: bool = False  # pre_eval is dataset.pre_eval
    shard: bool = True  # deal the batches out to the ranks
    sync_buffers: str | None = "broadcast"
    tmpdir: str | PathLike[str] | None = None  # predictions go through files in it
    gpu_collect: bool = False  # or from device to device
    lazy_results: bool = False  # it gets a sequence that makes items when it is asked for them
    has_warned: bool = False  # of data that is the same on all ranks

    @contextmanager
    def session(
        self,
        dataloader: Iterable[Any] | None,
        section: Section,
        place: Any = None,
        given: Given = NOTHING,
    ) -> Iterator[EvalMode]:
        """Keep training as it stands while the body evaluates and saves.

        The body gets the eval mode, which has to be left before a state is saved.

        Args:
            dataloader: What is evaluated.
            section: What all ranks go through together; they meet when all is ready.
            place: Plain values that must be the same on all ranks: where training stands.
            given: What else must be the same.

        Raises:
            EvaluationError: On every rank, if one has failed, stands elsewhere, or was given
                other things.
        """
        raised: BaseException | None = None
        if dataloader is not None:
            tell_data(self.evaluator, dataloader)
        with ExitStack() as stack:
            mode = stack.enter_context(quiet(self.modules, dataloader))
            stack.enter_context(without_ddp_broadcast())
            if self.context is not None:
                stack.enter_context(mode.inside(self.context))
            try:
                get_ready(section, self.modules, self.sync_buffers, place, given)
                yield mode
            except BaseException as error:
                raised = error
                raise
        if raised is not None:  # swallowed by the context: there is no result to go on with
            raise raised

    def run(
        self,
        dataloader: Iterable[Any] | None,
        trainer: Engine | None,
        *,
        section: Section,
        judge: Judge | None = None,
        adopt: Callable[[dict[str, Any], Any], None] | None = None,
    ) -> Outcome:
        """Evaluate, inside a :meth:`session`.

        Args:
            dataloader: The batches; ``None`` for a function evaluator.
            trainer: Passed to a function evaluator.
            section: What all ranks go through together.
            judge: Called on rank 0 with the complete, plain metrics, and the names of those that
                came from ``compute_metrics`` or the function (but for a validation loss).  What
                it returns is told to all.  ``None``: only answer, and do not fire ``COMPLETED``
                on the evaluator.
            adopt: Called on every rank with the metrics and what ``judge`` returned, before the
                evaluator fires ``COMPLETED``.
        """
        started = time.perf_counter()
        compute, pre_eval = self._methods(dataloader)
        collector = None
        if compute is not None and self.function is None:
            collector = ResultCollector(pre_eval, join=self.lazy_results)
        source = [None] if self.function is not None else dataloader
        if source is None:
            raise ValueError("there is no dataloader to evaluate on; pass one to evaluate()")
        team = section.team
        turn = None if self.function is not None else turn_of(section)
        batches = plan_batches(
            source, self.limit_batches, order=collector is not None, turn=turn, shard=self.shard
        )
        # Whether a model is sharded is asked of each of its parameters: not where it cannot matter.
        needs_all = not team.alone and is_sharded(self.modules)
        verdict: Any = None

        def complete(metrics: dict[str, Any]) -> None:
            nonlocal verdict
            found: Mapping[str, Any] | None = None
            if self.function is not None:
                found = check_mapping(self.function(trainer), "the evaluator function")

            def finish(said: Sequence[Mapping[str, str]]) -> tuple[dict[str, Any], Any]:
                _refuse_differing(said)
                computed = found
                with world_of_one():
                    if computed is None and collector is not None and compute is not None:
                        computed = self._call(compute, self._given(collector))
                    names = self._add_computed(metrics, computed or {})
                    values, plain = self._completed(metrics)
                    return values, None if judge is None else judge(plain, names)

            own = {} if team.alone else {n: to_compare(v) for n, v in metrics.items()}
            told, verdict = section.meet("metrics", own, finish)
            metrics.clear()
            metrics.update(told)
            outcome.update({name: to_record(value) for name, value in told.items()})
            if adopt is not None:
                adopt(outcome, verdict)

        outcome: dict[str, Any] = {}
        gradients = nullcontext() if self.function is not None else grad_mode(self.evaluator)
        carriers: AbstractContextManager[Carrier] = nullcontext(Carrier())
        if collector is not None:
            carriers = open_carrier(section, self.tmpdir, self.gpu_collect)
        with gradients, carriers as carrier:
            samples = run_pass(
                self.evaluator,
                batches,
                collector=collector,
                complete=complete,
                answer_only=judge is None,
                section=section,
                carrier=carrier,
                lockstep=needs_all,
            )
        if batches.repeats and self.function is None and not self.has_warned:
            self.has_warned = True
            warn_of_repeats(section.team)
        seconds = time.perf_counter() - started
        if self.function is not None:
            samples = None
        return Outcome(outcome, samples, seconds, verdict)

    def _completed(self, metrics: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return metrics, and those derived from them: for handlers, and plain."""
        values = {name: to_state(value) for name, value in metrics.items()}
        plain = {name: to_record(value) for name, value in values.items()}
        for name, function in self.derive.items():
            if name in plain:
                raise EvaluationError(f"derive={name!r} would overwrite a metric of that name")
            values[name] = to_state(function(plain))
            plain[name] = to_record(values[name])
        return values, plain

    def _methods(self, dataloader: Any) -> tuple[ComputeMetrics | None, PreEval | None]:
        """Return ``compute_metrics`` and ``pre_eval`` for the data evaluated on.

        A dataset's own methods know its annotations only: other data needs its own.

        Raises:
            ValueError: If ``pre_eval=True`` and this dataset has no such method.
        """
        compute, pre_eval = self.compute_metrics, self.pre_eval
        if self.evaluate_of_dataset:
            compute = method_of_dataset(dataloader, "evaluate")
        if self.pre_eval_of_dataset:
            pre_eval = method_of_dataset(dataloader, "pre_eval")
            if pre_eval is None and compute is not None:
                raise ValueError("pre_eval=True needs a dataset with a method pre_eval")
        return compute, pre_eval

    def _given(self, collector: ResultCollector) -> Sequence[Any]:
        """Return what ``compute_metrics`` is given."""
        return collector.lazy_results() if self.lazy_results else collector.results()

    def _call(self, compute: ComputeMetrics, results: Sequence[Any]) -> Mapping[str, Any]:
        kwargs = dict(self.eval_kwargs)
        if "logger" in parameters_of(compute)[0] and "logger" not in kwargs:
            kwargs["logger"] = logger
        return check_mapping(compute(results, **kwargs), "compute_metrics")

    def _add_computed(self, metrics: dict[str, Any], found: Mapping[str, Any]) -> list[str]:
        """Add what a function has computed; return the names that ``"auto"`` may choose first."""
        if self.function is not None:
            metrics.update(found)
            return [name for name in found if name != "val_loss"]
        clash = [name for name in found if name in metrics]
        if clash:
            raise EvaluationError(
                f"compute_metrics returned {clash}, which the evaluator's metrics hold already; "
                "rename one of them"
            )
        metrics.update(found)
        return list(found)


def warn_of_repeats(team: Team) -> None:
    """Say that the ranks seem to evaluate the same data."""
    if team.leads:
        logger.warning(
            "all %d ranks began with the same batch: each seems to evaluate the whole data, so "
            "that every sample counts %d times; give each rank its own part (of a stream: every "
            "%d-th sample, or file)", team.size, team.size, team.size,
        )  # fmt: skip


def _refuse_differing(said: Sequence[Mapping[str, str]]) -> None:
    """Refuse metrics that a handler has written differently on different ranks."""
    for rank, values in enumerate(said[1:], start=1):
        for name, value in values.items():
            if name in said[0] and said[0][name] != value:
                raise EvaluationError(
                    f"the metric {name!r} is {said[0][name]:.80} on rank 0 and {value:.80} on rank "
                    f"{rank}: a handler wrote it there, and each rank sees its share of the data "
                    "only; make it an ignite Metric, or use derive= or compute_metrics="
                )


def method_of_dataset(dataloader: object, name: str) -> Callable[..., Any] | None:
    """Return a method of the loader's dataset, if it has one of that name."""
    method = getattr(getattr(dataloader, "dataset", None), name, None)
    return method if callable(method) else None


def check_mapping(found: Any, who: str) -> Mapping[str, Any]:
    """Return ``found`` if it maps names to values.

    Raises:
        EvaluationError: If it does not.
    """
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise EvaluationError(
            f"{who} must return a mapping of names to values, got {type(found).__name__}"
        )
    for name in found:
        if not isinstance(name, str):
            raise EvaluationError(
                f"{who} must return a mapping of names to values, got the name {name!r}, which "
                "is no string"
            )
    return found


def parameters_of(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """Return the keyword names of a function, and whether it takes any keyword at all."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return set(), True
    named = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)
