"""Keep the "last" checkpoint, from which a broken run goes on.

It is written when every handler of the moment has run, so that schedulers attached later are in
it too, and it holds the random generators, so that shuffling and dropout go on as they would
have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from threading import Event
from typing import Any, NamedTuple, Protocol

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch import nn

from .._decide.history import History
from .._evaluate.averaged import Averages
from .._files.background import Writer
from .._files.base import failure
from .._files.best_files import DeferredSaver
from .._files.finite import follow, module_paths, not_finite
from .._files.load import load_objects, read_checkpoint
from .._files.plain import to_plain
from .._files.save_errors import SaveErrors
from .._files.snapshot import Snapshots
from .._files.storage import Storage
from .._log import logger
from .._ranks.sharded_models import check_fits, holds_state, unwrap, whole_states
from .._ranks.team import Team
from ..exceptions import CheckpointError, EvalHookError, StateError
from .random_state import RandomState, check_generators, copied

__all__: list[str] = []


class Attached(Protocol):
    """A hook of the trainer, as far as a checkpoint is concerned."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def averaged(self) -> EMAHandler | None:
        """Whose weights it evaluates."""

    @property
    def history(self) -> History:
        """All records."""

    def state_dict(self) -> dict[str, Any]:
        """Return its state."""

    def read_state(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Check a state, and return what takes it over."""


class Background(NamedTuple):
    """What is needed to write while training goes on.

    Attributes:
        writer: Does one job after another.
        state: Returns the hook's state at once; it may not know the files being written.
        complete: Lets such a state say what is on disk, in the writer's turn.
    """

    writer: Writer
    state: Callable[[], dict[str, Any]]
    complete: Callable[[dict[str, Any]], None]


ADDED = ("trainer", "eval_hook", "eval_hooks", "averaged", "random")  # to what the user names

# Ignite calls iter() next.
PASSES = (
    Events.EPOCH_STARTED, Events.DATALOADER_STOP_ITERATION, Events.TERMINATE_SINGLE_EPOCH,
)  # fmt: skip


class LastCheckpoint:
    """The last checkpoint of a run.

    Args:
        storage: Its folder.
        file: Its name.
        to_save: Name to object or plain value, as the user named them; no hooks.
        trainer: The engine that trains.
        every: Save at every so many occasions.
        hooks: Key in the file to hook: the one whose folder it is, ``"eval_hook"``, and those that
            the user has named.
        attached: Returns the hooks that are attached to the trainer by now.
        background: Write while training goes on; ``None``: at once.
        errors: What becomes of a failure to write.
        team: The ranks.  Rank 0 writes, with every rank's random generators; all read.
    """

    def __init__(
        self,
        storage: Storage,
        file: str,
        to_save: Mapping[str, Any],
        trainer: Engine,
        every: int,
        hooks: Mapping[str, Attached],
        attached: Callable[[], Iterable[Attached]],
        team: Team,
        background: Background | None,
        errors: SaveErrors,
    ) -> None:
        self._team = team
        self._storage = storage
        self._file = file
        self._to_save = dict(to_save)
        self._to_load = {name: item for name, item in to_save.items() if holds_state(item)}
        self._trainer = trainer
        self._every = every
        self._hooks = dict(hooks)
        self._attached = attached
        self._waiting: dict[str, Mapping[str, Any]] = {}  # states of hooks that are not there yet
        self._known: set[str] | None = None  # hooks in the file that was loaded
        self._averages = Averages(
            trainer, lambda: {hook.name: hook.averaged for hook in self._all()}
        )
        self._saved_at: tuple[int, int] | None = None
        self._loaded_at: tuple[int, int] | None = None
        self._random = RandomState(trainer, team.rank)
        for event in PASSES:
            trainer.add_event_handler(event, self._random.note_pass)
        self._modules = module_paths(self._to_save)
        self._odd: set[str] = set()  # weights that were not finite when the run started
        self._told_odd = False
        self._past: dict[str, tuple[Any, torch.Tensor]] = {}
        self._saver = DeferredSaver(storage)
        self._background = background
        self._errors = errors
        self._snapshots = Snapshots()
        self._written = Event()  # what the snapshot was taken for
        self._written.set()

    def resume(self) -> bool:
        """Load the file, if there is one; on every rank.

        Raises:
            StateError: If it was not written by ``keep_last``, or for other objects.
            CheckpointError: If it is damaged.
        """
        with self._team.together(f"reading {self._file}") as section:
            there = section.meet("looking", None, lambda said: self._storage.exists(self._file))
            return there and self._load()

    def _load(self) -> bool:
        checkpoint = self.read()
        if checkpoint is None:
            raise CheckpointError(
                f"rank {self._team.rank} finds no {self._storage.path(self._file)}, which rank 0 "
                "has: out_dir must be a folder that all ranks share"
            )
        where = str(self._storage.path(self._file))
        try:
            self._load_from(checkpoint, where)
        except Exception as error:
            if isinstance(error, EvalHookError) and where in str(error):
                raise
            said = str(error) if isinstance(error, EvalHookError) else repr(error)
            raise StateError(f"{where}: {said}") from error
        return True

    def _load_from(self, checkpoint: dict[str, Any], where: str) -> None:
        missing = [name for name in self._to_load if name not in checkpoint]
        if missing:
            raise StateError(
                f"{where} has no {missing}; it has {list(checkpoint)}; pass the same to_save as "
                "before, or resume=False"
            )
        for name, item in self._to_load.items():
            if isinstance(item, nn.Module):
                check_fits(item, checkpoint[name], f"{where}: {name!r}")
        # What may be refused comes first, and then nothing has changed.
        averages, states = checkpoint.get("averaged", []), hook_states(checkpoint)
        self._averages.check(averages, where)
        keys: Any = {id(hook): key for key, hook in self._hooks.items()}
        take_over = []
        for hook in self._all():
            state = checkpoint.get(keys.get(id(hook)), states.get(hook.name))
            if state is not None:
                take_over.append(hook.read_state(state))
        self._known = set(states)
        self._waiting = {n: s for n, s in states.items() if n not in [h.name for h in self._all()]}
        for take in take_over:
            take()
        load_objects(self._to_load, checkpoint, where)
        load_trainer(self._trainer, checkpoint["trainer"])
        self._averages.load(averages, self._to_save.values(), where)
        if "random" in checkpoint:
            self._random.load_state_dict(checkpoint["random"])
        self._loaded_at = self._now()

    def _all(self) -> list[Attached]:
        """Return the hooks that the file is about: those named, and those attached by now."""
        return list({id(h): h for h in (*self._hooks.values(), *self._attached())}.values())

    def give(self, hook: Attached) -> None:
        """Let a hook that is attached now have the loaded state that waits for it.

        Raises:
            StateError: If it belongs to another metric or rule, or is damaged.
        """
        if hook.name in self._waiting:
            hook.read_state(self._waiting[hook.name])()
            del self._waiting[hook.name]

    def bring_back(self) -> None:
        """Complete a load when a run starts, with all that was attached meanwhile."""
        self._averages.started()
        known, self._known = self._known, None
        if known is None:
            return
        new = sorted(h.name for h in self._all() if h.name not in known and not h.history)
        if self._waiting:
            logger.warning(
                "%s: no hook %s is attached, of which %s has the state: its history and best do "
                "not go on, and the next save leaves it out", self._hooks["eval_hook"].name,
                " or ".join(map(repr, sorted(self._waiting))), self._file,
            )  # fmt: skip
        if new:
            logger.warning(
                "%s: %s has no state of the hook %s, which starts with an empty history; one that "
                "was renamed goes on under its old name=", self._hooks["eval_hook"].name,
                self._file, " and ".join(map(repr, new)),
            )  # fmt: skip

    def read(self) -> dict[str, Any] | None:
        """Return the content of the file; ``None`` if there is none.

        Raises:
            StateError: If it was not written by ``keep_last``, which must not replace it then.
            CheckpointError: If it is damaged.
        """
        if not self._storage.exists(self._file):
            return None
        advice = "move it away or use another out_dir"
        try:
            checkpoint = read_checkpoint(self._storage, self._file)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {advice}") from error
        where = str(self._storage.path(self._file))
        if "eval_hook" not in checkpoint or "trainer" not in checkpoint:
            raise StateError(f"{where} was not written by keep_last(); {advice}")
        try:
            for state in (*checkpoint.values(), *checkpoint.get("eval_hooks", {}).values()):
                unpack(state, where)
            check_content(checkpoint)
        except EvalHookError:
            raise
        except Exception as error:
            raise StateError(f"{where} is damaged: {error!r}; {advice}") from error
        return checkpoint

    def refuse_foreign(self) -> None:
        """Refuse a file of that name that is not ours to replace; on every rank.

        Raises:
            StateError: If it was not written by ``keep_last``.
            CheckpointError: If it is damaged.
        """
        with self._team.together(f"looking at {self._file}"):
            if self._team.leads:
                self.read()

    def close(self) -> None:
        """Stop listening."""
        for event in PASSES:
            self._trainer.remove_event_handler(self._random.note_pass, event)

    def started(self) -> None:
        """Note that a run starts: the random generators go on from the loaded state."""
        self._saved_at, self._loaded_at = self._loaded_at, None
        modules = ((path, unwrap(follow(self._to_save, path))) for path in self._modules)
        weights = {".".join(map(str, path)): module.state_dict() for path, module in modules}
        self._odd, self._told_odd = not_finite(weights), False
        self._after(Events.STARTED, self._restore_random)

    def occasion(self, event: Any, number: int) -> None:
        """Save after the handlers of ``event``, if it is the turn of occasion ``number``."""
        if number % self._every == 0:
            self._after(event, self._save)

    def ended(self, event: Any) -> None:
        """Save after the handlers of ``event``, unless the file holds this very state then."""
        self._after(event, self._save_if_changed)

    def _after(self, event: Any, handler: Callable[[Engine, Any], None]) -> None:
        # A handler added while an event is being fired runs at the end of that very firing.
        if not self._trainer.has_event_handler(handler, event):
            self._trainer.add_event_handler(event, handler, event)

    def _restore_random(self, engine: Engine, event: Any) -> None:
        engine.remove_event_handler(self._restore_random, event)
        self._random.restore()

    def _save_if_changed(self, engine: Engine, event: Any) -> None:
        engine.remove_event_handler(self._save_if_changed, event)
        if self._saved_at != self._now():
            self._save(engine, event)

    def _save(self, engine: Engine, event: Any) -> None:
        if engine.has_event_handler(self._save, event):
            engine.remove_event_handler(self._save, event)
        with self._team.together(f"writing {self._file}") as section:
            # In the background, the hook's state waits for no file; it is completed in its turn.
            late = self._background
            is_written = True
            added = {"trainer": self._trainer, "averaged": self._averages.models()}
            with whole_states({**self._to_save, **added}, self._team) as states:
                averaged = self._averages.states(states.pop("averaged"))
                if averaged:
                    states["averaged"] = averaged
                hooks = {key: h for key, h in self._hooks.items() if key != "eval_hook" or not late}
                states.update((key, self._packed(hook.state_dict())) for key, hook in hooks.items())
                others = [hook for hook in self._attached() if hook not in self._hooks.values()]
                if others:
                    states["eval_hooks"] = {h.name: self._packed(h.state_dict()) for h in others}
                everyone: list[Any] = []
                own = None if self._team.alone else self._random.state_dict()
                section.meet("random generators", own, everyone.extend)
                if self._team.leads:
                    random_state = {**self._random.state_dict(), "ranks": copied(everyone[1:])}
                    content = {**states, "random": random_state}
                    if late is None:
                        is_written = self._write(content)
                    else:
                        self._write_late(late, content)
            # All ranks alike try again at the end of the run.
            is_written = section.close(None, lambda said: is_written)
        if is_written:
            self._saved_at = self._now()

    def _write_late(self, late: Background, content: dict[str, Any]) -> None:
        """Copy now, and write when the best files of this moment are there."""
        self._written.wait()  # the memory that copies are made into is still in use
        try:
            copied = self._snapshots.take(to_plain(content, "to_save"))
        except Exception as error:
            raise failure(f"could not copy what {self._file} is to hold", error) from error
        state = late.state()

        def write() -> None:
            self._snapshots.wait()
            late.complete(state)
            self._write({**copied, "eval_hook": self._packed(state)})

        self._written = late.writer.submit(write)

    def _write(self, content: dict[str, Any]) -> bool:
        """Replace the file, unless weights have become NaN or infinite in this run.

        The optimizer is not looked at: what is not finite there makes its weights so.
        """
        weights = {".".join(map(str, path)): follow(content, path) for path in self._modules}
        for state in content.get("averaged", ()):
            weights[f"averaged {state['name']}"] = state["model"]
        odd = sorted(not_finite(weights) - self._odd)
        if not odd:
            return self._put(content)
        if not self._told_odd:
            self._told_odd = True
            state = content["eval_hook"]
            logger.warning(
                "%s: weights are not finite at epoch %d (iteration %d): %s; %s is not replaced by "
                "them, so a restart goes on from before", state["name"], state["epoch"],
                state["iteration"], ", ".join(odd[:3]) + ", …" * (len(odd) > 3), self._file,
            )  # fmt: skip

        return True

    def _put(self, content: Mapping[str, Any]) -> bool:
        """Write the file, and return whether that was done; a failure may be no error."""
        try:
            self._saver(content, self._file)
        except CheckpointError as error:
            self._errors.failed(self._file, error)
            return False
        self._errors.written(self._file)
        return True

    def _packed(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a hook's state with the long past of its history as the bytes of a text.

        A file takes a tensor as it is; strings of megabytes would be copied several times.
        """
        past = [item for item in state["history"] if isinstance(item, str)]
        if not past:
            return state
        key = (state["run_id"], len(past))
        if self._past.get(state["name"], (None,))[0] != key:
            text = bytearray("\n".join(past).encode())
            self._past[state["name"]] = (key, torch.frombuffer(text, dtype=torch.uint8))
        rest = state["history"][len(past) :]
        return {**state, "history": [self._past[state["name"]][1], *rest]}

    def _now(self) -> tuple[int, int]:
        return self._trainer.state.iteration, sum(len(hook.history) for hook in self._all())


def unpack(state: Any, where: str) -> None:
    """Make the past of a hook's history strings again, in place; leave anything else alone.

    Raises:
        CheckpointError: If it is damaged.
    """
    history = state.get("history") if isinstance(state, Mapping) else None
    if isinstance(history, list) and history and isinstance(history[0], torch.Tensor):
        try:
            history[:1] = bytes(history[0].tolist()).decode().split("\n")
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{where} is damaged: a history in it is no text") from error


def hook_states(checkpoint: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the states of all hooks in a checkpoint by the hooks' names, whatever their keys."""
    items = (*checkpoint.values(), *checkpoint.get("eval_hooks", {}).values())
    return {
        str(item["name"]): item
        for item in items
        if isinstance(item, Mapping) and {"name", "run_id", "history"} <= item.keys()
    }


def load_trainer(trainer: Engine, state: Mapping[str, Any]) -> None:
    """Load a trainer whose epochs may have had different lengths.

    Ignite reckons the epoch from the last one's, and may refuse what it finds.
    """
    length, limit = state.get("epoch_length"), state.get("max_epochs")
    if length and limit is not None and state.get("iteration", 0) > length * limit:
        trainer.load_state_dict({**state, "max_epochs": None})
        trainer.state.max_epochs = limit
    else:
        trainer.load_state_dict(state)


def check_content(checkpoint: Mapping[str, Any]) -> None:
    """Refuse what :meth:`LastCheckpoint.read` has found, if a run could not go on from it.

    Raises:
        Exception: Whatever is wrong with it.
    """
    for key in ("epoch_length", "max_epochs", "max_iters", "iteration", "epoch"):
        count = checkpoint["trainer"].get(key, 0)
        if count is not None and not (isinstance(count, int) and 0 <= count < 2**53):
            raise ValueError(f"{key} of the trainer is {count!r:.80}")
    if not isinstance(checkpoint["eval_hook"], Mapping):
        raise TypeError(f"the hook's state is {checkpoint['eval_hook']!r:.80}")
    if "random" in checkpoint:
        check_generators(checkpoint["random"])
