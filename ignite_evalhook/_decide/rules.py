"""Decide whether a greater or a smaller score is better.

A metric arrives as a name and a number, and only the name tells which of two numbers is
better.  This module turns the name into a :class:`Rule`: no state, no torch, no engine.  It
never guesses: a name that could mean both, or says nothing, is an error that asks for ``rule=``.

Source:
    The order of matching and the default keys are those of ``EvalHook`` in MMCV 1.x
    (open-mmlab/mmcv#739; case-insensitive since #1076); words in place of substrings, the
    names of our field and the words that cast doubt are ours.  The code is our own.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from enum import Enum
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

from ..exceptions import RuleInferenceError
from .metric_names import (
    AFTER,
    BEFORE,
    DEFAULT_GREATER_KEYS,
    DEFAULT_LESS_KEYS,
    DOUBTS,
    GREATER_WORDS,
    LESS_WORDS,
    PRESETS,
)

__all__ = [
    "DEFAULT_GREATER_KEYS",
    "DEFAULT_LESS_KEYS",
    "GREATER_WORDS",
    "LESS_WORDS",
    "PRESETS",
    "Rule",
    "check_keys",
    "infer_rule",
    "match_rule",
]


class Rule(str, Enum):
    """Direction of improvement: ``Rule("greater")`` or ``Rule("less")``."""

    GREATER = "greater"
    LESS = "less"

    @classmethod
    def _missing_(cls, value: object) -> Rule:
        raise ValueError(f"rule must be 'greater' or 'less', got {value!r}")

    def __str__(self) -> str:
        return self.value

    def is_better(self, score: float, best: float | None) -> bool:
        """Return whether ``score`` strictly improves on ``best`` (``None``: nothing yet).

        A NaN or infinite ``score`` never does, so a diverged epoch is never kept; a ``best``
        that is NaN or infinite counts as nothing yet, so it cannot stay for ever.
        """
        if best is None:
            return math.isfinite(score)
        return self.signed(score) > self.signed(best)

    def signed(self, score: float) -> float:
        """Return ``score`` signed so that higher is better; NaN and infinity become ``-inf``.

        Anything that ``float()`` takes is a score, NumPy scalars and 0-d tensors included.
        """
        score = float(score)
        if not math.isfinite(score):
            return -math.inf
        return score if self is Rule.GREATER else -score


def check_keys(keys: Iterable[str], argument: str) -> tuple[str, ...]:
    """Return ``keys`` as a tuple, one string as one key; an error names ``argument``.

    Raises:
        TypeError: If ``keys`` is no iterable, or an item is no string.
        ValueError: If a key holds no letter and no digit, since it would match anything.
    """
    if isinstance(keys, bytes) or not isinstance(keys, Iterable):
        raise TypeError(f"{argument} must be a list or tuple of strings, got {keys!r}")
    checked = (keys,) if isinstance(keys, str) else tuple(keys)
    for key in checked:
        if not isinstance(key, str):
            raise TypeError(f"{argument} must hold only strings, got {key!r}")
        if not any(map(str.isalnum, key)):
            raise ValueError(f"{argument} must hold keys with a letter or a digit, got {key!r}")
    return checked


def infer_rule(
    name: str,
    greater_keys: Iterable[str] = DEFAULT_GREATER_KEYS,
    less_keys: Iterable[str] = DEFAULT_LESS_KEYS,
    *,
    preset: str | None = None,
) -> Rule:
    """Infer the rule for the metric called ``name``, ignoring case.

    The first of these that finds something decides: the name is a key; a whole word of the name
    is a key, or one of the names of our field; a key is a part of a word, beside parts that are
    known to change nothing.

    Args:
        name: The metric's name as it stands in the results, such as ``"coco/bbox_mAP_50"``.
        greater_keys: Keys of metrics that improve upwards; they replace the default ones.
        less_keys: Keys of metrics that improve downwards; they replace the default ones.
        preset: Add the keys of a project: ``"mmpose"``, say.

    Raises:
        RuleInferenceError: If nothing decides, or both directions are found.
        ValueError: If there is no such preset.
    """
    return match_rule(name, greater_keys, less_keys, preset=preset)[0]


def match_rule(
    name: str,
    greater_keys: Iterable[str] = DEFAULT_GREATER_KEYS,
    less_keys: Iterable[str] = DEFAULT_LESS_KEYS,
    *,
    preset: str | None = None,
) -> tuple[Rule, str]:
    """Infer the rule for the metric called ``name``, and say which key decided.

    Case is ignored.  The first stage that finds something decides:

    1. the name is a key (``greater_keys``, then ``less_keys``);
    2. a key is a whole word of the name (split at anything that is no letter or digit), or a
       run of whole words (``p-mpjpe``; ``AR@`` is the word with its sign); here the names of our
       field (:data:`GREATER_WORDS`, :data:`LESS_WORDS`) and the preset's keys count too;
    3. a key is a part of a word of which the rest is known to change nothing (``valAcc``,
       ``mPrecision``, ``top5``): only ``greater_keys`` and ``less_keys``.  MMCV takes any
       substring, also that of ``heatmap_dist`` or ``stop_time``.

    A longer match hides the shorter ones inside it: ``neg_log_loss`` is not a ``loss``.  Keys
    beyond the defaults win over the preset's, and those over the built-in ones.

    Args:
        name: The metric's name as it stands in the results, such as ``"coco/bbox_mAP_50"``.
        greater_keys: Keys of metrics that improve upwards; they replace the default ones.
        less_keys: Keys of metrics that improve downwards; they replace the default ones.
        preset: A name in :data:`PRESETS`, whose keys are added.

    Returns:
        The rule, and the key that decided as its list spells it.

    Raises:
        RuleInferenceError: If a stage finds both directions, or a word that casts doubt on the
            direction (``neg``, ``gap``, ``std``), or no stage finds anything.
        ValueError: If there is no such preset.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a metric must be a string, got {name!r}")
    keys = list(_all_keys(greater_keys, less_keys, preset))
    for stage in (_exact_match, _word_matches, _part_matches):
        matches = _not_hidden(stage(name, keys))
        if matches:
            return _decide(name, matches)
    raise _refusal(name, "no key matches")


class _Key(NamedTuple):
    """One key: its rule (``None``: it casts doubt), and who says so (0 caller to 2 built-in)."""

    text: str
    rule: Rule | None
    rank: int
    is_given: bool


class _Match(NamedTuple):
    """Where a key was found: the half-open span of words, or of characters."""

    start: int
    stop: int
    key: _Key

    def hides(self, other: _Match) -> bool:
        """Return whether ``other`` lies within, is no stronger, and is not the same again."""
        within = self.start <= other.start and other.stop <= self.stop
        same = (self.start, self.stop, self.key.rank) == (other.start, other.stop, other.key.rank)
        return within and self.key.rank <= other.key.rank and not same


def _all_keys(
    greater_keys: Iterable[str], less_keys: Iterable[str], preset: str | None
) -> Iterator[_Key]:
    """Yield all keys, the strongest first, ``greater`` before ``less`` where equally strong."""
    given = [
        (Rule.GREATER, check_keys(greater_keys, "greater_keys"), DEFAULT_GREATER_KEYS),
        (Rule.LESS, check_keys(less_keys, "less_keys"), DEFAULT_LESS_KEYS),
    ]
    for rule, keys, defaults in given:
        yield from (_Key(key, rule, 0, True) for key in keys if key not in defaults)
    for rule, keys in zip((Rule.GREATER, Rule.LESS), _preset_keys(preset), strict=True):
        yield from (_Key(key, rule, 1, False) for key in keys)
    for rule, keys, defaults in given:
        yield from (_Key(key, rule, 2, True) for key in keys if key in defaults)
    for known, words in ((Rule.GREATER, GREATER_WORDS), (Rule.LESS, LESS_WORDS), (None, DOUBTS)):
        yield from (_Key(word, known, 2, False) for word in words)


def _preset_keys(preset: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if preset is None:
        return (), ()
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(sorted(PRESETS))}, got {preset!r}")
    return PRESETS[preset]


def _exact_match(name: str, keys: list[_Key]) -> list[_Match]:
    equal = (key for key in keys if _fold(key.text) == _fold(name))
    return [_Match(0, 1, key) for key in equal][:1]


def _word_matches(name: str, keys: list[_Key]) -> list[_Match]:
    words = _words(name)
    spans: dict[str, list[tuple[int, int]]] = {}
    for start, stop in combinations(range(len(words) + 1), 2):
        spans.setdefault(" ".join(words[start:stop]), []).append((start, stop))
    matches = []
    for key in keys:
        key_words = _words(key.text)
        # A class name writes several words as one: `MeanIoU` is `mean iou`.
        glued_words = _words("".join(key_words))
        for spelling in {" ".join(key_words), " ".join(glued_words)}:
            matches += [_Match(*span, key) for span in spans.get(spelling, [])]
    return matches


def _part_matches(name: str, keys: list[_Key]) -> list[_Match]:
    before, after = (rf"(?:{'|'.join(parts)})*" for parts in (BEFORE, AFTER))
    return [
        _Match(*found.span(1), key)
        for key in keys
        if key.is_given
        for found in re.finditer(
            rf"(?<![^\W_]){before}({re.escape(_fold(key.text))}){after}(?![^\W_])", _fold(name)
        )
    ]


def _not_hidden(matches: list[_Match]) -> list[_Match]:
    return [match for match in matches if not any(other.hides(match) for other in matches)]


def _decide(name: str, matches: list[_Match]) -> tuple[Rule, str]:
    matches = sorted(matches, key=lambda match: (match.key.rank, match.start, match.key.text))
    rule = matches[0].key.rule
    if rule is None or any(match.key.rule is not rule for match in matches):
        said = [f"{match.key.text!r} {_SAYS[match.key.rule]}" for match in matches]
        raise _refusal(name, ", ".join(dict.fromkeys(said)))
    return rule, matches[0].key.text


_SAYS = {Rule.GREATER: "says greater", Rule.LESS: "says less", None: "leaves it open"}


def _refusal(name: str, reason: str) -> RuleInferenceError:
    return RuleInferenceError(
        f"cannot infer whether a greater or a smaller {name!r} is better: {reason}; "
        "pass rule='greater' or rule='less'"
    )


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


_WORD = re.compile(r"(?:^|(?<=/))\s*(?:1\s*)?-|[^\W_]+|@")
# A word, or `@` (`AR@100`), or the sign that turns the whole name round (`-mse`, `1-ssim`).

_GLUED = re.compile(
    r"(binary|multiclass|multilabel|retrieval)?"
    r"(.+?)"
    r"(score|metric|index|curve|error|difference|gap)?"
)
# Class names carry the task before and the kind after the word that counts: `BinaryF1Score`.


@lru_cache(maxsize=2048)
def _words(text: str) -> tuple[str, ...]:
    words: list[str] = []
    for word in _WORD.findall(_fold(text)):
        glued = _GLUED.fullmatch("".join(word.split()))
        words += [part for part in glued.groups() if part] if glued else [word]
    return tuple(words)
