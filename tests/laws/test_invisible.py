"""Test that training with a hook is training without it, bit for bit.

Every test trains the same model twice, with hooks and without, and compares all that training
leaves behind: weights, buffers, flags, gradients, optimizer state, the loss of each step, and
what every random generator would give next.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler

from helpers.private import apart
from ignite_evalhook import EvalEvents, EvalHook, create_evaluator

SAMPLES, BATCH = 20, 4  # five iterations in an epoch


class EvaluationBreaks(Exception):
    """What an evaluation raises half-way."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: such small tensors spend their time waiting for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Noisy(Dataset[Any]):
    """Samples with noise from every kind of generator, also one of its own."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(SAMPLES, 4, generator=generator)
        self.y = torch.randint(0, 3, (SAMPLES,), generator=generator)
        self.rng = np.random.default_rng(7)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.rand(()).item() + random.random() + np.random.rand() + self.rng.normal()
        return self.x[index] + 0.1 * noise, self.y[index]


class Model(nn.Module):
    """A network with everything that an evaluation might disturb."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.norm = nn.BatchNorm1d(8, momentum=None)  # a cumulative average, by a counter
        self.last = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        if frozen:
            self.norm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1  # in eval mode, too
        return self.last(self.norm(self.first(x)))


@dataclass(frozen=True)
class Setting:
    """How training is done, and what the hooks do beside it."""

    generator: str = "none"  # of the loaders: none, own, shared
    workers: int = 0
    persistent: bool = False
    frozen: bool = False
    accumulate: int = 1
    epochs: int = 2
    hooks: tuple[dict[str, Any], ...] = ({},)
    val_shuffle: bool = False
    val_sampler: bool = False
    on_train_loader: bool = False
    save: bool = False
    keep_last: bool = False
    breaks_at: int | None = None  # the evaluation at this iteration raises half-way


def bits(value: Any) -> Any:
    """Turn nested values into something that is equal only bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return value.hex() if isinstance(value, float) else value


def train(setting: Setting, *, hooked: bool, out_dir: Path) -> dict[str, Any]:
    """Train, and return all that is left behind."""
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    model = Model(setting.frozen)
    dataset = Noisy()
    own = torch.Generator().manual_seed(1)
    options = {"num_workers": setting.workers, "persistent_workers": setting.persistent}
    generator = None if setting.generator == "none" else own
    loader = DataLoader(dataset, BATCH, shuffle=True, generator=generator, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    losses: list[float] = []

    def step(engine: Engine, batch: Any) -> None:
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        (loss / setting.accumulate).backward()
        losses.append(loss.item())
        if len(losses) % setting.accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()

    trainer = Engine(step)
    evaluated: list[int] = []
    val_loader = make_val_loader(setting, dataset, loader, generator, options)
    if hooked:
        attach_hooks(setting, trainer, model, optimizer, val_loader, out_dir, evaluated)
    elif setting.breaks_at is not None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=setting.breaks_at), break_here)
    try:
        trainer.run(loader, max_epochs=setting.epochs)
    except EvaluationBreaks:
        for batch in loader:  # the user goes on by hand
            step(trainer, batch)
    assert bool(evaluated) == hooked
    modules = dict(model.named_modules())
    left = {
        "weights and buffers": model.state_dict(),
        "flags": {name: module.training for name, module in modules.items()},
        "gradients": [parameter.grad for parameter in model.parameters()],
        "wanted": [parameter.requires_grad for parameter in model.parameters()],
        "optimizer": optimizer.state_dict(),
        "losses": losses,
        "counters": dict(trainer.state_dict()),
        "random": [torch.rand(3), random.random(), np.random.rand(), dataset.rng.normal()],
        "loader": [own.get_state(), next(iter(loader))],
        "mode": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
    }
    for each in (apart(loader), apart(val_loader), loader, val_loader):
        each._iterator = None  # ends workers now: the garbage collector takes 5 s for each
    return {name: bits(value) for name, value in left.items()}


def break_here(engine: Engine) -> None:
    raise EvaluationBreaks


def make_val_loader(
    setting: Setting,
    dataset: Noisy,
    loader: DataLoader[Any],
    generator: torch.Generator | None,
    options: dict[str, Any],
) -> DataLoader[Any]:
    if setting.on_train_loader:
        return loader
    if setting.generator != "shared":
        generator = None
    if setting.val_sampler:
        sampler = RandomSampler(dataset, replacement=True, generator=generator)
        return DataLoader(dataset, 3, sampler=sampler, generator=generator, **options)
    return DataLoader(dataset, 3, shuffle=setting.val_shuffle, generator=generator, **options)


def attach_hooks(
    setting: Setting,
    trainer: Engine,
    model: Model,
    optimizer: torch.optim.Optimizer,
    val_loader: DataLoader[Any],
    out_dir: Path,
    evaluated: list[int],
) -> None:
    for number, more in enumerate(setting.hooks):
        evaluator = create_evaluator(
            model, {"accuracy": Accuracy()}, loss_fn=nn.functional.cross_entropy
        )

        def watch(engine: Engine) -> None:
            assert not any(module.training for module in model.modules())
            torch.rand(1), random.random(), np.random.rand()  # as a user's handler may
            if trainer.state.iteration == setting.breaks_at and engine.state.iteration == 2:
                raise EvaluationBreaks

        evaluator.add_event_handler(Events.ITERATION_COMPLETED, watch)
        saving: dict[str, Any] = {"save_best": "val_loss", "out_dir": False}
        if setting.save:
            saving = {"save_best": ["val_loss", "accuracy"], "out_dir": out_dir}
        hook = EvalHook(val_loader, evaluator, name=f"val{number}", **{**saving, **more})
        hook.attach(trainer)
        hook.on(EvalEvents.EVAL_STARTED, lambda record: evaluated.append(trainer.state.iteration))
        if setting.keep_last and setting.save and number == 0:
            hook.keep_last({"model": model, "optimizer": optimizer})


def assert_invisible(setting: Setting, out_dir: Path) -> None:
    without = train(setting, hooked=False, out_dir=out_dir)
    hooked = train(setting, hooked=True, out_dir=out_dir)
    for name, value in without.items():
        assert hooked[name] == value, name


def count(results: Sequence[Any], **_: Any) -> dict[str, float]:
    torch.rand(3), random.random(), np.random.rand()
    return {"count": float(len(results))}


@contextmanager
def swapped() -> Iterator[None]:
    torch.rand(1)
    yield
    torch.rand(1)


EACH: dict[str, Any] = {"interval": 1, "by_epoch": False}
SETTINGS: dict[str, Setting] = {
    "by epochs": Setting(),
    "before training": Setting(hooks=({"start": 0},)),
    "in the middle of an epoch": Setting(hooks=({"interval": 3, "by_epoch": False},)),
    "at every iteration": Setting(hooks=(EACH,)),
    "by parts of an epoch": Setting(hooks=({"interval": 0.3},)),
    "by the clock": Setting(hooks=({"interval": timedelta(microseconds=1)},)),
    "at the end": Setting(hooks=({"interval": None, "at_end": True},)),
    "without preflight": Setting(hooks=({"preflight": False},)),
    "a loader's own generator": Setting("own", hooks=(EACH,)),
    "a shared generator": Setting("shared", hooks=(EACH,), val_shuffle=True),
    "a shuffled evaluation": Setting(hooks=(EACH,), val_shuffle=True),
    "a frozen BatchNorm": Setting(frozen=True, hooks=(EACH,)),
    "half accumulated gradients": Setting(accumulate=3, hooks=(EACH,)),
    "a random sampler": Setting("shared", hooks=(EACH,), val_sampler=True),
    "compute_metrics": Setting(hooks=({**EACH, "compute_metrics": count},)),
    "compute_metrics in random order": Setting(
        "shared", hooks=({**EACH, "compute_metrics": count},), val_shuffle=True
    ),
    "a few batches only": Setting(hooks=({**EACH, "limit_batches": 2},), val_shuffle=True),
    "a context": Setting(hooks=({**EACH, "context": swapped},)),
    "evaluated on the training data": Setting("own", hooks=(EACH,), on_train_loader=True),
    "the best is saved": Setting(hooks=(EACH,), save=True),
    "best and last are saved": Setting(hooks=({"interval": 1},), save=True, keep_last=True),
    "two hooks": Setting("shared", hooks=(EACH, {"interval": 1}), val_shuffle=True),
    "one breaks at an epoch's end": Setting(frozen=True, breaks_at=5),
    "one breaks in the middle": Setting(
        "shared", hooks=(EACH,), val_shuffle=True, accumulate=2, breaks_at=7
    ),
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_training_is_the_same_with_hooks(setting: Setting, tmp_path: Path) -> None:
    assert_invisible(setting, tmp_path / "run")


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("on_train_loader", [False, True])
def test_training_with_data_workers_is_the_same(
    persistent: bool, on_train_loader: bool, tmp_path: Path
) -> None:
    setting = Setting(
        "shared",
        workers=2,
        persistent=persistent,
        val_shuffle=True,
        on_train_loader=on_train_loader,
        hooks=({"interval": 3, "by_epoch": False},),
    )
    assert_invisible(setting, tmp_path)


def test_workers_that_persist_do_so_between_evaluations() -> None:
    loader = DataLoader(Noisy(), 3, num_workers=1, persistent_workers=True)
    hook = EvalHook(loader, create_evaluator(Model(False), loss_fn=nn.functional.cross_entropy))
    hook.evaluate()
    workers = apart(loader)._iterator
    hook.evaluate()
    assert workers is not None
    assert apart(loader)._iterator is workers
    assert loader._iterator is None  # training's own are not touched
    loader.generator = torch.Generator()
    assert apart(loader).generator is loader.generator
    apart(loader)._iterator = None


def test_training_is_the_same_when_preflight_breaks(tmp_path: Path) -> None:
    def run(hooked: bool) -> list[Any]:
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        model, dataset = Model(frozen=True), Noisy()
        loader = DataLoader(dataset, BATCH, shuffle=True)
        trainer = Engine(lambda engine, batch: model(batch[0]))

        def fail(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            raise EvaluationBreaks

        if hooked:
            EvalHook(
                DataLoader(dataset, 3, shuffle=True), create_evaluator(model, loss_fn=fail)
            ).attach(trainer)
            with pytest.raises(EvaluationBreaks):
                trainer.run(loader)
            assert trainer.state.iteration == 0
        for x, _ in loader:
            model(x)
        flags = [module.training for module in model.modules()]
        return [bits(model.state_dict()), flags, bits(torch.rand(2)), dataset.rng.normal()]

    assert run(hooked=True) == run(hooked=False)


def test_an_evaluation_on_demand_is_as_invisible() -> None:
    def run(ask: Callable[[EvalHook], Any]) -> Any:
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        model, dataset = Model(frozen=True), Noisy()
        loader = DataLoader(dataset, BATCH, shuffle=True)
        hook = EvalHook(
            DataLoader(dataset, 3, shuffle=True),
            create_evaluator(model, loss_fn=nn.functional.cross_entropy),
            interval=None,
        )
        for x, y in loader:
            nn.functional.cross_entropy(model(x), y).backward()
            ask(hook)
        gradients = [parameter.grad for parameter in model.parameters()]
        return bits([model.state_dict(), gradients, torch.rand(2), dataset.rng.normal()])

    other = Noisy()
    expected = run(lambda hook: None)
    assert run(EvalHook.evaluate) == expected
    assert run(lambda hook: hook.evaluate(DataLoader(other, 2, shuffle=True))) == expected


def test_a_function_that_samples_is_as_invisible() -> None:
    def run(hooked: bool) -> Any:
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        model = Model(frozen=True)

        def sample(engine: Engine | None) -> dict[str, float]:
            model.train()  # carelessly
            outputs = model(torch.randn(4, 4))
            return {"mean": outputs.mean().item() + random.random() + np.random.rand()}

        trainer = Engine(lambda engine, batch: model(batch))
        if hooked:
            EvalHook(None, sample, model=model, **EACH).attach(trainer)
        trainer.run([torch.randn(4, 4) for _ in range(4)])
        flags = [module.training for module in model.modules()]
        return bits([model.state_dict(), flags, torch.rand(2), random.random(), np.random.rand()])

    assert run(hooked=True) == run(hooked=False)


class Stream(IterableDataset[Any]):
    """A stream that draws its samples, and does not tell how many they are."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(SAMPLES):
            yield torch.randn(4) + random.random()


def test_streams_are_as_invisible() -> None:
    def run(hooked: bool) -> Any:
        torch.manual_seed(0), random.seed(0)
        model = Model(frozen=False)
        seen: list[Any] = []

        def step(engine: Engine, batch: torch.Tensor) -> None:
            seen.append(bits(model(batch)))

        trainer = Engine(step)
        if hooked:
            evaluator = create_evaluator(model, step=lambda engine, batch: model(batch))
            EvalHook(DataLoader(Stream(), 3), evaluator, **EACH).attach(trainer)
        trainer.run(DataLoader(Stream(), BATCH), max_epochs=2)
        return [seen, bits(model.state_dict()), bits(torch.rand(2)), random.random()]

    assert run(hooked=True) == run(hooked=False)


# --- any of it together ----------------------------------------------------------------------

hook_options = st.fixed_dictionaries(
    {},
    optional={
        "start": st.just(0),
        "at_end": st.booleans(),
        "compute_metrics": st.just(count),
        "limit_batches": st.integers(1, 4),
        "preflight": st.booleans(),
        "context": st.just(swapped),
    },
)
whens: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.integers(1, 4).map(lambda n: {"interval": n, "by_epoch": False}),
    st.just({"interval": 0.4}),
)
hooks = st.builds(lambda when, more: {**when, **more}, whens, hook_options)


@settings(max_examples=40, deadline=None)
@given(
    setting=st.builds(
        Setting,
        generator=st.sampled_from(["none", "own", "shared"]),
        frozen=st.booleans(),
        accumulate=st.integers(1, 3),
        hooks=st.lists(hooks, min_size=1, max_size=2).map(tuple),
        val_shuffle=st.booleans(),
        val_sampler=st.booleans(),
        on_train_loader=st.booleans(),
        save=st.booleans(),
        keep_last=st.booleans(),
    ),
    breaks=st.booleans(),
)
def test_training_is_the_same_whatever_comes_together(setting: Setting, breaks: bool) -> None:
    if breaks:  # at an iteration at which there is an evaluation with a second batch
        first = {**setting.hooks[0], **EACH, "limit_batches": 3}
        setting = dataclasses.replace(setting, hooks=(first, *setting.hooks[1:]), breaks_at=7)
    with tempfile.TemporaryDirectory() as folder:
        assert_invisible(setting, Path(folder))
