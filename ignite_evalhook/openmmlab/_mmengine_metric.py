"""Use MMEngine's metrics and evaluators as a metric of an engine, exact on any number of processes.

MMEngine's own way between processes is never used: it drops results that are ``None``, counts what
a sampler has padded, and cuts off at the size of the dataset.  Here the ranks' ``results`` are put
into the order of the dataset, and MMEngine computes from them as on one process.

MMEngine is an extra: it is imported inside functions, here and in ``_mmengine`` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric

from .._evaluate.one_pass import attached_metrics
from .._evaluate.val_loss import count_samples, split_val_loss
from .._ranks.list_marks import Holder
from .._ranks.offline import world_of_one
from .._ranks.state_snapshot import StateSnapshot, inner_items
from ..exceptions import EvaluationError

__all__ = ["MMEngineMetric", "needs_mmengine"]


@contextmanager
def needs_mmengine(who: str) -> Iterator[None]:
    """Say how to install MMEngine if an import in the body fails."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f'{who} needs MMEngine: pip install "ignite-evalhook[openmmlab]" ({error})'
        ) from error


class MMEngineMetric(Metric):
    """Metrics or an evaluator of MMEngine, as one metric of Ignite.

    Each batch goes to ``evaluator.process(data_batch=, data_samples=)``: the batch as the loader
    gave it, and the engine's output without a validation loss.  A list or tuple gives its items
    and a tensor its rows, as in MMEngine's ``ValLoop``; a mapping or anything else is one item.
    Results end under the names that MMEngine gives them, ``prefix/name``.

    On several ranks only ``results`` is merged, that of every metric found in the evaluator, also
    inside other metrics.  ``evaluate(size)`` runs on rank 0 alone, with all results in the order
    of the dataset, none of them dropped or cut off, and finds no process group.  As in MMEngine,
    attributes that it sets, caches say, stay.  A metric that counts in other attributes than
    ``results`` is refused on several ranks; ``reset()`` puts these back as well.

    Args:
        metrics: A ``BaseMetric``, a list of them, a config (or a list of configs) as MMEngine
            takes it, or an ``Evaluator``.
        dataset_meta: Passed to the metrics.  ``None``: that of the dataset evaluated on, if it
            has a ``metainfo``.

    Raises:
        ImportError: If MMEngine is missing.
        TypeError: If ``metrics`` is something else.
    """

    required_output_keys = None

    def __init__(self, metrics: Any, *, dataset_meta: Any = None) -> None:
        self.evaluator = _as_evaluator(metrics)
        self._fixed_meta = dataset_meta is not None
        if self._fixed_meta:
            self.evaluator.dataset_meta = dataset_meta
        self._snapshot: StateSnapshot | None = None
        self._took_meta = False
        self._unfinished = False
        self._touched = False
        self._metrics: list[Any] = []
        self._sizes: list[int | None] = []  # samples of each batch; a list as results are
        self._updates = 0
        self._known: set[str] = set()
        super().__init__()

    def take_data(self, dataloader: Any) -> None:
        """Take ``dataloader.dataset.metainfo`` for the metrics, if there is one and none was given.

        Called before an evaluation, and before its check of one batch.
        """
        found = getattr(getattr(dataloader, "dataset", None), "metainfo", None)
        if not self._fixed_meta and (found is not None or self._took_meta):
            self.evaluator.dataset_meta = found
            self._took_meta = True

    def reset(self) -> None:
        """Forget all updates, also what they have changed in other attributes than ``results``."""
        if self._snapshot is not None and self._touched:
            self._snapshot.put_back()
        self._unfinished = False
        self._begin()

    def _begin(self) -> None:
        with needs_mmengine(type(self).__name__):
            from mmengine.evaluator import BaseMetric, Evaluator

        kinds = (BaseMetric, Evaluator)
        found = inner_items(self.evaluator, lambda value: isinstance(value, kinds))
        self._metrics = [item for item in found if isinstance(item, BaseMetric)]
        self._forget_results()
        self._sizes, self._updates = [], 0
        self._snapshot, self._touched = StateSnapshot(found), False

    def _forget_results(self) -> None:
        for metric in self._metrics:
            metric.results.clear()

    def started(self, engine: Engine) -> None:
        """Begin a new pass over the data."""
        if self._unfinished:  # the last one was broken off, and what it counted must not count
            self.reset()
        else:
            self._begin()
        self._unfinished = True
        self._known = set(engine.state.metrics)

    def iteration_completed(self, engine: Engine) -> None:
        """Process the engine's batch and output."""
        output, _ = split_val_loss(engine.state.output)
        with torch.no_grad():
            self.update((engine.state.batch, output))

    def update(self, output: tuple[Any, Any]) -> None:
        """Process ``(data_batch, data_samples)``.

        Raises:
            EvaluationError: If there is no output.
        """
        batch, outputs = output
        if outputs is None:
            raise EvaluationError(
                "the model gave no predictions (None), and MMEngine's metrics process these; "
                "return them before the loss, or evaluate without metrics"
            )
        self._touched = True
        samples = outputs if _has_items(outputs) else [outputs]
        self.evaluator.process(data_samples=samples, data_batch=batch)
        self._updates += 1
        self._sizes.append(count_samples(outputs, batch))

    def compute(self) -> dict[str, Any]:
        """Return the results, without asking other ranks.

        Raises:
            NotComputableError: If there was no update.
        """
        if not self._sizes:
            raise NotComputableError(
                "metrics of MMEngine must have processed at least one batch before they compute"
            )
        results = [list(metric.results) for metric in self._metrics]
        if len(self._sizes) > self._updates:  # there are those of other ranks, on the CPU
            results = [
                _to_cpu(items) if self._evaluates_by_itself(metric) else items
                for metric, items in zip(self._metrics, results, strict=True)
            ]
        sizes = [size for size in self._sizes if size is not None]
        return self._evaluate(results, sum(sizes) if len(sizes) == len(self._sizes) else None)

    def completed(self, engine: Engine, name: str) -> None:
        """Put each result under its own name into the engine's metrics.

        Raises:
            EvaluationError: If another metric has one of the names.
        """
        found = self.compute()
        taken = {other for other, metric in attached_metrics(engine).items() if metric is not self}
        taken.update(engine.state.metrics.keys() - self._known)
        clash = [result for result in found if result in taken]
        if clash:
            raise EvaluationError(
                f"MMEngine's metrics give {clash}, and so does another metric of this engine; "
                "give one of them another prefix="
            )
        engine.state.metrics.update(found)
        self._unfinished = False
        self._forget_results()  # as MMEngine does: predictions of a whole dataset are large

    # -- several ranks, see _metric_units ---------------------------------------------------------

    why_lists_only = (
        "changes while batches are processed, on each rank by itself, and only the results of "
        "MMEngine's metrics can be put together; let process() append to self.results, and add up "
        "in compute_metrics()"
    )

    def list_holders(self) -> list[Holder]:
        """Return what may hold lists, and must not count anything else."""
        results = [Holder(metric, None, ("results",), known=True) for metric in self._metrics]
        return [Holder(self, ("_sizes",)), *results]

    def _evaluates_by_itself(self, metric: Any) -> bool:
        from mmengine.evaluator import BaseMetric, Evaluator

        return (
            type(metric).evaluate is not BaseMetric.evaluate
            or type(self.evaluator).evaluate is not Evaluator.evaluate
        )

    def _evaluate(self, results: Sequence[list[Any]], samples: int | None) -> dict[str, Any]:
        """Let MMEngine compute from some results, as on one process."""
        kept = [metric.results for metric in self._metrics]
        size = max(samples or 0, 0, *map(len, results))  # so that nothing is cut off
        try:
            for metric, items in zip(self._metrics, results, strict=True):
                metric.results = items
            with world_of_one():
                found = self.evaluator.evaluate(size)
        finally:
            for metric, items in zip(self._metrics, kept, strict=True):
                metric.results = items
        if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
            raise EvaluationError(
                f"{type(self.evaluator).__name__}.evaluate() must return a mapping of names to "
                f"values, got {found!r:.80}"
            )
        return dict(found)


def _as_evaluator(metrics: Any) -> Any:
    """Return an ``Evaluator`` of MMEngine, as its ``Runner`` builds it."""
    with needs_mmengine("MMEngineMetric"):
        from mmengine.evaluator import BaseMetric, Evaluator
        from mmengine.registry import EVALUATOR

    if isinstance(metrics, Evaluator):
        return metrics
    if isinstance(metrics, Mapping) and "metrics" in metrics:
        return EVALUATOR.build({"type": "Evaluator", **metrics})
    items = list(metrics) if isinstance(metrics, (list, tuple)) else [metrics]
    for item in items:
        if not isinstance(item, (BaseMetric, dict)):
            raise TypeError(
                "metrics must be a BaseMetric of MMEngine, a list of them, a config dict or a "
                f"list of these, or an Evaluator, got {type(item).__name__}; attach a metric of "
                "Ignite by metric.attach(evaluator, name)"
            )
    return Evaluator(items)


def _has_items(outputs: Any) -> bool:
    """Return whether MMEngine goes through the items of an output: a sequence, rows."""
    if isinstance(outputs, (list, tuple)):
        return True
    if isinstance(getattr(outputs, "ndim", None), int):  # a tensor, an array
        return bool(outputs.ndim)
    return isinstance(outputs, Sequence) and not isinstance(outputs, (str, bytes))


def _to_cpu(value: Any) -> Any:
    """Return results with their tensors on the CPU."""
    from mmengine.structures import BaseDataElement

    if isinstance(value, (torch.Tensor, BaseDataElement)):
        return value.to("cpu")
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_to_cpu, value))
    return value
