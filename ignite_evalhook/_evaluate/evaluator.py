"""Make an evaluator from a model: :func:`create_evaluator`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine, State
from ignite.metrics import Metric
from torch import nn
from torch.utils._pytree import tree_map_only

from .._ranks.buffers import get_ready, without_ddp_broadcast
from .._ranks.compare import DATA, Given
from .._ranks.given_data import data_of
from .._ranks.sharded_models import check_unshared, is_sharded, unwrap
from .._ranks.share import turn_of
from .._ranks.team import Team
from .._ranks.torchmetrics import as_ignite_metric, is_torchmetric
from .._undisturbed.mixed_precision import Step, device_of, mixed
from .._undisturbed.training import quiet
from .loader import plan_batches
from .loss_weight import as_val_loss
from .one_pass import grad_mode, run_pass, tell_data

__all__ = ["create_evaluator"]

PrepareBatch = Callable[..., tuple[Any, Any]]


class ModelEvaluator(Engine):
    """An engine made by :func:`create_evaluator`.

    Run by hand, ``evaluator.run(loader)`` evaluates once: model in eval mode, gradients off,
    the validation loss in ``state.metrics``; afterwards the model stands as it stood.  On several
    processes, where every rank has to call it, the batches are dealt out and the metrics are
    those of all, as in a hook.
    """

    model: nn.Module

    def __init__(self, step: Step, model: nn.Module, *, inference_mode: bool) -> None:
        super().__init__(step)
        self.model = model
        self.inference_mode = inference_mode

    def run(
        self,
        data: Iterable[Any] | None = None,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        epoch_length: int | None = None,
    ) -> State:
        """Evaluate ``data`` once.

        Args:
            data: A ``DataLoader`` or another iterable of batches.
            max_epochs: Nothing but ``None`` or 1: an evaluation sees the data once.
            max_iters: Batches to stop after; ``None`` for all.
            epoch_length: The same as ``max_iters``.

        Raises:
            ValueError: If ``data`` is missing or more than one epoch is asked for.
            EvaluationError: If ``data`` is empty or not every batch was seen.
        """
        if data is None:
            raise ValueError("an evaluator needs data: evaluator.run(loader)")
        if max_epochs not in (None, 1):
            raise ValueError(f"an evaluation runs over the data once, got max_epochs={max_epochs}")
        limit = max_iters if max_iters is not None else epoch_length
        team, modules = Team.current("evaluator.run"), [self.model]
        tell_data(self, data)
        with (
            team.together("evaluator.run") as section,
            quiet(modules, data),
            without_ddp_broadcast(),
            grad_mode(self),
        ):
            if not team.alone:
                check_unshared(modules)
            said = {} if team.alone else {DATA: data_of(data, read=False)}
            get_ready(section, modules, "broadcast", given=Given(said))
            batches = plan_batches(data, limit, turn=turn_of(section))
            needs_all = not team.alone and is_sharded(modules)
            run_pass(self, batches, section=section, lockstep=needs_all)
        return self.state


def create_evaluator(
    model: nn.Module,
    metrics: Mapping[str, Any] | None = None,
    *,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    device: str | torch.device | None = None,
    non_blocking: bool = True,
    prepare_batch: PrepareBatch | None = None,
    amp_dtype: torch.dtype | None = None,
    inference_mode: bool = False,
    step: Step | None = None,
) -> Engine:
    """Create an engine that evaluates ``model`` batch by batch.

    A batch is ``(x, y)`` and the output ``(y_pred, y)``, as in Ignite's
    ``create_supervised_evaluator``.  A model that has a method ``val_step(batch)`` (MMEngine's
    convention) is run through that instead.

    Args:
        model: The model.  Wrappers for data parallelism are taken off.
        metrics: Name to metric, attached in this order: Ignite's, or of ``torchmetrics``, of
            which a ``MetricCollection`` gives its results under their own names.
        loss_fn: ``loss_fn(y_pred, y)`` becomes the validation loss: a scalar (the mean of the
            batch), a tensor of shape ``(batch,)``, a mapping of losses, or a ``ValLoss``.  Torch's
            own ``CrossEntropyLoss`` and ``NLLLoss`` (``ignore_index``, class weights) and those
            with ``reduction="sum"`` give the mean that they give of the whole set.
        device: Where batches go.  ``None``: where the model's first parameter is.
        non_blocking: Whether copies of pinned batches to a GPU may overlap with computation.
        prepare_batch: ``prepare_batch(batch, device=, non_blocking=) -> (x, y)``.
        amp_dtype: Run model and loss under autocast with this type, ``torch.bfloat16`` say.
        inference_mode: Use ``torch.inference_mode`` instead of ``torch.no_grad``.  Models that
            keep tensors of a forward pass for later break with it.
        step: ``step(engine, batch) -> output`` in place of all that.

    Returns:
        An engine; ``engine.model`` is the unwrapped model.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``step`` is combined with an argument that it replaces.

    Source:
        The interface follows ``ignite.engine.create_supervised_evaluator``; ``val_step`` is
        MMEngine's.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    attached: dict[str, Metric] = {}
    for name, metric in (metrics or {}).items():
        attached[name] = as_ignite_metric(metric) if is_torchmetric(metric) else metric
        if not isinstance(attached[name], Metric):
            raise TypeError(
                f"metrics[{name!r}] must be an ignite.metrics.Metric, or a metric of torchmetrics, "
                f"got {type(metric).__name__}"
            )
    for argument, value in (("loss_fn", loss_fn), ("prepare_batch", prepare_batch), ("step", step)):
        if value is not None and not callable(value):
            raise TypeError(f"{argument} must be a function, got {type(value).__name__}")
    if amp_dtype is not None and not isinstance(amp_dtype, torch.dtype):
        raise TypeError(f"amp_dtype must be a torch.dtype, got {amp_dtype!r}")
    replaced = {"loss_fn": loss_fn, "prepare_batch": prepare_batch, "amp_dtype": amp_dtype,
                "device": device}  # fmt: skip
    given = [name for name, value in replaced.items() if value is not None]
    if step is not None and given:
        raise ValueError(f"step= replaces {', '.join(given)}; pass either step or those")
    bare = unwrap(model)
    if step is None:
        step = _make_step(bare, loss_fn, device, non_blocking, prepare_batch, amp_dtype)
    evaluator = ModelEvaluator(step, bare, inference_mode=inference_mode)
    for name, own in attached.items():
        own.attach(evaluator, name)
    return evaluator


def _make_step(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Any] | None,
    device: str | torch.device | None,
    non_blocking: bool,
    prepare_batch: PrepareBatch | None,
    amp_dtype: torch.dtype | None,
) -> Step:
    val_step = getattr(model, "val_step", None)
    by_itself = callable(val_step) and loss_fn is None and prepare_batch is None
    measure = None if loss_fn is None else as_val_loss(loss_fn)
    place, on_cpu = torch.device("cpu"), True

    def find_place() -> None:
        nonlocal place, on_cpu
        place = device_of(model) if device is None else torch.device(device)
        on_cpu = place.type == "cpu"

    def prepare(batch: Any) -> tuple[Any, Any]:
        if prepare_batch is not None:
            return prepare_batch(batch, device=place, non_blocking=non_blocking)
        x, y = _unpack(batch)
        return _to_device(x, place, non_blocking), _to_device(y, place, non_blocking)

    def predict(engine: Engine, batch: Any) -> Any:
        if engine.state.iteration <= 1:
            find_place()  # once an evaluation, since the model may have moved
        plain = on_cpu and prepare_batch is None and type(batch) in (tuple, list)
        if plain and len(batch) == 2 and _on_cpu(batch[0]) and _on_cpu(batch[1]):
            x, y = batch  # nothing to move: the common case on a CPU
        else:
            x, y = prepare(batch)
        y_pred = model(x)
        if measure is None:
            return y_pred, y
        return y_pred, y, measure(y_pred, y)

    def run_val_step(engine: Engine, batch: Any) -> Any:
        return val_step(batch)  # type: ignore[misc]  # used only where it is callable

    step = run_val_step if by_itself else predict
    return step if amp_dtype is None else mixed(step, model, amp_dtype, device)


def _on_cpu(item: Any) -> bool:
    return type(item) is torch.Tensor and item.is_cpu


def _unpack(batch: Any) -> Any:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch
    if isinstance(batch, Mapping):
        what = f"a {type(batch).__name__} with keys {list(batch)}"
    elif isinstance(batch, (tuple, list)):
        what = f"a {type(batch).__name__} of {len(batch)}"
    else:
        what = f"a {type(batch).__name__}"
    raise TypeError(f"create_evaluator expects (x, y); got {what}; pass step= or prepare_batch=")


def _to_device(batch: Any, device: torch.device, non_blocking: bool) -> Any:
    """Move every tensor of a nested structure; anything else stays as it is."""
    move = partial(torch.Tensor.to, device=device, non_blocking=non_blocking)
    return tree_map_only(torch.Tensor, move, batch)
