"""Carry a validation loss out of a model, appended to the model's own outputs.

A model that is asked for predictions knows its loss too, but no metric expects it there.
The convention: the loss travels as the *last* item of the output, is taken off by
:func:`split_val_loss` before any metric looks, weighted by :func:`count_samples`, and handed
to a :class:`LossMeter`, which alone does arithmetic and is imported from here as well.

Source:
    "Support calculating loss during validation" of MMEngine (open-mmlab/mmengine#1503).  Its
    ``BaseDataElement(loss=...)`` is recognised by shape, never imported.  The code is our own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, final

from torch import Tensor

from .loss_meter import Component, LossMeter, Scalar, Weight

__all__ = ["LossMeter", "ValLoss", "count_samples", "split_val_loss"]

# What an output may end in without being looked at any closer.
_PLAIN = (Tensor, str, bytes, tuple, list, dict, type)


@final
class ValLoss:
    """Hold the loss of one evaluation batch; append it to the outputs of the model.

    Return ``(y_pred, y, ValLoss(loss))`` instead of ``(y_pred, y)``: the metrics still get
    ``(y_pred, y)``, and ``val_loss`` joins the results.  Building one neither copies a tensor
    nor waits for the device.  Read ``loss``, ``weight`` and ``total``; do not assign them.

    Args:
        loss: One of

            - a scalar: the *mean* over the batch (0-d tensor or number);
            - a tensor ``(samples, ...)`` of per-sample losses; further dimensions are averaged;
            - a mapping from a component's name to either, or to a list or tuple of tensors,
              which counts as the sum of their means, as in training.

        weight: How much the batch counts.  ``None``: by its samples.  A number ``>= 0``, or a
            0-d tensor (on any device, never waited for): what the whole batch counts, such as
            its tokens.  A tensor ``(samples,)``: what each per-sample loss counts.  A mapping
            from a component's name to any of these: the total is then the sum of the
            components' own means, and a component without a weight counts by samples.
            What weighs 0 counts nothing, even where it is NaN (the mean of no tokens).
        total: Name of the entry that already is the sum of the others.  ``None``: the total is
            the sum over the names that contain ``"loss"``, as in training; or an entry ``"loss"``
            or ``"total_loss"`` that equals the sum of the others in every batch.

    Raises:
        TypeError: If ``loss``, a component or a weight is no number and no real tensor.
        ValueError: If names, shapes or weights do not fit together.

    Example:
        >>> import torch
        >>> ValLoss(torch.tensor(0.5), weight=32)
        ValLoss(float32[], weight=32)
        >>> ValLoss({"loss_cls": torch.ones(4), "loss_box": [torch.ones(()), torch.ones(())]})
        ValLoss({'loss_cls': float32[4], 'loss_box': [float32[], float32[]]})
    """

    __slots__ = ("elements", "loss", "total", "weight")

    elements: int | None  # that a mean was taken over, where a function of torch's tells
    loss: Scalar | dict[str, Component]
    weight: Weight | dict[str, Weight]
    total: str | None

    def __init__(
        self,
        loss: Scalar | Mapping[str, Component],
        *,
        weight: Weight | Mapping[str, Weight] = None,
        total: str | None = None,
    ) -> None:
        self.elements = None
        self.total = total
        if isinstance(loss, Tensor):  # first and short: this runs once a batch
            self.loss = _check_real("loss", loss)
        elif isinstance(loss, Mapping):
            self.loss = dict(loss)
            _check_components(self.loss, total)
        else:
            self.loss = _check_scalar("loss", loss)
        if total is not None and not isinstance(self.loss, dict):
            raise ValueError(
                f"total={total!r} names an entry of a mapping of losses, but loss is "
                f"{_describe(self.loss)}; leave total= out"
            )
        self.weight = None if weight is None else _check_weights(weight, self.loss)

    @property
    def counts_by_samples(self) -> bool:
        """Whether it is a mean that nothing but the number of samples weighs."""
        is_mean = not isinstance(self.loss, Tensor) or self.loss.ndim == 0
        return is_mean and self.weight is None

    def __repr__(self) -> str:
        """Return types and shapes; the values may be on a device that has not computed yet."""
        if isinstance(self.loss, dict):
            parts = (f"{name!r}: {_describe(part)}" for name, part in self.loss.items())
            text = "{" + ", ".join(parts) + "}"
        else:
            text = _describe(self.loss)
        if isinstance(self.weight, dict):
            parts = (f"{name!r}: {_describe(part)}" for name, part in self.weight.items())
            text += ", weight={" + ", ".join(parts) + "}"
        elif self.weight is not None:
            text += f", weight={_describe(self.weight)}"
        if self.total is not None:
            text += f", total={self.total!r}"
        return f"ValLoss({text})"


def split_val_loss(outputs: Any) -> tuple[Any, ValLoss | None]:
    """Take the val loss off the outputs of one batch.

    The last item of a tuple or list is a val loss when it is a :class:`ValLoss`, or an object
    in MMEngine's manner: no mapping, tensor, tuple, list or string, and its ``keys()`` are
    exactly ``["loss"]``.  A mapping may have one :class:`ValLoss` among its values.

    Args:
        outputs: What the model or the process function returned.

    Returns:
        The outputs without the val loss, and the val loss or ``None``.  A tuple stays a tuple
        (also of one item: ``(y_pred, ValLoss(...))`` leaves ``(y_pred,)``; a named tuple
        becomes a plain one), a list a new list, a mapping a plain dict; a bare
        :class:`ValLoss` leaves ``None``.  Outputs without one are returned as they are, the
        very same object.

    Raises:
        ValueError: If a :class:`ValLoss` is not the last item, or a mapping has two.
    """
    if isinstance(outputs, ValLoss):
        return None, outputs
    if isinstance(outputs, (tuple, list)):
        return _split_sequence(outputs)
    if isinstance(outputs, Mapping):
        return _split_mapping(outputs)
    return outputs, None


def count_samples(output: Any, batch: Any = None) -> int | None:
    """Count the samples behind the output of one batch.

    A tensor or array has one sample a row, a list one an item; of a tuple or mapping the
    first item that tells counts, depth first.  A list of tensors that each have as many rows
    as ``batch`` has samples is a list of outputs, not of samples.  Strings tell nothing.

    Args:
        output: The model's output, without the val loss.
        batch: What the loader gave; asked when the output does not tell.

    Returns:
        The number of samples.  ``1`` for a 0-d tensor and ``0`` for an empty list where
        nothing else tells; ``None`` where nothing does.
    """
    first = output[0] if isinstance(output, tuple) and output else output
    if isinstance(first, Tensor) and first.ndim:  # the usual case, once a batch
        return first.shape[0]
    expected = None if batch is None else _batch_samples(batch)
    found = _rows(output, expected)
    if found is not None:
        return found
    if expected is not None:
        return expected
    if isinstance(output, list):
        return len(output)
    return 1 if _holds_scalar(output) else None


def _split_sequence(outputs: Sequence[Any]) -> tuple[Any, ValLoss | None]:
    val_loss = _as_val_loss(outputs[-1]) if outputs else None
    for index in range(len(outputs) - 1):
        if isinstance(outputs[index], ValLoss):
            raise ValueError(
                f"a ValLoss must be the last item of the outputs, got one at position {index} "
                f"of {len(outputs)}; append it after everything else"
            )
    return (outputs, None) if val_loss is None else (outputs[:-1], val_loss)


def _split_mapping(outputs: Mapping[Any, Any]) -> tuple[Any, ValLoss | None]:
    names = [name for name, value in outputs.items() if isinstance(value, ValLoss)]
    if not names:
        return outputs, None
    if len(names) > 1:
        raise ValueError(
            f"the outputs may hold one ValLoss, got {len(names)} under the keys {names}; "
            "put several losses into one: ValLoss({'loss_a': ..., 'loss_b': ...})"
        )
    rest = {name: value for name, value in outputs.items() if name != names[0]}
    return rest, outputs[names[0]]


def _as_val_loss(item: Any) -> ValLoss | None:
    """Return ``item`` as a val loss if it is one, by type or by MMEngine's convention."""
    if isinstance(item, ValLoss):
        return item
    if isinstance(item, (_PLAIN, Mapping)):
        return None
    keys = getattr(item, "keys", None)
    if not callable(keys) or not hasattr(item, "loss") or list(keys()) != ["loss"]:
        return None
    return item.loss if isinstance(item.loss, ValLoss) else ValLoss(item.loss)


def _rows(output: Any, expected: int | None) -> int | None:
    """Return the samples that ``output`` itself tells; ``expected`` is what the batch told."""
    if isinstance(output, list):
        rows = [item.shape[0] for item in output if isinstance(item, Tensor) and item.ndim]
        is_columns = rows == [expected] * len(output)
        return expected if is_columns else len(output) or None
    if isinstance(output, (tuple, Mapping)):
        told = (_rows(item, expected) for item in _items(output))
        return next((samples for samples in told if samples is not None), None)
    shape = getattr(output, "shape", None)  # tensors, and NumPy arrays without NumPy
    return int(shape[0]) if isinstance(shape, tuple) and shape else None


def _batch_samples(batch: Any) -> int | None:
    """Return the samples that a loader's batch tells, as loaders collate their batches.

    A tensor directly in the batch is surest.  Without one, a list or tuple in it is a column
    with one item a sample (ragged images, file names), and a list of tuples or mappings is a
    list of samples that were not collated.
    """
    if not isinstance(batch, (tuple, list, Mapping)):
        return _rows(batch, None)
    columns = _items(batch)
    for column in columns:
        if not isinstance(column, (tuple, list, Mapping)):
            samples = _rows(column, None)
            if samples is not None:
                return samples
    if isinstance(batch, list) and not any(isinstance(column, list) for column in columns):
        return len(batch) or None
    for column in columns:
        samples = len(column) if isinstance(column, (tuple, list)) else _batch_samples(column)
        if samples:
            return samples
    return None


def _holds_scalar(output: Any) -> bool:
    """Return whether ``output`` is, or has somewhere in tuples and mappings, a 0-d tensor."""
    if isinstance(output, (tuple, Mapping)):
        return any(_holds_scalar(item) for item in _items(output))
    return getattr(output, "shape", None) == ()


def _items(container: Any) -> list[Any]:
    return list(container.values() if isinstance(container, Mapping) else container)


def _check_real(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        raise TypeError(
            f"{name} must be real, got {_describe(tensor)}; pass its absolute value or real part"
        )
    return tensor


def _check_scalar(name: str, value: Any) -> Scalar:
    """Return ``value`` as a real tensor of any shape, or as a float."""
    if isinstance(value, Tensor):
        return _check_real(name, value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, (list, tuple)):
        raise TypeError(
            f"{name} must be a tensor or a number, got {_describe(value)}; torch.stack(...) makes "
            "per-sample losses of it, {'loss': [...]} counts the sum of its means"
        )
    raise TypeError(f"{name} must be a tensor or a number, got {_describe(value)}")


def _check_components(loss: dict[str, Component], total: str | None) -> None:
    """Check a mapping of losses; replace NumPy's numbers by floats."""
    for name, part in loss.items():
        if not isinstance(name, str):
            raise TypeError(f"the names of the losses must be strings, got {name!r}")
        if isinstance(part, (list, tuple)):
            loss[name] = [_check_scalar(f"{name}[{i}]", item) for i, item in enumerate(part)]
            if not part:
                raise ValueError(f"the losses {name!r} are an empty list; leave the name out")
        else:
            loss[name] = _check_scalar(name, part)
    if total is not None and total not in loss:
        raise ValueError(
            f"total={total!r} is no entry of the losses {list(loss)}; name one of them"
        )
    if total is None and not any("loss" in name for name in loss):
        raise ValueError(
            f"no name in {list(loss)} contains 'loss', so there is nothing to sum up; "
            "name the entry that is the total with total='...', or rename the losses"
        )
    if "val_loss" in loss and total != "val_loss":
        raise ValueError(
            f"a component may not be called 'val_loss', which is the total of {list(loss)}; "
            "rename it, or say total='val_loss' if it is the total"
        )


def _check_weights(weight: Any, loss: Scalar | dict[str, Component]) -> Weight | dict[str, Weight]:
    if not isinstance(weight, Mapping):
        parts: Iterable[Component] = loss.values() if isinstance(loss, dict) else [loss]
        return _check_weight("weight", weight, parts)
    if not isinstance(loss, dict):
        raise TypeError(
            f"weight may be a mapping only where loss is one, got {_describe(loss)} as the loss; "
            "pass one weight"
        )
    strangers = [name for name in weight if name not in loss]
    if strangers:
        raise ValueError(f"weight names {strangers}, which are not among the losses {list(loss)}")
    return {
        name: None if part is None else _check_weight(f"weight[{name!r}]", part, [loss[name]])
        for name, part in weight.items()
    }


def _check_weight(label: str, weight: Any, parts: Iterable[Component]) -> Scalar:
    """Check one weight against the losses it belongs to; a tensor's value is not looked at."""
    if not isinstance(weight, Tensor):
        if not isinstance(weight, Real):
            raise TypeError(f"{label} must be a number or a tensor, got {_describe(weight)}")
        number = float(weight)
        if not (math.isfinite(number) and number >= 0.0):
            raise ValueError(f"{label} must be finite and not negative, got {weight!r}")
        return number
    _check_real(label, weight)
    if weight.ndim > 1:
        raise ValueError(
            f"{label} must be 0-d (for the batch) or 1-d (one for each sample), got shape "
            f"{tuple(weight.shape)}"
        )
    if weight.ndim == 1:
        lengths = [part.shape[0] for part in parts if isinstance(part, Tensor) and part.ndim]
        if not lengths:
            raise ValueError(
                f"{label} has one entry a sample, shape {tuple(weight.shape)}, but the loss is a "
                "mean over the batch; pass weight.sum(), or a loss with reduction='none'"
            )
        if any(length != weight.shape[0] for length in lengths):
            raise ValueError(
                f"{label} has {weight.shape[0]} entries, but the loss has {lengths} samples; "
                "they must be as many"
            )
    return weight


def _describe(value: Any) -> str:
    """Return a short text that needs no value from a device: ``float32[8]@cuda:0``."""
    if isinstance(value, Tensor):
        place = "" if value.device.type == "cpu" else f"@{value.device}"
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}{place}"
    if isinstance(value, (list, tuple)):
        inside = [_describe(item) for item in value[:3]] + ["..."] * (len(value) > 3)
        return "[" + ", ".join(inside) + "]"
    if isinstance(value, (int, float)):
        return f"{value:g}"
    return type(value).__name__
