"""Evaluate once: from a model and its data to plain metrics.

:class:`Evaluation` knows how a hook evaluates and leaves training as it stood.  It neither
knows why it runs nor what follows from the result.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine
from torch import nn

from ._engine import grad_mode, run_pass
from ._loading import plan_batches
from ._log import logger
from ._quiet import quiet
from ._results import PreEval, ResultCollector
from .exceptions import EvaluationError

__all__: list[str] = []

ComputeMetrics = Callable[..., Mapping[str, Any]]
Context = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Outcome:
    """What one evaluation measured: plain metrics, samples, and seconds."""

    metrics: dict[str, Any]
    samples: int | None
    seconds: float


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

    @contextmanager
    def session(self, dataloader: Iterable[Any] | None) -> Iterator[None]:
        """Keep training as it stands while the body evaluates and saves."""
        context = nullcontext if self.context is None else self.context
        raised: BaseException | None = None
        with quiet(self.modules, dataloader), context():
            try:
                yield
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
        announce: Callable[[dict[str, Any], Sequence[str]], None] | None,
    ) -> Outcome:
        """Evaluate, inside a :meth:`session`.

        Args:
            dataloader: The batches; ``None`` for a function evaluator.
            trainer: Passed to a function evaluator.
            announce: Called with the complete, plain metrics, and the names of those that
                came from ``compute_metrics`` or the function (but for a validation loss),
                before the evaluator fires ``COMPLETED``.  ``None``: only answer, and do not
                fire it.
        """
        started = time.perf_counter()
        computed: list[str] = []
        compute, pre_eval = self._methods(dataloader)
        collector = None
        if compute is not None and self.function is None:
            collector = ResultCollector(pre_eval)
        source = [None] if self.function is not None else dataloader
        if source is None:
            raise ValueError("there is no dataloader to evaluate on; pass one to evaluate()")
        batches = plan_batches(source, self.limit_batches, order=collector is not None)

        def collect(output: Any, count: int | None) -> None:
            if collector is not None:
                collector.add(output, count, batches.next_indices())

        outcome: dict[str, Any] = {}

        def complete(metrics: dict[str, Any]) -> None:
            if self.function is not None:
                found = check_mapping(self.function(trainer), "the evaluator function")
                metrics.update(found)
                computed.extend(name for name in found if name != "val_loss")
            elif collector is not None and compute is not None:
                computed.extend(self._compute(compute, collector.results(), metrics))
            for name in list(metrics):
                metrics[name] = to_number(metrics[name])
            for name, function in self.derive.items():
                if name in metrics:
                    raise EvaluationError(f"derive={name!r} would overwrite a metric of that name")
                metrics[name] = to_number(function(metrics))
            outcome.update(metrics)
            if announce is not None:
                announce(outcome, computed)

        with nullcontext() if self.function is not None else grad_mode(self.evaluator):
            samples = run_pass(
                self.evaluator,
                batches,
                collect=collect if collector is not None else None,
                complete=complete,
                answer_only=announce is None,
            )
        seconds = time.perf_counter() - started
        if self.function is not None:
            samples = None
        return Outcome(outcome, samples, seconds)

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

    def _compute(
        self, compute: ComputeMetrics, results: list[Any], metrics: dict[str, Any]
    ) -> list[str]:
        kwargs = dict(self.eval_kwargs)
        if "logger" in parameters_of(compute)[0] and "logger" not in kwargs:
            kwargs["logger"] = logger
        found = check_mapping(compute(results, **kwargs), "compute_metrics")
        clash = [name for name in found if name in metrics]
        if clash:
            raise EvaluationError(
                f"compute_metrics returned {clash}, which the evaluator's metrics hold already; "
                "rename one of them"
            )
        metrics.update(found)
        return list(found)


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


def to_number(value: Any) -> Any:
    """Return a metric's value as plain Python: a float, a string, nested lists.

    0-d tensors and NumPy scalars become floats, tensors and arrays nested lists; mappings and
    sequences are converted inside; anything else becomes its ``repr``.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bool, int, float)):
        return float(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().tolist()
        return to_number(value) if not isinstance(value, list) else value
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        value = value.tolist()
        return value if isinstance(value, list) else to_number(value)
    if isinstance(value, Mapping):
        return {str(key): to_number(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_number(item) for item in value]
    return repr(value)
