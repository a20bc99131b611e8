"""Ranks that meet: what is said reaches all, what fails is raised everywhere, nobody waits."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Any

import pytest
import torch

from helpers.private import Packed, Team
from helpers.ranks import Outcome, die, on_ranks
from ignite_evalhook import EvaluationError, shard_batches


def meet(rank: int) -> Any:
    team = Team.current()
    with team.together("work") as section:
        first = section.meet("one", {"rank": rank, "x": torch.full((3,), float(rank))}, list)
        second = section.close(rank, sum)
    large = team.tell(lambda: {"big": torch.arange(3_000_000), "text": "žluťoučký 🐎 " * 1000})
    return (
        [(said["rank"], said["x"].tolist()) for said in first],
        second,
        int(large["big"].sum()),
        large["text"][:9],
        (team.rank, team.size, team.leads),
    )


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_what_is_said_and_decided_reaches_every_rank(world_size: int) -> None:
    told = on_ranks(world_size, meet)
    said = [(rank, [float(rank)] * 3) for rank in range(world_size)]
    for rank, outcome in enumerate(told):
        assert outcome == (
            said,
            sum(range(world_size)),
            3_000_000 * 2_999_999 // 2,
            "žluťoučký",
            (rank, world_size, rank == 0),
        )


def fail(rank: int, who: int, where: str) -> Any:
    team = Team.current()
    errors: list[str] = []
    causes: list[str] = []
    for attempt in (0, 1):
        try:
            with team.together(f"work {attempt}") as section:
                if where == "before" and rank == who:
                    raise ValueError("nö\n  0.0")
                section.meet("one")
                if where == "between" and rank == who:
                    raise ValueError("nö\n  0.0")
                section.meet("two", None, decide if where == "decide" else None)
                if where == "late" and rank == who:
                    raise ValueError("nö\n  0.0")
                if where == "pickle" and rank == who:
                    section.meet("three", lambda: 0)
                else:
                    section.meet("three")
        except EvaluationError as error:
            errors.append(str(error))
            causes.append(type(error.__cause__).__name__)
        assert team.tell(lambda: "on") == "on"  # afterwards they go on together
    return errors, causes


def decide(said: list[Any]) -> Any:
    raise ValueError("nö\n  0.0")


@pytest.mark.parametrize(
    ("who", "where"),
    [(who, where) for who in (0, 1, 2) for where in ("before", "between", "late")]
    + [(0, "decide"), (1, "pickle"), (2, "pickle")],
)
def test_what_fails_on_one_rank_is_raised_on_every_one(who: int, where: str) -> None:
    kind = "TypeError" if where == "pickle" else "ValueError"
    for rank, (errors, causes) in enumerate(on_ranks(3, fail, who, where)):
        assert len(errors) == 2
        for words in errors:
            assert f"rank {who} failed: {kind}" in words
            assert "nö 0.0" in words or where == "pickle"
            assert len(words.splitlines()) == 1
        assert causes == [kind if rank == who else "NoneType"] * 2


def go_astray(rank: int) -> None:
    team = Team.current()
    with team.together("one thing" if rank == 0 else "another"):
        pass


def test_ranks_that_are_at_different_places_are_told_so() -> None:
    for outcome in on_ranks(2, go_astray, check=False):
        assert outcome.error is not None
        assert "different places" in outcome.error[1]


def lose(rank: int, who: int) -> None:
    team = Team.current()
    team.tell(lambda: 0)
    with team.together("work") as section:
        if rank == who:
            die()
        section.meet("one")


@pytest.mark.parametrize("who", [0, 1, 2])
def test_a_rank_that_is_killed_ends_the_others_at_once(who: int) -> None:
    outcomes: list[Outcome] = on_ranks(3, lose, who, check=False, group_timeout=60)
    for rank, outcome in enumerate(outcomes):
        if rank == who:
            assert outcome.code == -9
        else:
            assert outcome.error is not None
            assert outcome.error[0] == "EvaluationError"
            assert f"rank {who} failed: ConnectionError" in outcome.error[1]
            assert outcome.seconds < 30


def lose_two(rank: int) -> None:
    team = Team.current()
    team.tell(lambda: 0)
    with team.together("work") as section:
        if rank in (1, 3):
            die()
        section.meet("one", torch.zeros(5000), len)  # more than fits into a first message


def test_of_several_ranks_that_are_killed_all_are_named_and_the_others_heard() -> None:
    outcomes: list[Outcome] = on_ranks(4, lose_two, check=False, group_timeout=60)
    for rank in (0, 2):
        error = outcomes[rank].error
        assert error is not None
        assert error[0] == "EvaluationError"
        assert "rank 1 failed: ConnectionError" in error[1]
        assert "(and so did [3])" in error[1]
        assert outcomes[rank].seconds < 30


def interrupt(rank: int, nested: bool) -> Any:
    team = Team.current()
    try:
        with team.together("work") as section:
            if nested:
                with team.together("inner work"):
                    if rank == 1:
                        raise KeyboardInterrupt
            if rank == 1:
                raise KeyboardInterrupt
            section.meet("one")
    except (KeyboardInterrupt, EvaluationError) as error:
        return type(error).__name__, team.tell(lambda: "on"), team.meetings


@pytest.mark.parametrize("nested", [False, True])
def test_an_interrupt_stays_one_where_it_came_and_ends_the_others(nested: bool) -> None:
    kinds = ["EvaluationError", "KeyboardInterrupt", "EvaluationError"]
    assert on_ranks(3, interrupt, nested) == [(kind, "on", 2) for kind in kinds]


class Unreadable:
    """Opens on every rank but one."""

    def __init__(self, who: int) -> None:
        self.who = who

    def __reduce__(self) -> Any:
        return explode, (self.who,)


def explode(who: int) -> str:
    if Team.current().rank == who:
        raise LookupError("cannot be opened here")
    return "opened"


BIG = 40_000_000  # bytes; more than one block


def break_messages(rank: int) -> dict[str, Any]:
    """Send what breaks on its way, in a first, a middle and a last meeting; go on each time."""
    team = Team.current()
    seen: dict[str, Any] = {}
    real_empty, real_pieces = torch.empty, Packed.pieces

    def too_little_memory(*size: Any, **options: Any) -> Any:
        if size == (BIG,):
            raise RuntimeError("there is no memory for this")
        return real_empty(*size, **options)

    def breaking(packed: Packed) -> Any:
        for piece in real_pieces.fget(packed):  # type: ignore[attr-defined]
            if len(piece) == BIG // 2:
                raise RuntimeError("it broke on the way")
            yield piece

    big = [torch.zeros(BIG // 4, dtype=torch.uint8), torch.zeros(BIG // 2, dtype=torch.uint8)]
    big.append(torch.zeros(BIG // 4, dtype=torch.uint8))

    def case(name: str, payload: Any, decide: Any, *, last: bool, broken: str = "") -> None:
        if broken == "sending":
            Packed.pieces = property(breaking)  # type: ignore[method-assign,assignment]
        if broken == "receiving":
            torch.empty = too_little_memory
        try:
            with team.together(name) as section:
                section.meet("a meeting before")
                meet = section.close if last else partial(section.meet, "the meeting")
                meet(payload, decide)
                seen[name] = "went on"
        except (EvaluationError, LookupError, RuntimeError) as error:
            seen[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            Packed.pieces = real_pieces  # type: ignore[method-assign]
            torch.empty = real_empty
        assert team.tell(lambda: name) == name

    case("said 1", Unreadable(0) if rank == 1 else "", None, last=False)
    case("said 1, at last", Unreadable(0) if rank == 1 else "", None, last=True)
    case("told 1", None, lambda said: Unreadable(1), last=False)
    case("told 1, at last", None, lambda said: Unreadable(1), last=True)
    case("told 0", None, lambda said: lambda: 0, last=False)
    case("big from 1", big, None, last=False, broken="sending" if rank == 1 else "")
    case("big to 0", big, None, last=False, broken="receiving" if rank == 0 else "")
    case("big from 0", None, lambda said: big, last=False, broken="sending" if rank == 0 else "")
    case("big to 1", None, lambda said: big, last=False, broken="receiving" if rank == 1 else "")
    case("big", big, lambda said: big, last=False)
    return seen


def test_what_breaks_on_its_way_is_told_and_no_message_is_left_over() -> None:
    told = {
        "said 1": "EvaluationError: rank 0 failed: LookupError: cannot be opened here",
        "said 1, at last": "EvaluationError: rank 0 failed: LookupError: cannot be opened here",
        "told 1": "EvaluationError: rank 1 failed: LookupError: cannot be opened here",
        "told 0": "EvaluationError: rank 0 failed: TypeError: cannot be sent to other processes",
        "big from 1": "EvaluationError: rank 1 failed: RuntimeError: it broke on the way",
        "big to 0": "EvaluationError: rank 0 failed: RuntimeError: there is no memory for this",
        "big from 0": "EvaluationError: rank 0 failed: RuntimeError: it broke on the way",
        "big to 1": "EvaluationError: rank 1 failed: RuntimeError: there is no memory for this",
        "big": "went on",
    }
    for rank, seen in enumerate(on_ranks(3, break_messages)):
        for name, words in told.items():
            assert seen[name].startswith(words), (rank, name)
        # It was the last meeting, so the others are done.
        alone = "LookupError: cannot be opened here" if rank == 1 else "went on"
        assert seen["told 1, at last"] == alone


def decide_and_meet(rank: int) -> Any:
    team = Team.current()
    seen = []
    for again in (lambda: team.tell(lambda: 0), lambda: list(shard_batches([1, 2, 3]))):
        try:
            with team.together("work") as section:
                section.meet("one", None, lambda said, again=again: again())
        except EvaluationError as error:
            seen.append(str(error).splitlines()[0])
    return [*seen, team.tell(lambda: "on")]


def test_what_runs_on_rank_0_alone_may_not_wait_for_the_others() -> None:
    for seen in on_ranks(2, decide_and_meet):
        assert "telling: this was called on rank 0 alone" in seen[0]
        assert seen[-1] == "on"


def be_killed_while_waiting(rank: int) -> Any:
    team = Team.current()
    seen = []
    with team.together("work") as section:

        def kill(said: list[int]) -> int:
            os.kill(said[1], signal.SIGKILL)
            return 7

        seen.append(section.meet("one", os.getpid(), kill))
        try:
            section.meet("two")
        except EvaluationError as error:
            seen.append(str(error))
            raise
    return seen


def test_a_rank_killed_before_its_answer_is_missed_by_all_at_the_next_meeting() -> None:
    outcomes = on_ranks(3, be_killed_while_waiting, check=False, group_timeout=60)
    assert outcomes[1].code == -signal.SIGKILL
    for rank in (0, 2):
        assert outcomes[rank].error is not None
        assert outcomes[rank].error[0] == "EvaluationError"
        assert "rank 1 failed: ConnectionError" in outcomes[rank].error[1]


def test_a_team_of_one_raises_what_was_raised() -> None:
    team = Team()
    with team.together("work") as section:
        assert section.meet("one", 7, lambda said: said) == [7]
    with pytest.raises(ValueError, match="as it is"), team.together("work"):
        raise ValueError("as it is")
