"""What a model remembers outside of its buffers is the same with an evaluation and without.

Each model here computes with what it remembers, so that training goes another way if an evaluation
leaves a trace.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from helpers.private import AttributeSnapshot, all_modules
from ignite_evalhook import EvalHook, create_evaluator

LOSS = nn.MSELoss()


class EvaluationBreaks(Exception):
    """What an evaluation raises half-way."""


class Base(nn.Module):
    """A weight, and what a subclass makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.5], [-0.25], [0.125]]))
        self.set_up()

    def set_up(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale(x)) @ self.weight

    def scale(self, x: Tensor) -> Any:
        raise NotImplementedError


class GrownCache(Base):
    def set_up(self) -> None:
        self.grow(2)

    def grow(self, rows: int) -> None:
        self.rows = rows
        self.register_buffer("pos", torch.arange(rows).float() / rows, persistent=False)

    def scale(self, x: Tensor) -> Any:
        if len(x) > self.rows:
            self.grow(len(x))
        return self.pos[: len(x), None]


class Flag(Base):
    ready = False

    def scale(self, x: Tensor) -> Any:
        if not self.ready:
            self.register_buffer("shift", x.mean(dim=0))
            self.ready = True
        return self.shift


class Counter(Base):
    def set_up(self) -> None:
        self.calls = 0

    def scale(self, x: Tensor) -> Any:
        self.calls += 1
        return 1 / self.calls


class Property(Counter):
    @property
    def calls(self) -> int:
        return self.__dict__["_calls"]

    @calls.setter
    def calls(self, value: int) -> None:
        self.__dict__["_calls"] = value


class Slots(Base):
    __slots__ = ("calls", "never")

    def set_up(self) -> None:
        self.calls = 0

    def scale(self, x: Tensor) -> Any:
        self.calls += 1
        self.never = True
        return 1 / self.calls


class RunningMean(Base):
    def set_up(self) -> None:
        self.count, self.mean = 0, torch.zeros(3)

    def scale(self, x: Tensor) -> Any:
        self.count += 1
        self.mean = self.mean + (x.mean(dim=0) - self.mean) / self.count
        return self.mean


class WrittenInPlace(RunningMean):
    def scale(self, x: Tensor) -> Any:
        self.count += 1
        self.mean += (x.mean(dim=0) - self.mean) / self.count
        return self.mean.clone()


class NumPyMean(Base):
    def set_up(self) -> None:
        self.mean = np.ones(3, np.float32)

    def scale(self, x: Tensor) -> Any:
        self.mean *= 0.5
        self.mean += x.mean(dim=0).numpy()
        return torch.from_numpy(self.mean.copy())


class Ring(Base):
    def set_up(self) -> None:
        self.register_buffer("ring", torch.zeros(4, 3))
        self.at = 0

    def scale(self, x: Tensor) -> Any:
        self.ring[self.at % 4] = x.mean(dim=0)
        self.at += 1
        return self.ring.mean(dim=0) + self.at


class Deque(Base):
    def set_up(self) -> None:
        self.last = deque([torch.ones(3)], maxlen=3)

    def scale(self, x: Tensor) -> Any:
        self.last.append(x.mean(dim=0))
        return sum(self.last)


class Nested(Base):
    def set_up(self) -> None:
        self.seen = {"means": [[torch.ones(3)]], "rows": {0}, "pair": ([1.0], [torch.zeros(3)])}

    def scale(self, x: Tensor) -> Any:
        self.seen["means"][0][0] += x.mean(dim=0)
        self.seen["means"].append([x.mean(dim=0)])
        self.seen["rows"].add(len(x) * len(self.seen["rows"]))
        self.seen["pair"][1][0] += 1
        self.seen.setdefault("more", []).append(1)
        return (
            self.seen["means"][0][0] * len(self.seen["means"])
            + sum(self.seen["rows"]) + self.seen["pair"][1][0] + len(self.seen["more"])
        )  # fmt: skip


class Recent(OrderedDict):  # as a cache that forgets what was not used for long
    hits = 0

    def __getitem__(self, key: Any) -> Any:
        self.hits += 1
        self.move_to_end(key)
        return super().__getitem__(key)


class LeastRecentlyUsed(Base):
    def set_up(self) -> None:
        self.cache = Recent({n: torch.full((3,), float(n)) for n in range(8)})

    def scale(self, x: Tensor) -> Any:
        oldest = next(iter(self.cache))
        return self.cache[oldest] + self.cache.hits


class ActNorm(Base):
    """Decides on its parameters when it sees the first batch."""

    def set_up(self) -> None:
        self.loc = nn.Parameter(torch.zeros(3))
        self.register_buffer("initialized", torch.tensor(0))

    def decide(self, mean: Tensor) -> None:
        self.loc.data.copy_(self.loc - mean)

    def scale(self, x: Tensor) -> Any:
        if not self.initialized:
            self.decide(x.mean(dim=0))
            self.initialized.fill_(1)
        return self.loc


class ActNormAssigned(ActNorm):
    def decide(self, mean: Tensor) -> None:
        self.loc.data = self.loc.data - mean


class ActNormReplaced(ActNorm):
    def decide(self, mean: Tensor) -> None:
        self.loc = nn.Parameter(self.loc - mean)


class BuiltLate(Base):
    def scale(self, x: Tensor) -> Any:
        if not hasattr(self, "layer"):
            self.layer = nn.Linear(x.shape[1], 3)
            self.layer.register_buffer("rows", torch.tensor(len(x)))
        return self.layer(x) * self.layer.rows


class AppendsLate(Base):
    def set_up(self) -> None:
        self.layers, self.extra = nn.ModuleList(), nn.ParameterDict()

    def scale(self, x: Tensor) -> Any:
        self.layers.append(nn.Linear(3, 3))
        self.extra[f"k{len(self.layers)}"] = nn.Parameter(torch.rand(3))
        return sum(layer(x) for layer in self.layers) + sum(self.extra.values())


class ChildInitialised(Base):
    def set_up(self) -> None:
        self.layer, self.ready = nn.Linear(3, 3), False

    def scale(self, x: Tensor) -> Any:
        if not self.ready:
            self.layer.weight.data *= 1 / self.layer(x).std()
            self.ready = True
        return self.layer(x)


class HooksLate(Base):
    def set_up(self) -> None:
        self.layer = nn.Linear(3, 3)

    def scale(self, x: Tensor) -> Any:
        y = self.layer(x)
        self.layer.register_forward_hook(lambda module, args, output: output * 0.5)
        return y


class HookGoes(Base):
    def set_up(self) -> None:
        self.layer = nn.Linear(3, 3)
        self.handle = self.layer.register_forward_hook(lambda module, args, output: output * 0.5)

    def scale(self, x: Tensor) -> Any:
        y = self.layer(x)
        self.handle.remove()
        return y


class Deletes(Base):
    def set_up(self) -> None:
        self.first = 2.0

    def scale(self, x: Tensor) -> Any:
        return self.__dict__.pop("first", 1.0)


class Swaps(Base):
    """Deletes an attribute and adds another one of the same value in its place."""

    def set_up(self) -> None:
        self.one = True

    def scale(self, x: Tensor) -> Any:
        if hasattr(self, "one"):
            del self.one
            self.two = True
            return 1.0
        return 2.0


class Hidden(Base):
    """Has a module that it has not registered, which therefore stays in train mode."""

    def set_up(self) -> None:
        self.parts = [(nn.BatchNorm1d(3),)]

    def scale(self, x: Tensor) -> Any:
        self.parts[0][0](x)
        return self.parts[0][0].running_mean.clone()


class Shared(Base):
    def set_up(self) -> None:
        counter = Counter()
        self.one, self.two = counter, nn.Sequential(counter)

    def scale(self, x: Tensor) -> Any:
        return self.one(x) + self.two(x)


class Renormed(Base):
    def scale(self, x: Tensor) -> Any:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.2)
        return 3.0


class MaxNorm(Base):
    def set_up(self) -> None:
        self.table = nn.Embedding(40, 3, max_norm=0.5)

    def scale(self, x: Tensor) -> Any:
        return self.table(torch.arange(len(x)))


class Lazy(Base):
    def set_up(self) -> None:
        self.layer, self.norm = nn.LazyLinear(3), nn.LazyBatchNorm1d()

    def scale(self, x: Tensor) -> Any:
        return self.norm(self.layer(x))


class Kinds(Base):
    """Becomes an instance of another class, as lazy modules do."""

    def scale(self, x: Tensor) -> Any:
        self.__class__ = Later
        return 1.0


class Later(Kinds):
    def scale(self, x: Tensor) -> Any:
        return 2.0


MODELS = [
    GrownCache, Flag, Counter, Property, Slots, RunningMean, WrittenInPlace, NumPyMean, Ring, Deque,
    Nested, LeastRecentlyUsed, ActNorm, ActNormAssigned, ActNormReplaced, BuiltLate, AppendsLate,
    ChildInitialised, HooksLate, HookGoes, Deletes, Swaps, Hidden, Shared, Renormed, MaxNorm, Lazy,
    Kinds,
]  # fmt: skip


def batches(count: int, rows: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches, the same each time."""
    generator = torch.Generator().manual_seed(rows)
    shape = (count, rows, 3)
    x = torch.randn(shape, generator=generator) + rows
    return [(one, one.sum(dim=1, keepdim=True)) for one in x]


def entries(model: nn.Module) -> list[Any]:
    """Return everything that the modules hold, deep down, as plain comparable values."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            filled = not nn.parameter.is_lazy(value)
            return (id(value), type(value), value.detach().numpy().tobytes() if filled else None)
        if isinstance(value, np.ndarray):
            return value.tobytes()
        if isinstance(value, dict):
            more = plain(vars(value)) if hasattr(value, "__dict__") else None
            return [(key, plain(dict.get(value, key))) for key in value], more
        if isinstance(value, (list, tuple, deque)):
            return [plain(item) for item in value]
        if isinstance(value, set):
            return sorted(value)
        return value if isinstance(value, (bool, int, float, str)) else id(value)

    return [
        (type(module), {name: plain(value) for name, value in vars(module).items()})
        for module in AttributeSnapshot(all_modules([model])).modules
    ]


def no_trace(model: nn.Module, evaluate: Callable[[], object]) -> None:
    before = entries(model)
    evaluate()
    assert entries(model) == before


def train(make: type[nn.Module], how: str) -> Any:
    torch.manual_seed(0)
    model = make()
    x, y = batches(1, 2)[0]
    evaluation = batches(2, 7)
    evaluator = create_evaluator(model, loss_fn=LOSS)
    hook = EvalHook(evaluation, evaluator, preflight=how == "preflight")
    breaking = EvalHook(evaluation, create_evaluator(model, loss_fn=break_at_second()))
    if how == "run by hand":
        no_trace(model, lambda: evaluator.run(evaluation))
    elif how == "asked before":
        no_trace(model, hook.evaluate)
    elif how == "breaks":
        with pytest.raises(EvaluationBreaks):
            breaking.evaluate()

    def parameters() -> list[nn.Parameter]:
        return [p for p in model.parameters() if not nn.parameter.is_lazy(p)]

    def step(engine: Engine, batch: Any) -> float:
        loss = LOSS(model(batch[0]), batch[1])
        own = parameters()
        gradients = torch.autograd.grad(loss, own, allow_unused=True)
        for parameter, gradient in zip(own, gradients, strict=True):
            if gradient is not None:
                parameter.data -= 0.01 * gradient
        return loss.item()

    trainer = Engine(step)
    if how != "without":
        hook.attach(trainer)
    losses: list[float] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output)
    )
    trainer.run([(x, y), *batches(1, 3)], max_epochs=3)
    assert len(hook.history) == (0 if how == "without" else 3)
    return losses, [p.detach().numpy().tobytes() for p in model.state_dict().values()]


def break_at_second() -> Callable[[Tensor, Tensor], Tensor]:
    calls: list[int] = []

    def loss(y_pred: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise EvaluationBreaks
        return LOSS(y_pred, y)

    return loss


@pytest.mark.parametrize("make", MODELS)
def test_training_is_the_same_whatever_a_model_remembers(make: type[nn.Module]) -> None:
    expected = train(make, "without")
    for how in ("preflight", "no preflight", "run by hand", "asked before", "breaks"):
        assert train(make, how) == expected, how
