"""Small runs that can be killed anywhere, resumed, and compared.

A :class:`Setup` says how a run trains, evaluates and saves; :func:`start` builds all of it anew,
as a new process would; :func:`outcome` is everything that a broken run must share with one that
was never stopped.  Nothing here knows which tests use it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver
from torch import nn
from torch.nn.functional import dropout
from torch.utils.data import DataLoader, TensorDataset

from ignite_evalhook import EvalEvents, EvalHook, create_evaluator

EPOCH_LENGTH = 2  # iterations
SCORES = (0.2, 0.5, 0.4, 0.6, 0.1, 0.7, 0.7, 0.3)  # by iteration, again and again
LOSSES = (0.9, 0.7, 0.8, 0.4, 0.5, 0.6, 0.3, 0.35)


class Killed(BaseException):
    """Ends a run where it stands, as a kill does."""


@dataclass(frozen=True)
class Setup:
    """How a run goes.

    Attributes:
        saves: Who saves what the run is resumed from: ``"last"`` (``keep_last``), or the user's
            own ``Checkpoint``: ``"before"`` or ``"after"`` the hook at ``EPOCH_COMPLETED``,
            ``"iteration before"`` or ``"iteration after"`` it at ``ITERATION_COMPLETED``.
        every: Occasions between two saves.
        hook: Options of the hook.
        second: Options of a second hook called ``test``; ``None`` for no such hook.
        patience: Of early stopping; ``None`` for none.
        epochs: Epochs to train.
        max_iters: Iterations to train instead.
        seeded: ``"epoch"`` or ``"iteration"``: training repeats because it is seeded there;
            ``None``: because the random generators are saved.
    """

    saves: str = "last"
    every: int = 1
    hook: Mapping[str, Any] = field(default_factory=dict)
    second: Mapping[str, Any] | None = None
    patience: int | None = None
    epochs: int = 3
    max_iters: int | None = None
    seeded: str | None = None


class Run:
    """Everything that one process builds.

    Attributes:
        batches: The samples trained on, one string an iteration.
        resumed: Whether there was something to resume from.
    """

    def __init__(self, folder: Path, setup: Setup, bomb: Bomb | None = None) -> None:
        torch.manual_seed(7)
        self.folder = folder
        self.setup = setup
        self.model = nn.Linear(2, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.3, momentum=0.9)
        self.trainer = Engine(self._train)
        self.loader = DataLoader(_samples(), batch_size=2, shuffle=True)
        self.trained: list[int] = []
        self.hook = self._hook("val", setup.hook)
        self.hooks = [self.hook]
        if setup.second is not None:
            self.hooks.append(self._hook("test", setup.second))
        if bomb is not None:
            bomb.arm(self.trainer, TRAINER_EVENTS, "before")
        if setup.seeded == "epoch":
            self.trainer.add_event_handler(Events.EPOCH_STARTED, self._seed)
        if "before" in setup.saves:
            self._save_by_hand()
        for hook in self.hooks:
            hook.attach(self.trainer)
        self.stopper = None
        if setup.patience is not None:
            self.stopper = self.hook.early_stopping(setup.patience, metric="score")
        if "after" in setup.saves:
            self._save_by_hand()
        self.resumed = self._resume()
        if bomb is not None:
            bomb.arm(self.trainer, (*TRAINER_EVENTS, *EvalEvents), "after")
            bomb.arm(self.hook.evaluator, EVALUATOR_EVENTS, "evaluator")

    def go(self) -> Run:
        """Train to the end, or to the kill."""
        length = {"max_epochs": self.setup.epochs}
        if self.setup.max_iters is not None:
            length = {"max_iters": self.setup.max_iters}
        self.trainer.run(self.loader, **length)
        return self

    def _hook(self, name: str, options: Mapping[str, Any]) -> EvalHook:
        evaluator = create_evaluator(self.model, loss_fn=nn.functional.mse_loss)
        more: dict[str, Any] = {"save_best": "score", "rule": "greater", **options}
        return EvalHook(
            DataLoader(_samples(), batch_size=3),
            evaluator,
            out_dir=self.folder,
            derive={"score": self._from(SCORES), "loss": self._from(LOSSES)},
            name=name,
            **more,
        )

    def _from(self, table: Sequence[float]) -> Callable[[Mapping[str, Any]], float]:
        return lambda metrics: table[self.trainer.state.iteration % len(table)]

    def _train(self, engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        # By hand: autograd starts threads, and a process with threads must not be forked.
        self.trained.append(engine.state.iteration)
        if self.setup.seeded == "iteration":
            # A loader that is started again in mid-epoch gives other batches.
            torch.manual_seed(engine.state.iteration)
            batch = (torch.randn(2, 2), torch.randn(2, 2))
        x, y = batch
        with torch.no_grad():
            error = dropout(self.model(x), 0.25) - y
            self.model.weight.grad = error.T @ x / len(x)
            self.model.bias.grad = error.mean(0)
            self.optimizer.step()

    def _seed(self, engine: Engine) -> None:
        torch.manual_seed(engine.state.epoch)

    @property
    def objects(self) -> dict[str, Any]:
        """Name to object, for the user's own checkpoint."""
        objects = {"model": self.model, "optimizer": self.optimizer, "trainer": self.trainer}
        names = ["eval_hook", "test_hook"][: len(self.hooks)]
        return {**objects, **dict(zip(names, self.hooks, strict=True))}

    @property
    def own_folder(self) -> Path:
        """Where the user's own checkpoints go."""
        return self.folder / "by hand"

    def _save_by_hand(self) -> None:
        event = Events.EPOCH_COMPLETED
        if "iteration" in self.setup.saves:
            event = Events.ITERATION_COMPLETED
        saver = DiskSaver(self.own_folder, require_empty=False)
        checkpoint = Checkpoint(self.objects, saver, n_saved=None)
        self.trainer.add_event_handler(event(every=self.setup.every), checkpoint)

    def _resume(self) -> bool:
        if self.setup.saves == "last":
            objects = {"model": self.model, "optimizer": self.optimizer}
            if len(self.hooks) > 1:
                objects["test_hook"] = self.hooks[1]
            return self.hook.keep_last(objects, every=self.setup.every)
        files = sorted(self.own_folder.glob("*.pt"), key=lambda f: int(re.findall(r"\d+", f.name)[-1]))
        if not files:
            return False
        checkpoint = torch.load(files[-1], weights_only=True)
        Checkpoint.load_objects(to_load=self.objects, checkpoint=checkpoint)
        return True


TRAINER_EVENTS = (
    Events.STARTED,
    Events.EPOCH_STARTED,
    Events.GET_BATCH_STARTED,
    Events.GET_BATCH_COMPLETED,
    Events.DATALOADER_STOP_ITERATION,
    Events.ITERATION_STARTED,
    Events.ITERATION_COMPLETED,
    Events.EPOCH_COMPLETED,
    Events.TERMINATE,
    Events.COMPLETED,
)
EVALUATOR_EVENTS = (
    Events.STARTED,
    Events.ITERATION_STARTED,
    Events.ITERATION_COMPLETED,
    Events.EPOCH_COMPLETED,
    Events.COMPLETED,
)


class Bomb:
    """Counts the moments of a run, and goes off at one of them.

    Args:
        at: The moment, counted from 0; ``None`` only counts.
        kill: What happens then.
    """

    def __init__(self, at: int | None = None, kill: Callable[[], object] | None = None) -> None:
        self.at = at
        self.kill = kill
        self.seen: list[str] = []

    def arm(self, engine: Engine, events: Sequence[Any], where: str) -> None:
        """Listen to ``events``, before or after everybody who is there already."""
        for event in events:
            engine.add_event_handler(event, self._tick, f"{event.value} ({where})")

    def _tick(self, engine: Engine, moment: str) -> None:
        number = len(self.seen)
        self.seen.append(moment)
        if number != self.at:
            return
        if self.kill is not None:
            self.kill()
        raise Killed(moment)


def outcome(run: Run) -> dict[str, Any]:
    """Return all that a broken and resumed run shares with an unbroken one."""
    return {
        "weights": {k: v.tolist() for k, v in run.model.state_dict().items()},
        "momentum": [s["momentum_buffer"].tolist() for s in run.optimizer.state.values()],
        "counters": (run.trainer.state.epoch, run.trainer.state.iteration),
        "hooks": [_of_hook(run, hook) for hook in run.hooks],
        "stopper": None if run.stopper is None else dict(run.stopper.state_dict()),
        "files": files(run),
    }


def _of_hook(run: Run, hook: EvalHook) -> dict[str, Any]:
    state = hook.state_dict()
    return {
        "history": _without_seconds(state["history"]),
        "state": {**state, "history": None, "run_id": None},
        "best": _relative(run, hook.best),
        "bests": {m: [_relative(run, b) for b in bests] for m, bests in hook.bests.items()},
    }


def _relative(run: Run, best: Any) -> Any:
    path = None if best is None or best.path is None else best.path.relative_to(run.folder)
    return best if best is None else (best.metric, best.score, best.epoch, best.iteration, path)


def _without_seconds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def files(run: Run) -> dict[str, Any]:
    """Return the content of each file directly in the folder, without run ids and seconds."""
    ids = [hook.state_dict()["run_id"] for hook in run.hooks]
    found: dict[str, Any] = {}
    for path in sorted(run.folder.iterdir()):
        if path.is_dir():
            continue
        if path.name.startswith("last"):
            found[path.name] = _plain(torch.load(path, weights_only=True))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            assert {row.pop("run_id") for row in rows} <= {*ids}
            found[path.name] = _without_seconds(rows)
        elif path.suffix == ".json":
            text = path.read_text()
            assert any(id in text for id in ids)
            found[path.name] = re.sub("|".join(ids), "RUN", text)
        else:
            found[path.name] = path.read_bytes()
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items() if k not in ("seconds", "run_id")}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _samples() -> TensorDataset:
    x = torch.linspace(-1, 1, 2 * 2 * EPOCH_LENGTH).reshape(-1, 2)
    return TensorDataset(x, x.flip(1) + 0.5)
