"""Evaluate and train models of MMEngine with engines of Ignite, without a ``Runner``.

MMEngine is an extra: it is imported inside functions, here and in ``_mmengine_metric`` only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .._evaluate.evaluator import ModelEvaluator
from .._evaluate.val_loss import ValLoss, split_val_loss
from .._ranks.sharded_models import unwrap
from .._undisturbed.mixed_precision import Step, mixed
from ._mmengine_metric import MMEngineMetric, needs_mmengine

__all__ = [
    "MMEngineMetric",
    "MMEngineTrainer",
    "create_mmengine_evaluator",
    "create_mmengine_trainer",
]

Loss = Callable[[nn.Module, Any], Any]


class MMEngineTrainer(Engine):
    """An engine made by :func:`create_mmengine_trainer`.

    Attributes:
        model: What it was given, wrappers included.
        optim_wrapper: MMEngine's ``OptimWrapper``; save it as the optimizer.
    """

    model: nn.Module
    optim_wrapper: Any


def create_mmengine_evaluator(
    model: nn.Module,
    metrics: Any = None,
    *,
    dataset_meta: Any = None,
    loss: Loss | bool | None = None,
    amp_dtype: torch.dtype | None = None,
    inference_mode: bool = False,
) -> Engine:
    """Create an engine that evaluates a model of MMEngine, as its ``ValLoop`` does.

    Each batch goes through ``model.val_step(batch)``.  A loss at the end of its output, a
    ``BaseDataElement(loss=...)`` or a ``ValLoss``, is taken off before the metrics see it, and
    becomes ``val_loss`` and its components: means over the samples, also where batches differ in
    size, and over all ranks.

    Args:
        model: A ``BaseModel`` of MMEngine, or any module with ``val_step(batch)``.  Its output
            may be a list, tuple, mapping or tensor.  Wrappers for data parallelism are taken off.
        metrics: A ``BaseMetric`` of MMEngine, a list of them, a config or a list of configs as
            MMEngine takes them, or an ``Evaluator``; see :class:`MMEngineMetric`.
        dataset_meta: Passed to the metrics.  ``None``: ``dataset.metainfo`` where there is one.
        loss: For a model that does not append its loss: a function ``(model, batch)`` of the
            batch as it came, which returns what ``ValLoss`` takes; or ``True`` for what the model
            trains on: ``forward(mode="loss")``, in eval mode, after its data preprocessor.
        amp_dtype: Run model and loss under autocast with this type, ``torch.bfloat16`` say.  Each
            weight is cast once an evaluation.
        inference_mode: Use ``torch.inference_mode`` instead of ``torch.no_grad``.

    Returns:
        An engine; ``engine.model`` is the unwrapped model.  Attach Ignite's metrics too, if you
        like.  On a tensor to which a loss was added these see a list of its rows.

    Raises:
        ImportError: If there are metrics, and MMEngine is missing.
        TypeError: If an argument is of the wrong kind.

    Source:
        What a step does follows MMEngine's ``ValLoop`` and "Support calculating loss during
        validation" (open-mmlab/mmengine#1503).  The code is our own.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    bare: Any = unwrap(model)
    if not callable(getattr(bare, "val_step", None)):
        raise TypeError(
            f"model must have a method val_step(batch), as BaseModel of MMEngine has, and "
            f"{type(bare).__name__} has none; use create_evaluator for other models"
        )
    if amp_dtype is not None and not isinstance(amp_dtype, torch.dtype):
        raise TypeError(f"amp_dtype must be a torch.dtype, got {amp_dtype!r}")
    own_loss = _check_loss(bare, loss)

    def plain(engine: Engine, batch: Any) -> Any:
        if own_loss is None:
            return bare.val_step(batch)
        found = own_loss(bare, batch)  # first, so that it gets the batch as it came
        return _with_loss(bare.val_step(batch), found)

    step: Step = plain if amp_dtype is None else mixed(plain, bare, amp_dtype)
    evaluator = ModelEvaluator(step, bare, inference_mode=inference_mode)
    if metrics is not None:
        MMEngineMetric(metrics, dataset_meta=dataset_meta).attach(evaluator, "mmengine")
    return evaluator


def create_mmengine_trainer(model: nn.Module, optim_wrapper: Any) -> MMEngineTrainer:
    """Create an engine that trains a model of MMEngine, as its training loops do.

    Each batch goes through ``model.train_step(batch, optim_wrapper)``; the output is what that
    returns, the losses by name, without their graph.  The model is put into training mode when an
    epoch starts.  Gradients are accumulated as the wrapper says, also over the end of an epoch,
    and what is left at the end of the run is stepped with, if the loader tells its length.

    Args:
        model: A ``BaseModel`` of MMEngine, or any module with ``train_step``; also inside
            ``MMDistributedDataParallel``, or torch's ``DistributedDataParallel`` as
            ``idist.auto_model`` makes it.
        optim_wrapper: An ``OptimWrapper`` (or ``OptimWrapperDict``) of MMEngine, a config of one,
            or an optimizer of torch, which is then wrapped.

    Returns:
        An engine; to save it and to resume, call
        ``hook.keep_last({"model": model, "optimizer": engine.optim_wrapper})``.

    Raises:
        ImportError: If MMEngine is missing.
        TypeError: If the model has no ``train_step``, or one that a wrapper would pass by.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    with needs_mmengine("create_mmengine_trainer"):
        from mmengine.optim import OptimWrapper, build_optim_wrapper

    if isinstance(optim_wrapper, Mapping):
        optim_wrapper = build_optim_wrapper(
            unwrap(model), {"type": "OptimWrapper", **optim_wrapper}
        )
    elif isinstance(optim_wrapper, torch.optim.Optimizer):
        optim_wrapper = OptimWrapper(optim_wrapper)
    elif not isinstance(optim_wrapper, OptimWrapper):
        raise TypeError(
            "optim_wrapper must be an OptimWrapper of MMEngine, a config of one, or a "
            f"torch.optim.Optimizer, got {type(optim_wrapper).__name__}"
        )
    train_step = _train_step_of(model)

    def step(engine: Engine, batch: Any) -> Any:
        if not model.training:  # somebody has evaluated by hand
            model.train()
        return _without_graph(train_step(batch, optim_wrapper))

    def begin(engine: Engine) -> None:
        state = engine.state
        total = -1  # not known: then a rest of accumulated gradients stays behind
        if state.max_iters is not None:
            total = state.max_iters
        elif state.epoch_length is not None and state.max_epochs is not None:
            total = state.max_epochs * state.epoch_length
        optim_wrapper.initialize_count_status(model, state.iteration, total)

    trainer = MMEngineTrainer(step)
    trainer.model, trainer.optim_wrapper = model, optim_wrapper
    trainer.add_event_handler(Events.STARTED, begin)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: model.train())
    return trainer


def _check_loss(model: nn.Module, loss: Loss | bool | None) -> Loss | None:
    if loss is None or loss is False:
        return None
    if loss is True:
        if not callable(getattr(model, "data_preprocessor", None)):
            raise TypeError(
                f"loss=True asks a BaseModel of MMEngine for its loss, and {type(model).__name__} "
                "has no data_preprocessor; pass loss= a function (model, batch)"
            )
        return _own_loss
    if not callable(loss):
        raise TypeError(f"loss must be a function or True, got {type(loss).__name__}")
    return loss


def _own_loss(model: Any, batch: Any) -> Any:
    return _forward(model, model.data_preprocessor(batch, False), "loss")


def _forward(model: Any, data: Any, mode: str) -> Any:
    """Call a model, or what wraps it, with what its data preprocessor gave."""
    if isinstance(data, Mapping):
        return model(**data, mode=mode)
    if isinstance(data, (list, tuple)):
        return model(*data, mode=mode)
    raise TypeError(
        f"the data preprocessor must return a dict, list or tuple, got {type(data).__name__}"
    )


def _with_loss(outputs: Any, loss: Any) -> Any:
    """Append a loss to the outputs of a batch, so that what is left keeps its form."""
    if split_val_loss(outputs)[1] is not None:
        raise ValueError("the model appends its validation loss itself; leave loss= out")
    loss = loss if isinstance(loss, ValLoss) else ValLoss(loss)
    if isinstance(outputs, tuple):
        return (*outputs, loss)
    if isinstance(outputs, Mapping):
        return {**outputs, "ignite_evalhook: val_loss": loss}
    rows = isinstance(outputs, list) or (isinstance(outputs, torch.Tensor) and outputs.ndim > 0)
    return [*(outputs if rows else [outputs]), loss]


def _train_step_of(model: Any) -> Callable[[Any, Any], Any]:
    """Return ``train_step(batch, optim_wrapper)`` of a model, or of one inside torch's DDP."""
    train_step = getattr(model, "train_step", None)
    if callable(train_step):
        return lambda batch, optim_wrapper: train_step(batch, optim_wrapper=optim_wrapper)
    from mmengine.model import BaseModel

    inner = unwrap(model)
    if not isinstance(model, DistributedDataParallel) or not isinstance(inner, BaseModel):
        raise TypeError(
            "model must be a BaseModel of MMEngine, have a method train_step(batch, "
            "optim_wrapper), or be a BaseModel inside DistributedDataParallel, got "
            f"{type(model).__name__}"
            + (f" of {type(inner).__name__}" if inner is not model else "")
        )
    if type(inner).train_step is not BaseModel.train_step:
        raise TypeError(
            f"{type(inner).__name__} has a train_step of its own, which DistributedDataParallel "
            "knows nothing of; wrap it with a subclass of MMDistributedDataParallel that has it too"
        )

    def distributed(batch: Any, optim_wrapper: Any) -> Any:
        # The forward pass goes through the wrapper, so that gradients are averaged.
        with optim_wrapper.optim_context(model):
            losses = _forward(model, inner.data_preprocessor(batch, True), "loss")
        loss, log_vars = inner.parse_losses(losses)
        optim_wrapper.update_params(loss)
        return log_vars

    return distributed


def _without_graph(output: Any) -> Any:
    """Detach the losses of a step, which else keep its graph until the next one."""
    if not isinstance(output, Mapping):
        return output
    return {
        name: value.detach() if isinstance(value, torch.Tensor) else value
        for name, value in output.items()
    }
