"""Find weights that are not finite, waiting for each device once and not tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__: list[str] = []


def module_paths(objects: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the keys that lead to each module in nested mappings and lists."""
    if isinstance(objects, nn.Module):
        return [path]
    items: Any = ()
    if isinstance(objects, Mapping):
        items = objects.items()
    elif isinstance(objects, (list, tuple)):
        items = enumerate(objects)
    return [found for key, item in items for found in module_paths(item, (*path, key))]


def follow(objects: Any, path: tuple[Any, ...]) -> Any:
    """Return what some keys lead to."""
    for key in path:
        objects = objects[key]
    return objects


def not_finite(states: Mapping[str, Any]) -> set[str]:
    """Return the names of floating-point tensors, nested ones with dots, that hold NaN or infinity.

    Of a distributed tensor this rank's part is looked at.
    """
    devices: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in _tensors(states, ""):
        devices.setdefault(tensor.device, {})[name] = tensor
    found = set()
    for tensors in devices.values():
        # A sum shows them in one pass; a finite tensor whose sum overflows is looked at again.
        sums = torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors.values()])
        suspects = sums.isfinite().logical_not().tolist()
        for (name, tensor), suspect in zip(tensors.items(), suspects, strict=True):
            if suspect and not bool(tensor.isfinite().all()):
                found.add(name)
    return found


def _tensors(state: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Mapping):
        for key, value in state.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, Tensor):
        local: Any = state
        part: Tensor = local.to_local() if hasattr(local, "to_local") else local
        is_lazy = torch.nn.parameter.is_lazy(part)
        if is_lazy or part.layout is not torch.strided or part.is_meta or part.is_quantized:
            return
        if part.is_complex():
            part = torch.view_as_real(part.resolve_conj())
        if part.is_floating_point() and part.numel() > 0:
            yield name, part.detach() if part.element_size() > 1 else part.detach().float()
