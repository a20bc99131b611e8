"""Use metrics of torchmetrics as metrics of an engine, exact on any number of processes.

torchmetrics is an extra: nothing here imports it.  An object can only be one of its metrics if
somebody has imported it already.  Its own synchronisation puts states together, as they were
declared; what it gathers is asked for as Ignite's metrics do (``dist_sync_fn``).

Private names of torchmetrics are used in this file only: ``Metric._defaults`` and
``_reductions`` (the declared states), ``_computed`` and ``_update_count`` (what goes with them),
and ``_to_sync``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from torch import nn

from ..exceptions import EvaluationError
from .list_marks import Holder
from .metric_units import Part

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
        super().__init__(output_transform=output_transform or _as_it_is)

    def reset(self) -> None:
        """Forget all updates."""
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
            if self._is_collection:
                self._item.values(copy_state=False)  # gives all of a group what one has counted

    def compute(self) -> Any:
        """Return the result.

        Raises:
            NotComputableError: If there was no update.
        """
        if idist.get_world_size() == 1 and all(map(_is_empty, self._parts)):
            raise _nothing(self._item)
        with _synchronised(self._parts):
            if not self.own_parts():
                _take_all_updates(self._item)
            return _plain(self._item.compute())

    def completed(self, engine: Engine, name: str) -> None:
        """Put the result, or each of several under its own name, into the engine's metrics."""
        result = self.compute()
        engine.state.metrics.update(result if isinstance(result, Mapping) else {name: result})

    # -- several ranks, see _metric_units ---------------------------------------------------------

    def own_parts(self) -> list[Part]:
        """Return the metrics inside it that are computed over the ranks by themselves."""
        return [
            Part(leaf, partial(_compute, leaf), tuple(leaf._defaults))
            for leaf in self._leaves()
            if leaf is not self._item
        ]

    def list_holders(self) -> list[Holder]:
        """Return what may hold lists, apart from the parts."""
        return [] if self.own_parts() else [Holder(self._item, tuple(self._item._defaults))]

    def followed(self) -> list[Any]:
        """Return what computing may change."""
        return self._parts

    def _leaves(self) -> list[Any]:
        """Return the metrics that hold no others."""
        package: Any = sys.modules["torchmetrics"]
        return [
            part
            for part in self._parts
            if sum(isinstance(module, package.Metric) for module in part.modules()) == 1
        ]

    def why_not_exact(self) -> str | None:
        """Say why this metric cannot be evaluated on several ranks, if it cannot."""
        wrappers: Any = sys.modules.get("torchmetrics.wrappers")
        for part in self._modules:
            for kind, reason in _INEXACT.items():
                if wrappers is not None and isinstance(part, getattr(wrappers, kind, ())):
                    return f"{kind} of torchmetrics {reason}; attach the metric inside it"
        if not any(part._defaults for part in self._parts):
            return "it declares no state; call self.add_state(...) in its __init__"
        return next(filter(None, map(_why_not, self._leaves())), None)

    def _follow(self, output: Any) -> None:
        """Move to the device of the data."""
        tensor = _first_tensor(output)
        if tensor is not None and any(part.device != tensor.device for part in self._parts):
            self._item.to(tensor.device)


def _as_it_is(output: Any) -> Any:
    return output


def _nothing(metric: Any) -> NotComputableError:
    return NotComputableError(
        f"{type(metric).__name__} must have at least one example before it can be computed."
    )


def _is_empty(part: Any) -> bool:
    """Return whether a metric has counted nothing; it may have been given lists."""
    lists = [getattr(part, name) for name in part._defaults]
    return part._update_count == 0 and not any(isinstance(one, list) and one for one in lists)


@contextmanager
def _synchronised(parts: Sequence[Any]) -> Iterator[None]:
    """Let metrics gather their states by asking the other ranks, for a time."""
    several = idist.get_world_size() > 1
    own = {
        "dist_sync_fn": _gather, "distributed_available_fn": lambda: several, "_to_sync": True,
        "_computed": None,
    }  # fmt: skip
    kept = [{name: vars(part)[name] for name in own if name in vars(part)} for part in parts]
    try:
        for part in parts:
            vars(part).update(own)
        yield
    finally:
        for part, attributes in zip(parts, kept, strict=True):
            vars(part).update(attributes)


def _gather(tensor: torch.Tensor, group: Any = None) -> list[torch.Tensor]:
    """Return the tensors of all ranks, of whatever shapes; what ``dist_sync_fn`` is to do."""
    found: Any = idist.all_gather((tensor,))
    return [values[0].to(tensor.device) for values in found]


def _compute(part: Any) -> Any:
    """Compute a metric inside another one."""
    if _is_empty(part):
        raise _nothing(part)
    with _synchronised([part]):
        _take_all_updates(part)
        return part.compute()


def _take_all_updates(part: Any) -> None:
    """Count the updates of all ranks, and refuse averages over ranks that are different."""
    if idist.get_world_size() == 1:
        return
    if part._update_count == 0:
        raise _nothing(part)
    counts: Any = idist.all_gather(part._update_count)
    part._update_count = sum(counts)
    averages = sys.modules["torchmetrics.utilities.data"].__dict__["dim_zero_mean"]
    for name, reduction in part._reductions.items():
        if reduction is averages:
            first, *others = _gather(getattr(part, name))
            if any(not torch.equal(first, other) for other in others):
                raise EvaluationError(
                    f"the state {name!r} of {type(part).__name__} is averaged over the ranks, "
                    "which weighs a rank with one batch like a rank with many; keep a sum and a "
                    "count (dist_reduce_fx='sum') and divide in compute()"
                )


def _why_not(part: Any) -> str | None:
    """Say which state torchmetrics cannot put together if the ranks had unlike batches."""
    joins = sys.modules["torchmetrics.utilities.data"].__dict__["dim_zero_cat"]
    is_list = {name: isinstance(default, list) for name, default in part._defaults.items()}
    for name, reduction in part._reductions.items():
        if not is_list[name] and reduction is joins:
            return (
                f"the state {name!r} of {type(part).__name__} is a tensor that grows "
                "(dist_reduce_fx='cat'), which torchmetrics cannot gather from ranks with unlike "
                "batches; declare a list: self.add_state(..., [], dist_reduce_fx='cat')"
            )
        if is_list[name] and reduction is not joins and not all(is_list.values()):
            return (
                f"the state {name!r} of {type(part).__name__} is a list with another reduction "
                "than 'cat', which torchmetrics cannot gather from ranks with unlike batches; "
                "declare it with dist_reduce_fx='cat', or make it a metric of its own"
            )
    return None


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
