"""Tell who listens what a hook does: the events it fires on the trainer, and its own listeners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, EventEnum

from .._decide.history import EvalRecord
from .._evaluate.one_pass import fire

__all__ = ["EvalEvents", "Handler"]

Handler = Callable[[Any], Any]  # of a record; of None on EVAL_STARTED


class EvalEvents(EventEnum):
    """Events that a hook fires on the trainer; ``trainer.state.eval_hook`` is the sender.

    They count per hook, so ``EvalEvents.EVAL_COMPLETED(every=2)`` works.
    """

    EVAL_STARTED = "eval_started"
    EVAL_COMPLETED = "eval_completed"
    NEW_BEST = "new_best"


EVENT_TO_ATTR = {event: f"{event.value}_count" for event in EvalEvents}


class Speaker:
    """What fires the events of one hook.

    Args:
        sender: The hook, for ``trainer.state.eval_hook``.

    Attributes:
        listeners: Events, filtered or not, and functions of a record that hear this hook only.
    """

    def __init__(self, sender: object) -> None:
        self.listeners: list[tuple[Any, Handler]] = []
        self._sender = sender

    @staticmethod
    def prepare(trainer: Engine) -> None:
        """Make the events known to an engine."""
        trainer.register_events(*EvalEvents, event_to_attr=EVENT_TO_ATTR)

    def fire(
        self, trainer: Engine, event: EvalEvents, record: EvalRecord | None, count: int
    ) -> None:
        """Call this hook's listeners, and then the trainer's handlers.

        Args:
            trainer: The engine to fire on.
            event: The event.
            record: What listeners get.
            count: How many times this hook has fired it, this time included.
        """
        state: Any = trainer.state
        attribute = EVENT_TO_ATTR[event]
        outer = (getattr(state, "eval_hook", None), getattr(state, attribute, 0))

        def sign(sender: object, count: int) -> None:
            state.eval_hook = sender
            setattr(state, attribute, count)

        last_event_name = trainer.last_event_name  # others read it in the same firing
        try:
            for wanted, handler in list(self.listeners):
                chosen = getattr(wanted, "filter", None)
                if wanted == event and (chosen is None or chosen(trainer, count)):
                    sign(self._sender, count)  # each time: a handler may make another hook fire
                    handler(record)
            sign(self._sender, count)
            fire(trainer, event)
        finally:
            trainer.last_event_name = last_event_name
            if isinstance(last_event_name, EvalEvents):  # fired inside another hook's event
                sign(*outer)
