"""Small runs that can be killed anywhere, resumed, and compared.

A :class:`Setup` says how a run trains, evaluates and saves.  A :class:`Run` builds all of it anew,
as a new process would.  :func:`outcome` is everything that a broken and resumed run must share
with one that was never stopped.  Which kills are tried is for the tests to say.
"""

from __future__ import annotations

import inspect
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, EarlyStopping
from torch import nn
from torch.nn.functional import dropout, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from ignite_evalhook import Best, BestCheckpoint, EvalEvents, EvalHook, create_evaluator

EPOCH_LENGTH = 2  # iterations
# By completed iterations, again and again: worse, better, equal and a new best after a worse one.
SCORES = (0.2, 0.5, 0.4, 0.3, 0.1, 0.3, 0.6, 0.6)
LOSSES = (0.9, 0.7, 0.8, 0.4, 0.5, 0.6, 0.3, 0.35)


class Killed(BaseException):
    """Ends a run where it stands, as a kill does."""


@dataclass(frozen=True)
class Setup:
    """How a run goes.

    Attributes:
        saves: What the run is resumed from: ``"last"`` is ``keep_last``; else the user's own
            ``Checkpoint``, ``"before"`` or ``"after"`` the hook at ``EPOCH_COMPLETED``,
            ``"iteration before"`` or ``"iteration after"`` it at ``ITERATION_COMPLETED``, or at
            ``"evaluation"``.  ``"nothing"``: nothing is saved.
        every: Occasions between two saves.
        hook: Options of the hook; ``alias`` is that of ``BestCheckpoint``.
        second: Options of a second hook, called ``test``; ``None`` for no such hook.
        patience: Of early stopping by ``score``; ``None`` for none.
        epochs: Epochs to train.
        max_iters: Iterations to train instead.
        seeded: ``"epoch"`` or ``"iteration"``: training repeats because it is seeded there;
            ``None``: because the random generators are saved.
        scores: What is evaluated, by completed iterations.
        generator: Whether the training loader has a generator of its own.
        seed: Of the process.
        cut_at: Iterations in which training ends its epoch by ``terminate_epoch()``.
    """

    saves: str = "last"
    every: int = 1
    hook: Mapping[str, Any] = field(default_factory=dict)
    second: Mapping[str, Any] | None = None
    patience: int | None = None
    epochs: int = 3
    max_iters: int | None = None
    seeded: str | None = None
    scores: Sequence[float] = SCORES
    generator: bool = False
    seed: int = 7
    cut_at: Sequence[int] = ()


class Run:
    """Everything that one process builds.

    Args:
        folder: The run's folder.
        setup: How the run goes.
        bomb: Where to kill it.

    Attributes:
        resumed: Whether there was something to resume from.
        resumed_at: Completed iterations in what was loaded.
        known: Iterations that the loaded history knows.
        log: What this process has done, in order: ``"train"`` or an event of the first hook,
            and the trainer's iteration.
    """

    def __init__(self, folder: Path, setup: Setup, bomb: Bomb | None = None) -> None:
        seed_all(setup.seed)
        self.folder = folder
        self.setup = setup
        self.model = nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.3, momentum=0.9)
        self.trainer = Engine(self._train)
        own = torch.Generator().manual_seed(setup.seed) if setup.generator else None
        self.loader = DataLoader(_samples(), batch_size=2, shuffle=True, generator=own)
        self.log: list[tuple[str, int]] = []
        self.hooks = [self._hook("val", setup.hook)]
        if setup.second is not None:
            self.hooks.append(self._hook("test", setup.second))
        self.hook = self.hooks[0]
        if bomb is not None:
            bomb.arm(self.trainer, bomb.before, "before")
        if setup.seeded == "epoch":
            self.trainer.add_event_handler(Events.EPOCH_STARTED, self._seed)
        if "before" in setup.saves:
            self._save_by_hand()
        for hook in self.hooks:
            hook.attach(self.trainer)
        self.stopper: EarlyStopping | None = None
        if setup.patience is not None:
            self.stopper = self.hook.early_stopping(setup.patience, metric="score")
        if setup.saves in ("after", "iteration after", "evaluation"):
            self._save_by_hand()
        self.resumed = self._resume()
        self.resumed_at = self.trainer.state.iteration
        self.known = [record.iteration for record in self.hook.history]
        for event in EvalEvents:
            self.hook.on(event, self._note(event))
        if bomb is not None:
            bomb.arm(self.trainer, bomb.after, "after")
            bomb.arm(self.hook.evaluator, bomb.evaluator, "evaluator")

    def go(self, **length: int) -> Run:
        """Train to the end, or to the kill."""
        if not length and self.setup.max_iters is not None:
            if "max_iters" not in inspect.signature(Engine.run).parameters:
                pytest.skip("Ignite before 0.5.5 has no max_iters")
            length = {"max_iters": self.setup.max_iters}
        self.trainer.run(self.loader, **(length or {"max_epochs": self.setup.epochs}))
        return self

    def _hook(self, name: str, options: Mapping[str, Any]) -> EvalHook:
        arguments: dict[str, Any] = {"save_best": "score", "rule": "greater", **options}
        arguments["out_dir"] = self.folder
        alias = arguments.pop("alias", None)
        if alias is not None:
            n_saved = arguments.pop("n_saved", 1)
            where = arguments.pop("out_dir")
            arguments["checkpoint"] = BestCheckpoint(
                {"model": self.model}, where, alias=alias, n_saved=n_saved
            )
        return EvalHook(
            DataLoader(_samples(), batch_size=3),
            create_evaluator(self.model, loss_fn=mse_loss),
            derive={"score": self._from(self.setup.scores), "loss": self._from(LOSSES)},
            name=name,
            **arguments,
        )

    def _from(self, table: Sequence[float]) -> Callable[[Mapping[str, Any]], float]:
        return lambda metrics: table[self.trainer.state.iteration % len(table)]

    def _note(self, event: EvalEvents) -> Callable[[Any], None]:
        return lambda record: self.log.append((event.value, self.trainer.state.iteration))

    def at(self, what: str) -> list[int]:
        """Return the iterations at which something was logged."""
        return [iteration for name, iteration in self.log if name == what]

    def _train(self, engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.log.append(("train", engine.state.iteration))
        if self.setup.seeded == "iteration":
            # A loader that is started again in mid-epoch begins anew: make the batch here.
            torch.manual_seed(engine.state.iteration)
            batch = (torch.randn(2, 2), torch.randn(2, 2))
        x, y = batch
        with torch.no_grad():  # by hand: autograd may start threads, and then nothing can fork
            error = dropout(self.model(x), 0.25) - y
            self.model.weight.grad = error.T @ x / len(x)
            self.model.bias.grad = error.mean(0)
            self.optimizer.step()
        if engine.state.iteration in self.setup.cut_at:
            engine.terminate_epoch()

    def _seed(self, engine: Engine) -> None:
        torch.manual_seed(engine.state.epoch)

    @property
    def objects(self) -> dict[str, Any]:
        """Name to object, for the user's own checkpoint."""
        names = ["eval_hook", "test_hook"][: len(self.hooks)]
        objects = {"model": self.model, "optimizer": self.optimizer, "trainer": self.trainer}
        return {**objects, **dict(zip(names, self.hooks, strict=True))}

    @property
    def own_folder(self) -> Path:
        """Where the user's own checkpoints go."""
        return self.folder / "by hand"

    def _save_by_hand(self) -> None:
        event: Any = Events.EPOCH_COMPLETED
        if "iteration" in self.setup.saves:
            event = Events.ITERATION_COMPLETED
        elif self.setup.saves == "evaluation":
            event = EvalEvents.EVAL_COMPLETED
        saver = DiskSaver(str(self.own_folder), require_empty=False)
        checkpoint = Checkpoint(self.objects, saver, n_saved=None)
        self.trainer.add_event_handler(event(every=self.setup.every), checkpoint)

    def _resume(self) -> bool:
        if self.setup.saves == "nothing":
            return False
        if self.setup.saves == "last":
            objects: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
            if len(self.hooks) > 1:
                objects["test_hook"] = self.hooks[1]
            return self.hook.keep_last(objects, every=self.setup.every)
        files = sorted(self.own_folder.glob("*.pt"), key=lambda f: int(f.stem.split("_")[-1]))
        if not files:
            return False
        checkpoint = torch.load(files[-1], weights_only=True)
        Checkpoint.load_objects(to_load=self.objects, checkpoint=checkpoint)
        return True


EVALUATIONS = (EvalEvents.EVAL_STARTED, EvalEvents.EVAL_COMPLETED, EvalEvents.NEW_BEST)


class Bomb:
    """Counts the moments of a run, and goes off at one of them.

    Args:
        at: The moment, counted from 0; ``None`` only counts.
        kill: What it does; by default it raises :class:`Killed`.
        coarse: Leave out the moments of single batches.

    Attributes:
        moments: What it has seen.
    """

    def __init__(
        self,
        at: int | None = None,
        kill: Callable[[], object] | None = None,
        *,
        coarse: bool = False,
    ) -> None:
        self.at = at
        self.kill = kill
        self.moments: list[str] = []
        ends = (Events.EPOCH_COMPLETED, Events.TERMINATE, Events.COMPLETED)
        batches = (
            Events.GET_BATCH_STARTED,
            Events.GET_BATCH_COMPLETED,
            Events.DATALOADER_STOP_ITERATION,
            Events.ITERATION_STARTED,
        )
        self.before: tuple[Any, ...] = (Events.EPOCH_STARTED, Events.ITERATION_COMPLETED, *ends)
        self.after: tuple[Any, ...] = (*ends, EvalEvents.EVAL_COMPLETED)
        self.evaluator: tuple[Any, ...] = (Events.COMPLETED,)
        if not coarse:
            self.before = (Events.STARTED, *batches, *self.before)
            self.after = (Events.STARTED, Events.ITERATION_COMPLETED, *ends, *EVALUATIONS)
            self.evaluator = (Events.STARTED, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED,
                              Events.COMPLETED)  # fmt: skip

    def arm(self, engine: Engine, events: Sequence[Any], where: str) -> None:
        """Listen to ``events``, before or after everybody who is there already."""
        for event in events:
            engine.add_event_handler(event, self._tick, f"{event.value} ({where})")

    def _tick(self, engine: Engine, moment: str) -> None:
        number = len(self.moments)
        self.moments.append(moment)
        if number == self.at:
            if self.kill is not None:
                self.kill()
            raise Killed(moment)


def outcome(run: Run) -> dict[str, Any]:
    """Return all that a broken and resumed run shares with an unbroken one."""
    momentum = [state["momentum_buffer"] for state in run.optimizer.state.values()]
    return {
        "weights": plain(run.model.state_dict()),
        "optimizer": plain(momentum),
        "counters": (run.trainer.state.epoch, run.trainer.state.iteration),
        "hooks": [_of_hook(run, hook) for hook in run.hooks],
        "stopper": None if run.stopper is None else dict(run.stopper.state_dict()),
        "files": files(run),
    }


def _of_hook(run: Run, hook: EvalHook) -> dict[str, Any]:
    return {
        "state": plain(hook.state_dict()),
        "best": _relative(run, hook.best),
        "bests": {m: [_relative(run, b) for b in bests] for m, bests in hook.bests.items()},
    }


def _relative(run: Run, best: Best | None) -> Any:
    if best is None or best.path is None:
        return best
    path = Path(best.path).relative_to(run.folder)
    return best.metric, best.score, best.epoch, best.iteration, path


def files(run: Run) -> dict[str, Any]:
    """Return the content of each file directly in the folder, without run ids and seconds."""
    ids = {hook.state_dict()["run_id"] for hook in run.hooks}
    found: dict[str, Any] = {}
    for path in sorted(run.folder.iterdir()):
        if path.is_dir():
            continue
        if path.name.startswith("last"):
            found[path.name] = plain(torch.load(path, weights_only=True))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            assert {row["run_id"] for row in rows} <= ids
            found[path.name] = plain(rows)
        elif path.suffix == ".json":
            text = path.read_text()
            assert any(run_id in text for run_id in ids)
            found[path.name] = re.sub("|".join(ids), "the run", text)
        else:
            found[path.name] = path.read_bytes()
    return found


def plain(value: Any) -> Any:
    """Return a state as values that can be compared, without run ids and seconds."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items() if k not in ("seconds", "run_id")}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def seed_all(seed: int) -> None:
    """Seed as a script does at its top."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def _samples() -> TensorDataset:
    x = torch.linspace(-1, 1, 2 * 2 * EPOCH_LENGTH).reshape(-1, 2)
    return TensorDataset(x, x.flip(1) + 0.5)
