"""Compare what ranks say of themselves, and name what differs.

Each rank says some aspects in words; what they are is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .exceptions import EvaluationError

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
