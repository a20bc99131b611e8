"""Remember every random generator that training may draw from, and put it back.

Whatever is drawn in between leaves no trace: the shuffling of the next epoch, dropout and
augmentation go on as if nothing had happened.  Which modules and data to look through is said
by the caller; nothing here seeds, draws or knows an engine.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

__all__: list[str] = []

Restore = Callable[[], object]

# Device modules of torch that follow torch.cuda: is_initialized, get/set_rng_state_all.
_BACKENDS = ("cuda", "xpu", "npu", "mlu", "musa", "hpu")

# What holds no generator worth following.  Most values of a dataset are one of these.
_LEAF_TYPES = frozenset(
    {str, bytes, int, float, bool, type(None), FunctionType, BuiltinFunctionType, torch.Tensor}
)
_LEAVES = (type, ModuleType, MethodType, torch.Tensor, torch.dtype, torch.device, nn.Module)

# Collections are looked through when they are short or when their name says what is in them: a
# dataset's list of a million samples is not.
_SHORT = 32
_COLLECTIONS = frozenset({"datasets", "generators", "loaders", "samplers", "transforms"})

# The state of one pass over a loader (queues, worker processes), not of the loader.
_PASSING = frozenset({"_iterator"})

# Packages whose classes hold no generators as class attributes.
_WITHOUT_GENERATORS = frozenset({"builtins", "collections", "typing", "torch"})

_MAX_OBJECTS = 1000


def run_all(steps: Iterable[Restore]) -> None:
    """Call every step in order, also after one has failed.

    Raises:
        Exception: What the last failing step raised; the failure before it is its
            ``__context__``, and so on.
    """
    remaining = iter(steps)
    for step in remaining:
        try:
            step()
        except BaseException:
            run_all(remaining)
            raise


def remember_random(modules: Collection[nn.Module], *data: object) -> Restore:
    """Remember the state of all random generators.

    These are the global ones (torch's on the CPU and on every device in use, Python's, NumPy's
    if NumPy is loaded), those held as attributes by ``modules``, and those that can be reached
    from ``data``.

    Args:
        modules: Modules, each looked at by itself; their children are not followed.
        data: Loaders, samplers, datasets.  What they hold is followed.

    Returns:
        A function that puts all of them back.
    """
    steps: list[Restore] = [
        partial(torch.set_rng_state, torch.get_rng_state()),
        partial(random.setstate, random.getstate()),
    ]
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        steps.append(_remember_numpy(numpy_random.mtrand._rand))
    steps += _remember_devices()
    found = {id(item): item for item in find_generators(data)}
    found.update((id(item), item) for item in held_generators(modules))
    steps += [_remember_one(generator) for generator in found.values()]
    return partial(run_all, steps)


def _remember_devices() -> list[Restore]:
    steps: list[Restore] = []
    for name in _BACKENDS:
        backend = vars(torch).get(name)
        if backend is None or not hasattr(backend, "get_rng_state_all"):
            continue
        if backend.is_initialized():
            steps.append(partial(backend.set_rng_state_all, backend.get_rng_state_all()))
        else:
            # Asking for the state would start the device; a process that never uses it must
            # not, and one that forks data workers later could not fork any more.
            steps.append(partial(_rewind, backend))
    if torch.backends.mps.is_available():
        steps.append(partial(torch.mps.set_rng_state, torch.mps.get_rng_state()))
    return steps


def _rewind(backend: Any) -> None:
    """Put a device that was first used meanwhile back to the start of its seed's stream."""
    if backend.is_initialized():
        for generator in getattr(backend, "default_generators", ()):
            generator.manual_seed(generator.initial_seed())


def _kinds() -> tuple[type, ...]:
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return (torch.Generator, random.Random)
    return (
        torch.Generator,
        random.Random,
        numpy_random.Generator,
        numpy_random.RandomState,
        numpy_random.BitGenerator,
    )


def _remember_one(generator: Any) -> Restore:
    if isinstance(generator, torch.Generator):
        return partial(generator.set_state, generator.get_state())
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if hasattr(generator, "set_state"):  # numpy.random.RandomState
        return _remember_numpy(generator)
    bits = getattr(generator, "bit_generator", generator)
    return partial(setattr, bits, "state", bits.state)


def _remember_numpy(generator: Any) -> Restore:
    return partial(generator.set_state, generator.get_state(legacy=False))


def find_generators(roots: Iterable[object]) -> list[Any]:
    """Find the generators that can be reached from ``roots`` through attributes.

    Nearest first, through plain attributes (no property runs), tuples, lists and mappings; each
    object once; long collections of samples are not looked through, and after a thousand
    objects the search ends.

    Returns:
        ``torch.Generator``, ``random.Random`` and NumPy's ``Generator``, ``RandomState`` and
        ``BitGenerator`` objects, each once.
    """
    kinds: tuple[type, ...] = ()
    found: list[Any] = []
    seen: dict[int, object] = {}
    classes: set[type] = set()
    queue = deque(roots)
    while queue and len(seen) < _MAX_OBJECTS:
        item = queue.popleft()
        if type(item) in _LEAF_TYPES or id(item) in seen:
            continue
        if type(item) is tuple or type(item) is list:  # a batch, say; first and short
            seen[id(item)] = item
            queue.extend(_inside(item))
            continue
        if isinstance(item, _LEAVES):
            continue
        seen[id(item)] = item
        kinds = kinds or _kinds()
        if isinstance(item, kinds):
            if not isinstance(item, random.SystemRandom):  # the system's noise has no state
                found.append(item)
            continue
        queue.extend(_inside(item))
        if type(item) not in classes:
            classes.add(type(item))
            queue.extend(_of_class(type(item), kinds))
    return found


def _inside(item: object) -> Collection[object]:
    if isinstance(item, (list, tuple)):
        return item if len(item) <= _SHORT else ()
    if isinstance(item, Mapping):
        return item.values() if len(item) <= _SHORT else ()
    inside: list[object] = []
    for name, value in getattr(item, "__dict__", {}).items():
        if type(value) in _LEAF_TYPES or name in _PASSING:
            continue
        if name in _COLLECTIONS and isinstance(value, (list, tuple)):
            inside.extend(value)
        else:
            inside.append(value)
    return inside


def _of_class(cls: type, kinds: tuple[type, ...]) -> Iterator[object]:
    """Yield generators that are attributes of a class, as those of MONAI's transforms are."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] not in _WITHOUT_GENERATORS:
            yield from (value for value in vars(base).values() if isinstance(value, kinds))


def held_generators(modules: Collection[nn.Module]) -> list[Any]:
    """Find the generators that ``modules`` themselves hold as attributes.

    torch's own layers hold none and are passed over; a model has a thousand of them.
    """
    classes = {cls for cls in set(map(type, modules)) if not cls.__module__.startswith("torch.nn.")}
    found: list[Any] = []
    if not classes:
        return found
    # Types are compared as they are, which is ten times faster than isinstance().
    kinds = {cls for kind in _kinds() for cls in (kind, *kind.__subclasses__())}
    kinds.discard(random.SystemRandom)
    for module in modules:
        if type(module) in classes:
            attributes = module.__dict__.values()
            if not kinds.isdisjoint(map(type, attributes)):
                found += [value for value in attributes if type(value) in kinds]
    return found
