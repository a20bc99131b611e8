"""Average the losses of an evaluation exactly, without waiting for the device.

Each batch leaves a few float64 entries, a value and what it weighs, where the loss was
computed.  Nothing is added up on the way: the host does that once, at the end, with an
exactly rounded sum, so the order of the batches and who evaluated them cannot matter.  What
a loss may look like is not checked here, that is :class:`ValLoss`; and nothing here talks to
other processes: :meth:`LossMeter.state` and :meth:`LossMeter.merge` are for those who do.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import reduce
from itertools import chain
from operator import add
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard, final

import torch
from torch import Tensor

__all__ = ["Component", "LossMeter", "Scalar", "Weight"]

Scalar: TypeAlias = Tensor | float
Component: TypeAlias = Scalar | Sequence[Scalar]
Weight: TypeAlias = Scalar | None

TOTAL = "val_loss"
_TOTALS = ("loss", "total_loss")  # what an entry is called that is the sum of the others
_SUM_OF = "the others beside "  # columns of such entries and of that sum

# Name, value and weight: float64 and, where they are tensors, our own copies.
_Entry: TypeAlias = tuple[str, Scalar, Scalar]

_F64 = torch.float64
_CHUNK = 512  # tensors that are joined into one
_NUMBERS = (int, float)


class BatchLoss(Protocol):
    """What a batch hands over: a :class:`ValLoss`, which has checked that all this fits."""

    @property
    def loss(self) -> Scalar | dict[str, Component]:
        """The loss, or its components."""

    @property
    def weight(self) -> Weight | dict[str, Weight]:
        """What the batch counts, or each component of it."""

    @property
    def total(self) -> str | None:
        """The component that is the sum of the others."""


@final
class LossMeter:
    """Gather the val losses of one evaluation and compute their means.

    A mean-reduced loss is one entry, weighted by its weight or its samples; a per-sample loss
    one entry a sample.  ``val_loss`` is the mean of the total, and each component of a mapping
    has its own mean under its own name.  With one weight for all components, or none, the
    total is taken batch by batch, so a component missing in some batches counts 0 there, as in
    training, while its own mean is over the batches that have it.  With a mapping of weights
    the total is the sum of the components' means.  An entry ``loss`` or ``total_loss`` that is the
    sum of the others in every batch is the total itself.

    Attributes:
        found_total: The entry that :meth:`compute` has found to be the total.

    Memory: 16 bytes an entry, so 1.6 MB after 100,000 batches with a scalar loss.
    """

    __slots__ = ("_columns", "_counts", "_layout", "_mappings", "_usual", "found_total")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything that was seen."""
        self._layout: _Layout | None = None
        self._columns: dict[str, _Column] = {}
        self._mappings = 0  # batches with a mapping of losses
        self.found_total: str | None = None
        self._usual = array("d")  # means on the host that wait to join their column,
        self._counts = array("d")  # and what they weigh

    @property
    def names(self) -> tuple[str, ...]:
        """List the names that :meth:`compute` gives, ``"val_loss"`` first; ``()`` at first."""
        if self._layout is None:
            return ()
        own = (name for name in self._columns if name != TOTAL and not name.startswith(_SUM_OF))
        return (TOTAL, *own)

    def update(self, val_loss: BatchLoss, samples: int | None) -> None:
        """Take in the loss of one batch; never waits for a device.

        The values are copied: the model may use the loss's memory again.

        Args:
            val_loss: The loss of the batch.
            samples: How many samples the batch holds, ``None`` if nobody knows.

        Raises:
            ValueError: If a mean-reduced loss comes without weight and samples, if a loss of
                shape ``(1,)`` cannot be per-sample, or if this loss's kind is not that of the
                batches before.  Nothing is taken in then.
        """
        loss = val_loss.loss
        weight: Any = samples if val_loss.weight is None else val_loss.weight
        if (
            (self._layout is _SINGLE or self._layout is None)
            and type(loss) is Tensor
            and loss.is_cpu
            and not loss.ndim
            and type(weight) in _NUMBERS
        ):
            # A plain mean that is on the host already: there is no device to wait for, and
            # reading it costs a tenth of copying it.
            self._layout = _SINGLE
            self._usual.append(loss.item())
            self._counts.append(weight)
        elif isinstance(loss, dict):
            layout = _Layout(True, isinstance(val_loss.weight, dict), val_loss.total)
            entries = _mapping_entries(loss, val_loss.weight, val_loss.total, samples)
            self._agree(layout)
            self._mappings += 1
            for name, value, weight in entries:
                self._add(name, value, weight)
        else:
            assert not isinstance(val_loss.weight, dict)  # ValLoss refuses it
            value = _exact(loss)
            weight = _weigh(TOTAL, value, val_loss.weight, samples, samples)
            self._agree(_SINGLE)
            self._add(TOTAL, value, weight)

    def compute(self) -> dict[str, float]:
        """Compute the mean of everything seen; the one moment that waits for the device.

        Returns:
            ``{"val_loss": total, component: mean, ...}``, ``{}`` if nothing was seen.  NaN and
            infinity in an entry that weighs anything show; NaN where nothing weighs anything.

        Raises:
            ValueError: If a weight is negative.
        """
        if self._layout is None:
            return {}
        if not self._columns:  # plain means only, which need no tensors
            return {TOTAL: _mean_by_samples(self._usual, self._counts)}
        host = self._host()
        means = {n: _mean(n, entries) for n, entries in host.items() if not n.startswith(_SUM_OF)}
        self.found_total = next((n for n in _TOTALS if self._is_sum(host.get(_SUM_OF + n))), None)
        entry = self._layout.total or self.found_total or TOTAL
        if entry in means:
            total = means[entry]
        else:
            total = _exact_sum([mean for name, mean in means.items() if "loss" in name])
        return {TOTAL: total, **{name: mean for name, mean in means.items() if name != TOTAL}}

    def _is_sum(self, pairs: Tensor | None) -> bool:
        """Return whether an entry was in every batch the sum of the others, as far as that tells.

        Args:
            pairs: Entry and sum, ``(2, batches)``, in units of what rounding may change.
        """
        if pairs is None or pairs.shape[1] != self._mappings:
            return False
        own, others = pairs
        return bool(((own - others).abs() <= 1.0).logical_or(own.isnan() & others.isnan()).all())

    def state(self) -> dict[str, Any]:
        """Return all entries on the host, for :meth:`merge` elsewhere; waits for the device.

        Returns:
            ``{}`` if nothing was seen, else ``{"layout": [mapping, separate, total], "mappings":
            batches, "entries": {name: tensor}}``: two booleans, a string or ``None``; a number;
            and float64 CPU tensors ``(2, entries)`` of the values and their weights.
        """
        if self._layout is None:
            return {}
        return {
            "layout": list(self._layout), "mappings": self._mappings, "entries": self._host()
        }  # fmt: skip

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take in the entries of another meter; in whatever order, the means are the same.

        Args:
            state: What the other's :meth:`state` returned.

        Raises:
            ValueError: If its losses are of another kind.  Nothing is taken in then.
        """
        if not state:
            return
        self._agree(_Layout(*state["layout"]))
        self._mappings += state.get("mappings", 0)
        for name, (values, weights) in state["entries"].items():
            self._add(name, values.clone(), weights.clone())

    def _agree(self, layout: _Layout) -> None:
        if self._layout is None:
            self._layout = layout
        elif self._layout != layout:
            raise ValueError(
                f"the val losses of all batches must be of one kind, got {layout} after "
                f"{self._layout}; build ValLoss in the same way for each batch"
            )

    def _join(self) -> None:
        """Let the plain means join their column; the order of entries does not matter."""
        if len(self._usual) > 0:
            values, counts = _tensor(self._usual), _tensor(self._counts)
            self._usual, self._counts = array("d"), array("d")
            self._add(TOTAL, values, counts)

    def _add(self, name: str, value: Scalar, weight: Scalar) -> None:
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = _Column(_Series(), _Series())
        column.values.add(value)
        column.weights.add(weight, value.shape[0] if _is_per_sample(value) else 1)

    def _host(self) -> dict[str, Tensor]:
        """Bring each column to the host, ``(2, entries)``, with one transfer a device."""
        self._join()
        series = [s for column in self._columns.values() for s in (column.values, column.weights)]
        rows = _to_host(series)
        pairs = zip(rows[::2], rows[1::2], strict=True)
        return {name: torch.stack(pair) for name, pair in zip(self._columns, pairs, strict=True)}


class _Layout(NamedTuple):
    """What must be the same in every batch, or the total would mix different things."""

    mapping: bool
    separate: bool
    total: str | None

    def __str__(self) -> str:
        if not self.mapping:
            return "a single loss"
        weights = "a weight for each component" if self.separate else "one weight"
        return f"a mapping of losses with {weights} and total={self.total!r}"


_SINGLE = _Layout(mapping=False, separate=False, total=None)


class _Series:
    """Numbers in the order they came, kept on the device they came from."""

    __slots__ = ("_chunks", "_device", "_numbers", "_pending")

    def __init__(self) -> None:
        self._chunks: list[Tensor | array[float]] = []
        self._numbers: array[float] | None = None  # the last chunk, while numbers come
        self._pending: list[Tensor] = []  # the next chunk, while tensors come
        self._device: torch.device | None = None

    def add(self, value: Scalar, count: int = 1) -> None:
        """Add a 0-d or 1-d tensor that nobody else writes to, or a number ``count`` times."""
        if isinstance(value, Tensor):
            if value.device != self._device or len(self._pending) >= _CHUNK:
                self._flush()
                self._device = value.device
            self._numbers = None
            self._pending.append(value)
            return
        if self._numbers is None:
            self._flush()
            self._numbers = array("d")
            self._chunks.append(self._numbers)
        if count == 1:
            self._numbers.append(value)
        else:
            self._numbers.extend([value] * count)

    def tensors(self) -> list[Tensor]:
        """Return all numbers so far as 1-d tensors, each on its device."""
        self._flush()
        return [
            chunk if isinstance(chunk, Tensor) else _tensor(chunk)
            for chunk in self._chunks
            if len(chunk)
        ]

    def _flush(self) -> None:
        """Join what is pending into one chunk: a small tensor costs far more than its number."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        if all(tensor.ndim == 0 for tensor in pending):
            self._chunks.append(torch.stack(pending))
        else:
            self._chunks.append(torch.cat([tensor.reshape(-1) for tensor in pending]))


def _tensor(numbers: array[float]) -> Tensor:
    """Copy numbers into a float64 tensor on the CPU."""
    return torch.frombuffer(numbers, dtype=_F64).clone()


class _Column(NamedTuple):
    """The entries of one name: values, and as many weights."""

    values: _Series
    weights: _Series


def _mapping_entries(
    loss: Mapping[str, Component],
    weight: Weight | Mapping[str, Weight],
    total: str | None,
    samples: int | None,
) -> list[_Entry]:
    """Return the entries of the components and, with one weight for all, of their total."""
    parts = {
        name: _exact(part) if isinstance(part, (Tensor, float)) else _sum_of_means(part)
        for name, part in loss.items()
    }
    lengths = {value.shape[0] for value in parts.values() if _is_per_sample(value)}
    # A mean beside per-sample losses is the mean of just those samples.
    mean_of = next(iter(lengths)) if len(lengths) == 1 else samples
    of_its_own = weight if isinstance(weight, Mapping) else dict.fromkeys(parts, weight)
    entries = [
        (name, value, _weigh(name, value, of_its_own.get(name), samples, mean_of))
        for name, value in parts.items()
    ]
    if total is None and not isinstance(weight, Mapping):
        summands = [value for name, value in parts.items() if "loss" in name]
        if len(lengths) > 1:  # no common samples: a sum of means
            summands = [value.mean() if _is_per_sample(value) else value for value in summands]
        value = reduce(add, summands)
        entries.append((TOTAL, value, _weigh(TOTAL, value, weight, samples, mean_of)))
    named = {name: part for name, part in parts.items() if "loss" in name}
    if total is None and len(named) > 1:
        unit = _unit_of_rounding(loss[name] for name in named)
        entries += [_beside_others(name, named, unit) for name in _TOTALS if name in named]
    return entries


def _beside_others(name: str, losses: Mapping[str, Scalar], unit: float) -> _Entry:
    """Return an entry and the sum of the others, as multiples of how far rounding may part them.

    To add n numbers rounds n - 1 times, and each side may have been cast once: by n + 1 units of
    rounding of the coarsest type in all, of magnitudes of which each side has half.
    """
    means: dict[str, Scalar] = {
        n: part.mean() if _is_per_sample(part) else part for n, part in losses.items()
    }
    magnitude: Any = reduce(add, [abs(mean) for mean in means.values()])
    own = means.pop(name)
    others = reduce(add, means.values())
    apart = magnitude * ((len(means) + 1) / 2 * unit)
    if not isinstance(apart, Tensor) and apart == 0.0:  # a tensor gives NaN, which tells nothing
        return _SUM_OF + name, 0.0, 0.0
    return _SUM_OF + name, own / apart, others / apart


def _unit_of_rounding(losses: Iterable[Component]) -> float:
    """Return by what part of itself a number may be rounded; Python's may come from float32."""
    flat = chain.from_iterable(
        [part] if isinstance(part, (Tensor, float)) else part for part in losses
    )
    dtypes = {part.dtype for part in flat if isinstance(part, Tensor) and part.is_floating_point()}
    return max(torch.finfo(dtype).eps for dtype in {torch.float32, *dtypes}) / 2


def _weigh(
    name: str, value: Scalar, weight: Weight, samples: int | None, mean_of: int | None
) -> Scalar:
    """Return what ``value`` weighs.

    Args:
        name: The component, or ``"val_loss"``.
        value: From :func:`_exact`: 0-d, or ``(samples,)``.
        weight: As :class:`ValLoss` took it; ``None``: by samples.
        samples: How many samples the batch holds.
        mean_of: How many samples ``value`` is the mean of, where it is a mean.

    Returns:
        The weight of a mean, a number or 0-d tensor.  Of per-sample losses a tensor
        ``(samples,)``, or the one number that each of them weighs.
    """
    if isinstance(weight, Tensor):
        weight = _exact(weight)
    if _is_per_sample(value):
        return _weigh_each(name, value.shape[0], weight, samples)
    if isinstance(weight, Tensor):
        return weight.sum() if weight.ndim else weight
    if weight is not None:
        return weight
    if mean_of is None:
        raise ValueError(
            f"the mean loss {name!r} needs the number of samples behind it, and neither the "
            "output nor the batch tells; say it: ValLoss(loss, weight=len(y))"
        )
    return float(mean_of)


def _weigh_each(name: str, length: int, weight: Weight, samples: int | None) -> Scalar:
    """Return the weights of ``length`` per-sample losses, as :func:`_weigh` does."""
    if isinstance(weight, Tensor):
        return weight if weight.ndim else (weight / length).expand(length)
    if weight is not None:
        return weight / max(length, 1)
    if length == 1 and samples is not None and samples > 1:
        raise ValueError(
            f"the loss {name!r} has shape (1,) in a batch of {samples} samples, so it is not one "
            "loss a sample; return a mean as a scalar (loss.squeeze()), or say what it counts "
            "with weight="
        )
    return 1.0


def _exact(loss: Scalar) -> Scalar:
    """Copy a loss in float64 where it is: 0-d, or 1-d with the mean of each sample.

    A copy, since the model may write to its own tensor again (a replayed CUDA graph does).
    """
    if not isinstance(loss, Tensor):
        return loss
    if loss.requires_grad:
        loss = loss.detach()
    if loss.is_mps:  # has no float64
        exact = loss.to(torch.float32, copy=True)
    else:  # half the cost of to(float64, copy=True)
        exact = loss.clone() if loss.dtype is _F64 else loss.double()
    return exact if exact.ndim < 2 else _row_means(exact.flatten(1))


def _row_means(rows: Tensor) -> Tensor:
    """Average each row of ``(samples, n)``, to the same bits for any number of samples.

    ``Tensor.mean`` picks its order of summation by shape; folding halves knows only one.
    """
    count = rows.shape[1]
    while rows.shape[1] > 1:
        half = rows.shape[1] // 2
        folded = rows[:, :half] + rows[:, half : 2 * half]
        if rows.shape[1] % 2:
            folded[:, :1] += rows[:, 2 * half :]
        rows = folded
    return rows.sum(dim=1) / count  # of one column; of none, 0 / 0


def _sum_of_means(parts: Sequence[Scalar]) -> Scalar:
    means = [part.mean() if isinstance(part, Tensor) else part for part in map(_exact, parts)]
    return reduce(add, means)


def _is_per_sample(value: Scalar) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim == 1


def _to_host(series: Iterable[_Series]) -> list[Tensor]:
    """Return each series as one float64 CPU tensor, with one transfer a device."""
    chunks = [one.tensors() for one in series]
    by_device: dict[torch.device, list[Tensor]] = {}
    for chunk in chain.from_iterable(chunks):
        by_device.setdefault(chunk.device, []).append(chunk)
    moved = {
        device: iter(torch.split(torch.cat(parts).cpu().to(_F64), [len(part) for part in parts]))
        for device, parts in by_device.items()
    }
    empty = torch.zeros(0, dtype=_F64, device="cpu")
    return [torch.cat([empty, *(next(moved[part.device]) for part in parts)]) for parts in chunks]


def _mean(name: str, entries: Tensor) -> float:
    """Return the weighted mean of ``(2, entries)``, NaN if nothing weighs anything."""
    values, weights = entries
    if bool((weights < 0.0).any()):
        raise ValueError(f"the weights of {name!r} must not be negative, got {weights.min():g}")
    counted = weights != 0.0  # the mean of no tokens is NaN, and weighs 0
    return _divided((values * weights)[counted].tolist(), weights.tolist())


def _mean_by_samples(values: Iterable[float], counts: Iterable[float]) -> float:
    """Return what :func:`_mean` does, of a few numbers that are no tensors."""
    products = [v * n for v, n in zip(values, counts, strict=True) if n != 0.0]
    return _divided(products, list(counts))


def _divided(products: list[float], weights: list[float]) -> float:
    weight = _exact_sum(weights)
    total = _exact_sum(products)
    return math.nan if weight == 0.0 else total / weight


def _exact_sum(numbers: list[float]) -> float:
    """Return the sum, rounded once, so in any order; NaN and infinities as IEEE 754 adds them."""
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):  # too large on the way, or inf - inf
        special = [number for number in numbers if not math.isfinite(number)]
    if special:
        return sum(special)
    total = sum(map(Fraction, numbers), start=Fraction())
    try:
        return float(total)
    except OverflowError:
        return math.inf if total > 0 else -math.inf
