"""Know what torch's own losses divide by, so that a mean over batches is that of the whole set.

``CrossEntropyLoss`` averages over the targets that are not ``ignore_index``, weighted by class:
two batches of as many samples may weigh very differently.  A sum is turned into that mean.

Source:
    What is divided by is torch's: ``nll_loss`` and ``cross_entropy_loss`` in ATen's LossNLL.cpp.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .val_loss import ValLoss

__all__: list[str] = []

LossFunction = Callable[[Any, Any], Any]

_BY_TARGET = (nn.CrossEntropyLoss, nn.NLLLoss)
_BY_ELEMENT = (
    nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
    nn.PoissonNLLLoss, nn.SoftMarginLoss, F.l1_loss, F.mse_loss, F.smooth_l1_loss, F.huber_loss,
    F.binary_cross_entropy, F.binary_cross_entropy_with_logits, F.poisson_nll_loss,
    F.soft_margin_loss,
)  # fmt: skip


def as_val_loss(loss_fn: LossFunction) -> Callable[[Any, Any], ValLoss]:
    """Return ``loss_fn`` as a function that gives a :class:`ValLoss`, weighted if it is torch's.

    Known are torch's modules, subclasses and compiled ones too, its functions, and
    ``functools.partial`` of those with keywords.  Any other function is taken at its word.
    """
    function: Any = getattr(loss_fn, "_orig_mod", loss_fn)  # torch.compile's wrapper
    options: Mapping[str, Any] = {}
    if isinstance(function, partial) and not function.args:
        function, options = function.func, function.keywords
    if isinstance(function, _BY_TARGET) and not options:
        return _by_target(loss_fn, lambda: _options_of(function))
    if function in (F.cross_entropy, F.nll_loss):
        return _by_target(loss_fn, lambda: options)
    if getattr(function, "reduction", options.get("reduction")) == "sum":
        loss_fn = _as_mean(function, options) or loss_fn
    by_element = function in _BY_ELEMENT or isinstance(function, _BY_ELEMENT[:8])

    def plain(y_pred: Any, y: Any) -> ValLoss:
        loss = loss_fn(y_pred, y)
        val_loss = loss if isinstance(loss, ValLoss) else ValLoss(loss)
        if by_element and isinstance(y, Tensor) and val_loss.counts_by_samples:
            val_loss.elements = y.numel()
        return val_loss

    return plain


def _options_of(loss: nn.CrossEntropyLoss | nn.NLLLoss) -> Mapping[str, Any]:
    """Return what a module is set to now: its class weights may have moved."""
    return {
        "weight": loss.weight, "ignore_index": loss.ignore_index, "reduction": loss.reduction
    }  # fmt: skip


def _as_mean(function: Any, options: Mapping[str, Any]) -> LossFunction | None:
    """Return one of torch's losses with a mean in place of a sum; ``None`` if it is none."""
    # The "mean" of a divergence is over its terms, too.
    is_divergence = function is F.kl_div or isinstance(function, nn.KLDivLoss)
    reduction = "batchmean" if is_divergence else "mean"
    if isinstance(function, nn.modules.loss._Loss):
        function = copy.copy(function)  # shares its buffers, wherever these are moved
        function.reduction = reduction
        return cast("LossFunction", function)
    if getattr(function, "__module__", None) == F.__name__:
        return partial(function, **{**options, "reduction": reduction})
    return None


def _by_target(
    loss_fn: LossFunction, options: Callable[[], Mapping[str, Any]]
) -> Callable[[Any, Any], ValLoss]:
    def weighted(y_pred: Any, y: Any) -> ValLoss:
        loss = loss_fn(y_pred, y)
        if isinstance(loss, ValLoss):
            return loss
        now = options()
        reduction = now.get("reduction", "mean")
        # A subclass may reduce in a way of its own, which nobody knows.
        known = isinstance(loss, Tensor) and isinstance(y, Tensor)
        if not known or (loss.ndim == 0) is (reduction == "none"):
            return ValLoss(loss)
        weight = _divisor(y, now.get("weight"), now.get("ignore_index", -100))
        if reduction != "mean":
            loss = loss.sum(dtype=_wide(loss)) / weight
        return ValLoss(loss, weight=weight)

    return weighted


def _divisor(y: Tensor, class_weights: Tensor | None, ignore_index: int) -> Tensor | float:
    """Return what torch divides the sum of a batch by, on the device of the targets.

    Args:
        y: Class numbers ``(batch, ...)`` or ``()``, or probabilities ``(batch, classes, ...)``.
        class_weights: ``(classes,)``.
        ignore_index: Class number that counts nothing.
    """
    if y.is_floating_point():  # whatever the classes weigh
        return y.numel() / y.shape[min(1, y.ndim - 1)]
    counts = y != ignore_index
    if class_weights is None:
        total = counts.sum()
    else:
        total = (class_weights[y.where(counts, 0).long()] * counts).sum(dtype=_wide(y))
    return total.item() if total.is_cpu else total  # nothing to wait for there


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_mps else torch.float64  # which it does not have
