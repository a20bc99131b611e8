"""Remember the run that a hook takes part in, also over a restart.

What is remembered is compared with a trainer's counters (any object that has them).  Nothing is
evaluated here, and no file is touched.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..exceptions import StateError
from .history import History
from .position import Position, total_iterations

__all__: list[str] = []

STATE_VERSION = 1


class RunState(NamedTuple):
    """What a checkpoint says of a run: its name, its evaluations, and how far it had come.

    Attributes:
        id: The run's name.
        history: Its evaluations.
        epoch: The epoch under way or just completed, 1-based.
        iteration: Completed iterations.
        epochs: Completed epochs.
        into: Completed iterations of the epoch under way; 0 where it is completed, ``None`` where
            nobody has counted them, and then ``epochs`` says nothing.
        batches: How many the training data had, if they told.
    """

    id: str
    history: History
    epoch: int
    iteration: int
    epochs: int = 0
    into: int | None = None
    batches: int | None = None

    @classmethod
    def read(cls, state: Mapping[str, Any], name: str) -> RunState:
        """Read what :meth:`Run.state` returned.

        Args:
            state: The state.
            name: The name of the hook that it has to be of.

        Raises:
            StateError: If it is of another version or another hook.
            Exception: If it is damaged.
        """
        if state["version"] != STATE_VERSION:
            raise StateError(f"the state has version {state['version']!r}, not {STATE_VERSION}")
        if state["name"] != name:
            raise StateError(f"the state is of the hook {state['name']!r}, this one is {name!r}")
        history = History.from_list(state["history"])
        epochs, into = state.get("epochs", 0), state.get("into")  # older states have none
        for key, kind in (("run_id", str), ("epoch", int), ("iteration", int)):
            if not isinstance(state[key], kind):
                raise ValueError(f"{key} is {state[key]!r}")
        batches = state.get("batches")
        for key, count in (("epochs", epochs), ("into", into), ("batches", batches)):
            if not (type(count) is int and count >= 0) and (count is not None or key == "epochs"):
                raise ValueError(f"{key} is {count!r}")
        at = (state["epoch"], state["iteration"], epochs, into)
        return cls(state["run_id"], history, *at, batches)


class Run:
    """A run, as one hook knows it.

    Attributes:
        id: Its name.
        history: Its evaluations.
        loaded: The state it goes on from, until that is compared with the trainer.
        is_known: Whether the hook knows its past; not if it is new, or taken over.
        has_begun: Whether what its start asks for is done, such as owning the folder.
        has_run: Whether the trainer has run in it.
        batches: How many the training data have, if they tell.
    """

    def __init__(self) -> None:
        self.start_over()

    def start_over(self, state: RunState | None = None) -> None:
        """Be another run: a new one, or the one of a state."""
        self.id = uuid.uuid4().hex[:12]  # from the system, not from a seeded generator
        self.history = History()
        self.loaded = state
        self.is_known = state is not None
        self.has_begun = False
        self.has_run = False
        self.batches = None if state is None else state.batches
        if state is not None:
            self.id, self.history = state.id, state.history

    @property
    def is_under_way(self) -> bool:
        """Whether the trainer's run has begun for the hook, which may have been away meanwhile."""
        return self.has_run and self.has_begun

    def reaches(self) -> int:
        """Return the iteration of the last evaluation; 0 if there is none."""
        return self.history[-1].iteration if self.history else 0

    def check_reached(self, iteration: int) -> None:
        """Refuse a trainer that is not as far as the history.

        Raises:
            StateError: With words.
        """
        if self.reaches() > iteration:
            raise StateError(
                f"the hook's history reaches iteration {self.reaches()}, the trainer "
                f"stands at {iteration}: load the hook's state with the trainer's, or reset() it"
            )

    def standing(self, iteration: int) -> str:
        """Say where this rank stands, in words that have to be the same on every one."""
        run = f"the run {self.id}" if self.is_known or self.has_begun else "a new run"
        when = "under way" if self.has_begun else "to be started"
        return f"iteration {iteration} with {len(self.history)} records of {run}, {when}"

    def state(self, name: str, at: Position) -> dict[str, Any]:
        """Return the run as plain values.

        Args:
            name: The hook's name.
            at: Where training stands.
        """
        here: Any = at
        if self.loaded is not None and self.loaded.iteration > at.iteration:
            here = self.loaded  # the trainer is still to be loaded
        return {
            "version": STATE_VERSION,
            "name": name,
            "run_id": self.id,
            "epoch": at.epoch,
            "iteration": max(here.iteration, self.reaches()),
            "epochs": here.epochs,
            "into": here.into,
            "batches": self.batches,
            "history": self.history.to_list(),
        }


def had_ended(loaded: RunState, trainer_state: Any, *, at_start: bool) -> bool:
    """Return whether Ignite starts a run again that had ended when its state was taken.

    Args:
        loaded: How far the hook's state had come.
        trainer_state: The trainer's counters; Ignite begins again from iteration 0.
        at_start: Whether the trainer is starting.

    Raises:
        StateError: If the trainer is behind for any other reason.
    """
    here = trainer_state.iteration
    if here >= loaded.iteration:
        return False
    total, epochs = total_iterations(trainer_state), trainer_state.max_epochs
    if at_start and here == 0:
        known = loaded.into is not None and epochs is not None
        if (total is not None and loaded.iteration >= total) or (known and loaded.epochs >= epochs):
            return True
    raise StateError(
        f"the hook's state is of iteration {loaded.iteration}, but the trainer stands at {here}; "
        "load the trainer's state from the same checkpoint, or call hook.reset() to start counting "
        "anew"
    )


def put_back(loaded: RunState, trainer_state: Any) -> None:
    """Let the counters of a trainer stand where a run had ended."""
    length = trainer_state.epoch_length
    trainer_state.iteration = loaded.iteration
    if loaded.into is not None:
        trainer_state.epoch = loaded.epochs + int(loaded.into > 0)
    else:
        trainer_state.epoch = math.ceil(loaded.iteration / length) if length else loaded.epoch
    if trainer_state.max_epochs is not None:
        trainer_state.max_epochs = max(trainer_state.max_epochs, trainer_state.epoch)


def check_same_standing(said: Sequence[Any]) -> str:
    """Refuse ranks of which one has another state, and return the run's name.

    Args:
        said: The standing and the run's name, of each rank, and what else it says.

    Raises:
        StateError: Naming the rank.
    """
    first = said[0][0]
    for rank, (standing, *_) in enumerate(said):
        if standing != first:
            raise StateError(
                f"rank {rank} stands at {standing}; rank 0 at {first}: load the same checkpoint "
                "on every rank, or on none"
            )
    return str(said[0][1])
