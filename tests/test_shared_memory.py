"""Memory that two processes see: the same bytes, nothing left over, and another way if it fails."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.ranks import Outcome, die, on_ranks
from ignite_evalhook import EvaluationError, _shared_memory, _team, _wire
from ignite_evalhook._shared_memory import borrow, host, lend
from ignite_evalhook._team import Team

pytestmark = pytest.mark.skipif(host() is None, reason="this system has no memory to lend")

BYTES = torch.arange(10_000, dtype=torch.int64).to(torch.uint8)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def nothing_left_open() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() == before


# -- what is lent is borrowed ---------------------------------------------------------------------


@given(st.lists(st.binary(min_size=1, max_size=9000), min_size=1, max_size=5))
def test_what_is_borrowed_is_what_was_lent(pieces: list[bytes]) -> None:
    loan = lend(torch.frombuffer(bytearray(piece), dtype=torch.uint8) for piece in pieces)
    assert loan is not None
    borrowed = borrow(loan.address, sum(map(len, pieces)))
    loan.end()
    assert borrowed is not None
    assert bytes(borrowed.tolist()) == b"".join(pieces)  # also after the end of the loan


@pytest.mark.usefixtures("nothing_left_open")
def test_what_a_borrower_writes_is_its_own_business() -> None:
    loan = lend([BYTES])
    assert loan is not None
    mine, other = borrow(loan.address, 10_000), borrow(loan.address, 10_000)
    loan.end()
    assert mine is not None
    assert other is not None
    mine.fill_(7)
    assert torch.equal(other, BYTES)
    assert mine.unique().tolist() == [7]


@pytest.mark.usefixtures("nothing_left_open")
def test_a_system_that_takes_a_part_at_a_time_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:999]))
    loan = lend([BYTES, BYTES])
    assert loan is not None
    borrowed = borrow(loan.address, 20_000)
    loan.end()
    assert borrowed is not None
    assert torch.equal(borrowed, torch.cat([BYTES, BYTES]))


# -- what fails -----------------------------------------------------------------------------------


def refuse(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "no space left")


def refuse_after(times: int) -> Callable[[int, Any], int]:
    """Return a ``write()`` that has not so much memory."""
    write, left = os.write, [times]

    def write_some(file: int, data: Any) -> int:
        left[0] -= 1
        return refuse() if left[0] < 0 else write(file, data[:999])  # type: ignore[no-any-return]

    return write_some


@pytest.mark.usefixtures("nothing_left_open")
@pytest.mark.parametrize(
    ("name", "function"),
    [("memfd_create", refuse), ("write", refuse), ("write", refuse_after(3))],
)
def test_too_little_memory_or_a_ban_is_no_loan_and_no_error(
    monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., Any]
) -> None:
    monkeypatch.setattr(os, name, function)
    assert lend([BYTES]) is None


@pytest.mark.usefixtures("nothing_left_open")
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_piece_that_raises_is_heard_of(kind: type[BaseException]) -> None:
    def pieces() -> Iterator[torch.Tensor]:
        yield BYTES
        raise kind("lost")

    with pytest.raises(kind, match="lost"):
        lend(pieces())


@pytest.mark.usefixtures("nothing_left_open")
def test_what_is_not_there_or_not_what_was_lent_is_not_borrowed(tmp_path: Path) -> None:
    loan, another = lend([BYTES]), lend([BYTES])
    assert loan is not None
    assert another is not None
    path, name = loan.address.split()
    file = tmp_path / "file"
    file.write_bytes(bytes(10_000))
    os.mkfifo(tmp_path / "fifo")  # to open it would wait for ever
    handle = os.open(file, os.O_RDONLY)
    assert borrow(loan.address, 10_000) is not None
    assert borrow(loan.address, 10_001) is None
    assert borrow(f"{path} {another.address.split()[1]}", 10_000) is None
    for wrong in (str(file), str(tmp_path / "fifo"), f"/proc/self/fd/{handle}", "/proc/1/fd/999"):
        assert borrow(f"{wrong} {name}", 10_000) is None
    os.close(handle)
    another.end()
    loan.end()
    assert borrow(loan.address, 10_000) is None


def test_a_system_without_such_memory_lends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_shared_memory.Path, "read_text", refuse)
        assert host() is None
    monkeypatch.delattr(os, "memfd_create")
    assert host() is None


# -- between ranks --------------------------------------------------------------------------------

LEAST = 100_000  # bytes that are lent here


def value_of(rank: int) -> dict[str, Any]:
    """Return what a rank says: about 2 MB of tensors of many kinds, and more."""
    torch.manual_seed(rank)
    ragged = [torch.rand(n % 7, 4) for n in range(3000)]
    return {
        "rank": rank,
        "large": torch.rand(100_000 + rank),
        "ragged": ragged,
        "half": torch.rand(5, 7).half(),
        "number": torch.tensor(rank),
        "text": "žluťoučký 🐎",
        "array": torch.rand(40_000).numpy(),
    }


def fingerprint(value: Any) -> str:
    """Return every bit of what was said."""
    tensors = {k: v for k, v in value.items() if isinstance(v, torch.Tensor)}
    rest = [value["rank"], value["text"], value["array"].tobytes()]
    parts = [(k, v.dtype, v.shape, v.reshape(-1).tolist()) for k, v in tensors.items()]
    return repr((parts, rest, [piece.tolist() for piece in value["ragged"]]))


def say(rank: int, how: str) -> Any:
    """Say something three times, and return what rank 0 heard, and how often it borrowed."""
    _wire._LENT = LEAST
    asked, had = [], []
    own_lend, own_borrow = _wire.lend, _wire.borrow

    def counted_lend(pieces: Any) -> Any:
        asked.append(own_lend(pieces))
        return asked[-1]

    def counted_borrow(address: str, size: int) -> Any:
        had.append(None if how == "forbidden to borrow" else own_borrow(address, size))
        return had[-1]

    _wire.lend, _wire.borrow = counted_lend, counted_borrow
    if how == "no memory":
        os.write = refuse_after(3)  # type: ignore[assignment]
    if how == "other hosts" and rank == 2:
        _team.host = lambda: "another boot pid:[1]"
    if how == "rank 0 elsewhere" and rank == 0:
        _team.host = lambda: "another boot pid:[1]"
    if how == "no such system":
        _team.host = lambda: None
    team, before = Team.current(), open_files()
    heard: list[str] = []
    for _ in range(3):
        with team.together("work") as section:
            section.close(value_of(rank), lambda said: heard.extend(map(fingerprint, said[1:])))
    lent = [one is not None for one in asked], [one is not None for one in had]
    return heard, lent, open_files() - before


@pytest.mark.parametrize(
    ("how", "asked_1", "asked_2", "had"),
    [
        ("lent", [True] * 3, [True] * 3, [True] * 6),
        # Who was refused once does not ask again.
        ("forbidden to borrow", [True], [True], [False] * 2),
        ("no memory", [False] * 3, [False] * 3, []),
        ("other hosts", [True] * 3, [], [True] * 3),
        ("rank 0 elsewhere", [], [], []),
        ("no such system", [], [], []),
    ],
)
def test_what_is_said_arrives_whether_it_is_lent_or_sent(
    how: str, asked_1: list[bool], asked_2: list[bool], had: list[bool]
) -> None:
    (heard, lent_0, _), (_, lent_1, left_1), (_, lent_2, left_2) = on_ranks(3, say, how)
    assert heard == [fingerprint(value_of(rank)) for rank in (1, 2)] * 3
    assert lent_0 == ([], had)
    assert (lent_1[0], lent_2[0]) == (asked_1, asked_2)
    assert (left_1, left_2) == (0, 0)


def test_little_is_sent_as_ever() -> None:
    for _, (asked, had), _ in on_ranks(2, say_little):
        assert (asked, had) == ([], [])


def say_little(rank: int) -> Any:
    global LEAST
    LEAST = 1 << 30
    return say(rank, "lent")


def be_killed(rank: int, who: int, when: str) -> Any:
    """Be killed while lending, or while the other side has not answered yet."""
    _wire._LENT = LEAST
    team = Team.current()
    pid = [team.tell(os.getpid)]
    with team.together("numbers") as section:
        section.meet("pids", os.getpid(), pid.extend)
    write, own_borrow = os.write, _wire.borrow

    def die_writing(file: int, data: Any) -> int:
        write(file, data[:999])
        return die()  # type: ignore[func-returns-value]

    def die_borrowing(address: str, size: int) -> Any:
        if who == 0:
            die()
        if len(pid) == 4:
            os.kill(pid.pop(2), signal.SIGKILL)  # rank 1, who waits for an answer
        return own_borrow(address, size) if when == "answer" else None

    if when == "lending" and rank == who:
        os.write = die_writing  # type: ignore[assignment]
    if when != "lending":
        _wire.borrow = die_borrowing
    with team.together("work") as section:
        section.close(value_of(rank), len)


@pytest.mark.parametrize(
    ("who", "when"), [(1, "lending"), (1, "answer"), (1, "refusal"), (0, "answer")]
)
def test_a_rank_killed_while_it_lends_or_borrows_ends_the_others(who: int, when: str) -> None:
    outcomes: list[Outcome] = on_ranks(3, be_killed, who, when, check=False)
    if (who, when) == (1, "answer") and outcomes[0].error is None:
        # Rank 0 had all it said before it was gone: it will be missed when they meet again.
        assert outcomes[2].error is None
        return
    for rank, outcome in enumerate(outcomes):
        if rank == who:
            assert outcome.code == -signal.SIGKILL
        else:
            assert outcome.error is not None
            assert outcome.error[0] == "EvaluationError"
            assert f"rank {who} failed: ConnectionError" in outcome.error[1]
        assert outcome.seconds < 30


def be_interrupted(rank: int, who: int) -> Any:
    """Have a signal come while rank 1 copies what it lends, or rank 0 is about to map it."""
    _wire._LENT = LEAST
    team, write, own_borrow, before = Team.current(), os.write, _wire.borrow, open_files()

    def interrupted_write(file: int, data: Any) -> int:
        os.write = write
        signal.raise_signal(signal.SIGINT)
        return write(file, data)

    def interrupted_borrow(address: str, size: int) -> Any:
        _wire.borrow = own_borrow
        signal.raise_signal(signal.SIGINT)
        return own_borrow(address, size)

    if rank == who == 1:
        os.write = interrupted_write
    if rank == who == 0:
        _wire.borrow = interrupted_borrow
    try:
        with team.together("work") as section:
            section.close(value_of(rank), len)
    except (KeyboardInterrupt, EvaluationError) as error:
        words = str(error).splitlines()[:1]
        return type(error).__name__, words, team.tell(lambda: "on"), open_files() - before


@pytest.mark.parametrize("who", [0, 1])
def test_an_interrupt_while_lending_stays_one_and_the_others_are_told(who: int) -> None:
    told = ("EvaluationError", [f"rank {who} failed: KeyboardInterrupt: "], "on", 0)
    expected = [told] * 3
    expected[who] = ("KeyboardInterrupt", [], "on", 0)
    assert on_ranks(3, be_interrupted, who) == expected
