"""Find a metric by its name, also inside a nested result: ``bbox/AP/50``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__: list[str] = []

MISSING = object()


def look_up(metrics: Any, name: str) -> Any:
    """Return the value called ``name``; :data:`MISSING` if there is none.

    A name that stands there as it is wins; else slashes lead into mappings, and numbers, 0-based,
    into lists.  Of two ways into a mapping the one with the longer first name is tried first.

    Args:
        metrics: A result as it is recorded: strings as keys, arrays as nested lists.
        name: ``"acc"``, ``"bbox/AP/50"``, ``"iou/3"``.
    """
    if isinstance(metrics, list):
        place, slash, rest = name.partition("/")
        if not place.isdecimal() or int(place) >= len(metrics):
            return MISSING
        return look_up(metrics[int(place)], rest) if slash else metrics[int(place)]
    if not isinstance(metrics, Mapping):
        return MISSING
    if name in metrics:
        return metrics[name]
    cut = name.rfind("/")
    while cut >= 0:
        found = look_up(metrics.get(name[:cut]), name[cut + 1 :])
        if found is not MISSING:
            return found
        cut = name.rfind("/", 0, cut)
    return MISSING


def flat(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return all values that stand in no mapping by their names, in order; lists stay whole."""
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{key}": inner for key, inner in flat(value).items()
                      if f"{name}/{key}" not in metrics}  # fmt: skip
        else:
            found[name] = value
    return found
