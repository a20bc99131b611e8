"""Compute metrics over several ranks: ask, stop, and begin again knowing one answer more.

Each rank calls ``compute()`` of each metric on its own state.  Where that asks the other ranks, it
is stopped; the open questions of all metrics go to rank 0 in one meeting, all ranks are told the
answers, and begin again.  The last word on each metric is its value; that of the first rank
counts.  No metric talks to other ranks by itself, and none waits for them.

What only keeps lists is told to rank 0, which computes once, from the lists of all ranks in the
order of the dataset, as one process does.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from torch.utils import _pytree as pytree

from .._undisturbed.random import remember_random
from ..exceptions import EvaluationError
from .answers import (
    UNREDUCED,
    Again,
    Answer,
    Answers,
    Own,
    Raised,
    Reduce,
    Told,
    Unable,
    Value,
    decide,
    summary,
)
from .asked_unit import AskedUnit
from .asking_rank import AskingRank, InexactError, Questions, Stopped
from .list_marks import ListReport, Lists, dealt_lists, joined_lists
from .metric_units import Unit, units_of
from .offline import in_place, real_model, world_of_one
from .state_snapshot import StateSnapshot
from .torch_collectives import no_torch_collectives, watch_first_update

__all__ = ["AskedMetrics", "Words"]


class Words(NamedTuple):
    """What one rank says at a meeting.

    Attributes:
        classes: The classes of what is computed first now, by key.
        words: By key, what there is to say of it.
    """

    classes: dict[str, str]
    words: dict[str, Any]


class Deal(NamedTuple):
    """These ranks are to go on with these items in the lists that have grown."""

    lists: dict[int, Lists]


class AskedMetrics:
    """The metrics of one evaluation, on one rank.

    Call :meth:`note` around batches.  Then, until :attr:`done`, on all ranks :meth:`say`, on rank 0
    :meth:`decide`, and on all :meth:`hear`.

    Args:
        metrics: By name; the same on all ranks.
        rank: This rank.
        size: The number of ranks.
        reduce: Reduces a CPU tensor in place over all ranks: ``"SUM"``, ``"MIN"`` or ``"MAX"``.
            ``None``: even large tensors are sent.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        rank: int,
        size: int,
        reduce: Callable[[torch.Tensor, str], None] | None = None,
    ) -> None:
        self._metrics = metrics
        self._rank = rank
        self._reduce = reduce
        attached = set(map(id, metrics.values()))
        self._asked = {
            unit.key: AskedUnit(
                unit, range(size), attached=id(unit.target) in attached, sends=reduce is None
            )
            for name, metric in metrics.items()
            for unit in units_of(name, metric)
        }
        self._numbers: Sequence[Sequence[int]] = ()
        self._watched: Sequence[Callable[[], None]] = ()
        self._rewind: Callable[[], object] | None = None

    @property
    def done(self) -> bool:
        """Whether all values are known."""
        return all(asked.result is not None for asked in self._asked.values())

    def note(self) -> None:
        """Note how lists grow: before the first batch, and after each."""
        for asked in self._asked.values():
            asked.unit.marks.note()
        if not self._watched:
            self._watched = [
                watch_first_update(asked.unit.target, asked.unit.title)
                for asked in self._asked.values()
                if isinstance(asked.unit.target, Metric)
            ]

    def answer_for_all(self) -> None:
        """Let ``compute()`` of each metric return its value over the ranks, until :meth:`close`."""
        for name, metric in self._metrics.items():
            vars(metric)["compute"] = self._asked[name].take

    def refuse_unreduced(self) -> None:
        """Refuse metrics that would never ask other ranks, after a batch that was for trial.

        Raises:
            EvaluationError: Naming the first one.
        """
        for asked in self._asked.values():
            known = type(asked.unit.target).__module__.startswith("ignite.")
            if known or asked.unit.parts or not asked.attached or len(asked.ranks) == 1:
                continue
            try:
                word = self._say_of(asked, 1)
            except EvaluationError:
                raise
            except Exception:  # noqa: BLE001  # a batch may be too little; time will tell
                continue
            if isinstance(word, Value) and not word.shared:
                raise _inexact(asked.unit, InexactError(UNREDUCED))

    # -- on each rank -----------------------------------------------------------------------------

    def say(self, batches: int) -> Words:
        """Go on computing, and return what this rank has to say.

        Args:
            batches: How many batches this rank has had.
        """
        words: dict[str, Any] = {}
        for end in self._watched:
            end()
        self._rewind = self._rewind or remember_random(())
        for key, asked in self._asked.items():
            ready = all(self._asked[part.key].result is not None for part in asked.unit.parts)
            if asked.result is None and self._rank in asked.ranks and ready:
                words[key] = self._say_of(asked, batches)
        classes = {key: a.unit.classes for key, a in self._asked.items() if not a.begun}
        return Words(classes, words)

    def _say_of(self, asked: AskedUnit, batches: int) -> Any:
        if not asked.begun:
            if batches == 0:
                return Unable()
            report = asked.unit.marks.report()
            if report is not None and (report.lists or not asked.unit.parts):
                _check_can_be_told(asked.unit, report)
                return report
        place = asked.ranks.index(self._rank)
        word = self._compute(asked, asked.ranks)
        if isinstance(word, Questions):
            return asked.shortened(word)
        if not isinstance(word, Value):
            return word
        asked.own = word
        return word if place == 0 else Value(summary(word.value), word.shared)

    def _compute(self, asked: AskedUnit, ranks: Sequence[int]) -> Any:
        """Compute up to the first open question, and leave everything as it was.

        Args:
            asked: What is computed.
            ranks: Those that compute it; if it is this one only, there are no others for it.
        """
        unit = asked.unit
        model = AskingRank(real_model(), ranks.index(self._rank), len(ranks), asked.answers)
        if self._rewind is not None:
            self._rewind()
        asked.snapshot = asked.snapshot or StateSnapshot(unit.followed)
        taken: list[str] = []
        word: Any = None
        try:
            with ExitStack() as stack:
                stack.enter_context(self._parts_given(unit, taken))
                if len(ranks) == 1:
                    stack.enter_context(world_of_one())
                else:
                    stack.enter_context(in_place(model))
                    stack.enter_context(no_torch_collectives(unit.title))
                value = asked.snapshot.apart(_on_cpu(unit.compute()))
            word = Value(value, model.asked or bool(taken))
        except Stopped:
            pass
        except Exception as error:  # noqa: BLE001  # which answers yet to come may prevent
            if not model.questions:
                word = self._failed(asked, error)
        finally:
            questions = [q._replace(value=asked.snapshot.apart(q.value)) for q in model.questions]
            changed = asked.snapshot.put_back()
        if changed is not None and len(ranks) > 1:
            raise EvaluationError(
                f"{unit.title} changes a tensor of {changed.numel()} numbers in place while it "
                "computes, which is done several times; let compute() work on a copy"
            )
        if model.stopped and word is not None:
            raise _inexact(unit, InexactError(
                "it catches BaseException around a call of ignite.distributed; catch Exception"
            ))  # fmt: skip
        return Questions(questions) if questions else word

    def _failed(self, asked: AskedUnit, error: Exception) -> Unable | Raised:
        """Return what to say of an exception; raise that of a metric that is attached."""
        unit = asked.unit
        if isinstance(error, NotComputableError):
            return Unable(str(error))
        if isinstance(error, InexactError):
            error = _inexact(unit, error)
        if asked.attached:
            raise error
        asked.error = error  # raised if its value is asked for
        kind = type(error).__qualname__
        return Raised(f"{unit.title} failed on rank {self._rank}: {kind}: {error}")

    @contextmanager
    def _parts_given(self, unit: Unit, taken: list[str]) -> Iterator[None]:
        """Let ``compute()`` of the parts of a metric return their values over the ranks."""

        def take(key: str) -> Any:
            taken.append(key)
            return self._asked[key].take()

        kept = [vars(part.target).get("compute") for part in unit.parts]
        try:
            for part in unit.parts:
                vars(part.target)["compute"] = partial(take, part.key)
            yield
        finally:
            for part, own in zip(unit.parts, kept, strict=True):
                vars(part.target).pop("compute", None)
                if own is not None:
                    vars(part.target)["compute"] = own

    def hear(self, told: Mapping[str, Told | Deal]) -> None:
        """Take in what all ranks were told; where it says so, reduce large tensors together."""
        for key, word in told.items():
            asked = self._asked[key]
            asked.begun = True
            if isinstance(word, Answers):
                for number, answer in enumerate(word.each):
                    if isinstance(answer, Reduce):
                        answer = self._reduced(asked.large_part(number, answer), answer.op)
                    asked.answers.append((answer.operation, answer.value))
            elif isinstance(word, Again):
                asked.begin_again(word.ranks)
            elif isinstance(word, Deal):
                asked.begin_again(sorted(word.lists))
                if self._rank in word.lists:
                    asked.put(word.lists[self._rank])
            else:
                asked.result = asked.own if isinstance(word, Own) else word
        if self.done:
            self.close()

    def _reduced(self, tensor: torch.Tensor, op: str) -> Answer:
        assert self._reduce is not None
        self._reduce(tensor, op)
        return Answer("all_reduce", tensor)

    def close(self) -> None:
        """Give all metrics their own lists and methods again."""
        for end in self._watched:
            end()
        for asked in self._asked.values():
            asked.put_lists_back()
        for metric in self._metrics.values():
            vars(metric).pop("compute", None)

    # -- on rank 0 --------------------------------------------------------------------------------

    def decide(
        self, said: Sequence[Words], numbers: Sequence[Sequence[int]] | None = None
    ) -> dict[str, Told | Deal]:
        """Return what all ranks are told.

        Args:
            said: What each rank says.
            numbers: The first time: for each rank, the numbers of its batches in the whole dataset.

        Raises:
            EvaluationError: If a metric cannot be computed over the ranks.
            Exception: What a metric has raised that is computed here alone.
        """
        self._numbers = self._numbers if numbers is None else numbers
        _check_same_metrics([one.classes for one in said])
        told: dict[str, Told | Deal] = {}
        for key, asked in self._asked.items():
            words = {rank: one.words[key] for rank, one in enumerate(said) if key in one.words}
            if not words:
                continue
            try:
                if any(isinstance(word, ListReport) for word in words.values()):
                    told[key] = self._decide_lists(asked, words)
                else:
                    told[key] = decide(words)
                if isinstance(told[key], Value) and asked.is_everywhere(words, len(said)):
                    told[key] = Own()
            except InexactError as inexact:
                if asked.attached:
                    raise _inexact(asked.unit, inexact) from inexact
                told[key] = Raised(str(_inexact(asked.unit, inexact)))
        return told

    def _decide_lists(self, asked: AskedUnit, words: Mapping[int, Any]) -> Told | Deal:
        """Compute here from the lists of all ranks, if they are all that counts; else deal."""
        able = [rank for rank, word in words.items() if not isinstance(word, Unable)]
        found = {
            rank: words[rank] for rank in able
            if isinstance(words[rank], ListReport) and (words[rank].lists or words[rank].counting)
        }  # fmt: skip
        ranks, reports = list(found), list(found.values())
        if len(able) == 1 or not found:
            return Again(able)
        numbers = [self._numbers[rank] for rank in ranks]
        settings, differing = _settings(reports)
        counting = [name for report in reports for name in report.counting] + differing
        if counting and asked.unit.lists_only is not None:
            raise InexactError(f"{counting[0]} {asked.unit.lists_only}")
        if counting:
            return Deal(dict(zip(ranks, dealt_lists(reports, numbers), strict=True)))
        asked.put({**settings, **joined_lists(reports, numbers)})
        try:
            word: Told = self._compute(asked, [self._rank])
        finally:
            asked.put_lists_back()
        return word


def _inexact(unit: Unit, error: Exception) -> EvaluationError:
    return EvaluationError(f"{unit.title} cannot be computed over all ranks: {error}")


def _settings(reports: Sequence[ListReport]) -> tuple[dict[Any, Any], list[str]]:
    """Return the settings of the ranks, and the names of those that differ."""
    settings: dict[Any, Any] = {}
    differing = []
    for report in reports:
        for place, (name, value) in report.settings.items():
            if place in settings and settings[place] != value:
                differing.append(name)
            settings.setdefault(place, value)
    return settings, differing


def _check_same_metrics(classes: Sequence[Mapping[str, str]]) -> None:
    for rank, own in enumerate(classes[1:], start=1):
        if own != classes[0]:
            first, other = (", ".join(one.values()) for one in (classes[0], own))
            raise EvaluationError(
                f"the metrics are made of {first} on rank 0 and of {other} on rank {rank}; make "
                "all metrics in __init__, so that they are the same on all ranks"
            )


def _check_can_be_told(unit: Unit, report: ListReport) -> None:
    """Refuse lists of objects that cannot be sent, by name; the first of each is looked at."""
    for items, _ in report.lists.values():
        if isinstance(items[0], torch.Tensor):
            continue
        try:
            pickle.dumps(items[0])
        except Exception as error:
            cls = type(items[0])
            raise EvaluationError(
                f"{unit.title} keeps objects of the class {cls.__module__}.{cls.__qualname__} in a "
                "list, and they cannot be told to another process; keep tensors, numbers or "
                "strings, or reduce them in update()"
            ) from error


def _on_cpu(value: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu(), value)
