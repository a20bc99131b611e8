"""Keep the "last" checkpoint, from which a broken run goes on.

It is written when every handler of the moment has run, so that schedulers attached later are in
it too, and it holds the random generators, so that shuffling and dropout go on as they would
have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Event
from typing import Any, NamedTuple

import torch
from ignite.engine import Engine, Events
from torch import nn

from ._best_files import DeferredSaver
from ._load_best import load_objects, read_checkpoint
from ._plain import to_plain
from ._random_state import RandomState, copied
from ._snapshot import Snapshots
from ._storage import Storage
from ._storage_base import failure
from ._team import Team
from ._whole_state import unwrap, whole_states
from ._writer import Writer
from .exceptions import CheckpointError, StateError

__all__: list[str] = []


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


# Ignite calls iter() next.
PASSES = (
    Events.EPOCH_STARTED, Events.DATALOADER_STOP_ITERATION, Events.TERMINATE_SINGLE_EPOCH,
)  # fmt: skip


class LastCheckpoint:
    """The last checkpoint of a run.

    Args:
        storage: Its folder.
        file: Its name.
        to_save: Name to object; the trainer and the hook are among them.
        trainer: The engine that trains.
        every: Save at every so many occasions.
        version: Tells whether anything but the trainer's counters has changed.
        background: Write while training goes on; ``None``: at once.
        team: The ranks.  Rank 0 writes, with every rank's random generators; all read.
    """

    def __init__(
        self,
        storage: Storage,
        file: str,
        to_save: Mapping[str, Any],
        trainer: Engine,
        every: int,
        version: Callable[[], int],
        team: Team,
        background: Background | None = None,
    ) -> None:
        self._team = team
        self._storage = storage
        self._file = file
        self._to_save = dict(to_save)
        self._trainer = trainer
        self._every = every
        self._version = version
        self._saved_at: tuple[int, int] | None = None
        self._loaded_at: tuple[int, int] | None = None
        self._random = RandomState(trainer, team.rank)
        for event in PASSES:
            trainer.add_event_handler(event, self._random.note_pass)
        self._saver = DeferredSaver(storage)
        self._background = background
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
        missing = [name for name in self._to_save if name not in checkpoint]
        if missing:
            raise StateError(
                f"{where} has no {missing}; it has {list(checkpoint)}; pass the same to_save as "
                "before, or resume=False"
            )
        for name, item in self._to_save.items():
            if isinstance(item, nn.Module):
                check_fits(item, checkpoint[name], f"{where}: {name!r}")
        # The hook first: it is the one that may refuse, and then nothing else has changed.
        names = sorted(self._to_save, key=lambda name: name != "eval_hook")
        to_load = {name: self._to_save[name] for name in names if name != "trainer"}
        load_objects(to_load, checkpoint, where)
        load_trainer(self._trainer, checkpoint["trainer"])
        if "random" in checkpoint:
            self._random.load_state_dict(checkpoint["random"])
        self._loaded_at = self._now()
        return True

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
        if "eval_hook" not in checkpoint or "trainer" not in checkpoint:
            where = self._storage.path(self._file)
            raise StateError(f"{where} was not written by keep_last(); {advice}")
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
        self._after(Events.STARTED, self._restore_random)

    def occasion(self, event: Any, number: int) -> None:
        """Save after the handlers of ``event``, if it is the turn of occasion ``number``."""
        if number % self._every == 0:
            self._after(event, self._save)

    def ended(self, event: Any) -> None:
        """Save after the handlers of ``event``, unless the file holds this very state."""
        if self._saved_at != self._now():
            self._after(event, self._save)

    def _after(self, event: Any, handler: Callable[[Engine, Any], None]) -> None:
        # A handler added while an event is being fired runs at the end of that very firing.
        if not self._trainer.has_event_handler(handler, event):
            self._trainer.add_event_handler(event, handler, event)

    def _restore_random(self, engine: Engine, event: Any) -> None:
        engine.remove_event_handler(self._restore_random, event)
        self._random.restore()

    def _save(self, engine: Engine, event: Any) -> None:
        engine.remove_event_handler(self._save, event)
        with self._team.together(f"writing {self._file}") as section:
            # In the background, the hook's state waits for no file; it is completed in its turn.
            late = self._background
            to_save = {n: o for n, o in self._to_save.items() if n != "eval_hook" or late is None}
            states = whole_states(to_save, self._team)
            everyone: list[Any] = []
            own = None if self._team.alone else self._random.state_dict()
            section.meet("random generators", own, everyone.extend)
            if self._team.leads:
                random_state = {**self._random.state_dict(), "ranks": copied(everyone[1:])}
                content = {**states, "random": random_state}
                if late is None:
                    self._saver(content, self._file)
                else:
                    self._write_late(late, content)
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
            self._saver({**copied, "eval_hook": state}, self._file)

        self._written = late.writer.submit(write)

    def _now(self) -> tuple[int, int]:
        return self._trainer.state.iteration, self._version()


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


def check_fits(module: nn.Module, state: Any, where: str) -> None:
    """Refuse a state whose names or shapes are not the module's, before anything is loaded.

    Raises:
        StateError: Naming what differs.
    """
    own = unwrap(module).state_dict()
    if not isinstance(state, Mapping):
        raise StateError(f"{where} is a {type(state).__name__}, no state of a module")
    differing = sorted(set(own) ^ set(state)) or [
        name
        for name, value in own.items()
        if isinstance(value, torch.Tensor)
        and isinstance(state[name], torch.Tensor)
        and value.shape != state[name].shape
    ]
    if differing:
        raise StateError(f"{where} does not fit the module; these differ: {differing[:5]}")
