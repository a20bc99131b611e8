"""Put models into eval mode, and back without moving a weight by one bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from torch import nn

from .attributes import AttributeSnapshot, all_modules
from .random import Restore, run_all
from .values import remember_values, writable

__all__: list[str] = []


class EvalMode:
    """Eval mode for some models, which stand as they stand now when it is left.

    A module with a ``train`` of its own is told of the change through it: it may do more than
    set flags, as layers do that merge weights in eval mode.  Such weights are remembered, since
    what is added and taken off again is another number.

    Args:
        roots: The models.

    Attributes:
        modules: They and all their submodules, outer before inner.
        attributes: What the modules keep in Python.
        leave: Puts back flags, attributes, and the weights of modules with a ``train`` of their
            own.  It may be called again.
    """

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        self._roots = roots
        self.modules = all_modules(roots)
        self._replaced = _replaced(self.modules, {"eval", "train", "children", "named_children"})
        self.attributes = AttributeSnapshot(self.modules)
        self.leave: Restore = self._remember(self.attributes)

    def enter(self) -> None:
        """Put the models into eval mode."""
        if self._replaced:
            for root in self._roots:
                root.eval()
        else:  # what eval() does where nobody has replaced it, at a tenth of the price
            _set_flags(self.modules, [False] * len(self.modules))

    @contextmanager
    def inside(self, context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
        """Enter a context that may give the models other weights, flags and parts.

        It comes and goes while weights are those of training mode; the flags it sets stay.
        """
        outer, others = self.leave, [m for m in self.modules if id(m) not in self._replaced]
        if self._replaced:
            flags = _flags(others)
            outer()
            _set_flags(others, flags)
        with context():
            flags = _flags(others)
            self.leave = self._remember(AttributeSnapshot(all_modules(self._roots)))
            try:
                if self._replaced:
                    self.enter()
                    _set_flags(others, flags)
                yield
            finally:
                inner, self.leave = self.leave, outer
                inner()

    def _remember(self, attributes: AttributeSnapshot) -> Restore:
        """Remember how the models stand, but for what forward passes write into tensors."""
        modules, flags = self.modules, _flags(self.modules)
        replaced = _replaced(modules, {"train"}) if self._replaced else set()
        told = [(m, flag) for m, flag in zip(modules, flags, strict=True) if id(m) in replaced]
        weights = _weights([m for m in modules if id(m) in self._replaced])
        # Flags come first, since a train() that merges weights may do whatever it likes.
        steps: list[Restore] = [
            *(partial(_tell, module, flag) for module, flag in told),
            partial(_set_flags, modules, flags),
            attributes.restore,
            remember_values(writable(weights, math.inf)),
        ]
        return partial(run_all, steps)


@contextmanager
def weights_kept(roots: Sequence[nn.Module]) -> Iterator[None]:
    """Put back the weights of layers that are going to be told of training mode, bit for bit."""
    told = _in_eval_mode(all_modules(roots))
    restore = remember_values(writable(_weights(told), math.inf))
    try:
        yield
    finally:
        restore()


def _in_eval_mode(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the modules in eval mode that have a ``train`` of their own."""
    replaced = _replaced(modules, {"train"})
    return [m for m in modules if id(m) in replaced and getattr(m, "training", True) is False]


@contextmanager
def weights_of_training(roots: Sequence[nn.Module]) -> Iterator[None]:
    """Let layers that merge weights in eval mode have taken them apart, for the time of the body.

    Their state is saved and loaded so.  Only those in eval mode that have a ``train`` of their own
    are told; what the body leaves in their weights is what they merge again.
    """
    modules = all_modules(roots)
    told = _in_eval_mode(modules)
    if not told:
        yield
        return
    flags = _flags(modules)
    for module in told:
        module.train()
    try:
        yield
    finally:
        run_all([*(partial(_tell, m, False) for m in told), partial(_set_flags, modules, flags)])


def _weights(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of modules, and of their children, each once."""
    owners = [owner for module in modules for owner in (module, *module._modules.values())]
    tables = [list(owner._parameters.values()) for owner in owners if owner is not None]
    return list({id(p): p for table in tables for p in table if p is not None}.values())


def _flags(modules: Sequence[nn.Module]) -> list[bool | None]:
    """Return the training flags; a frozen scripted module has none."""
    return [getattr(module, "training", None) for module in modules]


def _tell(module: nn.Module, flag: bool | None) -> None:
    if flag is not None and module.training is not flag:
        module.train(flag)


def _set_flags(modules: Sequence[nn.Module], flags: Sequence[bool | None]) -> None:
    plain = {
        cls
        for cls in set(map(type, modules))
        if _method(cls, "__setattr__") is _method(nn.Module, "__setattr__")
        and not hasattr(cls, "training")  # a property, as compiled modules have
    }
    for module, flag in zip(modules, flags, strict=True):
        if flag is None or getattr(module, "training", flag) is flag:
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
