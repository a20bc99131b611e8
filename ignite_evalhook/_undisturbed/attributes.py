"""Remember what modules keep in Python, and put it back.

That is every entry of a module's ``__dict__`` (hooks, and the tables of parameters, buffers and
children are entries too), its class, and the contents of containers in it.  Tensors and parameters
that are found on the way are only listed: their values are not remembered here.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, compress, islice
from operator import is_, methodcaller
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .random import Restore, run_all

__all__: list[str] = []

_DICTS = frozenset({dict, OrderedDict, defaultdict})  # compared many at once
_REFILLS: dict[type, Callable[[Any, Iterable[Any]], object]] = {
    list: list.extend,
    deque: deque.extend,
    set: set.update,
    bytearray: bytearray.extend,
}
_LEAF, _CONTAINER, _FIXED, _TENSOR, _ARRAY, _MODULE = range(6)
_BASES: dict[int, Any] = {
    _CONTAINER: (dict, *_REFILLS),
    _FIXED: (tuple, frozenset),
    _TENSOR: torch.Tensor,
    _MODULE: nn.Module,
}
_MANY = 10_000  # entries; in a larger container nothing is looked for
_ABSENT = object()


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


def has_lazy_tensors(roots: Iterable[nn.Module]) -> bool:
    """Return whether a module is lazy: its parameters or buffers have no shape yet."""
    tables = [table for m in all_modules(roots) for table in (m._parameters, m._buffers)]
    return any(t is not None and is_lazy(t) for table in tables for t in table.values())


class AttributeSnapshot:
    """What some modules keep in Python, as it is now.

    Args:
        modules: The modules and all their submodules.

    Attributes:
        modules: They, and those that they hold without having registered them.
        tensors: What they hold of tensors that are no parameters: buffers, attributes, items.
        parameters: What they hold of parameters.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)
        self.tensors: list[torch.Tensor] = []
        self.parameters: list[nn.Parameter] = []
        self._seen = set(map(id, modules))
        self._steps: list[Restore] = []
        self._held: list[tuple[list[Any], list[Any]]] = []  # containers; those with contents
        self._classes: list[tuple[nn.Module, type]] = []
        self._left_alone = _tables_of_fsdp(modules)
        values = self._remember_modules(modules)
        while values:
            values = self._remember_found(values)

    def restore(self) -> None:
        """Put everything back."""
        for module, kind in self._classes:
            if type(module) is not kind:  # a lazy one, say, which has become what it stood for
                module.__class__ = kind
        for held, filled in self._held:
            if not _same(list(filter(None, held)), filled):
                was_filled = set(map(id, filled))
                for container in (c for c in held if id(c) not in was_filled):
                    container.clear()
        run_all(self._steps)

    def _remember_modules(self, modules: Sequence[nn.Module]) -> list[Any]:
        """Remember the attributes of modules, and return them."""
        classes = list(map(type, modules))
        self._classes += zip(modules, classes, strict=True)
        tables = _Tables([module.__dict__ for module in modules], named=True)
        self._steps.append(tables.restore)
        outside: list[Any] = []
        for kind in set(classes):
            slots = [name for base in kind.__mro__ for name in _slots(base)]
            scripted = issubclass(kind, torch.jit.ScriptModule)
            if slots or scripted:
                remember = _remember_script if scripted else partial(_remember_slots, slots=slots)
                for module in (m for m in modules if type(m) is kind):
                    step, more = remember(module)
                    self._steps.append(step)
                    outside += more
        return [*tables.values, *outside]

    def _remember_found(self, values: list[Any]) -> list[Any]:
        """Remember the contents of what is among ``values``, and return those contents."""
        roles = _Roles()
        found = list(compress(values, map(roles.__getitem__, map(type, values))))

        def pick(role: int) -> list[Any]:
            wanted = {kind for kind, its in roles.items() if its == role}
            return [item for item in found if type(item) in wanted] if wanted else []

        there = set(roles.values())
        held = pick(_CONTAINER) if there - {_LEAF, _CONTAINER} else found
        if self._left_alone:
            held = [item for item in held if id(item) not in self._left_alone]
        filled = list(filter(None, held))
        if len(filled) < len(held):
            self._held.append((held, filled))
        inside = self._remember_containers(self._new(filled))
        for fixed in self._new(pick(_FIXED)):
            inside += fixed if len(fixed) <= _MANY else ()
        for tensor in self._new(pick(_TENSOR)):
            # To ask for the type is quicker by far than isinstance(), but not the same.
            is_parameter = type(tensor) is nn.Parameter or (
                type(tensor) is not torch.Tensor and isinstance(tensor, nn.Parameter)
            )
            (self.parameters if is_parameter else self.tensors).append(tensor)
        for array in self._new(pick(_ARRAY)):
            if array.flags.writeable:
                self._steps.append(partial(sys.modules["numpy"].copyto, array, array.copy()))
        hidden = self._new(pick(_MODULE))
        if hidden:
            hidden += self._new(all_modules(hidden))
            self.modules += hidden
            inside += self._remember_modules(hidden)
        return inside

    def _remember_containers(self, containers: list[Any]) -> list[Any]:
        tables = [item for item in containers if type(item) in _DICTS and len(item) <= _MANY]
        inside: list[Any] = []
        taken = set(map(id, tables)) if len(tables) < len(containers) else set()
        for item in containers if taken or not tables else ():
            if id(item) not in taken:
                step, contents = _remember_contents(item)
                self._steps.append(step)
                inside += contents if len(contents) <= _MANY else ()
                if hasattr(item, "__dict__"):  # a subclass
                    tables.append(vars(item))
        if tables:
            together = _Tables(tables)
            self._steps.append(together.restore)
            inside += together.values
        return inside

    def _new(self, items: list[Any]) -> list[Any]:
        """Return those that were not seen before, each once."""
        seen = self._seen
        ids = set(map(id, items))
        if ids <= seen:
            return []
        if len(ids) < len(items) or not ids.isdisjoint(seen):
            items = list({id(item): item for item in items if id(item) not in seen}.values())
        seen |= ids
        return items


class _Roles(dict[type, int]):
    """What values of a type are here, found out when it is asked for."""

    def __missing__(self, kind: type) -> int:
        numpy: Any = sys.modules.get("numpy")
        bases = {**_BASES, _ARRAY: () if numpy is None else numpy.ndarray}
        self[kind] = next((r for r, base in bases.items() if issubclass(kind, base)), _LEAF)
        return self[kind]


class _Tables:
    """The entries of many dicts, compared at once: a model has thousands of them."""

    def __init__(self, tables: list[dict[Any, Any]], *, named: bool = False) -> None:
        self._tables = tables
        self._named = named  # every key is a string, so that == is quick and harmless
        self._now = self._entries()
        self.values = self._now[2]

    def _entries(self) -> tuple[list[int], list[Any], list[Any]]:
        tables = self._tables
        values = chain.from_iterable(map(methodcaller("values"), tables))
        return list(map(len, tables)), list(chain.from_iterable(tables)), list(values)

    def restore(self) -> None:
        """Put all of them back."""
        lengths, keys, values = self._entries()
        same_keys = keys == self._now[1] if self._named else _same(keys, self._now[1])
        if lengths == self._now[0] and same_keys and _same(values, self._now[2]):
            return
        old_keys, old_values = map(iter, self._now[1:])
        for table, length in zip(self._tables, self._now[0], strict=True):
            entries = zip(islice(old_keys, length), islice(old_values, length), strict=True)
            refill(table, dict(entries))


def _same(now: Sequence[Any], then: Sequence[Any]) -> bool:
    return len(now) == len(then) and all(map(is_, now, then))


def refill(table: Any, entries: dict[Any, Any]) -> None:
    """Let a dict have these entries, in this order, which a saved state has too."""
    base: Any = OrderedDict if isinstance(table, OrderedDict) else dict  # whose methods are known
    for key in [key for key in base.__iter__(table) if key not in entries]:
        base.__delitem__(table, key)
    for key, value in entries.items():
        if base.get(table, key, _ABSENT) is not value:
            base.__setitem__(table, key, value)
    if not _same([*base.__iter__(table)], [*entries]):
        for key, value in entries.items():
            base.__delitem__(table, key)
            base.__setitem__(table, key, value)


def _remember_contents(container: Any) -> tuple[Restore, list[Any]]:
    """Remember the contents of a container, and return them, too."""
    if isinstance(container, dict):
        base: Any = OrderedDict if isinstance(container, OrderedDict) else dict
        entries = dict(base.items(container))
        return partial(refill, container, entries), [*entries.values()]
    kind: Any = next(kind for kind in _REFILLS if isinstance(container, kind))
    items = [*kind.__iter__(container)]

    def restore() -> None:
        if not _same([*kind.__iter__(container)], items):
            kind.clear(container)
            _REFILLS[kind](container, items)

    return restore, items


def _slots(kind: type) -> Iterable[str]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _remember_slots(module: nn.Module, slots: Sequence[str]) -> tuple[Restore, list[Any]]:
    entries = {name: getattr(module, name, _ABSENT) for name in slots}

    def restore() -> None:
        for name, value in entries.items():
            if getattr(module, name, _ABSENT) is not value:
                if value is _ABSENT:
                    object.__delattr__(module, name)
                else:
                    object.__setattr__(module, name, value)

    return restore, [*entries.values()]


def _remember_script(module: Any) -> tuple[Restore, list[Any]]:
    """Remember what a scripted, traced or frozen module keeps outside of Python.

    Those attributes are read by value, so that a list is a new one each time.
    """
    inner = module._c
    kind: Any = torch._C.ConcreteModuleType.from_jit_type(inner._type())
    entries = {name: inner.getattr(name) for name in kind.get_attributes()}

    def restore() -> None:
        for name, value in entries.items():
            inner.setattr(name, value)

    return restore, [*entries.values(), *module.parameters(recurse=False)]


def _tables_of_fsdp(modules: Sequence[nn.Module]) -> set[int]:
    """Return the ids of what FSDP changes in a forward pass: tables of parameters and hooks."""
    kinds = set(map(type, modules))
    if not any(hasattr(k, "set_reshard_after_forward") or k.__name__ == _FSDP1 for k in kinds):
        return set()
    entries = (entry for module in modules for entry in module.__dict__.items())
    return {id(value) for name, value in entries if name == "_parameters" or "_hooks" in name}


_FSDP1 = "FullyShardedDataParallel"
