"""Get the whole state of objects of which each rank holds a part.

A model sharded by FSDP2 and an optimizer sharded by ZeRO know only their own part.  A file of
ours holds all of it, as plain tensors, so that it loads on any number of ranks.
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .._undisturbed.attributes import all_modules
from .._undisturbed.eval_mode import weights_kept, weights_of_training
from ..exceptions import EvaluationError, StateError
from .team import Team

__all__: list[str] = []


def has_state(item: object) -> bool:
    """Return whether an object has a state to save; a class has none."""
    return not isinstance(item, type) and callable(getattr(item, "state_dict", None))


def holds_state(item: Any) -> bool:
    """Return whether an object has a state, or is a mapping or list that holds one that has."""
    return has_state(item) or any(holds_state(value) for _, value in entries_of(item))


def entries_of(item: Any) -> list[tuple[Any, Any]]:
    """Return keys and values of a mapping, list or tuple; nothing for anything else."""
    if isinstance(item, Mapping):
        return list(item.items())
    return list(enumerate(item)) if type(item) in (list, tuple) else []


@contextmanager
def whole_states(to_save: Mapping[str, Any], team: Team) -> Iterator[dict[str, Any]]:
    """Give the body the states of some objects by name, whole on rank 0, to write or to copy.

    Call it on every rank: what is sharded is gathered by collectives.  Where nothing is, there
    is no communication.

    Args:
        to_save: Name to object with a ``state_dict``, or to mappings and lists of such.  Other
            values are their own state.
        team: The ranks.
    """
    modules = _modules_in(to_save)
    with weights_kept(modules), weights_of_training(modules):
        yield {name: _whole_state(item, team) for name, item in to_save.items()}


def _modules_in(item: Any) -> list[nn.Module]:
    if isinstance(item, Mapping) and not isinstance(item, nn.Module):
        item = list(item.values())
    if type(item) in (list, tuple):
        return [module for inner in item for module in _modules_in(inner)]
    return [item] if isinstance(item, nn.Module) else []


def _whole_state(item: Any, team: Team) -> Any:
    if not holds_state(item):
        return item
    if isinstance(item, Mapping) and not has_state(item):
        return {name: _whole_state(inner, team) for name, inner in item.items()}
    if type(item) in (list, tuple):
        return [_whole_state(inner, team) for inner in item]
    if isinstance(item, nn.Module):
        with _unwrapped(item) as bare:
            state = bare.state_dict()
        return state if team.alone else _gathered(state)
    if team.alone:
        return item.state_dict()
    if _is_zero(item):
        item.consolidate_state_dict(to=0)
        return item.state_dict() if team.leads else {}
    return _gathered(item.state_dict())


def _is_zero(item: Any) -> bool:
    """Return whether ``item`` is torch's ``ZeroRedundancyOptimizer``, without importing it."""
    return hasattr(item, "consolidate_state_dict")


def _gathered(value: Any) -> Any:
    """Replace every distributed tensor of a nested state by the whole, on the CPU."""
    if _is_part(value):
        return value.full_tensor().cpu()
    if isinstance(value, Mapping):
        if not any(map(_may_hold_parts, value.values())):
            return value
        whole: Any = copy.copy(value)  # keeps what else it carries, a module's versions say
        whole.update((key, _gathered(item)) for key, item in value.items())
        return whole
    if type(value) in (list, tuple):
        return type(value)(map(_gathered, value))
    return value


def _may_hold_parts(item: Any) -> bool:
    return _is_part(item) or isinstance(item, (Mapping, list, tuple))


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside ``DistributedDataParallel``, ``DataParallel``, ``torch.compile``.

    Whose state has the names that the model has by itself.
    """
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return unwrap(model.module)
    if isinstance(model, torch.jit.ScriptModule):  # has tables of another kind
        return model
    compiled = vars(model).get("_orig_mod", model._modules.get("_orig_mod"))
    return unwrap(compiled) if isinstance(compiled, nn.Module) else model


@contextmanager
def _unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """Give the body the model as it is without wrappers, its children's too."""
    model = unwrap(model)
    children = [
        (parent._modules, name, child)
        for parent in all_modules([model])
        if not isinstance(parent, torch.jit.ScriptModule)
        for name, child in parent._modules.items()
        if child is not None and unwrap(child) is not child
    ]
    try:
        for table, name, child in children:
            table[name] = unwrap(child)
        yield model
    finally:
        for table, name, child in children:
            table[name] = child


def _with_plain_names(state: Mapping[str, Any], own: Collection[str]) -> Mapping[str, Any]:
    """Return a state with plain names, which older files do not have for compiled children.

    Args:
        state: Of a model.
        own: The plain names of the model to load it into.
    """
    names = {key: key if key in own else _WRAPPERS.sub(r"\1", key) for key in state}
    if all(key == name or name not in own for key, name in names.items()):
        return state
    renamed = OrderedDict((names[key], value) for key, value in state.items())
    vars(renamed).update(getattr(state, "__dict__", {}))  # the versions of modules
    return renamed


_WRAPPERS = re.compile(r"(^|\.)(?:(?:_orig_mod|module)\.)+")


def load_whole(item: Any, state: Any) -> None:
    """Load a whole state into an object, of which each rank may hold a part only."""
    if isinstance(item, nn.Module):
        with weights_of_training([item]), _unwrapped(item) as bare:
            if isinstance(state, Mapping):
                state = _with_plain_names(state, bare.state_dict())
            if is_sharded([bare]):
                # Slow to import, and rarely needed.
                from torch.distributed.checkpoint import state_dict as parts

                options = parts.StateDictOptions(full_state_dict=True)
                parts.set_model_state_dict(bare, dict(state), options=options)
            else:
                bare.load_state_dict(state)
        return
    if isinstance(item, torch.optim.Optimizer):
        state = _dealt_out(item, state)
    item.load_state_dict(state)


def _dealt_out(optimizer: torch.optim.Optimizer, state: Any) -> Any:
    """Replace whole tensors by this rank's part, where the parameter is a part."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    if not any(map(_is_part, params)):
        return state
    from torch.distributed.tensor import distribute_tensor  # slow to import, and rarely needed

    def part(param: Any, value: Any) -> Any:
        if not (isinstance(value, torch.Tensor) and value.shape == param.shape):
            return value
        return distribute_tensor(value.to(param.device), param.device_mesh, param.placements)

    numbers = [n for group in state["param_groups"] for n in group["params"]]
    parts = {
        number: {key: part(param, value) for key, value in state["state"][number].items()}
        for number, param in zip(numbers, params, strict=True)
        if number in state["state"] and _is_part(param)
    }
    return {**state, "state": {**state["state"], **parts}}


def is_sharded(modules: Iterable[nn.Module]) -> bool:
    """Return whether a forward pass needs all ranks, as one of FSDP2 does."""
    return any(
        _is_fsdp(inner) or any(map(_is_part, inner.parameters(recurse=False)))
        for module in modules
        for inner in module.modules()
    )


def check_unshared(modules: Iterable[nn.Module]) -> None:
    """Refuse models that ranks share in another way than by holding parts for FSDP.

    Ranks that compute one batch together must be given the same ones, which are dealt out here.

    Raises:
        EvaluationError: Naming a weight.
    """
    for module in modules:
        own: set[int] = set()  # what FSDP alone has divided, whole or in parts
        for inner in filter(_is_fsdp, module.modules()):
            state = inner._get_fsdp_state()  # type: ignore[operator]
            groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
            params = [param for group in filter(None, groups) for param in group.fsdp_params]
            for param in params:
                if not param.is_dtensor:
                    own |= {id(param.sharded_param), id(getattr(param, "_unsharded_param", None))}
        for name, inner in module.named_modules():
            # A wrapper for data parallelism keeps the weights of others as plain attributes.
            for key, value in [*inner.named_parameters(recurse=False), *vars(inner).items()]:
                if id(value) not in own and _is_shared(value):
                    raise EvaluationError(
                        f"ranks share the weight {f'{name}.{key}'.lstrip('.')!r} of "
                        f"{type(module).__name__}, as in tensor parallelism: they compute one "
                        "batch together, and would be given different ones.  If the dataloader "
                        "of each rank holds all batches, in the same order, pass shard=False: "
                        "metrics that are means are then right, and each sample counts once a rank"
                    )


def _is_fsdp(module: nn.Module) -> bool:
    return hasattr(module, "set_reshard_after_forward")  # of FSDPModule, which is slow to import


def _is_shared(value: Any) -> bool:
    if not isinstance(value, torch.Tensor):
        return False
    if hasattr(value, "_st_info"):  # how DistributedDataParallel keeps a part of a weight
        return True
    return not all(place.is_replicate() for place in getattr(value, "placements", ()))


def _is_part(tensor: Any) -> bool:
    return hasattr(tensor, "full_tensor")


def check_fits(module: nn.Module, state: Any, where: str) -> None:
    """Refuse a state whose names or shapes are not the module's, before anything is loaded.

    Raises:
        StateError: Naming what differs.
    """
    with _unwrapped(module) as bare:
        own = bare.state_dict()
    if not isinstance(state, Mapping):
        raise StateError(f"{where} is a {type(state).__name__}, no state of a module")
    state = _with_plain_names(state, own)
    differing = sorted(set(own) ^ set(state)) or [
        name
        for name, value in own.items()
        if isinstance(value, torch.Tensor)
        and isinstance(state[name], torch.Tensor)
        and not is_lazy(value)
        and value.shape != state[name].shape
    ]
    if differing:
        raise StateError(f"{where} does not fit the module; these differ: {differing[:5]}")
