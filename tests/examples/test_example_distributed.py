"""``examples/distributed.py``, started in each of the ways that its first lines name."""

from __future__ import annotations

import importlib.util
import os
import random
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import ignite.distributed as idist
import pytest

from ignite_evalhook import History, find_best

pytest.importorskip("sklearn")

pytestmark = pytest.mark.slow  # it trains a model

SCRIPT = Path(__file__).parents[2] / "examples" / "distributed.py"
# Narrow, so that it is quick; one test runs the whole ResNet-50.
OPTIONS = ("--width=8", "--max-epochs=3")
OTHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

Start = Callable[..., str]


def environment(**more: str) -> dict[str, str]:
    """Return the environment without what a launcher of these very tests may have set."""
    plain = {k: v for k, v in os.environ.items() if k not in OTHERS and not k.startswith("SLURM")}
    return {**plain, "OMP_NUM_THREADS": "1", **more}  # else torchrun says that it sets it


def run(*command: object, code: int = 0, **more: str) -> str:
    """Run a command to its end, and return what it prints; it may not warn."""
    ended = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == code, ended.stderr
    if code == 0:
        assert "Warning" not in ended.stderr
        assert "warning" not in ended.stderr
    return ended.stdout


def alone(*options: object) -> str:
    return run(SCRIPT, *options)


def parallel(*options: object, nproc: int, code: int = 0) -> str:
    return run(SCRIPT, f"--nproc={nproc}", *options, code=code)


def torchrun(*options: object, nproc: int) -> str:
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}")
    return run(*launcher, SCRIPT, *options)


def slurm(*options: object, nproc: int) -> str:
    """Start the processes with the variables that ``srun`` sets."""
    variables = {
        "SLURM_JOB_ID": str(free_port() - 15000),  # of which Ignite makes the port
        "SLURM_NTASKS": str(nproc),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, options)],
            env=environment(**variables, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(nproc)
    ]
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * nproc, said
    assert all("arning" not in errors for _, errors in said)
    assert [output for output, _ in said[1:]] == [""] * (nproc - 1)
    return said[0][0]


def free_port() -> int:
    """Return a port from 15000 to 24999 that nobody listens to."""
    for port in random.sample(range(15000, 25000), 100):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port found")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run on one process, and the line that it prints."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, alone(*OPTIONS, f"--out-dir={folder}")


def records(folder: Path) -> list[tuple[int, int | None, float, float]]:
    history = History.read(folder / "history.jsonl")
    return [(r.epoch, r.samples, r.metrics["accuracy"], r.metrics["val_loss"]) for r in history]


def test_one_process_learns_and_prints_one_line(unbroken: tuple[Path, str]) -> None:
    folder, line = unbroken
    epochs, samples, accuracies, losses = zip(*records(folder), strict=True)
    assert epochs == (1, 2, 3)
    assert samples == (5, 5, 5)
    assert accuracies[-1] == 1.0
    assert losses[-1] < 0.2 < 0.6 < losses[0]
    assert line == f"5 of 5 samples: val_loss {min(losses):.2f}, accuracy 1.00, best epoch 3\n"


@pytest.mark.parametrize(
    ("start", "nproc"),
    [
        (parallel, 2),
        (parallel, 4),
        (torchrun, 2),
        (slurm, 2),
    ],
    ids=["Parallel, 2", "Parallel, 4", "torchrun, 2", "SLURM, 2"],
)
def test_each_launcher_prints_the_line_of_one_process(
    start: Start, nproc: int, tmp_path: Path, unbroken: tuple[Path, str]
) -> None:
    folder, line = unbroken

    assert start(*OPTIONS, f"--out-dir={tmp_path}", nproc=nproc) == line

    for record, wanted in zip(records(tmp_path), records(folder), strict=True):
        assert record[:3] == wanted[:3]
        assert record[3] == pytest.approx(wanted[3], rel=1e-3)  # trained with other roundings
    assert find_best(tmp_path).epoch == find_best(folder).epoch
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in folder.iterdir()}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    "again",
    [alone, partial(parallel, nproc=2)],
    ids=["on one", "on two"],
)
def test_a_run_on_two_processes_that_was_killed_ends_as_if_it_had_not_been(
    again: Start, tmp_path: Path, unbroken: tuple[Path, str]
) -> None:
    folder, line = unbroken
    options = (*OPTIONS, f"--out-dir={tmp_path}")

    output = parallel(*options, "--kill-at-epoch=3", nproc=2, code=1)

    assert output == "Killed on purpose, in the middle of an epoch.\n"
    assert [record[0] for record in records(tmp_path)] == [1, 2]
    assert again(*options) == line
    assert [record[0] for record in records(tmp_path)] == [1, 2, 3]
    assert find_best(tmp_path).epoch == find_best(folder).epoch


def test_the_whole_resnet_50_prints_the_same_line_on_1_2_and_4_processes(tmp_path: Path) -> None:
    lines = [alone(f"--out-dir={tmp_path / '1'}")]
    lines += [parallel(f"--out-dir={tmp_path / str(n)}", nproc=n) for n in (2, 4)]
    assert lines[0].startswith("5 of 5 samples: val_loss 0.")
    assert lines == lines[:1] * 3


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_distributed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_model_has_as_many_parameters_as_torchvision_counts() -> None:
    model = load().resnet50(width=64, classes=1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_557_032


def test_a_batch_that_cannot_be_shared_out_evenly_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idist, "get_world_size", lambda: 5)
    with pytest.raises(ValueError, match="12 images cannot be shared out evenly to 5 processes"):
        load().train(0, Namespace())
