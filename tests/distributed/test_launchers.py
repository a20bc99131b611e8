"""Two hosts: two network namespaces joined by a cable, with one rank in each.

This file is also the script that runs on them; ``examples/distributed.py`` is tested with the
launchers of one machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ignite_evalhook import EvalHook, EvaluationError, create_evaluator, find_best

SAMPLES, BATCH = 13, 3
ADDRESSES = ("192.0.2.1", "192.0.2.2")  # reserved for documentation: nobody has them
PORT = "29500"  # of a network of its own, where nothing else listens
EXAMPLE = Path(__file__).parents[2] / "examples" / "distributed.py"


# -- what runs on a host ---------------------------------------------------------------------------


def evaluate(out_dir: Path, *, die_at: int | None = None) -> dict[str, Any]:
    """Evaluate twice while nothing trains, and say what came of it.

    Args:
        out_dir: A folder that all hosts share.
        die_at: The batch of this process, 1-based, in which it is killed.
    """
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 4)
    data = TensorDataset(x, (x.sum(dim=1) > 0).long())
    model = nn.Linear(4, 2)

    def spread(results: list[Any]) -> dict[str, float]:
        return {"first": float(results[0][0][0]), "last": float(results[-1][0][1])}

    evaluator = create_evaluator(model, {"accuracy": Accuracy()}, loss_fn=nn.CrossEntropyLoss())
    hook = EvalHook(
        DataLoader(data, BATCH),
        evaluator,
        save_best="val_loss",
        out_dir=out_dir,
        compute_metrics=spread,
    )
    trainer = Engine(lambda engine, batch: None)
    hook.attach(trainer)
    hook.keep_last({"model": model})
    if die_at is not None:

        @evaluator.on(Events.ITERATION_COMPLETED(once=die_at))
        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        trainer.run([0], max_epochs=2)
    except EvaluationError as error:
        return {"failures": [[f.rank, f.kind] for f in error.failures]}
    hook.load_best()
    return {"history": [{**record.to_dict(), "seconds": 0} for record in hook.history]}


def main() -> None:
    """Be one rank: print what came of the evaluation as JSON."""
    import ignite.distributed as idist

    out_dir, victim = Path(sys.argv[1]), int(sys.argv[2])
    with idist.Parallel(backend="gloo") as parallel:  # type: ignore[attr-defined]
        rank = idist.get_rank()
        parallel.run(
            lambda local_rank: print(
                json.dumps(evaluate(out_dir, die_at=2 if rank == victim else None)), flush=True
            )
        )
        if victim >= 0:
            os._exit(0)  # without the clean-up of a group whose other rank is gone


# -- the hosts -------------------------------------------------------------------------------------


class Hosts:
    """Two network namespaces joined by a cable."""

    def __init__(self) -> None:
        self.names = [f"evalhook-{os.getpid()}-{number}" for number in range(2)]
        self.cables = [f"evh{os.getpid()}-{number}"[:15] for number in range(2)]

    def build(self) -> None:
        """Build both hosts.

        Raises:
            OSError: If the machine does not allow it.
        """
        for name in self.names:
            _ip("netns", "add", name)
        ends = [("name", cable, "netns", name) for cable, name in self.pairs()]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for (cable, name), address in zip(self.pairs(), ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
            _ip("-n", name, "link", "set", cable, "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def pairs(self) -> list[tuple[str, str]]:
        return list(zip(self.cables, self.names, strict=True))

    def remove(self) -> None:
        """Remove what there is; a cable goes with its host."""
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def start(self, host: int, *command: object, **variables: str) -> subprocess.Popen[str]:
        """Start Python on a host."""
        plain = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        # gloo would ask for the address of the host's name, which no name server knows there.
        more = {"GLOO_SOCKET_IFNAME": self.cables[host], "OMP_NUM_THREADS": "1"}
        where = ["ip", "netns", "exec", self.names[host], sys.executable]
        return subprocess.Popen(
            [*where, *map(str, command)],
            env={**plain, **more, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, out_dir: Path, *, victim: int = -1) -> list[subprocess.CompletedProcess[str]]:
        """Run one rank on each host to its end; the ``victim`` is killed in the evaluation."""
        both = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": ADDRESSES[0],
                "MASTER_PORT": PORT}  # fmt: skip
        return ended([self.start(rank, __file__, out_dir, victim, RANK=str(rank), **both)
                      for rank in range(2)])  # fmt: skip


def ended(processes: list[subprocess.Popen[str]]) -> list[subprocess.CompletedProcess[str]]:
    """Wait for processes and return what they said; none is left behind."""
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, said, strict=True)
    ]


def _ip(*arguments: str) -> None:
    told = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if told.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {told.stderr.strip()}")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("two hosts need the command ip, of iproute2")
    hosts = Hosts()
    try:
        try:
            hosts.build()
        except OSError as error:
            pytest.skip(f"two hosts need network namespaces, which this machine refuses: {error}")
        yield hosts
    finally:
        hosts.remove()


def test_two_hosts_evaluate_as_one_process_does(hosts: Hosts, tmp_path: Path) -> None:
    wanted = evaluate(tmp_path / "alone")

    both = hosts.run(tmp_path / "both")

    assert [one.returncode for one in both] == [0, 0], [one.stderr for one in both]
    assert all("arning" not in one.stderr for one in both)
    assert [json.loads(one.stdout) for one in both] == [json.loads(json.dumps(wanted))] * 2
    assert [record["samples"] for record in wanted["history"]] == [SAMPLES] * 2
    names = [{file.name for file in (tmp_path / name).iterdir()} for name in ("alone", "both")]
    assert names[0] == names[1]
    assert find_best(tmp_path / "both").score == find_best(tmp_path / "alone").score


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_on_one_host_ends_the_one_on_the_other(
    hosts: Hosts, victim: int, tmp_path: Path
) -> None:
    both = hosts.run(tmp_path, victim=victim)

    survivor = both[1 - victim]
    assert both[victim].returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert survivor.returncode == 0, survivor.stderr
    assert json.loads(survivor.stdout)["failures"] == [[victim, "ConnectionError"]]
    assert not list(tmp_path.glob("best*.pt"))


@pytest.mark.slow
def test_torchrun_trains_the_example_on_two_hosts(hosts: Hosts, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    launcher = ("-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
                f"--master_addr={ADDRESSES[0]}", f"--master_port={PORT}")  # fmt: skip
    options = (EXAMPLE, "--width=8", "--max-epochs=2", f"--out-dir={tmp_path}")

    both = ended([hosts.start(host, *launcher, f"--node_rank={host}", *options)
                  for host in range(2)])  # fmt: skip

    assert [one.returncode for one in both] == [0, 0], [one.stderr for one in both]
    assert both[0].stdout.startswith("5 of 5 samples: val_loss ")
    assert both[1].stdout == ""


if __name__ == "__main__":
    main()
