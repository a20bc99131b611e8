"""Run a function on several real processes that share a gloo process group.

:func:`on_ranks` starts the processes, gives each the function, and returns what each returned
or raised.  The processes are forked from a server that has imported torch and Ignite already,
so a world of four starts in a fraction of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

PRELOAD = ["torch", "torch.distributed", "ignite.engine", "ignite.metrics", "ignite.handlers",
           "ignite.distributed", "ignite_evalhook", "helpers.ranks", "pytest",
           "sklearn.metrics", "torch._dynamo"]  # fmt: skip

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


@dataclass(frozen=True)
class Outcome:
    """What became of one rank.

    Attributes:
        value: What the function returned.
        error: The type and the words of what it raised, ``None`` if it returned.
        code: The exit code of the process; negative for a signal.
        seconds: How long the function ran.
    """

    value: Any = None
    error: tuple[str, str] | None = None
    code: int | None = None
    seconds: float = 0.0


def on_ranks(
    world_size: int,
    function: Callable[..., Any],
    *args: Any,
    timeout: float = 120.0,
    group_timeout: float = 60.0,
    check: bool = True,
) -> list[Any]:
    """Call ``function(rank, *args)`` on every rank.

    Args:
        world_size: Number of processes.
        function: At the top level of a module.
        *args: Its further arguments.
        timeout: Seconds after which all processes are killed, and the test fails.
        group_timeout: Seconds after which a collective of the default group gives up.
        check: Fail if a rank has raised or died, and return values; else return outcomes.

    Returns:
        What each rank returned, in order; or each rank's :class:`Outcome`.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = (Path(folder), world_size, group_timeout, function, args)
        processes = [
            _context.Process(target=_work, args=(rank, *arguments)) for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        until = time.monotonic() + timeout
        try:
            for process in processes:
                process.join(max(0.0, until - time.monotonic()))
        finally:
            hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
            for process in processes:
                process.kill()
                process.join()
        outcomes = [_outcome(Path(folder), rank, p.exitcode) for rank, p in enumerate(processes)]
    if hanging:
        raise AssertionError(f"ranks {hanging} hung for {timeout} s; the outcomes: {outcomes}")
    if not check:
        return outcomes
    for rank, outcome in enumerate(outcomes):
        if outcome.error is not None or outcome.code != 0:
            raise AssertionError(f"rank {rank} of {world_size}: {outcome}\n{outcome.error}")
    return [outcome.value for outcome in outcomes]


def die() -> None:
    """Let this process be killed, as the system's memory killer does it."""
    os.kill(os.getpid(), signal.SIGKILL)


def _outcome(folder: Path, rank: int, code: int | None) -> Outcome:
    file = folder / f"{rank}.pkl"
    if not file.exists():
        return Outcome(code=code)
    value, error, seconds = pickle.loads(file.read_bytes())
    return Outcome(value, error, code, seconds)


def _work(
    rank: int,
    folder: Path,
    world_size: int,
    group_timeout: float,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=r".torch\.jit\..* is deprecated")
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # else Ignite guesses it from host names, and warns
    if world_size > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=group_timeout),
        )
    value, error = None, None
    started = time.monotonic()
    try:
        value = function(rank, *args)
    except BaseException as raised:  # noqa: BLE001  # it is what the test looks at
        chain = "".join(traceback.format_exception(raised))
        error = (type(raised).__name__, f"{raised}\n--- {chain}")
    temporary = folder / f"{rank}.part"
    temporary.write_bytes(pickle.dumps((value, error, time.monotonic() - started)))
    temporary.rename(folder / f"{rank}.pkl")
    if error is None and world_size > 1:
        dist.destroy_process_group()
    os._exit(0)  # without the clean-up of a group whose other ranks may be gone
