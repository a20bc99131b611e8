"""Compare what ranks say of themselves, and name what differs.

Each rank says some aspects in words; what they are is not known here.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..exceptions import EvaluationError

__all__: list[str] = []

DATA = "the data"
SETTINGS = "the settings"
WEIGHTS = "the weights"

OWN_PARTS = (
    "Each rank needs the whole data, of which it evaluates its share; shard=False if each has its "
    "own part already"
)
# What to do, by aspect.
_ADVICE = {
    DATA: f".  {OWN_PARTS}",
    SETTINGS: ": construct the hook in the same way on every rank",
    WEIGHTS: ": wrap the model (idist.auto_model, DistributedDataParallel) or load the same "
    "checkpoint on every rank; sync_buffers=None if each rank shall evaluate a model of its own",
}
# A difference between weights, relative to their norm, that is one of rounding.
_ROUNDING = 1e-5


class Given(NamedTuple):
    """What a rank was given: by aspect, words for each thing that may differ.

    Attributes:
        said: What is told to rank 0; the weights as numbers.
        names: Those of the weights, which are not told.
    """

    said: Mapping[str, Any] = {}
    names: Sequence[str] = ()


NOTHING = Given()


def check_alike(own: Given, ranks: Sequence[Mapping[str, Any]]) -> None:
    """Refuse ranks of which one was given something else than rank 0.

    Args:
        own: What rank 0 was given.
        ranks: What each rank says.

    Raises:
        EvaluationError: Naming the rank, what it has, what rank 0 has, and what to do.
    """
    for rank, said in enumerate(ranks):
        for aspect in own.said.keys() & said.keys():
            if aspect == WEIGHTS:
                found = _other_weight(said[aspect], own.said[aspect], own.names)
            else:
                found = _other_words(said[aspect], own.said[aspect])
            if found is not None:
                raise EvaluationError(
                    f"rank {rank} has {found[0]:.200}, rank 0 {found[1]:.200}{_ADVICE[aspect]}"
                )


def _other_words(own: Mapping[str, str], first: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the first words that differ, among those that both have."""
    pairs = ((own[key], first[key]) for key in first if key in own)
    return next(((mine, theirs) for mine, theirs in pairs if mine != theirs), None)


def _other_weight(own: Any, first: Any, names: Sequence[str]) -> tuple[str, str] | None:
    if [number for number, *_ in own] != [number for number, *_ in first]:
        numbers = [number for number, *_ in own]
        pairs = zip(names, first, strict=True)
        missing = (name for name, (number, *_) in pairs if number not in numbers)
        more = next((f", with {name!r}" for name in missing), "")
        return f"a model of {len(own)} weights", f"one of {len(first)} weights{more}"
    for name, (_, *mine), (_, *theirs) in zip(names, own, first, strict=True):
        if any(not _is_near(a, b, theirs[0]) for a, b in zip(mine, theirs, strict=True)):
            return (
                f"other weights: {name} has the norm {mine[0]:.6g} and the sum {mine[1]:.6g}",
                f"{theirs[0]:.6g} and {theirs[1]:.6g}",
            )
    return None


def _is_near(own: float, first: float, norm: float) -> bool:
    return own == first or repr(own) == repr(first) or abs(own - first) <= _ROUNDING * norm


# -- tell different values and weights apart by a few numbers, so that ranks can compare them ------

_ELEMENTS = 1 << 16  # of a tensor or a sequence that are looked at
_DEPTH = 6  # containers inside of containers
_PRIME = 65521


def fingerprint(value: Any) -> int:
    """Return a number that tells a batch, a sample or a tensor from others.

    A path counts by its last part: hosts may keep the same files in other places.
    """
    return zlib.crc32(repr(_described(value, _DEPTH)).encode())


def _described(value: Any, depth: int) -> Any:
    if isinstance(value, Tensor):
        return [str(value.dtype), *value.shape, _weighted(value) if is_plain(value) else None]
    if isinstance(value, str):
        return value.replace("\\", "/").rpartition("/")[2]
    if isinstance(value, (bool, int, float, complex, bytes, type(None))):
        return value
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        flat = some(numpy.asarray(value).reshape(-1))
        held = flat[:_PRIME].tolist() if flat.dtype.hasobject else zlib.crc32(flat.tobytes())
        return [str(value.dtype), *value.shape, held]
    inner = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    if depth == 0:
        return type(value).__name__
    if isinstance(value, (list, tuple)):
        return [_described(item, depth - 1) for item in some(value)]
    return [type(value).__name__, *((str(key), _described(inner[key], depth - 1)) for key in inner)]


def some(values: Any, count: int = _ELEMENTS) -> Any:
    """Return evenly spaced elements of a sequence that may be large."""
    return values[:: -(-len(values) // count) or 1]


def _weighted(tensor: Tensor) -> int:
    # A single element counts as contiguous whatever its stride is, so contiguous() keeps that.
    values = some(tensor.detach().reshape(-1)).clone(memory_format=torch.contiguous_format)
    flat = values.view(torch.uint8).long()
    place = torch.arange(1, flat.numel() + 1, device=flat.device) % _PRIME
    return int((flat * place).sum())


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor's elements can be looked at, all of them on this rank."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and not tensor.is_quantized
    )


def held_indices(entries: Iterable[Any]) -> int:
    """Return a number for some indices, in batches or not, whatever their order."""
    flat = [i for entry in entries for i in (entry if isinstance(entry, list) else [entry])]
    if not all(isinstance(index, Integral) for index in flat):
        flat = [fingerprint(index) for index in flat]
    mixed = torch.tensor(flat, dtype=torch.int64) * 0x5851F42D4C957F2D + 0x14057B7EF767814F
    mixed = (mixed ^ (mixed >> 29)) * 0x1B873593CC9E2D51  # both wrap around
    return int((mixed ^ (mixed >> 32)).sum())


def weigh(modules: Iterable[nn.Module]) -> tuple[list[str], list[tuple[int, float, float]]]:
    """Return the weights' names, and for each a number of name and shape, its norm and its sum.

    The device is read once.  Weights that are parts, or not made yet, are left out.
    """
    found = {
        f"{name} {tuple(weight.shape)}": weight.detach()
        for module in modules
        for name, weight in module.named_parameters()
        if is_plain(weight)
    }
    sums = []
    for weight in found.values():
        real = torch.view_as_real(weight) if weight.is_complex() else weight
        real = real if real.is_floating_point() else real.float()
        norm = torch.linalg.vector_norm(real, dtype=torch.promote_types(real.dtype, torch.float32))
        sums.append(torch.stack([norm, real.sum(dtype=norm.dtype)]).float())
    values = torch.stack([each.to(sums[0].device) for each in sums]).tolist() if sums else []
    return list(found), [
        (zlib.crc32(name.encode()), norm, total)
        for name, (norm, total) in zip(found, values, strict=True)
    ]
