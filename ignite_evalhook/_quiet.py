"""Make whatever happens inside a ``with`` block invisible to training.

:func:`quiet` remembers how training stands (each module's own training flag, the values of all
buffers, every random generator) and puts it back bit for bit.  Inside a region of autocast it keeps
away from what is cached there.  Parameters, gradients and the grad mode are not its business.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence, Set
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from operator import is_

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ._autocast import hide_casts, remember_cache_mode
from ._rng import Restore, remember_random, run_all

__all__: list[str] = []


@contextmanager
def quiet(modules: Sequence[nn.Module], *data: object, eval_mode: bool = True) -> Iterator[None]:
    """Run the body so that training goes on as if it had never run.

    Args:
        modules: The models.  They and all their submodules are put back.
        data: Loaders and datasets used in the body.  A generator that they share with training
            (the loader's, a sampler's, a dataset's own) does not move.
        eval_mode: Put the models into eval mode for the body.

    Raises:
        Exception: What the body raised, also if putting back failed too (that error is its
            ``__context__``); else what putting back raised, after all of it was tried.
    """
    every = all_modules(modules)
    # Flags come first, since a train() that merges weights may touch buffers and draw numbers.
    replaced = _replaced(every, {"eval", "train", "children", "named_children"})
    steps = [
        remember_flags(every, _replaced(every, {"train"}) if replaced else replaced),
        remember_buffers(every),
        remember_random(every, *data),
        remember_cache_mode(),
    ]
    try:
        hide_casts()
        if eval_mode:
            switch_to_eval(modules, every, replaced)
        yield
    except BaseException as error:  # noqa: BLE001  # raised again, whatever happens in between
        try:
            run_all(steps)
        finally:
            raise error
    run_all(steps)


def all_modules(roots: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the roots and everything inside them, each once, outer before inner."""
    found: dict[int, nn.Module] = {}
    stack: list[nn.Module | None] = []
    stack.extend([*roots][::-1])
    while stack:
        module = stack.pop()
        if module is None or id(module) in found:
            continue
        found[id(module)] = module
        if len(module._modules) > 0:
            stack.extend([*module._modules.values()][::-1])
    return list(found.values())


# Training flags ---------------------------------------------------------------------------------


def remember_flags(modules: Sequence[nn.Module], replaced: Set[int]) -> Restore:
    """Remember the ``training`` flag of each module by itself.

    A module with a ``train`` of its own is told of the change through it before the flags are
    set: it may do more than set flags, as layers do that merge weights in eval mode.

    Args:
        modules: Outer before inner.
        replaced: The ids of those with a ``train`` of their own.
    """
    flags = [module.training for module in modules]

    def restore() -> None:
        told: list[Restore] = []
        if replaced:
            told += [
                partial(_tell, module, flag)
                for module, flag in zip(modules, flags, strict=True)
                if id(module) in replaced
            ]
        run_all([*told, partial(_set_flags, modules, flags)])

    return restore


def _tell(module: nn.Module, flag: bool) -> None:
    if module.training is not flag:
        module.train(flag)


def switch_to_eval(
    roots: Iterable[nn.Module], every: Sequence[nn.Module], replaced: Set[int]
) -> None:
    """Put the roots into eval mode.

    Args:
        roots: The models.
        every: They and all their submodules.
        replaced: The ids of those with a way of their own to go into eval mode.
    """
    if replaced:
        for root in roots:
            root.eval()
    else:  # what eval() does where nobody has replaced it, at a tenth of the price
        _set_flags(every, [False] * len(every))


def _set_flags(modules: Sequence[nn.Module], flags: Sequence[bool]) -> None:
    plain = {
        cls
        for cls in set(map(type, modules))
        if _method(cls, "__setattr__") is _method(nn.Module, "__setattr__")
        and not hasattr(cls, "training")  # a property, as compiled modules have
    }
    for module, flag in zip(modules, flags, strict=True):
        if module.training is flag:
            continue
        if type(module) in plain:
            # An assignment looks for parameters, buffers and modules first: ten times the price.
            module.__dict__["training"] = flag
        else:
            module.training = flag


def _replaced(modules: Sequence[nn.Module], names: Set[str]) -> set[int]:
    """Return the ids of the modules that replace one of these methods of ``nn.Module``."""
    own = [(name, _method(nn.Module, name)) for name in names]
    classes = {
        cls
        for cls in set(map(type, modules))
        if any(_method(cls, name) is not method for name, method in own)
    }
    return {
        id(module)
        for module in modules
        if type(module) in classes or not module.__dict__.keys().isdisjoint(names)
    }


def _method(cls: type, name: str) -> object:
    return getattr(cls, name)


# Buffers ----------------------------------------------------------------------------------------


def remember_buffers(modules: Sequence[nn.Module]) -> Restore:
    """Remember all buffers of the modules: which there are, and their values.

    Buffers that were replaced, deleted or registered since come back, come back, and go.

    Values are put back unconditionally.  A tensor's version counter cannot tell whether that is
    necessary: BatchNorm changes its running statistics without moving it, and so does writing
    through ``.data``.
    """
    owners = [module for module in modules if module._buffers]
    tables = {id(module): dict(module._buffers) for module in owners}
    hidden = {
        id(module): set(module._non_persistent_buffers_set)
        for module in owners
        if module._non_persistent_buffers_set
    }
    tensors = {
        id(tensor): tensor
        for table in tables.values()
        for tensor in table.values()
        if tensor is not None
    }

    def restore_tables() -> None:
        for module in modules:
            table = tables.get(id(module), _NO_BUFFERS)
            if (module._buffers or table) and not _same(module._buffers, table):
                _fill(module._buffers, table)
                module._non_persistent_buffers_set.clear()
                module._non_persistent_buffers_set.update(hidden.get(id(module), ()))

    if not tensors:
        return restore_tables
    return partial(run_all, [restore_tables, _remember_values(tensors.values())])


_NO_BUFFERS: dict[str, torch.Tensor | None] = {}


def _same(now: Mapping[str, torch.Tensor | None], then: Mapping[str, torch.Tensor | None]) -> bool:
    return all(map(is_, now.values(), then.values())) and [*now.keys()] == [*then.keys()]


def _fill(
    now: MutableMapping[str, torch.Tensor | None], then: Mapping[str, torch.Tensor | None]
) -> None:
    if isinstance(now, dict):
        now.clear()  # also puts back the order, which a saved state has
        now.update(then)
    else:  # a scripted module, whose buffers can be replaced, not added or removed
        for name, tensor in then.items():
            now[name] = tensor


# Of these, small tensors are copied many at once; a model has hundreds.
_PACKED_TYPES = frozenset(
    {torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
     torch.bool}
)  # fmt: skip
_PACKED_NUMBERS = 65_536


def _remember_values(tensors: Collection[torch.Tensor]) -> Restore:
    plain: list[torch.Tensor] = []
    # An alias sees the same memory but has a version counter of its own: writing through it
    # does not invalidate a graph that training still holds.
    aliases: list[torch.Tensor] = []
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    singles: list[torch.Tensor] = []
    # Here and below, since tensors made in inference mode can be written in it only.
    with torch.inference_mode():
        for tensor in tensors:
            if type(tensor) is torch.Tensor and tensor.layout is torch.strided:
                alias = tensor.data
                plain.append(tensor)
                aliases.append(alias)
                if (
                    alias.dtype in _PACKED_TYPES
                    and alias.is_contiguous()
                    and alias.numel() <= _PACKED_NUMBERS
                ):
                    flat = alias if alias.dim() == 1 else alias.view(-1)
                    groups.setdefault((alias.device, alias.dtype), []).append(flat)
                else:
                    singles.append(_without_repeats(alias))
            elif not is_lazy(tensor):  # which has no value yet
                # Neither sparse tensors nor all subclasses have aliases that share their values.
                singles.append(tensor)
        packs = [torch.cat(flats) for flats in groups.values()]
        copies = [tensor.clone() for tensor in singles]

    def restore_pack(flats: list[torch.Tensor], pack: torch.Tensor) -> None:
        sizes = [flat.numel() for flat in flats]
        torch._foreach_copy_(flats, torch.split_with_sizes(pack, sizes))

    def restore_memory() -> None:
        for tensor, alias in zip(plain, aliases, strict=True):
            tensor.data = alias  # undoes resize_() and another assignment to .data

    steps: list[Restore] = [
        *map(partial, repeat(restore_pack), groups.values(), packs),
        *map(partial, repeat(torch.Tensor.copy_), singles, copies),
        restore_memory,
    ]

    def restore() -> None:
        with torch.inference_mode():
            run_all(steps)

    return restore


def _without_repeats(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view without the dimensions along which an expanded tensor repeats itself."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
