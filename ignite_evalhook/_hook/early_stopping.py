"""Stop early, and be right about it.

Ignite's ``EarlyStopping`` takes NaN for an improvement, and with a relative threshold and
negative scores it accepts ever worse ones.  :class:`SafeEarlyStopping` is that handler with its
judgement mended.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

from ignite.engine import Engine
from ignite.handlers import EarlyStopping

from .._log import logger

__all__: list[str] = []

OPTIONS = ("threshold", "threshold_mode", "cumulative", "min_delta", "cumulative_delta")


class SafeEarlyStopping(EarlyStopping):
    """Ignite's handler, where only a finite, strictly better score is an improvement.

    The hook calls it after each evaluation.  ``patience``, ``threshold``, ``threshold_mode`` and
    ``cumulative`` may be changed while training runs.

    Args:
        patience: Evaluations without improvement after which training stops.
        score_function: Score of an engine, signed so that higher is better.
        trainer: The engine to stop; may be set later.
        threshold: Smallest change that counts, in units of the score (``"abs"``) or as a
            fraction of the best score's magnitude (``"rel"``).
        threshold_mode: ``"abs"`` or ``"rel"``.
        cumulative: Measure the change from the score at the last improvement rather than from
            the best seen since.

    Attributes:
        counter: Evaluations without improvement so far.
        best_score: The score to improve on, signed so that higher is better; ``None`` before the
            first.

    Raises:
        ValueError: If an option is out of range.

    Source:
        Options and state are those of Ignite 0.5.5; they work with older versions too.
    """

    def __init__(
        self,
        patience: int,
        score_function: Callable[[Engine], float],
        trainer: Engine,
        *,
        threshold: float = 0.0,
        threshold_mode: Literal["abs", "rel"] = "abs",
        cumulative: bool = False,
    ) -> None:
        if type(patience) is not int or patience < 1:
            raise ValueError(f"patience must be a positive integer, got {patience!r}")
        if not isinstance(threshold, (int, float)) or not 0 <= threshold < math.inf:
            raise ValueError(f"threshold must be a finite number >= 0, got {threshold!r}")
        if threshold_mode not in ("abs", "rel"):
            raise ValueError(f"threshold_mode must be 'abs' or 'rel', got {threshold_mode!r}")
        super().__init__(patience, score_function, trainer)
        self.threshold, self.threshold_mode = float(threshold), threshold_mode
        self.cumulative = bool(cumulative)
        older = {"min_delta": self.threshold, "min_delta_mode": threshold_mode,
                 "cumulative_delta": self.cumulative}  # fmt: skip
        # Ignite 0.5.5 answers to these names by itself, with a warning.
        vars(self).update({name: older[name] for name in older if name in vars(self)})

    def __call__(self, engine: Engine) -> None:
        """Count one evaluation; terminate the trainer when patience is exhausted."""
        score = self.score_function(engine)
        best = self.best_score
        if math.isfinite(score) and (best is None or score > best + self._margin(best)):
            self.best_score = score
            self.counter = 0
            return
        if best is not None and math.isfinite(score) and not self.cumulative:
            self.best_score = max(score, best)
        self.counter += 1
        if self.exhausted:
            logger.info("early stopping: %d evaluations without improvement", self.counter)
            self.trainer.terminate()

    def attach(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to be called by an engine too, which would count each evaluation twice.

        Raises:
            ValueError: With words.
        """
        raise ValueError("the hook that made this early stopping calls it; do not attach it")

    def __repr__(self) -> str:
        names = ("patience", "threshold", "threshold_mode", "cumulative", "counter", "best_score")
        return f"EarlyStopping({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @property
    def exhausted(self) -> bool:
        """Whether training has to stop."""
        return bool(self.counter >= self.patience)

    def _margin(self, best: float) -> float:
        return self.threshold * (abs(best) if self.threshold_mode == "rel" else 1.0)

    def state_dict(self) -> OrderedDict[str, Any]:
        """Return counter and best score."""
        return OrderedDict(counter=self.counter, best_score=self.best_score)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over counter and best score; patience and thresholds stay as constructed."""
        self.counter = int(state_dict["counter"])
        self.best_score = state_dict["best_score"]

    def renew(self) -> None:
        """Count anew if patience was exhausted; the best score stays."""
        if self.exhausted:
            self.counter = 0

    def reset(self) -> None:
        """Forget counter and best score."""
        self.counter = 0
        self.best_score = None


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return Ignite's options under their present names.

    Raises:
        TypeError: If there is an unknown one.
    """
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise TypeError(f"early_stopping has no option {unknown}; there are {list(OPTIONS)}")
    renamed = {"min_delta": "threshold", "cumulative_delta": "cumulative"}
    return {renamed.get(name, name): value for name, value in options.items()}
