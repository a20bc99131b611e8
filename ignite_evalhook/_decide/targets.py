"""Know which metrics are followed, also where ``"auto"`` has yet to choose one.

Names and rules only: no torch, no engine, no disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..exceptions import StateError
from .best import Target, as_score
from .nested import flat
from .rules import Rule

__all__: list[str] = []

AUTO = "auto"


class Targets:
    """The metrics that ``save_best`` names.

    Args:
        wanted: Metric to number of files; ``{"auto": n}``; empty to follow nothing.
        make_target: Finds the rule of a metric; raises ``RuleInferenceError``.

    Attributes:
        now: Those that are followed; none before ``"auto"`` has chosen.
        auto: Whether the first scalar of a result is to be followed.
    """

    def __init__(
        self, wanted: Mapping[str, int | None], make_target: Callable[[str, int | None], Target]
    ) -> None:
        self.wanted = dict(wanted)
        self.auto = AUTO in self.wanted
        self._make_target = make_target
        self.now: tuple[Target, ...] = ()
        if not self.auto:
            self.now = tuple(make_target(metric, n) for metric, n in self.wanted.items())

    def get(self, metric: str | None = None) -> Target:
        """Return the followed metric of that name, or the first one.

        Raises:
            ValueError: If it is not followed, or (for the first) nothing is.
        """
        if metric is None:
            if not self.now:
                why = "is not resolved yet" if self.auto else "names no metric"
                raise ValueError(f"no metric is followed: save_best {why}; pass metric=")
            return self.now[0]
        for target in self.now:
            if target.metric == metric:
                return target
        raise ValueError(
            f"{metric!r} is not followed; save_best names {[t.metric for t in self.now]}"
        )

    def would_choose(self, metrics: Mapping[str, Any], order: Iterable[str]) -> Target | None:
        """Return what ``"auto"`` chooses, the first scalar in ``order``; ``None`` without any.

        Raises:
            RuleInferenceError: If its name does not tell the rule.
        """
        ordered = {name: metrics[name] for name in order if name in metrics}
        numbers = (name for name, value in flat(ordered).items() if as_score(value) is not None)
        metric = next(numbers, None)
        return None if metric is None else self._chosen(metric)

    def adopt(self, metric: str | None) -> None:
        """Take over what ``"auto"`` has chosen on the deciding rank."""
        if metric is not None and not self.now and self.auto:
            self.now = (self._chosen(metric),)

    def _chosen(self, metric: str) -> Target:
        return self._make_target(metric, self.wanted[AUTO])

    def forget(self) -> None:
        """Forget what ``"auto"`` has chosen."""
        if self.auto:
            self.now = ()

    def state(self) -> dict[str, Any]:
        """Return names and rules as plain values."""
        return {"auto": self.auto, "targets": [[t.metric, t.rule.value] for t in self.now]}

    def check_state(self, state: Mapping[str, Any], name: str) -> None:
        """Refuse a state that followed other metrics or another rule.

        Args:
            state: What :meth:`state` returned.
            name: The hook's name, for messages.

        Raises:
            StateError: With words.
        """
        theirs = [(str(metric), Rule(rule)) for metric, rule in state["targets"]]
        ours = [] if self.auto else [(t.metric, t.rule) for t in self.now]
        if self.auto and state["auto"]:
            theirs = []
        if theirs == ours or (not theirs and state["auto"] == self.auto):
            return
        raise StateError(
            f"the state of {name!r} followed {_words(theirs) or 'nothing'}, this hook follows "
            f"{_words(ours) or 'nothing'}; call hook.reset() first to forget that history and best"
        )

    def read_state(self, state: Mapping[str, Any]) -> tuple[Target, ...]:
        """Return what a state followed, after :meth:`check_state`; change nothing.

        Raises:
            StateError: If the rule found for ``"auto"`` is another one.
            Exception: If the state is damaged.
        """
        if not self.auto:
            return self.now
        if not state["targets"]:
            return ()
        metric, rule = state["targets"][0]
        target = self._chosen(metric)
        if target.rule is not Rule(rule):
            raise StateError(f"the state's rule for {metric!r} was {rule!r}")
        return (target,)


def _words(targets: Sequence[tuple[str, Rule]]) -> str:
    return ", ".join(f"{metric} ({rule.value})" for metric, rule in targets)
