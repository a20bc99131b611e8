"""Use metrics of torchmetrics as metrics of an engine, exact on any number of processes.

torchmetrics is an extra: nothing here imports it.  An object can only be one of its metrics if
somebody has imported it already.  Its own synchronisation is never used; states are merged by the
reductions that they were declared with.

Private names of torchmetrics are used in this file only: ``Metric._defaults`` and
``_reductions`` (the declared states), ``_computed`` and ``_update_count`` (what goes with them).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from torch import nn

from ._dataset_order import dealt_by_turn, in_dataset_order
from ._reductions import reduced
from .exceptions import EvaluationError

__all__ = ["TorchMetric", "as_ignite_metric", "is_torchmetric"]

# What a wrapper of torchmetrics does that depends on which rank sees which batch.
_INEXACT = {
    "BootStrapper": "draws random samples of each batch on each rank",
    "MetricTracker": "compares several runs",
    "Running": "keeps the last updates of its own rank only",
}


def as_ignite_metric(item: Any, *, output_transform: Callable[[Any], Any] | None = None) -> Metric:
    """Return ``item`` as a metric of Ignite.

    Args:
        item: A metric of Ignite (returned as it is), or a ``Metric`` or ``MetricCollection`` of
            torchmetrics.
        output_transform: As for Ignite's metrics; only for one of torchmetrics.

    Raises:
        TypeError: If it is something else.
    """
    if isinstance(item, Metric):
        return item
    if not is_torchmetric(item):
        raise TypeError(
            "a metric must be one of ignite.metrics, or a Metric or MetricCollection of "
            f"torchmetrics, got {type(item).__name__}"
        )
    return TorchMetric(item, output_transform=output_transform)


def is_torchmetric(item: Any) -> bool:
    """Return whether ``item`` is a metric or a collection of torchmetrics."""
    package: Any = sys.modules.get("torchmetrics")
    return package is not None and isinstance(item, (package.Metric, package.MetricCollection))


class TorchMetric(Metric):
    """A metric or a collection of torchmetrics, with the manners of Ignite's.

    It is updated with ``(y_pred, y)``, or whatever the engine's output is after
    ``output_transform``: the items of a tuple or list are passed in order; those of a mapping by
    their names where ``update`` takes these, else ``y_pred`` and ``y`` in order.  It follows the
    data to its device.  A collection, or a metric with several results, gives each under its own
    name.  Metrics of a collection that share their counting are each counted by themselves,
    unless ``compute_groups`` names them: whether torchmetrics finds them equal would depend on
    the first batch.

    Args:
        item: The metric or collection.  It is reset before every evaluation.
        output_transform: As for Ignite's metrics.
    """

    required_output_keys = None

    def __init__(
        self, item: nn.Module, *, output_transform: Callable[[Any], Any] | None = None
    ) -> None:
        package: Any = sys.modules["torchmetrics"]
        self._item: Any = item
        self._modules = list(item.modules())
        self._parts: list[Any] = [m for m in self._modules if isinstance(m, package.Metric)]
        self._is_collection = isinstance(item, package.MetricCollection)
        self._updates = 0
        self._lengths: list[dict[str, list[int]]] = []
        super().__init__(output_transform=output_transform or _as_it_is)

    def reset(self) -> None:
        """Forget all updates."""
        self._updates = 0
        self._lengths = [
            {name: [0] for name in part._defaults if _is_list(part, name)} for part in self._parts
        ]
        self._item.reset()

    def iteration_completed(self, engine: Engine) -> None:
        """Update with the engine's output, whatever its form."""
        with torch.no_grad():
            self.update(self._output_transform(engine.state.output))

    def update(self, output: Any) -> None:
        """Update with the output of one batch."""
        self._follow(output)
        if self._is_collection and all(len(g) == 1 for g in self._item.compute_groups.values()):
            for metric in self._item.values(copy_state=False):
                _update(metric, output)
        else:
            _update(self._item, output)
        self._updates += 1
        for part, lengths in zip(self._parts, self._lengths, strict=True):
            for name, noted in lengths.items():
                noted.append(len(getattr(part, name)))

    def compute(self) -> Any:
        """Return the result, without asking other ranks.

        Raises:
            NotComputableError: If there was no update.
        """
        if self._updates == 0:
            raise NotComputableError(
                f"{type(self._item).__name__} must have at least one example before it can be "
                "computed."
            )
        kept = [part.distributed_available_fn for part in self._parts]
        try:
            for part in self._parts:
                part.distributed_available_fn = _never
            return _plain(self._item.compute())
        finally:
            for part, available in zip(self._parts, kept, strict=True):
                part.distributed_available_fn = available

    def completed(self, engine: Engine, name: str) -> None:
        """Put the result, or each of several under its own name, into the engine's metrics."""
        result = self.compute()
        engine.state.metrics.update(result if isinstance(result, Mapping) else {name: result})

    # -- several ranks, see _merge.Mergeable ------------------------------------------------------

    def shard_state(self) -> dict[str, Any]:
        """Return the declared states of all metrics in it."""
        return {
            "updates": self._updates,
            "groups": [list(group) for group in self._groups()],
            "parts": [
                {
                    "updates": int(part._update_count),
                    "states": {name: _detached(getattr(part, name)) for name in part._defaults},
                    "lengths": lengths,
                }
                for part, lengths in zip(self._parts, self._lengths, strict=True)
            ],
        }

    def merge_shards(
        self, shards: Sequence[Mapping[str, Any]], numbers: Sequence[Sequence[int]] | None
    ) -> Any:
        """Return what one process computes, with the states merged as they were declared.

        Raises:
            EvaluationError: If a state cannot be merged exactly.
        """
        if any(shard["groups"] != shards[0]["groups"] for shard in shards):
            raise EvaluationError(
                "a MetricCollection of torchmetrics has grouped its metrics differently on the "
                "ranks; name the groups in compute_groups=, or hand over one that is new"
            )
        if numbers is None:
            numbers = dealt_by_turn([shard["updates"] for shard in shards])
        with self._as_it_was():
            self._updates = sum(shard["updates"] for shard in shards)
            for place, part in enumerate(self._parts):
                entries = [shard["parts"][place] for shard in shards]
                present = [rank for rank, entry in enumerate(entries) if entry["updates"] > 0]
                entries = [entries[rank] for rank in present] or entries[:1]
                for name in part._defaults:
                    value = _merged_state(part, name, entries, [numbers[rank] for rank in present])
                    setattr(part, name, _on(part.device, value))
                part._computed = None
                part._update_count = sum(entry["updates"] for entry in entries)
            return TorchMetric.compute(self)  # ``self.compute`` may be replaced for a time

    def why_not_exact(self) -> str | None:
        """Say why this metric cannot be evaluated on several ranks, if it cannot."""
        wrappers: Any = sys.modules.get("torchmetrics.wrappers")
        for part in self._modules:
            for kind, reason in _INEXACT.items():
                if wrappers is not None and isinstance(part, getattr(wrappers, kind, ())):
                    return f"{kind} of torchmetrics {reason}; attach the metric inside it"
        if not any(part._defaults for part in self._parts):
            return "it declares no state; call self.add_state(...) in its __init__"
        return None

    def _groups(self) -> list[list[str]]:
        return list(self._item.compute_groups.values()) if self._is_collection else []

    def _follow(self, output: Any) -> None:
        """Move to the device of the data."""
        tensor = _first_tensor(output)
        if tensor is not None and any(part.device != tensor.device for part in self._parts):
            self._item.to(tensor.device)

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Put everything back afterwards; a computation may have changed any attribute."""
        kept = [
            {
                name: dict(value) if name in ("_buffers", "_modules", "_parameters") else value
                for name, value in vars(module).items()
            }
            for module in self._modules
        ]
        updates = self._updates
        try:
            yield
        finally:
            self._updates = updates
            for module, attributes in zip(self._modules, kept, strict=True):
                vars(module).clear()
                vars(module).update(attributes)


def _as_it_is(output: Any) -> Any:
    return output


def _never() -> bool:
    return False


def _is_list(part: Any, name: str) -> bool:
    return isinstance(part._defaults[name], list)


def _update(metric: Any, output: Any) -> None:
    if isinstance(output, Mapping):
        _update_by_name(metric, output)
    elif isinstance(output, (list, tuple)):
        metric.update(*output)
    else:
        metric.update(output)


def _update_by_name(metric: Any, output: Mapping[str, Any]) -> None:
    parameters = inspect.signature(metric.update).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        named = dict(output)
    else:
        named = {p.name: output[p.name] for p in parameters if p.name in output}
    required = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    if all(name in named for name in required) and "y_pred" not in named:
        metric.update(**named)
    elif "y_pred" in output and "y" in output:
        metric.update(output["y_pred"], output["y"])
    else:
        raise ValueError(
            f"{type(metric).__name__} is updated with {', '.join(required)}, and the output has "
            f"the keys {', '.join(map(str, output))}; name them alike, or use output_transform="
        )


def _merged_state(
    part: Any, name: str, entries: Sequence[Mapping[str, Any]], numbers: Sequence[Sequence[int]]
) -> Any:
    """Return one state of one metric as all updates on one process leave it."""
    values = [entry["states"][name] for entry in entries]
    if len(values) == 1:
        return values[0]
    reduction = part._reductions[name]
    known = sys.modules["torchmetrics.utilities.data"].__dict__
    concatenated = reduction in (None, known["dim_zero_cat"])
    if isinstance(values[0], list):
        joined = _joined(values, [entry["lengths"][name] for entry in entries], numbers)
        if concatenated:
            return joined
        if not callable(reduction) or reduction.__module__ == known["__name__"]:
            raise EvaluationError(
                f"the state {name!r} of {type(part).__name__} is a list with another reduction "
                "than 'cat'; torchmetrics itself does not say what that gives"
            )
        return reduction(joined)
    if reduction is known["dim_zero_sum"]:
        return reduced(values, "SUM")
    if reduction is known["dim_zero_mean"]:
        if any(not torch.equal(value, values[0]) for value in values):
            raise EvaluationError(
                f"the state {name!r} of {type(part).__name__} is averaged over the ranks, which "
                "weighs a rank with one batch like a rank with many; keep a sum and a count "
                "(dist_reduce_fx='sum') and divide in compute()"
            )
        return values[0]
    if reduction is not None and concatenated:
        return torch.cat([value.reshape(-1) if value.ndim == 0 else value for value in values])
    stacked = torch.stack(list(values))
    return stacked if reduction is None else reduction(stacked)


def _joined(
    lists: Sequence[list[Any]], lengths: Sequence[Sequence[int]], numbers: Sequence[Sequence[int]]
) -> list[Any]:
    """Return one list with the items of all ranks in the order of the dataset."""
    dealt = in_dataset_order(lists, lengths, numbers)
    return list(chain(*(dealt or lists)))


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return [_detached(item) for item in value] if isinstance(value, list) else value


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return [_on(device, item) for item in value] if isinstance(value, list) else value


def _first_tensor(value: Any) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value
    items = value.values() if isinstance(value, Mapping) else value
    if not isinstance(items, (list, tuple)) and not isinstance(value, Mapping):
        return None
    return next((found for item in items if (found := _first_tensor(item)) is not None), None)


def _plain(value: Any) -> Any:
    """Return tensors with one number as that number, others on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.item() if value.ndim == 0 else value.detach().cpu()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value
